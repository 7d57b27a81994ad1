"""The refitted tangent against the problem that it stands for.

Twelve tasks of ten digits (two with random labels), MLP 64-16-10 with tanh. The truth
of a subset S minimises Σ_S loss + Λ/2 ‖θ − c‖² from the base network on, by L-BFGS
until it stops; the base network is the minimum for all tasks with c its initial
weights, Λ = 0.5. `center="trained"` has c at the base network (fine-tuning), "initial"
keeps c. Outcome: mean cross-entropy of 250 digits; its mean relative error, beside that
of saying that nothing changes, and the correlation over subsets. Last, really training
from scratch.

    python -m benchmarks.surrogates.prox_refit
"""

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.cluster import KMeans
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from benchmarks._data import digits
from benchmarks._table import Table, write
from benchmarks.surrogates._comparison import leave_one_out
from skattrib import TorchClassifier
from skattrib.evaluation import retrain_outcomes

# The surrogates refit it to subsets, but do not hand the outcomes out.
from skattrib.extension import as_model
from skattrib.influence._linear_models import LinearModel

N_TASKS, N_ROWS, NOISY, PENALTY = 12, 10, (3, 7), 0.5


def load():
    """Return rows, labels, tasks, queries and their labels."""
    X, y = digits()
    rng = np.random.default_rng(1)
    order = rng.permutation(len(y))
    X, y = X[order], y[order]
    clusters = KMeans(N_TASKS, n_init=3, random_state=0).fit_predict(X[:900])
    rows = [np.flatnonzero(clusters == t)[:N_ROWS] for t in range(N_TASKS)]
    rows = np.concatenate(rows)
    labels, tasks = y[rows].copy(), clusters[rows]
    for t in NOISY:
        labels[tasks == t] = rng.integers(0, 10, (tasks == t).sum())
    return X[rows], labels, tasks, X[900:1150], y[900:1150]


def refit(net, X, y, weights, start, center):
    """Give a network the minimum of the weighted loss with a penalty on θ − center."""
    module, params = net.module_, list(net.module_.parameters())
    X, y, weights = torch.tensor(X), torch.tensor(y), torch.tensor(weights)

    def objective(theta):
        vector_to_parameters(torch.tensor(theta), params)
        losses = torch.nn.functional.cross_entropy(module(X), y, reduction="none")
        moved = parameters_to_vector(params) - center
        total = (weights * losses).sum() + PENALTY / 2 * moved.square().sum()
        gradient = torch.autograd.grad(total, params)
        return total.item(), parameters_to_vector(gradient).numpy()

    options = {"jac": True, "method": "L-BFGS-B", "options": {"maxiter": 2000}}
    found = torch.tensor(minimize(objective, start.numpy(), **options).x)
    vector_to_parameters(found, params)
    return found


def estimates(net, X, y, weights, Xq, yq, center, **options):
    """Return the mean losses (m,) of the refitted tangent, of all rows first."""
    stationary = center == "initial"
    options |= {"removal": "refit", "stationary": stationary}
    linear = LinearModel(as_model(net), X, y, np.ones(len(X)), **options)
    steps = linear.steps(weights)
    queries = linear.ask(Xq, yq, "log_likelihood", len(steps))
    return -queries.outcomes(steps).mean(axis=1)


def add(table, kind, subsets, found, truth):
    """Add relative errors in % of estimates and of no change, and the correlation."""
    whole, found, truth = truth[0], found[1:], truth[1:]
    own, constant = (
        f"{100 * np.abs(v - truth).mean() / truth.mean():.2f}" for v in (found, whole)
    )
    table.add(kind, subsets, own, constant, f"{np.corrcoef(found, truth)[0, 1]:.3f}")


def main():
    X, y, tasks, Xq, yq = load()
    net = TorchClassifier(hidden_layer_sizes=(16,), random_state=0).fit(X, y)
    first = net.trajectory_.recipe.initial
    base = refit(net, X, y, np.ones(len(X)), first, first)
    rng = np.random.default_rng(0)
    designs = {"leave-one-out": leave_one_out(N_TASKS)[:-1]} | {
        f"p = {p}": (rng.random((24, N_TASKS)) < p) * 1.0 for p in (0.8, 0.5)
    }
    designs = {k: np.vstack([np.ones(N_TASKS), own]) for k, own in designs.items()}
    table = Table(
        "Error of the estimated loss, %",
        ["truth", "subsets", "estimated", "no change", "correlation"],
    )

    damped = {"ridge": PENALTY / len(X), "regularization": "fixed", "solver": "dual"}
    for kind, center in (("trained", base), ("initial", first)):
        for subsets, design in designs.items():
            truth = []
            for weights in design[:, tasks]:
                refit(net, X, y, weights, base, center)
                truth.append(-net.predict_log_proba(Xq)[range(len(yq)), yq].mean())
            vector_to_parameters(base, net.module_.parameters())
            rows = net, X, y, design[:, tasks], Xq, yq
            found = estimates(*rows, kind, metric="identity", **damped)
            add(table, f'center="{kind}"', subsets, found, np.array(truth))

    scratch = TorchClassifier(hidden_layer_sizes=(16,), max_epochs=60, random_state=0)
    scratch.fit(X, y)
    for subsets, design in designs.items():
        truth = retrain_outcomes(scratch, X, y, design, Xq, yq, tasks=tasks)
        truth = -truth.mean(axis=1)
        for kind in ("trained", "initial"):
            rows = scratch, X, y, design[:, tasks], Xq, yq
            found = estimates(*rows, kind, ridge="auto")
            name = f'training from scratch, center="{kind}", default damping'
            add(table, name, subsets, found - found[0] + truth[0], truth)
    write("prox_refit", table)


if __name__ == "__main__":
    main()
