"""Models with covariates on the command line, in imputation, evaluation, pictures and pages."""

import json
import tomllib

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import mvkit
from mvkit import Covariate, DataError, Modality, Model, MultimodalDataset, RequestError, SpecError
from mvkit.apps.cli import main
from mvkit.apps.explorer_answers import Explorer
from mvkit.apps.run_file import Plan, read
from mvkit.data.datasets.catalogue import Splits
from mvkit.models.asked_rows import stated_covariates
from mvkit.registry import plugins
from mvkit.registry.component import Component
from mvkit.registry.spec import spec
from mvkit.testing import noise

SITES = ("A", "B", "C")
COVARIATES = {"site": Covariate(SITES), "age": Covariate()}


def rows(n=60, seed=0, gaps=True):
    generator = np.random.default_rng(seed)
    site = generator.integers(3, size=n)
    label = generator.integers(2, size=n)
    arrays = {}
    for name, width in (("a", 3), ("b", 2)):
        around = generator.normal(size=(n, width))
        arrays[name] = around + (4 * site + label)[:, np.newaxis]
    if gaps:
        arrays["a"][: n // 6] = np.nan
        arrays["b"][n // 3 : n // 2, 0] = np.nan
    given = {"site": [SITES[i] for i in site], "age": generator.normal(50, 10, size=n)}
    return MultimodalDataset.from_arrays(arrays, label=label, covariates=given)


@spec
class Sites:
    """Rows of three sites."""

    def load(self):
        data = rows(120)
        train, valid, test = data.split(0.5, 0.25, 0.25)
        return Splits(data.modalities, train, valid, test)


@pytest.fixture(autouse=True)
def _dataset():
    plugins.declare(Component("dataset", "three_sites", f"{__name__}:Sites"))
    yield
    plugins.registry.cache_clear()


def trained(private=0, **options):
    data = rows()
    modalities = {}
    for name, modality in data.modalities.items():
        modalities[name] = Modality(modality.shape, private_dim=private)
    covariates = options.pop("covariates", COVARIATES)
    model = Model(modalities, latent_dim=2, covariates=covariates, seed=0, **options)
    mvkit.fit(model, data, epochs=2, progress=False)
    return model, data


TEXT = """
[data]
name = "three_sites"
[model]
recipe = "RECIPE"
latent_dim = 2
[model.covariates]
site = {levels = ["A", "B", "C"]}
age = {}
[train]
epochs = 2
batch_size = 20
"""
NAMED = """
[data]
name = "three_sites"
[model]
latent_dim = 2
covariates = ["site", "age"]
[train]
epochs = 2
"""


@pytest.mark.parametrize("recipe", ["mopoe", "nexus"])
def test_run_files_declare_covariates_and_give_the_same_numbers_again(recipe, tmp_path):
    (tmp_path / "a.toml").write_text(TEXT.replace("RECIPE", recipe))
    folders = [tmp_path / "one", tmp_path / "other", tmp_path / "part"]
    assert main(["train", str(tmp_path / "a.toml"), "--folder", str(folders[0])]) == 0
    assert main(["train", str(folders[0] / "run.toml"), "--folder", str(folders[1])]) == 0
    text = (folders[0] / "run.toml").read_text()
    assert text == (folders[1] / "run.toml").read_text()
    models = [mvkit.load(folder / "model.safetensors") for folder in folders[:2]]
    expected = models[0].state_dict()
    assert all(torch.equal(expected[name], x) for name, x in models[1].state_dict().items())
    data = mvkit.load_dataset("three_sites")
    assert torch.equal(models[0].encode(data.test), models[1].encode(data.test))
    assert torch.isfinite(models[0].sample(3)["a"]).all()


def test_a_run_resumes_on_the_command_line_with_the_same_bits(tmp_path, capsys):
    (tmp_path / "a.toml").write_text(TEXT.replace("RECIPE", "mopoe"))
    whole, part = tmp_path / "whole", tmp_path / "part"
    file = str(tmp_path / "a.toml")
    assert main(["train", file, "--folder", str(whole), "--set", "train.epochs=4"]) == 0
    assert main(["train", file, "--folder", str(part), "--set", "train.epochs=4"]) == 0
    first, *later = sorted((part / "checkpoints").glob("*.safetensors"))
    assert later
    for checkpoint in later:
        checkpoint.unlink()
    (part / "model.safetensors").unlink()
    assert main(["resume", str(part)]) == 0
    left, right = (
        mvkit.load(folder / "model.safetensors").state_dict() for folder in (whole, part)
    )
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_names_of_covariates_are_those_that_the_data_declare(tmp_path):
    (tmp_path / "a.toml").write_text(NAMED)
    plan = Plan.of(read(tmp_path / "a.toml"))
    assert plan.model.schema.covariates == COVARIATES
    covariates = plan.config["model"]["covariates"]
    assert covariates["site"]["levels"] == ["A", "B", "C"]
    assert mvkit.load_dataset("three_sites").covariates == COVARIATES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('model.covariates=["sit"]', "model.covariates: the data have no covariate 'sit'; did you"),
        ("model.covariates=[1]", "model.covariates: got 1; expected names of covariates"),
        ("model.covariates=3", "model.covariates: got 3; expected a mapping"),
        ("model.covariates.site.level=3", "model.covariates.site.*did you mean 'levels'"),
        ("model.covariates.site.levels=['A']", "model.covariates.site.levels: .*two at least"),
        ("model.covariates.site=3", "model.covariates.site: got 3; expected a Covariate"),
        ("model.covariates.a={}", "model.covariates: 'a' is a modality too"),
        ("model.covariate={}", "model.covariate: unknown option; did you mean 'covariates'"),
    ],
)  # fmt: skip
def test_wrong_covariates_in_run_files_are_refused_with_their_path(change, message, tmp_path):
    (tmp_path / "a.toml").write_text(TEXT.replace("RECIPE", "mopoe"))
    with pytest.raises(SpecError, match=message):
        Plan.of(read(tmp_path / "a.toml", [change]))


