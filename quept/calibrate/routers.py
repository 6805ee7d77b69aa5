"""What a token's bits are worth in each layer, and routers that tell it from the layer's input.

Rounding a layer to b bits changes its outputs for token t by e_tb = (W_b - W) x_t. To second order that costs

    c_tb = 1/2 e_tb' F_t e_tb = 1/2 E (g_t' e_tb)^2           g_t = d(-log p(y)) / d(output), y drawn from p

of the divergence from full precision, summed over all positions that it reaches: with labels drawn from the
model's own predictions the expected outer product of gradients is Fisher's information F, so that one pass
backward over a text gives an unbiased, noisy sample of the cost of every token in every layer at every depth.
The gradient is taken with all layers at 4 bits, where routed models live.

A router predicts log E[c] at 2, 4 and 6 bits from the input alone: what the next slice would save, but for
the tenth that it leaves. Its loss, c / p + log p, is that of a Gamma distribution: least where p = E[c], at
whatever scale. Divided by the weights of the layers that share it, the prediction is KL saved per bit read,
so one threshold for all layers and slices spends an average best (a Lagrangian): the static share, which
layer needs bits, and the share of the tokens come from the same rule.

A router that is no better than the mean on text it did not learn from gives way to that mean: its layers are
at a fixed depth at every average.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import LongTensor, Tensor, nn
from torch.nn.functional import linear

from quept.config import Routing
from quept.engines.mobiquant.router import FURTHER, SMALLEST, Router, depths, features
from quept.models import LoadedModel
from quept.models.clone import clone
from quept.numerics.nested import BITS, DEPTHS, SLICE
from quept.runtime.model import compute_dtype

from .precision import fast_products, seeded

READ = DEPTHS[:FURTHER]  # whose cost is predicted
AROUND = 4  # bits of all layers while gradients are taken
BATCH = 512  # tokens a step
TOGETHER = 4  # windows whose scores are asked for at once
PATIENCE = 4  # epochs without a better one, after which no more follow
KEPT_OUT = 1 / 6  # of the windows, to choose the epoch
Progress = Callable[[str, float | None], None]
Values = Callable[[str, int], Tensor]  # (layer, bits) -> (out, in)


@dataclass(frozen=True)
class Seen:
    """Of layers that share an input: inputs (tokens, in) float16 and costs (tokens, 3) float32, at 2, 4 and 6
    bits, per weight. `windows` of equally many tokens."""

    inputs: Tensor
    costs: Tensor
    windows: int


def leaders_of(loaded: LoadedModel) -> dict[str, str]:
    """`{layer: the first of the layers that read the same input}`."""
    shared = {name: group[0] for group in loaded.layout.same_input for name in group}
    return {name: shared.get(name, name) for name in loaded.layout.layers}


def observed_costs(
    loaded: LoadedModel, values: Values, ids: LongTensor, seed: int, device: torch.device, report: Progress
) -> dict[str, Seen]:
    """`{leader: Seen}` on token ids (windows, context). loaded: the transformed model; values: of its layers
    at 2, 4 and 6 bits."""
    leaders, dtype = leaders_of(loaded), compute_dtype(device)
    model = loaded.model
    layers = {}
    for done, name in enumerate(loaded.layout.layers):
        report("reading the layers at every depth", done / len(leaders))
        source = model.get_submodule(name)
        weight = source.weight.detach().to(device, torch.float32)
        errors = [(values(name, bits).to(device) - weight).to(dtype) for bits in READ]
        around = weight + errors[READ.index(AROUND)].float()
        bias = None if source.bias is None else source.bias.detach().to(device, torch.float32)
        layers[name] = _Costed(around, bias, errors)
    rest = copy.deepcopy(clone(model, {name: nn.Identity() for name in layers})).to(device, torch.float32)
    view = clone(rest, layers)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in leaders.values()}
    for number, window in enumerate(ids):
        report("weighing what rounding costs each token", number / len(ids))
        with seeded(device, seed, "costs", number):
            _backward(view, window[None].to(device), device)
        for leader in found:
            shared = [layers[name] for name, other in leaders.items() if other == leader]
            effect = sum(layer.effects for layer in shared)
            weights = sum(layer.weight.numel() for layer in shared)
            found[leader].append((shared[0].inputs, effect.square() / (2 * weights)))
    return {  # each let go of as it is joined: all together are gigabytes
        name: Seen(*(torch.cat(parts) for parts in zip(*found.pop(name), strict=True)), len(ids))
        for name in tuple(found)
    }


def _backward(view: nn.Module, ids: LongTensor, device: torch.device) -> None:
    """One pass forward and back; the layers keep what they saw."""
    embedded = view.get_input_embeddings()(ids).detach().requires_grad_()
    with fast_products(device):
        logits = view(inputs_embeds=embedded, use_cache=False).logits.float()
    drawn = torch.multinomial(logits.detach()[0].softmax(-1), 1)[:, 0]
    torch.nn.functional.cross_entropy(logits[0], drawn, reduction="sum").backward()


class _Costed(nn.Module):
    """A frozen layer that notes its inputs (tokens, in) and the effects g'e (tokens, 3) of rounding it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, errors: list[Tensor]):
        super().__init__()
        self.weight, self.bias, self.errors = weight, bias, errors
        self.out_features, self.in_features = weight.shape
        self.inputs, self.effects = torch.empty(0), torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        y = linear(x, self.weight, self.bias)
        y.register_hook(lambda grad: self._note(x.detach().flatten(0, -2), grad.flatten(0, -2)))
        return y

    def _note(self, x: Tensor, grad: Tensor) -> None:
        back = [(grad.to(error.dtype) @ error).float() for error in self.errors]
        self.effects = torch.stack([(x.float() * g).sum(-1) for g in back], -1).cpu()
        self.inputs = x.to("cpu", torch.float16)


