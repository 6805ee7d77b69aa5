"""Key-value caches: one that grows without copying, and one that holds its keys and values at 2..8 bits.

`make_cache(config, bits)` gives an empty cache that any Hugging Face causal LM takes as `past_key_values`: prefill in pieces, decode, or a
whole window at once. At 16 bits keys and values are kept as they come. Below, every token and head is quantised by itself when it
arrives and is read back as quantised from then on, by itself too, so the result does not depend on how the text was cut into pieces:

    lo = min(0, x.min()) * clip    hi = max(0, x.max()) * clip    over a group: head_dim, cut evenly where it is above 128
    s  = (hi - lo) / (2^b - 1)     z  = round(-lo / s)            s is a float16 value
    q  = clamp(round(x / s) + z, 0, 2^b - 1)                      x' = (q - z) * s

This is the asymmetric per-token grid of QuaRot (arXiv 2404.00456). Its clip ratio of 0.95 is kept up to 4 bits, the widths it was made
for; above, there is no clipping, because cutting off 5 % of every range costs more than all the rounding does (SmolLM2-135M, 2,048 tokens
of WikiText-2, mean KL with and without clipping: 8 bits 0.0104 and 0.0004, 5 bits 0.032 and 0.026, 4 bits 0.130 and 0.122, 3 bits
0.569 and 0.614). Stored are the packed codes, s in two bytes and z in one: `token_nbytes(head_dim, b)` for the keys of a token and head,
and as many for its values.

Buffers double when full. What `keys` and `values` of a growing layer show are the filled part of its buffers; a quantised layer has no
such tensors and rebuilds them in `update`, one layer at a time. Caches are for inference: no gradient flows through one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from quept.numerics.packing import pack, packed_bytes, unpack
from quept.plan import FULL

LARGEST_GROUP = 128
CLIP = {2: 0.95, 3: 0.95, 4: 0.95, 5: 1.0, 6: 1.0, 7: 1.0, 8: 1.0}
FIRST_CAPACITY = 64
TINY = torch.finfo(torch.float16).tiny


def make_cache(config: PretrainedConfig, bits: int = FULL) -> Cache:
    """An empty cache for one conversation with a model of this config; bits 2..8, or 16 for keys and values as they are.

    Raises ValueError for other bits, and below 16 for models that keep something other than keys and values (state-space layers)."""
    if isinstance(bits, bool) or bits not in (*range(2, 9), FULL):
        raise ValueError(f"KV bits must be 2..8, or 16 for none; got {bits!r}")
    cache = DynamicCache(config=config)
    for i, layer in enumerate(cache.layers):
        if bits == FULL and type(layer) is DynamicLayer:
            cache.layers[i] = GrowingLayer()
        elif bits < FULL:
            if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
                raise ValueError(f"the KV cache of a {config.model_type} model cannot be quantised: use kv 16")
            cache.layers[i] = QuantisedLayer(bits)
    return cache


def cache_nbytes(cache: Cache) -> int:
    """Bytes of the tokens a cache holds now, measured from its tensors (room kept for more tokens is not counted)."""
    total = 0
    for layer in cache.layers:
        if isinstance(layer, QuantisedLayer):
            total += layer.nbytes
        else:
            total += sum(t.nbytes for t in (layer.keys, layer.values) if t is not None)
    return total


def token_nbytes(head_dim: int, bits: int) -> int:
    """Bytes of the keys (or the values) of one token and head in a quantised cache."""
    return packed_bytes(head_dim, bits) + 3 * (head_dim // group_size(head_dim))


def group_size(head_dim: int) -> int:
    """head_dim itself up to 128, else its largest divisor up to 128."""
    return next(g for g in range(min(LARGEST_GROUP, head_dim), 0, -1) if head_dim % g == 0)


def quantise_tokens(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (..., head_dim) -> codes (..., head_dim) uint8, scales (..., groups) float16, zeros (..., groups) uint8."""
    x = x.unflatten(-1, (-1, group_size(x.shape[-1]))).float()
    top = 2**bits - 1
    lo, hi = torch.aminmax(x, dim=-1, keepdim=True)
    lo, hi = lo.clamp(max=0) * CLIP[bits], hi.clamp(min=0) * CLIP[bits]
    scale = ((hi - lo) / top).clamp(TINY, torch.finfo(torch.float16).max).half().float()  # zeros get s = TINY, q = z = 0
    zero = (-lo / scale).round_().clamp_(0, top)
    codes = x.div_(scale).round_().add_(zero).clamp_(0, top).to(torch.uint8)
    return codes.flatten(-2), scale[..., 0].half(), zero[..., 0].to(torch.uint8)


