"""Pictures that can be read: nothing cut, colours told apart, names and scales of features."""

import itertools

import numpy as np
import pytest
import torch
from test_plots import report

import mvkit
from mvkit import Batch, Modality, RequestError, plots
from mvkit.core import figures
from mvkit.plots.style import DARK, LIGHT, dress

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure
from matplotlib.text import Text

LONG = ("measurements_of_the_first_laboratory", "scan of the left knee", "b", "yes_or_no", "site")
FEATURES = ("creatinine, umol per litre of serum", "age", "$x_{1}$")


def cut(figure):
    """By how many inches something reaches out of a figure; 0 where all is inside."""
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    return max(-box.x0, -box.y0, box.x1 - width, box.y1 - height, 0.0)


@pytest.fixture(scope="module")
def model():
    numbers = {"features": FEATURES, "likelihood": "normal"}
    modalities = {
        LONG[0]: Modality((3,), **numbers),
        LONG[1]: Modality((1, 4, 4)),
        LONG[2]: Modality((50,)),
        LONG[3]: Modality((2,), "bernoulli", features=("smokes", "drinks")),
        LONG[4]: Modality((1, 3), "categorical"),
    }
    return mvkit.Model(modalities, latent_dim=3, prior="mog", seed=0).eval()


@pytest.fixture(scope="module")
def rows(model):
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randint(3, (40, 1), generator=generator)
    data = {
        LONG[0]: 1e3 * torch.randn(40, 3, generator=generator),
        LONG[1]: torch.rand(40, 1, 4, 4, generator=generator),
        LONG[2]: torch.randn(40, 50, generator=generator),
        LONG[3]: (torch.rand(40, 2, generator=generator) > 0.5).float(),
        LONG[4]: torch.eye(3)[kinds],
    }
    data[LONG[0]][:5, 1] = torch.nan
    words = [f"a class of a long name {i % 4}" for i in range(40)]
    return Batch(data, extra={"label": words})


HISTORY = [
    {"loss": 1e6 / 9**epoch + 40 - epoch, "bound": -1e6 / 9**epoch - 40 + epoch, "kl": 9.0}
    | {f"log_px/{name}": -100.0 * i for i, name in enumerate(LONG)}
    | {"valid/bound": -1e6 / 9**epoch - 41 + epoch, "valid/kl": 9.5, "stage": epoch // 12}
    for epoch in range(20)
]


def every(model, rows):
    return {
        "losses": lambda **o: plots.losses(HISTORY, **o),
        "terms": lambda ax: plots.draw_terms(ax, HISTORY),
        "latent_map": lambda **o: plots.latent_map(model, rows, **o),
        "by cluster": lambda **o: plots.latent_map(model, rows, colour="cluster", **o),
        "by number": lambda **o: plots.latent_map(model, rows, colour=FEATURES[0], **o),
        "cluster_sizes": lambda **o: plots.cluster_sizes(model, rows, **o),
        "drivers": lambda **o: plots.drivers(model, rows, **o),
        "imputation": lambda **o: plots.imputation(model, rows, LONG[0], row=9, n=39, **o),
        "of classes": lambda **o: plots.imputation(model, rows, LONG[4], n=39, **o),
        "of pictures": lambda **o: plots.imputation(model, rows, LONG[1], n=39, **o),
        "coherence": lambda **o: plots.coherence({LONG[0]: report([0.5, 0.7])}, **o),
        "translations": lambda **o: plots.translations(model, rows, **o),
        "cluster_samples": lambda **o: plots.cluster_samples(model, **o),
        "traversal": lambda **o: plots.traversal(model, LONG[2], **o),
    }


@pytest.mark.parametrize("width", [3.75, 7.5])
@pytest.mark.parametrize("name", list(every(None, None)))
def test_nothing_is_cut(model, rows, name, width):
    draw = every(model, rows)[name]
    grid = name in ("translations", "cluster_samples", "traversal")
    figure = plots.new_figure(width, 6.0 if grid else 2.9)
    draw(**({"figure": figure} if grid else {"ax": figure.add_subplot()}))
    assert cut(figure) < 0.02


def test_what_is_cut_is_noticed():
    figure = Figure((2, 2))
    figure.add_axes((0.1, 0.1, 0.8, 0.8)).set_ylabel("cut")
    assert cut(figure) > 0.02


# Machado, Oliveira and Fernandes, A physiologically-based model for simulation of color vision
# deficiency, 2009: complete protanopia, deuteranopia and tritanopia, of linear RGB
SIGHT = [
    np.eye(3),
    [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
]
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(colour):
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(colour, sight):
    """CIELAB of a colour as it is seen."""
    x, y, z = XYZ @ np.clip(np.array(sight) @ linear(colour), 0, 1) / XYZ.sum(1)
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return np.array([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)])


def test_colours_are_told_apart_by_all_kinds_of_sight():
    for sight in SIGHT:
        seen = [lab(colour, sight) for colour in figures.PALETTE]
        for a, b in itertools.combinations(seen, 2):
            assert np.linalg.norm(a - b) > 15  # about six just noticeable differences


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_colours_are_seen_on_light_and_on_dark_paper(scheme):
    def contrast(a, b):
        darker, lighter = sorted(0.05 + XYZ[1] @ linear(colour) for colour in (a, b))
        return lighter / darker

    assert min(contrast(colour, scheme.paper) for colour in figures.PALETTE) > 2
    assert contrast(scheme.ink, scheme.paper) > 7


def test_a_dark_figure_has_light_text(model, rows):
    figure = plots.new_figure(4, 3)
    ax = plots.imputation(model, rows, LONG[0], row=9, n=39, ax=figure.add_subplot())
    dress(figure, DARK)
    texts = [text for text in figure.findobj(Text) if text.get_text()]
    assert {text.get_color() for text in texts} == {DARK.ink}
    assert ax.lines[1].get_color() == DARK.ink  # the real values
    assert ax.lines[0].get_color() == figures.colour_of(0)


def test_classes_beyond_the_colours_have_other_points():
    looks = {(figures.colour_of(i), figures.marker_of(i)) for i in range(20)}
    assert len(looks) == 20


def test_a_number_is_a_scale_and_its_gaps_are_grey(model, rows):
    ax = plots.latent_map(model, rows, colour="age")
    grey, drawn = ax.collections
    assert len(grey.get_offsets()) == 5
    assert drawn.colorbar is not None
    np.testing.assert_allclose(drawn.get_array(), rows.data[LONG[0]][5:, 1], rtol=1e-6)


def test_bits_and_classes_are_classes(model, rows):
    for colour in ("smokes", f"{LONG[3]}.smokes"):
        legend = plots.latent_map(model, rows, colour=colour).get_legend()
        assert [text.get_text() for text in legend.get_texts()] == ["0.0", "1.0"]
    shown = plots.latent_map(model, rows, colour="site")
    assert len(shown.collections) == 3


def test_words_of_a_category_are_shown():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"place": ["north", "south", None, "north"] * 5}, index=range(20))
    tables = {"where": table, "x": pandas.DataFrame({"x": range(20)})}
    data = mvkit.MultimodalDataset.from_tables(tables, modalities={"where": "categorical"})
    words = mvkit.Model(data.modalities, latent_dim=2, seed=0).eval()
    ax = plots.latent_map(words, data, colour="place")
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == ["none", "north", "south"]
    assert [len(part.get_offsets()) for part in ax.collections] == [5, 10, 5]


