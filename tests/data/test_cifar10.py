from __future__ import annotations

import json
import os
import shutil
import sys

import numpy as np
import pytest

from ifjax.data import CIFAR10_MEAN, cifar10, cifar10_split, load_cifar10


@pytest.fixture(scope="module")
def folder(shared):
    path = shared / "tensorflow_datasets"
    if not (path / "cifar10").is_dir():
        pytest.skip(f"no prepared cifar10 at {path}")
    return path


def test_a_slice_equals_what_tfds_decodes(folder, monkeypatch):
    import tensorflow_datasets as tfds

    images, labels = cifar10_split("test[2:5]", folder)
    source = tfds.data_source("cifar10", split="test", data_dir=folder)
    np.testing.assert_array_equal(images, [source[i]["image"] for i in (2, 3, 4)])
    assert labels.tolist() == [source[i]["label"] for i in (2, 3, 4)]
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    assert not images.flags.writeable
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    np.testing.assert_array_equal(cifar10_split("test[2:5]")[0], images)


def test_load_reads_both_splits(monkeypatch):
    def source(split, data_dir):
        count = {"train": 5, "test": 2}[split]
        return [{"image": np.full((32, 32, 3), i, np.uint8), "label": i} for i in range(count)]

    monkeypatch.setattr(cifar10, "_source", source)
    data = load_cifar10()
    assert data.train_images[:, 0, 0, 0].tolist() == data.train_labels.tolist() == [0, 1, 2, 3, 4]
    assert data.test_labels.tolist() == [0, 1]
    assert (data.mean, data.crop_padding, data.flip) == (CIFAR10_MEAN, 4, True)


def test_unprepared_folder_gives_the_command(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder cifar10 there") as caught:
        cifar10_split("test", tmp_path)
    assert (
        f"tfds.builder('cifar10', data_dir='{tmp_path}', file_format='array_record')"
        ".download_and_prepare()"
    ) in str(caught.value)
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"nothing complete in .*3.0.2"):
        cifar10_split("test", tmp_path)
    assert os.listdir(tmp_path / "cifar10" / "3.0.2") == []


def test_the_default_folder_is_that_of_tfds(monkeypatch, tmp_path):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"in '{tmp_path}/tensorflow_datasets'"):
        cifar10_split("test")


def test_another_file_format_is_refused(folder, tmp_path):
    target = tmp_path / "cifar10" / "3.0.2"
    target.mkdir(parents=True)
    for name in ("features.json", "label.labels.txt"):
        shutil.copyfile(folder / "cifar10" / "3.0.2" / name, target / name)
    info = json.loads((folder / "cifar10" / "3.0.2" / "dataset_info.json").read_text())
    assert info["fileFormat"] == "array_record"
    info["fileFormat"] = "riegeli"
    (target / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(FileNotFoundError, match="files of the format riegeli"):
        cifar10_split("test", tmp_path)


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("tensorflow_datasets", "tensorflow-datasets"),
        ("importlib_resources", "importlib_resources"),
        ("array_record.python.array_record_data_source", "array_record"),
        ("PIL.Image", "Pillow"),
        ("tqdm", "tqdm"),
    ],
)
def test_missing_packages_are_named(monkeypatch, tmp_path, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"package {package} .*pip install 'ifjax\[data\]'"):
        cifar10_split("test", tmp_path)
