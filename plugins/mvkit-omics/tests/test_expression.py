"""Denoised expression, latents and intervals against loops and closed forms."""

import mvkit_omics
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from mvkit_omics import (
    SparseRows,
    denoised,
    differential_expression,
    feature_relevance,
    imputed,
    latents,
)
from question_models import BATCHES, GENES, PROTEINS, cells, model_of

import mvkit
from mvkit import Batch, DataError, Modality, Model, MultimodalDataset, RequestError
from mvkit.core import noise


def softmax(logits):
    values = [float(torch.exp(logit)) for logit in logits]
    return [value / sum(values) for value in values]


def shares_at(model, z, batch):
    """Shares of one cell by the decoder's own weights, (f,), as a list."""
    context = torch.zeros(3, dtype=torch.float64)
    context[BATCHES.index(batch)] = 1.0
    return softmax(model.decoders["rna"](z[None], context[None])[0])


@torch.no_grad()
@pytest.mark.parametrize("aggregator", ["poe", "mopoe", "moe"])
def test_batch_corrected_expression_is_the_mean_of_a_loop_over_levels(aggregator):
    model = model_of(aggregator=aggregator)
    rows = cells()
    z = model.encode(rows)
    table = denoised(model, rows, "rna", covariates={"batch": ["p1", "p3"]}, n=None)
    assert table.index.tolist() == rows.extra["id"]
    assert tuple(table.columns) == GENES
    for i in range(len(rows)):
        first = shares_at(model, z[i], "p1")
        second = shares_at(model, z[i], "p3")
        for f in range(5):
            assert abs(table.iloc[i, f] - (first[f] + second[f]) / 2) < 1e-9


@torch.no_grad()
def test_expression_is_of_the_cells_own_batch_unless_another_is_stated():
    model = model_of()
    rows = cells()
    z = model.encode(rows)
    own = denoised(model, rows, "rna", n=None)
    for i in range(len(rows)):
        expected = shares_at(model, z[i], rows.extra["batch"][i])
        assert max(abs(own.iloc[i, f] - expected[f]) for f in range(5)) < 1e-9


@torch.no_grad()
def test_expression_averages_over_draws_given_some_modalities():
    model = model_of()
    rows = cells()
    table = denoised(
        model, rows, "rna", given="rna", covariates={"batch": "all"}, n=3, seed=5, empty="prior"
    )
    total = torch.zeros(len(rows), 5, dtype=torch.float64)
    for level in BATCHES:
        generator = noise.seeded(noise.seed_of(5, 0))  # the same draws of z for every level
        values = model.translate(
            rows,
            "rna",
            "rna",
            3,
            covariates={"batch": level},
            exposure={"rna": 1.0},
            empty="prior",
            generator=generator,
        )["rna"]
        total += values[0] + values[1] + values[2]
    assert abs(table.to_numpy() - (total / 9).numpy()).max() < 1e-9
    assert abs(table.sum(1) - 1).max() < 1e-9


def test_expression_is_the_same_in_blocks(monkeypatch):
    model = model_of()
    rows = cells()
    whole = denoised(model, rows, "protein", n=None)
    monkeypatch.setattr("mvkit_omics.asking.ROWS", 7)
    assert abs(whole - denoised(model, rows, "protein", n=None)).to_numpy().max() < 1e-12


@torch.no_grad()
def test_proteins_have_no_background_unless_it_is_asked_for():
    model = model_of()
    rows = cells()
    foreground = denoised(model, rows, "protein", n=None)
    whole = denoised(model, rows, "protein", n=None, background=True)
    expected = model.translate(rows, "protein", latent="mean", background=False)["protein"][0]
    assert abs(foreground.to_numpy() - expected.numpy()).max() < 1e-12
    assert (whole > foreground).all(axis=None)


def test_expression_of_some_features_and_exposures():
    model = model_of()
    rows = cells()
    shares = denoised(model, rows, "rna", n=None)
    counts = denoised(model, rows, "rna", n=None, features=["g3", "g1"], exposure=1e4)
    pd.testing.assert_frame_equal(counts, 1e4 * shares[["g3", "g1"]])
    own = denoised(model, rows.take(slice(0, 1)), "rna", n=None, exposure=None)
    total = float(rows.data["rna"][0].sum())
    pd.testing.assert_frame_equal(own, total * shares.iloc[:1])


