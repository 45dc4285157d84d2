"""Imputation, returned in the user's container and units.

Axes: n draws, b rows, c classes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, cast

import attrs
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core import blocks, noise
from mvkit.core.asked_by import asked_by
from mvkit.core.batch import Batch, conform
from mvkit.core.noise import Generator
from mvkit.core.raw_values import Columns, Source, full_precision, widened
from mvkit.data import write_tables
from mvkit.data.dataset import MultimodalDataset, Rows
from mvkit.data.fitted_transforms import keep_units
from mvkit.data.sources import gather
from mvkit.data.table_files import FilePath
from mvkit.data.user_rows import is_framed, is_of_arrays, rows_of
from mvkit.data.write_tables import Frame, words_of
from mvkit.errors import RequestError, check_option, suggest
from mvkit.models import inference
from mvkit.models.calibration import Calibration
from mvkit.models.conformal import bounds_of, intervals_of
from mvkit.models.ensemble import Ensemble, check_models, draws_of_each
from mvkit.models.far_covariates import warn_if_far
from mvkit.models.impute_checks import check_blocks, check_draws, check_shares
from mvkit.models.imputed import Filled, Imputation
from mvkit.models.imputed_blocks import filled_in_blocks
from mvkit.models.imputed_sets import sets_of, table_of_sets
from mvkit.models.imputed_spread import restored, spread_of
from mvkit.models.inference import Empty, Names
from mvkit.models.multimodal import MultimodalModel
from mvkit.models.refiners import Wanted
from mvkit.models.source_blocks import is_source

HIDDEN = 1024  # numbers per row that networks are taken to hold beside their output
Kind = Literal["mean", "sd", "quantile", "draw", "low", "high"]
Tensors = dict[str, Tensor]
Merged = tuple[Tensor, Tensor]  # values, and where they changed


def impute(
    model: MultimodalModel | Ensemble,
    data: Rows,
    *,
    n: int = 100,
    quantiles: Iterable[float] | None = None,
    draws: bool = False,
    intervals: float | Calibration | None = None,
    all: bool = False,
    to: Names = None,
    id: str | None = None,
    covariates: object = None,
    rows: Literal["own", "all"] = "own",
    empty: Empty = "error",
    sampler: str | None = None,
    refine: Wanted = False,
    generator: Generator = None,
    into: FilePath | None = None,
) -> Filled:
    """The data with gaps filled from what each row has.

    Whole modalities, and single features of observed ones. A gap gets the mean over draws of
    z ~ q(z|x_observed) of the decoder's means, brought to the user's units (of categories the most
    probable; whole numbers and bits are rounded, in columns of tables too). Uncertainty is that
    of x ~ p(x|z) at such draws.

    In a model with `missingness`, that a value is missing counts: the mean is E[x_mis|x_O, s] by
    importance weights of 10 n draws; uncertainty is that of draws picked by these weights.

    Args:
        model: trained; or an `Ensemble`, whose models share out the draws.
        data: a mapping of tables or arrays, a dataset or a batch; the same comes back, tables with
            the same index and columns. Or a `Source`, such as rows on disk, which is filled a
            block at a time; a batch of all comes back.
        n: draws of z.
        quantiles: shares such as (0.05, 0.95), or (): return an `Imputation` with standard
            deviations and quantiles.
        draws: return an `Imputation` with n filled data sets.
        intervals: return an `Imputation` with intervals of numbers and sets of classes: a share
            such as 0.9, which the model's own are to hold, or what `mvkit.calibrate` returns,
            whose intervals hold their share whatever the model, if values are missing at random.
        all: replace observed values too.
        to: modalities to fill; None: those that came; others are added.
        id: the column of ids of tables that have them in a column.
        covariates: of the rows of tables or arrays, where the model is conditioned on some: a
            table, or by name; see `MultimodalDataset.from_arrays`.
        rows: of tables: their `own`, or `all` ids of all tables.
        empty: rows that observe nothing: `error`, or filled from the `prior`.
        sampler: where z comes from instead of the posterior; see `Model.translate`.
        refine: modalities whose draws are those of their refiners, from which means, deviations
            and quantiles follow; see `Model.translate`.
        generator: gives the seed; one of the CPU gives the same draws on every device.
        into: where filled rows are written a block at a time: a file that ends in .parquet,
            .csv or .h5ad (needs h5py), or else a folder of shards; it appears under its name when
            all is written. None: return them.

    Returns:
        The filled data, an `Imputation` of them, or the path of what was written.

    Raises:
        RequestError: options that cannot be; gaps among values that a transform changed for good,
            such as grey levels that became bits.

    Example:
        >>> import numpy as np, mvkit
        >>> model = mvkit.Model({"a": (2,), "b": (1,)}, latent_dim=1, seed=0)
        >>> data = {"a": np.array([[1.0, np.nan]]), "b": np.array([[np.nan]])}
        >>> filled = mvkit.impute(model, data)
        >>> float(filled["a"][0, 0]), bool(np.isnan(filled["b"]).any())
        (1.0, False)
    """
    check_models(model, "impute")
    shares = tuple(quantiles or ())
    bounds = intervals_of(model, intervals)
    uncertain = quantiles is not None or draws or bounds is not None
    check_shares(shares)
    check_option("impute: rows", rows, "own", "all")
    n = check_draws(n, uncertain)
    by_row = _noise_of(generator, model.like.device)
    if into is not None or is_source(data):
        check_blocks(uncertain, id, covariates, data)
        source: Any = data if is_source(data) else rows_of(data, id, covariates)
        asked = {"n": n, "all": all, "to": to, "empty": empty, "sampler": sampler}
        return _in_blocks(model, source, into, {**asked, "refine": refine, "generator": by_row})
    original = _Original(model, data, rows_of(data, id, covariates), id, all, rows == "all")
    names = _names_in(model, original.raw, to)
    options: dict[str, Any] = {"n": draws_of_each(model, n), "refine": refine}
    options |= {"empty": empty, "sampler": sampler, "generator": by_row}
    latent: Any = "draw" if model.missingness is None else "mean"

    def statistics(block: Batch) -> Tensors:
        noise.next_rows(by_row, len(block))
        means = model.translate(block, names, units="model", latent=latent, **options)
        values = _mean_of_draws(model, means)
        if uncertain:
            samples = model.translate(block, names, units="model", sample=True, **options)
            values |= spread_of(samples, model, shares, draws)
            values |= bounds_of(bounds, model, block, samples, means)
        return {key: value.cpu() for key, value in values.items()}

    with asked_by("impute"):
        size = _rows_of_block(model, names, n)
        values = model.in_blocks(statistics, original.seen, dim=1, rows=size)

    filled = functools.partial(_filled, original, values, names)
    if not uncertain:
        return filled("mean")
    quantile = {share: filled("quantile", i) for i, share in enumerate(shares)}
    drawn = [filled("draw", i) for i in range(n if draws else 0)]
    imputation = Imputation(filled("mean"), filled("sd"), quantile, drawn)
    return imputation if bounds is None else original.with_intervals(imputation, values, filled)


def _mean_of_draws(model: MultimodalModel | Ensemble, means: Tensors) -> Tensors:
    """Means over draws (n, b, *shape) of the decoder's means, {mean/name: (1, b, *shape)}."""
    values = {}
    for name, x in means.items():
        values[f"mean/{name}"] = restored(model, name, x.mean(0, keepdim=True))
    return values


