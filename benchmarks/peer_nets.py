"""What both sides of `benchmarks/peers.py` share: data, networks, what a side does, and the
networks alone.

Everything that is timed builds its networks from `mlp` here, and gets its rows from `rows`.
"""

from __future__ import annotations

import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

BATCH, LATENT, PRIVATE, MESSAGE, FEATURES = 128, 16, 4, 64, 128
BOTTOM, CLUSTERS, DROPOUT, ALPHA, LR = 16, 10, 0.5, 0.1, 1e-3


def mlp(before: int, *after: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for a, b in pairwise((before, *after)):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def hidden(before: int, after: int) -> nn.Sequential:
    """The network of every encoder and decoder."""
    return mlp(before, 512, 512, after)


def head(before: int) -> nn.Sequential:
    """The network from joint features, or the mean message, to the joint posterior."""
    return mlp(before, 256, 2 * LATENT)


def rows(
    m: int, n: int, width: int, missing: bool, seed: int
) -> tuple[dict[str, Tensor], Tensor | None]:
    """The first n pictures {name: (n, width)} of polydigits and what is observed, (n, m) bool or
    None: half of it.

    The files are what `peers.py` wrote; beyond five modalities they come again, of other rows.
    Every row observes one modality at least.
    """
    every = np.load(f"{os.environ['PEERS_DATA']}/{width}.npy", mmap_mode="r")
    data = {
        f"m{i}": torch.tensor(every[i % len(every), :n]).roll(i // len(every), 0) for i in range(m)
    }
    if not missing:
        return data, None
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(n, m, generator=generator) < 0.5
    mask[torch.arange(n), torch.randint(m, (n,), generator=generator)] = True
    return data, mask


def subsets(names: list[str], model: str) -> list[list[str]]:
    """Sets of modalities to encode from: all there are; for TELBO each alone and all, which is
    what both can.
    """
    sizes = [1, len(names)] if model == "telbo" else range(1, len(names) + 1)
    return [list(s) for size in sizes for s in itertools.combinations(names, size)]


class Peer(ABC):
    """A library with a model. To implement one, write these; a step goes once through each of the
    model's stages.

    Args:
        model: which.
        m: number of modalities.
        width: numbers of each.
        missing: whether half of the data are not there.
        seed: of networks and gaps.
    """

    def __init__(self, model: str, m: int, width: int, missing: bool, seed: int) -> None:
        torch.manual_seed(seed)
        self.model, self.m, self.width, self.missing = model, m, width, missing
        self.names = [f"m{i}" for i in range(m)]
        self.batch = rows(m, BATCH, width, missing, seed)
        self.steps = self.stages(*self.batch, fused=False)

    @abstractmethod
    def stages(
        self, data: dict[str, Tensor], mask: Tensor | None, fused: bool
    ) -> list[Callable[[], None]]:
        """A training step on a batch, for each stage, with the library's own choice of Adam or
        torch's fused one.
        """

    @abstractmethod
    def train(self, data: dict[str, Tensor], mask: Tensor | None) -> None:
        """Two epochs by the library's own trainer."""

    @abstractmethod
    def likelihood(self, data: dict[str, Tensor], mask: Tensor | None, n: int) -> float | None:
        """Mean joint log-likelihood of rows by n importance samples."""

    @abstractmethod
    def encode(self, data: dict[str, Tensor], mask: Tensor | None) -> None:
        """Posterior means: from every set of `subsets`, or, of incomplete rows, from what they
        have.
        """

    def fuse(self) -> None:
        """Takes steps with torch's fused Adam from now on."""
        self.steps = self.stages(*self.batch, fused=True)

    def step(self) -> None:
        """A step of each stage."""
        for step in self.steps:
            step()


class Bare(Peer):
    """The networks alone, every row once through each, with nothing of a model around them: the
    floor of any library.

    In a step: squared errors, backward, fused Adam.
    """

    def _build(self) -> dict[str, list[nn.Module]]:
        w, private = self.width, PRIVATE if self.model == "cmvae" else 0
        if self.model == "nexus":
            sizes = {"encoders": (w, 2 * BOTTOM), "decoders": (BOTTOM, w)}
            sizes |= {"messages": (BOTTOM, MESSAGE), "below": (LATENT, BOTTOM)}
        else:
            sizes = {"encoders": (w, 2 * (LATENT + private)), "decoders": (LATENT + private, w)}
        if self.model in ("jmvae", "telbo"):
            sizes["trunks"] = (w, FEATURES)
        made: dict[str, list[nn.Module]] = {
            k: [hidden(*size) for _ in self.names] for k, size in sizes.items()
        }
        top = FEATURES * self.m if "trunks" in sizes else MESSAGE
        return made | ({"top": [head(top)]} if "trunks" in sizes or "messages" in sizes else {})

    def _observed(self, data: dict[str, Tensor], mask: Tensor | None) -> list[Tensor]:
        return [x if mask is None else x[mask[:, i]] for i, x in enumerate(data.values())]

    def stages(
        self, data: dict[str, Tensor], mask: Tensor | None, fused: bool
    ) -> list[Callable[[], None]]:
        self.live, x = self._build(), self._observed(data, mask)
        whole = BATCH if mask is None else int(mask.all(1).sum())
        if self.model != "telbo":
            return [self._step(self._build(), x, whole)]
        first, second = self._build(), self._build()
        del first["encoders"], second["trunks"], second["top"]
        for net in second["decoders"]:
            net.requires_grad_(False)
        return [self._step(first, x, whole), self._step(second, x, whole)]

    def _step(
        self, nets: dict[str, list[nn.Module]], x: list[Tensor], whole: int
    ) -> Callable[[], None]:
        parameters = [
            p
            for several in nets.values()
            for net in several
            for p in net.parameters()
            if p.requires_grad
        ]
        optimizer = torch.optim.Adam(parameters, LR, fused=True)
        times = self.m if self.model == "cmvae" else 1

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            outs = _through(nets.get("encoders", []), x)
            for kind in ("messages", "below"):
                outs += _through(nets.get(kind, []), _latents(nets.get(kind, []), x))
            if "trunks" in nets:
                outs.append(
                    nets["top"][0](
                        torch.cat(_through(nets["trunks"], [one[:whole] for one in x]), 1)
                    )
                )
            elif "top" in nets:
                outs.append(nets["top"][0](torch.randn(BATCH, MESSAGE, requires_grad=True)))
            decoded = _through(nets["decoders"], _latents(nets["decoders"], x, times))
            outs += [out - one.repeat(times, 1) for out, one in zip(decoded, x, strict=True)]
            torch.stack([out.square().sum() for out in outs]).sum().backward()
            optimizer.step()

        return step

    def train(self, data: dict[str, Tensor], mask: Tensor | None) -> None:
        raise NotImplementedError("bare networks have no trainer")

    @torch.no_grad()
    def likelihood(self, data: dict[str, Tensor], mask: Tensor | None, n: int) -> None:
        nets, x = self.live, self._observed(data, mask)
        _through(nets["encoders"], x)
        for kind in ("messages", "below", "decoders"):
            for net, z in zip(nets.get(kind, []), _latents(nets.get(kind, []), x, n), strict=True):
                for block in z.split(500):
                    net(block)

    @torch.no_grad()
    def encode(self, data: dict[str, Tensor], mask: Tensor | None) -> None:
        nets, x = self.live, self._observed(data, mask)
        whole = None if mask is None else int(mask.all(1).sum())
        work = [*zip(nets["encoders"], x, strict=True)]
        work += [(net, one[:whole]) for net, one in zip(nets.get("trunks", []), x, strict=False)]
        for net, one in work:
            for block in one.split(1000):
                net(block)


def _through(nets: list[nn.Module], inputs: list[Tensor]) -> list[Tensor]:
    """What networks make of their inputs; nothing if there are no networks."""
    return [net(x) for net, x in zip(nets, inputs, strict=True)] if nets else []


def _latents(nets: list[nn.Module], inputs: list[Tensor], times: int = 1) -> list[Tensor]:
    """Draws (times n, d) for networks from latents, asking for a gradient where one is taken; one
    for each network.
    """
    grad = torch.is_grad_enabled()
    pairs = zip(nets, inputs, strict=True) if nets else ()
    return [
        torch.randn(times * len(x), net[0].in_features, requires_grad=grad) for net, x in pairs
    ]
