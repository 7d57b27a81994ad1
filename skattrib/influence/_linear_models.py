"""Trained models and their tangents: what each predicts for other weights of rows."""

import copy
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from skattrib._progress import tqdm
from skattrib._validation import as_tensor, draw_seeds, memory_cap
from skattrib.engine._functional import FunctionalModule, chunks, spread
from skattrib.engine._linearized import LinearizedModel
from skattrib.engine._losses import SetMeasure
from skattrib.engine._plan import SolverChoice
from skattrib.exceptions import FaithfulnessWarning
from skattrib.influence._damping import RidgeRule, choose_metric, choose_rule
from skattrib.influence._projection import make_projector
from skattrib.influence._tangent_plans import Rows, head_parameters, plan_tangent
from skattrib.influence._tangent_sets import TangentSet
from skattrib.models._memory import as_memory, cached_array, digest

# Relative errors by rounding above this are warned of.
_PRECISION = 0.01
# Units solved for exactly, to learn what an approximation misses.
_N_EXACT = 8


def trained_seeds(model, X, y, row_weights, n_models):
    """Return a trained model, and others trained from further seeds."""
    if model.frozen:
        model.warn_of_other_rows(X, y, row_weights, stacklevel=9)
    if n_models == 1:
        return [model]
    seeds = draw_seeds(model.estimator.random_state, n_models)[1:]
    others = [model.retrain(X, y, row_weights, seed) for seed in seeds]
    return [model, *map(model.of, others)]


def _cached_kernel(memory, module, names, X, scale, build):
    if memory is None:
        return build()
    key = digest("kernel", module, names, X, scale)
    kernel = cached_array(as_memory(memory), key, lambda: build().cpu().numpy())
    return torch.tensor(kernel, device=X.device)


def _landmarks(n_rows, n_landmarks, seed, device):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(n_rows, generator=generator)[:n_landmarks]
    return drawn.sort().values.to(device)


class LeaveOneUnitOut:
    """Weights of the rows without each unit, (n_units, n), formed when asked for.

    Parameters
    ----------
    unit_of_row : int array of shape (n,)
    row_weights : array of shape (n,)
    n_units : int
    """

    def __init__(self, unit_of_row, row_weights, n_units):
        self.unit_of_row, self._row_weights = unit_of_row, row_weights
        self._units = np.arange(n_units)

    def __len__(self):
        return len(self._units)

    def __getitem__(self, part):
        return (self._units[part, None] != self.unit_of_row) * self._row_weights

    @property
    def largest(self):
        """Rows of the largest unit."""
        return np.bincount(self.unit_of_row).max()

    def shares(self, row_weights):
        """Return what other weights of the rows leave of each unit, (k, n_units)."""
        left = np.zeros((len(row_weights), len(self)))
        np.add.at(left.T, self.unit_of_row, row_weights.T)
        whole = np.bincount(self.unit_of_row, self._row_weights)
        return left / whole.clip(min=1e-12)


