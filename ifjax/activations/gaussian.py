r"""Moments of functions of jointly Gaussian numbers.

A function f of a standard normal number is a series in Hermite polynomials, orthonormal under the
normal density, :math:`f = \sum_k a_k h_k`. Of two normal numbers that correlate by c,

.. math:: \operatorname{cov}(f(u), g(v)) = \sum_{k \geq 1} a_k b_k c^k

(Mehler's formula). Everything that stands on the nodes here is a sum over a fine, even grid: of
smooth functions it converges faster than any power of the step, of kinks such as ReLU's with its
square.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float

REACH, NODES, TERMS = 8.0, 513, 24


class Series(NamedTuple):
    """A function of a normal number, one per neuron.

    Attributes:
      mean: of the function.
      coefficients: of Hermite polynomials 1, 2, ...
      rest: standard deviations of what these leave out, of its odd part and of its even part.
    """

    mean: Float[np.ndarray, " f"]
    coefficients: Float[np.ndarray, "k f"]
    rest: Float[np.ndarray, "2 f"]


@functools.cache
def nodes() -> np.ndarray:
    """Where functions of a standard normal number are known."""
    return np.linspace(-REACH, REACH, NODES)


@functools.cache
def _weights() -> np.ndarray:
    """Of every node in an expectation."""
    density = np.exp(-(nodes() ** 2) / 2)
    return density / density.sum()


@functools.cache
def _polynomials() -> np.ndarray:
    """Orthonormal Hermite polynomials 0, 1, ... at the nodes."""
    t = nodes()
    found = [np.ones_like(t), t]
    for k in range(1, TERMS):
        found.append((t * found[k] - np.sqrt(k) * found[k - 1]) / np.sqrt(k + 1))
    return np.stack(found)


def series_of(values: Float[np.ndarray, "nodes f"]) -> Series:
    """Expands functions that are known at the nodes.

    Args:
      values: of every function.

    Returns:
      Their series.

    Example:
      >>> relu = np.maximum(nodes(), 0)[:, None]
      >>> found = series_of(relu)
      >>> [round(float(x), 3) for x in (found.mean[0], found.coefficients[0, 0])]
      [0.399, 0.5]
    """
    weights = _weights()
    mean = weights @ values
    centred = values - mean
    found = (_polynomials()[1:] * weights) @ centred
    mirrored = centred[::-1]
    parts = weights @ ((centred - mirrored) / 2) ** 2, weights @ ((centred + mirrored) / 2) ** 2
    known = np.sum(found[::2] ** 2, 0), np.sum(found[1::2] ** 2, 0)
    rest = [np.sqrt(np.maximum(v - k, 0)) for v, k in zip(parts, known, strict=True)]
    return Series(mean, found, np.stack(rest))


def covariance_of(
    series: Series, correlation: Float[np.ndarray, "f f"]
) -> Float[np.ndarray, "f f"]:
    """Covariances of the functions of numbers that correlate; see the module.

    What the series leaves out is taken to correlate by the next odd and the next even power: on the
    diagonal it is complete.

    Args:
      series: of every function.
      correlation: of what they are functions of.

    Returns:
      A positive semidefinite matrix.

    Example:
      >>> relu = series_of(np.maximum(nodes(), 0)[:, None])
      >>> round(float(covariance_of(relu, np.ones((1, 1)))[0, 0]), 3)
      0.341
    """
    odd, even = series.rest
    rest = odd[:, None] * odd + even[:, None] * even * correlation
    power = correlation ** (TERMS + 1)
    return covariance_between(series, series, correlation) + rest * power


def covariance_between(
    a: Series, b: Series, correlation: Float[np.ndarray, "f g"]
) -> Float[np.ndarray, "f g"]:
    """Covariances of some functions with others, as far as their series go.

    Args:
      a: series of functions.
      b: of others.
      correlation: of what the ones are functions of, with what the others are functions of.

    Returns:
      The covariances.

    Example:
      >>> square, cube = (series_of(nodes()[:, None] ** k) for k in (2, 3))
      >>> np.abs(covariance_between(square, cube, np.ones((1, 1)))).round(6).tolist()
      [[0.0]]
    """
    total = np.zeros_like(correlation)
    for x, y in zip(a.coefficients[::-1], b.coefficients[::-1], strict=True):  # Horner's scheme
        total = (total + x[:, None] * y) * correlation
    return total


class Extremes(NamedTuple):
    """Of the largest of some independent standard normal numbers.

    Attributes:
      mean: its mean.
      variance: its variance.
      smallest: its covariance with the smallest.
    """

    mean: float
    variance: float
    smallest: float


@functools.cache
def extremes_of(k: int) -> Extremes:
    """The largest of k independent standard normal numbers, and the smallest.

    Args:
      k: at least 1.

    Returns:
      Mean, variance and covariance.

    Example:
      >>> [round(x, 4) for x in extremes_of(2)]
      [0.5642, 0.6817, 0.3183]
    """
    t = nodes()
    if k == 1:
        return Extremes(0.0, 1.0, 1.0)
    weights = _weights() * scipy.special.ndtr(t) ** (k - 1)
    weights /= weights.sum()
    mean = float(weights @ t)
    between = scipy.special.ndtr(t) - scipy.special.ndtr(t)[:, None]  # of x and a larger y
    joint = _weights()[:, None] * _weights() * np.triu(np.maximum(between, 0) ** (k - 2))
    joint[np.diag_indices(t.size)] /= 2
    joint /= joint.sum()
    return Extremes(mean, float(weights @ (t - mean) ** 2), float(t @ joint @ t) + mean**2)


def quantiles_of_largest(k: int, common: float) -> np.ndarray:
    """The largest of k numbers as an increasing function of one that is normal.

    Args:
      k: how many standard normal numbers.
      common: their correlation.

    Returns:
      The function at the nodes: there it is as unlikely to be larger as the normal number is.

    Example:
      >>> np.allclose(quantiles_of_largest(1, 0.5), nodes(), atol=1e-6)
      True
    """
    t = nodes()
    if k == 1 or common == 1:
        return t
    apart = (t[:, None] - math.sqrt(common) * t) / math.sqrt(1 - common)
    below = scipy.special.ndtr(apart) ** k @ _weights()
    normal = scipy.special.ndtri(np.clip(below, 1e-300, 1 - 1e-16))
    known = np.diff(normal, prepend=-np.inf) > 0
    return np.interp(t, normal[known], t[known])


def covariance_of_largest(k: int, correlation: np.ndarray) -> np.ndarray:
    r"""Covariance of the largest of k numbers with that of k others, which correlate in pairs.

    Of its series in the correlation c the first coefficient is 1 / k, by Price's theorem; the odd
    and the even ones add up to what c = 1 and c = -1 give. The next ones, to the power of 3 and 2,
    stand for all others.

    Args:
      k: how many.
      correlation: of every pair.

    Returns:
      The covariance, by correlation.

    Example:
      >>> [round(float(x), 4) for x in covariance_of_largest(2, np.array([-1.0, 0.0, 1.0]))]
      [-0.3183, 0.0, 0.6817]
    """
    _, variance, smallest = extremes_of(k)
    odd, even = (variance + smallest) / 2, (variance - smallest) / 2
    return correlation / k + even * correlation**2 + (odd - 1 / k) * correlation**3
