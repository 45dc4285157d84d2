"""What every question to a trained model needs: rows, a modality, levels, blocks of rows.

Axes: n draws, b rows, f features.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import attrs
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

import mvkit
from mvkit.core import noise
from mvkit.errors import DataError, RequestError, suggest
from mvkit.models.multimodal import MultimodalModel
from mvkit_omics.sparse_rows import SparseRows

ALL = "all"  # levels of a covariate
ROWS = 1024  # rows that are decoded at a time, at most
DECODED = 2**27  # bytes of the draws of a block of rows

Dense = mvkit.Batch | mvkit.MultimodalDataset
Data = Dense | SparseRows
DataLike = Data | Mapping[str, Any]
Given = Iterable[str] | str | None
Covariates = Mapping[str, object] | None


def rows_of(data: DataLike) -> Data:
    """Rows that can be picked: datasets, batches and `SparseRows` as they are, a mapping of arrays
    as a batch.
    """
    if isinstance(data, Mapping):
        data = mvkit.Batch(dict(data))
    if isinstance(data, mvkit.Batch | mvkit.MultimodalDataset | SparseRows):
        if len(data):
            return data
        raise DataError("there are no cells; expected one at least; look at how they were picked")
    raise RequestError(
        f"got {type(data).__name__}; expected a MultimodalDataset, a Batch or a mapping of "
        "arrays; read MuData by mvkit_omics.from_mudata"
    )


def extra_of(rows: Data) -> Mapping[str, Any]:
    """What rows have beside their modalities, {name: (b,)}."""
    return rows.batch.extra if isinstance(rows, mvkit.MultimodalDataset) else rows.extra


def block_of(rows: Data, pick: Any) -> Dense:
    """Some of the rows, dense; `pick` as of `Batch.take`."""
    taken = rows.take(pick)
    if isinstance(taken, SparseRows):
        return taken.__getitems__(range(len(taken)))
    return taken


def encoded(model: MultimodalModel, rows: Data, given: Given = None, **options: Any) -> Tensor:
    """Posterior means of rows, (b, d), on the CPU; options as of `Model.encode`."""
    pieces = []
    for start in range(0, len(rows), ROWS):
        block = block_of(rows, slice(start, start + ROWS))
        pieces.append(model.encode(block, given, **options).cpu())
    return torch.cat(pieces)


def row_names(rows: Data) -> pd.Index:
    """The ids of rows, or their positions where they have none."""
    ids = extra_of(rows).get("id")
    return pd.RangeIndex(len(rows)) if ids is None else pd.Index(np.asarray(ids))


def column_of(rows: Data, name: str, where: str) -> NDArray[Any]:
    """What rows have beside their modalities under a name, (b,).

    Raises:
        RequestError: nothing of that name.
    """
    extra = extra_of(rows)
    if name not in extra:
        raise RequestError(f"{where}: {name!r} is not in the data's extra; {suggest(name, extra)}")
    return np.asarray(extra[name])


def chosen_modality(model: MultimodalModel, name: str | None, where: str) -> str:
    """The modality of a name, or the only one.

    Raises:
        RequestError: no such modality, or no name where there are several.
    """
    names = model.names
    if name is None and len(names) == 1:
        return str(names[0])
    if name is None:
        listed = ", ".join(map(repr, names))
        raise RequestError(f"{where}: the model has {listed}; expected one of them: modality=…")
    if name not in names:
        raise RequestError(f"{where}: unknown modality {name!r}; {suggest(str(name), names)}")
    return name


def feature_names(model: MultimodalModel, modality: str) -> pd.Index:
    """Names of a modality's features, (f,); their numbers where it has none."""
    described = model.modalities[modality]
    if described.features:
        return pd.Index(described.features)
    return pd.RangeIndex(int(np.prod(described.raw_shape)))


def stated_levels(
    model: MultimodalModel, covariates: Covariates, where: str
) -> list[dict[str, object]]:
    """What covariates are stated, once for each combination of the values that they list.

    Args:
        model: the model.
        covariates: {name: a value, a list of values, or `all` levels}.
        where: what errors begin with.

    Raises:
        RequestError: an empty list; all levels of a covariate that is not there, or a number.
    """
    names = list(covariates or {})
    choices = []
    for name in names:
        choices.append(_values(model, name, (covariates or {})[name], where))
    combinations = itertools.product(*choices)
    return [dict(zip(names, values, strict=True)) for values in combinations]


