"""AWQ's search for channel scales (arXiv 2306.00978), on every edge of `scaling`, several widths at once.

For an edge with inputs X (T, in) to its readers W (out, in), and m_c = mean |X_c| over all tokens:

    s(a) = m^a / sqrt(max(m^a) min(m^a))        a = 0, ..., 1        s(0) = 1
    loss(a) = sum over readers and bits of || (X / s) Q_b(W s)^T - X W^T ||^2

Q_b is round-to-nearest (quept.numerics.grid); the first smallest loss wins, so that no edge is ever worse off
than without scales. Edges are independent: each leaves the function as it is, hence the inputs of all others,
and dividing a row of a reader (up, v) divides its rounding error alike.

One forward pass in at least float32, one block in memory that wide at a time; the search of a block runs
between it and the next.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import LongTensor, Tensor, nn

from quept.models import LoadedModel
from quept.models.clone import clone
from quept.numerics.grid import group_size, quantize

from .record import Record, TransformError
from .scaling import Edge, edges_of

FLOOR = 1e-4  # smallest magnitude of a channel beside the largest: dead channels would take all the range


def search_scales(
    loaded: LoadedModel,
    ids: LongTensor,
    bits: tuple[int, ...] = (3, 4),
    group: int | str | None = None,
    grid: int = 20,
    rows: int = 128,
    progress: Callable[[str, float | None], None] | None = None,
) -> Record:
    """Scales for `loaded`, found on token ids (n, t): a record to apply to the *base*, whose earlier steps
    are those that `loaded` had already.

    bits: widths whose errors are summed. group: columns per scale, "auto", "row", or None for the model's
    own. grid: candidates for a. rows: tokens that errors are measured on, evenly spread over ids; magnitudes
    use all. Raises TransformError if the model has scales already, and ValueError for settings that are none.

    SmolLM2-135M with the defaults and 4,096 tokens: about 40 seconds of one server core, 1.3 GB at most."""
    if ids.ndim != 2 or ids.numel() == 0 or ids.is_floating_point():
        raise ValueError(f"token ids are whole numbers (n, t); got {tuple(ids.shape)} of {ids.dtype}")
    if not bits or not all(2 <= b <= 8 for b in bits) or grid < 2 or rows < 1:
        raise ValueError(f"needs bits of 2 to 8, grid >= 2 and rows >= 1; got {bits}, {grid}, {rows}")
    record = loaded.record if loaded.record is not None else Record()
    if record.tensors:
        raise TransformError(f"{loaded.title} has scales already: load the base again and search there")
    group = loaded.group if group is None else group
    sizes = {n: group_size(loaded.model.get_submodule(n).in_features, group) for n in loaded.layout.layers}
    report = progress or (lambda stage, fraction: None)
    scales: dict[str, Tensor] = {}

    def visit(block: nn.Module, edges: tuple[Edge, ...], inputs: dict[str, Tensor]) -> None:
        for edge in edges:
            weights = [model.get_submodule(name).weight for name in edge.readers]
            x = inputs.pop(edge.source)
            scales[edge.source] = best_scale(x, weights, edge, bits, sizes[edge.readers[0]], grid, rows)
        report("searching scales", len(scales) / total)

    model, total = _listening(loaded, visit)
    with torch.no_grad():
        model.base_model(input_ids=ids.to(model.device), use_cache=False)
    how = {"kind": "scaling", "bits": list(bits), "group": group, "grid": grid, "tokens": ids.numel()}
    return Record((*record.steps, how), scales)


def best_scale(
    x: Tensor, weights: list[Tensor], edge: Edge, bits: tuple[int, ...], group: int, grid: int, rows: int
) -> Tensor:
    """The scale (channels,) float32 of one edge with the smallest loss; x (T, in), each weight (out, in)."""
    magnitude = edge.gather(x.abs().mean(dim=0))
    x = x[torch.linspace(0, len(x) - 1, min(rows, len(x)), device=x.device).long()]
    found = [candidate(magnitude, a) for a in torch.linspace(0, 1, grid).tolist()]
    losses = [loss(x, weights, edge.spread(s), bits, group) for s in found]
    return found[losses.index(min(losses))]


def candidate(magnitude: Tensor, a: float) -> Tensor:
    """s(a) of the magnitudes (channels,), float32; ones where nothing ever arrives."""
    if not magnitude.any():
        return torch.ones_like(magnitude)
    s = (magnitude.double() / magnitude.max()).clamp(min=FLOOR) ** a
    return (s / (s.max() * s.min()).sqrt()).float()


def loss(x: Tensor, weights: list[Tensor], scale: Tensor, bits: tuple[int, ...], group: int) -> float:
    """Summed squared error of the outputs when every column is scaled before rounding; scale (in,)."""
    error = 0.0
    for weight in weights:
        for b in bits:
            rounded = quantize(weight * scale, b, group)[1] / scale
            error += float((x @ (rounded - weight).T).square().sum())
    return error


def _listening(loaded: LoadedModel, visit: Callable) -> tuple[nn.Module, int]:
    """A clone of the model without its head that calls `visit(block, edges, {source: inputs (T, in)})` after
    each block, and the number of edges."""
    layout = loaded.layout
    embed = {layout.embed: _Wide(loaded.model.get_submodule(layout.embed))}
    model = clone(loaded.model, embed | {layout.final_norm: nn.Identity(), layout.head: nn.Identity()})
    blocks = edges_of(loaded.model, layout, loaded.online)
    for name, edges in blocks.items():
        _listen(model, model.get_submodule(name), edges, visit)
    return model, sum(map(len, blocks.values()))


def _listen(model: nn.Module, block: nn.Module, edges: tuple[Edge, ...], visit: Callable) -> None:
    """Hooks on one block of the clone: parameters wide while it runs and is searched, inputs kept."""
    inputs: dict[str, Tensor] = {}
    narrow = [(module, module._parameters) for module in block.modules()]

    def widen(_block, _args) -> None:
        for module, parameters in narrow:
            module.__dict__["_parameters"] = {
                key: p if p is None else nn.Parameter(_wide(p), requires_grad=False)
                for key, p in parameters.items()
            }

    def finish(block, _args, _output) -> None:
        visit(block, edges, inputs)
        for module, parameters in narrow:
            module.__dict__["_parameters"] = parameters

    block.register_forward_pre_hook(widen)
    for edge in edges:

        def keep(_module, args, source=edge.source) -> None:
            inputs[source] = args[0].flatten(0, -2)

        model.get_submodule(edge.readers[0]).register_forward_pre_hook(keep)
    block.register_forward_hook(finish)


class _Wide(nn.Module):
    """Looks up in 16 bits, gives at least float32, and all that follows is as wide."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.embedding = embedding

    def forward(self, ids: Tensor) -> Tensor:
        return _wide(self.embedding(ids))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
