"""Report: what was measured of a model, in several formats; compare: reports side by side."""

from __future__ import annotations

import json
import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from mvkit.errors import DataError, RequestError, suggest
from mvkit.evaluation.metric import Score

if TYPE_CHECKING:
    from pandas import DataFrame

TITLES = ["metric", "name", "value", "error", "rows"]
Cells = tuple[list[str], list[list[str]]]
MAYBE_NAN = ("value", "error")  # numbers of a score that JSON holds as null if they are NaN


class Table(ABC):
    """Something that reads as a table. To implement one, write `frame` and `cells`."""

    @abstractmethod
    def frame(self) -> DataFrame:
        """All numbers as a `pandas.DataFrame`."""

    @abstractmethod
    def cells(self) -> Cells:
        """Titles of the columns, and the lines that are shown."""

    def __str__(self) -> str:
        titles, lines = self.cells()
        columns = []
        for i, column in enumerate(zip(titles, *lines, strict=True)):
            pad = str.ljust if i < 2 else str.rjust
            width = max(map(len, column))
            columns.append([pad(cell, width) for cell in column])
        return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))

    def to_markdown(self) -> str:
        """The table in Markdown."""
        titles, lines = self.cells()
        rule = ["---", "---", *["---:"] * (len(titles) - 2)]
        text = []
        for line in (titles, rule, *lines):
            escaped = [cell.replace("|", "\\|") for cell in line]
            text.append(f"| {' | '.join(escaped)} |")
        return "\n".join(text)

    def to_latex(self) -> str:
        """The table in LaTeX, with the rules of `booktabs`; pandas writes it."""
        import pandas as pd

        titles, lines = self.cells()
        frame = pd.DataFrame(lines, columns=titles)
        columns = "ll" + "r" * (len(titles) - 2)
        text: str = frame.to_latex(index=False, escape=True, column_format=columns)
        for symbol, command in {"±": r"$\pm$", " | ": r" $\mid$ ", "²": "$^2$", "–": "--"}.items():
            text = text.replace(symbol, command)
        return text


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"


def cells_of(score: Score) -> list[str]:
    """The cells of a line of a report, in the order of `TITLES`."""
    numbers = [_number(score.value), _number(score.error), f"{score.rows:,}"]
    return [score.metric, score.name, *numbers]


