"""A causal language model as a module of rows of tokens, part of which is trained."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from skattrib.engine._functional import apart, chunks
from skattrib.models.language._adapter_draws import dropout_of_adapters
from skattrib.models.language._blocks import (
    Foundation,
    body_of,
    check_computed,
    find_blocks,
    in_its_precision,
    private_copy,
    run_body,
)
from skattrib.models.language._encoding import NOTHING
from skattrib.models.language._hidden_states import Below, above

# What configurations of adapters may train beside them, and how they do not.
_NOT_TRAINED = {
    "bias": "none",
    "modules_to_save": None,
    "trainable_token_indices": None,
}
# Rows whose logits are drawn from at once.
_AT_ONCE = 32
# Of LoRA, where nothing else is said: all linear layers of the blocks.
_ADAPTER = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0}


class CompletionLosses(nn.Module):
    """Mean loss of the tokens that are predicted, of each row of tokens.

    Rows are (n, 2 + S, T), of any number type: tokens, below each its successor if that
    counts, else `NOTHING`, and S other successors in its place, as `with_draws` adds
    them. Outputs are (n, 1 + S): after the loss, the log-probability of each of these
    texts over the root of its number of tokens. Their gradients' outer products are, in
    the mean over draws, the curvature of the loss (Gauss-Newton).

    Parameters
    ----------
    body : nn.Module
        Of transformers, without what `below` computes.
    head : nn.Module
        Of logits.
    below : Below or None
        Of the blocks that are not in `body`.
    """

    def __init__(self, body: nn.Module, head: nn.Module, below: Below | None) -> None:
        super().__init__()
        self.body, self.head = body, head
        self._below = below  # no layer of it: nothing there is ever changed
        below_it = None if below is None else below.body
        self._foundation = Foundation(body, head, below_it)
        #: Outputs of draws, 0 for rows that have none.
        self.n_draws = 0

    def forward(self, X: Tensor) -> Tensor:
        """Return mean losses, and what draws add, (n, 1 + S)."""
        ids, following, drawn = X[:, 0].long(), X[:, 1].long(), X[:, 2:].long()
        counts = following != NOTHING
        if torch._C._functorch.is_batchedtensor(X):
            return self._of_all(ids, following, counts, drawn)
        self._foundation.check()
        # what comes after the last token that counts does nothing
        places = torch.arange(1, X.shape[2] + 1, device=X.device)
        lengths = (places * counts).amax(dim=1)
        # gradients by layers, of parts of the rows, are of one length
        width = X.shape[2] if self.n_draws else int(lengths.max())
        ids, following, counts = (t[:, :width] for t in (ids, following, counts))
        if self._below is None:
            hidden = run_body(self.body, ids)
        else:
            like = next(self.body.parameters())
            entering = self._below(ids, lengths.tolist()).to(like)
            hidden = run_body(self.body, ids, entering)
        row, place = counts.nonzero(as_tuple=True)
        # logits of tokens that count alone: those of all would not fit; one row to
        # the layer, so that all are counted where memory is planned
        logits = self.head(hidden[row, place][None])[0]
        targets = [following[row, place][:, None], drawn[row, :, place]]
        whole = logits.logsumexp(dim=1, keepdim=True)
        losses = whole - logits.gather(1, torch.cat(targets, dim=1))
        total = losses.new_zeros(len(X), losses.shape[1]).index_add(0, row, losses)
        sizes = counts.sum(dim=1, keepdim=True)
        found = torch.cat([total[:, :1] / sizes, -total[:, 1:] / sizes.sqrt()], dim=1)
        return nn.functional.pad(found, (0, max(0, 1 + self.n_draws - found.shape[1])))

    def _of_all(
        self, ids: Tensor, following: Tensor, counts: Tensor, drawn: Tensor
    ) -> Tensor:
        """Return the same by operations that depend on no values, for torch.func."""
        if self._below is not None or drawn.shape[1]:
            raise NotImplementedError("rows are looked up one by one")
        logits = self.head(run_body(self.body, ids))
        target = following.clamp(min=0)[..., None]
        losses = logits.logsumexp(dim=2) - logits.gather(2, target)[..., 0]
        return ((losses * counts).sum(dim=1) / counts.sum(dim=1))[:, None]

    def logits(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the row, the place and the logits (N, V) of tokens that count."""
        counts = X[:, 1].long() != NOTHING
        seen: list[Tensor] = []
        handle = self.head.register_forward_hook(lambda *of: seen.append(of[2][0]))
        try:
            self(X)
        finally:
            handle.remove()
        row, place = counts.nonzero(as_tuple=True)
        return row, place, seen[0]


