"""Models conditioned on covariates: closed forms, invariances, and what is refused."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import AGGREGATORS, OBJECTIVES
from torch import nn

import mvkit
from mvkit import Batch, Covariate, DataError, Modality, Model, RequestError, ShapeError, SpecError
from mvkit.testing import tiny_models

SITES = ("A", "B", "C")
COVARIATES = {"site": Covariate(SITES), "age": Covariate()}
SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(("m0", "m1", "m2"), n)]


def site_and_age(b, seed=0):
    generator = np.random.default_rng(seed)
    words = [SITES[i] for i in generator.integers(3, size=b)]
    return {"site": words, "age": 50 + 10 * generator.normal(size=b)}


def exact(**options):
    """A linear-Gaussian model whose data are shifted by their covariates, x_m + C_m c; the rows
    without the shift, which the truth knows; and the rows.
    """
    data = mvkit.load_dataset("linear_gaussian", rows=60)
    linear = {
        name: Modality(m.shape, m.likelihood, encoder="linear", decoder="linear")
        for name, m in data.modalities.items()
    }
    model = Model(linear, latent_dim=3, covariates=COVARIATES, seed=0, **options).double()
    truth = data.truth
    batch = data.test.batch
    b = len(batch)
    covariates = site_and_age(b)
    values = {"age": torch.as_tensor(covariates["age"])}
    values["site"] = torch.tensor([SITES.index(site) for site in covariates["site"]])
    model.conditions.place(values)
    context = model.conditions.context(values, "decoders")
    shifted = {}
    with torch.no_grad():
        for name in model.names:
            weight, bias, sigma = truth.weight[name], truth.bias[name], truth.sigma[name]
            shift = torch.randn(len(bias), context.shape[1]).double()
            shifted[name] = batch.data[name] + context @ shift.T
            decoder, encoder = model.decoders[name].network, model.encoders[name]
            decoder.network[0].weight.copy_(weight)
            decoder.network[0].bias.copy_(bias)
            decoder.projections["0"].weight.copy_(shift)
            gram = weight.T @ weight
            inverse = torch.linalg.inv(gram) @ weight.T
            encoder.network[0].weight[:3] = inverse
            encoder.network[0].bias[:3] = -inverse @ bias
            encoder.projections["0"].weight[:3] = -inverse @ shift
            encoder.network[0].weight[3:] = 0
            encoder.projections["0"].weight[3:] = 0
            variance = sigma**2 * torch.linalg.inv(gram).diagonal()
            encoder.network[0].bias[3:] = variance.log()
    return model.eval(), truth, batch.data, Batch(shifted, covariates=covariates)


def shown(rows, names):
    return Batch({name: rows.data[name] for name in names}, extra=rows.extra)


@pytest.mark.parametrize("observed", SUBSETS)
@pytest.mark.parametrize("objective", ["iwae", "dreg", {"name": "elbo", "density": "mixture"}])
def test_bound_and_likelihood_are_those_given_the_covariates(observed, objective):
    model, truth, plain, rows = exact(objective=objective)
    log_p = truth.log_prob({name: plain[name] for name in observed})
    part = shown(rows, observed)
    torch.testing.assert_close(model.loss(part).bound, log_p, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.log_likelihood(part, n=3), log_p, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("given", SUBSETS)
def test_posteriors_and_conditionals_are_those_given_the_covariates(given):
    model, truth, plain, rows = exact()
    mean, covariance = truth.posterior({name: plain[name] for name in given})
    posterior = model.posterior(rows, given=given)
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-9, atol=1e-9)
    variance = covariance.diagonal().expand_as(mean)
    torch.testing.assert_close(posterior.scale[0] ** 2, variance, rtol=1e-9, atol=1e-9)
    translated = model.translate(rows, given=given, latent="mean")["m0"][0]
    unshifted = mean @ truth.weight["m0"].T + truth.bias["m0"]
    shift = rows.data["m0"] - plain["m0"]
    torch.testing.assert_close(translated, unshifted + shift, rtol=1e-9, atol=1e-9)


def test_others_covariates_change_what_is_decoded_and_not_what_is_encoded():
    model, _, plain, rows = exact()
    asked = model.translate(rows, to=["m1"], latent="mean", covariates={"site": "B", "age": 41.0})
    b = len(rows)
    other = Batch(rows.data, covariates={"site": ["B"] * b, "age": [41.0] * b})
    own = model.translate(rows, to=["m1"], latent="mean")["m1"][0]
    z = model.encode(rows)
    expected = model.decode(z, covariates={"site": "B", "age": 41.0})["m1"]
    torch.testing.assert_close(asked["m1"][0], expected)
    per_row = model.decode(z, covariates={"site": rows.extra["site"], "age": rows.extra["age"]})
    torch.testing.assert_close(own, per_row["m1"])
    assert not torch.allclose(model.encode(other), z)


def test_the_rows_own_covariates_change_no_bit():
    model = Model({"a": (3,), "b": (2,)}, latent_dim=2, covariates={"site": SITES}, seed=0)
    rows = Batch({"a": torch.randn(5, 3), "b": torch.randn(5, 2)}, covariates={"site": ["B"] * 5})
    own = model.translate(rows, latent="mean")
    asked = model.translate(rows, latent="mean", covariates={"site": "B"})
    assert all(torch.equal(own[name], asked[name]) for name in own)


@pytest.mark.parametrize("aggregator", AGGREGATORS)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("private", [0, 1])
def test_every_combination_trains_or_is_refused(aggregator, objective, private):
    try:
        model = tiny_models.model(
            aggregator, "standard", objective, private=private, covariates=COVARIATES
        )
    except SpecError:
        plain = pytest.raises(SpecError)
        with plain:
            tiny_models.model(aggregator, "standard", objective, private=private)
        return
    batch = tiny_models.rows(8)
    batch.extra.update(site_and_age(8))
    model.conditions.place(model.conform(batch).covariates)
    loss = model.loss(batch).loss
    loss.backward()
    assert torch.isfinite(loss)
    names = dict(model.named_parameters())
    seen = [name for name in names if "projections" in name and names[name].grad is not None]
    assert len(seen) >= 3
    assert all(torch.isfinite(names[name].grad).all() for name in seen)
    model.eval()
    drawn = model.translate(batch, empty="prior")
    assert all(torch.isfinite(x).all() for x in drawn.values())


@pytest.mark.parametrize("aggregator", ["poe", "mopoe", "joint"])
def test_fillers_change_no_bit(aggregator):
    objective = "jmvae" if aggregator == "joint" else "elbo"
    covariates = {"site": Covariate(SITES, missing="average"), "age": Covariate(missing="average")}
    model = tiny_models.model(aggregator, "standard", objective, covariates=covariates)
    batch = tiny_models.rows(8)
    known = site_and_age(8)
    known["site"][2] = None
    known["age"][5] = math.nan
    batch.extra.update(known)
    losses = []
    for filler in (0.0, math.nan, 1e30):
        rows = tiny_models.fillers(batch, filler)
        loss, gradients = tiny_models.loss_and_gradients(model, rows)
        losses.append((loss.loss, gradients))
    for loss, gradients in losses[1:]:
        assert torch.equal(loss, losses[0][0])
        for name, gradient in gradients.items():
            assert gradient is None or torch.equal(gradient, losses[0][1][name])


def test_a_missing_covariate_is_seen_as_the_average_of_training():
    covariates = {"site": Covariate(SITES, missing="average"), "age": Covariate(missing="average")}
    model = Model({"a": (3,)}, latent_dim=2, covariates=covariates, seed=0)
    x = torch.randn(40, 3)
    given = site_and_age(40)
    mvkit.fit(model, Batch({"a": x}, covariates=given), epochs=1, progress=False)
    missing = Batch({"a": x[:1]}, covariates={"site": [None], "age": [math.nan]})
    seen = model.conditions.context(model.conform(missing).covariates, "encoders")[0]
    shares = torch.tensor([given["site"].count(site) / 40 for site in SITES])
    torch.testing.assert_close(seen, torch.cat([torch.zeros(1), shares]))
    absent = model.conform(Batch({"a": x[:1]}))
    assert torch.equal(model.conditions.context(absent.covariates, "encoders")[0], seen)


def test_numbers_are_standardised_in_full_precision_and_kept(tmp_path):
    model = Model({"a": (2,)}, latent_dim=2, covariates={"date": Covariate()}, seed=0)
    dates = 1.7e9 + torch.arange(30).double()
    rows = Batch({"a": torch.randn(30, 2)}, covariates={"date": dates})
    mvkit.fit(model, rows, epochs=1, progress=False)
    seen = model.conditions.context(model.conform(rows).covariates, "encoders")[:, 0]
    expected = (dates - dates.mean()) / dates.std(correction=0)
    torch.testing.assert_close(seen.double(), expected, rtol=1e-6, atol=1e-6)
    mvkit.save(model, tmp_path / "model")
    again = mvkit.load(tmp_path / "model")
    assert torch.equal(again.encode(rows), model.encode(rows))
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    drawn = [
        m.sample(6, generator=g)["a"] for m, g in zip((model, again), generators, strict=True)
    ]
    assert torch.equal(*drawn)


def test_models_do_not_depend_on_the_order_of_declaration(tmp_path):
    one = Model({"a": (3,)}, latent_dim=2, covariates={"site": SITES, "age": Covariate()}, seed=0)
    two = Model({"a": (3,)}, latent_dim=2, covariates={"age": Covariate(), "site": SITES}, seed=0)
    rows = Batch({"a": torch.randn(6, 3)}, covariates=site_and_age(6))
    assert torch.equal(one.encode(rows), two.encode(rows))


@pytest.mark.parametrize("levels", [SITES, (3, 1, 2)])
def test_levels_and_their_indices_mean_the_same(levels):
    model = Model({"a": (2,)}, latent_dim=2, covariates={"site": levels}, seed=0)
    x = torch.randn(4, 2)
    values = [levels[2], levels[0], levels[0], levels[1]]
    kinds = [values, np.array(values), np.array(values, dtype=object), tuple(values)]
    if isinstance(levels[0], str):
        kinds += [[2, 0, 0, 1], torch.tensor([2, 0, 0, 1]), np.array([2.0, 0, 0, 1])]
    else:
        kinds.append(torch.tensor(values))
    codes = [model.encode(Batch({"a": x}, covariates={"site": kind})) for kind in kinds]
    assert all(torch.equal(codes[0], other) for other in codes[1:])


def test_batches_carry_their_covariates():
    model = Model({"a": (2,)}, latent_dim=2, covariates=COVARIATES, seed=0)
    rows = Batch({"a": torch.randn(7, 2)}, covariates=site_and_age(7))
    codes = model.encode(rows)
    for picked in (rows.take([4, 1]), model.conform(rows).take([4, 1])):
        torch.testing.assert_close(model.encode(picked), codes[[4, 1]])
    items = []
    for i in range(7):
        row = {name: rows.extra[name][i] for name in ("site", "age")}
        items.append({"a": rows.data["a"][i], **row})
    pipeline = mvkit.Pipeline(items, batch_size=3, shuffle=False, schema=model.schema)
    piecewise = torch.cat([model.encode(batch) for batch in pipeline])
    torch.testing.assert_close(piecewise, codes)


def test_shards_and_gaps_keep_covariates(tmp_path):
    data = mvkit.MultimodalDataset(
        Batch({"a": torch.randn(9, 2), "b": torch.randn(9, 2)}, covariates=site_and_age(9)),
        {"a": Modality((2,)), "b": Modality((2,))},
    )
    model = Model(data.modalities, latent_dim=2, covariates=COVARIATES, seed=0)
    codes = model.encode(data.batch)
    data.save(tmp_path / "shards", rows_per_shard=4)
    shards = mvkit.MultimodalDataset.open(tmp_path / "shards")
    pipeline = mvkit.Pipeline(shards, batch_size=4, shuffle=False, schema=model.schema)
    torch.testing.assert_close(torch.cat([model.encode(batch) for batch in pipeline]), codes)
    gaps = data.with_missing(0.3, seed=0)
    assert list(gaps.batch.extra["site"]) == list(data.batch.extra["site"])


def test_a_run_resumes_with_the_same_bits(tmp_path):
    rows = Batch({"a": torch.randn(40, 3)}, covariates=site_and_age(40))

    def new():
        return Model({"a": (3,)}, latent_dim=2, covariates=COVARIATES, seed=0)

    whole, parts = new(), new()
    mvkit.fit(whole, rows, epochs=4, batch_size=16, progress=False)
    mvkit.fit(parts, rows, epochs=2, batch_size=16, progress=False, checkpoint=tmp_path / "run")
    again = new()
    mvkit.fit(again, rows, epochs=4, batch_size=16, progress=False, checkpoint=tmp_path / "run")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_samples_have_covariates_of_training_or_those_stated():
    model = Model({"a": (1,)}, latent_dim=1, covariates={"site": SITES}, seed=0)
    with pytest.raises(RequestError, match="no training row are known"):
        model.sample(3)
    rows = Batch({"a": torch.randn(30, 1)}, covariates={"site": ["A"] * 29 + ["C"]})
    mvkit.fit(model, rows, epochs=1, progress=False)
    assert model.sample(3)["a"].shape == (3, 1)
    generators = [torch.Generator().manual_seed(0) for _ in range(3)]
    a, b, mixed = (
        model.sample(2, covariates={"site": site}, generator=g)["a"]
        for site, g in zip(("A", "B", ["A", "B"]), generators, strict=True)
    )
    torch.testing.assert_close(mixed, torch.stack([a[0], b[1]]))


class Takes(nn.Module):
    def __init__(self, before, after):
        super().__init__()
        self.layer = nn.Linear(before, after)

    def forward(self, x, context):
        return self.layer(torch.cat([x, context], -1))


def test_modules_of_users_are_given_the_context_or_refused():
    modality = Modality((2,), encoder=Takes(5, 4), decoder=Takes(5, 2))
    model = Model({"a": modality}, latent_dim=2, covariates={"site": SITES}, seed=0)
    rows = Batch({"a": torch.randn(4, 2)}, covariates={"site": list("ABCA")})
    assert torch.isfinite(model.loss(rows).loss)
    plain = Modality((2,), encoder=nn.Sequential(nn.Linear(2, 4)))
    with pytest.raises(SpecError, match="forward takes rows alone.*'encoders' out of"):
        Model({"a": plain}, latent_dim=2, covariates={"site": SITES})
    apart = {"site": Covariate(SITES, into=("decoders",))}
    assert torch.isfinite(Model({"a": plain}, latent_dim=2, covariates=apart).loss(rows).loss)


@pytest.mark.parametrize("network", ["conv", "conv1d"])
def test_convolutions_see_the_context(network):
    shape = (2, 9, 8) if network == "conv" else (2, 11)
    modality = Modality(shape, encoder=network, decoder=network)
    model = Model({"a": modality}, latent_dim=2, covariates={"site": SITES}, seed=0)
    x = torch.randn(1, *shape).expand(3, *shape)
    codes = model.encode(Batch({"a": x}, covariates={"site": list(SITES)}))
    assert len(codes.unique(dim=0)) == 3
    decoded = model.decode(torch.zeros(3, 2), covariates={"site": list(SITES)})["a"]
    assert len(decoded.flatten(1).unique(dim=0)) == 3


def test_a_stack_has_the_covariates_of_its_bottom(tmp_path):
    shapes = {"a": (3,), "b": (2,)}
    model = mvkit.recipes.nexus(shapes, latent_dim=2, covariates=COVARIATES, seed=0)
    given = site_and_age(30)
    rows = Batch({"a": torch.randn(30, 3), "b": torch.randn(30, 2)}, covariates=given)
    mvkit.fit(model, rows, epochs=1, progress=False)
    own = model.translate(rows, latent="mean")["a"]
    asked = model.translate(rows, latent="mean", covariates={"site": "B", "age": 38.0})["a"]
    assert not torch.allclose(own, asked)
    assert model.sample(4)["b"].shape == (4, 2)
    assert torch.isfinite(model.log_likelihood(rows, n=4)).all()
    mvkit.save(model, tmp_path / "model")
    assert torch.equal(mvkit.load(tmp_path / "model").encode(rows), model.encode(rows))


ROWS = torch.zeros(3, 2)
WRONG = {
    "none at all": ({}, DataError, "'age': the rows have none"),
    "lacks one": ({"site": ["A", None, "B"], "age": [1, 2, 3]}, DataError, "'site': row 1"),
    "unknown level": ({"site": ["A", "D", "B"], "age": [1, 2, 3]}, DataError, "'D' is none of"),
    "length": ({"site": ["A", "B"], "age": [1, 2, 3]}, ShapeError, "'site'.*2 values for 3"),
    "index": ({"site": [0, 1, 3], "age": [1, 2, 3]}, DataError, "row 2 is 3; expected an index"),
    "half": ({"site": [0.5, 1, 2], "age": [1, 2, 3]}, DataError, "row 0 is 0.5"),
    "flags": ({"site": [True, False, True], "age": [1, 2, 3]}, ShapeError, "got flags"),
    "words": ({"site": list("ABC"), "age": list("abc")}, ShapeError, "'a' is no number"),
    "infinite": ({"site": list("ABC"), "age": [1, math.inf, 3]}, DataError, "row 1 is inf"),
    "table": ({"site": list("ABC"), "age": torch.zeros(3, 2)}, ShapeError, "shape \\(3, 2\\)"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_covariates_are_refused_by_name(kind):
    given, error, message = WRONG[kind]
    model = Model({"a": (2,)}, latent_dim=2, covariates=COVARIATES)
    for ask in (model.loss, model.encode, model.translate, lambda b: mvkit.fit(model, b)):
        with pytest.raises(error, match=message):
            ask(Batch({"a": ROWS}, covariates=given))


@pytest.mark.parametrize(
    ("levels", "values", "message"),
    [
        ((1, 2, 3), ["1", "2", "3"], "'1' is none of.*whole numbers"),
        ((1, 2, 3), [1.0, 2.0, 3.0], "1.0 is none of.*whole numbers"),
        (("1", "2", "3"), np.array([1, 2, 3], dtype=object), "1 is none of.*words"),
    ],
)
def test_levels_of_another_kind_are_refused(levels, values, message):
    model = Model({"a": (2,)}, latent_dim=2, covariates={"site": levels})
    with pytest.raises(DataError, match=message):
        model.encode(Batch({"a": ROWS}, covariates={"site": values}))


def test_what_training_cannot_learn_from_is_refused():
    model = Model({"a": (2,)}, latent_dim=2, covariates={"age": Covariate(missing="average")})
    for values, message in (
        ([7.0] * 3, "all 3 training rows.*the same"),
        ([None] * 3, "no train"),
    ):
        rows = Batch({"a": ROWS}, covariates={"age": values})
        with pytest.raises(DataError, match=message):
            mvkit.fit(model, rows, epochs=1, progress=False)


@pytest.mark.parametrize(
    ("covariates", "message"),
    [
        ({"a": Covariate()}, "'a' is a modality too"),
        ({"site": ("A",)}, "two at least"),
        ({"site": ("A", "A")}, "all different"),
        ({"site": ("A", 1)}, "words or of whole numbers"),
        ({"site": 3}, "expected a Covariate"),
        ({"site": {"levels": SITES, "into": ["encoder"]}}, "'decoders'"),
        ({"site": {"level": SITES}}, "did you mean 'levels'"),
        ([], "expected a mapping"),
    ],
)
def test_wrong_declarations_are_refused(covariates, message):
    with pytest.raises(SpecError, match=message):
        Model({"a": (2,)}, covariates=covariates)


def test_what_is_stated_wrongly_is_refused():
    model = Model({"a": (2,)}, latent_dim=2, covariates=COVARIATES, seed=0)
    rows = Batch({"a": ROWS}, covariates=site_and_age(3))
    with pytest.raises(RequestError, match="no covariate 'sit'.*did you mean 'site'"):
        model.translate(rows, covariates={"sit": "A"})
    with pytest.raises(RequestError, match="translate: covariate 'site': 'D' is none of"):
        model.translate(rows, covariates={"site": "D"})
    with pytest.raises(RequestError, match="expected one value for all rows"):
        model.translate(rows, covariates={"site": ["A", "B", "C"]})
    with pytest.raises(RequestError, match="decode: the model is conditioned on 'age'"):
        model.decode(torch.zeros(3, 2))
    with pytest.raises(RequestError, match="one value, or \\(3,\\) of them"):
        model.decode(torch.zeros(3, 2), covariates={"site": "A", "age": [1.0, 2.0]})
    with pytest.raises(RequestError, match="modality 'a' has no exposure"):
        model.translate(rows, exposure={"a": 1.0})
    with pytest.raises(DataError, match="extra has 'site' too"):
        Batch({"a": ROWS}, extra={"site": list("ABC")}, covariates={"site": list("ABC")})


INTO_PRIOR = {"site": Covariate(SITES, into=("decoders", "encoders", "prior"))}


def with_shifted_prior(prior, **options):
    """A tiny model whose prior was moved by sites, and rows of theirs."""
    model = tiny_models.model("poe", prior, "elbo", covariates=INTO_PRIOR, **options)
    rows = tiny_models.rows(9)
    rows.extra["site"] = [SITES[i % 3] for i in range(9)]
    with torch.no_grad():
        for name, value in model.prior.named_parameters():
            if "shift" in name:
                value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
    return model.eval(), rows


@pytest.mark.parametrize("prior", ["learnable", "mog"])
def test_a_prior_of_covariates_is_that_of_each_site_alone(prior):
    """Bound, likelihood and clusters of rows of one site are those of a model with its prior."""
    model, rows = with_shifted_prior(prior)
    for i, site in enumerate(SITES):
        single, _ = with_shifted_prior(prior)
        shift = torch.zeros(3, dtype=torch.float64)
        shift[i] = 1.0
        with torch.no_grad():
            live = single.prior
            live.loc += live.loc_shift.weight @ shift
            live.loc_shift.weight.zero_()
            if prior == "learnable":
                live.raw += live.raw_shift.weight @ shift
                live.raw_shift.weight.zero_()
        part = rows.take([j for j in range(9) if rows.extra["site"][j] == site])
        losses = []
        for either in (model, single):
            loss, _ = tiny_models.loss_and_gradients(either, part)
            losses.append(loss.bound)
        torch.testing.assert_close(*losses)
        generators = [torch.Generator().manual_seed(0) for _ in range(2)]
        scores = [
            either.log_likelihood(part, n=20, generator=g)
            for either, g in zip((model, single), generators, strict=True)
        ]
        torch.testing.assert_close(*scores)
        if prior == "mog":
            torch.testing.assert_close(
                model.clusters(part, soft=True), single.clusters(part, soft=True)
            )
        drawn = [
            either.sample(5, covariates={"site": site}, generator=torch.Generator().manual_seed(1))
            for either in (model, single)
        ]
        torch.testing.assert_close(drawn[0]["a"], drawn[1]["a"])
        nothing = [
            either.translate(part, to=["a"], given=(), covariates={"site": site}, latent="mean")[
                "a"
            ]
            for either in (model, single)
        ]
        torch.testing.assert_close(*nothing)


def test_the_density_of_a_prior_of_covariates_is_that_of_its_draws():
    model, _ = with_shifted_prior("learnable")
    context = torch.eye(3, dtype=torch.float64)
    density = model.prior_at(context=context)
    z = density.rsample(40_000, torch.Generator().manual_seed(0))
    expected = density.loc[0]
    error = density.scale[0] / 40_000**0.5
    assert ((z.mean(0) - expected).abs() < 4 * error).all()


def test_priors_that_depend_on_no_covariate_are_refused():
    with pytest.raises(SpecError, match="'standard' does not depend.*'learnable' or 'mog'"):
        Model({"a": (2,)}, covariates=INTO_PRIOR)
    model = Model({"a": (2,)}, prior="mog", covariates=INTO_PRIOR, seed=0)
    rows = Batch({"a": torch.randn(12, 2)}, covariates={"site": list(SITES) * 4})
    mvkit.fit(model, rows, epochs=2, progress=False)
    assert model.prior.loc_shift.weight.abs().max() > 0
    pruned = mvkit.prune_clusters(model, rows).model
    assert torch.isfinite(pruned.loss(rows).loss)


@pytest.mark.parametrize("aggregator", ["poe", "mopoe", "joint"])
def test_pseudo_inputs_have_covariates_of_their_own(aggregator):
    objective = "jmvae" if aggregator == "joint" else "elbo"
    model = tiny_models.model(aggregator, "vamp", objective, covariates=COVARIATES)
    rows = tiny_models.rows(8)
    rows.extra.update(site_and_age(8))
    loss = model.loss(rows).loss
    loss.backward()
    assert model.prior.context.shape == (20, 4)
    assert model.prior.context.grad.abs().max() > 0
    model.conditions.place(model.conform(rows).covariates)
    assert model.sample(3)["a"].shape == (3, 3)


def test_a_regression_has_the_coefficients_of_least_squares():
    """An outcome as a modality, covariates as its predictors: y = b₀ + b x + group + noise."""
    generator = np.random.default_rng(0)
    n = 400
    age, dose = 50 + 10 * generator.normal(size=n), generator.uniform(0, 5, size=n)
    group = generator.integers(3, size=n)
    y = 3 + 0.2 * age - 1.5 * dose + np.array([0.0, 4.0, -2.0])[group]
    y = y + generator.normal(size=n)
    ones = np.eye(3)[group][:, 1:]
    design = np.column_stack([np.ones(n), age, dose, ones])
    expected, *_ = np.linalg.lstsq(design, y, rcond=None)
    modality = Modality(
        (1,), {"name": "normal", "scale": "trained"}, encoder="linear", decoder="linear"
    )
    covariates = {"age": Covariate(), "dose": Covariate(), "group": (0, 1, 2)}
    model = Model({"y": modality}, latent_dim=1, covariates=covariates, seed=0)
    given = {"age": age, "dose": dose, "group": group}
    rows = Batch({"y": torch.tensor(y, dtype=torch.float32)[:, None]}, covariates=given)
    stages = [mvkit.Stage(epochs=400, lr_schedule={"name": "CosineAnnealingLR", "T_max": 400})]
    mvkit.fit(model, rows, stages=stages, lr=0.05, batch_size=400, progress=False)

    def mean(**changed):
        at = {"age": 50.0, "dose": 1.0, "group": 0, **changed}
        return float(model.decode(torch.zeros(1), covariates=at)["y"])

    slopes = [mean(age=51.0) - mean(), mean(dose=2.0) - mean()]
    slopes += [mean(group=1) - mean(), mean(group=2) - mean()]
    assert slopes == pytest.approx(expected[1:].tolist(), rel=0.02)
    assert mean() == pytest.approx(float(expected @ [1, 50, 1, 0, 0]), rel=0.02)
