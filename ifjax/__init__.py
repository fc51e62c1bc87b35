"""Structural compression for JAX: fuse the neurons of any network into fewer, by optimal transport.

graph = ifjax.trace(apply_fn, params, *inputs)
spec = graph.spec(0.5)
small = ifjax.fuse_params(params, spec)
apply_small = ifjax.shrink(apply_fn, spec)
"""

from ifjax.checkpoint import load, save
from ifjax.fuse import apply_maps, fuse_params, take
from ifjax.graph.shrink import shrink
from ifjax.graph.trace import DependencyGraph, trace
from ifjax.maps import transport_maps
from ifjax.method import Method
from ifjax.spec import FusionSpec
from ifjax.transport import Transport

__all__ = [
    "DependencyGraph",
    "FusionSpec",
    "Method",
    "Transport",
    "apply_maps",
    "fuse_params",
    "load",
    "save",
    "shrink",
    "take",
    "trace",
    "transport_maps",
]
