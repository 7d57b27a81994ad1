"""What a language model does to be trained: a network of its tokens."""

import copy
from collections.abc import Mapping
from numbers import Integral, Real

import numpy as np
from sklearn.base import clone
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from skattrib._validation import unchanged_on_error
from skattrib.engine._optimizers import OPTIMIZERS, Optimizer, refuse_torch
from skattrib.engine._trajectory import SCHEDULES
from skattrib.models._reading import ReadsTexts
from skattrib.models.language._adapted import Adapted
from skattrib.models.language._encoding import encoded, one_by_one
from skattrib.models.language._network import CompletionLoss, TextNetwork

#: What their docstrings have in common.
TUNING_DOCS = {
    "training": """
    optimizer : str or Optimizer, default="adamw"
        As in `TorchClassifier`, and so the next four.
    learning_rate : float, default=1e-3
        Step size, before the schedule.
    schedule : str or callable, default="linear_warmup"
        Factor on it by step.
    clip_norm : float or None, default=1.0
        Longest gradient of a step.
    weight_decay : float, default=0.0
        Of the optimizer.
    train_batch_size : int, default=8
        Texts in a step.
    max_epochs : int, default=3
        Passes over the texts.
    record : {"recipe", "checkpoints", "states"}, default="recipe"
        What is kept of the training, as in `TorchClassifier`.
    """,
}
#: What parameters of estimators that are fine-tuned may be.
CONSTRAINTS: dict = {
    "adapter": [Mapping, HasMethods("to_dict"), None],
    "n_blocks": [Interval(Integral, 1, None, closed="left"), None],
    # a view: it sees what is registered later
    "optimizer": [StrOptions(OPTIMIZERS.keys()), Optimizer],
    "learning_rate": [Interval(Real, 0, None, closed="neither")],
    "schedule": [StrOptions(set(SCHEDULES)), callable],
    "clip_norm": [Interval(Real, 0, None, closed="neither"), None],
    "weight_decay": [Interval(Real, 0, None, closed="left")],
    "train_batch_size": [Interval(Integral, 1, None, closed="left")],
    "max_epochs": [Interval(Integral, 1, None, closed="left")],
    "record": [StrOptions({"recipe", "checkpoints", "states"})],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
}
#: Parameters of the estimator that are those of its network, too.
SHARED = (
    "optimizer",
    "learning_rate",
    "schedule",
    "clip_norm",
    "weight_decay",
    "max_epochs",
    "record",
    "random_state",
    "verbose",
)


class SharesModel:
    """Methods of an estimator whose clones share model and tokenizer, once read.

    What is trained is a copy: another one of all weights would have no use. What was
    read, ``_held``, is not in pickles.
    """

    def __sklearn_clone__(self):
        shared = {"model", "tokenizer"}
        params = {
            name: value if name in shared else clone(value, safe=False)
            for name, value in self.get_params(deep=False).items()
        }
        other = type(self)(**params)
        for name in ("_held", "_metadata_request", "_sklearn_output_config"):
            if name in vars(self):
                value = vars(self)[name]
                setattr(other, name, value if name == "_held" else copy.deepcopy(value))
        return other

    def __getstate__(self):
        state = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_held"}

    def _validate_params(self):
        # what was recorded has none of its own
        refuse_torch(getattr(self, "optimizer", None))
        super()._validate_params()


class FineTuned(SharesModel, ReadsTexts):
    """Methods of a `CausalLanguageModel` that is trained on completions of prompts.

    It has the parameters `SHARED` and those that are read here, and ``_load``.
    """

    has_completions = True

    @property
    def trains(self):
        """Whether there is something to train."""
        return self.trainable is not None

    def _network(self):
        return TextNetwork(
            Adapted(self._load, self.trainable, self.adapter, self.n_blocks),
            loss=CompletionLoss(by_token=self.normalization == "token"),
            batch_size=self.train_batch_size,
            **{name: getattr(self, name) for name in SHARED},
        )

    def _tokenised(self, X, y=None):
        loaded = self._load()
        rows, counts = encoded(
            loaded.tokenizer,
            X,
            y,
            n_words=loaded.layer.weight.shape[0],
            length=self._length(),
            add_bos=self.add_bos,
            add_eos=self.add_eos,
        )
        return rows, counts.astype(np.float64)

    def _by_token(self, rows):
        rows, queries, positions = one_by_one(rows)
        ids = rows[:, 1].max(axis=1)
        tokenizer = self._load().tokenizer
        decode = getattr(tokenizer, "decode", None)
        texts = [decode([i]) if decode else str(i) for i in ids.tolist()]
        tokens = {"query": queries, "position": positions}
        return rows, np.ones(len(rows)), {**tokens, "token": texts}

    def _train(self, X, y, sample_weight):
        """Train a network on checked texts."""
        with unchanged_on_error(self):
            rows, counts = self._tokenised(X, y)
            self.network_ = self._network().fit(rows, counts, sample_weight)
        return self

    def _log_likelihoods(self, X, y):
        rows, counts = self._tokenised(X, y)
        return -counts * self.network_.predict(rows)
