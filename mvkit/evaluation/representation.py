"""What latents hold: classes that a line separates, clusters, used dimensions, shares of variance.

Axes: b rows, m modalities, d latent, p private latent, c classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from mvkit.core.batch import Batch
from mvkit.core.row_context import RowContext
from mvkit.errors import SpecError, suggest
from mvkit.evaluation.metric import (
    EvaluationContext,
    Metric,
    Score,
    Scores,
    finite,
    mean,
    observes_all,
    scatter,
    without_nan,
)
from mvkit.models.inference import ROWS, evaluation
from mvkit.registry.fields import factor, optional_count
from mvkit.registry.spec import spec

Names = tuple[str, ...]
Integers = NDArray[np.int64]
Reals = NDArray[np.float64]
NOTEWORTHY = 0.01  # by which k-means is more accurate than the prior's clusters, to be told


def _unusable(context: EvaluationContext) -> str | None:
    """Why classes and the shared latent cannot be compared; None if they can."""
    no_latent = None if context.one_model.latent_dim else "no shared latent"
    return context.unlabelled() or no_latent


def _one_class(context: EvaluationContext) -> str | None:
    """Why clusters cannot be compared with classes: one class agrees with anything."""
    labels = context.labels(context.rows)
    if len(labels[labels >= 0].unique()) > 1:
        return None
    return f"all labelled rows have one extra[{context.label!r}]; needs two classes"


@spec
class Probe(Metric):
    """Accuracy of a linear classifier of the class from the posterior mean, given modalities.

    Args:
        given: lists of names, each a set of given modalities; None: each alone, and whatever a row
            has.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,)}, latent_dim=2, seed=0)
        >>> rows = mvkit.Batch({"a": torch.randn(60, 3)}, extra={"label": torch.arange(60) % 2})
        >>> report = mvkit.evaluate(model, rows, ["probe"])
        >>> report.scores[0].name
        'accuracy given all'

    Reference: Alain and Bengio, Understanding Intermediate Layers Using Linear Classifier Probes,
    2017, https://arxiv.org/abs/1610.01644.
    """

    given: tuple[Names, ...] | None = None

    def incompatibility(self, context: EvaluationContext) -> str | None:
        names = context.model.names
        for name in itertools.chain(*(self.given or ())):
            if name not in names:
                raise SpecError(f"unknown modality {name!r}; {suggest(str(name), names)}", "given")
        return _unusable(context)

    def rows(self, context: EvaluationContext) -> Batch:
        return context.held("probe")

    def _sets(self, names: Names) -> dict[str, Names]:
        """Given modalities by their name in the report; (): whatever the row has."""
        if self.given is not None:
            return {", ".join(given): given for given in self.given}
        alone = {name: (name,) for name in names if len(names) > 1}
        return {**alone, "all": ()}

    def score(self, context: EvaluationContext, block: Batch, generator: Generator) -> Scores:
        model = context.one_model
        labels = context.labels(block).to(block.observed.device)
        scores: Scores = {"label": labels}
        for title, given in self._sets(model.names).items():
            known = (labels >= 0) & observes_all(block, given)
            codes = model.like.new_zeros(0, model.latent_dim)
            if known.any():
                codes = context.encode(block.take(known), given or model.names)
            scores[title] = scatter(codes, known)
        return scores

    def summary(self, context: EvaluationContext, scores: Scores) -> Iterator[Score]:
        rows = context.fitting.to(context.model.like.device)
        fitted = self.score(context, rows, context.generator("probe"))
        for title, given in self._sets(context.model.names).items():
            codes, labels = _known(fitted, title)
            test_codes, test_labels = _known(scores, title)
            if len(np.unique(labels)) < 2 or not len(test_labels):
                context.note(
                    f"probe: given {title}: needs rows of two classes to fit on, and one to score"
                )
                continue
            classes = _predict(codes, labels, test_codes, context.seed)
            right = torch.from_numpy((classes == test_labels).astype(float))
            count = len(given or context.model.names)
            yield mean("probe", f"accuracy given {title}", right, given=count)


def _known(scores: Scores, title: str) -> tuple[Reals, Integers]:
    """Latents and labels of the rows that have both."""
    codes = scores[title].cpu()
    known = without_nan(codes)
    return codes[known].double().numpy(), scores["label"].cpu()[known].numpy()


def _predict(codes: Reals, labels: Integers, test_codes: Reals, seed: int) -> Integers:
    """Classes of test rows by a linear classifier that is fitted on others."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = LogisticRegression(max_iter=2000, random_state=seed)
    probe = make_pipeline(StandardScaler(), classifier).fit(codes, labels)
    classes: Integers = probe.predict(test_codes)
    return classes


