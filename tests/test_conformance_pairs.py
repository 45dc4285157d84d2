"""Parts are tried beside the companions, shapes and widths that are asked for; built-in ones in pairs."""

import itertools

import pytest
from torch import nn

import mvkit
from mvkit import RequestError, SpecError, spec
from mvkit.registry import declare
from mvkit.registry.builtin_parts import mvkit_components
from mvkit.testing import ConformanceError, check_component
from mvkit.testing.conformance import checks_of

QUICK = ("fillers", "rows", "modalities")


def built_in(kind):
    apart = ("levels", "refine", "sum")  # of a Stack; of refiners; with parts of its own
    return [x.name for x in mvkit_components() if x.kind == kind and x.name not in apart]


def pairs(*kinds):
    first, second = kinds
    for name, companion in itertools.product(built_in(first), built_in(second)):
        yield first, name, second, companion


PAIRS = [
    *pairs("aggregator", "prior"),
    *pairs("aggregator", "objective"),
    *pairs("prior", "objective"),
    *pairs("family", "aggregator"),
    *pairs("family", "prior"),
    *pairs("family", "objective"),
]


def needed(companions):
    """With what goes together only."""
    if "top_down_poe" in companions.values():
        return {"prior": "top_down", **companions}
    if "top_down" in companions.values():
        return {"aggregator": "top_down_poe", **companions}
    if "labelled_sum" in companions.values():
        return {"prior": "labelled_mog", **companions}
    if "labelled_mog" in companions.values():
        return {"aggregator": "labelled_sum", **companions}
    return companions


def check_pair(kind, name, other, companion, only=None):
    """The suite, or some of its checks; False if the parts are refused with a reason."""
    companions = needed({kind: name, other: companion})
    del companions[kind]
    skip = [check for check in checks_of(kind) if only is not None and check not in only]
    if "joint" in (name, companion) and "modalities" not in skip:
        skip.append("modalities")  # the weights of its head follow their order
    try:
        check_component(kind, name, skip=skip, companions=companions)
    except SpecError as refusal:
        return not str(refusal).startswith("model")
    return True


def test_every_eleventh_pair():
    """All of them with --slow."""
    checked = [check_pair(*pair, only=QUICK) for pair in PAIRS[::11]]
    assert sum(checked) > len(checked) / 3


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_pairs(pair):
    check_pair(*pair)


@spec
class Narrow(mvkit.Network):
    """Linear networks for vectors of 7 numbers.

    Reference: none.
    """

    def encoder(self, shape, width):
        if tuple(shape) != (7,):
            raise SpecError("expected vectors of 7 numbers")
        return nn.Linear(7, width)

    def decoder(self, width, shape):
        return nn.Linear(width, 7)


def test_shapes_and_companions_and_a_width_are_those_that_are_asked_for(monkeypatch):
    seen = []
    build = mvkit.Model.__init__

    def spy(self, modalities, **options):
        build(self, modalities, **options)
        seen.append(self.spec)

    monkeypatch.setattr(mvkit.Model, "__init__", spy)
    declare("network", "narrow", Narrow)
    with pytest.raises(ConformanceError, match="expected vectors of 7 numbers"):
        check_component("network", "narrow", skip=others("network", "determinism"))
    seen.clear()
    check_component(
        "network",
        "narrow",
        shapes={"a": (7,), "b": [3], "c": (2, 5)},
        latent_dim=3,
        companions={"aggregator": "moe", "prior": {"name": "mog", "components": 2}},
        skip=others("network", "determinism"),
    )
    assert {made.latent_dim for made in seen} == {3}
    assert {type(made.aggregator).__name__ for made in seen} == {"MoE"}
    assert {made.prior.components for made in seen} == {2}
    shapes = {tuple(m.shape for m in made.modalities.values()) for made in seen}
    assert shapes == {((7,), (3,), (2, 5))}


def test_companions_of_a_modality():
    check_component(
        "aggregator",
        "poe",
        companions={"likelihood": "lognormal", "network": "linear"},
        skip=[check for check in checks_of("aggregator") if check not in ("masks", "save")],
    )


def test_companions_that_do_not_go_with_the_part_say_why():
    with pytest.raises(SpecError, match="'poe' multiplies|poe.*'laplace|product"):
        check_component("aggregator", "poe", companions={"family": "laplace_softmax"})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"companions": {"agregator": "moe"}},
            "check_component.companions: no part 'agregator'; did",
        ),
        ({"companions": {"prior": "moe"}}, "the prior is the part that is checked; leave it out"),
        ({"companions": {"family": "norm"}}, "companions.family: unknown family 'norm'; did you"),
        ({"shapes": {"z": (3,)}}, "check_component.shapes: no modality 'z'"),
        ({"latent_dim": 0}, "latent_dim=0; expected a whole number of at least 1"),
    ],
    ids=str,
)
def test_surroundings_that_cannot_be(options, reason):
    with pytest.raises((SpecError, RequestError), match=reason):
        check_component("prior", "mog", **options)


def others(kind, check):
    return [name for name in checks_of(kind) if name != check]
