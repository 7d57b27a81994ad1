"""Causal language models as a family: texts, and the head of their tokens."""

from skattrib.engine._losses import CrossEntropy
from skattrib.models._protocol import Model


class LanguageModel(Model):
    """A causal language model, neither trained nor differentiated as a whole."""

    first_attributors = ("RISEValuator",)

    @property
    def takes_tables(self):
        """Whether a data frame is passed on unchanged."""
        return False

    @property
    def takes_sparse(self):
        """Whether sparse rows are passed on as they are: they are texts."""
        return False

    @property
    def loss(self):
        """Cross-entropy of each token."""
        return CrossEntropy()

    def attributors(self):
        """Return the names of the attributors that work for it."""
        return ["RISEValuator"]
