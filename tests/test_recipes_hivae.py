"""HI-VAE: the loss and every gradient against a loop written from the paper, the label in the
latent, a model's life.
"""

import math

import pytest
import torch
from test_export import exported
from test_export import rows as export_rows
from test_recipes import check
from test_resume import Stopped, stop_after
from torch.distributions import Bernoulli, Categorical, Normal, Poisson, kl_divergence

import mvkit
from mvkit import Batch, Covariate, Mixture, Modality, Model, RequestError, SpecError, recipes
from mvkit.apps.cli import main
from mvkit.parts import ByColumn, LabelledMoG
from mvkit.parts.families import LaplaceSoftmax
from mvkit.testing import bound_noise, noise

ROWS = 8
K, D = 3, 2  # components, and numbers of z
NAMES = ("real", "count", "class", "classes", "ordered")


def modalities(**options):
    return {
        "real": Modality((2,), {"name": "normal", "scale": "decoded"}, **options),
        "count": Modality((2,), "poisson", input="log1p", **options),
        "class": Modality((4,), "categorical", weight=1.5, **options),
        "classes": Modality((2, 3), "categorical", **options),
        "ordered": Modality((2,), {"name": "ordinal", "levels": 3}, **options),
    }


def made(own=None, **options):
    own = modalities() if own is None else own
    return recipes.hivae(own, K + D, components=K, column_dim=2, seed=0, **options).double()


def batch(weights=None, **extra):
    """Rows with modalities, columns and cells that are missing."""
    generator = torch.Generator().manual_seed(1)
    data = {
        "real": torch.randn(ROWS, 2, generator=generator).double(),
        "count": torch.randint(9, (ROWS, 2), generator=generator).double(),
        "class": torch.eye(4).double()[torch.randint(4, (ROWS,), generator=generator)],
        "classes": torch.eye(3).double()[torch.randint(3, (ROWS, 2), generator=generator)],
        "ordered": torch.randint(3, (ROWS, 2), generator=generator).double(),
    }
    for i, x in enumerate(data.values()):
        x[i] = torch.nan
        x[5, ..., -1] = torch.nan if x.ndim == 2 and x.shape[1] == 2 else x[5, ..., -1]
    data["classes"][6, 1] = torch.nan
    for name in NAMES[1:]:
        data[name][7] = torch.nan
    return Batch(data, row_weight=weights, extra=extra)


