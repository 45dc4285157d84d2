"""Noise that is a function of (seed, row of a request, draw), whatever blocks it is made in.

Numbers are hashes of counters in whole-number operations, the same bits on every device. Normal
numbers are computed of them in float64, in which devices differ by rounding alone.

Axes: n draws, b rows, e the numbers of one draw of one row.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from functools import cache

import attrs
import torch
from torch import Tensor

from mvkit.core.blocks import HASHED, block_size, block_slices

GOLDEN = 0x9E3779B97F4A7C15  # constants of the splitmix64 generator
FIRST_FACTOR = 0xBF58476D1CE4E5B9
SECOND_FACTOR = 0x94D049BB133111EB


def seed_of(*keys: int) -> int:
    """The splitmix64 hash of whole numbers, such as (seed, stage, epoch, step), as a seed."""
    state = 0
    for key in keys:
        state = (state ^ key % 2**64) + GOLDEN
        state = (state ^ (state % 2**64) >> 30) * FIRST_FACTOR % 2**64
        state = (state ^ state >> 27) * SECOND_FACTOR % 2**64
        state ^= state >> 31
    return state % 2**63


@attrs.frozen(eq=False)
class Place:
    """Where the numbers of a shape belong.

    Args:
        key: of the site.
        first_draw: number of the first draw.
        draws: how many there are.
        numbers: of one draw of one row.
    """

    key: int
    first_draw: int
    draws: int
    numbers: int


class ByRow(torch.Generator):
    """A generator whose noise, through `mvkit.core.noise.draw`, belongs to rows and draws.

    Whoever evaluates block by block says so by `rows` and `draws`; row 7 then has the same noise
    whatever block it is in. Samplers that are no function of uniforms, and code that draws from
    torch directly, use it as the torch generator that it is too: it is seeded anew for each block,
    so that such draws depend on the blocks.

    Args:
        seed: of all streams.
        device: of the torch generator.
        first_row: number of the first row in the request.

    Example:
        >>> import torch
        >>> from mvkit.core import noise
        >>> def normals(blocks):
        ...     generator = noise.ByRow(0)
        ...     pieces = []
        ...     for rows in blocks:
        ...         generator.rows(rows)
        ...         shape = (1, rows, 2)  # draws, rows, numbers
        ...         pieces.append(noise.draw("z", shape, torch.zeros(1), generator=generator))
        ...     return torch.cat(pieces, 1)
        >>> torch.equal(normals([5]), normals([2, 3]))
        True
    """

    seed_of_streams: int
    first: int
    count: int
    first_draw: int
    draw_count: int
    moves: int
    label: str
    calls: Counter[tuple[str, str]]
    place: Place | None

    def __new__(cls, seed: int, device: torch.device | str = "cpu", first_row: int = 0) -> ByRow:
        """A generator that stands before the first row."""
        return super().__new__(cls, device)  # type: ignore[call-arg]

    def __init__(self, seed: int, device: torch.device | str = "cpu", first_row: int = 0) -> None:
        self.seed_of_streams = seed
        self.first = first_row
        self.count = 0
        self.children = 0
        self.label = ""
        self.calls = Counter()
        self.place = None
        self.rows(0)

    def rows(self, count: int) -> None:
        """Moves on to the next rows of the request, before their first draw."""
        self.first += self.count
        self.count = count
        self.children = 0
        self.first_draw = self.draw_count = self.moves = 0
        self._begin()

    def draws(self, count: int) -> None:
        """Moves on to the next draws of the same rows."""
        self.first_draw += self.draw_count
        self.draw_count = count
        self.moves += 1
        self._begin()

    def child(self) -> ByRow:
        """A generator of other noise for the same rows: the first, second … of this block."""
        self.children += 1
        seed = seed_of(self.seed_of_streams, self.children)
        return ByRow(seed, self.device, self.first)

    def _begin(self) -> None:
        self.calls.clear()
        self.manual_seed(seed_of(self.seed_of_streams, self.first, self.moves, self.first_draw))

    @contextlib.contextmanager
    def at(self, site: str, shape: tuple[int, ...]) -> Iterator[Place | None]:
        """Inside, `uniforms` and `normals` of this shape are those of a site."""
        call = (self.label, site)
        key = seed_of(self.seed_of_streams, _number_of(f"{self.label}/{site}"), self.calls[call])
        self.calls[call] += 1
        self.place = self._place(key, shape)
        self.manual_seed(seed_of(key, self.first, self.moves, self.first_draw))
        try:
            yield self.place
        finally:
            self.place = None

    def _place(self, key: int, shape: tuple[int, ...]) -> Place | None:
        """Where a shape's rows and draws are; None if it has no axis of rows.

        Shapes are (n, b, …) or (n b, …), with axes of length 1 before the rows; (b, …) is one
        draw. Draws that are not as many as the block's are the same numbers in all its blocks.
        Where a shape (b, b, …) can be read both ways, the first axis is that of draws: who draws
        (b, e), whatever e is, asks for (1, b, e).
        """
        if not shape or not self.count:
            return None
        fixed = seed_of(key, 1, self.moves)
        long = [axis for axis, size in enumerate(shape) if size != 1]
        first = long[0] if long else 0
        after = next((axis for axis in long if axis > 0), 0)
        if self.count > 1 and after > 0 and shape[after] == self.count:
            numbers = math.prod(shape[after + 1 :])
            if shape[0] == self.draw_count:
                return Place(key, self.first_draw, shape[0], numbers)
            return Place(fixed, 0, shape[0], numbers)
        for axis in (0, first):
            if shape[axis] == self.draw_count * self.count:
                numbers = math.prod(shape[axis + 1 :])
                return Place(key, self.first_draw, self.draw_count, numbers)
        if shape[0] == self.count or self.count == 1:
            return Place(fixed, 0, shape[0] // self.count, math.prod(shape[1:]))
        return None

    def hashes(self, place: Place, device: torch.device) -> Tensor:
        """Seeds of the streams of every draw of every row, ((n b), 1)."""
        row = torch.arange(self.first, self.first + self.count, device=device)
        seeds = _mixed(row.mul_(_signed(GOLDEN)).add_(_signed(place.key)))
        last = place.first_draw + place.draws
        draw = torch.arange(place.first_draw, last, device=device).unsqueeze(1)
        seeds = _mixed(seeds + draw.add_(1).mul_(_signed(SECOND_FACTOR)))
        return seeds.reshape(-1, 1)


def uniforms_of(generator: ByRow, place: Place, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uniforms in [0, 1), as many bits of them as the dtype holds."""
    bits = 1 - round(math.log2(torch.finfo(like.dtype).eps))
    seeds = generator.hashes(place, like.device)
    uniforms = like.new_empty(len(seeds), place.numbers)
    for block in _blocks(len(seeds), place.numbers):
        hashed = _counted(seeds[block], place.numbers)
        uniforms[block] = _high_bits(hashed, bits).to(like.dtype).mul_(2.0**-bits)
    return uniforms.reshape(shape)


