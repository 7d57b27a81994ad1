"""Scores by kronfluence 1.0.1; see `_order.py` for how it is called.

A score is the product of the measurement's gradient, the inverse curvature and the
gradient of the row's loss. The measurement is the query's loss, or minus its margin:
positive where the row helps.
"""

import tempfile
from functools import partial

import torch
from _order import main
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch.utils.data import TensorDataset

DAMPINGS = [None, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]


class SummedLoss(Task):
    def __init__(self, order, margin):
        self.order = order
        self.measured = order.negative_margin if margin else order.loss

    def compute_train_loss(self, batch, model, sample=False):
        rows, targets = batch
        outputs = model(rows)
        if sample:
            with torch.no_grad():
                targets = self.draw(outputs)
        return self.order.loss(outputs, targets)

    def draw(self, outputs):
        """Draw targets from the distribution that the loss belongs to."""
        if self.order.classifies:
            return torch.multinomial(outputs.softmax(-1), num_samples=1).flatten()
        return torch.normal(outputs, 1.0)

    def compute_measurement(self, batch, model):
        rows, targets = batch
        return self.measured(model(rows), targets)


def scores(strategy, order, margin=False, **setting):
    task = SummedLoss(order, margin)
    train, queries = TensorDataset(*order.train), TensorDataset(*order.queries)
    # it works through files
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "order",
            prepare_model(order.network(), task),
            task,
            cpu=True,
            disable_tqdm=True,
            output_dir=folder,
        )
        analyzer.fit_all_factors(
            "factors",
            train,
            per_device_batch_size=len(train),
            factor_args=FactorArguments(strategy=strategy),
        )
        analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            queries,
            train,
            per_device_query_batch_size=len(queries),
            per_device_train_batch_size=len(train),
            score_args=ScoreArguments(**setting),
        )
        return analyzer.load_pairwise_scores("scores")["all_modules"]


DAMPED = [{}, *[{"damping_factor": d} for d in DAMPINGS]]
METHODS = {
    "EK-FAC": (partial(scores, "ekfac"), DAMPED),
    "K-FAC": (partial(scores, "kfac"), DAMPED),
    "identity": (partial(scores, "identity"), [{}]),
}

if __name__ == "__main__":
    main(METHODS)