class Paper:
    """The model row by row, from its weights: x̃ with zeros in the gaps, q(s), q(z|s), h_k(y_k, s).

    Args:
        model: in float64.
        batch: rows in the user's form, NaN in the gaps.
        samples: of each component.
    """

    def __init__(self, model, batch, samples=1):
        self.model, self.batch, self.data = model, batch, batch.data
        self.source = bound_noise(list(range(ROWS)), NAMES)
        shape = (samples, K, ROWS, D)
        self.eps = self.source("z", shape, torch.float64, torch.device("cpu"))

    def seen(self, row):
        return [name for name in NAMES if not self.data[name][row].isnan().all()]

    def encoded(self, row):
        """Logits of s, and locations and log-variances of z for every s."""
        total = torch.cat([torch.zeros(K), torch.zeros(2 * D)]).double()
        for name in self.seen(row):
            x = self.data[name][row]
            if name == "count":
                x = torch.log(1 + x)
            x = torch.where(x.isnan(), 0.0, x).flatten()
            layer = [m for m in self.model.encoders[name].modules() if hasattr(m, "in_features")][
                0
            ]
            total = total + layer.weight @ x + layer.bias
        fusion = self.model.aggregator
        logits = total[:K] + fusion.logits
        for_each = [total[K:] + fusion.numbers[s] for s in range(K)]
        return logits, [Normal(t[:D], torch.exp(t[D:] / 2)) for t in for_each]

    def log_px(self, row, s, z):
        value = 0.0
        for name in self.seen(row):
            value = value + self.of_modality(name, row, s, z)
        return value

    def of_modality(self, name, row, s, z):
        decoder = self.model.decoders[name]
        x = self.data[name][row]
        columns = 1 if name == "class" else 2
        y = decoder.network.pieces.weight @ z + decoder.network.pieces.bias
        value = 0.0
        for k in range(columns):
            cell = x if name == "class" else x[k]
            if cell.isnan().any():
                continue
            piece = torch.cat([y[2 * k : 2 * k + 2], torch.eye(K).double()[s]])
            out = piece @ decoder.network.weight[k] + decoder.network.bias[k]
            value = value + self.of_cell(name, k, cell, out)
        return self.model._likelihood_weights[name] * value

    def of_cell(self, name, k, x, out):
        if name == "real":
            return Normal(out[0], out[1].exp()).log_prob(x)
        if name == "count":
            return Poisson(out[0].exp()).log_prob(x)
        if name in ("class", "classes"):
            return Categorical(logits=out).log_prob(x.argmax())
        edges = self.model.decoders[name].likelihood.thresholds()[k]
        below = torch.cat([torch.sigmoid(edges - out[0]), torch.ones(1).double()])
        above = torch.cat([torch.zeros(1).double(), below[:-1]])
        return torch.log((below - above)[int(x)])

    def prior(self, s):
        return Normal(self.model.prior.loc[s, 0], torch.ones(D).double())


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0, 0.0, 1.5, 1.0, 0.25, 1.75]])
@pytest.mark.parametrize(("samples", "beta"), [(1, 1.0), (2, 0.7)])
def test_bound_and_gradients_equal_the_papers(samples, beta, weights):
    model = made()
    objective = {"name": "elbo", "samples": samples, "kl_weight": beta}
    paper = Paper(model, batch(weights), samples)

    def loop(paper, row):
        logits, q = paper.encoded(row)
        shares = torch.softmax(logits, 0)
        value = -beta * (shares * (shares.log() + math.log(K))).sum()
        for s in range(K):
            kl = kl_divergence(q[s], paper.prior(s)).sum()
            draws = [q[s].loc + q[s].scale * paper.eps[i, s, row] for i in range(samples)]
            log_px = sum(paper.log_px(row, s, z) for z in draws) / samples
            value = value + shares[s] * (log_px - beta * kl)
        return value if weights is None else weights[row] * value

    check(model, loop, paper, objective=objective)


def test_importance_weighted_bound_equals_a_loop():
    model = made(own=modalities())
    paper = Paper(model, batch(), 2)

    def loop(paper, row):
        logits, q = paper.encoded(row)
        log_w = []
        for s in range(K):
            log_qs = torch.log_softmax(logits, 0)[s]
            for i in range(2):
                z = q[s].loc + q[s].scale * paper.eps[i, s, row]
                joint = paper.log_px(row, s, z) + paper.prior(s).log_prob(z).sum() - math.log(K)
                log_q = log_qs + q[s].log_prob(z).sum()
                log_w.append(log_qs - math.log(2) + joint - log_q)
        return torch.logsumexp(torch.stack(log_w), 0)

    check(model, loop, paper, objective={"name": "iwae", "samples": 2})


