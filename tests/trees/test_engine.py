"""Refitted leaves against plain loops, their derivatives against finite differences."""

import numpy as np
import pytest
import torch
from sklearn import config_context

from skattrib.engine._row_weights import RowWeighting
from skattrib.engine._trees import (
    Ensemble,
    LogLoss,
    Means,
    PoissonLoss,
    PresentWeighting,
    SoftmaxLoss,
    SquaredLoss,
    Tree,
    TreeRefits,
)
from tests.trees.cases import random_tree

N, Q, T, INNER = 40, 4, 5, 5

OBJECTIVES = {
    "squared": SquaredLoss(),
    "log": LogLoss(),
    "one step": LogLoss(one_step=True),
    "poisson": PoissonLoss(damping=0.7),
    "softmax": SoftmaxLoss(3, factor=1.5),
    "centred": SoftmaxLoss(3, factor=2.0, centred=True),
    "means": Means(2),
    "shares": Means(3, classes=True),
}


def targets_of(objective):
    rng = np.random.RandomState(1)
    if isinstance(objective, Means) and not objective.classes:
        return rng.randn(N, objective.n_outputs)
    if isinstance(objective, LogLoss):
        return rng.randint(0, 2, N)
    if isinstance(objective, PoissonLoss):
        return rng.poisson(2, N).astype(float)
    return rng.randint(0, 3, N) if objective.n_outputs > 1 else rng.randn(N)


def setting(objective, *, signs=False, empty=False, penalties=True, **options):
    """Return refits, leaves of queries and weights, of structures drawn at random."""
    rng = np.random.RandomState(0)
    shared = not objective.follows
    n_trees = 1 if shared else objective.n_outputs
    of_nodes = np.linspace(0.3, 2, 2 * INNER + 1) if penalties and not shared else 0.0
    rate = 1 / T if shared else 0.3
    stages = tuple(
        tuple(
            random_tree(rng, INNER, signs=signs, rate=rate, penalty=of_nodes)
            for _ in range(n_trees)
        )
        for _ in range(T)
    )
    # the last leaf has no row, or all have some
    rows = rng.randint(0, INNER + (not empty), (T, n_trees, N))
    queries = rng.randint(0, INNER + 1, (T, n_trees, Q))
    queries[..., 0] = INNER
    start = np.zeros(objective.n_outputs)
    ensemble = Ensemble(stages, objective, start, **options)
    refits = TreeRefits(ensemble, rows, targets_of(objective))
    return refits, queries, rng.uniform(0.3, 1.5, N)


def derivative_error(refits, queries, weights):
    """Return how far derivatives are from central differences, relatively."""
    rng = np.random.RandomState(3)
    slopes = rng.randn(Q, refits.ensemble.n_outputs)
    owners = np.array([0, 1, 1, 2])
    found = refits.derivatives(weights, queries, slopes, owners)
    step = 2e-5 * np.eye(N)
    ends = np.concatenate([weights + step, weights - step])
    each = (refits.outputs(ends, queries) * slopes).sum(axis=2)
    sums = np.stack([each[:, owners == k].sum(axis=1) for k in range(3)])
    expected = (sums[:, :N] - sums[:, N:]) / 4e-5
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("empty", [False, True], ids=["full", "empty"])
@pytest.mark.parametrize("signs", [False, True], ids=["free", "monotone"])
@pytest.mark.parametrize("options", [{}, {"l1": 0.3}, {"largest": 0.5}], ids=str)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_derivatives_are_those_of_refits(name, options, signs, empty):
    objective = OBJECTIVES[name]
    if options and not objective.follows:
        options = {}  # forests have none: this is the plain case again
    refits, queries, weights = setting(objective, signs=signs, empty=empty, **options)
    assert derivative_error(refits, queries, weights) < 1e-7


@pytest.mark.parametrize("moves", [True, False])
@pytest.mark.parametrize("kind", ["factors", "balanced", "present", "apart"])
def test_derivatives_follow_the_weights_of_classes(kind, moves):
    codes = torch.tensor(targets_of(LogLoss()))
    factors = RowWeighting(torch.where(codes == 1, 3.0, 1.0).double())
    own = torch.linspace(0.5, 2, N).double()
    weighting = {
        "factors": factors,
        "balanced": RowWeighting(balanced=codes),
        "present": PresentWeighting(balanced=codes, own=own),
        "apart": factors,
    }[kind]
    first = RowWeighting() if kind == "apart" else None
    case = setting(LogLoss(), weighting=weighting, initial_weighting=first, moves=moves)
    assert derivative_error(*case) < 1e-7


def test_presence_balances_counts():
    """Rows count by how far they are present, whatever they weigh of their own."""
    codes, own = torch.tensor([0, 0, 0, 1]), torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    weighting = PresentWeighting(balanced=codes, own=own)
    found = weighting(own[None] * torch.tensor([1.0, 0.0, 1.0, 1.0]))[0]
    # two rows and one are left of three
    assert torch.allclose(found, own * torch.tensor([0.75, 0.0, 0.75, 1.5]))


