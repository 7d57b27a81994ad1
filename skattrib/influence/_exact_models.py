"""Linear and kernel models: what each is for other weights of its rows, exactly.

They have the interface of `LinearModel`, which approximates networks, where
`DualInfluence` uses both.
"""

import copy
import warnings

import numpy as np
import torch

from skattrib._progress import tqdm
from skattrib._validation import label_positions, memory_cap
from skattrib.engine._functional import chunks, spread
from skattrib.engine._losses import SetMeasure, set_slope
from skattrib.exceptions import FaithfulnessWarning
from skattrib.influence._damping import RidgeRule
from skattrib.models._retraining import retrained

# Outcomes of units and queries that are evaluated at a time.
_AT_ONCE = 2**20
# Multiplications that are minutes of work.
_MUCH_WORK = 1e12
# Rows that are left out to see how large the effect of one is.
_N_COMPARED = 64
# The same where each takes conjugate gradients.
_N_ITERATED = 8
# Distance to the optimum, in such effects, from which on it is reported. Measured: the
# 87 fits below it ranked leave-one-out, retrained at their own tolerance, with 0.97 or
# more, and the first to fall below 0.9 had stopped at 0.11 (benchmarks.linear.exact).
NOISY = 0.1
# From here on attributions are off by tenths of their size, too: on breast cancer and
# wine by .10 to .19 at distances of 4 to 12, and by .4 or more at 15.
FAR = 10.0


class Moved:
    """Where weights of the rows lead: steps, or models trained where steps cannot.

    Parameters
    ----------
    steps : Tensor of shape (k, D, C)
        NaN where a class has no rows left.
    retrained : dict of int to model
        For those.
    """

    def __init__(self, steps, retrained=None):
        self.steps, self.retrained = steps, retrained or {}

    def __len__(self):
        return len(self.steps)

    def __getitem__(self, index):
        positions = np.arange(len(self))[index]
        kept = {
            new: self.retrained[old]
            for new, old in enumerate(positions.tolist())
            if old in self.retrained
        }
        return Moved(self.steps[index], kept)


