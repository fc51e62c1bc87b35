"""Inputs for calibration where there are no data: made from a network's own running statistics.

The mean and variance that a batch norm keeps are what the training data looked like from there.
Inputs that look the same from every norm stand in for them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ifjax.activations.batches import inputs_of
from ifjax.activations.norm_inputs import NormInputs, find_norm_inputs
from ifjax.activations.progress import shown_progress
from ifjax.activations.window_axes import window_axes
from ifjax.jaxprs.arguments import Arguments, check_order
from ifjax.jaxprs.compiling import jitted_with_options
from ifjax.jaxprs.evaluate import Seen, evaluate
from ifjax.promotion import with_promotion
from ifjax.tree import promoted, wide_dtype

COLOURS = 0.9  # correlation of the channels of photographs, at one place


@with_promotion
def synthesize(
    apply_fn: Callable[..., Any],
    params: PyTree,
    inputs: Any,
    count: int,
    key: Any,
    *,
    batch_size: int = 128,
    steps: int = 400,
    learning_rate: float = 0.05,
    label_weight: float = 0.1,
    variation_weight: float = 0.05,
) -> list[tuple[Any, ...]]:
    r"""Makes inputs that every batch norm finds as usual as those it was trained on.

    Adam moves a batch of inputs x, while the parameters stay, to a minimum of

    .. math::
        \sum_l \frac{1}{C_l} \sum_c \frac{(m_{lc} - \mu_{lc})^2 + (s_{lc} - \sigma_{lc})^2}
        {\sigma_{lc}^2} + 0.1 \, H(y, f(x)) + 0.05 \, V(x)

    where m and s are mean and standard deviation of what channel c of batch norm l reads,
    :math:`\mu` and :math:`\sigma` those that the norm keeps (its epsilon is in both deviations), H
    the cross-entropy to random labels y, as many of each class, and V the mean absolute difference
    of neighbours.

    Inputs along whose axes the function slides a window (images, sounds, volumes, whichever way
    their axes lie) start as pink noise, with the same power in every octave, and the label and
    variation terms apply. Other inputs start as independent Gaussian numbers, without variation.
    Both have mean 0 and variance 1, as inputs that are normalised. The label term is left out where
    the output is not one floating-point array [n, classes].

    Args:
      apply_fn: the *eval-mode* function ``apply_fn(params, *inputs)``.
      params: its parameters, running statistics included.
      inputs: what it takes after its parameters, in a form of `ifjax.activations.batches`; only the
        shapes count, structs do. Examples lie along axis 0; every array is floating point.
      count: how many inputs to make.
      key: a random key, ``jax.random.key(0)``; the same one makes the same inputs.
      batch_size: at most so many inputs meet the statistics together. All batches are of one size,
        and a program is compiled once.
      steps: of Adam, per batch.
      learning_rate: of Adam.
      label_weight: of the cross-entropy; 0 for outputs [n, d] that are not logits of classes.
      variation_weight: of the differences of neighbours.

    Returns:
      Batches, tuples of what the function takes after its parameters, with ``count`` inputs
      together; a terminal sees how far it is.

    Raises:
      ValueError: for a function without running statistics, or with batch norms inside of loops; if
        count, batch size or steps are not positive; if the inputs become NaN or infinite.
      TypeError: for inputs that are not floating point.

    References:
      Yin et al., `Dreaming to Distill: Data-free Knowledge Transfer via DeepInversion
      <https://arxiv.org/abs/1912.08795>`_, CVPR 2020, sections 3.2 and 3.3.

    Example:
      >>> params = {"mean": jnp.array([3.0, -1.0]), "variance": jnp.array([4.0, 0.25])}
      >>> apply = lambda p, x: (x - p["mean"]) / jnp.sqrt(p["variance"] + 1e-5)
      >>> shape = jax.ShapeDtypeStruct((1, 2), jnp.float32)
      >>> (x,), = synthesize(apply, params, shape, 64, jax.random.key(0), label_weight=0.0)
      >>> [round(m, 1) for m in x.mean(0).tolist()], [round(s, 1) for s in x.std(0).tolist()]
      ([3.0, -1.0], [2.0, 0.5])
    """
    check_order("synthesize(apply_fn, params, ...)", apply_fn, params)
    for name, n in (("count", count), ("batch_size", batch_size), ("steps", steps)):
        if n < 1:
            raise ValueError(f"expected {name} to be at least 1, got {n}")
    sizes = _sizes(count, batch_size)
    arguments = resized(Arguments.split(inputs_of(inputs, apply_fn, params)), sizes[0])
    found = norms_of(apply_fn, params, arguments, derivatives=True)
    weights = label_weight, variation_weight
    optimizer = optax.adam(learning_rate)

    @jitted_with_options
    def step(leaves: list[Any], labels: Array, state: _State) -> _State:
        gradients = jax.grad(_objective)(state.arrays, leaves, labels, found, arguments, weights)
        updates, moments = optimizer.update(gradients, state.moments)
        return _State(optax.apply_updates(state.arrays, updates), moments)  # type: ignore[arg-type]

    leaves, batches = jax.tree.leaves(params), []
    with shown_progress(len(sizes) * steps, "synthesize", "steps") as done:
        for i, size in enumerate(sizes):
            start, labels = jax.random.split(jax.random.fold_in(key, i))
            arrays = _starts(start, found, arguments)
            state = _State(arrays, optimizer.init(arrays))
            for _ in range(steps):
                state = step(leaves, labels, state)
                done()
            made = [_like(x[:size], y) for x, y in zip(state.arrays, arguments.arrays, strict=True)]
            _check_finite(made, arguments)
            batches.append(arguments.join(made))
    return batches


class _State(NamedTuple):
    """The inputs on their way, at least in float32, and Adam's moments."""

    arrays: list[Array]
    moments: Any


