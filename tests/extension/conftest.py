"""The optimizer and the models of this package are registered in its tests alone."""

from importlib import import_module

import pytest

from tests.registries import register, registered, restore

_BEFORE = registered()
# importing them registers them, as it does for everybody
for _name in ("lion", "neighbors", "softmax"):
    import_module(f"tests.extension.{_name}")
_EXTENDED = registered()
restore(_BEFORE)


@pytest.fixture(autouse=True)
def _extended(_registries):
    register(_EXTENDED)
