"""Discovery: lazy, isolated, selectable; clashes ask for the qualified name."""

import subprocess
import sys
import textwrap

import pytest
from installs import PART, declares, install

import mvkit
from mvkit import AmbiguousComponent, SpecError, UnknownComponent, plugins
from mvkit.plugins import Component
from mvkit.spec import as_part, to_dict


def test_available():
    assert mvkit.available("aggregator") == [
        "gpoe",
        "joint",
        "mean_message",
        "moe",
        "mopoe",
        "poe",
        "set",
        "wasserstein",
    ]
    assert mvkit.available("aggregator", "mo*") == ["moe", "mopoe"]
    with pytest.raises(UnknownComponent, match="unknown kind 'aggregators'; did you mean 'aggregator'"):
        mvkit.available("aggregators")


def test_a_package_offers_parts_and_is_not_imported_before_it_is_asked(packages):
    install(packages, "mvkit-sharp", "sharp", declares(("prior", "sharp", "sharp_parts:Sharp")), PART)
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
        install(packages, package, module, declares(("prior", "sharp", f"{module}_parts:Sharp")), PART)
    with pytest.raises(AmbiguousComponent, match="name one of 'mvkit-one/sharp', 'mvkit-two/sharp'"):
        as_part("prior", "sharp")
    assert as_part("prior", "mvkit-two/sharp").power == 2.0
    assert {"mvkit-one/sharp", "mvkit-two/sharp"} <= set(mvkit.available("prior"))


def test_built_ins_cannot_be_shadowed(packages):
    install(packages, "mvkit-evil", "evil", declares(("prior", "mog", "evil_parts:Sharp")), PART)
    assert type(as_part("prior", "mog")).__module__ == "mvkit.priors"
    assert type(as_part("prior", "mvkit-evil/mog")).__name__ == "Sharp"


@pytest.mark.parametrize(
    ("wanted", "found"), [("", []), ("mvkit-one", ["one"]), ("mvkit-two, mvkit-one", ["one", "two"])]
)
def test_mvkit_plugins_selects(packages, monkeypatch, wanted, found):
    for name in ("one", "two"):
        install(packages, f"mvkit-{name}", name, declares(("prior", name, f"{name}_parts:Sharp")), PART)
    monkeypatch.setenv("MVKIT_PLUGINS", wanted)
    assert [n for n in mvkit.available("prior") if n in ("one", "two")] == found


def test_parts_of_a_session():
    plugins.declare(Component("prior", "mine", "mvkit.priors:Standard"))
    assert "mine" in mvkit.available("prior")
    with pytest.raises(SpecError, match="unknown kind"):
        plugins.declare(Component("prio", "mine", "x:Y"))


def test_importing_mvkit_imports_no_extra_and_no_plugin():
    program = (
        "import sys, torch; before = set(sys.modules); import mvkit; extra = set(sys.modules) - before;"
        "print(sorted({'sklearn', 'matplotlib', 'pandas', 'scipy', 'torchdata', 'tqdm'} & extra))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
