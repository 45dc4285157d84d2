"""`mvkit impute` with completed tables, intervals and values missing not at random."""

import json
import subprocess
import sys

import numpy as np
import pandas
import pytest
from test_impute_tables import patients

import mvkit
from mvkit.apps import cli

OPTIONS = {"capture_output": True, "text": True, "timeout": 300}
QUICK = ["--set", "epochs=2", "--set", "width=16", "--set", "blocks=1", "--set", "latent_dim=4"]
MANY = [*QUICK, "--set", "held_out=0.2"]  # cells that intervals are calibrated on
CHOICES = {"epochs": 2, "width": 16, "blocks": 1, "latent_dim": 4}


@pytest.fixture
def folder(tmp_path):
    """A CSV file and a Parquet file of the same patients."""
    _, table = patients()
    table = table.rename_axis("patient").reset_index()
    table[["patient", "age", "smokes", "seen"]].to_csv(tmp_path / "clinic.csv", index=False)
    table[["crp", "patient", "site"]].iloc[::-1].to_parquet(tmp_path / "labs.parquet")
    return tmp_path


def command(folder, *arguments):
    """Runs the real command; returns its status and what it printed."""
    program = [sys.executable, "-W", "error::UserWarning", "-m", "mvkit", "impute", *arguments]
    done = subprocess.run(program, cwd=folder, check=False, **OPTIONS)
    return done.returncode, done.stdout, done.stderr


def test_tables_come_completed_with_intervals_as_in_python(folder):
    files = ["clinic.csv", "labs.parquet", "--id", "patient", "-o", "out"]
    status, shown, errors = command(folder, *files, "--m", "2", "--intervals", "0.8", *MANY)
    assert status == 0, errors
    assert "improper" not in shown
    paths = {"clinic": folder / "clinic.csv", "labs": folder / "labs.parquet"}
    options = {
        "id": "patient",
        "choices": {**CHOICES, "held_out": 0.2},
        "m": 2,
        "intervals": 0.8,
        "progress": False,
    }
    same = mvkit.impute(paths, **options)
    out = folder / "out"
    assert not (out / "draws").exists()
    assert sorted(path.name for path in (out / "completed").iterdir()) == ["1", "2"]
    for number, tables in enumerate(same.draws, 1):
        written = out / "completed" / str(number)
        clinic = pandas.read_csv(written / "clinic.csv")
        assert clinic["age"].tolist() == tables["clinic"]["age"].tolist()
        assert clinic["smokes"].tolist() == tables["clinic"]["smokes"].tolist()
        labs = pandas.read_parquet(written / "labs.parquet")
        pandas.testing.assert_frame_equal(labs, tables["labs"])
    ends = [pandas.read_csv(out / end / "clinic.csv") for end in ("low", "high")]
    for end, expected in zip(ends, (same.low, same.high)):
        assert list(end) == ["patient", "age", "seen"]
        assert end["age"].tolist() == expected["clinic"]["age"].tolist()
    observed = pandas.read_csv(folder / "clinic.csv")["age"]
    known = observed.notna()
    for end in ends:
        assert (end["age"][known] == observed[known]).all()
    assert (ends[0]["age"] <= ends[1]["age"]).all()
    sets = pandas.read_csv(out / "sets" / "clinic.csv")
    assert set(sets["smokes"]) <= {"False", "True", "False | True"}
    assert sets["patient"].tolist() == pandas.read_csv(folder / "clinic.csv")["patient"].tolist()
    sites = pandas.read_parquet(out / "sets" / "labs.parquet")
    assert sites["site"].tolist() == [" | ".join(cell) for cell in same.sets["labs"]["site"]]
    coverage = pandas.read_csv(out / "coverage.csv")
    np.testing.assert_allclose(coverage["coverage"], same.coverage["coverage"])
    choices = json.loads((out / "choices.json").read_text())
    assert (choices["m"], choices["refit"], choices["intervals"]) == (2, True, 0.8)
    page = (out / "report.html").read_text()
    assert "Asked for: 80 %" in page
    assert "completed/1 to completed/2: each from a model" in page
    assert "<td>labs.site</td>" in page


def test_the_quick_way_says_that_it_is_improper(folder):
    arguments = ["clinic.csv", "--id", "patient", "-o", "out", "--m", "3", "--no-refit", *QUICK]
    status, shown, errors = command(folder, *arguments)
    assert status == 0, errors
    assert "--no-refit: all 3 completed tables come from one model" in shown
    assert "<b>improper</b>" in (folder / "out" / "report.html").read_text()
    assert len(list((folder / "out" / "completed").iterdir())) == 3
    assert json.loads((folder / "out" / "choices.json").read_text())["refit"] is False
    assert not (folder / "out" / "low").exists()


