"""Compiled programs side by side on the threads of the host."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.parallel import threads


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setattr(threads, "_THREADS", 2)


def where(x):
    """The name of the thread, beside the operand."""
    return threading.current_thread().name, x


def names(x):
    return {name for name, *_ in threads.each([lambda: where(x), lambda: where(x)], [x])}


def test_results_are_in_the_order_of_the_calls():
    def late(i):
        time.sleep(0.02 * (3 - i))
        return jnp.float32(i)

    found = threads.each([lambda i=i: late(i) for i in range(4)])
    np.testing.assert_array_equal(found, [0, 1, 2, 3])


def test_concrete_arrays_go_to_other_threads():
    assert all(name.startswith("ifjax") for name in names(jnp.ones(2)))


def test_what_other_threads_know_nothing_of_stays_in_this_one():
    own = {threading.current_thread().name}
    with jax.enable_x64(True):
        assert names(jnp.ones(2)) == own
    with jax.default_matmul_precision("highest"):
        assert names(jnp.ones(2)) == own
    seen = []
    jax.jit(lambda x: seen.append(names(x)) or x)(jnp.ones(2))
    jax.vmap(lambda x: seen.append(names(x)) or x)(jnp.ones(2))
    mesh = jax.make_mesh((2,), ("d",))
    seen.append(names(jax.device_put(jnp.ones(2), jax.NamedSharding(mesh, jax.P("d")))))
    with jax.set_mesh(mesh):
        seen.append(names(jnp.ones(2)))
    assert seen == [own] * 4


def test_an_accelerator_has_a_queue_of_its_own(monkeypatch):
    monkeypatch.setattr(threads.jax, "default_backend", lambda: "gpu")
    assert names(jnp.ones(2)) == {threading.current_thread().name}


def test_an_error_is_raised_as_if_alone():
    def wrong():
        raise ValueError("a cost that is none")

    with pytest.raises(ValueError, match="a cost that is none"):
        threads.each([lambda: 1, wrong])
