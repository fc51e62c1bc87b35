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
from ifjax.schedule import Round, iterated, onward
from ifjax.selection import take
from ifjax.spec import FusionSpec
from ifjax.transport import Transport

__all__ = [
    "DependencyGraph",
    "FusionSpec",
    "Method",
    "Round",
    "Stats",
    "Transport",
    "apply_maps",
    "batch_stats",
    "collect_stats",
    "compact",
    "compose",
    "compose_maps",
    "fuse_params",
    "fuse_tree",
    "iterated",
    "kept_mask",
    "load",
    "neuron_scores",
    "onward",
    "save",
    "shrink",
    "take",
    "trace",
    "transport_maps",
]
