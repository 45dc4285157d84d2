"""Transforms: fitted on training data only, saved in the model, undone in what it gives back."""

import json

import numpy as np
import pytest
import torch

import mvkit
from mvkit import (
    Batch,
    DataError,
    Modality,
    Model,
    MultimodalDataset,
    RequestError,
    SpecError,
    recipes,
)
from mvkit.data.pairing import pair_by_label
from mvkit.data.transforms import Binarise, Log1p, OneHot, Standardise

NAN = torch.nan


def dataset(**arrays):
    return MultimodalDataset.from_arrays({name: torch.as_tensor(x) for name, x in arrays.items()})


def linear(data, **options):
    """A model whose networks are affine, so that what it computes is known."""
    plain = {"encoder": "linear", "decoder": "linear"}
    shapes = {name: Modality(**{**vars(m), **plain}) for name, m in data.modalities.items()}
    return Model(shapes, latent_dim=2, seed=0, **options).double().eval()


def test_standardise_counts_what_is_observed():
    x = torch.tensor([[1.0, 10.0], [NAN, 30.0], [5.0, NAN], [NAN, NAN]], dtype=torch.float64)
    data = dataset(a=x).fit_transforms({"a": "standardise"})
    step = data.modalities["a"].transform[0]
    assert step.mean == (3.0, 20.0)
    assert step.scale == (2.0, 10.0)
    assert data.batch.data["a"][0].tolist() == [1, 10]  # values stay raw
    batch = linear(data).conform(data)
    assert batch.data["a"].tolist() == [[-1, -1], [0, 1], [1, 0], [0, 0]]
    assert batch.elements["a"].tolist() == [
        [True, True],
        [False, True],
        [True, False],
        [True, True],
    ]
    assert batch.mask[:, 0].tolist() == [True, True, True, False]


def test_one_mean_for_pictures():
    x = torch.rand(5, 1, 8, 8)
    data = dataset(a=x).fit_transforms({"a": {"name": "standardise", "over": "all"}})
    seen = Model(data.modalities, latent_dim=1).conform(data).data["a"]
    torch.testing.assert_close(seen, (x - x.mean()) / x.std(correction=0))
    with pytest.raises(DataError, match="standardise would hold 270000 means; .*'over': 'all'"):
        dataset(a=torch.rand(2, 3, 300, 300)).fit_transforms({"a": "standardise"})


def test_a_constant_feature_keeps_scale_1_and_is_said():
    x = torch.tensor([[0.1, 1.0, NAN], [0.1, 2.0, NAN], [0.1, NAN, NAN]])
    with pytest.warns(
        UserWarning,
        match="2 features are constant or never observed, such as number 0; they keep scale 1",
    ):
        data = dataset(a=x).fit_transforms({"a": "standardise"})
    step = data.modalities["a"].transform[0]
    assert step.scale[0] == step.scale[2] == 1
    assert torch.isfinite(Model(data.modalities, latent_dim=1).loss(data.batch).loss)


def test_transforms_are_fitted_to_training_rows_only_and_applied_to_all():
    x = torch.randn(20, 3, dtype=torch.float64) * 5 + 2
    train, test = dataset(a=x).split(0.5, 0.5)
    fitted = train.fit_transforms({"a": "standardise"})
    kept = train.batch.data["a"]
    seen = linear(fitted).conform(test).data["a"]
    torch.testing.assert_close(
        seen, (test.batch.data["a"] - kept.mean(0)) / kept.std(0, correction=0)
    )


@pytest.mark.parametrize("steps", [["log1p"], ["standardise"], ["log1p", "standardise"]], ids=str)
def test_back_in_the_users_units(steps):
    x = torch.rand(30, 3, dtype=torch.float64) * 100
    data = dataset(a=x).fit_transforms({"a": steps})
    modality = data.modalities["a"]
    made = linear(data)
    seen = made.conform(data).data["a"]
    torch.testing.assert_close(modality.restore(seen), x)
    # the same networks on data that were transformed by hand say the same, in those units
    plain = Model(
        {"a": Modality((3,), modality.likelihood, encoder="linear", decoder="linear")},
        latent_dim=2,
    ).double()
    plain.load_state_dict(made.state_dict())
    torch.testing.assert_close(plain.encode({"a": seen}), made.encode(data))
    z = torch.randn(4, 2, dtype=torch.float64)
    torch.testing.assert_close(modality.restore(plain.decode(z)["a"]), made.decode(z)["a"])
    torch.testing.assert_close(plain.decode(z)["a"], made.decode(z, units="model")["a"])
    for ask in ("translate", "sample"):
        one, two = (
            getattr(m, ask)(d, generator=torch.Generator().manual_seed(0))["a"]
            for m, d in (
                (plain, {"a": seen} if ask == "translate" else 3),
                (made, data if ask == "translate" else 3),
            )
        )
        torch.testing.assert_close(modality.restore(one), two)
    one, two = (
        m.log_likelihood(d, n=5, generator=torch.Generator().manual_seed(0))
        for m, d in ((plain, {"a": seen}), (made, data))
    )
    torch.testing.assert_close(one, two)  # a density in the model's units: no Jacobian
    with pytest.raises(RequestError, match="units='log'; expected 'data' or 'model'"):
        made.decode(z, units="log")


