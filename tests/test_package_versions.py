"""Files of models whose packages have other versions by now."""

import sys
import warnings

import pytest
from installs import install

import mvkit
from mvkit import CheckpointError
from mvkit.registry import plugins

DECLARES = """
from mvkit.registry import Component, hookimpl

@hookimpl
def mvkit_components():
    return [Component("prior", "sharp", "sharp_parts:Sharp")]
"""
PART = """
import torch
import mvkit
from mvkit import spec

@spec
class Sharp:
    {options}

    def build(self, sizes):
        return Live(sizes.latent)

class Live(torch.nn.Module, mvkit.Prior):
    def __init__(self, latent):
        super().__init__()
        self.{parameter} = torch.nn.Parameter(torch.zeros(latent))

    def forward(self, posterior=None):
        normal = torch.distributions.Normal(self.{parameter}, 1.0, validate_args=False)
        return torch.distributions.Independent(normal, 1, validate_args=False)
"""
RENAME = """
@hookimpl
def mvkit_migrate(header, version):
    assert version == "1.0"
    prior = header["prior"]
    prior["power"] = prior.pop("strength")
    return header
"""


def release(packages, version, options="power: float = 2.0", parameter="loc", hook=""):
    """Installs a version of the package in the place of another."""
    for path in packages.glob("mvkit_sharp*/*"):
        path.unlink()
    for path in packages.glob("mvkit_sharp*"):
        path.rmdir()
    code = PART.format(options=options, parameter=parameter)
    install(packages, "mvkit-sharp", "sharp", DECLARES + hook, code, version=version)
    for name in ("sharp", "sharp_parts"):
        sys.modules.pop(name, None)
    for cache in packages.glob("__pycache__/sharp*"):
        cache.unlink()
    plugins.registry.cache_clear()


@pytest.fixture
def path(packages, tmp_path):
    """A file of version 1.0, whose option was called `strength`."""
    release(packages, "1.0", "strength: float = 3.0")
    model = mvkit.Model({"a": (2,)}, latent_dim=2, prior={"name": "sharp", "strength": 5.0})
    mvkit.save(model, tmp_path / "m")
    return tmp_path / "m"


def test_a_package_migrates_the_header_of_an_older_version(packages, path):
    release(packages, "2.0", hook=RENAME)
    loaded = mvkit.load(path)
    assert loaded.spec.prior.power == 5.0
    assert mvkit.describe(path)["model"]["prior"]["strength"] == 5.0  # the file is as it was
    mvkit.save(loaded, path)
    assert mvkit.load(path).spec.prior.power == 5.0  # now of 2.0: nothing to migrate


def test_levels_of_a_stack_are_migrated_too(packages, tmp_path):
    release(packages, "1.0", "strength: float = 3.0")
    model = mvkit.recipes.nexus({"a": (2,), "b": (3,)}, 2, prior={"name": "sharp"}, seed=0)
    mvkit.save(model, tmp_path / "m")
    hook = """
@hookimpl
def mvkit_migrate(header, version):
    for level in header["levels"]:
        level["prior"]["power"] = level["prior"].pop("strength")
    return header
"""
    release(packages, "1.1", hook=hook)
    assert mvkit.load(tmp_path / "m").top.spec.prior.power == 3.0


def test_without_a_migration_both_versions_are_told(packages, path):
    release(packages, "2.0")
    with pytest.raises(
        CheckpointError,
        match=r"cannot be built again: .*unknown option .*; saved with mvkit-sharp '1.0', and '2.0' "
        "is installed: pip install mvkit-sharp==1.0, or ask its authors for a mvkit_migrate",
    ):
        mvkit.load(path)


def test_other_parameters_tell_both_versions(packages, path):
    release(packages, "2.0", "strength: float = 3.0", parameter="centre")
    with pytest.raises(CheckpointError, match="saved with mvkit-sharp '1.0', and '2.0' is inst"):
        mvkit.load(path)


def test_a_newer_version_in_the_file_asks_for_an_update_and_is_not_migrated(packages, path):
    release(packages, "0.9", hook=RENAME.replace('"1.0"', '"never"'))
    with pytest.raises(
        CheckpointError,
        match="saved with mvkit-sharp '1.0', and '0.9' is installed: update mvkit-sharp, or pip "
        "install mvkit-sharp==1.0$",
    ):
        mvkit.load(path)


def test_an_absent_package_says_what_to_install(path, monkeypatch):
    monkeypatch.setenv("MVKIT_PLUGINS", "")
    plugins.registry.cache_clear()
    with pytest.raises(
        CheckpointError, match="needs mvkit-sharp 1.0, .* pip install mvkit-sharp==1.0"
    ):
        mvkit.load(path)


def test_a_change_of_version_that_changes_nothing_is_not_told(packages, path):
    release(packages, "1.0.1", "strength: float = 3.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mvkit.load(path).spec.prior.strength == 5.0


def test_a_new_option_is_told_with_both_versions(packages, path):
    release(packages, "1.10", "strength: float = 3.0\n    sharpness: float = 1.0")
    with pytest.warns(
        UserWarning,
        match="'mvkit-sharp/sharp' was saved with mvkit-sharp 1.0 and is now that of 1.10, with "
        "other options: sharpness; see whether",
    ):
        assert mvkit.load(path).spec.prior.sharpness == 1.0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            "raise RuntimeError('no')",
            "failed for a model of version 1.0: RuntimeError: no; update",
        ),
        ("raise SystemExit", "failed for a model of version 1.0: SystemExit"),
        ("return 3", "returned 3; expected the header of a model"),
    ],
)
def test_a_migration_that_fails_says_whose_it_is(packages, path, body, reason):
    hook = f"\n@hookimpl\ndef mvkit_migrate(header, version):\n    {body}\n"
    release(packages, "2.0", hook=hook)
    with pytest.raises(CheckpointError, match=rf"mvkit_migrate of mvkit-sharp 2.0 {reason}"):
        mvkit.load(path)


def test_a_migration_may_leave_all_as_it_is(packages, path):
    hook = "\n@hookimpl\ndef mvkit_migrate(header):\n    return None\n"
    release(packages, "2.0", "strength: float = 3.0", hook=hook)
    assert mvkit.load(path).spec.prior.strength == 5.0
