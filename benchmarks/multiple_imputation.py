"""Whether intervals pooled over imputed tables hold their share: a slope, missing at random.

Many small data sets (200 rows of x1, x2, y, jointly normal) lose 30 per cent of x2, by x1 and y,
which are observed. Each is completed ten times, by linear models fitted to bootstraps of its rows,
and the slope of x1 in the regression of y on x1 and x2 is pooled by Rubin's rules. Beside it stand
the regressions on the complete data, on the complete cases, and without the bootstraps.

A model for each bootstrap would take days. One model is trained on all of them at once: its
networks have weights of their own for each bootstrap, which a number of the row names. Losses are
sums over rows, so that no bootstrap sees another's gradient, and Adam scales them alike. With
`--alone 20`, twenty data sets are completed by `mvkit.impute(model, data, m=10)` too.

    python benchmarks/multiple_imputation.py --sets 1000 --output benchmarks/multiple_imputation.jsonl
"""

import argparse
import json
import math
import time
import warnings

import numpy as np
import torch
from torch import nn

import mvkit
from mvkit import Batch, Covariate, Modality, Model, Stage

NAMES = ("x1", "x2", "y")
LOADINGS = np.array([0.8, 0.8, 0.75])  # of one factor; variances are 1
ROWS = 200
M = 10
TRUTH = "x1"


def true_slope():
    covariance = np.outer(LOADINGS, LOADINGS)
    np.fill_diagonal(covariance, 1.0)
    return np.linalg.solve(covariance[:2, :2], covariance[:2, 2])[0]


def complete_data(random):
    z = random.normal(size=(ROWS, 1))
    return z * LOADINGS + random.normal(size=(ROWS, 3)) * np.sqrt(1 - LOADINGS**2)


def with_gaps(x, random):
    """Thirty per cent of x2 missing, more where x1 and y are large."""
    logit = -1.1 + 1.0 * x[:, 0] + 1.0 * x[:, 2]
    shown = x.copy()
    shown[random.uniform(size=ROWS) < 1 / (1 + np.exp(-logit)), 1] = np.nan
    return shown


def slope(x):
    """The slope of x1, its variance and the degrees of freedom, by least squares."""
    design = np.column_stack([np.ones(len(x)), x[:, :2]])
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ x[:, 2]
    df = len(x) - 3
    sigma2 = ((x[:, 2] - design @ coefficients) ** 2).sum() / df
    return coefficients[1], sigma2 * inverse[1, 1], df


