"""IDMVAE learns which of what views hold is shared, where MMVAE+ at its bound does not.

Axes: b rows.
"""

import pytest
import torch

import mvkit
from mvkit import Batch, Modality, recipes

NETWORK = {"name": "mlp", "hidden": [64]}


def views(b, seed):
    """Two views of twelve numbers, with two weak sources in common and two strong ones each."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(b, 2, generator=generator)
    data, own = {}, {}
    for name in "ab":
        own[name] = torch.randn(b, 2, generator=generator)
    for i, name in enumerate("ab"):
        mixing = torch.randn(4, 12, generator=torch.Generator().manual_seed(i))
        sources = torch.cat([0.5 * shared, 1.5 * own[name]], 1)
        data[name] = torch.tanh(sources @ mixing) + 0.05 * torch.randn(b, 12, generator=generator)
    return Batch(data), shared, own


def explained(codes, sources):
    """R² of sources by a quadratic regression on codes: of the first half, in the second half."""
    features = torch.cat([codes, codes.square(), torch.ones(len(codes), 1)], 1)
    half = len(codes) // 2
    weights = torch.linalg.lstsq(features[:half], sources[:half]).solution
    error = (features[half:] @ weights - sources[half:]).square().sum()
    return float(1 - error / (sources[half:] - sources[half:].mean(0)).square().sum())


def shares(**options):
    """What shared and private codes tell of shared and of own sources, by view."""
    modality = Modality((12,), {"name": "normal", "scale": 0.2}, encoder=NETWORK, decoder=NETWORK)
    model = recipes.idmvae(dict.fromkeys("ab", modality), 2, private_dim=2, seed=0, **options)
    train, _, _ = views(2000, 1)
    mvkit.fit(model, train, epochs=40, lr=2e-3, seed=0, progress=False, device="cpu")
    test, shared, own = views(2000, 2)
    table = {}
    with torch.no_grad():
        experts = model.experts(model.conform(test))
        for i, name in enumerate(model.names):
            z, w = experts.loc[i], experts.private[name][0]
            for code, values in (("z", z), ("w", w)):
                table[f"{name}: {code} of shared"] = explained(values, shared)
                table[f"{name}: {code} of own"] = explained(values, own[name])
    return table


@pytest.mark.slow
def test_codes_are_shared_or_private_by_default_and_mixed_without_the_regularisers():
    for key, share in shares().items():
        if "z of shared" in key or "w of own" in key:
            assert share > 0.7, key
        else:
            assert share < 0.05, key
    plain = shares(information=0.0, augmentation=0.0)
    assert plain["b: z of own"] > 0.2
    assert plain["b: w of shared"] > 0.2
