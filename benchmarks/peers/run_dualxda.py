"""Scores by dualxda 0.1.0; see `_order.py` for how it is called.

It fits a support vector machine to what the last layer reads; a score is what a row's
dual variables add to the machine's output for the query's class: positive where the row
helps. It knows the network by those features alone.
"""

import sys
import tempfile
from importlib import import_module
from types import ModuleType, SimpleNamespace

from _order import grid, main
from torch import nn
from torch.utils.data import TensorDataset

# zennit, which dualxda draws with, derives classes from two of torchvision, whose wheel
# needs CUDA; nothing of either is used here
blocks = SimpleNamespace(Bottleneck=nn.Module, BasicBlock=nn.Module)
sys.modules["torchvision.models.resnet"] = blocks
for name in ("torchvision", "torchvision.models"):
    sys.modules[name] = ModuleType(name)

DualDA = import_module("dualxda").DualDA


def dual(order, **setting):
    if not order.classifies:
        raise ValueError("DualDA explains classes")
    net = order.network()
    *_, last = net.named_children()
    rows = TensorDataset(order.X, order.y.int())
    # it works through files
    with tempfile.TemporaryDirectory() as folder:
        options = {"device": "cpu", "cache_dir": folder, **setting}
        with DualDA(net, rows, last[0], **options) as found:
            return found.attribute(order.X_query, order.y_query)


METHODS = {"DualDA": (dual, grid("C", None, [1e-4, 1e-3, 1e-2, 1e-1]))}

if __name__ == "__main__":
    main(METHODS)
