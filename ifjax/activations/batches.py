"""Batches of data in the forms that people have them in, read alike everywhere.

A batch is a tuple of what the function takes after its parameters, ``(x,)`` or ``(tokens, mask)``;
one array or one dictionary that is its only input; or a pair of inputs and targets, ``(x, y)`` or
``((x,), y)``, of which the targets are left aside where nothing asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

import jax
from jaxtyping import PyTree

from ifjax.jaxprs.arguments import Arguments, is_array

FORMS = (
    "expected every batch to be a tuple of what the function takes after its parameters, (x,) for "
    "one input, or this input alone, an array or a dictionary; with targets a pair of it and them, "
    "(x, y) or ((x,), y)"
)


def each_batch(batches: object) -> Iterable[PyTree]:
    """The batches; one array is one batch, not as many as it has rows.

    Args:
      batches: an iterable of batches, or an array.

    Returns:
      Something to iterate over.

    Raises:
      TypeError: for anything else.

    Example:
      >>> import numpy as np
      >>> len(each_batch(np.ones((5, 2))))
      1
    """
    if is_array(batches):
        return [batches]
    if isinstance(batches, str | Mapping) or not isinstance(batches, Iterable):
        raise TypeError(
            f"expected an iterable of batches, such as [(x,)], got {type(batches).__name__}"
        )
    return batches


def inputs_of(batch: PyTree, apply_fn: Callable[..., PyTree], params: PyTree) -> tuple[PyTree, ...]:
    """What the function takes of a batch after its parameters.

    Two things may be two inputs, or an input and its targets: two inputs where the function can be
    traced with them.

    Args:
      batch: in any of the forms.
      apply_fn: ``apply_fn(params, *inputs)``.
      params: its parameters.

    Returns:
      The inputs; values that are no arrays are static.

    Raises:
      TypeError: for something that is no batch.

    Example:
      >>> import numpy as np
      >>> x, y = np.ones((5, 2)), np.ones((3, 5))
      >>> apply = lambda p, x: x @ p
      >>> for batch in (x, (x,), (x, y), ((x,), y), [x, y]):
      ...     inputs = inputs_of(batch, apply, np.ones((2, 4)))
      ...     assert len(inputs) == 1 and inputs[0] is x
    """
    two = _is_pair(batch) and any(map(is_array, jax.tree.leaves(batch[1])))
    if two and not _takes(apply_fn, params, tuple(batch)):
        inputs = _inputs(batch[0])
        if _takes(apply_fn, params, inputs):
            return inputs
    return _inputs(batch)


def read_inputs(
    batches: object, apply_fn: Callable[..., PyTree], params: PyTree
) -> Iterator[tuple[PyTree, ...]]:
    """The inputs of every batch, see `inputs_of`; the function is traced once for one form.

    Args:
      batches: see `each_batch`.
      apply_fn: the function.
      params: its parameters.

    Yields:
      Inputs.
    """
    targets: dict[Hashable, bool] = {}
    for batch in each_batch(batches):
        form = jax.tree.structure(batch) if _is_pair(batch) else None
        if form is not None and targets.get(form):
            yield _inputs(batch[0])
            continue
        inputs = _inputs(batch) if form in targets else inputs_of(batch, apply_fn, params)
        if form is not None:
            targets[form] = len(inputs) != 2 or inputs[1] is not batch[1]
        yield inputs


def pair_of(batch: PyTree) -> tuple[tuple[PyTree, ...], PyTree]:
    """Inputs and targets of a batch.

    Args:
      batch: a pair of them.

    Returns:
      A tuple of inputs, and the targets.

    Raises:
      TypeError: for something that is no pair.

    Example:
      >>> import numpy as np
      >>> inputs, targets = pair_of((np.ones((5, 2)), np.ones(5)))
      >>> len(inputs), targets.shape
      (1, (5,))
    """
    if not _is_pair(batch):
        raise TypeError(
            "expected a batch to be a pair ((input, ...), targets), or (input, targets), for the "
            f"loss needs targets; got {_described(batch)}"
        )
    return _inputs(batch[0]), batch[1]


def count_examples(inputs: Sequence[PyTree], targets: PyTree = None) -> int:
    """The number of examples on axis 0 of every array.

    Args:
      inputs: of a batch.
      targets: of it.

    Returns:
      Their number.

    Raises:
      TypeError: for values that are no arrays.
      ValueError: where the arrays differ in it, or have none.

    Example:
      >>> import numpy as np
      >>> count_examples((np.ones((5, 2)), np.ones(5)))
      5
    """
    leaves = jax.tree.leaves((tuple(inputs), targets))
    for x in leaves:
        if not is_array(x):
            raise TypeError(
                f"expected arrays in a batch, got {type(x).__name__}; bind options of the function "
                "with functools.partial"
            )
    sizes = {x.shape[:1] for x in leaves}
    if len(sizes) != 1 or () in sizes or (0,) in sizes:
        shapes = [tuple(x.shape) for x in leaves]
        raise ValueError(
            "expected the examples, at least one, on axis 0 of every array of a batch, got shapes "
            f"{shapes}"
        )
    return leaves[0].shape[0]


def _is_pair(batch: PyTree) -> bool:
    return isinstance(batch, tuple | list) and len(batch) == 2


def _inputs(batch: PyTree) -> tuple[PyTree, ...]:
    """A tuple of inputs, of one or several."""
    found = tuple(batch) if isinstance(batch, tuple | list) else (batch,)
    known = isinstance(batch, tuple | list | Mapping) or is_array(batch)
    if not known or not any(map(is_array, jax.tree.leaves(found))):
        raise TypeError(f"{FORMS}; got {_described(batch)}")
    return found


def _described(batch: PyTree) -> str:
    if isinstance(batch, tuple | list):
        return f"({', '.join(type(x).__name__ for x in batch)})"
    return type(batch).__name__


def _takes(apply_fn: Callable[..., PyTree], params: PyTree, inputs: tuple[PyTree, ...]) -> bool:
    """Whether a function can be traced with some inputs."""
    arguments = Arguments.split(inputs)
    if not arguments.arrays:
        return False
    try:
        jax.eval_shape(lambda p, x: apply_fn(p, *arguments.join(x)), params, arguments.arrays)
    except Exception:  # whatever the function says of inputs that are not its own
        return False
    return True
