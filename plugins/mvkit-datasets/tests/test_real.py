"""Real data by name; what needs the files is skipped where they are not."""

import gzip
import math
import os
from pathlib import Path

import attrs
import numpy as np
import pytest
import scipy.signal
import torch
from mvkit_datasets import composed, log_mel
from mvkit_datasets.converted import FSDD, MNIST, SignDigits
from mvkit_datasets.from_files import paired, stratified

import mvkit
from mvkit import DataError
from mvkit.core.noise import row_uniforms
from mvkit.registry import plugins
from mvkit.registry.builtin_parts import EXTERNAL_PARTS
from mvkit.registry.spec import as_part

DATA = Path(os.environ.get("MVKIT_DATA", Path(__file__).parents[4] / "shared" / "data"))
# name, folder, rows of the splits, shapes and ranges; options
SETS = {
    "mnist": ("mnist", (54_999, 5_001, 10_000), {"image": (1, 28, 28), "label": ()}, {}),
    "fsdd": ("fsdd", (2_400, 300, 300), {"sound": (1, 32, 32), "label": ()}, {}),
    "sign_digits": ("sign_digits", (1_444, 207, 411), {"sign": (3, 32, 32), "label": ()}, {}),
    "mfeat": (
        "mfeat",
        (1_400, 200, 400),
        {"fou": (76,), "fac": (216,), "kar": (64,), "pix": (240,), "zer": (47,), "mor": (6,)},
        {},
    ),
    "rosmap": (
        "rosmap",
        (196, 49, 106),
        dict.fromkeys(("mrna", "methylation", "mirna"), (200,)),
        {},
    ),
    "polymnist": ("", (200, 200, 200), {f"m{i}": (3, 28, 28) for i in range(5)}, {"rows": 200}),
    "spoken_digits": (
        "",
        (300, 300, 300),
        {"image": (1, 28, 28), "sound": (1, 32, 32), "sign": (3, 32, 32)},
        {"rows": 300},
    ),
}
KEPT = {}


def read_once(read):
    """A `read` that keeps the splits of each folder and options."""
    kept = {}

    def cached(self, path):
        options = attrs.evolve(self, path=str(path), missing=0.0, missing_test=0.0)
        if options not in kept:
            kept[options] = read(self, path)
        return kept[options]

    return cached


