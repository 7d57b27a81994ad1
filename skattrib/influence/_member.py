"""One trained model and its tangent: predictions and attributions."""

import copy
from functools import partial

import numpy as np
import torch
from tqdm.auto import tqdm

from skattrib._validation import as_tensor, memory_cap
from skattrib.engine._functional import FunctionalModule, chunks, spread
from skattrib.engine._gradients import gradient_size
from skattrib.engine._linearized import LinearizedModel
from skattrib.engine._plan import Plan, plan_solver
from skattrib.engine._readout import find_head
from skattrib.influence._projection import make_projector
from skattrib.influence._ridge import RidgeRule, choose_metric, choose_rule
from skattrib.models._as_model import as_model
from skattrib.models._memory import as_memory, cached_array, digest
from skattrib.models._network import untrained

# Units solved for exactly, to learn what an approximation misses.
_N_EXACT = 8
# More units than there are queries, probably.
_MANY_UNITS = 64


def solves_by_query(removal, n_units):
    """Say whether to solve for queries: at first order, and if units are many."""
    return removal == "influence" and n_units > _MANY_UNITS


def _cached_kernel(memory, estimator, names, X, scale, build):
    if memory is None:
        return build()
    key = digest("kernel", estimator.module_, names, X, scale)
    kernel = cached_array(as_memory(memory), key, lambda: build().cpu().numpy())
    return torch.tensor(kernel, device=X.device)


def _plan(model, X, n_outputs, solver, **kept):
    """Choose the space to solve in; ``kept`` as `plan_solver` takes it."""
    return plan_solver(
        len(X),
        n_outputs,
        model.n_params,
        X.element_size(),
        memory_cap(),
        solver,
        gradients=gradient_size(model, X),
        **kept,
    )


def _landmarks(n_rows, n_landmarks, seed, device):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(n_rows, generator=generator)[:n_landmarks]
    return drawn.sort().values.to(device)


class WithoutEach:
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


class Asked:
    """Queries, with outputs (q, C) and gradients as `LinearizedModel.query` has them.

    Iterating gives slices of the rows and both of these. If all rows fit at once they
    are computed once.
    """

    def __init__(self, model, X, size):
        self._model, self.X = model, X
        self._parts = list(chunks(len(X), size))
        self._only = None

    def _of(self, part):
        rows = as_tensor(self.X[part], self._model.outputs)
        return part, *self._model.query(rows)

    def __iter__(self):
        if len(self._parts) > 1:
            return map(self._of, self._parts)
        if self._only is None:
            self._only = [self._of(self._parts[0])]
        return iter(self._only)


def head_parameters(module, X):
    """Return the names of the trainable parameters of the last linear layer."""
    head = find_head(module, X)
    own = {id(p) for p in head.parameters()}
    names = [k for k, p in module.named_parameters() if id(p) in own]
    return [k for k in names if module.get_parameter(k).requires_grad]


def check_has_head(estimator, X, y):
    """Raise ValueError unless the module ends in a linear layer that is trained."""
    model = as_model(estimator)
    if model.frozen:
        module, rows = model.module, as_tensor(X[:2])
        rows = rows.to(next(module.parameters()))
    else:
        problem = untrained(estimator, X, y)
        module, rows = problem.model.module, problem.X
    if not head_parameters(module, rows):
        raise ValueError(
            "parameters='head' moves the last linear layer, and that is not trained: "
            "its parameters do not require a gradient. Use parameters='all'."
        )


