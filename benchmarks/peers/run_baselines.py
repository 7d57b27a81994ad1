"""What needs no data attribution: the methods that anything must beat."""

import numpy as np
import torch
from _order import grid, main


def random(order):
    rng = np.random.default_rng(order.random_state)
    return rng.normal(size=(len(order.X_query), len(order.X)))


def _right(order):
    """Return 1 where row and query have the same label; signs of errors' product."""
    if order.classifies:
        return (order.y_query[:, None] == order.y[None]).float()
    # pulls the prediction of the query to where its target is
    y, y_query = order.y[:, 0], order.y_query[:, 0]
    net = order.network()
    with torch.no_grad():
        at = net(order.X)[:, 0], net(order.X_query)[:, 0]
    return torch.sign((y_query - at[1])[:, None] * (y - at[0])[None])


def _distances(order):
    return torch.cdist(order.X_query.flatten(1), order.X.flatten(1))


def label_kernel(order, width=1.0):
    """Closeness of the inputs where labels agree; a width is one of median distance."""
    distances = _distances(order)
    closeness = torch.exp(-((distances / (width * distances.median())) ** 2) / 2)
    return closeness * _right(order)


def nearest(order, k=10):
    """1/k for the nearest rows, if their label is right."""
    distances = _distances(order)
    found = torch.zeros_like(distances)
    found.scatter_(1, distances.topk(k, largest=False).indices, 1 / k)
    right = _right(order)
    return found * (2 * right - 1 if order.classifies else right)


def row_loss(order):
    """Minus the row's own loss, whatever the query is."""
    with torch.no_grad():
        losses = order.loss(order.network()(order.X), order.y, "none")
    return -losses.expand(len(order.X_query), -1)


METHODS = {
    "random": (random, [{}]),
    "label kernel": (label_kernel, grid("width", 1.0, [0.15, 0.25, 0.4, 0.6, 2.0])),
    "nearest neighbours": (nearest, grid("k", 10, [3, 30, 100])),
    "row's own loss": (row_loss, [{}]),
}

if __name__ == "__main__":
    main(METHODS)
