"""Pictures of what was measured: coherence, coverage of intervals, pooled estimates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mvkit.core.figures import colour_of, legend_of, marker_of, plain_text
from mvkit.errors import RequestError
from mvkit.evaluation.metric import Score
from mvkit.evaluation.report import Report, runs_of
from mvkit.evaluation.sensitivity import draw_sensitivity
from mvkit.training.loss_curves import axes_of

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes

    from mvkit.plots.grids import AxesLike

Runs = Report | Mapping[str, Report | Sequence[Report]]
HOLD = re.compile(r"(.+), (\d+)% intervals hold")


def coherence(reports: Runs, *, ax: AxesLike = None) -> Axes:
    """Coherence by the number of given modalities, with standard errors.

    Of several reports of one name, the mean and the standard deviation are shown.
    """
    named = runs_of({"": reports} if isinstance(reports, Report) else reports, "coherence")
    ax = axes_of(ax)
    handles = {}
    for i, (name, runs) in enumerate(named.items()):
        by_count = _pooled_scores(runs)
        if not by_count:
            raise RequestError(
                f"coherence: report {name!r} has none; evaluate with metrics=['coherence']"
            )
        means, spreads = [], []
        for scores in by_count.values():
            values = [score.value for score in scores]
            means.append(np.mean(values))
            spread = scores[0].error
            if len(scores) > 1:
                spread = float(np.std(values, ddof=1))
            spreads.append(spread)
        line = ax.errorbar(list(by_count), means, spreads, capsize=3, color=colour_of(i))
        line.lines[0].set(marker=marker_of(i), label=plain_text(name))
        handles[name] = line
    ax.set(xticks=sorted(by_count), ylim=(0, 1))
    ax.set(xlabel="modalities given", ylabel="coherence")
    if any(named):
        legend_of(ax, handles)
    return ax


def _pooled_scores(runs: Iterable[Report]) -> dict[int, list[Score]]:
    """Coherence by the number of given modalities, one score per report."""
    by_count: dict[int, list[Score]] = {}
    for report in runs:
        for score in report.scores:
            pooled = score.metric == "coherence" and score.name == f"given {score.given}"
            if pooled and score.given:
                by_count.setdefault(score.given, []).append(score)
    return by_count


def coverage_of(report: Report) -> dict[str, dict[float, float]]:
    """Which share of real values intervals hold, by modality and by the share asked for."""
    shares: dict[str, dict[float, float]] = {}
    for score in report.scores:
        match = HOLD.fullmatch(score.name) if score.metric == "calibration" else None
        if match:
            shares.setdefault(match[1], {})[int(match[2]) / 100] = score.value
    return shares


def coverage(report: Report, *, ax: AxesLike = None) -> Axes:
    """Which share of real values intervals hold, against the share asked for.

    Honest intervals lie on the diagonal; below it they are too narrow, above too wide.

    Raises:
        RequestError: a report without the metric `calibration`.
    """
    shares = coverage_of(report)
    if not shares:
        raise RequestError(
            "coverage: the report has no intervals; evaluate with metrics=['calibration']"
        )
    ax = axes_of(ax)
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    handles = {}
    for i, (name, held) in enumerate(shares.items()):
        style: dict[str, Any] = {"color": colour_of(i), "marker": marker_of(i)}
        (handles[name],) = ax.plot(list(held), list(held.values()), **style)
    ax.set(xlim=(0.4, 1), ylim=(0, 1), xlabel="share asked for", ylabel="share held")
    legend_of(ax, handles)
    return ax


def sensitivity(
    table: pandas.DataFrame, *, coefficients: Iterable[object] | None = None, ax: AxesLike = None
) -> Axes:
    """Estimates and intervals as imputed values move by δ, of `mvkit.sensitivity`.

    Args:
        table: what `mvkit.sensitivity` returned.
        coefficients: those that are drawn; None: all.
        ax: where to draw.

    Example:
        >>> import pandas, mvkit
        >>> data = pandas.DataFrame({"x": [1.0, 3.0, None]})
        >>> completed = [data.fillna(1.5), data.fillna(2.5)]
        >>> table = mvkit.sensitivity(data, completed, lambda t: (t["x"].mean(), 0.1))
        >>> mvkit.plots.sensitivity(table).get_xlabel()
        'δ: imputed values moved, in standard deviations'
    """
    return draw_sensitivity(axes_of(ax), table, coefficients)
