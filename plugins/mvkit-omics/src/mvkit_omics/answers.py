"""What a model says of cells: latents, clusters, imputed values; and which model it was.

Axes: n cells, d latent, k features.
"""

from __future__ import annotations

import importlib.metadata
import json
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

import mvkit
from mvkit import Batch, MultimodalDataset
from mvkit.core import noise
from mvkit.models.swapped_modules import digest_of_weights
from mvkit_omics.measured import Array, Features

if TYPE_CHECKING:
    from mvkit import Model, Stack
    from mvkit_omics.sparse_rows import SparseRows

ROWS = 4096  # cells that are asked for at a time
PACKAGES = ("mvkit", "mvkit-omics", "anndata", "mudata", "torch")


@attrs.frozen(eq=False)
class Answers:
    """What a model says of the cells of a dataset, in its order.

    Args:
        latent: posterior means, (n, d).
        clusters: of each cell, (n,); None: the prior has none.
        imputed: expected values by modality, (n, k).
        features: what the columns of imputed values are called, by modality.
    """

    latent: Array
    clusters: Array | None
    imputed: dict[str, Array]
    features: dict[str, Features]


def answers_of(
    model: Model | Stack,
    dataset: MultimodalDataset | SparseRows,
    imputed: tuple[str, ...],
    *,
    n: int,
    seed: int,
) -> Answers:
    """Asks a model about cells, in the order of their names, so that no other order matters.

    Args:
        model: trained.
        dataset: with `ids`.
        imputed: modalities to impute.
        n: draws of the latents.
        seed: of these draws.
    """
    ids = dataset.ids.tolist()
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__))
    generator = noise.seeded(seed, model.like.device)
    blocks = []
    columns: dict[str, Features] = {}
    for start in range(0, len(order), ROWS):
        rows = dataset.__getitems__(order[start : start + ROWS].tolist())
        values = {"latent": model.encode(rows)}
        if model.n_clusters:
            values["clusters"] = model.clusters(rows)
        if imputed:
            options: dict[str, Any] = {"all": True, "n": n, "to": imputed}
            filled: Batch = mvkit.impute(model, rows, generator=generator, **options)
            values |= {f"imputed/{name}": filled.data[name] for name in imputed}
        blocks.append({what: tensor.cpu().numpy() for what, tensor in values.items()})
    back = np.argsort(order)
    joined = {what: np.concatenate([block[what] for block in blocks])[back] for what in blocks[0]}
    for name in imputed:
        named = rows.columns.get(name)
        columns[name] = model.modalities[name].features if named is None else named.names
    tables = {name: joined[f"imputed/{name}"] for name in imputed}
    return Answers(joined["latent"], joined.get("clusters"), tables, columns)


def provenance(model: Model | Stack) -> dict[str, Any]:
    """Which model it was: its specs, versions of packages, a checksum of its weights."""
    spec = json.dumps(model.header(), sort_keys=True)
    versions = {package: _version(package) for package in PACKAGES}
    for entry in mvkit.plugins.registry().entries:
        if f'"{entry.package}/' in spec:
            versions[entry.package] = entry.version
    return {"spec": spec, "versions": versions, "checksum": digest_of_weights(model)}


def _version(package: str) -> str:
    """The version of a package; empty if it is not installed by its name."""
    if package == "mvkit":
        return mvkit.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
