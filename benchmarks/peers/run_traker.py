"""Scores by traker 0.3.2; see `_order.py` for how it is called.

Scores estimate what a row adds to the query's margin: positive where it helps.
"""

import logging
import tempfile

import torch
from _order import main
from trak import TRAKer


def trak(order, n_models=None, **setting):
    """Score the trained network, or so many that were trained on halves of the rows."""
    if n_models is None:
        return of_states([order.state], order, **setting)
    states = [one.state for one in order.of_models(n_models)]
    return of_states(states, order, **setting)


trak.combines = True


def of_states(states, order, **setting):
    if not order.classifies:
        raise ValueError("TRAKer has no task for regression")
    with tempfile.TemporaryDirectory() as folder:
        traker = TRAKer(
            model=order.network(),
            task="image_classification",
            train_set_size=len(order.X),
            save_dir=folder,
            # on the CPU it takes its BasicProjector
            device="cpu",
            logging_level=logging.ERROR,
            **setting,
        )
        for i, state in enumerate(states):
            traker.load_checkpoint(state, model_id=i)
            traker.featurize(batch=order.train, num_samples=len(order.X))
        traker.finalize_features()
        for i, state in enumerate(states):
            traker.start_scoring_checkpoint("queries", state, i, len(order.X_query))
            traker.score(batch=order.queries, num_samples=len(order.X_query))
        # a map of a file in the folder
        return torch.tensor(traker.finalize_scores("queries")).T


SINGLE = {"use_half_precision": False}
METHODS = {
    "TRAK": (
        trak,
        [
            {},
            SINGLE,
            *[
                SINGLE | {"lambda_reg": r}
                for r in (1.0, 10.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
            ],
            *[
                SINGLE | {"lambda_reg": r, "proj_dim": 512}
                for r in (10.0, 100.0, 1e3, 1e4)
            ],
        ],
    ),
}

if __name__ == "__main__":
    main(METHODS)
