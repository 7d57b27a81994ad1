"""Images, sequences, whole numbers and data sets of torch, as a module takes them."""

import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    EarlyStopping,
    KernelSurrogateAttributor,
    LinearSurrogateAttributor,
    RISEValuator,
    TorchClassifier,
    TorchRegressor,
    lookahead_training,
    plan,
    record_training,
)
from skattrib.evaluation import (
    SetOutcome,
    make_weightings,
    retrain_outcomes,
)
from skattrib.exceptions import FaithfulnessWarning
from skattrib.plotting import AttributionDisplay
from skattrib.random_projection import GradientTransformer

N, N_WORDS, LENGTH = 16, 9, 5
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def images():
    rng = np.random.RandomState(0)
    X = rng.randn(N + 4, 1, 8, 8)
    y = (X[:, 0, :4].mean(axis=(1, 2)) > 0).astype(int)
    y[:4] = [0, 1, 0, 1]
    return X, y


def sentences():
    rng = np.random.RandomState(1)
    X = rng.randint(0, N_WORDS, (N + 4, LENGTH))
    y = (X == 3).any(axis=1).astype(int)
    y[:4] = [0, 1, 0, 1]
    return X, y


def convolutional(shape, n_outputs):
    assert shape == (1, 8, 8)
    return nn.Sequential(
        nn.Conv2d(1, 2, 4, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(18, n_outputs),
    )


def unflattened(n_features, n_outputs):
    assert n_features == 64
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), *convolutional((1, 8, 8), n_outputs)
    )


class Words(nn.Module):
    """The mean of the vectors of words."""

    def __init__(self, n_features, n_outputs):
        super().__init__()
        assert n_features == LENGTH
        self.words = nn.Embedding(N_WORDS, 3)
        self.end = nn.Linear(3, n_outputs)

    def forward(self, X):
        return self.end(self.words(X).mean(dim=1).tanh())


class CastWords(Words):
    """The same, which turns numbers into integers by itself."""

    def forward(self, X):
        return super().forward(X.long())


class Recurrent(nn.Module):
    def __init__(self, n_features, n_outputs):
        super().__init__()
        self.words = nn.Embedding(N_WORDS, 3)
        self.cell = nn.GRU(3, 3, batch_first=True)
        self.end = nn.Linear(3, n_outputs)

    def forward(self, X):
        return self.end(self.cell(self.words(X))[0][:, -1])


class CastRecurrent(Recurrent):
    def forward(self, X):
        return super().forward(X.long())


def network(module, **params):
    options = {"max_epochs": 2, "learning_rate": 0.05, "random_state": 0}
    return TorchClassifier(module, **options | params)


def built(module, *args):
    """A module whose weights leave the global generator alone."""
    with torch.random.fork_rng():
        torch.random.manual_seed(0)
        return module(*args)


