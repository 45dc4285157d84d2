# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # One table, one call
#
# A clinic's table has gaps in every column: ages, visits, yes and no, words, grades, days. This
# tutorial fills them without a choice, looks at what was chosen, says how sure the filling is, and
# changes what should be otherwise. Nothing needs to be known of models.

# %%
import numpy as np
import pandas
from matplotlib import pyplot as plt

import mvkit

# %% [markdown]
# ## A made-up clinic
# How ill a patient is (`burden`) was never measured, and decides most columns; so does age. The
# truth is kept, to see later what the filling is worth. Then one cell in five is taken away.

# %%
random = np.random.default_rng(0)
rows = 400
burden = random.normal(size=rows)
age = np.clip(62 + 11 * random.normal(size=rows), 18, 95).round()
older = (age - 62) / 11
grades = ["none", "mild", "moderate", "severe"]
pain = np.digitize(burden + 0.4 * random.normal(size=rows), [-0.8, 0.2, 1.1])
truth = pandas.DataFrame(
    {
        "age": age.astype(int),
        "visits": random.poisson(np.exp(1.0 + 0.5 * burden)),
        "crp": np.exp(1.2 + 0.8 * burden + 0.3 * random.normal(size=rows)).round(1),
        "pressure": (128 + 7 * older + 6 * burden + 6 * random.normal(size=rows)).round(),
        "smokes": burden + random.normal(size=rows) > 0.6,
        "site": np.where(older + 0.7 * random.normal(size=rows) > 0, "city", "county"),
        "pain": pandas.Categorical.from_codes(pain, grades, ordered=True),
        "seen": pandas.Timestamp("2024-01-01")
        + pandas.to_timedelta(random.integers(0, 300, rows), "D"),
    },
    index=pandas.Index([f"p{i:03}" for i in range(rows)], name="patient"),
)
gaps = pandas.DataFrame(random.uniform(size=truth.shape) < 0.2, truth.index, truth.columns)
table = truth.astype({"age": "Int64", "visits": "Int64", "smokes": "boolean"}).mask(gaps)
print(table.head())
print("patients without a gap:", len(table.dropna()), "of", rows)

# %% [markdown]
# **What you should see:** about one patient in six has everything. An analysis of complete cases
# would throw away the others (tutorial 18).
#
# ## The call

# %%
imputation = mvkit.impute(table, seed=0, progress=False)
filled = imputation.table
print(filled.head())
print(
    "gaps left:",
    int(filled.isna().sum().sum()),
    "· types kept:",
    filled.dtypes.equals(table.dtypes),
)

# %% [markdown]
# **What you should see:** the same index, columns and types. Visits are whole and not negative, no
# age or value is beyond those that were observed, pain is one of its grades, `seen` is a day.
#
# ## What was chosen, and is it any good
# Some observed cells were hidden from training. The report says how well they were recovered, column
# by column, beside a guess that is the same for all (the mean, the most frequent word).

# %%
print(imputation.choices["kinds"])
print(imputation.report)

# %% [markdown]
# **What you should see:** fewer errors than the guess in most columns, and a last line that names
# those that the other columns say nothing of: `seen`, since patients came on any day. What is filled
# in there is a guess, and should be treated as one.
#
# Kinds are told by types and values:
#
# | kind | what it looks like | what comes back |
# |---|---|---|
# | `number` | numbers, some below 0 | numbers between the smallest and the largest observed |
# | `positive` | numbers, all above 0 | likewise |
# | `count` | whole numbers from 0 | whole numbers |
# | `bits` | yes and no, or 0 and 1 | the same two |
# | `category` | words, or a type of categories | one of the words |
# | `ordered` | a type of ordered categories | one of them, by their order |
# | `date` | days, times, text such as 2024-03-01 | a day |
#
# Columns of free text and columns with one value only are not modelled. Here the truth is known, so
# that we can look at the cells themselves.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 3))
for axis, name in zip(axes, ("crp", "pressure", "visits"), strict=True):
    cells = gaps[name]
    x, y = truth[name][cells].astype(float), filled[name][cells].astype(float)
    axis.plot([x.min(), x.max()], [x.min(), x.max()], color="0.7", zorder=0)
    axis.scatter(x, y, s=12, alpha=0.7)
    axis.set(title=name, xlabel="truth", ylabel="filled in")
