"""Importance: one score per neuron of a group.

A metric reads a group as its *member matrices*: one ``[n, k]`` matrix per producer and consumer
kernel, whose row ``i`` holds every weight of neuron ``i`` in that kernel. Biases and norms are no
members. `IMPORTANCES` maps names to metrics of one signature, `Importance`; a further metric joins
by an entry in it.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Members: TypeAlias = Sequence[Float[Array, "n _"]]
Importance: TypeAlias = Callable[[Members, PRNGKeyArray | None], Float[Array, " n"]]


def score(name: str, members: Members, key: PRNGKeyArray | None = None) -> Float[Array, " n"]:
    """Scores the neurons of a group with the metric of the given name.

    Args:
      name: a key of `IMPORTANCES`: ``"l1"`` and ``"l2"`` (sum of absolute and of squared weights),
        ``"linf"`` (largest absolute weight), ``"random"`` (uniform in [0, 1), needs a key).
      members: one ``[n, k]`` matrix per producer and consumer kernel, rows are neurons.
      key: a random key, for the metrics that draw.

    Returns:
      One score per neuron; the neurons of highest score are the ones to keep.

    Raises:
      ValueError: for an unknown name, no members, members that disagree on ``n``, or a metric that
        draws and has no key.

    Example:
      >>> import jax.numpy as jnp
      >>> score("l1", [jnp.array([[1.0, -2.0], [0.5, 0.5]])])
      Array([1.5, 0.5], dtype=float32)
    """
    if name not in IMPORTANCES:
        raise ValueError(f"unknown importance {name!r}; known: {', '.join(sorted(IMPORTANCES))}")
    return IMPORTANCES[name](members, key)


def magnitude(members: Members, p: float | int) -> Float[Array, " n"]:
    r"""Mean over the members of each neuron's p-th power sum, relative to the average neuron.

    .. math::
        s_i = \frac{1}{K} \sum_{k=1}^{K} \sum_j |W^{(k)}_{ij}|^p, \qquad
        \text{score}_i = s_i \Big/ \frac{1}{n} \sum_l s_l

    and :math:`\max_j |W^{(k)}_{ij}|` in the place of the power sum for ``p = inf``. Note that no
    p-th root is taken: ``p = 2`` is the sum of squares, as in the Intra-Fusion reference.

    Args:
      members: one ``[n, k]`` matrix per producer and consumer kernel, rows are neurons.
      p: the power, positive or ``inf``.

    Returns:
      Scores whose mean is one, in float32 (float64 for float64 members); all zero where every
      weight is zero.

    Raises:
      ValueError: for a power that is not positive, no members, or members that disagree on ``n``.

    References:
      Theus et al., `Towards Meta-Pruning via Optimal Transport
      <https://arxiv.org/abs/2402.07839>`_, ICLR 2024, section 3.

    Example:
      >>> import jax.numpy as jnp
      >>> magnitude([jnp.array([[1.0], [3.0]]), jnp.array([[1.0, 1.0], [0.0, 2.0]])], p=2)
      Array([0.375, 1.625], dtype=float32)
    """
    if not p > 0:
        raise ValueError(f"magnitude needs p > 0 or inf, got p = {p}")
    _check(members)
    total = sum(_power_sums(rows, p) for rows in members) / len(members)
    mean = jnp.mean(total)
    return total / jnp.where(mean > 0, mean, 1)


def _power_sums(rows: Float[Array, "n _"], p: float | int) -> Float[Array, " n"]:
    """The sum of |w|^p over each row, or its largest |w| for p = inf."""
    weights = jnp.abs(rows.astype(_dtype(rows)))
    if math.isinf(p):
        return jnp.max(weights, axis=1, initial=0)
    return jnp.sum(weights if p == 1 else weights**p, axis=1)


def _l1(members: Members, key: PRNGKeyArray | None) -> Float[Array, " n"]:
    """Sum of absolute weights."""
    del key
    return magnitude(members, 1)


def _l2(members: Members, key: PRNGKeyArray | None) -> Float[Array, " n"]:
    """Sum of squared weights."""
    del key
    return magnitude(members, 2)


def _linf(members: Members, key: PRNGKeyArray | None) -> Float[Array, " n"]:
    """Largest absolute weight."""
    del key
    return magnitude(members, math.inf)


def _random(members: Members, key: PRNGKeyArray | None) -> Float[Array, " n"]:
    """Uniform in [0, 1), the baseline that knows nothing of the weights."""
    _check(members)
    if key is None:
        raise ValueError("importance 'random' draws its scores: pass key=jax.random.key(seed)")
    return jax.random.uniform(key, (members[0].shape[0],), _dtype(*members))


def _check(members: Members) -> None:
    """Refuses a group without members, or with members of different numbers of neurons."""
    if not members:
        raise ValueError("importance needs at least one member matrix [n, k], got none")
    shapes = [tuple(rows.shape) for rows in members]
    if any(len(shape) != 2 or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"member matrices must all be [n, k] with one n, got shapes {shapes}")


def _dtype(*arrays: Array) -> jnp.dtype:
    """At least float32."""
    return jnp.result_type(jnp.float32, *arrays)


IMPORTANCES: dict[str, Importance] = {"l1": _l1, "l2": _l2, "linf": _linf, "random": _random}
