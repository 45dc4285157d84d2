"""Every kind of bad input at every door that takes data: an error of mvkit that names the place, or
the right answer; never a raw exception, never a wrong answer without a word.

A door takes `Given` and returns an answer; a kind turns clean input into bad input, and says what
clean input, written the proper way, is answered alike (None: it must be refused).
"""

from __future__ import annotations

import copy
import functools
import re

import attrs
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

import mvkit
from mvkit import Batch, Model, MultimodalDataset, Pipeline
from mvkit.apps.cli import main
from mvkit.core import noise
from mvkit.data.shards import save_shards
from mvkit.errors import MvkitError

pandas = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
sparse = pytest.importorskip("scipy.sparse")
pytestmark = pytest.mark.filterwarnings("ignore")
ROWS = 6
IDS = [f"s{i}" for i in range(ROWS)]
TINY = {"name": "mlp", "hidden": (4,)}
NAN = np.nan


@attrs.frozen(eq=False)
class Given:
    """Arrays by modality, and what else is said of their rows."""

    arrays: dict
    mask: object = None
    elements: dict | None = None
    ids: object = None
    label: object = None

    def but(self, **arrays):
        """The same with other arrays; None: without the modality."""
        changed = self.arrays | arrays
        return attrs.evolve(self, arrays={k: x for k, x in changed.items() if x is not None})


def clean():
    random = np.random.default_rng(0)
    a = random.normal(size=(ROWS, 3)).astype(np.float32)
    b = (random.random((ROWS, 2)) < 0.5).astype(np.float32)
    c = np.array([0, 1, 2, 0, 1, 2])
    return Given({"a": a, "b": b, "c": c})


@functools.cache
def model():
    """Trained for one epoch on the clean rows."""
    nets = {"encoder": TINY, "decoder": TINY}
    modalities = {
        "a": mvkit.Modality((3,), **nets),
        "b": mvkit.Modality((2,), "bernoulli", **nets),
        "c": mvkit.Modality((3,), "categorical", **nets),
    }
    vae = Model(modalities, latent_dim=2, seed=0)
    mvkit.fit(vae, clean().arrays, epochs=1, progress=False)
    return vae


# doors: each returns tensors by name; the right answer of one is that of another


def as_batch(given):
    extra = {}
    if given.label is not None:
        extra["label"] = given.label
    if given.ids is not None:
        extra["id"] = given.ids
    return Batch(given.arrays, given.mask, given.elements, extra)


def conformed(batches):
    """Conformed batches as one answer."""
    answer = {}
    for batch in batches:
        parts = {"mask": batch.observed}
        for name, x in batch.data.items():
            parts[name] = x.reshape(len(x), -1)
            parts[f"{name} seen"] = batch.present(name).reshape(len(x), -1)
        for name, x in parts.items():
            answer[name] = torch.cat([answer[name], x]) if name in answer else x
    return answer


def trained(data):
    vae = copy.deepcopy(model())
    history = mvkit.fit(vae, data, epochs=1, batch_size=4, progress=False)
    return {**vae.state_dict(), "loss": torch.tensor(history["loss"])}


def piped(rows):
    pipeline = Pipeline(rows, schema=model().schema, shuffle=False, batch_size=4)
    return conformed(pipeline)


def batch(given, folder):
    return conformed([model().conform(as_batch(given))])


def fit(given, folder):
    simple = given.mask is None and given.elements is None and given.label is None
    return trained(dict(given.arrays) if simple and given.ids is None else as_batch(given))


def loader(given, folder):
    """An iterable of batches."""
    return trained([as_batch(given)])


def frames_of(given):
    """Tables; classes one-hot, as the model has them."""
    frames = {}
    for name, x in given.arrays.items():
        x = np.asarray(x)
        ids = IDS[: len(x)] if given.ids is None else given.ids
        columns = [f"{name}{i}" for i in range(x.shape[1] if x.ndim > 1 else 1)]
        frames[name] = pandas.DataFrame(x, index=pandas.Index(ids, name="id"), columns=columns)
    if given.label is not None:
        frames["a"] = frames["a"].assign(label=given.label)
    return frames


def of_dataset(data):
    return conformed([table_model().conform(data)])


TABLES = {"modalities": {"c": "categorical"}}


@functools.cache
def table_model():
    data = MultimodalDataset.from_tables(frames_of(clean()), **TABLES)
    nets = {"encoder": TINY, "decoder": TINY}
    modalities = {name: attrs.evolve(m, **nets) for name, m in data.modalities.items()}
    return Model(modalities, latent_dim=2, seed=0)