@pytest.mark.parametrize("part", ["self", '{name = "self", sign = "high"}'])
def test_gaps_are_explained_where_it_is_asked_for(folder, part):
    paths = [str(folder / "clinic.csv"), "-o", str(folder / "out"), "--id", "patient"]
    assert cli.main(["impute", *paths, "--missingness", part, *QUICK]) == 0
    model = mvkit.load(folder / "out" / "model.safetensors")
    assert model.missingness.modalities == ("numbers",)
    assert model.missingness.sign == ("free" if part == "self" else "high")
    assert not pandas.read_csv(folder / "out" / "clinic.csv").isna().any().any()
    assert len(list((folder / "out" / "draws").iterdir())) == 5
    embedding = pandas.read_csv(folder / "out" / "embedding.csv")
    assert embedding.notna().all().all()


def test_a_file_without_numbers_or_words_has_no_file_of_ends_or_sets(folder):
    table = pandas.DataFrame({"site": ["A", "B", None, "B"] * 10, "stage": ["x", "y"] * 20})
    table.to_csv(folder / "sites.csv", index=False)
    numbers = pandas.DataFrame({"crp": [0.5, 1.5, None, 2.5] * 10, "age": [41, 67] * 20})
    numbers.to_csv(folder / "numbers.csv", index=False)
    for name, absent in (("sites", "low"), ("numbers", "sets")):
        paths = [str(folder / f"{name}.csv"), "-o", str(folder / name)]
        assert cli.main(["impute", *paths, "--intervals", "0.5", "--draws", "0", *QUICK]) == 0
        assert not (folder / name / absent).exists()
        assert (folder / name / "coverage.csv").is_file()


@pytest.mark.filterwarnings("default")
def test_warnings_are_lines_of_the_command(folder, capsys):
    paths = [str(folder / "clinic.csv"), "--id", "patient", "-o", str(folder / "out")]
    few = ["--intervals", "0.99", "--draws", "0", *QUICK]
    assert cli.main(["impute", *paths, *few]) == 0
    errors = capsys.readouterr().err
    assert "mvkit: warning: calibrate: " in errors
    assert "UserWarning" not in errors
    assert ".py" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--m", "1"], "--m 1: expected a whole number of at least 2, such as --m 20"),
        (["--m", "many"], "--m many: expected a whole number of at least 2, such as --m 20"),
        (["--draws", "-3"], "--draws -3: expected a whole number of at least 0"),
        (["--m", "5", "--draws", "3"], "--draws 3: beside --m 5; expected one of them; leave"),
        (["--no-refit"], "--no-refit: without --m no model is trained again; expected both"),
        (["--intervals", "90"], "--intervals 90: expected a share between 0 and 1, such as"),
        (["--intervals", "nan"], "--intervals nan: expected a share between 0 and 1"),
        (
            ["--missingness", "selff"],
            "--missingness: unknown missingness 'selff'; did you mean 'self'",
        ),
        (["--missingness", "{name = self}"], "--missingness {name = self}: cannot be read"),
        (["--missingness", '{name = "self", sgn = "high"}'], "--missingness"),
    ],
)
def test_wrong_values_get_one_line_that_says_what_to_do(folder, arguments, message, capsys):
    path = str(folder / "clinic.csv")
    assert cli.main(["impute", path, "-o", str(folder / "out"), *arguments]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"mvkit: {message}")
    assert not (folder / "out").exists()


def test_several_files_are_aligned_by_the_column_that_looks_like_ids(folder, capsys):
    paths = [str(folder / "clinic.csv"), str(folder / "labs.parquet")]
    assert cli.main(["impute", *paths, "-o", str(folder / "out"), "--draws", "0", *QUICK]) == 0
    filled = pandas.read_csv(folder / "out" / "clinic.csv")
    assert filled["patient"].tolist() == [f"p{i}" for i in range(60)]
    again = folder / "again.csv"
    assert cli.main(["embed", str(folder / "out"), *paths, "-o", str(again)]) == 0
    assert again.read_text() == (folder / "out" / "embedding.csv").read_text()
    (folder / "other.csv").write_text("x,y\n1,2\n3,4\n")
    assert cli.main(["impute", paths[0], str(folder / "other.csv")]) == 1
    message = "mvkit: impute: several files, and no column of ids that all have; expected one"
    assert capsys.readouterr().err.startswith(message)


def test_codes_that_are_no_numbers_stay_whole_in_text(folder):
    table = pandas.DataFrame(
        {
            "stage": [1, 2, None, 3] * 10,
            "ward": [7, None, 7, 7] * 10,
            "crp": [0.5, None, 1, 2] * 10,
        }
    )
    table.to_csv(folder / "codes.csv", index=False)
    paths = [str(folder / "codes.csv"), "-o", str(folder / "codes"), "--draws", "0"]
    assert cli.main(["impute", *paths, "--kind", "stage=ordered", *QUICK]) == 0
    filled = pandas.read_csv(folder / "codes" / "codes.csv", dtype=str)
    assert set(filled["stage"]) <= {"1", "2", "3"}
    assert set(filled["ward"]) == {"7"}


@pytest.mark.parametrize("command", [["impute"], ["init"]])
def test_a_folder_is_no_file(folder, command, capsys):
    assert cli.main([*command, str(folder), "-o", str(folder / "out")]) == 1
    expected = f"mvkit: {folder}: a folder; expected files; give {folder / '*.csv'}\n"
    assert capsys.readouterr().err == expected
