"""A mixture whose component is part of the latent: p(s) p(z|s), and q(s|x_O) q(z|s, x_O).

The latent is s and z one after another, s as the one-hot vector of the component, its label. So
decoders see both, and sums over s are exact: every component is drawn and weighed.

Axes: s samples, j drawn components, k components, b rows, m modalities, d numbers of z, l all
numbers, k + d.
"""

from __future__ import annotations

import attrs
import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.mixture import Mixture
from mvkit.core.modality import Sizes
from mvkit.core.noise import Generator, initial_uniforms
from mvkit.core.posterior import Draws, Posterior, check_latents
from mvkit.core.validation import one_hot
from mvkit.errors import SpecError
from mvkit.parts.aggregators.aggregator import Aggregator, Defaults
from mvkit.parts.objectives.objective import Objective
from mvkit.parts.priors import Prior, Shift
from mvkit.registry import plugins
from mvkit.registry.fields import optional_count
from mvkit.registry.spec import spec


@attrs.frozen(eq=False)
class LabelledMixture(Posterior):
    """A mixture with its component as a label, one per row; prior and posterior alike.

    `mean` has the probabilities of the components in the place of the label.

    Args:
        components: the components of z, and the probabilities of the labels as their weights.
        active: rows that objectives count, (b,) bool; None: all.

    Example:
        >>> import torch
        >>> from mvkit import Mixture
        >>> from mvkit.parts.families import Normal
        >>> components = Mixture(Normal(), torch.zeros(3, 4, 2), torch.ones(3, 4, 2),
        ...                      torch.full((3, 4), 1 / 3).log())
        >>> LabelledMixture(components).rsample(5).shape  # three numbers of s, and two of z
        torch.Size([5, 4, 5])
    """

    components: Mixture
    active: Tensor | None = None

    @property
    def log_weight(self) -> Tensor:
        return self.components.log_weight

    @property
    def evidence(self) -> Tensor | None:
        return self.components.evidence

    @property
    def mean(self) -> Tensor:
        probabilities = rearrange(self.log_weight.exp(), "k b -> b k")
        return torch.cat([probabilities, self.components.mean], -1)

    def draw(self, n: int, how: str, generator: Generator = None, site: str = "z") -> Draws:
        draws = self.components.draw(n, how, generator, site)
        k = self.components.components
        log_weight = self.log_weight
        if draws.component is None:
            labels = torch.arange(k, device=log_weight.device).expand(n, log_weight.shape[1], k)
            labels = rearrange(labels, "s b k -> s k b")
        else:
            labels = draws.component.expand(n, -1, -1)
            log_weight = log_weight.gather(0, labels[:, 0])

        def density() -> Tensor:
            if draws.component is None:
                return draws.log_qk + log_weight
            return draws.log_qk + rearrange(log_weight, "s b -> s 1 b")

        return Draws(
            self, _labelled(labels, draws.z, k), draws.component, draws.log_pi, density, self.kl
        )

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-probability of s and log-density of z given it, (..., b, l) -> (..., b), in nats.

        What stands in the place of the label is taken for its largest number.
        """
        k, _, d = self.components.loc.shape
        b = self.log_weight.shape[1]
        check_latents(z, (b, k + d))
        label = z[..., :k].argmax(-1)
        rows = torch.arange(b, device=z.device)
        loc = self.components.loc[label, rows]
        scale = self.components.scale[label, rows]
        log_pz = self.components.family.log_prob(z[..., k:], loc, scale)
        return log_pz + self.log_weight[label, rows]

    def kl(self, prior: object) -> Tensor | None:
        """KL of z of every component from that of the same label, and log q(s) - log p(s), (k, b):
        weighed by q(s), the divergence of both. None where there is no closed form.
        """
        if not isinstance(prior, LabelledMixture):
            return None
        own, other = self.components, prior.components
        if own.components != other.components or own.family.density != other.family.density:
            return None
        of_z = own.family.kl(own.loc, own.scale, other.loc, other.scale)
        return None if of_z is None else of_z + self.log_weight - prior.log_weight

    def detach(self) -> LabelledMixture:
        return attrs.evolve(self, components=self.components.detach())

    def stop_density(self) -> LabelledMixture:
        return attrs.evolve(self, components=self.components.stop_density())

    def expand(self, b: int, m: int) -> LabelledMixture:
        return LabelledMixture(self.components.expand(b, m))

    def sample(
        self, n: int, component: int | None = None, generator: Generator = None
    ) -> tuple[Tensor, Tensor]:
        """Draws of a prior, b = 1 or n: latents (n, l) and their components (n,)."""
        z, picked = self.components.sample(n, component, generator)
        return _labelled(picked, z, self.components.components), picked


def _labelled(label: Tensor, z: Tensor, k: int) -> Tensor:
    """Labels (...) as one-hot vectors, and z (..., d) after them, (..., l)."""
    return torch.cat([one_hot(label, k, z.dtype), z], -1)


@spec
class LabelledMoG:
    """Mixture prior whose component decoders see: p(s) = 1/C, p(z|s) = F(z; μ_s, 1) in family F.

    The latent is s as a one-hot vector, and z after it. The locations μ_s are trained, from
    U(-1, 1). It goes with aggregator `labelled_sum`.

    Args:
        components: number of components, and of numbers that s takes of `latent_dim`; None: half
            of them.

    Example:
        >>> import mvkit
        >>> prior = {"name": "labelled_mog", "components": 2}
        >>> parts = {"aggregator": "labelled_sum", "prior": prior}
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=4, **parts, seed=0)
        >>> model.n_clusters
        2

    Reference: Nazabal, Olmos, Ghahramani and Valera, Handling Incomplete Heterogeneous Data using
    VAEs (HI-VAE), 2020, https://arxiv.org/abs/1807.03653.
    """

    components: int | None = optional_count()

    def labels(self, latent: int) -> int:
        """How many of the numbers of the latent are those of s.

        Raises:
            SpecError: none is left for z.
        """
        labels = max(1, latent // 2) if self.components is None else self.components
        if labels >= latent:
            raise SpecError(
                f"s takes {labels} of latent_dim={latent} numbers, which leaves none for z; "
                "expected fewer components, or a larger latent_dim",
                "components",
            )
        return labels

    def build(self, sizes: Sizes) -> LabelledMoGPrior:
        """The prior with its locations."""
        return LabelledMoGPrior(self, sizes)


class LabelledMoGPrior(nn.Module, Prior):
    """The trained locations; covariates shift them all alike."""

    takes_context = True

    def __init__(self, spec: LabelledMoG, sizes: Sizes) -> None:
        super().__init__()
        self.family = sizes.family
        self.clusters = spec.labels(sizes.latent)
        width = sizes.latent - self.clusters
        self.loc = nn.Parameter(2 * initial_uniforms((self.clusters, 1, width)) - 1)
        context = sizes.context("prior")
        self.loc_shift = Shift(context, width) if context else None

    def incompatibility(self, aggregator: Aggregator, objective: Objective) -> str | None:
        if isinstance(aggregator, LabelledSumAggregator):
            return None
        return (
            "the latents of 'labelled_mog' begin with a label, which the posterior must tell; "
            "take aggregator='labelled_sum', or prior='mog'"
        )

    def forward(
        self, posterior: Mixture | None = None, context: Tensor | None = None
    ) -> LabelledMixture:
        loc = self.loc
        if context is not None and self.loc_shift is not None:
            loc = loc + self.loc_shift(context)
        log_weight = torch.log_softmax(loc.new_zeros(loc.shape[:2]), 0)
        return LabelledMixture(Mixture(self.family, loc, torch.ones_like(loc), log_weight))

    def assign(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The label, (..., b, l) -> (..., b, k): of a mean, the components' probabilities."""
        return z[..., : self.clusters]


