"""Scores of a fine-tuned language model by kronfluence 1.0.1; see `_texts.py`.

The curvature is that of labels drawn from the model, of the loss as it was trained. A
score is positive where the text helps.
"""

import tempfile
from functools import partial

import torch
from _order import main
from _texts import NOTHING, adapters, logits, read_texts, summed_losses
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import FactorArguments, ScoreArguments
from kronfluence.task import Task
from torch import nn
from torch.utils.data import TensorDataset

BATCH = 8
DAMPINGS = [None, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3]


class Completions(Task):
    def __init__(self, order, tracked):
        self.order, self.tracked = order, tracked

    def compute_train_loss(self, batch, model, sample=False):
        (X,) = batch
        found, targets, row = logits(model, X)
        if sample:
            with torch.no_grad():
                targets = torch.multinomial(found.softmax(-1), 1).flatten()
        losses = nn.functional.cross_entropy(found, targets, reduction="none")
        if not self.order.by_token:
            losses = losses / (X[:, 1] != NOTHING).sum(1)[row]
        return losses.sum()

    def compute_measurement(self, batch, model):
        return summed_losses(model, batch[0]).sum()

    def get_influence_tracked_modules(self):
        return self.tracked

    def get_attention_mask(self, batch):
        # tokens are padded after the last one that counts; in whole numbers, because
        # those of half the covariances are counted by adding to int64
        counts = batch[0][:, 1] != NOTHING
        return counts.flip(1).cummax(1).values.flip(1).long()


def scores(strategy, order, **setting):
    model = order.model()
    task = Completions(order, adapters(model))
    train, queries = TensorDataset(order.X), TensorDataset(order.X_query)
    # it works through files
    with tempfile.TemporaryDirectory() as folder:
        analyzer = Analyzer(
            "order",
            prepare_model(model, task),
            task,
            cpu=True,
            disable_tqdm=True,
            output_dir=folder,
        )
        analyzer.fit_all_factors(
            "factors",
            train,
            per_device_batch_size=BATCH,
            factor_args=FactorArguments(strategy=strategy),
        )
        analyzer.compute_pairwise_scores(
            "scores",
            "factors",
            queries,
            train,
            per_device_query_batch_size=len(queries),
            per_device_train_batch_size=BATCH,
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
    main(METHODS, read_texts)
