import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from quept.numerics import dequantize, quantize
from quept.runtime import WeightBank

ROWS, COLUMNS = 32, 64
DENSE = ROWS * COLUMNS * 4
ROOM = 1 << 30


def weight_of(layer: str) -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(hash_of(layer)))


def hash_of(layer: str) -> int:
    return int.from_bytes(layer.encode(), "big")


def ready(dtype: torch.dtype = torch.float32):
    """The dense backend's part: values in the compute dtype."""
    return lambda stored, values, _: (dequantize(stored) if values is None else values).to(dtype)


class Maker:
    """Quantizes, and remembers what it was asked for."""

    def __init__(self, pause: float = 0.0):
        self.calls: list[tuple[str, int]] = []
        self.pause = pause

    def __call__(self, layer, bits):
        self.calls.append((layer, bits))
        time.sleep(self.pause)
        return (None, weight_of(layer)) if bits == 16 else quantize(weight_of(layer), bits, 32)


@pytest.fixture
def make():
    return Maker()


def packed_bytes(bits: int) -> int:
    return quantize(weight_of("a"), bits, 32)[0].nbytes


def test_a_weight_is_made_once_and_handed_out_again(make):
    bank = WeightBank(make, ready(), ROOM)
    assert bank.weight("a", 4) is bank.weight("a", 4)
    assert make.calls == [("a", 4)] and bank.made == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_is_the_packed_form_unpacked(make, dtype):
    bank = WeightBank(make, ready(dtype), ROOM)
    for bits in range(2, 9):
        assert torch.equal(bank.weight("a", bits), dequantize(bank.stored("a", bits)).to(dtype))


def test_nested_widths_share_what_is_stored(make):
    bank = WeightBank(make, lambda stored, values, bits: torch.full((bits,), 1.0), ROOM, lambda bits: 8)
    assert [len(bank.weight("a", bits)) for bits in (8, 4, 2)] == [8, 4, 2]
    assert make.calls == [("a", 8)] and bank.stored("a", 4) is bank.stored("a", 2)


def test_what_is_kept_is_counted(make):
    bank = WeightBank(make, ready(), ROOM)
    held = [bank.weight("a", 4), bank.weight("b", 3), bank.weight("c", 16)]
    assert bank.kept_bytes == bank.resident_bytes == 3 * DENSE + packed_bytes(4) + packed_bytes(3)
    assert (
        bank.kept_bytes
        == sum(t.nbytes for t in held) + bank.stored("a", 4).nbytes + bank.stored("b", 3).nbytes
    )


def test_the_budget_is_respected_at_every_step(make):
    bank = WeightBank(make, ready(), 3 * DENSE)
    for round_ in range(3):
        for layer in "abcdefgh":
            bank.weight(layer, 2 + round_)
            assert bank.kept_bytes <= bank.budget


def test_a_budget_smaller_than_one_weight_still_serves(make):
    bank = WeightBank(make, ready(), 1)
    assert torch.equal(bank.weight("a", 4), quantize(weight_of("a"), 4, 32)[1])
    assert bank.kept_bytes == 0


@pytest.mark.parametrize("budget", [0, -5])
def test_a_budget_that_is_none_is_refused(make, budget):
    with pytest.raises(ValueError, match="positive budget"):
        WeightBank(make, ready(), budget)


def test_the_least_recently_used_dense_goes_first_and_comes_back_from_its_packed_form(make):
    bank = WeightBank(make, ready(), 2 * DENSE + 3 * packed_bytes(4))
    for layer in ("a", "b", "a", "c"):  # b is the one not used lately
        bank.weight(layer, 4)
    made = list(make.calls)
    assert set(bank._weights) == {("a", 4), ("c", 4)}
    assert torch.equal(bank.weight("b", 4), quantize(weight_of("b"), 4, 32)[1])
    assert make.calls == made  # unpacked, not quantized again


def test_the_least_recently_used_packed_goes_first(make):
    bank = WeightBank(make, ready(), 2 * packed_bytes(4))  # too small for any dense
    bank.weight("a", 4)
    bank.weight("b", 4)
    bank.weight("a", 4)
    bank.weight("c", 4)
    assert set(bank._stored) == {("a", 4), ("c", 4)}


def test_what_is_in_use_outlives_its_eviction_and_is_found_again(make):
    bank = WeightBank(make, ready(), DENSE + packed_bytes(4) * 2)
    held = bank.weight("a", 4)
    other = bank.weight("b", 4)
    assert ("a", 4) not in bank._weights
    assert bank.weight("a", 4) is held
    assert bank.resident_bytes == bank.kept_bytes + DENSE  # held by us, no longer by the bank
    del held
    gc.collect()
    assert bank.resident_bytes == bank.kept_bytes
    assert bank.weight("b", 4) is other


def test_a_maker_that_fails_can_be_asked_again():
    tries = []

    def make(layer, bits):
        tries.append(layer)
        if len(tries) == 1:
            raise MemoryError("no room")
        return quantize(weight_of(layer), bits, 32)

    bank = WeightBank(make, ready(), ROOM)
    with pytest.raises(MemoryError):
        bank.weight("a", 4)
    assert bank.kept_bytes == 0
    assert bank.weight("a", 4).shape == (ROWS, COLUMNS)


def test_many_threads_at_once_make_each_weight_once():
    make = Maker(pause=0.01)
    bank = WeightBank(make, ready(), ROOM)
    start = threading.Barrier(8)

    def ask(_):
        start.wait()
        return [bank.weight(layer, bits) for layer in "abc" for bits in (2, 4)]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert sorted(make.calls) == sorted({(layer, bits) for layer in "abc" for bits in (2, 4)})
    assert all(x is y for answer in answers for x, y in zip(answer, answers[0], strict=True))


def test_different_weights_are_made_at_the_same_time():
    both = threading.Barrier(2, timeout=10)

    def make(layer, bits):
        both.wait()  # broken unless two makers are inside at once
        return quantize(weight_of(layer), bits, 32)

    bank = WeightBank(make, ready(), ROOM)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda layer: bank.weight(layer, 4), "ab"))


@pytest.mark.slow
def test_contention_under_a_tight_budget_gives_right_values_and_right_counts(make):
    bank = WeightBank(make, ready(), 3 * DENSE)
    expected = {
        (layer, bits): quantize(weight_of(layer), bits, 32)[1] for layer in "abcdef" for bits in (2, 5, 8)
    }

    def churn(seed):
        order = torch.randperm(len(expected), generator=torch.Generator().manual_seed(seed)).tolist()
        pairs = list(expected)
        for i in order * 15:
            assert torch.equal(bank.weight(*pairs[i]), expected[pairs[i]])
            assert bank.resident_bytes >= 0

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(churn, range(8)))
    gc.collect()
    kept = sum(t.nbytes for t in bank._weights.values()) + sum(p.nbytes for p in bank._stored.values())
    assert bank.kept_bytes == kept == bank.resident_bytes <= bank.budget