def test_latents_are_those_of_encode():
    model = model_of()
    rows = cells()
    table = latents(model, rows, "rna", empty="prior")
    assert torch.equal(torch.tensor(table.to_numpy()), model.encode(rows, "rna", empty="prior"))
    assert table.index[4] == "cell4"


def test_arrays_without_ids_are_numbered():
    model = Model({"rna": Modality((3,), "poisson")}, latent_dim=1, seed=0)
    table = denoised(model, {"rna": torch.ones(4, 3)}, n=2)
    assert table.index.tolist() == [0, 1, 2, 3]
    assert table.columns.tolist() == [0, 1, 2]


def gaussian_pair():
    """x ~ N(z, 0.5²), y = 2 z + 1 + noise of 0.3; and the exact posterior given x."""
    modalities = {
        "x": Modality((1,), {"name": "normal", "scale": 0.5}, encoder="linear", decoder="linear"),
        "y": Modality((1,), {"name": "normal", "scale": 0.3}, encoder="linear", decoder="linear"),
    }
    return Model(modalities, latent_dim=1, aggregator={"name": "poe"}, seed=0).double()


@torch.no_grad()
def test_intervals_of_imputed_values_are_those_of_the_normal_law():
    model = gaussian_pair()
    x = torch.linspace(-2, 2, 5).double()[:, None]
    posterior = model.posterior({"x": x}, "x")
    loc, scale = posterior.loc[0, :, 0], posterior.scale[0, :, 0]
    network = model.decoders["y"]
    slope = float(network(torch.ones(1, 1).double()) - network(torch.zeros(1, 1).double()))
    start = float(network(torch.zeros(1, 1).double()))
    n = 20_000
    answer = imputed(model, {"x": x}, "y", n=n, quantiles=(0.1, 0.9))
    sd = torch.sqrt((slope * scale) ** 2 + 0.3**2)
    se = float(sd.max()) / n**0.5
    assert abs(answer.mean[0].to_numpy() - (start + slope * loc).numpy()).max() < 5 * se
    assert abs(answer.sd[0].to_numpy() - sd.numpy()).max() < 5 * se
    low, high = answer.interval()
    reach = 1.2815515655446004  # of the standard normal's 90 %
    wide = (
        5 * se * (0.09**0.5) / 0.17549833
    )  # standard error of a quantile: sqrt(q (1 - q)) / density
    assert abs(low[0].to_numpy() - (start + slope * loc - reach * sd).numpy()).max() < wide
    assert abs(high[0].to_numpy() - (start + slope * loc + reach * sd).numpy()).max() < wide
    certain = imputed(model, {"x": x}, "y", of="mean", n=n, quantiles=(0.1, 0.9))
    assert abs(certain.sd[0].to_numpy() - abs(slope * scale).numpy()).max() < 5 * se


def test_levels_are_pooled_in_intervals():
    model = model_of()
    rows = cells(6, gaps=False)
    both = imputed(
        model,
        rows,
        "protein",
        of="mean",
        covariates={"batch": ["p1", "p2"]},
        n=4,
        quantiles=(0.0, 1.0),
    )
    single = [
        imputed(
            model,
            rows,
            "protein",
            of="mean",
            covariates={"batch": level},
            n=4,
            quantiles=(0.0, 1.0),
        )
        for level in ("p1", "p2")
    ]
    low, high = both.interval()
    lows, highs = zip(*(answer.interval() for answer in single), strict=True)
    pd.testing.assert_frame_equal(low, lows[0].where(lows[0] < lows[1], lows[1]))
    pd.testing.assert_frame_equal(high, highs[0].where(highs[0] > highs[1], highs[1]))
    assert tuple(both.mean.columns) == PROTEINS


def test_sparse_rows_are_asked_alike():
    model, rows = model_of(aggregator="mopoe"), cells()
    dense = MultimodalDataset.from_arrays(
        {
            name: np.where(rows.mask[:, [i]], rows.data[name], np.nan)
            for i, name in enumerate(("rna", "protein"))
        },
        ids=rows.extra["id"],
        label=rows.extra["kind"],
        covariates={"batch": rows.extra["batch"]},
        modalities=dict(model.modalities),
    )
    index = {
        name: np.where(rows.mask[:, i], np.arange(30), -1)
        for i, name in enumerate(("rna", "protein"))
    }
    sparse = SparseRows(
        {name: scipy.sparse.csr_matrix(x.numpy()) for name, x in rows.data.items()},
        dict(model.modalities),
        rows=index,
        ids=rows.extra["id"],
        label=rows.extra["kind"],
        covariates={"batch": rows.extra["batch"]},
    )
    options = {"by": "label", "modality": "rna", "pairs": 100}
    for ask in (
        lambda data: latents(model, data),
        lambda data: denoised(model, data, "rna", covariates={"batch": "all"}),
        lambda data: imputed(model, data, "protein", "rna", empty="prior", n=5).mean,
        lambda data: differential_expression(model, data, "T", "B", **options),
        lambda data: feature_relevance(model, data, "rna"),
    ):
        pd.testing.assert_frame_equal(ask(sparse), ask(dense))


