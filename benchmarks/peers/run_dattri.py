"""Scores by dattri 0.3.0; see `_order.py` for how it is called.

A score of dattri is a product of the query's gradient with the row's, of one and the
same function or, with ``margin=True``, of the query's margin and the row's loss:
positive where the row helps.
"""

import tempfile
from types import SimpleNamespace

import torch
from _order import grid, main
from dattri.algorithm import (
    FactGraSSAttributor,
    IFAttributorArnoldi,
    IFAttributorCG,
    IFAttributorDataInf,
    IFAttributorEKFAC,
    IFAttributorExplicit,
    IFAttributorLiSSA,
    LoGraAttributor,
    TracInAttributor,
    TRAKAttributor,
)
from dattri.task import AttributionTask
from torch import nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

DAMPINGS = [1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0]
PROJECTION = {"proj_dim": 512}
DIMENSIONS = [128, 1024, 2048, 4096]


def loader(rows):
    # all rows in one batch: dattri inverts the Hessian of each batch by itself
    return DataLoader(TensorDataset(*rows), batch_size=len(rows[0]))


def batch_loss(order, net, of=None):
    """Return the mean loss of a batch."""
    of = of or order.loss

    def loss(params, batch):
        x, y = batch
        # its LiSSA turns labels to floats
        y = y.long() if order.classifies else y
        return of(functional_call(net, params, x), y, "mean")

    return loss


def row_loss(order, net, of=None):
    """Return the loss of a row that has no batch dimension."""
    of = of or order.loss

    def loss(params, row):
        x, y = row
        return of(functional_call(net, params, x[None]), y[None])

    return loss


def influence(attributor, order, margin=False, **setting):
    net = order.network()
    asked = batch_loss(order, net, order.negative_margin) if margin else None
    task = AttributionTask(batch_loss(order, net), net, order.state, target_func=asked)
    found = attributor(task, **setting)
    found.cache(loader(order.train))
    # as in dattri's examples; else LiSSA holds a graph of all its iterations
    with torch.no_grad():
        return found.attribute(loader(order.train), loader(order.queries)).T


def using(attributor):
    return lambda order, **setting: influence(attributor, order, **setting)


def trac_in(order, checkpoints, rates, margin=False, **setting):
    net = order.network()
    asked = row_loss(order, net, order.negative_margin) if margin else None
    task = AttributionTask(row_loss(order, net), net, checkpoints, target_func=asked)
    found = TracInAttributor(
        task,
        weight_list=torch.tensor(rates),
        # the projection is named each time: dattri writes what it is given over its
        # own defaults, for whatever comes after
        projector_kwargs=PROJECTION | setting,
        normalized_grad=False,
    )
    return found.attribute(loader(order.train), loader(order.queries)).T


def trac_in_checkpoints(order, **setting):
    return trac_in(order, order.checkpoints, order.rates, **setting)


def grad_dot(order, **setting):
    return trac_in(order, [order.state], [1.0], **setting)


def trak(order, regularization=0.0, **setting):
    if not order.classifies:
        raise ValueError("TRAK is given by a probability of the right class")
    net = order.network()
    loss = row_loss(order, net)

    def margin(params, row):
        log_p = -loss(params, row)
        return log_p - torch.log(1 - torch.exp(log_p))

    def probability(params, row):
        return torch.exp(-loss(params, row))

    found = TRAKAttributor(
        AttributionTask(margin, net, order.state),
        probability,
        projector_kwargs=PROJECTION | setting,
        regularization=regularization,
    )

    with torch.no_grad():
        found.cache(loader(order.train))
        return found.attribute(loader(order.queries)).T


class Named(nn.Module):
    """A network with named inputs, which returns its loss, as those of transformers.

    These projections are written for such: of batches that are tuples they hand the
    first row, without its batch dimension, to the network.
    """

    def __init__(self, order):
        super().__init__()
        self.net, self.loss = order.network(), order.loss

    def forward(self, inputs, targets=None):
        outputs = self.net(inputs)
        loss = None if targets is None else self.loss(outputs, targets)
        return SimpleNamespace(logits=outputs, loss=loss)


def named(rows):
    inputs = [dict(zip(("inputs", "targets"), row, strict=True)) for row in zip(*rows)]
    return DataLoader(inputs, batch_size=len(inputs))


def compressed(attributor):
    """Return a method that projects the gradients of each layer by factors."""

    def scores(order, **setting):
        net = Named(order)

        def loss(model, batch, device):
            return model(**batch).loss

        task = AttributionTask(loss, net, net.state_dict())
        # it reads sizes of its batches again from files, its last user's too
        with tempfile.TemporaryDirectory() as folder:
            found = attributor(task, cache_dir=folder, **setting)
            found.cache(named(order.train))
            return found.attribute(named(order.train), named(order.queries)).T

    return scores


#: of its Fisher matrix; the projections are as large as it has them, and smaller
COMPRESSED = [
    {},
    *[{"damping": d} for d in (1e-2, 1e-1, 1.0, 10.0)],
    *[{"damping": d, "proj_dim": 256} for d in (1e-2, 1e-1, 1.0, 10.0)],
]
METHODS = {
    "LoGra": (compressed(LoGraAttributor), COMPRESSED),
    "FactGraSS": (compressed(FactGraSSAttributor), COMPRESSED),
    "explicit": (using(IFAttributorExplicit), grid("regularization", None, DAMPINGS)),
    "CG": (
        using(IFAttributorCG),
        [
            *grid("regularization", None, DAMPINGS),
            {"regularization": 1e-2, "max_iter": 100},
            {"regularization": 3e-2, "max_iter": 100},
        ],
    ),
    # its damping is that of a Hessian divided by scaling, which is 50
    "LiSSA": (
        using(IFAttributorLiSSA),
        grid("damping", None, [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]),
    ),
    "Arnoldi": (
        using(IFAttributorArnoldi),
        [
            {},
            # With as many dimensions as iterations the eigenvalues that it takes are
            # not all positive; it takes their roots and returns NaN.
            *[
                {"proj_dim": k, "max_iter": 2 * k, "regularization": r}
                for k in (50, 100, 200)
                for r in (1e-3, 1e-2, 3e-2, 1e-1)
            ],
        ],
    ),
    "DataInf": (
        using(IFAttributorDataInf),
        grid("regularization", None, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
    ),
    "EK-FAC": (
        using(IFAttributorEKFAC),
        grid("damping", None, [1e-6, 1e-5, *DAMPINGS]),
    ),
    "TracIn": (trac_in_checkpoints, grid("proj_dim", None, DIMENSIONS)),
    "GradDot": (grad_dot, grid("proj_dim", None, DIMENSIONS)),
    "TRAK": (
        trak,
        [
            *grid("regularization", None, [1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1, 1.0]),
            *[
                {"regularization": r, "proj_dim": d}
                for d in (128, 2048)
                for r in (1e-2, 1e-1, 1.0)
            ],
        ],
    ),
}

if __name__ == "__main__":
    main(METHODS)
