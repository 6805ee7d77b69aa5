"""Calibrating vision-language models on conversations about pictures: every family, padding that counts
nowhere, pictures looked at once, the same bytes when a run was cut, and sentences for what cannot be."""

import dataclasses
import json

import pytest
import torch

from quept.artifact import Artifact
from quept.calibrate import calibrate
from quept.calibrate.activations import ActivationStore
from quept.calibrate.block_wise import BlockWiseTuning
from quept.calibrate.logits import logits_of
from quept.calibrate.trainable import Trainable
from quept.config import Recipe, RecipeError
from quept.data.base import DataError
from quept.data.batches import rows, samples
from quept.data.conversations import Conversations, conversations, sample
from quept.data.easy_vqa import Question, Questions
from quept.data.ragged import LOSS_MASK, MASK, TOKENS, Ragged
from quept.models import load
from quept.numerics.adapters import RankSchedule
from quept.plan import PrecisionPlan
from quept.report.words import by_width
from quept.runtime import ElasticModel
from quept.runtime.generate import Sampling, stream
from tests import tiny_vlm
from tests.tiny import save_tiny

pytestmark = pytest.mark.slow

TALK = [("one?", "two"), ("and then?", "three")]


def messages(turns):
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of seven pictures, one of them damaged, with words of every kind about them."""
    folder = tmp_path_factory.mktemp("data")
    for i in range(7):
        tiny_vlm.picture(i, (40 + 8 * i, 32)).save(folder / f"{i}.png")
    (folder / "6.png").write_bytes(b"no picture")
    entries = [{"image": f"{i}.png", "question": "what?" * (i + 1), "answer": "noise"} for i in range(4)]
    entries += [{"image": ["4.png", "5.png"], "conversation": messages(TALK)}]
    entries += [{"image": "5.png", "caption": "noise"}, {"image": "6.png", "caption": "nothing"}]
    (folder / "pairs.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vlm")
    return {name: tiny_vlm.save_tiny_vlm(name, root / name) for name in tiny_vlm.FAMILIES}


def recipe(data, **changes):
    """Seconds on a tiny model; entries of `changes` replace those of the recipe."""
    rates = {"adapter_rates": [1e-3] * 2, "clip_rate": 1e-2}
    return Recipe.from_dict(
        {
            "name": "tiny",
            "note": "for tests",
            "held_out": 1,
            "pairs": {"source": str(data), "count": 4, "context": 400, "size": 32},
            "adapters": {"groups": [[4, 8], [2]], "steps": [2, 2]},
            "clip": {"start": {2: 2.0, 4: 4.0}},
            "block_wise": rates | {"batch": 2, "epochs": 1, "merge": [0.5, 0.5]},
            "end_to_end": rates | {"steps": 2, "batch": 2, "draws": [[2]], "mixed_every": 2},
        }
        | changes
    )


@pytest.mark.parametrize("name", tiny_vlm.FAMILIES)
def test_every_family_calibrates_opens_switches_and_answers(folders, data, tmp_path, name):
    made = calibrate(folders[name], recipe(data), tmp_path, device="cpu")
    uniform, sees = ["W8", "W4, vision 8", "W2, vision 8"], ["vision 4", "vision 2"]
    assert by_width(made.manifest.quality) == uniform + sees
    assert made.manifest.provenance["pairs"].startswith("4 conversations about pictures of data")
    assert str(data) not in (tmp_path / "manifest.json").read_text()
    elastic = ElasticModel.open(tmp_path, device="cpu", dtype=torch.float32)
    lines = [json.loads(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    tuned = [line["block"] for line in lines if line["what"] == "block"]
    assert tuned == [block.name for block in elastic.layout.decoder_blocks]

    def answer(bits):
        shown = [{"type": "image"}, {"type": "text", "text": "what?"}]
        events = stream(
            elastic.view(PrecisionPlan.uniform(bits).keeping(elastic.layout.vision_layers)),
            elastic.tokenizer,
            [{"role": "user", "content": shown}],
            Sampling(temperature=0, max_tokens=3),
            processor=elastic.processor,
            pictures=[tiny_vlm.picture()],
        )
        return [event.id for event in events if hasattr(event, "id")]

    first, other, again = answer(4), answer(2), answer(4)
    assert first == again and first and other


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "paligemma2", "qwen3-vl", "qwen3-vl-moe"])
def test_a_tiny_calibration_beats_rounding_at_2_to_4_bits(folders, tmp_path, name):
    words = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs! "
    for i in range(10):
        tiny_vlm.picture(i, (32, 32)).save(tmp_path / f"{i}.png")
    pairs = [{"image": f"{i}.png", "question": f"{i * i}?", "answer": words[3 * i :][:40]} for i in range(10)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    rates = {"adapter_rates": [0.0, 1e-2, 1e-2, 1e-2], "clip_rate": 4e-2}
    tuned = recipe(
        tmp_path,
        group=32,
        held_out=2,
        pairs={"source": str(tmp_path), "count": 8, "context": 400, "size": 32},
        adapters={"groups": [[5, 6, 7, 8], [4], [3], [2]], "steps": [0, 4, 4, 4]},
        clip={"start": {2: 1.0, 3: 3.0, 4: 4.0}},
        block_wise=None,
        end_to_end=rates | {"steps": 8, "batch": 2, "draws": [[2], [3], [4]]},
    )
    quality = calibrate(folders[name], tuned, tmp_path / "run", device="cpu").manifest.quality
    found = {bits: quality[f"W{bits}, vision 8"] for bits in (2, 3, 4)}
    assert all(row["kl"] < row["kl_rtn"] for row in found.values()), found


def test_layers_that_no_stage_ran_at_a_width_stay_plainly_rounded_there(folders, data, tmp_path):
    settings = recipe(data).to_dict()
    seen = {"vision", "projector"}
    for stages, expected in (
        ({"end_to_end": None}, set()),
        ({"block_wise": None, "end_to_end": settings["end_to_end"] | {"mixed_every": 0}}, {8}),
    ):
        out = tmp_path / f"{len(expected)}"
        made = calibrate(folders["llava"], recipe(data, **stages), out, device="cpu")
        sections = load(folders["llava"]).layout.sections
        widths = {w for name in seen for layer in sections[name] for w in made.manifest.widths[layer]}
        assert widths <= expected


class Cut(Exception):
    """Stands for a machine that went away."""


def test_a_run_cut_anywhere_and_resumed_ends_with_the_same_bytes(folders, data, tmp_path, monkeypatch):
    monkeypatch.setattr("quept.calibrate.job.SAVE_EVERY", 0.0)
    settings = recipe(data)
    calibrate(folders["qwen2-vl"], settings, tmp_path / "whole", device="cpu")

    def cut(stage, fraction):
        if cuts and cuts[0] in stage:
            cuts.pop(0)
            raise Cut

    cuts = ["block 2 of 2, epoch 1", "end to end, step 1"]
    for _ in range(2):
        with pytest.raises(Cut):
            calibrate(folders["qwen2-vl"], settings, tmp_path / "cut", cut, device="cpu")
    calibrate(folders["qwen2-vl"], settings, tmp_path / "cut", cut, device="cpu")
    for name in ("learned.safetensors", "manifest.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def unlike(folder):
    """(a loaded model in float32, two conversations of different lengths about one and two pictures)."""
    loaded = load(folder)
    loaded.model.float()
    pictures = [tiny_vlm.picture(seed, (32, 32)) for seed in range(3)]
    short = sample(loaded.processor, pictures[:1], TALK[:1], 400)
    long = sample(loaded.processor, pictures[1:], [("what?" * 9, "a")], 400)
    assert short[TOKENS].shape[1] < long[TOKENS].shape[1]
    return loaded, Ragged([short, long], padding=3)


@pytest.mark.parametrize("name", tiny_vlm.FAMILIES)
def test_what_is_said_does_not_depend_on_the_padding_beside_it(folders, name):
    loaded, inputs = unlike(folders[name])
    with torch.no_grad():
        alone = [logits_of(loaded.model, rows(inputs, slice(i, i + 1))) for i in range(2)]
        together = logits_of(loaded.model, rows(inputs, slice(0, 2)))
    assert torch.allclose(torch.cat(alone), together, atol=2e-3, rtol=1e-3)
    assert len(together) == sum(int(s[LOSS_MASK].sum()) for s in inputs.samples)


def stage(loaded, inputs, folder, batch):
    """The block-wise stage before its first block, every group of one width."""
    schedule = RankSchedule(((4,), (2,)), (2, 2))
    settings = dataclasses.replace(
        recipe(folder).block_wise, batch=batch, adapter_rates=(1e-3,) * 2, merge=(0.5, 0.5), keep=0.0
    )
    tuned = Trainable(loaded.model, loaded.layout, schedule, {2: 2.0}, "auto", seed=0)
    streams = ActivationStore(folder, settings.memory)
    return BlockWiseTuning(tuned, settings, inputs.of_one_length(), 0, streams, lambda stage, part: None)


@pytest.mark.parametrize("name", ["llava", "qwen2-vl", "smolvlm"])
def test_padding_counts_in_no_loss_of_a_block_and_pictures_are_looked_at_once(folders, tmp_path, name):
    loaded, inputs = unlike(folders[name])
    looks = []
    vision = loaded.model.get_submodule(
        next(b.name for b in loaded.layout.blocks if b.section == "vision").rpartition(".")[0]
    )[0]
    forward = vision.forward
    vision.forward = lambda *args, **kwargs: looks.append(1) or forward(*args, **kwargs)
    measured = []
    for batch in (1, 2):
        looks.clear()
        tuning = stage(loaded, inputs, tmp_path, batch)
        list(tuning.run())
        assert len(looks) == len(tuning.batches)
        lost = stage(loaded, inputs, tmp_path, batch)
        lost.skip(1)
        lost._enter()
        measured.append(lost._measured(1, "here"))
        mask = torch.cat([rows(inputs.of_one_length(), slice(i, i + 1))[MASK] for i in range(2)]).bool()
        lost.quantized[~mask] = 1e3  # whatever stands there
        assert lost._measured(1, "here") == pytest.approx(measured[-1], rel=1e-4)
    assert measured[0] == pytest.approx(measured[1], rel=1e-3)


@pytest.mark.parametrize("name", ["llava", "qwen2-vl", "internvl"])
def test_the_model_speaks_where_the_answers_are(folders, name):
    processor = load(folders[name]).processor
    found = sample(processor, [tiny_vlm.picture()], [("one?", "two</s>"), ("and?", "three")], 400)
    said = found[TOKENS][0, 1:][found[LOSS_MASK][0, :-1]].tolist()
    assert processor.tokenizer.decode(said) == "two</s></s>\nthree</s>\n"
    ends = processor.tokenizer.convert_tokens_to_ids("</s>")
    assert said.count(ends) == 2  # the one that was written is only letters
    assert int(found[LOSS_MASK][0, -1]) == 0


def test_a_long_conversation_loses_its_end_and_never_a_picture(folders):
    processor = load(folders["llava"]).processor
    whole = sample(processor, [tiny_vlm.picture()], TALK, 400)
    count = whole[TOKENS].shape[1]
    cut = sample(processor, [tiny_vlm.picture()], TALK, count - 4)
    assert all(cut[key].shape[1] == count - 4 for key in (TOKENS, MASK, LOSS_MASK))
    assert torch.equal(cut["pixel_values"], whole["pixel_values"])
    with pytest.raises(ValueError, match="no answer begins within 30 tokens"):
        sample(processor, [tiny_vlm.picture()], TALK, 30)
    with pytest.raises(ValueError, match="reach up to token .* and context is 10: raise context"):
        sample(processor, [tiny_vlm.picture()], TALK, 10)


def test_no_picture_that_is_held_out_is_learned_on(folders, data):
    processor, told = load(folders["llava"]).processor, []
    for seed in range(4):
        held, training = conversations(
            Conversations(str(data), 9, 400, 32), processor, 2, seed, lambda stage, part: told.append(stage)
        )
        assert len(held) == 2 and 2 <= samples(training) <= 4
        shown = {tuple(p.flatten().tolist()) for s in training.samples for p in s["pixel_values"]}
        assert not any(tuple(p.flatten().tolist()) in shown for s in held.samples for p in s["pixel_values"])
    assert any("conversations passed over: 1, the first since" in stage for stage in told)


def test_the_built_in_questions_are_asked_three_at_a_time(folders, monkeypatch):
    pixels = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    asked = tuple(Question(f"is it {n}?", "yes", n % 3) for n in range(15))
    monkeypatch.setattr(
        "quept.data.easy_vqa.easy_vqa", lambda split, progress: Questions(split, pixels, asked)
    )
    processor = load(folders["llava"]).processor
    held, training = conversations(
        Conversations("easy-vqa", 9, 400, 64), processor, 1, 0, lambda stage, part: None
    )
    ends = processor.tokenizer.convert_tokens_to_ids("</s>")
    spoken = [s[TOKENS][0, 1:][s[LOSS_MASK][0, :-1]].tolist().count(ends) for s in training.samples]
    assert sorted(spoken) == [2, 2, 3, 3] and len(held) == 1


def test_text_alone_calibrates_the_language_model_too(folders, tmp_path):
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 40)
    text = Recipe.load("tiny").at({str(tmp_path / "text.txt"): 1}, "--text")
    short = dataclasses.replace(
        text,
        block_wise=dataclasses.replace(text.block_wise, epochs=1),
        end_to_end=dataclasses.replace(text.end_to_end, steps=1),
    )
    made = calibrate(folders["qwen2-vl"], short, tmp_path / "out", device="cpu")
    assert "W4, vision 8" in made.manifest.quality and Artifact.is_one(tmp_path / "out")


def test_recipes_and_models_must_be_of_one_kind(folders, data, tmp_path):
    language, vlm = save_tiny("llama", tmp_path / "l"), folders["llava"]

    def refused(model, settings, words):
        with pytest.raises(ValueError, match=words):
            calibrate(model, settings, tmp_path / "out", device="cpu")

    refused(
        language,
        recipe(data),
        "is a language model, and the recipe tiny calibrates on conversations about pictures",
    )
    refused(vlm, Recipe.load("vit-min-max").at(str(data)), "is a vision-language model, and the rec")
    refused(vlm, Recipe.load("vlm-weight-only"), "needs conversations about pictures: give a folder")
    refused(vlm, recipe(tmp_path / "nowhere"), r"pairs\.json cannot be read")
    scaled = dataclasses.replace(Recipe.load("tiny"), transforms=({"kind": "norms"},))
    refused(vlm, scaled, "norms transforms what is a language model, and .* is a vision-language model")
    with pytest.raises(RecipeError, match="not for conversations about pictures"):
        recipe(data, transforms=[{"kind": "norms"}])
    with pytest.raises(RecipeError, match="calibrates on conversations"):
        recipe(data).at({"squad-passages": 1}, "--text")
    with pytest.raises(RecipeError, match="calibrates on text"):
        Recipe.load("tiny").at(str(data))
    too_few = dataclasses.replace(recipe(data), held_out=6)
    with pytest.raises(DataError, match="too few conversations to hold 6 with .* give more .passed over: 1"):
        calibrate(vlm, too_few, tmp_path / "out", device="cpu")
