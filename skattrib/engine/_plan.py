"""Which space to solve the linearised model in: the cheapest that fits the memory."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Literal

from skattrib.engine._gradients import GradientSize

Solver = Literal["auto", "dual", "primal", "cg", "nystroem"]

_NO_GRADIENTS = GradientSize(0.0, dense=False)
# Conjugate gradients, which need the least memory, may always use this many bytes.
_NEVER_REFUSED = 2.0**26
# Landmarks are a quarter of the rows, but at least this many.
_FEW_LANDMARKS = 100
# Most directions of a preconditioner, and how many of them pay off for each step that
# is solved: they save about as many products with the kernel as they cost to compute.
_MAX_DIRECTIONS, _DIRECTIONS_PER_STEP = 1024, 40


@dataclass(frozen=True)
class SolverChoice:
    """The space to solve in, the reason for it, and the number of landmark rows."""

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
    """Return the numbers that each space stores, and the work of the direct ones."""
    size = n_rows * n_outputs
    n_kept = 0 if by_query else n_steps
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
        "auto" never chooses "nystroem", which is an approximation.
    gradients : GradientSize
        Of the rows. If all layers are dense, no Jacobian is formed.
    n_steps : int
        Steps that will be stored.
    by_query : bool
        Whether no steps are stored where systems can be solved for queries instead:
        "primal" and "cg".

    Raises
    ------
    ValueError
        If the space named does not fit the memory, or no space does.
    """
    n_unknowns = n_rows * n_outputs
    gradient_bytes, dense = gradients
    numbers, work = _costs(n_rows, n_outputs, n_params, n_steps, dense, by_query)
    needed = {name: gradient_bytes + itemsize * v for name, v in numbers.items()}
    problem_size = _ProblemSize(
        n_rows, n_outputs, n_params, itemsize, gradient_bytes, n_steps
    )
    needed["nystroem"] = problem_size.nystroem_bytes(1)
    fitting = [name for name in work if needed[name] <= memory_bytes]

    chosen: str = solver
    if solver == "auto":
        chosen = min(fitting, key=work.__getitem__) if fitting else "cg"
    frugal = chosen in ("cg", "nystroem")
    limit = max(memory_bytes, _NEVER_REFUSED) if frugal else memory_bytes
    size_note = f"n·C = {n_unknowns}, P = {n_params}"
    cap_note = f"cap of {memory_bytes / 2**20:.0f} MiB"

    if needed[chosen] > limit:
        cure = "Take fewer rows" if frugal else "Use solver='auto' or 'cg'"
        raise ValueError(
            f"solver={chosen!r} needs {needed[chosen] / 2**20:.0f} MiB for {size_note} "
            f"and {gradient_bytes / 2**20:.0f} MiB of gradients, over the {cap_note}. "
            f"{cure}, or raise sklearn.set_config(working_memory=...)."
        )

    size_note += f" and {gradient_bytes / 2**20:.0f} MiB of gradients"
    n_landmarks = 0
    if chosen == "nystroem" or not by_query:
        n_landmarks = problem_size.n_landmarks(chosen, limit)
    reason = f"cheapest for {size_note}, under the memory {cap_note}"

    if chosen == "nystroem":
        reason = f"as requested: an approximation, {n_landmarks} of {n_rows} rows"
    elif solver != "auto":
        reason = "as requested"
    elif not fitting:
        reason = f"dual and primal are both over the memory {cap_note}: {size_note}"

    return SolverChoice(chosen, reason, n_landmarks)


@dataclass(frozen=True)
class _ProblemSize:
    n_rows: int
    n_outputs: int
    n_params: int
    itemsize: int
    gradient_bytes: float
    n_steps: int

    def nystroem_bytes(self, n_landmarks: int) -> float:
        """Return the peak memory of a solution in the span of landmarks."""
        rank, size = n_landmarks * self.n_outputs, self.n_rows * self.n_outputs
        # in float64 while the factor is made: the kernel, a copy, and the factor
        making = 8.0 * 3 * rank**2
        numbers = 2.0 * size * rank + 3.0 * rank**2 + self.n_steps * rank
        share = n_landmarks / self.n_rows * 8 / self.itemsize
        gradients = (1 + share) * self.gradient_bytes
        return gradients + max(making, 8.0 * rank**2 + self.itemsize * numbers)

    def preconditioned_bytes(self, n_landmarks: int) -> float:
        """Return the memory of a preconditioner of conjugate gradients."""
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

        # applying it must not cost more than a product with the kernel
        most = min(_MAX_DIRECTIONS, self.n_params // self.n_outputs)
        wanted = min(self.n_rows // 8, most // self.n_outputs)
        counts = range(1, wanted + 1)
        spare = memory_bytes / 2 - self.gradient_bytes
        n_landmarks = bisect_right(counts, spare, key=self.preconditioned_bytes)
        rank = n_landmarks * self.n_outputs

        return n_landmarks if rank <= _DIRECTIONS_PER_STEP * self.n_steps else 0
