"""Accuracy against the slow obvious count; the reference is made once; estimates come in as they should."""

import json
import threading
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from quept import ElasticModel, PrecisionPlan
from quept.data.images import image_folder, save_images
from quept.evaluate import (
    ImageError,
    NonFiniteLogits,
    accuracy,
    image_reference,
    stored_images,
    tasks_of,
)
from quept.evaluate.tasks.image import ClassChange
from tests.tiny import save_tiny_vision

COUNT, PER_BATCH = 23, 5


class Counting:
    """A model whose full-precision passes are counted."""

    def __init__(self, elastic):
        self.elastic, self.base_identity, self.calls = elastic, elastic.base_identity, 0

    def reference(self, pixels):
        self.calls += 1
        return self.elastic.reference(pixels)


@pytest.fixture(scope="module")
def elastic(tmp_path_factory):
    folder = save_tiny_vision("vit", tmp_path_factory.mktemp("accuracy") / "vit")
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (COUNT, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (COUNT,), generator=generator)
    save_images(folder / "images.safetensors", "noise", pixels, labels)
    return ElasticModel.open(folder, device="cpu", dtype=torch.float32)


@pytest.fixture
def images(elastic):
    found = stored_images(elastic.vision.images, elastic.vision)
    return replace(found, batch_size=PER_BATCH)


@pytest.fixture
def counting(elastic):
    return Counting(elastic)


@pytest.fixture
def reference(counting, images, tmp_path):
    return image_reference(counting, images, tmp_path / "reference")


def test_pictures_are_prepared_once_where_there_is_room(elastic, images):
    read = []
    counted = replace(images, transform=lambda picture: read.append(1) or images.transform(picture))
    for _ in range(2):
        assert all(
            torch.equal(counted.batch(i).pixels, images.batch(i).pixels) for i in range(images.batches)
        )
    assert len(read) == COUNT
    crowded = replace(counted, most=PER_BATCH * 16 * 16 * 4)  # of the first batch alone
    for number in (0, 1, 0, 1):
        crowded.batch(number)
    assert len(read) == COUNT + 3 * PER_BATCH


def test_an_estimate_is_the_slow_obvious_count(elastic, images, reference):
    view = elastic.view(PrecisionPlan.uniform(2))
    last = list(accuracy(view, images, reference))[-1]
    right = right_ref = same = lost = gained = 0
    kl, classes = [], {}
    for row in range(COUNT):
        pixels, label = images.transform(images.picture(row))[None], images.labels[row].item()
        with torch.no_grad():
            q, p = view(pixels)[0].double(), elastic.reference(pixels)[0].double()
        a, b = p.argmax().item(), q.argmax().item()
        p, q = p.softmax(0), q.softmax(0)
        kl.append((p * (p / q).log()).sum().item())
        right, right_ref, same = right + (b == label), right_ref + (a == label), same + (a == b)
        lost, gained = lost + (a == label != b), gained + (b == label != a)
        counts = classes.setdefault(label, [0, 0, 0, 0])
        for i, counted in enumerate((True, a == label, b == label, a != b)):
            counts[i] += counted
    assert (last.images, last.skipped) == (COUNT, 0)
    assert (last.top1, last.top1_ref, last.same_top) == (right / COUNT, right_ref / COUNT, same / COUNT)
    assert (last.lost, last.gained) == (lost, gained) and last.kl == pytest.approx(sum(kl) / COUNT, rel=1e-5)
    changed = []
    for row in range(COUNT):
        pixels = images.transform(images.picture(row))[None]
        with torch.no_grad():
            pair = elastic.reference(pixels).argmax().item(), view(pixels).argmax().item()
        changed += [(row, *pair)] if pair[0] != pair[1] else []
    assert changed and last.changed == tuple(changed)
    assert last.classes == {label: ClassChange(*counts) for label, counts in classes.items()}
    assert 0 < last.same_top < 1, "two bits change some answers of this model, not all"


def test_intervals_are_wilsons(elastic, images, reference, monkeypatch):
    labels = elastic.reference(torch.cat([images.batch(i).pixels for i in range(images.batches)])).argmax(-1)
    labels[10:] = (labels[10:] + 1) % 10
    images = replace(images, labels=labels)
    estimates = list(accuracy(elastic.view(PrecisionPlan.full()), images, reference))
    first, second, third = estimates[:3]
    assert first.top1 == second.top1 == 1 and (third.images, third.top1) == (15, 10 / 15)
    assert (second.top1_low, second.top1_high) == pytest.approx((0.7225, 1.0), abs=1e-4)  # 10 of 10
    assert (third.top1_low, third.top1_high) == pytest.approx((0.4171, 0.8482), abs=1e-4)  # 10 of 15


def test_full_precision_agrees_with_itself(elastic, images, reference):
    last = list(accuracy(elastic.view(PrecisionPlan.full()), images, reference))[-1]
    assert (last.kl, last.same_top, last.lost, last.gained) == (0, 1, 0, 0) and last.top1 == last.top1_ref
    assert all(change.flips == 0 for change in last.classes.values())


def test_estimates_come_batch_by_batch(elastic, images, reference):
    estimates = list(accuracy(elastic.view(PrecisionPlan.uniform(3)), images, reference))
    assert [e.images for e in estimates] == [5, 10, 15, 20, 23]
    assert sorted(e.seconds for e in estimates) == [e.seconds for e in estimates]
    assert next(accuracy(elastic.view(PrecisionPlan.uniform(3)), images, reference)).kl == estimates[0].kl


