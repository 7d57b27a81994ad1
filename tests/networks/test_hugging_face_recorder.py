"""Fine-tunings by transformers' Trainer, recorded by a callback."""

import pickle
import warnings
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
import transformers
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import nn

from skattrib import AdamWInfluence, DualInfluence
from skattrib.engine._trajectory import Trajectory
from skattrib.exceptions import FaithfulnessWarning, TrajectoryError
from skattrib.language import CausalLanguageModel
from skattrib.recording import HuggingFaceRecorder
from tests.test_fine_tuning import Tokenizer, build, mean_losses, texts

pytestmark = [
    pytest.mark.touches_global_rng,  # the Trainer seeds it
    # of an option that has a new name in newer versions
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
]

N = 13
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "qwen2": ["k_proj", "o_proj"],
    "gpt2": ["c_attn", "c_fc"],
}


def encoded(prompts, completions, bos=False, eos=True):
    """Return rows of a data set, as a user of the Trainer makes them."""
    rows = []
    for prompt, completion in zip(prompts, completions, strict=True):
        before, after = Tokenizer()([prompt or "", completion], False)["input_ids"]
        before, after = [0] * bos + before, after + [1] * eos
        labels = [-100] * len(before) + after
        rows.append({"input_ids": before + after, "labels": labels})
    return rows


def collate(rows, side="right"):
    """Pad rows of different length."""
    width = max(len(row["labels"]) for row in rows)
    rows = [{**row, "attention_mask": [1] * len(row["labels"])} for row in rows]
    fill = {"input_ids": 7, "labels": -100, "attention_mask": 0}
    batch = {}
    for name, value in fill.items():
        padding = [[value] * (width - len(row[name])) for row in rows]
        both = zip(rows, padding, strict=True)
        if side == "right":
            batch[name] = torch.tensor([row[name] + more for row, more in both])
        else:
            batch[name] = torch.tensor([more + row[name] for row, more in both])
    return batch


def with_adapters(model, kind="llama", **options):
    options = {"layers_to_transform": [1, 2], **options}
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    model.config.attn_pdrop = 0.0
    options = {"target_modules": TARGETS[kind], **options}
    config = peft.LoraConfig(
        r=2, lora_alpha=4, fan_in_fan_out=kind == "gpt2", **options
    )
    torch.default_generator.manual_seed(0)
    return peft.get_peft_model(model, config)


def train(
    folder,
    rows,
    model=None,
    trainer=transformers.Trainer,
    recorder=None,
    callbacks=(),
    data_collator=collate,
    **options,
):
    """Train by a Trainer; return the recorder and the model."""
    recorder = HuggingFaceRecorder() if recorder is None else recorder
    options = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-2,
        "report_to": "none",
        "save_strategy": "no",
        "use_cpu": True,
        "disable_tqdm": True,
        "logging_strategy": "no",
        **options,
    }
    extra = {
        name: options.pop(name)
        for name in ("optimizers", "compute_loss_func", "processing_class")
        if name in options
    }
    model = with_adapters(build()) if model is None else model
    args = transformers.TrainingArguments(str(folder), **options)
    trainer(
        model,
        args,
        train_dataset=rows,
        data_collator=data_collator,
        callbacks=[recorder, *callbacks],
        **extra,
    ).train()
    return recorder, model.eval()


def log_likelihoods(model, prompts, completions):
    with torch.no_grad():
        losses, counts = mean_losses(model, prompts, completions)
    return -(losses * counts).numpy()


