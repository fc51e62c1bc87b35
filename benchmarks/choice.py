"""How long the choice of neurons by reconstruction takes, and how good it is.

Synthetic activations of 512 common directions and some of every neuron's own, read by a quarter as
many outputs. Seconds of wall clock and of all processors; the squared error that
is left, relative to all. One by one: with as many candidates as there are columns, where that does
not take too long. From 4,096 neurons on the host computes in single precision; what that is worth
shows beside `--precision float64`. `device` is the compiled form that accelerators use.

    python benchmarks/choice.py                    # half an hour on 2 cores, 8 GB
    python benchmarks/choice.py --neurons 1024     # rows of other sizes stay
    python benchmarks/choice.py --precision device     # on an accelerator
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
import record

from ifjax.reconstruction import choice

SIZES = (1024, 4096, 14336)
ONE_BY_ONE = 1024  # neurons at most
SEED = 0
DIRECTIONS = ("backward", "forward")


def problem(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Gram matrix and weights."""
    rng = np.random.default_rng(SEED)
    common = np.maximum(rng.normal(size=(n, 512)), 0).astype(np.float32)
    gram = (common @ common.T / 512).astype(np.float64)
    gram[np.diag_indices(n)] += rng.uniform(0, 0.3, n)
    return gram, rng.normal(size=(n, n // 4))


def error(gram: np.ndarray, weights: np.ndarray, kept: np.ndarray) -> float:
    """What is left of the squared error where these neurons are read with weights of their own."""
    shift = choice.RIDGE * np.trace(gram) / len(gram)
    own = gram[np.ix_(kept, kept)] + shift * np.eye(len(kept))
    made = gram[kept] @ weights
    made += shift * weights[kept]
    whole = float(np.sum(weights * (gram @ weights)) + shift * np.sum(weights**2))
    return 1 - float(np.sum(made * np.linalg.solve(own, made))) / whole


def measure(n: int, kept: int, direction: str, candidates: int, precision: str) -> dict[str, Any]:
    """One row of the table."""
    gram, weights = problem(n)
    choice.CANDIDATES = candidates
    choice.SINGLE = 1 if precision == "float32" else n + 1
    arguments = gram[None], weights[None], np.arange(n)[None]
    if precision == "device":
        arguments = jnp.asarray(gram[None], jnp.float32), *arguments[1:]
    began, cpu = time.perf_counter(), time.process_time()
    [found] = choice.kept_neurons(direction)(*arguments, 1, kept)  # type: ignore[arg-type]
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "neurons": n,
        "kept": kept,
        "direction": direction,
        "candidates": "all" if candidates >= n else str(candidates),
        "precision": precision,
        "seconds": round(seconds, 2),
        "cpu seconds": round(cpu, 2),
        "error": round(error(gram, weights, found), 5),
    }


def main() -> None:
    """Measures what is missing, prints and writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--neurons", nargs="+", type=int, default=SIZES)
    parser.add_argument("--kept", nargs="+", type=float, default=(0.5, 0.125), help="shares")
    parser.add_argument("--directions", nargs="+", default=DIRECTIONS, choices=DIRECTIONS)
    parser.add_argument("--precision", choices=("float64", "float32", "device"))
    args = parser.parse_args()
    keys = ("neurons", "kept", "direction", "candidates", "precision")
    blocks, single = choice.CANDIDATES, choice.SINGLE
    rows: list[Any] = []
    for n in args.neurons:
        for kept in (int(share * n) for share in args.kept):
            for direction in args.directions:
                precision = args.precision or ("float32" if n >= single else "float64")
                for candidates in [blocks, *([n] if n <= ONE_BY_ONE else [])]:
                    row = measure(n, kept, direction, candidates, precision)
                    print(row, flush=True)
                    rows = list(record.with_earlier("choice", [row], keys))
                    record.write("choice", rows)
    print(record.markdown(rows))


if __name__ == "__main__":
    main()