class ExactModel:
    """A fitted model whose training minimises a known objective.

    Parameters
    ----------
    trained : Convex
    X, y : ndarray
        Training rows.
    weights : ndarray of shape (n_samples,)
        Of the rows in training.
    removal : {"auto", "newton", "influence", "refit"}
        How rows are left out; stored by method.
    units : LeaveOneUnitOut
    solver : str
    seed : int
    verbose : int

    Attributes
    ----------
    plan : ConvexPlan
    metric : str
    solves_queries : bool
        Whether queries are solved for, rather than units.
    """

    metric, ridge = "identity", RidgeRule(0.0, 0.0, "the model's own penalty")

    def __init__(
        self, trained, X, y, weights, *, removal, units, solver, seed=0, verbose=0
    ):
        self.trained, self.units, self.verbose = trained, units, verbose
        self._X, self._y, self._weights = X, y, np.asarray(weights, dtype=np.float64)
        self._seed, self._solver = seed, solver
        self.refits = trained.refits(X, y, self._weights, solver, memory_cap())
        self.plan = self.refits.plan
        self.removal = chosen_removal(removal, self.refits, units)
        self.solves_queries = (
            self.plan.solver == "cg" and self.removal["attribute"] == "influence"
        )
        self._classes = getattr(trained.estimator, "classes_", None)
        if self._classes is not None:
            self._codes = label_positions(self._classes, np.asarray(y))
        if self.refits.is_singular:
            warnings.warn(
                f"The loss of {trained.name} does not bend in every coefficient, and "
                "no penalty does: columns of X are collinear, or classes are next to "
                "separated. Of all solutions the one that changes least is taken; "
                "outcomes of rows like those of training are the same in all. Drop "
                "columns (OneHotEncoder(drop='first')), or use a penalty.",
                FaithfulnessWarning,
                stacklevel=7,
            )

    def with_rows(self, X, y, weights, units):
        """Return what refits the model to these rows, as to subsets.

        ``units`` has the weights that it will be refitted to.
        """
        other = copy.copy(self)
        other._X, other._y, other._weights = X, y, np.asarray(weights, dtype=float)
        args = X, y, other._weights, self._solver, memory_cap()
        other.refits, other.units = self.trained.refits(*args), units
        other.plan, other.solves_queries = other.refits.plan, False
        other.removal = dict.fromkeys(self.removal, self.removal["predict_outcomes"])
        if self._classes is not None:
            other._codes = label_positions(self._classes, np.asarray(y))
        return other

    # ---------------------------------------------------------------- removals
    def steps(self, row_weights, method="predict_outcomes", *, checked=True):
        """Return where weights (k, n) of the rows lead."""
        if checked and isinstance(row_weights, np.ndarray):
            self.trained.check_weights(row_weights)
        solve = getattr(self.refits, f"{self.removal[method]}_steps")
        parts, other_models = [], {}
        label = f"{self.removal[method]} steps"
        for part in self._parts(len(row_weights), label, self.refits.batch_size()):
            weights = np.array(row_weights[part], dtype=np.float64)
            emptied = self._emptied(weights)
            weights[emptied] = self._weights
            found = solve(torch.tensor(weights))
            found[emptied] = torch.nan
            parts.append(found)
            for i in np.flatnonzero(emptied):
                row = np.asarray(row_weights[part][i], dtype=np.float64)
                other_models[part.start + int(i)] = self._retrained(row)
        return Moved(torch.cat(parts), other_models)

    def _emptied(self, weights):
        """Say which weightings (k, n) leave a class without rows."""
        if self._classes is None:
            return np.zeros(len(weights), dtype=bool)
        counts = [
            (weights[:, self._codes == code] > 0).any(axis=1)
            for code in range(len(self._classes))
        ]
        return ~np.all(counts, axis=0)

    def _retrained(self, weights):
        """Return a model that was trained: its objective is another one."""
        model = type(self.trained)(self.trained.recipe())
        model.classes = self._classes
        return model.of(retrained(model, self._X, self._y, weights, self._seed))

    def _parts(self, n, label, size):
        parts = list(chunks(n, size))
        return tqdm(parts, desc=label, disable=not (self.verbose and len(parts) > 1))

    def without_each_unit(self):
        """Return where the removal of each unit leads.

        None if queries are solved for, or the steps do not fit the memory: then
        `without_units` is asked again for each call.
        """
        shape = getattr(self.refits.objective, "params", self.refits.objective.targets)
        needed = 8.0 * len(self.units) * (shape.numel() + shape.shape[1])
        if self.solves_queries or needed > memory_cap() / 2:
            return None
        return self.without_units(slice(0, len(self.units)))

    def without_units(self, part):
        """Return where the removal of each of some units leads."""
        by_row = self.units.largest == 1 and self.removal["attribute"] == "newton"
        if not by_row or self.plan.solver == "cg":
            return self.steps(self.units[part], "attribute", checked=False)

        rows = np.argsort(self.units.unit_of_row)[part]
        alone = self._alone_in_class()[rows]
        steps = torch.cat(
            [
                self.refits.newton_without(torch.tensor(rows[few]))
                for few in self._parts(
                    len(rows), "rows left out", self.refits.rows_at_once()
                )
            ]
        )
        other_models = {}
        for number in np.flatnonzero(alone):
            steps[number] = torch.nan
            weights = self._weights.copy()
            weights[rows[number]] = 0
            other_models[int(number)] = self._retrained(weights)
        return Moved(steps, other_models)

    def _alone_in_class(self):
        """Say which rows are the only ones of their class that count."""
        if self._classes is None:
            return np.zeros(len(self._weights), dtype=bool)
        present = self._weights > 0
        counts = np.bincount(self._codes[present], minlength=len(self._classes))
        return present & (counts[self._codes] == 1)

    def parameter_change(self, moved):
        """Return changes of the parameters, (k, P), outputs one after the other."""
        if not moved.retrained:
            changes = self.refits.parameters(moved.steps)
            return changes.permute(0, 2, 1).flatten(1)
        raise ValueError(
            f"Weights {sorted(moved.retrained)[:5]} leave a class without rows: the "
            "model then has other parameters. Keep a row of each class."
        )

    def parameter_names(self, features):
        """Return the names of the parameters, from those of the columns."""
        return self.trained.parameter_names(features)

    def output_changes(self, moved, X):
        """Return the changes (k, q, C) of the outputs of queries."""
        linear = self.trained.linear_outputs(X)
        present = self.trained.link(linear)
        rows = self.trained.query_rows(self.refits, X)
        return self._outputs(moved, linear, rows, X) - present

    def _outputs(self, moved, linear, rows, X):
        """Return outputs (k, q, C) of queries, as the loss takes them."""
        changes = output_changes(rows, moved.steps)
        outputs = self.trained.link(linear + changes)
        for i, model in moved.retrained.items():
            outputs[i] = model.outputs(X)
        return outputs

    # ----------------------------------------------------------------- queries
    def ask(self, X, y, outcome, n_steps):
        """Prepare queries for at most so many steps at once."""
        return ExactQueries(self, X, y, outcome)

    # ----------------------------------------------------------------- verdict
    def said(self):
        """Return a line on how it is refitted."""
        plan = self.plan
        how = ", ".join(f"{method} by {way}" for method, way in self.removal.items())
        chosen = self.trained.recipe()
        what = "" if chosen is self.trained.estimator else f"; kept as {chosen!r}"
        return f"solver {plan.solver}: {plan.reason}; {how}{what}"

    def refitted(self, row_weights):
        """Return where weights of the rows lead, by refits."""
        other = copy.copy(self)
        other.removal = dict.fromkeys(self.removal, "refit")
        return other.steps(row_weights, checked=False)

    def leverages(self):
        """Return the share (n,) that each row has in its own output; None for cg."""
        return None if self.plan.solver == "cg" else self.refits.leverages()

    def sign_changes(self, moved):
        """Return the share of coefficients that become 0, or cease to be, in refits."""
        objective = self.refits.objective
        if not getattr(objective, "has_l1", False):
            return 0.0
        before = objective.params.sign()
        known = moved.steps[moved.steps.isfinite().flatten(1).all(dim=1)]
        after = (objective.params + known).sign()
        return float((after != before).any(dim=0).double().mean())

    def distance_to_optimum(self):
        """Return how far the solver stopped from the optimum, in effects of a row.

        That is the length of the step to the optimum, over the mean of those without
        single rows; lengths are root mean squares of the changes of training outputs.
        """
        refits, by_iteration = self.refits, self.plan.solver == "cg"
        if not bool(refits.left.any()):
            return 0.0
        n_wanted = _N_ITERATED if by_iteration else _N_COMPARED
        rows = spread(len(self._weights), n_wanted)
        rows = rows[(self._weights[rows] > 0) & ~self._alone_in_class()[rows]]
        if not len(rows):
            return 0.0
        left = torch.where(refits.active, refits.left, 0.0)[None]
        if by_iteration:
            without = np.repeat(self._weights[None], len(rows), axis=0)
            without[np.arange(len(rows)), rows] = 0
            steps = refits.influence_steps(torch.tensor(without))
            missing = refits.solve_without_factor(left, refits.row_weights, 1.0)
        else:
            steps = refits.newton_without(torch.tensor(rows))
            missing = refits.solve_whole(left, torch.ones(1, dtype=torch.double))
        outputs = refits.objective.rows.outputs
        lengths = outputs(steps).square().mean(dim=(1, 2)).sqrt()
        typical = float(lengths[lengths.isfinite()].mean())
        return float(outputs(missing).square().mean().sqrt()) / max(typical, 1e-300)

    def warn_if_loose(self):
        """Warn where retraining without a row is noise at the solver's tolerance."""
        distance = self.distance_to_optimum()
        if distance > NOISY:
            ours = (
                "and these attributions are of where it stopped, not of the optimum"
                if distance > FAR
                else "though these attributions are not, which keep what it left"
            )
            fitted = getattr(self.trained.estimator, "coef_", None)
            first = (
                "Give it X in double precision, as its solver rounds like X, and"
                if getattr(fitted, "dtype", None) == np.float32
                else "Use"
            )
            warnings.warn(
                f"{self.trained.name} stopped {distance:.2g} times as far from its "
                "optimum as a row, left out, moves it: leave-one-out of such fits is "
                f"noise, {ours}. {first} a smaller tol, such as 1e-10, and a max_iter "
                "to reach it; or it was fitted to other rows or weights than these.",
                FaithfulnessWarning,
                stacklevel=7,
            )


