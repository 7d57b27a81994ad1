"""CausalLanguageModel that is trained: small models, adapters by peft."""

import copy
import itertools
import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import scipy
import torch
import transformers
from sklearn import config_context
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.metadata_routing import get_routing_for_object
from torch import nn

from skattrib import (
    AdamWInfluence,
    DualInfluence,
    KernelSurrogateAttributor,
    RISEValuator,
    TorchRegressor,
    lookahead_training,
    make_attributor,
    plan,
)
from skattrib.evaluation import lds_score, make_weightings, retrain_outcomes
from skattrib.exceptions import UnsupportedModelError
from skattrib.extension import as_model
from skattrib.language import CausalLanguageModel

N_WORDS, CONTEXT = 40, 32
SIZES = {"vocab_size": N_WORDS, "bos_token_id": 0, "eos_token_id": 1}


class Tokenizer:
    """A word a letter."""

    all_special_ids, bos_token_id, eos_token_id = [0, 1], 0, 1

    def __len__(self):
        return N_WORDS

    def __call__(self, texts, add_special_tokens=True):
        assert not add_special_tokens
        return {"input_ids": [[2 + ord(c) % (N_WORDS - 2) for c in t] for t in texts]}


#: Models whose blocks look back at a few tokens only, some of them.
WINDOWED = {
    "mistral": ("Mistral", {"sliding_window": 4}),
    "qwen2 by windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
}


def build(kind="llama", dtype=torch.float32, n_layers=3):
    """Return a small causal model of transformers with random weights."""
    wide = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": n_layers}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    context = {"max_position_embeddings": CONTEXT}
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        if kind == "llama":
            config = transformers.LlamaConfig(
                **SIZES, **wide, **heads, **context, tie_word_embeddings=True
            )
            model = transformers.LlamaForCausalLM(config)
        elif kind in WINDOWED:
            name, options = WINDOWED[kind]
            options = {**SIZES, **wide, **heads, **context, **options}
            config = getattr(transformers, f"{name}Config")(**options)
            model = getattr(transformers, f"{name}ForCausalLM")(config)
        elif kind == "roberta":
            config = transformers.RobertaConfig(
                **SIZES,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=n_layers,
                num_attention_heads=4,
                is_decoder=True,
            )
            model = transformers.RobertaForCausalLM(config)
        elif kind == "qwen2":
            config = transformers.Qwen2Config(**SIZES, **wide, **heads, **context)
            model = transformers.Qwen2ForCausalLM(config)
        else:
            config = transformers.GPT2Config(
                **SIZES, n_embd=16, n_layer=n_layers, n_head=4, n_positions=CONTEXT
            )
            model = transformers.GPT2LMHeadModel(config)
    # as from_pretrained gives it; weights as large as trained ones
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model.to(dtype).eval()


def texts(n, seed=0):
    """Return prompts and completions of different length."""
    rng = np.random.RandomState(seed)
    words = ["cat", "dog", "sun", "sea", "map", "ink", "owl"]
    sizes = rng.randint(1, 4, n)
    prompts = [" ".join(rng.choice(words, 1 + i % 2)) for i in range(n)]
    return prompts, [" " + " ".join(rng.choice(words, size)) for size in sizes]


SMALL = {"r": 2, "lora_alpha": 4}


def tuned(model=None, **options):
    options = {
        "trainable": "adapters",
        "adapter": SMALL,
        "n_blocks": 2,
        "learning_rate": 1e-2,
        "train_batch_size": 6,
        "random_state": 0,
        **options,
    }
    return CausalLanguageModel(
        build() if model is None else model, Tokenizer(), **options
    )


def mean_losses(model, prompts, completions):
    """Return the mean loss of each completion and its end, and its tokens."""
    losses, counts = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        before, after = Tokenizer()([prompt, completion], False)["input_ids"]
        ids = torch.tensor([before + after + [1]])
        logits = model(input_ids=ids[:, :-1]).logits[0, len(before) - 1 :]
        losses.append(nn.functional.cross_entropy(logits, ids[0, len(before) :]))
        counts.append(len(after) + 1)
    return torch.stack(losses), torch.tensor(counts)


