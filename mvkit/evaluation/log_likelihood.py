"""Log-likelihoods: joint, of any modalities, of some given others; with effective sample sizes.

Axes: e models, n draws, b rows.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import attrs
import torch
from torch import Generator, Tensor

from mvkit.core.batch import Batch
from mvkit.core.raw_values import full_precision
from mvkit.core.validation import Schema
from mvkit.errors import SpecError, suggest
from mvkit.evaluation.metric import (
    EvaluationContext,
    Metric,
    Score,
    Scores,
    finite,
    mean,
    observes_any,
)
from mvkit.models.ensemble import members_of
from mvkit.models.importance_sampling import Sampling
from mvkit.models.inference import evaluation, names_of
from mvkit.models.lacking_covariates import lacks_covariates
from mvkit.models.multimodal import MultimodalModel
from mvkit.parts.priors import as_prior
from mvkit.registry.fields import choice, count, optional_count
from mvkit.registry.spec import spec

Names = tuple[str, ...]
Query = tuple[Names, Names]  # (A, B) of log p(x_A|x_B)


@spec
class Likelihood(Metric):
    """Log p(x_A|x_B) in nats, by importance sampling; given the covariates and exposures of rows,
    if the model has some, which its name in the report then says.

    It is log p(x_A, x_B) - log p(x_B), each a log-mean-exp of n importance weights. Every row is
    scored on what it has of A and of B, and must have something of both. The effective sample size
    of n weights is (Σ w)² / Σ w². Of an ensemble it is the log of the models' mean density, with
    the smallest of their effective sample sizes.

    Args:
        queries: pairs (A, B) of lists of names, B may be empty; None: all together, each alone,
            each given all others.
        n: importance samples.
        limit: rows at most; None: all.
        low: the report warns where the median effective sample size is below it.
        missing: rows that lack a covariate: the `error` of the model, for which they are left out
            here; or `average`: scored at the average of training, an approximation.

    Example:
        >>> import mvkit, torch
        >>> model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
        >>> rows = {"a": torch.randn(60, 3), "b": torch.randn(60, 2)}
        >>> report = mvkit.evaluate(model, rows, [{"name": "likelihood", "n": 10}])
        >>> report.scores[0].name
        'log p(all)'

    Reference: Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016,
    https://arxiv.org/abs/1509.00519.
    """

    queries: tuple[object, ...] | None = None
    n: int = count(200)
    limit: int | None = optional_count(1000)
    low: int = count(10, low=0)
    missing: str = choice("error", "average")

    def incompatibility(self, context: EvaluationContext) -> str | None:
        self.asked(context)
        if any(as_prior(model.prior).conditional for model in members_of(context.model)):
            return "the prior depends on the row, so that there is no likelihood"
        return None

    def rows(self, context: EvaluationContext) -> Batch:
        rows = context.first(self.limit, "likelihood")
        lacking = int(self._left_out(rows).sum())
        if lacking:
            context.note(
                f"likelihood: {lacking:,} rows lack a covariate and are left out; "
                "missing='average' scores them at the average of training"
            )
        return rows

    def _left_out(self, rows: Batch) -> Tensor:
        """Rows that are not scored, since they lack a covariate, (b,) bool."""
        lacking = lacks_covariates(rows)
        return lacking & (self.missing != "average")

    def asked(self, context: EvaluationContext) -> dict[str, Query]:
        """Pairs (A, B) by their names in the report."""
        names = context.model.names
        if self.queries is not None:
            pairs = [_checked(pair, names) for pair in self.queries]
        else:
            pairs = [(names, ())]
            if len(names) > 1:
                pairs += [((name,), ()) for name in names]
                pairs += [((name,), context.others(name)) for name in names]
        asked = {}
        for of, given in pairs:
            known = _known(context.model.schema, of + given)
            explained = context.model.missingness
            if explained is not None and set(explained.modalities) & set(of):
                known += ", what is missing included"
            asked[_title(of, given, names) + known] = (of, given)
        return asked

    def score(self, context: EvaluationContext, block: Batch, generator: Generator) -> Scores:
        scores: Scores = {}
        left_out = self._left_out(block)

        @functools.cache  # several queries may need the same evidence
        def evidence(names: frozenset[str]) -> tuple[Tensor, Tensor]:
            return self._evidence(context, block.hide(names), generator)

        for title, (of, given) in self.asked(context).items():
            log_p, size = evidence(frozenset(of + given))
            scored = observes_any(block, of) & ~left_out
            if given:
                log_p_given, size_given = evidence(frozenset(given))
                log_p = log_p - log_p_given
                size = torch.minimum(size, size_given)
                scored = scored & observes_any(block, given)
            log_mean = torch.logsumexp(log_p, 0) - math.log(len(log_p))
            scores[title, "log_p"] = torch.where(scored, log_mean, torch.nan)
            scores[title, "size"] = torch.where(scored, size.amin(0), torch.nan)
        return scores

    def _evidence(
        self, context: EvaluationContext, rows: Batch, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Log p of what rows have by each model, and the effective sample sizes, (e, b) each."""
        evidence = [self._of_model(model, rows, generator) for model in members_of(context.model)]
        log_p, sizes = zip(*evidence, strict=True)
        return torch.stack(log_p), torch.stack(sizes)

    def _of_model(
        self, model: MultimodalModel, rows: Batch, generator: Generator
    ) -> tuple[Tensor, Tensor]:
        """Log p of what rows have, and the effective sample size, (b,) each."""
        sums, squares = [], []
        sampling = Sampling(self.n, generator=generator)
        with evaluation(model):
            for log_w in model.weight_blocks(rows, sampling):
                log_w = full_precision(finite(log_w, rows, "an importance weight", 1))
                sums.append(torch.logsumexp(log_w, 0))
                squares.append(torch.logsumexp(2 * log_w, 0))
        total = torch.logsumexp(torch.stack(sums), 0)
        size = torch.exp(2 * total - torch.logsumexp(torch.stack(squares), 0))
        return total - math.log(self.n), size

    def summary(self, context: EvaluationContext, scores: Scores) -> Iterator[Score]:
        for title, (_, given) in self.asked(context).items():
            score = mean("likelihood", title, scores[title, "log_p"], given=len(given))
            yield score
            size = float(scores[title, "size"].nanmedian())
            name = f"effective sample size of {title}"
            yield attrs.evolve(score, name=name, value=size, error=math.nan, detail=True)
            if size < self.low:
                context.note(
                    f"likelihood: warning: {title} rests on {size:.1f} effective of {self.n} "
                    "samples (median over rows), and may be far off; raise n"
                )


def _checked(pair: object, names: Names) -> Query:
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise SpecError(
            f"got {pair!r}; expected a pair (A, B) of lists of modalities, B may be empty",
            "queries",
        )
    of, given = (names_of(side, names) for side in pair)
    for name in of + given:
        if name not in names:
            raise SpecError(f"unknown modality {name!r}; {suggest(str(name), names)}", "queries")
    if not of or set(of) & set(given):
        raise SpecError(
            f"got {pair!r}; expected something to score, and nothing on both sides", "queries"
        )
    return of, given


def _known(schema: Schema, names: Names) -> str:
    """What of rows is given beside the modalities `names`, as the end of a title."""
    known = ["the covariates"] if schema.covariates else []
    exposed = [name for name in schema.exposures if name in names]
    if exposed:
        known.append(f"the exposure of {', '.join(exposed)}")
    return f" given {' and '.join(known)}" if known else ""


def _title(of: Names, given: Names, names: Names) -> str:
    if set(of) == set(names):
        return "log p(all)"
    condition = f" | {', '.join(given)}" if given else ""
    return f"log p({', '.join(of)}{condition})"
