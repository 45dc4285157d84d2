"""Datasets for a model that is trained already: its features, by name, and its covariates.

Axes: n cells, k features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from mvkit.errors import DataError, check_option, suggest
from mvkit_omics.measured import Features, Measured, few

if TYPE_CHECKING:
    from pandas import DataFrame

    from mvkit import Model, Stack

Missing = Literal["error", "unobserved"]
LIKELY = 0.5  # share of the model's features in a column of var: they are what it calls them


def like_model(
    measured: Sequence[Measured],
    model: Model | Stack,
    missing: Missing,
    annotations: Mapping[str, DataFrame],
) -> list[Measured]:
    """The modalities with the features of a model, in its order.

    Args:
        measured: as they came.
        model: trained on named features.
        missing: features of the model that are not there: an `error`, or `unobserved`.
        annotations: `var` of the modalities that have one, for hints.

    Raises:
        DataError: a modality or features that the model, or the data, do not know.
    """
    check_option("missing_genes", missing, "error", "unobserved")
    arranged = []
    for modality in measured:
        if modality.name not in model.modalities:
            raise DataError(
                f"{modality.where}: the model has no modality {modality.name!r}; "
                f"{suggest(modality.name, model.modalities)}; rename it, or leave it out"
            )
        features = model.modalities[modality.name].features
        if not features:
            raise DataError(
                f"{modality.where}: the model does not know what the features of "
                f"{modality.name!r} are called, and nothing is matched by position; expected "
                "Modality(…, features=names); train it on a dataset with names"
            )
        _check_features(modality, features, missing, annotations.get(modality.name))
        arranged.append(modality.arrange(features))
    return arranged


def _check_features(
    measured: Measured, features: Features, missing: Missing, annotation: DataFrame | None
) -> None:
    """Raises DataError for features that are not there, or if not one is."""
    known = set(measured.features)
    absent = [feature for feature in features if feature not in known]
    if not absent or (missing == "unobserved" and len(absent) < len(features)):
        return
    remedy = "add them, or say missing_genes='unobserved'"
    if len(absent) == len(features):
        remedy = f"here they are called {few(measured.features[:2])}; rename them"
    column = None if annotation is None else _column_of_names(annotation, features)
    if column is not None:
        remedy = f"{measured.where.partition('.')[0]}.var[{column!r}] holds such names: make it "
        remedy += "the var_names"
    raise DataError(
        f"{measured.where}: {len(absent):,} of the {len(features):,} features that the model "
        f"knows of {measured.name!r} are not there: {few(absent)}; expected all, in any order; "
        f"{remedy}"
    )


def _column_of_names(annotation: DataFrame, features: Features) -> str | None:
    """A column of `var` that holds what the model calls features, if there is one."""
    for column in annotation.columns:
        values = {str(value) for value in annotation[column]}
        if sum(feature in values for feature in features) > LIKELY * len(features):
            return str(column)
    return None


def wanted_columns(model: Model | Stack) -> tuple[str, ...]:
    """The covariates and exposures that a model asks of rows, by name."""
    names = dict.fromkeys(model.schema.covariates)
    for exposure in model.schema.exposures.values():
        if exposure != "total":
            names[exposure] = None
    return tuple(names)
