"""Mixtures of normals with any covariances, placed by codes, and what rows they are given."""

import math
import shutil

import pytest
import torch
from helpers import model, rows
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import mvkit
from mvkit import Batch, DataError, Model, RequestError, SpecError, Stack, Stage
from mvkit.core.correlated_mixture import CorrelatedMixture
from mvkit.parts.families import LaplaceSoftmax, Normal, NormalSoftplus
from mvkit.parts.mixture_fit import fit_mixture, precision_roots
from mvkit.registry.spec import to_dict
from mvkit.training.events import CheckpointSaved

COVARIANCES = ("diagonal", "tied", "full")


def covariances(c, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(c, d, d, generator=generator).double() + 2 * torch.eye(d).double()
    return factor @ factor.transpose(1, 2) + 0.1 * torch.eye(d).double()


def mixture(c=3, d=2, b=1):
    generator = torch.Generator().manual_seed(1)
    loc = torch.randn(c, b, d, generator=generator).double() * 3
    covariance = covariances(c, d)
    weight = torch.rand(c, generator=generator).double()
    log_weight = (weight / weight.sum()).log()[:, None].expand(c, b)
    prior = CorrelatedMixture(Normal(), loc, precision_roots(covariance), log_weight)
    normals = MultivariateNormal(loc[:, 0], covariance)
    return prior, MixtureSameFamily(Categorical(logits=log_weight[:, 0]), normals)


def test_density_and_responsibilities_are_those_of_torch():
    prior, right = mixture()
    z = torch.randn(4, 5, 2, generator=torch.Generator().manual_seed(2)).double()
    torch.testing.assert_close(prior.log_prob(z), right.log_prob(z), rtol=0, atol=1e-12)
    normals = right.component_distribution
    joint = normals.log_prob(z[..., None, :]) + right.mixture_distribution.logits
    torch.testing.assert_close(prior.joint(z), joint, rtol=0, atol=1e-12)


def test_density_in_blocks_is_the_density(monkeypatch):
    prior, right = mixture()
    z = torch.randn(7, 5, 2, generator=torch.Generator().manual_seed(2)).double()
    z.requires_grad_()
    monkeypatch.setattr("mvkit.core.correlated_mixture.DENSITIES", 130)
    log_p = prior.log_prob(z)
    (gradient,) = torch.autograd.grad(log_p.sum(), z)
    (expected,) = torch.autograd.grad(right.log_prob(z).sum(), z)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("component", [None, 2])
def test_draws_have_the_moments_of_the_mixture(component):
    prior, right = mixture()
    n = 200_000
    z, picked = prior.sample(n, component, torch.Generator().manual_seed(0))
    normals = right.component_distribution
    mean, covariance = right.mean, None
    if component is None:
        share = torch.bincount(picked).double() / n
        torch.testing.assert_close(share, right.mixture_distribution.probs, rtol=0, atol=5e-3)
        shift = normals.mean - mean
        probs = right.mixture_distribution.probs
        spread = normals.covariance_matrix + torch.einsum("cd,ce->cde", shift, shift)
        covariance = torch.einsum("c,cde->de", probs, spread)
    else:
        mean, covariance = normals.mean[2], normals.covariance_matrix[2]
    error = 5 * covariance.diagonal().max().sqrt() / math.sqrt(n)
    torch.testing.assert_close(z.mean(0), mean, rtol=0, atol=float(error))
    torch.testing.assert_close(z.T.cov(), covariance, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("how", ["iid", "stratified", "balanced"])
def test_draws_know_their_density(how):
    prior, right = mixture()
    rows_of_prior = prior.expand(6, 2)
    assert not rows_of_prior.evidence.any()
    draws = rows_of_prior.draw(3, how, torch.Generator().manual_seed(0))
    normals = right.component_distribution
    log_q = normals.log_prob(draws.z[..., None, :])
    component = draws.component
    if component is None:
        component = torch.arange(3)[None, :, None].expand(3, 3, 6)
    expected = log_q.gather(-1, component.expand(draws.z.shape[:-1])[..., None])[..., 0]
    torch.testing.assert_close(draws.log_qk, expected, rtol=0, atol=1e-12)
    assert draws.evidence.shape[-1] == 2


def test_latents_of_another_width_are_refused():
    with pytest.raises(mvkit.ShapeError, match="expected"):
        mixture()[0].log_prob(torch.zeros(2, 1, 3).double())


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_standard_mixture_is_the_standard_prior(covariance):
    tiny = model("moe", {"name": "mog", "covariance": covariance, "learn_scale": True})
    tiny.prior.become_standard()
    z = torch.randn(3, 8, tiny.latent_dim, generator=torch.Generator().manual_seed(0)).double()
    standard = model("moe").prior_at().log_prob(z)
    torch.testing.assert_close(tiny.prior_at().log_prob(z), standard, rtol=0, atol=1e-12)


def test_trained_roots_are_roots_of_precisions():
    tiny = model("moe", {"name": "mog", "components": 3, "covariance": "full"}, "dreg")
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for parameter in tiny.prior.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    batch = rows()
    z = torch.randn(4, 8, tiny.latent_dim, generator=generator).double()
    raw = tiny.prior.raw_root
    log_p = []
    for c in range(3):
        root = raw[c].tril(-1) + torch.diag(raw[c].diagonal().exp())
        normal = MultivariateNormal(tiny.prior.loc[c, 0], precision_matrix=root.T @ root)
        log_p.append(normal.log_prob(z) + torch.log_softmax(tiny.prior.logits, 0)[c])
    expected = torch.logsumexp(torch.stack(log_p), 0)
    torch.testing.assert_close(tiny.prior_at().log_prob(z), expected, rtol=1e-9, atol=1e-9)
    tiny.loss(batch).loss.backward()
    assert tiny.prior.raw_root.grad.abs().sum() > 0


def test_laplace_experts_have_no_correlated_prior():
    with pytest.raises(SpecError, match="which only normals can have"):
        model("moe", {"name": "mog", "covariance": "tied"}, family="laplace_softmax")


@pytest.mark.parametrize("family", [Normal(), NormalSoftplus()])
def test_raw_inverts_scale(family):
    scale = torch.tensor([0.01, 0.5, 1.0, 10.0]).double()
    torch.testing.assert_close(family.scale(family.raw(scale)), scale, rtol=1e-9, atol=1e-9)


def test_raw_of_softmax_keeps_proportions():
    scale = torch.tensor([0.5, 1.0, 1.5]).double()
    family = LaplaceSoftmax()
    torch.testing.assert_close(family.scale(family.raw(2 * scale)), scale, rtol=1e-5, atol=1e-5)


# fitting


def blobs(n=600, d=3, c=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 8 * torch.randn(c, d, generator=generator).double()
    label = torch.arange(n) % c
    factor = torch.randn(d, d, generator=generator).double() / 2
    noise = torch.randn(n, d, generator=generator).double() @ factor
    return centres[label] + noise, label


@pytest.mark.parametrize("kind", COVARIANCES)
def test_fit_finds_blobs_and_their_moments(kind):
    z, label = blobs()
    fit = fit_mixture(z, 4, kind, seed=0)
    of_label = {int(fit.shares[label == c].mean(0).argmax()): c for c in range(4)}
    assert sorted(of_label) == [0, 1, 2, 3]
    within = sum(z[label == c].T.cov(correction=0) for c in range(4)) / 4
    for k, c in of_label.items():
        own = z[label == c]
        torch.testing.assert_close(fit.loc[k], own.mean(0), rtol=0, atol=1e-6)
        covariance = own.T.cov(correction=0)
        if kind == "tied":
            covariance = within
        if kind == "diagonal":
            covariance = torch.diag(covariance.diagonal())
        torch.testing.assert_close(fit.covariance[k], covariance, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fit.weight, torch.full((4,), 0.25).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", COVARIANCES)
def test_weights_count_rows_as_often(kind):
    z, _ = blobs(200, c=2)
    weight = torch.arange(200) % 3
    twice = z.repeat_interleave(weight, 0)
    # one component: no choice of centres, whose draws depend on the rows
    first = fit_mixture(z, 1, kind, seed=0, weight=weight.double())
    second = fit_mixture(twice, 1, kind, seed=0)
    torch.testing.assert_close(first.loc, second.loc, rtol=0, atol=1e-9)
    torch.testing.assert_close(first.covariance, second.covariance, rtol=0, atol=1e-9)


def test_fit_is_as_likely_as_that_of_scikit_learn():
    from sklearn.mixture import GaussianMixture

    z, _ = blobs(300, c=3, seed=4)
    for kind, name in zip(COVARIANCES, ("diag", "tied", "full"), strict=True):
        other = GaussianMixture(3, covariance_type=name, n_init=5, random_state=0, tol=1e-6)
        log_prob = other.fit(z.numpy()).score(z.numpy())
        assert fit_mixture(z, 3, kind, seed=0).log_prob == pytest.approx(log_prob, abs=2e-3)


# stages that place


def made(prior=None, schedule="single", **options):
    prior = {"name": "mog", "components": 3, "covariance": "tied", **(prior or {})}
    return model("moe", prior, schedule=schedule, **options)


def seeing(components, covariance):
    """A model whose encoder hands on what it sees, with small scales, so that codes are known."""
    vae = Model(
        {"a": {"shape": (2,), "encoder": "linear"}},
        latent_dim=2,
        prior={
            "name": "mog",
            "components": components,
            "covariance": covariance,
            "learn_scale": True,
        },
        aggregator={"name": "poe", "prior_expert": False},
        seed=0,
    ).double()
    linear = next(module for module in vae.encoders["a"].modules() if hasattr(module, "weight"))
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[:2] = torch.eye(2)
        linear.bias.copy_(torch.tensor([0.0, 0.0, -14.0, -14.0]))
    return vae


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_stage_places_the_prior_at_the_blobs(covariance):
    z, label = blobs(300, d=2, c=3)
    z = (z - z.mean(0)) / z.std(0)
    vae = seeing(3, covariance)
    mvkit.fit(vae, {"a": z}, epochs=1, stages=Stage(None, 1, place="prior"), lr=0.0)
    assert [int(c) for c in vae.clusters({"a": z}).unique()] == [0, 1, 2]
    cluster = vae.clusters({"a": z})
    for c in range(3):
        (k,) = cluster[label == c].unique().tolist()
        own = z[label == c]
        torch.testing.assert_close(vae.prior.loc[k, 0], own.mean(0), rtol=0, atol=1e-3)
    spread = torch.linalg.inv(vae.prior.root.transpose(1, 2) @ vae.prior.root)
    within = torch.stack([z[label == c].T.cov(correction=0) for c in range(3)])
    if covariance == "diagonal":
        within = torch.diag_embed(within.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(spread.mean(0), within.mean(0), rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(vae.prior.weights, torch.full((3,), 1 / 3).double())


def test_warmup_has_the_standard_prior_and_then_places(monkeypatch):
    tiny = made(schedule={"name": "warmup_then_mixture", "share": 0.6})
    calls = []
    place = type(tiny.prior).place

    def noted(prior, codes, draws, **options):
        torch.testing.assert_close(prior.loc, torch.zeros_like(prior.loc))
        torch.testing.assert_close(prior.raw_root, torch.zeros_like(prior.raw_root))
        calls.append((codes.shape, draws.shape))
        place(prior, codes, draws, **options)

    monkeypatch.setattr(type(tiny.prior), "place", noted)
    history = mvkit.fit(tiny, rows(9), epochs=5)
    assert [row["stage"] for row in history.rows] == [0, 0, 0, 1, 1]
    d = tiny.latent_dim
    assert calls == [((9, d), (8, 9, d))]
    assert tiny.prior.loc.abs().sum() > 0


def test_warmup_is_training_with_the_standard_prior():
    placed, standard = made(), model("moe")
    open_parts = ("encoders.*", "decoders.*")
    placed.load_state_dict(standard.state_dict(), strict=False)
    options = {"epochs": 2, "batch_size": 4}
    objective = {"name": "elbo", "density": "mixture"}  # no closed form on either side
    first = mvkit.fit(
        placed, rows(9), stages=Stage(objective, 2, open_parts, place="standard"), **options
    )
    second = mvkit.fit(standard, rows(9), stages=Stage(objective, 2, open_parts), **options)
    for one, two in zip(first.rows, second.rows, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-9)


def test_one_epoch_trains_the_mixture_as_it_is():
    tiny = made(schedule="warmup_then_mixture")
    assert len(mvkit.fit(tiny, rows(9), epochs=1)) == 1


@pytest.mark.parametrize("saves", [1, 2, 3, 4, 5, 6])
def test_resumed_runs_place_once(saves, tmp_path):
    options = {"epochs": 4, "batch_size": 5, "save_every": 0}
    counted = 0

    def listen(event):
        nonlocal counted
        counted += isinstance(event, CheckpointSaved)
        if isinstance(event, CheckpointSaved) and counted == saves:
            shutil.copytree(tmp_path / "whole", tmp_path / "stopped")

    tiny = made(schedule="warmup_then_mixture")
    whole = mvkit.fit(tiny, rows(9), checkpoint=tmp_path / "whole", listeners=[listen], **options)
    again = made(schedule="warmup_then_mixture")
    rest = mvkit.fit(again, rows(9), checkpoint=tmp_path / "stopped", **options)
    assert rest.rows == whole.rows
    for name, value in tiny.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_loader_places_and_what_is_read_once_is_refused():
    batches = [rows(4), rows(5, seed=1)]
    tiny = made(schedule="warmup_then_mixture")
    assert len(mvkit.fit(tiny, batches, epochs=2)) == 2
    with pytest.raises(RequestError, match="stage 1 places the prior by a pass over"):
        mvkit.fit(made(schedule="warmup_then_mixture"), iter(batches), epochs=2)


def test_priors_without_components_are_refused():
    with pytest.raises(SpecError, match=r"prior 'standard' has nothing to place"):
        mvkit.fit(model("moe"), rows(), stages=Stage(None, 1, place="prior"))
    with pytest.raises(SpecError, match=r"needs a mixture prior to place, and 'standard' is none"):
        mvkit.fit(model("moe"), rows(), stages="warmup_then_mixture")


def test_fewer_rows_than_components_are_refused():
    with pytest.raises(DataError, match="prior 'mog': needs 3 rows at least to be placed; got 2"):
        mvkit.fit(made(), rows(2), stages=Stage(None, 1, place="prior"))


def test_row_weights_place_as_often():
    codes, _ = blobs(60, d=2, c=3)
    weight = torch.arange(60) % 3
    first, second = made(), made()
    first.prior.place(codes, codes[None], weight=weight.double())
    twice = codes.repeat_interleave(weight, 0)
    second.prior.place(twice, twice[None])
    order = torch.cdist(first.prior.loc[:, 0], second.prior.loc[:, 0]).argmin(1)
    torch.testing.assert_close(first.prior.loc, second.prior.loc[order], rtol=0, atol=1e-6)
    torch.testing.assert_close(first.prior.root, second.prior.root[order], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first.prior.weights, second.prior.weights[order])


def test_stages_say_in_files_that_they_place():
    assert "place" not in to_dict(Stage(None, 1))
    assert to_dict(Stage(None, 1, place="prior"))["place"] == "prior"
    header = made(schedule="warmup_then_mixture").header()
    assert header["schedule"] == {"name": "warmup_then_mixture", "share": 0.5}
    assert header["prior"]["covariance"] == "tied"
    assert "covariance" not in model("moe", "mog").header()["prior"]


def test_models_with_correlated_priors_are_saved_and_pruned(tmp_path):
    for covariance in COVARIANCES:
        tiny = made(
            {"covariance": covariance, "components": 5, "learn_scale": True},
            schedule="warmup_then_mixture",
        )
        mvkit.fit(tiny, rows(40), epochs=2)
        path = tmp_path / f"{covariance}.safetensors"
        mvkit.save(tiny, path)
        again = mvkit.load(path)
        assert torch.equal(again.clusters(rows(), soft=True), tiny.clusters(rows(), soft=True))
        for rule in ("joint", "votes"):
            pruning = mvkit.prune_clusters(tiny, rows(40), rule=rule)
            pruned, kept = pruning.model, list(pruning.kept)
            assert pruned.n_clusters == len(kept)
            if rule == "votes":
                z = torch.randn(3, 8, tiny.latent_dim).double()
                share = torch.softmax(tiny.prior_at().joint(z)[..., kept], -1)
                torch.testing.assert_close(share, pruned.prior.assign(z))
            assert len(mvkit.fit(pruned, rows(9), epochs=3)) == 3
            assert pruned.header()["schedule"]["name"] == "single"


def test_rules_assign_at_the_joint_mean_or_by_votes():
    tiny, batch = made(), rows()
    share = tiny.clusters(batch, soft=True)
    z = tiny.encode(batch)
    torch.testing.assert_close(share, tiny.prior.assign(z))
    assert torch.equal(tiny.clusters(batch), share.argmax(-1))
    assert tiny.clusters(batch, rule="votes").shape == (8,)
    with pytest.raises(RequestError, match="rule"):
        tiny.clusters(batch, rule="vote")
    with pytest.raises(RequestError, match="rule"):
        mvkit.prune_clusters(tiny, batch, rule="vote")


def test_given_nothing_the_posterior_is_the_correlated_prior():
    tiny = made()
    posterior = tiny.posterior(rows(), given=())
    z = torch.randn(2, 8, tiny.latent_dim).double()
    torch.testing.assert_close(posterior.log_prob(z), tiny.prior_at().log_prob(z))
    assert posterior.rsample(3).shape == (3, 8, tiny.latent_dim)
    assert tiny.sample(4, cluster=1)["a"].shape[0] == 4


def test_a_stack_places_its_top():
    bottom = Model(
        {"a": mvkit.Modality((3,), private_dim=2), "b": mvkit.Modality((2,), private_dim=2)},
        latent_dim=0,
        seed=0,
    )
    prior = {"name": "mog", "components": 2, "covariance": "full"}
    top = Model({"a": (2,), "b": (2,)}, latent_dim=2, prior=prior, aggregator="moe", seed=0)
    stack = Stack([bottom, top], schedule="warmup_then_mixture")
    data = {"a": torch.randn(20, 3), "b": torch.randn(20, 2)}
    history = mvkit.fit(stack, data, epochs=2)
    assert [row["stage"] for row in history.rows] == [0, 1]
    assert stack.clusters(data).shape == (20,)
    assert top.prior.raw_root.abs().sum() > 0


def test_covariates_shift_what_is_placed():
    covariates = {"age": mvkit.Covariate(into=("decoders", "encoders", "prior"))}
    prior = {"name": "mog", "components": 2, "covariance": "tied"}
    vae = Model({"a": (3,)}, latent_dim=2, prior=prior, covariates=covariates, seed=0)
    codes, _ = blobs(40, d=2, c=2)
    age = torch.arange(40.0)[:, None]
    twin = Model({"a": (3,)}, latent_dim=2, prior=prior, covariates=covariates, seed=0)
    with torch.no_grad():
        vae.prior.loc_shift.weight.fill_(0.5)
    shifted = codes + 0.5 * age
    vae.prior.place(shifted, shifted[None], context=age)
    twin.prior.place(codes, codes[None])
    torch.testing.assert_close(vae.prior.loc, twin.prior.loc, rtol=1e-4, atol=1e-4)
    x = Batch({"a": torch.randn(40, 3)}, covariates={"age": torch.arange(40.0)})
    mvkit.fit(vae, x, epochs=2, stages="warmup_then_mixture")
    assert torch.isfinite(vae.clusters(x, soft=True)).all()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_pruning_by_fits_finds_how_many_blobs_there_are(covariance):
    z, label = blobs(300, d=2, c=3)
    z = (z - z.mean(0)) / z.std(0)
    vae = seeing(7, covariance)
    vae.prior.place(z, z[None])
    pruning = mvkit.prune_clusters(vae, {"a": z}, rule="joint")
    assert pruning.model.n_clusters == 3
    assert set(pruning.entropy) == {2, 3, 4, 5, 6, 7}
    cluster = pruning.model.clusters({"a": z})
    assert len(set(zip(cluster.tolist(), label.tolist(), strict=True))) == 3
    assert vae.n_clusters == 7
    by_default = mvkit.prune_clusters(vae, {"a": z})
    rule = "votes" if covariance == "diagonal" else "joint"
    assert by_default.entropy == mvkit.prune_clusters(vae, {"a": z}, rule=rule).entropy


@pytest.mark.parametrize("kind", COVARIANCES)
def test_information_is_that_of_scikit_learn(kind):
    from sklearn.mixture import GaussianMixture

    z, _ = blobs(300, c=3, seed=4)
    fit = fit_mixture(z, 3, kind, seed=0)
    name = "diag" if kind == "diagonal" else kind
    other = GaussianMixture(3, covariance_type=name, n_init=5, random_state=0, tol=1e-6)
    bic = other.fit(z.numpy()).bic(z.numpy())
    assert fit.information == pytest.approx(bic / 600, abs=2e-3)


def test_pruning_by_fits_needs_normals():
    tiny = model("moe", "mog", family="laplace_softmax")
    with pytest.raises(RequestError, match="fits normals to codes"):
        mvkit.prune_clusters(tiny, rows(), rule="joint")


# reports


def test_a_report_says_where_k_means_does_better():
    z, label = blobs(300, d=2, c=3)
    z = (z - z.mean(0)) / z.std(0)
    vae = seeing(3, "tied")
    vae.prior.become_standard()
    batch = Batch({"a": z}, extra={"label": label})
    report = mvkit.evaluate(vae, batch, ["clusters"])
    assert report["clusters/k-means, accuracy"] == 1.0
    (note,) = [note for note in report.notes if "k-means on the same latents" in note]
    assert note.startswith("clusters: k-means on the same latents is right in 100.0% of the rows")
    vae.prior.place(z, z[None])
    report = mvkit.evaluate(vae, batch, ["clusters"])
    assert report["clusters/mixture, accuracy"] == 1.0
    assert not any("k-means on the same latents" in note for note in report.notes)
