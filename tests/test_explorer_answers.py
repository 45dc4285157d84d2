"""What the explorer answers of rows, against what the model says when it is asked directly."""

import base64
import json

import numpy as np
import pandas as pd
import pytest
import torch
from einops import rearrange
from test_samplers import stack

import mvkit
from mvkit import Batch, Covariate, DataError, Modality, MultimodalDataset, RequestError
from mvkit.apps.explorer_answers import Explorer
from mvkit.apps.explorer_draws import DRAWS, without_features
from mvkit.apps.explorer_requests import Asked
from mvkit.core import noise
from mvkit.data.table_layout import layout_of
from mvkit.models.asked_rows import stated_covariates
from mvkit.testing import injected_noise

ROWS = 40
TINY = {"encoder": {"name": "mlp", "hidden": [8]}, "decoder": {"name": "mlp", "hidden": [8]}}


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pictures():
    """A model of pictures and of named numbers, with clusters, covariates and private latents."""
    data = {"a": numbers(ROWS, 1, 4, 4).sigmoid(), "b": numbers(ROWS, 3, seed=1) * 9 + 50}
    data["b"][1, 2] = torch.nan
    data["a"][2] = torch.nan
    covariates = {"age": torch.linspace(20, 80, ROWS), "site": ["x", "y"] * (ROWS // 2)}
    extra = {"id": [f"p{i}" for i in range(ROWS)], "label": ["ill", "well"] * (ROWS // 2)}
    rows = Batch(data, extra=extra, covariates=covariates)
    modalities = {
        "a": Modality((1, 4, 4), private_dim=2, **TINY),
        "b": Modality((3,), features=("crp", "iron", "zinc"), **TINY),
    }
    rows = MultimodalDataset(rows, modalities).fit_transforms({"b": "standardise"})
    declared = {"age": Covariate(), "site": ("x", "y")}
    options = {"latent_dim": 2, "covariates": declared, "prior": "mog", "seed": 0}
    model = mvkit.Model(rows.modalities, **options)
    mvkit.fit(model, rows, epochs=2, progress=False)
    return model.eval(), rows


@pytest.fixture(scope="module")
def explorer(pictures):
    model, rows = pictures
    return Explorer(model, rows, title="a run")


@pytest.fixture(scope="module")
def mixed():
    """A model of a table of numbers, whole ones, days, bits, grades and categories with gaps."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "age": 60 + 9 * random.normal(size=ROWS),
            "visits": random.poisson(3, ROWS).astype(float),
            "seen": pd.Timestamp("2024-03-01")
            + pd.to_timedelta(random.integers(0, 90, ROWS), "D"),
            "smokes": random.uniform(size=ROWS) < 0.5,
            "stage": random.integers(0, 3, ROWS),
            "site": random.choice(["<north>", "south", "west"], ROWS),
        },
        index=[f"p{i}" for i in range(ROWS)],
    )
    table["stage"] = pd.Categorical.from_codes(
        table["stage"], ["mild", "fair", "bad"], ordered=True
    )
    table.loc["p3", ["visits"]] = np.nan
    table.loc["p4", ["site"]] = None
    layout = layout_of(table)
    modalities = layout.modalities()
    rows = MultimodalDataset.from_tables(layout.split(table), modalities=modalities)
    rows = rows.fit_transforms({"numbers": "standardise"})
    model = mvkit.Model(rows.modalities, latent_dim=2, seed=0)
    mvkit.fit(model, rows, epochs=2, progress=False)
    return model.eval(), rows, layout, table


def explorer_of(mixed):
    model, rows, layout, _ = mixed
    return Explorer(model, rows, layouts={"table": layout})


def pixels(text, shape=(4, 4)):
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape)


def drawn(model, row, given, **options):
    """Means, draws of the likelihood and shown draws of a row, asked for one after another."""
    generator = noise.seeded(0)
    options = {"given": given, "empty": "prior", "generator": generator, **options}
    means = model.translate(row, n=DRAWS, **options)
    samples = model.translate(row, n=DRAWS, sample=True, **options)
    return means, samples, model.translate(row, n=2, **options)


def test_what_is_hidden_is_imputed_from_the_rest(pictures, explorer):
    model, rows = pictures
    answer = explorer.answer({"row": "p4", "given": ["b"], "level": 0.8})
    means, samples, shown = drawn(model, rows[4], ["b"])
    picture = answer["modalities"]["a"]
    assert picture["given"] is False
    expected = (means["a"].mean(0)[0, 0].clamp(0, 1) * 255).round()
    np.testing.assert_allclose(pixels(picture["mean"]), expected, atol=1)
    for i in range(2):
        expected = (shown["a"][i, 0, 0].clamp(0, 1) * 255).round()
        np.testing.assert_allclose(pixels(picture["draws"][i]), expected, atol=1)
    # the 20th smallest of 199 draws, and the 20th largest
    ordered = samples["a"][:, 0, 0].sort(0).values.clamp(0, 1)
    for end, place in (("low", 19), ("high", DRAWS - 20)):
        np.testing.assert_allclose(pixels(picture[end]), (ordered[place] * 255).round(), atol=1)
    real = (rows.batch.data["a"][4, 0] * 255).round()
    np.testing.assert_allclose(pixels(picture["real"]), real, atol=1)


def test_features_have_names_intervals_and_their_units(pictures, explorer):
    model, rows = pictures
    answer = explorer.answer({"number": 1, "given": ["a"]})
    (view,) = [view for view in explorer.description()["modalities"] if view["name"] == "b"]
    assert view["features"] == ("crp", "iron", "zinc")
    means, samples, _ = drawn(model, rows[1], ["a"])
    cells = answer["modalities"]["b"]
    np.testing.assert_allclose(cells["mean"], means["b"].mean(0)[0], rtol=1e-4)
    ordered = samples["b"][:, 0].sort(0).values
    np.testing.assert_allclose(cells["low"], ordered[9], rtol=1e-4)
    np.testing.assert_allclose(cells["high"], ordered[DRAWS - 10], rtol=1e-4)
    real = rows.batch.data["b"][1]
    np.testing.assert_allclose(cells["real"][:2], real[:2], rtol=1e-4)
    assert cells["real"][2] is None
    inside = (ordered[9] <= real) & (real <= ordered[DRAWS - 10])
    assert cells["inside"] == [*inside[:2].tolist(), None]


def test_all_that_a_row_has_is_given_where_nothing_is_said(explorer):
    assert explorer.answer({"number": 2})["modalities"]["a"]["given"] is False
    answer = explorer.answer({"number": 3})
    assert answer["modalities"]["a"]["given"]
    assert answer == explorer.answer({"number": 3, "given": ["a", "b"]})


def test_nothing_ticked_is_the_prior(pictures, explorer):
    model, rows = pictures
    answer = explorer.answer({"number": 0, "given": []})
    assert answer["clusters"] is None
    means, _, _ = drawn(model, rows[0], ())
    np.testing.assert_allclose(answer["modalities"]["b"]["mean"], means["b"].mean(0)[0], rtol=1e-4)


def test_rows_say_what_they_have(explorer):
    row = explorer.row({"row": "p2"})
    assert row == {
        "number": 2,
        "id": "p2",
        "label": "ill",
        "observed": ["b"],
        "covariates": {"age": pytest.approx(20 + 60 * 2 / 39, rel=1e-4), "site": "x"},
    }
    assert explorer.row({"number": 39})["id"] == "p39"


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"row": "p44x"}, "no row 'p44x'; did you mean"),
        ({"row": "?"}, "no row '?'; expected an id, such as 'p0'"),
        ({"number": 40}, "no row number 40; expected one of 0 to 39"),
        ({"number": -1}, "number"),
        ({"number": True}, "number"),
        ({}, "which row?"),
        ({"number": 2, "given": ["a"]}, "'a' is ticked, but the row lacks it"),
        ({"number": 0, "given": ["c"]}, "no modality 'c'"),
        ({"number": 0, "given": "a"}, "expected a list of names"),
        ({"number": 0, "hidden": {"b": ["crq"]}}, "no feature of 'b' 'crq'; did you mean 'crp'?"),
        ({"number": 0, "hidden": {"x": []}}, "no modality 'x'"),
        ({"number": 0, "hidden": []}, "expected lists of features by modality"),
        ({"number": 0, "level": 1.5}, "expected a share between 0 and 1"),
        ({"number": 0, "seed": 2**60}, "expected a whole number up to"),
        ({"number": 0, "dim": 2, "shift": 1}, "no latent dimension 2; expected one of 0 to 1"),
        ({"number": 0, "dim": 0, "shift": 1e9}, "expected a number from -100 to 100"),
        ({"number": 0, "dim": 0, "shift": "x"}, "expected a number from -100 to 100"),
        ({"number": 0, "cluster": 99}, "no cluster 99"),
        ({"number": 0, "sampler": "gmm"}, "sampler 'gmm' is not fitted yet"),
        ({"number": 0, "refine": True}, "no refiner was trained"),
        ({"number": 0, "refine": 1}, "expected true or false"),
        ({"number": 0, "covariates": {"site": "z"}}, "site"),
        ({"number": 0, "covariates": {"sito": "x"}}, "no covariate 'sito'"),
        ({"number": 0, "covariates": {"site": {}}}, "expected a word or a number"),
        ({"number": 0, "covariates": []}, "expected values by name"),
        ({"number": 0, "sead": 1}, "unknown option 'sead'; did you mean 'seed'?"),
        ({"row": 5}, "expected text"),
    ],
)
def test_questions_that_cannot_be(explorer, question, message):
    with pytest.raises((RequestError, DataError)) as error:
        explorer.answer(question)
    assert message in str(error.value)


def test_clusters_are_those_of_what_is_ticked(pictures, explorer):
    model, rows = pictures
    answer = explorer.answer({"number": 5, "given": ["b"]})
    hidden = model.conform(rows[5]).hide(["b"])
    expected = model.clusters(hidden, soft=True)[0]
    np.testing.assert_allclose(answer["clusters"], expected, rtol=1e-4, atol=1e-6)


def test_rows_of_a_cluster_have_the_rows_covariates(pictures, explorer):
    model, rows = pictures
    answer = explorer.answer({"number": 7, "cluster": 1, "dim": 0, "shift": 1.0})
    stated = stated_covariates(model.conform(rows[7]))
    options = {"cluster": 1, "covariates": stated, "generator": noise.seeded(0)}
    expected = model.sample(DRAWS, **options)["b"].mean(0)
    np.testing.assert_allclose(answer["modalities"]["b"]["mean"], expected, rtol=1e-4)
    assert answer != explorer.answer({"number": 7, "cluster": 0, "dim": 0, "shift": 1.0})


def test_covariates_are_those_that_are_chosen(pictures, explorer):
    model, rows = pictures
    stated = {"site": "y", "age": 70.0}
    cells = explorer.answer({"number": 4, "given": ["a"], "covariates": stated})["modalities"]["b"]
    means, _, _ = drawn(model, rows[4], ["a"], covariates=stated)
    np.testing.assert_allclose(cells["mean"], means["b"].mean(0)[0], rtol=1e-4)
    own = explorer.answer({"number": 4, "given": ["a"]})["modalities"]["b"]
    assert own["mean"] != cells["mean"]


def test_covariates_far_from_training_are_noted(explorer):
    answer = explorer.answer({"number": 4, "covariates": {"age": 4000.0}})
    (note,) = answer["notes"]
    assert "age" in note
    assert explorer.answer({"number": 4})["notes"] == []


def test_a_latent_that_moves_changes_all_modalities(pictures, explorer):
    model, rows = pictures
    asked = {"number": 4, "given": ["a"], "dim": 1, "shift": 2.0, "covariates": {"site": "y"}}
    answer = explorer.answer(asked)["modalities"]
    row = model.conform(rows[4])
    z = model.encode(row, ["a"])[0]
    private = {"a": model.private(row)["a"][0]}  # of what is given: its own
    covariates = {**stated_covariates(row), "site": "y"}
    before = model.decode(z, private, covariates=covariates)
    after = model.decode(z + torch.tensor([0.0, 2.0]), private, covariates=covariates)
    np.testing.assert_allclose(answer["b"]["moved"], after["b"], rtol=1e-4)
    change = after["b"] - before["b"]
    np.testing.assert_allclose(answer["b"]["change"], change, rtol=1e-3, atol=1e-5)
    for name, expected in (("centre", before), ("moved", after)):
        shade = (expected["a"][0].clamp(0, 1) * 255).round()
        np.testing.assert_allclose(pixels(answer["a"][name]), shade, atol=1)


def test_features_that_are_unticked_are_not_seen(pictures, explorer):
    model, rows = pictures
    answer = explorer.answer({"number": 4, "given": ["b"], "hidden": {"b": ["iron"]}})
    gaps = {name: x.clone() for name, x in rows[4].data.items()}
    gaps["b"][0, 1] = torch.nan
    row = Batch(gaps, extra=rows[4].extra)
    means, _, _ = drawn(model, row, ["b"])
    cells = answer["modalities"]["b"]
    np.testing.assert_allclose(cells["mean"], means["b"].mean(0)[0], rtol=1e-4)
    assert cells["real"][1] is not None  # it is shown beside what is imputed
    seen = explorer.answer({"number": 4, "given": ["b"]})
    assert seen["modalities"]["b"]["mean"] != cells["mean"]


def test_a_modality_without_a_ticked_feature_is_not_given(pictures, explorer):
    hidden = {"b": ["crp", "iron", "zinc"]}
    answer = explorer.answer({"number": 4, "hidden": hidden})
    assert answer["modalities"]["b"]["given"] is False
    without = explorer.answer({"number": 4, "given": ["a"]})
    assert answer == without


def test_totals_that_rows_are_exposed_to_leave_out_what_is_hidden():
    counts = torch.tensor([[3.0, 4.0, 5.0], [1.0, 2.0, 8.0]])
    modality = Modality((3,), "negative_binomial", exposure="total", **TINY)
    model = mvkit.Model({"counts": modality}, latent_dim=1, seed=0)
    row = model.conform({"counts": counts}).take([0])
    seen = without_features(row, {"counts": [1]})
    assert float(seen.exposure["counts"]) == 8.0
    gaps = counts[:1].clone()
    gaps[0, 1] = torch.nan
    torch.testing.assert_close(model.encode(seen), model.encode({"counts": gaps}))


def test_counts_with_an_exposure_are_explored():
    counts = torch.poisson(numbers(ROWS, 3).exp() * 5, generator=torch.Generator().manual_seed(1))
    modality = Modality((3,), "negative_binomial", exposure="total", **TINY)
    model = mvkit.Model({"counts": modality, "b": (2,)}, latent_dim=1, seed=0).eval()
    data = MultimodalDataset(
        Batch({"counts": counts + 1, "b": numbers(ROWS, 2)}), model.modalities
    )
    answer = Explorer(model, data).answer({"number": 0, "dim": 0, "shift": 0.5})
    cells = answer["modalities"]["counts"]
    assert all(float(low).is_integer() for low in cells["low"])
    z = model.encode(data[0])[0] + 0.5  # (1,)
    exposure = {"counts": float(counts[0].sum() + 3)}
    expected = model.decode(z, exposure=exposure)["counts"].flatten()
    np.testing.assert_allclose(cells["moved"], expected, rtol=1e-4)


def test_columns_of_tables_are_shown_as_they_are_called(mixed):
    model, rows, layout, table = mixed
    answer = explorer_of(mixed).answer({"row": "p5", "given": ["numbers"]})
    cells = {}
    for name, features in layout.groups.items():
        shown = answer["modalities"][name]
        for i, feature in enumerate(features):
            cells[feature] = {key: shown[key][i] for key in shown if isinstance(shown[key], list)}
    own = table.loc["p5"]
    assert cells["seen"]["real"] == own["seen"].date().isoformat()
    assert cells["seen"]["low"] <= cells["seen"]["high"]
    assert cells["visits"]["real"] == own["visits"]
    assert cells["visits"]["mean"] == round(cells["visits"]["mean"])
    assert table["age"].min() - 1e-4 <= cells["age"]["low"] <= cells["age"]["high"]
    assert cells["smokes"]["real"] == ("yes" if own["smokes"] else "no")
    assert cells["stage"]["real"] == own["stage"]
    assert {cells["stage"][end] for end in ("low", "high")} <= {"mild", "fair", "bad"}
    assert cells["site"]["real"] == own["site"]


def far_apart(site, shape, dtype, device):
    """Noise that is so large that intervals reach beyond all values of a table."""
    draw = torch.rand if site.startswith("choice/") else torch.randn
    factor = 1 if site.startswith("choice/") else 20
    return factor * draw(shape, dtype=dtype, device=device, generator=noise.seeded(0))


def test_intervals_that_end_at_the_real_value_hold_it(mixed):
    """They end at the largest value of the table, which went through the model's float32."""
    explorer = explorer_of(mixed)
    _, _, layout, table = mixed
    ends = 0
    for place, column in enumerate(layout.groups["numbers"]):
        for row in (table[column].idxmin(), table[column].idxmax()):
            asked = {"row": row, "given": [], "level": 0.999}
            with injected_noise.noise(far_apart):
                cells = explorer.answer(asked)["modalities"]["numbers"]
            ends += cells["real"][place] in (cells["low"][place], cells["high"][place])
            assert cells["inside"][place], (row, column)
    assert ends == 2 * len(layout.groups["numbers"])


def test_classes_have_probabilities_and_sets(mixed):
    model, rows, _, table = mixed
    answer = explorer_of(mixed).answer({"row": "p5", "given": ["numbers"], "dim": 0, "shift": 3})
    site = answer["modalities"]["site"]
    generator = noise.seeded(0)
    options = {"given": ["numbers"], "units": "model", "generator": generator, "n": DRAWS}
    p = model.translate(rows[5], **options)["site"].mean(0)[0, 0]
    words = ["<north>", "south", "west"]
    assert site["mean"] == [words[int(p.argmax())]]
    np.testing.assert_allclose(site["share"], p.max(), rtol=1e-4)
    order = p.argsort(descending=True)
    needed = int((p[order].cumsum(0) < 0.9).sum()) + 1
    assert set(site["set"][0]) == {words[int(i)] for i in order[:needed]}
    assert site["inside"] == [table.loc["p5", "site"] in site["set"][0]]
    z = model.encode(rows[5], ["numbers"])[0]
    both = model.decode(torch.stack([z, z + torch.tensor([3.0, 0.0])]), units="model")["site"]
    change = (both[1] - both[0]).abs().sum() / 2
    np.testing.assert_allclose(site["change"], [change], rtol=1e-3, atol=1e-5)


def test_what_a_row_of_a_table_lacks(mixed):
    explorer = explorer_of(mixed)
    assert "site" not in explorer.row({"row": "p4"})["observed"]
    answer = explorer.answer({"row": "p4"})
    assert answer["modalities"]["site"]["real"] == [None]
    assert answer["modalities"]["site"]["inside"] == [None]
    with pytest.raises(RequestError, match="'site' is ticked, but the row lacks it"):
        explorer.answer({"row": "p4", "given": ["site"]})
    visits = explorer.answer({"row": "p3"})["modalities"]["numbers"]
    assert visits["real"][1] is None


def test_two_levels_are_explored():
    model = stack().eval()
    shapes = {name: modality.shape for name, modality in model.modalities.items()}
    data = {name: numbers(6, *shape, seed=2).sigmoid() for name, shape in shapes.items()}
    rows = MultimodalDataset(Batch(data), model.modalities)
    first, *rest = model.names
    asked = {"number": 0, "given": [first], "dim": 0, "shift": 1.0}
    answer = Explorer(model, rows).answer(asked)["modalities"]
    row = model.conform(rows[0])
    z = model.encode(row, [first])[0]
    z[0] += 1.0
    p = model.decode(z)["b"].flatten()  # of bits
    assert rest == ["b"]
    assert answer["b"]["moved"] == [str(int(share > 0.5)) for share in p]
    np.testing.assert_allclose(answer["b"]["moved_share"], torch.maximum(p, 1 - p), rtol=1e-4)
    assert Explorer(model, rows).description()["unrefined"] == "a stack has no refiners"


def test_a_model_that_explains_gaps_imputes_by_their_weights():
    data = {"a": numbers(ROWS, 3), "b": numbers(ROWS, 2, seed=1)}
    data["a"][0, 1] = torch.nan
    model = mvkit.Model({"a": (3,), "b": (2,)}, latent_dim=1, missingness="self", seed=0).eval()
    rows = MultimodalDataset(Batch(data), model.modalities)
    answer = Explorer(model, rows).answer({"number": 0})["modalities"]
    options = {"n": DRAWS, "generator": noise.seeded(0), "latent": "mean"}
    expected = model.translate(rows[0], **options)["a"].mean(0)[0]
    np.testing.assert_allclose(answer["a"]["mean"], expected, rtol=1e-4, atol=1e-6)


def test_rows_without_ids_are_called_by_their_numbers():
    model = mvkit.Model({"a": (3,)}, latent_dim=1, seed=0).eval()
    explorer = Explorer(model, MultimodalDataset(Batch({"a": numbers(5, 3)}), model.modalities))
    assert explorer.row({"row": "4"})["id"] == "4"
    about = explorer.description()
    assert about["numbered"]
    assert about["ids"] == []
    with pytest.raises(RequestError, match="no row '5'; expected a number from 0 to 4"):
        explorer.row({"row": "5"})


def test_pictures_beyond_0_and_1_are_shown_in_their_range():
    x = numbers(6, 3, 2, 2) * 100
    x[0, :, 0, 0] = torch.nan
    model = mvkit.Model({"a": (3, 2, 2)}, latent_dim=1, seed=0).eval()
    explorer = Explorer(model, MultimodalDataset(Batch({"a": x}), model.modalities))
    known = x[~x.isnan()]
    low, high = float(known.min()), float(known.max())
    picture = explorer.answer({"number": 1})["modalities"]["a"]
    expected = ((x[1] - low) / (high - low) * 255).round()
    shade = pixels(picture["real"], (2, 2, 3))
    np.testing.assert_allclose(shade, rearrange(expected, "c h w -> h w c"), atol=1)
    assert picture["absent"] is None
    lacking = explorer.answer({"number": 0})["modalities"]["a"]
    assert pixels(lacking["absent"], (2, 2)).tolist() == [[1, 0], [0, 0]]


def test_pictures_of_bits_have_no_intervals():
    modality = Modality((1, 2, 2), "bernoulli", **TINY)
    model = mvkit.Model({"a": modality}, latent_dim=1, seed=0).eval()
    x = (numbers(6, 1, 2, 2) > 0).float()
    explorer = Explorer(model, MultimodalDataset(Batch({"a": x}), model.modalities))
    picture = explorer.answer({"number": 0})["modalities"]["a"]
    assert "low" not in picture
    assert set(pixels(picture["real"], (2, 2)).flatten().tolist()) <= {0, 255}
    assert 0 < pixels(picture["mean"], (2, 2)).min() <= pixels(picture["mean"], (2, 2)).max() < 255


def test_answers_are_json_without_numbers_that_it_lacks(mixed, explorer):
    for one in (explorer, explorer_of(mixed)):
        asked = {"number": 3, "given": [], "dim": 0, "shift": -1.0}
        for plain in (one.description(), one.row({"number": 3}), one.answer(asked)):
            assert json.loads(json.dumps(plain, allow_nan=False))


def test_seeds_and_levels_change_draws_and_intervals(explorer):
    plain, other = (explorer.answer({"number": 4, "given": ["a"], "seed": i}) for i in (0, 1))
    assert plain["modalities"]["b"]["low"] != other["modalities"]["b"]["low"]
    narrow = explorer.answer({"number": 4, "given": ["a"], "level": 0.5})["modalities"]["b"]
    wide = plain["modalities"]["b"]
    assert all(a < b for a, b in zip(narrow["width"], wide["width"], strict=True))


def test_what_is_not_asked_for_is_as_by_default():
    assert Asked.of({"number": 1}) == Asked(number=1)
    assert Asked.of({"given": None, "dim": None, "sampler": None}) == Asked()
