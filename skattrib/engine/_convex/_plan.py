"""In which coordinates a linear model is refitted."""

from __future__ import annotations

from dataclasses import dataclass

from skattrib.engine._convex._objective import Objective

# Matrices of a block's size that are held at a time, and of their largest size: beyond,
# one Cholesky factor takes minutes.
_COPIES = 6
_LARGEST = 12_000


@dataclass(frozen=True)
class ConvexPlan:
    """The space that is solved in, and why.

    Parameters
    ----------
    solver : {"primal", "dual", "cg"}
    reason : str
    """

    solver: str
    reason: str


def plan_convex(
    objective: Objective, memory_bytes: float, solver: str = "auto"
) -> ConvexPlan:
    """Choose the smallest space whose Hessian fits the memory.

    Parameters
    ----------
    objective : Objective
    memory_bytes : float
        The cap.
    solver : {"auto", "primal", "dual", "cg", "nystroem"}

    Raises
    ------
    ValueError
        If the solver named cannot be used.
    """
    n_rows, n_columns = objective.rows.n_rows, objective.rows.n_columns
    n_joint = 1 if objective.loss.separable else objective.params.shape[1]
    sizes = {"primal": n_columns * n_joint, "dual": (n_rows + 1) * n_joint}
    needed = {name: 8.0 * _COPIES * size**2 for name, size in sizes.items()}
    needed["dual"] += 8.0 * _COPIES * n_rows**2
    size_note = f"{n_rows} rows, {n_columns} columns, {n_joint} joint outputs"
    cap_note = f"cap of {memory_bytes / 2**20:.0f} MiB"

    can = {"dual": objective.is_reducible, "cg": not objective.has_l1}
    working = ["auto", "primal", *(name for name, does in can.items() if does)]
    cure = f"Use solver={', '.join(map(repr, working[:-1]))} or {working[-1]!r}."
    if solver == "nystroem":
        raise ValueError(
            "solver='nystroem' approximates, and linear models are refitted exactly. "
            f"{cure}"
        )
    if solver == "dual" and not can["dual"]:
        raise ValueError(
            "solver='dual' needs one l2 penalty for all coefficients, and this model "
            f"has none or an l1 penalty. {cure}"
        )
    if solver == "cg" and not can["cg"]:
        raise ValueError(
            "solver='cg' cannot follow the coefficients that an l1 penalty sets to 0. "
            f"{cure}"
        )
    if solver != "auto":
        if needed.get(solver, 0.0) > memory_bytes:
            raise ValueError(
                f"solver={solver!r} needs {needed[solver] / 2**20:.0f} MiB for "
                f"{size_note}, over the {cap_note}. Use solver='auto', or raise "
                "sklearn.set_config(working_memory=...)."
            )
        return ConvexPlan(solver, "as requested")

    usable = ["primal", "dual"] if objective.is_reducible else ["primal"]
    fitting = [
        name
        for name in usable
        if needed[name] <= memory_bytes and sizes[name] <= _LARGEST
    ]
    if fitting:
        chosen = min(fitting, key=sizes.__getitem__)
        return ConvexPlan(chosen, f"smallest for {size_note}, under the {cap_note}")
    if objective.has_l1:
        raise ValueError(
            f"The Hessian of {size_note} needs {needed['primal'] / 2**20:.0f} MiB, "
            f"over the {cap_note}, and an l1 penalty cannot be solved without it. "
            "Select columns first (SelectFromModel), use an l2 penalty, or raise "
            "sklearn.set_config(working_memory=...)."
        )
    return ConvexPlan("cg", f"no Hessian fits the {cap_note}: {size_note}")
