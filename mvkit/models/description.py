"""What a model prints: its parts, shapes and parameter counts."""

from __future__ import annotations

from typing import Protocol

from torch import nn

from mvkit.core.modality import Modality
from mvkit.models.build import ModelSpec


class Described(Protocol):
    """A model that is printed."""

    spec: ModelSpec
    modalities: dict[str, Modality]
    latent_dim: int
    encoders: nn.ModuleDict
    decoders: nn.ModuleDict


def describe(self: Described) -> str:
    """Parts, shapes and parameter counts, a line for each."""
    spec = self.spec
    total = _count(self)
    lines = [f"Model({total} parameters, latent_dim={self.latent_dim}, family={spec.family!r})"]
    for kind in ("aggregator", "prior"):
        lines.append(f"  {kind:<11}{getattr(spec, kind)!r}: {_count(getattr(self, kind))}")
    lines.append(f"  {'objective':<11}{spec.objective!r}")
    for name, modality in self.modalities.items():
        facts = [str(modality.shape), repr(modality.likelihood)]
        facts += [repr(step) for step in modality.transform]
        if modality.private_dim:
            facts.append(f"private_dim={modality.private_dim} from {spec.private_from}")
        encoder = self.encoders[name]
        decoder = self.decoders[name]
        lines.append(f"  {name}: {', '.join(facts)}")
        lines.append(f"    encoder {_network(modality.encoder)}: {_count(encoder)}")
        lines.append(f"    decoder {_network(modality.decoder)}: {_count(decoder)}")
    return "\n".join(lines)


def _count(module: object) -> str:
    """How many parameters a part has."""
    if not isinstance(module, nn.Module):
        return "0"
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"


def _network(network: object) -> str:
    """A network's options, or the class of a module of the user's."""
    if isinstance(network, nn.Module):
        return f"external {type(network).__name__}"
    return repr(network)
