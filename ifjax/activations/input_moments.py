"""Count, mean and Gram matrix of what every weight is multiplied with, over batches and devices.

Means and scatter about them are kept, not plain sums of squares: where a mean is a thousand times
the deviation, squares in float32 have no digit of the variance left.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Hashable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, PyTree

from ifjax.activations.batches import inputs_of, read_inputs
from ifjax.activations.layer_inputs import vary, varying
from ifjax.activations.moments import NormalForm, normal_form, parts_of, rows
from ifjax.jaxprs.arguments import Arguments, check_order, struct
from ifjax.jaxprs.compat import Values, shape_of
from ifjax.jaxprs.compiling import jitted_with_options
from ifjax.jaxprs.evaluate import Seen, bind, evaluate
from ifjax.jaxprs.program import Program, Step, flatten
from ifjax.jaxprs.traits import traits_of
from ifjax.namespace import AnyArray
from ifjax.promotion import with_promotion
from ifjax.tree import leaves_by_path, wide_dtype


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["count", "mean", "scatter"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class InputMoments:
    r"""What a weight is multiplied with, over N positions; a pytree.

    A dense kernel is applied to every row of its input; a convolution's to every window, of which
    it reads K numbers, channel by channel. Those of other inputs are added with ``+``, those of
    other devices by `batch_moments`; a plain sum of two would be wrong.

    Attributes:
      count: N, the number of positions.
      mean: :math:`\mu`, ``[B, K]``; B counts products side by side, such as experts in one array or
        the groups of a convolution, and is 1 elsewhere.
      scatter: :math:`\sum (x - \mu) (x - \mu)'`, ``[B, K, K]``.

    Example:
      >>> x = np.array([[1.0, 2.0], [3.0, 2.0]])
      >>> mean = x.mean(0)
      >>> one = InputMoments(np.array(2.0), mean[None], ((x - mean).T @ (x - mean))[None])
      >>> both = one + one
      >>> both.count.item(), both.mean.tolist(), (both.gram[0] == 2 * x.T @ x).all().item()
      (4.0, [[2.0, 2.0]], True)
    """

    count: PyTree
    mean: PyTree
    scatter: PyTree

    @property
    def gram(self) -> AnyArray:
        """Sum of x x', ``[B, K, K]``."""
        return self.scatter + self.count * _outer(self.mean)

    @property
    def covariance(self) -> AnyArray:
        """The mean of (x - mean) (x - mean)', ``[B, K, K]``."""
        return self.scatter / self.count

    def __add__(self, other: object) -> InputMoments:
        """Those of all positions of both (Chan et al., 1983)."""
        if not isinstance(other, InputMoments):
            return NotImplemented
        count = self.count + other.count
        share, apart = other.count / count, other.mean - self.mean
        scatter = self.scatter + other.scatter + self.count * share * _outer(apart)
        return InputMoments(count, self.mean + share * apart, scatter)


def _outer(x: AnyArray) -> AnyArray:
    return x[..., :, None] * x[..., None, :]


@with_promotion
def collect_moments(
    apply_fn: Callable[..., PyTree], params: PyTree, batches: Iterable[PyTree]
) -> dict[str, InputMoments]:
    """Moments of what every weight of a function is multiplied with, over batches of data.

    Matrix products and convolutions of data with parameters are seen wherever they stand: inside of
    calls, and of scans, every layer of which has moments of its own; loops and branches that data
    decide on, and products over ragged groups, are not. A batch takes its activations and one Gram
    matrix per weight; patches of convolutions are made of a few examples at a time.

    One program is compiled per shape of a batch; batches that are sharded over a mesh stay so. For
    `jax.pmap` and `jax.shard_map` see `batch_moments`.

    Args:
      apply_fn: any function ``apply_fn(params, *inputs)``.
      params: its parameters.
      batches: inputs, see `ifjax.activations.batches`.

    Returns:
      Moments by path of the weight, with the part of it that is read where that is not all of it,
      ``"layers/up[2]"``; those of a weight that is read several times are added. Batches are
      measured in float32 (float64 where the inputs are), and added in float64 on the host.

    Raises:
      ValueError: for no batches, a function without such weights, or what is not finite.
      TypeError: for a batch of another form.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = {"w1": jnp.eye(4, 8), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> found = collect_moments(apply, params, [jnp.ones((3, 4))] * 2)
      >>> found["w2"].count.item(), found["w2"].gram.shape, found["w1"].mean.tolist()
      (6.0, (1, 8, 8), [[1.0, 1.0, 1.0, 1.0]])
    """
    check_order("collect_moments(apply_fn, params, batches)", apply_fn, params)
    steps: dict[Hashable, Callable[..., dict[str, InputMoments]]] = {}
    total: dict[str, InputMoments] | None = None
    for inputs in read_inputs(batches, apply_fn, params):
        arguments = Arguments.split(inputs)
        form = arguments.tree, tuple((i, _key(x)) for i, x in arguments.static)
        if form not in steps:
            steps[form] = jitted_with_options(functools.partial(_measured, apply_fn, arguments))
        found = {
            name: jax.tree.map(
                lambda x: np.asarray(x, np.result_type(x.dtype, np.float64)), moments
            )
            for name, moments in steps[form](params, arguments.arrays).items()
        }
        for name, moments in found.items():
            if not np.isfinite(moments.scatter).all():
                raise ValueError(
                    f"{name}: what it is multiplied with is not finite; expected inputs on which "
                    "the network gives finite values"
                )
        total = found if total is None else {n: total[n] + m for n, m in found.items()}
    if total is None:
        raise ValueError("collect_moments needs at least one batch, got none")
    return total


