"""Hadamard transforms of the last axis, orthonormal, for any width.

    y = x H / sqrt(n)          H of order n: entries +-1, H H^T = n I
    H = P kron S               P of order p, from Paley's constructions; S of order 2^k, Sylvester's

so that x seen as a matrix X (p, 2^k) becomes P^T X S: a small matrix product and k butterfly steps. A width n
has an order of its own if n = p 2^k for some p up to 256 that Paley's constructions reach (12, 20, 28, 36,
44, 60, 76, 108, 140, 148 and more: 576 = 36 x 16, 1536 = 12 x 128, 4864 = 76 x 64). Where it has none, H is
block-diagonal with blocks of the largest order that divides n: often a power of two, 1 for an unlucky odd
number. P need not be symmetric, so the inverse is another call: `inverse=True`. Signs make a transform
random: y = (x * signs) H / sqrt(n), as in QuaRot (arXiv 2404.00456), which rotates models with it.

Paley (1933), q prime, Q[i, j] = 1 where i - j is a square modulo q, 0 where it is zero, else -1:
q = 3 mod 4 gives order q + 1, q = 1 mod 4 gives order 2 (q + 1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

LARGEST_PALEY = 256  # P is multiplied densely, for every token
RADIX = 128  # of the butterfly: the matrix products are this large


@cache
def hadamard_order(n: int) -> int:
    """Order of the blocks that `hadamard_transform` uses on n values: n itself wherever it is one we know."""
    return _parts(n)[0]


def hadamard_matrix(n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The matrix (n, n) with entries +-1 (0 outside the blocks), not divided by sqrt(n):
    H H^T = hadamard_order(n) I."""
    order, p = _parts(n)
    block = torch.kron(_paley(p), _sylvester(order // p)).to(dtype)
    return torch.block_diag(*[block] * (n // order))


def hadamard_transform(x: Tensor, signs: Tensor | None = None, *, inverse: bool = False) -> Tensor:
    """x (..., n) -> (x * signs) H / sqrt(order), same shape and dtype; `inverse` undoes it.

    signs: (n,) of +-1, or None for none. Differentiable. Computed in float32 where x is narrower; on CUDA the
    butterfly is fast_hadamard_transform's where that is installed. Raises ValueError for an x that is not
    floating point or has no values in a row."""
    if x.ndim == 0 or x.shape[-1] == 0 or not x.is_floating_point():
        raise ValueError(
            f"a Hadamard transform takes rows of floating-point numbers; got {tuple(x.shape)} of {x.dtype}"
        )
    order, p = _parts(x.shape[-1])
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    signs = None if signs is None else signs.to(y)
    if signs is not None and not inverse:
        y = y * signs
    y = _butterfly(y.reshape(*x.shape[:-1], x.shape[-1] // order, p, order // p))
    if p > 1:
        paley = _paley(p).to(y)
        y = (paley if inverse else paley.mT) @ y
    y = y.reshape(x.shape) * order**-0.5
    if signs is not None and inverse:
        y = y * signs
    return y.to(x.dtype)


def random_signs(n: int, seed: int) -> Tensor:
    """n signs, +1 or -1, float64 on the CPU: the same ones for the same seed."""
    return 1.0 - 2.0 * torch.randint(2, (n,), generator=torch.Generator().manual_seed(seed)).double()


def _butterfly(x: Tensor) -> Tensor:
    """x (..., 2^k) times Sylvester's matrix, which is symmetric. On a CPU seven steps at a time as one small
    matrix product: twenty times faster than single ones, whose strides are too short."""
    n = x.shape[-1]
    if x.is_cuda and x.dtype == torch.float32 and n >= 8 and (fast := _fast()):
        return fast(x.contiguous(), 1.0)
    if n <= RADIX:
        return x @ _sylvester(n).to(x)
    y = x.unflatten(-1, (n // RADIX, RADIX)) @ _sylvester(RADIX).to(x)
    return _butterfly(y.mT).mT.reshape(x.shape)


@cache
def _fast() -> Callable[[Tensor, float], Tensor] | None:
    """The CUDA kernel, where it is installed."""
    try:
        from fast_hadamard_transform import hadamard_transform as fast
    except ImportError:
        return None
    return fast


@cache
def _parts(n: int) -> tuple[int, int]:
    """(order, p): the largest order p 2^k that divides n, with the smallest p that has it."""
    two = n & -n
    odd = n // two
    for m in range(odd, 0, -2):
        if odd % m == 0:
            p = m
            while p <= min(LARGEST_PALEY, two * m):
                if _paley(p) is not None:
                    return two * m, p
                p *= 2
    raise AssertionError("1 is an order")


@cache
def _sylvester(n: int) -> Tensor:
    """Sylvester's Hadamard matrix of order n = 2^k (int8)."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.int8)
    return torch.kron(_sylvester(n // 2), torch.tensor([[1, 1], [1, -1]], dtype=torch.int8))


@cache
def _paley(n: int) -> Tensor | None:
    """Paley's Hadamard matrix of order n (int8), None where neither construction gives one."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.int8)
    first, second = n - 1, n // 2 - 1
    if n % 4 or not (first % 4 == 3 and _prime(first) or second % 4 == 1 and _prime(second)):
        return None
    skew = _prime(first)
    q = first if skew else second
    i = torch.arange(q)
    character = torch.full((q,), -1, dtype=torch.int8)
    character[i**2 % q] = 1
    character[0] = 0
    s = torch.zeros(q + 1, q + 1, dtype=torch.int8)
    s[0, 1:], s[1:, 0] = 1, -1 if skew else 1
    s[1:, 1:] = character[(i[:, None] - i) % q]
    eye = torch.eye(q + 1, dtype=torch.int8)
    if skew:
        return s + eye
    plus, minus = (torch.tensor(t, dtype=torch.int8) for t in ([[1, 1], [1, -1]], [[1, -1], [-1, -1]]))
    return torch.kron(s, plus) + torch.kron(eye, minus)


def _prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))
