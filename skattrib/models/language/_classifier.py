"""SequenceClassifier: classes of texts, by a language model that is fine-tuned."""

import operator
import os
from numbers import Integral

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skattrib._docstrings import fill_in
from skattrib._indexes import check_order
from skattrib._validation import check_texts, check_y, unchanged_on_error
from skattrib.models._datasets import ScoresDatasets, opened, rows_of
from skattrib.models._reading import ReadsTexts
from skattrib.models.language._adapted import AdaptedClassifier
from skattrib.models.language._blocks import (
    body_of,
    evaluated_copy,
    in_its_precision,
)
from skattrib.models.language._fine_tuning import (
    CONSTRAINTS,
    SHARED,
    TUNING_DOCS,
    SharesModel,
)
from skattrib.models.language._model import context_of, read_classifier
from skattrib.models.language._network import TextClassifier


@fill_in(TUNING_DOCS)
class SequenceClassifier(
    SharesModel, ReadsTexts, ScoresDatasets, ClassifierMixin, BaseEstimator
):
    """A classifier of texts, fine-tuned from a language model and recorded.

    Attributors take it as they take a `TorchClassifier`, with texts for rows.

    Parameters
    ----------
    model : str, path-like or nn.Module
        Name or path of a model that transformers reads as a classifier of sequences;
        or such a one in memory, with as many labels as there are classes. It is not
        changed.
    tokenizer : callable, str, path-like or None, default=None
        Its tokenizer. None reads the one that is saved with the model.
    trainable : {"adapters", "last_blocks", "all"}, default="adapters"
        What is trained beside the layers of the classes: low-rank adapters (LoRA, by
        peft), the weights of the last blocks, or all weights.
    adapter : dict, peft.LoraConfig or None, default=None
        The adapters, as in `CausalLanguageModel`.
    n_blocks : int or None, default=4
        Blocks at the end that are trained, or get adapters. None is all.
    max_length : int or None, default=None
        Tokens that are read of a text, from its beginning; None is the model's context.
    class_weight : dict, "balanced" or None, default=None
        As in `TorchClassifier`.
    %(training)s
    random_state : int, RandomState instance or None, default=None
        Seeds adapters, new layers of the classes, order and dropout of adapters.
    verbose : int, default=0
        Shows progress when above 0.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels.
    network_ : estimator
        What was trained, with its module: from rows of tokens to scores of classes.
    trajectory_ : Trajectory
        Record of the training.

    See Also
    --------
    CausalLanguageModel : The same for completions of prompts.

    Notes
    -----
    Dropout of the model is off; that of adapters is part of the training. Texts are cut
    at `max_length`, with the tokenizer's special tokens inside.

    References
    ----------
    LoRA: low-rank adaptation of large language models, arXiv:2106.09685.

    Examples
    --------
    >>> from skattrib.language import SequenceClassifier
    >>> clf = SequenceClassifier("distilbert-base-uncased", random_state=0)

    The model is read when it is fitted:

    .. code-block:: python

        dual = DualInfluence(clf, random_state=0).fit(texts, labels)
        dual.top_units(["What a day."], ["good"])
    """

    _parameter_constraints: dict = {
        "model": [str, os.PathLike, nn.Module],
        "tokenizer": [callable, str, os.PathLike, None],
        "trainable": [StrOptions({"adapters", "last_blocks", "all"})],
        "max_length": [Interval(Integral, 2, None, closed="left"), None],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        **CONSTRAINTS,
    }

    def __init__(
        self,
        model,
        tokenizer=None,
        *,
        trainable="adapters",
        adapter=None,
        n_blocks=4,
        max_length=None,
        class_weight=None,
        optimizer="adamw",
        learning_rate=1e-3,
        schedule="linear_warmup",
        clip_norm=1.0,
        weight_decay=0.0,
        train_batch_size=8,
        max_epochs=3,
        record="recipe",
        random_state=None,
        verbose=0,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.trainable = trainable
        self.adapter = adapter
        self.n_blocks = n_blocks
        self.max_length = max_length
        self.class_weight = class_weight
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.weight_decay = weight_decay
        self.train_batch_size = train_batch_size
        self.max_epochs = max_epochs
        self.record = record
        self.random_state = random_state
        self.verbose = verbose

    # ------------------------------------------------------------------ model
    def _read(self, n_classes=None):
        """Return model, names of its new layers, and tokenizer, read once.

        ``n_classes`` None takes the model for any number.
        """
        key = (self.model, self.tokenizer)
        before, held = vars(self).get("_held", (None, {}))
        if before is None or any(map(operator.is_not, before, key)):
            held = {}
            self._held = (key, held)
        if n_classes is None and held:
            return next(iter(held.values()))
        if n_classes not in held:
            held[n_classes] = read_classifier(*key, n_classes)
        return held[n_classes]

    def _load(self, n_classes):
        model, new, _ = self._read(n_classes)
        n_labels = getattr(model.config, "num_labels", n_classes)
        if n_labels != n_classes:
            raise ValueError(
                f"model has {n_labels} labels, and y {n_classes} classes: read it with "
                f"num_labels={n_classes}, or pass its name or path."
            )
        body_of(model)
        return model, new

    def __sklearn_is_fitted__(self):
        return hasattr(vars(self).get("network_"), "module_")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags

    @property
    def trains(self):
        """Whether there is something to train: always."""
        return True

    def _network(self):
        return TextClassifier(
            AdaptedClassifier(self._load, self.trainable, self.adapter, self.n_blocks),
            batch_size=self.train_batch_size,
            class_weight=self.class_weight,
            **{name: getattr(self, name) for name in SHARED},
        )

    def _tokenised(self, X, y=None):
        model, _, tokenizer = self._read(None if y is None else len(np.unique(y)))
        texts = list(check_texts(X, "X"))
        length, context = self.max_length, context_of(model)
        if None not in (length, context) and length > context:
            raise ValueError(
                f"max_length={length} is more than the {context} tokens that the model "
                "can read at once."
            )
        length = context if length is None else length
        found = tokenizer(texts, truncation=length is not None, max_length=length)
        ids = found["input_ids"]
        for i, of_text in enumerate(ids):
            if not of_text:
                raise ValueError(f"X[{i}] is {texts[i]!r}: it has no tokens.")
        rows = np.zeros((len(ids), 2, max(map(len, ids))), dtype=np.int64)
        pad = getattr(model.config, "pad_token_id", None)
        rows[:, 0] = 0 if pad is None else pad
        for row, of_text in zip(rows, ids, strict=True):
            row[0, : len(of_text)], row[1, : len(of_text)] = of_text, 1
        if pad is None and rows[:, 1].min() == 0 and not _has_cls(model):
            raise ValueError(
                "Texts are of different length, and the model has no padding token, "
                "by which it finds their ends: set model.config.pad_token_id."
            )
        _check_scores(model, rows)
        return rows, y

    # -------------------------------------------------------------------- use
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Fine-tune the model.

        Parameters
        ----------
        X : sequence of str, of length n_samples; or datasets.Dataset
            Texts. Of a Dataset, the column "text" or "prompt".
        y : array-like of shape (n_samples,); or str
            Class labels; or their column in the Dataset.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Multiplier of each row's loss.

        Returns
        -------
        self : SequenceClassifier
            Fitted.

        Raises
        ------
        ImportError
            If transformers or peft is missing.
        ValueError
            If the model has another number of labels, or the data cannot be used.
        """
        with unchanged_on_error(self):
            X, y = opened(X, y)
            check_order(X, y, {"sample_weight": sample_weight})
            y = check_y(y, multi_output=False, estimator=self)
            rows, y = self._tokenised(X, y)
            self.network_ = self._network().fit(rows, y, sample_weight)
        return self

    @property
    def classes_(self):
        """Labels."""
        check_is_fitted(self)
        return self.network_.classes_

    @property
    def trajectory_(self):
        """Record of the training."""
        check_is_fitted(self)
        return self.network_.trajectory_

    def __dir__(self):
        unread = set()
        if not self.__sklearn_is_fitted__():
            unread = {"classes_", "trajectory_"}
        return [name for name in object.__dir__(self) if name not in unread]

    def predict(self, X):
        """Predict the most likely class.

        Parameters
        ----------
        X : sequence of str, of length n_samples
            Texts.

        Returns
        -------
        ndarray of shape (n_samples,)
            Class labels.
        """
        check_is_fitted(self)
        return self.network_.predict(self._tokenised(rows_of(X))[0])

    def predict_proba(self, X):
        """Predict probabilities.

        Parameters
        ----------
        X : sequence of str, of length n_samples
            Texts.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Columns in the order of `classes_`.
        """
        check_is_fitted(self)
        return self.network_.predict_proba(self._tokenised(rows_of(X))[0])


def _check_scores(model, rows):
    """Raise unless the shortest text has scores of classes, whatever its padding."""
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    counts = rows[:, 1].sum(axis=1)
    row = torch.tensor(rows[counts.argmin()], device=parameter.device)
    length, model = int(counts.min()), evaluated_copy(model)
    widths = {length, row.shape[1]}
    with torch.no_grad(), in_its_precision(parameter.dtype):
        found = [
            getattr(model(input_ids=ids, attention_mask=mask), "logits", None)
            for ids, mask in (row[:, None, :width] for width in sorted(widths))
        ]
    name = type(model).__name__
    if found[0] is None or found[0].ndim != 2:
        raise ValueError(
            f"model is {name}, which has no scores of classes for a text: pass one of "
            "transformers' ...ForSequenceClassification, or its name or path, from "
            "which one is made."
        )
    error, size = (found[-1] - found[0]).norm(), found[0].norm()
    if error > torch.finfo(parameter.dtype).eps ** 0.5 * size:
        raise ValueError(
            f"The scores of {name} depend on the padding of a text: it reads the place "
            "after its end, or does not look at masks. Texts of different length are "
            "padded on the right: use a model that classifies by its first token, as "
            "BERT, or finds the last one by its pad_token_id, as Llama and GPT-2 do."
        )


def _has_cls(model):
    """Whether a model classifies by its first token, and looks at masks."""
    return not getattr(model.config, "is_decoder", False) and not hasattr(
        model, "score"
    )
