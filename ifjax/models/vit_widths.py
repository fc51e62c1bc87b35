"""All widths of a vision transformer."""

from __future__ import annotations

import dataclasses

from ifjax.models.widths import Variables, check_widths, leaf_shape, numbered


@dataclasses.dataclass(frozen=True)
class ViTWidths:
    """All widths of a vision transformer; hashable, so that it can be a static argument.

    Attributes:
        dim: the width of the residual stream.
        heads: the attention heads of every block.
        query: per block, the width of the queries and keys of each head.
        value: per block, the width of the values of each head.
        mlp: the neurons between the two dense layers of every block.

    Raises:
        ValueError: if a width is not positive, or the numbers of blocks differ.

    Example:
        >>> ViTWidths.standard(dim=12, depth=2, heads=3, mlp=24)
        ViTWidths(dim=12, heads=(3, 3), query=(4, 4), value=(4, 4), mlp=(24, 24))
    """

    dim: int
    heads: tuple[int, ...]
    query: tuple[int, ...]
    value: tuple[int, ...]
    mlp: tuple[int, ...]

    def __post_init__(self) -> None:
        """Checks that the widths fit together."""
        check_widths("dim", (self.dim,))
        for name in ("heads", "query", "value", "mlp"):
            widths = getattr(self, name)
            check_widths(name, widths)
            if len(widths) != len(self.heads):
                raise ValueError(
                    f"expected one width per block, got {len(self.heads)} in heads={self.heads!r} "
                    f"and {len(widths)} in {name}={widths!r}"
                )

    @classmethod
    def standard(cls, dim: int, depth: int, heads: int, mlp: int) -> ViTWidths:
        """The widths of a network whose blocks are all alike, and whose heads share ``dim``.

        Args:
            dim: the width of the residual stream, a multiple of ``heads``.
            depth: the number of blocks.
            heads: the attention heads of each block.
            mlp: the neurons between the two dense layers of each block.

        Returns:
            The widths; queries, keys and values have ``dim / heads`` per head.

        Raises:
            ValueError: if ``heads`` does not divide ``dim``, or a number is not positive.
        """
        check_widths("(dim, depth, heads, mlp)", (dim, depth, heads, mlp))
        if dim % heads:
            raise ValueError(
                f"expected dim to be a multiple of heads, got dim={dim!r}, heads={heads!r}; "
                "give ViTWidths of your own for other widths of the heads"
            )
        width = (dim // heads,) * depth
        return cls(dim, (heads,) * depth, width, width, (mlp,) * depth)

    @classmethod
    def from_variables(cls, variables: Variables) -> ViTWidths:
        """Reads the widths off the variables of a vision transformer.

        Args:
            variables: ``{"params": ...}`` of arrays or of ``jax.ShapeDtypeStruct``.

        Returns:
            The widths.

        Raises:
            ValueError: if a kernel that tells a width is missing.
        """
        blocks = [f"params/block{k + 1}" for k in range(max(1, numbered(variables, "block")))]
        query = [leaf_shape(variables, f"{block}/query/kernel", 3) for block in blocks]
        value = [leaf_shape(variables, f"{block}/value/kernel", 3) for block in blocks]
        mlp = [leaf_shape(variables, f"{block}/fc1/kernel", 2) for block in blocks]
        return cls(
            dim=leaf_shape(variables, "params/patches/kernel", 4)[3],
            heads=tuple(shape[1] for shape in query),
            query=tuple(shape[2] for shape in query),
            value=tuple(shape[2] for shape in value),
            mlp=tuple(shape[1] for shape in mlp),
        )
