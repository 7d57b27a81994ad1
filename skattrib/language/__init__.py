"""Causal language models whose texts can be indexed; needs the extra ``language``."""

from skattrib.language._causal import CausalLanguageModel

__all__ = ["CausalLanguageModel"]
