"""What a run of a model will cost in bytes and seconds, computed from its shapes: no weights are read.

    shapes = shapes_of("org/name")               # from config.json alone; the model is built without storage
    machine = Machine.here(shapes)               # or Machine(flops=..., bandwidth=...), for another one
    for cost in costs(shapes, machine, recipe): ...

Products are counted and divided by how many this machine does a second in the shapes of this very model, each
tried for a moment on random numbers; what is read and written beside them (logits, weights that are unpacked)
is divided by the speed at which memory is copied; every call of a module takes CALL seconds of Python. A
backward pass counts as two forward passes. What lies on a disk is read at DISK bytes a second.

    opening       weights in 16 bits, read once and hashed once, by a program that has imported what it needs
    reference     a forward pass of full precision in float32 over windows (or pictures), which is kept
    measuring     a plan rounded for the first time, and a forward pass over the same, one by one
    sensitivity   in float32, for each layer and width a forward pass over 4 windows (256 pictures) from its
                  block on, and whole plans on 8 windows (1,000 pictures)
    calibrating   as the recipe says: passes of each stage, weights rounded anew in each, and every width
                  compared with rounding at the end; the model in float32, what is learned with its gradient
                  and two moments, the activations of one step
    decoding      every stored byte of a plan is read once a token, by C or by one module after the other
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from quept import zoo
from quept.artifact import Artifact, resolve_source
from quept.config import Recipe
from quept.kernels import missing
from quept.models import FAMILIES, LoadedModel, LoadError, vision
from quept.models.layout import layout_of
from quept.models.recognize import recognize
from quept.models.unfused import head_size, key_heads, unfuse
from quept.plan import PrecisionPlan
from quept.runtime.decode import FAMILIES as READ_BY_C
from quept.runtime.memory import resident_bytes
from quept.runtime.model import compute_dtype
from quept.runtime.sizes import Sizes

CALL = 12e-6  # seconds of Python that a module takes
OPENING = 1.5  # times as long as building the modules: putting a template together too
TOKEN = 2e-3  # seconds that one takes beside its products where C reads it in one call: choosing and writing
WORD = 8e-6  # seconds that a word of the vocabulary takes to be read
MAKING = 400  # bytes moved for each weight while it is rounded for the first time
ROUNDING = 110  # bytes moved for each weight that is rounded in training, forward or back
KEPT = 20  # bytes kept of each until the way back
UNPACKING = 12  # bytes moved for each weight that is unpacked again for a window
ATTENTION = 4  # times as long as products of so many operations: heads are small, and softmax lies between
BATCH = 64  # pictures that are read at once
DISK = 1.5e9
HASH = 1.2e9  # SHA-256 of one thread
TRIED = 4096  # rows and columns of a product that is tried; larger ones are counted from it
CONTEXT = 512
KINDS = tuple(range(2, 9))
WHOLE = 16  # plans that are measured beside a table of sensitivities


@dataclass(frozen=True)
class Shapes:
    """A model without its weights. products: `{(rows, columns): how many such layers a token passes}`, head
    included. vocabulary: rows of the head. heads: of queries and of keys, and the channels of one. tokens: of
    one sample, a window of text or a picture. modules: how many are called in a pass. words: its tokenizer's.
    built: seconds that building the modules takes. in_one_call: whether C reads a token of an answer."""

    title: str
    kind: str
    sizes: Sizes
    products: Mapping[tuple[int, int], float]
    blocks: int
    hidden: int
    vocabulary: int
    heads: tuple[int, int, int]
    tokens: int
    modules: int
    words: int
    built: float
    in_one_call: bool = False

    @property
    def pictures(self) -> bool:
        """Whether samples are pictures."""
        return self.kind == "vision"

    @property
    def multiplied(self) -> float:
        """Multiplications of weights for one token."""
        return sum(rows * columns * count for (rows, columns), count in self.products.items())

    @property
    def weights(self) -> int:
        """Bytes in 16 bits."""
        return 2 * self.sizes.parameters

    @property
    def largest(self) -> int:
        return max(self.sizes.weights.values())


@dataclass(frozen=True)
class Machine:
    """flops: floating-point operations a second in products (two for each multiplication); bandwidth: bytes
    of memory read or written a second; name: for people; single: flops in float32, 0 for as many."""

    flops: float
    bandwidth: float
    name: str = "stated"
    single: float = 0

    @property
    def in_float32(self) -> Machine:
        """The machine where it computes in float32."""
        return replace(self, flops=self.single or self.flops)

    @classmethod
    def here(cls, shapes: Shapes) -> Machine:
        """This machine, on products in the shapes of this model: a second or two."""
        dtype = torch.float32 if shapes.pictures else compute_dtype()
        flops = _flops(shapes, dtype)
        single = flops if dtype == torch.float32 else _flops(shapes, torch.float32)
        block, copy = torch.ones(2, 100_000_000, dtype=torch.uint8)
        bandwidth = 2 * block.nbytes / _fastest(lambda: copy.copy_(block))
        return cls(flops, bandwidth, f"here, {torch.get_num_threads()} threads, {dtype}", single)


def _flops(shapes: Shapes, dtype: torch.dtype) -> float:
    spent = done = 0.0
    for (rows, columns), count in shapes.products.items():
        r, c = min(rows, TRIED), min(columns, TRIED)
        x, w = torch.randn(min(shapes.tokens, CONTEXT), c, dtype=dtype), torch.randn(r, c, dtype=dtype)
        seconds = _fastest(lambda x=x, w=w: linear(x, w))
        spent += seconds * count * (rows * columns) / (r * c)
        done += 2 * len(x) * rows * columns * count
    return done / spent


@dataclass(frozen=True)
class Cost:
    """memory: bytes at the most, the program itself included; 0 where it adds nothing worth telling."""

    what: str
    seconds: float
    memory: int


def shapes_of(source: str, group: int | str = "auto") -> Shapes:
    """Returns the shapes of a built-in model, folder or hub id; LoadError where there is none that is
    supported."""
    base = resolve_source(source).base
    where = str(zoo.model_folder(base)) if base in zoo.MODELS else base
    try:
        config = vision.config_of(where)
        _without_weights(where, config)  # imports what it needs
        began = time.perf_counter()
        model, tokens, settings = _without_weights(where, config)
        built = time.perf_counter() - began
        family = None if settings is None else recognize(settings)
        if family:
            unfuse(model, FAMILIES[family])
        layout = layout_of(model, family or "")
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot plan a run of {source!r}: {error}") from error
    model.to(torch.float16)
    loaded = LoadedModel(
        model, None, layout, source, Path(source).name, "", "", group, config={}, identity="-"
    )
    sizes = Sizes.of(loaded, Artifact.rtn(loaded, group))
    products = _products(model, layout.layers, layout.head, settings)
    text = None if settings is None else settings.get_text_config()
    heads = (0, 0, 0)
    if text is not None:
        heads = text.num_attention_heads, key_heads(text), head_size(text)
    head = model.get_submodule(layout.head)
    return Shapes(
        loaded.title,
        layout.kind,
        sizes,
        products,
        len(layout.blocks),
        model.get_submodule(next(iter(layout.decoder_blocks[0].layers.values()))).in_features,
        getattr(head, "out_features", 0),
        heads,
        tokens,
        sum(1 for _ in model.modules()),
        getattr(text, "vocab_size", 0),
        built,
        getattr(settings, "model_type", "") in READ_BY_C and not missing(),
    )


def _without_weights(where: str, config: Mapping) -> tuple[nn.Module, int, object | None]:
    """The model on torch's meta device, tokens of a sample, and its config if it is one of transformers."""
    with torch.device("meta"):
        if vision.is_from_timm(config):
            from timm import create_model

            arguments = config.get("model_args", {})
            model = create_model(config["architecture"], num_classes=config["num_classes"], **arguments)
            patches = getattr(model.patch_embed, "num_patches", 1) + getattr(model, "num_prefix_tokens", 0)
            return model, patches, None
        settings = AutoConfig.from_pretrained(where, trust_remote_code=False)
        kind = FAMILIES[recognize(settings)].kind
        auto = AutoModelForImageTextToText if kind == "vision-language" else AutoModelForCausalLM
        return auto.from_config(settings), CONTEXT, settings


