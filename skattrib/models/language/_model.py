"""A causal language model as hidden states and a linear head."""

import inspect
import os
import threading
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from skattrib._validation import check_device, memory_cap
from skattrib.engine._last_layer import Head
from skattrib.engine._modules import generator_kept
from skattrib.models.language._tokens import padded

# Numbers in memory per token and word of the vocabulary.
_COPIES = 6


def load(model, tokenizer, dtype, device):
    """Return a `LoadedModel` of a model in memory, or of one read by name or path.

    Raises
    ------
    ImportError
        If transformers is needed and missing.
    ValueError
        If the model cannot be used.
    """
    place = check_device(device)
    if not isinstance(model, nn.Module):
        model, tokenizer = _read(model, tokenizer, dtype, place)
        return LoadedModel(model, tokenizer)
    if tokenizer is None:
        raise ValueError("tokenizer is None: a model in memory needs its tokenizer.")
    if isinstance(tokenizer, str | os.PathLike):
        tokenizer = _read_tokenizer(tokenizer)
    like = next(model.parameters())
    wrong_type = dtype is not None and dtype != like.dtype
    if wrong_type or (device is not None and place != like.device):
        raise ValueError(
            f"model is {like.dtype} on {like.device}, and stays as it is: leave dtype "
            "and device None, or convert it yourself."
        )
    return LoadedModel(model, tokenizer)


def _auto():
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise ImportError(
            "A language model is read by transformers, which is missing: "
            'pip install "skattrib[language]".'
        ) from error
    return AutoModelForCausalLM, AutoTokenizer


def _source(path):
    """Return where from_pretrained looks, and how: a GGUF file is in a folder."""
    if str(path).endswith(".gguf"):
        return Path(path).parent, {"gguf_file": Path(path).name}
    return path, {}


def _read_tokenizer(path):
    folder, options = _source(path)
    return _auto()[1].from_pretrained(folder, **options)


def _read(path, tokenizer, dtype, device):
    folder, options = _source(path)
    dtype = "auto" if dtype is None else dtype
    model = _auto()[0].from_pretrained(folder, dtype=dtype, **options)
    if tokenizer is None or isinstance(tokenizer, str | os.PathLike):
        tokenizer = _read_tokenizer(path if tokenizer is None else tokenizer)
    return model.to(device).eval(), tokenizer


def context_of(model):
    """Return how many tokens a model can read at once; None if it does not say."""
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if context is not None and context < 1:  # of XLNet: any number
        return None
    for layer in model.modules():
        # positions of some begin after that of padding
        places = isinstance(layer, nn.Embedding) and layer.num_embeddings == context
        if places and layer.padding_idx is not None:
            return context - layer.padding_idx - 1
    return context


def read_classifier(model, tokenizer, n_classes):
    """Return a classifier of sequences, names of its new layers, and its tokenizer.

    ``n_classes`` None is what the model has been saved with.
    """
    if isinstance(model, nn.Module):
        if tokenizer is None:
            raise ValueError(
                "tokenizer is None: a model in memory needs its tokenizer."
            )
        if isinstance(tokenizer, str | os.PathLike):
            tokenizer = _read_tokenizer(tokenizer)
        return model, (), tokenizer
    _auto()  # which says what is missing
    from transformers import AutoModelForSequenceClassification

    folder, options = _source(model)
    if n_classes is not None:
        options["num_labels"] = n_classes
    with generator_kept():
        found, info = AutoModelForSequenceClassification.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32, **options
        )
    new = sorted({name.rpartition(".")[0] for name in info["missing_keys"]})
    if tokenizer is None or isinstance(tokenizer, str | os.PathLike):
        tokenizer = _read_tokenizer(model if tokenizer is None else tokenizer)
    if found.config.pad_token_id is None:
        found.config.pad_token_id = getattr(tokenizer, "pad_token_id", None)
    return found.eval(), tuple(new), tokenizer


