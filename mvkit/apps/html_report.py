"""The report page: one HTML file that shows a run, and needs no network.

A run folder holds `model.safetensors`; `history.jsonl`, one row of the `History` per line, if
there is one; and `run.toml` with a table `[data]` (`name`, and the dataset's options), if the
command line trained it. The page is written from the template `templates/report.html.jinja`.
"""

from __future__ import annotations

import base64
import io
import json
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import mvkit
from mvkit import plots
from mvkit.data.datasets.catalogue import Splits, load_dataset
from mvkit.errors import DataError, RequestError
from mvkit.evaluation.evaluate import MetricLike, evaluate
from mvkit.evaluation.report import TITLES, Report, cells_of
from mvkit.models.checkpoint import load
from mvkit.models.multimodal import MultimodalModel

CLUSTERS = 12  # shown; more would be too small to see
Row = dict[str, float]


def write_page(
    run: Path,
    output: Path,
    *,
    data: str | None = None,
    seed: int = 0,
    metrics: Sequence[MetricLike] | None = None,
    progress: bool | None = None,
) -> Report:
    """Evaluates the model of a run on its test rows and writes the page; returns the report.

    Args:
        run: the run's folder.
        output: the HTML file to write.
        data: name of a dataset, instead of what `run.toml` says.
        seed: of the evaluation and of the pictures.
        metrics: see `mvkit.evaluate`.
        progress: show a bar; None: on a terminal only.

    Raises:
        DataError: a folder without a model, or that does not name its data.
    """
    weights = run / "model.safetensors"
    if not weights.is_file():
        raise DataError(
            f"{run}: no model.safetensors in this folder; expected what a run writes; check the "
            "path"
        )
    model = load(weights)
    splits = run_data(run, data)
    history = read_history(run / "history.jsonl")
    report = evaluate(
        model, splits.test, metrics, train=splits.train, seed=seed, progress=progress
    )
    figures = pictures(model, splits, history, report, seed)
    output.write_text(render(run.resolve().name, report, figures), "utf-8")
    return report


def run_data(run: Path, name: str | None) -> Splits:
    """The data of a run: a dataset by name, or None: what `run.toml` says.

    Raises:
        DataError: a folder whose `run.toml` does not name its data.
    """
    if name is not None:
        return load_dataset(name)
    try:
        options = tomllib.loads((run / "run.toml").read_text("utf-8"))["data"]
        return load_dataset(**options)
    except (FileNotFoundError, KeyError, TypeError, tomllib.TOMLDecodeError) as error:
        raise DataError(
            f"{run}: run.toml does not say which data the model was trained on "
            f"({type(error).__name__}: {error}); expected a table [data] with a name; give "
            "--data NAME"
        ) from None


def read_history(path: Path) -> list[Row]:
    """The rows of a history file; none if there is no file."""
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise DataError(
                f"{path}: line {number}: {error}; expected a row of the history, in JSON"
            ) from None
    return rows


def pictures(
    model: MultimodalModel, splits: Splits, history: list[Row], report: Report, seed: int
) -> dict[str, bytes | str]:
    """PNG pictures by title; where one cannot be drawn, why."""
    test = splits.test
    name = model.names[0]
    clusters = range(min(CLUSTERS, model.n_clusters))
    figures: dict[str, bytes | str] = {}

    def add(title: str, draw: plots.Draw, *arguments: object, **options: object) -> None:
        try:
            drawn = plots.figure_of(draw(*arguments, **options))
        except (RequestError, DataError) as error:
            figures[title] = str(error)
            return
        file = io.BytesIO()
        drawn.savefig(file, format="png", dpi=130)
        figures[title] = file.getvalue()

    first_row = "Each modality imputed from each other, first test row"
    add("Loss and bound by epoch", plots.losses, history)
    add(first_row, plots.translations, model, test, seed=seed)
    add("Coherence by number of modalities given", plots.coherence, report)
    add("Latents by label", plots.latent_map, model, test)
    add("Latents by cluster", plots.latent_map, model, test, colour="cluster")
    add(f"Latent dimensions moved, {name}", plots.traversal, model, name)
    add(f"{name} imputed with 80% intervals", plots.imputation, model, test, name, seed=seed)
    add("Rows by cluster", plots.cluster_sizes, model, test)
    add("A sample of each cluster", plots.cluster_samples, model, clusters=clusters, seed=seed)
    add("Which modality drives the posterior", plots.drivers, model, test)
    return figures


def render(name: str, report: Report, figures: Mapping[str, bytes | str]) -> str:
    """The page as HTML.

    Args:
        name: the run's name.
        report: what was measured.
        figures: by title: PNG pictures, or why they could not be drawn, which is shown as a note.
    """
    from jinja2 import StrictUndefined, Template

    path = files("mvkit.apps").joinpath("templates/report.html.jinja")
    template = Template(path.read_text("utf-8"), autoescape=True, undefined=StrictUndefined)
    tables: dict[str, tuple[list[list[str]], list[list[str]]]] = {}
    for score in report.scores:
        shown, details = tables.setdefault(score.metric, ([], []))
        lines = details if score.detail else shown
        lines.append(cells_of(score))
    drawn = {}
    notes = list(report.notes)
    for title, figure in figures.items():
        if isinstance(figure, bytes):
            drawn[title] = base64.b64encode(figure).decode()
        else:
            notes.append(f"{title}: not drawn: {figure}")
    about = {"rows": 0, "seed": None, "versions": {}, "model": {}, **report.about}
    header = json.dumps(about["model"], indent=1)
    values = {"titles": TITLES, "tables": tables, "figures": drawn, "notes": notes}
    values |= {"name": name, "about": about, "header": header, "version": mvkit.__version__}
    page: str = template.render(values)
    return page
