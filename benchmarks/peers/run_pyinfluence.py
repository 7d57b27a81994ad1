"""Scores by pyinfluence 0.5.0; see `_order.py` for how it is called.

It knows linear models of scikit-learn with at most two classes, and no networks. With
mode="loss" scores are positive where the row helps.
"""

from _order import grid, main
from pyinfluence import InfluenceFunctions
from sklearn.linear_model import LogisticRegression, Ridge


def scores(model, order, **setting):
    found = InfluenceFunctions(**setting).fit(model, order.X.numpy(), targets(order.y))
    return found.explain(order.X_query.numpy(), targets(order.y_query))


def targets(y):
    return y.flatten().numpy()


def network(order, **setting):
    """Ask for the network that was ordered: the error says what it takes."""
    return scores(order.network(), order, **setting)


def linear(order, **setting):
    """Attribute a linear model, not the network that was ordered."""
    model = LogisticRegression() if order.classifies else Ridge()
    model.fit(order.X.numpy(), targets(order.y))
    return scores(model, order, **setting)


METHODS = {
    "InfluenceFunctions": (network, [{}]),
    "InfluenceFunctions, other model": (
        linear,
        grid("damping", None, [1e-3, 1e-2, 1e-1, 1.0, 10.0]),
    ),
}

if __name__ == "__main__":
    main(METHODS)
