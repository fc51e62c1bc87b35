"""Work in numpy side by side on the threads of the host."""

import threading
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from ifjax.parallel import threads


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setattr(threads, "_THREADS", 2)


def names(x):
    """Of the threads of two calls that read an array."""
    name = lambda: threading.current_thread().name  # noqa: E731
    return set(threads.each([name, name], (), [x]))


def test_results_are_in_the_order_of_the_calls():
    def late(i):
        time.sleep(0.02 * (3 - i))
        return i

    assert threads.each([lambda i=i: late(i) for i in range(4)], [1e6, 3e6, 2e6, 4e6]) == [
        0,
        1,
        2,
        3,
    ]


def test_the_largest_goes_first(monkeypatch):
    monkeypatch.setattr(threads, "_THREADS", 2)
    begun = []
    gate = threading.Barrier(2)

    def call(i):
        begun.append(i)
        if len(begun) <= 2:
            gate.wait(5)

    pool = threads.concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="ifjax")
    monkeypatch.setattr(threads, "_pool", lambda: pool)
    threads.each([lambda i=i: call(i) for i in range(4)], [1e6, 5e6, 2e6, 9e6])
    assert set(begun[:2]) == {3, 1}


def test_little_work_stays_in_this_thread():
    name = lambda: threading.current_thread().name  # noqa: E731
    own = threading.current_thread().name
    assert threads.each([name, name], [100, 100], np.ones(2)) == [own, own]
    assert own not in threads.each([name, name], [10**6, 10**6], np.ones(2))


def test_numpy_goes_to_other_threads():
    assert all(name.startswith("ifjax") for name in names(np.ones(2)))


def test_what_other_threads_know_nothing_of_stays_in_this_one():
    own = {threading.current_thread().name}
    with jax.enable_x64(True):
        assert names(np.ones(2)) == own
    with jax.default_matmul_precision("highest"):
        assert names(np.ones(2)) == own
    with jax.set_mesh(jax.make_mesh((2,), ("d",))):
        assert names(np.ones(2)) == own
    assert names(jnp.ones(2)) == own
    seen = []
    jax.jit(lambda x: seen.append(names(x)) or x)(jnp.ones(2))
    assert seen == [own]


def test_a_product_has_one_thread_while_all_have_a_call():
    def count():
        return max(x["num_threads"] for x in threadpool_info() if x["user_api"] == "blas")

    with threadpool_limits(3, "blas"):
        assert threads.each([count, count]) == [1, 1]
        assert threads.each([count]) == [3]
        assert count() == 3


def test_calls_inside_of_calls_do_not_wait_for_the_setting_of_blas(monkeypatch):
    pool = threads.concurrent.futures.ThreadPoolExecutor(4, thread_name_prefix="ifjax")
    monkeypatch.setattr(threads, "_pool", lambda: pool)
    inner = [lambda: 1, lambda: 2]
    assert threads.each([lambda: threads.each(inner), lambda: [3]]) == [[1, 2], [3]]


def test_one_core_has_no_other_threads(monkeypatch):
    monkeypatch.setattr(threads, "_THREADS", 1)
    assert names(np.ones(2)) == {threading.current_thread().name}


def test_errors_come_back_and_warnings_of_numbers_do_not():
    def fail():
        raise KeyError("w")

    with pytest.raises(KeyError, match="w"):
        threads.each([fail, fail])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(threads.each([lambda: np.float32(0) / np.float32(0)])[0])
