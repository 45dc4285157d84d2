"""Family: the shape of every expert, z = loc + scale * eps.

Axes: d latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from mvkit.core.noise import Generator


class Family(ABC):
    """A diagonal location-scale distribution, z = loc + scale * eps.

    To implement one, decorate a subclass with `@spec` and write the three abstract methods. All
    act elementwise, except `scale`, which may look at the whole latent axis (the last), and `kl`,
    `entropy` and `log_prob`, which sum over it. Set `density` to the name of the standard density:
    families of one density share closed-form KLs. `deviation` is the standard deviation of
    standard noise. Override `kl` and `entropy` where there is a
    closed form, and set `closed_product` if a product of experts stays in the family.

    Example:
        >>> import mvkit
        >>> from mvkit.parts import NormalFamily
        >>> isinstance(NormalFamily(), mvkit.Family), NormalFamily().closed_product
        (True, True)
    """

    density: str = ""
    closed_product: bool = False
    deviation: float = 1.0

    @abstractmethod
    def scale(self, raw: Tensor) -> Tensor:
        """Positive scales from unconstrained numbers, (..., d) -> (..., d)."""

    @abstractmethod
    def noise(
        self,
        size: tuple[int, ...],
        *,
        dtype: torch.dtype,
        device: torch.device,
        generator: Generator,
    ) -> Tensor:
        """Standard noise eps of shape `size`."""

    @abstractmethod
    def log_density(self, eps: Tensor) -> Tensor:
        """Log-density of the standard form, elementwise, in nats."""

    def kl(self, loc: Tensor, scale: Tensor, loc0: Tensor, scale0: Tensor) -> Tensor | None:
        """KL(loc, scale ‖ loc0, scale0) in nats, (..., d) -> (...); None without a closed form."""
        return None

    def entropy(self, scale: Tensor) -> Tensor | None:
        """Entropy of loc + scale * eps in nats, (..., d) -> (...); None without a closed form."""
        return None

    def log_prob(self, z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        """Log-density of loc + scale * eps at z in nats, (..., d) -> (...)."""
        return self.log_density((z - loc) / scale).sum(-1) - scale.log().sum(-1)

    def log_prob_of_noise(self, eps: Tensor, scale: Tensor) -> Tensor:
        """Log-density of the draw loc + scale * eps in nats, (..., d) -> (...)."""
        return self.log_density(eps).sum(-1) - scale.log().sum(-1)

    def raw(self, scale: Tensor) -> Tensor:
        """Unconstrained numbers of positive scales, (..., d) -> (..., d): the inverse of `scale`.

        The default looks for them between -40 and 40, and is for scales that grow with each number
        by itself.
        """
        low = torch.full_like(scale, -40.0)
        high = torch.full_like(scale, 40.0)
        for _ in range(80):
            middle = (low + high) / 2
            above = self.scale(middle) > scale
            low = torch.where(above, low, middle)
            high = torch.where(above, middle, high)
        return (low + high) / 2

    def build(self, sizes: object) -> Family:
        """A family has no parameters: it is its own live part."""
        return self
