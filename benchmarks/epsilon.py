"""Sinkhorn's maps and weights approach the exact ones as epsilon falls.

On the 21 cases of the Intra-Fusion fixtures that hold maps (70 groups of 8 to 24 neurons):

* map: the share of a neuron's mass that goes to another target than in the reference's stored map,
  1/2 sum_j |M_ji - M*_ji|, averaged over the neurons of a group; mean and largest over all groups.
  Every group's problem is the one that the exact solver saw.
* weights: relative distance |W - W*| / |W*| of the small network that these maps make from the
  reference's, in folded form; mean and largest over all cases.
* end to end: the same where every group is fused on what Sinkhorn made of the ones before, as
  `ifjax.fuse_params` does. Where a map moved a score, other neurons are kept ("other targets", of
  all that are kept), and the weights are no longer comparable one by one.
* cost: how much dearer the plan is than the exact one, in %. Below zero: the marginals are met to
  1e-3 only.

Float32, and float64 beside it for the smallest: they agree, so that what limits the last rows is
not rounding but the tolerance of 1e-3 and the 10,000 iterations.

    python benchmarks/epsilon.py             # about 5 minutes on 2 cores
    python benchmarks/epsilon.py --epsilons 0.1 0.01
"""

from __future__ import annotations

import argparse
import dataclasses
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
from ifjax.fusion.execution.distances import distances
from ifjax.fusion.execution.solve import changed
from ifjax.fusion.execution.sources import sources_of
from ifjax.fusion.problem import problem_of
from ifjax.fusion.program import compiled
from ifjax.transport import transport

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
    cases = Cases()
    jobs = [(e, "float32") for e in args.epsilons] + [(e, "float64") for e in args.double]
    table = [measure(cases, epsilon, dtype) for epsilon, dtype in tqdm(jobs)]
    print(record.markdown(table))
    print("written:", record.write("epsilon", table, cases=len(cases.settings)).name)


def measure(cases: Cases, epsilon: float, dtype: str = "float32") -> dict[str, Any]:
    """One row: all groups of all cases at one epsilon."""
    with jax.enable_x64(dtype == "float64"):
        shares, gaps, distances, found, ends, others, kept = [], [], [], [], [], 0, 0
        for name in cases.settings:
            exact = cases.exact(name, dtype)
            maps = {}
            for k, (group, (problem, best)) in enumerate(exact.items()):
                got = maps[group] = transport.solve(*problem, epsilon=epsilon)
                by_source = np.asarray(got.map / got.map.sum(1, keepdims=True), np.float64).T
                expected = cases.arrays[name][f"group{k}/map"].astype(np.float64)
                shares.append(np.abs(by_source - expected).sum(0).mean() / 2)
                gaps.append(100 * (float(got.cost) / float(best.cost) - 1))
            found += maps.values()
            distances.append(cases.distance(name, cases.merged(name, dtype, maps)))
            own = cases.fuse(name, dtype, solver="sinkhorn", epsilon=epsilon)
            ends.append(
                cases.distance(name, cases.merged(name, dtype, {g: x for g, (_, x) in own.items()}))
            )
            for group, (_, got) in own.items():
                others += len(np.setdiff1d(got.targets, exact[group][1].targets))
                kept += len(got.targets)
    iterations = [int(x.iterations) for x in found]
    return {
        "epsilon": f"{epsilon:g}",
        "dtype": dtype,
        "map, mean": rounded(np.mean(shares)),
        "map, max": rounded(np.max(shares)),
        "weights, mean": rounded(np.mean(distances)),
        "weights, max": rounded(np.max(distances)),
        "end to end, mean": rounded(np.mean(ends)),
        "end to end, max": rounded(np.max(ends)),
        "other targets": f"{others} of {kept}",
        "cost, mean %": rounded(np.mean(gaps)),
        "cost, max %": rounded(np.max(gaps)),
        "iterations, median": int(np.median(iterations)),
        "iterations, max": max(iterations),
        "converged": f"{np.mean([bool(x.converged) for x in found]):.0%}",
    }


class Cases:
    """The fixture cases that hold maps, with what is computed from them once."""

    def __init__(self, select: str = "") -> None:
        settings = reference.cases()
        self.settings = {k: v for k, v in settings.items() if v["ot"] and select in k}
        self.arrays = {name: reference.load(name) for name in self.settings}
        self._exact: dict[tuple[str, str], dict[str, Any]] = {}

    def exact(self, name: str, dtype: str) -> dict[str, Any]:
        """`fuse` with the exact solver."""
        if (name, dtype) not in self._exact:
            self._exact[name, dtype] = self.fuse(name, dtype, solver="exact")
        return self._exact[name, dtype]

    def merged(self, name: str, dtype: str, maps: dict[str, Any]) -> dict[str, Any]:
        """The small network."""
        return ifjax.apply_maps(self.params(name, dtype), self.spec(name), maps)

    def distance(self, name: str, small: dict[str, Any]) -> float:
        """Relative distance of a small network from the reference's, in folded form."""
        structure = self.spec(name).structure
        want = reference.folded(structure, reference.params(self.arrays[name], "after"))
        got = reference.folded(structure, small)
        difference = sum(float(np.sum((got[path] - want[path]) ** 2)) for path in want)
        return float(np.sqrt(difference / sum(float(np.sum(x**2)) for x in want.values())))

    def params(self, name: str, dtype: str) -> dict[str, Any]:
        """The full weights."""
        before = reference.params(self.arrays[name], "before")
        return {path: jnp.asarray(x, dtype) for path, x in before.items()}

    def spec(self, name: str, **solver: Any) -> ifjax.FusionSpec:
        """What the case does, with the exact solver or another one."""
        settings = self.settings[name]
        options = reference.method(settings) | solver
        return graph(settings["model"]).spec(settings["sparsity"], **options)

    def fuse(self, name: str, dtype: str, **solver: Any) -> dict[str, Any]:
        """Every group's problem and transport in turn, whether or not the solver converges."""
        settings, case, spec = self.settings[name], self.arrays[name], self.spec(name, **solver)
        groups = sorted(spec.structure.groups, key=lambda g: -g.position)
        scores = reference.scores(settings, case, groups) or {}
        leaves = jax.device_get(self.params(name, dtype))
        program = compiled(spec, given=scores)
        sources, found, transports = sources_of(program, leaves, scores, None), {}, {}
        for level in program.levels:
            # Mass that may stay is transported too: how many sources a target has is then unknown.
            whole = [dataclasses.replace(p, staying=False, sources=None) for p in level.problems]
            level = dataclasses.replace(level, problems=tuple(whole))
            for p in whole:
                entry, scored, given = sources.of(p)
                given = None if given is None else given[0]
                problem = problem_of(p, entry, scored, given, None, distances)
                problem = [
                    jnp.asarray(x) for x in (problem.cost, problem.a, problem.b, problem.targets)
                ]
                got = transport.solve(*problem, solver=p.solver)
                found[p.name] = problem, got
                transports[p.name] = jax.device_get(got)
            sources = changed(program, sources, level, transports)
        return found


graph = functools.cache(reference.trace)


def rounded(x: Any) -> float:
    """Three significant digits."""
    return float(f"{float(x):.3g}")


if __name__ == "__main__":
    main()