# ------------------------------------------------------------------------ the module
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize(
    ("trainable", "n_blocks"),
    [("adapters", 2), ("adapters", None), ("last_blocks", 1), ("all", 4)],
)
def test_it_begins_as_the_model_that_it_was_given(kind, trainable, n_blocks):
    model, (X, y) = build(kind), texts(5)
    lm = tuned(
        model, trainable=trainable, n_blocks=n_blocks, learning_rate=1e-12, max_epochs=1
    ).fit(X, y)
    with torch.no_grad():
        losses, counts = mean_losses(model, X, y)
    np.testing.assert_allclose(
        lm.log_likelihood(X, y), -(losses * counts).numpy(), rtol=2e-5
    )


@pytest.mark.parametrize("kind", WINDOWED)
@pytest.mark.parametrize("n_blocks", [1, 2, None])
def test_blocks_look_back_as_far_as_the_model_lets_them(kind, n_blocks):
    model, (X, y) = build(kind), texts(5)
    lm = tuned(model, n_blocks=n_blocks, learning_rate=1e-12, max_epochs=1).fit(X, y)
    with torch.no_grad():
        losses, counts = mean_losses(model, X, y)
    expected = -(losses * counts).numpy()
    np.testing.assert_allclose(lm.log_likelihood(X, y), expected, rtol=2e-5)


def test_a_model_with_more_between_blocks_and_head_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"RobertaForCausalLM cannot be"):
        tuned(build("roberta")).fit(*texts(4))


def test_a_model_that_has_changed_is_read_anew():
    model, (X, y) = build(), texts(6)
    lm = tuned(model, learning_rate=1e-12, max_epochs=1).fit(X, y)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.5)
        losses, counts = mean_losses(model, X, y)
    expected = -(losses * counts).numpy()
    with pytest.raises(ValueError, match=r"model was changed.*Fit again"):
        lm.log_likelihood(X, y)
    with pytest.raises(ValueError, match=r"model was changed.*Fit again"):
        AdamWInfluence(FrozenEstimator(lm), inclusion=1, random_state=0).fit(X, y)
    kept = pickle.loads(pickle.dumps(lm))  # with the weights as they are
    assert np.isfinite(kept.log_likelihood(X, y)).all()
    np.testing.assert_allclose(lm.fit(X, y).log_likelihood(X, y), expected, rtol=2e-5)


@pytest.mark.parametrize("trainable", ["adapters", "last_blocks"])
def test_attributors_of_a_model_that_has_changed_say_so(trainable):
    model, (X, y) = build(), texts(6)
    fitted = tuned(model, trainable=trainable, n_blocks=1, max_epochs=1)
    influence = AdamWInfluence(fitted, inclusion=1, random_state=0).fit(X, y)
    dual = DualInfluence(fitted, random_state=0).fit(X, y)
    before = influence.attribute(X, y)
    # none of this changes what they are built upon
    model.requires_grad_(False).train().eval()
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    with torch.random.fork_rng():
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), model)
    np.testing.assert_array_equal(influence.attribute(X, y), before)
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    for attributor in (influence, dual):
        with pytest.raises(ValueError, match=r"model was changed.*Fit again"):
            attributor.attribute(X[:3], y[:3])
    with pytest.raises(ValueError, match=r"model was changed.*Fit again"):
        influence.self_attribution()


