"""Attacks on memory, lengths, hooks and files that gave way when they were first tried."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from installs import declares, install

import mvkit
from mvkit import Batch, DataError, Model, MultimodalDataset, Pipeline
from mvkit.core.batch import conform
from mvkit.data.shards import save_shards
from mvkit.registry import plugins

TINY = {"name": "mlp", "hidden": (4,)}


def model_of_classes(classes, shape=()):
    modality = mvkit.Modality((*shape, classes), "categorical", encoder=TINY, decoder=TINY)
    nets = {"encoder": TINY, "decoder": TINY}
    other = mvkit.Modality((2,), **nets)
    return Model({"c": modality, "a": other}, latent_dim=2, seed=0)


def rows_of_classes(b, classes, shape=(), seed=0):
    random = np.random.default_rng(seed)
    indices = random.integers(0, classes, (b, *shape))
    return {"c": indices, "a": random.normal(size=(b, 2)).astype(np.float32)}


def one_hot(indices, classes):
    """Another way than the package's: rows of the identity."""
    return np.eye(classes, dtype=np.float32)[indices]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=str)
def test_class_indices_train_as_one_hot_rows_do(shape):
    rows = rows_of_classes(11, 5, shape)
    dense = {**rows, "c": one_hot(rows["c"], 5)}
    histories, weights = [], []
    for data in (rows, dense):
        model = model_of_classes(5, shape)
        histories.append(mvkit.fit(model, data, epochs=2, batch_size=4, validation=dense)["loss"])
        weights.append(model.state_dict())
    assert histories[0] == histories[1]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_class_indices_stay_indices_until_they_are_in_a_batch():
    rows = rows_of_classes(10, 4)
    mask = torch.ones(10, 2, dtype=torch.bool)
    mask[3, 0] = False
    rows["c"][3] = 99  # what is not observed may hold anything
    schema = model_of_classes(4).schema
    pipeline = Pipeline(Batch(rows, mask), schema=schema, batch_size=4, shuffle=False)
    assert pipeline.rows.data["c"].shape == (10,)
    seen = torch.cat([batch.data["c"] for batch in pipeline])
    expected = torch.from_numpy(one_hot(np.where(rows["c"] == 99, 0, rows["c"]), 4))
    expected[3] = 0
    assert torch.equal(seen, expected)
    assert torch.equal(conform(pipeline.rows, schema).data["c"], expected)
    assert pipeline.first_rows(2).data["c"].tolist() == expected[:2].tolist()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint64, bool])
def test_class_indices_of_any_type(dtype):
    rows = rows_of_classes(9, 2)
    model = model_of_classes(2)
    right = model.encode({**rows, "c": one_hot(rows["c"], 2)})
    given = {**rows, "c": rows["c"].astype(dtype)}
    assert torch.equal(model.encode(given), right)
    mvkit.fit(model, given, epochs=1)


def test_an_index_of_no_class_is_named_before_training():
    rows = rows_of_classes(9, 4)
    rows["c"][7] = 4
    text = (
        r"batch.data\['c'\]: row 7, element \(0,\): a class index out of range cannot be taken; "
    )
    with pytest.raises(DataError, match=text + "expected indices from 0 to 3"):
        mvkit.fit(model_of_classes(4), rows, epochs=1)


