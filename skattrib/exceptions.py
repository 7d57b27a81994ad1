"""Warnings and errors of skattrib."""

__all__ = [
    "ConstantOutcomeWarning",
    "FaithfulnessWarning",
    "IndexMismatchError",
    "TrajectoryError",
    "UnsupportedModelError",
]


class ConstantOutcomeWarning(UserWarning):
    """Some queries have the same retrained outcome for every weighting.

    A rank correlation is undefined for them; they are left out of the mean.
    """


class FaithfulnessWarning(UserWarning):
    """The attributions, or the truth they are compared with, deserve little trust."""


class TrajectoryError(ValueError):
    """A record of a training run is missing, or does not reproduce the run."""


class IndexMismatchError(ValueError):
    """An index on disk is of another model or other settings, or is damaged."""


class UnsupportedModelError(ValueError):
    """A model lacks what an attributor needs; the message names those that do work."""
