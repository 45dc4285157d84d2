"""Options of recipes that were taken in silence, or ended in errors of Python."""

import numpy as np
import pytest
import torch

from mvkit import RequestError, SpecError, recipes

LINEAR = {"encoder": "linear", "decoder": "linear"}
MODALITIES = {"a": {"shape": (3,), **LINEAR}, "b": {"shape": (2,), **LINEAR}}
NO_COUNTS = (-1, 1.5, "x", True, None, float("nan"))
REFUSED = {
    "stages": (recipes.telbo, (0, 3, -1, 2.0, "x", True, None)),
    "subsets": (recipes.mvae, (*NO_COUNTS, [["a"]], [])),
    "bottom_dim": (recipes.nexus, (0, *NO_COUNTS, {"a": 2}, {"a": 2, "b": 0}, {"z": 2})),
    "bottom_beta": (recipes.nexus, (-1.0, "x", True, None, float("nan"), float("inf"))),
    "gammas": (recipes.nexus, (3, "x", {"z": 1.0}, ["a"])),
}
WARM = (recipes.jmvae, recipes.mvae, recipes.mhvae, recipes.nexus)
CASES = [(*REFUSED[option], option) for option in REFUSED]
CASES += [(recipe, NO_COUNTS, "warmup") for recipe in WARM]


@pytest.mark.parametrize(("recipe", "values", "option"), CASES, ids=lambda x: str(x)[:20])
def test_a_value_that_cannot_be_is_refused_by_its_name(recipe, values, option):
    for value in values:
        with pytest.raises((RequestError, SpecError), match=option):
            recipe(MODALITIES, **{option: value})


def test_values_that_can_be_are_taken():
    two, one = (recipes.telbo(MODALITIES, stages=stages) for stages in (2, np.int64(1)))
    assert [len(model.spec.schedule.stages(model, 4)) for model in (two, one)] == [2, 1]
    for subsets in (0, 1, np.int64(3)):
        assert len(recipes.mvae(MODALITIES, subsets=subsets).objective.terms) == 2 + subsets
    assert (
        recipes.jmvae(MODALITIES, warmup=np.int64(3)).spec.schedule.ramps["kl_weight"].epochs == 3
    )
    assert not recipes.jmvae(MODALITIES, warmup=0).spec.schedule.ramps
    alike = [
        recipes.nexus(MODALITIES, bottom_dim=width, seed=0).state_dict()
        for width in (4, np.int64(4), {"b": 4, "a": 4})
    ]
    for weights in alike[1:]:
        assert all(torch.equal(alike[0][name], x) for name, x in weights.items())
