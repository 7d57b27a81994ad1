"""Second derivatives of networks of linear layers and activations, in closed form.

For all queries together they take a few matrix products per layer, where autograd
takes a hundred small operations per step. For the R-operator see
Pearlmutter, "Fast exact multiplication by the Hessian" (1994). Arrays have the shape
(queries, features, rows).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from skattrib.engine._functional import FunctionalModule
from skattrib.engine._minibatch import Minibatch
from skattrib.engine._optimizers import clip_gradient

_SMOOTH = (nn.GELU, nn.SiLU, nn.Sigmoid, nn.Softplus)
_KNOWN = (nn.Identity, nn.ReLU, nn.Tanh, *_SMOOTH)


@dataclass(frozen=True)
class DenseLayer:
    """A linear layer, the place of its parameters, and the activation after it."""

    start: int
    shape: tuple[int, int]
    bias: bool
    activation: nn.Module | None

    @property
    def stop(self) -> int:
        """The end of its parameters."""
        o, k = self.shape
        return self.start + o * k + o * self.bias

    def weight(self, vectors: Tensor) -> Tensor:
        """Return its weights (m, o, k) in vectors (m, P)."""
        o, k = self.shape
        columns = vectors[:, self.start : self.start + o * k]
        return columns.unflatten(1, (o, k))

    def offset(self, vectors: Tensor) -> Tensor:
        """Return its biases (m, o) in vectors (m, P), if it has any."""
        o, k = self.shape
        return vectors[:, self.start + o * k : self.stop]


def dense_layers(model: FunctionalModule, X: Tensor) -> list[DenseLayer] | None:
    """Return the layers of a network that has no others, else None."""
    module = model.module
    if type(module) is not nn.Sequential or X.ndim != 2:
        return None
    if any(m._forward_hooks or m._forward_pre_hooks for m in module.modules()):
        return None

    starts = accumulate(model.sizes, initial=0)
    places = dict(zip(model.names, starts, strict=False))
    layers: list[DenseLayer] = []

    # named_children would leave out a layer that occurs twice
    for name, child in module._modules.items():
        parameter_names = [f"{name}.{p}" for p, _ in child.named_parameters()]
        if type(child) is nn.Linear and parameter_names == [
            k for k in parameter_names if k in places
        ]:
            shape = child.out_features, child.in_features
            bias = child.bias is not None
            if (
                len(parameter_names) != 1 + bias
                or parameter_names[0] != f"{name}.weight"
            ):
                return None  # parametrised
            layers.append(DenseLayer(places[parameter_names[0]], shape, bias, None))
        elif type(child) in _KNOWN and layers and layers[-1].activation is None:
            last = layers.pop()
            layers.append(DenseLayer(last.start, last.shape, last.bias, child))
        else:
            return None

    # every parameter belongs to exactly one layer
    covers_all = sum(layer.stop - layer.start for layer in layers) == model.n_params
    linear_head = bool(layers) and layers[-1].activation is None
    return layers if covers_all and linear_head else None


def _activate(
    activation: nn.Module | None, z: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the activation of z, its derivative and second one; None is 1 and 0."""
    if activation is None or type(activation) is nn.Identity:
        return z, None, None
    if type(activation) is nn.ReLU:
        h = z.relu()
        return h, (h > 0).to(h), None
    if type(activation) is nn.Tanh:
        h = z.tanh()
        slope = torch.addcmul(torch.ones_like(h), h, h, value=-1)
        return h, slope, -2 * h * slope

    with torch.enable_grad():
        z = z.detach().requires_grad_()
        h = activation(z)
        (slope,) = torch.autograd.grad(h.sum(), z, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), z)

    return h.detach(), slope.detach(), curvature


