"""Search over the parts and options of mvkit models, on optuna."""

from mvkit_optuna.search import Search
from mvkit_optuna.space import Choice, Domain, Float, Int, LogFloat

__all__ = ["Choice", "Domain", "Float", "Int", "LogFloat", "Search"]
