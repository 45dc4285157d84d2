"""Trained modules of objectives, which a model holds by their keys as `objectives.<key>`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import attrs
from torch import Tensor, nn

from mvkit.core.modality import PartLike, Sizes
from mvkit.core.noise import global_seed, seed_of_name
from mvkit.errors import RequestError, SpecError
from mvkit.models.swapped_modules import digest_of_weights
from mvkit.parts.objectives.objective import Objective
from mvkit.registry import plugins
from mvkit.registry.spec import as_part

Shapes = dict[str, tuple[int, ...]]


class Holder(Protocol):
    """A model that holds the modules of objectives."""

    spec: Any
    objectives: nn.ModuleDict
    adopted: list[Objective]
    training: bool

    @property
    def sizes(self) -> Sizes:
        """What parts are told of the model."""

    @property
    def like(self) -> Tensor:
        """A tensor of the model's dtype and device."""

    def build_objective(self, objective: PartLike) -> Objective:
        """An objective by name or spec, checked against this model."""

    def note_new(self, kind: str) -> None:
        """Takes parts as they are now for what the model was made with."""


def every_objective(objective: Objective) -> Iterator[Objective]:
    """An objective, and those that it is made of, at any depth."""
    yield objective
    for inner in objective.inner:
        yield from every_objective(inner)


def add_modules(
    held: nn.ModuleDict, objective: Objective, sizes: Sizes, seed: int | None = None
) -> None:
    """Adds the modules that an objective trains, and those that it is made of, by their keys.

    Objectives of one key share what is held.

    Args:
        held: modules by key.
        objective: whose modules are added.
        sizes: what objectives are told of the model.
        seed: of their weights, with their keys; None: torch's global state.

    Raises:
        SpecError: a key that cannot be one, or that of other modules.
    """
    for part in every_objective(objective):
        module = _made(part, sizes, seed)
        if module is None:
            continue
        if part.key in held:
            _check_same(part, module, held[part.key])
        else:
            held[part.key] = module


def _made(part: Objective, sizes: Sizes, seed: int | None) -> nn.Module | None:
    """The fresh modules of one objective, with weights drawn from a seed and its key."""
    key = part.key
    drawn: AbstractContextManager[None] = contextlib.nullcontext()
    if seed is not None:
        drawn = global_seed(seed_of_name(seed, key))
    with drawn, plugins.error_context(type(part), "when its modules were made"):
        module: object = part.modules(sizes)
    if module is None:
        return None
    name = type(part).__name__
    if not isinstance(module, nn.Module):
        raise SpecError(
            f"{name}.modules returned a {type(module).__name__}; expected an nn.Module, or None"
        )
    if not key or "." in key or hasattr(nn.ModuleDict(), key):
        raise SpecError(
            f"the modules of {name} cannot be called {key!r}: dots and attributes of torch "
            "modules are taken; give it another key"
        )
    return module


def _check_same(part: Objective, module: nn.Module, held: nn.Module) -> None:
    """Raises SpecError unless an objective can share the modules that are held under its key."""
    own, others = _shapes(module), _shapes(held)
    if own != others:
        raise SpecError(
            f"two objectives of the key {part.key!r} train different modules, {own} and {others}; "
            "expected the same shapes, which they then share; give one of them another key"
        )


def _shapes(module: nn.Module) -> Shapes:
    """The shape of each tensor of a module, by name."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def adopt(self: Holder, objective: PartLike, *, seed: int | None = None) -> None:
    """Makes the trained modules of an objective a part of the model, unless it holds them.

    `fit` does so for the objectives of its stages.

    Args:
        self: the model.
        objective: an objective by name or spec.
        seed: of the initial weights, which depend on the objective's key too; None: torch's
            global state.

    Raises:
        SpecError: its modules are not like those that the model holds under its key.
    """
    spec = as_part("objective", objective)
    held = nn.ModuleDict(dict(self.objectives.items()))
    with global_seed(None):
        add_modules(held, self.build_objective(spec), self.sizes, seed)
    fresh = {key: module for key, module in held.items() if key not in self.objectives}
    if not fresh:
        return
    like = self.like
    with seeded_again(self):
        for key, module in fresh.items():
            self.objectives[key] = module.to(like).train(self.training)
        self.adopted.append(spec)
        self.note_new("objectives")


@contextlib.contextmanager
def seeded_again(model: Any) -> Iterator[None]:
    """Inside, a model gets modules; if its weights are those that its seed gave, they still are
    after it.
    """
    seeded = model.seeded_weights
    untouched = seeded is not None and seeded == digest_of_weights(model)
    yield
    if untouched:
        model.seeded_weights = digest_of_weights(model)


def trains_modules_of(self: Holder, objective: PartLike) -> bool:
    """Whether an objective, or one that it is made of, has trained modules."""
    modules = nn.ModuleDict()
    with global_seed(None):
        add_modules(modules, self.build_objective(objective), self.sizes)
    return len(modules) > 0


def trained(self: Holder, objective: Objective) -> Any:
    """The modules of an objective that has trained parameters, as it made them.

    Raises:
        RequestError: the model does not hold them.
    """
    key = objective.key
    if key not in self.objectives:
        raise RequestError(
            f"the model holds no modules of the objective {key!r}, which has trained parameters; "
            "expected those that model.adopt(objective) adds, or mvkit.fit for its stages; call "
            "one of them before"
        )
    return self.objectives[key]


def check_growth(self: Holder, covariate: str) -> None:
    """Raises RequestError if the modules of objectives have parameters of each level of a
    covariate, which is to have one more.
    """
    if not len(self.objectives):
        return
    sizes = self.sizes
    levels = {**sizes.levels, covariate: sizes.levels[covariate] + 1}
    contexts = {side: width + 1 for side, width in sizes.contexts.items()}
    grown = attrs.evolve(sizes, levels=levels, contexts=contexts)
    for objective in (self.spec.objective, *self.adopted):
        held = nn.ModuleDict(dict(self.objectives.items()))
        try:
            add_modules(held, self.build_objective(objective), grown, seed=0)
        except SpecError as error:
            raise RequestError(
                "add_level: the modules of an objective have parameters of each level, and do not "
                f"grow: {error}; make a new model with all levels"
            ) from None
