"""What a fine-tuning by transformers' Trainer must be to be repeated."""

import numpy as np
import torch
from torch import nn

from skattrib.exceptions import TrajectoryError
from skattrib.models.language._blocks import body_of, find_blocks
from skattrib.models.language._encoding import NOTHING
from skattrib.models.language._recorded import trained_names

#: Label of a token that does not count, in transformers.
IGNORED = -100
# Arguments of a model that change no loss.
_OF_NO_EFFECT = {
    "use_cache",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "fused_lm_head",  # of trl
}
# Of batches whose rows hold several texts.
_PACKED = {"cu_seq_lens_q", "cu_seq_lens_k", "seq_idx"}
_KNOWN = {"input_ids", "attention_mask", "labels", "position_ids", "num_items_in_batch"}
# Options of TrainingArguments that a replay does not repeat, and what to set.
_REFUSED = {
    "fp16": ("steps may be skipped, and gradients are scaled", "fp16=False"),
    "deepspeed": ("weights are not where they can be read", "one process without it"),
    "fsdp": ("weights are not where they can be read", "one process without it"),
    "torch_compile": ("the model that runs is not seen", "torch_compile=False"),
    "neftune_noise_alpha": ("noise is added to embeddings", "neftune_noise_alpha=None"),
    "load_best_model_at_end": (
        "the weights at the end are not those of the last step",
        "load_best_model_at_end=False",
    ),
    "label_smoothing_factor": (
        "the loss is not that of the completions",
        "label_smoothing_factor=0.0",
    ),
}


def check_arguments(args, state):
    """Raise TrajectoryError if a recording would not repeat what a Trainer does.

    Parameters
    ----------
    args : transformers.TrainingArguments
    state : transformers.TrainerState
        At the beginning of the training.
    """
    for name, (reason, cure) in _REFUSED.items():
        value = getattr(args, name, None)
        if value:
            raise TrajectoryError(
                f"{name}={value!r} of TrainingArguments cannot be repeated: {reason}. "
                f"Use {cure}."
            )
    if args.world_size > 1 or args.n_gpu > 1:
        raise TrajectoryError(
            f"world_size={args.world_size} and n_gpu={args.n_gpu}: the gradients of "
            "several devices cannot be recorded in one. Use one process, with "
            "CUDA_VISIBLE_DEVICES=0."
        )
    if state.global_step:
        raise TrajectoryError(
            f"The training goes on at step {state.global_step}, from a checkpoint: "
            "its first steps are not seen. Train with resume_from_checkpoint=None."
        )


