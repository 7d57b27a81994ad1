"""Attributors that follow a change of weights through the model."""

from skattrib.influence._adamw import AdamWInfluence
from skattrib.influence._dual import DualInfluence

__all__ = ["AdamWInfluence", "DualInfluence"]
