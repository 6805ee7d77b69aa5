"""Exported plans in the engines that run them: what each says of the view's logits, codes, sizes, tokens and
speed.

    python benchmarks/export.py [--model smollm2-135m] [--mlx PYTHON] [--compressed-tensors PYTHON]
                                [--classifier fashion-vit]

Plans: 8, 4, 3 and 2 bits, the model's best plans of 4 and 6 bits, a random mixture of 2 to 8.
gguf: llama.cpp, in this process (xllamacpp). KL of what it says to what the view says, in nats a position,
mean over positions of one text; kl_a8 is that of the view with activations rounded to 8 bits to the view
without, which is what llama.cpp does, in its own blocks. Codes are those of the file as the package gguf
dequantizes them. mlx and compressed_tensors need the interpreter of an environment that has mlx-lm, or
compressed-tensors, and are left out without it: logits of one text in float32, the largest difference as a
share of the largest logit, and the likeliest tokens that follow. onnx: a classifier in onnxruntime, in this
process, left out without the packages onnx and onnxruntime: top-1 on 1,000 pictures, in points.
to_running: from the plan on the page (4 bits, embeddings too) to llama.cpp ready to answer, against reading
the model and its tokenizer from disk with transformers in a process of its own that has imported it, files in
the page cache; anew_again_s is the same a second time in that process.
"""

from __future__ import annotations

import argparse
import itertools
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import torch
from report import report
from safetensors.torch import load_file, save_file
from torch import Tensor

from quept import ElasticModel, PrecisionPlan, zoo
from quept.cli.shared import plan_of
from quept.evaluate import Sample, stored_images
from quept.export import exporter
from quept.export.gguf import llama_cpp
from quept.export.gguf.agreement import POSITIONS, agreement
from quept.export.gguf.exporter import row_order, tensor_names
from quept.numerics.grid import dequantize
from quept.plan import FULL, QUANTIZED_BITS, PlanError

TOOLS = Path(__file__).parent / "tools"
FOLDERS = {"mlx": "logits_mlx.py", "compressed-tensors": "logits_transformers.py"}
TOKENS = 64
ANEW = """
import sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
torch.set_num_threads(int(sys.argv[2]))
for _ in range(2):
    start = time.perf_counter()
    AutoTokenizer.from_pretrained(sys.argv[1])
    AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
    print(time.perf_counter() - start)
"""
TEXTS = (
    "Why is the sky blue?",
    "Grüße aus Köln — naïve café, ½ €, “quotes”…",
    "漢字とかな、全角！ 你好，世界。 한국어 문장입니다.",
    "🙂👩‍👩‍👧 🇩🇪🏳️‍🌈 ✅ emoji",
    "def f(x: int) -> str:\n\treturn f'{x:>8}' if x != 0 else \"\"  # done\n\n\n",
    "SELECT * FROM t WHERE a<=10.5e-3 AND b LIKE '%x_1%';",
    "   leading, \ttabs  and   runs of spaces \n\n and lines \r\n",
    "Привет, мир! مرحبا بالعالم שלום עולם नमस्ते दुनिया",
    "1234567890 3.14159 0xFF 1,000,000 ২০২৪ ٣٤",
    "I'll we've don't THEY'RE she’d o'clock",
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", default="boolq-passages")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument(
        "--positions", type=int, default=POSITIONS, help="at which llama.cpp is asked, for each plan"
    )
    parser.add_argument("--mlx", metavar="PYTHON")
    parser.add_argument("--classifier", default="fashion-vit")
    parser.add_argument("--compressed-tensors", metavar="PYTHON")
    options = parser.parse_args()
    if lack := llama_cpp.missing():
        raise SystemExit(lack)

    elastic = ElasticModel.open(options.model, device="cpu", dtype=torch.float32)
    ids = Sample.read(options.text, options.context, options.context).windows(elastic).ids
    plans = {plan.name: plan for plan in plans_of(elastic)}
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as scratch:
        figures |= of_gguf(elastic, plans, ids[0], options.positions, Path(scratch))
        for name, script in FOLDERS.items():
            if python := getattr(options, name.replace("-", "_")):
                found, equal = of_folder(
                    name, [python, str(TOOLS / script)], elastic, plans, ids, Path(scratch)
                )
                figures[name.replace("-", "_")] = found
                figures["bytes_equal"] &= equal
            else:
                print(f"{name} left out: give --{name} the interpreter of an environment that has it")
        if all(map(find_spec, ("onnx", "onnxruntime"))):
            found, equal = of_onnx(options.classifier, Path(scratch))
            figures["onnx"] = found
            figures["bytes_equal"] &= equal
        else:
            print("onnx left out: pip install onnx onnxruntime")
    report(
        "Exported plans in the engines that run them",
        figures,
        model=options.model,
        text=options.text,
        context=options.context,
        positions=options.positions,
        dtype="float32",
        plans=list(plans),
    )


