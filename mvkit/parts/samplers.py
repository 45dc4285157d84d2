"""Samplers: where latents of new rows come from, after training.

Axes: n rows, b fitted rows, c components, d latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from einops import einsum
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.noise import Generator
from mvkit.errors import DataError, SpecError
from mvkit.parts.conditional_gmm import ConditionalGMMSampler, fit_to_complete
from mvkit.parts.conditional_samplers import SamplerSizes
from mvkit.parts.gaussian_mixture import SINGULAR
from mvkit.registry.fields import count
from mvkit.registry.spec import field, flag, number, spec


class HasPrior(Protocol):
    """What samplers ask of the model that they belong to."""

    def prior_draws(
        self, n: int, cluster: int | None, generator: Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Draws z (n, d) of the prior, and their clusters (n,) if it has any."""


class Sampler(ABC):
    """Draws shared latents of new rows, of which nothing is known.

    To implement one, write a spec whose `build(width)` returns an `nn.Module` with these two
    methods. Its state is in buffers and parameters whose shapes depend on the spec and the width d
    alone, so that files can hold it. A sampler that can be asked for latents given what rows have
    is a `ConditionalSampler`. With `weighs_rows`, `fit` also takes `weight=`, (b,), how much each
    row counts, or None; others are refused for rows with weights.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,)}, latent_dim=2, seed=0)
        >>> _ = mvkit.fit_sampler(model, {"a": torch.randn(50, 3)}, "gmm")
        >>> isinstance(model.samplers["gmm"], mvkit.Sampler)
        True
    """

    spec: object
    weighs_rows: bool = False

    @abstractmethod
    def fit(self, z: Tensor, seed: int) -> None:
        """Fits to latents (b, d) of rows."""

    @abstractmethod
    def sample(self, model: HasPrior, n: int, generator: Generator) -> Tensor:
        """Latents (n, d)."""


@spec
class Prior:
    """The model's own prior, which needs no fit.

    Example:
        >>> import mvkit
        >>> model = mvkit.Model({"a": (3,)}, latent_dim=2, seed=0)
        >>> model.sample(4, sampler="prior")["a"].shape
        torch.Size([4, 3])

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014,
    https://arxiv.org/abs/1312.6114.
    """

    def build(self, width: int) -> PriorSampler:
        """The sampler, without state."""
        return PriorSampler(self)


class PriorSampler(nn.Module, Sampler):
    """Draws from the model's prior."""

    weighs_rows = True

    def __init__(self, spec: Prior) -> None:
        super().__init__()
        self.spec = spec

    def fit(self, z: Tensor, seed: int, weight: Tensor | None = None) -> None:
        """Nothing to do."""

    def sample(self, model: HasPrior, n: int, generator: Generator) -> Tensor:
        z, _ = model.prior_draws(n, None, generator)
        return z


@spec
class GMM:
    """Mixture of normals with full covariances, fitted to latents of training rows.

    With `conditional`, it is a mixture over z, the private latents and each modality's own code
    (the mean of the posterior given it alone), fitted to rows with gaps by EM. Draws given what a
    row has are then those of the mixture given its codes and private latents, those of modalities
    that the row lacks integrated out. It knows nothing of covariates, unless `covariates` makes
    those that decoders see features too, which every row has. Its covariances are of d + Σ p + m d
    features, so that it suits latents of moderate width. Row weights count as in training.

    Args:
        components: number of components.
        floor: added to the variances, so that no component shrinks to a point.
        conditional: whether it can be asked for latents given what rows have.
        covariates: whether a conditional one knows the covariates of rows.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import GMM
        >>> model = mvkit.Model({"a": (3,)}, latent_dim=2, seed=0)
        >>> _ = mvkit.fit_sampler(model, {"a": torch.randn(50, 3)}, GMM(components=3))
        >>> model.sample(4, sampler="gmm")["a"].shape
        torch.Size([4, 3])

    Reference: Ghosh, Sajjadi, Vergari, Black and Schölkopf, From Variational to Deterministic
    Autoencoders, ICLR 2020, https://arxiv.org/abs/1903.12436; Ghahramani and Jordan, Supervised
    Learning from Incomplete Data via an EM Approach, NeurIPS 1993 (rows with gaps).
    """

    components: int = count(10)
    floor: float = field(default=1e-6, check=number(low=0.0))
    conditional: bool = field(default=False, check=flag, quiet=True)
    covariates: bool = field(default=False, check=flag, quiet=True)

    def build(
        self, width: int, sizes: SamplerSizes | None = None
    ) -> GMMSampler | ConditionalGMMSampler:
        """The sampler, not yet fitted; a conditional one needs the sizes of its model."""
        if self.covariates and not self.conditional:
            raise SpecError(
                "got True without conditional=True; a mixture of latents alone has no covariates; "
                "expected both, or neither",
                "covariates",
            )
        if not self.conditional:
            return GMMSampler(self, width)
        if sizes is None:
            raise SpecError("a conditional sampler is built for a model; expected its sizes")
        return ConditionalGMMSampler(self, sizes)


class GMMSampler(nn.Module, Sampler):
    """Weights (c,), means (c, d) and the lower factors of the covariances (c, d, d)."""

    weighs_rows = True
    spec: GMM
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

    def fit(self, z: Tensor, seed: int, weight: Tensor | None = None) -> None:
        from sklearn.mixture import GaussianMixture

        c = self.spec.components
        if len(z) < c:
            raise DataError(f"sampler 'gmm': needs {c} rows at least; got {len(z)}")
        floor = self.spec.floor
        if weight is not None:  # scikit-learn's takes none
            fitted = fit_to_complete(z.cpu().double(), c, floor, weight.cpu().double(), seed)
            self.weight.copy_(fitted.weight)
            self.loc.copy_(fitted.loc)
            self.factor.copy_(fitted.factor)
            return
        mixture = GaussianMixture(c, reg_covar=floor, random_state=seed, max_iter=500)
        try:
            mixture.fit(z.cpu().double().numpy())
        except ValueError as error:  # of scikit-learn, whose options have other names
            raise DataError(SINGULAR) from error
        self.weight.copy_(torch.as_tensor(mixture.weights_))
        self.loc.copy_(torch.as_tensor(mixture.means_))
        self.factor.copy_(torch.linalg.cholesky(torch.as_tensor(mixture.covariances_)))

    def sample(self, model: HasPrior, n: int, generator: Generator) -> Tensor:
        uniform = noise.draw("choice/component", (n, 1), self.weight, generator=generator)
        cdf = self.weight.cumsum(0)
        picked = torch.searchsorted(cdf / cdf[-1], uniform[:, 0].contiguous(), right=True)
        shape = (n, self.loc.shape[1])
        eps = noise.draw("prior", shape, self.loc, generator=generator, sampler=torch.randn)
        return self.loc[picked] + einsum(self.factor[picked], eps, "n d e, n e -> n d")