def _products(
    model: nn.Module, layers: tuple[str, ...], head: str, settings: object | None
) -> dict[tuple[int, int], float]:
    """Every layer once a token; of a mixture's experts the share that reads one."""
    found: Counter[tuple[int, int]] = Counter()
    text = None if settings is None else settings.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((getattr(text, name) for name in names if getattr(text, name, None)), 1)
    share = (getattr(text, "num_experts_per_tok", None) or 1) / experts
    for name in (*layers, head):
        module = model.get_submodule(name)
        if hasattr(module, "weight"):
            found[tuple(module.weight.shape)] += share if ".experts." in name else 1
    return dict(found)


def costs(
    shapes: Shapes, machine: Machine, recipe: Recipe | None = None, samples: int | None = None
) -> Iterator[Cost]:
    """Yields the costs of the module docstring, in its order; samples: windows or pictures that a plan is
    measured on, 8 or 1,000 unless they are given."""
    base, pictures = resident_bytes(), shapes.pictures
    samples = samples or (1000 if pictures else 8)
    opening = OPENING * shapes.built + WORD * shapes.words + shapes.weights * (1 / DISK + 1 / HASH)
    yield Cost("open", opening, base + round(1.05 * shapes.weights))
    logits = 4 * shapes.vocabulary * (shapes.tokens if not pictures else BATCH)
    plan = shapes.sizes.deploy(PrecisionPlan.uniform(4))
    dense = 4 * shapes.largest + 3 * logits
    making = MAKING * sum(shapes.sizes.weights.values()) / machine.bandwidth
    measured = f"{samples:,} pictures" if pictures else f"{samples * shapes.tokens:,} tokens"
    single = forward(shapes, machine.in_float32, samples)
    yield Cost(f"full precision on {measured}, once", single, base + shapes.weights + dense)
    yield Cost(f"measure W4 on {measured}", making + forward(shapes, machine, samples), base + plan + dense)
    table = forward(shapes, machine.in_float32, 256 if pictures else 4)
    whole = WHOLE * forward(shapes, machine.in_float32, 1000 if pictures else 8)
    passes = len(KINDS) * len(shapes.sizes.layers) * table / 2 + whole
    yield Cost("sensitivity table", passes, base + shapes.weights + dense)
    if recipe is not None:
        yield Cost(f"calibrate by {recipe.name}", *_calibration(shapes, machine, recipe, base))
    beside = TOKEN if shapes.in_one_call else CALL * shapes.modules
    yield Cost("one token at W4", plan / machine.bandwidth + beside, base + plan)


