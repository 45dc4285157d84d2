"""The objective `adversary`: a critic that tells modalities by their codes, and encoders that make
it useless. Its loss is computed a second time here, row by row.
"""

import math

import pytest
import torch
from helpers import modalities, model, rows
from installs import guide_package
from torch import nn
from torch.nn import functional

import mvkit
from mvkit import Covariate, Modality, Model, Opponent, SpecError, Stage, recipes
from mvkit.parts import Adversary

FLOOR = 1e-4


def adversary(**options):
    return {"name": "adversary", "hidden": [4], **options}


def tiny_model(aggregator="moe", seed=0, **options):
    tiny = model(aggregator, **options)
    tiny.adopt(adversary(), seed=seed)
    with torch.no_grad():  # far from chance, so that nothing is small
        for parameter in tiny.objectives["adversary"].parameters():
            parameter.mul_(3.0)
    return tiny


def codes_of(tiny, batch):
    """{modality: {row: code}} of what is observed; gradients pass."""
    conformed = tiny.conform(batch)
    experts = tiny.experts(conformed, training=True)
    unimodal = tiny.aggregator.unimodal(experts, conformed)
    codes = {}
    for m, (name, posterior) in enumerate(unimodal.items()):
        seen = [i for i in range(len(batch)) if batch.mask[i, m]]
        codes[name] = {i: posterior.mean[i] for i in seen}
    return codes


def by_loops(tiny, batch, *, side, alpha, aim, penalty, parts=None):
    """The loss, as the docstring of `Adversary` says it; sides apart in `parts`, if given."""
    codes = codes_of(tiny, batch)
    weight = [1.0] * len(batch) if batch.row_weight is None else batch.row_weight.tolist()
    counts = {m: sum(weight[i] > 0 for i in code) for m, code in codes.items()}
    present = [m for m, count in counts.items() if count]
    shares = {}
    for m in present:
        for i in codes[m]:
            shares[m, i] = (weight[i] > 0) / counts[m] / len(present)
    assert math.isclose(sum(shares.values()), 1.0)
    mean = sum(share * codes[m][i].detach() for (m, i), share in shares.items())
    variance = sum(share * (codes[m][i].detach() - mean) ** 2 for (m, i), share in shares.items())
    live = sum(w > 0 for w in weight) / len(weight)  # rows of weight 0 are absent, but for b
    shares = {(m, i): share * weight[i] * live for (m, i), share in shares.items()}
    critic = tiny.objectives["adversary"]
    frozen = {name: value.detach() for name, value in critic.named_parameters()}
    names = list(codes)
    telling = fooling = 0.0
    for (m, i), share in shares.items():
        if share == 0:
            continue
        place = names.index(m)
        z = (codes[m][i] - mean) / (variance.sqrt() + FLOOR)
        logits = critic(z.detach())
        telling = telling - share * torch.log(logits.exp()[place] / logits.exp().sum())
        if penalty:
            point = z.detach().requires_grad_()
            out = critic(point)
            centred = out[place] - out.sum() / len(names)
            (slope,) = torch.autograd.grad(centred, point, create_graph=True)
            telling = telling + share * penalty / 2 * (slope**2).sum()
        odds = torch.func.functional_call(critic, frozen, (z,)).exp()
        odds = odds / odds.sum()
        if aim == "minimax":
            fooling = fooling + share * (odds[place] * len(present)).log()
        else:
            for other in present:
                chance = 1 / len(present)
                fooling = fooling + share * chance * torch.log(chance / odds[names.index(other)])
    return {"tell": telling, "fool": alpha * fooling, "both": telling + alpha * fooling}[side]


def weighted(batch):
    batch.extra["row_weight"] = torch.arange(len(batch), dtype=torch.float64) % 3  # some are 0
    return batch


@pytest.mark.parametrize("side", ["tell", "fool", "both"])
@pytest.mark.parametrize("aim", ["uniform", "minimax"])
@pytest.mark.parametrize("aggregator", ["moe", "poe", "joint", "mopoe"])
@pytest.mark.parametrize("weights", [False, True])
def test_loss_and_gradients_are_those_of_the_loops(side, aim, aggregator, weights):
    tiny = tiny_model(aggregator)
    batch = rows(9)
    if weights:
        weighted(batch)
    tiny.train()
    options = {"alpha": 0.7, "aim": aim, "penalty": 0.3}
    conformed = tiny.conform(batch)
    expected = by_loops(tiny, conformed, side=side, **options)
    found = tiny.loss(
        batch, objective=adversary(side=side, kl_weight=0.5, **{**options, "alpha": 1.4})
    )
    torch.testing.assert_close(found.loss, expected, rtol=1e-9, atol=1e-9)
    parameters = [*tiny.parameters()]
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    gradients = torch.autograd.grad(found.loss, parameters, allow_unused=True)
    moved = set()
    named = zip(tiny.named_parameters(), gradients, wanted, strict=True)
    for (name, parameter), gradient, value in named:
        zero = torch.zeros_like(parameter)
        gradient, value = (zero if g is None else g for g in (gradient, value))
        torch.testing.assert_close(gradient, value, rtol=1e-8, atol=1e-10, msg=name)
        if gradient.any():
            moved.add(name.partition(".")[0])
    assert "decoders" not in moved
    assert ("objectives" in moved) == (side != "fool")
    assert ("encoders" in moved or "aggregator" in moved) == (side != "tell")


