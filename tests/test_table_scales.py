"""Scales by feature, and decoders in units of each feature's spread, for models from tables."""

import numpy as np
import pytest
import torch
from scipy import stats

import mvkit
from mvkit import Modality, Model, MultimodalDataset
from mvkit.core.likelihood import Context
from mvkit.core.modality import Sizes
from mvkit.parts import Laplace, Normal, StudentT
from mvkit.training.starts import look_at_first_rows

TABLE = Normal(scale="trained", by="feature", outputs="standardised")
SCIPY = {
    "normal": stats.norm,
    "laplace": stats.laplace,
    "student_t": lambda loc, scale: stats.t(4.0, loc, scale),
}


def f64(values):
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


def table(n=500, seed=0):
    """Ten features of unit scale, ten that are a thousand times smaller, three constant ones."""
    generator = np.random.default_rng(seed)
    signal = generator.normal(size=(n, 3)) @ generator.normal(size=(3, 20))
    values = signal + 0.5 * generator.normal(size=(n, 20))
    return np.c_[values[:, :10], values[:, 10:] / 1000, np.full((n, 3), 2.0)].astype(np.float32)


def live(spec, shape):
    return Modality(shape, spec).likelihood.build(Sizes.alone(Modality(shape, spec))).double()


def test_tables_get_scales_by_feature_and_pictures_one():
    arrays = {"rows": np.random.rand(6, 4), "number": np.random.rand(6)}
    arrays["picture"] = np.random.rand(6, 1, 4, 4)
    modalities = MultimodalDataset.from_arrays(arrays).modalities
    assert modalities["rows"].likelihood == TABLE
    assert modalities["number"].likelihood == TABLE
    assert modalities["picture"].likelihood == Normal(scale="trained")


def test_options_that_are_given_stay():
    arrays = {"a": np.random.rand(6, 4)}
    given = {"a": {"likelihood": "normal"}}
    modality = MultimodalDataset.from_arrays(arrays, modalities=given).modalities["a"]
    assert modality.likelihood == Normal()
    given = {"a": {"encoder": "linear"}}
    modality = MultimodalDataset.from_arrays(arrays, modalities=given).modalities["a"]
    assert modality.likelihood == TABLE


@pytest.mark.parametrize("scale", [30.0, "trained", "optimal", "decoded"])
@pytest.mark.parametrize("name", ["normal", "laplace", "student_t"])
def test_density_is_that_of_outputs_in_units_of_the_spread(name, scale):
    if name != "normal" and scale == "optimal":
        return  # which the normal law alone has
    generator = np.random.default_rng(1)
    x = 5 + np.array([0.5, 1.0, 300.0]) * generator.normal(size=(40, 3))
    part = live({"name": name, "scale": scale, "by": "feature", "outputs": "standardised"}, (3,))
    part.start(f64(x), torch.ones(40, 3, dtype=torch.bool))
    part.eval()
    out = generator.normal(size=(1, 40, 3))
    mean, sd = x.mean(0), x.std(0)
    raw = generator.normal(size=out.shape) if scale == "decoded" else None
    numbers = out if raw is None else np.stack([out, raw], -1)
    scales = {"trained": sd, "optimal": 1.0, "decoded": None, 30.0: 30.0}[scale]
    if raw is not None:
        scales = np.exp(raw) * sd + 1e-3 * sd
    oracle = SCIPY[name](mean + sd * out, scales).logpdf(x)
    log_p = part.log_prob(f64(numbers), f64(x), Context())
    assert np.allclose(log_p.detach().numpy(), oracle, rtol=1e-9, atol=1e-9)
    assert np.allclose(part.mean(f64(numbers)).detach(), mean + sd * out, rtol=1e-12)


@pytest.mark.parametrize("spec", [Normal, Laplace, StudentT])
def test_draws_are_in_the_units_of_the_data(spec):
    x = np.array([7.0, -2e3]) + np.array([1e-2, 1e2]) * np.random.default_rng(0).normal(
        size=(4000, 2)
    )
    part = live(spec(scale="trained", by="feature", outputs="standardised"), (2,))
    part.start(f64(x), torch.ones(4000, 2, dtype=torch.bool))
    context = Context(generator=torch.Generator().manual_seed(0))
    draws = part.sample(torch.zeros(1, 4000, 2, dtype=torch.float64), context)[0]
    medians = draws.detach().numpy() - x.mean(0)
    assert (np.abs(np.median(medians, 0)) < 0.06 * x.std(0)).all()
    middle = np.quantile(np.abs(medians), 0.5, axis=0) / x.std(0)
    assert (middle > 0.5).all()
    assert (middle < 0.9).all()


