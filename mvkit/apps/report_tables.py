"""Tables and heat maps of the report page, by names of features, the largest errors first.

Axes: b rows, d latent, c clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from mvkit import plots
from mvkit.core.batch import Batch
from mvkit.errors import MvkitError, RequestError
from mvkit.evaluation.by_feature import (
    class_names,
    cluster_profiles,
    feature_errors,
    feature_names,
    is_flat,
    latent_effects,
    sources_of,
)
from mvkit.models.multimodal import MultimodalModel
from mvkit.plots.features import ImputedRow
from mvkit.training.verdict import ALIVE, deviations_of, latents_of

SHOWN = 12  # lines of a table, the others are folded
FOLDED = 300  # lines at most
COLUMNS = 12  # of a heat map
WORDY = ("feature", "given", "measure", "modality")  # columns of words, by their titles
STRONG = 2.0  # deviations that have the full colour


@attrs.frozen
class Cell:
    """A cell of a table.

    Args:
        text: what it says.
        share: of the full colour, from 0 to 1; None: it has none.
        cold: whether the colour is that of what is below.
    """

    text: str
    share: float | None = None
    cold: bool = False


@attrs.frozen
class PageTable:
    """A table of the page.

    Args:
        titles: of the columns.
        lines: cells in the order of the titles, the most telling first.
        about: what it shows, in a sentence.
        heat: whether it is a heat map.
    """

    titles: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    about: str = ""
    heat: bool = False

    @property
    def wordy(self) -> tuple[bool, ...]:
        """Which columns hold words."""
        return tuple(title in WORDY for title in self.titles)

    @property
    def shown(self) -> tuple[tuple[Cell, ...], ...]:
        """Lines that are shown."""
        return self.lines[:SHOWN]

    @property
    def folded(self) -> tuple[tuple[Cell, ...], ...]:
        """Lines that a reader can unfold."""
        return self.lines[SHOWN:FOLDED]


def number(value: float) -> str:
    """A number with four digits; a dash where there is none."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    text = f"{value:.0f}" if abs(value) >= 1e4 or value == round(value) else f"{value:.4g}"
    return text.replace("-", "−")


def percent(share: float) -> str:
    """A share as a text; a dash where it is not known."""
    if not math.isfinite(share):
        return "–"
    return f"{round(100 * share)}\N{NO-BREAK SPACE}%".replace("-", "−")


def signed(value: float, strong: float = STRONG) -> Cell:
    """A difference, in colour."""
    if not math.isfinite(value):
        return Cell("–")
    share = min(1.0, abs(value) / strong)
    text = f"{value:+.1f}" if round(value, 1) else "0.0"
    return Cell(text.replace("-", "−"), round(share, 2), value < 0)


def tables(
    model: MultimodalModel,
    rows: Batch,
    row: int,
    explained: Mapping[str, Mapping[str, float]],
    seed: int,
    **options: Any,
) -> dict[str, PageTable | str]:
    """Tables by title; where there is none, why.

    Args:
        model: a model.
        rows: conformed rows.
        row: which of them is shown as an example.
        explained: see `mvkit.evaluation.by_feature.explained`.
        seed: of draws.
        options: of `translate`, such as a sampler.
    """
    flat = [name for name in model.names if is_flat(model, name)]
    makers: dict[str, Callable[[], PageTable]] = {}
    if len(model.names) > 1:
        makers["What each modality tells of the others"] = lambda: exchange(explained)
    if flat:
        makers["Errors by feature"] = lambda: errors(model, rows, flat, **options)
        makers["One test row, imputed"] = lambda: example(model, rows, flat, row, seed, **options)
        if model.latent_dim:
            makers["What latents move"] = lambda: effects(model, rows)
        if model.n_clusters > 1:
            makers["What clusters are like"] = lambda: profiles(model, rows)
    drawn: dict[str, PageTable | str] = {}
    for title, make in makers.items():
        try:
            drawn[title] = make()
        except MvkitError as error:
            drawn[title] = str(error)
    return drawn