def quietly(call, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call(*args, **options)


ATTRIBUTORS = {
    "dual": DualInfluence(),
    "adamw": AdamWInfluence(inclusion=1, n_halves=0),
    "halves": AdamWInfluence(n_trajectories=2, n_halves=16),
    "kernel": KernelSurrogateAttributor(n_subsets=12),
    "retrained": LinearSurrogateAttributor(n_subsets=12, estimation="retrain"),
    "rise": RISEValuator(),
}


def attributor(name, estimator):
    return clone(ATTRIBUTORS[name]).set_params(
        estimator=estimator, n_retrainings=8, random_state=0
    )


# ---------------------------------------------------------------- any shape of rows
def test_images_are_taken_as_they_are():
    X, y = images()
    flat = X.reshape(len(X), -1)
    one = network(convolutional, batch_size=5).fit(X, y)
    other = network(unflattened, batch_size=5).fit(flat, y)
    assert_array_equal(one.predict_proba(X), other.predict_proba(flat))
    assert_array_equal(one.decision_function(X), other.decision_function(flat))
    assert one.score(X, y) == other.score(flat, y)
    assert one.n_features_in_ == X.shape[1]
    assert_array_equal(one.predict(X), pickle.loads(pickle.dumps(one)).predict(X))
    regressor = TorchRegressor(convolutional, max_epochs=2, random_state=0)
    assert regressor.fit(X, X[:, 0, 0, 0]).predict(X).shape == (len(X),)


@pytest.mark.parametrize("name", ATTRIBUTORS)
def test_attributions_are_those_of_flat_rows(name):
    X, y = images()
    flat, found = X.reshape(len(X), -1), []
    weights = make_weightings(N, 3, random_state=0)
    for rows, module in ((X, convolutional), (flat, unflattened)):
        fitted = quietly(attributor(name, network(module)).fit, rows[:N], y[:N])
        queries = rows[N:], y[N:]
        found.append(
            [
                fitted.attribute(*queries),
                fitted.attribute(rows[N:], reduce="mean"),
                fitted.self_attribution(),
                fitted.transform(rows[N:]),
                quietly(fitted.score, *queries),
            ]
        )
        if name != "rise":
            found[-1].append(fitted.predict_outcomes(*queries, weights))
        if name in ("dual", "adamw", "halves", "rise"):
            found[-1].append(fitted.value_new(rows[-2:], y[-2:], *queries))
        assert fitted.X_train_.shape == rows[:N].shape
        if rows is flat:
            continue
        if hasattr(fitted, "diagnose"):
            quietly(fitted.diagnose, *queries)
        table = fitted.top_units(*queries, n=2, data=pd.DataFrame({"y": y[:N]}))
        assert len(table) == 4 * 4
        assert fitted.model_without([0, 1]).predict(rows[:2]).shape == (2,)
    for one, other in zip(*found, strict=True):
        assert_allclose(one, other, **EXACT)


def test_units_sets_plans_and_truth_of_images():
    X, y = images()
    flat = X.reshape(len(X), -1)
    tasks, weights = np.arange(N) % 8, make_weightings(8, 3, random_state=0)
    spread = SetOutcome(lambda outputs, targets: outputs.std(-2).sum(-1))
    found = []
    for rows, module in ((X, convolutional), (flat, unflattened)):
        model = network(module)
        dual = DualInfluence(model, outcome=spread, random_state=0)
        dual.fit(rows[:N], y[:N], tasks=tasks)
        options = {"tasks": tasks, "outcome": spread}
        data = rows[:N], y[:N], weights, rows[N:], y[N:]
        truth = retrain_outcomes(model, *data, **options)
        frozen = FrozenEstimator(clone(model).fit(rows[:N], y[:N]))
        again = retrain_outcomes(frozen, *data, **options)
        assert_allclose(again, truth, **EXACT)
        found.append([dual.attribute(rows[N:], y[N:]), truth])
    for one, other in zip(*found, strict=True):
        assert one.shape in ((1, 8), (3, 1))
        assert_allclose(one, other, **EXACT)
    table = plan(dual.set_params(estimator=network(convolutional)), X, y)
    assert table.loc["DualInfluence", "trainings"] == 1


def test_a_frozen_module_and_a_recorded_loop_of_images():
    X, y = images()
    rows, targets = torch.tensor(X[:N]), torch.tensor(y[:N])
    module = built(convolutional, (1, 8, 8), 2).double()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05)
    recording = record_training(module, optimizer)
    with recording:
        for _ in range(3):
            recording.rows(np.arange(N))
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(rows), targets).backward()
            optimizer.step()
    recorded = FrozenEstimator(recording.to_classifier(X[:N], y[:N]))
    wrapped = FrozenEstimator(TorchClassifier.from_module(module, [0, 1]))
    queries = X[N:], y[N:]
    assert_allclose(recorded.predict_proba(X), wrapped.predict_proba(X), rtol=1e-9)
    adamw = AdamWInfluence(recorded, random_state=0).fit(X[:N], y[:N])
    assert adamw.attribute(*queries).shape == (4, N)
    flat, found = X.reshape(len(X), -1), []
    cut = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *module)
    for rows, trained in ((X, module), (flat, cut)):
        wrapped = FrozenEstimator(TorchClassifier.from_module(trained, [0, 1]))
        dual = DualInfluence(wrapped, ridge=0.1, random_state=0).fit(rows[:N], y[:N])
        found.append(dual.attribute(rows[N:], y[N:]))
    assert_allclose(*found, **EXACT)


