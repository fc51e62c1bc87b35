"""What is not prepared is told at once, with the command that prepares it."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest

from ifjax.data import open_prepared


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet2012"])
def test_unprepared_folder_gives_the_command(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"no folder {name} there") as caught:
        open_prepared(name, "test", tmp_path)
    assert (
        f"tfds.builder('{name}', data_dir='{tmp_path}', file_format='array_record')"
        ".download_and_prepare()"
    ) in str(caught.value)
    assert ("ILSVRC2012_img_val.tar" in str(caught.value)) == (name == "imagenet2012")


def test_half_prepared_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "cifar10" / "3.0.2").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"nothing complete in .*3.0.2"):
        open_prepared("cifar10", "test", tmp_path)
    assert os.listdir(tmp_path / "cifar10" / "3.0.2") == []


def test_imagenet_says_where_its_archives_go(tmp_path):
    """TFDS' own default: it looks there when the command is run."""
    with pytest.raises(FileNotFoundError) as caught:
        open_prepared("imagenet2012", "train", tmp_path)
    assert f"into {tmp_path}/downloads/manual)" in str(caught.value)


def test_missing_split_is_named(photographs):
    with pytest.raises(FileNotFoundError, match=r"the splits train, validation and no test\[:5\]"):
        open_prepared("imagenet2012", "test[:5]", photographs)


def test_another_file_format_is_refused(tmp_path, prepare, encode):
    images = [{"image": encode(np.zeros((32, 32, 3), np.uint8), "PNG"), "label": 0, "id": "0"}]
    prepare("cifar10", tmp_path, {"train": images, "test": images})
    assert len(open_prepared("cifar10", "train", tmp_path)) == 1
    path = tmp_path / "cifar10" / "3.0.2" / "dataset_info.json"
    info = json.loads(path.read_text())
    assert info["fileFormat"] == "array_record"
    path.write_text(json.dumps(info | {"fileFormat": "riegeli"}))
    with pytest.raises(FileNotFoundError, match="files of the format riegeli"):
        open_prepared("cifar10", "test", tmp_path)


def test_the_default_folder_is_that_of_tfds(monkeypatch, tmp_path):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"in '{tmp_path}/tensorflow_datasets'"):
        open_prepared("cifar10", "test")


def test_images_come_as_pixels_or_as_the_file(photographs):
    pixels = open_prepared("imagenet2012", "validation[1:2]", photographs)[0]
    file = open_prepared("imagenet2012", "validation[1:2]", photographs, decode_images=False)[0]
    assert pixels["image"].dtype == np.uint8
    assert file["image"].startswith(b"\xff\xd8")
    assert pixels["label"] == file["label"]


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("tensorflow_datasets", "tensorflow-datasets"),
        ("importlib_resources", "importlib_resources"),
        ("array_record.python.array_record_data_source", "array_record"),
        ("PIL.Image", "Pillow"),
    ],
)
def test_missing_packages_are_named(monkeypatch, tmp_path, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"package {package} .*pip install 'ifjax\[data\]'"):
        open_prepared("cifar10", "test", tmp_path)
