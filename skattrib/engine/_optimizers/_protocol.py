"""Base class of optimizers: a state, and one pure step with its two derivatives.

A subclass implements `initial_state` and `step`. The transposed Jacobian of the step
and its forward derivatives come from autograd; a class with closed forms overrides
`pullback` and `pushforward`.
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
    """The state of an optimizer without memory."""


class StepDerivative(NamedTuple):
    """Derivatives in, or of, parameters and optimizer state."""

    params: Tensor
    state: State


def with_values(state: State, values: Iterable[Tensor]) -> State:
    """Return a state of the same kind with other values."""
    kind: Any = type(state)
    state_of_kind: State = kind(*values)
    return state_of_kind


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

    To add an optimizer, derive a frozen dataclass whose fields are the options, and
    implement `initial_state` and `step`. The learning rate is not an option: it is
    passed to each step.

    Parameters
    ----------
    weight_decay : float or None, default=None
        Strength of the decay, which the step applies. None takes that of the
        estimator.

    Attributes
    ----------
    from_estimator : tuple of str
        Options for which an estimator has a parameter of the same name.
    torch_class : type or None
        The optimizer of torch that takes the same steps, for `record_training`. Its
        options have the same names.
    torch_state : dict of str to str
        Names of the fields of the state in that optimizer.
    leaves_others : bool
        Whether it trains some parameters only, and another optimizer the others.

    See Also
    --------
    skattrib.optimizers.RMSprop : An optimizer defined by its step alone.

    Notes
    -----
    Parameters have the shape (P,), or (M, P) if M models are trained at once: a step
    acts on the last axis only. It must not write to its arguments, and consists of
    operations that torch can differentiate. If it divides by a quantity that depends on
    gradients, it divides by ``self.denominator(...)``: parameters that have hardly had
    a gradient are held fixed there while derivatives are taken.

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
        """Raise ValueError if an option is out of range."""
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
            Parameters before the first step.

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
            Parameters before the step.
        grad : Tensor of shape (..., P)
            Gradient at these parameters.
        state : NamedTuple of Tensor
            State before the step.
        t : int
            Number of the step, from 1.
        learning_rate : float or Tensor of shape (P,)
            Learning rate of this step; a tensor if groups of parameters have their own.

        Returns
        -------
        params : Tensor of shape (..., P)
            Parameters after the step.
        state : NamedTuple of Tensor
            State after the step.
        """
        raise NotImplementedError

    def denominator(self, state: State, t: int) -> Tensor | None:
        """Return the divisor of a step.

        The damping of `DualInfluence` depends on it, and runs on subsets hold
        parameters fixed whose divisor shows that they have hardly had a gradient.

        Parameters
        ----------
        state : NamedTuple of Tensor
            State after the step.
        t : int
            Number of the step, from 1.

        Returns
        -------
        Tensor of shape (..., P) or None
            None if the step divides by nothing that depends on gradients. Then no
            parameter is held fixed, and ``metric="optimizer"`` is the identity.
        """
        return None

    def path_length(self, learning_rates: Tensor) -> float:
        """Return how far a constant unit gradient moves a parameter in a whole run.

        Parameters
        ----------
        learning_rates : Tensor of shape (T,)
            Learning rates of the steps.

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
            Its parameters that require a gradient form the flat vector, in order.

        Returns
        -------
        Optimizer
            Itself, unless the step depends on the kind of the parameters.
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
        floor: float = 0.0,
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
            Parameters whose denominator, without eps, is at most this fraction of the
            root mean square over their model count as not moved by any gradient. At 0,
            these are the parameters that have never had a gradient.
        floor : float, default=0.0
            Above 0, the derivative is that of another step: the square of the
            denominator, without eps, is larger by floor² times the mean square over
            the parameters of their model, which counts as a constant. Then no
            parameter is held fixed. Without a denominator it does nothing.

        Returns
        -------
        in_grad : Tensor of shape (q, ..., P)
            Derivative in the gradient that the step consumed.
        before : StepDerivative
            Derivatives in ``params`` and ``state``, ``grad`` held fixed.
        """
        at = params, grad, state, t, learning_rate
        still = self._floored(*at, floor) if floor else self._held_still(*at, inert)

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
        derivatives = along_paths(flat, (params, grad, *state), paths)
        return [StepDerivative(d[0], with_values(state, d[1:])) for d in derivatives]

    def _held_still(
        self,
        params: Tensor,
        grad: Tensor,
        state: State,
        t: int,
        learning_rate: Rate,
        inert: float,
    ) -> Self:
        """Return a copy in whose step gradients do not move inert parameters.

        To first order, a parameter without a gradient so far would move by
        learning_rate / eps times its first gradient, but it actually moves by at most
        about learning_rate: its derivative is valid for infinitesimal weights only. The
        copy divides by infinity there.
        """
        _, new = self.step(params, grad, state, t, learning_rate)
        scale = self.denominator(new, t)
        if scale is None:
            return self

        root = scale - getattr(self, "eps", 0.0)
        moves = root > inert * root.square().mean(dim=-1, keepdim=True).sqrt()

        def denominator(state: State, t: int) -> Tensor:
            return torch.where(moves, self._divisor(state, t, moves), torch.inf)

        return self._with_denominator(denominator)

    def _floored(
        self,
        params: Tensor,
        grad: Tensor,
        state: State,
        t: int,
        learning_rate: Rate,
        floor: float,
    ) -> Self:
        """Return a copy whose step divides by nothing far below the usual divisor."""
        _, new = self.step(params, grad, state, t, learning_rate)
        scale, eps = self.denominator(new, t), getattr(self, "eps", 0.0)
        if scale is None:
            return self

        moves = scale > eps
        squares = torch.where(moves, scale - eps, 0.0).square()
        lowest = floor**2 * squares.mean(dim=-1, keepdim=True)

        def denominator(state: State, t: int) -> Tensor:
            root = torch.where(moves, self._divisor(state, t, moves) - eps, 0.0)
            # where no parameter has had a gradient none moves
            squares = torch.where(lowest > 0, root.square() + lowest, torch.inf)
            return squares.sqrt() + eps

        return self._with_denominator(denominator)

    def _divisor(self, state: State, t: int, moves: Tensor) -> Tensor:
        """Return the denominator, whose derivatives are finite where it is asked for.

        The root of 0 has no derivative, which would make those of entries that are not
        selected afterwards NaN.
        """
        state = map_state(lambda value: torch.where(moves, value, 0.0), state)
        divisor = self.denominator(state, t)
        if divisor is None:
            raise TypeError(
                "denominator() must always return a tensor, or always None."
            )
        return divisor

    def _with_denominator(self, denominator: Callable[[State, int], Tensor]) -> Self:
        other = copy.copy(self)
        other._set(denominator=denominator)
        return other

    # ---------------------------------------------------------------- reading
    def options(self) -> dict[str, Any]:
        """Return the options by name, as values that JSON can hold.

        Returns
        -------
        dict
            Argument of `from_options`.
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
            One of the optimizer's ``param_groups``. Options have the same names.

        Returns
        -------
        Optimizer
            Optimizer with the options of that group.

        Raises
        ------
        ValueError
            If the group is trained in a way that is not supported.
        """
        if group.get("maximize"):
            raise ValueError(
                f"{cls.__name__} with maximize=True cannot be recorded: train without "
                "maximize, on the negative of the objective."
            )
        known = [f.name for f in fields(cls) if f.name in group]
        return cls(**{name: _plain(group[name]) for name in known})

    def state_from_torch(self, state: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Read the state of one parameter from the optimizer in torch.

        Parameters
        ----------
        state : dict
            The optimizer's ``state`` of that parameter.

        Returns
        -------
        dict of str to Tensor, or None
            The fields of the state; None before the first step.
        """
        kind: Any = type(self.initial_state(torch.zeros(1)))
        values = {name: state.get(self.torch_state[name]) for name in kind._fields}
        if any(value is None for value in values.values()):
            return None
        return {name: value for name, value in values.items() if value is not None}

    def joined(
        self, shapes: Sequence[tuple[int, ...]], own: Sequence[int], rest: Optimizer
    ) -> Optimizer:
        """Return one optimizer for a model that two optimizers of torch train.

        Parameters
        ----------
        shapes : list of tuple
            Shapes of the parameters of the model.
        own : list of int
            Positions of the parameters that this optimizer trains.
        rest : Optimizer
            Optimizer of the others; itself if there are no others.

        Returns
        -------
        Optimizer
            Optimizer for all parameters.

        Raises
        ------
        ValueError
            If the two cannot be combined.
        """
        if rest is self:
            return self
        raise ValueError(
            f"{type(self).__name__} and {type(rest).__name__} with other options train "
            "one model, which cannot be recorded: only learning rates and weight decay "
            "may differ, and only Muon may leave parameters to another one, AdamW."
        )


def _plain(value: Any) -> Any:
    """Return a tensor with one number as a Python number."""
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
        Point that the paths pass through.
    paths : one or two times as many tensors
        First derivatives of the paths, (r, ...), and second ones if given.

    Returns
    -------
    list of tuple of Tensor
        As many derivatives of the results of the function, (r, ...).
    """
    zero = point[0].new_zeros(())
    n_parts = len(point)
    one = torch.ones_like(zero)

    def derivatives(*moving: Tensor) -> tuple[State, ...]:
        velocity, curvature = moving[:n_parts], moving[n_parts:]

        def at(s: Tensor) -> State:
            moved = [x + s * v for x, v in zip(point, velocity, strict=True)]
            if curvature:
                half = 0.5 * s.square()
                moved = [x + half * b for x, b in zip(moved, curvature, strict=True)]
            return function(*moved)

        def slope(s: Tensor) -> State:
            first_derivative: State = jvp(at, (s,), (one,))[1]
            return first_derivative

        if not curvature:
            return (slope(zero),)
        return tuple(jvp(slope, (zero,), (one,)))

    first_derivative = vmap(derivatives)(*(values for path in paths for values in path))
    return list(first_derivative)


# ------------------------------------------------------------------- registry
#: Optimizers by their name in files and in estimators.
OPTIMIZERS: dict[str, type[Optimizer]] = {}


def register_optimizer(name: str) -> Callable[[type[Optimizer]], type[Optimizer]]:
    """Return a decorator that registers a class under a name.

    Parameters
    ----------
    name : str
        Name for ``optimizer=`` of estimators, and in records of training.

    Returns
    -------
    callable
        Decorator for a subclass of `Optimizer`.

    Raises
    ------
    ValueError
        If another class has that name.

    See Also
    --------
    Optimizer : Base class.

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
            raise ValueError(f"{name!r} is already an optimizer: {known.__qualname__}.")
        OPTIMIZERS[name] = kind
        return kind

    return register


def name_of(optimizer: Optimizer) -> str:
    """Return the name under which an optimizer is registered, else its class name."""
    for name, kind in OPTIMIZERS.items():
        if kind is type(optimizer):
            return name
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def refuse_torch(optimizer: object) -> None:
    """Raise on an optimizer of torch, or its class, in the place of one of these."""
    kind = optimizer if isinstance(optimizer, type) else type(optimizer)
    if not issubclass(kind, torch.optim.Optimizer):
        return
    name = getattr(class_for_torch(kind), "__name__", None)
    cure = f"one of {sorted(OPTIMIZERS)}"
    if name is not None:
        cure = f"{name.lower()!r}, or skattrib.optimizers.{name}() with options"
    raise ValueError(
        f"optimizer is {kind.__name__} of torch, which holds the weights that it "
        f"trains: pass optimizer={cure}; learning_rate and weight_decay are parameters "
        "of the estimator. A loop of your own with torch's is recorded by "
        "record_training."
    )


def class_for_torch(kind: type) -> type[Optimizer] | None:
    """Return the class with the same steps as an optimizer of torch, or None."""
    for known in OPTIMIZERS.values():
        if known.torch_class is kind:
            return known
    return None