def test_other_users_of_networks_take_images():
    X, y = images()
    flat = X.reshape(len(X), -1)
    model = network(convolutional)
    scores = cross_val_score(model, X, y, cv=2)
    assert_allclose(scores, cross_val_score(network(unflattened), flat, y, cv=2))
    gradients = [
        GradientTransformer(network(module), random_state=0).fit_transform(rows, y)
        for rows, module in ((X, convolutional), (flat, unflattened))
    ]
    assert_allclose(*gradients, **EXACT)
    found = lookahead_training(
        network(convolutional, batch_size=8), X[:N], y[:N], X[N:], y[N:], drop=0.2
    )
    assert found.estimator.predict(X[:2]).shape == (2,)
    # shape and pixels come from a step before
    reshape = FunctionTransformer(np.reshape, kw_args={"shape": (-1, 1, 8, 8)})
    dual = DualInfluence(make_pipeline(reshape, model), random_state=0)
    direct = DualInfluence(model, random_state=0).fit(X[:N], y[:N])
    found = dual.fit(flat[:N], y[:N]).attribute(flat[N:], y[N:])
    assert_allclose(found, direct.attribute(X[N:], y[N:]), **EXACT)


def test_pictures_of_images_have_their_pixels():
    X, y = images()
    dual = DualInfluence(network(convolutional), random_state=0).fit(X, y)
    display = AttributionDisplay.from_estimator(
        dual, X[:1], y[:1], image_shape=(8, 8), n_top=1
    )
    assert_array_equal(np.reshape(display.rows, X.shape), X)
    colours = np.random.RandomState(0).rand(4, 3, 2, 5)  # colours first, as in torch
    display = AttributionDisplay.from_predictions(
        np.arange(4.0), rows=colours, image_shape=(2, 5, 3), n_top=1
    )
    shown = np.reshape(display.rows, (4, 2, 5, 3))
    assert_array_equal(shown, colours.transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    "estimator",
    [TorchClassifier(), DualInfluence(), DualInfluence(LogisticRegression())],
    ids=["network", "attributor", "linear"],
)
def test_tables_stay_tables(estimator):
    X, y = images()
    with pytest.raises(ValueError, match=r"Found array with dim 4.*\(module="):
        estimator.fit(X, y)


def test_another_shape_is_refused_by_both_shapes():
    X, y = images()
    flat = X.reshape(len(X), -1)
    fitted = network(convolutional).fit(X, y)
    dual = DualInfluence(fitted, random_state=0).fit(X, y)
    other = r"\(1, 8, 8\).*fitted to rows of shape \(64,\)"
    both = r"rows of shape \(64,\), but {} was fitted to rows of shape \(1, 8, 8\)"
    with pytest.raises(ValueError, match=both.format("TorchClassifier")):
        fitted.predict(flat)
    with pytest.raises(ValueError, match=both.format("DualInfluence")):
        dual.attribute(flat.tolist(), y)
    with pytest.raises(ValueError, match=both.format("TorchClassifier")):
        retrain_outcomes(fitted, X, y, np.ones((1, len(y))), flat, y)
    with pytest.raises(ValueError, match=other):
        network(unflattened).fit(flat, y).predict(X)
    frozen = DualInfluence(FrozenEstimator(fitted), ridge=1.0, random_state=0)
    with pytest.raises(ValueError, match=both.format("TorchClassifier")):
        frozen.fit(flat, y)
    with pytest.raises(ValueError, match=r"0 feature\(s\) \(shape=\(20, 1, 0, 8\)"):
        network(convolutional).fit(X[:, :, :0], y)
    assert dual.fit(X[:, :, ::2].repeat(2, axis=2), y).attribute(X[:1]).shape == (1, 20)


