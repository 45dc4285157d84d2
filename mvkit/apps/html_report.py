"""The report page: one HTML file with everything that a run has to show, and nothing that needs a network.

A run folder holds `model.safetensors`; `history.jsonl`, a row of the `History` a line, if there is one; and `run.toml`
with a table `[data]` (`name`, and the dataset's options), if the command line trained it.
"""

from __future__ import annotations

import base64
import html
import io
import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

import mvkit
from mvkit import plots
from mvkit.data.datasets.catalogue import Splits, load_dataset
from mvkit.errors import DataError, RequestError
from mvkit.evaluation.evaluate import evaluate
from mvkit.evaluation.report import Report
from mvkit.models.checkpoint import load
from mvkit.models.multimodal import MultimodalModel

CLUSTERS = 12  # shown; more would be too small to see


STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: #1d2330; }
h1 { font-size: 1.6rem; overflow-wrap: anywhere; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; border-bottom: 1px solid #d5d9e2; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p, li { overflow-wrap: anywhere; }
.muted { color: #596274; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
td + td, th + th { text-align: right; font-variant-numeric: tabular-nums; }
tr { border-bottom: 1px solid #eceef3; }
.figures { columns: 2 22rem; column-gap: 1.5rem; }
figure { margin: 0 0 1.2rem; break-inside: avoid; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { font-size: .9rem; color: #596274; }
pre { overflow-x: auto; font-size: .8rem; background: #f5f6f9; padding: .8rem; }
"""


def write_page(
    run: Path,
    output: Path,
    *,
    data: str | None = None,
    seed: int = 0,
    metrics: Any = None,
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
        DataError: a folder without a model, or without a word on its data.
    """
    weights = run / "model.safetensors"
    if not weights.is_file():
        raise DataError(
            f"{run}: no model.safetensors in this folder; expected what a run writes; check the path"
        )
    model, splits, history = (
        load(weights),
        run_data(run, data),
        read_history(run / "history.jsonl"),
    )
    report = evaluate(
        model, splits.test, metrics, train=splits.train, seed=seed, progress=progress
    )
    output.write_text(
        render(run.resolve().name, report, pictures(model, splits, history, report, seed)), "utf-8"
    )
    return report


def run_data(run: Path, name: str | None) -> Splits:
    """The run's data."""
    options: dict[str, Any] = {"name": name}
    if name is None:
        try:
            options = tomllib.loads((run / "run.toml").read_text("utf-8"))["data"]
            return load_dataset(**options)
        except (FileNotFoundError, KeyError, TypeError, tomllib.TOMLDecodeError) as error:
            raise DataError(
                f"{run}: run.toml does not say which data the model was trained on ({type(error).__name__}: {error}); "
                "expected a table [data] with a name; give --data NAME"
            ) from None
    return load_dataset(**options)


def read_history(path: Path) -> list[dict[str, float]]:
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
    model: MultimodalModel,
    splits: Splits,
    history: list[dict[str, float]],
    report: Report,
    seed: int,
) -> dict[str, bytes | str]:
    """PNG pictures by title; where one cannot be drawn, why."""
    test = splits.test
    name = model.names[0]
    shown = range(min(CLUSTERS, model.n_clusters))
    draw: dict[str, Callable[[], Any]] = {
        "Loss and bound by epoch": lambda: plots.losses(history),
        "Each modality imputed from each other, first test row": lambda: plots.translations(
            model, test, seed=seed
        ),
        "Coherence by number of modalities given": lambda: plots.coherence(report),
        "Latents by label": lambda: plots.latent_map(model, test),
        "Latents by cluster": lambda: plots.latent_map(model, test, colour="cluster"),
        f"Latent dimensions moved, {name}": lambda: plots.traversal(model, name),
        f"{name} imputed with 80% intervals": lambda: plots.imputation(
            model, test, name, seed=seed
        ),
        "Rows by cluster": lambda: plots.cluster_sizes(model, test),
        "A sample of each cluster": lambda: plots.cluster_samples(
            model, clusters=shown, seed=seed
        ),
        "Which modality drives the posterior": lambda: plots.drivers(model, test),
    }
    return {title: _drawn(one) for title, one in draw.items()}


def _drawn(draw: Callable[[], Any]) -> bytes | str:
    """A picture as PNG, or why there is none."""
    try:
        axes = np.atleast_1d(draw())
    except (RequestError, DataError) as error:
        return str(error)
    file = io.BytesIO()
    axes.flat[0].figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


def render(title: str, report: Report, figures: Mapping[str, bytes | str]) -> str:
    """The page as HTML."""
    versions = ", ".join(
        f"{name} {version}" for name, version in report.about.get("versions", {}).items()
    )
    about = (
        f"{report.about.get('rows', 0):,} test rows · seed {report.about.get('seed')} · {versions}"
    )
    drawn = "".join(_figure(name, one) for name, one in figures.items() if isinstance(one, bytes))
    undrawn = [
        f"{name}: not drawn: {reason}"
        for name, reason in figures.items()
        if isinstance(reason, str)
    ]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in (*report.notes, *undrawn))
    header = html.escape(json.dumps(report.about.get("model", {}), indent=1))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)} · mvkit</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
<p class="muted">{html.escape(about)}</p>
<h2>Figures</h2>
<div class="figures">{drawn}</div>
<h2>Scores</h2>
{_tables(report)}
<h2>Notes</h2>
<ul>{notes or "<li>none</li>"}</ul>
<h2>Model</h2>
<details><summary>Every option</summary><pre>{header}</pre></details>
<p class="muted">Written by mvkit {mvkit.__version__}.</p>
</body>
</html>
"""


def _figure(title: str, picture: bytes) -> str:
    name = html.escape(title)
    data = base64.b64encode(picture).decode()
    caption = f"<figcaption>{name}</figcaption>"
    return f'<figure><img alt="{name}" src="data:image/png;base64,{data}">{caption}</figure>\n'


def _tables(report: Report) -> str:
    """A table a metric; what printing leaves out is folded."""
    found = []
    for metric in dict.fromkeys(score.metric for score in report.scores):
        own = [score for score in report.scores if score.metric == metric]
        found.append(
            f"<h3>{html.escape(metric)}</h3>{_table(Report(tuple(s for s in own if not s.detail)))}"
        )
        if any(score.detail for score in own):
            inner = _table(Report(tuple(attrs.evolve(s, detail=False) for s in own if s.detail)))
            found.append(f"<details><summary>more</summary>{inner}</details>")
    return "\n".join(found)


def _table(report: Report) -> str:
    titles, lines = report.cells()
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles[1:])
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in line[1:])}</tr>"
        for line in lines
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