def forward(shapes: Shapes, machine: Machine, samples: int) -> float:
    """Seconds of a forward pass over so many samples one after the other."""
    heads, _, channels = shapes.heads
    others = 2 if shapes.pictures else 1  # a token of a text sees half of them
    attention = ATTENTION * 2 * others * (heads * channels or shapes.hidden) * shapes.tokens * shapes.blocks
    operations = 2 * shapes.multiplied + attention
    beside = 4 * (16 * shapes.hidden * shapes.blocks + 8 * shapes.vocabulary) * shapes.tokens
    unpacked = UNPACKING * sum(shapes.sizes.weights.values())
    together = BATCH if shapes.pictures else 1
    calls = CALL * shapes.modules / together
    each = shapes.tokens * operations / machine.flops + calls
    return samples * (each + (beside + unpacked / together) / machine.bandwidth)


def _calibration(shapes: Shapes, machine: Machine, recipe: Recipe, base: int) -> tuple[float, int]:
    """Seconds and bytes of a run by a recipe."""
    weights = sum(shapes.sizes.weights.values())
    one, rounding = forward(shapes, machine, 1), ROUNDING * weights / machine.bandwidth
    groups, seconds, context, kept, share = len(recipe.adapters.groups), 0.0, shapes.tokens, 0, 1.0
    if stage := recipe.block_wise:
        count = stage.sequences or getattr(recipe.data, "count", 64)
        context = stage.context or shapes.tokens
        share = context / shapes.tokens
        seconds += groups * one * share * count * (3 * stage.epochs + 3)
        seconds += groups * rounding * -(-count // stage.batch) * (2 * stage.epochs + 3)
        kept = KEPT * weights // shapes.blocks
    if stage := recipe.end_to_end:
        share = (stage.context or shapes.tokens) / shapes.tokens
        widths = len(stage.draws) + (1 / stage.mixed_every if stage.mixed_every else 0)
        again, routed = int(stage.checkpointed), recipe.routing.steps if recipe.routing else 0
        passes = widths * stage.steps + 2 * routed
        seconds += one * share * stage.batch * (stage.steps + routed + (3 + again) * passes)
        seconds += rounding * (2 + again) * passes
        context = (stage.context or shapes.tokens) * stage.batch
        kept = KEPT * weights // (shapes.blocks if again else 1)
    compared = 2 * MAKING * weights / machine.bandwidth + 3 * one * share * recipe.held_out
    learned = sum(
        16 * sum(recipe.adapters.steps) * 2 * int(size**0.5) for size in shapes.sizes.weights.values()
    )
    activations = 4 * context * (24 * shapes.hidden * shapes.blocks + 4 * shapes.vocabulary)
    memory = base + 3 * shapes.weights + learned + activations + kept
    return seconds + len(KINDS) * compared, memory


def _fastest(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def to_json(shapes: Shapes, machine: Machine, found: list[Cost]) -> str:
    """One line for scripts."""
    rows = {cost.what: {"seconds": cost.seconds, "memory": cost.memory} for cost in found}
    about = {"model": shapes.title, "parameters": shapes.sizes.parameters, "machine": machine.name}
    return json.dumps(about | {"flops": machine.flops, "bandwidth": machine.bandwidth, "costs": rows})
