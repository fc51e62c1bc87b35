"""Calls that are understood, or refused at once with what to write."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax

PARAMS = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
X = jnp.ones((2, 3))


def network(p, x):
    return jax.nn.relu(x @ p["a"]) @ p["b"]


@pytest.fixture
def graph():
    return ifjax.trace(network, PARAMS, X)


@pytest.mark.usefixtures("unchecked")
def test_shrink_takes_a_spec(graph):
    with pytest.raises(TypeError, match=r"got DependencyGraph: say .* graph\.spec\(0\.5\)"):
        ifjax.shrink(network, graph)
    with pytest.raises(TypeError, match=r"expected a FusionSpec, .*, got dict"):
        ifjax.shrink(network, PARAMS)
    with pytest.raises(TypeError, match=r"expected a FusionSpec, .*, got function"):
        ifjax.shrink(graph.spec(0.5), network)
    with pytest.raises(TypeError, match=r"shrink\(apply_fn, spec\) with a func.*, got dict"):
        ifjax.shrink(PARAMS, graph.spec(0.5))


@pytest.mark.usefixtures("unchecked")
def test_trace_takes_the_function_first_and_the_parameters_second():
    with pytest.raises(TypeError, match="got dict first and a function second: they are swapped"):
        ifjax.trace(PARAMS, network, X)
    with pytest.raises(TypeError, match="got dict first"):
        ifjax.trace(PARAMS, X)
    message = r"an array of shape \(2, 3\) and an input is a dict of 2 arrays: .* come before"
    with pytest.raises(TypeError, match=message.replace("an array", "one array")):
        ifjax.trace(network, X, PARAMS)
    with pytest.raises(KeyError):  # an error of the function's own stays
        ifjax.trace(lambda p, x: p["c"], PARAMS, X)


FIRST = {
    "allocate": lambda f, p, g: ifjax.allocate(f, p, g, [X], 0.5),
    "collect_moments": lambda f, p, g: ifjax.collect_moments(f, p, [X]),
    "collect_stats": lambda f, p, g: ifjax.collect_stats(f, p, g, [X], metrics=["chip"]),
    "compress": lambda f, p, g: ifjax.compress(f, p, g.spec(0.5), [X]),
    "reset_statistics": lambda f, p, g: ifjax.reset_statistics(f, p, [X]),
    "synthesize": lambda f, p, g: ifjax.synthesize(f, p, X, count=4, key=jax.random.key(0)),
    "verify": lambda f, p, g: g.verify(f, p, X),
}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("call", FIRST)
def test_the_function_stands_before_the_parameters_everywhere(graph, call):
    message = rf"expected {call}\(apply_fn, params.*got dict first and a function second"
    with pytest.raises(TypeError, match=message):
        FIRST[call](PARAMS, network, graph)


@pytest.mark.usefixtures("unchecked")
def test_fuse_tree_takes_the_spec_before_the_maps(graph):
    spec = graph.spec(0.5)
    with pytest.raises(TypeError, match=r"expected a FusionSpec, .*, got dict"):
        ifjax.fuse_tree(PARAMS, ifjax.transport_maps(PARAMS, spec), spec)


@pytest.mark.parametrize(
    "half", [jnp.float32(0.5), np.float32(0.5), np.float64(0.5), np.array(0.5), jnp.bfloat16(0.5)]
)
def test_numbers_of_any_kind(graph, half):
    assert graph.spec(half) == graph.spec(0.5) == graph.spec({"a": half})
    assert graph.spec(keep=jnp.int32(3)) == graph.spec(keep=np.int64(3)) == graph.spec(keep=3)


def test_single_precision_is_what_was_written():
    params = {"a": jnp.ones((3, 10)), "b": jnp.ones((10, 2))}
    graph = ifjax.trace(network, params, X)
    for third in (jnp.float32(0.3), np.float32(0.3), 0.3):
        assert graph.spec(third).structure.widths == {"a": 7}


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "bad", [jnp.float32(1.5), np.array([0.5, 0.5]), "0.5", True, jnp.float32(jnp.nan)]
)
def test_numbers_that_are_none_are_refused(graph, bad):
    with pytest.raises(ValueError, match=r"sparsity must be a number in \[0, 1\)"):
        graph.spec(bad)


@pytest.mark.parametrize(
    ("option", "nearest"),
    [("sparsty", "sparsity"), ("roundto", "round_to"), ("epsilom", "epsilon"), ("sover", "solver")],
)
def test_misspelt_options_list_all_the_nearest_first(graph, option, nearest):
    with pytest.raises(ValueError, match=rf"'{option}' of spec; expected one of {nearest}, ") as e:
        graph.spec(**{option: 0.5})
    for name in ("sparsity", "keep", "protect", "importance", "solver", "seed"):
        assert name in str(e.value)


def test_misspelt_values_too(graph):
    with pytest.raises(ValueError, match=r"solver must be one of sinkhorn, .*; got 'sinkorn'"):
        graph.spec(0.5, solver="sinkorn")
    with pytest.raises(ValueError, match=r"merge must be one of preserving, reference; got 'pres"):
        graph.spec(0.5, merge="preserve")


def cell(p, x, h):
    h = jnp.tanh(x @ p["w"] + h @ p["u"])
    return h @ p["o"], h


CELL = {"w": jnp.ones((3, 8)), "u": jnp.ones((8, 8)), "o": jnp.ones((8, 2))}
H = jnp.ones((2, 8))


def test_a_carry_is_named_on_both_sides():
    for one in ("inputs/1", "outputs/1", "input*"):
        with pytest.raises(ValueError, match=r"of the same shape, .*sides: state=\['\w+puts/1"):
            ifjax.trace(cell, CELL, X, H, state=one)
    message = r"the outputs outputs/0, outputs/1; a recurrent carry .* state=\['inputs/1', 'outp"
    with pytest.raises(ValueError, match=message):
        ifjax.trace(cell, CELL, X, H, state="h")
    with pytest.raises(ValueError, match=r"inputs/1, outputs/1 fix the width of w .*state="):
        ifjax.trace(cell, CELL, X, H).spec(0.5)
    graph = ifjax.trace(cell, CELL, X, H, state=["inputs/1", "outputs/1"])
    assert [group.size for group in graph.groups] == [8]


def test_state_on_one_side_alone_may_be_meant():
    """Nothing of its shape goes out: memory that is read, or a cache that is made."""
    read = lambda p, x, m: network(p, x) + (m @ p["b"]).sum(0)  # noqa: E731
    graph = ifjax.trace(read, PARAMS, X, jnp.ones((5, 8)), state="inputs/1")
    assert [group.size for group in graph.groups] == [8]


def test_chip_asks_for_no_loss(graph):
    for importance, loss in (("chip", False), ("taylor", True), ("fisher", True)):
        with pytest.raises(ValueError, match="statistics hold none") as e:
            ifjax.fuse_params(PARAMS, graph.spec(0.5, importance=importance))
        assert ("loss_fn" in str(e.value)) == loss


# Importance from the leaves that have gradients ---------------------------------------------------

LORA = {"w": 0, "A": 1, "B": 2, "o": 3}
SHAPES = {"w": (5, 8), "A": (5, 3), "B": (3, 8), "o": (8, 2)}


def lora(p, x):
    return jnp.tanh(x @ p["w"] + (x @ p["A"]) @ p["B"]) @ p["o"]


def adapters(seed=0):
    keys = jax.random.split(jax.random.key(seed), 4)
    return {k: jax.random.normal(keys[i], SHAPES[k]) for k, i in LORA.items()}


@pytest.mark.parametrize("held", [("A", "B"), ("B",), ("w", "o")])
@pytest.mark.parametrize("reduction", ["mean", "sum", "max"])
def test_gradients_of_some_leaves_score_the_neurons_that_they_lead_to(held, reduction):
    p, x = adapters(), jax.random.normal(jax.random.key(9), (4, 5))
    grads = jax.grad(lambda some: (lora({**p, **some}, x) ** 2).sum())({k: p[k] for k in held})
    graph = ifjax.trace(lora, p, x)
    spec = graph.spec({"w": 0.5}, importance="taylor", reduction=reduction, normalization="none")
    scores = ifjax.neuron_scores(p, spec, ifjax.Stats(gradients=grads))["w"]
    along = {"w": 0, "B": 0, "o": 1}
    single = [np.abs((p[k] * grads[k]).sum(along[k])) for k in held if k in along]
    one = (
        single[0]
        if len(single) == 1
        else {"sum": sum, "max": lambda s: np.maximum(*s)}.get(reduction, lambda s: sum(s))(single)
    )
    ratio = np.asarray(scores) / one  # a frozen kernel adds nothing
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def test_a_group_without_any_gradient_is_named():
    p, x = adapters(), jnp.ones((4, 5))
    graph = ifjax.trace(lora, p, x)
    spec = graph.spec({"w": 0.5}, importance="taylor")
    with pytest.raises(ValueError, match=r"got none; group w needs gradients of at least one of B"):
        ifjax.fuse_params(p, spec, stats=ifjax.Stats(gradients={"A": p["A"]}))
    spec = graph.spec({"w": 0.5}, importance="taylor", reduction="first")
    producers = [m.path for m in spec.structure.group["w"].members if m.role == "producer"]
    with pytest.raises(ValueError, match=rf"gradients of {producers[0]}: .*'first' reads this one"):
        ifjax.fuse_params(p, spec, stats=ifjax.Stats(gradients={"o": p["o"]}))
