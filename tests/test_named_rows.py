"""What messages call rows that have ids."""

import numpy as np
import pytest

import mvkit
from mvkit import DataError, MultimodalDataset

DATA = {"a": np.array([[0.0], [1.0], [2.0]])}


def test_a_row_without_a_covariate_is_named_by_its_id():
    sites = ["x", None, "y"]
    data = MultimodalDataset.from_arrays(DATA, ids=["p", "q", "r"], covariates={"site": sites})
    model = mvkit.Model(data.modalities, covariates=data.covariates, seed=0)
    with pytest.raises(DataError, match=r"covariate 'site': row 1 has none \(id 'q'\)"):
        model.encode(data)


def test_a_row_without_ids_is_numbered():
    data = MultimodalDataset.from_arrays(DATA, covariates={"site": ["x", None, "y"]})
    model = mvkit.Model(data.modalities, covariates=data.covariates, seed=0)
    with pytest.raises(DataError, match="covariate 'site': row 1 has none"):
        model.encode(data)


@pytest.mark.parametrize(("kind", "door"), [("AnnData", "adata"), ("MuData", "mdata")])
def test_annotated_data_point_to_the_package(kind, door):
    value = type(kind, (), {"__module__": kind.lower()})()
    with pytest.raises(DataError, match=rf"mvkit_omics\.from_{kind.lower()}\({door}\)"):
        MultimodalDataset.from_tables(value)
    with pytest.raises(DataError, match=r"pip install mvkit-omics"):
        MultimodalDataset.from_arrays({"rna": value})


def test_a_row_of_an_unknown_level_is_named_by_its_id():
    data = MultimodalDataset.from_arrays(DATA, covariates={"site": ["x", "y", "x"]})
    model = mvkit.Model(data.modalities, covariates=data.covariates, seed=0)
    sites = {"site": ["y", "x", "w"]}
    other = MultimodalDataset.from_arrays(DATA, ids=["p", "q", "r"], covariates=sites)
    with pytest.raises(
        DataError, match=r"'site': 'w' of row 2 \(id 'r'\) is none of its 2 levels"
    ):
        model.encode(other)
    plain = MultimodalDataset.from_arrays(DATA, covariates=sites)
    with pytest.raises(DataError, match=r"covariate 'site': 'w' is none of its 2 levels"):
        model.encode(plain)