@with_promotion
def batch_moments(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    batch: PyTree,
    axis_name: str | tuple[str, ...] | None = None,
) -> dict[str, InputMoments]:
    """Moments of one batch: `collect_moments` as a pure function.

    Args:
      apply_fn: any function ``apply_fn(params, *inputs)``.
      params: its parameters.
      batch: inputs.
      axis_name: inside of `jax.pmap` or `jax.shard_map`, the axes along which devices have examples
        of their own: the moments are those of all of them, by `jax.lax.psum`.

    Returns:
      Moments by path of the weight.

    Raises:
      ValueError, TypeError: as `collect_moments`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> apply = lambda p, x: x @ p["w"]
      >>> params, x = {"w": jnp.ones((2, 3))}, jnp.arange(8.0).reshape(1, 4, 2)
      >>> own = lambda x: batch_moments(apply, params, x, "devices")
      >>> jax.pmap(own, "devices")(x)["w"].mean.tolist()  # of one device
      [[[3.0, 4.0]]]
    """
    arguments = Arguments.split(inputs_of(batch, apply_fn, params))
    found = _measured(apply_fn, arguments, params, arguments.arrays)
    if axis_name is None:
        return found
    return {name: _over_devices(moments, axis_name) for name, moments in found.items()}


def _key(x: object) -> Hashable:
    """What tells static inputs apart: the value, or which object it is."""
    return (type(x), x) if isinstance(x, Hashable) else id(x)


def _over_devices(own: InputMoments, axes: str | tuple[str, ...]) -> InputMoments:
    """Those of the positions of all devices."""
    count = lax.psum(own.count, axes)
    near = lax.pmean(own.mean, axes)
    mean = near + lax.psum(own.count * (own.mean - near), axes) / count
    scatter = lax.psum(own.scatter + own.count * _outer(own.mean - mean), axes)
    return InputMoments(count, mean, scatter)


def _measured(
    apply_fn: Callable[..., PyTree],
    arguments: Arguments,
    params: PyTree,
    arrays: Sequence[AnyArray],
) -> dict[str, InputMoments]:
    """The moments of a device's own examples."""
    leaves = jax.tree.leaves(params)
    program = _straight(apply_fn, params, arguments)
    paths = list(leaves_by_path(params))
    mesh_axes = varying(arrays)
    found: dict[str, InputMoments] = {}

    def observe(seen: Seen) -> None:
        step = seen.step
        side = _side(step)
        if side is None or not program.origins.get(step.inputs[1 - side]):
            return
        shape = tuple(jnp.shape(seen.operands[1 - side]))
        groups = step.equation.params.get("feature_group_count", 1)
        form = normal_form(step.equation, side, groups)
        read, result = jnp.asarray(seen.operands[side]), jnp.shape(seen.results[0])
        moments = _of_input(form, read, shape, parts_of(form, read.shape, shape, result), mesh_axes)
        name = _name(program, paths, step.inputs[1 - side])
        while name in found and found[name].mean.shape != moments.mean.shape:
            name += "'"
        found[name] = found[name] + moments if name in found else moments

    def apply(step: Step, operands: Values) -> Values:
        return [vary(x, mesh_axes) for x in bind(step, operands)]

    given = zip(program.inputs, (*leaves, *arrays), strict=True)
    values = {n: vary(x, mesh_axes) for n, x in (*program.constants.items(), *given)}
    evaluate(program, values, observe, apply=apply)
    if not found:
        raise ValueError(
            "expected a function that multiplies data with parameters, found no matrix product or "
            "convolution of that kind"
        )
    return found


