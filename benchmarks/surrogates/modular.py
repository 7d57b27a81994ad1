"""Addition modulo 23 by a transformer: kernel or linear surrogate of its tasks?

A transformer of one layer learns a + b mod 23 from tokens a, b and "=". Tasks are 16
blocks of the 23 × 23 table; 79 pairs of the table, drawn at random, are held out of all
of them and serve as queries. Subsets of the tasks hold each with probability 0.5, 0.75
or 0.9; the net is really trained on every one of them, and on all tasks but one, from
two seeds, over which outcomes are averaged.

    python -m benchmarks.surrogates.modular
"""

import numpy as np
import torch
from torch import nn

from benchmarks._data import MEMORY
from benchmarks.surrogates._comparison import compare_all
from skattrib import TorchClassifier
from skattrib.evaluation import lds_score, loo_score, retrain_outcomes

MODULUS, N_BLOCKS, N_QUERIES = 23, 4, 79


class Transformer(nn.Module):
    """One layer of attention and a perceptron; only "=" asks.

    What a token says depends on itself and its place alone: each of the 47 is encoded
    once, and a row adds up the three that it has. Plain products all, so that
    `torch.func.vmap` can train many nets as a stack.
    """

    def __init__(self, width=32, n_heads=2, n_hidden=64):
        super().__init__()
        self.n_heads = n_heads
        self.numbers = nn.Embedding(MODULUS, width)
        nn.init.normal_(self.numbers.weight, std=width**-0.5)
        # of a and b, and of "=", which is always the same token
        self.places = nn.Parameter(torch.randn(3, width) * width**-0.5)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, n_hidden)
        self.down = nn.Linear(n_hidden, width)
        self.read = nn.Linear(width, MODULUS)

    def forward(self, X):
        equals = self.places[2:]
        tokens = (self.numbers.weight + self.places[:2, None]).flatten(0, 1)
        tokens = torch.cat([tokens, equals])
        query, key, value = (
            encoded.unflatten(-1, (self.n_heads, -1))
            for encoded in [self.query(equals), self.key(tokens), self.value(tokens)]
        )
        share = (key * query).sum(dim=-1) / key.shape[-1] ** 0.5
        share = share.softmax(dim=0)[..., None]
        # a softmax over the three tokens present is one over all 47, rescaled
        has = nn.functional.one_hot(X.long(), MODULUS).to(X).flatten(1)
        has = torch.cat([has, torch.ones_like(has[:, :1])], dim=1)
        seen = has @ (share * value).flatten(1)
        total = has @ share.flatten(1)
        seen = seen.unflatten(-1, (self.n_heads, -1)) / total[..., None]
        state = equals + self.mix(seen.flatten(1))
        return self.read(state + self.down(torch.relu(self.up(state))))


def build(n_inputs, n_outputs):
    return Transformer()


def table():
    """Return pairs, sums, the task of each pair, and which pairs are queries."""
    pairs = np.stack(np.divmod(np.arange(MODULUS**2), MODULUS), axis=1)
    blocks = pairs * N_BLOCKS // MODULUS
    tasks = blocks[:, 0] * N_BLOCKS + blocks[:, 1]
    queries = np.random.default_rng(0).permutation(len(pairs))[:N_QUERIES]
    held_out = np.isin(np.arange(len(pairs)), queries)
    return pairs.astype(np.float32), pairs.sum(axis=1) % MODULUS, tasks, held_out


def transformer(seed):
    """Return the network, not trained."""
    return TorchClassifier(
        build,
        learning_rate=2e-2,
        weight_decay=1.0,
        schedule="cosine",
        max_epochs=400,
        random_state=seed,
    )


def main():
    X, y, tasks, held_out = table()
    rows, queries = (X[~held_out], y[~held_out]), (X[held_out], y[held_out])
    net = transformer(0).fit(*rows)
    print(f"trained on all tasks: accuracy {net.score(*queries):.2f}")

    def outcomes_of(weights):
        first, second = retrain_outcomes(
            net,
            *rows,
            weights,
            *queries,
            tasks=tasks[~held_out],
            outcome="margin",
            memory=MEMORY,
            n_seeds=2,
            return_seeds=True,
        )
        same = f"subsets with {lds_score(first, second):.2f}"
        if len(weights) == N_BLOCKS**2 + 1:
            effects = second[-1:].T - second[:-1].T
            same = f"leave-one-out effects with {loo_score(first[:-1], effects):.2f}"
        print(f"one seed ranks the other's {same}")
        return (first + second) / 2

    caption = "Addition modulo 23: margins of 79 held-out pairs"
    sizes = (200, 50, 60)
    compare_all("modular", caption, outcomes_of, N_BLOCKS**2, (0.5, 0.75, 0.9), sizes)


if __name__ == "__main__":
    main()
