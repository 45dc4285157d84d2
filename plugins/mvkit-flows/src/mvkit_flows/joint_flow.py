"""The joint encoder with flows for unimodal posteriors. Axes: k components, b rows, m modalities,
d latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from einops import rearrange
from torch import nn

from mvkit import Batch, Mixture, SpecError, spec
from mvkit.core.experts import Experts
from mvkit.core.modality import Sizes
from mvkit.core.posterior import Posterior
from mvkit.parts.aggregators.aggregator import Aggregator, Defaults, raw_experts
from mvkit.parts.aggregators.joint_encoder import Joint
from mvkit.parts.aggregators.mixtures import MoEAggregator
from mvkit.parts.priors import Prior
from mvkit.registry.spec import field, flag, integer, part
from mvkit_flows.posteriors import Product, Transported
from mvkit_flows.priors import Flow


@spec
class JointFlow:
    """Joint encoder q(z|x_1, …, x_M), and for each modality a flow q_m(z|x_m) on top of its normal
    expert.

    Complete rows train the joint encoder. What `encode` and `translate` use given one modality is
    its flow; given several, but not all, their product over p(z)^(|S|-1), sampled by Hamiltonian
    chains. What `posterior` and likelihoods use there is the flows' mixture, which has a density.

    Args:
        joint: the joint encoder, a spec of `joint`.
        flow: `maf` or `nsf`, or a spec of one; its base is the modality's expert.
        conditional: whether the flow sees what the modality's encoder emits, not only through its
            base.
        correct_prior: divide products by p(z)^(|S|-1).
        steps: transitions of a Hamiltonian chain.
        leapfrog: leapfrog steps of a transition.
        chains: pairs of chains behind the means of products.
        points: pairs of points behind the means of flows.

    Reference: Senellart, Chadebec and Allassonnière, Improving Multimodal Joint Variational
    Autoencoders through Normalizing Flows and Correlation Analysis, 2023,
    https://arxiv.org/abs/2305.11832.
    """

    joint: Any = part("aggregator", default="joint")
    flow: Any = part("prior", default="mvkit-flows/maf")
    conditional: bool = field(default=True, check=flag)
    correct_prior: bool = field(default=True, check=flag)
    steps: int = field(default=20, check=integer(1))
    leapfrog: int = field(default=8, check=integer(1))
    chains: int = field(default=4, check=integer(1))
    points: int = field(default=64, check=integer(1))

    def build(self, sizes: Sizes) -> JointFlowAggregator:
        """The live part."""
        if not isinstance(self.flow, Flow):
            raise SpecError(f"got {self.flow!r}; expected a flow, such as 'maf' or 'nsf'", "flow")
        if not isinstance(self.joint, Joint):
            raise SpecError(f"got {self.joint!r}; expected 'joint', or a spec of it", "joint")
        if not sizes.latent:
            raise SpecError("a flow needs a latent_dim of 1 at least")
        prior = sizes.live_prior
        moves = isinstance(prior, Prior) and (prior.conditional or prior.pseudo_inputs is not None)
        if moves and self.correct_prior and len(sizes.names) > 2:
            raise SpecError(
                "this prior depends on encoders, so nothing divides by it; take False",
                "correct_prior",
            )
        return JointFlowAggregator(self, sizes)


class JointFlowAggregator(nn.Module, Aggregator):
    """Never looks at flows unless a row is incomplete and someone asks about it."""

    defaults = Defaults(
        has_unimodal_experts=False,
        has_joint_encoder=True,
        unimodal=("encoders.*", "aggregator.flows.*"),
    )

    def __init__(self, spec: JointFlow, sizes: Sizes) -> None:
        super().__init__()
        self.spec = spec
        self.joint = attrs.evolve(spec.joint, incomplete="skip").build(sizes)
        self.mixture = MoEAggregator(sizes)
        context = self.width(sizes.latent) if spec.conditional else 0
        self.flows = nn.ModuleDict(
            {k: spec.flow.flow(sizes.latent, context).transform for k in sizes.names}
        )
        self._prior = (sizes.live_prior,)  # a module of the model's, not of this one

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        found: Mixture = self.joint(experts, batch)
        return found

    def posterior(self, experts: Experts, batch: Batch) -> Posterior:
        """The joint encoder's where complete, elsewhere the mixture of the flows."""
        joint = self.forward(experts, batch)
        if batch.complete_rows is None:
            return joint
        return joint.where(batch.observed.all(1), self._flows(experts, batch))

    def inference(self, experts: Experts, batch: Batch) -> Posterior:
        """The joint encoder's where complete, elsewhere a flow, or the product of several."""
        joint, mask = self.forward(experts, batch), batch.observed
        complete, several = mask.all(1), mask.sum(1) > 1
        if batch.complete_rows is None:
            return joint
        flows = self._flows(experts, batch)
        if not (several & ~complete).any():
            return joint.where(complete, flows)
        product = self._product(experts, batch)
        return joint.where(complete, product if several.all() else flows.where(~several, product))

    def unimodal(self, experts: Experts, batch: Batch) -> Mapping[str, Posterior]:
        """The flow of each modality."""
        found = {}
        for i, (name, base) in enumerate(raw_experts(experts, batch).items()):
            context = experts.stats[i : i + 1] if self.spec.conditional else None
            found[name] = Transported(base, (self.flows[name],), context, self.spec.points)
        return found

    def _flows(self, experts: Experts, batch: Batch) -> Transported:
        """The mixture of the flows of what each row observes."""
        # modalities that no row has cost nothing
        seen = [index is None or len(index) > 0 for index in batch.observed_rows]
        flows = tuple(
            flow if any_row else None
            for flow, any_row in zip(self.flows.values(), seen, strict=True)
        )
        context = experts.stats if self.spec.conditional else None
        return Transported(self.mixture.forward(experts, batch), flows, context, self.spec.points)

    def _product(self, experts: Experts, batch: Batch) -> Product:
        spec, prior = self.spec, self._prior[0]
        members = rearrange(batch.observed, "b m -> m b")
        density = (lambda z: prior().log_prob(z)) if spec.correct_prior else None
        chains = {"steps": spec.steps, "leapfrog": spec.leapfrog, "chains": spec.chains}
        return Product(self._flows(experts, batch), members, density, **chains)
