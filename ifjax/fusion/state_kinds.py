"""What a place in a training state holds, by the named states of optax and by its name.

Nothing but the place tells a moment from a copy of the weights: they have the same shapes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

Kind = Literal["weights", "gradients", "select", "keep"]
# `axes`: one vector per axis of every parameter; `average`: of updates or of weights, which only
# the place of the state says; `factored`: second moments as rows and columns.
Place = Literal["weights", "gradients", "select", "keep", "axes", "average", "factored"]

KINDS: tuple[Kind, ...] = ("weights", "gradients", "select", "keep")

# Fields whose kind is not what their name says, by class. What is left out goes by its name.
_STATES: dict[str, dict[str, Place]] = {
    "ApplyEvery": {"grad_acc": "gradients"},
    "AccumulateAvgUpdatesState": {"avg_grad": "gradients"},
    "COCOBState": {
        "init_particles": "weights",
        "cumulative_gradients": "select",
        "scale": "select",
        "subgradients": "select",
        "reward": "select",
    },
    "DAdaptAdamWState": {"grad_sum": "select"},
    "DoGState": {"init_params": "weights"},
    "DoWGState": {"init_params": "weights"},
    "EmaState": {"ema": "average"},
    "FactoredState": {"v_row": "factored", "v_col": "factored", "v": "select"},
    "LookaheadParams": {"fast": "weights", "slow": "weights"},
    "MadgradState": {"grad_sum_sq": "select", "s": "select", "x0": "weights"},
    "MechanicState": {"r": "keep", "m": "keep", "v": "keep", "s": "keep", "x0": "weights"},
    "MultiStepsState": {"mini_step": "keep", "acc_grads": "gradients"},
    "MuonState": {"mu": "select", "ns_coeffs": "keep"},
    "PerElementMeanAndSumSqDiffGradsState": {
        "mean_grads": "gradients",
        "sum_sq_diff_grads": "select",
    },
    "PerElementMeanAndVarianceEMAState": {
        "mean_grads_ema": "select",
        "variance_grads_ema": "select",
    },
    "ProdigyState": {"grad_sum": "select", "params0": "weights"},
    "SAMState": {"steps_since_sync": "keep", "cache": "weights"},
    "ScaleByAdaDeltaState": {"e_g": "select", "e_x": "select"},
    "ScaleByAdemamixState": {"m1": "select", "m2": "select"},
    "ScaleByAdanState": {"m": "select", "v": "select", "n": "select", "g": "gradients"},
    "ScaleByAmsgradState": {"nu_max": "select"},
    "ScaleByDistanceOverGradientsState": {"init_params": "weights", "max_dist": "keep"},
    "ScaleByOptimisticGradientState": {"previous_gradient": "gradients"},
    "ScaleByRpropState": {"step_sizes": "select", "prev_updates": "select"},
    "ScaleByRssState": {"sum_of_squares": "select"},
    "ScaleBySM3State": {"mu": "axes", "nu": "select"},
    "ScaleBySimplifiedAdEMAMixState": {"m": "select", "n": "select"},
    "ScheduleFreeState": {"b1": "keep", "weight_sum": "keep", "max_lr": "keep", "z": "weights"},
    "ZeroNansState": {"found_nan": "keep"},
}

# What a plain dictionary must hold to be such a state: checkpoints and nnx lose the classes.
_SIGNS = {
    name: frozenset(fields)
    for name, fields in _STATES.items()
    if name not in ("EmaState", "LookaheadParams", "MuonState", "ScaleBySM3State")
} | {
    "EmaState": frozenset({"count", "ema"}),
    "MuonState": frozenset({"count", "mu", "ns_coeffs"}),
    "DAdaptAdamWState": frozenset({"exp_avg", "grad_sum", "estim_lr", "numerator_weighted"}),
    "ScaleByAdemamixState": frozenset({"count", "count_m2", "m1", "m2"}),
    "ScaleByLBFGSState": frozenset({"diff_params_memory", "diff_updates_memory"}),
    "GaLoreState": frozenset({"base_optimizer_state", "projector"}),
    "ScaleByZoomLinesearchState": frozenset({"learning_rate", "value", "grad", "info"}),
}

_SEARCH = (
    "the line search holds the value and the gradient of the full network at its last point, which "
    "the small network does not have there"
)
REFUSED = {
    "ScaleByLBFGSState": (
        "the memory of L-BFGS pairs differences of weights with those of gradients, in the space "
        "of all neurons; those of fused or dropped neurons make no such pairs"
    ),
    "GaLoreState": "its moments are projections to a low rank along directions of all neurons",
    "ScaleByBacktrackingLinesearchState": _SEARCH,
    "ScaleByZoomLinesearchState": _SEARCH,
}
FACTORED = "what is factored into rows and columns (adafactor) are means over neurons that go"


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_MOMENTS = _set(
    "momentum momenta moment moments velocity velocities trace traces variance variances square "
    "squares squared rms rss hessian hess fisher mask masks pruned curvature precond "
    "preconditioner quantized quantised"
)
# Moments where the whole name is one of them, or inside of an optimizer's state. In other names
# they are versions, sizes and experiments: model_v2, net_m, exp1.
_SHORT = _set("mu nu m v n sq exp buf")
_GRADIENTS = _set("grad grads gradient gradients cotangent cotangents")
_PARAMETERS = _set("param params parameter parameters weights variables vars")
# Where a name ends with one, that is what it names: a momentum encoder, a variance network.
_MODELS = _set("model models module network net backbone")
_NETWORKS = _MODELS | _set("encoder decoder actor critic policy generator discriminator")
_WEIGHTS = _PARAMETERS | _MODELS
# Of the weights where nothing around says that it is of something else.
_AVERAGES = _set(
    "ema swa avg average averages averaged polyak shadow slow target teacher student online anchor "
    "init initial best previous"
)
_OPTIMIZER = _set("opt optim optimizer optimizers optimiser tx inner updater")


def state_of(name: str, keys: Collection[str]) -> str | None:
    """The named state of optax that a node is, by its class or by its keys; None where it is none.

    Args:
      name: name of the node's class.
      keys: of its children.

    Example:
      >>> state_of("dict", {"b1", "weight_sum", "max_lr", "z", "base_optimizer_state"})
      'ScheduleFreeState'
    """
    if name in _STATES or name in REFUSED:
        return name
    return next((state for state, sign in _SIGNS.items() if sign <= {*keys}), None)


def field_of(state: str, key: str) -> Place | None:
    """What a field of a named state holds; None where its name says it."""
    return _STATES.get(state, {}).get(key)


def is_optimizer(key: str) -> bool:
    """Whether a name says that an optimizer's state follows."""
    return bool(_words(key) & _OPTIMIZER)