def test_a_feature_that_there_is_not(model, rows):
    with pytest.raises(RequestError, match="no 'aeg' in batch.extra; did you mean 'age'"):
        plots.latent_map(model, rows, colour="aeg")


def test_the_bound_and_its_terms_have_panels_of_their_own():
    left = plots.losses(HISTORY)
    _, right = left.figure.axes
    assert [line.get_label() for line in left.lines[:2]] == ["bound", "valid/bound"]
    shown = [line.get_label() for line in right.lines]
    assert {"kl", "valid/kl", f"log_px/{LONG[1]}"} <= set(shown)
    assert not {"bound", "loss", "stage"} & set(shown)
    assert right.get_yscale() == "symlog"  # 9 nats beside 400


def test_the_first_epochs_do_not_flatten_the_others():
    ax = plots.losses(HISTORY, terms=["bound"])
    low, high = ax.get_ylim()
    later = [row["bound"] for row in HISTORY[2:]]
    assert low < min(later)
    assert high - low < 1.5 * (max(later) - min(later))
    assert "beyond the axis" in ax.get_xlabel()
    flat = plots.losses([{"loss": 9.0 - epoch} for epoch in range(9)])
    assert flat.get_xlabel() == "epoch"
    assert flat.get_ylim()[1] > 9


def test_flat_values_are_no_lines():
    few, many = plots.new_figure(4, 3).subplots(1, 2)
    plots.show(few, torch.arange(5.0))
    plots.show(many, torch.arange(50.0))
    assert few.lines[0].get_linestyle() == "None"
    assert not many.lines
    assert many.images[0].get_array().shape == (1, 50)


def test_flat_values_of_a_column_have_one_scale(model, rows):
    axes = plots.translations(model, rows, row=9, to=[LONG[3], LONG[0]])
    limits = {ax.get_ylim() for ax in axes[:, 1] if ax.lines}
    assert axes.shape == (6, 2)
    assert len(limits) == 1
    assert limits != {axes[0, 0].get_ylim()}


def test_coverage_shows_what_intervals_hold():
    from mvkit.evaluation.metric import Score
    from mvkit.evaluation.report import Report

    names = [f"a, b, {level}% intervals hold" for level in (50, 80, 95)]
    scores = [
        Score("calibration", name, share)
        for name, share in zip(names, (0.4, 0.7, 0.9), strict=True)
    ]
    ax = plots.coverage(Report(tuple(scores)))
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[0.5, 0.4], [0.8, 0.7], [0.95, 0.9]])
    with pytest.raises(RequestError, match="evaluate with metrics=\\['calibration'\\]"):
        plots.coverage(Report(()))
