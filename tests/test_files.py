"""Files appear whole or not at all, say what they are, and can be gone on from."""

import errno
import json
import os

import pytest
import torch

from quept.files import (
    FileError,
    append_line,
    dtype_name,
    parse_json,
    read_json,
    read_lines,
    replacing,
    resume_lines,
    write_atomic,
    write_tensors,
)


def test_a_written_file_is_whole_readable_by_others_and_alone_in_its_folder(tmp_path):
    path = tmp_path / "new" / "file.txt"
    assert write_atomic(path, "é") == 2
    assert path.read_text("utf-8") == "é" and path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == ["file.txt"]


def test_what_fails_half_way_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence_with_the_way_out(tmp_path):
    path = tmp_path / "log.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(FileError, match=r"cannot write .*log\.jsonl: the disk is full: make room"):
        append_line(path, {"a": 1})


def test_a_full_disk_under_safetensors_is_the_same_sentence(tmp_path):
    from safetensors import SafetensorError

    with pytest.raises(FileError, match="the disk is full") as caught, replacing(tmp_path / "x.safetensors"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert caught.value.errno == errno.ENOSPC and not os.listdir(tmp_path)


def test_tensors_are_the_same_bytes_every_time_and_safetensors_reads_them(tmp_path):
    from safetensors.torch import load_file

    tensors = {
        "b": torch.arange(6, dtype=torch.bfloat16).view(2, 3),
        "scalar": torch.tensor(2.0),
        "c": torch.arange(3, dtype=torch.uint8),
        "empty": torch.zeros(0, 4, dtype=torch.float16),
    }
    written = [tmp_path / name for name in ("one", "two")]
    for path in written:
        write_tensors(path, tensors, {str(i): "x" for i in range(20)})
    assert written[0].read_bytes() == written[1].read_bytes()
    read = load_file(written[0])
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("under", ["file/below", "folder"])
def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path, under):
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(FileError, match=r"^cannot write .*choose another"):
        write_atomic(tmp_path / under, b"")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff", "not a plan: it is not valid JSON"),
        ("[" * 99_999, "not valid JSON"),
        ("[]", 'a JSON object with "format": "plan"'),
        ('{"format": "front"}', 'a JSON object with "format": "plan"'),
        ('{"format": "plan"}', "version must be a whole number from 1, not None"),
        ('{"format": "plan", "version": true}', "not True"),
        ('{"format": "plan", "version": 3}', "version 3; this program reads up to 2: update it"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused_in_words(tmp_path, text, said):
    path = tmp_path / "p.json"
    write_atomic(path, text)
    with pytest.raises(LookupError, match=said):
        read_json(path, "a plan", "plan", 2, LookupError)


def test_an_older_version_is_read():
    assert parse_json('{"format": "plan", "version": 1, "x": 2}', "a plan", "plan", 2)["x"] == 2


@pytest.mark.parametrize("cut", [b'{"n": ', b'{"t": "\xc3', b"7"])
def test_lines_go_on_after_one_that_a_killed_run_left(tmp_path, cut):
    path, head = tmp_path / "log.jsonl", {"run": "a", "widths": (2, 3)}
    assert resume_lines(path, head, ValueError) == []
    append_line(path, {"n": 1})
    with path.open("ab") as file:
        file.write(cut)
    assert resume_lines(path, head, ValueError) == [{"n": 1}]
    append_line(path, {"n": 2})
    whole = [json.loads(line) for line in path.read_text().splitlines()]
    assert whole == read_lines(path) == [json.loads(json.dumps(head)), {"n": 1}, {"n": 2}]
    with pytest.raises(ValueError, match="another measurement; delete it"):
        resume_lines(path, {"run": "b"}, ValueError)


def test_dtypes_go_by_their_plain_names():
    assert dtype_name(torch.bfloat16) == "bfloat16"
