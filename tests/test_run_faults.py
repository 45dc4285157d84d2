"""What a run refuses before its first step, what it knows again, and what it cleans up first."""

import math
import random
import time

import numpy as np
import pytest
import torch
from helpers import model, rows
from torch import nn

import mvkit
from mvkit import Batch, DataError, Pipeline, RequestError, ShapeError, SpecError, Stage
from mvkit.data.holdout import hold_out
from mvkit.data.shards import Shards, save_shards
from mvkit.testing.tiny_models import modalities
from mvkit.training.events import CheckpointSaved, EpochFinished, StageStarted
from mvkit.training.fingerprint import digest


class Stopped(Exception):
    pass


def stop_after(epochs):
    def listen(event):
        if isinstance(event, EpochFinished) and event.row["epoch"] == epochs:
            raise Stopped

    return listen


def begin(folder, data, *, epochs=2, **options):
    """A run of 3 epochs that was stopped after some of them."""
    options = {"epochs": 3, "batch_size": 4, "checkpoint": folder, **options}
    with pytest.raises(Stopped):
        mvkit.fit(model(), data, listeners=[stop_after(epochs)], **options)
    return options


def outcome(data, **options):
    tiny = model()
    history = mvkit.fit(tiny, data, **options)
    return history.rows, [p.detach().clone() for p in tiny.parameters()]


def same(first, second):
    assert first[0] == second[0]
    assert all(map(torch.equal, first[1], second[1]))


# the data of a run that resumes


class Items(torch.utils.data.Dataset):
    def __init__(self, count=80, *, seed=0, change=None):
        self.batch = rows(count, missing=False, seed=seed)
        self.change = change

    def __len__(self):
        return len(self.batch)

    def __getitem__(self, i):
        item = {name: value[i] for name, value in self.batch.data.items()}
        return self.change(item) if self.change else item


class Batches:
    """A loader whose first batch is known by its seed."""

    def __init__(self, seed=0):
        self.seed = seed

    def __iter__(self):
        yield rows(4, seed=self.seed)
        yield rows(4, seed=7)


class Rows(torch.utils.data.IterableDataset):
    def __init__(self, seed=0):
        self.seed = seed

    def __iter__(self):
        items = Items(8, seed=self.seed)
        return (items[i] for i in range(8))


def labelled(label):
    batch = rows(8)
    return Batch(batch.data, batch.mask, extra={"label": label, "id": list("abcdefgh")})


def masked(column):
    batch = rows(8, missing=False)
    mask = torch.ones(8, 3, dtype=torch.bool)
    mask[3, column] = False
    return Batch(batch.data, mask)


def in_shards(tmp_path, seed):
    folder = tmp_path / f"shards-{seed}"
    if not folder.exists():
        save_shards(rows(8, missing=False, seed=seed), folder, modalities())
    return Shards(folder)