def output_changes(rows, steps):
    """Return the changes (k, q, C) of linear outputs of queries."""
    if torch.is_tensor(rows):
        return torch.einsum("qd,kdc->kqc", rows, steps)
    return rows.outputs(steps)


class ExactQueries:
    """Queries of such a model: their outcomes, and attributions to its units.

    Parameters
    ----------
    exact : ExactModel
    X, y : ndarray
        Queries.
    outcome : str or callable
    """

    def __init__(self, exact, X, y, outcome):
        self._exact, self._X = exact, X
        trained = exact.trained
        self._linear = trained.linear_outputs(X)
        self._rows = trained.query_rows(exact.refits, X)
        self._targets = trained.encode(y, self._linear)
        self._outcome = trained.loss.outcome(outcome)
        self._of_set = isinstance(self._outcome, SetMeasure)

    def _measure(self, outputs):
        """Return outcomes (..., q) of outputs (..., q, C); (..., 1) of a set."""
        targets = self._targets
        return self._outcome(
            outputs, targets.expand(*outputs.shape[:-2], *targets.shape)
        )

    def present_outcomes(self):
        """Return the outcomes (q,) of the model as it is."""
        return self._measure(self._exact.trained.link(self._linear)).numpy()

    def outcomes(self, moved):
        """Return the outcomes (k, q) where weights of the rows lead."""
        size = max(1, _AT_ONCE // max(1, self._linear.numel()))
        found = [
            self._measure(
                self._exact._outputs(moved[part], self._linear, self._rows, self._X)
            )
            for part in chunks(len(moved), size)
        ]
        return torch.cat(found).numpy()

    def _slopes(self):
        """Return the gradients (q, C) of the outcomes in the linear outputs."""
        link = self._exact.trained.link
        if self._of_set:
            return set_slope(self._outcome, self._targets, self._linear, link)
        return torch.func.grad(lambda f: self._measure(link(f)).sum())(self._linear)

    def attributions(self, without_each):
        """Return outcome minus outcome without each unit, (q, n_units)."""
        exact = self._exact
        if exact.solves_queries:
            return self._solved_for_queries()
        n_units, parts = len(exact.units), []
        size = max(1, _AT_ONCE // max(1, self._linear.numel()))
        if without_each is None:
            size = min(size, exact.refits.rows_at_once())
        first_order = exact.removal["attribute"] == "influence"
        slopes = self._slopes() if first_order else None
        present = None if first_order else self.present_outcomes()
        for part in chunks(n_units, size):
            moved = without_each[part] if without_each else exact.without_units(part)
            if first_order:
                lost = -(output_changes(self._rows, moved.steps) * slopes).sum(dim=-1)
                lost = lost.sum(dim=-1, keepdim=True) if self._of_set else lost
                parts.append(lost.numpy())
            else:
                parts.append(present - self.outcomes(moved))
        return np.concatenate(parts).T

    def _solved_for_queries(self):
        """Return attributions at first order without any unit's step."""
        exact, refits, slopes = self._exact, self._exact.refits, self._slopes()
        units, shape = exact.units, refits.objective.params.shape
        n_outcomes = 1 if self._of_set else len(self._linear)
        attributions = np.empty((n_outcomes, len(units)))
        per_query = 8 * 12 * (refits.outputs.numel() + shape.numel())
        at_once = max(1, int(memory_cap() / 4 / per_query))
        for part in chunks(n_outcomes, at_once):
            rows, cotangents = self._rows, slopes[None]
            if not self._of_set:
                index = torch.arange(n_outcomes)[part]
                rows = rows.take(index)
                cotangents = torch.diag_embed(slopes[index].T).permute(1, 2, 0)
            solved = refits.solve_without_factor(
                rows.gradient(cotangents), refits.row_weights, 1.0
            )
            images = refits.objective.rows.outputs(solved)
            effects = (images * refits.residuals).sum(dim=-1)
            pull = (solved * refits._pull).sum(dim=(1, 2))
            for chunk in chunks(len(units), refits.batch_size()):
                weights = torch.tensor(np.asarray(units[chunk], dtype=np.float64))
                row_weights = refits.objective.weighting(weights)
                scale = refits.objective.scale(weights)
                gradient = effects @ row_weights.T + pull[:, None] * scale
                attributions[part, chunk] = gradient.numpy()
        return attributions


def chosen_removal(removal, refits, units):
    """Return how units are left out by each method: what "auto" stands for.

    Where no Hessian is factored, single rows are left out at first order: a Newton
    step would need the leverage of each. Refits are for tasks, and where a Newton step
    would miss, if they are not too much work.
    """
    if removal != "auto":
        return dict.fromkeys(("attribute", "predict_outcomes"), removal)
    attribute = "newton"
    if refits.plan.solver == "cg":
        attribute = "influence"
    elif not refits.is_smooth or units.largest > 1:
        few = refits.work_of_refits(len(units)) <= _MUCH_WORK
        attribute = "refit" if few else "newton"
    return {"attribute": attribute, "predict_outcomes": "refit"}
