"""Models that were trained before, as estimators take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mvkit import RequestError
from mvkit_sklearn.building import Arrays
from mvkit_sklearn.columns import Columns
from mvkit_sklearn.stored import AnyModel


def columns_of(model: AnyModel, names: Sequence[str] | None, count: int, label: str) -> Columns:
    """The columns of each modality of a trained model, found by the names of its features.

    A modality none of whose features is among the columns is left out. Without names, the model
    must have one modality.

    Raises:
        RequestError: a feature or a column that only one side has.
    """
    others = {name: modality for name, modality in model.modalities.items() if name != label}
    if names is None or not any(modality.features for modality in others.values()):
        if len(others) == 1:
            return {name: list(range(count)) for name in others}
        raise RequestError(
            f"trained: a model of {', '.join(map(repr, others))}, and nothing says which columns "
            "are whose; expected modalities={name: columns}"
        )
    columns = {}
    places = {name: i for i, name in enumerate(names)}
    for name, modality in others.items():
        here = [feature for feature in modality.features if feature in places]
        if not here:
            continue
        if len(here) < len(modality.features):
            missing = next(feature for feature in modality.features if feature not in places)
            raise RequestError(
                f"trained: its modality {name!r} has a feature {missing!r}, and X has no such "
                "column; expected all of its features; add a column of NaN"
            )
        columns[name] = [places[feature] for feature in modality.features]
    known = {i for positions in columns.values() for i in positions}
    unknown = [name for name, i in places.items() if i not in known]
    if unknown:
        raise RequestError(
            f"trained: its modalities have no feature {unknown[0]!r}, which is a column of X; "
            "drop the column"
        )
    return columns


def check_same_columns(
    model: AnyModel, arrays: Arrays, features: Mapping[str, tuple[str, ...]]
) -> None:
    """Raises RequestError unless a model has modalities like the arrays (b, k)."""
    for name, x in arrays.items():
        if name not in model.modalities:
            raise RequestError(
                f"trained: no modality {name!r}; it has {', '.join(map(repr, model.names))}"
            )
        modality = model.modalities[name]
        if modality.raw_shape != x.shape[1:]:
            raise RequestError(
                f"trained: modality {name!r} has values of shape {modality.raw_shape}, and X has "
                f"{x.shape[1]} columns of it; expected as many"
            )
        own = features.get(name, ())
        if own and modality.features and own != modality.features:
            raise RequestError(
                f"trained: modality {name!r} has the features {modality.features[:3]}…, and X "
                f"{own[:3]}…; expected the same, in the same order; list them in modalities="
            )
