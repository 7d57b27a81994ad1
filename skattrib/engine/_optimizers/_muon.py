"""Muon: orthogonalised momentum for hidden matrices, AdamW for other parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, pairwise
from numbers import Real
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.func import vjp, vmap

from skattrib.engine._optimizers._adam import AdamW, Moments
from skattrib.engine._optimizers._options import flag, number, numbers, whole
from skattrib.engine._optimizers._protocol import (
    Optimizer,
    Rate,
    State,
    StepDerivative,
    along_paths,
    register_optimizer,
)

# Scales of the learning rate of a matrix, by name, as in torch.
_SCALES: dict[str, Callable[[int, int], float]] = {
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
}
# torch also refuses a hundred iterations.
_MOST_STEPS = 100
_LARGEST_PLACE = 2**53


class MuonState(NamedTuple):
    """Average gradient, and second moment of parameters of AdamW, else 0."""

    first: Tensor
    second: Tensor


class _Matrix(NamedTuple):
    """Place and shape of a matrix in the flat vector."""

    start: int
    rows: int
    columns: int

    @property
    def stop(self) -> int:
        return self.start + self.rows * self.columns


@register_optimizer("muon")
@dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Muon for hidden weight matrices, AdamW for biases and the last layer.

    Hidden matrices are the weights with two axes, except embeddings and the last linear
    layer. Both optimizers use the learning rate of the estimator.

    Parameters
    ----------
    weight_decay : float or None, default=None
        Decoupled from the gradient. None takes that of the estimator.
    momentum : float, default=0.95
        Decay of the average gradient, in [0, 1).
    nesterov : bool, default=True
        Nesterov momentum.
    ns_coefficients : tuple of three floats, default=(3.4445, -4.775, 2.0315)
        Coefficients of the polynomial that is iterated to orthogonalise a matrix.
    eps : float, default=1e-7
        Lower bound of the norm by which a matrix is divided.
    ns_steps : int, default=5
        Iterations of the polynomial.
    adjust_lr_fn : {"original", "match_rms_adamw"} or None, default=None
        How the learning rate depends on the shape of a matrix; None is "original".
    others : AdamW, default=AdamW()
        Optimizer of the other parameters.
    matrices : tuple of (start, rows, columns) or None, default=None
        Places of the hidden matrices in the flat vector of parameters; None until the
        module is known.

    See Also
    --------
    AdamW : Treats all parameters alike.

    Notes
    -----
    ``torch.optim.Muon`` rounds to bfloat16 while it orthogonalises a matrix; here the
    precision of the parameters is kept. A run recorded from torch is replayed up to
    that rounding.

    For ``metric="optimizer"`` of `DualInfluence`, a matrix is divided by the singular
    value that its momentum would have if all singular values were equal. Runs on
    subsets hold columns and rows of a matrix fixed whose momentum is almost zero; a
    floor of the denominator, which damps such derivatives, is for AdamW's part alone.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import TorchClassifier
    >>> from skattrib.optimizers import Muon
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(
    ...     optimizer=Muon(momentum=0.9), max_epochs=20, random_state=0)
    >>> clf.fit(X, y).predict(X[:2])
    array([0, 0])
    """

    momentum: float = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
    eps: float = 1e-7
    ns_steps: int = 5
    adjust_lr_fn: str | None = None
    others: AdamW = field(default_factory=AdamW)
    matrices: tuple[tuple[int, int, int], ...] | None = field(default=None, repr=False)

    # from 2.9 on
    torch_class: ClassVar[type | None] = getattr(torch.optim, "Muon", None)
    leaves_others: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        # the coefficients may have either sign
        signs = [math.copysign(1.0, c) for c in _three(self, self.ns_coefficients)]
        sizes = numbers(self, "ns_coefficients", [*map(abs, self.ns_coefficients)], 3)
        self._set(
            momentum=number(self, "momentum", self.momentum, below=1),
            nesterov=flag(self, "nesterov", self.nesterov),
            ns_coefficients=tuple(s * c for s, c in zip(signs, sizes, strict=True)),
            eps=number(self, "eps", self.eps),
            ns_steps=whole(self, "ns_steps", self.ns_steps, 1, _MOST_STEPS),
        )

        if self.adjust_lr_fn is not None and self.adjust_lr_fn not in [*_SCALES]:
            raise ValueError(
                f"Muon: adjust_lr_fn must be one of {[*_SCALES]} or None, got "
                f"{self.adjust_lr_fn!r}."
            )
        if type(self.others) is not AdamW or self.others.amsgrad:
            raise ValueError(
                f"Muon: others must be an AdamW without amsgrad, got {self.others!r}."
            )
        if self.matrices is not None:
            self._set(matrices=self._checked(self.matrices))

    def _checked(self, matrices: Any) -> tuple[tuple[int, int, int], ...]:
        places = [
            _Matrix(*(whole(self, "matrices", v, 0, _LARGEST_PLACE) for v in matrix))
            for matrix in matrices
        ]
        ordered = all(one.stop <= next_.start for one, next_ in pairwise(places))
        if not ordered or any(m.rows * m.columns == 0 for m in places):
            raise ValueError("Muon: matrices must be in order and not overlap.")
        return tuple((m.start, m.rows, m.columns) for m in places)

    def bound(self, module: nn.Module) -> Self:
        params = [p for p in module.parameters() if p.requires_grad]
        left_out = _not_hidden(module)
        starts = accumulate((p.numel() for p in params), initial=0)
        places = [
            (start, *p.shape)
            for p, start in zip(params, starts, strict=False)
            if p.ndim == 2 and p.numel() and id(p) not in left_out
        ]
        return replace(self, matrices=tuple(places))

    # --------------------------------------------------------- cut and joined
    @property
    def _places(self) -> list[_Matrix]:
        if self.matrices is None:
            raise ValueError(
                "Muon does not know the module: train through TorchClassifier or "
                "TorchRegressor, or call bound(module)."
            )
        return [_Matrix(*matrix) for matrix in self.matrices]

    def _sizes(self, n_params: int) -> list[int]:
        """Return the lengths of other parameters and of matrices, alternating."""
        places = self._places
        if places and places[-1].stop > n_params:
            raise ValueError(f"Muon: its matrices do not fit {n_params} parameters")
        edges = [0, *(edge for m in places for edge in (m.start, m.stop)), n_params]
        return [stop - start for start, stop in pairwise(edges)]

    def _cut(self, vector: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the other parameters of a vector (..., P), and its matrices."""
        pieces = torch.split(vector, self._sizes(vector.shape[-1]), dim=-1)
        matrices = [
            piece.unflatten(-1, (m.rows, m.columns))
            for m, piece in zip(self._places, pieces[1::2], strict=True)
        ]
        return torch.cat(pieces[::2], dim=-1), matrices

    def _joined(self, rest: Tensor, matrices: Sequence[Tensor]) -> Tensor:
        """Join what `_cut` returned to a vector (..., P)."""
        n_params = rest.shape[-1] + sum(m.shape[-2] * m.shape[-1] for m in matrices)
        pieces = list(torch.split(rest, self._sizes(n_params)[::2], dim=-1))
        for i, matrix in enumerate(matrices):
            pieces.insert(2 * i + 1, matrix.flatten(-2))
        return torch.cat(pieces, dim=-1)

    def _cut_number(self, value: float | Tensor) -> tuple[Any, list[Any]]:
        """Cut a number for every parameter (P,), or repeat one number for all."""
        if isinstance(value, Tensor):
            return self._cut(value)
        return value, [value] * len(self._places)

    def _for_others(self) -> tuple[AdamW, list[Any]]:
        """Return AdamW for the other parameters, and the decays of the matrices."""
        rest, decays = self._cut_number(self._decay)
        own_decay = self.others.weight_decay
        if not isinstance(self._decay, Tensor) and own_decay is not None:
            rest = own_decay
        return replace(self.others, weight_decay=rest), decays

    # ------------------------------------------------------------------- step
    def initial_state(self, params: Tensor) -> State:
        self._sizes(params.shape[-1])
        zeros = torch.zeros_like(params)
        return MuonState(zeros, zeros)

    def step(
        self, params: Tensor, grad: Tensor, state: State, t: int, learning_rate: Rate
    ) -> tuple[Tensor, State]:
        others, decays = self._for_others()
        rate, rates = self._cut_number(learning_rate)
        cuts = [self._cut(value) for value in (params, grad, *state)]
        (rest, matrices), (rest_grad, grads), (first, buffers), (second, unused) = cuts

        rest, moments = others.step(rest, rest_grad, Moments(first, second), t, rate)
        moved = [
            self._matrix_step(*arguments)
            for arguments in zip(matrices, grads, buffers, rates, decays, strict=True)
        ]

        new = MuonState(
            self._joined(moments[0], [buffer for _, buffer in moved]),
            self._joined(moments[1], unused),
        )
        return self._joined(rest, [matrix for matrix, _ in moved]), new

    def _averaged(self, grad: Tensor, buffer: Tensor) -> tuple[Tensor, Tensor]:
        """Return the matrix to orthogonalise, and the new average gradient."""
        buffer = torch.lerp(buffer, grad, 1.0 - self.momentum)
        move = torch.lerp(grad, buffer, self.momentum) if self.nesterov else buffer
        return move, buffer

    def _matrix_step(
        self,
        params: Tensor,
        grad: Tensor,
        buffer: Tensor,
        rate: Any,
        decay: Any,
        still: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return matrices (..., rows, columns) and their average gradients.

        ``still`` says where a matrix is held fixed while derivatives are taken, and at
        which values.
        """
        move, buffer = self._averaged(grad, buffer)
        if still is not None:
            move = torch.where(still[0], still[1], move)
        scale = self._scale(*params.shape[-2:])
        params = params * (1.0 - rate * decay)
        return params - (rate * scale) * self._orthogonal(move), buffer

    def _scale(self, rows: int, columns: int) -> float:
        return _SCALES[self.adjust_lr_fn or "original"](rows, columns)

    def _orthogonal(self, matrix: Tensor) -> Tensor:
        """Push the singular values towards 1, by Newton-Schulz iterations."""
        a, b, c = self.ns_coefficients
        tall = matrix.shape[-2] > matrix.shape[-1]
        orthogonal = matrix.mT if tall else matrix

        squared = orthogonal.square().sum(dim=(-2, -1), keepdim=True)
        # a matrix of zeros stays zero: the derivative of the root would be infinite
        moves = squared > 0
        norm = torch.where(moves, squared, 1.0).sqrt().clamp(min=self.eps)
        orthogonal = torch.where(moves, orthogonal, 0.0) / norm

        for _ in range(self.ns_steps):
            gram = orthogonal @ orthogonal.mT
            orthogonal = a * orthogonal + (b * gram + c * (gram @ gram)) @ orthogonal

        return orthogonal.mT if tall else orthogonal

    def _inert(
        self, grad: Tensor, buffer: Tensor, inert: float
    ) -> tuple[Tensor, Tensor] | None:
        """Return where a matrix is inert, and its values.

        These are columns and rows, which belong to an input or a hidden unit, that have
        hardly had a gradient. Orthogonalising a matrix enlarges them up to five hundred
        times, and such a derivative is valid for tiny weights only.
        """
        if not inert:
            return None
        move, _ = self._averaged(grad, buffer)
        is_inert = torch.zeros_like(move, dtype=torch.bool)
        for axis in (-2, -1):
            squares = move.square().mean(dim=axis, keepdim=True)
            usual = squares.mean(dim=(-2, -1), keepdim=True)
            is_inert = is_inert | (squares <= inert**2 * usual)
        return is_inert, move

    def denominator(self, state: State, t: int) -> Tensor:
        (first, buffers), (second, _) = (self._cut(value) for value in state)
        scales = []
        for buffer in buffers:
            rows, columns = buffer.shape[-2:]
            norm = buffer.square().sum(dim=(-2, -1), keepdim=True).sqrt()
            norm = norm.clamp(min=self.eps) / min(rows, columns) ** 0.5
            scales.append((norm / self._scale(rows, columns)).expand_as(buffer))
        rest = self.others.denominator(Moments(first, second), t)
        return self._joined(rest, scales)

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
        others, decays = self._for_others()
        rate, rates = self._cut_number(learning_rate)
        cuts = [self._cut(value) for value in (params, grad, *state)]
        (rest, matrices), (rest_grad, grads), (first, buffers), (second, _) = cuts
        (mu, mus), (rho, rhos), (sigma, sigmas) = (
            self._cut(value) for value in (after.params, *after.state)
        )

        in_rest_grad, before = others.pullback(
            rest,
            rest_grad,
            Moments(first, second),
            t,
            rate,
            StepDerivative(mu, Moments(rho, sigma)),
            inert,
            floor,
        )

        derivatives = []
        held = [
            self._inert(*arguments, inert)
            for arguments in zip(grads, buffers, strict=True)
        ]

        for i, step in enumerate(self._matrix_steps(rates, decays, held)):
            pull: Any = vjp(step, matrices[i], grads[i], buffers[i])[1]
            derivatives.append(vmap(pull)((mus[i], rhos[i])))

        in_params = self._joined(before.params, [d[0] for d in derivatives])
        in_grad = self._joined(in_rest_grad, [d[1] for d in derivatives])
        in_first = self._joined(before.state[0], [d[2] for d in derivatives])
        in_second = self._joined(before.state[1], sigmas)
        return in_grad, StepDerivative(in_params, MuonState(in_first, in_second))

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
        others, decays = self._for_others()
        rate, rates = self._cut_number(learning_rate)
        cuts = [self._cut(value) for value in (params, grad, *state)]
        (rest_params, matrices), (rest_grad, grads), (first, buffers), (second, _) = (
            cuts
        )
        cut_paths = [
            [self._cut(value) for value in (d.params, dg, *d.state)]
            for d, dg in zip(before, in_grad, strict=True)
        ]

        rest_derivatives = others.pushforward(
            rest_params,
            rest_grad,
            Moments(first, second),
            t,
            rate,
            [StepDerivative(p[0], Moments(f[0], s[0])) for p, _, f, s in cut_paths],
            [dg[0] for _, dg, _, _ in cut_paths],
        )

        matrix_derivatives = [
            along_paths(
                step,
                (matrices[i], grads[i], buffers[i]),
                [[values[1][i] for values in cuts[:3]] for cuts in cut_paths],
            )
            for i, step in enumerate(
                self._matrix_steps(rates, decays, [None] * len(matrices))
            )
        ]

        derivatives = []
        for order, (rest_derivative, path) in enumerate(
            zip(rest_derivatives, cut_paths, strict=True)
        ):
            own_derivatives = [f[order] for f in matrix_derivatives]
            state = MuonState(
                self._joined(
                    rest_derivative.state[0], [buffer for _, buffer in own_derivatives]
                ),
                self._joined(rest_derivative.state[1], path[3][1]),
            )
            moved = self._joined(
                rest_derivative.params, [matrix for matrix, _ in own_derivatives]
            )
            derivatives.append(StepDerivative(moved, state))

        return derivatives

    def _matrix_steps(
        self,
        rates: Sequence[Any],
        decays: Sequence[Any],
        still: Sequence[tuple[Tensor, Tensor] | None],
    ) -> Iterator[Callable[..., tuple[Tensor, Tensor]]]:
        """Yield the step of each matrix as a function of tensors alone."""
        for rate, decay, held in zip(rates, decays, still, strict=True):
            yield partial(self._matrix_step, rate=rate, decay=decay, still=held)

    # ---------------------------------------------------------------- reading
    def options(self) -> dict[str, Any]:
        return super().options() | {"others": self.others.options()}

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        others = AdamW.from_options(options["others"])
        return super().from_options({**options, "others": others})

    def state_from_torch(self, state: Mapping[str, Any]) -> dict[str, Tensor] | None:
        buffer = state.get("momentum_buffer")
        if buffer is not None:
            return {"first": buffer, "second": torch.zeros_like(buffer)}
        return self.others.state_from_torch(state)

    def joined(
        self, shapes: Sequence[tuple[int, ...]], own: Sequence[int], rest: Optimizer
    ) -> Optimizer:
        if rest is not self and type(rest) is not AdamW:
            return super().joined(shapes, own, rest)
        starts = list(accumulate(map(math.prod, shapes), initial=0))
        matrices = tuple(_Matrix(starts[i], *shapes[i]) for i in own)
        others = rest if isinstance(rest, AdamW) else self.others
        return replace(self, others=others, matrices=matrices)


def _three(owner: object, value: Any) -> Any:
    """Return three numbers of any sign; raise ValueError if they are not that."""
    known = isinstance(value, tuple | list) and len(value) == 3
    if not known or not all(isinstance(v, Real) for v in value):
        raise ValueError(f"Muon: ns_coefficients must be three numbers, got {value!r}.")
    return value


def _not_hidden(module: nn.Module) -> set[int]:
    """Return the ids of embeddings and of the last layer's parameters."""
    layers = list(module.modules())
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if linear:
        last = list(linear[-1].parameters())
    else:
        # layers of the user's own: the last matrix makes the outputs
        last = [p for p in module.parameters() if p.ndim == 2][-1:]

    embeddings = [
        p
        for layer in layers
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag)
        for p in layer.parameters()
    ]

    return {id(p) for p in [*last, *embeddings]}
