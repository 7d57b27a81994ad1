"""Language models, indexed or fine-tuned; they live in `skattrib.models`."""

from skattrib.models.language import CausalLanguageModel, SequenceClassifier

__all__ = ["CausalLanguageModel", "SequenceClassifier"]
