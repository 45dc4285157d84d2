"""The refiner `diffusion`: its process and loss against loops, what it learns, and its doors."""

import itertools
import json
import math

import pytest
import torch
from mvkit_diffusion import angles
from mvkit_diffusion.denoisers import Dense, UNet
from mvkit_diffusion.diffusion import Diffusion
from mvkit_diffusion.ema import BATCHES, LEAST, Average, Spread

import mvkit
from mvkit import Batch, Covariate, Modality, Model, RequestError, SpecError, Stage
from mvkit.apps.cli import main
from mvkit.parts import RefinerSizes
from mvkit.registry import as_part, to_dict
from mvkit.testing import check_component
from mvkit.training.events import CheckpointSaved

NAME = "mvkit-diffusion/diffusion"
QUIET = {"progress": False, "device": "cpu"}
SMALL = {"name": NAME, "hidden": 8, "layers": 1, "steps": 3}
TOLD = SMALL | {"knows_given": True}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


# the process


def of_betas(i, count):
    """cos² φ of the i-th of many angles, as DDPM has it: the product of 1 - β over the steps."""
    product = 1.0
    for j in range(1, i + 1):
        now, before = (math.cos(math.pi / 2 * k / count) ** 2 for k in (j, j - 1))
        beta = 1 - now / before
        product *= 1 - beta
    return product


def test_the_schedule_is_the_cosine_schedule():
    y, eps = normal(2, 3), normal(2, 3, seed=1)
    for i in (1, 40, 77, 99):
        alpha_bar = of_betas(i, 100)
        angle = torch.full((2, 1), math.pi / 2 * i / 100, dtype=torch.float64)
        noisy = angles.noised(y, eps, angle)
        expected = math.sqrt(alpha_bar) * y + math.sqrt(1 - alpha_bar) * eps
        assert (noisy - expected).abs().max() < 1e-9
        v = angles.velocity(y, eps, angle)
        assert (v - (math.sqrt(alpha_bar) * eps - math.sqrt(1 - alpha_bar) * y)).abs().max() < 1e-9


def test_angles_go_from_noise_to_data():
    for steps in (1, 2, 20):
        sequence = angles.angles(steps)
        assert len(sequence) == steps + 1
        assert (sequence[0], sequence[-1]) == (math.pi / 2, 0.0)
        assert all(now > after for now, after in itertools.pairwise(sequence))


class Linear:
    """Gaussian data of mean μ and covariance Σ: the velocity that is expected of noisy ones."""

    mu = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    factor = torch.tensor([[0.9, 0, 0], [0.3, 0.5, 0], [-0.2, 0.1, 0.15]], dtype=torch.float64)

    def velocity(self, noisy, angle):
        """cos φ E ε - sin φ E y given y_φ = cos φ y + sin φ ε, by regression."""
        alpha, sigma = math.cos(angle), math.sin(angle)
        covariance = self.factor @ self.factor.T
        noisy_covariance = alpha**2 * covariance + sigma**2 * torch.eye(3, dtype=torch.float64)
        deviation = torch.linalg.solve(noisy_covariance, (noisy - alpha * self.mu).T).T
        y = self.mu + alpha * deviation @ covariance
        eps = sigma * deviation
        return alpha * eps - sigma * y


def ddim_loop(gaussian, eps, steps):
    """Eq. 12 of DDIM with no fresh noise, by square roots of ᾱ and the noise that is told."""
    y = eps
    for now, after in itertools.pairwise(angles.angles(steps)):
        alpha_bar, next_bar = math.cos(now) ** 2, math.cos(after) ** 2
        v = gaussian.velocity(y, now)
        told = math.sqrt(1 - alpha_bar) * y + math.sqrt(alpha_bar) * v
        # with ᾱ = 0 eq. 12 divides by 0, and the predicted data are -v, its limit
        predicted = -v
        if alpha_bar > 1e-12:
            predicted = (y - math.sqrt(1 - alpha_bar) * told) / math.sqrt(alpha_bar)
        y = math.sqrt(next_bar) * predicted + math.sqrt(1 - next_bar) * told
    return y


