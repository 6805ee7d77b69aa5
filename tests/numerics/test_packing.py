import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quept.numerics import pack, packed_bytes, unpack

WIDTHS = range(2, 9)
shapes = st.lists(st.integers(1, 4), max_size=2).flatmap(
    lambda front: st.integers(0, 70).map(lambda n: (*front, n))
)


def oracle(codes: list[int], bits: int) -> list[int]:
    """The packing rule as a string of bits: each eight codes are one little-endian word of `bits` bytes."""
    padded = codes + [0] * (-len(codes) % 8)
    packed = []
    for start in range(0, len(padded), 8):
        word = "".join(f"{code:0{bits}b}" for code in reversed(padded[start : start + 8]))
        packed += [int(word[at : at + 8], 2) for at in range(8 * bits - 8, -1, -8)]
    return packed


def random_codes(shape: tuple[int, ...], bits: int, seed: int) -> torch.Tensor:
    return torch.randint(2**bits, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@given(shapes, st.sampled_from(WIDTHS), st.integers(0, 2**31))
def test_unpack_undoes_pack_for_every_width_and_ragged_shape(shape, bits, seed):
    codes = random_codes(shape, bits, seed)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (*shape[:-1], packed_bytes(shape[-1], bits))
    assert torch.equal(unpack(packed, bits, shape[-1]), codes)


@given(st.sampled_from(WIDTHS), st.data())
def test_packing_equals_the_string_of_bits(bits, data):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=40))
    assert pack(torch.tensor(codes, dtype=torch.uint8), bits).tolist() == oracle(codes, bits)


@pytest.mark.parametrize("bits", WIDTHS)
def test_every_code_survives_at_every_place(bits):
    codes = torch.stack([torch.arange(2**bits, dtype=torch.uint8).roll(shift) for shift in range(8)])
    assert torch.equal(unpack(pack(codes, bits), bits, 2**bits), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_padding_of_a_row_is_zero_codes(bits):
    packed = pack(torch.full((3, 5), 2**bits - 1, dtype=torch.uint8), bits)
    assert unpack(packed, bits, 8)[:, 5:].count_nonzero() == 0


@pytest.mark.parametrize("bits", WIDTHS)
def test_views_that_are_not_contiguous_pack_alike(bits):
    codes = random_codes((16, 6), bits, 0)
    assert torch.equal(pack(codes.T, bits), pack(codes.T.contiguous(), bits))
    assert torch.equal(unpack(pack(codes, bits).T.contiguous().T, bits, 6), codes)


@pytest.mark.parametrize("bits", WIDTHS)
def test_packed_and_unpacked_memory_is_never_shared(bits):
    codes = random_codes((2, 16), bits, 0)
    packed = pack(codes, bits)
    unpacked = unpack(packed, bits, 16)
    assert len({t.untyped_storage().data_ptr() for t in (codes, packed, unpacked)}) == 3


@pytest.mark.parametrize("bits", WIDTHS)
def test_eight_codes_take_as_many_bytes_as_a_code_has_bits(bits):
    assert [packed_bytes(n, bits) for n in (0, 1, 8, 9, 64)] == [0, bits, bits, 2 * bits, 8 * bits]


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16])
def test_other_widths_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits must be 2..8; got {bits}"):
        pack(torch.zeros(8, dtype=torch.uint8), bits)
    with pytest.raises(ValueError, match=f"bits must be 2..8; got {bits}"):
        unpack(torch.zeros(8, dtype=torch.uint8), bits, 8)


def test_bytes_that_are_too_few_or_too_many_are_refused():
    packed = pack(torch.zeros(2, 16, dtype=torch.uint8), 3)
    for wrong in (packed[:, :-1], torch.cat([packed, packed], 1)):
        with pytest.raises(ValueError, match="16 codes of 3 bits take 6 bytes"):
            unpack(wrong, 3, 16)
