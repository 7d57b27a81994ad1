"""How well an index finds planted texts, for the bytes that it keeps of each.

The small Llama that was taught a signature (`benchmarks.language.behaviour`, three
draws, ± standard error) is asked for the texts that taught it; average precision, mean
over queries. Signatures of RISE as this package has them, and in the layout and with
the settings that its authors published, also at temperature 1; the layout of RapidIn
(arXiv:2405.11724): the gradient of what was trained, shuffled and added up in groups
with random signs, which is a count sketch; and what knows no gradient: hidden states,
and sentences by an encoder, of which there is one size. Signatures and hidden states
are of the model as it was before, as what is trained here gives no logits to an index.
All are kept in float16.

    OMP_NUM_THREADS=1 python -m benchmarks.retrieval.bytes_a_row
"""

import warnings

import numpy as np
import torch

from benchmarks._finding import by_query
from benchmarks._table import Table, axes, pm, write
from benchmarks.language._sentences import ENCODER, WIDTH, sentences
from benchmarks.language._small import small_llama
from benchmarks.language._smollm2 import rise_scores
from benchmarks.language.behaviour import SEEDS, case
from skattrib import CountSketchTransformer
from skattrib.extension import as_model
from skattrib.language import CausalLanguageModel

# The published settings have no public name.
from skattrib.retrieval._settings import PRESETS

BYTES = (64, 256, 1024, 4096, 16384)
#: widths of the published layout, each with half as much of "g" as of the others
WIDTHS = (4, 8, 16, 32, 64)
PAPER = PRESETS["paper"]


def size(n_bytes):
    return f"{n_bytes:,} B"


def by_rise(one):
    """Yield method, bytes a row and scores (q, n) of signatures."""
    lm = CausalLanguageModel(one.lm.model, one.lm.tokenizer, add_eos=False)
    for n_bytes in BYTES:
        options = {"n_components": n_bytes // 4}
        yield "RISE", n_bytes, rise_scores(lm, one.rows, one.queries, **options)
    for width in WIDTHS:
        widths = {"r": width, "g": width // 2, "h": width}
        options = PAPER | {"n_components": widths}
        n_bytes = 2 * (width * width + width * width // 2)
        scores = rise_scores(lm, one.rows, one.queries, **options)
        yield "RISE as published", n_bytes, scores
        options["temperature"] = 1.0
        scores = rise_scores(lm, one.rows, one.queries, **options)
        yield "RISE as published, temperature 1", n_bytes, scores
    width = lm.model_.get_output_embeddings().weight.shape[1]
    for n_bytes in BYTES:
        if n_bytes <= 2 * width:
            options = {"channels": ("h",), "n_components": n_bytes // 2}
            scores = rise_scores(lm, one.rows, one.queries, **options)
            yield "hidden states", n_bytes, scores


def gradients(lm, texts):
    """Return gradients (n, P) of what was trained, of each text's loss."""
    X, y = lm._tokenised(*texts)
    model = as_model(lm)
    # one by one: rows of other lengths
    return torch.cat(
        [model.loss_gradients(X[i : i + 1], y[i : i + 1]) for i in range(len(X))]
    ).double()


def by_gradients(one):
    """Yield the same of sketched gradients, and of whole ones."""
    rows, asked_for = (gradients(one.lm, texts) for texts in (one.rows, one.queries))
    rows, asked_for = (part.numpy() for part in (rows, asked_for))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    name = "gradients as RapidIn keeps them"
    for n_bytes in BYTES:
        sketch = CountSketchTransformer(n_components=n_bytes // 2, random_state=0)
        kept = sketch.fit_transform(rows / lengths).astype(np.float16)
        yield name, n_bytes, sketch.transform(asked_for) @ kept.T.astype(float)
    yield "gradients, whole", 2 * rows.shape[1], asked_for @ (rows / lengths).T


def by_encoder(one):
    """Yield the same of sentences; nothing where the encoder is not installed."""
    scores = sentences(one.rows, one.queries)
    if scores is not None:
        yield ENCODER, 2 * WIDTH, scores


def main():
    model, tokenizer = small_llama()
    found = {}
    for seed in SEEDS:
        one = case(model, tokenizer, seed)
        relevance = np.tile(one.signed, (len(one.queries[1]), 1))
        for scored in (by_rise(one), by_gradients(one), by_encoder(one)):
            for method, n_bytes, scores in scored:
                precision = by_query(scores[None], relevance).mean()
                found.setdefault(method, {}).setdefault(n_bytes, []).append(precision)
                print(seed, method, size(n_bytes), f"{precision:.3f}", flush=True)
    table = Table(
        "Average precision of finding signed texts, by the bytes kept of a row",
        ["method", "bytes a row", "average precision"],
    )
    for method, sizes in found.items():
        for n_bytes, precisions in sorted(sizes.items()):
            table.add(method, f"{n_bytes:,}", pm(precisions))
    write("bytes_a_row", table)
    draw(found)


def draw(found):
    """Draw precision over bytes, a line for each method."""
    with axes("bytes_a_row", 1, (7, 4)) as axis:
        for method, sizes in found.items():
            points = [(n, np.mean(own)) for n, own in sorted(sizes.items())]
            axis.semilogx(*zip(*points, strict=True), "o-", label=method)
        axis.set(xlabel="bytes a row", ylabel="average precision")
        axis.legend(
            frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5)
        )


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
