"""Conformance takes schedules whose stages train refiners, as `fit` does."""

import pytest

import mvkit
from mvkit import Stage
from mvkit.parts import Refine, Schedule
from mvkit.registry import Component, plugins
from mvkit.testing import ConformanceError, check_component


@mvkit.spec
class Sharpened(Schedule):
    """The model, then refiners.

    Args:
        trained: what the last stage trains.

    Reference: Pandey et al., DiffuseVAE, 2022, https://arxiv.org/abs/2201.00308.
    """

    trained: str = "refiners.a.*"

    def stages(self, model, epochs):
        refine = Refine(refiners={"a": "energy"})
        return [Stage(None, epochs - 1), Stage(refine, 1, [self.trained])]


def test_a_schedule_may_train_refiners():
    plugins.declare(Component("schedule", "sharpened", f"{__name__}:Sharpened"))
    check_component("schedule", "sharpened")
    with pytest.raises(ConformanceError, match=r"'refiners\.b\.\*' matches no parameter"):
        check_component("schedule", "sharpened", trained="refiners.b.*")
