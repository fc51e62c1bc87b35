"""What the studies of the evidence compute beside calling the library."""

import jax
import numpy as np
import pytest

from tests.benchmark_module import loaded


@pytest.mark.parametrize("name", ["mlp", "resnet8"])
def test_two_networks_side_by_side_give_the_mean_of_their_logits(name, unchecked):
    study = loaded("interpolation")
    module, wide = study.network(name, 1), study.network(name, 2)
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    init = jax.jit(module.init)
    first, second = (init(jax.random.key(k), x) for k in (1, 2))
    struct = jax.eval_shape(wide.init, jax.random.key(0), x)
    both = study.side_by_side(struct, first, second)
    assert jax.tree.map(lambda leaf: leaf.shape, both) == jax.tree.map(lambda s: s.shape, struct)
    expected = (module.apply(first, x) + module.apply(second, x)) / 2
    np.testing.assert_allclose(wide.apply(both, x), expected, atol=1e-5)


def test_halves_hold_every_image_once_and_classes_as_they_are_asked_for():
    labels = np.arange(1000) % 10
    for split, share in {"random": 0.5, "skewed": 0.9, "by class": 1.0}.items():
        first, second = loaded("interpolation").halves(labels, split, 0)
        assert sorted([*first, *second]) == list(range(1000))
        low = (labels[first] < 5).sum() / 500
        assert abs(low - share) < (0.05 if share < 1 else 1e-9)


def test_corruptions_get_stronger_and_stay_images():
    corruptions = loaded("corruptions")
    smooth = np.linspace(0, 255, 16)[:, None, None] * np.ones((16, 16, 3))
    images = np.stack([smooth, smooth[::-1]]).astype(np.uint8)
    images[:, ::4] //= 2
    for kind in corruptions.STRENGTHS:
        found = [corruptions.corrupt(images, kind, strength) for strength in (1, 5)]
        assert all(x.shape == images.shape and x.dtype == np.uint8 for x in found)
        weak, strong = (np.abs(x.astype(float) - images).mean() for x in found)
        assert 0 < weak < strong, kind


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    study = loaded("robustness")
    sure = np.tile([0.9, 0.1], (10, 1))
    assert study.calibration_error(sure, np.zeros(10, int)) == pytest.approx(0.1)
    assert study.calibration_error(sure, np.ones(10, int)) == pytest.approx(0.9)
    # Two bins: right with 0.9, wrong with 0.6.
    mixed = np.array([[0.9, 0.1], [0.6, 0.4]])
    assert study.calibration_error(mixed, np.array([0, 1])) == pytest.approx((0.1 + 0.6) / 2)


def test_changed_plans_keep_every_neuron_whole():
    study = loaded("soft_plans")
    shares = np.array([[1.0, 0.0], [0.25, 0.75], [0.0, 1.0], [0.6, 0.4]])
    targets = np.array([0, 2])
    for s in (0.0, 0.5, 1.0):
        np.testing.assert_allclose(study.spread(shares, targets, s).sum(1), 1)
    np.testing.assert_array_equal(study.spread(shares, targets, 0.0), shares)
    assert study.spread(shares, targets, 1.0).tolist() == [[1, 0], [0.5, 0.5], [0, 1], [0.5, 0.5]]
    soft = np.array([[0.7, 0.3], [0.25, 0.75], [0.2, 0.8], [0.6, 0.4]])
    found = study.all_own(soft, targets)
    np.testing.assert_array_equal(found[targets], np.eye(2))
    np.testing.assert_array_equal(found[[1, 3]], soft[[1, 3]])
