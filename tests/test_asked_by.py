"""Messages name the function that the user called, not the one that it calls in turn."""

import pytest
import torch
from helpers import model, rows

import mvkit
from mvkit import Ensemble, RequestError
from mvkit.core.asked_by import asked_by, asker


def explained():
    return model("poe", objective="iwae", likelihood="normal", missingness="self")


def test_the_outermost_function_is_named():
    assert asker("translate") == "translate"
    with asked_by("impute"):
        assert asker("translate") == "impute"
        with asked_by("evaluate"):
            assert asker("translate") == "impute"
        assert asker("translate") == "impute"
    assert asker("translate") == "translate"


def test_an_error_inside_leaves_nothing_behind():
    with pytest.raises(ArithmeticError), asked_by("impute"):
        raise ArithmeticError
    assert asker("translate") == "translate"


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "gmm"}, "sampler 'gmm' is not fitted yet"),
        ({"sampler": 3}, "sampler=3; expected the name of a sampler"),
        ({"refine": ["a"]}, ".*refiner"),
        ({"refine": 3}, "refine=3; expected True, False, or names of modalities"),
    ],
)
def test_impute_and_translate_name_themselves(options, message, several):
    own = model()
    own = Ensemble([own, own]) if several else own
    with pytest.raises(RequestError, match=f"^impute: ({message})"):
        mvkit.impute(own, rows(4), n=2, **options)
    with pytest.raises(RequestError, match=f"^translate: ({message})"):
        own.translate(rows(4), **options)


def test_samplers_and_what_is_missing_do_not_go_together():
    own = explained()
    complete = rows(40, missing=False)
    mvkit.fit_sampler(own, complete, {"name": "gmm", "conditional": True})
    batch = mvkit.Batch({name: x.clone() for name, x in rows(4).data.items()})
    batch.data["a"][0, 0] = torch.nan
    message = "a sampler knows nothing of why values are missing"
    with pytest.raises(RequestError, match=f"^impute: {message}"):
        mvkit.impute(own, batch, n=2, sampler="gmm")
    with pytest.raises(RequestError, match=f"^translate: {message}"):
        own.translate(batch, sampler="gmm")
    report = mvkit.evaluate(own, batch, ["reconstruction"], sampler="gmm")
    assert any(f"reconstruction: evaluate: {message}" in note for note in report.notes)