class LinearModel:
    """A trained model and its tangent.

    Parameters
    ----------
    trained : Differentiable
    X, y : ndarray
        Training rows.
    weights : ndarray of shape (n_samples,)
        Of the rows in training.
    ridge : float, str or RidgeRule
        Damping, as `choose_rule` takes it.
    removal : {"auto", "newton", "influence", "refit"}
        How rows are left out.
    units : LeaveOneUnitOut or None
        What `without_each_unit` leaves out.
    metric : {"optimizer", "identity"}, or a name and the metric
    parameters : {"all", "head"}
        What moves.
    regularization : {"per_sample", "fixed"}
    solver : {"auto", "primal", "dual", "cg", "nystroem"}
    memory : str, joblib.Memory or None
    stationary : bool
        Whether to subtract the gradient that training left.
    projection : int, random projection or None
        Subspace of the parameters to stay in, as `make_projector` takes it.
    seed : int
        Draws the landmarks of the solvers that have any.
    verbose : int

    Attributes
    ----------
    tangent : LinearizedModel
    removal : {"newton", "influence", "refit"}
        How rows are left out.
    plan : SolverChoice
        Space solved in, and why.
    metric : str
        Name of the metric used.
    weighting : RowWeighting
        What makes the weights in the loss of those of the rows.
    """

    def __init__(
        self,
        trained,
        X,
        y,
        weights,
        *,
        ridge,
        removal="newton",
        units=None,
        metric="optimizer",
        parameters="all",
        regularization="per_sample",
        solver="auto",
        memory=None,
        stationary=True,
        projection=None,
        seed=0,
        verbose=0,
    ):
        trained, X = trained.curved(X, seed)
        n_outputs = trained.outputs(X[:2]).shape[1]  # also of a wrapped module's width
        self.trained, self.units, self.verbose = trained, units, verbose
        self._kept = parameters, solver, seed
        module = trained.module
        X = as_tensor(X, next(module.parameters()))
        model = FunctionalModule(module)
        if parameters == "head":
            model = model.of_parameters(head_parameters(module, X))
        targets = trained.targets(y, X)
        self.weighting = trained.weighting(targets)

        self.plan = SolverChoice("primal", "in the projected space")
        if projection is None:
            rows = Rows(X, n_outputs, self.weighting, weights, units)
            recipe = getattr(trained.trajectory, "recipe", None)
            self.plan = plan_tangent(model, rows, solver, removal, recipe)
        self.removal = self.plan.removal if removal == "auto" else removal

        self._scaling = choose_metric(metric, trained, model, X, targets)
        self.metric, metric = self._scaling
        scale = None if metric is None else metric.rsqrt()
        kernel_cache = partial(_cached_kernel, memory, module, model.names, X, scale)
        tangent = LinearizedModel(
            model,
            trained.loss,
            X,
            targets,
            self.weighting(as_tensor(weights, X)),
            scale=scale,
            ridge=RidgeRule(1.0),
            regularization=regularization,
            solver=self.plan.solver,
            memory_bytes=memory_cap(),
            kernel_cache=kernel_cache,
            stationary=stationary,
            project=make_projector(projection, kernel_cache, X),
            landmarks=_landmarks(len(X), self.plan.n_landmarks, seed, X.device),
        )
        self.tangent = tangent.at_ridge(choose_rule(ridge, trained, tangent, metric))

    @property
    def solves_queries(self):
        """Whether queries are solved for, rather than units."""
        return self.plan.by_query and self.removal == "influence"

    @classmethod
    def precise(cls, trained, X, *args, **options):
        """Return a linear model, in double precision where single rounds too much."""
        linear = cls(trained, X, *args, **options)
        error = linear.rounding_error()
        if error <= _PRECISION:
            return linear

        double = None
        if linear.tangent.outputs.dtype == torch.float32:
            double = trained.in_double()
        if double is not None:
            linear = cls(double, X.astype(np.float64), *args, **options)
            reason = f"{linear.plan.reason}, in double precision for so little damping"
            linear.plan = replace(linear.plan, reason=reason)
            error = linear.rounding_error()
        if error > _PRECISION:
            warnings.warn(
                f"With ridge={linear.ridge(0.0):.1e} the damped Hessian is so "
                f"ill-conditioned that rounding in {linear.tangent.outputs.dtype} may "
                f"change attributions by {min(error, 1.0):.0%} or more. Scale X "
                "(sklearn.preprocessing.StandardScaler), or use a larger ridge.",
                FaithfulnessWarning,
                stacklevel=7,
            )
        return linear

    def rounding_error(self):
        """Return how much rounding may change the steps, about, as a share of them."""
        eps = torch.finfo(self.tangent.outputs.dtype).eps
        return self.tangent.condition_number() * eps

    # ------------------------------------------------------------ other dampings
    @property
    def ridge(self):
        """Damping as a function of the fraction of rows removed."""
        return self.tangent.ridge

    def _with(self, tangent):
        other = copy.copy(self)
        other.tangent = tangent
        return other

    def at_ridge(self, rule):
        """Return this model damped otherwise."""
        return self._with(self.tangent.at_ridge(rule))

    def for_many_ridges(self, *, units_alone=False):
        """Return this model with one eigendecomposition for all values of the ridge.

        ``units_alone`` says that only units will be left out, one by one, and queries
        asked about it.
        """
        cheap = self.removal == "influence" or (
            self.removal == "newton" and self.units.largest <= self.tangent.few
        )
        few_rows = units_alone and cheap and not self.solves_queries
        other = self._with(self.tangent.for_many_ridges(few_rows=few_rows))
        if few_rows:  # steps of its units are short
            other.plan = replace(self.plan, by_query=False)
        return other

    def with_rows(self, X, y, weights, _):
        """Return the tangent of these rows, in the same metric and as damped.

        Other than units left out, what is asked of it is not prepared.
        """
        parameters, solver, seed = self._kept
        return type(self)(
            self.trained,
            X,
            y,
            weights,
            ridge=self.ridge,
            removal=self.removal,
            metric=self._scaling,
            parameters=parameters,
            regularization=self.tangent.regularization,
            solver=solver,
            stationary=self.tangent.stationary,
            seed=seed,
            verbose=self.verbose,
        )

    # ------------------------------------------------------------------- removals
    def steps(self, row_weights):
        """Return the steps (k, D) for weights of the rows, (k, n) or by unit."""
        solve = getattr(self.tangent, f"{self.removal}_steps")
        n_steps, n_coordinates = len(row_weights), self.tangent.space.n_coordinates
        steps = self.tangent.outputs.new_empty(n_steps, n_coordinates)
        parts = list(chunks(n_steps, self.tangent.batch_size()))

        label = f"{self.removal} steps"
        for part in tqdm(parts, desc=label, disable=not self.verbose):
            weights = as_tensor(row_weights[part], steps)
            steps[part] = solve(self.weighting(weights))
        return steps

    def without_each_unit(self):
        """Return the step without each unit; what queries are solved with, if so."""
        if self.solves_queries:
            return self.tangent.full_system()
        if self.plan.by_query:
            return self.tangent.without_each_row(self.verbose)
        return self.steps(self.units)

    def parameter_change(self, steps):
        """Return the steps as changes of all parameters of the module, (k, P)."""
        whole = FunctionalModule(self.trained.module)
        moved = self.tangent.parameter_change(steps)
        changes = moved.new_zeros(len(moved), whole.n_params)
        changes[:, whole.columns_of(self.tangent.model.names)] = moved
        return changes

    def parameter_names(self, features):
        """Return the names of all parameters of the module, with their positions."""
        names = []
        for name, parameter in self.trained.module.named_parameters():
            if not parameter.requires_grad:
                continue
            for place in np.ndindex(*parameter.shape):
                names.append(f"{name}[{', '.join(map(str, place))}]")
        return names

    def output_changes(self, steps, X):
        """Return the changes (k, q, C) of the outputs of queries."""
        tangent, size = self.tangent, self.tangent.query_batch(len(steps))
        changes = []
        for part in chunks(len(X), size):
            _, gradients = tangent.query(as_tensor(X[part], tangent.outputs))
            changes.append(tangent.output_change(steps, gradients))
        return torch.cat(changes, dim=1)

    def approximation_error(self, removed, steps, X):
        """Return how far output changes are from those without approximation.

        Parameters
        ----------
        removed : array of shape (k, n)
            Weights of the rows without each of some units.
        steps : Tensor of shape (k, D)
            Of `removed`, as `steps` returned them.
        X : Tensor of shape (q, n_features)
            Query rows.

        Returns
        -------
        float or None
            Relative, over a few units; None if the solver is exact.
        """
        if self.plan.solver != "nystroem":
            return None
        few = spread(len(removed), _N_EXACT)
        exact = self._with(self.tangent.without_projection())
        ours = self.output_changes(steps[few], X)
        true = exact.output_changes(exact.steps(removed[few]), X)
        smallest = torch.finfo(true.dtype).tiny
        return float((ours - true).norm() / true.norm().clamp(min=smallest))

    # -------------------------------------------------------------------- queries
    def ask(self, X, y, outcome, n_steps):
        """Prepare queries for at most so many steps at once, at any ridge."""
        measure = self.trained.loss.outcome(outcome)
        kind = TangentSet if isinstance(measure, SetMeasure) else QueryBatches
        return kind(self, X, y, measure, n_steps)