def _values(model: MultimodalModel, name: str, value: object, where: str) -> Sequence[object]:
    known = model.schema.covariates
    if name not in known:
        raise RequestError(f"{where}: no covariate {name!r} in the model; {suggest(name, known)}")
    levels = known[name].levels
    if isinstance(value, str) and value == ALL and ALL not in levels:
        if not levels:
            raise RequestError(
                f"{where}: covariate {name!r} is a number, which has no levels; expected values, "
                "such as a list of numbers"
            )
        return levels
    if isinstance(value, str) or np.ndim(value) == 0:  # type: ignore[arg-type]
        return [value]
    values = np.asarray(value, dtype=object).tolist()
    if not values:
        raise RequestError(f"{where}: covariates[{name!r}] is an empty list; expected one value")
    return list(values)


@attrs.frozen(eq=False)
class Asked:
    """A modality decoded from what rows have, averaged over levels of covariates.

    Args:
        model: the model.
        modality: what is decoded.
        levels: the covariates that are stated, once for each term of the average; one empty
            mapping: the rows' own.
        given: modalities to look at; None: all that each row has.
        exposure: what means are for, where the modality has an exposure: a number; None: the
            rows' own.
        background: whether means hold a background.
        empty: rows with none of what is given: `error`, or the `prior`.
        seed: of all randomness.
    """

    model: MultimodalModel
    modality: str
    levels: Sequence[Mapping[str, object]]
    given: Given = None
    exposure: float | None = 1.0
    background: bool = False
    empty: Literal["error", "prior"] = "error"
    seed: int = 0

    @property
    def features(self) -> int:
        """How many features the modality has."""
        return int(np.prod(self.model.modalities[self.modality].raw_shape))

    def _options(self) -> dict[str, Any]:
        """Options of `translate`."""
        options: dict[str, Any] = {"empty": self.empty, "background": self.background}
        if self.exposure is not None and self.model.modalities[self.modality].exposure:
            options["exposure"] = {self.modality: self.exposure}
        return options

    def at_levels(self, rows: Dense, seed: int, **options: Any) -> Iterator[Tensor]:
        """Values (n, b, f) of rows with each of the stated covariates, at the same draws of z.

        Args:
            rows: a block.
            seed: of the block.
            options: of `translate`: `n`, `latent`, `sample`.
        """
        device = self.model.like.device
        to = [self.modality]
        options = {**self._options(), **options}
        if options.get("sample"):
            options["background"] = True
        for stated in self.levels:
            generator = noise.seeded(noise.seed_of(self.seed, seed), device)
            values = self.model.translate(
                rows, to, self.given, covariates=stated, generator=generator, **options
            )
            yield values[self.modality].flatten(2)

    def means(self, rows: Dense, seed: int, **options: Any) -> Tensor:
        """Means (n, b, f) at draws of z, averaged over the stated covariates, in float64."""
        total = torch.zeros(())
        for values in self.at_levels(rows, seed, **options):
            total = values.double() + total.to(values.device)
        return total / len(self.levels)

    def block_rows(self, n: int) -> int:
        """How many rows are decoded at a time, for n draws of each."""
        return min(ROWS, max(1, DECODED // (n * self.features * 8)))


def asked(
    where: str,
    model: MultimodalModel,
    modality: str | None,
    covariates: Covariates,
    **options: Any,
) -> Asked:
    """A question, checked; options as of `Asked`."""
    if not isinstance(model, MultimodalModel):
        raise RequestError(
            f"{where}: got {type(model).__name__} as its model; expected a Model or a Stack, then "
            "the rows"
        )
    chosen = chosen_modality(model, modality, where)
    levels = stated_levels(model, covariates, where)
    given = options.pop("given", None)
    if given is not None and not isinstance(given, str):
        given = tuple(given)  # iterators would be spent after the first block
    return Asked(model, chosen, levels, given=given, **options)
