"""Factorisations and conjugate gradients against numpy.linalg."""

import warnings

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import ConvergenceWarning

from skattrib.engine import _solvers
from skattrib.engine._solvers import (
    Factor,
    LowRankFactor,
    ShiftedSystem,
    add_diagonal,
    block_conjugate_gradient,
    conjugate_gradient,
    largest_eigenvalue,
    preconditioned_gradient,
    pseudo_inverse,
)
from tests.cases import randn

FIBONACCI = [1, 1]
while len(FIBONACCI) < 40:
    FIBONACCI.append(sum(FIBONACCI[-2:]))


def positive_definite(*shape, seed=0, damping=1.0):
    """Random symmetric matrices (..., N, N)."""
    half = randn(*shape, shape[-1], seed=seed)
    return add_diagonal(half @ half.mT / shape[-1], damping)


def with_spectrum(values, dtype, seed=0):
    vectors, _ = np.linalg.qr(randn(len(values), len(values), seed=seed).numpy())
    return torch.tensor((vectors * values) @ vectors.T, dtype=dtype)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_factor(batch):
    A, rhs = positive_definite(*batch, 6), randn(*batch, 6, 4, seed=1)
    factor = Factor(A)
    expected = np.linalg.solve(A.numpy(), rhs.numpy())
    assert_allclose(factor.solve(rhs), expected, rtol=1e-12, atol=1e-13)
    half = factor.half_solve(rhs)
    assert_allclose(half.mT @ half, rhs.mT.numpy() @ expected, rtol=1e-12, atol=1e-13)


def test_ill_conditioned_float32_is_factored_in_float64():
    """Consecutive Fibonacci numbers: determinant 1, condition 1e10, inverse known."""
    for k in range(20, 30, 2):
        a, b, c = FIBONACCI[k : k + 3]
        A = torch.tensor([[a, b], [b, c]], dtype=torch.float32)
        _, fails = torch.linalg.cholesky_ex(A)  # noqa: TID251
        if fails:
            break
    assert fails
    inverse = np.array([[c, -b], [-b, a]], dtype=float)
    factor, eye = Factor(A), torch.eye(2)
    x, half = factor.solve(eye), factor.half_solve(eye)
    assert x.dtype == half.dtype == torch.float32
    # the error of float64 is about its precision times the condition
    tolerance = 2e-16 * np.linalg.cond(A.double().numpy()) + 1e-6
    assert_allclose(x, inverse, rtol=tolerance)
    assert_allclose(half.mT @ half, inverse, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [False, True])
def test_not_positive_definite(dtype, batch):
    good = torch.eye(3, dtype=dtype)
    bad = with_spectrum([1.0, 1.0, -0.5], dtype)
    matrix = torch.stack([good, bad]) if batch else bad
    with pytest.raises(
        FloatingPointError, match=r"not positive definite.*larger ridge"
    ):
        Factor(matrix)


def test_add_diagonal_leaves_its_argument():
    A = positive_definite(2, 3)
    before = A.clone()
    assert_allclose(add_diagonal(A, 2.0), before.numpy() + 2 * np.eye(3), rtol=1e-15)
    assert_array_equal(A, before)


