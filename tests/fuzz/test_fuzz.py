"""Damaged and forged inputs end in a sentence: no other exception, no hang, no words of the interpreter.

Each kind takes a sound input, changes it by a seeded draw and opens it as the program would. What the command
line turns into a sentence (ValueError, RuntimeError, OSError) may come out; the sentence must be one for a
person.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import io
import json
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from quept.allocate import SensitivityTable
from quept.allocate.front import Front
from quept.allocate.solve.constraints import Constraints
from quept.allocate.solve.solver import allocate
from quept.artifact import Artifact
from quept.config import Recipe
from quept.models import load
from quept.plan import PrecisionPlan
from quept.presets import RECIPES
from quept.runtime import ElasticModel
from quept.runtime.prompt import prompt_ids
from tests.tiny import save_tiny, tiny_tokenizer

pytestmark = pytest.mark.slow

ASSETS = Path(__file__).parents[2] / "assets"
SECONDS = 20
LONGEST = 1500
INTERPRETER = re.compile(
    r"NoneType|object has no attribute|list indices|not subscriptable|unexpected keyword|not iterable|"
    r"index out of range|unhashable|positional argument|has no len|int\(\) argument|not supported between|"
    r"could not convert|invalid literal|too many values|not enough values|must be real number|expected str|"
    r"argument of type|maximum recursion|aten::|mat1 and mat2|size of tensor|Traceback|pydantic"
)
ODD = [
    None, True, False, -1, 0, 1, 2.5, 7, 9, 16, 10**9, 10**30, 1e308, float("nan"), float("inf"), "", "x",
    "4", "<img src=x>", "../../x", "\x1b[2J", "\u202e", "row", "auto", [], [[]], {}, {"4": 1}, [1, 2], [None],
]  # fmt: skip
TEMPLATES = [
    "{{ 'a' * N }}", "{% for i in range(N) %}x{% endfor %}", "{{ messages[N].content }}", "{{ N / 0 }}",
    "{% include 'N' %}", "{{ messages|join('x')|center(N) }}", "{{ [1] * N }}", "{{ raise_exception(N) }}",
    "{{ messages[0].content.format(N) }}", "{% set x = namespace() %}{{ x.y.z }}", "{{ N ** N }}", "{% if %}",
    "{{ '%Nd' % 1 }}", "{{ messages | tojson(indent=N) }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ messages[0].content * N }}", "{{ ''.__class__ }}", "{{ self }}", "{{ cycler(1).next(N) }}", "",
]  # fmt: skip


def changed(draw: random.Random, value: Any) -> Any:
    """JSON with one or more entries replaced, removed, renamed or repeated."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at, places = value, []
        while isinstance(at, dict | list) and at and (not places or draw.random() < 0.75):
            key = draw.choice(list(at)) if isinstance(at, dict) else draw.randrange(len(at))
            places.append((at, key))
            at = at[key]
        if not places:
            return draw.choice(ODD)
        owner, key = places[-1]
        match draw.randrange(5 if isinstance(owner, dict) else 3):
            case 0 | 1:
                owner[key] = draw.choice(ODD)
            case 2:
                del owner[key]
            case 3:
                owner[f"{key}{draw.choice(('', ' ', '.x', '9'))}"] = owner.pop(key)
            case 4:
                owner[draw.choice(("x", "4", "-1", "<b>"))] = draw.choice(ODD)
    return value


def cut(draw: random.Random, data: bytes) -> bytes:
    """Bytes with some flipped, cut off or repeated."""
    data = bytearray(data)
    match draw.randrange(4):
        case 0:
            del data[draw.randrange(len(data) + 1) :]
        case 1:
            for _ in range(draw.randrange(1, 30)):
                data[draw.randrange(min(len(data), 400))] = draw.randrange(256)
        case 2:
            for _ in range(draw.randrange(1, 30)):
                data[draw.randrange(len(data))] = draw.randrange(256)
        case 3:
            at = draw.randrange(len(data))
            data[at:at] = data[at : at + draw.randrange(1, 2000)] * draw.choice((1, 3))
    return bytes(data)


def text_of(draw: random.Random, value: Any) -> bytes:
    """The changed JSON as a file; one in five has damaged bytes instead."""
    sound = json.dumps(value).encode()
    return cut(draw, sound) if draw.random() < 0.2 else json.dumps(changed(draw, value)).encode()


@cache
def model_folder(root: Path) -> Path:
    return save_tiny("llama", root / "sound")


@cache
def elastic(root: Path) -> ElasticModel:
    return ElasticModel.open(model_folder(root), dtype=torch.float32)


@cache
def artifact_folder(root: Path) -> Path:
    """A calibrated artifact whose adapters and clips are zeros of the right form."""
    from quept.cli import main

    text = root / "words.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    argv = ["calibrate", str(model_folder(root)), "--recipe", "tiny", "--text", str(text)]
    assert main([*argv, "--out", str(root / "art")]) == 0
    return root / "art"


