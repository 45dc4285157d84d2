# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Compose your own model
#
# A model is an aggregator, a prior, an objective, a family, and a likelihood and networks a
# modality. Any part goes with any other; what cannot work is refused when the model is made, with
# the reason. Here: two models that no paper has, trained on half-missing rows, and what they
# impute.

# %%
import torch
from matplotlib import pyplot as plt

import mvkit
from mvkit import Modality, Model

data = mvkit.load_dataset("polydigits", missing=0.5)
for kind in ("aggregator", "prior", "objective", "family", "likelihood", "network"):
    print(f"{kind:<11}", ", ".join(mvkit.available(kind)))

# %% [markdown]
# ## Modalities
# A shape is enough; a `Modality` says more. Here convolutions, a robust likelihood for one
# modality, and private latents for what the modalities do not share: the backgrounds.

# %%
pictures = {
    name: Modality(
        (1, 8, 8), {"name": "normal", "scale": 0.25}, encoder="conv", decoder="conv", private_dim=4
    )
    for name in data.modalities
}
pictures["m4"] = Modality((1, 8, 8), {"name": "student_t", "scale": 0.2}, private_dim=4)

# %% [markdown]
# ## Two models
# A learned weighted product under a VampPrior, importance-weighted; and a barycentre under a
# mixture prior. A part is a name, or a dict with its options.

# %%
models = {
    "gpoe + vamp + iwae": Model(
        pictures, latent_dim=16, aggregator="gpoe", prior="vamp", objective="iwae", seed=0
    ),
    "wasserstein + mog + elbo": Model(
        pictures,
        latent_dim=16,
        aggregator="wasserstein",
        prior={"name": "mog", "components": 20, "learn_scale": True},
        objective={"name": "elbo", "kl_weight": 0.5},
        seed=0,
    ),
}
for name, model in models.items():
    mvkit.fit(model, data.train, validation=data.valid, epochs=10, seed=0)
    print(f"{name:<26}", model.log_likelihood(data.test.batch.take(slice(0, 50)), n=200).mean())

# %% [markdown]
# ## A part that does not fit says why

# %%
try:
    Model(pictures, aggregator="poe", family="laplace_softmax")
except mvkit.SpecError as error:
    print(error)

# %% [markdown]
# ## What they impute
# Given the first picture of each row, the others; the private latents of what was not given come
# from their prior.

# %%
rows = data.test.batch.take(slice(0, 6))
figure, axes = plt.subplots(6, 1 + 4 * len(models), figsize=(9, 6), layout="constrained")
for axis in axes.flat:
    axis.axis("off")
for i, (name, model) in enumerate(models.items()):
    imputed = model.translate(
        rows, given=["m0"], latent="mean", generator=torch.Generator().manual_seed(0)
    )
    axes[0, 2 + 4 * i].set_title(name, fontsize=8)
    for row in range(6):
        axes[row, 0].imshow(rows.data["m0"][row, 0].numpy(), cmap="gray", vmin=0, vmax=1)
        for k in range(1, 5):
            axes[row, 4 * i + k].imshow(
                imputed[f"m{k}"][0, row, 0].numpy(), cmap="gray", vmin=0, vmax=1
            )
axes[0, 0].set_title("given", fontsize=8)
figure.savefig("compose.png")
