"""Runs of mvkit on a Ray cluster: the unchanged fit in several workers, and searches by Tune."""

from mvkit_ray.search import Reports, search
from mvkit_ray.workers import Cluster, fit, run_script

__all__ = ["Cluster", "Reports", "fit", "run_script", "search"]
