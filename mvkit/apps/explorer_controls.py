"""Controls of the explorer: covariates of the rows that are generated, where latents are from, and
whether refiners draw.

Needs the extra `mvkit[explore]` (panel).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import attrs

from mvkit.core.covariates import Conditions, Level
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.stack import Stack
from mvkit.parts.conditional_samplers import ConditionalSampler

OF_THE_ROW = "(of the row)"
STEPS = 60  # of a slider from the least to the largest number of training


@attrs.frozen(eq=False)
class CovariateControl:
    """What chooses a covariate of the rows that are generated: the row's own, or another.

    Args:
        name: of the covariate.
        levels: its levels; none: it is a number.
        widgets: a dropdown of its levels; or a box for the row's own number, and a slider.
    """

    name: str
    levels: tuple[Level, ...]
    widgets: list[Any]

    @classmethod
    def of(cls, model: MultimodalModel, name: str) -> CovariateControl:
        """The widgets of a covariate of a model."""
        import panel as pn

        levels = model.schema.covariates[name].levels
        if levels:
            options = {OF_THE_ROW: None, **{str(level): level for level in levels}}
            widgets: list[Any] = [pn.widgets.Select(name=name, options=options, value=None)]
        else:
            low, high = range_of(model, name)
            box = pn.widgets.Checkbox(name=f"{name} {OF_THE_ROW}", value=True)
            middle = (low + high) / 2
            step = (high - low) / STEPS
            slider = pn.widgets.FloatSlider(
                name=name, start=low, end=high, step=step, value=middle
            )
            widgets = [box, slider]
        for widget in widgets:
            widget.sizing_mode = "stretch_width"
        return cls(name, levels, widgets)


def range_of(model: MultimodalModel, name: str) -> tuple[float, float]:
    """The range of a number of the rows in training; around 0 where none is known."""
    conditions = cast(Conditions, model.decoding.conditions)
    column = list(conditions.covariates).index(name)
    known = conditions.rows[:, column]
    known = known[~known.isnan()]
    if not len(known) or bool((known == known[0]).all()):
        return -3.0, 3.0
    return float(known.min()), float(known.max())


def stated_by(controls: Sequence[CovariateControl], states: Sequence[object]) -> dict[str, object]:
    """The covariates that controls choose, {name: value}, without those of the row.

    Args:
        controls: of all covariates.
        states: the values of all of their widgets, one after another.
    """
    stated: dict[str, object] = {}
    states = list(states)
    for control in controls:
        if control.levels:
            level = states.pop(0)
            if level is not None:
                stated[control.name] = level
            continue
        of_the_row, number = states.pop(0), states.pop(0)
        if not of_the_row:
            stated[control.name] = number
    return stated


def latent_sources(model: MultimodalModel) -> list[Any]:
    """A dropdown of the posterior and the fitted samplers that may take its place; none without
    such samplers.
    """
    import panel as pn

    samplers = conditional_samplers(model)
    if not samplers:
        return []
    choices = {"posterior": None, **dict(zip(samplers, samplers, strict=True))}
    return [pn.widgets.Select(name="latents from", options=choices, sizing_mode="stretch_width")]


def refined_control(model: MultimodalModel) -> Any:
    """A box for draws of the refiners that the model has; disabled, with the reason, without."""
    import panel as pn

    name = f"refined: {', '.join(model.refiners)}"
    if isinstance(model, Stack):
        name = "refined (a stack has no refiners)"
    elif not model.refiners:
        name = "refined (no refiner was trained: mvkit.fit_refiner)"
    return pn.widgets.Checkbox(
        name=name, value=False, disabled=not model.refiners, sizing_mode="stretch_width"
    )


def conditional_samplers(model: MultimodalModel) -> list[str]:
    """Names of the fitted samplers that draw latents given what a row has."""
    return [name for name, part in model.samplers.items() if isinstance(part, ConditionalSampler)]
