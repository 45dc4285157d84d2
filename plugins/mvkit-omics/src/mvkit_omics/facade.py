"""A thin façade for hands that know scvi-tools: the same calls, on mvkit's recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import mvkit
from mvkit.errors import RequestError
from mvkit_omics import set_up
from mvkit_omics.differential import differential_expression
from mvkit_omics.expression import denoised, latents


class MVKIT:
    """A recipe of mvkit for the cells of an AnnData or MuData, with the calls of scvi-tools.

    `model` and `dataset` are mvkit's own, for all that is not here. Questions are about the cells
    of `dataset`, or about those of another object, read alike.

    Args:
        data: set up by `setup_mudata` or `setup_anndata`.
        recipe: of `mvkit.recipes`; None: `totalvi` where there are proteins, `multivi` where there
            are peaks, else `scvi`.
        n_latent: width of the latent.
        options: of the recipe, such as `seed`.
    """

    model: Any

    def __init__(
        self, data: Any, recipe: str | None = None, *, n_latent: int = 20, **options: Any
    ) -> None:
        self.setup = set_up.setup_of(data)
        self.data = data
        self.dataset = set_up.read(data, self.setup)
        batch = self.setup["batch_key"]
        if batch is not None:
            options = {"batch": batch, "covariates": self.dataset.covariates, **options}
        build = mvkit.recipes.get(recipe or set_up.recipe_for(self.dataset.modalities))
        self.model = build(self.dataset.modalities, n_latent, **options)
        self.is_trained = False

    @staticmethod
    def setup_mudata(
        data: Any, batch_key: str | None = None, labels_key: str | None = None, **reading: Any
    ) -> None:
        """Notes in `uns` how cells are read; options as of `from_mudata` or `from_anndata`."""
        set_up.note(data, batch_key, labels_key, reading)

    setup_anndata = setup_mudata

    def train(
        self, max_epochs: int | None = None, *, early_stopping: bool = False, **options: Any
    ) -> mvkit.History:
        """Trains the model; options as of `mvkit.fit`: batch_size, lr, seed, validation, …"""
        epochs = max_epochs or min(400, max(1, round(8_000_000 / len(self.dataset))))
        if early_stopping:
            options = {"validation": 0.1, "patience": 45, **options}
        history = mvkit.fit(self.model, self.dataset, epochs=epochs, **options)
        self.is_trained = True
        return history

    def get_latent_representation(self, data: Any = None, **options: Any) -> NDArray[Any]:
        """Posterior means, (b, d), in the order of the cells; options as of `latents`: given, …"""
        return np.asarray(latents(self._trained(), self._cells(data), **options))

    def get_normalized_expression(
        self,
        data: Any = None,
        *,
        transform_batch: object = None,
        library_size: float | str = 1.0,
        n_samples: int = 1,
        gene_list: Any = None,
        modality: str | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """Denoised expression, as of batches if wanted; `library_size="latent"` is the cells'."""
        options |= {"n": n_samples, "features": gene_list}
        options["exposure"] = None if isinstance(library_size, str) else library_size
        options["covariates"] = self._batches(transform_batch)
        return denoised(self._trained(), self._cells(data), self._genes(modality), **options)

    def differential_expression(
        self,
        data: Any = None,
        *,
        groupby: str | None = None,
        group1: object = None,
        group2: object = None,
        fdr_target: float = 0.05,
        batch_correction: bool = False,
        modality: str | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """Features that differ between groups of cells, by a column of `obs`; or picks of them."""
        rows = self._cells(data)
        by = groupby
        if groupby is not None:
            by = set_up.obs_column(rows.ids, self.data if data is None else data, groupby)
        options |= {"by": by, "fdr": fdr_target, "modality": self._genes(modality)}
        options["covariates"] = self._batches("all" if batch_correction else None)
        others = "rest" if group2 is None else group2
        return differential_expression(self._trained(), rows, group1, others, **options)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Writes the model, and how cells are read, into a folder."""
        place = Path(folder)
        if place.exists() and not overwrite:
            raise RequestError(f"save: {str(place)!r} exists; expected a new one, or overwrite")
        place.mkdir(parents=True, exist_ok=True)
        mvkit.save(self._trained(), place / "model.safetensors")
        (place / "setup.json").write_text(json.dumps(self.setup))

    @classmethod
    def load(cls, folder: str | Path, data: Any) -> MVKIT:
        """A model that `save` wrote, for cells that are read as its own were."""
        facade = cls.__new__(cls)
        facade.model = mvkit.load(Path(folder) / "model.safetensors")
        facade.setup = json.loads((Path(folder) / "setup.json").read_text())
        facade.data, facade.is_trained = data, True
        facade.dataset = set_up.read(data, facade.setup, like=facade.model)
        return facade

    def _trained(self) -> Any:
        if not self.is_trained:
            raise RequestError("MVKIT: not trained yet; expected train() before questions")
        return self.model

    def _cells(self, data: Any) -> mvkit.MultimodalDataset:
        return self.dataset if data is None else set_up.read(data, self.setup, like=self.model)

    def _batches(self, wanted: object) -> dict[str, object] | None:
        batch = self.setup["batch_key"]
        if wanted is not None and batch is None:
            raise RequestError("MVKIT: no batches are known; expected batch_key= in the setup")
        return None if wanted is None else {batch: wanted}

    def _genes(self, modality: str | None) -> str | None:
        """The modality asked for, or the only one whose counts are shares of a total."""
        shared = [name for name, m in self.model.modalities.items() if m.exposure == "total"]
        return shared[0] if modality is None and len(shared) == 1 else modality
