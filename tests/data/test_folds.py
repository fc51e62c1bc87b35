from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifjax.data import Dataset, StreamedDataset, class_counts, make_folds, part


def labelled(labels: np.ndarray) -> Dataset:
    images = np.broadcast_to(np.arange(len(labels)).reshape(-1, 1, 1, 1), (len(labels), 2, 2, 1))
    images, labels = images.astype(np.float32), labels.astype(np.int32)
    test = images[:3], labels[:3]
    return Dataset("numbered", images, labels, *test, 5, mean=(0.0,), std=(1.0,))


def streamed(n: int) -> StreamedDataset:
    source = [{"image": np.full((2, 2, 1), i, np.uint8), "label": i % 5} for i in range(n)]
    return StreamedDataset(
        "streamed",
        source,
        source[:3],
        5,
        (2, 2, 1),
        (0.0,),
        (1.0,),
        train_transform=lambda image, rng: image,
        test_transform=lambda image: image,
    )


@given(
    kind=st.sampled_from(["random", "stratified", "dirichlet"]),
    n=st.integers(20, 90),
    count=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_folds_are_disjoint_exhaustive_and_seeded(kind, n, count, seed):
    dataset = labelled(np.random.default_rng(n).integers(0, 5, n))
    folds = make_folds(dataset, count, kind, seed=seed, min_size=2)
    assert sorted(np.concatenate(folds).tolist()) == list(range(n))
    assert all(np.all(np.diff(fold) > 0) for fold in folds)
    assert min(map(len, folds)) >= 2
    again = make_folds(dataset, count, kind, seed=seed, min_size=2)
    assert [fold.tolist() for fold in folds] == [fold.tolist() for fold in again]
    counts = class_counts(dataset, folds)
    np.testing.assert_array_equal(counts.sum(0), np.bincount(dataset.train_labels, minlength=5))
    if kind != "dirichlet":
        assert np.ptp([len(fold) for fold in folds]) <= 1
    if kind == "stratified":
        assert np.ptp(counts, axis=0).max() <= 1


def test_another_seed_gives_other_folds():
    dataset = labelled(np.zeros(100))
    draws = [make_folds(dataset, 2, seed=seed)[0].tolist() for seed in range(3)]
    assert len(set(map(tuple, draws))) == 3


@pytest.mark.parametrize(("alpha", "share"), [(0.05, (0.85, 1.0)), (1e4, (0.25, 0.27))])
def test_alpha_is_the_concentration_of_every_class(alpha, share):
    dataset = labelled(np.arange(5000) % 5)
    counts = class_counts(dataset, make_folds(dataset, 4, "dirichlet", alpha=alpha))
    largest = (counts / counts.sum(0)).max(0).mean()
    assert share[0] <= largest <= share[1]


def test_shares_of_a_class_are_dirichlet():
    dataset, alpha = labelled(np.zeros(4000)), 2.0
    shares = [
        len(make_folds(dataset, 3, "dirichlet", alpha=alpha, seed=seed)[0]) / 4000
        for seed in range(400)
    ]
    # The first of three shares is Beta(alpha, 2 alpha): mean 1/3, variance 2 / (9 (3 alpha + 1)).
    np.testing.assert_allclose(np.mean(shares), 1 / 3, atol=0.04)
    np.testing.assert_allclose(np.var(shares), 2 / 9 / (3 * alpha + 1), rtol=0.25)


def test_a_part_has_the_images_of_its_indices_and_the_whole_test_split():
    dataset, chosen = labelled(np.arange(9) % 5), np.array([7, 2, 3])
    found = part(dataset, chosen)
    assert found.train_images[:, 0, 0, 0].tolist() == [7, 2, 3]
    assert found.train_labels.tolist() == [2, 2, 3]
    assert found.num_test == 3
    assert not found.train_images.flags.writeable


def test_a_part_of_a_streamed_set_reads_its_indices_alone():
    dataset = streamed(12)
    found = part(dataset, make_folds(dataset, 3, seed=1)[2])
    want = set(make_folds(dataset, 3, seed=1)[2].tolist())
    seen = [
        int(image[0, 0, 0])
        for batch in found.train_batches(2, seed=0, epoch=0)
        for image in batch.images
    ]
    assert set(seen) == want
    assert len(seen) == 4 == found.num_train
    assert found.num_test == 3
    assert pickle.loads(pickle.dumps(found.train_source))[0]["label"] in range(5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda d: make_folds(d, 0), "at least 1 fold, got 0"),
        (lambda d: make_folds(d, 4, min_size=4), r"min_size in 1\.\.3"),
        (lambda d: make_folds(d, 2, "sorted"), "'random', 'stratified' or 'dirichlet'"),
        (lambda d: make_folds(d, 2, "dirichlet", alpha=0.0), "positive and finite alpha"),
        (lambda d: make_folds(d, 4, "dirichlet", alpha=1e-4, min_size=3), "larger alpha"),
        (lambda d: make_folds(streamed(12), 2, "stratified"), "choose kind='random'"),
        (lambda d: part(d, np.array([12])), r"indices in 0\.\.11"),
        (lambda d: part(d, np.array([], int)), "one or more indices"),
    ],
)
def test_errors_say_the_way_out(build, message):
    with pytest.raises(ValueError, match=message):
        build(labelled(np.arange(12) % 5))


@pytest.mark.usefixtures("unchecked")
def test_a_part_of_something_else_is_refused():
    class Other:
        num_train, name = 3, "other"

    with pytest.raises(TypeError, match="got Other"):
        part(Other(), np.array([0]))