# ------------------------------------------------------------------- whole numbers
def test_integers_reach_the_module_as_integers():
    X, y = sentences()
    seen = []

    class Seen(Words):
        def forward(self, X):
            outputs = super().forward(X)  # it refuses floats, as it is tried on
            seen.append(X.dtype)
            return outputs

    fitted = network(Seen).fit(X, y)
    seen.clear()
    fitted.predict(X)
    DualInfluence(FrozenEstimator(fitted), ridge=0.1, random_state=0).fit(
        X, y
    ).attribute(X[:2], y[:2])
    assert set(seen) == {torch.int64}
    assert fitted.module_.end.weight.dtype == torch.float32
    direct = fitted.module_(torch.tensor(X)).detach().softmax(-1)
    assert_allclose(direct, fitted.predict_proba(X), rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_whole_floats_are_integers_to_an_embedding(dtype):
    X, y = sentences()
    found = network(Words).fit(X.astype(dtype), y)
    cast = network(CastWords).fit(X.astype(dtype), y)
    assert_array_equal(found.predict_proba(X), cast.predict_proba(X))
    assert found.predict_proba(X).dtype == dtype
    frame = pd.DataFrame(X)
    assert_array_equal(found.predict_proba(frame), cast.predict_proba(X.tolist()))


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("dual", (Words, CastWords)),
        ("adamw", (Words, CastWords)),
        ("kernel", (Words, CastWords)),
        ("rise", (Words, CastWords)),
        ("dual", (Recurrent, CastRecurrent)),
        ("adamw", (Recurrent, CastRecurrent)),
    ],
)
def test_attributions_are_those_of_modules_that_cast(name, modules):
    X, y = sentences()
    X, found = X.astype(float), []
    for module in modules:
        fitted = attributor(name, network(module))
        quietly(fitted.fit, X[:N], y[:N])
        found.append(
            [
                fitted.attribute(X[N:].astype(int), y[N:]),
                quietly(fitted.score, X[N:], y[N:]),
            ]
        )
    for one, other in zip(*found, strict=True):
        assert_allclose(one, other, **EXACT)


@pytest.mark.parametrize("name", ["dual", "halves", "retrained", "rise"])
def test_attributions_of_integers_are_in_single_precision(name):
    X, y = sentences()
    found = []
    for rows in (X, X.astype(np.float32)):
        fitted = quietly(attributor(name, network(Words)).fit, rows[:N], y[:N])
        assert fitted.X_train_.dtype == rows.dtype
        found.append(fitted.attribute(X[N:], y[N:]))
        assert found[-1].dtype == np.float64
    assert_allclose(*found, rtol=1e-3, atol=1e-4 * np.abs(found[0]).max())


def test_steps_of_integers():
    X, y = sentences()
    adamw = AdamWInfluence(network(Words), inclusion=1, n_halves=0, random_state=0)
    steps = quietly(adamw.fit, X[:N], y[:N]).step_attribution(X[N:], y[N:])
    assert steps.attributions.dtype == np.float64


def test_tables_of_integers_are_floats_where_floats_are_taken():
    X, y = sentences()
    for kind in (nn.Linear, CastWords):
        module = built(kind, LENGTH, 2)
        fitted = network(module).fit(X, y)
        assert next(fitted.module_.parameters()).dtype == torch.float64
        again = network(module).fit(X.astype(float), y)
        assert_array_equal(fitted.predict_proba(X), again.predict_proba(X))
    pixels = (images()[0] * 50 + 120).clip(0, 255).astype(np.uint8)
    fitted = network(convolutional).fit(pixels, y)
    again = network(convolutional).fit(pixels.astype(float), y)
    assert_array_equal(fitted.predict_proba(pixels), again.predict_proba(pixels))


