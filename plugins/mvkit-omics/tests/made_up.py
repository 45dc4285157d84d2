"""Small AnnData and MuData of made-up counts."""

import anndata
import mudata
import numpy as np
import pandas as pd
from mvkit_omics import from_mudata
from scipy import sparse

import mvkit

mudata.set_options(pull_on_update=False)  # as it will be; without this, mudata warns
GENES = [f"G{i}" for i in range(6)]
PROTEINS = ["CD3", "CD4", "CD8"]


def count(cell, feature, seed):
    """A function of the names; above 0 for some features, so that no cell is empty."""
    rng = np.random.default_rng([seed, *cell.encode(), 0, *feature.encode()])
    return rng.poisson(2.0) + (feature in ("G0", "CD3"))


def counts(names, features, seed=0, kind=sparse.csr_matrix):
    """An AnnData of counts."""
    rows = [[count(cell, feature, seed) for feature in features] for cell in names]
    values = np.array(rows, dtype=np.float32).reshape(len(names), len(features))
    obs = pd.DataFrame(index=list(names))
    obs["batch"] = pd.Categorical([batch_of(name) for name in names], categories=["p", "q"])
    return anndata.AnnData(kind(values), obs=obs, var=pd.DataFrame(index=list(features)))


def batch_of(name):
    return "pq"[int(name[1:]) % 2]


def cells(*numbers):
    return [f"c{number}" for number in numbers]


def joined(**mods):
    return mudata.MuData(mods)


def mosaic():
    """Cells 0 to 5 have rna, 3 to 8 adt, in other orders than the whole."""
    rna = counts(cells(4, 0, 2, 1, 5, 3), GENES)
    adt = counts(cells(8, 3, 6, 5, 4, 7), PROTEINS, seed=1)
    return joined(rna=rna, adt=adt)


def trained(mdata, **options):
    """A model whose weights are those of its seed, and whose batches were seen."""
    network = {"name": "mlp", "hidden": [16]}
    small = dict.fromkeys(mdata.mod, {"encoder": network, "decoder": network})
    data = from_mudata(mdata, covariates=["batch"], modalities=small)
    options = {"latent_dim": 2, "prior": {"name": "mog", "components": 3}, **options}
    model = mvkit.Model(data.modalities, covariates=data.covariates, seed=0, **options)
    mvkit.fit(model, data, epochs=2, seed=0, progress=False)
    return model


def by_cell(ids, values):
    """Values by names of cells."""
    return dict(zip(list(ids), np.asarray(values), strict=True))
