"""The report page: one HTML file that shows a run, and needs no network.

A run folder holds `model.safetensors`; `history.jsonl`, one row of the `History` per line, if
there is one; and `run.toml` with a table `[data]` (`name`, and the dataset's options), if the
command line trained it. The page is written from the template `templates/report.html.jinja`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

import mvkit
from mvkit.apps.pages import Picture, page_template
from mvkit.apps.report_figures import fullest_row, observing, pictures
from mvkit.apps.report_tables import PageTable, tables
from mvkit.apps.report_verdicts import Run, Verdict, verdicts
from mvkit.core.safe_file import write_whole
from mvkit.data.dataset import MultimodalDataset
from mvkit.data.datasets.catalogue import Splits, load_dataset
from mvkit.data.pipeline import as_pipeline
from mvkit.errors import DataError, MvkitError, SpecError
from mvkit.evaluation.by_feature import explained
from mvkit.evaluation.evaluate import MetricLike, evaluate
from mvkit.evaluation.report import TITLES, Report, cells_of
from mvkit.models.checkpoint import load
from mvkit.models.ensemble import members_of
from mvkit.models.multimodal import MultimodalModel
from mvkit.training.history import History
from mvkit.training.run_folder import notes_of
from mvkit.training.verdict import judge

FILES = "files.json"  # where the tables came from that `mvkit impute` filled
DOCTYPE = b"<!doctype html>"
LOOKED_AT = 1000  # test rows that tables and verdicts look at, spread over all
SECTIONS = {  # of figures and tables, by words of their titles
    "Modalities": (),
    "Latents": ("latent",),
    "Clusters": ("cluster",),
    "Training": ("epoch",),
}
Row = dict[str, float]


def write_page(
    run: Path,
    output: Path,
    *,
    data: str | None = None,
    seed: int = 0,
    metrics: Sequence[MetricLike] | None = None,
    sampler: str | None = None,
    refine: bool | list[str] = False,
    progress: bool | None = None,
) -> Report:
    """Evaluates the model of a run on its test rows and writes the page; returns the report.

    Of an ensemble, pictures and verdict are those of its first model.

    Args:
        run: the run's folder, or the file of a model in it, such as its ensemble.safetensors.
        output: the HTML file to write.
        data: name of a dataset, instead of what `run.toml` says.
        seed: of the evaluation and of the pictures.
        metrics: see `mvkit.evaluate`.
        sampler: likewise.
        refine: likewise.
        progress: show a bar; None: on a terminal only.

    Raises:
        DataError: a folder without a model, or that does not name its data.
    """
    _check_output(output)
    model = load(weights_of(run))
    first, *others = members_of(model)
    folder = folder_of(run)
    splits = run_data(folder, data)
    history = read_history(folder / "history.jsonl")
    options: dict[str, Any] = {"sampler": sampler, "refine": refine}
    about: dict[str, Any] = {"train": splits.train, "seed": seed, "progress": progress}
    report = evaluate(model, splits.test, metrics, **about, **options)
    run_history = History(history)
    judge(first, as_pipeline(splits.test, model.schema), run_history)
    notes = [
        *([f"pictures and verdict: of the first of {len(others) + 1} models"] if others else []),
        *(f"training: {note}" for note in notes_of(folder)),
        f"training rows: {splits.train.alignment}",
        f"test rows: {splits.test.alignment}",
    ]
    figures = pictures(first, splits, history, report, seed, **options)
    words, drawn = look(first, splits.test, run_history, report, seed, **options)
    shown = attrs.evolve(report, notes=(*report.notes, *notes))
    page = render(folder.resolve().name, shown, figures, drawn, words)
    write_whole(output, page.encode())
    return attrs.evolve(report, notes=(*report.notes, *run_history.verdict, *notes))


def look(
    model: MultimodalModel,
    test: MultimodalDataset,
    history: History,
    report: Report,
    seed: int,
    **options: Any,
) -> tuple[list[Verdict], dict[str, PageTable | str]]:
    """Verdicts, and tables by title, of rows spread over the test rows.

    Args:
        model: a model.
        test: the test rows.
        history: rows and sentences of the training.
        report: what was measured.
        seed: of draws.
        options: of `translate`, for errors of imputed features.
    """
    rows = observing(model.conform(test))
    step = max(1, -(-len(rows) // LOOKED_AT))
    rows = rows.take(slice(None, None, step))
    try:
        shares = explained(model, rows) if len(rows) else {}
    except MvkitError:
        shares = {}
    words = verdicts(Run(model, rows, history, report, shares))
    row = fullest_row(rows)
    return words, tables(model, rows, row, shares, seed, **options)


def _check_output(output: Path) -> None:
    """Raises DataError for a folder, or a file that is no page, which would be lost."""
    if output.is_dir():
        raise DataError(
            f"{output}: a folder; expected the name of a file, such as {output / 'report.html'}"
        )
    if output.is_file() and output.stat().st_size:
        with output.open("rb") as file:
            beginning = file.read(100).strip().lower()
        if not beginning.startswith(DOCTYPE):
            raise DataError(
                f"{output}: another file, no page, is there already; choose another name with -o"
            )


def folder_of(run: Path) -> Path:
    """The folder of a run: itself, or that of the file of a model in it."""
    return run.parent if _is_model(run) else run


def _is_model(run: Path) -> bool:
    """Whether it is the file of a model, not the folder of a run."""
    return run.suffix == ".safetensors" and run.is_file()


def weights_of(run: Path) -> Path:
    """The file of a run's model, which may be given itself.

    Raises:
        DataError: it is not in the folder, be it by a link.
    """
    if _is_model(run):
        return run
    if not run.is_dir():
        raise DataError(
            f"{run}: no such folder; expected the folder of a run, with model.safetensors; check "
            "the path"
        )
    weights = run / "model.safetensors"
    if not weights.is_file() or not _inside(weights, run):
        raise DataError(
            f"{run}: no model.safetensors in this folder, or a link that leads out of it; check "
            "the path"
        )
    return weights


def _inside(file: Path, run: Path) -> bool:
    """Whether a file is in a folder, links followed."""
    return file.resolve().is_relative_to(run.resolve())


def is_imputed(folder: Path) -> bool:
    """Whether `mvkit impute` wrote a folder, no run, and noted its files."""
    return (folder / FILES).is_file() and not (folder / "run.toml").exists()


def run_data(run: Path, name: str | None) -> Splits:
    """The data of a run: a dataset by name, or None: what `run.toml` says.

    Raises:
        DataError: a folder whose `run.toml` does not name its data.
    """
    if name is not None:
        return load_dataset(name)
    file = run / "run.toml"
    if is_imputed(run):
        raise DataError(
            f"{run}: a folder that mvkit impute wrote, whose report is "
            f"{run / 'report.html'}; expected the folder of a run; look around in it with mvkit "
            "explore, or give --data NAME and another page with -o"
        )
    if not _inside(file, run):
        raise DataError(
            f"{file}: a link that leads out of the folder; copy the file into it, or give --data "
            "NAME"
        )
    try:
        options = tomllib.loads(file.read_text("utf-8"))["data"]
        return load_dataset(**options)
    except SpecError as error:
        path = ".".join(filter(None, ("data", error.path)))
        raise SpecError(error.reason, f"{file}: {path}") from None
    except MvkitError:
        raise
    except (OSError, LookupError, TypeError, ValueError, RecursionError, OverflowError) as error:
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
    try:
        lines = path.read_text("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {error}; expected rows of the history, in JSON") from None
    for number, line in enumerate(lines, 1):
        rows.append(_row(line, f"{path}: line {number}"))
    return rows


def _row(line: str, where: str) -> Row:
    """A row of the history from its JSON."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: {error}; expected a row of the history, in JSON") from None
    plain = int | float | None  # null is written for numbers that are not finite
    if not isinstance(row, dict) or not all(isinstance(n, plain) for n in row.values()):
        raise DataError(
            f"{where}: {line[:60]}; expected a row of the history: an object of numbers, in JSON"
        )
    return row


