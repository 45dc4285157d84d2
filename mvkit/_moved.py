"""Where modules went when the package got folders: old paths work for one version, with a
DeprecationWarning.

`MOVED` lists, for each module of version 0.1, the modules that hold its names now; `RENAMED` the
names that changed.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType

MOVED = {
    "aggregators": (
        "parts.aggregators.aggregator",
        "parts.aggregators.products",
        "parts.aggregators.mixtures",
        "parts.families",
        "core.mixture",
    ),
    "assembly": ("models.build",),
    "batch": ("core.batch",),
    "bounds": ("core.bounds",),
    "builtins": ("registry.builtin_parts",),
    "checkpoint": ("models.checkpoint",),
    "clusters": ("models.pruning",),
    "composed": ("parts.objectives.published",),
    "config": ("apps.run_file",),
    "data.feeds": ("data.sources",),
    "estimates": ("models.inference", "models.importance_sampling", "models.clusters"),
    "events": ("training.events",),
    "experts": ("core.experts",),
    "families": ("core.family", "parts.families"),
    "fusion": (
        "parts.aggregators.products",
        "parts.aggregators.messages",
        "parts.aggregators.barycentre",
    ),
    "generation": ("models.generation", "core.noise"),
    "generative": ("models.multimodal",),
    "hierarchy": ("parts.top_down",),
    "history": ("training.history",),
    "imputation": ("models.imputation", "models.imputed", "models.embedding"),
    "joint": ("parts.aggregators.joint_encoder", "parts.aggregators.messages"),
    "likelihoods": ("core.likelihood", "parts.likelihoods"),
    "losses": ("core.loss",),
    "mechanism": ("models.multimodal",),
    "mixture": ("core.mixture",),
    "modality": ("core.modality", "core.decoding"),
    "model": ("models.model",),
    "networks": ("parts.networks", "core.experts"),
    "noise": ("core.noise",),
    "objectives": (
        "parts.objectives.objective",
        "parts.objectives.elbo",
        "parts.objectives.importance_weighted",
        "parts.objectives.composite",
    ),
    "plugins": ("registry.plugins",),
    "posterior": ("core.posterior",),
    "priors": ("parts.priors", "parts.posterior_priors"),
    "private": ("core.decoding",),
    "products": ("core.product_of_experts",),
    "runs": ("training.run_folder",),
    "samplers": ("parts.samplers", "models.samplers"),
    "sealed": ("core.safe_file",),
    "spec": ("registry.spec",),
    "stack": ("models.stack", "models.levels"),
    "stages": ("training.stages", "training.annealing", "training.optimizers"),
    "terms": ("core.terms",),
    "train": ("training.fit",),
    "values": ("core.validation", "core.raw_values"),
}
RENAMED = {
    "builtins.ELSEWHERE": "EXTERNAL_PARTS",
    "generative.Generative": "MultimodalModel",
    "mechanism.Mechanism": "MultimodalModel",
    "aggregators.refuse_product": "check_product",
    "values.Layout": "Schema",
}


class MovedModule(ModuleType):
    """Stands for a module of version 0.1; looks its names up where they are now."""

    def __getattr__(self, name: str) -> object:
        old = self.__name__.removeprefix("mvkit.")
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        current = RENAMED.get(f"{old}.{name}", name)
        for module in MOVED[old]:
            path = f"mvkit.{module}"
            value = getattr(importlib.import_module(path), current, None)
            if value is not None:
                _warn(f"{self.__name__}.{name}", f"{path}.{current}")
                return value
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class Package(ModuleType):
    """`mvkit` itself, whose names the stand-ins of modules leave as they are: `mvkit.spec` stays
    the decorator when the old module of that name is imported.
    """

    def __setattr__(self, name: str, value: object) -> None:
        """What the import system does with a module that it has loaded, among others."""
        if not (isinstance(value, MovedModule) and name in self.__dict__):
            super().__setattr__(name, value)


class MovedFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of `MOVED`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The spec of a module that moved; None for others."""
        package, _, old = fullname.partition(".")
        if package != "mvkit" or old not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """The stand-in."""
        return MovedModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run; `mvkit.plugins`, which users name as an attribute, becomes the module
        itself.
        """
        if module.__name__ == "mvkit.plugins":
            _warn("the module mvkit.plugins", "mvkit.registry")
            sys.modules["mvkit.plugins"] = importlib.import_module("mvkit.registry.plugins")


def _warn(old: str, new: str) -> None:
    warnings.warn(
        f"{old} is now {new}; the old path goes with the next version",
        DeprecationWarning,
        stacklevel=3,
    )


def install() -> None:
    """Makes old paths importable."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder())
        sys.modules["mvkit"].__class__ = Package
