"""What a model prints: its parts, shapes and parameter counts."""

from __future__ import annotations

from typing import Protocol, cast

from torch import nn

from mvkit.core.covariates import Covariate
from mvkit.core.missingness import Missingness
from mvkit.core.modality import Modality
from mvkit.models.build import ModelSpec
from mvkit.models.penalties import penalised

SHOWN = 8  # levels of a covariate


class Described(Protocol):
    """A model that is printed."""

    spec: ModelSpec
    modalities: dict[str, Modality]
    latent_dim: int
    objectives: nn.ModuleDict
    encoders: nn.ModuleDict
    decoders: nn.ModuleDict
    missingness: Missingness | None
    samplers: nn.ModuleDict
    refiners: nn.ModuleDict


def describe(self: Described) -> str:
    """Parts, shapes and parameter counts, a line for each."""
    spec = self.spec
    total = _count(self)
    lines = [f"Model({total} parameters, latent_dim={self.latent_dim}, family={spec.family!r})"]
    for kind in ("aggregator", "prior"):
        lines.append(f"  {kind:<11}{getattr(spec, kind)!r}: {_count(getattr(self, kind))}")
    lines.append(f"  {'objective':<11}{spec.objective!r}")
    for key, module in self.objectives.items():
        lines.append(f"  {'trained':<11}objectives.{key}: {_count(module)}")
    for path in penalised(cast(nn.Module, self)):
        lines.append(f"  {'penalty':<11}{path}")
    if spec.missingness is not None:
        lines.append(f"  missingness {spec.missingness!r}: {_count(self.missingness)}")
    for name, covariate in spec.covariates.items():
        lines.append(f"  {'covariate':<11}{name}: {_covariate(covariate)}")
    for name in self.modalities:
        lines += _modality(self, name)
    for name, refiner in self.refiners.items():
        lines.append(f"  {'refiner':<11}{name}: {refiner.spec!r}: {_count(refiner)}")
    return "\n".join(lines + sampler_lines(self.samplers))


def sampler_lines(samplers: nn.ModuleDict) -> list[str]:
    """A line for each fitted sampler."""
    return [f"  {'sampler':<11}{sampler.spec!r}" for sampler in samplers.values()]


def _modality(self: Described, name: str) -> list[str]:
    """What a modality is, and the networks that read and write it."""
    modality = self.modalities[name]
    facts = [str(modality.shape), repr(modality.likelihood)]
    facts += [repr(step) for step in modality.transform]
    if modality.exposure is not None:
        facts.append(f"exposure={modality.exposure!r}")
    if modality.private_dim:
        facts.append(f"private_dim={modality.private_dim} from {self.spec.private_from}")
    return [
        f"  {name}: {', '.join(facts)}",
        f"    encoder {_network(modality.encoder)}: {_count(self.encoders[name])}",
        f"    decoder {_network(modality.decoder)}: {_count(self.decoders[name])}",
    ]


def _covariate(covariate: Covariate) -> str:
    """What a covariate can be, which networks see it, and what happens to rows without it."""
    facts = ["a number"]
    if covariate.levels:
        shown = [repr(level) for level in covariate.levels[:SHOWN]]
        if len(covariate.levels) > SHOWN:
            shown.append(f"… {len(covariate.levels):,} levels")
        facts = [", ".join(shown)]
    facts.append(f"into {', '.join(covariate.into)}")
    if covariate.missing != "error":
        facts.append(f"missing={covariate.missing!r}")
    return "; ".join(facts)


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
