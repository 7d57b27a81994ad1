"""Prompts and completions as an array of tokens, and of those that are predicted."""

import numpy as np

from skattrib.models.language._tokens import beginning, token_ids

#: In the place of a token where none is predicted.
NOTHING = -1


def encoded(
    tokenizer, prompts, completions, *, n_words, length, add_bos=False, add_eos=True
):
    """Return texts as an array (n, 2, T) of int64, and how many tokens count (n,).

    Row by row: the tokens of prompt and completion, and below each token its successor
    if that is of the completion, else `NOTHING`.

    Parameters
    ----------
    tokenizer : callable
        As those of transformers.
    prompts, completions : ndarray of shape (n,)
        Texts; a prompt may be None.
    n_words : int
        Size of the model's vocabulary.
    length : int or None
        Tokens that the model can read at once.
    add_bos, add_eos : bool
        Begin, and end, rows with the tokenizer's token for that.

    Raises
    ------
    ValueError
        If a row has nothing to predict or is too long, or the tokenizer does not fit.
    """
    first = beginning(tokenizer) if add_bos else []
    last = _end(tokenizer) if add_eos else []
    before = token_ids(tokenizer, prompts)
    after = token_ids(tokenizer, completions)
    texts = []
    for row, (prompt, completion) in enumerate(zip(before, after, strict=True)):
        if not completion:
            raise ValueError(f"y[{row}] is empty: a completion needs a token at least.")
        ended = completion[-len(last) :] == last if last else True
        prompt = first + prompt
        completion = completion if ended else completion + last
        ids = prompt + completion
        if max(ids) >= n_words:
            raise ValueError(
                f"The tokenizer has the token {max(ids)}, and the model a vocabulary "
                f"of {n_words}: they do not belong together."
            )
        if len(ids) < 2:
            raise ValueError(
                f"y[{row}] is one token without a prompt: there is nothing that it "
                "could be predicted from. Give a prompt, or add_bos=True."
            )
        texts.append((ids, max(1, len(prompt))))
    _check_length(texts, length)
    width = max(len(ids) for ids, _ in texts) - 1
    rows = np.zeros((len(texts), 2, width), dtype=np.int64)
    rows[:, 1] = NOTHING
    for row, (ids, start) in zip(rows, texts, strict=True):
        row[0, : len(ids) - 1] = ids[:-1]
        row[1, start - 1 : len(ids) - 1] = ids[start:]
    return rows, (rows[:, 1] != NOTHING).sum(axis=1)


def one_by_one(rows):
    """Return rows (N, 2, T) in which one token counts, for each that did in (n, 2, T).

    Returns
    -------
    rows : ndarray of int64 of shape (N, 2, T)
    which : ndarray of int of shape (N,)
        The row that each is of.
    positions : ndarray of int of shape (N,)
        Among the tokens of that row that count.
    """
    which, places = np.nonzero(rows[:, 1] != NOTHING)
    found = rows[which]
    found[:, 1] = NOTHING
    each = np.arange(len(which))
    found[each, 1, places] = rows[which, 1, places]
    starts = np.flatnonzero(np.r_[True, which[1:] != which[:-1]])
    sizes = np.diff(np.r_[starts, len(which)])
    return found, which, each - np.repeat(starts, sizes)


def _check_length(texts, length):
    sizes = np.array([len(ids) for ids, _ in texts])
    # the last token is predicted, and not read
    if length is None or sizes.max() - 1 <= length:
        return
    long = np.flatnonzero(sizes - 1 > length)
    raise ValueError(
        f"{len(long)} of {len(texts)} texts are longer than the {length} tokens that "
        f"are read at once, the first X[{long[0]}] with {sizes[long[0]]}. A training "
        "has no windows: cut these texts into several rows, and give the rows of a "
        "text one name in tasks=; or raise max_length up to the model's context."
    )


def _end(tokenizer):
    if getattr(tokenizer, "eos_token_id", None) is None:
        raise ValueError(
            "add_eos=True, but the tokenizer has no end token: set "
            "tokenizer.eos_token, or pass add_eos=False."
        )
    return [tokenizer.eos_token_id]
