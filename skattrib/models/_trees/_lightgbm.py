"""LGBMClassifier and LGBMRegressor of LightGBM."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import is_classifier

from skattrib._validation import blamed
from skattrib.engine._row_weights import RowWeighting
from skattrib.engine._trees import Ensemble, Monotone, Tree
from skattrib.exceptions import UnsupportedModelError
from skattrib.models._trees._protocol import BoosterModel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer[Any]]

_SQUARED = (
    "regression",
    "regression_l2",
    "l2",
    "mean_squared_error",
    "mse",
    "l2_root",
    "root_mean_squared_error",
    "rmse",
)
_OF_REGRESSOR = {**dict.fromkeys(_SQUARED, "squared"), "poisson": "poisson"}
_OF_CLASSIFIER = dict.fromkeys(("binary", "multiclass", "softmax"), "log")
_TRUE = ("true", "1", "+", "yes")
# A first output smaller than this share of the targets may be none.
_NOTHING = 1e-6


class LightGBMModel(BoosterModel):
    """Boosted trees of LightGBM, by its interface for scikit-learn."""

    centred = False
    softmax_factor = staticmethod(lambda n_classes: n_classes / (n_classes - 1))
    cure = (
        "Use objective='regression' or 'poisson' of an LGBMRegressor, or an "
        "LGBMClassifier with 'binary' or 'multiclass'."
    )

    # -------------------------------------------------------------- settings
    def _setting(self, name: str) -> str:
        """Return a parameter of the library, under its main name, as it is used."""
        if self.is_fitted:
            return self._trained_with[name]
        params = self.estimator.get_params()
        for alias in (name, *sorted(_aliases(name))):
            if params.get(alias) is not None:
                return str(params[alias])
        return ""

    @property
    def _trained_with(self) -> dict[str, str]:
        """Parameters that the library resolved, from the text of the model."""
        if not hasattr(self, "_parameters"):
            _, _, text = self._text().partition("\nparameters:\n")
            lines = [line[1:-1] for line in text.splitlines() if line.startswith("[")]
            self._parameters = dict(line.split(": ", 1) for line in lines)
        return self._parameters

    def _text(self) -> str:
        """Return the library's text of the trees that it predicts by."""
        found: str = self.estimator.booster_.model_to_string()
        return found

    def _number(self, name: str, default: float) -> float:
        found = self._setting(name)
        return float(found) if found else default

    def _is_on(self, name: str) -> bool:
        return self._setting(name).lower() in _TRUE

    def objective_name(self) -> str:
        """Return what the estimator's ``objective`` is called here."""
        params = self.estimator.get_params()
        given = [params.get(alias) for alias in ("objective", *_aliases("objective"))]
        if any(callable(objective) for objective in given):
            return "a function"
        name = self._setting("objective")
        if is_classifier(self.estimator):
            return _OF_CLASSIFIER.get(name or "binary", name)
        return _OF_REGRESSOR.get(name or "regression", name)

    def reason_against(self) -> str | None:
        """Return why leaf values cannot be computed again, None if they can."""
        for reason in (
            super().reason_against(),
            self._of_boosting(),
            self._of_values(),
            self._of_weights(),
        ):
            if reason is not None:
                return reason
        return None

    def _of_boosting(self) -> str | None:
        boosting = self._setting("boosting").lower() or "gbdt"
        if boosting not in ("gbdt", "gbrt", "goss"):
            why = "drops trees" if boosting == "dart" else "averages its trees"
            return (
                f"boosting_type={boosting!r} {why}. Use boosting_type='gbdt', or a "
                "random forest of scikit-learn."
            )
        if "goss" in (boosting, self._setting("data_sample_strategy").lower()):
            return (
                "goss weighs rows by their gradients. Use "
                "data_sample_strategy='bagging', and boosting_type='gbdt'."
            )
        return None

    def _of_values(self) -> str | None:
        if self._is_on("linear_tree"):
            return "linear_tree=True has models in its leaves. Use linear_tree=False."
        if self._number("path_smooth", 0) > 0:
            return "path_smooth draws leaves to their parents. Use path_smooth=0."
        if self._is_on("use_quantized_grad"):
            return "use_quantized_grad rounds gradients. Use use_quantized_grad=False."
        if self._is_on("reg_sqrt"):
            return "reg_sqrt=True fits roots of y. Use reg_sqrt=False."
        if self._number("sigmoid", 1) != 1:
            return "sigmoid is not 1. Use sigmoid=1."
        method = self._setting("monotone_constraints_method").lower() or "basic"
        if any(self._signs()) and method != "basic":
            return (
                f"monotone_constraints_method={method!r} changes leaves long after "
                "their split. Use monotone_constraints_method='basic'."
            )
        return None

    def _of_weights(self) -> str | None:
        if self._is_on("is_unbalance"):
            return (
                "is_unbalance=True weighs classes by their counts. Use "
                "class_weight='balanced'."
            )
        balanced = isinstance(getattr(self.estimator, "class_weight", None), str)
        if balanced and self._positive_weight() != 1:
            return (
                "scale_pos_weight and class_weight='balanced' are both set. Use one "
                "of them."
            )
        return None

    def _positive_weight(self) -> float:
        if self._setting("objective") in ("multiclass", "softmax"):
            return 1.0
        return self._number("scale_pos_weight", 1)

    def poisson_damping(self) -> float:
        """Return what is added to outputs in second derivatives of counts."""
        return self._number("poisson_max_delta_step", 0.7)

    def _signs(self) -> list[int]:
        """Return the monotone constraints of columns, [] for none."""
        text = self._setting("monotone_constraints").strip("[]()")
        return [int(sign) for sign in text.split(",") if sign.strip()]

    # --------------------------------------------------------------- training
    def recipe(self) -> Any:
        """Return the estimator, with as many trees as an early stop left it."""
        estimator = self.estimator
        best = getattr(estimator, "best_iteration_", 0) or 0
        if best <= 0:
            return estimator
        left_out = _aliases("early_stopping_round") | {"early_stopping_round"}
        left_out |= _aliases("num_iterations") | {"num_iterations"}
        params = estimator.get_params(deep=False)
        kept = {name: params[name] for name in params.keys() - left_out}
        return type(estimator)(**kept, n_estimators=best)

    # ------------------------------------------------------------- structure
    @property
    def is_fitted(self) -> bool:
        """Whether the estimator is a fitted ensemble."""
        return getattr(self.estimator, "_Booster", None) is not None

    @property
    def needs_other_rows(self) -> bool:
        """Whether its fit asks for rows to validate with."""
        names = _aliases("early_stopping_round") | {"early_stopping_round"}
        params = self.estimator.get_params(deep=False)
        return any((params.get(name) or 0) > 0 for name in names)

    @property
    def refits_itself(self) -> bool:
        """Whether all rows were in its trees."""
        shares = ("bagging_fraction", "pos_bagging_fraction", "neg_bagging_fraction")
        drawn = any(self._number(share, 1) < 1 for share in shares)
        return not (drawn and self._number("bagging_freq", 0) > 0)

    def n_outputs(self) -> int:
        """Return the number of raw outputs."""
        return int(self.estimator.booster_.num_model_per_iteration())

    def raw_outputs(self, X: Any) -> FloatArray:
        """Return logits, logarithms of means, or predictions."""
        found = self.estimator.predict(X, raw_score=True)
        return np.asarray(found, dtype=float).reshape(len(found), -1)

    def leaves(self, X: Any) -> IntArray:
        """Return leaves (n_iterations, n_outputs, q)."""
        with blamed(self.estimator, "predict these rows"):
            found = self.estimator.predict(X, pred_leaf=True)
        found = np.asarray(found, dtype=np.intp)
        shape = len(found), -1, self.n_outputs()
        return found.reshape(shape).transpose(1, 2, 0)

    def ensemble(
        self, X: Any, y: Any, own: FloatArray, trained: FloatArray
    ) -> Ensemble:
        """Return the structure of the fitted estimator."""
        n_outputs = self.n_outputs()
        objective = self.objective()
        header, *parts = self._text().partition("\nend of trees")[0].split("\nTree=")
        read = [_fields(part) for part in parts]
        initial_weighting, weighting = self._weightings(y, own)
        in_initial = initial_weighting(torch.tensor(trained)[None]).numpy()[0]
        targets = objective.targets(self.training_targets(y))
        constant = objective.constant(targets @ in_initial / in_initial.sum())
        rates, moves = self._rates(read, n_outputs)
        too_far = np.abs(constant).max() > _NOTHING * np.abs(targets).max()
        if moves is None and too_far:
            raise UnsupportedModelError(
                f"The fitted {self.name} begins at an init_score, which is not kept "
                "with it. Fit it without init_score."
            )
        moves = moves is not False
        initial = np.asarray(constant if moves else np.zeros(n_outputs), dtype=float)
        reader = _TreeReader(
            header=_fields(header),
            signs=self._signs(),
            l2=self._number("lambda_l2", 0),
            of_categories=self._number("cat_l2", 10),
            one_hot=self._number("max_cat_to_onehot", 4),
        )
        trees = [
            reader.tree(part, rate, initial[i] if i < n_outputs else 0.0)
            for i, (part, rate) in enumerate(zip(read, rates, strict=True))
        ]
        return Ensemble(
            tuple(
                tuple(trees[start : start + n_outputs])
                for start in range(0, len(trees), n_outputs)
            ),
            objective,
            initial,
            moves=moves,
            l1=self._number("lambda_l1", 0),
            largest=max(self._number("max_delta_step", 0), 0.0),
            weighting=weighting,
            initial_weighting=initial_weighting,
        )

    def _weightings(self, y: Any, own: FloatArray) -> tuple[RowWeighting, RowWeighting]:
        """Return the weights in the first outputs, and in the loss of the trees."""
        of_classes = self.class_weighting(
            getattr(self.estimator, "class_weight", None), y, own
        )
        positive = self._positive_weight()
        if positive == 1:
            return of_classes, of_classes
        codes = torch.tensor(self.training_targets(y))
        factors = torch.where(codes == 1, positive, 1.0).double()
        if of_classes.factors is not None:
            factors = factors * of_classes.factors
        return of_classes, RowWeighting(factors)

    def _rates(
        self, read: list[dict[str, str]], n_outputs: int
    ) -> tuple[list[float], bool | None]:
        """Return the learning rate of each tree, and whether they begin at the best.

        That is added to the first trees, whose rate then reads 1. None where it should
        have been, and was not: it was about 0, or the user gave another.
        """
        rate = self._number("learning_rate", 0.1)
        rates = [
            float(part["shrinkage"]) if int(part["num_leaves"]) > 1 else 0.0
            for part in read
        ]
        first = [read for read in rates[:n_outputs] if read]
        if not first:
            return rates, True
        later = [read for read in rates[n_outputs:] if read]
        if not np.allclose(later, rate, rtol=1e-6):
            raise UnsupportedModelError(
                f"The learning rate of the fitted {self.name} changed from tree to "
                "tree. Fit it with a constant learning_rate."
            )
        rates[:n_outputs] = [rate if read else 0.0 for read in rates[:n_outputs]]
        if not self._is_on("boost_from_average"):
            return rates, False
        return rates, True if any(np.isclose(first, 1.0)) else None


