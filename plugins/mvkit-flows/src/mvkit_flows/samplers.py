"""Flow samplers, fitted to latents after training. Axes: n rows, b fitted rows, d latent."""

from __future__ import annotations

from typing import Any

import torch
import zuko
from torch import Tensor, nn

from mvkit import Sampler, spec
from mvkit.core.noise import sampled
from mvkit.registry.spec import field, integer, number


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

    transforms: int = field(default=3, check=integer(1))
    hidden: tuple[int, ...] = (64, 64)
    steps: int = field(default=2000, check=integer(1))
    lr: float = field(default=1e-3, check=number(above=0.0))

    def build(self, width: int) -> FlowSampler:
        """The live part."""
        return FlowSampler(self, width)


class FlowSampler(nn.Module, Sampler):
    """A flow on standardised latents."""

    loc: Tensor
    scale: Tensor

    def __init__(self, spec: Flow, width: int) -> None:
        super().__init__()
        self.spec = spec
        self.flow = zuko.flows.NSF(
            width, transforms=spec.transforms, hidden_features=list(spec.hidden)
        )
        self.register_buffer("loc", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, z: Tensor, seed: int) -> None:
        """See `Sampler.fit`."""
        self.loc.copy_(z.mean(0))
        self.scale.copy_(z.std(0).clamp(min=1e-6))
        rows = (z - self.loc) / self.scale  # splines bend between -5 and 5 only
        optimizer = torch.optim.Adam(self.flow.parameters(), self.spec.lr)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.spec.steps):
            picked = torch.randint(len(rows), (min(256, len(rows)),), generator=generator)
            optimizer.zero_grad()
            (-self.flow().log_prob(rows[picked.to(rows.device)]).mean()).backward()
            optimizer.step()

    def sample(self, model: Any, n: int, generator: torch.Generator | None) -> Tensor:
        """See `Sampler.sample`."""
        return self.loc + self.scale * sampled(self.flow(), n, generator)
