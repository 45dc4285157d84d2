"""The joint encoder with flows for unimodal posteriors.

Axes: k components, b rows, m modalities, d latent.
"""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from einops import rearrange
from torch import Tensor, nn

from mvkit import Batch, Mixture, SpecError, spec
from mvkit.core import Experts, Posterior, Sizes
from mvkit.parts import Aggregator, Defaults, Joint, Prior, raw_experts
from mvkit.parts.aggregators.mixtures import MoEAggregator
from mvkit.parts.top_down import Borrowed
from mvkit.registry import part
from mvkit.registry.fields import count, switch
from mvkit_flows.posteriors import Product, Transported
from mvkit_flows.priors import Flow


@spec
class JointFlow:
    """Joint encoder q(z|x_1, …, x_M), and for each modality a flow q_m(z|x_m) on its expert.

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

    joint: object = part("aggregator", default="joint")
    flow: object = part("prior", default="mvkit-flows/maf")
    conditional: bool = switch(True)
    correct_prior: bool = switch(True)
    steps: int = count(20)
    leapfrog: int = count(8)
    chains: int = count(4)
    points: int = count(64)

    def build(self, sizes: Sizes) -> JointFlowAggregator:
        """The aggregator with its networks and flows."""
        joint, flow = self.joint, self.flow
        if not isinstance(flow, Flow):
            raise SpecError(f"got {flow!r}; expected a flow, such as 'maf' or 'nsf'", "flow")
        if not isinstance(joint, Joint):
            raise SpecError(f"got {joint!r}; expected 'joint', or a spec of it", "joint")
        if not sizes.latent:
            raise SpecError("a flow needs a latent_dim of 1 at least")
        prior = sizes.live_prior
        moves = isinstance(prior, Prior) and (prior.conditional or prior.pseudo_inputs is not None)
        if moves and self.correct_prior and len(sizes.names) > 2:
            raise SpecError(
                "this prior depends on encoders, so nothing divides by it; take False",
                "correct_prior",
            )
        joint = attrs.evolve(joint, incomplete="skip")  # type: ignore[misc]
        return JointFlowAggregator(self, sizes, joint.build(sizes), flow)


class JointFlowAggregator(nn.Module, Aggregator):
    """Never looks at flows unless a row is incomplete and someone asks about it."""

    defaults = Defaults(
        has_unimodal_experts=False,
        has_joint_encoder=True,
        unimodal=("encoders.*", "aggregator.flows.*"),
    )

    def __init__(self, spec: JointFlow, sizes: Sizes, joint: nn.Module, flow: Flow) -> None:
        super().__init__()
        self.spec = spec
        self.joint = joint
        self.mixture = MoEAggregator(sizes)
        context = self.width(sizes.latent) if spec.conditional else 0
        self.flows = nn.ModuleDict()
        for name in sizes.names:
            self.flows[name] = flow.flow(sizes.latent, context).transform
        self.prior = Borrowed(sizes.live_prior)

    def forward(self, experts: Experts, batch: Batch) -> Mixture:
        posterior: Mixture = self.joint(experts, batch)
        return posterior

    def posterior(self, experts: Experts, batch: Batch) -> Posterior:
        """The joint encoder's where complete, elsewhere the mixture of the flows."""
        joint = self.forward(experts, batch)
        if batch.complete:
            return joint
        return joint.where(batch.observed.all(1), self._flows(experts, batch))

    def inference(self, experts: Experts, batch: Batch) -> Posterior:
        """The joint encoder's where complete, elsewhere a flow, or the product of several."""
        joint = self.forward(experts, batch)
        if batch.complete:
            return joint
        complete = batch.observed.all(1)
        several = batch.observed.sum(1) > 1
        flows = self._flows(experts, batch)
        if not (several & ~complete).any():
            return joint.where(complete, flows)
        product = self._product(flows, batch)
        return joint.where(complete, product if several.all() else flows.where(~several, product))

    def unimodal(self, experts: Experts, batch: Batch) -> Mapping[str, Posterior]:
        """The flow of each modality."""
        posteriors = {}
        for i, (name, base) in enumerate(raw_experts(experts, batch).items()):
            context = experts.stats[i : i + 1] if self.spec.conditional else None
            flows = (self.flows[name],)
            posteriors[name] = Transported(base, flows, context, self.spec.points)
        return posteriors

    def _flows(self, experts: Experts, batch: Batch) -> Transported:
        """The mixture of the flows of what each row observes."""
        flows = []
        for flow, rows in zip(self.flows.values(), batch.observed_rows, strict=True):
            # modalities that no row has cost nothing
            flows.append(flow if rows is None or len(rows) else None)
        context = experts.stats if self.spec.conditional else None
        mixture = self.mixture.forward(experts, batch)
        return Transported(mixture, tuple(flows), context, self.spec.points)

    def _product(self, flows: Transported, batch: Batch) -> Product:
        """The product of the flows of what each row observes."""
        spec = self.spec

        def log_prior(z: Tensor) -> Tensor:
            log_prob: Tensor = self.prior.module().log_prob(z)
            return log_prob

        divisor = log_prior if spec.correct_prior else None
        members = rearrange(batch.observed, "b m -> m b")
        return Product(flows, members, divisor, spec.steps, spec.leapfrog, spec.chains)