def test_a_wrapped_module_looks_words_up():
    X, y = sentences()
    fitted = network(Words).fit(X, y)
    bare = built(Words, LENGTH, 2)
    cast = built(CastWords, LENGTH, 2)
    for module in (bare, cast):
        module.load_state_dict(fitted.module_.state_dict())
    wrapped = FrozenEstimator(TorchClassifier.from_module(bare, [0, 1]))
    assert_array_equal(wrapped.predict_proba(X), fitted.predict_proba(X))
    options = {"ridge": 0.1, "random_state": 0}
    found = [
        DualInfluence(FrozenEstimator(frozen), **options)
        .fit(X, y)
        .attribute(X[:3], y[:3])
        for frozen in (
            TorchClassifier.from_module(module, [0, 1]) for module in (bare, cast)
        )
    ]
    assert_allclose(*found, **EXACT)
    for answer in (wrapped.predict, fitted.predict):
        with pytest.raises(ValueError, match=r"X holds \d\.5, and the module"):
            answer(X + 0.5)
    assert not bare.words._forward_pre_hooks  # the user's own
    # columns of numbers beside one of words
    mixed = TorchClassifier.from_module(built(Beside), [0, 1])
    assert mixed.predict(X / 2).shape == (20,)


class Beside(nn.Module):
    """Looks up the first column, and adds the others as numbers."""

    def __init__(self):
        super().__init__()
        self.words, self.end = nn.Embedding(N_WORDS, 2), nn.Linear(LENGTH - 1, 2)

    def forward(self, X):
        return self.words(X[:, 0].long()) + self.end(X[:, 1:])


def test_a_module_of_integers_can_be_trained_on_floats_next():
    X, y = sentences()
    fitted = network(Words).fit(X, y)
    both = built(Beside)
    again = network(both).fit(X, y)
    assert not again.module_._forward_pre_hooks
    assert fitted.module_._forward_pre_hooks
    taken = network(fitted.module_).fit(X, y)
    assert len(taken.module_._forward_pre_hooks) == 1


def test_one_logit_of_integers_is_of_two_classes():
    X, y = sentences()
    fitted = network(built(Words, LENGTH, 1)).fit(X, y)
    assert fitted.n_outputs_ == 1
    assert fitted.predict_proba(X).shape == (20, 2)


def test_numbers_without_an_embedding_are_refused_before_training():
    X, y = sentences()
    X[-3, -1] = N_WORDS
    with pytest.raises(ValueError, match=r"from 0 to 9.*index out of range"):
        network(Words).fit(X, y)
    fitted = network(Words).fit(X[:N], y[:N])
    with pytest.raises(ValueError, match=r"An nn\.Embedding has a row for each"):
        fitted.predict(X)
    with pytest.raises(ValueError, match="index out of range"):
        DualInfluence(FrozenEstimator(fitted), ridge=1.0, random_state=0).fit(
            X[:N], y[:N]
        ).attribute(X)
    with pytest.raises(ValueError, match=r"module failed.*whole numbers where"):
        network(Words).fit(X + 0.5, y)


def test_large_numbers_are_kept_exactly():
    class Remainder(Words):
        def forward(self, X):
            if X.is_floating_point():
                raise TypeError("integers are needed")
            return super().forward(X % N_WORDS)

    X, y = sentences()
    fitted = network(Remainder).fit(X + 2**24 * N_WORDS, y)
    assert fitted.module_.end.weight.dtype == torch.float64
    small = network(Words).fit(X.astype(float), y)
    assert_array_equal(fitted.predict_proba(X), small.predict_proba(X))


# ---------------------------------------------------------------- tensors, data sets
class Items(Dataset):
    """Items that a function returns."""

    def __init__(self, item, n=N):
        self.item, self.n = item, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i >= self.n:
            raise IndexError
        return self.item(i)


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(2), 0


def test_tensors_are_arrays():
    X, y = images()
    for kind in (torch.float32, torch.float64):
        rows = torch.tensor(X, dtype=kind, requires_grad=True)
        fitted = network(convolutional).fit(rows, torch.tensor(y))
        assert next(fitted.module_.parameters()).dtype == kind
        again = network(convolutional).fit(rows.detach().numpy(), y)
        assert_array_equal(fitted.predict_proba(rows), again.predict_proba(X))


