"""Transforms fitted to rows that are gone through once, a block at a time.

Axes: b rows of a block, f features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch

from mvkit.core.batch import Batch
from mvkit.core.likelihood import Likelihood
from mvkit.core.modality import Modality, Sizes
from mvkit.data.align import check_values
from mvkit.data.door_checks import check_names
from mvkit.data.fitted_transforms import checked_steps, likelihood_of, with_steps
from mvkit.data.lengths import check_length
from mvkit.data.missing import seen_values
from mvkit.data.sources import Source, gather, reading_ahead
from mvkit.data.transforms import Learner, Steps, Transform
from mvkit.errors import DataError

BLOCK = 512  # rows that are looked at together
Blocks = Callable[[], Iterable[Batch]]  # begins another pass
Transforms = Mapping[str, Steps]


def fit_in_passes(
    rows: Source | Iterable[Batch],
    modalities: Mapping[str, Modality],
    transforms: Transforms,
    *,
    block: int = BLOCK,
) -> dict[str, Modality]:
    """Modalities with transforms fitted to rows of which one block is in memory at a time.

    They are what `MultimodalDataset.fit_transforms` fits to the same rows in memory, but for
    rounding (1e-12). One pass does for any number of modalities, each with one transform that
    learns; where one learns from what another returns, or a likelihood takes some numbers only,
    there is one pass more for each.

    Args:
        rows: a source, such as shards; or an iterable of batches, which begins anew for each pass,
            if there must be several.
        modalities: what they are, in the order of the masks.
        transforms: see `MultimodalDataset.fit_transforms`.
        block: rows of a source that are gathered together.

    Raises:
        DataError: as `MultimodalDataset.fit_transforms`; batches that come but once where they are
            needed again; a transform that learns from all rows together.

    Example:
        >>> import torch, mvkit
        >>> from mvkit.data.one_pass import fit_in_passes
        >>> parts = [mvkit.Batch({"a": torch.tensor([[x]])}) for x in (0.0, 2.0)]
        >>> fitted = fit_in_passes(parts, {"a": mvkit.Modality((1,))}, {"a": "standardise"})
        >>> fitted["a"].transform[0].mean
        (1.0,)
    """
    check_names("fit_transforms: no modality", transforms, modalities)
    fits = {}
    for name, steps in transforms.items():
        fits[name] = _ModalityFit(
            name, modalities[name], checked_steps(name, modalities[name], steps)
        )
    passes = _passes(rows, block)
    while any(fit.waits for fit in fits.values()):
        start = 0
        waiting = [fit for fit in fits.values() if fit.waits]
        for fit in waiting:
            fit.begin()
        for batch in passes():
            for fit in waiting:
                fit.add(batch, modalities, start)
            start += len(batch)
        if not start:
            raise DataError("fit_transforms: the data have no rows; expected one at least")
        for fit in waiting:
            fit.end()
    return {**modalities, **{name: fit.result() for name, fit in fits.items()}}


def _passes(rows: Source | Iterable[Batch], block: int) -> Blocks:
    """What begins a pass over rows; of an iterator, once."""
    if isinstance(rows, Source):
        source = rows
        return lambda: _blocks(source, block)
    begun: list[bool] = []

    def again() -> Iterable[Batch]:
        if begun and iter(rows) is rows:
            raise DataError(
                "fit_transforms: the batches come but once, and are needed again, since a "
                "transform learns from what another returns, or a likelihood takes some numbers "
                "only; expected an iterable that begins anew, such as a list or shards; save them "
                "as shards"
            )
        begun.append(True)
        return rows

    return again


def _blocks(source: Source, block: int) -> Iterator[Batch]:
    """The rows of a source in order."""
    check_length(source, "fit_transforms")
    parts = list(torch.arange(len(source)).split(block))
    with reading_ahead(source, parts) as rows:
        for index in parts:
            yield gather(rows, index.tolist(), None)


class _ModalityFit:
    """The transforms of one modality: those that are fitted, and what the others learn.

    Args:
        name: of the modality.
        modality: as it was given.
        steps: its transforms, first to last.
    """

    def __init__(self, name: str, modality: Modality, steps: Sequence[Transform]) -> None:
        self.name = name
        self.modality = modality
        self.fitted: list[Transform] = []
        self.rest = list(steps)
        self.where = f"data[{name!r}]"
        self.shape = modality.raw_shape
        self.seen = False
        self.looked = False  # at every value, after all transforms
        self.learner: Learner | None = None
        self.likelihood: Likelihood | None = None
        self.taken = likelihood_of(steps) is None

    @property
    def waits(self) -> bool:
        """Whether another pass is needed."""
        return bool(self.rest) or not self.looked

    def begin(self) -> None:
        """Begins a pass, with all transforms fitted up to the next that learns."""
        while self.rest and type(self.rest[0]).fit is Transform.fit:
            self.fitted.append(self.rest.pop(0))
        if self.rest:
            self.learner = self.rest[0].learner(self.modality.features, self.where)
            if self.learner is None:
                raise DataError(
                    f"{self.where}: {self.rest[0]!r} learns from all rows together; expected a "
                    "transform with a learner; fit it to rows in memory, such as some of them"
                )
        elif self.taken:
            self.likelihood = self.modality.likelihood.build(Sizes.alone(self.modality))
            self.taken = not self.likelihood.class_axis

    def add(self, batch: Batch, modalities: Mapping[str, Modality], start: int) -> None:
        """Looks at the rows of a batch, of which the first has number `start`."""
        x = seen_values(batch, self.name, modalities)
        if x is None:
            return
        names = self.modality.features
        numbers = range(start, start + len(x))
        fault = "is not finite; expected finite numbers; correct it, or make it NaN"
        check_values(torch.isinf(x), self.where, fault, names, x=x, ids=numbers)
        seen = ~torch.isnan(x)
        self.seen = True
        for step in self.fitted:
            fault = f"cannot be taken by {step!r}; expected {step.support}"
            outside = step.out_of_support(x) & seen
            check_values(outside, self.where, fault, names, x=x, ids=numbers)
            x = step.forward(torch.where(seen, x, 0.0))
            if not step.classes:
                x = torch.where(seen, x, torch.nan)
        self.shape = tuple(x.shape[1:])
        if self.learner is not None:
            self.learner.add(x)
        elif self.likelihood is not None and self.taken:
            self.taken = not bool((self.likelihood.out_of_support(x) & seen).any())

    def end(self) -> None:
        """Ends a pass."""
        if not self.seen:
            raise DataError(
                f"{self.where}: nothing is observed; expected one row at least; leave the "
                "modality out"
            )
        if self.learner is None:
            self.looked = True
            return
        self.fitted.append(self.learner.fitted())
        self.rest.pop(0)
        self.learner = None
        self.looked = not self.rest and self._takes_anything()
        self.shape = tuple(self.fitted[-1].forward(torch.zeros(1, *self.shape)).shape[1:])

    def _takes_anything(self) -> bool:
        """Whether nothing is to be learnt of values after the last transform."""
        if not self.taken:
            return True
        live = self.modality.likelihood.build(Sizes.alone(self.modality))
        self.taken = not live.class_axis
        return not self.taken or type(live).out_of_support is Likelihood.out_of_support

    def result(self) -> Modality:
        """The modality with its transforms."""
        return with_steps(self.modality, self.fitted, self.shape, taken=self.taken)