def check_trained(model):
    """Return the causal model with its adapters, and what is trained of it by name.

    Raise TrajectoryError if that is anything but low-rank adapters in its blocks, or
    the model draws random numbers or has quantised weights.

    Parameters
    ----------
    model : nn.Module
        Of a Trainer; of peft, or with adapters.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    named = [(name, p) for name, p in base.named_parameters() if p.requires_grad]
    others = [name for name, _ in named if "lora_" not in name]
    if others or not named:
        what = f"{others[0]} is" if others else "nothing is"
        raise TrajectoryError(
            f"{what} trained ({len(others)} weights besides adapters): a recorder "
            "repeats low-rank adapters alone. Train a model of peft.get_peft_model("
            "model, LoraConfig(...)) without modules_to_save and with bias='none'; or "
            "CausalLanguageModel(trainable='all'), which trains by itself."
        )
    if any("lora_magnitude" in name for name, _ in named):
        raise TrajectoryError(
            "use_dora=True: the gradients of DoRA are not those of its loss, and have "
            "no derivative. Use LoraConfig(use_dora=False)."
        )
    if {p.dtype for _, p in named} - {torch.float32, torch.float64}:
        raise TrajectoryError(
            f"Adapters are {named[0][1].dtype}, in which steps are rounded: let peft "
            "keep them in float32 (autocast_adapter_dtype=True), or use model.float()."
        )
    _check_weights(base)
    body = body_of(base)
    of_blocks, blocks = find_blocks(body)
    start = f"{base.base_model_prefix}.{of_blocks}."
    outside = [name for name, _ in named if not name.startswith(start)]
    if outside:
        raise TrajectoryError(
            f"{outside[0]} is no adapter of a block ({start}*): take its layer out of "
            "target_modules of the LoraConfig."
        )
    _check_dropout(base, start, range(trained_names(base)[1], len(blocks)))
    return base, {name: p for name, p in body.named_parameters() if p.requires_grad}


def _check_weights(base):
    quantised = getattr(base, "is_quantized", False) or any(
        not p.is_floating_point() for p in base.parameters()
    )
    if quantised:
        raise TrajectoryError(
            f"The weights of {type(base).__name__} are quantised: what their kernels "
            "compute is not repeated. Load the model without quantization_config, in "
            "bfloat16 if it is large."
        )


def _check_dropout(base, start, repeated):
    """Raise unless all that drops is of adapters in the blocks that a replay runs."""
    inside = tuple(f"{start}{place}." for place in repeated)
    for name, layer in base.named_modules():
        if not isinstance(layer, nn.modules.dropout._DropoutNd) or not layer.p:
            continue
        adapted, is_of_adapter, key = name.rpartition(".lora_dropout.")
        if is_of_adapter:  # masks of adapters are drawn again
            active = getattr(base.get_submodule(adapted), "active_adapters", [key])
            if name.startswith(inside) or key not in active:
                continue
            raise TrajectoryError(
                f"lora_dropout={layer.p} of {name}, an adapter that is not trained: "
                f"the first block that is trained is {repeated[0]}, and a replay runs "
                "what is not in it or the blocks above once, without masks. Set p=0.0 "
                "of such layers before the training; or let only trained blocks have "
                f"adapters: LoraConfig(layers_to_transform=list({repeated}))."
            )
        raise TrajectoryError(
            f"{name} drops {layer.p:.0%}, and masks of the model itself are not drawn "
            "again: a replay runs its blocks below the adapters once. Switch it off "
            "before the training: for layer in model.modules(): if isinstance(layer, "
            "torch.nn.Dropout): layer.p = 0.0; or load the model with the dropout of "
            "its config at 0."
        )


def check_apart(base):
    """Raise TrajectoryError if adapters are no longer beside the weights they change.

    Parameters
    ----------
    base : nn.Module
        As it is after the training.
    """
    layers = list(base.modules())
    found = any(hasattr(layer, "lora_A") for layer in layers)
    if not found or any(getattr(layer, "merged", False) for layer in layers):
        raise TrajectoryError(
            "The adapters of the trained model have been merged or unloaded since: "
            "call to_language_model before that, or model.unmerge_adapter()."
        )


def refuse_draws(base, step):
    """Raise TrajectoryError about a forward pass that drew more than masks."""
    config = base.config.to_dict() if hasattr(base, "config") else {}
    found = [f"{k}={v}" for k, v in config.items() if "drop" in k and v]
    raise TrajectoryError(
        f"The model drew random numbers in the forward pass of step {step}, besides "
        "masks of adapters, which are not drawn again; its config has "
        f"{', '.join(found) or 'no dropout'}. Load it with these at 0, as "
        "from_pretrained(path, attention_dropout=0.0)."
    )


# -------------------------------------------------------------------------- tokens
def texts_of(inputs, n_rows):
    """Return the tokens and labels of each row of a batch, without padding.

    Parameters
    ----------
    inputs : dict
        What a model is called with.
    n_rows : int
        Rows that were taken from the data set.

    Returns
    -------
    list of (ids, labels)
        Arrays of int64; labels may be None.

    Raises
    ------
    TrajectoryError
        If a row of the batch is no row of the data, or there is more in it.
    """
    given = {name for name, value in inputs.items() if value is not None}
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    labels, places = inputs.get("labels"), inputs.get("position_ids")
    flat = mask is None or mask.ndim == 2
    if ids is not None and (
        given & _PACKED or len(ids) != n_rows or not flat or not _in_order(places, mask)
    ):
        raise TrajectoryError(
            f"A batch of {n_rows} rows of the data set became one of {len(ids)}, or "
            "its positions begin anew: several texts are packed into one row. Use "
            "packing=False, and a collator that pads (not padding_free)."
        )
    unknown = sorted(given - _KNOWN - _OF_NO_EFFECT)
    if unknown or ids is None:
        raise TrajectoryError(
            f"The model is called with {unknown or sorted(given)}: a recorder repeats "
            "input_ids, attention_mask and labels alone. Let the data set have only "
            "these."
        )
    ids = ids.cpu().numpy()
    kept = np.ones(ids.shape, bool) if mask is None else mask.cpu().numpy() > 0
    labels = [None] * n_rows if labels is None else labels.cpu().numpy()
    return [
        (row[keep], None if label is None else label[keep])
        for row, label, keep in zip(ids, labels, kept, strict=True)
    ]


def _in_order(places, mask):
    """Say whether the tokens of each row are counted from its beginning."""
    if places is None:
        return True
    if places.ndim != 2:
        return False
    steps = places.diff(dim=1)
    if mask is not None:
        steps = steps[(mask[:, 1:] > 0) & (mask[:, :-1] > 0)]
    return bool((steps == 1).all())


def counted(labels):
    """Return how many tokens of a row are predicted."""
    return int((labels[1:] != IGNORED).sum())


def check_tokens(seen, rows, options):
    """Raise TrajectoryError unless recorded rows are those of the texts given.

    Parameters
    ----------
    seen : dict of int to (ids, labels)
        What each row was in the training.
    rows : ndarray of shape (n, 2, T)
        What prompts and completions are, as `encoded` has them.
    options : dict
        add_bos and add_eos, and the ids of these tokens.
    """
    for row, (ids, labels) in sorted(seen.items()):
        here = rows[row]
        n = int(np.flatnonzero(here[1] != NOTHING)[-1]) + 1
        following = np.full(len(ids), NOTHING)
        following[:-1] = ids[1:]
        if labels is not None:
            following[:-1] = np.where(labels[1:] == IGNORED, NOTHING, labels[1:])
        places = np.flatnonzero(following != NOTHING)
        n_there = int(places[-1]) + 1 if len(places) else 0
        there = np.stack([ids, following])[:, :n_there]
        if labels is None:  # which of the tokens counted is not known
            there, here = there[:, :n].copy(), here.copy()
            there[1, here[1, : len(there[1])] == NOTHING] = NOTHING
        if not np.array_equal(there, here[:, :n]):
            _refuse_row(row, there, here[:, :n], options)


def _refuse_row(row, there, here, options):
    """Raise about a row of which tokens, or those that count, are others."""
    bos, eos = options["bos"], options["eos"]
    same = min(there.shape[1], here.shape[1])
    alike = np.array_equal(there[:, :same], here[:, :same])
    if alike and here.shape[1] == same + 1 and here[1, -1] == eos:
        cure = "it learnt no end token: pass add_eos=False"
    elif alike and there.shape[1] == same + 1 and there[1, -1] == eos:
        cure = "it learnt an end token: pass add_eos=True"
    elif there[0, :1] == bos and here[0, :1] != bos:
        cure = "it began with the token of a beginning: pass add_bos=True"
    elif np.array_equal(there[0, :same], here[0, :same]):
        first = [int(np.argmax(part[1] != NOTHING)) for part in (there, here)]
        cure = (
            f"its tokens counted from place {first[0] + 1} on, here they do from "
            f"{first[1] + 1} on, behind the prompt: give as prompts what had the label "
            "-100, or prompts=None if all tokens counted"
        )
    else:
        place = int(np.argmin(there[0, :same] == here[0, :same]))
        cure = (
            f"at place {place} it had the token {there[0, place]}, here it is "
            f"{here[0, place]}: give the texts of train_dataset in its order, as they "
            "were tokenised, with what a template adds to them"
        )
    raise TrajectoryError(
        f"Row {row} was trained on other tokens than prompts[{row}] and "
        f"completions[{row}] are: {cure}."
    )
