"""Maps applied to the members of a group, against loops in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.fusion import merge
from ifjax.structure import axis as ex
from ifjax.structure import layout
from ifjax.structure.layout import Place
from ifjax.structure.structure import Role
from ifjax.transport.transport import Transport
from tests import reference

N, M = 5, 3
SELF = ex.Atom(layout.SELF, N)
ROLES: tuple[Role, ...] = ("producer", "consumer", "additive", "multiplicative", "mean", "variance")


def transport(seed=0, dead=()):
    """A plan with some mass everywhere, but for the sources and targets that have none."""
    rng = np.random.default_rng(seed)
    plan = rng.uniform(0.1, 1, (N, M)).astype(np.float32)
    plan[list(dead)] = 0
    plan /= plan.sum()
    zero = jnp.zeros(())
    return Transport(
        map=jnp.asarray(plan),
        targets=jnp.asarray([0, 2, 3]),
        converged=jnp.asarray(True),
        iterations=jnp.zeros((), jnp.int32),
        marginal_error=zero,
        cost=zero,
        potential=jnp.zeros(N),
    )


def by_source(plan):
    """M_ji = T_ij / sum_k T_ik."""
    plan = np.asarray(plan, np.float64)
    return np.array(
        [
            [plan[i, j] / plan[i].sum() if plan[i].sum() else 0 for i in range(len(plan))]
            for j in range(plan.shape[1])
        ]
    )


def by_target(plan):
    """P_ji = T_ij / sum_k T_kj."""
    plan = np.asarray(plan, np.float64)
    return np.array(
        [
            [plan[i, j] / plan[:, j].sum() if plan[:, j].sum() else 0 for i in range(len(plan))]
            for j in range(plan.shape[1])
        ]
    )


def mapped(matrix, x, axis):
    """Y[.., j, ..] = sum_i A_ji X[.., i, ..], one entry after another."""
    x = np.moveaxis(np.asarray(x, np.float64), axis, 0)
    y = np.zeros((len(matrix), *x.shape[1:]))
    for j in range(len(matrix)):
        for i in range(x.shape[0]):
            y[j] += matrix[j, i] * x[i]
    return np.moveaxis(y, 0, axis)


def weights(*shape, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("dead", [(), (1,), (0, 4)])
def test_matrices_are_the_plan_divided_by_its_sums(dead):
    found = transport(dead=dead)
    got = merge.matrices(found.map, found.targets, None)
    np.testing.assert_allclose(got["M"], by_source(found.map), atol=1e-6)
    np.testing.assert_allclose(got["P"], by_target(found.map), atol=1e-6)
    alive = [i for i in range(N) if i not in dead]
    np.testing.assert_allclose(got["M"].sum(0)[jnp.asarray(alive)], 1, rtol=1e-6)
    np.testing.assert_allclose(got["P"].sum(1), 1, rtol=1e-6)


def test_targets_without_mass_get_zeros():
    found = transport()
    got = merge.matrices(found.map.at[:, 1].set(0), found.targets, None)
    np.testing.assert_array_equal(got["P"][1], np.zeros(N))
    np.testing.assert_array_equal(got["M"][1], np.zeros(N))
    assert np.all(np.isfinite(got["P"]))


def test_full_matrices_hold_the_rows_at_their_targets():
    found = transport()
    small = merge.matrices(found.map, found.targets, None)
    full = merge.matrices(found.map, found.targets, N)
    for name in ("M", "P"):
        np.testing.assert_array_equal(full[name][found.targets], small[name])
        np.testing.assert_array_equal(full[name][jnp.asarray([1, 4])], np.zeros((2, N)))


@pytest.mark.parametrize("role", ROLES)
def test_gradients_of_consumers_are_averaged_and_all_others_summed(role):
    found, x = transport(), weights(N, 2)
    (got,) = merge.merge_neurons([x], (Place(0, 0, role, SELF),), found, "gradients")
    matrix = by_target(found.map) if role == "consumer" else by_source(found.map)
    np.testing.assert_allclose(got, mapped(matrix, x, 0), atol=1e-6)


@pytest.mark.parametrize("neutral", [False, True])
@pytest.mark.parametrize("kind", ["select", "reference", "preserving", "gradients"])
def test_full_vectors_that_scale_hold_ones_where_asked(kind, neutral):
    found, x = transport(), weights(N)
    for role in ROLES:
        (got,) = merge.merge_neurons([x], (Place(0, 0, role, SELF),), found, kind, N, neutral)
        ones = neutral and role in ("multiplicative", "variance")
        np.testing.assert_array_equal(got[jnp.asarray([1, 4])], [ones, ones])
        (small,) = merge.merge_neurons([x], (Place(0, 0, role, SELF),), found, kind)
        np.testing.assert_array_equal(got[found.targets], small)


def test_leaves_may_be_some_of_the_plan_s():
    leaves = {k: jnp.asarray(v) for k, v in reference.init("mlp", 0, (N, N)).items()}
    structure = reference.trace("mlp", leaves).spec(keep=M).structure
    maps = {name: transport(seed) for seed, name in enumerate(structure.widths)}
    whole = merge.merge_leaves(leaves, structure, maps, lambda _: "reference", False)
    kernel = {"fc1.weight": leaves["fc1.weight"]}
    some = merge.merge_leaves(kernel, structure, maps, lambda _: "reference", False)
    assert list(some) == ["fc1.weight"]
    first, second = (by_source(maps[f"fc{i}.weight"].map) for i in (0, 1))
    expected = second @ np.asarray(leaves["fc1.weight"], np.float64) @ first.T
    for got in (some, whole):
        np.testing.assert_allclose(got["fc1.weight"], expected, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", ["reference", "preserving"])
def test_members_are_multiplied_by_their_role_s_matrix(kind, role, axis):
    found, x = transport(), weights(N, N, N)
    (got,) = merge.merge_neurons([x], (Place(0, axis, role, SELF),), found, kind)
    summed = role == "consumer" or (
        kind == "reference" and role in ("producer", "additive", "mean")
    )
    matrix = by_source(found.map) if summed else by_target(found.map)
    np.testing.assert_allclose(got, mapped(matrix, x, axis), atol=1e-6)


def test_an_array_that_holds_a_group_twice_is_mapped_on_both_axes():
    found, x = transport(), weights(N, N)
    where = (Place(0, 0, "producer", SELF), Place(0, 1, "consumer", SELF))
    (got,) = merge.merge_neurons([x], where, found, "preserving")
    expected = by_target(found.map) @ np.asarray(x, np.float64) @ by_source(found.map).T
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_merged_axes_and_segments_are_mapped_where_the_group_lies():
    found, x = transport(), weights(2 + 3 * N + 1, 4)
    where = ex.Sum((ex.Pinned(2), ex.Product((ex.Pinned(3), SELF)), ex.Pinned(1)))
    (got,) = merge.merge_neurons([x], (Place(0, 0, "consumer", where),), found, "reference")
    blocks = np.asarray(x[2:-1]).reshape(3, N, 4)
    inner = mapped(by_source(found.map), blocks, 1).reshape(3 * M, 4)
    np.testing.assert_allclose(got, np.concatenate([x[:2], inner, x[-1:]]), atol=1e-6)


@pytest.mark.parametrize("full", [None, N])
def test_selection_takes_the_targets_as_they_are(full):
    found, x = transport(), weights(2, N)
    (got,) = merge.merge_neurons([x], (Place(0, 1, "producer", SELF),), found, "select", full)
    expected = np.asarray(x)[:, [0, 2, 3]]
    if full:
        expected, kept = np.zeros((2, N), np.float32), expected
        expected[:, [0, 2, 3]] = kept
    np.testing.assert_array_equal(got, expected)


def test_half_precision_weights_are_multiplied_as_they_come():
    """The caller promotes; here the dtype stays."""
    found, x = transport(), weights(N, 2).astype(jnp.bfloat16)
    (got,) = merge.merge_neurons([x], (Place(0, 0, "producer", SELF),), found, "reference")
    assert got.dtype == jnp.bfloat16


def test_the_whole_network_is_the_product_of_loops():
    """Both hidden layers of an mlp, by hand: W1' = A1 W1 M0^T and so on."""
    import ifjax

    params = reference.init("mlp", 3, (6, 4))
    graph = reference.trace("mlp", params)
    for kind in ("reference", "preserving"):
        spec = graph.spec(0.5, merge=kind)
        maps = ifjax.transport_maps(params, spec)
        small = ifjax.apply_maps(params, spec, maps)
        plans = [maps[f"fc{i}.weight"].map for i in (0, 1)]
        consumer = [by_source(plan) for plan in plans]
        producer = consumer if kind == "reference" else [by_target(plan) for plan in plans]
        expected = {
            "fc0.weight": producer[0] @ params["fc0.weight"],
            "fc0.bias": producer[0] @ params["fc0.bias"],
            "fc1.weight": producer[1] @ params["fc1.weight"] @ consumer[0].T,
            "fc1.bias": producer[1] @ params["fc1.bias"],
            "fc2.weight": params["fc2.weight"] @ consumer[1].T,
            "fc2.bias": params["fc2.bias"],
        }
        for path, x in expected.items():
            np.testing.assert_allclose(small[path], x, atol=2e-6, err_msg=path)
