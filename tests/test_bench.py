"""mvkit bench: what is registered, what is measured and what is not, and the sums of its table."""

import ast
import json
import math
from pathlib import Path

import pytest
import torch

from mvkit import recipes
from mvkit.apps import bench, cli
from mvkit.apps.figures import Figure, chosen, find_folder, importing_from, load_figures
from mvkit.errors import DataError, RequestError, SpecError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def figure(name="one", published=2.0, measure=lambda data, seed: 2.5 + seed, **options):
    options = {"minutes": 1.0, **options}
    minutes = options.pop("minutes")
    return Figure(
        name, "Ada", "a paper, table 1", "as there", published, measure, minutes, **options
    )


# the figures of a clone


@pytest.fixture(scope="module")
def registered():
    if not BENCHMARKS.is_dir():
        pytest.skip("no folder benchmarks here: not a clone")
    return load_figures(BENCHMARKS)


def test_ten_figures_of_others_are_registered(registered):
    assert sum(not figure.own for figure in registered.values()) >= 10
    assert registered["jmvae-mnist"].published == -86.86
    assert registered["jmvae-mnist"].long
    for part in ("mfeat-clusters-missing", "white-wine", "rosmap-accuracy", "mixed-adult"):
        assert part in registered
    assert sum(name.startswith("coherence-") for name in registered) == 5


def test_every_figure_says_where_it_is_from(registered):
    for figure in registered.values():
        address = "https://" in figure.source or "names no paper" in figure.source
        assert address or figure.own, figure.name


def script_attributes():
    """(function, script, name) of whatever figures.py takes from the scripts beside it."""
    tree = ast.parse((BENCHMARKS / "figures.py").read_text())
    for function in tree.body:
        if not isinstance(function, ast.FunctionDef):
            continue
        modules = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Import):
                modules |= {alias.asname or alias.name: alias.name for alias in node.names}
        for node in ast.walk(function):
            match node:
                case ast.Attribute(value=ast.Name(id=name)) if name in modules:
                    yield function.name, modules[name], node.attr


def test_scripts_have_what_figures_take_from_them(registered):
    taken = list(script_attributes())
    assert len({script for _, script, _ in taken}) >= 7
    for function, script, name in taken:
        defined = set()
        for node in ast.parse((BENCHMARKS / f"{script}.py").read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                defined.add(node.name)
            if isinstance(node, ast.AnnAssign | ast.Assign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                defined |= {getattr(target, "id", "") for target in targets}
        assert name in defined, (function, script, name)


# what a figure may be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "White Wine"}, "figure 'White Wine': expected words of a-z and 0-9"),
        ({"published": float("nan")}, "published=nan; expected a number"),
        ({"minutes": 31}, "minutes=31; expected at most 30, or long=True"),
        ({"minutes": 181, "long": True}, "minutes=181; expected at most 180$"),
        ({"minutes": 0}, "minutes=0; expected at most 30"),
    ],
)
def test_a_figure_that_cannot_be(options, message):
    with pytest.raises(SpecError, match=message):
        figure(**options)


def test_a_figure_says_whose_it_is():
    with pytest.raises(SpecError, match="nothing is said as its protocol"):
        Figure("one", "Ada", "a paper", " ", 1.0, lambda data, seed: 1.0, 1.0)


# which are measured


def known():
    figures = [
        figure("wine-a"),
        figure("wine-b"),
        figure("wine-long", long=True),
        figure("rosmap"),
    ]
    return {item.name: item for item in figures}


@pytest.mark.parametrize(
    ("names", "picked"),
    [
        ([], ["wine-a", "wine-b", "rosmap"]),
        (["wine-*"], ["wine-a", "wine-b"]),
        (["wine-long"], ["wine-long"]),
        (["rosmap", "wine-a", "rosmap"], ["rosmap", "wine-a"]),
    ],
)
def test_long_figures_are_run_only_by_their_names(names, picked):
    assert [item.name for item in chosen(known(), names)] == picked


def test_a_name_that_no_figure_has():
    with pytest.raises(RequestError, match="no figure 'rosmop'; did you mean 'rosmap'"):
        chosen(known(), ["rosmop"])


def measured(figures, seeds, file, data=None):
    said = []
    failed = bench.run_figures(figures, seeds, file, data, said.append)
    return failed, said


