"""Estimators of texts that are trained: what they say of their rows and network."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any


class ReadsTexts:
    """An estimator that turns texts into tokens, of which a network is trained.

    Attributors see the network and its rows, as they see the last step of a pipeline
    and what comes before it (`skattrib.models._parts`).

    Attributes
    ----------
    network_ : TorchEstimator
        The trained network.
    """

    network_: Any
    #: Whether targets are texts as well, the completions of prompts.
    has_completions = False

    @property
    @abstractmethod
    def trains(self) -> bool:
        """Whether there is something to train."""

    @abstractmethod
    def _network(self) -> Any:
        """Return the network that is to be trained, not fitted."""

    @abstractmethod
    def _tokenised(self, X: Any, y: Any = None) -> tuple[Any, Any]:
        """Return rows of tokens (n, ...), and targets of the network."""

    def _by_token(self, rows: Any) -> tuple[Any, Any, dict[str, Any]]:
        """Return rows in which one token counts, their targets, and the tokens.

        Only of completions.
        """
        raise NotImplementedError

    def _present_network(self) -> Any:
        """Return the trained network, if there is one, else that to be trained."""
        network = vars(self).get("network_")
        return self._network() if network is None else network
