"""Models for estimators: which modalities, which parts, how long they are trained.

Axes: b rows, k columns.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

import mvkit
from mvkit import Modality, SpecError
from mvkit.registry import as_part, name_of

Arrays = dict[str, np.ndarray]
ModelLike = str | Mapping[str, Any] | None
LikelihoodsLike = Any  # a likelihood, a mapping from modality to likelihood, or None

# a trained scale starts at 1, where latents that say little are soon switched off
NORMAL = {"name": "normal", "scale": 0.3}  # of standardised columns
TARGET = {"name": "normal", "scale": "trained"}
STANDARDISED = ("normal", "laplace", "student_t")  # likelihoods whose columns have any scale
COUNTED = ("poisson", "negative_binomial", "multinomial", "lognormal", "gamma")
FEW_SUBSETS = 8  # that a mixture of products draws for a row
FEW = 4  # modalities all of whose subsets are looked at
SHORTEST, LONGEST = 40, 4000  # steps of a training whose length nobody gave


def likelihoods_of(likelihoods: LikelihoodsLike, names: list[str]) -> dict[str, Any]:
    """The likelihood of each modality: one for all, or by name; normal where none is named.

    Raises:
        SpecError: a likelihood of a modality that is not there.
    """
    if isinstance(likelihoods, Mapping) and "name" not in likelihoods:
        for name in likelihoods:
            if name not in names:
                raise SpecError(
                    f"no modality {name!r}; expected one of {', '.join(map(repr, names))}",
                    "likelihoods",
                )
        return {name: likelihoods.get(name) or NORMAL for name in names}
    return dict.fromkeys(names, likelihoods or NORMAL)


def modalities_of(
    arrays: Arrays,
    features: Mapping[str, tuple[str, ...]],
    likelihoods: Mapping[str, Any],
    network: Mapping[str, Any],
) -> dict[str, Modality]:
    """What the arrays (b, k) are, with transforms fitted to them.

    Args:
        arrays: by modality, NaN where missing.
        features: names of the columns, of the modalities whose columns have some.
        likelihoods: by modality.
        network: of encoders and decoders.
    """
    given = {}
    steps = {}
    for name in arrays:
        kind = name_of("likelihood", type(as_part("likelihood", likelihoods[name])))
        options = {"likelihood": likelihoods[name], "encoder": network, "decoder": network}
        if name in features:
            options["features"] = features[name]
        if kind in COUNTED:
            options["input"] = "log1p"
        if kind in STANDARDISED:
            steps[name] = "standardise"
        given[name] = options
    dataset = mvkit.MultimodalDataset.from_arrays(arrays, modalities=given)
    return dataset.fit_transforms(steps).modalities


def parts_of(count: int) -> dict[str, Any]:
    """The parts of a model of so many modalities, where nobody asks for others."""
    if count == 1:
        return {"aggregator": "poe"}
    if count <= FEW:
        return {"aggregator": "mopoe"}
    return {"aggregator": {"name": "mopoe", "max_subsets": FEW_SUBSETS}}


def clustering_parts(model: ModelLike, clusters: int) -> dict[str, Any]:
    """A mixture prior of so many clusters, in the words of the recipe if it has some."""
    recipe = recipe_of(model)
    if recipe is not None:
        options = inspect.signature(mvkit.recipes.get(recipe)).parameters
        if "clusters" in options:
            return {"clusters": clusters}
    prior = {"name": "mog", "components": clusters}
    return {"prior": prior, "schedule": "warmup_then_mixture"}


def recipe_of(model: ModelLike) -> str | None:
    """The name of the recipe, if a model is described by one."""
    if isinstance(model, str):
        return model
    if model is None:
        return None
    if not isinstance(model, Mapping):
        raise SpecError(
            f"got {model!r}; expected the name of a recipe, a dict of the options of "
            "mvkit.Model, or None; give a trained model as trained=",
            "model",
        )
    return model.get("recipe")


def build(
    modalities: Mapping[str, Modality],
    model: ModelLike,
    latent_dim: int,
    own: dict[str, Any],
    seed: int,
) -> Any:
    """A model in float64, with weights drawn from a seed.

    Args:
        modalities: what it is of.
        model: a recipe's name, or a dict of options of `mvkit.Model`, or of the recipe that it
            names as `recipe`; None: what suits any table.
        latent_dim: width of the shared latent.
        own: what the estimator asks for; `model` may say otherwise.
        seed: of the weights.

    Raises:
        SpecError: options that cannot be.
    """
    recipe = recipe_of(model)
    options = {**own, **(model if isinstance(model, Mapping) else {})}
    options.pop("recipe", None)
    if recipe is not None:
        maker = mvkit.recipes.get(recipe)
        return maker(modalities, latent_dim, seed=seed, **options).double()
    options = {**parts_of(len(modalities)), **options}
    return mvkit.Model(modalities, latent_dim=latent_dim, seed=seed, **options).double()


def epochs_for(rows: int, batch_size: int) -> int:
    """Epochs that take a step for every two rows, beside those that any training takes."""
    steps = min(SHORTEST + rows // 2, LONGEST)
    return math.ceil(steps / math.ceil(rows / batch_size))
