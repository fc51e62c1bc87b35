"""Programs from reports of faults, each a kind: it exits 0 where all is right.

The one that compares times is left to `benchmarks/first_call.py`: beside other work its ratio says
nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = (
    "batch_norm_over_a_vmapped_axis",
    "dropout_keyword_and_debug",
    "hidden_layer_taken_for_head_dim",
    "layer_norm_unbiased_std",
    "lora",
    "muon_state",
    "schedule_free",
    "strict_dtype_promotion",
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_report_is_mended(program, shared):
    folder = shared / "reports"
    if not (folder / f"{program}.py").exists():
        pytest.skip(f"no {program}.py in {folder}")
    found = subprocess.run(
        [sys.executable, f"{program}.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
