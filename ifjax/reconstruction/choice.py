r"""Which neurons to keep: those that can make up for the others. Arrays alone.

Both ways of choosing are one elimination. With R the Gram matrix of what the consumers read and W
their weights, leaving out all neurons but some and solving for the rest adds to the squared error

* backwards, for a neuron k more that is left out, :math:`|Y_k|^2 / M_{kk}` with
  :math:`M = R^{-1}` and :math:`Y = W`;
* forwards, for a neuron k more that is kept, minus the same with :math:`M = R` and
  :math:`Y = R W`;

and in both cases M and Y lose what k says of the others:
:math:`Y \leftarrow Y - M_{:k} M_{kk}^{-1} Y_k`,
:math:`M \leftarrow M - M_{:k} M_{kk}^{-1} M_{k:}`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import linalg

from ifjax.namespace import AnyArray
from ifjax.parallel.hosts import on_host
from ifjax.parallel.threads import one_thread
from ifjax.reconstruction.elimination import eliminated

RIDGE = 0.01  # of the mean diagonal, so that what never fires has no infinite inverse
CANDIDATES = 256  # columns that are looked at one by one before all others are brought up to date
NARROW = 2048  # columns up to which more threads of BLAS gain little
SINGLE = 4096  # columns from which on float32 does: the sums were made in it


def backward_elimination(
    gram: Float[AnyArray, "B K K"],
    weights: Float[AnyArray, "B K O"],
    units: Int[np.ndarray, "B K"],
    entries: int,
    kept: int,
) -> Int[np.ndarray, "E m"]:
    r"""Removes neuron after neuron, the one whose loss the others can best make up for.

    With H the inverse of the Gram matrix of what the consumers read and W their weights, removing
    the columns k of a neuron and solving for the rest adds

    .. math::
        \operatorname{tr} W_k' (H_{kk})^{-1} W_k

    to the squared error of the consumers' results. Of more than 256 columns only those 256 are
    looked at whose removal costs least, a quarter of them is removed one by one, and then the
    costs of all are known anew.

    Args:
      gram: of B problems whose errors add up. One that lies on an accelerator stays there, where
        every neuron has one column.
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
    return _chosen(gram, weights, units, entries, kept, _backwards)


def forward_selection(
    gram: Float[AnyArray, "B K K"],
    weights: Float[AnyArray, "B K O"],
    units: Int[np.ndarray, "B K"],
    entries: int,
    kept: int,
) -> Int[np.ndarray, "E m"]:
    r"""Takes neuron after neuron, the one from which most of what is missing can be made.

    With R the part of the Gram matrix that the neurons taken so far do not explain, another one of
    columns k takes

    .. math::
        \operatorname{tr} (R W)_k' (R_{kk})^{-1} (R W)_k

    off the squared error of the consumers' results: orthogonal least squares. It needs no inverse,
    and is the faster one where few neurons stay; `backward_elimination` is where few go. Of many
    columns it looks at some at a time, likewise.

    Args:
      gram: as for `backward_elimination`, like all arguments.
      weights: of the consumers.
      units: which neuron a column belongs to.
      entries: how many copies of the group there are.
      kept: how many neurons every entry keeps.

    Returns:
      The kept neurons of every entry, ascending.

    Raises:
      ValueError: as `backward_elimination`.

    References:
      Chen, Billings & Luo, `Orthogonal least squares methods and their application to non-linear
      system identification <https://doi.org/10.1080/00207178908953472>`_, 1989.

    Example:
      >>> x = np.array([[1.0, 0, 1], [0, 1, 1], [1, 1, 2]])
      >>> w, units = np.array([[[0.0], [0.0], [3.0]]]), np.array([[0, 1, 2]])
      >>> forward_selection((x.T @ x)[None], w, units, 1, 1)
      array([[2]])
    """
    return _chosen(gram, weights, units, entries, kept, _forwards)


def kept_neurons(direction: str) -> Callable[..., Int[np.ndarray, "E m"]]:
    """The choice that goes in a direction."""
    return {"backward": backward_elimination, "forward": forward_selection}[direction]


# What an elimination begins with, of one problem: the Gram matrix, the weights, the columns of the
# neurons; and whether it takes what says most, which then stays, or least, which then goes.
_Start = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, bool]]


def _backwards(
    gram: np.ndarray, weights: np.ndarray, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray, bool]:
    factor = _factor(gram)
    [potri] = linalg.get_lapack_funcs(("potri",), (factor,))
    inverse, _ = potri(factor, lower=1, overwrite_c=1)
    if len(own) < len(gram) or not np.array_equal(own, np.arange(len(gram))):
        inverse = np.asfortranarray(_block(inverse, own, own))
    return inverse, weights[own].astype(inverse.dtype), False


