"""Randomness: every draw of mvkit, and every seed that is derived from others, comes from here.

Draws go through `draw`, so that tests can replace the noise. Sites: `z`, `w/<modality>`,
`cross/<modality>`, `prior` (standard noise of the family); `x`, `x/gamma` and others below `x`
(what a likelihood makes its samples of); `choice/component`, `choice/subset`, `choice/dropout`,
`choice/hidden` (uniforms).
"""

from __future__ import annotations

import contextlib
import hashlib
import operator
import threading
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Protocol, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvkit.core import noise_by_row
from mvkit.core.noise_by_row import FIRST_FACTOR, GOLDEN, SECOND_FACTOR
from mvkit.core.stacked_copies import stacked_noise
from mvkit.errors import RequestError

Generator = torch.Generator | None  # None: torch's global generator
Source = Callable[[str, tuple[int, ...], torch.dtype, torch.device], Tensor]
ByRow = noise_by_row.ByRow
seed_of = noise_by_row.seed_of
injected: ContextVar[Source | None] = ContextVar("mvkit_noise", default=None)


class NoiseSampler(Protocol):
    """What makes noise of a shape: `torch.randn`, `torch.rand`, or a family's own."""

    def __call__(
        self,
        size: tuple[int, ...],
        *,
        dtype: torch.dtype,
        device: torch.device,
        generator: Generator,
    ) -> Tensor: ...


def draw(
    site: str,
    shape: tuple[int, ...],
    like: Tensor,
    *,
    generator: Generator = None,
    sampler: NoiseSampler = torch.rand,
) -> Tensor:
    """Noise of `shape` for a site, of the dtype and on the device of `like`.

    Args:
        site: what the noise is for (see the module's docstring).
        shape: shape of the result.
        like: tensor that gives dtype and device.
        generator: source of randomness; None: torch's global generator.
        sampler: maker of the noise, uniforms in [0, 1) by default.
    """
    source = injected.get()
    if source is not None:
        return source(site, shape, like.dtype, like.device)
    copies = stacked_noise.get()
    if copies is not None:
        return copies.draw(shape, like, generator, sampler)
    if isinstance(generator, ByRow):
        with generator.at(site, shape):
            return _of_rows(generator, shape, like, sampler)
    return sampler(shape, dtype=like.dtype, device=like.device, generator=generator)


def _of_rows(
    generator: ByRow, shape: tuple[int, ...], like: Tensor, sampler: NoiseSampler
) -> Tensor:
    """Noise by row; other samplers than these two ask for `uniforms`, or draw as from torch's."""
    place = generator.place
    if place is not None and sampler is torch.randn:
        return noise_by_row.normals_of(generator, place, shape, like)
    if sampler is torch.rand:
        sampler = uniforms
    return sampler(shape, dtype=like.dtype, device=like.device, generator=generator)


def uniforms(
    size: tuple[int, ...], *, dtype: torch.dtype, device: torch.device, generator: Generator
) -> Tensor:
    """Uniforms in [0, 1): what `torch.rand` draws, and noise by row inside `draw`.

    For samplers that are functions of uniforms.
    """
    if isinstance(generator, ByRow) and generator.place is not None:
        like = torch.empty(0, dtype=dtype, device=device)
        return noise_by_row.uniforms_of(generator, generator.place, size, like)
    return torch.rand(size, dtype=dtype, device=device, generator=generator)


def by_row(generator: Generator, device: torch.device) -> ByRow:
    """A generator of noise by row and draw, of which another makes the seed.

    Args:
        generator: gives one number of 62 bits; one of the CPU gives the same noise on every
            device. Of one by row it is a child.
        device: where torch's own samplers draw.
    """
    if isinstance(generator, ByRow):
        return generator.child()
    if injected.get() is not None:
        return ByRow(0, device)
    where = "cpu" if generator is None else generator.device
    return ByRow(int(torch.randint(2**62, (), generator=generator, device=where)), device)


def child(generator: Generator) -> Generator:
    """Other noise for the same rows, of a generator by row; another one as it is."""
    return generator.child() if isinstance(generator, ByRow) else generator


def next_rows(generator: Generator, rows: int, draws: int = 0) -> None:
    """Says that the next rows of a request follow, and how many draws of each; see `ByRow`."""
    if isinstance(generator, ByRow):
        generator.rows(rows)
        if draws:
            generator.draws(draws)


def next_draws(generator: Generator, draws: int) -> None:
    """Says that the next draws of the same rows follow."""
    if isinstance(generator, ByRow):
        generator.draws(draws)


@contextlib.contextmanager
def labelled(generator: Generator, label: str) -> Iterator[None]:
    """Inside, sites of noise by row are those of a modality, whatever others draw before it."""
    if not isinstance(generator, ByRow):
        yield
        return
    before = generator.label
    generator.label = f"{before}/{label}"
    try:
        yield
    finally:
        generator.label = before


def initial_uniforms(shape: tuple[int, ...]) -> Tensor:
    """Uniforms in [0, 1) for initial weights, from the global generator, which the model seeds."""
    return torch.rand(shape)


def permutation(length: int, generator: torch.Generator) -> Tensor:
    """The numbers below `length` in random order, (length,)."""
    return torch.randperm(length, generator=generator)


def hash_factors(shape: tuple[int, ...], generator: torch.Generator) -> NDArray[np.uint64]:
    """Odd numbers of 64 bits, with which a random hash multiplies."""
    factors = torch.randint(-(2**63), 2**63 - 1, shape, generator=generator)
    return factors.numpy().view(np.uint64) | np.uint64(1)


