"""What a training run carries from step to step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree


class TrainState(NamedTuple):
    """Everything a step changes.

    Attributes:
        step: steps done so far.
        variables: the tree that the network takes, ``{"params": ..., "batch_stats": ...}``; only
            ``"params"`` is optimized, the others are what the network's train mode returns.
        opt_state: the optimizer's state for ``variables["params"]``.
        key: the base of all randomness; step ``t`` uses ``fold_in(key, t)``, so that a run that
            continues from a saved state draws what the unbroken run would have drawn.
    """

    step: Int[Array, ""]
    variables: PyTree
    opt_state: PyTree
    key: Key[Array, ""]


def create_state(
    variables: PyTree, optimizer: optax.GradientTransformation, seed: int = 0
) -> TrainState:
    """Builds the state before the first step, in buffers of its own.

    Args:
        variables: the network's variables, a mapping with the key ``"params"``. They are copied: a
            train step donates its state, and the caller's arrays must outlive it.
        optimizer: the transformation that the train step will use.
        seed: of the run's random key.

    Returns:
        A state at step 0.

    Raises:
        ValueError: if ``variables`` has no ``"params"``.

    Example:
        >>> import optax, jax.numpy as jnp
        >>> state = create_state({"params": {"w": jnp.ones(3)}}, optax.sgd(0.1))
        >>> int(state.step)
        0
    """
    if "params" not in variables:
        raise ValueError(
            f'variables must hold "params", found only {sorted(variables)}; wrap a bare tree of '
            'parameters as {"params": params}'
        )
    variables = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), dict(variables))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        variables=variables,
        opt_state=optimizer.init(variables["params"]),
        key=jax.random.key(seed),
    )
