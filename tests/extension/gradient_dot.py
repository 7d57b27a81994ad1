"""An attributor: the inner products of gradients, as the manual's page has them."""

from doc.contributing.gradient_dot import GradientDot

__all__ = ["GradientDot"]
