"""Data sets of Hugging Face in the place of texts and labels."""

import sys
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import TensorDataset

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    RISEValuator,
    TaskWeightSelector,
    TorchClassifier,
    lookahead_training,
)
from skattrib.evaluation import retrain_outcomes
from skattrib.language import CausalLanguageModel
from tests.test_fine_tuning import Tokenizer, build, texts, tuned
from tests.test_sequence_classifier import classifier
from tests.test_sequence_classifier import texts as labelled


class WithWords(Tokenizer):
    def get_vocab(self):
        return {chr(i): i for i in range(len(self))}


@pytest.fixture(scope="module")
def rows():
    X, y = texts(8)
    return list(X), list(y)


@pytest.fixture(scope="module")
def dataset(rows):
    prompts, answers = rows
    columns = {"source": list("abababab"), "row": range(8)}
    columns |= {"prompt": prompts, "answer": answers}
    return datasets.Dataset.from_dict(columns)


def test_columns_are_prompts_and_completions(rows, dataset):
    by_name, by_list = tuned().fit(dataset, "answer"), tuned().fit(*rows)
    expected = by_list.log_likelihood(*rows)
    np.testing.assert_array_equal(by_name.log_likelihood(dataset, "answer"), expected)
    assert by_name.score(dataset, "answer") == by_list.score(*rows)
    as_tensors = dataset.with_format("torch")
    np.testing.assert_array_equal(
        by_name.log_likelihood(as_tensors, "answer"), expected
    )
    columns = tuned().fit(dataset["prompt"], dataset["answer"])
    np.testing.assert_array_equal(columns.log_likelihood(*rows), expected)


def test_attributions_keep_the_order_of_the_rows(rows, dataset):
    shuffled = dataset.shuffle(seed=3)
    order = list(shuffled["row"])
    assert order != sorted(order)
    influence = AdamWInfluence(tuned(), inclusion=1, random_state=0)
    found = influence.fit(shuffled, "answer").attribute(dataset, "answer")
    prompts, answers = (np.array(texts, dtype=object) for texts in rows)
    influence = AdamWInfluence(tuned(), inclusion=1, random_state=0)
    expected = influence.fit(prompts[order], answers[order]).attribute(*rows)
    np.testing.assert_array_equal(found, expected)
    assert influence.score(dataset, "answer") == influence.score(*rows)


def test_sources_are_a_column(dataset):
    influence = AdamWInfluence(tuned(), inclusion=1, random_state=0)
    influence.fit(dataset, "answer", tasks=dataset["source"])
    assert influence.unit_names_.tolist() == ["a", "b"]


def test_truth_and_selection_take_them(rows, dataset):
    weights = 1.0 - np.eye(8)[:2]
    found = retrain_outcomes(tuned(), dataset, "answer", weights, dataset, "answer")
    expected = retrain_outcomes(tuned(), *rows, weights, *rows)
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"or train_batch_size to at least 10"):
        lookahead_training(tuned(), dataset, "answer", dataset, "answer")
    options = {"drop": 0.3}
    chosen = lookahead_training(
        tuned(), dataset, "answer", dataset, "answer", **options
    )
    by_list = lookahead_training(tuned(), *rows, *rows, **options)
    np.testing.assert_array_equal(chosen.scores, by_list.scores)


def selector():
    influence = AdamWInfluence(tuned(), inclusion=1, random_state=0)
    return TaskWeightSelector(influence, n_tasks_to_select=1, cv=2, random_state=0)


