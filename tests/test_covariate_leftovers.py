"""Covariates, exposures and row weights at the doors that were left: pairs, streams, numbers far
from training, and input that an attacker would try.
"""

import json
import re

import numpy as np
import pytest
import torch

import mvkit
from mvkit import Batch, Covariate, DataError, Modality, Model, MultimodalDataset
from mvkit.data.pairing import pair_by_label
from mvkit.registry.spec import to_dict

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


# what a stream tells


def people(n, seed=0):
    generator = np.random.default_rng(seed)
    age = generator.uniform(20, 80, n)
    return {
        "a": generator.normal(size=(n, 3)) + age[:, None] / 20,
        "n": generator.poisson(5.0, (n, 4)).astype(float),
        "age": age,
        "site": [["x", "y"][i % 2] for i in range(n)],
    }


def items(n=60):
    data = people(n)
    rows = []
    for i in range(n):
        row = {name: torch.tensor(data[name][i]).float() for name in ("a", "n")}
        rows.append({**row, "age": data["age"][i], "site": data["site"][i]})
    return rows


def model_of_people():
    modalities = {"a": (3,), "n": Modality((4,), "poisson", exposure="total", input="log1p")}
    covariates = {"age": Covariate(), "site": ("x", "y")}
    return Model(modalities, latent_dim=2, covariates=covariates, seed=0)


def loaded(rows):
    batches = []
    for first in range(0, len(rows), 10):
        block = rows[first : first + 10]
        data = {name: torch.stack([row[name] for row in block]) for name in ("a", "n")}
        given = {name: [row[name] for row in block] for name in ("age", "site")}
        batches.append(Batch(data, covariates=given))
    return batches


class Again:
    """An iterable that begins anew at each pass, and is no list."""

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


