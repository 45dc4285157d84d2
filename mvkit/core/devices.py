"""Where tensors can be: the devices of this machine."""

from __future__ import annotations

import torch

from mvkit.errors import RequestError


def available_device(device: str | torch.device, where: str) -> torch.device:
    """A device of this machine by its name; `where` begins the message.

    Raises:
        RequestError: a name that torch does not know, or a device that is not there.
    """
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        place = None
    known = _devices()
    if place is None or (str(place) not in known and place.type not in known):
        expected = " or ".join(map(repr, known))
        raise RequestError(f"{where}: device={device!r}; expected {expected}")
    return place


def _devices() -> list[str]:
    """The names of the devices of this machine."""
    names = ["cpu"]
    if torch.accelerator.is_available():
        kind = torch.accelerator.current_accelerator()
        if kind is not None:
            numbered = [f"{kind.type}:{i}" for i in range(torch.accelerator.device_count())]
            names += [kind.type, *numbered]
    return names
