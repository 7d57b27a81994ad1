"""AdamW-influence by dattri-llm, on a run that is handed over in a file.

Run by the interpreter of an environment that has dattri-llm 0.1.0 and numpy:

    python run_dattri_llm.py problem.npz scores.npz

The problem holds X, y, X_query, y_query, the minibatches end to end
(``rows``, ``batch_sizes``), a state dict (``state/<name>``) of linear layers, and
``options`` as JSON. No coordinate is masked; the training loop is a plain one, with
dattri-llm's hooks around it. The scores hold one row for each row of each step.
"""

import json
import sys
import tempfile
import warnings

import numpy as np
import torch
from dattri_llm import (
    REGISTER_ALL,
    AdamWInfluenceAttributor,
    AttributionArguments,
    GradientStorageManager,
    HookManager,
    HookManagerConfig,
    OffloadCallback,
    OptimizerStateCallback,
)
from torch import nn

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


class Net(nn.Module):
    """Layers that also take the names of their rows, which the hooks read."""

    def __init__(self, state, activation):
        super().__init__()
        layers = []
        for name in sorted(k for k in state if k.endswith("weight")):
            n_out, n_in = state[name].shape
            layers += [nn.Linear(n_in, n_out), ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers[:-1])
        self.layers.to(next(iter(state.values())).dtype).load_state_dict(state)

    def forward(self, x, rows):
        return self.layers(x)


def hooked(net, directory, *callbacks):
    store = OffloadCallback(
        offload_interval=1, file_manager=GradientStorageManager(directory)
    )
    return HookManager(
        net,
        config=HookManagerConfig(linear_io=REGISTER_ALL),
        callbacks=[store, *callbacks],
        sample_id_key="rows",
    )


def train(net, problem, options, directory):
    """Train as recorded; store rows' gradients, return the optimizer's moments."""
    X, y = (torch.tensor(problem[k]) for k in ("X", "y"))
    optimizer = torch.optim.AdamW(net.parameters(), **options["adamw"])
    moments = OptimizerStateCallback(net, optimizer)
    batches = np.split(problem["rows"], problem["batch_sizes"].cumsum()[:-1])
    manager = hooked(net, directory, moments)

    with manager.collect(deregister_on_exit=True):
        for rows in map(torch.tensor, batches):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x=X[rows], rows=rows), y[rows]).backward()
            if options["clip_norm"] is not None:
                nn.utils.clip_grad_norm_(net.parameters(), options["clip_norm"])
            step = manager.steps_collected - 1
            optimizer.step()
            moments.record_post(step)
    return moments.dynamics()


def store_queries(net, problem, directory):
    X, y = (torch.tensor(problem[k]) for k in ("X_query", "y_query"))
    with hooked(net, directory).collect(deregister_on_exit=True):
        outputs = net(x=X, rows=torch.arange(len(X)))
        nn.functional.cross_entropy(outputs, y, reduction="sum").backward()


def main(source, target):
    warnings.filterwarnings("ignore", "Full backward hook")
    problem = np.load(source)
    options = json.loads(str(problem["options"]))
    state = {k[6:]: torch.tensor(v) for k, v in problem.items() if k[:6] == "state/"}
    net = Net(state, options["activation"])

    with tempfile.TemporaryDirectory() as folder:
        train_side, query_side = f"{folder}/train", f"{folder}/queries"
        dynamics = train(net, problem, options, train_side)
        store_queries(net, problem, query_side)
        arguments = AttributionArguments(output_dir=f"{folder}/out", use_cpu=True)
        found = AdamWInfluenceAttributor(arguments).attribute_from_cache(
            train_side, query_side, dynamics=dynamics, propagation="test"
        )

    first = min(found.row_steps)
    columns = np.argsort([int(q) for q in found.test_ids])
    end = {f"end/{k}": v.detach().numpy() for k, v in net.layers.state_dict().items()}
    np.savez(
        target,
        scores=found.scores.numpy()[:, columns],
        steps=np.array(found.row_steps) - first + 1,
        rows=np.array(found.row_train_ids, dtype=int),
        **end,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
