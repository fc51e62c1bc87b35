"""A multilayer perceptron."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ifjax.models.widths import (
    FromSpec,
    Variables,
    check_variables,
    check_widths,
    leaf_shape,
    numbered,
)


class MLP(FromSpec, nn.Module):
    """Dense layers with ReLU between them; the input is flattened first.

    The hidden layers are named ``fc1``, ``fc2``, ... and the classifier ``linear``.

    Attributes:
        hidden: the width of every hidden layer, from the input on; may be empty.
        num_classes: the number of logits.
        dtype: the dtype to compute in; by default that of the parameters and the input.

    Raises:
        ValueError: if a width or ``num_classes`` is not a positive integer.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> model = MLP(hidden=(8, 4), num_classes=3)
        >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))
        >>> model.apply(variables, jnp.ones((5, 2, 2, 1))).shape
        (5, 3)
    """

    hidden: tuple[int, ...] = (128, 128)
    num_classes: int = 10
    dtype: Any = None

    def __post_init__(self) -> None:
        """Checks the widths."""
        check_widths("hidden", self.hidden)
        check_widths("num_classes", (self.num_classes,))
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[Array | np.ndarray, "batch ..."], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Computes the logits.

        Args:
            x: a batch of inputs of any rank, at least one.
            train: without effect here; the networks with batch norm need it.

        Returns:
            One row of logits per input.
        """
        del train
        x = jnp.reshape(x, (x.shape[0], -1))
        for index, width in enumerate(self.hidden, start=1):
            x = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"fc{index}")(x))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="linear")(x)

    @classmethod
    def from_variables(cls, variables: Variables, *, dtype: Any = None) -> MLP:
        """Builds the MLP that ``variables`` belong to, dense or compressed.

        Args:
            variables: ``{"params": ...}`` of arrays or of ``jax.ShapeDtypeStruct``.
            dtype: the dtype to compute in.

        Returns:
            A module whose ``apply`` accepts ``variables``.

        Raises:
            ValueError: if the tree is not that of an MLP; the message names the leaf.

        Example:
            >>> import jax
            >>> import jax.numpy as jnp
            >>> model = MLP(hidden=(8, 5), num_classes=3)
            >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4)))
            >>> MLP.from_variables(variables).hidden
            (8, 5)
        """
        kernels = [f"params/fc{k + 1}/kernel" for k in range(numbered(variables, "fc"))]
        shapes = [leaf_shape(variables, path, 2) for path in (*kernels, "params/linear/kernel")]
        widths = tuple(shape[1] for shape in shapes)
        model = cls(hidden=widths[:-1], num_classes=widths[-1], dtype=dtype)
        check_variables(model, variables, (1, shapes[0][0]))
        return model