DOORS = {
    "batches": lambda: Again(loaded(items())),
    "an iterator of batches": lambda: iter(loaded(items())),
    "rows": lambda: mvkit.Pipeline(
        mvkit.data.sources.Stream(Again(items()), ("a", "n")), batch_size=10
    ),
    "an iterator of rows": lambda: mvkit.Pipeline(
        mvkit.data.sources.Stream(iter(items()), ("a", "n")), batch_size=10
    ),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.filterwarnings("error:fit")
def test_streams_standardise_by_their_first_rows(door):
    model = model_of_people()
    seen = []
    rows = mvkit.fit(
        model, DOORS[door](), epochs=1, batch_size=10, progress=False, listeners=[seen.append]
    )
    data = people(60)
    assert model.conditions.centre[0].item() == pytest.approx(data["age"].mean())
    assert model.conditions.spread[0].item() == pytest.approx(data["age"].std())
    assert model.conditions.shares("site").tolist() == [0.5, 0.5]
    totals = np.sort(data["n"].sum(1))
    assert model.decoders["n"].typical_exposure.item() in totals[28:32]
    assert any("learnt of the first 60 rows" in note for note in rows.notes)
    assert rows.rows[-1]["step"] == 6  # no row was lost
    model.sample(3, generator=torch.Generator().manual_seed(0))


def test_streams_train_as_the_same_batches_in_memory():
    weights = []
    for door in ("batches", "an iterator of batches"):
        model = model_of_people()
        mvkit.fit(model, DOORS[door](), epochs=1, seed=0, progress=False)
        weights.append(model.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_streams_whose_first_rows_are_alike_say_so():
    rows = items()
    for row in rows:
        row["age"] = 50.0
        row["site"] = "x"
    model = model_of_people()
    with pytest.warns(UserWarning, match="covariate 'age' is the same in the first rows"):
        mvkit.fit(model, loaded(rows), epochs=1, progress=False)
    assert model.conditions.spread[0].item() == 1.0


def test_rows_beyond_ten_thousand_count_too():
    """Rows in memory and shards that are sorted by site are no rows of one site."""
    n = 10_500
    site = ["x"] * 10_200 + ["y"] * 300
    age = torch.arange(n).double()
    rows = Batch({"a": torch.zeros(n, 1)}, covariates={"site": site, "age": age})
    model = Model({"a": (1,)}, covariates={"site": ("x", "y"), "age": Covariate()}, seed=0)
    mvkit.training.starts.look_at_first_rows(model, mvkit.Pipeline(rows, schema=model.schema))
    assert model.conditions.shares("site").tolist() == pytest.approx([10_200 / n, 300 / n])
    assert model.conditions.centre[0].item() == pytest.approx(age.mean().item())
    assert len(model.conditions.rows) == 10_000
    assert model.conditions.rows[:, 1].mean().item() == pytest.approx(300 / n, rel=0.02)


# numbers far outside training


def trained_on_ages():
    model = model_of_people()
    mvkit.fit(model, loaded(items()), epochs=1, progress=False)
    return model


def aged(ages):
    n = len(ages)
    return Batch(
        {"a": torch.zeros(n, 3), "n": torch.ones(n, 4)},
        covariates={"age": ages, "site": ["x"] * n},
    )


FAR = r"covariate 'age': row 1 is 600, far outside training \(2\d\.\d* to 7\d\.\d*\)"
USES = {
    "encode": lambda model, rows: model.encode(rows),
    "posterior": lambda model, rows: model.posterior(rows),
    "translate": lambda model, rows: model.translate(rows),
    "log_likelihood": lambda model, rows: model.log_likelihood(rows, n=2),
    "loss": lambda model, rows: model.loss(rows),
    "clusters": lambda model, rows: model.conform(rows),
    "impute": lambda model, rows: mvkit.impute(model, rows, n=2),
    "evaluate": lambda model, rows: mvkit.evaluate(model, rows, metrics=["likelihood"]),
}


def told(function, *arguments):
    with pytest.warns(UserWarning, match="far outside") as caught:
        function(*arguments)
    return [str(w.message) for w in caught if "far outside" in str(w.message)]


@pytest.mark.parametrize("use", USES)
def test_numbers_far_outside_training_are_told_once(use):
    model = trained_on_ages()
    sentences = told(USES[use], model, aged([30.0, 600.0, -300.0]))
    assert len(sentences) == 1
    assert re.match(FAR, sentences[0])
    assert "and so are 1 more" in sentences[0]


@pytest.mark.filterwarnings("error")
def test_numbers_near_training_and_missing_ones_are_not_told():
    model = trained_on_ages()
    model.encode(aged([10.0, 90.0]))
    model.translate(aged([30.0]), covariates={"age": 85.0})
    untrained = model_of_people()
    untrained.encode(aged([600.0, 1.0]))


def test_far_numbers_that_a_caller_states_are_told():
    model = trained_on_ages()
    sentences = told(lambda: model.translate(aged([30.0]), covariates={"age": 600.0}))
    assert sentences[0].startswith("translate: covariate 'age': the value is 600, far outside")
    sentences = told(
        lambda: model.decode(torch.zeros(2, 2), covariates={"age": [30, 700], "site": "x"})
    )
    assert sentences[0].startswith("decode: covariate 'age': value 1 is 700, far outside")


def test_far_numbers_of_validation_data_are_noted():
    model = model_of_people()
    data = loaded(items())
    with pytest.warns(UserWarning, match="fit: validation: covariate 'age': row 0 is 900"):
        history = mvkit.fit(model, data, validation=aged([900.0, 30.0]), epochs=1, progress=False)
    assert any("far outside" in note for note in history.notes)


def test_a_stack_tells_of_far_numbers():
    model = mvkit.recipes.nexus(
        {"a": (3,), "b": (2,)}, latent_dim=2, covariates={"age": Covariate()}, seed=0
    )
    rows = Batch(
        {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}, covariates={"age": torch.arange(20)}
    )
    mvkit.fit(model, rows, epochs=1, progress=False)
    with pytest.warns(UserWarning, match="row 2 is 99, far outside training"):
        model.encode(Batch({"a": torch.zeros(3, 3)}, covariates={"age": [1, 2, 99]}))


# input that cannot be


def counted(exposure, dtype="float32", data=((1.0, 2.0), (0.0, 0.0), (3.0, 1.0))):
    modalities = {"a": Modality((2,), "poisson", exposure="depth"), "b": (1,)}
    model = Model(modalities, latent_dim=2, seed=0).to(getattr(torch, dtype))
    rows = Batch({"a": torch.tensor(data), "b": torch.zeros(3, 1)}, covariates={"depth": exposure})
    return model, rows


@pytest.mark.parametrize(
    ("exposure", "message"),
    [
        ([1.0, 1.0, 0.0], "exposure 'depth' of 'a': row 2 is 0, but something was counted in it"),
        ([1.0, 1e300, 1.0], "depth: row 1 is 1e.300; expected 0, or a number from .* float32"),
        ([1.0, 1.0, 1e-300], "depth: row 2 is 1e-300; expected 0, or a number from"),
        ([1.0, np.inf, 1.0], "^depth: row 1 is inf; expected finite numbers"),
        ([1.0, np.nan, 1.0], "depth: row 1 is nan; expected a finite number of at least 0"),
        ([1.0, -1.0, 1.0], "depth: row 1 is -1.0; expected a finite number of at least 0"),
    ],
)
def test_exposures_that_cannot_be_are_refused(exposure, message):
    model, rows = counted(exposure)
    for use in (model.encode, model.loss, model.log_likelihood):
        with pytest.raises(DataError, match=message):
            use(rows)


def test_exposures_that_float64_holds_are_taken_there():
    model, rows = counted([1.0, 1.0, 1e-300], "float64")
    assert torch.isfinite(model.loss(rows).loss)


def test_rows_without_exposure_may_count_nothing():
    model, rows = counted([1.0, 0.0, 1.0])
    assert torch.isfinite(model.loss(rows).loss)


def test_an_exposure_may_be_missing_where_its_modality_is():
    model, rows = counted([1.0, np.nan, 1.0])
    mask = torch.tensor([[True, True], [False, True], [True, True]])
    hidden = Batch(rows.data, mask, covariates={"depth": rows.extra["depth"]})
    assert torch.isfinite(model.loss(hidden).loss)


@pytest.mark.parametrize("value", [-1, np.nan, np.inf, "x", None, 1e300])
def test_exposures_that_a_caller_states_are_request_errors(value):
    model, rows = counted([1.0, 1.0, 1.0])
    message = "exposure of 'a'.*(expected (finite )?numbers)"
    for where, use in {
        "translate": lambda: model.translate(rows, exposure={"a": value}),
        "decode": lambda: model.decode(torch.zeros(3, 2), exposure={"a": value}),
        "log_likelihood": lambda: model.log_likelihood(rows, exposure={"a": value}, n=2),
    }.items():
        with pytest.raises(mvkit.RequestError, match=f"^{where}: {message}"):
            use()


def test_a_likelihood_of_counts_in_no_exposure_is_refused():
    model, rows = counted([1.0, 1.0, 1.0])
    with pytest.raises(DataError, match="log_likelihood: exposure of 'a': row 0 is 0, but somet"):
        model.log_likelihood(rows, exposure={"a": 0.0}, n=2)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1e300, 1.0, 1.0], "row_weight: row 0 is 1e.300; expected 0, or a number from"),
        ([np.inf, 1.0, 1.0], "^row_weight: row 0 is inf; expected finite numbers"),
        (["x", 1.0, 1.0], "^row_weight: '1.0' is no number|^row_weight: 'x' is no number"),
        ([1e-300] * 3, "row_weight is 0 in all rows"),
        ([0.0] * 3, "row_weight is 0 in all rows"),
    ],
)
def test_weights_that_cannot_be_are_refused(weight, message):
    rows = Batch({"a": torch.randn(3, 2)}, row_weight=weight)
    with pytest.raises((DataError, mvkit.ShapeError), match=message):
        mvkit.fit(Model({"a": (2,)}, seed=0), rows, epochs=1, progress=False)


