"""Pictures of the single features of a modality.

Axes: n draws, k numbers of a modality, c classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from einops import rearrange
from numpy.typing import NDArray

from mvkit.core import noise
from mvkit.core.figures import INK, colour_of, legend_of, plain_text, shortened
from mvkit.data.dataset import Rows
from mvkit.errors import RequestError
from mvkit.evaluation.by_feature import is_flat, sources_of, value_names
from mvkit.models.multimodal import MultimodalModel
from mvkit.plots.generated import central_interval, check_modality, row_of
from mvkit.training.loss_curves import axes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mvkit.plots.grids import AxesLike

SHOWN = 20  # features, those with the largest errors

Values = NDArray[np.floating]


@attrs.frozen(eq=False)
class ImputedRow:
    """A modality of a row, imputed from its others.

    Args:
        names: of its numbers, in order; none: they have no names.
        mean: over draws, (k,).
        low, high: ends of the central interval, (k,).
        real: the real values, (k,); None where the row lacks the modality.
    """

    names: list[str]
    mean: Values
    low: Values
    high: Values
    real: Values | None

    @property
    def order(self) -> NDArray[np.integer]:
        """Places of the numbers, the largest errors first; the widest intervals without errors."""
        first = self.width if self.errors is None else self.errors
        return np.argsort(-first, kind="stable")

    @property
    def errors(self) -> Values | None:
        """Errors of the means, in widths of their intervals, (k,); None without real values."""
        return None if self.real is None else np.abs(self.real - self.mean) / self.width

    @property
    def width(self) -> Values:
        """Widths of the intervals, above 0, (k,)."""
        return np.maximum(self.high - self.low, 1e-12)


def imputed_row(
    model: MultimodalModel,
    data: Rows,
    name: str,
    *,
    row: int = 0,
    level: float = 0.8,
    n: int = 199,
    seed: int = 0,
    sampler: str | None = None,
    refine: bool | list[str] = False,
) -> ImputedRow:
    """A modality of a row, imputed from its others, of classes their probabilities.

    The interval is the central one that holds a share `level` of n draws; `sampler` and `refine`
    say where these come from, see `Model.translate`.

    Raises:
        RequestError: a modality or a row that there is not, or a level that is no share.
    """
    check_modality(model, name, "imputation")
    if not 0 < level < 1:
        raise RequestError(f"imputation: level {level!r}; expected a number between 0 and 1")
    rows = row_of(model, data, row)
    classes = model.schema.likelihoods[name].class_axis
    options: dict[str, Any] = {"sample": not classes, "units": "model" if classes else "data"}
    options |= {"sampler": sampler, "refine": refine}
    options["generator"] = noise.seeded(seed, model.like.device)
    samples = model.translate(rows, name, sources_of(model, name), n, **options)
    draws = rearrange(samples[name], "n 1 ... -> n (...)").cpu().double()
    low, high = central_interval(draws, level)
    real = None
    if rows.observed[0, model.names.index(name)]:
        value = rows.data[name] if classes else model.modalities[name].restore(rows.data[name])
        real = value.reshape(-1).cpu().double().numpy()
    names = value_names(model, name) if is_flat(model, name) else []
    if len(names) != draws.shape[1]:
        names = []
    return ImputedRow(names, draws.numpy().mean(0), low, high, real)


def imputation(
    model: MultimodalModel,
    data: Rows,
    name: str,
    *,
    row: int = 0,
    level: float = 0.8,
    n: int = 199,
    seed: int = 0,
    ax: AxesLike = None,
) -> Axes:
    """A modality of a row, imputed from its others: mean, interval and the real value.

    Features are lines, at most 20, those with the largest errors first; of classes, what is shown
    are probabilities. What has more axes, such as pictures, is drawn by element. The interval is
    the central one that holds a share `level` of n draws.
    """
    imputed = imputed_row(model, data, name, row=row, level=level, n=n, seed=seed)
    ax = axes_of(ax)
    handles = {f"{level:.0%} interval": None, "imputed mean": None, "real": None}
    draw = _draw_features if imputed.names else _draw_elements
    drawn = dict(zip(handles, draw(ax, imputed), strict=False))
    if not imputed.names:
        ax.set_xlabel(plain_text(f"element of {shortened(name)}"))
    legend_of(ax, drawn)
    return ax


def _draw_features(ax: Axes, imputed: ImputedRow) -> list[Any]:
    """Features as lines, the largest errors at the top; what is drawn."""
    order = imputed.order[:SHOWN]
    places = np.arange(len(order))
    low, high = imputed.low[order], imputed.high[order]
    drawn: list[Any] = [ax.hlines(places, low, high, color=colour_of(4), linewidth=5)]
    drawn += ax.plot(imputed.mean[order], places, "o", color=colour_of(0), markersize=4)
    if imputed.real is not None:
        drawn += ax.plot(imputed.real[order], places, "xk", markersize=5, gid=INK)
    names = [plain_text(shortened(imputed.names[i])) for i in order]
    ax.set_yticks(places, names, fontsize=8)
    ax.set_ylim(len(order) - 0.5, -0.5)
    if len(order) < len(imputed.names):
        ax.set_xlabel(f"{len(order)} of {len(imputed.names)}, largest errors first")
    return drawn


def _draw_elements(ax: Axes, imputed: ImputedRow) -> list[Any]:
    """Elements one after another; what is drawn."""
    elements = np.arange(len(imputed.mean))
    interval = ax.fill_between(elements, imputed.low, imputed.high, step="mid")
    interval.set(color=colour_of(4), alpha=0.45, linewidth=0)
    drawn: list[Any] = [interval]
    drawn += ax.plot(elements, imputed.mean, linewidth=1, color=colour_of(0))
    if imputed.real is not None:
        drawn += ax.plot(elements, imputed.real, ".k", markersize=4, gid=INK)
    return drawn