# --------------------------------------------------------------- plain loops
def slow_optimum(G, H, penalty, l1, largest):
    if H + penalty <= 0:
        return 0.0
    size = max(abs(G) - l1, 0.0) * (1 if G > 0 else -1)
    value = -size / (H + penalty)
    return max(-largest, min(largest, value)) if largest else value


def slow_values(tree, G, H, l1, largest):
    """Return the values of leaves, from the root down."""
    penalty = np.broadcast_to(tree.penalty, tree.n_nodes)
    found = {}

    def sums(node):
        if node < tree.n_leaves:
            return G[node], H[node]
        below = [sums(child) for child in tree.children[node - tree.n_leaves]]
        return sum(b[0] for b in below), sum(b[1] for b in below)

    def optimum(node):
        return slow_optimum(*sums(node), penalty[node], l1, largest)

    def descend(node, value, low, high):
        if node < tree.n_leaves:
            found[node] = value
            return
        j = node - tree.n_leaves
        of_children = []
        for child in tree.children[j]:
            own = max(low, min(high, optimum(child)))
            of_children.append(own if sums(child)[1] > 0 else value)
        bounds = [(low, high), (low, high)]
        sign = 0 if tree.monotone is None else tree.monotone.signs[j]
        middle = sum(of_children) / 2
        if sign:
            bounds = [(low, middle), (middle, high)][::sign]
        for child, own, ends in zip(tree.children[j], of_children, bounds):
            descend(child, own, *ends)

    root = tree.n_leaves if len(tree.children) else 0
    descend(root, optimum(root), -np.inf, np.inf)
    return [tree.rate * found[leaf] for leaf in range(tree.n_leaves)]


def slow_outputs(refits, weights, queries):
    """Return outputs (q, 3) of softmax boosting, row by row."""
    ensemble, rows = refits.ensemble, refits.leaves
    y, factor = refits.targets.argmax(axis=0), ensemble.objective.factor
    shares = [weights[y == k].sum() / weights.sum() for k in range(3)]
    F = [[np.log(share) for share in shares] for _ in range(N)]
    asked = [[np.log(share) for share in shares] for _ in range(Q)]
    for t, stage in enumerate(ensemble.stages):
        before = [list(row) for row in F]
        for k, tree in enumerate(stage):
            G, H = [0.0] * tree.n_leaves, [0.0] * tree.n_leaves
            for i in range(N):
                p = np.exp(before[i][k]) / sum(np.exp(f) for f in before[i])
                leaf = rows[t, k, i]
                G[leaf] += weights[i] * (p - (y[i] == k))
                H[leaf] += weights[i] * factor * p * (1 - p)
            values = slow_values(tree, G, H, ensemble.l1, ensemble.largest)
            for i in range(N):
                F[i][k] += values[rows[t, k, i]]
            for i in range(Q):
                asked[i][k] += values[queries[t, k, i]]
    return np.array(asked)


@pytest.mark.parametrize("signs", [False, True], ids=["free", "monotone"])
def test_refits_are_plain_loops(signs):
    refits, queries, weights = setting(
        OBJECTIVES["softmax"], signs=signs, empty=True, l1=0.2, largest=0.6
    )
    several = np.stack([weights, weights[::-1], np.ones(N)])
    several[1, :15] = 0  # more leaves are empty
    found = refits.outputs(several, queries)
    for row, outputs in zip(several, found, strict=True):
        expected = slow_outputs(refits, row, queries)
        np.testing.assert_allclose(outputs, expected, rtol=0, atol=1e-12)


def test_weightings_come_in_parts_that_fit_the_memory():
    refits, queries, weights = setting(LogLoss())
    many = weights * np.random.RandomState(5).rand(3000, 1)
    many = many + np.random.RandomState(6).rand(3000, N)
    whole = refits.outputs(many, queries)
    with config_context(working_memory=1):
        np.testing.assert_allclose(refits.outputs(many, queries), whole, atol=1e-12)
    assert whole.shape == (3000, Q, 1)


def test_values_of_a_forest_are_means_of_all_rows():
    refits, queries, weights = setting(OBJECTIVES["shares"])
    found = refits.outputs(weights[None], queries)[0]
    y, rows = refits.targets.argmax(axis=0), refits.leaves[:, 0]
    for q in range(Q):
        shares = [
            np.bincount(y, weights * (rows[t] == queries[t, 0, q]), 3) for t in range(T)
        ]
        expected = np.mean([share / share.sum() for share in shares], axis=0)
        np.testing.assert_allclose(found[q], expected, atol=1e-12)


def test_trees_that_never_grew_add_nothing():
    refits, queries, weights = setting(SquaredLoss())
    bare = Tree(np.empty((0, 2), dtype=int), np.zeros(1), rate=0.0)
    ensemble = refits.ensemble
    stages = (*ensemble.stages, (bare,))
    longer = Ensemble(stages, ensemble.objective, ensemble.initial)
    rows = np.concatenate([refits.leaves, np.zeros((1, 1, N), dtype=int)])
    asked = np.concatenate([queries, np.zeros((1, 1, Q), dtype=int)])
    again = TreeRefits(longer, rows, refits.targets[0])
    np.testing.assert_array_equal(
        again.outputs(weights[None], asked), refits.outputs(weights[None], queries)
    )
    assert derivative_error(again, asked, weights) < 1e-7
