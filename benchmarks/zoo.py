"""The laws of the dependency graph on a zoo of models, and on random networks by the hundred.

In float64, for every model of `tests/zoo` whose framework is installed and every group of it:

* permutation: the largest change of the output when a group's neurons are permuted in all their
  members, also differently for every entry of its batch, relative to the largest entry. Every
  member must move the output when it is permuted alone, but for those that cannot (a key bias).
* exact: groups for which half of the neurons were cut by `take` and `shrink`, and the output was
  compared with that of the full function with the others set to zero. The small function is run at
  another batch size as well, and compared with the function itself at the small parameters where
  that reads its widths off them.
* prunable: the share of the weights along whose axes lies a group that is known to be neurons or
  heads. What remains are the biases of the output layer and parameters of pinned axes.

Models with a cache or carry among their inputs are checked by `graph.verify` alone for the
permutation; equimo's layer norms compute in float32, so that its changes are of that size (1e-7)
and are left out of the table's column.

    pip install -e '.[test,zoo]'
    python benchmarks/zoo.py                        # all: about 12 minutes on 2 cores
    python benchmarks/zoo.py --only 'penzai*' gpt   # models by name
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import record

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).parents[1]))
FRAMEWORKS = ("jax", "flax.linen", "flax.nnx", "haiku", "equinox", "penzai", "equimo")
FLOAT32 = 1e-6  # the tolerance of models that compute in float32 inside is larger


def check_models(only: list[str]) -> list[dict[str, Any]]:
    """One row per model."""
    from tests.zoo.checks import check
    from tests.zoo.model import models

    found, missing = models()
    for module, package in missing.items():
        print(f"left out {module}: {package} is not installed")
    rows = []
    for model in found:
        if only and not any(fnmatch.fnmatchcase(model.name, glob) for glob in only):
            continue
        start = time.perf_counter()
        report = check(model)
        rows.append(
            {
                "model": model.name,
                "family": model.family,
                "framework": model.framework,
                "groups": report.groups,
                "only when named": list(report.free),
                "permutation": report.permutation,
                "tolerance": model.tolerance,
                "exact": report.exact,
                "members that cannot move the output": list(report.unverified),
                "weights": report.weights,
                "prunable": report.prunable,
                "pinned": report.pinned,
                "failures": list(report.failures),
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
        summary = f"{report.groups} groups, prunable {report.prunable:.1%}"
        print(f"{model.name}: {summary}", *report.failures, sep="\n    FAIL ", flush=True)
    return rows


def check_random_networks(count: int) -> dict[str, Any]:
    """The laws on networks that nobody chose; the first that breaks one is raised."""
    import jax
    from hypothesis import HealthCheck, Phase, given, seed, settings

    from tests.graph.test_random_networks import RECIPES, holds

    seen = []

    @seed(0)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(RECIPES)
    def run(recipe: Any) -> None:
        graph = holds(recipe)
        seen.append((len(graph.groups), sum(g.exact for g in graph.groups)))
        if len(seen) % 25 == 0:
            print(f"{len(seen)} random networks", flush=True)
            jax.clear_caches()

    run()
    groups, exact = map(sum, zip(*seen, strict=True))
    return {"networks": len(seen), "groups": groups, "exact": exact}


def by_family(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per family: models by framework, and what was found of their groups."""
    parts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        parts[row["family"]].append(row)
    return [
        {"family": family, **_frameworks(part), **_totals(part)}
        for family, part in sorted(parts.items(), key=lambda item: item[0].lower())
    ] + [{"family": "all", **_frameworks(rows), **_totals(rows)}]


def _frameworks(rows: list[dict[str, Any]]) -> dict[str, Any]:
    counts = Counter(row["framework"] for row in rows)
    return {name: counts[name] or "" for name in FRAMEWORKS}


def _totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    weights = sum(r["weights"] for r in rows)
    exact = [r["permutation"] for r in rows if r["permutation"] and r["tolerance"] < FLOAT32]
    return {
        "groups": sum(r["groups"] for r in rows),
        "permutation": f"{max(exact, default=0.0):.0e}" if exact else "float32",
        "exact": sum(r["exact"] for r in rows),
        "prunable": f"{sum(r['prunable'] * r['weights'] for r in rows) / weights:.1%}",
    }


def main() -> None:
    """Checks everything, prints the table and writes the record."""
    parser = argparse.ArgumentParser(description="The graph's laws on a zoo of models.")
    parser.add_argument("--only", nargs="*", default=[], help="globs on names of models")
    parser.add_argument("--random", type=int, default=300, help="how many random networks")
    args = parser.parse_args()
    rows = check_models(args.only)
    if not rows:
        sys.exit(f"no model is called {' or '.join(args.only)}")
    table = by_family(rows)
    print(record.markdown(table))
    random = check_random_networks(args.random) if args.random else {}
    print(f"{len(rows)} models, {sum(r['groups'] for r in rows)} groups; random: {random}")
    failed = [row["model"] for row in rows if row["failures"]]
    if not args.only:
        print("wrote", record.write("zoo", rows, seed=0, table=table, random=random))
    if failed:
        sys.exit(f"laws broken by {', '.join(failed)}")


if __name__ == "__main__":
    main()
