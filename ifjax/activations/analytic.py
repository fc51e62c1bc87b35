"""What every layer reads, on average, by the running statistics alone: no data, no optimisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn
from jaxtyping import Float, PyTree

from ifjax.activations.batches import inputs_of
from ifjax.activations.field import Field, Fields
from ifjax.activations.field_rules import Operands, apply_rule
from ifjax.activations.layer_names import layer_names
from ifjax.activations.norm_inputs import NormInputs
from ifjax.activations.synthesis import COLOURS, norms_of, resized, slid_axes
from ifjax.jaxprs.arguments import Arguments, check_order
from ifjax.jaxprs.program import Program, Step
from ifjax.jaxprs.traits import contraction_of
from ifjax.promotion import with_promotion
from ifjax.tree import leaves_by_path


class Gaussian(NamedTuple):
    """What a layer multiplies with its weight, x in ``y = x W``.

    Attributes:
      mean: of x, per batch entry of the product (groups of a convolution, heads, experts).
      covariance: of x. Of a convolution x is a patch: channels first, then the window.
    """

    mean: Float[np.ndarray, "b k"]
    covariance: Float[np.ndarray, "b k k"]


class LayerMoments(dict[str, Gaussian]):
    """What layers read, by the paths of their weights; `ifjax.compress` takes it for batches.

    Attributes:
      inputs: structs of what the function takes after its parameters.
    """

    def __init__(self, moments: Mapping[str, Gaussian], inputs: tuple[Any, ...]) -> None:
        """Of a function that takes such inputs."""
        super().__init__(moments)
        self.inputs = inputs


@with_promotion
def analytic_moments(
    apply_fn: Callable[..., Any], params: PyTree, inputs: Any, *, correlation: float = 0.6
) -> LayerMoments:
    r"""Means and covariances of every layer's inputs, from batch norms' statistics and the weights.

    What a batch norm reads is taken to be Gaussian, with the running mean and variance of each
    channel; how channels correlate follows from the kernel and from how its inputs do:

    .. math::
        \Sigma_{out} = \sum_{p, q} r_{pq} W_p^\top \Sigma_{in} W_q, \quad
        r_{pp} = 1, \; r_{pq} = \text{correlation}

    over the taps p, q of the window. Functions of Gaussian numbers, such as activations, have the
    moments that they have exactly (`ifjax.activations.gaussian`); their sums are taken to be
    Gaussian again. The covariance of a residual stream with a branch is kept. Inputs have mean 0
    and variance 1; pooling sees whole windows. Patches hold zeros as often as the window of a
    convolution reaches beyond the border; what a convolution gives is as in the middle.

    Args:
      apply_fn: the *eval-mode* function ``apply_fn(params, *inputs)``.
      params: its parameters, running statistics included.
      inputs: what it takes after its parameters; only the shapes count, structs do.
      correlation: of a channel with itself at another position; 0.6 is about what images give.

    Returns:
      By the path of each layer's weight, in the order of the function, see
      `ifjax.activations.layer_names`; arranged as the rows of `ifjax.activations.moments` are.
      `ifjax.compress` takes them in the place of batches.

    Raises:
      ValueError: for a function without running statistics, or whose steps are not affine, not
        elementwise, and no pooling, with the name of the primitive; for a correlation that is none.
      TypeError: for inputs that are not floating point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = {"w": jnp.eye(2), "mean": jnp.array([0.0, 9.0]), "variance": jnp.ones(2),
      ...           "v": jnp.ones((2, 1))}
      >>> norm = lambda p, x: (x - p["mean"]) / jnp.sqrt(p["variance"] + 1e-5)
      >>> apply = lambda p, x: jax.nn.relu(norm(p, x @ p["w"])) @ p["v"]
      >>> found = analytic_moments(apply, params, jax.ShapeDtypeStruct((1, 2), jnp.float32))
      >>> [[round(float(m), 3) for m in row] for row in found["v"].mean]
      [[0.399, 0.399]]
    """
    check_order("analytic_moments(apply_fn, params, inputs)", apply_fn, params)
    if not 0 <= correlation <= 1:
        raise ValueError(f"expected a correlation between 0 and 1, got {correlation}")
    arguments = resized(Arguments.split(inputs_of(inputs, apply_fn, params)), 2)
    found = norms_of(apply_fn, params, arguments)
    leaves = [*leaves_by_path(params).values()]
    fields, program = Fields(correlation), found.program
    names, moments = layer_names(program, found.paths), dict[str, Gaussian]()

    def apply(step: Step, operands: Operands) -> Operands:
        name = names.get(step.outputs[0]) if step.outputs else None
        if name is not None and any(isinstance(x, Field) for x in operands):
            moments[name] = _moments(fields, step.equation, operands)
        results = apply_rule(fields, step, operands)
        pairs = zip(step.outputs, results, strict=True)
        return [_normalised(fields, found, leaves, n, x) for n, x in pairs]

    starts = [_start(fields, found, i, x) for i, x in enumerate(arguments.arrays)]
    given = zip(program.inputs, [*leaves, *starts], strict=True)
    _run(program, {n: _normalised(fields, found, leaves, n, x) for n, x in given}, apply)
    return LayerMoments(moments, arguments.join(arguments.arrays))


def _run(
    program: Program, values: dict[int, Any], apply: Callable[[Step, Operands], Operands]
) -> None:
    """Evaluates a program on arrays and fields, and lets go of each after its last use."""
    known = {**program.constants, **values}
    last = {n: i for i, step in enumerate(program.steps) for n in step.inputs}
    for i, step in enumerate(program.steps):
        known.update(zip(step.outputs, apply(step, [known[n] for n in step.inputs]), strict=True))
        for n in (*step.inputs, *step.outputs):
            if last.get(n, i) == i:
                known.pop(n, None)


def _start(fields: Fields, found: NormInputs, i: int, struct: Any) -> Field:
    """An input of mean 0 and variance 1; channels of images correlate."""
    axes = slid_axes(found, i, struct.ndim)
    features = tuple(1 if a == 0 or a in axes else n for a, n in enumerate(struct.shape))
    n = int(np.prod(features))
    common = COLOURS if axes else 0.0
    covariance = common + (1 - common) * np.eye(n)
    return Field(struct.shape, features, fields.alone(np.zeros(n), covariance))


def _normalised(
    fields: Fields, found: NormInputs, leaves: Sequence[Any], number: int, value: Any
) -> Any:
    """What a norm reads, with the running mean and variance; other values as they are."""
    for norm in found.readers.get(number, ())[:1]:
        shape = value.features
        mean, variance = (
            np.broadcast_to(found.spread(norm, leaves[leaf], len(shape)), shape).ravel()
            for leaf in (norm.mean, norm.variance)
        )
        if norm.bias is not None:
            bias = found.spread(norm, leaves[norm.bias], len(shape))
            mean = mean - np.broadcast_to(bias, shape).ravel()
        value = fields.with_marginals(value, mean, variance)
    return value


def _moments(fields: Fields, equation: JaxprEqn, operands: Operands) -> Gaussian:
    """Of what a product or convolution reads."""
    axes = contraction_of(equation)
    side = next(i for i in (0, 1) if isinstance(operands[i], Field))
    field = fields.expanded(operands[side], [*axes.contracted[side], *axes.batch[side]])
    base = fields.settled(field).base
    if equation.primitive.name == "conv_general_dilated":
        return _of_patches(fields, equation, field.shape, base.mean, base.covariance)
    index = np.arange(base.mean.size).reshape(field.features)
    index = index.transpose(*axes.batch[side], *axes.free[side], *axes.contracted[side])
    sizes = [
        int(np.prod([field.features[a] for a in part[side]]))
        for part in (axes.batch, axes.free, axes.contracted)
    ]
    return _pooled(base.mean, base.covariance, index.reshape(sizes))


def _pooled(mean: np.ndarray, covariance: np.ndarray, index: np.ndarray) -> Gaussian:
    """Over the free axes, of which every entry is a sample: index [b, n, k] numbers features."""
    means = mean[index]
    centre = means.mean(1)
    apart = means - centre[:, None]
    between = np.einsum("bnk,bnl->bkl", apart, apart)
    within = sum(covariance[i[:, :, None], i[:, None]] for i in index.transpose(1, 0, 2))
    return Gaussian(centre, (between + within) / index.shape[1])


def _of_patches(
    fields: Fields,
    equation: JaxprEqn,
    shape: tuple[int, ...],
    mean: np.ndarray,
    covariance: np.ndarray,
) -> Gaussian:
    """Of the patches of a convolution, per group; beyond the border of its input are zeros."""
    inside, groups = _inside(equation, shape), equation.params["feature_group_count"]
    both = inside.T @ inside / len(inside)  # how often two places of the window are inside
    alike = fields.correlation + (1 - fields.correlation) * np.eye(len(both))
    n = mean.size // groups
    means, covariances = [], []
    for i in range(groups):
        part = slice(i * n, (i + 1) * n)
        square = np.kron(np.outer(mean[part], mean[part]), both)
        means.append(np.kron(mean[part], inside.mean(0)))
        squares = np.kron(covariance[part, part], both * alike) + square
        covariances.append(squares - np.outer(means[-1], means[-1]))
    return Gaussian(np.stack(means), np.stack(covariances))


def _inside(equation: JaxprEqn, shape: tuple[int, ...]) -> Float[np.ndarray, "positions window"]:
    """At every position of a convolution, which places of its window lie on entries: 1, or 0."""
    p, kernel = equation.params, equation.invars[1].aval.shape  # type: ignore[attr-defined]
    numbers = p["dimension_numbers"]
    sizes, window = (
        [of[a] for a in axes[2:]]
        for of, axes in ((shape, numbers.lhs_spec), (kernel, numbers.rhs_spec))
    )
    names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation")
    ones = jnp.ones((1, 1, *sizes), jnp.float32)
    found = lax.conv_general_dilated_patches(ones, window, *(p[name] for name in names))
    return np.asarray(found, np.float64).reshape(found.shape[1], -1).T
