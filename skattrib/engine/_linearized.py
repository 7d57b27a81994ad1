"""A network replaced by its tangent at the trained weights, refitted in closed form.

With row weights w, kept mass κ = Σw/Σs relative to the full run's weights s, and step
z from the trained parameters (in the metric), the linearised problem is

    Σ w_i ℓ(f_i + J_i z) − c κ' g·z + λ/2 zᵀz ,    g = Σ s_i J_iᵀ r_i ,

where subtracting the constant gradient g makes z = 0 stationary at w = s, whether or
not training had converged. ``regularization="per_sample"``: λ = ridge · Σw and κ' = κ,
damping of the *mean* loss of the kept rows; ``"fixed"``: λ = ridge · Σs and κ' = 1.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from skattrib.engine._functional import FunctionalModule, chunks, spread
from skattrib.engine._gradients import RowGradients, row_gradients
from skattrib.engine._kernel import kernel_block
from skattrib.engine._losses import Loss
from skattrib.engine._parameter_space import (
    SHARE,
    FullSystem,
    FullSystems,
    PrimalSpace,
    SolvesQueries,
    Space,
    apply_output_hessians,
    weighted_roots,
)
from skattrib.engine._penalties import Regularization, scale_with
from skattrib.engine._projection import LandmarkProjector, Projector
from skattrib.engine._refits import refit
from skattrib.engine._row_removal import RowRemovals
from skattrib.engine._row_space import DualSpace, MatrixFreeSpace
from skattrib.engine._solvers import Factor, largest_eigenvalue
from skattrib.engine._spectral import SpectralPrimalSpace

#: Outputs of queries (q, C) to the gradients of their outcomes.
Slope = Callable[[Tensor], Tensor]
#: Damping of the mean row loss as a function of the fraction of mass removed.
Ridge = Callable[[float], float]

_N_ROWS = 64
_POWER_ITERATIONS = 10


class LinearizedModel:
    """The tangent of a trained model, with steps for any weights of its rows.

    Parameters
    ----------
    model : FunctionalModule
        Holds the trained parameters.
    loss : Loss
    X, targets : Tensor
        Training rows.
    weights : Tensor of shape (n,)
        Weights s of the rows in the run.
    scale : Tensor of shape (P,) or None
        metric⁻¹ᐟ², None for the identity metric.
    ridge : callable
        Fraction of mass removed → damping of the mean row loss.
    kernel_cache : callable
        Takes a function that builds the kernel and returns the kernel.
    stationary : bool
        Whether to subtract the constant gradient. If not, damping alone keeps the model
        near z = 0, where training stopped.
    project : callable or None
        Takes the gradients of the training rows and returns the subspace of the steps;
        for the primal solver only.
    landmarks : int Tensor of shape (m,) or None
        Rows whose gradients span the steps of the solver "nystroem", and precondition
        "cg".
    """

    def __init__(
        self,
        model: FunctionalModule,
        loss: Loss,
        X: Tensor,
        targets: Tensor,
        weights: Tensor,
        *,
        scale: Tensor | None,
        ridge: Ridge,
        regularization: Regularization,
        solver: str,
        memory_bytes: float,
        kernel_cache: Callable[[Callable[[], Tensor]], Tensor] = lambda build: build(),
        stationary: bool = True,
        project: Callable[[RowGradients], Projector] | None = None,
        landmarks: Tensor | None = None,
    ) -> None:
        self.model, self.loss, self.targets = model, loss, targets
        self.weights, self.scale, self.ridge = weights, scale, ridge
        self.regularization, self.memory_bytes = regularization, memory_bytes
        self.stationary = stationary
        self.outputs, gradients = row_gradients(model, X, scale, memory_bytes)
        self._per_query = gradients.n_numbers // max(1, len(X))
        self.residuals = loss.residuals(self.outputs, targets)
        self.output_hessian_roots = loss.hessian_root(
            self.outputs, targets
        ).contiguous()

        self.projector = None if project is None else project(gradients)
        if solver == "nystroem" and landmarks is not None:
            self.projector = LandmarkProjector(gradients, landmarks, memory_bytes)
        self._gradients = gradients if solver == "nystroem" else None

        self.space: Space
        coordinates = self._coordinates(gradients)
        if self.projector is not None or solver == "primal":
            self.space = PrimalSpace(
                coordinates, self.output_hessian_roots, weights, memory_bytes
            )
        elif solver == "dual":
            kernel = kernel_cache(
                lambda: kernel_block(gradients, gradients, memory_bytes)
            )
            self.space = DualSpace(
                gradients, self.output_hessian_roots, weights, memory_bytes, kernel
            )
        else:
            self.space = self._matrix_free(gradients, landmarks)

    def _matrix_free(
        self, gradients: RowGradients, landmarks: Tensor | None
    ) -> MatrixFreeSpace:
        features = None
        if landmarks is not None and len(landmarks):
            projector = LandmarkProjector(gradients, landmarks, self.memory_bytes)
            features = projector.project(gradients).jacobian()
        return MatrixFreeSpace(
            gradients,
            self.output_hessian_roots,
            self.weights,
            self.memory_bytes,
            features,
        )

    def without_projection(self) -> LinearizedModel:
        """Return this model in all of its parameters, by conjugate gradients."""
        if self._gradients is None:
            return self
        space = self._matrix_free(self._gradients, None)
        return self._with_changes(space=space, projector=None, _gradients=None)

    def _with_changes(self, **changes: object) -> LinearizedModel:
        """Return a copy with some attributes replaced."""
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    # ------------------------------------------------------------ other dampings
    def at_ridge(self, ridge: Ridge) -> LinearizedModel:
        """Return this model with another damping, and the factors it has."""
        return self._with_changes(ridge=ridge)

    def for_many_ridges(self, *, few_rows: bool = False) -> LinearizedModel:
        """Return this model with one eigendecomposition for all values of ``ridge``.

        Parameters
        ----------
        few_rows : bool
            Whether the model is used only for outputs of queries, without few of the
            rows: products with the eigenvectors are then shared too, and steps have
            other coordinates.
        """
        space: object = self.space
        if not few_rows:
            space = self.space.decomposed()
        elif isinstance(self.space, PrimalSpace):
            eigen, jacobian = self.space.eigen(), self.space.jacobian()
            memory = self.memory_bytes
            space = SpectralPrimalSpace(
                eigen, jacobian, self.output_hessian_roots, memory
            )
        elif isinstance(self.space, DualSpace):
            space = self.space.spectral(self.residuals)
        return self._with_changes(space=space)

    # ------------------------------------------------------------- bookkeeping
    @property
    def few(self) -> int:
        """Most rows that a Newton step leaves out of the full-data Hessian."""
        return len(self.weights) // 4

    def _share(self, weights: Tensor) -> Tensor:
        """Return Σw/Σs for weights (k, n), as float64.

        Rounded, so that units of equal weight get equal numbers and share
        factorisations.
        """
        total = self.weights.sum(dtype=torch.float64)
        return torch.round(weights.sum(dim=1, dtype=torch.float64) / total, decimals=12)

    def _gradient_factor(self, weights: Tensor) -> Tensor:
        """Return κ', the factor on the constant gradient."""
        return self._gradient_factor_of(self._share(weights).to(weights))

    def _gradient_factor_of(self, share: Tensor) -> Tensor:
        if not self.stationary:
            return torch.zeros_like(share)
        return torch.ones_like(share) if self.regularization == "fixed" else share

    def shifts(self, weights: Tensor) -> Tensor:
        """Return λ of the summed loss for weights (k, n)."""
        return self._shifts_of(self._share(weights))

    def _shifts_of(self, share: Tensor) -> Tensor:
        removed = (1 - share).clamp(min=0)
        ridge = [self.ridge(fraction) for fraction in removed.tolist()]
        total = self.weights.sum(dtype=torch.float64)
        out = torch.tensor(ridge, dtype=torch.float64).to(share) * total
        out = out * scale_with(self.regularization, share)
        return out.to(self.outputs)

    def _amounts(self, weights: Tensor) -> Tensor:
        """Return w − κ' s, (k, n), the coefficient of each row's gradient."""
        return weights - self._gradient_factor(weights)[:, None] * self.weights

    def gradients_at(self, weights: Tensor) -> Tensor:
        """Return the gradients where training stopped, in coordinates (k, D)."""
        factor = self._gradient_factor(weights)[:, None]
        removed = self.weights - weights
        if int((removed != 0).sum(dim=1).max()) > 1:
            return self.space.mixed_gradient(self._amounts(weights), self.residuals)
        # for single rows, one sum over all rows is enough
        rows = removed.abs().argmax(dim=1)
        row_gradients = self.space.row_gradients(rows, self.residuals[rows])
        full_gradient = self.space.mixed_gradient(self.weights[None], self.residuals)
        return (1 - factor) * full_gradient - removed.gather(
            1, rows[:, None]
        ) * row_gradients

    def rho(self, weights: Tensor, outputs: Tensor) -> Tensor:
        """Return w r(f) − κ' s r(f₀), (k, n·C): the gradient in the outputs."""
        k, (n, C) = len(weights), self.outputs.shape
        constant = self._gradient_factor(weights)[:, None] * self.weights
        now = self.loss.residuals(outputs.reshape(k, n, C), self.targets)
        rho = weights[..., None] * now - constant[..., None] * self.residuals
        return rho.flatten(1)

    def batch_size(self) -> int:
        """Return how many weightings fit the memory cap at once."""
        n, C = self.outputs.shape
        numbers = 4 * n * C + 6 * self.space.n_coordinates
        size = numbers * self.outputs.element_size()
        return max(1, int(self.memory_bytes / (SHARE * size)))

    def condition_number(self) -> float:
        """Return about the condition number of the Hessian of all rows, damped.

        By power iterations, which need no factor; a number of a few is as good as one.
        """
        space, shift = self.space, self.shifts(self.weights[None])
        steps = self.outputs.new_ones(1, space.n_coordinates)
        largest = 0.0
        for _ in range(_POWER_ITERATIONS):
            length = steps.norm()
            if not float(length) > 0:
                break
            images = space.train_outputs(steps / length)
            bent = apply_output_hessians(
                images, self.output_hessian_roots, self.weights[None]
            )
            steps = space.gradient(bent, shift, None)
            largest = float(steps.norm())
        return 1 + largest / float(shift.min())

    # ------------------------------------------------------------------- steps
    def influence_steps(self, weights: Tensor) -> Tensor:
        """Return first-order steps (k, D), additive in the weights (k, n).

        The Hessian and λ are those of the full data (fraction removed 0).
        """
        return self.space.solve_full(self.gradients_at(weights), self.full_system())

    def full_system(self) -> FullSystem:
        """Return the system of all rows at their own λ."""
        shift = self.shifts(self.weights[None])
        ((_, system),) = self.space.full_systems(shift).groups(shift)
        return system

    def newton_steps(self, weights: Tensor) -> Tensor:
        """Return one exact Newton step on the weighted rows, (k, D)."""
        shifts = self.shifts(weights)
        systems = self.space.full_systems(shifts)
        gradients = self.gradients_at(weights)
        return self.frozen_newton(weights, gradients, shifts, systems)

    def frozen_newton(
        self, weights: Tensor, gradients: Tensor, shifts: Tensor, systems: FullSystems
    ) -> Tensor:
        """Return −H(w)⁻¹g with the Hessian at the trained outputs."""
        removed = self.weights - weights
        counts = (removed != 0).sum(dim=1)
        by_block = (counts <= self.few) & (removed >= 0).all(dim=1)
        if self.space.name == "cg":
            by_block &= counts == 0
        steps = torch.zeros_like(gradients)
        direct = ~by_block

        if bool(direct.any()):
            steps[direct] = self.space.solve_subsets(
                gradients[direct],
                weights[direct],
                self.output_hessian_roots,
                shifts[direct],
            )

        blocked = by_block.nonzero()[:, 0]
        for group, system in systems.groups(shifts[blocked]):
            members = blocked[group]
            steps[members] = self._block_newton(
                gradients[members], removed[members], system
            )

        return steps

    def _block_newton(
        self, gradients: Tensor, removed: Tensor, system: FullSystem
    ) -> Tensor:
        """Return Newton steps without groups, from the full-data Hessian.

        With G = J_R H⁻¹ J_Rᵀ and S̃ = √d S: z = −H⁻¹(g − J_Rᵀ S̃ v),
        v = (I − S̃ᵀ G S̃)⁻¹ S̃ᵀ J_R z₀, z₀ = −H⁻¹g.
        """
        first = self.space.solve_full(gradients, system)
        lifted = torch.zeros_like(first)
        counts = (removed != 0).sum(dim=1)
        single = (counts == 1).nonzero()[:, 0]
        if len(single):
            rows = removed[single].argmax(dim=1)
            amounts = removed[single, rows]
            complements = self.space.row_complements(rows, amounts, system.take(single))
            roots = weighted_roots(self.output_hessian_roots[rows], amounts)
            moved = self.space.row_outputs(first[single], rows)[..., None]
            correction = self._left_out(complements, roots, moved)[..., 0]
            lifted[single] = self.space.row_gradients(rows, correction)

        several = (counts > 1).nonzero()[:, 0]
        if len(several):
            images = self.space.train_outputs(first[several])
            images = images.view(-1, *self.outputs.shape)
            for i, image in zip(several, images, strict=True):
                rows = removed[i].nonzero()[:, 0]
                amounts = removed[i, rows]
                complements = self.space.group_complement(
                    rows, amounts, system.take(i[None])
                )
                roots = torch.block_diag(
                    *weighted_roots(self.output_hessian_roots[rows], amounts)
                )
                correction = self._left_out(
                    complements, roots, image[rows].reshape(-1, 1)
                )
                image.zero_()[rows] = correction.view(len(rows), -1)
            lifted[several] = self.space.gradient(images.flatten(1), counts, None)

        return self.space.solve_full(gradients - lifted, system)

    def _left_out(self, complement: Tensor, root: Tensor, moved: Tensor) -> Tensor:
        """Return S̃ (I − S̃ᵀGS̃)⁻¹ S̃ᵀ moved, ``complement`` being what is inverted."""
        return root @ Factor(complement).solve((root.mT @ moved).double()).to(root)

    def without_each_row(self, verbose: int = 0) -> RowRemovals:
        """Return Newton steps without each row, known by their effect on queries.

        For the primal space, and rows of few different weights.
        """
        total = self.weights.sum(dtype=torch.float64)
        share = torch.round(1 - self.weights.double() / total, decimals=12)
        constants = 1 - self._gradient_factor_of(share.to(self.weights))
        return RowRemovals(
            cast(PrimalSpace, self.space),
            self.residuals,
            self.output_hessian_roots,
            self.weights,
            self._shifts_of(share),
            constants,
            self.memory_bytes,
            verbose,
        )

    def refit_steps(self, weights: Tensor) -> Tensor:
        """Refit the linearised model to the weighted rows, (k, D)."""
        return refit(self, weights)

    def objective(self, weights: Tensor, steps: Tensor, shifts: Tensor) -> Tensor:
        """Return the linearised objective of each step, (k,)."""
        k, (n, C) = len(weights), self.outputs.shape
        change = self.space.train_outputs(steps).view(k, n, C)
        outputs = (self.outputs + change).reshape(k * n, C)
        targets = self.targets.repeat(k, *[1] * (self.targets.ndim - 1))
        losses = self.loss.values(outputs, targets).view(k, n)
        constant = self._gradient_factor(weights)[:, None, None] * (
            self.weights[:, None] * self.residuals
        )

        return (
            (weights * losses).sum(dim=1)
            - (constant * change).sum(dim=(1, 2))
            + shifts / 2 * self.space.squared_norm(steps)
        )

    # ----------------------------------------------------------------- queries
    def query(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs (q, C) of query rows, and their gradients in coordinates.

        The gradients (q, C, D) map steps to changes of the outputs.
        """
        outputs, gradients = row_gradients(self.model, X, self.scale)
        return outputs, self.space.query_block(self._coordinates(gradients))

    def _coordinates(self, gradients: RowGradients) -> RowGradients:
        """Return gradients in the coordinates of the steps."""
        if self.projector is None:
            return gradients
        # it has all that the primal space uses
        return cast(RowGradients, self.projector.project(gradients))

    def query_batch(self, n_steps: int) -> int:
        """Return how many queries fit the memory cap at once."""
        # a query's gradients; its Jacobian, or its kernel with all rows; its changes
        wide = 3 * self.outputs.shape[1] * (self.space.n_coordinates + n_steps)
        numbers = wide + 4 * self._per_query
        return max(1, int(self.memory_bytes / (numbers * self.outputs.element_size())))

    def output_change(self, steps: Tensor | RowRemovals, query: Tensor) -> Tensor:
        """Return the change of the outputs of query rows, (k, q, C)."""
        if isinstance(steps, RowRemovals):
            return steps.output_change(query)
        return (steps @ query.flatten(0, 1).T).view(len(steps), *query.shape[:2])

    def first_order_effects(
        self, X: Tensor, slope_of: Slope, system: FullSystem
    ) -> Tensor:
        """Return Σ_c r_ic (J_i H⁻¹ J_qᵀ ∇F_q)_c of rows on queries, (q, n).

        The effect of `influence_steps` on outcomes is minus their sum, weighted by
        `_amounts`. ``system`` is the full one, solved for queries, not for weightings.
        """
        outputs, query = row_gradients(self.model, X, self.scale)
        slopes = slope_of(outputs)
        size = 4 * self.outputs.numel()
        out = outputs.new_empty(len(X), len(self.weights))
        per_query = size + 16 * self.model.n_params
        at_once = int(self.memory_bytes / (SHARE * per_query * out.element_size()))

        for chunk in chunks(len(X), at_once):
            chunk_query = query.of_rows(chunk)
            cotangents = torch.zeros(len(slopes[chunk]), *chunk_query.shape).to(outputs)
            cotangents.diagonal(dim1=0, dim2=1).copy_(slopes[chunk].T)
            out[chunk] = self.effects_of(chunk_query.vjp(cotangents), system)

        return out

    def pulled(self, X: Tensor, slope: Tensor) -> Tensor:
        """Return Σ_q J_qᵀ slope_q (P,) of query rows, slopes being (q, C)."""
        gradient: Tensor = row_gradients(self.model, X, self.scale)[1].vjp(slope[None])
        return gradient[0]

    def effects_of(self, gradients: Tensor, system: FullSystem) -> Tensor:
        """Return Σ_c r_ic (J_i H⁻¹ g)_c of rows on gradients g (k, P), (k, n)."""
        space = cast(SolvesQueries, self.space)
        solved = space.solve_in_parameters(gradients, system)
        images = space.images(solved).view(-1, *self.outputs.shape)
        return torch.einsum("qnc,nc->qn", images, self.residuals)

    def summed(self, effects: Tensor, units: Tensor, n_units: int) -> Tensor:
        """Return by how much steps without each unit lower outcomes, (q, n_units).

        ``effects`` are `first_order_effects`, ``units`` (n,) the unit of each row. The
        result is effects @ `_amounts`, without an array of units times rows.
        """
        weighted = effects * self.weights
        unit_effects = weighted.new_zeros(len(weighted), n_units).index_add_(
            1, units, weighted
        )
        factor = self.weights.new_zeros(n_units).index_add_(0, units, self.weights)
        factor /= self.weights.sum()
        if not self.stationary:
            factor = torch.ones_like(factor)
        elif self.regularization == "fixed":
            factor = torch.zeros_like(factor)
        return factor * weighted.sum(dim=1, keepdim=True) - unit_effects

    def parameter_change(self, steps: Tensor) -> Tensor:
        """Return the steps as changes of the parameters, (k, P)."""
        if self.projector is not None:
            return self.projector.lift(steps)
        return self.space.parameters(steps)

    def stationarity(self) -> float:
        """Return ‖gradient of the mean loss‖ over the mean norm of rows' gradients.

        0 at a stationary point of the unregularised loss, 1 if all rows have the same
        gradient. Norms are Euclidean, not in the metric.
        """
        share = self.weights[:, None] * self.residuals
        n = len(share)
        total = self._gradient_norm(share)
        row_norms = []
        for i in spread(n, _N_ROWS):
            single_row = torch.zeros_like(share)
            single_row[i] = share[i]
            row_norms.append(self._gradient_norm(single_row))
        mean = sum(row_norms) / len(row_norms)
        return total / n / mean if mean else 0.0

    def leverages(self) -> Tensor:
        """Return the largest eigenvalue of S̃ᵀGS̃ of every row, in [0, 1).

        Near 1 the model fits that row at any target: leaving it out is not a small
        change.
        """
        rows = self.weights.nonzero()[:, 0]
        complements = self.space.row_complements(
            rows, self.weights[rows], self.full_system()
        )
        eye = torch.eye(
            complements.shape[-1], dtype=complements.dtype, device=complements.device
        )
        out = torch.zeros_like(self.weights)
        out[rows] = largest_eigenvalue(eye - complements).to(out)
        return out

    def _gradient_norm(self, cotangents: Tensor) -> float:
        if self._gradients is not None:
            plain = self._gradients.vjp(cotangents[None])
            return float((plain if self.scale is None else plain / self.scale).norm())
        gradient = self.space.gradient(cotangents.view(1, -1), self.weights, None)
        plain = self.space.parameters(gradient)
        if self.scale is not None:
            plain = plain / self.scale**2
        return float(plain.norm())
