"""What all tests share: one thread, fixed seeds, untouched global random states."""

import os

# Read by SciPy when it is first imported: scikit-learn's array API checks would be
# skipped without it.
os.environ["SCIPY_ARRAY_API"] = "1"

import hypothesis
import numpy as np
import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from sklearn.utils import check_random_state

import skattrib.models._network
from tests.registries import registered, restore

torch.set_num_threads(1)

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

_NUMPY_GLOBAL = check_random_state(None)
_NUMPY_STATE = np.random.RandomState(0).get_state()
_TORCH_STATE = torch.Generator().manual_seed(0).get_state()


def _untouched_global_states():
    """Say for each library whether its global random state is the initial one."""
    return {
        "NumPy": all(map(np.array_equal, _NUMPY_GLOBAL.get_state(), _NUMPY_STATE)),
        "torch": torch.equal(torch.random.get_rng_state(), _TORCH_STATE),
    }


@pytest.fixture(autouse=True)
def _global_rng(request):
    """Start each test from the same global states and fail if it changes one."""
    _NUMPY_GLOBAL.set_state(_NUMPY_STATE)
    torch.random.set_rng_state(_TORCH_STATE)
    yield
    if request.node.get_closest_marker("touches_global_rng") is None:
        changed = [k for k, same in _untouched_global_states().items() if not same]
        assert not changed, f"the global random state of {changed} was changed"


@pytest.fixture(autouse=True)
def _registries():
    """Forget the optimizers and models that a test registers."""
    before = registered()
    yield
    restore(before)


@pytest.fixture(autouse=True, scope="session")
def _joblib_workers():
    """End joblib's idle workers with the session: their coverage is counted then."""
    yield
    get_reusable_executor().shutdown(wait=True)


@pytest.fixture
def trainings(monkeypatch):
    """The sizes of the stacks of models that a test retrains."""
    found = []
    train_stack = skattrib.models._network.train_stack

    def counted(*args, **options):
        found.append(len(args[5]))
        return train_stack(*args, **options)

    monkeypatch.setattr(skattrib.models._network, "train_stack", counted)
    return found
