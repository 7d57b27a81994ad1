"""What every peer's script shares: reading an order, measuring, writing scores.

A script is run by the interpreter of an environment that has the peer and numpy:

    python run_X.py ORDER.npz SCORES.npz METHOD [SETTINGS]
    python run_X.py --list

This is the order of a network; that of a fine-tuned language model is in `_texts.py`.

``--list`` prints JSON, method → settings, of which the first is the package's default
and the others are the grid that it is tuned over; a setting overrides the default.
``SETTINGS`` is a JSON list of others.

ORDER.npz holds ``X, y, X_query, y_query`` (float32 rows; int64 class codes, or float32
targets (n, 1)), the trained network as ``state/<parameter>``, the network after each
epoch as ``checkpoint/<i>/<parameter>`` with its learning rate in ``rates``, others,
trained on random halves of the rows, as ``model/<i>/<parameter>`` if there are any, and
after each epoch as ``epoch/<i>/<epoch>/<parameter>`` if those are known,
``subsets`` (m, n) of 0 and 1, the rows of the retrainings that scores are compared
with, and ``options`` as JSON: task, layers, activation, random_state, the parameters of
the `estimator` that trained it, and module. The network is
``Sequential(Linear, activation, ..., Linear)``, or where module is not null, one of
`_networks.py`; its loss is the cross-entropy, or half the squared error.

SCORES.npz holds, per setting, ``scores`` (q, n), ``predicted`` (m, q), ``seconds`` and
``peak``, and ``yardstick``, ``settings``, ``errors`` and ``notes`` as JSON:

- it is written again after each setting; those still to come have the error "not
  reached".
- scores are positive where a training row raises the query's log-likelihood (−½ error²
  in regression); NaN where the setting failed, and then its error is not null.
- predicted are outcomes after retraining on the subsets, from a package that can say
  them; NaN where scores added up over a subset's rows are all that it says.
- seconds are CPU seconds of the process with its threads and children, of all that the
  package does for the setting, without imports: every method is first run once on a
  few rows, and that is not counted.
- peak is the largest resident memory while it ran, minus that before, in bytes. What
  the allocator kept of an earlier setting is not seen: the largest of the settings is
  what a method takes.
- the setting ``n_models``, which every method takes, asks for the mean of the scores of
  so many of the models, or for what the package itself makes of them.
- yardstick is CPU seconds of one pass of per-row gradients over the training rows; NaN
  where torch.func knows none of the network.
- notes are what is to be said beside the scores, mostly nothing.
"""

import ctypes
import gc
import json
import os
import random
import resource
import sys
import time
import traceback
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from _networks import Network
from torch import nn
from torch.func import functional_call, grad, vmap

ACTIVATIONS = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "identity": nn.Identity,
}


