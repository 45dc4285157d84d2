"""The refiner `diffusion`: draws of a modality by diffusion, given what its decoder says.

Axes: n rows, k numbers that are known of a row, d shared and p private latent, c numbers of the
covariates.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from einops import reduce
from torch import Tensor, nn

from mvkit import Refiner, SpecError, spec
from mvkit.core import Generator, noise
from mvkit.core.blocks import block_size, block_slices
from mvkit.parts import RefinerSizes
from mvkit.registry import field, flag, number, one_of
from mvkit.registry.fields import choice, count
from mvkit_diffusion import angles
from mvkit_diffusion.denoisers import Dense, UNet
from mvkit_diffusion.ema import Average, Spread

MEMORY = 2**27  # bytes of what networks hold of the rows that are drawn at a time
SMALLEST = 8  # pixels of a side that a U-Net takes
FEWEST = 256  # numbers of pictures from which a U-Net pays
STRENGTH = 1.5  # of guidance of pictures
HIDDEN = 0.15  # share of rows whose mean and latents the network is not told in training
LARGEST = 4.0  # of numbers of rows that the network is told nothing of, in root mean square


def _widths(value: object) -> str | None:
    fine = isinstance(value, tuple) and all(type(n) is int and n > 0 for n in value)
    return None if fine and value else "a list of positive widths"


def _pictures(shape: tuple[int, ...]) -> bool:
    """Whether rows of a shape are pictures (C, H, W) or (H, W), large enough for a U-Net."""
    return len(shape) in (2, 3) and min(shape[-2:]) >= SMALLEST


def _strength(value: object) -> str | None:
    fine = value is None
    if isinstance(value, int | float) and not isinstance(value, bool):
        fine = 0 <= value < math.inf
    return None if fine else "None, or a number from 0 on"


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

    Pictures shall show what their mean shows. They are trained on reconstructions alone, since
    the mean of a translation may show another class than the picture does, from which a refiner
    learns to change what it sees. And draws of them are guided: the network is told nothing of
    some rows in training, whose x / spread (of a root mean square of 4 at most) it then sees
    noised in place of y, so that it also tells velocities v_0 without mean and latents
    (`mvkit_diffusion.angles.without_mean`); draws follow v + guidance (v - v_0) at angles below
    `guided` · π/2. Rows of numbers are not guided, which takes from their spread, and are trained
    on translations too, whose spread is to be right.

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
        guidance: its strength, of pictures; 0: none; None: 1.5 of pictures, unless `knows_given`,
            and 0 of rows of numbers. A guided step evaluates the network twice.
        guided: the share of the angles, from the data on, at which draws are guided. More holds
            pictures closer to what their mean shows, and takes from their variety.
        begin: where draws begin, as a share of the angles: at noise alone with 1; below, at the
            mean with that much noise, so that they keep the coarse form of what it shows.
        latents: what training draws latents from: `parts` of what a row has, `own` parts, which
            hold the modality; None: `own` of pictures, unless `knows_given`, and else `parts`.

    Reference: Pandey, Mukherjee, Rai and Kumar, DiffuseVAE, 2022,
    https://arxiv.org/abs/2201.00308; Ho, Jain and Abbeel, Denoising Diffusion Probabilistic
    Models, 2020, https://arxiv.org/abs/2006.11239; Salimans and Ho, Progressive Distillation for
    Fast Sampling of Diffusion Models, 2022, https://arxiv.org/abs/2202.00512; Ho and Salimans,
    Classifier-Free Diffusion Guidance, 2022, https://arxiv.org/abs/2207.12598; Kynkäänniemi et
    al., Applying Guidance in a Limited Interval, 2024, https://arxiv.org/abs/2404.07724; Meng et
    al., SDEdit, 2022, https://arxiv.org/abs/2108.01073 (draws that begin on the way).
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
    guidance: float | None = field(default=None, check=_strength)
    guided: float = field(default=0.7, check=number(0.0, 1.0))
    begin: float = field(default=1.0, check=number(high=1.0, above=0.0))
    latents: Literal["parts", "own"] | None = choice(None, "parts", "own")

    def build(self, sizes: RefinerSizes) -> DiffusionRefiner:
        """The network, with fresh weights.

        Raises:
            SpecError: a U-Net or guidance for what are no pictures, or too small ones.
        """
        return DiffusionRefiner(self, sizes)

    def strength(self, shape: tuple[int, ...]) -> float:
        """Of the guidance of rows of a shape.

        Raises:
            SpecError: guidance of rows of numbers.
        """
        if self.guidance and len(shape) == 1:
            raise SpecError(
                f"guidance is of pictures, whose numbers share one spread; got rows {shape}; "
                "expected None or 0; leave it out",
                "guidance",
            )
        if self.guidance is not None:
            return float(self.guidance)
        return STRENGTH if _pictures(shape) and not self.knows_given else 0.0

    def latents_from(self, shape: tuple[int, ...]) -> Literal["parts", "own"]:
        """What latents of rows of a shape are drawn from in training."""
        if self.latents is not None:
            return self.latents
        return "own" if _pictures(shape) and not self.knows_given else "parts"

    def denoiser(self, shape: tuple[int, ...], known: int) -> Dense | UNet:
        """A network for rows of a shape, of each of which `known` numbers are known."""
        pictures = _pictures(shape)
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
    """The network of `Diffusion`, the average of its weights, and what was measured."""

    spec: Diffusion

    def __init__(self, spec: Diffusion, sizes: RefinerSizes) -> None:
        super().__init__()
        self.spec = spec
        self.name = sizes.name
        self.numbers = sizes.numbers
        self.knows_given = spec.knows_given
        self.latents_from = spec.latents_from(sizes.shape)
        self.guidance = spec.strength(sizes.shape)
        guided = self.guidance > 0
        known = sizes.latent + sizes.context + spec.knows_given + guided
        self.network = spec.denoiser(sizes.shape, known)
        self.average = Average(self.network, spec.ema)
        self.spread = Spread(sizes.shape)
        if guided:
            self.size = Spread(sizes.shape)  # of x itself
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
            self._measure(residual, x, observed)
        y = residual / self.spread()
        hidden = None
        if self.guidance:
            uniform = noise.draw("choice/hidden", (len(x),), x, generator=generator)
            hidden = uniform < HIDDEN
            by_row = hidden.reshape(-1, *[1] * (x.ndim - 1))
            y = torch.where(by_row, torch.where(observed, x, 0.0) / self._of_rows(), y)
            out = torch.where(by_row, 0.0, out)
        known = self._known(z, context, given, hidden)
        error = self._error(y, out, known, generator)
        squares = torch.where(observed, error.square(), 0.0)
        return reduce(squares, "n ... -> n", "sum") / self.numbers

    def _measure(self, residual: Tensor, x: Tensor, observed: Tensor) -> None:
        """Takes a batch into what is measured, and a step into the average of weights."""
        self.spread.update(residual, observed)
        if self.guidance:
            self.size.update(x, observed)
        self.average.update(self.network)

    def _of_rows(self) -> Tensor:
        """What rows are divided by where the network is told nothing of them, (1, ...).

        It is the spread of residuals, but for rows that would be so large by it that training
        would see little else.
        """
        return torch.maximum(self.spread(), self.size() / LARGEST)

    def _error(self, y: Tensor, out: Tensor, known: Tensor, generator: Generator) -> Tensor:
        """How far the network is from the velocity of y at random angles, (n, *shape)."""
        uniform = noise.draw("choice/angle", (len(y),), y, generator=generator)
        angle = angles.QUARTER * uniform
        by_row = angle.reshape(-1, *[1] * (y.ndim - 1))
        eps = self._noise(y, generator)
        noisy = angles.noised(y, eps, by_row)
        v: Tensor = self.network(noisy, out, angle, known)
        return v - angles.velocity(y, eps, by_row)

    def refine(
        self,
        out: Tensor,
        z: Tensor,
        context: Tensor | None,
        generator: Generator,
        given: Tensor | None = None,
    ) -> Tensor:
        known = self._known(z, context, given, None)
        every_row = torch.ones(len(z), dtype=torch.bool, device=z.device)
        nothing = self._known(z, context, given, every_row)
        eps = self._noise(out, generator)
        draws = [out[:0]]
        for rows in block_slices(len(out), self.block):
            draws.append(self._draws(eps[rows], out[rows], known[rows], nothing[rows]))
        return torch.cat(draws)

    def _draws(self, eps: Tensor, out: Tensor, known: Tensor, nothing: Tensor) -> Tensor:
        """The draws to which noise leads, (n, *shape); all of them are (n, ...)."""
        spread = self.spread()
        guided = self.spec.guided * angles.QUARTER
        begin = self.spec.begin * angles.QUARTER

        def velocity(noisy: Tensor, angle: float) -> Tensor:
            v: Tensor = self.average(noisy, out, noisy.new_full((len(noisy),), angle), known)
            if not self.guidance or angle > guided:
                return v
            ratio = float(self._of_rows() / spread)
            v_0 = angles.without_mean(unaware, noisy, angle, out / spread, ratio)
            return v + self.guidance * (v - v_0)

        def unaware(noisy: Tensor, angle: float) -> Tensor:
            at = noisy.new_full((len(noisy),), angle)
            v: Tensor = self.average(noisy, torch.zeros_like(out), at, nothing)
            return v

        y = angles.denoise(velocity, eps, self.spec.steps, self.spec.solver, begin)
        draws: Tensor = out + spread * y
        return draws

    def _noise(self, like: Tensor, generator: Generator) -> Tensor:
        """Standard normal noise of rows, (n, *shape)."""
        site = f"x/refine/{self.name}"
        shape = tuple(like.shape)
        return noise.draw(site, shape, like, generator=generator, sampler=torch.randn)

    def _known(
        self, z: Tensor, context: Tensor | None, given: Tensor | None, hidden: Tensor | None
    ) -> Tensor:
        """What the network is told of rows beside what the decoder says, (n, k); of `hidden` ones,
        (n,) bool, if it is guided, the covariates alone.
        """
        has = z.new_zeros(len(z), 1)
        if given is not None:
            has = given.to(z.dtype).reshape(-1, 1)
        flag = torch.zeros_like(has)
        if hidden is not None:
            flag = hidden.to(z.dtype).reshape(-1, 1)
            z, has = z * (1 - flag), has * (1 - flag)
        columns = [z]
        if context is not None:
            columns.append(context)
        if self.knows_given:
            columns.append(has)
        if self.guidance:
            columns.append(flag)
        return torch.cat(columns, 1)