def test_the_data_of_a_run_must_have_what_the_model_is_conditioned_on(tmp_path, capsys):
    text = TEXT.replace("RECIPE", "mopoe").replace("age = {}", "height = {}")
    (tmp_path / "a.toml").write_text(text)
    assert main(["train", str(tmp_path / "a.toml"), "--folder", str(tmp_path / "run")]) == 1
    assert "covariate 'height': the rows have none" in capsys.readouterr().err


def test_the_header_and_what_is_printed_list_covariates_and_exposures(tmp_path, capsys):
    covariates = {
        "age": Covariate(into=("prior", "decoders"), missing="average"),
        "site": SITES,
        "batch": tuple(range(40)),
    }
    model = Model({"a": (2,)}, latent_dim=2, prior="learnable", covariates=covariates)
    lines = [line.strip() for line in repr(model).splitlines()]
    assert "covariate  age: a number; into prior, decoders; missing='average'" in lines
    assert "covariate  site: 'A', 'B', 'C'; into decoders, encoders" in lines
    assert (
        "covariate  batch: 0, 1, 2, 3, 4, 5, 6, 7, … 40 levels; into decoders, encoders" in lines
    )
    assert "covariate" not in repr(Model({"a": (2,)}, latent_dim=2))
    mvkit.save(model, tmp_path / "m")
    assert main(["show", str(tmp_path / "m")]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["covariates"]["site"]["levels"] == [*SITES]


def test_gaps_are_filled_by_the_rows_own_covariates():
    model, data = trained()
    b = len(data)
    filled = mvkit.impute(model, data, n=2000, generator=torch.Generator().manual_seed(0))
    assert filled.covariates == COVARIATES
    assert not any(x.isnan().any() for x in filled.batch.data.values())
    expected = model.translate(
        data.batch, n=2000, units="data", generator=torch.Generator().manual_seed(0)
    )
    gap = data.batch.data["a"].isnan()
    torch.testing.assert_close(
        filled.batch.data["a"][gap].float(), expected["a"].mean(0)[gap], atol=0.05, rtol=0.05
    )
    # one row at a time, with its own covariates, is the same as all of them
    codes = mvkit.embed(model, data)
    alone = [mvkit.embed(model, data.take([i])) for i in range(b)]
    torch.testing.assert_close(torch.cat(alone), codes)
    lacking = {name: x.numpy() for name, x in data.batch.data.items()}
    for ask in (mvkit.impute, mvkit.embed):
        with pytest.raises(DataError, match="covariate 'age': the rows have none"):
            ask(model, lacking)


@pytest.mark.parametrize("private", [0, 2])
@pytest.mark.parametrize("missing", ["error", "average"])
def test_every_metric_measures_a_conditional_model(private, missing):
    covariates = {"site": Covariate(SITES, missing=missing), "age": Covariate(missing=missing)}
    model, data = trained(private, covariates=covariates, prior="mog")
    report = mvkit.evaluate(model, data, progress=False)
    measured = {score.metric for score in report.scores}
    need_more = {"frechet", "precision_recall", "agreement"}  # features, a third modality
    assert measured == set(mvkit.available("metric")) - need_more
    assert not [note for note in report.notes if "conditioned on" in note or "rows have" in note]
    assert any(score.name == "unconditional" for score in report.scores)
    assert all(np.isfinite(score.value) for score in report.scores if not score.detail)
    again = mvkit.evaluate(model, data[::-1], progress=False)
    assert [score.value for score in again.scores] == [score.value for score in report.scores]


def alike_in_all_rows(site, shape, dtype, device):
    """Noise by site and draw alone, so that neither blocks nor the order of rows matter."""
    axis = 1 if site.startswith("choice/") else 2
    draw = torch.rand if site.startswith("choice/") else torch.randn
    of_one = (*shape[:axis], 1, *shape[axis + 1 :])
    generator = torch.Generator().manual_seed(len(site))
    return draw(of_one, dtype=dtype, device=device, generator=generator).expand(shape)


def test_likelihoods_are_said_to_be_given_the_covariates():
    model, data = trained()
    metric = {"name": "likelihood", "n": 400}
    with noise(alike_in_all_rows):
        report = mvkit.evaluate(model, data, [metric], progress=False)
    names = [score.name for score in report.scores if not score.detail]
    assert names == [
        "log p(all) given the covariates",
        "log p(a) given the covariates",
        "log p(b) given the covariates",
        "log p(a | b) given the covariates",
        "log p(b | a) given the covariates",
    ]
    observed = model.conform(data).observed
    known = {"a": observed[:, 0], "b": observed[:, 1], (): observed.any(1)}
    queries = [(("a", "b"), ()), ("a", ()), ("b", ()), ("a", "b"), ("b", "a")]
    for name, (of, given) in zip(names, queries, strict=True):
        scored = known.get(of, known[()]) & known[given]
        with noise(alike_in_all_rows):
            log_p = model.log_likelihood(data, of, given, n=400, empty="prior")
        expected = float(log_p[scored].mean())
        assert report[f"likelihood/{name}"] == pytest.approx(expected, rel=1e-5)
    plain = Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
    report = mvkit.evaluate(plain, data, ["likelihood"], progress=False)
    assert report.scores[0].name == "log p(all)"


def test_rows_that_differ_in_covariates_alone_are_told_apart():
    model, _ = trained()
    same = {"a": np.zeros((6, 3)), "b": np.zeros((6, 2))}
    given = {"site": list("ABCCBA"), "age": [1.0, 2, 3, 1, 2, 3]}
    data = MultimodalDataset.from_arrays(same, covariates=given)
    values = []
    for order in (slice(None), [3, 5, 1, 0, 2, 4]):
        report = mvkit.evaluate(
            model, data[order], ["likelihood", "reconstruction"], progress=False
        )
        values.append([score.value for score in report.scores])
    assert values[0] == values[1]


def decoded_by_hand(model, data, row, dim, by, stated):
    z = model.encode(data.batch.take([row]))[0]
    there = z.clone()
    there[dim] += by
    return model.decode(there, covariates=stated)


def test_pictures_state_the_covariates_of_rows():
    from mvkit import plots

    model, data = trained(prior="mog")
    with pytest.raises(RequestError, match="traversal: the model is conditioned on 'age'"):
        plots.traversal(model, "a")
    with pytest.raises(RequestError, match="traversal: covariate 'site': 'D' is none of"):
        plots.traversal(model, "a", covariates={"site": "D", "age": 50})
    axes = plots.traversal(model, "a", covariates={"site": "B", "age": 50}, dims=[0])
    assert axes.shape == (1, 5)
    plots.cluster_samples(model, covariates={"site": "B"})
    plots.cluster_samples(model)
    plots.latent_map(model, data, colour="site")
    plots.latent_map(model, data, colour="age")
    plots.translations(model, data)
    plots.imputation(model, data, "a", row=40)
    plots.drivers(model, data)
    plots.cluster_sizes(model, data)


def test_what_callers_state_is_what_rows_have():
    covariates = {
        "site": Covariate(SITES, missing="average"),
        "age": Covariate(missing="average"),
        "batch": (30, 10, 20),
    }
    model = Model({"a": (2,)}, latent_dim=2, covariates=covariates, seed=0)
    given = {"site": ["C", None], "age": [41.5, None], "batch": [10, 30]}
    data = mvkit.Batch({"a": torch.zeros(2, 2)}, covariates=given)
    conformed = model.conform(data)
    assert stated_covariates(conformed) == {"age": 41.5, "batch": 10, "site": "C"}
    assert stated_covariates(conformed, 1) == {"age": None, "batch": 30, "site": None}
    z = model.encode(data)
    own = model.translate(data, latent="mean", units="model")["a"][0]
    for row in range(2):
        stated = stated_covariates(conformed, row)
        decoded = model.decode(z[row], covariates=stated, units="model")["a"]
        torch.testing.assert_close(decoded, own[row])


def test_the_explorer_moves_latents_at_the_rows_covariates():
    model, data = trained(prior="mog")
    answer = Explorer(model, data).answer({"number": 40, "dim": 1, "shift": 0.5})
    stated = stated_covariates(model.conform(data.batch.take([40])))
    expected = decoded_by_hand(model, data, 40, 1, 0.5, stated)
    np.testing.assert_allclose(answer["modalities"]["a"]["moved"], expected["a"], rtol=1e-5)


def test_the_page_of_a_run_draws_all_and_shows_the_covariates(tmp_path):
    (tmp_path / "a.toml").write_text(TEXT.replace("RECIPE", "mopoe"))
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "a.toml"), "--folder", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "given the covariates" in page
    assert "conditioned on" not in page
    assert "Latent dimensions moved, a: not drawn" not in page
    config = tomllib.loads((run / "run.toml").read_text())
    assert config["model"]["covariates"]["age"]["levels"] == []


