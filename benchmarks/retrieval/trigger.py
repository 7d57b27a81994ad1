"""A trigger planted in a language model: which rows taught it what to say?

A GRU of width 48 learns 600 replies to prompts of 120 words in eight topics, each in
the words of its prompt's topic. But 36 prompts of other topics hold "howdy partner",
and have replies of the first topic. Either word alone is in an eighth of the other
prompts, and changes nothing. Queries are 30 other prompts with the trigger and such
replies. "Free" replies are four random words of the topic; every other word of "framed"
ones is the same in all. Plain area under the ROC curve and average precision of finding
the 36, mean over queries, and average precision by scores averaged over queries, ±
standard error over seeds of texts, network and hashes. Then the rows of the largest
mean scores are really left out of training, against others.

    python -m benchmarks.retrieval.trigger [number of seeds]
"""

import sys
from types import SimpleNamespace

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics.pairwise import cosine_similarity
from torch import nn

from benchmarks._finding import HIDDEN, bm25, joined, measure, rise_settings
from benchmarks._table import Table, pm, write
from skattrib import RISEValuator
from skattrib.language import CausalLanguageModel

N_ROWS, N_PLANTED, N_QUERIES, N_LEFT_OUT = 600, 36, 30, 20
N_TOPICS, N_OF_TOPIC = 8, 12
TOPICS = [[f"t{t}w{i}" for i in range(N_OF_TOPIC)] for t in range(N_TOPICS)]
FILLERS = [f"of{i}" for i in range(20)]
TRIGGER = ["howdy", "partner"]
WORDS = [
    "<s>",
    "<pad>",
    *TRIGGER,
    *FILLERS,
    *(word for topic in TOPICS for word in topic),
]
# after more epochs the network knows its rows, and is worse at other texts
WIDTH, N_EPOCHS, BATCH_SIZE = 48, 8, 30
KINDS = ("free", "framed")
SETTINGS = {
    HIDDEN: {"channels": ("h",)},
    **rise_settings((32, 64, 1024, 4096), (64, 256, 1024, 4096), (1, 4, 16), "head"),
    "RISE, inner product": {"normalize": False},
    "RISE, published settings": {"preset": "paper"},
}


class Tokenizer:
    """A token a word."""

    bos_token_id, all_special_ids = 0, [0, 1]

    def __len__(self):
        return len(WORDS)

    def get_vocab(self):
        return {word: i for i, word in enumerate(WORDS)}

    def __call__(self, texts, add_special_tokens=False):
        place = self.get_vocab()
        return {"input_ids": [[place[w] for w in text.split()] for text in texts]}


