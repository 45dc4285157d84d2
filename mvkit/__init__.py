"""mvkit: multimodal generative models put together from reusable parts, for data with gaps.

Axes in every docstring: s samples · j drawn components · k posterior components · b rows of
the batch · m modalities · d shared latent · p private latent · c prior components.
"""

import importlib
from typing import TYPE_CHECKING

from mvkit import _moved, recipes
from mvkit._version import __version__ as __version__
from mvkit.core.batch import Batch
from mvkit.core.covariates import Covariate
from mvkit.core.family import Family
from mvkit.core.likelihood import Likelihood
from mvkit.core.loss import Loss
from mvkit.core.missingness import Missingness
from mvkit.core.mixture import Mixture
from mvkit.core.modality import Modality
from mvkit.data.dataset import MultimodalDataset
from mvkit.data.datasets.catalogue import load_dataset
from mvkit.data.pipeline import Pipeline
from mvkit.data.write_tables import as_tables
from mvkit.errors import (
    AmbiguousComponent,
    CheckpointError,
    DataError,
    MvkitError,
    NonFiniteError,
    RequestError,
    ShapeError,
    SpecError,
    UnknownComponent,
)
from mvkit.models.calibration import Calibration
from mvkit.models.checkpoint import describe, load, save
from mvkit.models.conformal import calibrate
from mvkit.models.embedding import embed
from mvkit.models.ensemble import Ensemble
from mvkit.models.imputed import Imputation
from mvkit.models.model import Model
from mvkit.models.pruning import prune_clusters
from mvkit.models.samplers import fit_sampler
from mvkit.models.stack import Stack
from mvkit.parts.aggregators.aggregator import Aggregator
from mvkit.parts.networks import Network
from mvkit.parts.objectives.elbo import ELBO
from mvkit.parts.objectives.objective import Objective
from mvkit.parts.priors import Prior
from mvkit.parts.refiners import Refiner
from mvkit.parts.samplers import Sampler
from mvkit.registry import plugins
from mvkit.registry.plugins import available
from mvkit.registry.spec import field, spec
from mvkit.tables.impute import impute
from mvkit.training.fit import fit
from mvkit.training.fit_refiner import fit_refiner
from mvkit.training.history import History
from mvkit.training.opponent import Opponent
from mvkit.training.stages import Stage

if TYPE_CHECKING:
    from mvkit import plots, testing
    from mvkit.evaluation.evaluate import evaluate
    from mvkit.evaluation.metric import Metric
    from mvkit.evaluation.pooling import pool
    from mvkit.evaluation.report import Report, compare
    from mvkit.evaluation.sensitivity import sensitivity

_moved.install()

__all__ = [
    "ELBO",
    "Aggregator",
    "AmbiguousComponent",
    "Batch",
    "Calibration",
    "CheckpointError",
    "Covariate",
    "DataError",
    "Ensemble",
    "Family",
    "History",
    "Imputation",
    "Likelihood",
    "Loss",
    "Metric",
    "Missingness",
    "Mixture",
    "Modality",
    "Model",
    "MultimodalDataset",
    "MvkitError",
    "Network",
    "NonFiniteError",
    "Objective",
    "Opponent",
    "Pipeline",
    "Prior",
    "Refiner",
    "Report",
    "RequestError",
    "Sampler",
    "ShapeError",
    "SpecError",
    "Stack",
    "Stage",
    "UnknownComponent",
    "as_tables",
    "available",
    "calibrate",
    "compare",
    "describe",
    "embed",
    "evaluate",
    "field",
    "fit",
    "fit_refiner",
    "fit_sampler",
    "impute",
    "load",
    "load_dataset",
    "plots",
    "plugins",
    "pool",
    "prune_clusters",
    "recipes",
    "save",
    "sensitivity",
    "spec",
    "testing",
]

# what is imported when somebody first names it, so that `import mvkit` stays fast
ON_DEMAND = {
    "evaluate": "mvkit.evaluation.evaluate",
    "Metric": "mvkit.evaluation.metric",
    "Report": "mvkit.evaluation.report",
    "pool": "mvkit.evaluation.pooling",
    "sensitivity": "mvkit.evaluation.sensitivity",
    "compare": "mvkit.evaluation.report",
}
SUBMODULES = ("core", "data", "evaluation", "models", "parts", "plots", "testing", "training")


def __getattr__(name: str) -> object:
    if name in SUBMODULES:
        return importlib.import_module(f"mvkit.{name}")
    if name not in ON_DEMAND:
        raise AttributeError(f"module 'mvkit' has no attribute {name!r}")
    value = getattr(importlib.import_module(ON_DEMAND[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
