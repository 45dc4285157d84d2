"""Covariates, exposures and row weights at the doors that were left: pairs, streams, numbers far
from training, and input that an attacker would try.
"""

import re

import numpy as np
import pytest
import torch

import mvkit
from mvkit import Batch, Covariate, DataError, Modality, Model, MultimodalDataset
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
