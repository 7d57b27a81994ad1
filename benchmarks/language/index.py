"""What an index of texts costs beside a plain forward pass, and how exact it is.

SmolLM2-135M-Instruct (4-bit weights, computed in float32 and in bfloat16) reads 48
quotations of 12 to 48 tokens, without prompts, in batches of 16 by length. Ratios of
processor time on one thread, in turns; medians of 7 rounds, and their range. *Plain* is
the model's own ``model(input_ids, attention_mask).logits``, tokens ready made.

    python -m benchmarks.language.index
"""

import numpy as np
import torch

from benchmarks._processes import in_turns
from benchmarks._table import Table, write
from benchmarks.language._smollm2 import no_prompts, sample, signatures, smollm2
from skattrib import RISEValuator

# What an index does before signatures is no one's public function.
from skattrib.engine._last_layer import residuals
from skattrib.models.language._tokens import padded

N_PER_TOPIC, N_ROUNDS = 8, 7
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
    for tokens in lm._tokens(*no_prompts(texts)):
        if top_k:
            residuals(tokens.outputs, tokens.targets, "classification", top_k=top_k)


def cost(table, lm, texts, label):
    """Add the rows of a dtype."""
    windows = lm._windows(*no_prompts(texts))
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

    plain(lm, batches)
    base, *others = in_turns(arms.values(), N_ROUNDS).T
    speed = sum(len(window.ids) for window in windows) / np.median(base)
    print(f"{label}: plain {speed:.0f} tokens a second", flush=True)
    for name, took in zip(list(arms)[1:], others, strict=True):
        ratio = took / base
        spread = f"{ratio.min():.3f} to {ratio.max():.3f}"
        table.add(label, name, f"{np.median(ratio):.3f}", spread)
        label = ""


def units(lm, texts):
    """Return unit signatures (n, width) of texts."""
    channels = signatures(lm, texts)
    found = [torch.nn.functional.normalize(value) for value in channels.values()]
    return torch.cat(found, dim=1)


def exactness(table, whole, half, texts):
    """Compare signatures of the same texts, read in other ways."""
    batch = units(whole.set_params(batch_size=16), texts)
    cases = {
        "float32, alone": units(whole.set_params(batch_size=1), texts),
        "float32, batches of 48": units(whole.set_params(batch_size=48), texts),
        "bfloat16, batches of 16": units(half, texts),
    }
    whole.set_params(batch_size=16)
    off = ~np.eye(len(texts), dtype=bool)

    for name, other in cases.items():
        rounded = (other.half().float() - batch.half().float()).abs().max()
        cosine = (other * batch).sum(dim=1) / 2
        kernels = [(side @ side.T / 2)[off] for side in (other, batch)]
        table.add(
            name,
            f"{(other - batch).abs().max():.1e}",
            f"{rounded:.1e}",
            f"{cosine.min():.5f}",
            f"{np.corrcoef(*kernels)[0, 1]:.5f}",
        )


def main():
    whole, half = smollm2(), smollm2(torch.bfloat16)
    texts, _ = sample(whole.tokenizer_, N_PER_TOPIC, seed=1)
    table = Table(
        "Signatures of the same texts (256 numbers a channel) against batches of 16",
        "read as | largest difference, float32 | kept, float16 | smallest cosine | "
        "correlation of scores",
    )
    exactness(table, whole, half, texts)
    write("smollm2_index_exactness", table)
    table = Table(
        "Processor time over that of a plain forward pass",
        ["dtype", "what", "median", "range"],
    )
    cost(table, whole, texts, "float32")
    cost(table, half, texts, "bfloat16")
    write("smollm2_index", table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
