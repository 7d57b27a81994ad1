"""What an optimizer is: a state, and one pure step with its two derivatives.

A class owes `initial_state` and `step`. The transposed Jacobian of the step and its
forward derivatives come from autograd; a class that knows them in closed form
overrides `pullback` and `pushforward`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap

from skattrib.engine._optimizers._options import number

#: A named tuple of tensors, each of the shape of the parameters.
State = tuple[Tensor, ...]
#: The learning rate of a step: one, or one for every parameter (P,).
Rate = float | Tensor

# torch.nn.utils.clip_grad_norm_ divides by the norm plus this.
_CLIP_EPS = 1e-6


class NoState(NamedTuple):
    """The state of an optimizer that remembers nothing."""


class StepDerivative(NamedTuple):
    """Derivatives of something in, or of, parameters and optimizer state."""

    params: Tensor
    state: State


def with_values(state: State, values: Iterable[Tensor]) -> State:
    """Return a state of the same kind with other values."""
    kind: Any = type(state)
    made: State = kind(*values)
    return made


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """Apply a function to each part of a state."""
    return with_values(state, map(function, state))


def clip_gradient(grad: Tensor, max_norm: float | None) -> Tensor:
    """Scale each model's gradient to norm at most ``max_norm``."""
    if max_norm is None:
        return grad
    norm = grad.norm(dim=-1, keepdim=True)
    return grad * (max_norm / (norm + _CLIP_EPS)).clamp(max=1.0)