def whole_seed(seed: SupportsIndex) -> int:
    """A seed as Python's int: numpy's whole numbers and tensors of one too.

    Raises:
        RequestError: anything else, or a number that torch takes for no seed.
    """
    try:
        number = operator.index(seed)
    except TypeError:
        number = 2**64
    if isinstance(seed, bool) or not -(2**63) <= number < 2**64:
        raise RequestError(f"seed={seed!r}; expected a whole number from -2**63 to 2**64 - 1")
    return number


def seeded(seed: SupportsIndex, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator."""
    return torch.Generator(device).manual_seed(whole_seed(seed))


# held by whoever seeds torch's global generators, or draws from them after seeding
GLOBAL = threading.RLock()


@contextlib.contextmanager
def kept_global(devices: Sequence[int] | None = ()) -> Iterator[None]:
    """Inside, no other thread of mvkit seeds torch's global generators; then they are put back.

    Args:
        devices: of CUDA, whose generators are put back beside that of the CPU; None: all.
    """
    with GLOBAL, torch.random.fork_rng(devices):
        yield


@contextlib.contextmanager
def global_seed(seed: SupportsIndex | None) -> Iterator[None]:
    """Seeds torch's global CPU generator inside, and restores its state after; None: no seed."""
    with kept_global():
        if seed is not None:
            torch.default_generator.manual_seed(whole_seed(seed))
        yield


_before: dict[str, tuple[int, Tensor]] = {}  # of threads inside `put_back_at_end`, by device


@contextlib.contextmanager
def put_back_at_end(device: torch.device) -> Iterator[None]:
    """Puts torch's global generators back when the last thread of those inside leaves.

    Unlike `kept_global`, it lets several in at once: for what takes long, such as training.

    Args:
        device: whose generator is put back beside that of the CPU.
    """
    names = ["cpu"] if device.type != "cuda" else ["cpu", str(device)]
    with GLOBAL:
        for name in names:
            inside, state = _before.get(name, (0, None))
            _before[name] = (inside + 1, _state(name) if state is None else state)
    try:
        yield
    finally:
        with GLOBAL:
            for name in names:
                inside, state = _before.pop(name)
                if inside > 1:
                    _before[name] = (inside - 1, state)
                elif name == "cpu":
                    torch.default_generator.set_state(state)
                else:
                    torch.cuda.set_rng_state(state, name)


def _state(name: str) -> Tensor:
    """The state of a device's global generator."""
    if name == "cpu":
        return torch.default_generator.get_state()
    return torch.cuda.get_rng_state(name)


class Turns:
    """Steps that seed torch's global generators, in which modules such as Dropout may draw.

    Threads that train at once share these generators. A step is alone while it draws from them, so
    that it draws what it would draw without the others; a model whose first step does not draw
    waits for nobody.

    Args:
        device: of the model.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.draws: bool | None = None  # not known yet

    @contextlib.contextmanager
    def step(self, seed: int) -> Iterator[None]:
        """Inside, the generators were seeded by `seed`."""
        alone = contextlib.nullcontext() if self.draws is False else GLOBAL
        with alone:
            with GLOBAL:
                torch.default_generator.manual_seed(seed)
                if self.device.type == "cuda":
                    torch.cuda.manual_seed(seed)
            before = self._states() if self.draws is None else []
            yield
            if self.draws is None:
                unchanged = map(torch.equal, before, self._states())
                self.draws = not all(unchanged)

    def _states(self) -> list[Tensor]:
        names = ["cpu"] if self.device.type != "cuda" else ["cpu", str(self.device)]
        return [_state(name) for name in names]


class Sampled(Protocol):
    """A distribution of torch's kind."""

    def sample(self, shape: tuple[int, ...], /) -> Tensor:
        """Draws of `shape`."""
        ...


def sampled(distribution: Sampled, n: int, generator: Generator) -> Tensor:
    """Draws (n, d) of a distribution that takes no generator: `generator` seeds the global one."""
    if generator is None:
        return distribution.sample((n,))
    with kept_global(devices=None):
        seed = torch.randint(2**62, (), generator=generator, device=generator.device)
        torch.manual_seed(int(seed))
        return distribution.sample((n,))


def seed_of_epoch(seed: int, epoch: int) -> int:
    """The seed of the order of rows in an epoch, or of the partners of a dataset."""
    return (whole_seed(seed) * 1_000_003 + epoch) % 2**63


def seed_of_split(seed: int, split: int) -> int:
    """The seed of the missingness of a split: 0 train, 1 valid, 2 test."""
    return 3 * seed + split


def seed_of_making(seed: int, split: int) -> int:
    """The seed of how a split is composed; another than that of its missingness."""
    return 2**40 + seed_of_split(seed, split)


def seed_of_name(seed: int, name: str) -> int:
    """A seed that is a function of a number and a name: 56 bits of their SHA-256."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def row_uniforms(
    seed: SupportsIndex, rows: int, columns: int, *, start: int = 0
) -> NDArray[np.float64]:
    """Uniforms in [0, 1), (rows, columns): splitmix64 hashes of (seed, row, start + column)."""
    row = np.arange(rows, dtype=np.uint64)[:, None]
    column = np.arange(start, start + columns, dtype=np.uint64)[None, :]
    with np.errstate(over="ignore"):
        first = np.uint64(whole_seed(seed) % 2**63) * np.uint64(GOLDEN)
        state = first + row * np.uint64(0xD1B54A32D192ED03)
        state = state + (column + np.uint64(1)) * np.uint64(0x8CB92BA72F3D8DD7)
        for shift, factor in ((30, FIRST_FACTOR), (27, SECOND_FACTOR)):
            state = (state ^ (state >> np.uint64(shift))) * np.uint64(factor)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) / 2.0**53