@pytest.mark.parametrize("how", ["olora", "pissa", "gaussian", "orthogonal"])
def test_adapters_that_begin_otherwise_leave_the_model_as_it_was(how):
    model, (X, y) = build(), texts(6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuned(model, adapter={**SMALL, "init_lora_weights": how}).fit(X, y)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("trainable", ["adapters", "last_blocks", "all"])
def test_training_leaves_the_model_as_it_was(trainable):
    model, (X, y) = build(), texts(6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kernel = model.config._attn_implementation
    lm = tuned(model, trainable=trainable).fit(X, y)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.config._attn_implementation == kernel
    moved = lm.log_likelihood(X, y) - clone(lm).set_params(max_epochs=1).fit(
        X, y
    ).log_likelihood(X, y)
    assert np.abs(moved).min() > 1e-3


def test_blocks_below_run_once_for_each_text(monkeypatch):
    model, (X, y) = build(n_layers=4), texts(8)
    lm = tuned(model, n_blocks=1)
    whole = tuned(model, n_blocks=None, adapter={**SMALL, "layers_to_transform": [3]})
    lm.fit(X, y)
    below = lm.network_.module_._below
    assert len(below._kept) == 8
    calls = []
    monkeypatch.setattr(type(below), "_computed", lambda *args: calls.append(args))
    again = lm.log_likelihood(X, y)
    assert not calls
    monkeypatch.undo()
    # the same as with all blocks above
    whole.fit(X, y)
    np.testing.assert_allclose(again, whole.log_likelihood(X, y), rtol=1e-5)


def fork_begins_anew(on_disk):
    """Whether a fork forgets what is in a file whose position it would share."""
    known, child = next(iter(on_disk._places)), os.fork()
    if not child:
        code = 1
        try:
            code = int(known in on_disk.of_this_process())
        finally:
            os._exit(code)
    ended = os.waitpid(child, 0)[1]
    return known in on_disk.of_this_process() and ended == 0


KEPT = "skattrib.models.language._hidden_states"


def test_hidden_states_beyond_the_memory_are_on_the_disk(monkeypatch):
    X, y = texts(6)
    found = tuned().fit(X, y).log_likelihood(X, y)
    monkeypatch.setattr(f"{KEPT}.memory_cap", lambda: 0.0)
    lm = tuned().fit(X, y)
    below = lm.network_.module_._below
    assert not below._kept
    assert len(below._on_disk._places) == 6
    monkeypatch.setattr(type(below), "_computed", lambda *args: 1 / 0)
    np.testing.assert_array_equal(lm.log_likelihood(X, y), found)
    assert fork_begins_anew(below._on_disk)
    # a copy in another process begins without them
    monkeypatch.undo()
    again = pickle.loads(pickle.dumps(below))
    assert not again._on_disk._places


@pytest.mark.parametrize("full", [0, 2])
def test_hidden_states_beyond_the_disk_are_computed_again(full, monkeypatch):
    X, y = texts(6)
    found = tuned().fit(X, y).log_likelihood(X, y)
    monkeypatch.setattr(f"{KEPT}.memory_cap", lambda: 0.0)
    lm = tuned()
    if full:  # meanwhile, by others
        real = tempfile.TemporaryFile

        def almost_full(**options):
            file = real(**options)
            written = itertools.count()

            def write(values):
                if next(written) >= full:
                    raise OSError(28, "No space left on device")
                return file.write(values)

            return SimpleNamespace(
                seek=file.seek, read=file.read, flush=file.flush, write=write
            )

        monkeypatch.setattr(f"{KEPT}.tempfile.TemporaryFile", almost_full)
    else:
        none = SimpleNamespace(free=0)
        monkeypatch.setattr(f"{KEPT}.shutil.disk_usage", lambda folder: none)
    lm.fit(X, y)
    assert len(lm.network_.module_._below._on_disk._places) == full
    np.testing.assert_allclose(lm.log_likelihood(X, y), found, rtol=1e-5)


# --------------------------------------------------------------------- the training
def torch_loop(lm, model, X, y, weights):
    """Train a model with adapters by a loop of torch's own; return it."""
    recipe = lm.trajectory_.recipe
    module = copy.deepcopy(model)
    config = peft.LoraConfig(
        **SMALL,
        target_modules=[f"{name}_proj" for name in "down gate k o q up v".split()],
        layers_to_transform=[1, 2],
    )
    with torch.random.fork_rng():
        module = peft.inject_adapter_in_model(config, module)
    trained = [p for name, p in module.named_parameters() if "lora_" in name]
    sizes = [p.numel() for p in trained]
    with torch.no_grad():
        for p, start in zip(trained, recipe.initial.split(sizes), strict=True):
            p.copy_(start.view_as(p))
    optimizer = torch.optim.AdamW(trained, weight_decay=0.0)
    for rows, rate in zip(recipe.batches, recipe.learning_rates, strict=True):
        rows = np.asarray(rows)
        kept = rows[weights[rows] > 0]
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad(set_to_none=False)
        if len(kept):  # else a step without gradient
            batch = ([texts[i] for i in kept] for texts in (X, y))
            losses, counts = mean_losses(module, *batch)
            share = torch.tensor(weights[kept], dtype=losses.dtype)
            if lm.normalization == "token":
                share = share * counts
            ((losses * share).sum() / share.sum()).backward()
        torch.nn.utils.clip_grad_norm_(trained, lm.clip_norm)
        optimizer.step()
    return module


@pytest.mark.parametrize("normalization", ["text", "token"])
def test_it_is_trained_as_a_loop_of_torch_trains(normalization):
    model, (X, y) = build(), texts(13)
    weights = np.where(np.arange(13) % 4 == 1, 0.0, 1 + np.arange(13) % 3)
    lm = tuned(model, normalization=normalization).fit(X, y, sample_weight=weights)
    by_loop = torch_loop(lm, model, X, y, weights)
    with torch.no_grad():
        losses, counts = mean_losses(by_loop, X, y)
    np.testing.assert_allclose(
        lm.log_likelihood(X, y), -(losses * counts).numpy(), rtol=1e-5
    )


def test_the_two_normalizations_train_different_models():
    X, y = texts(12)
    text, token = (
        tuned(normalization=name).fit(X, y).log_likelihood(X, y)
        for name in ("text", "token")
    )
    assert np.abs(text - token).max() > 1e-2


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"normalization": "token"}),
        ("gpt2", {"adapter": {**SMALL, "lora_dropout": 0.3}}),
        ("qwen2", {"trainable": "last_blocks", "n_blocks": 1}),
        ("llama", {"trainable": "all", "normalization": "token"}),
    ],
)
def test_attributions_are_the_derivative_of_the_training(kind, options):
    X, y = texts(14)
    model = build(kind, torch.float64, n_layers=2)
    # away from zero gradients, where differences would need smaller steps
    optimizer = "sgd" if options.get("trainable") == "all" else "adamw"
    rate = 0.1 if optimizer == "sgd" else 1e-3
    lm = tuned(
        model, **{"n_blocks": 1, "max_epochs": 3, **options}, optimizer=optimizer
    ).set_params(learning_rate=rate)
    influence = AdamWInfluence(lm, inclusion=1, inert=0.0, random_state=0)
    found = influence.fit(X[:12], y[:12]).attribute(X[12:], y[12:])
    assert lm.get_params()["max_epochs"] == 3

    def outcome(row, change):
        weights = np.ones(12)
        weights[row] += change
        other = clone(lm).fit(X[:12], y[:12], sample_weight=weights)
        return other.log_likelihood(X[12:], y[12:])

    step = 1e-5
    for row in (0, 5):
        wanted = (outcome(row, step) - outcome(row, -step)) / (2 * step)
        error = np.abs(found[:, row] - wanted).max()
        assert error <= 1e-6 * np.abs(found).max()