@spec
class Clusters(Metric):
    """Agreement of clusters with classes.

    Clusters are those of k-means on posterior means, and the components of the prior. Measured are
    accuracy by the best matching of clusters to classes (Hungarian), normalised mutual information
    and the adjusted Rand index. A note says where k-means is more accurate on the same latents.

    Args:
        k: clusters of k-means; None: as many as there are classes.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,)}, latent_dim=2, seed=0)
        >>> rows = mvkit.Batch({"a": torch.randn(60, 3)}, extra={"label": torch.arange(60) % 2})
        >>> report = mvkit.evaluate(model, rows, ["clusters"])
        >>> report.scores[0].name
        'k-means, accuracy'

    Reference: Hubert and Arabie, Comparing Partitions, 1985, https://doi.org/10.1007/BF01908075;
    Xie, Girshick and Farhadi, Unsupervised Deep Embedding for Clustering Analysis, 2016,
    https://arxiv.org/abs/1511.06335 (accuracy).
    """

    k: int | None = optional_count()

    def incompatibility(self, context: EvaluationContext) -> str | None:
        if not context.one_model.n_clusters:
            context.note("clusters: the prior is no mixture to assign rows to; k-means only")
        return _unusable(context) or _one_class(context)

    def score(self, context: EvaluationContext, block: Batch, generator: Generator) -> Scores:
        codes = context.encode(block, context.model.names)
        scores: Scores = {"label": context.labels(block), "z": codes}
        if context.one_model.n_clusters:
            scores["mixture"] = context.one_model.clusters(block)
        return scores

    def summary(self, context: EvaluationContext, scores: Scores) -> Iterator[Score]:
        from sklearn.cluster import KMeans

        labels = scores["label"].numpy()
        known = labels >= 0
        k = self.k or len(np.unique(labels[known]))
        if k > len(labels):
            raise SpecError(f"got {k}; expected at most {len(labels)}, the number of rows", "k")
        codes = scores["z"].cpu().double().numpy()
        k_means = KMeans(k, n_init=10, random_state=context.seed).fit(codes)
        partitions = {"k-means": k_means.labels_}
        if "mixture" in scores:
            partitions["mixture"] = scores["mixture"].cpu().numpy()
        accuracy = {}
        for title, clusters in partitions.items():
            scores_of = agreement(clusters[known], labels[known])
            accuracy[title] = scores_of["accuracy"]
            for name, value in scores_of.items():
                yield Score("clusters", f"{title}, {name}", value, rows=int(known.sum()))
        if accuracy["k-means"] > accuracy.get("mixture", 1.0) + NOTEWORTHY:
            context.note(_behind(accuracy["mixture"], accuracy["k-means"]))


def _behind(mixture: float, k_means: float) -> str:
    """What to say where k-means finds classes that the components of the prior do not."""
    return (
        f"clusters: k-means on the same latents is right in {k_means:.1%} of the rows, the "
        f"mixture prior's own clusters in {mixture:.1%}: its components are not where the rows "
        "are; place them by schedule='warmup_then_mixture', or give 'mog' covariance='tied'"
    )


