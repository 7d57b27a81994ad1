"""What a test registers, by the package's own registries, is taken back after it."""

from skattrib.engine._optimizers import OPTIMIZERS
from skattrib.models._as_model import _FAMILIES

REGISTRIES = (OPTIMIZERS, _FAMILIES)


def registered():
    """Copies of what is registered."""
    return [dict(registry) for registry in REGISTRIES]


def register(entries):
    """Add entries to what is registered, as `registered` returns them."""
    for registry, own in zip(REGISTRIES, entries, strict=True):
        registry.update(own)


def restore(before):
    """Forget what was registered since."""
    for registry in REGISTRIES:
        registry.clear()
    register(before)