@pytest.mark.filterwarnings("ignore::skattrib.exceptions.FaithfulnessWarning")
@pytest.mark.parametrize("trusted", [False, True])
def test_sources_are_selected_from_them(rows, dataset, trusted):
    tasks = list(dataset["source"])
    X_val, y_val = (list(dataset["prompt"])[:3], list(dataset["answer"])[:3])
    by_list, by_name = {"X_val": X_val, "y_val": y_val}, {}
    if trusted:
        by_name = {"X_val": dataset.select(range(3)), "y_val": "answer"}
    expected = selector().fit(*rows, tasks=tasks, **(by_list if trusted else {}))
    found = selector().fit(dataset, "answer", tasks=tasks, **by_name)
    np.testing.assert_array_equal(found.task_weights_, expected.task_weights_)
    np.testing.assert_array_equal(found.selected_tasks_, expected.selected_tasks_)
    # a part of the data set, and the name: what fit takes
    kept, column = selector().fit_resample(dataset, "answer", tasks=tasks, **by_name)
    assert isinstance(kept, datasets.Dataset)
    assert list(kept["row"]) == np.flatnonzero(expected.sample_weight_).tolist()
    assert column == "answer"
    chosen = tuned().fit(kept, column).log_likelihood(*rows)
    weighted = tuned().fit(
        dataset.filter(lambda row: row["row"] in kept["row"]), "answer"
    )
    np.testing.assert_array_equal(chosen, weighted.log_likelihood(*rows))


@pytest.mark.filterwarnings("ignore::skattrib.exceptions.FaithfulnessWarning")
def test_completions_without_prompts_are_selected(rows):
    _, answers = rows
    alone, tasks = datasets.Dataset.from_dict({"text": answers}), list("abababab")
    trusted = alone.select(range(3))
    options = {"tasks": tasks, "X_val": trusted, "y_val": "text"}
    kept, column = selector().fit_resample(alone, "text", **options)
    assert column == "text"
    options |= {"X_val": [None] * 3, "y_val": answers[:3]}
    prompts, completions = selector().fit_resample(None, answers, **options)
    assert prompts is None
    assert completions == list(kept["text"])
    by_list = selector().fit([None] * 8, answers, **options)
    assert completions == [
        text for text, w in zip(answers, by_list.sample_weight_, strict=True) if w
    ]


def test_a_selector_says_which_columns_there_are(dataset):
    unfitted = selector()
    with pytest.raises(ValueError, match=r"y='completion' is no column of X"):
        unfitted.fit(dataset, "completion")
    assert not hasattr(unfitted, "support_")


@pytest.mark.filterwarnings("ignore::skattrib.exceptions.FaithfulnessWarning")
def test_rows_are_selected_from_a_dataset_of_torch():
    rng = np.random.RandomState(0)
    X, tasks = rng.randn(60, 3).astype(np.float32), np.arange(60) % 3
    y = (X[:, 0] > 0).astype(int)
    dual = DualInfluence(TorchClassifier(max_epochs=3, random_state=0), random_state=0)
    select = TaskWeightSelector(dual, n_tasks_to_select=2, random_state=0)
    dataset = TensorDataset(torch.tensor(X), torch.tensor(y))
    expected, _ = select.fit_resample(X, y, tasks=tasks)
    kept, targets = select.fit_resample(dataset, None, tasks=tasks)
    assert targets is None
    np.testing.assert_array_equal(np.stack([x for x, _ in kept]), expected)


def test_units_are_shown_with_its_columns(rows, dataset):
    influence = AdamWInfluence(tuned(), inclusion=1, random_state=0)
    influence.fit(dataset, "answer")
    shown = dataset.rename_column("row", "number")
    table = influence.top_units(dataset, "answer", n=2, data=shown)
    frame = pd.DataFrame({name: list(shown[name]) for name in shown.column_names})
    expected = influence.top_units(*rows, n=2, data=frame)
    pd.testing.assert_frame_equal(table, expected)
    assert table["number"].tolist() == table["unit"].tolist()
    as_numpy = influence.top_units(*rows, n=2, data=shown.with_format("numpy"))
    pd.testing.assert_frame_equal(as_numpy, expected)
    louder = shown.with_transform(
        lambda batch: {"loud": list(map(str.upper, batch["answer"]))}
    )
    loud = influence.top_units(*rows, n=2, data=louder)["loud"]
    assert loud.tolist() == table["answer"].str.upper().tolist()
    for given, message in {
        "rank": (shown.rename_column("number", "rank"), r"data has columns.*'rank'"),
        "several": (datasets.DatasetDict(train=shown), r"data is a .*data\['train'\]"),
        "stream": (shown.to_iterable_dataset(), r"data is an IterableDataset"),
        "short": (shown.select(range(3)), r"data has 3 rows for 8 units"),
    }.values():
        with pytest.raises(ValueError, match=message):
            influence.top_units(*rows, data=given)


