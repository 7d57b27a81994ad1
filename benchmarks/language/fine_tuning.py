"""Which texts taught a fine-tuned language model this? Against fine-tuning again.

Two models learn the first lines of docstrings of the standard library, from the names
of functions: "small", a Llama of 1 M weights that has read other docstrings, rank 4 on
all blocks; and "SmolLM2", of 135 M weights, rank 4 on the last 4 of 30, or all. AdamW,
warm-up and linear decay, 3 epochs of batches of 8. "Small, all weights" trains these
instead of adapters, on half as many texts. Outcomes are log-likelihoods of new
completions, and of four that were trained on. LDS on halves, really fine-tuned again,
and the correlation with leave-one-outs of some texts. CPU seconds of fit and attribute,
over those of one fine-tuning. Beside ours the usual similarities: of gradients at the
end, plain, by cosine and over the optimizer's scale (LESS), words, hidden states, and
the index of the model as it was before. Rows that the table has are kept; those of
other packages are from `benchmarks.language.peers`. A second table has how far the
memory rises meanwhile, above the fitted model, of rows that are measured now.

    OMP_NUM_THREADS=1 python -m benchmarks.language.fine_tuning \\
        [small | small-token | smollm2 | "small, all weights" ...]
"""

import sys
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sklearn import config_context

from benchmarks._data import MEMORY, lds_interval
from benchmarks._finding import bm25, joined
from benchmarks._processes import peak_from_here
from benchmarks._table import reopen, write
from benchmarks.language._small import columns, docstrings, small_llama
from benchmarks.language._smollm2 import rise_scores, smollm2
from skattrib import AdamWInfluence, DualInfluence
from skattrib.evaluation import make_weightings, retrain_outcomes
from skattrib.extension import as_model
from skattrib.language import CausalLanguageModel
from skattrib.models._costs import cpu_seconds  # no public name

HEADER = ["model", "method", "halves", "LDS", "leave-one-out", "trainings' time"]
ADAPTER = {"r": 4, "lora_alpha": 8}
CAPTION = "Attributions of fine-tuned language models"
#: the last of the similarities
LAST = "RISE index of the model before"


@dataclass(frozen=True)
class Setting:
    """A model, its texts, and how much is retrained."""

    load: Any
    n_each: int
    n_queries: int
    longest: int
    n_halves: int
    n_left_out: int
    runs: tuple
    options: dict = field(default_factory=dict)


def _small():
    return small_llama()


def _smollm2():
    lm = smollm2()
    return lm.model_, lm.tokenizer_


SMALL = {"n_blocks": None, "learning_rate": 5e-3, "weight_decay": 0.01}
LARGE = {"n_blocks": 4, "learning_rate": 2e-3, "weight_decay": 0.0}
SETTINGS = {
    "small": Setting(_small, 12, 2, 30, 200, 24, (2, 4)),
    "small-token": Setting(_small, 12, 2, 30, 200, 24, (), {"normalization": "token"}),
    "small, seed 1": Setting(_small, 12, 2, 30, 200, 24, (), {"random_state": 1}),
    "small, all weights": Setting(
        _small,
        6,
        1,
        30,
        24,
        8,
        (),
        {"trainable": "all", "adapter": None, "learning_rate": 1e-3},
    ),
    "smollm2": Setting(_smollm2, 6, 1, 22, 100, 0, (2, 4), LARGE),
    "smollm2, seed 1": Setting(
        _smollm2, 6, 1, 22, 32, 0, (), {**LARGE, "random_state": 1}
    ),
    "smollm2, all blocks": Setting(
        _smollm2, 6, 1, 22, 32, 0, (), {**LARGE, "n_blocks": None}
    ),
}


def small_lm(model, tokenizer, **options):
    """Return a language model to be fine-tuned by adapters, as the small one is."""
    options = {"trainable": "adapters", "adapter": ADAPTER, **SMALL, **options}
    return CausalLanguageModel(model, tokenizer, **options)


class Case:
    """A fitted model, and outcomes of those that are fine-tuned again."""

    def __init__(self, name):
        self.setting = setting = SETTINGS[name]
        self.name = name
        model, tokenizer = setting.load()
        rows, queries = docstrings(
            tokenizer, setting.n_each, setting.n_queries, setting.longest
        )
        self.sources, *self.rows = columns(rows)
        self.of_queries, *self.queries = columns(queries + rows[:4])
        options = {"random_state": 0, **setting.options}
        self.lm = small_lm(model, tokenizer, **options)
        self.seconds = cpu_seconds(lambda: self.lm.fit(*self.rows))
        self.halves = make_weightings(len(rows), setting.n_halves, random_state=5)
        draw = np.random.RandomState(5).permutation(len(rows))
        self.left_out = draw[: setting.n_left_out]
        self.truth = self.retrain(self.halves)
        self.without = self.retrain(1 - np.eye(len(rows))[self.left_out])
        self.whole = self.lm.log_likelihood(*self.queries)

    def retrain(self, weights):
        if not len(weights):
            return None
        options = {"memory": MEMORY, "verbose": 1}
        return retrain_outcomes(self.lm, *self.rows, weights, *self.queries, **options)

    def lds(self, attributions):
        """Return a cell: LDS of attributions (q, n) on halves."""
        return lds_interval(self.truth, self.halves @ attributions.T)

    def alone(self, attributions):
        """Return a cell: their correlation with leave-one-outs, if there are any."""
        if self.without is None:
            return ""
        lost = (self.whole - self.without).T
        pairs = zip(lost, attributions[:, self.left_out], strict=True)
        return f"{np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]):.3f}"

    def cost(self, seconds):
        """Return a cell: CPU seconds over those of the training."""
        return "" if seconds is None else f"{seconds / self.seconds:.1f}"

    def row(self, method, attributions, seconds):
        """Return a row of the table."""
        scores = self.lds(attributions), self.alone(attributions)
        return [self.name, method, len(self.halves), *scores, self.cost(seconds)]


