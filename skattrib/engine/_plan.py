"""Which space to solve the linearised model in: the cheapest that fits the memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Solver = Literal["auto", "dual", "primal", "cg"]

# Conjugate gradients, which need the least, may always have this many bytes.
_NEVER_REFUSED = 2.0**26


@dataclass(frozen=True)
class Plan:
    """Which space to solve in, and why."""

    solver: str
    reason: str


def _costs(
    n_rows: int, n_outputs: int, n_params: int, n_steps: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the numbers that each space holds, and the work of those that factor."""
    size = n_rows * n_outputs
    numbers = {
        "primal": 2.0 * size * n_params + 3.0 * n_params**2 + n_steps * n_params,
        # kernel, T, its factor, and what factoring or solving copies
        "dual": 5.0 * size**2 + n_steps * size,
        "cg": 16.0 * size + n_params + n_steps * size,
    }
    work = {
        "primal": 2.0 * size * n_params**2 + n_params**3 / 3,
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
    gradient_bytes: float = 0.0,
    n_steps: int = 0,
) -> Plan:
    """Choose the cheapest space that fits the memory cap.

    Parameters
    ----------
    n_rows, n_outputs, n_params, itemsize : int
    memory_bytes : float
        The cap.
    solver : {"auto", "dual", "primal", "cg"}
    gradient_bytes : float
        What the gradients of the rows hold.
    n_steps : int
        Steps that will be kept.

    Raises
    ------
    ValueError
        If the space asked for by name does not fit, or none.
    """
    size = n_rows * n_outputs
    numbers, work = _costs(n_rows, n_outputs, n_params, n_steps)
    needed = {name: gradient_bytes + itemsize * v for name, v in numbers.items()}
    fitting = [name for name in work if needed[name] <= memory_bytes]
    found: str = solver
    if solver == "auto":
        found = min(fitting, key=work.__getitem__) if fitting else "cg"
    limit = max(memory_bytes, _NEVER_REFUSED) if found == "cg" else memory_bytes
    sizes = f"n·C = {size}, P = {n_params}"
    cap = f"cap of {memory_bytes / 2**20:.0f} MiB"
    if needed[found] > limit:
        cure = "Use solver='auto' or 'cg'" if found != "cg" else "Take fewer rows"
        raise ValueError(
            f"solver={found!r} needs {needed[found] / 2**20:.0f} MiB for {sizes} and "
            f"{gradient_bytes / 2**20:.0f} MiB of gradients, over the {cap}. {cure}, "
            "or raise sklearn.set_config(working_memory=...)."
        )
    sizes += f" and {gradient_bytes / 2**20:.0f} MiB of gradients"
    if solver != "auto":
        return Plan(found, "asked for")
    if not fitting:
        return Plan(found, f"dual and primal are both over the memory {cap}: {sizes}")
    return Plan(found, f"cheapest for {sizes}, under the memory {cap}")
