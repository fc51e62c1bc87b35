from __future__ import annotations

import json
import subprocess
import sys

import pytest

from ifjax.data.extras import require


def test_present_modules_are_returned():
    assert require("json", "python", "Reading") is json


def test_absent_modules_give_the_command():
    with pytest.raises(ImportError, match=r"Reading needs the package none .*'ifjax\[data\]'"):
        require("no_such_module_here", "none", "Reading")


OPTIONAL = (
    "PIL array_record flatbuffers grain importlib_resources matplotlib ot safetensors sklearn "
    "tensorboard tensorboardX tensorflow_datasets tqdm"
)


def test_nothing_optional_is_imported_before_it_is_used():
    """In a process where none of it is there: all packages that a user imports, and training."""
    script = f"""
import sys
sys.modules |= dict.fromkeys({OPTIONAL.split()})
import ifjax, ifjax.data, ifjax.interop, ifjax.models, ifjax.report, ifjax.training
for name in "digits", "cifar10":
    try:
        ifjax.data.load(name, "nowhere")
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    digits, cifar = done.stdout.splitlines()
    assert digits.startswith("The digits data set needs the package scikit-learn")
    assert cifar.startswith("Reading cifar10 needs the package tensorflow-datasets")
    for line in (digits, cifar):
        assert line.endswith("run: pip install 'ifjax[data]'")