CASES = {
    "values": lambda _, k: rows(8, seed=k),
    "fewer rows": lambda _, k: rows(8 - k),
    "labels": lambda _, k: labelled(torch.arange(8) + k),
    "words": lambda _, k: labelled(["x"] * 7 + ["xy"[k]]),
    "mask": lambda _, k: masked(k),
    "list of batches, the last": lambda _, k: [rows(4), rows(4, seed=k)],
    "map dataset": lambda _, k: Items(seed=k),
    "map dataset, one row more": lambda _, k: Items(80 + k),
    "loader": lambda _, k: Batches(k),
    "stream of rows": lambda _, k: Pipeline(Rows(k), batch_size=4, schema=model().schema),
    "shards": in_shards,
    "order": lambda _, k: Pipeline(rows(8), batch_size=4, seed=k),
    "grouping": lambda _, k: Pipeline(rows(8), batch_size=4, group=[None, "pattern"][k]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_knows_its_data_again(name, tmp_path):
    def data(number):
        return CASES[name](tmp_path, number)

    options = begin(tmp_path / "run", data(0))
    with pytest.raises(RequestError, match="begun with other data: .*take the same, or another"):
        mvkit.fit(model(), data(1), **options)
    history = mvkit.fit(model(), data(0), **options)
    assert len(history) == 3
    with pytest.raises(RequestError, match="begun with other data"):  # finished, too
        mvkit.fit(model(), data(1), **options)


def test_the_message_says_what_differs(tmp_path):
    options = begin(tmp_path, rows(8))
    with pytest.raises(RequestError, match=r"other data: rows: 8, got 5; take"):
        mvkit.fit(model(), rows(5), **options)
    other = rows(8)
    other.data["a"][2] += 1
    with pytest.raises(RequestError, match=r"other data: values: a: 'sha256 .*', got 'sha256 "):
        mvkit.fit(model(), other, **options)


def test_validation_is_known_again(tmp_path):
    options = begin(tmp_path, rows(8), validation=rows(4))
    for validation, match in ((rows(4, seed=1), "values"), (rows(3), "rows: 4, got 3")):
        with pytest.raises(RequestError, match=f"other validation data: {match}"):
            mvkit.fit(model(), rows(8), **{**options, "validation": validation})
    with pytest.raises(RequestError, match="other validation data: .*, got None"):
        mvkit.fit(model(), rows(8), **{**options, "validation": None})
    assert len(mvkit.fit(model(), rows(8), **options)) == 3


@pytest.mark.parametrize("change", [{"workers": 2}, {"save_every": 0}, {"keep": 1}])
def test_what_decides_no_numbers_may_differ(change, tmp_path):
    options = begin(tmp_path, Items(8))
    assert len(mvkit.fit(model(), Items(8), **{**options, **change})) == 3


def test_data_that_are_random_are_known_by_their_length(tmp_path):
    def noisy(item):
        return {**item, "a": item["a"] + random.random()}

    options = begin(tmp_path, Items(8, change=noisy))
    assert len(mvkit.fit(model(), Items(8, change=noisy), **options)) == 3
    with pytest.raises(RequestError, match="other data: rows: 8, got 7"):
        mvkit.fit(model(), Items(7, change=noisy), **options)
    loader = torch.utils.data.DataLoader(Items(40), batch_size=10, shuffle=True)
    options = begin(tmp_path / "loader", loader)
    assert len(mvkit.fit(model(), loader, **options)) == 3


def test_a_look_at_the_data_draws_on_no_generator(tmp_path):
    def noisy(item):
        shift = random.random() + np.random.random() + torch.rand(())
        return {**item, "a": item["a"] + shift}

    outcomes = []
    for folder in (None, tmp_path):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        outcomes.append(outcome(Items(8, change=noisy), epochs=2, checkpoint=folder))
    same(*outcomes)


def test_an_iterator_that_can_be_read_once_is_not_read_before(tmp_path):
    options = {"epochs": 1, "checkpoint": tmp_path}
    history = mvkit.fit(model(), iter([rows(4), rows(3)]), **options)
    assert history["step"] == [2]


def test_digests():
    x = torch.arange(6.0).reshape(2, 3)
    assert digest(x) == digest(x.t().contiguous().t()) != digest(x.t())
    assert digest(x) != digest(x.double())
    assert digest([1, "a", None]) != digest([1, "b", None])
    assert digest({"a": x, "b": [x]}) != digest({"a": x, "b": [x + 1]})
    assert digest([object()]) == digest([object()])
    assert digest(np.array(["a", None], object)) != digest(np.array(["b", None], object))
    assert digest(x.numpy()) == digest(x)
    large = torch.zeros(10_000_000)
    other = large.clone()
    other[9_999_999] = 1
    assert digest(large) != digest(other)


@pytest.mark.slow
def test_a_gigabyte_takes_about_a_second():
    values = torch.zeros(1000, 250_000)
    start = time.perf_counter()
    digest(values)
    assert time.perf_counter() - start < 2.0


# more epochs


def test_a_run_can_be_lengthened(tmp_path):
    plan = [Stage("elbo", 2), Stage("elbo", 2, ema=0.9, ramps={"kl_weight": "linear"})]
    longer = [plan[0], Stage("elbo", 5, ema=0.9, ramps={"kl_weight": "linear"})]
    options = {"batch_size": 3, "validation": rows(4, seed=1)}
    whole = outcome(rows(8), stages=longer, **options)
    options["checkpoint"] = tmp_path
    short = outcome(rows(8), stages=plan, **options)
    heard = []
    same(short, outcome(rows(8), stages=plan, listeners=[heard.append], **options))
    assert not any(isinstance(event, StageStarted | CheckpointSaved) for event in heard)
    again = outcome(rows(8), stages=longer, **options)
    same(whole, again)
    saved = mvkit.load(tmp_path / "model.safetensors")
    assert all(map(torch.equal, saved.parameters(), again[1]))


def test_only_the_last_stage_can_be_lengthened(tmp_path):
    plan = [Stage("elbo", 2), Stage("elbo", 2)]
    options = {"checkpoint": tmp_path}
    mvkit.fit(model(), rows(8), stages=plan, **options)
    for stages, where in (
        ([Stage("elbo", 3), Stage("elbo", 2)], "0: epochs: 2, got 3"),
        ([Stage("elbo", 2), Stage("elbo", 1)], "1: epochs: 2, got 1"),
        ([Stage("elbo", 2), Stage("elbo", 3, clip=1.0)], "1: clip: None, got 1.0"),
    ):
        with pytest.raises(RequestError, match=f"another stages: {where}"):
            mvkit.fit(model(), rows(8), stages=stages, **options)


def test_a_model_beside_a_finished_run_is_left_alone(tmp_path):
    options = {"epochs": 2, "checkpoint": tmp_path}
    mvkit.fit(model(), rows(8), **options)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"changed since")
    mvkit.fit(model(), rows(8), **options)
    assert path.read_bytes() == b"changed since"
    path.unlink()
    mvkit.fit(model(), rows(8), **options)
    mvkit.load(path)


# schedules that do not fit


def cycle(total, **options):
    return {"name": "OneCycleLR", "max_lr": 0.01, "total_steps": total, **options}


@pytest.mark.parametrize(
    ("schedule", "more", "message"),
    [
        ({"name": "ReduceLROnPlateau", "every": "step"}, {}, "looks at the loss of an epoch"),
        (cycle(11, every="step"), {}, r"ends after 11 steps, and the stage has 12;.*total_steps=12"),
        (cycle(5, every="step"), {"accumulate": 2}, r"ends after 5 steps, and the stage has 8"),
        (cycle(6, every="step"), {"steps": 7}, r"ends after 6 steps, and the stage has 7"),
        (cycle(3), {}, r"ends after 3 epochs, and the stage has 4"),
        ({"name": "StepLR"}, {}, "step_size"),
        ({"name": "CyclicLR", "base_lr": 1, "max_lr": 2, "cycle_momentum": "yes", "mode": "no"}, {},
         "mode is invalid"),
    ],
)  # fmt: skip
def test_schedules_that_do_not_fit_are_refused_before_training(schedule, more, message, tmp_path):
    stages = [Stage("elbo", 1), Stage("elbo", 4, lr_schedule=schedule, **more)]
    heard = []
    options = {"batch_size": 3, "checkpoint": tmp_path, "listeners": [heard.append]}
    with pytest.raises(SpecError, match=rf"stages.1.lr_schedule: .*{message}"):
        mvkit.fit(model(), rows(8), stages=stages, **options)
    assert not heard


@pytest.mark.parametrize(
    ("schedule", "more"),
    [
        ("ReduceLROnPlateau", {}),
        (cycle(12, every="step"), {}),
        (cycle(8, every="step"), {"accumulate": 2}),
        (cycle(7, every="step"), {"steps": 7}),
        (cycle(4), {}),
        (cycle(3), {"steps": 7}),
    ],
)
def test_schedules_that_just_fit_are_not(schedule, more):
    stage = Stage("elbo", 4, lr_schedule=schedule, **more)
    mvkit.fit(model(), rows(8), stages=stage, batch_size=3)


def test_a_schedule_that_ends_before_a_stream_says_so():
    stage = Stage("elbo", 4, lr_schedule=cycle(3, every="step"))
    with pytest.raises(SpecError, match=r"stage 0, epoch 2: OneCycleLR ended before its stage"):
        mvkit.fit(model(), Batches(), stages=stage)


def test_stages_that_train_nothing_are_refused_before_the_first():
    stages = [Stage("elbo", 1), Stage("elbo", 1, ["prior.*"])]
    heard = []
    with pytest.raises(SpecError, match="which has no parameters"):
        mvkit.fit(model(), rows(8), stages=stages, listeners=[heard.append])
    assert not heard


# gradients


class Computed:
    """Data that another network computes, in every form that they come in."""

    def __init__(self):
        self.network = nn.Linear(3, 3).double()
        self.plain = rows(8, missing=False)

    def batch(self):
        return Batch({**self.plain.data, "a": self.network(self.plain.data["a"])})

    def in_memory(self):
        return self.batch()

    def batches(self):
        batch = self.batch()
        return [batch.take(slice(0, 4)), batch.take(slice(4, 8))]

    def items(self):
        batch = self.batch()
        return Pipeline(
            [{name: value[i] for name, value in batch.data.items()} for i in range(8)],
            schema=model().schema,
            batch_size=4,
            shuffle=False,
        )

    def transform(self):
        def computed(batch):
            return Batch({**batch.data, "a": self.network(batch.data["a"])})

        return Pipeline(self.plain, transform=computed, batch_size=4, shuffle=False)

    def detached(self):
        with torch.no_grad():
            return Pipeline(self.batch(), batch_size=4, shuffle=False)


@pytest.mark.parametrize("form", ["in_memory", "batches", "items", "transform"])
def test_data_that_another_network_computed(form):
    computed = Computed()
    data = getattr(computed, form)()
    if form == "in_memory":
        data = Pipeline(data, batch_size=4, shuffle=False)
    same(outcome(data, epochs=3), outcome(computed.detached(), epochs=3))
    assert computed.network.weight.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_switches_gradients_on(mode):
    plain = outcome(rows(8), epochs=2)
    with mode():
        tiny_rows = rows(8)
    tiny = model()
    with mode():
        history = mvkit.fit(tiny, tiny_rows, epochs=2)
        assert not torch.is_grad_enabled()
    same(plain, (history.rows, [p.detach() for p in tiny.parameters()]))


def test_training_begins_with_cleared_gradients():
    tiny = model()
    for parameter in tiny.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    history = mvkit.fit(tiny, rows(8), epochs=2)
    same(outcome(rows(8), epochs=2), (history.rows, list(tiny.parameters())))


def test_an_objective_with_parameters_is_refused():
    class Learnt(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

    stage = Stage("elbo", 1)
    object.__setattr__(stage, "objective", Learnt())
    with pytest.raises(
        RequestError, match=r"objective Learnt of stage 0 holds parameters \(scale"
    ):
        mvkit.fit(model(), rows(8), stages=stage)


# batches that are none


def an_item(**changes):
    return {name: value[0] for name, value in rows(1, missing=False).data.items()} | changes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([an_item(a=1.0), an_item(a=2.0)], "this is one row, not a batch.*mvkit.Pipeline"),
        ([an_item(), an_item()], "this is one row, not a batch.*mvkit.Pipeline"),
        (iter([{"a": torch.zeros(8, 3), "b": torch.zeros(5, 2)}]), r"data\['b'\]: 5 rows, but .* 8"),
        ([{"a": torch.zeros(5, 3), "b": torch.zeros(8, 2)}], r"data\['b'\]: 8 rows, but .* 5"),
        ([Batch({"a": torch.zeros(4, 3)}, torch.ones(5, 3) > 0)], r"batch.mask: 5 rows, but .* 4"),
        ([Batch({"a": torch.zeros(4, 3)}, extra={"id": [1, 2]})], r"extra\['id'\]: 2 rows"),
    ],
)  # fmt: skip
def test_batches_of_unequal_lengths(data, message):
    with pytest.raises((ShapeError, DataError), match=message):
        mvkit.fit(model(), data, epochs=1)