def plans_of(elastic: ElasticModel) -> Iterator[PrecisionPlan]:
    yield from (PrecisionPlan.uniform(bits) for bits in (8, 4, 3, 2))
    for name in ("best 4 bits", "best 6 bits"):
        try:
            yield plan_of(name, elastic)
        except PlanError:
            print(f"no plan {name!r} comes with this model: left out")
    draw = random.Random(0)
    mixed = {layer: draw.choice(QUANTIZED_BITS) for layer in elastic.layers}
    yield PrecisionPlan.of(mixed, 4, name="random mixture", embeddings=8)


def of_gguf(
    elastic: ElasticModel, plans: Mapping[str, PrecisionPlan], ids: Tensor, positions: int, scratch: Path
) -> dict[str, object]:
    target, path = exporter("gguf"), scratch / "plan.gguf"
    found, equal, codes = {}, True, True
    for name, plan in plans.items():
        plan = target.nearest(elastic, plan)
        written = target.write(elastic, plan, path)
        equal &= path.stat().st_size == written.nbytes == target.sizes(elastic).deploy(plan)
        codes &= codes_equal(elastic, plan, path)
        with llama_cpp.LlamaCpp(path, len(ids) + 8) as llama:
            found[name] = one = agreement(elastic, plan, llama, ids, positions)
        print(
            f"gguf: {name:<16} {written.nbytes / 1e6:7.1f} MB   KL in llama.cpp {one.kl:.2e}, of 8-bit "
            f"activations {one.kl_a8:.2e}, same top {one.same_top:.1%}"
        )
    worst = max(found.values(), key=lambda one: one.kl - one.kl_a8)
    largest = max(found.values(), key=lambda one: one.kl)
    speeds, cut, ready = run_in_llama_cpp(elastic, path)
    return {
        "gguf": {
            "kl_max": largest.kl,
            "kl_a8": largest.kl_a8,
            "kl_above_a8": worst.kl - worst.kl_a8,
            "codes_equal": codes,
            "tokens_equal": sum(cut),
            "tokens": len(cut),
        },
        "bytes_equal": equal,
        "to_running_ratio": ready["export_s"] / ready["anew_s"],
        "to_running": ready,
        "llama_cpp_tokens_per_s": speeds,
    }


def run_in_llama_cpp(
    elastic: ElasticModel, path: Path
) -> tuple[dict[str, float], list[bool], dict[str, float]]:
    """Tokens a second of 8 and 4 bits, whether each prompt is cut as we cut it, and how long an export takes
    until llama.cpp is ready, against loading the model anew."""
    target, speeds, took = exporter("gguf"), {}, []
    for plan in (PrecisionPlan.uniform(bits, embeddings=bits) for bits in (8, 4)):
        plan = target.nearest(elastic, plan)
        elastic.view(plan)
        start = time.perf_counter()
        target.write(elastic, plan, path)
        with llama_cpp.LlamaCpp(path) as llama:
            took.append(time.perf_counter() - start)
            speeds[plan.name] = round(llama.speed(answer=TOKENS).write, 1)
            cut = [llama.tokens(text) == ours(elastic, text) for text in prompts(elastic)]
    first, again = anew(elastic)
    ready = {"export_s": took[-1], "anew_s": first, "anew_again_s": again}
    return speeds, cut, {name: round(seconds, 3) for name, seconds in ready.items()}


def anew(elastic: ElasticModel) -> tuple[float, float]:
    """Seconds to read the model and its tokenizer from disk with transformers: in a process of its own, and
    again in the same one."""
    source = elastic.origin.base
    folder = zoo.model_folder(source) if source in zoo.MODELS else source
    asked = [sys.executable, "-c", ANEW, str(folder), str(torch.get_num_threads())]
    first, again = map(
        float, subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()
    )
    return first, again


