"""Which neurons to keep: those that can make up for the others. Arrays alone."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from scipy import linalg

RIDGE = 0.01  # of the mean diagonal, so that what never fires has no infinite inverse


def backward_elimination(
    gram: Float[np.ndarray, "B K K"],
    weights: Float[np.ndarray, "B K O"],
    units: Int[np.ndarray, "B K"],
    entries: int,
    kept: int,
) -> Int[np.ndarray, "E m"]:
    r"""Removes neuron after neuron, the one whose loss the others can best make up for.

    With H the inverse of the Gram matrix of what the consumers read and W their weights, removing
    the columns k of a neuron and solving for the rest adds

    .. math::
        \operatorname{tr} W_k' (H_{kk})^{-1} W_k

    to the squared error of the consumers' results. Then

    .. math::
        W \leftarrow W - H_{:k} H_{kk}^{-1} W_k, \quad H \leftarrow H - H_{:k} H_{kk}^{-1} H_{k:}.

    Of more than 256 neurons several go at a time, one in 256 of them.

    Args:
      gram: of B problems whose errors add up.
      weights: of the consumers.
      units: which neuron a column belongs to, numbered through all entries; -1 for columns of
        something else, which stay and help to make up. A neuron has as many columns as another.
      entries: how many copies of the group there are, each with as many neurons.
      kept: how many neurons every entry keeps.

    Returns:
      The kept neurons of every entry, ascending.

    Raises:
      ValueError: where some neurons have more columns than others, or problems share some of them.

    References:
      Hassibi & Stork, `Second order derivatives for network pruning: Optimal Brain Surgeon
      <https://proceedings.neurips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html>`_,
      NeurIPS 1992; Frantar & Alistarh, `Optimal Brain Compression
      <https://arxiv.org/abs/2208.11580>`_, NeurIPS 2022.

    Example:
      >>> x = np.array([[1.0, 0, 1], [0, 1, 1], [1, 1, 2]])  # the third is the sum of the others
      >>> w, units = np.array([[[1.0], [1.0], [3.0]]]), np.array([[0, 1, 2]])
      >>> backward_elimination((x.T @ x)[None], w, units, 1, 2).shape
      (1, 2)
    """
    shared = [np.unique(u[u >= 0]) for u in units]
    if len(units) > 1 and not all(np.array_equal(shared[0], s) for s in shared):
        return _apart(gram, weights, units, shared, entries, kept)
    inverse, w, columns = _started(gram, weights, units, shared[0])
    n = columns // entries
    c = inverse.shape[1] // columns
    alive, left = np.arange(columns), np.full(entries, n)
    at_once = math.ceil(n / 256)
    while (left > kept).any():
        costs = _costs(inverse, w, len(alive), c)
        costs[left[alive // n] <= kept] = np.inf
        gone = []
        for u in np.argsort(costs, kind="stable"):
            if len(gone) == at_once or not np.isfinite(costs[u]):
                break
            entry = alive[u] // n
            if left[entry] > kept:
                left[entry] -= 1
                gone.append(u)
        inverse, w = _without(inverse, w, np.array(gone), c)
        alive = np.delete(alive, gone)
    return (alive % n).reshape(entries, kept)


def _apart(
    gram: np.ndarray,
    weights: np.ndarray,
    units: np.ndarray,
    shared: list[np.ndarray],
    entries: int,
    kept: int,
) -> np.ndarray:
    """Problems that have no neuron in common, such as experts of their own."""
    every = np.concatenate(shared)
    if len(np.unique(every)) != len(every):
        raise ValueError("expected problems of the same neurons, or of none in common")
    each = entries // len(units)
    found = []
    for b, own in enumerate(shared):
        local = np.where(units[b] >= 0, np.searchsorted(own, units[b]), -1)
        part = backward_elimination(gram[b : b + 1], weights[b : b + 1], local[None], each, kept)
        found.append((own[0], part))
    return np.concatenate([part for _, part in sorted(found, key=lambda pair: pair[0])])


def _started(
    gram: np.ndarray, weights: np.ndarray, units: np.ndarray, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray, int]:
    """Inverse Gram matrices and weights of the neurons' columns, neuron by neuron; how many."""
    inverses, kernels = [], []
    for r, x, u in zip(gram, weights, units, strict=True):
        order = np.argsort(u, kind="stable")[int((u < 0).sum()) :]
        if not np.array_equal(u[order], np.repeat(own, len(order) // max(len(own), 1))):
            raise ValueError("expected as many columns of every neuron")
        k = len(r)
        unit = np.trace(r) / k or 1.0
        shifted = r.astype(np.float64) + RIDGE * unit * np.eye(k)
        factor = linalg.cho_factor(shifted, lower=True, check_finite=False)
        inverse = linalg.cho_solve(factor, np.eye(k), check_finite=False)
        inverses.append(inverse[np.ix_(order, order)])
        x = x[order].astype(np.float64)
        if x.shape[1] > len(order):  # as many outputs as there are columns say the same
            values, vectors = np.linalg.eigh(x @ x.T)
            x = vectors * np.sqrt(np.maximum(values, 0))
        kernels.append(x)
    return np.stack(inverses), np.stack(kernels), len(own)


def _costs(inverse: np.ndarray, w: np.ndarray, units: int, c: int) -> np.ndarray:
    """What it costs to remove each unit."""
    if c == 1:
        diagonal = np.einsum("bkk->bk", inverse)
        return (np.einsum("bko,bko->bk", w, w) / diagonal).sum(0)
    blocks = len(w)
    index = np.arange(units)
    own = inverse.reshape(blocks, units, c, units, c)[:, index, :, index, :]  # [U, B, c, c]
    x = w.reshape(blocks, units, c, -1).swapaxes(0, 1)
    return np.einsum("ubco,ubco->u", x, np.linalg.solve(own, x))


def _without(
    inverse: np.ndarray, w: np.ndarray, gone: np.ndarray, c: int
) -> tuple[np.ndarray, np.ndarray]:
    """Without some units, with the rest making up for them."""
    columns = (gone[:, None] * c + np.arange(c)).reshape(-1)
    rest = np.delete(np.arange(w.shape[1]), columns)
    found = []
    for h, x in zip(inverse, w, strict=True):
        across = h[np.ix_(rest, columns)]
        share = np.linalg.solve(h[np.ix_(columns, columns)], across.T).T
        h = h[np.ix_(rest, rest)] - share @ across.T
        found.append((h, x[rest] - share @ x[columns]))
    return np.stack([h for h, _ in found]), np.stack([x for _, x in found])
