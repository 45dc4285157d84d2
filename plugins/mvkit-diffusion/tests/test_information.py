"""IDMVAE: its bound and both of its regularisers against loops, with gaps, weights and mixtures.

Axes: b rows, m modalities, d shared and q private latent, k width of a code.
"""

import json
import math

import attrs
import pytest
import torch
from mvkit_diffusion.information import GenerativeAugmentation, MutualInformation, next_rows
from torch.distributions import Normal

import mvkit
from mvkit import Batch, Covariate, Modality, Model, SpecError, recipes
from mvkit.registry import as_part, to_dict
from mvkit.testing import check_component
from mvkit.testing.injected_noise import bound_noise
from mvkit.testing.tiny_models import NAMES, fillers, loss_and_gradients, modalities, model, rows
from mvkit.training.events import CheckpointSaved

ROWS = 8
SHARED = {"name": "mutual_information", "alpha": 1.5, "kl_weight": 0.8, "temperature": 0.4}
APART = {"name": "generative_augmentation", "alpha": 0.7, "temperature": 0.6}
TERMS = pytest.mark.parametrize("term", [SHARED, APART], ids=lambda term: term["name"])
WEIGHTS = [0.5, 2.0, 0.0, 1.0, 3.0, 0.25, 1.0, 0.25]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("objective", "mutual_information"),
        ("objective", "generative_augmentation"),
        ("recipe", "idmvae"),
    ],
)
def test_it_conforms(kind, name):
    check_component(kind, f"mvkit-diffusion/{name}")


# loops from the paper


class Loops:
    """A model of tiny networks, seen row by row, in the noise that the library drew.

    Args:
        model: of normal latents.
        batch: rows whose gaps hold zeros.
        product: whether the posterior given one modality is its expert times the prior.
        weights: of the rows.
    """

    def __init__(self, model, batch, product=False, weights=None):
        self.model = model
        self.batch = batch
        self.product = product
        self.weights = [1.0] * ROWS if weights is None else weights
        self.source = bound_noise(range(ROWS), model.names)

    def eps(self, site, *shape):
        return self.source(site, shape, torch.float64, torch.device("cpu"))

    def has(self, name):
        """The rows that observe a modality."""
        column = self.model.names.index(name)
        return [i for i in range(ROWS) if self.batch.mask[i, column]]

    def present(self, name, i):
        """Which elements row i has, of a modality that it has."""
        elements = self.batch.elements or {}
        return elements[name][i] if name in elements else torch.tensor(True)

    def read(self, name, x):
        """Mean and scale of z and of w, as an encoder says of one row of a modality."""
        out = self.model.encoders[name](x[None])[0]
        q = self.model.modalities[name].private_dim
        d = (len(out) - 2 * q) // 2
        loc, raw, w_loc, w_raw = out.split([d, d, q, q])
        scale = (raw / 2).exp()
        if self.product:
            precision = 1 + scale**-2
            loc, scale = loc * scale**-2 / precision, precision**-0.5
        return loc, scale, w_loc, (w_raw / 2).exp()

    def out(self, name, z, w):
        """What a decoder emits for one row."""
        return self.model.decoders[name].network(torch.cat([z, w])[None])[0]

    def mean(self, name, z, w):
        out = self.out(name, z, w)
        if name == "b":
            return out.sigmoid()
        return out.softmax(-1) if name == "c" else out

    def log_px(self, name, i, z, w):
        x, out = self.batch.data[name][i], self.out(name, z, w)
        if name == "a":
            log_px = Normal(out, 1.0).log_prob(x)
            return torch.where(self.present(name, i), log_px, 0.0).sum()
        if name == "b":
            return (x * out - out.exp().log1p()).sum()
        return (x * out.log_softmax(-1)).sum()

    def told(self, first, second, i, temperature):
        """How well row i's codes {row: (k,)} tell each other, the mean over both."""
        total = 0.0
        for own, other in ((first, second), (second, first)):
            candidates = [cosine(own[i], other[i])]
            for j in own:
                if j != i and self.weights[j] > 0:
                    candidates += [cosine(own[i], own[j]), cosine(own[i], other[j])]
            chances = [(c / temperature).exp() for c in candidates]
            total = total + 0.5 * (chances[0] / sum(chances)).log()
        return total

    def information(self, i, temperature):
        """Σ_{m≠n} I(z_m, z_n) / (|O| - 1) of row i."""
        total, pairs = torch.zeros(()), 0
        for m in self.model.names:
            for n in self.model.names:
                both = [j for j in self.has(m) if j in self.has(n)]
                if m == n or i not in both:
                    continue
                pairs += 1
                codes = ({j: self.read(k, self.batch.data[k][j])[0] for j in both} for k in (m, n))
                total = total + self.told(*codes, i, temperature)
        observed = sum(i in self.has(m) for m in self.model.names)
        assert pairs == observed * (observed - 1)
        return total / max(observed - 1, 1)

    def partner(self, name, i):
        """The row with the next larger random number, the smallest after the largest."""
        uniform = self.eps("choice/partner", 1, ROWS)[0]
        usable = [j for j in self.has(name) if self.weights[j] > 0]
        if i not in usable:
            return i
        larger = [j for j in usable if uniform[j] > uniform[i]]
        return min(larger or usable, key=lambda j: float(uniform[j]))

    def latents(self, name, i):
        """Draws of z and w given one modality."""
        z_loc, z_scale, w_loc, w_scale = self.read(name, self.batch.data[name][i])
        z = z_loc + z_scale * self.eps("z", 1, 1, ROWS, len(z_loc))[0, 0, i]
        return z, w_loc + w_scale * self.eps(f"w/{name}", 1, 1, ROWS, len(w_loc))[0, 0, i]

    def echo(self, name, z, w, i):
        generated = self.mean(name, z, w)
        return self.read(name, torch.where(self.present(name, i), generated, 0.0))

    def augmentation(self, i, temperature):
        """Σ_{m∈O} ½ [I(z_m, ẑ_m) + I(w_m, ŵ_m)] of row i."""
        total = torch.zeros(())
        for name in self.model.names:
            if i not in self.has(name):
                continue
            codes = [{}, {}, {}, {}]
            for j in self.has(name):
                z, w = self.latents(name, j)
                other_z, other_w = self.latents(name, self.partner(name, j))
                codes[0][j] = self.read(name, self.batch.data[name][j])[0]
                codes[1][j] = self.echo(name, z, other_w, j)[0]
                codes[2][j] = self.read(name, self.batch.data[name][j])[2]
                codes[3][j] = self.echo(name, other_z, w, j)[2]
            of_z, of_w = (self.told(*pair, i, temperature) for pair in (codes[:2], codes[2:]))
            total = total + 0.5 * (of_z + of_w)
        return total

    def bound(self, i, beta):
        """MMVAE+'s bound with one draw of each expert, which alone has its private latent."""
        seen = [name for name in self.model.names if i in self.has(name)]
        read = {name: self.read(name, self.batch.data[name][i]) for name in seen}
        total = 0.0
        for name in seen:
            k = self.model.names.index(name)
            loc, scale = read[name][:2]
            z = loc + scale * self.eps("z", 1, 3, ROWS, len(loc))[0, k, i]
            log_qs = torch.stack([Normal(*read[n][:2]).log_prob(z).sum() for n in seen])
            value = beta * (standard(z) - log_qs.logsumexp(0) + math.log(len(seen)))
            for n in seen:
                w_loc, w_scale = read[n][2:]
                shape = (1, 3, ROWS, len(w_loc))
                if n == name:
                    w = w_loc + w_scale * self.eps(f"w/{n}", *shape)[0, k, i]
                    ratio = standard(w) - Normal(w_loc, w_scale).log_prob(w).sum()
                    value = value + beta * ratio
                else:
                    spread = (self.model.cross[n] / 2).exp()
                    w = spread * self.eps(f"cross/{n}", *shape)[0, k, i]
                value = value + self.log_px(n, i, z, w)
            total = total + value / len(seen)
        return total