# -------------------------------------------------------------------------- the replay
@pytest.mark.parametrize(
    ("kind", "adapter", "options"),
    [
        ("llama", {}, {"weight_decay": 0.1, "num_train_epochs": 3}),
        ("llama", {}, {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1}),
        ("llama", {"layers_to_transform": None}, {"gradient_checkpointing": True}),
        (
            "qwen2",
            {"use_rslora": True, "layers_to_transform": [2]},
            {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "cosine"},
        ),
        ("gpt2", {}, {"gradient_accumulation_steps": 3}),
        ("gpt2", {"layers_to_transform": [0, 2]}, {"max_steps": 7, "warmup_steps": 2}),
    ],
)
def test_the_replay_ends_where_the_trainer_did(kind, adapter, options, tmp_path):
    X, y = texts(N)
    model = with_adapters(build(kind), kind, **adapter)
    recorder, model = train(tmp_path, encoded(X, y), model, **options)
    lm = recorder.to_language_model(X, y, tokenizer=Tokenizer())
    assert isinstance(lm, CausalLanguageModel)
    wanted = log_likelihoods(model, X, y)
    assert_allclose(lm.log_likelihood(X, y), wanted, rtol=1e-5)
    again = clone(lm).fit(X, y)
    assert_allclose(again.log_likelihood(X, y), wanted, rtol=1e-5)
    moved = CausalLanguageModel(build(kind), Tokenizer(), trainable="adapters")
    moved.set_params(learning_rate=1e-12, max_epochs=1, n_blocks=1).fit(X, y)
    assert np.abs(moved.log_likelihood(X, y) - wanted).max() > 1e-2
    assert lm.trajectory_.recipe.n_steps == recorder._recording._n_steps
    copied = pickle.loads(pickle.dumps(lm))
    assert_allclose(copied.log_likelihood(X, y), lm.log_likelihood(X, y), rtol=1e-6)


def test_a_row_without_labels_is_a_row_without_weight(tmp_path):
    """The Trainer itself, trained again without one row's tokens."""
    X, y = texts(N)
    rows = encoded(X, y)
    options = {"gradient_accumulation_steps": 2, "num_train_epochs": 3}
    recorder, _ = train(tmp_path, rows, **options)
    lm = recorder.to_language_model(X, y, tokenizer=Tokenizer())
    for row in (0, 4, 9):
        weights = np.arange(N) != row
        without = list(rows)
        without[row] = {**rows[row], "labels": [-100] * len(rows[row]["labels"])}
        _, retrained = train(tmp_path, without, **options)
        wanted = log_likelihoods(retrained, X, y)
        found = clone(lm).fit(X, y, sample_weight=weights).log_likelihood(X, y)
        assert_allclose(found, wanted, rtol=1e-5)
        assert np.abs(wanted - lm.log_likelihood(X, y)).max() > 1e-2


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attributions_are_the_derivative_of_the_run(dropout, tmp_path):
    X, y = texts(N)
    model = with_adapters(build(dtype=torch.float64), lora_dropout=dropout)
    model = model.double()
    options = {"optim": "sgd", "learning_rate": 0.5, "gradient_accumulation_steps": 2}
    recorder, model = train(tmp_path, encoded(X, y), model, **options)
    lm = recorder.to_language_model(X, y, tokenizer=Tokenizer())
    queries = X[:2], y[:2]
    influence = AdamWInfluence(FrozenEstimator(lm), inert=0.0, random_state=0)
    found = influence.fit(X, y).attribute(*queries)

    def outcome(row, change):
        weights = np.ones(N)
        weights[row] += change
        return clone(lm).fit(X, y, sample_weight=weights).log_likelihood(*queries)

    step = 1e-4
    for row in (1, 6):
        wanted = (outcome(row, step) - outcome(row, -step)) / (2 * step)
        assert np.abs(found[:, row] - wanted).max() <= 1e-5 * np.abs(found).max()


def test_attributors_take_a_frozen_one(tmp_path):
    X, y = texts(N)
    recorder, _ = train(tmp_path, encoded(X, y))
    lm = recorder.to_language_model(X, y, tokenizer=Tokenizer())
    for attributor in (AdamWInfluence, DualInfluence):
        found = attributor(FrozenEstimator(lm), random_state=0).fit(X, y)
        attributed = found.attribute(X[:2], y[:2])
        assert attributed.shape == (2, N)
        assert np.isfinite(attributed).all()
        assert (np.abs(attributed).max(axis=0) > 0).all()
    influence = AdamWInfluence(FrozenEstimator(lm), random_state=0).fit(X, y)
    assert influence._inert_at(1) == 0.03  # half of an adapter begins at zero


DROPPING = {
    "one pass": ("llama", {}, {}),
    # 5 batches in an epoch: the last step has one pass, of one row
    "parts": ("llama", {}, {"gradient_accumulation_steps": 2}),
    "gpt2": ("gpt2", {"layers_to_transform": [2]}, {"gradient_accumulation_steps": 3}),
    "all blocks": ("qwen2", {"layers_to_transform": None}, {"max_grad_norm": 0.1}),
    "checkpoints": (
        "llama",
        {},
        {"gradient_checkpointing": True, "gradient_accumulation_steps": 2},
    ),
    "reentrant": (
        "llama",
        {},
        {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": True},
        },
    ),
    "left": (
        "llama",
        {"target_modules": ["q_proj", "down_proj"]},
        {
            "data_collator": lambda rows: collate(rows, "left"),
            "gradient_accumulation_steps": 2,
        },
    ),
}


