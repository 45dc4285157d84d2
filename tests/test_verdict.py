"""What `fit` says of a run when it ends."""

import numpy as np
import pytest
import torch

import mvkit
from mvkit import Modality, Model
from mvkit.training.verdict import verdict_of


def learnable(n=120):
    """Three features that one latent explains all but for a little noise."""
    generator = np.random.default_rng(0)
    z = generator.normal(size=(n, 1))
    return {name: 2 * z + 0.1 * generator.normal(size=(n, 3)) for name in ("a", "b")}


def linear(**options):
    networks = {"encoder": {"name": "linear"}, "decoder": {"name": "linear"}}
    modality = Modality((3,), {"name": "normal", "scale": 0.3}, **networks)
    return Model({"a": modality, "b": modality}, latent_dim=2, seed=0, **options)


def test_a_model_that_learnt_is_described():
    data = learnable()
    data["b"][::3] = np.nan
    model = linear()
    history = mvkit.fit(model, data, epochs=150, lr=0.02, progress=False)
    text = repr(history)
    assert "latents vary over rows" in text
    z = model.encode(data).double()
    alive = int((z.std(0) >= 0.1).sum())
    assert f"{alive} of 2 latents" in text
    x = torch.as_tensor(data["a"])
    error = (x - model.decode(z.float())["a"].double()).square().sum()
    share = float(1 - error / (x - x.mean(0)).square().sum())
    assert f"a {100 * share:.0f} %" in text
    assert share > 0.9


def test_a_model_that_learnt_nothing_says_so():
    model = linear()
    history = mvkit.fit(model, learnable(), epochs=1, lr=0.0, progress=False)
    with torch.no_grad():
        for encoder in model.encoders.values():
            encoder[0].weight.zero_()
    sentences = verdict_of(model, model.conform(learnable()), history["loss"])
    assert "the model learnt nothing: no latent varies over rows" in sentences[0]
    assert any("no modality is reconstructed better than by its mean" in s for s in sentences)


def test_collapsed_clusters_are_told():
    model = linear(prior={"name": "mog", "components": 3}, aggregator="moe")
    with torch.no_grad():
        model.prior.logits.copy_(torch.tensor([50.0, 0.0, 0.0]))
    sentences = verdict_of(model, model.conform(learnable()), [])
    assert any("rows fall into 1 of 3 clusters: they have collapsed" in s for s in sentences)


@pytest.mark.parametrize(
    ("losses", "rising"),
    [
        ([100.0 - i for i in range(20)], True),
        ([100.0 * 0.5**i for i in range(20)], False),
        ([5.0] * 30, False),
        ([100.0 - i for i in range(5)], False),  # too few to say
    ],
)
def test_whether_more_epochs_would_help(losses, rising):
    sentences = verdict_of(linear(), None, losses)
    assert bool(sentences) == rising


def test_a_history_shows_validation():
    history = mvkit.fit(linear(), learnable(), validation=learnable(30), epochs=2, progress=False)
    assert "valid/loss" in repr(history)
    assert "valid/log_px/a" not in repr(history)


@pytest.mark.parametrize("kind", ["stack", "private", "stream"])
def test_every_kind_of_run_ends_with_a_history(kind):
    data = learnable(20)
    if kind == "stack":
        model = mvkit.recipes.nexus({"a": (3,), "b": (3,)}, latent_dim=2, bottom_dim=2, seed=0)
    else:
        modality = Modality((3,), private_dim=2)
        model = Model({"a": modality, "b": modality}, latent_dim=0, seed=0)
    rows = {name: torch.as_tensor(x).float() for name, x in data.items()}
    given = iter([rows]) if kind == "stream" else data
    history = mvkit.fit(model, given, epochs=1, progress=False)
    assert len(history) == 1
    assert not any("not looked at" in sentence for sentence in history.verdict)
