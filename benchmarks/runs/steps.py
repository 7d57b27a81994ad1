"""One row left out of one step only: is the run's exact derivative the better guess?

The measure of arXiv:2605.18814. A random row of a random step has weight 0 in that
minibatch alone (mean over the rest, its other occurrences stay) and the run is really
taken again to its end. `AdamWInfluence(inclusion=1).step_attribution` foretells the
change of the queries' log-likelihoods: exactly, as if plain SGD had taken the steps
("SGD-style"), or with the empirical Fisher matrix for the Hessian. Spearman correlation
over the removals, mean over queries, ± standard error over seeds, which draw networks,
minibatches and removals anew. "For a trifle" weighs the row 0.9999 instead of 0: what a
derivative says, with nothing of a higher order. All in float64: the changes are tiny.
Settings that are named are measured anew, and the others kept.

    python -m benchmarks.runs.steps [setting ...]
"""

import sys
from dataclasses import replace
from functools import partial
from importlib import resources

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import nn

from benchmarks._data import DATA, convolutional, run_of
from benchmarks._table import pm, reopen, write
from benchmarks.language._small import columns, docstrings, small_llama
from benchmarks.language.fine_tuning import small_lm
from skattrib import AdamWInfluence, TorchClassifier

# Rows are left out of single steps, which no public function does.
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._training import stacked_outputs, train_stack
from skattrib.evaluation import loo_score
from skattrib.language import CausalLanguageModel

N_SEEDS = 3
N_REMOVALS = 150
TRIFLE = 1e-4
CAP = 2**30
CONTEXT = 12
# of adapters, half of which begin at zero, the whole derivative too
WAYS = {
    "AdamW-exact": {"inert": 0.0},
    "SGD-style": {"inert": 0.0, "dynamics": "sgd"},
    "empirical Fisher": {"inert": 0.0, "hessian": "empirical_fisher"},
}
LLAMA = "Llama, docstrings"
# Their derivatives and trainings take longest.
LLAMA_OPTIONS = {"n_seeds": 2, "n_removals": 32}


class Block(nn.Module):
    """Causal attention and a perceptron, each behind a layer norm."""

    def __init__(self, width, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        n, length, width = x.shape
        heads = (n, length, self.n_heads, width // self.n_heads)
        q, k, v = (
            part.reshape(heads).transpose(1, 2)
            for part in self.qkv(self.before(x)).chunk(3, dim=-1)
        )
        dots = q @ k.transpose(-1, -2) / heads[-1] ** 0.5
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        mixed = dots.masked_fill(later, -torch.inf).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(n, length, width))
        return x + self.mlp(self.between(x))


class CharacterGPT(nn.Module):
    """Two blocks on character codes, which come as floats; predicts the next one."""

    def __init__(self, n_features, n_outputs, width=16, n_heads=2):
        super().__init__()
        self.n_codes = n_outputs
        self.embedding = nn.Linear(n_outputs, width, bias=False)
        self.position = nn.Parameter(0.02 * torch.randn(n_features, width))
        self.blocks = nn.Sequential(Block(width, n_heads), Block(width, n_heads))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, n_outputs)

    def forward(self, x):
        codes = nn.functional.one_hot(x.long(), self.n_codes).to(x.dtype)
        hidden = self.blocks(self.embedding(codes) + self.position)
        return self.head(self.norm(hidden[:, -1]))


def images(name, n_rows, n_queries, center=0.0, spread=1.0):
    """Return rows, labels, queries and their labels."""
    X, y = DATA[name][0]()
    order = np.random.RandomState(0).permutation(len(y))[: n_rows + n_queries]
    X, y = (X[order].astype(np.float64) - center) / spread, y[order]
    return X[:n_rows], y[:n_rows], X[n_rows:], y[n_rows:]


def text(n_rows, n_queries):
    """Return windows of scikit-learn's descriptions of data sets, and what follows.

    Queries are from later text than rows, rare characters count as one.
    """
    folder = resources.files("sklearn.datasets.descr")
    files = sorted(folder.iterdir(), key=lambda file: file.name)
    everything = "".join(f.read_text("utf-8") for f in files if f.name[-4:] == ".rst")
    characters, codes, counts = np.unique(
        list(everything.lower()), return_inverse=True, return_counts=True
    )
    common = np.sort(np.argsort(-counts)[:31])
    names = np.full(len(characters), len(common))
    names[common] = np.arange(len(common))
    codes = names[codes]
    starts = np.linspace(0, len(codes) - CONTEXT - 1, n_rows + n_queries).astype(int)
    X = codes[starts[:, None] + np.arange(CONTEXT)].astype(np.float64)
    y = codes[starts + CONTEXT]
    return X[:n_rows], y[:n_rows], X[n_rows:], y[n_rows:]


def small_texts():
    """Return prompts and completions to fine-tune on, and others."""
    _, tokenizer = small_llama()
    rows, queries = docstrings(tokenizer, 4, 1, 30)
    return *columns(rows)[1:], *columns(queries[::2])[1:]


def adapted_llama():
    """Return a model that is fine-tuned by adapters in its last two blocks."""
    model, tokenizer = small_llama()
    return small_lm(model.double(), tokenizer, n_blocks=2, weight_decay=0.0)


