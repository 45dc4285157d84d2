"""Fusions in models: trained on incomplete rows, saved, loaded; masks, permutations, fillers;
CoDE's bound.
"""

import itertools

import attrs
import pytest
import torch

import mvkit
from mvkit import Batch, Modality, Model, SpecError
from mvkit.core import bounds
from mvkit.testing import bound_noise, noise

PARTS = ["code", "mwb", "hoelder", "hellinger"]
OPTIONS = [
    *PARTS,
    {"name": "code", "rho": 0.3, "max_subsets": 2},
    {"name": "mwb", "max_subsets": 2},
    {"name": "hoelder", "trained": True},
]
NAMES = ("a", "b", "c")
CODE = {"name": "sum", "terms": ["elbo", "entropy"]}


def model(aggregator, names=NAMES, private=0, **options):
    nets = {"encoder": {"name": "mlp", "hidden": [4]}, "decoder": "linear", "private_dim": private}
    modalities = {name: Modality((2 + NAMES.index(name),), **nets) for name in names}
    return Model(
        modalities, latent_dim=2, aggregator=aggregator, **{"seed": 0, **options}
    ).double()


def rows(b=14, names=NAMES):
    """Every pattern of gaps, twice."""
    generator = torch.Generator().manual_seed(0)
    data = {
        name: torch.randn(b, 2 + i, generator=generator).double() for i, name in enumerate(NAMES)
    }
    patterns = [p for p in itertools.product([True, False], repeat=3) if any(p)]
    mask = torch.tensor([patterns[i % 7] for i in range(b)])
    return Batch(data, mask[:, [NAMES.index(name) for name in names]])


def fixed(vae, batch, ids=None):
    """The loss and gradients with noise bound to rows."""
    vae.zero_grad(set_to_none=True)
    with noise(bound_noise(list(ids or range(len(batch))), vae.names)):
        loss = vae.loss(batch)
    loss.loss.backward()
    return loss, {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}


def same(gradients, others):
    assert set(gradients) == set(others)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    "objective", ["elbo", "iwae", "dreg", CODE], ids=["elbo", "iwae", "dreg", "sum"]
)
@pytest.mark.parametrize("prior", ["standard", "mog", "vamp"])
@pytest.mark.parametrize("aggregator", PARTS)
def test_every_parameter_is_trained(aggregator, prior, objective):
    vae = model(aggregator, prior=prior, objective=objective)
    loss, gradients = fixed(vae, rows())
    assert torch.isfinite(loss.bound).all()
    assert set(gradients) == {name for name, _ in vae.named_parameters()}
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    if aggregator == "code" and objective != "elbo":
        assert gradients["aggregator.logits"].abs().max() > 0
        assert gradients["aggregator.raw"].abs() > 0


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_life(options, tmp_path):
    vae = model(options, prior="mog", objective=CODE)
    history = mvkit.fit(vae, rows(), validation=rows(), epochs=2, batch_size=7)
    assert all(torch.isfinite(torch.tensor(history["loss"] + history["valid/loss"])))
    mvkit.save(vae, tmp_path / "m")
    name = options if isinstance(options, str) else options["name"]
    assert mvkit.describe(tmp_path / "m")["packages"] == {"mvkit-fusion": "0.1.0"}
    assert mvkit.describe(tmp_path / "m")["model"]["aggregator"]["name"] == f"mvkit-fusion/{name}"
    again = mvkit.load(tmp_path / "m")
    for given in (None, ["a", "c"]):
        asked = {"given": given, "empty": "prior"}
        assert torch.equal(vae.encode(rows(), **asked), again.encode(rows(), **asked))
    assert torch.isfinite(again.log_likelihood(rows(), n=10)).all()
    assert torch.isfinite(again.log_likelihood(rows(), ["a"], ["b"], n=10, empty="prior")).all()
    assert again.translate(rows(), to=["b"], n=2)["b"].shape == (2, 14, 3)
    assert again.clusters(rows()).shape == (14,)


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_permuting_modalities(options, objective):
    vae, permuted = (
        model(options, names, objective=objective) for names in (NAMES, ("c", "a", "b"))
    )
    with torch.no_grad():
        for parameter in (
            vae.aggregator.parameters() if isinstance(vae.aggregator, torch.nn.Module) else ()
        ):
            parameter.add_(torch.linspace(-1, 1, parameter.numel()).reshape(parameter.shape))
    permuted.load_state_dict(vae.state_dict())
    loss, gradients = fixed(vae, rows())
    other, others = fixed(permuted, rows(names=("c", "a", "b")))
    torch.testing.assert_close(loss.bound, other.bound, rtol=1e-9, atol=1e-12)
    same(gradients, others)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_permuting_rows(options):
    vae, order = model(options, objective="iwae"), [3, 9, 1, 13, 7, 0, 5, 2, 12, 6, 4, 11, 8, 10]
    loss, gradients = fixed(vae, rows())
    other, others = fixed(vae, rows().take(torch.tensor(order)), order)
    torch.testing.assert_close(loss.bound[order], other.bound, rtol=1e-9, atol=1e-12)
    same(gradients, others)


