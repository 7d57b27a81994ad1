"""Hand a trained network to the peers in `benchmarks/peers` and read their scores.

They live in environments of their own under ``.peers/``, which ``make peers`` builds;
``PEERS`` names another folder. The files are described in ``peers/_order.py``.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from sklearn.base import clone, is_classifier

from benchmarks._data import run_of
from benchmarks.peers._networks import Network

SCRIPTS = Path(__file__).parent / "peers"
PEERS = Path(os.environ.get("PEERS", SCRIPTS.parents[1] / ".peers"))
#: script of networks: environment, None for this one
NETWORKS = {
    "run_baselines": None,
    "run_skattrib": None,
    "run_dattri": "torch",
    "run_pydvl": "pydvl",
    "run_captum": "torch",
    "run_kronfluence": "torch",
    "run_traker": "torch",
    "run_pyinfluence": "torch",
    "run_dualxda": "dualxda",
}
#: the same of fine-tuned language models
TEXTS = {
    "run_texts_kronfluence": "language",
    "run_texts_bergson": "language",
    "run_texts_source": "language",
    "run_texts_dattri_llm": "language",
    "run_texts_encoder": "language",
}
ENVIRONMENTS = NETWORKS | TEXTS


def write_order(
    path, estimator, X, y, X_query, y_query, subsets=None, models=(), fits=()
):
    """Write a fitted TorchClassifier or TorchRegressor and its data to a file.

    The network must be the one that ``hidden_layer_sizes`` builds, or a `Network`;
    ``X`` and ``y`` are those of ``fit``, in float32. The network after each epoch comes
    from repeating the run, whatever ``estimator.record`` is. ``subsets`` (m, n) are
    those whose outcomes a package may predict; ``models`` are states of networks
    trained on halves of the rows, ``fits`` are estimators that were fitted so, whose
    epochs are written too. None of these by default.
    """
    module = estimator.module
    if not (module is None or isinstance(module, Network)):
        raise ValueError(
            "peers build the network of hidden_layer_sizes, or a Network of "
            "benchmarks/peers/_networks.py: pass one as module, or None."
        )
    X, X_query = (np.asarray(rows, dtype=np.float32) for rows in (X, X_query))
    checkpoints, rates = _epochs(estimator, X, y)
    state = estimator.module_.state_dict()

    for name, value in state.items():
        if not torch.equal(checkpoints[-1][name], value):
            raise ValueError("X and y are not those that the estimator was fitted on.")

    widths = [len(value) for value in state.values() if value.ndim == 2]
    if subsets is None:
        subsets = np.ones((0, len(X)))
    if module is not None:
        inputs = X.shape[1] if X.ndim == 2 else X.shape[1:]
        module = asdict(module) | {
            "n_inputs": inputs,
            "n_outputs": estimator.n_outputs_,
        }
    options = {
        "task": "classification" if is_classifier(estimator) else "regression",
        "layers": [X.shape[1], *widths],
        "activation": estimator.activation,
        "random_state": int(estimator.random_state or 0),
        "estimator": estimator.get_params() | {"module": None},
        "module": module,
    }
    arrays = {f"state/{k}": v.numpy() for k, v in state.items()}

    epochs = [_epochs(fit, X, y)[0] for fit in fits]
    named = {
        "checkpoint": checkpoints,
        "model": [*models, *(own[-1] for own in epochs)],
    }
    named |= {f"epoch/{i}": own for i, own in enumerate(epochs)}
    for kind, states in named.items():
        for i, one in enumerate(states):
            arrays |= {f"{kind}/{i}/{k}": v.numpy() for k, v in one.items()}
    np.savez(
        path,
        X=X,
        y=targets_of(estimator, y).numpy(),
        X_query=X_query,
        y_query=targets_of(estimator, y_query).numpy(),
        subsets=np.asarray(subsets, dtype=np.float32),
        rates=rates,
        options=json.dumps(options),
        **arrays,
    )


def targets_of(estimator, y):
    """Return class codes (n,), or float32 targets (n, 1), as a tensor."""
    if is_classifier(estimator):
        return torch.tensor(np.searchsorted(estimator.classes_, y))
    return torch.tensor(np.asarray(y, dtype=np.float32))[:, None]


def _epochs(estimator, X, y):
    """Return the parameters after each epoch, by name, and their learning rates."""
    again = clone(estimator).set_params(record="states")
    again.fit(X, y, sample_weight=estimator.trajectory_.row_weights.numpy())
    record, n_epochs = again.trajectory_, estimator.max_epochs
    per_epoch = record.recipe.n_steps // n_epochs
    ends = [per_epoch * (i + 1) for i in range(n_epochs)]
    unflatten = run_of(again, X, y)[0].unflatten
    state = again.module_.state_dict()
    checkpoints = [state | unflatten(record.states[t].params[0]) for t in ends]
    return checkpoints, [float(record.recipe.learning_rates[t - 1]) for t in ends]


def _interpreter(script):
    environment = ENVIRONMENTS[script]
    if environment is None:
        return Path(sys.executable)
    return PEERS / environment / "bin" / "python"


def _call(script, *arguments, timeout=None):
    """Run a script; a RuntimeError says what it said last, not its command's paths."""
    command = [_interpreter(script), SCRIPTS / f"{script}.py", *arguments]
    environment = os.environ | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    options = {"capture_output": True, "text": True, "env": environment}
    try:
        done = subprocess.run([*map(str, command)], timeout=timeout, **options)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"longer than {timeout} s") from error
    if done.returncode < 0:
        raise RuntimeError(f"died of {signal.Signals(-done.returncode).name}")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else "died without a word")
    return done


def list_peers(scripts=NETWORKS):
    """Return settings, the default first, by (script, method), and what is missing.

    The latter is why a script cannot run, by script.
    """
    settings, missing = {}, {}
    for script, environment in scripts.items():
        if not _interpreter(script).exists():
            missing[script] = f"no environment {environment!r}: make peers"
            continue
        try:
            # what a package prints when it is imported comes before
            answer = _call(script, "--list").stdout.splitlines()[-1]
        except RuntimeError as error:
            missing[script] = str(error)
            continue
        for method, tried in json.loads(answer).items():
            settings[script, method] = tried
    return settings, missing


def run_peer(script, method, order_path, settings=None, timeout=None):
    """Run a method of a peer with each of its settings, or with those given.

    If it dies (RuntimeError), or takes longer than ``timeout`` seconds (TimeoutError),
    the settings that it got to count, and the others have an error.

    Returns
    -------
    dict
        scores (n_settings, q, n), predicted (n_settings, m, q), seconds, peak
        (n_settings,), yardstick (float), settings, errors and notes (lists); see
        ``peers/_order.py``.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "scores.npz"
        chosen = [] if settings is None else [json.dumps(settings)]
        order = str(Path(order_path).resolve())
        try:
            _call(script, order, str(target), method, *chosen, timeout=timeout)
        except (RuntimeError, TimeoutError):
            if not target.exists():
                raise
        with np.load(target) as file:
            found = dict(file)

    found["yardstick"] = float(found["yardstick"])
    for name in ("settings", "errors", "notes"):
        found[name] = json.loads(str(found[name]))
    return found
