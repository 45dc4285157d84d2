"""The explorer: a page on this machine, to pick a row, hide modalities of it and move latents.

Needs the extra `mvkit[explore]` (panel). What is drawn is plain matplotlib; panel adds controls.
"""

from __future__ import annotations

import functools
import html
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvkit import plots
from mvkit.apps.explorer_controls import (
    CovariateControl,
    latent_sources,
    refined_control,
    stated_by,
)
from mvkit.apps.html_report import folder_of, run_data, weights_of
from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.data.dataset import MultimodalDataset
from mvkit.errors import DataError, RequestError
from mvkit.models.asked_rows import stated_covariates
from mvkit.models.checkpoint import load_model
from mvkit.models.multimodal import MultimodalModel
from mvkit.training.loss_curves import axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HOST = "127.0.0.1"  # never another: the page shows whatever data the run has
NAMES = (HOST, "localhost")
UNUSED = 5000  # milliseconds that what a closed page showed is kept
LEVEL = 0.8  # of the intervals
DRAWS = 99


def explore(run: Path, *, data: str | None = None, port: int = 5006, show: bool = True) -> None:
    """Serves the explorer of a run on the loopback address until it is stopped.

    The address of the page has a secret in it, so that nobody else on this machine can read it.

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
    model = load_model(weights_of(run))
    rows = run_data(folder_of(run), data).test
    model.conform(rows.batch)  # refuses data of another model before a page shows that
    panel.extension()
    secret = secrets.token_urlsafe(16)
    hosts = [f"{name}:{port}" for name in NAMES]
    server = panel.serve(
        {"/": lambda: layout(model, rows)},
        address=HOST,
        port=port,
        prefix=secret,
        auth_provider=host_check(hosts),
        websocket_origin=hosts,
        unused_session_lifetime_milliseconds=UNUSED,
        check_unused_sessions_milliseconds=UNUSED,
        title=f"{folder_of(run).resolve().name} · mvkit",
        show=False,
        start=False,
        verbose=False,
    )
    print(f"explorer: http://{HOST}:{port}/{secret} (stop with Ctrl-C)", flush=True)
    if show:
        server.io_loop.add_callback(server.show, "/")
    server.start()
    server.io_loop.start()


def host_check(hosts: Sequence[str]) -> Any:
    """What asks every request of the page for its Host, as an object of bokeh.

    A page elsewhere whose name was made to lead to this machine sends its own name as Host.
    """
    from bokeh.server.auth_provider import AuthProvider
    from tornado.web import HTTPError, RequestHandler

    def reader(handler: RequestHandler) -> str:
        if handler.request.host.lower() not in hosts:
            raise HTTPError(403, "asked for by another name than that of this machine")
        return "reader"

    attributes: dict[str, Any] = {
        "get_user": staticmethod(reader),
        "login_url": "/",  # never asked for: who is refused gets an error
    }
    others = ("get_user_async", "get_login_url", "login_handler", "logout_url", "logout_handler")
    attributes |= dict.fromkeys(others)
    provider: Any = type("HostCheck", (AuthProvider,), attributes)
    return provider()


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
    chosen = [CovariateControl.of(model, name) for name in model.schema.covariates]
    for widget in (row, seen, seed, dim, shift):
        widget.sizing_mode = "stretch_width"

    watched = [widget for control in chosen for widget in control.widgets]

    def view(draw: plots.Draw, *widgets: object, width: int = 900) -> Any:
        def draw_again(number: int, *values: object) -> Any:
            covariates = stated_by(chosen, values[len(widgets) :])
            drawn = values[: len(widgets)]
            return _picture(model, data.batch, draw, width, number, drawn, covariates)

        return pn.bind(draw_again, row, *widgets, *watched)

    controls = [row, pn.pane.Markdown("observed"), seen, seed]
    sources = latent_sources(model)
    refined = refined_control(model)
    controls += [*sources, refined]
    for control in chosen:
        controls += control.widgets
    views = [
        view(_generated, seen, seed, refined, *sources),
        view(responsibilities, seen, width=450),
    ]
    if dims:
        controls += [dim, shift]
        views.append(view(moved, seen, dim, shift))
    left = pn.Column(*controls, width=220)
    return pn.Row(left, pn.Column(*views, sizing_mode="stretch_width"))


def _picture(
    model: MultimodalModel,
    batch: Batch,
    draw: plots.Draw,
    width: int,
    number: int,
    values: Sequence[object],
    covariates: Mapping[str, object],
) -> Any:
    """A picture of a row that follows the widgets, or why it cannot be drawn."""
    import panel as pn

    try:
        picked = model.conform(batch.take([number]))
        figure = plots.figure_of(draw(model, picked, *values, covariates=covariates))
    except (RequestError, DataError) as error:
        text = html.escape(str(error))  # it quotes names, which may look like HTML
        return pn.pane.HTML(text, css_classes=["alert"], styles={"color": "#8a4b00"})
    size = {"sizing_mode": "scale_width", "max_width": width}
    return pn.pane.Matplotlib(figure, format="png", dpi=110, **size)


def _generated(
    model: MultimodalModel,
    row: Batch,
    given: Sequence[str],
    seed: int,
    refine: bool,
    *source: str | None,
    covariates: Mapping[str, object],
) -> plots.Grid:
    """What `imputed` draws, by the states of the controls; `source` is a sampler, if one is
    offered.
    """
    sampler = source[0] if source else None
    return imputed(model, row, given, seed, sampler, covariates=covariates, refine=refine)


def imputed(
    model: MultimodalModel,
    row: Batch,
    given: Sequence[str],
    seed: int = 0,
    sampler: str | None = None,
    figure: plots.FigureLike = None,
    covariates: Mapping[str, object] | None = None,
    refine: bool = False,
) -> plots.Grid:
    """A row's modalities from those given, by the posterior or a sampler; axes (6, m).

    Lines: real, mean, at two draws of z, ends of the interval. They are generated as if the row
    had other covariates, where some are stated. With `refine`, draws and the interval are those of
    the refiners that the model has.
    """
    generator = noise.seeded(seed, model.like.device)
    options: dict[str, Any] = {
        "given": given,
        "covariates": covariates,
        "sampler": sampler,
        "generator": generator,
    }
    generate = functools.partial(model.translate, row, **options)
    refiners = tuple(model.refiners) if refine else ()
    samples = generate(n=DRAWS, sample=True, refine=refiners)
    draws = generate(n=2, refine=refiners)
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
    model: MultimodalModel,
    row: Batch,
    given: Sequence[str],
    ax: plots.AxesLike = None,
    covariates: Mapping[str, object] | None = None,
) -> Axes:
    """The clusters of a row by what is given of it; covariates are always its own."""
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
    covariates: Mapping[str, object] | None = None,
) -> plots.Grid:
    """All modalities decoded at the row's posterior mean, and after a move; axes (2, m).

    One dimension of the latent moves; covariates are those stated, else those of the row.
    """
    z = model.encode(row, given, empty="prior")[0]
    there = z.clone()
    there[dim] += by
    stated = {**stated_covariates(row), **(covariates or {})}
    lines: list[plots.Line] = []
    for label, latent in {"at the mean": z, f"z{dim} {by:+g}": there}.items():
        lines.append((label, model.decode(latent, covariates=stated).values()))
    return plots.gallery(figure, lines, model.names)
