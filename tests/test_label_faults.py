"""Labels as people have them: words, negative classes, gaps, numbers; in reports and pictures."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import mvkit
from mvkit import Batch, Modality, Model, MultimodalDataset, RequestError, plots
from mvkit.evaluation.labels import Classes, as_numbers, words_of

SMALL = {"name": "mlp", "hidden": (8,)}
CHOSEN = ["probe", "clusters", "coherence"]


@pytest.fixture(scope="module")
def model():
    modalities = {
        name: Modality((d,), encoder=SMALL, decoder=SMALL) for name, d in (("a", 3), ("b", 2))
    }
    return Model(modalities, latent_dim=2, seed=0).eval()


def arrays(b=60, seed=0):
    rng = np.random.default_rng(seed)
    return {"a": rng.normal(size=(b, 3)).astype("f4"), "b": rng.normal(size=(b, 2)).astype("f4")}


def data(label, **options):
    return MultimodalDataset.from_arrays(arrays(len(label), **options), label=label)


def report(model, rows, metrics=CHOSEN, **options):
    return mvkit.evaluate(model, rows, metrics, progress=False, **options)


def same(one, other):
    assert len(one.scores) == len(other.scores) > 0
    assert repr(one.scores) == repr(other.scores)
    assert one.notes == other.notes


WORDS = ["T cell", "B cell", "NK"] * 20
PLACES = [2, 0, 1] * 20  # of the words in sorted order


def test_words_are_scored_as_their_places_are(model):
    same(report(model, data(WORDS)), report(model, data(PLACES)))
    series = pd.Series(WORDS, dtype="category")
    rows = Batch(data(WORDS).batch.data, None, extra={"label": series})
    same(report(model, rows), report(model, data(PLACES)))


def test_words_of_data_and_train_are_numbered_together(model):
    train = data(["NK", "T cell"] * 30, seed=1)
    numbers = data([1, 2] * 30, seed=1)
    same(report(model, data(WORDS), train=train), report(model, data(PLACES), train=numbers))


@pytest.mark.parametrize("none", [None, np.nan, pd.NA])
def test_rows_without_a_word_are_left_out(model, none):
    label = [none if i % 4 == 0 else word for i, word in enumerate(WORDS)]
    rows = Batch(data(WORDS).batch.data, None, extra={"label": np.array(label, dtype=object)})
    places = [np.nan if i % 4 == 0 else float(place) for i, place in enumerate(PLACES)]
    numbers = Batch(data(WORDS).batch.data, None, extra={"label": np.array(places)})
    same(report(model, rows), report(model, numbers))
    clusters = report(model, rows, ["clusters"])
    assert {score.rows for score in clusters.scores} == {45}


def test_minus_one_is_a_class(model):
    label = [-1, 1] * 30
    train = data(label, seed=1)
    measured = report(model, data(label), train=train)
    note = "extra['label']: -1 is a class like any other; give NaN where a row has none"
    assert note in measured.notes
    rows = {score.name: score.rows for score in measured.scores}
    assert rows["accuracy given all"] == rows["k-means, ARI"] == 60
    # noise has nothing to do with classes
    assert abs(measured["clusters/k-means, ARI"]) < 0.3
    assert measured["clusters/k-means, accuracy"] < 0.8


@pytest.mark.parametrize("classes", [(-1, 1), (-5, -3), (-1, 0), (10, 20)])
def test_every_pair_of_classes_can_be_told_apart(model, classes):
    codes = model.encode(arrays(200))[:, 0]
    label = torch.where(codes > codes.median(), *classes)
    measured = report(model, data(label.tolist()), ["probe"], train=data(label.tolist()))
    assert measured["probe/accuracy given all"] > 0.95


def test_clusters_agree_as_an_independent_library_says(model):
    label = np.where(arrays()["a"][:, 0] > 0, 3, -2)
    measured = report(model, data(label.tolist()), [{"name": "clusters", "k": 2}])
    from sklearn.cluster import KMeans

    codes = model.encode(arrays()).double().numpy()
    parts = KMeans(2, n_init=10, random_state=0).fit(codes).labels_
    assert measured["clusters/k-means, ARI"] == pytest.approx(
        adjusted_rand_score(label, parts), abs=0.15
    )
    expected = normalized_mutual_info_score(label, parts)
    assert measured["clusters/k-means, NMI"] == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize("only", [-1, 0, 7, "T cell", 2.0])
def test_of_one_class_there_is_no_score(model, only):
    measured = report(model, data([only] * 40), train=data([only] * 40, seed=1))
    assert not measured.scores
    notes = "\n".join(measured.notes)
    assert "clusters: all labelled rows have one extra['label']; needs two classes" in notes
    assert "probe: given all: needs rows of two classes to fit on" in notes
    assert "coherence: needs rows of two classes to fit a classifier of 'a' on" in notes


def test_classifiers_of_the_user_say_classes_as_the_labels_do(model):
    def of(values):
        def classify(x):
            return np.where(x[:, 0] > 0, *values)

        return classify

    rows = arrays(400)
    for name in ("a", "b"):
        rows["b"][:, 0] = rows["a"][:, 0]
    for classes in ((-1, 1), (1, 0), (20, 10)):
        label = np.where(rows["a"][:, 0] > 0, *classes).tolist()
        told = MultimodalDataset.from_arrays(rows, label=label)
        measured = report(
            model, told, ["coherence"], classifiers={name: of(classes) for name in ("a", "b")}
        )
        assert measured["coherence/classifier of a, real values"] == 1
        assert measured["coherence/classifier of b, real values"] == 1


def test_a_name_of_labels_that_is_not_there_is_refused(model):
    rows = Batch(data(WORDS).batch.data, None, extra={"cell": np.array(WORDS)})
    with pytest.raises(
        RequestError, match=r"label='cel' is not in the data's extra; did you mean 'cell'"
    ):
        report(model, rows, label="cel")
    assert report(model, rows, label="cell").scores
    assert "probe: no labels: extra['label'] is not in the data" in report(model, rows).notes


def test_numbers_in_object_arrays_are_numbers():
    numbers = np.array([1, None, 2.0, np.bool_(True)], dtype=object)
    assert words_of(numbers) is None
    assert as_numbers(numbers, None).nan_to_num(-9).tolist() == [1, -9, 2, 1]
    assert words_of(numbers, np.array(["x"])) == ("1", "2.0", "True", "x")
    assert Classes.of(torch.tensor([0, 5])).values == ()
    assert Classes.of(torch.tensor([3.0, torch.nan, -4.0])).values == (-4, 3)
    assert Classes((-4, 3)).indices(torch.tensor([3, -4, 8, -9])).tolist() == [1, 0, -1, -1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_measured(dtype):
    modalities = {name: Modality((d,), encoder=SMALL) for name, d in (("a", 3), ("b", 2))}
    mixture = Model(modalities, latent_dim=2, prior="mog", seed=0).eval()
    label = [0, 1, 2] * 20
    asked = [{"name": "likelihood", "n": 50}, "reconstruction", "calibration", *CHOSEN]
    exact = report(mixture, data(label), asked)
    half = report(mixture.to(dtype), data(label), asked)
    assert [score.name for score in half.scores] == [score.name for score in exact.scores]
    for name in ("likelihood/log p(all)", "reconstruction/a, MSE"):
        assert half[name] == pytest.approx(exact[name], rel=0.05)
    plots.latent_map(mixture, data(label), colour="cluster").figure.canvas.draw()
    plots.drivers(mixture, data(label)).figure.canvas.draw()
    plots.imputation(mixture, data(label), "a", n=39).figure.canvas.draw()


def offsets(collection):
    return np.asarray(collection.get_offsets())


@pytest.mark.parametrize(
    ("label", "texts"),
    [
        ([np.nan if i % 2 else float(i % 3) for i in range(60)], ["none", "0", "1", "2"]),
        ([None if i % 3 == 0 else "ab"[i % 2] for i in range(60)], ["none", "a", "b"]),
        (["_hidden", "$x", r"a\$b", "x^2$$"] * 15, ["$x", "_hidden", r"a\$b", "x^2$$"]),
        ([None] * 59 + ["only"], ["none", "only"]),
    ],
)
def test_every_row_is_on_the_map(model, label, texts):
    rows = Batch(data(PLACES).batch.data, None, extra={"label": np.array(label, dtype=object)})
    ax = plots.latent_map(model, rows)
    ax.figure.canvas.draw()
    shown = [text.get_text().replace(r"\$", "$") for text in ax.get_legend().get_texts()]
    assert shown == texts  # matplotlib shows an escaped dollar as a dollar
    every = np.concatenate([offsets(collection) for collection in ax.collections])
    expected = np.asarray(plots.latent_map(model, rows, colour=None).collections[0].get_offsets())
    assert sorted(map(tuple, every)) == sorted(map(tuple, expected))


def test_rows_without_a_label_are_grey(model):
    label = [np.nan if i < 20 else float(i % 2) for i in range(60)]
    ax = plots.latent_map(model, data(label))
    places = {len(offsets(part)): part.get_facecolor()[0] for part in ax.collections[:1]}
    red, green, blue, _ = places[20]
    assert red == green == blue


def test_numbers_have_a_scale_of_colours(model):
    age = np.linspace(20, 80, 60)
    age[:10] = np.nan
    ax = plots.latent_map(model, data(age.tolist()))
    ax.figure.canvas.draw()
    grey, drawn = ax.collections
    assert len(offsets(grey)) == 10
    np.testing.assert_allclose(drawn.get_array(), age[10:])
    assert drawn.colorbar.ax.get_ylabel() == "label"
    assert (drawn.norm.vmin, drawn.norm.vmax) == pytest.approx((age[10], 80))
    whole = plots.latent_map(model, data(list(range(60))))
    assert whole.collections[0].colorbar is not None
    few = plots.latent_map(model, data([i % 20 for i in range(60)]))
    assert len(few.collections) == 20


def test_labels_that_are_no_labels_are_refused(model):
    rows = Batch(data(PLACES).batch.data, None, extra={"place": np.zeros((60, 2))})
    with pytest.raises(
        RequestError, match=r"extra\['place'\] has shape \(60, 2\); expected a label"
    ):
        plots.latent_map(model, rows, colour="place")


NAMES = ("a$x_{$", "x^2$$", r"\$\alpha$", "$", "_")


def test_names_that_are_no_formulas_are_drawn():
    shapes = dict.fromkeys(NAMES, (1, 4, 4))
    odd = Model(shapes, latent_dim=2, prior="mog", seed=0).eval()
    rows = {name: torch.rand(5, 1, 4, 4) for name in NAMES}
    for axes in (
        plots.translations(odd, rows),
        plots.cluster_samples(odd, clusters=[0]),
        plots.traversal(odd, NAMES[0]),
        plots.imputation(odd, rows, NAMES[2], n=39),
        plots.drivers(odd, rows),
        plots.losses([{"loss": 1.0, "a$x_{$": 2.0}], terms=["a$x_{$"]),
    ):
        plots.figure_of(axes).canvas.draw()
    titles = [ax.get_title() for ax in plots.translations(odd, rows)[0]]
    assert [title.replace(r"\$", "$") for title in titles] == list(NAMES)
