"""Indexes and records from strangers: read or refused, and nothing else happens."""

import contextlib
import json
import os
import pickle
import resource
import shutil
import signal
import struct
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from safetensors.torch import load_file, save_file
from sklearn.frozen import FrozenEstimator

from skattrib import RISEValuator, TrainingRecording, record_training
from skattrib.engine._index import SignatureIndex
from skattrib.engine._trajectory import Recipe, Trajectory, _digest
from skattrib.exceptions import IndexMismatchError, TrajectoryError
from tests.cases import build, mlp
from tests.engine.test_trajectory import recorded
from tests.faults.jobs import data, net

FILES = [
    "header.json",
    "tables.safetensors",
    "signatures.bin",
    "norms.bin",
    "checksums.bin",
    "lock",
]
# What a file of some kilobytes may take, in memory and seconds.
_BYTES, _SECONDS = 2**28, 20


def _refused(*_, **__):
    raise AssertionError("a pickle was to be loaded")


def _hangs(*_):
    raise AssertionError("it hangs")


@contextlib.contextmanager
def guarded():
    """Fail where a pickle is loaded, much memory taken, or nothing happens."""
    pages = int(open("/proc/self/statm").read().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, _hangs)
    with contextlib.ExitStack() as stack:
        for module, names in [(pickle, "load loads Unpickler"), (torch, "load")]:
            for name in names.split():
                stack.enter_context(mock.patch.object(module, name, _refused))
        limit = pages * resource.getpagesize() + _BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
        signal.alarm(_SECONDS)
        try:
            yield
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


# What a stranger may write for a number.
NUMBERS = st.one_of(
    st.integers(-2, 5),
    st.sampled_from([2**31 - 1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, 10**400]),
    st.sampled_from([None, True, "1", "", [], {}, 1.5, float("nan"), "../../x", "\0"]),
)


@st.composite
def damaged(draw, content):
    """Cut, flip, overwrite or lengthen bytes."""
    content = bytearray(content)
    kind = draw(st.sampled_from(["cut", "flip", "bits", "length", "longer", "other"]))
    if kind == "cut":
        content = content[: draw(st.integers(0, max(0, len(content) - 1)))]
    elif kind in ("flip", "bits") and content:
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(content) - 1))
            flipped = content[at] ^ (1 << draw(st.integers(0, 7)))
            content[at] = flipped if kind == "bits" else draw(st.integers(0, 255))
    elif kind == "length":  # where safetensors says how long its header is
        length = draw(
            st.sampled_from([0, 1, 2**20, 10**8, 2**31, 2**63 - 1, 2**64 - 1])
        )
        content[:8] = struct.pack("<Q", length)
    elif kind == "longer":
        content += draw(st.binary(min_size=1, max_size=50))
    else:
        content = draw(st.binary(max_size=50))
    return bytes(content)