def agreement(clusters: Integers, labels: Integers) -> dict[str, float]:
    """Accuracy by the best matching, normalised mutual information and adjusted Rand index.

    Args:
        clusters: a partition of rows, (b,).
        labels: another partition of the same rows, (b,).

    Example:
        >>> import numpy as np
        >>> agreement(np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1]))["accuracy"]
        1.0
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    counts = contingency_matrix(labels, clusters)
    matching = linear_sum_assignment(counts, maximize=True)
    return {
        "accuracy": float(counts[matching].sum() / len(labels)),
        "NMI": float(normalized_mutual_info_score(labels, clusters)),
        "ARI": float(adjusted_rand_score(labels, clusters)),
    }


@spec
class Latents(Metric):
    """Dimensions in use, and what private and shared latents contribute to each modality.

    A dimension is active if the variance of its posterior mean over rows is above a threshold. A
    share is that of E |f(z, w) - f(z, w')|² (private) and E |f(z, w) - f(z', w)|² (shared) in
    their sum: f is the decoder's mean, and z, w are posterior means of different rows. For a
    linear f these are shares of its variance.

    Args:
        threshold: of active dimensions.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
        >>> rows = {"a": torch.randn(60, 3), "b": torch.randn(60, 2)}
        >>> report = mvkit.evaluate(model, rows, ["latents"])
        >>> report.scores[0].name
        'active dimensions, shared'

    Reference: Burda, Grosse and Salakhutdinov, 2016, https://arxiv.org/abs/1509.00519 (active
    units); Jansen, Analysis of Variance Designs for Model Output, 1999,
    https://doi.org/10.1016/S0010-4655(98)00154-4 (shares).
    """

    threshold: float = factor(0.01)

    def score(self, context: EvaluationContext, block: Batch, generator: Generator) -> Scores:
        scores: Scores = {}
        if context.one_model.latent_dim:
            scores["shared"] = context.encode(block, context.model.names)
        for name, w in context.one_model.private(block).items():
            known = observes_all(block, [name])
            means = finite(w[known], block.take(known), f"the private latent of {name!r}")
            scores[name] = scatter(means, known)
        return scores

    def summary(self, context: EvaluationContext, scores: Scores) -> Iterator[Score]:
        for name, latents in scores.items():
            known = without_nan(latents)
            rows = int(known.sum())
            private = name != "shared"
            title = f"private, {name}" if private else name
            active = 0
            if rows:
                variance = latents[known].double().var(0, correction=0)
                active = int((variance > self.threshold).sum())
            yield Score("latents", f"active dimensions, {title}", active, rows=rows)
            if private and "shared" in scores:
                share = private_share(context, name, scores["shared"], latents, known)
                title = f"share of variance of {name}"
                yield Score("latents", f"{title}, private", share, rows=rows)
                yield Score("latents", f"{title}, shared", 1 - share, rows=rows)


def private_share(
    context: EvaluationContext, name: str, z: Tensor, w: Tensor, known: Tensor
) -> float:
    """The private latent's share of the variance of a modality; NaN where rows do not say.

    Args:
        context: has the model and the rows, whose covariates and exposures decoders see.
        name: the modality.
        z: shared latents of the rows, (b, d).
        w: private latents of the rows, (b, p).
        known: which rows count, (b,) bool.
    """
    if int(known.sum()) < 3:
        return math.nan
    device = context.model.like.device
    z = z[known].to(device)
    w = w[known].to(device)
    given = _given(context.rows, known, device)
    decode = context.one_model.decoding.decode
    # a row's other latents are those of the next rows and of the next but one
    shifted = (z, z.roll(2, 0), w.roll(1, 0), w.roll(2, 0))
    private = shared = 0.0
    with evaluation(context.model), torch.no_grad():
        for i, (z0, z2, w1, w2) in enumerate(zip(*(x.split(ROWS) for x in shifted), strict=True)):
            rows = given(slice(i * ROWS, (i + 1) * ROWS))
            value = decode(name, z0, w1, rows=rows)
            private += float((value - decode(name, z0, w2, rows=rows)).double().square().sum())
            shared += float((value - decode(name, z2, w1, rows=rows)).double().square().sum())
    return private / (private + shared) if private + shared else math.nan


def _given(rows: Batch, known: Tensor, device: torch.device) -> Callable[[slice], RowContext]:
    """What is given of any of the known rows, on a device."""
    covariates = {name: x[known].to(device) for name, x in rows.covariates.items()}
    exposure = {name: x[known].to(device) for name, x in rows.exposure.items()}

    def of(part: slice) -> RowContext:
        return RowContext(
            {name: x[part] for name, x in covariates.items()},
            {name: x[part] for name, x in exposure.items()},
        )

    return of
