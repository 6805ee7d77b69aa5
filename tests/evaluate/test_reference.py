import os
import random
import threading
from pathlib import Path

import pytest
import torch

from quept.evaluate import NonFiniteLogits, Reference, Windows
from quept.evaluate.reference import make_room
from tests.processes import together

POSITIONS, VOCABULARY = 23, 211
WINDOW_BYTES = POSITIONS * (2 * VOCABULARY + 12)


def same(a, b):
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("logits", "lse", "nll", "top"))


def files(reference):
    return sorted(reference.folder.glob("*.safetensors"))


def test_a_stored_window_is_the_models_distribution(model, reference, windows):
    reference.window(1)
    stored = reference.window(1)
    with torch.no_grad():
        log_p = model(input_ids=windows.ids[1:2]).logits[0, :-1].double().log_softmax(-1)
    read = stored.log_probs(slice(None), torch.device("cpu"))
    assert torch.allclose(read.exp().sum(-1), torch.ones(POSITIONS), atol=1e-6)
    likely = log_p > -10
    assert (read - log_p)[likely].abs().max() < 10 * 2.0**-11 * 1.5
    assert torch.equal(stored.top.long(), log_p.argmax(-1))
    assert torch.allclose(
        stored.nll.double(), -log_p.gather(-1, windows.targets[1][:, None])[:, 0], atol=1e-5
    )


def test_each_window_is_computed_once_when_first_wanted(forward, reference, windows, tmp_path):
    assert (forward.calls, reference.stored()) == (0, 0)
    first = reference.window(2)
    assert (forward.calls, reference.stored()) == (1, 1)
    again = Reference.open("fingerprint", windows, forward, tmp_path)
    assert same(first, again.window(2)) and forward.calls == 1
    again.window(0)
    assert forward.calls == 2


def test_the_bytes_on_disk_are_the_stated_ones(reference):
    reference.window(0)
    (path,) = files(reference)
    assert WINDOW_BYTES < path.stat().st_size < WINDOW_BYTES + 1024
    assert not list(reference.folder.glob(".*"))


def test_models_and_data_have_their_own_folders(forward, reference, windows, tmp_path):
    other_model = Reference.open("another/one:2", windows, forward, tmp_path)
    other_data = Reference.open("fingerprint", Windows(windows.ids[:2]), forward, tmp_path)
    assert len({r.folder for r in (reference, other_model, other_data)}) == 3
    assert other_model.folder.parent == tmp_path


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 5000, -1])
def test_a_truncated_file_is_computed_again(forward, reference, kept, caplog):
    whole = reference.window(0)
    (path,) = files(reference)
    good = path.read_bytes()
    whole = whole.__class__(*(t.clone() for t in (whole.logits, whole.lse, whole.nll, whole.top)))
    path.write_bytes(good[:kept])
    assert same(Reference.open(*_arguments(reference)).window(0), whole)
    assert forward.calls == 2 and "damaged" in caplog.text
    assert path.read_bytes() == good


def test_a_file_damaged_anywhere_is_computed_again(forward, reference):
    reference.window(0)
    (path,) = files(reference)
    good, chance = path.read_bytes(), random.Random(0)
    places = [*range(0, 12), *chance.sample(range(12, len(good)), 60)]
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << chance.randrange(8)
        path.write_bytes(bad)
        Reference.open(*_arguments(reference)).window(0)
        assert path.read_bytes() == good, f"byte {place}"


def test_a_file_of_another_reference_is_not_believed(forward, reference, windows, tmp_path):
    foreign = Reference.open("foreign", windows, forward, tmp_path)
    foreign.window(0)
    reference.folder.mkdir()
    os.replace(files(foreign)[0], reference.folder / "window-00000.safetensors")
    reference.window(0)
    assert forward.calls == 2


