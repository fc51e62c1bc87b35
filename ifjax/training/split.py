"""Training k models on k folds at once: ``jax.pmap`` over the folds, no traffic between them."""

from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from ifjax.data import Batch
from ifjax.training.evaluate import EvalStep, Evaluation, make_eval_step
from ifjax.training.layout import AXIS, Layout, collect, place
from ifjax.training.state import TrainState, create_state
from ifjax.training.step import ApplyTrain, Prepare, TrainStep, plain_train_step


def create_split_state(
    variables: Sequence[PyTree],
    optimizer: optax.GradientTransformation,
    layout: Layout,
    seed: int = 0,
) -> TrainState:
    """Builds the states of all folds before the first step, and puts them where they are trained.

    Args:
        variables: of each fold, as for :func:`ifjax.training.create_state`; the same tree ``k``
            times where all are to start alike.
        optimizer: the transformation that the split step will use.
        layout: of the folds.
        seed: fold ``i`` has the random key of an ordinary run with seed ``seed + i``.

    Returns:
        A *split state*: every leaf, step and key included, is ``[local devices, lanes, ...]``.

    Raises:
        ValueError: if there are not as many variables as folds, or they hold no ``"params"``.

    Example:
        >>> from ifjax.training.layout import make_layout
        >>> layout = make_layout(2, 64, jax.devices()[:1])
        >>> variables = {"params": {"w": jnp.ones(3)}}
        >>> create_split_state([variables, variables], optax.sgd(0.1), layout).step.shape
        (1, 2)
    """
    if len(variables) != layout.folds:
        raise ValueError(
            f"expected the variables of each of {layout.folds} folds, got {len(variables)} trees"
        )
    states = [create_state(tree, optimizer, seed + fold) for fold, tree in enumerate(variables)]
    return place(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), layout)


def make_split_step(
    apply_train: ApplyTrain,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    label_smoothing: float = 0.0,
    prepare: Prepare | None = None,
) -> TrainStep:
    """Builds a step of every fold's model at once: the ordinary step, mapped over the folds.

    Without replicas each device runs the ordinary step for each of its lanes, with the same
    numbers, and nothing is communicated. Replicas take a part of the batch each, and average
    gradients, metrics and what train mode updates. Batch norm then normalises by the statistics of
    the part; the running statistics are the mean of those of the parts. Each replica augments with
    a key of its own.

    Args:
        apply_train: as for :func:`ifjax.training.make_train_step`.
        optimizer: as there.
        layout: of the folds.
        label_smoothing: as there.
        prepare: as there.

    Returns:
        The step ``(state, images, labels) -> (state, metrics)``: states as
        :func:`create_split_state` makes them and donated, images and labels ``[local devices,
        lanes, batch / replicas, ...]``, metrics ``[local devices, lanes]``.

    Example:
        >>> from ifjax.training.layout import make_layout
        >>> layout, optimizer = make_layout(2, 3, jax.devices()[:1]), optax.sgd(1.0)
        >>> variables = {"params": {"w": jnp.zeros((3, 2))}}
        >>> state = create_split_state([variables, variables], optimizer, layout)
        >>> step = make_split_step(lambda v, x: (x @ v["params"]["w"], {}), optimizer, layout)
        >>> images, labels = np.eye(3)[None, None], np.array([[[0, 1, 1]]])
        >>> state, metrics = step(state, images.repeat(2, 1), labels.repeat(2, 1))
        >>> metrics.loss.round(4).tolist()
        [[0.6930999755859375, 0.6930999755859375]]
    """
    groups = layout.groups
    if groups is None:
        step = plain_train_step(apply_train, optimizer, label_smoothing, prepare)
    else:

        def mean(leaf: Array) -> Array:
            if not jnp.issubdtype(leaf.dtype, jnp.inexact):
                return leaf
            return jax.lax.pmean(leaf, AXIS, axis_index_groups=groups)

        def prepare_part(key: Array, images: Array) -> Array:
            replica = jax.lax.axis_index(AXIS) % layout.replicas
            return images if prepare is None else prepare(jax.random.fold_in(key, replica), images)

        step = plain_train_step(
            apply_train,
            optimizer,
            label_smoothing,
            prepare_part,
            lambda tree: jax.tree.map(mean, tree),
        )
    return jax.pmap(
        _over_lanes(step, layout), axis_name=AXIS, devices=layout.devices, donate_argnums=0
    )