def _sizes(count: int, batch_size: int) -> list[int]:
    """How many inputs each batch gives: all as many as the first, the last as many as are left."""
    batches = math.ceil(count / batch_size)
    size = math.ceil(count / batches)
    return [size] * (batches - 1) + [count - size * (batches - 1)]


def resized(arguments: Arguments, n: int) -> Arguments:
    """Structs of the inputs, with n examples along axis 0."""
    structs = []
    for path, x in zip(arguments.paths, arguments.arrays, strict=True):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(
                f"{path}: expected floating-point inputs, along whose gradient one can go, got "
                f"{x.dtype}; bind others to the function with functools.partial"
            )
        if not x.shape:
            raise TypeError(f"{path}: expected examples along axis 0, got a number")
        structs.append(jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype))
    if not structs:
        raise TypeError("expected at least one array among the inputs, got none")
    return dataclasses.replace(arguments, arrays=tuple(structs))


def norms_of(
    apply_fn: Callable[..., Any], params: PyTree, arguments: Arguments, derivatives: bool = False
) -> NormInputs:
    """What the batch norms read; raises ValueError where there are none with statistics."""
    found = find_norm_inputs(apply_fn, params, arguments, True, derivatives)
    if not found.norms:
        raise ValueError(
            "expected a function with batch norms whose running statistics are among its "
            "parameters, for they are all that is known of its data, found none; pass the "
            "eval-mode function, or calibrate with a few inputs of your own"
        )
    return found


def _starts(key: Array, found: NormInputs, arguments: Arguments) -> list[Array]:
    """Noise of mean 0 and variance 1 in the shapes of the inputs."""
    arrays = []
    for i, struct in enumerate(arguments.arrays):
        x = jax.random.normal(jax.random.fold_in(key, i), struct.shape, wide_dtype(struct.dtype))
        axes = slid_axes(found, i, struct.ndim)
        arrays.append(_pink(_coloured(x, axes), axes) if axes else x)
    return arrays


def slid_axes(found: NormInputs, i: int, ndim: int) -> tuple[int, ...]:
    """The axes of an input along which a window moves, but for the examples."""
    number = found.program.inputs[len(found.paths) + i]
    return tuple(a for a in window_axes(found.program, number, ndim) if a)


