"""The mathematics of a model: batches, experts, posteriors, decoding, terms, bounds.

What packages with parts of their own import from here is listed below; nothing here names a part.
Modules of this folder import one another, never this page.
"""

from mvkit.core import bounds as bounds
from mvkit.core import noise as noise
from mvkit.core.all_rows import all_rows as all_rows
from mvkit.core.batch import Batch as Batch
from mvkit.core.decoding import Decoding as Decoding
from mvkit.core.experts import Experts as Experts
from mvkit.core.experts import on_rows as on_rows
from mvkit.core.family import Family as Family
from mvkit.core.likelihood import Context as Context
from mvkit.core.likelihood import Likelihood as Likelihood
from mvkit.core.loss import Loss as Loss
from mvkit.core.loss import Metrics as Metrics
from mvkit.core.loss import finish as finish
from mvkit.core.loss import over_rows as over_rows
from mvkit.core.loss import row_metrics as row_metrics
from mvkit.core.mixture import Mixture as Mixture
from mvkit.core.mixture import equal_weights as equal_weights
from mvkit.core.modality import Modality as Modality
from mvkit.core.modality import ModalityLike as ModalityLike
from mvkit.core.modality import PartLike as PartLike
from mvkit.core.modality import PartSpec as PartSpec
from mvkit.core.modality import Sizes as Sizes
from mvkit.core.noise import Generator as Generator
from mvkit.core.posterior import Draws as Draws
from mvkit.core.posterior import Posterior as Posterior
from mvkit.core.posterior import as_density as as_density
from mvkit.core.raw_values import Columns as Columns
from mvkit.core.row_context import RowContext as RowContext
from mvkit.core.terms import Terms as Terms
