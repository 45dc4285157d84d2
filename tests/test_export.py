"""`encode` is exported with a free number of rows, whatever they lack; `torch.compile` changes no number."""

import pytest
import torch
from torch.export import Dim, export

import mvkit
from mvkit import Batch, Covariate, Modality, RequestError

SHAPES = {"a": (3,), "b": (2, 2), "c": (4,)}
AGGREGATORS = ("poe", "moe", "mopoe", "joint", "gpoe", "wasserstein", "set", "mean_message")
pytestmark = pytest.mark.filterwarnings("ignore")  # of torch.export itself


class Encode(torch.nn.Module):
    def __init__(self, model, given=None):
        super().__init__()
        self.model = model
        self.given = given

    def forward(self, data, mask):
        return self.model.encode(Batch(data, mask), given=self.given)


def rows(b, seed=0):
    generator = torch.Generator().manual_seed(seed)
    data = {name: torch.randn(b, *shape, generator=generator) for name, shape in SHAPES.items()}
    mask = torch.rand(b, 3, generator=generator) > 0.4
    mask[:, 0] |= ~mask.any(1)
    return data, mask


def exported(model, given=None):
    b = Dim("b", min=2)
    shapes = (dict.fromkeys(SHAPES, {0: b}), {0: b})
    program = export(Encode(model, given), rows(5), dynamic_shapes=shapes, strict=False)
    return program.module()


def model_of(aggregator, **options):
    return mvkit.Model(SHAPES, latent_dim=2, aggregator=aggregator, seed=0, **options).eval()


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_encode_exports_with_a_free_batch_size(aggregator):
    model = model_of(aggregator)
    program = exported(model)
    for b in (2, 9, 40):
        data, mask = rows(b, seed=b)
        expected = model.encode(Batch(data, mask))
        torch.testing.assert_close(program(data, mask), expected, rtol=1e-5, atol=1e-6)
        for name, observed in zip(data, mask.T, strict=True):  # fillers change no bit
            data[name][~observed] = torch.nan
        torch.testing.assert_close(program(data, mask), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("aggregator", ["poe", "moe", "mopoe", "joint"])
def test_encode_of_given_modalities_exports(aggregator):
    model = model_of(aggregator)
    program = exported(model, ("a", "c"))
    data, _ = rows(7)
    mask = torch.ones(7, 3, dtype=torch.bool)
    expected = model.encode(Batch(data, mask), given=("a", "c"))
    torch.testing.assert_close(program(data, mask), expected, rtol=1e-5, atol=1e-6)


def test_private_latents_and_another_order_of_modalities():
    modalities = {name: Modality(shape, private_dim=2) for name, shape in SHAPES.items()}
    model = mvkit.Model(modalities, latent_dim=2, aggregator="moe", seed=0).eval()
    program = exported(model)
    data, mask = rows(6)
    expected = model.encode(Batch(data, mask))
    torch.testing.assert_close(program(data, mask), expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_exported_says_why():
    conditional = model_of("poe", covariates={"site": Covariate(("A", "B"))})
    with pytest.raises(RequestError, match="covariates cannot be exported"):
        exported(conditional)
    stack = mvkit.recipes.nexus(SHAPES, 2, seed=0).eval()
    with pytest.raises(RequestError, match="a Stack cannot be exported; expected a Model"):
        exported(stack)

    class Partial(Encode):
        def forward(self, data, mask):
            return self.model.encode(Batch({"a": data["a"]}, mask[:, :1]))

    with pytest.raises(RequestError, match="no values of b, c; an export needs"):
        export(Partial(model_of("poe")), rows(5), strict=False)