@pytest.mark.parametrize("transform", [None, lambda batch: batch])
def test_a_pipeline_of_unequal_lengths(transform):
    data = {"a": torch.zeros(4, 3), "b": torch.zeros(3, 2)}
    with pytest.raises(ShapeError, match=r"data\['b'\]: 3 rows, but .* 4"):
        list(Pipeline(data, transform=transform))


def test_float16_is_told_of_its_range():
    tiny = model().to(torch.float16)
    with torch.no_grad():
        next(tiny.decoders.parameters()).fill_(math.inf)
    with pytest.raises(mvkit.NonFiniteError, match=r"model in float16 has .*precision='bf16'"):
        mvkit.fit(tiny, rows(8), epochs=1)


# validation=0.1 and patience


def parts(data, share=0.25, seed=0, **options):
    """The values of `a` of the rows to train and to validate on."""
    pipeline = Pipeline(data, schema=model().schema, batch_size=3, shuffle=False, **options)
    values = []
    for part in hold_out(pipeline, share, seed):
        values.append(torch.cat([batch.data["a"] for batch in part]))
    return values


def with_ids(ids):
    batch = rows(len(ids), missing=False)
    return Batch(batch.data, extra={"id": ids})


def the_rows(values):
    return {tuple(row) for row in values.tolist()}


