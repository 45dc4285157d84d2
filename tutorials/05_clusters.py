# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Clustering: CMVAE and pruning
#
# A mixture prior on the shared latent makes clusters while the model trains; private latents keep
# the backgrounds out of it. Start with more clusters than there can be, and let the entropy of the
# assignments say how many there are.

# %%
from matplotlib import pyplot as plt

import mvkit
from mvkit import recipes

data = mvkit.load_dataset("polydigits")
model = recipes.cmvae(
    data.modalities, latent_dim=16, private_dim=4, clusters=20, samples=1, seed=0
)
mvkit.fit(model, data.train, validation=data.valid, epochs=20, seed=0)

# %% [markdown]
# ## How many clusters
# `prune_clusters` drops the cluster with fewest votes, again and again, and keeps the number of
# lowest entropy. It returns a new model, which trains, scores and saves like any other.

# %%
pruned, entropy = mvkit.prune_clusters(model, data.train)
figure, axis = plt.subplots(figsize=(5, 3))
axis.plot(list(entropy), list(entropy.values()), marker="o")
axis.set(xlabel="active clusters", ylabel="entropy")
figure.savefig("entropy.png")
print("clusters kept:", pruned.n_clusters)
mvkit.fit(pruned, data.train, validation=data.valid, epochs=5, seed=0)

# %% [markdown]
# ## Look at them
# Each observed modality votes; rows may lack any of them.

# %%
test = data.test.batch
found = pruned.clusters(test)
for cluster in found.unique().tolist():
    labels = test.extra["label"][found == cluster]
    print(f"cluster {cluster}: {len(labels)} rows, most often digit {labels.mode().values.item()}")

# %%
figure, axes = plt.subplots(pruned.n_clusters, 5, figsize=(5, pruned.n_clusters), squeeze=False)
for cluster, line in enumerate(axes):
    sample = pruned.sample(1, cluster=cluster)
    for axis, name in zip(line, pruned.names, strict=True):
        axis.imshow(sample[name][0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
        axis.axis("off")
figure.savefig("clusters.png")