@pytest.mark.parametrize("kind", ["pandas", "polars", "arrays"])
def test_tables_and_arrays_are_filled_given_a_table_of_covariates(kind):
    model, data = trained()
    ids = [f"p{i}" for i in range(len(data))]
    given = {name: data.batch.extra[name] for name in ("site", "age")}
    known = pd.DataFrame({"site": given["site"], "age": given["age"].numpy()}, index=ids)
    known = known.iloc[::-1]
    tables = {}
    for name, values in data.batch.data.items():
        tables[name] = pd.DataFrame(values.numpy(), index=ids)
        tables[name].columns = [f"{name}{i}" for i in range(values.shape[1])]
    options = {"covariates": known}
    if kind == "polars":
        tables = {name: pl.from_pandas(x.reset_index(names="id")) for name, x in tables.items()}
        options = {"covariates": pl.from_pandas(known.reset_index(names="id")), "id": "id"}
    elif kind == "arrays":
        tables = {name: x.to_numpy() for name, x in tables.items()}
        options = {"covariates": given}
    codes = mvkit.embed(model, tables, **options)
    if kind != "arrays":
        frame = codes.to_pandas().set_index("id") if kind == "polars" else codes
        assert frame.index.tolist() == ids
        codes = frame.to_numpy()
    np.testing.assert_allclose(codes, model.encode(data.batch).numpy(), rtol=1e-5, atol=1e-6)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    filled = mvkit.impute(model, tables, generator=generators[0], **options)
    expected = mvkit.impute(model, data, generator=generators[1])
    values = filled["a"]
    if kind == "polars":
        values = values.drop("id").to_numpy()
    np.testing.assert_allclose(np.asarray(values), expected.batch.data["a"], rtol=1e-4, atol=1e-5)
    assert type(filled["a"]) is type(tables["a"])


