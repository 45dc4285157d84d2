"""Pictures: each shows the numbers that it says it shows, in the axes that it is given."""

import sys

import numpy as np
import pytest
import torch
from helpers import model, rows
from test_truth import exact

import mvkit
from mvkit import Batch, History, RequestError, plots
from mvkit.evaluation.metric import Score
from mvkit.evaluation.report import Report

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure

PICTURES = {"a": (1, 4, 4), "b": (3,)}


@pytest.fixture(scope="module")
def made():
    return mvkit.Model(PICTURES, latent_dim=3, aggregator="mopoe", prior="mog", seed=0).eval()


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    values = {n: torch.rand(40, *shape, generator=generator) for n, shape in PICTURES.items()}
    return Batch(
        values, torch.arange(80).reshape(40, 2) % 7 > 0, extra={"label": torch.arange(40) % 4}
    )


def report(values):
    return Report(
        tuple(Score("coherence", f"given {n}", v, 0.1, 9, n) for n, v in enumerate(values, 1))
    )


def every(made, data):
    return {
        "translations": lambda **o: plots.translations(made, data, row=1, **o),
        "traversal": lambda **o: plots.traversal(made, "a", **o),
        "cluster_samples": lambda **o: plots.cluster_samples(made, clusters=[0, 3], **o),
        "latent_map": lambda **o: plots.latent_map(made, data, **o),
        "latent_map, clusters": lambda **o: plots.latent_map(made, data, colour="cluster", **o),
        "losses": lambda **o: plots.losses([{"stage": 0, "epoch": 1, "loss": 2.0}], **o),
        "coherence": lambda **o: plots.coherence(report([0.5, 0.7]), **o),
        "imputation": lambda **o: plots.imputation(made, data, "b", row=1, n=39, **o),
        "cluster_sizes": lambda **o: plots.cluster_sizes(made, data, **o),
        "drivers": lambda **o: plots.drivers(made, data, **o),
    }


@pytest.mark.parametrize("name", list(every(None, None)))
def test_every_plot_draws_where_it_is_told_and_leaves_pyplot_alone(made, data, name):
    from matplotlib import pyplot as plt

    draw = every(made, data)[name]
    grid = name in ("translations", "traversal", "cluster_samples")
    figure = Figure()
    place = {"figure": figure} if grid else {"ax": figure.add_subplot()}
    for options in (place, {}):
        axes = np.atleast_1d(draw(**options)).flat
        axes[0].figure.canvas.draw()
        assert (axes[0].figure is figure) == bool(options)
    assert not plt.get_fignums()


def test_translations_show_the_decoded_means(made, data):
    axes = plots.translations(made, data, row=1)
    expected = made.translate(data.take([1]), to=["a"], given=["b"], latent="mean")["a"][0, 0, 0]
    assert axes.shape == (3, 2)
    np.testing.assert_allclose(axes[2, 0].images[0].get_array(), expected.clamp(0, 1), rtol=1e-5)
    np.testing.assert_allclose(axes[0, 0].images[0].get_array(), data.data["a"][1, 0], rtol=1e-6)


def test_what_a_row_lacks_stays_empty(made, data):
    lacking = int((~data.mask[:, 0]).nonzero()[0])
    axes = plots.translations(made, data, row=lacking)
    assert not axes[0, 0].images
    assert not axes[1, 0].images
    assert axes[2, 0].images


def test_latent_map_keeps_the_distances_of_two_dimensions():
    two = mvkit.Model(PICTURES, latent_dim=2, seed=0).eval()
    batch = {n: torch.rand(20, *shape) for n, shape in PICTURES.items()}
    points = torch.as_tensor(plots.latent_map(two, batch).collections[0].get_offsets().data)
    torch.testing.assert_close(
        torch.pdist(points), torch.pdist(two.encode(batch).double()), rtol=1e-5, atol=1e-6
    )
    assert points[:, 0].var() >= points[:, 1].var()


def test_latent_map_colours_by_label(made, data):
    ax = plots.latent_map(made, data)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "1", "2", "3"]
    assert sum(len(one.get_offsets()) for one in ax.collections) == 40


def test_traversal_moves_one_dimension(made):
    axes = plots.traversal(made, "b", dims=[2], values=[0.0, 1.5])
    shown = axes[0, 1].lines[0].get_ydata()
    np.testing.assert_allclose(shown, made.decode(torch.tensor([0.0, 0.0, 1.5]))["b"], rtol=1e-6)


