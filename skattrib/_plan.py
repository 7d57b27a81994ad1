"""What attributing a model will take and give, before anything is trained."""

import warnings
from numbers import Integral

import pandas as pd
from sklearn.base import clone
from sklearn.utils._param_validation import HasMethods, Interval, validate_params

from skattrib._make import ATTRIBUTORS
from skattrib.base import BaseAttributor
from skattrib.models._as_model import as_model

#: What is known of how well attributions rank retrained models: linear datamodeling
#: scores of the defaults, from the manual's pages of measurements.
FAITHFULNESS = {
    "DualInfluence": "linear models: exact; networks: second to AdamWInfluence",
    "AdamWInfluence": "best for networks while agreement_ is high; intervals hold",
    "KernelSurrogateAttributor": "few units: near retraining itself; rows: low",
    "LinearSurrogateAttributor": "the baseline that others must beat",
    "RISEValuator": "finds similar rows; says nothing of removal",
    "TreeInfluence": "halves, groups of rows; one row left out of boosting is chaos",
}


@validate_params(
    {
        "model": [HasMethods(["fit", "get_params"])],
        "X": "no_validation",
        "y": "no_validation",
        "tasks": "no_validation",
        "n_queries": [Interval(Integral, 1, None, closed="left")],
    },
    prefer_skip_nested_validation=False,
)
def plan(model, X, y=None, *, tasks=None, n_queries=10):
    """Tell what attributing a model will take and give, before it is trained.

    A few steps of training and of a sweep are timed on this machine; other work is
    counted. It takes a second or two for each attributor.

    Parameters
    ----------
    model : estimator or attributor
        What is to be attributed, fitted or not, for a row of each attributor of the
        package that takes it, with defaults; or an attributor with its parameters.
    X : array-like of shape (n_samples, n_features) or (n_samples, ...)
        Training rows; or a Dataset of torch, which brings the targets.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs), default=None
        Their targets; None only with a Dataset.
    tasks : array-like of shape (n_samples,) or None, default=None
        Unit of each row, as ``fit`` takes it.
    n_queries : int, default=10
        Queries that one call of ``attribute`` will ask about.

    Returns
    -------
    DataFrame
        A row for each attributor, the one to begin with first. Columns:

        - estimand: what an attribution will be.
        - trainings: models trained by ``fit``, that of all units among them.
        - seconds: CPU seconds of ``fit`` and one call of ``attribute``; within a factor
          of about two. NaN if they are not known beforehand.
        - megabytes: memory needed at once, beyond the rows.
        - way: what is done, what "auto" chooses and why; or why it is refused.
        - faithfulness: what is known of its order of retrained models.

    Raises
    ------
    ValueError
        If the data do not fit the model.
    UnsupportedModelError
        If no attributor takes it.

    See Also
    --------
    make_attributor : Returns the attributor to begin with.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from skattrib import TorchClassifier, plan
    >>> X, y = load_iris(return_X_y=True)
    >>> table = plan(TorchClassifier(max_epochs=20, random_state=0), X, y)
    >>> table["trainings"].to_dict()["DualInfluence"]
    1.0
    """
    if isinstance(model, BaseAttributor):
        rows = {type(model).__name__: _planned(clone(model), X, y, tasks, n_queries)}
        return _table(rows)
    found = as_model(model)
    if hasattr(found, "check"):
        found.check()
    names = found.attributors()
    if not names:
        raise found.lacks("plan", "a way to train it again, or gradients")
    first = [name for name in found.first_attributors if name in names]
    rows, errors = {}, []
    for name in dict.fromkeys([*first, *names]):
        attributor = ATTRIBUTORS[name](model, random_state=0)
        try:
            rows[name] = _planned(attributor, X, y, tasks, n_queries)
        except ValueError as error:
            errors.append(error)
            rows[name] = {"way": f"refused: {error}"}
    if len(errors) == len(rows):  # the data, probably
        raise errors[0]
    return _table(rows)


def _planned(attributor, X, y, tasks, n_queries):
    """Return the row of an attributor, which is changed."""
    attributor._validate_params()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they come when it is fitted
        job = attributor._prepared_fit(X, y, tasks, {})
        model, rows = job.parts.model, (job.features, job.targets)
        return vars(attributor._whole_cost(model, *rows, n_queries))


def _table(rows):
    columns = ["estimand", "trainings", "seconds", "megabytes", "way"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    for column in columns[1:4]:
        table[column] = table[column].astype(float)
    table["faithfulness"] = [FAITHFULNESS.get(name, "") for name in table.index]
    table.index.name = "attributor"
    return table
