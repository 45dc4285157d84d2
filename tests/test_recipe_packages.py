"""Recipes of packages: an attribute of `mvkit.recipes`, a name in run files, a line of `mvkit list`."""

import importlib.metadata
import itertools

import pytest
import torch
from installs import declares, install

import mvkit
from mvkit import SpecError
from mvkit.apps import cli
from mvkit.apps.run_file import Plan, read
from mvkit.registry import plugins
from mvkit.registry.component import Component
from mvkit.testing import ConformanceError, check_component

RECIPE = '''
    import mvkit

    def sharp(modalities, latent_dim=10, *, beta=1.0, **options):
        """A product of experts. Reference: none."""
        return mvkit.Model(
            modalities, latent_dim=latent_dim, objective={"name": "elbo", "kl_weight": beta}, **options
        )

    def helper():
        """No recipe."""

    number = 3

    class Kind:
        """No function."""

    def careless(modalities, latent_dim=10, **options):
        """Reference: none."""
        raise RuntimeError("no luck")

    def listed(modalities, latent_dim=10, **options):
        """Reference: none."""
        return [modalities]

    def strict(modalities, latent_dim=10, *, depth, seed=None):
        """Reference: none."""
        return mvkit.Model(modalities, latent_dim=latent_dim, seed=seed)
'''
RUN = """
[data]
name = "linear_gaussian"
rows = 40
[model]
recipe = "sharp"
latent_dim = 2
beta = 0.5
[train]
epochs = 1
"""
NAMES = ("sharp", "number", "Kind", "careless", "listed", "strict", "absent")


def recipes_of(packages, package="mvkit-own", names=NAMES):
    module = package.replace("-", "_")
    parts = [("recipe", name.lower(), f"{module}_parts:{name}", "its own") for name in names]
    install(packages, package, module, declares(*parts), RECIPE)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    return path


def test_a_recipe_of_a_package_is_an_attribute_and_a_name(packages, capsys):
    recipes_of(packages)
    model = mvkit.recipes.sharp({"a": (2,)}, 3, beta=0.5, seed=0)
    assert model.objective.kl_weight == 0.5
    assert model.latent_dim == 3
    assert mvkit.recipes.get("mvkit-own/sharp") is mvkit.recipes.get("sharp")
    assert "sharp" in mvkit.available("recipe")
    assert {"sharp", "mopoe", "get"} <= set(dir(mvkit.recipes))
    assert cli.main(["list", "recipe"]) == 0
    shown = capsys.readouterr().out.split()
    assert {"sharp", "mopoe", "nexus"} <= set(shown)
    # private helpers, imports and what the package does not declare
    assert not {"helper", "_model", "parts", "attrs", "as_part", "get"} & set(shown)


def test_built_in_recipes_ask_no_package_and_cannot_be_shadowed(packages, monkeypatch):
    install(packages, "mvkit-own", "own", declares(("recipe", "mopoe", "own_parts:sharp")), RECIPE)
    monkeypatch.setattr(plugins.Registry, "scan", lambda self: pytest.fail("looked for packages"))
    assert mvkit.recipes.get("mopoe") is mvkit.recipes.mopoe
    assert mvkit.recipes.mopoe.__module__ == "mvkit.recipes"
    assert not hasattr(mvkit.recipes, "__wrapped__")
    monkeypatch.undo()


def test_two_packages_with_one_name_ask_for_the_qualified_one(packages):
    for package in ("mvkit-one", "mvkit-two"):
        recipes_of(packages, package, ("sharp",))
    with pytest.raises(
        AttributeError,
        match="several packages offer recipe 'sharp'; name one of 'mvkit-one/sharp', "
        r"'mvkit-two/sharp', with mvkit.recipes.get\('package/sharp'\)",
    ):
        _ = mvkit.recipes.sharp
    assert mvkit.recipes.get("mvkit-two/sharp").__module__ == "mvkit_two_parts"
    assert {"mvkit-one/sharp", "mvkit-two/sharp"} <= set(mvkit.available("recipe"))
    assert "sharp" not in dir(mvkit.recipes)


def test_unknown_recipes_suggest_the_nearest():
    with pytest.raises(AttributeError, match="mvkit.recipes: .*'mopo'; did you mean 'mopoe'"):
        _ = mvkit.recipes.mopo
    with pytest.raises(AttributeError, match="has no attribute '_mopoe'"):
        _ = mvkit.recipes._mopoe


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("number", "'mvkit_own_parts:number' is no function, but 3"),
        ("kind", "'mvkit_own_parts:Kind' is no function, but <class"),
        ("absent", "could not be imported from 'mvkit_own_parts:absent': AttributeError"),
    ],
)
def test_what_is_no_recipe_says_so(packages, file, name, reason):
    recipes_of(packages)
    with pytest.raises(SpecError, match=rf"recipe 'mvkit-own/{name}' \(mvkit-own 1.0.*{reason}"):
        getattr(mvkit.recipes, name)
    with pytest.raises(SpecError, match=rf"model.recipe: recipe 'mvkit-own/{name}'"):
        Plan.of(read(file, [f"model.recipe={name}"]))


