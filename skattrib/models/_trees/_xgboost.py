"""XGBClassifier and XGBRegressor of XGBoost."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.base import is_classifier

from skattrib._validation import blamed
from skattrib.engine._row_weights import RowWeighting
from skattrib.engine._trees import Ensemble, LogLoss, Monotone, Tree, compacted
from skattrib.exceptions import UnsupportedModelError
from skattrib.models._trees._protocol import BoosterModel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer[Any]]

_OF_REGRESSOR = {"reg:squarederror": "squared", "count:poisson": "poisson"}
_OF_CLASSIFIER = dict.fromkeys(
    ("binary:logistic", "multi:softprob", "multi:softmax"), "log"
)
# How far single precision is from the best first output.
_CLOSE = 1e-5
# How far the values of a node and of its leaves may be from the same sums, of the
# largest such.
_ALIKE = 1e-3


@dataclass(frozen=True)
class _Nodes:
    """One tree of the library, without what was pruned."""

    children: IntArray
    #: New number of each node, as the library numbers them.
    numbers: IntArray
    values: FloatArray
    columns: IntArray
    #: Whether the leaves are what a learning rate and penalty make of the sums.
    alike: Any = None


class XGBoostModel(BoosterModel):
    """Boosted trees of XGBoost, by its interface for scikit-learn."""

    centred = True
    softmax_factor = staticmethod(lambda n_classes: 2.0)
    cure = (
        "Use objective='reg:squarederror' or 'count:poisson' of an XGBRegressor, or an "
        "XGBClassifier with 'binary:logistic' or 'multi:softprob'."
    )

    # -------------------------------------------------------------- settings
    @cached_property
    def _config(self) -> Any:
        """What the library resolved the parameters to."""
        return json.loads(self.estimator.get_booster().save_config())["learner"]

    @property
    def _of_trees(self) -> dict[str, str]:
        found: dict[str, str] = self._config["gradient_booster"]["tree_train_param"]
        return found

    def objective_name(self) -> str:
        """Return what the estimator's ``objective`` is called here."""
        name = self.estimator.objective
        if callable(name):
            return "a function"
        names = _OF_CLASSIFIER if is_classifier(self.estimator) else _OF_REGRESSOR
        return next(iter(names.values())) if name is None else names.get(name, name)

    def reason_against(self) -> str | None:
        """Return why leaf values cannot be computed again, None if they can."""
        reason = super().reason_against()
        return self._of_settings() if reason is None else reason

    def _of_settings(self) -> str | None:
        params = self.estimator.get_xgb_params()
        booster = params.get("booster") or "gbtree"
        if booster != "gbtree":
            why = "drops trees" if booster == "dart" else "has no trees"
            return f"booster={booster!r} {why}. Use booster='gbtree'."
        if (params.get("num_parallel_tree") or 1) > 1:
            return (
                "num_parallel_tree above 1 boosts forests. Use num_parallel_tree=1, or "
                "a RandomForest of scikit-learn."
            )
        if params.get("multi_strategy") == "multi_output_tree":
            return (
                "multi_strategy='multi_output_tree' shares trees. Use "
                "multi_strategy='one_output_per_tree'."
            )
        if params.get("sampling_method") == "gradient_based":
            return (
                "sampling_method='gradient_based' weighs rows by their gradients. Use "
                "sampling_method='uniform'."
            )
        if (params.get("process_type") or "default") != "default":
            return "process_type changes trees of before. Use process_type='default'."
        if self.is_fitted and int(self._of_model("num_target", "1")) > 1:
            return "it has several targets. Fit one model per column of y."
        return None

    def _of_model(self, name: str, default: str) -> str:
        return str(self._config["learner_model_param"].get(name, default))

    def poisson_damping(self) -> float:
        """Return what is added to outputs in second derivatives of counts."""
        return float(self._of_trees["max_delta_step"])

    # --------------------------------------------------------------- training
    @property
    def _best(self) -> int | None:
        """Last iteration that an early stop left."""
        if not self.is_fitted:
            return None
        found: int | None = getattr(self.estimator, "best_iteration", None)
        return found

    def recipe(self) -> Any:
        """Return the estimator, with as many trees as an early stop left it."""
        best, estimator = self._best, self.estimator
        if best is None:
            return estimator
        params = estimator.get_params(deep=False)
        callbacks = params.get("callbacks")
        if callbacks is not None:
            callbacks = [
                one for one in callbacks if type(one).__name__ != "EarlyStopping"
            ]
        params |= {
            "n_estimators": best + 1,
            "early_stopping_rounds": None,
            "callbacks": callbacks or None,
        }
        return type(estimator)(**params)

    # ------------------------------------------------------------- structure
    @property
    def is_fitted(self) -> bool:
        """Whether the estimator is a fitted ensemble."""
        is_fitted = getattr(self.estimator, "__sklearn_is_fitted__", None)
        return is_fitted is not None and bool(is_fitted())

    @property
    def needs_other_rows(self) -> bool:
        """Whether its fit asks for rows to validate with."""
        return self.estimator.get_params().get("early_stopping_rounds") is not None

    @property
    def refits_itself(self) -> bool:
        """Whether all rows were in its trees."""
        return float(self._of_trees["subsample"]) >= 1

    def n_outputs(self) -> int:
        """Return the number of raw outputs."""
        return max(1, int(self._of_model("num_class", "0")))

    def raw_outputs(self, X: Any) -> FloatArray:
        """Return logits, logarithms of means, or predictions."""
        found = self.estimator.predict(X, output_margin=True)
        return np.asarray(found, dtype=float).reshape(len(found), -1)

    @cached_property
    def _trees(self) -> list[_Nodes]:
        """The trees that it predicts by, in the order of their training."""
        raw = self.estimator.get_booster().save_raw("json")
        trees = json.loads(raw)["learner"]["gradient_booster"]["model"]["trees"]
        if self._best is not None:
            trees = trees[: (self._best + 1) * self.n_outputs()]
        return [_nodes(tree) for tree in trees]

    def leaves(self, X: Any) -> IntArray:
        """Return leaves (n_iterations, n_outputs, q)."""
        from xgboost import DMatrix

        estimator = self.estimator
        # as its apply does, which refuses categories before version 3.1
        used = (0, 0 if self._best is None else self._best + 1)
        with blamed(estimator, "predict these rows"):
            rows = DMatrix(
                X,
                missing=estimator.missing,
                feature_types=estimator.feature_types,
                nthread=estimator.n_jobs,
                enable_categorical=estimator.enable_categorical,
            )
            found = estimator.get_booster().predict(
                rows, pred_leaf=True, iteration_range=used
            )
        found = found.reshape(len(found), -1).astype(np.intp)
        numbered = [
            tree.numbers[column]
            for tree, column in zip(self._trees, found.T, strict=True)
        ]
        return np.array(numbered).reshape(-1, self.n_outputs(), len(found))

    def ensemble(
        self, X: Any, y: Any, own: FloatArray, trained: FloatArray
    ) -> Ensemble:
        """Return the structure of the fitted estimator."""
        n_outputs, settings = self.n_outputs(), self._of_trees
        self._check_settings()
        weighting = self._weighting(y)
        objective, initial, moves = self._start(y, trained, weighting)
        text = settings.get("monotone_constraints", "").strip("()")
        signs = [int(sign) for sign in text.split(",") if sign.strip()]
        rate, penalty = float(settings["eta"]), float(settings["lambda"])
        trees = [self._tree(nodes, rate, penalty, signs) for nodes in self._trees]
        return Ensemble(
            tuple(
                tuple(trees[start : start + n_outputs])
                for start in range(0, len(trees), n_outputs)
            ),
            objective,
            initial,
            moves=moves,
            l1=float(settings["alpha"]),
            largest=float(settings["max_delta_step"]),
            weighting=weighting,
        )

    def _weighting(self, y: Any) -> RowWeighting:
        """Return what scale_pos_weight does."""
        positive = self.estimator.get_xgb_params().get("scale_pos_weight")
        if not is_classifier(self.estimator) or positive in (None, 1):
            return RowWeighting()
        if self.n_outputs() > 1:
            return RowWeighting()
        codes = torch.tensor(self.training_targets(y))
        return RowWeighting(torch.where(codes == 1, float(positive), 1.0).double())

    def _start(
        self, y: Any, trained: FloatArray, weighting: RowWeighting
    ) -> tuple[Any, FloatArray, bool]:
        """Return the objective, the first outputs, and whether these are its best.

        They are found by a rule that depends on the version; where none that is known
        gives them, they stay.
        """
        objective, name = self.objective(), self.objective_name()
        stored = np.ravel(json.loads(self._of_model("base_score", "0.5")))
        first = stored.astype(float)
        if name == "poisson":
            first = np.log(first)
        elif name == "log" and self.n_outputs() == 1:
            first = logit(first)
        first = np.broadcast_to(first, (self.n_outputs(),)).copy()
        if self._of_model("boost_from_average", "1") == "0":
            return objective, first, False
        in_loss = weighting(torch.tensor(trained)[None]).numpy()[0]
        targets = objective.targets(self.training_targets(y))
        means = targets @ in_loss / in_loss.sum()
        rules = [objective]
        if isinstance(objective, LogLoss):
            rules.append(replace(objective, one_step=True))
        for rule in rules:
            if np.allclose(rule.constant(means), first, rtol=_CLOSE, atol=_CLOSE):
                return rule, first, True
        return objective, first, False

    def _tree(
        self, nodes: _Nodes, rate: float, penalty: float, signs: list[int]
    ) -> Tree:
        if len(nodes.values) == 1 and not nodes.values.any():
            rate = 0.0  # too little weight for a tree
        monotone = None
        if any(signs) and (of_inner := np.array(signs)[nodes.columns]).any():
            monotone = Monotone(of_inner)
        return Tree(nodes.children, nodes.values, rate, penalty, monotone)

    def _check_settings(self) -> None:
        """Raise if the trees were not grown with the settings that the booster has."""
        settings = self._of_trees
        bounded = float(settings["max_delta_step"]) or float(settings["alpha"])
        if bounded or any(c in settings["monotone_constraints"] for c in "1"):
            return
        rate, penalty = float(settings["eta"]), float(settings["lambda"])
        pairs = [tree.alike for tree in self._trees if tree.alike is not None]
        if not pairs:
            return
        weight, hessian, of_leaves, times = np.concatenate(pairs).T
        above = (hessian + penalty) * weight
        below = (of_leaves + penalty * times) / rate
        if np.median(np.abs(above - below)) > _ALIKE * np.abs(above).max():
            raise UnsupportedModelError(
                f"The leaves of the fitted {self.name} are not those of its "
                f"learning_rate={rate:g} and reg_lambda={penalty:g}: it was loaded "
                "without the parameters that it was trained with. Fit it again, or "
                "load it by pickle or joblib."
            )