def _coloured(x: Array, axes: Sequence[int]) -> Array:
    """The same numbers, correlated along the other axes but the first."""
    channels = tuple(a for a in range(1, x.ndim) if a not in axes)
    n = math.prod(x.shape[a] for a in channels)
    common = jnp.sum(x, channels, keepdims=True) / math.sqrt(n)  # of variance 1
    own = x - common / math.sqrt(n)  # of covariance 1 - 1/n, uncorrelated with it
    shared = math.sqrt((1 + COLOURS * (n - 1)) / n)
    return shared * common + math.sqrt(1 - COLOURS) * own


def _pink(x: Array, axes: Sequence[int]) -> Array:
    """Filtered along d axes to a power of 1 / f^d, the same in every octave."""
    shape = [x.shape[a] for a in axes]
    frequencies = np.meshgrid(*map(np.fft.fftfreq, shape), indexing="ij")
    f = np.sqrt(sum(np.square(g) for g in frequencies))
    amplitude = np.maximum(f, 1 / max(shape)) ** (-len(axes) / 2)
    amplitude /= np.sqrt(np.mean(np.square(amplitude)))
    around = [n if a in axes else 1 for a, n in enumerate(x.shape)]
    spectrum = jnp.fft.fftn(x, axes=axes)
    filtered = spectrum * jnp.asarray(amplitude.reshape(around), spectrum.dtype)
    return jnp.fft.ifftn(filtered, axes=axes).real.astype(x.dtype)


def _objective(
    arrays: list[Array],
    leaves: Sequence[Any],
    labels: Array,
    found: NormInputs,
    arguments: Arguments,
    weights: tuple[float, float],
) -> Float[Array, ""]:
    """What is minimised over the inputs."""
    program = found.program
    terms: list[Array] = []

    def observe(seen: Seen) -> None:
        look(dict(zip(seen.step.outputs, seen.results, strict=True)))

    def look(values: dict[int, Any]) -> None:
        for norm, sample in found.samples(values, leaves):
            mean, variance = promoted(leaves[norm.mean]), promoted(leaves[norm.variance])
            kept, here = variance + norm.eps, jnp.sqrt(sample.variance + norm.eps)
            squares = (sample.mean - mean) ** 2 + (here - jnp.sqrt(kept)) ** 2
            terms.append(jnp.mean(squares / kept))

    given = [_like(x, y) for x, y in zip(arrays, arguments.arrays, strict=True)]
    values = dict(zip(program.inputs, [*leaves, *given], strict=True))
    look(values)
    results = evaluate(program, values, observe)
    outputs = [jnp.asarray(results[n]) for n in program.outputs]
    if weights[0] and _are_logits(outputs, given[0].shape[0]):
        terms.append(weights[0] * _cross_entropy(outputs[0], labels))
    for i, x in enumerate(arrays):
        for axis in slid_axes(found, i, x.ndim):
            terms.append(weights[1] * jnp.mean(jnp.abs(jnp.diff(x, axis=axis))))
    return jnp.sum(jnp.stack(terms))


def _are_logits(outputs: Sequence[Array], n: int) -> bool:
    """Whether the output may be logits of classes."""
    if len(outputs) != 1 or not jnp.issubdtype(outputs[0].dtype, jnp.floating):
        return False
    return outputs[0].ndim == 2 and outputs[0].shape[0] == n and outputs[0].shape[1] > 1


def _cross_entropy(logits: Float[Array, "n k"], key: Array) -> Float[Array, ""]:
    """To random labels, as many of every class."""
    n, k = logits.shape
    labels = jax.random.permutation(key, jnp.arange(n) % k)
    losses = optax.softmax_cross_entropy_with_integer_labels(promoted(logits), labels)
    return jnp.mean(losses)


def _like(x: Array, struct: Any) -> Array:
    return x.astype(struct.dtype)


def _check_finite(made: Sequence[Array], arguments: Arguments) -> None:
    for path, x in zip(arguments.paths, made, strict=True):
        if not bool(jnp.isfinite(x).all()):
            raise ValueError(
                f"{path}: the inputs became NaN or infinite; expected finite parameters, or a "
                "lower learning_rate"
            )
