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

    Their rank correlation is undefined, and they are left out of the mean.
    """


class FaithfulnessWarning(UserWarning):
    """The attributions, or the outcomes they are compared with, are not reliable."""


class TrajectoryError(ValueError):
    """A record of a training run is missing, or does not reproduce the run."""


class IndexMismatchError(ValueError):
    """An index on disk has another model or other settings, or is damaged."""


class UnsupportedModelError(ValueError):
    """A model lacks what an attributor needs; the message names those that work."""