def tables(given, folder):
    label = None if given.label is None else "label"
    return of_dataset(MultimodalDataset.from_tables(frames_of(given), label=label, **TABLES))


def asked_tables(given, folder):
    return of_dataset(frames_of(given))


def csv(given, folder):
    return _files(given, folder, "csv", lambda frame, path: frame.to_csv(path))


def parquet(given, folder):
    return _files(given, folder, "parquet", lambda frame, path: frame.to_parquet(path))


def _files(given, folder, kind, write):
    files = {}
    for name, frame in frames_of(given).items():
        files[name] = folder / f"{name}.{kind}"
        write(frame, files[name])
    label = None if given.label is None else "label"
    return of_dataset(MultimodalDataset.from_files(files, id="id", label=label, **TABLES))


def npz(given, folder):
    others = {"id": given.ids, "label": given.label}
    others = {name: value for name, value in others.items() if value is not None}
    np.savez(folder / "rows.npz", **given.arrays, **others)
    return conformed([model().conform(MultimodalDataset.from_npz(folder / "rows.npz"))])


def arrays(given, folder):
    options = {"ids": given.ids, "label": given.label}
    if given.mask is not None:
        options["missing"] = given.mask
    if given.elements is not None:
        options["missing"] = given.elements
    data = MultimodalDataset.from_arrays(given.arrays, **options)
    return conformed([model().conform(data)])


def shards(given, folder):
    save_shards(as_batch(given), folder / "shards", model().modalities, rows_per_shard=4)
    return piped(MultimodalDataset.open(folder / "shards"))


class Rows(Dataset):
    def __init__(self, given):
        self.given = given

    def __len__(self):
        return ROWS

    def __getitem__(self, i):
        values = {name: x[i] for name, x in self.given.arrays.items()}
        return values if self.given.label is None else {**values, "label": self.given.label[i]}