class _TreeReader:
    """Trees from the library's text."""

    def __init__(
        self,
        header: dict[str, str],
        signs: list[int],
        l2: float,
        of_categories: float,
        one_hot: float,
    ) -> None:
        self.l2, self.of_categories = l2, of_categories
        infos = header["feature_infos"].split()
        bins = np.array([info.count(":") + 1 for info in infos])
        # columns whose categories are sorted, to split them: their leaves are drawn
        # to 0 more than others
        self.is_sorted = bins > one_hot
        self.signs = np.array(signs) if any(signs) else None

    def tree(self, part: dict[str, str], rate: float, initial: float) -> Tree:
        """Return a tree."""
        values = _numbers(part["leaf_value"], float) - initial
        if not rate:
            return Tree(np.empty((0, 2), dtype=np.intp), values, rate=0.0)
        n_leaves = len(values)
        below = (_numbers(part[f"{side}_child"], np.intp) for side in ("left", "right"))
        children = np.column_stack([np.where(c < 0, ~c, n_leaves + c) for c in below])
        columns = _numbers(part["split_feature"], np.intp)
        of_inner = None if self.signs is None else self.signs[columns]
        monotone = (
            None if of_inner is None or not of_inner.any() else Monotone(of_inner)
        )
        return Tree(children, values, rate, self._penalty(part, children), monotone)

    def _penalty(self, part: dict[str, str], children: IntArray) -> float | FloatArray:
        """Return the penalties of all nodes, or the one of all."""
        columns = _numbers(part["split_feature"], np.intp)
        by_category = _numbers(part["decision_type"], int) % 2 == 1
        more = by_category & self.is_sorted[columns]
        if not more.any() or not self.of_categories:
            return self.l2
        penalties = np.full(2 * len(children) + 1, self.l2)
        penalties[children[more]] += self.of_categories
        return penalties


def _aliases(name: str) -> set[str]:
    """Return other names of a parameter of LightGBM."""
    from lightgbm.basic import _ConfigAliases

    return set(_ConfigAliases.get(name)) - {name}


def _fields(text: str) -> dict[str, str]:
    """Return what lines of text such as ``a=1 2`` hold."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def _numbers(text: str, dtype: Any) -> Any:
    return np.array(text.split(), dtype=dtype)