@pytest.mark.parametrize("name", DROPPING)
def test_dropout_of_adapters_is_drawn_again(name, tmp_path):
    kind, adapter, options = DROPPING[name]
    X, y = texts(N)

    def trained(**changed):
        model = with_adapters(build(kind), kind, lora_dropout=0.3, **adapter)
        return train(tmp_path, encoded(X, y), model, **{**options, **changed})

    recorder, model = trained()
    lm = recorder.to_language_model(X, y, tokenizer=Tokenizer())
    wanted = log_likelihoods(model, X, y)
    assert_allclose(lm.log_likelihood(X, y), wanted, rtol=1e-5)
    again = clone(lm).fit(X, y)
    assert_allclose(again.log_likelihood(X, y), wanted, rtol=1e-4)
    _, other = trained(seed=1, data_seed=42)  # other masks of the same rows
    assert np.abs(log_likelihoods(other, X, y) - wanted).max() > 1e-2
    copied = pickle.loads(pickle.dumps(lm))
    assert_allclose(
        clone(copied).fit(X, y).log_likelihood(X, y), again.log_likelihood(X, y)
    )


def test_what_was_drawn_is_in_the_file_of_a_run(tmp_path):
    X, y = texts(N)
    model = with_adapters(build(), lora_dropout=0.3)
    options = {"gradient_accumulation_steps": 2}
    recorder, _ = train(tmp_path, encoded(X, y), model, **options)
    lm = recorder.to_language_model(X, y, tokenizer=Tokenizer())
    data = [torch.tensor(values) for values in lm._tokenised(X, y)]
    lm.trajectory_.save(tmp_path / "run.safetensors", *data)
    read = Trajectory.load(tmp_path / "run.safetensors", *data).recipe
    for step, (states, layout) in lm.trajectory_.recipe.draws_again.items():
        assert torch.equal(states, read.draws_again[step][0])
        assert torch.equal(layout, read.draws_again[step][1])
    cut = read.cut(2).draws_again
    assert [len(layout) for _, layout in cut.values()] == [6, 6]
    wrong = replace(read, layout=read.layout[1:])
    trajectory = replace(lm.trajectory_, recipe=wrong)
    trajectory.save(tmp_path / "wrong.safetensors", *data)
    with pytest.raises(TrajectoryError, match="the pass of each row"):
        Trajectory.load(tmp_path / "wrong.safetensors", *data)


def test_a_row_without_labels_has_no_weight_with_dropout(tmp_path):
    """The Trainer itself, which draws as many masks without one row's tokens."""
    X, y = texts(N)
    rows = encoded(X, y)

    def trained(rows):
        model = with_adapters(build(), lora_dropout=0.3)
        options = {"gradient_accumulation_steps": 2, "num_train_epochs": 3}
        return train(tmp_path, rows, model, **options)

    recorder, _ = trained(rows)
    lm = recorder.to_language_model(X, y, tokenizer=Tokenizer())
    for row in (0, 9):
        without = list(rows)
        without[row] = {**rows[row], "labels": [-100] * len(rows[row]["labels"])}
        wanted = log_likelihoods(trained(without)[1], X, y)
        weights = np.arange(N) != row
        found = clone(lm).fit(X, y, sample_weight=weights).log_likelihood(X, y)
        assert_allclose(found, wanted, rtol=1e-4)
        assert np.abs(wanted - lm.log_likelihood(X, y)).max() > 1e-2


def test_adapters_that_were_injected(tmp_path):
    X, y = texts(N)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], layers_to_transform=[2])
    model = peft.inject_adapter_in_model(config, build())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    recorder, model = train(tmp_path, encoded(X, y), model)
    lm = recorder.to_language_model(X, y, tokenizer=Tokenizer())
    again = clone(lm).fit(X, y).log_likelihood(X, y)
    assert_allclose(again, log_likelihoods(model, X, y), rtol=1e-5)


