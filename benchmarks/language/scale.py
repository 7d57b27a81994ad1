"""What attributing the fine-tuning of larger language models would take, on paper.

Shapes of Llamas with nothing in them, adapters of rank 8 on the linear layers of the
last 4 blocks or of all; 1,000 texts of 256 tokens, 3 epochs of batches of 8, and 10
queries. Numbers of float32 that are held at once, in GiB: the model; hidden states
below the first trained block (on the disk, where they are more than a quarter of the
working memory); of `AdamWInfluence` three vectors of adjoints for each query, and
states of the run, each with two moments, at twice the root of the number of steps; of
`DualInfluence` the gradients of each text and of four that are drawn in its place.

    python -m benchmarks.language.scale
"""

import math

import peft
import torch
import transformers

from benchmarks._table import Table, write

SHAPES = {  # hidden, in between, heads, of keys, blocks, words
    "SmolLM2-135M": (576, 1536, 9, 3, 30, 49_152),
    "1 B (Llama 3.2)": (2048, 8192, 32, 8, 16, 128_256),
    "7 B (Llama 2)": (4096, 11_008, 32, 32, 32, 32_000),
}
N_TEXTS, N_TOKENS, N_QUERIES, N_DRAWS, RANK = 1000, 256, 10, 4, 8
N_STEPS = 3 * N_TEXTS // 8
LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GIB = 2**30 / 4


def config(shape, **options):
    """Return the configuration of a Llama of a shape."""
    wide, between, heads, of_keys, n_blocks, n_words = shape
    return transformers.LlamaConfig(
        hidden_size=wide,
        intermediate_size=between,
        num_attention_heads=heads,
        num_key_value_heads=of_keys,
        num_hidden_layers=n_blocks,
        vocab_size=n_words,
        tie_word_embeddings=wide < 4096,
        **options,
    )


def counted(shape, n_last):
    """Return the numbers in a model, and in adapters of its last blocks."""
    n_blocks = shape[4]
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config(shape))
    n_weights = sum(p.numel() for p in model.parameters())
    first = n_blocks - n_last
    adapter = peft.LoraConfig(
        r=RANK, target_modules=LAYERS, layers_to_transform=list(range(first, n_blocks))
    )
    peft.inject_adapter_in_model(adapter, model)
    trained = [p.numel() for name, p in model.named_parameters() if "lora_" in name]
    return n_weights, sum(trained)


def main():
    table = Table(
        "GiB of float32 for 1,000 texts and 10 queries, on paper",
        "model | blocks trained | adapters' numbers | the model | hidden states | "
        "AdamWInfluence, run on all | DualInfluence",
    )
    for name, shape in SHAPES.items():
        for n_last in (4, shape[4]):
            n_weights, n_trained = counted(shape, n_last)
            states = 2 * math.ceil(math.sqrt(N_STEPS))
            below = N_TEXTS * N_TOKENS * shape[0] if n_last < shape[4] else 0
            sizes = [
                n_weights,
                below,
                3 * n_trained * (N_QUERIES + states),
                (1 + N_DRAWS) * N_TEXTS * n_trained,
            ]
            table.add(
                name,
                f"{n_last} of {shape[4]}",
                f"{n_trained:,}",
                *(f"{size / GIB:.1f}" for size in sizes),
            )
    write("fine_tuning_scale", table)


if __name__ == "__main__":
    main()
