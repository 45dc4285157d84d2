"""Noise by row and draw: the same bits in any blocks, the laws it should have, any device.

Axes: n draws, b rows, d numbers.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

import mvkit
from mvkit.core import noise
from mvkit.core.noise_by_row import ByRow
from mvkit.parts.families import LaplaceSoftmax

LIKE = torch.zeros(1, dtype=torch.float64)
SAMPLERS = {"uniform": torch.rand, "normal": torch.randn, "laplace": LaplaceSoftmax().noise}
MASK = 2**64 - 1


def mixed(state):
    """The finish of splitmix64 on Python's whole numbers."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ state >> shift) * factor & MASK
    return state ^ state >> 31


def drawn(rows, draws, tail=(3,), sampler=torch.rand, seed=5, site="z", device="cpu", axes=(1,)):
    """Noise (n, b, *tail) in blocks of rows and of draws."""
    generator = ByRow(seed, device)
    like = LIKE.to(device)
    columns = []
    for b in rows:
        generator.rows(b)
        pieces = []
        for n in draws:
            generator.draws(n)
            shape = (n, *axes, b, *tail)
            piece = noise.draw(site, shape, like, generator=generator, sampler=sampler)
            pieces.append(piece.reshape(n, b, *tail))
        columns.append(torch.cat(pieces))
    return torch.cat(columns, 1)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("tail", [(), (3,), (2, 5)])
def test_blocks_of_rows_and_draws_change_no_bit(name, tail):
    whole = drawn([7], [6], tail, SAMPLERS[name])
    assert whole.shape == (6, 7, *tail)
    for rows, draws in (([1] * 7, [6]), ([7], [1] * 6), ([3, 1, 3], [2, 1, 3]), ([6, 1], [5, 1])):
        for axes in ((), (1,)):
            pieces = drawn(rows, draws, tail, SAMPLERS[name], axes=axes)
            assert torch.equal(pieces, whole), (rows, draws, axes)


def test_uniforms_are_the_hashes_of_their_counters():
    """By a loop over Python's whole numbers, as the module's documentation says."""
    golden, second = 0x9E3779B97F4A7C15, 0x94D049BB133111EB
    generator = ByRow(5)
    generator.rows(3)
    generator.draws(2)
    with generator.at("z", (2, 3, 4)) as place:
        key = place.key
    again = drawn([3], [2], (4,))
    for row, draw, number in itertools.product(range(3), range(2), range(4)):
        seed = mixed(key + row * golden & MASK)
        seed = mixed(seed + (draw + 1) * second & MASK)
        hashed = mixed(seed + (number + 1) * golden & MASK)
        assert again[draw, row, number].item() == (hashed >> 11) / 2**53


def test_leading_axes_and_merged_rows_are_read_alike():
    shapes = [(4, 5, 3), (4, 1, 5, 3), (20, 3), (1, 1, 20, 3)]
    values = []
    for shape in shapes:
        generator = ByRow(0)
        noise.next_rows(generator, 5, 4)
        values.append(noise.draw("z", shape, LIKE, generator=generator).reshape(4, 5, 3))
    for value in values[1:]:
        assert torch.equal(value, values[0])


def test_rows_draws_sites_calls_labels_children_and_seeds_differ():
    def of(seed=0, site="z", label=None, child=False, calls=1):
        generator = ByRow(seed)
        noise.next_rows(generator, 50, 40)
        if child:
            generator = noise.child(generator)
            noise.next_rows(generator, 50, 40)
        with noise.labelled(generator, label or ""):
            for _ in range(calls):
                value = noise.draw(site, (40, 50), LIKE, generator=generator)
        return value.flatten()

    base = of()
    streams = [base, of(1), of(site="x"), of(label="a"), of(child=True), of(calls=2)]
    streams += [base.reshape(40, 50).T.flatten(), base.roll(1), base.roll(50)]
    correlations = np.corrcoef(torch.stack(streams).numpy())
    off = correlations[~np.eye(len(streams), dtype=bool)]
    assert np.abs(off).max() < 4 / 2000**0.5
    assert torch.equal(base, of())


def test_draws_that_are_not_the_blocks_differ_from_block_to_block():
    generator = ByRow(0)
    noise.next_rows(generator, 3)
    picks = []
    for draws in (4, 4, 2):
        generator.draws(draws)
        picks.append(noise.draw("choice/pick", (7, 3), LIKE, generator=generator))
    for one, other in itertools.combinations(picks, 2):
        assert not (one == other).any()


