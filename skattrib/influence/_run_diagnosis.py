"""How far to trust the derivatives of training runs."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from skattrib._docstrings import fill_in
from skattrib._validation import as_tensor, draw_seeds, memory_cap
from skattrib._verdict import SIZE_WRONG, halves_findings, judged, scale_hint
from skattrib.base import ATTRIBUTOR_DOCS
from skattrib.engine._functional import spread
from skattrib.engine._tangent import tangents
from skattrib.engine._training import train_stack
from skattrib.exceptions import FaithfulnessWarning
from skattrib.influence._prior_means import CHAOTIC, DISAGREE
from skattrib.influence._system_noise import (
    apart,
    nudged_runs,
    system_findings,
    system_noise,
)
from skattrib.models._answers import LastAnswer
from skattrib.models._datasets import with_targets
from skattrib.models._network import TrainingProblem

# Units whose removal is followed, spread over all.
N_UNITS = 16
# Past these the verdict is bad, or trust ends at the order.
_EXPLODING_LIMIT, _LDS_LIMIT, _SECOND_ORDER_LIMIT = 0.25, 0.3, 0.5
_SLOPES = (0.5, 2.0)
# Times as large as without parameters that hardly had a gradient: most is theirs.
_INERT_LIMIT = 2.0


def warn_if_exploding(exploded: NDArray[np.bool_], finite: NDArray[np.bool_]) -> None:
    """Warn if runs, (n_runs, q), are left out, or an average rests on few of them."""
    share = float(exploded.mean())
    n_lost = int((~finite).any(axis=1).sum())
    if n_lost:
        warnings.warn(
            f"Derivatives of {n_lost} of {len(finite)} runs are not finite for some "
            "queries: these runs are left out for them. Lower the learning rate, or "
            "set clip_norm.",
            FaithfulnessWarning,
            stacklevel=6,
        )
    if share > _EXPLODING_LIMIT:
        warnings.warn(
            f"Derivatives of {share:.0%} of the runs are far too large: do not rely on "
            "an average over them. Lower the learning rate, warm up, or use a smooth "
            "activation.",
            FaithfulnessWarning,
            stacklevel=6,
        )


def warn_if_disagreeing(agreement: float) -> None:
    """Warn, while fitting, if the halves of the runs do not agree."""
    if agreement < CHAOTIC:
        warnings.warn(
            f"The runs disagree (agreement_={agreement:.2f}): training is chaotic, and "
            "the kernel of equal labels says about as much as any attribution. Lower "
            "the learning rate, or average the weights of the model (average='ema'); "
            "retrained halves (n_halves) help little.",
            FaithfulnessWarning,
            stacklevel=8,
        )
    elif agreement < DISAGREE:
        warnings.warn(
            f"The runs disagree (agreement_={agreement:.2f}): training is rough, and "
            "attributions rank retrained models less well than they could. Lower the "
            "learning rate, average the weights of the model (average='ema'), or "
            "retrain more halves (n_halves).",
            FaithfulnessWarning,
            stacklevel=8,
        )


def warn_if_inert_counts(size: float, without: float) -> None:
    """Warn, while fitting, if inert parameters make a derivative so much larger."""
    if not size <= _INERT_LIMIT * without:
        times = f"{size / without:.1f} times" if 0 < without < size else "far"
        warnings.warn(
            f"Derivatives of the run are {times} as large as without parameters that "
            "hardly had a gradient, and these are valid for tiny weights only. Pass "
            "inert=0.01, which takes them not to move.",
            FaithfulnessWarning,
            stacklevel=9,
        )


def removal_errors(
    problem: TrainingProblem,
    weights: Tensor,
    directions: Tensor,
    *,
    verbose: int = 0,
) -> Bunch:
    """Follow removals of units along the run, to second order, and repeat it without.

    A second derivative foretells what the first one misses only where the run is
    smooth: it sees no kink. Runs without the units see all of it, and where they can be
    one stack take a tenth of the time. All are of the weights: running statistics are
    averages of what rows feed them, and far better predicted.

    Parameters
    ----------
    weights : Tensor of shape (n,)
        Of the rows.
    directions : Tensor of shape (r, n)
        The part of them that belongs to each unit.
    verbose : int
    """
    run = (problem.model, problem.loss, problem.recipe, problem.X, problem.targets)
    cap = {"memory_bytes": memory_cap(), "verbose": verbose}
    trained = slice(problem.model.n_params)
    try:
        first, second = (
            found[:, trained] for found in tangents(*run, weights, directions, **cap)
        )
        (plain,) = tangents(*run, weights, directions, order=1, plain_sgd=True, **cap)
        plain = plain[:, trained]
    except (NotImplementedError, RuntimeError):
        # a layer that forward mode or vmap cannot take
        return Bunch(second_order_error=None, optimizer_mismatch=None, error_split=None)

    without = torch.cat([weights[None], weights - directions])
    ends = train_stack(*run, without, **cap).params[:, trained]
    change = ends[1:] - ends[0]
    beyond, mismatch = second / 2, plain - first
    parts = {
        "optimizer_mismatch": mismatch,
        "first_order": beyond,
        "remainder": change + first - beyond,
        "exact": change + first,
        "sgd": change + plain,
    }
    return Bunch(
        second_order_error=_median_ratio(beyond, first),
        optimizer_mismatch=_median_ratio(mismatch, first),
        error_split=Bunch(
            **{name: _median_ratio(part, change) for name, part in parts.items()}
        ),
    )


def _median_ratio(part: Tensor, whole: Tensor) -> float:
    """Return the median of units' norms of a part over those of the whole.

    A unit that changes nothing, as it has no weight or is in no minibatch, is none.
    """
    sizes = part.norm(dim=1), whole.norm(dim=1)
    known = (sizes[0] != 0) | (sizes[1] != 0)
    if not known.any():
        return 0.0
    tiny = torch.finfo(whole.dtype).tiny
    ratios = sizes[0][known] / sizes[1][known].clamp(min=tiny)
    # overflow counts as an infinite error
    return float(np.median(ratios.nan_to_num(torch.inf, torch.inf).cpu().numpy()))


def run_verdict(figures: Bunch, *, at_full_data: bool, hint: str = "") -> Bunch:
    """Judge the figures in a sentence, with a hint; warn if they are bad."""
    against: list[str] = []
    share, slope, lds = (
        figures[name] for name in ("exploding_share", "calibration_slope", "lds")
    )
    in_favour = [f"{share:.0%} of the runs explode"]
    agreement = figures.get("agreement")
    if agreement is not None:
        found = f"the halves of the runs agree to {agreement:.2f}"
        if agreement < CHAOTIC:
            against.append(f"{found}: training is chaotic (lower the learning rate)")
        elif agreement < DISAGREE and lds is None:  # retrained models know better
            against.append(f"{found} (lower the learning rate, or retrain halves)")
        else:
            in_favour.append(found)
    if share > _EXPLODING_LIMIT:
        against.append(
            f"{share:.0%} of the runs have derivatives that are far too large "
            "(lower the learning rate, or warm up)"
        )
    if lds is not None and lds < _LDS_LIMIT:
        against.append(f"retrained outcomes rank with {lds:.2f}")
    corrected = figures["coverage"] is not None
    in_favour.extend(system_findings(figures, against, corrected))
    in_favour.extend(halves_findings(figures, against))
    second_order, split = figures.second_order_error, figures.error_split
    if at_full_data and second_order is not None and second_order > _SECOND_ORDER_LIMIT:
        against.append(
            f"removals bend away from the straight line by {second_order:.0%} of it "
            "(lower the learning rate, raise eps, or warm up)"
        )

    trust = "Trust"
    if slope is not None:
        in_favour.append(f"outcomes move {slope:.2f} times as far as predicted")
        if not _SLOPES[0] <= slope <= _SLOPES[1]:
            trust = SIZE_WRONG
    if at_full_data and split is not None:
        found = f"without a unit the weights end {split.exact:.0%} off the prediction"
        if split.exact > _SECOND_ORDER_LIMIT:
            trust = SIZE_WRONG
            found += (
                ", so that sizes are wrong (lower the learning rate; smooth "
                "activations bend less than ReLU)"
            )
        in_favour.append(found)
    elif at_full_data:
        in_favour.append(
            "removals of units could not be followed, as torch has no forward "
            "derivatives of this run (n_retrainings retrains models)"
        )
    return judged(figures, against, in_favour, trust, hint)


class DiagnosesRuns:
    """Methods of an attributor that says how far the derivatives of its runs go.

    It has what `AdamWInfluence` learns.
    """

    @fill_in(ATTRIBUTOR_DOCS)
    def diagnose(self, X, y=None, n_retrainings=0, *, system=False):
        """Say how far the attributions can be trusted, and why not.

        Parameters
        ----------
        %(diagnosed)s
        system : bool, default=False
            Whether to repeat the runs from starts that differ by rounding.

        Returns
        -------
        Bunch
            With these entries.

            - exploding_share: share of runs and queries whose attributions are more
              than ten times as large as the median run's.
            - agreement: `agreement_`, how well the halves of the runs agree.
            %(halves_figures)s
            - second_order_error: along the run on all units: how far the trained
              weights go beyond the straight line when a unit is removed, as a share
              of it, by the second derivative. Median of up to 16 units. It foretold
              0.92 to 0.94 of the error for one tanh network on digits
              and two thirds for one on wine (``benchmarks.runs.second_order``); with
              ReLU it misses most, as no derivative sees a kink: see
              error_split.exact. None if torch has no forward derivatives of the run,
              as are the next two.
            - optimizer_mismatch: share of the straight line that is wrong if plain
              SGD is taken to have made the steps.
            - error_split: the run is repeated without each of these units, which
              takes less time than the second derivative where runs can be trained as
              one stack, as those of `TorchClassifier`. Errors of predictions of the
              trained weights, as shares of their change: "exact", of the straight
              line; its two parts "first_order" (half the second derivative) and
              "remainder"; "optimizer_mismatch", and all three together, "sgd".
            %(system_figures)s
            - trustworthy, verdict: whether the order of attributions can be trusted,
              and a sentence.

        Warns
        -----
        FaithfulnessWarning
            If the verdict is bad.
        """
        check_is_fitted(self, "n_units_")
        X, y = with_targets(X, y, "diagnose")
        X, y, outcome = self._check_finite_query(X, y)
        state = self._swept(X, y, outcome).state
        figures = Bunch(exploding_share=float((state > 0).mean()))
        figures.agreement = self.agreement_
        figures.update(self._held_out(X, y, outcome))
        if n_retrainings:
            figures.update(self._calibrate(X, y, outcome, n_retrainings))
        figures.update(self._removal_errors())
        figures.system = self._system_noise(X, y, outcome) if system else None

        hint = scale_hint(self._features) + self._few_units_hint()
        return run_verdict(figures, at_full_data=self.inclusion_ == 1, hint=hint)

    def _system_noise(self, X, y, outcome):
        self._say("runs are repeated from starts that differ by rounding")
        other = copy.copy(self)
        other._last_sweep = LastAnswer()
        seeds = draw_seeds(self._fit_seed, len(self._runs))
        both = zip(self._runs, seeds, strict=True)
        other._runs = [nudged_runs(self._derivatives, *one) for one in both]
        queries = self._derivatives.queries(X, y, outcome)
        ends = [
            apart(one.recipe.initial, one.params, again.params)
            for one, again in zip(self._runs, other._runs, strict=True)
        ]
        return system_noise(
            self._attribute(X, y, outcome)[0],
            other._attribute(X, y, outcome)[0],
            self._run_outcomes(queries),
            other._run_outcomes(queries),
            np.concatenate(ends),
        )

    def _removal_errors(self):
        problem = self._derivatives.problem
        units = spread(self.n_units_, N_UNITS)
        of_unit = np.arange(self.n_units_) == units[:, None]
        everything = as_tensor(self._own_run.weights, problem.X)
        removed = everything - as_tensor(self._unit_weightings(of_unit), problem.X)
        weights = problem.weighted(everything)[0]
        directions = weights - problem.weighted(removed)
        return removal_errors(problem, weights, directions, verbose=self.verbose)
