"""What there is on this machine: versions, packages, accelerators, and what is wrong with them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator

import torch

import mvkit
from mvkit.registry import plugins


def report() -> Iterator[str]:
    """The lines that `mvkit doctor` prints."""
    yield f"mvkit {mvkit.__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield from _requirements()
    yield _accelerator()
    yield f"threads: {torch.get_num_threads()} of {os.cpu_count()} cores"
    settings = {name: value for name, value in os.environ.items() if name.startswith("MVKIT_")}
    listed = ", ".join(f"{name}={value!r}" for name, value in sorted(settings.items()))
    yield f"settings: {listed or 'none'}"
    problems = plugins.problems()  # looks for packages
    offered = sorted(
        {f"{e.package} {e.version}" for e in plugins.registry().entries if e.package != "mvkit"}
    )
    yield f"packages with parts: {', '.join(offered) or 'none'}"
    yield from (f"problem: {problem}" for problem in problems)


def _requirements() -> Iterator[str]:
    """Installed versions, by extra; what is missing."""
    groups: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("mvkit") or ():
        name = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
        marked = re.search(r"extra == ['\"]([^'\"]+)", line)
        groups.setdefault(marked[1] if marked else "", []).append(name)
    for extra, names in groups.items():
        installed = [f"{name} {_version(name)}" for name in names if name != "mvkit"]
        yield f"{f'extra [{extra}]' if extra else 'required'}: {', '.join(installed)}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _accelerator() -> str:
    if not torch.cuda.is_available():
        return "accelerator: none; models run on the CPU"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    bf16 = "yes" if torch.cuda.is_bf16_supported() else "no"
    return f"accelerator: {', '.join(names)}; bf16 {bf16}"
