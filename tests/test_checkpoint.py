from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import ifjax
from tests import processes


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Pair:
    kernel: jax.Array
    bias: jax.Array


def apply(params, x):
    return jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"]) @ params["b"]["kernel"]


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    params = {
        "a": {"kernel": rng.normal(size=(3, 8)), "bias": rng.normal(size=8)},
        "b": {"kernel": rng.normal(size=(8, 2))},
        "step": jnp.asarray(7, jnp.int32),
    }
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32) if np.ndim(x) else x, params)
    spec = ifjax.trace(apply, params, jnp.ones((1, 3))).spec(0.5, method="prune")
    return params, spec, ifjax.fuse_params(params, spec)


def test_round_trip_gives_back_parameters_and_spec(network, tmp_path: Path):
    _, spec, small = network
    small = {**small, "a": jax.tree.map(lambda x: x.astype(jnp.bfloat16), small["a"])}
    ifjax.save(tmp_path / "net", small, spec)
    params, found = ifjax.load(tmp_path / "net")
    assert found == spec
    assert jax.tree.structure(params) == jax.tree.structure(small)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(small), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    x = jnp.ones((4, 3))
    np.testing.assert_array_equal(
        ifjax.shrink(apply, found)(params, x), ifjax.shrink(apply, spec)(small, x)
    )


def test_like_gives_the_structure(network, tmp_path: Path):
    params, spec, small = network
    ifjax.save(tmp_path / "net", small, spec)
    like = {**params, "a": Pair(**params["a"])}
    loaded, _ = ifjax.load(tmp_path / "net", like=like)
    assert isinstance(loaded["a"], Pair)
    np.testing.assert_array_equal(loaded["a"].kernel, small["a"]["kernel"])
    with pytest.raises(ValueError, match="a/bias is only in the checkpoint"):
        ifjax.load(tmp_path / "net", like={**params, "a": {"kernel": 0}})


def test_sharding_is_where_the_arrays_go(network, tmp_path: Path):
    _, spec, small = network
    ifjax.save(tmp_path / "net", small, spec)
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    params, _ = ifjax.load(tmp_path / "net", sharding=sharding)
    assert all(x.sharding == sharding for x in jax.tree.leaves(params))


def test_full_parameters_are_refused_and_nothing_is_written(network, tmp_path: Path):
    params, spec, small = network
    with pytest.raises(ValueError, match=r"a/bias: expected shape \(4,\).*call ifjax.fuse_params"):
        ifjax.save(tmp_path / "net", params, spec)
    assert not list(tmp_path.iterdir())
    ifjax.save(tmp_path / "net", small, spec)
    with pytest.raises(FileExistsError, match="expected a new directory"):
        ifjax.save(tmp_path / "net", small, spec)


def test_every_truncated_or_missing_file_is_named(network, tmp_path: Path):
    _, spec, small = network
    ifjax.save(tmp_path / "net", small, spec)
    files = [p for p in (tmp_path / "net").rglob("*") if p.is_file() and p.name != "files.json"]
    assert len(files) > 5
    for file in files:
        content = file.read_bytes()
        if content:
            file.write_bytes(content[: len(content) // 2])
            with pytest.raises(ValueError, match=f"complete checkpoint.*bytes in .*{file.name}"):
                ifjax.load(tmp_path / "net")
        file.unlink()
        with pytest.raises(ValueError, match=f"bytes in .*{file.name}, got no such file"):
            ifjax.load(tmp_path / "net")
        file.write_bytes(content)
    ifjax.load(tmp_path / "net")
    (tmp_path / "net" / "files.json").unlink()
    with pytest.raises(ValueError, match="its list of files"):
        ifjax.load(tmp_path / "net")


def test_nothing_is_left_where_saving_fails(network, tmp_path: Path, monkeypatch):
    _, spec, small = network

    def fail(*_args, **_options):
        raise OSError("disk full")

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.save", fail)
    with pytest.raises(OSError, match="disk full"):
        ifjax.save(tmp_path / "net", small, spec)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", ["spec", "params"])
def test_missing_part(network, tmp_path: Path, part: str):
    _, spec, small = network
    ifjax.save(tmp_path / "net", small, spec)
    shutil.rmtree(tmp_path / "net" / part)
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        ifjax.load(tmp_path / "net")


def test_no_directory_and_an_empty_one(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such directory"):
        ifjax.load(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        ifjax.load(tmp_path / "empty")


def test_parameters_that_are_not_finite_are_refused(network, tmp_path: Path):
    _, spec, small = network
    bad = {**small, "b": {"kernel": small["b"]["kernel"].at[0, 0].set(jnp.nan)}}
    with pytest.raises(ValueError, match="b/kernel: expected finite weights"):
        ifjax.save(tmp_path / "net", bad, spec)
    assert not list(tmp_path.iterdir())


def process(number: int, port: int, folder: Path) -> None:
    """One of two processes of two devices each: parameters spread over them, and whole ones."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", 2, number)
    params = {"a": np.ones((3, 16)), "b": np.ones((16, 2))}
    spec = ifjax.trace(lambda p, x: x @ p["a"] @ p["b"], params, np.ones((1, 3))).spec(0.5)
    wanted = {"a": np.arange(24.0).reshape(3, 8), "b": np.arange(16.0).reshape(8, 2)}
    mesh = Mesh(np.array(jax.devices()), ("x",))
    places = {"a": NamedSharding(mesh, P(None, "x")), "b": NamedSharding(mesh, P("x"))}
    spread = {
        name: jax.make_array_from_callback(x.shape, places[name], x.astype(np.float32).__getitem__)
        for name, x in wanted.items()
    }
    ifjax.save(folder / "spread", spread, spec)
    found, again = ifjax.load(folder / "spread", sharding=places)
    assert again == spec
    for name, x in found.items():
        assert x.sharding == places[name]
        for shard in x.addressable_shards:
            np.testing.assert_array_equal(shard.data, wanted[name][shard.index])
    with pytest.raises(FileExistsError, match="spread exists"):
        ifjax.save(folder / "spread", spread, spec)
    whole, _ = ifjax.load(folder / "spread")
    assert all(x.is_fully_addressable for x in whole.values())
    if number == 0:  # the other does not take part, and is not waited for
        ifjax.save(folder / "whole", whole, spec)
        whole, _ = ifjax.load(folder / "whole")
    else:
        with pytest.raises(ValueError, match=r"expected process 0 to save .* got process 1"):
            ifjax.save(folder / "other", whole, spec)
    jax.tree.map(np.testing.assert_array_equal, whole, wanted)
    print("same in process", number)


@pytest.mark.slow
def test_in_two_processes(tmp_path: Path):
    path = f"tests.test_checkpoint.Path({str(tmp_path)!r})"
    call = f"test_checkpoint.process({{number}}, {{port}}, {path})"
    processes.both(call, {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spread", "whole"]
