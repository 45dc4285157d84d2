"""What test_ranks.py runs, alone and by torchrun: trains several models and writes what came of
them.

Without noise, every number of processes does the same sums over the same batches.
"""

import os
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from helpers import model, rows

import mvkit
from mvkit import Stage, spec
from mvkit.core import Metrics, all_rows, finish
from mvkit.registry import component, plugins
from mvkit.training.distributed import ProcessGroup
from mvkit.training.events import CheckpointSaved

FROZEN = [
    Stage("elbo", 1, ["aggregator.*", "decoders.*"]),
    Stage("elbo", 1, ["encoders.*"], accumulate=2, ema=0.5),
]
SKIP = {"name": "joint", "incomplete": "skip"}
COUPLED = {
    "name": "sum",
    "terms": ["elbo", {"name": "align", "estimate": "contrast", "temperature": 0.5}, "mmd"],
}
FOOLED = {"name": "sum", "terms": ["elbo", {"name": "adversary", "side": "fool"}]}
TELLING = {"objective": {"name": "adversary", "side": "tell"}, "steps": 2}
AGAINST = [Stage(FOOLED, 1, opponent=TELLING), Stage(FOOLED, 1, accumulate=2, opponent=TELLING)]


@spec
class Spread(mvkit.Objective):
    """The squared distance of a row's code from the mean of all rows' codes.

    A process without rows gathers what has no gradient, as an objective of a user's may.
    """

    kl_weight: float = 1.0
    couples_rows = True

    def forward(self, model, batch, experts):
        codes = model.joint_posterior(batch, experts).mean
        every, _ = all_rows(codes if len(batch) else codes.detach())
        value = (codes - every.mean(0)).square().sum(-1)
        return finish("spread", -self.kl_weight * value, value, None, Metrics(), batch.row_weight)


plugins.declare(component.Component("objective", "spread", f"{__name__}:Spread"))
SPREAD = Stage({"name": "sum", "terms": ["elbo", "spread"]}, 2, ["encoders.*", "aggregator.*"])

REFINED = [
    Stage("elbo", 1),
    Stage({"name": "refine", "refiners": {"a": "energy", "b": "energy"}}, 1, ["refiners.*"]),
]

LEVELS = Stage({"name": "levels", "levels": ["elbo", COUPLED]}, 2)


def two_levels():
    shapes = {"a": (3,), "b": (2, 2), "c": (4,)}
    modalities = {name: {"shape": shape, "private_dim": 2} for name, shape in shapes.items()}
    bottom = mvkit.Model(modalities, latent_dim=0, seed=0)
    top = mvkit.Model(dict.fromkeys(shapes, (2,)), latent_dim=2, seed=0)
    return mvkit.Stack([bottom, top]).double()


def conditional():
    counts = {"shape": (3,), "likelihood": "poisson", "exposure": "total", "input": "log1p"}
    covariates = {"age": mvkit.Covariate(), "site": ("A", "B")}
    return model("poe", "standard", "elbo", first=counts, covariates=covariates)


def placed():
    prior = {"name": "mog", "components": 2, "covariance": "tied"}
    return model("moe", prior, schedule="warmup_then_mixture")


def optimal():
    """A model whose scale each process measures on its share of a batch."""
    return model(first={"shape": (3,), "likelihood": {"name": "normal", "scale": "optimal"}})


def given_rows(n, seed=0):
    batch = rows(n, seed=seed)
    batch.data["a"] = torch.arange(3.0 * n).reshape(n, 3).double() % 5
    given = {"age": torch.arange(n) * 2.0, "site": ["AB"[i % 2] for i in range(n)]}
    batch.extra.update({**given, "row_weight": 1.0 + torch.arange(n) % 3})
    return batch


def explained():
    """A model of what is missing."""
    return model("mopoe", objective="iwae", likelihood="normal", missingness="self")


def masked():
    """A model that predicts all visible cells of a row but one, with a code of columns."""
    table = {"name": "tabular", "width": 6, "blocks": 1, "knots": [[-1, 0, 1], [0, 1], [-2, 2]]}
    first = {"shape": (3,), "encoder": table, "indicator": True}
    hiding = {"name": "masked", "low": 0.6, "high": 1.0, "kl_weight": 0.5}
    return model("mopoe", "mog", hiding, private=1, first=first)


