"""Which family an estimator is of: the one place that looks at its class."""

from __future__ import annotations

import warnings
from typing import Any

from sklearn import ensemble, linear_model, svm, tree
from sklearn.frozen import FrozenEstimator
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import MultiOutputRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import nn

from skattrib._validation import check_instance
from skattrib.exceptions import FaithfulnessWarning
from skattrib.models._any import EstimatorModel
from skattrib.models._linear import (
    REASONS,
    ElasticNetModel,
    GammaModel,
    GaussianProcessModel,
    GeneralizedModel,
    KernelRidgeModel,
    LinearSVCModel,
    LinearSVRModel,
    LogisticModel,
    MultiOutputModel,
    OneVsRestModel,
    PoissonModel,
    RefusedModel,
    RidgeClassifierModel,
    RidgeModel,
)
from skattrib.models._mlp import MLPModel
from skattrib.models._network import TorchEstimator
from skattrib.models._network_family import NetworkModel
from skattrib.models._parts import Parts, is_search
from skattrib.models._protocol import Model, protocols
from skattrib.models._trees import REASONS as OF_TREES
from skattrib.models._trees import (
    WRAPPERS,
    ForestModel,
    HistModel,
    LightGBMModel,
    RefusedTrees,
    XGBoostModel,
    full_name,
)
from skattrib.models.language import CausalLanguageModel
from skattrib.models.language._family import LanguageModel
from skattrib.models.language._network import (
    TextClassifier,
    TextClassifierModel,
    TextNetwork,
    TextNetworkModel,
)

_FAMILIES: dict[type, type[Model]] = {
    TorchEstimator: NetworkModel,
    CausalLanguageModel: LanguageModel,
    TextNetwork: TextNetworkModel,
    TextClassifier: TextClassifierModel,
    linear_model.LogisticRegression: LogisticModel,
    linear_model.RidgeClassifier: RidgeClassifierModel,
    linear_model.RidgeClassifierCV: RidgeClassifierModel,
    svm.LinearSVC: LinearSVCModel,
    linear_model.LinearRegression: RidgeModel,
    linear_model.Ridge: RidgeModel,
    linear_model.RidgeCV: RidgeModel,
    linear_model.ElasticNet: ElasticNetModel,
    linear_model.ElasticNetCV: ElasticNetModel,
    linear_model.LassoCV: ElasticNetModel,
    # derived from Lasso, with a penalty on groups
    linear_model.MultiTaskElasticNet: EstimatorModel,
    linear_model.PoissonRegressor: PoissonModel,
    linear_model.GammaRegressor: GammaModel,
    linear_model.TweedieRegressor: GeneralizedModel,
    svm.LinearSVR: LinearSVRModel,
    KernelRidge: KernelRidgeModel,
    GaussianProcessRegressor: GaussianProcessModel,
    OneVsRestClassifier: OneVsRestModel,
    MultiOutputRegressor: MultiOutputModel,
    **dict.fromkeys(REASONS, RefusedModel),
    MLPClassifier: MLPModel,
    MLPRegressor: MLPModel,
    ensemble.HistGradientBoostingClassifier: HistModel,
    ensemble.HistGradientBoostingRegressor: HistModel,
    ensemble.RandomForestClassifier: ForestModel,
    ensemble.RandomForestRegressor: ForestModel,
    ensemble.ExtraTreesClassifier: ForestModel,
    ensemble.ExtraTreesRegressor: ForestModel,
    tree.DecisionTreeClassifier: ForestModel,
    tree.DecisionTreeRegressor: ForestModel,
}
# Families of libraries that need not be there.
_BY_NAME: dict[str, type[Model]] = {
    **dict.fromkeys(OF_TREES, RefusedTrees),
    "lightgbm.sklearn.LGBMClassifier": LightGBMModel,
    "lightgbm.sklearn.LGBMRegressor": LightGBMModel,
    "xgboost.sklearn.XGBClassifier": XGBoostModel,
    "xgboost.sklearn.XGBRegressor": XGBoostModel,
}