def test_the_reference_is_computed_once_and_kept(elastic, counting, images, reference, tmp_path):
    view = elastic.view(PrecisionPlan.uniform(4))
    first = list(accuracy(view, images, reference))[-1]
    assert counting.calls == 5
    anew = Counting(elastic)
    again = image_reference(anew, images, tmp_path / "reference")
    second = list(accuracy(view, images, again))[-1]
    assert anew.calls == 0 and (second.kl, second.classes) == (first.kl, first.classes)
    damaged = sorted(again.folder.glob("*.safetensors"))[2]
    damaged.write_bytes(damaged.read_bytes()[:-3])
    assert list(accuracy(view, images, again))[-1].kl == first.kl and anew.calls == 1


def test_a_cache_that_cannot_be_written_only_costs_time(elastic, images, tmp_path):
    (tmp_path / "file").touch()
    reference = image_reference(elastic, images, tmp_path / "file")
    assert list(accuracy(elastic.view(PrecisionPlan.uniform(4)), images, reference))[-1].images == COUNT


def test_the_gate_is_held_while_pictures_are_prepared_and_for_forward_passes(elastic, images, reference):
    lock, held_while = threading.Lock(), []

    @contextmanager
    def gate():
        with lock:
            yield

    picture = images.picture
    images = replace(images, picture=lambda row: (held_while.append(lock.locked()), picture(row))[1])
    view = elastic.view(PrecisionPlan.uniform(4))
    view.register_forward_pre_hook(lambda *_: held_while.append(lock.locked()))
    for _ in accuracy(view, images, reference, gate):
        assert not lock.locked()
    assert len(held_while) == COUNT + 5 and all(held_while)


def test_a_model_with_one_class_answers_yes_or_no(tmp_path):
    folder = save_tiny_vision("vit", tmp_path / "vit", num_classes=1)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (COUNT, 16, 16), dtype=torch.uint8, generator=generator)
    save_images(folder / "images.safetensors", "noise", pixels, torch.zeros(COUNT, dtype=torch.long))
    elastic = ElasticModel.open(folder, device="cpu", dtype=torch.float32)
    (task,) = tasks_of(elastic, tmp_path / "reference").values()
    *_, last = task.estimates(elastic.view(PrecisionPlan.uniform(2)))
    with torch.no_grad():
        logits = torch.cat(
            [elastic.reference(task.images.batch(i).pixels) for i in range(task.images.batches)]
        )
    assert last["top1"].full == (logits > 0).double().mean().item()
    assert last["kl"].value > 0 and last["same_top"].value <= 1


def test_a_broken_picture_is_counted_and_the_reference_fits_what_is_left(elastic, tmp_path):
    for i in range(6):
        (tmp_path / "data" / str(i)).mkdir(parents=True)
        Image.new("L", (20, 20), 40 * i).save(tmp_path / "data" / str(i) / "x.png")
    view, broken = elastic.view(PrecisionPlan.uniform(4)), tmp_path / "data" / "2" / "x.png"

    def measured():
        images = image_folder(tmp_path / "data", elastic.vision)
        reference = image_reference(elastic, images, tmp_path / "cache")
        return list(accuracy(view, images, reference))[-1]

    assert (measured().images, measured().skipped) == (6, 0)
    broken.write_bytes(bytes(len(broken.read_bytes())))  # of the same size, so that the set keeps its id
    estimate = measured()
    assert (estimate.images, estimate.skipped) == (5, 1) and 2 not in estimate.classes
    for path in (tmp_path / "data").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ImageError, match="none of the 6 pictures of data can be read"):
        measured()


def test_an_estimate_is_json_and_its_metrics_say_what_it_says(elastic, tmp_path):
    (task,) = tasks_of(elastic, tmp_path).values()
    plan = PrecisionPlan.uniform(3)
    *_, last = task.estimates(elastic.view(plan), plan)
    data = json.loads(json.dumps(last.to_dict(), allow_nan=False))
    assert task.read(data).metrics == last.metrics and (last.done, last.total) == (COUNT, COUNT)
    top1 = last["top1"]
    assert (top1.low, top1.value, top1.high) == (data["top1_low"], data["top1"], data["top1_high"])
    assert top1.full == data["top1_ref"] and f"{data['lost']} became wrong" in top1.note
    blank = task.metrics({})
    assert [m.name for m in blank] == [m.name for m in last.metrics] and {m.value for m in blank} == {None}


def test_answers_that_are_not_finite_are_refused_in_words(elastic, images, reference, tmp_path):
    view = elastic.view(PrecisionPlan.uniform(4))
    view.norm.bias = torch.nn.Parameter(torch.full((64,), torch.nan))
    with pytest.raises(NonFiniteLogits, match="not finite for picture 0 or one of the 5"):
        next(accuracy(view, images, reference))
    damaged = SimpleNamespace(base_identity="d", reference=lambda x: torch.full((len(x), 10), torch.nan))
    other = image_reference(damaged, images, tmp_path)
    with pytest.raises(NonFiniteLogits, match="full precision"):
        next(accuracy(elastic.view(PrecisionPlan.full()), images, other))


def test_a_reference_of_other_pictures_is_refused(elastic, images, reference):
    few = stored_images(elastic.vision.images, elastic.vision, 3)
    with pytest.raises(ValueError, match="not the reference's"):
        next(accuracy(elastic.view(PrecisionPlan.full()), few, reference))


def test_half_precisions_are_measured_against_float32(elastic, images, reference):
    half = ElasticModel.open(elastic.source, device="cpu", dtype=torch.bfloat16)
    last = list(accuracy(half.view(PrecisionPlan.full()), images, reference))[-1]
    assert 0 < last.kl < 0.1
