"""Causal language models; they live in `skattrib.models`."""

from skattrib.models.language import CausalLanguageModel

__all__ = ["CausalLanguageModel"]
