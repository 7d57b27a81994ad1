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

from benchmarks._table import Table, pm, write
from benchmarks.language._scores import bm25, joined
from benchmarks.retrieval._finding import TEMPERATURES, components, measure
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
def bags(X, y, Xq, yq):
    """Return the cosines of counts of words, of prompts and replies together."""
    rows, queries = joined(X, y), joined(Xq, yq)
    counts = CountVectorizer().fit(rows)
    return cosine_similarity(counts.transform(queries), counts.transform(rows))


def rankings(seed, lm, X, y, Xq, yq):
    """Yield name, bytes a row and scores (q, n)."""
    yield "random", "", np.random.RandomState(seed).rand(N_QUERIES, N_ROWS)
    yield "bag of tokens", "", bags(X, y, Xq, yq)
    yield "BM25", "", bm25(joined(Xq, yq), joined(X, y))
    yield "BM25, replies alone", "", bm25(yq, y)
    exact = {"sketch": None, "channels": ("rh",)}

    for name, options in {
        "mean hidden state, less its mean": {"channels": ("h",)},
        "exact gradient of the head, inner product": {**exact, "normalize": False},
        "exact gradient of the head, cosine": exact,
        "RISE": {},
        "RISE, rh": {"channels": ("rh",)},
        "RISE, gh": {"channels": ("gh",)},
        "RISE, rh + gh + h": {"channels": ("rh", "gh", "h")},
        **components((32, 64, 1024, 4096), (64, 256, 1024, 4096)),
        **TEMPERATURES,
        **{f"RISE, top {k}": {"top_k": k} for k in (1, 4, 16)},
        "RISE, inner product": {"normalize": False},
        "RISE, published settings": {"preset": "paper"},
    }.items():
        rise = RISEValuator(lm, random_state=seed, **options).fit(X, y)
        yield name, rise.bytes_per_row_, rise.attribute(Xq, yq)


def first(scores):
    """Return the rows of the largest mean scores."""
    return np.argsort(-scores.mean(axis=0), kind="stable")[:N_LEFT_OUT]


def removals(seed, lm, texts, planted, scores):
    """Return, by what is left out, how many are planted and what it changes."""
    X, y, Xq, yq = texts
    rng, n = np.random.RandomState(seed), N_LEFT_OUT
    like = [text.split()[0] in TOPICS[0] for text in y] & ~planted
    left_out = {
        "the 36 planted rows": np.flatnonzero(planted),
        "20 of these at random": rng.choice(np.flatnonzero(planted), n, replace=False),
        "20 first by RISE": first(scores["RISE"]),
        "20 first by RISE, temperature 1": first(scores["RISE, temperature 1"]),
        "20 first by bag of tokens": first(scores["bag of tokens"]),
        "20 others of such replies": rng.choice(np.flatnonzero(like), n, replace=False),
        "20 random rows": rng.choice(N_ROWS, n, replace=False),
    }
    before, found = lm.log_likelihood(Xq, yq).mean(), {}

    for name, rows in left_out.items():
        after = train(X, y, seed, rows).log_likelihood(Xq, yq).mean()
        found[name] = planted[rows].sum(), after - before
    return found


# ------------------------------------------------------------------------ report
def experiment(seed, kind, obeyed, found, changes):
    """Add what one seed gives, by name, and return the sizes of rows."""
    X, y, planted, Xq, yq = problem(seed, kind)
    lm = train(X, y, seed)
    without = train(X, y, seed, np.flatnonzero(planted))
    for name, own in {"all rows": lm, "all but the planted": without}.items():
        obeyed.setdefault(name, []).append(tricks(own, Xq))
    kept, sizes = {}, {}
    for name, size, scores in rankings(seed, lm, X, y, Xq, yq):
        sizes[name], kept[name] = size, scores
        together = measure(scores.mean(axis=0, keepdims=True), planted)
        measured = [*measure(scores, planted), together[1]]
        found.setdefault(name, []).append(measured)
    for name, change in removals(seed, lm, (X, y, Xq, yq), planted, kept).items():
        changes.setdefault(name, []).append(change)
    return sizes


def table(caption, header, names, kinds):
    """Return a table: for every kind, the spreads of what it has by name."""
    titles = [f"{title}, {kind}" for kind in KINDS for title in header[1:]]
    found = Table(caption, [header[0], *titles])
    for name, shown in names.items():
        cells = [pm(v) for each in kinds for v in np.transpose(each[name])]
        found.add(shown, *cells)
    return found


def main(n_seeds):
    results = {kind: ({}, {}, {}) for kind in KINDS}
    for seed in range(n_seeds):
        for kind in KINDS:
            sizes = experiment(seed, kind, *results[kind])
        print("seed", seed, flush=True)

    obeyed, found, changes = zip(*results.values(), strict=True)
    write(
        "trigger",
        table(
            "Share of queries whose likeliest first word is of the planted kind",
            ["trained on", "trigger", "half of it"],
            {name: name for name in obeyed[0]},
            obeyed,
        ),
        table(
            "Finding 36 planted texts of 600",
            ["scores", "ROC AUC", "AP", "AP of mean scores"],
            {name: f"{name} ({n} bytes)" if n else name for name, n in sizes.items()},
            found,
        ),
        table(
            "Leaving rows out: change of the log-likelihood of the queries' replies",
            ["rows left out", "planted among them", "change"],
            {name: name for name in changes[0]},
            changes,
        ),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]) if sys.argv[1:] else 6)
