from __future__ import annotations

import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax import Stats
from ifjax.fusion import inputs as checks
from ifjax.spec.method import Method
from ifjax.spec.spec import check_spec
from ifjax.transport.transport import Transport
from tests import reference

PLAN = reference.trace("mlp", reference.init("mlp", 0, (4, 3))).structure
NAME, N = PLAN.groups[0].name, PLAN.groups[0].size


def transport(**changed) -> Transport:
    fields = dict.fromkeys(Transport._fields, jnp.zeros(()))
    fields |= {"map": jnp.zeros((N, N // 2)), "converged": jnp.asarray(True)}
    return Transport(**(fields | changed))


def test_what_is_no_spec_scores_stats_or_map_is_told_by_its_type():
    """Without the type checks of the tests, which would be first."""
    with pytest.raises(TypeError, match=r"expected a FusionSpec, as graph\.spec.*got dict"):
        check_spec({})
    for function, arguments, message in (
        (checks.checked_scores, (np.ones(N), PLAN), "scores by group name, got ndarray"),
        (
            checks.checked_stats,
            ({"w": 1}, PLAN, Method(importance="taylor"), {}),
            r"ifjax\.Stats, got dict; .* ifjax\.Stats\(gradients=grads\)",
        ),
        (checks.checked_maps, ({NAME: np.ones((N, 1))}, PLAN), f"group {NAME}: .*got ndarray"),
    ):
        spec = reference.trace("mlp", reference.init("mlp", 0, (4, 3))).spec(0.5)
        arguments = tuple(spec.structure if a is PLAN else a for a in arguments)
        with pytest.raises(TypeError, match=message):
            inspect.unwrap(function)(*arguments)


def test_unknown_groups_are_refused_with_the_names_of_some():
    assert checks.known_group(PLAN, NAME).size == N
    with pytest.raises(ValueError, match=f"unknown group 'nope'; the groups are {NAME}"):
        checks.known_group(PLAN, "nope")


@pytest.mark.promotes(dtypes="inside of a public function")
def test_scores_are_promoted_and_stopped():
    found = checks.checked_scores({NAME: np.arange(N)}, PLAN)
    assert found[NAME].dtype == jnp.float32
    gradient = jax.grad(lambda x: checks.checked_scores({NAME: x}, PLAN)[NAME].sum())(jnp.ones(N))
    np.testing.assert_array_equal(gradient, 0)
    assert checks.checked_scores(None, PLAN) == {}
    with pytest.raises(ValueError, match=rf"expected shape \({N},\), got \(2,\)"):
        checks.checked_scores({NAME: np.ones(2)}, PLAN)
    with pytest.raises(ValueError, match="expected finite numbers"):
        checks.checked_scores({NAME: np.full(N, np.inf)}, PLAN)
    with pytest.raises(ValueError, match="expected real numbers, got complex64"):
        checks.checked_scores({NAME: np.ones(N, np.complex64)}, PLAN)


@pytest.mark.parametrize("bad", [[], [[0]], [0.5], [N], [-1]])
def test_indices_are_integers_in_range(bad):
    assert checks.checked_indices(PLAN, NAME, [1, 0]).tolist() == [1, 0]
    with pytest.raises(ValueError, match=f"group {NAME}: expected"):
        checks.checked_indices(PLAN, NAME, bad)


def test_every_cut_group_needs_a_map_of_its_shape():
    spec = reference.trace("mlp", reference.init("mlp", 0, (4, 3))).spec(keep={NAME: N // 2})
    checks.checked_maps({NAME: transport()}, spec.structure)
    with pytest.raises(ValueError, match="got none"):
        checks.checked_maps({}, spec.structure)
    with pytest.raises(ValueError, match=r"got \(1, 1\)"):
        checks.checked_maps({NAME: transport(map=jnp.zeros((1, 1)))}, spec.structure)


def test_a_solver_that_failed_is_told_with_the_remedy():
    checks.check_converged({NAME: transport()}, Method())
    failed = transport(converged=jnp.asarray(False), iterations=jnp.asarray(7))
    with pytest.raises(RuntimeError, match=r"1 of 1 groups.*after 7 iterations.*larger epsilon"):
        checks.check_converged({NAME: failed}, Method())


def stats_of(importance, stats, scores=()):
    return checks.checked_stats(
        stats, PLANNED, Method(importance=importance), dict.fromkeys(scores)
    )


PLANNED = reference.trace("mlp", reference.init("mlp", 0, (4, 3))).spec(keep={NAME: 2}).structure
FISHER = {NAME: np.arange(N, dtype=np.float16)}


@pytest.mark.promotes(dtypes="inside of a public function")
def test_statistics_are_needed_where_the_importance_and_a_group_without_scores_want_them():
    assert stats_of("l1", None) is None
    assert stats_of("fisher", None, [NAME]) is None
    assert stats_of("fisher", Stats(fisher=FISHER)).fisher[NAME].dtype == jnp.float32
    with pytest.raises(ValueError, match=r"'fisher' needs fisher .*: pass stats=ifjax\.collect_st"):
        stats_of("fisher", None)
    with pytest.raises(
        ValueError, match=r"'taylor' needs gradients .* or stats=ifjax\.Stats\(grad"
    ):
        stats_of("taylor", Stats(fisher=FISHER))


@pytest.mark.parametrize(
    ("importance", "stats", "message"),
    [
        ("fisher", Stats(fisher={}), rf"fisher of {NAME}: expected shape \({N},\), got none"),
        ("fisher", Stats(fisher={NAME: np.ones(9)}), r"got \(9,\); stats\.fisher must be stat"),
        ("chip", Stats(chip={NAME: np.ones((N, 2))}), rf"\({N},\) or \({N}, {N}\), got \({N}, 2"),
        ("taylor", Stats(gradients={"a": np.ones(3)}), r"got none; .* a tree like the parameters"),
        ("fisher", Stats(fisher=FISHER, count=0), "at least one example, got count 0"),
        ("chip", Stats(chip={NAME: np.full(N, np.nan)}), "expected finite numbers"),
    ],
    ids=["missing", "shape", "matrix", "gradients", "count", "nan"],
)
def test_statistics_that_do_not_fit_are_refused(importance, stats, message):
    with pytest.raises(ValueError, match=message):
        stats_of(importance, stats)


def test_no_gradient_flows_into_statistics():
    def total(x):
        return stats_of("fisher", Stats(fisher={NAME: x})).fisher[NAME].sum()

    np.testing.assert_array_equal(jax.grad(total)(jnp.ones(N)), 0)


NORMED = reference.init("vgg", 0, (4, 6, 5))
STATISTICS = [(norm.mean, norm.variance) for norm in reference.trace("vgg", NORMED).structure.norms]


@pytest.mark.parametrize("function", [ifjax.fuse_params, ifjax.transport_maps])
def test_statistics_that_a_network_begins_with_are_told(function):
    """All of them, some of them; not where a single mean or variance has moved."""
    spec = reference.trace("vgg", NORMED).spec(0.5, method="prune")
    begun = dict(NORMED)
    for mean, var in STATISTICS:
        begun |= {mean: jnp.zeros_like(NORMED[mean]), var: jnp.ones_like(NORMED[var])}
    with pytest.warns(UserWarning, match=r"have not settled.*ifjax\.reset_statistics") as found:
        function(begun, spec)
    assert len(found) == 1
    assert f"of {len(STATISTICS)} of {len(STATISTICS)} batch norms" in str(found[0].message)
    mean, var = STATISTICS[0]
    with pytest.warns(UserWarning, match=f"of 1 of {len(STATISTICS)} batch norms, first {mean}"):
        function(NORMED | {mean: begun[mean], var: begun[var]}, spec)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        function(NORMED, spec)
        function(NORMED | {mean: begun[mean].at[0].set(1e-6), var: begun[var]}, spec)
        function(NORMED | {mean: begun[mean], var: begun[var].at[1].set(0.5)}, spec)
        jax.jit(function, static_argnames="spec")(begun, spec=spec)  # nothing is seen there


def test_averages_that_begin_with_zeros_are_told():
    """As haiku's, of variances too."""
    norms = reference.trace("vgg", NORMED).structure.norms
    zeros = {path: jnp.zeros_like(NORMED[path]) for norm in STATISTICS for path in norm}
    with pytest.warns(UserWarning, match="means 0 and variances 0"):
        checks.warn_of_unsettled(zeros, norms)
