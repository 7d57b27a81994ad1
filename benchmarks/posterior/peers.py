"""TRAK with one, 16 and 50 models, on the axes of the frontier.

Its models are trained on random halves of the rows, as its authors do; they are trained
here one after the other, as a loop of PyTorch would. Truth, queries and clock are those
of `frontier`: LDS on 1,000 retrained halves, 30 queries, CPU seconds of training,
gradients and scores. Ridge and projection are chosen on the truth, for each number of
models; the seconds are those of the setting chosen. Needs ``pip install --no-deps
traker==0.3.2``. Sets that are named have their rows replaced, the others keep theirs;
the figure of `frontier` is drawn anew.

    OMP_NUM_THREADS=1 python -m benchmarks.posterior.peers [set ...]
"""

import logging
import sys
import tempfile
import time
import warnings

import numpy as np
import torch
from sklearn.base import clone

from benchmarks._table import reopen, write
from benchmarks.posterior._settings import Case
from benchmarks.posterior.frontier import HALVES, N_HELD_OUT, figure
from skattrib.evaluation import lds_score

NAMES, MODELS = ("wine", "digits", "digits 16x16"), (1, 16, 50)
RIDGES, SIZES = (1.0, 10.0, 100.0, 1e3, 1e4), (1024,)


def trained(case, halves):
    """Return modules trained on halves of the rows, and the CPU seconds of one."""
    nets = [clone(case.net) for _ in halves]
    start = time.process_time()
    for net, half in zip(nets, halves, strict=True):
        net.fit(*case.rows, sample_weight=half)
    return [net.module_ for net in nets], (time.process_time() - start) / len(nets)


def scores(case, modules, ridge, size):
    """Return TRAK's scores (q, n) of the first models, by their number, and seconds."""
    from trak import TRAKer

    X, y, Xq, yq = (torch.as_tensor(a) for a in (*case.rows, *case.queries))
    found, start = {}, time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        traker = TRAKer(
            model=modules[0],
            task="image_classification",
            train_set_size=len(X),
            save_dir=folder,
            device="cpu",
            logging_level=logging.ERROR,
            use_half_precision=False,
            lambda_reg=ridge,
            proj_dim=size,
        )
        states = [module.state_dict() for module in modules]
        for i, state in enumerate(states):
            traker.load_checkpoint(state, model_id=i)
            traker.featurize(batch=(X, y), num_samples=len(X))
        for n_models in MODELS:
            ids = list(range(n_models))
            traker.finalize_features(model_ids=ids)
            for i in ids:
                traker.start_scoring_checkpoint(f"of {n_models}", states[i], i, len(Xq))
                traker.score(batch=(Xq, yq), num_samples=len(Xq))
            scored = traker.finalize_scores(f"of {n_models}", model_ids=ids)
            found[n_models] = np.array(scored).T
    return found, (time.process_time() - start) / len(states)


def main(names):
    warnings.simplefilter("ignore")
    header = ["set", "models", "LDS", "CPU s", "ridge, projection"]
    table = reopen("posterior_peers", "TRAK, tuned on the truth", header)
    for name in names or NAMES:
        case = Case(name)
        halves = case.halves(max(HALVES) + N_HELD_OUT)[max(HALVES) :]
        truth = case.retrain(halves)
        own = np.random.RandomState(5).permutation(len(halves))[: max(MODELS)]
        modules, of_training = trained(case, halves[own])
        tried = {}
        for ridge in RIDGES:
            for size in SIZES:
                found, seconds = scores(case, modules, ridge, size)
                for n_models, a in found.items():
                    lds = lds_score(truth, halves @ a.T)
                    tried.setdefault(n_models, []).append((lds, seconds, ridge, size))
        for n_models in MODELS:
            lds, seconds, ridge, size = max(tried[n_models])
            took = n_models * (of_training + seconds)
            numbers = f"{lds:.3f}", f"{took:.1f}", f"{ridge:g}, {size}"
            table.put(name, n_models, *numbers, n_keys=2)
        write("posterior_peers", table)
    figure()


if __name__ == "__main__":
    main(sys.argv[1:])
