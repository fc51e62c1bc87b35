"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

# Compilation is what slows the suite down, and only values matter in it. Eight CPU devices instead
# of one cost nothing.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

# Models that tests/test_zoo.py imports as far as their frameworks are installed; no tests.
collect_ignore_glob = ["zoo/*"]


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Compiled programs of a file are of no use to the next, and would fill the memory."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of checkpoints, data sets and fixtures that lies beside the repository."""
    folder = Path(os.environ.get("IFJAX_SHARED") or Path(__file__).parents[1].parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no shared files at {folder}; set IFJAX_SHARED to where they are")
    return folder
