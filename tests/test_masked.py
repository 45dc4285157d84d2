"""The objective `masked`: hidden cells are predicted from those that are left."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

import mvkit
from mvkit import Batch, Modality, Model, SpecError, recipes
from mvkit.parts import Masked, Tabular
from mvkit.testing import check_component, noise

B = 5


def rows():
    """Five rows of numbers and of classes, with gaps."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(B, 3, generator=generator, dtype=torch.float64)
    b = functional.one_hot(torch.tensor([[0, 1], [2, 2], [1, 0], [0, 0], [1, 2]]), 3).double()
    a[0, 1] = torch.nan
    a[3] = torch.nan
    b[1] = torch.nan
    b[4, 0] = torch.nan
    return {"a": a, "b": b}


def small_model(**options):
    modalities = {
        "a": Modality((3,), {"name": "normal", "scale": 0.5}, encoder="linear", decoder="linear"),
        "b": Modality((2, 3), "categorical", encoder="linear", decoder="linear"),
    }
    modalities["a"] = {**vars_of(modalities["a"]), "indicator": True}
    return Model(modalities, latent_dim=2, objective=Masked(**options), seed=0).double()


def vars_of(modality):
    return {
        "shape": modality.shape,
        "likelihood": modality.likelihood,
        "encoder": modality.encoder,
        "decoder": modality.decoder,
    }


def loop(model, data, uniform, eps, *, low, high, beta, predict):
    """The loss row by row, written from the formula, with poe's posterior by hand."""
    total = 0.0
    for i in range(B):
        cells = {}  # value by (modality, place)
        for name, x in data.items():
            for place in range(x.shape[1]):
                if not x[i, place].isnan().any():
                    cells[name, place] = x[i, place]
        order = [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
        scores = {cell: float(uniform[i, order.index(cell)]) for cell in cells}
        share = low + (high - low) * float(uniform[i, 5])
        kept = max(scores, key=scores.get)
        hidden = [cell for cell in cells if scores[cell] < share and cell != kept]
        seen = [cell for cell in cells if cell not in hidden]
        precision = torch.ones(2, dtype=torch.float64)
        shift = torch.zeros(2, dtype=torch.float64)
        for name in ("a", "b"):
            places = [place for own, place in seen if own == name]
            if not places:
                continue
            inputs = torch.zeros_like(data[name][i])
            for place in places:
                inputs[place] = cells[name, place]
            inputs = inputs.flatten()
            if name == "a":
                flags = torch.tensor([float(place in places) for place in range(3)])
                inputs = torch.cat([inputs, flags.double()])
            layer = [m for m in model.encoders[name].modules() if isinstance(m, torch.nn.Linear)][
                0
            ]
            loc, log_variance = (layer.weight @ inputs + layer.bias).chunk(2)
            precision = precision + (-log_variance).exp()
            shift = shift + (-log_variance).exp() * loc
        mean, sd = shift / precision, precision.rsqrt()
        z = mean + sd * eps[i]
        log_p = 0.0
        for name, place in hidden if predict == "hidden" else list(cells):
            network = model.decoders[name].network
            layer = [m for m in network.modules() if isinstance(m, torch.nn.Linear)][0]
            out = (layer.weight @ z + layer.bias).reshape(data[name].shape[1:])[place]
            x = cells[name, place]
            if name == "a":
                log_p += (
                    -0.5 * ((x - out) / 0.5) ** 2 - math.log(0.5) - 0.5 * math.log(2 * math.pi)
                )
            else:
                log_p += (out - out.logsumexp(0))[int(x.argmax())]
        kl = (0.5 * (sd**2 + mean**2 - 1) - sd.log()).sum()
        total = total - (log_p - beta * kl)
    return total / B


@pytest.mark.parametrize("predict", ["hidden", "all"])
@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_loss_and_gradients_equal_a_loop(predict, beta):
    model = small_model(kl_weight=beta, low=0.3, high=0.9, predict=predict)
    data = rows()
    generator = torch.Generator().manual_seed(5)
    uniform = torch.rand(B, 6, generator=generator, dtype=torch.float64)
    eps = torch.randn(B, 2, generator=generator, dtype=torch.float64)

    def source(site, shape, dtype, device):
        return uniform.T if site == "choice/hidden" else eps.reshape(shape)

    with noise(source):
        loss = model.loss(model.conform(Batch(data))).loss
    expected = loop(model, data, uniform, eps, low=0.3, high=0.9, beta=beta, predict=predict)
    assert torch.isclose(loss, expected, rtol=1e-10)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss, parameters, allow_unused=True)
    theirs = torch.autograd.grad(expected, parameters, allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        mine = torch.zeros(()) if mine is None else mine
        other = torch.zeros(()) if other is None else other
        assert torch.allclose(mine.double(), other.double(), rtol=1e-9, atol=1e-12)


def test_a_row_keeps_a_visible_cell_and_shares_are_kept():
    model = small_model(low=1.0, high=1.0)
    batch = model.conform(Batch(rows()))
    experts = model.experts(batch, generator=torch.Generator().manual_seed(0))
    hidden = model.objective.hidden_cells(batch, experts)
    seen = {name: batch.present(name) for name in hidden}
    seen["b"] = seen["b"][..., 0]
    left = sum((seen[name] & ~hidden[name]).flatten(1).sum(1) for name in hidden)
    assert left.tolist() == [1] * B
    for name in hidden:
        assert not (hidden[name] & ~seen[name]).any()
    many = model.conform(
        Batch({"a": torch.zeros(4000, 3), "b": torch.eye(3)[:2].expand(4000, 2, 3)})
    )
    experts = model.experts(many, generator=torch.Generator().manual_seed(0))
    cells = Masked(low=0.2, high=0.4).hidden_cells(many, experts)
    share = torch.cat(list(cells.values()), 1).float().mean()
    assert abs(float(share) - 0.3) < 0.01


def test_fillers_change_no_bit():
    model = small_model()
    losses = []
    for filler in (0.0, 1e6):
        data = {name: x.clone() for name, x in rows().items()}
        batch = model.conform(Batch(data))
        for name, x in batch.data.items():
            x[~batch.present(name)] = 0.0
        elements = {"a": ~data["a"].isnan(), "b": ~data["b"].isnan()[..., 0]}
        data = {name: torch.where(x.isnan(), filler, x) for name, x in data.items()}
        data["b"][~elements["b"]] = torch.tensor([1.0, 0.0, 0.0]).double()
        batch = model.conform(Batch(data, elements=elements))
        losses.append(model.loss(batch, generator=torch.Generator().manual_seed(1)).loss)
    assert torch.equal(*losses)


def test_what_is_reported_is_called_what_it_is():
    batch = Batch(rows())
    for predict, name in (("hidden", "surrogate_bound"), ("all", "bound")):
        model = small_model(predict=predict)
        assert name in model.loss(model.conform(batch)).metrics


def test_all_with_a_whole_kl_is_a_lower_bound():
    model = small_model(predict="all", kl_weight=1.0)
    batch = model.conform(Batch(rows()))
    bounds = [model.loss(batch).bound for _ in range(400)]
    log_px = model.log_likelihood(batch, n=4000)
    assert (torch.stack(bounds).mean(0) < log_px).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.6, "high": 0.5}, "objective.low: got 0.6, above high=0.5"),
        ({"weights": {"c": 1.0}}, "no modality 'c'"),
        ({"predict": "some"}, "predict"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        small_model(**options)


def test_totals_and_missing_not_at_random_are_refused():
    counts = {"a": Modality((3,), "poisson", exposure="total")}
    with pytest.raises(SpecError, match="masked hides single counts"):
        Model(counts, latent_dim=1, objective="masked")


def test_recipe_round_trips_and_resumes(tmp_path):
    data = {"a": np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)}

    def fresh():
        knots = [[-1.0, 0.0, 1.0]] * 3
        encoder = {"name": "tabular", "blocks": 0, "knots": knots}
        modality = Modality((3,), encoder=encoder, decoder="linear", indicator=True)
        return recipes.masked({"a": modality}, 4, width=16, blocks=1, seed=0)

    whole = fresh()
    mvkit.fit(whole, data, epochs=4, seed=0, progress=False)
    part = fresh()
    mvkit.fit(part, data, epochs=2, seed=0, progress=False, checkpoint=tmp_path / "run")
    again = fresh()
    mvkit.fit(again, data, epochs=4, seed=0, progress=False, checkpoint=tmp_path / "run")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    mvkit.save(whole, tmp_path / "model.safetensors")
    loaded = mvkit.load(tmp_path / "model.safetensors")
    assert torch.equal(loaded.encode(data), whole.encode(data))
    assert loaded.header() == whole.header()


