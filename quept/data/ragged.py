"""Samples that differ in length, as conversations about pictures do.

A sample is what a model's forward takes for one conversation: tensors by argument, one row in each. A batch
is those rows below one another, padded on the right to the same number of tokens. Pixels are lined up the
same way, which is how each family wants them: patches of all pictures (Qwen), their tiles (InternVL), a row a
picture (LLaVA) or a row a conversation (Idefics3); where a conversation has fewer pictures than another of
its batch, blank ones follow, as in the processors of the families that have such rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import pad

TOKENS, MASK, LOSS_MASK = "input_ids", "attention_mask", "loss_mask"


@dataclass(frozen=True)
class Ragged:
    """samples: see above, each with MASK, which is 0 on padding. padding: the id of the token that is put
    there. length: tokens that every batch is padded to; 0: to its longest sample."""

    samples: Sequence[Mapping[str, Tensor]]
    padding: int
    length: int = 0

    def __len__(self) -> int:
        return len(self.samples)

    def of_one_length(self) -> Ragged:
        """The same samples, every batch of which has the tokens of the longest."""
        return Ragged(self.samples, self.padding, max(sample[TOKENS].shape[1] for sample in self.samples))

    def batch(self, index: slice | Tensor) -> dict[str, Tensor]:
        """Some samples together."""
        rows = range(len(self))[index] if isinstance(index, slice) else index.tolist()
        chosen = [self.samples[row] for row in rows]
        length = self.length or max(sample[TOKENS].shape[1] for sample in chosen)
        return {
            name: _joined([_padded(sample, name, self.padding, length) for sample in chosen])
            for name in chosen[0]
        }


def _padded(sample: Mapping[str, Tensor], name: str, padding: int, length: int) -> Tensor:
    """One entry of a sample, with `length` tokens if it has a value for each of them."""
    tensor, tokens = sample[name], sample[TOKENS]
    if tensor.shape != tokens.shape:
        return tensor
    return pad(tensor, (0, length - tokens.shape[1]), value=padding if name == TOKENS else 0)


def _joined(tensors: list[Tensor]) -> Tensor:
    """Rows below one another; zeros behind what is smaller than others."""
    sizes = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    joined, row = tensors[0].new_zeros(sum(map(len, tensors)), *sizes), 0
    for tensor in tensors:
        joined[(slice(row, row + len(tensor)), *map(slice, tensor.shape[1:]))] = tensor
        row += len(tensor)
    return joined
