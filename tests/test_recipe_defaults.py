"""The defaults of recipes: what they are, and that nothing collapses under them."""

import pytest
import torch

import mvkit
from mvkit import Modality, recipes
from mvkit.parts import ELBO, Normal
from mvkit.training.annealing import Linear
from mvkit.training.stages import JointThenUnimodal, Single

SHAPES = {"a": (3,), "b": (2, 2), "c": (4,)}
FORMER_NEXUS = {"bottom_dim": 16, "dropout_rate": 0.5, "top_beta": 1.0, "warmup": 0}
REFERENCE_NEXUS = {
    "message_dim": 10,
    "dropout_rate": 0.0,
    "top_beta": 1.0,
    "scale": 1.0,
    "warmup": 20,
}


def test_nexus_has_narrow_codes_and_a_cheap_ramped_top():
    model = recipes.nexus(SHAPES, seed=0)
    assert [modality.private_dim for modality in model.bottom.modalities.values()] == [8] * 3
    assert model.top.spec.aggregator.dropout_rate == 0.7
    assert model.top.spec.objective.kl_weight == 0.2
    assert model.top.modalities["b"].likelihood == Normal(scale="optimal")
    assert model.bottom.spec.objective == ELBO()
    assert model.spec.schedule == Single(ramps={"kl_weight": Linear(0.0, 1.0, 5)})


def test_nexus_still_takes_the_settings_of_the_reference_library():
    model = recipes.nexus(SHAPES, bottom_dim={"a": 2, "b": 3, "c": 4}, **REFERENCE_NEXUS, seed=0)
    assert [modality.private_dim for modality in model.bottom.modalities.values()] == [2, 3, 4]
    assert model.top.spec.aggregator.message_dim == 10
    assert model.top.spec.aggregator.dropout_rate == 0.0
    assert model.top.spec.objective.kl_weight == 1.0
    assert model.top.modalities["b"].likelihood == Normal(scale=1.0)
    assert model.spec.schedule == Single(ramps={"kl_weight": Linear(0.0, 1.0, 20)})
    assert recipes.nexus(SHAPES, warmup=0).spec.schedule == Single()


def test_telbo_trains_in_one_stage_unless_told_otherwise():
    one = recipes.telbo(SHAPES, seed=0)
    assert one.spec.schedule == Single()
    two = recipes.telbo(SHAPES, stages=2, share=0.3, seed=0)
    assert isinstance(two.spec.schedule, JointThenUnimodal)
    assert two.spec.schedule.share == 0.3
    assert one.spec.objective == two.spec.objective


@pytest.mark.parametrize("recipe", ["jmvae", "mvae", "mhvae"])
def test_others_start_at_their_whole_kl(recipe):
    assert getattr(recipes, recipe)(SHAPES, seed=0).spec.schedule == Single()


@pytest.mark.parametrize(("recipe", "width"), [("dmvae", 2), ("mmvaeplus", 4), ("cmvae", 4)])
def test_private_latents_are_as_wide_as_the_recipe_says(recipe, width):
    model = getattr(recipes, recipe)(SHAPES, seed=0)
    assert {modality.private_dim for modality in model.modalities.values()} == {width}


def test_the_kl_of_dmvae_counts_half_unless_told_otherwise():
    assert recipes.dmvae(SHAPES, seed=0).spec.objective.kl_weight == 0.5
    published = recipes.dmvae(SHAPES, private_dim=4, beta=1.0, seed=0)
    assert published.spec.objective.kl_weight == 1.0
    assert published.modalities["a"].private_dim == 4


# what collapsed


def classes_with_much_of_their_own(views=4, width=24, own=12, seed=0):
    """800 rows of four tables: six classes, and many more factors that are each table's own."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(800) % 6
    centres = torch.randn(6, 4, generator=generator)
    shared = centres[label] + 0.3 * torch.randn(800, 4, generator=generator)
    data = {}
    for view in range(views):
        factors = torch.randn(800, own, generator=generator)
        from_shared = torch.randn(4, width, generator=generator) / 4
        from_own = torch.randn(own, width, generator=generator) / 2
        signal = torch.tanh(shared @ from_shared + factors @ from_own)
        data[f"m{view}"] = signal + 0.25 * torch.randn(800, width, generator=generator)
    return data


def trained_nexus(data, **options):
    network = {"name": "mlp", "hidden": [64, 64]}
    modalities = {}
    for name, x in data.items():
        shape = tuple(x.shape[1:])
        modalities[name] = Modality(shape, Normal(scale=0.25), encoder=network, decoder=network)
    model = recipes.nexus(modalities, latent_dim=8, seed=0, **options)
    train = {name: x[:600] for name, x in data.items()}
    mvkit.fit(model, train, epochs=12, batch_size=64, seed=0, progress=False)
    return model


def alive(latents):
    return int((latents.std(0) >= 0.3).sum())


def error(predictions, x, train):
    """Squared error as a share of that of the training rows' mean, over the modalities."""
    shares = []
    for name, values in x.items():
        around_mean = (values - train[name].mean(0)).square().mean()
        shares.append((predictions[name][0] - values).square().mean() / around_mean)
    return torch.stack(shares).mean().item()


def top_of(model, test, train):
    """Latents of the top that live, and its error on the codes."""
    codes, train_codes = model.private(test), model.private(train)
    decoded = model.top.translate(codes, latent="mean")
    return alive(model.encode(test)), error(decoded, codes, train_codes)


@pytest.mark.slow
def test_the_former_nexus_collapsed_on_these_rows():
    data = classes_with_much_of_their_own()
    train = {name: x[:600] for name, x in data.items()}
    test = {name: x[600:] for name, x in data.items()}
    latents, share = top_of(trained_nexus(data, **FORMER_NEXUS), test, train)
    assert latents < 2
    assert share > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "other rows", "two pictures", "incomplete"])
def test_nexus_learns_at_its_defaults(kind):
    data = classes_with_much_of_their_own(
        views=2 if kind == "two pictures" else 4, seed=1 if kind == "other rows" else 0
    )
    if kind == "two pictures":
        data = {name: x.reshape(-1, 4, 6) for name, x in data.items()}
    train = {name: x[:600] for name, x in data.items()}
    test = {name: x[600:] for name, x in data.items()}
    if kind == "incomplete":
        absent = torch.rand(800, generator=torch.Generator().manual_seed(0)) < 0.3
        gaps = torch.where(absent.reshape(-1, 1), torch.nan, data["m1"])
        model = trained_nexus(data | {"m1": gaps})
    else:
        model = trained_nexus(data)
    for codes in model.private(test).values():
        assert alive(codes) >= 2
    assert error(model.translate(test, latent="mean"), test, train) < 0.9
    latents, share = top_of(model, test, train)
    assert latents >= 2
    assert share < 0.9