def _straight(apply_fn: Callable[..., PyTree], params: PyTree, arguments: Arguments) -> Program:
    """The function as one line of steps, with loops taken apart."""
    leaves, tree = jax.tree.flatten(params)
    count = len(leaves)
    structs = [struct(x) for x in (*leaves, *arguments.arrays)]
    data = [False] * count + [True] * len(arguments.arrays)

    def call(*values: AnyArray) -> PyTree:
        params = jax.tree.unflatten(tree, values[:count])
        return arguments.call(apply_fn, params, values[count:], {})

    whole = flatten(jax.make_jaxpr(call)(*structs), data)
    if not any(traits_of(step.equation).kind == "control" for step in whole.steps):
        return whole

    def unrolled(*values: AnyArray) -> list[PyTree]:
        known = dict(zip(whole.inputs, values, strict=True))
        found = evaluate(whole, known, inside=lambda step: True)
        return [found[n] for n in whole.outputs]

    return flatten(jax.make_jaxpr(unrolled)(*structs), data)


def _side(step: Step) -> int | None:
    """Which operand of a contraction is the activation; None where it is not one of both."""
    name = step.equation.primitive.name
    if traits_of(step.equation).kind != "contraction" or name == "ragged_dot_general":
        return None
    if sum(step.data[:2]) != 1 or step.equation.params.get("batch_group_count", 1) != 1:
        return None
    side = step.data[:2].index(True)
    return None if side == 1 and name == "conv_general_dilated" else side


def _of_input(
    form: NormalForm, x: Array, kernel_shape: tuple[int, ...], parts: int, axes: frozenset[str]
) -> InputMoments:
    """Moments of one input, of some of its examples at a time."""

    def of(x: Array) -> InputMoments:
        read = rows(form, x, kernel_shape)
        read = read.astype(jax.dtypes.canonicalize_dtype(wide_dtype(read.dtype)))
        mean = read.mean(1)
        rest = read - mean[:, None]
        left = rest.mean(1)  # what rounding left in the mean
        square = jnp.einsum("bnk,bnl->bkl", rest, rest, precision=lax.Precision.HIGHEST)
        count = jnp.asarray(read.shape[1], read.dtype)
        count = jnp.asarray(vary(count, axes))
        return InputMoments(count, mean + left, square - count * _outer(left))

    if parts == 1:
        return of(x)
    at = form.numbers.lhs_spec[0]
    # every part has some examples of each device, where the batch is sharded
    shape = (*x.shape[:at], x.shape[at] // parts, parts, *x.shape[at + 1 :])
    pieces = jnp.moveaxis(x.reshape(shape), at + 1, 0)
    first = of(pieces[0])
    return lax.scan(lambda total, x: (total + of(x), None), first, pieces[1:])[0]


def _name(program: Program, paths: Sequence[str], number: int) -> str:
    """The leaves that a weight is made of, and the part of a leaf that it is."""
    leaves = [program.inputs.index(n) for n in sorted(program.origins[number])]
    if len(leaves) > 1:
        return " * ".join(paths[i] for i in leaves)
    parts = ""
    while number in program.made:
        step = program.steps[program.made[number]]
        parts = _part(program, step) + parts
        number = next(n for n in step.inputs if program.origins.get(n))
    return paths[leaves[0]] + parts


def _part(program: Program, step: Step) -> str:
    """What a step takes of its operand, as Python writes it."""
    p, name = step.equation.params, step.equation.primitive.name
    if name == "slice":
        starts, sizes = (
            p["start_indices"],
            map(operator.sub, p["limit_indices"], p["start_indices"]),
        )
    elif name == "dynamic_slice" and all(n in program.constants for n in step.inputs[1:]):
        starts, sizes = (
            [int(np.asarray(program.constants[n])) for n in step.inputs[1:]],
            p["slice_sizes"],
        )
    else:
        return ""
    whole = shape_of(step.equation.invars[0])
    cuts = [
        ":" if size == n else str(i) if size == 1 else f"{i}:{i + size}"
        for i, size, n in zip(starts, sizes, whole, strict=True)
    ]
    while cuts and cuts[-1] == ":":
        cuts.pop()
    return f"[{', '.join(cuts)}]" if cuts else ""
