"""Kernel models of scikit-learn with a squared loss."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.metrics.pairwise import pairwise_kernels
from torch import Tensor

from skattrib._validation import blamed, memory_cap
from skattrib.engine._convex import KernelObjective, KernelRefits
from skattrib.models._linear._protocol import Convex, as_matrix

# Asymmetry of a precomputed kernel, relative to its size, that counts as rounding.
_SYMMETRIC = 1e-8
# Difference of training outputs, relative to their size, of a model fitted to the same.
_SAME = 1e-6


class KernelModel(Convex):
    """Least squares in the space of a kernel."""

    def linear_outputs(self, X: Any) -> Tensor:
        """Return predictions (q, C)."""
        with blamed(self.estimator, "predict these rows"):
            predicted = np.asarray(self.estimator.predict(X), dtype=np.float64)
        return torch.tensor(predicted.reshape(len(predicted), -1))

    def parameter_names(self, feature_names: list[str]) -> list[str]:
        """Return a name for each row's coefficient, and the mean."""
        n_rows = self._n_rows()
        names = [*[f"alpha{row}" for row in range(n_rows)], "mean"]
        n_outputs = self._n_outputs()
        if n_outputs == 1:
            return names
        return [f"y{output}: {name}" for output in range(n_outputs) for name in names]

    @abstractmethod
    def _n_rows(self) -> int:
        """Return how many rows it was fitted to."""

    @abstractmethod
    def _n_outputs(self) -> int:
        """Return how many outputs it has."""

    def _targets(self, y: Any) -> Tensor:
        values = np.asarray(y, dtype=np.float64)
        return torch.tensor(values.reshape(len(values), -1))

    def _checked(self, refits: KernelRefits, X: Any) -> KernelRefits:
        """Return them with their rows; raise if the model was fitted to others."""
        refits.train_rows = as_matrix(X)
        refitted = refits.train_outputs()
        # more rows than those of the fit have no weight, or their outputs differ
        predicted = self.linear_outputs(X) if X.shape[0] >= self._n_rows() else None
        size = refitted.abs().max()
        if predicted is None or bool((predicted - refitted).abs().max() > _SAME * size):
            raise ValueError(
                f"{self.name} was fitted to other rows, targets or weights than these: "
                "pass those that it was fitted to, or leave FrozenEstimator out."
            )
        return refits

    def _check_solver(self, solver: str) -> None:
        if solver not in ("auto", "dual"):
            raise ValueError(
                f"solver={solver!r} does not apply to {self.name}, whose coefficients "
                "are those of the kernel of the rows. Use solver='auto' or 'dual'."
            )

    @staticmethod
    def _check_fits(n_rows: int, memory_bytes: float) -> None:
        needed = 8.0 * 4 * n_rows**2
        if needed > memory_bytes:
            raise ValueError(
                f"The kernel of {n_rows} rows and its inverse need "
                f"{needed / 2**20:.0f} MiB, over the cap of "
                f"{memory_bytes / 2**20:.0f} MiB. Use fewer rows, or "
                "sklearn.kernel_approximation.Nystroem before Ridge, or raise "
                "sklearn.set_config(working_memory=...)."
            )


