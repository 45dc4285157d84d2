# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---

# %% [markdown]
# # A mosaic of single cells: counts to a map, imputed proteins, differential proteins, a new batch
#
# 1,600 blood cells in four batches (PBMC CITE-seq, Hao et al. 2021; the quickstart file of
# github.com/labomics/midas): `p1_0` has RNA alone, `p2_0` surface proteins (ADT) alone, `p3_0` and
# `p4_0` have both. Here the proteins of `p3_0` are hidden, so that what is imputed can be compared
# with the truth, and `p1_0` is held out, to be mapped as a batch that no training saw. Put the file
# into `../shared/data/midas_mosaic`, or into `midas_mosaic` in the folder that MVKIT_DATA names.
# `pip install 'mvkit-omics[scanpy]'` brings what is used.

# %%
import os
import sys
from pathlib import Path

import mudata
import numpy as np
import scanpy
from matplotlib import pyplot as plt
from mvkit_omics import annotate, differential_expression, from_mudata, imputed, latents, map_new

import mvkit

mudata.set_options(pull_on_update=False)
source = Path(os.environ.get("MVKIT_DATA", "../shared/data")) / "midas_mosaic"
if not source.is_dir():
    print(f"nothing to do: there is no folder {source}; set MVKIT_DATA to the folder that has it")
    sys.exit()

# %% [markdown]
# ## Counts
# A MuData holds one AnnData for each modality; cells are matched by their names. Cells that a
# modality has no row for are unobserved there, and zeros are zeros.

# %%
whole = mudata.read_h5mu(source / "quickstart_pbmc_mosaic.h5mu")
batch = whole.obs["batch"].astype(str)
rna, adt = whole["rna"], whole["adt"]
hidden = adt[adt.obs["batch"] == "p3_0"].copy()
known = mudata.MuData(
    {"rna": rna[rna.obs["batch"] != "p1_0"].copy(), "adt": adt[adt.obs["batch"] != "p3_0"].copy()}
)
known.obs["batch"] = batch[known.obs_names].to_numpy()
known.obs["celltype"] = whole.obs["celltype"].astype(str)[known.obs_names].to_numpy()
data = from_mudata(known, covariates=["batch"], label="celltype")
print(data)

# %% [markdown]
# ## A model
# `cite_mopoe` has negative binomial counts, library sizes as they were observed, and the batch in
# encoders and decoders. As each modality alone is trained to explain the other, cells that have one
# of them get the other imputed.

# %%
model = mvkit.recipes.cite_mopoe(data.modalities, covariates=data.covariates, seed=0)
history = mvkit.fit(model, data, epochs=200, seed=0)
print(history)

# %% [markdown]
# ## A map of the cells
# What the model says goes into the MuData, by the names of cells; from there on it is scanpy.

# %%
annotate(known, model, imputed=["adt"])
scanpy.pp.neighbors(known, use_rep="X_mvkit", random_state=0)
scanpy.tl.umap(known, random_state=0)
scanpy.tl.leiden(known, random_state=0, flavor="igraph", n_iterations=2)
place = known.obsm["X_umap"]


