"""A vision transformer, with every width given explicitly.

Dosovitskiy et al., An Image is Worth 16x16 Words (https://arxiv.org/abs/2010.11929), as torchvision
computes it: a class token, learned positions, pre-norm blocks, exact GELU.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ifjax.models.vit_widths import ViTWidths
from ifjax.models.widths import (
    FromSpec,
    Variables,
    check_variables,
    check_widths,
    leaf_shape,
    scaled,
)
from ifjax.spec.spec import FusionSpec

_xavier = nn.initializers.xavier_uniform()


def _layer_norm(dtype: Any, name: str) -> nn.LayerNorm:
    # The fast variance E[x^2] - E[x]^2 loses digits that torch keeps.
    return nn.LayerNorm(epsilon=1e-6, use_fast_variance=False, dtype=dtype, name=name)


class EncoderBlock(nn.Module):
    """Multi-head self-attention and an MLP, each after a layer norm and beside a residual.

    Attributes:
        heads: the attention heads.
        query: the width of the queries and keys of each head.
        value: the width of the values of each head.
        mlp: the neurons between the two dense layers.
        head_dim: the scores are divided by its square root; stays when ``query`` is cut.
        dtype: the dtype to compute in; the softmax is in float32 at least.
    """

    heads: int
    query: int
    value: int
    mlp: int
    head_dim: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        """Computes the residual stream after the block.

        Args:
            x: the residual stream.

        Returns:
            The stream plus what attention and MLP add to it.
        """

        def project(width: int, name: str) -> nn.DenseGeneral:
            return nn.DenseGeneral(
                (self.heads, width), kernel_init=_xavier, dtype=self.dtype, name=name
            )

        dim = x.shape[-1]
        y = _layer_norm(self.dtype, "ln1")(x)
        query, key = project(self.query, "query")(y), project(self.query, "key")(y)
        value = project(self.value, "value")(y)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query * self.head_dim**-0.5, key)
        scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
        weights = nn.softmax(scores).astype(value.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        attention = nn.DenseGeneral(
            dim, axis=(-2, -1), kernel_init=_xavier, dtype=self.dtype, name="out"
        )
        x = x + attention(y)
        y = _layer_norm(self.dtype, "ln2")(x)
        y = nn.Dense(self.mlp, kernel_init=_xavier, dtype=self.dtype, name="fc1")(y)
        y = nn.gelu(y, approximate=False)
        return x + nn.Dense(dim, kernel_init=_xavier, dtype=self.dtype, name="fc2")(y)


class ViT(FromSpec, nn.Module):
    """A vision transformer: patches, class token, positions, encoder blocks, classifier.

    The leaves are ``patches`` (a convolution), ``class_token`` [1, 1, dim], ``positions``
    [1, tokens, dim], blocks ``block1`` ... (each with ``ln1``, ``query``, ``key``, ``value`` of
    kernel [dim, heads, width], ``out`` of kernel [heads, width, dim], ``ln2``, ``fc1``, ``fc2``),
    ``ln`` and ``linear``. The positions belong to one image size.

    Attributes:
        widths: every width; see :class:`ViTWidths`.
        head_dim: the attention scores are divided by its square root. It is the width of the heads
            before any compression, and stays when they are cut.
        num_classes: the number of logits.
        patch: the side of a patch in pixels.
        dtype: the dtype to compute in; by default that of the parameters and the input.

    Raises:
        ValueError: if ``head_dim``, ``num_classes`` or ``patch`` is not a positive integer.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> model = ViT.standard(3, dim=8, depth=1, heads=2, mlp=16, patch=4)
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        >>> variables["params"]["positions"].shape
        (1, 5, 8)
    """

    widths: ViTWidths
    head_dim: int
    num_classes: int = 10
    patch: int = 4
    dtype: Any = None

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name in ("head_dim", "num_classes", "patch"):
            check_widths(name, (getattr(self, name),))
        super().__post_init__()

    @nn.compact
    def __call__(
        self,
        x: Float[Array | np.ndarray, "batch height width channels"],
        train: bool = False,
    ) -> Float[Array, "batch classes"]:
        """Computes the logits.

        Args:
            x: normalised images, NHWC, of the size the positions belong to.
            train: without effect here; the networks with batch norm need it.

        Returns:
            One row of logits per image.

        Raises:
            ValueError: if the sides of the images are no multiples of the patch.
        """
        del train
        widths, dtype, patch = self.widths, self.dtype, (self.patch, self.patch)
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(
                f"expected images whose sides are multiples of patch={self.patch}, "
                f"got shape {x.shape}; resize them"
            )
        x = nn.Conv(widths.dim, patch, strides=patch, padding="VALID", dtype=dtype, name="patches")(
            x
        )
        x = jnp.reshape(x, (x.shape[0], -1, widths.dim))
        token = self.param("class_token", nn.initializers.zeros, (1, 1, widths.dim))
        token = jnp.broadcast_to(token.astype(x.dtype), (x.shape[0], 1, widths.dim))
        x = jnp.concatenate([token, x], axis=1)
        positions = self.param(
            "positions", nn.initializers.normal(0.02), (1, x.shape[1], widths.dim)
        )
        x = x + positions.astype(x.dtype)
        blocks = zip(widths.heads, widths.query, widths.value, widths.mlp, strict=True)
        for index, block in enumerate(blocks, start=1):
            x = EncoderBlock(*block, self.head_dim, dtype, name=f"block{index}")(x)
        x = _layer_norm(dtype, "ln")(x)[:, 0]
        return nn.Dense(self.num_classes, dtype=dtype, name="linear")(x)

    @classmethod
    def standard(
        cls,
        num_classes: int = 10,
        *,
        dim: int,
        depth: int,
        heads: int,
        mlp: int,
        patch: int,
        width: float = 1.0,
        dtype: Any = None,
    ) -> ViT:
        """Builds a network whose blocks are all alike.

        Args:
            num_classes: the number of logits.
            dim: the width of the residual stream, a multiple of ``heads``.
            depth: the number of blocks.
            heads: the attention heads of each block.
            mlp: the neurons between the two dense layers of each block.
            patch: the side of a patch in pixels.
            width: multiplies the width of each head and ``mlp``, to the nearest integers of at
                least 1; the stream is ``heads`` times as wide as a head.
            dtype: the dtype to compute in.

        Returns:
            The module.

        Raises:
            ValueError: if ``heads`` does not divide ``dim``, or a number is not positive.

        Example:
            >>> ViT.standard(dim=192, depth=2, heads=3, mlp=768, patch=4).head_dim
            64
        """
        widths = ViTWidths.standard(dim, depth, heads, mlp)
        head_dim = scaled(widths.query[0], width)
        widths = ViTWidths.standard(heads * head_dim, depth, heads, scaled(mlp, width))
        return cls(widths, head_dim, num_classes, patch, dtype)

    @classmethod
    def from_variables(
        cls, variables: Variables, *, head_dim: int | None = None, dtype: Any = None
    ) -> ViT:
        """Builds the network that ``variables`` belong to, dense or compressed.

        Args:
            variables: ``{"params": ...}`` of arrays or of ``jax.ShapeDtypeStruct``.
            head_dim: the attribute of that name, needed: no leaf tells how wide the heads were
                before they were cut.
            dtype: the dtype to compute in.

        Returns:
            A module whose ``apply`` accepts ``variables`` for images of the size they belong to.

        Raises:
            ValueError: if the tree is not that of a ViT (naming the leaves), or there is no
                ``head_dim``.

        Example:
            >>> import jax
            >>> import jax.numpy as jnp
            >>> model = ViT(ViTWidths(6, (2, 1), (3, 2), (3, 1), (5, 4)), head_dim=3)
            >>> variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
            >>> ViT.from_variables(variables, head_dim=3) == model
            True
        """
        widths = ViTWidths.from_variables(variables)
        if head_dim is None:
            raise ValueError(
                f"expected head_dim, the width of a head before compression, as the attention "
                f"scores are divided by its square root; got none, and the queries {widths.query} "
                "wide, which may have been cut; pass module.head_dim, or use from_spec"
            )
        patch, _, channels, _ = leaf_shape(variables, "params/patches/kernel", 4)
        tokens = leaf_shape(variables, "params/positions", 3)[1]
        num_classes = leaf_shape(variables, "params/linear/kernel", 2)[1]
        model = cls(widths, head_dim, num_classes, patch, dtype)
        # Which height and width gave so many patches does not matter to the shapes.
        check_variables(model, variables, (1, patch, patch * max(1, tokens - 1), channels))
        return model

    @classmethod
    def from_spec(cls, spec: FusionSpec, *, head_dim: int | None = None, dtype: Any = None) -> ViT:
        """Builds the network at the widths of a spec that was made for its variables.

        Args:
            spec: made from ``ifjax.trace`` of this network's ``apply``.
            head_dim: the attribute of that name; by default the width of the queries that the spec
                starts from, which is wrong only if they had been cut before.
            dtype: the dtype to compute in.

        Returns:
            A module whose ``apply`` accepts what ``ifjax.fuse_params`` returns.

        Raises:
            ValueError: if the spec is of another network.

        Example:
            >>> import ifjax, jax
            >>> import jax.numpy as jnp
            >>> model = ViT.standard(dim=8, depth=1, heads=2, mlp=16, patch=4)
            >>> image = jnp.zeros((1, 8, 8, 3))
            >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
            >>> graph = ifjax.trace(model.apply, variables, image)
            >>> ViT.from_spec(graph.spec({"params/block1/fc1/*": 0.5})).widths.mlp
            (8,)
        """
        leaf = spec.structure.leaf.get("params/block1/query/kernel")
        if head_dim is None and leaf is not None and len(leaf.shape) == 3:
            head_dim = leaf.shape[2]
        return cls.from_variables(spec.small_struct(), head_dim=head_dim, dtype=dtype)
