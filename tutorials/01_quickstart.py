# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Quickstart
#
# Build a model from parts, train it on pictures of which a third are missing, impute them, look,
# save and load. Run it with `python tutorials/01_quickstart.py`, or open it as a notebook with
# jupytext.

# %%
import torch
from matplotlib import pyplot as plt

import mvkit

# %% [markdown]
# ## Data
# `polydigits`: five modalities, each a picture of another handwritten digit of the row's class
# over its own kind of background. Nothing is downloaded. With `missing=0.3` each picture of the
# training rows is missing with that chance.

# %%
data = mvkit.load_dataset("polydigits", missing=0.3)
print(len(data.train), "rows;", data.train.batch.mask[:3])

# %% [markdown]
# ## Model
# Every part has a name, and any part goes with any other. `mvkit.available("aggregator")` lists
# what there is.

# %%
model = mvkit.Model(
    data.modalities, latent_dim=16, aggregator="mopoe", prior="mog", objective="dreg", seed=0
)
print(model)

# %% [markdown]
# ## Training
# `fit` keeps the weights of the best epoch on the validation rows.

# %%
history = mvkit.fit(model, data.train, validation=data.valid, epochs=20, seed=0)
figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
axis.plot(history["bound"], label="training")
axis.plot(history["valid/bound"], label="validation")
axis.set(xlabel="epoch", ylabel="bound, nats")
axis.legend()
figure.savefig("history.png")

# %% [markdown]
# ## Imputing
# What a row lacks is generated from what it has. `given` says what to look at; `n` draws show how
# sure the model is.

# %%
rows = data.test.batch.take(slice(0, 6))
imputed = model.translate(
    rows, given=["m0", "m1"], n=3, generator=torch.Generator().manual_seed(0)
)
figure, axes = plt.subplots(6, 8, figsize=(8, 6), layout="constrained")
for row in range(6):
    pictures = [
        rows.data["m0"][row],
        rows.data["m1"][row],
        *(imputed[m][s, row] for m in ("m2", "m4") for s in range(3)),
    ]
    for axis, picture in zip(axes[row], pictures, strict=True):
        axis.imshow(picture[0].numpy(), cmap="gray", vmin=0, vmax=1)
        axis.axis("off")
axes[0, 0].set_title("given")
axes[0, 3].set_title("m2, three draws")
axes[0, 6].set_title("m4, three draws")
figure.savefig("imputed.png")

# %% [markdown]
# ## Likelihood and clusters
# `log_likelihood` takes any set of modalities given any other. `clusters` needs a mixture prior.

# %%
part = data.test.batch.take(slice(0, 100))
print("log p(x):        ", model.log_likelihood(part, n=200).mean())
print("log p(m0 | m1):  ", model.log_likelihood(part, ["m0"], ["m1"], n=200).mean())
print("clusters:        ", model.clusters(part)[:10], "labels:", part.extra["label"][:10])

# %% [markdown]
# ## Saving and loading
# One safetensors file with a readable header; no pickle.

# %%
mvkit.save(model, "model.safetensors")
again = mvkit.load("model.safetensors")
print("the same:", torch.equal(model.encode(part), again.encode(part)))