def test_all_tokens_may_count(tmp_path):
    """The first token of a row has a label, and nothing that it is predicted from."""
    X, y = texts(N)
    whole = [prompt + completion for prompt, completion in zip(X, y, strict=True)]
    rows = encoded([None] * N, whole, eos=False)
    # of some models the Trainer divides by the number of first tokens, too
    model = with_adapters(build("gpt2"), "gpt2")
    with pytest.raises(TrajectoryError, match=r"num_items_in_batch=.*the label -100"):
        train(tmp_path, rows, model)
    unlabelled = [{**row, "labels": [-100, *row["labels"][1:]]} for row in rows]
    for kind, given in {"gpt2": unlabelled, "llama": rows}.items():
        model = with_adapters(build(kind), kind)
        recorder, model = train(tmp_path, given, model, gradient_accumulation_steps=2)
        to, options = recorder.to_language_model, {"tokenizer": Tokenizer()}
        lm = to(None, whole, add_eos=False, **options)
        again = clone(lm).fit(None, whole).log_likelihood(None, whole)
        for found, row in zip(again, rows, strict=True):
            ids = torch.tensor([row["input_ids"]])
            with torch.no_grad():
                loss = model(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1)
            assert_allclose(found, -float(loss), rtol=1e-5)


def test_rows_may_begin_and_not_end(tmp_path):
    X, y = texts(N)
    recorder, _ = train(tmp_path, encoded(X, y, bos=True, eos=False))
    options = {"tokenizer": Tokenizer(), "add_bos": True, "add_eos": False}
    lm = recorder.to_language_model(X, y, **options)
    again = clone(lm).fit(X, y).log_likelihood(X, y)
    assert_allclose(again, lm.log_likelihood(X, y), rtol=1e-5)
    with pytest.raises(TrajectoryError, match=r"Row 0 .*add_bos=True"):
        recorder.to_language_model(X, y, **{**options, "add_bos": False})
    with pytest.raises(TrajectoryError, match=r"Row 0 .*no end token.*add_eos=False"):
        recorder.to_language_model(X, y, **{**options, "add_eos": True})


def test_padding_on_the_left_is_left_out(tmp_path):
    X, y = texts(N)
    options = {"data_collator": lambda rows: collate(rows, "left")}
    recorder, model = train(tmp_path, encoded(X, y), **options)
    lm = recorder.to_language_model(X, y, tokenizer=Tokenizer())
    again = clone(lm).fit(X, y).log_likelihood(X, y)
    assert_allclose(again, log_likelihoods(model, X, y), rtol=1e-4)


@pytest.mark.parametrize("kind", ["bf16", "bfloat16"])
def test_half_precision_is_said(kind, tmp_path):
    X, y = texts(N)
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    model = with_adapters(build(dtype=dtype))  # which peft keeps in float32
    recorder, model = train(tmp_path, encoded(X, y), model, bf16=kind == "bf16")
    with pytest.warns(FaithfulnessWarning, match=f"'{kind}'.* replayed in float32"):
        lm = recorder.to_language_model(X, y, tokenizer=Tokenizer())
    ends = [
        nn.utils.parameters_to_vector(p for p in one.parameters() if p.requires_grad)
        for one in (lm.network_.module_, model)
    ]
    assert torch.equal(*ends)


def test_rows_in_no_step_are_named(tmp_path):
    X, y = texts(N)
    recorder, _ = train(tmp_path, encoded(X, y), max_steps=2)
    with pytest.warns(FaithfulnessWarning, match=r"7 of the 13 rows"):
        recorder.to_language_model(X, y, tokenizer=Tokenizer())


