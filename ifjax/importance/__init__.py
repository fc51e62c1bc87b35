"""What a neuron is worth: metrics as values, and their names."""

from ifjax.importance.base import (
    NORMALIZATIONS,
    REDUCTIONS,
    STATISTICS,
    GroupMetric,
    Metric,
    normalise,
    reduce,
)
from ifjax.importance.data import Chip, Fisher, Reconstruction, Taylor
from ifjax.importance.metrics import IMPORTANCES, magnitude, metric_of, names, score, statistic_of
from ifjax.importance.weights import L1, L2, BNScale, Lamp, LInf, Random, lamp

__all__ = [
    "IMPORTANCES",
    "L1",
    "L2",
    "NORMALIZATIONS",
    "REDUCTIONS",
    "STATISTICS",
    "BNScale",
    "Chip",
    "Fisher",
    "GroupMetric",
    "LInf",
    "Lamp",
    "Metric",
    "Random",
    "Reconstruction",
    "Taylor",
    "lamp",
    "magnitude",
    "metric_of",
    "names",
    "normalise",
    "reduce",
    "score",
    "statistic_of",
]
