"""The explorer: a page on this machine, to pick a row, hide modalities of it and move latents.

Needs the extra `mvkit[explore]` (panel). What is drawn is plain matplotlib; panel adds controls.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvkit import plots
from mvkit.apps.html_report import run_data
from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.data.dataset import MultimodalDataset
from mvkit.errors import DataError, RequestError
from mvkit.models.checkpoint import load
from mvkit.models.multimodal import MultimodalModel
from mvkit.training.loss_curves import axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HOST = "127.0.0.1"  # never another: the page shows whatever data the run has
LEVEL = 0.8  # of the intervals
DRAWS = 99


def explore(run: Path, *, data: str | None = None, port: int = 5006, show: bool = True) -> None:
    """Serves the explorer of a run on the loopback address until it is stopped.

    Args:
        run: a folder with `model.safetensors`, and `run.toml` or `data`.
        data: name of a dataset, instead of what `run.toml` says.
        port: of the page.
        show: open a browser.

    Raises:
        DataError: a model that is not in the folder, be it by a link, or data that are not named.
        RequestError: panel is not installed.
    """
    try:
        import panel
    except ModuleNotFoundError:
        reason = "explore: panel is not installed: pip install 'mvkit[explore]'"
        raise RequestError(reason) from None
    weights = run / "model.safetensors"
    if not weights.is_file() or not weights.resolve().is_relative_to(run.resolve()):
        raise DataError(
            f"{run}: no model.safetensors in this folder, or a link that leads out of it; check "
            "the path"
        )
    model = load(weights)
    rows = run_data(run, data).test
    panel.extension()
    print(f"explorer: http://{HOST}:{port} (stop with Ctrl-C)", flush=True)
    panel.serve(
        {"/": lambda: layout(model, rows)},
        address=HOST,
        port=port,
        websocket_origin=[f"{HOST}:{port}", f"localhost:{port}"],
        show=show,
        title=f"{run.resolve().name} · mvkit",
        verbose=False,
    )


def layout(model: MultimodalModel, data: MultimodalDataset) -> Any:
    """The page, as an object of panel: controls, and what follows from them."""
    import panel as pn

    names = list(model.names)
    last = len(data) - 1
    row = pn.widgets.IntInput(name=f"row, 0 to {last}", value=0, start=0, end=last)
    seen = pn.widgets.CheckBoxGroup(name="observed", options=names, value=names)
    seed = pn.widgets.IntInput(name="seed of the draws", value=0, start=0)
    dims = list(range(model.latent_dim))
    dim = pn.widgets.Select(name="latent dimension", options=dims)
    shift = pn.widgets.FloatSlider(name="moved by", start=-3, end=3, step=0.25, value=0)
    for widget in (row, seen, seed, dim, shift):
        widget.sizing_mode = "stretch_width"

    def view(draw: plots.Draw, *widgets: object, width: int = 900) -> Any:
        """A picture of the row that follows the widgets, or why it cannot be drawn."""

        def draw_again(number: int, *values: object) -> Any:
            try:
                picked = model.conform(data.batch.take([number]))
                figure = plots.figure_of(draw(model, picked, *values))
            except (RequestError, DataError) as error:
                return pn.pane.Alert(str(error), alert_type="warning")
            size = {"sizing_mode": "scale_width", "max_width": width}
            return pn.pane.Matplotlib(figure, format="png", dpi=110, **size)

        return pn.bind(draw_again, row, *widgets)

    controls = [row, pn.pane.Markdown("observed"), seen, seed]
    views = [view(imputed, seen, seed), view(responsibilities, seen, width=450)]
    if dims:
        controls += [dim, shift]
        views.append(view(moved, seen, dim, shift))
    left = pn.Column(*controls, width=220)
    return pn.Row(left, pn.Column(*views, sizing_mode="stretch_width"))


def imputed(
    model: MultimodalModel,
    row: Batch,
    given: Sequence[str],
    seed: int = 0,
    figure: plots.FigureLike = None,
) -> plots.Grid:
    """A row's modalities from those given; axes (6, m).

    Lines: real, mean, at two draws of z, ends of the interval.
    """
    generator = noise.seeded(seed, model.like.device)
    generate = functools.partial(model.translate, row, given=given, generator=generator)
    samples = generate(n=DRAWS, sample=True)
    draws = generate(n=2)
    means = generate(latent="mean")
    real = plots.real_values(model, row)
    columns = []
    titles = []
    for name, value in zip(model.names, real, strict=True):
        ends = plots.central_interval(samples[name][:, 0], LEVEL)
        mean = means[name][0, 0]
        columns.append([value, mean, *draws[name][:, 0], *ends])
        shown = value is not None and name in given
        titles.append(f"{name} (given)" if shown else name)
    labels = ("real", "mean", "a draw", "a draw", f"{LEVEL:.0%} from", "to")
    lines = list(zip(labels, zip(*columns, strict=True), strict=True))
    return plots.gallery(figure, lines, titles)


def responsibilities(
    model: MultimodalModel, row: Batch, given: Sequence[str], ax: plots.AxesLike = None
) -> Axes:
    """The clusters of a row by what is given of it."""
    shares = model.clusters(row.hide(given), soft=True)[0].cpu()
    ax = axes_of(ax)
    ax.bar(np.arange(len(shares)), shares.numpy())
    ax.set(ylim=(0, 1), xlabel="cluster", ylabel="responsibility")
    return ax


def moved(
    model: MultimodalModel,
    row: Batch,
    given: Sequence[str],
    dim: int,
    by: float,
    figure: plots.FigureLike = None,
) -> plots.Grid:
    """All modalities decoded at the row's posterior mean, and after a move; axes (2, m).

    One dimension of the latent moves.
    """
    z = model.encode(row, given, empty="prior")[0]
    there = z.clone()
    there[dim] += by
    lines: list[plots.Line] = []
    for label, latent in {"at the mean": z, f"z{dim} {by:+g}": there}.items():
        lines.append((label, model.decode(latent).values()))
    return plots.gallery(figure, lines, model.names)
