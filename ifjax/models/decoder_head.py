"""A decoder whose head is a leaf of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def untie_decoder(params: Mapping[str, Any]) -> dict[str, Any]:
    """The same decoder with a head beside the embedding: its transpose, of as many weights more.

    A tied embedding is read twice, so that neither what `ifjax.rotate` folds into the head nor what
    `ifjax.compress` solves for there can differ from the embedding. The function is the same, its
    config too; `ifjax.interop.save_huggingface` writes ``tie_word_embeddings`` as it is.

    Args:
      params: its tree, layers stacked or in a list.

    Returns:
      Parameters with a ``head``, ``[d, vocabulary]``; as they are where they have one.

    Example:
      >>> import jax
      >>> from ifjax.models import DecoderWidths, init_decoder
      >>> params = init_decoder(jax.random.key(0), DecoderWidths(11, 8, 16, 4, 2, 4, layers=3))
      >>> untie_decoder(params)["head"].shape
      (8, 11)
    """
    if "head" in params:
        return dict(params)
    return {**params, "head": params["embedding"].T}
