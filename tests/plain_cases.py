"""Modules that torch.func's transforms do not take, or get wrong, and a reference."""

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint


class Recurrent(nn.Module):
    """A recurrent layer over four steps of two features."""

    def __init__(self, kind=nn.LSTM, n_inputs=8, n_outputs=3):
        super().__init__()
        self.width = n_inputs // 4
        self.cells = kind(self.width, 4, batch_first=True)
        self.head = nn.Linear(4, n_outputs)

    def forward(self, x):
        steps = self.cells(x.view(len(x), 4, self.width))[0]
        return self.head(steps[:, -1])


class Packed(nn.Module):
    """Sequences whose lengths are read off the rows."""

    def __init__(self):
        super().__init__()
        self.cells, self.head = nn.GRU(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        lengths = 1 + (x > 0).sum(1).clamp(max=3).cpu()
        packed = pack_padded_sequence(
            x.view(-1, 4, 2), lengths, batch_first=True, enforce_sorted=False
        )
        return self.head(self.cells(packed)[1][0])


class Checkpointed(nn.Module):
    """Activations that are computed again in the backward pass."""

    def __init__(self, use_reentrant=False):
        super().__init__()
        self.first, self.inner = nn.Linear(8, 8), nn.Linear(8, 4)
        self.head, self.slopes = nn.Linear(4, 3), nn.Parameter(torch.rand(4))
        self.use_reentrant = use_reentrant

    def _block(self, x):
        return (self.inner(x) * self.slopes).tanh()

    def forward(self, x):
        h = checkpoint(self._block, self.first(x), use_reentrant=self.use_reentrant)
        return self.head(h)


class Cube(torch.autograd.Function):
    """In the old style, which has no rule for vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * cotangent


class WrongRule(torch.autograd.Function):
    """An exponential whose rule for vmap returns something else."""

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, cotangent):
        (output,) = ctx.saved_tensors
        return output * cotangent

    @staticmethod
    def vmap(info, in_dims, x):
        return 0.5 * x.exp(), in_dims[0]


class Custom(nn.Module):
    """A custom function of parameters that belong to no layer."""

    def __init__(self, function=Cube):
        super().__init__()
        self.inner, self.slopes = nn.Linear(8, 3), nn.Parameter(torch.rand(3) + 0.5)
        self.function = function

    def forward(self, x):
        return self.function.apply(self.inner(x) * self.slopes)


class Padded(nn.Module):
    """An encoder with masked positions; its first position is never masked."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.inner, self.head = nn.Linear(2, 4), nn.Linear(4, 3)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, x):
        x = x.view(len(x), 4, 2)
        masked = (x[:, :, 0] > 0.8) & (torch.arange(4) > 0)
        hidden = self.encoder(self.inner(x), src_key_padding_mask=masked)
        return self.head(hidden[:, 0])


class Routed(nn.Module):
    """Every row goes to one of two layers."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x):
        return torch.stack([self.one(r) if r[0] > 0 else self.two(r) for r in x])


class Gathered(Routed):
    """The same, with the rows of each layer together."""

    def forward(self, x):
        out = x.new_zeros(len(x), 3)
        for layer, chosen in ((self.one, x[:, 0] > 0), (self.two, x[:, 0] <= 0)):
            rows = chosen.nonzero()[:, 0]
            out[rows] = layer(x[rows])
        return out


class InPlace(nn.Module):
    """Writes into a tensor of zeros."""

    def __init__(self):
        super().__init__()
        self.inner, self.slopes = nn.Linear(8, 3), nn.Parameter(torch.rand(3))

    def forward(self, x):
        out = x.new_zeros(len(x), 3)
        out += self.inner(x) * self.slopes
        return out


class Words(nn.Module):
    """An embedding whose gradients are sparse."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(5, 4, sparse=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.words((x > 0).long().sum(1) // 2))


class Prototypes(nn.Module):
    """Distances to points: torch.func.jacrev returns zeros."""

    def __init__(self):
        super().__init__()
        self.points = nn.Parameter(torch.randn(3, 8))

    def forward(self, x):
        return -torch.cdist(x, self.points)


def with_activation(activation):
    return nn.Sequential(nn.Linear(8, 4), activation, nn.Linear(4, 3))


# By name: a function that builds the module.
SLOW = {
    "lstm": Recurrent,
    "gru": lambda: Recurrent(nn.GRU),
    "rnn": lambda: Recurrent(nn.RNN),
    "prelu": lambda: with_activation(nn.PReLU()),
    "packed": Packed,
    "checkpoint": Checkpointed,
    "custom": Custom,
    "wrong_rule": lambda: Custom(WrongRule),
    "routed": Routed,
    "gathered": Gathered,
    "cdist": Prototypes,
}
REFUSED = {"reentrant": lambda: Checkpointed(use_reentrant=True)}
# These are taken by torch.func after all.
FAST = {
    "padded": Padded,
    "rrelu": lambda: with_activation(nn.RReLU()),
    "in_place": InPlace,
    "words": Words,
}


def build(name, seed=0):
    """Return a module in eval mode and double precision, from a seed."""
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        return (SLOW | FAST | REFUSED)[name]().double().eval()


def plain_jacobians(module, X):
    """Gradients (n, C, P) by one backward pass for each row and output."""
    params, jacobians = list(module.parameters()), []
    for row in torch.as_tensor(X):
        gradients = []
        for output in module(row[None])[0]:
            found = torch.autograd.grad(
                output, params, retain_graph=True, materialize_grads=True
            )
            gradients.append(torch.cat([g.to_dense().reshape(-1) for g in found]))
        jacobians.append(torch.stack(gradients))
    return torch.stack(jacobians).numpy()


def newton_attributions(module, X, y, X_query, y_query, ridge):
    """Changes of log-likelihoods when each row is left out, by one Newton step.

    The curvature is that of the rows that stay, linearised at the module's parameters;
    the gradient counts what is left of the whole one, as training need not have ended.
    """
    J, J_query = plain_jacobians(module, X), plain_jacobians(module, X_query)
    with torch.no_grad():
        F = module(torch.as_tensor(X)).numpy()
        F_query = module(torch.as_tensor(X_query)).numpy()
    P = np.exp(F - np.logaddexp.reduce(F, axis=1, keepdims=True))
    n, C = P.shape
    blocks = P[:, :, None] * (np.eye(C) - P[:, None, :])
    gradients = np.einsum("ncp,nc->np", J, P - np.eye(C)[y])
    curvatures = np.einsum("ncp,ncd,ndq->npq", J, blocks, J)
    queries = np.arange(len(y_query))

    def log_likelihood(outputs):
        return (outputs - np.logaddexp.reduce(outputs, axis=1, keepdims=True))[
            queries, y_query
        ]

    before, found = log_likelihood(F_query), []
    for i in range(n):
        rows = np.delete(np.arange(n), i)
        H = curvatures[rows].sum(0) + ridge * (n - 1) * np.eye(J.shape[2])
        left = gradients[rows].sum(0) - (n - 1) / n * gradients.sum(0)
        moved = F_query - J_query @ np.linalg.solve(H, left)
        found.append(before - log_likelihood(moved))
    return np.array(found).T