@attrs.frozen
class Report(Table):
    """What `evaluate` returns.

    Args:
        scores: the numbers.
        notes: what else there is to say: metrics that do not fit, warnings, which rows were taken.
        about: the model's header, the seed, rows, versions.

    Example:
        >>> accuracy = Score("probe", "accuracy given all", 0.9, 0.01, 900)
        >>> report = Report((accuracy,), ("clusters: no labels",))
        >>> report["probe/accuracy given all"]
        0.9
        >>> print(report)
        metric  name                value  error  rows
        probe   accuracy given all    0.9   0.01   900
        note: clusters: no labels
    """

    scores: tuple[Score, ...]
    notes: tuple[str, ...] = ()
    about: dict[str, Any] = attrs.field(factory=dict)

    def __getitem__(self, key: str) -> float:
        values = {f"{score.metric}/{score.name}": score.value for score in self.scores}
        if key not in values:
            raise RequestError(f"report: nothing called {key!r}; {suggest(key, values)}")
        return values[key]

    def frame(self) -> DataFrame:
        """All scores, one per line, also those that are left out in printing."""
        import pandas as pd

        columns = [field.name for field in attrs.fields(Score)]
        return pd.DataFrame([attrs.asdict(score) for score in self.scores], columns=columns)

    def cells(self) -> Cells:
        return TITLES, [cells_of(score) for score in self.scores if not score.detail]

    def __str__(self) -> str:
        lines = [super().__str__()]
        hidden = sum(score.detail for score in self.scores)
        if hidden:
            lines.append(f"{hidden} more in report.frame()")
        return "\n".join(lines + [f"note: {note}" for note in self.notes])

    __repr__ = __str__

    def to_json(self) -> str:
        """Everything, as JSON; NaN as null."""
        scores = [attrs.asdict(score) for score in self.scores]
        for score in scores:
            for key in MAYBE_NAN:
                if math.isnan(score[key]):
                    score[key] = None
        data = {"scores": scores, "notes": self.notes, "about": self.about}
        return json.dumps(data, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote.

        Raises:
            DataError: a text that it did not write.
        """
        try:
            data = json.loads(text)
            for score in data["scores"]:
                for key in MAYBE_NAN:
                    if score[key] is None:
                        score[key] = math.nan
            scores = tuple(Score(**score) for score in data["scores"])
            return cls(scores, tuple(data["notes"]), data["about"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"report: {error}; expected what Report.to_json writes") from None


@attrs.frozen
class Comparison(Table):
    """Reports side by side, mean ± standard deviation over the runs of each."""

    runs: dict[str, tuple[Report, ...]]

    def _scores(self) -> Iterator[tuple[str, Score]]:
        """All scores with the name of their model, in the order of the reports."""
        for model, reports in self.runs.items():
            for report in reports:
                for score in report.scores:
                    yield model, score

    def _values(self) -> dict[tuple[str, str], dict[str, list[float]]]:
        """Values by (metric, name) and model."""
        values: dict[tuple[str, str], dict[str, list[float]]] = {}
        for model, score in self._scores():
            by_model = values.setdefault((score.metric, score.name), {})
            by_model.setdefault(model, []).append(score.value)
        return values

    def frame(self) -> DataFrame:
        """One line per number and model: metric, name, model, mean, sd, runs."""
        import pandas as pd

        lines = []
        for key, by_model in self._values().items():
            for model, values in by_model.items():
                numbers = (statistics.fmean(values), _deviation(values), len(values))
                lines.append([*key, model, *numbers])
        return pd.DataFrame(lines, columns=["metric", "name", "model", "mean", "sd", "runs"])

    def cells(self) -> Cells:
        details = {(score.metric, score.name) for _, score in self._scores() if score.detail}
        lines = []
        for key, by_model in self._values().items():
            if key not in details:
                lines.append([*key, *(_spread(by_model.get(model, [])) for model in self.runs)])
        return ["metric", "name", *self.runs], lines

    def __repr__(self) -> str:
        return str(self)


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    deviation = f" ± {_deviation(values):.2g}" if len(values) > 1 else ""
    return _number(statistics.fmean(values)) + deviation


def compare(reports: Mapping[str, Report | Sequence[Report]]) -> Comparison:
    """Reports side by side, as a table that prints, and converts to a frame, LaTeX or Markdown.

    Args:
        reports: a model's name to its report, or to those of several seeds: mean ± standard
            deviation are shown.

    Example:
        >>> first, second = (Report((Score("probe", "accuracy", value),)) for value in (0.5, 0.7))
        >>> print(compare({"poe": first, "moe": [first, second]}))
        metric  name      poe         moe
        probe   accuracy  0.5  0.6 ± 0.14
    """
    return Comparison(runs_of(reports, "compare"))


def runs_of(reports: object, where: str) -> dict[str, tuple[Report, ...]]:
    """Reports by the name of their model, one or several each.

    Raises:
        RequestError: that names the function `where`, if they are something else.
    """
    if not isinstance(reports, Mapping) or not reports:
        value = type(reports).__name__ if reports else repr(reports)
        raise RequestError(
            f"{where}: got {value}; expected a dict of reports by name, such as "
            "{'mopoe': report}"
        )
    runs = {}
    for name, given in reports.items():
        each = tuple(given) if isinstance(given, list | tuple) else (given,)
        if not each or not all(isinstance(report, Report) for report in each):
            raise RequestError(
                f"{where}: {name!r}: got {given!r}; expected a Report or a list of them"
            )
        runs[name] = each
    return runs
