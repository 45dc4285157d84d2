"""save and load: one safetensors file, weights and a JSON header, never pickle.

The header is one JSON text under one key. A SHA-256 covers the whole file, header and tensors, with its own 64 digits
read as zeros, so that no flipped bit goes unseen.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import nn

import mvkit
from mvkit import plugins
from mvkit.errors import CheckpointError, MvkitError
from mvkit.generative import Generative
from mvkit.model import Model
from mvkit.samplers import install
from mvkit.spec import as_part, is_spec
from mvkit.stack import Stack

FORMAT = 1
KEY = "mvkit"
_ZEROS = "0" * 64
_DIGEST = re.compile(rb'\\"sha256\\": \\"([0-9a-f]{64})\\"')


def save(model: Generative, path: str | os.PathLike[str]) -> None:
    """Writes a model: specs with all defaults, weights, buffers.

    The file appears complete or not at all: a temporary file beside it is written, synced and renamed.

    Raises:
        OSError: when the folder cannot be written; nothing is left behind.
    """
    header = {
        "format": FORMAT,
        "model": model.header(),
        "dtype": str(model.like.dtype).removeprefix("torch."),
        "mvkit": mvkit.__version__,
        "packages": _packages((model.spec, *(sampler.spec for sampler in model.samplers.values()))),
        "sha256": _ZEROS,
    }
    # a copy each: parameters that two modules share are stored twice, which safetensors asks for
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    text = json.dumps(header, sort_keys=True, allow_nan=False)
    blob = bytearray(safetensors.torch.save(tensors, metadata={KEY: text}))
    start, stop = _digest_at(blob, "save")
    blob[start:stop] = hashlib.sha256(blob).hexdigest().encode()
    _write(Path(path), blob)


def _packages(value: Any) -> dict[str, str]:
    """Third-party packages that the parts of a spec come from, with their versions."""
    found: dict[str, str] = {}
    if is_spec(value):
        entry = plugins.entry_of(type(value))
        if entry is not None and entry.package != "mvkit":
            found[entry.package] = entry.version
        for inner in vars(value).values():
            found |= _packages(inner)
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ():
        found |= _packages(inner)
    return found


def _write(path: Path, blob: bytearray) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}; make it first")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        # ordinary permissions: what the umask leaves of 0666
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _digest_at(blob: bytes | bytearray, where: str) -> tuple[int, int]:
    """Where the digits of the checksum stand, which must be one place in the header."""
    size = struct.unpack("<Q", blob[:8])[0]
    found = list(_DIGEST.finditer(bytes(blob[: 8 + size])))
    if len(found) != 1:
        raise CheckpointError(f"{where}: no checksum where it should be; the file was altered; take another copy")
    return found[0].span(1)


def load(
    path: str | os.PathLike[str],
    *,
    encoders: Mapping[str, nn.Module] | None = None,
    decoders: Mapping[str, nn.Module] | None = None,
    modules: Mapping[str, nn.Module] | None = None,
    device: str | torch.device = "cpu",
) -> Any:
    """Reads a model back, in evaluation mode.

    Args:
        path: a file written by `save`.
        encoders: the modules that were given as encoders when the model was made, by modality.
        decoders: likewise.
        modules: other modules of the user's, by their path in the header (`aggregator.network`).
        device: where to put it.

    Raises:
        CheckpointError: truncated, altered, of an unknown format, no checkpoint of mvkit at all, needing a package that
            is not installed, or a module that was not given.
    """
    blob = Path(path).read_bytes()
    header = _checked_header(blob, str(path))
    given = dict(modules or {})
    for side, by_name in (("encoder", encoders), ("decoder", decoders)):
        given |= {f"modalities.{name}.{side}": module for name, module in (by_name or {}).items()}
    missing: list[str] = []
    used: set[str] = set()
    data = _with_modules(header["model"], given, "", missing, used)
    _refuse_missing(missing, str(path))
    spare = [at for at in given if at not in used]
    if spare:
        raise CheckpointError(f"{path}: {spare[0]} was no module of the user's when the model was saved; leave it out")
    _require_packages(header, str(path))
    try:
        with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
            model = _built(data).to(getattr(torch, header["dtype"]))
        model.load_state_dict(safetensors.torch.load(blob))
    except (MvkitError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path}: the model cannot be built again: {error}") from error
    return model.to(device).eval()


def _built(data: dict[str, Any]) -> Generative:
    """The model that a header tells of, with fresh weights."""
    samplers = data.pop("samplers", [])
    model = _bare(data)
    for sampler in samplers:
        install(model, as_part("sampler", sampler))
    return model


def _bare(data: dict[str, Any]) -> Generative:
    """Without the samplers that were fitted to it."""
    name = data.pop("name")
    if name == "stack":
        return Stack([cast(Model, _built(level)) for level in data.pop("levels")], **data)
    data["modalities"] = {name: data["modalities"][name] for name in data.pop("order")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there was to say was said when the model was made
        return Model(**data)


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked header of a file: format, versions, packages, and the model's specs."""
    return _checked_header(Path(path).read_bytes(), str(path))