def test_covariates_for_data_that_have_their_own_are_refused():
    model, data = trained()
    for ask in (mvkit.impute, mvkit.embed):
        for own in (data, data.batch):
            with pytest.raises(DataError, match=f"a {type(own).__name__} has its own.*leave"):
                ask(model, own, covariates={"site": ["A"] * len(data)})
        with pytest.raises(DataError, match="got a list; expected a mapping from name"):
            ask(model, {"a": np.zeros((2, 3))}, covariates=["site"])


def share_and_slopes(x, place, age):
    """The share of variance that site explains beyond age, and the slopes by age within sites."""
    dummies = np.eye(3)[place][:, 1:]
    without = np.column_stack([np.ones(len(x)), age])
    design = np.column_stack([without, dummies])
    left = [x - d @ np.linalg.lstsq(d, x, rcond=None)[0] for d in (without, design)]
    slopes = np.linalg.lstsq(design, x, rcond=None)[0][1]
    return (left[0].var(0) - left[1].var(0)).sum() / x.var(0).sum(), slopes


def test_harmonised_values_lose_the_site_and_keep_the_age():
    generator = np.random.default_rng(0)
    n = 600
    place = generator.integers(3, size=n)
    age = generator.normal(np.array([45, 55, 65])[place], 10)
    z = generator.normal(size=(n, 1))
    slopes = {"a": np.array([0.1, -0.05, 0.0, 0.08]), "b": np.array([0.0, 0.1, -0.1])}
    arrays = {}
    for name, slope in slopes.items():
        values = z @ generator.normal(size=(1, len(slope))) + np.outer(age - 55, slope)
        values += 2 * generator.normal(size=(3, len(slope)))[place]
        arrays[name] = values + 0.3 * generator.normal(size=values.shape)
    given = {"site": [SITES[i] for i in place], "age": age}
    data = MultimodalDataset.from_arrays(arrays, covariates=given)
    networks = {name: {"name": "mlp", "hidden": (32,)} for name in ("encoder", "decoder")}
    modalities = {name: {"shape": (len(x),), **networks} for name, x in slopes.items()}
    model = Model(modalities, latent_dim=2, covariates=data.covariates, seed=0)
    mvkit.fit(model, data, epochs=40, batch_size=64, lr=5e-3, seed=0, progress=False)
    harmonised = model.translate(data, latent="mean", covariates={"site": "A"})
    for name, slope in slopes.items():
        share, _ = share_and_slopes(arrays[name], place, age)
        share_left, kept = share_and_slopes(harmonised[name][0].numpy(), place, age)
        assert share > 0.25
        assert share_left < 0.03
        np.testing.assert_allclose(kept, slope, atol=0.02)
