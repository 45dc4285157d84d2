"""Network `ard`: its prior against quadrature, and what it keeps of linear-Gaussian latents."""

import math

import pytest
import torch
from helpers import model, rows
from scipy import integrate, stats
from torch import nn

import mvkit
from mvkit import Modality
from mvkit.parts import ARD
from mvkit.parts.relevance import ARDLinear, NormalLinear


def test_the_penalty_is_the_log_density_of_columns_by_quadrature():
    decoder = ARD("linear", concentration=1.5, rate=0.4).decoder(3, (4,)).double()
    expected = 0.0
    for column in decoder[0].weight.detach().T.numpy():

        def density(alpha, column=column):
            weights = stats.norm.pdf(column, scale=alpha**-0.5).prod()
            return weights * stats.gamma.pdf(alpha, 1.5, scale=1 / 0.4)

        expected -= math.log(integrate.quad(density, 0, 400, limit=500, epsabs=0, epsrel=1e-11)[0])
    assert decoder[0].penalty(7).item() == pytest.approx(expected / 7, rel=1e-9)


def test_later_layers_have_a_normal_prior():
    decoder = ARD({"name": "mlp", "hidden": [5]}).decoder(2, (3,)).double()
    assert [type(layer) for layer in decoder] == [ARDLinear, nn.ReLU, NormalLinear]
    weight = decoder[2].weight.detach().numpy()
    expected = -stats.norm.logpdf(weight, scale=5**-0.5).sum() / 9
    assert decoder[2].penalty(9).item() == pytest.approx(expected, rel=1e-12)


def test_the_networks_are_those_that_it_is_made_of():
    torch.manual_seed(0)
    plain = mvkit.parts.MLP((5,)).decoder(2, (3, 2))
    torch.manual_seed(0)
    decoder = ARD({"name": "mlp", "hidden": [5]}).decoder(2, (3, 2))
    z = torch.randn(4, 2)
    assert plain.state_dict().keys() == decoder.state_dict().keys()
    assert decoder(z).shape == (4, 3, 2)
    decoder.load_state_dict(plain.state_dict())
    assert torch.equal(plain(z), decoder(z))


def test_columns_of_covariates_are_left_alone():
    options = {"decoder": {"name": "ard", "network": "linear"}}
    tiny = model(first=options, covariates={"age": mvkit.Covariate(), "site": ("A", "B")})
    network = tiny.decoders["a"].network
    projection = network.projections["0"].weight
    before = network.network[0].penalty(3).item()
    with torch.no_grad():
        projection.mul_(100.0)
    assert network.network[0].penalty(3).item() == before
    assert network.network[0].weight.shape == (3, 2)
    assert tiny.relevance().shape == (2, 3)


def test_relevance_is_told_where_decoders_know_it(tmp_path):
    tiny = model(first={"decoder": "ard"}, private=1)
    mvkit.fit(tiny, rows(20), epochs=2, batch_size=8)
    weight = tiny.decoders["a"].network[0].weight
    expected = weight.detach().square().mean(0).sqrt()[:2]
    table = tiny.relevance()
    torch.testing.assert_close(table[:, 0], expected, rtol=1e-12, atol=0)
    assert table[:, 1:].isnan().all()
    mvkit.save(tiny, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    assert again.training_rows == 20
    assert again.header() == tiny.header()
    assert torch.equal(again.relevance(), table) is False  # NaN
    assert torch.equal(again.relevance()[:, 0], table[:, 0])
    with pytest.raises(mvkit.RequestError, match="relevance: no decoder tells"):
        model().relevance()


def test_in_a_stack():
    low = {k: Modality((3,), private_dim=2, decoder="ard") for k in "ab"}
    high = {k: Modality((2,), decoder={"name": "ard", "network": "linear"}) for k in "ab"}
    stack = mvkit.Stack([mvkit.Model(low, latent_dim=0), mvkit.Model(high, latent_dim=3)])
    x = {"a": torch.randn(10, 3), "b": torch.randn(10, 3)}
    history = mvkit.fit(stack, x, epochs=2)
    assert math.isfinite(history["penalty"][-1])
    assert stack.top.relevance().shape == (3, 2)
    assert stack.bottom.relevance().shape == (0, 2)


def test_decoders_that_are_not_fully_connected_are_refused():
    with pytest.raises(mvkit.SpecError, match=r"Conv\(.*has no fully connected decoder"):
        mvkit.Model({"a": Modality((1, 8, 8), decoder={"name": "ard", "network": "conv"})})
    for options in ({"rate": 0.0}, {"concentration": -1.0}):
        with pytest.raises(mvkit.SpecError, match="greater than 0"):
            ARD(**options)


def linear_data(seed, n=500):
    """Three latents of which a has all, b the first two, and c the last two; 6 columns each."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 3, generator=generator)
    data = {}
    for name, latents in {"a": [0, 1, 2], "b": [0, 1], "c": [1, 2]}.items():
        weight = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0][:, : len(latents)]
        scale = torch.tensor([2.0, 1.75, 1.5])[latents]
        noise = 0.5 * torch.randn(n, 6, generator=generator)
        data[name] = z[:, latents] @ (weight * scale).T + noise
    return data


TANH = {"name": "mlp", "hidden": [32], "activation": "tanh"}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_of_eight_latents_are_kept_and_each_where_it_is_needed(seed):
    networks = {"encoder": {"name": "mlp", "hidden": [32]}, "decoder": ARD(TANH)}
    data = linear_data(seed)
    normal = {"name": "normal", "scale": "trained"}
    modalities = {name: Modality((6,), normal, **networks) for name in data}
    vae = mvkit.Model(modalities, latent_dim=8, seed=seed)
    mvkit.fit(vae, data, epochs=250, batch_size=100, lr=5e-3, seed=seed, progress=False)
    table = vae.relevance()
    needed = table > 0.1
    assert (table[~needed] < 0.01).all()
    assert needed.any(1).sum() == 3
    assert needed.sum(0).tolist() == [3, 2, 2]
    assert (needed[:, 1] & needed[:, 2]).sum() == 1  # the second latent, which both have
