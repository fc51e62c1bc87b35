"""Which solver, and which epsilon: time, cost, maps and accuracy of every solver.

* groups: all inner groups of the pretrained CIFAR ResNets at 50 %, and synthetic groups of 256 to
  4,096 neurons at 50 % (and 1,024 at 30 %): time of a compiled solve of the whole set (median,
  solvers interleaved), iterations, how much dearer the plan is than the exact one, the mass that
  goes elsewhere (half the L1 distance of the plans), and the same for what every target is made of
  (rows normalised, mean).
* accuracy: of both networks with all inner groups fused in turn, first 2,000 test images.
* variants: of Sinkhorn that ifjax does not offer, on one synthetic group: over-relaxation, Anderson
  acceleration, low rank, unbalanced, ott-jax's own kernel mode, rounding, fixed own mass.

Every row is written as soon as it is known; the same command continues.

    python benchmarks/solvers.py             # about 15 minutes on 2 cores; anew without its JSON
    python benchmarks/solvers.py --parts accuracy --networks resnet20
    python benchmarks/solvers.py --redraw    # table and plot from results/solvers.json
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
from solver_pictures import draw
from solver_variants import OwnMassStays, exact_but_own, variants
from tqdm import tqdm

import ifjax
from ifjax import data, interop
from ifjax.transport import costs, solvers

EPSILONS = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
NETWORKS = ("resnet20", "resnet56")
SPARSITIES = (0.3, 0.5)
SIZES = ((256, 128), (512, 256), (1024, 717), (1024, 512), (2048, 1024), (4096, 2048))
INNER = "params/layer*/conv1/kernel"
PARTS = ("groups", "accuracy", "variants")
SEED = 0
# Above this many costs the slow solvers are left out, or run once.
FEW = 1024 * 717
# Features of a synthetic neuron.
FEATURES = 512


def main() -> None:
    """Measures what is missing, then prints the tables and draws the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--largest", type=int, default=4096, help="of the synthetic groups")
    parser.add_argument("--redraw", action="store_true", help="measure nothing")
    args = parser.parse_args()
    rows = _known()
    if not args.redraw:
        jobs = {"groups": group_jobs, "accuracy": accuracy_jobs, "variants": variant_jobs}
        for part in args.parts:
            for key, job in tqdm(list(jobs[part](args)), desc=part):
                if not any(key.items() <= row.items() for row in rows):
                    rows += [key | found for found in job()]
                record.write("solvers", rows, seed=SEED, images=args.images)
    for part in PARTS:
        shown = [row for row in rows if row["part"] == part]
        for _, table in sorted(_alike(shown).items(), reverse=True):
            print(record.markdown([{k: row[k] for k in table[0]} for row in table]), end="\n\n")
    draw(rows, record.RESULTS / "solvers.png")


def _known() -> list[dict[str, Any]]:
    return record.read("solvers")["rows"]


