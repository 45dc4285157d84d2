"""What an objective is: which terms it asks a model for, and which bound it makes of them.

Losses are averaged over all rows of the batch, whatever modalities they lack. Axes: b rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from mvkit.core.batch import Batch
from mvkit.core.experts import Experts
from mvkit.core.loss import Loss
from mvkit.core.modality import PartLike, Sizes
from mvkit.core.posterior import Posterior
from mvkit.errors import SpecError, suggest
from mvkit.parts.latent_model import LatentModel
from mvkit.registry import plugins

ObjectiveLike = PartLike
DRAWS = ("stratified", "iid", "balanced")


class Objective(ABC):
    """Turns a batch into a loss.

    To implement one, decorate a subclass with `@spec`, give it a `kl_weight` that multiplies every
    KL-like part (ramps act on it), and write `forward`. Draw from `experts.generator`. `build` may
    refuse options that do not fit the model.

    An objective with parameters of its own (a temperature, a critic) makes them in `modules`, and
    finds them by `model.trained(self)` in `forward`: the model holds them as `objectives.<key>`,
    so that `fit` trains them and files keep them. One whose value of a row depends on the other
    rows of the batch sets `couples_rows`, and looks at them through `mvkit.core.all_rows`.

    Example:
        >>> import mvkit
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, objective="iwae", seed=0)
        >>> isinstance(model.objective, mvkit.Objective)
        True
    """

    kl_weight: float
    trains_unimodal = False  # whether it trains each unimodal posterior, whatever a row observes
    whole_density = False  # whether it takes the density of the mixture, not of its components
    needs_experts = False  # whether it looks at unimodal experts, which not every aggregator has
    couples_rows = False  # whether the value of a row depends on the other rows of the batch
    needs_refiners = False  # whether it trains refiners, which no new model has
    needs_opponent = False  # whether it makes sense only in a stage with an opponent

    @abstractmethod
    def forward(self, model: LatentModel, batch: Batch, experts: Experts) -> Loss:
        """The loss of a conformed batch whose experts are given."""

    def build(self, sizes: Sizes) -> Objective:
        """The objective itself, after checks."""
        return self

    def modules(self, sizes: Sizes) -> nn.Module | None:
        """Fresh modules with the parameters that it trains; None: it has none.

        Args:
            sizes: what is known of the model.
        """
        return None

    @cached_property
    def key(self) -> str:
        """What its modules are called in a model: its registered name, or that of its class.

        An objective may have an option of this name instead.
        """
        name = plugins.name_of("objective", type(self)) or type(self).__name__
        return name.rpartition("/")[2]  # without its package

    @property
    def inner(self) -> tuple[Objective, ...]:
        """The objectives that it is made of: those among its fields."""
        return tuple(_objectives_in(tuple(vars(self).values())))


def _objectives_in(value: object) -> Iterator[Objective]:
    """The objectives in a value, and in the lists and mappings in it."""
    if isinstance(value, Objective):
        yield value
    elif isinstance(value, Mapping):
        yield from _objectives_in(tuple(value.values()))
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _objectives_in(item)


def check_names(names: Iterable[object], known: Collection[str], path: str) -> None:
    """Raises SpecError if one of `names` is no modality of the model."""
    for name in names:
        if name not in known:
            raise SpecError(f"no modality {name!r}; {suggest(str(name), known)}", path)


def active_rows(posterior: Posterior, batch: Batch) -> Tensor:
    """Rows that objectives count, (b,) bool."""
    if posterior.active is not None:
        return posterior.active
    return torch.ones_like(batch.observed[:, 0])
