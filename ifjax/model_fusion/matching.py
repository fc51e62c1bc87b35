"""The maps of an alignment: what neurons cost to be told apart, and who goes to whom."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, Int, PyTree
from scipy.optimize import linear_sum_assignment

from ifjax.activations.layer_inputs import layer_inputs
from ifjax.fusion.execution.distances import distances
from ifjax.fusion.problem import Problem, completed
from ifjax.model_fusion.alignment import Network, describing, entries, inside, sets
from ifjax.namespace import AnyArray, Arrays, as_reals, jitted, namespace, over
from ifjax.structure.structure import Group, Structure
from ifjax.transport import transport
from ifjax.transport.costs import Order, cost_matrix
from ifjax.transport.solvers import HostSolver, Solver
from ifjax.transport.transport import Transport
from ifjax.tree import is_concrete, promoted


def align(
    source: Network,
    target: Network,
    costs: Arrays,
    *,
    solver: Solver,
    cost_p: Order,
    sweeps: int,
) -> dict[str, Transport]:
    """Fills in the maps of a network, group by group, and returns them with their diagnostics.

    Args:
      source: the network to be aligned; its groups are in the order to go by.
      target: the network to align it to.
      costs: of the groups that are compared on activations.
      solver: of the transport problems.
      cost_p: order of the norm between the neurons' features.
      sweeps: how often to go on from all groups aligned; fewer where nothing changes any more.
    """
    found: dict[str, Transport] = {}
    for sweep in range(1 + sweeps):
        before = dict(source.maps)
        for group in source.structure.groups:
            if group.name in costs:
                cost = costs[group.name] if sweep == 0 else None
            else:
                cost = weight_cost(source, target, group, cost_p)
            if cost is not None:
                whole = bool(inside(source.structure, group))
                result = _assigned(cost) if whole else _solved(cost, solver)
                batch = _batch(source, group)
                found[group.name] = jax.tree.map(
                    lambda x, batch=batch: x.reshape((*batch, *x.shape[1:])), result
                )
                source.maps[group.name] = found[group.name].map
        after = source.maps
        if is_concrete(*after.values()) and all(
            name in before and np.allclose(before[name], plan, atol=1e-6)
            for name, plan in after.items()
        ):
            break
    return found


def _batch(source: Network, group: Group) -> list[int]:
    """Sizes of a group's batch axes, those that are groups aligned."""
    return [
        source.maps[name].shape[-1] if name in source.maps else n
        for name, n in zip(group.along, group.batch, strict=True)
    ]


def weight_cost(
    source: Network, target: Network, group: Group, p: Order
) -> Float[AnyArray, "batch n m"]:
    """The distance between every neuron of one network and every neuron of the other.

    Of neurons with entries of their own inside (heads), and where all that describes a group is
    crossed by something that is not aligned: the distance between the sets of what they hold.
    """
    aligned, costs = source.maps.keys(), []
    members = describing(source.structure, group, aligned)
    if members:
        pairs = ((entries(source, group, m), entries(target, group, m)) for m in members)
        xs, ys = zip(*pairs, strict=True)
        costs.append(_distance(list(xs), list(ys), p))
    if not members or inside(source.structure, group):
        both = zip(sets(source, group, aligned), sets(target, group, aligned), strict=True)
        costs += [_set_distance(x, y, p) for x, y in both]
    if not costs:
        raise ValueError(
            f"group {group.name}: nothing that its neurons could be compared on; expected a weight "
            "between it and an input, an output or another group. Compare the networks with "
            "on='activations', or pass maps"
        )
    return functools.reduce(operator.add, costs)


@jitted("p")
def _distance(xs: list[AnyArray], ys: list[AnyArray], p: Order) -> AnyArray:
    xp = namespace(*xs)
    return over(functools.partial(_costs, p=p), xp.concatenate(xs, -1), xp.concatenate(ys, -1))


def _costs(x: Float[AnyArray, "n d"], y: Float[AnyArray, "m d"], p: Order) -> AnyArray:
    return distances(x.T, y.T, p) if isinstance(x, np.ndarray) else cost_matrix(x, y, p)


