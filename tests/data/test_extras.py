from __future__ import annotations

import json

import pytest

from ifjax.data.extras import require


def test_present_modules_are_returned():
    assert require("json", "python", "Reading") is json


def test_absent_modules_give_the_command():
    with pytest.raises(ImportError, match=r"Reading needs the package none .*'ifjax\[data\]'"):
        require("no_such_module_here", "none", "Reading")
