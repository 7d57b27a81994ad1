"""Which space to solve the linearised model in: the cheapest that fits the memory."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from skattrib.engine._gradients import GradientSize

Solver = Literal["auto", "dual", "primal", "cg", "nystroem"]

_NO_GRADIENTS = GradientSize(0.0, dense=False)
# Conjugate gradients, which need the least, may always have this many bytes.
_NEVER_REFUSED = 2.0**26
# Landmarks are a quarter of the rows, or this many if that is more.
_FEW_LANDMARKS = 100
# A preconditioner of at most so many directions saves a solve about as many products
# with the kernel as so many of its directions cost to make.
_MAX_DIRECTIONS, _DIRECTIONS_PER_STEP = 1024, 40


@dataclass(frozen=True)
class SolverChoice:
    """Which space to solve in, why, and how many rows are landmarks."""

    solver: str
    reason: str
    n_landmarks: int = 0


def _costs(
    n_rows: int,
    n_outputs: int,
    n_params: int,
    n_steps: int,
    dense: bool,
    by_query: bool,
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the numbers that each space holds, and the work of those that factor."""
    size, n_kept = n_rows * n_outputs, 0 if by_query else n_steps
    numbers = {
        "primal": 3.0 * n_params**2 + n_kept * n_params,
        # kernel, T, its factor, and what factoring or solving copies
        "dual": 5.0 * size**2 + n_steps * size,
        "cg": 16.0 * size + n_params + n_kept * size,
    }
    # matrix, factor and, in float64, its inverse with a block of it; or the Jacobian
    # and a copy of it
    numbers["primal"] += 5.0 * n_params**2 if dense else 2.0 * size * n_params
    outer = n_rows if dense else 2.0 * size
    work = {
        "primal": outer * n_params**2 + n_params**3 / 3,
        # kernel from layer factors, then Cholesky
        "dual": 2.0 * n_rows**2 * n_params + 4.0 * size**3 / 3,
    }
    return numbers, work


def plan_solver(
    n_rows: int,
    n_outputs: int,
    n_params: int,
    itemsize: int,
    memory_bytes: float,
    solver: Solver = "auto",
    *,
    gradients: GradientSize = _NO_GRADIENTS,
    n_steps: int = 0,
    by_query: bool = False,
) -> SolverChoice:
    """Choose the cheapest space that fits the memory cap.

    Parameters
    ----------
    n_rows, n_outputs, n_params, itemsize : int
    memory_bytes : float
        The cap.
    solver : {"auto", "dual", "primal", "cg", "nystroem"}
        "nystroem" is never chosen by itself: it is an approximation.
    gradients : GradientSize
        Of the rows. Where all layers are dense, no Jacobian is formed.
    n_steps : int
        Steps that will be kept.
    by_query : bool
        Whether none are where queries can be solved for: "primal" and "cg".

    Raises
    ------
    ValueError
        If the space asked for by name does not fit, or none.
    """
    size = n_rows * n_outputs
    gradient_bytes, dense = gradients
    numbers, work = _costs(n_rows, n_outputs, n_params, n_steps, dense, by_query)
    needed = {name: gradient_bytes + itemsize * v for name, v in numbers.items()}
    problem = _Problem(n_rows, n_outputs, n_params, itemsize, gradient_bytes, n_steps)
    needed["nystroem"] = problem.nystroem_bytes(1)
    fitting = [name for name in work if needed[name] <= memory_bytes]
    found: str = solver
    if solver == "auto":
        found = min(fitting, key=work.__getitem__) if fitting else "cg"
    frugal = found in ("cg", "nystroem")
    limit = max(memory_bytes, _NEVER_REFUSED) if frugal else memory_bytes
    sizes = f"n·C = {size}, P = {n_params}"
    cap = f"cap of {memory_bytes / 2**20:.0f} MiB"
    if needed[found] > limit:
        cure = "Take fewer rows" if frugal else "Use solver='auto' or 'cg'"
        raise ValueError(
            f"solver={found!r} needs {needed[found] / 2**20:.0f} MiB for {sizes} and "
            f"{gradient_bytes / 2**20:.0f} MiB of gradients, over the {cap}. {cure}, "
            "or raise sklearn.set_config(working_memory=...)."
        )
    sizes += f" and {gradient_bytes / 2**20:.0f} MiB of gradients"
    n_landmarks = 0
    if found == "nystroem" or not by_query:
        n_landmarks = problem.n_landmarks(found, limit)
    reason = f"cheapest for {sizes}, under the memory {cap}"
    if found == "nystroem":
        reason = f"asked for: an approximation, {n_landmarks} of {n_rows} rows"
    elif solver != "auto":
        reason = "asked for"
    elif not fitting:
        reason = f"dual and primal are both over the memory {cap}: {sizes}"
    return SolverChoice(found, reason, n_landmarks)


@dataclass(frozen=True)
class _Problem:
    n_rows: int
    n_outputs: int
    n_params: int
    itemsize: int
    gradient_bytes: float
    n_steps: int

    def nystroem_bytes(self, n_landmarks: int) -> float:
        """Return what a solution in the span of landmarks holds at its peak."""
        rank, size = n_landmarks * self.n_outputs, self.n_rows * self.n_outputs
        # in float64 while the factor is made: the kernel, a copy, and the factor
        making = 8.0 * 3 * rank**2
        numbers = 2.0 * size * rank + 3.0 * rank**2 + self.n_steps * rank
        share = n_landmarks / self.n_rows * 8 / self.itemsize
        gradients = (1 + share) * self.gradient_bytes
        return gradients + max(making, 8.0 * rank**2 + self.itemsize * numbers)

    def preconditioned_bytes(self, n_landmarks: int) -> float:
        """Return what conjugate gradients hold beside what they hold anyway."""
        rank, size = n_landmarks * self.n_outputs, self.n_rows * self.n_outputs
        share = n_landmarks / self.n_rows * 8 / self.itemsize
        making = 8.0 * 3 * rank**2
        return share * self.gradient_bytes + making + 3.0 * self.itemsize * size * rank

    def n_landmarks(self, solver: str, memory_bytes: float) -> int:
        """Return how many rows to take as landmarks."""
        if solver == "nystroem":
            wanted = min(self.n_rows, max(_FEW_LANDMARKS, self.n_rows // 4))
            counts = range(1, wanted + 1)
            fitting = bisect_right(counts, memory_bytes, key=self.nystroem_bytes)
            return max(1, fitting)
        if solver != "cg":
            return 0
        # applying it is not to cost more than a product with the kernel does
        most = min(_MAX_DIRECTIONS, self.n_params // self.n_outputs)
        wanted = min(self.n_rows // 8, most // self.n_outputs)
        counts = range(1, wanted + 1)
        spare = memory_bytes / 2 - self.gradient_bytes
        n_landmarks = bisect_right(counts, spare, key=self.preconditioned_bytes)
        rank = n_landmarks * self.n_outputs
        return n_landmarks if rank <= _DIRECTIONS_PER_STEP * self.n_steps else 0