@pytest.mark.parametrize("kind", ["memory", "items", "shards"])
def test_rows_are_held_out(kind, tmp_path):
    batch = rows(40, missing=False)
    data = {"memory": batch, "items": Items(40)}.get(kind)
    if kind == "shards":
        save_shards(batch, tmp_path / "shards", modalities(), rows_per_shard=6)
        data = Shards(tmp_path / "shards")
    train, valid = parts(data)
    assert (len(train), len(valid)) == (30, 10)
    assert the_rows(train) | the_rows(valid) == the_rows(batch.data["a"])
    assert not the_rows(train) & the_rows(valid)
    assert torch.equal(valid, parts(data)[1])
    assert not torch.equal(valid, parts(data, seed=1)[1])
    memory = parts(batch)[1]
    assert torch.equal(valid, memory)  # positions decide, wherever the rows are


def test_ids_decide_and_rows_of_one_id_stay_together():
    ids = [f"p{i // 2}" for i in range(40)]
    batch = with_ids(ids)
    train, valid = parts(batch)
    names = {tuple(row): name for row, name in zip(batch.data["a"].tolist(), ids, strict=True)}
    sides = [{names[row] for row in the_rows(values)} for values in (train, valid)]
    assert not sides[0] & sides[1]
    turned = torch.randperm(40)
    assert the_rows(parts(batch.take(turned))[1]) == the_rows(valid)


