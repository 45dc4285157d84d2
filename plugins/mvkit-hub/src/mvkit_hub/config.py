"""config.json: what a repository says of its model, and what `pull` checks."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mvkit import CheckpointError

Config = dict[str, Any]  # plain JSON data

FORMAT = 1
LIBRARY = "mvkit"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"


def sha256_of(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def config_of(header: Config, weights: Path) -> Config:
    """What config.json holds.

    Args:
        header: of the file, as `mvkit.describe` returns it.
        weights: the file.
    """
    return {
        "library_name": LIBRARY,
        "format": FORMAT,
        "mvkit": header["mvkit"],
        "packages": header["packages"],
        "dtype": header["dtype"],
        "modalities": modalities_of(header["model"]),
        "model": header["model"],
        "file": {"name": WEIGHTS, "bytes": weights.stat().st_size, "sha256": sha256_of(weights)},
    }


def modalities_of(model: Config) -> dict[str, Config]:
    """Shape and likelihood of the modalities of a model's header, by name."""
    if model["name"] == "ensemble":
        return modalities_of(model["models"][0])
    if model["name"] == "stack":
        return modalities_of(model["levels"][0])
    described = {}
    for name in model["order"]:
        modality = model["modalities"][name]
        described[name] = {"shape": modality["shape"], "likelihood": modality["likelihood"]}
    return described


def read_config(text: str, where: str) -> Config:
    """The checked contents of config.json.

    Raises:
        CheckpointError: not what `push` writes.
    """
    try:
        config = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{where}: {CONFIG} is no JSON ({error}); {_EXPECTED}") from error
    if not isinstance(config, dict) or config.get("library_name") != LIBRARY:
        raise CheckpointError(
            f"{where}: {CONFIG} does not name the library {LIBRARY!r}: no model of mvkit; "
            f"{_EXPECTED}"
        )
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{where}: {CONFIG} has format {config.get('format')!r}; expected {FORMAT}; update "
            "mvkit-hub"
        )
    file = config.get("file")
    if not isinstance(file, dict) or not isinstance(file.get("sha256"), str):
        raise CheckpointError(f"{where}: {CONFIG} has no checksum of the file; {_EXPECTED}")
    return config


_EXPECTED = "expected what mvkit_hub.push writes; check the name of the repository"
