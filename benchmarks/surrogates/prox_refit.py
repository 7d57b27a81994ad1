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
from sklearn.datasets import load_digits

from benchmarks._table import Table, write
from benchmarks.surrogates._comparison import leave_one_out
from skattrib import TorchClassifier
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._linearized import LinearizedModel
from skattrib.engine._losses import CrossEntropy
from skattrib.evaluation import retrain_outcomes
from skattrib.influence._linear_models import LinearModel

N_TASKS, N_ROWS, NOISY, PENALTY = 12, 10, (3, 7), 0.5
LOSS = CrossEntropy()


def load():
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(1)
    order = rng.permutation(len(y))
    X, y = X[order] / 16, y[order]
    clusters = KMeans(N_TASKS, n_init=3, random_state=0).fit_predict(X[:900])
    rows = [np.flatnonzero(clusters == t)[:N_ROWS] for t in range(N_TASKS)]
    rows = np.concatenate(rows)
    labels, tasks = y[rows].copy(), clusters[rows]
    for t in NOISY:
        labels[tasks == t] = rng.integers(0, 10, (tasks == t).sum())
    return X[rows], labels, tasks, X[900:1150], y[900:1150]


def refit(model, X, y, weights, start, center):
    """Return the minimum of the weighted loss with a penalty on θ − center."""

    def objective(theta):
        theta = torch.tensor(theta, requires_grad=True)
        values = LOSS.values(model.outputs(theta, X), y)
        total = (weights * values).sum()
        total = total + PENALTY / 2 * (theta - center).square().sum()
        (gradient,) = torch.autograd.grad(total, theta)
        return total.item(), gradient.numpy()

    found = minimize(
        objective, start.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 2000}
    )
    return torch.tensor(found.x)


def cross_entropy(outputs, y):
    return LOSS.values(outputs.flatten(0, -2), y.repeat(len(outputs))).view(
        len(outputs), -1
    )


def estimates(model, X, y, weights, Xq, yq, stationary):
    """Return the mean cross-entropies of the refitted tangent, (m,)."""
    tangent = LinearizedModel(
        model,
        LOSS,
        X,
        y,
        torch.ones(len(X), dtype=X.dtype),
        scale=None,
        ridge=lambda fraction: PENALTY / len(X),
        regularization="fixed",
        solver="dual",
        memory_bytes=2**30,
        stationary=stationary,
    )
    steps = tangent.refit_steps(weights)
    outputs, query = tangent.query(Xq)
    return cross_entropy(outputs + tangent.output_change(steps, query), yq).mean(dim=1)


def errors(found, truth, whole):
    """Return relative errors in % of estimates and of no change, and correlation."""
    scale = 100 / truth.mean()
    own, constant = (np.abs(v - truth).mean() * scale for v in (found, whole))
    return own, constant, np.corrcoef(found, truth)[0, 1]


def main():
    X, y, tasks, Xq, yq = load()
    net = TorchClassifier(hidden_layer_sizes=(16,), random_state=0).fit(X, y)
    model = FunctionalModule(net.module_)
    first = net.trajectory_.recipe.initial
    tensors = torch.tensor(X), torch.tensor(y)
    queries, labels = torch.tensor(Xq), torch.tensor(yq)
    everything = torch.ones(len(X), dtype=torch.float64)
    base = refit(model, *tensors, everything, first, first)
    model.load(base)
    rng = np.random.default_rng(0)
    designs = {
        "leave-one-out": leave_one_out(N_TASKS)[:-1],
        "p = 0.8": (rng.random((24, N_TASKS)) < 0.8) * 1.0,
        "p = 0.5": (rng.random((24, N_TASKS)) < 0.5) * 1.0,
    }
    table = Table(
        "Error of the estimated loss, %",
        ["truth", "subsets", "estimated", "no change", "correlation"],
    )

    def row(kind, subsets, found, truth, whole):
        own, constant, correlation = errors(found, truth, whole)
        cells = f"{own:.2f}", f"{constant:.2f}", f"{correlation:.3f}"
        table.add(kind, subsets, *cells)

    def outcome(theta):
        return float(cross_entropy(model.outputs(theta, queries)[None], labels).mean())

    for kind, center in (("trained", base), ("initial", first)):
        for subsets, design in designs.items():
            weights = torch.tensor(np.vstack([np.ones(N_TASKS), design])[:, tasks])
            truth = np.array(
                [
                    outcome(refit(model, *tensors, w, base, center).detach())
                    for w in weights
                ]
            )
            found = estimates(
                model, *tensors, weights, queries, labels, kind == "initial"
            )
            row(f'center="{kind}"', subsets, found.numpy()[1:], truth[1:], truth[0])

    scratch = TorchClassifier(hidden_layer_sizes=(16,), max_epochs=60, random_state=0)
    trained = scratch.fit(X, y)
    for subsets, design in designs.items():
        design = np.vstack([np.ones(N_TASKS), design])
        truth = retrain_outcomes(scratch, X, y, design, Xq, yq, tasks=tasks)
        truth = -truth.mean(axis=1)
        for kind in ("trained", "initial"):
            linear = LinearModel(
                trained,
                X,
                y,
                np.ones(len(X)),
                ridge="auto",
                removal="refit",
                stationary=kind == "initial",
            )
            steps = linear.steps(design[:, tasks])
            queries = linear.ask(Xq, yq, "log_likelihood", len(steps))
            found = -queries.outcomes(steps).mean(axis=1)
            found = found - found[0] + truth[0]
            name = f'training from scratch, center="{kind}", default damping'
            row(name, subsets, found[1:], truth[1:], truth[0])
    write("prox_refit", table)


if __name__ == "__main__":
    main()
