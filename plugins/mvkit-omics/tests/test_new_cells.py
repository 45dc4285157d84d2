"""Mapping of new cells: what is trained, what stays, and how far old latents move."""

import attrs
import pytest
import torch
from mvkit_omics import denoised, feature_relevance, latents, map_new
from question_models import BATCHES, cells, model_of

import mvkit
from mvkit import Batch, Modality, Model, RequestError

FIT = {"epochs": 3, "lr": 0.01, "seed": 0, "progress": False}


@pytest.fixture(scope="module")
def trained():
    model = model_of()
    mvkit.fit(model, cells(60), epochs=2, seed=0, progress=False)
    return model


def new_cells(level="p9", n=24):
    rows = cells(n, seed=7)
    extra = {**rows.extra, "batch": [level] * n}
    return attrs.evolve(rows, extra=extra)


def without_batch(rows):
    return attrs.evolve(rows, extra={"id": rows.extra["id"]})


def check_bits(before, mapped):
    """All that is not of the new level has its bits; returns how many tensors grew."""
    widened = 0
    for name, value in mapped.model.state_dict().items():
        known = before[name]
        if value.shape == known.shape:
            assert torch.equal(value, known), name
            continue
        widened += 1
        axis = next(i for i in range(value.ndim) if value.shape[i] != known.shape[i])
        assert torch.equal(value.narrow(axis, 0, known.shape[axis]), known), name
    return widened


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "options",
    [
        {"prior": {"name": "mog", "components": 3}},
        {"prior": {"name": "vamp", "components": 3}, "aggregator": "mopoe"},
        {"prior": "learnable", "objective": "iwae"},
    ],
)
def test_priors_stay_as_they_are(options):
    model = model_of(**options)
    mvkit.fit(model, cells(30), epochs=1, seed=0, progress=False)
    before = state(model)
    old = cells(20, seed=3)
    mapped = map_new(model, new_cells(), old=old, **{**FIT, "epochs": 1})
    assert check_bits(before, mapped) >= 4
    assert mapped.moved.loc["all", "largest"] == 0


def test_recipes_are_mapped_too():
    model = model_of()
    model = mvkit.recipes.totalvi(
        model.modalities, 2, covariates={"batch": BATCHES}, hidden=(8,), seed=0
    )
    mvkit.fit(model, cells(30), epochs=1, seed=0, progress=False)
    before = state(model)
    mapped = map_new(model, new_cells(), old=cells(20, seed=3), **{**FIT, "epochs": 1})
    assert check_bits(before, mapped) >= 4
    assert mapped.moved.loc["all", "largest"] == 0


def test_the_level_alone_is_trained_and_old_latents_stay(trained):
    before = state(trained)
    old = cells(40, seed=3)
    mapped = map_new(trained, without_batch(new_cells()), "batch", "p9", old=old, **FIT)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, before[name])  # the model itself is as it was
    assert check_bits(before, mapped) >= 4
    assert mapped.moved.loc["all", "largest"] == 0
    assert mapped.moved["cells"].to_dict() == {"p1": 14, "p2": 13, "p3": 13, "all": 40}
    assert (mapped.moved["mean"] == 0).all()
    assert torch.equal(mapped.model.encode(old), trained.encode(old))
    assert len(mapped.history.rows) == FIT["epochs"]


def test_the_new_level_is_trained_from_where_it_began(trained):
    rows = new_cells()
    mapped = map_new(trained, rows, like="p2", **FIT)
    begun = map_new(trained, rows, like={"p9": "p2"}, **{**FIT, "lr": 1e-12})
    as_p2 = attrs.evolve(rows, extra={**rows.extra, "batch": ["p2"] * len(rows)})
    assert torch.allclose(begun.model.encode(rows), trained.encode(as_p2), atol=1e-8)
    assert not torch.allclose(mapped.model.encode(rows), trained.encode(as_p2), atol=1e-3)
    losses = mapped.history.rows
    assert losses[-1]["loss"] < losses[0]["loss"]


def test_several_levels_are_found_in_the_data(trained):
    rows = new_cells()
    rows = attrs.evolve(rows, extra={**rows.extra, "batch": ["p8", "p9", "p1"] * 8})
    mapped = map_new(trained, rows, **FIT)
    assert mapped.model.schema.covariates["batch"].levels == (*BATCHES, "p8", "p9")
    assert mapped.moved is None


def test_a_mapped_model_is_saved_and_answers_questions(trained, tmp_path):
    rows = new_cells()
    mapped = map_new(trained, rows, **FIT)
    file = tmp_path / "mapped.safetensors"
    mvkit.save(mapped.model, file)
    again = mvkit.load(file)
    assert torch.equal(again.encode(rows), mapped.model.encode(rows))
    table = denoised(again, rows, "rna", covariates={"batch": "all"}, n=None)
    assert abs(table.sum(1) - 1).max() < 1e-9
    assert again.training_rows == trained.training_rows