def test_units_ignore_what_is_missing_and_are_learnt_once():
    x = f64([[1.0, 5.0], [3.0, 1e6], [5.0, 5.5]])
    observed = torch.tensor([[True, True], [True, False], [True, True]])
    part = live(TABLE, (2,))
    part.start(x, observed)
    assert part.units.loc.tolist() == pytest.approx([3.0, 5.25])
    assert part.units.spread.tolist() == pytest.approx([np.sqrt(8 / 3), 0.25])
    part.start(100 * x, observed)
    assert part.units.loc.tolist() == pytest.approx([3.0, 5.25])


def test_floor_is_a_thousandth_of_the_spread():
    part = live(TABLE, (2,))
    x = f64(np.random.default_rng(0).normal(size=(50, 2)) * [1e-3, 1e3])
    part.start(x, torch.ones(50, 2, dtype=torch.bool))
    with torch.no_grad():
        part.scale.log.fill_(-60.0)
    assert torch.allclose(part.scale() / x.std(0, correction=0), f64([1e-3, 1e-3]))


def test_constant_features_have_a_thousandth_of_the_spread_of_all():
    part = live(TABLE, (3,))
    x = f64(np.random.default_rng(0).normal(size=(50, 3))) * f64([1.0, 1.0, 0.0]) + 0.1
    part.start(x, torch.ones(50, 3, dtype=torch.bool))
    together = (x - x.mean(0)).square().mean().sqrt()
    assert part.units.spread[2].item() == pytest.approx(together.item() / 1000)


def test_decoders_start_at_the_means_of_features_on_any_scale():
    data = MultimodalDataset.from_arrays({"a": table()})
    model = Model(data.modalities, latent_dim=4, seed=0)
    look_at_first_rows(model, mvkit.Pipeline(data, schema=model.schema))
    x = torch.as_tensor(table())
    distance = (model.decode(torch.zeros(4))["a"] - x.mean(0)) / x.std(0).clamp(min=1e-3)
    assert distance.abs().max() < 0.5


def test_features_far_smaller_than_others_are_learnt_beside_constant_ones():
    """With outputs in the data's units, all latents died on these columns."""
    data = MultimodalDataset.from_arrays({"a": table()})
    model = Model(data.modalities, latent_dim=4, seed=0)
    mvkit.fit(model, data, epochs=40, batch_size=32, seed=0, progress=False)
    x = data.batch.data["a"]
    error = (x - model.translate(data, latent="mean")["a"][0]).square().mean(0)
    share = error[:20] / x.var(0)[:20]
    assert share[:10].mean() < 0.5
    assert share[10:].mean() < 0.5
    assert (model.encode(data).std(0) > 0.3).sum() >= 2


def test_model_is_the_same_after_save_load_and_in_float64(tmp_path):
    data = MultimodalDataset.from_arrays({"a": table(60)})
    model = Model(data.modalities, latent_dim=2, seed=0)
    mvkit.fit(model, data, epochs=1, progress=False)
    mvkit.save(model, tmp_path / "m.safetensors")
    again = mvkit.load(tmp_path / "m.safetensors")
    z = torch.randn(5, 2)
    assert torch.equal(again.decode(z)["a"], model.decode(z)["a"])
    assert model.double().decode(z.double())["a"].dtype == torch.float64


def test_header_of_other_models_says_nothing_of_it():
    header = Model({"a": Modality((2,), Normal(scale="trained"))}, seed=0).header()
    assert header["modalities"]["a"]["likelihood"] == {"name": "normal", "scale": "trained"}
    header = Model({"a": Modality((2,), TABLE)}, seed=0).header()
    assert header["modalities"]["a"]["likelihood"]["outputs"] == "standardised"


def test_option_is_checked():
    with pytest.raises(mvkit.SpecError, match="outputs.*'values' or 'standardised'"):
        Normal(outputs="units")