def _nodes(tree: dict[str, Any]) -> _Nodes:
    """Return a tree from what the library saves of it."""
    left, right = (
        np.array(tree[f"{side}_children"], dtype=np.intp) for side in ("left", "right")
    )
    there = np.zeros(len(left), dtype=bool)
    there[0] = True
    for node in range(len(left)):  # those below have larger numbers
        if there[node] and left[node] >= 0:
            there[[left[node], right[node]]] = True
    compact = np.where(there, np.cumsum(there) - 1, -1)
    kept_left, kept_right = (
        np.where(side[there] < 0, -1, compact[side[there]]) for side in (left, right)
    )
    children, numbers = compacted(kept_left, kept_right)
    of_all = np.full(len(left), -1)
    of_all[there] = numbers
    is_leaf = kept_left < 0
    values = np.array(tree["split_conditions"], dtype=float)
    columns = np.array(tree["split_indices"], dtype=np.intp)[there][~is_leaf]
    return _Nodes(
        children,
        of_all,
        values[there][is_leaf],
        columns,
        _alike(tree, left, right, there, values),
    )


def _alike(
    tree: dict[str, Any],
    left: IntArray,
    right: IntArray,
    there: Any,
    values: FloatArray,
) -> Any:
    """Return what must agree of nodes above two leaves, a row each.

    The columns are the value of the node, its second derivative, and of the leaves the
    sum of second derivative times value, and of values.
    """
    inner = np.flatnonzero(there & (left >= 0))
    inner = inner[(left[left[inner]] < 0) & (left[right[inner]] < 0)]
    if not len(inner):
        return None
    hessian = np.array(tree["sum_hessian"], dtype=float)
    weight = np.array(tree["base_weights"], dtype=float)
    pairs = np.column_stack([left[inner], right[inner]])
    of_leaves = (hessian[pairs] * values[pairs]).sum(axis=1)
    both = values[pairs].sum(axis=1)
    return np.column_stack([weight[inner], hessian[inner], of_leaves, both])
