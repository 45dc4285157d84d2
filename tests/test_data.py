"""Datasets and simulated missingness."""

import re

import numpy as np
import pytest
import torch

import mvkit
from mvkit.core.noise import row_uniforms
from mvkit.data.datasets.polydigits import make
from mvkit.data.missing import at_random
from mvkit.registry.builtin_parts import EXTERNAL_PARTS


def test_polydigits():
    data = mvkit.load_dataset("polydigits", missing=0.3)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [10_000, 1_000, 2_000]
    assert list(data.modalities) == ["m0", "m1", "m2", "m3", "m4"]
    for modality in data.modalities.values():
        assert modality.shape == (1, 8, 8)
        assert modality.likelihood.scale == 0.25
    for x in data.train.batch.data.values():
        assert x.dtype == torch.float32
        assert 0 <= x.min() < 0.1
        assert 0.9 < x.max() <= 1
    assert abs(data.train.batch.mask.float().mean() - 0.7) < 0.01
    assert data.train.batch.mask.any(1).all()
    assert data.test.batch.mask is None
    assert torch.bincount(data.test.labels).tolist() == [200] * 10
    again = mvkit.load_dataset("polydigits", missing=0.3, missing_test=0.5)
    assert torch.equal(data.train.batch.mask, again.train.batch.mask)
    assert abs(again.test.batch.mask.float().mean() - 0.5) < 0.03
    assert not torch.equal(
        mvkit.load_dataset("polydigits", missing=0.3, seed=1).train.batch.mask,
        data.train.batch.mask,
    )


def test_base_digits_of_the_splits_are_disjoint():
    classes = np.repeat(np.arange(10), 180)
    pools = make.split(np.random.default_rng(0), classes)
    members = {name: set(np.concatenate(pool).tolist()) for name, pool in pools.items()}
    assert sum(len(m) for m in members.values()) == len(classes)
    assert set.union(*members.values()) == set(range(len(classes)))


def test_missingness_is_a_function_of_seed_and_row():
    assert np.array_equal(at_random(100, 5, 0.4, 7)[:30], at_random(30, 5, 0.4, 7))
    assert not np.array_equal(at_random(100, 5, 0.4, 7), at_random(100, 5, 0.4, 8))
    assert at_random(1000, 3, 1.0, 0).sum(1).tolist() == [1] * 1000
    u = row_uniforms(3, 20_000, 4)
    assert abs(u.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(u.T) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03


def test_dataset_gives_batches():
    data = mvkit.load_dataset("polydigits").test
    assert len(data.__getitems__([3, 5])) == 2
    assert len(data[-1]) == 1
    assert torch.equal(data[-1].data["m0"][0], data.batch.data["m0"][-1])


def test_linear_gaussian_has_the_covariance_it_says():
    data = mvkit.load_dataset("linear_gaussian", rows=50_000, orthogonal=False)
    x = torch.cat(list(data.train.batch.data.values()), 1)
    weight = torch.cat(list(data.truth.weight.values()))
    expected = weight @ weight.T + 0.25 * torch.eye(len(weight)).double()
    assert (torch.cov(x.T) - expected).abs().max() < 0.2
    gram = mvkit.load_dataset("linear_gaussian").truth.weight["m1"]
    gram = gram.T @ gram
    assert (gram - torch.diag(gram.diagonal())).abs().max() < 1e-12


@pytest.mark.parametrize("name", EXTERNAL_PARTS["mvkit-datasets"]["dataset"])
def test_data_of_the_package_say_what_to_install(name, monkeypatch):
    monkeypatch.setenv("MVKIT_PLUGINS", "")
    mvkit.plugins.registry.cache_clear()
    message = (
        f"unknown dataset {name!r}; it comes with another package: pip install mvkit-datasets"
    )
    with pytest.raises(mvkit.UnknownComponent, match=f"^{re.escape(message)}$"):
        mvkit.load_dataset(name, path="nowhere")


def test_narrow_modalities_have_no_orthogonal_columns():
    with pytest.raises(
        mvkit.DataError, match=r"dims=\(2, 5\): 2 numbers cannot have 3 orthogonal"
    ):
        mvkit.load_dataset("linear_gaussian", dims=(2, 5))


def test_splits_are_hidden_each_by_its_own_rate():
    complete = mvkit.load_dataset("polydigits")
    hidden = complete.with_missing(0.0, 0.5, seed=1)
    assert hidden.train is complete.train
    mask = mvkit.load_dataset("polydigits", missing_test=0.5, seed=1).test.batch.mask
    assert torch.equal(hidden.test.batch.mask, mask)
