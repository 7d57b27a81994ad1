"""A callback of transformers' Trainer that records a fine-tuning."""

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from skattrib._validation import check_completions
from skattrib.engine._functional import FunctionalModule
from skattrib.exceptions import TrajectoryError
from skattrib.models._datasets import opened
from skattrib.models.language._adapter_draws import AdapterDraws
from skattrib.models.language._blocks import private_copy
from skattrib.models.language._model import load
from skattrib.models.language._recorded import (
    RecordedLanguageModel,
    RecordedTextNetwork,
)
from skattrib.models.language._trainer_checks import (
    check_apart,
    check_arguments,
    check_tokens,
    check_trained,
    counted,
    refuse_draws,
    texts_of,
)
from skattrib.models.recording._callbacks import with_base, written_class
from skattrib.models.recording._recording import record_training
from skattrib.models.recording._replay import repeat
from skattrib.models.recording._row_order import RowOrder, unwatch

_CAUSES = (
    "The Trainer must take the mean cross-entropy of all tokens of a step whose label "
    "is not -100, as it does by itself: leave compute_loss as it is, and "
    "compute_loss_func out. Other causes: a model that takes no num_items_in_batch, "
    "whose parts are averaged as means (use gradient_accumulation_steps=1); a term "
    "besides the loss (of a model of experts, router_aux_loss_coef); a model changed "
    "since; padding on the left of a model with absolute positions (use "
    "tokenizer.padding_side='right')."
)


class _Adapters(nn.Module):
    """What is trained of a model, by its own names, without the model."""

    def __init__(self, named):
        super().__init__()
        self._parameters.update(named)  # whose names have dots


