"""Pictures of a trained model.

Each function draws into `ax` or `figure`, or a new one, and returns the axes.

No global state of matplotlib is touched, and no window is opened: `axes.figure.savefig(path)`
writes what was drawn. Needs the extra `mvkit[plots]`.

Axes: n draws, b rows, m modalities, d latent, c clusters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mvkit.evaluation.drivers import driver_shares as driver_shares
from mvkit.plots.features import imputation as imputation
from mvkit.plots.features import imputed_row as imputed_row
from mvkit.plots.generated import central_interval as central_interval
from mvkit.plots.generated import cluster_samples as cluster_samples
from mvkit.plots.generated import real_values as real_values
from mvkit.plots.generated import translations as translations
from mvkit.plots.generated import traversal as traversal
from mvkit.plots.grids import Grid as Grid
from mvkit.plots.grids import Line as Line
from mvkit.plots.grids import figure_of as figure_of
from mvkit.plots.grids import gallery as gallery
from mvkit.plots.grids import grid as grid
from mvkit.plots.grids import is_picture as is_picture
from mvkit.plots.grids import show as show
from mvkit.plots.latents import cluster_sizes as cluster_sizes
from mvkit.plots.latents import drivers as drivers
from mvkit.plots.latents import latent_map as latent_map
from mvkit.plots.scores import Runs as Runs
from mvkit.plots.scores import coherence as coherence
from mvkit.plots.scores import coverage as coverage
from mvkit.plots.scores import coverage_of as coverage_of
from mvkit.plots.scores import sensitivity as sensitivity
from mvkit.training.loss_curves import draw_terms as draw_terms
from mvkit.training.loss_curves import losses as losses
from mvkit.training.loss_curves import new_figure as new_figure

if TYPE_CHECKING:
    from mvkit.plots.grids import AxesLike as AxesLike
    from mvkit.plots.grids import Draw as Draw
    from mvkit.plots.grids import FigureLike as FigureLike