def exchange(explained: Mapping[str, Mapping[str, float]]) -> PageTable:
    """How much of each modality is explained by others: a heat map, given by generated."""
    names = list(next(iter(explained.values())))
    lines = []
    for given, shares in explained.items():
        cells = [Cell(given)]
        for name in names:
            share = shares[name]
            colour = round(min(1.0, max(0.0, share)), 2) if math.isfinite(share) else None
            cells.append(Cell(percent(share), colour))
        lines.append(tuple(cells))
    about = (
        "Lines are given, columns generated from them: the explained share of the variance, "
        "below 0 if the mean would be nearer. From itself it is a reconstruction."
    )
    return PageTable(("given", *names), tuple(lines), about, heat=True)


def errors(model: MultimodalModel, rows: Batch, flat: Sequence[str], **options: Any) -> PageTable:
    """Errors of features that are imputed from the other modalities, the largest first."""
    every = []
    for name in flat:
        own = {**options, "refine": refine_of(name, options.get("refine", False))}
        for error in feature_errors(model, rows, name, **own):
            every.append((name, error))
    if not every:
        raise RequestError("no test row has a feature and what it is imputed from")
    every.sort(key=lambda item: item[1].gain)
    lines = []
    for name, error in every:
        colour = round(min(1.0, max(0.0, error.gain)), 2)
        gain = Cell(percent(error.gain), colour)
        numbers = [Cell(number(error.error)), Cell(number(error.guess)), Cell(f"{error.cells:,}")]
        lines.append((Cell(error.feature), gain, *numbers, Cell(error.measure), Cell(name)))
    titles = ("feature", "less by", "error", "of a guess", "rows", "measure", "modality")
    about = (
        "Imputed from the other modalities, on test rows, in the units of the data; a guess is "
        "one value for all. The largest errors come first."
    )
    if len(model.names) == 1:
        about = about.replace("Imputed from the other modalities", "Reconstructed")
    return PageTable(titles, tuple(lines), about)


def refine_of(name: str, refine: bool | Sequence[str]) -> bool | list[str]:
    """Whether a modality is drawn by its refiner, as `translate` takes it."""
    if isinstance(refine, bool):
        return refine
    return [name] if name in refine else False


def example(
    model: MultimodalModel,
    rows: Batch,
    flat: Sequence[str],
    row: int,
    seed: int,
    *,
    sampler: str | None = None,
    refine: bool | Sequence[str] = False,
) -> PageTable:
    """A row: real values, imputed ones and intervals, the largest errors first."""
    every: list[tuple[float, tuple[Cell, ...]]] = []
    for name in flat:
        by: dict[str, Any] = {"sampler": sampler, "refine": refine_of(name, refine)}
        imputed = plots.imputed_row(model, rows, name, row=row, seed=seed, **by)
        if imputed.real is None or not sources_seen(model, rows, name, row):
            continue
        if model.schema.likelihoods[name].class_axis:
            every += _classes(model, name, imputed)
        else:
            every += _numbers(model, name, imputed)
    if not every:
        raise RequestError("the row that observes most has nothing to compare")
    every.sort(key=lambda item: -item[0])
    lines = tuple(cells for _, cells in every)
    titles = ("feature", "real", "imputed", "80 % from", "to", "modality")
    about = (
        "The test row that observes most, each modality imputed from its others. The largest "
        "errors, in widths of intervals, come first; real values outside are marked."
    )
    return PageTable(titles, lines, about)


def sources_seen(model: MultimodalModel, rows: Batch, name: str, row: int) -> bool:
    """Whether a row has anything that a modality is imputed from."""
    places = [model.names.index(source) for source in sources_of(model, name)]
    return bool(rows.observed[row, places].any())


