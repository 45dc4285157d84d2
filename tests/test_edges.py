"""Edges that users and reviewers met: each was wrong once."""

import numpy as np
import pytest
import torch
from helpers import model, rows
from torch import nn

import mvkit
from mvkit import Batch, DataError, Modality, Model, NonFiniteError, ShapeError, SpecError
from mvkit.core.likelihood import Context
from mvkit.registry.component import Component

PRIVATE = {"a": Modality((3,), private_dim=2), "b": Modality((2,), private_dim=1)}


@pytest.mark.parametrize("aggregator", ["moe", "mopoe"])
def test_stand_ins_for_private_latents_take_no_part_in_likelihoods(aggregator):
    vae = model(aggregator, private=1, private_from="evidence", names=("a", "b"))
    other = model(aggregator, private=1, private_from="observed", names=("a", "b"))
    other.load_state_dict({k: v for k, v in vae.state_dict().items() if not k.startswith("cross")})
    batch = rows(names=("a", "b"), missing=False)
    with torch.no_grad():
        for scale in vae.cross.values():
            scale.fill_(-4.0)
    first, second = (
        m.log_likelihood(batch, n=50, generator=torch.Generator().manual_seed(0))
        for m in (vae, other)
    )
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize("prior", ["standard", "mog"])
@pytest.mark.parametrize("aggregator", ["poe", "moe", "mopoe", "joint", "mean_message"])
def test_no_shared_latent_with_every_objective(aggregator, prior):
    for objective in ("iwae", "dreg", "jmvae"):
        vae = (
            Model(
                PRIVATE,
                latent_dim=0,
                aggregator=aggregator,
                prior=prior,
                objective=objective,
                seed=0,
            )
            if (aggregator != "joint" or objective == "jmvae")
            else None
        )
        if vae is not None:
            batch = Batch({"a": torch.ones(2, 3), "b": torch.ones(2, 2)})
            vae.loss(batch).loss.backward()
            assert torch.isfinite(vae.log_likelihood(batch, n=3)).all()


def test_listed_subsets_and_rows_with_nothing_given():
    vae = Model(
        dict.fromkeys("abc", (2,)),
        latent_dim=2,
        aggregator={"name": "mopoe", "subsets": [["a", "b"]]},
    )
    nothing = torch.full((1, 2), torch.nan)
    posterior = vae.posterior(
        {"a": nothing, "b": nothing, "c": torch.ones(1, 2)}, given=["a", "b"], empty="prior"
    )
    assert torch.isfinite(posterior.mean).all()
    assert posterior.evidence.shape == (posterior.components, 1, 3)


def test_too_many_modalities_to_number_their_subsets():
    with pytest.raises(SpecError, match="more than 40 modalities cannot be drawn"):
        Model({f"m{i}": (1,) for i in range(41)}, aggregator={"name": "mopoe", "max_subsets": 4})


def test_the_optimal_scale_counts_only_draws_that_count():
    shapes = {k: Modality((2,), {"name": "normal", "scale": "optimal"}) for k in "ab"}
    batch = Batch({"a": torch.ones(3, 2), "b": torch.full((3, 2), torch.nan)})
    losses = []
    for fill in (0.0, 1e4):
        vae = Model(shapes, latent_dim=2, aggregator="moe", seed=0)

        def noise(site, shape, dtype, device, fill=fill):
            value = torch.zeros(shape, dtype=dtype)
            if site == "z":
                value[:, 1] = fill  # the component of b, which no row can use
            return value

        with mvkit.testing.noise(noise):
            losses.append(vae.loss(batch).loss.item())
        assert vae.decoders["a"].likelihood.scale.running < 10
    assert losses[0] == losses[1]


def test_private_latents_train_in_the_stage_whose_decoders_read_them():
    vae = Model(PRIVATE, aggregator="joint", schedule="joint_then_unimodal", seed=0)
    first, _ = mvkit.training.stages.as_stages(None, vae, 2)
    assert "encoders.*" in first.trainable
    with pytest.raises(SpecError, match="needs 2 epochs"):
        mvkit.fit(vae, {"a": torch.ones(4, 3), "b": torch.ones(4, 2)}, epochs=1)


def test_a_batch_conformed_to_another_order_is_conformed_again():
    first, second = (Model(dict.fromkeys(names, (2,)), latent_dim=2) for names in ("ab", "ba"))
    batch = first.conform({"a": torch.ones(1, 2)})
    assert second.conform(batch).observed.tolist() == [[False, True]]


def test_errors_name_the_row_of_the_whole_data():
    vae, a = Model({"a": (2,), "b": (2,)}, latent_dim=2), torch.ones(2000, 2)
    a[1500] = torch.nan
    data = {"a": a, "b": torch.ones(2000, 2)}
    with pytest.raises(DataError, match="row 1500"):
        vae.encode(data, given=["a"])
    with pytest.raises(DataError, match="row 1500"):
        vae.log_likelihood(data, ["b"], ["a"], n=1)