def test_a_second_run_measures_only_what_is_missing(tmp_path):
    asked = []

    def measure(data, seed):
        asked.append(seed)
        return float(seed)

    file = tmp_path / "lines.jsonl"
    assert measured([figure(measure=measure)], [0, 1], file) == (
        [],
        ["one, seed 0: 0 (0 s)", "one, seed 1: 1 (0 s)"],
    )
    measured([figure(measure=measure)], [1, 2, 2], file)
    assert asked == [0, 1, 2]
    assert [line["value"] for line in bench.read_lines(file)] == [0.0, 1.0, 2.0]
    _, said = measured([figure(measure=measure)], [0, 2], file)
    assert said == ["one: left out: all seeds are there"]


def test_a_run_that_was_killed_keeps_what_it_measured(tmp_path):
    def measure(data, seed):
        if seed == 1:
            raise KeyboardInterrupt
        return 1.0

    file = tmp_path / "lines.jsonl"
    with pytest.raises(KeyboardInterrupt):
        measured([figure(measure=measure)], [0, 1], file)
    assert [line["seed"] for line in bench.read_lines(file)] == [0]


def test_a_figure_that_fails_is_named_and_the_others_are_measured(tmp_path):
    def broken(data, seed):
        raise ValueError("no such digits")

    file = tmp_path / "lines.jsonl"
    failed, said = measured([figure("bad", measure=broken), figure("good")], [0], file)
    assert failed == ["bad"]
    assert said[0] == "bad, seed 0: ValueError: no such digits"
    assert [line["figure"] for line in bench.read_lines(file)] == ["good"]


def test_what_is_lacking_is_said(tmp_path):
    wants = figure(data=("wine",))
    assert bench.lacks(wants, None) == (
        "needs the folder wine; say where it is: --data FOLDER, or MVKIT_DATA"
    )
    assert bench.lacks(wants, tmp_path) == f"needs {tmp_path / 'wine'}, which is not there"
    (tmp_path / "wine").mkdir()
    assert bench.lacks(wants, tmp_path) is None
    lacking = figure(packages=("json", "no_such_package"))
    assert (
        bench.lacks(lacking, None) == "needs the package no_such_package, which is not installed"
    )
    _, said = measured([lacking], [0], tmp_path / "lines.jsonl")
    assert said == ["one: left out: needs the package no_such_package, which is not installed"]


# the table


def line(name, seed, value, seconds):
    return {"figure": name, "seed": seed, "value": value, "seconds": seconds, "mvkit": "0"}


def test_the_table_by_hand():
    figures = [
        figure("wine", 1.0),
        figure("digits", 0.5, own=True),
        figure("nats", -86.86, long=True),
        figure("rosmap"),
        figure("mnist", long=True),
    ]
    lines = [
        line("wine", 0, 1.1, 30.0),
        line("wine", 1, 1.4, 90.0),
        line("wine", 2, 9.0, 60.0),
        line("wine", 2, 1.7, 240.0),  # measured again
        line("digits", 0, 0.45, 7.4),
        line("nats", 0, -88.11, 6000.0),
        line("gone", 0, 1.0, 1.0),
    ]
    # wine: mean 1.4, deviations -.3, 0, .3, so sd sqrt(.18 / 2) = .3; seconds 360 / 3
    assert bench.table(figures, lines).splitlines() == [
        "| figure | here | published | difference | seeds | CPU time | by |",
        "|---|---|---|---|---|---|---|",
        "| wine | 1.4 ± 0.3 | 1 | +0.4 | 3 | 2.0 min | Ada |",
        "| digits | 0.45 | 0.5 | -0.05 | 1 | 7 s | Ada (own) |",
        "| nats | -88.11 | -86.86 | -1.2 | 1 | 100.0 min | Ada |",
        "",
        "Not measured: rosmap, mnist (long).",
    ]


def test_a_line_that_is_none_is_named(tmp_path):
    file = tmp_path / "lines.jsonl"
    file.write_text(json.dumps(line("one", 0, 1.0, 1.0)) + "\n{}\n")
    with pytest.raises(
        DataError, match=r"lines\.jsonl, line 2: 'value'; expected what mvkit bench"
    ):
        bench.read_lines(file)


# the command


