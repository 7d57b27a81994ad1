"""One trained model of a DualInfluence: predictions and attributions of its tangent."""

from functools import partial

import torch
from tqdm.auto import tqdm

from skattrib._validation import as_tensor, memory_cap
from skattrib.engine._functional import (
    FunctionalModule,
    Loss,
    chunks,
    outcome_function,
)
from skattrib.engine._linearized import LinearizedModel
from skattrib.evaluation._cache import as_memory, cached_array, digest
from skattrib.influence._ridge import RidgeRule


def _cached_kernel(memory, estimator, X, scale, build):
    if memory is None:
        return build()
    key = digest("kernel", estimator.module_, X, scale)
    kernel = cached_array(as_memory(memory), key, lambda: build().cpu().numpy())
    return torch.tensor(kernel, device=X.device)


class Member:
    """A trained estimator and its linearised model.

    Parameters
    ----------
    estimator : fitted TorchClassifier or TorchRegressor
    X, y : ndarray
        Training rows.
    weights : ndarray of shape (n_samples,)
        Of the rows in training.
    metric : Tensor of shape (P,) or None
    regularization : {"per_sample", "fixed"}
    solver : {"primal", "dual", "cg"}
    memory : str, joblib.Memory or None
    """

    def __init__(
        self, estimator, X, y, weights, *, metric, regularization, solver, memory
    ):
        like = next(estimator.module_.parameters())
        X = as_tensor(X, like)
        scale = None if metric is None else metric.rsqrt()
        self.estimator = estimator
        self.model = LinearizedModel(
            FunctionalModule(estimator.module_),
            Loss(estimator._task),
            X,
            estimator._targets(y, X),
            as_tensor(weights, X),
            scale=scale,
            ridge=RidgeRule(1.0),
            regularization=regularization,
            solver=solver,
            memory_bytes=memory_cap(),
            kernel_cache=partial(_cached_kernel, memory, estimator, X, scale),
        )

    def steps(self, removal, row_weights, verbose=0):
        """Return the steps (k, D) for weights of the rows (k, n)."""
        solve = getattr(self.model, f"{removal}_steps")
        weights = as_tensor(row_weights, self.model.outputs)
        parts = list(chunks(len(weights), self.model.batch_size()))
        bar = tqdm(parts, desc=f"{removal} steps", disable=not verbose)
        return torch.cat([solve(weights[part]) for part in bar])

    def output_changes(self, steps, X):
        """Return outputs (q, C) of queries and their changes (k, q, C)."""
        outputs, query = self.model.query(as_tensor(X, self.model.outputs))
        return outputs, self.model.output_change(steps, query)

    def _measure(self, y, outcome, like):
        """Return the outcome as a function of outputs (..., q, C)."""
        function = outcome_function(outcome, self.estimator._task)
        targets = self.estimator._targets(y, like)

        def measure(f):
            found = function(f, targets.expand(*f.shape[:-2], *targets.shape))
            if found.shape != f.shape[:-1]:
                raise ValueError(
                    f"outcome returned shape {tuple(found.shape)} for outputs "
                    f"{tuple(f.shape)}; it must drop the last axis only, whatever "
                    "stands before it."
                )
            return found

        return measure

    def present_outcomes(self, X, y, outcome):
        """Return the outcomes (q,) of the model as it is."""
        outputs = self.estimator._raw_outputs(X)
        return self._measure(y, outcome, outputs)(outputs).cpu().numpy()

    def outcomes(self, steps, X, y, outcome):
        """Return the outcomes (k, q) after each step."""
        out = []
        for part in chunks(len(X), self.model.query_batch(len(steps))):
            outputs, changes = self.output_changes(steps, X[part])
            out.append(self._measure(y[part], outcome, outputs)(outputs + changes))
        return torch.cat(out, dim=1).cpu().numpy()

    def attributions(self, steps, X, y, outcome, *, first_order):
        """Return outcome minus outcome after each unit's step, (q, n_units)."""
        out = []
        for part in chunks(len(X), self.model.query_batch(len(steps))):
            outputs, changes = self.output_changes(steps, X[part])
            measure = self._measure(y[part], outcome, outputs)
            if first_order:
                slope = torch.func.grad(lambda f, m=measure: m(f).sum())(outputs)
                out.append(-(changes * slope).sum(dim=-1).T)
            else:
                out.append((measure(outputs) - measure(outputs + changes)).T)
        return torch.cat(out).cpu().numpy()
