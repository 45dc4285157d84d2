# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Training in stages: TELBO and JMVAE
#
# A joint encoder sees everything; unimodal encoders stand in for it where modalities are missing.
# JMVAE trains both at once, and so does TELBO by default; with `stages=2` TELBO trains the joint
# encoder and the decoders first, the unimodal encoders afterwards.

# %%
from matplotlib import pyplot as plt

import mvkit
from mvkit import ELBO, Stage, recipes

data = mvkit.load_dataset("polydigits", missing=0.3)

# %% [markdown]
# ## Two recipes
# A recipe is a filled-in `Model`; its schedule is a list of stages, which is data.

# %%
telbo = recipes.telbo(data.modalities, latent_dim=16, stages=2, seed=0)
jmvae = recipes.jmvae(data.modalities, latent_dim=16, warmup=5, seed=0)
for stage in telbo.spec.schedule.stages(telbo, 20):
    print(stage)

# %%
histories = {
    "TELBO": mvkit.fit(telbo, data.train, validation=data.valid, epochs=20, seed=0),
    "JMVAE": mvkit.fit(jmvae, data.train, validation=data.valid, epochs=20, seed=0),
}
figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
for axis, (name, history) in zip(axes, histories.items(), strict=True):
    axis.plot(history["valid/bound"])
    axis.set(title=name, xlabel="epoch", ylabel="validation bound, nats")
figure.savefig("stages.png")

# %% [markdown]
# Losses of different stages are of different objectives, so the best weights are kept stage by
# stage.
#
# ## Stages of your own
# Parameters are chosen by name: `encoders.<modality>.*`, `decoders.…`, `aggregator.*`, `prior.*`.
# Here one encoder alone is trained on, with a ramp on its KL.

# %%
stage = Stage(
    ELBO(condition="unimodal", reduce="sum", reconstruct="own"),
    3,
    ("encoders.m0.*",),
    ramps={"kl_weight": {"name": "linear", "epochs": 3}},
)
mvkit.fit(telbo, data.train, validation=data.valid, stages=[stage], seed=0)

# %% [markdown]
# ## From one modality to another
# Rows that lack modalities are encoded by the product of the encoders of what they have.

# %%
rows = data.test.batch.take(slice(0, 8))
figure, axes = plt.subplots(3, 8, figsize=(8, 3.2), layout="constrained")
shown = [rows.data["m1"]] + [
    m.translate(rows, ["m3"], ["m1"], latent="mean")["m3"][0] for m in (telbo, jmvae)
]
for line, pictures in zip(axes, shown, strict=True):
    for axis, picture in zip(line, pictures, strict=True):
        axis.imshow(picture[0].numpy(), cmap="gray", vmin=0, vmax=1)
        axis.axis("off")
for line, title in zip(axes, ("m1, given", "m3 by TELBO", "m3 by JMVAE"), strict=True):
    line[0].set_title(title, fontsize=8, loc="left")
figure.savefig("translated.png")
