"""Differential expression between groups of cells, as scvi-tools defines it.

Axes: p pairs of cells, b rows, f features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import attrs
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvkit.core import noise
from mvkit.errors import DataError, check_number, check_option, check_whole_number
from mvkit.models.multimodal import MultimodalModel
from mvkit_omics.asking import (
    ROWS,
    Asked,
    Covariates,
    Data,
    DataLike,
    Given,
    asked,
    block_of,
    feature_names,
    rows_of,
)
from mvkit_omics.groups import REST, Groups, groups_of

Mode = Literal["change", "vanilla"]
EFFECTS = 2**29  # bytes of the effects of all pairs that are held at a time
TINY = 1e-8  # beside probabilities in Bayes factors, which are finite at 0 and 1 so
SMALLEST = 1e-10  # pseudo-count where every feature was counted in both groups
ARTEFACT = 0.9  # quantile of what is decoded for features that were never counted


def differential_expression(
    model: MultimodalModel,
    data: DataLike,
    first: object = None,
    second: object = REST,
    *,
    by: object = None,
    modality: str | None = None,
    given: Given = None,
    mode: Mode = "change",
    delta: float = 0.25,
    pseudocount: float | None = None,
    fdr: float = 0.05,
    covariates: Covariates = None,
    background: bool = False,
    pairs: int = 5000,
    seed: int = 0,
) -> pd.DataFrame:
    """Features that differ between two groups of cells, the surest first; a table by feature.

    Pairs of cells are drawn, one from each group, with a draw z ~ q(z|x_given) of each, and
    decoded at exposure 1: ρ_A and ρ_B, averaged over the covariates that are stated. Mode `change`
    has LFC = log2(ρ_A + ε) - log2(ρ_B + ε) and p = P(|LFC| ≥ δ); `vanilla` p = P(ρ_A > ρ_B). The
    Bayes factor is log p - log(1 - p), with 1e-8 beside each. Of the features by falling p, the
    largest set whose mean of 1 - p is at most `fdr` is flagged: its expected share of false
    findings. δ is a number; scvi-tools' rule that fits a mixture of normal laws to LFCs is not
    used, nor are importance weights.

    Args:
        model: trained.
        data: cells: a dataset, a batch or a mapping of arrays.
        first: the group A: a value of `by`, or a list of them; without `by`, cells as `Batch.take`
            picks them. None: each value of `by` in turn.
        second: the group B, likewise; by default all other cells.
        by: what groups are by: a name in the data's extra, such as "label", or values (b,).
        modality: what is compared, with means of at least 0; None: the model's only one.
        given: modalities to look at; None: all that each cell has.
        mode: `change` or `vanilla`.
        delta: δ, the smallest change that counts.
        pseudocount: ε; None: the 0.9 quantile of the largest ρ of the features that were counted
            in no cell of a group, the larger of the two groups', and 1e-10 at least.
        fdr: the expected share of false findings.
        covariates: cells are decoded as of these, and the average is compared, {"batch": "all"};
            None: the cells' own.
        background: whether means hold the background of `foreground_background`.
        pairs: how many are drawn.
        seed: of all draws.

    Returns:
        `change`: proba_de, bayes_factor, lfc_mean, lfc_median, lfc_std, is_de_fdr_<fdr>;
        `vanilla`: proba_m1, proba_m2, bayes_factor. Both: scale1, scale2 (means of ρ), raw_mean1,
        raw_mean2 (means of the data), comparison, group1, group2.

    Raises:
        RequestError: no such group, an empty one, or options that cannot be.
        DataError: means below 0.

    Reference: Boyeau et al., Deep Generative Models for Detecting Differential Expression in
    Single Cells, 2019, https://doi.org/10.1101/794289; Lopez et al., 2018,
    https://doi.org/10.1038/s41592-018-0229-2 (`vanilla`).
    """
    where = "differential_expression"
    check_option(f"{where}: mode", mode, "change", "vanilla")
    pairs = check_whole_number(f"{where}: pairs", pairs, 2)
    options: dict[str, Any] = {"given": given, "background": background, "seed": seed}
    question = asked(where, model, modality, covariates, **options)
    epsilon = None
    if pseudocount is not None:
        epsilon = check_number(f"{where}: pseudocount", pseudocount)
    comparison = Comparison(question, pairs, mode, check_number(f"{where}: delta", delta), epsilon)
    share = check_number(f"{where}: fdr", fdr)
    rows = rows_of(data)
    tables = []
    for groups in groups_of(rows, by, first, second, where):
        table = comparison.table(rows, groups)
        if mode == "change":
            table[f"is_de_fdr_{share:g}"] = expected_findings(table["proba_de"], share)
        table["comparison"] = f"{groups.titles[0]} vs {groups.titles[1]}"
        table["group1"], table["group2"] = groups.titles
        key = "proba_de" if mode == "change" else "bayes_factor"
        tables.append(table.sort_values(key, ascending=False, kind="stable"))
    return pd.concat(tables)


def expected_findings(probability: object, fdr: float) -> NDArray[np.bool_]:
    """The largest set of features whose expected share of false findings is at most a target.

    Args:
        probability: that a feature differs, (f,).
        fdr: the largest mean of 1 - p of the set.

    Returns:
        Flags (f,).

    Example:
        >>> expected_findings([0.5, 1.0, 0.95], 0.05).tolist()
        [False, True, True]
    """
    p = np.asarray(probability, dtype=np.float64)
    order = np.argsort(-p, kind="stable")
    doubt = np.cumsum(1 - p[order]) / np.arange(1, len(p) + 1)
    flags = np.zeros(len(p), dtype=bool)
    flags[order[: int((doubt <= fdr).sum())]] = True  # means of rising doubts rise
    return flags


@attrs.frozen(eq=False)
class Comparison:
    """How two groups of cells are compared.

    Args:
        question: what is decoded of a cell.
        pairs: of cells, drawn at random.
        mode: `change` or `vanilla`.
        delta: the smallest change that counts.
        epsilon: pseudo-count; None: by what is decoded for features that were never counted.
    """

    question: Asked
    pairs: int
    mode: Mode
    delta: float
    epsilon: float | None

    def table(self, rows: Data, groups: Groups) -> pd.DataFrame:
        """Statistics of each feature, in the features' own order.

        Features are taken so many at a time that the effects of all pairs fit in memory; each
        time the same cells and latents are drawn.
        """
        question = self.question
        raw = [raw_moments(question, rows, cells) for cells in groups.cells]
        epsilon = SMALLEST if self.epsilon is None else self.epsilon
        never = [moments.never for moments in raw]
        if self.mode == "change" and self.epsilon is None and (never[0] | never[1]).any():
            epsilon = self._artefacts(rows, groups, never)
        size = max(1, EFFECTS // (question.model.like.element_size() * self.pairs))
        pieces = []
        for start in range(0, question.features, size):
            part = slice(start, start + size)
            pieces.append(self._statistics(rows, groups, part, epsilon))
        table = pd.concat(pieces, ignore_index=True)
        table.index = feature_names(question.model, question.modality)
        for i, moments in enumerate(raw):
            table[f"raw_mean{i + 1}"] = moments.mean.numpy()
        return table

    def _decoded(self, rows: Data, groups: Groups) -> Iterator[tuple[slice, list[Tensor]]]:
        """Which pairs, and means (p, f) of the cells of each group, block by block."""
        like = torch.zeros((), dtype=torch.float64)
        generator = noise.seeded(noise.seed_of_name(self.question.seed, "pairs"))
        picks = []
        for cells in groups.cells:
            uniform = noise.draw("choice/pairs", (self.pairs,), like, generator=generator)
            picks.append(cells[(uniform * len(cells)).long().clamp(max=len(cells) - 1)])
        size = self.question.block_rows(1)
        for number, start in enumerate(range(0, self.pairs, size)):
            part = slice(start, start + size)
            means = []
            for group, pick in enumerate(picks):
                seed = noise.seed_of(number, group)
                block = block_of(rows, pick[part])
                values = self.question.means(block, seed)[0].cpu()
                means.append(check_scales(values, self.question.modality))
            yield part, means

    def _artefacts(self, rows: Data, groups: Groups, never: list[Tensor]) -> float:
        """The pseudo-count below which changes of features that were never counted vanish."""
        largest = [torch.zeros(self.question.features).double() for _ in range(2)]
        for _, means in self._decoded(rows, groups):
            for group, values in enumerate(means):
                largest[group] = torch.maximum(largest[group], values.amax(0))
        levels = [SMALLEST]
        for values, flags in zip(largest, never, strict=True):
            if flags.any():
                levels.append(float(torch.quantile(values[flags], ARTEFACT)))
        return max(levels)

    def _statistics(self, rows: Data, groups: Groups, part: slice, epsilon: float) -> pd.DataFrame:
        """Statistics of some features."""
        width = len(range(self.question.features)[part])
        dtype = self.question.model.like.dtype
        effects = torch.empty(self.pairs, width, dtype=dtype)
        scales = torch.zeros(2, width).double()
        larger = torch.zeros(width).double()
        for pairs, (a, b) in self._decoded(rows, groups):
            a, b = a[:, part], b[:, part]
            scales += torch.stack([a.sum(0), b.sum(0)])
            larger += (a > b).sum(0)
            if self.mode == "change":
                effects[pairs] = (torch.log2(a + epsilon) - torch.log2(b + epsilon)).to(dtype)
        scales = scales / self.pairs
        columns = {}
        if self.mode == "change":
            columns = change_columns(effects, self.delta)
        else:
            p = larger / self.pairs
            columns = {"proba_m1": p, "proba_m2": 1 - p, "bayes_factor": bayes_factor(p)}
        columns |= {"scale1": scales[0], "scale2": scales[1]}
        return pd.DataFrame({name: values.numpy() for name, values in columns.items()})


def change_columns(effects: Tensor, delta: float) -> dict[str, Tensor]:
    """What the log-fold changes of pairs (p, f) say of each feature, {name: (f,)}."""
    p = (effects.abs() >= delta).double().mean(0)
    lower = effects.kthvalue((len(effects) + 1) // 2, 0).values.double()
    upper = effects.kthvalue(len(effects) // 2 + 1, 0).values.double()
    deviation, mean = torch.std_mean(effects.double(), 0, correction=0)
    return {
        "proba_de": p,
        "bayes_factor": bayes_factor(p),
        "lfc_mean": mean,
        "lfc_median": (lower + upper) / 2,
        "lfc_std": deviation,
    }


def bayes_factor(p: Tensor) -> Tensor:
    """Log p - log(1 - p), finite at 0 and 1."""
    return torch.log(p + TINY) - torch.log(1 - p + TINY)


def check_scales(values: Tensor, modality: str) -> Tensor:
    """The values, if they are means of counts.

    Raises:
        DataError: some are below 0, or not finite.
    """
    if not bool((values >= 0).all() & torch.isfinite(values).all()):
        raise DataError(
            f"differential_expression: {modality!r} has means below 0, or none that are finite; "
            "expected means of counts, at least 0; choose a modality with a likelihood of counts"
        )
    return values


@attrs.frozen(eq=False)
class Moments:
    """Means of the data of a group, (f,), NaN where it has none; and which features were measured
    and never counted, (f,) bool.
    """

    mean: Tensor
    never: Tensor


def raw_moments(question: Asked, rows: Data, cells: Tensor) -> Moments:
    """Moments of the measured values of some cells."""
    model, name = question.model, question.modality
    total = torch.zeros(question.features).double()
    number = torch.zeros(question.features).double()
    largest = torch.zeros(question.features).double()
    for index in cells.split(ROWS):
        block = model.conform(block_of(rows, index))
        x = model.modalities[name].restore(block.data[name]).double().flatten(1).cpu()
        present = block.present(name).flatten(1).cpu()
        x = torch.where(present, x, 0.0)
        total += x.sum(0)
        number += present.sum(0)
        largest = torch.maximum(largest, x.amax(0))
    mean = torch.where(number > 0, total / number, torch.nan)
    return Moments(mean, (number > 0) & (largest == 0))
