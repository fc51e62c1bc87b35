"""How the small parameters are computed: the choices of Intra-Fusion, checked."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from types import UnionType
from typing import Literal, NamedTuple, TypeGuard

from ifjax import importance as importances
from ifjax.importance import GroupMetric
from ifjax.spec import options
from ifjax.spec.options import (
    DerivedName,
    DerivedNumber,
    given,
    is_real,
    nearest_first,
    plain_number,
)
from ifjax.structure.structure import Kind
from ifjax.transport import solvers
from ifjax.transport import targets as targets_
from ifjax.transport.centroids import Centroids
from ifjax.transport.solvers import Entropic, Solver
from ifjax.transport.targets import Targets

NOT_GIVEN = DerivedName("l1")


@dataclasses.dataclass(frozen=True)
class Method:
    """How the small parameters are computed (Intra-Fusion, arXiv 2402.07839, section 3).

    Importance, targets and solver are names, or values with options of their own: ``L1()``,
    ``KMeans(starts=3)``, ``Sinkhorn(epsilon=0.02)``, an instance of a class of one's own. A value
    that a name says all of is kept as the name, so that both make the same method.

    Attributes:
      method: ``"fuse"`` merges all neurons into the kept ones by optimal transport; ``"prune"``
        keeps the neurons of highest importance as they are.
      importance: the score of a neuron: ``"l1"``, ``"l2"``, ``"linf"``, ``"lamp"``, ``"bn_scale"``,
        ``"random"``, or, with `ifjax.Stats`, ``"taylor"``, ``"fisher"``, ``"chip"``; see
        `ifjax.importance.score`. Or a value, see `ifjax.importance.Metric`. With `ifjax.compress`
        ``"reconstruction"``, which is its default: where no importance was given, it says l1 to
        `ifjax.fuse_params` alone.
      reduction: of the scores of a group's producers and consumers to one: ``"mean"``, ``"sum"``,
        ``"max"``, ``"first"`` (the first producer).
      normalization: what the scores of a group are divided by: their ``"mean"``, ``"max"``,
        ``"sum"``, or ``"none"``. Neither choice nor maps depend on it; `ifjax.neuron_scores` does.
      scores_on: weights that the magnitudes (l1, l2, linf, lamp) are read from: ``"folded"`` (batch
        norm merged) or ``"raw"``. The other importances do not depend on it.
      targets: what the neurons are fused into: ``"top"``, the neurons of highest score; or
        ``"centroids"`` of all neurons in feature space, each represented by a neuron near it. The
        name of the centroids says the same; it is kept in ``centroids``. Or a value, see
        `ifjax.transport.targets`.
      centroids: ``"kmeans"``, the default, or ``"gaussian_mixture"``; None where ``targets`` is a
        value of a class without a name. What was not given follows from ``targets``, also where
        `dataclasses.replace` gives others.
      cost_p: order of the norm between the neurons' features, at least 1; or ``"cosine"`` for one
        minus the cosine between them, which is no metric.
      source_marginal: mass of the neurons, ``"uniform"`` or ``"importance"``.
      target_marginal: mass of the targets, likewise; the importance of a centroid is that of the
        neurons that belong to it.
      solver: ``"sinkhorn"``, ``"sinkhorn_kernel"`` (the same problem, faster), ``"exact"``,
        ``"nearest"``, or ``"auto"``, which chooses by size and backend
        (`ifjax.transport.solvers.Auto`); `solver_for` says what. Or a value, see
        `ifjax.transport.solvers.Solver`.
      epsilon: entropic regularisation of Sinkhorn, relative to the mean cost; by default that of
        the solver, 0.01; also where `dataclasses.replace` gives another solver as a value.
      merge: ``"reference"`` or ``"preserving"``, see `ifjax.apply_maps`.
      order: ``"sequential"`` from the output to the input, each group on weights that the earlier
        ones have changed; ``"simultaneous"``, all from the given weights.
      heads: what ``method="fuse"`` does to attention heads and their dimensions: averaging heads
        that are not aligned is noise, so that they are pruned unless this says ``"fuse"``.
      seed: of the random importance and of the starts of k-means.

    Example:
      >>> Method(importance="l2", solver="exact").solver_for(8, 4)
      'exact'
    """

    method: Literal["fuse", "prune"] = "fuse"
    importance: str | GroupMetric = NOT_GIVEN
    reduction: Literal["mean", "sum", "max", "first"] = "mean"
    normalization: Literal["mean", "max", "sum", "none"] = "mean"
    scores_on: Literal["folded", "raw"] = "folded"
    targets: str | Targets = "top"
    centroids: str | None = None
    cost_p: float | Literal["cosine"] = 1.0
    source_marginal: Literal["uniform", "importance"] = "uniform"
    target_marginal: Literal["uniform", "importance"] = "uniform"
    solver: str | Solver = "sinkhorn"
    epsilon: float | None = None
    merge: Literal["reference", "preserving"] = "reference"
    order: Literal["sequential", "simultaneous"] = "sequential"
    heads: Literal["prune", "fuse"] = "prune"
    seed: int = 0

    def of(self, kind: Kind) -> Method:
        """The method for groups of a kind.

        Pruned are heads that are not to be fused, and integers, which cannot be averaged.
        """
        heads = self.heads == "prune" and kind in ("head", "head_dim")
        if self.method == "fuse" and (heads or kind == "integer"):
            return dataclasses.replace(self, method="prune")
        return self

    def solver_for(self, n: int, m: int, backend: str | None = None) -> str:
        """The solver of a group of n neurons of which m are kept: what ``"auto"`` chooses there.

        Args:
          n: neurons.
          m: targets.
          backend: as `jax.default_backend` names it, which is the default.

        Returns:
          A key of `ifjax.transport.solvers.SOLVERS`.

        Example:
          >>> Method(solver="auto").solver_for(512, 256, backend="cpu")
          'exact'
        """
        return solvers.choose(self.solver_value, n, m, uniform=self.uniform, backend=backend)

    @property
    def uniform(self) -> bool:
        """Whether all neurons have the same mass, and all targets."""
        return self.source_marginal == self.target_marginal == "uniform"

    @functools.cached_property
    def importance_value(self) -> GroupMetric:
        """The importance as a value.

        >>> Method(importance="l2").importance_value
        L2()
        """
        return importances.metric_of(self.importance)

    @functools.cached_property
    def targets_value(self) -> Targets:
        """The targets as a value.

        >>> Method(targets="centroids").targets_value
        KMeans(starts=10)
        """
        return targets_.targets_of(self.targets, self.centroids or "kmeans")

    @functools.cached_property
    def solver_value(self) -> Solver:
        """The solver as a value.

        >>> Method(epsilon=0.02).solver_value.epsilon
        0.02
        """
        return solvers.solver_of(self.solver, self.epsilon)

    def to_json(self) -> dict[str, object]:
        """The fields as JSON has them: names, or name and options of a value.

        Raises:
          ValueError: for a value of a class that is not registered.
        """
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for option, (_, registry, where) in _VALUES.items():
            found[option] = options.to_json(option, found[option], registry, where)
        return {key: "inf" if value == math.inf else value for key, value in found.items()}

    @classmethod
    def from_json(cls, fields: object) -> Method:
        """Inverse of `to_json`.

        No option counts as given beside another: one that is replaced brings its own epsilon or
        centroids along; nor does the importance l1, which is the default.

        Raises:
          ValueError: for a choice that there is not, or where no options by name came.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        if not isinstance(fields, dict):
            raise ValueError(
                f"method: expected an object with the options {', '.join(known)}, got {fields!r}"
            )
        for name in fields:
            if name not in known:
                likely = ", ".join(nearest_first(name, known))
                raise ValueError(f"method: expected options of {likely}; got {name!r}")
        found = dict(fields)
        for option, (_, registry, _) in _VALUES.items():
            if option in found:
                found[option] = options.from_json(option, found[option], registry)
        cost_p = found.get("cost_p")
        if cost_p == "inf" or is_real(cost_p):
            found["cost_p"] = float(cost_p)
        method = cls(**found)
        if found.get("importance") == "l1":
            method._keep("importance", DerivedName("l1"))
        method._keep("epsilon", DerivedNumber(method.epsilon or solvers.EPSILON))
        if method.centroids is not None:
            method._keep("centroids", DerivedName(method.centroids))
        return method

    def __post_init__(self) -> None:
        """Checks every choice, and keeps the name of a value that has one.

        Raises:
          ValueError: naming the option, what it may be and what came; or where two options
            disagree.
          TypeError: for a value of another type, or one that is not hashable.
        """
        self._check_names()
        self._keep_numbers()
        metric, targets, solver = self.importance, self.targets, self.solver
        if isinstance(metric, GroupMetric):
            self._keep("importance", options.plain_name(metric, importances.IMPORTANCES) or metric)
        if isinstance(targets, str) and targets in targets_.centroid_names():
            targets = targets_.targets_of(targets)
        if isinstance(targets, Targets):
            self._keep_targets(targets)
        elif self.centroids is None:
            self._keep("centroids", DerivedName("kmeans"))
        if isinstance(solver, Solver):
            epsilon = given(self.epsilon)
            value = solvers.solver_of(solver, epsilon)
            self._keep("solver", options.plain_name(solver, solvers.SOLVERS, "epsilon") or solver)
        else:
            epsilon = self.epsilon  # a name says nothing of it, so that a derived one stays
            value = solvers.solver_of(solver, epsilon)
        if given(self.epsilon) is None:
            derived = value.epsilon if isinstance(value, Entropic) else epsilon or solvers.EPSILON
            self._keep("epsilon", DerivedNumber(derived))

    def _keep_targets(self, targets: Targets) -> None:
        """Names them, or leaves them as they are."""
        names = (name for name, known in targets_.TARGETS.items() if type(targets) is known)
        own, plain = next(names, None), options.plain_name(targets, targets_.TARGETS)
        if isinstance(targets, Centroids):
            if given(self.centroids) not in (None, own):
                raise ValueError(
                    f"targets={targets} and centroids={self.centroids!r} are given, and disagree; "
                    "give one of the two"
                )
            if given(self.centroids) is None:
                self._keep("centroids", own and DerivedName(own))
            self._keep("targets", targets_.CENTROIDS if plain else targets)
        else:
            self._keep("centroids", given(self.centroids) or DerivedName("kmeans"))
            self._keep("targets", plain or targets)

    def _keep_numbers(self) -> None:
        """Keeps numbers of numpy and jax as Python's, which JSON can write, and checks them."""
        for name in ("seed", "epsilon", "cost_p"):
            value = plain_number(getattr(self, name))
            if is_real(value) and not isinstance(value, int | float):
                value = float(value)
            if value is not getattr(self, name):
                self._keep(name, value)
        seed, epsilon, cost_p = self.seed, self.epsilon, self.cost_p
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"seed must be an integer; got {seed!r}")
        cosine = isinstance(cost_p, str) and cost_p == "cosine"
        if not cosine and not (is_real(cost_p) and cost_p >= 1):
            raise ValueError(
                f"cost_p must be at least 1 (inf is allowed) or 'cosine'; got {cost_p!r}"
            )
        if epsilon is not None and not (is_real(epsilon) and 0 < epsilon < math.inf):
            raise ValueError(f"epsilon must be positive and finite; got {epsilon!r}")

    def _keep(self, option: str, value: object) -> None:
        options.check_hashable(option, value)
        object.__setattr__(self, option, value)

    def _check_names(self) -> None:
        allowed_names = {
            "method": ("fuse", "prune"),
            "importance": tuple(importances.names()),
            "reduction": importances.REDUCTIONS,
            "normalization": importances.NORMALIZATIONS,
            "heads": ("prune", "fuse"),
            "scores_on": ("folded", "raw"),
            "targets": (*targets_.names(), *targets_.centroid_names()),
            "centroids": (None, *targets_.centroid_names()),
            "source_marginal": ("uniform", "importance"),
            "target_marginal": ("uniform", "importance"),
            "solver": tuple(solvers.SOLVERS),
            "merge": ("reference", "preserving"),
            "order": ("sequential", "simultaneous"),
        }
        for name, allowed in allowed_names.items():
            value = getattr(self, name)
            if name in _VALUES and isinstance(value, _VALUES[name].base):
                continue
            if not isinstance(value, str | None) or value not in allowed:
                known = ", ".join(nearest_first(value, filter(None, allowed)))
                own = f" (or a value, see {_VALUES[name].where})" if name in _VALUES else ""
                if name in _VALUES and _is_class(value, _VALUES[name].base):
                    own = f", a class; did you mean {value.__name__}()?"
                raise ValueError(f"{name} must be one of {known}; got {value!r}{own}")


def _is_class(value: object, base: type | UnionType) -> TypeGuard[type]:
    """Whether a value is the class of what was wanted, instead of one of its values."""
    return isinstance(value, type) and issubclass(value, base)


class _Values(NamedTuple):
    """What an option may be besides a name: the type, the names of its classes, and where."""

    base: type | UnionType
    registry: Mapping[str, type]
    where: str


_VALUES = {
    "importance": _Values(GroupMetric, importances.IMPORTANCES, "ifjax.importance.IMPORTANCES"),
    "targets": _Values(Targets, targets_.TARGETS, "ifjax.transport.targets.TARGETS"),
    "solver": _Values(Solver, solvers.SOLVERS, "ifjax.transport.solvers.SOLVERS"),
}