def test_a_training_that_breaks_leaves_a_recorder_of_use(tmp_path):
    X, y = texts(N)

    class Breaking(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise ZeroDivisionError

    recorder, model = HuggingFaceRecorder(), with_adapters(build())
    with pytest.raises(TrajectoryError, match="No training was recorded"):
        recorder.to_language_model(X, y, tokenizer=Tokenizer())
    options = {"recorder": recorder, "model": model}
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, encoded(X, y), callbacks=[Breaking()], **options)
    with pytest.raises(TrajectoryError, match="No training was recorded to its end"):
        recorder.to_language_model(X, y, tokenizer=Tokenizer())
    train(tmp_path, encoded(X, y), **options)
    lm = recorder.to_language_model(X, y, tokenizer=Tokenizer())
    assert_allclose(lm.log_likelihood(X, y), log_likelihoods(model, X, y), rtol=1e-5)
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_a_forward_pass_that_raises_leaves_a_model_of_use(error, tmp_path):
    """Ctrl-C, which no hook sees, and errors: evaluated, and trained on."""
    X, y = texts(N)
    ids = torch.tensor([[1, 2, 3, 4]])

    def interrupted():
        model = with_adapters(build(), lora_dropout=0.3)
        block, calls = model.get_base_model().model.layers[2], []

        def stop(*_):
            calls.append(1)
            if len(calls) == 2:
                raise error

        handle = block.register_forward_pre_hook(stop)
        with pytest.raises(error):
            train(tmp_path, encoded(X, y), model)
        handle.remove()
        return model

    model = interrupted()
    for called in (model.eval(), model.get_base_model()):
        assert called(input_ids=ids).logits.shape[:2] == ids.shape
    recorder, model = train(tmp_path, encoded(X, y), model)
    lm = recorder.to_language_model(X, y, tokenizer=Tokenizer())
    assert_allclose(lm.log_likelihood(X, y), log_likelihoods(model, X, y), rtol=1e-5)

    # in a loop of one's own, an error says that the recorder is off
    model = interrupted().train()
    with pytest.raises(TrajectoryError, match=r"step 2 raised.*batch_size") as found:
        model(input_ids=ids)
    assert "call the model again" in found.value.__notes__[0]
    assert model(input_ids=ids).logits.shape[:2] == ids.shape
    layers = list(model.modules())
    assert not any(layer._forward_pre_hooks or layer._forward_hooks for layer in layers)


def test_a_step_goes_on_after_a_forward_pass_that_raised(tmp_path):
    """Its gradients miss the rows of that part."""

    class Patient(transformers.Trainer):
        n_passes = 0

        def training_step(self, model, inputs, *args, **kwargs):
            self.n_passes += 1
            if self.n_passes != 4:
                return super().training_step(model, inputs, *args, **kwargs)
            ids = inputs["input_ids"] + 10**6
            with pytest.raises(IndexError):
                super().training_step(model, {**inputs, "input_ids": ids}, *args)
            return torch.tensor(0.0)

    options = {"trainer": Patient, "gradient_accumulation_steps": 2}
    with pytest.raises(TrajectoryError, match=r"forward pass of step 2 raised"):
        train(tmp_path, encoded(*texts(N)), **options)


def test_two_recorders_of_one_training(tmp_path):
    X, y = texts(N)
    model = with_adapters(build(), lora_dropout=0.3)
    other = HuggingFaceRecorder()
    recorder, _ = train(tmp_path, encoded(X, y), model, callbacks=[other])
    ends = [
        one.to_language_model(X, y, tokenizer=Tokenizer()).log_likelihood(X, y)
        for one in (recorder, other)
    ]
    assert_allclose(*ends)


# ------------------------------------------------------------------------ refusals
def everything():
    model = build()
    model.train()
    return model


def drops_in_attention():
    model = build()
    model = with_adapters(model)
    for layer in model.modules():
        if hasattr(layer, "attention_dropout"):
            layer.attention_dropout = 0.2
    model.config.attention_dropout = 0.2
    return model


def drops_in_attention_and_adapters():
    model = with_adapters(build(), lora_dropout=0.1)
    for layer in model.modules():
        if hasattr(layer, "attention_dropout"):
            layer.attention_dropout = 0.2
    return model


def drops_below(lora_dropout=0.3, frozen=(0, 1)):
    """Return a model of which the adapters of some blocks are frozen."""
    model = with_adapters(build(), lora_dropout=lora_dropout, layers_to_transform=None)
    for place in frozen:
        model.get_base_model().model.layers[place].requires_grad_(False)
    return model


def test_adapters_that_are_frozen(tmp_path):
    """Below the first block that is trained without dropout, above it with some."""
    X, y = texts(N)
    for model in (drops_below(0.0), drops_below(frozen=[2]), drops_below(frozen=[1])):
        recorder, trained = train(tmp_path, encoded(X, y), model)
        lm = recorder.to_language_model(X, y, tokenizer=Tokenizer())
        again = clone(lm).fit(X, y).log_likelihood(X, y)
        assert_allclose(again, log_likelihoods(trained, X, y), rtol=1e-4)


def drops_embeddings():
    model = with_adapters(build("gpt2"), "gpt2")
    model.get_base_model().transformer.drop.p = 0.1
    return model