# -------------------------------------------------------------------- attributors
@pytest.fixture(scope="module")
def case():
    X, y = texts(28)
    lm = tuned(max_epochs=4)
    weights = make_weightings(24, 60, random_state=1)
    truth = retrain_outcomes(lm, X[:24], y[:24], weights, X[24:], y[24:])
    return lm, (X[:24], y[:24]), (X[24:], y[24:]), weights, truth


def test_derivatives_of_half_runs_rank_retrained_models(case):
    lm, rows, queries, weights, truth = case
    influence = AdamWInfluence(lm, n_trajectories=8, n_halves=0, random_state=0)
    found = influence.fit(*rows).attribute(*queries)
    assert found.shape == (4, 24)
    assert lds_score(truth, weights @ found.T) > 0.7
    assert influence.score(*queries) > 0.6


def test_one_run_answers_at_weights_of_one(case):
    lm, rows, queries, _, _ = case
    influence = AdamWInfluence(lm, inclusion=1, random_state=0).fit(*rows)
    found = influence.predict_outcomes(*queries, np.ones((1, 24)))
    fitted = influence.estimator_
    np.testing.assert_allclose(found[0], fitted.log_likelihood(*queries), rtol=1e-6)
    # adapters begin at zero: parameters without gradient do not move
    assert influence._inert_at(1) == 0.03