def learned_router(seen: Seen, settings: Routing, error: Tensor, generator: torch.Generator) -> Router:
    """The router of the recipe's kind. error (out, in): what 2 bits leave of the weights."""
    if settings.router == "mlp":
        return _mlp(seen, settings, generator)
    x, tensors = seen.inputs.float(), {}
    if settings.router == "projection":
        rows = torch.randn(settings.hidden, len(error), generator=generator) / settings.hidden**0.5
        tensors["p"] = (rows @ error).half()
    plain = Router(settings.router, tensors | {"offset": torch.zeros(FURTHER)})
    estimate = plain.scores(x)[:, :1].exp().mean(0)
    offset = seen.costs.mean(0).clamp(min=SMALLEST).log() - estimate.log()
    return Router(settings.router, tensors | {"offset": offset})


def _mlp(seen: Seen, settings: Routing, generator: torch.Generator) -> Router:
    """Adam on the Gamma deviance; of all epochs, the mean alone among them, the best on windows kept out."""
    f, mean = features(seen.inputs.float()), seen.costs.mean(0).clamp(min=SMALLEST)
    target = seen.costs / mean
    kept = len(f) // seen.windows * max(1, round(seen.windows * KEPT_OUT))
    train = len(f) - kept
    shift, spread = f[:train].mean(0), f[:train].std(0).clamp(min=1e-3)
    f = (f - shift) / spread
    w1 = torch.randn(settings.hidden, f.shape[1], generator=generator) / f.shape[1] ** 0.5
    start = (w1, torch.zeros(settings.hidden), torch.zeros(FURTHER, settings.hidden), torch.zeros(FURTHER))
    params = [t.requires_grad_() for t in start]

    def deviance(rows: Tensor | slice) -> Tensor:
        logs = linear(linear(f[rows], params[0], params[1]).relu(), params[2], params[3])
        return (target[rows] * (-logs).exp() + logs).mean()

    optimizer = torch.optim.AdamW(params, lr=settings.rate, weight_decay=0.1)
    best, chosen, waited = float("inf"), None, 0
    for epoch in range(settings.epochs + 1):
        with torch.no_grad():
            found = float(deviance(slice(train, None)))
        waited += 1
        if found < best:
            best, chosen, waited = found, [p.detach().clone() for p in params], 0
        if epoch < settings.epochs and waited < PATIENCE:
            for rows in torch.randperm(train, generator=generator).split(BATCH):
                optimizer.zero_grad(set_to_none=True)
                deviance(rows).backward()
                optimizer.step()
    w1, b1, w2, b2 = chosen
    w1 = w1 / spread
    tensors = {"w1": w1, "b1": b1 - w1 @ shift, "w2": w2, "b2": b2 + mean.log()}
    return Router("mlp", {name: t if name == "b2" else t.half() for name, t in tensors.items()})


def scores_of(
    view: nn.Module, routers: Mapping[str, Router], ids: LongTensor, device: torch.device
) -> Tensor:
    """What routers (by leader) say of token ids (windows, context) in a view: (tokens, routers, 3)."""
    heard: dict[str, list[Tensor]] = {name: [] for name in routers}
    listening = {
        name: _Listening(view.get_submodule(name), router, heard[name]) for name, router in routers.items()
    }
    listener = clone(view, listening)
    with torch.no_grad():
        for windows in ids.split(TOGETHER):
            listener(windows.to(device), use_cache=False, logits_to_keep=1)
    return torch.stack([torch.cat(parts) for parts in heard.values()], 1)


class _Listening(nn.Module):
    """A layer whose router's scores are written down."""

    def __init__(self, layer: nn.Module, router: Router, heard: list[Tensor]):
        super().__init__()
        self.layer, self.router, self.heard = layer, router, heard

    def forward(self, x: Tensor) -> Tensor:
        self.heard.append(self.router.scores(x).flatten(0, -2).cpu())
        return self.layer(x)


def spent(scores: Tensor, threshold: float) -> Tensor:
    """Bits a token gets on average in the layers of each router (routers,): scores (tokens, routers, 3)."""
    return depths(scores, torch.tensor(threshold), BITS).double().mean(0)


def threshold_for(average: float, scores: Tensor, weights: Tensor) -> float:
    """The one threshold at which tokens get this many bits on average; bisected. weights (routers,): of the
    layers of each."""
    low, high = float(scores.min()) - 1, float(scores.max()) + 1
    for _ in range(40):
        middle = (low + high) / 2
        if float((spent(scores, middle) * weights).sum() / weights.sum()) > average:
            low = middle
        else:
            high = middle
    return high


def static_map(
    average: float, scores: Tensor, leaders: Mapping[str, str], weights: Mapping[str, int]
) -> dict[str, int]:
    """`{layer: depth}` with at most this many bits a weight, every token taken for the mean: what the same
    scores (tokens, routers, 3) give without routing. Further slices come in order of what they save a bit."""
    means = scores.double().exp().mean(0)  # of costs, whose logarithms scores are
    shared: dict[str, list[str]] = {}
    for name, leader in leaders.items():
        shared.setdefault(leader, []).append(name)
    worth = [
        (float(x), k, names)
        for row, names in zip(means, shared.values(), strict=True)
        for k, x in enumerate(row)
    ]
    depth, left = dict.fromkeys(leaders, SLICE), (average - SLICE) * sum(weights.values())
    for _, k, names in sorted(worth, key=lambda entry: -entry[0]):
        cost = SLICE * sum(weights[name] for name in names)
        if cost <= left and depth[names[0]] == SLICE * (k + 1):
            left -= cost
            depth |= {name: depth[name] + SLICE for name in names}
    return depth
