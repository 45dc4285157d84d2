"""Rows of cells whose modalities are sparse matrices, in memory or on disk.

They stay sparse until a batch is gathered. Axes: b rows, m modalities, r rows of a matrix,
f features, n rows that are gathered.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvkit import Batch, Covariate, DataError, Modality, MultimodalDataset, ShapeError
from mvkit.core.raw_values import Columns
from mvkit.core.row_picks import RowPick, row_index
from mvkit.data.align import Table, alignment, in_order, labels_of, objects
from mvkit.data.batch_order import order, windowed
from mvkit.data.door_checks import check_mapping, check_names
from mvkit.data.infer_modality import Given, inferred
from mvkit.data.one_pass import fit_in_passes
from mvkit.data.row_columns import declared, with_columns
from mvkit.data.table_columns import given_columns, given_weights
from mvkit.data.transforms import Steps
from mvkit.errors import check_whole_number
from mvkit_omics.matrix_files import MatrixFile
from mvkit_omics.row_matrices import RowMatrix, in_memory

FIRST = 1024  # rows by which modalities are inferred
FITTED = 10_000  # rows to which transforms are fitted
WINDOW = 2**14  # rows that are shuffled together, about
Index = NDArray[np.int64]
Window = int | Literal["auto"] | None


class SparseRows:
    """Cells by modality, sparse until a batch is gathered: a `Source` for pipelines and `fit`.

    Row i of modality name is row `rows[name][i]` of its matrix; -1: the cell lacks it. Batches are
    dense, float64 where a matrix is and float32 elsewhere.

    The order of an epoch is a function of (seed, epoch). Of matrices in memory it is that of a
    dense dataset, so that the batches are the same. From disk, blocks of rows that follow each
    other come in random order, `window` of them shuffled together: what is read lies together.

    Args:
        matrices: by modality, (r, f): sparse matrices of scipy (of another format than CSR are
            converted), arrays, or a `MatrixFile`, which stays on disk.
        modalities: what a modality is: a `Modality`, a dict of its options, or the name of a
            likelihood; as the first rows look where it is not given (see `MultimodalDataset`).
        rows: where the rows of a modality are in its matrix, (b,), -1 where they lack it. Not
            given: all of the matrix, in order.
        features: names of the columns, by modality; models then match them by name.
        ids: an id for each row, (b,).
        label: a label for each row, or a mapping from id to label; kept, never modelled.
        covariates: see `MultimodalDataset.from_arrays`; so are exposures.
        row_weight: likewise.
        block: rows that follow each other and are moved together by `shuffle`.
        window: blocks that are shuffled together; None: all rows, in random order; `auto`: None in
            memory, and as many from disk as have 16,384 rows.

    Raises:
        DataError: a matrix or a file that cannot be read or gathered; no rows; an id that occurs
            twice; rows that a matrix does not have.
        ShapeError: lengths or shapes that do not fit.

    Example:
        >>> import mvkit, numpy, scipy.sparse
        >>> counts = scipy.sparse.csr_matrix(numpy.eye(4, 3, dtype="int32"))
        >>> rows = SparseRows({"rna": counts}, {"rna": "poisson"}, rows={"rna": [0, 1, 3]})
        >>> [batch.data["rna"].tolist() for batch in mvkit.Pipeline(rows, shuffle=False)]
        [[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]]
    """

    def __init__(
        self,
        matrices: Mapping[str, Any],
        modalities: Mapping[str, Given] | None = None,
        *,
        rows: Mapping[str, Any] | None = None,
        features: Mapping[str, Sequence[str]] | None = None,
        ids: Any = None,
        label: Any = None,
        covariates: Any = None,
        row_weight: Any = None,
        block: int = 64,
        window: Window = "auto",
    ) -> None:
        check_mapping(matrices, "SparseRows", "a matrix")
        given = {"modalities": modalities, "rows": rows, "features": features}
        for what, mapping in given.items():
            check_names(f"SparseRows: {what}: no matrix for", mapping or {}, matrices)
        self.matrices = {name: _opened(name, matrix) for name, matrix in matrices.items()}
        self.rows = _indices(self.matrices, rows or {})
        self.columns = _columns(self.matrices, features or {})
        self.block = check_whole_number("SparseRows: block", block, 1)
        self.window = self._window(window)
        self.modalities: dict[str, Modality] = {}
        self._known = self._described(ids, label)
        columns = [*given_columns(covariates), *given_weights(row_weight)]
        self.levels = with_columns(self._known, columns, matrices)
        for name in matrices:
            self.modalities[name] = self._modality(name, (modalities or {}).get(name))

    def _described(self, ids: Any, label: Any) -> Batch:
        """What is known of the rows without reading any: masks, ids and labels."""
        mask = torch.stack([torch.from_numpy(index >= 0) for index in self.rows.values()], 1)
        known = Batch({}, mask, order=tuple(self.matrices), columns=self.columns)
        b = len(mask)
        if ids is not None:
            listed = in_order(ids, "SparseRows: ids")
            if len(listed) != b:
                raise ShapeError(f"SparseRows: {len(listed)} ids for {b} rows; expected one each")
            _check_differ(listed)
            known.extra["id"] = objects(listed)
        if label is not None:
            known.extra["label"] = labels_of(label, known.extra.get("id"), b)
        return known

    def _window(self, window: Window) -> int | None:
        if window == "auto":
            on_disk = any(matrix.on_disk for matrix in self.matrices.values())
            return max(1, WINDOW // self.block) if on_disk else None
        return None if window is None else check_whole_number("SparseRows: window", window, 1)

    def _modality(self, name: str, given: Given) -> Modality:
        """What a modality is, by what is given and by its first rows."""
        matrix = self.matrices[name]
        index = self.rows[name]
        shape = (matrix.shape[1],)
        if isinstance(given, Modality) and given.raw_shape != shape:
            raise ShapeError(
                f"SparseRows: {name!r}: rows of shape {shape}; expected {given.raw_shape}, which "
                "the modality has"
            )
        first = index[index >= 0][:FIRST]
        if not len(first):
            raise DataError(
                f"SparseRows: no row has {name!r}; expected one at least; leave the matrix out"
            )
        # where it is known what the modality is, nothing is read
        values = matrix.gather(first[:0] if isinstance(given, Modality) else first)
        modality, _ = inferred(name, Table(values, None, self.columns.get(name)), given)
        return modality

    def __len__(self) -> int:
        return len(self.mask)

    def __repr__(self) -> str:
        shapes = []
        for name, matrix in self.matrices.items():
            place = ", on disk" if matrix.on_disk else ""
            shapes.append(f"{name} ({matrix.shape[1]}{place})")
        return f"SparseRows({', '.join(shapes)}; {self.alignment})"

    def __getitems__(self, indices: Sequence[int], /) -> Batch:
        index = np.asarray(indices, dtype=np.int64)
        data = {}
        for name, matrix in self.matrices.items():
            data[name] = matrix.gather(self.rows[name][index])
        return attrs.evolve(self._known.take(torch.from_numpy(index)), data=data)

    def epoch_order(self, *, seed: int, epoch: int) -> Tensor:
        """Indices of the rows in an epoch, (b,): shuffled in windows of blocks, or fully."""
        if self.window is None:
            return order(len(self), shuffle=True, seed=seed, epoch=epoch)
        blocks = [self.block] * (len(self) // self.block)
        rest = len(self) % self.block
        blocks += [rest] if rest else []
        return windowed(blocks, window=self.window, seed=seed, epoch=epoch)

    @property
    def mask(self) -> Tensor:
        """What each row observes, (b, m)."""
        return self._known.observed

    @property
    def extra(self) -> Mapping[str, Any]:
        """What else is known of each row: ids, labels, covariates, weights."""
        return self._known.extra

    @property
    def ids(self) -> Any:
        """`extra["id"]`, if there is one."""
        return self.extra.get("id")

    @property
    def labels(self) -> Any:
        """`extra["label"]`, if there is one."""
        return self.extra.get("label")

    @property
    def covariates(self) -> dict[str, Covariate]:
        """What a model may be conditioned on, as `MultimodalDataset.covariates`."""
        return declared(self.levels, self.modalities)

    @property
    def alignment(self) -> str:
        """How many rows have all modalities, and how many each."""
        return alignment(self.mask, tuple(self.matrices))

    def take(self, index: RowPick) -> SparseRows:
        """The rows at `index`, still sparse: positions (n,), flags (b,), a slice or ids."""
        picked = row_index(index, len(self), self.ids)
        known = self._known.take(picked)
        if not len(known):
            raise DataError("SparseRows: no rows were taken; expected one at least")
        places = np.arange(len(self))[picked if isinstance(picked, slice) else picked.numpy()]
        taken = copy.copy(self)
        taken.rows = {name: rows[places] for name, rows in self.rows.items()}
        taken._known = known
        return taken

    def dense(self, index: RowPick = slice(None)) -> MultimodalDataset:
        """The rows at `index` as a dataset in memory, for all that takes no source."""
        rows = self.take(index)
        batch = rows.__getitems__(range(len(rows)))
        return MultimodalDataset(batch, dict(self.modalities), levels=dict(self.levels))

    def fit_transforms(
        self, transforms: Mapping[str, Steps], *, rows: int | None = FITTED
    ) -> SparseRows:
        """These rows with transforms fitted to some of them, spread evenly, in `modalities`.

        Args:
            transforms: see `MultimodalDataset.fit_transforms`.
            rows: how many are looked at; None: all, a block at a time (see
                `mvkit.data.one_pass.fit_in_passes`).
        """
        fitted = copy.copy(self)
        if rows is None:
            fitted.modalities = fit_in_passes(self, self.modalities, transforms)
            return fitted
        check_whole_number("SparseRows.fit_transforms: rows", rows, 1)
        count = min(rows, len(self))
        index = np.arange(count) * len(self) // count
        fitted.modalities = self.dense(index).fit_transforms(transforms).modalities
        return fitted


def _opened(name: str, matrix: Any) -> RowMatrix:
    if isinstance(matrix, MatrixFile):
        return matrix.open()
    return in_memory(matrix, f"matrices[{name!r}]")


def _indices(matrices: Mapping[str, RowMatrix], rows: Mapping[str, Any]) -> dict[str, Index]:
    """Where the rows of each modality are in its matrix, (b,).

    Raises:
        ShapeError: lengths that differ.
        DataError: rows that a matrix does not have; no rows.
    """
    indices: dict[str, Index] = {}
    for name, matrix in matrices.items():
        raw = np.asarray(rows[name] if name in rows else np.arange(matrix.shape[0]))
        if raw.ndim != 1 or (raw.dtype.kind not in "iu" and len(raw)):
            raise ShapeError(
                f"rows[{name!r}]: {raw.dtype} of shape {raw.shape}; expected whole numbers (b,)"
            )
        index = raw.astype(np.int64)
        bad = (index < -1) | (index >= matrix.shape[0])
        if bad.any():
            place = int(bad.argmax())
            raise DataError(
                f"rows[{name!r}]: row {place} is at {index[place]}; expected 0 to "
                f"{matrix.shape[0] - 1}, of {matrix.shape[0]} rows, or -1 where it is missing"
            )
        indices[name] = index
    lengths = {name: len(index) for name, index in indices.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
        raise ShapeError(
            f"SparseRows: modalities differ in length: {listed}; expected one index of rows for "
            "each; give rows=, -1 where a row lacks a modality"
        )
    if not any(lengths.values()):
        raise DataError("SparseRows: there are no rows; expected one of one modality at least")
    return indices


def _columns(
    matrices: Mapping[str, RowMatrix], features: Mapping[str, Sequence[str]]
) -> dict[str, Columns]:
    """Names of the columns of the matrices that have some."""
    columns = {}
    for name, names in features.items():
        width = matrices[name].shape[1]
        if len(names) != width:
            raise ShapeError(
                f"features[{name!r}]: {len(names)} names for {width} columns; expected one for "
                "each"
            )
        columns[name] = Columns(tuple(map(str, names)))
    return columns


def _check_differ(ids: Sequence[Any]) -> None:
    """Raises DataError for an id that occurs twice."""
    if len(set(ids)) == len(ids):
        return
    seen = set()
    for place, id in enumerate(ids):
        if id in seen:
            raise DataError(
                f"SparseRows: ids: {id!r} occurs again at row {place}; expected each once; rename "
                "one"
            )
        seen.add(id)
