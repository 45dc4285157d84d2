"""Input that people really feed in: the right result, or one error with modality, column or row,
value and remedy.

Numbers are those of the project's list of 35 kinds; every kind is shown here, or in the test that
`IN_OTHER_TESTS` names.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import mvkit
from mvkit import DataError, Model, MultimodalDataset, ShapeError

pandas = pytest.importorskip("pandas")
A = pandas.DataFrame({"x": [1.0, 2.0, 3.0], "y": [4.0, 5.0, 6.0]}, index=list("pqr"))
SEX = pandas.DataFrame({"sex": ["f", "m", "f"]}, index=list("pqr"))
IN_OTHER_TESTS = {
    3: "test_combinations.py::test_fillers_change_nothing",
    4: "test_errors.py::test_row_with_nothing_observed",
    5: "test_batch.py::test_a_batch_that_is_one_row_and_a_modality_nobody_has",
    7: "test_errors.py::test_wrong_dtype",
    8: "test_errors.py::test_mask_that_disagrees_with_the_data",
    9: "test_transforms.py::test_a_constant_feature_keeps_scale_1_and_is_said",
    10: "test_likelihoods.py::test_values_outside_the_support_are_refused_with_their_place",
    13: "test_likelihoods.py::test_values_outside_the_support_are_refused_with_their_place",
    11: "test_errors.py::test_values_that_a_likelihood_cannot_take",
    12: "test_errors.py::test_values_that_a_likelihood_cannot_take",
    15: "test_batch.py::test_floats_of_any_width",
    18: "test_sources.py::test_any_order_and_any_part_of_the_rows",
    24: "test_errors.py::test_questions_about_modalities",
    25: "test_errors.py::test_bad_values_of_options",
    26: "test_batch.py::test_log_variances_of_50_through_poe",
    32: "test_errors.py::test_wrong_shape",
    33: "test_pipeline.py::test_an_item_that_is_used_again_leaves_earlier_batches_alone",
    35: "test_pipeline.py::test_an_error_of_an_item_arrives_as_it_was_with_its_row",
}
NO_LIKELIHOOD: dict[int, str] = {}


def dataset(**options):
    return MultimodalDataset.from_tables({"a": A}, **options)


def model(data=None, **options):
    return Model((data or dataset()).modalities, latent_dim=1, seed=0, **options)


def arrays(**data):
    return MultimodalDataset.from_arrays({name: np.asarray(x) for name, x in data.items()})


def categories():
    return MultimodalDataset.from_tables({"c": SEX}, modalities={"c": "categorical"})


def sparse():
    return pytest.importorskip("scipy.sparse").eye(3).tocsr()


def odd(column):
    return lambda: MultimodalDataset.from_tables({"a": A.assign(z=column)})


def plain(*lengths):
    return {f"t{i}": pandas.DataFrame({f"x{i}": np.ones(n)}) for i, n in enumerate(lengths)}


NO_NUMBER = (
    r"tables\['a'\]: column 'z', row '{}': {} is no number; expected numbers; convert the column"
)
REFUSED = {
    "1 NaN where nothing is missing": (
        lambda: MultimodalDataset.from_tables({"a": A.where(A != 2)}, missing="none"),
        r"data\['a'\]: row 'q', column 'x': NaN, but nothing is missing \(missing='none'\); fill it in",
    ),
    "1 NaN where a mask says observed": (
        lambda: MultimodalDataset.from_tables(
            {"a": A.where(A != 2)}, missing={"a": np.ones(3, dtype=bool)}
        ),
        "row 'q', column 'x': NaN, but the mask says it is observed; fill it in, or correct what is missing",
    ),
    "2 infinite": (
        lambda: model().encode({"a": A.replace(5.0, np.inf)}),
        r"batch.data\['a'\]: row 1 \(id 'q'\), column 'y': inf cannot be taken; expected finite numbers",
    ),
    "2 infinite where a transform is fitted": (
        lambda: MultimodalDataset.from_tables({"a": A.replace(5.0, -np.inf)}).fit_transforms(
            {"a": "standardise"}
        ),
        r"data\['a'\]: row 1, column 'y': -inf is not finite; expected finite numbers; correct it, or make it NaN",
    ),
    "6 a modality never observed, to be transformed": (
        lambda: arrays(a=np.ones((2, 1)), b=np.full((2, 1), np.nan)).fit_transforms(
            {"b": "standardise"}
        ),
        r"data\['b'\]: nothing is observed; expected one row at least; leave the modality out",
    ),
    "14 pictures of 0…255 for a bernoulli": (
        lambda: Model({"a": mvkit.Modality((1, 8, 8), "bernoulli")}).encode(
            {"a": np.full((1, 1, 8, 8), 200)}
        ),
        r"row 0, element \(0, 0, 0\): 200.0 cannot be taken.*divide pictures of 0…255 by 255",
    ),
    "16 a feature lacks": (
        lambda: model().encode({"a": A[["y"]]}),
        r"batch.data\['a'\]: its columns lack 'x'; expected the 2 columns of training, in any order",
    ),
    "16 a feature too many, another lacks": (
        lambda: model().encode({"a": A.rename(columns={"x": "X"})}),
        "its columns lack 'x' and add 'X'; .*rename, add or drop columns",
    ),
    "16 a wrong number without names": (
        lambda: model().encode({"a": np.ones((1, 3))}),
        r"batch.data\['a'\]: rows of shape \(3,\); expected \(2,\)",
    ),
    "16 two columns of one name": (
        lambda: MultimodalDataset.from_tables({"a": pandas.concat([A, A], axis=1)}),
        "two columns are called 'x'; expected names that differ; rename one",
    ),
    "17 duplicate ids": (
        lambda: MultimodalDataset.from_tables({"a": pandas.concat([A, A.iloc[1:2]]), "b": A}),
        r"data\['a'\]: id 'q' stands twice, in rows 1 and 3; expected each once; drop or merge one",
    ),
    "17 duplicate ids of arrays": (
        lambda: MultimodalDataset.from_arrays({"a": np.ones((2, 1))}, ids=[7, 7]),
        r"data\['a'\]: id 7 stands twice, in rows 0 and 1",
    ),
    "17 no id": (
        lambda: MultimodalDataset.from_tables({"a": A.set_axis(["p", None, "r"])}),
        r"tables\['a'\]: row 1 has no id; expected one for each",
    ),
    "19 disjoint ids": (
        lambda: MultimodalDataset.from_tables({"a": A, "b": A.set_axis([1, 2, 3])}),
        r"data\['a'\]: none of its ids, such as 'p' \(str\), is in another modality, such as 1 \(int\) of 'b'; make",
    ),
    "20 an empty table": (
        lambda: MultimodalDataset.from_tables({"a": A.iloc[:0]}),
        r"data\['a'\]: it is empty; expected one row at least",
    ),
    "20 no table": (
        lambda: MultimodalDataset.from_tables({}),
        "data: it is empty; expected one row of one modality",
    ),
    "27 a category unseen in training": (
        lambda: model(categories()).encode({"c": SEX.replace("m", "x")}),
        r"batch.data\['c'\]: row 1 \(id 'q'\), column 'sex': 'x' is text; expected one of the categories of training, "
        "'f', 'm'; relabel it",
    ),
    "29 sparse, scipy": (
        lambda: arrays_of(sparse()),
        r"data\['a'\]: got a sparse csr_\w+; .*give .toarray\(\)",
    ),
    "29 sparse, torch": (
        lambda: arrays_of(torch.eye(2).to_sparse()),
        r"data\['a'\]: got a sparse tensor; .*to_dense",
    ),
    "29 strings among numbers": (odd(["1", "n/a", "3"]), NO_NUMBER.format("q", "'n/a'")),
    "29 an object column with a string": (
        odd(np.array([1.5, 2, "x"], dtype=object)),
        NO_NUMBER.format("r", "'x'"),
    ),
    "29 dates": (
        odd(pandas.to_datetime(["2020-01-01"] * 3)),
        NO_NUMBER.format("p", r"Timestamp\(.*\)"),
    ),
    "29 complex numbers": (odd([1.0, 2j, 3.0]), NO_NUMBER.format("p", r"\(1\+0j\)")),
    "29 an array of strings": (
        lambda: arrays(a=["f", "m"]),
        r"data\['a'\]: got values of type <U1; expected numbers",
    ),
    "29 text for a model of numbers": (
        lambda: model().encode({"a": A.astype(str)}),
        r"row 0 \(id 'p'\), column 'x': '1.0' is text; expected numbers; convert it",
    ),
    "30 different lengths without ids": (
        lambda: arrays(a=np.ones((2, 1)), b=np.ones((3, 1))),
        r"data: \{'a': 2, 'b': 3\} rows, and no ids; expected as many in each; give ids=",
    ),
    "30 tables of different lengths that nobody gave ids": (
        lambda: MultimodalDataset.from_tables(plain(2, 3)),
        r"tables: no ids, and lengths that differ: \{'t0': 2, 't1': 3\}; expected an index of ids",
    ),
    "30 such tables for a model": (
        lambda: model(MultimodalDataset.from_tables(plain(2, 2))).encode(plain(2, 3)),
        "tables: no ids, and lengths that differ",
    ),
    "30 ids for some": (
        lambda: MultimodalDataset.from_arrays(
            {"a": np.ones((2, 1)), "b": np.ones((2, 1))}, ids={"a": [1, 2]}
        ),
        r"data\['b'\]: it has no ids, others have; give ids for each modality, or for none",
    ),
}


def arrays_of(x):
    return MultimodalDataset.from_arrays({"a": x})


@pytest.mark.parametrize("kind", REFUSED)
def test_is_refused(kind):
    make, text = REFUSED[kind]
    with pytest.raises((DataError, ShapeError), match=text):
        make()


def test_6_a_modality_that_is_never_observed_trains():
    data = arrays(a=np.ones((4, 1)), b=np.full((4, 1), np.nan))
    vae = model(data)
    mvkit.fit(vae, data, epochs=1)
    assert torch.isfinite(vae.encode(data)).all()


def test_14_pictures_that_nobody_scaled_are_said_and_a_transform_helps():
    x = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    data = MultimodalDataset.from_arrays(
        {"a": x}, modalities={"a": {"likelihood": {"name": "normal", "scale": 0.25}}}
    )
    with pytest.warns(UserWarning, match="divide pictures of 0…255 by 255"):
        model(data).conform(data)
    scaled = data.fit_transforms({"a": {"name": "standardise", "over": "all"}})
    assert model(scaled).conform(scaled).data["a"].abs().max() < 2


def test_16_features_are_matched_by_name():
    vae = model()
    assert torch.equal(vae.encode({"a": A[["y", "x"]]}), vae.encode({"a": A}))
    gap = A.where(A != 5)
    assert torch.equal(vae.encode({"a": gap[["y", "x"]]}), vae.encode({"a": gap}))
    seen = np.array([[True, False], [True, True], [False, True]])
    turned = MultimodalDataset.from_tables(
        {"a": A[["y", "x"]]}, missing={"a": seen[:, ::-1].copy()}
    )
    assert torch.equal(vae.encode(turned), vae.encode(dataset(missing={"a": seen})))
    assert torch.equal(vae.conform(turned).elements["a"], torch.from_numpy(seen))


def test_19_disjoint_ids_work_when_they_are_meant():
    data = MultimodalDataset.from_tables({"a": A, "c": A.set_axis([1, 2, 3])}, disjoint=True)
    assert data.batch.mask.sum(1).tolist() == [1] * 6


def test_one_modality_only_works():
    mvkit.fit(model(), dataset(), epochs=1)


@pytest.mark.parametrize("rows", [1, 5], ids=["21 one sample", "22 last batch of one row"])
@pytest.mark.parametrize("objective", ["elbo", "dreg"])
def test_21_22_few_rows(rows, objective):
    data = arrays(a=np.random.randn(rows, 2), b=np.random.randn(rows, 1))
    history = mvkit.fit(model(data, objective=objective), data, epochs=1, batch_size=4)
    assert np.isfinite(history["loss"][0])


def test_23_a_batch_larger_than_the_data():
    data = arrays(a=np.random.randn(3, 2))
    first, second = (
        mvkit.fit(model(data), data, epochs=2, batch_size=size)["loss"] for size in (3, 1000)
    )
    assert first == second


@pytest.mark.skipif(not torch.cuda.is_available(), reason="one device only")
def test_28_data_and_model_on_different_devices():
    data = dataset()
    vae = model(data).to("cuda")
    assert vae.encode(data).device.type == "cuda"
    back = model(data)
    assert back.encode(data.batch.to("cuda")).device.type == "cpu"


def test_29_columns_of_objects_that_are_numbers():
    from decimal import Decimal

    table = A.assign(
        d=[Decimal("1.5"), None, Decimal(2)],
        n=pandas.array([1, None, 3], dtype="Int64"),
        b=pandas.array([True, None, False], dtype="boolean"),
        none=[None] * 3,
    )
    x = MultimodalDataset.from_tables({"a": table}).batch.data["a"][:, 2:]
    nan = np.nan
    np.testing.assert_array_equal(
        x.numpy(), [[1.5, 1, 1, nan], [nan, nan, nan, nan], [2, 3, 0, nan]]
    )


@pytest.mark.parametrize(
    "turn", [np.asfortranarray, lambda x: np.repeat(x, 2, 0)[::2], lambda x: x.astype(">f4")]
)
def test_29_arrays_of_any_layout(turn):
    x = np.arange(6.0).reshape(3, 2)
    turned = turn(x)
    turned.setflags(write=False)
    assert arrays_of(turned).batch.data["a"].tolist() == x.tolist()


def test_31_flat_numbers():
    data = arrays(a=np.array([1.0, 2.0, np.nan]))
    assert data.modalities["a"].shape == (1,)
    assert model(data).conform({"a": np.array([1.0, 2.0])}).data["a"].shape == (2, 1)


@pytest.mark.parametrize(
    "label", [["x", "y", "x"], [0.5, 1.5, 0.5], [3, 1, 3], [True, False, True]], ids=str
)
def test_34_labels_of_any_kind_stay_out_of_the_model(label):
    data = MultimodalDataset.from_arrays({"a": A.to_numpy()}, label=label)
    assert data.labels.tolist() == label
    assert data.__getitems__([2, 1]).extra["label"].tolist() == [label[2], label[1]]
    mvkit.fit(model(data), data, epochs=1, batch_size=2)


@pytest.mark.parametrize("number", IN_OTHER_TESTS)
def test_is_shown_elsewhere(number):
    file, name = IN_OTHER_TESTS[number].split("::")
    assert f"def {name}(" in (Path(__file__).parent / file).read_text()


def test_every_kind_is_shown():
    own = [
        int(n)
        for name in [*REFUSED, *globals()]
        for n in re.findall(r"\d+", name.removeprefix("test_"))[:1]
    ]
    assert set(own) | {22} | set(IN_OTHER_TESTS) | set(NO_LIKELIHOOD) == set(range(1, 36))
    # there is nothing to refuse yet: whoever adds these adds their bad values here
    assert not set(NO_LIKELIHOOD.values()) & set(mvkit.available("likelihood"))