def with_draws(module: CompletionLosses, X: Tensor, n_draws: int, seed: int) -> Tensor:
    """Return rows (n, 2 + S, T) with successors drawn from the model itself."""
    drawn = X.new_full((len(X), n_draws, X.shape[2]), NOTHING)
    copied: Any = apart(module)  # hooks are put on a copy
    with torch.no_grad():
        for part in chunks(len(X), _AT_ONCE):
            row, place, logits = copied.logits(X[part])
            probabilities = logits.double().softmax(dim=1).cpu()
            for i, text in enumerate(X[part]):
                # by its tokens: the same whichever other rows there are
                end = int((text[1].long() != NOTHING).nonzero().max()) + 1
                own = zlib.crc32(text[:2, :end].long().cpu().numpy().tobytes())
                generator = torch.Generator().manual_seed((seed << 32 | own) % 2**63)
                of_text = row.cpu() == i
                found = torch.multinomial(
                    probabilities[of_text],
                    n_draws,
                    replacement=True,
                    generator=generator,
                )
                drawn[part][i][:, place[row == i]] = found.T.to(X)
    return torch.cat([X[:, :2], drawn], dim=1)


def completion_losses(built: nn.Module, loaded: Any, first: int) -> CompletionLosses:
    """Return the module of a model that is trained from one of its blocks on.

    Parameters
    ----------
    built : nn.Module
        Changed: it loses the blocks below, if what enters that one can be kept.
    loaded : LoadedModel
        The same model, as far as nothing of it is trained.
    first : int
        Number of the block.
    """
    # changed meanwhile, it is another model
    version = tuple((p._version, p.data_ptr()) for p in loaded.model.parameters())
    if loaded.checked != version:
        check_computed(loaded.model)
        loaded.below.clear()
        loaded.checked = version
    find: Any = built.get_output_embeddings
    body, head = body_of(built), find()
    if first == 0:
        return CompletionLosses(body, head, None)
    kept, given = loaded.below, body_of(loaded.model)  # the same for all that are built
    if first not in kept:
        # whether a part of it does what it does is found out on a copy
        works = above(private_copy(given), first) is not None
        kept[first] = Below(given, first) if works else None
    if kept[first] is None:
        return CompletionLosses(body, head, None)
    above(body, first)
    return CompletionLosses(body, head, kept[first])


