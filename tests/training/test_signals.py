"""Signals wait for the end of a step, the second one does not, and handlers are given back."""

import os
import signal
import threading

import jax
import pytest

from ifjax.training.signals import Interrupted, deferred, interruptible

BOTH = pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)


@BOTH
def test_the_first_signal_waits_for_the_end_of_the_step(number: int, code: int) -> None:
    before = signal.getsignal(number)
    steps = []

    def work() -> None:
        with deferred() as request:
            for step in range(5):
                if step == 2:
                    signal.raise_signal(number)
                steps.append(step)
                if request.is_due():
                    break
            steps.append("saved")

    with pytest.raises(Interrupted) as stop:
        work()
    assert stop.value.code == code
    assert steps == [0, 1, 2, "saved"]
    assert signal.getsignal(number) is before


@BOTH
def test_the_second_signal_ends_at_once(number: int, code: int) -> None:
    before = signal.getsignal(number)

    def work() -> None:
        with deferred():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(number)
            raise AssertionError("not reached")

    with pytest.raises(Interrupted) as stop:
        work()
    assert stop.value.code == code
    assert signal.getsignal(number) is before


def test_without_a_signal_nothing_happens() -> None:
    with deferred() as request:
        assert not request.is_due()


def test_sigterm_becomes_an_exception_that_ends_what_control_c_ends() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="interrupted by SIGTERM"), interruptible():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_thread_that_cannot_take_signals_works_without() -> None:
    found = []

    def work() -> None:
        with deferred() as request, interruptible():
            found.append(request.is_due())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_control_c_on_one_of_several_hosts_asks_all_and_the_second_ends_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By SIGTERM, which JAX tells the others of: ending alone, it would be waited for for ever."""
    before = signal.getsignal(signal.SIGINT)  # in the background of a shell it is ignored
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    sent = []

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "kill", lambda *given: sent.append(given))
    monkeypatch.setattr(os, "_exit", leave)

    def work() -> None:
        with interruptible(), deferred():
            signal.raise_signal(signal.SIGINT)
            assert sent == [(os.getpid(), signal.SIGTERM)]
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(SystemExit) as stop:
        work()
    assert stop.value.code == 130
    assert len(sent) == 1
    assert signal.getsignal(signal.SIGINT) is before
