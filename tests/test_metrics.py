"""Each metric against a value in closed form, or worked out by hand."""

import math

import attrs
import numpy as np
import pytest
import torch
from test_truth import exact

import mvkit
from mvkit import Batch, DataError, Modality, Model, ShapeError, SpecError, recipes
from mvkit.core import noise
from mvkit.evaluation.coherence import Coherence
from mvkit.evaluation.frechet import frechet_distance
from mvkit.evaluation.log_likelihood import Likelihood
from mvkit.evaluation.metric import ROW, EvaluationContext
from mvkit.evaluation.reconstruction import likeness
from mvkit.evaluation.representation import agreement

LINEAR = {"encoder": "linear", "decoder": "linear"}


def score(model, data, metric, **options):
    """Values by name of one metric, and the report."""
    report = mvkit.evaluate(model, data, [metric], **options)
    return {one.name: one for one in report.scores}, report


def test_likelihoods_are_those_of_the_truth():
    model, data = exact("poe", sigma=1.0)
    batch, truth = data.test.batch, data.truth
    asked = {
        "name": "likelihood",
        "queries": [(["m0", "m1", "m2"], []), (["m1"], []), (["m0"], ["m1", "m2"])],
        "n": 50,
    }
    found, report = score(model, batch, asked)

    def log_p(*names):
        return truth.log_prob({name: batch.data[name] for name in names}).mean().item()

    # the proposal is the exact posterior: every weight is p(x), without any noise
    assert found["log p(all)"].value == pytest.approx(log_p("m0", "m1", "m2"), abs=1e-8)
    assert found["log p(m1)"].value == pytest.approx(log_p("m1"), abs=1e-8)
    conditional = log_p("m0", "m1", "m2") - log_p("m1", "m2")
    assert found["log p(m0 | m1, m2)"].value == pytest.approx(conditional, abs=1e-8)
    assert found["effective sample size of log p(all)"].value == pytest.approx(50)
    assert not report.notes
    each = truth.log_prob(dict(batch.data))
    assert found["log p(all)"].error == pytest.approx((each.std() / math.sqrt(len(batch))).item())


def test_a_poor_proposal_is_said_to_be_one():
    model, data = exact("poe", sigma=0.5, widen=400.0)
    found, report = score(model, data.test, {"name": "likelihood", "n": 20})
    assert found["effective sample size of log p(all)"].value < 5
    assert any("likelihood: warning: log p(all) rests on" in note for note in report.notes)


def test_effective_sample_size_by_hand():
    model, data = exact("poe", sigma=0.5, widen=4.0)
    rows = model.conform(data.test.batch.take(slice(0, 1)))
    context = EvaluationContext(model, attrs.evolve(rows, extra={ROW: torch.zeros(1)}))
    by_row = noise.by_row(torch.Generator().manual_seed(3), torch.device("cpu"))
    noise.next_rows(by_row, 1)
    log_p, size = Likelihood(n=30)._evidence(context, context.rows, by_row)
    w = model.log_weights(rows, 30, generator=torch.Generator().manual_seed(3)).exp()[:, 0]
    assert size.item() == pytest.approx((w.sum() ** 2 / (w**2).sum()).item())
    assert log_p.item() == pytest.approx(w.mean().log().item())


def test_likelihoods_of_incomplete_rows_are_of_what_they_have():
    model, data = exact("poe", sigma=1.0, missing=0.5)
    rows = data.train.batch
    found, _ = score(model, rows, {"name": "likelihood", "limit": None, "n": 5})
    has = rows.mask[:, 1]
    own = data.truth.log_prob({"m1": rows.data["m1"][has]}).mean().item()
    assert found["log p(m1)"].value == pytest.approx(own, abs=1e-8)
    assert found["log p(m1)"].rows == int(has.sum())
    assert found["log p(m0 | m1, m2)"].rows == int(
        (rows.mask[:, 0] & rows.mask[:, 1:].any(1)).sum()
    )


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ([(["m9"], [])], "unknown modality 'm9'; did you mean"),
        ([(["m0"], ["m0"])], "nothing on both sides"),
        ([["m0"]], "expected a pair"),
    ],
)
def test_a_query_that_cannot_be(queries, message):
    model, data = exact()
    with pytest.raises(SpecError, match=message):
        mvkit.evaluate(model, data.test, [{"name": "likelihood", "queries": queries}])