def test_an_index_takes_them(rows, dataset):
    lm = CausalLanguageModel(build(), Tokenizer())
    with pytest.raises(ValueError, match=r"get_vocab"):
        RISEValuator(lm, random_state=0).fit(dataset, "answer")
    lm.set_params(tokenizer=WithWords())
    rise = RISEValuator(lm, random_state=0)
    found = rise.fit(dataset, "answer").attribute(dataset, "answer")
    expected = RISEValuator(lm, random_state=0).fit(*rows).attribute(*rows)
    np.testing.assert_array_equal(found, expected)


def test_classes_are_a_column():
    X, y = labelled(12)
    dataset = datasets.Dataset.from_dict({"text": list(X), "label": list(y)})
    dataset = dataset.class_encode_column("label")
    names = dataset.features["label"].names
    clf = classifier().fit(dataset, "label")
    expected = classifier().fit(X, y)
    predicted = np.array(names)[clf.predict(dataset)]
    np.testing.assert_array_equal(predicted, expected.predict(X))
    np.testing.assert_array_equal(clf.predict_proba(dataset), expected.predict_proba(X))
    assert clf.score(dataset, "label") == expected.score(X, y)
    by_tensors = classifier().fit(dataset.with_format("torch"), "label")
    np.testing.assert_array_equal(by_tensors.predict(X), clf.predict(X))


def test_what_a_transform_makes_is_what_is_read(rows, dataset):
    prompts, answers = rows
    louder = dataset.with_transform(
        lambda batch: {**batch, "prompt": [f"oh {text}" for text in batch["prompt"]]}
    )
    expected = tuned().fit([f"oh {text}" for text in prompts], answers)
    found = tuned().fit(louder, "answer")
    np.testing.assert_array_equal(
        found.log_likelihood(*rows), expected.log_likelihood(*rows)
    )


def test_classes_of_other_packages_may_be_called_datasets(monkeypatch):
    class Dataset(TensorDataset):
        pass

    ours = SimpleNamespace(Dataset=Dataset, DatasetDict=lambda: None)
    monkeypatch.setitem(sys.modules, "datasets", ours)
    Dataset.__module__ = "datasets"
    X = np.random.RandomState(0).randn(20, 2).astype(np.float32)
    y = np.arange(20) % 2
    clf = TorchClassifier(max_epochs=2, random_state=0)
    found = clf.fit(Dataset(torch.tensor(X), torch.tensor(y))).predict(X)
    np.testing.assert_array_equal(found, clf.fit(X, y).predict(X))


def test_completions_without_prompts(rows):
    _, answers = rows
    alone = datasets.Dataset.from_dict({"text": answers})
    expected = tuned().fit(None, answers).log_likelihood(None, answers)
    lm = tuned().fit(alone, "text")
    np.testing.assert_array_equal(lm.log_likelihood(alone, "text"), expected)


@pytest.mark.parametrize(
    ("change", "column", "message"),
    [
        (lambda d: d, "completion", r"y='completion' is no column of X.*'answer'\]"),
        (lambda d: d.rename_column("prompt", "question"), "answer", "has neither"),
        (lambda d: d.rename_column("source", "text"), "answer", "it has both"),
        (
            lambda d: d.map(lambda row: {"answer": None if row["row"] == 2 else "x"}),
            "answer",
            r"y='answer' of X has no value in the rows \[2\]",
        ),
        (lambda d: datasets.DatasetDict(train=d), "answer", r"such as X\['train'\]"),
        (lambda d: d.to_iterable_dataset(), "answer", "IterableDataset, which has no"),
    ],
)
def test_what_has_no_such_columns_is_refused(dataset, change, column, message):
    lm = tuned()
    with pytest.raises(ValueError, match=message):
        lm.fit(change(dataset), column)
    assert not hasattr(lm, "network_")
    with pytest.raises(ValueError, match=message):
        AdamWInfluence(tuned()).fit(change(dataset), column)