@pytest.mark.parametrize("normalization", ["text", "token"])
def test_the_tangent_is_curved_by_what_is_drawn_from_the_model(normalization):
    """Against a dense solution with its own gradients, text by text and by token."""
    X, y = texts(10)
    lm = tuned(build(dtype=torch.float64), normalization=normalization)
    dual = DualInfluence(lm, removal="influence", random_state=0).fit(X[:8], y[:8])
    found = dual.attribute(X[8:], y[8:])

    network = dual.estimator_.network_
    module = copy.deepcopy(network.module_)
    rows, counts = dual.estimator_._tokenised(X, y)
    params = [p for p in module.parameters() if p.requires_grad]

    def gradient(row):
        loss = module(torch.tensor(row[None], dtype=torch.float64))[0]
        return [
            torch.cat(
                [
                    g.flatten()
                    for g in torch.autograd.grad(one, params, retain_graph=True)
                ]
            )
            for one in loss
        ]

    curved = as_model(dual.estimator_).curved(rows[:8], dual._fit_seed)[1]
    drawn = torch.stack([torch.stack(gradient(row)) for row in curved])
    n_draws = drawn.shape[1] - 1
    weights = np.ones(8) if normalization == "text" else counts[:8]
    share = torch.tensor(weights / weights.sum())
    hessian = torch.einsum("n,nsp,nsq->pq", share, drawn[:, 1:], drawn[:, 1:]) / n_draws
    scale = network.trajectory_.denominator
    scale = scale.clamp(min=1e-3 * scale.mean())
    hessian += dual.ridge_ * torch.diag(scale / scale.mean())
    queries = torch.stack([counts[8 + i] * gradient(rows[8 + i])[0] for i in range(2)])
    steps = scipy.linalg.solve(hessian.numpy(), (share[:, None] * drawn[:, 0]).T)
    effects = -queries @ torch.tensor(steps)
    # without the gradient that training left: the mean over rows does nothing
    centred = effects - share * effects.sum(dim=1, keepdim=True)
    centred = -centred.numpy()
    np.testing.assert_allclose(found, centred, atol=1e-6 * np.abs(centred).max())


def test_the_tangent_ranks_retrained_models(case):
    lm, rows, queries, weights, truth = case
    dual = DualInfluence(lm, random_state=0).fit(*rows)
    found = dual.attribute(*queries)
    assert lds_score(truth, weights @ found.T) > 0.6
    assert dual.diagnose(*queries).step_linearity < 0.5
    short = dual.attribute(["cat"], [" sun"])
    both = dual.attribute(["cat", "cat dog sun"], [" sun", " ink owl map sea"])
    np.testing.assert_allclose(both[:1], short, atol=1e-5 * np.abs(short).max())
    own = dual.self_attribution()
    few = dual.attribute(*(texts[:5] for texts in rows))
    np.testing.assert_allclose(own[:5], few.diagonal(), rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match=r"use predict_outcomes"):
        dual.output_change(queries[0], np.ones((1, 24)))
    (again,) = dual.ridge_path(*queries, ridges=[dual.ridge_])
    np.testing.assert_allclose(again, found, atol=1e-4 * np.abs(found).max())


def test_tokens_add_up_to_their_text(case):
    _, rows, queries, _, _ = case
    lm = tuned(build(dtype=torch.float64))
    influence = AdamWInfluence(lm, inclusion=1, random_state=0).fit(*rows)
    whole = influence.attribute(*queries)
    found = influence.attribute(*queries, per_token=True)
    counts = influence.estimator_._tokenised(*queries)[1].astype(int)
    assert found.shape == (counts.sum(), 24)
    sums = np.add.reduceat(found, np.r_[0, counts.cumsum()[:-1]])
    np.testing.assert_allclose(sums, whole, rtol=0, atol=1e-8 * np.abs(whole).max())
    frame = influence.attribute(*queries, per_token=True, as_frame=True)
    assert list(frame)[:3] == ["query", "position", "token"]
    last = frame[frame["query"] == 3].drop_duplicates("position")
    assert last["position"].tolist() == list(range(counts[3]))
    assert last["token"].tolist()[-1] == "1"  # the end
    few = influence.attribute(*queries, per_token=True, as_frame=True, top_k=2)
    assert len(few) == 4 * counts.sum()


def test_other_models_have_no_tokens(case):
    lm, rows, queries, _, _ = case
    X, y = np.random.RandomState(0).randn(2, 12, 2)
    dual = DualInfluence(TorchRegressor(random_state=0), random_state=0).fit(X, y[:, 0])
    with pytest.raises(ValueError, match=r"per_token=True is for a language model"):
        dual.attribute(X, y[:, 0], per_token=True)
    influence = AdamWInfluence(lm, inclusion=1, random_state=0).fit(*rows)
    with pytest.raises(ValueError, match=r"reduce='mean' is of queries together"):
        influence.attribute(*queries, per_token=True, reduce="mean")


def test_a_frozen_one_is_taken_as_it_is(case):
    lm, rows, queries, _, _ = case
    fitted = clone(lm).fit(*rows)
    influence = AdamWInfluence(FrozenEstimator(fitted), random_state=0).fit(*rows)
    again = AdamWInfluence(lm, inclusion=1, random_state=0).fit(*rows)
    np.testing.assert_allclose(
        influence.attribute(*queries), again.attribute(*queries), rtol=1e-4, atol=1e-6
    )


