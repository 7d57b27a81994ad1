"""The record of a training run: the recipe to replay it, and stored states."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from skattrib.engine._optimizers import (
    OPTIMIZERS,
    Optimizer,
    Rate,
    State,
    map_state,
    name_of,
    with_values,
)
from skattrib.engine._row_moments import moments_of_rows
from skattrib.exceptions import TrajectoryError

Record = Literal["recipe", "checkpoints", "states"]
#: (step from 0, number of steps) → factor on the learning rate.
Schedule = Callable[[int, int], float]

#: Version of the file format; 1 supported the states of Adam and SGD only.
_FORMAT = "2"

_WARM_UP = 0.1
# Options are below this: such whole numbers are exact in double precision.
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


# Errors that reading a damaged record may raise.
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


def _read_optimizer(options: Any) -> Optimizer:
    """Return the optimizer that a file names; raise ValueError if it is unknown."""
    name = options.pop("name")
    if name not in OPTIMIZERS:
        raise ValueError(
            f"its optimizer {name!r} is unknown; known are {sorted(OPTIMIZERS)}"
        )
    return OPTIMIZERS[name].from_options(options)


def _check_run(clip_norm: Any, n_before: Any) -> None:
    """Raise ValueError unless these are valid in a recipe."""
    clip = 0.0 if clip_norm is None else clip_norm
    if (
        type(clip) not in (int, float)
        or not 0 <= clip < _LARGEST
        or type(n_before) is not int
        or not 0 <= n_before < _LARGEST
    ):
        raise ValueError("its options are out of range")


# Arrays of a recipe that it may be without, kept under their own names.
_OPTIONAL = "decay_factors", "statistics", "average", "generator_states", "layout"


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a run, except the weights of the rows.

    Attributes
    ----------
    optimizer : Optimizer
    learning_rates : Tensor of shape (T,) or (T, G), float64, on the CPU
        One per step, with the schedule applied; with G groups of parameters, one per
        step and group.
    initial : Tensor of shape (P,)
        Parameters before the first step.
    batches : list of int arrays or None
        Ordered row indices of every step; None is the full batch each time.
    clip_norm : float or None
    n_before : int
        Steps that the optimizer had taken before the run.
    moments : NamedTuple of Tensor or None
        State of the optimizer before the run, each of shape (P,); None if it was new.
    decay : Tensor of shape (P,) or None
        Weight decay of every parameter, if they differ.
    decay_factors : Tensor of shape (T,) or None
        Factor of each step on `decay`, if steps decay differently.
    groups : int64 Tensor of shape (P,) or None
        Group of every parameter, if groups have learning rates of their own.
    statistics : Tensor of shape (B,) or None
        Running statistics of batch normalisation before the first step.
    seed : int
        Of the random numbers that layers draw.
    generator_states : uint8 Tensor of shape (T, S) or (T, K, S) or None
        States of torch's generator before each forward pass, of a loop that draws; of
        one that accumulates gradients, K passes of equal parts make a step.
    layout : int64 Tensor of shape (R, 3) or None
        Of each row of each step, the pass of its step that it was in, the width of that
        pass's batch, and where the row began in it: of loops whose parts differ, or pad
        rows of different length.
    average : Tensor of shape (T + 1,) or None
        Share of the state after each number of steps in the model that answers
        queries; None takes the last one.
    """

    optimizer: Optimizer
    learning_rates: Tensor = field(repr=False)
    initial: Tensor = field(repr=False)
    batches: list[np.ndarray] | None = field(default=None, repr=False)
    clip_norm: float | None = None
    n_before: int = 0
    moments: State | None = field(default=None, repr=False)
    decay: Tensor | None = field(default=None, repr=False)
    groups: Tensor | None = field(default=None, repr=False)
    decay_factors: Tensor | None = field(default=None, repr=False)
    statistics: Tensor | None = field(default=None, repr=False)
    seed: int = 0
    average: Tensor | None = field(default=None, repr=False)
    generator_states: Tensor | None = field(default=None, repr=False)
    layout: Tensor | None = field(default=None, repr=False)

    @property
    def draws_again(self) -> dict[int, tuple[Tensor, Tensor | None]] | None:
        """What each step draws again, as `FunctionalModule` takes it."""
        if self.generator_states is None:
            return None
        states, layouts = self.generator_states, [None] * self.n_steps
        if self.layout is not None:
            layouts = self.layout.split([len(rows) for rows in self.batches or []])
        pairs = zip(states, layouts, strict=True)
        return dict(enumerate(pairs, start=self.n_before + 1))

    @property
    def start(self) -> Tensor:
        """Parameters and running statistics before the first step, (P + B,)."""
        if self.statistics is None:
            return self.initial
        return torch.cat([self.initial, self.statistics])

    def optimizer_on(self, X: Tensor) -> Optimizer:
        """Return the optimizer, with tensors of the dtype and device of X."""
        if self.decay is None:
            return self.optimizer
        return replace(self.optimizer, weight_decay=self.decay.to(X))

    def at_step(self, optimizer: Optimizer, t: int) -> Optimizer:
        """Return the optimizer of a run with the weight decay of step t (from 1)."""
        if self.decay_factors is None:
            return optimizer
        decay = cast(Tensor, optimizer.weight_decay)
        return replace(optimizer, weight_decay=decay * float(self.decay_factors[t - 1]))

    def with_statistics(self, statistics: Tensor) -> Recipe:
        """Return the recipe; if it has none, with these, which training left alone.

        Runs of other loops, and those of older records, have batch normalisation in
        evaluation mode only.
        """
        if self.statistics is not None or not len(statistics):
            return self
        return replace(self, statistics=statistics.cpu())

    def cut(self, n_steps: int, average: Tensor | None = None) -> Recipe:
        """Return the first steps of the run, and how their states are averaged."""
        return replace(
            self,
            learning_rates=self.learning_rates[:n_steps],
            batches=None if self.batches is None else self.batches[:n_steps],
            decay_factors=(
                None if self.decay_factors is None else self.decay_factors[:n_steps]
            ),
            average=average,
            generator_states=(
                None
                if self.generator_states is None
                else self.generator_states[:n_steps]
            ),
            layout=(
                None
                if self.layout is None
                else self.layout[: sum(map(len, (self.batches or [])[:n_steps]))]
            ),
        )

    @property
    def n_steps(self) -> int:
        """Number of optimizer steps."""
        return len(self.learning_rates)

    @property
    def path_length(self) -> float:
        """Sum of the step sizes of the whole run; the mean of its parameters."""
        rates = self.learning_rates
        if self.groups is not None:
            rates = rates @ self._shares_of_groups
        return self.optimizer.path_length(rates)

    @property
    def relative_rates(self) -> Tensor | None:
        """Sum of the learning rates of every parameter (P,), 1 on average, or None."""
        if self.groups is None:
            return None
        totals = self.learning_rates.sum(dim=0)
        return (totals / (totals @ self._shares_of_groups))[self.groups]

    @property
    def _shares_of_groups(self) -> Tensor:
        """Return the share of the parameters that each group has."""
        n_groups = self.learning_rates.shape[1]
        counts = torch.bincount(cast(Tensor, self.groups), minlength=n_groups)
        return counts.to(self.learning_rates) / counts.sum()

    def step(self, t: int, device: torch.device) -> tuple[Rate, Tensor | None]:
        """Return learning rate and row indices of step t (from 1); None is all rows."""
        rate: Rate
        if self.groups is None:
            rate = float(self.learning_rates[t - 1])
        else:
            rate = self.learning_rates[t - 1].to(self.initial.dtype)[self.groups]
            rate = rate.to(device)
        if self.batches is None:
            return rate, None
        return rate, torch.as_tensor(self.batches[t - 1], device=device)

    def options(self) -> str:
        """Return everything except the arrays, as JSON."""
        optimizer = {"name": name_of(self.optimizer), **self.optimizer.options()}
        seed = [self.seed] if self.seed else []
        return json.dumps([optimizer, self.clip_norm, self.n_before, *seed])

    def tensors(self) -> dict[str, Tensor]:
        """Return the arrays, with the minibatches concatenated."""
        tensors = {"learning_rates": self.learning_rates, "initial": self.initial}
        if self.batches is not None:
            tensors["rows"] = torch.tensor(np.concatenate(self.batches))
            tensors["batch_sizes"] = torch.tensor([len(rows) for rows in self.batches])
        if self.moments is not None:
            tensors |= _named("moments", self.moments)
        if self.decay is not None:
            tensors["decay"] = self.decay
        if self.groups is not None:
            tensors["groups"] = self.groups
        for name in _OPTIONAL:
            if (value := getattr(self, name)) is not None:
                tensors[name] = value
        return tensors

    @classmethod
    def from_tensors(cls, options: str, tensors: dict[str, Tensor]) -> Recipe:
        """Return the recipe from what `options` and `tensors` returned."""
        named, clip_norm, n_before, *rest = json.loads(options)
        seed = rest[0] if rest else 0
        if type(seed) is not int or not 0 <= seed < _LARGEST:
            raise ValueError("its seed is out of range")
        optimizer = _read_optimizer(named)
        _check_run(clip_norm, n_before)
        batches = None
        if "rows" in tensors:
            ends = tensors["batch_sizes"].cumsum(0)[:-1].numpy()
            batches = np.split(tensors["rows"].numpy(), ends)

        moments = None
        if any(name.startswith("moments/") for name in tensors):
            moments = _state_of(optimizer, tensors, "moments")
        return cls(
            optimizer,
            tensors["learning_rates"],
            tensors["initial"],
            batches,
            clip_norm,
            n_before,
            moments,
            tensors.get("decay"),
            tensors.get("groups"),
            seed=seed,
            **{name: tensors.get(name) for name in _OPTIONAL},
        )

    def _has_all_rates(self) -> bool:
        """Return whether there is a learning rate for every step and parameter."""
        rates, groups = self.learning_rates, self.groups
        if groups is None:
            return rates.ndim == 1
        return (
            rates.ndim == 2
            and groups.dtype == torch.int64
            and groups.shape == self.initial.shape
            and bool(((groups >= 0) & (groups < rates.shape[1])).all())
        )

    def digest(self, X: Tensor, targets: Tensor) -> str:
        """Return a hash of this recipe and the data it is for."""
        data = {"X": X, "targets": targets, **self.tensors()}
        return _digest(data, self.options().encode())