class KernelRidgeModel(KernelModel):
    """KernelRidge with any kernel, also a precomputed one."""

    def _n_rows(self) -> int:
        return len(self.estimator.dual_coef_)

    def _n_outputs(self) -> int:
        return int(np.size(self.estimator.dual_coef_[0]))

    def _kernel(self, X: Any, others: Any) -> Tensor:
        """Return kernel values as the estimator computes them."""
        estimator = self.estimator
        if estimator.kernel == "precomputed":
            return torch.tensor(np.asarray(X, dtype=np.float64))
        params = estimator.kernel_params or {}
        if not callable(estimator.kernel):
            names = ("gamma", "degree", "coef0")
            params = {name: getattr(estimator, name) for name in names}
        values = pairwise_kernels(
            X,
            others,
            metric=estimator.kernel,
            filter_params=not callable(estimator.kernel),
            **params,
        )
        return torch.tensor(np.asarray(values, dtype=np.float64))

    def check_rows(self, X: Any) -> None:
        """Raise unless a precomputed kernel is one, and fits the memory."""
        super().check_rows(X)
        self._check_fits(X.shape[0], memory_cap())
        if self.estimator.kernel == "precomputed":
            _check_kernel(torch.tensor(as_matrix(X)))

    def refits(
        self, X: Any, y: Any, weights: Any, solver: str, memory_bytes: float
    ) -> KernelRefits:
        """Return what refits it."""
        self._check_solver(solver)
        n_rows, rows = X.shape[0], as_matrix(X)
        kernel = self._kernel(rows, rows)
        noise = torch.tensor(np.atleast_1d(np.asarray(self.estimator.alpha, float)))
        objective = KernelObjective(
            kernel,
            noise.expand(n_rows, -1),
            self._targets(y),
            torch.tensor(np.asarray(weights, dtype=np.float64)),
        )
        return self._checked(KernelRefits(objective, memory_bytes), X)

    def query_rows(self, refits: KernelRefits, X: Any) -> Tensor:
        """Return kernel values (q, n) and ones."""
        return refits.features(self._kernel(as_matrix(X), refits.train_rows))


class GaussianProcessModel(KernelModel):
    """GaussianProcessRegressor at the kernel that it fitted."""

    def recipe(self) -> Any:
        """Return a regressor that keeps the fitted kernel."""
        estimator = self.estimator
        if not hasattr(estimator, "kernel_"):
            return estimator
        fixed = clone(estimator)
        return fixed.set_params(kernel=clone(estimator.kernel_), optimizer=None)

    def _n_rows(self) -> int:
        return len(self.estimator.X_train_)

    def _n_outputs(self) -> int:
        return int(np.size(self.estimator.alpha_[0]))

    def check_rows(self, X: Any) -> None:
        """Raise unless the kernel fits the memory."""
        super().check_rows(X)
        self._check_fits(X.shape[0], memory_cap())

    def refits(
        self, X: Any, y: Any, weights: Any, solver: str, memory_bytes: float
    ) -> KernelRefits:
        """Return what refits it."""
        self._check_solver(solver)
        rows, covariance = as_matrix(X), self.estimator.kernel_
        whole = torch.tensor(covariance(rows))
        # between two sets of rows there is no white noise
        kernel = torch.tensor(covariance(rows, rows.copy()))
        noise = whole.diagonal() - kernel.diagonal()
        noise = noise + torch.as_tensor(np.asarray(self.estimator.alpha, dtype=float))
        objective = KernelObjective(
            kernel,
            noise[:, None],
            self._targets(y),
            torch.tensor(np.asarray(weights, dtype=np.float64)),
            is_centred=bool(self.estimator.normalize_y),
        )
        return self._checked(KernelRefits(objective, memory_bytes), X)

    def query_rows(self, refits: KernelRefits, X: Any) -> Tensor:
        """Return kernel values (q, n) and ones."""
        values = self.estimator.kernel_(as_matrix(X), refits.train_rows)
        return refits.features(torch.tensor(values))


def _check_kernel(kernel: Tensor) -> None:
    """Raise unless kernel values are a symmetric matrix."""
    if kernel.shape[0] != kernel.shape[1]:
        raise ValueError(
            f"kernel='precomputed' needs X of shape (n_samples, n_samples), got "
            f"{tuple(kernel.shape)}: pass the kernel between all training rows."
        )
    size = float(kernel.abs().max())
    if float((kernel - kernel.T).abs().max()) > _SYMMETRIC * size:
        raise ValueError(
            "kernel='precomputed' needs a symmetric X: the kernel of two rows must not "
            "depend on their order."
        )