@pytest.mark.parametrize(("private", "rule"), [(0, None), (1, "observed"), (1, "evidence")])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fillers_change_nothing(options, private, rule):
    vae, plain = model(options, objective="dreg", private=private, private_from=rule), rows()
    loss, gradients = fixed(vae, plain)
    assert torch.isfinite(loss.bound).all()
    for value in (torch.nan, torch.inf, 1e6):
        data = {
            k: x.masked_fill(~plain.mask[:, [i]], value)
            for i, (k, x) in enumerate(plain.data.items())
        }
        other, others = fixed(vae, Batch(data, plain.mask))
        assert torch.equal(loss.bound, other.bound)
        assert all(torch.equal(gradient, others[name]) for name, gradient in gradients.items())


@pytest.mark.parametrize("aggregator", PARTS)
def test_a_row_with_nothing_is_finite_and_gets_the_prior(aggregator):
    vae = model(aggregator)
    batch = Batch(rows(2).data, torch.tensor([[False] * 3, [True] * 3]))
    posterior = vae.aggregator.forward(vae.experts(vae.conform(batch)), vae.conform(batch))
    for tensor in (posterior.loc, posterior.scale, posterior.mean):
        assert torch.isfinite(tensor).all()
    assert torch.equal(vae.encode(batch, empty="prior")[0], torch.zeros(2).double())


def test_the_bound_of_code_is_that_of_the_paper():
    """Σ_S π_S (E log p - β KL) + H(π) by a loop over rows and subsets, its gradient for π
    included.
    """
    terms = [{"name": "elbo", "kl_weight": 0.4}, "entropy"]
    vae, batch = model("code", objective={"name": "sum", "terms": terms}), rows()
    vae.aggregator.logits.data.copy_(torch.randn(7).double())
    loss, gradients = fixed(vae, batch)
    whole = vae.conform(batch)
    with noise(bound_noise(range(14), NAMES)):
        each = vae.terms(whole, draw="stratified")
    logits, total = vae.aggregator.logits.detach().clone().requires_grad_(), 0.0
    for row in range(14):
        usable = [
            s
            for s in range(7)
            if all(whole.observed[row, i] for i in range(3) if (s + 1) >> i & 1)
        ]
        pi = torch.softmax(logits[usable], 0)
        for p, s in zip(pi, usable, strict=True):
            bound = each.log_px[0, s, row].sum() - 0.4 * each.kl[s, row]
            total = total + p * bound.detach() - p * torch.log(p)
    (-total / 14).backward()
    torch.testing.assert_close(loss.loss.detach(), -total.detach() / 14)
    torch.testing.assert_close(gradients["aggregator.logits"], logits.grad)


def test_weights_of_code_go_to_the_optimum():
    """With complete rows and fixed bounds f_S, π ∝ exp(f_S): the gradient for π vanishes there."""
    vae, batch = model("code", objective=CODE), Batch({k: x[:1] for k, x in rows().data.items()})
    with noise(bound_noise([0], NAMES)):
        terms = vae.terms(vae.conform(batch), draw="stratified")
    vae.aggregator.logits.data.copy_((terms.log_px.sum(-1)[0] - terms.kl)[:, 0])
    _, gradients = fixed(vae, batch)
    assert gradients["aggregator.logits"].abs().max() < 1e-12
    vae.aggregator.logits.data.add_(torch.linspace(0, 1, 7))
    assert fixed(vae, batch)[1]["aggregator.logits"].abs().max() > 1e-3


def test_bounds_are_below_the_likelihood():
    vae = model("code", objective="iwae")
    generator = torch.Generator().manual_seed(0)
    likelihood = vae.log_likelihood(rows(), n=4000, generator=generator)
    batch = vae.conform(rows())
    with torch.no_grad():
        elbo = torch.stack(
            [vae.loss(batch, objective="elbo", generator=generator).bound for _ in range(50)]
        ).mean(0)
    assert (elbo < likelihood + 0.1).all()


