"""A site that training never saw: its weights, their training alone, and files of them."""

import pytest
import torch
from torch import nn

import mvkit
from mvkit import Batch, Covariate, Modality, Model, RequestError, SpecError, Stage
from mvkit.parts.networks import WithContext

SITES = ("A", "B", "C")
EVERYWHERE = {
    "age": Covariate(),
    "site": Covariate(SITES, into=("decoders", "encoders", "prior")),
    "visit": Covariate((1, 2)),
}


def rows(sites, seed=0):
    generator = torch.Generator().manual_seed(seed)
    n = len(sites)
    given = {"site": sites, "age": torch.arange(n) + 20.0, "visit": [1 + i % 2 for i in range(n)]}
    return Batch({"a": torch.randn(n, 4, generator=generator)}, covariates=given)


def trained(prior="learnable", **options):
    model = Model({"a": (4,)}, latent_dim=2, prior=prior, covariates=EVERYWHERE, seed=0, **options)
    data = rows(["A"] * 12 + ["B"] * 6 + ["C"] * 6)
    mvkit.fit(model, data, epochs=2, progress=False)
    return model, data


@pytest.mark.parametrize("prior", ["learnable", "mog"])
def test_old_levels_keep_their_bits_and_a_new_one_begins_like_another(prior, tmp_path):
    model, data = trained(prior)
    codes, bound = model.encode(data), model.log_likelihood(data, n=1, generator=seeded())
    model.add_level("site", "D", like="B")
    torch.testing.assert_close(model.encode(data), codes, rtol=1e-6, atol=1e-6)
    again = model.log_likelihood(data, n=1, generator=seeded())
    torch.testing.assert_close(again, bound, rtol=1e-5, atol=1e-5)
    new, like = rows(["D"] * 5), rows(["B"] * 5)
    torch.testing.assert_close(model.encode(new), model.encode(like))
    drawn = [model.sample(3, covariates={"site": s}, generator=seeded())["a"] for s in "BD"]
    torch.testing.assert_close(*drawn)
    mvkit.save(model, tmp_path / "model")
    loaded = mvkit.load(tmp_path / "model")
    assert loaded.spec.covariates["site"].levels == (*SITES, "D")
    assert torch.equal(loaded.encode(new), model.encode(new))


def seeded():
    return torch.Generator().manual_seed(0)


def test_the_average_counts_levels_by_their_shares_in_training():
    model, _ = trained()
    projection = model.encoders["a"].projections["0"].weight.detach().clone()
    place = model.conditions.columns("site", "encoders")
    model.add_level("site", "D")
    weight = model.encoders["a"].projections["0"].weight
    expected = projection[:, place] @ torch.tensor([0.5, 0.25, 0.25])
    torch.testing.assert_close(weight[:, place.stop], expected)
    torch.testing.assert_close(weight[:, place.stop + 1 :], projection[:, place.stop :])


@pytest.mark.parametrize("aggregator", ["poe", "joint"])
def test_a_level_is_trained_alone(aggregator):
    objective = "jmvae" if aggregator == "joint" else "elbo"
    model, data = trained(aggregator=aggregator, objective=objective)
    model.add_level("site", "D")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    codes, new = model.encode(data), rows(["D"] * 20, seed=1)
    unseen = model.encode(new)
    mvkit.fit(
        model, new, stages=[Stage(epochs=3, trainable=["covariates.site.D"])], progress=False
    )
    assert torch.equal(model.encode(data), codes)
    assert not torch.equal(model.encode(new), unseen)
    changed = set()
    for name, value in model.state_dict().items():
        if not torch.equal(value, before[name]):
            changed.add(name)
            columns = (value != before[name]).any(0).nonzero().flatten().tolist()
            assert len(columns) == 1, name
    assert any(name.startswith("encoders") for name in changed)
    assert any(name.startswith("decoders") for name in changed)
    assert any(name.startswith("prior") for name in changed)
    assert all(p.requires_grad for p in model.parameters())


def test_a_level_beside_other_parameters():
    model, _ = trained()
    model.add_level("site", "D")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainable = ["covariates.site.D", "decoders.*"]
    stages = [Stage(epochs=1, trainable=trainable)]
    mvkit.fit(model, rows(["D"] * 8 + ["A"] * 8), stages=stages, progress=False)
    moved = (
        model.decoders["a"].network.projections["0"].weight
        != before["decoders.a.network.projections.0.weight"]
    )
    place = model.conditions.columns("site", "decoders")
    assert moved[:, place.start].any()
    frozen = (
        model.encoders["a"].projections["0"].weight != before["encoders.a.projections.0.weight"]
    )
    assert not frozen[:, place.start].any()


