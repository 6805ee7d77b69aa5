"""Key-value caches: one that grows without copying, and one that holds its keys and values at 2..8 bits.

`make_cache(config, bits)` gives an empty cache that a Hugging Face causal LM takes as `cache`, for
prefill in pieces, decoding, or a whole window at once: at one width, or each layer at its own. At 16 bits
keys and values are kept as they come. Below, every token and head is quantized by itself when it arrives and
is read as quantized from then on, by itself too, so the result does not depend on how the text was cut into
pieces:

    lo = min(0, x.min()) * clip          hi = max(0, x.max()) * clip          over one group of head_dim
    s  = (hi - lo) / (2^b - 1)           z  = round(-lo / s)                  s is a float16 value
    q  = clamp(round(x / s) + z, 0, 2^b - 1)                                  x' = (q - z) * s

This is the asymmetric per-token grid of QuaRot (arXiv 2404.00456). Its clip ratio of 0.95 is kept up to 4
bits, the widths it was made for. Above there is no clipping: cutting 5 % off every range costs more than the
rounding does (SmolLM2-135M, 2,048 tokens of WikiText-2 in windows of 512, mean KL with 0.95 / without: 8 bits
0.0104 / 0.0004, 6 bits 0.016 / 0.006, 5 bits 0.032 / 0.026, 4 bits 0.130 / 0.122, 3 bits 0.57 / 0.61).
Stored are the packed codes, s in two bytes and z in one: `token_nbytes(head_dim, b)` bytes for the keys of a
token and head, and as many for its values.

Buffers double when full. `keys` and `values` of a growing layer are the filled part of its buffers; a
quantized layer has no such tensors and makes them in `update`, for one layer at a time. Caches are for
inference: no gradient flows through one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from quept.kernels.decoder import Kept
from quept.models.unfused import head_size, key_heads
from quept.numerics.packing import pack, packed_bytes, unpack
from quept.plan import FULL

CLIP = {2: 0.95, 3: 0.95, 4: 0.95, 5: 1.0, 6: 1.0, 7: 1.0, 8: 1.0}
LARGEST_GROUP = 128
FIRST_CAPACITY = 64  # tokens
SMALLEST_SCALE, LARGEST_SCALE = 2.0**-24, 65504.0  # of float16


def make_cache(config: PretrainedConfig, bits: int | Sequence[int] = FULL) -> Cache:
    """An empty cache for one conversation with a model of this config; 2..8 bits, or 16: as they come. A
    width for each of its layers, or one for all.

    Raises ValueError for other bits or another number of them, and below 16 for models that remember more
    than keys and values."""
    cache = DynamicCache(config=config)
    widths = list(bits) if isinstance(bits, list | tuple) else [bits] * len(cache.layers)
    if odd := [b for b in widths if type(b) is not int or b not in (*CLIP, FULL)]:
        raise ValueError(f"KV bits must be 2..8, or 16 for none; got {odd[0]!r}")
    if len(widths) != len(cache.layers):
        raise ValueError(
            f"the KV cache of a {config.model_type} model has {len(cache.layers)} layers; got {len(widths)} "
            "widths: give one for all"
        )
    for i, (layer, bits) in enumerate(zip(cache.layers, widths, strict=True)):
        if bits != FULL:
            # A window layer keeps all tokens here; the mask of the model does the windowing.
            if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
                raise ValueError(
                    f"the KV cache of a {config.model_type} model cannot be quantized: use kv 16"
                )
            cache.layers[i] = QuantizedLayer(bits)
        elif type(layer) is DynamicLayer:
            cache.layers[i] = GrowingLayer()
    return cache


def cache_nbytes(cache: Cache) -> int:
    """Bytes of the tokens a cache holds, measured from its tensors; room kept for more is not counted."""
    total = 0
    for layer in cache.layers:
        held = layer.held() if isinstance(layer, QuantizedLayer) else (layer.keys, layer.values)
        total += sum(t.nbytes for t in held if t is not None)
    return total


def cache_bytes(config: PretrainedConfig, bits: int, dtype: torch.dtype) -> int:
    """Bytes that one more token takes in a cache at these bits; dtype: of keys and values at 16."""
    text = config.get_text_config(decoder=True)
    dim = head_size(text)
    each = dim * dtype.itemsize if bits == FULL else token_nbytes(dim, bits)
    return 2 * text.num_hidden_layers * key_heads(text) * each


def token_nbytes(head_dim: int, bits: int) -> int:
    """Bytes of the keys (or the values) of one token and head in a quantized cache."""
    return packed_bytes(head_dim, bits) + 3 * (head_dim // group_size(head_dim))


def group_size(head_dim: int) -> int:
    """Numbers that share a scale: head_dim up to 128, above it its largest divisor up to 128."""
    return next(g for g in range(min(LARGEST_GROUP, head_dim), 0, -1) if head_dim % g == 0)


def quantize_tokens(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (..., head_dim) -> codes (..., head_dim) uint8, scales (..., groups) float16, zeros also uint8."""
    x = x.unflatten(-1, (-1, group_size(x.shape[-1]))).float()
    top = 2**bits - 1
    lo, hi = torch.aminmax(x, dim=-1, keepdim=True)
    lo, hi = lo.clamp(max=0) * CLIP[bits], hi.clamp(min=0) * CLIP[bits]
    # A token of zeros gets the smallest scale and q = z = 0.
    scale = ((hi - lo) / top).clamp_(SMALLEST_SCALE, LARGEST_SCALE).half()
    zero = (-lo / scale.float()).round_().clamp_(0, top)
    codes = x.div(scale.float()).round_().add_(zero).clamp_(0, top).to(torch.uint8)
    return codes.flatten(-2), scale[..., 0], zero[..., 0].to(torch.uint8)