DUAL, ONE_RUN, EXACT, STILL = (
    "DualInfluence",
    "AdamWInfluence, one run on all",
    "the same, inert=0",
    "the same, inert=0.03",
)
WAYS = {
    DUAL: (DualInfluence, {}),
    ONE_RUN: (AdamWInfluence, {"inclusion": 1}),
    EXACT: (AdamWInfluence, {"inclusion": 1, "inert": 0.0}),
}


def attributed(case, kind, options):
    """Return attributions (q, n) by an attributor, and the CPU seconds that it took."""
    found = []

    def attribute():
        attributor = kind(case.lm, random_state=0, **options).fit(*case.rows)
        found.append(attributor.attribute(*case.queries))

    seconds = cpu_seconds(attribute)
    return found[0], seconds


def ours(case, known):
    """Yield methods of this package, but those that are known."""
    ways = dict(WAYS)
    if case.lm.trainable == "all":  # where inert="auto" is 0
        del ways[EXACT]
        ways[STILL] = (AdamWInfluence, {"inclusion": 1, "inert": 0.03})
    for n in case.setting.runs:
        runs = {"n_trajectories": n, "n_halves": 0, "inclusion": 0.5}
        ways[f"AdamWInfluence, {n} half runs"] = (AdamWInfluence, runs)
    for name, way in ways.items():
        if (case.name, name) not in known:
            peak = peak_from_here()
            found = attributed(case, *way)
            vars(case).setdefault("memory", {})[name] = peak() / 2**20
            yield name, *found


def similarities(case, known):
    """Yield what texts and gradients have in common, if that is not known."""
    if (case.name, LAST) in known:
        return
    model = as_model(case.lm)
    network = case.lm.network_
    rows, counts = case.lm._tokenised(*case.rows)
    asked, sizes = case.lm._tokenised(*case.queries)

    def gradients(X, y):
        # one by one: rows of other lengths
        pieces = [
            model.loss_gradients(X[i : i + 1], y[i : i + 1]) for i in range(len(X))
        ]
        return torch.cat(pieces).double().numpy()

    found = []
    seconds = cpu_seconds(
        lambda: found.append((gradients(rows, counts), gradients(asked, sizes)))
    )
    taught, learnt = found[-1]
    scale = network.trajectory_.denominator.double().numpy()
    lengths = [np.linalg.norm(g, axis=1, keepdims=True) for g in (learnt, taught)]
    yield "gradients, inner product", learnt @ taught.T, seconds
    yield "gradients, cosine", (learnt / lengths[0]) @ (taught / lengths[1]).T, seconds
    yield "gradients over AdamW's scale", (learnt / scale) @ taught.T, seconds
    texts = joined(*case.queries, between=""), joined(*case.rows, between="")
    yield "words (BM25)", bm25(*texts), None
    states = [hidden_states(case.lm, *pair) for pair in (case.queries, case.rows)]
    yield "hidden states, cosine", states[0] @ states[1].T, None
    same = case.of_queries[:, None] == case.sources
    yield "same module", same.astype(float), None
    frozen = CausalLanguageModel(case.lm.model, case.lm.tokenizer)
    yield LAST, rise_scores(frozen, case.rows, case.queries), None


def hidden_states(lm, prompts, completions):
    """Return mean hidden states of completions (n, D), of length 1."""
    read = CausalLanguageModel(lm.model, lm.tokenizer)
    X, y = (np.asarray(texts, dtype=object) for texts in (prompts, completions))
    width = lm.model_.get_output_embeddings().weight.shape[1]
    total = np.zeros((len(y), width))
    for tokens in read._tokens(X, y):
        np.add.at(total, tokens.rows.numpy(), tokens.hidden.double().numpy())
    return total / np.linalg.norm(total, axis=1, keepdims=True)


def write_by_setting(name, table):
    """Write a table, with the rows of a setting next to each other."""
    table.rows.sort(key=lambda row: [*SETTINGS].index(row[0]))
    write(name, table)


def main(names):
    table = reopen("fine_tuning", CAPTION, HEADER)
    peaks = reopen("fine_tuning_memory", "Memory", ["model", "method", "peak, MiB"])
    for name in names or SETTINGS:
        case = Case(name)
        print(f"{name}: {len(case.rows[0])} texts", flush=True)
        known = {tuple(cells[:2]) for cells in table.rows}
        for methods in (ours, similarities):
            for method, attributions, seconds in methods(case, known):
                if (name, method) in known:
                    continue
                table.put(*case.row(method, attributions, seconds), n_keys=2)
                write_by_setting("fine_tuning", table)
                if method in vars(case).get("memory", {}):
                    peaks.put(name, method, f"{case.memory[method]:,.0f}", n_keys=2)
                    write_by_setting("fine_tuning_memory", peaks)


if __name__ == "__main__":
    # gradients of the rows of adapters on all blocks of SmolLM2 take 1.1 GiB
    with warnings.catch_warnings(), config_context(working_memory=4096):
        warnings.simplefilter("ignore")
        main(sys.argv[1:])
