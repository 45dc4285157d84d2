"""Datasets: rows in memory with their gaps, from arrays, tables and files.

Axes: b rows, m modalities, k features.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.core.modality import Modality
from mvkit.core.validation import Columns, as_tensor
from mvkit.data import tables
from mvkit.data.missing import Simulation, raw_values
from mvkit.data.tables import Table, is_table
from mvkit.data.transforms import OneHot, fitted
from mvkit.errors import DataError, ShapeError, suggest
from mvkit.parts.likelihoods import Bernoulli, Categorical, Normal

if TYPE_CHECKING:
    from mvkit.data.shards import Shards


@attrs.frozen(eq=False)
class MultimodalDataset:
    """Rows of several modalities with gaps: map-style, a whole batch at a time.

    Values stay in the user's units; `modalities` say what they are and how a model sees them. Modalities are inferred
    where they are not given: bits (bool, or only 0 and 1) are `bernoulli`; whole numbers (b,) that use each of 0 … C-1
    are the classes of a `categorical`; anything else is `normal` with a trained scale.

    Args:
        batch: all rows.
        modalities: what they are, for `Model(dataset.modalities)`.

    Example:
        >>> import numpy as np
        >>> from mvkit import MultimodalDataset
        >>> arrays = {"sound": np.array([[0.5, 1.5], [np.nan, np.nan]]), "word": np.array([1, 0])}
        >>> data = MultimodalDataset.from_arrays(arrays, ids=["a", "b"])
        >>> data.modalities["word"].likelihood, data.batch.mask.tolist()
        (Categorical(), [[True, True], [False, True]])
    """

    batch: Batch
    modalities: dict[str, Modality]

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, Any],
        *,
        ids: Any = None,
        label: Any = None,
        missing: Any = "nan",
        modalities: Mapping[str, Any] | None = None,
        disjoint: bool = False,
    ) -> MultimodalDataset:
        """Rows of arrays or tensors, (b, *shape) a modality.

        Args:
            arrays: by modality.
            ids: an id for each row; or a mapping from modality to the ids of its rows, which are then aligned: the
                rows are all ids, in order of first appearance, and unobserved where a modality lacks them.
            label: a label for each row, or a mapping from id to label; kept, never modelled.
            missing: `nan`: NaN is missing; `none`: nothing is, and NaN an error; or what is observed: (b, m) bool, or
                a mapping from modality to bool (b,) or (b, *shape).
            modalities: what a modality is, where it is not as inferred: a `Modality`, a dict of its options, or the
                name of a likelihood.
            disjoint: whether a modality may share no id with any other.

        Raises:
            DataError: ids that stand twice, or are disjoint; NaN where nothing is missing.
            ShapeError: lengths that differ without ids.
        """
        own = ids if isinstance(ids, Mapping) else dict.fromkeys(arrays, ids)
        made = {
            name: Table(as_tensor(x, f"data[{name!r}]"), _listed(own.get(name)))
            for name, x in arrays.items()
        }
        return _dataset(cls, made, label, missing, modalities, disjoint)

    @classmethod
    def from_tables(
        cls,
        frames: Mapping[str, Any],
        *,
        id: str | None = None,
        label: Any = None,
        missing: Any = "nan",
        modalities: Mapping[str, Any] | None = None,
        disjoint: bool = False,
    ) -> MultimodalDataset:
        """Rows of pandas or polars tables, one a modality, aligned by index, or the column `id`; never by position.

        Args:
            frames: by modality; columns are features, and their names are kept.
            id: the column that holds ids; None: pandas' index.
            label: name of a column of labels, a Series by id, or a mapping from id to label.
            missing: see `from_arrays`.
            modalities: likewise; `categorical` for tables of text.
            disjoint: likewise.

        Raises:
            DataError: as `from_arrays`; text among numbers, with column, row and value.
        """
        frames = {name: tables.frame_of(name, frame, id) for name, frame in frames.items()}
        tables.check_lengths(frames)
        if isinstance(label, str):
            label = tables.pop_label(frames, label)
        elif (
            label is not None
            and not isinstance(label, Mapping)
            and tables.library(label) != "pandas"
        ):
            raise DataError(
                f"label: got a {type(label).__name__} without ids; expected a column's name, a Series or a mapping"
            )
        made = {
            name: tables.read_table(
                name, frame, text=_likelihood_given(modalities, name) == "categorical"
            )
            for name, frame in frames.items()
        }
        return _dataset(cls, made, label, missing, modalities, disjoint)

    @classmethod
    def from_files(
        cls, files: Mapping[str, str | os.PathLike[str]], *, id: str | None = None, **options: Any
    ) -> MultimodalDataset:
        """Rows of one CSV, TSV or Parquet file a modality, aligned by the column `id`; see `from_tables`.

        Ids of text files are text: "007" is not 7.
        """
        return cls.from_tables(tables.read_files(files, id), **options)

    @classmethod
    def from_npz(
        cls, file: str | os.PathLike[str], *, id: str = "id", label: str = "label", **options: Any
    ) -> MultimodalDataset:
        """Rows of an `.npz` file: an array a modality, and ids and labels if there are arrays of these names."""
        with np.load(file, allow_pickle=False) as loaded:
            arrays = dict(loaded)
        ids, labels = arrays.pop(id, None), arrays.pop(label, None)
        return cls.from_arrays(arrays, ids=ids, label=labels, **options)

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, index: int) -> Batch:
        return self.batch.take(torch.tensor([range(len(self))[index]]))

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self.batch.take(torch.as_tensor(indices))

    def save(self, folder: str | os.PathLike[str], *, rows_per_shard: int | None = None) -> None:
        """Writes a folder of safetensors shards; see `mvkit.data.shards.save_shards`."""
        from mvkit.data.shards import save_shards

        save_shards(self.batch, folder, self.modalities, rows_per_shard=rows_per_shard)

    @staticmethod
    def open(folder: str | os.PathLike[str], **options: Any) -> Shards:
        """Rows of a folder that `save` wrote, memory-mapped; options as of `mvkit.data.shards.Shards`."""
        from mvkit.data.shards import Shards

        return Shards(folder, **options)

    @property
    def labels(self) -> Any:
        """`extra["label"]`, if there is one: numbers (b,), or an array of words."""
        return self.batch.extra.get("label")

    @property
    def ids(self) -> Any:
        """`extra["id"]`, if there is one: an array (b,) of whatever the ids are."""
        return self.batch.extra.get("id")

    def take(self, index: Tensor | slice | Sequence[int]) -> MultimodalDataset:
        """The rows at `index` (n,)."""
        return attrs.evolve(self, batch=self.batch.take(index))

    def with_missing(
        self,
        rate: Any,
        *,
        of: str = "modalities",
        by: str | None = None,
        block: int = 1,
        seed: int = 0,
    ) -> MultimodalDataset:
        """The dataset with more missing, by simulation: a function of (seed, row), so of no batch and no worker.

        What was missing stays so, and a row keeps one observed modality at least.

        Args:
            rate: the share of places to hide, or a mapping from modality to share; with `by="label"`, or from label.
            of: hide whole `modalities`, or single `elements` (features, pixels).
            by: None: at random. Not at random: `label`: more in later labels, or each label at its rate; `value`: more
                where values are larger (of a modality: its mean), by rank over the dataset.
            block: rows in a row that lack the same, such as those of a day or a site.
            seed: of the missingness.
        """
        simulation = Simulation(rate, of, by, block, seed)
        if isinstance(rate, Mapping) and by != "label":
            for name in rate:
                if name not in self.modalities:
                    raise DataError(
                        f"with_missing: no modality {name!r}; {suggest(str(name), self.modalities)}"
                    )
        return attrs.evolve(self, batch=simulation.apply(self.batch, self.modalities))

    def fit_transforms(self, transforms: Mapping[str, Any]) -> MultimodalDataset:
        """The dataset with transforms fitted to its observed values, on `modalities`; values themselves stay raw.

        Fit on the training rows only; a model made with these modalities applies the same numbers to any other data,
        and gives values back in the user's units. Likelihoods are then densities in the model's units.

        Args:
            transforms: a transform or a list of them by modality (`mvkit.available("transform")`), first to last.

        Example:
            >>> data = MultimodalDataset.from_arrays({"rna": np.array([[0.0, 9.0], [4.0, 2.0]])})
            >>> data.fit_transforms({"rna": ["log1p", "standardise"]}).modalities["rna"].transform
            (Log1p(), Standardise(over='feature', fitted))
        """
        made = dict(self.modalities)
        for name, wanted in transforms.items():
            if name not in made:
                raise DataError(
                    f"fit_transforms: no modality {name!r}; {suggest(str(name), made)}"
                )
            made[name] = fitted(name, made[name], raw_values(self.batch, name, made), wanted)
        return attrs.evolve(self, modalities=made)

    def split(self, *shares: float, seed: int = 0) -> tuple[MultimodalDataset, ...]:
        """Parts of rows drawn at random, such as `split(0.8, 0.1, 0.1)`; a function of the seed."""
        if not shares or min(shares) <= 0 or sum(shares) > 1 + 1e-9:
            raise DataError(
                f"split: got {shares}; expected positive shares that add up to 1 at most"
            )
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        ends = [round(float(end) * len(self)) for end in np.cumsum([0.0, *shares])]
        return tuple(self.take(order[start:end]) for start, end in itertools.pairwise(ends))


# what a model takes as rows: a batch, a dataset, or a mapping from modality to array or table
Rows = Batch | MultimodalDataset | Mapping[str, object]


def as_batch(data: Rows) -> Batch:
    """A batch, a dataset, or a mapping of arrays or of pandas tables as a batch."""
    if isinstance(data, Batch):
        return data
    if isinstance(data, MultimodalDataset):
        own = (
            data.batch.schema is not None
            or data.batch.mask is None
            or data.batch.order is not None
        )
        return data.batch if own else attrs.evolve(data.batch, order=tuple(data.modalities))
    if isinstance(data, Mapping):
        framed = [name for name, value in data.items() if is_table(value)]
        if framed and len(framed) < len(data):
            raise ShapeError(
                f"data[{framed[0]!r}]: a table among arrays; expected tables only, or arrays only"
            )
        return tables.from_frames(data) if framed else Batch(dict(data))
    splits = (
        "; take one of its splits, such as .test"
        if hasattr(data, "train") and hasattr(data, "test")
        else ""
    )
    raise DataError(
        f"got {type(data).__name__}; expected a Batch, a MultimodalDataset or a mapping from modality to array{splits}"
    )


def _listed(ids: Any) -> list[Any] | None:
    return (
        None
        if ids is None
        else ids.tolist()
        if isinstance(ids, np.ndarray | Tensor)
        else list(ids)
    )


def _likelihood_given(modalities: Mapping[str, Any] | None, name: str) -> Any:
    given = (modalities or {}).get(name)
    given = given.get("likelihood") if isinstance(given, Mapping) else given
    given = given.likelihood if isinstance(given, Modality) else given
    return "categorical" if isinstance(given, Categorical) else given


def _dataset(
    cls: type[MultimodalDataset],
    made: dict[str, Table],
    label: Any,
    missing: Any,
    given: Any,
    disjoint: bool,
) -> MultimodalDataset:
    for name in given or {}:
        if name not in made:
            raise DataError(f"modalities: no data for {name!r}; {suggest(str(name), made)}")
    if isinstance(missing, Mapping):
        for name in missing:
            if name not in made:
                raise DataError(f"missing: no data for {name!r}; {suggest(str(name), made)}")
    checked, modalities = {}, {}
    for i, (name, table) in enumerate(made.items()):
        table = _with_gaps(name, table, missing, i, len(made))
        modalities[name], values = _inferred(name, table, (given or {}).get(name))
        checked[name] = attrs.evolve(table, values=values)
    batch = tables.align(checked, disjoint=disjoint)
    if label is not None:
        batch.extra["label"] = tables.labels_of(label, batch.extra.get("id"), len(batch))
    return cls(batch, modalities)


def _with_gaps(name: str, table: Table, missing: Any, i: int, m: int) -> Table:
    """The table with gaps as `missing` says: NaN in floats, `seen` for other values."""
    x, where = table.values, f"data[{name!r}]"
    if isinstance(missing, str):
        if missing not in ("nan", "none"):
            raise DataError(
                f"missing: got {missing!r}; expected 'nan', 'none' or what is observed, as bool"
            )
        if missing == "none":
            _refuse_nan(
                where,
                table,
                torch.ones_like(x, dtype=torch.bool),
                "nothing is missing (missing='none')",
            )
        return table
    given = missing.get(name) if isinstance(missing, Mapping) else missing
    if given is None:
        return table
    seen = as_tensor(given, f"missing[{name!r}]")
    if not isinstance(missing, Mapping):
        if seen.shape != (len(x), m):
            raise ShapeError(
                f"missing: shape {tuple(seen.shape)}; expected {(len(x), m)}, a column for each modality"
            )
        seen = seen[:, i]
    if seen.dtype != torch.bool or tuple(seen.shape) not in (tuple(x.shape[:1]), tuple(x.shape)):
        raise ShapeError(
            f"missing[{name!r}]: {seen.dtype} of shape {tuple(seen.shape)}; expected torch.bool, True where observed, "
            f"of shape {tuple(x.shape[:1])} or {tuple(x.shape)}"
        )
    wide = (
        seen.reshape(-1, *[1] * (x.ndim - seen.ndim)).expand(x.shape)
        if seen.ndim < x.ndim
        else seen
    )
    _refuse_nan(where, table, wide, "the mask says it is observed")
    if x.is_floating_point():
        return attrs.evolve(table, values=torch.where(wide, x, torch.nan))
    return attrs.evolve(table, seen=seen)


def _refuse_nan(where: str, table: Table, seen: Tensor, why: str) -> None:
    bad = ~tables.presence(table.values) & seen
    if bad.any():
        row, *rest = bad.nonzero()[0].tolist()
        at = (
            f"column {table.columns.names[rest[0]]!r}"
            if table.columns
            else f"element {tuple(rest)}"
        )
        raise DataError(
            f"{where}: {table.called(row)}, {at}: NaN, but {why}; fill it in, or correct what is missing"
        )


def _inferred(name: str, table: Table, given: Any) -> tuple[Modality, Tensor]:
    """What a modality is, and its values with an axis of features at least."""
    x, columns = table.values, table.columns
    classes = x.ndim == 1 and not x.is_floating_point() and x.dtype != torch.bool
    wanted = _likelihood_given({name: given}, name)
    if isinstance(given, Modality):
        unnamed = columns and not given.features and given.raw_shape == tuple(x.shape[1:])
        return attrs.evolve(given, features=columns.names) if columns and unnamed else given, x  # type: ignore[misc]
    options = (
        dict(given)
        if isinstance(given, Mapping)
        else {}
        if given is None
        else {"likelihood": given}
    )
    if not len(x):
        raise DataError(
            f"data[{name!r}]: it is empty; expected one row at least; leave the modality out"
        )
    if (
        classes
        and wanted in (None, "categorical")
        and x.unique().tolist() == list(range(int(x.max()) + 1))
    ):
        return Modality(
            **{"shape": (int(x.max()) + 1,), "likelihood": Categorical(), **options}
        ), x
    x = rearrange(x, "b -> b 1") if x.ndim == 1 else x
    options = {"shape": tuple(x.shape[1:]), **options}
    options |= {"features": columns.names} if columns and "features" not in options else {}
    if (columns and columns.words) or wanted == "categorical":
        return _categories(x, columns, options)
    if "likelihood" not in options:
        seen = tables.presence(x)
        bits = bool(((x == 0) | (x == 1) | ~seen).all()) and bool(seen.any())
        options["likelihood"] = Bernoulli() if bits else Normal(scale="trained")
    plain = Modality(**options)
    whole = plain.likelihood.build(
        None
    ).integers  # only some likelihoods take integers, tables are full of them
    return plain, x if whole or x.is_floating_point() else _exact(x)


def _exact(x: Tensor) -> Tensor:
    """Whole numbers as floats that hold them all: large ones, such as dates, need float64."""
    return x.float() if x.element_size() <= 2 else x.double()


def _categories(
    x: Tensor, columns: Columns | None, options: dict[str, Any]
) -> tuple[Modality, Tensor]:
    """A modality of categories: words, numbers, or classes on the last axis already."""
    words = columns.words if columns else None
    x = x.double()
    seen = tables.presence(x).all(-1, keepdim=True)
    if not words and x.shape[-1] > 1 and not bool((Categorical().out_of_support(x) & seen).any()):
        return Modality(**{**options, "features": ()}), x.to(torch.get_default_dtype())
    step = OneHot(categories=words) if words else OneHot().fit(x, (), "categories")
    shape = (*x.shape[1:], len(step.categories))
    return Modality(
        **{**options, "shape": shape, "likelihood": Categorical(), "transform": (step,)}
    ), x
