"""Discovery: lazy, isolated, selectable; clashes ask for the qualified name."""

import inspect
import re
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
import torch
from installs import PART, declares, guide_package, install

import mvkit
from mvkit import AmbiguousComponent, SpecError, UnknownComponent
from mvkit.apps import new_plugin
from mvkit.registry import plugins
from mvkit.registry.component import Component
from mvkit.registry.spec import as_part, to_dict
from mvkit.testing import check_component

ROOT = Path(__file__).parent.parent


def test_available():
    assert mvkit.available("aggregator") == [
        "gpoe",
        "joint",
        "labelled_sum",
        "mean_message",
        "moe",
        "mopoe",
        "poe",
        "set",
        "top_down_poe",
        "wasserstein",
    ]
    assert mvkit.available("aggregator", "mo*") == ["moe", "mopoe"]
    with pytest.raises(
        UnknownComponent, match="unknown kind 'aggregators'; did you mean 'aggregator'"
    ):
        mvkit.available("aggregators")


def test_a_package_offers_parts_and_is_not_imported_before_it_is_asked(packages):
    install(
        packages, "mvkit-sharp", "sharp", declares(("prior", "sharp", "sharp_parts:Sharp")), PART
    )
    mvkit.Model({"a": (2,)}, prior="mog")
    assert "sharp" not in sys.modules  # built-ins never ask
    assert "sharp" in mvkit.available("prior")
    assert "sharp_parts" not in sys.modules  # listing needs declarations only
    made = as_part("prior", {"name": "sharp", "power": 3.0})
    assert to_dict(made) == {"name": "mvkit-sharp/sharp", "power": 3.0}
    assert as_part("prior", to_dict(made)) == made
    with pytest.raises(SpecError, match="unknown option of prior 'sharp'; did you mean 'power'"):
        as_part("prior", {"name": "sharp", "powr": 1.0})


def test_an_object_of_a_package_is_recognised_without_its_name(packages):
    install(packages, "mvkit-sharp", "sharp", declares(("prior", "sharp", "sharp:Alias")), "")
    (packages / "sharp.py").write_text(
        (packages / "sharp.py").read_text() + textwrap.dedent(PART) + "\nAlias = Sharp\n"
    )
    import sharp

    assert to_dict(as_part("prior", sharp.Sharp(power=1.0)))["name"] == "mvkit-sharp/sharp"


def test_clashes_ask_for_the_qualified_name(packages):
    for package in ("mvkit-one", "mvkit-two"):
        module = package.replace("-", "_")
        install(
            packages, package, module, declares(("prior", "sharp", f"{module}_parts:Sharp")), PART
        )
    with pytest.raises(
        AmbiguousComponent, match="name one of 'mvkit-one/sharp', 'mvkit-two/sharp'"
    ):
        as_part("prior", "sharp")
    assert as_part("prior", "mvkit-two/sharp").power == 2.0
    assert {"mvkit-one/sharp", "mvkit-two/sharp"} <= set(mvkit.available("prior"))


def test_built_ins_cannot_be_shadowed(packages):
    install(packages, "mvkit-evil", "evil", declares(("prior", "mog", "evil_parts:Sharp")), PART)
    assert type(as_part("prior", "mog")).__module__ == "mvkit.parts.priors"
    assert type(as_part("prior", "mvkit-evil/mog")).__name__ == "Sharp"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("", []), ("mvkit-one", ["one"]), ("mvkit-two, mvkit-one", ["one", "two"])],
)
def test_mvkit_plugins_selects(packages, monkeypatch, wanted, found):
    for name in ("one", "two"):
        install(
            packages, f"mvkit-{name}", name, declares(("prior", name, f"{name}_parts:Sharp")), PART
        )
    monkeypatch.setenv("MVKIT_PLUGINS", wanted)
    assert [n for n in mvkit.available("prior") if n in ("one", "two")] == found


def test_parts_of_a_session():
    plugins.declare(Component("prior", "mine", "mvkit.parts.priors:Standard"))
    assert "mine" in mvkit.available("prior")
    with pytest.raises(SpecError, match="unknown kind"):
        plugins.declare(Component("prio", "mine", "x:Y"))
    with pytest.raises(SpecError, match="declared 'mine'; expected a Component"):
        plugins.declare("mine")


def test_a_part_of_a_session_takes_the_place_of_the_one_before_of_its_kind():
    plugins.declare(Component("prior", "mine", "nowhere:Prior"))
    plugins.declare(Component("prior", "mine", "mvkit.parts.priors:Standard"))
    plugins.declare(Component("aggregator", "mine", "mvkit.parts.aggregators.products:PoE"))
    assert type(as_part("prior", "mine")).__name__ == "Standard"
    assert "mine" in mvkit.available("aggregator")