@dataclass(frozen=True)
class TrainingState:
    """Parameters and running statistics (M, P + B), optimizer state after a step."""

    params: Tensor
    optimizer: State

    def to(self, target: Tensor | torch.device) -> TrainingState:
        """Return the state on a device, or with the dtype and device of a tensor."""
        return self._map(lambda value: value.to(target))

    def cpu(self) -> TrainingState:
        """Return the state on the CPU."""
        return self.to(torch.device("cpu"))

    def __getitem__(self, runs: slice) -> TrainingState:
        """Return the state of some of the runs."""
        return self._map(lambda value: value[runs])

    def _map(self, function: Callable[[Tensor], Tensor]) -> TrainingState:
        return TrainingState(function(self.params), map_state(function, self.optimizer))


@dataclass(frozen=True)
class Trajectory:
    """Record of the training of a fitted wrapper.

    Attributes
    ----------
    recipe : Recipe
    row_weights : Tensor of shape (n,)
        The sample weights of the run.
    denominator : Tensor of shape (P,) or None
        Divisor of the optimizer's last step; None if it does not divide (SGD).
    states : dict of int to TrainingState
        States after the steps that ``record`` stores; 0 is the start.
    rows : Tensor or None
        What `moments_of_rows` says of those of the run; None if it is not known.
    """

    recipe: Recipe
    row_weights: Tensor
    denominator: Tensor | None = None
    states: dict[int, TrainingState] = field(default_factory=dict)
    rows: Tensor | None = None

    def save(self, path: str | os.PathLike[str], X: Tensor, targets: Tensor) -> None:
        """Write a safetensors file, and with it the digest of the data.

        It is written beside ``path`` and renamed: a crash leaves the old file or the
        new one.

        Raises
        ------
        OSError
            If the disk is full or read-only; the old file is kept.
        """
        tensors = self.recipe.tensors() | {"row_weights": self.row_weights}
        if self.denominator is not None:
            tensors["denominator"] = self.denominator

        for t, state in self.states.items():
            tensors[f"state/{t}/params"] = state.params
            tensors |= _named(f"state/{t}/optimizer", state.optimizer)

        metadata = {
            "format": _FORMAT,
            "options": self.recipe.options(),
            "digest": self.recipe.digest(X, targets),
            "contents": _digest(tensors),
        }
        path = Path(path)
        temporary = path.with_name(f"{path.name}.{os.getpid()}.part")

        try:
            write_tensors(temporary, tensors, metadata)
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], X: Tensor, targets: Tensor
    ) -> Trajectory:
        """Read what `save` wrote; nothing in the file is executed.

        Raises
        ------
        TrajectoryError
            If it is not a record, damaged, of an older format, or of other data.
        """
        name = os.fspath(path)
        no_record = f"{os.fspath(path)} holds no training record"
        if os.path.exists(path) and not os.path.isfile(path):
            raise TrajectoryError(f"{no_record}: it is not a file.")

        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}
            _check_format(name, metadata)
            recipe = Recipe.from_tensors(metadata["options"], tensors)
            same = metadata["digest"] == recipe.digest(X, targets)
        except (FileNotFoundError, TrajectoryError):
            raise
        except _MALFORMED as error:
            raise TrajectoryError(
                f"{name} holds no training record: {error}."
            ) from error

        if not same:
            raise TrajectoryError(
                f"{name} is the record of a training on other data, or damaged: X and "
                "y must be those of the run, in the same order and dtype. Fit again, "
                "or load the data of that run."
            )

        try:
            trajectory = cls._from_tensors(recipe, tensors)
            fault = trajectory._find_fault(len(X))
            if metadata.get("contents") != _digest(tensors):
                fault = "its contents have changed since it was written"
        except _MALFORMED as error:
            fault = str(error)

        if fault:
            raise TrajectoryError(
                f"{name} is damaged: {fault}. Train and save the run again."
            )
        rows = moments_of_rows(X, targets, trajectory.row_weights)
        return replace(trajectory, rows=rows)

    @classmethod
    def _from_tensors(cls, recipe: Recipe, tensors: dict[str, Tensor]) -> Trajectory:
        steps = {int(name.split("/")[1]) for name in tensors if name[:6] == "state/"}
        states = {}
        for t in sorted(steps):
            moments = _state_of(recipe.optimizer, tensors, f"state/{t}/optimizer")
            states[t] = TrainingState(tensors[f"state/{t}/params"], moments)
        return cls(recipe, tensors["row_weights"], tensors.get("denominator"), states)

    def _find_fault(self, n_rows: int) -> str | None:
        """Return what is wrong with a record of a run on ``n_rows`` rows, or None."""
        fault, given = self._find_fault_of_sizes()
        if fault:
            return fault
        recipe = self.recipe
        given += [self.row_weights, recipe.learning_rates]
        factors = recipe.decay_factors
        if factors is not None:
            given.append(factors)
            if recipe.decay is None or factors.shape != recipe.learning_rates.shape[:1]:
                return "it does not have a weight decay for each step and parameter"
        if any(t.dtype not in (torch.float32, torch.float64) for t in given):
            return "it has numbers that are neither float32 nor float64"
        if self.row_weights.shape != (n_rows,) or not recipe._has_all_rates():
            return "it does not have one weight for each row and one rate for each step"
        if recipe.batches is not None and len(recipe.batches) != recipe.n_steps:
            return f"it has {len(recipe.batches)} minibatches, {recipe.n_steps} steps"

        for rows in recipe.batches or []:
            known = rows.dtype == np.int64 and rows.ndim == 1 and len(rows) > 0
            if not known or not 0 <= rows.min() <= rows.max() < n_rows:
                return "its minibatches are empty or hold rows that X does not have"
        if any(not 0 <= t <= recipe.n_steps for t in self.states):
            return "it has states after its last step"
        return None

    def _find_fault_of_sizes(self) -> tuple[str | None, list[Tensor]]:
        """Return what is wrong with the sizes of arrays, or None; and the arrays."""
        differ = "its parameters and its states differ in size"
        recipe, size = self.recipe, self.recipe.initial.shape
        tensors = [recipe.initial, recipe.decay, self.denominator]
        tensors += [] if recipe.moments is None else recipe.moments
        whole = recipe.start.shape
        for state in self.states.values():
            tensors += [m[0] for m in state.optimizer]
        given = [t for t in tensors if t is not None]
        if len(size) != 1 or any(t.shape != size for t in given):
            return differ, given
        if any(state.params[0].shape != whole for state in self.states.values()):
            return differ, given
        given += [state.params[0] for state in self.states.values()]
        if recipe.average is not None:
            given.append(recipe.average)
            if recipe.average.shape != (recipe.n_steps + 1,):
                return "its average does not have one share for each state", given
        drawn = recipe.generator_states
        if drawn is not None and (
            drawn.dtype != torch.uint8 or drawn.shape[:1] != (recipe.n_steps,)
        ):
            return "it does not have one state of the generator for each step", given
        layout = recipe.layout
        n_drawn = sum(map(len, recipe.batches or []))
        if layout is not None and (
            drawn is None or layout.dtype != torch.int64 or layout.shape != (n_drawn, 3)
        ):
            return "it does not tell the pass of each row of each step", given
        return None, given


