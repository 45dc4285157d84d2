"""Flow samplers, fitted to latents after training.

Axes: n rows, b fitted rows, d latent.
"""

from __future__ import annotations

import torch
import zuko
from torch import Tensor, nn

from mvkit import Sampler, spec
from mvkit.core import Generator, noise
from mvkit.registry import field, number
from mvkit.registry.fields import count

BATCH = 256  # rows of a step


@spec
class Flow:
    """Neural spline flow fitted to latents of training rows by maximum likelihood.

    Args:
        transforms: autoregressive transforms.
        hidden: widths of the hidden layers of each transform.
        steps: steps of Adam, batches of 256 rows.
        lr: its learning rate.

    Reference: Durkan, Bekasov, Murray and Papamakarios, Neural Spline Flows, NeurIPS 2019,
    https://arxiv.org/abs/1906.04032.
    """

    transforms: int = count(3)
    hidden: tuple[int, ...] = (64, 64)
    steps: int = count(2000)
    lr: float = field(default=1e-3, check=number(above=0.0))

    def build(self, width: int) -> FlowSampler:
        """The sampler, not yet fitted."""
        return FlowSampler(self, width)


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
        self.scale.copy_(z.std(0).clamp(min=1e-6))
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