def test_importing_mvkit_imports_no_extra_and_no_plugin():
    program = (
        "import sys, torch; before = set(sys.modules); import mvkit;"
        "extra = set(sys.modules) - before;"
        "print(sorted({'sklearn', 'matplotlib', 'pandas', 'scipy', 'torchdata', 'tqdm'} & extra))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert shown.strip() == "[]"


def test_parts_of_known_packages_say_what_to_install():
    with pytest.raises(
        UnknownComponent,
        match=r"model\.aggregator: unknown aggregator .*: pip install mvkit-flows",
    ):
        mvkit.recipes.jnf({"a": (2,), "b": (2,)})
    with pytest.raises(
        UnknownComponent, match=r"unknown prior 'nsf'; .*: pip install mvkit-flows"
    ):
        mvkit.Model({"a": (2,)}, prior="nsf")


def hooks():
    return [name for name in vars(plugins.Hooks) if name.startswith("mvkit_")]


@pytest.mark.parametrize("hook", hooks())
def test_every_hook_is_documented_and_tested(hook):
    guide = (ROOT / "docs" / "plugins.md").read_text()
    section = guide.partition(f"\n### `{hook}`\n")[2].partition("\n### ")[0]
    assert len(section.split()) > 30, f"docs/plugins.md has no section '### `{hook}`'"
    arguments = list(inspect.signature(getattr(plugins.Hooks, hook)).parameters)[1:]
    assert re.search(
        rf"    {hook}\({''.join(f'{name}[^)]*' for name in arguments)}\) -> ", section
    )
    tests = [
        path for path in (ROOT / "tests").glob("test_*.py") if f"def {hook}(" in path.read_text()
    ]
    assert tests, f"no test implements {hook}"


@pytest.mark.parametrize("kind", new_plugin.kinds())
def test_every_kind_is_documented(kind):
    assert f"\n### {kind}\n" in (ROOT / "docs" / "plugins.md").read_text()


def test_the_package_of_the_guide(packages):
    """The listings of docs/plugins.md, installed; test_packaging does it with pip."""
    root = guide_package(packages / "out")
    points = tomllib.loads((root / "pyproject.toml").read_text())["project"]["entry-points"][
        "mvkit"
    ]
    install(packages, "mvkit-sharp", "unused", "", version="0.1.0")
    text = "[mvkit]\n" + "".join(f"{name} = {module}\n" for name, module in points.items())
    (packages / "mvkit_sharp-0.1.0.dist-info" / "entry_points.txt").write_text(text)
    shutil.move(root / "src" / "mvkit_sharp", packages)
    parts = [("aggregator", "geometric"), ("prior", "heavy"), ("network", "gated")]
    parts += [("likelihood", "counts"), ("likelihood", "rates"), ("missingness", "refusals")]
    for kind, name in parts:
        assert name in mvkit.available(kind)
        check_component(kind, f"mvkit-sharp/{name}")
    gated = {"encoder": "mvkit-sharp/gated", "decoder": "mvkit-sharp/gated"}
    rates = mvkit.Modality((3,), "mvkit-sharp/rates", exposure="years", **gated)
    model = mvkit.Model({"a": rates}, covariates={"site": ("A", "B")}, seed=0)
    given = {"site": ["A", "B"], "years": [1.0, 20.0]}
    rows = mvkit.Batch({"a": torch.ones(2, 3)}, covariates=given)
    drawn = model.translate(rows, latent="mean")["a"][0]
    unit = model.translate(rows, latent="mean", exposure={"a": 1.0})["a"][0]
    torch.testing.assert_close(drawn[1], 20 * unit[1])
    assert torch.isfinite(model.loss(rows).loss)


def test_a_model_like_scvi_from_the_guide(tmp_path):
    """It loses the batch and keeps the kind of cell, as the guide promises."""
    space = {}
    exec((guide_package(tmp_path) / "examples" / "scvi_like.py").read_text(), space)
    corrected = space["corrected"]["rna"][0]
    torch.testing.assert_close(corrected.sum(1), torch.full((300,), 1e4), rtol=1e-4, atol=0)

    def explained(values, groups):
        means = torch.stack([values[groups == g].mean(0) for g in groups.unique()])
        within = (values - means[groups]).square().sum()
        return float(1 - within / (values - values.mean(0)).square().sum())

    logs = corrected.log1p()
    raw = space["counts"].log1p()
    assert explained(logs, space["batch"]) < 0.1 < 0.2 < explained(raw, space["batch"])
    assert explained(logs, space["kind"]) > 0.8 > explained(raw, space["kind"])
    assert explained(space["z"], space["batch"]) < 0.1
