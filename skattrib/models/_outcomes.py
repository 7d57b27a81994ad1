"""Which outcome of a model is attributed, and whether its loss has it."""

from sklearn.base import is_classifier

from skattrib.engine._losses import LabelLoss
from skattrib.engine._losses._generalized import DecisionValue
from skattrib.models._as_model import as_model

#: What a user may name.
OUTCOMES = ("auto", "log_likelihood", "margin", "prediction", "probability")

#: What is said of prompts alone.
NO_COMPLETIONS = (
    "y is missing: a language model has no single prediction whose outcome could be "
    "measured. Use attribute(X, y) with the completions y, generated or given."
)

_REFUSED = {
    "margin": (
        "is log p_y/(1-p_y) and needs a classifier; use 'log_likelihood' or "
        "'prediction' for a regressor, 'log_likelihood' for several labels."
    ),
    "probability": (
        "is p_y and needs a classifier; use 'log_likelihood' or 'prediction' for a "
        "regressor, 'log_likelihood' for several labels."
    ),
    "prediction": (
        "needs a regressor with one output; use 'margin' for a classifier, or a "
        "callable (outputs, y) -> outcome."
    ),
}


def check_outcome(outcome, estimator, n_outputs=None, loss=None):
    """Return the name of an outcome, or the callable, that fits the estimator.

    Parameters
    ----------
    outcome : str or callable
    estimator : classifier or regressor
    n_outputs : int or None
        Columns of y; None asks the fitted estimator.
    loss : Loss or None
        What the estimator will be trained on; None asks the fitted estimator.
    """
    if callable(outcome):
        measure = getattr(outcome, "function", outcome)
        if getattr(measure, "needs_probabilities", False):
            own = as_model(estimator).loss if loss is None else loss
            if isinstance(own, DecisionValue):
                raise ValueError(
                    f"outcome={measure!r} needs probabilities, and "
                    f"{type(estimator).__name__} has none: use outcome='margin' or "
                    "soft_auroc(), which take decision values, or wrap it in "
                    "CalibratedClassifierCV(..., ensemble=False)."
                )
        return outcome
    if as_model(estimator).takes_texts and outcome in _REFUSED:
        raise ValueError(
            f"outcome={outcome!r} is not defined for texts; use 'log_likelihood' or a "
            "callable (logits, tokens) -> outcome of each token."
        )
    if outcome not in OUTCOMES:
        raise ValueError(
            f"outcome must be one of {OUTCOMES} or a callable, got {outcome!r}."
        )
    loss = as_model(estimator).loss if loss is None else loss
    if outcome == "auto":
        return loss.auto_outcome

    if n_outputs is None:
        n_outputs = getattr(estimator, "n_outputs_", 1)
    known = loss.outcomes()
    if (
        outcome in ("probability", "log_likelihood")
        and outcome not in known
        and "margin" in known
    ):
        other = ", or 'log_likelihood', minus its loss"
        raise ValueError(
            f"outcome={outcome!r} needs probabilities, and "
            f"{type(estimator).__name__} has none; use outcome='margin', the signed "
            f"decision value{other if 'log_likelihood' in known else ''}."
        )
    if outcome not in known or (outcome == "prediction" and n_outputs > 1):
        raise ValueError(f"outcome={outcome!r} {_REFUSED[outcome]}")
    return outcome


def check_own_outcome(outcome, estimator, n_outputs, loss=None):
    """Return the outcome to measure at the estimator's own predictions."""
    if as_model(estimator).takes_texts:
        raise ValueError(NO_COMPLETIONS)
    loss = as_model(estimator).loss if loss is None else loss
    if loss.own_outcome == "prediction" and not callable(outcome):
        if outcome == "log_likelihood":
            raise ValueError(
                "outcome='log_likelihood' needs y for a regressor: at the model's own "
                "prediction its gradient is zero. Use outcome='prediction', or pass y "
                "where there is one (attribute)."
            )
        outcome = loss.own_outcome if outcome == "auto" else outcome
    return check_outcome(outcome, estimator, n_outputs, loss)


def check_label_columns(model, loss, y):
    """Raise on several columns of labels, unless a classifier's loss is of these."""
    if not is_classifier(model.estimator) or y.ndim == 1 or isinstance(loss, LabelLoss):
        return
    raise ValueError(
        f"y has {y.shape[1]} columns, and {model.name} cannot be attributed on "
        "several. Fit one attributor per column, or use a TorchClassifier, which takes "
        "columns of 0 and 1 for labels."
    )
