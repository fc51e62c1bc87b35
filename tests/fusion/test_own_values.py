"""Metrics, solvers and targets of somebody's own: values that nothing has registered."""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax import importance
from ifjax.transport import Exact, KMeans, Neurons, Solver
from ifjax.transport.solvers import HostSolver
from tests import reference

WIDTHS = {"mlp": (8, 6), "vgg": (6, 8)}


def init(model):
    return reference.init(model, 0, WIDTHS[model])


@functools.cache
def traced(model):
    return reference.trace(model, init(model), 1e-2)


@dataclasses.dataclass(frozen=True)
class Largest(importance.Metric):
    """The largest weight of a neuron, to a power: the order of ``linf``."""

    power: float = 2.0

    def member(self, x, axis):
        return jnp.abs(x).max([i for i in range(x.ndim) if i != axis]) ** self.power


@dataclasses.dataclass(frozen=True)
class OwnGradients(Largest):
    reads: ClassVar = "gradients"


@dataclasses.dataclass(frozen=True)
class OwnExact(HostSolver):
    """SciPy's assignment, or POT's network simplex, by another class."""

    optimal: ClassVar[bool] = True

    def __call__(self, cost, a, b, init=None):
        return Exact()(cost, a, b)

    def solve_all(self, costs, a, b):
        return Exact().solve_all(costs, a, b)


@dataclasses.dataclass(frozen=True)
class Bottom(Neurons):
    def first(self, scores, k):
        return jax.lax.top_k(-scores, k)[1]


@pytest.mark.parametrize("model", ["mlp", "vgg"])
def test_a_metric_and_a_solver_of_ones_own_do_what_the_library_s_do(model):
    params, graph = init(model), traced(model)
    own = graph.spec(0.5, importance=Largest(1.0), solver=OwnExact())
    ours = graph.spec(0.5, importance="linf", solver="exact")
    assert hash(own) == hash(graph.spec(0.5, importance=Largest(1.0), solver=OwnExact()))
    got, expected = (ifjax.fuse_params(params, spec) for spec in (own, ours))
    for path in expected:
        np.testing.assert_array_equal(got[path], expected[path], err_msg=path)


def test_values_of_two_solvers_on_the_host_solve_side_by_side():
    """One call each: what the cut decides is which of them a group is for."""
    params, graph = init("mlp"), traced("mlp")

    @dataclasses.dataclass(frozen=True)
    class BySize(Solver):
        def __call__(self, cost, a, b, init=None):
            raise NotImplementedError

        def at(self, n, m, *, uniform, backend=None):
            return OwnExact() if n == 8 else Exact()

    options = {"order": "simultaneous"}
    got = ifjax.transport_maps(params, graph.spec(0.5, solver=BySize(), **options))
    expected = ifjax.transport_maps(params, graph.spec(0.5, solver="exact", **options))
    assert len(expected) == 2
    for name in expected:
        np.testing.assert_array_equal(got[name].map, expected[name].map)


def test_a_metric_of_ones_own_reads_the_statistics_that_it_names():
    params, graph = init("mlp"), traced("mlp")
    spec = graph.spec(0.5, importance=OwnGradients(1.0), normalization="none", reduction="sum")
    with pytest.raises(ValueError, match=r"OwnGradients\(power=1\.0\) needs gradients"):
        ifjax.neuron_scores(params, spec)
    rng = np.random.default_rng(0)
    grads = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in params.items()}
    got = ifjax.neuron_scores(params, spec, ifjax.Stats(gradients=grads))["fc0.weight"]
    products = [np.abs(params[p] * grads[p]) for p in ("fc0.weight", "fc1.weight")]
    np.testing.assert_allclose(got, products[0].max(1) + products[1].max(0), rtol=1e-6)


def test_targets_of_ones_own_are_kept():
    params, graph = init("mlp"), traced("mlp")
    spec = graph.spec({"fc0*": 0.5}, targets=Bottom(), solver="nearest")
    scores = ifjax.neuron_scores(params, spec)["fc0.weight"]
    (found,) = ifjax.transport_maps(params, spec).values()
    np.testing.assert_array_equal(found.targets, np.sort(np.argsort(scores)[:4]))
    few = graph.spec({"fc0*": 0.5}, targets=KMeans(starts=1), solver="nearest")
    assert few != graph.spec({"fc0*": 0.5}, targets=KMeans(), solver="nearest")
    assert ifjax.fuse_params(params, few)["fc0.weight"].shape == (4, 6)


@dataclasses.dataclass(frozen=True)
class Chosen(Neurons):
    """The neurons that it is told, where there are as many as the group asks for or not."""

    indices: tuple[float, ...]

    def first(self, scores, k):
        return jnp.asarray(self.indices)


@dataclasses.dataclass(frozen=True)
class ChosenInNumpy(Chosen):
    in_numpy: ClassVar[bool] = True

    def first(self, scores, k):
        return np.asarray(self.indices)


@pytest.mark.parametrize("own", [Chosen, ChosenInNumpy])
@pytest.mark.parametrize("method", ["prune", "fuse"])
@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ((0, 1, 2), r"an array of 4 integers, .*; got int\d+ of shape \(3,\)"),
        ((0.0, 1.0, 2.0, 3.0), r"an array of 4 integers, .*; got float\d+ of shape \(4,\)"),
        ((0, 1, 2, 2), r"indices in \[0, 8\), all different; got \[0, 1, 2, 2\]"),
        ((0, 1, 2, 8), r"indices in \[0, 8\), all different; got \[0, 1, 2, 8\]"),
        ((-1, 1, 2, 3), r"indices in \[0, 8\), all different; got \[-1, 1, 2, 3\]"),
    ],
    ids=["number", "type", "twice", "above", "below"],
)
def test_neurons_that_are_none_of_the_group_are_refused(own, method, indices, message):
    params, graph = init("mlp"), traced("mlp")
    spec = graph.spec({"fc0*": 0.5}, targets=own(indices), method=method, solver="nearest")
    with pytest.raises(ValueError, match=rf"targets Chosen.* of group fc0\.weight: .*{message}"):
        ifjax.fuse_params(params, spec)