def make_split_eval_step(
    apply_eval: Callable[[PyTree, Array], Array],
    layout: Layout,
    prepare: Callable[[Array], Array] = lambda images: images,
) -> EvalStep:
    """Builds ``(variables, images, labels, mask) -> (number correct, sum of losses)`` of all folds.

    Args:
        apply_eval: as for :func:`ifjax.training.make_eval_step`.
        layout: of the folds.
        prepare: as there.

    Returns:
        The step, for :func:`evaluate_folds`: variables are ``[local devices, lanes, ...]``, the
        batch is ordinary and goes to every model, the results are ``[local devices, lanes]``.

    Example:
        >>> from ifjax.training.layout import make_layout
        >>> layout = make_layout(2, 64, jax.devices()[:1])
        >>> step = make_split_eval_step(lambda variables, x: x @ variables["w"], layout)
    """
    one = make_eval_step(apply_eval, prepare)

    def step(variables: PyTree, *batch: Array):
        return _over_lanes(lambda variables: one(variables, *batch), layout)(variables)

    return jax.pmap(step, axis_name=AXIS, in_axes=(0, None, None, None), devices=layout.devices)


def evaluate_folds(
    eval_step: EvalStep, variables: PyTree, batches: Iterable[Batch], layout: Layout
) -> list[Evaluation]:
    """Evaluates the models of all folds on the same examples.

    On several hosts, every one has to call it, with the same batches.

    Args:
        eval_step: as :func:`make_split_eval_step` returns it.
        variables: leaves ``[local devices, lanes, ...]``, such as a split state's.
        batches: the data set, as from :func:`ifjax.data.eval_batches`.
        layout: of the folds.

    Returns:
        Accuracy, mean loss and count of every fold's model.

    Raises:
        ValueError: if there is no example.

    Example:
        >>> from ifjax.training.layout import make_layout
        >>> layout = make_layout(2, 64, jax.devices()[:1])
        >>> step = make_split_eval_step(lambda variables, x: x @ variables["w"], layout)
        >>> w = place({"w": np.stack([np.eye(2), np.eye(2)[::-1]])}, layout)
        >>> batch = Batch(np.eye(2), np.array([0, 1]), np.ones(2, bool))
        >>> [found.accuracy for found in evaluate_folds(step, w, [batch], layout)]
        [1.0, 0.0]
    """
    count, totals = 0, []
    for batch in batches:
        totals.append(eval_step(variables, *batch))
        count += int(np.sum(batch.mask))
    if count == 0:
        raise ValueError("expected at least one example to evaluate, got none")
    right, losses = (
        collect(np.sum(np.stack(jax.device_get(parts)), axis=0), layout)
        for parts in zip(*totals, strict=True)
    )
    return [
        Evaluation(int(hits) / count, float(loss) / count, count)
        for hits, loss in zip(right, losses, strict=True)
    ]


def _over_lanes(function: Callable, layout: Layout) -> Callable:
    """Runs the very program of one model for every lane of one device, in one program.

    Vectorised over the lanes a convolution would have kernels of its own per example, a grouped
    one: three times slower on a CPU, and compiled for minutes on a GPU.
    """

    def lane(number: int, args: tuple[PyTree, ...]) -> PyTree:
        # Without the barriers XLA fuses the leading axis into the model's own arithmetic, which
        # then rounds other than the ordinary step's, in the last bit.
        args = jax.lax.optimization_barrier(jax.tree.map(lambda leaf: leaf[number], args))
        return jax.lax.optimization_barrier(function(*args))

    def every(*args: PyTree) -> PyTree:
        found = [lane(number, args) for number in range(layout.lanes)]
        return jax.tree.map(lambda *each: jnp.stack(each), *found)

    return every
