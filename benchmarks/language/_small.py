"""A small Llama that has read docstrings, and docstrings to fine-tune it on.

It is trained once, in minutes, on docstrings of installed packages, and kept. What it
is fine-tuned on are those of the standard library, which it has not read: the name of a
function is the prompt, the first line of its docstring the completion, its module the
source.
"""

import ast
import importlib
import inspect
import math
import random
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks._data import MEMORY

READ = "numpy", "sklearn", "pandas", "torch", "scipy", "joblib", "matplotlib"
N_FILES, N_WORDS, N_STEPS, N_ROWS, LENGTH = 250, 2048, 500, 24, 64
SOURCES = (
    "decimal",
    "logging",
    "asyncio",
    "math",
    "urllib.request",
    "calendar",
    "operator",
    "tarfile",
)
# Words of a completion.
FEWEST, MOST = 4, 12


def small_llama():
    """Return the model, in evaluation mode, and its tokenizer."""
    folder = Path(MEMORY) / "small_llama"
    if not (folder / "model.safetensors").exists():
        model, tokenizer = _pretrained()
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)
    read = {"local_files_only": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **read)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, **read)


def _read():
    """Return docstrings of functions and classes, shuffled."""
    draw, found = random.Random(0), []
    for package in READ:
        root = Path(find_spec(package).origin).parent
        files = sorted(str(path) for path in root.rglob("*.py"))
        draw.shuffle(files)
        for file in files[:N_FILES]:
            if "test" in file:
                continue
            for node in ast.walk(ast.parse(Path(file).read_text(errors="ignore"))):
                if not isinstance(node, ast.FunctionDef | ast.ClassDef):
                    continue
                text = ast.get_docstring(node)
                if not text or len(text) <= 20:
                    continue
                first = " ".join(text.split("\n\n")[0].split())
                found.append(f"{package}.{node.name}: {first}")
                body = " ".join(text.split())
                if len(body) > 200:
                    found.append(body[:1200])
    draw.shuffle(found)
    return found


def _pretrained():
    texts = _read()
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=N_WORDS,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>"
    )
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    stream = torch.tensor([i for text in ids for i in [*text, 1]])
    config = transformers.LlamaConfig(
        vocab_size=N_WORDS,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.01
    )
    for step in range(N_STEPS):
        cosine = 0.5 * (1 + math.cos(math.pi * step / N_STEPS))
        rate = 3e-3 * min(1, (step + 1) / 30) * (0.95 * cosine + 0.05)
        optimizer.param_groups[0]["lr"] = rate
        begin = torch.randint(len(stream) - LENGTH - 1, (N_ROWS,), generator=draw)
        rows = torch.stack([stream[i : i + LENGTH] for i in begin])
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(
                f"reading docstrings: step {step}, loss {loss.item():.2f}", flush=True
            )
    return model, tokenizer


def docstrings(tokenizer, n_each, n_queries, longest):
    """Return rows and queries of each source, shuffled: (source, prompt, completion).

    Parameters
    ----------
    tokenizer : callable
    n_each, n_queries : int
        Of each source.
    longest : int
        Tokens of prompt and completion.
    """
    draw, rows, queries = random.Random(1), [], []
    for source in sorted(SOURCES):
        found = [
            (source, f"{name}:", f" {line}")
            for name, line in _first_lines(source)
            if len(tokenizer(f"{name}: {line}")["input_ids"]) <= longest
        ]
        draw.shuffle(found)
        rows += found[:n_each]
        queries += found[n_each : n_each + n_queries]
    draw.shuffle(rows)
    return rows, queries


def _first_lines(name):
    """Return names in a module of the standard library, with their first lines."""
    module, seen, found = importlib.import_module(name), set(), []
    for key in sorted(k for k in dir(module) if not k.startswith("_")):
        value = getattr(module, key, None)
        objects = [(key, value)]
        own = getattr(value, "__module__", "").split(".")[0] == name.split(".")[0]
        if inspect.isclass(value) and own:
            objects += [
                (f"{key}.{method}", function)
                for method, function in sorted(vars(value).items())
                if not method.startswith("_") and callable(function)
            ]
        for label, one in objects:
            text = inspect.getdoc(one) if callable(one) else None
            if not text:
                continue
            line = " ".join(text.strip().split("\n\n")[0].split())
            line = re.split(r"(?<=[a-z])\. ", line)[0].rstrip(".") + "."
            fits = FEWEST <= len(line.split()) <= MOST and "->" not in line
            if fits and line not in seen and re.match(r"[A-Z]", line):
                seen.add(line)
                found.append((f"{name}.{label}", line))
    return found


def columns(rows):
    """Return sources, prompts and completions as arrays."""
    return [np.array(column, dtype=object) for column in zip(*rows, strict=True)]
