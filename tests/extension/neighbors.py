"""Nearest neighbours: models without weights of rows, trained again without them."""

from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from skattrib.extension import Retrainable, register_model


class Neighbors(KNeighborsClassifier):
    """Classify by the nearest rows; its fit takes no ``sample_weight``."""


class NeighborsRegressor(KNeighborsRegressor):
    """Predict the mean of the nearest rows."""


@register_model(Neighbors)
@register_model(NeighborsRegressor)
class NeighborsModel(Retrainable):
    """Rows of weight 0 are deleted; other weights count as 1.

    Where fewer rows are left than neighbours are asked for, these are all.
    """

    def retrain(self, X, y, weights, seed):
        """Return a copy fitted to the rows that are left."""
        kept = weights > 0
        fitted = self.clone()
        fitted.set_params(n_neighbors=min(fitted.n_neighbors, kept.sum()))
        return fitted.fit(X[kept], y[kept])
