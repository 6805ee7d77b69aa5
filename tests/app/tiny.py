"""A tiny random Llama with a byte tokenizer and a chat template, opened as an elastic model, and a service
over it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import gradio as gr
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from app.components.chart import Chart
from app.components.menu import Menu
from app.gate import Admission, Gate
from app.pages.context import Held
from app.side import setting_choices
from quept.allocate import SensitivityTable
from quept.artifact import Artifact
from quept.models import LoadedModel, fingerprint_of, layout_of
from quept.plan import QUANTIZED_BITS, Bits, PrecisionPlan
from quept.runtime import ElasticModel

CONTROL = ["<|start|>", "<|end|>"]
TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", additional_special_tokens=CONTROL
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_elastic(ends: bool = True) -> ElasticModel:
    """ends: whether an answer may end before its longest length."""
    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).half().eval().requires_grad_(False)
    if not ends:
        model.lm_head.weight[tokenizer.eos_token_id] = 0  # never the likeliest
    loaded = LoadedModel(model, tokenizer, layout_of(model), "tiny", "Tiny", fingerprint_of(model), "random")
    return ElasticModel(loaded, Artifact.rtn(loaded), dtype=torch.float32)


def bench(model: str) -> Held:
    """What a page has of the workbench; inside of Blocks."""
    menu = Menu(model, choices=[[model, model]], name="Model")
    states = {name: gr.State(None) for name in ("query", "chosen", "measured")}
    drawn = {"model": menu, "chart": Chart(), "opened": gr.State(model)}
    return Held(task=gr.State(""), plan=gr.State({}), tried=gr.State([]), **drawn, **states)


class FakeService:
    """What the chat page needs of the service, over any models."""

    def __init__(self, models: dict[str, ElasticModel], slots: int = 4):
        self.models, self.gate, self.admission = models, Gate(), Admission(slots)
        plans = [PrecisionPlan.full(), *map(PrecisionPlan.uniform, (8, 4, 2))]
        self.named = {plan.name: plan for plan in plans}
        self.llama = SimpleNamespace(missing="llama.cpp is not installed")

    def choices(self, model: str) -> list[tuple[str, str]]:
        return [
            ("Your plan", "equaliser"),
            *((name.capitalize(), name) for name in self.named),
            *setting_choices(self.models[model]),
        ]

    def plan(self, model: str, choice: str, plan_json=None) -> PrecisionPlan:
        if choice != "equaliser":
            return self.named[choice]
        if not plan_json:
            return PrecisionPlan.full()
        layers = self.models[model].layers
        return PrecisionPlan.of(
            {name: Bits(w) for name, w in zip(layers, plan_json["w"], strict=True)}, name="mixed"
        )


def tiny_table(elastic: ElasticModel, seed: int = 0, **changes) -> SensitivityTable:
    """A made-up sensitivity table of an elastic model: fewer bits cost more, each layer at its own rate."""
    draw = torch.Generator().manual_seed(seed)

    def row(widths: tuple[int, ...]) -> dict[int, float]:
        scale = float(torch.rand((), generator=draw)) + 0.05
        return {bits: scale * 4.0 ** (2 - bits) for bits in widths}

    layers = {name: row(QUANTIZED_BITS) for name in elastic.layers}
    whole = {"ppl": 1.0, "same_top": 0.5, "tokens": 256}
    sums = {bits: sum(layer[bits] for layer in layers.values()) for bits in QUANTIZED_BITS}
    parts = {
        "data": {"text": "foxes", "tokens": 256, "context": 64, "dtype": "float32"},
        "reference": {"ppl": 20.0, "tokens": 256, "context": 64},
        "layers": layers,
        "uniform": {bits: whole | {"kl": s, "ppl": 20 * math.exp(s)} for bits, s in sums.items()},
        "embeddings": row(QUANTIZED_BITS),
    } | changes
    return SensitivityTable("tiny", elastic.fingerprint, 64, "layer", **parts)