def scatter(axis, groups, title):
    """Cells in their colours, small batches on top."""
    names = sorted(set(groups), key=lambda name: (len(name), name))
    colours = plt.get_cmap("tab20" if len(names) > 10 else "tab10")
    for i, name in enumerate(names):
        cells = groups == name
        axis.scatter(*place[cells].T, s=4, color=colours(i), label=name, rasterized=True)
    axis.set(title=title, xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    axis.legend(
        markerscale=3, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False
    )


figure, axes = plt.subplots(1, 3, figsize=(15, 4))
scatter(axes[0], known.obs["celltype"].to_numpy(str), "cell types, which no model saw")
scatter(axes[1], known.obs["batch"].to_numpy(str), "batches: RNA + proteins, or one of them")
scatter(axes[2], known.obs["leiden"].to_numpy(str), "Leiden clusters")
figure.tight_layout()
figure.savefig("map.png", dpi=150)

# %% [markdown]
# ## Proteins that were hidden
# Each protein of `p3_0`, imputed from RNA as of batch `p4_0`, whose cells have both, against the
# truth.

# %%
names = hidden.obs_names
cells = data.batch.take(known.obs_names.get_indexer(names))
answer = imputed(model, cells, "adt", "rna", of="mean", covariates={"batch": "p4_0"})
values = np.log1p(np.asarray(answer.mean))
truth = np.log1p(np.asarray(hidden.X.todense() if hasattr(hidden.X, "todense") else hidden.X))
proteins = hidden.var_names
r = np.array([np.corrcoef(values[:, j], truth[:, j])[0, 1] for j in range(len(proteins))])
print(f"Pearson's r of log1p counts over {len(r)} proteins: mean {np.nanmean(r):.2f}")

order = np.argsort(-np.nan_to_num(r))
figure, axes = plt.subplots(1, 4, figsize=(14, 3.4))
for axis, j in zip(axes[:3], order[:3], strict=True):
    axis.scatter(truth[:, j], values[:, j], s=5, alpha=0.5)
    axis.set(title=f"{proteins[j]}, r = {r[j]:.2f}", xlabel="measured, log1p", ylabel="imputed")
axes[3].hist(r[np.isfinite(r)], bins=25)
axes[3].set(title="all proteins", xlabel="r", ylabel="proteins")
figure.tight_layout()
figure.savefig("imputed.png", dpi=150)

# %% [markdown]
# ## Proteins that differ
# Of B cells against all others, as if all cells were of every batch: log-fold changes, Bayes
# factors, and a set whose expected share of false findings is 5 %.

# %%
table = differential_expression(
    model, data, "B", by="label", modality="adt", covariates={"batch": ["p2_0", "p4_0"]}
)
print(table[["lfc_mean", "bayes_factor", "is_de_fdr_0.05"]].head(10).round(2))
flagged = table[table["is_de_fdr_0.05"]].sort_values("lfc_mean")
shown = flagged.iloc[[*range(5), *range(-12, 0)]] if len(flagged) > 17 else flagged
figure, axis = plt.subplots(figsize=(6, 5))
colours = np.where(shown["lfc_mean"] > 0, "C3", "C0")
axis.barh(shown.index, shown["lfc_mean"], xerr=shown["lfc_std"], color=colours, ecolor="0.5")
axis.axvline(0, color="0.3", linewidth=0.8)
axis.set(xlabel="log2 fold change, B cells against others", title="proteins that differ, FDR 5 %")
figure.tight_layout()
figure.savefig("proteins.png", dpi=150)

# %% [markdown]
# ## A batch that no training saw
# `p1_0` has RNA alone. Its level of the covariate begins like the average, and is trained alone:
# the other cells stay where they are.

# %%
new = mudata.MuData({"rna": rna[rna.obs["batch"] == "p1_0"].copy()})
new.obs["batch"] = "p1_0"
new.obs["celltype"] = whole.obs["celltype"].astype(str)[new.obs_names].to_numpy()
fresh = from_mudata(new, covariates=["batch"], label="celltype")
mapped = map_new(model, fresh, "batch", "p1_0", epochs=20, old=data, seed=0)
print(mapped.moved)

z_old, z_new = latents(model, data).to_numpy(), latents(mapped.model, fresh).to_numpy()
distance = ((z_new[:, None] - z_old[None]) ** 2).sum(-1)
nearest = np.argsort(distance, axis=1)[:, :15]
types = known.obs["celltype"].to_numpy(str)
guess = []
for row in types[nearest]:
    values, counts = np.unique(row, return_counts=True)
    guess.append(values[counts.argmax()])
right = np.mean(np.array(guess) == new.obs["celltype"].to_numpy(str))
print(f"cell types of p1_0 by its 15 nearest known cells: {right:.2f} right")
mvkit.save(mapped.model, "mosaic.safetensors")

# %% [markdown]
# `docs/benchmarks.md` has this mosaic beside MIDAS and totalVI.
