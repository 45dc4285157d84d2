"""A user's own files by `load_dataset("files")`, in run files, and `mvkit init`."""

import tomllib

import pandas
import pytest
from test_impute_tables import patients

import mvkit
from mvkit import DataError, RequestError, SpecError
from mvkit.apps import cli
from mvkit.apps.html_report import run_data
from mvkit.apps.init_file import write_run_file
from mvkit.apps.run_file import Plan, read


@pytest.fixture
def folder(tmp_path):
    """Two files of the same patients, one with a stranger, and a part for each."""
    _, table = patients()
    table["part"] = (["train"] * 4 + ["valid", "test"]) * 10
    table = table.rename_axis("patient").reset_index()
    table["site"] = table["site"].fillna("B")
    clinic = table[["patient", "age", "smokes", "site", "part"]]
    clinic.to_csv(tmp_path / "clinic.csv", index=False)
    table[["patient", "crp", "stage"]].iloc[::-1].to_parquet(tmp_path / "labs.parquet")
    return tmp_path


def files(folder):
    return {"clinic": str(folder / "clinic.csv"), "labs": str(folder / "labs.parquet")}


def test_columns_are_modalities_by_kind(folder):
    data = mvkit.load_dataset("files", files=files(folder), id="patient", label="part")
    assert list(data.modalities) == [
        "clinic_numbers",
        "clinic_bits",
        "clinic_site",
        "labs_numbers",
        "labs_ordered",
    ]
    assert [len(data.train), len(data.valid), len(data.test)] == [48, 6, 6]
    assert repr(data.modalities["labs_numbers"].transform[0]).startswith("Standardise")
    assert set(data.train.labels) == {"train", "valid", "test"}
    model = mvkit.Model(data.modalities, latent_dim=2, seed=0)
    mvkit.fit(model, data.train, validation=data.valid, epochs=1, progress=False)


def test_labels_covariates_and_splits_are_columns(folder):
    options = {"id": "patient", "covariates": ["site"], "split_by": "part"}
    data = mvkit.load_dataset("files", files=files(folder), **options)
    assert "clinic_site" not in data.modalities
    assert data.covariates["site"].levels == ("A", "B")
    assert [len(data.train), len(data.valid), len(data.test)] == [39, 10, 10]  # p0 has nothing
    assert data.valid.ids[0] == "p4"


def test_a_file_can_be_one_modality(folder):
    table = pandas.read_csv(folder / "clinic.csv")[["age", "smokes"]].astype(float)
    table.dropna().to_csv(folder / "plain.csv", index=False)
    options = {"by_kind": False, "transforms": {"plain": ["log1p", "standardise"]}}
    options["modalities"] = {"plain": "laplace"}
    data = mvkit.load_dataset("files", files={"plain": str(folder / "plain.csv")}, **options)
    assert list(data.modalities) == ["plain"]
    assert data.modalities["plain"].likelihood == mvkit.parts.Laplace()
    assert len(data.modalities["plain"].transform) == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"label": "diagnosis"}, DataError, "files: none has a column 'diagnosis'"),
        ({"split_by": "site"}, DataError, "split_by='site': it says '[AB]' of row 'p[01]'"),
        ({"splits": [0.5, 0.5]}, SpecError, "three shares above 0 that add up to 1"),
        ({"splits": [0.998, 0.001, 0.001]}, DataError, "no row is left for 'valid' of 60"),
        ({"kinds": {"labz": {}}}, DataError, "kinds: no file 'labz'; did you mean 'labs'"),
        ({"kinds": {"labs": {"crp": "bits"}}}, DataError, "expected 0 and 1"),
        ({"kinds": {"labs": "bits"}}, SpecError, "a table of kinds by column for each file"),
        ({"files": {}}, SpecError, "a table of paths by name"),
    ],
)
def test_options_that_cannot_be_are_refused(folder, options, error, message):
    with pytest.raises(error, match=message):
        mvkit.load_dataset("files", **{"files": files(folder), "id": "patient", **options})


def test_init_writes_what_runs(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert cli.main(["init", "clinic.csv", "labs.parquet"]) == 0
    assert "mvkit train run.toml" in capsys.readouterr().out
    config = tomllib.loads((folder / "run.toml").read_text())
    assert config["data"]["id"] == "patient"  # the column that both have
    assert config["data"]["kinds"]["labs"] == {"crp": "positive", "stage": "ordered"}
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    arguments = ["train", "../run.toml", "--folder", "run", "--set", "train.epochs=1"]
    assert cli.main([*arguments, "--set", "model.recipe=masked"]) == 0
    monkeypatch.chdir(folder)
    splits = run_data(folder / "elsewhere" / "run", None)
    assert len(splits.train) == 48
    assert cli.main(["embed", "elsewhere/run", "clinic.csv", "--id", "patient"]) == 0
    assert len(pandas.read_csv("embedding.csv")) == 60


def test_init_keeps_what_is_there(folder):
    path = folder / "run.toml"
    write_run_file([folder / "clinic.csv"], path)
    with pytest.raises(RequestError, match="is there already; expected a new file"):
        write_run_file([folder / "clinic.csv"], path)
    (folder / "other.csv").write_text("x,y\n1,2\n3,4\n")
    with pytest.raises(RequestError, match="no column of ids that all have"):
        write_run_file([folder / "clinic.csv", folder / "other.csv"], folder / "new.toml")


def test_a_run_file_needs_no_name_with_files(folder):
    (folder / "run.toml").write_text(
        '[data]\nid = "patient"\nsplit_by = "part"\n'
        'files = {clinic = "clinic.csv", labs = "labs.parquet"}\n'
        "[model]\nlatent_dim = 2\n"
    )
    plan = Plan.of(read(folder / "run.toml"))
    assert plan.config["data"]["name"] == "files"
    assert plan.config["data"]["files"]["clinic"] == str((folder / "clinic.csv").resolve())
    assert len(plan.data.train) == 40
