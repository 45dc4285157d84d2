"""mvkit: multimodal generative models put together from reusable parts, for data with gaps.

Axes in every docstring: s samples · j drawn components · k posterior components · b rows of the batch · m modalities ·
d shared latent · p private latent · c prior components.
"""

from mvkit import plots, plugins, recipes, testing
from mvkit.aggregators import Aggregator
from mvkit.batch import Batch
from mvkit.checkpoint import describe, load, save
from mvkit.clusters import prune_clusters
from mvkit.data.datasets import load_dataset
from mvkit.data.pipeline import Pipeline
from mvkit.data.sources import MultimodalDataset
from mvkit.data.writing import as_tables
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
from mvkit.evaluation.evaluate import evaluate
from mvkit.evaluation.metric import Metric
from mvkit.evaluation.report import Report, compare
from mvkit.families import Family
from mvkit.history import History
from mvkit.imputation import Imputation, embed, impute
from mvkit.likelihoods import Likelihood
from mvkit.losses import Loss
from mvkit.mixture import Mixture
from mvkit.modality import Modality
from mvkit.model import Model
from mvkit.networks import Network
from mvkit.objectives import ELBO, Objective
from mvkit.plugins import available
from mvkit.priors import Prior
from mvkit.samplers import Sampler, fit_sampler
from mvkit.spec import field, spec
from mvkit.stack import Stack
from mvkit.stages import Stage
from mvkit.train import fit

__version__ = "0.1.0"

__all__ = [
    "ELBO",
    "Aggregator",
    "AmbiguousComponent",
    "Batch",
    "CheckpointError",
    "DataError",
    "Family",
    "History",
    "Imputation",
    "Likelihood",
    "Loss",
    "Metric",
    "Mixture",
    "Modality",
    "Model",
    "MultimodalDataset",
    "MvkitError",
    "Network",
    "NonFiniteError",
    "Objective",
    "Pipeline",
    "Prior",
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
    "compare",
    "describe",
    "embed",
    "evaluate",
    "field",
    "fit",
    "fit_sampler",
    "impute",
    "load",
    "load_dataset",
    "plots",
    "plugins",
    "prune_clusters",
    "recipes",
    "save",
    "spec",
    "testing",
]
