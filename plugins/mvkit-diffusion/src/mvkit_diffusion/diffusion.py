"""The refiner `diffusion`: draws of a modality by diffusion, given what its decoder says.

Axes: n rows, k numbers that are known of a row, d shared and p private latent, c numbers of the
covariates.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import reduce
from torch import Tensor, nn

from mvkit import Refiner, SpecError, spec
from mvkit.core import Generator, noise
from mvkit.core.blocks import block_size, block_slices
from mvkit.parts import RefinerSizes
from mvkit.registry import field, flag, number, one_of
from mvkit.registry.fields import count
from mvkit_diffusion import angles
from mvkit_diffusion.denoisers import Dense, UNet
from mvkit_diffusion.ema import Average, Spread

MEMORY = 2**27  # bytes of what networks hold of the rows that are drawn at a time
SMALLEST = 8  # pixels of a side that a U-Net takes
FEWEST = 256  # numbers of pictures from which a U-Net pays


def _widths(value: object) -> str | None:
    fine = isinstance(value, tuple) and all(type(n) is int and n > 0 for n in value)
    return None if fine and value else "a list of positive widths"


@spec
class Diffusion:
    """Diffusion of what a decoder misses, given its mean, the latents and the covariates.

    The residual y = (x - mean) / spread is noised to y_φ = cos φ y + sin φ ε, at angles φ that are
    uniform up to π/2 (the cosine schedule), and a network is trained to tell the velocity
    v = cos φ ε - sin φ y from it: mean square error, over the numbers that a row has. Draws begin
    with noise and follow the network's velocities back in `steps` steps; the network's weights are
    then a moving average of those in training. The process is that of x itself, moved by the mean.

    Velocities rather than noise: where all is noise, at the beginning of a draw, ε tells nothing
    of y, and y = (y_φ - sin φ ε) / cos φ would multiply what the network errs by 10 to ∞ in the
    first of few steps, while y = cos φ y_φ - sin φ v never amplifies an error.

    The spread is measured: the root mean square of x - mean in the first 100 batches of training,
    of each column of a table, and of all pixels of a picture together. Decoder's mean and latents
    are seen as they are: give the model data of a spread near 1. In training, numbers that a row
    lacks are taken to be the decoder's mean, and count nothing.

    Args:
        network: `unet` for pictures (C, H, W) or (H, W) with sides from 8 on; `mlp` for rows of
            numbers; `auto`: `unet` where pictures have 256 numbers or more, else `mlp`, which
            costs a small part of it.
        channels: of the U-Net at full size, and after each halving.
        hidden: width of the layers of the MLP.
        layers: how many residual ones it has, of two linear layers each.
        steps: of a draw; each evaluates the network once.
        solver: `adams`, of second order, or `ddim`; see `mvkit_diffusion.angles`.
        ema: how much of the moving average of weights stays in a step.
        knows_given: whether it is told if the modality was among what the latents were drawn from.
            It is then also trained on latents of the prior, which tell nothing of a row: to
            generate from nothing, without is better where samples are to agree.

    Reference: Pandey, Mukherjee, Rai and Kumar, DiffuseVAE, 2022,
    https://arxiv.org/abs/2201.00308; Ho, Jain and Abbeel, Denoising Diffusion Probabilistic
    Models, 2020, https://arxiv.org/abs/2006.11239; Salimans and Ho, Progressive Distillation for
    Fast Sampling of Diffusion Models, 2022, https://arxiv.org/abs/2202.00512.
    """

    network: Literal["auto", "unet", "mlp"] = field(
        default="auto", check=one_of("auto", "unet", "mlp")
    )
    channels: tuple[int, ...] = field(default=(32, 64), check=_widths)
    hidden: int = count(256)
    layers: int = count(3)
    steps: int = count(20)
    solver: Literal["adams", "ddim"] = field(default="adams", check=one_of("adams", "ddim"))
    ema: float = field(default=0.999, check=number(0.0, 0.99999))
    knows_given: bool = field(default=False, check=flag)

    def build(self, sizes: RefinerSizes) -> DiffusionRefiner:
        """The network, with fresh weights.

        Raises:
            SpecError: a U-Net for what are no pictures, or too small ones.
        """
        return DiffusionRefiner(self, sizes)

    def denoiser(self, shape: tuple[int, ...], known: int) -> Dense | UNet:
        """A network for rows of a shape, of each of which `known` numbers are known."""
        pictures = len(shape) in (2, 3) and min(shape[-2:]) >= SMALLEST
        if self.network == "unet" and not pictures:
            raise SpecError(
                f"'unet' takes pictures (C, H, W) or (H, W) with sides of at least {SMALLEST}; "
                f"got {shape}; take network='mlp', or 'auto'",
                "network",
            )
        large = pictures and torch.Size(shape).numel() >= FEWEST
        if self.network == "unet" or (self.network == "auto" and large):
            return UNet(shape, known, self.channels)
        return Dense(shape, known, self.hidden, self.layers)


class DiffusionRefiner(nn.Module, Refiner):
    """The network of `Diffusion`, the average of its weights, and the measured spread."""

    spec: Diffusion

    def __init__(self, spec: Diffusion, sizes: RefinerSizes) -> None:
        super().__init__()
        self.spec = spec
        self.name = sizes.name
        self.numbers = sizes.numbers
        self.knows_given = spec.knows_given
        known = sizes.latent + sizes.context + spec.knows_given
        self.network = spec.denoiser(sizes.shape, known)
        self.average = Average(self.network, spec.ema)
        self.spread = Spread(sizes.shape)
        pixels = self.numbers if isinstance(self.network, UNet) else 1
        width = spec.channels[0] if isinstance(self.network, UNet) else spec.hidden
        self.block = block_size(8 * pixels * width, MEMORY)

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
        if self.knows_given:  # of each row one draw of the latents
            out, z = out[0], z[0]
        residual = torch.where(observed, x - out, 0.0)
        if self.training:
            self.spread.update(residual, observed)
            self.average.update(self.network)
        y = residual / self.spread()
        uniform = noise.draw("choice/angle", (len(x),), x, generator=generator)
        angle = angles.QUARTER * uniform
        by_row = angle.reshape(-1, *[1] * (x.ndim - 1))
        eps = self._noise(y, generator)
        noisy = angles.noised(y, eps, by_row)
        v = self.network(noisy, out, angle, self._known(z, context, given))
        error = (v - angles.velocity(y, eps, by_row)).square()
        squares = torch.where(observed, error, 0.0)
        return reduce(squares, "n ... -> n", "sum") / self.numbers

    def refine(
        self,
        out: Tensor,
        z: Tensor,
        context: Tensor | None,
        generator: Generator,
        given: Tensor | None = None,
    ) -> Tensor:
        known = self._known(z, context, given)
        eps = self._noise(out, generator)
        draws = [out[:0]]
        for rows in block_slices(len(out), self.block):
            draws.append(self._draws(eps[rows], out[rows], known[rows]))
        return torch.cat(draws)

    def _draws(self, eps: Tensor, out: Tensor, known: Tensor) -> Tensor:
        """The draws to which noise leads, (n, *shape); all of them are (n, ...)."""

        def velocity(noisy: Tensor, angle: float) -> Tensor:
            v: Tensor = self.average(noisy, out, noisy.new_full((len(noisy),), angle), known)
            return v

        y = angles.denoise(velocity, eps, self.spec.steps, self.spec.solver)
        draws: Tensor = out + self.spread() * y
        return draws

    def _noise(self, like: Tensor, generator: Generator) -> Tensor:
        """Standard normal noise of rows, (n, *shape)."""
        site = f"x/refine/{self.name}"
        shape = tuple(like.shape)
        return noise.draw(site, shape, like, generator=generator, sampler=torch.randn)

    def _known(self, z: Tensor, context: Tensor | None, given: Tensor | None) -> Tensor:
        """What the network is told of rows beside what the decoder says, (n, k)."""
        columns = [z]
        if context is not None:
            columns.append(context)
        if self.knows_given:
            has = z.new_zeros(len(z)) if given is None else given.to(z.dtype)
            columns.append(has.reshape(-1, 1))
        return torch.cat(columns, 1)
