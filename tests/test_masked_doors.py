"""Every door of the objective `masked` and the network `tabular`."""

import math

import pytest
import torch
from helpers import model, rows

import mvkit
from mvkit import Batch, Modality, Model, SpecError, Stack, Stage
from mvkit.parts import Masked
from mvkit.testing import check_component, noise
from mvkit.testing.injected_noise import bound_noise
from mvkit.training.events import CheckpointSaved

KNOTS = [[-1.0, 0.0, 1.0], [0.0, 2.0], [-3.0, -2.0, -1.0, 5.0]]
TABLE = {"name": "tabular", "width": 8, "blocks": 1, "dropout_rate": 0.25}
HALF = {"name": "masked", "kl_weight": 0.5}


def table_model(covariates=None, objective=HALF, **options):
    """Two modalities with private latents, a mixture posterior and dropout."""
    modalities = {
        "a": Modality(
            (3,), encoder={**TABLE, "knots": KNOTS}, decoder=TABLE, indicator=True, private_dim=1
        ),
        "b": Modality((2, 2), encoder=TABLE, decoder=TABLE, private_dim=2),
    }
    options = {"aggregator": "mopoe", "prior": "mog", "seed": 0, **options}
    return Model(
        modalities, latent_dim=2, objective=objective, covariates=covariates or {}, **options
    )