def _numbers(
    model: MultimodalModel, name: str, imputed: ImputedRow
) -> Iterator[tuple[float, tuple[Cell, ...]]]:
    """Lines of numbers, each with its error."""
    if imputed.real is None or imputed.errors is None:
        return
    names = imputed.names or feature_names(model, name)
    columns = (names, imputed.errors, imputed.real, imputed.mean, imputed.low, imputed.high)
    for feature, error, real, mean, low, high in zip(*columns, strict=False):
        outside = not low <= real <= high
        marked = Cell(number(real), 1.0 if outside else None, cold=True)
        cells = (marked, Cell(number(mean)), Cell(number(low)), Cell(number(high)))
        yield error, (Cell(feature), *cells, Cell(name))


def _classes(
    model: MultimodalModel, name: str, imputed: ImputedRow
) -> Iterator[tuple[float, tuple[Cell, ...]]]:
    """Lines of classes: the real one, the likeliest, and how probable they are."""
    words = class_names(model, name)
    features = feature_names(model, name)
    real = torch.from_numpy(imputed.real).reshape(len(features), -1)
    odds = torch.from_numpy(imputed.mean).reshape(len(features), -1)
    for feature, truth, p in zip(features, real.argmax(1), odds, strict=True):
        said = int(p.argmax())
        wrong = said != int(truth)
        marked = Cell(words[int(truth)], 1.0 if wrong else None, cold=True)
        text = Cell(f"{words[said]} ({percent(float(p[said]))})")
        cells = (Cell(feature), marked, text, Cell(""), Cell(""), Cell(name))
        yield float(1 - p[int(truth)]), cells


def effects(model: MultimodalModel, rows: Batch) -> PageTable:
    """What latents that live move in which feature: a heat map."""
    deviations = deviations_of(latents_of(model, rows))
    order = deviations.argsort(descending=True).tolist()
    alive = [dim for dim in order if deviations[dim] >= ALIVE][:COLUMNS]
    if not alive:
        raise RequestError("no latent varies over rows")
    moved = latent_effects(model, rows)
    about = (
        "A latent moves from one standard deviation of the rows below its mean to one above: "
        "changes in standard deviations of the feature, of classes and bits in probability. "
        "Latents that vary most come first, and what is moved most."
    )
    return _heat(moved, alive, [f"z{dim}" for dim in alive], about)


def profiles(model: MultimodalModel, rows: Batch) -> PageTable:
    """How clusters differ from all rows, in which feature: a heat map."""
    clusters = model.clusters(rows).cpu()
    counts = torch.bincount(clusters, minlength=model.n_clusters)
    order = counts.argsort(descending=True).tolist()
    used = [cluster for cluster in order if counts[cluster]][:COLUMNS]
    about = (
        "Means of the rows of a cluster less those of all rows, in standard deviations, of "
        "classes and bits in shares. The largest clusters come first, and what tells them apart."
    )
    titles = [f"{cluster} ({int(counts[cluster]):,} rows)" for cluster in used]
    return _heat(cluster_profiles(model, rows, clusters), used, titles, about)


def _heat(
    values: Mapping[str, Mapping[str, Tensor]],
    places: Sequence[int],
    titles: Sequence[str],
    about: str,
) -> PageTable:
    """A heat map of values (n,) by modality and feature, at some places, the largest first."""
    every: list[tuple[float, str, str, list[float]]] = []
    for name, by_value in values.items():
        for feature, numbers in by_value.items():
            picked = numbers[list(places)]
            largest = float(picked.abs().nan_to_num(0.0).max())
            every.append((largest, name, feature, picked.tolist()))
    every.sort(key=lambda item: -item[0])
    names = [feature for _, _, feature, _ in every]
    lines = []
    for _, name, feature, differences in every:
        title = feature if names.count(feature) == 1 else f"{name}.{feature}"
        lines.append((Cell(title), *map(signed, differences)))
    return PageTable(("feature", *titles), tuple(lines), about, heat=True)
