"""All estimators, in one place."""

from mvkit_sklearn.classifier import MVClassifier
from mvkit_sklearn.clusterer import MVClusterer
from mvkit_sklearn.imputer import MVImputer
from mvkit_sklearn.regressor import MVRegressor
from mvkit_sklearn.transformer import MVTransformer

__all__ = ["MVClassifier", "MVClusterer", "MVImputer", "MVRegressor", "MVTransformer"]