@pytest.mark.parametrize("aggregator", ["code", "hoelder"])
@pytest.mark.parametrize("draw", ["iid", "balanced"])
def test_draws_that_would_leave_weights_without_gradient_are_refused(aggregator, draw):
    vae = model(aggregator, objective={"name": "elbo", "draw": draw})
    with pytest.raises(
        SpecError, match="draw: got .* leaves trained component weights.*draw='stratified'"
    ):
        vae.loss(rows())


@pytest.mark.parametrize("aggregator", ["code", "hoelder"])
def test_stratified_draws_give_weights_the_gradient_of_the_bound(aggregator):
    """The bound's gradient for the encoders by differences, noise fixed: nothing of the weights is
    lost.
    """
    vae, batch = model(aggregator, objective={"name": "elbo", "density": "mixture"}), rows(7)
    _, gradients = fixed(vae, batch)
    parameters = dict(vae.named_parameters())
    for name in ("encoders.a.", "aggregator."):
        for key in (k for k in parameters if k.startswith(name)):
            flat, gradient = parameters[key].data.view(-1), gradients[key].view(-1)
            for i in range(min(3, len(flat))):
                values = []
                for step in (1e-5, -2e-5):
                    flat[i] += step
                    values.append(fixed(vae, batch)[0].loss.item())
                flat[i] += 1e-5
                assert (values[0] - values[1]) / 2e-5 == pytest.approx(
                    gradient[i].item(), rel=1e-4, abs=1e-7
                )


def test_entropy_counts_active_rows_and_one_component_has_none():
    batch = rows()
    assert model("hellinger", objective="entropy").loss(batch).loss.item() == 0
    skipping = model({"name": "joint", "incomplete": "skip"}, objective="jmvae").loss(
        batch, objective="entropy"
    )
    assert (skipping.loss.item(), skipping.counts["entropy"].item()) == (0, 2)
    moe = model("moe", objective={"name": "entropy", "alpha": 2.0})
    expected = -2 * torch.log(batch.mask.sum(1).double())
    torch.testing.assert_close(moe.loss(batch).loss, expected.mean())
    assert moe.loss(batch).metrics["entropy"].item() == pytest.approx(-expected.mean().item() / 2)


@pytest.mark.parametrize("aggregator", ["code", "hoelder", "hellinger"])
def test_products_need_a_normal_family(aggregator):
    with pytest.raises(
        SpecError, match=f"aggregator: aggregator '{aggregator}' multiplies experts"
    ):
        model(aggregator, family="laplace_softmax")


def test_mwb_takes_any_family():
    loss, _ = fixed(model("mwb", family="laplace_softmax"), rows())
    assert torch.isfinite(loss.loss)


@pytest.mark.parametrize("name", ["code", "mwb"])
def test_too_many_modalities(name):
    with pytest.raises(
        SpecError, match="all subsets of 13 modalities in evaluation; expected at most 12.*mopoe"
    ):
        Model({f"m{i}": (1,) for i in range(13)}, aggregator=name)


@pytest.mark.parametrize("rho", [-0.1, 1.0, "high"])
def test_rho_is_checked(rho):
    with pytest.raises(
        SpecError,
        match=f"aggregator.rho: got {rho!r}; expected None or a number at least 0.0 and at",
    ):
        model({"name": "code", "rho": rho})


def test_inference_of_the_whole_or_of_the_mixture():
    whole, mixture = (model({"name": "code", "inference": how}) for how in ("whole", "mixture"))
    assert torch.equal(mixture.encode(rows()), mixture.posterior(rows()).mean)
    batch = whole.conform(rows())
    mean = whole.aggregator.inference(whole.experts(batch), batch).loc[0]
    assert torch.equal(whole.encode(rows()), mean)
    assert not torch.allclose(mean, whole.posterior(rows()).mean)


def test_elbo_is_a_weighted_mean_of_single_component_bounds():
    """The stratified bound of a mixture is the mean, by weight, of what each component gives
    alone.
    """
    vae, batch = model("hoelder"), model("hoelder").conform(rows())
    experts = vae.experts(batch)
    posterior = vae.aggregator.forward(experts, batch)
    with noise(lambda site, shape, dtype, device: torch.zeros(shape, dtype=dtype)):
        whole = bounds.elbo(
            vae.terms(batch, experts=experts, posterior=posterior, draw="stratified")
        )
        total = 0.0
        for k in range(posterior.components):
            parts = {
                name: getattr(posterior, name)[k : k + 1] for name in ("loc", "scale", "evidence")
            }
            alone = attrs.evolve(posterior, log_weight=torch.zeros(1, 14).double(), **parts)
            total = total + posterior.log_weight[k].exp() * bounds.elbo(
                vae.terms(batch, posterior=alone)
            )
    torch.testing.assert_close(whole, total)
