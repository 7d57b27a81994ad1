"""The metrics of quanda on this package's attributors, and on explainers of quanda.

512 digits, one hidden layer of 16 ReLUs, AdamW, minibatches of 32, 15 epochs; 50
queries. quanda's metrics are given what `evaluation.QuandaExplainer` answers:
class detection (labels of the first five rows), top-k cardinality (share of different
rows among first ones), LDS on 64 halves that this package retrained and quanda loads,
model randomization (correlation with attributions of a network of random weights: 0 is
good), and mislabeling detection, of a network trained with a tenth of the labels wrong.
"LDS here" is `evaluation.lds_score` on margins of the same halves.

It needs an environment with both packages:

    make .peers/quanda/installed
    PYTHONPATH=. .peers/quanda/bin/python -m benchmarks.ranking.quanda
"""

import importlib.util
import re
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from benchmarks._table import Table, write
from skattrib import AdamWInfluence, DualInfluence, TorchClassifier
from skattrib.evaluation import (
    QuandaExplainer,
    lds_score,
    make_weightings,
    retrain_outcomes,
)

N_ROWS, N_QUERIES, N_HALVES, WRONG = 512, 50, 64, 0.1
CACHE = Path("benchmarks/.cache/quanda")
OURS = {
    "DualInfluence": DualInfluence(random_state=0),
    "AdamWInfluence, run on all": AdamWInfluence(inclusion=1, random_state=0),
    "AdamWInfluence": AdamWInfluence(random_state=0),
}


def quanda():
    """Return the package, which imports torchvision and calls none of its operators.

    Its wheel brings these for CUDA. Without, their names have to exist.
    """
    found = importlib.util.find_spec("torchvision")
    text = Path(found.origin).with_name("_meta_registrations.py").read_text()
    named = re.compile(r'register_\w+\("(?:torchvision::)?(\w+)"')
    library = torch.library.Library("torchvision", "FRAGMENT")
    if not hasattr(torch.ops.torchvision, "nms"):
        for name in sorted(set(named.findall(text))):
            library.define(f"{name}(Tensor x) -> Tensor")
    import quanda

    return quanda, library


class Case:
    """A network, its rows and queries, and halves that are retrained."""

    def __init__(self, folder):
        X, y = load_digits(return_X_y=True)
        order = np.random.RandomState(0).permutation(len(y))
        X, y = (X[order] / 16).astype(np.float32), y[order]
        self.X, self.y = X[:N_ROWS], y[:N_ROWS]
        self.queries = X[-N_QUERIES:], y[-N_QUERIES:]
        self.net = TorchClassifier(
            hidden_layer_sizes=(16,),
            activation="relu",
            batch_size=32,
            max_epochs=15,
            random_state=0,
        )
        rng = np.random.RandomState(1)
        self.wrong = np.sort(rng.permutation(N_ROWS)[: round(WRONG * N_ROWS)])
        self.spoiled = self.y.copy()
        self.spoiled[self.wrong] = (self.y[self.wrong] + rng.randint(1, 10)) % 10
        self.halves = make_weightings(N_ROWS, N_HALVES, random_state=0)
        self.files = []
        for i, weights in enumerate(self.halves):
            half = clone(self.net).fit(self.X, self.y, sample_weight=weights)
            self.files.append(str(Path(folder) / f"{i}.pt"))
            torch.save(half.module_.state_dict(), self.files[-1])
        self.truth = retrain_outcomes(
            self.net, self.X, self.y, self.halves, *self.queries, outcome="margin"
        )

    def rows(self, y):
        return TensorDataset(torch.tensor(self.X), torch.tensor(y))


def loaded(model, path):
    model.load_state_dict(torch.load(path, weights_only=True))


