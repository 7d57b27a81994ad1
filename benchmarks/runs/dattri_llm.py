"""Derivatives of AdamW runs against those of the package dattri-llm 0.1.0.

dattri-llm implements the paper's AdamW-influence with the empirical Fisher. It is run
in an environment of its own, see benchmarks/peers/README.md; PEER_PYTHON names the
interpreter:

    PEER_PYTHON=/somewhere/peer/bin/python python -m benchmarks.runs.dattri_llm

Both differentiate the same run in the weight of every row at every single step: 512
digits, one hidden layer of 16, minibatches of 32, 2 epochs, 20 queries, float64. The
score of dattri-llm is the derivative of the query's loss, ours that of its outcome.
dattri-llm divides a minibatch's loss by the number of rows, this package by the sum of
weights, so that its scores of a step are ours after subtracting their mean.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks._data import load, network
from benchmarks._table import Table, write
from skattrib import AdamWInfluence
from skattrib.engine._adjoint import _Gradient
from skattrib.engine._minibatch import Minibatch, row_shares
from skattrib.engine._optimizers import StepDerivative, clip_gradient
from skattrib.engine._training import train

N_QUERIES = 20
ADAPTER = Path(__file__).parents[1] / "peers" / "run_dattri_llm.py"
#: activation, learning rate, clip_norm
SETTINGS = [
    ("relu", 1e-2, None),
    ("relu", 1e-3, None),
    ("tanh", 1e-2, None),
    ("tanh", 1e-3, None),
    # all steps are clipped
    ("tanh", 1e-2, 0.3),
]
HEADER = [
    "activation",
    "learning rate",
    "clip_norm",
    "theirs, centred",
    "ours, their form",
    "the same, rows summed",
    "as they are",
    "rank correlation",
    "Fisher for Hessian",
    "rank correlation",
]


def peer(net, problem, X_query, y_query, propagation="test"):
    """Return what dattri-llm finds, its rows from the last step to the first."""
    adamw = {k: getattr(net, k) for k in ("weight_decay", "betas", "eps")}
    options = {
        "activation": net.activation,
        "clip_norm": net.clip_norm,
        "adamw": {"lr": net.learning_rate, **adamw},
    }
    recipe = problem.recipe
    state = problem.model.unflatten(recipe.initial)

    with tempfile.TemporaryDirectory() as folder:
        source, target = f"{folder}/problem.npz", f"{folder}/scores.npz"
        np.savez(
            source,
            X=problem.X,
            y=problem.targets,
            X_query=X_query,
            y_query=y_query,
            rows=np.concatenate(recipe.batches),
            batch_sizes=[len(rows) for rows in recipe.batches],
            options=json.dumps(options),
            **{f"state/{name}": value.numpy() for name, value in state.items()},
        )
        python = os.environ["PEER_PYTHON"]
        subprocess.run(
            [python, str(ADAPTER), source, target, propagation],
            check=True,
            env=os.environ | {"PYTHONPATH": ""},
        )
        return dict(np.load(target))


def over_number_of_rows(problem, cotangents, clip_jacobian):
    """Differentiate a run whose batch losses are divided by their numbers of rows.

    Put together from the parts of the engine. Without ``clip_jacobian`` the gradient
    moves as one that was not clipped, as in dattri-llm.

    Returns
    -------
    dict of int to ndarray of shape (q, rows)
        By step.
    """
    recipe, n_steps = problem.recipe, problem.recipe.n_steps
    weights = torch.ones(1, len(problem.X), dtype=problem.X.dtype)
    run = (problem.model, problem.loss, recipe, problem.X, problem.targets, weights)
    states = train(*run, keep=range(n_steps)).states
    optimizer = recipe.optimizer
    minibatch = Minibatch(problem.model, problem.loss, problem.X, problem.targets)
    after = StepDerivative(cotangents, optimizer.initial_state(cotangents))
    found = {}

    for t in range(n_steps, 0, -1):
        rate, rows = recipe.step(t, problem.X.device)
        gradient = _Gradient(
            minibatch,
            "empirical_fisher",
            states[t - 1].params,
            rows,
            row_shares(weights[:, rows]),
            recipe.clip_norm if clip_jacobian else None,
        )
        consumed = gradient.value
        if not clip_jacobian:
            consumed = clip_gradient(consumed, recipe.clip_norm)
        in_grad, before = optimizer.pullback(
            states[t - 1].params,
            consumed,
            states[t - 1].optimizer,
            t,
            rate,
            after,
        )
        curved, dots = gradient.products(in_grad)
        after = before._replace(params=before.params + curved)
        found[t] = (dots[:, 0] / len(rows)).numpy()
    return found


def by_step(net, X, y, queries, hessian):
    """Return our attributions to rows at single steps, {step: (q, rows)}."""
    influence = AdamWInfluence(net, inclusion=1.0, hessian=hessian).fit(X, y)
    found = influence.step_attribution(*queries)
    return {t: found.attributions[:, found.steps == t] for t in set(found.steps)}


def centred(steps):
    return {t: v - v.mean(axis=1, keepdims=True) for t, v in steps.items()}


def summed(steps, batches, n_rows):
    """Add steps up to rows."""
    total = np.zeros((N_QUERIES, n_rows))
    for t, rows in enumerate(batches, start=1):
        np.add.at(total, (slice(None), rows), steps[t])
    return total


def error(found, expected):
    """Return the norm of all differences relative to what is expected."""
    missed = sum(np.sum((found[t] - expected[t]) ** 2) for t in expected)
    return np.sqrt(missed / sum(np.sum(v**2) for v in expected.values()))


def rank_correlation(found, expected):
    """Return the mean over queries."""
    pairs = zip(found, expected, strict=True)
    return np.mean([spearmanr(a, b).statistic for a, b in pairs])


def compare(activation, rate, clip_norm):
    """Return the cells of a setting."""
    X, y, X_query, y_query = load("digits", dtype=np.float64)
    queries = X_query[:N_QUERIES], y_query[:N_QUERIES]
    net = network(
        activation=activation, learning_rate=rate, clip_norm=clip_norm, max_epochs=2
    ).fit(X, y)
    problem = net._problem(X, net._learn_target(y))
    batches, found = problem.recipe.batches, peer(net, problem, *queries)

    for name, value in net.module_.state_dict().items():
        np.testing.assert_allclose(value, found[f"end/{name}"], rtol=0, atol=1e-10)
    theirs = {}
    for t, rows in enumerate(batches, start=1):
        at = found["steps"] == t
        np.testing.assert_array_equal(found["rows"][at], rows)
        theirs[t] = -found["scores"][at].T.astype(float)

    fisher = by_step(net, X, y, queries, "empirical_fisher")
    exact = by_step(net, X, y, queries, "exact")
    cotangents = gradients(net, problem, *queries)
    # nothing but the denominators sets our own two forms apart
    own = over_number_of_rows(problem, cotangents, clip_jacobian=True)
    np.testing.assert_array_less(error(centred(own), fisher), 1e-12)
    own = over_number_of_rows(problem, cotangents, clip_jacobian=False)
    total = [summed(v, batches, len(X)) for v in (theirs, own, fisher, exact)]
    return [
        activation,
        f"{rate:g}",
        f"{clip_norm}",
        f"{error(centred(theirs), fisher):.1e}",
        f"{error(theirs, own):.1e}",
        f"{error({0: total[0]}, {0: total[1]}):.1e}",
        f"{error(theirs, fisher):.2f}",
        f"{rank_correlation(total[0], total[2]):.4f}",
        f"{error(fisher, exact):.2f}",
        f"{rank_correlation(total[2], total[3]):.4f}",
    ]


def gradients(net, problem, X_query, y_query):
    """Return gradients (q, 1, P) of the outcomes in the trained parameters."""
    X_query, y_query = torch.tensor(X_query), torch.tensor(y_query)
    gradient = torch.func.jacrev(
        lambda params: (
            -problem.loss.values(problem.model.outputs(params, X_query), y_query)
        )
    )
    end = torch.nn.utils.parameters_to_vector(net.module_.parameters())
    return gradient(end.detach())[:, None]


def main():
    table = Table("Differences between dattri-llm 0.1.0 and AdamWInfluence", HEADER)
    for setting in SETTINGS:
        table.add(*compare(*setting))
    write("dattri_llm", table)


if __name__ == "__main__":
    main()
