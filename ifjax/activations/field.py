"""Random arrays: jointly Gaussian features, and functions of them, alike at every position.

Axes of a random array hold features, which have a covariance, or positions (examples and places of
an image), along which every entry has the same distribution. Features at two positions of one
example correlate as they do at one, times a number, the correlation of positions.
"""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Shaped

from ifjax.activations.gaussian import (
    Series,
    covariance_between,
    covariance_of,
    covariance_of_largest,
    extremes_of,
    nodes,
    quantiles_of_largest,
    series_of,
)

Array = np.ndarray
MOST = 8192  # features that may have one covariance: half a gigabyte in float64


class Base:
    """Jointly Gaussian features, which are known to the others that live.

    Attributes:
      mean: of every feature.
      covariance: of every two.
      cross: the covariance with the features of other bases, by base.
      source: the features that these are functions of, and the functions; it may be gone.
    """

    def __init__(self, mean: Float[np.ndarray, " f"], covariance: Float[np.ndarray, "f f"]) -> None:
        self.mean = mean
        self.covariance = covariance
        self.cross: weakref.WeakKeyDictionary[Base, Array] = weakref.WeakKeyDictionary()
        self.source: tuple[weakref.ref[Base], Series] | None = None

    @property
    def deviation(self) -> Float[np.ndarray, " f"]:
        """The standard deviation of every feature."""
        return np.sqrt(np.maximum(np.diagonal(self.covariance), 0))

    @property
    def correlation(self) -> Float[np.ndarray, "f f"]:
        """The correlation of every two; 0 with what does not vary."""
        inverse = reciprocal(self.deviation)
        return np.clip(self.covariance * inverse[:, None] * inverse, -1, 1)

    def with_other(self, other: Base) -> Float[np.ndarray, "f g"]:
        """The covariance of its features with those of another."""
        if other is self:
            return self.covariance
        found = self.cross.get(other)
        return np.zeros((self.mean.size, other.mean.size)) if found is None else found

    def relate(self, others: Sequence[Base], cross: Callable[[Base], Array]) -> Base:
        """Notes the covariance with others, on both sides."""
        for other in others:
            self.cross[other] = found = cross(other)
            other.cross[self] = found.T
        return self


