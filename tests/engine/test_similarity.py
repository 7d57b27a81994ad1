"""Scores are weighted inner products, whatever the blocks of rows."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skattrib.engine import _similarity
from skattrib.engine._index import Header, SignatureIndex
from skattrib.engine._similarity import Similarity, all_scores, best
from tests.cases import randn

WIDTHS = {"rh/0": 5, "h/0": 3}


def rows(n, seed=0):
    return {
        name: 3 * randn(n, width, seed=seed + i)
        for i, (name, width) in enumerate(WIDTHS.items())
    }


def empty():
    return SignatureIndex.create(None, Header(WIDTHS, {}, "abc", "float64"), {})


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize(("block", "at_once"), [(1, 100), (3, 100), (100, 16)])
def test_scores_are_weighted_inner_products(cosine, block, at_once, monkeypatch):
    monkeypatch.setattr(_similarity, "_AT_ONCE", at_once)
    index = empty().append(rows(7))
    queries = rows(2, seed=4)
    center = {"h/0": rows(7)["h/0"].mean(dim=0)}
    weights = {"rh/0": 1.0, "h/0": 0.5}
    similarity = Similarity(weights, cosine, center)
    vectors = similarity.of_channels(queries)
    blocks = list(all_scores(vectors, index, similarity, block))
    assert [part.start for part, _ in blocks] == list(range(0, 7, block))
    found = torch.cat([scores for _, scores in blocks], dim=1)
    expected = 0.0
    for name, weight in weights.items():
        q, r = (v[name] - center.get(name, 0.0) for v in (queries, rows(7)))
        if cosine:
            q, r = (v / v.norm(dim=1, keepdim=True) for v in (q, r))
        expected = expected + weight**2 * q @ r.T
    if cosine:
        expected = expected / 1.25
    # norms are kept in double, units in the dtype asked for
    assert_allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("block", [1, 2, 5, 100])
def test_the_best_rows_whatever_the_blocks(block):
    index = empty().append(rows(12))
    similarity = Similarity(dict.fromkeys(WIDTHS, 1.0), True, {})
    queries = similarity.of_channels(rows(3, seed=4))
    scores, found = best(queries, index, similarity, 5, block)
    whole = queries @ similarity.vectors(index, slice(0, 12), queries).T
    order = np.argsort(-whole.numpy(), axis=1, kind="stable")[:, :5]
    assert_array_equal(found, order)
    assert_allclose(scores, np.take_along_axis(whole.numpy(), order, axis=1))


def test_equal_scores_come_in_the_order_of_the_rows():
    values = {k: v[:1].repeat(9, 1) for k, v in rows(1).items()}
    index = empty().append(values)
    similarity = Similarity(dict.fromkeys(WIDTHS, 1.0), True, {})
    queries = similarity.of_channels(rows(2, seed=4))
    _, found = best(queries, index, similarity, 4, 3)
    assert found.tolist() == [[0, 1, 2, 3]] * 2
