"""Flow priors p(z).

Axes: b rows, d latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import zuko
from torch import nn
from torch.distributions import Distribution

from mvkit import spec
from mvkit.core import Posterior, Sizes
from mvkit.registry.fields import count


class Flow(ABC):
    """A normalizing flow: a prior p(z), or with a context what bends an expert to its posterior.

    To implement one, decorate a subclass with `@spec` and write `flow`.
    """

    @abstractmethod
    def flow(self, features: int, context: int = 0) -> zuko.lazy.Flow:
        """Zuko's flow of so many features, given so many numbers."""

    def build(self, sizes: Sizes) -> FlowPrior:
        """The prior with its flow."""
        return FlowPrior(self.flow(sizes.latent))


@spec
class NSF(Flow):
    """Neural spline flow prior p(z).

    Args:
        transforms: autoregressive transforms.
        bins: bins of the splines.
        hidden: widths of the hidden layers of each transform.

    Reference: Durkan, Bekasov, Murray and Papamakarios, Neural Spline Flows, NeurIPS 2019,
    https://arxiv.org/abs/1906.04032.
    """

    transforms: int = count(3)
    bins: int = count(8, low=2)
    hidden: tuple[int, ...] = (64, 64)

    def flow(self, features: int, context: int = 0) -> zuko.lazy.Flow:
        options = {"transforms": self.transforms, "hidden_features": list(self.hidden)}
        return zuko.flows.NSF(features, context, bins=self.bins, **options)


@spec
class MAF(Flow):
    """Masked autoregressive flow prior p(z).

    Args:
        transforms: autoregressive transforms.
        hidden: widths of the hidden layers of each transform.

    Reference: Papamakarios, Pavlakou and Murray, Masked Autoregressive Flow for Density
    Estimation, NeurIPS 2017, https://arxiv.org/abs/1705.07057.
    """

    transforms: int = count(3)
    hidden: tuple[int, ...] = (64, 64)

    def flow(self, features: int, context: int = 0) -> zuko.lazy.Flow:
        options = {"transforms": self.transforms, "hidden_features": list(self.hidden)}
        return zuko.flows.MAF(features, context, **options)


class FlowPrior(nn.Module):
    """Returns zuko's distribution: `log_prob` (..., b, d) -> (..., b), `sample((n,))` (n, d)."""

    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, posterior: Posterior | None = None) -> Distribution:
        """p(z), whatever the rows."""
        distribution: Distribution = self.flow()
        return distribution
