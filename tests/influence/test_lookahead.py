"""lookahead_training, against plain training, real weights and a slow reference."""

import numpy as np
import pytest
import sklearn
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits, load_iris
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import scale
from torch import nn

from skattrib import (
    AdamWInfluence,
    TorchClassifier,
    TorchRegressor,
    lookahead_training,
)
from skattrib.engine._functional import FunctionalModule
from skattrib.engine._losses import CrossEntropy
from skattrib.engine._optimizers import map_state
from skattrib.engine._training import train
from skattrib.engine._trajectory import Recipe
from skattrib.exceptions import FaithfulnessWarning
from skattrib.models.recording._estimators import RecordedClassifier


def data(n=40, n_val=12):
    X, y = load_iris(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = scale(X)[order], y[order]
    return X[:n], y[:n], X[-n_val:], y[-n_val:]


def net(**options):
    options = {"hidden_layer_sizes": (5,), "max_epochs": 3, "batch_size": 13, **options}
    return TorchClassifier(random_state=0, **options)


def params_of(estimator):
    return FunctionalModule(estimator.module_).flatten()


def by_step(found, name):
    ends = np.flatnonzero(np.diff(found.steps)) + 1
    return np.split(found[name], ends)


MODELS = {
    "adamw": net(),
    "adam clipped": net(optimizer="adam", weight_decay=0.1, clip_norm=0.3),
    "sgd": net(optimizer="sgd", learning_rate=0.1),
    "nesterov cosine": net(
        optimizer="sgd", momentum=0.8, nesterov=True, schedule="cosine"
    ),
    "full batch": net(batch_size=None, max_epochs=9, schedule="linear_warmup"),
}


# ----------------------------------------------------------------- identities
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("horizon", [1, 5, "run"])
def test_nothing_left_out_is_plain_training(model, horizon):
    X, y, X_val, y_val = data()
    weights = np.random.RandomState(0).uniform(0, 2, 40)
    weights[3] = 0
    found = lookahead_training(
        model, X, y, X_val, y_val, horizon=horizon, drop=0, sample_weight=weights
    )
    plain = sklearn.clone(model).fit(X, y, sample_weight=weights)
    assert_allclose(params_of(found.estimator), params_of(plain), atol=1e-12)
    assert_allclose(found.estimator.loss_curve_, plain.loss_curve_, atol=1e-12)
    if model.optimizer != "sgd":
        assert_allclose(
            found.estimator.trajectory_.denominator,
            plain.trajectory_.denominator,
            atol=1e-12,
        )
    assert found.kept.all()
    log_p = np.log(plain.predict_proba(X_val)[np.arange(12), y_val])
    assert found.validation_loss[-1] == pytest.approx(-log_p.mean(), abs=1e-10)
    n_steps = found.steps.max()
    n_windows = 1 if horizon == "run" else -(-n_steps // horizon)
    assert len(found.validation_loss) == n_windows + 1


def test_a_recorded_run_that_began_in_the_middle_of_another():
    X, y, X_val, y_val = data()
    plain = net(record="states").fit(X, y)
    recipe, state = plain.trajectory_.recipe, plain.trajectory_.states[5]
    rest = Recipe(
        recipe.optimizer,
        recipe.learning_rates[5:],
        state.params[0],
        recipe.batches[5:],
        n_before=5,
        moments=map_state(torch.flatten, state.optimizer),
    )
    end = params_of(plain)
    network = FunctionalModule(plain.module_)
    network.load(rest.initial)
    recorded = RecordedClassifier(network.module, rest)
    found = lookahead_training(recorded, X, y, X_val, y_val, horizon=3, drop=0)
    assert_allclose(params_of(found.estimator), end, atol=1e-12)
    assert found.steps.max() == 7


@pytest.mark.parametrize("name", ["adamw", "adam clipped", "sgd", "full batch"])
@pytest.mark.parametrize("horizon", [1, 3])
def test_scores_are_derivatives_of_the_window_run_again(name, horizon):
    """Central differences in the weight of a row at one step, in a later window."""
    X, y, X_val, y_val = data()
    model = sklearn.clone(MODELS[name]).set_params(record="states")
    weights = np.random.RandomState(0).uniform(0.5, 2, 40)
    found = lookahead_training(
        model, X, y, X_val, y_val, horizon=horizon, drop=0.2, sample_weight=weights
    )
    estimator = found.estimator
    first = 2 * horizon  # steps before the third window
    recipe, state = estimator.trajectory_.recipe, estimator.trajectory_.states[first]
    window = (found.steps > first) & (found.steps <= first + horizon)
    rows, sizes = found.rows[window], np.bincount(found.steps[window])[first + 1 :]
    # one virtual row for each row of each step
    again = Recipe(
        recipe.optimizer,
        recipe.learning_rates[first : first + horizon],
        state.params[0],
        np.split(np.arange(len(rows)), np.cumsum(sizes)[:-1]),
        recipe.clip_norm,
        first,
        map_state(torch.flatten, state.optimizer),
    )
    network = FunctionalModule(estimator.module_)
    virtual, targets = torch.tensor(X[rows]), torch.tensor(y[rows])

    def outcome(vector):
        params = train(
            network, CrossEntropy(), again, virtual, targets, vector[None]
        ).params[0]
        logits = network.outputs(params, torch.tensor(X_val))
        return -nn.functional.cross_entropy(logits, torch.tensor(y_val)).item()

    own, h = torch.tensor(weights[rows]), 1e-4
    scores = found.scores[window]
    for i in range(0, len(rows), 7):
        step = torch.zeros(len(rows), dtype=torch.float64)
        step[i] = h * own[i]
        # fourth order: the error of the differences is below the one asked for
        slope = (
            8 * (outcome(own + step) - outcome(own - step))
            - (outcome(own + 2 * step) - outcome(own - 2 * step))
        ) / (12 * h)
        assert_allclose(scores[i], slope, rtol=1e-6, atol=1e-6 * np.abs(scores).max())


def reference(model, X, y, X_val, y_val, horizon, drop):
    """Unrolled AdamW differentiated by autograd; steps really taken by torch.optim."""
    plain = sklearn.clone(model).fit(X, y)
    batches = plain.trajectory_.recipe.batches
    network = FunctionalModule(plain.module_)
    X, y, X_val, y_val = map(torch.tensor, (X, y, X_val, y_val))
    theta = nn.Parameter(plain.trajectory_.recipe.initial.clone())
    optimizer = torch.optim.AdamW(
        [theta], lr=model.learning_rate, weight_decay=model.weight_decay
    )
    m = v = torch.zeros_like(theta)
    kept = []
    for s in range(0, len(batches), horizon):
        window = batches[s : s + horizon]
        weights = [torch.ones(len(b), dtype=X.dtype).requires_grad_() for b in window]
        p, first, second = theta.detach().clone().requires_grad_(), m, v
        for t, (rows, w) in enumerate(zip(window, weights), s + 1):
            losses = nn.functional.cross_entropy(
                network.outputs(p, X[rows]), y[rows], reduction="none"
            )
            loss = (w * losses).sum() / w.sum()
            (g,) = torch.autograd.grad(loss, p, create_graph=True)
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
            root = (second / (1 - 0.999**t)).sqrt() + 1e-8
            p = p * (1 - model.learning_rate * model.weight_decay)
            p = p - model.learning_rate * first / (1 - 0.9**t) / root
        end = nn.functional.cross_entropy(network.outputs(p, X_val), y_val)
        harm = torch.autograd.grad(end, weights)
        for rows, h in zip(window, harm):
            stay = np.sort(np.argsort(h.numpy())[: len(rows) - int(drop * len(rows))])
            kept.append(rows[stay])
            optimizer.zero_grad()
            logits = network.outputs(theta, X[kept[-1]])
            nn.functional.cross_entropy(logits, y[kept[-1]]).backward()
            optimizer.step()
        state = optimizer.state[theta]
        m, v = state["exp_avg"].clone(), state["exp_avg_sq"].clone()
    return kept, theta.detach()


@pytest.mark.parametrize("horizon", [1, 2, 5, 12])
def test_selection_is_that_of_a_slow_reference(horizon):
    X, y, X_val, y_val = data()
    found = lookahead_training(net(), X, y, X_val, y_val, horizon=horizon, drop=0.25)
    kept, theta = reference(net(), X, y, X_val, y_val, horizon, 0.25)
    own = [r[k] for r, k in zip(by_step(found, "rows"), by_step(found, "kept"))]
    assert len(own) == len(kept) == 12
    for mine, theirs in zip(own, kept):
        assert_array_equal(mine, theirs)
    assert_allclose(params_of(found.estimator), theta, atol=1e-10)


def test_the_record_is_of_the_run_that_was_taken():
    X, y, X_val, y_val = data()
    model = net(record="states")
    found = lookahead_training(model, X, y, X_val, y_val, horizon=3, drop=0.25)
    trajectory = found.estimator.trajectory_
    for rows, kept, batch in zip(
        by_step(found, "rows"), by_step(found, "kept"), trajectory.recipe.batches
    ):
        assert_array_equal(rows[kept], batch)
    assert sorted(trajectory.states) == list(range(13))
    assert_allclose(trajectory.states[12].params[0], params_of(found.estimator), atol=0)
    assert_allclose(trajectory.states[0].params[0], trajectory.recipe.initial, atol=0)
    # attributors see the rows kept: no warning that the record is of another run
    influence = AdamWInfluence(FrozenEstimator(found.estimator), random_state=0)
    attributions = influence.fit(X, y).attribute(X_val, y_val)
    never = np.setdiff1d(np.arange(40), found.rows[found.kept])
    assert 0 < len(never) < 40
    assert_array_equal(attributions[:, never], 0)
    assert np.abs(attributions).max() > 0
    # but retraining by the parameters would train on all rows
    influence.set_params(n_retrainings=8)
    with pytest.warns(FaithfulnessWarning, match="again on all rows misses"):
        influence.score(X_val, y_val)


@pytest.mark.parametrize("drop", [0.3, 0.9])
def test_the_lowest_scores_are_left_out_and_weights_of_zero_do_not_count(drop):
    X, y, X_val, y_val = data()
    weights = np.ones(40)
    weights[:20] = 0
    found = lookahead_training(
        net(), X, y, X_val, y_val, horizon=2, drop=drop, sample_weight=weights
    )
    assert found.kept[found.rows < 20].all()
    n_left_out = 0
    for rows, kept, scores in zip(
        *(by_step(found, k) for k in ("rows", "kept", "scores"))
    ):
        n_present = (rows >= 20).sum()
        assert (~kept).sum() == min(int(drop * n_present), max(0, n_present - 1))
        if not kept.all():
            n_left_out += (~kept).sum()
            assert scores[~kept].max() < scores[kept & (rows >= 20)].min()
    assert n_left_out > 12
    dropped = lookahead_training(
        net(batch_size=None), X[20:], y[20:], X_val, y_val, drop=0.29
    )
    zeroed = lookahead_training(
        net(batch_size=None), X, y, X_val, y_val, drop=0.29, sample_weight=weights
    )
    a, b = dropped, zeroed
    assert_array_equal(a.rows[~a.kept] + 20, b.rows[~b.kept])


def test_shares_are_rounded_down_to_whole_rows():
    X, y, X_val, y_val = data(100)
    found = lookahead_training(
        net(batch_size=None, max_epochs=1), X, y, X_val, y_val, drop=0.29
    )
    assert (~found.kept).sum() == 29  # although 0.29 * 100 < 29
    assert found.kept.shape == (100,)


def test_same_result_twice_in_either_precision_and_under_little_memory():
    X, y, X_val, y_val = data()
    found = lookahead_training(net(), X, y, X_val, y_val, horizon="run", drop=0.2)
    again = lookahead_training(net(), X, y, X_val, y_val, horizon=99, drop=0.2)
    for name in ("steps", "rows", "kept", "scores", "validation_loss"):
        assert_array_equal(found[name], again[name])
    assert torch.equal(params_of(found.estimator), params_of(again.estimator))
    with sklearn.config_context(working_memory=0.02):
        lean = lookahead_training(net(), X, y, X_val, y_val, horizon="run", drop=0.2)
    assert_allclose(lean.scores, found.scores, atol=1e-12)
    single = lookahead_training(
        net(), X.astype(np.float32), y, X_val, y_val, horizon=3, drop=0.2
    )
    assert single.scores.dtype == np.float32
    assert next(single.estimator.module_.parameters()).dtype == torch.float32


def test_regression_with_several_outputs():
    X, _, X_val, _ = data()
    model = TorchRegressor(
        hidden_layer_sizes=(4,), max_epochs=40, batch_size=10, random_state=0
    )
    y = X[:, 2:].copy()
    y[:10] = 3.0
    options = {"horizon": 4, "drop": 0.2}
    found = lookahead_training(
        model, X[:, :2], y, X_val[:, :2], X_val[:, 2:], **options
    )
    plain = sklearn.clone(model).fit(X[:, :2], y)
    errors = [
        0.5 * ((m.predict(X_val[:, :2]) - X_val[:, 2:]) ** 2).sum(axis=1).mean()
        for m in (found.estimator, plain)
    ]
    assert found.validation_loss[-1] == pytest.approx(errors[0], abs=1e-10)
    assert errors[0] < 0.7 * errors[1]
    bad = found.rows < 10
    assert (~found.kept[bad]).mean() > 2 * (~found.kept[~bad]).mean()


def test_baseline_dynamics_are_other_scores():
    X, y, X_val, y_val = data()
    exact, sgd = (
        lookahead_training(
            net(), X, y, X_val, y_val, horizon="run", drop=0, dynamics=dynamics
        )
        for dynamics in ("recorded", "sgd")
    )
    assert np.abs(exact.scores - sgd.scores).max() > 1e-4


def test_progress(capsys):
    X, y, X_val, y_val = data()
    lookahead_training(net(), X, y, X_val, y_val, verbose=1)
    assert "lookahead_training: 100%" in capsys.readouterr().err
    lookahead_training(net(), X, y, X_val, y_val)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
# ------------------------------------------------------------------- real gain
def test_noisy_labels_do_less_harm():
    """Digits, 30 % of the training labels drawn anew: the mean of three seeds."""
    X, y = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(y))
    X, y = (X[order] / 16).astype(np.float32), y[order]
    errors, caught = [], []
    for seed in range(3):
        rng = np.random.RandomState(seed)
        noisy, labels = rng.rand(600) < 0.3, y[:600].copy()
        labels[noisy] = rng.randint(10, size=noisy.sum())
        model = TorchClassifier(
            hidden_layer_sizes=(16,),
            activation="relu",
            batch_size=50,
            max_epochs=8,
            random_state=seed,
        )
        found = lookahead_training(
            model, X[:600], labels, X[600:800], y[600:800], horizon=2, drop=0.1
        )
        plain = sklearn.clone(model).fit(X[:600], labels)
        errors.append([1 - m.score(X[800:], y[800:]) for m in (plain, found.estimator)])
        caught.append(noisy[found.rows[~found.kept]].mean())
    plain, selected = np.mean(errors, axis=0)
    assert selected < 0.9 * plain
    assert np.mean(caught) > 0.5


# ------------------------------------------------------------------- bad input
def no_data(*args):
    raise AssertionError("trained before everything was checked")


X0, Y0, XV, YV = data()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": 1.0}, r"'drop' parameter.*\[0.0, 1.0\).*Got 1.0"),
        ({"drop": -0.1}, r"'drop' parameter.*Got -0.1"),
        ({"drop": 0.05}, r"drop=0.05 of a minibatch of 13.*at least 20"),
        ({"horizon": 0}, r"'horizon' parameter.*Got 0"),
        ({"horizon": 2.5}, r"'horizon' parameter.*Got 2.5"),
        ({"horizon": "all"}, r"'horizon' parameter.*'run'.*Got 'all'"),
        ({"dynamics": "adam"}, r"'dynamics' parameter"),
        ({"estimator": net(batch_size=1)}, r"minibatch of 1 .*batch_size to at least"),
        ({"estimator": net(learning_rate=-1)}, r"'learning_rate' parameter.*Got -1"),
        ({"estimator": nn.Tanh()}, r"TorchClassifier\(module=...\)"),
        ({"estimator": LogisticRegression()}, r"got LogisticRegression"),
        ({"estimator": FrozenEstimator(net())}, r"pass the estimator that it holds"),
        ({"estimator": make_pipeline(PCA(), net())}, r"pass the network alone"),
        ({"X_val": XV[:, :3]}, r"X_val and y_val.*X has 3 features"),
        ({"X_val": XV[:5]}, r"X_val and y_val.*inconsistent numbers"),
        ({"X_val": XV * np.nan}, r"X_val and y_val.*NaN"),
        ({"y_val": YV + 1}, r"y_val holds labels that y does not: \[3\]"),
        ({"y": np.zeros(40)}, r"one class only"),
        ({"sample_weight": -np.ones(40)}, r"[Nn]egative"),
        ({"sample_weight": np.ones(3)}, r"sample_weight"),
    ],
)
def test_bad_input(change, message, monkeypatch):
    monkeypatch.setattr("skattrib.influence._lookahead.train", no_data)
    options = {"estimator": net(), "X": X0, "y": Y0, "X_val": XV, "y_val": YV, **change}
    with pytest.raises(ValueError, match=message):
        lookahead_training(**options)


