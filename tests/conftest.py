"""Settings and fixtures shared by all tests."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import tempfile
from pathlib import Path

from tests import xla

# Eight CPU devices instead of one cost nothing.
os.environ.setdefault("XLA_FLAGS", xla.flags(devices=8))
os.environ["JAX_PLATFORMS"] = xla.platforms(os.environ.get("JAX_PLATFORMS", "cpu"))

# Half of all programs are compiled again, by another test, worker or process: they are shared.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _programs = tempfile.TemporaryDirectory(prefix="ifjax-programs-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import jaxtyping
import pytest
import typecheck

# Tracing makes many objects and hardly any cycles: looking for these took a tenth of the time.
gc.set_threshold(100_000, 20, 20)
xla.exact()
xla.reuse_contexts()
typecheck.install()

# Models that tests/test_zoo.py imports as far as their frameworks are installed; no tests.
collect_ignore_glob = ["zoo/*"]


def pytest_configure(config: pytest.Config) -> None:
    """Workers take the files in the order below, not those of many tests first."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: at the end, no worker waits for another's long file."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


_files = itertools.count(1)


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Compiled programs of all files would fill the memory; forgetting takes half a second."""
    yield
    if next(_files) % 8 == 0:
        jax.clear_caches()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of checkpoints, data sets and fixtures that lies beside the repository."""
    folder = Path(os.environ.get("IFJAX_SHARED") or Path(__file__).parents[1].parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no shared files at {folder}; set IFJAX_SHARED to where they are")
    return folder


@pytest.fixture(scope="module")
def unchecked():
    """Without type checks at run time: wrong arguments reach our own errors, loops run at speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Compiled programs of what tests start stay out of the user's cache directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


# Packages whose tests run where a caller's code base promotes neither dtypes nor ranks.
STRICT = {
    *("activations", "fusion", "graph", "importance"),
    *("jaxprs", "spec", "structure", "transport"),
}


@pytest.fixture(autouse=True)
def _strict(request: pytest.FixtureRequest):
    """Promotes nothing by itself in the core's tests, but what a test's own functions promote."""
    package = request.path.relative_to(Path(__file__).parent).parts[0]
    marker = request.node.get_closest_marker("promotes")
    lifted = {} if marker is None else marker.kwargs
    with contextlib.ExitStack() as stack:
        if package in STRICT and "dtypes" not in lifted:
            stack.enter_context(jax.numpy_dtype_promotion("strict"))
        if package in STRICT and "ranks" not in lifted:
            stack.enter_context(jax.numpy_rank_promotion("raise"))
        yield