def test_piecewise_codes_by_hand():
    network = Tabular(blocks=0, knots=((0.0, 1.0, 3.0), (-1.0, 1.0)))
    code = network.encoder((4,), 2)[0].double()
    rows = torch.tensor([[0.5, 0.0, 1.0, 1.0], [2.0, 5.0, 1.0, 0.0], [-4.0, -4.0, 1.0, 1.0]])
    expected = torch.tensor(
        [
            [0.5, 0.0, 0.5, 0.0, 1.0, 1.0],
            [1.0, 0.5, 0.0, 0.0, 1.0, 0.0],
            [0.0, 0.0, 0.0, 0.0, 1.0, 1.0],
        ]
    )
    assert torch.equal(code(rows.double()), expected.double())


@pytest.mark.parametrize("knots", [((1.0,),), ((1.0, 1.0),), ((2.0, 1.0),), (1.0, 2.0)])
def test_knots_must_rise(knots):
    with pytest.raises(SpecError, match="rising numbers, two at least"):
        Tabular(knots=knots)


def test_knots_of_other_columns_are_refused():
    with pytest.raises(SpecError, match="knots of 1 columns, and rows of 3 numbers"):
        Model({"a": Modality((3,), encoder={"name": "tabular", "knots": [[0.0, 1.0]]})})


def test_parts_conform():
    check_component("network", "tabular")
    check_component("objective", "masked")