def _checked_header(blob: bytes, where: str) -> dict[str, Any]:
    size = struct.unpack("<Q", blob[:8])[0] if len(blob) >= 8 else 0
    if len(blob) < 8 + size or not size:
        raise CheckpointError(f"{where}: truncated, or no checkpoint; {len(blob)} bytes; take another copy")
    try:
        outer = json.loads(blob[8 : 8 + size])
        text = outer.pop("__metadata__")[KEY]
        header = json.loads(text)
        end = 8 + size + max((one["data_offsets"][1] for one in outer.values()), default=0)
        found = header["format"]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise CheckpointError(
            f"{where}: no checkpoint of mvkit, or its header was altered; take another copy"
        ) from None
    if found != FORMAT:
        raise CheckpointError(
            f"{where}: format {found!r}, this mvkit reads {FORMAT}; upgrade mvkit, or take another copy"
        )
    if len(blob) != end:
        raise CheckpointError(f"{where}: truncated: {len(blob)} bytes of {end}; take another copy")
    start, stop = _digest_at(blob, where)
    digest = hashlib.sha256(blob[:start])
    digest.update(_ZEROS.encode())
    digest.update(memoryview(blob)[stop:])
    if digest.hexdigest().encode() != blob[start:stop]:
        raise CheckpointError(f"{where}: altered since it was saved: its checksum does not fit; take another copy")
    return header  # type: ignore[no-any-return]


def _with_modules(value: Any, given: dict[str, nn.Module], at: str, missing: list[str], used: set[str]) -> Any:
    """The header's data with the user's modules in their places; notes which were not given."""
    if isinstance(value, dict) and set(value) == {"external"} and isinstance(value["external"], str):
        if at not in given:
            missing.append(f"{at} ({value['external']})")
        used.add(at)
        return given.get(at)
    if isinstance(value, dict):
        return {key: _with_modules(one, given, f"{at}.{key}".lstrip("."), missing, used) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_modules(one, given, f"{at}.{i}", missing, used) for i, one in enumerate(value)]
    return value


def _refuse_missing(missing: list[str], where: str) -> None:
    """Raises CheckpointError that lists the modules to give, and how."""
    if not missing:
        return
    wanted: dict[str, list[str]] = {}
    for entry in missing:
        at = entry.partition(" ")[0]
        top, _, rest = at.partition(".")
        name, _, side = rest.rpartition(".")
        argument, key = (f"{side}s", name) if top == "modalities" else ("modules", at)
        wanted.setdefault(argument, []).append(f"{key!r}: …")
    call = ", ".join(f"{argument}={{{', '.join(keys)}}}" for argument, keys in sorted(wanted.items(), reverse=True))
    raise CheckpointError(
        f"{where}: {', '.join(missing)}: modules of the user's, whose code no file holds; give modules like them: "
        f"mvkit.load(path, {call})"
    )


def _require_packages(header: dict[str, Any], where: str) -> None:
    needed: dict[str, str] = header.get("packages", {})
    plugins.registry().scan()
    offered = {entry.package for entry in plugins.registry().entries}
    for package, version in needed.items():
        if package == "local" and package not in offered:
            raise CheckpointError(
                f"{where}: it has parts of a session; call mvkit.plugins.declare(…) for them, then load"
            )
        if package not in offered:
            problems = "".join(f"; note that {problem}" for problem in plugins.problems())
            raise CheckpointError(
                f"{where}: this checkpoint needs {package} {version}, which offers no parts here: "
                f"pip install {package}=={version}{problems}"
            )