def test_losses_over_stages():
    history = History(
        [{"stage": i // 2, "epoch": 1, "loss": 4.0 - i, "valid/loss": 5.0 - i} for i in range(4)]
    )
    ax = plots.losses(history)
    assert [line.get_label() for line in ax.lines][:2] == ["loss", "valid/loss"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [4, 3, 2, 1])
    assert list(ax.lines[2].get_xdata()) == [2.5, 2.5]  # where the second stage begins


def test_coherence_shows_means_over_runs():
    ax = plots.coherence(
        {"one": report([0.2, 0.4]), "two": [report([0.2, 0.4]), report([0.4, 0.8])]}
    )
    lines = [container.lines[0].get_ydata() for container in ax.containers]
    np.testing.assert_allclose(np.array(lines, float), [[0.2, 0.4], [0.3, 0.6]])


def test_imputation_intervals_are_those_of_the_truth():
    model_, data_ = exact("poe", sigma=1.0)
    ax = plots.imputation(model_, data_.test, "m0", row=3, n=4000)
    batch = data_.test.batch
    mean, cov = data_.truth.posterior({k: batch.data[k] for k in ("m1", "m2")})
    weight = data_.truth.weight["m0"]
    centre = (mean @ weight.T + data_.truth.bias["m0"])[3]
    half = (
        1.2816 * (torch.diagonal(weight @ cov @ weight.T) + 1).sqrt()
    )  # the 90 % quantile of N(0, 1)
    np.testing.assert_allclose(by_feature(ax, 0), centre, atol=0.1)
    low, high = np.array(ax.collections[0].get_segments())[:, :, 0].T
    assert low.min() == pytest.approx((centre - half).min().item(), abs=0.15)
    real = batch.data["m0"][3].numpy()
    np.testing.assert_allclose(by_feature(ax, 1), real)
    errors = np.abs(ax.lines[1].get_xdata() - ax.lines[0].get_xdata()) / (high - low)
    assert (np.diff(errors) <= 0).all()  # the largest first


def by_feature(ax, line):
    """What is drawn of features whose lines are called `name 0`, `name 1`, …, in their order."""
    places = [int(text.get_text().split()[-1]) for text in ax.get_yticklabels()]
    return ax.lines[line].get_xdata()[np.argsort(places)]


def test_real_values_are_drawn_in_the_users_units():
    rows = {"a": torch.tensor([[900.0, 5.0], [700.0, 9.0]]), "b": torch.tensor([[1.0], [3.0]])}
    fitted = mvkit.MultimodalDataset.from_arrays(rows).fit_transforms({"a": "standardise"})
    made = mvkit.Model(fitted.modalities, latent_dim=2, seed=0)
    ax = plots.imputation(made, rows, "a", row=1, n=39)
    np.testing.assert_allclose(by_feature(ax, 1), [700.0, 9.0], rtol=1e-6)
    assert abs(np.mean(by_feature(ax, 0)) - 400) < 200  # what is imputed too
    axes = plots.translations(made, rows, row=1)
    np.testing.assert_allclose(axes[0, 0].lines[0].get_ydata(), [700.0, 9.0], rtol=1e-6)


def test_cluster_sizes_count_rows(made, data):
    heights = [bar.get_height() for bar in plots.cluster_sizes(made, data).patches]
    assert heights == torch.bincount(made.clusters(data), minlength=10).tolist()


@pytest.mark.parametrize("aggregator", ["poe", "moe", "mopoe", "mean_message"])
def test_drivers_are_shares(aggregator):
    weight, precision = plots.driver_shares(model(aggregator), rows(7, missing=False))
    assert weight.sum().item() == pytest.approx(1)
    assert precision.sum().item() == pytest.approx(1)
    assert all((share >= 0).all() for share in plots.driver_shares(model(aggregator), rows(14)))


def test_the_surer_expert_drives():
    """q(z|x_m) is the product of its factor, precision 8 and 1 by hand, with the prior's, 1:
    shares 9 to 2 in 11.
    """
    pair = mvkit.Model(
        {"a": mvkit.Modality((1,), encoder="linear"), "b": mvkit.Modality((1,), encoder="linear")},
        latent_dim=1,
    )
    with torch.no_grad():
        for name, precision in (("a", 8.0), ("b", 1.0)):
            encoder = pair.encoders[name][0]
            encoder.weight.zero_()
            encoder.bias.copy_(torch.tensor([0.0, -np.log(precision)]))
    weight, precision = plots.driver_shares(pair, {"a": torch.zeros(4, 1), "b": torch.zeros(4, 1)})
    torch.testing.assert_close(precision, torch.tensor([9 / 11, 2 / 11]), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weight, torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda m, d: plots.translations(m, d, row=99), "plots: no row 99; expected one of 40"),
        (
            lambda m, d: plots.latent_map(m, d, colour="lable"),
            "no 'lable' in batch.extra; did you mean 'label'",
        ),
        (
            lambda m, d: plots.latent_map(m, d, method="tsne"),
            "latent_map: method='tsne'; expected 'pca' or 'umap'",
        ),
        (lambda m, d: plots.traversal(m, "c"), "traversal: unknown modality 'c'"),
        (lambda m, d: plots.traversal(m, "a", dims=[5]), r"dims=\[5\]; expected some of 0 to 2"),
        (lambda m, d: plots.losses([]), "the history is empty"),
        (
            lambda m, d: plots.losses([{"loss": 1.0}], terms=["los"]),
            "no metric 'los'; did you mean 'loss'",
        ),
        (lambda m, d: plots.coherence(Report(())), "has none; evaluate with"),
        (
            lambda m, d: plots.coherence([Report(())]),
            "coherence: got list; expected a dict of reports by name",
        ),
        (
            lambda m, d: plots.imputation(m, d, "a", level=2),
            "level 2; expected a number between 0 and 1",
        ),
        (lambda m, d: plots.imputation(m, d, "z"), "imputation: unknown modality 'z'"),
        (lambda m, d: plots.cluster_samples(model()), "the prior has no clusters"),
    ],
)
def test_requests_that_cannot_be(made, data, draw, message):
    with pytest.raises(RequestError, match=message):
        draw(made, data)


def test_matplotlib_that_is_not_there_is_named(made, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        RequestError, match=r"matplotlib is not installed: pip install 'mvkit\[plots\]'"
    ):
        plots.drivers(made, data)
