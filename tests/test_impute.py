"""Gaps filled and written back: against closed forms, and in every form that data come in."""

import attrs
import numpy as np
import pytest
import torch
from test_truth import exact

import mvkit
from mvkit import Batch, Modality, Model, MultimodalDataset, RequestError
from mvkit.core import blocks
from mvkit.models import imputation

pandas = pytest.importorskip("pandas")
polars = pytest.importorskip("polars")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("given", [("m0",), ("m0", "m2"), ("m1", "m2")])
def test_whole_modalities_have_the_conditional_mean_and_sd(given):
    model, data = exact()
    batch, truth, n = data.test.batch.take(slice(0, 20)), data.truth, 4000
    missing = [name for name in model.names if name not in given]
    mean, covariance = truth.posterior({name: batch.data[name] for name in given})
    shown = {
        name: x if name in given else torch.full_like(x, torch.nan)
        for name, x in batch.data.items()
    }
    found = mvkit.impute(model, shown, n=n, quantiles=(), generator=seeded())
    for name in missing:
        weight = truth.weight[name]
        expected = mean @ weight.T + truth.bias[name]
        spread = weight @ covariance @ weight.T
        off = (found.filled[name] - expected) / (spread.diagonal() / n).sqrt()
        assert abs(off.square().mean() - 1) < 0.5  # exactly the error of n draws
        sd = (spread.diagonal() + truth.sigma[name] ** 2).sqrt()
        torch.testing.assert_close(found.sd[name], sd.expand_as(expected), rtol=0.05, atol=0)
    for name in given:
        assert torch.equal(found.filled[name], shown[name])
        assert not found.sd[name].any()


def by_feature():
    """x_a = z + ε with an encoder that is exact for any missing features, and x_b = W z + ε given
    in full.
    """
    plain = {"encoder": "linear", "decoder": "linear"}
    noise = {"name": "normal", "scale": 0.5}
    shapes = {
        "a": Modality((3,), noise, indicator=True, **plain),
        "b": Modality((3,), noise, **plain),
    }
    model = Model(shapes, latent_dim=3, seed=0).double().eval()
    weight = {
        "a": torch.diag(torch.tensor([1.0, 2.0, -1.5])).double(),
        "b": torch.diag(torch.tensor([0.7, 1.0, 2.0])).double(),
    }
    with torch.no_grad():
        for name in "ab":
            decoder, encoder = model.decoders[name].network[0], model.encoders[name][0]
            decoder.weight.copy_(weight[name]), decoder.bias.zero_()
            encoder.weight.zero_(), encoder.bias.zero_()
            encoder.weight[:3, :3] = torch.linalg.inv(weight[name])
            encoder.bias[3:] = torch.log(0.25 / weight[name].diagonal().square())
        first = model.encoders["a"][0]
        first.weight[3:, 3:] = -50 * torch.eye(3)  # a feature that is missing has no precision
        first.bias[3:] += 50
    return model, weight


def test_single_features_have_the_conditional_mean_and_their_intervals_cover():
    model, weight = by_feature()
    generator, b, n = seeded(1), 2000, 300
    z = torch.randn(b, 3, generator=generator, dtype=torch.float64)
    full = {
        k: z @ w.T + 0.5 * torch.randn(b, 3, generator=generator, dtype=torch.float64)
        for k, w in weight.items()
    }
    gap = torch.rand(b, 3, generator=generator) < 0.4
    gap[gap.all(1), 0] = False
    shown = {"a": torch.where(gap, torch.nan, full["a"]), "b": full["b"]}
    found = mvkit.impute(model, shown, n=n, quantiles=(0.05, 0.95), generator=generator)
    # z_j given x_b,j alone where x_a,j is missing: each latent has a feature of its own
    w = weight["b"].diagonal()
    variance = 1 / (1 + w.square() / 0.25)
    expected = weight["a"].diagonal() * variance * w / 0.25 * full["b"]
    sd = (weight["a"].diagonal().square() * variance).sqrt() / n**0.5
    off = ((found.filled["a"] - expected) / sd)[gap]
    assert abs(off.square().mean() - 1) < 0.15
    assert abs(off.mean()) < 0.1
    assert torch.equal(found.filled["a"][~gap], full["a"][~gap])
    few = mvkit.impute(
        model, shown, n=19, quantiles=(0.05, 0.95), generator=generator
    )  # the least, the largest
    for made in (found, few):
        low, high = (made.quantiles[q]["a"] for q in (0.05, 0.95))
        inside = ((full["a"] > low) & (full["a"] < high))[gap].double().mean()
        assert abs(inside - 0.9) < 4 * (0.09 / gap.sum()) ** 0.5
    assert torch.equal(low[~gap], full["a"][~gap])


