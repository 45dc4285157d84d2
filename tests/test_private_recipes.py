"""Conformance takes recipes whose modalities have private latents alone."""

import pytest

import mvkit
from mvkit import Modality, Model
from mvkit.testing import ConformanceError, check_component


def of_single_modalities(modalities, latent_dim=10, *, wrong=0, **options):
    """Each modality has a latent of its own, and no other.

    Reference: none.
    """
    each = {}
    for name, modality in modalities.items():
        each[name] = Modality(modality.shape, modality.likelihood, private_dim=latent_dim + wrong)
    return Model(each, latent_dim=0, aggregator="moe", **options)


def test_a_recipe_may_have_private_latents_alone():
    mvkit.plugins.declare("recipe", "of_single_modalities", of_single_modalities)
    check_component("recipe", "of_single_modalities")
    with pytest.raises(ConformanceError, match="latent_dim=0; expected those that it was given"):
        check_component("recipe", "of_single_modalities", wrong=1)
