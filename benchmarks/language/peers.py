"""What other packages say of the same fine-tuned language models, and the same truth.

Adds rows to the table of `benchmarks.language.fine_tuning`: kronfluence, bergson,
dattri-llm, and an encoder of sentences, which ``make peers`` installs and
`benchmarks/peers` drives. Each gets a model of transformers and peft that must have the
losses and logits of ours; one that repeats the training, its order, learning rates and
clipping, and it is said where that ends elsewhere. Their defaults, and if it is another
the setting that the truth likes best, after an arrow; costs are of the default, in CPU
seconds over those of our fine-tuning. A second table has what pairs of ours and theirs
differ by. What a package said is kept, by its script and the order. With ``--only``
rows are those of some methods, and ours are not measured again.

    OMP_NUM_THREADS=1 python -m benchmarks.language.peers \\
        [small | small-token | "small, seed 1" ...] [--only METHOD ...]
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from benchmarks._data import run_of
from benchmarks._orders import SCRIPTS, TEXTS, list_peers
from benchmarks._table import pm, reopen
from benchmarks.language.fine_tuning import (
    CAPTION,
    DUAL,
    EXACT,
    HEADER,
    ONE_RUN,
    WAYS,
    Case,
    attributed,
    write_by_setting,
)
from benchmarks.leaderboard._work import digest, run_once

SETTINGS = ("small", "small-token", "small, seed 1")
KRONECKER, SAMPLED, MAGIC = "kronfluence EK-FAC", "bergson EK-FAC", "bergson MAGIC"
#: method: script, and its name there
PEERS = {
    KRONECKER: ("run_texts_kronfluence", "EK-FAC"),
    SAMPLED: ("run_texts_bergson", "EK-FAC"),
    MAGIC: ("run_texts_bergson", "MAGIC"),
    "kronfluence K-FAC": ("run_texts_kronfluence", "K-FAC"),
    "kronfluence identity": ("run_texts_kronfluence", "identity"),
    "bergson EK-FAC with CG": ("run_texts_source", "EK-FAC with CG"),
    "bergson SOURCE": ("run_texts_source", "SOURCE"),
    "bergson TrackStar": ("run_texts_bergson", "TrackStar"),
    "dattri-llm EK-FAC": ("run_texts_dattri_llm", "EK-FAC"),
    "dattri-llm AdamWInfluence": ("run_texts_dattri_llm", "AdamWInfluence"),
    "dattri-llm DVEmb": ("run_texts_dattri_llm", "DVEmb"),
    "dattri-llm TracIn": ("run_texts_dattri_llm", "TracIn"),
    "dattri-llm LESS": ("run_texts_dattri_llm", "LESS"),
    "sentences (all-MiniLM-L6-v2), cosine": ("run_texts_encoder", "cosine"),
}
#: what scripts import, beside those that all do
IMPORTED = {"run_texts_source": ["run_texts_bergson"]}
#: seconds, of which MAGIC takes the most
TIMEOUT = 3600
#: characters of an error that are shown
SHOWN = 70
PAIRS = [(DUAL, KRONECKER), (DUAL, SAMPLED), (ONE_RUN, MAGIC), (EXACT, MAGIC)]
PAIRED = "Ours beside theirs, query by query"
PAIR_HEADER = [
    "model",
    "ours",
    "theirs",
    "LDS of ours, less theirs",
    "rank correlation with theirs by default, mean and least",
]


def write_texts(folder, case):
    """Write an order of texts, as ``peers/_texts.py`` says; return its path."""
    lm = case.lm
    for part in (lm.model_, lm.tokenizer_):
        part.save_pretrained(folder / "model")
    network = lm.network_
    recipe = network.trajectory_.recipe
    (X, counts), (X_query, _) = (
        lm._tokenised(*texts) for texts in (case.rows, case.queries)
    )
    end = {k: p for k, p in network.module_.named_parameters() if p.requires_grad}
    start = run_of(network, X, counts)[0].unflatten(recipe.initial)
    states = {"start": start, "end": end}
    seen = network.module_.logits(torch.as_tensor(X_query))[2]
    options = {
        "by_token": lm.normalization == "token",
        "adapter": lm.adapter,
        "betas": recipe.optimizer.betas,
        "eps": recipe.optimizer.eps,
        "weight_decay": recipe.optimizer.weight_decay,
        "clip_norm": recipe.clip_norm,
        "batch_size": lm.train_batch_size,
        "random_state": lm.random_state,
        "texts": [list(texts) for texts in case.rows],
        "queries": [list(texts) for texts in case.queries],
    }
    np.savez(
        folder / "order.npz",
        X=X,
        X_query=X_query,
        rows=np.concatenate(recipe.batches),
        sizes=[len(batch) for batch in recipe.batches],
        rates=recipe.learning_rates.numpy(),
        losses=network.predict(X),
        losses_query=network.predict(X_query),
        logits=seen.detach().numpy(),
        options=json.dumps(options),
        **{
            f"{kind}/{name.removeprefix('body.')}": value.detach().numpy()
            for kind, state in states.items()
            for name, value in state.items()
        },
    )
    return folder / "order.npz"


def asked(path, script, method):
    """Return what a package says of an order, or the error as text."""
    files = (script, "_texts", "_order", *IMPORTED.get(script, ()))
    source = [SCRIPTS.joinpath(f"{name}.py").read_text() for name in files]
    what = script, source, method, digest(path), None
    try:
        found = run_once(*what, path=path, timeout=TIMEOUT)
    except RuntimeError as error:
        return str(error)
    if found is None:
        return f"longer than {TIMEOUT} s"
    for setting, error in zip(found["settings"], found["errors"], strict=True):
        if error:
            print(f"  {script} {method} {setting}: {error}", flush=True)
    return found


class Said:
    """What a method of a package says: cells of its row, and scores.

    Those are by default and, if it is another, with the best setting.
    """

    def __init__(self, case, name, found):
        self.scores = []
        named = case.name, name, len(case.halves)
        if isinstance(found, str):
            self.cells = [*named, short(found), "", ""]
            return
        scores = [one.astype(float) for one in found["scores"]]
        known = [i for i, error in enumerate(found["errors"]) if error is None]
        if not known:
            self.cells = [*named, short(found["errors"][0]), "", ""]
            return
        told = {i: (case.lds(scores[i]), case.alone(scores[i])) for i in known}
        for i in known:
            setting, note = found["settings"][i], found["notes"][i]
            print(f"  {name} {setting}: {told[i]} {note}", flush=True)
        best = max(known, key=lambda i: float(told[i][0].split()[0]))
        lds, alone = told.get(0, ("fails", "fails"))
        self.scores = [scores[i] for i in dict.fromkeys([0, best]) if i in known]
        if best != 0:
            lds += f" → {told[best][0].split()[0]}"
            alone += f" → {told[best][1]}"
        if found["notes"][0]:
            lds += f" ({found['notes'][0]})"
        cost = case.cost(found["seconds"][0])
        self.cells = [*named, lds, alone, cost]


def short(error):
    return error if len(error) <= SHOWN else f"{error[:SHOWN]} …"


def correlations(found, expected):
    """Return the rank correlation of each row (q, m) with another one."""
    return np.array([spearmanr(*pair)[0] for pair in zip(found, expected, strict=True)])


def compare(case, mine, theirs):
    """Return cells: LDS of ours, less theirs, and how alike they rank the texts.

    Theirs are attributions by default and, if it is another, with the best setting.
    """
    own, *others = (
        correlations(scores @ case.halves.T, case.truth.T) for scores in (mine, *theirs)
    )
    # paired: both on the same halves and queries
    differences = " → ".join(pm(own - other) for other in others)
    alike = correlations(mine, theirs[0])
    return [differences, f"{alike.mean():.4f}, {alike.min():.4f}"]


def main(names, only):
    _, missing = list_peers(TEXTS)
    table = reopen("fine_tuning", CAPTION, HEADER)
    pairs = reopen("fine_tuning_peers", PAIRED, PAIR_HEADER)
    for name in names or SETTINGS:
        case = Case(name)
        own = {}
        for way, options in () if only else WAYS.items():
            # again: the table has no attributions
            own[way], seconds = attributed(case, *options)
            table.put(*case.row(way, own[way], seconds), n_keys=2)
        with tempfile.TemporaryDirectory() as folder:
            path = write_texts(Path(folder), case)
            for method in only or PEERS:
                script, named = PEERS[method]
                found = missing.get(script) or asked(path, script, named)
                said = Said(case, method, found)
                table.put(*said.cells, n_keys=2)
                write_by_setting("fine_tuning", table)
                for mine, theirs in PAIRS:
                    if theirs == method and said.scores and mine in own:
                        cells = compare(case, own[mine], said.scores)
                        pairs.put(name, mine, theirs, *cells, n_keys=3)
                        write_by_setting("fine_tuning_peers", pairs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("settings", nargs="*", metavar="SETTING")
    parser.add_argument("--only", nargs="+", choices=PEERS, metavar="METHOD")
    options = parser.parse_args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main(options.settings, options.only)
