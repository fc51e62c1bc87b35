"""The main job killed and started again, in processes of its own."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest

import ifjax
from tests.main_job import SCRIPT

pytestmark = pytest.mark.usefixtures("own_cache")


def words(out: Path) -> list[str]:
    options = "--model mlp --epochs 4 --sparsities 0.5 --fine-tune-epochs 2 --checkpoint-every 7"
    return [*options.split(), "--no-progress", "--out", str(out)]


def start(out: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(SCRIPT), *words(out)], stdout=subprocess.DEVNULL)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    while process.poll() is None and not condition():
        time.sleep(0.005)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    """Killed by SIGKILL in the training and in the fine-tuning; test_kill.py does it more often."""
    assert start(tmp_path / "whole").wait() == 0  # another process may round otherwise
    out, kills = tmp_path / "killed", 0
    checkpoints = out / ".checkpoints"

    def at_least(stage: str, step: int) -> bool:
        folder = checkpoints / stage
        return any(int(p.name) >= step for p in folder.glob("*/[0-9]*") if p.name.isdecimal())

    rng = np.random.default_rng(time.time_ns())  # moments that no one chose
    for condition in (
        lambda: at_least("dense", 14),
        lambda: at_least("fuse-0.5", 21),
    ):
        process = start(out)
        wait_for(condition, process)
        time.sleep(rng.uniform(0.0, 0.1))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 1
    assert start(out).wait() == 0
    for stage in ("dense", "prune-0.5", "fuse-0.5"):
        a, b = (ifjax.load(tmp_path / run / stage)[0] for run in ("whole", "killed"))
        jax.tree.map(np.testing.assert_array_equal, a, b)
    a, b = (
        json.loads((tmp_path / run / "results.json").read_text()) for run in ("whole", "killed")
    )
    for row in (*a["rows"], *b["rows"]):
        assert row.pop("latency") > 0
    assert a["rows"] == b["rows"]
    assert not checkpoints.exists()
