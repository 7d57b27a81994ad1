"""Influence by differentiating the training runs themselves."""

from numbers import Integral, Real

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils import Bunch
from sklearn.utils._param_validation import Interval, StrOptions

from skattrib._docstrings import fill_in
from skattrib._posterior._gaussian import Knowledge
from skattrib._validation import as_tensor, float_dtype, memory_cap
from skattrib._verdict import few_units_hint
from skattrib.base import ATTRIBUTOR_DOCS, BaseAttributor
from skattrib.engine._adjoint import check_differentiable
from skattrib.engine._losses import SetOutcome
from skattrib.engine._true_derivatives import check_true
from skattrib.influence._aggregation import AGGREGATIONS, finite_mean
from skattrib.influence._costs import (
    sweep_megabytes,
    sweep_seconds,
)
from skattrib.influence._inclusion import TrainedOnSubsets
from skattrib.influence._prior_means import (
    EXACT,
    N_ROWS,
    NOT_FINITE,
    Averages,
    Weighed,
    averaged,
)
from skattrib.influence._run_agreement import AgreementOfRuns
from skattrib.influence._run_derivatives import (
    RunDerivatives,
    Runs,
    check_reproduced,
    derivatives_by_workers,
    own_seeds,
)
from skattrib.influence._run_diagnosis import DiagnosesRuns, warn_if_exploding
from skattrib.models._answers import LastAnswer, answered_by_query
from skattrib.models._as_model import as_model
from skattrib.models._costs import Cost, training_seconds
from skattrib.models._kept_models import trained_models
from skattrib.models._network import check_seeds, untrained
from skattrib.models._retraining import Trainer

__all__ = ["AdamWInfluence"]

# Units absent from a run keep this weight. At 0, a row that is alone with a non-zero
# input meets parameters that Adam has never moved: its derivative there is 1/eps.
_ABSENT = 0.05
# In these runs, parameters whose second moment is this small relative to the usual one
# count as unmoved.
_INERT = 0.01
# The same, in all runs, of adapters: half of them begin at zero, so that the other half
# has no gradient in the first steps, in which Adam moves what has one by its full rate.
_INERT_ADAPTERS = 0.03
# Halves that are retrained for each run: the best ranking at its cost for ten queries,
# and near it for hundreds (benchmarks.posterior.frontier).
_HALVES_PER_RUN = 32


