"""Text for language models: windows of tokens, and the tokenised WikiText as one reads it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def plain_wikitext(text: str) -> str:
    """Tokenised WikiText in the form that a subword model was trained on.

    Hyphens, separators of numbers, punctuation, contractions and the insides of brackets and
    quotes lose the spaces around them; ``<unk>`` stays, so that perplexities are not those of
    papers on the raw text.

    Args:
      text: of Merity et al., Pointer Sentinel Mixture Models (arXiv 1609.07843).

    Returns:
      The text.

    Example:
      >>> print(plain_wikitext('Two @-@ fold , " he said " ( of 1 @,@ 000 ) .'))
      Two-fold, "he said" (of 1,000).
    """
    for old, new in ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")):
        text = text.replace(old, new)
    text = re.sub(r" ([.,;:!?%)\]])", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    for ending in ("'s", "n't", "'re"):
        text = text.replace(f" {ending}", ending)
    return re.sub(r'"\s*([^"]*?)\s*"', r'"\1"', text)


def windows(tokens: Sequence[int], count: int, length: int) -> NDArray[np.int32]:
    """Windows at equal steps: the i-th begins at ``i * (len(tokens) // count)``.

    Args:
      tokens: of the whole text.
      count: number of windows.
      length: tokens in each.

    Returns:
      Tokens ``[count, length]``.

    Raises:
      ValueError: for numbers that are not positive, or a text that is too short.

    Example:
      >>> windows(range(10), 2, 3).tolist()
      [[0, 1, 2], [5, 6, 7]]
    """
    if count < 1 or length < 2:
        raise ValueError(
            f"expected at least one window of at least two tokens, got {count} of {length}"
        )
    step = len(tokens) // count
    if (count - 1) * step + length > len(tokens) or step == 0:
        most = len(tokens) // length
        less = f"at most {most} windows" if most else "shorter ones"
        raise ValueError(
            f"the text has {len(tokens):,} tokens, too few for {count} windows of {length} at "
            f"equal steps; give {less}, or more text"
        )
    return np.asarray([tokens[i * step : i * step + length] for i in range(count)], np.int32)
