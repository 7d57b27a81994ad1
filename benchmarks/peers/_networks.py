"""Networks that an order names: what both a benchmark and the peers build.

Only torch is imported, so that each environment can. A `Network` is a callable
``(n_inputs, n_outputs) -> nn.Module``; what it was called with and its options are all
that an order needs.
"""

from dataclasses import dataclass, field

import torch
from torch import nn

NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


def perceptron(n_inputs, n_outputs, *, sizes, dropout=0.0, norm=None):
    """Return hidden layers of the sizes, with dropout or normalisation."""
    parts, width = [], n_inputs
    for size in sizes:
        # a bias before batch normalisation does nothing
        parts.append(nn.Linear(width, size, bias=norm != "batch"))
        parts += [NORMS[norm](size)] if norm else []
        parts += [nn.ReLU()]
        parts += [nn.Dropout(dropout)] if dropout else []
        width = size
    return nn.Sequential(*parts, nn.Linear(width, n_outputs))


def small_images(
    n_inputs, n_outputs, *, shape=(1, 8, 8), widths=(8, 8), strides=(1, 2), padding=1
):
    """Return two convolutions for rows of images, flat ones or not."""
    parts, (channels, *cells) = [], shape
    parts += [nn.Unflatten(1, tuple(shape))] if isinstance(n_inputs, int) else []
    for width, stride, around in zip(widths, strides, (1, padding), strict=True):
        parts += [nn.Conv2d(channels, width, 3, stride=stride, padding=around)]
        parts += [nn.ReLU()]
        cells = [(size + 2 * around - 3) // stride + 1 for size in cells]
        channels = width
    n_cells = channels * cells[0] * cells[1]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(n_cells, n_outputs))


def _convolution(n_in, n_out, norm, pool=0):
    of = nn.BatchNorm2d(n_out) if norm == "batch" else nn.GroupNorm(4, n_out)
    layers = [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), of, nn.ReLU()]
    return nn.Sequential(*layers, *([nn.MaxPool2d(pool)] if pool else []))


class Residual(nn.Module):
    """Two convolutions, added to what they are given."""

    def __init__(self, width, norm):
        super().__init__()
        self.inner = nn.Sequential(
            _convolution(width, width, norm), _convolution(width, width, norm)
        )

    def forward(self, x):
        return x + self.inner(x)


def residual(n_inputs, n_outputs, *, width=8, norm="group"):
    """Return a slim ResNet-9 for images: eight convolutions and a linear layer."""
    widths = [width, 2 * width, 4 * width, 4 * width]
    return nn.Sequential(
        _convolution(n_inputs[0], widths[0], norm, pool=2),
        _convolution(widths[0], widths[1], norm, pool=2),
        Residual(widths[1], norm),
        _convolution(widths[1], widths[2], norm, pool=2),
        _convolution(widths[2], widths[3], norm, pool=2),
        Residual(widths[3], norm),
        nn.MaxPool2d(n_inputs[1] // 16),
        nn.Flatten(),
        nn.Linear(widths[3], n_outputs),
    )


class Recurrent(nn.Module):
    """A GRU whose last state is read."""

    def __init__(self, n_inputs, n_outputs, width):
        super().__init__()
        self.steps = nn.GRU(n_inputs, width, batch_first=True)
        self.head = nn.Linear(width, n_outputs)

    def forward(self, x):
        return self.head(self.steps(x)[0][:, -1])


def recurrent(n_inputs, n_outputs, *, width=32):
    """Return a GRU for rows (steps, inputs)."""
    return Recurrent(n_inputs[-1], n_outputs, width)


class Attentive(nn.Module):
    """A layer of a transformer with learnt positions; the mean over steps is read."""

    def __init__(self, n_steps, n_inputs, n_outputs, width, n_heads):
        super().__init__()
        self.enter = nn.Linear(n_inputs, width)
        self.positions = nn.Parameter(torch.zeros(n_steps, width))
        self.layer = nn.TransformerEncoderLayer(
            width, n_heads, 2 * width, dropout=0.0, batch_first=True
        )
        self.head = nn.Linear(width, n_outputs)

    def forward(self, x):
        return self.head(self.layer(self.enter(x) + self.positions).mean(1))


def attentive(n_inputs, n_outputs, *, width=32, n_heads=4):
    """Return a small transformer for rows (steps, inputs)."""
    return Attentive(*n_inputs, n_outputs, width, n_heads)


class Characters(nn.Module):
    """A small GPT: each character sees those before it; what follows the last is read.

    Rows hold the characters' numbers.
    """

    def __init__(self, n_steps, n_outputs, n_symbols, width, n_heads, n_blocks):
        super().__init__()
        self.enter = nn.Embedding(n_symbols, width)
        self.positions = nn.Parameter(torch.zeros(n_steps, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                n_heads,
                4 * width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(n_blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, n_outputs)

    def forward(self, x):
        h = self.enter(x.long()) + self.positions
        later = torch.full((len(self.positions),) * 2, -torch.inf, device=h.device)
        for block in self.blocks:
            h = block(h, src_mask=later.triu(1))
        return self.head(self.norm(h[:, -1]))


def characters(n_inputs, n_outputs, *, n_symbols, width=32, n_heads=4, n_blocks=2):
    """Return a small GPT for rows of characters' numbers."""
    return Characters(n_inputs, n_outputs, n_symbols, width, n_heads, n_blocks)


KINDS = {
    kind.__name__: kind
    for kind in (perceptron, small_images, residual, recurrent, attentive, characters)
}


@dataclass(frozen=True)
class Network:
    """A kind of network with its options.

    Parameters
    ----------
    kind : str
        One of KINDS.
    options : dict
        Of that function.
    """

    kind: str
    options: dict = field(default_factory=dict)

    def __call__(self, n_inputs, n_outputs):
        return KINDS[self.kind](n_inputs, n_outputs, **self.options)