@fill_in(ATTRIBUTOR_DOCS)
class AdamWInfluence(DiagnosesRuns, AgreementOfRuns, TrainedOnSubsets, BaseAttributor):
    """Derivatives of the training run as it happened, optimizer included.

    The run is differentiated in the weight of every row by one reverse sweep through
    its steps, exact for each of `skattrib.optimizers` (AdamW, Adam, SGD, RMSprop, Muon
    or one of your own), schedules, clipping and decay included. At weights of 1 that
    answers leave-one-out questions. For subsets, runs on random halves are trained as
    one stack, differentiated each, and averaged.

    Parameters
    ----------
    estimator : TorchClassifier, TorchRegressor or None, default=None
        Model to train and attribute; a fitted one inside
        `sklearn.frozen.FrozenEstimator`, with a record of its training, is taken as
        it is. None builds one that suits y. Not with ``batch_size=1``, where weights
        do nothing. An MLPClassifier or MLPRegressor of scikit-learn, trained by "adam"
        or "sgd", is taken too: its training is repeated here, for the record.
    inclusion : "auto" or float, default="auto"
        Chance in (0, 1] of a unit to be in a run that is differentiated. 1 takes the
        run on all units alone. "auto": 0.5, or 1 if the estimator is frozen.
    n_trajectories : int, default=16
        Runs differentiated if `inclusion` is below 1; for 0.5 in pairs of
        complementary halves, so even. Fewer where units have fewer subsets.
    aggregation : {"trimmed_mean", "median", "mean"}, default="trimmed_mean"
        How runs are averaged. Some runs pass through unstable steps and have
        derivatives hundreds of times too large: "trimmed_mean" leaves out a quarter
        of the runs at either end, entry by entry, more where more of them explode.
    dynamics : {"recorded", "sgd"}, default="recorded"
        "sgd" differentiates the same runs as if plain SGD had taken the steps: the
        baseline that this method corrects.
    hessian : {"exact", "empirical_fisher"}, default="exact"
        Curvature of the minibatch loss; "empirical_fisher" replaces it by second
        moments of gradients.
    inert : "auto" or float, default="auto"
        Parameters whose gradients have been at most this fraction of the usual size
        are taken not to move while runs are differentiated. "auto": 0.03 of adapters of
        a language model, which begin at zero; of others 0.01, or 0 where
        all units are present.
    n_models : int, default=1
        Training seeds to average over: the outcome is then the mean over these seeds,
        in `score` too. Each has `n_trajectories` runs.
    %(outcome)s
    %(halves)s
    %(retraining)s
    memory : str, joblib.Memory or None, default=None
        Where the runs and retrained outcomes are remembered, so that an interrupted
        fit goes on; needs an int `random_state`. Holds whole models.
    n_jobs : int or None, default=None
        Workers among which runs, and the sweeps through them, are divided. The
        numbers are the same, up to rounding.
    random_state : int, RandomState instance or None, default=None
        Seeds what the estimator leaves unseeded, the runs and the weightings of
        `score`.
    verbose : int, default=0
        Shows progress when above 0.

    Attributes
    ----------
    estimator_ : estimator
        Model fitted on all units.
    inclusion_ : float
        Chance of a unit to be in a run.
    weights_ : ndarray of shape (n_runs, n_units)
        Weights of the units in each run: 1 if present, 0.05 if absent; the same for
        all seeds.
    agreement_ : float or None
        How well attributions of up to 12 training rows by one half of the runs
        correlate with those by the other, of fewer than 16 as if each half had eight:
        at 0.75 derivatives of single runs are smooth, below 0.5 they are rough, and
        below 0.15 training is chaotic. None at ``inclusion=1``, of a single run, and of
        few units.
    %(halves_found)s
    X_train_ : ndarray of shape (n_samples, n_features)
        Training rows.
    %(units)s

    See Also
    --------
    DualInfluence : Refits the tangent instead; cheaper where training is long.

    Notes
    -----
    Adam's step hardly depends on the size of a gradient but on its direction, so the
    derivative at weight 0 of a row that is alone with some input is practically
    infinite. Absent units therefore keep a weight of 0.05 in the runs, and parameters
    that have hardly had a gradient are taken not to move; without that, one run in ten
    had derivatives ten or more times too large, which spoils averages. That holds for
    all optimizers that divide by the size of gradients; SGD does not.

    Where training is at the edge of stability, which deep networks with a large
    learning rate often are, the runs disagree: their derivatives are so rough that an
    average over them is mostly noise. Where halves of at least 8 runs agree to 0.75,
    attributions are the average; of 16 runs that is an `agreement_` of 0.75, of 8 one
    of 0.86. Else they are a mixture of it and of two that are smoother, by how well the
    halves of the runs agree in each: derivatives of a damped adjoint, whose curvature
    is 0.8 times as large and whose steps divide by nothing far below the usual; and
    such derivatives of the outputs at weights averaged over the run, along the slope
    that the outcome has in the outputs at its end. All are then of the size of the
    first whose `agreement_` is 0.75, else of that of averaged weights;
    retrained halves tell each query how much of each is right, and what size. That is
    for ``inclusion`` below 1, ``dynamics="recorded"`` and ``hessian="exact"``.

    A minibatch's loss is Σ w ℓ / Σ w, so a row's weight also moves the share of the
    others. Runs are replayed from their recipe at query time: states are kept under
    scikit-learn's ``working_memory`` only.

    The run of a multilayer perceptron of scikit-learn keeps the number of its steps,
    its minibatches and its penalty in each of them, for any weights of the rows.
    Retraining in `score` repeats it, where its own ``fit`` would shuffle fewer rows.

    References
    ----------
    Influence of training data along AdamW's trajectory, arXiv:2605.18814.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import AdamWInfluence, TorchClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = TorchClassifier(max_epochs=20, random_state=0)
    >>> influence = AdamWInfluence(clf, n_trajectories=4, random_state=0)
    >>> influence.fit(X[::3], y[::3]).attribute(X[1::30], y[1::30]).shape
    (5, 50)
    """

    _parameter_constraints: dict = {
        **BaseAttributor._parameter_constraints,
        "inclusion": [StrOptions({"auto"}), Interval(Real, 0, 1, closed="right")],
        "n_trajectories": [Interval(Integral, 1, None, closed="left")],
        "aggregation": [StrOptions(set(AGGREGATIONS))],
        "dynamics": [StrOptions({"recorded", "sgd"})],
        "hessian": [StrOptions({"exact", "empirical_fisher"})],
        "inert": [StrOptions({"auto"}), Interval(Real, 0, None, closed="left")],
        "n_models": [Interval(Integral, 1, None, closed="left")],
        "n_halves": [
            StrOptions({"auto"}),
            *BaseAttributor._parameter_constraints["n_halves"],
        ],
    }

    _measures_sets = True

    def __init__(
        self,
        estimator=None,
        *,
        inclusion="auto",
        n_trajectories=16,
        aggregation="trimmed_mean",
        dynamics="recorded",
        hessian="exact",
        inert="auto",
        n_models=1,
        outcome="auto",
        n_halves="auto",
        n_retrainings=32,
        retrain_size=0.5,
        memory=None,
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        self.estimator = estimator
        self.inclusion = inclusion
        self.n_trajectories = n_trajectories
        self.aggregation = aggregation
        self.dynamics = dynamics
        self.hessian = hessian
        self.inert = inert
        self.n_models = n_models
        self.outcome = outcome
        self.n_halves = n_halves
        self.n_retrainings = n_retrainings
        self.retrain_size = retrain_size
        self.memory = memory
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    # -------------------------------------------------------------------- fit
    @_fit_context(prefer_skip_nested_validation=False)
    @fill_in(ATTRIBUTOR_DOCS)
    def fit(self, X, y=None, tasks=None, **fit_params):
        """Train the model, and the runs to be differentiated.

        Parameters
        ----------
        %(fit_rows)s
        %(fit_params)s

        Returns
        -------
        self : AdamWInfluence
            Fitted attributor.

        Raises
        ------
        ValueError
            If a parameter or the data cannot be used, or the module cannot be
            differentiated twice.
        TrajectoryError
            If a frozen estimator has no record of its training, or that of an
            MLPClassifier or MLPRegressor cannot be reproduced.

        Warns
        -----
        FaithfulnessWarning
            If the record of a frozen estimator does not reproduce it, or early stopping
            held out rows; if the runs disagree, so that training is rough or chaotic;
            and if derivatives of the run on all units are mostly those of parameters
            that have hardly had a gradient. If autograd's derivatives are not those of
            what the module computes.
        """
        return self._fit(X, y, tasks, fit_params)

    def _check_estimator(self, estimator):
        model = as_model(estimator)
        model.check_run(self)
        if model.frozen:
            for name, value, only in [
                ("inclusion", self.inclusion, ("auto", 1)),
                ("n_models", self.n_models, (1,)),
            ]:
                if value not in only:
                    raise ValueError(
                        f"{name}={value} needs an estimator that can be trained; a "
                        f"FrozenEstimator is one run. Use {name}={only[-1]}."
                    )
        check_seeds(model, "n_models", self.n_models)
        if model.estimator.batch_size == 1:
            raise ValueError(
                "batch_size=1 makes weights inert: a row alone in its batch has the "
                "same gradient at any weight. Train with batch_size of at least 2."
            )
        self._check_inclusion(estimator, "n_trajectories")

    def _before_training(self, estimator, X, y):
        self.inclusion_ = self._inclusion(estimator)
        self.weights_ = self._design()
        model = as_model(estimator)
        if model.stacks:  # the layers of other networks are known
            problem = untrained(model.network(self), X, y, None)
            whose = problem.model, problem.loss, problem.X, problem.targets
            check_differentiable(*whose)
            check_true(*whose, order=1 + (self.hessian == "exact"))

    def _cost(self, estimator, X, y, n_queries):
        model = as_model(estimator)
        network = model.network(self) if model.stacks else model.alike(X, y)
        if network is None:
            seconds = training_seconds(model, None, 1, X, y)
            way = "the run is known once it is trained"
            return Cost(self._estimand(), 1, seconds, way=way)
        problem = untrained(network, X, y)
        n_runs, seconds = len(self.weights_) * self.n_models, 0.0
        repeated = self.inclusion_ < 1 or self.n_models > 1
        n_trainings = (not model.frozen) + n_runs * repeated
        if not model.frozen:
            own = problem if model.stacks else None
            seconds += training_seconds(model, own, 1, X, y)
        if not model.stacks:  # its training is repeated to be recorded
            seconds += training_seconds(model, problem, 1, X, y)
        if repeated:
            seconds += training_seconds(model, problem, n_runs, X, y)
        options = {**self._sweep_options(), "verbose": 0}
        n_swept = n_queries + (min(N_ROWS, len(X)) if self.inclusion_ < 1 else 0)
        seconds += sweep_seconds(problem, n_runs, n_swept, **options)
        # of others it may end before max_iter
        at_most = "" if model.stacks or model.frozen else "at most "
        steps = f"{at_most}{problem.recipe.n_steps} steps"
        # what agreement will say is known after training
        again = ", three times if the runs disagree" if self._can_choose() else ""
        return Cost(
            self._estimand(),
            n_trainings,
            seconds,
            sweep_megabytes(problem, n_runs, n_queries),
            f"sweeps through {n_runs} run{'s'[: n_runs != 1]} of {steps}, "
            f"for all queries together{again}",
        )

    def _estimand(self):
        if self.inclusion_ == 1:
            return (
                "derivative of the outcome in the weight of this unit, all others "
                "present"
            )
        return (
            "mean derivative of the outcome in the weight of this unit, others present "
            f"with chance {self.inclusion_:g}"
        )

    def _fit_attributor(self):
        model = as_model(self._model)
        if not model.stacks:
            # its record is made now, and what is retrained repeats it
            rows = self._features, self._targets, self._row_weights
            self._parts = self._parts.with_model(model.replayed(*rows))
            model = as_model(self._model)
        self._derivatives = RunDerivatives(model, self._features, self._targets)
        self._last_sweep = LastAnswer()
        problem = self._derivatives.problem
        whole = as_tensor(self._row_weights, problem.X)[None]
        end = problem.model.vector()[None]
        self._own_run = Runs(problem.recipe, whole.cpu(), end.cpu())
        if model.frozen:
            check_reproduced(problem, self._own_run)

        self._runs = [self._own_run]
        if self.inclusion_ < 1 or self.n_models > 1:
            trainer = Trainer(
                model.recipe(),
                self._features,
                self._targets,
                self.n_jobs,
                self.verbose,
            )
            rows = self._unit_weightings(self.weights_)
            seeds = trainer.seeds(self.n_models)
            self._say(self._few_units_hint())
            self._runs = [self._train(trainer, rows, seed) for seed in seeds]
        self.estimand_ = self._estimand()
        self._learn_agreement()

    def _design(self):
        if self.inclusion_ == 1:
            return np.ones((1, self.n_units_))
        present = self._drawn_subsets(self.n_trajectories, self.inclusion_)
        return np.where(present, 1.0, _ABSENT)

    def _train(self, trainer, rows, seed):
        blank = trainer.estimator
        problem = blank._problem(trainer.X, trainer.y, seed)
        recipe, own_stops = problem.recipe, problem.validation is not None
        # their own random numbers each: the derivative of the mean over masks
        masks = own_seeds(recipe.seed, len(rows))
        found = trained_models(
            trainer, rows, seed, self.memory, masks=masks, stops=own_stops
        )
        params, shares = as_tensor(np.array(found), recipe.initial), None
        if own_stops:  # the last number of each
            params, stops = params[:, :-1], params[:, -1].long()
            recipe = recipe.cut(int(stops.max()))
            shares = blank._shares_at(stops)
        seeds = None if masks is None else torch.tensor(masks)
        rows = as_tensor(rows, recipe.initial)
        return Runs(recipe, rows, params, seeds=seeds, shares=shares)

    def _n_seeds(self):
        return self.n_models

    def _wanted_halves(self):
        return _HALVES_PER_RUN * len(self.weights_) * (self.inclusion_ == 0.5)

    def _missed_by_errors(self):
        return "what all runs have in common"

    def _knowledge(self):
        if self.dynamics != "recorded":  # of any size
            return Knowledge()
        return Knowledge(slope=(0.9, 0.35), level=(1.7, 0.7))

    def _few_units_hint(self):
        if as_model(self._model).frozen:
            return ""
        return few_units_hint(self.n_units_, 1 + len(self.weights_) * self.n_models)

    # ---------------------------------------------------------------- queries
    def _inert_at(self, inclusion):
        """Return the size of gradients, over the usual, at which none are counted."""
        if self.inert != "auto":
            return float(self.inert)
        if self.estimator is not None and as_model(self.estimator).starts_still:
            return _INERT_ADAPTERS
        return _INERT if inclusion < 1 else 0.0

    def _sweep_options(self, inclusion=None):
        """Return how runs with so many units are differentiated."""
        inclusion = self.inclusion_ if inclusion is None else inclusion
        return {
            "dynamics": self.dynamics,
            "hessian": self.hessian,
            "inert": self._inert_at(inclusion),
            "verbose": self.verbose,
        }

    def _each_run(self, queries, by=(EXACT,)):
        """Return the attributions of every run, (n_derivatives, n_runs, q, n_units)."""
        of_rows = [
            derivatives_by_workers(
                self._derivatives,
                runs,
                queries,
                self.n_jobs,
                by=by,
                **self._sweep_options(),
            )
            for runs in self._runs
        ]
        return self._by_unit(torch.cat(of_rows, dim=1).cpu().numpy())

    def _attribute(self, X, y, outcome):
        found = self._swept(X, y, outcome)
        if len(found.state) > 1:
            warn_if_exploding(found.state > 0, found.state < NOT_FINITE)
        if found.single:
            return found.only()
        return self._of_present(*self._weighed.means(found).mixture())

    def _prior(self):
        return self._several_means

    def _several_means(self, X, y, outcome):
        """Return what `_attribute` does, or the means that it mixes, and None."""
        found = self._swept(X, y, outcome)
        if len(found.state) > 1:
            warn_if_exploding(found.state > 0, found.state < NOT_FINITE)
        if found.single:
            return found.only()
        return self._weighed.means(found), None

    def _swept(self, X, y, outcome):
        """Return the averages over the runs, of one sweep.

        The sweep is remembered: all that is asked of the same queries costs one.
        """
        question = X, y, outcome, *self._how()
        return Averages(
            *self._last_sweep(question, lambda: self._swept_by_query(X, y, outcome))
        )

    def _how(self):
        """Return what is read when queries come, and may be set anew by then."""
        inert = self._inert_at(self.inclusion_)
        return self.dynamics, self.hessian, self.aggregation, inert, self._by()

    def _by(self):
        """Return the derivatives that attributions are made of."""
        exact = self.dynamics == "recorded" and self.hessian == "exact"
        return self._weighed.derivatives if exact else Weighed().derivatives

    def _swept_by_query(self, X, y, outcome):
        whole = isinstance(outcome, SetOutcome)
        if self.memory is None or whole:
            return self._averaged(self._derivatives.queries(X, y, outcome))

        def answers(X, y):
            found = self._averaged(self._derivatives.queries(X, y, outcome))
            return Averages(*found).packed()

        n, n_runs = self.n_units_, sum(len(runs.params) for runs in self._runs)
        k = len(self._by())
        size = (2 * k * n + k * k + n_runs) * 8
        rows = answered_by_query(
            self.memory, self._identity(outcome), (X, y), answers, size
        )
        return Averages.unpacked(rows, k, n_runs)

    def _identity(self, outcome):
        """Return what answers to queries depend on."""
        problem = self._derivatives.problem
        rows = problem.model.module, problem.X, problem.targets, problem.weighting
        units = self._unit_of_row, self._row_weights
        how = *self._how(), self.inclusion_, problem.loss
        runs = [
            (run.recipe, run.weights, run.params, run.seeds, run.shares)
            for run in self._runs
        ]
        return "sweep", rows, units, how, runs, outcome

    def _averaged(self, queries):
        """Return the entries of `Averages` over the runs."""
        return averaged(self._each_run(queries, self._by()), self.aggregation)

    def _value_new(self, X_new, y_new, X, y, outcome):
        queries, by = self._derivatives.queries(X, y, outcome), self._by()
        options = self._sweep_options()
        found = [
            self._derivatives.of_new_rows(runs, queries, X_new, y_new, by, **options)
            for runs in self._runs
        ]
        each_run, n = torch.cat(found, dim=1).cpu().numpy(), len(self._features)
        units = self._by_unit(each_run[..., :n])
        each_run = np.concatenate([units, each_run[..., n:]], axis=2)
        means = Averages(*averaged(each_run[:, :, None], self.aggregation))
        if means.single:
            return means.only()[0][0, self.n_units_ :]
        mixed = self._weighed.means(means, self.n_units_).mixture()[0]
        return mixed[0, self.n_units_ :]

    def _run_outcomes(self, queries):
        """Return the outcomes of every run, (n_models, n_runs, q)."""
        outcomes = [self._derivatives.outcomes(runs, queries) for runs in self._runs]
        return torch.stack(outcomes).cpu().numpy()

    def _predict_outcomes(self, X, y, weights, outcome):
        return self._prepare(X, y, outcome)(weights)

    def _prepare(self, X, y, outcome):
        queries = self._derivatives.queries(X, y, outcome)
        attributions, _ = self._attribute(X, y, outcome)
        return self._linear(attributions, self._run_outcomes(queries))

    def _linear(self, slopes, run_outcomes):
        """Return outcomes as a linear function of weights, through the runs' mean."""
        middle = finite_mean(run_outcomes, axis=(0, 1))
        return lambda weights: (
            middle + (weights - self.weights_.mean(axis=0)) @ slopes.T
        )

    # ------------------------------------------------------- steps, verdict
    def step_attribution(self, X, y=None):
        """Attribute the outcome of each query to single steps of the training run.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_features)
            Queries.
        y : array-like of shape (n_queries,) or (n_queries, n_outputs), default=None
            Their targets; None as in `attribute`.

        Returns
        -------
        Bunch
            Of the run on all units, with these entries; sums over the steps of a row
            are its attributions for ``inclusion=1``.

            - steps: ndarray of shape (n_entries,), step of the run, from 1.
            - rows: ndarray of shape (n_entries,), row in that step's minibatch.
            - attributions: ndarray of shape (n_queries, n_entries), derivative of the
              outcome in the weight of the row at that step alone, times its weight.

        Raises
        ------
        ValueError
            If the result is larger than scikit-learn's ``working_memory``.
        """
        X, y, outcome = self._check_query(X, y)
        queries = self._derivatives.queries(X, y, outcome)
        weights = self._weights_in_batches()
        recipe = self._own_run.recipe
        batches = recipe.batches
        per_step = [len(self._features)] * recipe.n_steps
        if batches is not None:
            per_step = [len(batch) for batch in batches]
        needed = sum(per_step) * queries.n_outcomes * float_dtype(X).itemsize
        if needed > memory_cap():
            raise ValueError(
                f"{sum(per_step)} rows in {recipe.n_steps} steps for {len(X)} queries "
                f"take {needed / 2**20:.0f} MiB, over the cap of "
                f"{memory_cap() / 2**20:.0f} MiB. Ask fewer queries, or raise "
                "sklearn.set_config(working_memory=...)."
            )
        ends = np.cumsum(per_step)
        rows = np.empty(ends[-1], dtype=np.intp)
        scores_of_rows = np.empty((queries.n_outcomes, ends[-1]), dtype=float_dtype(X))

        def note(t, step_rows, scores, _, part):
            where = slice(ends[t - 1] - len(step_rows), ends[t - 1])
            rows[where] = step_rows.cpu().numpy()
            scores_of_rows[part, where] = scores[0].cpu().numpy()

        self._derivatives.derivatives(
            self._own_run,
            queries,
            on_rows=note,
            **self._sweep_options(inclusion=1),
        )
        return Bunch(
            steps=np.repeat(np.arange(1, len(ends) + 1), per_step),
            rows=rows,
            attributions=scores_of_rows * weights[rows].astype(float_dtype(X)),
        )

    def _weights_in_batches(self):
        """Return the weights (n,) of the rows in the losses of minibatches."""
        problem = self._derivatives.problem
        if not problem.weighting.additive:
            raise ValueError(
                "class_weight='balanced' moves the weights of all rows of a class with "
                "that of one, in every step: attributions of single steps say nothing "
                "then. Use attribute, or class_weight=<dict> with the same weights."
            )
        return problem.weighted(self._own_run.weights)[0].cpu().numpy()
