"""Activations lie in memory while they fit, and on disk while they are needed."""

import shutil
from collections import namedtuple

import pytest
import torch

from quept.calibrate.activations import ActivationStore
from quept.calibrate.errors import CalibrationError

SIZE = 4 * 6 * 8 * 4  # bytes of a stream of 4 sequences of 6 tokens with 8 channels


def written(streams, name="x"):
    stream = streams.new(name, 4, 6, 8)
    stream[1:3] = torch.arange(96.0).view(2, 6, 8)
    stream[3:] = stream[2:3] * 2
    return stream


def test_values_are_the_same_in_memory_and_on_disk(tmp_path):
    with ActivationStore(tmp_path / "a", SIZE) as near, ActivationStore(tmp_path / "b", SIZE - 1) as far:
        assert torch.equal(written(near), written(far))
        assert not (tmp_path / "a").exists() and len(list((tmp_path / "b").iterdir())) == 1


def test_memory_is_shared_by_all_streams(tmp_path):
    with ActivationStore(tmp_path, 2 * SIZE - 1) as streams:
        first, second = written(streams, "first"), written(streams, "second")
        assert torch.equal(first, second)
        assert [path.stem for path in tmp_path.iterdir()] == ["second"]


def test_files_are_deleted_at_the_end_and_after_an_error(tmp_path):
    with ActivationStore(tmp_path, 0) as streams:
        written(streams)
    assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError, match="stopped"), ActivationStore(tmp_path, 0) as streams:
        written(streams)
        raise RuntimeError("stopped")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_neither_read_nor_kept(tmp_path):
    ActivationStore(tmp_path, 0).new("x", 4, 6, 8).fill_(7)  # never closed
    with ActivationStore(tmp_path, 0) as streams:
        assert not list(tmp_path.iterdir())
        assert not streams.new("x", 2, 3, 4).any()


def test_a_full_disk_is_said_beforehand(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9, 9, SIZE - 1))
    with (
        ActivationStore(tmp_path, 0) as streams,
        pytest.raises(CalibrationError, match="neither into memory nor"),
    ):
        streams.new("x", 4, 6, 8)
    assert not list(tmp_path.iterdir())