@jitted("p")
def _set_distance(
    x: Float[AnyArray, "batch n k d"], y: Float[AnyArray, "batch m l d"], p: Order
) -> Float[AnyArray, "batch n m"]:
    """Mean distance of every element to the nearest of the other set, both ways (Chamfer)."""

    def row(x: AnyArray, y: AnyArray) -> AnyArray:
        cost = _costs(x, y.reshape(-1, y.shape[-1]), p).reshape(len(x), *y.shape[:2])
        return cost.min(0).mean(1) + cost.min(2).mean(0)

    each = over if isinstance(x, np.ndarray) else _mapped  # a set and all others at a time
    return each(lambda x, y: each(lambda x: row(x, y), x), x, y)


def _mapped(function: Callable[..., AnyArray], *arrays: AnyArray) -> AnyArray:
    return jax.lax.map(lambda entry: function(*entry), arrays)


def _solved(cost: Float[AnyArray, "batch n m"], solver: Solver) -> Transport:
    solver = solver.at(*cost.shape[-2:], uniform=True)
    if isinstance(cost, jax.Array):
        return _solved_by_jax(cost, solver)
    if not isinstance(solver, HostSolver):
        return jax.device_get(_solved_by_jax(cost, solver))
    a, b = (np.broadcast_to(x, (len(cost), *x.shape)) for x in _masses(cost))
    ((plan, converged),) = solver.solve_all([cost], [a], [b])
    targets = plan.argmax(-2).astype(np.int32)
    return completed(Problem(None, targets, a, b, None, cost), plan, converged)


def _masses(cost: AnyArray) -> tuple[AnyArray, AnyArray]:
    a, b = (namespace(cost).full((k,), 1 / k, cost.dtype) for k in cost.shape[-2:])
    return a, b


@functools.partial(jax.jit, static_argnames="solver")
def _solved_by_jax(cost: Float[Array, "batch n m"], solver: Solver) -> Transport:
    def one(cost: Array) -> Transport:
        (a, b), none = _masses(cost), jnp.zeros((cost.shape[1],), jnp.int32)
        found = transport.solve(cost, a, b, none, solver=solver)
        return found._replace(targets=jnp.argmax(found.map, axis=0).astype(jnp.int32))

    return jax.vmap(one)(cost)


@jitted()
def _assigned(cost: Float[AnyArray, "batch n m"]) -> Transport:
    """Every target has one source; sources that are left over are dropped.

    Targets that are left over share their nearest source. No average: what is inside of the neurons
    is not aligned yet.
    """
    xp = namespace(cost)

    def one(cost: AnyArray) -> Transport:
        n, m = cost.shape
        if isinstance(cost, np.ndarray):
            sources = _assign(cost)
        else:
            shape = jax.ShapeDtypeStruct((m,), jnp.int32)
            sources = jax.pure_callback(_assign, shape, cost, vmap_method="sequential")
        plan = (xp.arange(n)[:, None] == sources).astype(cost.dtype) / m
        total = xp.sum(plan * cost)
        return Transport(
            map=plan,
            targets=sources,
            converged=xp.isfinite(total),
            iterations=xp.zeros((), np.int32),
            marginal_error=xp.zeros_like(total),
            cost=total,
            potential=xp.zeros((n,), cost.dtype),
        )

    return over(one, cost)


def _assign(cost: AnyArray) -> Int[np.ndarray, " m"]:
    finite = np.nan_to_num(np.asarray(cost, np.float64), nan=np.inf, posinf=1e300)
    sources = np.argmin(finite, axis=0)
    rows, columns = linear_sum_assignment(finite)
    sources[columns] = rows
    return sources.astype(np.int32)


