"""Scores by pydvl 0.10.0; see `_order.py` for how it is called.

pydvl's influence "up" is the product of the query's gradient, the inverse Hessian and
the row's gradient: positive where the row helps.
"""

from _order import grid, main
from pydvl.influence.torch import (
    CgInfluence,
    DirectInfluence,
    EkfacInfluence,
    NystroemSketchInfluence,
)
from torch.utils.data import DataLoader, TensorDataset

DAMPINGS = [1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0]
LIMIT = {"maxiter": 200}


def influences(model, order):
    # one batch is what its manual has in memory; sums over batches come out alike
    model.fit(DataLoader(TensorDataset(*order.train), batch_size=len(order.X)))
    return model.influences(*order.queries, *order.train)


def using(influence):
    def scores(order, **setting):
        def loss(outputs, targets):
            return order.loss(outputs, targets, "mean")

        return influences(influence(order.network(), loss, **setting), order)

    return scores


def ekfac(order, **setting):
    if not order.classifies:
        raise ValueError("EkfacInfluence is for cross-entropies only")
    return influences(EkfacInfluence(order.network(), **setting), order)


METHODS = {
    "Direct": (using(DirectInfluence), grid("regularization", None, DAMPINGS)),
    # The default, ten iterations per parameter, is too long to wait for where the
    # undamped Hessian is indefinite: three quarters of an hour for 1,210 parameters.
    "CG": (
        using(CgInfluence),
        [
            LIMIT,
            *[LIMIT | {"regularization": r} for r in (1e-2, 3e-2, 1e-1)],
            *[
                {"regularization": r, "solve_simultaneously": True}
                for r in (1e-2, 3e-2, 1e-1, 1.0)
            ],
        ],
    ),
    # Neither parameter has a default. Its manual shows rank 10 and no regularization,
    # but that raises.
    "Nystroem": (
        using(NystroemSketchInfluence),
        [
            *[{"rank": 10, "regularization": r} for r in (1e-2, 1e-1, 1.0)],
            *[
                {"rank": k, "regularization": r}
                for k in (50, 200)
                for r in (1e-3, 1e-2, 3e-2, 1e-1)
            ],
        ],
    ),
    "EK-FAC": (
        ekfac,
        [
            *grid("hessian_regularization", None, [1e-5, 3e-4, *DAMPINGS]),
            *[
                {"hessian_regularization": r, "update_diagonal": True}
                for r in (1e-4, 3e-4, 1e-3, 1e-2, 1e-1)
            ],
        ],
    ),
}

if __name__ == "__main__":
    main(METHODS)
