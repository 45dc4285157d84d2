"""Covariates, exposures and row weights at the doors that were left: pairs, streams, numbers far
from training, and input that an attacker would try.
"""

import numpy as np
import pytest
import torch

import mvkit
from mvkit import Covariate, DataError, Model, MultimodalDataset
from mvkit.data.pairing import pair_by_label

# pairs by label


def part(name, labels, **given):
    values = torch.arange(float(len(labels))).reshape(-1, 1)
    return MultimodalDataset.from_arrays({name: values}, label=labels, **given)


def test_pairs_keep_covariates_exposures_and_weights():
    given = {"site": ["x", "y", "x"], "depth": [10.0, 20.0, np.nan]}
    first = part("a", [0, 1, 1], covariates=given)
    second = part("b", [1, 0], covariates={"age": [50.0, 60.0]}, row_weight=[1.0, 3.0])
    pairs = pair_by_label([first, second], times=2, seed=1)
    extra = pairs.batch.extra
    assert list(extra["site"]) == ["x", "y", "x"] * 2
    assert extra["depth"].tolist()[:2] == [10.0, 20.0]
    assert extra["age"].tolist() == [60.0, 50.0, 50.0] * 2
    assert extra["row_weight"].tolist() == [3.0, 1.0, 1.0] * 2
    assert pairs.covariates == {
        "site": Covariate(("x", "y")),
        "depth": Covariate(),
        "age": Covariate(),
    }
    model = Model(pairs.modalities, covariates={"site": ("x", "y"), "age": Covariate()}, seed=0)
    mvkit.fit(model, pairs, epochs=1, progress=False)


def test_pairs_agree_on_what_both_datasets_say():
    first = part("a", [0, 1], covariates={"site": ["x", None], "age": [1.0, np.nan]})
    second = part("b", [1, 0], covariates={"site": ["y", "x"], "age": [2.0, np.nan]})
    pairs = pair_by_label([first, second])
    assert list(pairs.batch.extra["site"]) == ["x", "y"]
    assert pairs.batch.extra["age"].tolist() == [1.0, 2.0]
    assert pairs.covariates["site"].levels == ("x", "y")


@pytest.mark.parametrize("name", ["site", "row_weight", "depth"])
def test_pairs_that_disagree_are_refused(name):
    values = {"site": (["x", "y"], ["y", "x"])}.get(name, ([1.0, 2.0], [3.0, 1.0]))
    datasets = []
    for modality, own in zip("ab", values, strict=True):
        given = {"row_weight": own} if name == "row_weight" else {"covariates": {name: own}}
        datasets.append(part(modality, [0, 1], **given))
    message = f"datasets 0 and 1 both have '{name}', which is .* in pair 0; .*rename it"
    with pytest.raises(DataError, match=message):
        pair_by_label(datasets)