def test_given_may_be_an_iterator_or_one_name():
    vae, data = model(), rows(2000, missing=False)
    torch.testing.assert_close(
        vae.encode(data, given=(k for k in ["a"])), vae.encode(data, given=["a"])
    )
    torch.testing.assert_close(vae.encode(data, given="a"), vae.encode(data, given=["a"]))


def test_any_seed():
    mvkit.fit(model(), rows(), epochs=1, seed=20_240_101)
    mvkit.fit(model(), rows(), epochs=1, seed=-3)


def test_history_counts_the_rows_behind_each_mean():
    joint = {"name": "joint", "incomplete": "skip"}
    vae = model(joint)
    mask = torch.tensor([[True, True, True]] + [[True, False, False]] * 5)
    history = mvkit.fit(vae, Batch(rows(6).data, mask), epochs=1, batch_size=2)
    assert np.isfinite(history["bound"][0])
    means = []
    for batch_size in (1, 4):
        vae = model()
        mask = torch.tensor([[True, True, True], *[[True, False, False]] * 3])
        quiet = mvkit.Stage("elbo", 1, optimizer={"name": "adam", "lr": 0.0})
        with mvkit.testing.noise(
            lambda site, shape, dtype, device: torch.zeros(shape, dtype=dtype)
        ):
            means.append(
                mvkit.fit(vae, Batch(rows(4).data, mask), stages=[quiet], batch_size=batch_size)[
                    "log_px/b"
                ][0]
            )
    assert means[0] == pytest.approx(means[1])


def test_an_objective_that_bounds_nothing_says_so():
    data = {"a": torch.ones(2, 3), "b": torch.ones(2, 2)}
    assert "surrogate_bound" in Model(PRIVATE, aggregator="moe").loss(data).metrics
    assert "bound" in Model(PRIVATE, aggregator="poe").loss(data).metrics


def test_samples_and_draw_of_composed_objectives():
    for name in ("jmvae", "telbo"):
        model("mopoe", objective={"name": name, "samples": 3, "draw": "iid"}).loss(
            rows()
        ).loss.backward()


def test_kmeans_places_once_and_takes_any_loader():
    prior = {"name": "mog", "components": 2, "init": "kmeans"}
    vae = Model({"a": (2,)}, latent_dim=2, prior=prior, seed=0)
    mvkit.fit(vae, [{"a": torch.randn(8, 2)}], epochs=1)
    before = vae.prior.loc.detach().clone()
    mvkit.fit(vae, [{"a": torch.randn(8, 2)}], epochs=1, lr=0)
    assert torch.equal(before, vae.prior.loc)
    with pytest.raises(DataError, match="needs 2 rows"):
        mvkit.fit(Model({"a": (2,)}, prior=prior), {"a": torch.ones(1, 2)}, epochs=1)