def test_two_threads_compute_a_window_once(forward, windows, tmp_path):
    answers = []

    def read():
        reference = Reference.open("fingerprint", windows, forward, tmp_path)
        answers.append([reference.window(i) for i in range(3)])

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert forward.calls == 3 and len(answers) == 4
    assert all(same(a, b) for answer in answers for a, b in zip(answer, answers[0], strict=True))


def read_twenty(folder: Path) -> tuple[int, float]:
    """How many windows were computed here, and a sum over all of them."""
    calls = []

    def forward(ids):
        calls.append(1)
        return torch.randn(1, 24, 211, generator=torch.Generator().manual_seed(int(ids.sum())))

    windows = Windows(torch.arange(20 * 24).view(20, 24) % 211)
    reference = Reference.open("shared", windows, forward, folder)
    total = sum(reference.window(i).nll.double().sum().item() for i in range(20))
    return len(calls), total


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path):
    (calls, total), (others, same) = together(read_twenty, [(tmp_path,)] * 2)
    assert calls + others == 20 and total == same


def test_the_references_not_used_for_longest_give_way(forward, windows, tmp_path):
    limit = 7 * WINDOW_BYTES + 5_000  # room for two references of three windows, not for three
    references = [Reference.open(name, windows, forward, tmp_path, limit) for name in "abc"]
    for age, reference in zip((300, 200), references, strict=False):
        for i in range(3):
            reference.window(i)
        os.utime(reference.folder, (1e9 - age, 1e9 - age))
    references[0].window(0)  # used again: now the younger one
    references[2].window(0)
    references[2].window(1)
    assert [r.stored() for r in references] == [3, 0, 2]
    make_room(tmp_path, 0, keep=references[2].folder)
    assert [r.stored() for r in references] == [0, 0, 2]


def test_what_passes_the_limit_alone_is_computed_but_not_stored(forward, windows, tmp_path, caplog):
    reference = Reference.open("fingerprint", windows, forward, tmp_path, limit=2 * (WINDOW_BYTES + 4096))
    for i in (0, 1, 2, 2):
        assert reference.window(i).nll.isfinite().all()
    assert (reference.stored(), forward.calls) == (2, 4) and "limit" in caplog.text


def test_a_folder_that_cannot_be_written_makes_it_slower_not_wrong(forward, windows, tmp_path):
    (tmp_path / "file").write_text("in the way")
    reference = Reference.open("fingerprint", windows, forward, tmp_path / "file")
    assert same(reference.window(0), reference.window(0)) and forward.calls == 2


def test_what_a_killed_writer_left_is_cleared(reference):
    reference.window(0)
    (reference.folder / ".half.tmp").write_bytes(b"half")
    reference.window(1)
    assert not list(reference.folder.glob(".*.tmp"))


def test_a_reference_in_half_precision_is_refused(windows, tmp_path, model):
    def half(ids):
        return model(input_ids=ids).logits.bfloat16()

    with pytest.raises(ValueError, match="float32"):
        Reference.open("fingerprint", windows, half, tmp_path).window(0)


def test_a_broken_reference_model_is_named(windows, tmp_path):
    reference = Reference.open("x", windows, lambda ids: torch.full((1, 24, 211), float("nan")), tmp_path)
    with pytest.raises(NonFiniteLogits, match="full-precision"):
        reference.window(0)
    assert reference.stored() == 0


def test_a_masked_vocabulary_entry_is_probability_zero_not_an_error(windows, tmp_path):
    def forward(ids):
        logits = torch.zeros(1, 24, 300)
        logits[..., 211:] = torch.finfo(torch.float32).min
        return logits

    window = Reference.open("x", windows, forward, tmp_path).window(0)
    p = window.log_probs(slice(None), torch.device("cpu")).exp()
    assert p[:, 211:].max() == 0 and torch.allclose(p[:, :211], torch.full((23, 211), 1 / 211))


def _arguments(reference):
    return reference.identity, reference.windows, reference.forward, reference.folder.parent
