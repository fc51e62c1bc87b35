"""Groups that are called exact are cut by zeroing; those that are not are told apart."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tests.graph.laws import array, arrays, between, hold

EXACT = {
    "relu": jax.nn.relu,
    "exp, which is one at zero": jnp.exp,
    "sum of the neurons": lambda h: h + jax.nn.silu(h).sum(1, keepdims=True),
    "gate of the neurons": lambda h: h * jax.nn.sigmoid(h),
    "dropped at random": lambda h: jnp.where(h > 0.1, h / 0.9, 0.0),
    "norm over the batch": lambda h: (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5),
    "softmax over the batch": lambda h: jax.nn.softmax(h, axis=0),
    "half of them twice": lambda h: jnp.concatenate([h, h], 1),
}
INEXACT = {
    "softmax": lambda h: jax.nn.softmax(h, axis=1),
    "layer norm": lambda h: (h - h.mean(1, keepdims=True)) / (h.std(1, keepdims=True) + 1),
    "unit length": lambda h: h / jnp.linalg.norm(h, axis=1, keepdims=True),
    "square as a product": lambda h: h / jnp.sqrt((h * h).sum(1, keepdims=True)),
    "square as a contraction": lambda h: h / jnp.sqrt(jnp.einsum("nd,nd->n", h, h))[:, None],
    "sum of what is one at zero": lambda h: h + jnp.cos(h).sum(1, keepdims=True),
    "largest": lambda h: h + jnp.abs(h).max(1, keepdims=True),
}


@pytest.mark.parametrize("case", EXACT)
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_exact(case):
    f, p, x = between(EXACT[case], out=16 if "twice" in case else 8)
    (group,) = hold(f, p, x, groups={"a": 8}).groups
    assert group.exact


@pytest.mark.parametrize("case", INEXACT)
def test_inexact(case):
    (group,) = hold(*between(INEXACT[case]), groups={"a": 8}).groups
    assert not group.exact


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_a_product_summed_by_hand_is_a_contraction():
    def f(p, x):
        return (jnp.tanh(x @ p["a"])[:, None, :] * p["b"]).sum(-1)

    (group,) = hold(f, arrays(a=(3, 6), b=(2, 6)), array(4, 3), groups={"a": 6}).groups
    assert group.exact


def test_queries_and_keys_are_exact_without_a_norm_and_inexact_with_one():
    def attend(norm):
        def f(p, x):
            q, k, v = (norm(x @ p[n]) for n in "qkv")
            return jax.nn.softmax(q @ k.T) @ v @ p["o"]

        return f

    p, x = arrays(q=(3, 6), k=(3, 6), v=(3, 5), o=(5, 2)), array(4, 3)
    graph = hold(attend(jnp.tanh), p, x, groups={"q": 6, "v": 5})
    assert [g.exact for g in graph.groups] == [True, True]
    unit = lambda h: h / jnp.linalg.norm(h, axis=-1, keepdims=True)  # noqa: E731
    graph = hold(attend(unit), p, x, groups={"q": 6, "v": 5})
    assert [g.exact for g in graph.groups] == [False, False]


def test_a_recurrent_kernel_is_exact():
    def f(p, x):
        h = jnp.zeros((4, 5))
        for _ in range(3):
            h = jnp.tanh(x @ p["i"] + h @ p["h"])
        return h @ p["o"]

    (group,) = hold(f, arrays(i=(3, 5), h=(5, 5), o=(5, 2)), array(4, 3), groups={"i": 5}).groups
    assert group.exact


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_normalised_weights():
    def f(p, x):
        w = p["w"] - p["w"].mean(0)  # weight standardisation
        return jnp.tanh(x @ p["a"]) @ (w / jnp.linalg.norm(w, axis=0))

    (group,) = hold(f, arrays(a=(3, 6), w=(6, 2)), array(4, 3), groups={"a": 6}).groups
    assert not group.exact