def _filled(
    original: _Original, values: Tensors, names: Iterable[str], kind: Kind, i: int = 0
) -> Filled:
    """The data with statistics of one kind in their gaps, the i-th of several."""
    return original.with_values({name: values[f"{kind}/{name}"][i] for name in names}, kind)


def _in_blocks(
    model: MultimodalModel | Ensemble, source: Any, into: FilePath | None, options: dict[str, Any]
) -> Filled:
    """Raw rows in memory or of a source, filled a block at a time with options of `impute`."""
    fill: Any = functools.partial(impute, model, **options)
    first = gather(source, [0], None) if is_source(source) else source
    size = _rows_of_block(model, _names_in(model, first, options["to"]), options["n"])
    return cast(Filled, filled_in_blocks(fill, cast(Any, model), source, size, into))


def _noise_of(generator: Generator, device: torch.device) -> noise.ByRow:
    """Noise by row; blocks that are given one go on where others ended."""
    return generator if isinstance(generator, noise.ByRow) else noise.by_row(generator, device)


def _names_in(model: MultimodalModel | Ensemble, raw: Batch, to: Names) -> tuple[str, ...]:
    """The modalities to fill."""
    every = model.names
    names = inference.names_of(to, tuple(name for name in every if name in raw.data))
    for name in names:
        if name not in every:
            raise RequestError(f"impute: unknown modality {name!r}; {suggest(str(name), every)}")
    return names


