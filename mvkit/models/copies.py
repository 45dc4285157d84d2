"""Copies of a model with weights of their own, and weights taken over from a copy."""

from __future__ import annotations

from typing import Any

from torch import nn

from mvkit.errors import RequestError
from mvkit.models.checkpoint import rebuilt
from mvkit.models.model import Model
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.refiners import install as install_refiner
from mvkit.models.stack import Stack


def fresh_copy(model: MultimodalModel, seed: int) -> Model | Stack:
    """A model of the same specs whose initial weights a seed draws, on the same device.

    Raises:
        RequestError: a model of one's own class, one that holds modules of the user's, whose
            initial weights no seed gives, or samplers or refiners that were fitted to its weights.
        CheckpointError: parts were replaced that its specs do not name.
    """
    where = f"a copy with seed={seed}"
    if not isinstance(model, Model | Stack):
        raise RequestError(
            f"{where}: a {type(model).__name__} cannot be made anew from its specs; expected a "
            "Model or a Stack; make one model for each seed, and mvkit.Ensemble of them"
        )
    model.check_savable()
    header = model.header()
    outside = _external(header)
    if outside:
        raise RequestError(
            f"{where}: {outside} is a module of the user's, whose initial weights no seed gives; "
            "expected parts by name or spec; make one model for each seed, and mvkit.Ensemble of "
            "them"
        )
    if len(model.samplers) or len(model.refiners):
        fitted = [*model.samplers, *model.refiners]
        raise RequestError(
            f"{where}: the model has samplers or refiners ({', '.join(fitted)}) that were fitted "
            "to its weights; expected none; fit them after it"
        )
    return rebuilt(header, seed).to(model.like)


def _external(value: Any, path: str = "model") -> str:
    """The path of the first module of the user's in a header; empty if there is none."""
    if isinstance(value, dict):
        if set(value) == {"external"}:
            return path
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    else:
        return ""
    for key, item in items:
        place = _external(item, f"{path}.{key}")
        if place:
            return place
    return ""


def take_over(model: MultimodalModel, other: MultimodalModel) -> None:
    """Gives a model the weights of a trained copy, and what training added to the copy."""
    _make_room(model, other)
    model.load_state_dict(other.state_dict())
    model.training_rows = other.training_rows
    model.refined_to = dict(other.refined_to)


def _make_room(model: nn.Module, other: nn.Module) -> None:
    """Adds the parts that training added to a copy, so that their weights have a place."""
    if isinstance(model, Stack) and isinstance(other, Stack):
        _make_room(model.bottom, other.bottom)
        _make_room(model.top, other.top)
        return
    if not isinstance(model, Model) or not isinstance(other, Model):
        return
    for objective in other.adopted:
        model.adopt(objective)
    for name, refiner in other.refiners.items():
        install_refiner(model, name, refiner.spec)
    if model.conditions is not None and other.conditions is not None:
        model.conditions.keep(len(other.conditions.rows))
