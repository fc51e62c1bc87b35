"""Sinkhorn's maps and weights approach the exact ones as epsilon falls.

On the 21 cases of the Intra-Fusion fixtures that hold maps (73 groups of 8 to 24 neurons):

* map: the share of a neuron's mass that goes to another target than in the reference's stored map,
  1/2 sum_j |M_ji - M*_ji|, averaged over the neurons of a group; mean and largest over all groups.
  Every group's problem is the one that the exact solver saw.
* weights: relative distance of the small networks in folded form, |W - W*| / |W*|, from fusing
  sequentially with Sinkhorn from beginning to end, so that later groups see what earlier maps did
  (and may keep other neurons); mean and largest over all cases.
* cost: how much dearer the plan is than the exact one, in %. Below zero: the marginals are met to
  1e-3 only.

Float32 down to 1e-4, and float64 where float32 comes to its limit.

    python benchmarks/epsilon.py             # about 5 minutes on 2 cores
    python benchmarks/epsilon.py --epsilons 0.1 0.01
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import record
from tqdm import tqdm

import ifjax
from ifjax import batch_norm, importance, transport
from ifjax.merge import describing, merge_kind, merge_neurons, places, rows

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import reference

EPSILONS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4)
DOUBLE = (0.001, 3e-4, 1e-4)


def main() -> None:
    """Makes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epsilons", nargs="+", type=float, default=EPSILONS)
    parser.add_argument("--double", nargs="*", type=float, default=DOUBLE)
    args = parser.parse_args()
    cases = Cases(record.shared_folder())
    jobs = [(e, "float32") for e in args.epsilons] + [(e, "float64") for e in args.double]
    table = [measure(cases, epsilon, dtype) for epsilon, dtype in tqdm(jobs)]
    print(record.markdown(table))
    print("written:", record.write("epsilon", table, cases=len(cases.settings)).name)


def measure(cases: Cases, epsilon: float, dtype: str = "float32") -> dict[str, Any]:
    """One row: all groups of all cases at one epsilon."""
    with jax.enable_x64(dtype == "float64"):
        shares, gaps, distances, found = [], [], [], []
        for name in cases.settings:
            for problem, expected, cost in cases.problems(name, dtype):
                got = transport.solve(*problem, epsilon=epsilon)
                by_source = np.asarray(got.map / got.map.sum(1, keepdims=True), np.float64).T
                shares.append(np.abs(by_source - expected).sum(0).mean() / 2)
                gaps.append(100 * (float(got.cost) / cost - 1))
                found.append(got)
            distances.append(cases.distance(name, dtype, epsilon))
    iterations = [int(x.iterations) for x in found]
    return {
        "epsilon": f"{epsilon:g}",
        "dtype": dtype,
        "map, mean": rounded(np.mean(shares)),
        "map, max": rounded(np.max(shares)),
        "weights, mean": rounded(np.mean(distances)),
        "weights, max": rounded(np.max(distances)),
        "cost, mean %": rounded(np.mean(gaps)),
        "cost, max %": rounded(np.max(gaps)),
        "iterations, median": int(np.median(iterations)),
        "iterations, max": max(iterations),
        "converged": f"{np.mean([bool(x.converged) for x in found]):.0%}",
    }


class Cases:
    """The fixture cases that hold maps, with what is computed from them once."""

    def __init__(self, shared: Path, select: str = "") -> None:
        settings = reference.cases(shared)
        self.settings = {k: v for k, v in settings.items() if v["ot"] and select in k}
        self.arrays = {name: reference.load(shared, name) for name in self.settings}
        self._problems: dict[tuple[str, str], list] = {}

    def problems(self, name: str, dtype: str) -> list:
        """Per group the arguments of `transport.solve`, the reference's map, the exact cost."""
        if (name, dtype) not in self._problems:
            found, _ = self._fuse(name, dtype, {"solver": "exact"})
            self._problems[name, dtype] = [
                (problem, self.arrays[name][f"group{k}/map"].astype(np.float64), float(got.cost))
                for k, (problem, got) in enumerate(found)
            ]
        return self._problems[name, dtype]

    def distance(self, name: str, dtype: str, epsilon: float) -> float:
        """Relative distance of the small network from the reference's, in folded form."""
        _, small = self._fuse(name, dtype, {"solver": "sinkhorn", "epsilon": epsilon})
        model = self.settings[name]["model"]
        want = reference.folded(graph(model).plan, reference.params(self.arrays[name], "after"))
        got = reference.folded(graph(model).plan, small)
        parts = [(got[path] - want[path], want[path]) for path in want]
        difference, length = (
            sum(float(np.sum(x**2)) for x in xs) for xs in zip(*parts, strict=True)
        )
        return float(np.sqrt(difference / length))

    def _fuse(self, name: str, dtype: str, solver: dict[str, Any]) -> tuple[list, dict]:
        """All groups in turn, whether or not the solver converges."""
        settings, case = self.settings[name], self.arrays[name]
        plan = graph(settings["model"]).plan
        options = reference.method(settings) | solver
        spec = graph(settings["model"]).spec(settings["sparsity"], **options)
        method = spec.method
        groups = sorted(plan.groups, key=lambda g: -g.position)
        scores = reference.scores(settings, case, groups) or {}
        params = {k: jnp.asarray(v, dtype) for k, v in reference.params(case, "before").items()}
        leaves, sizes = batch_norm.fold(params, plan.norms), {}
        solved, maps = [], {}
        for group in groups:
            paths, where = places(plan, group, sizes)
            arrays = [leaves[path] for path in paths]
            problem = _problem(
                arrays,
                scores.get(group.name),
                describing(where),
                spec.plan.widths[group.name],
                method.importance,
                method.cost_p,
                (method.source_marginal, method.target_marginal),
            )
            got = transport.solve(*problem, solver=method.solver, epsilon=method.epsilon)
            solved.append((problem, got))
            maps[group.name] = got
            merged = merge_neurons(arrays, where, got, merge_kind(method))
            leaves.update(zip(paths, merged, strict=True))
            sizes[group.name] = spec.plan.widths[group.name]
        return solved, ifjax.apply_maps(params, spec, maps)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _problem(arrays, scores, where, kept, metric, p, marginals):
    """Cost, marginals and targets of a group."""
    members = rows(arrays, where)
    scores = importance.score(metric, members) if scores is None else scores
    targets = transport.top(scores, kept)
    x = transport.features(jnp.concatenate(members, axis=1))
    a = transport.marginal(marginals[0], scores)
    b = transport.marginal(marginals[1], scores[targets])
    return transport.cost_matrix(x, x[targets], p), a, b, targets


graph = functools.cache(reference.trace)


def rounded(x: Any) -> float:
    """Three significant digits."""
    return float(f"{float(x):.3g}")


if __name__ == "__main__":
    main()