MODELS = {
    "everything": (everything, r"model\.embed_tokens\.weight is trained.*get_peft_mod"),
    "nothing": (
        lambda: with_adapters(build()).requires_grad_(False),
        r"nothing is trained",
    ),
    "head": (
        lambda: with_adapters(build(), modules_to_save=["lm_head"]),
        r"is trained.*without modules_to_save",
    ),
    "embeddings": (
        lambda: with_adapters(
            build(), target_modules=["embed_tokens"], layers_to_transform=None
        ),
        r"embed_tokens.*is no adapter of a block.*target_modules",
    ),
    "dora": (lambda: with_adapters(build(), use_dora=True), r"use_dora=False"),
    "dropout": (drops_embeddings, r"transformer\.drop drops 10%.*layer\.p = 0\.0"),
    "dropout below": (
        drops_below,
        r"lora_dropout=0\.3 of model\.layers\.0\..*first block that is trained is 2"
        r".*p=0\.0.*layers_to_transform=list\(range\(2, 3\)\)",
    ),
    "attention": (
        drops_in_attention,
        r"step 1, .*attention_dropout=0\.2\. .*attention_dropout=0\.0",
    ),
    "attention and adapters": (
        drops_in_attention_and_adapters,
        r"step 1, besides masks of adapters, .*attention_dropout=0\.0",
    ),
    "bfloat16": (
        lambda: with_adapters(build()).bfloat16(),
        r"Adapters are torch\.bfloat16.*model\.float\(\)",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", MODELS)
def test_models_that_are_refused(name, tmp_path):
    make, message = MODELS[name]
    rows = encoded(*texts(N))
    with pytest.raises(TrajectoryError, match=message):
        train(tmp_path, rows, make())


class Unnumbered(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from encoded(*texts(N))


class Renewed(torch.utils.data.Dataset):
    """Gives other labels in each epoch."""

    asked = 0

    def __len__(self):
        return N

    def __getitem__(self, row):
        self.asked += 1
        found = encoded(*texts(N))[row]
        labels = [-100] * (len(found["labels"]) - (self.asked > N)) + [1]
        return {**found, "labels": labels[: len(found["labels"])]}


def packed(rows):
    batch = collate(rows)
    return {name: value.reshape(1, -1) for name, value in batch.items()}


def placed(rows):
    batch = collate(rows)
    del batch["attention_mask"]
    places = torch.arange(batch["labels"].shape[1]) % 3
    return {**batch, "position_ids": places.expand(len(rows), -1)}


def embedded(rows):
    batch = collate(rows)
    return {**batch, "token_type_ids": torch.zeros_like(batch["labels"])}


RUNS = {
    "unnumbered": (
        {"rows": Unnumbered(), "max_steps": 3},
        r"IterableDataset whose rows have no numbers",
    ),
    "renewed": (
        {"rows": Renewed()},
        r"other tokens in step \d+.*Tokenise the data",
    ),
    "packed": ({"data_collator": packed}, r"of 3 rows.*of 1, .*packing=False"),
    "placed": ({"data_collator": placed}, r"positions begin anew.*packing=False"),
    "more inputs": ({"data_collator": embedded}, r"called with \['token_type_ids'\]"),
    "best": (
        {"load_best_model_at_end": True, "eval_strategy": "no", "save_strategy": "no"},
        r"load_best_model_at_end=False",
    ),
    "noise": ({"neftune_noise_alpha": 5.0}, r"neftune_noise_alpha=None"),
    "smoothing": ({"label_smoothing_factor": 0.1}, r"label_smoothing_factor=0\.0"),
}


@pytest.mark.parametrize("name", RUNS)
def test_runs_that_are_refused(name, tmp_path):
    options, message = RUNS[name]
    options = {"rows": encoded(*texts(N)), **options}
    with pytest.raises(TrajectoryError, match=message):
        train(tmp_path, options.pop("rows"), **options)


def test_other_arguments_that_are_refused(tmp_path):
    """Those for which this machine has nothing to run them on."""
    recorder, model = HuggingFaceRecorder(), with_adapters(build())
    args = transformers.TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    state = transformers.TrainerState()
    for name, value in {"fp16": True, "deepspeed": "a.json", "fsdp": "full"}.items():
        changed = pickle.loads(pickle.dumps(args))
        object.__setattr__(changed, name, value)
        with pytest.raises(TrajectoryError, match=rf"{name}=.*cannot be repeated"):
            recorder.on_train_begin(changed, state, None, model=model, optimizer=None)
    args._n_gpu = 2
    with pytest.raises(TrajectoryError, match=r"n_gpu=2.*one process"):
        recorder.on_train_begin(args, state, None, model=model, optimizer=None)
    args._n_gpu = 0
    other = with_adapters(build())
    other.get_base_model().is_quantized = True
    with pytest.raises(TrajectoryError, match=r"quantised.*quantization_config"):
        recorder.on_train_begin(args, state, None, model=other, optimizer=None)
    state.global_step = 5
    with pytest.raises(TrajectoryError, match=r"step 5.*resume_from_checkpoint=None"):
        recorder.on_train_begin(args, state, None, model=model, optimizer=None)


def test_optimizers_that_are_not_known(tmp_path):
    model = with_adapters(build())
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizers = torch.optim.Adagrad(trained), None
    with pytest.raises(ValueError, match=r"Adagrad cannot be recorded.*AdamW"):
        train(tmp_path, encoded(*texts(N)), model, optimizers=optimizers)


class TwiceTheLoss(transformers.Trainer):
    def compute_loss(self, *args, **kwargs):
        return 2 * super().compute_loss(*args, **kwargs)


class MeanOfTexts(transformers.Trainer):
    def compute_loss(self, model, inputs, **kwargs):
        logits = model(**inputs).logits[:, :-1]
        labels = inputs["labels"][:, 1:]
        losses = nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, reduction="none"
        )
        return (losses.sum(dim=1) / (labels != -100).sum(dim=1)).mean()


class OfItsBase(transformers.Trainer):
    def compute_loss(self, model, inputs, **kwargs):
        return model.get_base_model()(**inputs).loss


def test_a_model_that_is_not_called_is_an_error(tmp_path):
    with pytest.raises(TrajectoryError, match=r"Step 1 called no forward pass"):
        train(tmp_path, encoded(*texts(N)), trainer=OfItsBase)


def test_a_loss_of_ones_own_that_is_the_same(tmp_path):
    def loss(outputs, labels, num_items_in_batch):
        logits, labels = outputs.logits[:, :-1], labels[:, 1:]
        losses = nn.functional.cross_entropy(logits.transpose(1, 2), labels)
        return losses * (labels != -100).sum() / num_items_in_batch

    X, y = texts(N)
    options = {"compute_loss_func": loss, "gradient_accumulation_steps": 2}
    recorder, model = train(tmp_path, encoded(X, y), **options)
    lm = recorder.to_language_model(X, y, tokenizer=Tokenizer())
    again = clone(lm).fit(X, y).log_likelihood(X, y)
    assert_allclose(again, log_likelihoods(model, X, y), rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainer": TwiceTheLoss, "max_grad_norm": 0.0}, r"loss is another than"),
        ({"trainer": MeanOfTexts}, r"misses the weights"),
        (
            {"trainer": MeanOfTexts, "gradient_accumulation_steps": 2},
            r"misses the weights",
        ),
    ],
)
def test_other_losses_are_errors(options, message, tmp_path):
    X, y = texts(N)
    recorder, _ = train(tmp_path, encoded(X, y), **options)
    with pytest.raises(TrajectoryError, match=message + ".*leave compute_loss"):
        recorder.to_language_model(X, y, tokenizer=Tokenizer())


def test_other_texts_are_errors(tmp_path):
    X, y = texts(N)
    recorder, model = train(tmp_path, encoded(X, y))
    to = recorder.to_language_model
    with pytest.raises(TrajectoryError, match=r"has 12 rows, and train_dataset had 13"):
        to(X[:-1], y[:-1], tokenizer=Tokenizer())
    with pytest.raises(TrajectoryError, match=r"Row 3 .*at place 0 .*in its order"):
        to([*X[:3], "tree", *X[4:]], y, tokenizer=Tokenizer())
    whole = [prompt + completion for prompt, completion in zip(X, y, strict=True)]
    with pytest.raises(TrajectoryError, match=r"Row 0 .*prompts=None if all"):
        to(None, whole, tokenizer=Tokenizer())
    with pytest.raises(TrajectoryError, match=r"Row 0 .*learnt an end.*add_eos=True"):
        to(X, y, tokenizer=Tokenizer(), add_eos=False)
    with pytest.raises(ValueError, match=r"tokenizer is None"):
        to(X, y)
    model.merge_adapter()
    with pytest.raises(TrajectoryError, match=r"merged"):
        to(X, y, tokenizer=Tokenizer())
    model.unmerge_adapter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to(X, y, tokenizer=Tokenizer())
