"""What an index of texts costs for larger language models: tokens a second, memory.

Llamas of published shapes with random bfloat16 weights read 32 texts of 64 tokens in
batches of 8, and `RISEValuator` with its defaults keeps their signatures. Each in a
process of its own; peak is the memory above that of the model. A plain forward pass,
logits and all, is timed beside it. The largest is not run but on paper: time in
proportion to the weights that each token meets, from the largest that was run.

    OMP_NUM_THREADS=1 python -m benchmarks.retrieval.shapes
"""

import time
import warnings

import numpy as np
import torch
import transformers

from benchmarks._processes import in_own_process, peak_from_here
from benchmarks._table import reopen, write
from benchmarks.language._small import small_llama
from benchmarks.language.scale import SHAPES, config
from skattrib import RISEValuator
from skattrib.language import CausalLanguageModel

N_TEXTS, N_TOKENS, BATCH_SIZE = 32, 64, 8
RUN = "SmolLM2-135M", "360 M (SmolLM2)", "1 B (Llama 3.2)"
MORE = {"360 M (SmolLM2)": (960, 2560, 15, 5, 32, 49_152)}
HEADER = [
    "model",
    "weights, M",
    "bytes a row",
    "tokens/s",
    "of a forward pass's time",
    "peak above the model, MiB",
]


def weights(shape):
    """Return the number of weights."""
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config(shape))
    return sum(p.numel() for p in model.parameters())


def texts(tokenizer):
    """Return prompts and completions of so many tokens."""
    draw = np.random.RandomState(0)
    words = [w for w in tokenizer.get_vocab() if w.isalpha() and w.isascii()]
    whole = [" ".join(draw.choice(sorted(words), 4 * N_TOKENS)) for _ in range(N_TEXTS)]
    ids = [tokenizer(text)["input_ids"][:N_TOKENS] for text in whole]
    answers = [tokenizer.decode(one[1:]) for one in ids]
    return np.full(N_TEXTS, None), np.array(answers, dtype=object)


def measured(shape):
    """Return bytes a row, tokens a second, seconds over a forward pass's, MiB."""
    tokenizer = small_llama()[1]
    torch.set_default_dtype(torch.bfloat16)
    of = config(shape, eos_token_id=1, pad_token_id=0)
    model = transformers.LlamaForCausalLM(of).eval()
    torch.set_default_dtype(torch.float32)
    prompts, answers = texts(tokenizer)
    ids = [tokenizer(text)["input_ids"] for text in answers]
    lm = CausalLanguageModel(model, tokenizer, batch_size=BATCH_SIZE)
    rise = RISEValuator(lm, random_state=0).fit(prompts[:2], answers[:2])
    peak, start = peak_from_here(), time.process_time()
    rise = RISEValuator(lm, random_state=0).fit(prompts, answers)
    took, above = time.process_time() - start, peak()
    start = time.process_time()
    length = max(map(len, ids))
    padded = torch.tensor([one + [0] * (length - len(one)) for one in ids])
    with torch.no_grad():
        for batch in padded.split(BATCH_SIZE):
            model(input_ids=batch, use_cache=False)
    plain = time.process_time() - start
    n_tokens = sum(map(len, ids))
    return rise.bytes_per_row_, n_tokens / took, took / plain, above / 2**20


def main():
    warnings.simplefilter("ignore")
    table = reopen("index_shapes", "An index of texts, one core", HEADER)
    shapes = {**SHAPES, **MORE}
    known = {row[0] for row in table.rows}
    speeds = {}
    for name in sorted(shapes, key=lambda name: weights(shapes[name])):
        n_weights = weights(shapes[name])
        if name in RUN and name not in known:
            kept, speed, share, peak = in_own_process(measured, shapes[name])
            cells = f"{kept:,}", f"{speed:.3g}", f"{share:.2f}", f"{peak:.0f}"
            table.put(name, f"{n_weights / 1e6:.0f}", *cells)
            write("index_shapes", table)
        row = next((row for row in table.rows if row[0] == name), None)
        if name in RUN:
            speeds[n_weights] = float(row[3])
            kept = row[2]
        else:
            largest = max(speeds)
            speed = speeds[largest] * largest / n_weights
            cells = kept, f"{speed:.2g}, on paper", "", ""
            table.put(name, f"{n_weights / 1e6:.0f}", *cells)
    write("index_shapes", table)


if __name__ == "__main__":
    main()