@pytest.fixture(scope="module")
def fitted():
    """A model of three tables, in the user's units: numbers, counts and words."""
    random = np.random.default_rng(0)
    ids = [f"s{i}" for i in range(30)]
    frames = {
        "a": pandas.DataFrame(random.normal(5, 2, (30, 2)), ids, ["x", "y"]),
        "n": pandas.DataFrame(random.poisson(20, (30, 3)), ids, ["i", "j", "k"]),
        "c": pandas.DataFrame({"sex": random.choice(["f", "m"], 30)}, ids),
    }
    data = MultimodalDataset.from_tables(frames, modalities={"c": "categorical"})
    data = data.fit_transforms({"a": "standardise", "n": ["log1p", "standardise"]})
    return Model(data.modalities, latent_dim=2, seed=0).eval(), frames


def gaps(frames):
    """Tables with gaps of every kind, rows in other orders, columns in another order."""
    a = frames["a"].iloc[3:0:-1].copy()
    a.iloc[0, 1] = np.nan
    n = frames["n"].iloc[[2, 0, 1]][["k", "i", "j"]]
    c = frames["c"].iloc[:3].copy()
    c.iloc[1, 0] = None
    return {"a": a, "n": n, "c": c}


def test_tables_come_back_with_only_their_gaps_filled(fitted):
    model, frames = fitted
    shown = gaps(frames)
    before = {name: frame.copy() for name, frame in shown.items()}
    filled = mvkit.impute(model, shown, n=20, generator=seeded())
    for name, frame in shown.items():
        pandas.testing.assert_frame_equal(frame, before[name])
        assert filled[name].index.equals(frame.index)
        assert filled[name].columns.equals(frame.columns)
        assert not filled[name].isna().any().any()
        pandas.testing.assert_frame_equal(
            filled[name].where(frame.notna(), frame), frame, check_dtype=False
        )
    pandas.testing.assert_frame_equal(
        filled["n"], shown["n"]
    )  # nothing missing: not even the type changes
    assert filled["c"].iloc[1, 0] in ("f", "m")
    everywhere = mvkit.impute(model, shown, n=20, all=True, generator=seeded())
    assert not np.isclose(everywhere["a"], filled["a"]).all()
    assert everywhere["a"].iloc[0, 1] == filled["a"].iloc[0, 1]


def test_tables_with_the_rows_of_all(fitted):
    model, frames = fitted
    shown = gaps(frames)
    filled = mvkit.impute(model, shown, n=5, rows="all")
    for frame in filled.values():
        assert frame.index.tolist() == ["s3", "s2", "s1", "s0"]
        assert not frame.isna().any().any()
    assert (filled["n"] > -1).all().all()
    assert filled["n"].loc["s0"].tolist() == shown["n"].loc["s0"].tolist()
    only = mvkit.impute(model, {"a": frames["a"].iloc[:2]}, to=["n", "c"], n=5)
    assert only["n"].columns.tolist() == ["i", "j", "k"]
    assert only["n"].index.tolist() == ["s0", "s1"]
    assert set(only["c"]["sex"]) <= {"f", "m"}
    assert only["a"].equals(frames["a"].iloc[:2])


def test_uncertainty_comes_in_the_same_tables(fitted):
    model, frames = fitted
    shown = gaps(frames)
    found = mvkit.impute(model, shown, n=50, quantiles=(0.1, 0.9), draws=True, generator=seeded())
    assert list(found.quantiles) == [0.1, 0.9]
    assert len(found.draws) == 50
    spread = np.array([one["a"].iloc[0, 1] for one in found.draws])
    assert spread.std(ddof=1) == pytest.approx(found.sd["a"].iloc[0, 1], rel=1e-5)
    assert np.quantile(spread, 0.1, method="weibull") == pytest.approx(
        found.quantiles[0.1]["a"].iloc[0, 1], rel=1e-5
    )
    assert found.sd["a"].iloc[1:].to_numpy().max() == 0
    assert found.draws[3]["a"].iloc[1:].equals(shown["a"].iloc[1:])
    assert {one["c"].iloc[1, 0] for one in found.draws} == {"f", "m"}
    assert found.sd["c"].isna().to_numpy().tolist() == [[False], [True], [False]]
    assert found.quantiles[0.9]["c"].iloc[1, 0] is None or pandas.isna(
        found.quantiles[0.9]["c"].iloc[1, 0]
    )