def data_sets():
    X, y = images()
    whole = TensorDataset(torch.tensor(X), torch.tensor(y))
    pairs = Items(lambda i: (torch.tensor(X[i]), int(y[i])), len(X))
    order = [3, 1, 2, 0, *range(4, N)]
    return {
        "tensors": (whole, range(len(X))),
        "subset": (Subset(whole, order), order),
        "subset of subset": (Subset(Subset(whole, order), range(9)), order[:9]),
        "items": (pairs, range(len(X))),
        "subset of items": (Subset(pairs, np.array(order)), order),
        "joined": (ConcatDataset([pairs, whole]), [*range(20), *range(20)]),
    }


@pytest.mark.parametrize("name", data_sets())
def test_a_data_set_brings_rows_and_targets(name):
    (X, y), (dataset, order) = images(), data_sets()[name]
    rows, targets = X[list(order)], y[list(order)]
    one = network(convolutional).fit(dataset)
    other = network(convolutional).fit(rows, targets)
    assert_array_equal(one.predict_proba(dataset), other.predict_proba(rows))
    assert one.score(dataset) == other.score(rows, targets)


def test_attributors_take_data_sets():
    X, y = images()
    train, test = (
        Items(lambda i: (X[i], y[i])),
        TensorDataset(torch.tensor(X[N:]), torch.tensor(y[N:])),
    )
    arrays, queries = (X[:N], y[:N]), (X[N:], y[N:])
    weights = make_weightings(N, 2, random_state=0)
    model = network(convolutional)
    for name in ("dual", "retrained", "rise"):
        one = quietly(attributor(name, model).fit, train)
        other = quietly(attributor(name, model).fit, *arrays)
        assert_array_equal(one.attribute(test), other.attribute(*queries))
        if name != "dual":
            continue
        assert_array_equal(one.transform(test), other.transform(queries[0]))
        assert_array_equal(one.predict(test), other.predict(queries[0]))
        assert one.top_units(test).equals(other.top_units(*queries))
        assert one.score(test) == other.score(*queries)
        assert one.diagnose(test).verdict == other.diagnose(*queries).verdict
        predicted = one.predict_outcomes(test, None, weights)
        assert_array_equal(predicted, other.predict_outcomes(*queries, weights))
        valued = one.value_new(test, None, test)
        assert_array_equal(valued, other.value_new(*queries, *queries))
    truth = retrain_outcomes(model, train, None, weights, test, None)
    assert_array_equal(truth, retrain_outcomes(model, *arrays, weights, *queries))
    planned = DualInfluence(model, random_state=0)
    table = plan(planned, train, tasks=np.arange(N) % 4)
    assert table["trainings"].tolist() == [1.0]


def test_targets_are_needed_as_before():
    X, y = images()
    dual = DualInfluence(network(convolutional), random_state=0)
    for fit in (network(convolutional).fit, dual.fit):
        with pytest.raises(ValueError, match="requires y to be passed"):
            fit(X)
    dual.fit(X, y)
    for ask in (dual.score, dual.diagnose, dual.estimator_.score):
        with pytest.raises(ValueError, match="requires y to be passed"):
            ask(X)


def random_items(i):
    return torch.rand(3), i % 2