def scores(package, case, make, own=None):
    """Return the metrics of an explainer, that ``make`` builds of model and rows."""
    model, rows = case.net.module_, case.rows(case.y)
    Xq, yq = (torch.tensor(part) for part in case.queries)
    found = make(model, rows).explain(Xq, yq)
    classes = package.ClassDetectionMetric(model, rows)
    classes.update(found, yq)
    cardinality = package.TopKCardinalityMetric(model, rows, top_k=5)
    cardinality.update(found)
    lds = package.LinearDatamodelingMetric(
        model,
        rows,
        m=N_HALVES,
        subset_ids=[np.flatnonzero(half).tolist() for half in case.halves],
        subset_ckpt_filenames=case.files,
        checkpoints_load_func=loaded,
    )
    lds.update(found, yq, Xq)
    here = lds_score(case.truth, case.halves @ found.numpy().T)
    spoiled = clone(case.net).fit(case.X, case.spoiled)
    own = make(spoiled.module_, case.rows(case.spoiled)).self_influence()
    wrong = package.MislabelingDetectionMetric(
        spoiled.module_,
        case.rows(case.spoiled),
        case.wrong.tolist(),
        precomputed_self_influence=own,
    )
    return [
        *(f"{m.compute()['score']:.3f}" for m in (classes, cardinality, lds)),
        f"{here:.3f}",
        f"{wrong.compute()['score']:.3f}",
    ]


def randomized(package, case, make, kind, options):
    """Return the score of model randomization, or what the explainer says."""
    model, rows = case.net.module_, case.rows(case.y)
    Xq, yq = (torch.tensor(part) for part in case.queries)
    path = str(CACHE / "whole.pt")
    torch.save(model.state_dict(), path)
    try:
        metric = package.ModelRandomizationMetric(
            model=model,
            model_id="0",
            train_dataset=rows,
            checkpoints=path,
            explainer_cls=kind,
            expl_kwargs=options,
            cache_dir=str(CACHE),
        )
        metric.update(make(model, rows).explain(Xq, yq), Xq, yq)
    except Exception as error:
        return f"{type(error).__name__}"
    return f"{metric.compute()['score']:.3f}"


def main():
    package, _library = quanda()
    CACHE.mkdir(parents=True, exist_ok=True)
    table = Table(
        "Metrics of quanda",
        "attributions | class detection | top-k cardinality | LDS | LDS here | "
        "mislabeling detection | model randomization",
    )
    with tempfile.TemporaryDirectory() as folder:
        case = Case(folder)
        case.net.fit(case.X, case.y)
        for name, attributor in OURS.items():
            fitted = {}

            def make(model, rows, attributor=attributor, fitted=fitted):
                y = rows.tensors[1].numpy()
                if y.tobytes() not in fitted:
                    own = clone(attributor).set_params(estimator=clone(case.net))
                    fitted[y.tobytes()] = own.fit(case.X, y)
                return QuandaExplainer(model, rows, attributor=fitted[y.tobytes()])

            cells = scores(package, case, make)
            options = {"attributor": fitted[case.y.tobytes()]}
            cells.append(randomized(package, case, make, QuandaExplainer, options))
            table.add(name, *cells)
        for name, kind, options in theirs(package):

            def make(model, rows, kind=kind, options=options):
                path = str(CACHE / "theirs.pt")
                torch.save(model.state_dict(), path)
                how = {"checkpoints": path, **options}
                if "model_id" in how:  # it keeps what it computes
                    how["model_id"] += f"{hash(rows.tensors[1].numpy().tobytes())}"
                return kind(model=model, train_dataset=rows, **how)

            try:
                cells = scores(package, case, make)
            except Exception as error:
                cells = [f"{type(error).__name__}: {error}"[:80], *[""] * 4]
            cells.append(randomized(package, case, make, kind, options))
            table.add(name, *cells)
    write("quanda", table)


def theirs(package):
    """Return names, classes and options of explainers of quanda."""
    kept = {"model_id": "digits", "cache_dir": str(CACHE)}
    return [
        (
            "quanda CaptumSimilarity",
            package.CaptumSimilarity,
            {**kept, "layers": "1", "load_from_disk": False, "batch_size": 32},
        ),
        (
            "quanda CaptumArnoldi",
            package.CaptumArnoldi,
            {"batch_size": 32, "arnoldi_dim": 100, "projection_dim": 50},
        ),
        ("quanda RandomExplainer", package.RandomExplainer, {"seed": 0}),
    ]


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