def dequantize_tokens(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """What `quantize_tokens` stored, on its grid: (..., head_dim) float32."""
    x = codes.unflatten(-1, (scales.shape[-1], -1)).float()
    return x.sub_(zeros[..., None]).mul_(scales[..., None].float()).flatten(-2)


class GrowingLayer(DynamicLayer):
    """A DynamicLayer with room to spare, where the original copies everything for every new token."""

    def __init__(self):
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """New keys and values (batch, heads, new, head_dim) -> those of all tokens (.., tokens, head_dim)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        length = held + key_states.shape[-2]
        self._make_room(held, length, key_states, value_states)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, held:length] = new
        self.advance(key_states.shape[-2])
        return self.keys, self.values

    def stretch(self) -> tuple[Kept, Kept]:
        """Makes room for one more token after those that are there; returns the buffers, for others to write
        it."""
        held = self.get_seq_length()
        self._make_room(held, held + 1, self.keys, self.values)
        return tuple(Kept(buffer) for buffer in self._buffers)

    def advance(self, tokens: int) -> None:
        """Counts tokens in that have been written behind the others."""
        length = self.get_seq_length() + tokens
        self.keys, self.values = (buffer.narrow(-2, 0, length) for buffer in self._buffers)

    def reset(self) -> None:
        self._buffers = None
        super().reset()

    def _make_room(self, held: int, length: int, keys: Tensor, values: Tensor) -> None:
        if not self._fits(length):
            self._buffers = _larger(self.keys, keys, held, length), _larger(self.values, values, held, length)

    def _fits(self, length: int) -> bool:
        """Is there room, and are `keys` still the head of the buffer? (Reordering a batch replaces them.)"""
        if self._buffers is None or self._buffers[0].shape[-2] < length:
            return False
        return not self.keys.numel() or self.keys.data_ptr() == self._buffers[0].data_ptr()


class QuantizedLayer(DynamicLayer):
    """A cache layer that stores keys and values at `bits` (2..8): codes, scales and zeros, nothing else."""

    def __init__(self, bits: int):
        super().__init__()
        self.bits = bits
        self._length = 0
        # Codes, scales, zeros of keys and values stacked (2, batch, heads, room, width), which halves the
        # calls of a step; of each by itself where their shapes differ.
        self._stored: list[tuple[Tensor, ...]] = []

    def held(self) -> list[Tensor]:
        """The stored tensors, without the room kept for more tokens."""
        return [buffer[..., : self._length, :].contiguous() for part in self._stored for buffer in part]

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """New keys and values (batch, heads, new, head_dim) -> those of all tokens, as quantized."""
        self.is_initialized = True
        alike = key_states.shape == value_states.shape
        parts = [torch.stack((key_states, value_states))] if alike else [key_states, value_states]
        length = self._length + key_states.shape[-2]
        old = self._stored or [(None, None, None)] * len(parts)
        self._stored = [self._append(*pair, length) for pair in zip(old, parts, strict=True)]
        self._length = length
        read = [
            self._read(stored, part.shape[-1]).to(part.dtype)
            for stored, part in zip(self._stored, parts, strict=True)
        ]
        keys, values = read[0] if alike else read
        return keys, values

    def stretch(self) -> tuple[Kept, Kept]:
        """See GrowingLayer."""
        for i, part in enumerate(self._stored):
            if part[0].shape[-2] == self._length:
                self._stored[i] = tuple(_larger(t, t, self._length, self._length + 1) for t in part)
        each = zip(*self._stored[0], strict=True) if len(self._stored) == 1 else self._stored
        return tuple(Kept(*stored, self.bits, CLIP[self.bits]) for stored in each)

    def advance(self, tokens: int) -> None:
        self._length += tokens

    def get_seq_length(self) -> int:
        return self._length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; like every cache layer, told how many by a negative number."""
        self._length = max(0, self._length - abs(tokens_to_remove))

    def reset(self) -> None:
        self._stored, self._length, self.is_initialized = [], 0, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self._change(lambda t: t.index_select(-4, indices.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._change(lambda t: t.repeat_interleave(repeats, dim=-4))

    def _append(self, stored: tuple[Tensor | None, ...], x: Tensor, length: int) -> tuple[Tensor, ...]:
        codes, scales, zeros = quantize_tokens(x, self.bits)
        new = pack(codes, self.bits), scales, zeros
        if stored[0] is None or stored[0].shape[-2] < length:
            pairs = zip(stored, new, strict=True)
            stored = tuple(_larger(buffer, tensor, self._length, length) for buffer, tensor in pairs)
        for buffer, tensor in zip(stored, new, strict=True):
            buffer[..., self._length : length, :] = tensor
        return stored

    def _read(self, stored: tuple[Tensor, ...], head_dim: int) -> Tensor:
        codes, scales, zeros = (buffer[..., : self._length, :] for buffer in stored)
        return dequantize_tokens(unpack(codes, self.bits, head_dim), scales, zeros)

    def _change(self, change: Callable[[Tensor], Tensor]) -> None:
        self._stored = [tuple(change(buffer) for buffer in part) for part in self._stored]


def _larger(old: Tensor | None, like: Tensor, held: int, needed: int) -> Tensor:
    """A buffer like `like` (..., any, width) with room for `needed` tokens, and `old`'s `held` ones in it."""
    room = max(FIRST_CAPACITY, 1 << (needed - 1).bit_length())
    buffer = like.new_empty((*like.shape[:-2], room, like.shape[-1]))
    if held:
        buffer[..., :held, :] = old[..., :held, :]
    return buffer