class Viewed(nn.Module):
    """A module that cannot take zero rows."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.layer(x.view(len(x), -1))


def test_modules_that_take_no_empty_rows():
    nets = {k: Modality((3,), encoder=Viewed(3, 4), decoder=Viewed(2, 3)) for k in "ab"}
    for aggregator in ("poe", "moe", "joint"):
        vae = Model(nets, latent_dim=2, aggregator=aggregator, objective="jmvae")
        vae.loss({"a": torch.ones(2, 3)}).loss.backward()
        assert (vae.encoders["b"].layer.weight.grad == 0).all()
        vae.zero_grad()
        vae.posterior({"a": torch.ones(2, 3), "b": torch.ones(2, 3)}, given=["b"])


def test_nothing_observed_after_hiding():
    vae = Model({"a": (2,), "b": (2,)}, latent_dim=2)
    batch = vae.conform({"a": torch.tensor([[1.0, 1], [torch.nan] * 2]), "b": torch.ones(2, 2)})
    with pytest.raises(DataError, match="row 1 observes nothing"):
        vae.loss(batch.hide(["a"]))


def test_what_was_frozen_stays_frozen():
    vae = model()
    vae.encoders["a"].requires_grad_(False)
    before = vae.encoders["a"][0].weight.clone()
    mvkit.fit(vae, rows(), epochs=1)
    assert torch.equal(before, vae.encoders["a"][0].weight)
    assert not vae.encoders["a"][0].weight.requires_grad


def test_training_that_leaves_the_numbers_says_so():
    match = r"stage 0, epoch 1, batch 1: not finite: loss, .*rows 0, 1, 2, 3 of the data.*lower the learning rate"
    with pytest.raises(NonFiniteError, match=match):
        mvkit.fit(Model({"a": (2,)}, seed=0), {"a": 1e25 * torch.ones(4, 2)}, epochs=2)


def test_pictures_that_nobody_scaled():
    vae = Model({"a": Modality((1, 8, 8), {"name": "normal", "scale": 0.25})})
    with pytest.warns(UserWarning, match="divide pictures of 0…255 by 255"):
        vae.conform({"a": torch.randint(0, 256, (50, 1, 8, 8)).float()})


def test_things_that_are_no_plain_arrays():
    vae = Model({"a": (2,)})
    masked = np.ma.masked_array([[1.0, 999.0]], mask=[[False, True]])
    assert vae.conform({"a": masked}).elements["a"].tolist() == [[True, False]]
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ShapeError, match=r"DataFrame, whose rows nobody aligned.*\.to_numpy"):
        Batch({"a": pandas.DataFrame([[1.0, 2.0]])})
    with pytest.raises(ShapeError, match="expected an array of numbers"):
        Batch({"a": [[1.0], [1.0, 2.0]]})


def test_elements_and_extra_are_checked():
    vae = Model({"a": (2,), "b": (2,)})
    with pytest.raises(ShapeError, match="no data for 'A'; did you mean 'a'"):
        vae.conform(Batch({"a": torch.ones(2, 2)}, elements={"A": torch.ones(2, 2).bool()}))
    with pytest.raises(ShapeError, match="3 values for 2 rows"):
        vae.conform(Batch({"a": torch.ones(2, 2)}, extra={"label": [1, 2, 3]}))
    elements = {"a": torch.tensor([[True, True], [False, False]])}
    with pytest.raises(DataError, match="none of its elements"):
        vae.conform(Batch({"a": torch.ones(2, 2)}, torch.tensor([[True, False]] * 2), elements))


def test_a_likelihood_that_sums_by_itself():
    class Summing(nn.Module):
        params, class_axis = 1, False

        def log_prob(self, out, x, context: Context):
            return -(out - x).square().sum(-1)

    vae = Model({"a": (3,)})
    vae.decoders["a"].likelihood = Summing()
    batch = Model({"a": (3,)}).conform({"a": torch.ones(3, 3)})
    with pytest.raises(ShapeError, match=r"log_prob returned \(1, 3\); expected \(1, 3, 3\)"):
        vae.terms(batch)


def test_options_of_fit_and_numbers_of_draws():
    vae = model()
    for options in (
        {"batch_size": 0},
        {"lr": -1.0},
        {"seed": 1.5},
        {"epochs": 0},
        {"batch_size": "4"},
    ):
        name = next(iter(options))
        with pytest.raises(mvkit.RequestError, match=f"fit: {name}="):
            mvkit.fit(vae, rows(), **options)
    for ask in (
        lambda: vae.log_likelihood(rows(), n=0),
        lambda: vae.translate(rows(), n=2.0),
        lambda: vae.sample(-1),
    ):
        with pytest.raises(mvkit.RequestError, match="expected a whole number of at least 1"):
            ask()
    mvkit.fit(vae, rows(), epochs=1, batch_size=np.int64(4), seed=np.int64(3))


def test_numbers_of_numpy_in_specs():
    vae = Model(
        {"a": (np.int64(3),)},
        latent_dim=np.int64(4),
        prior={"name": "mog", "components": np.int64(3)},
    )
    assert vae.encode({"a": np.ones((2, 3))}).shape == (2, 4)
    with pytest.raises(SpecError, match="model.latent_dim: got"):
        Model({"a": (3,)}, latent_dim="4")


def test_parts_of_a_session_may_be_declared_again_but_not_shadow():
    for _ in range(2):
        mvkit.plugins.declare(Component("prior", "mine", "mvkit.parts.priors:Standard"))
    Model({"a": (2,)}, prior="mine")
    with pytest.raises(SpecError, match="is built in; take another name"):
        mvkit.plugins.declare(Component("prior", "mog", "mvkit.parts.priors:Standard"))


def test_a_modality_called_external(tmp_path):
    mvkit.save(Model({"external": (3,)}, rescale={"external": 2.0}), tmp_path / "m")
    assert mvkit.load(tmp_path / "m").names == ("external",)
    with pytest.raises(mvkit.CheckpointError, match="was no module of the user's"):
        mvkit.load(tmp_path / "m", encoders={"external": nn.Linear(3, 20)})
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        mvkit.save(Model({"a": (2,)}), tmp_path / "no" / "m")


def test_a_prior_of_torchs_kind_follows_the_generator():
    class Flow(nn.Module):
        def forward(self, posterior=None):
            return torch.distributions.Independent(
                torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1
            )

    vae = Model({"a": (3,)}, latent_dim=2)
    vae.prior = Flow()
    first, second = (
        vae.sample(3, generator=torch.Generator().manual_seed(0))["a"] for _ in range(2)
    )
    assert torch.equal(first, second)
    vae.loss({"a": torch.ones(2, 3)}).loss.backward()
    with pytest.raises(mvkit.RequestError, match="is no mixture"):
        vae.posterior({"a": torch.ones(2, 3)}, given=())