def _check_format(name: str, metadata: Mapping[str, str]) -> None:
    """Raise TrajectoryError if a record was written by another version."""
    version = metadata.get("format", "1")
    if {"options", "digest"} <= set(metadata) and version != _FORMAT:
        raise TrajectoryError(
            f"{name} is a training record of format {version[:20]}; this version of "
            f"skattrib reads format {_FORMAT}. Train and save the run again, or read "
            "it with the version that wrote it."
        )


def _named(prefix: str, state: State) -> dict[str, Tensor]:
    """Return the parts of an optimizer's state by the names of its fields."""
    kind: Any = type(state)
    return {
        f"{prefix}/{name}": value
        for name, value in zip(kind._fields, state, strict=True)
    }


def _state_of(
    optimizer: Optimizer, tensors: Mapping[str, Tensor], prefix: str
) -> State:
    """Return the state whose parts `_named` returned."""
    template = optimizer.initial_state(tensors["initial"])
    kind: Any = type(template)
    return with_values(template, [tensors[f"{prefix}/{name}"] for name in kind._fields])


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file; raise OSError where it cannot be written."""
    # copies: safetensors refuses tensors that share memory
    copies = {k: v.detach().cpu().clone() for k, v in tensors.items()}
    try:
        save_file(copies, path, metadata)
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


def exponential_average(n_steps: int, decay: float) -> Tensor:
    """Return the shares (T + 1,) of the states in an exponential moving average.

    It begins after the first step, as ``torch.optim.swa_utils.AveragedModel`` with
    ``get_ema_multi_avg_fn(decay)``, updated after each step.
    """
    shares = decay ** torch.arange(n_steps, -1, -1, dtype=torch.float64)
    shares[2:] *= 1.0 - decay
    shares[0] = 0.0
    return shares


def steps_to_keep(record: Record, n_steps: int) -> set[int]:
    """Return the steps whose states ``record`` stores."""
    if record == "states":
        return set(range(n_steps + 1))
    if record == "checkpoints":
        return set(range(0, n_steps + 1, max(1, round(n_steps**0.5))))
    return set()


def epoch_batches(
    n_rows: int, batch_size: int | None, n_epochs: int, seed: int
) -> list[np.ndarray] | None:
    """Draw the ordered minibatches of a run; None if every step takes all rows."""
    if batch_size is None or batch_size >= n_rows:
        return None
    rng = np.random.RandomState(seed)
    cuts = range(batch_size, n_rows, batch_size)
    return [
        rows
        for _ in range(n_epochs)
        for rows in np.split(rng.permutation(n_rows), cuts)
    ]