WRONG = {
    "no length": (Stream(), "Stream, which has no length"),
    "empty": (Items(lambda i: (np.zeros(2), 0), 0), "the Items is empty"),
    "dicts": (Items(lambda i: {"x": 1}), "Item 0 of the Items is a dict, and must"),
    "alone": (Items(lambda i: torch.zeros(2)), "Item 0 of the Items is a Tensor"),
    "triples": (Items(lambda i: (1, 2, 3)), "is a tuple of 3, and must be a pair"),
    "rows alone": (TensorDataset(torch.zeros(4, 2)), "is a tuple of 1"),
    "texts": (Items(lambda i: ("text", 1)), "The row of item 0 of the Items is a str"),
    "random": (Items(random_items), "random: item 0, read twice"),
    "numpy": (Items(lambda i: (np.random.rand(2), 0)), "random: item 0"),  # noqa: NPY002
    "lengths": (
        Items(lambda i: (np.ones(2 + (i > 5)), i % 2)),
        r"Items 0 and 6 .* rows of shapes \(2,\) and \(3,\).*pad them",
    ),
    "targets": (
        Items(lambda i: (np.ones(2), np.ones(1 + (i > 5)))),
        r"Items 0 and 6 .* targets of shapes \(1,\) and \(2,\)",
    ),
    "loader": (
        DataLoader(Items(random_items)),
        r"its dataset, loader\.dataset",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_data_sets_that_cannot_be_used_are_refused_before_training(name):
    dataset, message = WRONG[name]
    dual = DualInfluence(TorchClassifier(max_epochs=10**9), random_state=0)
    for fit in (TorchClassifier(max_epochs=10**9).fit, dual.fit):
        with pytest.raises(ValueError, match=message):
            fit(dataset)


@pytest.mark.parametrize("name", data_sets())
def test_a_data_set_decides_when_training_stops(name):
    (X, y), (dataset, order) = images(), data_sets()[name]
    fitted = []
    for data in (dataset, (X[list(order)], y[list(order)])):
        rule = EarlyStopping(patience=1, validation_data=data)
        model = network(convolutional, early_stopping=rule, max_epochs=12)
        fitted.append(model.fit(X, np.roll(y, 1)))  # learns what is wrong there
    one, other = fitted
    assert one.n_epochs_ == other.n_epochs_ < 12
    assert_array_equal(one.validation_loss_curve_, other.validation_loss_curve_)


@pytest.mark.parametrize("name", WRONG)
def test_validation_data_sets_that_cannot_be_used_are_refused(name):
    dataset, message = WRONG[name]
    X, y = images()
    with pytest.raises(ValueError, match=rf"EarlyStopping: validation_data.*{message}"):
        network(
            convolutional,
            max_epochs=10**6,
            early_stopping=EarlyStopping(validation_data=dataset),
        ).fit(X, y)


def test_validation_data_sets_of_other_rows_are_refused():
    X, y = images()
    for rows, targets, message in (
        (X[:, :, 1:], y, r"X of shape .*X of fit has rows of shape"),
        (X, y + 9, "labels unseen in fit"),
        (X + np.nan, y, "contains NaN"),
    ):
        data = TensorDataset(torch.tensor(rows), torch.tensor(targets))
        rule = EarlyStopping(validation_data=data)
        with pytest.raises(ValueError, match=f"EarlyStopping: validation.*{message}"):
            network(convolutional, early_stopping=rule).fit(X, y)


def test_a_data_set_with_other_targets_is_refused():
    X, y = images()
    dataset = TensorDataset(torch.tensor(X), torch.tensor(y))
    with pytest.raises(ValueError, match="brings its targets: leave y out"):
        network(convolutional).fit(dataset, y)
    fitted = DualInfluence(network(convolutional), random_state=0).fit(dataset)
    with pytest.raises(ValueError, match="brings its targets: leave y out"):
        fitted.attribute(dataset, y)


def test_a_table_in_a_data_set_is_a_table():
    rng = np.random.RandomState(0)
    X, y = rng.randn(N, 3), np.arange(N) % 2
    dataset = Items(lambda i: (X[i], y[i]))
    one = TorchClassifier(max_epochs=2, random_state=0).fit(dataset)
    other = TorchClassifier(max_epochs=2, random_state=0).fit(X, y)
    assert_array_equal(one.predict_proba(dataset), other.predict_proba(X))
    dual = DualInfluence(LogisticRegression(), random_state=0)
    found = dual.fit(dataset).attribute(dataset)
    assert_array_equal(found, dual.fit(X, y).attribute(X, y))


def test_no_hint_about_columns_of_images():
    X, y = images()
    X[:, :, 0] *= 1e4
    dual = quietly(DualInfluence(network(convolutional), random_state=0).fit, X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FaithfulnessWarning)
        assert "largest feature" not in dual.diagnose(X[:4], y[:4]).verdict