def settings():
    """Return network, function that loads data and learning rates, by name."""
    options = {"weight_decay": 0.0, "max_epochs": 3}
    mlp = TorchClassifier(
        hidden_layer_sizes=(16, 16),
        activation="relu",
        betas=(0.9, 0.95),
        weight_decay=0.0,
        batch_size=64,
        max_epochs=1,
    )
    cnn = TorchClassifier(convolutional(padding=1), batch_size=50, **options)
    gpt = TorchClassifier(
        CharacterGPT, schedule="linear_warmup", batch_size=32, **options
    )
    raw = partial(images, "mnist", 4000, 50)
    # less its mean, in standard deviations: no input is 0
    centred = partial(raw, center=0.1307, spread=0.3081)
    return {
        "MLP, MNIST": (mlp, raw, (1e-3, 1e-4, 1e-5)),
        "MLP, MNIST less its mean": (mlp, centred, (1e-3, 1e-4, 1e-5)),
        "CNN, digits": (cnn, partial(images, "digits", 1000, 40), (1e-2, 1e-3, 1e-4)),
        "GPT, characters": (gpt, partial(text, 256, 30), (1e-2, 1e-3, 1e-4)),
        LLAMA: (adapted_llama(), small_texts, (1e-2, 1e-3, 1e-4)),
    }


def as_network(net, X, y):
    """Return the network of a model, its rows and their targets."""
    if isinstance(net, CausalLanguageModel):
        return net.network_, *net._tokenised(X, y)
    return net, X, y


def outcomes_of(net, model, params, Xq, yq):
    """Return log-likelihoods (m, q) of queries."""
    if isinstance(net, CausalLanguageModel):
        rows, counts = net._tokenised(Xq, yq)
        outputs = stacked_outputs(model, params, torch.tensor(rows).to(params), CAP)
        return -counts * outputs[..., 0].numpy()
    outputs = stacked_outputs(model, params, torch.tensor(Xq), CAP)
    known = outputs.log_softmax(dim=-1).numpy()
    return known[:, range(len(yq)), np.searchsorted(net.classes_, yq)]


def retrained(net, X, y, Xq, yq, entries):
    """Return outcomes without each entry (m, q), and with a trifle less of a third."""
    network, *data = as_network(net, X, y)
    model, loss, recipe, X, targets = run_of(network, *data)
    rows = torch.tensor(np.concatenate(recipe.batches))
    # one row for each row of each step: weights are weights at one step then
    ends = np.cumsum([len(batch) for batch in recipe.batches])
    recipe = replace(recipe, batches=np.split(np.arange(len(rows)), ends[:-1]))
    trifles = entries[::3]
    weights = torch.ones(len(entries) + len(trifles) + 1, len(rows), dtype=X.dtype)
    weights[torch.arange(len(entries)), torch.tensor(entries)] = 0.0
    last = len(entries) + torch.arange(len(trifles))
    weights[last, torch.tensor(trifles)] = 1 - TRIFLE

    run = model, loss, recipe, X[rows], targets[rows], weights
    params = train_stack(*run, memory_bytes=CAP).params
    own = FunctionalModule(network.module_).flatten()
    error = (params[-1] - own).abs().max()
    if error > 1e-9:
        raise RuntimeError(f"the steps taken again miss the run by {error:.1e}")

    outcomes = outcomes_of(net, model, params, Xq, yq)
    return outcomes[: len(entries)], outcomes[len(entries) : -1]


def correlations(model, data, seed, n_removals):
    """Return the correlations of WAYS with retraining; of the first for a trifle."""
    X, y, Xq, yq = data
    model = clone(model).set_params(random_state=seed).fit(X, y)
    if hasattr(model, "classes_"):
        known = np.isin(yq, model.classes_)
        Xq, yq = Xq[known], yq[known]
    n_entries = sum(map(len, model.trajectory_.recipe.batches))
    rng = np.random.RandomState(seed)
    entries = np.sort(rng.choice(n_entries, n_removals, replace=False))
    truth, trifle = retrained(model, X, y, Xq, yq, entries)
    found = []
    for options in WAYS.values():
        influence = AdamWInfluence(FrozenEstimator(model), inclusion=1.0, **options)
        steps = influence.set_params(random_state=0).fit(X, y).step_attribution(Xq, yq)
        found.append(steps.attributions[:, entries])
    return [loo_score(truth, A) for A in found] + [loo_score(trifle, found[0][:, ::3])]


def main(names):
    """Measure, print and write the table."""
    known = settings()
    last = ["exact less SGD-style", "relative gain", "exact, for a trifle"]
    header = ["model", "learning rate", "steps", *WAYS, *last]
    table = reopen("steps", "Spearman correlation with retraining", header)

    for name in names or known:
        net, load, rates = known[name]
        data = load()
        size = getattr(net, "train_batch_size", net.batch_size)
        n_steps = -(-len(data[0]) // size) * net.max_epochs
        options = LLAMA_OPTIONS if name == LLAMA else {}
        n_seeds = options.get("n_seeds", N_SEEDS)
        n_removals = options.get("n_removals", N_REMOVALS)
        for rate in rates:
            net = clone(net).set_params(learning_rate=rate)
            seeds = range(n_seeds)
            each = [correlations(net, data, seed, n_removals) for seed in seeds]
            *scores, trifle = np.array(each).T
            exact, sgd, _ = scores
            gain = f"{100 * (exact.mean() / sgd.mean() - 1):+.0f} %"
            cells = [*map(pm, scores), pm(exact - sgd), gain, pm(trifle)]
            table.put(name, f"{rate:g}", n_steps, *cells, n_keys=2)
            write("steps", table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