class Moments(NamedTuple):
    """What a correlation is made of: means, and sums of products of what is left of them."""

    count: Array
    means: tuple[Array, Array]
    squares: tuple[Array, Array]
    products: Array

    def plus(self, other: Moments) -> Moments:
        """Of both samples (Chan et al., `Algorithms for computing the sample variance`, 1983)."""
        count = self.count + other.count
        dx, dy = (b - a for a, b in zip(self.means, other.means, strict=True))
        by = self.count * other.count / count
        share = other.count / count
        return Moments(
            count,
            (self.means[0] + share * dx, self.means[1] + share * dy),
            (
                self.squares[0] + other.squares[0] + by * dx * dx,
                self.squares[1] + other.squares[1] + by * dy * dy,
            ),
            self.products + other.products + by * jnp.outer(dx, dy),
        )

    def correlation(self) -> Float[Array, "n m"]:
        """Between all neurons of both; 0 where one never moves."""
        x, y = (jnp.sqrt(s) for s in self.squares)
        spread = jnp.outer(x, y)
        return jnp.where(spread > 0, self.products / jnp.where(spread > 0, spread, 1), 0)


def activation_costs(
    source: tuple[Callable[..., PyTree], PyTree, Structure],
    target: tuple[Callable[..., PyTree], PyTree, Structure],
    batches: Iterable[PyTree],
) -> dict[str, Float[Array, "1 n m"]]:
    """One minus the correlation of two networks' neurons over inputs, streamed in sums.

    The mean over all contractions with weights that read a group. Groups that none is seen to read
    (in loops), and those with a batch or with entries of their own inside, are left out.

    Args:
      source: function, parameters and structure of the network to be aligned.
      target: those of the network to align it to.
      batches: tuples of inputs.
    """
    structure = target[2]
    names = frozenset(g.name for g in structure.groups if not g.batch and not inside(structure, g))
    functions, structures = (source[0], target[0]), (source[2], structure)
    total: dict[str, list[Moments]] = {}
    for inputs in batches:
        found = _read_moments((source[1], target[1]), inputs, functions, structures, names)
        total = _added(total, found) if total else found
    return _uncorrelated(total)


@functools.partial(jax.jit, static_argnames=("functions", "structures", "names"))
def _read_moments(
    params: tuple[PyTree, PyTree],
    inputs: PyTree,
    functions: tuple[Callable[..., PyTree], ...],
    structures: tuple[Structure, ...],
    names: frozenset[str],
) -> dict[str, list[Moments]]:
    """Of what is read of every group in both networks."""
    networks = zip(functions, params, structures, strict=True)
    seen = [_activations(*network, names, inputs) for network in networks]
    return {n: [_moments(*xy) for xy in zip(*(s[n] for s in seen), strict=True)] for n in seen[0]}


@jax.jit
def _uncorrelated(total: dict[str, list[Moments]]) -> dict[str, Array]:
    return {
        name: 1 - jnp.mean(jnp.stack([m.correlation() for m in several]), axis=0)[None]
        for name, several in total.items()
    }


@jax.jit
def _added(a: dict[str, list[Moments]], b: dict[str, list[Moments]]) -> dict[str, list[Moments]]:
    return jax.tree.map(Moments.plus, a, b, is_leaf=lambda x: isinstance(x, Moments))


def _activations(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    structure: Structure,
    names: frozenset[str],
    inputs: PyTree,
) -> dict[str, list[Array]]:
    """What is read of every group, ``[n, samples]``, once where several weights read the same."""
    found: dict[str, list[Array]] = {}
    done = set()
    for reading in layer_inputs(apply_fn, params, structure, *inputs):
        at = (id(reading.value), reading.axis)
        if at not in done:
            done.add(at)
            for name in names & set(reading.groups):
                found.setdefault(name, []).extend(reading.rows(name))
    return found


def _moments(x: Inexact[Array, "n s"], y: Inexact[Array, "m s"]) -> Moments:
    x, y = (as_reals(promoted(z)).reshape(len(z), -1) for z in (x, y))
    means = x.mean(1), y.mean(1)
    x, y = x - means[0][:, None], y - means[1][:, None]
    products = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    count = jnp.asarray(x.shape[1], x.dtype)
    return Moments(count, means, ((x * x).sum(1), (y * y).sum(1)), products)
