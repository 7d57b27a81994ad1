"""How to solve the linearised model, and leave units out: what is cheapest and fits.

Work is counted in multiplications, never timed, so that the choice is the same in every
run and on every machine.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from skattrib.engine._gradients import GradientSize

Solver = Literal["auto", "dual", "primal", "cg", "nystroem"]
Removal = Literal["newton", "influence", "refit"]

_NO_GRADIENTS = GradientSize(0.0, dense=False)
# Conjugate gradients, which need the least memory, may always use this many bytes.
_NEVER_REFUSED = 2.0**26
# Landmarks are a quarter of the rows, but at least this many.
_FEW_LANDMARKS = 100
# Most directions of a preconditioner, and how many of them pay off for each step that
# is solved: they save about as many products with the kernel as they cost to compute.
_MAX_DIRECTIONS, _DIRECTIONS_PER_STEP = 1024, 40
# More units than there are queries, probably.
_MANY_UNITS = 64
# Weights that differ by more values than this have too many λ for one factor each.
_FEW_WEIGHTS = 8
# Products that conjugate gradients take, without a factor and with one nearby.
_ITERATIONS, _NEAR_ITERATIONS = 40, 20
# Subsets that `score` asks about.
_SUBSETS = 32
# Newton steps of a refit.
_REFIT_STEPS = 6
# Newton steps are taken if they cost no more than so many multiplications, a minute's
# work or so, or so many trainings.
_AFFORDABLE, _TRAININGS = 1e12, 4


@dataclass(frozen=True)
class Units:
    """The units that are left out, one by one.

    Attributes
    ----------
    count : int
    largest : int
        Rows of the largest.
    additive : bool
        Whether the weight of a row changes that of no other row in the loss.
    n_weights : int
        Different weights of rows.
    """

    count: int = 0
    largest: int = 1
    additive: bool = True
    n_weights: int = 1

    @property
    def many(self) -> bool:
        """Whether there are more of them than queries, probably."""
        return self.count > _MANY_UNITS and self.additive

    @property
    def single_rows(self) -> bool:
        """Whether all are single rows, of few weights."""
        return self.largest == 1 and self.n_weights <= _FEW_WEIGHTS


NO_UNITS = Units()


@dataclass(frozen=True)
class SolverChoice:
    """The space to solve in and why, and how units are left out.

    Attributes
    ----------
    solver : str
    reason : str
    n_landmarks : int
        Rows that span the steps, or precondition.
    removal : {"newton", "influence", "refit"}
    by_query : bool
        Whether systems are solved for queries, and steps of units never formed.
    work : float
        Multiplications, about, of leaving out all units and some subsets.
    unit_work : float
        The same without queries and subsets.
    query_work : float
        Of solving for one query.
    n_bytes : float
        Memory needed at once, about.
    removal_reason : str
        Why units are left out so, if that was to be chosen.
    """

    solver: str
    reason: str
    n_landmarks: int = 0
    removal: str = "newton"
    by_query: bool = False
    work: float = 0.0
    unit_work: float = 0.0
    query_work: float = 0.0
    n_bytes: float = 0.0
    removal_reason: str = "as requested"


@dataclass(frozen=True)
class ProblemSize:
    """Sizes of a linearised model.

    Attributes
    ----------
    n_rows, n_outputs, n_params, itemsize : int
    gradients : GradientSize
        Of the rows. If all layers are dense, no Jacobian is formed.
    units : Units
    training : float
        Multiplications of one training; 0 if it is not known.
    """

    n_rows: int
    n_outputs: int
    n_params: int
    itemsize: int
    gradients: GradientSize = _NO_GRADIENTS
    units: Units = field(default=NO_UNITS)
    training: float = 0.0

    @property
    def size(self) -> int:
        """Number n·C of outputs."""
        return self.n_rows * self.n_outputs

    @property
    def note(self) -> str:
        """The sizes, in words."""
        return (
            f"n·C = {self.size}, P = {self.n_params} and "
            f"{self.gradients.n_bytes / 2**20:.0f} MiB of gradients"
        )

    def by_query(self, solver: str, removal: str) -> bool:
        """Return whether systems are solved for queries, rather than for units."""
        if not self.units.many:
            return False
        if removal == "influence":
            return solver in ("primal", "cg")
        return removal == "newton" and solver == "primal" and self.units.single_rows

    def n_bytes(self, solver: str, removal: str) -> float:
        """Return the memory that a space needs."""
        size, n_params = float(self.size), float(self.n_params)
        kept = 0 if self.by_query(solver, removal) else self.units.count
        if solver == "nystroem":
            return self.nystroem_bytes(1)
        if solver == "dual":
            # kernel, T, its factor, and what factoring or solving copies
            numbers = 5 * size**2 + self.units.count * size
        elif solver == "cg":
            numbers = 16 * size + n_params + kept * size
        else:
            # matrix, its sum with λ, factor, and another; or the Jacobian and a copy
            numbers = 4 * n_params**2 + kept * n_params
            if not self.gradients.dense:
                numbers += 2 * size * n_params
        return self.gradients.n_bytes + self.itemsize * numbers

    def product(self, solver: str) -> float:
        """Return the multiplications of a product with the Hessian."""
        if solver == "dual":
            return float(self.size) ** 2
        outer = self.n_rows if self.gradients.dense else self.size
        return 2.0 * outer * self.n_params

    def work(self, solver: str, removal: str, n_subsets: int = _SUBSETS) -> float:
        """Return the multiplications of leaving out units, and some subsets."""
        n, size, P = float(self.n_rows), float(self.size), float(self.n_params)
        outer = n if self.gradients.dense else size
        product, count = self.product(solver), float(self.units.count)
        by_query = self.by_query(solver, removal)
        solves = float(_MANY_UNITS) if by_query else count
        if removal == "refit":
            solves *= _REFIT_STEPS

        if solver == "cg":
            per_unit = self.n_outputs + 2 if removal == "newton" else 1
            return _ITERATIONS * product * (solves * per_unit + n_subsets)
        if solver == "dual":
            build = n**2 * P + size**3 / 6
            side = size
        else:
            # one triangle of a symmetric matrix
            build = outer * P**2 / 2 + P**3 / 6
            side = P
        work = build + n_subsets * _NEAR_ITERATIONS * product
        if removal == "refit":
            return work + solves * _NEAR_ITERATIONS * product
        work += solves * side**2
        if removal == "newton":
            leverages = size * side**2 / 2
            if solver == "primal" and self.gradients.dense:  # or by the inverse
                leverages = min(leverages, 2 * (P**3 + n * P**2))
            group = self.n_outputs * n / max(count, 1.0)
            work += solves * side**2 + leverages + count * group**3 / 3
        return work

    # ------------------------------------------------------------- landmarks
    def nystroem_bytes(self, n_landmarks: int) -> float:
        """Return the peak memory of a solution in the span of landmarks."""
        rank = n_landmarks * self.n_outputs
        # in float64 while the factor is made: the kernel, a copy, and the factor
        making = 8.0 * 3 * rank**2
        numbers = 2.0 * self.size * rank + 3.0 * rank**2 + self.units.count * rank
        share = n_landmarks / self.n_rows * 8 / self.itemsize
        gradients = (1 + share) * self.gradients.n_bytes
        return gradients + max(making, 8.0 * rank**2 + self.itemsize * numbers)

    def preconditioned_bytes(self, n_landmarks: int) -> float:
        """Return the memory of a preconditioner of conjugate gradients."""
        rank = n_landmarks * self.n_outputs
        share = n_landmarks / self.n_rows * 8 / self.itemsize
        making = 8.0 * 3 * rank**2
        numbers = 3.0 * self.itemsize * self.size * rank
        return share * self.gradients.n_bytes + making + numbers

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
        spare = memory_bytes / 2 - self.gradients.n_bytes
        n_landmarks = bisect_right(counts, spare, key=self.preconditioned_bytes)
        rank = n_landmarks * self.n_outputs

        return n_landmarks if rank <= _DIRECTIONS_PER_STEP * self.units.count else 0


def plan_solver(
    problem: ProblemSize,
    memory_bytes: float,
    solver: Solver = "auto",
    removal: str = "newton",
) -> SolverChoice:
    """Choose the cheapest space that fits the memory cap, and how to leave units out.

    Parameters
    ----------
    problem : ProblemSize
    memory_bytes : float
        The cap.
    solver : {"auto", "primal", "dual", "cg", "nystroem"}
        "auto" never chooses "nystroem", which is an approximation.
    removal : {"auto", "newton", "influence", "refit"}
        "auto" is "newton" where that costs at most a few trainings.

    Raises
    ------
    ValueError
        If the space named does not fit the memory, or no space does.
    """
    if removal != "auto":
        return _cheapest(problem, memory_bytes, solver, removal)
    first = _cheapest(problem, memory_bytes, solver, "influence")
    try:
        newton = _cheapest(problem, memory_bytes, solver, "newton")
    except ValueError:  # their steps are kept, those of first order need not be
        why = "Newton steps do not fit the memory"
        return replace(first, removal_reason=why)
    affordable = max(_AFFORDABLE, _TRAININGS * problem.training)
    chosen = newton if newton.work <= affordable else first
    why = "Newton steps are affordable"
    if chosen is first:
        why = f"Newton steps would take {newton.work:.0e} multiplications"
        if problem.training:
            why += f", {newton.work / problem.training:.0f} trainings"
    return replace(chosen, removal_reason=why)


def _cheapest(
    problem: ProblemSize, memory_bytes: float, solver: str, removal: str
) -> SolverChoice:
    """Return the cheapest space for one way to leave units out."""
    cap_note = f"cap of {memory_bytes / 2**20:.0f} MiB"
    chosen, reason = solver, "as requested"
    if solver == "auto":
        spaces = _fitting(problem, memory_bytes, removal, ("primal", "dual", "cg"))
        chosen = min(spaces, key=lambda name: problem.work(name, removal), default="cg")
        reason = f"cheapest for {problem.note}, under the memory {cap_note}"
        if not set(spaces) - {"cg"}:
            reason = f"dual and primal are both over the memory {cap_note}: "
            reason += problem.note

    limit = _limit(chosen, memory_bytes)
    needed = problem.n_bytes(chosen, removal)
    if needed > limit:
        raise ValueError(
            f"solver={chosen!r} needs {needed / 2**20:.0f} MiB for {problem.note}, "
            f"over the {cap_note}. {_cure(problem, memory_bytes, removal)}, or raise "
            "sklearn.set_config(working_memory=...)."
        )

    by_query, n_landmarks = problem.by_query(chosen, removal), 0
    if chosen == "nystroem" or not by_query:
        n_landmarks = problem.n_landmarks(chosen, limit)
    if chosen == "nystroem":
        reason = f"as requested: an approximation, {n_landmarks} of {problem.n_rows} "
        reason += "rows"
    work, units_alone = (problem.work(chosen, removal, n) for n in (_SUBSETS, 0))
    if chosen == "cg" and by_query:
        units_alone = 0.0
    return SolverChoice(
        chosen,
        reason,
        n_landmarks,
        removal,
        by_query,
        work,
        units_alone,
        _ITERATIONS * problem.product("cg"),
        needed,
    )


def _limit(solver: str, memory_bytes: float) -> float:
    frugal = solver in ("cg", "nystroem")
    return max(memory_bytes, _NEVER_REFUSED) if frugal else memory_bytes


def _fitting(
    problem: ProblemSize, memory_bytes: float, removal: str, solvers: Iterable[str]
) -> list[str]:
    return [
        name
        for name in solvers
        if problem.n_bytes(name, removal) <= _limit(name, memory_bytes)
    ]


def _cure(problem: ProblemSize, memory_bytes: float, removal: str) -> str:
    """Return what would work instead, with what it costs."""
    kinds = ("primal", "dual", "cg")
    options = []
    for kind in dict.fromkeys((removal, "influence")):
        for name in _fitting(problem, memory_bytes, kind, kinds)[:1]:
            work = problem.work(name, kind)
            options.append(
                f"solver={name!r} with removal={kind!r} ({work:.0e} multiplications)"
            )
    if not options:
        return (
            "Take fewer rows, group rows by tasks=, use "
            "AdamWInfluence(inclusion=1), which stores no row's gradient"
        )
    return f"Use {' or '.join(options)}"