def test_bad_columns_of_a_regression():
    model = TorchRegressor(max_epochs=2, random_state=0)
    with pytest.raises(ValueError, match=r"y_val has shape \(12, 2\).*1 outputs"):
        lookahead_training(model, X0, X0[:, 0], XV, XV[:, :2])


def test_scores_that_do_not_fit_the_memory():
    with sklearn.config_context(working_memory=0.001):
        with pytest.raises(ValueError, match=r"scores take 0\.00 MiB, over the cap"):
            lookahead_training(net(), X0, Y0, XV, YV)


def test_training_that_diverges():
    model = net(optimizer="sgd", learning_rate=1e30, activation="identity")
    with pytest.raises(ValueError, match=r"diverged with learning_rate=1e\+30"):
        lookahead_training(model, X0, Y0, XV, YV, horizon=4)


def test_derivatives_that_overflow():
    X, y = X0.astype(np.float32), Y0
    model = net(optimizer="sgd", learning_rate=30.0, activation="tanh", max_epochs=100)
    with pytest.raises(ValueError, match="Shorten horizon"):
        lookahead_training(model, X, y, XV, YV, horizon="run")


def test_trained_modules_are_trained_again_with_a_warning():
    fitted = TorchClassifier.from_module(net().fit(X0, Y0).module_, [0, 1, 2])
    fitted.set_params(max_epochs=2, random_state=0)
    with pytest.warns(FaithfulnessWarning, match="FrozenEstimator") as caught:
        found = lookahead_training(fitted, X0, Y0, XV, YV)
    assert caught[0].filename == __file__
    assert found.estimator.trajectory_ is not None
    assert fitted.trajectory_ is None
