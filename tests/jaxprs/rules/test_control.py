"""Scan, while and cond: what goes through them, what is pinned, what other widths make of them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from tests.graph.laws import array, arrays, between, distance, hold, kept, zeroed


def steps(f, **options):
    """Applies f to a carry, twice by default."""
    options = {"xs": None, "length": 2} | options
    return lambda h: lax.scan(lambda c, _: (f(c), None), h, **options)[0]


def until(f, count):
    def run(h, count=count):
        step = lambda c: (c[0] + 1, f(c[1]))  # noqa: E731
        return lax.while_loop(lambda c: c[0] < count, step, (0, h))[1]

    return run


def choose(*branches):
    return lambda h: lax.switch((h[0, :].sum() > 0).astype(int), branches, h)


SMOOTH = {
    "scan": steps(jnp.sin),
    "reverse": lambda h: lax.scan(lambda c, x: (jnp.sin(c) + x, c * x), h[0], h, reverse=True)[1],
    "unroll": steps(lambda c: jnp.sin(c) + 0.1, length=5, unroll=2),
    "one step": steps(jnp.sin, length=1),
    "no step": lambda h: jnp.sin(steps(jnp.cos, length=0)(h)),
    "from zeros": lambda h: lax.scan(lambda c, x: (jnp.sin(c) + x, None), jnp.zeros(6), h)[0],
    "constants": lambda h: steps(lambda c: jnp.sin(c) + h)(h),
    "every second carry": lambda h: lax.scan(
        lambda c, _: ((c[1], jnp.sin(c[0])), c[0]), (h, 2 * h), None, length=3
    )[1].sum(0),
    "scan in scan": steps(steps(jnp.sin)),
    "fori_loop": lambda h: lax.fori_loop(0, 3, lambda i, c: jnp.sin(c) * (i + 1) + h, h),
    "map": lambda h: lax.map(jnp.sin, h),
    "map over the neurons": lambda h: lax.map(jnp.sin, h.T).T,
    "map in batches": lambda h: lax.map(jnp.sin, h, batch_size=3),
    "switch": choose(jnp.sin, lambda h: 2 * h),
    "cond": lambda h: lax.cond(h.sum() > 9, jnp.sin, lambda h: h + h[:1], h),
    "cond in scan": steps(lambda h: lax.cond(True, jnp.sin, jnp.cos, h) - 1.0),
    "one branch takes no operand": choose(lambda h: jnp.zeros_like(h) + h.sum(), jnp.sin),
    "platform": lambda h: lax.platform_dependent(h, tpu=jnp.cos, cpu=jnp.sin, default=jnp.tan),
    "remat in scan": steps(jax.checkpoint(lambda c: jnp.sin(jnp.sin(c)))),
    "scan in remat": jax.checkpoint(steps(lambda c: jnp.sin(jnp.sin(c)))),
    "vmap of scan": jax.vmap(steps(jnp.sin)),
    "grad of scan": jax.grad(lambda h: (steps(jnp.sin)(h) ** 3).sum()),
    "jvp of scan": lambda h: jax.jvp(steps(jnp.sin), (h,), (h,))[1],
}
FORWARD = {
    "while": until(jnp.sin, 3),
    "while with constants": lambda h: until(lambda c: jnp.sin(c) + h, 3)(h),
    "batched while": lambda h: jax.vmap(until(jnp.sin, 0))(h, jnp.array([1, 3, 0, 2])),
    "fori_loop of unknown length": lambda h: lax.fori_loop(
        0, (h.sum() > 9) + 2, lambda i, c: jnp.sin(c) * i + h, h
    ),
}
FORMS = SMOOTH | FORWARD


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.promotes(dtypes="its functions mix dtypes")
def test_the_group_passes_and_gradients_are_kept(form):
    f, p, x = between(FORMS[form], 6)
    f = jax.jit(f)
    graph = hold(f, p, x, groups={"a": 6})
    if form in FORWARD:
        return
    with jax.enable_x64(True):
        p, x = jax.tree.map(jnp.asarray, (p, x))
        selection = {"a": kept(6)}

        def gradient(apply):
            return jax.jit(jax.grad(lambda p: (apply(p, x) ** 2).sum()))

        small = gradient(ifjax.shrink(f, graph.spec(keep=3)))(ifjax.take(p, graph, selection))
        full = gradient(f)(zeroed(p, graph, selection))
        assert distance(small, jax.tree.map(jnp.zeros_like, small)) > 1e-4
        if graph.structure.group["a"].exact:
            assert distance(small, ifjax.take(full, graph, selection)) < 1e-9


def test_work_of_the_heaviest_branch_counts_and_that_of_a_while_once():
    def f(p, x):
        h = lax.cond(x[0, 0] > 0, lambda h: h @ p["a"] @ p["b"], lambda h: h @ p["c"], x)
        return lax.while_loop(lambda h: h.sum() < 0, lambda h: h @ p["d"], h)

    p = arrays(a=(3, 5), b=(5, 4), c=(3, 4), d=(4, 4))
    spec = ifjax.trace(f, p, array(2, 3)).spec(0.0)
    assert spec.flops()[0] == 2 * 2 * (3 * 5 + 5 * 4 + 4 * 4)


UNSOUND = {
    "rolled": steps(lambda c: jnp.roll(c, 1, -1)),
    "weighted by index": steps(lambda c: c * jnp.arange(6)),
    "cumulated": steps(lambda c: jnp.cumsum(c, -1)),
    "one neuron per step": lambda h: lax.fori_loop(
        0, 3, lambda i, c: c.at[:, 0].add(jnp.sin(c[:, 1])), h
    ),
    "neurons in a row": lambda h: lax.scan(lambda c, x: (c * 0.5 + x, c * 1.0), h[:, 0], h.T)[1].T,
    "a branch that reverses": choose(jnp.sin, lambda h: h[:, ::-1]),
    "a branch of constants": choose(lambda h: jnp.zeros_like(h) + jnp.arange(6.0), jnp.sin),
    "a fixed draw": steps(lambda c: c * jax.random.normal(jax.random.key(3), (6,))),
    "a fixed draw, carried key": lambda h: lax.scan(
        lambda c, _: ((jax.random.split(c[0])[0], c[1] * jax.random.normal(c[0], (6,))), None),
        (jax.random.key(3), h),
        None,
        length=2,
    )[0][1],
}


@pytest.mark.filterwarnings("ignore:random numbers are drawn with a constant key")
@pytest.mark.parametrize("form", UNSOUND)
@pytest.mark.promotes(
    dtypes="its functions mix dtypes", ranks="its networks add vectors to matrices"
)
def test_what_depends_on_the_order_is_pinned(form):
    f, p, x = between(UNSOUND[form], 6)
    hold(jax.jit(f), p, x, power=False)
    graph = ifjax.trace(f, p, x)
    assert not [g for g in graph.groups if g.size == 6]


def test_draws_from_a_given_key_follow_the_width():
    def f(p, x, key):
        def step(h, key):
            return jnp.sin(h) * jax.random.normal(key, h.shape), None

        h, _ = lax.scan(step, x @ p["a"], jax.random.split(key, 2))
        return h @ p["b"]

    p, x, key = (
        jax.tree.map(jnp.float32, arrays(a=(3, 6), b=(6, 2))),
        jnp.ones((4, 3)),
        jax.random.key(0),
    )
    graph = ifjax.trace(f, p, x, key)
    assert [g.size for g in graph.groups] == [6]
    small = ifjax.take(p, graph, {"a": kept(6)})
    assert ifjax.shrink(f, graph.spec(0.5))(small, x, key).shape == (4, 2)


def test_a_fixed_point_with_a_tolerance():
    """A deep equilibrium network: while the state moves, z = tanh(z A + x B)."""

    def f(p, x):
        drive = x @ p["b"]

        def moving(c):
            return (jnp.abs(c[0] - c[1]).max() > 1e-12) & (c[2] < 200)

        def step(c):
            return jnp.tanh(0.1 * c[0] @ p["a"] + drive), c[0], c[2] + 1

        return lax.while_loop(moving, step, (drive, drive + 1.0, 0))[0] @ p["o"]

    p = arrays(a=(8, 8), b=(3, 8), o=(8, 2))
    hold(jax.jit(f), p, array(4, 3), groups={"b": 8})


def test_leaves_that_only_decide_are_read():
    def f(p, x):
        h = jnp.sin(x @ p["a"])
        h, _ = lax.while_loop(
            lambda c: ((c[0] @ p["halt"]).sum() > 0) & (c[1] < 4),
            lambda c: (c[0] - 1.0, c[1] + 1),
            (h, 0),
        )
        h = lax.cond((h @ p["pick"]).sum() > 0, jnp.sin, jnp.cos, h)
        return h @ p["b"]

    p = arrays(a=(3, 6), halt=(6, 1), pick=(6, 1), b=(6, 2))
    graph = hold(jax.jit(f), p, array(4, 3), groups={"a": 6})
    assert graph.unused == ()
    assert {m.path for m in graph.groups[0].members} == {"a", "halt", "pick", "b"}


def test_roles_are_those_of_the_settled_carry():
    """The first step multiplies a constant with the kernel: two parameters, for all it knows."""

    def f(p, x):
        def step(h, t):
            return jnp.tanh(p["h"] @ h + p["x"] @ t), None

        return p["o"] @ lax.scan(step, jnp.zeros(6), x)[0]

    p = arrays(x=(6, 3), h=(6, 6), o=(2, 6))
    (group,) = hold(jax.jit(f), p, array(4, 3), groups={"h": 6}).groups
    roles = {(m.path, m.axis): m.role for m in group.members}
    assert roles["h", 0] == "producer"
    assert roles["h", 1] == "consumer"


def test_printing_from_within_a_loop_runs_once_per_step(capfd):
    def watch(c):
        jax.debug.print("step")
        return jnp.sin(c)

    f, p, x = between(steps(watch, length=3), 6)
    graph = ifjax.trace(f, p, x)
    small = jax.tree.map(jnp.float32, ifjax.take(p, graph, {"a": kept(6)}))
    capfd.readouterr()
    ifjax.shrink(f, graph.spec(0.5))(small, jnp.float32(x))
    jax.effects_barrier()
    assert capfd.readouterr().out.count("step") == 3


# steps on a state of 6 x 6, so that its axes can change places; w is one of some kernels
PIECES = [
    lambda h, w: jnp.sin(h),
    lambda h, w: jnp.tanh(h @ w),
    lambda h, w: jnp.tanh(w @ h),
    lambda h, w: h.T,
    lambda h, w: h + w[0],
    lambda h, w: h * w[:, :1],
    lambda h, w: h + jnp.tanh(h @ w[:, :4]) @ w[:4],
    lambda h, w: h - h.mean(1, keepdims=True),
    lambda h, w: jnp.concatenate([h[:, 3:], h[:, :3]], 1),
    lambda h, w: jnp.roll(h, 1, 0),
    lambda h, w: h.reshape(2, 3, 6).sum(0).repeat(2, 0) / 3,
    lambda h, w: jax.nn.softmax(h, -1) + jnp.pad(h[:, :4], ((0, 0), (1, 1))),
]
LOOPS = [
    lambda f, g: lambda h: lax.fori_loop(0, 2, lambda i, c: f(c), h),
    lambda f, g: lambda h: lax.cond(h.sum() > 0, f, g, h),
    lambda f, g: lambda h: until(lambda c: f(c) + g(h), 2)(jnp.zeros((6, 6))) + h,
    lambda f, g: lambda h: lax.scan(lambda c, r: (f(c) + r, g(c)[0]), h, h.T, reverse=True)[1].T,
    lambda f, g: lambda h: lax.map(lambda r: g(f(h) * r).sum(0), h),
]


def random_function(rng, depth=0):
    """A few pieces one after another, loops of such among them."""
    chosen = []
    for _ in range(rng.integers(1, 4)):
        if depth < 2 and rng.random() < 0.5:
            loop = LOOPS[rng.integers(len(LOOPS))]
            inside = [random_function(rng, depth + 1) for _ in range(2)]
            chosen.append(
                lambda p, h, loop=loop, inside=inside: loop(
                    *(functools.partial(f, p) for f in inside)
                )(h)
            )
        else:
            piece, name = PIECES[rng.integers(len(PIECES))], f"w{rng.integers(4)}"
            chosen.append(lambda p, h, piece=piece, name=name: piece(h, p[name]))
    return lambda p, h: functools.reduce(lambda h, f: f(p, h), chosen, h)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_random_loops(seed):
    body = random_function(np.random.default_rng(seed))

    def f(p, x):
        return body(p, p["i"] @ (x @ p["a"])) @ p["b"]

    shapes = {f"w{i}": (6, 6) for i in range(4)}
    hold(jax.jit(f), arrays(a=(3, 6), i=(6, 4), b=(6, 2), **shapes), array(4, 3), power=False)
