"""Objectives against plain loops written from the formulas, and the gradients that DReG
promises.
"""

import math

import attrs
import pytest
import torch
from helpers import loss_and_gradients, model, rows

import mvkit
from mvkit import SpecError
from mvkit.core import bounds
from mvkit.core.bounds import Terms
from mvkit.core.likelihood import Context
from mvkit.parts.objectives import importance_weighted
from mvkit.testing import bound_noise


def pieces(made, batch, **options):
    """Terms with all densities, and the model's parts."""
    batch = made.conform(batch)
    with mvkit.testing.noise(bound_noise(range(len(batch)), made.names)):
        return batch, made.terms(batch, **options)


def test_bounds_on_known_numbers():
    log_w = torch.log(torch.tensor([[[1.0], [2.0]], [[3.0], [6.0]]]))  # s=2, j=2, b=1
    log_weight = torch.log(torch.tensor([[0.25], [0.75]]))
    tight = math.log((0.25 * (1 + 3) + 0.75 * (2 + 6)) / 2)
    loose = 0.25 * math.log(2) + 0.75 * math.log(4)
    assert bounds.iwae(log_w, log_weight).item() == pytest.approx(tight)
    assert bounds.iwae(log_w, log_weight, bound="loose").item() == pytest.approx(loose)
    assert bounds.dreg(log_w, log_weight).item() == pytest.approx(tight)
    share = bounds.normalised_weights(log_w, log_weight)
    assert share.flatten().tolist() == pytest.approx([0.25 / 7, 1.5 / 7, 0.75 / 7, 4.5 / 7])


def test_elbo_on_known_numbers():
    terms = Terms(
        log_px=torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]]),
        log_pi=torch.log(torch.tensor([[0.5], [0.5]])),
        all_log_pi=torch.log(torch.tensor([[0.5], [0.5]])),
        kl=torch.tensor([[1.0], [3.0]]),
    )
    assert bounds.elbo(terms).item() == pytest.approx(5 - 2)
    assert bounds.elbo(terms, weights=torch.tensor([2.0, 0.0]), beta=0.5).item() == pytest.approx(
        4 - 1
    )


@pytest.mark.parametrize("private_from", ["evidence", "observed"])
@pytest.mark.parametrize("family", ["normal", "laplace_softmax"])
def test_moe_elbo_is_the_loop_of_the_paper(private_from, family):
    """Σ_m∈O 1/|O| [Σ_n∈O λ_n log p(x_n|z_m, w) - β KL(q_m ‖ p) - β Σ β_n KL(w)], row by row,
    component by component.
    """
    made = model(
        "moe",
        "learnable",
        {"name": "elbo", "kl_weight": 0.8},
        family,
        private=2,
        private_from=private_from,
    )
    made.modalities["a"].__dict__["weight"] = 1.0
    batch, ids = rows(), range(8)
    source = bound_noise(list(ids), made.names)
    found, gradients = loss_and_gradients(made, batch)
    made.zero_grad()
    conformed = made.conform(batch)
    kind = torch.distributions.Normal if family == "normal" else torch.distributions.Laplace
    dtype, device = torch.float64, torch.device("cpu")
    shape = (1, 3, 8, 2)
    eps = {
        site: source(site, shape, dtype, device)
        for site in ["z", *(f"{s}/{n}" for s in ("w", "cross") for n in "abc")]
    }
    prior = made.prior()
    total = 0
    for row in range(8):
        observed = [m for m in range(3) if batch.mask[row, m]]
        stats = {}
        for m in observed:
            out = made.encoders[made.names[m]](conformed.data[made.names[m]][row : row + 1])[0]
            loc, raw, w_loc, w_raw = out.split(2)
            stats[m] = (loc, made.family.scale(raw), w_loc, made.family.scale(w_raw))
        for k in observed:
            loc, scale, _, _ = stats[k]
            z = loc + scale * eps["z"][0, k, row]
            value = (
                -0.8
                * torch.distributions.kl_divergence(
                    kind(loc, scale), kind(prior.loc[0, 0], prior.scale[0, 0])
                ).sum()
            )
            for n in observed:
                name = made.names[n]
                _, _, w_loc, w_scale = stats[n]
                w = w_loc + w_scale * eps[f"w/{name}"][0, k, row]
                counted = private_from == "observed" or n == k
                if private_from == "evidence" and n != k:
                    w = made.family.scale(made.cross[name]) * eps[f"cross/{name}"][0, k, row]
                out = made.decoders[name](torch.cat([z, w])[None])
                x = conformed.data[name][row : row + 1]
                value = value + made.decoders[name].likelihood.log_prob(out, x, Context()).sum()
                if counted:
                    beta = made.modalities[name].private_beta
                    standard = kind(torch.zeros(2).double(), torch.ones(2).double())
                    value = (
                        value
                        - 0.8
                        * beta
                        * torch.distributions.kl_divergence(kind(w_loc, w_scale), standard).sum()
                    )
            total = total + value / len(observed)
    loss = -total / 8
    loss.backward()
    torch.testing.assert_close(found.loss, loss, rtol=1e-10, atol=0)
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(
            gradients[name], parameter.grad, rtol=1e-9, atol=1e-12, msg=name
        )


