"""Texts as windows of tokens, and which tokens of them are predicted."""

from dataclasses import dataclass

import torch

# A window that continues a text starts with this part of it read before.
_OVERLAP = 4


@dataclass(frozen=True)
class Window:
    """Tokens that a model reads at once.

    Attributes
    ----------
    row : int
        Row that they belong to.
    ids : list of int
        Tokens.
    places : list of int
        Of these tokens, those whose successors are predicted.
    targets : list of int
        The successors.
    whole : bool
        Whether it is all of the row, but for the last token.
    """

    row: int
    ids: list
    places: list
    targets: list
    whole: bool = True


def windows(tokenizer, prompts, completions, *, n_words, length, add_bos, start=0):
    """Return the windows of all rows, in order.

    Parameters
    ----------
    tokenizer : callable
        As those of transformers.
    prompts, completions : ndarray of shape (n,)
        Texts; a prompt may be None.
    n_words : int
        Size of the model's vocabulary.
    length : int or None
        Tokens that a window has at most.
    add_bos : bool
        Begin rows with the tokenizer's BOS token.
    start : int
        What messages add to the number of a row.

    Raises
    ------
    ValueError
        If a row has nothing to predict, or the tokenizer is not of this model.
    """
    first = beginning(tokenizer) if add_bos else []
    special = set(tokenizer.all_special_ids)
    prompt_ids, completion_ids = (
        token_ids(tokenizer, prompts),
        token_ids(tokenizer, completions),
    )
    all_windows = []
    for row, (before, after) in enumerate(zip(prompt_ids, completion_ids, strict=True)):
        ids = first + before + after
        if max(ids, default=0) >= n_words:
            raise ValueError(
                f"The tokenizer has the token {max(ids)}, and the model a vocabulary "
                f"of {n_words}: they do not belong together."
            )
        n_before = len(ids) - len(after)
        pairs = [
            (i - 1, ids[i])
            for i in range(max(1, n_before), len(ids))
            if ids[i] not in special
        ]
        if not pairs:
            raise ValueError(_nothing(start + row, after, n_before))
        all_windows += _split(row, ids, pairs, length)
    return all_windows


def beginning(tokenizer):
    if getattr(tokenizer, "bos_token_id", None) is None:
        raise ValueError("add_bos=True, but the tokenizer has no BOS token.")
    return [tokenizer.bos_token_id]


def token_ids(tokenizer, texts):
    """Return the tokens of every text; none of an empty or missing one."""
    filled = [text for text in texts if text]
    # the model's limit is kept by windows, not by the tokenizer
    ids = tokenizer(filled, add_special_tokens=False)["input_ids"] if filled else []
    ids = iter(ids)
    return [list(next(ids)) if text else [] for text in texts]


def _nothing(row, after, n_before):
    if not after:
        return f"y[{row}] is empty: a completion needs a token at least."
    if n_before or len(after) > 1:
        return f"y[{row}] has special tokens only, which are not predicted."
    return (
        f"y[{row}] is one token without a prompt: there is nothing that it could be "
        "predicted from. Give a prompt, or add_bos=True."
    )


def _split(row, ids, pairs, length):
    """Cut the tokens of a row into windows; each pair is in one of them."""
    end = pairs[-1][0] + 1  # what follows is not read
    if length is None or end <= length:
        places, targets = map(list, zip(*pairs, strict=True))
        return [Window(row, ids[:end], places, targets)]
    parts = []
    stop = pairs[0][0]
    while stop < end:
        last = stop
        stop = min(end, max(0, last - length // _OVERLAP) + length)
        start = max(0, stop - length)
        inside = [
            (place - start, target) for place, target in pairs if last <= place < stop
        ]
        if inside:
            places, targets = map(list, zip(*inside, strict=True))
            parts.append(Window(row, ids[start:stop], places, targets, False))
    return parts


def padded(batch, device):
    """Return tokens (n, T) and mask (n, T) of windows, padded on the right.

    A causal model does not look to the right: what is there changes nothing.
    """
    width = max(len(window.ids) for window in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.int64)
    mask = torch.zeros(len(batch), width, dtype=torch.int64)
    for i, window in enumerate(batch):
        ids[i, : len(window.ids)] = torch.tensor(window.ids)
        mask[i, : len(window.ids)] = 1
    return ids.to(device), mask.to(device)
