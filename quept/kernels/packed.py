"""PackedWeight: one linear layer's codes in the layout that the kernels read (c/weight.h), and what is done
with it.

    y[r] = sum over groups g of  scale[r,g] * sum over columns j of g of (code[r,j] - zero[r,g]) * x[j]

Two ways to multiply, told apart everywhere: *exact* takes the input as it is, and differs from a dense
product in the order of summation only; *fast* rounds the input to 8 bits, one scale for at most 128 columns
of a group, which changes a product by about 0.7 %. Shapes, types and ranges are checked here; C trusts them.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from quept.numerics.grid import NOT_FINITE, Rounding
from quept.numerics.packing import packed_bytes

from .library import Floats, Library, Weight, loaded

TILE, BLOCK = 16, 32
FEW = 16  # rows of an input up to which codes are multiplied; more are faster unpacked and multiplied dense
SMALL = 1 << 17  # codes below which one thread is faster than waking others


DENSE = {torch.bfloat16: 16, torch.float16: 17}  # in place of a width: see c/weight.h
KINDS = DENSE | {torch.float32: 32}  # of numbers that are rounded


class Grid(Protocol):
    """One weight at one width as quept.numerics.grid stores it (`Quantized`)."""

    bits: int
    group: int
    columns: int
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight (out, in) of 2..8 bits. codes (tiles, bytes of a tile) uint8, scales (tiles, groups, 16)
    float16, zeros the same in uint8, or None where all are 128. Read by any number of threads at once; never
    written to."""

    shape: tuple[int, int]
    bits: int
    group: int
    codes: Tensor
    scales: Tensor | None
    zeros: Tensor | None

    def __deepcopy__(self, memo: dict) -> PackedWeight:
        return self  # nobody writes to it

    @classmethod
    def pack(cls, stored: Grid) -> PackedWeight:
        """Lays what an engine stores of a layer out for the kernels. Raises Missing where there are none,
        ValueError for what is no such layer."""
        library, shape = loaded(), (stored.scales.shape[0], stored.columns)
        group = min(stored.group, stored.columns)
        codes, scales, zeros = _checked(stored, group)
        packed = cls._empty(shape, stored.bits, group, zeros is not None)
        given = (codes, scales, zeros, packed.codes, packed.scales, packed.zeros)
        library.c.quept_pack(library.pool(), packed.structure, *map(_pointer, given))
        return packed

    def rows_of_codes(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns codes, scales and zeros as `pack` was given them: the inverse, to the bit."""
        self._check_cpu()
        rows, groups = self.shape[0], _sizes(*self.shape, self.group)[1]
        codes = torch.zeros(rows, packed_bytes(self.shape[1], self.bits), dtype=torch.uint8)
        scales = torch.empty(rows, groups, dtype=torch.float16)
        none = self.zeros is None
        zeros = None if none else torch.zeros(rows, packed_bytes(groups, self.bits), dtype=torch.uint8)
        library = loaded()
        library.c.quept_stored(library.pool(), self.structure, *map(_pointer, (codes, scales, zeros)))
        return codes, scales, zeros

    @classmethod
    def rounded(
        cls, rounding: Rounding, threads: int | None = None, library: Library | None = None
    ) -> PackedWeight:
        """Rounds a weight on the CPU to its grid and lays it out, at once: what `pack` makes of what
        `quantize` gives, to the last bit. Raises as these do. library: another instruction set than the one
        that is used."""
        if rounding.second is not None:  # of few models, and small ones
            return cls.pack(rounding.quantized()[0])
        library, weight = library or loaded(), rounding.weight.detach()
        if weight.ndim != 2 or 0 in weight.shape or weight.device.type != "cpu":
            raise ValueError(
                f"a weight to round is a non-empty (out, in) matrix on the CPU; got shape "
                f"{tuple(weight.shape)} on {weight.device.type}"
            )
        bits, (rows, columns) = rounding.bits, weight.shape
        if type(bits) is not int or not 2 <= bits <= 8 or rounding.group < 1:
            raise ValueError(f"a weight is rounded to 2..8 bits in groups; got {bits}, {rounding.group}")
        if weight.dtype not in KINDS:
            weight = weight.float()
        packed = cls._empty((rows, columns), bits, min(rounding.group, columns), bits != 8)
        shape = (rows, packed.scales.shape[1], 1)
        low, high = (_factors(end, shape) for end in (rounding.low, rounding.high))
        added = rounding.added if rounding.added is None else rounding.added.float().contiguous()
        if added is not None and (added.shape != weight.shape or added.device != weight.device):
            raise ValueError(f"what is added to a weight has its shape; got {tuple(added.shape)}")
        weight = weight.contiguous()
        floats = Floats(*map(_pointer, (weight, added, low, high)), KINDS[weight.dtype])
        made = map(_pointer, (packed.codes, packed.scales, packed.zeros))
        pool = library.pool(1 if rows * columns <= SMALL else threads)
        if library.c.quept_round(pool, library.products, packed.structure, floats, *made):
            raise ValueError(NOT_FINITE)
        return packed

    @classmethod
    def _empty(cls, shape: tuple[int, int], bits: int, group: int, zeros: bool) -> PackedWeight:
        """One of this shape with anything in it, to be filled at once."""
        tiles, groups, blocks = _sizes(*shape, group)
        return cls(
            shape,
            bits,
            group,
            torch.empty(tiles, blocks * bits * 64, dtype=torch.uint8),
            torch.empty(tiles, groups, TILE, dtype=torch.float16),
            torch.empty(tiles, groups, TILE, dtype=torch.uint8) if zeros else None,
        )

    @classmethod
    def dense(cls, values: Tensor) -> PackedWeight:
        """Values (out, in) that nobody quantized, float16 or bfloat16, contiguous and on the CPU: read where
        they lie. `bits` says which they are (see DENSE)."""
        if values.dtype not in DENSE or values.ndim != 2 or not values.is_contiguous():
            raise ValueError(f"a dense weight is a contiguous matrix of 16 bits; got {values.dtype}")
        if values.device.type != "cpu":
            raise ValueError(f"a dense weight lies on the CPU, not on {values.device.type}")
        return cls(tuple(values.shape), DENSE[values.dtype], values.shape[1], values, None, None)

    def part(self, start: int, stop: int) -> PackedWeight:
        """Its rows start..stop - 1, over the same memory; start is a multiple of TILE."""
        shape = (min(stop, self.shape[0]) - start, self.shape[1])
        if self.scales is None:
            return replace(self, shape=shape, codes=self.codes[start:stop])
        if start % TILE or self.codes.ndim != 2:
            raise ValueError(f"parts begin at a multiple of {TILE}, of codes in one slice; got {start}")
        tiles = slice(start // TILE, -(-stop // TILE))
        zeros = None if self.zeros is None else self.zeros[tiles]
        return replace(self, shape=shape, codes=self.codes[tiles], scales=self.scales[tiles], zeros=zeros)

    @property
    def nbytes(self) -> int:
        """Bytes in memory: those of the stored form, and what fills up groups and the last rows."""
        return sum(t.nbytes for t in (self.codes, self.scales, self.zeros) if t is not None)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Tiles, groups and blocks: see c/weight.h."""
        return _sizes(*self.shape, self.group)

    @cached_property
    def structure(self) -> Weight:
        """What C reads; it holds no reference, so the weight must outlive it."""
        return Weight(
            *map(_pointer, (self.codes, self.scales, self.zeros)), *self.shape, self.bits, self.group
        )

    def matmul(
        self,
        x: Tensor,
        bias: Tensor | None = None,
        fast: bool = False,
        threads: int | None = None,
        library: Library | None = None,
    ) -> Tensor:
        """x (..., in), any float type -> (..., out) float32. Meant for up to FEW rows; more are right, and
        slower than a dense product. library: another instruction set than the one that is used."""
        rows, columns = self.shape
        if x.shape[-1:] != (columns,) or x.device.type != "cpu":
            raise ValueError(f"this weight multiplies (..., {columns}); got {tuple(x.shape)} on {x.device}")
        self._check_cpu()
        library, inputs = library or loaded(), x.detach().float().contiguous()
        y = torch.empty(*x.shape[:-1], rows, dtype=torch.float32)
        threads = 1 if rows * columns <= SMALL else threads
        n = inputs.numel() // columns
        if n and library.c.quept_matmul(
            library.pool(threads), library.products, self.structure, _pointer(inputs), n, fast, _pointer(y)
        ):
            raise MemoryError(f"no memory for {n} inputs of {columns} numbers")
        return y if bias is None else y.add_(bias)

    def unpack(
        self, out: Tensor | None = None, threads: int | None = None, library: Library | None = None
    ) -> Tensor:
        """Writes the values (out, in) into a contiguous float32 or bfloat16 buffer, a new float32 one if none
        is given, and returns it. Those of float32 are exactly `grid.dequantize`'s."""
        self._check_cpu()
        library = library or loaded()
        out = torch.empty(self.shape, dtype=torch.float32) if out is None else out
        fits = out.shape == self.shape and out.dtype in (torch.float32, torch.bfloat16)
        if not (fits and out.is_contiguous() and out.device.type == "cpu"):
            raise ValueError(
                f"unpacking takes a contiguous float32 or bfloat16 buffer {self.shape} on the CPU"
            )
        bf16 = out.dtype == torch.bfloat16
        library.c.quept_unpack(library.pool(threads), library.products, self.structure, _pointer(out), bf16)
        return out

    def rows(self, ids: Tensor) -> Tensor:
        """ids (...) of any integer type -> their rows (..., in) float32: an embedding's look-up. IndexError
        for one that is not there."""
        self._check_cpu()
        ids = ids.detach().to("cpu", torch.int64).contiguous()
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < self.shape[0]:
            raise IndexError(f"rows go from 0 to {self.shape[0] - 1}; got {int(ids.min())}..{int(ids.max())}")
        out = torch.empty(*ids.shape, self.shape[1], dtype=torch.float32)
        loaded().c.quept_rows(self.structure, _pointer(ids), ids.numel(), _pointer(out))
        return out

    def _check_cpu(self) -> None:
        if self.codes.device.type != "cpu":
            raise ValueError(
                f"C multiplies on the CPU; this weight is on {self.codes.device}: see triton_packed"
            )


def packed_nbytes(rows: int, columns: int, bits: int, group: int) -> int:
    """Bytes of a PackedWeight of this shape, without making it."""
    tiles, groups, blocks = _sizes(rows, columns, min(group, columns))
    return tiles * (blocks * bits * 64 + groups * TILE * (2 if bits == 8 else 3))


def _sizes(rows: int, columns: int, group: int) -> tuple[int, int, int]:
    """Tiles, groups and blocks: see c/weight.h."""
    groups = -(-columns // group)
    last = columns - (groups - 1) * group
    return -(-rows // TILE), groups, (groups - 1) * -(-group // BLOCK) + -(-last // BLOCK)


def _checked(stored: Grid, group: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, scales and zeros of a stored layer, of the shapes and types that C reads; ValueError
    otherwise."""
    rows, groups = stored.scales.shape
    if type(stored.bits) is not int or not 2 <= stored.bits <= 8 or group < 1 or rows < 1:
        raise ValueError(f"a packed weight has 2..8 bits and groups of columns; got {stored.bits}, {group}")
    expected = {
        "codes": (stored.codes, torch.uint8, (rows, packed_bytes(stored.columns, stored.bits))),
        "scales": (stored.scales, torch.float16, (rows, -(-stored.columns // group))),
        "zeros": (stored.zeros, torch.uint8, (rows, packed_bytes(groups, stored.bits))),
    }
    for name, (tensor, dtype, shape) in expected.items():
        if tensor is None and name == "zeros":
            continue
        if tensor.dtype != dtype or tuple(tensor.shape) != shape or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} of {stored.bits} bits are {dtype} {shape} on the CPU; got {tensor.dtype} "
                f"{tuple(tensor.shape)} on {tensor.device.type}"
            )
    if not stored.scales.isfinite().all():
        raise ValueError("a scale of this weight is not finite")
    return (
        stored.codes.contiguous(),
        stored.scales.contiguous(),
        None if stored.zeros is None else stored.zeros.contiguous(),
    )


def _factors(end: Tensor | float, shape: tuple[int, int, int]) -> Tensor | None:
    """Clip factors as C reads them, (out, groups) float32; None where nothing is clipped."""
    if not isinstance(end, Tensor) and end == 1.0:
        return None
    return torch.as_tensor(end, dtype=torch.float32).expand(shape).contiguous()


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())
