"""What a model says of the single features of modalities: names, errors, effects, clusters.

Axes: b rows, d latent, c clusters, k features of a modality, v values of a row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from mvkit.core import noise
from mvkit.core.batch import Batch
from mvkit.core.cells import cells_of, explained_share, flat_cells
from mvkit.data.dataset import Rows
from mvkit.evaluation.guesses import DISTANCE, SQUARE, WRONG, best_guess, error_of
from mvkit.models.asked_rows import stated_covariates
from mvkit.models.imputed_sets import class_labels
from mvkit.models.inference import Names
from mvkit.models.multimodal import MultimodalModel
from mvkit.parts.likelihoods import Ordinal
from mvkit.parts.likelihoods.discrete import has_classes


def is_flat(model: MultimodalModel, name: str) -> bool:
    """Whether a row of a modality is numbers or classes without more than one axis."""
    classes = model.schema.likelihoods[name].class_axis
    shape = places_of(model, name) if classes else model.modalities[name].raw_shape
    return len(shape) <= 1


def restored_values(model: MultimodalModel, name: str, x: Tensor) -> Tensor:
    """Values (b, *shape) in the user's units, of classes their numbers, (b, k)."""
    values = model.modalities[name].restore(x)
    if model.schema.likelihoods[name].class_axis and values.shape == x.shape:
        values = values.argmax(-1)
    return flat_cells(values)


def places_of(model: MultimodalModel, name: str) -> tuple[int, ...]:
    """The shape of a modality in the model, without its axis of classes."""
    shape = model.modalities[name].shape
    return shape[:-1] if model.schema.likelihoods[name].class_axis else shape


def feature_names(model: MultimodalModel, name: str) -> list[str]:
    """Names of the features of a flat modality, (k,); numbers where it has none."""
    modality = model.modalities[name]
    if modality.features:
        return list(modality.features)
    classes = model.schema.likelihoods[name].class_axis
    k = math.prod(places_of(model, name) if classes else modality.raw_shape)
    return [name] if k == 1 else [f"{name} {i}" for i in range(k)]


def value_names(model: MultimodalModel, name: str) -> list[str]:
    """Names of the numbers that a row has in the model, (v,): `site = north` of classes."""
    features = feature_names(model, name)
    if not model.schema.likelihoods[name].class_axis:
        return features if len(features) == math.prod(model.modalities[name].shape) else []
    words = class_names(model, name)
    names = []
    for feature in features:
        names += [f"{feature} = {word}" for word in words]
    return names


def class_names(model: MultimodalModel, name: str) -> list[str]:
    """What the classes of a modality of classes are called, (classes,)."""
    words = class_labels(model, name)
    return [f"{word:g}" if isinstance(word, float) else str(word) for word in words]


@attrs.frozen
class FeatureError:
    """How well a feature is generated from others, over rows that observe it.

    Args:
        feature: its name.
        cells: how many.
        measure: what `error` and `guess` are: the root mean square error of numbers, the mean
            distance in levels of ordered classes, the share that is wrong of others.
        error: of what the model says.
        guess: of one value for all rows: the mean, the median, or the most frequent class.
    """

    feature: str
    cells: int
    measure: str
    error: float
    guess: float

    @property
    def gain(self) -> float:
        """Share of the error of a guess that the model takes away; 0 where there is no error."""
        return 1.0 - self.error / self.guess if self.guess else 0.0