def _forwards(
    gram: np.ndarray, weights: np.ndarray, own: np.ndarray
) -> tuple[np.ndarray, np.ndarray, bool]:
    ridged, fixed = _ridged(gram), np.setdiff1d(np.arange(len(gram)), own)
    rest = ridged[np.ix_(own, own)]
    if len(fixed):
        across = ridged[np.ix_(fixed, own)]
        factor = linalg.cho_factor(ridged[np.ix_(fixed, fixed)], lower=True)
        rest = rest - across.T @ linalg.cho_solve(factor, across)
    return np.asfortranarray(rest), rest @ weights[own].astype(rest.dtype), True


def _ridged(gram: np.ndarray) -> np.ndarray:
    ridged = np.array(gram, np.float32 if len(gram) >= SINGLE else np.float64, order="F")
    unit = np.trace(gram) / max(len(gram), 1) or 1.0
    ridged[np.diag_indices(len(gram))] += RIDGE * unit
    return ridged


def _factor(gram: np.ndarray) -> np.ndarray:
    factor, _ = linalg.cho_factor(_ridged(gram), lower=True, overwrite_a=True, check_finite=False)
    return factor


def _chosen(
    gram: AnyArray,
    weights: AnyArray,
    units: np.ndarray,
    entries: int,
    kept: int,
    start: _Start,
) -> np.ndarray:
    """The kept neurons of every entry."""
    if isinstance(gram, jax.Array):
        found = _on_device(gram, weights, units, entries, kept, start is _forwards)
        if found is not None:
            return found
        gram, weights = (on_host(x, np.float64) for x in (gram, weights))
    with one_thread(gram.shape[1] <= NARROW):
        return _on_host(gram, weights, units, entries, kept, start)