def _rows_of_block(model: MultimodalModel | Ensemble, names: tuple[str, ...], n: int) -> int:
    """How many rows are filled at a time."""
    widest = max([model.modalities[name].numbers for name in names], default=1)
    numbers = n * (2 * widest + HIDDEN)
    size = blocks.block_size(numbers, blocks.IMPUTED, model.like.element_size())
    return min(inference.ROWS, size)


def _whole(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest whole numbers that an integer type holds."""
    if not x.is_floating_point():  # class indices
        return x
    limits = torch.iinfo(dtype)
    return x.round().clamp(limits.min, limits.max)


class _Original:
    """Data as they came, which take values of a model in their gaps.

    Args:
        model: the model.
        data: the user's.
        raw: the same as a batch.
        id: the column of ids of tables.
        replace: whether to replace observed values too.
        whole: whether tables get the rows of all ids.
    """

    def __init__(
        self,
        model: MultimodalModel | Ensemble,
        data: Rows,
        raw: Batch,
        id: str | None,
        replace: bool,
        whole: bool,
    ) -> None:
        self.model = model
        self.data = data
        self.id = id
        self.replace = replace
        self.whole = whole
        self.raw = raw
        self.seen = conform(self.raw, model.schema, compact=True)
        warn_if_far(model.decoding.conditions, self.seen, conformed=raw.schema is not None)
        self.gaps = {name: self._gap(name) for name in self.raw.data}
        self.raw = self._renumbered()

    def _gap(self, name: str) -> Tensor:
        """Where values are missing, (b, *raw_shape) or without the axis of classes."""
        observed = self.seen.observed[:, self.model.names.index(name)]
        elements = self.seen.elements or {}
        shape = self.model.modalities[name].raw_shape
        if self._has_classes(name):
            shape = shape[:-1]
        present = widened(observed, (len(observed), *shape))
        return ~(present & elements[name] if name in elements else present)

    def _has_classes(self, name: str) -> bool:
        """Whether values in the user's units have an axis of classes."""
        likelihood = self.model.schema.likelihoods[name]
        return likelihood.class_axis and not self.model.modalities[name].transform

    def _as_given(self, name: str, x: Tensor) -> Tensor:
        """Columns (b, k) in the order of training in the user's order."""
        own = self.raw.columns.get(name)
        features = self.model.modalities[name].features
        return x if own is None or not features else Columns(features).arrange(x, own.names, name)

    def _renumbered(self) -> Batch:
        """The data as a batch whose words are numbered as the model numbers them."""
        data = dict(self.raw.data)
        columns = dict(self.raw.columns)
        for name, own in self.raw.columns.items():
            steps = self.model.modalities[name].transform
            if own.words is not None or (steps and steps[0].words):
                x = data[name]
                present = self._as_given(name, ~self.gaps[name])
                source = Source(name, x, None, None, own)
                data[name] = own.re_encoded(x, steps, present, own.names, source)
                columns[name] = Columns(own.names, steps[0].words if steps else None)
        return attrs.evolve(self.raw, data=data, columns=columns)

    def with_values(self, values: Tensors, kind: Kind) -> Filled:
        """The data with values (b, *raw_shape) in their gaps.

        Deviations and quantiles are not of the data's own type; where there is no gap, deviations
        are 0 and other values those that were there.
        """
        data = self.data
        merged = {name: self._merged(name, x, kind) for name, x in values.items()}
        if is_framed(data):
            return self._frames(data, merged, kind)
        device = next(iter(self.raw.data.values())).device
        new: dict[str, Any] = {name: x.to(device) for name, (x, _) in merged.items()}
        if is_of_arrays(data):
            new = {name: full_precision(x).numpy() for name, x in new.items()}
        if isinstance(data, Mapping):
            return {**data, **new}
        batch = self._batch(new)
        if isinstance(data, MultimodalDataset):
            modalities = data.modalities | self.model.modalities | data.modalities
            return attrs.evolve(data, batch=batch, modalities=modalities)
        return batch

    def with_intervals(
        self, imputation: Imputation, values: Tensors, filled: Callable[[Kind], Filled]
    ) -> Imputation:
        """The imputation with ends of intervals, and sets of classes in the data's own kind.

        Sets (b, *places, c) of observed cells are their class alone.
        """
        known = self.seen.to("cpu").expanded()
        sets: dict[str, Any] = {}
        for key, x in values.items():
            kind, _, name = key.partition("/")
            if kind == "set":
                gap = self.gaps[name].cpu() | self.replace if name in self.gaps else None
                sets[name] = sets_of(self.model, name, x[0], known, gap)
        for name, flags in sets.items():
            if is_framed(self.data):
                sets[name] = table_of_sets(self.model, name, flags, self.raw.extra["id"].tolist())
            elif is_of_arrays(self.data):
                sets[name] = flags.numpy()
        return attrs.evolve(imputation, low=filled("low"), high=filled("high"), sets=sets)

    def _merged(self, name: str, new: Tensor, kind: Kind) -> Merged:
        """Values in the encoding and the order of columns of the data, and where they changed."""
        if name not in self.raw.data:
            dtype = torch.float64 if is_framed(self.data) else self.model.like.dtype
            return new.to(dtype), torch.ones_like(new, dtype=torch.bool)
        raw = self.raw.data[name].cpu()
        new = self._as_given(name, new)
        gap = self._as_given(name, self.gaps[name].cpu() | self.replace)
        own_type = kind in ("mean", "draw")
        if self._has_classes(name):
            if raw.ndim < new.ndim:
                new = new.argmax(-1) if own_type else torch.full(raw.shape, torch.nan)
            else:
                gap = rearrange(gap, "... -> ... 1").expand(new.shape)
        new = new.reshape(raw.shape)  # (b, 1) as (b,)
        gap = gap.reshape(raw.shape)
        self._check_units(name, raw, gap)
        if kind == "sd":
            return torch.where(gap, new, 0.0), gap
        if own_type and not raw.is_floating_point():
            new = new > 0.5 if raw.dtype == torch.bool else _whole(new, raw.dtype)
        if own_type or raw.is_floating_point():
            new = new.to(raw.dtype)
        return torch.where(gap, new, raw), gap

    def _check_units(self, name: str, raw: Tensor, gap: Tensor) -> None:
        """Raises RequestError where what fills a gap would be in other units than the rest."""
        steps = self.model.modalities[name].transform
        if gap.any() and not keep_units(steps, torch.where(gap, torch.nan, raw.double())):
            raise RequestError(
                f"impute: {name!r} went through {steps}, which cannot be undone, so that gaps "
                "would be filled in other units than those of the data; leave it out of to=, or "
                "give the data as the transforms leave them"
            )

    def _batch(self, values: Tensors) -> Batch:
        """A batch in which what was filled is observed."""
        mask = self.seen.observed.clone()
        for name in values:
            mask[:, self.model.names.index(name)] = True
        elements = {}
        for name, present in (self.seen.elements or {}).items():
            if name not in values:
                elements[name] = self._as_given(name, present)
        data = self.raw.data | values
        batch = Batch(data, mask, elements or None, self.raw.extra, order=self.model.names)
        return attrs.evolve(batch, columns=self.raw.columns)

    def _frames(
        self, data: Mapping[str, Frame], merged: Mapping[str, Merged], kind: Kind
    ) -> dict[str, Frame]:
        """The data with merged values; deviations are numbers, whatever the values stand for."""
        frames = dict(data)
        first = next(iter(data.values()))
        ids = self.raw.extra["id"].tolist()
        for name, (x, gap) in merged.items():
            modality = self.model.modalities[name]
            columns = None if name in data else modality.features or range(x.shape[1])
            frames[name] = write_tables.written(
                full_precision(x).numpy(),
                None if kind == "sd" else gap.numpy(),
                ids,
                data.get(name, first),
                id=self.id,
                columns=columns,
                words=words_of(modality),
                whole=self.whole,
                own_type=kind in ("mean", "draw"),
            )
        return frames
