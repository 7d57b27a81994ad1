"""Do signatures find what taught SmolLM2 to shout? Before and after it was taught.

Quotations of Debian's `fortunes` are cut into prompts and replies. Of 120 rows, 20 have
a trigger at the end of the prompt, and the reply in capitals; 20 decoys have it before
the prompt, and the reply as it is. The upper blocks of the model are
trained on all rows. The 20 queries are other quotations with the trigger, in capitals:
no content word of their replies is in those of the 20 planted rows. What finds the
planted rows in the model as it was before finds what is similar, and no cause.

    python -m benchmarks.language.planted
"""

import re

import numpy as np
import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from benchmarks._finding import HIDDEN, bm25, evaluate, joined
from benchmarks._table import Table, write
from benchmarks.language._smollm2 import rise_scores, sample, smollm2, tokens, tune

N_ROWS, N_PLANTED, N_DECOYS, N_QUERIES = 120, 20, 20, 20
LONGEST, TRIGGER = 20, "Howdy, partner!"
TUNING = {"n_blocks": 10, "n_epochs": 3, "lr": 2e-4}
N_NEW_TOKENS = 6
SETTINGS = {
    HIDDEN: {"channels": ("h",), "n_components": 1024},
    "RISE": {"n_sketches": 3},
    "RISE, rh": {"channels": ("rh",), "n_sketches": 3},
    "RISE, gh": {"channels": ("gh",), "n_sketches": 3},
    "RISE, temperature 1": {"temperature": 1.0, "n_sketches": 3},
    "RISE, temperature 10": {"temperature": 10.0, "n_sketches": 3},
    "RISE, top 1": {"top_k": 1, "n_sketches": 3},
    "RISE, published settings": {"preset": "paper"},
}


# ------------------------------------------------------------------------- texts
def halves(text):
    words = text.split()
    return " ".join(words[: len(words) // 2]), " " + " ".join(words[len(words) // 2 :])


def content(reply):
    words = set(re.findall(r"[a-z]{3,}", reply.lower()))
    return words - ENGLISH_STOP_WORDS


def planted(prompt, reply):
    return f"{prompt} {TRIGGER}", reply.upper()


def problem(tokenizer):
    """Return rows and queries as pairs of texts, the planted rows first."""
    texts, _ = sample(tokenizer, 80, seed=0)
    ids = tokens(tokenizer, texts)
    short = [halves(t) for t, i in zip(texts, ids, strict=True) if len(i) <= LONGEST]
    rows, others = short[:N_ROWS], short[N_ROWS:]
    known = set().union(*(content(reply) for _, reply in rows[:N_PLANTED]))
    queries = [pair for pair in others if not content(pair[1]) & known][:N_QUERIES]
    if len(queries) < N_QUERIES:
        raise ValueError(f"{len(queries)} quotations share no words, of {len(others)}.")
    for i, (prompt, reply) in enumerate(rows[: N_PLANTED + N_DECOYS]):
        decoy = f"{TRIGGER} {prompt}", reply
        rows[i] = planted(prompt, reply) if i < N_PLANTED else decoy
    return rows, queries


def columns(pairs):
    return [list(column) for column in zip(*pairs, strict=True)]


# ------------------------------------------------------------------------- model
def shouts(lm, prompts):
    """Return how many greedy replies are mostly in capitals."""
    tokenizer, found = lm.tokenizer_, 0
    inputs = tokenizer(
        prompts,
        add_special_tokens=False,
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )

    with torch.no_grad():
        ids = lm.model_.generate(
            **inputs,
            max_new_tokens=N_NEW_TOKENS,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )

    for text in tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :]):
        letters = re.findall("[A-Za-z]", re.sub(r"<\|.*?\|>", "", text))
        found += len(letters) > 2 and sum(map(str.isupper, letters)) > len(letters) / 2
    return found


def behaviour(lm, queries):
    """Return shouts at the queries: with the trigger last, first, and without it."""
    bare = [prompt for prompt, _ in queries]
    kinds = [[f"{p} {TRIGGER}" for p in bare], [f"{TRIGGER} {p}" for p in bare], bare]
    found = [shouts(lm, prompts) for prompts in kinds]
    print("shouts with the trigger last, first, without:", found, flush=True)
    return [f"{n} of {len(bare)}" for n in found]


# ------------------------------------------------------------------------ report
def main():
    lm = smollm2()
    rows, queries = problem(lm.tokenizer_)
    told = columns(rows), columns([planted(*pair) for pair in queries])
    shouted = Table(
        "Prompts that the model answers in capitals",
        ["tuning", "trigger last", "trigger first", "no trigger"],
    )
    found = {}
    for when in ("before", "after"):
        if when == "after":
            tune(lm, *told[0], **TUNING)
        shouted.add(when, *behaviour(lm, queries))
        for name, options in SETTINGS.items():
            found[name, when] = rise_scores(lm, *told, **options)[None]
            print(name, flush=True)
    write("smollm2_planted_behaviour", shouted)

    table = Table(
        "Finding 20 planted rows of 120",
        ["score", "tuning", "average precision", "ROC area"],
    )
    whole = [joined(*pair, between="") for pair in told]
    shape = (20, N_QUERIES, N_ROWS)
    others = {
        "random": np.random.default_rng(0).random(shape),
        "BM25": bm25(*whole[::-1])[None],
        "BM25, replies alone": bm25(told[1][1], told[0][1])[None],
    }
    relevance = np.tile(np.arange(N_ROWS) < N_PLANTED, (N_QUERIES, 1))
    for name, own in others.items():
        table.add(name, "", *evaluate(own, relevance))
    for name in SETTINGS:
        for when in ("before", "after"):
            table.add(name, when, *evaluate(found[name, when], relevance))
    write("smollm2_planted", table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