class Member:
    """A trained estimator and its linearised model.

    Parameters
    ----------
    estimator : fitted TorchClassifier or TorchRegressor
    X, y : ndarray
        Training rows.
    weights : ndarray of shape (n_samples,)
        Of the rows in training.
    ridge : float or str
        Damping, as `choose_rule` takes it.
    metric : {"optimizer", "identity"}
    parameters : {"all", "head"}
        What moves.
    regularization : {"per_sample", "fixed"}
    solver : {"auto", "primal", "dual", "cg", "nystroem"}
    memory : str, joblib.Memory or None
    stationary : bool
        Whether to subtract the gradient that training left.
    projection : int, random projection or None
        Subspace of the parameters to stay in, as `make_projector` takes it.
    n_steps : int
        Steps that the caller will keep.
    by_query : bool
        Whether these are first-order ones of many units: then queries are solved for
        instead, by the solvers that can.
    seed : int
        Draws the landmarks of the solvers that have any.

    Attributes
    ----------
    plan : Plan
        Space solved in, and why.
    metric : str
        Name of the metric used.
    solves_queries : bool
        Whether queries are solved for, rather than units.
    """

    def __init__(
        self,
        estimator,
        X,
        y,
        weights,
        *,
        ridge,
        metric="optimizer",
        parameters="all",
        regularization="per_sample",
        solver="auto",
        memory=None,
        stationary=True,
        projection=None,
        n_steps=0,
        by_query=False,
        seed=0,
    ):
        estimator._raw_outputs(X[:2])  # a wrapped module of another width
        like = next(estimator.module_.parameters())
        X = as_tensor(X, like)
        model = FunctionalModule(estimator.module_)
        if parameters == "head":
            model = model.of_parameters(head_parameters(estimator.module_, X))
        self.plan = Plan("primal", "in the projected space")
        if projection is None:
            additive = estimator.class_weight != "balanced"
            kept = {"n_steps": n_steps, "by_query": by_query and additive}
            self.plan = _plan(model, X, estimator.n_outputs_, solver, **kept)
        self.metric, metric = choose_metric(metric, estimator, model, X, y)
        scale = None if metric is None else metric.rsqrt()
        kernel_cache = partial(_cached_kernel, memory, estimator, model.names, X, scale)
        self.estimator, targets = estimator, estimator._targets(y, X)
        self._weighting = estimator._weighting(targets)
        self.model = LinearizedModel(
            model,
            estimator.loss_function_,
            X,
            targets,
            self._weighting(as_tensor(weights, X)),
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
        self.model.ridge = choose_rule(ridge, estimator, self.model, metric)
        knows_how = self.plan.solver in ("cg", "primal") and projection is None
        self.solves_queries = by_query and knows_how and self._weighting.additive

    def decomposed(self):
        """Return the same with one eigendecomposition for all values of the ridge."""
        out = copy.copy(self)
        out.model = self.model.decomposed()
        return out

    def for_units(self, removal, largest):
        """Return the same to leave out units at many ridges, for outputs of queries.

        Parameters
        ----------
        removal : {"newton", "influence", "refit"}
        largest : int
            Rows of the largest unit.
        """
        few = removal == "newton" and largest <= self.model.few
        if self.solves_queries or not (few or removal == "influence"):
            return self.decomposed()
        out = copy.copy(self)
        out.model = self.model.spectral()
        return out

    def prepared(self, removal, removed, verbose=0):
        """Return the steps for `WithoutEach`, or what queries are solved with."""
        if self.solves_queries:
            return self.model.full_system()
        return self.steps(removal, removed, verbose)

    def steps(self, removal, row_weights, verbose=0):
        """Return the steps (k, D) for weights of the rows, (k, n) or `WithoutEach`."""
        solve = getattr(self.model, f"{removal}_steps")
        k, space = len(row_weights), self.model.space
        parts = list(chunks(k, self.model.batch_size()))
        out = self.model.outputs.new_empty(k, space.n_coordinates)
        for part in tqdm(parts, desc=f"{removal} steps", disable=not verbose):
            out[part] = solve(self._weighting(as_tensor(row_weights[part], out)))
        return out

    def ask(self, X, n_steps):
        """Prepare queries for at most so many steps at once; see `Asked`."""
        return Asked(self.model, X, self.model.query_batch(n_steps))

    def output_changes(self, steps, X):
        """Return outputs (q, C) of queries and their changes (k, q, C)."""
        outputs, changes = [], []
        for _, output, query in self.ask(X, len(steps)):
            outputs.append(output)
            changes.append(self.model.output_change(steps, query))
        return torch.cat(outputs), torch.cat(changes, dim=1)

    def parameter_change(self, steps):
        """Return the steps as changes of all parameters of the module, (k, P)."""
        found, whole = self.model.model, FunctionalModule(self.estimator.module_)
        changes = self.model.parameter_change(steps)
        out = changes.new_zeros(len(changes), whole.n_params)
        out[:, whole.columns_of(found.names)] = changes
        return out

    def approximation_error(self, removal, removed, steps, X):
        """Return how far output changes are from those without approximation.

        Parameters
        ----------
        removal : {"newton", "influence", "refit"}
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
        some = spread(len(removed), _N_EXACT)
        exact = copy.copy(self)
        exact.model = self.model.without_projection()
        ours = self.output_changes(steps[some], X)[1]
        true = exact.output_changes(exact.steps(removal, removed[some]), X)[1]
        tiny = torch.finfo(true.dtype).tiny
        return float((ours - true).norm() / true.norm().clamp(min=tiny))

    def _measure(self, y, outcome, like):
        """Return the outcome as a function of outputs (..., q, C)."""
        function = self.estimator.loss_function_.outcome(outcome)
        targets = self.estimator._targets(y, like)
        return lambda f: function(f, targets.expand(*f.shape[:-2], *targets.shape))

    def present_outcomes(self, X, y, outcome):
        """Return the outcomes (q,) of the model as it is."""
        outputs = self.estimator._raw_outputs(X)
        return self._measure(y, outcome, outputs)(outputs).cpu().numpy()

    def outcomes(self, steps, asked, y, outcome):
        """Return the outcomes (k, q) after each step."""
        out = []
        for part, outputs, query in asked:
            changes = self.model.output_change(steps, query)
            out.append(self._measure(y[part], outcome, outputs)(outputs + changes))
        return torch.cat(out, dim=1).cpu().numpy()

    def attributions(self, steps, asked, y, outcome, *, first_order):
        """Return outcome minus outcome after each unit's step, (q, n_units)."""
        out = []
        for part, outputs, query in asked:
            changes = self.model.output_change(steps, query)
            measure = self._measure(y[part], outcome, outputs)
            if first_order:
                slope = _slope(measure)(outputs)
                out.append(-(changes * slope).sum(dim=-1).T)
            else:
                out.append((measure(outputs) - measure(outputs + changes)).T)
        return torch.cat(out).cpu().numpy()

    def attributions_by_query(self, system, removed, asked, y, outcome, verbose=0):
        """Return the same at first order without any unit's step; see `prepared`.

        ``removed`` is a `WithoutEach`.
        """
        X, like, found = asked.X, self.model.outputs, []
        units = torch.tensor(removed.unit_of_row, device=like.device)
        # conjugate gradients are chunked by themselves; here, the gradients are
        parts = list(chunks(len(X), self.model.query_batch(1)))
        for part in tqdm(parts, desc="solving for queries", disable=not verbose):
            rows = as_tensor(X[part], like)
            slope = _slope(self._measure(y[part], outcome, like))
            effects = self.model.first_order_effects(rows, slope, system)
            found.append(self.model.summed(effects, units, len(removed)))
        return torch.cat(found).cpu().numpy()


def _slope(measure):
    """Return the gradient of outcomes as a function of outputs (q, C)."""
    return torch.func.grad(lambda f: measure(f).sum())
