# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Search: let trials choose parts and widths
#
# Which aggregator, which prior, how wide a latent? The package `plugins/mvkit-optuna` declares a
# search space on the fields of specs and lets [optuna](https://optuna.org) try them: a trial is a
# run of `mvkit.fit`.

# %%
from matplotlib import pyplot as plt
from mvkit_optuna import Choice, Int, Search

import mvkit

data = mvkit.load_dataset("polydigits", missing=0.3)
train = data.train.batch.take(slice(0, 2000))

# %% [markdown]
# ## The space
# A path leads through specs; it is checked at once, with every choice. The number of components is
# asked for only in trials whose prior has components. Everything else stands in the base
# configuration.

# %%
search = Search(
    {
        "model.aggregator": Choice("poe", "moe", "mopoe"),
        "model.prior": Choice("standard", "mog"),
        "model.prior.components": Int(5, 40),
        "model.latent_dim": Int(2, 32, log=True),
    },
    {"model": {"modalities": data.modalities}, "train": {"epochs": 12}},
)
try:
    Search({"model.prior.components": Int(5, 40)}, {"model": {"modalities": data.modalities}})
except mvkit.SpecError as error:
    print(error)

# %% [markdown]
# ## The study
# After each epoch a trial reports its bound on the validation rows; those that fall behind the
# median are pruned. The study is stored in a file: the same call resumes it, tonight or after a
# crash, until that many trials are finished.

# %%
study = search.run(train, validation=data.valid, trials=20, storage="study.db")
print(f"{study.best_value:.1f} nats with {study.best_params}")

# %% [markdown]
# ## Results
# Left: the trials in turn, and the best so far. Right: the bound by part and width. A single
# seed and few epochs rank what is far apart; repeat the best few with other seeds before you
# believe small differences.

# %%
trials = study.trials_dataframe()
over = trials[trials["state"] == "COMPLETE"]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
left.scatter(over["number"], over["value"], label="complete")
left.plot(over["number"], over["value"].cummax(), label="best so far")
pruned = trials[trials["state"] == "PRUNED"]
left.scatter(
    pruned["number"], pruned["value"], marker="x", color="gray", label="pruned, its last bound"
)
left.set(xlabel="trial", ylabel="bound on validation rows, nats")
left.legend()
for (aggregator, prior), group in over.groupby(["params_model.aggregator", "params_model.prior"]):
    right.scatter(
        group["params_model.latent_dim"],
        group["value"],
        color={"poe": "C0", "moe": "C1", "mopoe": "C2"}[aggregator],
        marker={"standard": "o", "mog": "s"}[prior],
        label=f"{aggregator}, {prior}",
    )
right.set(xlabel="latent_dim", xscale="log")
right.legend(fontsize=7)
figure.savefig("search.png", bbox_inches="tight")

# %% [markdown]
# ## The best model
# The same parameters build the model of the best trial again; here it is trained on all rows.

# %%
model, _ = search.fit(study.best_params, data.train, validation=data.valid)
print(
    f"{model.log_likelihood(data.test.batch.take(slice(0, 200)), n=200).mean():.1f} nats per row"
)