def test_tiny_weights_are_as_none():
    tiny = Batch({"a": torch.randn(3, 2)}, row_weight=[1.0, 1e-300, 2.0])
    model = Model({"a": (2,)}, seed=0)
    history = mvkit.fit(model, tiny, epochs=2, batch_size=1, progress=False)
    assert np.isfinite(history.rows[-1]["loss"])
    assert all(torch.isfinite(value).all() for value in model.parameters())


def test_whole_numbers_with_gaps_are_levels_still():
    pandas = pytest.importorskip("pandas")
    covariates = {"visit": Covariate((1, 2), missing="average")}
    model = Model({"a": (2,)}, latent_dim=2, covariates=covariates, seed=0)
    values = torch.randn(3, 2)
    for kind in (pandas.array, lambda *a, **k: pandas.Series(pandas.array(*a, **k))):
        visits = kind([1, None, 2], dtype="Int64")
        batch = model.conform(Batch({"a": values}, covariates={"visit": visits}))
        assert batch.covariates["visit"].tolist() == [0, -1, 1]


def test_values_that_no_level_can_be_are_data_errors():
    model = Model({"a": (2,)}, latent_dim=2, covariates={"site": ("x", "y")}, seed=0)
    rows = Batch({"a": torch.randn(2, 2)}, covariates={"site": ["x", {"y": 1}]})
    with pytest.raises(DataError, match=r"'site': row 1 is \{'y': 1\}; expected a word"):
        model.encode(rows)


