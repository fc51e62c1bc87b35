"""Layouts against their definition, for many numbers of folds, devices and hosts."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.training.layout import Layout, collect, make_layout, place


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    process_index: int
    number: int


@pytest.fixture
def unchecked(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)


@pytest.mark.usefixtures("unchecked")
def test_every_fold_is_trained_and_the_work_is_even():
    for folds, hosts, per_host, batch in itertools.product(
        range(1, 10), range(1, 4), range(1, 6), (1, 6, 8)
    ):
        check_layout(folds, hosts, per_host, batch)


def check_layout(folds: int, hosts: int, per_host: int, batch: int) -> None:
    devices = [FakeDevice(host, i) for i in range(per_host) for host in range(hosts)]
    layout = make_layout(folds, batch, devices)
    total = hosts * per_host
    assert layout.assignment.shape == (len(layout.devices), layout.lanes)
    assert set(layout.assignment.ravel().tolist()) == set(range(folds))
    used = [sum(d.process_index == host for d in layout.devices) for host in range(hosts)]
    assert len(set(used)) == 1 <= used[0] <= per_host
    assert [d.process_index for d in layout.devices] == sorted(
        d.process_index for d in layout.devices
    )
    if layout.replicas > 1:
        assert layout.lanes == 1
        assert batch % layout.replicas == 0
        assert len(layout.devices) == folds * layout.replicas
        for fold, group in enumerate(layout.groups):
            assert set(layout.assignment[group].ravel().tolist()) == {fold}
            assert len(group) == layout.replicas
    else:
        assert layout.groups is None
        assert layout.lanes == -(-folds // total)
        # One device less on every host would not do.
        assert (len(layout.devices) - hosts) * layout.lanes < folds
    larger = [r for r in range(layout.replicas + 1, total // folds + 1) if batch % r == 0]
    assert all(folds * r % hosts for r in larger)


@pytest.mark.parametrize(
    ("folds", "devices", "words"),
    [
        (4, 4, "4 folds on 4 devices"),
        (5, 4, "5 folds on 3 devices, 2 on each, 1 idle places"),
        (2, 6, "2 folds on 4 devices, 2 for each, which share its batches"),
    ],
)
def test_a_layout_says_what_it_does(folds, devices, words):
    if len(jax.devices()) < devices:
        pytest.skip(f"needs {devices} devices, there are {len(jax.devices())}")
    assert str(make_layout(folds, 4, jax.devices()[:devices])) == words


@pytest.mark.parametrize(("folds", "devices"), [(5, 3), (2, 4), (3, 1)])
def test_collect_inverts_place(folds, devices):
    layout = make_layout(folds, 4, jax.devices()[:devices])
    tree = {
        "w": np.random.default_rng(0).normal(size=(folds, 3)).astype(np.float32),
        "n": np.arange(folds, dtype=np.int32),
        "half": jnp.arange(folds, dtype=jnp.bfloat16),
        "key": jax.random.split(jax.random.key(0), folds),
    }
    placed = place(tree, layout)
    assert placed["w"].shape == (len(layout.devices), layout.lanes, 3)
    for device, row in zip(layout.devices, layout.assignment, strict=True):
        (shard,) = [s for s in placed["w"].addressable_shards if s.device == device]
        np.testing.assert_array_equal(np.asarray(shard.data)[0], tree["w"][row])
    back = collect(placed, layout)
    np.testing.assert_array_equal(
        jax.random.key_data(back["key"]), jax.random.key_data(tree["key"])
    )
    for name in ("w", "n", "half"):
        assert back[name].dtype == tree[name].dtype
        np.testing.assert_array_equal(back[name], tree[name])
    np.testing.assert_array_equal(layout.of_local_folds(placed["n"]), np.arange(folds))


def test_what_is_placed_outlives_its_donation():
    layout = make_layout(2, 4, jax.devices()[:2])
    source = np.ones((2, 1 << 12), np.float32)
    placed = place({"w": source}, layout)
    jax.pmap(lambda x: x * 2, devices=layout.devices, donate_argnums=0)(placed["w"])
    assert (source == 1.0).all()


@pytest.mark.usefixtures("unchecked")
def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="at least 1, got 0, 4"):
        make_layout(0, 4)
    uneven = [FakeDevice(0, 0), FakeDevice(0, 1), FakeDevice(1, 0)]
    with pytest.raises(ValueError, match=r"as many devices of each host.*\{0: 2, 1: 1\}"):
        make_layout(2, 4, uneven)
    layout = Layout(2, 1, 1, tuple(jax.devices()[:2]))
    with pytest.raises(ValueError, match=r"2 folds at a/b, got the shape \(3,\)"):
        place({"a": {"b": np.zeros(3)}}, layout)
