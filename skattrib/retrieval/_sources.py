"""Sources of signatures: rows of tables or texts, as tokens with hidden states."""

import hashlib

import torch

from skattrib._validation import as_tensor, memory_cap
from skattrib.engine._functional import apart
from skattrib.engine._last_layer import Head, Tokens, find_head, hidden_states
from skattrib.engine._losses import CrossEntropy
from skattrib.engine._modules import activation_size
from skattrib.models._as_model import as_model

# Copies in memory of the outputs and of the signature of each row.
_COPIES = 6
# Batches of texts that are sorted by length together.
_BATCHES = 8


def text_digest(texts):
    """Return a hash of a sequence of texts."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def source(estimator, like):
    """Return the source for an estimator; ``like`` are some of its rows."""
    model = as_model(estimator)
    if model.takes_texts:
        return TextSource(model.estimator)
    return TableSource(model, like)


class TableSource:
    """Rows of numbers, with a differentiable model: one token per row.

    The last layer is found once, here, and not again for queries.
    """

    def __init__(self, model, like):
        self._model = model
        self.loss = model.loss
        # hooks are added to a copy: other threads may be using the module
        module = apart(self.module)
        rows = as_tensor(like[:2], self._like)
        last = find_head(module, rows)
        self._last = next(n for n, layer in module.named_modules() if layer is last)
        self._activations = activation_size(module, rows)

    @property
    def module(self):
        """The fitted module."""
        return self._model.module

    @property
    def head(self):
        """The last linear layer."""
        return Head.of(self.module.get_submodule(self._last))

    @property
    def _like(self):
        return next(self.module.parameters())

    def settings(self):
        """Return further settings on which an index depends."""
        return {}

    def fitting(self, width):
        """Return how many rows with signatures of ``width`` numbers fit the memory."""
        numbers = sum(self.head.weight.shape) + width + self._activations
        return int(memory_cap() / (_COPIES * numbers * self._like.element_size()))

    def rows_at_once(self, width):
        """Return how many rows to process at a time."""
        return max(1, self.fitting(width))

    def check_size(self, width, n_bytes):
        """Do nothing: an index of numbers is never too large."""

    def tokens(self, X, y):
        """Yield `Tokens`."""
        module = apart(self.module)
        rows = as_tensor(X, self._like)
        hidden, outputs = hidden_states(module, module.get_submodule(self._last), rows)
        row_of_token = torch.arange(len(rows), device=rows.device)
        yield Tokens(row_of_token, hidden, outputs, self._model.targets(y, rows))


class TextSource:
    """Prompts and completions, with a CausalLanguageModel."""

    loss = CrossEntropy()

    def __init__(self, model):
        self._model = model

    @property
    def module(self):
        """The language model, loaded once in every process."""
        return self._model._load().model

    @property
    def head(self):
        """Its last linear layer."""
        return self._model._load().head

    def settings(self):
        """Return further settings on which an index depends: those of the tokenizer."""
        tokenizer = self._model.tokenizer_
        if not hasattr(tokenizer, "get_vocab"):
            raise ValueError(
                f"tokenizer={tokenizer!r} has no get_vocab(), a dict of words and "
                "their numbers, by which an index knows its tokenizer: add it."
            )
        words = tokenizer.get_vocab()
        return {
            "add_bos": bool(self._model.add_bos),
            "max_length": self._model._length(),
            "tokenizer": text_digest(f"{w} {i}" for w, i in sorted(words.items())),
        }

    def fitting(self, width):
        """Return how many rows with signatures of ``width`` numbers fit the memory."""
        return int(memory_cap() / (_COPIES * width * self.head.weight.element_size()))

    def rows_at_once(self, width):
        """Return how many rows to process at a time."""
        return max(1, min(self.fitting(width), _BATCHES * self._model.batch_size))

    def check_size(self, width, n_bytes):
        """Raise if signatures, or an index of ``n_bytes`` in memory, are too large."""
        if not self.fitting(width) or n_bytes > memory_cap():
            raise ValueError(
                f"The index has {width} numbers per row, which is too much for the "
                f"{memory_cap() / 2**20:.0f} MiB of working memory: use "
                "sketch='tensor', a smaller n_components or index=path, or raise "
                "sklearn.set_config(working_memory=...)."
            )

    def tokens(self, X, y):
        """Yield `Tokens`."""
        return self._model._tokens(X, y)