def assert_solves(factor, matrix, rhs):
    expected = np.linalg.solve(matrix, rhs.numpy())
    assert_allclose(factor.solve(rhs), expected, rtol=1e-10, atol=1e-10)
    half = factor.half_solve(rhs)
    inner = rhs.numpy().T @ expected
    assert_allclose(half.T @ half, inner, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shift", [1e-3, 0.1, 10.0])
def test_shifted_system(shift):
    A, rhs = positive_definite(7, damping=0.0), randn(7, 3, seed=1)
    before, system = A.clone(), ShiftedSystem(A)
    shifted = A.numpy() + shift * np.eye(7)
    assert_solves(system.factor(shift), shifted, rhs)
    shifts = torch.tensor([shift], dtype=torch.float64)
    assert_solves(system.eigen_factor(shifts), shifted, rhs)
    assert_array_equal(A, before)


def test_columns_with_shifts_of_their_own():
    A, rhs = positive_definite(7, damping=0.0), randn(7, 6, seed=1)
    shifts = torch.tensor([1e-3, 0.1, 10.0], dtype=torch.float64)
    factor = ShiftedSystem(A).eigen_factor(shifts[:1]).at(shifts)
    solved, half = factor.solve(rhs), factor.half_solve(rhs)
    for i, shift in enumerate(shifts):
        two = slice(2 * i, 2 * i + 2)
        shifted = A.numpy() + float(shift) * np.eye(7)
        expected = np.linalg.solve(shifted, rhs[:, two].numpy())
        assert_allclose(solved[:, two], expected, rtol=1e-10, atol=1e-10)
        inner = rhs[:, two].numpy().T @ expected
        assert_allclose(half[:, two].T @ half[:, two], inner, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("decomposed", [False, True])
def test_columns_of_the_identity(decomposed, monkeypatch):
    monkeypatch.setattr(_solvers, "_COLUMNS", 2)
    A = positive_definite(7, damping=0.1)
    system = ShiftedSystem(A)
    factor = (system.decomposed() if decomposed else system).factor(0.3)
    index = torch.tensor([4, 1, 6, 2, 5])
    half = factor.half_columns(index)
    inverse = np.linalg.inv(A.numpy() + 0.3 * np.eye(7))
    expected = inverse[index][:, index]
    assert_allclose(half.T @ half, expected, rtol=1e-10, atol=1e-12)


def test_a_decomposed_system_factors_nothing_more(monkeypatch):
    A, rhs = positive_definite(7, damping=0.0), randn(7, 3, seed=1)
    system = ShiftedSystem(A)
    decomposed = system.decomposed()
    assert decomposed.is_decomposed
    assert not system.is_decomposed
    for name in ("eigh", "eigvalsh", "cholesky_ex"):
        monkeypatch.delattr(torch.linalg, name)
    for shift in (1e-3, 0.1, 10.0):
        shifted = A.numpy() + shift * np.eye(7)
        assert_solves(decomposed.factor(shift), shifted, rhs)
    assert decomposed.decomposed().factor(0.1).solve(rhs).shape == (7, 3)
    assert_allclose(decomposed.eigenvalues(), np.linalg.eigvalsh(A.numpy()).clip(0))


def test_largest_eigenvalue():
    A = positive_definite(5, 4)
    expected = np.linalg.eigvalsh(A.numpy())[:, -1]
    assert_allclose(largest_eigenvalue(A), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pseudo_inverse_is_blind_to_rounding(dtype):
    """A null space that is not quite null must not come back inverted."""
    small = torch.finfo(dtype).eps
    A = torch.stack([with_spectrum([2.0, 0.5, v], dtype) for v in (0.0, small, 1.0)])
    found = pseudo_inverse(A)
    assert found.dtype == dtype
    expected = [with_spectrum([0.5, 2.0, v], torch.float64) for v in (0.0, 0.0, 1.0)]
    assert_allclose(found, torch.stack(expected), atol=20 * small)


def test_eigenvalues_are_never_negative():
    half = randn(5, 2)
    values = ShiftedSystem(half @ half.T).eigenvalues()
    expected = np.linalg.eigvalsh((half @ half.T).numpy()).clip(min=0)
    assert_allclose(values, expected, rtol=1e-12, atol=1e-14)
    assert (values >= 0).all()


# --------------------------------------------------------- conjugate gradients
def matvec_of(matrices):
    return lambda v: torch.einsum("mij,mj->mi", matrices, v)


def test_conjugate_gradient_solves_every_row_with_its_own_matrix():
    A, rhs = positive_definite(5, 12), randn(5, 12, seed=1)
    rhs[2] = 0
    rhs[3] *= 1e6
    before = rhs.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = conjugate_gradient(matvec_of(A), rhs)
    assert_array_equal(rhs, before)
    expected = np.linalg.solve(A.numpy(), rhs.numpy()[..., None])[..., 0]
    assert_array_equal(x[2], np.zeros(12))
    error = np.linalg.norm(x.numpy() - expected, axis=1)
    assert (error <= 1e-9 * np.linalg.norm(expected, axis=1)).all()


@pytest.mark.parametrize("tol", [1e-2, 1e-6])
def test_conjugate_gradient_stops_at_the_residual_asked_for(tol):
    A, rhs = positive_definite(4, 30, damping=1e-2), randn(4, 30, seed=1)
    x = conjugate_gradient(matvec_of(A), rhs, tol=tol)
    residual = torch.einsum("mij,mj->mi", A, x) - rhs
    relative = residual.norm(dim=1) / rhs.norm(dim=1)
    assert (relative <= 1.01 * tol).all()
    assert (relative > 1e-4 * tol).all()


def test_conjugate_gradient_asks_float32_for_what_it_can():
    A = positive_definite(3, 10).float()
    rhs = randn(3, 10, seed=1).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = conjugate_gradient(matvec_of(A), rhs, tol=1e-12)
    assert x.dtype == torch.float32
    expected = np.linalg.solve(A.double().numpy(), rhs.double().numpy()[..., None])
    assert_allclose(x, expected[..., 0], rtol=1e-4, atol=1e-5)


def test_conjugate_gradient_warns_when_it_stops_early():
    A, rhs = positive_definite(2, 30, damping=1e-6), randn(2, 30, seed=1)
    with pytest.warns(ConvergenceWarning, match=r"after 3 iterations.*`ridge`"):
        x = conjugate_gradient(matvec_of(A), rhs, max_iter=3)
    assert torch.isfinite(x).all()


def test_a_good_preconditioner_needs_few_iterations():
    A, rhs = positive_definite(5, 12, damping=1e-3), randn(5, 12, seed=1)
    alike = add_diagonal(A.mean(dim=0), 0.1)
    calls = []

    def matvec(v, _):
        calls.append(len(v))
        return torch.einsum("ij,mj->mi", A[0], v)

    inverse = torch.tensor(np.linalg.inv(A[0].numpy()))
    x, failed = preconditioned_gradient(matvec, rhs, lambda v, _: v @ inverse)
    assert len(calls) <= 4
    assert not failed.any()
    expected = np.linalg.solve(A[0].numpy(), rhs.numpy().T).T
    assert_allclose(x, expected, rtol=1e-9, atol=1e-9)
    inverse = torch.tensor(np.linalg.inv(alike.numpy()))
    matvec = matvec_of(A)
    x, failed = preconditioned_gradient(
        lambda v, _: matvec(v), rhs, lambda v, _: v @ inverse
    )
    expected = np.linalg.solve(A.numpy(), rhs.numpy()[..., None])[..., 0]
    assert not failed.any()
    assert_allclose(x, expected, rtol=1e-7, atol=1e-7)


def test_preconditioned_gradient_says_what_it_could_not_solve():
    easy, hard = (
        torch.eye(12).double(),
        with_spectrum(np.geomspace(1e-6, 1, 12), torch.float64),
    )
    matvec = matvec_of(torch.stack([easy, hard]))
    rhs = randn(2, 12, seed=1)
    _, failed = preconditioned_gradient(
        lambda v, _: matvec(v), rhs, lambda v, _: v, max_iter=4
    )
    assert failed.tolist() == [False, True]
    # NaN is not success
    _, failed = preconditioned_gradient(lambda v, _: v * torch.nan, rhs, lambda v, _: v)
    assert failed.all()


@pytest.mark.parametrize("rank", [12, 5])
def test_preconditioned_gradient_in_a_metric(rank):
    """λ + BK is no symmetric matrix, but it is in the metric K, also a singular one."""
    half, B = randn(12, rank, seed=2), positive_definite(1, 12)[0]
    K, rhs = half @ half.T, randn(3, 12, seed=1)
    A = 0.1 * torch.eye(12).double() + B @ K
    inverse = torch.tensor(np.linalg.inv((A + 0.05 * torch.eye(12)).numpy()))
    seen = []

    def matvec(v, image):
        seen.append(image - v @ K)
        return 0.1 * v + image @ B

    # rounding of what the metric does not see limits what it can tell
    tol = 1e-11 if rank == 12 else 1e-9
    x, failed = preconditioned_gradient(
        matvec, rhs, lambda v, _: v @ inverse.T, metric=lambda v: v @ K, tol=tol
    )
    assert not failed.any()
    assert max(float(d.abs().max()) for d in seen) < 1e-12
    expected = torch.tensor(np.linalg.solve(A.numpy(), rhs.numpy().T).T)
    # what the metric does not see does not count
    assert_allclose(x @ K, expected @ K, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("rank", [12, 4])
def test_low_rank_factor(rank):
    half, rhs = randn(12, rank, seed=2), randn(3, 12, seed=1)
    shifts = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    factor, ones = LowRankFactor(half), torch.ones(3, 12, dtype=torch.float64)
    found = factor.solve(rhs, shifts, ones)
    for v, shift, x in zip(rhs, shifts, found):
        shifted = half @ half.T / shift + torch.eye(12)
        assert_allclose(x, np.linalg.solve(shifted, v), rtol=1e-9, atol=1e-11)
    # positive definite with any shares
    eye, shares = torch.eye(12).double(), randn(12, seed=3).sigmoid().expand(12, -1)
    inverse = factor.solve(eye, torch.full((12,), 1e-3).double(), shares)
    assert_allclose(inverse, inverse.T, atol=1e-12)
    assert np.linalg.eigvalsh(inverse.numpy()).min() > 0


def test_a_low_rank_factor_preconditions():
    """Where the spectrum falls, a few directions save most of the products."""
    A = with_spectrum(np.geomspace(1e4, 1e-4, 40), torch.float64)
    rhs, shift = randn(3, 40, seed=1), 0.01
    basis = randn(40, 12, seed=2)
    middle = basis.T @ A @ basis
    inverse = np.linalg.inv(np.linalg.cholesky(middle.numpy()))
    half = A @ basis @ torch.tensor(inverse).T
    near, calls = LowRankFactor(half), []

    def matvec(v):
        calls.append(len(v))
        return v @ A + shift * v

    ones, shifts = torch.ones_like(rhs), torch.full((3,), shift).double()
    plain = conjugate_gradient(matvec, rhs)
    n_plain = len(calls)
    found = conjugate_gradient(
        matvec, rhs, precondition=lambda v: near.solve(v, shifts, ones)
    )
    assert len(calls) - n_plain < n_plain / 2
    expected = np.linalg.solve(A.numpy() + shift * np.eye(40), rhs.numpy().T).T
    for x in (plain, found):
        assert_allclose(x, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize("solve", [conjugate_gradient, block_conjugate_gradient])
def test_conjugate_gradient_without_rows(solve):
    x = solve(matvec_of(positive_definite(0, 3)), torch.zeros(0, 3))
    assert x.shape == (0, 3)


@pytest.mark.parametrize("n_rows", [1, 7, 12, 30])
def test_block_of_right_hand_sides(n_rows, monkeypatch):
    """Alike, zero, large ones; more than fit a block, and than there are unknowns."""
    monkeypatch.setattr(_solvers, "_BLOCK", 10)
    A, rhs = positive_definite(12, damping=1e-2), randn(n_rows, 12, seed=1)
    if n_rows > 4:
        rhs[2], rhs[4] = 0, rhs[1]
        rhs[3] *= 1e6
    before = rhs.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = block_conjugate_gradient(lambda v: v @ A, rhs)
    assert_array_equal(rhs, before)
    expected = np.linalg.solve(A.numpy(), rhs.numpy().T).T
    error = np.linalg.norm(x.numpy() - expected, axis=1)
    assert (error <= 1e-9 * np.linalg.norm(expected, axis=1)).all()
    if n_rows > 4:
        assert_array_equal(x[2], np.zeros(12))


@pytest.mark.parametrize("tol", [1e-2, 1e-6])
def test_a_block_stops_at_the_residual_asked_for(tol):
    A, rhs = positive_definite(60, damping=1e-2), randn(4, 60, seed=1)
    x = block_conjugate_gradient(lambda v: v @ A, rhs, tol=tol)
    relative = (x @ A - rhs).norm(dim=1) / rhs.norm(dim=1)
    assert (relative <= 1.01 * tol).all()
    assert (relative > 1e-4 * tol).any()


def test_a_block_needs_fewer_products():
    A, rhs, calls = positive_definite(80, damping=1e-2), randn(20, 80, seed=1), []

    def matvec(v):
        calls.append(len(v))
        return v @ A

    plain = conjugate_gradient(matvec, rhs)
    n_plain = len(calls)
    together = block_conjugate_gradient(matvec, rhs)
    assert len(calls) - n_plain < n_plain / 4
    assert_allclose(together, plain, rtol=0, atol=1e-8 * plain.abs().max())


@pytest.mark.parametrize("condition", [10, 1e3])
def test_a_block_in_float32_is_as_good_as_row_by_row(condition):
    values = np.geomspace(1, 1 / condition, 60)
    A, rhs = with_spectrum(values, torch.float64), randn(20, 60, seed=1)
    expected = torch.tensor(np.linalg.solve(A.numpy(), rhs.numpy().T).T)
    errors = []
    for solve in (conjugate_gradient, block_conjugate_gradient):
        x = solve(lambda v: v @ A.float(), rhs.float())
        assert x.dtype == torch.float32
        errors.append(float((x - expected).norm() / expected.norm()))
    assert errors[1] < 5 * errors[0]


def test_what_a_block_cannot_do_is_done_row_by_row():
    """A right-hand side that is not a number takes the others along, but not there."""
    A, rhs = positive_definite(12), randn(5, 12, seed=1)
    rhs[3, 0] = torch.nan
    x = block_conjugate_gradient(lambda v: v @ A, rhs)
    finite = torch.tensor([0, 1, 2, 4])
    expected = np.linalg.solve(A.numpy(), rhs[finite].numpy().T).T
    assert_allclose(x[finite], expected, rtol=1e-9, atol=1e-9)
    # and so is one that is singular to the precision
    A = with_spectrum([1.0, 1e-12, 0.0, 0.0], torch.float32)
    with pytest.warns(ConvergenceWarning, match="`ridge`"):
        block_conjugate_gradient(lambda v: v @ A, randn(2, 4).float(), max_iter=50)


# ------------------------------------------------------------------------ trap
@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_batched_solves_are_right_on_two_threads():
    """A batched LU of these returned garbage, raised or hung in torch 2.13."""
    A, rhs = positive_definite(20, 200), randn(20, 200, 5, seed=1)
    x = Factor(A).solve(rhs)
    residual = (A @ x - rhs).norm(dim=(1, 2)) / rhs.norm(dim=(1, 2))
    assert float(residual.max()) < 1e-10
