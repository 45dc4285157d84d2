"""Aggregators with networks of their own: the joint encoder, and the mean of messages.

Axes: b rows, m modalities, d latent.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.experts import Experts, on_rows
from mvkit.core.family import Family
from mvkit.core.mixture import Mixture
from mvkit.core.modality import Sizes
from mvkit.errors import SpecError
from mvkit.parts.aggregators.aggregator import (
    Aggregator,
    Defaults,
    check_product,
    head_of,
    product_of_observed,
    raw_experts,
)
from mvkit.registry.spec import field, flag, integer, one_of, part, parts, spec, to_dict


def _module_width(module: nn.Module, shape: tuple[int, ...]) -> int:
    """Numbers a user's module emits for a row, found by trying it on one row of zeros."""
    mode = module.training
    module.eval()
    with torch.no_grad():
        like = next(iter(module.parameters()), torch.zeros(()))
        out = module(torch.zeros(1, *shape, dtype=like.dtype, device=like.device))
    module.train(mode)
    return int(out.shape[-1])


def _fresh_copy(module: nn.Module) -> nn.Module:
    """A deep copy with parameters drawn anew, where its layers know how."""
    made = copy.deepcopy(module)
    for layer in made.modules():
        reset: Any = getattr(
            layer, "reset_parameters", None
        )  # torch's convention; not every layer has one
        if reset is not None:
            reset()
    return made


@spec
class Joint:
    """Joint encoder q(z|x_1, …, x_M) with trunks of its own; incomplete rows use the unimodal experts.

    One given modality: its expert; several: their product without a prior expert.

    Args:
        network: head from the concatenated features to 2 d numbers: a network or an `nn.Module`.
        trunks: networks or modules from x_m to features, by modality; absent ones are as the modality's encoder
            (a module: a copy of it, initialised anew).
        features: width of a trunk's features, where the trunk is not a module.
        incomplete: `poe`: incomplete rows train with the product of what they have; `skip`: they give nothing.
        correct_prior: divide the product by p(z)^(|S|-1), which exact unimodal posteriors would need.

    Reference: Suzuki, Nakayama and Matsuo, Joint Multimodal Learning with Deep MultimodalModel Models, 2016,
    https://arxiv.org/abs/1611.01891; Vedantam et al., MultimodalModel Models of Visually Grounded Imagination, 2018,
    https://arxiv.org/abs/1705.10762.
    """

    network: Any = part("network", default={"name": "mlp", "hidden": [256]}, module=True)
    trunks: dict[str, Any] = parts("network", default={}, module=True)
    features: int = field(default=128, check=integer(1))
    incomplete: str = field(default="poe", check=one_of("poe", "skip"))
    correct_prior: bool = field(default=False, check=flag)

    def build(self, sizes: Sizes) -> JointAggregator:
        """The live part."""
        if len(sizes.names) > 2:
            check_product(sizes, "joint", "aggregator='moe', or two modalities at most")
        standard = {"name": "standard"}
        if self.correct_prior and to_dict(sizes.prior) != standard:
            raise SpecError("needs prior='standard', whose density it divides by", "correct_prior")
        unknown = set(self.trunks) - set(sizes.names)
        if unknown:
            raise SpecError(
                f"no modality {unknown.pop()!r}; expected {', '.join(sizes.names)}", "trunks"
            )
        return JointAggregator(self, sizes)


class JointAggregator(nn.Module, Aggregator):
    """Encodes complete rows jointly; never looks at the experts unless a row is incomplete."""

    defaults = Defaults(has_joint_encoder=True)

    def __init__(self, spec: Joint, sizes: Sizes) -> None:
        super().__init__()
        self.spec = spec
        self.trunks = nn.ModuleDict()
        self.indicator = {name: modality.indicator for name, modality in sizes.modalities.items()}
        features = 0
        for name, modality in sizes.modalities.items():
            network: Any = spec.trunks.get(name) or modality.encoder
            if network is modality.encoder and isinstance(network, nn.Module):
                network = _fresh_copy(network)
            if isinstance(network, nn.Module):
                self.trunks[name] = network
                features += _module_width(network, modality.input_shape)
            else:
                self.trunks[name] = network.encoder(modality.input_shape, spec.features)
                features += spec.features
        self.latent = sizes.latent
        self.head = head_of(spec.network, features, 2 * sizes.latent)

    def _encode(self, batch: Batch, family: Family) -> tuple[Tensor, Tensor]:
        index = batch.complete_rows
        data = [batch.inputs(name, index, indicator=self.indicator[name]) for name in self.trunks]
        features = [on_rows(trunk, x) for trunk, x in zip(self.trunks.values(), data, strict=True)]
        loc, raw = self.head(torch.cat(features, dim=-1)).chunk(2, dim=-1)
        return rearrange(loc, "b d -> 1 b d"), rearrange(family.scale(raw), "b d -> 1 b d")

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        return self._joined(experts, batch, skip=self.spec.incomplete == "skip")

    def posterior(self, experts: Experts, batch: Batch) -> Mixture:
        """The joint encoder's where complete, elsewhere the product of the unimodal experts."""
        return self._joined(experts, batch, skip=False)

    def _joined(self, experts: Experts, batch: Batch, *, skip: bool) -> Mixture:
        """The joint encoder's in complete rows; in others surrogates, or with `skip` N(0, I), not active."""
        mask, whole = batch.observed, batch.complete_rows
        evidence = rearrange(mask, "b m -> 1 b m")
        if whole is None:
            loc, scale = self._encode(batch, experts.family)
        else:
            loc, scale = self._incomplete(experts, batch, whole, skip=skip)
            if len(whole) or torch.is_grad_enabled():  # in training the trunks stay in the graph
                joint = self._encode(batch, experts.family)
                loc, scale = (
                    a.index_copy(1, whole, b) for a, b in zip((loc, scale), joint, strict=True)
                )
        active = mask.all(1) if skip else None
        return Mixture(experts.family, loc, scale, loc.new_zeros(loc.shape[:2]), evidence, active)

    def _incomplete(
        self, experts: Experts, batch: Batch, whole: Tensor, *, skip: bool
    ) -> tuple[Tensor, Tensor]:
        """What rows that are not complete get, (1, b, d) each; what the others get means nothing."""
        mask, like = batch.observed, batch.data[next(iter(self.trunks))]
        one = like.new_ones(1, len(mask), self.latent)
        if skip:
            return torch.zeros_like(one), one
        if torch.is_grad_enabled() or not len(whole) or experts.encodes_all_rows:
            return self._surrogate(experts, mask)
        rest = (~mask.all(1)).nonzero()[:, 0]  # the others need no expert
        loc, scale = self._surrogate(experts.take(rest), mask.index_select(0, rest))
        return torch.zeros_like(one).index_copy(1, rest, loc), one.index_copy(1, rest, scale)

    def _surrogate(self, experts: Experts, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The product of the unimodal experts, (1, b, d) each."""
        plain = product_of_observed(experts, mask, 0.0)
        if not self.spec.correct_prior:
            return plain.loc, plain.scale
        excess = rearrange(mask.sum(1) - 1, "b -> 1 b 1").clamp(min=0)
        precision = plain.scale.square().reciprocal()
        total = (precision - excess).clamp(min=1e-3)  # broad experts could leave nothing
        return plain.loc * precision / total, torch.rsqrt(total)

    unimodal = staticmethod(raw_experts)
