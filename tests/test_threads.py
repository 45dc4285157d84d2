"""Threads that make, train and ask models at once get what each gets alone, bit by bit."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

import mvkit
from mvkit.core import noise

THREADS = 4
ROWS = {"a": np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)}
ROWS["b"] = ROWS["a"][:, :2] + 1


def at_once(function, *arguments):
    """The results of a function in threads that start together, one for each argument."""
    barrier = threading.Barrier(len(arguments))

    def start(argument):
        barrier.wait()
        return function(argument)

    with ThreadPoolExecutor(len(arguments)) as pool:
        return list(pool.map(start, arguments))


def with_dropout(width):
    return nn.Sequential(nn.Linear(width, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 4))


class OwnNoise(nn.Module):
    """A module that nobody knows to draw from the global generator."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, 4)

    def forward(self, x):
        return self.linear(x) + (0.3 * torch.randn(len(x), 4) if self.training else 0)


def plain(seed, network=None, **options):
    modalities = {"a": (3,), "b": (2,)}
    if network is not None:
        with noise.global_seed(seed):
            modalities = {
                name: mvkit.Modality(shape, encoder=network(*shape))
                for name, shape in modalities.items()
            }
    return mvkit.Model(modalities, latent_dim=2, seed=seed, **options)


def weights(model):
    return torch.cat([x.detach().flatten() for x in model.state_dict().values()])


def trained(network=None):
    def train(seed):
        model = plain(seed, network)
        mvkit.fit(model, ROWS, epochs=4, batch_size=8, seed=seed, progress=False)
        return weights(model)

    return train


def asked(seed):
    model = plain(seed, with_dropout)
    generator = noise.seeded(seed)
    return torch.cat(
        [
            torch.from_numpy(mvkit.impute(model, ROWS, n=5, generator=generator)["a"]).flatten(),
            model.translate(ROWS, "b", n=5, generator=noise.seeded(seed))["b"].flatten(),
            model.sample(5, generator=noise.seeded(seed))["a"].flatten(),
        ]
    )


WORK = {
    "making": lambda seed: weights(plain(seed, with_dropout)),
    "training": trained(),
    "training with dropout": trained(with_dropout),
    "training with noise of its own": trained(OwnNoise),
    "asking": asked,
}


@pytest.mark.parametrize("work", WORK)
def test_threads_get_what_each_gets_alone(work):
    seeds = range(THREADS)
    alone = [WORK[work](seed) for seed in seeds]
    together = at_once(WORK[work], *seeds)
    assert all(map(torch.equal, alone, together))


def test_making_and_training_at_once():
    kinds = [WORK["training with dropout"], WORK["making"]] * 2
    alone = [kinds[i](i) for i in range(4)]
    assert all(map(torch.equal, alone, at_once(lambda i: kinds[i](i), *range(4))))


def test_the_global_generator_is_as_it_was_after_threads():
    before = torch.get_rng_state()
    at_once(trained(with_dropout), 0, 1, 2)
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_that_is_asked_by_several_threads_stays_in_evaluation_mode():
    model = plain(0, with_dropout)
    assert model.training
    right = model.encode(ROWS)

    def ask(_):
        return [model.encode(ROWS) for _ in range(30)]

    for answers in at_once(ask, *range(THREADS)):
        assert all(torch.equal(answer, right) for answer in answers)
    assert all(module.training for module in model.modules())


def test_only_a_model_that_draws_is_alone():
    cpu = torch.device("cpu")
    turns = noise.Turns(cpu)
    with turns.step(1):
        torch.zeros(3)
    assert turns.draws is False
    drawing = noise.Turns(cpu)
    with drawing.step(1):
        first = torch.rand(3)
    with drawing.step(1):
        assert torch.equal(torch.rand(3), first)
    assert drawing.draws is True