# ------------------------------------------------------------------- protocol
@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """An optimizer of flat parameters: its options, and one pure step.

    Derive from it, decorated as a frozen dataclass whose fields are the options, to add
    one: `initial_state` and `step` are all that is needed. The learning rate is no
    option: it comes with each step.

    Parameters
    ----------
    weight_decay : float or None, default=None
        Strength of the decay; how it acts is up to the step. None takes that of the
        estimator.

    Attributes
    ----------
    from_estimator : tuple of str
        Options for which an estimator has a parameter of the same name.
    torch_class : type or None
        The optimizer of torch that takes the same steps, for `record_training`. Its
        options have the same names.
    torch_state : dict of str to str
        Where that one keeps what the fields of the state hold.
    leaves_others : bool
        Whether it takes some parameters only, and leaves the others to another.

    See Also
    --------
    skattrib.optimizers.RMSprop : One that is given by its step alone.

    Notes
    -----
    Parameters have the shape (P,), or (M, P) where M models are trained at once: a step
    acts on the last axis and leaves others alone. It must not write into its arguments,
    and is made of operations that torch can differentiate. Where it divides by
    something that gradients make, it divides by ``self.denominator(...)``: parameters
    that have hardly had a gradient are held still there, while derivatives are taken.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from typing import NamedTuple
    >>> import torch
    >>> from skattrib.optimizers import Optimizer
    >>> class Average(NamedTuple):
    ...     mean: torch.Tensor
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Signed(Optimizer):
    ...     beta: float = 0.9
    ...     def initial_state(self, params):
    ...         return Average(torch.zeros_like(params))
    ...     def step(self, params, grad, state, t, learning_rate):
    ...         mean = self.beta * state.mean + (1 - self.beta) * grad
    ...         return params - learning_rate * mean.tanh(), Average(mean)
    >>> Signed(beta=0.5)
    Signed(weight_decay=None, beta=0.5)
    """

    weight_decay: float | Tensor | None = None

    from_estimator: ClassVar[tuple[str, ...]] = ()
    torch_class: ClassVar[type | None] = None
    torch_state: ClassVar[Mapping[str, str]] = {}
    leaves_others: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuse options that are out of range."""
        if not (self.weight_decay is None or isinstance(self.weight_decay, Tensor)):
            decay = number(self, "weight_decay", self.weight_decay)
            self._set(weight_decay=decay)

    def _set(self, **options: Any) -> None:
        """Write options in their final type, while the instance is made."""
        for name, value in options.items():
            object.__setattr__(self, name, value)

    @property
    def _decay(self) -> float | Tensor:
        return 0.0 if self.weight_decay is None else self.weight_decay

    @property
    def _decays(self) -> bool:
        """Whether parameters decay."""
        return isinstance(self._decay, Tensor) or self._decay != 0

    # ------------------------------------------------------------------- step
    def initial_state(self, params: Tensor) -> State:
        """Return the state before the first step.

        Parameters
        ----------
        params : Tensor of shape (..., P)
            The parameters then.

        Returns
        -------
        NamedTuple of Tensor
            As many as the optimizer needs, each of the shape of the parameters.
        """
        raise NotImplementedError

    def step(
        self, params: Tensor, grad: Tensor, state: State, t: int, learning_rate: Rate
    ) -> tuple[Tensor, State]:
        """Take a step.

        Parameters
        ----------
        params : Tensor of shape (..., P)
            Before the step.
        grad : Tensor of shape (..., P)
            Gradient there.
        state : NamedTuple of Tensor
            Before the step.
        t : int
            Number of the step, from 1.
        learning_rate : float or Tensor of shape (P,)
            Of this step; a tensor where groups of parameters have their own.

        Returns
        -------
        params : Tensor of shape (..., P)
            After the step.
        state : NamedTuple of Tensor
            After the step.
        """
        raise NotImplementedError

    def denominator(self, state: State, t: int) -> Tensor | None:
        """Return what a step divides by.

        The damping of `DualInfluence` follows it, and runs on subsets hold parameters
        still that it says have hardly had a gradient.

        Parameters
        ----------
        state : NamedTuple of Tensor
            After the step.
        t : int
            Number of the step, from 1.

        Returns
        -------
        Tensor of shape (..., P) or None
            None if the step divides by nothing that gradients make. Then no parameter
            is held still, and ``metric="optimizer"`` is the identity.
        """
        return None

    def path_length(self, learning_rates: Tensor) -> float:
        """Return how far a unit gradient carries in a whole run.

        Parameters
        ----------
        learning_rates : Tensor of shape (T,)
            Of the steps.

        Returns
        -------
        float
            Sum of the step sizes, momentum included.
        """
        return float(learning_rates.sum())

    def bound(self, module: nn.Module) -> Self:
        """Return the optimizer for the parameters of a module.

        Parameters
        ----------
        module : nn.Module
            Its parameters that need a gradient are the flat vector, in their order.

        Returns
        -------
        Optimizer
            Itself, unless a step depends on what the parameters are.
        """
        return self

    # ------------------------------------------------------------ derivatives
    def pullback(
        self,
        params: Tensor,
        grad: Tensor,
        state: State,
        t: int,
        learning_rate: Rate,
        after: StepDerivative,
        inert: float = 0.0,
    ) -> tuple[Tensor, StepDerivative]:
        """Apply the transposed Jacobian of `step`, at the same arguments.

        Parameters
        ----------
        params : Tensor of shape (..., P)
            As in `step`.
        grad : Tensor of shape (..., P)
            As in `step`.
        state : NamedTuple of Tensor
            As in `step`.
        t : int
            As in `step`.
        learning_rate : float or Tensor of shape (P,)
            As in `step`.
        after : StepDerivative
            Derivatives in what the step returned, (q, ..., P).
        inert : float, default=0.0
            Parameters whose denominator, eps left out, is at most this fraction of
            the root mean square of their model's count as not moved by any gradient.
            At 0 these are those that have had none.

        Returns
        -------
        in_grad : Tensor of shape (q, ..., P)
            Derivative in the gradient that the step consumed.
        before : StepDerivative
            Derivatives in ``params`` and ``state``, ``grad`` held fixed.
        """
        still = self._held_still(params, grad, state, t, learning_rate, inert)

        def flat(params: Tensor, grad: Tensor, *values: Tensor) -> State:
            held = with_values(state, values)
            moved, new = still.step(params, grad, held, t, learning_rate)
            return moved, *new

        pull: Any = vjp(flat, params, grad, *state)[1]
        in_params, in_grad, *in_state = vmap(pull)((after.params, *after.state))

        return in_grad, StepDerivative(in_params, with_values(state, in_state))

    def pushforward(
        self,
        params: Tensor,
        grad: Tensor,
        state: State,
        t: int,
        learning_rate: Rate,
        before: Sequence[StepDerivative],
        in_grad: Sequence[Tensor],
    ) -> list[StepDerivative]:
        """Carry first derivatives along a path, or first and second, through `step`.

        Parameters
        ----------
        params : Tensor of shape (P,)
            As in `step`.
        grad : Tensor of shape (P,)
            As in `step`.
        state : NamedTuple of Tensor
            As in `step`.
        t : int
            As in `step`.
        learning_rate : float or Tensor of shape (P,)
            As in `step`.
        before : one or two StepDerivative
            Derivatives of ``params`` and ``state``, (r, P).
        in_grad : as many Tensor of shape (r, P)
            Those of the gradient that the step consumed.

        Returns
        -------
        list of StepDerivative
            Derivatives of what the step returns, (r, P).
        """
        still = self._held_still(params, grad, state, t, learning_rate, 0.0)

        def flat(*values: Tensor) -> State:
            held = with_values(state, values[2:])
            moved, new = still.step(values[0], values[1], held, t, learning_rate)
            return moved, *new

        paths = [(d.params, g, *d.state) for d, g in zip(before, in_grad, strict=True)]
        found = along_paths(flat, (params, grad, *state), paths)
        return [StepDerivative(d[0], with_values(state, d[1:])) for d in found]

    def _held_still(
        self,
        params: Tensor,
        grad: Tensor,
        state: State,
        t: int,
        learning_rate: Rate,
        inert: float,
    ) -> Self:
        """Return a copy by whose step gradients do not move inert parameters.

        A parameter that has had no gradient would move by learning_rate / eps times the
        first one to come, but in truth by at most about learning_rate: its derivative
        says nothing about any weight but an infinitesimal one. The copy divides by
        infinity there.
        """
        _, new = self.step(params, grad, state, t, learning_rate)
        scale = self.denominator(new, t)
        if scale is None:
            return self
        root = scale - getattr(self, "eps", 0.0)
        moves = root > inert * root.square().mean(dim=-1, keepdim=True).sqrt()

        def denominator(state: State, t: int) -> Tensor:
            # both times: the root of 0 has no derivative, which where() leaves out
            # of what it does not select
            state = map_state(lambda value: torch.where(moves, value, 0.0), state)
            found = self.denominator(state, t)
            if found is None:
                raise TypeError("denominator() must return a tensor always, or never.")
            return torch.where(moves, found, torch.inf)

        still = copy.copy(self)
        still._set(denominator=denominator)
        return still

    # ---------------------------------------------------------------- reading
    def options(self) -> dict[str, Any]:
        """Return the options by name, as JSON can hold them.

        Returns
        -------
        dict
            What `from_options` takes.
        """
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Make an optimizer from what `options` returned.

        Parameters
        ----------
        options : dict
            A value for every option, perhaps from a file.

        Returns
        -------
        Optimizer
            With these options.

        Raises
        ------
        ValueError
            If these are not its options, or one is out of range.
        """
        if set(options) != {f.name for f in fields(cls)}:
            raise ValueError(f"these are not the options of {cls.__name__}")
        return cls(**options)

    @classmethod
    def from_torch(cls, group: Mapping[str, Any]) -> Self:
        """Read the options of a parameter group of the optimizer in torch.

        Parameters
        ----------
        group : dict
            One of its ``param_groups``. Options have the same names.

        Returns
        -------
        Optimizer
            With the options of that group.

        Raises
        ------
        ValueError
            If the group is trained in a way that is not known here.
        """
        if group.get("maximize"):
            raise ValueError(
                f"{cls.__name__} with maximize=True cannot be recorded: train without "
                "maximize, on the negative of what is to be large."
            )
        known = [f.name for f in fields(cls) if f.name in group]
        return cls(**{name: _plain(group[name]) for name in known})

    def state_from_torch(self, state: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Read the state of one parameter from the optimizer in torch.

        Parameters
        ----------
        state : dict
            Its ``state`` of that parameter.

        Returns
        -------
        dict of str to Tensor, or None
            The fields of the state; None before the first step.
        """
        kind: Any = type(self.initial_state(torch.zeros(1)))
        found = {name: state.get(self.torch_state[name]) for name in kind._fields}
        if any(value is None for value in found.values()):
            return None
        return {name: value for name, value in found.items() if value is not None}

    def joined(
        self, shapes: Sequence[tuple[int, ...]], own: Sequence[int], rest: Optimizer
    ) -> Optimizer:
        """Return one optimizer for a model that two optimizers of torch train.

        Parameters
        ----------
        shapes : list of tuple
            Of the parameters of the model.
        own : list of int
            Positions among them of those that this optimizer trains.
        rest : Optimizer
            What trains the others; itself if there are none.

        Returns
        -------
        Optimizer
            For all of them.

        Raises
        ------
        ValueError
            If the two cannot be taken for one.
        """
        if rest is self:
            return self
        raise ValueError(
            f"{type(self).__name__} and {type(rest).__name__} with other options train "
            "one model, which cannot be recorded: only learning rates and weight decay "
            "may differ, and only Muon leaves parameters to another, AdamW."
        )


def _plain(value: Any) -> Any:
    """Return a number of torch as one of Python."""
    if isinstance(value, Tensor):
        return value.item()
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value))
    return value


# ---------------------------------------------------------------- forward mode
def along_paths(
    function: Callable[..., State],
    point: Sequence[Tensor],
    paths: Sequence[Sequence[Tensor]],
) -> list[State]:
    """Differentiate a function along r paths through a point, by forward mode.

    Parameters
    ----------
    point : tensors
        Where the paths pass.
    paths : one or two times as many tensors
        First derivatives of the paths, (r, ...), and second ones.

    Returns
    -------
    list of tuple of Tensor
        As many derivatives of what the function returns, (r, ...).
    """
    zero, n_parts = point[0].new_zeros(()), len(point)
    one = torch.ones_like(zero)

    def derivatives(*moving: Tensor) -> tuple[State, ...]:
        velocity, bend = moving[:n_parts], moving[n_parts:]

        def at(s: Tensor) -> State:
            moved = [x + s * v for x, v in zip(point, velocity, strict=True)]
            if bend:
                half = 0.5 * s.square()
                moved = [x + half * b for x, b in zip(moved, bend, strict=True)]
            return function(*moved)

        def slope(s: Tensor) -> State:
            found: State = jvp(at, (s,), (one,))[1]
            return found

        if not bend:
            return (slope(zero),)
        return tuple(jvp(slope, (zero,), (one,)))

    found = vmap(derivatives)(*(part for path in paths for part in path))
    return list(found)


# ------------------------------------------------------------------- registry
#: Optimizers by the name that files and estimators know them by.
OPTIMIZERS: dict[str, type[Optimizer]] = {}


def register_optimizer(name: str) -> Callable[[type[Optimizer]], type[Optimizer]]:
    """Return a decorator that makes a class known by a name.

    Parameters
    ----------
    name : str
        What estimators take as ``optimizer=``, and records of training hold.

    Returns
    -------
    callable
        For a subclass of `Optimizer`.

    Raises
    ------
    ValueError
        If another class has that name.

    See Also
    --------
    Optimizer : What the class derives from.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from skattrib import TorchClassifier
    >>> from skattrib.optimizers import SGD, register_optimizer
    >>> @register_optimizer("signed")
    ... @dataclass(frozen=True, kw_only=True)
    ... class Signed(SGD):
    ...     def step(self, params, grad, state, t, learning_rate):
    ...         return super().step(params, grad.tanh(), state, t, learning_rate)
    ...     pullback = Optimizer.pullback
    ...     pushforward = Optimizer.pushforward
    >>> clf = TorchClassifier(optimizer="signed")
    """

    def register(kind: type[Optimizer]) -> type[Optimizer]:
        known = OPTIMIZERS.setdefault(name, kind)
        if known.__qualname__ != kind.__qualname__:
            raise ValueError(f"{name!r} is an optimizer already: {known.__qualname__}.")
        OPTIMIZERS[name] = kind
        return kind

    return register


def name_of(optimizer: Optimizer) -> str:
    """Return the name that an optimizer is registered by, else that of its class."""
    for name, kind in OPTIMIZERS.items():
        if kind is type(optimizer):
            return name
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def class_for_torch(kind: type) -> type[Optimizer] | None:
    """Return the class that takes the steps of an optimizer of torch, if any."""
    for known in OPTIMIZERS.values():
        if known.torch_class is kind:
            return known
    return None
