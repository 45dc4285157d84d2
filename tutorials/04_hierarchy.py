# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Hierarchy: Nexus
#
# Below, a VAE for each modality with a latent z_m; above, a model of the z_m, whose encoders send
# messages that are averaged. In training some messages are dropped, so that the top learns to do
# with few. The z_m are noise at first: so that the top does not give up before they say anything,
# its KL is cheap (`top_beta=0.2`) and rises over the first five epochs (`warmup=5`). Generation
# across modalities goes up through one and down through another.

# %%
import torch
from matplotlib import pyplot as plt

import mvkit
from mvkit import recipes

data = mvkit.load_dataset("polydigits", missing=0.3)
model = recipes.nexus(data.modalities, latent_dim=16, seed=0)
print(model)

# %% [markdown]
# A `Stack` answers to the same methods as a `Model`, and its objective has a term a level: ramps
# reach each of them. Here that of the top alone rises.

# %%
ramp = {"levels.1.kl_weight": {"name": "linear", "epochs": 5}}
history = mvkit.fit(
    model,
    data.train,
    validation=data.valid,
    stages=[mvkit.Stage(None, epochs=20, ramps=ramp)],
    seed=0,
)
figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
for level in (0, 1):
    axis.plot(history[f"valid/levels.{level}/loss"], label=f"level {level}")
axis.set(xlabel="epoch", ylabel="validation loss, nats")
axis.legend()
figure.savefig("levels.png")

# %% [markdown]
# ## Up and down
# What was given is reconstructed from its own latent; the rest comes from the top.

# %%
rows = data.test.batch.take(slice(0, 6))
made = model.translate(rows, given=["m1"], latent="mean")
figure, axes = plt.subplots(6, 6, figsize=(6, 6), layout="constrained")
for row in range(6):
    for axis, picture in zip(
        axes[row], [rows.data["m1"][row], *(made[m][0, row] for m in model.names)], strict=True
    ):
        axis.imshow(picture[0].numpy(), cmap="gray", vmin=0, vmax=1)
        axis.axis("off")
for axis, title in zip(axes[0], ["given m1", *model.names], strict=True):
    axis.set_title(title, fontsize=8)
figure.savefig("nexus.png")

# %% [markdown]
# ## The likelihood of both levels
# Importance sampled through both: draws of every z_m, then of the top's latent.

# %%
part = data.test.batch.take(slice(0, 50))
print(
    "log p(x), nats:",
    model.log_likelihood(part, n=200, generator=torch.Generator().manual_seed(0)).mean(),
)
