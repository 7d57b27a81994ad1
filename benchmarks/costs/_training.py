"""Training the way a tutorial does: what stacks and sweeps are compared with."""

import torch
from torch import nn


def plain_loop(module, initial, batches, X, y, weights):
    """Train a module with weights of the rows; return its parameters."""
    nn.utils.vector_to_parameters(initial.clone(), module.parameters())
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, weight_decay=1e-2)
    for rows in batches:
        rows = torch.as_tensor(rows)
        optimizer.zero_grad()
        losses = nn.functional.cross_entropy(module(X[rows]), y[rows], reduction="none")
        (losses * weights[rows]).sum().div(weights[rows].sum()).backward()
        optimizer.step()
    return nn.utils.parameters_to_vector(module.parameters()).detach()
