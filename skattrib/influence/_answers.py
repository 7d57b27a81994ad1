"""How DualInfluence answers the questions of `skattrib._questions`."""

import numpy as np
import pandas as pd
from scipy import sparse

from skattrib.influence._exact_models import ExactModel
from skattrib.influence._new_rows import values_of_new_rows
from skattrib.influence._own_rows import of_exact, of_tangent
from skattrib.models._any import is_pairwise
from skattrib.models._as_model import as_model


class AnswersBySteps:
    """Methods of an attributor that has steps to the model without units."""

    def _self_attribution(self, X, y, outcome):
        # a transformer may treat the rows that it is fitted to in another way
        if not _same(X, self._features):
            return super()._self_attribution(X, y, outcome)
        each_model = []
        for linear, without_each in zip(
            self._linear_models, self._without_each, strict=True
        ):
            if linear.solves_queries and linear.plan.solver == "cg":
                return super()._self_attribution(X, y, outcome)
            if isinstance(linear, ExactModel):
                each_model.append(of_exact(linear, without_each, X, y, outcome))
            else:
                each_model.append(of_tangent(linear, without_each, y, outcome))
        return np.mean(each_model, axis=0)

    def _check_new_rows(self):
        if is_pairwise(as_model(self._model).estimator):
            raise self._unknown_rows(
                "a precomputed kernel lacks that of new rows with themselves"
            )

    def _value_new(self, X_new, y_new, X, y, outcome):
        rows = self._features, self._targets, self._row_weights
        new_rows, queries = (X_new, y_new), (X, y)
        return values_of_new_rows(self._linear_models, rows, new_rows, queries, outcome)

    def _model_without(self, row_weights):
        linear = self._linear_models[0]
        if not isinstance(linear, ExactModel):
            change = linear.parameter_change(linear.steps(row_weights[None]))[0]
            moved = as_model(self._model).moved(change.cpu().numpy())
            if moved is not None:
                return moved
        return super()._model_without(row_weights)


def _same(X, features):
    """Say whether queries are the training rows as the model takes them."""
    if X is features:
        return True
    if sparse.issparse(X):
        return not (X != features).nnz
    if isinstance(X, pd.DataFrame):
        return X.equals(features)
    return np.array_equal(X, features)
