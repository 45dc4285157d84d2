"""Blocks: how much of a long axis is computed at a time.

Budgets are bytes. They depend neither on the free memory nor on the number of threads: draws of a
generator depend on the blocks they are made in, and results must not change from run to run.
"""

from __future__ import annotations

FLOAT32 = 4  # bytes of a number

PRODUCTS = 2**18  # products of experts: stays in a core's cache while several passes go over it
DENSITIES = 2**24  # densities of mixtures: stays near the cache
DECODED = 2**23  # what decoders emit for importance samples: stays near the cache
DECODED_ACCELERATOR = 2**28  # the same: enough to keep an accelerator busy
HASHED = 2**18  # hashes of which noise is made: stay in the cache for several passes
IMPUTED = 2**27  # draws of imputed rows, with what networks hold beside their output
RECONSTRUCTED = 2**26  # draws of the observed rows that a metric looks at


def block_size(numbers: int, budget: int, item_size: int = FLOAT32) -> int:
    """How many entries fit in a budget, at least one.

    Args:
        numbers: numbers of each entry.
        budget: bytes of a block.
        item_size: bytes of a number; the default keeps blocks the same for every dtype.
    """
    return max(1, budget // max(1, numbers * item_size))


def block_slices(length: int, size: int) -> list[slice]:
    """Slices of at most `size` entries that cover an axis; none of an axis of length 0."""
    return [slice(start, start + size) for start in range(0, length, size)]