@dataclass(frozen=True)
class Order:
    """A trained network with its data, and what is asked of the peer."""

    X: torch.Tensor
    y: torch.Tensor
    X_query: torch.Tensor
    y_query: torch.Tensor
    subsets: torch.Tensor
    state: dict
    checkpoints: list
    rates: list
    task: str
    layers: list
    activation: str
    random_state: int
    #: parameters of the estimator that trained it
    estimator: dict
    #: kind, options, n_inputs and n_outputs of a network of `_networks.py`
    module: dict | None = None
    #: states of networks that were trained on halves of the rows
    models: list = field(default_factory=list)
    #: for each of these, its states after each epoch
    epochs: list = field(default_factory=list)
    #: what is to be said beside the scores
    notes: list = field(default_factory=list)

    @property
    def train(self):
        return self.X, self.y

    @property
    def queries(self):
        return self.X_query, self.y_query

    @property
    def classifies(self):
        return self.task == "classification"

    def network(self, state=None):
        """Return a new network with the trained parameters, or with others."""
        net = self._perceptron() if self.module is None else self._built(**self.module)
        net.load_state_dict(self.state if state is None else state)
        return net.eval()

    def _perceptron(self):
        layers = []
        for n_in, n_out in pairwise(self.layers):
            layers += [nn.Linear(n_in, n_out), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers[:-1])

    @staticmethod
    def _built(kind, options, n_inputs, n_outputs):
        return Network(kind, options)(n_inputs, n_outputs)

    def of_models(self, n_models):
        """Return an order of each of the first models, with their own checkpoints."""
        if len(self.models) < n_models:
            raise ValueError(f"the order has {len(self.models)} models, not {n_models}")
        states = self.models[:n_models]
        epochs = self.epochs or [[state] for state in states]
        rates = self.rates if self.epochs else [1.0]
        return [
            replace(self, state=state, checkpoints=own, rates=rates, models=[])
            for state, own in zip(states, epochs, strict=False)
        ]

    def loss(self, outputs, targets, reduction="sum"):
        """Return the loss of a batch; with reduction="none" that of each row."""
        if self.classifies:
            return nn.functional.cross_entropy(outputs, targets, reduction=reduction)
        losses = 0.5 * (outputs - targets).square().sum(-1)
        return losses if reduction == "none" else getattr(losses, reduction)()

    def negative_margin(self, outputs, targets, reduction="sum"):
        """Return minus the log-odds of the right class; the loss of numbers."""
        if not self.classifies:
            return self.loss(outputs, targets, reduction)
        # one_hot does not run under vmap
        right = targets[..., None] == torch.arange(outputs.shape[-1])
        others = outputs.masked_fill(right, -torch.inf).logsumexp(-1)
        found = others - (outputs * right).sum(-1)
        return found if reduction == "none" else getattr(found, reduction)()

    def warm_up(self, n_rows=96, n_queries=3, n_checkpoints=2):
        """Return an order of the first rows, for the run that is not counted."""
        return replace(
            self,
            X=self.X[:n_rows],
            y=self.y[:n_rows],
            X_query=self.X_query[:n_queries],
            y_query=self.y_query[:n_queries],
            subsets=self.subsets[:, :n_rows],
            checkpoints=self.checkpoints[:n_checkpoints],
            rates=self.rates[:n_checkpoints],
            models=self.models[:n_checkpoints],
            epochs=[own[:n_checkpoints] for own in self.epochs[:n_checkpoints]],
        )

    def yardstick(self, chunk=256, repeats=5):
        """Return CPU seconds of one pass of per-row gradients over the training rows.

        NaN where torch.func knows none.
        """
        net = self.network()
        params = {k: v.detach() for k, v in net.named_parameters()}

        def row_loss(params, x, y):
            return self.loss(functional_call(net, params, (x[None],)), y[None])

        gradients = vmap(grad(row_loss), in_dims=(None, 0, 0))
        batches = list(zip(self.X.split(chunk), self.y.split(chunk), strict=True))
        times = []
        for _ in range(repeats + 1):
            start = time.process_time()
            try:
                for batch in batches:
                    gradients(params, *batch)
            except RuntimeError:
                return float("nan")
            times.append(time.process_time() - start)
        return min(times[1:])


def read_order(path):
    with np.load(path) as file:
        arrays = dict(file)
    options = json.loads(str(arrays["options"]))
    names = ("X", "y", "X_query", "y_query", "subsets")
    data = {name: torch.tensor(arrays[name]) for name in names}
    # state/parameter, checkpoint/i/parameter, model/i/parameter, epoch/i/j/parameter
    states = {"state": {}, "checkpoint": {}, "model": {}, "epoch": {}}
    for name, value in arrays.items():
        kind, *which = name.split("/")
        if kind in states:
            *which, parameter = which
            inner = states[kind]
            for i in which:
                inner = inner.setdefault(int(i), {})
            inner[parameter] = torch.tensor(value)
    checkpoints, models = ([*states[k].values()] for k in ("checkpoint", "model"))
    return Order(
        **data,
        state=states["state"],
        checkpoints=checkpoints,
        models=models,
        epochs=[[*one.values()] for one in states["epoch"].values()],
        rates=arrays["rates"].tolist(),
        **options,
    )


