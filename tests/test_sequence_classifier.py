"""SequenceClassifier: small classifiers of transformers, fine-tuned and attributed."""

import numpy as np
import pytest
import torch
import transformers
from sklearn.base import clone

from skattrib import AdamWInfluence, DualInfluence, KernelSurrogateAttributor
from skattrib.evaluation import lds_score, make_weightings, retrain_outcomes
from skattrib.language import SequenceClassifier
from tests.test_fine_tuning import build as causal_model

N_WORDS, CONTEXT = 30, 24
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3}


class Tokenizer:
    """A word a letter, after a first token."""

    pad_token_id = 0

    def __call__(self, texts, truncation=False, max_length=None):
        ids = [[1] + [2 + ord(c) % (N_WORDS - 2) for c in text] for text in texts]
        return {"input_ids": [one[:max_length] if truncation else one for one in ids]}


def build(kind="bert", dtype=torch.float32, n_labels=3):
    shared = {**SIZES, "vocab_size": N_WORDS, "num_attention_heads": 4}
    shared |= {"max_position_embeddings": CONTEXT, "num_labels": n_labels}
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        if kind == "bert":
            config = transformers.BertConfig(**shared, pad_token_id=0)
            model = transformers.BertForSequenceClassification(config)
        elif kind == "roberta":
            config = transformers.RobertaConfig(**shared, pad_token_id=0)
            model = transformers.RobertaForSequenceClassification(config)
        else:
            config = transformers.LlamaConfig(
                **shared, pad_token_id=0, bos_token_id=1, eos_token_id=2
            )
            model = transformers.LlamaForSequenceClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
    return model.to(dtype).eval()


def classifier(model=None, **options):
    options = {
        "adapter": {"r": 2, "lora_alpha": 4},
        "n_blocks": 1,
        "learning_rate": 1e-2,
        "max_epochs": 4,
        "random_state": 0,
        **options,
    }
    return SequenceClassifier(
        build() if model is None else model, Tokenizer(), **options
    )


