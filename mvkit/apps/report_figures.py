"""Figures of the report page, as narrow as a telephone's screen, each in light and in dark.

Axes: b rows, m modalities.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import torch

from mvkit import plots
from mvkit.apps.pages import Picture, picture_of
from mvkit.apps.report_tables import refine_of
from mvkit.core.batch import Batch
from mvkit.data.dataset import as_batch
from mvkit.data.datasets.catalogue import Splits
from mvkit.errors import DataError, RequestError
from mvkit.evaluation.by_feature import is_flat
from mvkit.evaluation.report import Report
from mvkit.models.asked_rows import stated_covariates
from mvkit.models.multimodal import MultimodalModel
from mvkit.training.verdict import ALIVE, deviations_of, latents_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.75  # inches: 360 pixels of a page
HEIGHT = 2.9
CLUSTERS = 12  # shown; more would be too small to see
PICTURED = 3  # modalities of which latents are moved
MOVED = 8  # latents, those that vary most
LABELS = 1.1  # inches beside a grid

History = Sequence[dict[str, float]]
Figures = dict[str, "Picture | str"]


@attrs.frozen
class Drawing:
    """Draws figures, and remembers why some could not be drawn.

    Args:
        figures: what was drawn, by title.
    """

    figures: Figures = attrs.field(factory=dict)

    def add(self, title: str, draw: Callable[..., object], height: float = HEIGHT) -> None:
        """Draws into axes of a new figure."""
        figure = plots.new_figure(WIDTH, height)
        self._keep(title, figure, lambda: draw(ax=figure.add_subplot()))

    def add_grid(self, title: str, draw: Callable[..., object], lines: int, cell: float) -> None:
        """Draws a grid of so many lines, of cells so many inches high, into a new figure."""
        figure = plots.new_figure(WIDTH, 0.45 + lines * cell)
        self._keep(title, figure, lambda: draw(figure=figure))

    def _keep(self, title: str, figure: Figure, draw: Callable[[], object]) -> None:
        try:
            draw()
            self.figures[title] = picture_of(figure)
        except (RequestError, DataError) as error:
            self.figures[title] = str(error)


def pictures(
    model: MultimodalModel,
    splits: Splits,
    history: History,
    report: Report,
    seed: int,
    *,
    sampler: str | None = None,
    refine: bool | Sequence[str] = False,
) -> Figures:
    """Pictures by title; where one cannot be drawn, why.

    Args:
        model: a model.
        splits: its data.
        history: rows of its training.
        report: what was measured.
        seed: of draws.
        sampler: what draws the latents of generated pictures; see `mvkit.evaluate`.
        refine: modalities that are drawn by their refiners; likewise.
    """
    test = splits.test
    rows = model.conform(test)
    row = fullest_row(rows)
    drawing = Drawing()
    visual = [name for name in model.names if not is_flat(model, name)]
    if visual:
        options = {"row": row, "seed": seed, "sampler": sampler}
        _generated(drawing, model, test, visual, refine, **options)
    drawing.add("Which modality drives the posterior", partial(plots.drivers, model, test))
    if any(score.metric == "calibration" for score in report.scores):
        drawing.add("What intervals hold", partial(plots.coverage, report))
    drawing.add("Coherence by number of modalities given", partial(plots.coherence, report))
    title = "Latents by label" if "label" in as_batch(test).extra else "Latents"
    drawing.add(title, partial(plots.latent_map, model, test))
    if model.n_clusters:
        by_cluster = partial(plots.latent_map, model, test, colour="cluster")
        drawing.add("Latents by cluster", by_cluster)
        drawing.add("Rows by cluster", partial(plots.cluster_sizes, model, test))
    if visual:
        _moved(drawing, model, rows, visual)
        _clustered(drawing, model, rows, visual, seed, refine)
    drawing.add("Loss and bound by epoch", partial(plots.losses, history))
    drawing.add("Terms of the bound by epoch", partial(_terms, history), 3.6)
    return drawing.figures


def _terms(history: History, ax: Axes) -> None:
    """The terms of the bound, which some histories lack."""
    plots.losses(history, ax=ax)  # says what is wrong with it
    ax.clear()
    if not plots.draw_terms(ax, history).lines:
        raise RequestError("losses: the history has no terms")


def fullest_row(rows: Batch) -> int:
    """The first of the conformed rows that observe most: modalities first, then values."""
    modalities = rows.observed.sum(1)
    values = torch.zeros_like(modalities)
    for name in rows.data:
        values = values + rows.present(name).flatten(1).sum(1)
    return int((modalities * (1 + values.max()) + values).argmax())


def observing(rows: Batch) -> Batch:
    """The conformed rows that observe something."""
    return rows.take(rows.observed.any(1).nonzero()[:, 0])


def _generated(
    drawing: Drawing,
    model: MultimodalModel,
    test: Any,
    visual: Sequence[str],
    refine: bool | Sequence[str],
    **options: Any,
) -> None:
    """Pictures that are imputed, of the row that observes most.

    Args:
        drawing: what draws them.
        model: a model.
        test: rows.
        visual: modalities that are pictures.
        refine: those of them that are drawn by their refiners.
        options: of `plots.translations` and `plots.imputed_row`: row, seed and sampler.
    """
    cell = min(1.0, (WIDTH - LABELS) / len(visual))
    refined = refine if isinstance(refine, bool) else [n for n in visual if n in refine] or False
    draw = partial(plots.translations, model, test, to=visual, refine=refined, **options)
    title = "Each modality imputed from each other, one test row"
    drawing.add_grid(title, draw, len(model.names) + 1, cell)
    if len(model.names) > 1:
        draw = partial(_intervals, model, test, visual, refine, options)
        title = "Pictures imputed from all others, with 80% intervals"
        drawing.add_grid(title, draw, 4, cell)


def _intervals(
    model: MultimodalModel,
    test: Any,
    visual: Sequence[str],
    refine: bool | Sequence[str],
    options: Mapping[str, Any],
    figure: Figure,
) -> plots.Grid:
    """Real pictures, imputed ones, and both ends of their intervals."""
    columns = []
    shown = [name for name in visual if not model.schema.likelihoods[name].class_axis]
    for name in shown:
        own = refine_of(name, refine)
        imputed = plots.imputed_row(model, test, name, refine=own, **options)
        pictures: list[object] = []
        for values in (imputed.real, imputed.mean, imputed.low, imputed.high):
            shape = model.modalities[name].raw_shape
            pictures.append(None if values is None else values.reshape(shape))
        columns.append(pictures)
    if not columns:
        raise RequestError("no modality has intervals that are pictures")
    labels = ("real", "imputed", "80% from", "to")
    return plots.gallery(figure, list(zip(labels, zip(*columns, strict=True), strict=True)), shown)


def _moved(drawing: Drawing, model: MultimodalModel, rows: Batch, visual: Sequence[str]) -> None:
    """Pictures at moved latents, with the covariates of the first row."""
    options: dict[str, Any] = {"covariates": stated_covariates(rows.take([0]))}
    deviations = deviations_of(latents_of(model, observing(rows)))
    order = deviations.argsort(descending=True).tolist()
    alive = [dim for dim in order if deviations[dim] >= ALIVE] or order
    dims = alive[:MOVED]
    for name in visual[:PICTURED]:
        draw = partial(plots.traversal, model, name, dims=dims, **options)
        drawing.add_grid(f"Latent dimensions moved, {name}", draw, len(dims), 0.6)


def _clustered(
    drawing: Drawing,
    model: MultimodalModel,
    rows: Batch,
    visual: Sequence[str],
    seed: int,
    refine: bool | Sequence[str],
) -> None:
    """A sample of each cluster, with the covariates of the first row."""
    if not model.n_clusters:
        return
    clusters = range(min(CLUSTERS, model.n_clusters))
    options: dict[str, Any] = {"covariates": stated_covariates(rows.take([0]))}
    options |= {"clusters": clusters, "seed": seed, "to": visual}
    options["refine"] = refine if isinstance(refine, bool) else list(refine)
    cell = min(0.7, (WIDTH - 0.4) / len(visual))
    draw = partial(plots.cluster_samples, model, **options)
    drawing.add_grid("A sample of each cluster", draw, len(clusters), cell)
