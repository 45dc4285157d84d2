"""Labels that a generative model predicts: `MVClassifier` on tables of several views.

    mvkit bench run rosmap-accuracy rosmap-f1 rosmap-auc mfeat-classes --data ../shared/data

The label is one more modality of the model, a mixture of products of experts. ROSMAP: the 245 and
106 rows of the published split. mfeat: 80 % of the 2,000 rows of each class train, drawn by the
seed, and the others test. Options were chosen by five-fold cross-validation of ROSMAP's training
rows, and are the same for both. Needs plugins/mvkit-datasets and plugins/mvkit-sklearn.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from mvkit_sklearn import MVClassifier
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score
from sklearn.model_selection import train_test_split

import mvkit

Rows = tuple[np.ndarray, np.ndarray]  # values (b, k) and labels (b,)
OPTIONS: dict[str, object] = {"learning_rate": 1e-3}


def rows_of(table: str, folder: Path, seed: int) -> tuple[Rows, Rows, dict[str, slice]]:
    """Rows that train, rows that test, and the columns of each view."""
    splits = mvkit.load_dataset(table, path=str(folder / table))
    parts = {}
    for name in ("train", "valid", "test"):
        batch = getattr(splits, name).batch
        values = torch.cat([batch.data[view] for view in splits.modalities], 1)
        parts[name] = values.double().numpy(), batch.extra["label"].numpy()
    views = {}
    start = 0
    for view, modality in splits.modalities.items():
        views[view] = slice(start, start + modality.shape[0])
        start += modality.shape[0]
    x, y = (np.concatenate(arrays) for arrays in zip(parts["train"], parts["valid"], strict=True))
    if table == "rosmap":
        return (x, y), parts["test"], views
    x, y = np.concatenate([x, parts["test"][0]]), np.concatenate([y, parts["test"][1]])
    x, held, y, truth = train_test_split(x, y, test_size=0.2, stratify=y, random_state=seed)
    return (x, y), (held, truth), views


def scores(table: str, folder: Path, seed: int) -> dict[str, float]:
    """Accuracy on the test rows; of two classes also F1 and area under the curve."""
    torch.set_num_threads(1)
    (x, y), (held, truth), views = rows_of(table, folder, seed)
    classifier = MVClassifier(views, random_state=seed, **OPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        p = classifier.fit(x, y).predict_proba(held)
    labels = classifier.classes_[p.argmax(1)]
    found = {"accuracy": float(accuracy_score(truth, labels))}
    if len(classifier.classes_) == 2:
        found["F1"] = float(f1_score(truth, labels))
        found["AUC"] = float(roc_auc_score(truth, p[:, 1]))
    return found
