"""What latents hold: classes that a line separates, clusters, used dimensions, shares of variance.

Axes: b rows, m modalities, d latent, p private latent, c classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.errors import SpecError, suggest
from mvkit.evaluation.metric import (
    EvaluationContext,
    Metric,
    Score,
    Scores,
    finite,
    mean,
    scatter,
    subset,
)
from mvkit.models.inference import ROWS, evaluation
from mvkit.registry.spec import field, integer, number, one_of, spec


@spec
class Probe(Metric):
    """Accuracy of a linear classifier of the class from the posterior mean, given modalities.

    Args:
        given: lists of names, each a set of given modalities; None: each alone, and whatever a row has.

    Reference: Alain and Bengio, Understanding Intermediate Layers Using Linear Classifier Probes, 2017,
    https://arxiv.org/abs/1610.01644.
    """

    given: tuple[Any, ...] | None = None

    def incompatibility(self, study: EvaluationContext) -> str | None:
        """See `Metric.refusal`."""
        for name in (name for given in self.given or () for name in given):
            if name not in study.model.names:
                raise SpecError(
                    f"unknown modality {name!r}; {suggest(str(name), study.model.names)}", "given"
                )
        return study.unlabelled() or (None if study.model.latent_dim else "no shared latent")

    def rows(self, study: EvaluationContext) -> Batch:
        """See `Metric.rows`."""
        return study.held("probe")

    def _sets(self, names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
        """Given modalities by what the report calls them; none: whatever the row has."""
        every = (
            ([(name,) for name in names] if len(names) > 1 else [])
            if self.given is None
            else self.given
        )
        whole: dict[str, tuple[str, ...]] = {"all": ()} if self.given is None else {}
        return {", ".join(given): given for given in every} | whole

    def score(
        self, study: EvaluationContext, block: Batch, generator: torch.Generator
    ) -> dict[Any, Tensor]:
        """See `Metric.score`."""
        labels = study.labels(block).to(block.observed.device)
        found: dict[Any, Tensor] = {"label": labels}
        for called, given in self._sets(study.model.names).items():
            has = (labels >= 0) & subset(block, given, study.model.names)
            codes = (
                study.encode(block.take(has), given or study.model.names) if has.any() else None
            )
            width = study.model.latent_dim
            found[called] = scatter(
                study.model.like.new_zeros(0, width) if codes is None else codes, has
            )
        return found

    def summary(self, study: EvaluationContext, scores: Scores) -> list[Score]:
        """See `Metric.summary`."""
        fitted = self._fitting(study)
        found = []
        for called, given in self._sets(study.model.names).items():
            x, y = _known(fitted, called)
            test, label = _known(scores, called)
            if len(np.unique(y)) < 2 or not len(label):
                study.note(
                    f"probe: given {called}: needs rows of two classes to fit on, and one to score"
                )
                continue
            right = torch.from_numpy(
                (_line(x, y, study.seed).predict(test) == label).astype(float)
            )
            found.append(
                mean(
                    "probe",
                    f"accuracy given {called}",
                    right,
                    given=len(given or study.model.names),
                )
            )
        return found

    def _fitting(self, study: EvaluationContext) -> Scores:
        rows = study.fitting.to(study.model.like.device)
        if study.label not in rows.extra:
            return {
                "label": torch.zeros(0),
                **{k: torch.zeros(0, 1) for k in self._sets(study.model.names)},
            }
        return self.score(study, rows, study.generator("probe"))


def _known(scores: Scores, called: str) -> tuple[NDArray[Any], NDArray[Any]]:
    """Latents and labels of the rows that have both."""
    codes, labels = scores[called].cpu(), scores["label"].cpu()
    kept = ~codes.isnan().any(1)
    return codes[kept].double().numpy(), labels[kept].numpy()


def _line(x: NDArray[Any], y: NDArray[Any], seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=2000, random_state=seed)
    ).fit(x, y)


@spec
class Clusters(Metric):
    """Agreement of clusters with classes: of k-means on posterior means, and of the prior's components.

    Accuracy by the best matching of clusters to classes (Hungarian), normalised mutual information, adjusted Rand
    index.

    Args:
        k: clusters of k-means; None: as many as there are classes.

    Reference: Hubert and Arabie, Comparing Partitions, 1985, https://doi.org/10.1007/BF01908075; Xie, Girshick and
    Farhadi, Unsupervised Deep Embedding for Clustering Analysis, 2016, https://arxiv.org/abs/1511.06335 (accuracy).
    """

    k: int | None = field(default=None, check=one_of(None, other=integer(1)))

    def incompatibility(self, study: EvaluationContext) -> str | None:
        """See `Metric.refusal`."""
        if not study.model.n_clusters:
            study.note("clusters: the prior is no mixture to assign rows to; k-means only")
        return study.unlabelled() or (None if study.model.latent_dim else "no shared latent")

    def score(
        self, study: EvaluationContext, block: Batch, generator: torch.Generator
    ) -> dict[Any, Tensor]:
        """See `Metric.score`."""
        found = {"label": study.labels(block), "z": study.encode(block, study.model.names)}
        if study.model.n_clusters:
            found["mixture"] = study.model.clusters(block)
        return found

    def summary(self, study: EvaluationContext, scores: Scores) -> list[Score]:
        """See `Metric.summary`."""
        from sklearn.cluster import KMeans

        labels = scores["label"].numpy()
        known = labels >= 0
        k = self.k or len(np.unique(labels[known]))
        if k > len(labels):
            raise SpecError(f"got {k}; expected at most {len(labels)}, the number of rows", "k")
        means = (
            KMeans(k, n_init=10, random_state=study.seed)
            .fit(scores["z"].cpu().double().numpy())
            .labels_
        )
        parts = {"k-means": means}
        if "mixture" in scores:
            parts["mixture"] = scores["mixture"].cpu().numpy()
        found = []
        for called, part in parts.items():
            for name, value in agreement(part[known], labels[known]).items():
                found.append(Score("clusters", f"{called}, {name}", value, rows=int(known.sum())))
        return found


def agreement(clusters: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Accuracy by the best matching, normalised mutual information and adjusted Rand index of two partitions (b,).

    Example:
        >>> import numpy as np
        >>> agreement(np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1]))["accuracy"]
        1.0
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    counts = contingency_matrix(labels, clusters)
    return {
        "accuracy": float(
            counts[linear_sum_assignment(counts, maximize=True)].sum() / len(labels)
        ),
        "NMI": float(normalized_mutual_info_score(labels, clusters)),
        "ARI": float(adjusted_rand_score(labels, clusters)),
    }


@spec
class Latents(Metric):
    """Dimensions in use, and what private and shared latents contribute to each modality.

    A dimension is active if the variance of its posterior mean over rows is above a threshold. A share is that of
    E |f(z, w) - f(z, w')|² (private) and E |f(z, w) - f(z', w)|² (shared) in their sum: f is the decoder's mean, and
    z, w come from posterior means of different rows. For a linear f these are shares of its variance.

    Args:
        threshold: of active dimensions.

    Reference: Burda, Grosse and Salakhutdinov, 2016, https://arxiv.org/abs/1509.00519 (active units); Jansen, Analysis
    of Variance Designs for Model Output, 1999, https://doi.org/10.1016/S0010-4655(98)00154-4 (shares).
    """

    threshold: float = field(default=0.01, check=number(0.0))

    def score(
        self, study: EvaluationContext, block: Batch, generator: torch.Generator
    ) -> dict[Any, Tensor]:
        """See `Metric.score`."""
        found: dict[Any, Tensor] = {}
        if study.model.latent_dim:
            found["shared"] = study.encode(block, study.model.names)
        for name, w in study.model.private(block).items():
            has = subset(block, [name], study.model.names)
            found[name] = scatter(
                finite(w[has], block.take(has), f"the private latent of {name!r}"), has
            )
        return found

    def summary(self, study: EvaluationContext, scores: Scores) -> list[Score]:
        """See `Metric.summary`."""
        found = []
        for key, latents in scores.items():
            called = "shared" if key == "shared" else f"private, {key}"
            kept = latents[~latents.isnan().any(1)].double()
            active = int((kept.var(0, correction=0) > self.threshold).sum()) if len(kept) else 0
            found.append(Score("latents", f"active dimensions, {called}", active, rows=len(kept)))
            if key != "shared" and "shared" in scores:
                known = ~latents.isnan().any(1)
                share = private_share(study, str(key), scores["shared"][known], latents[known])
                found.append(
                    Score("latents", f"share of variance of {key}, private", share, rows=len(kept))
                )
                found.append(
                    Score(
                        "latents", f"share of variance of {key}, shared", 1 - share, rows=len(kept)
                    )
                )
        return found


def private_share(study: EvaluationContext, name: str, z: Tensor, w: Tensor) -> float:
    """The private latent's share of the variance of a modality, from latents z (b, d) and w (b, p) of rows."""
    if len(z) < 3:
        return float("nan")
    z, w = (latents.to(study.model.like.device) for latents in (z, w))
    private = shared = 0.0
    with evaluation(study.model), torch.no_grad():
        # the other latents are those of the next rows and of the next but one
        for latents in zip(
            *(torch.split(x.roll(i, 0), ROWS) for x in (z, w) for i in range(3)), strict=True
        ):
            z0, _, z2, _, w1, w2 = latents
            base = study.model.decoding.decode(name, z0, w1)
            private += float(
                (base - study.model.decoding.decode(name, z0, w2)).double().square().sum()
            )
            shared += float(
                (base - study.model.decoding.decode(name, z2, w1)).double().square().sum()
            )
    return private / (private + shared) if private + shared else float("nan")