def test_sources_are_units_of_a_surrogate(case):
    lm, rows, queries, _, _ = case
    sources = np.arange(24) % 6
    surrogate = KernelSurrogateAttributor(lm, random_state=0)
    found = surrogate.fit(*rows, tasks=sources).attribute(*queries)
    assert found.shape == (4, 6)
    assert np.isfinite(found).all()
    truth = retrain_outcomes(lm, *rows, 1 - np.eye(6), *queries, tasks=sources)
    present = retrain_outcomes(lm, *rows, np.ones((1, 6)), *queries, tasks=sources)
    assert lds_score(present - truth, found.T) > 0.5


def test_what_to_begin_with_and_its_plan(case):
    lm, rows, _, _, _ = case
    assert isinstance(make_attributor(lm), AdamWInfluence)
    table = plan(lm, *rows)
    assert table.index[0] == "AdamWInfluence"
    assert np.isfinite(table["seconds"]).all()


def test_texts_are_left_out_while_it_trains(case):
    lm, rows, queries, _, _ = case
    found = lookahead_training(lm, *rows, *queries, horizon=2, drop=0.2)
    plain = lookahead_training(lm, *rows, *queries, horizon=2, drop=0)
    after, before = (
        one.estimator.log_likelihood(*queries).sum() for one in (found, plain)
    )
    assert after > before


# ------------------------------------------------------------------ of an estimator
def test_clones_share_the_model_and_pickles_answer(case):
    lm, rows, queries, _, _ = case
    fitted = clone(lm).fit(*rows)
    assert clone(fitted).model_ is fitted.model_ is lm.model_
    assert not hasattr(clone(fitted), "trajectory_")
    copied = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(
        copied.log_likelihood(*queries), fitted.log_likelihood(*queries)
    )
    assert fitted.trajectory_.recipe.n_steps == 16


def test_clones_keep_what_clones_keep():
    with config_context(enable_metadata_routing=True):
        lm = tuned(random_state=np.random.RandomState(0))
        lm.set_fit_request(sample_weight=True)
        other = clone(lm)
        assert get_routing_for_object(other).fit.requests["sample_weight"] is True
    assert other.random_state is not lm.random_state
    assert other.adapter is not lm.adapter


def test_a_search_over_learning_rates(case):
    lm, rows, queries, _, _ = case
    search = GridSearchCV(lm, {"learning_rate": [1e-12, 1e-2]}, cv=2)
    influence = AdamWInfluence(search, inclusion=1, random_state=0).fit(*rows)
    assert influence.estimator_.best_params_ == {"learning_rate": 1e-2}
    assert influence.attribute(*queries).shape == (4, 24)


def test_new_texts_of_other_length_have_a_value(case):
    lm, rows, queries, _, _ = case
    dual = DualInfluence(lm, random_state=0).fit(*rows)
    new = ["cat", "dog dog"], [" sun", " sun sun sun sun owl owl"]
    found = dual.value_new(*new, *queries)
    alone = [dual.value_new([x], [y], *queries)[0] for x, y in zip(*new, strict=True)]
    np.testing.assert_allclose(found, alone, rtol=1e-3)


