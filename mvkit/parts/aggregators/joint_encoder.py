"""The joint encoder: one network that sees all modalities of a row.

Axes: m modalities, b rows, d latent.
"""

from __future__ import annotations

import copy

import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.experts import Experts, check_rows_apart, on_rows
from mvkit.core.mixture import Mixture, one_component, product_of_observed
from mvkit.core.modality import Modality, Sizes
from mvkit.errors import SpecError
from mvkit.parts.aggregators.aggregator import Aggregator, Defaults
from mvkit.parts.families import check_product
from mvkit.parts.networks import encoder_of
from mvkit.registry.fields import choice, count, switch
from mvkit.registry.spec import part, parts, spec, to_dict

LEAST_PRECISION = 1e-3  # of a corrected product that can be normalised


@spec
class Joint:
    """Joint encoder q(z|x_1, …, x_M) with trunks of its own; incomplete rows use the experts.

    One given modality: its expert; several: their product without a prior expert.

    Args:
        network: head from the concatenated features to 2 d numbers: a network or an `nn.Module`.
        trunks: networks or modules from x_m to features, by modality; by default as the modality's
            encoder (of a module: a copy, initialised anew).
        features: width of a trunk's features, where the trunk is not a module.
        incomplete: `poe`: incomplete rows train with the product of what they have; `skip`: they
            are left out.
        correct_prior: divide the product by p(z)^(|S|-1), which exact unimodal posteriors need.
            Where learnt ones are so broad that nothing could normalise the quotient, it is as
            broad as the sharpest of them.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import Joint
        >>> options = {"aggregator": Joint(features=16), "schedule": "joint_then_unimodal"}
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, **options, seed=0)
        >>> rows = {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2)}
        >>> model.encode(rows).shape
        torch.Size([4, 2])

    Reference: Suzuki, Nakayama and Matsuo, Joint Multimodal Learning with Deep Generative Models,
    2016, https://arxiv.org/abs/1611.01891; Vedantam et al., Generative Models of Visually Grounded
    Imagination, 2018, https://arxiv.org/abs/1705.10762.
    """

    network: object = part("network", default={"name": "mlp", "hidden": [256]}, module=True)
    trunks: dict[str, object] = parts("network", default={}, module=True)
    features: int = count(128)
    incomplete: str = choice("poe", "skip")
    correct_prior: bool = switch(False)

    def build(self, sizes: Sizes) -> JointAggregator:
        """The aggregator with its networks."""
        if len(sizes.names) > 2:
            check_product(sizes, "joint", "aggregator='moe', or two modalities at most")
        if self.correct_prior and to_dict(sizes.prior) != {"name": "standard"}:
            raise SpecError("needs prior='standard', whose density it divides by", "correct_prior")
        for name in self.trunks:
            if name not in sizes.names:
                known = ", ".join(sizes.names)
                raise SpecError(f"no modality {name!r}; expected {known}", "trunks")
        return JointAggregator(self, sizes)


