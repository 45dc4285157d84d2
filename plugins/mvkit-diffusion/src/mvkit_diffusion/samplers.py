"""What the samplers of latents by flow matching and by diffusion share.

Axes: n draws, b rows, m modalities, v numbers of all latents, s blocks of them (z, then one per
private latent), f numbers of a condition, h width of the network.

Latents y = cos φ ε + sin φ z lie between noise ε and latents z of unit variance, and have unit
variance themselves. The network's F is the mean of dy/dφ = cos φ z - sin φ ε given y. The samplers
differ in which angle φ belongs to a time, in how their losses weigh times, and in how they go from
φ = 0 to π / 2.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import attrs
import torch
from einops import rearrange
from torch import Tensor, nn

from mvkit import DataError, RequestError
from mvkit.core import Generator, noise
from mvkit.core.blocks import block_size, block_slices
from mvkit.parts import ConditionalSampler
from mvkit.parts.conditional_samplers import Condition, FittingRows, LatentDraws, SamplerSizes
from mvkit_diffusion.latents import Features, Latents
from mvkit_diffusion.vector_fields import VectorField, train

MEMORY = 2**25  # bytes of what the network holds of a block of rows
FEWEST_STEPS = 2_000
MOST_STEPS = 10_000


class Options(Protocol):
    """The options that both samplers have."""

    @property
    def steps(self) -> int | None:
        """Steps of Adam."""
        ...

    @property
    def batch(self) -> int:
        """Rows of a step."""
        ...

    @property
    def lr(self) -> float:
        """The highest learning rate."""
        ...

    @property
    def ema(self) -> float:
        """How much of the averages of weights stays in a step."""
        ...

    @property
    def width(self) -> int:
        """Width of the layers."""
        ...

    @property
    def layers(self) -> int:
        """How many there are."""
        ...

    @property
    def latents(self) -> str:
        """What they are fitted to: `means` of posteriors, or `draws`."""
        ...


@attrs.frozen(eq=False)
class Asked:
    """Rows whose latents are asked for.

    Args:
        wanted: the blocks of latents that are generated, (b, s) bool.
        given: the blocks that the network sees as they are, (b, s) bool.
        condition: what the network makes of what is known, (b, h).
    """

    wanted: Tensor
    given: Tensor
    condition: Tensor


@attrs.frozen(eq=False)
class Step:
    """Rows of one step of training.

    Args:
        asked: a random subset of what each has.
        z: their latents, in units of all rows, (b, v).
        eps: noise, (b, v).
        time: one of each row, (b, 1), in [0, 1), where 0 is noise.
    """

    asked: Asked
    z: Tensor
    eps: Tensor
    time: Tensor


class LatentSampler(nn.Module, ConditionalSampler):
    """Draws z and private latents together, by a network that is trained on random subsets.

    Private latents of modalities that a row has are draws of their own posteriors; the network
    sees what it was fitted to, these draws or their means. Those that fitting rows lack are left
    out of the loss, and of what the network sees.

    Args:
        name: the sampler's.
        spec: its options.
        sizes: the model's.
    """

    weighs_rows = True
    models_private_alone = True
    rows: Tensor

    def __init__(self, name: str, spec: Options, sizes: SamplerSizes) -> None:
        super().__init__()
        self.name = name
        self.spec: Options = spec
        self.fits_means = spec.latents == "means"
        self.sizes = sizes
        self.latents = Latents(sizes)
        self.features = Features(sizes)
        number, blocks = self.latents.number, self.latents.blocks
        self.field = VectorField(number, blocks, sizes.features, spec.width, spec.layers)
        self.register_buffer("rows", torch.zeros(len(sizes.names), dtype=torch.long))

    @abstractmethod
    def loss(self, step: Step) -> Tensor:
        """The loss of a step, ()."""

    def mean_square(self, error: Tensor, asked: Asked) -> Tensor:
        """The mean square of errors (b, v), (): 0 stands for what is not wanted."""
        wanted = self.latents.of_blocks(asked.wanted)
        return torch.where(wanted, error, 0.0).square().mean()

    @abstractmethod
    def generated(self, asked: Asked, known: Tensor, eps: Tensor, generator: Generator) -> Tensor:
        """Latents (n, b, v) in units of the fitted rows; what is not wanted has no meaning.

        Args:
            asked: the rows.
            known: latents of given blocks, (n, b, v).
            eps: noise to begin with, (n, b, v).
            generator: source of more noise.
        """

    @abstractmethod
    def shows(self, known: Tensor) -> Tensor:
        """Which blocks, of those that a condition tells (b, s) bool, the network sees."""

    def fit(self, rows: FittingRows, seed: int) -> None:
        if len(rows) < 2:
            raise DataError(f"sampler {self.name!r}: needs 2 rows at least; got {len(rows)}")
        weight = rows.z.new_ones(len(rows)) if rows.weight is None else rows.weight
        z = self.latents.fit(rows, weight)
        self.features.fit(rows.condition, weight)
        self.rows.copy_(rows.condition.observed.sum(0))
        features = self.features(rows.condition)
        generator = noise.seeded(seed)

        def loss_of_step() -> Tensor:
            return self.loss(self.step(rows, z, features, generator))

        steps = self.spec.steps
        if steps is None:
            steps = min(max(len(rows), FEWEST_STEPS), MOST_STEPS)
        train(self.field, loss_of_step, steps, self.spec.lr, self.spec.ema)

    def step(self, rows: FittingRows, z: Tensor, features: Tensor, generator: Generator) -> Step:
        """A batch of rows, each with a random subset of what it has.

        Args:
            rows: all rows.
            z: their latents, in units of the fitted rows, (all rows, v).
            features: the numbers of their conditions, (all rows, f).
            generator: on the CPU, so that devices agree.
        """
        b, m = self.spec.batch, len(self.sizes.names)
        like = z[:0].cpu()

        def uniforms(site: str, *shape: int) -> Tensor:
            return noise.draw(site, shape, like, generator=generator).to(z.device)

        index = picked(uniforms("choice/row", b), len(rows), rows.weight)
        observed = rows.condition.observed[index]
        subset = subsets(observed, uniforms("choice/subset", b, m + 1))
        asked = self.asked(subset, self.features.keep(features[index], subset))
        asked = attrs.evolve(asked, wanted=asked.wanted & self.latents.had(observed))
        # a time in each b-th part of [0, 1), for a loss of less variance
        part = torch.arange(b, device=z.device, dtype=z.dtype)
        time = rearrange((part + uniforms("choice/time", b)) / b, "b -> b 1")
        shape = (b, self.latents.number)
        eps = noise.draw("prior", shape, like, generator=generator, sampler=torch.randn)
        return Step(asked, z[index], eps.to(z.device), time)

    def asked(self, known: Tensor, features: Tensor) -> Asked:
        """Rows of which all is wanted that the known modalities do not tell.

        Args:
            known: (b, m) bool.
            features: the numbers of their condition, (b, f).
        """
        blocks = self.latents.had(known)
        blocks[:, 0] = False
        return Asked(~blocks, self.shows(blocks), self.field.condition(features))

    def sample(self, condition: Condition, n: int, generator: Generator) -> LatentDraws:
        self._check(condition)
        like = self.latents.loc
        drawn = condition.private_draws(n, generator)
        known = self.latents.private(drawn, (n, len(condition)))
        seen = self.latents.private(self.means_of(condition), (1, len(condition)))
        seen = seen.expand_as(known) if self.fits_means else known
        shape = (n, len(condition), self.latents.number)
        eps = noise.draw("prior", shape, like, generator=generator, sampler=torch.randn)
        with torch.no_grad():
            asked = self.asked(condition.observed, self.features(condition))
            latents = self.generated(asked, seen, eps, generator)
        wanted = self.latents.of_blocks(asked.wanted)
        return self._parts(torch.where(wanted, latents, known))

    def mean(self, condition: Condition, generator: Generator) -> LatentDraws:
        """Means, which are what the network makes of noise alone: F is E[z | condition] there."""
        self._check(condition)
        known = self.latents.private(self.means_of(condition), (1, len(condition)))
        with torch.no_grad():
            asked = self.asked(condition.observed, self.features(condition))
            given = self.latents.of_blocks(asked.given)
            y = torch.where(given, known, 0.0)
            means = self.field_of(y, asked.given.to(y.dtype), asked.condition)
        wanted = self.latents.of_blocks(asked.wanted)
        means = torch.where(wanted, means, known)
        return self._parts(rearrange(means, "1 b v -> b v"))

    def means_of(self, condition: Condition) -> dict[str, Tensor]:
        """Means of the private posteriors, {name: (1, b, p)}."""
        means = {}
        for name, code in condition.private.items():
            means[name] = rearrange(code.loc, "b p -> 1 b p")
        return means

    def field_of(self, y: Tensor, u: Tensor, condition: Tensor) -> Tensor:
        """F (n, b, v), a block of rows at a time.

        Args:
            y: latents, (n, b, v).
            u: times of their blocks, (b, s).
            condition: what the network makes of what is known, (b, h).
        """
        numbers = 3 * len(y) * self.spec.width
        blocks = block_slices(y.shape[1], block_size(numbers, MEMORY)) or [slice(None)]
        values = [self.field(y[:, block], u[block], condition[block]) for block in blocks]
        return torch.cat(values, 1)

    def _parts(self, latents: Tensor) -> LatentDraws:
        """Z and the private latents of modalities that fitting rows had."""
        z, private = self.latents.parts(latents)
        fitted = dict(zip(self.sizes.names, self.rows.tolist(), strict=True))
        return z, {name: w for name, w in private.items() if fitted[name]}

    def _check(self, condition: Condition) -> None:
        """Raises RequestError if it was made for another model, or a row has a modality that no
        fitting row had.
        """
        fit = f"mvkit.fit_sampler(model, data, {self.name!r})"
        if not self.sizes.same_latents(condition.sizes):
            raise RequestError(
                f"sampler {self.name!r}: it was fitted to a model of other modalities or latents, "
                f"{', '.join(self.sizes.names)}; expected {', '.join(condition.sizes.names)}, in "
                f"this order, with latents as wide; fit it to this model: {fit}"
            )
        lacking = condition.observed.any(0) & (self.rows == 0)
        if lacking.any():
            name = self.sizes.names[int(lacking.nonzero()[0])]
            raise RequestError(
                f"sampler {self.name!r}: no row that it was fitted to had {name!r}, so that it "
                "knows nothing of what that tells; leave it out of given=, or fit the sampler to "
                f"rows that have it: {fit}"
            )


def picked(uniform: Tensor, rows: int, weight: Tensor | None) -> Tensor:
    """Rows (b,) by uniforms (b,): all as often, or in proportion to their weights."""
    if weight is None:
        index = (uniform * rows).long()
    else:
        cdf = weight.to(uniform).cumsum(0)
        index = torch.searchsorted(cdf / cdf[-1], uniform, right=True)
    return index.clamp(max=rows - 1)


def subsets(observed: Tensor, uniform: Tensor) -> Tensor:
    """Random subsets of what rows have, (b, m) bool; every size from none to all as often.

    Args:
        observed: (b, m) bool.
        uniform: (b, m + 1).
    """
    size = (uniform[:, :1] * (observed.sum(1, keepdim=True) + 1)).long()
    order = torch.where(observed, uniform[:, 1:], 2.0)
    rank = order.argsort(1).argsort(1)
    return observed & (rank < size)