class Flow(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return (self.rows[i] for i in range(ROWS))


def items(given, folder):
    """A torch dataset by index."""
    return piped(Rows(given))


def stream(given, folder):
    """An iterable torch dataset."""
    return piped(Flow(Rows(given)))


def answers(ask):
    """A question to the trained model, of a mapping where nothing but values is given."""

    def door(given, folder):
        simple = given.mask is None and given.elements is None
        simple = simple and given.label is None and given.ids is None
        return ask(dict(given.arrays) if simple else as_batch(given))

    return door


def imputed(data):
    options = {"to": ["a", "b", "c"], "generator": noise.seeded(0)}
    filled = mvkit.impute(model(), data, **options)
    values = filled.data if isinstance(filled, Batch) else filled
    return {name: torch.as_tensor(x).double() for name, x in values.items()}


def embedded(data):
    return {"z": torch.as_tensor(mvkit.embed(model(), data))}


def evaluated(data):
    report = mvkit.evaluate(model(), data, ["reconstruction"], progress=False)
    return {score.name: torch.tensor(score.value) for score in report.scores}


def weighed(data):
    return {"log_px": model().log_likelihood(data, n=4, generator=noise.seeded(0))}


def translated(data):
    return model().translate(data, ["a", "b"], latent="mean")


DOORS = {
    "Batch": batch,
    "fit": fit,
    "fit, batches": loader,
    "from_arrays": arrays,
    "from_tables": tables,
    "tables, asked": asked_tables,
    "CSV": csv,
    "Parquet": parquet,
    "npz": npz,
    "shards": shards,
    "map dataset": items,
    "iterable": stream,
    "impute": answers(imputed),
    "embed": answers(embedded),
    "evaluate": answers(evaluated),
    "log_likelihood": answers(weighed),
    "translate": answers(translated),
}
TABULAR = {
    "rank": "a column holds single numbers",
    "tensor": "pandas holds no tensors",
    "mask": "tables say by gaps what is missing",
    "lengths": "rows are aligned by ids, whatever their number",
    "object": "the harness makes arrays of it",
}
FILE = {**TABULAR, "dtype": "the file has types of its own", "object": "no file holds it"}
EXTRA = {"ids": "extra names rows for messages; nothing is aligned by it"}
ITEMS = {
    **EXTRA,
    "mask": "items lack keys instead of having masks",
    "extra": "other keys are no modalities, but extra",
    "label": "each item has its own label",
    "lengths": "the length is the data set's",
    "whole": "an item is a row: no array is seen whole",
}
# what has no meaning at a door, by what a kind is about, and why
NO_MEANING = {
    **dict.fromkeys(("Batch", "fit", "fit, batches", "shards", "embed"), EXTRA),
    **dict.fromkeys(("impute", "evaluate", "log_likelihood", "translate"), EXTRA),
    "from_tables": TABULAR,
    "tables, asked": {**TABULAR, "label": "questions take no labels by column"},
    "CSV": FILE,
    "Parquet": FILE,
    "npz": {
        "tensor": "numpy holds no tensors",
        "mask": "an archive says by NaN what is missing",
        "object": "objects in archives are pickles, which are never read",
    },
    "from_arrays": {"absent": "the mask's columns are those of the arrays given"},
    "map dataset": ITEMS,
    "iterable": ITEMS,
}

# kinds: what they are about, and from clean input the bad, and the proper or None


def changed(x, place, value):
    x = np.array(x)
    x[place] = value
    return x


def put(name, place, value):
    """A value that is refused, in one place."""
    return lambda g: (g.but(**{name: changed(g.arrays[name], place, value)}), None)


def array(make, name="a", right=False):
    """An array made of the clean one; right: it is the clean one, otherwise written."""
    return lambda g: (g.but(**{name: make(g.arrays[name])}), g if right else None)


def gap(*names, rows):
    """NaN in rows of some modalities, and the same by a mask; classes are left out of both."""

    def kind(g):
        mask = torch.ones(ROWS, 3, dtype=torch.bool)
        bad = g
        for name in names:
            bad = bad.but(**{name: changed(bad.arrays[name], rows, NAN)})
            mask[rows, "abc".index(name)] = False
        return bad, attrs.evolve(g, mask=mask)

    return kind


def one_gap(g):
    seen = np.ones((ROWS, 3), bool)
    seen[1, 1] = False
    every = {name: np.ones(x.shape, bool) for name, x in g.arrays.items()}
    elements = {name: torch.from_numpy(x) for name, x in {**every, "a": seen}.items()}
    filled = g.but(a=changed(g.arrays["a"], (1, 1), 7.0))
    return g.but(a=changed(g.arrays["a"], (1, 1), NAN)), attrs.evolve(filled, elements=elements)


def masked(mask):
    return lambda g: (attrs.evolve(g, mask=mask), None)


def said(**changes):
    return lambda g: (attrs.evolve(g, **changes), None)


def absent(g):
    mask = torch.tensor([[True, False, True]]).expand(ROWS, 3)
    return g.but(b=None), attrs.evolve(g, mask=mask)


def emptied(g):
    return g.but(**{name: x[:0] for name, x in g.arrays.items()}), None


def tensor(make, name="a"):
    return array(lambda x: make(torch.from_numpy(np.array(x))), name)


def same_tensor(make, name="a"):
    return array(lambda x: make(torch.from_numpy(np.array(x))), name, right=True)


def eight_bits(g):
    rounded = torch.from_numpy(g.arrays["a"]).to(torch.float8_e4m3fn)
    return g.but(a=rounded), g.but(a=rounded.float())


KINDS = {
    "wrong width": ("", array(lambda x: x[:, :2])),
    "too wide": ("", array(lambda x: np.hstack([x, x]))),
    "no columns": ("", array(lambda x: x[:, :0])),
    "another axis": ("rank", array(lambda x: x[:, :, None])),
    "an axis less": ("", array(lambda x: x[:, 0])),
    "0-d": ("rank whole", array(lambda x: np.float32(1.0))),
    "0-d array": ("rank whole", array(lambda x: np.array(1.0))),
    "unknown name": ("extra", lambda g: (g.but(z=g.arrays["a"]), None)),
    "misspelt name": ("", lambda g: (g.but(a=None, A=g.arrays["a"]), None)),
    "absent": ("absent", absent),
    "nothing at all": ("", lambda g: (Given({}), None)),
    "no rows": ("whole", emptied),
    "inf": ("", put("a", (2, 1), np.inf)),
    "-inf": ("", put("a", (2, 1), -np.inf)),
    "inf among bits": ("", put("b", (2, 1), np.inf)),
    "NaN in one place": ("", one_gap),
    "NaN in a row": ("", gap("a", rows=[1])),
    "NaN in a row of two": ("", gap("a", "b", rows=[1, 4])),
    "NaN everywhere": ("", gap("a", rows=list(range(ROWS)))),
    "complex": ("dtype", array(lambda x: x + 1j)),
    "complex bits": ("dtype", array(lambda x: x + 1j, "b")),
    "complex classes": ("dtype", array(lambda x: x + 1j, "c")),
    "strings": ("", array(lambda x: np.full(x.shape, "high"))),
    "one string": ("object", array(lambda x: changed(x.astype(object), (1, 1), "n/a"))),
    "bytes": ("dtype", array(lambda x: np.full(x.shape, b"1.5"))),
    "days": ("dtype", array(lambda x: np.full(x.shape, np.datetime64("2020-01-01")))),
    "lists in cells": ("object", array(lambda x: np.array([[[1], {}, ()]] * ROWS, dtype=object))),
    "bit -1": ("", put("b", (2, 1), -1.0)),
    "bit 2": ("", put("b", (2, 1), 2.0)),
    "class -1": ("", put("c", 2, -1)),
    "class 3": ("", put("c", 2, 3)),
    "class 2^40": ("", put("c", 2, 2**40)),
    "class 1.5": ("", array(lambda x: changed(x.astype(float), 2, 1.5), "c")),
    "beyond float32": ("", array(lambda x: changed(x.astype(float), (2, 1), 1e39))),
    "other lengths": ("lengths", array(lambda x: x[:4])),
    "longer": ("lengths", array(lambda x: np.vstack([x, x]), "b")),
    "mask of other width": ("mask", masked(torch.ones(ROWS, 2, dtype=torch.bool))),
    "mask of other length": ("mask", masked(torch.ones(ROWS + 1, 3, dtype=torch.bool))),
    "mask of one axis": ("mask", masked(torch.ones(ROWS, dtype=torch.bool))),
    "mask of three axes": ("mask", masked(torch.ones(ROWS, 3, 1, dtype=torch.bool))),
    "mask of numbers": ("mask", masked(torch.ones(ROWS, 3))),
    "mask of whole numbers": ("mask", masked(torch.ones(ROWS, 3, dtype=torch.long))),
    "mask of text": ("mask", masked(np.full((ROWS, 3), "yes"))),
    "sparse mask": ("mask", masked(torch.ones(ROWS, 3, dtype=torch.bool).to_sparse())),
    "0-d mask": ("mask", masked(torch.tensor(True))),
    "ids that repeat": ("ids", said(ids=["x"] * ROWS)),
    "ids that lack": ("ids", said(ids=[None, *IDS[1:]])),
    "ids of other length": ("lengths object", said(ids=IDS[:4])),
    "labels of other length": ("label object", said(label=np.arange(4))),
    "ids of 0-d": ("lengths object", said(ids=np.array(7))),
    "ids in a set": ("lengths object", said(ids=set(IDS))),
    "one label": ("label object", said(label=np.float64(3.0))),
    "a word for labels": ("label object", said(label="abcdef")),
    "labels in a set": ("label object", said(label=set(IDS))),
    "Fortran order": ("dtype", array(np.asfortranarray, right=True)),
    "every second": ("dtype", array(lambda x: np.repeat(x, 2, 0)[::2], right=True)),
    "backwards": ("dtype", array(lambda x: x[::-1].copy()[::-1], right=True)),
    "backwards classes": ("dtype", array(lambda x: x[::-1].copy()[::-1], "c", right=True)),
    "of the other byte order": ("dtype", array(lambda x: x.astype(">f4"), right=True)),
    "read only": ("dtype", array(lambda x: np.broadcast_to(x, x.shape), right=True)),
    "longdouble": ("dtype", array(lambda x: x.astype(np.longdouble), right=True)),
    "float64": ("", array(lambda x: x.astype(np.float64), right=True)),
    "uint64 classes": ("dtype", array(lambda x: x.astype(np.uint64), "c", right=True)),
    "float classes": ("", array(lambda x: x.astype(np.float32), "c", right=True)),
    "bool bits": ("dtype", array(lambda x: x.astype(bool), "b", right=True)),
    "masked array": ("dtype", array(np.ma.MaskedArray, right=True)),
    "numbers as objects": ("object", array(lambda x: x.astype(object), right=True)),
    "record array": (
        "dtype rank",
        array(lambda x: x.view([("u", "f4"), ("v", "f4"), ("w", "f4")])),
    ),
    "lists": ("object whole", array(lambda x: x.tolist(), right=True)),
    "ragged lists": ("object whole", array(lambda x: [[1.0, 2.0]] + x.tolist()[1:])),
    "None in a list": ("object whole", array(lambda x: [None, *x.tolist()[1:]])),
    "a string": ("object whole", array(lambda x: "rows.csv")),
    "a set": ("object whole", array(lambda x: {1, 2})),
    "a generator": ("object whole", array(lambda x: (row for row in x))),
    "a function": ("object whole", array(lambda x: np.mean)),
    "a dict": ("object whole", array(lambda x: {"x": x})),
    "scipy's sparse": ("object whole", array(sparse.csr_matrix)),
    "pandas among arrays": ("object whole", array(pandas.DataFrame)),
    "requires grad": ("tensor", same_tensor(lambda x: x.requires_grad_())),
    "a parameter": ("tensor", same_tensor(torch.nn.Parameter)),
    "sparse": ("tensor whole", tensor(torch.Tensor.to_sparse)),
    "sparse rows": ("tensor whole", tensor(torch.Tensor.to_sparse_csr)),
    "on meta": ("tensor whole", tensor(lambda x: x.to("meta"))),
    "expanded": ("tensor", same_tensor(lambda x: torch.stack([x, x])[0].T.contiguous().T)),
    "negative view": ("tensor", same_tensor(lambda x: torch._neg_view(-x))),
    "quantised": ("tensor", tensor(lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8))),
    "nested": ("tensor whole", tensor(lambda x: torch.nested.nested_tensor([x[:2], x[2:]]))),
    "float8": ("tensor", eight_bits),
    "complex tensor": ("tensor", tensor(lambda x: x + 1j)),
}


