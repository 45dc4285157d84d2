"""Errors of single rows name their ids, where rows have some."""

import numpy as np
import pytest
import torch

import mvkit
from mvkit import Batch, DataError, MultimodalDataset, RequestError
from mvkit.errors import NothingObserved

ROWS = 3
IDS = ["AAC", "CGT", "GGA"]
TINY = {"name": "mlp", "hidden": (4,)}


class Gathered:
    """1,500 rows that are gathered by index, the last hundred without `a`."""

    def __len__(self):
        return 1500

    def __getitems__(self, indices):
        data = {"a": torch.ones(len(indices), 2), "b": torch.ones(len(indices), 3)}
        data["a"][torch.tensor(indices) >= 1400] = torch.nan
        return Batch(data, extra={"id": [f"s{i}" for i in indices]})


def model(**options):
    nets = {"encoder": TINY, "decoder": TINY}
    modalities = {"a": mvkit.Modality((2,), **nets), "b": mvkit.Modality((3,), **nets)}
    return mvkit.Model(modalities, latent_dim=2, seed=0, **options)


def exposed():
    counts = {"shape": (2,), "likelihood": "poisson", "exposure": "depth", "input": "log1p"}
    return mvkit.Model({"a": counts}, latent_dim=2, seed=0)


def arrays(gaps_of=()):
    """Values of two modalities, NaN in the row 1 of some."""
    data = {"a": np.ones((ROWS, 2), np.float32), "b": np.ones((ROWS, 3), np.float32)}
    for name in gaps_of:
        data[name][1] = np.nan
    return data


def test_a_row_that_observes_nothing_is_named_by_its_id():
    batch = Batch(arrays("ab"), extra={"id": IDS})
    expected = r"batch: row 1 \(id 'CGT'\) observes nothing; .*; leave the row out"
    for call in (model().loss, lambda rows: mvkit.fit(model(), rows, epochs=1, progress=False)):
        with pytest.raises(NothingObserved, match=expected):
            call(batch)


def test_rows_without_ids_are_named_by_their_numbers():
    with pytest.raises(NothingObserved, match="row 1 observes nothing"):
        model().loss(Batch(arrays("ab")))


@pytest.mark.parametrize("ask", ["encode", "translate", "log_likelihood"])
def test_a_row_without_what_is_given_is_named_by_its_id(ask):
    vae = model()
    rows = Batch(arrays("a"), extra={"id": np.array(IDS)})
    calls = {
        "encode": lambda: vae.encode(rows, given="a"),
        "translate": lambda: vae.translate(rows, to="b", given="a"),
        "log_likelihood": lambda: vae.log_likelihood(rows, of="b", given="a", n=2),
    }
    with pytest.raises(NothingObserved, match=r"row 1 \(id 'CGT'\) observes none of the given"):
        calls[ask]()


def test_rows_of_later_blocks_keep_their_ids():
    data = {"a": torch.ones(1500, 2), "b": torch.ones(1500, 3)}
    data["a"][1400] = torch.nan
    rows = Batch(data, extra={"id": torch.arange(1500) + 10})
    with pytest.raises(NothingObserved, match=r"row 1400 \(id 1410\) observes none"):
        model().encode(rows, given="a")
    with pytest.raises(NothingObserved, match=r"row 1400 \(id 's1400'\) observes none"):
        model().encode(Gathered(), given="a")


def test_covariates_are_named_by_the_ids_of_rows():
    vae = model(covariates={"age": mvkit.Covariate(missing="average"), "site": ("A", "B")})
    site = ["A", "B", "A"]
    gap = Batch(arrays(), extra={"id": IDS}, covariates={"age": [1.0, np.nan, 2.0], "site": site})
    with pytest.raises(RequestError, match=r"row 1 \(id 'CGT'\) lacks the covariate 'age'"):
        vae.log_likelihood(gap, n=2)
    endless = {"age": [1.0, np.inf, 2.0], "site": site}
    with pytest.raises(DataError, match=r"covariate 'age': row 1 \(id 'CGT'\) is inf; expected"):
        vae.encode(Batch(arrays(), extra={"id": IDS}, covariates=endless))
    unknown = {"age": [1.0, 2.0, 3.0], "site": [0, 5, 1]}
    with pytest.raises(DataError, match=r"covariate 'site': row 1 \(id 'CGT'\) is 5; expected an"):
        vae.encode(Batch(arrays(), extra={"id": IDS}, covariates=unknown))


@pytest.mark.parametrize(
    ("depth", "fault"),
    [
        (-1.0, r"depth: row 1 \(id 'CGT'\) is -1.0; expected a finite"),
        (1e-42, r"depth: row 1 \(id 'CGT'\) is 1e-42; expected 0, or a number from"),
        (0.0, r"row 1 \(id 'CGT'\) is 0, but something was counted"),
        (np.inf, r"depth: row 1 \(id 'CGT'\) is inf; expected finite"),
    ],
)
def test_exposures_are_named_by_the_ids_of_rows(depth, fault):
    rows = Batch({"a": torch.ones(ROWS, 2)}, extra={"id": IDS, "depth": [1.0, depth, 2.0]})
    with pytest.raises(DataError, match=fault):
        exposed().encode(rows)


def test_weights_are_named_by_the_ids_of_rows():
    data = MultimodalDataset.from_arrays(arrays(), ids=IDS)
    rows = Batch(data.batch.data, extra={"id": data.ids}, row_weight=[1.0, -2.0, 1.0])
    with pytest.raises(DataError, match=r"row_weight: row 1 \(id 'CGT'\) is -2.0; expected"):
        model().loss(rows)