def test_polars_comes_back_as_polars(fitted):
    model, frames = fitted
    shown = {
        k: polars.from_pandas(frame.rename_axis("id").reset_index())
        for k, frame in gaps(frames).items()
    }
    filled = mvkit.impute(model, shown, n=5, id="id", generator=seeded())
    same = mvkit.impute(model, gaps(frames), n=5, generator=seeded())
    for name, frame in filled.items():
        assert isinstance(frame, polars.DataFrame)
        assert frame.columns == shown[name].columns
        assert frame["id"].to_list() == shown[name]["id"].to_list()
        assert frame.drop("id").rows() == [
            tuple(row) for row in same[name].itertuples(index=False)
        ]
    assert filled["n"].dtypes == shown["n"].dtypes
    z = mvkit.embed(model, shown, id="id")
    assert z.columns == ["id", "z0", "z1"]


def test_ids_in_a_column_stay_there(fitted):
    model, frames = fitted
    shown = gaps(frames)["a"].rename_axis("id").reset_index()[["x", "id", "y"]]
    filled = mvkit.impute(model, {"a": shown}, n=3, id="id")["a"]
    assert filled.columns.tolist() == ["x", "id", "y"]
    assert filled["id"].equals(shown["id"])
    assert not filled.isna().any().any()


def test_embeddings_have_the_index(fitted):
    model, frames = fitted
    z = mvkit.embed(model, gaps(frames))
    assert z.index.tolist() == ["s3", "s2", "s1", "s0"]
    one = model.encode({k: frame.loc[["s1"]] for k, frame in gaps(frames).items()})
    np.testing.assert_allclose(z.loc["s1"], one[0], rtol=1e-5)
    numbered = {"a": frames["a"].reset_index(drop=True).rename_axis("row")}
    assert mvkit.embed(model, numbered).index.equals(numbered["a"].index)
    assert mvkit.embed(model, numbered).index.dtype == np.int64
    assert mvkit.embed(model, numbered).index.name == "row"
    data = MultimodalDataset(Batch({"a": torch.ones(2, 2)}), model.modalities)
    assert isinstance(mvkit.embed(model, data), torch.Tensor)
    assert isinstance(mvkit.embed(model, {"a": np.ones((2, 2))}), np.ndarray)


def test_what_a_model_gives_has_names_and_words(fitted):
    model, frames = fitted
    made = mvkit.as_tables(model, model.sample(4, sample=True))
    assert {k: (f.shape, f.columns.tolist()) for k, f in made.items()} == {
        "a": ((4, 2), ["x", "y"]),
        "n": ((4, 3), ["i", "j", "k"]),
        "c": ((4, 1), ["sex"]),
    }
    assert set(made["c"]["sex"]) <= {"f", "m"}
    rows = {name: frame.iloc[:2] for name, frame in frames.items()}
    x = model.translate(rows, to=["n"], n=3, generator=seeded())
    table = mvkit.as_tables(model, x, ids=["s0", "s1"])["n"]
    np.testing.assert_array_equal(table.loc[(2, "s1")], x["n"][2, 1])
    picture = Model({"p": (1, 8, 8)}, latent_dim=1)
    with pytest.raises(
        mvkit.ShapeError, match=r"as_tables: 'p' has shape \(2, 1, 8, 8\); expected \(b, k\)"
    ):
        mvkit.as_tables(picture, picture.sample(2))


def test_datasets_and_batches_come_back_as_such(fitted):
    model, frames = fitted
    data = MultimodalDataset.from_tables(
        gaps(frames), modalities={"c": "categorical"}, label={"s1": 7}
    )
    filled = mvkit.impute(model, data, n=5)
    assert isinstance(filled, MultimodalDataset)
    assert filled.ids.tolist() == data.ids.tolist()
    assert model.conform(filled).complete
    assert model.conform(filled).elements is None
    assert data.batch.data["a"].isnan().any()
    batch = mvkit.impute(model, data.batch, n=5, to=["a"])
    assert isinstance(batch, Batch)
    assert model.conform(batch).mask.tolist() == [
        [True, n, c] for _, n, c in data.batch.mask.tolist()
    ]


def test_gaps_that_are_not_filled_stay_in_their_columns(fitted):
    model, frames = fitted
    a = frames["a"].iloc[:3][["y", "x"]].copy()
    a.iloc[1, 0] = np.nan
    data = MultimodalDataset.from_tables({"a": a, "n": frames["n"].iloc[:2]})
    left = model.conform(mvkit.impute(model, data, to=["n"], n=3))
    assert left.elements["a"].tolist() == [[True, True], [True, False], [True, True]]  # x, y
    assert left.mask[:, model.names.index("n")].all()


