"""CausalLanguageModel: texts, to be trained on or to build an index from."""

import operator
import os
import warnings
from numbers import Integral

import numpy as np
import torch
from sklearn.base import BaseEstimator, _fit_context
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skattrib._docstrings import fill_in
from skattrib._indexes import check_order
from skattrib._progress import tqdm
from skattrib._validation import check_completions
from skattrib.engine._functional import chunks
from skattrib.engine._last_layer import Tokens
from skattrib.models._datasets import opened
from skattrib.models.language._fine_tuning import (
    CONSTRAINTS,
    TUNING_DOCS,
    FineTuned,
)
from skattrib.models.language._model import load
from skattrib.models.language._tokens import windows


@fill_in(TUNING_DOCS)
class CausalLanguageModel(FineTuned, BaseEstimator):
    """A causal language model, as an estimator of completions of prompts.

    A row is a prompt (X) and its completion (y). Its log-likelihood is the sum over
    the completion's tokens. Prompt and completion are turned into tokens one by one,
    and nothing is put in between: no template.

    With ``trainable=None`` nothing is trained: `fit` reads the model and checks it and
    the data, for an index of texts by :class:`~skattrib.RISEValuator`. Otherwise `fit`
    fine-tunes it on the completions, reproducibly and recorded step by step, so that
    :class:`~skattrib.AdamWInfluence` says which texts taught it what.

    Parameters
    ----------
    model : str, path-like or nn.Module
        Name or path of a model that transformers reads, which may be a GGUF file; or
        one in memory, which is neither copied nor changed. Its logits must be W h + b
        of an nn.Linear.
    tokenizer : callable, str, path-like or None, default=None
        Its tokenizer. None reads the one that is saved with the model.
    max_length : int or None, default=None
        Tokens read at once; None is the model's context. Longer texts are refused where
        the model is trained, else read in windows, each of which begins with the last
        quarter of the one before; what of a prompt is not in reach of the completion is
        not read.
    batch_size : int, default=16
        Texts read at once, sorted by length, where nothing is trained.
    add_bos : bool, default=False
        Put the tokenizer's BOS token before every prompt.
    add_eos : bool, default=True
        Put the tokenizer's end token after every completion, if the model is trained:
        so it learns where to stop.
    dtype : torch.dtype or None, default=None
        Of a model given by name; None is the saved one.
    device : str, torch.device or None, default=None
        Where to put a model given by name; None is the CPU. A model in memory stays
        where it is.
    verbose : int, default=0
        Shows progress when above 0.
    trainable : {"adapters", "last_blocks", "all"} or None, default=None
        What `fit` trains: low-rank adapters (LoRA, by peft), the weights of the last
        blocks, or all weights, also those that require no gradient. None is none.
    adapter : dict, peft.LoraConfig or None, default=None
        The adapters: keyword arguments of `peft.LoraConfig`, or one. Rank 8 on all
        linear layers of the blocks, without dropout, where nothing else is said.
    n_blocks : int or None, default=4
        Blocks at the end that are trained, or get adapters, unless `adapter` names
        `layers_to_transform`. Blocks below run once for each text. None is all.
    normalization : {"text", "token"}, default="text"
        Whether the loss of a batch is the mean over its texts, of the mean over the
        tokens of each, or the mean over all its tokens, as the trainers of Hugging Face
        have it: then long completions count more.
    %(training)s
    random_state : int, RandomState instance or None, default=None
        Seeds adapters, order and dropout.

    Attributes
    ----------
    model_ : nn.Module
        The model as it was given, read when it is first needed.
    tokenizer_ : callable
        Its tokenizer.
    network_ : estimator
        What was trained, with its module, if `trainable`: from rows of tokens to the
        mean loss of the tokens that count.
    trajectory_ : Trajectory or None
        Record of the training; None where nothing is trained.

    See Also
    --------
    skattrib.AdamWInfluence : Differentiates its training.
    skattrib.RISEValuator : Builds an index of texts, and searches it.

    Notes
    -----
    Clones share the model, and training leaves it as it was: adapters and weights that
    are trained are copies, in float32. Changed by you, it is no longer the one of an
    index or a training made before. Pickles leave it out if it was given by name or
    path, and read it again; one that was given in memory, or trained, is in them.

    DoRA (``use_dora``) trains, and may be retrained, but its norms have no gradient:
    attributions by derivatives are then far off, as a warning says.

    Attention is computed by plain matrix products while it is trained: other kernels
    have no second derivatives. Dropout of the model itself is off; that of adapters is
    part of the training, with masks that depend on the seed, the step and the text.

    The first token of a completion without a prompt has nothing that it could be
    predicted from, and does not count. Batches are padded on the right, whatever the
    tokenizer would do, where a causal model does not look.

    In half precision logits are those of the model, rounded as it does; what comes
    after them is computed in float32, and a float32 copy of the head is kept.

    References
    ----------
    Readout influence sketching, arXiv:2604.16197. LoRA: low-rank adaptation of large
    language models, arXiv:2106.09685.

    Examples
    --------
    >>> from skattrib import RISEValuator
    >>> from skattrib.models.language import CausalLanguageModel
    >>> lm = CausalLanguageModel("HuggingFaceTB/SmolLM2-135M-Instruct")
    >>> rise = RISEValuator(lm, random_state=0)

    The model is read when it is first needed, and no template is added:

    .. code-block:: python

        rise.fit(prompts, completions)
        scores, rows = rise.retrieve(["What is a fish?"], [" An animal."], n=5)

    Fine-tuned, and asked which texts made it answer so:

    .. code-block:: python

        lm = CausalLanguageModel(path, trainable="adapters", random_state=0)
        influence = AdamWInfluence(lm, random_state=0).fit(prompts, completions)
        influence.attribute(["What is a fish?"], [" An animal."])
    """

    _parameter_constraints: dict = {
        "model": [str, os.PathLike, nn.Module],
        "tokenizer": [callable, str, os.PathLike, None],
        "max_length": [Interval(Integral, 2, None, closed="left"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "add_bos": ["boolean"],
        "dtype": [torch.dtype, None],
        "device": [str, torch.device, None],
        "trainable": [StrOptions({"adapters", "last_blocks", "all"}), None],
        "normalization": [StrOptions({"text", "token"})],
        "add_eos": ["boolean"],
        **CONSTRAINTS,
    }

    def __init__(
        self,
        model,
        tokenizer=None,
        *,
        max_length=None,
        batch_size=16,
        add_bos=False,
        add_eos=True,
        dtype=None,
        device=None,
        verbose=0,
        trainable=None,
        adapter=None,
        n_blocks=4,
        normalization="text",
        optimizer="adamw",
        learning_rate=1e-3,
        schedule="linear_warmup",
        clip_norm=1.0,
        weight_decay=0.0,
        train_batch_size=8,
        max_epochs=3,
        record="recipe",
        random_state=None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.batch_size = batch_size
        self.add_bos = add_bos
        self.add_eos = add_eos
        self.dtype = dtype
        self.device = device
        self.verbose = verbose
        self.trainable = trainable
        self.adapter = adapter
        self.n_blocks = n_blocks
        self.normalization = normalization
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.weight_decay = weight_decay
        self.train_batch_size = train_batch_size
        self.max_epochs = max_epochs
        self.record = record
        self.random_state = random_state

    # ------------------------------------------------------------------ model
    def _load(self):
        """Return the `LoadedModel` of these parameters, read once."""
        key = (self.model, self.tokenizer, self.dtype, self.device)
        held, loaded = vars(self).get("_held", (None, None))
        if held is None or any(map(operator.is_not, held, key)):
            self._validate_params()
            loaded = load(*key)
            self._held = (key, loaded)
        return loaded

    @property
    def model_(self):
        """The model, read when it is first needed."""
        return self._load().model

    @property
    def tokenizer_(self):
        """Its tokenizer."""
        return self._load().tokenizer

    @property
    def trajectory_(self):
        """Record of the training; None where nothing is trained."""
        if not self.trains:
            return None
        check_is_fitted(self)
        return self.network_.trajectory_

    def __sklearn_is_fitted__(self):
        return not self.trains or hasattr(vars(self).get("network_"), "module_")

    def __dir__(self):
        # completion and the HTML of a notebook look at all that is listed: they must
        # not be what reads the model
        unread = set() if "_held" in vars(self) else {"model_", "tokenizer_"}
        unread |= set() if self.__sklearn_is_fitted__() else {"trajectory_"}
        names = set(object.__dir__(self)) - unread
        return [name for name in names if hasattr(self, name)]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.target_tags.required = True
        tags.no_validation = True
        return tags

    # -------------------------------------------------------------------- use
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Read the model, check it and the rows, and train what is to be trained.

        Parameters
        ----------
        X : sequence of str or None, of length n_samples; None; or datasets.Dataset
            Prompts. None is no prompt. Of a Dataset, the column "prompt" or "text".
        y : sequence of str, of length n_samples; or str
            Completions; or their column in the Dataset.
        sample_weight : array-like of shape (n_samples,) or None, default=None
            Multiplier of each row's loss, if it is trained.

        Returns
        -------
        self : CausalLanguageModel
            Fitted.

        Raises
        ------
        ImportError
            If the model is given by name and transformers is missing.
        ValueError
            If the model's logits are not those of its head, the tokenizer is of
            another model, a completion has nothing to predict, or one to train on is
            longer than the model can read at once.

        Warns
        -----
        UserWarning
            If texts are longer than `max_length`.
        """
        X, y = opened(X, y)
        check_order(X, y, {"sample_weight": sample_weight})
        X, y = check_completions(X, y)
        if self.trains:
            return self._train(X, y, sample_weight)
        if sample_weight is not None:
            raise ValueError(
                "sample_weight does nothing with trainable=None: nothing is trained. "
                "Leave it out, or set trainable='adapters'."
            )
        self._check_rows(X, y)
        return self

    def score(self, X, y):
        """Return the mean log-likelihood of completions, for a token each.

        Parameters
        ----------
        X : sequence of str or None, of length n_samples; or None
            Prompts.
        y : sequence of str, of length n_samples
            Completions.

        Returns
        -------
        float
            Mean over the texts of the mean over the tokens of each.
        """
        if not self.trains:
            raise ValueError("score is of a model that is trained: set trainable.")
        check_is_fitted(self)
        rows, _ = self._tokenised(*check_completions(*opened(X, y)))
        return float(-np.mean(self.network_.predict(rows)))

    def log_likelihood(self, X, y):
        """Return the log-likelihood of completions.

        Parameters
        ----------
        X : sequence of str or None, of length n_samples; or None
            Prompts.
        y : sequence of str, of length n_samples
            Completions.

        Returns
        -------
        ndarray of shape (n_samples,)
            Sum over the tokens of each completion.

        Raises
        ------
        ValueError
            As `fit`.
        """
        X, y = check_completions(*opened(X, y))
        if self.trains:
            check_is_fitted(self)
            return self._log_likelihoods(X, y)
        log_likelihoods = np.zeros(len(y))
        for tokens in self._tokens(X, y, verbose=self.verbose):
            logits = tokens.outputs.gather(1, tokens.targets[:, None])[:, 0]
            values = (logits - tokens.outputs.logsumexp(dim=1)).cpu().double().numpy()
            np.add.at(log_likelihoods, tokens.rows.cpu().numpy(), values)
        return log_likelihoods

    def _length(self):
        context = self._load().context
        if None not in (context, self.max_length) and self.max_length > context:
            raise ValueError(
                f"max_length={self.max_length} is more than the {context} tokens that "
                "the model can read at once."
            )
        return context if self.max_length is None else self.max_length

    def _windows(self, X, y, start=0):
        loaded = self._load()
        return windows(
            loaded.tokenizer,
            X,
            y,
            n_words=loaded.layer.weight.shape[0],
            length=self._length(),
            add_bos=self.add_bos,
            start=start,
        )

    def _check_rows(self, X, y):
        """Raise on rows that cannot be used; say which are too long to be read once."""
        # the tokens are made again when they are needed: all would take much memory
        long = 0
        for part in chunks(len(X), 1024):
            of_part = self._windows(X[part], y[part], part.start)
            long += len({window.row for window in of_part if not window.whole})
        if long:
            warnings.warn(
                f"{long} of {len(X)} texts are longer than {self._length()} tokens: "
                "they are read in overlapping windows, and of a long prompt only the "
                "end is.",
                UserWarning,
                stacklevel=2,
            )

    def _tokens(self, X, y, verbose=0):
        """Yield `Tokens` of checked rows, in the order of their lengths."""
        loaded = self._load()
        in_order = self._windows(X, y)
        in_order.sort(key=lambda window: len(window.ids))
        device = loaded.layer.weight.device
        with tqdm(
            total=len(in_order), desc="reading texts", disable=not verbose
        ) as bar:
            for part in chunks(len(in_order), self.batch_size):
                batch = in_order[part]
                hidden = loaded.hidden(batch)
                rows = [window.row for window in batch for _ in window.places]
                finite = torch.isfinite(hidden).all(dim=1)
                if not finite.all():
                    row = rows[int(finite.int().argmin())]
                    raise ValueError(
                        "The model's hidden states are not finite for the completion "
                        f"{y[row][:40]!r}: weights are damaged, or {hidden.dtype} is "
                        "too small for them."
                    )
                rows = torch.tensor(rows, device=device)
                targets = [target for window in batch for target in window.targets]
                targets = torch.tensor(targets, device=device)
                for piece in chunks(len(rows), loaded.tokens_at_once()):
                    yield Tokens(
                        rows[piece],
                        hidden[piece].to(loaded.head.weight.dtype),
                        loaded.logits(hidden[piece]),
                        targets[piece],
                    )
                bar.update(len(batch))