# --------------------------------------------------------------------- an index
@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, and an index of its rows to spoil copies of."""
    X, y, _, _ = data(20)
    folder = tmp_path_factory.mktemp("strangers")
    model = FrozenEstimator(net().fit(X, y))
    valuator(model, folder / "index").fit(X, y)
    return model, folder


def valuator(model, path):
    return RISEValuator(model, n_components=8, index=path, random_state=0)


def open_and_use(model, path):
    """Open an index as everything does, and ask for scores."""
    X, y, Xq, yq = data(20)
    with guarded():
        try:
            index = SignatureIndex.open(path)
            rows = np.array(index.norms)
            assert rows.shape == (len(index), len(index.header.widths))
            found = valuator(model, path).fit(X, y)
            assert found.attribute(Xq, yq).shape == (6, 20)
            found.partial_fit(Xq[:1], yq[:1])
        except IndexMismatchError as error:
            refusal = str(error)
        else:
            return True
    assert str(path) in refusal
    return False


def spoil(data, path):
    """Do something to one file of an index."""
    kind = data.draw(st.sampled_from(["bytes", "header", "tables"]))
    if kind == "bytes":
        file = path / data.draw(st.sampled_from(FILES))
        file.write_bytes(data.draw(damaged(file.read_bytes())))
    elif kind == "header":
        found = json.loads((path / "header.json").read_text())
        name = data.draw(st.sampled_from([*found, "more"]))
        if name in ("widths", "settings") and data.draw(st.booleans()):
            within = found[name]
            key = data.draw(st.sampled_from([*within, "more", "rh/7", "../x"]))
            within[key] = data.draw(NUMBERS)
        else:
            found[name] = data.draw(NUMBERS)
        (path / "header.json").write_text(json.dumps(found))
    else:
        found = load_file(path / "tables.safetensors")
        name = data.draw(st.sampled_from(sorted(found)))
        value = data.draw(st.sampled_from([-1, 0, 2, 3, 9, 127]))
        dtype = data.draw(
            st.sampled_from([torch.int8, torch.int32, torch.int64, torch.float64])
        )
        shape = data.draw(
            st.sampled_from([found[name].shape, (), (0,), (3, 2), (1, 4)])
        )
        change = data.draw(st.sampled_from(["fill", "name", "none"]))
        if change == "none":
            del found[name]
        else:
            to = "/etc/passwd" if change == "name" else name
            found[to] = torch.full(shape, value, dtype=dtype)
        save_file(found, path / "tables.safetensors")


def fuzz_index(home, n_examples):
    model, folder = home
    path = folder / "fuzzed"
    results = set()

    @settings(max_examples=n_examples, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def fuzz(data):
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(folder / "index", path)
        spoil(data, path)
        results.add(open_and_use(model, path))

    fuzz()
    assert results == {True, False}


def test_a_hundred_spoilt_indexes(home):
    fuzz_index(home, 100)


@pytest.mark.slow
def test_two_thousand_spoilt_indexes(home):
    fuzz_index(home, 2000)


def test_an_index_in_order_is_used(home, tmp_path):
    shutil.copytree(home[1] / "index", tmp_path / "index")
    assert open_and_use(home[0], tmp_path / "index")


TRICKS = {
    "link": lambda file, to: file.symlink_to(to),
    "pipe": lambda file, to: os.mkfifo(file),
    "endless": lambda file, to: file.symlink_to("/dev/zero"),
    "folder": lambda file, to: file.mkdir(),
    "loop": lambda file, to: file.symlink_to(file),
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("name", FILES)
def test_files_that_are_none(home, name, trick, tmp_path):
    path, precious = tmp_path / "index", tmp_path / "precious"
    shutil.copytree(home[1] / "index", path)
    shutil.copy(path / name, precious)
    before = precious.read_bytes()
    (path / name).unlink()
    TRICKS[trick](path / name, precious)
    assert not open_and_use(home[0], path)
    assert precious.read_bytes() == before


@pytest.mark.parametrize("name", ["signatures.bin", "lock", "header.json"])
def test_nothing_is_written_through_a_link_put_there_later(home, name, tmp_path):
    X, y, Xq, yq = data(20)
    path, precious = tmp_path / "index", tmp_path / "precious"
    shutil.copytree(home[1] / "index", path)
    found = valuator(home[0], path).fit(X, y)
    shutil.move(path / name, precious)
    before = precious.read_bytes()
    (path / name).symlink_to(precious)
    with pytest.raises(IndexMismatchError, match="is not a regular file"):
        found.partial_fit(Xq, yq)
    assert precious.read_bytes() == before


@pytest.mark.parametrize(
    "content", ["[" * 100_000, " " * 2**24 + "{}", '{"n_rows": ' + "9" * 10_000 + "}"]
)
def test_headers_without_end(home, content, tmp_path):
    path = tmp_path / "index"
    shutil.copytree(home[1] / "index", path)
    (path / "header.json").write_text(content)
    assert not open_and_use(home[0], path)


# --------------------------------------------------------------------- a record
def read(path, X, y):
    with guarded():
        try:
            return Trajectory.load(path, X, y)
        except TrajectoryError as error:
            refusal = str(error)
    assert str(path) in refusal
    return None


def contents(trajectory):
    held = {**trajectory.recipe.tensors(), "weights": trajectory.row_weights}
    held["scale"] = trajectory.denominator
    for t, state in trajectory.states.items():
        held[f"{t}/params"] = state.params
        held |= {f"{t}/{i}": value for i, value in enumerate(state.optimizer)}
    return _digest(held)


def fuzz_record(tmp_path, n_examples):
    trajectory, X, y = recorded()
    path = tmp_path / "run"
    trajectory.save(path, X, y)
    whole, expected = path.read_bytes(), contents(trajectory)

    @settings(max_examples=n_examples, suppress_health_check=list(HealthCheck))
    @given(damaged(whole))
    def fuzz(content):
        path.write_bytes(content)
        found = read(path, X, y)
        # spaces of its header may differ
        assert found is None or contents(found) == expected

    fuzz()


def test_a_hundred_damaged_records(tmp_path):
    fuzz_record(tmp_path, 100)


@pytest.mark.slow
def test_two_thousand_damaged_records(tmp_path):
    fuzz_record(tmp_path, 2000)


@st.composite
def forged(draw, tensors):
    """Change arrays of a record, or what it says beside them."""
    tensors = dict(tensors)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(tensors)))
        kinds = ["drop", "shape", "dtype", "fill", "rename", "keep"]
        kind, value = draw(st.sampled_from(kinds)), tensors.pop(name)
        if kind == "shape":
            value = value.new_zeros(
                draw(st.sampled_from([(), (0,), (3, 1), (1, 1, 1)]))
            )
        elif kind == "dtype":
            others = [torch.bfloat16, torch.int8, torch.bool, torch.float16]
            value = value.to(draw(st.sampled_from(others)))
        elif kind == "fill":
            number = draw(st.sampled_from([-1, 0, 99, 2**30]))
            value = torch.full_like(value.to(torch.float64), number).to(value.dtype)
        elif kind == "rename":
            names = ["state/x/params", "state/99999999999999999999/params", "state/"]
            name = draw(st.sampled_from([*names, "state/-1/first", "../../x", "first"]))
        if kind != "drop":
            tensors[name] = value
    return tensors


@st.composite
def forged_options(draw, options):
    found = json.loads(options)
    place = draw(st.integers(-1, 2))
    if place > 0:
        found[place] = draw(NUMBERS)
    elif place == 0:
        found[0][draw(st.sampled_from([*found[0], "code"]))] = draw(NUMBERS)
    return json.dumps(found)


def fuzz_forged(tmp_path, n_examples):
    """Digests are no secret: a stranger writes those of what is there."""
    X, y, _, _ = data(20)
    path = tmp_path / "run"
    module = build(lambda: mlp(4, 3))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    rows, targets = torch.tensor(X), torch.tensor(y)
    with record_training(module, optimizer) as recording:
        for batch in torch.arange(20).split(7):
            recording.rows(batch)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(
                module(rows[batch]), targets[batch]
            ).backward()
            optimizer.step()
    recording.save(path, X, y)
    whole = load_file(path)
    options = recording._finished().recipe.options()

    @settings(max_examples=n_examples, suppress_health_check=list(HealthCheck))
    @given(forged(whole), forged_options(options))
    def fuzz(tensors, options):
        metadata = {"options": options, "digest": "", "contents": ""}
        with contextlib.suppress(Exception):
            recipe = Recipe.from_tensors(options, tensors)
            metadata["digest"] = recipe.digest(rows, targets)
            metadata["contents"] = _digest(tensors)
        save_file(tensors, path, metadata)
        with guarded():
            try:
                found = TrainingRecording.load(path, module, X, y)
                found.to_classifier(X, y)
            except TrajectoryError:
                return

    fuzz()


@pytest.mark.filterwarnings("ignore:Replaying the recording misses")
@pytest.mark.filterwarnings("ignore:.*are in no recorded minibatch")
def test_a_hundred_forged_records(tmp_path):
    fuzz_forged(tmp_path, 100)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Replaying the recording misses")
@pytest.mark.filterwarnings("ignore:.*are in no recorded minibatch")
def test_two_thousand_forged_records(tmp_path):
    fuzz_forged(tmp_path, 2000)


@pytest.mark.parametrize("trick", ["pipe", "endless", "folder"])
def test_records_that_are_no_files(trick, tmp_path):
    _, X, y = recorded()
    TRICKS[trick](tmp_path / "run", None)
    assert read(tmp_path / "run", X, y) is None


def test_a_record_is_read_without_pickle(tmp_path):
    trajectory, X, y = recorded()
    trajectory.save(tmp_path / "run", X, y)
    assert_array_equal(
        read(tmp_path / "run", X, y).recipe.initial, trajectory.recipe.initial
    )
