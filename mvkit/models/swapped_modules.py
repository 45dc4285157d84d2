"""Parts of a model that were replaced after it was made, of which its specs know nothing.

Networks of encoders and decoders are then saved as modules of the user's; anything else is refused
when the model is saved, because the file could not be read back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from torch import Tensor, nn

from mvkit.core.decoder import Decoder
from mvkit.core.digests import digest
from mvkit.core.modality import Modality
from mvkit.errors import CheckpointError
from mvkit.registry.spec import is_spec

Architecture = dict[str, str]  # what stands at each path of a model
UNTOLD = (nn.ParameterList, nn.ParameterDict, nn.Dropout)
APART = ("samplers.", "refiners.", "levels.", "conditions.")  # saved, or compared, by themselves


def architecture(model: nn.Module, spec: object) -> Architecture:
    """The class of each module of a model and the shape of each tensor, by path.

    Modules of the user's that a spec holds are left out: whoever loads the model gives them.
    """
    given = {id(module) for module in _modules_in(spec)}
    outside = tuple(
        f"{path}." for path, module in model.named_modules() if path and id(module) in given
    )
    parts: Architecture = {}
    for path, module in model.named_modules():
        if path and not f"{path}.".startswith((*APART, *outside)):
            parts[path] = _described(module)
    for path, value in model.state_dict().items():
        if not path.startswith((*APART, *outside)):
            parts[path] = str(tuple(value.shape)) if isinstance(value, Tensor) else "other"
    return parts


def _modules_in(value: Any) -> Iterator[nn.Module]:
    """Modules that a spec holds, at any depth."""
    if isinstance(value, nn.Module):
        yield value
    elif is_spec(value):
        yield from _modules_in(tuple(vars(value).values()))
    elif isinstance(value, Mapping):
        yield from _modules_in(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _modules_in(item)


def _described(module: nn.Module) -> str:
    """A module's class; of torch's own layers, also their options."""
    kind = type(module)
    # containers would tell where and in what type their parameters are
    known = kind.__module__.startswith("torch.nn.modules.") and not isinstance(module, UNTOLD)
    options = module.extra_repr() if known else ""
    return f"{kind.__name__}({options})"


def with_swapped_networks(
    modalities: Mapping[str, Modality],
    encoders: nn.ModuleDict,
    decoders: nn.ModuleDict,
    changes: Mapping[str, str],
) -> dict[str, Modality]:
    """Modalities that hold the networks as they are now, where these are not what was built.

    Args:
        modalities: as the model was made.
        encoders: as they are now.
        decoders: likewise.
        changes: paths that differ from what was built.
    """
    current = {}
    for name, modality in modalities.items():
        encoder, decoder = encoders[name], decoders[name]
        place = f"encoders.{name}"
        if _differs(place, encoder, modality.encoder, changes):
            modality = attrs.evolve(modality, encoder=encoder)  # type: ignore[misc]
        network = decoder.network if isinstance(decoder, Decoder) else None
        place = f"decoders.{name}.network"
        if network is not None and _differs(place, network, modality.decoder, changes):
            modality = attrs.evolve(modality, decoder=network)  # type: ignore[misc]
        current[name] = modality
    return current


def _differs(place: str, module: nn.Module, given: object, changes: Mapping[str, str]) -> bool:
    """Whether a network is not what the spec says."""
    if isinstance(given, nn.Module):
        return module is not given
    return any(f"{path}.".startswith(f"{place}.") for path in changes)


def changes(self: Any) -> dict[str, str]:
    """What was replaced or added since a model was made, in words, by path."""
    if self.built_as is None:
        return {}
    then, now = self.built_as, architecture(self, self.spec)
    differences = {}
    for path in sorted({*then, *now}):
        if then.get(path) != now.get(path):
            before, after = then.get(path, "nothing"), now.get(path, "nothing")
            differences[path] = f"{before} when the model was made, {after} now"
    return differences


def digest_of_weights(model: nn.Module) -> str | None:
    """A digest of the weights of a model, without its samplers and refiners; None on the meta
    device.
    """
    tensors = {}
    for path, value in model.state_dict().items():
        if not path.startswith(("samplers.", "refiners.")):
            tensors[path] = value
    if any(isinstance(value, Tensor) and value.is_meta for value in tensors.values()):
        return None
    return digest(tensors)


def check_savable(self: Any) -> None:
    """Raises CheckpointError, which names it, for a change to a model that no file can hold."""
    check_changes(self.changes(), {})


def check_changes(changes: Mapping[str, str], modalities: Mapping[str, Modality]) -> None:
    """Raises CheckpointError for a change that no file can hold.

    Args:
        changes: paths that differ from what was built.
        modalities: as they are saved, with the networks that were replaced.
    """
    networks: list[str] = []
    for name, modality in modalities.items():
        if isinstance(modality.encoder, nn.Module):
            networks.append(f"encoders.{name}.")
        if isinstance(modality.decoder, nn.Module):
            networks.append(f"decoders.{name}.network.")
    for path, change in changes.items():
        if f"{path}.".startswith(tuple(networks)):
            continue
        raise CheckpointError(
            f"save: {path} was changed after the model was made ({change}), which its specs do "
            "not say, so that no file could be read back; expected parts as they were built; "
            f"{_remedy(path)}"
        )


def _remedy(path: str) -> str:
    kind, _, rest = path.partition(".")
    if kind == "decoders":
        name = rest.partition(".")[0]
        return f"replace its network alone: model.decoders[{name!r}].network = …"
    if kind in ("prior", "aggregator", "family"):
        return (
            f"make a model with the part you mean: Model(…, {kind}=…), and take over its other "
            "weights by load_state_dict"
        )
    return "put it into an encoder, a decoder or a part of its own (mvkit.plugins.declare)"
