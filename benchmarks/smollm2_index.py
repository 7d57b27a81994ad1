"""What an index of texts costs beside a plain forward pass, and how exact it is.

SmolLM2-135M-Instruct (4-bit weights, computed in float32 and in bfloat16) reads 48
quotations of 12 to 48 tokens, without prompts, in batches of 16 by length. Ratios of
processor time on one thread, in turns; medians of 7 rounds, and their range. *Plain* is
the model's own ``model(input_ids, attention_mask).logits``, tokens ready made.

    apt-get install fortunes
    pip install -c constraints.txt -e ".[language]"
    python -m benchmarks.smollm2_index
"""

import time
from pathlib import Path

import numpy as np
import torch

from benchmarks._smollm2 import sample, smollm2, write_table
from skattrib import RISEValuator
from skattrib.engine._readout import residuals
from skattrib.models.language._tokens import padded
from skattrib.retrieval._settings import resolve
from skattrib.retrieval._signatures import Signer

N_PER_TOPIC, N_ROUNDS = 8, 7
NAME = Path(__file__).stem
MEASURED = Path(__file__).parents[1] / "doc" / "measured"
INDEXES = {
    "tensor, 256": {"n_components": 256},
    "tensor, 1024": {"n_components": 1024},
    "factor, 1024": {"n_components": 1024, "sketch": "factor"},
}


def plain(lm, batches):
    with torch.no_grad():
        for ids, mask in batches:
            lm.model_(input_ids=ids, attention_mask=mask, use_cache=False)


def read(lm, texts, top_k=None):
    """Compute hidden states and logits, and residuals if there is a ``top_k``."""
    for tokens in lm._tokens(np.full(len(texts), None), texts):
        if top_k:
            residuals(tokens.outputs, tokens.targets, "classification", top_k=top_k)


def times(lm, texts):
    """Return processor seconds (n_rounds,) of every arm."""
    windows = lm._windows(np.full(len(texts), None), texts)
    windows.sort(key=lambda window: len(window.ids))
    batches = [padded(windows[i : i + 16], "cpu") for i in range(0, len(windows), 16)]
    arms = {
        "plain": lambda: plain(lm, batches),
        "hidden states and logits": lambda: read(lm, texts),
        "and residuals": lambda: read(lm, texts, top_k=128),
    }
    for name, options in INDEXES.items():
        rise = RISEValuator(lm, random_state=0, **options)
        arms[f"fit: {name}"] = lambda rise=rise: rise.fit(None, texts)
    found = {name: [] for name in arms}
    plain(lm, batches)
    for _ in range(N_ROUNDS):
        for name, run in arms.items():
            start = time.process_time()
            run()
            found[name].append(time.process_time() - start)
    n_tokens = sum(len(window.ids) for window in windows)
    return {name: np.array(seconds) for name, seconds in found.items()}, n_tokens


def cost_rows(lm, texts, label):
    found, n_tokens = times(lm, texts)
    base = found.pop("plain")
    print(
        f"{label}: plain {n_tokens / np.median(base):.0f} tokens a second", flush=True
    )
    rows = []
    for name, seconds in found.items():
        ratio = seconds / base
        rows.append(
            [
                label if not rows else "",
                f'"{name}"',
                f"{np.median(ratio):.3f}",
                f"{ratio.min():.3f} to {ratio.max():.3f}",
            ]
        )
    return rows


def units(lm, texts, sketch="tensor"):
    """Return unit signatures (n, width) of texts, and bytes of a row of an index."""
    settings, _ = resolve(RISEValuator(lm, sketch=sketch))
    signer = Signer(lm, None, settings, seed=0)
    signer.use(signer.tables())
    channels = signer(np.full(len(texts), None), texts)[0]
    found = [torch.nn.functional.normalize(value) for value in channels.values()]
    return torch.cat(found, dim=1)


def exactness(whole, half, texts):
    """Compare signatures of the same texts, read in other ways."""
    rows = []
    batch = units(whole.set_params(batch_size=16), texts)
    cases = {
        "float32, alone": units(whole.set_params(batch_size=1), texts),
        "float32, batches of 48": units(whole.set_params(batch_size=48), texts),
        "bfloat16, batches of 16": units(half, texts),
    }
    whole.set_params(batch_size=16)
    for name, other in cases.items():
        rounded = (other.half().float() - batch.half().float()).abs().max()
        cosine = (other * batch).sum(dim=1) / 2
        kernels = [
            (side @ side.T / 2)[~np.eye(len(texts), dtype=bool)]
            for side in (other, batch)
        ]
        rows.append(
            [
                f'"{name}"',
                f"{(other - batch).abs().max():.1e}",
                f"{rounded:.1e}",
                f"{cosine.min():.5f}",
                f"{np.corrcoef(*kernels)[0, 1]:.5f}",
            ]
        )
    return rows


def main():
    whole, half = smollm2(), smollm2(torch.bfloat16)
    texts, _ = sample(whole.tokenizer_, N_PER_TOPIC, seed=1)
    texts = np.array(texts, dtype=object)
    write_table(
        MEASURED / f"{NAME}_exactness.inc",
        "Signatures of the same texts (256 numbers a channel) against batches of 16",
        [
            "read as",
            '"largest difference, float32"',
            '"kept, float16"',
            "smallest cosine",
            "correlation of scores",
        ],
        exactness(whole, half, texts),
    )
    rows = cost_rows(whole, texts, "float32") + cost_rows(half, texts, "bfloat16")
    write_table(
        MEASURED / f"{NAME}.inc",
        "Processor time over that of a plain forward pass",
        ["dtype", "what", "median", "range"],
        rows,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
