"""Models as bytes of safetensors, so that pickles of estimators hold no code of a model."""

from __future__ import annotations

import copy
import io
import os
from typing import Any

import mvkit
from mvkit.models.checkpoint import load_model

AnyModel = mvkit.Model | mvkit.Stack
TrainedLike = AnyModel | str | os.PathLike[str] | None


def to_bytes(model: AnyModel) -> bytes:
    """The file that `mvkit.save` writes of a model."""
    file = io.BytesIO()
    mvkit.save(model, file)
    return file.getvalue()


def trained_model(trained: TrainedLike) -> AnyModel:
    """A copy in float64 of a model, or of the model in a file."""
    if isinstance(trained, mvkit.Model | mvkit.Stack):
        return copy.deepcopy(trained).double().eval()
    if isinstance(trained, str | os.PathLike):
        return load_model(trained).double()
    raise mvkit.RequestError(
        f"trained={type(trained).__name__}; expected a model, the path of its file, or None"
    )


def without_code(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of an estimator with its models as bytes."""
    plain = dict(state)
    for key, value in state.items():
        if isinstance(value, mvkit.Model | mvkit.Stack):
            plain[key] = Stored(to_bytes(value))
    return plain


def with_models(state: dict[str, Any]) -> dict[str, Any]:
    """The attributes of an estimator, its models read from bytes."""
    whole = dict(state)
    for key, value in state.items():
        if isinstance(value, Stored):
            whole[key] = load_model(value)
    return whole


class Stored(bytes):
    """The bytes of a model, told from other bytes that an estimator may hold."""
