"""Flow samplers, fitted to latents after training.

Axes: n rows or draws, b rows, m modalities, d latent, f numbers of a condition.
"""

from __future__ import annotations

import torch
import zuko
from einops import rearrange, repeat
from torch import Tensor, nn

from mvkit import Sampler, SpecError, spec
from mvkit.core import Generator, noise
from mvkit.parts import ConditionalSampler
from mvkit.parts.conditional_samplers import Condition, FittingRows, LatentDraws, SamplerSizes
from mvkit.registry import field, number
from mvkit.registry.fields import count
from mvkit.registry.spec import flag

BATCH = 256  # rows of a step
LEAST = 1e-6  # spread of what a flow sees


@spec
class Flow:
    """Neural spline flow fitted to latents of training rows by maximum likelihood.

    With `conditional`, it is one of z given the codes of whatever a row has: the means and scales
    of the posteriors that each modality leads to alone, and which of them are there. It is
    trained on random subsets of what each row has, the empty one included. Private latents are
    part of the condition and keep their priors; covariates that decoders see are part of it too.

    Args:
        transforms: autoregressive transforms.
        hidden: widths of the hidden layers of each transform.
        steps: steps of Adam, batches of 256 rows.
        lr: its learning rate.
        conditional: whether it can be asked for latents given what rows have.

    Reference: Durkan, Bekasov, Murray and Papamakarios, Neural Spline Flows, NeurIPS 2019,
    https://arxiv.org/abs/1906.04032.
    """

    transforms: int = count(3)
    hidden: tuple[int, ...] = (64, 64)
    steps: int = count(2000)
    lr: float = field(default=1e-3, check=number(above=0.0))
    conditional: bool = field(default=False, check=flag, quiet=True)

    def build(
        self, width: int, sizes: SamplerSizes | None = None
    ) -> FlowSampler | ConditionalFlowSampler:
        """The sampler, not yet fitted; a conditional one needs the sizes of its model."""
        if not self.conditional:
            return FlowSampler(self, width)
        if sizes is None:
            raise SpecError("a conditional sampler is built for a model; expected its sizes")
        return ConditionalFlowSampler(self, sizes)


class FlowSampler(nn.Module, Sampler):
    """A flow on standardised latents."""

    spec: Flow
    loc: Tensor
    scale: Tensor

    def __init__(self, spec: Flow, width: int) -> None:
        super().__init__()
        self.spec = spec
        hidden = list(spec.hidden)
        self.flow = zuko.flows.NSF(width, transforms=spec.transforms, hidden_features=hidden)
        self.register_buffer("loc", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, z: Tensor, seed: int) -> None:
        self.loc.copy_(z.mean(0))
        self.scale.copy_(z.std(0).clamp(min=LEAST))
        rows = (z - self.loc) / self.scale  # splines bend between -5 and 5 only
        b = len(rows)
        optimizer = torch.optim.Adam(self.flow.parameters(), self.spec.lr)
        generator = noise.seeded(seed)
        for _ in range(self.spec.steps):
            index = torch.randint(b, (min(BATCH, b),), generator=generator).to(rows.device)
            loss = -self.flow().log_prob(rows[index]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def sample(self, model: object, n: int, generator: Generator) -> Tensor:
        return self.loc + self.scale * noise.sampled(self.flow(), n, generator)


class ConditionalFlowSampler(nn.Module, ConditionalSampler):
    """A flow on standardised latents, given the standardised numbers of a condition."""

    spec: Flow
    loc: Tensor
    scale: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, spec: Flow, sizes: SamplerSizes) -> None:
        super().__init__()
        self.spec = spec
        d, f = sizes.latent, sizes.features
        hidden = list(spec.hidden)
        self.flow = zuko.flows.NSF(d, f, transforms=spec.transforms, hidden_features=hidden)
        self.register_buffer("loc", torch.zeros(d))
        self.register_buffer("scale", torch.ones(d))
        self.register_buffer("centre", torch.zeros(f))
        self.register_buffer("spread", torch.ones(f))

    def fit(self, rows: FittingRows, seed: int) -> None:
        self.loc.copy_(rows.z.mean(0))
        self.scale.copy_(rows.z.std(0).clamp(min=LEAST))
        self._standardise(rows.condition)
        z = (rows.z - self.loc) / self.scale
        b = len(z)
        optimizer = torch.optim.Adam(self.flow.parameters(), self.spec.lr)
        generator = noise.seeded(seed)
        for _ in range(self.spec.steps):
            index = torch.randint(b, (min(BATCH, b),), generator=generator).to(z.device)
            context = self._context(_subset(rows.condition.take(index), generator))
            loss = -self.flow(context).log_prob(z[index]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _standardise(self, condition: Condition) -> None:
        """Learns means and spreads of codes over the rows that have them."""
        flags = condition.observed.shape[1]
        features = condition.features()
        for i, known in enumerate(condition.present().unbind(1)):
            if i >= flags and known.sum() > 1:
                values = features[known, i]
                self.centre[i] = values.mean()
                self.spread[i] = values.std().clamp(min=LEAST)

    def _context(self, condition: Condition) -> Tensor:
        """What the flow sees of a condition, (b, f), zeros for what is not there."""
        features = (condition.features() - self.centre) / self.spread
        return torch.where(condition.present(), features, 0.0)

    def sample(self, condition: Condition, n: int, generator: Generator) -> LatentDraws:
        context = repeat(self._context(condition), "b f -> (n b) f", n=n)
        eps = noise.sampled(self.flow(context), 1, generator)
        z = self.loc + self.scale * eps
        return rearrange(z, "1 (n b) d -> n b d", n=n), {}


def _subset(condition: Condition, generator: torch.Generator) -> Condition:
    """A random subset of what each row has; how much of it is kept differs by row."""
    b, m = condition.observed.shape
    share = torch.rand(b, 1, generator=generator)
    kept = torch.rand(b, m, generator=generator) < share
    return condition.keep(kept.to(condition.observed.device))
