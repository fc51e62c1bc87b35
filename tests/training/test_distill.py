from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

import ifjax
from ifjax.models import DecoderConfig, DecoderWidths, decoder, init_decoder
from ifjax.training import create_state, make_distill_step, make_train_step
from ifjax.training.distill import distillation_loss, feature_loss

KEYS = jax.random.split(jax.random.key(0), 4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_the_divergence_of_scipy(temperature):
    s, t = (jax.random.normal(k, (3, 5, 7)) * 3 for k in KEYS[:2])
    p, q = (scipy.special.softmax(np.float64(x) / temperature, -1) for x in (t, s))
    wanted = temperature**2 * scipy.special.rel_entr(p, q).sum(-1)
    found = distillation_loss(s, t, temperature)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(distillation_loss(s, s, temperature), 0, atol=1e-6)


def test_at_high_temperature_its_gradient_is_that_of_the_logits_difference():
    s, t = (jax.random.normal(k, (7,)) for k in KEYS[:2])
    grad = jax.grad(lambda x: distillation_loss(x, t, 1e3))(s)
    wanted = ((s - s.mean()) - (t - t.mean())) / 7
    np.testing.assert_allclose(grad, wanted, atol=1e-3)


def test_features():
    a, b = (jax.random.normal(k, (4, 6)) for k in KEYS[:2])
    wide = jnp.ones((4, 9))
    cosine = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(feature_loss([a], [b]), 1 - np.mean(cosine), atol=1e-6)
    np.testing.assert_allclose(feature_loss([a, a], [b, wide]), feature_loss([a], [b]))
    l2 = np.square(a - b).mean() / np.square(b).mean()
    np.testing.assert_allclose(feature_loss([a], [b], "l2"), l2, rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: feature_loss([x], [b]))(jnp.zeros_like(a))).all()


def linear(variables, x):
    return x @ variables["params"]["w"], {}


def test_with_labels_alone_it_is_the_ordinary_step():
    optimizer = optax.adam(0.1)
    teacher = {"params": {"w": jax.random.normal(KEYS[0], (5, 3))}}
    x, y = jax.random.normal(KEYS[1], (8, 5)), jnp.arange(8) % 3
    steps = (
        make_distill_step(
            linear, lambda v, x: linear(v, x)[0], teacher, optimizer, label_weight=1.0
        ),
        make_train_step(linear, optimizer),
    )
    found = []
    for step in steps:
        state = create_state({"params": {"w": jnp.zeros((5, 3))}}, optimizer)
        for _ in range(3):
            state, metrics = step(state, x, y)
        found.append((state.variables["params"]["w"], *metrics))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *found)


def test_a_cut_decoder_recovers_without_labels():
    """Text is the teacher's own input; no token is ever looked up as a label."""
    widths = DecoderWidths(13, 16, 24, 4, 2, 4, 2)
    config, params = DecoderConfig(0.5), init_decoder(KEYS[0], widths)
    apply_fn = functools.partial(decoder, config)
    tokens = jax.random.randint(KEYS[1], (8, 12), 0, 13)
    spec = ifjax.trace(apply_fn, params, tokens).spec({"*gate": 0.5}, method="prune")
    small = ifjax.fuse_params(params, spec)
    optimizer = optax.adam(3e-3)
    step = make_distill_step(
        lambda v, x: (apply_fn(v["params"], x), {}), apply_fn, params, optimizer, temperature=1.0
    )
    state = create_state({"params": small}, optimizer)
    losses = []
    for number in range(60):
        state, metrics = step(state, tokens, jnp.full(tokens.shape, -number))
        losses.append(metrics.loss.item())
    assert losses[-1] < 0.2 * losses[0]
    kl = distillation_loss(apply_fn(small, tokens), apply_fn(params, tokens)).mean()
    assert losses[0] == pytest.approx(kl.item(), rel=1e-4)
    assert jnp.isfinite(params["embedding"]).all()  # the teacher was not donated


def test_features_in_the_step_pull_the_streams_together():
    def student(v, x):
        h = jnp.tanh(x @ v["params"]["a"])
        return (h @ v["params"]["b"], [h]), {}

    a, b = jax.random.normal(KEYS[0], (5, 6)), jax.random.normal(KEYS[1], (6, 3))
    teacher = {"params": {"a": a, "b": b}}
    x, optimizer = jax.random.normal(KEYS[2], (32, 5)), optax.adam(0.03)
    start = {"params": {"a": a + 0.5 * jax.random.normal(KEYS[3], (5, 6)), "b": b}}

    def after(weight):
        step = make_distill_step(
            student, lambda v, x: student(v, x)[0], teacher, optimizer, feature_weight=weight
        )
        state = create_state(start, optimizer)
        for _ in range(40):
            state, _ = step(state, x, jnp.zeros(32, int))
        return feature_loss([student(state.variables, x)[0][1][0]], [jnp.tanh(x @ a)])

    assert after(1.0) < 0.5 * after(0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distillation_loss(jnp.ones(3), jnp.ones(3), 0.0), "temperature"),
        (lambda: distillation_loss(jnp.ones(3), jnp.ones(4)), "the same classes"),
        (lambda: feature_loss([], [jnp.ones(3)]), "as many features"),
        (lambda: feature_loss([jnp.ones(2)], [jnp.ones(3)]), "no features are of equal width"),
        (lambda: feature_loss([], [], "l1"), "kind"),
        (lambda: make_distill_step(linear, linear, {}, optax.sgd(1.0), label_weight=2.0), "label"),
        (lambda: make_distill_step(linear, linear, {}, optax.sgd(1.0), feature_weight=-1.0), "fea"),
    ],
)
def test_what_does_not_fit_is_refused(call, message, unchecked):
    with pytest.raises(ValueError, match=message):
        call()
