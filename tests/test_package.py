"""What `ifjax` shows."""

from __future__ import annotations

import importlib.metadata
import pkgutil
import subprocess
import sys

import pytest

import ifjax


def test_tab_shows_public_names_and_packages_alone():
    shown = {name for name in dir(ifjax) if not name.startswith("__")}
    packages = {m.name for m in pkgutil.iter_modules(ifjax.__path__)}
    assert {*ifjax.__all__} <= shown
    assert shown - {*ifjax.__all__} <= packages
    assert shown.isdisjoint({"structure", "graph", "fusion", "jaxprs", "parallel", "tree", "spec"})
    for name in shown:
        assert getattr(ifjax, name) is not None


def test_the_version_is_that_of_the_package():
    assert ifjax.__version__ == importlib.metadata.version("ifjax")


def test_packages_come_at_their_first_use():
    code = "import ifjax, sys; assert 'ifjax.models' not in sys.modules; print(ifjax.models.MLP)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_what_does_not_exist_is_named():
    with pytest.raises(AttributeError, match="has no attribute 'fuse'"):
        ifjax.fuse  # noqa: B018
