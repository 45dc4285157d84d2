"""Refiners: sharp draws of a modality from what its decoder says.

Axes: n rows, r draws, q pairs of draws, f numbers of a row, k numbers that a network is told of
it, d shared and p private latent, c numbers of the covariates.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import attrs
import torch
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.nn import functional

from mvkit.core import noise
from mvkit.core.noise import Generator
from mvkit.registry.fields import count, optional_count
from mvkit.registry.spec import field, flag, spec

WIDEST_NOISE = 64  # numbers of noise by default, where a row has more


@attrs.frozen
class RefinerSizes:
    """What a refiner is told of its modality when it is built.

    Args:
        name: of the modality.
        shape: of a row of it, as the model sees it.
        latent: how many latents its decoder sees, d + p.
        private: how many of them, the last ones, are private, p.
        context: how many numbers of the covariates a row has, c.
        low: the least value that the modality can have; draws below it are set to it.
        high: the greatest.

    Example:
        >>> from mvkit.parts import RefinerSizes
        >>> RefinerSizes("image", (1, 8, 8), latent=4).numbers
        64
    """

    name: str
    shape: tuple[int, ...]
    latent: int
    private: int = 0
    context: int = 0
    low: float = -math.inf
    high: float = math.inf

    @property
    def numbers(self) -> int:
        """How many numbers a row has, f."""
        return math.prod(self.shape)


class Refiner(ABC):
    """Draws a modality given its decoder's mean, the latents and the covariates of rows.

    It is trained in a stage of its own, on reconstructions and translations, by a loss of its own;
    likelihoods stay those of the decoders. To implement one, write a spec whose `build(sizes)`
    returns an `nn.Module` with these two methods. Its state is in parameters and buffers, whose
    shapes follow from the spec and the `RefinerSizes`. Invariants:

    * `out` and `x` are on the scale of the data that the model sees, after transforms.
    * rows are independent; what stands in unobserved places of `x` changes no number.
    * randomness comes from `mvkit.core.noise` and the generator given.

    With `knows_given`, both methods also take `given=`, (n,) bool: whether the modality was among
    what the latents were drawn from. `loss` is then told `latent_draws` latents of each row, r:
    `out` is (r, n, *shape) and `z` (r, n, d + p). They are copies of one draw where the modality
    was given; else independent draws of the posterior given the other part, or of the prior, so
    that a score over them is one of what is generated from that part.

    With `latents_from = "own"`, training draws latents from parts of what a row has that hold the
    modality itself, so that what the decoder says shows what the row shows. From "parts", which
    may lack it, a refiner also learns what the others leave open.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,)}, latent_dim=2, seed=0)
        >>> _ = mvkit.fit_refiner(model, {"a": torch.randn(50, 3)}, epochs=1, progress=False)
        >>> isinstance(model.refiners["a"], mvkit.Refiner)
        True
    """

    spec: object  # set when a model gets the refiner
    latents_from: Literal["parts", "own"] = "parts"
    knows_given: bool = False
    latent_draws: int = 1

    @abstractmethod
    def refine(
        self, out: Tensor, z: Tensor, context: Tensor | None, generator: Generator
    ) -> Tensor:
        """One draw of each row, (n, *shape).

        Args:
            out: the decoder's mean, (n, *shape).
            z: the latents that it saw, (n, d + p): shared, then private.
            context: what it saw of the covariates, (n, c); None: nothing.
            generator: source of randomness.
        """

    @abstractmethod
    def loss(
        self,
        out: Tensor,
        x: Tensor,
        z: Tensor,
        context: Tensor | None,
        observed: Tensor,
        generator: Generator,
    ) -> Tensor:
        """What training minimises of each row, (n,).

        Args:
            out: see `refine`.
            x: the data, (n, *shape), zeros where unobserved.
            z: see `refine`.
            context: see `refine`.
            observed: which elements count, (n, *shape) bool; none of them in rows that do not
                observe the modality, which are left out afterwards.
            generator: source of randomness.
        """


@spec
class Energy:
    """A residual network with noise, trained by the energy score.

    It sees the decoder's mean, the latents and the covariates. The score of r draws y of a row is
    mean |y - x| - ½ mean |y - y'|, the second over pairs of draws; its expectation is least where
    draws have the distribution of x given what the network sees, dependence between numbers
    included. Pictures are taken as rows of numbers, and no number is scaled: give the model data
    of a spread near 1.

    With `knows_given`, it is told whether the modality was among what the latents were drawn
    from, and has a network for either case. Latents that have seen it tell some of its noise, so
    that what is left of it is less than what generation from other modalities, or from nothing,
    has to add. Where it was not given, each of the r draws has latents of its own, so that the
    score is that of the distribution given the others.

    Args:
        hidden: width of the hidden layers.
        layers: how many of them there are.
        noise: numbers of noise; None: as many as a row has numbers, 64 at most.
        draws: draws of each row in training, 2 at least.
        knows_given: whether it is told if the modality was given.

    Example:
        >>> import mvkit, torch
        >>> from mvkit.parts import Energy
        >>> model = mvkit.Model({"a": (3,)}, latent_dim=2, seed=0)
        >>> rows = {"a": torch.randn(50, 3)}
        >>> _ = mvkit.fit_refiner(model, rows, Energy(), epochs=1, progress=False)
        >>> model.translate(rows, refine=True)["a"].shape
        torch.Size([1, 50, 3])

    Reference: Gneiting and Raftery, Strictly Proper Scoring Rules, Prediction, and Estimation,
    2007, https://doi.org/10.1198/016214506000001437; Shen and Meinshausen, Engression:
    Extrapolation through the Lens of Distributional Regression, 2024,
    https://arxiv.org/abs/2307.00835.
    """

    hidden: int = count(128)
    layers: int = count(2)
    noise: int | None = optional_count()
    draws: int = count(2, low=2)
    knows_given: bool = field(default=False, check=flag, quiet=True)

    def build(self, sizes: RefinerSizes) -> EnergyRefiner:
        """The network, with fresh weights."""
        return EnergyRefiner(self, sizes)


class ResidualNetwork(nn.Module):
    """A network with residual layers, (..., inputs) -> (..., outputs)."""

    def __init__(self, inputs: int, spec: Energy, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, spec.hidden)
        inner = (nn.Linear(spec.hidden, spec.hidden) for _ in range(spec.layers - 1))
        self.inner = nn.ModuleList(inner)
        self.last = nn.Linear(spec.hidden, outputs)

    def residual(self, inputs: Tensor) -> Tensor:
        """Its outputs, (..., outputs)."""
        hidden = functional.silu(self.first(inputs))
        for layer in self.inner:
            hidden = hidden + functional.silu(layer(hidden))
        outputs: Tensor = self.last(hidden)
        return outputs


class EnergyRefiner(ResidualNetwork, Refiner):
    """The network of `Energy`: its draws are the decoder's means and a residual.

    With `knows_given`, rows whose modality was given have a network of their own: with one for
    both, noise of one spread is slow to become that of two.
    """

    spec: Energy

    def __init__(self, spec: Energy, sizes: RefinerSizes) -> None:
        width = spec.noise or min(sizes.numbers, WIDEST_NOISE)
        inputs = sizes.numbers + sizes.latent + sizes.context + width
        super().__init__(inputs, spec, sizes.numbers)
        self.spec = spec
        self.noise = width
        self.name = sizes.name
        self.knows_given = spec.knows_given
        self.latent_draws = spec.draws if spec.knows_given else 1
        self.numbers = sizes.numbers
        if spec.knows_given:
            self.where_given = ResidualNetwork(inputs, spec, sizes.numbers)

    def refine(
        self,
        out: Tensor,
        z: Tensor,
        context: Tensor | None,
        generator: Generator,
        given: Tensor | None = None,
    ) -> Tensor:
        draws = self._draws(1, out, z, context, generator, given)
        return draws[0].reshape(out.shape)

    def loss(
        self,
        out: Tensor,
        x: Tensor,
        z: Tensor,
        context: Tensor | None,
        observed: Tensor,
        generator: Generator,
        given: Tensor | None = None,
    ) -> Tensor:
        draws = self._draws(self.spec.draws, out, z, context, generator, given)
        return energy_score(draws, x.flatten(1), observed.flatten(1))

    def _known(self, out: Tensor, z: Tensor, context: Tensor | None) -> Tensor:
        """What networks are told of rows, (..., n, k), first the decoder's mean; of `out`
        (..., n, *shape), `z` (..., n, d + p) and `context` (n, c).
        """
        leading = z.shape[:-1]
        columns = [out.reshape(*leading, self.numbers), z]
        if context is not None:
            columns.append(context.expand(*leading, context.shape[-1]))
        return torch.cat(columns, -1)

    def _draws(
        self,
        r: int,
        out: Tensor,
        z: Tensor,
        context: Tensor | None,
        generator: Generator,
        given: Tensor | None = None,
    ) -> Tensor:
        """R draws of each row, (r, n, f), each of its own latents if these are (r, n, d + p)."""
        known = self._known(out, z, context)
        if known.ndim == 2:
            known = repeat(known, "n k -> r n k", r=r)
        shape = (*known.shape[:-1], self.noise)
        site = f"x/refine/{self.name}"
        eps = noise.draw(site, shape, known, generator=generator, sampler=torch.randn)
        inputs = torch.cat([known, eps], -1)
        residual = self.residual(inputs)
        if self.knows_given and given is not None:
            own = self.where_given.residual(inputs)
            residual = torch.where(rearrange(given, "n -> n 1"), own, residual)
        return known[..., : self.numbers] + residual


def energy_score(draws: Tensor, x: Tensor, observed: Tensor | None = None) -> Tensor:
    """The energy score of draws of rows, estimated without bias, (n,); smaller is better.

    Args:
        draws: (r, n, f), r at least 2.
        x: the data, (n, f).
        observed: which numbers count, (n, f) bool; None: all.

    Example:
        >>> import torch
        >>> from mvkit.parts import energy_score
        >>> energy_score(torch.tensor([[[0.0]], [[2.0]]]), torch.tensor([[1.0]])).tolist()
        [0.0]

    Reference: Gneiting and Raftery, 2007, https://doi.org/10.1198/016214506000001437, eq. 22
    with β = 1.
    """
    to_data = _distance(draws - x, observed).mean(0)
    r = len(draws)
    first, second = torch.triu_indices(r, r, 1, device=draws.device)
    between = _distance(draws[first] - draws[second], observed).mean(0)
    return to_data - between / 2


def _distance(difference: Tensor, observed: Tensor | None) -> Tensor:
    """Euclidean norms over the numbers that count, (q, n, f) -> (q, n), whose gradient at 0 is
    0.
    """
    if observed is not None:
        difference = torch.where(observed, difference, 0.0)
    squares = difference.square().sum(-1)
    apart = squares > 0
    return torch.where(apart, torch.where(apart, squares, 1.0).sqrt(), 0.0)