def table_rows(b=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(b, 3, generator=generator)
    c = torch.randn(b, 2, 2, generator=generator)
    a[0, 1] = torch.nan
    a[3] = torch.nan
    c[2] = torch.nan
    c[4, 0, 1] = torch.nan
    return {"a": a, "b": c}


def conditional_rows(b=12):
    weight = 1.0 + torch.arange(b) % 3
    covariates = {"age": torch.arange(b).float(), "site": ["AB"[i % 2] for i in range(b)]}
    return Batch(table_rows(b), covariates=covariates, row_weight=weight)


def same_weights(one, other):
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("kind_and_name", [("objective", "masked"), ("network", "tabular")])
def test_conformance(kind_and_name):
    check_component(*kind_and_name)


@pytest.mark.parametrize("objective", ["masked", {"name": "sum", "terms": ["elbo", "masked"]}])
def test_a_model_of_what_is_missing_is_refused_when_it_is_made(objective):
    message = "masked hides cells at random, and the model says why cells are missing"
    with pytest.raises(SpecError, match=message) as refusal:
        model("mopoe", objective=objective, likelihood="normal", missingness="self")
    assert refusal.value.path.startswith("model.objective")
    explained = model("mopoe", objective="iwae", likelihood="normal", missingness="self")
    with pytest.raises(SpecError, match=message):
        explained.build_objective(objective)
    with pytest.raises(SpecError, match=message):
        mvkit.fit(explained, rows(8), stages=[Stage("elbo", 1), Stage(objective, 1)])


def two_columns(family, private_from):
    """Linear networks with a private latent for one cell, and for two."""
    law = {"name": "normal", "scale": 0.5}
    linear = {"likelihood": law, "encoder": "linear", "decoder": "linear", "private_dim": 1}
    modalities = {"a": Modality((1,), **linear), "b": Modality((2,), **linear)}
    options = {"family": family, "private_from": private_from, "seed": 0}
    hiding = Masked(kl_weight=0.7, low=0.6, high=0.9, samples=2)
    return Model(modalities, latent_dim=2, aggregator="poe", objective=hiding, **options).double()


PLACES = {("a", 0): 0, ("b", 0): 1, ("b", 1): 2}
STANDARD = (torch.zeros(1).double(), torch.ones(1).double())


def hidden_of(cells, uniform):
    """The cells of a row that are hidden, by its random numbers (4,)."""
    share = 0.6 + 0.3 * float(uniform[3])
    kept = max(cells, key=lambda cell: uniform[PLACES[cell]])
    return [cell for cell in cells if cell != kept and uniform[PLACES[cell]] < share]


def posteriors_of(tiny, cells, shown):
    """Location and scale of z, and of w by modality, by poe and from what is shown of a row."""
    precision = torch.ones(2).double()
    shift = torch.zeros(2).double()
    private = {}
    for name, width in (("a", 1), ("b", 2)):
        if not any(cell[0] == name for cell in shown):
            private[name] = STANDARD
            continue
        x = torch.zeros(1, width).double()
        for cell in shown:
            if cell[0] == name:
                x[0, cell[1]] = cells[cell]
        outputs = tiny.encoders[name](x)[0]
        scale = tiny.family.scale(outputs[2:4])
        precision = precision + 1 / scale.square()
        shift = shift + outputs[:2] / scale.square()
        private[name] = (outputs[4:5], tiny.family.scale(outputs[5:6]))
    return (shift / precision, precision.rsqrt()), private


def standard_kl(loc, scale):
    return (0.5 * (loc.square() + scale.square() - 1) - scale.log()).sum()


@pytest.mark.parametrize("private_from", ["observed", "evidence"])
@pytest.mark.parametrize("family", ["normal", "normal_softplus"])
@torch.no_grad()
def test_private_latents_of_what_is_hidden_are_those_of_the_prior(private_from, family):
    tiny = two_columns(family, private_from)
    generator = torch.Generator().manual_seed(1)
    data = {"a": torch.randn(8, 1, generator=generator).double()}
    data["b"] = torch.randn(8, 2, generator=generator).double()
    data["b"][2] = torch.nan
    data["a"][5] = torch.nan
    drawn = {}

    def source(site, shape, dtype, device):
        draw = torch.rand if site.startswith("choice") else torch.randn
        drawn[site] = draw(shape, generator=generator, dtype=dtype)
        return drawn[site]

    with noise(source):
        loss = tiny.loss(data).loss
    (site_of_z,) = [
        site for site in drawn if site.partition("/")[0] not in ("choice", "w", "cross")
    ]
    wholly_hidden = 0
    total = 0.0
    for i in range(8):
        cells = {c: data[c[0]][i, c[1]] for c in PLACES if not data[c[0]][i, c[1]].isnan()}
        hidden = hidden_of(cells, drawn["choice/hidden"][:, i])
        shown = [cell for cell in cells if cell not in hidden]
        shared, private = posteriors_of(tiny, cells, shown)
        value = -0.7 * (standard_kl(*shared) + sum(standard_kl(*q) for q in private.values()))
        for name, expert in private.items():
            w_loc, w_scale = expert
            unseen = expert is STANDARD
            wholly_hidden += unseen and any(cell[0] == name for cell in hidden)
            site = f"w/{name}"
            if unseen and private_from == "evidence":
                site = f"cross/{name}"
                w_scale = tiny.family.scale(tiny.cross[name])
            for s in range(2):
                z = shared[0] + shared[1] * drawn[site_of_z].reshape(2, 8, 2)[s, i]
                w = w_loc + w_scale * drawn[site].reshape(2, 8, 1)[s, i]
                output = tiny.decoders[name].network(torch.cat([z, w])[None])[0]
                for cell in hidden:
                    if cell[0] == name:
                        off = (cells[cell] - output[cell[1]]) / 0.5
                        log_p = -0.5 * off**2 - math.log(0.5) - 0.5 * math.log(2 * math.pi)
                        value = value + log_p / 2
        total = total + value / 8
    assert wholly_hidden > 2
    assert float(loss) == pytest.approx(-float(total), rel=1e-9)


def two_levels(low, high):
    bottom = {
        "a": Modality(
            (3,), encoder={**TABLE, "knots": KNOTS}, decoder=TABLE, indicator=True, private_dim=2
        ),
        "b": Modality((2, 2), encoder=TABLE, decoder=TABLE, private_dim=2),
    }
    shapes = {"a": (2,), "b": (2,)}
    levels = [
        Model(bottom, latent_dim=0, objective=low, seed=0),
        Model(shapes, latent_dim=2, objective=high, seed=0),
    ]
    return Stack(levels)


@pytest.mark.parametrize(("low", "high"), [(HALF, "elbo"), ("elbo", HALF), (HALF, HALF)])
def test_levels_of_a_stack_are_trained_saved_and_resumed(tmp_path, low, high):
    check_resumed(lambda: two_levels(low, high), table_rows(), tmp_path)


def check_resumed(fresh, data, folder):
    """A run that stopped inside an epoch ends with the bits of one that did not; and its file."""
    whole = fresh()
    expected = mvkit.fit(whole, data, epochs=3, batch_size=4)
    saves = 0

    def crash(event):
        nonlocal saves
        saves += isinstance(event, CheckpointSaved)
        if saves == 5:
            raise ArithmeticError("crashed")

    options = {"epochs": 3, "batch_size": 4, "checkpoint": folder / "run", "save_every": 0}
    with pytest.raises(ArithmeticError):
        mvkit.fit(fresh(), data, listeners=[crash], **options)
    again = fresh()
    history = mvkit.fit(again, data, resume="must", **options)
    assert history.rows == expected.rows
    same_weights(again, whole)
    mvkit.save(whole, folder / "model.safetensors")
    loaded = mvkit.load(folder / "model.safetensors")
    same_weights(loaded, whole)
    assert loaded.header() == whole.header()
    assert torch.equal(loaded.encode(data), whole.encode(data))


def test_a_run_with_dropout_covariates_and_row_weights_resumes_with_the_same_bits(tmp_path):
    covariates = {"age": mvkit.Covariate(), "site": ("A", "B")}
    check_resumed(lambda: table_model(covariates), conditional_rows(), tmp_path)


def test_a_new_level_of_a_covariate_is_seen_by_tables():
    own = table_model({"site": ("A", "B")}).eval()
    batch = Batch(table_rows(), covariates={"site": list("ABABABABABAB")})
    before = own.encode(batch)
    own.add_level("site", "C", like="A")
    assert torch.equal(own.encode(batch), before)
    moved = Batch(table_rows(), covariates={"site": ["C"] * 12})
    torch.testing.assert_close(own.encode(moved)[::2], before[::2])
    assert not torch.allclose(own.encode(moved)[1::2], before[1::2])


@pytest.mark.parametrize("predict", ["hidden", "all"])
def test_row_weights_count_rows(predict):
    hiding = {"name": "masked", "predict": predict, "kl_weight": 0.3, "low": 0.3, "high": 0.8}
    own = model("mopoe", "mog", hiding, private=1).eval()
    batch = rows(6)
    repeated = batch.take(torch.tensor([0, 1, 1, 2, 3, 3, 3, 4, 5]))
    weights = torch.tensor([1.0, 2.0, 1.0, 3.0, 1.0, 1.0])
    weighted = Batch(batch.data, batch.mask, row_weight=weights)
    with noise(bound_noise(range(6), own.names)):
        first = own.loss(weighted)
    with noise(bound_noise([0, 1, 1, 2, 3, 3, 3, 4, 5], own.names)):
        second = own.loss(repeated)
    # weights are brought to a mean of 1 by `fit`, not here
    assert first.loss.item() * 6 / 9 == pytest.approx(second.loss.item(), rel=1e-9)


def test_double_precision_and_no_modality_given():
    own = table_model().double()
    data = {name: x.double() for name, x in table_rows().items()}
    mvkit.fit(own, data, epochs=1)
    assert own.like.dtype == torch.float64
    prior = own.encode(data, given=(), empty="prior")
    assert prior.dtype == torch.float64
    assert torch.equal(prior, prior[:1].expand(12, 2))
    values = own.translate(data, given=(), empty="prior", n=3)
    assert values["a"].shape == (3, 12, 3)


def test_a_run_file_trains_both(tmp_path):
    from mvkit.apps.cli import main

    text = """
[data]
name = "linear_gaussian"
missing = 0.2
[model]
latent_dim = 2
objective = {name = "masked", kl_weight = 0.1, low = 0.2}
[model.modalities.x]
encoder = {name = "tabular", width = 8, blocks = 1}
decoder = {name = "tabular", width = 8, blocks = 1}
[train]
epochs = 1
"""
    names = list(mvkit.load_dataset("linear_gaussian").modalities)
    (tmp_path / "run.toml").write_text(text.replace("modalities.x", f"modalities.{names[0]}"))
    folder = tmp_path / "run"
    assert main(["train", str(tmp_path / "run.toml"), "--folder", str(folder)]) == 0
    trained = mvkit.load(folder / "model.safetensors")
    assert trained.objective == Masked(kl_weight=0.1, low=0.2)
    written = (folder / "run.toml").read_text()
    assert 'name = "masked"' in written
    assert 'name = "tabular"' in written
    assert main(["resume", str(folder)]) == 0


def test_a_run_file_is_refused_where_the_model_is_made(tmp_path, capsys):
    from mvkit.apps.cli import main

    text = """
[data]
name = "linear_gaussian"
[model]
latent_dim = 2
objective = "masked"
missingness = "self"
"""
    (tmp_path / "run.toml").write_text(text)
    assert main(["train", str(tmp_path / "run.toml"), "--folder", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "model.objective: masked hides cells at random" in said
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_both_are_described():
    text = repr(table_model())
    assert (
        "Masked(kl_weight=0.5, samples=1, low=0.1, high=0.5, predict='hidden', weights={})" in text
    )
    assert "Tabular(width=8, blocks=1, dropout_rate=0.25" in text
    assert "masked" in mvkit.available("objective")
    assert "tabular" in mvkit.available("network")