def normals_of(generator: ByRow, place: Place, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Standard normal numbers, by Box and Muller in float64."""
    wide = torch.float32 if like.device.type == "mps" else torch.float64
    pairs = (place.numbers + 1) // 2
    seeds = generator.hashes(place, like.device)
    normals = like.new_empty(len(seeds), place.numbers)
    for block in _blocks(len(seeds), place.numbers):
        hashed = _counted(seeds[block], 2 * pairs)
        radius = _high_bits(hashed[:, :pairs], 52).to(wide).add_(0.5).mul_(2.0**-52)
        radius = radius.log_().mul_(-2.0).sqrt_()
        angle = _high_bits(hashed[:, pairs:], 53).to(wide).mul_(2.0**-53 * 2 * math.pi)
        normals[block, :pairs] = angle.cos().mul_(radius)
        normals[block, pairs:] = angle.sin_().mul_(radius)[:, : place.numbers - pairs]
    return normals.reshape(shape)


def _blocks(streams: int, numbers: int) -> list[slice]:
    return block_slices(streams, block_size(numbers, HASHED, 8))


def _counted(seeds: Tensor, numbers: int) -> Tensor:
    """Numbers 1, 2 … of the splitmix64 streams of some seeds (n, 1), (n, e)."""
    steps = torch.arange(1, numbers + 1, device=seeds.device).mul_(_signed(GOLDEN))
    return _mixed(seeds + steps)


def _mixed(state: Tensor) -> Tensor:
    """The finish of splitmix64, in place."""
    for shift, factor in ((30, FIRST_FACTOR), (27, SECOND_FACTOR)):
        state.bitwise_xor_(_high_bits(state, 64 - shift)).mul_(_signed(factor))
    return state.bitwise_xor_(_high_bits(state, 33))


def _high_bits(state: Tensor, bits: int) -> Tensor:
    """The highest bits, as numbers below 2**bits."""
    return (state >> (64 - bits)).bitwise_and_((1 << bits) - 1)


def _signed(number: int) -> int:
    """The number of 64 bits as torch's int64 writes it."""
    return number - 2**64 if number >= 2**63 else number


@cache
def _number_of(name: str) -> int:
    """56 bits of the SHA-256 of a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
