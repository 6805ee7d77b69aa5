import ctypes
import mmap
import sys
import threading

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from quept import mapped as mapped_files
from quept.runtime.memory import release_freed, release_libraries, release_weights, resident_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is nothing to do elsewhere")
SIZE = 32_000_000
PRIVATE_FIXED_ANONYMOUS = 0x32


@pytest.fixture
def mapped(tmp_path):
    values = torch.arange(SIZE // 4, dtype=torch.float32)
    save_file({"values": values}, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        return file.get_tensor("values"), values


def test_mapped_weights_are_let_go_of_and_stay_what_they_are(mapped):
    weight, values = mapped
    assert torch.equal(weight, values)
    read = resident_bytes()
    release_weights([weight, weight[: SIZE // 8]])
    assert read - resident_bytes() > 0.8 * SIZE
    assert torch.equal(weight, values)


def test_small_weights_side_by_side_are_let_go_of_together(mapped):
    weight, values = mapped
    assert torch.equal(weight, values)
    read = resident_bytes()
    release_weights(reversed(weight.split(1000)))  # less than a page each
    assert read - resident_bytes() > 0.6 * SIZE
    assert torch.equal(weight, values)


def test_weights_that_somebody_wrote_to_or_that_lie_in_memory_are_left_alone(mapped):
    weight, values = mapped
    weight[SIZE // 8] = -1
    own = values.clone()
    release_weights([weight, own, own[:1], torch.empty(0)])
    assert weight[SIZE // 8] == -1 and torch.equal(own, values)


def test_freed_memory_and_the_code_of_libraries_are_given_back():
    torch.ones(4).sum()
    before = resident_bytes()
    release_libraries()
    release_freed()
    assert resident_bytes() < before
    assert torch.ones(4).sum() == 4


def test_what_takes_the_place_of_a_file_that_was_closed_stays(tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(bytes(SIZE))
    with open(file, "rb") as opened:
        read = np.frombuffer(mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ), np.uint8)
    advise, place, seen = mapped_files.libc("madvise"), mapped_files.libc("mmap"), threading.Event()
    place.restype = ctypes.c_void_p

    def after_another_took_it(address, size, advice):  # between the look at the pages and what is done
        place(address, size, mmap.PROT_READ | mmap.PROT_WRITE, PRIVATE_FIXED_ANONYMOUS, -1, 0)
        ctypes.memset(address, 7, size.value)
        advise(address, size, advice)
        seen.set()

    monkeypatch.setattr(mapped_files, "libc", lambda name: after_another_took_it)
    with mapped_files.passing([file]):
        assert seen.wait(10)
    assert (read == 7).all()
