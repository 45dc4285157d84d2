"""Log-likelihoods: joint, of any modalities, of some given others; with effective sample sizes.

Axes: n draws, b rows.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from mvkit.core.batch import Batch
from mvkit.errors import SpecError, suggest
from mvkit.evaluation.metric import EvaluationContext, Metric, Score, Scores, finite, mean
from mvkit.models import inference
from mvkit.models.importance_sampling import Sampling
from mvkit.parts.priors import Prior
from mvkit.registry.spec import field, integer, one_of, spec

Query = tuple[tuple[str, ...], tuple[str, ...]]


@spec
class Likelihood(Metric):
    """Log p(x_A|x_B) in nats, by importance sampling: log p(x_A, x_B) - log p(x_B), each a log-mean-exp of n weights.

    Every row is scored on what it has of A and B, which must be something of both. The effective sample size of n
    weights is (Σ w)² / Σ w².

    Args:
        queries: pairs (A, B) of lists of names, B may be empty; None: all together, each alone, each given all others.
        n: importance samples.
        limit: rows at most; None: all.
        low: effective sample size below whose median the report warns.

    Reference: Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016,
    https://arxiv.org/abs/1509.00519.
    """

    queries: tuple[Any, ...] | None = None
    n: int = field(default=200, check=integer(1))
    limit: int | None = field(default=1000, check=one_of(None, other=integer(1)))
    low: int = field(default=10, check=integer())

    def incompatibility(self, study: EvaluationContext) -> str | None:
        """See `Metric.refusal`."""
        self.asked(study.model.names)
        prior = study.model.prior
        if isinstance(prior, Prior) and prior.conditional:
            return "the prior depends on the row, so that there is no likelihood"
        return None

    def rows(self, study: EvaluationContext) -> Batch:
        """See `Metric.rows`."""
        return study.first(self.limit, "likelihood")

    def asked(self, names: tuple[str, ...]) -> dict[str, Query]:
        """Pairs (A, B) by what the report calls them."""
        if self.queries is None:
            pairs: list[Query] = [(names, ())]
            if len(names) > 1:
                pairs += [((name,), ()) for name in names]
                pairs += [((name,), tuple(k for k in names if k != name)) for name in names]
        else:
            pairs = [_checked(pair, names) for pair in self.queries]
        return {_called(of, given, names): (of, given) for of, given in pairs}

    def score(
        self, study: EvaluationContext, block: Batch, generator: torch.Generator
    ) -> dict[Any, Tensor]:
        """See `Metric.score`."""
        queries = self.asked(study.model.names)
        # the evidence of each set once, whatever number of queries need it
        sets = dict.fromkeys(
            itertools.chain(*(((*of, *given), given) for of, given in queries.values()))
        )
        order = {frozenset(names): names for names in sets if names}
        found = {
            key: self._evidence(study, block.hide(names), generator)
            for key, names in order.items()
        }
        scores = {}
        for called, (of, given) in queries.items():
            log_p, size = found[frozenset((*of, *given))]
            scored = block.hide(of).observed.any(1)
            if given:
                scored = scored & block.hide(given).observed.any(1)
                log_b, size_b = found[frozenset(given)]
                log_p, size = log_p - log_b, torch.minimum(size, size_b)
            scores[called, "log_p"] = torch.where(scored, log_p, torch.nan)
            scores[called, "size"] = torch.where(scored, size, torch.nan)
        return scores

    def _evidence(
        self, study: EvaluationContext, rows: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Log p of what rows have, and the effective sample size, (b,) each."""
        sums, squares = [], []
        with inference.evaluation(study.model):
            for w in study.model.weight_blocks(rows, Sampling(self.n, generator=generator)):
                sums.append(torch.logsumexp(finite(w, rows, "an importance weight", 1), 0))
                squares.append(torch.logsumexp(2 * w, 0))
        total = torch.logsumexp(torch.stack(sums), 0)
        size = torch.exp(2 * total - torch.logsumexp(torch.stack(squares), 0))
        return total - math.log(self.n), size

    def summary(self, study: EvaluationContext, scores: Scores) -> list[Score]:
        """See `Metric.summary`."""
        found = []
        for called, (_, given) in self.asked(study.model.names).items():
            found.append(mean("likelihood", called, scores[called, "log_p"], given=len(given)))
            size = scores[called, "size"].nanmedian()
            name = f"effective sample size of {called}"
            found.append(
                Score(
                    "likelihood",
                    name,
                    float(size),
                    rows=found[-1].rows,
                    given=len(given),
                    detail=True,
                )
            )
            if size < self.low:
                study.note(
                    f"likelihood: warning: {called} rests on {float(size):.1f} effective of {self.n} samples (median "
                    "over rows), and may be far off; raise n"
                )
        return found


def _checked(pair: Any, names: tuple[str, ...]) -> Query:
    if not isinstance(pair, tuple) or len(pair) != 2:
        raise SpecError(
            f"got {pair!r}; expected a pair (A, B) of lists of modalities, B may be empty",
            "queries",
        )
    of, given = (inference.names_of(one, names) for one in pair)
    for name in (*of, *given):
        if name not in names:
            raise SpecError(f"unknown modality {name!r}; {suggest(str(name), names)}", "queries")
    if not of or set(of) & set(given):
        raise SpecError(
            f"got {pair!r}; expected something to score, and nothing on both sides", "queries"
        )
    return of, given


def _called(of: tuple[str, ...], given: tuple[str, ...], names: tuple[str, ...]) -> str:
    if set(of) == set(names):
        return "log p(all)"
    return f"log p({', '.join(of)}{' | ' if given else ''}{', '.join(given)})"
