"""Every recipe as a tiny float64 model, and rows with gaps of every kind, for tests of batches."""

import math
import warnings

from helpers import rows

import mvkit
from mvkit import Covariate, Modality, recipes
from mvkit.training.stages import as_stages

LINEAR = {"encoder": "linear", "decoder": "linear"}
COVARIATES = {
    "age": Covariate(missing="average"),
    "site": Covariate(("A", "B"), missing="average"),
}
AGES = [31.0, None, 52.0, 47.0, 25.0, 60.0, 33.0, 41.0]
SITES = ["A", "B", None, "B", "B", "A", "A", "A"]
RECIPES = (
    "telbo",
    "jmvae",
    "cvae",
    "mopoe",
    "cmvae",
    "mvae",
    "mmvae",
    "mmvaeplus",
    "mvtcae",
    "dmvae",
    "crmvae",
    "mmvm",
    "mmjsd",
    "meme",
    "jnf",
    "mhvae",
    "miwae",
    "not_miwae",
    "masked",
    "hivae",
    "nexus",
)


def modalities(names):
    """A normal modality whose scale is measured on the batch, a bernoulli one, and classes."""
    optimal = {"name": "normal", "scale": "optimal"}
    every = {
        "a": Modality((3,), optimal, **LINEAR),
        "b": Modality((2, 2), "bernoulli", **LINEAR),
        "c": Modality((4,), "categorical", weight=1.5, **LINEAR),
    }
    return {name: every[name] for name in names}


def model_of(name, **options):
    """A recipe's model in float64, without what it warns of."""
    own = {
        "cvae": {"covariates": COVARIATES},
        "masked": {"width": 8, "blocks": 1, "dropout_rate": 0.0},
        "nexus": {"dropout_rate": 0.5},
        "cmvae": {"clusters": 3, "samples": 2},
        "meme": {"samples": 2},
    }
    options = {**own.get(name, {}), **options}
    if name in ("miwae", "not_miwae", "mmvae", "mmvaeplus"):
        options = {"samples": 2, **options}
    each = modalities(("a", "b") if name == "meme" else ("a", "b", "c"))
    if name == "not_miwae":
        each = {"a": Modality((3,), {"name": "normal", "scale": "decoded"}, **LINEAR)}
        each["b"] = Modality((2, 2), **LINEAR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(recipes, name)(each, latent_dim=4, seed=0, **options).double()


def gaps(names, *, missing=True):
    """Rows that lack modalities in every pattern, single values, and covariates."""
    batch = rows(8, names, missing=missing)
    data = {name: batch.data[name].clone() for name in names}
    if missing:
        data["a"][0, 1] = data["a"][1, 2] = math.nan
    return mvkit.Batch(data, batch.mask, extra={"age": AGES, "site": SITES})


def objectives_of(model):
    """The objectives of the stages that `fit` goes through, each once; None: the model's own."""
    objectives = []
    for stage in as_stages(None, model, 4):
        if stage.objective not in objectives:
            objectives.append(stage.objective)
    return objectives