@pytest.mark.parametrize("name", ["sharp", "mvkit-own/sharp"])
def test_run_files_name_it(packages, file, name, monkeypatch):
    recipes_of(packages)
    plan = Plan.of(read(file, [f"model.recipe={name}"]))
    assert plan.model.objective.kl_weight == 0.5
    folder = file.parent / "run"
    plan.run(folder, "auto")
    # neither the whole run file nor the model needs the package
    monkeypatch.setenv("MVKIT_PLUGINS", "")
    plugins.registry.cache_clear()
    assert "sharp" not in mvkit.available("recipe")
    again = Plan.of(read(folder / "run.toml"))
    assert again.model.header() == plan.model.header()
    loaded = mvkit.load(folder / "model.safetensors")
    assert loaded.header() == plan.model.header()
    assert mvkit.describe(folder / "model.safetensors")["packages"] == {}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("recipe=shar", "model.recipe: no recipe 'shar'; did you mean 'sharp'"),
        ("recipe=mvkit-own/sharper", "model.recipe: no recipe 'mvkit-own/sharper'"),
        ("betta=1.0", "model.betta: unknown option; did you mean 'beta'"),
        ("recipe=careless", "recipe 'mvkit-own/careless' .* failed when it was called: Runtime"),
        ("recipe=listed", "model.recipe: returned a list; expected a Model or a Stack"),
        ("recipe=strict", "model: its options cannot be taken: missing a required .*'depth'"),
    ],
)
def test_run_files_say_what_is_wrong(packages, file, change, reason):
    recipes_of(packages)
    changes = [f"model.{change}"]
    if change.startswith("recipe="):
        file.write_text(RUN.replace("beta = 0.5\n", ""))
    with pytest.raises(SpecError, match=reason):
        Plan.of(read(file, changes))


def test_two_packages_with_one_name_in_a_run_file(packages, file):
    for package in ("mvkit-one", "mvkit-two"):
        recipes_of(packages, package, ("sharp",))
    with pytest.raises(SpecError, match="model.recipe: several packages offer recipe 'sharp'"):
        Plan.of(read(file))
    plan = Plan.of(read(file, ["model.recipe=mvkit-two/sharp"]))
    assert plan.model.objective.kl_weight == 0.5


def test_recipes_of_packages_to_install_say_so(monkeypatch):
    monkeypatch.setitem(plugins.EXTERNAL_PARTS, "mvkit-other", {"recipe": ("elsewhere",)})
    with pytest.raises(AttributeError, match="'elsewhere'; .*: pip install mvkit-other"):
        _ = mvkit.recipes.elsewhere


# recipes of this file, for the conformance suite


def fine(modalities, latent_dim=10, **options):
    """Two levels. Reference: none."""
    return mvkit.recipes.nexus(modalities, latent_dim, **options)


def undocumented(modalities, latent_dim=10, **options):
    """A model."""
    return mvkit.Model(modalities, latent_dim=latent_dim, **options)


def unseeded(modalities, latent_dim=10, *, seed=None, **options):
    """Reference: none."""
    return mvkit.Model(modalities, latent_dim=latent_dim, **options)


def counted(modalities, latent_dim=10, *, seed=None, _calls=itertools.count()):
    """Reference: none."""
    return mvkit.Model(modalities, latent_dim=latent_dim, seed=next(_calls))


def drawing(modalities, latent_dim=10, **options):
    """Reference: none."""
    torch.rand(1)
    return mvkit.Model(modalities, latent_dim=latent_dim, **options)


def narrow(modalities, latent_dim=10, **options):
    """Reference: none."""
    return mvkit.Model(modalities, latent_dim=3, **options)


def empty(modalities, latent_dim=10, **options):
    """Reference: none."""


def untrained(modalities, latent_dim=10, **options):
    """Reference: none."""
    return mvkit.Model(modalities, latent_dim=latent_dim, **options).requires_grad_(False)


def replaced(modalities, latent_dim=10, **options):
    """Reference: none."""
    model = mvkit.Model(modalities, latent_dim=latent_dim, **options)
    model.prior = torch.nn.Identity()
    return model


@pytest.mark.parametrize(
    ("name", "check", "reason"),
    [
        ("undocumented", "docs", "names no source"),
        ("unseeded", "contract", "drew .* anew for the same seed"),
        ("drawing", "contract", "drew from torch's global generator"),
        ("counted", "contract", "drew .* anew for the same seed"),
        ("narrow", "contract", r"a model of \('a', 'b', 'c'\) with latent_dim=3; expected"),
        ("empty", "contract", "a NoneType; expected a Model or a Stack"),
        ("untrained", "contract", "or has no gradient"),
        ("replaced", "contract", "raised"),
    ],
)
def test_a_broken_recipe_fails_in_its_check(name, check, reason):
    plugins.declare(Component("recipe", name, f"{__name__}:{name}"))
    with pytest.raises(ConformanceError, match=f"recipe '{name}', check '{check}': it .*{reason}"):
        check_component("recipe", name)


def test_a_recipe_of_a_session_with_two_levels_passes():
    plugins.declare(Component("recipe", "fine", f"{__name__}:fine"))
    check_component("recipe", "fine", top_beta=0.5)
    assert mvkit.recipes.fine({"a": (2,), "b": (3,)}, 2, seed=0).names == ("a", "b")


def test_packages_of_recipes_alone_are_shown_by_doctor(packages, capsys):
    recipes_of(packages)
    assert importlib.metadata.version("mvkit-own") == "1.0"
    assert cli.main(["doctor"]) == 0
    (line,) = (x for x in capsys.readouterr().out.splitlines() if x.startswith("packages with"))
    assert "mvkit-own 1.0" in line