def feature_errors(
    model: MultimodalModel, data: Rows, name: str, given: Names = None, **options: Any
) -> list[FeatureError]:
    """Errors of the features of a flat modality in the user's units, the largest first.

    Largest are those that are least below the error of a guess.

    Args:
        model: a model.
        data: rows.
        name: the modality.
        given: modalities that it is generated from; None: all others, or itself where there is
            no other.
        options: of `translate`, such as a sampler.
    """
    sources = sources_of(model, name, given)
    rows = rows_with(model, model.conform(data), name, sources)
    if not len(rows):
        return []
    options = {"latent": "mean", "generator": noise.seeded(0, model.like.device), **options}
    said = model.translate(rows, name, sources, units="model", **options)[name][0]
    cells = cells_of_features(model, rows, name)
    measure = measure_of(model, name)
    errors = []
    columns = []
    for values in (rows.data[name], said):
        columns.append(restored_values(model, name, values).double().cpu().unbind(1))
    for feature, x, y, known in zip(
        feature_names(model, name), *columns, cells.cpu().unbind(1), strict=True
    ):
        if not known.any():
            continue
        truth = x[known].numpy()
        answer = y[known].numpy() if measure == SQUARE else y[known].round().numpy()
        error = error_of(measure, truth, answer)
        guess = error_of(measure, truth, best_guess(measure, truth))
        errors.append(FeatureError(feature, len(truth), measure, error, guess))
    return sorted(errors, key=lambda error: error.gain)


def sources_of(model: MultimodalModel, name: str, given: Names = None) -> tuple[str, ...]:
    """The modalities that one is generated from: those given, else the others, else itself."""
    if isinstance(given, str):
        return (given,)
    if given is not None:
        return tuple(given)
    return tuple(other for other in model.names if other != name) or (name,)


def rows_with(model: MultimodalModel, rows: Batch, name: str, sources: Sequence[str]) -> Batch:
    """The conformed rows that observe a modality and one at least of others."""
    observed = dict(zip(model.names, rows.observed.unbind(1), strict=True))
    some = torch.stack([observed[source] for source in sources]).any(0)
    return rows.take((observed[name] & some).nonzero()[:, 0])


def cells_of_features(model: MultimodalModel, rows: Batch, name: str) -> Tensor:
    """Which features of a flat modality conformed rows observe, (b, k) bool."""
    cells = flat_cells(cells_of(rows, name))
    k = len(feature_names(model, name))
    return cells if cells.shape[1] == k else cells.any(1, keepdim=True).expand(-1, k)


def measure_of(model: MultimodalModel, name: str) -> str:
    """What errors of a modality are."""
    likelihood = model.modalities[name].likelihood
    if isinstance(likelihood, Ordinal):
        return DISTANCE
    return WRONG if has_classes(model.schema.likelihoods[name]) else SQUARE


def explained(model: MultimodalModel, data: Rows) -> dict[str, dict[str, float]]:
    """How much of each modality each other alone, and all others together, explain.

    That is one minus the squared error over that of the mean, in the model's units; of classes,
    whose values are zeros and ones, that of their probabilities. NaN where no row tells.

    Args:
        model: a model.
        data: rows.

    Returns:
        {given: {generated: share}}; `all others` is last, where there are more than two.
    """
    rows = model.conform(data)
    sets = {name: (name,) for name in model.names}
    shares: dict[str, dict[str, float]] = {}
    for given, names in sets.items():
        shares[given] = {}
        for name in model.names:
            shares[given][name] = _explained(model, rows, name, names)
    if len(model.names) > 2:
        shares["all others"] = {}
        for name in model.names:
            others = sources_of(model, name)
            shares["all others"][name] = _explained(model, rows, name, others)
    return shares


def _explained(model: MultimodalModel, rows: Batch, name: str, sources: Sequence[str]) -> float:
    rows = rows_with(model, rows, name, sources)
    if len(rows) < 2:
        return math.nan
    options: dict[str, Any] = {"latent": "mean", "units": "model"}
    generator = noise.seeded(0, model.like.device)
    said = model.translate(rows, name, sources, generator=generator, **options)[name][0]
    return explained_share(rows.data[name], said, rows.present(name))


