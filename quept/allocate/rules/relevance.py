"""Relevance of every layer for what a model answers, by layer-wise relevance propagation.

    R_l = sum over positions and features of |y_l * dz/dy_l|,    z: the logit of the likeliest answer

y_l is the layer's output at full precision. By LRP's zero rule (Bach et al. 2015), under which a layer's
relevance is what it gives times the gradient (Ancona et al. 2018), in place of the rules of LRP-QViT (Ranjan
and Savakis 2024, arXiv 2401.11243), which places the bits of vision transformers by such scores. z is summed
over the pictures, or the positions of a text, and the scores of all layers sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from quept.data.windows import Windows
from quept.evaluate.tasks import ImageTask
from quept.models.clone import clone, shallow_copy
from quept.plan import PrecisionPlan
from quept.runtime.model import ElasticModel


def relevance(elastic: ElasticModel, data: Windows | ImageTask) -> dict[str, float]:
    """Returns R of each layer on windows of a text or on pictures."""
    view = elastic.view(PrecisionPlan.full())
    heard = {name: shallow_copy(view.get_submodule(name)) for name in elastic.layers}
    found = dict.fromkeys(heard, 0.0)
    for name, layer in heard.items():
        layer.register_forward_hook(_listener(found, name))
    for logits in _answers(clone(view, heard), elastic, data):
        logits.float().amax(-1).sum().backward()
    whole = sum(found.values())
    return {name: value / whole for name, value in found.items()}


def _listener(found: dict[str, float], name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
    def heard(layer: nn.Module, given: tuple[Tensor, ...], y: Tensor) -> None:
        def back(grad: Tensor) -> None:
            found[name] += (y.detach() * grad).abs().sum(dtype=torch.float64).item()

        y.register_hook(back)

    return heard


def _answers(model: nn.Module, elastic: ElasticModel, data: Windows | ImageTask) -> Iterator[Tensor]:
    """Logits (..., answers) with their gradient: a window at a time, or a batch of pictures."""
    if isinstance(data, Windows):
        words = model.get_submodule(elastic.layout.embed)
        for ids in data.ids.to(elastic.device):
            yield model(inputs_embeds=words(ids[None]).detach().requires_grad_(), use_cache=False).logits
    else:
        for number in range(data.images.batches):
            yield model(data.images.batch(number).pixels.to(elastic.device, elastic.dtype).requires_grad_())