CASES = {
    "unequal last batches, incomplete rows": (model, {"data": rows(9)}),
    "frozen parts": (lambda: model("joint", objective="telbo"), {"data": rows(9), "stages": FROZEN}),
    "rows that do not count": (lambda: model(SKIP), {"data": rows(9), "batch_size": 2}),
    "validation": (lambda: model("mopoe", "mog", "dreg"), {"data": rows(9), "validation": rows(3, seed=1)}),
    "a loader of one's own": (model, {"data": [rows(4), rows(1), rows(2)]}),
    "hidden cells": (masked, {"data": given_rows(9), "validation": given_rows(3, seed=1)}),
    "what is missing": (explained, {"data": rows(9), "validation": rows(3, seed=1)}),
    "coupled rows": (lambda: model(SKIP, "mog", COUPLED), {"data": rows(9), "validation": rows(3, seed=1)}),
    "coupled rows of a stage": (lambda: model("moe"), {"data": rows(9), "stages": [mvkit.Stage(COUPLED, 2, accumulate=2)]}),
    "coupled rows of a level": (two_levels, {"data": rows(9), "stages": LEVELS}),
    "nothing to gather": (lambda: model("gpoe"), {"data": rows(9), "stages": SPREAD}),
    "opponent": (lambda: model("moe"), {"data": rows(9), "stages": AGAINST, "validation": rows(3, seed=1)}),
    "placed": (placed, {"data": rows(9)}),
    "scales of batches": (optimal, {"data": rows(9), "validation": rows(3, seed=1)}),
    "refiners": (lambda: model(private=1), {"data": given_rows(9), "stages": REFINED}),
    "given": (conditional, {"data": given_rows(9), "validation": given_rows(3, seed=1)}),
}  # fmt: skip

RESUMED = ("validation", "coupled rows", "opponent", "refiners", "hidden cells")


def quiet(site, shape, dtype, device):
    return torch.full(shape, 0.5 if site.startswith("choice") else 0.0, dtype=dtype, device=device)


def error_of_a_spoilt_model(folder):
    tiny = model()
    with torch.no_grad():
        next(tiny.decoders.parameters()).fill_(torch.nan)
    try:
        mvkit.fit(tiny, rows(9), epochs=1, checkpoint=folder)
    except mvkit.NonFiniteError as error:
        return error


def train_some(folder, names):
    """A few of the cases alone, and the number of the node that this process is on."""
    torch.set_num_threads(1)
    ranks = ProcessGroup.current()
    out = {"node": os.environ.get("GROUP_RANK")}
    for name in names:
        make, options = CASES[name]
        tiny = make()
        settings = {"batch_size": 4, "epochs": 2, **options}
        with mvkit.testing.noise(quiet):
            history = mvkit.fit(tiny, **settings)
        out[name] = {"history": history.rows, "weights": tiny.state_dict()}
    torch.save(out, folder / f"{ranks.count}-{ranks.rank}.pt")


def main(folder):
    torch.set_num_threads(1)
    ranks = ProcessGroup.current()
    out = {}

    def run(name, keep_copy_at=None, resume_from=None):
        make, options = CASES[name]
        tiny = make()
        saves = 0
        if ranks.rank:
            with torch.no_grad():  # processes may begin with other weights: the first one's count
                next(tiny.parameters()).add_(1.0)
        at = folder / (resume_from or f"{ranks.count}-{name}")

        def listen(event):
            nonlocal saves
            saves += isinstance(event, CheckpointSaved)
            if saves == keep_copy_at and isinstance(event, CheckpointSaved):
                shutil.copytree(at, folder / f"stopped-{name}-{ranks.count}")

        settings = {"batch_size": 4, "epochs": 2, "save_every": 0, **options}
        with mvkit.testing.noise(quiet):
            history = mvkit.fit(tiny, checkpoint=at, listeners=[listen], **settings)
        return {"history": history.rows, "weights": tiny.state_dict()}

    for name in CASES:
        out[name] = run(name, keep_copy_at=4 if name in RESUMED else None)
    for name in RESUMED:  # runs by two processes: taken up by two, or by one
        again = f"again-{name}-{ranks.count}"
        if ranks.first:
            shutil.copytree(folder / f"stopped-{name}-2", folder / again)
        ranks.agreed(None)  # waits for the first
        out[f"again: {name}"] = run(name, resume_from=again)
    torch.save(out, folder / f"{ranks.count}-{ranks.rank}.pt")
    error = error_of_a_spoilt_model(folder / f"spoilt-{ranks.count}")
    (folder / f"error-{ranks.count}-{ranks.rank}.txt").write_text(str(error))


if __name__ == "__main__":
    if sys.argv[2:]:
        train_some(Path(sys.argv[1]), sys.argv[2:])
    else:
        main(Path(sys.argv[1]))
