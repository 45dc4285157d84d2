"""save and load: one sealed file (see `mvkit.core.safe_file`), a JSON header and weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mvkit._version import __version__
from mvkit.core import safe_file
from mvkit.core.devices import device_of
from mvkit.core.noise import kept_global
from mvkit.errors import CheckpointError, MvkitError
from mvkit.models.claimed_tensors import REALS, Allowance, check_tensors
from mvkit.models.ensemble import Ensemble
from mvkit.models.model import Model
from mvkit.models.multimodal import MultimodalModel, check_model
from mvkit.models.package_versions import (
    PACKAGE,
    changed_packages,
    migrated,
    warn_of_other_options,
)
from mvkit.models.refiners import install as install_refiner
from mvkit.models.samplers import built, install
from mvkit.models.stack import Stack
from mvkit.registry import plugins
from mvkit.registry.spec import as_part, is_spec

Header = dict[str, Any]  # plain JSON data
Modules = Mapping[str, nn.Module] | None

MAY_BE_NAN = ("conditions.rows", ".typical_exposure")  # where NaN means that nothing is known


def save(model: MultimodalModel | Ensemble, path: safe_file.Target) -> None:
    """Writes a model, or an ensemble of models: specs with all defaults, weights, buffers.

    The file appears complete or not at all: a temporary file beside it is written, synced and
    renamed. A binary file object takes the same bytes from where it stands, and is cut there if
    writing fails. A network that replaced an encoder's or a decoder's after the model was made is
    saved as a module of the user's, which `load` is given.

    Args:
        model: the model, or the ensemble.
        path: of the file; or a binary file object, such as `io.BytesIO()`.

    Raises:
        CheckpointError: another part was replaced or added after the model was made.
        RequestError: neither a path nor a binary file object.
        OSError: when the folder cannot be written; nothing is left behind.

    Example:
        >>> import pathlib, tempfile, mvkit
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> mvkit.save(mvkit.Model({"a": (2,)}, latent_dim=1, seed=0), path)
        >>> path.is_file()
        True
    """
    if isinstance(model, Ensemble):
        headers = [header_of(member) for member in model.members]
        header = {**headers[0], "model": model.header()}
    else:
        check_model(model, "save")
        header = header_of(model)
    safe_file.write(path, header, model.state_dict())


def header_of(model: MultimodalModel) -> Header:
    """What a file says of its model, beside the weights.

    Raises:
        CheckpointError: parts were replaced that the header cannot name.
    """
    model.check_savable()
    samplers = [sampler.spec for sampler in model.samplers.values()]
    refiners = [refiner.spec for refiner in model.refiners.values()]
    specs = (model.spec, *samplers, *refiners, *model.adopted_objectives())
    return {
        "model": model.header(),
        "dtype": str(model.like.dtype).removeprefix("torch."),
        "mvkit": __version__,
        "packages": _packages(specs),
    }


def _packages(value: Any) -> dict[str, str]:
    """Versions of the third-party packages that the parts of a spec come from."""
    packages = {}
    if is_spec(value):
        entry = plugins.find_entry(type(value))
        if entry is not None and entry.package != "mvkit":
            packages[entry.package] = entry.version
        value = vars(value)
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple):
        for item in value:
            packages.update(_packages(item))
    return packages


def load(
    path: safe_file.Stored,
    *,
    encoders: Modules = None,
    decoders: Modules = None,
    modules: Modules = None,
    device: str | torch.device = "cpu",
) -> Model | Stack | Ensemble:
    """Reads a model, or an ensemble, back, in evaluation mode.

    A header that describes far more than the tensors of the file is refused before it is built.
    Weights that are NaN are named in a warning.

    Args:
        path: a file written by `save`; or its bytes, or a binary file object, which is read to
            its end.
        encoders: the modules that were given as encoders when the model was made, by modality.
        decoders: likewise.
        modules: other modules of the user's, by their path in the header (`aggregator.network`).
        device: where to put it; `auto`: an accelerator if there is one.

    Raises:
        RequestError: a device that is not there; neither a path, nor bytes or a file object.
        CheckpointError: truncated, altered, of an unknown format, no checkpoint of mvkit at all,
            tensors that are not those of its header, a package that is not installed, or a module
            that was not given.

    Example:
        >>> import pathlib, tempfile, mvkit, torch
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> model = mvkit.Model({"a": (2,)}, latent_dim=1, seed=0)
        >>> mvkit.save(model, path)
        >>> rows = {"a": torch.zeros(3, 2)}
        >>> torch.equal(mvkit.load(path).encode(rows), model.encode(rows))
        True
    """
    place = device_of(device)
    where = safe_file.name_of(path)
    header, weights = safe_file.read(path)
    try:
        given = dict(modules or {})
        for side, by_name in (("encoder", encoders), ("decoder", decoders)):
            for name, module in (by_name or {}).items():
                given[f"modalities.{name}.{side}"] = module
        return _loaded(header, weights, given, where).to(place).eval()
    except CheckpointError as error:
        note = changed_packages(header)
        if note:
            raise CheckpointError(f"{error}{note}") from error
        raise
    except (MvkitError, RuntimeError, TypeError, LookupError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"{where}: the model cannot be built again: {type(error).__name__}: {error}"
            f"{safe_file.other_version(header)}{changed_packages(header)}"
        ) from error


def load_model(path: safe_file.Stored) -> Model | Stack:
    """Reads one model back, as `load` does.

    Raises:
        CheckpointError: as `load`; or the file holds an ensemble.
    """
    model = load(path)
    if isinstance(model, Ensemble):
        raise CheckpointError(
            f"{safe_file.name_of(path)}: an ensemble of {len(model)} models; expected one model; "
            "save one of its members into a file of its own"
        )
    return model


def _loaded(
    header: Header, weights: dict[str, Tensor], given: dict[str, nn.Module], where: str
) -> Model | Stack | Ensemble:
    """The model of a header and its weights, with the user's modules by path."""
    if "training" in header:
        raise CheckpointError(
            f"{where}: the state of a training run; load the run's best.safetensors or "
            "model.safetensors, or resume it with mvkit.fit(…, checkpoint=…, resume='auto')"
        )
    header = migrated(header, where)
    externals = list(_externals(header["model"]))
    classes = {path: container[key]["external"] for path, container, key in externals}
    _check_given(classes, given, where)
    _require_packages(header, where)
    for path, container, key in externals:
        container[key] = given[path]
    dtype = _dtype(header, where)
    # the weights drawn here are overwritten
    with kept_global(), Allowance(weights, where):
        model = _all_rebuilt(header["model"])
    check_tensors(model, weights, given.values(), where)
    model.to(dtype).load_state_dict(weights)
    _warn_of_nan(model, where)
    warn_of_other_options(header, model.header(), where)
    return model