def reciprocal(x: Array) -> Array:
    """1 / x; 0 for 0."""
    return np.where(x > 0, 1 / np.where(x > 0, x, 1.0), 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """A random array.

    Attributes:
      shape: of the array.
      features: its shape with one entry along the axes of positions.
      base: the Gaussian features; those of the array, flattened, are functions of its own one by
        one.
      values: the functions, at the nodes of every feature; None for the features themselves.
      copies: axes of positions along which all entries are the same.
    """

    shape: tuple[int, ...]
    features: tuple[int, ...]
    base: Base
    values: Shaped[np.ndarray, "nodes f"] | None = None
    copies: frozenset[int] = frozenset()

    @property
    def positions(self) -> tuple[int, ...]:
        """The axes of positions."""
        pairs = zip(self.shape, self.features, strict=True)
        return tuple(i for i, (n, m) in enumerate(pairs) if n != m)

    def at_nodes(self) -> Shaped[np.ndarray, "nodes f"]:
        """The value of every feature where its Gaussian number is at the nodes."""
        if self.values is not None:
            return self.values
        t = nodes()
        return self.base.mean + t[:, None] * self.base.deviation


class Fields:
    """What can be done to random arrays; knows all bases that live.

    Attributes:
      correlation: of a feature with itself at another position.
    """

    def __init__(self, correlation: float) -> None:
        self.correlation = correlation
        self._bases: weakref.WeakSet[Base] = weakref.WeakSet()
        self._settled: weakref.WeakKeyDictionary[Field, Field] = weakref.WeakKeyDictionary()

    def base(self, mean: Array, covariance: Array, cross: Callable[[Base], Array]) -> Base:
        """A new base; ``cross`` gives its covariance with another."""
        found = Base(mean, covariance).relate([*self._bases], cross)
        self._bases.add(found)
        return found

    def alone(self, mean: Array, covariance: Array) -> Base:
        """A base that is independent of all others."""
        return self.base(mean, covariance, lambda z: np.zeros((mean.size, z.mean.size)))

    def settled(self, field: Field) -> Field:
        """As Gaussian features with the same mean and covariance, where it was functions of some.

        The covariance of a function with another Gaussian number is, exactly, the first coefficient
        of its series times that of its argument (Price's theorem); with another function, that of
        both series.
        """
        if field.values is None:
            return field
        if field in self._settled:
            return self._settled[field]
        old, series = field.base, series_of(field.values)
        inverse = reciprocal(old.deviation)

        def cross(z: Base) -> Array:
            source = None if z.source is None else z.source[0]()
            if z.source is None or source is None:
                return (series.coefficients[0] * inverse)[:, None] * old.with_other(z)
            both = old.with_other(source) * inverse[:, None] * reciprocal(source.deviation)
            return covariance_between(series, z.source[1], np.clip(both, -1, 1))

        new = self.base(series.mean, covariance_of(series, old.correlation), cross)
        new.source = weakref.ref(old), series
        self._settled[field] = found = dataclasses.replace(field, base=new, values=None)
        return found

    def linear(self, field: Field, shape: Sequence[int], function: Callable[[Any], Any]) -> Field:
        """A linear function of the features, which it gets as an array of shape `features`."""
        field = self.settled(field)
        old = field.base

        def rows(x: Array) -> Array:
            results = jax.vmap(function)(x.reshape(-1, *field.features))
            return np.asarray(results, np.float64).reshape(x.shape[0], -1)

        mean = np.asarray(function(old.mean.reshape(field.features)), np.float64)
        covariance = rows(rows(old.covariance).T)
        covariance = (covariance + covariance.T) / 2
        base = self.base(mean.ravel(), covariance, lambda z: rows(old.with_other(z).T).T)
        return Field(tuple(shape), mean.shape, base)

    def summed(self, field: Field, shape: Sequence[int], k: int) -> Field:
        """The sum of k positions."""
        field = self.settled(field)
        old, one = field.base, 1 + (k - 1) * self.correlation  # of one with the sum
        base = self.base(k * old.mean, k * one * old.covariance, lambda z: one * old.with_other(z))
        return Field(tuple(shape), field.features, base)

    def with_marginals(self, field: Field, mean: Array, variance: Array) -> Field:
        """With other means and variances, and the same correlations."""
        field = self.settled(field)
        old = field.base
        factor = np.sqrt(variance) * reciprocal(old.deviation)
        covariance = factor[:, None] * old.covariance * factor
        unknown = np.where(old.deviation > 0, 0.0, variance)  # varies, nobody knows with what
        covariance += np.diag(unknown)
        base = self.base(mean, covariance, lambda z: factor[:, None] * old.with_other(z))
        return Field(field.shape, field.features, base)

    def added(self, a: Field, b: Field, sign: int) -> Field:
        """A + sign b."""
        a, b = self.settled(a), self.settled(b)
        x, y = a.base, b.base
        both = sign * x.with_other(y)
        base = self.base(
            x.mean + sign * y.mean,
            x.covariance + y.covariance + both + both.T,
            lambda z: x.with_other(z) + sign * y.with_other(z),
        )
        return Field(a.shape, a.features, base)

    def multiplied(self, a: Field, b: Field) -> Field:
        """The product, entry by entry, of Gaussian numbers (Isserlis's theorem)."""
        a, b = self.settled(a), self.settled(b)
        x, y = a.base, b.base
        m, n, both = x.mean, y.mean, x.with_other(y)
        covariance = m[:, None] * m * y.covariance + n[:, None] * n * x.covariance
        mixed = n[:, None] * both * m
        covariance += mixed + mixed.T + x.covariance * y.covariance + both * both.T
        base = self.base(
            m * n + np.diagonal(both),
            covariance,
            lambda z: m[:, None] * y.with_other(z) + n[:, None] * x.with_other(z),
        )
        return Field(a.shape, a.features, base)

    def joined(self, fields: Sequence[Field], shape: Sequence[int], axis: int) -> Field:
        """Side by side along an axis of features."""
        bases = [self.settled(f).base for f in fields]
        places = [np.arange(f.base.mean.size).reshape(f.features) for f in fields]
        starts = np.cumsum([0, *(p.size for p in places[:-1])])
        order = np.concatenate([p + s for p, s in zip(places, starts, strict=True)], axis)
        flat = order.ravel()
        mean = np.concatenate([b.mean for b in bases])[flat]
        blocks = np.block([[a.with_other(b) for b in bases] for a in bases])
        base = self.base(
            mean,
            blocks[flat][:, flat],
            lambda z: np.concatenate([b.with_other(z) for b in bases])[flat],
        )
        return Field(tuple(shape), order.shape, base)

    def largest(self, field: Field, shape: Sequence[int], k: int) -> Field:
        """The largest of k positions.

        It is a function of one normal number each, `quantiles_of_largest`; the correlations are
        those of the largest numbers themselves. An increasing function of the numbers has its
        maximum where they have theirs.
        """
        values = field.at_nodes()
        if (np.diff(values, axis=0) < 0).any():
            field = self.settled(field)
            values = field.at_nodes()
        old, common = field.base, self.correlation
        shift = math.sqrt(1 - common) * extremes_of(k).mean
        c = old.correlation
        alike = common * c + (1 - common) * covariance_of_largest(k, c)
        covariance = old.deviation[:, None] * old.deviation * alike
        base = self.base(
            old.mean + shift * old.deviation,
            covariance,
            lambda z: old.with_other(z) * (1 + (k - 1) * common) / k,
        )
        t, at = nodes(), quantiles_of_largest(k, common)
        values = np.stack([np.interp(at, t, v) for v in values.T], 1)
        return Field(tuple(shape), field.features, base, values)

    def expanded(self, field: Field, axes: Sequence[int]) -> Field:
        """With features of their own at the positions along some axes."""
        axes = [a for a in axes if a in field.positions]
        if not axes:
            return field
        field = self.settled(field)
        features = tuple(field.shape[i] if i in axes else n for i, n in enumerate(field.features))
        if math.prod(features) > MOST:
            raise ValueError(
                f"expected at most {MOST} features whose covariance is needed, got "
                f"{math.prod(features)}: positions along axes {axes} of an array of shape "
                f"{field.shape} meet one by one; pool them first"
            )
        index = np.indices(features)
        kept = np.ravel_multi_index(
            [np.zeros_like(x) if i in axes else x for i, x in enumerate(index)], field.features
        ).ravel()
        apart = [a for a in axes if a not in field.copies]
        place = np.zeros_like(kept)
        if apart:
            sizes = [features[a] for a in apart]
            place = np.ravel_multi_index([index[a] for a in apart], sizes).ravel()
        alike = np.where(place[:, None] == place, 1.0, self.correlation)
        old, k = field.base, math.prod(features[a] for a in apart)
        share = (1 + (k - 1) * self.correlation) / k
        base = self.base(
            old.mean[kept],
            old.covariance[kept][:, kept] * alike,
            lambda z: share * old.with_other(z)[kept],
        )
        return Field(field.shape, features, base)
