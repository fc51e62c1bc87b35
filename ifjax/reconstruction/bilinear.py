"""Least squares for a product of two factors of which both have lost columns: arrays alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

from ifjax.reconstruction.ridge import SHRINKAGES


@dataclasses.dataclass(frozen=True)
class ProductGrams:
    """Sums over the rows of B pairs of factors Q, K, and of those P, R whose product is wanted.

    Attributes:
      left: Q'Q.
      right: K'K.
      left_wanted: Q'P.
      right_wanted: K'R.
      square: of all entries of P R', their squares.
      total: of all entries of P R'.
      count: how many entries P R' has.
      entry: the problem that each pair belongs to.
    """

    left: Float[np.ndarray, "B n n"]
    right: Float[np.ndarray, "B n n"]
    left_wanted: Float[np.ndarray, "B n d"]
    right_wanted: Float[np.ndarray, "B n d"]
    square: Float[np.ndarray, " B"]
    total: Float[np.ndarray, " B"]
    count: Float[np.ndarray, " B"]
    entry: Int[np.ndarray, " B"]

    @property
    def spread(self) -> float:
        """How much the wanted products deviate from their mean, squared and summed."""
        count = max(float(self.count.sum()), 1.0)
        return float(self.square.sum()) - float(self.total.sum()) ** 2 / count

    def kept(self, index: Int[np.ndarray, "E m"]) -> ProductGrams:
        """Of the columns of Q and K that are kept, by problem."""
        at = index[self.entry]
        rows, b = at[:, :, None], np.arange(len(at))[:, None, None]
        square = {n: getattr(self, n)[b, rows, at[:, None]] for n in ("left", "right")}
        wide = {n: getattr(self, n)[b[:, :, 0], at] for n in ("left_wanted", "right_wanted")}
        return dataclasses.replace(self, **square, **wide)

    def moved(
        self, left: Float[np.ndarray, "E n m"], right: Float[np.ndarray, "E n m"]
    ) -> ProductGrams:
        """Of Q and K whose columns are combined, by problem."""
        a, b = left[self.entry], right[self.entry]
        at, bt = a.swapaxes(1, 2), b.swapaxes(1, 2)
        return dataclasses.replace(
            self,
            left=at @ self.left @ a,
            right=bt @ self.right @ b,
            left_wanted=at @ self.left_wanted,
            right_wanted=bt @ self.right_wanted,
        )


def joined(parts: Sequence[ProductGrams]) -> ProductGrams:
    """The pairs of several together."""
    names = [f.name for f in dataclasses.fields(ProductGrams)]
    return ProductGrams(*(np.concatenate([getattr(p, n) for p in parts]) for n in names))


def entrywise(grams: ProductGrams, entries: int) -> Float[np.ndarray, "E n n"]:
    """By problem, the Gram matrix of the columns' rank-one products q_i k_i'."""
    found = np.zeros((entries, *grams.left.shape[1:]))
    np.add.at(found, grams.entry, grams.left * grams.right)
    return found


def middle(grams: ProductGrams, entries: int, shrinkage: float) -> Float[np.ndarray, "E m m"]:
    r"""The matrix between two factors that brings their product nearest to the wanted one.

    For every problem

    .. math::
        \min_M \sum_b \|Q_b M K_b' - P_b R_b'\|^2 + \lambda \mu \|M - 1\|^2

    with :math:`\mu` the mean of :math:`\sum_b (Q_b'Q_b)_{ii} (K_b'K_b)_{jj}`. The normal equations

    .. math::
        \sum_b Q_b'Q_b M K_b'K_b + \lambda \mu M = \sum_b Q_b'P_b R_b'K_b + \lambda \mu 1

    are solved by conjugate gradients, for with one pair alone they have a closed form, but not with
    several.

    Args:
      grams: of the pairs.
      entries: how many problems there are.
      shrinkage: :math:`\lambda`.

    Returns:
      M by problem; 1 where Q or K are zero.

    References:
      Zhang & Yang, `CORP: Closed-Form One-shot Representation-Preserving Structured Pruning for
      Transformers <https://arxiv.org/abs/2602.05243>`_, 2026, has the closed form of one pair.

    Example:
      >>> q, k = np.eye(2)[None], np.diag([1.0, 2.0])[None]  # wanted: 2 q k'
      >>> one = np.ones(1)
      >>> grams = ProductGrams(q, k @ k, 2 * q, k @ k, one, one, one, np.zeros(1, int))
      >>> middle(grams, 1, 1e-9).round(6).tolist()
      [[[2.0, 0.0], [0.0, 2.0]]]
    """
    n = grams.left.shape[-1]
    found = np.broadcast_to(np.eye(n), (entries, n, n)).copy()
    for e in range(entries):
        own = grams.entry == e
        left, right = grams.left[own], grams.right[own]
        traces = np.einsum("bii,bjj->", left, right)
        if not traces > 0:
            continue
        shift = shrinkage * traces / n**2

        def apply(m: np.ndarray, left: np.ndarray = left, right: np.ndarray = right) -> np.ndarray:
            return np.einsum("bij,bjk->ik", left @ m, right, optimize=True)

        wanted = grams.left_wanted[own], grams.right_wanted[own].swapaxes(1, 2)
        rest = np.einsum("bij,bjk->ik", *wanted, optimize=True) - apply(np.eye(n))
        found[e] += _conjugate_gradients(lambda m, s=shift, f=apply: f(m) + s * m, rest)
    return found


def subspaces(
    grams: ProductGrams, entries: int, kept: int
) -> tuple[Float[np.ndarray, "E n m"], Float[np.ndarray, "E n m"]]:
    r"""Combinations of the columns of Q and of K that give the wanted product best.

    With M the best matrix between all columns and R, S the roots of the sums of Q'Q and K'K, they
    are those of the leading singular vectors of R M S: the best ones of their rank where there is
    one pair, and close to them where there are several.

    Args:
      grams: of the pairs.
      entries: how many problems there are.
      kept: how many columns are left.

    Returns:
      A and B of :math:`Q A (K B)'`.
    """
    between = middle(grams, entries, SHRINKAGES[0])
    found = np.zeros((2, entries, grams.left.shape[-1], kept))
    for e in range(entries):
        own = grams.entry == e
        (root, inverse), (other, back) = _roots(grams.left[own]), _roots(grams.right[own])
        u, s, v = np.linalg.svd(root @ between[e] @ other)
        scale = np.sqrt(s[:kept])
        found[:, e] = inverse @ u[:, :kept] * scale, back @ v[:kept].T * scale
    return found[0], found[1]


def _roots(grams: Float[np.ndarray, "B n n"]) -> tuple[np.ndarray, np.ndarray]:
    """The root of the sum and its inverse, without what is next to nothing."""
    values, vectors = np.linalg.eigh(grams.sum(0))
    root = np.sqrt(np.maximum(values, 1e-10 * max(values[-1], 1e-30)))
    return vectors * root @ vectors.T, vectors / root @ vectors.T


def _conjugate_gradients(
    apply: Callable[[np.ndarray], np.ndarray], rest: Float[np.ndarray, "m m"]
) -> Float[np.ndarray, "m m"]:
    """Solves ``apply(x) == rest``, positive definite; as far as rounding allows."""
    x, direction = np.zeros_like(rest), rest.copy()
    size = start = float((rest**2).sum())
    for _ in range(4 * rest.size):
        if size <= 1e-24 * start:
            break
        applied = apply(direction)
        step = size / float((direction * applied).sum())
        x = x + step * direction
        rest = rest - step * applied
        before, size = size, float((rest**2).sum())
        direction = rest + (size / before) * direction
    return x


def product_error(grams: ProductGrams, between: Float[np.ndarray, "E m m"]) -> float:
    """The squared error of Q M K' against P R', summed over pairs."""
    m = between[grams.entry]
    moved = grams.left @ m @ grams.right
    wanted = grams.left_wanted @ grams.right_wanted.swapaxes(1, 2)
    return max(float(grams.square.sum() + (m * (moved - 2 * wanted)).sum()), 0.0)


def best_middle(
    training: ProductGrams, test: ProductGrams | None, entries: int
) -> tuple[Float[np.ndarray, "E m m"], float]:
    """The matrix between, shrunk as is best on what was held out, and the shrinkage.

    Args:
      training: pairs that it is solved for.
      test: pairs that decide on the shrinkage; None for 0.01.
      entries: how many problems there are.

    Returns:
      The matrix for all pairs, and the shrinkage.
    """
    if test is None:
        return middle(training, entries, 0.01), 0.01
    errors = {s: product_error(test, middle(training, entries, s)) for s in SHRINKAGES}
    best = min(errors, key=errors.__getitem__)
    return middle(joined([training, test]), entries, best), best
