"""Samplers: where latents of new rows come from, after training.

Axes: n rows, b fitted rows, c components, d latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from einops import einsum
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.noise import Generator
from mvkit.errors import DataError
from mvkit.registry.spec import field, integer, spec


class HasPrior(Protocol):
    """What samplers ask of the model that they belong to."""

    def prior_draws(
        self, n: int, cluster: int | None, generator: Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Draws z (n, d) of the prior, and their clusters (n,) if it has any."""
        ...


class Sampler(ABC):
    """Draws shared latents of new rows.

    To implement one, write a spec whose `build(width)` returns an `nn.Module` with these two methods, whose state is in
    buffers and parameters of shapes that the spec and the width d alone decide, so that files can hold it.
    """

    spec: Any

    @abstractmethod
    def fit(self, z: Tensor, seed: int) -> None:
        """Fits to latents (b, d) of rows."""

    @abstractmethod
    def sample(self, model: HasPrior, n: int, generator: Generator) -> Tensor:
        """Latents (n, d)."""


@spec
class Prior:
    """The model's own prior, which needs no fit.

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014, https://arxiv.org/abs/1312.6114.
    """

    def build(self, width: int) -> PriorSampler:
        """The live part."""
        return PriorSampler(self)


class PriorSampler(nn.Module, Sampler):
    """Draws from the model's prior."""

    def __init__(self, spec: Prior) -> None:
        super().__init__()
        self.spec = spec

    def fit(self, z: Tensor, seed: int) -> None:
        """Nothing to do."""

    def sample(self, model: HasPrior, n: int, generator: Generator) -> Tensor:
        """See `Sampler.sample`."""
        return model.prior_draws(n, None, generator)[0]


@spec
class GMM:
    """Mixture of normals with full covariances, fitted to latents of training rows by scikit-learn.

    Args:
        components: number of components.
        floor: added to the variances, so that no component shrinks to a point.

    Reference: Ghosh, Sajjadi, Vergari, Black and Schölkopf, From Variational to Deterministic Autoencoders, ICLR 2020,
    https://arxiv.org/abs/1903.12436.
    """

    components: int = field(default=10, check=integer(1))
    floor: float = 1e-6

    def build(self, width: int) -> GMMSampler:
        """The live part."""
        return GMMSampler(self, width)


class GMMSampler(nn.Module, Sampler):
    """Weights (c,), means (c, d) and the lower factors of the covariances (c, d, d)."""

    weight: Tensor
    loc: Tensor
    factor: Tensor

    def __init__(self, spec: GMM, width: int) -> None:
        super().__init__()
        self.spec = spec
        c = spec.components
        self.register_buffer("weight", torch.full((c,), 1 / c))
        self.register_buffer("loc", torch.zeros(c, width))
        self.register_buffer("factor", torch.eye(width).repeat(c, 1, 1))

    def fit(self, z: Tensor, seed: int) -> None:
        """See `Sampler.fit`."""
        from sklearn.mixture import GaussianMixture

        if len(z) < self.spec.components:
            raise DataError(
                f"sampler 'gmm': needs {self.spec.components} rows at least; got {len(z)}"
            )
        made = GaussianMixture(
            self.spec.components, reg_covar=self.spec.floor, random_state=seed, max_iter=500
        )
        found = made.fit(z.cpu().double().numpy())
        self.weight.copy_(torch.as_tensor(found.weights_))
        self.loc.copy_(torch.as_tensor(found.means_))
        self.factor.copy_(torch.linalg.cholesky(torch.as_tensor(found.covariances_)))

    def sample(self, model: HasPrior, n: int, generator: Generator) -> Tensor:
        """See `Sampler.sample`."""
        uniform = noise.draw("choice/component", (n, 1), self.weight, generator=generator)
        cdf = self.weight.cumsum(0)
        picked = torch.searchsorted(cdf / cdf[-1], uniform[:, 0].contiguous(), right=True)
        eps = noise.draw(
            "prior", (n, self.loc.shape[1]), self.loc, generator=generator, sampler=torch.randn
        )
        return self.loc[picked] + einsum(self.factor[picked], eps, "n d e, n e -> n d")
