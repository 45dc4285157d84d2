"""The first lines of the report page: what a run came to, in words.

Axes: b rows, d latent, c clusters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import attrs
import torch

from mvkit.apps.report_tables import number, percent
from mvkit.core.batch import Batch
from mvkit.errors import MvkitError
from mvkit.evaluation.by_feature import sources_of
from mvkit.evaluation.drivers import driver_shares
from mvkit.evaluation.report import Report
from mvkit.models.multimodal import MultimodalModel
from mvkit.plots import coverage_of
from mvkit.training.history import History
from mvkit.training.verdict import ALIVE, deviations_of, latents_of, reconstructed_shares

Mark = Literal["good", "fair", "poor", "none"]
Shares = Mapping[str, Mapping[str, float]]
OFF = 0.05  # of the share that intervals should hold
KNOWN = 0.1  # explained variance below which a modality is hardly known
STAYS = 0.8  # share of the rows that stay in their cluster, from which on clusters hold
ELSEWHERE = ("reconstructions explain", " latents vary", "rows fall into")  # said more fully
NAMED = 12  # latents that are named one by one


@attrs.frozen
class Verdict:
    """An answer to a question about a run.

    Args:
        question: as a user asks it.
        answer: in a few words.
        mark: whether that is good news; `none`: it is neither, or was not looked at.
        sentences: the numbers behind it.
    """

    question: str
    answer: str
    mark: Mark = "none"
    sentences: tuple[str, ...] = ()


@attrs.frozen(eq=False)
class Run:
    """What verdicts look at.

    Args:
        model: the model, of an ensemble its first.
        rows: conformed test rows that observe something.
        history: rows and sentences of the training.
        report: what was measured.
        explained: see `mvkit.evaluation.by_feature.explained`.
    """

    model: MultimodalModel
    rows: Batch
    history: History
    report: Report
    explained: Shares


def verdicts(run: Run) -> list[Verdict]:
    """The answers to the questions that a user asks first."""
    questions: dict[str, Callable[[Run], Verdict]] = {
        "Did it learn?": _learnt,
        "Which latents live?": _latents,
        "Are intervals honest?": _intervals,
        "Do clusters hold?": _clusters,
        "Which modality carries what?": _modalities,
    }
    answers = []
    for question, answer in questions.items():
        try:
            answers.append(answer(run))
        except MvkitError as error:
            answers.append(Verdict(question, "Not looked at", "none", (str(error),)))
    return answers


def _listed(shares: Mapping[str, float]) -> str:
    """Names with their shares, the largest first."""
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {percent(share)}" for name, share in ordered)


def _learnt(run: Run) -> Verdict:
    question = "Did it learn?"
    with torch.no_grad():
        shares = reconstructed_shares(run.model, run.rows, latents_of(run.model, run.rows))
    sentences = _about_training(run.history)
    if shares:
        sentences.append(f"Reconstructions explain of the variance: {_listed(shares)}.")
    for sentence in run.history.verdict:
        if not any(words in sentence for words in ELSEWHERE):
            sentences.append(f"{sentence[:1].upper()}{sentence[1:]}.")
    answer, mark = _learning(shares, run.history.verdict)
    return Verdict(question, answer, mark, tuple(sentences))


def _learning(shares: Mapping[str, float], said: Sequence[str]) -> tuple[str, Mark]:
    """Whether a model learnt, from explained shares and from what was said of its training."""
    if any(sentence.startswith("the model learnt nothing") for sentence in said):
        return "No", "poor"
    if not shares:
        return "Too few rows to tell", "none"
    if max(shares.values()) <= 0:
        return "No: nothing beats the mean", "poor"
    weak = [name for name, share in shares.items() if share < KNOWN]
    if weak:
        return f"In part: hardly anything of {_some(weak)}", "fair"
    if any("still falling" in sentence for sentence in said):
        return "Yes, and it was still learning", "fair"
    return "Yes", "good"


def _some(names: Sequence[str]) -> str:
    """The first names of a list."""
    shown = ", ".join(names[:3])
    return shown if len(names) < 4 else f"{shown} and {len(names) - 3} more"


def _about_training(history: History) -> list[str]:
    """How the bound or the loss went in the last stage."""
    if not history.rows:
        return ["No history of the training was kept."]
    stage = max(row.get("stage") or 0 for row in history.rows)
    rows = [row for row in history.rows if (row.get("stage") or 0) == stage]
    for key in ("valid/bound", "bound", "valid/loss", "loss"):
        values = [row[key] for row in rows if row.get(key) is not None]
        if len(values) > 1:
            plain = key.removeprefix("valid/")
            where = " on validation rows" if plain != key else ""
            best = max(values) if plain == "bound" else min(values)
            went = f"went from {number(values[0])} to {number(best)} at best"
            return [f"The {plain}{where} {went}, in {len(values)} epochs."]
    return []


def _latents(run: Run) -> Verdict:
    question = "Which latents live?"
    model = run.model
    sentences = []
    for score in run.report.scores:
        if score.metric == "latents" and score.name.startswith("active dimensions, private"):
            name = score.name.rpartition(", ")[2]
            p = model.modalities[name].private_dim if name in model.names else 0
            sentences.append(f"Private latents of {name}: {score.value:.0f} of {p} live.")
    if not model.latent_dim:
        return Verdict(question, "There is no shared latent", "none", tuple(sentences))
    deviations = deviations_of(latents_of(model, run.rows)).tolist()
    order = sorted(range(len(deviations)), key=lambda dim: -deviations[dim])
    alive = [dim for dim in order if deviations[dim] >= ALIVE]
    shown = ", ".join(f"z{dim} {deviations[dim]:.2f}" for dim in alive[:NAMED])
    if alive:
        more = f", and {len(alive) - NAMED} more" if len(alive) > NAMED else ""
        sentences.insert(0, f"Deviations of posterior means over rows: {shown}{more}.")
    asleep = [f"z{dim}" for dim in order if dim not in alive]
    if asleep:
        sentences.append(f"The same in all rows: {_some(asleep)}.")
    answer = f"{len(alive)} of {len(deviations)}"
    if not alive:
        return Verdict(question, "None", "poor", tuple(sentences))
    mark: Mark = "good" if 2 * len(alive) >= len(deviations) else "fair"
    return Verdict(question, answer, mark, tuple(sentences))


def _intervals(run: Run) -> Verdict:
    question = "Are intervals honest?"
    shares = coverage_of(run.report)
    if not shares:
        why = next((n for n in run.report.notes if n.startswith("calibration:")), None)
        return Verdict(question, "Not measured", "none", (f"{why}.",) if why else ())
    held = {name: by_level[0.8] for name, by_level in shares.items() if 0.8 in by_level}
    sentences = [f"80 % intervals of what is imputed from the others hold: {_listed(held)}."]
    narrow = [name for name, share in held.items() if share < 0.8 - OFF]
    wide = [name for name, share in held.items() if share > 0.8 + OFF]
    remedy = (
        "Intervals that mvkit.calibrate corrects, impute(…, intervals=calibration), hold what "
        "they promise."
    )
    if narrow:
        mark: Mark = "poor" if min(held.values()) < 0.8 - 4 * OFF else "fair"
        answer = f"Too narrow: {_some(narrow)}"
    elif wide:
        mark, answer = "fair", f"Too wide: {_some(wide)}"
    else:
        return Verdict(question, "Yes", "good", tuple(sentences))
    return Verdict(question, answer, mark, (*sentences, remedy))


def _clusters(run: Run) -> Verdict:
    question = "Do clusters hold?"
    model, rows = run.model, run.rows
    agreed = {score.name: score.value for score in run.report.scores if score.metric == "clusters"}
    sentences = []
    for kind, title in {"mixture": "clusters of the prior", "k-means": "k-means"}.items():
        if f"{kind}, accuracy" in agreed:
            accuracy, index = agreed[f"{kind}, accuracy"], agreed[f"{kind}, ARI"]
            sentences.append(
                f"Against the labels, {title}: {percent(accuracy)} right, ARI {index:.2f}."
            )
    if model.n_clusters < 2:
        return Verdict(question, "The prior has no clusters", "none", tuple(sentences))
    clusters = model.clusters(rows)
    used = len(clusters.unique())
    answer = f"{used} of {model.n_clusters} have rows"
    if used == 1:
        return Verdict(question, "No: all rows are in one", "poor", tuple(sentences))
    sure = model.clusters(rows, soft=True).max(1).values.mean()
    sentences.insert(0, f"A row belongs to its cluster by {percent(float(sure))} on average.")
    stays = staying(model, rows, clusters)
    if not stays:
        return Verdict(question, answer, "none", tuple(sentences))
    lowest = min(stays, key=lambda name: stays[name])
    sentences.insert(1, f"Rows that stay in their cluster without … {_listed(stays)}.")
    if stays[lowest] >= STAYS:
        return Verdict(question, f"Yes: {answer}", "good", tuple(sentences))
    return Verdict(question, f"{answer}; they rest on {lowest}", "fair", tuple(sentences))


def staying(model: MultimodalModel, rows: Batch, clusters: torch.Tensor) -> dict[str, float]:
    """Which share of the rows stay in their cluster if one modality is hidden, by its name."""
    stays = {}
    for i, name in enumerate(model.names):
        others = sources_of(model, name)
        seen = rows.observed[:, i] & (rows.observed.sum(1) > 1)
        if others == (name,) or not bool(seen.any()):
            continue
        kept = seen.nonzero()[:, 0]
        without = model.clusters(rows.take(kept).hide(others))
        stays[name] = float((without == clusters[kept]).double().mean())
    return stays


def _modalities(run: Run) -> Verdict:
    question = "Which modality carries what?"
    model = run.model
    if len(model.names) < 2:
        return Verdict(question, f"There is only {model.names[0]}")
    sentences = []
    answer = ""
    try:
        precision = driver_shares(model, run.rows)[1]
    except MvkitError:
        precision = torch.zeros(0)
    if len(precision):
        shares = dict(zip(model.names, precision.tolist(), strict=True))
        first = max(shares, key=lambda name: shares[name])
        even = shares[first] < 1.5 / len(shares)
        answer = "All weigh alike" if even else f"Mostly {first}"
        sentences.append(f"Precision of the posterior comes from: {_listed(shares)}.")
    for name in model.names:
        alone = {}
        for given, by_name in run.explained.items():
            if given not in (name, "all others") and math.isfinite(by_name[name]):
                alone[given] = by_name[name]
        if alone:
            sentences.append(_best_source(name, alone, run.explained))
    return Verdict(question, answer or "See below", "none", tuple(sentences))


def _best_source(name: str, alone: Mapping[str, float], explained: Shares) -> str:
    """Which other modality says most of one."""
    best = max(alone, key=lambda given: alone[given])
    together = explained.get("all others", {}).get(name, math.nan)
    if max(alone[best], 0.0 if math.isnan(together) else together) < KNOWN:
        return f"Of {name} the others say next to nothing."
    whole = f", all others together {percent(together)}" if math.isfinite(together) else ""
    return f"Of {name}, {best} alone explains {percent(alone[best])}{whole}."
