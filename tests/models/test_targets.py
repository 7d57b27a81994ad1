"""Targets that a TransformedTargetRegressor changes: outcomes stay in the unit of y."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    PowerTransformer,
    QuantileTransformer,
    StandardScaler,
)

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    GradientTransformer,
    KernelSurrogateAttributor,
    TorchRegressor,
    lookahead_training,
    make_attributor,
)
from skattrib.evaluation import make_weightings, retrain_outcomes
from skattrib.models._targets import OriginalUnits, fit_target_transformer

N = 60
LOG = {"func": np.log1p, "inverse_func": np.expm1}


def diabetes():
    X, y = load_diabetes(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    return X[:N], y[:N], X[N : N + 5], y[N : N + 5]


def network(**options):
    options = {"hidden_layer_sizes": (5,), "max_epochs": 20, **options}
    return TorchRegressor(random_state=0, **options)


ATTRIBUTORS = {
    "newton": DualInfluence(n_retrainings=8),
    "influence": DualInfluence(removal="influence", n_retrainings=8),
    "calibrated": DualInfluence(ridge="calibrate", n_retrainings=8),
    "adamw": AdamWInfluence(inclusion=1, n_retrainings=8),
    "retrained": KernelSurrogateAttributor(
        n_subsets=12, estimation="retrain", n_retrainings=8
    ),
    "linearised": KernelSurrogateAttributor(
        n_subsets=12, estimation="gradient", n_retrainings=8
    ),
}


@pytest.mark.parametrize("attributor", ATTRIBUTORS.values(), ids=ATTRIBUTORS)
def test_outcomes_of_scaled_targets_are_those_of_the_model_times_the_variance(
    attributor,
):
    X, y, Xq, yq = diabetes()
    scaler = StandardScaler().fit(y[:, None])
    scaled, queries = ((t - scaler.mean_) / scaler.scale_ for t in (y, yq))
    plain = clone(attributor).set_params(estimator=network(), random_state=0)
    plain.fit(X, scaled)
    around = TransformedTargetRegressor(network(), transformer=StandardScaler())
    whole = clone(attributor).set_params(estimator=around, random_state=0).fit(X, y)

    assert_array_equal(whole.y_train_, y)
    assert_allclose(
        whole.attribute(Xq, yq),
        plain.attribute(Xq, queries) * scaler.var_,
        rtol=1e-7,
        atol=1e-7,
    )
    # half a squared error has no slope where it is 0: predictions are asked instead
    assert_allclose(
        whole.attribute(Xq), plain.attribute(Xq) * scaler.scale_, rtol=1e-7, atol=1e-9
    )
    assert_allclose(whole.score(Xq, yq), plain.score(Xq, queries), atol=1e-9)


@pytest.mark.parametrize("name", ["newton", "influence", "adamw"])
def test_outcomes_behind_a_logarithm_are_those_of_a_function_of_torch(name):
    X, y, Xq, yq = diabetes()

    def by_hand(outputs, targets):
        return -0.5 * (outputs.expm1() - targets.expm1()).square().sum(-1)

    attributor = clone(ATTRIBUTORS[name])
    plain = clone(attributor).set_params(
        estimator=network(), outcome=by_hand, random_state=0
    )
    plain.fit(X, np.log1p(y))
    around = TransformedTargetRegressor(network(), **LOG)
    whole = attributor.set_params(estimator=around, random_state=0).fit(X, y)

    expected = plain.attribute(Xq, np.log1p(yq))
    assert_allclose(whole.attribute(Xq, yq), expected, rtol=1e-7, atol=1e-7)
    present = -0.5 * (whole.estimator_.predict(Xq) - yq) ** 2
    if name != "adamw":  # whose predictions go through the mean of the runs
        everyone = np.ones((1, N))
        assert_allclose(whole.predict_outcomes(Xq, yq, everyone)[0], present)


def test_a_callable_gets_predictions_and_targets_in_the_unit_of_y():
    X, y, Xq, yq = diabetes()
    seen = []

    def outcome(outputs, targets):
        seen.append(targets.detach().squeeze(-1).numpy())
        return -(outputs - targets).abs().sum(-1)

    around = TransformedTargetRegressor(network(), **LOG)
    weights = np.ones((1, N))
    found = retrain_outcomes(around, X, y, weights, Xq, yq, outcome=outcome)
    error = np.abs(clone(around).fit(X, y).predict(Xq) - yq)
    assert_allclose(found[0], -error, rtol=1e-9)
    assert_allclose(seen[0].ravel()[: len(yq)], yq, rtol=1e-12)


@pytest.mark.parametrize(
    "options",
    [LOG, {"transformer": StandardScaler()}, {"transformer": PowerTransformer()}],
    ids=["log", "scaler", "power"],
)
def test_refitted_transformers_of_targets_are_those_of_the_rows_that_are_left(options):
    X, y, Xq, yq = diabetes()
    inside = make_pipeline(StandardScaler(), Ridge(5.0, random_state=0))
    around = TransformedTargetRegressor(inside, **options)
    weights = make_weightings(N, 4, random_state=0)
    truth = retrain_outcomes(around, X, y, weights, Xq, yq, refit_transformers=True)
    expected = [
        -0.5 * (clone(around).fit(X[row > 0], y[row > 0]).predict(Xq) - yq) ** 2
        for row in weights
    ]
    assert_allclose(truth, expected, rtol=1e-9)

    everything = retrain_outcomes(around, X, y, np.ones((1, N)), Xq, yq)
    whole = clone(around).fit(X, y).predict(Xq)
    assert_allclose(everything[0], -0.5 * (whole - yq) ** 2, rtol=1e-9)


def test_frozen_searched_and_several_targets():
    X, y, Xq, yq = diabetes()
    y, yq = np.c_[y, y[::-1] + X[:, 0]], np.c_[yq, yq[::-1]]
    around = TransformedTargetRegressor(network(), transformer=StandardScaler())
    fitted = clone(around).fit(X, y)
    trained = DualInfluence(around, random_state=0).fit(X, y)
    frozen = DualInfluence(FrozenEstimator(fitted), random_state=0).fit(X, y)
    # the attributor gives a network the same seed that it has
    assert_allclose(frozen.attribute(Xq, yq), trained.attribute(Xq, yq), rtol=1e-9)
    assert frozen.estimator_.estimator is fitted

    search = GridSearchCV(around, {"regressor__max_epochs": [3, 20]}, cv=3)
    chosen = DualInfluence(search, random_state=0).fit(X, y)
    longer = search.fit(X, y).best_params_["regressor__max_epochs"]
    best = clone(around).set_params(regressor__max_epochs=longer)
    expected = DualInfluence(best, random_state=0).fit(X, y).attribute(Xq, yq)
    assert_allclose(chosen.attribute(Xq, yq), expected, rtol=1e-9)


def test_the_attributor_to_begin_with_looks_through():
    around = TransformedTargetRegressor(network(), **LOG)
    assert type(make_attributor(around)) is AdamWInfluence
    assert type(make_attributor(TransformedTargetRegressor())) is DualInfluence


def test_the_estimator_of_the_user_stays_as_it_is():
    X, y, Xq, yq = diabetes()
    around = TransformedTargetRegressor(transformer=StandardScaler())
    before = repr(around)
    surrogate = KernelSurrogateAttributor(around, n_subsets=12, random_state=0)
    surrogate.fit(X, y).attribute(Xq, yq)
    assert repr(around) == before
    assert not hasattr(around, "regressor_")
    assert surrogate.estimator_.regressor is None


@pytest.mark.parametrize(
    "transformer",
    [
        StandardScaler(),
        PowerTransformer(),
        QuantileTransformer(n_quantiles=20),
        FunctionTransformer(np.sqrt, np.square),
    ],
    ids=lambda t: type(t).__name__,
)
def test_slopes_of_the_way_back_are_those_of_the_inverse(transformer):
    y = diabetes()[1]
    around = TransformedTargetRegressor(transformer=transformer, check_inverse=False)
    fit_target_transformer(around, y)
    units = OriginalUnits([around])
    z = torch.tensor(around.transformer_.transform(y[:, None]))[5:9]

    slopes = torch.func.vmap(torch.func.grad(lambda v: units(v).sum()))(z)
    step = 1e-5
    there = [
        around.transformer_.inverse_transform((z + s).numpy()) for s in (step, -step)
    ]
    assert_allclose(slopes, (there[0] - there[1]) / (2 * step), rtol=1e-5)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        torch.func.jacrev(torch.func.jacrev(lambda v: units(v).sum()))(z[0])


class TestRefused:
    def test_transformers_that_mix(self):
        X, y, *_ = diabetes()
        mixed = TransformedTargetRegressor(Ridge(), transformer=PCA())
        with pytest.raises(ValueError, match="mixes the columns of y"):
            DualInfluence(
                clone(mixed).set_params(regressor=network()), random_state=0
            ).fit(X, np.c_[y, y[::-1]])

    @pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
    def test_targets_outside_of_the_domain(self):
        X, y, *_ = diabetes()
        log = TransformedTargetRegressor(
            network(), func=np.log, inverse_func=np.exp, check_inverse=False
        )
        with pytest.raises(ValueError, match=r"logarithm of 0.*log1p"):
            DualInfluence(log, random_state=0).fit(X, y - y.min())

    @pytest.mark.parametrize("loss", [torch.nn.GaussianNLLLoss()])
    def test_functions_of_outputs_that_are_no_predictions(self, loss):
        X, y, Xq, yq = diabetes()
        around = TransformedTargetRegressor(network(loss=loss), **LOG)
        with pytest.raises(ValueError, match="no predictions"):
            DualInfluence(around, outcome=lambda f, t: f[..., 0], random_state=0).fit(
                X, y
            )
        predicted = DualInfluence(around, outcome="prediction", random_state=0)
        predicted.fit(X, y)
        present = predicted.predict_outcomes(Xq, yq, np.ones((1, N)))[0]
        assert_allclose(present, predicted.estimator_.predict(Xq))
        with pytest.raises(ValueError, match="refit_transformers=False"):
            retrain_outcomes(
                around, X, y, np.ones((1, N)), Xq, yq, refit_transformers=True
            )

    def test_what_trains_the_network_itself(self):
        X, y, *_ = diabetes()
        around = TransformedTargetRegressor(network(), **LOG)
        with pytest.raises(ValueError, match="pass the network alone"):
            lookahead_training(around, X, y, X, y)
        with pytest.raises(ValueError, match="pass it the network alone"):
            GradientTransformer(around, random_state=0).fit(X, y)
