"""What results were made with."""

import contextlib
import importlib.metadata
import os
import platform
from typing import Any

import jax


def provenance(command: str) -> dict[str, Any]:
    """Say what results were made with: the command, versions and the machine.

    Args:
        command: the command line that makes them again.

    Returns:
        The entries ``command``, ``versions`` (of Python and the packages that matter) and
        ``machine`` (platform, processor cores and the devices that JAX uses).

    Example:
        >>> sorted(provenance("python train.py"))
        ['command', 'machine', 'versions']
    """
    versions = {"python": platform.python_version()}
    for package in ("ifjax", "jax", "jaxlib", "flax", "optax", "ott-jax", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "command": command,
        "versions": versions,
        "machine": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "devices": [device.device_kind for device in jax.devices()],
        },
    }
