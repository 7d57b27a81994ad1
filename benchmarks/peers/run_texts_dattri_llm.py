"""Scores of a fine-tuned language model by dattri-llm 0.1.0; see `_texts.py`.

Gradients are recorded while the run is repeated, or at its end in batches, and scored
from there. A score is positive where the text helps; `AdamWInfluenceAttributor` says
the effect on a query's loss, and its sign is turned. Methods propagate by queries: the
other way, their default, takes memory by the square of the number of parameters.
"""

import tempfile
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _order import main
from _texts import adapters, read_texts, summed_losses, taken
from dattri_llm import (
    AdamWInfluenceAttributor,
    AttributionArguments,
    DVEmbAttributor,
    EKFACAttributor,
    GradientStorageManager,
    HookManager,
    HookManagerConfig,
    LESSAttributor,
    OffloadCallback,
    OptimizerStateCallback,
    TracInAttributor,
)

BATCH = 8


class Recorder:
    """Records gradients of a model in a folder."""

    def __init__(self, order, folder, state=None):
        self.order, self.folder = order, Path(folder)
        self.model = order.model(state)

    @contextmanager
    def recording(self, name, callbacks=(), **options):
        layers = dict.fromkeys(adapters(self.model), "linear_io")
        store = OffloadCallback(
            offload_interval=1,
            file_manager=GradientStorageManager(str(self.folder / name)),
            recording_type="per_batch",
        )
        hooks = HookManager(
            self.model,
            config=HookManagerConfig(hook_types=layers),
            callbacks=[store, *callbacks],
            **options,
        )
        with hooks.collect():
            yield
        hooks.remove()

    def gradients(self, name, X, batch, loss):
        """Record gradients of texts where the model is."""
        with self.recording(name):
            for rows in torch.arange(len(X)).split(batch):
                self.model.zero_grad()
                loss(rows).backward()

    def queries(self):
        X = self.order.X_query
        self.gradients(
            "queries", X, 1, lambda rows: summed_losses(self.model, X[rows]).sum()
        )

    def texts(self):
        loss = partial(self.order.train_loss, self.model)
        self.gradients("texts", self.order.X, BATCH, loss)

    def run(self, preconditioned=False):
        """Repeat the fine-tuning; return the optimizer's states, steps and rates."""
        optimizer = self.order.optimizer(self.model)
        moments = OptimizerStateCallback(self.model, optimizer)
        options = {"optimizer": optimizer} if preconditioned else {}
        rates = {}
        with self.recording("run", [moments], **options):
            for _, rate in self.order.steps(self.model, optimizer):
                step = max(moments.pre)
                moments.record_post(step)
                rates[step] = rate
        self.order.check_end(taken(self.model))
        return moments, rates

    def scores(self, attributor, train, **options):
        found = attributor(
            AttributionArguments(output_dir=str(self.folder / "out"), use_cpu=True)
        )
        pair = (str(self.folder / name) for name in (train, "queries"))
        return found.attribute_from_cache(*pair, **options)


def at_end(attributor, order, **options):
    """Return scores of gradients of the fine-tuned model."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(order, folder)
        recorder.queries()
        recorder.texts()
        found = recorder.scores(attributor, "texts", **options)
        steps = sorted(set(found.row_steps))
        return np.concatenate([matrix_of(found, step) for step in steps]).T


def over_run(attributor, order, rates_as=None, by_rate=False, sign=1, **options):
    """Return the sum over the steps of the run, of scores that are per step."""
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(order, folder, order.start)
        moments, rates = recorder.run(preconditioned=attributor is LESSAttributor)
        recorder.queries()
        if attributor is AdamWInfluenceAttributor:
            options |= {"dynamics": moments.dynamics()}
        if rates_as is not None:
            options |= {rates_as: rates}
        found = recorder.scores(attributor, "run", **options)
        total = np.zeros((len(order.X_query), len(order.X)))
        for rows, (step, rate) in zip(order.batches, rates.items(), strict=True):
            own = matrix_of(found, step).T
            total[:, rows] += sign * (rate if by_rate else 1.0) * own
        return total


def matrix_of(found, step):
    """Return scores (k, q) of a step, in the order of its batch."""
    return np.asarray(found.step_matrix(step)[1])


def tracin(order, at="run", **options):
    if at == "end":
        return at_end(TracInAttributor, order, **options)
    return over_run(TracInAttributor, order, by_rate=True, **options)


BY_QUERIES = {"propagation": "test"}
METHODS = {
    "EK-FAC": (
        partial(at_end, EKFACAttributor),
        [
            {},
            *[{"damping": d} for d in (1e-6, 1e-5, 1e-4)],
            *[{"damping": d, "relative_damping": True} for d in (0.1, 1.0)],
        ],
    ),
    "AdamWInfluence": (
        partial(over_run, AdamWInfluenceAttributor, sign=-1, **BY_QUERIES),
        [{}],
    ),
    "DVEmb": (
        partial(over_run, DVEmbAttributor, rates_as="learning_rate", **BY_QUERIES),
        [{}, {"hessian_mode": "diagonal"}],
    ),
    "TracIn": (
        tracin,
        [{}, {"at": "end"}, {"at": "end", "normalized_grad": True}],
    ),
    "LESS": (partial(over_run, LESSAttributor, rates_as="learning_rates"), [{}]),
}

if __name__ == "__main__":
    main(METHODS, read_texts)