@pytest.mark.parametrize("ask", ["fit", "encode", "translate", "mvkit.embed"])
def test_many_classes_take_no_more_memory_than_a_batch_of_them(ask):
    """9,000 rows of 10,000 classes are 360 MB as float32; 1,024 rows, a block, are 40 MB."""
    code = f"""
import resource, sys
sys.path.insert(0, "tests")
import mvkit
from test_attack_leftovers import model_of_classes, rows_of_classes
model, rows = model_of_classes(10_000), rows_of_classes(9_000, 10_000)
few = {{name: x[:1100] for name, x in rows.items()}}
def ask(data):
    if {ask!r} == "fit":
        mvkit.fit(model, data, epochs=1)
    elif {ask!r} == "translate":
        model.translate(data, ["a"])
    elif {ask!r} == "encode":
        model.encode(data)
    else:
        mvkit.embed(model, data)
ask(few)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ask(rows)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 100_000, ask


class Claims:
    """Six rows, or batches of four rows, that say what they like about their number."""

    def __init__(self, claim, item):
        self.claim = claim
        self.item = item

    def __len__(self):
        if isinstance(self.claim, Exception):
            raise self.claim
        return self.claim

    def __iter__(self):
        return iter([self.item] * 6)

    def __getitem__(self, i):
        return self.item


class ClaimsByIndex(Claims, torch.utils.data.Dataset):
    pass


class ClaimsAsSource(Claims):
    def __getitems__(self, indices):
        return [self.item for _ in indices]


ROW = {"a": torch.ones(2), "c": torch.tensor(1)}
BATCH = {"a": torch.ones(4, 2), "c": torch.ones(4, dtype=torch.long)}
NO_LENGTHS = (-1, 10**20, 6.0, "6", None, ValueError("no"), TypeError("no"), RuntimeError("no"))


@pytest.mark.parametrize("claim", [*NO_LENGTHS, 0, 3, 10**12], ids=str)
def test_what_a_loader_says_of_its_length_changes_nothing(claim):
    right, odd = model_of_classes(2), model_of_classes(2)
    expected = mvkit.fit(right, [BATCH] * 6, epochs=1, validation=[BATCH] * 6)
    loader = Claims(claim, BATCH)
    history = mvkit.fit(odd, loader, epochs=1, validation=loader)
    assert history["loss"] == expected["loss"]
    scores = [
        [score.value for score in mvkit.evaluate(right, rows, ["reconstruction"]).scores]
        for rows in (loader, [BATCH] * 6)
    ]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("kind", [ClaimsByIndex, ClaimsAsSource])
@pytest.mark.parametrize("claim", [*NO_LENGTHS, 2**32 + 1, 10**12], ids=str)
def test_rows_that_say_a_number_that_cannot_be_are_refused(kind, claim):
    rows = kind(claim, ROW)
    text = "Pipeline: the length of the data cannot be taken|Pipeline: the data say that they have"
    with pytest.raises(DataError, match=text):
        mvkit.fit(model_of_classes(2), rows, epochs=1)
    with pytest.raises(DataError, match=text):
        mvkit.fit(model_of_classes(2), BATCH, validation=rows, epochs=1)
    with pytest.raises(mvkit.MvkitError):
        mvkit.evaluate(model_of_classes(2), rows, ["reconstruction"])


ENDLESS = {
    "a generator": "n = 0\n    while True:\n        n += 1\n        yield COMPONENT",
    "of things that are none": "while True:\n        yield None",
    "an iterator": "import itertools\n    return itertools.repeat(COMPONENT)",
    "a range": "return range(10**15)",
    "a long list": "return [COMPONENT] * 1001",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_hook_that_never_ends_is_a_problem_of_its_package(kind, packages, monkeypatch):
    text = ENDLESS[kind].replace("COMPONENT", "Component('prior', 'p1', 'endless:P')")
    source = "from mvkit.registry.component import Component, hookimpl\n\n@hookimpl\n"
    source += f"def mvkit_components():\n    {text}\n"
    install(packages, "mvkit-endless", "endless", source, "")
    install(packages, "mvkit-good", "good", declares(("prior", "good", "good_parts:Good")), "")
    assert "good" in mvkit.available("prior")
    problems = [problem for problem in plugins.problems() if problem.package == "mvkit-endless"]
    (problem,) = problems
    assert "declares more than 1,000 components; expected a list that ends" in str(problem)
    assert str(problem).startswith("mvkit-endless 1")
    with pytest.raises(mvkit.UnknownComponent, match="mvkit-endless .*more than 1,000"):
        mvkit.Model({"a": (2,)}, prior="p1")


def test_a_hook_that_raises_after_some_components_offers_none_of_them(packages):
    source = "from mvkit.registry.component import Component, hookimpl\n\n@hookimpl\n"
    source += "def mvkit_components():\n    yield Component('prior', 'half', 'half:Half')\n"
    source += "    raise SystemExit('bye')\n"
    install(packages, "mvkit-half", "half", source, "")
    assert "half" not in mvkit.available("prior")
    (problem,) = plugins.problems()
    assert "SystemExit: bye" in str(problem)


def shards_in(folder, **options):
    rows = Batch({"a": torch.randn(4000, 50, dtype=torch.float64)})
    save_shards(rows, folder, {"a": (50,)}, rows_per_shard=1000)
    return rows, MultimodalDataset.open(folder, **options)


@pytest.mark.parametrize("left", [0, 100, 4096, 200_000])
@pytest.mark.parametrize("window", [None, 2])
def test_a_shard_that_is_cut_while_it_is_mapped_is_an_error(left, window, tmp_path):
    rows, opened = shards_in(tmp_path / "rows", window=window)
    opened.__getitems__([0, 1001])
    os.truncate(tmp_path / "rows" / "shard-00001.safetensors", left)
    with pytest.raises(DataError, match=f"shard-00001.safetensors: it was cut to {left} bytes"):
        opened.__getitems__([1999])
    with pytest.raises(DataError, match="it was cut to"):
        list(Pipeline(opened, batch_size=100))
    assert torch.equal(opened.__getitems__([999]).data["a"], rows.data["a"][[999]])


@pytest.mark.parametrize("left", [0, 100])
def test_a_shard_that_is_cut_before_it_is_mapped_is_an_error(left, tmp_path):
    _, opened = shards_in(tmp_path / "rows")
    os.truncate(tmp_path / "rows" / "shard-00001.safetensors", left)
    with pytest.raises(DataError, match=f"shard-00001.safetensors: has {left} bytes of"):
        opened.__getitems__([1999])
    (tmp_path / "rows" / "shard-00002.safetensors").unlink()
    with pytest.raises(DataError, match="shard-00002.safetensors: is not there"):
        opened.__getitems__([2999])


def test_a_shard_that_is_replaced_by_another_file_stays_as_it_was_mapped(tmp_path):
    rows, opened = shards_in(tmp_path / "rows")
    opened.__getitems__([0])
    (tmp_path / "other").write_bytes(b"")
    os.replace(tmp_path / "other", tmp_path / "rows" / "shard-00000.safetensors")
    assert torch.equal(opened.__getitems__([999]).data["a"], rows.data["a"][[999]])


def test_a_shard_that_grew_while_it_is_mapped_is_read(tmp_path):
    rows, opened = shards_in(tmp_path / "rows")
    opened.__getitems__([0])
    with (tmp_path / "rows" / "shard-00000.safetensors").open("ab") as file:
        file.write(b"more")
    assert torch.equal(opened.__getitems__([999]).data["a"], rows.data["a"][[999]])
