"""What the benchmark of first calls says a call consists of."""

import doctest
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.benchmark_module import loaded

call_parts = loaded("call_parts")


def test_the_parts_of_a_call_are_the_call(tmp_path, monkeypatch):
    (tmp_path / "imported_late.py").write_text("import time\ntime.sleep(0.1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "imported_late", raising=False)

    @jax.jit
    def late(x):
        import imported_late  # noqa: F401  # pyright: ignore

        return jnp.sin(x) @ x

    start = time.perf_counter()
    with call_parts.Parts() as parts:
        late(np.ones((3, 3), np.float32)).block_until_ready()
        time.sleep(0.05)
    whole = time.perf_counter() - start
    found = parts.seconds()
    assert sum(found.values()) == pytest.approx(whole, abs=0.02)
    assert parts.programs == 1
    # The import is part of the tracing, and counts once.
    assert 0.1 <= found["importing s"] < 0.2
    assert found["run s"] >= 0.05
    assert all(seconds >= 0 for seconds in found.values())
    assert __import__ is parts._import


def test_moments_count_once():
    assert doctest.testmod(call_parts).failed == 0