def latent_effects(model: MultimodalModel, data: Rows) -> dict[str, dict[str, Tensor]]:
    """What moving each latent dimension does to each value of flat modalities.

    From one standard deviation of the rows' latents below their mean to one above, in standard
    deviations of the value over rows; of classes and bits the change of their probability.

    Args:
        model: a model.
        data: rows.

    Returns:
        {modality: {value: changes (d,)}}.
    """
    rows = model.conform(data)
    z = model.encode(rows, empty="prior")
    centre, steps = z.mean(0), z.std(0, correction=0).diag()
    stated = stated_covariates(rows.take([0]))
    options: dict[str, Any] = {"covariates": stated, "units": "model"}
    above, below = (model.decode(centre + sign * steps, **options) for sign in (1, -1))
    effects = {}
    for name in model.names:
        if not is_flat(model, name):
            continue
        change = flat_cells(above[name] - below[name]).double().cpu()
        if measure_of(model, name) != WRONG:
            change = change / spread_of(rows, name)
        names = value_names(model, name)
        effects[name] = dict(zip(names, change.unbind(1), strict=False))
    return effects


def spread_of(rows: Batch, name: str) -> Tensor:
    """Standard deviations of the values of a modality over rows that observe them, (v,)."""
    x, present = flat_cells(rows.data[name]).double(), flat_cells(rows.present(name))
    count = present.sum(0).clamp(min=1)
    mean = torch.where(present, x, 0.0).sum(0) / count
    variance = torch.where(present, x - mean, 0.0).square().sum(0) / count
    return variance.sqrt().clamp(min=1e-12).cpu()


def cluster_profiles(
    model: MultimodalModel, data: Rows, clusters: Tensor
) -> dict[str, dict[str, Tensor]]:
    """How far the mean of each cluster is from that of all rows, of each value of flat modalities.

    In standard deviations of the value over rows; of classes and bits the difference of shares.

    Args:
        model: a model.
        data: rows.
        clusters: of the rows, (b,).

    Returns:
        {modality: {value: differences (c,)}}, NaN of clusters without a row.
    """
    rows = model.conform(data)
    member = torch.nn.functional.one_hot(clusters.long(), model.n_clusters).double().cpu()
    profiles: dict[str, dict[str, Tensor]] = {}
    for name in model.names:
        if not is_flat(model, name):
            continue
        x = flat_cells(rows.data[name]).double().cpu()
        present = flat_cells(rows.present(name)).double().cpu()
        x = x * present
        means = (member.T @ x) / (member.T @ present)
        difference = means - x.sum(0) / present.sum(0)
        if measure_of(model, name) != WRONG:
            difference = difference / spread_of(rows, name)
        names = value_names(model, name)
        profiles[name] = dict(zip(names, difference.unbind(1), strict=False))
    return profiles


def feature_values(model: MultimodalModel, data: Rows, feature: str) -> list[object] | None:
    """The values of a feature of a flat modality, NaN or None where missing, (b,).

    Args:
        model: a model.
        data: rows.
        feature: its name, or `modality.feature` where several have one of this name.

    Returns:
        Numbers, of classes words; None: no flat modality has such a feature.
    """
    rows = model.conform(data)
    for name in model.names:
        if not is_flat(model, name):
            continue
        for i, known in enumerate(feature_names(model, name)):
            if feature not in (known, f"{name}.{known}"):
                continue
            values = restored_values(model, name, rows.data[name])[:, i]
            cells = cells_of_features(model, rows, name)[:, i]
            return _words(model, name, values, cells)
    return None


def _words(model: MultimodalModel, name: str, values: Tensor, cells: Tensor) -> list[object]:
    """Values (b,) in the user's units as numbers or words, NaN and None where unobserved."""
    numbers = values.double().cpu().tolist()
    modality = model.modalities[name]
    words = modality.transform[0].words if modality.transform else ()
    missing: object = None if words else math.nan
    said: list[object] = []
    for number, known in zip(numbers, cells.cpu().tolist(), strict=True):
        value: object = words[int(number)] if words and known else number
        said.append(value if known else missing)
    return said