def dequantise_tokens(codes: Tensor, scales: Tensor, zeros: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `quantise_tokens`, up to rounding: (..., head_dim) in `dtype`."""
    exact = torch.promote_types(dtype, torch.float32) if dtype is torch.bfloat16 else dtype  # bfloat16 loses codes above 8 bits
    x = codes.unflatten(-1, (scales.shape[-1], -1)).to(exact)
    return x.sub_(zeros[..., None]).mul_(scales[..., None].to(exact)).flatten(-2).to(dtype)


class GrowingLayer(DynamicLayer):
    """A DynamicLayer that appends into a buffer with room to spare, where the original copies all keys and values for every token."""

    def __init__(self):
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """New keys and values (batch, heads, new, head_dim) -> all keys and values so far (batch, heads, total, head_dim)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        length = held + key_states.shape[-2]
        if not self._fits(length):
            self._buffers = (
                _larger(self.keys if held else None, key_states, held, length),
                _larger(self.values if held else None, value_states, held, length),
            )
        keys, values = self._buffers
        keys[:, :, held:length] = key_states
        values[:, :, held:length] = value_states
        self.keys, self.values = keys[:, :, :length], values[:, :, :length]
        return self.keys, self.values

    def reset(self) -> None:
        self._buffers = None
        super().reset()

    def _fits(self, length: int) -> bool:
        """Is there room, and are `keys` still the head of the buffer (reordering a batch replaces them)?"""
        if self._buffers is None or self._buffers[0].shape[-2] < length or self.keys is None:
            return False
        return not self.keys.numel() or self.keys.data_ptr() == self._buffers[0].data_ptr()


class QuantisedLayer(DynamicLayer):
    """A cache layer whose keys and values are stored at `bits` (2..8): codes, scales and zeros of each, and nothing else."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits
        self._length = 0
        self._stored: tuple[list[Tensor], list[Tensor]] | None = None  # for keys, for values: codes, scales, zeros

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens held."""
        return sum(t[:, :, : self._length].numel() * t.element_size() for part in self._stored or () for t in part)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """New keys and values (batch, heads, new, head_dim) -> all of them as quantised (batch, heads, total, head_dim)."""
        self.is_initialized = True
        length = self._length + key_states.shape[-2]
        new = self._packed(key_states), self._packed(value_states)
        if self._stored is None or self._stored[0][0].shape[-2] < length:
            old = self._stored or ([None] * 3, [None] * 3)
            self._stored = tuple(
                [_larger(was, now, self._length, length) for was, now in zip(*pair, strict=True)]
                for pair in zip(old, new, strict=True)
            )
        for part, fresh in zip(self._stored, new, strict=True):
            for buffer, tensor in zip(part, fresh, strict=True):
                buffer[:, :, self._length : length] = tensor
        self._length = length
        return self._unpacked(0, key_states), self._unpacked(1, value_states)

    def get_seq_length(self) -> int:
        return self._length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; like every cache layer, told how many by a negative number."""
        self._length = max(0, self._length - abs(tokens_to_remove))

    def reset(self) -> None:
        self._stored, self._length, self.is_initialized = None, 0, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._replace(lambda t: t[indices.to(t.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._replace(lambda t: t.repeat_interleave(repeats, dim=0))

    def _packed(self, x: Tensor) -> list[Tensor]:
        codes, scales, zeros = quantise_tokens(x, self.bits)
        return [pack(codes, self.bits), scales, zeros]

    def _unpacked(self, which: int, like: Tensor) -> Tensor:
        codes, scales, zeros = (t[:, :, : self._length] for t in self._stored[which])
        return dequantise_tokens(unpack(codes, self.bits, like.shape[-1]), scales, zeros, like.dtype)

    def _replace(self, change) -> None:
        if self._stored is not None:
            self._stored = tuple([change(t) for t in part] for part in self._stored)


def _larger(old: Tensor | None, like: Tensor, held: int, needed: int) -> Tensor:
    """A buffer like `like` (batch, heads, any, width) for at least `needed` tokens, with the `held` tokens of `old` copied in."""
    capacity = max(FIRST_CAPACITY, 1 << (needed - 1).bit_length())
    buffer = like.new_empty((*like.shape[:2], capacity, like.shape[-1]))
    if held:
        buffer[:, :, :held] = old[:, :, :held]
    return buffer
