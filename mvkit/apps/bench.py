"""mvkit bench: published figures, measured again by name and seed, in one table."""

from __future__ import annotations

import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from mvkit._version import __version__
from mvkit.apps.figures import Figure
from mvkit.errors import DataError

Line = dict[str, Any]  # plain JSON data: one figure, measured from one seed
Say = Callable[[str], None]

TITLES = ("figure", "here", "published", "difference", "seeds", "CPU time", "by")


def read_lines(file: Path) -> list[Line]:
    """What was measured so far; nothing if there is no file.

    Raises:
        DataError: a line that `run_figures` did not write.
    """
    if not file.exists():
        return []
    lines = []
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            lines.append({**line, "value": float(line["value"]), "seed": int(line["seed"])})
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{file}, line {number}: {error}; expected what mvkit bench run writes; remove "
                "the line"
            ) from None
    return lines


def lacks(figure: Figure, data: Path | None) -> str | None:
    """Why a figure cannot be measured here; None: it can be."""
    for package in figure.packages:
        if importlib.util.find_spec(package) is None:
            return f"needs the package {package}, which is not installed"
    for folder in figure.data:
        if data is None:
            return f"needs the folder {folder}; say where it is: --data FOLDER, or MVKIT_DATA"
        if not (data / folder).is_dir():
            return f"needs {data / folder}, which is not there"
    return None


def run_figures(
    figures: Sequence[Figure], seeds: Iterable[int], file: Path, data: Path | None, say: Say
) -> list[str]:
    """Measures figures, and adds a line to the file for each that has none yet of a seed.

    Args:
        figures: in the order in which they are measured.
        seeds: each figure is measured from each.
        file: of lines in JSON; made if there is none.
        data: the folder that has the folders of data.
        say: is told each line, and each reason why there is none.

    Returns:
        The names of figures whose measuring failed; others were measured nevertheless.
    """
    done = {(line["figure"], line["seed"]) for line in read_lines(file)}
    failed = []
    for figure in figures:
        left = [seed for seed in dict.fromkeys(seeds) if (figure.name, seed) not in done]
        reason = lacks(figure, data) if left else "all seeds are there"
        if reason is not None:
            say(f"{figure.name}: left out: {reason}")
            continue
        for seed in left:
            try:
                line = _measured(figure, seed, data or Path())
            except Exception as error:  # of one figure; the others are measured
                say(f"{figure.name}, seed {seed}: {type(error).__name__}: {error}")
                failed.append(figure.name)
                break
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
            say(f"{figure.name}, seed {seed}: {line['value']:.4g} ({_time(line['seconds'])})")
    return failed


def _measured(figure: Figure, seed: int, data: Path) -> Line:
    """The line of a figure and a seed."""
    start = time.process_time()
    value = float(figure.measure(data, seed))
    seconds = round(time.process_time() - start, 1)
    return {
        "figure": figure.name,
        "seed": seed,
        "value": value,
        "seconds": seconds,
        "mvkit": __version__,
    }


def listing(figures: Iterable[Figure], data: Path | None) -> str:
    """What there is: names, published numbers, sources, protocols, and what is missing here."""
    texts = []
    for figure in figures:
        kind = "long, " if figure.long else ""
        text = (
            f"{figure.name}: {figure.published:g}{' (own)' if figure.own else ''} by {figure.by}"
            f" ({kind}at most {figure.minutes:g} CPU minutes)\n"
            f"  {figure.source}\n  {figure.protocol}"
        )
        reason = lacks(figure, data)
        texts.append(text if reason is None else f"{text}\n  not here: {reason}")
    return "\n".join(texts)


def table(figures: Iterable[Figure], lines: Iterable[Line]) -> str:
    """Markdown: means over seeds (± standard deviation) beside what was published.

    Differences are those of the mean from the published number. A seed that was measured twice
    counts by its last line. Figures without a line are named below.
    """
    by_name: dict[str, dict[int, Line]] = {}
    for line in lines:
        by_name.setdefault(line["figure"], {})[line["seed"]] = line
    rows = [f"| {' | '.join(TITLES)} |", "|---" * len(TITLES) + "|"]
    without = []
    for figure in figures:
        if figure.name in by_name:
            cells = _cells(figure, list(by_name[figure.name].values()))
            rows.append(f"| {' | '.join(cells)} |")
        else:
            without.append(f"{figure.name} (long)" if figure.long else figure.name)
    if without:
        rows += ["", f"Not measured: {', '.join(without)}."]
    return "\n".join(rows)


def _cells(figure: Figure, lines: Sequence[Line]) -> list[str]:
    """A row of the table."""
    values = [line["value"] for line in lines]
    mean = statistics.fmean(values)
    here = f"{mean:.4g}"
    if len(values) > 1:
        here += f" ± {statistics.stdev(values):.2g}"
    return [
        figure.name,
        here,
        f"{figure.published:g}",
        f"{mean - figure.published:+.2g}",
        str(len(values)),
        _time(statistics.fmean([line["seconds"] for line in lines])),
        f"{figure.by} (own)" if figure.own else figure.by,
    ]


def _time(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min"
