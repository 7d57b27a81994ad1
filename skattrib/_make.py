"""The attributor to begin with, for a model."""

from skattrib.influence import AdamWInfluence, DualInfluence, TreeInfluence
from skattrib.models._as_model import as_model
from skattrib.retrieval import RISEValuator
from skattrib.surrogate import KernelSurrogateAttributor, LinearSurrogateAttributor

#: Attributors of the package, by name.
ATTRIBUTORS = {
    kind.__name__: kind
    for kind in (
        AdamWInfluence,
        DualInfluence,
        KernelSurrogateAttributor,
        LinearSurrogateAttributor,
        RISEValuator,
        TreeInfluence,
    )
}


def make_attributor(model, **params):
    """Return the attributor to begin with for a model, unfitted.

    Parameters
    ----------
    model : estimator
        What is to be attributed, fitted or not. A pipeline, a search and a
        `sklearn.frozen.FrozenEstimator` are looked through.
    **params : dict
        Further parameters of the attributor.

    Returns
    -------
    attributor
        By what the model is:

        - a network with a recipe, or a recorded run: :class:`AdamWInfluence`;
        - a network that was trained elsewhere, frozen, or a multilayer perceptron of
          scikit-learn: :class:`DualInfluence`;
        - a linear or kernel model of scikit-learn that is refitted exactly:
          :class:`DualInfluence`;
        - boosted trees, or a forest, whose leaves can be refitted:
          :class:`TreeInfluence`;
        - a causal language model: :class:`RISEValuator`;
        - any other estimator that can be fitted to weighted rows:
          :class:`KernelSurrogateAttributor`, by retraining.

    Raises
    ------
    ValueError
        If nothing can be attributed to this model's rows.

    See Also
    --------
    plan : Says what each will take, before anything is trained.
    DualInfluence : Cheaper, for networks of every kind.

    Examples
    --------
    >>> from sklearn.ensemble import RandomForestClassifier
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from skattrib import TorchClassifier, make_attributor
    >>> pipeline = make_pipeline(StandardScaler(), TorchClassifier())
    >>> type(make_attributor(pipeline)).__name__
    'AdamWInfluence'
    >>> type(make_attributor(RandomForestClassifier())).__name__
    'TreeInfluence'
    """
    found = as_model(model)
    if hasattr(found, "check"):
        found.check()
    for name in found.first_attributors:
        if name in found.attributors():
            return ATTRIBUTORS[name](model, **params)
    raise found.lacks("make_attributor", "a way to train it again, or gradients")