def test_old_latents_that_move_are_reported(trained):
    old = cells(40, seed=3)
    mapped = map_new(trained, new_cells(), old=old, trainable=["encoders.rna.*"], **FIT)
    distance = (mapped.model.encode(old) - trained.encode(old)).norm(dim=1)
    batches = old.extra["batch"]
    for level in BATCHES:
        own = [float(distance[i]) for i in range(40) if batches[i] == level]
        assert mapped.moved.loc[level, "mean"] == pytest.approx(sum(own) / len(own), rel=1e-12)
        assert mapped.moved.loc[level, "largest"] == pytest.approx(max(own), rel=1e-12)
        assert mapped.moved.loc[level, "mean"] > 0
    z = trained.encode(old)
    spread = (sum(float((row - z.mean(0)).square().sum()) for row in z) / 40) ** 0.5
    mean = float(distance.mean())
    assert mapped.moved.loc["all", "relative"] == pytest.approx(mean / spread, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "p1"}, "add_level: 'batch' has the level 'p1' already"),
        (
            {"level": "p7"},
            "map_new: the data have 'batch' 'p9', which is neither known nor in level='p7'; expected all new levels; leave level out to take them all",
        ),
        (
            {"covariate": "donor"},
            "map_new: the data say nothing of 'donor'; expected a level: level='new'",
        ),
        (
            {"covariate": "donor", "level": ["a", "b"]},
            "map_new: 2 levels, and the data say nothing of 'donor'; expected one level, or the column 'donor' in the data's extra",
        ),
        (
            {"covariate": "donor", "level": "a"},
            "add_level: no covariate 'donor' in the model; known: 'batch'",
        ),
        ({"epochs": 0}, "map_new: epochs=0; expected a whole number of at least 1"),
    ],
)
def test_what_cannot_be_mapped_is_said(trained, options, message):
    rows = new_cells("p1" if options.get("level") == "p1" else "p9")
    with pytest.raises(RequestError) as error:
        map_new(trained, rows, **{**FIT, **options})
    assert str(error.value) == message


def test_known_levels_and_stacks_are_refused(trained):
    with pytest.raises(RequestError, match="the model knows all levels of 'batch' in the data"):
        map_new(trained, cells(), **FIT)
    with pytest.raises(RequestError, match="map_new: got int; expected a Model"):
        map_new(3, cells(), **FIT)


@torch.no_grad()
def test_relevance_of_log_linear_features_is_that_of_their_weights():
    modalities = {
        "x": Modality((2,), decoder="linear"),
        "rna": Modality((4,), "poisson", decoder="linear", features=("a", "b", "c", "d")),
    }
    model = Model(modalities, latent_dim=3, seed=0).double()
    rows = Batch({"x": torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).double()})
    table = feature_relevance(model, rows, "rna")
    z = model.encode(rows)
    start = model.decoders["rna"](torch.zeros(1, 3).double())[0]
    for d in range(3):
        sd = float(z[:, d].std(correction=0))
        weights = model.decoders["rna"](torch.eye(3).double()[[d]])[0] - start
        for f, name in enumerate("abcd"):
            expected = 2 * abs(float(weights[f])) * sd / torch.tensor(2.0).double().log().item()
            assert table.loc[name, f"z{d}"] == pytest.approx(expected, rel=1e-6)
    signed = feature_relevance(model, rows, "rna", signed=True)
    assert (abs(signed) - table).abs().max(axis=None) < 1e-6
    assert (signed < 0).any(axis=None)


@torch.no_grad()
def test_relevance_is_the_mean_of_a_loop_over_cells_and_levels(trained):
    rows = cells(9)
    table = feature_relevance(
        trained, rows, "protein", scale="mean", covariates={"batch": ["p1", "p3"]}
    )
    z = trained.encode(rows)
    spread = z.std(0, correction=0)
    for d in range(2):
        step = torch.zeros(2).double()
        step[d] = spread[d]
        total = torch.zeros(3).double()
        for level in ("p1", "p3"):
            for i in range(9):
                sides = []
                for sign in (1, -1):
                    at = (z[i] + sign * step)[None]
                    values = trained.decode(at, covariates={"batch": level}, background=False)
                    sides.append(values["protein"][0])
                total += (sides[0] - sides[1]).square()
        expected = (total / 18).sqrt()
        assert abs(table[f"z{d}"].to_numpy() - expected.numpy()).max() < 1e-9


def test_values_below_zero_have_no_logarithm():
    model = Model({"x": Modality((2,), decoder="linear")}, latent_dim=1, seed=0)
    torch.nn.init.constant_(model.decoders["x"].network[-1].bias, -9.0)
    rows = {"x": torch.randn(6, 2, generator=torch.Generator().manual_seed(0))}
    with pytest.raises(RequestError, match="'x' has means below 0, without a logarithm"):
        feature_relevance(model, rows)
    assert feature_relevance(model, rows, scale="mean").shape == (2, 1)
    assert latents(model, rows).shape == (6, 1)