@spec
class LabelledSum:
    """Posterior of prior `labelled_mog`: q(s|x_O) q(z|s, x_O), from sums of what encoders emit.

    Each encoder emits k logits and 2 numbers for each of z. Σ_{m∈O} of the logits and trained ones
    give q(s|x_O); the other sums and trained numbers of each component give q(z|s, x_O). With
    linear encoders that is one layer which sees the row with zeros in its gaps, but that the
    constants of an encoder count only where its modality is observed.

    Example:
        >>> import mvkit, torch
        >>> prior = {"name": "labelled_mog", "components": 2}
        >>> parts = {"aggregator": "labelled_sum", "prior": prior}
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=4, **parts, seed=0)
        >>> model.encode({"a": torch.zeros(4, 3)}).shape
        torch.Size([4, 4])

    Reference: Nazabal, Olmos, Ghahramani and Valera, Handling Incomplete Heterogeneous Data using
    VAEs (HI-VAE), 2020, https://arxiv.org/abs/1807.03653 (its input dropout).
    """

    def build(self, sizes: Sizes) -> LabelledSumAggregator:
        """The aggregator with its constants.

        Raises:
            SpecError: another prior.
        """
        prior = sizes.live_prior
        if not isinstance(prior, LabelledMoGPrior):
            cls = type(sizes.prior)
            name = plugins.name_of("prior", cls) or cls.__name__
            raise SpecError(
                f"tells the component of its prior, and {name!r} has no labels; take "
                "prior='labelled_mog'"
            )
        return LabelledSumAggregator(prior.clusters, sizes.latent - prior.clusters)


class LabelledSumAggregator(nn.Module, Aggregator):
    """A component for each label, all of which looked at everything that is observed.

    Args:
        components: of the prior.
        width: numbers of z.
    """

    defaults = Defaults(has_unimodal_experts=False)

    def __init__(self, components: int, width: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.numbers = nn.Parameter(torch.zeros(components, 2 * width))

    def width(self, latent_dim: int) -> int:
        """Logits of the components, and 2 numbers for each of z."""
        return len(self.logits) + self.numbers.shape[1]

    def forward(self, experts: Experts, batch: Batch) -> LabelledMixture:
        # the batch may hide what the experts saw
        observed = rearrange(batch.observed, "b m -> m b 1")
        total = torch.where(observed, experts.stats, 0.0).sum(0)
        k = len(self.logits)
        log_weight = torch.log_softmax(total[:, :k] + self.logits, -1)
        numbers = total[:, k:] + rearrange(self.numbers, "k d -> k 1 d")
        loc, raw = numbers.chunk(2, dim=-1)
        scale = experts.family.scale(raw)
        evidence = batch.observed.expand(k, -1, -1)
        log_weight = rearrange(log_weight, "b k -> k b")
        return LabelledMixture(Mixture(experts.family, loc, scale, log_weight, evidence))