def test_one_hot():
    data = dataset(a=torch.tensor([[3.0], [7.0], [NAN], [3.0]])).fit_transforms({"a": "one_hot"})
    modality = data.modalities["a"]
    assert modality.shape == (1, 2)
    assert modality.transform == (OneHot(categories=(3.0, 7.0)),)
    made = Model(data.modalities, latent_dim=1)
    assert made.conform(data).data["a"][:, 0].tolist() == [[1, 0], [0, 1], [0, 0], [1, 0]]
    assert set(made.translate(data.take([0, 1]), n=3)["a"].flatten().tolist()) <= {3.0, 7.0}
    assert made.decode(torch.zeros(2, 1), units="model")["a"].shape == (2, 1, 2)
    with pytest.raises(
        DataError,
        match=r"row 0, element \(0,\): 5.0 cannot be taken.*one of the categories of training, 3.0, 7.0; relabel",
    ):
        made.encode({"a": torch.tensor([[5.0]])})


def test_whole_numbers_stay_precise():
    dates = torch.tensor([[1_700_000_001], [1_700_000_003]])
    data = dataset(a=dates).fit_transforms({"a": "standardise"})
    seen = Model(data.modalities, latent_dim=1).conform({"a": dates}).data["a"]
    assert seen.tolist() == [[-1], [1]]


@pytest.mark.parametrize("filler", [NAN, -5.0, torch.inf])
def test_fillers_pass_through_no_transform(filler):
    x = torch.tensor([[1.0, 2.0], [filler, 4.0]])
    elements = {"a": torch.tensor([[True, True], [False, True]])}
    fitted = dataset(a=x.clamp(0, 4).nan_to_num(0)).fit_transforms({"a": ["log1p", "standardise"]})
    made = Model(fitted.modalities, latent_dim=1)
    one = made.conform(Batch({"a": x}, elements=elements))
    two = made.conform(Batch({"a": torch.tensor([[1.0, 2.0], [9.0, 4.0]])}, elements=elements))
    assert torch.equal(one.data["a"], two.data["a"])


def test_a_fixed_threshold():
    data = dataset(a=torch.tensor([[3.0, 0.2], [NAN, 0.9]])).fit_transforms(
        {"a": {"name": "binarise", "threshold": 0.5}}
    )
    assert type(data.modalities["a"].likelihood).__name__ == "Bernoulli"
    assert Model(data.modalities, latent_dim=1).conform(data).data["a"].tolist() == [
        [1, 0],
        [0, 1],
    ]


def test_drawn_bits():
    p = torch.rand(200, 5)
    data = dataset(a=p).fit_transforms({"a": {"name": "binarise", "drawn": True}})
    made = Model(data.modalities, latent_dim=1, seed=0)
    made.train()
    uniforms = torch.rand(1, 200, 5)
    seen = []
    made.encoders["a"].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].clone())
    )

    def source(site, shape, dtype, device):
        return uniforms if site == "choice/binarise/a" else torch.zeros(shape, dtype=dtype)

    with mvkit.testing.noise(source):
        made.loss(data.batch)
    assert torch.equal(seen[-1], (uniforms[0] < p).float())
    losses = [
        made.loss(data.batch, generator=torch.Generator().manual_seed(seed)).loss
        for seed in (0, 0, 1)
    ]
    assert losses[0] == losses[1] != losses[2]
    made.eval()
    made.loss(data.batch)
    assert torch.equal(seen[-1], p)
    # the log-likelihood of probabilities is the mean over the draws
    z = torch.zeros(1, 200, 1)
    out, likelihood = made.decoders["a"](z), made.decoders["a"].likelihood
    draws = torch.stack(
        [likelihood.log_prob(out, torch.bernoulli(p), None) for _ in range(3000)]
    ).mean(0)
    torch.testing.assert_close(draws, likelihood.log_prob(out, p, None), atol=0.05, rtol=0)


