"""Estimators of scikit-learn on mvkit. Imported at discovery, so it stays light."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mvkit_sklearn.classifier import MVClassifier
    from mvkit_sklearn.clusterer import MVClusterer
    from mvkit_sklearn.imputer import MVImputer
    from mvkit_sklearn.regressor import MVRegressor
    from mvkit_sklearn.transformer import MVTransformer

__all__ = ["MVClassifier", "MVClusterer", "MVImputer", "MVRegressor", "MVTransformer"]


def __getattr__(name: str) -> Any:
    """An estimator, imported when it is first asked for: scikit-learn takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'mvkit_sklearn' has no attribute {name!r}")
    from mvkit_sklearn import estimators

    return getattr(estimators, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
