"""save and load: one sealed file (see `mvkit.core.safe_file`), weights and a JSON header, never pickle."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mvkit._version import __version__
from mvkit.core import safe_file
from mvkit.errors import CheckpointError, MvkitError
from mvkit.models.model import Model
from mvkit.models.multimodal import MultimodalModel, check_model
from mvkit.models.samplers import install
from mvkit.models.stack import Stack
from mvkit.registry import plugins
from mvkit.registry.spec import as_part, is_spec


def save(model: MultimodalModel, path: str | os.PathLike[str]) -> None:
    """Writes a model: specs with all defaults, weights, buffers.

    The file appears complete or not at all: a temporary file beside it is written, synced and renamed.

    Raises:
        OSError: when the folder cannot be written; nothing is left behind.
    """
    check_model(model, "save")
    safe_file.write(path, header_of(model), model.state_dict())


def header_of(model: MultimodalModel) -> dict[str, Any]:
    """What a file says of its model, beside the weights: plain JSON data."""
    return {
        "model": model.header(),
        "dtype": str(model.like.dtype).removeprefix("torch."),
        "mvkit": __version__,
        "packages": _packages(
            (model.spec, *(sampler.spec for sampler in model.samplers.values()))
        ),
    }


def _packages(value: Any) -> dict[str, str]:
    """Third-party packages that the parts of a spec come from, with their versions."""
    found: dict[str, str] = {}
    if is_spec(value):
        entry = plugins.find_entry(type(value))
        if entry is not None and entry.package != "mvkit":
            found[entry.package] = entry.version
        for inner in vars(value).values():
            found |= _packages(inner)
    for inner in (
        value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    ):
        found |= _packages(inner)
    return found


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
    header, weights = safe_file.read(path)
    try:
        return _loaded(header, weights, path, encoders, decoders, modules).to(device).eval()
    except CheckpointError:
        raise
    except (MvkitError, RuntimeError, TypeError, LookupError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the model cannot be built again: {type(error).__name__}: {error}"
        ) from error


def _loaded(
    header: dict[str, Any],
    weights: dict[str, Tensor],
    path: str | os.PathLike[str],
    encoders: Mapping[str, nn.Module] | None,
    decoders: Mapping[str, nn.Module] | None,
    modules: Mapping[str, nn.Module] | None,
) -> MultimodalModel:
    """The model of a header and its weights."""
    if "training" in header:
        raise CheckpointError(
            f"{path}: the state of a training run; load the run's best.safetensors or model.safetensors, or go on with "
            "mvkit.fit(…, checkpoint=…, resume='auto')"
        )
    given = dict(modules or {})
    for side, by_name in (("encoder", encoders), ("decoder", decoders)):
        given |= {f"modalities.{name}.{side}": module for name, module in (by_name or {}).items()}
    missing: list[str] = []
    used: set[str] = set()
    data = _with_modules(header["model"], given, "", missing, used)
    _refuse_missing(missing, str(path))
    spare = [at for at in given if at not in used]
    if spare:
        raise CheckpointError(
            f"{path}: {spare[0]} was no module of the user's when the model was saved; leave it out"
        )
    _require_packages(header, str(path))
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are overwritten
        model = rebuilt(data).to(getattr(torch, header["dtype"]))
    model.load_state_dict(weights)
    return model


def rebuilt(header: dict[str, Any], seed: int | None = None) -> MultimodalModel:
    """The model that `model.header()` tells of, with fresh weights, drawn from a seed if one is given."""
    data = dict(header)
    samplers = data.pop("samplers", [])
    model = _bare(data, seed)
    for sampler in samplers:
        install(model, as_part("sampler", sampler))
    return model


def _bare(data: dict[str, Any], seed: int | None) -> MultimodalModel:
    """Without the samplers that were fitted to it."""
    name = data.pop("name")
    if name == "stack":
        return Stack([cast(Model, rebuilt(level, seed)) for level in data.pop("levels")], **data)
    data["modalities"] = {name: data["modalities"][name] for name in data.pop("order")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what there was to say was said when the model was made
        return Model(**data, seed=seed)


def describe(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked header of a file: format, versions, packages, and the model's specs."""
    return safe_file.read_header(path)


def _with_modules(
    value: Any, given: dict[str, nn.Module], at: str, missing: list[str], used: set[str]
) -> Any:
    """The header's data with the user's modules in their places; notes which were not given."""
    if (
        isinstance(value, dict)
        and set(value) == {"external"}
        and isinstance(value["external"], str)
    ):
        if at not in given:
            missing.append(f"{at} ({value['external']})")
        used.add(at)
        return given.get(at)
    if isinstance(value, dict):
        return {
            key: _with_modules(one, given, f"{at}.{key}".lstrip("."), missing, used)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [
            _with_modules(one, given, f"{at}.{i}", missing, used) for i, one in enumerate(value)
        ]
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
    call = ", ".join(
        f"{argument}={{{', '.join(keys)}}}"
        for argument, keys in sorted(wanted.items(), reverse=True)
    )
    raise CheckpointError(
        f"{where}: {', '.join(missing)}: modules of the user's, whose code no file holds; give modules like them: "
        f"mvkit.load(path, {call})"
    )


def _require_packages(header: dict[str, Any], where: str) -> None:
    required: dict[str, str] = header.get("packages", {})
    plugins.registry().scan()
    offered = {entry.package for entry in plugins.registry().entries}
    for package, version in required.items():
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