@pytest.fixture(scope="module", autouse=True)
def installed():
    """The package is let in, whatever other tests of this process want; files are read once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MVKIT_PLUGINS", "mvkit-datasets")
        plugins.registry.cache_clear()
        for cls in (MNIST, FSDD, SignDigits):
            patch.setattr(cls, "read", read_once(cls.read))
        yield
    plugins.registry.cache_clear()
    KEPT.clear()


def load(name, **options):
    """A dataset, read once for the same options."""
    folder, _, _, standard = SETS[name]
    for required in (
        [folder] if folder else ["mnist", "fsdd", "sign_digits", "polymnist_backgrounds"]
    ):
        if not (DATA / required).is_dir():
            pytest.skip(f"no folder {DATA / required}; set MVKIT_DATA to where the data are")
    options = {**standard, **options}
    key = (name, *sorted(options.items()))
    if key not in KEPT:
        KEPT[key] = mvkit.load_dataset(name, path=DATA / folder, **options)
    return KEPT[key]


def splits(data):
    return data.train, data.valid, data.test


def test_all_seven_are_here():
    assert set(mvkit.available("dataset")) == {*SETS, "files", "linear_gaussian", "polydigits"}
    assert set(EXTERNAL_PARTS["mvkit-datasets"]["dataset"]) == set(SETS)


@pytest.mark.parametrize("name", SETS)
def test_rows_shapes_and_ranges(name):
    data, (_, rows, shapes, _) = load(name), SETS[name]
    assert tuple(len(split) for split in splits(data)) == rows
    for split in splits(data):
        assert {k: tuple(x.shape[1:]) for k, x in split.batch.data.items()} == shapes
        assert list(split.batch.data) == list(data.modalities)
        for x in split.batch.data.values():
            assert torch.isfinite(x.float()).all()
            if name != "mfeat" and x.is_floating_point():
                assert x.dtype == torch.float32
                assert x.min() >= 0
                assert 0.5 < x.max() <= 1
        assert len(split.labels.unique()) == (2 if name == "rosmap" else 10)
    made = mvkit.Model(data.modalities, latent_dim=2, seed=0)
    assert torch.isfinite(made.loss(data.test.batch.take(slice(0, 8))).loss)


@pytest.mark.parametrize("name", [n for n in SETS if n != "mnist"])
def test_a_seed_decides_everything(name):
    folder, _, _, options = SETS[name]
    first = load(name, missing=0.3, missing_test=0.3)
    again = mvkit.load_dataset(
        name, path=str(DATA / folder), missing=0.3, missing_test=0.3, **options
    )
    other = load(name, missing=0.3, missing_test=0.3, seed=1)
    for one, same, different in zip(*map(splits, (first, again, other)), strict=True):
        assert torch.equal(one.batch.mask, same.batch.mask)
        assert not torch.equal(one.batch.mask, different.batch.mask)
        assert all(torch.equal(x, same.batch.data[k]) for k, x in one.batch.data.items())
    assert first.test.batch.mask.any(1).all()


@pytest.mark.parametrize("name", ["mfeat", "spoken_digits"])
def test_missing_is_the_share_that_is_missing(name):
    data = load(name, missing=0.3)
    m = len(data.modalities)
    kept = 0.7 + 0.3**m / m  # where all would be missing, one stays
    rows = torch.cat([data.train.batch.mask, data.valid.batch.mask])
    assert rows.double().mean().item() == pytest.approx(
        kept, abs=4 * math.sqrt(0.21 / rows.numel())
    )
    assert rows.any(1).all()
    assert data.test.batch.mask is None


@pytest.mark.parametrize("name", SETS)
def test_no_item_is_in_two_splits(name):
    data = load(name)
    for key in [k for k in data.train.batch.extra if k.endswith("id")]:
        ids = [set(split.batch.extra[key].tolist()) for split in splits(data)]
        assert ids[0].isdisjoint(ids[1])
        if name in ("fsdd", "sign_digits", "mfeat") or key in ("sound_id", "sign_id"):
            assert ids[2].isdisjoint(ids[0] | ids[1])  # else test rows are of files of their own


def test_mnist_is_the_files():
    data = load("mnist")
    raw = gzip.decompress((DATA / "mnist" / "train-images-idx3-ubyte.gz").read_bytes())
    label = gzip.decompress((DATA / "mnist" / "train-labels-idx1-ubyte.gz").read_bytes())
    for row in (0, 17, 50_000):
        number = int(data.train.batch.extra["id"][row])
        picture = np.frombuffer(raw, np.uint8, 784, 16 + 784 * number).reshape(1, 28, 28)
        assert np.allclose(data.train.batch.data["image"][row].numpy() * 255, picture, atol=1e-4)
        assert data.train.labels[row] == data.train.batch.data["label"][row] == label[8 + number]
    counts = torch.bincount(data.train.labels) / torch.bincount(data.valid.labels)
    assert (counts - 11).abs().max() < 0.03  # every class is cut alike


def test_mnist_bits():
    grey = load("mnist").valid.batch.data["image"]
    threshold = load("mnist", binarise="threshold").valid.batch.data["image"]
    assert torch.equal(threshold, (grey >= 0.5).float())
    drawn = load("mnist", binarise="drawn").valid.batch.data["image"]
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert (drawn[grey == 0] == 0).all()
    assert (drawn[grey == 1] == 1).all()
    middle = (grey > 0.4) & (grey < 0.6)
    expected, count = grey[middle].mean().item(), int(middle.sum())
    assert drawn[middle].mean().item() == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(count))
    other = mvkit.load_dataset(
        "mnist", path=DATA / "mnist", binarise="drawn", seed=1
    ).valid.batch.data["image"]
    assert 0.4 < (drawn != other)[middle].float().mean() < 0.6


def test_fsdd_has_the_official_split():
    data = load("fsdd")
    arrays = np.load(DATA / "fsdd" / "fsdd_8khz_int16.npz")
    take, digit = arrays["index"], arrays["digit"]
    assert set(take[data.test.batch.extra["id"]]) == set(range(5))
    assert set(take[data.valid.batch.extra["id"]]) == set(range(5, 10))
    assert (digit[data.train.batch.extra["id"]] == data.train.labels.numpy()).all()


def test_the_floor_of_sounds_is_of_the_training_split():
    cells = load("fsdd").train.batch.data["sound"]
    assert (cells == 0).double().mean().item() == pytest.approx(0.3, abs=0.005)
    assert (cells.amax((1, 2, 3)) == 1).all()


def test_real_speech_can_be_heard_again():
    pictures = load("fsdd").test.batch.data["sound"][::10]
    samples, rate = log_mel.to_sound(pictures)
    assert samples.shape == (30, 4960)
    assert rate == 8000
    difference = 65 * (log_mel.log_mel(samples) - pictures)  # decibels
    assert difference[pictures > 0.5].square().mean().sqrt() < 3


def test_mfeat_is_the_files_and_standardises_by_the_training_rows():
    data = load("mfeat")
    for name in ("fou", "mor"):
        table = np.loadtxt(DATA / "mfeat" / f"mfeat-{name}.csv", delimiter=",", skiprows=1)
        for one in splits(data):
            rows = table[one.batch.extra["id"]]
            assert np.allclose(one.batch.data[name].numpy(), rows[:, :-1])
            assert (rows[:, -1] == one.labels.numpy()).all()
    model = mvkit.Model(
        data.train.fit_transforms(dict.fromkeys(data.modalities, "standardise")).modalities
    )
    for name, x in model.conform(data.train).data.items():
        assert x.mean(0).abs().max() < 1e-4, name
        assert (x.std(0, correction=0) - 1).abs().max() < 1e-4, name
    assert torch.bincount(data.test.labels).tolist() == [40] * 10


def test_rosmap_is_the_published_split():
    data = load("rosmap")
    table = np.loadtxt(DATA / "rosmap" / "2_te.csv", delimiter=",")
    assert np.allclose(data.test.batch.data["methylation"].numpy(), table)
    assert torch.bincount(data.test.labels).tolist() == [51, 55]
    train, valid = (torch.bincount(s.labels) for s in (data.train, data.valid))
    assert (train + valid).tolist() == [118, 127]
    assert [len(names) for names in data.notes["features"].values()] == [200] * 3
    assert data.notes["features"]["mirna"][0] == "hsa-let-7b"


@pytest.mark.parametrize("seed", range(5))
def test_rosmap_is_learnt_at_the_defaults(seed):
    data = load("rosmap")
    model = mvkit.Model(data.modalities, seed=seed)
    mvkit.fit(model, data.train, epochs=50, progress=False)
    assert model.encode(data.test.batch).std(0).max() > 0.5


@pytest.mark.parametrize("translated", [False, True])
def test_polymnist_pictures_are_digits_over_their_photograph(translated):
    data = load("polymnist", translated=translated)
    image = composed._photograph(DATA / "polymnist_backgrounds" / composed.PHOTOGRAPHS[2])
    crops = np.lib.stride_tricks.sliding_window_view(image, (28, 28), axis=(0, 1))
    corners = crops[..., [0, 0, 27, 27], [0, 27, 0, 27]].reshape(-1, 12)
    label = gzip.decompress((DATA / "mnist" / "t10k-labels-idx1-ubyte.gz").read_bytes())
    raw = gzip.decompress((DATA / "mnist" / "t10k-images-idx3-ubyte.gz").read_bytes())
    for row in range(5):
        number = int(data.test.batch.extra["m2_id"][row])
        assert label[8 + number] == data.test.labels[row]
        picture = np.rint(data.test.batch.data["m2"][row].numpy() * 255).astype(np.int64)
        found = np.flatnonzero(
            (corners == picture[:, [0, 0, 27, 27], [0, 27, 0, 27]].reshape(12)).all(1)
        )
        digit = np.frombuffer(raw, np.uint8, 784, 16 + 784 * number).reshape(28, 28) > 128
        fits = []
        for place in found:
            crop = crops[divmod(place, crops.shape[1])].astype(np.int64)
            inverted = (picture != crop).any(0)
            if (picture[:, inverted] == 255 - crop[:, inverted]).all():
                fits.append(inverted)
        if translated:  # 9/16 of the ink, nearly, somewhere
            assert any(0.4 < inverted.sum() / digit.sum() < 0.75 for inverted in fits)
        else:
            assert any((inverted == digit).all() for inverted in fits)


def test_polymnist_takes_up_to_seven():
    data = load("polymnist", modalities=7, rows=5)
    assert list(data.modalities) == [f"m{i}" for i in range(7)]
    fewer = load("polymnist", rows=5)
    assert torch.equal(data.train.batch.data["m4"], fewer.train.batch.data["m4"])
    ids = torch.stack([fewer.train.batch.extra[f"m{i}_id"] for i in range(5)])
    assert all(len(row.unique()) > 1 for row in ids.T)  # only the class is shared
    with pytest.raises(mvkit.SpecError, match="modalities: got 8"):
        as_part("dataset", {"name": "polymnist", "modalities": 8})


def test_spoken_digits_pairs_by_label():
    data = load("spoken_digits")
    single = {"image": load("mnist"), "sound": load("fsdd"), "sign": load("sign_digits")}
    for name in ("train", "valid", "test"):
        split = getattr(data, name)
        for modality, source in single.items():
            rows = getattr(source, name).batch
            place = {int(number): row for row, number in enumerate(rows.extra["id"])}
            index = [place[int(number)] for number in split.batch.extra[f"{modality}_id"]]
            assert torch.equal(rows.extra["label"][index], split.labels)
            assert torch.equal(rows.data[modality][index], split.batch.data[modality])
    fewer = load("spoken_digits", rows=20)
    assert torch.equal(fewer.train.batch.data["sign"], data.train.batch.data["sign"][:20])
    other = load("spoken_digits", seed=1, missing=0.3, missing_test=0.3)
    assert not torch.equal(other.train.batch.extra["sound_id"], data.train.batch.extra["sound_id"])


def test_strata_and_pairs():
    label = np.repeat([0, 1, 2], [40, 20, 100])
    parts = stratified(label, {"train": 0.7, "valid": 0.1, "test": 0.2})
    assert {k: np.bincount(label[i]).tolist() for k, i in parts.items()} == {
        "train": [28, 14, 70],
        "valid": [4, 2, 10],
        "test": [8, 4, 20],
    }
    assert sorted(np.concatenate(list(parts.values()))) == list(range(160))
    for part in stratified(
        np.arange(10_000) % 10, {"train": 0.5, "valid": 0.5}
    ).values():  # shuffled, classes too
        assert abs(np.corrcoef(np.arange(5000), part)[0, 1]) < 0.05
        assert np.bincount(part[:500] % 10).min() > 25
    items = np.array([2, 0, 1, 2, 0, 2])
    chosen = paired(label, items, row_uniforms(0, 160, 1)[:, 0])
    assert (items[chosen] == label).all()
    assert np.bincount(chosen).tolist() == [34, 20, 20, 33, 20, 33]
    assert sorted(paired(label, label, row_uniforms(0, 160, 1)[:, 0])) == list(
        range(160)
    )  # a permutation


def mel(hertz):
    return 2595 * math.log10(1 + hertz / 700)


def centres():
    steps = [mel(60) + (mel(4000) - mel(60)) * k / 33 for k in range(34)]
    return [700 * (10 ** (step / 2595) - 1) for step in steps]


def test_mel_filters_are_triangles_between_neighbouring_centres():
    filters, edges = log_mel.mel_filters().numpy(), centres()
    hertz = np.arange(257) * 8000 / 512
    for k in range(32):
        triangle = np.interp(hertz, edges[k : k + 3], [0, 1, 0], left=0, right=0)
        assert np.allclose(filters[k], triangle, atol=1e-5)
    inside = (hertz >= edges[1]) & (hertz <= edges[-2])
    assert np.allclose(filters[:, inside].sum(0), 1, atol=1e-5)


def test_log_mel_is_scipys_spectrogram_in_bands():
    samples = (
        torch.randn(3, 4960, generator=torch.Generator().manual_seed(0))
        * torch.linspace(0, 1, 4960) ** 4
    )
    _, _, spectrum = scipy.signal.stft(
        samples.double().numpy(), 8000, nperseg=512, noverlap=352, padded=False
    )
    power = np.einsum("kf,bft->bkt", log_mel.mel_filters().double().numpy(), abs(spectrum) ** 2)
    decibels = 10 * np.log10(power / power.max((1, 2), keepdims=True))
    expected = np.clip((decibels + 65) / 65, 0, 1)
    assert (expected == 0).any()
    assert np.allclose(log_mel.log_mel(samples)[:, 0].numpy(), expected, atol=1e-4)
    assert torch.allclose(
        log_mel.log_mel(0.01 * samples), log_mel.log_mel(samples), atol=1e-4
    )  # loudness does not count
    assert (log_mel.log_mel(torch.zeros(1, 4960)) == 0).all()


@pytest.mark.parametrize("band", [3, 12, 20, 30])
def test_a_tone_lands_in_its_band_and_comes_back(band):
    hertz = centres()[band + 1]
    tone = torch.sin(2 * math.pi * hertz * torch.arange(4960) / 8000)[None]
    picture = log_mel.log_mel(tone)
    assert (picture[0, 0, :, 2:-2].argmax(0) == band).all()
    samples, rate = log_mel.to_sound(picture)
    assert samples.shape == (1, 4960)
    assert samples.abs().max().item() == pytest.approx(0.9)
    assert (log_mel.log_mel(samples)[0, 0, :, 2:-2].argmax(0) == band).all()
    loudest = torch.fft.rfft(samples[0]).abs().argmax().item() * rate / 4960
    assert centres()[band] < loudest < centres()[band + 2]
    assert torch.equal(log_mel.to_sound(picture[0])[0], samples[0])
    assert torch.equal(
        log_mel.to_sound(picture.expand(2, 3, 1, 1, 32, 32))[0], samples.expand(2, 3, 1, 4960)
    )


def test_cut_keeps_the_loud_part():
    generator = np.random.default_rng(0)
    length = np.array([1000, 9000, 4960, 12_000])
    clips = [generator.integers(-9, 9, n).astype(np.int16) for n in length]
    clips[1][7000:8000] = 20_000
    clips[3][:300] = 20_000
    out = log_mel.cut(np.concatenate(clips), length) * 2**15
    for clip, found in zip(clips, out.numpy(), strict=True):
        energy = clip.astype(float) ** 2
        start = round((np.arange(len(clip)) * energy).sum() / energy.sum()) - 2480
        start = min(max(start, min(0, len(clip) - 4960)), max(0, len(clip) - 4960))
        expected = [clip[start + i] if 0 <= start + i < len(clip) else 0 for i in range(4960)]
        assert (found == expected).all()


@pytest.mark.parametrize("name", SETS)
def test_without_files_the_error_says_where_they_come_from(name, tmp_path):
    with pytest.raises(
        DataError,
        match=rf"'{name}'\): no path, and nothing is downloaded by itself; .*https://github",
    ):
        mvkit.load_dataset(name)
    with pytest.raises(
        DataError,
        match=rf"'{name}'\): path='.*nowhere' is no folder; the files are .*https://github",
    ):
        mvkit.load_dataset(name, path=tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"(npz|csv|gz): no such file; these files are .*https://github.*path="
    ):
        mvkit.load_dataset(name, path=tmp_path)


def test_broken_files_are_named(tmp_path):
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(b"junk")
    with pytest.raises(DataError, match=r"train-images.*gz: cannot be read \(BadGzipFile"):
        mvkit.load_dataset("mnist", path=tmp_path)
    whole = gzip.compress(bytes(116))
    file.write_bytes(whole[:-9])
    with pytest.raises(DataError, match=r"train-images.*gz: cannot be read \(EOFError"):
        mvkit.load_dataset("mnist", path=tmp_path)
    file.write_bytes(whole)
    with pytest.raises(DataError, match=r"train-images.*gz: cannot be read \(ValueError"):
        mvkit.load_dataset("mnist", path=tmp_path)
    file.write_bytes(gzip.compress(bytes([0, 0, 8, 2, 0, 0, 0, 4, 0, 0, 0, 25]) + bytes(100)))
    with pytest.raises(
        DataError,
        match=r"train-images.*holds values of shape \(4, 25\); expected \(60000, 28, 28\)",
    ):
        mvkit.load_dataset("mnist", path=tmp_path)
    (tmp_path / "mfeat-fou.csv").write_text("0,1\n1,x\n")
    with pytest.raises(DataError, match=r"mfeat-fou.csv: cannot be read \(ValueError"):
        mvkit.load_dataset("mfeat", path=tmp_path)
    np.savez(tmp_path / "fsdd_8khz_int16.npz", other=[1])
    with pytest.raises(DataError, match=r"fsdd_8khz_int16.npz: cannot be read \(KeyError"):
        mvkit.load_dataset("fsdd", path=tmp_path)


def test_a_path_may_be_an_object():
    assert as_part("dataset", {"name": "mnist", "path": Path("x") / "y"}).path == os.path.join(
        "x", "y"
    )
    with pytest.raises(mvkit.SpecError, match="path: got 3; expected None or a path"):
        as_part("dataset", {"name": "mnist", "path": 3})
