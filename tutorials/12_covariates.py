# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # Covariates: sites and ages
#
# Three hospitals measure the same things with different machines, on people of different ages. A
# model that does not know the hospital has to keep it among the latents, where it passes for
# biology. A model that is *told* site and age, p(x, z | site, age), needs not: what is left for z
# is what site and age do not explain, and one can ask how a row would look at another site.
#
# The data are made up, so that the right answers are known.

# %%
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

import mvkit
from mvkit import Covariate, Model, MultimodalDataset

generator = np.random.default_rng(0)
SITES = ("A", "B", "C")
WIDTHS = {"mri": 10, "blood": 6}
PEOPLE = 1200
ids = [f"person-{i}" for i in range(PEOPLE)]
site = generator.integers(3, size=PEOPLE)
# C sees older people than A: site and age are entangled, as in life
age = generator.normal(np.array([45, 55, 65])[site], 10).round(1)
biology = generator.normal(size=(PEOPLE, 2))
loading, slope, shift, noise = {}, {}, {}, {}
for name, width in WIDTHS.items():
    loading[name] = generator.normal(size=(2, width))
    slope[name] = generator.normal(size=width) / 15
    shift[name] = 1.5 * generator.normal(size=(3, width))  # the batch effect of each site
    noise[name] = 0.3 * generator.normal(size=(PEOPLE, width))


def measured(name, at):
    """What people's values would be if all were measured at the sites `at`, (b,)."""
    trend = (age - 55)[:, np.newaxis] * slope[name]
    return biology @ loading[name] + trend + shift[name][at] + noise[name]


# %% [markdown]
# ## From tables
# One table for each modality, and one for what is known of people beside. Rows are found by id, in
# any order: a quarter of the people have no blood sample, another quarter no scan. `covariates=`
# names columns of any of the tables, which are then no features; or is a table of its own, as
# here.
#
# `data.covariates` says what they are: words have levels, numbers are standardised by the training
# rows.

