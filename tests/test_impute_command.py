"""`mvkit impute`: from files to files."""

import json
import pathlib

import pandas
import pytest
from test_impute_tables import patients

import mvkit
from mvkit.apps import cli
from mvkit.apps.embed_files import layouts_of
from mvkit.apps.explorer_answers import Explorer
from mvkit.apps.imputed_folder import rows_of_files
from mvkit.tables.recovery import Recovered, RecoveryReport

QUICK = ["--set", "epochs=2", "--set", "width=16", "--set", "blocks=1", "--set", "latent_dim=4"]


@pytest.fixture
def files(tmp_path):
    """A CSV file and a Parquet file of the same patients."""
    _, table = patients()
    table = table.rename_axis("patient").reset_index()
    clinic = table[["patient", "age", "smokes", "seen"]]
    labs = table[["crp", "patient", "site"]].iloc[::-1]
    clinic.to_csv(tmp_path / "clinic.csv", index=False)
    labs.to_parquet(tmp_path / "labs.parquet")
    return tmp_path, clinic, labs


def test_files_come_back_filled(files, capsys):
    folder, clinic, labs = files
    paths = [str(folder / "clinic.csv"), str(folder / "labs.parquet")]
    out = folder / "out"
    arguments = ["impute", *paths, "--id", "patient", "-o", str(out), "--draws", "2"]
    assert cli.main([*arguments, "--kind", "clinic.age=number", *QUICK]) == 0
    assert "of a guess" in capsys.readouterr().out
    text = pandas.read_csv(out / "clinic.csv", dtype=str)
    assert text["patient"].tolist() == clinic["patient"].tolist()
    assert list(text) == list(clinic)
    assert not text.isna().any().any()
    known = clinic["age"].notna()
    assert text["age"][known].tolist() == clinic["age"][known].astype(str).tolist()
    assert text["age"].str.fullmatch(r"\d+").all()
    assert text["seen"].str.fullmatch(r"\d{4}-\d\d-\d\d").all()
    assert set(text["smokes"]) <= {"True", "False"}
    table = pandas.read_parquet(out / "labs.parquet")
    assert table["patient"].tolist() == labs["patient"].tolist()
    assert not table.isna().any().any()
    for number in ("1", "2"):
        assert (out / "draws" / number / "clinic.csv").is_file()
        assert (out / "draws" / number / "labs.parquet").is_file()
    assert len(pandas.read_csv(out / "embedding.csv")) == 60
    choices = json.loads((out / "choices.json").read_text())
    assert choices["kinds"]["clinic"]["age"] == "number"
    page = (out / "report.html").read_text()
    assert "clinic.smokes" in page
    assert "http" not in page
    assert mvkit.load(out / "model.safetensors").names[0] == "clinic_numbers"
    again = folder / "again.csv"
    assert cli.main(["embed", str(out), *paths, "--id", "patient", "-o", str(again)]) == 0
    assert again.read_text() == (out / "embedding.csv").read_text()
    alone = folder / "alone.csv"
    assert cli.main(["embed", str(out), paths[1], "--id", "patient", "-o", str(alone)]) == 0
    assert len(pandas.read_csv(alone)) == 60
    other = folder / "other.csv"
    clinic.to_csv(other, index=False)
    assert cli.main(["embed", str(out), str(other), "--id", "patient"]) == 1
    assert "training had none called 'other'" in capsys.readouterr().err


def test_one_file_without_ids(files):
    folder, clinic, _ = files
    path = folder / "one.tsv"
    clinic.drop(columns="patient").to_csv(path, index=False, sep="\t")
    assert cli.main(["impute", str(path), "-o", str(folder / "one"), "--draws", "0", *QUICK]) == 0
    filled = pandas.read_csv(folder / "one" / "one.tsv", sep="\t")
    assert len(filled) == 60
    assert not filled.isna().any().any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clinic.csv", "clinic.csv"], "another file is called 'clinic' too"),
        (["clinic.csv", "--kind", "age"], "--kind age: expected COLUMN=KIND"),
        (["clinic.csv", "labs.parquet", "--kind", "age=count"], "of which file?"),
        (["clinic.csv", "--set", "epochs"], "--set epochs: expected CHOICE=VALUE"),
        (["clinic.csv", "--set", "epoch=3"], "no choice 'epoch'; did you mean 'epochs'"),
        (["nowhere.csv"], "No such file or directory; check the path"),
        (["clinic.csv", "-o", "clinic.csv"], "a file; expected a folder to write"),
    ],
)
def test_errors_say_what_to_do(files, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(files[0])
    assert cli.main(["impute", *arguments, "--id", "patient"]) == 1
    assert message in capsys.readouterr().err


def test_the_explorer_shows_the_rows_that_were_imputed(files, capsys):
    folder, clinic, _ = files
    paths = [str(folder / "clinic.csv"), str(folder / "labs.parquet")]
    out = folder / "out"
    assert cli.main(["impute", *paths, "--id", "patient", "-o", str(out), *QUICK]) == 0
    (folder / "moved").mkdir()
    moved = out.rename(folder / "moved" / "out")
    for path in paths:  # paths are noted from the folder on, so that all can be moved together
        pathlib.Path(path).rename(folder / "moved" / pathlib.Path(path).name)
    explorer = Explorer(
        mvkit.load(moved / "model.safetensors"), rows_of_files(moved), layouts=layouts_of(moved)
    )
    patient = clinic[clinic["age"].isna()].iloc[0]["patient"]
    shown = explorer.answer({"row": patient, "seed": 0})["modalities"]["clinic_numbers"]
    age = explorer.views["clinic_numbers"].features.index("age")
    assert shown["real"][age] is None
    assert 0 < shown["mean"][age] < 120
    capsys.readouterr()
    assert cli.main(["report", str(moved)]) != 0
    assert "mvkit explore" in capsys.readouterr().err
    (folder / "moved" / "clinic.csv").unlink()
    assert cli.main(["explore", str(moved), "--no-browser"]) != 0
    assert "put them back" in capsys.readouterr().err
    (moved / "files.json").write_text('{"files": 3}')
    with pytest.raises(mvkit.DataError, match=r"files\.json: .*impute again"):
        rows_of_files(moved)


def test_a_guess_without_errors_has_no_share_to_take_away():
    row = Recovered("", "smokes", "bits", 1, "share wrong", 1.0, 0.0)
    assert str(RecoveryReport((row,))).splitlines()[1].split()[-2:] == ["0", "–"]
