import sys
import types

import pytest
import torch

from quept.numerics import hadamard
from quept.numerics.hadamard import hadamard_matrix, hadamard_order, hadamard_transform, random_signs

PALEY = (12, 20, 28, 36, 44, 60, 76, 108, 140, 148)
OWN = (1, 2, 4, 64, *PALEY, 24, 72, 96, 576, 1536)  # widths that are orders themselves
BLOCKS = {18: 2, 172: 4, 300: 60, 15: 1, 86: 2}  # widths that are none, and the blocks they get


def normal(*shape, dtype=torch.float64, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("n", OWN)
def test_the_matrix_is_a_hadamard_matrix(n):
    h = hadamard_matrix(n)
    assert hadamard_order(n) == n and set(h.unique().tolist()) <= {1.0, -1.0}
    assert torch.equal(h @ h.T, n * torch.eye(n, dtype=h.dtype))


@pytest.mark.parametrize(("n", "order"), BLOCKS.items())
def test_a_width_without_an_order_gets_blocks(n, order):
    h = hadamard_matrix(n)
    assert hadamard_order(n) == order
    assert torch.equal(h @ h.T, order * torch.eye(n, dtype=h.dtype))


@pytest.mark.parametrize(
    ("n", "order"), {576: 576, 4864: 4864, 14336: 14336, 18944: 18944, 11008: 256}.items()
)
def test_widths_of_real_models(n, order):
    assert hadamard_order(n) == order


@pytest.mark.parametrize("n", [*OWN, *BLOCKS])
def test_the_transform_is_the_matrix_product(n):
    x, h = normal(3, 2, n), hadamard_matrix(n) / hadamard_order(n) ** 0.5
    torch.testing.assert_close(hadamard_transform(x), x @ h, rtol=0, atol=1e-13)
    torch.testing.assert_close(hadamard_transform(x, inverse=True), x @ h.T, rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", [*OWN, *BLOCKS])
@pytest.mark.parametrize("seed", [None, 3])
def test_the_inverse_undoes_it(n, seed):
    x, signs = normal(5, n), None if seed is None else random_signs(n, seed)
    y = hadamard_transform(x, signs)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(hadamard_transform(y, signs, inverse=True), x, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("dtype", "close"), [(torch.float32, 1e-6), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize("shape", [(576,), (0, 24), (7, 96), (2, 3, 4, 20)])
def test_any_dtype_and_shape(dtype, close, shape):
    x = normal(*shape, dtype=dtype)
    y = hadamard_transform(x)
    assert y.dtype == dtype and y.shape == x.shape
    torch.testing.assert_close(y.double(), hadamard_transform(x.double()), rtol=0, atol=close)


def test_half_precision_does_not_overflow_on_the_way():
    x = torch.full((1, 1024), 1000.0, dtype=torch.float16)
    assert torch.isfinite(hadamard_transform(x)).all() and hadamard_transform(x)[0, 0] == 32000


def test_the_argument_is_left_alone():
    x = normal(4, 36)
    before = x.clone()
    hadamard_transform(x, random_signs(36, 0))
    assert torch.equal(x, before)


@pytest.mark.parametrize("inverse", [False, True])
def test_the_gradient_is_the_transposed_transform(inverse):
    x = normal(2, 24).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: hadamard_transform(x, random_signs(24, 1), inverse=inverse), x)


def test_signs_belong_to_their_seed():
    assert random_signs(12, 0).tolist() == random_signs(12, 0).tolist() != random_signs(12, 1).tolist()
    # the very ones that records written so far stand for
    assert random_signs(8, 0).tolist() == [1, -1, -1, 1, -1, -1, -1, -1]


@pytest.mark.parametrize("x", [torch.tensor(1.0), torch.zeros(2, 0), torch.arange(4)])
def test_what_cannot_be_transformed_is_refused(x):
    with pytest.raises(ValueError, match="rows of floating-point numbers"):
        hadamard_transform(x)


def test_the_cuda_kernel_is_used_where_it_is_installed(monkeypatch):
    def found():
        hadamard._fast.cache_clear()
        return hadamard._fast()

    monkeypatch.setitem(sys.modules, "fast_hadamard_transform", None)
    assert found() is None
    fake = types.ModuleType("fast_hadamard_transform")
    fake.hadamard_transform = lambda x, scale: x
    monkeypatch.setitem(sys.modules, "fast_hadamard_transform", fake)
    assert found() is fake.hadamard_transform
    hadamard._fast.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("n", [576, 1536, 4096, 172])
def test_cuda_and_cpu_agree(n):
    x = normal(3, n, dtype=torch.float32)
    torch.testing.assert_close(hadamard_transform(x.cuda()).cpu(), hadamard_transform(x), rtol=0, atol=1e-5)