def render(
    name: str,
    report: Report,
    figures: Mapping[str, Picture | str],
    tables: Mapping[str, PageTable | str] | None = None,
    verdicts: Sequence[Verdict] = (),
) -> str:
    """The page as HTML.

    Args:
        name: the run's name.
        report: what was measured.
        figures: by title: pictures, or why they could not be drawn, which is shown as a note.
        tables: likewise.
        verdicts: what stands first.
    """
    scores: dict[str, tuple[list[list[str]], list[list[str]]]] = {}
    for score in report.scores:
        shown, details = scores.setdefault(score.metric, ([], []))
        lines = details if score.detail else shown
        lines.append(cells_of(score))
    sections: dict[str, dict[str, Picture | PageTable]] = {section: {} for section in SECTIONS}
    notes = list(report.notes)
    for title, item in {**figures, **(tables or {})}.items():
        if isinstance(item, str):
            notes.append(f"{title}: not drawn: {item}")
        else:
            sections[section_of(title)][title] = item
    about = {"rows": 0, "seed": None, "versions": {}, "model": {}, **report.about}
    header = json.dumps(about["model"], indent=1)
    values = {"titles": TITLES, "scores": scores, "sections": sections, "notes": notes}
    values |= {"name": name, "about": about, "header": header, "version": mvkit.__version__}
    page: str = page_template("report.html.jinja").render(values, verdicts=verdicts)
    return page


def section_of(title: str) -> str:
    """The section of the page in which a figure or a table is."""
    for section, words in SECTIONS.items():
        if any(word in title.lower() for word in words):
            return section
    return next(iter(SECTIONS))
