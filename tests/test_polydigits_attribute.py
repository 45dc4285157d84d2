"""polydigits with an attribute that all pictures but the first share."""

import numpy as np
import pytest
import torch

import mvkit
from mvkit import SpecError
from mvkit.core.noise import row_uniforms, seed_of_making
from mvkit.data.datasets.catalogue import PolyDigits, in_quadrant
from mvkit.registry.spec import to_dict


@pytest.fixture(scope="module")
def data():
    return mvkit.load_dataset("polydigits", attribute="quadrant")


def test_pictures_are_placed_by_loops():
    pictures = torch.rand(9, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    quadrant = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0, 2])
    expected = torch.zeros(9, 2, 6, 8)
    for b in range(9):
        top = 3 * (int(quadrant[b]) // 2)
        left = 4 * (int(quadrant[b]) % 2)
        for h in range(3):
            for w in range(4):
                expected[b, :, top + h, left + w] = pictures[b, :, h, w]
    assert torch.equal(in_quadrant(pictures, quadrant), expected)


def test_all_but_the_first_picture_show_the_quadrant(data):
    plain = mvkit.load_dataset("polydigits")
    for split in ("train", "valid", "test"):
        own, other = getattr(data, split), getattr(plain, split)
        quadrant = own.batch.extra["quadrant"]
        assert torch.equal(own.labels, other.labels)
        assert torch.equal(own.batch.data["m0"], other.batch.data["m0"])
        for name in ("m1", "m2", "m3", "m4"):
            x = own.batch.data[name]
            assert x.shape[1:] == data.modalities[name].shape == (1, 16, 16)
            assert x.dtype == torch.float32
            # all else is black: sums of quadrants say where the picture is
            sums = x.reshape(-1, 2, 8, 2, 8).sum((2, 4)).flatten(1)
            assert torch.equal(sums.argmax(1), quadrant)
            assert torch.equal((sums > 0).sum(1), torch.ones(len(x), dtype=torch.long))
            block = x.reshape(-1, 2, 8, 2, 8).transpose(2, 3).reshape(-1, 4, 8, 8)
            assert torch.equal(block[torch.arange(len(x)), quadrant], other.batch.data[name][:, 0])


def test_the_first_picture_and_the_digit_do_not_tell_the_quadrant(data):
    """Counts of quadrants are those of chance in all rows and in every digit."""
    quadrant = data.train.batch.extra["quadrant"]
    label = data.train.labels
    assert abs(torch.bincount(quadrant, minlength=4) / 10_000 - 0.25).max() < 0.015
    for digit in range(10):
        shares = torch.bincount(quadrant[label == digit], minlength=4) / 1000
        assert abs(shares - 0.25).max() < 0.05
    # nor does a line through the pixels of the first picture, beyond chance in rows it has not seen
    x = data.train.batch.data["m0"].flatten(1).double()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    target = torch.nn.functional.one_hot(quadrant, 4).double()
    weight = torch.linalg.lstsq(x[:7000], target[:7000], driver="gelsd").solution
    right = (x[7000:] @ weight).argmax(1) == quadrant[7000:]
    assert abs(right.double().mean() - 0.25) < 0.035


def test_quadrants_are_a_function_of_seed_split_and_row(data):
    again = mvkit.load_dataset("polydigits", attribute="quadrant", missing=0.3, missing_test=0.2)
    expected = np.floor(4 * row_uniforms(seed_of_making(0, 2), 2000, 1)[:, 0])
    assert np.array_equal(data.test.batch.extra["quadrant"].numpy(), expected)
    assert torch.equal(again.test.batch.extra["quadrant"], data.test.batch.extra["quadrant"])
    assert torch.equal(
        again.train.batch.mask, mvkit.load_dataset("polydigits", missing=0.3).train.batch.mask
    )
    other = PolyDigits(attribute="quadrant", seed=1).load().test.batch.extra["quadrant"]
    assert 0.2 < (other == data.test.batch.extra["quadrant"]).double().mean() < 0.3


def test_without_it_nothing_changes():
    assert "attribute" not in to_dict(PolyDigits())
    assert to_dict(PolyDigits(attribute="quadrant"))["attribute"] == "quadrant"
    assert "quadrant" not in mvkit.load_dataset("polydigits").test.batch.extra
    with pytest.raises(SpecError, match=r"attribute: got 'corner'; expected None or 'quadrant'"):
        mvkit.load_dataset("polydigits", attribute="corner")


def test_a_judge_of_the_quadrant_is_right_on_real_pictures(data):
    """Fitted as those of digits are, by the name of the labels."""
    modalities = {name: data.modalities[name] for name in ("m1", "m2")}
    model = mvkit.Model(modalities, latent_dim=2, seed=0)
    some = {
        split: mvkit.Batch(
            {name: getattr(data, split).batch.data[name][:600] for name in modalities},
            extra={"quadrant": getattr(data, split).batch.extra["quadrant"][:600]},
        )
        for split in ("train", "test")
    }
    report = mvkit.evaluate(
        model, some["test"], ["coherence"], train=some["train"], label="quadrant"
    )
    for name in modalities:
        assert report[f"coherence/classifier of {name}, real values"] > 0.98
