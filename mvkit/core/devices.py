"""Devices by name, with an error that says which there are."""

from __future__ import annotations

import torch

from mvkit.errors import RequestError


def device_of(wanted: str | torch.device | int) -> torch.device:
    """The device, tried out; `auto`: an accelerator if there is one.

    Raises:
        RequestError: torch knows no such device, or this machine has none.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError):
        there = ", ".join(map(repr, ("auto", *available_devices())))
        raise RequestError(f"device={str(wanted)!r}; expected one of {there}") from None
    return device


def available_devices() -> list[str]:
    """Names of the devices that this machine has."""
    names = ["cpu"]
    names += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return names
