# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Values that are missing because of what they are
#
# Who earns much is less willing to say how much. The incomes that are left are then too low, and so
# is whatever is learned from them: also what a good model fills in, since all that it has seen are
# the incomes of those who answered. Statisticians say that such values are **missing not at
# random**. A model can help only if it also says *why* they are missing.

# %%
import numpy as np
import torch
from matplotlib import pyplot as plt

import mvkit
from mvkit import Modality, recipes
from mvkit.parts import Normal, SelfMasking

# %% [markdown]
# ## A made-up survey
# Two things nobody measured decide a person's job (three answers) and money (income and rent), all
# in standard deviations. Everybody has an income; the higher it is, the more probable is it that
# the answer is missing. Nothing else is missing, and we keep the truth to see what comes of it.

# %%
generator = np.random.default_rng(0)
rows = 1500
hidden = generator.normal(size=(rows, 2))
job = hidden @ [[0.8, 0.1, 0.5], [0.2, 0.8, -0.5]] + 0.5 * generator.normal(size=(rows, 3))
money = hidden @ [[0.7, 0.3], [0.3, 0.6]] + 0.6 * generator.normal(size=(rows, 2))
job, money = ((x - x.mean(0)) / x.std(0) for x in (job, money))

truth = money[:, 0].copy()
answers = 1 / (1 + np.exp(2.5 * (truth - 0.3)))  # the probability that the income is told
silent = generator.uniform(size=rows) > answers
money[silent, 0] = np.nan
data = {"job": torch.tensor(job).float(), "money": torch.tensor(money).float()}

told = np.nanmean(money[:, 0])
print(
    f"missing: {silent.mean():.0%}; mean income: {truth.mean():.2f} in truth, {told:.2f} as told"
)

# %% [markdown]
# **What you should see:** about four in ten are missing, and the mean of what is told is far below
# that of the truth, which is 0.
#
# ## A model that ignores why
# `recipes.miwae` takes what is missing to be missing *at random*: job and rent say who is likely to
# earn much, and the model fills in accordingly.

# %%
network = {"encoder": "linear", "decoder": "linear"}
likelihood = Normal(scale="trained", by="feature")
modalities = {
    "job": Modality((3,), likelihood, **network),
    "money": Modality((2,), likelihood, **network),
}


def filled(model):
    """Incomes with gaps filled, after training."""
    mvkit.fit(model, data, epochs=60, batch_size=100, lr=1e-2, seed=0, progress=False)
    draw = torch.Generator().manual_seed(0)
    return mvkit.impute(model, data, n=200, generator=draw)["money"][:, 0].numpy()


def describe(name, incomes):
    """Prints how far a filled table is from the truth."""
    error = np.sqrt(np.mean((incomes - truth)[silent] ** 2))
    print(
        f"{name:18} mean income {incomes.mean():5.2f}, of the silent {incomes[silent].mean():5.2f} "
        f"(truth {truth[silent].mean():.2f}); error {error:.2f}"
    )


at_random = recipes.miwae(modalities, latent_dim=2, seed=0)
ignored = filled(at_random)
describe("ignored", ignored)

# %% [markdown]
# **What you should see:** the mean is better than that of the answers, because job and rent tell
# something, and still too low: of two persons with the same job and rent, the one who is silent
# earns more, and the model does not know that.
#
# ## A model that says why
# `recipes.not_miwae` adds a model of the gaps, p(s|x), to that of the values: here `self`, in which
# each value decides about itself, by a slope and a threshold that are trained. The values that are
# missing are drawn from the decoders in training, so that the decoders learn from being missing.
# We know that it is the *high* incomes, and say so. Rent and job were never missing: only the
# gaps of `money` are explained.

# %%
high = SelfMasking(sign="high", modalities=("money",))
explained = recipes.not_miwae(modalities, latent_dim=2, missingness=high, seed=0)
known = filled(explained)
describe("sign given", known)
slope = explained.missingness.slope("money").detach()
threshold = explained.missingness.threshold["money"].detach()
print(f"slope {slope[0]:.1f} (truth 2.5), threshold {threshold[0]:.1f} (truth 0.3)")

# %% [markdown]
# **What you should see:** the mean of all incomes near 0, and that of the silent near the truth. The
# slope and the threshold are near theirs, though not exactly: only the shape of the distribution of
# what is told gives them away, and of that there is little.
#
# ## If the sign is not known
# `sign="free"` lets the data decide. That is a weaker statement, and the data may not suffice: a
# model in which the *low* values are missing can fit what was told nearly as well.

# %%
free = SelfMasking(sign="free", modalities=("money",))
undecided = recipes.not_miwae(modalities, latent_dim=2, missingness=free, seed=0)
describe("sign free", filled(undecided))
print("slope of income:", round(undecided.missingness.slope("money")[0].item(), 1))

# %% [markdown]
# **What you should see:** here usually the same as with the sign given. Do not count on it: compare
# several seeds, and take what you know about the question over what the fit says.
#
# ## How much hangs on the assumption: a sensitivity analysis
# Nobody can read from data why they are missing, only from data *and* a form of p(s|x). An honest
# report shows what comes out under several assumptions. With a number as its slope, nothing about
# the slope is learned: 0 is missing at random, 1 halves the odds of an answer for every 0.7
# standard deviations of income.

# %%
slopes = [-1.0, 0.0, 1.0, 2.5, 5.0]
means = []
for slope in slopes:
    assumed = SelfMasking(slope=slope, modalities=("money",))
    model = recipes.not_miwae(modalities, latent_dim=2, missingness=assumed, seed=0)
    incomes = filled(model)
    means.append(incomes.mean())
    describe(f"slope {slope}", incomes)

figure, axis = plt.subplots(figsize=(5, 3))
axis.plot(slopes, means, "o-", label="estimated")
axis.axhline(truth.mean(), color="black", linestyle=":", label="truth")
axis.axhline(told, color="grey", linestyle="--", label="as told")
axis.set(xlabel="assumed slope: how much high incomes are withheld", ylabel="mean income")
axis.legend()
figure.tight_layout()
figure.savefig("sensitivity.png")

# %% [markdown]
# **What you should see:** the estimate rises with the slope that is assumed. At 0 it is that of the
# model that ignored why; near the slope of the truth it is near the truth; a slope of the wrong sign
# makes it worse than ignoring. If your conclusion holds for all slopes that experts find plausible,
# it does not hang on the assumption. If it changes within them, say so.
#
# Two warnings. What `log_likelihood` returns for these models is log p(x_O, s): it compares models
# of what is missing with one another, never with `at_random`. And modalities that a question leaves
# out (`given=…`) say nothing by being absent: only what the rows themselves lack does.

# %%
batch = mvkit.Batch(data).take(slice(0, 300))
for name, model in (("sign given", explained), ("sign free", undecided)):
    joint = model.log_likelihood(batch, n=500)
    print(f"{name}: log p(x, s) {joint.mean():.2f} a person")