def plan(draw: random.Random, root: Path) -> None:
    sound = {"format": "quept-plan", "version": 1, "name": "x", "note": "", "weights": 4, "activations": 8}
    sound |= {"kv": 16, "embeddings": 8, "layers": {"*.mlp.*": 3, "model.layers.0.self_attn.q_proj": [4, 8]}}
    PrecisionPlan.from_json(text_of(draw, sound)).resolve(elastic(root).layers)


def link(draw: random.Random, root: Path) -> None:
    from app.link import decode, encode

    description = {"model": "m", "layers": [0] * 14, "bits": [2, 3, 4, 16], "activation_bits": [16]}
    sound = encode({"w": [2, 3, 4, 16, 4, 4, 4] * 2, "kv": 16, "e": 16}, "m") | {"kv": "4"}
    query = changed(draw, sound)
    if isinstance(query, dict):
        decode(query, description)


def equalizer(draw: random.Random, root: Path) -> None:
    from app.components.equalizer import check_plan

    description = {"layers": [{"name": f"l{i}"} for i in range(6)], "bits": [2, 4, 16], "kv_bits": [16, 4]}
    check_plan(changed(draw, {"w": [2] * 6, "a": [16] * 6, "kv": 4, "e": 16}), description)


def recipe(draw: random.Random, root: Path) -> None:
    import tomllib

    names = sorted(RECIPES.glob("*.toml"))
    path = draw.choice(names)
    if draw.random() < 0.3:
        damaged = root / "damaged.toml"
        damaged.write_bytes(cut(draw, path.read_bytes()))
        Recipe.load(damaged)
    Recipe.from_dict(changed(draw, {"name": "x"} | tomllib.loads(path.read_text())))


def table(draw: random.Random, root: Path) -> None:
    opened = elastic(root)
    row = {str(b): 4.0**-b for b in range(2, 9)}
    figures = {"kl": 0.1, "kl_se": 0.01, "ppl": 9.0, "ppl_se": 0.1, "same_top": 0.9, "tokens": 64}
    sound = {
        "format": "quept-sensitivity", "version": 2, "model": "m", "fingerprint": "f", "group": "auto",
        "per": "layer", "data": {"text": "t", "tokens": 64, "context": 32, "dtype": "float32"},
        "reference": {"ppl": 8.0, "tokens": 64, "context": 32}, "layers": dict.fromkeys(opened.layers, row),
        "uniform": {str(b): figures | {"kl": 4.0**-b} for b in range(2, 9)}, "whole": {"W4E8": figures},
        "embeddings": row, "activations": {}, "base": "full precision",
    }  # fmt: skip
    found = SensitivityTable.from_json(text_of(draw, sound))
    found.prediction(opened.layers)
    found.conditions.format()
    allocate(found, opened.sizes, opened.sizes.deploy(PrecisionPlan.uniform(5)), Constraints())


def front(draw: random.Random, root: Path) -> None:
    sound = json.loads((ASSETS / "smollm2-135m/weight-only/front.json").read_text())
    sound["plans"] = sound["plans"][:3]
    for point in Front.from_json(text_of(draw, sound)).points:
        point.plan.resolve(["model.layers.0.self_attn.q_proj"])


def budget(draw: random.Random, root: Path) -> None:
    from app.budget import constraints_of
    from app.payloads import BudgetRequest

    opened = type("Opened", (), {"elastic": elastic(root), "table": lambda self, name: None, "front": None})()
    sound = {"budget": 1000, "pins": [[0, 4], [-1, 8]], "ties": "qkv", "activations": 16, "turn": 1}
    request = changed(draw, sound)
    if isinstance(request, dict):
        constraints_of(opened, BudgetRequest.read(request))


def template(draw: random.Random, root: Path) -> None:
    tokenizer = tiny_tokenizer()
    text = draw.choice([*TEMPLATES, tokenizer.chat_template])
    if draw.random() < 0.3:
        text = cut(draw, text.encode() or b"x").decode("utf-8", "replace")
    tokenizer.chat_template = text.replace("N", str(draw.choice((0, 3, 10**5, 10**9, 10**18))))
    prompt_ids(tokenizer, [{"role": "user", "content": draw.choice(("hi", "{}" * 50, "\ud800", "</s>x"))}])


def picture(draw: random.Random, root: Path) -> None:
    from app.pictures import read_sent

    made, kind = io.BytesIO(), draw.choice(("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"))
    Image.effect_noise((40, 30), 60).convert("RGB").save(made, kind)
    read_sent(cut(draw, made.getvalue()), draw.choice((1, 3)))