def test_drawn_bits_repeat_with_the_seed_of_fit():
    data = dataset(a=torch.rand(20, 4)).fit_transforms({"a": {"name": "binarise", "drawn": True}})
    one, two = (
        mvkit.fit(Model(data.modalities, latent_dim=1, seed=0), data, epochs=2, seed=3)["loss"]
        for _ in range(2)
    )
    assert one == two


def test_fitted_numbers_are_in_the_file(tmp_path):
    x = torch.rand(9, 3, dtype=torch.float64) * 7
    data = dataset(a=x, c=torch.tensor([[1.0], [4.0], [2.0]] * 3)).fit_transforms(
        {"a": ["log1p", "standardise"], "c": "one_hot"}
    )
    made = linear(data)
    mvkit.save(made, tmp_path / "m")
    again = mvkit.load(tmp_path / "m")
    assert again.modalities["a"].transform == data.modalities["a"].transform
    z = torch.zeros(1, 2, dtype=torch.float64)
    for name in "ac":
        assert torch.equal(again.decode(z)[name], made.decode(z)[name])
    assert torch.equal(again.conform(data).data["a"], made.conform(data).data["a"])
    json.dumps(mvkit.describe(tmp_path / "m"), allow_nan=False)
    assert "Log1p(), Standardise(over='feature', fitted)" in repr(again)


def test_recipes_and_stacks_keep_transforms():
    data = dataset(a=torch.rand(6, 3) * 50, b=torch.rand(6, 2) * 9).fit_transforms(
        {"a": "standardise", "b": "log1p"}
    )
    for name in ("mopoe", "nexus", "mmvaeplus"):
        made = getattr(recipes, name)(data.modalities, latent_dim=2)
        given = made.translate(data, n=2)
        assert given["a"].shape == (2, 6, 3)
        torch.testing.assert_close(
            data.modalities["a"].restore(made.translate(data, latent="mean", units="model")["a"]),
            made.translate(data, latent="mean")["a"],
        )


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: dataset(a=torch.tensor([[1.0, -3.0]])).fit_transforms({"a": "log1p"}),
            r"row 0, element \(1,\): -3.0 cannot be taken by Log1p\(\); expected numbers above -1",
        ),
        (
            lambda: dataset(a=torch.ones(2, 1)).fit_transforms({"b": "log1p"}),
            "fit_transforms: no modality 'b'",
        ),
        (
            lambda: dataset(a=torch.rand(2, 1)).fit_transforms({"a": "log2"}),
            "fit_transforms.a: unknown transform 'log2'",
        ),
        (
            lambda: dataset(a=torch.rand(2, 1)).fit_transforms({"a": ["one_hot", "log1p"]}),
            "one_hot comes last",
        ),
        (
            lambda: Model({"a": Modality((2,), transform=["standardise"])}),
            r"modalities.a.transform: Standardise\(over='feature'\) is not fitted",
        ),
        (
            lambda: Model({"a": Modality((2,), transform=[OneHot(categories=(1, 2))])}),
            "goes with a categorical likelihood",
        ),
        (
            lambda: OneHot(categories=(1, "a")),
            "categories: got .*; expected different numbers, or different words",
        ),
        (
            lambda: dataset(a=torch.tensor([[0.5], [2.0]])).fit_transforms(
                {"a": {"name": "binarise", "drawn": True}}
            ),
            "row 1.*2.0 cannot be taken by Binarise",
        ),
    ],
)
def test_what_cannot_be_transformed(make, text):
    with pytest.raises((DataError, SpecError), match=text):
        make()


def test_rows_that_one_model_saw_are_not_transformed_twice():
    data = dataset(a=torch.rand(6, 2) * 9, c=torch.tensor([[1.0], [2.0], [NAN]] * 2)).with_missing(
        0.3, of="elements"
    )
    data = data.fit_transforms({"a": ["log1p", "standardise"], "c": "one_hot"})
    one, two = (
        Model({name: data.modalities[name] for name in order}, latent_dim=1)
        for order in ("ac", "ca")
    )
    again, direct = two.conform(one.conform(data)), two.conform(data)
    assert torch.equal(again.mask, direct.mask)
    for name in "ac":
        assert torch.equal(again.data[name], direct.data[name])
    assert torch.equal(again.elements["a"], direct.elements["a"])
    other = Model(data.fit_transforms({"a": "log1p"}).modalities, latent_dim=1)
    with pytest.raises(
        DataError,
        match=r"another model took it through \(Log1p\(\), Standardise.*before `conform`",
    ):
        other.conform(one.conform(data))
    with pytest.raises(DataError, match="with_missing: these rows were conformed to a model"):
        MultimodalDataset(one.conform(data), data.modalities).with_missing(0.1)