class QueryBatches:
    """Queries of a linear model: their outcomes, and attributions to its units.

    Targets are encoded once. Gradients are computed once if those of all queries fit
    the memory, else batch by batch each time.

    Parameters
    ----------
    linear : LinearModel
    X, y : ndarray
        Queries.
    measure : callable
        The outcome, as the loss has it.
    n_steps : int
        Steps that they will be multiplied by, at most.
    """

    def __init__(self, linear, X, y, measure, n_steps):
        self._linear, self._tangent, self._X = linear, linear.tangent, X
        self._outcome = measure
        self._targets = linear.trained.targets(y, self._tangent.outputs)
        self._parts = list(chunks(len(X), self._tangent.query_batch(n_steps)))
        self._single = None

    def _measure(self, part):
        """Return outcomes of some queries as a function of outputs (..., q, C)."""
        function, targets = self._outcome, self._targets[part]
        return lambda outputs: function(
            outputs, targets.expand(*outputs.shape[:-2], *targets.shape)
        )

    def _prepared(self, part):
        """Return outputs and gradients of some queries, and what measures them."""
        rows = as_tensor(self._X[part], self._tangent.outputs)
        return *self._tangent.query(rows), self._measure(part)

    def __iter__(self):
        if len(self._parts) > 1:
            return map(self._prepared, self._parts)
        if self._single is None:
            self._single = [self._prepared(self._parts[0])]
        return iter(self._single)

    def present_outcomes(self):
        """Return the outcomes (q,) of the network as it is."""
        outputs = self._linear.trained.outputs(self._X)
        return self._measure(slice(None))(outputs).cpu().numpy()

    def outcomes(self, steps):
        """Return the outcomes (k, q) after each step."""
        outcomes = []
        for outputs, gradients, measure in self:
            changes = self._tangent.output_change(steps, gradients)
            outcomes.append(measure(outputs + changes))
        return torch.cat(outcomes, dim=1).cpu().numpy()

    def attributions(self, without_each):
        """Return outcome minus outcome without each unit, (q, n_units).

        ``without_each`` is what `LinearModel.without_each_unit` returns.
        """
        if self._linear.solves_queries:
            return self._solved_for_queries(without_each)

        first_order = self._linear.removal == "influence"
        attributions = []
        for outputs, gradients, measure in self:
            changes = self._tangent.output_change(without_each, gradients)
            if first_order:
                slope = _slope(measure)(outputs)
                lost = -(changes * slope).sum(dim=-1)
            else:
                lost = measure(outputs) - measure(outputs + changes)
            attributions.append(lost.T)
        return torch.cat(attributions).cpu().numpy()

    def _solved_for_queries(self, system):
        """Return attributions at first order without any unit's step."""
        tangent, units = self._tangent, self._linear.units
        like = tangent.outputs
        unit_of_row = torch.tensor(units.unit_of_row, device=like.device)
        # conjugate gradients are chunked by themselves; here, the gradients are
        parts = list(chunks(len(self._X), tangent.query_batch(1)))

        attributions = []
        verbose = self._linear.verbose
        for part in tqdm(parts, desc="solving for queries", disable=not verbose):
            rows = as_tensor(self._X[part], like)
            slope = _slope(self._measure(part))
            effects = tangent.first_order_effects(rows, slope, system)
            attributions.append(tangent.summed(effects, unit_of_row, len(units)))
        return torch.cat(attributions).cpu().numpy()


def _slope(measure):
    """Return the gradient of outcomes as a function of outputs (q, C)."""
    return torch.func.grad(lambda outputs: measure(outputs).sum())
