"""Programs compiled once and found again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from ifjax.experiment.programs import DAYS, kept_programs, programs_folder


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's cache directory; JAX has none set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def hits() -> Iterator[list[str]]:
    """Programs that were found instead of compiled."""
    found: list[str] = []

    def listen(event: str, **_: object) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            found.append(event)

    jax.monitoring.register_event_listener(listen)
    yield found
    jax.monitoring.unregister_event_listener(listen)


def compile_anew() -> None:
    jax.clear_caches()
    jax.block_until_ready(jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((3, 5))))


def programs(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-cache"))


def test_a_program_is_compiled_once(caches: Path, hits: list[str]) -> None:
    with kept_programs() as folder:
        assert folder == str(caches / "ifjax" / "programs")
        compile_anew()
        assert hits == []
        compile_anew()
    assert hits
    assert programs(caches / "ifjax" / "programs")


def test_afterwards_all_is_as_before(caches: Path) -> None:
    names = ("compilation_cache_dir", "enable_compilation_cache",
             "persistent_cache_min_compile_time_secs")  # fmt: skip
    before = [getattr(jax.config, f"jax_{name}") for name in names]
    with kept_programs():
        compile_anew()
    assert [getattr(jax.config, f"jax_{name}") for name in names] == before
    there = programs(caches / "ifjax" / "programs")
    jax.block_until_ready(jax.jit(lambda x: jnp.cos(x) @ x.T)(jnp.ones((3, 5))))
    assert programs(caches / "ifjax" / "programs") == there


def test_the_folder_that_jax_was_given_is_taken(caches: Path, hits: list[str]) -> None:
    jax.config.update("jax_compilation_cache_dir", str(caches / "chosen"))
    assert programs_folder() == str(caches / "chosen")
    with kept_programs():
        compile_anew()
    assert programs(caches / "chosen")
    assert not (caches / "ifjax").exists()


def test_it_can_be_switched_off(caches: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(caches / "chosen"))
    with kept_programs(False) as folder:
        assert folder is None
        compile_anew()
        with kept_programs() as inner:
            assert inner is None, "by JAX's own switch"
    assert list(caches.iterdir()) == []


def test_a_folder_that_cannot_be_made_ends_no_run(
    caches: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (caches / "ifjax").write_text("a file")
    with kept_programs() as folder:
        assert folder is None
        compile_anew()
    error = capsys.readouterr().err
    assert error.startswith("compiled programs are not kept: ")
    assert error.count("\n") == 1


def test_what_no_run_has_read_for_long_is_removed(caches: Path) -> None:
    folder = caches / "ifjax" / "programs"
    folder.mkdir(parents=True)
    for name, days in (("old", DAYS + 1), ("young", DAYS - 1)):
        (folder / name).write_text("program")
        then = time.time() - 86400 * days
        os.utime(folder / name, (then, then))
    with kept_programs():
        assert [file.name for file in folder.iterdir()] == ["young"]