def kind_by_name(keys: Sequence[str], inside: bool = False) -> Kind | None:
    """What the names on the way to a tree say that it holds, the nearest first; None for nothing.

    An average is one of the weights, unless it is inside of an optimizer's state. A short name of
    moments counts alone (``v``), or inside of one (``v_hat``).

    Args:
      keys: the names, from the root.
      inside: whether an optimizer's state holds the tree, though no name may say so.

    Example:
      >>> kind_by_name(["opt_state", "0", "mu"]), kind_by_name(["ema_params"])
      ('select', 'weights')
      >>> kind_by_name(["grads"]), kind_by_name(["state", "z"])
      ('gradients', None)
      >>> kind_by_name(["model_v2"]), kind_by_name(["opt_state", "v_hat"])
      ('weights', 'select')
      >>> kind_by_name(["momentum_encoder"]), kind_by_name(["encoder_momentum"])
      ('weights', 'select')
    """
    named = [is_optimizer(key) for key in keys]
    for i in reversed(range(len(keys))):
        words = _words(keys[i])
        if words & _MOMENTS and not (any(named[: i + 1]) or (inside and not any(named))):
            last = _split(keys[i])[-1].rstrip("0123456789")
            if last in _NETWORKS:
                return "weights"
            if "momentum" in words and last in _PARAMETERS:
                return None  # their moments, or their average over the steps
        if _is_moment(keys[i], any(named[:i]) or (inside and not any(named))):
            return "select"
        if words & _GRADIENTS:
            return "gradients"
        if words & _WEIGHTS and not named[i]:
            return "weights"
        if words & _AVERAGES:
            around = (_is_moment(key, False) or _words(key) & _GRADIENTS for key in keys[:i])
            return None if any(named[:i]) or any(around) else "weights"
    return None


def _is_moment(key: str, inside: bool) -> bool:
    """Whether a name is one of moments; ``inside`` of an optimizer's state short words will do."""
    words, exact = _words(key), _split(key)
    if words & _MOMENTS:
        return True
    if inside:
        return bool(words & _SHORT)
    if len(exact) == 1:
        return exact[0] in _SHORT
    if words & _WEIGHTS:
        return False
    # exp_avg, exp_avg_sq, grad_sq: averages of gradients and squares, not of weights.
    squares = "sq" in exact and words & (_AVERAGES | _GRADIENTS)
    return bool(squares) or {"exp", "avg"} <= {*exact}


def _words(key: str) -> set[str]:
    """Words of a name, without numbers at their end."""
    return {word.rstrip("0123456789") for word in _split(key)} - {""}


def _split(key: str) -> list[str]:
    """A name split at underscores and at capitals."""
    split = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key).lower()
    return [word for word in re.split(r"[^a-z0-9]+", split) if word]


def checked_kind(kind: str | Mapping[str, str] | None) -> None:
    """Raises where ``kind`` is neither one of `KINDS`, nor patterns to them, nor None."""
    if isinstance(kind, Mapping):
        wrong = [k for k in kind.values() if k not in KINDS]
    else:
        wrong = [] if kind is None or kind in KINDS[:3] else [kind]
    if wrong:
        raise ValueError(
            f"kind must be one of {', '.join(KINDS[:3])}, or patterns on paths to them or 'keep', "
            f"such as {{'*/z': 'weights', '*': 'select'}}; got {wrong[0]!r}"
        )