class HuggingFaceRecorder:
    """Records a fine-tuning by transformers' Trainer, which goes on as it does.

    Pass it among the ``callbacks`` of a ``transformers.Trainer`` of a causal language
    model with low-rank adapters (LoRA) of peft. The rows of each step are known from
    the data set, shuffled or grouped or not.

    See Also
    --------
    skattrib.language.CausalLanguageModel : Fine-tunes by itself.
    LightningRecorder : The same for networks trained by Lightning.

    Notes
    -----
    Recorded are the adapters at the beginning, the rows and the learning rate of each
    step, clipping by ``max_grad_norm``, the options of AdamW, Adam, SGD, RMSprop or
    Muon of torch, and gradients accumulated over parts. The loss is what the Trainer
    takes: the mean over all tokens of a step that count (with ``num_items_in_batch``),
    which is ``normalization="token"`` of a `CausalLanguageModel`. Dropout of adapters
    is repeated from the states of torch's generator, with the masks each text had, in
    the first block of which something is trained and those above.

    Refused are dropout of the model itself, and of adapters that are frozen outside of
    these blocks, as what is below runs once, without masks; of adapters in layers that
    do not see each token once (experts); weights that are trained besides adapters,
    DoRA, quantised weights, packed texts, data sets without numbered rows,
    fp16, several devices, DeepSpeed, FSDP, and trainings resumed from a checkpoint. One
    in bf16, or of a model in half precision, is replayed in float32, with a warning
    that says how far from the trained model that comes out.

    Examples
    --------
    It goes among the callbacks of the Trainer:

    >>> from skattrib.recording import HuggingFaceRecorder
    >>> recorder = HuggingFaceRecorder()

    .. code-block:: python

        trainer = Trainer(peft_model, args, train_dataset=rows, callbacks=[recorder])
        trainer.train()
        lm = recorder.to_language_model(prompts, completions, tokenizer=tokenizer)
        influence = AdamWInfluence(FrozenEstimator(lm), random_state=0)
        influence.fit(prompts, completions)
        influence.attribute(["What is a fish?"], [" An animal."])
    """

    _is_made = False
    _recording = None
    _state = None  # of the training under way
    _watched, _handles = (), ()

    def __new__(cls):
        """Make it a callback of transformers, imported here at the earliest."""
        return super().__new__(_as_callback(cls))

    def __reduce__(self):
        """Return how to make it again: its class has no place in a module."""
        return written_class(self), (), vars(self).copy()

    # -------------------------------------------------------------- recording
    def on_train_begin(self, args, state, control, **kwargs):
        """Begin to record.

        Parameters
        ----------
        args : transformers.TrainingArguments
            Of the Trainer.
        state : transformers.TrainerState
            That must be at the beginning.
        control : transformers.TrainerControl
            Of no use here.
        **kwargs : dict
            With model, optimizer, train_dataloader and processing_class.

        Raises
        ------
        TrajectoryError
            If the training could not be repeated.
        ValueError
            If the optimizer is not known.
        """
        self._close(TrajectoryError)  # what an error may have left
        self._recording = None
        check_arguments(args, state)
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        base, named = check_trained(model)
        _close_interrupted(model, state)
        loader = kwargs["train_dataloader"]
        loader = getattr(loader, "base_dataloader", loader)  # of accelerate
        self._order = RowOrder()
        self._watched = [self._order.watch(loader, "train_dataset")]
        self._n_rows, self._base = len(loader.dataset), base
        self._tokenizer = kwargs.get("processing_class")
        self._precision = _precision(args, base)
        self._texts, self._losses, self._parts = {}, [], []
        self._draws = AdapterDraws(base, next(iter(named.values())).device)
        self._recording = record_training(
            _Adapters(named),
            getattr(optimizer, "optimizer", optimizer),
            clip_norm=args.max_grad_norm or None,
        )
        self._recording.__enter__()
        self._state = state
        self._handles = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(
                self._leave, with_kwargs=True, always_call=True
            ),
            *self._draws.handles,
        ]

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Raise if what a step learns from was not seen.

        Parameters
        ----------
        args : transformers.TrainingArguments
            Of the Trainer.
        state : transformers.TrainerState
            Of no use here.
        control : transformers.TrainerControl
            Of no use here.
        **kwargs : dict
            Of no use here.

        Raises
        ------
        TrajectoryError
            If the step called no forward pass of the model, or one that raised.
        """
        self._check_whole()
        if not self._parts:
            raise TrajectoryError(
                f"Step {len(self._losses) + 1} called no forward pass of the model as "
                "a whole, where its rows are seen: compute_loss must call the model "
                "that it is given, model(**inputs), not parts of it."
            )

    def on_step_end(self, args, state, control, **kwargs):
        """Note the loss of a step.

        Parameters
        ----------
        args : transformers.TrainingArguments
            Of the Trainer.
        state : transformers.TrainerState
            Of no use here.
        control : transformers.TrainerControl
            Of no use here.
        **kwargs : dict
            Of no use here.

        Raises
        ------
        TrajectoryError
            If the step was not of the mean over its tokens.
        """
        self._draws.end_step()
        parts, self._parts = self._parts, []
        self._losses.append(_mean_loss(parts, len(self._losses) + 1))

    def on_train_end(self, args, state, control, **kwargs):
        """End the recording.

        Parameters
        ----------
        args : transformers.TrainingArguments
            Of the Trainer.
        state : transformers.TrainerState
            Of no use here.
        control : transformers.TrainerControl
            Of no use here.
        **kwargs : dict
            Of no use here.
        """
        self._close(None)

    def _enter(self, model, args, kwargs):
        """Note a part of a step; an error takes the recorder off the model."""
        self._draws.break_off()  # a pass that was interrupted, and never left
        if not (model.training and torch.is_grad_enabled()):
            return
        try:
            self._check_whole()
            self._note(args, kwargs)
        except TrajectoryError as error:
            self._close(TrajectoryError)
            error.add_note(
                "If this is no forward pass of the Trainer, whose training had been "
                "interrupted: call the model again, its recorder is off it now."
            )
            raise

    def _check_whole(self):
        """Raise if a forward pass of this step raised."""
        if self._parts and len(self._parts[-1]) < 3:
            raise TrajectoryError(
                f"A forward pass of step {len(self._losses) + 1} raised, and what "
                "follows it is not known. If it ran out of memory, train anew with a "
                "smaller per_device_train_batch_size."
            )

    def _note(self, args, kwargs):
        """Note the rows and the tokens of a part of a step."""
        rows, step = self._order.next(), len(self._losses) + 1
        if args:
            raise TrajectoryError(
                "compute_loss calls the model with inputs that have no names: use "
                "model(**inputs), as the Trainer does."
            )
        texts = texts_of(kwargs, len(rows))
        for row, (ids, labels) in zip(rows.tolist(), texts, strict=True):
            known = self._texts.setdefault(row, (ids, labels))
            if not all(map(np.array_equal, known, (ids, labels))):
                raise TrajectoryError(
                    f"Row {row} has other tokens in step {step} than before: rows that "
                    "are made anew in each epoch cannot be repeated. Tokenise the data "
                    "set once, before the training."
                )
        sizes = [None if labels is None else counted(labels) for _, labels in texts]
        n_tokens = None if None in sizes else sum(sizes)
        n_items = kwargs.get("num_items_in_batch")
        self._recording.rows(rows)
        self._parts.append([n_tokens, None if n_items is None else float(n_items)])
        self._draws.begin(kwargs["input_ids"], kwargs.get("attention_mask"))

    def _leave(self, model, args, kwargs, output):
        """Note the loss of a part of a step."""
        if output is None:  # it raised
            self._draws.break_off()
        if output is None or not (model.training and torch.is_grad_enabled()):
            return
        if not self._draws.end():
            refuse_draws(self._base, len(self._losses) + 1)
        loss = getattr(output, "loss", None)
        self._parts[-1].append(None if loss is None else loss.detach())

    def _close(self, kind):
        """Leave the loader and the model as they were, and the recording."""
        unwatch(self._watched)
        for handle in self._handles:
            handle.remove()
        self._watched, self._handles, self._state = (), (), None
        if self._recording is not None:
            self._recording.__exit__(kind, None, None)

    # ------------------------------------------------------------------ using
    def to_language_model(
        self,
        prompts,
        completions,
        *,
        tokenizer=None,
        max_length=None,
        add_bos=False,
        add_eos=True,
    ):
        """Return the trained model as a fitted estimator that knows its training.

        The tokens of these texts are compared with those of the run; then the run is
        replayed, and its losses and its end compared with those of the Trainer.

        Parameters
        ----------
        prompts : sequence of str or None, of length n_samples; None; or Dataset
            Of the rows of ``train_dataset``, in its order, with all that a template
            adds: the tokens whose label was -100. None is no prompts, where all tokens
            counted.
        completions : sequence of str, of length n_samples
            What follows them, the tokens that counted.
        tokenizer : callable or None, default=None
            That the rows were made by; None is the Trainer's ``processing_class``.
        max_length : int or None, default=None
            Tokens that are read at once; None is the model's context.
        add_bos : bool, default=False
            Whether rows began with the tokenizer's BOS token, before the prompt.
        add_eos : bool, default=True
            Whether rows ended with the tokenizer's end token, which counted.

        Returns
        -------
        CausalLanguageModel
            Fitted estimator, for `sklearn.frozen.FrozenEstimator`; clones of it repeat
            the run.

        Raises
        ------
        ValueError
            If the texts cannot be used, or there is no tokenizer.
        TrajectoryError
            If no run was recorded, the texts are not those of the run, or its replay
            ends elsewhere.

        Warns
        -----
        FaithfulnessWarning
            If some rows are in no step; if the run was in bf16 or of a model in half
            precision, how far from it the replay ends; and if rounding may have led it
            elsewhere.
        """
        run = self._finished()
        X, y = check_completions(*opened(prompts, completions))
        if len(y) != self._n_rows:
            raise TrajectoryError(
                f"completions has {len(y)} rows, and train_dataset had {self._n_rows}: "
                "give a completion for each of its rows, in their order."
            )
        tokenizer = self._tokenizer if tokenizer is None else tokenizer
        if tokenizer is None:
            raise ValueError(
                "tokenizer is None, and the Trainer had no processing_class: pass the "
                "tokenizer that made the rows."
            )
        check_apart(self._base)
        names = [f"{self._base.base_model_prefix}.{name}" for name in self._names]
        model = private_copy(self._base, names)
        _without_hooks(model)
        FunctionalModule(model).load(run.recipe.start)
        tokenizer = load(model, tokenizer, None, None).tokenizer
        options = {"max_length": max_length, "add_bos": add_bos, "add_eos": add_eos}
        lm = RecordedLanguageModel(model, tokenizer, run.recipe, **options)
        rows, counts = lm._tokenised(X, y)
        ends = {
            "bos": getattr(tokenizer, "bos_token_id", None),
            "eos": getattr(tokenizer, "eos_token_id", None),
        }
        check_tokens(self._texts, rows, ends)
        network = lm._network()
        run = replace(run, module=network.module)
        options = {"loss": network.loss}
        lm.network_ = repeat(run, RecordedTextNetwork, rows, counts, None, options)
        lm.recipe = lm.network_.recipe
        return lm

    def _finished(self):
        """Return the run; raise if nothing was recorded to its end."""
        if self._recording is None or self._recording._run is None:
            raise TrajectoryError(
                "No training was recorded to its end: pass this HuggingFaceRecorder "
                "among the callbacks of a Trainer, and call trainer.train()."
            )
        run = self._recording._finished()
        losses = None if None in self._losses else np.array(self._losses)
        recipe = replace(run.recipe, **self._draws.of_run())
        known = {"losses": losses, "precision": self._precision, "causes": _CAUSES}
        return replace(run, recipe=recipe, **known)

    @property
    def _names(self):
        return list(self._recording._model._parameters)


def _as_callback(cls):
    """Return a recorder's class that is one of transformers' callbacks, too."""
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise ImportError(
            f'{cls.__name__} needs transformers: pip install "skattrib[language]".'
        ) from error
    return with_base(cls, TrainerCallback)


def _close_interrupted(model, state):
    """Take recorders off a model whose trainings were interrupted before."""
    for layer in model.modules():
        for hook in list(layer._forward_pre_hooks.values()):
            other = getattr(hook, "__self__", None)
            # several may record one training
            if isinstance(other, HuggingFaceRecorder) and other._state is not state:
                other._close(TrajectoryError)


def _precision(args, base):
    """Return what a run is rounded to, if it is."""
    if args.bf16:
        return "bf16"
    kinds = {p.dtype for p in base.parameters()} - {torch.float32, torch.float64}
    return str(kinds.pop()).removeprefix("torch.") if kinds else None


def _mean_loss(parts, step):
    """Return the loss of a step; None if it is not known.

    Parameters
    ----------
    parts : list of (int or None, float or None, Tensor or None)
        Tokens that count, the number that their loss was divided by, and the loss.
    step : int
    """
    sizes, divisors, losses = zip(*parts, strict=True)
    if None in losses or None in sizes:
        return None  # it is not the model's own: the replay's gradients will tell
    if None not in divisors:
        if any(divisor != sum(sizes) for divisor in divisors):
            raise TrajectoryError(
                f"The loss of step {step} is the sum over {sum(sizes)} tokens, divided "
                f"by num_items_in_batch={divisors[0]:g}, which is no mean. The Trainer "
                "counts the first token of each row of some models, which nothing "
                "predicts: give it the label -100."
            )
        return float(sum(losses))
    # trainers may weigh parts by their tokens, behind the model's own means
    return float(sum(losses)) / len(parts) if len(set(sizes)) == 1 else None


def _without_hooks(model):
    """Take off a copy what trainings put on it, which derivatives do not pass."""
    model.get_input_embeddings()._forward_hooks.clear()
    vars(model).pop("forward", None)
