# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Columns of every kind: counts, ordered answers, positive numbers
#
# A clinic's table has counts of visits, answers on a scale from "none" to "severe", and laboratory
# values that are never negative. A normal likelihood takes them all, and gives back minus two
# visits. Each kind has a likelihood of its own; they go together in one model.

# %%
import numpy as np
import torch
from matplotlib import pyplot as plt

import mvkit
from mvkit import Batch, Modality, Model
from mvkit.parts import LogNormal, NegativeBinomial, Ordinal, Poisson

# %% [markdown]
# ## Made-up patients
# Two things nobody measured, `burden` and `age`, decide everything. How long a patient was watched
# differs: twice the years, twice the visits. That is an **exposure**: it is known, not modelled.

# %%
generator = np.random.default_rng(0)
rows = 1200
hidden = generator.normal(size=(rows, 2))
years = generator.uniform(0.5, 8.0, size=rows)

visits = generator.poisson(years[:, None] * np.exp(hidden @ [[0.6, 0.1], [0.2, 0.5]]))
pain = np.digitize(hidden @ [[1.2, 0.7, 1.0], [0.1, 0.6, -0.4]], [-1.5, -0.3, 0.5, 1.4])
laboratory = np.exp(hidden @ [[0.8, 0.2, 0.5], [0.0, 0.7, 0.4]] + [3.0, -1.0, 0.5])
laboratory *= np.exp(0.2 * generator.normal(size=laboratory.shape))
depth = generator.integers(200, 4000, size=rows)
share = np.exp(hidden @ generator.normal(size=(2, 12)))
share /= share.sum(1, keepdims=True)
cells = generator.poisson(depth[:, None] * share)

data = {
    "visits": torch.tensor(visits).float(),
    "pain": torch.tensor(pain).float(),
    "laboratory": torch.tensor(laboratory).float(),
    "cells": torch.tensor(cells).float(),
}
for x in data.values():  # a third of each kind is missing, but never all of a row
    x[torch.rand(rows, generator=torch.Generator().manual_seed(x.shape[1])) < 0.3] = torch.nan
data["visits"][torch.stack([x.isnan().all(1) for x in data.values()]).all(0)] = 0.0
batch = Batch(data, covariates={"years": years})

# %% [markdown]
# ## A likelihood for each kind
# * `poisson` decodes a log-rate; with `exposure="years"` it is the rate **of a year**.
# * `ordinal` decodes one score; where it falls between trained thresholds says which answer.
# * `lognormal` decodes the middle of the logarithm: no value is ever negative.
# * `negative_binomial` lets counts vary more than Poisson's; with `exposure="total"` what is decoded
#   are shares of a row's own total, so that a deep sample and a shallow one can be compared.
#
# Encoders see logarithms where `input="log1p"` says so: raw counts up to thousands would drown the
# rest.

# %%
modalities = {
    "visits": Modality((2,), Poisson(), exposure="years", input="log1p"),
    "pain": Modality((3,), Ordinal(levels=5)),
    "laboratory": Modality((3,), LogNormal(scale="trained"), input="log1p"),
    "cells": Modality((12,), NegativeBinomial(), exposure="total", input="log1p"),
}
model = Model(modalities, latent_dim=4, seed=0)
history = mvkit.fit(model, batch, epochs=60, seed=0, progress=False)
print(history)

# %% [markdown]
# ## What should be seen
# Everything that is drawn is of its kind: whole numbers, answers from 0 to 4, positive values.

# %%
drawn = model.translate(batch, latent="mean", sample=True, empty="prior")
for name, x in drawn.items():
    whole = bool((x == x.round()).all())
    print(f"{name:12} from {x.min():8.2f} to {x.max():8.2f}, whole numbers: {whole}")

# %% [markdown]
# A missing column is imputed from the others. The correlation with what the patient would have had
# should be well above 0 (.6 to .9 after 60 epochs), since two hidden causes decide all columns.

# %%
truth = {"pain": pain, "laboratory": np.log(laboratory)}
for name, values in truth.items():
    missing = data[name].isnan().all(1).numpy()
    means = model.translate(batch, to=[name], latent="mean", empty="prior")[name][0].numpy()
    means = np.log(means) if name == "laboratory" else means
    correlation = np.corrcoef(means[missing].ravel(), values[missing].ravel())[0, 1]
    print(f"{name}: correlation of imputed and true values {correlation:.2f}")

# %% [markdown]
# ## Rates that can be compared
# `exposure={"visits": 1.0}` asks for the visits **of one year**, whoever was watched for how long:
# the dependence on the years goes away, and what is left is the patient.

# %%
observed = model.translate(batch, to=["visits"], latent="mean")["visits"][0, :, 0]
yearly = model.translate(batch, to=["visits"], latent="mean", exposure={"visits": 1.0})
yearly = yearly["visits"][0, :, 0]
figure, axes = plt.subplots(1, 2, figsize=(7, 3))
for axis, values, title in zip(
    axes, (observed, yearly), ("as observed", "of one year"), strict=True
):
    axis.scatter(years, values.numpy(), s=4)
    axis.set(xlabel="years watched", ylabel="expected visits", title=title)
figure.tight_layout()
figure.savefig("exposure.png")
for title, values in (("as observed", observed), ("of one year", yearly)):
    print(title, f"correlation with years {np.corrcoef(years, values.numpy())[0, 1]:.2f}")

# %% [markdown]
# ## What a normal likelihood would say
# The same counts as numbers: draws are fractions, and many are below zero. The likelihoods of two
# models of different kinds are not comparable either: a density is no probability.

# %%
plain = {"visits": Modality((2,), {"name": "normal", "scale": "trained"}, input="log1p")}
normal = Model(plain, latent_dim=2, seed=0)
mvkit.fit(normal, {"visits": data["visits"].nan_to_num(0.0)}, epochs=20, seed=0, progress=False)
drawn = normal.translate({"visits": data["visits"].nan_to_num(0.0)}, sample=True)["visits"]
print(
    f"below zero: {(drawn < 0).float().mean():.0%}; whole: {(drawn == drawn.round()).float().mean():.0%}"
)
