"""The explorer: a page on this machine's own address, to pick a row, hide modalities of it, and move its latents.

Needs the extra `mvkit[explore]` (panel). What is drawn is plain matplotlib; panel puts controls beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mvkit import plots
from mvkit.apps.html_report import run_data
from mvkit.core.batch import Batch
from mvkit.data.dataset import MultimodalDataset
from mvkit.errors import DataError, RequestError
from mvkit.models.checkpoint import load
from mvkit.models.multimodal import MultimodalModel

HOST = "127.0.0.1"  # never another: the page shows whatever data the run has


LEVEL = 0.8


DRAWS = 99


def explore(run: Path, *, data: str | None = None, port: int = 5006, show: bool = True) -> None:
    """Serves the explorer of a run on the loopback address until it is stopped.

    Args:
        run: a folder with `model.safetensors`, and `run.toml` or `data`.
        data: name of a dataset, instead of what `run.toml` says.
        port: of the page.
        show: open a browser.

    Raises:
        DataError: a model that is not in the folder, be it by a link, or no word on its data.
        RequestError: panel is not installed.
    """
    try:
        import panel
    except ModuleNotFoundError:
        raise RequestError(
            "explore: panel is not installed: pip install 'mvkit[explore]'"
        ) from None
    weights = run / "model.safetensors"
    if not weights.is_file() or not weights.resolve().is_relative_to(run.resolve()):
        raise DataError(
            f"{run}: no model.safetensors in this folder, or a link that leads out of it; check the path"
        )
    model, rows = load(weights), run_data(run, data).test
    panel.extension()
    origins = [f"{host}:{port}" for host in (HOST, "localhost")]
    title = f"{run.resolve().name} · mvkit"
    print(f"explorer: http://{HOST}:{port} (stop with Ctrl-C)", flush=True)
    page = {"/": lambda: layout(model, rows)}
    panel.serve(
        page,
        address=HOST,
        port=port,
        websocket_origin=origins,
        show=show,
        title=title,
        verbose=False,
    )


def layout(model: MultimodalModel, data: MultimodalDataset) -> Any:
    """The page: controls and what follows from them."""
    import panel as pn

    names = list(model.names)
    row = pn.widgets.IntInput(
        name=f"row, 0 to {len(data) - 1}", value=0, start=0, end=len(data) - 1
    )
    seen = pn.widgets.CheckBoxGroup(name="observed", options=names, value=names)
    seed = pn.widgets.IntInput(name="seed of the draws", value=0, start=0)
    controls = [row, pn.pane.Markdown("observed"), seen, seed]
    shift = pn.widgets.FloatSlider(name="moved by", start=-3, end=3, step=0.25, value=0)
    dim = pn.widgets.Select(name="latent dimension", options=list(range(model.latent_dim)))

    for one in (row, seen, seed, dim, shift):
        one.sizing_mode = "stretch_width"

    def drawn(draw: Callable[..., Any], width: int = 900) -> Callable[..., Any]:
        """The picture of a function, or what it says that cannot be drawn."""

        def show(*values: Any) -> Any:
            try:
                figure = np.atleast_1d(draw(*values)).flat[0].figure
            except (RequestError, DataError) as error:
                return pn.pane.Alert(str(error), alert_type="warning")
            return pn.pane.Matplotlib(
                figure, format="png", dpi=110, sizing_mode="scale_width", max_width=width
            )

        return show

    def picked(number: int) -> Batch:
        return model.conform(data.batch.take([number]))

    views = [
        pn.bind(
            drawn(lambda i, given, s: imputed(model, picked(i), given, seed=s)), row, seen, seed
        ),
        pn.bind(drawn(lambda i, given: responsibilities(model, picked(i), given), 450), row, seen),
    ]
    if model.latent_dim:
        controls += [dim, shift]
        views.append(
            pn.bind(
                drawn(lambda i, given, d, by: moved(model, picked(i), given, d, by)),
                row,
                seen,
                dim,
                shift,
            )
        )
    return pn.Row(pn.Column(*controls, width=220), pn.Column(*views, sizing_mode="stretch_width"))


def imputed(
    model: MultimodalModel, row: Batch, given: Sequence[str], *, seed: int = 0, figure: Any = None
) -> NDArray[Any]:
    """A row's modalities from those given: real, mean, at two draws of z, ends of the interval; axes (6, m)."""
    names, generator = list(given), torch.Generator(model.like.device).manual_seed(seed)
    values = model.translate(row, given=names, n=DRAWS, sample=True, generator=generator)
    drawn = model.translate(row, given=names, n=2, generator=generator)
    means = model.translate(row, given=names, latent="mean", generator=generator)
    axes = plots.grid(figure, 6, len(model.names))
    for i, name in enumerate(model.names):
        shown = bool(row.observed[0, i])
        axes[0, i].set_title(name + (" (given)" if shown and name in names else ""), fontsize=9)
        if shown:
            plots.show(axes[0, i], model.modalities[name].restore(row.data[name])[0])
        ends = np.quantile(
            values[name][:, 0].cpu().numpy(), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0
        )
        for line, value in enumerate((means[name][0, 0], *drawn[name][:, 0], *ends), 1):
            plots.show(axes[line, i], value)
    lines = ("real", "mean", "a draw", "a draw", f"{LEVEL:.0%} from", "to")
    for line, title in enumerate(lines):
        axes[line, 0].set_ylabel(title, fontsize=8)
    return axes


def responsibilities(
    model: MultimodalModel, row: Batch, given: Sequence[str], *, ax: Any = None
) -> Any:
    """The clusters of a row by what is given of it."""
    found = model.clusters(row.hide(given), soft=True)[0].cpu()
    ax = plots.axes_of(ax)
    ax.bar(np.arange(len(found)), found.numpy())
    ax.set_ylim(0, 1)
    ax.set_xlabel("cluster")
    ax.set_ylabel("responsibility")
    return ax


def moved(
    model: MultimodalModel,
    row: Batch,
    given: Sequence[str],
    dim: int,
    by: float,
    *,
    figure: Any = None,
) -> NDArray[Any]:
    """All modalities decoded at the row's posterior mean, and with one dimension of it moved; axes (2, m)."""
    z = model.encode(row, list(given), empty="prior")[0]
    there = z.clone()
    there[dim] += by
    axes = plots.grid(figure, 2, len(model.names))
    for line, (title, latent) in enumerate((("at the mean", z), (f"z{dim} {by:+g}", there))):
        axes[line, 0].set_ylabel(title, fontsize=8)
        for i, (name, value) in enumerate(model.decode(latent).items()):
            plots.show(axes[line, i], value)
            axes[0, i].set_title(name, fontsize=9)
    return axes