def cosine(u, v):
    return (u * v).sum() / (u.norm() * v.norm())


def standard(z):
    return Normal(0.0, 1.0).log_prob(z).sum()


def check(tiny, batch, values, weights=None):
    """Loss and all gradients against values of rows, relative error 1e-9."""
    weights = [1.0] * ROWS if weights is None else weights
    loss, gradients = loss_and_gradients(tiny, batch)
    tiny.zero_grad(set_to_none=True)
    total = sum(weight * value for weight, value in zip(weights, values, strict=True))
    expected = -total / ROWS
    expected.backward()
    assert abs(loss.loss - expected) <= 1e-9 * abs(expected)
    for name, parameter in tiny.named_parameters():
        zeros = torch.zeros_like(parameter)
        theirs = zeros if parameter.grad is None else parameter.grad
        ours = zeros if gradients[name] is None else gradients[name]
        assert (ours - theirs).norm() <= 1e-9 * theirs.norm() + 1e-14, name


def zeroed(batch):
    """The rows as an encoder sees them, where one element of some rows is missing too."""
    present = torch.ones(ROWS, 3).bool()
    present[::3, 1] = False
    data = {**batch.data, "a": torch.where(present, batch.data["a"], 0.0)}
    return attrs.evolve(batch, data=data, elements={"a": present})


