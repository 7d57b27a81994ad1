"""The record of a training run: the recipe that replays it, and kept states."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from skattrib.engine._optim import Optimizer, OptimizerState
from skattrib.exceptions import TrajectoryError

Record = Literal["recipe", "checkpoints", "states"]
#: (step from 0, number of steps) → factor on the learning rate.
Schedule = Callable[[int, int], float]

_WARM_UP = 0.1
# What options may be: a whole number below this is one in double precision.
_LARGEST = 2**53


def _constant(step: int, n_steps: int) -> float:
    return 1.0


def _cosine(step: int, n_steps: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * step / n_steps))


def _linear_warmup(step: int, n_steps: int) -> float:
    """Rise over the first tenth of the steps, then fall linearly to zero."""
    warm = max(1, round(_WARM_UP * n_steps))
    if step < warm:
        return (step + 1) / warm
    return (n_steps - step) / max(1, n_steps - warm)


# What reading a damaged record may run into.
_MALFORMED = (
    SafetensorError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,  # of torch, and RecursionError of json
)

SCHEDULES: dict[str, Schedule] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear_warmup": _linear_warmup,
}


def _check_options(optimizer: dict[str, Any], clip_norm: Any, n_before: Any) -> None:
    """Raise ValueError unless a recipe can have these."""
    shares = [*optimizer["betas"], optimizer["momentum"]]
    numbers = [optimizer["weight_decay"], optimizer["eps"], *shares]
    numbers.append(0.0 if clip_norm is None else clip_norm)
    if (
        optimizer["name"] not in ("adamw", "adam", "sgd")
        or type(optimizer["nesterov"]) is not bool
        or len(shares) != 3
        or not all(type(v) in (int, float) and 0 <= v < _LARGEST for v in numbers)
        or any(v >= 1 for v in shares)
        or type(n_before) is not int
        or not 0 <= n_before < _LARGEST
    ):
        raise ValueError("its options are impossible")


@dataclass(frozen=True)
class Recipe:
    """Everything that fixes a run except the weights of the rows.

    Attributes
    ----------
    optimizer : Optimizer
    learning_rates : Tensor of shape (T,), float64, on the CPU
        One per step, the schedule applied.
    initial : Tensor of shape (P,)
        Parameters before the first step.
    batches : list of int arrays or None
        Ordered row indices of every step; None is the full batch each time.
    clip_norm : float or None
    n_before : int
        Steps that the optimizer had taken before the run.
    moments : OptimizerState or None
        Its state then, each of shape (P,); None is that of a new optimizer.
    decay : Tensor of shape (P,) or None
        Weight decay of every parameter, where they differ.
    """

    optimizer: Optimizer
    learning_rates: Tensor = field(repr=False)
    initial: Tensor = field(repr=False)
    batches: list[np.ndarray] | None = field(default=None, repr=False)
    clip_norm: float | None = None
    n_before: int = 0
    moments: OptimizerState | None = field(default=None, repr=False)
    decay: Tensor | None = field(default=None, repr=False)

    def optimizer_on(self, X: Tensor) -> Optimizer:
        """Return the optimizer, with tensors where X is."""
        if self.decay is None:
            return self.optimizer
        return replace(self.optimizer, weight_decay=self.decay.to(X))

    @property
    def n_steps(self) -> int:
        """Number of optimizer steps."""
        return len(self.learning_rates)

    @property
    def path_length(self) -> float:
        """Sum of the step sizes of the whole run."""
        return self.optimizer.path_length(self.learning_rates)

    def step(self, t: int, device: torch.device) -> tuple[float, Tensor | None]:
        """Return learning rate and row indices, None for all, of step t (from 1)."""
        rate = float(self.learning_rates[t - 1])
        if self.batches is None:
            return rate, None
        return rate, torch.as_tensor(self.batches[t - 1], device=device)

    def options(self) -> str:
        """Return what is not an array, as JSON."""
        return json.dumps([asdict(self.optimizer), self.clip_norm, self.n_before])

    def tensors(self) -> dict[str, Tensor]:
        """Return the arrays, the minibatches end to end."""
        found = {"learning_rates": self.learning_rates, "initial": self.initial}
        if self.batches is not None:
            found["rows"] = torch.tensor(np.concatenate(self.batches))
            found["batch_sizes"] = torch.tensor([len(rows) for rows in self.batches])
        if self.moments is not None:
            found["first"], found["second"] = self.moments
        if self.decay is not None:
            found["decay"] = self.decay
        return found

    @classmethod
    def from_tensors(cls, options: str, tensors: dict[str, Tensor]) -> Recipe:
        """Undo `options` and `tensors`."""
        optimizer, clip_norm, n_before = json.loads(options)
        _check_options(optimizer, clip_norm, n_before)
        optimizer["betas"] = tuple(optimizer["betas"])
        batches = None
        if "rows" in tensors:
            ends = tensors["batch_sizes"].cumsum(0)[:-1].numpy()
            batches = np.split(tensors["rows"].numpy(), ends)
        moments = None
        if "first" in tensors:
            moments = OptimizerState(tensors["first"], tensors["second"])
        return cls(
            Optimizer(**optimizer),
            tensors["learning_rates"],
            tensors["initial"],
            batches,
            clip_norm,
            n_before,
            moments,
            tensors.get("decay"),
        )

    def digest(self, X: Tensor, targets: Tensor) -> str:
        """Return a hash of this recipe and the data it is for."""
        data = {"X": X, "targets": targets, **self.tensors()}
        return _digest(data, self.options().encode())


@dataclass(frozen=True)
class TrainingState:
    """Parameters (M, P) and optimizer state after a step."""

    params: Tensor
    optimizer: OptimizerState

    def to(self, target: Tensor | torch.device) -> TrainingState:
        """Return the state where ``target`` is, in its dtype if it is a tensor."""
        return self._map(lambda value: value.to(target))

    def cpu(self) -> TrainingState:
        """Return the state on the CPU."""
        return self.to(torch.device("cpu"))

    def __getitem__(self, runs: slice) -> TrainingState:
        """Return the state of some of the runs."""
        return self._map(lambda value: value[runs])

    def _map(self, function: Callable[[Tensor], Tensor]) -> TrainingState:
        moments = OptimizerState(*map(function, self.optimizer))
        return TrainingState(function(self.params), moments)


@dataclass(frozen=True)
class Trajectory:
    """What a fitted wrapper remembers of its training.

    Attributes
    ----------
    recipe : Recipe
    row_weights : Tensor of shape (n,)
        The sample weights of the run.
    second_moment : Tensor of shape (P,) or None
        Bias-corrected second moment of the gradient at the end (Adam, AdamW).
    states : dict of int to TrainingState
        States after the steps kept by ``record``; 0 is the start.
    """

    recipe: Recipe
    row_weights: Tensor
    second_moment: Tensor | None = None
    states: dict[int, TrainingState] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str], X: Tensor, targets: Tensor) -> None:
        """Write a safetensors file, and with it the digest of the data.

        It is written beside ``path`` and renamed: after a crash there is the old file
        or the new one.

        Raises
        ------
        OSError
            If the disk is full or read-only; the old file stays.
        """
        tensors = self.recipe.tensors() | {"row_weights": self.row_weights}
        if self.second_moment is not None:
            tensors["second_moment"] = self.second_moment
        for t, state in self.states.items():
            tensors[f"state/{t}/params"] = state.params
            tensors[f"state/{t}/first"] = state.optimizer.first
            tensors[f"state/{t}/second"] = state.optimizer.second
        metadata = {
            "options": self.recipe.options(),
            "digest": self.recipe.digest(X, targets),
            "contents": _digest(tensors),
        }
        path = Path(path)
        beside = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            write_tensors(beside, tensors, metadata)
            with open(beside, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], X: Tensor, targets: Tensor
    ) -> Trajectory:
        """Read what `save` wrote; nothing in the file is run.

        Raises
        ------
        TrajectoryError
            If it is damaged, no such file, or of other data.
        """
        name, no_record = os.fspath(path), f"{os.fspath(path)} holds no training record"
        if os.path.exists(path) and not os.path.isfile(path):
            raise TrajectoryError(f"{no_record}: it is no file.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}
            recipe = Recipe.from_tensors(metadata["options"], tensors)
            same = metadata["digest"] == recipe.digest(X, targets)
        except FileNotFoundError:
            raise
        except _MALFORMED as error:
            raise TrajectoryError(
                f"{name} holds no training record: {error}."
            ) from error
        if not same:
            raise TrajectoryError(
                f"{name} is the record of a training on other data, or damaged: X and "
                "y must be those that the run was fitted on, in the same order and "
                "dtype. Fit again, or load the data of that run."
            )
        try:
            found = cls._from_tensors(recipe, tensors)
            wrong = found._find_fault(len(X))
            if metadata.get("contents") != _digest(tensors):
                wrong = "its contents have changed since it was written"
        except _MALFORMED as error:
            wrong = str(error)
        if wrong:
            raise TrajectoryError(
                f"{name} is damaged: {wrong}. Train and save the run again."
            )
        return found

    @classmethod
    def _from_tensors(cls, recipe: Recipe, tensors: dict[str, Tensor]) -> Trajectory:
        steps = {int(name.split("/")[1]) for name in tensors if name[:6] == "state/"}
        states = {}
        for t in sorted(steps):
            params, first, second = (
                tensors[f"state/{t}/{part}"] for part in ("params", "first", "second")
            )
            states[t] = TrainingState(params, OptimizerState(first, second))
        return cls(recipe, tensors["row_weights"], tensors.get("second_moment"), states)

    def _find_fault(self, n_rows: int) -> str | None:
        """Say what no run on as many rows can have left; None if there is nothing."""
        recipe, size = self.recipe, self.recipe.initial.shape
        held = [recipe.initial, recipe.decay, self.second_moment]
        held += [] if recipe.moments is None else recipe.moments
        for state in self.states.values():
            held += [state.params[0], *(m[0] for m in state.optimizer if m.numel())]
        present = [t for t in held if t is not None and t.numel()]
        if len(size) != 1 or any(t.shape != size for t in present):
            return "its parameters and its states differ in size"
        present += [self.row_weights, recipe.learning_rates]
        if any(t.dtype not in (torch.float32, torch.float64) for t in present):
            return "it has numbers of another kind than float32 and float64"
        if self.row_weights.shape != (n_rows,) or recipe.learning_rates.ndim != 1:
            return "it has not one weight for every row and one rate for every step"
        if recipe.batches is not None and len(recipe.batches) != recipe.n_steps:
            return f"it has {len(recipe.batches)} minibatches, {recipe.n_steps} steps"
        for rows in recipe.batches or []:
            known = rows.dtype == np.int64 and rows.ndim == 1 and len(rows) > 0
            if not known or not 0 <= rows.min() <= rows.max() < n_rows:
                return "its minibatches are empty or hold rows that X does not have"
        if any(not 0 <= t <= recipe.n_steps for t in self.states):
            return "it has states after its last step"
        return None


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file; raise OSError where it cannot be written."""
    # copies: safetensors takes no views of one another
    held = {k: v.detach().cpu().clone() for k, v in tensors.items()}
    try:
        save_file(held, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def _digest(tensors: dict[str, Tensor], start: bytes = b"") -> str:
    """Return a hash of named arrays."""
    digest = hashlib.sha256(start)
    for name, value in sorted(tensors.items()):
        array = value.detach().cpu().contiguous().numpy()
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def steps_to_keep(record: Record, n_steps: int) -> set[int]:
    """Return the steps whose states ``record`` keeps."""
    if record == "states":
        return set(range(n_steps + 1))
    if record == "checkpoints":
        return set(range(0, n_steps + 1, max(1, round(n_steps**0.5))))
    return set()


def epoch_batches(
    n_rows: int, batch_size: int | None, n_epochs: int, seed: int
) -> list[np.ndarray] | None:
    """Draw the ordered minibatches of a run; None where every step takes all rows."""
    if batch_size is None or batch_size >= n_rows:
        return None
    rng = np.random.RandomState(seed)
    cuts = range(batch_size, n_rows, batch_size)
    return [
        rows
        for _ in range(n_epochs)
        for rows in np.split(rng.permutation(n_rows), cuts)
    ]
