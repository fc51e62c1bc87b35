"""Structural compression for JAX: fuse the neurons of any network into fewer, by optimal transport.

graph = ifjax.trace(apply_fn, params, *inputs)
spec = graph.spec(0.5)
small = ifjax.fuse_params(params, spec)
apply_small = ifjax.shrink(apply_fn, spec)
"""

from ifjax.calibrate import Stats, batch_stats, collect_stats
from ifjax.carry import fuse_tree, kept_mask
from ifjax.checkpoint import load, save
from ifjax.compose import compact, compose, compose_maps
from ifjax.fuse import apply_maps, fuse_params
from ifjax.graph.shrink import shrink
from ifjax.graph.trace import DependencyGraph, trace
from ifjax.maps import neuron_scores, transport_maps
from ifjax.method import Method
from ifjax.model_fusion import align_models, fuse_models
from ifjax.recalibrate import reset_statistics
from ifjax.schedule import Round, iterated, onward
from ifjax.selection import take
from ifjax.sharding import small_shardings
from ifjax.spec import FusionSpec
from ifjax.transport import Transport

__all__ = [
    "DependencyGraph",
    "FusionSpec",
    "Method",
    "Round",
    "Stats",
    "Transport",
    "align_models",
    "apply_maps",
    "batch_stats",
    "collect_stats",
    "compact",
    "compose",
    "compose_maps",
    "fuse_models",
    "fuse_params",
    "fuse_tree",
    "iterated",
    "kept_mask",
    "load",
    "neuron_scores",
    "onward",
    "reset_statistics",
    "save",
    "shrink",
    "small_shardings",
    "take",
    "trace",
    "transport_maps",
]
