"""One loop serves data in memory and streamed data."""

from __future__ import annotations

import inspect

import pytest

from ifjax.data import Dataset, ImageDataset, StreamedDataset, load_digits


def test_in_memory_data_follows_it():
    assert isinstance(load_digits(), ImageDataset)
    assert not isinstance(object(), ImageDataset)


@pytest.mark.parametrize("kind", [Dataset, StreamedDataset])
@pytest.mark.parametrize("method", ["train_batches", "eval_batches", "normalize", "augment"])
def test_signatures_are_the_same(kind, method):
    wanted = inspect.signature(getattr(ImageDataset, method)).parameters
    found = inspect.signature(getattr(kind, method)).parameters
    assert {n: (p.kind, p.default) for n, p in found.items()} == {
        n: (p.kind, p.default) for n, p in wanted.items()
    }


def test_batches_of_the_data_set_are_those_of_its_arrays():
    data = load_digits()
    steps = list(data.train_batches(100, seed=0, epoch=1, skip=3))
    assert len(steps) == data.num_train // 100 - 3
    assert sum(int(batch.mask.sum()) for batch in data.eval_batches(100)) == data.num_test
    labels = [label for batch in data.eval_batches(100) for label in batch.labels[batch.mask]]
    assert labels == data.test_labels.tolist()
