"""Checks of parts that stand outside models: ramps, schedules, optimizers, datasets, transforms,
samplers, metrics.

Axes: b rows, d latent.
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from mvkit.core.noise import permutation, seeded
from mvkit.data.datasets.catalogue import Splits
from mvkit.data.transforms import Transform
from mvkit.errors import SpecError
from mvkit.evaluation.evaluate import evaluate
from mvkit.evaluation.metric import Metric
from mvkit.models.model import Model
from mvkit.models.part_checks import Fault, expect
from mvkit.models.trial_values import made_up_values
from mvkit.testing import model_parts, sampler_checks, tiny_models
from mvkit.testing.model_parts import Checks
from mvkit.training.annealing import Ramp
from mvkit.training.checks import adopt_objectives
from mvkit.training.freezing import trainable
from mvkit.training.stages import Schedule, Stage


def ramp(kind: str, part: Ramp) -> None:
    """Finite factors for any epoch of any length, the same each time."""
    _check_factor(part.last())
    for epochs in (1, 5, 30):
        for epoch in range(1, epochs + 1):
            factor = part.at(epoch, epochs)
            _check_factor(factor)
            expect(
                part.at(epoch, epochs) == factor,
                "returned other factors the second time; expected a function of the epoch",
            )


def _check_factor(factor: object) -> None:
    expect(
        isinstance(factor, int | float) and math.isfinite(factor),
        f"returned {factor!r} as a factor; expected a finite number",
    )


def schedule(kind: str, part: Schedule) -> None:
    """Stages that share out the epochs and name parameters, for one built-in aggregator, or a
    mixture prior.
    """
    for parts in (("poe",), ("joint",), ("poe", "mog")):
        model = tiny_models.model(*parts, private=1)
        try:
            stages = part.stages(model, 10)
        except SpecError as error:
            refusal = error
            continue
        _check_stages(stages, model)
        expect(
            part.stages(model, 10) == stages,
            "returned other stages the second time; expected a function of model and epochs",
        )
        return
    raise Fault(f"goes with no built-in aggregator: {refusal}; expected one at least")


def _check_stages(stages: list[Stage], model: Model) -> None:
    """Stages of ten epochs in all, each of which trains something."""
    expect(
        bool(stages) and all(isinstance(stage, Stage) for stage in stages),
        f"returned {stages!r}; expected a list of Stages, not empty",
    )
    epochs = sum(stage.epochs for stage in stages)
    expect(epochs == 10, f"shared out {epochs} epochs of 10; expected all of them")
    adopt_objectives(stages, model, seed=0)  # as `fit` does, so that there is what they train
    for stage in stages:
        with trainable(model, stage.trainable) as parameters:
            expect(
                bool(parameters),
                f"has a stage that trains {stage.trainable}, nothing; expected parameters",
            )


def optimizer(kind: str, part: Any) -> None:
    """A fresh torch optimizer that goes downhill, and resumes from its saved state."""
    goal = torch.tensor([1.0, -2.0])

    def step(optimizer: torch.optim.Optimizer, x: nn.Parameter) -> None:
        optimizer.zero_grad()
        (x - goal).square().sum().backward()
        optimizer.step()

    x = nn.Parameter(torch.zeros(2))
    first = part.optimizer([x], 1e-2)
    expect(
        isinstance(first, torch.optim.Optimizer),
        f"returned {type(first).__name__}; expected a torch.optim.Optimizer",
    )
    for _ in range(20):
        step(first, x)
    expect(
        (x - goal).norm() < goal.norm(),
        f"is at {x.tolist()} after 20 steps from 0 towards {goal.tolist()}; expected it nearer",
    )
    twin = copy.deepcopy(x)
    resumed = part.optimizer([twin], 1e-2)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))  # which shares its tensors
    step(first, x)
    step(resumed, twin)
    expect(
        torch.equal(x, twin),
        "took another step from its saved state; expected training to resume as it was",
    )


def dataset(kind: str, part: Any) -> None:
    """Splits that a model takes, the same each time."""
    splits = part.load()
    again = part.load()
    if not isinstance(splits, Splits):
        raise Fault(
            f"returned {type(splits).__name__}; expected mvkit.data.datasets.catalogue.Splits"
        )
    modalities = {}
    for name, modality in splits.modalities.items():
        modalities[name] = {"shape": modality.shape, "likelihood": modality.likelihood}
    model = Model(modalities, seed=0)
    for split in ("train", "valid", "test"):
        batch = getattr(splits, split).batch
        model.conform(batch.take(slice(0, 256)))
        second = getattr(again, split).batch
        for name, x in batch.data.items():
            expect(
                torch.equal(torch.nan_to_num(x), torch.nan_to_num(second.data[name])),
                f"returned other rows of {name!r} in {split} the second time; expected the same",
            )
        expect(
            batch.mask is None or torch.equal(batch.mask, second.mask),
            f"masked other places in {split} the second time; expected a function of its seed",
        )


def transform(kind: str, part: Transform) -> None:
    """Fitted to what is observed, then a pure step; its inverse returns values that lead back."""
    step, x = _fitted(part)
    before = x.clone()
    y = step.forward(x)
    shape = tuple(y.shape)
    restored = tuple(step.before(shape[1:]))
    expect(
        y.dtype == x.dtype and restored == tuple(x.shape[1:]),
        f"returned {y.dtype} of shape {shape}, whose `before` is {restored}, for {x.dtype} of "
        f"shape {tuple(x.shape)}; expected the same dtype and shape",
    )
    expect(
        bool(torch.isfinite(y).all()) and torch.equal(x, before),
        "returned values that are not finite, or changed its input; expected neither",
    )
    expect(
        torch.allclose(step.forward(step.inverse(y)), y, rtol=1e-9, atol=1e-9),
        "returned other values for forward(inverse(y)); expected y",
    )
    expect(
        torch.equal(step.forward(x[3:5]), y[3:5]),
        "returned other values for rows alone than in a batch; expected rows to be independent",
    )


def _fitted(part: Transform) -> tuple[Transform, Tensor]:
    """The transform fitted to values with gaps, and such values (b, 3) that it takes."""
    for x in made_up_values((40, 3), torch.float64):
        gaps = x.clone()
        gaps[::7] = torch.nan
        step = part.fit(gaps, (), "x")
        expect(
            step.ready and part.fit(gaps, (), "x") == step,
            f"is {step!r} after `fit`; expected it ready, and the same the second time",
        )
        if not step.out_of_support(x).any():
            return step, x
    raise Fault("takes none of normal, uniform, count and one-hot values; expected one of them")


def sampler(kind: str, part: Any) -> None:
    """Fitted to latents, draws (b, d) that follow the generator, from state that files hold."""
    if sampler_checks.is_conditional(part):
        sampler_checks.conditions(part)
        return
    model = tiny_models.model(private=1).eval()
    d = model.latent_dim
    z = torch.randn(200, d, generator=seeded(0), dtype=torch.float64)
    fitted = part.build(d).double()
    twin = part.build(d).double()
    fitted.fit(z, 0)
    twin.load_state_dict(fitted.state_dict())
    before = torch.get_rng_state()
    draws, again, of_twin = (
        sampler.sample(model, 5, seeded(1)) for sampler in (fitted, fitted, twin)
    )
    expect(
        tuple(draws.shape) == (5, d) and bool(torch.isfinite(draws).all()),
        f"returned {tuple(draws.shape)}, or non-finite numbers; expected finite draws (5, {d})",
    )
    expect(
        torch.equal(draws, again) and torch.equal(before, torch.get_rng_state()),
        "returned other draws for one generator, or used the global one; expected the one given",
    )
    expect(
        torch.equal(draws, of_twin),
        "returned other draws from its saved state; expected what counts in buffers or parameters",
    )


def metric(kind: str, part: Metric) -> None:
    """Scores on incomplete rows, the same for one seed, and whatever the order of the rows."""
    model = tiny_models.model("moe", "mog", private=1).eval()
    rows = attrs.evolve(model_parts.rows(model, b=60), extra={"label": torch.arange(60) % 3})
    permuted = rows.take(permutation(60, seeded(0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of small samples
        report = evaluate(model, rows, [part], seed=0, progress=False)
        again = evaluate(model, permuted, [part], seed=0, progress=False)
    expect(
        bool(report.scores or report.notes),
        "returned no score and no reason; expected scores, or a RequestError that says why not",
    )
    for score, other in itertools.zip_longest(report.scores, again.scores):
        if score is None or other is None or score.name != other.name:
            raise Fault(f"returned {score} and, rows permuted, {other}; expected the same scores")
        value = score.value
        expect(
            math.isnan(value) or math.isclose(value, other.value, rel_tol=1e-6),
            f"returned {value} and, rows permuted, {other.value}; expected one number",
        )


CHECKS: dict[str, Checks] = {
    "sampler": {"contract": sampler},
    "metric": {"contract": metric},
    "transform": {"contract": transform},
    "ramp": {"contract": ramp},
    "schedule": {"contract": schedule},
    "optimizer": {"contract": optimizer},
    "dataset": {"contract": dataset},
}