def test_numbers_without_a_finite_spread_are_refused():
    model = Model({"a": (2,)}, latent_dim=2, covariates={"age": Covariate()}, seed=0)
    rows = Batch({"a": torch.randn(3, 2)}, covariates={"age": [1e308, -1e308, 1.0]})
    with pytest.raises(DataError, match="covariate 'age': numbers are so large"):
        mvkit.fit(model, rows, epochs=1, progress=False)


def test_validation_rows_that_all_weigh_nothing_are_refused():
    """Their loss of 0 made the first epoch's weights the best for good."""
    rows = Batch({"a": torch.randn(6, 2)}, row_weight=[1.0] * 6)
    valid = Batch({"a": torch.randn(3, 2)}, row_weight=[0.0] * 3)
    with pytest.raises(DataError, match="fit: validation: row_weight is 0 in all rows"):
        mvkit.fit(Model({"a": (2,)}, seed=0), rows, validation=valid, epochs=1, progress=False)


LEVELS = {"by": "feature_and_level", "level": "site"}
RESUMED = {
    "standardised": {
        "name": "normal",
        "scale": "trained",
        "by": "feature",
        "outputs": "standardised",
    },
    "decoded": {"name": "student_t", "scale": "decoded", "outputs": "standardised"},
    "foreground_background": {"name": "foreground_background", **LEVELS},
    "negative_binomial": {"name": "negative_binomial", **LEVELS},
}


@pytest.mark.parametrize("kind", RESUMED)
def test_runs_resume_in_the_middle_with_the_same_bits(kind, tmp_path):
    def model():
        modalities = {"a": Modality((3,), RESUMED[kind]), "b": (2,)}
        covariates = {"site": ("x", "y"), "age": Covariate()}
        return Model(modalities, latent_dim=2, covariates=covariates, seed=0)

    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((12, 3), 4.0), generator=generator)
    given = {"site": ["x", "y"] * 6, "age": torch.arange(12.0)}
    rows = Batch({"a": counts, "b": torch.zeros(12, 2)}, covariates=given)
    options = {"batch_size": 4, "seed": 0, "progress": False, "save_every": 0}
    whole, stopped = model(), model()
    mvkit.fit(whole, rows, epochs=4, **options)

    def stop(event):
        if isinstance(event, mvkit.training.events.CheckpointSaved) and event.step == 5:
            raise mvkit.training.events.StopTraining

    options["checkpoint"] = tmp_path
    history = mvkit.fit(stopped, rows, epochs=4, listeners=[stop], **options)
    assert len(history.rows) < 4
    resumed = model()
    mvkit.fit(resumed, rows, epochs=4, **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize("kind", RESUMED)
def test_options_of_likelihoods_survive_json(kind):
    modality = Modality((3,), RESUMED[kind])
    options = json.loads(json.dumps(to_dict(modality)))
    assert Modality(**options) == modality
