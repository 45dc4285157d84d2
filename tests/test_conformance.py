"""Every built-in part passes the conformance suite, and a part that breaks one rule fails in that
rule's check.
"""

import time

import attrs
import pytest
import torch
from torch import nn

import mvkit
from mvkit import SpecError, spec
from mvkit.core.all_rows import all_rows
from mvkit.core.mixture import product_of_observed
from mvkit.data.transforms import Log1p
from mvkit.evaluation.metric import Metric, mean
from mvkit.parts.aggregators.products import PoE
from mvkit.parts.families import Normal
from mvkit.parts.likelihoods import Normal as NormalLikelihood
from mvkit.parts.missingness import SelfMaskingModel
from mvkit.parts.networks import MLP
from mvkit.parts.objectives.elbo import ELBO
from mvkit.parts.priors import DiagonalPrior
from mvkit.parts.samplers import GMM, GMMSampler
from mvkit.registry import plugins
from mvkit.registry.builtin_parts import mvkit_components
from mvkit.registry.component import Component
from mvkit.testing import ConformanceError, check_component, given_checks, model_parts, other_parts
from mvkit.testing.conformance import checks_of
from mvkit.training.annealing import Linear
from mvkit.training.optimizers import Adam
from mvkit.training.stages import Single, Stage

BUILT_IN = [(part.kind, part.name) for part in mvkit_components()]
OPTIONS = {
    "sum": {"terms": ["elbo", {"name": "align", "alpha": 2.0}], "weights": [1.0, 0.5]},
    "ordinal": {"levels": 5},
    "cvae": {"covariates": {"site": ["A", "B"]}},
    "not_miwae": {"missingness": {"name": "self", "modalities": ["a"]}},
    "files": {"files": {"labs": "labs.csv"}},
}
COMPANIONS = {  # they go together only
    "top_down_poe": {"prior": "top_down"},
    "top_down": {"aggregator": "top_down_poe"},
    "labelled_sum": {"prior": "labelled_mog"},
    "labelled_mog": {"aggregator": "labelled_sum"},
}
SKIP = {
    "joint": [
        "modalities"
    ],  # the weights of its head follow the order; test_symmetry permutes them too
    "levels": set(checks_of("objective")) - {"docs", "json"},  # of a Stack
    "refine": set(checks_of("objective")) - {"docs", "json"},  # of a model with refiners
    # of two modalities: test_recipes_meme
    ("objective", "meme"): set(checks_of("objective")) - {"docs", "json"},
    ("recipe", "meme"): ["contract"],
    "jnf": ["contract"],  # needs mvkit-flows, whose tests have it
}


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_built_in(kind, name):
    skip = SKIP.get((kind, name)) or SKIP.get(name, ())
    part = plugins.lookup(kind, name)
    if attrs.has(part) and {"path", "files"} & set(attrs.fields_dict(part)):
        skip = ["contract"]  # of files that the user has
    if name == "files":
        skip = ["contract", "docs"]  # no publication is behind the user's own files
    companions = COMPANIONS.get(name)
    check_component(kind, name, skip=skip, companions=companions, **OPTIONS.get(name, {}))


class Documented:
    """Broken on purpose. Reference: none; options: power, start, end, epochs, lr, betas,
    prior_expert, hidden, activation, scale, kl_weight, samples, draw, density, condition, reduce,
    reconstruct, weights, ramps, components, floor, conditional, covariates, groups."""


def broken(base, **methods):
    """A spec class like `base` with other methods."""
    return spec(
        type("Broken", (base,), {"__doc__": Documented.__doc__, "__annotations__": {}, **methods})
    )


def aggregator(change):
    """The product of experts with its result changed."""

    def forward(self, experts, batch):
        return change(product_of_observed(experts, batch.observed, 1.0), experts, batch)

    return broken(PoE, forward=forward, build=lambda self, sizes: self)