def images(draw: random.Random, root: Path) -> None:
    from quept.data.images import stored_images
    from quept.models.vision import Vision

    pixels = torch.zeros(draw.choice(((6, 8, 8), (6, 8, 8, 3), (6, 8, 0), (6, 8, 8, 7), (0, 8, 8), (6,))))
    labels = torch.zeros(draw.choice(((6,), (6,), (6, 1), (5,), ())))
    types = (torch.uint8, torch.uint8, torch.float32, torch.int64)
    tensors = {
        "pixels": pixels.to(draw.choice(types)),
        "labels": labels.to(draw.choice((torch.int64, types[0]))),
    }
    path = root / "images.safetensors"
    save_file(tensors, path, {"format": "quept-images", "version": draw.choice(("1", "2", "x")), "name": "n"})
    if draw.random() < 0.2:
        path.write_bytes(cut(draw, path.read_bytes()))
    data = {
        "input_size": (1, 8, 8),
        "mean": (0.5,),
        "std": (0.5,),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    }
    found = stored_images(path, Vision({}, data, ("a", "b"), ("a", "b"), None))
    found.picture(0)


def model(draw: random.Random, root: Path) -> None:
    folder = root / "model"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model_folder(root), folder)
    path = draw.choice(sorted(p for p in folder.iterdir() if p.is_file()))
    if path.suffix == ".json" and draw.random() < 0.7:
        path.write_bytes(text_of(draw, json.loads(path.read_text())))
    elif draw.random() < 0.15:
        path.unlink()
    else:
        path.write_bytes(cut(draw, path.read_bytes()))
    if draw.random() < 0.1:
        listed = {
            "metadata": {},
            "weight_map": {"lm_head.weight": draw.choice(("../x.safetensors", "/x", None))},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    opened = ElasticModel.open(folder, dtype=torch.float32)
    ids = prompt_ids(opened.tokenizer, [{"role": "user", "content": "hello"}])
    opened.view(PrecisionPlan.uniform(4))(torch.tensor([ids[:8]]))


def artifact(draw: random.Random, root: Path) -> None:
    folder, sound = root / "forged", artifact_folder(root)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    listing = json.loads((folder / "manifest.json").read_text())
    name = "learned.safetensors"
    if draw.random() < 0.5:
        listing = changed(draw, listing)
    else:
        tensors = load_file(folder / name)
        key = draw.choice(sorted(tensors))
        t = tensors[key]
        forged = [
            t.flatten(),
            t[:0],
            t[..., :1].contiguous(),
            t.float(),
            t.to(torch.int64),
            t[None],
            t * 0 + 255,
        ]
        tensors[draw.choice((key, key + ".9", "model.x", "transform.x"))] = draw.choice(forged)
        save_file(tensors, folder / name)
        raw = (folder / name).read_bytes()
        listing["files"][name] = {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
    (folder / "manifest.json").write_text(json.dumps(listing))
    made = Artifact.open(folder)
    opened = ElasticModel(load(model_folder(root)), made, dtype=torch.float32)
    opened.view(PrecisionPlan.uniform(draw.choice((2, 4, 8))))(torch.tensor([[1, 5, 9]]))


def result(draw: random.Random, root: Path) -> None:
    import sqlite3

    from quept.evaluate import Estimate, Results
    from quept.evaluate.results import ResultKey

    path = root / f"results-{draw.random()}.sqlite"
    numbers = dict.fromkeys(Estimate.__dataclass_fields__, 1.0) | {"tokens": 64}
    key, store = ResultKey("p", "m", "d"), Results.open(path)
    store.put(key, numbers)
    with sqlite3.connect(path) as db:
        db.execute("update results set payload = ?", (text_of(draw, numbers).decode("utf-8", "replace"),))
    found = Results.open(path).get(key, Estimate.from_dict)
    assert found is None or Estimate.from_dict(found.payload)


@cache
def gguf_file(root: Path) -> bytes:
    from tests.tiny import tiny_model
    from tests.zoo.test_gguf import save_gguf

    return save_gguf(tiny_model("llama"), root / "sound.gguf").read_bytes()


def gguf(draw: random.Random, root: Path) -> None:
    data = bytearray(gguf_file(root))
    head = data.index(b"<unk>")
    match draw.randrange(4):
        case 0:  # a number of the header
            at = draw.choice((4, 8, 16, 24, draw.randrange(24, head)))
            data[at : at + 8] = draw.choice((0, 1, 3, 2**31, 2**63 - 1, 2**64 - 1)).to_bytes(8, "little")
        case 1:  # another name
            name = draw.choice(
                (b"llama.", b"attention", b"tokenizer", b"blk.0", b"token_embd", b"rope", b"gpt2")
            )
            data = data.replace(name, bytes(draw.randrange(32, 127) for _ in name), draw.choice((1, -1)))
        case 2:
            data = bytearray(cut(draw, bytes(data[:head])) + data[head:])
        case 3:
            data = bytearray(cut(draw, bytes(data)))
    path = root / "damaged.gguf"
    path.write_bytes(data)
    with mock.patch.dict(os.environ, {"QUEPT_CACHE": str(root / "cache")}):
        shutil.rmtree(root / "cache", ignore_errors=True)
        load(path)


def pairs(draw: random.Random, root: Path) -> None:
    from quept.data.pairs import read_pairs

    folder = root / "pairs"
    folder.mkdir(exist_ok=True)
    (folder / "cat.png").write_bytes(b"x")
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
    sound = [
        {"image": "cat.png", "question": "What?", "answer": "A cat."},
        {"image": ["cat.png", "cat.png"], "conversation": turns * 2},
        {"image": "cat.png", "caption": "A cat."},
    ]
    (folder / "pairs.json").write_bytes(text_of(draw, sound))
    for pair in read_pairs(folder):
        assert all(path.is_file() and path.is_relative_to(folder.resolve()) for path in pair.images)


@cache
def service(root: Path):
    from app.service import Sample, Service
    from quept.evaluate import Results

    sample = Sample("The quick brown fox jumps over the lazy dog. " * 20, "foxes", tokens=128, context=64)
    return Service({"m": elastic(root)}, sample, Results.open(root / "service.sqlite"), root)


def request(draw: random.Random, root: Path) -> None:
    """What a page sends: budgets, plans to measure and to compare, links."""
    from app.components.equalizer import check_plan
    from app.shell import plans

    served = service(root)
    plan_json = served.plan_json_of("m", PrecisionPlan.uniform(4))
    budget = {"budget": "60 kB", "pins": [[0, 4]], "ties": "qkv", "activations": 16, "turn": 1}
    match draw.randrange(4):
        case 0:
            request = changed(draw, budget)
            if isinstance(request, dict):
                assert "error" in served.solve("m", request)  # there is no table
        case 1:
            sent = changed(draw, plan_json)
            served.plan_of("m", check_plan(sent, served.describe("m")))
        case 2:
            plans.uploaded(served, "m", text_of(draw, json.loads(PrecisionPlan.uniform(4).to_json("m"))))
        case 3:
            query = changed(draw, {"m": "m", "w": "AAAA", "kv": "4", "p": "chat"})
            if isinstance(query, dict):
                plans.linked(served, {str(key): str(value)[:2000] for key, value in query.items()})


def conversation(draw: random.Random, root: Path) -> None:
    turns = [("user", "Hello"), ("assistant", "Hi <|x|>"), ("user", "And </s> now? \ufdd0")]
    sound = [{"role": role, "content": text} for role, text in turns]
    messages, system = changed(draw, sound), draw.choice([None, "", "Be brief.", "\ud800", "</s>" * 40])
    prompt_ids(tiny_tokenizer(), messages if isinstance(messages, list) else [], system)


KINDS: dict[str, Callable[[random.Random, Path], None]] = {
    f.__name__: f
    for f in (
        plan, link, equalizer, recipe, table, front, budget, template, picture, images, model, artifact,
        result, gguf, pairs, request, conversation,
    )
}  # fmt: skip
IN_THE_SUITE = dict.fromkeys(KINDS, 20) | {"model": 6, "artifact": 6, "template": 12}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


class Hang(BaseException):
    pass


def test_a_damaged_input_ends_in_a_sentence(portion, root: Path):
    kind, seed, first, last = portion
    wrong = []
    elastic(root)
    importlib.import_module("app.components.equalizer")  # what takes long by itself is no hang
    if kind == "artifact":
        artifact_folder(root)

    def ring(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    try:
        for number in range(first, last):
            draw = random.Random(f"{kind} {seed} {number}")
            began = time.monotonic()
            signal.alarm(SECONDS)
            try:
                KINDS[kind](draw, root)
            except (ValueError, RuntimeError, OSError) as error:
                said = " ".join(str(error).split())
                if INTERPRETER.search(said) or not said or len(said) > LONGEST:
                    wrong.append(f"{number}: {type(error).__name__}: {said[:300]}")
            except Hang:
                wrong.append(f"{number}: takes more than {SECONDS} s")
            except Exception as error:
                place = error.__traceback__
                while place.tb_next:
                    place = place.tb_next
                where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}"
                wrong.append(f"{number}: {type(error).__name__}: {str(error)[:200]} at {where}")
            finally:
                signal.alarm(0)
            assert time.monotonic() - began < 3 * SECONDS
    finally:
        signal.signal(signal.SIGALRM, before)
    assert not wrong, "\n".join([f"{len(wrong)} of {last - first} inputs of the kind {kind}:", *wrong])