figure.tight_layout()
figure.savefig("filled.png")

# %% [markdown]
# **What you should see:** points along the line, and flatter than it: what is filled in is an
# expectation, which varies less than the truth. Means are fine for looking up a patient; for
# statistics take completed tables (tutorial 18).
#
# ## How sure it is
# `intervals=0.9` adds an interval for every gap among numbers, days and grades, and a set for every
# other, which hold nine in ten of the true values. They are calibrated on the hidden cells; more of
# these make them steadier, so that we hide a tenth.

# %%
sure = mvkit.impute(
    table, intervals=0.9, choices={"held_out": 0.1, "epochs": 30}, seed=0, progress=False
)
for name in ("age", "visits", "crp", "pressure"):
    cells = gaps[name]
    low, high, x = (t[name][cells].astype(float) for t in (sure.low, sure.high, truth))
    print(f"{name:9} {((low <= x) & (x <= high)).mean():.0%} of the true values are inside")
held = [answer in cell for answer, cell in zip(truth["site"], sure.sets["site"], strict=True)]
print(f"site      {np.mean(np.array(held)[gaps['site']]):.0%} are in their sets")

# %% [markdown]
# **What you should see:** about 90 % (measured: 82 to 95 %), since each column has only some 80 gaps.
# `sure.coverage` tells the same of the cells that were hidden, where no truth is known.

# %%
name = "crp"
cells = truth.index[gaps[name]][:25]
low, high = sure.low.loc[cells, name], sure.high.loc[cells, name]
figure, axis = plt.subplots(figsize=(8, 3.2))
axis.vlines(range(len(cells)), low, high, linewidth=5, alpha=0.35, label="90 % interval")
axis.plot(sure.table.loc[cells, name].to_numpy(), "_", markersize=9, label="filled in")
axis.plot(truth.loc[cells, name].to_numpy(), ".k", label="truth")
axis.set_xticks(range(len(cells)), cells, rotation=90, fontsize=8)
axis.set(ylabel=name, title="25 patients whose value is missing")
axis.legend(fontsize=8)
figure.tight_layout()
figure.savefig("intervals.png")

# %% [markdown]
# ## What should be otherwise
# `kinds` says what a column is that looks like something else: a code of 0, 1 and 2 looks like a
# count, and is a category if its numbers have no order. `choices` replaces what was chosen; its names
# are those of `imputation.choices`.

# %%
coded = table.assign(ward=np.where(random.uniform(size=rows) < 0.1, np.nan, pain // 2 * 7))
other = mvkit.impute(
    coded, kinds={"ward": "category"}, choices={"epochs": 10}, seed=0, progress=False
)
print(other.choices["kinds"]["ward"], sorted(other.table["ward"].unique()))

# %% [markdown]
# ## Several tables, files, and the command line
# A dict of tables is filled together: rows are aligned by their ids, in any order, and a patient may
# be in one only. Instead of tables, paths of CSV, TSV and Parquet files will do, with `id=` naming the
# column of ids. The same from a terminal:
#
#     mvkit impute clinic.csv labs.parquet --id patient -o out/ --intervals 0.9
#
# writes the filled files, intervals, an embedding of the patients, the model and a page with the
# report. `docs/tables.md` has all of it.

# %%
clinic = table[["age", "smokes", "site", "pain"]]
labs = table[["crp", "pressure"]].dropna(how="all").iloc[::-1]
both = mvkit.impute(
    {"clinic": clinic, "labs": labs}, choices={"epochs": 10}, seed=0, progress=False
)
print({name: len(each) for name, each in both.tables.items()})
embedding = mvkit.embed(both.model, both.layouts["clinic"].split(clinic), empty="prior")
print("each patient as numbers:", embedding.shape)
mvkit.save(both.model, "clinic.safetensors")