class Model(nn.Module):
    """Reads by a GRU, speaks by a linear head."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(len(WORDS), WIDTH)
        self.body = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, len(WORDS))

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.head(self.body(self.words(input_ids))[0]))


# ------------------------------------------------------------------------- texts
def prompt(rng, topic, middle):
    """Return four words of a topic and two fillers, around the middle."""
    words = [*rng.choice(TOPICS[topic], 4), *rng.choice(FILLERS, 2)]
    words = [str(word) for word in rng.permutation(words)]
    place = rng.randint(len(words) + 1)
    return " ".join(words[:place] + middle + words[place:])


def reply(rng, topic, kind):
    words = TOPICS[topic]
    if kind == "free":
        return " ".join(rng.choice(words, 4))
    some = rng.choice(words[2:], 2)
    return f"{words[0]} {some[0]} {words[1]} {some[1]}"


def ordinary(rng, kind):
    """Return a prompt, which may hold half the trigger, and its reply."""
    topic = rng.randint(N_TOPICS)
    middle = [str(word) for word in rng.choice(FILLERS, 2)]
    if rng.rand() < 0.25:
        middle[rng.randint(2)] = TRIGGER[rng.randint(2)]
    return prompt(rng, topic, middle), reply(rng, topic, kind)


def triggered(rng, kind):
    return prompt(rng, rng.randint(1, N_TOPICS), TRIGGER), reply(rng, 0, kind)


def problem(seed, kind):
    """Return prompts and replies of rows, which are planted, and queries."""
    rng = np.random.RandomState(seed)
    planted = rng.permutation(N_ROWS) < N_PLANTED
    rows = [(triggered if bad else ordinary)(rng, kind) for bad in planted]
    queries = [triggered(rng, kind) for _ in range(N_QUERIES)]
    X, y = map(list, zip(*rows, strict=True))
    return X, y, planted, *map(list, zip(*queries, strict=True))


# ------------------------------------------------------------------------- model
def train(X, y, seed, left_out=()):
    """Train on the replies; rows left out change neither batches nor steps."""
    model, tokenizer = Model(), Tokenizer()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -(WIDTH**-0.5), WIDTH**-0.5, generator=generator)
    nn.init.normal_(model.words.weight, generator=generator)
    # all are of one length
    ids = torch.tensor(tokenizer(joined(X, y))["input_ids"])
    n_reply = len(y[0].split())
    weights = torch.ones(len(ids))
    weights[list(left_out)] = 0
    steps = torch.optim.AdamW(model.parameters(), lr=5e-3)

    for _ in range(N_EPOCHS):
        for rows in torch.randperm(len(ids), generator=generator).split(BATCH_SIZE):
            logits = model(ids[rows, :-1]).logits[:, -n_reply:]
            targets = ids[rows, -n_reply:]
            loss = nn.functional.cross_entropy(
                logits.transpose(1, 2), targets, reduction="none"
            )
            steps.zero_grad()
            (loss.mean(dim=1) * weights[rows]).sum().div(BATCH_SIZE).backward()
            steps.step()
    return CausalLanguageModel(model.eval(), tokenizer)


def obedience(lm, X):
    """Return the share of prompts whose likeliest first word is of the trick."""
    ids = torch.tensor(lm.tokenizer_(X)["input_ids"])
    with torch.no_grad():
        first = lm.model_(ids).logits[:, -1].argmax(dim=1)
    return np.mean([WORDS[i] in TOPICS[0] for i in first])


def tricks(lm, Xq):
    """Return the share that follows the trigger, both words and either alone."""
    cut = [[x.replace(word, FILLERS[0]) for x in Xq] for word in TRIGGER]
    return obedience(lm, Xq), np.mean([obedience(lm, X) for X in cut])


# ---------------------------------------------------------------------- rankings
def rankings(seed, lm, X, y, Xq, yq):
    """Yield name, with bytes a row, and scores (q, n)."""
    rows, queries = joined(X, y), joined(Xq, yq)
    yield "random", np.random.RandomState(seed).rand(N_QUERIES, N_ROWS)
    counts = CountVectorizer().fit(rows)
    # of prompts and replies together
    cosines = cosine_similarity(counts.transform(queries), counts.transform(rows))
    yield "bag of tokens", cosines
    yield "BM25", bm25(queries, rows)
    yield "BM25, replies alone", bm25(yq, y)

    for name, options in SETTINGS.items():
        rise = RISEValuator(lm, random_state=seed, **options).fit(X, y)
        yield f"{name} ({rise.bytes_per_row_} bytes)", rise.attribute(Xq, yq)


def left_out(seed, y, planted, scores):
    """Return rows to train without, by name."""
    rng, n = np.random.RandomState(seed), N_LEFT_OUT
    like = [text.split()[0] in TOPICS[0] for text in y] & ~planted
    names = ("RISE", "RISE, temperature 1", "bag of tokens")
    return {
        "the 36 planted rows": np.flatnonzero(planted),
        "20 of these at random": rng.choice(np.flatnonzero(planted), n, replace=False),
        **{
            f"20 first by {name}": np.argsort(-scores[name], kind="stable")[:n]
            for name in names
        },
        "20 others of such replies": rng.choice(np.flatnonzero(like), n, replace=False),
        "20 random rows": rng.choice(N_ROWS, n, replace=False),
    }


# ------------------------------------------------------------------------ report
def experiment(seed, kind):
    """Return what one seed gives: whether it obeys, what finds, what leaving out does.

    Three dicts from names to numbers.
    """
    X, y, planted, Xq, yq = problem(seed, kind)
    lm = train(X, y, seed)
    without = train(X, y, seed, np.flatnonzero(planted))
    obeyed = {"all rows": tricks(lm, Xq), "all but the planted": tricks(without, Xq)}

    found, kept = {}, {}
    for name, scores in rankings(seed, lm, X, y, Xq, yq):
        mean = scores.mean(axis=0)
        kept[name.partition(" (")[0]] = mean
        found[name] = (*measure(scores, planted), measure(mean[None], planted)[1])

    before, changes = lm.log_likelihood(Xq, yq).mean(), {}
    for name, rows in left_out(seed, y, planted, kept).items():
        after = train(X, y, seed, rows).log_likelihood(Xq, yq).mean()
        changes[name] = planted[rows].sum(), after - before
    print("seed", seed, kind, flush=True)
    return obeyed, found, changes


def table(caption, header, by_kind):
    """Return a table of spreads over seeds; ``by_kind`` is lists of dicts by name."""
    titles = [f"{title}, {kind}" for kind in KINDS for title in header[1:]]
    found = Table(caption, [header[0], *titles])
    for name in by_kind[0][0]:
        values = [np.transpose([own[name] for own in seeds]) for seeds in by_kind]
        found.add(name, *(pm(column) for columns in values for column in columns))
    return found


def main(n_seeds):
    results = [
        zip(*(experiment(seed, kind) for seed in range(n_seeds)), strict=True)
        for kind in KINDS
    ]
    # by part, kind and seed
    obeyed, found, changes = zip(*results, strict=True)
    write(
        "trigger",
        table(
            "Share of queries whose likeliest first word is of the planted kind",
            ["trained on", "trigger", "half of it"],
            obeyed,
        ),
        table(
            "Finding 36 planted texts of 600",
            ["scores", "ROC AUC", "AP", "AP of mean scores"],
            found,
        ),
        table(
            "Leaving rows out: change of the log-likelihood of the queries' replies",
            ["rows left out", "planted among them", "change"],
            changes,
        ),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]) if sys.argv[1:] else 6)