def seed_everything(seed):
    """Seed the global generators: in this process they are the peer's."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002, TID251
    torch.manual_seed(seed)  # noqa: TID251


# -------------------------------------------------------------------- measuring
def cpu_seconds():
    """Return those of this process, its threads and its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def memory_bytes(field):
    """Return the resident memory of this process (VmRSS), or its peak (VmHWM)."""
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith(field))
    return int(line.split()[1]) * 1024


class Meter:
    """Measure a block: `seconds` of CPU, and `peak`, extra bytes of memory."""

    def __enter__(self):
        gc.collect()
        # what was freed before must not hide what is taken now
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        self._before, self._start = memory_bytes("VmRSS"), cpu_seconds()
        return self

    def __exit__(self, *error):
        self.seconds = cpu_seconds() - self._start
        self.peak = memory_bytes("VmHWM") - self._before


# ---------------------------------------------------------------------- running
def first_line(error):
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"


def checked(scores, shape):
    """Return scores as float32 of a shape; raise if they are none."""
    scores = torch.as_tensor(scores).detach().to(torch.float32).numpy()
    if scores.shape != shape:
        raise ValueError(f"scores of shape {scores.shape}, not {shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores that are not finite")
    return scores


def scores_of(method, order, n_models=None, **setting):
    """Return what a method says of the trained network, or of so many models.

    That is the mean of their scores, but of a method that combines them itself.
    """
    if n_models is None:
        return method(order, **setting)
    if getattr(method, "combines", False):
        return method(order, n_models=n_models, **setting)
    each = [method(one, **setting) for one in order.of_models(n_models)]
    return torch.stack([torch.as_tensor(one).detach() for one in each]).mean(0)


def run(method, settings, order):
    """Yield what SCORES.npz holds, after each setting."""
    shape = (len(order.X_query), len(order.X))
    of_subsets = (len(order.subsets), len(order.X_query))
    found = {
        "scores": np.full((len(settings), *shape), np.nan, dtype=np.float32),
        "predicted": np.full((len(settings), *of_subsets), np.nan, dtype=np.float32),
        "seconds": np.full(len(settings), np.nan),
        "peak": np.full(len(settings), np.nan),
        "yardstick": order.yardstick(),
    }
    errors, notes = ["not reached"] * len(settings), [""] * len(settings)

    for i, setting in enumerate(settings):
        seed_everything(order.random_state)
        prepare = getattr(method, "prepare", None)
        if prepare is not None:
            prepare(order)
        if i == 0:
            try:
                scores_of(method, order.warm_up(), **setting)
            except Exception:
                pass  # a few rows may be too few; the errors of all rows are told
            seed_everything(order.random_state)
        meter = Meter()
        order.notes.clear()
        try:
            with meter:
                scores = scores_of(method, order, **setting)
            if isinstance(scores, tuple):
                scores, predicted = scores
                found["predicted"][i] = checked(predicted, of_subsets)
            found["scores"][i], errors[i] = checked(scores, shape), None
        except Exception as error:
            traceback.print_exc()
            errors[i] = first_line(error)
        found["seconds"][i], found["peak"][i] = meter.seconds, meter.peak
        notes[i] = "; ".join(order.notes)
        told = {"settings": settings, "errors": errors, "notes": notes}
        yield found | {name: json.dumps(value) for name, value in told.items()}


def grid(name, default, values):
    """Return the settings of one parameter: the default ({} if None) and others."""
    first = {} if default is None else {name: default}
    return [first] + [{name: v} for v in values if v != default]


def main(methods, read=read_order):
    """Answer the command line; ``methods`` maps names to (function, settings).

    A function takes an order and a setting and returns scores (q, n), or a tuple of
    these and predicted outcomes of the subsets (m, q). What its
    `prepare` does with the order, if it has one, is not counted.
    """
    if sys.argv[1:] == ["--list"]:
        print(json.dumps({name: settings for name, (_, settings) in methods.items()}))
        return
    source, target, name = sys.argv[1:4]
    function, settings = methods[name]
    if sys.argv[4:]:
        settings = json.loads(sys.argv[4])
    for found in run(function, settings, read(source)):
        # whole at any time, if a later setting is too much for the machine
        np.savez(f"{target}.part.npz", **found)
        os.replace(f"{target}.part.npz", target)
