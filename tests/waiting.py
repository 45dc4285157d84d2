"""What waits for a device: counted on the CPU, where the same calls cost nothing."""

import collections
import contextlib

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

METHODS = (
    "item",
    "nonzero",
    "tolist",
    "numpy",
    "cpu",
    "unique",
    "masked_select",
    "__bool__",
    "__index__",
    "__float__",
    "__int__",
)
OPERATIONS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "_unique2", "equal")


class _Operations(TorchDispatchMode):
    """Counts operations that need a value, whoever calls them: also autograd and optimizers."""

    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        flags = [x for x in args[1:] if isinstance(x, list | tuple)]
        by_flags = name in ("index", "index_put", "index_put_") and any(
            isinstance(x, Tensor) and x.dtype == torch.bool for index in flags for x in index
        )
        if name in OPERATIONS or by_flags:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def counted_waits(monkeypatch):
    """Inside, counts what would wait for a device, by name."""
    counts = collections.Counter()

    def counting(name, original):
        def method(self, *args, **kwargs):
            counts[name] += 1
            return original(self, *args, **kwargs)

        return method

    with monkeypatch.context() as patch:
        for name in METHODS:
            patch.setattr(Tensor, name, counting(name, getattr(Tensor, name)))
        with _Operations(counts):
            yield counts