def test_a_stack_is_asked_alike():
    rna = Modality((4,), "poisson", exposure="total", private_dim=2, decoder="linear")
    bottom = Model({"rna": rna}, latent_dim=0, seed=0)
    stack = mvkit.Stack([bottom, Model({"rna": (2,)}, latent_dim=1, seed=0)])
    table = denoised(stack, Batch({"rna": torch.ones(3, 4)}), n=2)
    assert abs(table.sum(1) - 1).max() < 1e-5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (denoised, "denoised: the model has 'rna', 'protein'; expected one of them: modality=…"),
        (
            lambda m, r: denoised(m, r, "rnaa"),
            "denoised: unknown modality 'rnaa'; did you mean 'rna'?",
        ),
        (
            lambda m, r: denoised(3, r),
            "denoised: got int as its model; expected a Model or a Stack, then the rows",
        ),
        (
            lambda m, r: denoised(m, 3, "rna"),
            "got int; expected a MultimodalDataset, a Batch or a mapping of arrays; read MuData by mvkit_omics.from_mudata",
        ),
        (
            lambda m, r: denoised(m, r, "rna", covariates={"batches": "p1"}),
            "denoised: no covariate 'batches' in the model; did you mean 'batch'?",
        ),
        (
            lambda m, r: denoised(m, r, "rna", covariates={"batch": []}),
            "denoised: covariates['batch'] is an empty list; expected one value",
        ),
        (
            lambda m, r: denoised(m, r, "rna", features=["g9"]),
            "denoised: no feature 'g9' in 'rna'; did you mean 'g4'?",
        ),
        (
            lambda m, r: imputed(m, r, "protein", quantiles=(2,)),
            "imputed: quantiles=(2,); expected shares in [0, 1], one at least",
        ),
        (
            lambda m, r: imputed(m, r, "protein", background=False),
            "imputed: background=False and of='counts'; expected of='mean', since what is measured holds the background",
        ),
    ],
)
def test_what_cannot_be_asked_is_said(call, message):
    with pytest.raises(RequestError) as error:
        call(model_of(), cells())
    assert str(error.value) == message


def test_quantiles_are_those_of_numpy():
    model, rows = model_of(), cells(5, gaps=False)
    shares = (0.0, 0.07, 0.5, 1.0)
    answer = imputed(model, rows, "protein", "rna", n=9, quantiles=shares)
    generator = noise.seeded(noise.seed_of(0, 0))
    draws = model.translate(rows, "protein", "rna", 9, sample=True, generator=generator)["protein"]
    for share in shares:
        expected = np.quantile(draws.numpy(), share, axis=0)
        assert abs(answer.quantiles[share].to_numpy() - expected).max() < 1e-9


def test_given_nothing_all_cells_are_the_prior():
    model, rows = model_of(), cells(4)
    table = denoised(model, rows, "rna", given=(), covariates={"batch": "p1"}, n=None)
    expected = model.decode(
        torch.zeros(1, 2).double(), covariates={"batch": "p1"}, exposure={"rna": 1.0}
    )
    assert abs(table.to_numpy() - expected["rna"].numpy()).max() < 1e-9
    assert (latents(model, rows, ()) == 0).all(axis=None)


def test_no_cells_are_no_question():
    rows = cells().take(torch.zeros(30, dtype=torch.bool))
    with pytest.raises(DataError, match="there are no cells; expected one at least"):
        denoised(model_of(), rows, "rna")


def test_all_levels_of_a_number_are_refused():
    model = model_of(covariates={"batch": BATCHES, "age": mvkit.Covariate()})
    with pytest.raises(RequestError, match="covariate 'age' is a number, which has no levels"):
        denoised(model, cells(), "rna", covariates={"age": "all"})


def test_names_are_listed_and_unknown_ones_refused():
    assert "denoised" in dir(mvkit_omics)
    with pytest.raises(AttributeError, match="no attribute 'denoise'"):
        mvkit_omics.denoise  # noqa: B018
