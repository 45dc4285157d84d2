"""Every built-in part by its class, `MoG(components=20)` for `{"name": "mog", "components": 20}`.

Parts of two kinds may share a class name. The bare name then means the likelihood, the network or
the abstract class; the other part has its kind at the end of its name:

| name | class |
|---|---|
| `Normal`, `NormalFamily` | likelihood `normal`, family `normal` |
| `Linear`, `LinearRamp` | network `linear`, ramp `linear` |
| `Prior`, `PriorSampler` | the abstract class of priors, sampler `prior` |
| `Likelihood`, `LikelihoodMetric` | the abstract class of likelihoods, metric `likelihood` |

Schedules, ramps, optimizers, transforms, metrics, datasets and the objective `Levels` are defined
in folders above this one, and so are imported when they are first asked for; likewise the abstract
classes `Metric`, `Ramp`, `Schedule` and `Transform`, and `Splits`, which datasets return. Modules
of this folder import one another, never this page.

Example:
    >>> from mvkit.parts import LinearRamp, MoG, NormalFamily
    >>> MoG(components=20).components
    20
"""

from __future__ import annotations

import importlib

from mvkit.core.family import Family as Family
from mvkit.core.likelihood import Likelihood as Likelihood
from mvkit.core.missingness import Missingness as Missingness
from mvkit.core.mixture import product_of_observed as product_of_observed
from mvkit.core.mixture import raw_experts as raw_experts
from mvkit.parts import families, samplers
from mvkit.parts.aggregators.aggregator import Aggregator as Aggregator
from mvkit.parts.aggregators.aggregator import Defaults as Defaults
from mvkit.parts.aggregators.barycentre import Wasserstein as Wasserstein
from mvkit.parts.aggregators.joint_encoder import Joint as Joint
from mvkit.parts.aggregators.messages import MeanMessage as MeanMessage
from mvkit.parts.aggregators.messages import Set as Set
from mvkit.parts.aggregators.mixtures import MoE as MoE
from mvkit.parts.aggregators.mixtures import MoPoE as MoPoE
from mvkit.parts.aggregators.products import GPoE as GPoE
from mvkit.parts.aggregators.products import PoE as PoE
from mvkit.parts.conditional_samplers import ConditionalSampler as ConditionalSampler
from mvkit.parts.families import LaplaceSoftmax as LaplaceSoftmax
from mvkit.parts.families import NormalSoftplus as NormalSoftplus
from mvkit.parts.families import check_product as check_product
from mvkit.parts.labelled_mixture import LabelledMoG as LabelledMoG
from mvkit.parts.labelled_mixture import LabelledSum as LabelledSum
from mvkit.parts.latent_model import LatentModel as LatentModel
from mvkit.parts.likelihoods import Bernoulli as Bernoulli
from mvkit.parts.likelihoods import Beta as Beta
from mvkit.parts.likelihoods import Categorical as Categorical
from mvkit.parts.likelihoods import ForegroundBackground as ForegroundBackground
from mvkit.parts.likelihoods import Gamma as Gamma
from mvkit.parts.likelihoods import Hazard as Hazard
from mvkit.parts.likelihoods import Laplace as Laplace
from mvkit.parts.likelihoods import LogNormal as LogNormal
from mvkit.parts.likelihoods import Multinomial as Multinomial
from mvkit.parts.likelihoods import NegativeBinomial as NegativeBinomial
from mvkit.parts.likelihoods import Normal as Normal
from mvkit.parts.likelihoods import Ordinal as Ordinal
from mvkit.parts.likelihoods import Poisson as Poisson
from mvkit.parts.likelihoods import StudentT as StudentT
from mvkit.parts.missingness import LogisticMasking as LogisticMasking
from mvkit.parts.missingness import SelfMasking as SelfMasking
from mvkit.parts.missingness import explained_modalities as explained_modalities
from mvkit.parts.missingness import log_prob_of_pattern as log_prob_of_pattern
from mvkit.parts.networks import MLP as MLP
from mvkit.parts.networks import Conv as Conv
from mvkit.parts.networks import Conv1d as Conv1d
from mvkit.parts.networks import Linear as Linear
from mvkit.parts.networks import Network as Network
from mvkit.parts.objectives.adversary import Adversary as Adversary
from mvkit.parts.objectives.composite import Align as Align
from mvkit.parts.objectives.composite import Sum as Sum
from mvkit.parts.objectives.elbo import ELBO as ELBO
from mvkit.parts.objectives.importance_weighted import IWAE as IWAE
from mvkit.parts.objectives.importance_weighted import DReG as DReG
from mvkit.parts.objectives.jensen_shannon import JSD as JSD
from mvkit.parts.objectives.masked import Masked as Masked
from mvkit.parts.objectives.mmd import MMD as MMD
from mvkit.parts.objectives.mutual import MEME as MEME
from mvkit.parts.objectives.objective import Objective as Objective
from mvkit.parts.objectives.published import CRMVAE as CRMVAE
from mvkit.parts.objectives.published import JMVAE as JMVAE
from mvkit.parts.objectives.published import MVTCAE as MVTCAE
from mvkit.parts.objectives.published import TELBO as TELBO
from mvkit.parts.objectives.refining import Refine as Refine
from mvkit.parts.posterior_priors import PosteriorMixture as PosteriorMixture
from mvkit.parts.posterior_priors import Vamp as Vamp
from mvkit.parts.priors import Learnable as Learnable
from mvkit.parts.priors import MoG as MoG
from mvkit.parts.priors import Prior as Prior
from mvkit.parts.priors import Standard as Standard
from mvkit.parts.refiners import Energy as Energy
from mvkit.parts.refiners import Refiner as Refiner
from mvkit.parts.refiners import RefinerSizes as RefinerSizes
from mvkit.parts.refiners import energy_score as energy_score
from mvkit.parts.relevance import ARD as ARD
from mvkit.parts.samplers import GMM as GMM
from mvkit.parts.samplers import Sampler as Sampler
from mvkit.parts.tabular import ByColumn as ByColumn
from mvkit.parts.tabular import Tabular as Tabular
from mvkit.parts.top_down import TopDown as TopDown
from mvkit.parts.top_down import TopDownPoE as TopDownPoE
from mvkit.registry.builtin_parts import mvkit_components

NormalFamily = families.Normal
PriorSampler = samplers.Prior

CLASSES_ABOVE = {  # that parts of other packages inherit from, or return
    "Metric": "mvkit.evaluation.metric:Metric",
    "Ramp": "mvkit.training.annealing:Ramp",
    "Schedule": "mvkit.training.stages:Schedule",
    "Splits": "mvkit.data.datasets.catalogue:Splits",
    "Transform": "mvkit.data.transforms:Transform",
}


def _targets_above() -> dict[str, str]:
    """Targets of the classes that are defined in folders above, by exported name."""
    targets = dict(CLASSES_ABOVE)
    for component in mvkit_components():
        module, _, name = component.path.partition(":")
        if module.startswith("mvkit.parts.") or component.kind == "recipe":
            continue
        if name in globals():
            name += component.kind.capitalize()
        targets[name] = component.path
    return targets


TARGETS_ABOVE = _targets_above()


def __getattr__(name: str) -> type:
    if name not in TARGETS_ABOVE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, class_name = TARGETS_ABOVE[name].partition(":")
    part: type = getattr(importlib.import_module(module), class_name)
    return part


def __dir__() -> list[str]:
    return sorted([*globals(), *TARGETS_ABOVE])