TINY = '''
import torch
import mvkit
from mvkit.apps.figures import Figure


def error(data, seed):
    """Squared error of what a small model imputes."""
    import beside

    x = beside.rows()
    model = mvkit.Model({"a": (2,), "b": (2,)}, latent_dim=1, seed=seed)
    mvkit.fit(model, x, epochs=2, batch_size=32, seed=seed, device="cpu", progress=False)
    b = model.translate({"a": x["a"]}, "b", latent="mean")["b"][0]
    return float((b - x["b"]).square().mean())


FIGURES = [
    Figure("tiny", "nobody", "no paper", "two epochs", 1.0, error, 1.0),
    Figure("absent", "nobody", "no paper", "none", 1.0, error, 1.0, data=("nowhere",)),
]
'''
BESIDE = """
import torch


def rows():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(64, 1, generator=generator)
    return {"a": z.repeat(1, 2), "b": -z.repeat(1, 2)}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "figures.py").write_text(TINY)
    (tmp_path / "beside.py").write_text(BESIDE)
    return tmp_path


def test_a_small_figure_from_the_command_line(folder, capsys, monkeypatch):
    monkeypatch.delenv("MVKIT_DATA", raising=False)
    options = ["--folder", str(folder), "--seeds", "0", "1"]
    assert cli.main(["bench", "run", *options]) == 0
    out = capsys.readouterr().out
    assert "tiny, seed 1: " in out
    assert "absent: left out: needs the folder nowhere" in out
    lines = bench.read_lines(folder / "figures.jsonl")
    assert [line["seed"] for line in lines] == [0, 1]
    assert 0 < lines[0]["value"] < 10
    assert lines[0]["value"] != lines[1]["value"]
    assert cli.main(["bench", "run", "tiny", *options]) == 0
    assert "tiny: left out: all seeds are there" in capsys.readouterr().out
    assert bench.read_lines(folder / "figures.jsonl") == lines
    assert cli.main(["bench", "table", "--folder", str(folder)]) == 0
    table = capsys.readouterr().out
    assert "| tiny | " in table
    assert "Not measured: absent." in table


def test_the_same_seed_has_the_same_value(folder, capsys):
    for name in ("a", "b"):
        out = str(folder / name)
        assert cli.main(["bench", "run", "tiny", "--folder", str(folder), "--out", out]) == 0
    values = [bench.read_lines(folder / name)[0]["value"] for name in ("a", "b")]
    assert values[0] == values[1]


def test_the_list_says_what_there_is_and_what_is_lacking(folder, capsys, monkeypatch):
    monkeypatch.setenv("MVKIT_DATA", str(folder))
    assert cli.main(["bench", "list", "--folder", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "tiny: 1 by nobody (at most 1 CPU minutes)\n  no paper\n  two epochs\n" in out
    assert f"not here: needs {folder / 'nowhere'}, which is not there" in out


def test_a_failure_ends_the_command_with_its_name(folder, capsys):
    broken = TINY.replace("return float(", "return 1 / 0 * float(")
    (folder / "figures.py").write_text(broken)
    assert cli.main(["bench", "run", "tiny", "--folder", str(folder)]) == 1
    said = capsys.readouterr()
    assert "tiny, seed 0: ZeroDivisionError: division by zero" in said.out
    assert "mvkit: bench: could not be measured: tiny; see above" in said.err


def test_a_folder_without_figures(tmp_path):
    with pytest.raises(
        RequestError, match=r"no figures\.py in .*; expected the folder benchmarks"
    ):
        find_folder(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "FIGURES is no list of figures"),
        ("FIGURES = [1]", "FIGURES is no list of figures"),
        (TINY + "FIGURES *= 2", "two figures are called 'tiny'; rename one"),
    ],
)
def test_a_file_that_has_no_figures(folder, text, message):
    (folder / "figures.py").write_text(text)
    with pytest.raises(SpecError, match=message):
        load_figures(folder)


def test_jmvae_lowers_its_learning_rate_at_the_end(registered):
    with importing_from(BENCHMARKS):
        import jmvae_mnist as script
    model = recipes.jmvae({"a": (3,), "b": (2,)}, latent_dim=2, warmup=4, seed=0)
    (stage,) = script.stages_of(model, 10, 0.4)
    assert stage.epochs == 10
    assert dict(stage.ramps) == dict(script.stages_of(model, 10, 0.0)[0].ramps)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    scheduler = stage.scheduler(optimizer)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    cosine = [0.5e-3 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    assert rates == pytest.approx([1e-3] * 6 + cosine)
    assert script.stages_of(model, 10, 0.0)[0].lr_schedule is None
