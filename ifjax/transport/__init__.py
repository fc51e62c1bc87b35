"""Optimal transport between neurons: costs, centroids, plans, solvers."""

from ifjax.transport.centroids import Centroids, GaussianMixture, KMeans
from ifjax.transport.solvers import (
    SOLVERS,
    Auto,
    Exact,
    Nearest,
    Sinkhorn,
    SinkhornKernel,
    Solver,
)
from ifjax.transport.targets import TARGETS, Neurons, Top

__all__ = [
    "SOLVERS",
    "TARGETS",
    "Auto",
    "Centroids",
    "Exact",
    "GaussianMixture",
    "KMeans",
    "Nearest",
    "Neurons",
    "Sinkhorn",
    "SinkhornKernel",
    "Solver",
    "Top",
]
