"""Checks of parts that stand outside models: ramps, schedules, optimizers, datasets, transforms,
samplers, metrics.
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from typing import Any

import attrs
import torch
from torch import nn

from mvkit.data.datasets.catalogue import Splits
from mvkit.errors import SpecError
from mvkit.evaluation.evaluate import evaluate
from mvkit.models.model import Model
from mvkit.models.part_checks import Fault
from mvkit.testing import model_parts
from mvkit.training.stages import Stage, trainable


def ramp(kind: str, part: Any) -> None:
    """Finite factors for any epoch of any length, the same each time."""
    factors = [[part.at(epoch, epochs) for epoch in range(1, epochs + 1)] for epochs in (1, 5, 30)]
    again = [[part.at(epoch, epochs) for epoch in range(1, epochs + 1)] for epochs in (1, 5, 30)]
    for value in [*(one for row in factors for one in row), part.last()]:
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise Fault("contract", f"gave {value!r} as a factor; expected a finite number")
    if factors != again:
        raise Fault(
            "contract", "gave other factors the second time; expected a function of the epoch"
        )


def schedule(kind: str, part: Any) -> None:
    """Stages that share out the epochs and name parameters, for one built-in aggregator at least."""
    refusal: SpecError | None = None
    for aggregator in ("poe", "joint"):
        made = model_parts.model("aggregator", aggregator, {})
        try:
            stages = part.stages(made, 10)
        except SpecError as error:
            refusal = error
            continue
        if not stages or not all(isinstance(stage, Stage) for stage in stages):
            raise Fault("contract", f"gave {stages!r}; expected a list of Stages, not empty")
        epochs = sum(stage.epochs for stage in stages)
        if epochs != 10:
            raise Fault("contract", f"shared out {epochs} epochs of 10; expected all of them")
        for stage in stages:
            with trainable(made, stage.trainable) as parameters:
                if not parameters:
                    raise Fault(
                        "contract",
                        f"has a stage that trains {stage.trainable}, nothing; expected parameters",
                    )
        if part.stages(made, 10) != stages:
            raise Fault(
                "contract",
                "gave other stages the second time; expected a function of model and epochs",
            )
        return
    raise Fault("contract", f"goes with no built-in aggregator: {refusal}; expected one at least")


def optimizer(kind: str, part: Any) -> None:
    """A fresh torch optimizer that goes downhill, and goes on alike from its saved state."""
    goal = torch.tensor([1.0, -2.0])

    def step(made: torch.optim.Optimizer, x: nn.Parameter) -> None:
        made.zero_grad()
        (x - goal).square().sum().backward()
        made.step()

    x = nn.Parameter(torch.zeros(2))
    made = part.optimizer([x], 1e-2)
    if not isinstance(made, torch.optim.Optimizer):
        raise Fault("contract", f"gave {type(made).__name__}; expected a torch.optim.Optimizer")
    for _ in range(20):
        step(made, x)
    if not bool((x - goal).square().sum() < goal.square().sum()):
        raise Fault(
            "contract",
            f"is at {x.tolist()} after 20 steps from 0 towards {goal.tolist()}; expected it nearer",
        )
    twin = nn.Parameter(x.detach().clone())
    resumed = part.optimizer([twin], 1e-2)
    resumed.load_state_dict(copy.deepcopy(made.state_dict()))  # which shares its tensors
    step(made, x)
    step(resumed, twin)
    if not torch.equal(x, twin):
        raise Fault(
            "contract", "took another step from its saved state; expected training to go on alike"
        )


def dataset(kind: str, part: Any) -> None:
    """Splits that a model takes, the same each time."""
    one, two = part.load(), part.load()
    if not isinstance(one, Splits):
        raise Fault(
            "contract", f"gave {type(one).__name__}; expected mvkit.data.datasets.catalogue.Splits"
        )
    model = Model(
        {n: {"shape": m.shape, "likelihood": m.likelihood} for n, m in one.modalities.items()},
        seed=0,
    )
    for split in ("train", "valid", "test"):
        rows, again = (getattr(splits, split).batch for splits in (one, two))
        model.conform(rows.take(slice(0, 256)))
        for name, x in rows.data.items():
            if not torch.equal(torch.nan_to_num(x), torch.nan_to_num(again.data[name])):
                raise Fault(
                    "contract",
                    f"gave other rows of {name!r} in {split} the second time; expected the same",
                )
        masks = [batch.mask for batch in (rows, again) if batch.mask is not None]
        if len(masks) == 2 and not torch.equal(*masks):
            raise Fault(
                "contract",
                f"masked other places in {split} the second time; expected a function of its seed",
            )


def transform(kind: str, part: Any) -> None:
    """Fitted by what is observed, then a pure step whose inverse takes its results back to values that give them."""
    generator = torch.Generator().manual_seed(0)
    normal, uniform = (
        make(40, 3, generator=generator, dtype=torch.float64) for make in (torch.randn, torch.rand)
    )
    counts = torch.randint(5, (40, 3), generator=generator).double()
    for x in (normal, uniform, counts):
        gaps = x.clone()
        gaps[::7] = torch.nan
        made = part.fit(gaps, (), "x")
        if not made.ready or part.fit(gaps, (), "x") != made:
            raise Fault(
                "contract",
                f"is {made!r} after `fit`; expected it ready, and the same the second time",
            )
        if not bool(made.out_of_support(x).any()):
            break
    else:
        raise Fault(
            "contract", "takes none of normal, uniform and count values; expected one of them"
        )
    before = x.clone()
    y = made.forward(x)
    if y.dtype != x.dtype or tuple(made.before(tuple(y.shape[1:]))) != tuple(x.shape[1:]):
        given = f"{y.dtype} of shape {tuple(y.shape)}, whose `before` is {made.before(tuple(y.shape[1:]))}"
        raise Fault(
            "contract",
            f"gave {given} for {x.dtype} of shape {tuple(x.shape)}; expected the same dtype and shape",
        )
    if not bool(torch.isfinite(y).all()) or not torch.equal(x, before):
        raise Fault(
            "contract", "gave values that are not finite, or changed its input; expected neither"
        )
    if not torch.allclose(made.forward(made.inverse(y)), y, rtol=1e-9, atol=1e-9):
        raise Fault("contract", "gives other values for forward(inverse(y)); expected y")
    if not torch.equal(made.forward(x[3:5]), y[3:5]):
        raise Fault(
            "contract",
            "gave rows other values alone than in a batch; expected rows to be independent",
        )


def sampler(kind: str, part: Any) -> None:
    """Fitted to latents, draws (n, d) that follow the generator, from state that files hold."""
    model = model_parts.model("aggregator", "poe", {}).eval()
    z = torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made, twin = (part.build(2).double() for _ in range(2))
    made.fit(z, 0)
    twin.load_state_dict(made.state_dict())
    before = torch.get_rng_state()
    one, two, again = (
        each.sample(model, 5, torch.Generator().manual_seed(1)) for each in (made, made, twin)
    )
    if tuple(one.shape) != (5, 2) or not bool(torch.isfinite(one).all()):
        raise Fault(
            "contract", f"gave {tuple(one.shape)}, or no numbers; expected finite draws (5, 2)"
        )
    if not torch.equal(one, two) or not torch.equal(before, torch.get_rng_state()):
        raise Fault(
            "contract",
            "gave other draws for one generator, or used the global one; expected the one given",
        )
    if not torch.equal(one, again):
        raise Fault(
            "contract",
            "gave other draws from its saved state; expected what counts in buffers or parameters",
        )


def metric(kind: str, part: Any) -> None:
    """Scores of a model on incomplete rows, the same for one seed, and whatever the order of the rows."""
    model = model_parts.model("aggregator", "moe", {"prior": "mog"}).eval()
    rows = model_parts.rows(model, 60)
    rows = attrs.evolve(rows, extra={"label": torch.arange(60) % 3})
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of small samples
        one, two = (
            evaluate(model, each, [part], seed=0, progress=False)
            for each in (rows, rows.take(order))
        )
    if not one.scores and not one.notes:
        raise Fault(
            "contract",
            "gave no score and no reason; expected scores, or a RequestError that says why not",
        )
    for first, second in itertools.zip_longest(one.scores, two.scores):
        if first is None or second is None or first.name != second.name:
            raise Fault(
                "contract", f"gave {first} and, rows permuted, {second}; expected the same scores"
            )
        if not math.isclose(first.value, second.value, rel_tol=1e-6) and not math.isnan(
            first.value
        ):
            raise Fault(
                "contract",
                f"gave {first.value} and, rows permuted, {second.value}; expected one number",
            )


CHECKS = {
    "sampler": {"contract": sampler},
    "metric": {"contract": metric},
    "transform": {"contract": transform},
    "ramp": {"contract": ramp},
    "schedule": {"contract": schedule},
    "optimizer": {"contract": optimizer},
    "dataset": {"contract": dataset},
}