LAWS = {"uniform": "uniform", "normal": "norm", "laplace": "laplace"}


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_laws(name, dtype):
    generator = ByRow(11)
    noise.next_rows(generator, 100, 200)
    shape = (200, 100, 5)
    values = noise.draw(
        "z", shape, LIKE.to(dtype), generator=generator, sampler=SAMPLERS[name]
    ).double()
    assert stats.kstest(values.flatten().numpy(), LAWS[name]).pvalue > 0.001
    for axis in range(3):  # neighbours along draws, rows and numbers; both of a pair of normals
        first, second = values.unbind(axis)[:2]
        assert abs(stats.spearmanr(first.flatten(), second.flatten()).statistic) < 4 / 500**0.5
    pair = values[..., 0], values[..., 3]
    assert abs(np.corrcoef(pair[0].flatten(), pair[1].flatten())[0, 1]) < 4 / 20_000**0.5
    assert abs(np.corrcoef(pair[0].flatten() ** 2, pair[1].flatten() ** 2)[0, 1]) < 0.03


def test_every_bit_of_the_uniforms_is_fair():
    generator = ByRow(2)
    noise.next_rows(generator, 200, 100)
    values = noise.draw("z", (100, 200, 2), LIKE, generator=generator)
    whole = (values * 2**53).long()
    assert (whole.double() / 2**53 == values).all()
    for bit in range(53):
        share = (whole >> bit & 1).double().mean().item()
        assert abs(share - 0.5) < 4 * 0.5 / 40_000**0.5
    single = noise.draw("z", (100, 200, 2), torch.zeros(1), generator=generator)
    assert single.max() < 1
    assert ((single * 2**24) % 1 == 0).all()


def test_torchs_own_samplers_and_foreign_code_draw_from_it_too():
    def gammas(size, *, dtype, device, generator):
        return torch._standard_gamma(torch.full(size, 2.0, dtype=dtype), generator=generator)

    def both(rows):
        generator = ByRow(0)
        values = []
        for b in rows:
            generator.rows(b)
            values.append(noise.draw("x/gamma", (b, 3), LIKE, generator=generator, sampler=gammas))
            values.append(torch.rand(b, 3, generator=generator))
        return values

    for value, again in zip(both([4, 4]), both([4, 4]), strict=True):
        assert torch.equal(value, again)
    first, foreign, second, other = both([4, 4])
    assert not torch.equal(first, second)
    assert not torch.equal(foreign, other)


def test_the_users_generator_gives_one_number_and_children_have_other_noise():
    generator = torch.Generator().manual_seed(3)
    streams = [noise.by_row(generator, torch.device("cpu")) for _ in range(2)]
    expected = torch.Generator().manual_seed(3)
    torch.randint(2**62, (2,), generator=expected)
    assert torch.equal(generator.get_state(), expected.get_state())
    streams.append(noise.by_row(streams[0], torch.device("cpu")))
    values = []
    for stream in streams:
        noise.next_rows(stream, 4)
        values.append(noise.draw("z", (4, 2), LIKE, generator=stream))
    for one, other in itertools.combinations(values, 2):
        assert not (one == other).any()


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.device
@CUDA
@pytest.mark.parametrize("name", SAMPLERS)
def test_another_device_draws_the_same(name):
    ours = drawn([30, 20], [40], (7,), SAMPLERS[name])
    theirs = drawn([50], [10, 30], (7,), SAMPLERS[name], device="cuda").cpu()
    if name == "uniform":
        assert torch.equal(ours, theirs)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-12)


SETTINGS = {
    "plain": {"aggregator": "mopoe"},
    "private": {"aggregator": "moe", "private": 2},
    "laplace": {"aggregator": "moe", "family": "laplace_softmax"},
}


def model_of(private=0, **options):
    modalities = {
        "a": mvkit.Modality((3,), private_dim=private),
        "b": mvkit.Modality((2,), "bernoulli", private_dim=private),
        "c": mvkit.Modality((4,), "laplace", private_dim=private),
    }
    model = mvkit.Model(modalities, latent_dim=3, seed=0, **options)
    return model.double()