@pytest.mark.parametrize("gaps", [False, True])
def test_the_whole_bound_of_idmvae_is_that_of_loops(gaps):
    options = {"private_dim": 2, "beta": 0.6, "information": 1.2, "augmentation": 0.7}
    tiny = recipes.idmvae(modalities(), 2, **options, temperature=0.5, seed=0).double()
    with torch.no_grad():
        for name in NAMES:
            tiny.cross[name].add_(torch.tensor([0.4, -0.3]))
    batch = zeroed(rows(missing=gaps)) if gaps else rows(missing=False)
    loops = Loops(tiny, batch)
    betas = {name: modality.private_beta for name, modality in tiny.modalities.items()}
    assert set(betas.values()) == {1.0}
    values = []
    for i in range(ROWS):
        regular = 1.2 * loops.information(i, 0.5) + 0.7 * loops.augmentation(i, 0.5)
        values.append(loops.bound(i, 0.6) + regular)
    check(tiny, batch, values)


@pytest.mark.parametrize("fusion", ["moe", "mopoe", "poe"])
@TERMS
def test_each_regulariser_is_its_loop_beside_other_posteriors(term, fusion):
    tiny = model(fusion, objective=term, private=2)
    loops = Loops(tiny, rows(), product=fusion == "poe")
    values = []
    for i in range(ROWS):
        if term is SHARED:
            values.append(1.5 * 0.8 * loops.information(i, 0.4))
        else:
            values.append(0.7 * loops.augmentation(i, 0.6))
    assert sum(float(value.detach()) < 0 for value in values) == (5 if term is SHARED else 8)
    check(tiny, rows(), values)


@TERMS
def test_weights_multiply_each_rows_own_term_and_rows_without_are_absent(term):
    tiny = model("moe", objective=term, private=2)
    loops = Loops(tiny, rows(), weights=WEIGHTS)
    values = []
    for i in range(ROWS):
        if term is SHARED:
            values.append(1.5 * 0.8 * loops.information(i, 0.4))
        else:
            values.append(0.7 * loops.augmentation(i, 0.6))
    weighted = attrs.evolve(rows(), extra={"row_weight": WEIGHTS})
    check(tiny, weighted, values, WEIGHTS)
    kept = [i for i in range(ROWS) if WEIGHTS[i] > 0]
    whole, _ = loss_and_gradients(tiny, weighted)
    without, _ = loss_and_gradients(tiny, weighted.take(kept), ids=kept)
    assert float(without.loss.detach()) * 7 == pytest.approx(
        float(whole.loss.detach()) * 8, rel=1e-9
    )


def test_the_next_row_is_that_of_the_circle_of_rows_that_observe_a_modality():
    uniform = torch.tensor([0.5, 0.1, 0.9, 0.3])
    observed = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0]]).bool()
    expected = torch.tensor([[2, 0, 0], [3, 3, 1], [1, 1, 2], [0, 2, 3]])
    assert torch.equal(next_rows(uniform, observed), expected)
    assert next_rows(uniform[:0], observed[:0]).shape == (0, 3)


# what is left of latents


def linear_model(reads):
    """A row is (z, w), and the encoder says of both what `reads` (2, 2) makes of them."""
    tiny = Model(
        {"a": Modality((2,), private_dim=1, encoder="linear", decoder="linear")},
        latent_dim=1,
        objective={"name": "generative_augmentation", "temperature": 0.5},
        seed=0,
    ).double()
    with torch.no_grad():
        encoder, decoder = (group["a"] for group in (tiny.encoders, tiny.decoders))
        encoder, decoder = encoder[-1], decoder.network[-1]
        for linear in (encoder, decoder):
            linear.weight.zero_()
            linear.bias.zero_()
        encoder.weight[0], encoder.weight[2] = reads
        encoder.bias[1] = encoder.bias[3] = -30.0  # scales of next to nothing
        decoder.weight.copy_(torch.eye(2))
    return tiny


def test_latents_that_hold_nothing_of_each_other_keep_their_echoes():
    x = torch.tensor([[1.0, 2.0], [-1.0, 1.0], [2.0, -1.0], [-0.5, -2.0]]).double()
    values = []
    for reads in (torch.eye(2), torch.tensor([[1.0, 0.8], [0.8, 1.0]])):
        loss = linear_model(reads.double()).loss({"a": x}, generator=torch.Generator())
        values.append(float(loss.metrics["generative_augmentation"]))
    same, other = math.exp(2), math.exp(-2)  # of codes of one sign, and of two
    expected = math.log(same / ((2 * 2 - 1) * same + 2 * 2 * other))
    # the posterior is that of a product with the prior, which shrinks z but turns no sign
    assert values[0] == pytest.approx(expected, rel=1e-9)
    assert values[1] < values[0]


# edges


@TERMS
def test_a_row_alone_tells_nothing_and_has_finite_gradients(term):
    tiny = model("moe", objective=term, private=2)
    loss, gradients = loss_and_gradients(tiny, rows(1))
    assert abs(float(loss.loss.detach())) < 1e-12
    for gradient in gradients.values():
        assert gradient is None or gradient.abs().max() < 1e-9


