"""Classes and functions that are declared as they are, and what is said of those that cannot be parts."""

import functools

import attrs
import pytest
import torch
from installs import install
from torch import nn

import mvkit
from mvkit import SpecError, field, spec
from mvkit.parts import PoE, Standard
from mvkit.registry import Component, declare, plugins
from mvkit.registry.spec import as_part, to_dict
from mvkit.testing import check_component


def shifted(by):
    """A prior of a cell: each call defines a class of the same name."""

    @spec
    class Shifted:
        """A normal prior around a number.

        Args:
            loc: the number.

        Reference: none.
        """

        loc: float = field(default=by)

        def build(self, sizes):
            return ShiftedPrior(sizes.latent, self.loc)

    return Shifted


class ShiftedPrior(nn.Module, mvkit.Prior):
    def __init__(self, latent, loc):
        super().__init__()
        self.loc = nn.Parameter(torch.full((latent,), loc))

    def forward(self, posterior=None):
        return torch.distributions.Independent(torch.distributions.Normal(self.loc, 1.0), 1)


@spec
class Both(PoE):
    """A product of experts that is an aggregator and, of no sense, a dataset. Reference: none."""

    def load(self):
        raise NotImplementedError


def mine(modalities, latent_dim=10, **options):
    """A recipe. Reference: none."""
    return mvkit.Model(modalities, latent_dim=latent_dim, **options)


def model(**options):
    return mvkit.Model({"a": (2,)}, latent_dim=2, seed=0, **options)


def test_a_class_of_a_cell_is_declared_as_it_is(tmp_path):
    cls = shifted(2.0)
    plugins.declare("prior", "shifted", cls)
    assert mvkit.plugins.lookup("prior", "shifted") is cls
    assert as_part("prior", "local/shifted") == cls()
    made = model(prior={"name": "shifted", "loc": 3.0})
    assert model(prior=cls(loc=3.0)).header() == made.header()
    assert made.header()["prior"] == {"name": "local/shifted", "loc": 3.0}
    mvkit.save(made, tmp_path / "m")
    assert mvkit.load(tmp_path / "m").header() == made.header()
    plugins.registry.cache_clear()  # another session
    with pytest.raises(mvkit.CheckpointError, match=r"parts of a session; call mvkit\.plugins"):
        mvkit.load(tmp_path / "m")
    declare(Component("prior", "shifted", shifted(2.0), "around a number"))
    assert mvkit.load(tmp_path / "m").header() == made.header()
    check_component("prior", "shifted")


def test_a_cell_that_runs_again_takes_the_place_of_the_one_before():
    old, new = shifted(1.0), shifted(5.0)
    declare("prior", "shifted", old)
    declare("prior", "shifted", new)
    assert as_part("prior", "shifted").loc == 5.0
    assert to_dict(old())["name"] == "local/shifted"  # an object of the cell before
    assert mvkit.available("prior").count("shifted") == 1


def test_two_kinds_may_share_a_name_and_a_class():
    declare("prior", "own", shifted(1.0))
    declare("aggregator", "own", Both)
    declare("dataset", "own", Both)
    assert type(as_part("prior", "own")).__name__ == "Shifted"
    for kind in ("aggregator", "dataset"):
        assert as_part(kind, "own") == Both()
        assert as_part(kind, Both()) == Both()
        assert as_part(kind, to_dict(Both())) == Both()
    made = model(aggregator=Both(), prior="own")
    assert made.header()["aggregator"]["name"] == made.header()["prior"]["name"] == "local/own"
    with pytest.raises(SpecError, match="which is no registered prior"):
        as_part("prior", Both())


def test_two_kinds_of_a_package_may_share_a_name_and_a_class(packages):
    code = (
        "from mvkit.registry import Component, hookimpl\n\n"
        "@hookimpl\ndef mvkit_components():\n"
        "    from own_parts import Own\n"
        "    return [Component('aggregator', 'own', Own), Component('dataset', 'own', Own)]\n"
    )
    parts = """
        from mvkit import spec
        from mvkit.parts import PoE

        @spec
        class Own(PoE):
            def load(self):
                raise NotImplementedError
    """
    install(packages, "mvkit-own", "own", code, parts)
    for kind in ("aggregator", "dataset"):
        made = as_part(kind, "own")
        assert to_dict(made)["name"] == "mvkit-own/own"
        assert as_part(kind, made) is made


