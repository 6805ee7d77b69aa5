"""Train the built-in vision-language model: a small LLaVA that answers the questions of easy-VQA in words.

    python assets/easy-vqa/train.py --out runs/easy-vqa
    -> config.json, model.safetensors (16 bits), processor's files, training.jsonl, questions.safetensors

The model is transformers' LlavaForConditionalGeneration: a CLIP tower (64 x 64 pixels in patches of 8, 4
blocks of 128 channels), the usual projector of two layers, a Llama (4 blocks of 256 channels). The folder is
what AutoProcessor and LlavaForConditionalGeneration open. First tower and projector learn to call shapes and
colours by their names (see tower.py), and the tower stays as it is from then on. Then the rest is
trained with AdamW on the tokens of the answers: some epochs in which projector and words settle, and, with
new language blocks whose weights start wider, those that count. (Blocks that start as usual go on guessing
whether what is asked about is there; these begin to compare after some 550 steps.)

All questions about one picture share one sequence (see packing.py), cut into conversations of one to
three questions in another order each epoch, so that follow-up questions are learned too; pictures are
mirrored and their shape is moved to where it fits, which changes no answer. Seven of eight questions whether
a colour is present are answered "no", and a model that always says so learns nothing more for a long time:
the colour or shape that such a question names is drawn anew, the one in the picture half of the time. What is
kept is the running average of the weights.

A run is a sequence of epochs that each follow from the settings and their number; it goes on after the last
one that its checkpoint holds.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from packing import IGNORED, Packed, encoder, pack
from processor import BOS, EOS, IMAGE, PAD, SPECIAL, create_processor
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tower import UNKNOWN, given_away, train_tower
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from quept.data.easy_vqa import (
    ANSWERS,
    COLOURS,
    SHAPES,
    SIZE,
    TYPES,
    Question,
    Questions,
    easy_vqa,
    question_type,
    save_questions,
)
from quept.files import append_line, write_atomic, write_tensors
from quept.progress import Progress
from quept.zoo.cache import say

PATCH = 8  # pixels
IMAGE_TOKENS = (SIZE // PATCH) ** 2
# The words of the data, kept here so that the model is the same whatever it is trained on.
WORDS = (
    *ANSWERS,
    *("a", "color", "contain", "does", "image", "in", "is", "not", "of", "present", "shape", "the", "there"),
    "what",
)
LENGTHS, SHARES = (1, 2, 3), (0.6, 0.25, 0.15)  # of conversations, in questions
MEMBERS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Settings:
    tower_epochs: int = 16
    tower_batch: int = 32  # pictures
    tower_rate: float = 1e-3
    settle_epochs: int = 2
    settle_batch: int = 8  # pictures, with all questions about them
    settle_rate: float = 1e-3
    epochs: int = 5
    batch: int = 4
    rate: float = 5e-4
    weight_decay: float = 0.05
    warmup: int = 60  # steps
    average: float = 0.998  # decay of the running average, a step
    seed: int = 0


def train(
    out: str | Path,
    settings: Settings | None = None,
    data: str | Path | None = None,
    progress: Progress | None = None,
) -> float:
    """Train into the folder `out`, going on from its checkpoint; returns the share of the test questions that
    what was written answers as the data do. data: the folder of the data, where they are not fetched."""
    settings, out = settings or Settings(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    run = Run(settings, easy_vqa("train", data, progress))
    test = easy_vqa("test", data, progress)
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.is_file():
        run.load_state(load_file(checkpoint))
    else:
        say(progress, "the tower learns the names of shapes and colours", 0.0)
        run.train_tower()
    epochs = settings.settle_epochs + settings.epochs
    while run.epoch < epochs:
        began = time.monotonic()
        loss = run.train_epoch()
        line = {"epoch": run.epoch, "of": epochs, "loss": round(loss, 4)}
        line |= {"seconds": round(time.monotonic() - began, 1), "accuracy": accuracy(run.average, test)[0]}
        write_tensors(checkpoint, run.state())
        append_line(out / "training.jsonl", line)
        say(progress, f"epoch {run.epoch} of {epochs}: loss {loss:.3f}", run.epoch / epochs)
    found = write(run.average, out, settings, test)
    checkpoint.unlink(missing_ok=True)
    return found


def processor() -> LlavaProcessor:
    return create_processor(WORDS, SIZE, PATCH)


def create() -> LlavaForConditionalGeneration:
    """The untrained model."""
    pad, bos, eos = (SPECIAL.index(token) for token in (PAD, BOS, EOS))
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=128,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(processor().tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL.index(IMAGE),
        image_seq_length=IMAGE_TOKENS,
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.generation_config.update(max_new_tokens=8, do_sample=False, pad_token_id=pad, eos_token_id=eos)
    return model


def write(model: LlavaForConditionalGeneration, out: Path, settings: Settings, test: Questions) -> float:
    """The folder that transformers opens, weights in 16 bits; returns the accuracy of those weights."""
    rounded = create()
    rounded.load_state_dict({key: value.half().float() for key, value in model.state_dict().items()})
    found, by_type = accuracy(rounded, test)
    rounded.half().save_pretrained(out)
    processor().save_pretrained(out)
    config = json.loads((out / "config.json").read_text("utf-8"))
    config["license"] = "apache-2.0"
    data = "easy-VQA 1.0 (MIT licence): 38,575 questions about 4,000 pictures"
    config["training"] = asdict(settings) | {"data": data, "test_accuracy": found}
    config["training"]["test_accuracy_by_type"] = by_type
    write_atomic(out / "config.json", json.dumps(config, indent=1) + "\n")
    return found


@torch.inference_mode()
def accuracy(
    model: LlavaForConditionalGeneration, test: Questions, batch: int = 50
) -> tuple[float, dict[str, float]]:
    """Share of the questions that greedy generation answers in exactly the tokens of the answer, then ending;
    of all, and of each type. Each question is asked on its own."""
    model.eval()
    encode, asked = encoder(processor().tokenizer), test.by_picture()
    order = sorted(range(len(asked)), key=lambda row: len(asked[row]))
    right = {kind: [] for kind in TYPES}
    for rows in (order[i : i + batch] for i in range(0, len(order), batch)):
        packed = pack([[[q] for q in asked[row]] for row in rows], IMAGE_TOKENS, encode)
        spoken = packed.targets != IGNORED
        hits = forward(model, normalised(test.pixels[rows]), packed).argmax(-1) == packed.targets[spoken]
        questions = [q for row in rows for q in asked[row]]
        whole = torch.ones(len(questions), dtype=torch.long)
        whole.scatter_reduce_(0, packed.question[spoken], hits.long(), "amin")
        for question, answered in zip(questions, whole.tolist(), strict=True):
            right[question_type(question.text)].append(answered)
    every = [answered for answers in right.values() for answered in answers]
    return sum(every) / len(every), {kind: sum(r) / len(r) for kind, r in right.items() if r}


class Run:
    """The state of a training run between epochs."""

    def __init__(self, settings: Settings, data: Questions):
        self.settings, self.data, self.epoch = settings, data, 0
        self.asked, self.boxes = data.by_picture(), shape_boxes(data.pixels)
        self.seen = given_away(data).tolist()
        self.encode = encoder(processor().tokenizer)
        torch.manual_seed(settings.seed)
        self._begin(create())

    def _begin(self, model: LlavaForConditionalGeneration) -> None:
        """Train this model from here on."""
        self.model, self.average = model, create()
        self.average.load_state_dict(model.state_dict())
        model.model.vision_tower.requires_grad_(False)
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [{"params": [p for p in trained if p.ndim > 1], "weight_decay": self.settings.weight_decay}]
        groups.append({"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)

    def _renew(self) -> None:
        """New language blocks, and a new head, behind what has settled."""
        torch.manual_seed(self.settings.seed)
        new, settled = create(), self.model.state_dict()
        for p in new.model.language_model.layers.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=new.config.text_config.hidden_size**-0.5)
        kept = ("model.vision_tower.", "model.multi_modal_projector.", "model.language_model.embed_tokens.")
        new.load_state_dict({k: t for k, t in settled.items() if k.startswith(kept)}, strict=False)
        self._begin(new)

    @property
    def settling(self) -> bool:
        return self.epoch < self.settings.settle_epochs

    @property
    def batch(self) -> int:
        return self.settings.settle_batch if self.settling else self.settings.batch

    def train_tower(self) -> float:
        """What the tower learns before the rest; returns its last loss."""
        settings, data = self.settings, self.data

        def prepared(rows: Tensor, generator: torch.Generator) -> Tensor:
            return normalised(augmented(data.pixels[rows], self.boxes[rows], generator))

        inner, embeddings = self.model.model, self.model.get_input_embeddings().weight
        rows = [self.encode(Question(word, word, 0))[1][0] for word in (*SHAPES, *COLOURS)]
        words = nn.Parameter(embeddings[rows].detach().clone())
        loss = train_tower(
            inner.vision_tower,
            inner.multi_modal_projector,
            words,
            data,
            prepared,
            settings.tower_epochs,
            settings.tower_batch,
            settings.tower_rate,
            settings.seed,
        )
        embeddings.data[rows] = words.detach()
        self.average.load_state_dict(self.model.state_dict())
        return loss

    def train_epoch(self) -> float:
        """One pass over the training questions; the mean loss."""
        settings, steps = self.settings, math.ceil(len(self.asked) / self.batch)
        if self.epoch == settings.settle_epochs:
            self._renew()
        past = steps * (self.epoch if self.settling else self.epoch - settings.settle_epochs)
        self.model.train()
        total = 0.0
        for step, (pixels, packed) in enumerate(self._batches()):
            self._set_rate(past + step, steps)
            logits = forward(self.model, pixels, packed)
            loss = cross_entropy(logits, packed.targets[packed.targets != IGNORED])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            decay = min(settings.average, (1 + past + step) / (10 + past + step))
            with torch.no_grad():
                torch._foreach_lerp_(
                    list(self.average.parameters()), list(self.model.parameters()), 1 - decay
                )
            total += loss.item()
        self.epoch += 1
        return total / steps

    def _batches(self) -> Iterator[tuple[Tensor, Packed]]:
        """(pixels, conversations) of the epoch, in a random order. Pictures with about as many questions come
        together, which saves padding."""
        draw = random.Random(self.settings.seed + self.epoch)
        generator = torch.Generator().manual_seed(self.settings.seed + self.epoch)
        order, batch, batches = draw.sample(range(len(self.asked)), len(self.asked)), self.batch, []
        for i in range(0, len(order), 16 * batch):
            pool = sorted(order[i : i + 16 * batch], key=lambda row: len(self.asked[row]))
            batches += [pool[j : j + batch] for j in range(0, len(pool), batch)]
        draw.shuffle(batches)
        for rows in batches:
            pixels = augmented(self.data.pixels[rows], self.boxes[rows], generator)
            asked = [[redrawn(q, *self.seen[row], draw) for q in self.asked[row]] for row in rows]
            talks = [conversations(questions, draw) for questions in asked]
            yield normalised(pixels), pack(talks, IMAGE_TOKENS, self.encode)

    def _set_rate(self, step: int, per_epoch: int) -> None:
        """Linear warm-up; then the full rate, and in the epochs that count, from the second on, half a cosine
        down to nothing. step: since these epochs began."""
        s = self.settings
        fallen = 0.0 if self.settling else max(0, step - per_epoch) / (per_epoch * max(1, s.epochs - 1))
        share = min(1.0, (step + 1) / s.warmup) * 0.5 * (1 + math.cos(math.pi * fallen))
        for group in self.optimizer.param_groups:
            group["lr"] = share * (s.settle_rate if self.settling else s.rate)

    def state(self) -> dict[str, Tensor]:
        """Everything the next epoch follows from."""
        state = {"epoch": torch.tensor(self.epoch)}
        for what, model in (("model", self.model), ("average", self.average)):
            state |= {f"{what}.{key}": value for key, value in model.state_dict().items()}
        for name, p in self.model.named_parameters():
            state |= {f"adam.{name}.{key}": m for key, m in self.optimizer.state.get(p, {}).items()}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.epoch = int(state["epoch"])
        for what, model in (("model", self.model), ("average", self.average)):
            model.load_state_dict({key: state[f"{what}.{key}"] for key in model.state_dict()})
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                self.optimizer.state[p] = {key: state[f"adam.{name}.{key}"].clone() for key in MEMBERS}


def forward(model: LlavaForConditionalGeneration, pixels: Tensor, packed: Packed) -> Tensor:
    """Logits (targets, vocabulary) where there is a target, in the order of the sequences."""
    hidden = model.model(
        input_ids=packed.tokens,
        pixel_values=pixels,
        attention_mask=packed.mask,
        position_ids=packed.positions,
        use_cache=False,
    ).last_hidden_state
    return model.lm_head(hidden[packed.targets != IGNORED])


def conversations(questions: Sequence[Question], draw: random.Random) -> list[list[Question]]:
    """The questions about one picture in a random order, cut into conversations of random lengths."""
    left, talks = draw.sample(questions, len(questions)), []
    while left:
        (length,) = draw.choices(LENGTHS, SHARES)
        talks.append(left[:length])
        left = left[length:]
    return talks


def redrawn(question: Question, shape: int, colour: int, draw: random.Random) -> Question:
    """A question whether something is present, about another shape or colour: half of the time about what is
    in the picture (numbers, UNKNOWN where no question tells). Other questions stay as they are."""
    about, _, asked = question_type(question.text).partition(" ")
    words, there = (SHAPES, shape) if about == "shape" else (COLOURS, colour)
    if not asked or there == UNKNOWN:
        return question
    present = draw.random() < 0.5
    word = words[there] if present else draw.choice([w for w in words if w != words[there]])
    text = re.sub("|".join(words), word, question.text)
    return Question(text, "yes" if present == (asked == "present") else "no", question.picture)


def shape_boxes(pixels: Tensor) -> Tensor:
    """(n, 4): first and last row, first and last column that differ from the picture's plain background, its
    most common colour."""
    background = pixels.flatten(1, 2).median(1).values
    shape = (pixels != background[:, None, None]).any(-1)
    ends = []
    for axis in (2, 1):
        inside = shape.any(axis).int()
        ends += [inside.argmax(1), inside.shape[1] - 1 - inside.flip(1).argmax(1)]
    return torch.stack(ends, 1)


def augmented(pixels: Tensor, boxes: Tensor, generator: torch.Generator) -> Tensor:
    """Each picture with its shape moved to a random place where it is whole, mirrored at random."""
    count, size = len(pixels), pixels.shape[1]
    top, bottom, first, last = boxes.unbind(1)
    places = torch.rand(2, count, generator=generator)
    rows = _moved(top, bottom, places[0], size)
    columns = _moved(first, last, places[1], size)
    mirrored = torch.rand(count, generator=generator) < 0.5
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    return pixels[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _moved(first: Tensor, last: Tensor, place: Tensor, size: int) -> Tensor:
    """Indices (count, size) along one axis that put what lies from `first` to `last` at `place` (0..1) of the
    room there is; what leaves at one end comes back at the other, where all is background."""
    room = size - (last - first)  # places
    start = (place * room).long().clamp(max=room - 1)
    return (torch.arange(size) + (first - start)[:, None]) % size


def normalised(pixels: Tensor) -> Tensor:
    """(n, height, width, 3) uint8 -> (n, 3, height, width) from -1 to 1, as the processor does it."""
    return pixels.permute(0, 3, 1, 2).float().div_(255).sub_(0.5).div_(0.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train it anew; a run that was cut goes on.")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/easy-vqa"), help="folder (default: %(default)s)"
    )
    parser.add_argument("--data", type=Path, help="folder of the original data files (default: fetch them)")
    parser.add_argument("--epochs", type=int, default=0, help="passes over the data that count (default: 5)")
    options = parser.parse_args()
    with Progress() as shown:
        found = train(options.out, options.epochs and Settings(epochs=options.epochs), options.data, shown)
        save_questions(options.out / "questions.safetensors", easy_vqa("test", options.data))
    print(f"{options.out}: {100 * found:.2f} % of the test set")