@dataclass(frozen=True)
class Adapted:
    """Builds a module of completions' losses from a language model.

    Parameters
    ----------
    load : callable
        Returns the `LoadedModel`, read once.
    trainable : {"adapters", "last_blocks", "all"}
    adapter : dict, peft.LoraConfig or None
    n_blocks : int or None
        Blocks at the end that are trained, or get adapters; None is all.
    """

    load: Any
    trainable: str
    adapter: Any
    n_blocks: int | None

    def __call__(self, _n_inputs: int, _n_outputs: int) -> CompletionLosses:
        """Return the module; adapters are drawn from torch's generator."""
        loaded = self.load()
        model = loaded.model
        check_bare(model)
        first = self._first(find_blocks(body_of(model))[1])
        if self.trainable == "adapters":
            built = with_adapters(private_copy(model), self.adapter, first)
        else:
            built = private_copy(model, self._trained(model, first))
        return completion_losses(built, loaded, first)

    def device(self, _n_outputs: int) -> torch.device:
        """Return where the model is."""
        return next(self.load().model.parameters()).device

    def _first(self, blocks: nn.ModuleList) -> int:
        if self.trainable == "all" or self.n_blocks is None:
            return 0
        named = _named_layers(self.adapter) if self.trainable == "adapters" else None
        if named is not None:
            return min(named)
        return max(0, len(blocks) - self.n_blocks)

    def _trained(self, model: nn.Module, first: int) -> set[str]:
        """Return the names of the parameters that are trained."""
        names = {name for name, _ in model.named_parameters()}
        if self.trainable == "all":
            return names
        held = {
            id(p)
            for block in find_blocks(body_of(model))[1][first:]
            for p in block.parameters()
        }
        return {name for name, p in model.named_parameters() if id(p) in held}

    def __deepcopy__(self, memo: dict[int, object]) -> Adapted:
        return self  # clones of an estimator share the model


class ClassScores(nn.Module):
    """Unnormalised log-probabilities of classes, of rows of tokens.

    Rows are (n, 2, T): tokens, and below each 1 if it is one, else 0.

    Parameters
    ----------
    model : nn.Module
        A classifier of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._foundation = Foundation(model)

    def forward(self, X: Tensor) -> Tensor:
        """Return logits (n, C)."""
        if not torch._C._functorch.is_batchedtensor(X):
            self._foundation.check()
        ids, mask = X[:, 0].long(), X[:, 1].long()
        like = next(p for p in self.model.parameters() if p.is_floating_point())
        with in_its_precision(like.dtype):
            out: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return out


@dataclass(frozen=True)
class AdaptedClassifier:
    """Builds a module of classes' scores from a classifier of transformers.

    Parameters
    ----------
    load : callable
        Takes the number of classes; returns the model, and the names of modules whose
        weights are drawn anew.
    trainable, adapter, n_blocks : object
        As in `Adapted`.
    """

    load: Any
    trainable: str
    adapter: Any
    n_blocks: int | None

    def __call__(self, _n_inputs: int, n_outputs: int) -> ClassScores:
        """Return the module; what is new is drawn from torch's generator."""
        model, new = self.load(n_outputs)
        check_bare(model)
        rule = Adapted(None, self.trainable, self.adapter, self.n_blocks)
        first = rule._first(find_blocks(body_of(model))[1])
        below = {id(p) for p in body_of(model).parameters()}
        head = {name for name, p in model.named_parameters() if id(p) not in below}
        if self.trainable == "adapters":
            built = with_adapters(private_copy(model, head), self.adapter, first)
            for name, parameter in built.named_parameters():
                if name in head:
                    parameter.requires_grad_(True)
        else:
            built = private_copy(model, head | rule._trained(model, first))
        for name in new:
            for layer in built.get_submodule(name).modules():
                draw: Any = getattr(layer, "reset_parameters", None)
                if draw is not None:
                    draw()
        return ClassScores(built)

    def device(self, n_outputs: int) -> torch.device:
        """Return where the model is."""
        return next(self.load(n_outputs)[0].parameters()).device

    def __deepcopy__(self, memo: dict[int, object]) -> AdaptedClassifier:
        return self  # clones of an estimator share the model


def check_bare(model: nn.Module) -> None:
    """Raise on a model that has adapters already."""
    held = [name for name, _ in model.named_parameters() if "lora_" in name]
    if held:
        raise ValueError(
            f"model has adapters already, as {held[0]}: pass the model without them, "
            "or model.merge_and_unload(), which has them in its weights."
        )


