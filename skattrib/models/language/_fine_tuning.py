"""What a language model does to be trained: a network of its tokens."""

import numpy as np

from skattrib._validation import float_dtype, unchanged_on_error
from skattrib.models._reading import ReadsTexts
from skattrib.models.language._adapted import Adapted
from skattrib.models.language._encoding import encoded, one_by_one
from skattrib.models.language._network import CompletionLoss, TextNetwork

#: Parameters of the estimator that are those of its network, too.
_SHARED = (
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


class FineTuned(ReadsTexts):
    """Methods of a `CausalLanguageModel` that is trained on completions of prompts.

    It has the parameters `_SHARED` and those that are read here, and ``_load``.
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
            **{name: getattr(self, name) for name in _SHARED},
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
            network = self._network()
            network.set_params(device=str(self._load().layer.weight.device))
            self.network_ = network.fit(rows, counts, sample_weight)
        return self

    def _log_likelihoods(self, X, y):
        rows, counts = self._tokenised(X, y)
        losses = self.network_.predict(rows).astype(float_dtype(counts))
        return -counts * losses