@pytest.mark.parametrize("steps", [1, 10, 25])
def test_ddim_is_the_loop_of_the_paper(steps):
    gaussian, eps = Linear(), normal(6, 3)
    drawn = angles.denoise(gaussian.velocity, eps, steps, "ddim")
    assert (drawn - ddim_loop(gaussian, eps, steps)).abs().max() < 1e-9


def adams_loop(gaussian, eps, steps):
    """The method of Adams and Bashforth: the line through two velocities, integrated."""
    y, before = eps, None
    for now, after in itertools.pairwise(angles.angles(steps)):
        v = gaussian.velocity(y, now)
        slope = torch.zeros_like(v) if before is None else (v - before[1]) / (now - before[0])
        before = (now, v)
        y = y + v * (after - now) + slope * (after - now) ** 2 / 2
    return y


@pytest.mark.parametrize("steps", [1, 10, 25])
def test_adams_is_a_loop(steps):
    gaussian, eps = Linear(), normal(6, 3)
    drawn = angles.denoise(gaussian.velocity, eps, steps, "adams")
    assert (drawn - adams_loop(gaussian, eps, steps)).abs().max() < 1e-9


def moments(solver, steps):
    """Mean and covariance of draws: they are affine in the noise, so that a basis tells them."""
    gaussian = Linear()
    basis = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
    drawn = angles.denoise(gaussian.velocity, basis, steps, solver)
    slopes = drawn[1:] - drawn[0]
    return drawn[0], slopes.T @ slopes


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("adams", 2)])
def test_the_exact_denoiser_gives_the_right_mean_and_covariance(solver, order):
    covariance = Linear.factor @ Linear.factor.T
    errors = []
    for steps in (200, 400, 800):
        mean, drawn = moments(solver, steps)
        assert (mean - Linear.mu).abs().max() < 1e-3
        errors.append(float((drawn - covariance).abs().max()))
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine > 0.85 * 2**order
    mean, drawn = moments(solver, 3000)
    assert (drawn - covariance).abs().max() < (2e-3 if order == 1 else 1e-5)


def test_twenty_steps_of_adams_keep_the_spread():
    scales = []
    covariance = Linear.factor @ Linear.factor.T
    for solver in ("ddim", "adams"):
        mean, drawn = moments(solver, 20)
        scales.append((drawn.diagonal() / covariance.diagonal()).sqrt())
    assert (scales[1] - 1).abs().max() < 0.03
    assert (scales[0] - 1).abs().min() > 0.05
    mean, _ = moments("ddim", 20)
    assert (mean - Linear.mu).abs().max() < 1e-9  # of DDIM exact with any steps


# the loss


def refiner(shape=(3,), latent=2, context=0, seed=0, **options):
    torch.manual_seed(seed)
    sizes = RefinerSizes("a", shape, latent=latent, context=context)
    options = {"hidden": 8, "layers": 1, "steps": 4} | options
    return Diffusion(**options).build(sizes).double().eval()


@pytest.mark.parametrize("shape", [(3,), (2, 8, 9)])
def test_the_loss_is_that_of_a_loop(shape):
    network = "auto" if len(shape) == 1 else "unet"
    live = refiner(shape, network=network, channels=(4, 4), guidance=0)
    x, out, z = normal(5, *shape), normal(5, *shape, seed=1), normal(5, 2, seed=2)
    observed = torch.rand(x.shape, generator=seeded(3)) < 0.7
    observed[0], observed[-1] = True, False
    x = torch.where(observed, x, 0.0)
    live.spread.squares.fill_(6.0)
    live.spread.numbers.fill_(1.5)
    u, eps = torch.rand(5, generator=seeded(4), dtype=torch.float64), normal(5, *shape, seed=5)
    values = {"choice/angle": u, "x/refine/a": eps}
    with mvkit.testing.noise(lambda site, *_: values[site]):
        losses = live.loss(out, x, z, None, observed, None)
    for i in range(5):
        angle = math.pi / 2 * float(u[i])
        y = torch.zeros(shape, dtype=torch.float64)
        for place in itertools.product(*map(range, shape)):
            if observed[i][place]:
                y[place] = (x[i][place] - out[i][place]) / 2.0
        noisy = math.cos(angle) * y + math.sin(angle) * eps[i]
        at = torch.tensor([angle], dtype=torch.float64)
        v = live.network(noisy[None], out[i : i + 1], at, z[i : i + 1])[0].detach()
        total = 0.0
        for place in itertools.product(*map(range, shape)):
            goal = math.cos(angle) * float(eps[i][place]) - math.sin(angle) * float(y[place])
            if observed[i][place]:
                total += (float(v[place]) - goal) ** 2
        assert abs(total / math.prod(shape) - float(losses.detach()[i])) < 1e-9
    assert losses[-1] == 0.0


