"""Nearest neighbours: a model without weights of rows, trained again without them."""

from sklearn.neighbors import KNeighborsClassifier

from skattrib.extension import Retrainable, register_model


class Neighbors(KNeighborsClassifier):
    """Classify by the nearest rows; its fit takes no ``sample_weight``."""


@register_model(Neighbors)
class NeighborsModel(Retrainable):
    """Rows of weight 0 are deleted; other weights count as 1."""

    def retrain(self, X, y, weights, seed):
        """Return a copy fitted to the rows that are left."""
        return self.clone().fit(X[weights > 0], y[weights > 0])
