"""What is said of networks to be fused, checked."""

import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.model_fusion.inputs import check_converged, check_maps, check_options, checked_method
from ifjax.transport.transport import Transport

PARAMS = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
STRUCTURE = ifjax.trace(lambda p, x: x @ p["a"] @ p["b"], PARAMS, jnp.ones((1, 3))).structure


def transport(n=4, m=4, converged=True):
    one = np.zeros((), np.float32)
    fields = np.zeros((n, m)), np.zeros(m, int), np.asarray(converged), np.int32(3), one, one
    return Transport(*fields, np.zeros(n))


def test_options_of_an_alignment():
    check_options("weights", 0)
    with pytest.raises(ValueError, match="one of weights, activations; got 'both'"):
        check_options("both", 0)
    with pytest.raises(ValueError, match=r"sweeps must be .* not negative, got -1"):
        check_options("weights", -1)
    assert checked_method("sinkhorn", 0.02, 2.0).solver_value.epsilon == 0.02
    with pytest.raises(ValueError, match="solver='nearest' leaves targets"):
        checked_method("nearest", None, 2.0)


def test_a_map_of_its_shape_for_every_group_of_every_network():
    check_maps([{"a": transport()}], [STRUCTURE, STRUCTURE])
    with pytest.raises(ValueError, match="maps for the 2 networks after the first, got 1"):
        check_maps([{"a": transport()}], [STRUCTURE] * 3)
    with pytest.raises(ValueError, match=r"models\[1\], group a: .* \(4, 4\), got \(4, 3\)"):
        check_maps([{"a": transport(m=3)}], [STRUCTURE, STRUCTURE])
    with pytest.raises(ValueError, match="got none"):
        check_maps([{}], [STRUCTURE, STRUCTURE])


def test_a_solver_that_did_not_converge_is_named():
    method = checked_method("sinkhorn", 0.02, 2.0)
    check_converged({"a": transport()}, 1, method)
    with pytest.raises(RuntimeError, match=r"models\[2\], group a: solver 'sinkhorn' .* 0\.02"):
        check_converged({"a": transport(converged=False)}, 2, method)
