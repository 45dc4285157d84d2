"""The pipeline: the same batches whatever the workers and ranks, exact resume, rows from
anywhere.
"""

import itertools
import math

import attrs
import numpy as np
import pytest
import torch
from helpers import model, rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

import mvkit
from mvkit import Batch, DataError, Modality, Pipeline, RequestError, ShapeError
from mvkit.data.batch_order import order
from mvkit.data.pipeline import as_pipeline
from mvkit.data.sources import Items, Loaded, Source, Stream
from mvkit.testing import bound_noise

NAMES = ("a", "b", "c")
few = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def numbered(b=11):
    made = rows(b)
    extra = {
        "id": torch.arange(b),
        "label": torch.arange(b) % 3,
        "word": [f"w{i}" for i in range(b)],
    }
    return attrs.evolve(made, extra=extra)


class Gathered:
    """Rows by index."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch)

    def __getitems__(self, indices):
        return self.batch.take(torch.tensor(indices))


def item(batch, i):
    """A row as users' datasets give it: lacking keys, or None."""
    found = {n: batch.data[n][i] if batch.mask[i, j] else None for j, n in enumerate(NAMES)}
    if i % 2:
        found = {n: x.numpy() for n, x in found.items() if x is not None}
    return found | {key: value[i] for key, value in batch.extra.items()}