class DenseGradient:
    """The gradient of a minibatch's loss, and products with its Jacobians.

    Parameters
    ----------
    layers : list of DenseLayer
        All layers of the module; rows are assumed to be independent.
    minibatch : Minibatch
        Whose gradient this is, see `skattrib.engine._minibatch`.
    params : Tensor of shape (M, P)
        Of M runs.
    rows : int Tensor of shape (B,) or None
        None is all.
    shares : Tensor of shape (M, B)
        Weights of the rows over their sum.
    clip_norm : float or None
    seeds, step
        Of no use: no layer draws random numbers.
    """

    def __init__(
        self,
        layers: list[DenseLayer],
        minibatch: Minibatch,
        params: Tensor,
        rows: Tensor | None,
        shares: Tensor,
        clip_norm: float | None,
        seeds: Tensor | None = None,
        step: int = 0,
    ) -> None:
        X, targets, loss = minibatch.X, minibatch.targets, minibatch.loss
        if rows is not None:
            X, targets = X[rows], targets[rows]
        self._layers, self._loss, self._clip_norm = layers, loss, clip_norm
        self._shares = shares[:, None]
        self._weights = [layer.weight(params) for layer in layers]
        h = X.T.expand(len(params), -1, -1)
        self._inputs, self._slopes, self._curvatures = [], [], []

        for layer, weight in zip(layers, self._weights, strict=True):
            self._inputs.append(h)
            z = weight @ h
            if layer.bias:
                z = z + layer.offset(params)[..., None]
            h, slope, curvature = _activate(layer.activation, z)
            self._slopes.append(slope)
            self._curvatures.append(curvature)

        self._outputs = h.mT
        self._targets = targets
        self._residuals = loss.residuals(self._outputs, targets).mT.contiguous()
        self._raw = self._backward(torch.empty_like(params))
        self.value = clip_gradient(self._raw, clip_norm)

    def _backward(self, out: Tensor) -> Tensor:
        """Write the gradient to ``out``, and store the signals of all layers."""
        signal = self._shares * self._residuals
        n = len(self._layers)
        # of each layer: gradients in its outputs; and in its inputs, before slopes
        self._signals, self._arriving = [signal] * n, [signal] * n

        for i in reversed(range(n)):
            layer = self._layers[i]
            self._signals[i] = signal
            layer.weight(out).copy_(signal @ self._inputs[i].mT)
            if layer.bias:
                torch.sum(signal, dim=2, out=layer.offset(out))
            if i:
                arriving = self._weights[i].mT @ signal
                self._arriving[i], slope = arriving, self._slopes[i - 1]
                signal = arriving if slope is None else arriving * slope

        return out

    def products(self, cotangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return H a (q, M, P) and the dots ∇ℓᵀ a (q, M, B) for cotangents a."""
        if self._clip_norm is not None:
            cotangents = self._through_clipping(cotangents)
        q, n_runs, _ = cotangents.shape
        curved = torch.empty_like(cotangents)
        dots = cotangents.new_empty(q, n_runs, self._shares.shape[2])
        for run in range(n_runs):
            dots[:, run] = self._product(run, cotangents[:, run], curved[:, run])
        return curved, dots

    def _through_clipping(self, cotangents: Tensor) -> Tensor:
        with torch.enable_grad():
            raw = self._raw.detach().requires_grad_()
            clipped = clip_gradient(raw, self._clip_norm)
        (out,) = torch.autograd.grad(clipped, raw, cotangents, is_grads_batched=True)
        return out

    def _product(self, run: int, a: Tensor, out: Tensor) -> Tensor:
        """Write H a of one run for a (q, P), and return the dots (q, B)."""
        moves, moved = self._forward(run, a)
        dots = (self._residuals[run] * moves[-1]).sum(dim=1)
        bent = self._loss.hessian_product(
            self._outputs[run], self._targets, moves[-1].mT
        )
        signal = self._shares[run] * bent.mT
        q = len(a)

        for i in reversed(range(len(self._layers))):
            layer = self._layers[i]
            fixed = self._signals[i][run].expand(q, -1, -1)
            weight = self._weights[i][run].expand(q, -1, -1)
            h = self._inputs[i][run]
            in_weight = layer.weight(out)
            torch.bmm(signal, h.T.expand(q, -1, -1), out=in_weight)
            if i:
                in_weight.baddbmm_(fixed, moved[i].mT)
            if layer.bias:
                torch.sum(signal, dim=2, out=layer.offset(out))
            if i:
                arriving = torch.bmm(weight.mT, signal)
                arriving.baddbmm_(layer.weight(a).mT, fixed)
                signal = self._through_activation(i, run, arriving, moves[i - 1])

        return dots

    def _forward(self, run: int, a: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return derivatives of layers' outputs along a (q, P), and of their inputs."""
        moves: list[Tensor] = []
        moved = [a]  # the rows themselves do not move
        for i, layer in enumerate(self._layers):
            h = self._inputs[i][run].expand(len(a), -1, -1)
            move = torch.bmm(layer.weight(a), h)
            if i:
                weight = self._weights[i][run].expand(len(a), -1, -1)
                move.baddbmm_(weight, moved[i])
            if layer.bias:
                move += layer.offset(a)[..., None]
            moves.append(move)
            slope = self._slopes[i]
            moved.append(move if slope is None else slope[run] * move)

        return moves, moved

    def _through_activation(
        self, i: int, run: int, arriving: Tensor, move: Tensor
    ) -> Tensor:
        slope, curvature = self._slopes[i - 1], self._curvatures[i - 1]
        if slope is not None:
            arriving *= slope[run]
        if curvature is not None:
            arriving.addcmul_(curvature[run] * self._arriving[i][run], move)
        return arriving