class LoadedModel:
    """A model whose logits are W h + b, checked once.

    Attributes
    ----------
    model : nn.Module
        Neither copied nor changed.
    tokenizer : callable
        Its tokenizer.
    layer : nn.Linear
        Its head.
    head : Head
        The head's weights, in float32 at least.
    context : int or None
        Tokens that it can read at once.
    below : dict of int to Below or None
        What computes the hidden states that enter a block; filled by whoever trains
        those above.
    checked : object
        Versions of the weights that this is of.
    """

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.below, self.checked = {}, None
        self.layer = _output_layer(model)
        self._accepted = inspect.signature(model.forward).parameters
        if not all(torch.isfinite(p).all() for p in self.layer.parameters()):
            raise ValueError(f"{self._name} has weights that are not finite.")
        head, wide = Head.of(self.layer), self.layer.weight.dtype
        wide = torch.promote_types(wide, torch.float32)
        bias = None if head.bias is None else head.bias.to(wide)
        self.head = Head(head.weight.to(wide), bias)
        self._check_head()
        n_words = self.layer.weight.shape[0]
        if len(tokenizer) > n_words:
            raise ValueError(
                f"The tokenizer has {len(tokenizer)} tokens, and the model a "
                f"vocabulary of {n_words}: they do not belong together."
            )
        self.context = context_of(model)

    @property
    def _name(self):
        return f"The head {type(self.layer).__name__} of {type(self.model).__name__}"

    def logits(self, hidden):
        """Return logits (N, V) of hidden states, in float32 at least."""
        logits = nn.functional.linear(hidden, self.layer.weight, self.layer.bias)
        return logits.detach().to(self.head.weight.dtype)

    def tokens_at_once(self):
        """Return how many logits the working memory has room for."""
        weight = self.head.weight
        needed = _COPIES * weight.shape[0] * weight.element_size()
        return max(1, int(memory_cap() / needed))

    def hidden(self, batch):
        """Return what the head gets (N, D) at the places of windows."""
        ids, mask = padded(batch, self.layer.weight.device)
        seen = []

        def take(inputs):
            seen.append(inputs[0])
            # logits of no token: those of all would not fit
            return (inputs[0][:, :0], *inputs[1:])

        self._run(ids, mask, take)
        rows = [i for i, window in enumerate(batch) for _ in window.places]
        places = [place for window in batch for place in window.places]
        return seen[-1][rows, places]

    def _run(self, ids, mask, before=None, after=None):
        """Run the model; let functions replace what the head gets, or gives."""
        wanted = {
            "attention_mask": mask,
            "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
            "use_cache": False,
        }
        options = {name: wanted[name] for name in wanted if name in self._accepted}
        own_thread, handles = threading.get_ident(), []

        # the model is shared: other threads may be running it
        def first(_, inputs):
            return before(inputs) if threading.get_ident() == own_thread else None

        def last(_, inputs, output):
            is_own = threading.get_ident() == own_thread
            return after(inputs, output) if is_own else None

        try:
            if before is not None:
                handles.append(self.layer.register_forward_pre_hook(first))
            if after is not None:
                handles.append(self.layer.register_forward_hook(last))
            with torch.no_grad(), _evaluating(self.model):
                return self.model(input_ids=ids, **options)
        finally:
            for handle in handles:
                handle.remove()

    def _check_head(self):
        """Raise unless the logits are those of the head, and it is linear."""
        weight, seen = self.layer.weight.detach(), []
        ids = torch.arange(1, 5, device=weight.device)[None] % len(weight)

        def swap(inputs, output):
            # both signs, and large: what scales or caps logits changes these
            steps = torch.arange(output.numel(), device=output.device)
            replaced = (50 + steps % 50) * (1 - 2 * (steps % 2))
            replaced = replaced.to(output.dtype).reshape(output.shape)
            seen.append((inputs[0].detach(), output.detach(), replaced))
            return replaced

        logits = getattr(self._run(ids, torch.ones_like(ids), after=swap), "logits", 0)
        if len(seen) != 1 or not isinstance(logits, torch.Tensor):
            raise ValueError(f"{self._name} is not what its logits are made by.")
        hidden, output, replaced = seen[0]
        wide = torch.promote_types(output.dtype, torch.float32)
        linear, output = self.logits(hidden).to(wide), output.to(wide)
        slack = 100 * torch.finfo(weight.dtype).eps * float(output.abs().max())
        if float((linear - output).abs().max()) > slack:
            raise ValueError(f"{self._name} returns something else than W h + b.")
        # nothing may be between the two, not even a rounding
        if logits.shape != replaced.shape or not torch.equal(
            logits.to(wide), replaced.to(wide)
        ):
            raise ValueError(
                f"{self._name} is not the end of the model: logits are scaled, capped "
                "or cut after it, which is part of the loss. Such models are not "
                "supported."
            )


def _output_layer(model):
    """Return the head of a model; raise if it is no plain nn.Linear."""
    find = getattr(model, "get_output_embeddings", None)
    layer = None if find is None else find()
    if not isinstance(layer, nn.Linear) or not layer.weight.is_floating_point():
        raise ValueError(
            f"The head {type(layer).__name__} of {type(model).__name__} is no "
            "nn.Linear of floating-point weights: a causal language model must have "
            "one, that get_output_embeddings() returns."
        )
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(f"{type(model).__name__} has an encoder: it is not causal.")
    return layer


@contextmanager
def _evaluating(model):
    """Switch dropout and the like off, and back as it was."""
    before = [module for module in model.modules() if module.training]
    try:
        for module in before:
            module.training = False
        yield
    finally:
        for module in before:
            module.training = True
