"""Attributors that follow a change of weights through the model."""

from skattrib.influence._adamw import AdamWInfluence
from skattrib.influence._dual import DualInfluence
from skattrib.influence._lookahead import lookahead_training
from skattrib.influence._trees import TreeInfluence

__all__ = ["AdamWInfluence", "DualInfluence", "TreeInfluence", "lookahead_training"]
