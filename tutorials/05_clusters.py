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
# the backgrounds out of it. Components that are placed before the encoders know anything find
# clusters of nothing. So the first half of the epochs has the standard prior; then the components
# are placed at a mixture that is fitted to the codes, and are trained too: the schedule
# `warmup_then_mixture`, which is that of `cmvae`. Start with more clusters than there can be, and
# let the data say how many there are.

# %%
from matplotlib import pyplot as plt

import mvkit
from mvkit import plots, recipes

data = mvkit.load_dataset("polydigits")
model = recipes.cmvae(
    data.modalities, latent_dim=16, private_dim=4, clusters=20, samples=1, seed=0
)
mvkit.fit(model, data.train, validation=data.valid, epochs=20, seed=0)

# %% [markdown]
# ## How many clusters
# `prune_clusters` drops the cluster with the fewest rows, again and again, and keeps the number of
# the lowest score: the information criterion of normals that are fitted to the codes each time. The
# entropy of the paper is `rule="votes"`. It returns a new model, which trains, scores and saves like
# any other.

# %%
pruned, score = mvkit.prune_clusters(model, data.train)
figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
axis.plot(list(score), list(score.values()), marker="o")
axis.set(xlabel="active clusters", ylabel="nats per row")
figure.savefig("scores.png")
print("clusters kept:", pruned.n_clusters)
mvkit.fit(pruned, data.train, validation=data.valid, epochs=5, seed=0)

# %% [markdown]
# ## Look at them
# Rows may lack any of their modalities: a row's cluster is the likeliest given what it has. With
# `rule="votes"` each observed modality votes.

# %%
test = data.test.batch
found = pruned.clusters(test)
for cluster in found.unique().tolist():
    labels = test.extra["label"][found == cluster]
    print(f"cluster {cluster}: {len(labels)} rows, most often digit {labels.mode().values.item()}")

# %%
axes = plots.cluster_samples(pruned)
axes[0, 0].figure.savefig("clusters.png")
