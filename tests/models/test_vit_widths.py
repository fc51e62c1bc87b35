from __future__ import annotations

import pytest

from ifjax.models import ViT
from ifjax.models.vit_widths import ViTWidths
from tests.models.compression import struct


def test_standard_widths_share_the_stream():
    widths = ViTWidths.standard(dim=12, depth=2, heads=3, mlp=5)
    assert widths == ViTWidths(12, (3, 3), (4, 4), (4, 4), (5, 5))
    assert hash(widths) == hash(ViTWidths.standard(12, 2, 3, 5))


def test_uneven_widths_are_read_off_the_variables():
    widths = ViTWidths(5, (2, 1), (3, 4), (6, 2), (7, 8))
    variables = struct(ViT(widths, head_dim=3, patch=2), 2, 4, 1)
    assert ViTWidths.from_variables(variables) == widths


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ViTWidths.standard(10, 1, 3, 4), "multiple of heads, got dim=10, heads=3"),
        (lambda: ViTWidths.standard(12, 0, 3, 4), "at least 1"),
        (lambda: ViTWidths(4, (2, 2), (2,), (2, 2), (3, 3)), r"1 in query=\(2,\)"),
        (lambda: ViTWidths(4, (2,), (2,), (0,), (3,)), r"value\[0\], got 0"),
    ],
)
def test_widths_that_do_not_fit_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
