"""Products with packed weights of 2..8 bits on a CPU, in C; on CUDA, in Triton.

packed   PackedWeight: a layer's codes in the layout the kernels read, laid out from stored ones or
         rounded at once; products, values, rows
rows     PackedRows: a matrix whose stretches of rows have widths of their own
blocks   packed weights in llama.cpp's blocks, and blocks held against them
nested   weights of nested codes at a depth, corrections and routers, as C reads them
decoder  Decoder: one token through a Llama-like model in one call
library  the compiled library: loaded() or why there is none, instruction sets, threads
triton_packed  the same products on CUDA, in Triton; imported by whoever has it
build    C sources -> library: when the package is installed, else at first use, into the cache
c/       weight.h (layout and formula), products.c and rounding.c (once per instruction set, by
         vectors.h), library.c (what Python calls), blocks.c (llama.cpp's), router.c (scores of tokens),
         decode.c (a token)

Where there is no C compiler `missing()` says so and weights are multiplied dense.
"""

from .library import Library, Missing, loaded, loaded_at, missing
from .packed import FEW, PackedWeight, packed_nbytes
from .rows import PackedRows

__all__ = [
    "FEW",
    "Library",
    "Missing",
    "PackedRows",
    "PackedWeight",
    "loaded",
    "loaded_at",
    "missing",
    "packed_nbytes",
]