def test_the_same_seed_gives_the_same_model(case):
    lm, rows, queries, _, _ = case
    one, same = (clone(lm).fit(*rows).log_likelihood(*queries) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    other = clone(lm).set_params(random_state=1).fit(*rows).log_likelihood(*queries)
    assert np.abs(one - other).max() > 1e-3


# ------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("options", "X", "y", "message"),
    [
        ({}, ["a", "b"], ["c", ""], r"y\[1\] is empty"),
        ({}, ["a", "b"], ["c"], "inconsistent numbers of samples"),
        ({}, ["a" * 40, "b"], ["c", "d"], r"longer than the 32 tokens .*tasks="),
        ({"max_length": 4}, ["abc", "b"], ["def", "d"], r"X\[0\] with 7"),
        ({"add_eos": False}, None, ["c", "dd"], r"y\[0\] is one token"),
        (
            {"adapter": {"r": 2, "target_modules": ["wrong"]}},
            ["a", "b"],
            ["c", "d"],
            r"adapter=.*wrong.*linear layers are \['down_proj'",
        ),
        ({"adapter": {"rank": 2}}, ["a", "b"], ["c", "d"], "is no LoRA.*rank"),
        ({"adapter": {"bias": "all"}}, ["a", "b"], ["c", "d"], "bias='all', which"),
        (
            {"adapter": peft.LoraConfig(r=2, target_modules=["wrong"])},
            ["a", "b"],
            ["c", "d"],
            r"adapter=LoraConfig\(r=2, target_modules={'wrong'}\) does not fit Llama",
        ),
        (
            {"adapter": peft.LoraConfig(modules_to_save=["norm"])},
            ["a", "b"],
            ["c", "d"],
            r"modules_to_save=\['norm'\], which would train more",
        ),
        (
            {"adapter": {"target_modules": ".*q_proj"}},
            ["a", "b"],
            ["c", "d"],
            r"a pattern for all blocks.*n_blocks=None",
        ),
        (
            {"adapter": {"layers_to_transform": []}},
            ["a", "b"],
            ["c", "d"],
            r"layers_to_transform=\[\]",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(options, X, y, message):
    lm = tuned(**options)
    with pytest.raises(ValueError, match=message):
        lm.fit(X, y)
    assert not hasattr(lm, "network_")
    with pytest.raises(ValueError, match=message):
        AdamWInfluence(lm, random_state=0).fit(X, y)


def test_a_tokenizer_needs_an_end_token_to_end_texts():
    tokenizer = Tokenizer()
    tokenizer.eos_token_id = None
    lm = tuned().set_params(tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"no end token.*add_eos=False"):
        lm.fit(*texts(4))
    lm.set_params(add_eos=False).fit(*texts(4))


@pytest.mark.slow
def test_outcomes_are_found_again_in_another_process(tmp_path):
    """The key of what is kept depends on no hash seed and no address."""
    code = """
from skattrib.models._memory import digest
from tests.test_fine_tuning import tuned
print(digest(tuned()._network()))
"""
    keys = set()
    for seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[1],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        keys.add(done.stdout.strip())
    assert len(keys) == 1


def test_a_completion_is_ended_once():
    X, y = ["ab", "c"], ["de", "fgh"]
    rows, counts = tuned()._tokenised(X, y)
    assert counts.tolist() == [3, 4]

    class Ending(Tokenizer):
        def __call__(self, texts, add_special_tokens=True):
            ids = super().__call__(texts, add_special_tokens)["input_ids"]
            return {"input_ids": [[*one, 1] if len(one) > 1 else one for one in ids]}

    ended = tuned().set_params(tokenizer=Ending())
    again, counts = ended._tokenised(["a", "c"], y)
    assert counts.tolist() == [3, 4]
    np.testing.assert_array_equal(again[1], rows[1][:, : again.shape[2]])


def test_a_model_with_adapters_is_refused():
    X, y = texts(4)
    with torch.random.fork_rng():
        config = peft.LoraConfig(target_modules=["q_proj"])
        model = peft.inject_adapter_in_model(config, build())
    with pytest.raises(ValueError, match=r"adapters already.*merge_and_unload"):
        tuned(model).fit(X, y)


def test_other_attributors_say_which_work(case):
    lm, rows, queries, _, _ = case
    with pytest.raises(UnsupportedModelError, match=r"AdamWInfluence"):
        RISEValuator(lm, random_state=0).fit(*rows)
    influence = AdamWInfluence(lm, inclusion=1, random_state=0).fit(*rows)
    with pytest.raises(ValueError, match=r"y is missing.*completions"):
        influence.attribute(queries[0])
    with pytest.raises(ValueError, match=r"y is missing.*completions"):
        influence.transform(queries[0])
    with pytest.raises(InvalidParameterError, match="trainable"):
        tuned(trainable="head").fit(*rows)
    dual = DualInfluence(lm, random_state=0).fit(*rows)
    with pytest.raises(UnsupportedModelError, match=r"influence_measures.*attribute"):
        dual.influence_measures()
    with pytest.raises(ValueError, match=r"parameters='head'.*'all'"):
        DualInfluence(lm, parameters="head", random_state=0).fit(*rows)


def test_weights_do_nothing_where_nothing_is_trained():
    lm = CausalLanguageModel(build(), Tokenizer())
    with pytest.raises(ValueError, match=r"sample_weight.*trainable='adapters'"):
        lm.fit(*texts(4), sample_weight=np.ones(4))