def test_private_latents_and_covariates():
    """Encoders, decoders and the prior's locations see the covariate; w_m goes to g with z."""
    own = {
        "a": Modality((2,), "bernoulli", private_dim=1),
        "b": Modality((3,), {"name": "normal", "scale": 0.5}),
    }
    into = ["encoders", "decoders", "prior"]
    model = made(own, covariates={"dose": Covariate(into=into)})
    torch.nn.init.normal_(model.prior.loc_shift.weight)
    dose = torch.linspace(-1, 1, ROWS).double()
    a = torch.tensor([[0.0, 1.0]] * ROWS).double()
    b = torch.linspace(-2, 2, 3 * ROWS).reshape(ROWS, 3).double()
    a[2], b[3], b[4, 1] = torch.nan, torch.nan, torch.nan
    rows = Batch({"a": a, "b": b}, extra={"dose": dose})
    source = bound_noise(list(range(ROWS)), ("a", "b"))
    like = (torch.float64, torch.device("cpu"))
    eps, own_eps = source("z", (1, K, ROWS, D), *like), source("w/a", (1, K, ROWS, 1), *like)
    with noise(source):
        loss = model.loss(rows).loss
    total = 0.0
    given = model.conditions.context(model.conform(rows).covariates, "encoders")
    for row in range(ROWS):
        context = given[row : row + 1]
        emitted = torch.zeros(K + 2 * D).double()
        seen = [name for name, x in rows.data.items() if not x[row].isnan().all()]
        for name in seen:
            x = rows.data[name][row : row + 1]
            x = torch.where(x.isnan(), 0.0, x)
            out = model.encoders[name](x, context)[0]
            emitted = emitted + out[: K + 2 * D]
            if name == "a":
                private = Normal(out[-2:-1], torch.exp(out[-1:] / 2))
        shares = torch.softmax(emitted[:K] + model.aggregator.logits, 0)
        for s in range(K):
            numbers = emitted[K:] + model.aggregator.numbers[s]
            q = Normal(numbers[:D], torch.exp(numbers[D:] / 2))
            z = q.loc + q.scale * eps[0, s, row]
            loc = model.prior.loc[s, 0] + model.prior.loc_shift(context)[0, 0]
            value = -kl_divergence(q, Normal(loc, torch.ones(D).double())).sum()
            value = value - shares[s].log() - math.log(K)
            label = torch.eye(K).double()[s]
            if "a" in seen:
                w = private.loc + private.scale * own_eps[0, s, row]
                value = value - kl_divergence(private, Normal(0.0, 1.0)).sum()
                out = model.decoders["a"].network(torch.cat([label, z, w])[None], context)[0]
                value = value + Bernoulli(logits=out).log_prob(a[row]).sum()
            if "b" in seen:
                out = model.decoders["b"].network(torch.cat([label, z])[None], context)[0]
                there = ~b[row].isnan()
                value = value + Normal(out, 0.5).log_prob(b[row].nan_to_num())[there].sum()
            total = total + shares[s] * value
    assert abs(loss + total / ROWS) <= 1e-9 * abs(loss)


def one_number(**options):
    """A model whose likelihoods can be integrated: one z, two components, linear."""
    own = {
        "a": Modality((2,), {"name": "normal", "scale": 0.7}),
        "b": Modality((3,), "categorical"),
    }
    model = recipes.hivae(own, 3, components=2, column_dim=2, seed=1, **options).double()
    rows = {
        "a": torch.tensor([[0.3, -1.0], [torch.nan, 0.8], [torch.nan, torch.nan]]).double(),
        "b": torch.tensor([[0.0, 1.0, 0.0], [torch.nan] * 3, [1.0, 0.0, 0.0]]).double(),
    }
    return model, model.conform(Batch(rows))


def test_likelihoods_against_quadrature():
    model, rows = one_number()
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    step = float(z[1] - z[0])
    log_joint = []
    with torch.no_grad():
        for s in range(2):
            label = torch.eye(2).double()[s].expand(len(z), 3, 2)
            latent = torch.cat([label, z[:, None, None].expand(-1, 3, 1)], -1)[:, None]
            log_px = model.decoding.log_px(rows, latent, {}, rows.observed)[:, 0].sum(-1)
            log_joint.append(log_px + model.prior_at().log_prob(latent)[:, 0])
        expected = torch.logsumexp(torch.cat(log_joint), 0) + math.log(step)
        estimate = model.log_likelihood(rows, n=20000, generator=torch.Generator().manual_seed(0))
        assert torch.allclose(estimate, expected, atol=0.02)
        bounds = model.loss(rows, objective={"name": "elbo", "samples": 4000}).bound
        tight = model.loss(rows, objective={"name": "iwae", "samples": 4000}).bound
    assert (bounds < expected + 0.02).all()
    assert torch.allclose(tight, expected, atol=0.03)


