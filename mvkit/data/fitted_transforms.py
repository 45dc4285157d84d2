"""Transforms fitted to the values of a modality, which then sees them through these.

Axes: b rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from mvkit.core.modality import Modality, Sizes
from mvkit.data.align import check_values
from mvkit.data.transforms import Shape, Steps, Transform
from mvkit.errors import SpecError, within
from mvkit.registry.spec import as_part


def fitted(name: str, modality: Modality, x: Tensor, wanted: Steps) -> Modality:
    """A modality that sees its raw values x (b, *shape) through transforms fitted to them.

    Its likelihood becomes that of the transforms where they need one, and normal where it cannot
    take their values. NaN where missing.

    Raises:
        DataError: a value that a transform cannot take, with row and column.
    """
    where = f"data[{name!r}]"
    names = modality.features
    wanted_steps = checked_steps(name, modality, wanted)
    fault = "is not finite; expected finite numbers; correct it, or make it NaN"
    check_values(torch.isinf(x), where, fault, names, x=x)
    seen = ~torch.isnan(x)
    steps: list[Transform] = []
    for step in wanted_steps:
        step = step.fit(x, names, where)
        fault = f"cannot be taken by {step!r}; expected {step.support}"
        check_values(step.out_of_support(x) & seen, where, fault, names, x=x)
        x = step.forward(torch.where(seen, x, 0.0))
        if not step.classes:
            x = torch.where(seen, x, torch.nan)
        steps.append(step)
    taken = False
    if likelihood_of(steps) is None:
        live = modality.likelihood.build(Sizes.alone(modality))
        taken = not live.class_axis and not bool((live.out_of_support(x) & seen).any())
    return with_steps(modality, steps, tuple(x.shape[1:]), taken=taken)


def checked_steps(name: str, modality: Modality, wanted: Steps) -> list[Transform]:
    """The transforms that are wanted for a modality, first to last.

    Raises:
        SpecError: one that cannot be there.
    """
    path = f"fit_transforms.{name}"
    if any(step.words for step in modality.transform):
        raise SpecError("its values number words, which one_hot takes already; leave it out", path)
    steps: list[Transform] = []
    for part in wanted if isinstance(wanted, list | tuple) else [wanted]:
        if steps and steps[-1].classes:
            raise SpecError("one_hot comes last; put the others before it", path)
        with within(path):
            steps.append(as_part("transform", part))
    return steps


def with_steps(
    modality: Modality, steps: Sequence[Transform], shape: Shape, *, taken: bool
) -> Modality:
    """A modality with fitted transforms, whose values have a shape after them.

    Args:
        modality: as it was given.
        steps: fitted, first to last.
        shape: of a row after them.
        taken: whether its likelihood takes all transformed values; else it becomes normal.
    """
    needed = likelihood_of(steps)
    likelihood = modality.likelihood if taken else "normal"
    changes = {"shape": shape, "likelihood": needed or likelihood, "transform": tuple(steps)}
    return attrs.evolve(modality, **changes)  # type: ignore[misc]


def likelihood_of(steps: Sequence[Transform]) -> str | None:
    """The likelihood that transforms need, if they need one."""
    needed = [step.likelihood for step in steps if step.likelihood]
    return needed[-1] if needed else None


def keep_units(steps: Sequence[Transform], x: Tensor) -> bool:
    """Whether values that went through transforms can stand beside the raw ones x (b, *shape).

    They can where each is undone, or leaves values as they are. NaN where missing.
    """
    if all(step.invertible for step in steps):
        return True
    missing = torch.isnan(x)
    changed = torch.where(missing, 0.0, x)
    for step in steps:
        changed = step.forward(changed)
    return bool((missing | (changed == x)).all())