def test_held_out_shards_keep_order_masks_and_labels(tmp_path):
    batch = with_ids(list(range(12)))
    save_shards(batch, tmp_path / "shards", modalities(), rows_per_shard=2)
    pipeline = Pipeline(Shards(tmp_path / "shards", window=1), schema=model().schema)
    train, valid = hold_out(pipeline, 0.25, 0)
    order = train.rows.epoch_order(seed=0, epoch=0)
    assert sorted(order.tolist()) == list(range(9))
    ids = torch.tensor([int(i) for i in train.rows.extra["id"]])
    assert train.rows.mask.shape == (9, 3)
    shards = (ids[order] // 2).tolist()
    assert len(set(shards)) == sum(a != b for a, b in zip(shards, [None, *shards], strict=False))
    assert sorted([*ids.tolist(), *map(int, valid.rows.extra["id"])]) == list(range(12))


def test_fit_holds_rows_out():
    batch = rows(12)
    tiny, other = model(), model()
    history = mvkit.fit(tiny, batch, epochs=3, validation=0.25, batch_size=4, seed=5)
    pipeline = Pipeline(batch, schema=other.schema, batch_size=4, seed=5)
    train, valid = hold_out(pipeline, 0.25, 5)
    plain = mvkit.fit(other, train, epochs=3, validation=valid, batch_size=4, seed=5)
    assert "valid/loss" in history.columns
    same((history.rows, list(tiny.parameters())), (plain.rows, list(other.parameters())))


def test_what_is_learnt_before_training_sees_no_held_out_row(monkeypatch):
    seen = []
    tiny = model(prior={"name": "mog", "components": 2, "init": "kmeans"})
    encode = type(tiny).encode

    def noted(self, batch):
        seen.append(len(batch))
        return encode(self, batch)

    monkeypatch.setattr(type(tiny), "encode", noted)
    monkeypatch.setattr(
        "mvkit.training.preparing.judge", lambda *_: None
    )  # looks at those held out
    mvkit.fit(tiny, rows(20), epochs=1, validation=0.25)
    assert sum(seen) == 15


@pytest.mark.parametrize(
    ("data", "share", "message"),
    [
        (rows(8), 0.0, r"validation=0.0; expected a share between 0 and 1, or data"),
        (rows(8), 1.5, r"validation=1.5; expected a share"),
        ([rows(4), rows(4)], 0.1, "of batches that a loader returns, are not known"),
        (Batches(), 0.1, "are not known beforehand; give other data to validate on"),
        (with_ids(["x"] * 4), 0.5, "4 rows cannot be split by their ids"),
        (rows(1, missing=False), 0.5, "1 rows cannot be split"),
    ],
)
def test_shares_that_cannot_be_held_out(data, share, message):
    with pytest.raises((RequestError, DataError), match=message):
        mvkit.fit(model(), data, epochs=1, validation=share)


def test_transforms_that_saw_the_rows_are_warned_of():
    arrays = {"a": np.random.default_rng(0).normal(size=(20, 3)), "b": np.ones((20, 2))}
    data = mvkit.MultimodalDataset.from_arrays(arrays)
    fitted = data.fit_transforms({"a": "standardise"})
    tiny = mvkit.Model(fitted.modalities, latent_dim=2, seed=0)
    with pytest.warns(UserWarning, match="transforms of 'a' were fitted before"):
        mvkit.fit(tiny, fitted, epochs=1, validation=0.1)


def test_patience_of_a_run():
    lazy = {"name": "adam", "lr": 0.0}
    stages = [Stage("elbo", 9, optimizer=lazy), Stage("elbo", 9, patience=1, optimizer=lazy)]
    history = mvkit.fit(model(), rows(8), stages=stages, validation=rows(4), patience=3)
    assert history["stage"] == [0] * 4 + [1] * 2
    with pytest.raises(RequestError, match="stage 0 has patience=2, but nothing to judge by"):
        mvkit.fit(model(), rows(8), patience=2)
    with pytest.raises(RequestError, match="patience=0; expected a whole number of at least 1"):
        mvkit.fit(model(), rows(8), patience=0, validation=rows(4))


def test_what_may_differ_is_noted_in_the_history(tmp_path):
    options = begin(tmp_path, Items(8))
    changes = {"epochs": 4, "workers": 2, "save_every": 0, "keep": 1}
    history = mvkit.fit(model(), Items(8), **{**options, **changes})
    noted = {
        "epochs of the last stage": "3, then 4",
        "workers": "0, then 2",
        "save_every": "300.0, then 0.0",
        "keep": "3, then 1",
    }
    expected = [f"resumed after batch 4: {key}: {change}" for key, change in noted.items()]
    assert history.notes == expected
    lines = repr(history).splitlines()
    assert lines[len(lines) - len(history.verdict) - 4 :] == [*expected, *history.verdict]
    again = mvkit.fit(model(), Items(8), **{**options, **changes})
    assert again.notes == expected


def test_nothing_is_noted_where_nothing_differs(tmp_path):
    options = begin(tmp_path, rows(8))
    history = mvkit.fit(model(), rows(8), listeners=[stop_after(9)], **options)
    assert history.notes == []