@pytest.mark.parametrize("prior_expert", ["none", "full", "all"])
def test_mopoe_components_are_products_of_subsets(prior_expert):
    made = model({"name": "mopoe", "prior_expert": prior_expert})
    batch = made.conform(rows())
    experts = made.experts(batch)
    posterior = made.aggregator.forward(experts, batch)
    assert posterior.components == 7
    for k in range(7):
        for row in range(8):
            members = made.aggregator.members[k]
            if not batch.mask[row][members].all():
                assert posterior.log_weight[k, row] == -math.inf
                continue
            precision = (experts.scale[members, row] ** -2).sum(0)
            mean = (experts.scale[members, row] ** -2 * experts.loc[members, row]).sum(0)
            extra = prior_expert == "all" or (prior_expert == "full" and members.all())
            torch.testing.assert_close(posterior.loc[k, row], mean / (precision + extra))
            torch.testing.assert_close(posterior.scale[k, row], (precision + extra) ** -0.5)
            usable = 2 ** int(batch.mask[row].sum()) - 1
            assert posterior.log_weight[k, row].exp().item() == pytest.approx(1 / usable)


def test_telbo_trains_unimodal_posteriors_with_their_own_kl():
    made = model("joint", objective="telbo")
    batch = rows(missing=False)
    found, _ = loss_and_gradients(made, batch)
    conformed = made.conform(batch)
    experts = made.experts(conformed)
    source = bound_noise(list(range(8)), made.names)
    eps = source("z", (1, 1, 8, 2), torch.float64, torch.device("cpu"))[0, 0]

    def elbo(q, names):
        loc, scale = q.loc[0], q.scale[0]
        value = -torch.distributions.kl_divergence(
            torch.distributions.Normal(loc, scale), torch.distributions.Normal(0, 1)
        ).sum(-1)
        for name in names:
            out = made.decoders[name](loc + scale * eps)
            log_px = made.decoders[name].likelihood.log_prob(out, conformed.data[name], Context())
            value = value + log_px.reshape(8, -1).sum(-1)
        return value

    joint = elbo(made.aggregator.forward(experts, conformed), made.names)
    alone = sum(
        elbo(q, [name]) for name, q in made.aggregator.unimodal(experts, conformed).items()
    )
    torch.testing.assert_close(found.loss, -(joint + alone).mean())
    torch.testing.assert_close(found.bound, joint)


def test_jmvae_is_joint_bound_and_alignment():
    made = model("joint", objective={"name": "jmvae", "alpha": 0.3, "kl_weight": 0.5})
    found, _ = loss_and_gradients(made, rows())
    batch = made.conform(rows())
    experts = made.experts(batch)
    posterior = made.aggregator.forward(experts, batch)
    align = sum(
        torch.where(batch.mask[:, i], posterior.kl(q)[0], 0.0)
        for i, q in enumerate(made.aggregator.unimodal(experts, batch).values())
    )
    elbo, _ = loss_and_gradients(made, rows(), objective={"name": "elbo", "kl_weight": 0.5})
    torch.testing.assert_close(found.loss, elbo.loss + 0.5 * 0.3 * align.mean())
    torch.testing.assert_close(found.bound, elbo.bound)


def test_align_from_samples_agrees_with_its_closed_form():
    made = model("moe")
    closed = made.loss(rows(), objective="align").loss
    sampled = made.loss(
        rows(), objective={"name": "align", "estimate": "samples", "samples": 40_000}
    ).loss
    torch.testing.assert_close(sampled, closed, rtol=0.02, atol=0.02)


def test_joint_skips_incomplete_rows_if_told_to():
    made = model({"name": "joint", "incomplete": "skip"})
    batch = rows()
    found, gradients = loss_and_gradients(made, batch)
    whole = batch.mask.all(1)
    assert torch.equal(torch.isnan(found.bound), ~whole)
    alone, _ = loss_and_gradients(
        made, batch.take(whole.nonzero()[:, 0]), ids=whole.nonzero()[:, 0].tolist()
    )
    torch.testing.assert_close(found.loss, alone.loss * whole.sum() / len(batch))
    assert all(
        g is None or (g == 0).all() for n, g in gradients.items() if n.startswith("encoders")
    )