def test_rows_that_one_model_saw_keep_the_names_of_their_columns():
    one, two = (
        Model({"a": Modality((2,), features=names)}, latent_dim=1)
        for names in (("x", "y"), ("y", "x"))
    )
    assert two.conform(one.conform({"a": torch.tensor([[1.0, 2.0]])})).data["a"].tolist() == [
        [2, 1]
    ]


def test_values_of_the_model_name_the_raw_value():
    made = Model(
        dataset(a=torch.rand(3, 2)).fit_transforms({"a": "log1p"}).modalities, latent_dim=1
    )
    with pytest.raises(
        DataError, match=r"batch.data\['a'\]: row 1, element \(0,\): -1.5 cannot be taken by Log1p"
    ):
        made.encode({"a": torch.tensor([[0.0, 1.0], [-1.5, 1.0]])})


def test_inverses():
    x = torch.randn(4, 3, dtype=torch.float64).abs()
    steps = (
        Log1p(),
        Standardise(mean=(1.0, 2.0, 3.0), scale=(2.0, 3.0, 4.0), shape=(3,)),
        Binarise(drawn=True),
    )
    for step in steps:
        torch.testing.assert_close(step.inverse(step.forward(x)), x)
        assert step.inverse(torch.zeros(2, 5, 3, dtype=torch.float64)).shape == (2, 5, 3)
    hot = OneHot(categories=("f", "m"))
    assert hot.inverse(hot.forward(torch.tensor([[1.0, 0.0]]))).tolist() == [[1, 0]]


def labelled(name, labels):
    values = torch.arange(len(labels), dtype=torch.float64).reshape(-1, 1)
    return MultimodalDataset.from_arrays(
        {name: values}, label=labels, ids=[f"{name}{i}" for i in range(len(labels))]
    )


def test_pairs_share_their_label():
    labels = [0, 1, 1, 2, 0, 1], [1, 0, 2, 0], [2, 2, 1, 0, 0]
    parts = [labelled(name, one) for name, one in zip("abc", labels, strict=True)]
    data = pair_by_label(parts, times=3, seed=4)
    assert len(data) == 18
    for name, own in zip("abc", labels, strict=True):
        assert [own[int(row)] for row in data.batch.data[name]] == data.labels.tolist()
    assert data.batch.mask.all()
    assert data.ids[0] == (
        "a0",
        f"b{int(data.batch.data['b'][0])}",
        f"c{int(data.batch.data['c'][0])}",
    )
    # two rows of b for the six places of label 0: each three times
    counts = torch.bincount(data.batch.data["b"][data.labels == 0].flatten().long(), minlength=4)
    assert counts.tolist() == [0, 3, 0, 3]
    again, other = (pair_by_label(parts, times=3, seed=seed).batch.data["c"] for seed in (4, 5))
    assert torch.equal(again, data.batch.data["c"])
    assert not torch.equal(other, data.batch.data["c"])


def test_gaps_stay_with_their_rows_when_paired():
    gap = MultimodalDataset.from_arrays(
        {"b": np.array([[np.nan, 1.0], [np.nan, np.nan]])}, label=["x", "y"]
    )
    data = pair_by_label([labelled("a", ["y", "x"]), gap])
    batch = Model(data.modalities, latent_dim=1).conform(data)
    assert batch.mask.tolist() == [[True, False], [True, True]]
    assert batch.elements["b"][1].tolist() == [False, True]


def test_what_cannot_be_paired():
    a, b = labelled("a", [0, 1]), labelled("b", [0, 0])
    for make, text in (
        (lambda: pair_by_label([a, b]), "dataset 1 has no row of label 1; .*leave those rows out"),
        (lambda: pair_by_label([a, a]), "two datasets have a modality of the same name"),
        (
            lambda: pair_by_label([a, dataset(c=torch.ones(2, 1))]),
            "dataset 1 has no labels; .*give label=",
        ),
    ):
        with pytest.raises(DataError, match=text):
            make()
