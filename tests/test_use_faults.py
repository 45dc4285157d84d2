"""Faults that people met in use: rows picked, seeds, devices, networks of their own."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import mvkit
from mvkit import Batch, Modality, Model, MultimodalDataset, RequestError, ShapeError, SpecError
from mvkit.registry.builtin_parts import mvkit_components

IDS = list("abcdefghi")


def nine():
    return MultimodalDataset.from_arrays({"a": np.arange(9.0)[:, None]}, ids=IDS)


# rows picked the ways people pick rows


@pytest.mark.parametrize(
    "pick",
    [
        [-1],
        [],
        [0, -9, 8],
        np.array([1], dtype="uint8"),
        np.array([2, 3], dtype="uint64"),
        np.arange(9)[::-1],
        torch.tensor([-2, 1]),
        torch.tensor([3], dtype=torch.uint8),
        pd.Series([4, 5]),
        range(2, 6),
        np.array([], dtype=int),
        slice(2, 4),
        slice(None, None, -1),
        slice(-3, None),
        [True, False] * 4 + [True],
        np.arange(9) > 4,
        pd.Series(np.arange(9) > 4),
        torch.arange(9) > 4,
    ],
    ids=str,
)
def test_rows_are_picked_as_numpy_picks_them(pick):
    index = pick.numpy() if isinstance(pick, torch.Tensor) else pick
    index = index if isinstance(index, slice) else np.asarray(index)
    index = index.astype(int) if not isinstance(index, slice) and index.size == 0 else index
    expected = np.arange(9.0)[index].tolist()
    data = nine()
    assert data.take(pick).batch.data["a"][:, 0].tolist() == expected
    assert data[pick].batch.data["a"][:, 0].tolist() == expected
    assert data.batch.take(pick).data["a"][:, 0].tolist() == expected
    assert data.take(pick).ids.tolist() == np.array(IDS)[index].tolist()


@pytest.mark.parametrize("pick", [["b", "a"], np.array(["b", "a"]), pd.Index(["b", "a"])])
def test_rows_are_picked_by_id(pick):
    assert nine().take(pick).batch.data["a"][:, 0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("pick", "error", "message"),
    [
        (np.array([1.0]), RequestError, "got numbers of torch.float64"),
        (torch.tensor([1.0]), RequestError, "got numbers of torch.float32"),
        ([9], RequestError, r"got position 9; expected -9 to 8, of 9 rows"),
        (torch.tensor([12]), RequestError, "got position 12"),
        ([-10], RequestError, "got position -10"),
        (np.ones(8, bool), ShapeError, "got 8 flags for 9 rows"),
        (["b", "zz"], RequestError, "no row has the id 'zz'"),
        ([[1, 2]], ShapeError, r"an index of shape \(1, 2\)"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), RequestError, "datetime64"),
    ],
)
def test_picks_that_mean_no_row_are_refused(pick, error, message):
    with pytest.raises(error, match=message):
        nine().take(pick)
    with pytest.raises(error, match=message):
        nine()[pick]


def test_rows_without_ids_are_not_picked_by_them():
    with pytest.raises(RequestError, match="these rows have no ids"):
        Batch({"a": torch.zeros(3, 1)}).take(["x"])


def test_rows_of_unequal_lengths_say_so_when_they_are_picked():
    batch = Batch({"a": torch.zeros(8, 1), "p": torch.zeros(5, 1)})
    with pytest.raises(ShapeError, match=r"batch.data\['p'\]: 5 rows, but 'a' has 8"):
        batch.take(torch.tensor([6]))


# seeds that come from numpy


@pytest.mark.parametrize(
    "seed", [np.arange(5)[3], np.int32(3), np.uint64(3), torch.tensor(3)], ids=repr
)
def test_seeds_are_whole_numbers_of_any_kind(seed):
    arrays = {"a": np.ones((20, 3)), "b": np.zeros((20, 2))}
    data = MultimodalDataset.from_arrays(arrays, label=[0, 1] * 10)
    shapes = {"a": (3,), "b": (2,)}

    def answers(seed):
        model = Model(shapes, latent_dim=2, seed=seed)
        recipe = mvkit.recipes.mopoe(shapes, latent_dim=2, seed=seed)
        weights = [next(iter(part.state_dict().values())) for part in (model, recipe)]
        split, _ = data.split(0.5, 0.5, seed=seed)
        gaps = data.with_missing(0.3, seed=seed).batch.mask
        report = mvkit.evaluate(model, data, metrics=["likelihood"], seed=seed)
        mvkit.fit_sampler(model, data, "gmm", seed=seed)
        drawn = model.sample(3, sampler="gmm", generator=torch.Generator().manual_seed(0))
        return [*weights, split.batch.data["a"], gaps, drawn["a"]], str(report)

    tensors, report = answers(seed)
    expected, expected_report = answers(3)
    assert report == expected_report
    for value, right in zip(tensors, expected, strict=True):
        assert torch.equal(value, right)


@pytest.mark.parametrize("seed", ["a", 1.5, 2**70, True, [1]])
def test_seeds_that_are_none_are_refused(seed):
    with pytest.raises(RequestError, match="seed=.*expected a whole number"):
        Model({"a": (3,)}, latent_dim=2, seed=seed)


# a device that is not there


@pytest.mark.parametrize("device", ["gpu", "cuda:77", "", "cpu:x", "xla"])
def test_devices_that_are_not_there_are_refused_by_name(device, tmp_path):
    model = Model({"a": (3,)}, latent_dim=2, seed=0)
    mvkit.save(model, tmp_path / "model.safetensors")
    with pytest.raises(RequestError, match=rf"device='{device}'; expected one of 'auto', 'cpu'"):
        mvkit.fit(model, {"a": np.ones((4, 3))}, epochs=1, device=device, progress=False)
    with pytest.raises(RequestError, match=rf"device='{device}'; expected one of"):
        mvkit.load(tmp_path / "model.safetensors", device=device)


# networks of users


class Apart(nn.Module):
    def __init__(self, kind=tuple):
        super().__init__()
        self.mean, self.spread = nn.Linear(3, 2), nn.Linear(3, 2)
        self.kind = kind

    def forward(self, x):
        if self.kind is dict:
            return {"mean": self.mean(x), "spread": self.spread(x)}
        return self.mean(x), self.spread(x)


@pytest.mark.parametrize(
    ("encoder", "shape", "message"),
    [
        (Apart(), (3,), r"encoders.a: emitted a tuple; expected a tensor \(n, 4\)"),
        (Apart(dict), (3,), "encoders.a: emitted a dict"),
        (nn.LSTM(3, 4, batch_first=True), (6, 3), "encoders.a: emitted a tuple"),
        (nn.LazyLinear(4), (3,), "encoders.a: its layer '' is lazy"),
        (nn.Sequential(nn.LazyLinear(4)), (3,), "encoders.a: its layer '0' is lazy"),
        (nn.Linear(3, 5), (3,), r"encoders.a: emitted \(2, 5\) for 2 rows; expected .*\(n, 4\)"),
        (nn.Linear(7, 4), (3,), "encoders.a: RuntimeError"),
        (nn.Embedding(3, 4), (3,), "encoders.a: RuntimeError"),
    ],
)
def test_encoders_that_do_not_fit_are_refused_when_the_model_is_made(encoder, shape, message):
    with pytest.raises(ShapeError, match=message):
        Model({"a": Modality(shape, encoder=encoder)}, latent_dim=2)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (nn.Linear(2, 5), r"decoders.a: emitted \(2, 5\)"),
        (nn.LSTM(2, 3, batch_first=True), "decoders.a: emitted a tuple"),
        (nn.LazyLinear(3), "decoders.a: its layer '' is lazy"),
    ],
)
def test_decoders_that_do_not_fit_are_refused_when_the_model_is_made(decoder, message):
    with pytest.raises(ShapeError, match=message):
        Model({"a": Modality((3,), decoder=decoder)}, latent_dim=2)


def test_trying_a_module_changes_nothing():
    encoder = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 4))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = torch.get_rng_state()
    Model({"a": Modality((3,), encoder=encoder)}, latent_dim=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder.training
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])


def normed(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, outputs))


@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize(("n", "observed"), [(8, 8), (9, 9), (8, 1), (8, 0), (5, 1)])
def test_batch_norm_trains_whatever_a_batch_observes(n, observed, side):
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(n, 3)), generator.normal(size=(n, 2))
    b[observed:] = np.nan
    modalities = {}
    for name, width in (("a", 3), ("b", 2)):
        network = normed(width, 4) if side == "encoder" else normed(2, width)
        modalities[name] = Modality((width,), **{side: network})
    model = Model(modalities, latent_dim=2, seed=0)
    history = mvkit.fit(model, {"a": a, "b": b}, epochs=2, batch_size=4, progress=False)
    assert np.isfinite(history["loss"]).all()
    if side == "encoder" and observed == 0:
        norm = model.encoders["b"][1]
        assert norm.running_mean.abs().sum() == 0  # no filler reached it
        assert norm.num_batches_tracked == 0


# trained scales start at the data's


@pytest.mark.parametrize("likelihood", ["normal", "laplace", "student_t"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_trained_scales_start_at_the_spread_of_what_is_observed(likelihood, size):
    generator = np.random.default_rng(0)
    x = size * generator.normal(5.0, 1.0, size=(200, 3))
    x[::4] = np.nan
    x[1, 0] = np.nan
    modality = Modality((3,), {"name": likelihood, "scale": "trained"})
    model = Model({"a": modality, "b": (2,)}, latent_dim=2, seed=0)
    data = {"a": x, "b": np.zeros((200, 2))}
    mvkit.fit(model, data, epochs=1, lr=0.0, progress=False)
    spread = np.sqrt(np.nanmean((x - np.nanmean(x, 0)) ** 2))
    scale = model.decoders["a"].likelihood.scale().item()
    assert scale == pytest.approx(spread, rel=1e-5)


def test_what_training_has_moved_stays_when_it_goes_on():
    modality = Modality((3,), {"name": "normal", "scale": "trained"})
    model = Model({"a": modality}, latent_dim=2, seed=0)
    first = {"a": np.random.default_rng(0).normal(size=(50, 3))}
    mvkit.fit(model, first, epochs=1, progress=False)
    scale = model.decoders["a"].likelihood.scale().item()
    mvkit.fit(model, {"a": 100 * first["a"]}, epochs=1, lr=0.0, progress=False)
    assert model.decoders["a"].likelihood.scale().item() == scale


def test_streams_keep_their_first_rows():
    modality = Modality((3,), {"name": "normal", "scale": "trained"})
    model = Model({"a": modality}, latent_dim=2, seed=0)
    batches = [{"a": torch.randn(8, 3)} for _ in range(3)]
    history = mvkit.fit(model, iter(batches), epochs=1, progress=False)
    assert np.isfinite(history["loss"]).all()


# combinations that cannot train are refused when the model is made


@pytest.mark.parametrize(
    "objective",
    ["levels", {"name": "sum", "terms": ["elbo", "levels"]}, {"name": "levels", "kl_weight": 0.5}],
    ids=str,
)
def test_the_objective_of_a_stack_is_refused_by_a_model(objective):
    with pytest.raises(SpecError, match="'levels' is that of a Stack.*take 'elbo'"):
        Model({"a": (3,)}, latent_dim=2, objective=objective)
    model = Model({"a": (3,)}, latent_dim=2, seed=0)
    with pytest.raises(SpecError, match="'levels' is that of a Stack"):
        model.loss({"a": torch.zeros(2, 3)}, objective=objective)


def built_in(kind):
    return [part.name for part in mvkit_components() if part.kind == kind]


@pytest.mark.parametrize("aggregator", built_in("aggregator"))
@pytest.mark.parametrize("objective", built_in("objective"))
@pytest.mark.filterwarnings("ignore:objective .* trains the unimodal encoders")
def test_every_combination_of_names_trains_or_is_refused(aggregator, objective):
    linear = {"encoder": {"name": "linear"}, "decoder": {"name": "linear"}}
    modalities = {name: Modality((2,), **linear) for name in "abc"}
    x = {name: torch.randn(3, 2) for name in "abc"}
    x["a"][0] = torch.nan
    options = {"aggregator": aggregator, "objective": objective, "latent_dim": 4, "seed": 0}
    for prior in built_in("prior"):
        for family in built_in("family"):
            try:
                model = Model(modalities, prior=prior, family=family, **options)
            except SpecError:
                continue
            loss = model.loss(x).loss
            loss.backward()
            assert torch.isfinite(loss.detach())


# a model in half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_answers_of_half_precision_are_arrays_and_tables(dtype):
    arrays = {"a": np.zeros((4, 3), "float32"), "b": np.full((4, 2), np.nan, "float32")}
    frames = {name: pd.DataFrame(x).add_prefix(name) for name, x in arrays.items()}
    model = Model({"a": (3,), "b": (2,)}, latent_dim=2, seed=0).to(dtype)
    assert mvkit.embed(model, arrays).dtype == np.float32
    assert np.isfinite(mvkit.embed(model, frames).to_numpy()).all()
    drawn = mvkit.impute(model, arrays, quantiles=(0.1, 0.9), draws=True, n=5)
    for filled in (drawn.filled, drawn.sd, *drawn.quantiles.values(), *drawn.draws):
        assert filled["b"].dtype == np.float32
        assert np.isfinite(filled["b"]).all()
    assert np.isfinite(mvkit.impute(model, frames)["b"].to_numpy()).all()