def rows_of(b=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    data = {}
    for name, width in (("a", 3), ("b", 2), ("c", 4)):
        data[name] = torch.rand(b, width, generator=generator, dtype=torch.float64).to(dtype)
    mask = torch.rand(b, 3, generator=generator) < 0.7
    mask[:, 0] |= ~mask.any(1)
    return mvkit.Batch(data, mask)


def seeded():
    return torch.Generator().manual_seed(4)


def of_rows(whole, rows):
    return {name: x[:, rows] for name, x in whole.items()}


@pytest.fixture
def blocks_of(monkeypatch):
    return lambda rows: monkeypatch.setattr("mvkit.models.inference.ROWS", rows)


@pytest.mark.parametrize("name", SETTINGS)
def test_answers_do_not_depend_on_blocks(name, blocks_of):
    """Products of other shapes differ by rounding alone."""
    model, rows = model_of(**SETTINGS[name]), rows_of()

    def answers(memory=None):
        log_px = model.log_likelihood(rows, n=40, memory=memory, generator=seeded())
        given = model.log_likelihood(
            rows, ["c"], ["a"], n=40, memory=memory, generator=seeded(), empty="prior"
        )
        predicted = model.log_likelihood(
            rows,
            ["c"],
            ["a"],
            n=40,
            estimator="predictive",
            memory=memory,
            generator=seeded(),
            empty="prior",
        )
        drawn = model.translate(rows, n=4, sample=True, generator=seeded())
        means = model.translate(rows, ["b"], ["a"], n=4, empty="prior", generator=seeded())
        return [log_px, given, predicted, *drawn.values(), *means.values()]

    whole = answers()
    for block, memory in ((1, 1), (4, 30_000), (10, None), (1000, 5_000)):
        blocks_of(block)
        for value, expected in zip(answers(memory), whole, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


def test_imputed_values_do_not_depend_on_blocks(monkeypatch):
    model, rows = model_of(aggregator="mopoe"), rows_of()

    def answers():
        imputation = mvkit.impute(
            model, rows, n=5, draws=True, quantiles=(0.3,), generator=seeded()
        )
        return [imputation.filled.data, *(draw.data for draw in imputation.draws)]

    whole = answers()
    for budget in (1, 200_000):
        monkeypatch.setattr("mvkit.core.blocks.IMPUTED", budget)
        for values, expected in zip(answers(), whole, strict=True):
            for name, x in values.items():
                torch.testing.assert_close(x, expected[name], rtol=1e-12, atol=1e-12)


def test_the_first_rows_of_a_request_have_the_same_noise_alone():
    model, rows = model_of(aggregator="mopoe"), rows_of()
    whole = model.translate(rows, n=3, sample=True, generator=seeded())
    first = model.translate(rows.take(slice(0, 4)), n=3, sample=True, generator=seeded())
    for name, x in of_rows(whole, slice(0, 4)).items():
        torch.testing.assert_close(first[name], x, rtol=1e-12, atol=1e-12)
    noise_of = model.log_likelihood(rows, n=30, generator=seeded())
    torch.testing.assert_close(
        model.log_likelihood(rows.take(slice(0, 4)), n=30, generator=seeded()),
        noise_of[:4],
        rtol=1e-12,
        atol=1e-12,
    )


def test_what_other_rows_hold_does_not_matter():
    """Rows that change places, but one: it keeps its place, and so its draws."""
    model, rows = model_of(aggregator="mopoe"), rows_of()
    order = torch.tensor([3, 1, 0, 2, 4, 9, 8, 7, 6, 5, 10])
    whole = model.translate(rows, n=3, sample=True, generator=seeded())
    moved = model.translate(rows.take(order), n=3, sample=True, generator=seeded())
    kept = order == torch.arange(11)
    for name, x in whole.items():
        torch.testing.assert_close(moved[name][:, kept], x[:, kept], rtol=1e-12, atol=1e-12)
        assert not torch.isclose(moved[name][:, ~kept], x[:, order[~kept]]).all()


def test_two_requests_of_one_generator_differ_and_are_those_of_its_seed():
    model, rows = model_of(aggregator="mopoe"), rows_of()
    generator = seeded()
    first = model.log_likelihood(rows, n=10, generator=generator)
    second = model.log_likelihood(rows, n=10, generator=generator)
    assert not torch.isclose(first, second).any()
    assert torch.equal(first, model.log_likelihood(rows, n=10, generator=seeded()))


@pytest.mark.device
@CUDA
def test_answers_of_another_device_are_the_same():
    rows = rows_of()
    ours, theirs = model_of(aggregator="mopoe"), model_of(aggregator="mopoe").to("cuda")
    for name, x in ours.translate(rows, n=4, generator=seeded()).items():
        value = theirs.translate(rows, n=4, generator=seeded())[name]
        torch.testing.assert_close(value.cpu(), x, rtol=1e-6, atol=1e-6)
    expected = ours.log_likelihood(rows, n=100, generator=seeded())
    value = theirs.log_likelihood(rows, n=100, generator=seeded())
    torch.testing.assert_close(value.cpu(), expected, rtol=1e-6, atol=1e-6)