class Dicts(Dataset):
    """Rows one by one."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return len(self.batch)

    def __getitem__(self, i):
        return item(self.batch, i)


class Flow(IterableDataset):
    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        return (item(self.batch, i) for i in range(len(self.batch)))


def kinds(batch):
    return {
        "memory": batch,
        "source": Gathered(batch),
        "dataset": Dicts(batch),
        "subset": Subset(Dicts(batch), range(len(batch))),
        "list": [item(batch, i) for i in range(len(batch))],
        "stream": Flow(batch),
    }


KINDS = tuple(kinds(numbered(1)))
SCHEMA = model().schema


def same(one, other):
    assert len(one) == len(other)
    for x, y in zip(one, other, strict=True):
        assert x.extra["id"].tolist() == y.extra["id"].tolist()
        assert x.extra["word"] == y.extra["word"]
        assert torch.equal(x.observed, y.observed)
        assert all(torch.equal(x.data[n], y.data[n]) for n in NAMES)
        for a, b in zip(
            (*x.observed_rows, x.complete_rows), (*y.observed_rows, y.complete_rows), strict=True
        ):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)
        assert x.first_empty_row == y.first_empty_row


@pytest.mark.parametrize("kind", KINDS)
def test_rows_from_anywhere_give_the_same_batches(kind):
    batch = numbered()
    options = {"batch_size": 4, "seed": 3, "shuffle": kind != "stream", "schema": SCHEMA}
    expected = mvkit.core.batch.conform(batch, SCHEMA)
    index = order(11, shuffle=kind != "stream", seed=3, epoch=0).split(4)
    same(list(Pipeline(kinds(batch)[kind], **options)), [expected.take(i) for i in index])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_resume_is_exact_at_every_batch_on_any_ranks_and_workers(kind, workers):
    batch = numbered()
    options = {"batch_size": 4, "seed": 1, "schema": SCHEMA}
    pipeline = Pipeline(kinds(batch)[kind], **options)
    pipeline.set_epoch(2)
    expected = list(pipeline)
    assert pipeline.state_dict() == {"epoch": 2, "batch": 3}
    for k in range(4):
        first = Pipeline(kinds(batch)[kind], workers=workers, **options)
        first.set_epoch(2)
        same(list(itertools.islice(first, k)), expected[:k])
        state = first.state_dict()
        assert state == {"epoch": 2, "batch": k}
        shares = []
        for rank in range(3):
            other = 2 - workers if rank == 0 else 0
            second = Pipeline(kinds(batch)[kind], workers=other, rank=rank, ranks=3, **options)
            second.load_state_dict(state)
            assert second.state_dict() == state
            second.set_epoch(2)  # the epoch that it is in already
            shares.append(list(second))
        joined = [
            [i for share in batches for i in share.extra["id"].tolist()]
            for batches in zip(*shares, strict=True)
        ]
        assert joined == [x.extra["id"].tolist() for x in expected[k:]]


@few
@given(
    st.integers(1, 30),
    st.integers(1, 40),
    st.integers(1, 7),
    st.sampled_from(["memory", "source", "stream"]),
)
def test_ranks_share_every_batch_once(b, size, ranks, kind):
    batch = numbered(b)
    whole = [x.extra["id"] for x in Pipeline(kinds(batch)[kind], batch_size=size, schema=SCHEMA)]
    parts = [
        list(Pipeline(kinds(batch)[kind], batch_size=size, schema=SCHEMA, rank=r, ranks=ranks))
        for r in range(ranks)
    ]
    assert {len(part) for part in parts} == {math.ceil(b / size)}
    for k, ids in enumerate(whole):
        shares = torch.tensor_split(ids, ranks)
        for part, share in zip(parts, shares, strict=True):
            assert torch.as_tensor(part[k].extra["id"]).tolist() == share.tolist()
            assert len(part[k]) == len(share)
            assert part[k].observed.shape == (len(share), 3)
    assert sorted(torch.cat(whole).tolist()) == list(range(b))


def test_the_next_pass_starts_at_the_beginning_again():
    pipeline = Pipeline(numbered(), batch_size=4)
    pipeline.load_state_dict({"epoch": 1, "batch": 2})
    assert [len(list(pipeline)), len(list(pipeline))] == [1, 3]
    pipeline.load_state_dict({"epoch": 1, "batch": 3})
    assert list(pipeline) == []
    pipeline.set_epoch(2)
    assert pipeline.state_dict() == {"epoch": 2, "batch": 0}
    assert len(list(pipeline)) == 3


@few
@given(st.data())
def test_bounds_of_rows_do_not_depend_on_mask_order_or_batches(data):
    made = model("mopoe", "mog", "dreg", private=1)
    b = data.draw(st.integers(1, 9))
    pattern = st.lists(st.booleans(), min_size=3, max_size=3).filter(any)
    mask = torch.tensor(data.draw(st.lists(pattern, min_size=b, max_size=b)))
    batch = attrs.evolve(rows(b), mask=mask, extra={"id": torch.arange(b)})

    def bounds(batch):
        ids = batch.extra["id"].tolist()
        with torch.no_grad(), mvkit.testing.noise(bound_noise(ids, made.names)):
            return dict(zip(ids, made.loss(batch).bound.tolist(), strict=True))

    expected = bounds(batch)
    size, seed = data.draw(st.integers(1, b)), data.draw(st.integers(0, 99))
    kind = data.draw(st.sampled_from(["memory", "source", "dataset"]))
    found = {}
    for part in Pipeline(kinds(batch)[kind], batch_size=size, seed=seed, schema=made.schema):
        found |= bounds(part)
    assert found == pytest.approx(expected, rel=1e-9)


def test_one_row_last_and_more_rows_a_batch_than_data():
    assert [len(x) for x in Pipeline(numbered(5), batch_size=4)] == [4, 1]
    assert [len(x) for x in Pipeline(Dicts(numbered(5)), batch_size=64, schema=SCHEMA)] == [5]
    assert len(Pipeline(numbered(5), batch_size=64)) == 1


@pytest.mark.parametrize("empty", [Batch({}), [], Gathered(numbered(3).take(slice(0, 0)))])
def test_no_rows(empty):
    with pytest.raises(DataError, match="no rows; expected one at least"):
        Pipeline(empty, schema=None if isinstance(empty, Batch) else SCHEMA)


class Broken(Dicts):
    def __getitem__(self, i):
        if i == 7:
            raise FileNotFoundError(2, "lost", f"{i}.png")
        return super().__getitem__(i)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_an_item_arrives_as_it_was_with_its_row(workers):
    with pytest.raises(FileNotFoundError, match=r"7\.png") as caught:
        list(Pipeline(Broken(numbered()), batch_size=4, schema=SCHEMA, workers=workers))
    assert caught.value.errno == 2
    assert "at row 7 of the data" in caught.value.__notes__


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_stream_arrives_as_it_was(workers):
    def stream():
        yield item(numbered(), 0)
        raise OSError(5, "torn")

    with pytest.raises(OSError, match="torn") as caught:
        list(Pipeline(Stream(stream(), NAMES), batch_size=4, workers=workers))
    assert caught.value.errno == 5


def test_rows_of_the_data_are_named_when_a_batch_does_not_fit():
    bad = numbered(6)
    bad.data["b"][4] = 7.0
    bad.mask[4, 1] = True
    with pytest.raises(
        DataError, match=r"batch.data\['b'\]: row 1 \(id 4\), element .* 7.0 cannot be taken"
    ) as caught:
        list(Pipeline(Gathered(bad), batch_size=3, shuffle=False, schema=SCHEMA))
    assert "[3, 4, 5]" in caught.value.__notes__[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_item_that_is_used_again_leaves_earlier_batches_alone(workers):
    buffer = {"a": np.zeros(3), "tag": [0]}

    def stream():
        for i in range(6):
            buffer["a"][:] = i
            buffer["tag"][0] = i
            yield buffer

    class Buffered(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            buffer["a"][:] = i
            return buffer

    found = list(Pipeline(Stream(stream(), ("a",)), batch_size=2, workers=workers))
    assert torch.cat([x.data["a"][:, 0] for x in found]).tolist() == [0, 1, 2, 3, 4, 5]
    assert [x.extra["tag"] for x in found] == [[[0], [1]], [[2], [3]], [[4], [5]]]
    found = list(Pipeline(Items(Buffered(), ("a",)), batch_size=2, shuffle=False))
    assert torch.cat([x.data["a"][:, 0] for x in found]).tolist() == [0, 1, 2, 3, 4, 5]
    whole = Batch({"a": torch.zeros(2, 3)})

    def batches():
        for i in range(2):
            whole.data["a"][:] = i
            yield whole

    assert [x.data["a"][0, 0].item() for x in list(Pipeline(Loaded(batches())))] == [0, 1]


def test_items_say_what_they_lack():
    found = Items(
        [
            {"a": [1.0, 2.0], "label": 3},
            {"b": None, "a": [math.nan, 5.0]},
            {"a": [math.nan] * 2, "b": 4, "label": 1},
        ],
        ("a", "b"),
    ).__getitems__([0, 1, 2])
    assert found.mask.tolist() == [[True, False], [True, False], [False, True]]
    assert found.data["b"].tolist() == [0, 0, 4]
    assert found.extra["label"] == [3, None, 1]
    schema = mvkit.Model({"a": (2,), "b": Modality((5,), "categorical")}).schema
    made = mvkit.core.batch.conform(found, schema)
    assert made.elements["a"].tolist() == [[True, True], [False, True], [True, True]]
    assert made.data["b"][2].tolist() == [0, 0, 0, 0, 1]


def test_batches_with_one_pattern_each():
    batch = numbered(40)
    pipeline = Pipeline(batch, batch_size=4, group="pattern", seed=2, schema=SCHEMA)
    found = list(pipeline)
    assert all(len(x.observed.unique(dim=0)) == 1 for x in found)
    assert sorted(i for x in found for i in x.extra["id"].tolist()) == list(range(40))
    assert len(pipeline) == len(found)
    pipeline.set_epoch(1)
    assert [x.extra["id"].tolist() for x in pipeline] != [x.extra["id"].tolist() for x in found]
    bare = Batch({"a": torch.tensor([[1.0], [math.nan], [2.0]])}, extra={"id": torch.arange(3)})
    assert {tuple(sorted(x.extra["id"].tolist())) for x in Pipeline(bare, group="pattern")} == {
        (0, 2),
        (1,),
    }


@pytest.mark.parametrize("strings", [False, True])
def test_balanced_batches(strings):
    label = torch.tensor([0] * 50 + [1] * 8 + [2] * 3)
    extra = {
        "kind": [f"k{i}" for i in label.tolist()] if strings else label,
        "id": torch.arange(61),
    }
    pipeline = Pipeline(
        Batch({"a": torch.rand(61, 2)}, extra=extra), batch_size=9, group="balanced", label="kind"
    )
    found = list(pipeline)
    assert len(found) == len(pipeline) == 7
    for x in found:
        kind = label[x.extra["id"]]
        counts = torch.bincount(kind, minlength=3)
        assert counts.max() - counts.min() <= 1
    seen = torch.cat([x.extra["id"] for x in found]).bincount(minlength=61)
    assert seen[58:].min() >= 6  # 20 or 21 draws of three rows, each in turn
    assert seen[:50].max() == 1


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"batch_size": 0}, "batch_size=0; expected a whole number of at least 1"),
        ({"workers": -1}, "workers=-1; expected a whole number of at least 0"),
        ({"rank": 2, "ranks": 2}, "rank=2; expected one of 0 to 1"),
        ({"group": "random"}, "group='random'; expected None or 'pattern' or 'balanced'"),
    ],
)
def test_options_that_cannot_be(options, parts):
    with pytest.raises(RequestError) as caught:
        Pipeline(numbered(), **options)
    assert parts in str(caught.value)


def test_the_old_name_of_schema_still_works():
    with pytest.warns(DeprecationWarning, match="Pipeline: layout= is now schema="):
        pipeline = Pipeline(numbered(5), batch_size=2, layout=SCHEMA)
    assert pipeline.schema is SCHEMA
    same(list(pipeline), list(Pipeline(numbered(5), batch_size=2, schema=SCHEMA)))


def test_requests_that_cannot_be_met():
    with pytest.raises(
        RequestError, match="needs masks and labels beforehand; a Gathered has none"
    ):
        list(Pipeline(Gathered(numbered()), group="pattern"))
    with pytest.raises(RequestError, match=r"no labels extra\['labels'\]; did you mean 'label'"):
        list(Pipeline(numbered(), group="balanced", label="labels"))
    with pytest.raises(RequestError, match="expected the keys epoch and batch"):
        Pipeline(numbered()).load_state_dict({"epoch": 3})
    with pytest.raises(RequestError, match="state at batch 9 of 1; expected the data, batch size"):
        Pipeline(numbered()).load_state_dict({"epoch": 0, "batch": 9})
    with pytest.raises(TypeError, match="number of batches of a stream"):
        len(Pipeline(Stream([], NAMES)))
    with pytest.raises(
        DataError,
        match=r"which keys are modalities\? Give schema=model.schema, or Items.*mvkit.data.sources",
    ):
        Pipeline(Dicts(numbered()))
    with pytest.raises(ShapeError, match="unknown modality 'd'; known: 'a', 'b', 'c'"):
        Pipeline(Items([{}], ("a", "d")), schema=SCHEMA)
    with pytest.raises(ShapeError, match="an item is a tuple; expected a dict"):
        list(Pipeline([(1, 2)], schema=SCHEMA))
    with pytest.raises(
        ShapeError,
        match=r"'a': row 1 of the batch has shape \(4,\), row 0 \(3,\); expected one shape",
    ):
        list(
            Pipeline([{"a": torch.zeros(3)}, {"a": torch.zeros(4)}], shuffle=False, schema=SCHEMA)
        )
    with pytest.raises(DataError, match="got int; expected a Batch"):
        Pipeline(3)

    class Odd(Gathered):
        def __getitems__(self, indices):
            return tuple(indices)

    with pytest.raises(ShapeError, match=r"Odd.__getitems__ returned a tuple; expected a Batch"):
        list(Pipeline(Odd(numbered()), schema=SCHEMA))


def test_transforms_come_before_conforming():
    batch = numbered(5)

    def doubled(batch):
        return attrs.evolve(
            batch, data={name: 2 * x if name == "a" else x for name, x in batch.data.items()}
        )

    for kind in ("memory", "dataset", "stream"):
        found = Pipeline(
            kinds(batch)[kind],
            batch_size=2,
            shuffle=False,
            schema=SCHEMA,
            transform=doubled,
            workers=2,
        )
        x = torch.cat([part.data["a"] for part in found])
        assert torch.equal(x, torch.where(batch.mask[:, :1], 2 * batch.data["a"], 0.0))


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind != "list"]
)  # a list is one of batches
def test_fit_takes_them_all(kind):
    batch = numbered()
    runs = [
        mvkit.fit(made := model(), data, epochs=2, batch_size=4, seed=1)
        for data in (kinds(batch)[kind], batch)
    ]
    assert len(runs[0]) == 2
    assert not made.training
    if kind != "stream":
        assert runs[0].rows == runs[1].rows


def test_loaders_of_others():
    batch = numbered()
    loader = DataLoader(
        range(11), batch_size=4, collate_fn=lambda index: batch.take(torch.tensor(index))
    )
    pipeline = as_pipeline(loader, SCHEMA)
    assert len(pipeline) == 3
    same(list(pipeline), list(Pipeline(batch, batch_size=4, shuffle=False, schema=SCHEMA)))
    pipeline.load_state_dict({"epoch": 0, "batch": 2})
    assert [x.extra["id"].tolist() for x in pipeline] == [[8, 9, 10]]
    own = Pipeline(batch, batch_size=4, ranks=2, rank=1)
    placed = as_pipeline(own, SCHEMA, ranks=5, rank=3)
    assert [len(x) for x in placed] == [2, 2, 1]  # the share that the user chose
    assert next(iter(placed)).schema == SCHEMA
    assert own.schema is None
    assert isinstance(Gathered(batch), Source)