def texts(n, seed=0):
    rng = np.random.RandomState(seed)
    words = {"bird": ["owl", "jay"], "fish": ["cod", "eel"], "tree": ["oak", "yew"]}
    labels = rng.choice(sorted(words), n)
    found = [" ".join(rng.choice(words[k], rng.randint(1, 4))) for k in labels]
    return found, labels


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("trainable", ["adapters", "last_blocks", "all"])
def test_it_begins_as_the_model_and_leaves_it_as_it_was(kind, trainable):
    model, (X, y) = build(kind), texts(9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    clf = classifier(model, trainable=trainable, learning_rate=1e-12).fit(X, y)
    wanted = []
    for text in X:
        ids = torch.tensor(Tokenizer()([text])["input_ids"])
        wanted.append(model(input_ids=ids).logits[0].softmax(dim=0))
    found = clf.predict_proba(X)
    np.testing.assert_allclose(found, torch.stack(wanted).detach().numpy(), rtol=1e-4)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_attributions_are_the_derivative_of_the_training(kind):
    X, y = texts(14)
    clf = classifier(build(kind, torch.float64), optimizer="sgd", learning_rate=0.1)
    influence = AdamWInfluence(clf, inclusion=1, inert=0.0, random_state=0)
    found = influence.fit(X[:12], y[:12]).attribute(X[12:], y[12:])

    def outcome(row, change):
        weights = np.ones(12)
        weights[row] += change
        other = clone(clf).fit(X[:12], y[:12], sample_weight=weights)
        chances = other.predict_proba(X[12:])
        return np.log(chances[np.arange(2), np.searchsorted(other.classes_, y[12:])])

    for row in (0, 7):
        wanted = (outcome(row, 1e-5) - outcome(row, -1e-5)) / 2e-5
        assert np.abs(found[:, row] - wanted).max() <= 1e-6 * np.abs(found).max()


def test_attributors_rank_retrained_classifiers():
    X, y = texts(44)
    clf = classifier(max_epochs=6)
    rows, queries = (X[:40], y[:40]), (X[40:], y[40:])
    weights = make_weightings(40, 60, random_state=1)
    truth = retrain_outcomes(clf, *rows, weights, *queries)
    for kind, options in (
        (AdamWInfluence, {"n_trajectories": 8, "n_halves": 0}),
        (DualInfluence, {}),
    ):
        influence = kind(clf, random_state=0, **options).fit(*rows)
        found = influence.attribute(*queries)
        assert lds_score(truth, weights @ found.T) > 0.5
        assert influence.transform(queries[0]).shape == (4, 40)
    frame = influence.top_units(*queries, n=2)
    assert len(frame) == 16
    surrogate = KernelSurrogateAttributor(clf, n_subsets=40, random_state=0)
    found = surrogate.fit(*rows, tasks=y[:40]).attribute(*queries)
    assert found.shape == (4, 3)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_model_may_return_tuples(kind):
    X, y = texts(12)
    expected = classifier(build(kind)).fit(X, y).predict_proba(X)
    model = build(kind)
    model.config.return_dict = False
    found = classifier(model).fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(found, expected)
    assert model.config.return_dict is False


def test_a_model_that_has_changed_is_not_asked():
    X, y = texts(12)
    model = build()
    clf = classifier(model).fit(X, y)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    with pytest.raises(ValueError, match=r"model was changed.*Fit again"):
        clf.predict(X)
    clf.fit(X, y).predict(X)


def test_it_learns_and_predicts():
    X, y = texts(60)
    clf = classifier(max_epochs=12, class_weight="balanced").fit(X, y)
    assert clf.score(X, y) > 0.9
    assert clf.predict(X[:3]).dtype == y.dtype
    assert not hasattr(clone(clf), "classes_")
    weights = (np.arange(60) < 40).astype(float)
    kept = clone(clf).fit(X, y, sample_weight=weights)
    assert np.abs(kept.predict_proba(X) - clf.predict_proba(X)).max() > 1e-3


def test_new_layers_are_drawn_from_the_seed(tmp_path):
    """A saved model without classes gets them, another for each seed."""
    model = build()
    model.bert.save_pretrained(tmp_path)
    X, y = texts(12)
    clf = classifier(str(tmp_path)).set_params(learning_rate=1e-12)
    one, same = (clone(clf).fit(X, y).predict_proba(X) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    other = clone(clf).set_params(random_state=1).fit(X, y).predict_proba(X)
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_adapters_are_in_blocks_and_classes_are_trained(kind):
    X, y = texts(12)
    clf = classifier(build(kind), n_blocks=None).fit(X, y)
    trained = [n for n, p in clf.network_.module_.named_parameters() if p.requires_grad]
    adapters = [name for name in trained if "lora_" in name]
    assert all(".layer." in name for name in adapters)
    others = {name for name in trained if "lora_" not in name}
    head = {n for n, _ in clf.network_.module_.model.classifier.named_parameters()}
    assert others == {f"model.classifier.{name}" for name in head}


def test_positions_that_begin_after_padding_are_counted():
    X, y = texts(12)
    X = [*X[:-1], "owl " * 20]
    clf = classifier(build("roberta")).fit(X, y)
    assert clf._tokenised(X)[0].shape[2] == CONTEXT - 1


def test_what_cannot_be_trained_is_refused():
    X, y = texts(12)
    with pytest.raises(ValueError, match=r"model has 2 labels, and y 3 classes"):
        classifier(build(n_labels=2)).fit(X, y)
    model = build("llama")
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match=r"set model.config.pad_token_id"):
        classifier(model).fit(X, y)
    with pytest.raises(ValueError, match=r"X must be a 1-D sequence of str"):
        classifier().fit(np.zeros((12, 2)), y)
    with pytest.raises(ValueError, match=r"max_length=30 is more than the 24 tokens"):
        classifier(max_length=30).fit(X, y)
    nothing = {"input_ids": [[]] * 12}
    bare = classifier().set_params(tokenizer=lambda texts, **_: nothing)
    with pytest.raises(ValueError, match=r"X\[0\] is '.*': it has no tokens"):
        bare.fit(X, y)
    with pytest.raises(ValueError, match=r"linear layers are \['dense', 'key'"):
        classifier(adapter={"target_modules": ["wrong"]}).fit(X, y)
    with pytest.raises(ValueError, match=r"is LlamaForCausalLM.*ForSequenceClassif"):
        classifier(causal_model()).fit(X, y)
    with pytest.raises(ValueError, match=r"is BertModel, which has no scores"):
        classifier(build().bert).fit(X, y)


def test_scores_that_depend_on_padding_are_refused():
    """XLNet's are of the last place of a row, and it reads texts of any length."""
    config = transformers.XLNetConfig(
        vocab_size=N_WORDS, d_model=16, n_layer=2, n_head=2, d_inner=24, num_labels=3
    )
    with torch.random.fork_rng():
        model = transformers.XLNetForSequenceClassification(config)
    X, y = texts(12)
    with pytest.raises(ValueError, match=r"XLNet.* depend on the padding of a text"):
        classifier(model).fit(X, y)
    same = [text[:3].ljust(3, "a") for text in X]
    clf = classifier(model).fit(same, y)
    with pytest.raises(ValueError, match=r"XLNet.* depend on the padding of a text"):
        clf.predict(["ab", "abc"])
