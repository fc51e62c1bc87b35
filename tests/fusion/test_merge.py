"""Maps applied to the arrays that hold a group, against loops in numpy; in numpy and in jax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.fusion.merge import SparsePlan, assigned, group_map, matrices, merge_leaf, times
from ifjax.fusion.merge_steps import AxisMerge, MergeStep
from ifjax.structure import axis as ex
from ifjax.structure.structure import Role
from tests import reference

N, M = 5, 3
SELF = ex.Atom("g", N)
TARGETS = np.array([0, 2, 3])
ROLES: tuple[Role, ...] = ("producer", "consumer", "additive", "multiplicative", "mean", "variance")


@pytest.fixture(params=["numpy", "jax"])
def xp(request):
    """Where the arrays are of."""
    return np if request.param == "numpy" else jnp


def transport(seed=0, dead=()):
    """A plan with some mass everywhere, but for the sources that have none."""
    plan = np.random.default_rng(seed).uniform(0.1, 1, (N, M)).astype(np.float32)
    plan[list(dead)] = 0
    return plan / plan.sum()


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
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def applied(x, plan, kind, *axes, full=False, neutral=False):
    """An array merged on some axes, ``(axis, role)`` or ``(axis, role, where)``."""
    xp = plan.__array_namespace__()
    along = tuple(AxisMerge(i, *(rest or [SELF]), (("g", role),)) for i, role, *rest in axes)
    select = kind == "select"
    by = group_map(plan, xp.asarray(TARGETS), select, N if full else None)
    found = merge_leaf(
        xp.asarray(x), [MergeStep(along)], {"g": by}, {"g": kind}, full=full, neutral=neutral
    )
    assert isinstance(found, type(plan))
    return found


@pytest.mark.parametrize("dead", [(), (1,), (0, 4)])
def test_matrices_are_the_plan_divided_by_its_sums(xp, dead):
    plan = transport(dead=dead)
    got = matrices(xp.asarray(plan))
    np.testing.assert_allclose(got["pushforward"], by_source(plan), atol=1e-6)
    np.testing.assert_allclose(got["barycentric"], by_target(plan), atol=1e-6)
    alive = [i for i in range(N) if i not in dead]
    np.testing.assert_allclose(got["pushforward"].sum(0)[np.array(alive)], 1, rtol=1e-6)
    np.testing.assert_allclose(got["barycentric"].sum(1), 1, rtol=1e-6)


def test_targets_without_mass_get_zeros(xp):
    plan = transport()
    plan[:, 1] = 0
    for matrix in matrices(xp.asarray(plan)).values():
        np.testing.assert_array_equal(matrix[1], np.zeros(N))
        assert np.all(np.isfinite(matrix))


def test_full_matrices_hold_the_rows_at_their_targets(xp):
    plan = xp.asarray(transport())
    small, full = (group_map(plan, xp.asarray(TARGETS), False, n) for n in (None, N))
    for one, other in zip(small[1:], full[1:], strict=True):
        np.testing.assert_array_equal(other[TARGETS], one)
        np.testing.assert_array_equal(other[np.array([1, 4])], np.zeros((2, N)))


@pytest.mark.parametrize("role", ROLES)
def test_gradients_of_consumers_are_averaged_and_all_others_summed(xp, role):
    plan, x = transport(), weights(N, 2)
    got = applied(x, xp.asarray(plan), "gradients", (0, role))
    matrix = by_target(plan) if role == "consumer" else by_source(plan)
    np.testing.assert_allclose(got, mapped(matrix, x, 0), atol=1e-6)


@pytest.mark.parametrize("neutral", [False, True])
@pytest.mark.parametrize("kind", ["select", "reference", "preserving", "gradients"])
def test_full_vectors_that_scale_hold_ones_where_asked(xp, kind, neutral):
    plan, x = xp.asarray(transport()), weights(N)
    for role in ROLES:
        got = applied(x, plan, kind, (0, role), full=True, neutral=neutral)
        ones = neutral and role in ("multiplicative", "variance")
        np.testing.assert_array_equal(got[np.array([1, 4])], [ones, ones])
        np.testing.assert_array_equal(got[TARGETS], applied(x, plan, kind, (0, role)))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", ["reference", "preserving"])
def test_members_are_multiplied_by_their_role_s_matrix(xp, kind, role, axis):
    plan, x = transport(), weights(N, N, N)
    got = applied(x, xp.asarray(plan), kind, (axis, role))
    summed = role == "consumer" or (
        kind == "reference" and role in ("producer", "additive", "mean")
    )
    matrix = by_source(plan) if summed else by_target(plan)
    np.testing.assert_allclose(got, mapped(matrix, x, axis), atol=1e-6)


def test_an_array_that_holds_a_group_twice_is_mapped_on_both_axes(xp):
    plan, x = transport(), weights(N, N)
    got = applied(x, xp.asarray(plan), "preserving", (0, "producer"), (1, "consumer"))
    expected = by_target(plan) @ np.float64(x) @ by_source(plan).T
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_merged_axes_and_segments_are_mapped_where_the_group_lies(xp):
    plan, x = transport(), weights(2 + 3 * N + 1, 4)
    where = ex.Sum((ex.Pinned(2), ex.Product((ex.Pinned(3), SELF)), ex.Pinned(1)))
    got = applied(x, xp.asarray(plan), "reference", (0, "consumer", where))
    blocks = np.asarray(x[2:-1]).reshape(3, N, 4)
    inner = mapped(by_source(plan), blocks, 1).reshape(3 * M, 4)
    np.testing.assert_allclose(got, np.concatenate([x[:2], inner, x[-1:]]), atol=1e-6)


@pytest.mark.parametrize("full", [False, True])
def test_selection_takes_the_targets_as_they_are(xp, full):
    x = weights(2, N)
    got = applied(x, xp.asarray(transport()), "select", (1, "producer"), full=full)
    expected = x[:, TARGETS]
    if full:
        expected, kept = np.zeros((2, N), np.float32), expected
        expected[:, TARGETS] = kept
    np.testing.assert_array_equal(got, expected)


def test_half_precision_weights_are_multiplied_as_they_come(xp):
    """The caller promotes; here the dtype stays."""
    x = jnp.asarray(weights(N, 2), jnp.bfloat16)
    x = np.asarray(x) if xp is np else x
    got = applied(x, xp.asarray(transport()), "reference", (0, "producer"))
    assert got.dtype == jnp.bfloat16


# Few sources -----------------------------------------------------------------------------------


def vertex(n, m, sources, seed=0):
    """A plan whose targets have a number of sources each."""
    rng, plan = np.random.default_rng(seed), np.zeros((m, n), np.float32)
    for row in plan:
        row[rng.choice(n, sources, replace=False)] = rng.uniform(0.1, 1, sources)
    return plan.T / plan.sum()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sources", [1, 3, 4, 96])
def test_lists_of_sources_give_what_the_product_gives(xp, sources, axis):
    """Of 96 neurons four sources a target are few, more are not."""
    plan = vertex(96, 48, sources)
    shape = [5, 7, 11]
    shape[axis] = 96
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    by = group_map(xp.asarray(plan), xp.arange(48), False, sources=sources)
    assert isinstance(by.pushforward, SparsePlan) == (sources <= 4)
    for name, matrix in (("pushforward", by_source(plan)), ("barycentric", by_target(plan))):
        got = times(getattr(by, name), xp.asarray(x), axis)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, mapped(matrix, x, axis), atol=1e-5)


def test_lists_of_unequal_length_are_filled_up_with_nothing():
    plan = vertex(96, 48, 2)
    plan[:, 5] = 0
    plan[[0, 7, 9], 5] = 0.1
    plan[0, 6:9] += 0.1
    by = group_map(plan, np.arange(48), False)
    assert isinstance(by.barycentric, SparsePlan)
    x = np.random.default_rng(1).normal(size=(96, 3)).astype(np.float32)
    np.testing.assert_allclose(times(by.pushforward, x, 0), by_source(plan) @ x, atol=1e-5)
    np.testing.assert_allclose(times(by.barycentric, x, 0), by_target(plan) @ x, atol=1e-5)


def test_in_place_lists_leave_zeros_elsewhere(xp):
    plan = xp.asarray(vertex(96, 48, 2))
    targets = np.arange(0, 96, 2)
    by = group_map(plan, xp.asarray(targets), False, 96, sources=2)
    assert isinstance(by.pushforward, SparsePlan)
    got = np.asarray(times(by.pushforward, xp.asarray(weights(96, 4)), 0))
    assert not got[1::2].any()
    assert got[::2].all()


def assignment(n, m, *batch, seed=0):
    """Plans in which every target has n / m sources, one of them itself."""
    rng, plans = np.random.default_rng(seed), np.zeros((*batch, n, m), np.float32)
    for index in np.ndindex(*batch):
        plans[(*index, rng.permutation(n), np.arange(n) % m)] = 1 / n
    return plans


def test_assignments_are_sorted_once_for_all_groups_and_entries():
    """Sizes, numbers of sources and batch axes of their own; of numpy's there are no lists."""
    plans = {
        "a": assignment(96, 48),
        "b": assignment(96, 32, 2, 3, seed=1),
        "c": assignment(192, 192, seed=2),
        "many": assignment(96, 16),
        "unknown": assignment(96, 48),
    }
    sources = {"a": 2, "b": 3, "c": 1, "many": 6, "unknown": None}
    assert assigned(plans, sources) == {}
    found = jax.jit(functools.partial(assigned, sources=sources))(jax.tree.map(jnp.asarray, plans))
    assert found.keys() == {"a", "b", "c"}
    for name, lists in found.items():
        n, m = plans[name].shape[-2:]
        for plan, index, mass in zip(
            plans[name].reshape(-1, n, m),
            lists.sources.reshape(-1, m, n // m),
            lists.weights.reshape(-1, m, n // m),
            strict=True,
        ):
            expected = [np.flatnonzero(column) for column in plan.T]
            np.testing.assert_array_equal(index, expected)
            np.testing.assert_array_equal(mass, np.float32(1 / n))


@pytest.mark.parametrize("full", [None, 96])
def test_lists_of_an_assignment_are_its_matrices(full):
    plan, targets = jnp.asarray(assignment(96, 48)), jnp.arange(0, 96, 2)
    lists = assigned({"a": plan}, {"a": 2})["a"]
    by = group_map(plan, targets, False, full, lists=lists)
    matrix = group_map(plan, targets, False, full)
    x = jnp.asarray(weights(5, 96))
    for name in ("pushforward", "barycentric"):
        got, want = (times(getattr(found, name), x, 1) for found in (by, matrix))
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_plan_that_is_none_makes_no_numbers():
    plan = jnp.full((96, 48), jnp.nan)
    by = group_map(plan, jnp.arange(48), False, lists=assigned({"a": plan}, {"a": 2})["a"])
    assert np.isnan(times(by.pushforward, jnp.ones(96), 0)).all()


def test_derivatives_of_lists_are_those_of_the_product():
    plan, x = vertex(96, 48, 2), weights(96, 4)
    by = group_map(jnp.asarray(plan), jnp.arange(48), False, sources=2)
    weight = weights(48, 4, seed=2)
    got = jax.grad(lambda x: jnp.sum(weight * times(by.pushforward, x, 0)))(jnp.asarray(x))
    np.testing.assert_allclose(got, by_source(plan).T @ weight, atol=1e-5)


# Whole networks --------------------------------------------------------------------------------


def test_leaves_may_be_some_of_the_structure_s():
    leaves = reference.init("mlp", 0, (N, N))
    spec = reference.trace("mlp", leaves).spec(keep=M, solver="nearest")
    maps = ifjax.transport_maps(leaves, spec)
    whole = ifjax.apply_maps(leaves, spec, maps, kind="gradients")
    some = ifjax.apply_maps({"fc1.weight": leaves["fc1.weight"]}, spec, maps, kind="gradients")
    assert list(some) == ["fc1.weight"]
    first, second = (maps[f"fc{i}.weight"].map for i in (0, 1))
    expected = by_source(second) @ np.float64(leaves["fc1.weight"]) @ by_target(first).T
    for got in (some, whole):
        np.testing.assert_allclose(got["fc1.weight"], expected, atol=1e-6)


def test_the_whole_network_is_the_product_of_loops():
    """Both hidden layers of an mlp, by hand: W1' = A1 W1 M0^T and so on."""
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


@pytest.mark.parametrize("sources", [2, 7])
def test_sources_add_up_inside_of_jit_as_on_the_host(sources):
    rng = np.random.default_rng(0)
    plan = SparsePlan(
        rng.integers(0, 24, (6, sources), dtype=np.int32),
        rng.random((6, sources)).astype(np.float32),
    )
    x = rng.normal(size=(3, 24, 5)).astype(np.float32)
    expected = np.einsum("jk,ijkl->ijl", plan.weights, x[:, plan.sources])
    np.testing.assert_allclose(times(plan, x, 1), expected, rtol=1e-5)
    jitted = jax.jit(lambda by, x: times(by, x, 1))(jax.tree.map(jnp.asarray, plan), x)
    np.testing.assert_allclose(jitted, expected, rtol=1e-5)