def test_a_draw_is_the_mean_and_a_spread_residual():
    live = refiner()
    live.spread.squares.copy_(torch.tensor([4.0, 9.0, 1.0]))
    live.spread.numbers.fill_(1.0)
    out, z, eps = normal(5, 3), normal(5, 2, seed=1), normal(5, 3, seed=2)
    with mvkit.testing.noise(lambda *_: eps):
        drawn = live.refine(out, z, None, None)

    def velocity(noisy, angle):
        return live.network(noisy, out, torch.full((5,), angle, dtype=torch.float64), z)

    y = adams_loop(type("Of", (), {"velocity": staticmethod(velocity)}), eps, 4)
    expected = out + y * torch.tensor([2.0, 3.0, 1.0])
    assert (drawn - expected).abs().max() < 1e-9


def test_many_rows_are_drawn_in_blocks():
    live = refiner()
    out, z = normal(7, 3), normal(7, 2, seed=1)
    whole = live.refine(out, z, None, seeded())
    live.block = 3
    torch.testing.assert_close(live.refine(out, z, None, seeded()), whole)
    assert live.refine(out[:0], z[:0], None, seeded()).shape == (0, 3)


# averages


def test_the_average_is_that_of_a_loop():
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)
    average = Average(network, 0.9)
    assert not list(average.parameters())
    expected = network.weight[0, 0].item()
    for step in range(200):
        with torch.no_grad():
            network.weight.add_(0.1)
        average.update(network)
        kept = min(0.9, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * network.weight[0, 0].item()
    assert float(average.network.weight[0, 0]) == pytest.approx(expected, rel=1e-5)
    assert average.steps == 200


def test_the_spread_is_that_of_the_first_batches():
    table, picture = Spread((2,)).double(), Spread((1, 2, 2)).double()
    assert torch.equal(table(), torch.ones(2))
    residuals, flags = [], []
    for i in range(BATCHES + 5):
        residual = normal(4, 2, seed=i) * torch.tensor([3.0, 0.0]).double()
        observed = torch.rand(4, 2, generator=seeded(i)) < 0.5
        table.update(residual, observed)
        picture.update(
            residual.repeat(1, 2).reshape(4, 1, 2, 2), observed.repeat(1, 2).reshape(4, 1, 2, 2)
        )
        residuals.append(residual)
        flags.append(observed)
    counted, has = torch.cat(residuals[:BATCHES]), torch.cat(flags[:BATCHES])
    first = counted[has[:, 0], 0].square().mean().sqrt()
    assert abs(float(table()[0]) - float(first)) < 1e-9
    assert abs(float(table()[1]) - LEAST) < 1e-9
    whole = counted[has].square().mean().sqrt()
    assert picture().shape == (1, 1, 1)
    assert abs(float(picture()) - float(whole)) < 1e-9


def test_only_training_moves_averages():
    live = refiner()
    x, out, z = normal(5, 3), normal(5, 3, seed=1), normal(5, 2, seed=2)
    observed = torch.ones_like(x, dtype=torch.bool)
    live.loss(out, x, z, None, observed, seeded())
    assert live.average.steps == live.spread.batches == 0
    live.train().loss(out, x, z, None, observed, seeded())
    assert live.average.steps == live.spread.batches == 1
    torch.testing.assert_close(live.spread(), (x - out).square().mean(0).sqrt())


# shapes


@pytest.mark.parametrize(
    ("shape", "network"),
    [
        ((5,), Dense),
        ((1, 7, 30), Dense),
        ((1, 8, 8), Dense),
        ((3, 16, 16), UNet),
        ((17, 19), UNet),
        ((2, 3, 4, 5), Dense),
    ],
)
def test_networks_fit_shapes(shape, network):
    live = refiner(shape, channels=(4, 8, 4))
    assert isinstance(live.network, network)
    assert live.refine(normal(2, *shape), normal(2, 2), None, seeded()).shape == (2, *shape)


@pytest.mark.parametrize("channels", [(4, 4, 4, 4), (2, 6, 3, 8)])
def test_a_single_picture_may_shrink_to_a_pixel(channels):
    live = refiner((1, 8, 8), network="unet", channels=channels, steps=2)
    out, z = normal(3, 1, 8, 8), normal(3, 2, seed=1)
    whole = live.refine(out, z, None, seeded())
    alone = live.refine(out[:1], z[:1], None, seeded())
    torch.testing.assert_close(alone, whole[:1])
    assert live.refine(out[:0], z[:0], None, seeded()).shape == (0, 1, 8, 8)
    nothing = out[:0], out[:0], z[:0], None, out[:0] > 0
    assert live.train().loss(*nothing, seeded()).shape == (0,)


@pytest.mark.parametrize("shape", [(1, 7, 8), (5,), (2, 3, 8, 8)])
def test_a_unet_refuses_what_are_no_pictures(shape):
    with pytest.raises(SpecError, match="sides of at least 8; got .*network='mlp'"):
        refiner(shape, network="unet")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps: got 0"),
        ({"solver": "euler"}, "solver: got 'euler'"),
        ({"channels": ()}, "list of positive widths"),
        ({"channels": (8, 0)}, "list of positive widths"),
        ({"ema": 1.0}, "ema: got 1.0"),
        ({"network": "vit"}, "network: got 'vit'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(SpecError, match=message):
        Diffusion(**options)


# doors


@pytest.mark.parametrize(
    "options",
    [{}, {"knows_given": True, "layers": 1}, {"solver": "ddim", "steps": 2}],
    ids=["plain", "told", "ddim"],
)
def test_it_conforms(options):
    check_component("refiner", NAME, **options)


@pytest.mark.parametrize("shape", [(1, 8, 8), (9, 11)])
def test_it_conforms_for_pictures(shape):
    options = {"network": "unet", "channels": [8, 4, 8], "steps": 2}
    check_component("refiner", NAME, shapes={"a": shape}, **options)


def tiny(**options):
    modalities = {"a": Modality((3,)), "b": Modality((1, 8, 8), "bernoulli", private_dim=1)}
    return Model(modalities, latent_dim=2, aggregator="mopoe", seed=0, **options)


def rows(b=12):
    data = {"a": normal(b, 3).float(), "b": torch.rand(b, 1, 8, 8, generator=seeded())}
    return Batch(data, torch.tensor([[i % 3 != 0, i % 3 != 1] for i in range(b)]))


@pytest.mark.parametrize("spec", [SMALL, TOLD], ids=["plain", "told"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_files_keep_it(spec, dtype, tmp_path):
    model = tiny().to(dtype)
    mvkit.fit_refiner(model, rows(), spec, epochs=2, **QUIET)
    mvkit.save(model, tmp_path / "m")
    assert mvkit.describe(tmp_path / "m")["packages"] == {"mvkit-diffusion": "0.1.0"}
    loaded = mvkit.load(tmp_path / "m")
    assert loaded.refiners["b"].spec == as_part("refiner", spec)
    assert "Diffusion(" in repr(loaded)
    for given in (None, "a", ()):
        options = {"refine": True, "n": 2, "empty": "prior"}
        first, again, second = (
            m.translate(rows(), ["a", "b"], given, generator=seeded(), **options)
            for m in (model, model, loaded)
        )
        for name, x in first.items():
            assert x.dtype == dtype
            assert torch.isfinite(x).all()
            assert torch.equal(x, again[name])
            assert torch.equal(x, second[name])
    assert 0 <= first["b"].min() <= first["b"].max() <= 1
    assert model.sample(3, refine=True)["b"].shape == (3, 1, 8, 8)


def test_what_stands_in_gaps_changes_no_bit():
    states = []
    for filler in (0.0, math.nan, 1e6):
        batch = rows()
        for m, name in enumerate(batch.data):
            batch.data[name][~batch.mask[:, m]] = filler
        batch.data["a"][4, 1] = math.nan  # a gap within
        model = tiny()
        mvkit.fit_refiner(model, batch, SMALL, epochs=2, batch_size=5, **QUIET)
        states.append(model.state_dict())
    for state in states[1:]:
        for name, value in states[0].items():
            assert torch.equal(value, state[name]), name


def test_covariates_are_seen():
    batch = Batch(rows().data, covariates={"age": [float(i) for i in range(12)]})
    model = tiny(covariates={"age": Covariate()})
    mvkit.fit(model, batch, epochs=1, **QUIET)
    mvkit.fit_refiner(model, batch, SMALL, epochs=1, **QUIET)
    options = {"to": "a", "refine": True, "latent": "mean"}
    first = model.translate(batch, generator=seeded(), **options)["a"]
    other = model.translate(batch, generator=seeded(), covariates={"age": 3.0}, **options)["a"]
    assert not torch.equal(first, other)


def test_json():
    for spec in (Diffusion(), Diffusion(channels=(8, 16), knows_given=True, network="unet")):
        assert as_part("refiner", json.loads(json.dumps(to_dict(spec)))) == spec


TEXT = """
[data]
name = "linear_gaussian"
rows = 60
missing = 0.3
[model]
recipe = "mopoe"
latent_dim = 2
[train]
batch_size = 20
[[train.stages]]
epochs = 1
[[train.stages]]
objective = {name = "refine", refiners = {m0 = {name = "mvkit-diffusion/diffusion", hidden = 8}}}
epochs = 1
trainable = ["refiners.*"]
"""


def test_a_run_file_trains_it(tmp_path):
    (tmp_path / "a.toml").write_text(TEXT)
    folders = tmp_path / "one", tmp_path / "other"
    assert main(["train", str(tmp_path / "a.toml"), "--folder", str(folders[0])]) == 0
    assert main(["train", str(folders[0] / "run.toml"), "--folder", str(folders[1])]) == 0
    first, second = (mvkit.load(folder / "model.safetensors") for folder in folders)
    assert first.refiners["m0"].spec == Diffusion(hidden=8)
    assert first.refiners["m0"].average.steps == 3
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


class Halt(Exception):
    pass


@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_stage_resumes_with_the_same_bits(step, tmp_path):
    plan = [Stage({"name": "refine", "refiners": {"a": SMALL, "b": TOLD}}, 2, ["refiners.*"])]
    options = {"stages": plan, "batch_size": 4, "seed": 3, "save_every": 0.0, **QUIET}
    whole, parts = tiny(), tiny()
    mvkit.fit(whole, rows(), checkpoint=tmp_path / "whole", **options)
    saves = []

    def listen(event):
        if isinstance(event, CheckpointSaved):
            saves.append(event)
            if len(saves) == step:
                raise Halt

    with pytest.raises(Halt):
        mvkit.fit(parts, rows(), checkpoint=tmp_path / "parts", listeners=[listen], **options)
    assert int(parts.refiners["a"].average.steps) < 6
    resumed = tiny()
    mvkit.fit(resumed, rows(), checkpoint=tmp_path / "parts", **options)
    assert int(resumed.refiners["a"].average.steps) == 6
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_stack_is_refused():
    stack = mvkit.recipes.nexus({"a": (3,), "b": (2,)}, latent_dim=2, seed=0)
    with pytest.raises(RequestError, match="a stack decodes through two levels"):
        mvkit.fit_refiner(stack, {"a": normal(9, 3), "b": normal(9, 2)}, NAME, epochs=1, **QUIET)