class Own(nn.Module):
    """A linear layer with weights of its own for each of r groups of rows, which a standardised
    number of the row names.
    """

    def __init__(self, groups, inputs, outputs, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        start = 0.3 * torch.randn(1, inputs, outputs, generator=generator)
        self.weight = nn.Parameter(start.repeat(groups, 1, 1))
        self.bias = nn.Parameter(torch.zeros(groups, outputs))
        self.shape = ()

    def forward(self, x, context):
        r = len(self.bias)
        # numbers 0 ... r - 1, as often each, were standardised
        spread = math.sqrt((r * r - 1) / 12) if r > 1 else 1.0
        group = (context[:, 0] * spread + (r - 1) / 2).round().long().clamp(0, r - 1)
        out = torch.einsum("ni,nio->no", x, self.weight[group]) + self.bias[group]
        return out.reshape(len(x), *self.shape) if self.shape else out


class Decoder(Own):
    """The same, with a standard deviation for each group: location and raw scale of one value."""

    def __init__(self, groups, seed):
        super().__init__(groups, 1, 1, seed)
        self.log_scale = nn.Parameter(torch.full((groups,), -0.3))

    def forward(self, z, context):
        loc = super().forward(z, context)
        r = len(self.bias)
        spread = math.sqrt((r * r - 1) / 12) if r > 1 else 1.0
        group = (context[:, 0] * spread + (r - 1) / 2).round().long().clamp(0, r - 1)
        return torch.stack([loc, self.log_scale[group].reshape(-1, 1)], -1)


def model_of(groups):
    modalities = {}
    for i, name in enumerate(NAMES):
        likelihood = {"name": "normal", "scale": "decoded"}
        networks = {"encoder": Own(groups, 1, 2, 10 + i), "decoder": Decoder(groups, i)}
        modalities[name] = Modality((1,), likelihood, **networks)
    return Model(
        modalities, latent_dim=1, aggregator="poe", covariates={"group": Covariate()}, seed=0
    )


def batch_of(tables):
    """Rows of several tables, numbered by table."""
    x = torch.tensor(np.concatenate(tables), dtype=torch.float32)
    group = torch.arange(len(tables)).repeat_interleave(len(tables[0])).double()
    data = {name: x[:, [i]] for i, name in enumerate(NAMES)}
    return Batch(data, covariates={"group": group})


def trained(tables, steps, lr):
    """A model of each table, trained on all rows at once."""
    model = model_of(len(tables))
    batch = batch_of(tables)
    schedule = {"name": "CosineAnnealingLR", "T_max": steps}
    stages = [Stage("elbo", steps, lr_schedule=schedule)]
    mvkit.fit(model, batch, stages=stages, lr=lr, batch_size=len(batch), seed=0, progress=False)
    return model


def completed(model, tables, seed):
    """Each table with gaps drawn from its model."""
    generator = torch.Generator().manual_seed(seed)
    batch = batch_of(tables)
    drawn = model.translate(batch, "x2", sample=True, generator=generator)["x2"][0, :, 0].numpy()
    filled = []
    for i, table in enumerate(tables):
        new = table.copy()
        own = drawn[i * ROWS : (i + 1) * ROWS]
        new[:, 1] = np.where(np.isnan(table[:, 1]), own, table[:, 1])
        filled.append(new)
    return filled


def interval(tables):
    pooled = mvkit.pool([slope(table) for table in tables]).iloc[0]
    return pooled["estimate"], pooled["low"], pooled["high"], pooled["missing_information"]


def single(x):
    from scipy import stats

    estimate, variance, df = slope(x)
    reach = stats.t.ppf(0.975, df) * math.sqrt(variance)
    return estimate, estimate - reach, estimate + reach, 0.0


def chunk(first, count, steps, lr):
    """Intervals of `count` data sets, by way of imputing."""
    complete, shown, bootstraps = [], [], []
    for number in range(first, first + count):
        random = np.random.default_rng(number)
        x = complete_data(random)
        complete.append(x)
        shown.append(with_gaps(x, random))
        for _ in range(M):
            bootstraps.append(shown[-1][random.integers(0, ROWS, ROWS)])
    repeated = [table for table in shown for _ in range(M)]
    proper = completed(trained(bootstraps, steps, lr), repeated, first)
    once = trained(shown, steps, lr)
    improper = [completed(once, shown, first + 10_000 * (i + 1)) for i in range(M)]
    rows = []
    for i in range(count):
        rows.append(
            {
                "set": first + i,
                "missing": float(np.isnan(shown[i][:, 1]).mean()),
                "complete data": single(complete[i]),
                "complete cases": single(shown[i][~np.isnan(shown[i][:, 1])]),
                "proper": interval(proper[i * M : (i + 1) * M]),
                "improper": interval([tables[i] for tables in improper]),
            }
        )
    return rows


def alone(number, steps, lr):
    """The interval of one data set by the public functions, a model for each bootstrap."""
    random = np.random.default_rng(number)
    shown = with_gaps(complete_data(random), random)
    data = {name: shown[:, [i]] for i, name in enumerate(NAMES)}
    likelihood = {"name": "normal", "scale": "trained"}
    networks = {"encoder": "linear", "decoder": "linear"}
    modalities = {name: Modality((1,), likelihood, **networks) for name in NAMES}
    model = Model(modalities, latent_dim=1, aggregator="poe", seed=0)
    schedule = {"name": "CosineAnnealingLR", "T_max": steps}
    options = {
        "stages": [Stage("elbo", steps, lr_schedule=schedule)],
        "lr": lr,
        "batch_size": ROWS,
    }
    mvkit.fit(model, data, progress=False, **options)
    draws = mvkit.impute(model, data, m=M, fit_options=options, seed=number).draws
    return interval([np.column_stack([draw[name] for name in NAMES]) for draw in draws])


def summary(rows, way):
    truth = true_slope()
    values = np.array([row[way] for row in rows if way in row])
    inside = (values[:, 1] <= truth) & (truth <= values[:, 2])
    share = inside.mean()
    return {
        "way": way,
        "sets": len(values),
        "coverage": share,
        "error": math.sqrt(share * (1 - share) / len(values)),
        "bias": float((values[:, 0] - truth).mean()),
        "width": float((values[:, 2] - values[:, 1]).mean()),
        "missing_information": float(values[:, 3].mean()),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=20)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--alone", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--output")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    begun = time.monotonic()
    for first in range(0, options.sets, options.at_once):
        rows += chunk(first, min(options.at_once, options.sets - first), options.steps, options.lr)
        if options.output:
            with open(options.output, "w") as file:
                file.writelines(f"{json.dumps(row)}\n" for row in rows)
        for way in ("complete data", "complete cases", "proper", "improper"):
            print(summary(rows, way), flush=True)
        if time.monotonic() - begun > options.seconds:
            break
    for number in range(options.alone):
        rows[number]["alone"] = alone(number, options.steps, options.lr)
        print("alone", rows[number]["alone"], "proper", rows[number]["proper"], flush=True)
    if options.alone:
        print(summary(rows, "alone"))


if __name__ == "__main__":
    main()
