"""Where is the gradient of a text, and what does reading a text take?

Gradients of the mean loss of 48 quotations in all weights of SmolLM2-135M-Instruct are
taken one by one, and every layer's part is sketched to 16,384 numbers: the share of the
squared norm in each layer, and how well cosines of that layer's part rank the other
texts as cosines of the whole gradient do. The table of words is both the first and the
last layer: the two uses are told apart. Then, in a process of its own for each, the
largest memory of a plain forward pass over 160 quotations and of building an index.

    python -m benchmarks.language.layers
"""

from collections import defaultdict

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks._finding import HIDDEN, interval
from benchmarks._processes import in_own_process, peak_from_here
from benchmarks._table import Table, write
from benchmarks.language._smollm2 import rise_scores, sample, smollm2, tokens
from skattrib import RISEValuator

N_TEXTS, N_COMPONENTS, N_READ = 48, 2**14, 160
#: what is read, or None for a plain forward pass
READERS = {
    "plain forward pass": None,
    "RISE": {},
    "RISE, 1024 components": {"n_components": 1024},
    "RISE, 3 sketches": {"n_sketches": 3},
    "RISE, all words": {"top_k": None},
    "RISE, published settings": {"preset": "paper"},
}
SIGNATURES = {
    "signatures: RISE": {},
    "signatures: RISE, temperature 1": {"temperature": 1.0},
    HIDDEN: {"channels": ("h",), "n_components": 1024},
}


def part_of(name, n_blocks):
    """Name the layer that a parameter is of."""
    if "embed_tokens" in name:
        return "words, read"
    if ".layers." in name:
        block = int(name.split(".layers.")[1].split(".")[0])
        first = 6 * (block // 6)
        return f"blocks {first + 1} to {min(first + 6, n_blocks)}"
    return "norm before the head"


def sketched(gradient, generator):
    """Sketch a tensor to N_COMPONENTS numbers; the generator is at the same place."""
    flat = gradient.reshape(-1)
    place = torch.randint(N_COMPONENTS, flat.shape, generator=generator)
    sign = torch.randint(2, flat.shape, generator=generator, dtype=torch.int8) * 2 - 1
    return torch.zeros(N_COMPONENTS).index_add_(0, place, flat * sign)


def gradients(lm, texts):
    """Return sketches (n, N_COMPONENTS) and squared norms (n,) of each layer."""
    model = lm.model_
    head = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.lm_head.weight = head  # apart from the table that is read
    names = [name for name, _ in model.named_parameters()]
    model.requires_grad_(True)
    found, energy = defaultdict(list), defaultdict(list)
    n_blocks = len(model.model.layers)

    for ids in tokens(lm.tokenizer_, texts):
        inputs = torch.tensor([ids])
        loss = model(input_ids=inputs, labels=inputs, use_cache=False).loss
        each = torch.autograd.grad(loss, list(model.parameters()))
        generator = torch.Generator().manual_seed(0)
        rows, squares = defaultdict(lambda: 0.0), defaultdict(float)
        for name, gradient in zip(names, each, strict=True):
            part = "head" if name.startswith("lm_head") else part_of(name, n_blocks)
            rows[part] = rows[part] + sketched(gradient, generator)
            squares[part] += float(gradient.square().sum())
        for part, row in rows.items():
            found[part].append(row)
            energy[part].append(squares[part])
        print(len(energy["head"]), flush=True)

    return (
        {part: torch.stack(rows).numpy() for part, rows in found.items()},
        {part: np.array(squares) for part, squares in energy.items()},
    )


def cosines(rows):
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def agreement(ours, whole):
    """Return the mean rank correlation over texts, and an interval over these."""
    others = ~np.eye(len(whole), dtype=bool)
    rows = zip(ours, whole, others, strict=True)
    return interval([spearmanr(a[other], b[other])[0] for a, b, other in rows])


def layers():
    lm = smollm2()
    texts, _ = sample(lm.tokenizer_, N_TEXTS // 6, seed=0)
    read = {
        name: rise_scores(lm, (None, texts), (None, texts), **options)
        for name, options in SIGNATURES.items()
    }
    rows, energy = gradients(lm, texts)
    whole = cosines(sum(rows.values()))
    total = sum(energy.values())
    table = Table(
        "Gradients of 48 quotations: where they are, and who ranks texts as they do",
        ["layer", "share of the squared norm", "rank correlation with the whole"],
    )

    for part, own in rows.items():
        share = (energy[part] / total).mean()
        table.add(part, f"{share:.3f}", agreement(cosines(own), whole))

    for name, own in read.items():
        table.add(name, "", agreement(own, whole))
    write("smollm2_layers", table)


def largest_memory(name):
    """Return the memory that a reader takes beyond what there is before, in MB."""
    torch.set_num_threads(1)
    lm = smollm2()
    texts, _ = sample(lm.tokenizer_, 27, seed=0)
    texts = texts[:N_READ]
    lm.log_likelihood(None, texts[:1])
    risen = peak_from_here()  # without that of loading
    if READERS[name] is None:
        lm.log_likelihood(None, texts)
    else:
        RISEValuator(lm, random_state=0, **READERS[name]).fit(None, texts)
    return risen() / 2**20


def memory():
    table = Table(
        f"Largest memory beyond that of the model, {N_READ} quotations, in MB",
        ["what", "MB"],
    )
    for name in READERS:
        table.add(name, f"{in_own_process(largest_memory, name):.0f}")
    write("smollm2_layers_memory", table)


if __name__ == "__main__":
    torch.set_num_threads(1)
    layers()
    memory()
