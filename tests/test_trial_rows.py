"""Rows that parts are tried on are values that the likelihoods allow."""

import pytest
import torch
from torch import nn

import mvkit
from mvkit import Modality, spec
from mvkit.core.mixture import product_of_observed
from mvkit.models import trial_values
from mvkit.parts import check_product
from mvkit.registry import declare
from mvkit.registry.builtin_parts import mvkit_components
from mvkit.testing import check_component

SHAPES = {"hazard": (2,), "categorical": (4,)}
LIKELIHOODS = [part.name for part in mvkit_components() if part.kind == "likelihood"]


@spec
class Tens(mvkit.Likelihood):
    """Numbers 10 or 20, the latter with probability σ(out): nothing that is made up for others.

    Reference: none.
    """

    support = "10 or 20"

    def build(self, sizes):
        return self

    def log_prob(self, out, x, context):
        return nn.functional.logsigmoid(torch.where(x == 20, out, -out))

    def mean(self, out, context=None):
        return 10 + 10 * torch.sigmoid(out)

    def sample(self, out, context):
        uniform = torch.rand(out.shape, generator=context.generator, dtype=out.dtype)
        return 10.0 + 10.0 * (uniform < torch.sigmoid(out))

    def out_of_support(self, x):
        return ~((x == 10) | (x == 20))


def likelihood(name):
    options = {"levels": 5} if name == "ordinal" else {}
    return {"name": name, **options}


@pytest.mark.parametrize("name", [*LIKELIHOODS, "tens"])
def test_aggregators_of_packages_see_values_that_the_likelihood_allows(name):
    seen = []

    @spec
    class Looking(mvkit.Aggregator):
        """Looks at the rows."""

        def build(self, sizes):
            check_product(sizes, "looking", "aggregator='moe'")
            return self

        def forward(self, experts, batch):
            seen.append((batch.data["a"].clone(), batch.observed[:, 0]))
            return product_of_observed(experts, batch.observed, 1.0)

    declare("likelihood", "tens", Tens)
    declare("aggregator", "looking", Looking)
    shape = SHAPES.get(name, (3,))
    modalities = {"a": Modality(shape, likelihood(name)), "b": Modality((2,))}
    model = mvkit.Model(modalities, aggregator="looking", seed=0)
    live = model.decoders["a"].likelihood
    assert seen
    for x, observed in seen:
        assert not live.out_of_support(x[observed]).any()


def test_the_trial_draws_no_weight_of_the_model():
    """A trial may build likelihoods; the weights of the model are what they were."""
    modalities = {"a": Modality((3,), "negative_binomial"), "b": Modality((2,), "poisson")}
    plain = mvkit.Model(modalities, seed=0)
    declare("aggregator", "own", type("Own", (type(plain.spec.aggregator),), {}))
    tried = mvkit.Model(modalities, aggregator="own", seed=0)
    for name, weights in plain.state_dict().items():
        assert torch.equal(weights, tried.state_dict()[name])


def test_a_likelihood_of_values_of_its_own_passes():
    declare("likelihood", "tens", Tens)
    check_component("likelihood", "tens")


def test_what_nothing_is_allowed_of_is_none():
    class Nothing(Tens):
        def out_of_support(self, x):
            return torch.ones_like(x, dtype=torch.bool)

    assert trial_values.supported_values(Nothing(), (3, 2), torch.float32) is None
