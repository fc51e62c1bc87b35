"""What is written is read back, and the bytes are those of the format."""

import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event

from ifjax.experiment.curves import add, open_curves, read


def test_points_are_on_disk_at_once(tmp_path: Path) -> None:
    with open_curves(tmp_path) as curves:
        add(curves, 10, {"train/loss": 0.5, "train/accuracy": 0.25})
        assert read(tmp_path) == {"train/loss": {10: 0.5}, "train/accuracy": {10: 0.25}}
        add(curves, 20, {"train/loss": 0.125})
    assert read(tmp_path)["train/loss"] == {10: 0.5, 20: 0.125}


def test_a_run_that_goes_on_replaces_what_it_does_again(tmp_path: Path) -> None:
    for start, loss in ((0, 1.0), (15, 2.0)):
        with open_curves(tmp_path, start) as curves:
            for step in (10, 20, 30):
                if step > start:
                    add(curves, step, {"train/loss": loss})
    assert read(tmp_path)["train/loss"] == {10: 1.0, 20: 2.0, 30: 2.0}


def crc32c(data: bytes) -> int:
    """Castagnoli's, bit by bit (RFC 3720, appendix B.4)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    """The checksum of a TFRecord: rotated, plus a constant."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_the_file_is_made_of_records_with_their_checksums(tmp_path: Path) -> None:
    with open_curves(tmp_path, 7) as curves:
        add(curves, 10, {"train/loss": 0.5})
    (file,) = tmp_path.iterdir()
    assert file.name.startswith("events.out.tfevents.")
    content, at, found = file.read_bytes(), 0, []
    while at < len(content):
        length, crc = struct.unpack_from("<QI", content, at)
        message = content[at + 12 : at + 12 + length]
        assert crc == masked(content[at : at + 8])
        assert struct.unpack_from("<I", content, at + 12 + length) == (masked(message),)
        found.append(Event.FromString(message))
        at += 16 + length
    version, start, point = found
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (7, 1)
    assert (point.step, point.summary.value[0].tag) == (10, "train/loss")


@pytest.mark.parametrize("lost", [1, 20])
def test_the_half_point_of_a_killed_process_does_not_count(lost: int, tmp_path: Path) -> None:
    with open_curves(tmp_path) as curves:
        add(curves, 10, {"train/loss": 0.5})
        add(curves, 20, {"train/loss": 0.25})
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-lost])
    assert read(tmp_path) == {"train/loss": {10: 0.5}}
    with open_curves(tmp_path, 15) as curves:
        add(curves, 20, {"train/loss": 0.125})
    assert read(tmp_path) == {"train/loss": {10: 0.5, 20: 0.125}}
