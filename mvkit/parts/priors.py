"""Priors p(z).

Axes: c prior components, b rows, d latent.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit.core import noise
from mvkit.core.correlated_mixture import CorrelatedMixture
from mvkit.core.family import Family
from mvkit.core.mixture import Mixture
from mvkit.core.modality import Sizes
from mvkit.core.posterior import Posterior, as_density
from mvkit.errors import DataError, SpecError
from mvkit.parts.aggregators.aggregator import Aggregator
from mvkit.parts.mixture_fit import CovarianceKind, MixtureFit, fit_mixture, precision_roots
from mvkit.parts.objectives.objective import Objective
from mvkit.registry.fields import choice, count, switch
from mvkit.registry.renamed import RenamedMethods
from mvkit.registry.spec import field, one_of, spec


class Prior(RenamedMethods, ABC):
    """The prior p(z), which may depend on the posterior.

    To implement one, write a spec whose `build(sizes)` returns an `nn.Module` with this `forward`.
    What it returns needs `log_prob(z)` from (..., b, d) to (..., b), and `sample((n,))` to (n, d):
    any `torch.distributions.Distribution` will do; a `Posterior` answers `given=()` too, and a
    `Mixture` of one component has closed-form KLs. `clusters` is the number of components that
    `Model.clusters` may assign rows to, 0 if that means nothing; `conditional` says that the prior
    depends on the rows, whose whole posterior `forward` is then given. `takes_context` says that
    it can depend on covariates: `forward` then takes `context=None`, (b, c), and `sizes.context(
    "prior")` tells c. `places` says that stages of training may `place` it.
    """

    renamed: ClassVar = {"start": "initialise", "refusal": "incompatibility"}
    clusters: int = 0
    conditional: bool = False
    takes_context: bool = False
    places: bool = False

    @property
    def pseudo_context(self) -> Tensor | None:
        """What encoders see of the covariates of pseudo-inputs, (c, numbers); None: nothing."""
        return None

    @property
    def pseudo_inputs(self) -> dict[str, Tensor] | None:
        """Rows {name: (c, *shape)} whose posterior, as one mixture, `forward` is to be given."""
        return None

    def incompatibility(self, aggregator: Aggregator, objective: Objective) -> str | None:
        """Why it does not go with an aggregator or an objective; None if it does."""
        return None

    @abstractmethod
    def forward(self, posterior: Mixture | None = None) -> Posterior:
        """The prior, for the rows of `posterior` if it depends on them."""

    def density(
        self, posterior: Mixture | None = None, context: Tensor | None = None
    ) -> Posterior:
        """What `forward` returns, also if that is a distribution of torch."""
        options = {} if context is None else {"context": context}
        value = self.forward(posterior, **options)
        return value if isinstance(value, Posterior) else as_density(value)

    def assign(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Responsibilities p(c|z) of a mixture's components, (..., b, d) -> (..., b, c)."""
        return torch.softmax(cast(Mixture, self.density(None, context)).joint(z), dim=-1)

    def initialise(self, encode: Callable[[], Tensor], seed: int) -> None:
        """Called by `fit` before the first step; may place parameters by the codes (b, d)."""

    def become_standard(self) -> None:
        """Becomes the standard prior, with all that it has."""
        raise NotImplementedError("a prior that places itself is to write this")

    def place(
        self,
        codes: Tensor,
        draws: Tensor,
        *,
        context: Tensor | None = None,
        weight: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        """Places parameters by a fit to training rows.

        Args:
            codes: posterior means given all that a row has, (b, d).
            draws: draws of these posteriors, (s, b, d).
            context: what the prior sees of the rows' covariates, (b, c); None: nothing.
            weight: how much each row counts, (b,); None: all alike.
            seed: of the fit.
        """
        raise NotImplementedError("a prior that places itself is to write this")


class ForeignPrior(Prior):
    """A user's module as a prior: called with the posterior, it returns p(z)."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def forward(self, posterior: Mixture | None = None) -> Posterior:
        density: Posterior = self.module(posterior)
        return density


def as_prior(module: Prior | nn.Module) -> Prior:
    """What a model holds as its prior, a user's module included, as a `Prior`."""
    return module if isinstance(module, Prior) else ForeignPrior(module)


def raw_of_one(family: Family, shape: tuple[int, ...]) -> Tensor:
    """Raw numbers whose scales are 1: the zero of exp, the inverse of softplus elsewhere."""
    raw = torch.zeros(shape)
    if shape[-1] and bool((family.scale(raw) - 1).abs().max() > 1e-3):
        raw = raw + math.log(math.expm1(1.0))
    return raw


class _Scales(nn.Module):
    """Components of a family, scales of 1 unless they are trained."""

    family: Family
    loc: Tensor
    raw: Tensor | None

    @property
    def scale(self) -> Tensor:
        """Scales of the components, (c, 1, d)."""
        return torch.ones_like(self.loc) if self.raw is None else self.family.scale(self.raw)


class Shift(nn.Linear):
    """What covariates add to the parameters of a prior, (b, c) -> (1, b, d); nothing at first."""

    def __init__(self, context: int, width: int) -> None:
        super().__init__(context, width, bias=False)

    def reset_parameters(self) -> None:
        """Draws nothing: a prior begins without a preference."""
        nn.init.zeros_(self.weight)

    def forward(self, context: Tensor) -> Tensor:
        """The shift of each row."""
        return rearrange(super().forward(context), "b d -> 1 b d")


class DiagonalPrior(_Scales, Prior):
    """One diagonal component, fixed or trained; trained ones may depend on covariates."""

    def __init__(self, sizes: Sizes, *, learn_loc: bool, learn_scale: bool) -> None:
        super().__init__()
        self.family = sizes.family
        shape = (1, 1, sizes.latent)
        if learn_loc:
            self.loc = nn.Parameter(torch.zeros(shape))
        else:
            self.register_buffer("loc", torch.zeros(shape), persistent=False)
        self.raw = nn.Parameter(raw_of_one(self.family, shape)) if learn_scale else None
        context = sizes.context("prior")
        self.takes_context = learn_loc or learn_scale
        self.loc_shift = Shift(context, sizes.latent) if context and learn_loc else None
        self.raw_shift = Shift(context, sizes.latent) if context and learn_scale else None

    def forward(self, posterior: Mixture | None = None, context: Tensor | None = None) -> Mixture:
        loc, scale = self.loc, self.scale
        if context is not None and self.loc_shift is not None:
            loc = loc + self.loc_shift(context)
        if context is not None and self.raw_shift is not None and self.raw is not None:
            scale = self.family.scale(self.raw + self.raw_shift(context))
        b = max(loc.shape[1], scale.shape[1])
        loc, scale = (values.expand(-1, b, -1) for values in (loc, scale))
        return Mixture(self.family, loc, scale, loc.new_zeros(1, b))


@spec
class Standard:
    """Standard prior of the posterior's family: N(0, I), or Laplace(0, 1).

    Reference: Kingma and Welling, Auto-Encoding Variational Bayes, 2014,
    https://arxiv.org/abs/1312.6114.
    """

    def build(self, sizes: Sizes) -> DiagonalPrior:
        """The prior, without parameters."""
        return DiagonalPrior(sizes, learn_loc=False, learn_scale=False)


@spec
class Learnable:
    """Diagonal prior with trained location and scale, the scale parametrised as the family's.

    Args:
        learn_loc: whether the location is trained.
        learn_scale: whether the scale is trained.

    Reference: Shi et al., Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep
    Generative Models, 2019, https://arxiv.org/abs/1911.03393.
    """

    learn_loc: bool = switch(True)
    learn_scale: bool = switch(True)

    def build(self, sizes: Sizes) -> DiagonalPrior:
        """The prior with its parameters."""
        return DiagonalPrior(sizes, learn_loc=self.learn_loc, learn_scale=self.learn_scale)


@spec
class MoG:
    """Mixture prior p(z) = Σ_c π_c F(z; μ_c, σ_c) in the posterior's family F.

    With the exact q(c|z) the mixture VAE's bound is that of this density, in value and gradient:
    no loop over clusters.

    Args:
        components: number of components C.
        learn_scale: whether σ_c is trained (else 1); tied and full covariances always are.
        init: `uniform`: μ_c ~ U(-1, 1); `kmeans`: `fit` puts them at the centres of the encoded
            data first.
        covariance: `diagonal`: scales σ_c; `tied`: one covariance Σ of all components; `full`: Σ_c
            of each. The last two are of normal families.

    Reference: Palumbo et al., Deep Generative Clustering with Multimodal Diffusion Variational
    Autoencoders (CMVAE), 2024, https://openreview.net/forum?id=k5THrhXDV3.
    """

    components: int = count(10)
    learn_scale: bool = switch(False)
    init: str = choice("uniform", "kmeans")
    covariance: CovarianceKind = field(
        default="diagonal", check=one_of("diagonal", "tied", "full"), quiet=True
    )

    def build(self, sizes: Sizes) -> MoGPrior:
        """The prior with its parameters."""
        if self.covariance != "diagonal" and sizes.family.density != "normal":
            raise SpecError(
                f"got {self.covariance!r}, which only normals can have; take family='normal', or "
                "'diagonal'",
                "covariance",
            )
        return MoGPrior(self, sizes)


class MoGPrior(_Scales, Prior):
    """A trained mixture; `weights` are its π."""

    takes_context = True
    places = True
    placed: Tensor

    def __init__(self, spec: MoG, sizes: Sizes) -> None:
        super().__init__()
        self.family = sizes.family
        self.clusters = spec.components
        self.covariance = spec.covariance
        kmeans = spec.init == "kmeans"
        self.register_buffer("placed", torch.tensor(not kmeans), persistent=kmeans)
        shape = (spec.components, 1, sizes.latent)
        self.loc = nn.Parameter(2 * noise.initial_uniforms(shape) - 1)
        self.logits = nn.Parameter(torch.zeros(spec.components))
        diagonal = spec.covariance == "diagonal"
        learn_scale = spec.learn_scale and diagonal
        self.raw = nn.Parameter(raw_of_one(self.family, shape)) if learn_scale else None
        roots = spec.components if spec.covariance == "full" else 1
        raw_root = torch.zeros(roots, sizes.latent, sizes.latent)
        self.raw_root = None if diagonal else nn.Parameter(raw_root)
        context = sizes.context("prior")
        self.loc_shift = Shift(context, sizes.latent) if context else None

    @property
    def root(self) -> Tensor:
        """Roots A of the precisions AᵀA, lower triangular, (c, d, d)."""
        if self.raw_root is None:
            return torch.diag_embed(rearrange(self.scale, "c 1 d -> c d").reciprocal())
        diagonal = self.raw_root.diagonal(dim1=-2, dim2=-1).exp()
        root = self.raw_root.tril(-1) + torch.diag_embed(diagonal)
        return root.expand(self.clusters, -1, -1)

    def forward(
        self, posterior: Mixture | None = None, context: Tensor | None = None
    ) -> Mixture | CorrelatedMixture:
        loc = self.loc
        log_pi = rearrange(torch.log_softmax(self.logits, dim=0), "c -> c 1")
        b = 1
        if context is not None and self.loc_shift is not None:
            loc = loc + self.loc_shift(context)
            b = len(context)
            log_pi = log_pi.expand(-1, b)
        if self.raw_root is not None:
            return CorrelatedMixture(self.family, loc, self.root, log_pi)
        return Mixture(self.family, loc, self.scale.expand(-1, b, -1), log_pi)

    def initialise(self, encode: Callable[[], Tensor], seed: int) -> None:
        """With init="kmeans", puts the means at the centres of the encoded rows, once."""
        if self.placed:
            return
        from sklearn.cluster import KMeans

        codes = encode().cpu().numpy()
        if len(codes) < self.clusters:
            raise DataError(
                f"prior 'mog': init='kmeans' needs {self.clusters} rows at least; got {len(codes)}"
            )
        centres = KMeans(self.clusters, n_init=3, random_state=seed).fit(codes).cluster_centers_
        self.placed.fill_(True)
        with torch.no_grad():
            self.loc.copy_(rearrange(torch.as_tensor(centres), "c d -> c 1 d"))

    @torch.no_grad()
    def become_standard(self) -> None:
        """All components at 0 with scale 1, whatever covariates say."""
        for parameter in self.parameters():
            parameter.zero_()
        if self.raw is not None:
            self.raw.copy_(raw_of_one(self.family, tuple(self.raw.shape)))

    @torch.no_grad()
    def place(
        self,
        codes: Tensor,
        draws: Tensor,
        *,
        context: Tensor | None = None,
        weight: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        """Rows are shared out by the likeliest mixture of normals of their codes; components get
        the moments of the draws of their rows. Scales move only where they are trained.

        Raises:
            DataError: fewer rows than components.
        """
        if len(codes) < self.clusters:
            raise DataError(
                f"prior 'mog': needs {self.clusters} rows at least to be placed; got {len(codes)}"
            )
        codes, draws = self.unshifted(codes, context), self.unshifted(draws, context)
        self.place_at(
            fit_mixture(codes, self.clusters, self.covariance, seed=seed, weight=weight), draws
        )

    def unshifted(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Latents without what covariates add to the components, (..., b, d)."""
        if context is None or self.loc_shift is None:
            return z
        shift: Tensor = rearrange(self.loc_shift(context), "1 b d -> b d")
        return z - shift

    @torch.no_grad()
    def place_at(self, mixture: MixtureFit, draws: Tensor) -> None:
        """Gives components the moments of the draws (s, b, d) of the rows that are theirs."""
        pi, loc, covariance = mixture.moments(draws, self.covariance)
        self.logits.copy_(pi.log())
        self.loc.copy_(rearrange(loc, "c d -> c 1 d"))
        if self.raw is not None:
            scale = covariance.diagonal(dim1=-2, dim2=-1).sqrt() / self.family.deviation
            self.raw.copy_(self.family.raw(rearrange(scale, "c d -> c 1 d")))
        if self.raw_root is not None:
            root = precision_roots(covariance)[: len(self.raw_root)]
            log_diagonal = root.diagonal(dim1=-2, dim2=-1).log()
            self.raw_root.copy_(root.tril(-1) + torch.diag_embed(log_diagonal))

    @property
    def weights(self) -> Tensor:
        """The mixture's weights π, (c,)."""
        return torch.softmax(self.logits, dim=0)

    def keep(self, clusters: tuple[int, ...]) -> None:
        """Drops all other components; weights are normalised anew."""
        index = torch.tensor(clusters, device=self.loc.device)
        names = ["loc", "logits", "raw"]
        if self.covariance == "full":
            names.append("raw_root")
        for name in names:
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, nn.Parameter(value.detach()[index]))
        self.clusters = len(clusters)