class JointAggregator(nn.Module, Aggregator):
    """Encodes complete rows jointly; never looks at the experts unless a row is incomplete."""

    defaults = Defaults(has_joint_encoder=True)
    alone_is_expert = True

    def __init__(self, spec: Joint, sizes: Sizes) -> None:
        super().__init__()
        self.spec = spec
        self.trunks = nn.ModuleDict()
        self.indicator = {}
        features = 0
        for name, modality in sizes.modalities.items():
            network = spec.trunks.get(name, modality.encoder)
            if network is modality.encoder and isinstance(network, nn.Module):
                network = _fresh_copy(network)
            context = sizes.context("encoders")
            trunk = encoder_of(network, modality.input_shape, spec.features, context)
            self.trunks[name] = trunk
            self.indicator[name] = modality.indicator
            own = trunk is network
            features += _width(trunk, modality, context) if own else spec.features
        self.latent = sizes.latent
        self.head = encoder_of(spec.network, (features,), 2 * sizes.latent)

    def readers(self, name: str) -> list[nn.Module]:
        return [self.trunks[name]]

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        return self._joined(experts, batch, skip=self.spec.incomplete == "skip")

    def posterior(self, experts: Experts, batch: Batch) -> Mixture:
        """The joint encoder's where complete, elsewhere the product of the unimodal experts."""
        return self._joined(experts, batch, skip=False)

    def _joined(self, experts: Experts, batch: Batch, *, skip: bool) -> Mixture:
        """The joint encoder's in complete rows; in others surrogates, or with `skip` N(0, I)."""
        if batch.may_lack:
            loc, scale = self._dense(experts, batch, skip=skip)
        elif batch.complete_rows is None:
            loc, scale = self._encode(experts, batch, None)
        else:
            loc, scale = self._gathered(experts, batch, batch.complete_rows, skip=skip)
        active = batch.observed.all(1) if skip else None
        return one_component(experts, loc, scale, batch.observed, active)

    def _gathered(
        self, experts: Experts, batch: Batch, complete: Tensor, *, skip: bool
    ) -> tuple[Tensor, Tensor]:
        """Each row by what it takes, (1, b, d) each; `complete` (n,) are the complete ones."""
        loc, scale = self._incomplete(experts, batch, complete, skip=skip)
        # in training the trunks stay in the graph
        if len(complete) or torch.is_grad_enabled():
            joint_loc, joint_scale = self._encode(experts, batch, complete)
            loc = loc.index_copy(1, complete, joint_loc)
            scale = scale.index_copy(1, complete, joint_scale)
        return loc, scale

    def _dense(self, experts: Experts, batch: Batch, *, skip: bool) -> tuple[Tensor, Tensor]:
        """Both in all rows, of which the mask picks one, (1, b, d) each."""
        for name, trunk in self.trunks.items():
            check_rows_apart(trunk, f"aggregator.trunks.{name}")
        joint = self._encode(experts, batch, None)
        if skip:
            surrogate = (torch.zeros_like(joint[0]), torch.ones_like(joint[1]))
        else:
            surrogate = self._surrogate(experts, batch.observed)
        complete = rearrange(batch.observed.all(1), "b -> 1 b 1")
        loc, scale = (torch.where(complete, *both) for both in zip(joint, surrogate, strict=True))
        return loc, scale

    def _encode(
        self, experts: Experts, batch: Batch, rows: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Parameters of the rows at indices (n,), (1, n, d) each; None: of all."""
        features = []
        for name, trunk in self.trunks.items():
            x = batch.inputs(name, rows, indicator=self.indicator[name])
            features.append(on_rows(trunk, x, experts.context_of(rows)))
        loc, raw = self.head(torch.cat(features, dim=-1)).chunk(2, dim=-1)
        scale = experts.family.scale(raw)
        return rearrange(loc, "n d -> 1 n d"), rearrange(scale, "n d -> 1 n d")

    def _incomplete(
        self, experts: Experts, batch: Batch, complete: Tensor, *, skip: bool
    ) -> tuple[Tensor, Tensor]:
        """Surrogate parameters of incomplete rows, (1, b, d); ignore those of complete rows."""
        observed = batch.observed
        like = batch.data[next(iter(self.trunks))]
        ones = like.new_ones(1, len(observed), self.latent)
        zeros = torch.zeros_like(ones)
        if skip:
            return zeros, ones
        if torch.is_grad_enabled() or not len(complete) or experts.encodes_all_rows:
            return self._surrogate(experts, observed)
        rows = (~observed.all(1)).nonzero()[:, 0]  # complete rows need no expert
        loc, scale = self._surrogate(experts.take(rows), observed.index_select(0, rows))
        return zeros.index_copy(1, rows, loc), ones.index_copy(1, rows, scale)

    def _surrogate(self, experts: Experts, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The product of the unimodal experts, (1, b, d) each."""
        product = product_of_observed(experts, mask, 0.0)
        if not self.spec.correct_prior:
            return product.loc, product.scale
        excess = rearrange(mask.sum(1) - 1, "b -> 1 b 1").clamp(min=0)
        precision = product.scale.square().reciprocal()
        each = torch.where(
            rearrange(mask, "b m -> m b 1"), experts.scale.square().reciprocal(), 0.0
        )
        rest = precision - excess
        # exact posteriors are no broader together than apart; learnt ones may leave nothing
        total = torch.where(rest > LEAST_PRECISION, rest, each.amax(0, keepdim=True))
        return product.loc * precision / total, torch.rsqrt(total)


def _fresh_copy(module: nn.Module) -> nn.Module:
    """A deep copy with parameters drawn anew, where its layers know how."""
    fresh = copy.deepcopy(module)
    for layer in fresh.modules():
        # torch's convention; not every layer has one
        reset = getattr(layer, "reset_parameters", None)
        if reset is not None:
            reset()
    return fresh


def _width(module: nn.Module, modality: Modality, context: int) -> int:
    """Numbers that a user's module emits for a row, found by trying it on one row of zeros."""
    mode = module.training
    module.eval()
    like = next(module.parameters(), torch.zeros(()))
    with torch.no_grad():
        rows = like.new_zeros(1, *modality.input_shape)
        features = module(rows, like.new_zeros(1, context)) if context else module(rows)
    module.train(mode)
    return int(features.shape[-1])