def _dtype(header: Header, where: str) -> torch.dtype:
    """The kind of floating-point numbers that the model computes in."""
    names = {str(dtype).removeprefix("torch."): dtype for dtype in REALS}
    name = header["dtype"]
    if name not in names:
        expected = " or ".join(map(repr, names))
        raise CheckpointError(
            f"{where}: a model in {name!r}; expected {expected}; take another copy"
        )
    return names[name]


def _warn_of_nan(model: nn.Module, where: str) -> None:
    """Warns of weights that are NaN, by name."""
    broken = []
    for name, values in model.state_dict().items():
        if name.endswith(MAY_BE_NAN):
            continue
        if values.is_floating_point() and bool(values.isnan().any()):
            broken.append(name)
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        warnings.warn(
            f"{where}: {', '.join(broken[:3])}{more} hold NaN, and so will what the model "
            "returns; take an earlier checkpoint",
            stacklevel=4,
        )


def _all_rebuilt(header: Header) -> Model | Stack | Ensemble:
    """The model, or the ensemble of models, of a header, with fresh weights."""
    if header["name"] != "ensemble":
        return rebuilt(header)
    return Ensemble([rebuilt(model) for model in header["models"]], header["seeds"])


def rebuilt(header: Header, seed: int | None = None) -> Model | Stack:
    """The model of `model.header()`, with fresh weights, drawn from a seed if one is given."""
    options = dict(header)
    samplers = options.pop("samplers", [])
    fitted_to = options.pop("samplers_fitted_to", {})
    covariate_rows = options.pop("covariate_rows", 0)
    objectives = options.pop("objectives", [])
    refiners = options.pop("refiners", {})
    refined_to = options.pop("refined_to", {})
    training_rows = options.pop("training_rows", None)
    placed = options.pop("placed", False)
    model: Model | Stack
    if options.pop("name") == "stack":
        levels = [cast(Model, rebuilt(level, seed)) for level in options.pop("levels")]
        model = Stack(levels, **options)
    else:
        modalities = options["modalities"]
        options["modalities"] = {name: modalities[name] for name in options.pop("order")}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the user saw them when the model was made
            model = Model(**options, seed=seed)
        if model.conditions is not None:
            model.conditions.keep(covariate_rows)
    for objective in objectives:
        model.adopt(objective, seed=None if seed is None else 0)  # as a stack does
    model.training_rows = training_rows
    model.placed = bool(placed)
    for sampler in samplers:
        spec = as_part("sampler", sampler)
        install(model, spec, built(model, spec))
    model.fitted_to = dict(fitted_to)
    for name, refiner in refiners.items():
        install_refiner(model, name, refiner)
    model.refined_to = dict(refined_to)
    return model