def test_reversed_gradients_are_those_of_both_sides():
    """Ganin et al.: one cross-entropy, whose gradient is turned round where it meets the codes."""

    class Turn(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return -0.4 * gradient

    tiny = tiny_model(names=("a", "b"))
    batch = rows(6, names=("a", "b"), missing=False)
    codes = codes_of(tiny, batch)
    z = torch.stack([codes[m][i] for m in "ab" for i in range(6)])
    z = (z - z.detach().mean(0)) / (z.detach().std(0, correction=0) + FLOOR)
    logits = tiny.objectives["adversary"](Turn.apply(z))
    cross_entropy = functional.cross_entropy(logits, torch.tensor([0] * 6 + [1] * 6))
    both = adversary(side="both", aim="minimax", alpha=0.4, penalty=0.0)
    found = tiny.loss(batch, objective=both)
    torch.testing.assert_close(found.metrics["cross_entropy"], cross_entropy.detach())
    parameters = [*tiny.parameters()]
    wanted = torch.autograd.grad(cross_entropy, parameters, allow_unused=True)
    gradients = torch.autograd.grad(found.loss, parameters, allow_unused=True)
    seen = 0
    for gradient, value in zip(gradients, wanted, strict=True):
        if value is not None:
            seen += 1
            torch.testing.assert_close(gradient, value, rtol=1e-9, atol=1e-12)
    assert seen > 8


def test_draws_are_one_of_each_unimodal_posterior():
    tiny = tiny_model("moe")
    batch = rows(8, missing=False)

    def ones(site, shape, dtype, device):
        return torch.ones(shape, dtype=dtype, device=device)

    with mvkit.testing.noise(ones):
        found = tiny.loss(batch, objective=adversary(side="tell", codes="draws", penalty=0.0))
    conformed = tiny.conform(batch)
    experts = tiny.experts(conformed)
    z = torch.cat([experts.loc[m] + experts.scale[m] for m in range(3)]).detach()
    z = (z - z.mean(0)) / (z.std(0, correction=0) + FLOOR)
    labels = torch.arange(3).repeat_interleave(8)
    expected = functional.cross_entropy(tiny.objectives["adversary"](z), labels)
    torch.testing.assert_close(found.loss, expected, rtol=1e-9, atol=1e-9)


def test_a_useless_critic_is_at_chance_and_moves_no_encoder():
    tiny = tiny_model()
    for parameter in tiny.objectives["adversary"].parameters():
        nn.init.zeros_(parameter)
    for aim in ("uniform", "minimax"):
        found = tiny.loss(rows(8), objective=adversary(side="fool", aim=aim))
        assert found.loss.item() == pytest.approx(0.0, abs=1e-12)
        assert found.metrics["cross_entropy"].item() == pytest.approx(math.log(3))
    (gradient,) = torch.autograd.grad(found.loss, [next(tiny.encoders.parameters())])
    assert not gradient.any()


def test_told_is_the_mean_over_modalities_of_the_share_that_is_told_right():
    tiny = tiny_model()
    critic = tiny.objectives["adversary"]
    for parameter in critic.parameters():
        nn.init.zeros_(parameter)
    critic[-1].bias.data[1] = 5.0  # everything is taken for b
    found = tiny.loss(rows(11), objective=adversary(side="tell"))
    assert found.metrics["told"].item() == pytest.approx(1 / 3)


def test_a_modality_that_nobody_observes_is_no_class():
    tiny = tiny_model()
    batch = rows(6, missing=False)
    batch.mask[:, 2] = False
    found = tiny.loss(batch, objective=adversary(side="fool", alpha=1.0))
    expected = by_loops(
        tiny, tiny.conform(batch), side="fool", alpha=1.0, aim="uniform", penalty=0
    )
    torch.testing.assert_close(found.loss, expected, rtol=1e-9, atol=1e-9)


def test_validation_has_no_penalty_and_needs_no_gradient():
    tiny = tiny_model()
    with torch.no_grad():
        found = tiny.loss(rows(8), objective=adversary(side="tell", penalty=9.0))
    torch.testing.assert_close(found.loss, found.metrics["cross_entropy"])


def test_no_rows_and_one_row():
    tiny = tiny_model()
    nothing = tiny.conform(rows(4)).take(slice(0, 0))
    for batch in (nothing, rows(1)):
        for side in ("tell", "fool", "both"):
            assert torch.isfinite(tiny.loss(batch, objective=adversary(side=side)).loss)


def test_with_covariates_and_private_latents():
    tiny = tiny_model("mopoe", private=1, covariates={"site": Covariate(levels=("A", "B"))})
    batch = rows(8)
    batch.extra["site"] = ["AB"[i % 2] for i in range(8)]
    found = tiny.loss(batch, objective=adversary(side="both"))
    assert torch.isfinite(found.loss)


# refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Model({"a": (3,)}, objective="adversary"), "objective: .*expected two at least"),
        (
            lambda: Model(
                {"a": Modality((3,), private_dim=2), "b": Modality((3,), private_dim=2)},
                latent_dim=0,
                objective="adversary",
            ),
            "the model has latent_dim=0; expected a shared latent; in a stack",
        ),
        (lambda: Adversary(side="told"), "side: got 'told'"),
        (
            lambda: Adversary(hidden=(0,)),
            "hidden: got \\(0,\\); expected a list of positive widths",
        ),
        (lambda: Adversary(penalty=-1.0), "penalty: got -1.0"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(SpecError, match=message):
        make()


def test_fooling_needs_an_opponent():
    fooling = {"name": "sum", "terms": ["elbo", adversary(side="fool")]}
    with pytest.raises(SpecError, match="stages.0.opponent: Adversary.* and the stage has none"):
        mvkit.fit(model(), rows(4), stages=Stage(fooling, 1))
    with pytest.raises(SpecError, match="stages.0.opponent: Adversary"):
        mvkit.fit(model(objective=fooling), rows(4), epochs=1)


def test_in_a_stack_it_looks_at_the_top():
    def stack():
        sizes = {"latent_dim": 2, "bottom_dim": 2, "message_dim": 4}
        return recipes.nexus(modalities(), **sizes, seed=0).double()

    top = {"name": "sum", "terms": ["elbo", adversary(side="fool")]}
    fooling = {"name": "levels", "levels": ["elbo", top]}
    telling = {"name": "levels", "levels": ["elbo", adversary(side="tell")]}
    tiny = stack()
    history = mvkit.fit(tiny, rows(8), stages=Stage(fooling, 2, opponent=Opponent(telling)))
    assert "levels.1.objectives.adversary.0.weight" in tiny.state_dict()
    assert 0 <= history["opponent/levels.1/told"][-1] <= 1
    low = Stage({"name": "levels", "levels": [adversary(), "elbo"]}, 1)
    with pytest.raises(SpecError, match="latent_dim=0; expected a shared latent; in a stack"):
        mvkit.fit(stack(), rows(4), stages=low)


def test_it_is_saved_and_loaded(tmp_path):
    fooling = {"name": "sum", "terms": ["elbo", adversary(side="fool")]}
    tiny = model("moe")
    stage = Stage(fooling, 2, opponent=Opponent(adversary(side="tell")))
    mvkit.fit(tiny, rows(8), stages=stage)
    mvkit.save(tiny, tmp_path / "model")
    again = mvkit.load(tmp_path / "model")
    assert "objectives.adversary" in repr(again)
    for name, value in tiny.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    loss = again.loss(rows(8), objective=adversary(side="tell")).loss
    torch.testing.assert_close(loss, tiny.loss(rows(8), objective=adversary(side="tell")).loss)


def test_the_example_of_the_guide_runs(tmp_path):
    space = {}
    exec((guide_package(tmp_path) / "examples" / "two_sides.py").read_text(), space)
    history = space["history"]
    assert len(history) == 25
    assert history["lr/encoders.*"][-1] < history["lr/encoders.*"][8] <= 5e-4
    assert 0.3 < history["opponent/told"][-1] < 0.8


def two_views():
    """Two views of two numbers each, which encoders of a mixture place where they like."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(600, 2, generator=generator)
    views = {}
    for name in ("left", "right"):
        noise = 0.3 * torch.randn(600, 6, generator=generator)
        views[name] = truth @ torch.randn(2, 6, generator=generator) + noise
    return views


def probe(tiny, views):
    """How well a line tells the modality of a code, on rows that it did not learn from."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    codes = [tiny.encode(views, given=[name]) for name in views]
    learnt, scored = (
        torch.cat([code[part] for code in codes]) for part in (slice(300), slice(300, None))
    )
    labels = torch.arange(2).repeat_interleave(300)
    line = linear_model.LogisticRegression(max_iter=1000).fit(learnt, labels)
    return line.score(scored, labels)


@pytest.mark.slow
def test_codes_that_a_line_tells_apart_become_alike():
    views = two_views()
    network = {"name": "mlp", "hidden": [32]}
    every = {name: Modality((6,), encoder=network, decoder=network) for name in views}
    tiny = Model(every, latent_dim=2, aggregator="moe", seed=0)
    with torch.no_grad():
        tiny.encoders["left"][-1].bias[:2] += 2.0
    assert probe(tiny, views) > 0.95
    optimizer = {"name": "adam", "lr": 5e-3, "betas": (0.5, 0.99)}
    opponent = Opponent({"name": "adversary", "side": "tell"}, optimizer=optimizer, steps=2)
    stage = Stage({"name": "adversary", "side": "fool"}, 60, opponent=opponent)
    mvkit.fit(tiny, views, stages=stage, lr=3e-3, seed=0)
    assert probe(tiny, views) <= 0.6
