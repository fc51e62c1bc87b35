"""Sinkhorn's iterations in the log domain, by ott-jax."""

import dataclasses
import functools
import warnings
from types import ModuleType

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ifjax.transport.solvers.entropic import Entropic

# The decay of epsilon from the mean cost to its final value, and the over-relaxation (1 is none).
_DECAY = 0.95
_RELAXATION = 1.5


@dataclasses.dataclass(frozen=True)
class Sinkhorn(Entropic):
    r"""Entropic transport by Sinkhorn's iterations in the log domain (ott-jax).

    .. math::
        \min_T \; \langle T, C \rangle + \epsilon \bar{C} \sum_{ij} T_{ij} (\log T_{ij} - 1)

    with :math:`\bar{C}` the mean cost. Epsilon falls by 5 % an iteration from the mean cost to its
    final value, with over-relaxed updates (factor 1.5); both cut the iterations several times.

    Float32 carries epsilon down to about 1e-4; where the flag of the solution is False, take
    a larger one. A cost of zero everywhere gives the product plan ``a b^T``. Options, last half
    step and derivatives are those of `Entropic`.

    Example:
      >>> import jax.numpy as jnp
      >>> cost, half = jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.full(2, 0.5)
      >>> Sinkhorn(epsilon=0.1)(cost, half, half).map.round(3)
      Array([[0.5, 0. ],
             [0. , 0.5]], dtype=float32)

    References:
      Cuturi, `Sinkhorn Distances <https://arxiv.org/abs/1306.0895>`_, 2013; Cuturi et al.,
      `Optimal Transport Tools <https://arxiv.org/abs/2201.12324>`_, 2022 (ott-jax); Lehmann et
      al., `A note on overrelaxation in the Sinkhorn algorithm
      <https://arxiv.org/abs/2012.12562>`_, 2021.
    """

    def iterate(
        self, cost: Array, a: Array, b: Array, start: Array | None, cold: Array
    ) -> tuple[Array, Array]:
        """The target potential, and the number of iterations of ott-jax's Sinkhorn."""
        epsilon = self.epsilon
        ott = _ott()
        linear = ott.solvers.linear
        schedule = _schedule(
            epsilon, jnp.where(cold, max(1.0, 1 / epsilon), 1.0).astype(cost.dtype)
        )
        geometry = ott.geometry.geometry.Geometry(cost, epsilon=schedule)
        # Half of the tolerance, for the target marginal before the last half step.
        run = linear.sinkhorn.Sinkhorn(
            threshold=self.tolerance / 2,
            max_iterations=self.max_iterations,
            momentum=linear.acceleration.Momentum(start=0, value=_RELAXATION),
        )
        pair = None
        if start is not None:
            near = jnp.where((a > 0)[:, None], (start[:, None] - cost) / epsilon, -jnp.inf)
            g = epsilon * (jnp.log(b) - jax.nn.logsumexp(near, axis=0))
            pair = (start, jnp.where(cold, 0, g))
        out = run(ott.problems.linear.linear_problem.LinearProblem(geometry, a, b), pair)
        return jnp.where(b > 0, out.g, 0), jnp.asarray(out.n_iters, jnp.int32)


def _schedule(epsilon: float, first: Array) -> PyTree:
    """A decaying epsilon whose start is an array, which ott-jax's own takes for static."""
    parent = _ott().geometry.epsilon_scheduler.Epsilon

    @jax.tree_util.register_pytree_node_class
    class Schedule(parent):
        def tree_flatten(self) -> tuple[tuple[PyTree, PyTree], None]:
            return (self.target, self.init), None

        @classmethod
        def tree_unflatten(cls, _: None, children: tuple[PyTree, PyTree]) -> PyTree:
            return cls(children[0], init=children[1], decay=_DECAY)

    return Schedule(epsilon, init=first, decay=_DECAY)


@functools.cache
def _ott() -> ModuleType:
    """Imports ott-jax at its first use: it takes two seconds, and its jaxopt warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import ott
        import ott.solvers.linear
    return ott
