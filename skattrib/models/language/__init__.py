"""Language models, indexed or fine-tuned; needs the extra ``language``."""

from skattrib.models.language._causal import CausalLanguageModel
from skattrib.models.language._classifier import SequenceClassifier

__all__ = ["CausalLanguageModel", "SequenceClassifier"]
