"""Structural compression for JAX: fuse the neurons of any network into fewer, by optimal transport.

graph = ifjax.trace(apply_fn, params, *inputs)
spec = graph.spec(0.5)
small = ifjax.fuse_params(params, spec)
apply_small = ifjax.shrink(apply_fn, spec)
"""

from importlib import import_module, metadata
from types import ModuleType

from ifjax.activations.analytic import analytic_moments
from ifjax.activations.batch_statistics import reset_statistics
from ifjax.activations.input_moments import InputMoments, batch_moments, collect_moments
from ifjax.activations.statistics import Stats, batch_stats, collect_stats
from ifjax.activations.synthesis import synthesize
from ifjax.allocation.allocate import allocate
from ifjax.checkpoint import load, save
from ifjax.fusion.fuse import apply_maps, fuse_params
from ifjax.fusion.fuse_tree import fuse_tree, kept_mask
from ifjax.fusion.take import compact, take
from ifjax.fusion.transport_maps import neuron_scores, transport_maps
from ifjax.graph.graph import onward
from ifjax.graph.shrink import shrink
from ifjax.graph.trace import DependencyGraph, trace
from ifjax.model_fusion.fuse_models import align_models, fuse_models
from ifjax.reconstruction.biases import with_biases
from ifjax.reconstruction.compress import compress
from ifjax.reconstruction.report import Report
from ifjax.reconstruction.rotate import Rotated, rotate
from ifjax.spec.method import Method
from ifjax.spec.rounds import Round, compose, iterated
from ifjax.spec.spec import FusionSpec, small_shardings
from ifjax.transport.transport import Transport, compose_maps

__all__ = [
    "DependencyGraph",
    "FusionSpec",
    "InputMoments",
    "Method",
    "Report",
    "Rotated",
    "Round",
    "Stats",
    "Transport",
    "align_models",
    "allocate",
    "analytic_moments",
    "apply_maps",
    "batch_moments",
    "batch_stats",
    "collect_moments",
    "collect_stats",
    "compact",
    "compose",
    "compose_maps",
    "compress",
    "fuse_models",
    "fuse_params",
    "fuse_tree",
    "iterated",
    "kept_mask",
    "load",
    "neuron_scores",
    "onward",
    "reset_statistics",
    "rotate",
    "save",
    "shrink",
    "small_shardings",
    "synthesize",
    "take",
    "trace",
    "transport_maps",
    "with_biases",
]

__version__ = metadata.version("ifjax")

# Imported at their first use; what is internal does not show in `dir(ifjax)`.
_PACKAGES = (
    "data",
    "frameworks",
    "importance",
    "interop",
    "models",
    "report",
    "training",
    "transport",
)


def __getattr__(name: str) -> ModuleType:
    """The packages that a user needs besides the functions here."""
    if name in _PACKAGES:
        return import_module(f"ifjax.{name}")
    raise AttributeError(f"module 'ifjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Public names, the packages that a user needs, and nothing else."""
    return sorted([*__all__, *_PACKAGES, "__doc__", "__name__", "__version__"])