def test_perfect_and_random_clusterings():
    labels = np.repeat(np.arange(5), 400)
    perfect = agreement((labels + 2) % 5, labels)
    assert perfect == {"accuracy": 1.0, "NMI": pytest.approx(1.0), "ARI": pytest.approx(1.0)}
    random = agreement(np.random.default_rng(0).integers(5, size=2000), labels)
    assert random["accuracy"] < 0.25
    assert random["NMI"] < 0.01
    assert abs(random["ARI"]) < 0.01


def test_agreement_by_hand():
    found = agreement(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 1]))
    assert found["accuracy"] == pytest.approx(
        4 / 6
    )  # clusters 0 and 1 to their classes, 2 left over
    # ARI: pairs together in both 2, in the clusters 4, in the classes 7, of 15
    expected = 4 * 7 / 15
    assert found["ARI"] == pytest.approx((2 - expected) / ((4 + 7) / 2 - expected))

    def h(*p):
        return -sum(x / 6 * math.log(x / 6) for x in p)

    mutual = h(3, 2, 1) + h(2, 4) - h(2, 1, 2, 1)
    assert found["NMI"] == pytest.approx(mutual / ((h(3, 2, 1) + h(2, 4)) / 2))


def test_frechet_distance_of_gaussians():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    x = (x - x.mean(0)) @ torch.linalg.inv(
        torch.linalg.cholesky(torch.cov(x.T))
    ).T  # mean 0, covariance I, exactly
    shift = torch.tensor([1.0, 2.0, 0.0], dtype=torch.float64)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, 3 * x + shift) == pytest.approx(5 + 3 * (3 - 1) ** 2)
    # covariances that do not commute, against scipy's square root of a matrix
    linalg = pytest.importorskip("scipy.linalg")
    a, b = (torch.randn(3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    first, second = (a @ a.T).numpy(), (b @ b.T).numpy()
    expected = np.trace(first + second - 2 * linalg.sqrtm(first @ second).real)
    assert frechet_distance(x @ a.T, x @ b.T) == pytest.approx(expected)


def test_frechet_of_the_model_that_made_the_data():
    model, data = exact(sigma=1.0)

    def net(x):
        return x[:, :2]

    found, _ = score(model, data.train, "frechet", features={"m0": net})
    real = net(data.train.batch.data["m0"])
    others = model.translate(data.train.batch, to=["m0"], given=["m1", "m2"], n=200)["m0"]
    expected = frechet_distance(real, net(others.flatten(0, 1)))
    assert found["m0, given all others"].value == pytest.approx(expected, rel=0.3, abs=0.05)
    assert found["m0, samples"].rows == 200


def test_coverage_of_the_true_model_is_nominal():
    model, data = exact("poe", sigma=1.0)
    found, _ = score(model, data.train, "calibration")
    for level in (50, 80, 95):
        one = found[f"m1, {level}% intervals hold"]
        assert one.value == pytest.approx(level / 100, abs=4 * one.error)
        assert one.error < 0.03


def test_coverage_of_a_model_that_is_too_sure_is_not():
    model, data = exact("poe", sigma=1.0)
    sure = Model(
        {
            n: attrs.evolve(m, likelihood={"name": "normal", "scale": 0.1})
            for n, m in model.modalities.items()
        },
        latent_dim=3,
    ).double()
    sure.load_state_dict(model.state_dict())
    found, _ = score(sure, data.train, "calibration")
    assert found["m1, 95% intervals hold"].value < 0.85


def test_errors_are_in_the_units_of_the_data():
    model, data = exact("poe")
    batch = data.test.batch
    found, _ = score(model, batch, "imputation")
    mean, _ = data.truth.posterior({k: batch.data[k] for k in ("m1", "m2")})
    off = mean @ data.truth.weight["m0"].T + data.truth.bias["m0"] - batch.data["m0"]
    spread = (batch.data["m0"] - batch.data["m0"].mean(0)).square().mean()
    assert found["m0, MSE"].value == pytest.approx(off.square().mean().item())
    assert found["m0, MAE"].value == pytest.approx(off.abs().mean().item())
    assert found["m0, R²"].value == pytest.approx((1 - off.square().mean() / spread).item())


def test_errors_count_observed_elements_only():
    model, data = exact("poe")
    x = {name: value.clone() for name, value in data.test.batch.data.items()}
    x["m0"][::2, 1] = torch.nan
    shown = ~x["m0"].isnan()
    found, _ = score(model, x, "reconstruction")
    made = model.translate(x, to=["m0"], latent="mean")["m0"][0]
    off = (made - data.test.batch.data["m0"])[shown]
    values = data.test.batch.data["m0"]
    centre = torch.where(shown, values, 0).sum(0) / shown.sum(0)
    assert found["m0, MSE"].value == pytest.approx(off.square().mean().item())
    share = 1 - off.square().mean() / (values - centre)[shown].square().mean()
    assert found["m0, R²"].value == pytest.approx(share.item())


def test_classes_are_scored_by_accuracy():
    model = Model(
        {"a": Modality((3,), **LINEAR), "b": Modality((4,), "categorical", **LINEAR)},
        latent_dim=2,
        seed=0,
    )
    rows = {"a": torch.randn(30, 3), "b": torch.arange(30) % 4}
    found, _ = score(model, rows, "imputation")
    made = model.translate(rows, to=["b"], given=["a"], latent="mean")["b"][0]
    assert found["b, accuracy"].value == pytest.approx(
        (made.argmax(1) == rows["b"]).float().mean().item()
    )


@pytest.mark.parametrize("side", [3, 8, 16])
def test_likeness_of_pictures(side):
    x = torch.rand(4, 1, side, side, dtype=torch.float64)
    torch.testing.assert_close(likeness(x, x, 1.0), torch.ones(4, dtype=torch.float64))
    flat = torch.full((1, 1, side, side), 0.2, dtype=torch.float64)
    c1 = 0.01**2  # of constants, the luminance term alone is left: (2 μν + c1) / (μ² + ν² + c1)
    expected = (2 * 0.2 * 0.6 + c1) / (0.2**2 + 0.6**2 + c1)
    assert likeness(flat, flat + 0.4, 1.0).item() == pytest.approx(expected, rel=1e-4)


def test_shares_of_variance_of_a_linear_decoder():
    shapes = {n: Modality((2,), private_dim=1, **LINEAR) for n in ("a", "b")}
    model = Model(shapes, latent_dim=1, seed=0).double()
    rows = {n: torch.randn(6000, 2, dtype=torch.float64) for n in ("a", "b")}
    found, _ = score(model, rows, "latents")
    z, w = model.encode(rows), model.private(rows)["a"]
    weight = model.decoders["a"].network[0].weight.detach()
    private = weight[:, 1].square().sum() * w.var()
    shared = weight[:, 0].square().sum() * z.var()
    share = (private / (private + shared)).item()
    assert found["share of variance of a, private"].value == pytest.approx(share, rel=0.05)
    assert found["share of variance of a, shared"].value == pytest.approx(1 - share, rel=0.05)


def test_active_dimensions():
    model = Model(
        {"a": Modality((3,), **LINEAR)},
        latent_dim=3,
        aggregator={"name": "poe", "prior_expert": False},
    ).double()
    with torch.no_grad():
        encoder = model.encoders["a"][0]
        encoder.weight.zero_(), encoder.bias.zero_()
        encoder.weight[0, 0], encoder.weight[1, 1] = 1.0, 0.09  # variances 1 and 0.0081
    found, _ = score(model, {"a": torch.randn(500, 3, dtype=torch.float64)}, "latents")
    assert found["active dimensions, shared"].value == 1


def separated(missing=0.0):
    """A model whose latent is the data, of three far classes, and rows of it."""
    made = {n: Modality((2,), {"name": "normal", "scale": 0.1}, **LINEAR) for n in ("a", "b")}
    model = (
        Model(made, latent_dim=2, aggregator={"name": "poe", "prior_expert": False})
        .double()
        .eval()
    )
    with torch.no_grad():
        for name in ("a", "b"):
            encoder, decoder = model.encoders[name][0], model.decoders[name].network[0]
            encoder.weight.zero_(), encoder.bias.fill_(-12.0), decoder.bias.zero_()
            encoder.weight[:2], decoder.weight[:] = torch.eye(2), torch.eye(2)
            encoder.bias[:2] = 0
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(240) % 3
    centre = torch.tensor([[0.0, 5.0], [5.0, 0.0], [-5.0, -5.0]], dtype=torch.float64)[label]
    data = {
        n: centre + 0.3 * torch.randn(240, 2, generator=generator, dtype=torch.float64)
        for n in ("a", "b")
    }
    mask = torch.rand(240, 2, generator=generator) > missing
    mask[:, 0] |= ~mask.any(1)
    return model, Batch(data, mask, extra={"label": label})


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_a_model_that_copies_is_coherent_and_separable(missing):
    model, rows = separated(missing)
    report = mvkit.evaluate(model, rows, ["coherence", "probe", "clusters"])
    for name in (
        "coherence/given 1",
        "coherence/self",
        "probe/accuracy given all",
        "probe/accuracy given a",
    ):
        assert report[name] == 1, name
    assert report["coherence/classifier of a, real values"] == 1
    assert report["clusters/k-means, accuracy"] == 1
    assert report["clusters/k-means, ARI"] == pytest.approx(1)


def test_coherence_by_hand_with_the_users_classifiers():
    """Classifiers that see one class only are right in a third of the rows; those of one class
    disagree in samples.
    """
    model, rows = separated()

    def const(c):
        return lambda x: torch.full((len(x),), c)

    found, report = score(model, rows, "coherence", classifiers={"a": const(0), "b": const(1)})
    assert found["given 1"].value == pytest.approx(1 / 3)
    assert found["unconditional"].value == 0
    assert found["given 1"].rows == 240
    assert not report.notes

    def scores(x):
        return torch.nn.functional.one_hot(torch.full((len(x),), 2), 3).float()

    found, _ = score(model, rows, "coherence", classifiers={"a": scores, "b": const(2)})
    assert found["unconditional"].value == 1


def test_coherence_takes_every_set_or_neighbours():
    names = tuple("abcdefg")
    assert len(Coherence().given(names[:5])) == 30
    assert len(Coherence().given(names)) == 6 * 7
    assert len(Coherence(sets="all").given(names)) == 2**7 - 2
    assert ("a", "b", "g") in Coherence().given(names)


@pytest.mark.parametrize(
    ("classifier", "error", "message"),
    [
        (
            lambda x: torch.zeros(3),
            ShapeError,
            r"the classifier of 'a' returned torch.float32 of shape \(3,\)",
        ),
        (lambda x: torch.zeros(len(x), 2, 2), ShapeError, "expected scores"),
        (
            lambda x: torch.full((len(x), 3), torch.nan),
            DataError,
            "classifier of 'a' returned values that are not finite",
        ),
    ],
)
def test_a_classifier_that_cannot_be(classifier, error, message):
    model, rows = separated()
    with pytest.raises(error, match=message):
        mvkit.evaluate(model, rows, ["coherence"], classifiers={"a": classifier})


def test_features_that_cannot_be():
    model, rows = separated()
    with pytest.raises(ShapeError, match="the features of 'a' have shape"):
        mvkit.evaluate(model, rows, ["frechet"], features={"a": lambda x: x[:, 0]})


def test_probe_of_a_set_that_is_not_there():
    model, rows = separated()
    with pytest.raises(SpecError, match="unknown modality 'c'"):
        mvkit.evaluate(model, rows, [{"name": "probe", "given": [["c"]]}])


def test_a_stack_is_measured_too():
    nets = {"encoder": {"name": "mlp", "hidden": [8]}, "decoder": {"name": "mlp", "hidden": [8]}}
    model = recipes.nexus(
        {"a": Modality((3,), **nets), "b": Modality((2,), **nets)},
        latent_dim=2,
        bottom_dim=2,
        seed=0,
    )
    rows = Batch(
        {"a": torch.randn(60, 3), "b": torch.randn(60, 2)}, extra={"label": torch.arange(60) % 2}
    )
    report = mvkit.evaluate(model, rows, features={"a": lambda x: x})
    of_three = {"agreement"}  # of two modalities that are generated from a third
    assert {score.metric for score in report.scores} == set(mvkit.available("metric")) - of_three
