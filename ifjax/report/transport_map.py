"""A transport map as a heat map."""

import os

import numpy as np
from jaxtyping import Array, Float, Int

from ifjax.report.canvas import new_figure, require_matplotlib, save


def plot_map(
    plan: Float[Array | np.ndarray, "n m"],
    targets: Int[Array | np.ndarray, " m"],
    path: str | os.PathLike[str],
    title: str = "",
) -> None:
    """Draw where each neuron's mass goes, into a file.

    Rows are the n neurons, sorted by the target that gets most of their mass and then by how much
    that is; columns are the m targets in the order of their index. Each row is divided by its sum,
    so that colours are shares of a neuron. A dot marks the neuron that is itself the target.

    Args:
        plan: the transport plan, as in :class:`ifjax.Transport`.
        targets: the neuron that each column stands for.
        path: where to write; the suffix names the format (``.png``, ``.svg``, ``.pdf``).
        title: stands above the map.

    Raises:
        ModuleNotFoundError: if matplotlib is missing, with the command that installs it.
        ValueError: if the plan is no matrix with as many columns as there are targets, or holds
            negative or infinite numbers or NaN.

    Example:
        >>> import tempfile
        >>> plan, targets = np.array([[0.4, 0.0], [0.1, 0.5]]), np.array([0, 1])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     plot_map(plan, targets, f"{folder}/map.png")
    """
    require_matplotlib()
    plan, targets = np.asarray(plan), np.asarray(targets)
    if plan.ndim != 2 or targets.shape != plan.shape[1:] or not plan.size:
        raise ValueError(
            f"expected a plan [n, m] and m targets, got shapes {plan.shape} and {targets.shape}; "
            "a group with batch axes has one plan per entry: choose one"
        )
    if not (np.isfinite(plan).all() and (plan >= 0).all()):
        raise ValueError("expected finite masses of at least 0 in the plan; did the solver fail?")
    mass = plan.sum(1, keepdims=True)
    shares = np.divide(plan, mass, out=np.zeros_like(plan), where=mass > 0)
    rows = np.lexsort((-shares.max(1), shares.argmax(1)))
    n, m = plan.shape
    figure = new_figure(4.8, 4.6)
    axes = figure.add_subplot()
    image = axes.imshow(
        shares[rows], cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
    )
    place = np.argsort(rows)
    axes.plot(np.arange(m), place[targets], ".", color="#D55E00", markersize=min(5.0, 160 / n))
    axes.locator_params(integer=True)
    axes.set_xlabel(f"{m} targets")
    axes.set_ylabel(f"{n} neurons, sorted by target")
    figure.suptitle(title, fontsize="medium", x=0.01, ha="left")
    figure.colorbar(image, ax=axes, label="share of the neuron's mass")
    save(figure, path)
