"""The blocks of a transformer, and how they are run."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skattrib.engine._functional import apart
from skattrib.exceptions import UnsupportedModelError

# Numbers of each weight that are looked at, to see whether it has changed.
_N_SAMPLED = 8
# Tokens that a model is tried on; more if it has a window of up to so many.
_N_TRIED, _WIDEST = 5, 512


def private_copy(model: nn.Module, trained: Iterable[str] = ()) -> nn.Module:
    """Return a copy whose weights share their memory with those of a model.

    They are parameters of its own, none of which is trained, so that nothing that is
    done to the copy reaches the model. Weights in half precision are copied to float32,
    in which derivatives are more than rounding.

    Parameters
    ----------
    model : nn.Module
    trained : set of str
        Names of parameters that get memory of their own, and are trained.
    """
    new: dict[int, Any] = {}
    trained = set(trained)
    for name, weight in model.named_parameters():
        value = weight.detach()
        if value.dtype in (torch.float16, torch.bfloat16):
            value = value.float()
        own = name in trained
        new[id(weight)] = nn.Parameter(value.clone() if own else value, own)
    new |= {id(buffer): buffer for buffer in model.buffers()}
    copied = copy.deepcopy(model, new)
    _plain(copied)
    return copied.eval()


def evaluated_copy(model: nn.Module) -> nn.Module:
    """Return a copy with the same weights, in evaluation mode."""
    copied = apart(model)
    _plain(copied)
    return copied.eval()


def _plain(model: nn.Module) -> None:
    """Let a model be computed by operations that have second derivatives."""
    for layer in model.modules():
        config: Any = getattr(layer, "config", None)
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = "eager"
        if getattr(config, "return_dict", None) is False:
            config.return_dict = True  # heads look for names in what the body returns
        if getattr(layer, "gradient_checkpointing", False):
            vars(layer)["gradient_checkpointing"] = False


class Foundation:
    """Weights that a trained module is built upon, and shares with the user's model.

    Pickles have weights of their own, and nothing to look after.

    Parameters
    ----------
    modules : nn.Module or None
        What is not trained of them must stay as it is.
    """

    def __init__(self, *modules: nn.Module | None) -> None:
        self._weights = [
            parameter.detach()
            for module in modules
            if module is not None
            for parameter in module.parameters()
            if not parameter.requires_grad
        ]
        self._known = self._sampled()

    def _sampled(self) -> list[Tensor]:
        """Return a few numbers of each; all would take as long as a forward pass."""
        return [
            weight.reshape(-1)[:: max(1, weight.numel() // _N_SAMPLED)].clone()
            for weight in self._weights
        ]

    def check(self) -> None:
        """Raise if they were changed."""
        pairs = zip(self._known, self._sampled(), strict=True)
        if not all(torch.equal(*pair) for pair in pairs):
            raise ValueError(
                "model was changed since it was fine-tuned here: what was trained is "
                "built upon its weights. Fit again, or pass copy.deepcopy(model) "
                "before you change it."
            )

    def __deepcopy__(self, memo: dict[int, object]) -> Foundation:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {"_weights": [], "_known": []}


def body_of(model: nn.Module) -> nn.Module:
    """Return a causal model without its head."""
    name = getattr(model, "base_model_prefix", "")
    body = getattr(model, name, None) if name else None
    if not isinstance(body, nn.Module):
        raise ValueError(
            f"{type(model).__name__} does not say which part of it is below its head "
            "(base_model_prefix): it cannot be trained here. Wrap it in a module of "
            "your own, and train that by TorchRegressor."
        )
    return body


def find_blocks(body: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of a transformer's blocks."""
    config = getattr(body, "config", None)
    n_blocks = getattr(config, "num_hidden_layers", None)
    for name, layer in body.named_modules():
        if isinstance(layer, nn.ModuleList) and len(layer) == n_blocks:
            return name, layer
    raise ValueError(
        f"{type(body).__name__} has no list of its {n_blocks} blocks: it cannot be "
        "trained here."
    )


def run_body(body: nn.Module, ids: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Return the last hidden states (n, T, D) of tokens (n, T).

    ``hidden`` (n, T, D) is what the blocks get in place of the tokens' embeddings.
    """
    like = next(p for p in body.parameters() if p.is_floating_point())
    given = {"input_ids": ids} if hidden is None else {"inputs_embeds": hidden}
    # padding is to the right, where a causal model does not look
    mask = torch.ones(ids.shape, dtype=torch.int64, device=ids.device)
    with in_its_precision(like.dtype):
        out: Tensor = body(**given, attention_mask=mask, use_cache=False)[0]
    return out


def tried_tokens(model: nn.Module) -> Tensor:
    """Return tokens (2, T) to try a model on, longer than what it looks back at."""
    config: Any = model.config
    window = getattr(config, "sliding_window", None) or 0
    context = getattr(config, "max_position_embeddings", None) or _N_TRIED
    n_tokens = window + 3 if _N_TRIED <= window + 3 <= _WIDEST else _N_TRIED
    n_tokens = max(2, min(n_tokens, context // 2))
    ids = torch.arange(2 * n_tokens).view(2, -1) * 7 + 1
    return (ids % config.vocab_size).to(next(model.parameters()).device)


def check_computed(model: nn.Module) -> None:
    """Raise unless the logits are the head's of what `run_body` returns.

    Raises
    ------
    UnsupportedModelError
        If there is something between the two, or the model looks elsewhere.
    """
    tried = private_copy(model)
    ids, find = tried_tokens(tried), cast(Any, tried.get_output_embeddings)
    name, same = type(model).__name__, False
    reason = "it computes logits otherwise than by its head on its last hidden states"
    try:
        with torch.no_grad():
            out = tried(input_ids=ids, use_cache=False)
            wanted = out[0] if isinstance(out, tuple) else out.logits
            found = find()(run_body(body_of(tried), ids))
        near = 1e-3 * float(wanted.std())
        same = torch.allclose(found, wanted, rtol=1e-3, atol=near)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        reason = f"it could not be run on a few tokens: {error}"
    if not same:
        raise UnsupportedModelError(
            f"model {name} cannot be trained here: {reason}. Llama, Qwen, Mistral, "
            "GPT-2 and the like can; RISEValuator takes this one with trainable=None."
        )


def in_its_precision(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return a context in which a model of float64 computes nothing in float32."""
    return _KeepsDouble() if dtype == torch.float64 else nullcontext()


def _is_whole(values: Tensor) -> bool:
    """Whether numbers are integers."""
    return not (values.is_floating_point() or values.is_complex())


class _KeepsDouble(TorchFunctionMode):
    """Leaves numbers in double precision, where models compute parts in single."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, or leave its conversion to float32 out."""
        kwargs = kwargs or {}
        first = args[0] if args else None
        double = isinstance(first, Tensor) and first.dtype == torch.float64
        if double and (
            func is Tensor.float
            or (func is Tensor.to and torch.float32 in (*args, *kwargs.values()))
        ):
            return first
        if func is Tensor.float and isinstance(first, Tensor) and _is_whole(first):
            return first.double()  # positions, times frequencies that stay double
        if double and kwargs.get("dtype") == torch.float32:
            kwargs = {**kwargs, "dtype": torch.float64}
        return func(*args, **kwargs)
