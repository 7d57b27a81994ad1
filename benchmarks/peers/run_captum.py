"""Scores by captum 0.9.0; see `_order.py` for how it is called.

Proponents, whose scores are high, lower the query's loss: positive where the row helps.
"""

from _order import main
from captum.influence import TracInCP, TracInCPFast

# captum 0.9.0 has it, but exports it nowhere else
from captum.influence._core.arnoldi_influence_function import ArnoldiInfluenceFunction
from torch.utils.data import TensorDataset


class SummedLoss:
    """A loss as captum wants it: it reads the attribute."""

    reduction = "sum"

    def __init__(self, order):
        self.order = order

    def __call__(self, outputs, targets):
        return self.order.loss(outputs, targets, self.reduction)


def queries(order):
    return (order.X_query, order.y_query)


def trac_in(method, order, **options):
    def load(net, i):
        net.load_state_dict(order.checkpoints[i])
        return order.rates[i]

    found = method(
        order.network(),
        train_dataset=TensorDataset(*order.train),
        checkpoints=list(range(len(order.checkpoints))),
        checkpoints_load_func=load,
        loss_fn=SummedLoss(order),
        batch_size=len(order.X),
        **options,
    )
    return found.influence(queries(order))


def fast(order):
    last = str(2 * (len(order.layers) - 2))
    return trac_in(TracInCPFast, order, final_fc_layer=last)


def all_layers(order):
    return trac_in(TracInCP, order, sample_wise_grads_per_batch=True)


def arnoldi(order, **setting):
    def load(net, state):
        net.load_state_dict(state)
        # learning rates are asked of every loader
        return 1.0

    found = ArnoldiInfluenceFunction(
        order.network(),
        train_dataset=TensorDataset(*order.train),
        checkpoint=order.state,
        checkpoints_load_func=load,
        loss_fn=SummedLoss(order),
        batch_size=len(order.X),
        sample_wise_grads_per_batch=True,
        **setting,
    )
    return found.influence(queries(order))


METHODS = {
    "TracInCPFast": (fast, [{}]),
    "TracInCP": (all_layers, [{}]),
    # its Hessian is that of the sum over rows, and so are these
    "Arnoldi": (
        arnoldi,
        [
            {},
            *[{"hessian_reg": r} for r in (1e-1, 1.0, 5.0, 15.0, 50.0)],
            *[
                {"projection_dim": k, "hessian_reg": r}
                for k in (100, 200)
                for r in (1.0, 5.0, 15.0)
            ],
        ],
    ),
}

if __name__ == "__main__":
    main(METHODS)