def _on_host(
    gram: np.ndarray,
    weights: np.ndarray,
    units: np.ndarray,
    entries: int,
    kept: int,
    start: _Start,
) -> np.ndarray:
    """The same in numpy."""
    shared = [np.unique(u[u >= 0]) for u in units]
    if len(units) > 1 and not all(np.array_equal(shared[0], s) for s in shared):
        return _apart(gram, weights, units, shared, entries, kept, start)
    own = shared[0]
    matrices, rights, forward = [], [], False
    for r, w, u in zip(gram, weights, units, strict=True):
        order = np.argsort(u, kind="stable")[int((u < 0).sum()) :]
        if not np.array_equal(u[order], np.repeat(own, len(order) // max(len(own), 1))):
            raise ValueError("expected as many columns of every neuron")
        matrix, right, forward = start(r, w, order)
        if right.shape[1] > len(right):  # as many outputs as there are columns say the same
            right = np.asarray(np.linalg.qr(right.T, mode="r")).T
        matrices.append(matrix)
        rights.append(right)
    n = len(own) // entries
    quota = np.full(entries, kept if forward else n - kept)
    taken = _taken(matrices, np.stack(rights), quota, n, forward)
    return np.nonzero((taken == forward).reshape(entries, n))[1].reshape(entries, kept)


def _on_device(
    gram: jax.Array, weights: AnyArray, units: np.ndarray, entries: int, kept: int, forward: bool
) -> np.ndarray | None:
    """The same where the Gram matrices are; None where neurons have several columns, or none."""
    order = np.argsort(units[0], kind="stable")
    n = units.shape[1] // entries
    if (units != units[0]).any() or not np.array_equal(units[0, order], np.arange(entries * n)):
        return None
    quota = np.full(entries, kept if forward else n - kept)
    weights = on_host(weights)
    if not np.array_equal(order, np.arange(len(order))):
        gram, weights = gram[:, order[:, None], order], weights[:, order]
    taken = eliminated(gram, weights, quota, forward, RIDGE, CANDIDATES)
    if taken is None:
        return None
    return np.nonzero((taken == forward).reshape(entries, n))[1].reshape(entries, kept)


def _apart(
    gram: np.ndarray,
    weights: np.ndarray,
    units: np.ndarray,
    shared: list[np.ndarray],
    entries: int,
    kept: int,
    start: _Start,
) -> np.ndarray:
    """Problems that have no neuron in common, such as experts of their own."""
    every = np.concatenate(shared)
    if len(np.unique(every)) != len(every):
        raise ValueError("expected problems of the same neurons, or of none in common")
    each = entries // len(units)
    found = []
    for b, own in enumerate(shared):
        local = np.where(units[b] >= 0, np.searchsorted(own, units[b]), -1)
        parts = gram[b : b + 1], weights[b : b + 1], local[None]
        found.append((own[0], _on_host(*parts, each, kept, start)))
    return np.concatenate([part for _, part in sorted(found, key=lambda pair: pair[0])])


def _taken(
    matrices: list[np.ndarray], right: np.ndarray, quota: np.ndarray, n: int, most: bool
) -> Bool[np.ndarray, " U"]:
    """Which units are taken: always the next that says most, or least, n of them in each entry.

    Of every matrix, in the order of Fortran, the lower triangle counts.
    """
    units = len(quota) * n
    c = right.shape[1] // max(units, 1)
    taken, quota, alive = np.zeros(units, bool), quota.copy(), np.arange(units)
    rows = np.arange(units)  # units of which the arrays still hold columns
    looked_at = max(CANDIDATES // c, 4)
    while True:
        alive = alive[(quota[alive // n] > 0) & ~taken[alive]]
        if not len(alive):
            return taken
        if len(alive) < 0.8 * len(rows):
            columns = _columns(np.searchsorted(rows, alive), c)
            matrices = [np.asfortranarray(_block(m, columns, columns)) for m in matrices]
            right, rows = right[:, columns], alive
        at = np.searchsorted(rows, alive)
        whole = len(alive) <= looked_at
        if not whole:
            worth = _worth(matrices, right, at, c)
            order = np.argsort(-worth if most else worth, kind="stable")
            at = np.sort(at[order[:looked_at]])
        columns = _columns(at, c)
        own = np.stack([_block(m, columns, columns) for m in matrices]).astype(np.float64)
        limit = len(alive) if whole else max(looked_at // 4, 1)
        picks = _one_by_one(own, right[:, columns], rows[at] // n, quota, limit, most)
        taken[rows[at[picks]]] = True
        if whole:
            return taken
        if quota.any():
            right = _without(matrices, right, _columns(np.sort(at[picks]), c))


def _worth(
    matrices: list[np.ndarray], right: np.ndarray, at: np.ndarray, c: int
) -> Float[np.ndarray, " u"]:
    """What each of some units says."""
    if c == 1:
        squares = np.einsum("bko,bko->bk", right, right)[:, at]
        return (squares / np.stack([m.diagonal()[at] for m in matrices])).sum(0)
    columns = _columns(at, c).reshape(-1, c)
    own = np.stack([[_block(m, k, k) for k in columns] for m in matrices])
    x = right[:, columns]
    return np.einsum("buco,buco->u", x, np.linalg.solve(own, x))


def _one_by_one(
    matrix: np.ndarray,
    right: np.ndarray,
    entry: np.ndarray,
    quota: np.ndarray,
    limit: int,
    most: bool,
) -> list[int]:
    """Takes units out of a few, until there are enough of them; the quota goes down."""
    units, blocks = len(entry), len(matrix)
    c = matrix.shape[1] // units
    square = right @ right.swapaxes(1, 2)
    index = np.arange(units)
    is_open, picks = quota[entry] > 0, []
    while len(picks) < limit and is_open.any():
        if c == 1:
            diagonals = (np.einsum("bkk->bk", x)[:, is_open] for x in (square, matrix))
            worth = np.divide(*diagonals).sum(0)
        else:
            own, x = (
                a.reshape(blocks, units, c, units, c)[:, index, :, index, :][is_open]
                for a in (matrix, square)
            )
            worth = np.einsum("ubcc->u", np.linalg.solve(own, x))
        at = index[is_open][np.argmax(worth) if most else np.argmin(worth)]
        k = slice(at * c, (at + 1) * c)
        share = np.linalg.solve(matrix[:, k, k], matrix[:, k])  # [B, c, K]
        half = square[:, k] - square[:, k, k] @ share / 2
        change = share.swapaxes(1, 2) @ half
        square = square - change - change.swapaxes(1, 2)
        matrix = matrix - share.swapaxes(1, 2) @ matrix[:, k]
        picks.append(int(at))
        quota[entry[at]] -= 1
        is_open[at] = False
        is_open &= quota[entry] > 0
    return picks


def _without(matrices: list[np.ndarray], right: np.ndarray, gone: np.ndarray) -> np.ndarray:
    """What the rest says beyond the columns that are gone; the matrices change in place."""
    found = []
    for b, matrix in enumerate(matrices):
        across = _block(matrix, np.arange(len(matrix)), gone)
        factor = np.linalg.cholesky(across[gone])
        part = linalg.solve_triangular(factor, across.T, lower=True, check_finite=False)  # [g, K]
        said = linalg.solve_triangular(factor, right[b, gone], lower=True, check_finite=False)
        [syrk] = linalg.get_blas_funcs(("syrk",), (matrix,))
        matrices[b] = syrk(-1.0, part, 1.0, matrix, trans=1, lower=1, overwrite_c=1)
        found.append(right[b] - part.T @ said)
    return np.stack(found)


def _columns(units: np.ndarray, c: int) -> np.ndarray:
    return (units[:, None] * c + np.arange(c)).reshape(-1)


def _block(matrix: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Some rows and columns of a symmetric matrix, of which the lower triangle is known."""
    below = rows[:, None] >= columns
    return np.where(below, matrix[np.ix_(rows, columns)], matrix[np.ix_(columns, rows)].T)
