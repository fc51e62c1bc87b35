from __future__ import annotations

import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ifjax.interop import load_safetensors, map_safetensors


def test_arrays_keep_names_values_and_dtypes(tmp_path):
    arrays = {
        "a.weight": np.arange(6, dtype=np.float16).reshape(2, 3),
        "b": np.array([1, 2**40]),
        "c": np.arange(4).astype(jnp.bfloat16),
    }
    save_file(arrays, tmp_path / "x.safetensors")
    for read in (load_safetensors, map_safetensors):
        found = read(tmp_path / "x.safetensors")
        assert found.keys() == arrays.keys()
        for name, value in arrays.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)
    assert all(isinstance(x, np.memmap) and not x.flags.writeable for x in found.values())


def test_missing_and_truncated_files_are_told_apart(tmp_path):
    for read in (load_safetensors, map_safetensors):
        with pytest.raises(FileNotFoundError, match=r"expected a safetensors file .* no such file"):
            read(tmp_path / "none.safetensors")
    whole = tmp_path / "whole.safetensors"
    save_file({"x": np.arange(100.0)}, whole)
    half = tmp_path / "half.safetensors"
    half.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"complete safetensors file at .*half.*200 bytes"):
        load_safetensors(half)
    for content in (whole.read_bytes()[:-8], b"", (4).to_bytes(8, "little") + b"[1] "):
        half.write_bytes(content)
        with pytest.raises(ValueError, match=r"half.*does not read as a safetensors file"):
            map_safetensors(half)


def test_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"pip install 'ifjax\[train\]'"):
        load_safetensors(tmp_path / "x.safetensors")
