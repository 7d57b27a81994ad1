"""Attributors that follow a change of weights through the model."""

from skattrib.influence._adamw import AdamWInfluence
from skattrib.influence._dual import DualInfluence
from skattrib.influence._lookahead import lookahead_training

__all__ = ["AdamWInfluence", "DualInfluence", "lookahead_training"]