class Module(nn.Module, mvkit.Aggregator):
    """The product of experts, shifted by a parameter."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.ones(2))

    def forward(self, experts, batch):
        found = product_of_observed(experts, batch.observed, 1.0)
        return attrs.evolve(found, loc=found.loc + self.moved())

    def moved(self):
        return self.shift


class Forgetful(Module):
    """Holds a number that no file has."""

    serial = 0

    def __init__(self):
        super().__init__()
        Forgetful.serial += 1
        self.number = Forgetful.serial

    def moved(self):
        return self.shift + self.number


def module(base=Module, **methods):
    live = type("Live", (base,), methods)
    return broken(mvkit.Aggregator, build=lambda self, sizes: live(), forward=None)


def prior(log_prob):
    class Live(DiagonalPrior):
        def forward(self, posterior=None):
            return Density(super().forward(), log_prob)

    return broken(object, build=lambda self, sizes: Live(sizes, learn_loc=True, learn_scale=False))


class Density:
    def __init__(self, mixture, log_prob):
        self.mixture, self.change = mixture, log_prob

    def log_prob(self, z):
        return self.change(self.mixture.log_prob(z))

    def sample(self, shape):
        return self.mixture.sample(*shape)[0]


def missingness(change):
    """Self-masking with its log-probabilities changed."""

    class Live(SelfMaskingModel):
        def log_prob(self, x, observed, z):
            return change(super().log_prob(x, observed, z))

    shapes = {"a": (3,), "b": (2, 2), "c": (4,)}

    def build(self, sizes):
        names = sizes.names
        return Live({name: shapes[name] for name in names}, "high", "trained")

    return broken(object, build=build)


def likelihood(log_prob, **methods):
    class Live(type(NormalLikelihood().build(None))):
        def log_prob(self, out, x, context):
            return log_prob(self, super().log_prob(out, x, context), out, x)

    for name, method in methods.items():
        setattr(Live, name, method)
    return broken(object, build=lambda self, sizes: Live("normal", "trained"))


def looking_at_all(self, x):
    self.top = torch.nan_to_num(x).abs().max()
    return ~torch.isfinite(x)


class Rounded(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return self.layers(x).float().to(x.dtype)


class Centred(Rounded):
    def forward(self, x):
        out = self.layers(x)
        return out - out.mean(0)


def network(wrap):
    hidden = MLP(hidden=(5,))
    return broken(
        mvkit.Network,
        encoder=lambda self, s, w: wrap(hidden.encoder(s, w)),
        decoder=lambda self, w, s: hidden.decoder(w, s),
    )


class Deaf(Rounded):
    def forward(self, x, context=None):
        return self.layers(x)


def deaf_network():
    hidden = MLP(hidden=(5,))
    return broken(
        mvkit.Network,
        encoder=lambda self, s, w, context=0: Deaf(hidden.encoder(s, w)),
        decoder=lambda self, w, s, context=0: Deaf(hidden.decoder(w, s)),
    )


def weighed_twice(found, batch):
    factor = 1.0 if batch.row_weight is None else 2.0
    return attrs.evolve(found, loss=factor * found.loss)


def objective(change):
    return broken(
        ELBO,
        forward=lambda self, model, batch, experts: change(
            ELBO.forward(self, model, batch, experts), batch
        ),
    )


def coupled(found, batch):
    """The loss and the square of the mean bound of the rows at hand."""
    return attrs.evolve(found, loss=found.loss + found.bound.mean() ** 2)


def weighted_by_the_square(found, batch):
    square = 0.0 if batch.row_weight is None else (batch.row_weight**2).mean() - 1.0
    return attrs.evolve(found, loss=found.loss + square)


def coupling(change):
    """An objective that says that it couples rows."""
    return broken(
        ELBO,
        couples_rows=True,
        forward=lambda self, model, batch, experts: change(
            ELBO.forward(self, model, batch, experts), batch
        ),
    )


def noisy(found, experts, batch):
    return attrs.evolve(found, loc=found.loc + torch.randn_like(found.loc))


def by_position(found, experts, batch):
    return attrs.evolve(
        found, loc=found.loc + experts.loc[:1] * batch.observed[:, 0][None, :, None]
    )


def all_evidence(found, experts, batch):
    return attrs.evolve(found, evidence=torch.ones_like(found.evidence))


def lost_pairs(found, experts, batch):
    pair = batch.observed.sum(1) == 2
    return attrs.evolve(found, loc=torch.where(pair[None, :, None], torch.nan, found.loc))


class Unsaved(GMMSampler):
    def fit(self, z, seed):
        self.centre = z.mean(0)

    def sample(self, model, n, generator):
        return getattr(self, "centre", 0.0) + torch.zeros(n, 2)


class Global(GMMSampler):
    def sample(self, model, n, generator):
        return torch.randn(n, 2)


class Drift(Metric):
    def score(self, study, block, generator):
        return {"a": torch.zeros(len(block))}

    def summary(self, study, scores):
        weights = torch.arange(len(scores["a"]), dtype=torch.float64)
        return [mean("broken", "drift", scores["a"] * weights)]


WRONG = {
    "no docstring": ("ramp", "docs", broken(Linear, __doc__=None), "has no docstring"),
    "no source": ("aggregator", "docs", broken(PoE, __doc__="A product."), "names no source"),
    "undocumented option": (
        "ramp",
        "docs",
        broken(Linear, __doc__="A ramp."),
        "an option 'start' that its docstring",
    ),
    "no round trip": (
        "ramp",
        "json",
        broken(Linear, __eq__=lambda self, other: False, __hash__=None),
        "comes back from",
    ),
    "shape of loc": (
        "aggregator",
        "shapes",
        aggregator(lambda q, e, b: attrs.evolve(q, loc=q.loc[..., :1])),
        "loc in forward",
    ),
    "no mixture": (
        "aggregator",
        "shapes",
        aggregator(lambda q, e, b: q.loc),
        "Tensor in forward; expected a mvkit.Mixture",
    ),
    "scale of zero": (
        "aggregator",
        "finite",
        aggregator(lambda q, e, b: attrs.evolve(q, scale=q.scale * 0)),
        "0 or less",
    ),
    "weights": (
        "aggregator",
        "finite",
        aggregator(lambda q, e, b: attrs.evolve(q, log_weight=q.log_weight + 1)),
        "sum to",
    ),
    "input changed": (
        "aggregator",
        "inputs",
        aggregator(lambda q, e, b: e.loc.zero_() is None or q),
        "changed its input",
    ),
    "NaN for a pattern": (
        "aggregator",
        "masks",
        aggregator(lost_pairs),
        "not finite where rows observe",
    ),
    "evidence of nothing": (
        "aggregator",
        "masks",
        aggregator(all_evidence),
        "used modalities that rows lack",
    ),
    "no gradient": (
        "aggregator",
        "gradients",
        module(moved=lambda self: self.shift.detach()),
        "aggregator.shift that no",
    ),
    "NaN gradient": (
        "aggregator",
        "gradients",
        module(moved=lambda self: (self.shift - 1).abs().sqrt()),
        "not finite",
    ),
    "state that no file has": (
        "aggregator",
        "save",
        module(Forgetful),
        "returned other codes after save and load",
    ),
    "global noise": (
        "aggregator",
        "determinism",
        aggregator(noisy),
        "two losses for one generator",
    ),
    "rows that mix": (
        "aggregator",
        "rows",
        aggregator(lambda q, e, b: attrs.evolve(q, loc=q.loc + q.loc.mean(1, keepdim=True))),
        "another code",
    ),
    "order of rows": (
        "aggregator",
        "rows",
        aggregator(lambda q, e, b: attrs.evolve(q, loc=q.loc.cumsum(1))),
        "was permuted",
    ),
    "order of modalities": (
        "aggregator",
        "modalities",
        aggregator(by_position),
        "declared in another order",
    ),
    "rounded": ("network", "precision", network(Rounded), "by differences in float64"),
    "dtype": (
        "objective",
        "precision",
        objective(lambda found, batch: attrs.evolve(found, loss=found.loss.double())),
        "expected torch.float32",
    ),
    "prior, shape": ("prior", "shapes", prior(lambda p: p.sum(-1)), "log_prob of z"),
    "prior, NaN": ("prior", "finite", prior(lambda p: p * torch.nan), "not finite"),
    "missingness, scaled": (
        "missingness",
        "patterns",
        missingness(lambda p: 1.5 * p),
        "expected 1 for each row",
    ),
    "likelihood, summed": (
        "likelihood",
        "shapes",
        likelihood(lambda self, p, out, x: p.sum(-1)),
        "log_prob of shape",
    ),
    "likelihood, NaN": (
        "likelihood",
        "finite",
        likelihood(lambda self, p, out, x: p / 0 * 0),
        "not finite",
    ),
    "likelihood, no gradient": (
        "likelihood",
        "gradients",
        likelihood(lambda self, p, out, x: -(x - out).square()),
        "has a parameter decoders.a.likelihood.scale.log that no gradient reaches",
    ),
    "fillers": (
        "likelihood",
        "fillers",
        likelihood(
            lambda self, p, out, x: p / self.top.clamp(min=1), out_of_support=looking_at_all
        ),
        "changed loss where fillers are",
    ),
    "network, rows": ("network", "rows", network(Centred), "expected"),
    "network, context": ("network", "covariates", deaf_network(), "returned the same for two"),
    "likelihood, exposure": (
        "likelihood",
        "exposures",
        likelihood(lambda self, p, out, x: p, takes_exposure=True),
        "expected twice as much",
    ),
    "objective, weights": (
        "objective",
        "weights",
        objective(weighed_twice),
        "returned the loss .* of rows with weights",
    ),
    "family, scale": (
        "family",
        "finite",
        broken(Normal, scale=lambda self, raw: raw),
        "0 or less",
    ),
    "objective, shape": (
        "objective",
        "shapes",
        objective(lambda found, batch: attrs.evolve(found, bound=found.bound.sum())),
        "bound",
    ),
    "objective, no gradient": (
        "objective",
        "gradients",
        objective(lambda found, batch: attrs.evolve(found, loss=found.loss.detach())),
        "without gradient",
    ),
    "coupled, unsaid": (
        "objective",
        "coupling",
        objective(coupled),
        "mean of its rows' losses alone.*couples_rows",
    ),
    "coupled, not gathered": (
        "objective",
        "coupling",
        coupling(coupled),
        "mean over two shares.*all_rows",
    ),
    "coupled, in order": (
        "objective",
        "coupling",
        coupling(lambda found, batch: attrs.evolve(found, loss=found.loss + found.bound[0])),
        "in another order",
    ),
    "coupled, gathered by some": (
        "objective",
        "coupling",
        coupling(lambda found, batch: found if len(batch) == 5 or all_rows(found.bound) else None),
        "called all_rows 0 times for one share of a batch, and 1 for another",
    ),
    "coupled, weights": (
        "objective",
        "weights",
        coupling(weighted_by_the_square),
        "for the sum of two sets of weights",
    ),
    "ramp, infinite": (
        "ramp",
        "contract",
        broken(Linear, at=lambda self, epoch, epochs: float("inf")),
        "finite number",
    ),
    "ramp, clock": (
        "ramp",
        "contract",
        broken(Linear, at=lambda self, epoch, epochs: time.perf_counter()),
        "second time",
    ),
    "schedule, epochs": (
        "schedule",
        "contract",
        broken(Single, stages=lambda self, model, epochs: [Stage(None, 3)]),
        "3 epochs of 10",
    ),
    "schedule, nothing": (
        "schedule",
        "contract",
        broken(Single, stages=lambda self, model, epochs: []),
        "not empty",
    ),
    "optimizer, idle": (
        "optimizer",
        "contract",
        broken(Adam, optimizer=lambda self, ps, lr: torch.optim.SGD(ps, 0.0)),
        "nearer",
    ),
    "optimizer, other": (
        "optimizer",
        "contract",
        broken(Adam, optimizer=lambda self, ps, lr: ps),
        "Optimizer",
    ),
    "transform, one way": (
        "transform",
        "contract",
        broken(Log1p, inverse=lambda self, x: x),
        "other values for forward",
    ),
    "transform, batch": (
        "transform",
        "contract",
        broken(Log1p, forward=lambda self, x: x - x.mean()),
        "other values",
    ),
    "sampler, state": (
        "sampler",
        "contract",
        broken(GMM, build=lambda self, width: Unsaved(width=width, spec=self)),
        "other draws from its saved state",
    ),
    "sampler, noise": (
        "sampler",
        "contract",
        broken(GMM, build=lambda self, width: Global(width=width, spec=self)),
        "other draws for one generator",
    ),
    "metric, nothing": (
        "metric",
        "contract",
        broken(Drift, summary=lambda self, study, scores: []),
        "no score and no",
    ),
    "metric, order": (
        "metric",
        "contract",
        broken(Drift, score=lambda self, study, block, generator: {"a": torch.rand(len(block))}),
        "rows permuted",
    ),
    "dataset, other": (
        "dataset",
        "contract",
        broken(object, load=lambda self: {}),
        "expected mvkit.data",
    ),
}


@pytest.mark.parametrize(("kind", "check", "cls", "reason"), WRONG.values(), ids=WRONG)
def test_a_broken_part_fails_in_its_check(monkeypatch, kind, check, cls, reason):
    monkeypatch.setitem(globals(), "Broken", cls)
    plugins.declare(Component(kind, "broken", f"{__name__}:Broken"))
    with pytest.raises(
        ConformanceError, match=rf"^{kind} 'broken', check '{check}': it .*{reason}"
    ):
        check_component(kind, "broken")


def test_options_of_the_suite():
    with pytest.raises(
        SpecError, match="check_component: no check 'gradient' of priors; did you mean 'gradients'"
    ):
        check_component("prior", "mog", skip=["gradient"])
    with pytest.raises(SpecError, match="unknown option of prior 'mog'"):
        check_component("prior", "mog", component=3)
    check_component("prior", "mog", components=3, skip=["save"])


def test_every_check_is_seen_to_fail():
    """Those of recipes, laws and objectives alone: test_recipe_packages and test_conformance_laws."""
    checks = {"docs", "json", "finite", "inputs"}
    checks |= {
        check
        for table in (model_parts.CHECKS, other_parts.CHECKS, given_checks.CHECKS)
        for kind in table.values()
        for check in kind
    }
    assert checks == {check for _, check, _, _ in WRONG.values()}
