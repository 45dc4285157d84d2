"""Discovery: lazy, isolated, selectable; clashes ask for the qualified name."""

import json
import subprocess
import sys
import textwrap

import pytest

import mvkit
from mvkit import AmbiguousComponent, SpecError, UnknownComponent, plugins
from mvkit.plugins import Component
from mvkit.spec import as_part, to_dict

EVERY = [(kind, name) for kind, parts in __import__("mvkit.builtins").builtins.DECLARED.items() for name in parts]
PART = """
    from mvkit import spec

    @spec
    class Sharp:
        \"\"\"A prior.\"\"\"
        power: float = 2.0

        def build(self, sizes):
            raise NotImplementedError
"""


def install(root, package, module, code, parts="", version="1.0"):
    """A distribution in a folder: metadata with an entry point, a module, and a module of parts."""
    info = root / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[mvkit]\n{module} = {module}\n")
    (root / f"{module}.py").write_text(textwrap.dedent(code))
    if parts:
        (root / f"{module}_parts.py").write_text(textwrap.dedent(parts))


def declares(*components):
    listed = ", ".join(f"Component({', '.join(map(repr, c))})" for c in components)
    return (
        f"from mvkit.plugins import Component, hookimpl\n\n@hookimpl\ndef mvkit_components():\n    return [{listed}]\n"
    )


@pytest.fixture
def packages(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("MVKIT_PLUGINS", raising=False)
    plugins.registry.cache_clear()
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_part_is_documented_and_round_trips_through_json(kind, name):
    cls = plugins.lookup(kind, name)
    assert cls.__doc__
    options = {"sum": {"terms": ["elbo", {"name": "align", "alpha": 2.0}], "weights": [1.0, 0.5]}}.get(name, {})
    made = as_part(kind, {"name": name, **options})
    data = json.loads(json.dumps(to_dict(made), allow_nan=False))
    assert data["name"] == name
    assert as_part(kind, data) == made
    assert as_part(kind, made) is made
    if not options:
        assert as_part(kind, name) == made


def test_available():
    assert mvkit.available("aggregator") == [
        "gpoe",
        "joint",
        "mean_message",
        "moe",
        "mopoe",
        "poe",
        "set",
        "top_down_poe",
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
    ("code", "reason"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        (
            "from mvkit.plugins import hookimpl\n@hookimpl\ndef mvkit_components():\n    raise RuntimeError('boom')",
            "boom",
        ),
        ("from mvkit.plugins import hookimpl\n@hookimpl\ndef mvkit_componnets():\n    return []", "mvkit_componnets"),
        (declares(("priors", "x", "y:Z")), "unknown kind 'priors'"),
        (declares(("prior", "Bad-Name", "y:Z")), "a name is made of"),
        (declares(("prior", "x", "y:Z", "", 9)), "needs component API 9, not 1; upgrade mvkit"),
        (
            "from mvkit.plugins import hookimpl\n@hookimpl\ndef mvkit_components():\n    return ['mog']",
            "expected a Component",
        ),
    ],
    ids=["import", "syntax", "exit", "raises", "misspelt", "kind", "name", "api", "type"],
)
def test_a_broken_package_is_a_problem_and_never_a_crash(packages, code, reason):
    install(packages, "mvkit-broken", "broken_plugin", code)
    install(packages, "mvkit-sharp", "sharp", declares(("prior", "sharp", "sharp_parts:Sharp")), PART)
    assert "sharp" in mvkit.available("prior")  # the others are not touched
    problem = next(p for p in plugins.problems() if p.package.startswith("mvkit-broken"))
    assert reason in str(problem)
    with pytest.raises(UnknownComponent, match="note that mvkit-broken"):
        as_part("prior", "nosuch")


def test_a_part_that_cannot_be_imported_names_its_package(packages):
    install(packages, "mvkit-late", "late", declares(("prior", "late", "late_parts:Missing")), PART)
    with pytest.raises(
        SpecError, match=r"prior 'mvkit-late/late' could not be imported.*mvkit-late 1\.0.*AttributeError"
    ):
        as_part("prior", "late")
    install(packages, "mvkit-plain", "plain", declares(("prior", "plain", "plain_parts:Sharp")), "class Sharp: pass")
    plugins.registry.cache_clear()
    with pytest.raises(SpecError, match="is no class made by @mvkit.spec"):
        as_part("prior", "plain")


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


def test_parts_of_known_packages_say_what_to_install():
    with pytest.raises(UnknownComponent, match=r"model\.aggregator: unknown aggregator .*: pip install mvkit-flows"):
        mvkit.recipes.jnf({"a": (2,), "b": (2,)})
    with pytest.raises(UnknownComponent, match=r"unknown prior 'nsf'; .*: pip install mvkit-flows"):
        mvkit.Model({"a": (2,)}, prior="nsf")
