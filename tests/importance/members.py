"""Members of a group, for the tests of metrics."""

import numpy as np


def members(seed, n=6, widths=(4, 7)):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, k)).astype(np.float32) for k in widths]