def codes_equal(elastic: ElasticModel, plan: PrecisionPlan, path: Path) -> bool:
    """Whether the file, as the package gguf dequantizes it, has the view's codes, and its values within the
    rounding of the offset to float16."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    widths = {layer: bits.weights for layer, bits in plan.resolve(elastic.layers).items()}
    widths |= dict.fromkeys(elastic.embeddings, plan.embeddings)
    for name, parameter in tensor_names(elastic).items():
        layer = parameter.removesuffix(".weight")
        if widths.get(layer, FULL) == FULL:
            continue
        packed = elastic.packed(layer, widths[layer])
        wanted = dequantize(packed)[row_order(elastic, parameter)]
        scale = packed.scales.float()[row_order(elastic, parameter)].repeat_interleave(packed.group, 1)
        scale = scale[:, : packed.columns]
        read = gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)
        off = (torch.from_numpy(np.array(read)) - wanted) / scale
        if off.round().any() or (off.abs() > 2**packed.bits * 2**-11).any():
            return False
    return True


def prompts(elastic: ElasticModel) -> Iterator[str]:
    """200 texts, half of them as the chat template writes them."""
    for one, other in itertools.product(TEXTS, TEXTS):
        yield one + other
        talk = [{"role": "user", "content": one}, {"role": "assistant", "content": other}]
        yield elastic.tokenizer.apply_chat_template(
            [*talk, {"role": "user", "content": one}], tokenize=False, add_generation_prompt=True
        )


def ours(elastic: ElasticModel, text: str) -> list[int]:
    return elastic.tokenizer(text, add_special_tokens=False)["input_ids"]


def of_folder(
    name: str,
    command: list[str],
    elastic: ElasticModel,
    plans: Mapping[str, PrecisionPlan],
    ids: Tensor,
    scratch: Path,
) -> tuple[dict[str, object], bool]:
    """What the library of a folder says of each plan, and whether its bytes are those that were computed."""
    target, folder, out = exporter(name), scratch / name, scratch / "read.safetensors"
    save_file({"ids": ids}, scratch / "ids.safetensors")
    differences, same, equal = [], True, True
    for plan in plans.values():
        plan = target.nearest(elastic, plan)
        written = target.write(elastic, plan, folder)
        size = sum(file.stat().st_size for file in folder.iterdir())
        equal &= size == written.nbytes == target.sizes(elastic).deploy(plan)
        asked = [str(folder), "--ids", scratch / "ids.safetensors", "--greedy", TOKENS, "--out", out]
        subprocess.run([*command, *map(str, asked)], check=True)
        read, view = load_file(out), elastic.view(plan)
        with torch.no_grad():
            wanted = view(ids).logits
            same &= torch.equal(read["greedy"].long(), torch.stack([greedy(view, row) for row in ids]))
        differences.append(float((read["logits"] - wanted).abs().max() / wanted.abs().max()))
        print(f"{name}: {plan.name:<24} {size / 1e6:7.1f} MB, largest difference {differences[-1]:.1e}")
    return {"max_rel": max(differences), "same_greedy": same}, equal


def of_onnx(model: str, scratch: Path) -> tuple[dict[str, float], bool]:
    """The largest difference of top-1 from the view's, in points, and that of logits, one picture at a time
    included, as a share of the largest logit; and whether the bytes are those that were computed."""
    from onnxruntime import InferenceSession

    elastic = ElasticModel.open(model, device="cpu", dtype=torch.float32)
    images, target, path = (
        stored_images(elastic.vision.images, elastic.vision, 1000),
        exporter("onnx"),
        scratch / "x",
    )
    batches, points, relative, equal = [images.read(i) for i in range(images.batches)], 0.0, 0.0, True
    for plan in plans_of(elastic):
        plan = target.nearest(elastic, plan)
        written = target.write(elastic, plan, path)
        equal &= path.stat().st_size == written.nbytes == target.sizes(elastic).deploy(plan)
        session, view, right = InferenceSession(path), elastic.view(plan), [0, 0]
        for pixels, labels in [(batch.pixels, batch.labels) for batch in batches] + [
            (batches[0].pixels[:1], None)
        ]:
            read = torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])
            with torch.no_grad():
                wanted = view(pixels)
            relative = max(relative, float((read - wanted).abs().max() / wanted.abs().max()))
            if labels is not None:
                right = [
                    r + int((t.argmax(1) == labels).sum()) for r, t in zip(right, (read, wanted), strict=True)
                ]
        points = max(points, 100 * abs(right[0] - right[1]) / len(images))
        print(f"onnx: {plan.name:<24} {written.nbytes / 1e6:7.2f} MB, {right[0]} and {right[1]} right")
    return {"top1_difference": points, "max_rel": relative}, equal


def greedy(view, ids: Tensor) -> Tensor:
    """ids (t,) -> the likeliest tokens (TOKENS,) that follow."""
    cache, ids, found = None, ids[None], []
    for _ in range(TOKENS):
        out = view(ids, past_key_values=cache, use_cache=True)
        cache, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
        found.append(ids.item())
    return torch.tensor(found)


if __name__ == "__main__":
    main()