def test_density_and_draws_of_the_prior():
    model, _ = one_number()
    density = model.prior_at()
    z = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    total = 0.0
    for s in range(2):
        latent = torch.cat([torch.eye(2).double()[s].expand(4001, 2), z[:, None]], -1)
        densities = density.log_prob(latent[:, None])[:, 0].exp()
        total = total + float(densities.detach().sum() * (z[1] - z[0]))
    assert abs(total - 1) < 1e-9
    latents, picked = density.sample(4000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(latents[:, :2].argmax(1), picked)
    assert abs(float(picked.double().mean()) - 0.5) < 0.04
    means = torch.stack([latents[picked == s, 2].mean() for s in range(2)])
    assert torch.allclose(means, model.prior.loc[:, 0, 0], atol=0.1)
    assert model.sample(3, cluster=1)["a"].shape == (3, 2)


@pytest.mark.parametrize("how", ["stratified", "iid", "balanced"])
@pytest.mark.parametrize("family", ["normal", "laplace_softmax"])
def test_draws_have_their_densities(how, family):
    model, rows = one_number(family=family)
    with torch.no_grad():
        posterior = model.joint_posterior(rows, model.experts(rows))
        draws = posterior.draw(5, how)
        labels = draws.z[..., :2]
        assert torch.equal(labels.sum(-1), torch.ones_like(labels[..., 0]))
        assert torch.allclose(draws.log_qk, posterior.log_prob(draws.z))
    assert torch.allclose(posterior.mean[:, :2].T, posterior.log_weight.exp())


def test_a_family_without_a_closed_form_is_estimated():
    model, rows = one_number(family="laplace_softmax")
    posterior = model.joint_posterior(rows, model.experts(rows))
    assert posterior.kl(model.prior_at()) is not None  # Laplace of Laplace has one
    other = Mixture(LaplaceSoftmax(), torch.zeros(1, 1, 3), torch.ones(1, 1, 3), torch.zeros(1, 1))
    assert posterior.kl(other) is None


def test_clusters_are_what_the_labels_say():
    model = made()
    rows = batch()
    paper = Paper(model, rows)
    shares = torch.stack([torch.softmax(paper.encoded(row)[0], 0) for row in range(ROWS)])
    assert torch.allclose(model.clusters(rows, soft=True), shares)
    assert torch.equal(model.clusters(rows), shares.argmax(-1))
    with pytest.raises(RequestError, match="needs a mixture prior of two clusters or more"):
        mvkit.prune_clusters(model, rows)


def test_decoded_means_are_the_means_of_draws():
    """Decoders of real numbers are linear in s and z: decoding the mean loses nothing."""
    model = made()
    x = {"count": batch().data["count"][5:7]}
    mean = model.translate(x, ["real"], latent="mean")["real"][0]
    draws = model.translate(x, ["real"], n=20000, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(mean, draws["real"].mean(0), atol=0.03)


def test_given_nothing_and_no_rows():
    model = made()
    rows = batch()
    values = model.translate(rows, ["real"], given=(), n=2)["real"]
    assert values.shape == (2, ROWS, 2)
    empty = model.conform(rows).take(torch.zeros(0, dtype=torch.long))
    assert float(model.loss(empty).loss.detach()) == 0.0


def test_refusals():
    shapes = {"a": (2,), "b": (3,)}
    with pytest.raises(SpecError, match="take aggregator='labelled_sum', or prior='mog'"):
        Model(shapes, latent_dim=4, prior="labelled_mog")
    with pytest.raises(SpecError, match="'mog' has no labels; take prior='labelled_mog'"):
        Model(shapes, latent_dim=4, aggregator="labelled_sum", prior="mog")
    with pytest.raises(SpecError, match=r"s takes 4 of latent_dim=4 numbers, which leaves none"):
        recipes.hivae(shapes, 4, components=4)
    with pytest.raises(SpecError, match="s takes 4 of 4 latents, which leaves none for z"):
        ByColumn(labels=4).decoder(4, (2,))
    with pytest.raises(SpecError, match="prior: the recipe sets it"):
        recipes.hivae(shapes, prior="mog")
    assert LabelledMoG().labels(20) == 10


def test_networks_of_modalities_stay_where_asked():
    own = {"a": Modality((3,), encoder={"name": "mlp", "hidden": [8]}, decoder="linear")}
    kept = recipes.hivae(own, 6, encoder=None, column_dim=None, seed=0)
    assert kept.modalities == own
    replaced = recipes.hivae(own, 6, seed=0)
    assert replaced.modalities["a"].decoder == ByColumn(labels=3)


def test_outputs_start_where_the_data_are():
    counts = torch.poisson(torch.full((64, 1), 400.0), generator=torch.Generator().manual_seed(0))
    model = recipes.hivae({"n": Modality((1,), {"name": "normal", "scale": "trained"})}, 6, seed=0)
    before = model.sample(500, generator=torch.Generator().manual_seed(0))["n"].mean()
    mvkit.fit(model, {"n": counts}, epochs=1, lr=0.0, progress=False)
    after = model.sample(500, generator=torch.Generator().manual_seed(0))["n"].mean()
    assert abs(float(before)) < 5 < 390 < float(after) < 410


@pytest.mark.filterwarnings("ignore")  # of torch.export itself
def test_encoding_is_exported():
    shapes = {"a": (3,), "b": (2, 2), "c": (4,)}
    model = recipes.hivae({name: Modality(shapes[name]) for name in shapes}, 6, seed=0).eval()
    program = exported(model)
    for b in (2, 9):
        data, mask = export_rows(b, seed=b)
        expected = model.encode(Batch(data, mask))
        torch.testing.assert_close(program(data, mask), expected, rtol=1e-5, atol=1e-6)


def test_the_top_of_a_stack():
    low = {"a": Modality((3,), private_dim=2), "b": Modality((4,), private_dim=2)}
    parts = {"aggregator": "labelled_sum", "prior": "labelled_mog"}
    top = Model({"a": (2,), "b": (2,)}, latent_dim=5, seed=0, **parts)
    stack = mvkit.Stack([Model(low, latent_dim=0, seed=0), top])
    rows = {"a": torch.randn(12, 3), "b": torch.randn(12, 4)}
    rows["a"][2] = torch.nan
    rows["b"][3, 1] = torch.nan
    mvkit.fit(stack, rows, epochs=1, progress=False)
    assert torch.isfinite(stack.log_likelihood(rows, n=5)).all()
    assert stack.clusters(rows).shape == (12,)
    assert stack.sample(2, cluster=1)["a"].shape == (2, 3)


@pytest.mark.parametrize("draw", ["iid", "balanced"])
def test_draws_that_leave_the_shares_of_components_untrained_are_refused(draw):
    with pytest.raises(SpecError, match="leaves trained component weights"):
        made().loss(batch(), objective={"name": "elbo", "draw": draw})


TEXT = """
[data]
name = "linear_gaussian"
rows = 60
missing = 0.3
[model]
recipe = "hivae"
latent_dim = 5
components = 2
[train]
epochs = 2
batch_size = 20
"""


def test_a_run_file(tmp_path):
    (tmp_path / "run.toml").write_text(TEXT)
    folder = tmp_path / "run"
    assert main(["train", str(tmp_path / "run.toml"), "--folder", str(folder)]) == 0
    model = mvkit.load(folder / "model.safetensors")
    assert (model.n_clusters, model.latent_dim) == (2, 5)


def test_saved_and_resumed_with_the_same_bits(tmp_path):
    rows = batch()
    options = {"batch_size": 3, "seed": 0, "progress": False}
    whole = made()
    mvkit.fit(whole, rows, epochs=4, **options)
    folder = {"checkpoint": tmp_path / "run", "save_every": 0, **options}
    with pytest.raises(Stopped):
        mvkit.fit(made(), rows, epochs=4, listeners=[stop_after(2)], **folder)
    again = made()
    mvkit.fit(again, rows, epochs=4, resume="must", **folder)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    mvkit.save(again, tmp_path / "model.safetensors")
    loaded = mvkit.load(tmp_path / "model.safetensors")
    assert loaded.header() == again.header()
    assert torch.equal(loaded.encode(rows), again.encode(rows))