def _alike(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Rows of the same columns together."""
    tables: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        tables.setdefault(",".join(row), []).append(row)
    return tables


# Groups -----------------------------------------------------------------------------------------


def group_jobs(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Callable]]:
    """A set of groups each; all solvers and epsilons side by side."""
    sets = {f"{name}, 50 %": functools.partial(network_costs, name) for name in args.networks}
    for n, m in SIZES:
        if n <= args.largest:
            sets[f"{n} x {m}"] = functools.partial(synthetic_costs, n, m)
    for name, make in sets.items():
        yield {"part": "groups", "groups": name}, functools.partial(measure_groups, make)


@functools.cache
def network_costs(name: str) -> list[jax.Array]:
    """The costs of a network's inner groups, stacked by size."""
    _, params, graph = network(name)
    spec = graph.spec(0.5, include=INNER, order="simultaneous", solver=KeepCost())
    maps = ifjax.transport_maps(params, spec)
    shapes: dict[tuple[int, ...], list[jax.Array]] = {}
    for found in maps.values():
        shapes.setdefault(found.map.shape, []).append(found.map)
    return [jnp.stack(x) for x in shapes.values()]


@functools.cache
def synthetic_costs(n: int, m: int) -> list[jax.Array]:
    """One group whose neurons share 16 directions, of which each has an amount of its own."""
    rng = np.random.default_rng(SEED)
    x = rng.normal(size=(n, 16)) @ rng.normal(size=(16, FEATURES)) / 4
    x = (x + rng.normal(size=x.shape)) * rng.uniform(0.3, 2, (n, 1))
    rows = jnp.asarray(x, jnp.float32)
    targets = jnp.sort(jax.lax.top_k(jnp.sum(jnp.abs(rows), 1), m)[1])
    x = costs.features(rows)
    return [costs.cost_matrix(x, x[targets])[None]]


def measure_groups(make: Callable) -> list[dict[str, Any]]:
    """A row for every solver and epsilon that it reads."""
    stacks = make()
    size = max(c.shape[1] * c.shape[2] for c in stacks)
    settings: list[tuple[str, float | None]] = [("exact", None), ("nearest", None)]
    settings += [("sinkhorn_kernel", epsilon) for epsilon in EPSILONS]
    few = size > FEW
    settings += [("sinkhorn", epsilon) for epsilon in ((0.01,) if few else (0.1, 0.01, 0.001))]
    settings += [] if few else [("exact, whole", None)]
    calls = {setting: [solve_set(*setting, c) for c in stacks] for setting in settings}
    found = {
        setting: [jax.block_until_ready(call()) for call in calls[setting]] for setting in calls
    }
    times: dict[Any, list[float]] = {setting: [] for setting in calls}
    for _ in range(1 if few else 5):
        for setting in calls:
            start = time.perf_counter()
            for call in calls[setting]:
                jax.block_until_ready(call())
            times[setting].append(time.perf_counter() - start)
    best = [np.asarray(x.map, np.float64) for x in found["exact", None]]
    return [
        {"solver": name, "epsilon": epsilon}
        | {"ms": rounded(1e3 * np.median(times[name, epsilon]))}
        | compared(found[name, epsilon], stacks, best)
        for name, epsilon in settings
    ]


def solve_set(name: str, epsilon: float | None, stack: jax.Array) -> Callable[[], solvers.Solution]:
    """A compiled solve of stacked costs, uniform marginals."""
    n, m = stack.shape[1:]
    named = {"exact": exact_but_own, "exact, whole": solvers.Exact()}
    one = named.get(name) or solvers.solver_of(name, epsilon)

    @jax.jit
    def solve(stack: jax.Array) -> solvers.Solution:
        a, b = jnp.full(n, 1 / n), jnp.full(m, 1 / m)
        return jax.vmap(lambda cost: one(cost, a, b))(stack)

    return functools.partial(solve, stack)


def compared(
    found: list[solvers.Solution], stacks: list[jax.Array], best: list[np.ndarray]
) -> dict[str, Any]:
    """Distances from the exact plans, over all groups of a set."""
    gaps, elsewhere, made, errors = [], [], [], []
    for solution, cost, plans in zip(found, stacks, best, strict=True):
        for got, c, plan in zip(np.asarray(solution.map, np.float64), cost, plans, strict=True):
            c = np.asarray(c, np.float64)
            gaps.append(100 * (np.sum(got * c) / np.sum(plan * c) - 1))
            elsewhere.append(np.abs(got - plan).sum() / 2)
            rows = (got / np.maximum(got.sum(0), 1e-30), plan / plan.sum(0))
            made.append(np.abs(rows[0] - rows[1]).sum(0).mean() / 2)
            errors.append(np.abs(got.sum(0) - 1 / len(got[0])).sum())
    return {
        "iterations": int(max(np.max(s.iterations) for s in found)),
        "converged": f"{np.mean(np.concatenate([np.ravel(s.converged) for s in found])):.0%}",
        "cost, mean %": rounded(np.mean(gaps)),
        "cost, max %": rounded(np.max(gaps)),
        "mass elsewhere": rounded(np.mean(elsewhere)),
        "target, elsewhere": rounded(np.mean(made)),
        "marginal error": rounded(np.max(errors)),
    }


# Accuracy ---------------------------------------------------------------------------------------


def accuracy_jobs(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Callable]]:
    """Networks, sparsities, solvers and epsilons; plain pruning beside them."""
    settings: list[tuple[str, float | None]] = [("prune", None), ("exact", None), ("nearest", None)]
    settings += [("sinkhorn_kernel", epsilon) for epsilon in EPSILONS]
    settings += [("sinkhorn", 0.01), ("own mass stays", 0.01)]
    for name in args.networks:
        for solver, epsilon in settings:
            key = {"part": "accuracy", "network": name, "solver": solver, "epsilon": epsilon}
            yield key, functools.partial(measure_accuracy, name, solver, epsilon, args.images)


