"""Metrics of single cells: how latents mix batches and keep kinds, how well proteins are imputed.

Axes: b rows, d latent, f features.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from mvkit import Batch, Metric, RequestError, spec
from mvkit.errors import suggest
from mvkit.evaluation.metric import EvaluationContext, Score, Scores
from mvkit.registry import field, flag, integer, one_of

Reals = NDArray[np.float64]
Integers = NDArray[np.int64]
TITLE = "scib"
PROTEINS = "protein_imputation"


def _name(value: object) -> str | None:
    return None if value is None or isinstance(value, str) else "a name, or None"


def _names(value: object) -> str | None:
    fine = value is None or (isinstance(value, tuple) and all(isinstance(n, str) for n in value))
    return None if fine else "a list of names, or None"


@spec
class SCIB(Metric):
    """How latents keep kinds of cells and mix batches, by scib-metrics.

    Of kinds: NMI and ARI of k-means, silhouette, cLISI; of batches: silhouette within kinds,
    iLISI, kBET within kinds. All are scaled to [0, 1], larger is better. Neighbours are exact.
    Rows without a label, or without a batch, are left out of what needs it.

    Args:
        batch: what batches are by: a covariate of the model, or whole numbers in the data's extra.
        given: modalities to look at; None: all that each row has.
        neighbours: of each row, itself among them, at most as many as there are rows.
        limit: rows at most; None: all.

    Reference: Luecken et al., Benchmarking Atlas-Level Data Integration in Single-Cell Genomics,
    2022, https://doi.org/10.1038/s41592-021-01336-8.
    """

    batch: str = "batch"
    given: tuple[str, ...] | None = field(default=None, check=_names)
    neighbours: int = field(default=90, check=integer(2))
    limit: int | None = field(default=10_000, check=one_of(None, other=integer(2)))

    def incompatibility(self, context: EvaluationContext) -> str | None:
        if importlib.util.find_spec("scib_metrics") is None:
            return "needs scib-metrics, which is not installed: pip install 'mvkit-omics[metrics]'"
        if not context.one_model.latent_dim:
            return "no shared latent"
        _check_given(context, self.given)
        labels = context.unlabelled()
        batches = _batches(context.rows, self.batch)
        if labels and batches is None:
            return f"{labels}; and no batches: {self.batch!r} is neither a covariate nor in extra"
        return None

    def rows(self, context: EvaluationContext) -> Batch:
        return context.first(self.limit, TITLE)

    def score(self, context: EvaluationContext, block: Batch, generator: Generator) -> Scores:
        z = context.one_model.encode(block, self.given, empty="prior")
        scores: Scores = {"z": z, "label": context.labels(block)}
        batches = _batches(block, self.batch)
        if batches is not None:
            scores["batch"] = batches
        return scores

    def summary(self, context: EvaluationContext, scores: Scores) -> Iterator[Score]:
        z = scores["z"].cpu().double().numpy()
        labels = scores["label"].cpu().numpy()
        nowhere = torch.full((len(z),), -1)
        batches = scores.get("batch", nowhere).cpu().numpy()
        if "batch" not in scores:
            context.note(
                f"{TITLE}: no batches: {self.batch!r} is neither a covariate nor in extra"
            )
        labelled = labels >= 0
        if len(np.unique(labels[labelled])) > 1:
            for name, value in _of_kinds(z[labelled], labels[labelled], self.neighbours).items():
                yield Score(TITLE, name, value, rows=int(labelled.sum()))
        known = batches >= 0
        if len(np.unique(batches[known])) > 1:
            value = _ilisi(z[known], batches[known], self.neighbours)
            yield Score(TITLE, "iLISI", value, rows=int(known.sum()))
        both = labelled & known
        if len(np.unique(batches[both])) > 1 and len(np.unique(labels[both])) > 1:
            values = _of_both(z[both], labels[both], batches[both], self.neighbours)
            for name, value in values.items():
                yield Score(TITLE, name, value, rows=int(both.sum()))


def _check_given(context: EvaluationContext, given: tuple[str, ...] | None) -> None:
    for name in given or ():
        if name not in context.model.names:
            raise RequestError(f"unknown modality {name!r}; {suggest(name, context.model.names)}")


def _batches(rows: Batch, name: str) -> Tensor | None:
    """Indices of the batches of rows, (b,), -1 where one has none; None: nobody says."""
    known: Tensor | None = rows.covariates.get(name)
    if known is not None and not known.is_floating_point():
        return known
    values = rows.extra.get(name)
    if not isinstance(values, Tensor):
        return None
    values = values.double().cpu()
    return torch.where(values.isnan(), -1.0, values).long()


def neighbours_of(z: Reals, k: int) -> Any:
    """The nearest rows of each row, itself first, as scib-metrics takes them."""
    from scib_metrics.nearest_neighbors import NeighborsResults
    from sklearn.neighbors import NearestNeighbors

    k = min(k, len(z))
    distances, indices = NearestNeighbors(n_neighbors=k).fit(z).kneighbors(z)
    return NeighborsResults(indices=indices, distances=distances)


def _of_kinds(z: Reals, labels: Integers, k: int) -> dict[str, float]:
    import scib_metrics

    clusters = scib_metrics.nmi_ari_cluster_labels_kmeans(z, labels)
    return {
        "NMI, k-means": float(clusters["nmi"]),
        "ARI, k-means": float(clusters["ari"]),
        "silhouette of labels": float(scib_metrics.silhouette_label(z, labels)),
        "cLISI": float(scib_metrics.clisi_knn(neighbours_of(z, k), labels)),
    }


def _ilisi(z: Reals, batches: Integers, k: int) -> float:
    import scib_metrics

    return float(scib_metrics.ilisi_knn(neighbours_of(z, k), batches))


def _of_both(z: Reals, labels: Integers, batches: Integers, k: int) -> dict[str, float]:
    import scib_metrics

    silhouette = scib_metrics.silhouette_batch(z, labels, batches)
    kbet = scib_metrics.kbet_per_label(neighbours_of(z, k), batches, labels)
    return {"silhouette of batches": float(silhouette), "kBET": float(kbet)}


@spec
class ProteinImputation(Metric):
    """How well a modality is imputed, feature by feature: Pearson, Spearman, RMSE.

    Predictions are decoder means at the posterior's mean given other modalities, with what is
    background in the data. Correlations are over cells; features that do not vary have none. The
    report has means over features, and each feature's own among its details.

    Args:
        modality: what is imputed; None: each in turn.
        given: from which modalities; None: all others.
        log1p: compare log(1 + x), by Pearson and RMSE; ranks stay.
        limit: rows at most; None: all.

    Reference: Gayoso et al., Joint Probabilistic Modeling of Single-Cell Multi-Omic Data with
    totalVI, 2021, https://doi.org/10.1038/s41592-020-01050-x.
    """

    modality: str | None = field(default=None, check=_name)
    given: tuple[str, ...] | None = field(default=None, check=_names)
    log1p: bool = field(default=True, check=flag)
    limit: int | None = field(default=10_000, check=one_of(None, other=integer(2)))

    def incompatibility(self, context: EvaluationContext) -> str | None:
        if len(context.model.names) < 2:
            return "one modality: there is no other to impute it from"
        _check_given(context, self.given)
        _check_given(context, None if self.modality is None else (self.modality,))
        if self.modality in (self.given or ()):
            return f"{self.modality!r} is imputed, and given"
        return None if self._wanted(context) else "no modality with numbers to impute"

    def rows(self, context: EvaluationContext) -> Batch:
        return context.first(self.limit, PROTEINS)

    def _wanted(self, context: EvaluationContext) -> list[str]:
        """The modalities that are imputed."""
        wanted = []
        for name, likelihood in context.model.schema.likelihoods.items():
            asked = self.modality in (None, name) and name not in (self.given or ())
            if asked and not likelihood.class_axis:
                wanted.append(name)
        return wanted

    def _given(self, context: EvaluationContext, name: str) -> tuple[str, ...]:
        return context.others(name) if self.given is None else self.given

    def score(self, context: EvaluationContext, block: Batch, generator: Generator) -> Scores:
        scores: Scores = {}
        for name in self._wanted(context):
            given = self._given(context, name)
            known = block.hide(given).observed.any(1) & block.hide([name]).observed.any(1)
            modality = context.model.modalities[name]
            predicted = block.data[name].new_full(block.data[name].shape, torch.nan)
            if known.any():
                rows = block.take(known)
                values = context.translate(rows, [name], given, latent="mean", generator=generator)
                predicted[known] = values[name][0]
            present = block.present(name) & ~predicted.isnan()
            measured = torch.where(present, block.data[name], torch.nan)
            scores[name, "predicted"] = modality.restore(predicted).flatten(1)
            scores[name, "measured"] = modality.restore(measured).flatten(1)
        return scores

    def summary(self, context: EvaluationContext, scores: Scores) -> Iterator[Score]:
        for name in self._wanted(context):
            given = len(self._given(context, name))
            predicted = scores[name, "predicted"].double().numpy()
            measured = scores[name, "measured"].double().numpy()
            if np.isnan(measured).all():
                context.note(f"{PROTEINS}: no row has {name!r} and what it is imputed from")
                continue
            features = context.model.modalities[name].features or range(measured.shape[1])
            by_feature = compared(predicted, measured, log1p=self.log1p)
            rows = int((~np.isnan(measured)).any(1).sum())
            for key, values in by_feature.items():
                known = values[~np.isnan(values)]
                value = float(known.mean()) if len(known) else math.nan
                yield Score(PROTEINS, f"{name}, {key}", value, rows=rows, given=given)
            for key, values in by_feature.items():
                for feature, value in zip(features, values.tolist(), strict=True):
                    title = f"{name}, {key} of {feature}"
                    yield Score(PROTEINS, title, value, rows=rows, given=given, detail=True)


def compared(predicted: Reals, measured: Reals, *, log1p: bool = True) -> dict[str, Reals]:
    """Pearson, Spearman and RMSE of each feature over the cells that have it, {name: (f,)}.

    Args:
        predicted: (b, f).
        measured: (b, f), NaN where missing.
        log1p: of log(1 + x); ranks stay.

    Example:
        >>> import numpy as np
        >>> x = np.array([[1.0], [2.0], [4.0]])
        >>> compared(x + 1, x, log1p=False)["Pearson"].round(6).tolist()
        [1.0]
    """
    from scipy.stats import rankdata

    features = measured.shape[1]
    columns = {key: np.full(features, np.nan) for key in ("Pearson", "Spearman", "RMSE")}
    for f in range(features):
        known = ~np.isnan(measured[:, f]) & ~np.isnan(predicted[:, f])
        x, y = predicted[known, f], measured[known, f]
        if not len(x):
            continue
        columns["Spearman"][f] = correlation(rankdata(x), rankdata(y))
        if log1p:
            x, y = np.log1p(x), np.log1p(y)
        columns["Pearson"][f] = correlation(x, y)
        columns["RMSE"][f] = np.sqrt(np.square(x - y).mean())
    return columns


def correlation(x: Reals, y: Reals) -> float:
    """Pearson's correlation; NaN where one of them does not vary."""
    if len(x) < 2 or (x == x[0]).all() or (y == y[0]).all():
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])