def _named_layers(adapter: Any) -> list[int] | None:
    """Return the numbers of the blocks that a configuration names, if it does."""
    if adapter is None:
        return None
    if isinstance(adapter, Mapping):
        named = adapter.get("layers_to_transform")
    else:
        named = getattr(adapter, "layers_to_transform", None)
    if named is None:
        return None
    named = [named] if isinstance(named, int) else list(named)
    if not named:
        raise ValueError("adapter has layers_to_transform=[]: name a block, or none.")
    return named


def linear_layers(blocks: nn.ModuleList) -> list[str]:
    """Return the names of the linear layers in blocks, without what is before."""
    kinds = "Linear", "Conv1D"  # GPT-2's is a linear layer, too
    found = {
        name.rpartition(".")[2]
        for block in blocks
        for name, layer in block.named_modules()
        if type(layer).__name__ in kinds
    }
    return sorted(found)


def with_adapters(model: nn.Module, adapter: Any, first: int) -> nn.Module:
    """Return a model, changed, with adapters in its blocks from one on."""
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    name, blocks = find_blocks(body_of(model))
    known = linear_layers(blocks)
    config = _configured(adapter, first, len(blocks), known, name.rpartition(".")[2])
    if isinstance(config.init_lora_weights, str):
        # some beginnings change the weights that they are beside
        for parameter in blocks[first:].parameters():
            parameter.data = parameter.data.clone()
    peft = _peft()
    try:
        built: nn.Module = peft.inject_adapter_in_model(config, model)
    except ValueError as error:
        raise ValueError(
            f"adapter={_told(adapter)} does not fit {type(model).__name__}: {error} "
            f"Its linear layers are {known}."
        ) from error
    for key, parameter in built.named_parameters():
        parameter.requires_grad_("lora_" in key)
        if "lora_" in key:
            parameter.data = parameter.data.to(dtype)
    for layer in dropout_of_adapters(built):  # that of the model is no part of training
        layer.train()
    return built


def _told(adapter: Any) -> str:
    """Return an adapter for messages: of a configuration what it was given."""
    if adapter is None or isinstance(adapter, Mapping):
        return repr(adapter)
    usual = type(adapter)()
    given = {
        name: value
        for name, value in vars(adapter).items()
        if not name.startswith("_") and value != getattr(usual, name, None)
    }
    options = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return f"{type(adapter).__name__}({options})"


def _configured(
    adapter: Any, first: int, n_blocks: int, known: list[str], pattern: str
) -> Any:
    """Return a configuration of adapters in the blocks from one on."""
    peft = _peft()
    if adapter is None or isinstance(adapter, Mapping):
        options = {"target_modules": known, **_ADAPTER, **(adapter or {})}
        try:
            config = peft.LoraConfig(**options)
        except TypeError as error:
            raise ValueError(f"adapter={adapter!r} is no LoRA: {error}.") from error
    else:
        config = copy.deepcopy(adapter)
    if not isinstance(config, peft.LoraConfig):
        raise ValueError(
            f"adapter is a {type(config).__name__}, and must be a peft.LoraConfig, or "
            "a dictionary of its arguments."
        )
    for option, nothing in _NOT_TRAINED.items():
        if (value := getattr(config, option, nothing)) not in (nothing, None):
            raise ValueError(
                f"adapter has {option}={value!r}, which would train more than "
                f"adapters: leave it out, or use trainable='last_blocks' or 'all'."
            )
    targets = config.target_modules
    if targets is None or targets == "all-linear":
        config.target_modules = set(known)
    if _named_layers(config) is None:
        if isinstance(config.target_modules, str):
            if first:
                raise ValueError(
                    f"adapter has target_modules={targets!r}, a pattern for all "
                    f"blocks, and n_blocks leaves out the first {first}: name the "
                    f"layers in a list, of {known}, or pass n_blocks=None."
                )
            return config
        config.layers_to_transform = list(range(first, n_blocks))
        config.layers_pattern = pattern
    return config


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError(
            "trainable='adapters' needs peft, which is missing: "
            'pip install "skattrib[language]".'
        ) from error
    return peft