def test_an_object_of_a_second_name_of_a_class_keeps_the_first():
    plugins.declare("prior", "mine", Standard)
    plugins.registry().loaded.clear()
    assert to_dict(Standard())["name"] == "standard"


def test_one_class_cannot_have_two_names_in_two_kinds():
    declare("aggregator", "own", Both)
    with pytest.raises(
        SpecError,
        match=r"test_declared_classes:Both is aggregator 'local/own' \(local\) already; take that "
        "name for the dataset too, or inherit",
    ):
        declare("dataset", "other", Both)
    assert "other" not in mvkit.available("dataset")


def test_a_recipe_of_a_cell():
    declare("recipe", "mine", mine)
    assert mvkit.recipes.mine is mine
    declare("recipe", "later", functools.partial(mine, prior="mog"))
    assert mvkit.recipes.later({"a": (2,)}, latent_dim=3, seed=0).n_clusters == 10
    with pytest.raises(SpecError, match="recipe 'local/no' .* is no function, but <class"):
        declare("recipe", "no", Both)


class Plain:
    """Not a spec."""


@attrs.frozen
class Half:
    """A network without a decoder."""

    def encoder(self, shape, width):
        return nn.Linear(shape[0], width)


@spec
class Empty:
    """No part of any kind."""


@spec
class Foreign:
    """Builds a module of no base."""

    def build(self, sizes):
        return nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("kind", "name", "target", "reason"),
    [
        ("prior", "own", Plain, "'test_declared_classes:Plain' is no class made by @mvkit.spec"),
        ("prior", "own", 3, "expected a string as its target"),
        ("prior", "own", "Plain", "target 'Plain'; expected 'package.module:Class'"),
        ("prior", "Own", Empty, "a name is made of a-z"),
        ("priors", "own", Empty, "unknown kind 'priors'"),
        ("prior", "mog", Empty, "prior 'mog' is built in; take another name"),
        ("network", "own", Half, "Half has no method decoder; .* let it inherit mvkit.Network"),
        ("metric", "own", Empty, "no method score; .* let it inherit mvkit.Metric"),
        ("ramp", "own", Empty, "no method at; .* let it inherit mvkit.parts.Ramp"),
        ("schedule", "own", Empty, "no method stages; .* let it inherit mvkit.parts.Schedule"),
        ("transform", "own", Empty, "no method forward; .* inherit mvkit.parts.Transform"),
        ("dataset", "own", Empty, "no method load; expected a dataset; write it"),
        ("optimizer", "own", Empty, "no method optimizer; expected"),
    ],
)
def test_what_cannot_be_a_part_is_told_when_it_is_declared(kind, name, target, reason):
    before = list(plugins.registry().entries)
    with pytest.raises(SpecError, match=reason):
        declare(kind, name, target)
    assert plugins.registry().entries == before


def test_a_module_that_is_its_own_spec_is_told_what_to_write():
    with pytest.raises(
        SpecError,
        match=r"Tied: a spec is frozen and holds options, an nn.Module holds parameters; expected "
        r"two classes: .* class TiedModule\(nn.Module, mvkit.Aggregator\)",
    ):

        @spec
        class Tied(nn.Module, mvkit.Aggregator):
            pass

    with pytest.raises(SpecError, match=r"Loose\(nn.Module|LooseModule\(nn.Module, mvkit.Aggre"):

        @spec
        class Loose(nn.Module):
            pass


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        ("aggregator", "mvkit.Aggregator"),
        ("objective", "mvkit.Objective"),
        ("family", "mvkit.Family"),
        ("prior", "mvkit.Prior"),
        ("likelihood", "mvkit.Likelihood"),
    ],
)
def test_a_part_without_its_base_is_told_which(kind, base):
    def use(name):
        if kind == "likelihood":
            return mvkit.Model({"a": {"shape": (2,), "likelihood": name}})
        return model(**{kind: name})

    declare(kind, "empty", Empty)
    declare(kind, "foreign", Foreign)
    with pytest.raises(
        SpecError, match=rf"{kind} 'local/empty' .* has no build\(sizes\); .* inherits {base}"
    ):
        use("empty")
    if kind != "prior":  # any module may be one
        with pytest.raises(
            SpecError,
            match=rf"build returned Linear\(.*; let Linear inherit {base}, beside nn.Module.*; mend it",
        ):
            use("foreign")
