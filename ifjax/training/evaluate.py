"""Accuracy and loss over a whole data set."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from ifjax.data import Batch
from ifjax.training.loss import cross_entropy

EvalStep = Callable[[PyTree, Any, Any, Any], tuple[Array, Array]]
"""``(variables, images, labels, mask) -> (number correct, sum of losses)``."""


class Evaluation(NamedTuple):
    """What a network reaches on a data set.

    Attributes:
        accuracy: fraction of examples classified correctly, in ``[0, 1]``.
        loss: mean cross-entropy in nats.
        count: number of examples.
    """

    accuracy: float
    loss: float
    count: int


def make_eval_step(
    apply_eval: Callable[[PyTree, Array], Array],
    prepare: Callable[[Array], Array] = lambda images: images,
) -> EvalStep:
    """Builds a jitted ``(variables, images, labels, mask) -> (number correct, sum of losses)``.

    Rows where ``mask`` is False do not count, so that one compilation serves the last, partial
    batch too. An example whose logits are not all finite counts as wrong.

    Args:
        apply_eval: the network in eval mode, ``(variables, images) -> logits``. For a compressed
            network pass ``ifjax.shrink(apply_eval, spec)``.
        prepare: what turns stored images into the network's input, such as normalisation.

    Returns:
        The step, for :func:`evaluate`.

    Example:
        >>> step = make_eval_step(lambda variables, x: x @ variables["w"])
    """

    @jax.jit
    def eval_step(
        variables: PyTree,
        images: Shaped[Array, "b ..."],
        labels: Int[Array, " b"],
        mask: Bool[Array, " b"],
    ) -> tuple[Int[Array, ""], Float[Array, ""]]:
        logits = apply_eval(variables, prepare(images))
        right = (logits.argmax(axis=-1) == labels) & jnp.isfinite(logits).all(axis=-1)
        losses = cross_entropy(logits, labels)
        return jnp.sum(right & mask), jnp.sum(jnp.where(mask, losses, 0.0))

    return eval_step


def evaluate(eval_step: EvalStep, variables: PyTree, batches: Iterable[Batch]) -> Evaluation:
    """Evaluates every example that the batches do not mask, exactly once.

    Args:
        eval_step: as ``make_eval_step`` returns it; batches of one shape need one compilation.
        variables: the network's variables.
        batches: the data set, as from :func:`ifjax.data.eval_batches`.

    Returns:
        Accuracy, mean loss and count.

    Raises:
        ValueError: if there is no example.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> step = make_eval_step(lambda variables, x: x @ variables["w"])
        >>> mask = np.array([True, True, False])
        >>> batch = Batch(np.eye(3, dtype=np.float32), np.array([0, 2, 2]), mask)
        >>> evaluate(step, {"w": jnp.eye(3)}, [batch]).accuracy
        0.5
    """
    count, totals = 0, []
    for batch in batches:
        totals.append(eval_step(variables, *batch))
        count += int(np.sum(batch.mask))
    if count == 0:
        raise ValueError("expected at least one example to evaluate, got none")
    right, losses = zip(*jax.device_get(totals), strict=True)
    return Evaluation(int(np.sum(right)) / count, float(np.sum(losses)) / count, count)