def test_rows_of_one_modality_alone_have_no_mutual_information():
    tiny = model("moe", objective=SHARED)
    alone = attrs.evolve(rows(), mask=torch.tensor([[True, False, False]] * ROWS))
    loss, gradients = loss_and_gradients(tiny, alone)
    assert loss.loss == 0
    assert all(torch.isfinite(g).all() for g in gradients.values() if g is not None)


@TERMS
def test_fillers_change_no_bit_and_codes_of_zero_have_finite_gradients(term):
    tiny = model("moe", objective=term, private=2)
    expected = loss_and_gradients(tiny, rows())
    other = loss_and_gradients(tiny, fillers(rows(), math.nan))
    assert torch.equal(expected[0].loss, other[0].loss)
    for name, gradient in expected[1].items():
        assert gradient is None or torch.equal(gradient, other[1][name])
    with torch.no_grad():
        for parameter in tiny.encoders.parameters():
            parameter.zero_()
    _, gradients = loss_and_gradients(tiny, rows())
    assert all(torch.isfinite(g).all() for g in gradients.values() if g is not None)


@TERMS
def test_covariates_counts_and_stacks_are_served(term):
    counts = {"shape": (3,), "likelihood": "poisson", "exposure": "total", "input": "log1p"}
    site = {"site": Covariate(("A", "B"))}
    tiny = model("moe", objective=term, private=2, first=counts, covariates=site)
    batch = attrs.evolve(rows(), extra={"site": ["AB"[i % 2] for i in range(ROWS)]})
    batch.data["a"] = torch.arange(24.0).reshape(8, 3).double() % 5
    loss, gradients = loss_and_gradients(tiny, batch)
    other = attrs.evolve(batch, extra={"site": ["BA"[i % 2] for i in range(ROWS)]})
    assert not torch.equal(loss_and_gradients(tiny, other)[0].loss, loss.loss)
    assert all(torch.isfinite(g).all() for g in gradients.values() if g is not None)


def test_what_it_compares_must_be_there():
    with pytest.raises(SpecError, match="shared codes of two modalities; got 1"):
        model(objective=SHARED, names=("a",))
    with pytest.raises(SpecError, match="latent_dim=2 and no private latents; expected both"):
        model(objective=APART)
    with pytest.raises(SpecError, match="latent_dim=0 and some private latents"):
        model("moe", objective=APART, private=2, latent_dim=0)
    with pytest.raises(SpecError, match="temperature"):
        MutualInformation(temperature=0.0)
    for name in ("aggregator", "objective"):
        with pytest.raises(SpecError, match="the recipe sets it"):
            recipes.idmvae(modalities(), **{name: "elbo"})


# doors


def views(b=24):
    """Two views of three numbers, of which each row lacks one in six."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(b, 2).bool()
    mask[::6, 0] = False
    mask[1::6, 1] = False
    return Batch({name: torch.randn(b, 3, generator=generator) for name in "ab"}, mask)


def made():
    return recipes.idmvae({"a": (3,), "b": (3,)}, 2, private_dim=2, seed=0)


def test_specs_are_plain_data():
    objective = made().spec.objective
    assert as_part("objective", json.loads(json.dumps(to_dict(objective)))) == objective
    assert objective.terms[1:] == (MutualInformation(alpha=10.0), GenerativeAugmentation())


def test_it_is_saved_and_answers_alike(tmp_path):
    first = made()
    history = mvkit.fit(first, views(), epochs=2, batch_size=8, progress=False)
    assert {"1/mutual_information", "2/generative_augmentation"} <= set(history.rows[0])
    mvkit.save(first, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    given = {"a": views().data["a"]}
    assert torch.equal(first.encode(given), again.encode(given))
    assert "mvkit-diffusion" in mvkit.describe(tmp_path / "m")["packages"]
    mvkit.fit_sampler(first, views(), {"name": "latent_diffusion", "steps": 3, "width": 8})
    assert first.sample(3, sampler="latent_diffusion")["b"].shape == (3, 3)


class StoppedError(Exception):
    """What ends a run in bad order."""


def test_a_run_that_stops_within_an_epoch_resumes_with_the_same_bits(tmp_path):
    saves = []

    def stop(event):
        saves.append(isinstance(event, CheckpointSaved))
        if sum(saves) == 2:
            raise StoppedError

    options = {"epochs": 2, "batch_size": 8, "save_every": 0, "progress": False}
    whole, stopped, again = made(), made(), made()
    mvkit.fit(whole, views(), checkpoint=tmp_path / "whole", **options)
    options["checkpoint"] = tmp_path / "run"
    with pytest.raises(StoppedError):
        mvkit.fit(stopped, views(), listeners=[stop], **options)
    mvkit.fit(again, views(), resume="must", **options)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
