"""Written back: gaps filled, and embeddings, as the kind of thing that the data came in.

Axes: n draws, b rows, d latent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from mvkit.core.batch import Batch, conform
from mvkit.core.modality import Modality
from mvkit.core.validation import Columns, Source
from mvkit.data import tables, write_tables
from mvkit.data.dataset import MultimodalDataset, as_batch
from mvkit.errors import RequestError, suggest
from mvkit.models import inference
from mvkit.models.multimodal import MultimodalModel, check_model

MEMORY = 2**27  # bytes that the draws of a block of rows may take


HIDDEN = 1024  # numbers a row that networks are taken to hold beside their output


@attrs.frozen(eq=False)
class Imputation:
    """Filled data with their uncertainty, each part of the kind that came in.

    Args:
        filled: the data, gaps filled.
        sd: standard deviations of what was filled in, 0 elsewhere; NaN for categories.
        quantiles: quantiles of what was filled in, by the share below; observed values elsewhere; NaN for categories.
        draws: the data filled n times at random, for multiple imputation, if asked for.
    """

    filled: Any
    sd: Any
    quantiles: dict[float, Any]
    draws: list[Any]


def impute(
    model: MultimodalModel,
    data: Any,
    *,
    n: int = 100,
    quantiles: Iterable[float] | None = None,
    draws: bool = False,
    all: bool = False,
    to: Iterable[str] | None = None,
    id: str | None = None,
    rows: str = "own",
    empty: str = "error",
    generator: torch.Generator | None = None,
) -> Any:
    """The data with gaps filled from what each row has: whole modalities, and single features of observed ones.

    A gap gets the mean over draws of z ~ q(z|x_observed) of the decoder's means, brought to the user's units (of
    categories the most probable; whole numbers are rounded). Uncertainty is that of x ~ p(x|z) at such draws.

    Args:
        model: trained.
        data: a mapping of tables or arrays, a dataset or a batch; the same comes back, tables with the same index and
            columns.
        n: draws of z.
        quantiles: shares such as (0.05, 0.95), or (): give an `Imputation` with standard deviations and quantiles.
        draws: give an `Imputation` with n filled data sets.
        all: replace observed values too.
        to: modalities to fill; None: those that came; others are added.
        id: the column of ids of tables that have them in a column.
        rows: of tables: their `own`, or `all` ids of all tables.
        empty: rows that observe nothing: `error`, or filled from the `prior`.
        generator: source of randomness.

    Example:
        >>> import numpy as np, mvkit
        >>> model = mvkit.Model({"a": (2,), "b": (1,)}, latent_dim=1, seed=0)
        >>> filled = mvkit.impute(model, {"a": np.array([[1.0, np.nan]]), "b": np.array([[np.nan]])})
        >>> float(filled["a"][0, 0]), bool(np.isnan(filled["b"]).any())
        (1.0, False)
    """
    check_model(model, "impute")
    shares = tuple(quantiles or ())
    asked = quantiles is not None or draws
    if any(not 0 <= share <= 1 for share in shares):
        raise RequestError(f"impute: quantiles {shares}; expected shares in [0, 1]")
    if rows not in ("own", "all"):
        raise RequestError(f"impute: rows={rows!r}; expected 'own' or 'all'")
    n = inference.check_count(n)
    if asked and n < 2:
        raise RequestError("impute: n=1; expected 2 draws at least to tell uncertainty")
    raw = _rows_of(data, id)
    seen = conform(raw, model.schema)
    raw = _as_in_training(raw, seen, model)
    names = inference.names_of(to, tuple(name for name in model.names if name in raw.data))
    for name in names:
        if name not in model.names:
            raise RequestError(
                f"impute: unknown modality {name!r}; {suggest(str(name), model.names)}"
            )
    plan = _Plan(model, names, n, shares, asked, draws, empty, generator)
    made = plan.run(seen)
    gaps = {name: _gap(seen, model, name) | all for name in names}
    back = _Back(data, raw, model, gaps, id, rows)
    filled = back({name: made[f"mean/{name}"][0] for name in names})
    if not asked:
        return filled
    quantile = {
        share: back({k: made[f"quantile/{k}"][i] for k in names}, blur=True)
        for i, share in enumerate(shares)
    }
    drawn = [back({k: made[f"draw/{k}"][i] for k in names}) for i in range(n if draws else 0)]
    sd = back({name: made[f"sd/{name}"][0] for name in names}, blur=True, rest=0.0)
    return Imputation(filled, sd, quantile, drawn)


def embed(
    model: MultimodalModel,
    data: Any,
    given: Iterable[str] | None = None,
    *,
    id: str | None = None,
    empty: str = "error",
) -> Any:
    """Posterior means of the rows, (b, d): a table with their ids for tables, an array for arrays, else a tensor.

    Args:
        model: trained.
        data: see `impute`.
        given: modalities to look at; None: all that each row has.
        id: the column of ids of tables that have them in a column.
        empty: rows with none of them: `error`, or the mean of the `prior`.

    Example:
        >>> import pandas, mvkit
        >>> model = mvkit.Model({"a": (1,)}, latent_dim=2, seed=0)
        >>> mvkit.embed(model, {"a": pandas.DataFrame({"x": [1.0, 2.0]}, index=["p", "q"])}).index.tolist()
        ['p', 'q']
    """
    check_model(model, "embed")
    raw = _rows_of(data, id)
    z = model.encode(raw, given, empty=empty)
    if _framed(data):
        return write_tables.embedding(
            z.cpu().numpy(), raw.extra["id"].tolist(), next(iter(data.values())), id
        )
    plain = isinstance(data, Mapping) and not any(isinstance(x, Tensor) for x in data.values())
    return z.cpu().numpy() if plain else z


def _framed(data: Any) -> bool:
    return isinstance(data, Mapping) and any(tables.is_table(value) for value in data.values())


def _rows_of(data: Any, id: str | None) -> Batch:
    return tables.from_frames(data, id) if _framed(data) and id is not None else as_batch(data)


def _as_in_training(raw: Batch, seen: Batch, model: MultimodalModel) -> Batch:
    """A batch with its words numbered as the model numbers them; `seen` is what the model made of it."""
    data, columns = dict(raw.data), dict(raw.columns)
    for name, own in raw.columns.items():
        modality = model.modalities[name]
        if own.words is not None:
            x, present = data[name], _as_given(raw, model, name, ~_gap(seen, model, name))
            source = Source(name, x, None, None, own)
            data[name] = own.re_encoded(x, modality.transform, present, own.names, source)
            columns[name] = Columns(
                own.names, modality.transform[0].words if modality.transform else None
            )
    return attrs.evolve(raw, data=data, columns=columns)


def _as_given(raw: Batch, model: MultimodalModel, name: str, x: Tensor) -> Tensor:
    """Columns (b, k) in the order of training in the order that they came in."""
    own, features = raw.columns.get(name), model.modalities[name].features
    return x if own is None or not features else Columns(features).arrange(x, own.names, name)


def _gap(seen: Batch, model: MultimodalModel, name: str) -> Tensor:
    """Where a modality's values are missing, (b, *raw_shape) or without the axis of classes."""
    observed = seen.observed[:, model.names.index(name)]
    present = (seen.elements or {}).get(name)
    if present is None:
        modality = model.modalities[name]
        axes = modality.raw_shape[:-1] if _classes(model, name) else modality.raw_shape
        present = torch.ones((len(seen), *axes), dtype=torch.bool, device=observed.device)
    return ~(present & observed.reshape(-1, *[1] * (present.ndim - 1)))


