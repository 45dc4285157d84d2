"""Contrastive alignment: against a loop written from the paper, with gaps, weights, mixtures."""

import itertools
import math

import attrs
import pytest
import torch
from helpers import fillers, loss_and_gradients, model, rows

import mvkit
from mvkit import Covariate, Modality, Model, SpecError, Stage
from mvkit.parts.objectives.contrast import Temperature

CONTRAST = {"name": "align", "estimate": "contrast", "temperature": 0.5}
BOTH = {"name": "sum", "terms": ["elbo", CONTRAST]}
WEIGHTS = [0.5, 2.0, 0.0, 1.0, 3.0, 0.25, 1.0, 0.25]


def log_scale_of(tiny):
    return float(tiny.objectives["align"].log_scale.detach())


def terms(tiny, batch, log_scale, weights=None):
    """ℓ_i by loops over rows and pairs of modalities, CLIP's way: each direction, then halves."""
    mask = batch.observed
    weights = [1.0] * len(mask) if weights is None else weights
    codes = {}
    for name, i in itertools.product(tiny.names, range(len(mask))):
        if mask[i, tiny.names.index(name)]:
            mean = tiny.posterior(batch.take([i]), given=[name]).mean[0].detach()
            codes[name, i] = [float(value / mean.norm()) for value in mean]

    def similarity(first, second):
        return math.exp(log_scale) * sum(
            x * y for x, y in zip(codes[first], codes[second], strict=True)
        )

    values = []
    for i in range(len(mask)):
        value = 0.0
        for a, b in itertools.combinations(tiny.names, 2):
            if (a, i) not in codes or (b, i) not in codes:
                continue
            for source, target in ((a, b), (b, a)):
                total = 0.0
                for j in range(len(mask)):
                    if (target, j) in codes and (weights[j] > 0 or j == i):
                        total += math.exp(similarity((source, i), (target, j)))
                value += 0.5 * (math.log(total) - similarity((source, i), (target, i)))
        values.append(value)
    return values


PARTS = [
    ("poe",),
    ("moe", "mog"),
    ("mopoe", "vamp"),
    ("joint",),
    ("mean_message",),
    ("set",),
    ("wasserstein",),
]


@pytest.mark.parametrize("parts", PARTS, ids=str)
def test_it_is_the_loop_of_the_paper(parts):
    options = {"private": 1, "covariates": {"site": Covariate(("A", "B"))}}
    tiny = model(*parts, objective=CONTRAST, **options).eval()
    batch = attrs.evolve(rows(), extra={"site": ["AB"[i % 2] for i in range(8)]})
    values = terms(tiny, batch, log_scale_of(tiny))
    loss, gradients = loss_and_gradients(tiny, batch)
    assert sum(value > 0 for value in values) == 5  # three rows observe one modality alone
    assert float(loss.loss.detach()) == pytest.approx(sum(values) / 8, rel=1e-9)
    assert float(loss.metrics["align"]) == pytest.approx(sum(values) / 8, rel=1e-9)
    assert float(loss.metrics["temperature"]) == pytest.approx(0.5, rel=1e-6)
    assert gradients["objectives.align.log_scale"] != 0


def test_the_gradient_of_the_temperature_is_that_of_the_loop():
    tiny = model(objective=CONTRAST).eval()
    parameter = tiny.objectives["align"].log_scale
    _, gradients = loss_and_gradients(tiny, rows())
    place, step = float(parameter.detach()), 1e-5
    after, before = (sum(terms(tiny, rows(), place + sign * step)) / 8 for sign in (1, -1))
    assert float(gradients["objectives.align.log_scale"]) == pytest.approx(
        (after - before) / (2 * step), rel=1e-6
    )