def pairs():
    for door in DOORS:
        reasons = NO_MEANING.get(door, {})
        for kind, (about, _) in KINDS.items():
            if not set(about.split()) & set(reasons):
                yield pytest.param(door, kind, id=f"{door}-{kind}")


@pytest.mark.parametrize(("door", "kind"), list(pairs()))
def test_is_refused_with_its_place_or_answered_rightly(door, kind, tmp_path):
    _, corrupt = KINDS[kind]
    bad, proper = corrupt(clean())
    (tmp_path / "bad").mkdir()
    try:
        answer = DOORS[door](bad, tmp_path / "bad")
    except MvkitError as error:
        text = str(error) + " ".join(getattr(error, "__notes__", ()))
        places = [*map(repr, "abcz"), "missing", "mask", "id", "label", "data", "batch"]
        assert any(place in text for place in places), text
        return
    assert proper is not None, "taken without a word"
    ask = DOORS["Batch"] if "mask" in answer else DOORS[door]
    right = ask(proper, tmp_path)
    assert answer.keys() == right.keys()
    for name, values in right.items():
        torch.testing.assert_close(
            answer[name], values, rtol=1e-5, atol=1e-6, equal_nan=True, msg=name
        )


RUN = """
[data]
name = "linear_gaussian"
rows = 20
[model]
latent_dim = 2
[model.modalities.m0]
encoder = "linear"
[train]
epochs = 1
"""
# values of a run file by option, and what the message must name
OF_RUN_FILES = {
    "data.rows": ("rows", ("-1", "0", "2.5", "nan", "inf", "true", "[60]", "'x'")),
    "data.missing": ("missing", ("2", "-0.1", "nan", "[0.3]", "{m0=0.3}")),
    "data.name": ("dataset", ("5", "'nothing'")),
    "data.zz": ("zz", ("1",)),
    "model.modalities.zz.encoder": ("zz", ("'linear'",)),
    "model.modalities.m0.shape": ("shape", ("7", "[]", "[-1]")),
    "model.modalities.m0.likelihood": ("m0|likelihood", ("5", "'bernoulli'", "'categorical'")),
    "model.modalities.m0.weight": ("weight", ("-1", "nan", "'x'")),
    "model.latent_dim": ("latent_dim", ("-1", "2.5", "nan", "[2]")),
    "train.epochs": ("epochs", ("0", "-1", "1.5", "nan", "[1]")),
    "train.batch_size": ("batch_size", ("0", "'x'")),
    "train.lr": ("lr", ("-1", "nan", "inf", "'x'")),
    "train.workers": ("workers", ("-1", "'x'")),
    "train.stages": ("stage|schedule", ("5", "'zz'", "[]", "[5]")),
}


@pytest.mark.parametrize("option", OF_RUN_FILES)
def test_a_run_file_with_a_bad_value_is_refused_with_the_option(option, tmp_path, capsys):
    place, values = OF_RUN_FILES[option]
    path = tmp_path / "run.toml"
    path.write_text(RUN)
    arguments = ["train", str(path), "--folder", str(tmp_path / "run"), "--set"]
    for value in values:
        assert main([*arguments, f"{option}={value}"]) == 1, value
        message = capsys.readouterr().err.strip().splitlines()[-1]
        assert message.startswith("mvkit: ")
        assert re.search(place, message), message


def test_doors_that_a_kind_has_no_meaning_at_say_why():
    abouts = {word for about, _ in KINDS.values() for word in about.split()}
    for door, reasons in NO_MEANING.items():
        assert door in DOORS
        assert abouts >= set(reasons), door