def _classes(model: MultimodalModel, name: str) -> bool:
    """Whether values in the user's units have an axis of classes."""
    return model.schema.likelihoods[name].class_axis and not model.modalities[name].transform


@attrs.frozen(eq=False)
class _Plan:
    """What to ask of a model about each block of rows."""

    model: MultimodalModel
    names: tuple[str, ...]
    n: int
    shares: tuple[float, ...]
    uncertain: bool
    draws: bool
    empty: str
    generator: torch.Generator | None

    def run(self, rows: Batch) -> dict[str, Tensor]:
        """Means, deviations, quantiles and draws by modality, (k, b, *raw_shape), on the CPU."""
        widest = max([self.model.modalities[name].numbers for name in self.names], default=1)
        numbers = self.n * (2 * widest + HIDDEN) * self.model.like.element_size()
        block = max(1, min(inference.ROWS, MEMORY // numbers))
        return self.model.in_blocks(self._block, rows, dim=1, rows=block)

    def _block(self, rows: Batch) -> dict[str, Tensor]:
        options: Any = {"n": self.n, "empty": self.empty, "generator": self.generator}
        made = {}
        for name, x in self.model.translate(rows, self.names, units="model", **options).items():
            made[f"mean/{name}"] = self.model.modalities[name].restore(x.mean(0, keepdim=True))
        if self.uncertain:
            for name, x in self.model.translate(rows, self.names, sample=True, **options).items():
                made |= self._spread(name, x)
        return {key: value.cpu() for key, value in made.items()}

    def _spread(self, name: str, x: Tensor) -> dict[str, Tensor]:
        blur = _blurred(self.model.modalities[name])
        found = {f"sd/{name}": x.std(0, keepdim=True)}
        # torch.quantile takes 16 million numbers at most; by (n + 1) p, intervals hold their share whatever n is
        shares = np.quantile(x.cpu().numpy(), self.shares, axis=0, method="weibull")
        shares = shares.reshape(len(self.shares), *x.shape[1:])
        found[f"quantile/{name}"] = torch.from_numpy(shares).to(x)
        found = (
            {key: torch.full_like(value, torch.nan) for key, value in found.items()}
            if blur
            else found
        )
        return found | ({f"draw/{name}": x} if self.draws else {})


def _blurred(modality: Modality) -> bool:
    """Whether values are categories, which have neither deviations nor quantiles."""
    return any(step.classes for step in modality.transform)


@attrs.frozen(eq=False)
class _Back:
    """Brings what a model made of a data set back into its form."""

    data: Any
    raw: Batch
    model: MultimodalModel
    gaps: dict[str, Tensor]
    id: str | None
    rows: str

    def __call__(
        self, made: dict[str, Tensor], *, blur: bool = False, rest: float | None = None
    ) -> Any:
        """The data with `made` in their gaps, and `rest` elsewhere, None for what was there.

        With `blur`, values are deviations or quantiles, not values of the data's own type.
        """
        merged = {name: self._merge(name, x, blur=blur, rest=rest) for name, x in made.items()}
        if _framed(self.data):
            return self._frames(merged, rest)
        device = next(iter(self.raw.data.values())).device
        values = {name: x.to(device) for name, (x, _) in merged.items()}
        if isinstance(self.data, Mapping):
            kept = {name: x for name, x in self.data.items() if name not in values}
            plain = not any(isinstance(x, Tensor) for x in self.data.values())
            return kept | {name: x.numpy() if plain else x for name, x in values.items()}
        batch = self._batch(values)
        if isinstance(self.data, MultimodalDataset):
            own = {
                name: m
                for name, m in self.model.modalities.items()
                if name not in self.data.modalities
            }
            return attrs.evolve(self.data, batch=batch, modalities=self.data.modalities | own)
        return batch

    def _merge(
        self, name: str, made: Tensor, *, blur: bool, rest: float | None
    ) -> tuple[Tensor, Tensor]:
        """Values in the encoding and the order of columns that the data have, and where they changed."""
        gap, raw = self.gaps[name].cpu(), self.raw.data.get(name)
        if raw is None:
            return made, torch.ones_like(made, dtype=torch.bool)
        raw = raw.cpu()
        made, gap = (_as_given(self.raw, self.model, name, x) for x in (made, gap))
        if _classes(self.model, name) and raw.ndim < made.ndim:
            made = torch.full(raw.shape, torch.nan) if blur else made.argmax(-1)
        elif _classes(self.model, name):
            gap = rearrange(gap, "... -> ... 1").expand(made.shape)
        if raw.ndim < made.ndim:
            made, gap = rearrange(made, "b 1 -> b"), rearrange(gap, "b 1 -> b")
        if rest is not None:
            return torch.where(gap, made, rest), gap
        if not raw.is_floating_point() and not blur:
            made = made > 0.5 if raw.dtype == torch.bool else made.round()
        return torch.where(
            gap, made.to(raw.dtype) if not blur or raw.is_floating_point() else made, raw
        ), gap

    def _batch(self, values: dict[str, Tensor]) -> Batch:
        """A batch in which what was filled is observed."""
        seen = conform(self.raw, self.model.schema)
        mask = seen.observed.clone()
        for name in values:
            mask[:, self.model.names.index(name)] = True
        elements = {
            name: _as_given(self.raw, self.model, name, x)
            for name, x in (seen.elements or {}).items()
            if name not in values
        }
        data = self.raw.data | values
        columns, extra = self.raw.columns, self.raw.extra
        return Batch(data, mask, elements or None, extra, order=self.model.names, columns=columns)

    def _frames(
        self, merged: dict[str, tuple[Tensor, Tensor]], rest: float | None
    ) -> dict[str, Any]:
        like, ids = next(iter(self.data.values())), self.raw.extra["id"].tolist()
        frames = {name: table for name, table in self.data.items() if name not in merged}
        for name, (x, gap) in merged.items():
            modality = self.model.modalities[name]
            words = modality.transform[0].words if modality.transform else ()
            cells = write_tables.Cells(x.numpy(), gap.numpy(), ids, modality.features, words)
            table, whole = self.data.get(name), self.rows == "all"
            frames[name] = write_tables.written(
                cells, table, like, self.id, whole=whole, plain=rest is not None
            )
        return frames