def test_weights_multiply_each_rows_own_term_and_rows_without_are_absent():
    tiny = model("moe", objective=CONTRAST).eval()
    weighted = attrs.evolve(rows(), extra={"row_weight": WEIGHTS})
    values = terms(tiny, rows(), log_scale_of(tiny), WEIGHTS)
    total = sum(weight * value for weight, value in zip(WEIGHTS, values, strict=True))
    loss, gradients = loss_and_gradients(tiny, weighted)
    assert float(loss.loss.detach()) == pytest.approx(total / 8, rel=1e-9)
    assert float(loss.metrics["align"]) == pytest.approx(total / sum(WEIGHTS), rel=1e-9)
    others = [i for i in range(8) if WEIGHTS[i] > 0]
    without, others_gradients = loss_and_gradients(tiny, weighted.take(others))
    assert float(without.loss.detach()) * 7 == pytest.approx(
        float(loss.loss.detach()) * 8, rel=1e-9
    )
    for name, gradient in gradients.items():
        if gradient is not None:
            torch.testing.assert_close(others_gradients[name] * 7, gradient * 8)


def test_rows_of_one_modality_alone_have_a_loss_of_zero_and_finite_gradients():
    tiny = model(objective=CONTRAST)
    batch = attrs.evolve(rows(), mask=torch.tensor([[True, False, False]] * 8))
    loss, gradients = loss_and_gradients(tiny, batch)
    assert loss.loss == 0
    assert all(
        torch.isfinite(gradient).all() for gradient in gradients.values() if gradient is not None
    )


def test_fillers_and_codes_of_zero_change_nothing():
    tiny = model(objective=CONTRAST)
    expected = loss_and_gradients(tiny, rows())
    other = loss_and_gradients(tiny, fillers(rows(), math.nan))
    assert torch.equal(expected[0].loss, other[0].loss)
    with torch.no_grad():
        for parameter in tiny.encoders.parameters():
            parameter.zero_()
    _, gradients = loss_and_gradients(tiny, rows())
    assert all(
        torch.isfinite(gradient).all() for gradient in gradients.values() if gradient is not None
    )


def test_the_temperature_stays_where_clip_keeps_it():
    temperature = Temperature(0.01).double()
    with torch.no_grad():
        temperature.log_scale.fill_(7.0)
    assert float(temperature.eval()().detach()) == pytest.approx(100)
    scale = temperature.train()()
    assert float(temperature.log_scale.detach()) == pytest.approx(math.log(100))
    scale.backward()
    assert temperature.log_scale.grad > 0  # it can come back


def test_it_aligns_and_trains_its_temperature():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(256, 2, generator=generator)
    data = {"a": torch.cat([z, -z], dim=1), "b": 2 * z}
    shapes = {name: Modality((x.shape[1],), encoder="linear") for name, x in data.items()}
    vae = Model(shapes, latent_dim=2, objective=BOTH, seed=0)
    history = mvkit.fit(vae, data, epochs=20, batch_size=64, lr=0.02)
    first, last = history.rows[0], history.rows[-1]
    assert first["1/align"] == pytest.approx(math.log(64), abs=0.3)  # nothing but chance
    assert last["1/align"] < 3.3
    assert last["1/temperature"] < 0.45


def test_a_ramp_acts_on_it_and_a_file_of_an_alignment_says_nothing_of_contrast():
    tiny = model(objective=BOTH)
    mvkit.fit(tiny, rows(8), stages=[Stage(BOTH, 2, ramps={"terms.1.kl_weight": "linear"})])
    aligned = model(objective={"name": "sum", "terms": ["elbo", "align"]})
    term = aligned.header()["objective"]["terms"][1]
    assert set(term) == {"name", "alpha", "kl_weight", "estimate", "samples"}
    assert not len(aligned.objectives)


def test_what_cannot_be_contrasted_is_refused():
    with pytest.raises(SpecError, match="compares the shared codes of two modalities; got 1"):
        Model({"a": (3,)}, objective=CONTRAST)
    with pytest.raises(SpecError, match="latent_dim=0"):
        Model(
            {n: {"shape": (3,), "private_dim": 1} for n in "ab"}, latent_dim=0, objective=CONTRAST
        )
    for bad in (0.0, 2.0):
        with pytest.raises(SpecError, match="temperature: got"):
            model(objective={**CONTRAST, "temperature": bad})


def test_an_empty_batch_and_one_row():
    tiny = model(objective=CONTRAST)
    loss = tiny.loss(rows().take([0])).loss
    assert float(loss.detach()) == pytest.approx(0.0, abs=1e-12)  # a row is its only candidate
