"""Products of experts: plain, and with trained weights.

Axes: k subsets, m modalities, b rows, d latent.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import nn

from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.mixture import Mixture, one_component, product_of_observed
from mvkit.core.modality import Sizes
from mvkit.parts.aggregators.aggregator import Aggregator
from mvkit.parts.families import check_product
from mvkit.registry.fields import switch
from mvkit.registry.spec import spec


@spec
class PoE(Aggregator):
    """Product-of-experts posterior q(z|X) ∝ p(z) ∏ q(z|x_m): precisions add up.

    Args:
        prior_expert: whether N(0, I) joins the product, once.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, aggregator="poe", seed=0)
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.posterior(rows).log_weight.shape  # one component
        torch.Size([1, 4])
        >>> model.encode({"b": rows["b"]}).shape
        torch.Size([4, 2])

    Reference: Wu and Goodman, Multimodal Generative Models for Scalable Weakly-Supervised
    Learning, 2018, https://arxiv.org/abs/1802.05335.
    """

    prior_expert: bool = switch(True)

    def build(self, sizes: Sizes) -> PoE:
        """The aggregator itself: it has no parameters."""
        check_product(sizes, "poe", "aggregator='moe'")
        return self

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        return product_of_observed(experts, batch.observed, float(self.prior_expert))


@spec
class GPoE:
    """Generalised product of experts: T = Σ_m α_md T_md, Σ_{m∈O} α_md = 1 in each dimension.

    The weights α are trained, T are precisions.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, aggregator="gpoe", seed=0)
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.encode(rows).shape
        torch.Size([4, 2])
        >>> sorted(model.aggregator.logits)
        ['a', 'b']

    Reference: Lawry Aguila, Chapman and Altmann, Multi-modal Variational Autoencoders for
    Normative Modelling Across Multiple Imaging Modalities, MICCAI 2023,
    https://arxiv.org/abs/2303.12706.
    """

    def build(self, sizes: Sizes) -> GPoEAggregator:
        """The aggregator with its weights."""
        check_product(sizes, "gpoe", "aggregator='moe'")
        return GPoEAggregator(sizes)


class GPoEAggregator(nn.Module, Aggregator):
    """Holds the logits of the weights by modality, so that they follow names, not positions."""

    alone_is_expert = True

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.logits = nn.ParameterDict({name: torch.zeros(sizes.latent) for name in sizes.names})

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        observed = rearrange(batch.observed, "b m -> m b 1")
        logits = torch.stack([self.logits[name] for name in experts.modalities])
        logits = rearrange(logits, "m d -> m 1 d")
        nothing = ~observed.any(0)  # an even softmax keeps a row without experts finite
        weight = torch.softmax(torch.where(observed | nothing, logits, -torch.inf), dim=0)
        precision = weight * experts.scale.square().reciprocal()
        total = precision.sum(0)
        loc = (precision * experts.loc).sum(0) / total
        return one_component(experts, loc, torch.rsqrt(total), batch.observed)
