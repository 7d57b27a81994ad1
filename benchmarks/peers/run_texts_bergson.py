"""Scores of a fine-tuned language model by bergson 2.5.0; see `_texts.py`.

Losses of texts are means over tokens, or sums, as the run's were. MAGIC is driven by
its trainer, because its command line cannot be given batches, learning rates and the
loss of a run. A score is positive where the text helps.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from _order import main
from _texts import BODY, NOTHING, read_texts
from bergson.cli.trackstar import trackstar
from bergson.config.config import (
    DataConfig,
    DistributedConfig,
    HessianConfig,
    HessianPipelineConfig,
    IndexConfig,
    InversionConfig,
    PreprocessConfig,
    QuerySetConfig,
    ScoreConfig,
    TrackstarConfig,
    TrackstarIndexConfig,
)
from bergson.data import load_scores
from bergson.hessians.pipeline import hessian_pipeline
from bergson.magic.cli import compute_per_query_magic_scores
from bergson.magic.config import MagicConfig
from bergson.magic.data_stream import DataStream, Padding
from bergson.magic.trainer import prepare_trainer
from datasets import Dataset
from torch import nn

#: its batches of tokens may not exceed the model's positions
POSITIONS = 2048
#: label of a token that does not count
IGNORED = -100


class Saved:
    """What bergson reads: a model with adapters, texts and queries, in a folder."""

    def __init__(self, order, folder, state=None):
        self.order, self.folder = order, Path(folder).resolve()
        base = order.base(max_position_embeddings=POSITIONS)
        base.save_pretrained(self.path("base"))
        model = order.model(state, base)
        model.peft_config["default"].base_model_name_or_path = self.path("base")
        model.save_pretrained(self.path("model"))
        for name in ("base", "model"):
            order.tokenizer().save_pretrained(self.path(name))
        self.texts = self._saved("texts", order.X)
        self.queries = self._saved("queries", order.X_query)

    def path(self, name):
        return str(self.folder / name)

    def _saved(self, name, X):
        ids, labels = [], []
        for tokens, following in X:
            places = (following != NOTHING).nonzero().flatten()
            end = int(places.max()) + 1
            ids.append([*tokens[:end].tolist(), int(following[end - 1])])
            own = torch.where(following == NOTHING, IGNORED, following)[:end]
            labels.append([IGNORED, *own.tolist()])
        lengths = [len(tokens) for tokens in ids]
        rows = {"input_ids": ids, "labels": labels, "length": lengths}
        saved = Dataset.from_dict(rows)
        saved.save_to_disk(self.path(name))
        return saved

    def index(self, kind, loss_reduction=None, **options):
        by_token = self.order.by_token
        return kind(
            run_path=self.path("run"),
            model=self.path("model"),
            data=DataConfig(dataset=self.path("texts")),
            loss_reduction=loss_reduction or ("sum" if by_token else "mean"),
            precision="fp32",
            distributed=DistributedConfig(nproc_per_node=1),
            **options,
        )

    def query(self):
        return QuerySetConfig(dataset=self.path("queries"), aggregation="none")

    def scores(self):
        return np.asarray(load_scores(Path(self.path("run")) / "scores")[:]).T


def ekfac(order, loss_reduction=None, **inversion):
    with tempfile.TemporaryDirectory() as folder:
        saved = Saved(order, folder)
        hessian_pipeline(
            saved.index(IndexConfig, loss_reduction),
            HessianConfig(method="kfac", ev_correction=True),
            ScoreConfig(),
            PreprocessConfig(),
            HessianPipelineConfig(
                query=saved.query(), inversion_cfg=InversionConfig(**inversion)
            ),
        )
        return saved.scores()


def track_star(order, unit_normalize=False, mix_hessians=True, **inversion):
    with tempfile.TemporaryDirectory() as folder:
        saved = Saved(order, folder)
        trackstar(
            saved.index(TrackstarIndexConfig),
            TrackstarConfig(
                query=saved.query(),
                mix_hessians=mix_hessians,
                preprocess_cfg=PreprocessConfig(
                    unit_normalize=unit_normalize,
                    inversion_cfg=InversionConfig(**inversion),
                ),
            ),
        )
        return saved.scores()


def magic(order, **setting):
    options, n = order.options, len(order.X)
    size = options["batch_size"]
    with tempfile.TemporaryDirectory() as folder:
        saved = Saved(order, folder, order.start)
        config = MagicConfig(
            run_path=saved.path("run"),
            model=saved.path("model"),
            batch_size=size,
            adam_beta1=options["betas"][0],
            adam_beta2=options["betas"][1],
            adam_eps=options["eps"],
            weight_decay=options["weight_decay"],
            max_grad_norm=options["clip_norm"],
            precision="fp32",
            wandb_project="",
            distributed=DistributedConfig(nproc_per_node=1),
            **setting,
        )
        last = len(order.rates) - 1
        trainer, state, model = prepare_trainer(
            config, 0, lambda step: order.rates[min(int(step), last)]
        )
        model.base_model.model.loss_function = weighted_loss(order.by_token)
        # a short batch is filled by texts of weight 0
        rows, names = [], []
        for batch in order.batches:
            missing = size - len(batch)
            rows += [*batch, *batch[-1:].repeat(missing)]
            names += [*batch, *[n] * missing]
        texts = saved.texts.select(rows).add_column("doc_ids", names)
        stream = DataStream(texts, size, weight_shape=(n + 1,))
        stream.weights.data[-1] = 0
        states = saved.path("states")
        state = trainer.train(
            state,
            stream,
            inplace=True,
            save_dir=states,
            max_grad_norm=options["clip_norm"],
        )
        order.check_end(named(order, state.params))
        lost = compute_per_query_magic_scores(
            trainer,
            states,
            stream,
            state,
            model,
            saved.queries,
            len(order.X_query),
            config,
            1,
            0,
            Padding(1, num_docs=1, num_examples=1),
        )
        return -lost.T  # derivatives of a query's loss


def named(order, params):
    """Return parameters of bergson's trainer by their names in an order."""
    return {k: params[BODY + k] for k in order.end}


def weighted_loss(by_token):
    """Return the loss of a batch whose texts have weights."""

    def loss(logits, labels, example_weight=None, **_):
        following = labels[:, 1:]
        losses = nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2),
            following,
            reduction="none",
            ignore_index=IGNORED,
        )
        counts = (following != IGNORED).sum(1)
        weights = torch.ones(len(counts)) if example_weight is None else example_weight
        if by_token:
            weights = weights * counts
        means = losses.sum(1) / counts.clamp(min=1)
        return (means * weights).sum() / weights.sum()

    return loss


DAMPINGS = (0.03, 0.3, 1.0)
METHODS = {
    "EK-FAC": (
        ekfac,
        [{}, *[{"damping_factor": d} for d in DAMPINGS], {"loss_reduction": "sum"}],
    ),
    "TrackStar": (
        track_star,
        [
            {},
            {"unit_normalize": True},
            {"mix_hessians": False, "damping_factor": 1.0},
            {"mix_hessians": False, "damping_factor": 10.0},
        ],
    ),
    "MAGIC": (magic, [{}, {"eps_root": 1e-10}]),
}

if __name__ == "__main__":
    main(METHODS, read_texts)