def describe(path: safe_file.Stored) -> Header:
    """The checked header of what `save` wrote: format, versions, packages, the model's specs.

    Example:
        >>> import pathlib, tempfile, mvkit
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> mvkit.save(mvkit.Model({"a": (2,)}, latent_dim=1, seed=0), path)
        >>> mvkit.describe(path)["model"]["latent_dim"]
        1
    """
    return safe_file.read_header(path)


def _externals(container: Any, path: str = "") -> Iterator[tuple[str, Any, str | int]]:
    """Modules of the user's in a header: path, and the dict or list with the key of the item."""
    items = enumerate(container) if isinstance(container, list) else container.items()
    for key, item in items:
        inner = f"{path}.{key}".lstrip(".")
        match item:
            case {"external": str()} if len(item) == 1:
                yield inner, container, key
            case dict() | list():
                yield from _externals(item, inner)


def _check_given(classes: dict[str, str], given: dict[str, nn.Module], where: str) -> None:
    """Raises CheckpointError unless the paths of the modules wanted and given are the same."""
    missing = [path for path in classes if path not in given]
    if missing:
        listed = ", ".join(f"{path} ({classes[path]})" for path in missing)
        raise CheckpointError(
            f"{where}: {listed}: modules of the user's, whose code no file holds; give modules "
            f"like them: mvkit.load(path, {_arguments(missing)})"
        )
    for path in given:
        if path not in classes:
            raise CheckpointError(
                f"{where}: {path} was no module of the user's when the model was saved; leave it "
                "out"
            )


def _arguments(missing: list[str]) -> str:
    """The arguments of `load` that give the missing modules."""
    arguments: dict[str, list[str]] = {"modules": [], "encoders": [], "decoders": []}
    for path in missing:
        match path.split("."):
            case ["modalities", name, "encoder" | "decoder" as side]:
                arguments[f"{side}s"].append(f"{name!r}: …")
            case _:
                arguments["modules"].append(f"{path!r}: …")
    return ", ".join(
        f"{name}={{{', '.join(items)}}}" for name, items in arguments.items() if items
    )


def _require_packages(header: Header, where: str) -> None:
    """Raises CheckpointError for a package of the header that offers no parts here."""
    plugins.registry().scan()
    offered = {entry.package for entry in plugins.registry().entries}
    for package, version in header.get("packages", {}).items():
        if package in offered:
            continue
        if not PACKAGE.fullmatch(f"{package}=={version}"):  # nobody shall run what is said below
            raise CheckpointError(
                f"{where}: needs the package {package!r}, version {version!r}, which no package "
                "can be called; take another copy"
            )
        if package == "local":
            raise CheckpointError(
                f"{where}: it has parts of a session; call mvkit.plugins.declare(…) for them, "
                "then load"
            )
        problems = "".join(f"; note that {problem}" for problem in plugins.problems())
        raise CheckpointError(
            f"{where}: this checkpoint needs {package} {version}, which offers no parts here: "
            f"pip install {package}=={version}{problems}"
        )
