"""Whether values are counts, and what is wrong with them where they should be.

Axes: n cells, k features, e stored entries.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import attrs
import numpy as np
import torch

from mvkit import DataError, Modality, SpecError
from mvkit.core import Likelihood, Sizes
from mvkit_omics.measured import Array, Features, Measured

Empty = Literal["error", "unobserved", "keep"]


def modality_of(measured: Measured, given: Any, *, stacklevel: int = 3) -> Any:
    """What `MultimodalDataset.from_arrays` is told that a modality is.

    Whole numbers of at least 0 are counts: `negative_binomial` with the exposure `total`, of which
    encoders see log1p. Zeros and ones alone are bits, anything else is normal, with a warning.

    Args:
        measured: what was measured.
        given: a `Modality`, a dict of its options, a likelihood, or None.
        stacklevel: of the warning, as seen from the caller.

    Raises:
        DataError: an infinite value; whole numbers of which some are negative.
    """
    if isinstance(given, Modality):
        return _named(given, measured.features)
    options: dict[str, Any] = {"features": measured.features}
    likelihood = given
    if isinstance(given, Mapping):
        likelihood = given.get("likelihood")
        options |= given
    elif given is not None:
        options["likelihood"] = given
    if likelihood is None:
        return {**_inferred(measured, stacklevel + 1), **options}
    return {**_usual(Modality((len(measured.features),), likelihood)), **options}


def _named(modality: Modality, features: Features) -> Modality:
    """The modality with names of its features, if it has none and they fit."""
    if modality.features or modality.raw_shape != (len(features),):
        return modality
    named: Modality = attrs.evolve(modality, features=features)  # type: ignore[misc]
    return named


def _usual(modality: Modality) -> dict[str, object]:
    """The options that modalities of counts usually have, as far as the likelihood takes them."""
    likelihood = _live(modality)
    if likelihood is None or not counts(likelihood, modality.shape):
        return {}
    usual: dict[str, object] = {"input": "log1p"}
    if likelihood.takes_total and modality.numbers > 1:  # else its share would always be 1
        usual["exposure"] = "total"
    return usual


def _inferred(measured: Measured, stacklevel: int) -> dict[str, Any]:
    """The options of a modality of counts; none: bits, or other numbers."""
    _check_finite(measured)
    entries = measured.entries
    entries = entries[~np.isnan(entries)]
    if (entries != np.rint(entries)).any():
        _warn_of_no_counts(measured, stacklevel + 1)
        return {}
    negative = measured.entries < 0
    if negative.any():
        raise DataError(
            f"{measured.entry(negative)} is below 0 among whole numbers; expected counts, or "
            f"numbers that are none; correct it, or say modalities={{{measured.name!r}: 'normal'}}"
        )
    if entries.max(initial=0) <= 1:
        return {}
    likelihood = "negative_binomial"
    usual = _usual(Modality((len(measured.features),), likelihood))
    return {**usual, "likelihood": likelihood}


def _check_finite(measured: Measured) -> None:
    """Raises DataError for an infinite value."""
    entries = measured.entries
    if entries.dtype.kind == "f":
        infinite = np.isinf(entries)
        if infinite.any():
            raise DataError(
                f"{measured.entry(infinite)}; expected finite numbers; correct it, or write NaN "
                "where there is none"
            )


def _warn_of_no_counts(measured: Measured, stacklevel: int) -> None:
    """Says that values are taken for normal, and how to get at counts."""
    entries = measured.entries
    bad = (entries != np.rint(entries)) & ~np.isnan(entries)
    warnings.warn(
        f"{measured.entry(bad)} is no count, so that {measured.name!r} is taken to be normal; "
        f"for counts {_layer_of_counts(measured)}; if it is meant, say "
        f"modalities={{{measured.name!r}: 'normal'}}",
        stacklevel=stacklevel + 1,
    )


def _layer_of_counts(measured: Measured) -> str:
    """How to give counts instead of these values."""
    if not measured.remedy:
        return "give them as they were counted"
    if not measured.layers:
        return "keep them in a layer before you normalise, and give it: " + measured.remedy
    named = [layer for layer in measured.layers if "count" in layer or "raw" in layer]
    layer = (named or list(measured.layers))[0]
    return f"give {measured.remedy.replace('counts', layer)}"


def _live(modality: Modality) -> Likelihood | None:
    """The likelihood of a modality; None: it needs to know the model."""
    try:
        live: Likelihood = modality.likelihood.build(Sizes.alone(modality))
    except SpecError:
        return None
    return live


def counts(likelihood: Likelihood, shape: tuple[int, ...]) -> bool:
    """Whether a likelihood takes whole numbers of at least 0, of any size, and nothing else."""
    if likelihood.class_axis or not likelihood.integers:
        return False
    row = torch.zeros(1, *shape)
    many = likelihood.out_of_support(row + 1000).any()
    return not many and bool(likelihood.out_of_support(row + 0.5).any())


def checked(measured: Measured, modality: Modality | None, empty: Empty) -> Measured:
    """The cells that are observed, if the likelihood can take their values.

    Cells of which all values are NaN are unobserved.

    Args:
        measured: what was measured.
        modality: what it is taken for; None: neither counts nor anything else that is said.
        empty: cells without a single count, where the likelihood counts: an `error`; taken as
            `unobserved`; or `keep` them as they are.

    Raises:
        DataError: with cell, feature, value and remedy: no counts where they are counted, an
            empty cell.
    """
    measured = measured.keep(~measured.unobserved())
    _check_finite(measured)
    if modality is None or not _is_of_counts(modality):
        return measured
    _check_counts(measured, modality)
    none = measured.totals() == 0
    if empty == "keep" or not none.any():
        return measured
    if empty == "unobserved":
        return measured.keep(~none)
    row = int(none.argmax())
    raise DataError(
        f"{measured.where}: cell {measured.cells[row]!r} has no count in any of the "
        f"{len(measured.features):,} features, as {int(none.sum()):,} of {len(measured):,} cells; "
        "expected one count at least; filter them out (scanpy.pp.filter_cells(…, min_counts=1)), "
        "or say empty='unobserved' if they were not measured, empty='keep' if they were"
    )


def _is_of_counts(modality: Modality) -> bool:
    """Whether a modality has a likelihood of counts, as far as that is known outside a model."""
    likelihood = None if modality.transform else _live(modality)
    return likelihood is not None and counts(likelihood, modality.shape)


def _check_counts(measured: Measured, modality: Modality) -> None:
    """Raises DataError for a value that is no count."""
    entries = measured.entries
    expected = f"{modality.likelihood!r} expects counts, 0, 1, 2, …"
    negative = entries < 0
    if negative.any():
        raise DataError(
            f"{measured.entry(negative)} is negative, but {expected}; correct it, or "
            f"{_layer_of_counts(measured)}"
        )
    if entries.dtype.kind != "f":
        return
    broken: Array = (entries != np.rint(entries)) & ~np.isnan(entries)
    if broken.any():
        raise DataError(
            f"{measured.entry(broken)} is no whole number, but {expected}; it looks normalised; "
            f"{_layer_of_counts(measured)}, or model it as it is with "
            f"modalities={{{measured.name!r}: 'normal'}}"
        )