# %%
present = {name: np.ones(PEOPLE, dtype=bool) for name in WIDTHS}
present["blood"][: PEOPLE // 4] = False
present["mri"][PEOPLE // 4 : PEOPLE // 2] = False
tables = {}
for name, width in WIDTHS.items():
    table = pd.DataFrame(measured(name, site), index=ids)
    table.columns = [f"{name}{i}" for i in range(width)]
    tables[name] = table[present[name]].sample(frac=1, random_state=0)
clinic = pd.DataFrame({"site": [SITES[i] for i in site], "age": age}, index=ids)
data = MultimodalDataset.from_tables(tables, covariates=clinic)
print(data)
print(data.covariates)

# %% [markdown]
# ## Train
# No old people of site C are used in training: later we ask about them. `missing="average"` lets
# rows in whose site is unknown; more of that below.

# %%
networks = {
    "encoder": {"name": "mlp", "hidden": (64,)},
    "decoder": {"name": "mlp", "hidden": (64,)},
    "likelihood": {"name": "normal", "scale": "trained"},
}
modalities = {name: {"shape": (width,), **networks} for name, width in WIDTHS.items()}
known = clinic.loc[list(data.ids)]
held_out = ((known["site"] == "C") & (known["age"] > 70)).to_numpy()
train = data.take(~held_out)
covariates = {"site": Covariate(SITES, missing="average"), "age": Covariate()}
model = Model(modalities, latent_dim=4, covariates=covariates, seed=0)
mvkit.fit(model, train, epochs=40, batch_size=64, lr=3e-3, seed=0, progress=False)
print(model)

# %% [markdown]
# ## Harmonise
# `translate(…, covariates={"site": "A"})` generates every row as if it had been measured at A.
# Encoders see the site that the row really has, so that they can take its batch effect off;
# decoders see A. Age is not named, and stays what it is.
#
# Two numbers: the share of all variance that site explains beyond age (an analysis of variance),
# and the slopes of features by age within sites. One should see the first fall to almost
# nothing, and the second stay near the truth. A probe that guesses the site from the values should
# fall towards what age alone gives away: sites differ in age, and harmonising must keep that.


# %%
def explained(columns, x):
    """Least squares of x (b, k) on columns (b, c): coefficients, and the variance left over."""
    design = np.column_stack([np.ones(len(x)), *columns])
    weights = np.linalg.lstsq(design, x, rcond=None)[0]
    return weights, (x - design @ weights).var(0)


def share_of_site(x, people):
    years = people["age"].to_numpy()
    dummies = [(people["site"] == level).to_numpy(float) for level in SITES[1:]]
    _, without = explained([years], x)
    weights, with_site = explained([years, *dummies], x)
    return (without - with_site).sum() / x.var(0).sum(), weights[1]


def probe(x, people):
    classifier = LogisticRegression(max_iter=2000)
    scaled = (x - x.mean(0)) / x.std(0)
    return cross_val_score(classifier, scaled, people["site"], cv=5).mean()


both = data.batch.mask.all(1).numpy() & ~held_out
rows = data.take(both)
people = known[both]
harmonised = model.translate(rows, latent="mean", covariates={"site": "A"})
for name in WIDTHS:
    raw = rows.batch.data[name].numpy()
    at_a = harmonised[name][0].numpy()
    (share, by_age), (share_a, by_age_a) = share_of_site(raw, people), share_of_site(at_a, people)
    print(f"{name}: variance by site {share:.2f} raw, {share_a:.3f} harmonised")
    for label, found in {"raw": by_age, "harmonised": by_age_a}.items():
        agreement = np.corrcoef(found, slope[name])[0, 1]
        size = np.linalg.norm(found) / np.linalg.norm(slope[name])
        print(f"  slopes by age, {label}: correlation with truth {agreement:.2f}, size {size:.2f}")
    accuracies = [probe(x, people) for x in (raw, at_a, people[["age"]].to_numpy())]
    print(
        "  site guessed from: raw {:.2f}, harmonised {:.2f}, age alone {:.2f}".format(*accuracies)
    )

# %% [markdown]
# In a picture: on the left three clouds, one above the other; on the right one cloud, with the
# trend by age still in it.

# %%
figure, axes = plt.subplots(1, 2, figsize=(7, 3), sharey=True, layout="constrained")
feature = int(np.abs(slope["blood"]).argmax())
panels = {"raw": rows.batch.data["blood"], "as if at A": harmonised["blood"][0]}
for axis, (title, values) in zip(axes, panels.items(), strict=True):
    for level in SITES:
        here = (people["site"] == level).to_numpy()
        axis.scatter(people["age"][here], values.numpy()[here, feature], s=6, label=level)
    axis.set(title=title, xlabel="age")
axes[0].set_ylabel(f"blood{feature}")
axes[0].legend(title="site")
figure.savefig("harmonised.png", bbox_inches="tight")

# %% [markdown]
# ## Ask for a setting that was never seen
# Nobody above 70 at site C was among the training rows. Take people of A and B who are old, hide
# their blood, and predict what C would measure of it. We made the data, so we know what C would
# have measured. Compare with the same prediction at the people's own site, which is what a model
# without covariates could answer at best: its error should be several times as large, since it
# carries the wrong batch effect.

# %%
old = both & (known["site"] != "C").to_numpy() & (known["age"] > 65).to_numpy()
place = [ids.index(id) for id in data.ids[old]]
truth = measured("blood", np.full(PEOPLE, 2))[place]
options = {"to": ["blood"], "given": ["mri"], "latent": "mean"}
at_c = model.translate(data.take(old), covariates={"site": "C"}, **options)["blood"][0].numpy()
own = model.translate(data.take(old), **options)["blood"][0].numpy()
spread = truth.std(0).mean()
for label, guess in {"at C": at_c, "at their own site": own}.items():
    error = np.sqrt(((guess - truth) ** 2).mean())
    print(f"{len(truth)} people, {label}: error {error:.2f} (spread of the truth {spread:.2f})")

# %% [markdown]
# Age may be stated, too: the same people at 40 and at 80. Each feature should move by 40 years
# times its slope.

# %%
ages = {}
for years in (40.0, 80.0):
    stated = {"age": years, "site": "A"}
    ages[years] = model.translate(rows, to=["blood"], latent="mean", covariates=stated)["blood"]
change = (ages[80.0] - ages[40.0])[0].mean(0).numpy()
print("change in 40 years:", change.round(1))
print("truth:             ", (40 * slope["blood"]).round(1))

# %% [markdown]
# ## A row that lacks a covariate
# It is an error that names it, never a silent zero: here a row without an age, since `age` was
# declared without `missing=`.

# %%
unknown = clinic.copy()
unknown.loc[ids[0], "age"] = np.nan
try:
    model.encode(MultimodalDataset.from_tables(tables, covariates=unknown))
except mvkit.DataError as error:
    print(error)

# %% [markdown]
# With `missing="average"`, as `site` has it, networks see the shares of the levels in training in
# place of a level: a person of no particular site. That is an approximation, and one should see
# where it holds. Blood predicted from scans of people whose site is unknown is that of an average
# site, so its error should be as large as site effects are. Encoders do well nevertheless, since
# the values themselves betray the site here: once decoders are told a site, the error should be
# nearly that of people whose site was known all along.

# %%
nowhere = MultimodalDataset.from_tables(
    {name: table.loc[people.index] for name, table in tables.items()},
    covariates=clinic.assign(site=None),
)
place = [ids.index(id) for id in people.index]
truths = {"own site": measured("blood", site)[place]}
truths["A"] = measured("blood", np.zeros(PEOPLE, dtype=int))[place]
for label, asked in {"site known": rows, "site unknown": nowhere}.items():
    for to, truth in truths.items():
        stated = {"site": "A"} if to == "A" else None
        guess = model.translate(asked, covariates=stated, **options)["blood"][0].numpy()
        error = np.sqrt(((guess - truth) ** 2).mean())
        print(f"{label}, blood as of {to}: error {error:.2f}")

# %% [markdown]
# ## Samples and likelihoods
# `sample` without covariates draws whole rows of them from training, so that sites and ages come
# together as they do in life. Reports call likelihoods what they are: given the covariates. They
# are not comparable with those of a model that has to predict site effects from nothing.

# %%
print("made up:", model.sample(3)["blood"][:, 0].numpy().round(1))
print(
    "at B, aged 30:",
    model.sample(3, covariates={"site": "B", "age": 30.0})["blood"][:, 0].numpy().round(1),
)
report = mvkit.evaluate(model, rows.take(slice(0, 200)), ["likelihood"], progress=False)
print(report)

# %% [markdown]
# The same in a run file: names of covariates of the data, or declarations.
#
#     [model.covariates]
#     site = {levels = ["A", "B", "C"], missing = "average"}
#     age = {}
