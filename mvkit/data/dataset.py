"""Datasets: rows in memory with their gaps, from arrays, tables and files.

Axes: b rows, m modalities.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Literal, overload

import attrs
import numpy as np
from torch import Tensor

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.covariates import Covariate, Level
from mvkit.core.modality import Modality
from mvkit.core.raw_values import as_tensor
from mvkit.core.row_picks import RowPick
from mvkit.data import row_columns, table_columns, tables
from mvkit.data.align import SHOWN, Table, align, alignment, in_order, labels_of, library
from mvkit.data.door_checks import check_mapping, check_names, no_rows_in_memory
from mvkit.data.files import Files, read_files, read_npz, with_file_of_covariates
from mvkit.data.fitted_transforms import fitted
from mvkit.data.infer_modality import Given, inferred, is_categorical, masks_of, with_gaps
from mvkit.data.missing import Rate, Simulation, raw_values
from mvkit.data.row_columns import COVARIATES, RowColumn
from mvkit.data.shards import Shards, save_shards
from mvkit.data.sources import Source, observed
from mvkit.data.transforms import Steps
from mvkit.errors import DataError, ShapeError

Path = str | os.PathLike[str]


@attrs.frozen(eq=False, repr=False)
class MultimodalDataset:
    """Rows of several modalities with gaps: map-style, a whole batch at a time.

    Values stay in the user's units; `modalities` say what they are and how a model sees them.
    Modalities are inferred where they are not given: bits (bool, or only 0 and 1) are `bernoulli`;
    whole numbers (b,) that use each of 0 … C-1 are the classes of a `categorical`; anything else
    is `normal` with a trained scale, of each feature in rows of one axis, which decoders emit in
    units of each feature's spread; of all pixels together in pictures.

    Args:
        batch: all rows.
        modalities: what they are, for `Model(dataset.modalities)`.
        levels: what the covariates in `batch.extra` can be: words or whole numbers; none: they
            are numbers.

    Example:
        >>> import numpy as np
        >>> from mvkit import MultimodalDataset
        >>> arrays = {"sound": np.array([[0.5, 1.5], [np.nan] * 2]), "word": np.array([1, 0])}
        >>> data = MultimodalDataset.from_arrays(arrays, ids=["a", "b"])
        >>> data.modalities["word"].likelihood, data.batch.mask.tolist()
        (Categorical(), [[True, True], [False, True]])
    """

    batch: Batch
    modalities: dict[str, Modality]
    levels: dict[str, tuple[Level, ...]] = attrs.field(factory=dict, kw_only=True)

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, object],
        *,
        ids: object = None,
        label: object = None,
        covariates: object = None,
        row_weight: object = None,
        missing: object = "nan",
        modalities: Mapping[str, Given] | None = None,
        disjoint: bool = False,
    ) -> MultimodalDataset:
        """Rows of arrays or tensors, (b, *shape) each.

        Args:
            arrays: by modality.
            ids: an id for each row; or a mapping from modality to the ids of its rows, which are
                then aligned: the rows are all ids, in order of first appearance, and unobserved
                where a modality lacks them.
            label: a label for each row, or a mapping from id to label; kept, never modelled.
            covariates: by name, likewise, or a table; see `from_tables`. Exposures are among them.
            row_weight: how much each row counts in objectives, likewise.
            missing: `nan`: NaN is missing; `none`: nothing is, and NaN an error; or what is
                observed: (b, m) bool, or a mapping from modality to bool (b,) or (b, *shape).
            modalities: what a modality is, where it is not as inferred: a `Modality`, a dict of
                its options, or the name of a likelihood.
            disjoint: whether a modality may share no id with any other.

        Raises:
            DataError: ids that occur twice, or are disjoint; NaN where nothing is missing.
            ShapeError: lengths that differ without ids.
        """
        check_mapping(arrays, "from_arrays", "an array")
        own = ids if isinstance(ids, Mapping) else dict.fromkeys(arrays, ids)
        rows = {}
        for name, x in arrays.items():
            values = as_tensor(x, f"data[{name!r}]")
            given = own.get(name)
            own_ids = None if given is None else in_order(given, f"ids[{name!r}]")
            rows[name] = Table(values, own_ids)
        columns = table_columns.given_columns(covariates)
        columns += table_columns.given_weights(row_weight)
        return cls._aligned(rows, label, columns, missing, modalities or {}, disjoint)

    @classmethod
    def from_tables(
        cls,
        frames: Mapping[str, object],
        *,
        id: str | None = None,
        label: object = None,
        covariates: object = None,
        row_weight: object = None,
        missing: object = "nan",
        modalities: Mapping[str, Given] | None = None,
        disjoint: bool = False,
    ) -> MultimodalDataset:
        """Rows of pandas or polars tables, one per modality, aligned by ids; never by position.

        Args:
            frames: by modality; columns are features, and their names are kept.
            id: the column that holds ids; None: pandas' index.
            label: name of a column of labels, a Series by id, or a mapping from id to label. A
                table that holds nothing but the column is no modality.
            covariates: what models may be conditioned on, and exposures: names of columns of any
                of the tables, which are then no features; or a table of their own, or by name a
                Series or a mapping by id. Words and flags have levels, `False` and `True`; so do
                categories, in their order. Days are numbers, counted from 1970.
            row_weight: how much each row counts in objectives: a column's name, or by id.
            missing: see `from_arrays`.
            modalities: likewise; `categorical` for tables of text.
            disjoint: likewise.

        Raises:
            DataError: as `from_arrays`; text among numbers, with column, row and value.
        """
        given = modalities or {}
        check_mapping(frames, "from_tables", "a table")
        read = {name: tables.frame_of(name, frame, id) for name, frame in frames.items()}
        known = table_columns.read_covariates(covariates, id)
        every = table_columns.with_table(read, known)
        tables.check_lengths(every)
        tables.check_no_ids_left(every)
        columns = table_columns.columns_of_tables(read, known, row_weight)
        if isinstance(label, str):
            label = tables.pop_label(read, label)
        elif not (label is None or isinstance(label, Mapping) or library(label) == "pandas"):
            raise DataError(
                f"label: got a {type(label).__name__} without ids; expected a column's name, a "
                "Series or a mapping"
            )
        read = table_columns.without_columns(read, known, row_weight)
        rows = {}
        for name, frame in read.items():
            rows[name] = tables.read_table(name, frame, text=is_categorical(given.get(name)))
        return cls._aligned(rows, label, columns, missing, given, disjoint)

    @classmethod
    def _aligned(
        cls,
        rows: dict[str, Table],
        label: object,
        columns: Sequence[RowColumn],
        missing: object,
        given: Mapping[str, Given],
        disjoint: bool,
    ) -> MultimodalDataset:
        """A dataset of tables; see `from_arrays`."""
        check_names("modalities: no data for", given, rows)
        masks = masks_of(missing, rows)
        check_names("missing: no data for", masks, rows)
        modalities = {}
        for name, table in rows.items():
            if masks.get(name) is not None:
                table = with_gaps(name, table, masks[name])
            modalities[name], values = inferred(name, table, given.get(name))
            rows[name] = attrs.evolve(table, values=values)
        batch = align(rows, disjoint=disjoint)
        if label is not None:
            labels = labels_of(label, batch.extra.get("id"), len(batch))
            batch.extra["label"] = labels
        levels = row_columns.with_columns(batch, columns, modalities)
        return cls(batch, modalities, levels=levels)

    @classmethod
    def from_files(
        cls, files: Files, *, id: str | None = None, encoding: str = "utf-8", **options: Any
    ) -> MultimodalDataset:
        """Rows of one CSV, TSV or Parquet file per modality, aligned by the column `id`.

        Text files have names of columns in the first row and as many fields in every other. Ids
        are text there: "007" is not 7, and "NA" is a name. So is the category "None"; among
        numbers it is a gap, as NA, NaN and empty fields are everywhere else. A first column
        without a name that numbers the rows is left out.

        Args:
            files: by modality; .csv, .tsv (also compressed, such as .csv.gz) or .parquet.
            id: the column of ids; None: rows of one file, in order.
            encoding: of text files.
            options: as of `from_tables`; `covariates` may be such a file, too.

        Raises:
            DataError: as `from_tables`; a file that cannot be read, with its name and the line.
            OSError: no such file.
        """
        files, names = with_file_of_covariates(files, options.pop("covariates", None))
        frames = read_files(files, id, encoding)
        covariates = frames.pop(COVARIATES) if names is None else names
        return cls.from_tables(frames, covariates=covariates, **options)

    @classmethod
    def from_npz(
        cls, file: Path, *, id: str = "id", label: str = "label", **options: Any
    ) -> MultimodalDataset:
        """Rows of an `.npz` file: an array per modality, and ids and labels if it has them.

        Of the options, `covariates` may be a list of arrays' names, `row_weight` one of them.

        Raises:
            DataError: as `from_arrays`; a file that is no such archive, or is damaged.
            OSError: no such file.
        """
        arrays = read_npz(file)
        ids = arrays.pop(id, None)
        labels = arrays.pop(label, None)
        options |= table_columns.popped(arrays, options)
        return cls.from_arrays(arrays, ids=ids, label=labels, **options)

    def __len__(self) -> int:
        return len(self.batch)

    def __repr__(self) -> str:
        shapes = []
        for name, modality in itertools.islice(self.modalities.items(), SHOWN):
            shapes.append(f"{name} {modality.raw_shape}")
        if len(self.modalities) > SHOWN:
            shapes.append("…")
        return f"MultimodalDataset({', '.join(shapes)}; {self.alignment})"

    @overload
    def __getitem__(self, index: int) -> Batch: ...

    @overload
    def __getitem__(self, index: RowPick) -> MultimodalDataset: ...

    def __getitem__(self, index: int | RowPick) -> Batch | MultimodalDataset:
        if isinstance(index, int | Integral):
            return self.batch.take([range(len(self))[int(index)]])
        return self.take(index)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return self.batch.take(indices)

    def save(self, folder: Path, *, rows_per_shard: int | None = None) -> None:
        """Writes a folder of safetensors shards; see `mvkit.data.shards.save_shards`."""
        options: dict[str, Any] = {"rows_per_shard": rows_per_shard, "levels": self.levels}
        save_shards(self.batch, folder, self.modalities, **options)

    @staticmethod
    def open(folder: Path, **options: Any) -> Shards:
        """Rows of a folder that `save` wrote, memory-mapped; options as of `Shards`."""
        return Shards(folder, **options)

    @property
    def alignment(self) -> str:
        """How many rows have all modalities, and how many each: `312 of 351 rows in both: …`."""
        batch = as_batch(self)
        names = batch.order or tuple(self.modalities)
        if batch.schema is not None:
            names = batch.schema.names
        return alignment(observed(batch, names), names)

    @property
    def labels(self) -> Any:
        """`extra["label"]`, if there is one: numbers (b,), or an array of words."""
        return self.batch.extra.get("label")

    @property
    def ids(self) -> Any:
        """`extra["id"]`, if there is one: an array (b,) of whatever the ids are."""
        return self.batch.extra.get("id")

    @property
    def covariates(self) -> dict[str, Covariate]:
        """What a model may be conditioned on, for `Model(…, covariates=dataset.covariates)`; see
        `mvkit.data.row_columns.declared`.
        """
        return row_columns.declared(self.levels, self.modalities)

    def take(self, index: RowPick) -> MultimodalDataset:
        """The rows at `index`: positions (n,), flags (b,), a slice or ids; see `Batch.take`."""
        return attrs.evolve(self, batch=self.batch.take(index))

    def with_missing(
        self,
        rate: Rate,
        *,
        of: Literal["modalities", "elements"] = "modalities",
        by: Literal["label", "value"] | None = None,
        block: int = 1,
        seed: int = 0,
    ) -> MultimodalDataset:
        """The dataset with more missing, by simulation: a function of (seed, row).

        So of no batch and no worker. What was missing stays so, and a row keeps one observed
        modality at least.

        Args:
            rate: the share of places to hide, or a mapping from modality to share; with
                `by="label"`, or from label.
            of: hide whole `modalities`, or single `elements` (features, pixels).
            by: None: at random. Not at random: `label`: more in later labels, or each label at its
                rate; `value`: more where values are larger (of a modality: its mean), by rank over
                the dataset.
            block: consecutive rows that lack the same, such as those of a day or a site.
            seed: of the missingness.

        Raises:
            RequestError: an option that cannot be.
            DataError: a rate outside [0, 1]; no labels, or a label without a rate.
        """
        simulation = Simulation(rate, of, by, block, seed)
        if by != "label" and isinstance(rate, Mapping):
            check_names("with_missing: no modality", rate, self.modalities)
        return attrs.evolve(self, batch=simulation.apply(self.batch, self.modalities))

    def fit_transforms(self, transforms: Mapping[str, Steps]) -> MultimodalDataset:
        """The dataset with transforms fitted to its observed values, in `modalities`.

        Values themselves stay raw. Fit on the training rows only; a model made with these
        modalities applies the same numbers to any other data, and returns values in the user's
        units. Likelihoods are then densities in the model's units.

        Args:
            transforms: a transform or a list of them by modality, first to last; see
                `mvkit.available("transform")`.

        Example:
            >>> data = MultimodalDataset.from_arrays({"rna": np.array([[0.0, 9.0], [4.0, 2.0]])})
            >>> data = data.fit_transforms({"rna": ["log1p", "standardise"]})
            >>> data.modalities["rna"].transform
            (Log1p(), Standardise(over='feature', fitted))
        """
        modalities = dict(self.modalities)
        check_names("fit_transforms: no modality", transforms, modalities)
        for name, steps in transforms.items():
            values = raw_values(self.batch, name, modalities)
            modalities[name] = fitted(name, modalities[name], values, steps)
        return attrs.evolve(self, modalities=modalities)

    def split(self, *shares: float, seed: int = 0) -> tuple[MultimodalDataset, ...]:
        """Parts of rows drawn at random: `split(0.8, 0.1, 0.1)`; a function of the seed."""
        if not shares or min(shares) <= 0 or sum(shares) > 1 + 1e-9:
            raise DataError(
                f"split: got {shares}; expected positive shares that add up to 1 at most"
            )
        order = noise.permutation(len(self), noise.seeded(seed))
        ends = [round(float(end) * len(self)) for end in np.cumsum([0.0, *shares])]
        return tuple(self.take(order[start:end]) for start, end in itertools.pairwise(ends))


# what a model takes as rows: a batch, a dataset, a mapping from modality to array or table, or,
# where it needs one block of rows at a time, a source
Rows = Batch | MultimodalDataset | Mapping[str, object] | Source


def as_batch(data: Rows) -> Batch:
    """A batch, a dataset, or a mapping of arrays or of pandas tables as a batch."""
    if isinstance(data, Batch):
        return data
    if isinstance(data, MultimodalDataset):
        batch = data.batch
        if batch.schema is None and batch.mask is not None and batch.order is None:
            batch = attrs.evolve(batch, order=tuple(data.modalities))
        return batch
    if isinstance(data, Mapping):
        others = {k: x for k, x in data.items() if not isinstance(x, Tensor | np.ndarray)}
        framed = [name for name, value in others.items() if tables.is_table(value)]
        if not framed:
            return Batch(dict(data))
        if len(framed) < len(data):
            raise ShapeError(
                f"data[{framed[0]!r}]: a table among arrays; expected tables only, or arrays only"
            )
        return tables.from_frames(data)
    raise no_rows_in_memory(data)