def test_joint_surrogates():
    made = model({"name": "joint", "correct_prior": True})
    batch = made.conform(rows())
    experts = made.experts(batch)
    posterior = made.aggregator.forward(experts, batch)
    for row in range(8):
        observed = batch.mask[row]
        if observed.all():
            continue
        tau = experts.scale[observed, row] ** -2
        precision = tau.sum(0) - (observed.sum() - 1)
        precision = torch.where(precision > 1e-3, precision, tau.amax(0))
        torch.testing.assert_close(posterior.scale[0, row], precision**-0.5)
        torch.testing.assert_close(
            posterior.loc[0, row], (tau * experts.loc[observed, row]).sum(0) / precision
        )


def test_weights_act_on_likelihoods_and_not_on_what_is_reported():
    plain, scaled = model(), model(rescale={"a": 3.0, "b": 0.5})
    objective = {"name": "elbo", "weights": {"a": 3.0, "b": 0.5}}
    by_objective, _ = loss_and_gradients(plain, rows(), objective=objective)
    by_model, _ = loss_and_gradients(scaled, rows())
    torch.testing.assert_close(by_objective.loss, by_model.loss)
    torch.testing.assert_close(by_model.bound, loss_and_gradients(plain, rows())[0].bound)
    assert model(rescale="dims").likelihood_weights().tolist() == pytest.approx([4 / 3, 1, 1])


def expected_gradient(made, batch, objective, draws):
    """Mean gradient over many independent copies of a batch, and its standard error, for all
    parameters in a row.
    """
    copies = mvkit.Batch(
        {n: x.repeat_interleave(draws, 0) for n, x in batch.data.items()},
        batch.mask.repeat_interleave(draws, 0),
    )
    values = []
    for seed in range(24):
        made.zero_grad()
        made.loss(
            copies, objective=objective, generator=torch.Generator().manual_seed(seed)
        ).loss.backward()
        encoder = [
            p.grad.flatten()
            for n, p in made.named_parameters()
            if n.startswith(("encoders", "cross"))
        ]
        values.append(torch.cat(encoder))
    values = torch.stack(values)
    return values.mean(0), values.std(0) / len(values) ** 0.5


def disagreement(made, objective, batch=None, draws=400):
    """Root mean square of the difference of DReG's and IWAE's expected encoder gradients, in
    standard errors.
    """
    batch = rows(7) if batch is None else batch
    (one, e1), (two, e2) = (
        expected_gradient(made, batch, {"name": n, **objective}, draws) for n in ("dreg", "iwae")
    )
    error = (e1**2 + e2**2).sqrt()
    return (((one - two) / error)[error > 0] ** 2).mean().sqrt().item()


def gradient_model(aggregator, **options):
    made = model(aggregator, "learnable", **options)
    with torch.no_grad():  # far from the prior, so that weights are uneven
        for name, p in made.named_parameters():
            if name.startswith(("decoders", "encoders")):
                p.mul_(2.0)
    return made


@pytest.mark.parametrize("beta", [1.0, 0.4])
@pytest.mark.parametrize("aggregator", ["poe", "joint", "mean_message"])
def test_dreg_has_the_gradient_of_iwae_with_one_component(aggregator, beta):
    assert disagreement(gradient_model(aggregator), {"samples": 4, "kl_weight": beta}) < 1.35


@pytest.mark.parametrize("aggregator", ["moe", "mopoe"])
def test_dreg_has_the_gradient_of_iwae_with_iid_draws(aggregator):
    made = gradient_model(aggregator, private=1, private_from="observed")
    assert (
        disagreement(
            made, {"samples": 3, "draw": "iid", "bound": "tight", "kl_weight": 0.6}, draws=3000
        )
        < 1.35
    )


@pytest.mark.parametrize(
    "objective",
    [
        {"samples": 3, "draw": "stratified", "bound": "loose"},
        {"samples": 3, "draw": "stratified", "bound": "tight"},
        {"samples": 3, "draw": "balanced", "bound": "tight"},
    ],
    ids=["loose", "stratified", "balanced"],
)
def test_dreg_has_not_the_gradient_of_iwae_on_other_draws_of_a_mixture(objective):
    assert disagreement(gradient_model("moe"), objective, draws=3000) > 2


def test_dreg_has_not_the_gradient_of_iwae_under_the_evidence_rule():
    made = gradient_model("moe", private=2, private_from="evidence")
    with torch.no_grad():  # where w comes from then matters much to the weight
        for name, p in made.named_parameters():
            if name.startswith("cross"):
                p.add_(2)
            elif name.startswith("encoders") and name.endswith("2.bias"):
                p[4:6].add_(1)
    assert disagreement(made, {"samples": 3, "draw": "iid", "bound": "tight"}, draws=3000) > 2


