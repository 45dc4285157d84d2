"""No order of cells, genes or modalities changes what a model says of a cell."""

import made_up
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import GENES, PROTEINS, counts, joined
from mvkit_omics import annotate, from_mudata

NAMES = [f"c{i}" for i in range(8)]
DRAWS = 2


@pytest.fixture(scope="module")
def model():
    return made_up.trained(joined(rna=counts(NAMES, GENES), adt=counts(NAMES, PROTEINS, seed=1)))


def some(names):
    return st.lists(st.sampled_from(names), min_size=1, unique=True)


@st.composite
def orders(draw):
    """Cells of each modality, features of each, modalities and the cells of the whole."""
    cells = {"rna": draw(some(NAMES)), "adt": draw(some(NAMES))}
    features = {"rna": draw(st.permutations(GENES)), "adt": draw(st.permutations(PROTEINS))}
    return cells, features, draw(st.permutations(["rna", "adt"])), draw(st.permutations(NAMES))


def built(cells, features, mods, whole):
    """A MuData in the orders that were drawn, of the same cells."""
    seeds = {"rna": 0, "adt": 1}
    mdata = joined(**{name: counts(cells[name], features[name], seeds[name]) for name in mods})
    return mdata[[name for name in whole if name in mdata.obs_names]]


def answers(mdata, model):
    annotate(mdata, model, imputed=["rna", "adt"], n=DRAWS, disjoint=True)
    columns = {"z": mdata.obsm["X_mvkit"], "cluster": mdata.obs["mvkit_cluster"]}
    for name, features in {"rna": GENES, "adt": PROTEINS}.items():
        holder = mdata.obsm.get(f"mvkit_imputed_{name}")
        if holder is None:
            own = mdata[name]
            layer = own.to_df(layer="mvkit_imputed")
            holder = layer.loc[mdata.obs_names]
        columns[name] = holder[features].to_numpy()
    return {what: made_up.by_cell(mdata.obs_names, values) for what, values in columns.items()}


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(order=orders())
def test_no_order_changes_what_is_said_of_a_cell(model, order):
    cells, *_ = order
    sorted_cells = {name: sorted(own) for name, own in cells.items()}
    features = {"rna": GENES, "adt": PROTEINS}
    expected = answers(built(sorted_cells, features, ["rna", "adt"], sorted(NAMES)), model)
    got = answers(built(*order), model)
    for what, values in expected.items():
        assert got[what].keys() == values.keys()
        for cell, value in values.items():
            np.testing.assert_array_equal(got[what][cell], value, err_msg=f"{what} of {cell}")


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(order=orders(), sparse=st.booleans())
def test_no_order_changes_what_is_read_of_a_cell(model, order, sparse):
    cells, features, *_ = order
    mdata = built(*order)
    data = from_mudata(mdata, like=model, sparse=sparse, disjoint=True)
    assert data.ids.tolist() == mdata.obs_names.tolist()
    rows = data.__getitems__(list(range(len(data))))
    for column, (name, known) in enumerate({"rna": GENES, "adt": PROTEINS}.items()):
        own = counts(cells[name], known, column).X.toarray()
        values = made_up.by_cell(cells[name], own)
        for row, cell in enumerate(data.ids):
            place = list(rows.order).index(name)
            assert bool(rows.mask[row, place]) == (cell in values)
            if cell in values:
                np.testing.assert_array_equal(rows.data[name][row], values[cell])