def test_a_stack_has_new_levels_in_its_bottom(tmp_path):
    shapes = {"a": (4,), "b": (3,)}
    covariates = {"site": SITES}
    model = mvkit.recipes.nexus(shapes, latent_dim=2, covariates=covariates, seed=0)
    data = Batch(
        {"a": torch.randn(9, 4), "b": torch.randn(9, 3)}, covariates={"site": list(SITES) * 3}
    )
    mvkit.fit(model, data, epochs=1, progress=False)
    codes = model.encode(data)
    model.add_level("site", "D")
    torch.testing.assert_close(model.encode(data), codes, rtol=1e-6, atol=1e-6)
    stage = Stage(epochs=1, trainable=["covariates.site.D"])
    new = Batch(data.data, covariates={"site": ["D"] * 9})
    mvkit.fit(model, new, stages=[stage], progress=False)
    mvkit.save(model, tmp_path / "model")
    assert torch.equal(mvkit.load(tmp_path / "model").encode(new), model.encode(new))


def test_vamp_and_convolutions_grow_too():
    modality = Modality((1, 8, 8), encoder="conv", decoder="conv")
    model = Model({"a": modality}, latent_dim=2, prior="vamp", covariates={"s": SITES}, seed=0)
    data = Batch({"a": torch.randn(6, 1, 8, 8)}, covariates={"s": list("ABCABC")})
    codes = model.encode(data)
    model.add_level("s", "D")
    torch.testing.assert_close(model.encode(data), codes, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(model.loss(data).loss)
    assert len([m for m in model.modules() if isinstance(m, WithContext)]) == 2


class Mine(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(7, 4)

    def forward(self, x, context):
        return self.layer(torch.cat([x, context], -1))


class MineDown(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 4)

    def forward(self, z, context):
        return self.layer(torch.cat([z, context], -1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sit", "D"), "did you mean 'site'"),
        (("age", 3), "'age' is a number"),
        (("site", "A"), "has the level 'A' already"),
        (("site", 4), "a level such as those of 'site': 'A'"),
        (("site", "D", "E"), "like='E' is no level"),
        (("visit", True), "a level such as those"),
    ],
)
def test_what_cannot_be_added_is_refused(arguments, message):
    model, _ = trained()
    name, level, *like = arguments
    with pytest.raises(RequestError, match=message):
        model.add_level(name, level, **({"like": like[0]} if like else {}))


def test_modules_of_users_and_decay_are_refused():
    modality = Modality((4,), encoder=Mine())
    model = Model({"a": modality}, latent_dim=2, covariates={"site": SITES}, seed=0)
    with pytest.raises(RequestError, match="encoders.a: a module of yours"):
        model.add_level("site", "D")
    assert model.spec.covariates["site"].levels == SITES
    decoded = Modality((4,), decoder=MineDown())
    half = Model({"a": decoded}, latent_dim=2, covariates={"site": SITES}, seed=0)
    with pytest.raises(RequestError, match="decoders.a.network: a module of yours"):
        half.add_level("site", "D")
    assert half.encoders["a"].projections["0"].weight.shape[1] == 3
    plain, _ = trained()
    stage = Stage(epochs=1, trainable=["covariates.site.A"], optimizer="adamw")
    with pytest.raises(SpecError, match="weight_decay moves the others"):
        mvkit.fit(plain, rows(["A"] * 4), stages=[stage], progress=False)
    for glob, message in (("covariates.sit.A", "did you mean"), ("covariates.site.E", "no level")):
        with pytest.raises(RequestError, match=message):
            mvkit.fit(plain, rows(["A"] * 4), stages=[Stage(epochs=1, trainable=[glob])])


def test_dispersions_by_level_follow_the_covariate(tmp_path):
    by_batch = {"name": "negative_binomial", "by": "feature_and_level", "level": "site"}
    modality = Modality((4,), by_batch, exposure="total", input="log1p")
    model = Model({"a": modality}, latent_dim=2, covariates={"site": SITES}, seed=0)
    table = model.decoders["a"].likelihood.log_theta
    assert table.shape == (3, 4)
    data = Batch(
        {"a": torch.poisson(torch.full((12, 4), 6.0))}, covariates={"site": list(SITES) * 4}
    )
    mvkit.fit(model, data, epochs=3, progress=False)
    table = model.decoders["a"].likelihood.log_theta.detach()
    assert len(table.unique(dim=0)) == 3
    model.add_level("site", "D", like="C")
    grown = model.decoders["a"].likelihood.log_theta
    assert torch.equal(grown, torch.cat([table, table[2:]]))
    new = Batch(data.data, covariates={"site": ["D"] * 12})
    assert torch.isfinite(model.loss(new).loss)
    mvkit.save(model, tmp_path / "model")
    assert torch.equal(mvkit.load(tmp_path / "model").encode(new), model.encode(new))
    with pytest.raises(SpecError, match="no covariate 'site' with levels"):
        Model({"a": modality})
    other = Modality((4,), {**by_batch, "levels": 2})
    with pytest.raises(SpecError, match="has 3; leave it out"):
        Model({"a": other}, covariates={"site": SITES})