def measure_accuracy(
    name: str, solver: str, epsilon: float | None, images: int
) -> list[dict[str, Any]]:
    """The accuracy at every sparsity in one row; a dash where Sinkhorn does not converge."""
    _, params, graph = network(name)
    how: dict[str, Any] = {"solver": solver, "epsilon": epsilon}
    if solver == "prune":
        how = {"method": "prune"}
    if solver == "own mass stays":
        how = {"solver": OwnMassStays(solvers.SinkhornKernel(epsilon))}
    row = {}
    for sparsity in SPARSITIES:
        spec = graph.spec(sparsity, include=INNER, **how)
        try:
            small = ifjax.fuse_params(params, spec)
        except RuntimeError:
            row[f"{sparsity:.0%}"] = "-"
            continue
        row[f"{sparsity:.0%}"] = round(accuracy(name, spec.structure, small, images), 2)
    return [row]


def accuracy(name: str, plan: Any, params: Any, count: int) -> float:
    """In % on the first test images."""
    images, labels = test_images(count)
    step = classifier(name, plan)
    parts = range(0, len(images), 500)
    hits = sum(int(step(params, images[i : i + 500], labels[i : i + 500])) for i in parts)
    return 100 * hits / len(images)


@functools.cache
def classifier(name: str, plan: Any) -> Callable:
    """Counts what a network of these widths gets right; the methods of a sparsity share it."""
    apply_small = ifjax.shrink(network(name)[0], ifjax.FusionSpec(plan))
    return jax.jit(lambda p, x, y: jnp.sum(jnp.argmax(apply_small(p, x), -1) == y))


@functools.cache
def network(name: str) -> tuple[Callable, Any, ifjax.DependencyGraph]:
    """A pretrained network's function, variables and graph."""
    path = record.shared_folder() / f"checkpoints/{name}_cifar10.safetensors"
    module, variables = interop.cifar_resnet_from_torch(interop.load_safetensors(path))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), "float32")
    return module.apply, variables, ifjax.trace(module.apply, variables, image)


@functools.cache
def test_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first test images, normalised, and their labels."""
    folder = record.shared_folder() / "tensorflow_datasets"
    raw, labels = data.cifar10_split(f"test[:{count}]", data_dir=folder)
    return np.asarray(data.normalize(raw, data.CIFAR10_MEAN, data.CIFAR10_STD)), labels


# Variants ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class KeepCost(solvers.Solver):
    """No solver: the cost in the place of the map."""

    def __call__(self, cost, a, b, init=None):
        """Returns the cost."""
        return solvers.Nearest()(cost, a, b)._replace(map=cost)


def variant_jobs(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Callable]]:
    """The variants at two epsilons, on the group of 1,024 x 512."""
    del args
    for epsilon in (0.01, 0.001):
        for name, variant in variants(epsilon).items():
            key = {"part": "variants", "variant": name, "epsilon": epsilon}
            yield key, functools.partial(measure_variant, variant)


def measure_variant(variant: Callable) -> list[dict[str, Any]]:
    """Time, iterations and distance from the exact plan."""
    (stack,) = synthetic_costs(1024, 512)
    best = [np.asarray(solve_set("exact", None, stack)().map, np.float64)]
    n, m = stack.shape[1:]
    solve = jax.jit(lambda c: variant(c, jnp.full(n, 1 / n), jnp.full(m, 1 / m)))
    plan, iterations, converged = jax.block_until_ready(solve(stack[0]))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        jax.block_until_ready(solve(stack[0]))
        times.append(time.perf_counter() - start)
    solution = solvers.Solution(plan[None], plan[None, :, 0], converged[None], iterations[None])
    return [{"ms": rounded(1e3 * np.median(times))} | compared([solution], [stack], best)]


def rounded(x: Any) -> float:
    """Three significant digits."""
    return float(f"{float(x):.3g}")


if __name__ == "__main__":
    main()