def test_plain_squared_weights_would_be_wrong_for_other_betas(monkeypatch):
    made = gradient_model("poe")
    monkeypatch.setattr(importance_weighted, "gradient_factor", lambda w_hat, beta: w_hat)
    assert disagreement(made, {"samples": 4, "kl_weight": 0.4}) > 1.6


@pytest.mark.parametrize("n", [1, 3, 100])
def test_drawn_subsets_are_distinct_usable_and_uniform(n):
    names = [f"m{i}" for i in range(5)]
    nets = {"encoder": "linear", "decoder": "linear"}
    made = mvkit.Model(
        {k: mvkit.Modality((2,), **nets) for k in names},
        latent_dim=1,
        aggregator={"name": "mopoe", "max_subsets": n},
    )
    mask = torch.tensor([[True, False, True, True, False]]).expand(4000, 5)
    batch = made.conform(mvkit.Batch({k: torch.zeros(4000, 2) for k in names}, mask))
    posterior = made.aggregator.forward(made.experts(batch, training=True), batch)
    evidence = posterior.evidence & torch.isfinite(posterior.log_weight).unsqueeze(-1)
    assert not evidence[..., [1, 4]].any()
    codes = (evidence.long() * 2 ** torch.arange(5)).sum(-1)
    usable = torch.isfinite(posterior.log_weight)
    assert (usable.sum(0) == min(n, 7)).all()
    assert ((codes > 0) == usable).all()
    for row in range(0, 4000, 500):
        seen = codes[usable[:, row], row]
        assert len(seen.unique()) == len(seen)
    counts = torch.bincount(codes[usable], minlength=30)
    counts = counts[counts > 0].double()
    assert len(counts) == 7
    expected = 4000 * min(n, 7) / 7
    assert ((counts - expected).abs() < 5 * expected**0.5).all()


def test_many_modalities_need_few_subsets():
    shapes = {f"m{i}": mvkit.Modality((1,), encoder="linear", decoder="linear") for i in range(14)}
    with pytest.raises(
        mvkit.SpecError, match="16383 subsets of 14 modalities are too many.*max_subsets"
    ):
        mvkit.Model(shapes, aggregator="mopoe")
    made = mvkit.Model(
        shapes, latent_dim=2, aggregator={"name": "mopoe", "max_subsets": 8}, seed=0
    )
    batch = mvkit.Batch({k: torch.randn(6, 1) for k in shapes}, torch.rand(6, 14) > 0.5)
    made.loss(batch).loss.backward()
    posterior = made.posterior(batch)
    assert posterior.components == 15
    torch.testing.assert_close(posterior.log_weight.exp().sum(0), torch.ones(6))


def test_listed_subsets_fall_back_to_what_a_row_has():
    made = model({"name": "mopoe", "subsets": [["a", "b"], ["c"]]})
    posterior = made.posterior(rows())
    assert posterior.components == 3
    torch.testing.assert_close(posterior.log_weight.exp().sum(0), torch.ones(8).double())


@pytest.mark.parametrize("draw", ["iid", "balanced"])
def test_trained_component_weights_need_stratified_draws(draw):
    made = model("moe")
    batch = made.conform(rows())
    logits = torch.zeros(3, 1, dtype=torch.float64, requires_grad=True)
    plain = made.aggregator.forward(made.experts(batch), batch)
    posterior = attrs.evolve(plain, log_weight=torch.log_softmax(plain.log_weight + logits, dim=0))
    with pytest.raises(
        SpecError,
        match=f"draw: got '{draw}', which leaves trained component weights.*'stratified'",
    ):
        made.terms(batch, posterior=posterior, draw=draw)
    made.terms(batch, posterior=posterior.detach(), draw=draw)  # no weight asks for a gradient
    bounds.elbo(made.terms(batch, posterior=posterior, draw="stratified")).sum().backward()
    assert logits.grad.abs().min() > 0


def test_optimal_scale_is_the_rms_of_the_residuals():
    shape = {
        "a": mvkit.Modality(
            (3,), {"name": "normal", "scale": "optimal"}, encoder="linear", decoder="linear"
        )
    }
    made = mvkit.Model(shape, latent_dim=2, seed=0).double()
    x = 5 * torch.randn(16, 3, dtype=torch.float64)
    x[0, 1] = torch.nan
    generator = torch.Generator().manual_seed(0)
    made.loss(mvkit.Batch({"a": x}), generator=generator)
    first = made.decoders["a"].likelihood.scale.running.clone()
    z = made.train()  # the buffer starts at the first batch and then follows slowly
    z.loss(mvkit.Batch({"a": 10 * x}))
    second = made.decoders["a"].likelihood.scale.running
    assert first > 3
    assert first < second < 1.3 * first
    made.eval().loss(mvkit.Batch({"a": 100 * x}))
    assert torch.equal(second, made.decoders["a"].likelihood.scale.running)