@pytest.mark.parametrize("options", [{"method": "prune"}, {"solver": "nearest"}, {}])
@pytest.mark.parametrize("indices", [(0, 1, 2, 8), (-1, 1, 2, 3), (0, 1, 2, 2), (7, 1, 2, 4)])
def test_neurons_that_are_none_of_the_group_are_refused_inside_jit_too(indices, options):
    """By the host: jax itself would read the nearest one."""
    params = init("mlp")
    spec = traced("mlp").spec({"fc0*": 0.5}, targets=Chosen(indices), **options)
    fuse = jax.jit(functools.partial(ifjax.fuse_params, spec=spec))
    if indices == (7, 1, 2, 4):
        kept = [1, 2, 4, 7]
        got, want = fuse(params), ifjax.fuse_params(params, spec)
        np.testing.assert_array_equal(
            ifjax.transport_maps(params, spec)["fc0.weight"].targets, kept
        )
        for path in want:
            np.testing.assert_allclose(got[path], want[path], rtol=1e-5, atol=1e-6)
        return
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"all different; got \["):
        jax.block_until_ready(fuse(params))


@dataclasses.dataclass(frozen=True)
class Mistaken(HostSolver):
    """Takes one mass more to the first target than it says."""

    def __call__(self, cost, a, b, init=None):
        return Exact()(cost, a, b)

    def sources(self, n, m):
        return n // m

    def solve_all(self, costs, a, b):
        found = []
        for cost, mass in zip(costs, a, strict=True):
            *batch, n, m = cost.shape
            target = np.arange(n) % m
            target[m + 1] = 0
            plan = np.broadcast_to(np.eye(m)[target], cost.shape) * mass[..., None]
            found.append((plan, np.ones(batch, bool)))
        return found


def test_a_solver_that_is_wrong_about_its_sources_is_told():
    """On the host by an error, inside of jit by what is no number."""
    graph = ifjax.trace(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], *wide())
    spec = graph.spec(0.5, solver=Mistaken())
    with pytest.raises(ValueError, match=r"every target has 2 sources .* a target with 3"):
        ifjax.fuse_params(wide()[0], spec)
    got = jax.jit(functools.partial(ifjax.fuse_params, spec=spec))(wide()[0])
    assert np.isnan(got["a"][:, 1]).all()
    assert np.isnan(got["b"][1]).all()


def wide():
    rng = np.random.default_rng(0)
    a, b, x = (rng.standard_normal(s).astype(np.float32) for s in ((3, 96), (96, 2), (1, 3)))
    return {"a": jnp.asarray(a), "b": jnp.asarray(b)}, jnp.asarray(x)


def test_a_number_of_neurons_is_known_inside_jit():
    spec = traced("mlp").spec({"fc0*": 0.5}, targets=Chosen((0, 1, 2)), method="prune")
    with pytest.raises(ValueError, match=r"Chosen\.first to give an array of 4 integers"):
        jax.eval_shape(functools.partial(ifjax.fuse_params, spec=spec), init("mlp"))


@dataclasses.dataclass(frozen=True)
class Constant(importance.Metric):
    value: float

    def member(self, x, axis):
        return jnp.full(x.shape[axis], self.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_of_ones_own_are_finite(value):
    params, graph = init("mlp"), traced("mlp")
    spec = graph.spec({"fc0*": 0.5}, importance=Constant(value), normalization="none")
    message = r"importance Constant.* of group fc0\.weight: expected finite scores of Constant"
    for function in (ifjax.fuse_params, ifjax.neuron_scores, ifjax.transport_maps):
        with pytest.raises(ValueError, match=message):
            function(params, spec)
    below = graph.spec({"fc0*": 0.5}, importance=Constant(-1.0), normalization="none")
    assert np.all(np.isfinite(ifjax.fuse_params(params, below)["fc0.weight"]))


@dataclasses.dataclass(frozen=True)
class Wrong(importance.Metric):
    how: str

    def member(self, x, axis):
        n = x.shape[axis]
        match self.how:
            case "one number":
                return jnp.sum(x)
            case "too few":
                return jnp.ones(n - 1)
            case "a column":
                return jnp.ones((n, 1))
            case "a list":
                return [1.0] * n
            case "nothing":
                return None
        return jnp.ones(n, jnp.complex64)


WRONG = {
    "one number": r"of shape \(\)",
    "too few": r"of shape \(\d+,\)",
    "a column": r"of shape \(\d+, 1\)",
    "a list": "got a list",
    "nothing": "got a NoneType",
    "complex": "got numbers of complex64",
}


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("how", WRONG)
def test_scores_of_ones_own_are_one_real_number_for_each_neuron(how, jitted):
    """Which jit knows too."""
    spec = traced("mlp").spec({"fc0*": 0.5}, importance=Wrong(how), method="prune")
    fuse = functools.partial(ifjax.fuse_params, spec=spec)
    if jitted:
        fuse = functools.partial(jax.eval_shape, fuse)
    with pytest.raises(ValueError, match=f"importance Wrong.*expected one score.*{WRONG[how]}"):
        fuse(init("mlp"))