def register_model(estimator_class: type, family: type[Model] | None = None) -> Any:
    """Let estimators of a class, and of those derived from it, be of a family.

    Parameters
    ----------
    estimator_class : type
        Class of the estimators.
    family : type or None, default=None
        Class that is made of an estimator, and implements `Retrainable`,
        `Differentiable` or `Recorded`. None: to be used as a decorator of it.

    Returns
    -------
    callable
        What registers a family and returns it.

    Raises
    ------
    TypeError
        If one of the two is not such a class, or the family lacks what it owes.
    ValueError
        If the class has a family already.

    Examples
    --------
    >>> from sklearn.neighbors import KNeighborsClassifier
    >>> from skattrib import make_attributor
    >>> from skattrib.extension import Retrainable, register_model
    >>> class MyNeighbors(KNeighborsClassifier):
    ...     pass
    >>> @register_model(MyNeighbors)
    ... class Neighbors(Retrainable):
    ...     def retrain(self, X, y, weights, seed):
    ...         return self.clone().fit(X[weights > 0], y[weights > 0])
    >>> type(make_attributor(MyNeighbors())).__name__
    'KernelSurrogateAttributor'
    """
    if not isinstance(estimator_class, type):
        raise TypeError(f"estimator_class must be a class, got {estimator_class!r}.")

    def register(family_class: type[Model]) -> type[Model]:
        if not (isinstance(family_class, type) and issubclass(family_class, Model)):
            raise TypeError(
                f"family must be a class derived from Retrainable, Differentiable or "
                f"Recorded, got {family_class!r}."
            )
        if owed := ", ".join(sorted(getattr(family_class, "__abstractmethods__", ()))):
            raise TypeError(
                f"{family_class.__name__} lacks {owed}, which its protocol owes."
            )
        if estimator_class in _FAMILIES:
            raise ValueError(
                f"{estimator_class.__name__} is registered already, as "
                f"{_FAMILIES[estimator_class].__name__}: derive a class of your own."
            )
        _FAMILIES[estimator_class] = family_class
        return family_class

    return register if family is None else register(family)


def as_model(estimator: Any) -> Model:
    """Return an estimator as a model of its family.

    Parameters
    ----------
    estimator : estimator
        Fitted or not. What only wraps it is looked through: a
        `sklearn.frozen.FrozenEstimator`, the last step of a pipeline, and what a search
        chose, or would train.

    Returns
    -------
    Retrainable, Differentiable or Recorded
        Whichever of these its family implements, perhaps all three.

    Raises
    ------
    TypeError
        If it is a class, not an instance.
    ValueError
        If it is a torch module that is not wrapped, a booster without its interface
        for scikit-learn, or a pipeline that ends in a transformer.

    See Also
    --------
    register_model : Adds a family.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from skattrib import TorchClassifier
    >>> from skattrib.extension import Differentiable, as_model
    >>> isinstance(as_model(TorchClassifier()), Differentiable)
    True
    >>> as_model(LogisticRegression()).attributors()
    ['DualInfluence', 'KernelSurrogateAttributor', 'LinearSurrogateAttributor']
    """
    check_instance(estimator, "estimator")
    if isinstance(estimator, nn.Module):
        raise ValueError(
            "estimator is a torch module; wrap it: TorchClassifier(module=...) or "
            "TorchRegressor(module=...), and for one that is trained already "
            "FrozenEstimator(TorchClassifier.from_module(module, classes))."
        )
    if is_search(estimator):
        return as_model(getattr(estimator, "best_estimator_", estimator.estimator))
    inner = Parts(estimator).model
    frozen = isinstance(inner, FrozenEstimator)
    inner = inner.estimator if frozen else inner
    check_wrapped(inner)
    for kind in type(inner).__mro__:
        family = _FAMILIES.get(kind, _BY_NAME.get(full_name(kind)))
        if family is not None:
            return family(inner, frozen=frozen)
    return EstimatorModel(inner, frozen=frozen)


def check_wrapped(estimator: Any) -> None:
    """Raise ValueError on a booster without the estimator that wraps it."""
    name = full_name(type(estimator))
    if name in WRAPPERS:
        raise ValueError(
            f"estimator is a {name}, which knows no training: pass the estimator of "
            f"its library that wraps it, {WRAPPERS[name]}, trained by its fit or not."
        )


def check_recipe(estimator: Any, stacklevel: int) -> None:
    """Refuse a bare module; warn if a wrapped one would be trained again.

    ``stacklevel`` is that of a warning by the caller.
    """
    if estimator is None:
        return
    model = as_model(estimator)
    if "Recorded" in protocols(model) and not (model.frozen or model.has_run):
        warnings.warn(
            f"{model.name} wraps a trained module, but will be trained again from its "
            "weights: put it in a sklearn.frozen.FrozenEstimator to take it as it is.",
            FaithfulnessWarning,
            stacklevel=stacklevel + 1,
        )
