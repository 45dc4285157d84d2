"""Data larger than memory: read ahead, transforms fitted in passes, answers written block by block."""

import threading

import attrs
import numpy as np
import pytest
import torch

import mvkit
from mvkit import Batch, DataError, Modality, MultimodalDataset, Pipeline, plugins
from mvkit.core.batch import conform
from mvkit.data.one_pass import fit_in_passes
from mvkit.data.read_ahead import Plan, ReadAhead
from mvkit.data.shards import Shards, save_shards
from mvkit.parts import Transform

SHAPES = {"a": (3,), "b": (2, 2), "c": (4,)}


def rows(b=230, *, gaps=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    data = {name: torch.rand(b, *shape, generator=generator) for name, shape in SHAPES.items()}
    mask = torch.rand(b, 3, generator=generator) > 0.3
    mask[:, 0] |= ~mask.any(1)
    data["b"][~mask[:, 1]] = torch.nan
    if gaps:
        data["c"][:, 1] = torch.where(data["c"][:, 1] > 0.9, torch.nan, data["c"][:, 1])
    return Batch(data, mask, extra={"label": torch.arange(b), "id": [f"r{i}" for i in range(b)]})


def modalities():
    return {name: Modality(shape) for name, shape in SHAPES.items()}


@pytest.fixture
def folder(tmp_path):
    save_shards(rows(), tmp_path / "rows", modalities(), rows_per_shard=20)
    return tmp_path / "rows"


def same(one, other):
    assert torch.equal(one.mask, other.mask)
    for name in SHAPES:
        assert one.data[name].dtype == other.data[name].dtype
        assert torch.equal(one.data[name].nan_to_num(99), other.data[name].nan_to_num(99))
    assert set(one.elements or {}) == set(other.elements or {})
    for name, present in (one.elements or {}).items():
        assert torch.equal(present, other.elements[name])
    assert one.extra["label"].tolist() == other.extra["label"].tolist()


class Mapped:
    """Shards that are not read ahead."""

    def __init__(self, shards):
        self.shards = shards

    def __len__(self):
        return len(self.shards)

    def __getitems__(self, indices):
        return self.shards.__getitems__(indices)

    def epoch_order(self, *, seed, epoch):
        return self.shards.epoch_order(seed=seed, epoch=epoch)


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("schema", [None, "model"])
def test_batches_that_are_read_ahead_are_those_that_are_not(folder, workers, shuffle, schema):
    schema = mvkit.Model(SHAPES).schema if schema else None
    options = {"batch_size": 13, "seed": 3, "shuffle": shuffle, "schema": schema}
    ahead = list(Pipeline(Shards(folder), workers=workers, **options))
    mapped = list(Pipeline(Mapped(Shards(folder)), **options))
    assert len(ahead) == len(mapped) == 18
    for one, other in zip(ahead, mapped, strict=True):
        same(one, other)


def test_a_pass_reads_each_shard_once_and_ahead(folder, monkeypatch):
    shards = Shards(folder, window=2)
    read = []
    file = shards._file
    monkeypatch.setattr(shards, "_file", lambda i: read.append(i) or file(i))
    monkeypatch.setattr(shards, "_map", None)  # nothing is mapped
    passes = iter(Pipeline(shards, batch_size=10, seed=0))
    next(passes)
    list(passes)
    assert sorted(read) == list(range(12))


@pytest.mark.parametrize("batch", [0, 1, 9, 17, 18])
def test_a_pass_resumes_exactly_in_the_middle(folder, batch):
    options = {"batch_size": 13, "seed": 3, "schema": mvkit.Model(SHAPES).schema}
    whole = Pipeline(Shards(folder), **options)
    whole.set_epoch(2)
    every = list(whole)
    later = Pipeline(Shards(folder), workers=2, **options)
    later.load_state_dict({"epoch": 2, "batch": batch})
    rest = list(later)
    assert len(rest) == 18 - batch
    for one, other in zip(rest, every[batch:], strict=True):
        same(one, other)


def test_shares_of_ranks_are_read_ahead(folder):
    whole = list(Pipeline(Shards(folder), batch_size=13, seed=1))
    shares = [
        list(Pipeline(Shards(folder), batch_size=13, seed=1, rank=r, ranks=15)) for r in range(15)
    ]
    for i, batch in enumerate(whole):
        labels = torch.cat([share[i].extra["label"] for share in shares])
        assert torch.equal(labels, batch.extra["label"])


def test_held_out_rows_are_read_ahead(folder):
    from mvkit.data.holdout import hold_out

    train, valid = hold_out(Pipeline(Shards(folder), batch_size=13), 0.2, 0)
    labels = [torch.cat([x.extra["label"] for x in part]) for part in (train, valid)]
    assert sorted(torch.cat(labels).tolist()) == list(range(230))
    mapped = Mapped(Shards(folder))
    for x in train:
        same(x, mapped.__getitems__(x.extra["label"].tolist()))


def test_too_little_memory_or_random_order_maps_the_shards(folder):
    for options in ({"memory": 0}, {"window": None}):
        shards = Shards(folder, **options)
        with shards.read_ahead([torch.arange(230)]) as source:
            assert (source is shards) == ("memory" in options)
    scattered = [torch.randperm(230)[:5] for _ in range(40)]
    shards = Shards(folder, window=None, memory=2 * 20 * 60)
    with shards.read_ahead(scattered) as source:
        assert source is shards


def test_a_pass_that_is_left_ends_its_thread(folder):
    before = threading.active_count()
    # two shards of twelve fit, so that the thread waits for room until the pass is over
    passes = iter(Pipeline(Shards(folder, window=1, memory=2 * 20 * 60), batch_size=10))
    next(passes)
    assert threading.active_count() == before + 1
    passes.close()
    assert threading.active_count() == before


def test_a_shard_that_is_cut_during_a_pass_is_said_where_it_is_needed(folder):
    passes = iter(
        Pipeline(Shards(folder, window=1, memory=2 * 20 * 60), batch_size=20, shuffle=False)
    )
    next(passes)
    last = folder / "shard-00011.safetensors"
    last.write_bytes(last.read_bytes()[:-40])
    with pytest.raises(DataError, match="shard-00011.*bytes of"):
        list(passes)


def test_chunks_are_held_from_their_first_batch_to_their_last():
    plan = Plan.of([2, 3, 1], [torch.tensor([5, 0]), torch.tensor([1, 0]), torch.tensor([3])])
    assert plan.turns.tolist() == [0, 2, 1]
    assert plan.uses.tolist() == [2, 1, 1]
    assert plan.peak == 2
    with pytest.raises(ValueError, match="expected 2"):
        ReadAhead(plan, 1, lambda chunk, slot: None)


def test_what_goes_wrong_in_reading_is_raised_where_it_is_needed():
    plan = Plan.of([1, 1], [torch.tensor([0]), torch.tensor([1])])

    def load(chunk, slot):
        if chunk == 1:
            raise DataError("nothing there; expected rows; look")

    ahead = ReadAhead(plan, 2, load)
    assert ahead.slots_of(np.array([0])).tolist() in ([0], [1])
    with pytest.raises(DataError, match="nothing there"):
        ahead.slots_of(np.array([1]))
    ahead.close()
    with pytest.raises(DataError):
        ahead.slots_of(np.array([1]))


# values are looked at once, when they are saved


@pytest.mark.parametrize("transforms", [{}, {"a": "standardise", "c": ["log1p", "standardise"]}])
def test_rows_that_were_checked_are_conformed_as_others(folder, transforms, monkeypatch):
    shards = Shards(folder)
    if transforms:
        shards = shards.fit_transforms(transforms)
    schema = mvkit.Model(shards.modalities).schema
    assert shards.checked.covers(schema)
    expected = conform(shards.__getitems__(list(range(230))), schema, compact=True)
    shards.conform(shards.__getitems__([0]), schema)  # the first rows are looked at
    monkeypatch.setattr("mvkit.data.shards.conform", None)
    conformed = shards.conform(shards.__getitems__(list(range(230))), schema)
    same(conformed, expected)
    assert conformed.schema is schema
    assert conformed.elements.keys() == {"c"}
    for x, y in zip(conformed.observed_rows, expected.observed_rows, strict=True):
        assert torch.equal(x, y)


def test_another_model_looks_again(folder):
    shards = Shards(folder)
    other = {**modalities(), "a": Modality((3,), "poisson")}
    assert not shards.checked.covers(mvkit.Model(other).schema)
    assert not shards.checked.covers(mvkit.Model(SHAPES).double().schema)
    with pytest.raises(DataError, match="cannot be taken"):
        list(Pipeline(shards, schema=mvkit.Model(other).schema))


def test_values_that_no_model_takes_are_saved_and_refused_later(tmp_path):
    batch = rows()
    batch.data["a"][7, 0] = torch.inf
    batch.mask[7, 0] = True
    save_shards(batch, tmp_path / "rows", modalities(), rows_per_shard=20)
    shards = Shards(tmp_path / "rows")
    assert shards.checked is None
    with pytest.raises(DataError, match="row 7"):
        list(Pipeline(shards, schema=mvkit.Model(SHAPES).schema, shuffle=False))


# transforms


def fitted_both(batch, kinds, transforms, folder):
    save_shards(batch, folder, kinds, rows_per_shard=20)
    whole = MultimodalDataset(batch, kinds).fit_transforms(transforms).modalities
    return whole, Shards(folder).fit_transforms(transforms).modalities


def close(one, other):
    assert one.shape == other.shape
    assert one.likelihood == other.likelihood
    for x, y in zip(one.transform, other.transform, strict=True):
        assert type(x) is type(y)
        for field in attrs.fields(type(x)):
            a, b = (np.asarray(getattr(step, field.name)) for step in (x, y))
            if a.dtype.kind == "f":
                assert np.allclose(a, b, rtol=1e-12, atol=1e-12)
            else:
                assert (a == b).all()


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_blocks_are_those_of_all_rows(tmp_path, offset):
    batch = rows()
    batch.data["a"] = batch.data["a"].double() + offset
    steps = {
        "a": "standardise",
        "b": {"name": "standardise", "over": "all"},
        "c": ["log1p", "standardise"],
    }
    whole, parts = fitted_both(batch, modalities(), steps, tmp_path / "rows")
    for name in SHAPES:
        close(whole[name], parts[name])


def test_categories_bits_and_chains_are_those_of_all_rows(tmp_path):
    batch = rows(gaps=False)
    batch.data["a"] = (batch.data["a"] * 4).round()
    steps = {"a": "one_hot", "b": "binarise", "c": ["standardise", "binarise"]}
    whole, parts = fitted_both(batch, modalities(), steps, tmp_path / "rows")
    for name in SHAPES:
        close(whole[name], parts[name])
    steps = {"c": ["standardise", {"name": "standardise", "over": "all"}]}
    parts = fit_in_passes(
        [batch.take(slice(0, 100)), batch.take(slice(100, 230))], modalities(), steps
    )
    close(MultimodalDataset(batch, modalities()).fit_transforms(steps).modalities["c"], parts["c"])


@pytest.mark.parametrize("steps", ["log1p", ["log1p", "standardise"], "standardise"])
def test_likelihoods_follow_the_values_of_all_rows(tmp_path, steps):
    batch = rows(gaps=False)
    batch.data["a"] = (batch.data["a"] * 4).round()
    kinds = {**modalities(), "a": Modality((3,), "poisson")}
    whole, parts = fitted_both(batch, kinds, {"a": steps}, tmp_path / "rows")
    close(whole["a"], parts["a"])


def test_constant_features_warn_once_and_keep_their_scale(tmp_path):
    batch = rows()
    batch.data["a"][:, 1] = 0.1
    save_shards(batch, tmp_path / "rows", modalities(), rows_per_shard=20)
    with pytest.warns(UserWarning, match="1 features are constant"):
        fitted = Shards(tmp_path / "rows").fit_transforms({"a": "standardise"}).modalities
    assert fitted["a"].transform[0].scale[1] == 1


def test_faults_name_the_row_of_all_rows(tmp_path):
    batch = rows()
    batch.data["a"][2, 1] = -3.0
    batch.mask[2, 0] = True
    parts = [rows(seed=1), batch]
    with pytest.raises(
        DataError, match=r"data\['a'\]: row 232, element \(1,\): -3.0 cannot be taken"
    ):
        fit_in_passes(parts, modalities(), {"a": "log1p"})
    batch.mask[:, 1] = False
    with pytest.raises(DataError, match="nothing is observed"):
        fit_in_passes([batch], modalities(), {"b": "standardise"})
    with pytest.raises(DataError, match="no rows"):
        fit_in_passes([], modalities(), {"b": "standardise"})
    with pytest.raises(DataError, match="no modality 'z'"):
        fit_in_passes([batch], modalities(), {"z": "standardise"})


def test_an_iterator_does_for_one_pass_and_no_more():
    steps = {"a": ["log1p", "standardise"], "c": "standardise"}
    parts = [rows(), rows(seed=1)]
    once = fit_in_passes(iter(parts), modalities(), steps)
    assert once == fit_in_passes(parts, modalities(), steps)
    with pytest.raises(DataError, match="come but once"):
        fit_in_passes(iter(parts), modalities(), {"a": ["standardise", "standardise"]})


def test_a_transform_that_learns_from_all_rows_together_is_refused():
    from mvkit.registry.spec import spec

    @spec
    class Ranked(Transform):
        def fit(self, x, names, where):
            return self

        def forward(self, x):
            return x

        def inverse(self, x):
            return x

    plugins.declare("transform", "ranked", Ranked)
    with pytest.raises(
        DataError, match="learns from all rows together; expected a transform with"
    ):
        fit_in_passes([rows()], modalities(), {"a": Ranked()})


@pytest.mark.parametrize("length", [-1, 10**20, 6.0, 10**12])
def test_rows_that_say_a_number_that_cannot_be_are_refused_before_a_pass(length):
    class Claims:
        def __len__(self):
            return length

        def __getitems__(self, indices):
            raise AssertionError("nothing is gathered")

    text = "the length of the data cannot be taken|the data say that they have"
    with pytest.raises(DataError, match=f"fit_transforms: ({text})"):
        fit_in_passes(Claims(), modalities(), {"a": "standardise"})
    with pytest.raises(DataError, match=f"Claims: ({text})"):
        mvkit.Model({"a": (2,)}, latent_dim=2).encode(Claims())


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn])
def test_numbers_that_torch_cannot_pick_are_read_ahead(dtype, tmp_path):
    x = torch.arange(30).reshape(10, 3).to(dtype)
    save_shards(Batch({"a": x}), tmp_path / "rows", {"a": (3,)}, rows_per_shard=4)
    shards = Shards(tmp_path / "rows")
    index = torch.randperm(10)
    with shards.read_ahead([index]) as source:
        assert source is not shards
        batch = source.__getitems__(index.tolist())
    assert batch.data["a"].dtype == dtype
    assert torch.equal(batch.data["a"].double(), x.double()[index])


def test_columns_of_a_mask_are_saved_in_the_order_of_the_modalities(tmp_path):
    shapes = {"a": (1,), "b": (1,)}
    mask = torch.tensor([[True, False], [True, True]])
    batch = Batch({name: torch.ones(2, 1) for name in shapes}, mask, order=("b", "a"))
    save_shards(batch, tmp_path / "rows", shapes)
    assert torch.equal(Shards(tmp_path / "rows").mask, mask.flip(1))


def test_a_mask_of_numbers_is_refused_when_it_is_saved(tmp_path):
    batch = Batch({"a": torch.ones(2, 1)}, torch.ones(2, 1))
    with pytest.raises(mvkit.ShapeError, match="batch.mask: dtype torch.float32; expected"):
        save_shards(batch, tmp_path / "rows", {"a": (1,)})
    assert not (tmp_path / "rows").exists()
