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
    before = {part: len(found) for part, found in parts.intervals.items()}
    jax.jit(lambda x: x + 1)(np.ones(2))
    assert {part: len(found) for part, found in parts.intervals.items()} == before


def test_what_belongs_to_two_parts_counts_for_the_first_and_the_rest_runs():
    parts = call_parts.Parts()
    parts._began, parts._ended = 1.0, 11.0
    # A trace within a trace, an import within both, and two threads that compile at once.
    parts.intervals["trace s"] += [(2.0, 4.0), (0.5, 5.0)]
    parts.intervals["importing s"] += [(3.0, 3.5)]
    parts.intervals["compile s"] += [(5.0, 8.0), (6.0, 9.0), (10.5, 12.0)]
    found = parts.seconds()
    wanted = {"importing s": 0.5, "trace s": 3.5, "lower s": 0, "compile s": 4.5, "run s": 1.5}
    assert found == pytest.approx(wanted)


def test_moments_count_once():
    assert doctest.testmod(call_parts).failed == 0
