"""Search and valuation by sketched gradients of a network's last layer."""

from skattrib.retrieval._rise import RISEValuator

__all__ = ["RISEValuator"]