def test_words_that_nobody_observes_are_no_matter(fitted):
    model, frames = fitted
    strange = frames["c"].iloc[:3].replace({"f": "m"}).assign(sex=lambda t: ["?", *t["sex"][1:]])
    tables = {"c": strange, "n": frames["n"].iloc[:3]}
    data = MultimodalDataset.from_tables(tables, modalities={"c": "categorical"})
    hidden = attrs.evolve(
        data,
        batch=attrs.evolve(
            data.batch, mask=torch.tensor([[False, True], [True, True], [True, True]])
        ),
    )
    filled = mvkit.impute(model, hidden, n=9)
    words = filled.batch.columns["c"].words
    assert words == ("f", "m")
    assert [words[int(i)] for i in filled.batch.data["c"][1:, 0]] == ["m", "m"]
    nothing = pandas.DataFrame({"x": [None, None], "y": [None, None]}, index=["s0", "s1"])
    again = mvkit.impute(model, {"a": nothing, "n": frames["n"].iloc[:2]}, n=3)["a"]
    assert again.dtypes.tolist() == [np.float64] * 2
    assert not again.isna().any().any()


def test_arrays_keep_their_types():
    shapes = {
        "bits": Modality((2,), "bernoulli"),
        "kind": Modality((3,), "categorical"),
        "one": Modality((1,)),
    }
    model = Model(shapes, latent_dim=2, seed=0).double().eval()
    seen = torch.tensor([[True, True, False], [False, True, True]])
    data = {
        "bits": torch.tensor([[0, 1], [9, 9]]),
        "kind": torch.tensor([2, 0]),
        "one": torch.tensor([7.0, 1.5]),
    }
    batch = mvkit.impute(model, Batch(data, seen), n=9)
    assert {name: (x.dtype, tuple(x.shape)) for name, x in batch.data.items()} == {
        "bits": (torch.int64, (2, 2)),
        "kind": (torch.int64, (2,)),
        "one": (torch.float32, (2,)),
    }
    assert set(batch.data["bits"][1].tolist()) <= {0, 1}
    assert batch.data["kind"][0] == 2
    assert batch.data["one"][1] == 1.5
    hot = mvkit.impute(
        model, {"kind": np.array([[0.0, 1, 0], [np.nan] * 3]), "one": np.ones((2, 1))}, n=9
    )["kind"]
    assert hot[0].tolist() == [0, 1, 0]
    assert hot[1].sum() == pytest.approx(1)
    absent = mvkit.impute(model, {"one": np.ones((2, 1))}, to=["bits"], n=9)
    assert absent["bits"].shape == (2, 2)


def test_blocks_of_rows_and_stacks(monkeypatch):
    small = {"name": "mlp", "hidden": [4]}
    shapes = {
        name: Modality((k,), encoder=small, decoder=small) for name, k in (("a", 2), ("b", 3))
    }
    model = mvkit.recipes.nexus(shapes, latent_dim=2)
    x = {"a": torch.randn(50, 2), "b": torch.randn(50, 3)}
    x["b"][::2] = torch.nan
    seen = []
    monkeypatch.setattr(blocks, "IMPUTED", 20 * (2 * 3 + imputation.HIDDEN) * 4 * 7)
    generate = model.generate
    monkeypatch.setattr(
        model,
        "generate",
        lambda plan, found: seen.append(len(found.batch)) or generate(plan, found),
    )
    filled = mvkit.impute(model, x, n=20)
    assert seen == [7] * 7 + [1]
    assert not filled["b"].isnan().any()
    assert torch.equal(filled["b"][1::2], x["b"][1::2])


def test_what_cannot_be_imputed(fitted):
    model, frames = fitted
    rows = {"a": frames["a"]}
    for options, text in (
        ({"quantiles": (1.5,)}, r"quantiles \(1.5,\); expected shares in \[0, 1\]"),
        ({"rows": "some"}, "rows='some'; expected 'own' or 'all'"),
        ({"n": 0}, "impute: n=0; expected a whole number"),
        ({"n": 1, "draws": True}, "n=1; expected 2 draws at least"),
        ({"to": ["z"]}, "impute: unknown modality 'z'; known: 'a', 'c', 'n'"),
    ):
        with pytest.raises(RequestError, match=text):
            mvkit.impute(model, rows, **options)
    empty = {"a": frames["a"].iloc[:1] * np.nan}
    with pytest.raises(
        mvkit.DataError, match=r"row 0 \(id 's0'\) observes none of the given modalities"
    ):
        mvkit.impute(model, empty)
    assert not mvkit.impute(model, empty, empty="prior", n=5)["a"].isna().any().any()
