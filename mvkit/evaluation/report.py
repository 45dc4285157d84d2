"""Report: what was measured of a model, as a table, a frame, JSON, LaTeX or Markdown; compare: several side by side."""

from __future__ import annotations

import json
import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from mvkit.errors import DataError, RequestError, suggest
from mvkit.evaluation.metric import Score


class Table(ABC):
    """Something that reads as a table. To implement one, write `frame` and `cells`."""

    @abstractmethod
    def frame(self) -> Any:
        """All numbers as a `pandas.DataFrame`."""

    @abstractmethod
    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Titles of the columns, and the lines that are shown."""

    def __str__(self) -> str:
        titles, lines = self.cells()
        widths = [max(map(len, column)) for column in zip(titles, *lines, strict=True)]
        flush = [str.ljust, str.ljust, *[str.rjust] * len(titles)]
        return "\n".join(
            "  ".join(
                pad(cell, width) for pad, cell, width in zip(flush, line, widths, strict=False)
            ).rstrip()
            for line in (titles, *lines)
        )

    def to_markdown(self) -> str:
        """The table in Markdown."""
        titles, lines = self.cells()
        rule = ["---", "---", *["---:"] * (len(titles) - 2)]
        escaped = [[cell.replace("|", "\\|") for cell in line] for line in (titles, rule, *lines)]
        return "\n".join(f"| {' | '.join(line)} |" for line in escaped)

    def to_latex(self) -> str:
        """The table in LaTeX, with the rules of `booktabs`; pandas writes it."""
        import pandas as pd

        titles, lines = self.cells()
        text: str = pd.DataFrame(lines, columns=titles).to_latex(
            index=False, escape=True, column_format="ll" + "r" * (len(titles) - 2)
        )
        for symbol, command in {"±": r"$\pm$", " | ": r" $\mid$ ", "²": "$^2$", "–": "--"}.items():
            text = text.replace(symbol, command)
        return text


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"


@attrs.frozen
class Report(Table):
    """What `evaluate` found.

    Args:
        scores: the numbers.
        notes: what else there is to say: metrics that do not fit, warnings, which rows were taken.
        about: the model's header, the seed, rows, versions.

    Example:
        >>> report = Report((Score("probe", "accuracy given all", 0.9, 0.01, 900),), ("clusters: no labels",))
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

    def frame(self) -> Any:
        """All scores, a line each, those that printing leaves out too."""
        import pandas as pd

        columns = [field.name for field in attrs.fields(Score)]
        return pd.DataFrame([attrs.asdict(score) for score in self.scores], columns=columns)

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """See `Table.cells`."""
        shown = [score for score in self.scores if not score.detail]
        lines = [
            [s.metric, s.name, _number(s.value), _number(s.error), f"{s.rows:,}"] for s in shown
        ]
        return ["metric", "name", "value", "error", "rows"], lines

    def __str__(self) -> str:
        hidden = sum(score.detail for score in self.scores)
        more = [f"{hidden} more in report.frame()"] if hidden else []
        return "\n".join([Table.__str__(self), *more, *(f"note: {note}" for note in self.notes)])

    __repr__ = __str__

    def to_json(self) -> str:
        """Everything, as JSON; NaN as null."""
        scores = [attrs.asdict(score) for score in self.scores]
        for score in scores:
            score |= {k: None if math.isnan(score[k]) else score[k] for k in ("value", "error")}
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
            scores = [
                Score(
                    **score
                    | {k: math.nan if score[k] is None else score[k] for k in ("value", "error")}
                )
                for score in data["scores"]
            ]
            return cls(tuple(scores), tuple(data["notes"]), data["about"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"report: {error}; expected what Report.to_json writes") from None


@attrs.frozen
class Comparison(Table):
    """Reports side by side, mean ± standard deviation over the runs of each."""

    runs: dict[str, tuple[Report, ...]]

    def _values(self) -> dict[tuple[str, str], dict[str, list[float]]]:
        """Values by (metric, name) and model, in the order of the reports."""
        found: dict[tuple[str, str], dict[str, list[float]]] = {}
        for model, reports in self.runs.items():
            for score in (score for report in reports for score in report.scores):
                found.setdefault((score.metric, score.name), {}).setdefault(model, []).append(
                    score.value
                )
        return found

    def frame(self) -> Any:
        """A line a number and model: metric, name, model, mean, sd, runs."""
        import pandas as pd

        lines = [
            [*key, model, statistics.fmean(values), _deviation(values), len(values)]
            for key, by_model in self._values().items()
            for model, values in by_model.items()
        ]
        return pd.DataFrame(lines, columns=["metric", "name", "model", "mean", "sd", "runs"])

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """See `Table.cells`."""
        detail = {
            (s.metric, s.name)
            for r in self.runs.values()
            for one in r
            for s in one.scores
            if s.detail
        }
        lines = []
        for key, by_model in self._values().items():
            if key not in detail:
                lines.append([*key, *(_spread(by_model.get(model, [])) for model in self.runs)])
        return ["metric", "name", *self.runs], lines

    def __repr__(self) -> str:
        return str(self)


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def _spread(values: list[float]) -> str:
    if not values:
        return "–"
    more = f" ± {_deviation(values):.2g}" if len(values) > 1 else ""
    return _number(statistics.fmean(values)) + more


def compare(reports: Mapping[str, Report | Sequence[Report]]) -> Comparison:
    """Reports side by side, as a table that prints, and gives a frame, LaTeX or Markdown.

    Args:
        reports: a model's name to its report, or to those of several seeds: mean ± standard deviation are shown.

    Example:
        >>> one, two = (Report((Score("probe", "accuracy", value),)) for value in (0.5, 0.7))
        >>> print(compare({"poe": one, "moe": [one, two]}))
        metric  name      poe         moe
        probe   accuracy  0.5  0.6 ± 0.14
    """
    return Comparison(runs_of(reports, "compare"))


def runs_of(reports: Any, where: str) -> dict[str, tuple[Report, ...]]:
    """Reports by the name of their model, one or several each."""
    if not isinstance(reports, Mapping) or not reports:
        found = type(reports).__name__ if reports else repr(reports)
        raise RequestError(
            f"{where}: got {found}; expected a dict of reports by name, such as {{'mopoe': report}}"
        )
    runs = {}
    for name, given in reports.items():
        each = tuple(given) if isinstance(given, list | tuple) else (given,)
        if not each or not all(isinstance(one, Report) for one in each):
            raise RequestError(
                f"{where}: {name!r}: got {given!r}; expected a Report or a list of them"
            )
        runs[name] = each
    return runs
