"""Causal language models whose texts can be indexed; needs the extra ``language``."""

from skattrib.models.language._causal import CausalLanguageModel

__all__ = ["CausalLanguageModel"]
