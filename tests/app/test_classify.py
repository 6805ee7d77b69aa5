"""The Classify page's handlers on tiny classifiers: the answers are the model's, each visitor has their own
pictures and plan, and whatever is uploaded becomes a picture or a sentence."""

from __future__ import annotations

import base64
import io
import json
import struct
import threading
import zlib
from contextlib import nullcontext
from pathlib import Path

import gradio as gr
import pytest
import torch
from PIL import Image

from app import pictures as module
from app.pages import classify, classify_answers
from app.pages.classify_answers import enter, given, look, own_pictures, results, row
from app.pages.context import PageContext
from app.pictures import Album, Classifier, Picture, read_upload
from app.service import Service
from quept import ElasticModel, PrecisionPlan
from quept.data.images import save_images
from quept.evaluate import ImageError, Results, Sample
from quept.zoo import PhotoEntry
from quept.zoo.sources import InstalledFile
from tests.tiny import save_tiny_vision

MODEL, COUNT = "vit", 130


@pytest.fixture(scope="module")
def elastic(tmp_path_factory) -> ElasticModel:
    folder = save_tiny_vision("vit", tmp_path_factory.mktemp("classify") / "vit")
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (COUNT, 16, 16), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (COUNT,), generator=generator)
    save_images(folder / "images.safetensors", "noise", pixels, labels)
    return ElasticModel.open(folder, device="cpu", dtype=torch.float32)


def desk_of(elastic: ElasticModel, tmp_path: Path) -> PageContext:
    results = Results.open(tmp_path / "results.sqlite")
    return classify.PAGE.context(Service({MODEL: elastic}, Sample("", ""), results, tmp_path))


@pytest.fixture
def context(elastic: ElasticModel, tmp_path: Path, monkeypatch) -> PageContext:
    monkeypatch.setattr(classify_answers, "FETCH_S", 0.0)
    return desk_of(elastic, tmp_path)


@pytest.fixture
def said(monkeypatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(gr, "Warning", lambda text, **_: said.append(text))
    return said


def ask(
    context: PageContext,
    at: PrecisionPlan,
    visitor: str = "a",
    choices=("full precision", "equaliser"),
    **more,
):
    plan_json = context.service.plan_json_of(MODEL, at)
    return look(context, MODEL, choices, {"turn": 1, "id": None, "plan": plan_json} | more, visitor)


def sent(context: PageContext, path: Path, visitor: str = "a") -> dict:
    """The row after this picture was sent; {} where it was not taken."""
    *_, (cleared, shown) = given(context, MODEL, str(path), visitor)
    assert cleared is None and not path.exists()
    return shown if "items" in shown else {}


def saved(tmp_path: Path, name: str, content: Image.Image | bytes, **options) -> Path:
    path = tmp_path / "upload" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else content.save(path, **options)
    return path


def half(size=(40, 60), mode: str = "RGB") -> Image.Image:
    """Black above, white below."""
    picture = Image.new("RGB", size, "black")
    picture.paste("white", (0, size[1] // 2, *size))
    return picture.convert(mode)


def test_the_answers_are_those_of_the_views(context: PageContext, elastic: ElasticModel):
    plan = PrecisionPlan.uniform(2)
    shown = row(context, MODEL)
    answer, left, right = ask(context, plan, id=shown["items"][3]["id"])
    rows = answer.props["answers"]["rows"]
    classifier = context.held[MODEL]
    differing = 0
    for item in shown["items"]:
        number = int(item["id"].split(":")[1])
        pixels = classifier.transform(classifier.images.picture(number))[None]
        with torch.inference_mode():
            theirs = elastic.reference(pixels)[0].softmax(-1)
            ours = elastic.view(plan)(pixels)[0].softmax(-1)
        first, share, second, other = rows[item["id"]]
        assert (first, second) == (str(theirs.argmax().item()), str(ours.argmax().item()))
        assert (share, other) == (pytest.approx(theirs.max().item()), pytest.approx(ours.max().item()))
        differing += first != second
    assert differing, "at 2 bits a random model must say something else now and then"
    assert [len(side["bars"]) for side in (left, right)] == [5, 5]
    assert left["facts"][0][1] != right["facts"][0][1]
    assert all(side["facts"][1][1].endswith(" ms") for side in (left, right))
    assert json.dumps([answer.props["answers"], left, right], allow_nan=False)


def test_where_the_answers_differ_both_sides_say_so(context: PageContext):
    rows = ask(context, PrecisionPlan.uniform(2))[0].props["answers"]["rows"]
    changed = next(i for i, (theirs, _, ours, _) in rows.items() if theirs != ours)
    _, left, right = ask(context, PrecisionPlan.uniform(2), id=changed)
    assert left["parted"] and right["parted"] and rows[changed][0] in right["line"]
    assert right["line"].startswith("The answers differ: Full precision says")
    _, left, right = ask(context, PrecisionPlan.full(), id=changed)
    assert not right["parted"] and right["line"].startswith("Both sides say")


@pytest.mark.parametrize(
    "request_",
    [
        {"plan": None},
        {"plan": {"w": [4]}},
        {"plan": "<b>"},
        {"id": "own:0"},
        {"id": "example:999999"},
        {"id": "example:-1"},
        {"id": ["example:1"]},
        {"id": "example:" + "9" * 5000},
    ],
)
def test_a_request_that_fits_nothing_is_refused_in_words(context: PageContext, request_: dict):
    answer, left, _ = ask(context, PrecisionPlan.uniform(4), **request_)
    assert len(answer.props["answers"]["error"]) > 10 and answer.props["answers"]["turn"] == 1
    assert "<b>" not in answer.props["answers"]["error"] and "words" not in left


def test_an_unknown_menu_value_is_refused(context: PageContext):
    answer, *_ = ask(context, PrecisionPlan.uniform(4), choices=("W4", "nonsense"))
    assert "nonsense" in answer.props["answers"]["error"]


def upright(picture: Image.Image) -> bool:
    """Whether `half` is the right way up."""
    pixels = picture.convert("L").resize((8, 8))
    return pixels.getpixel((4, 1)) < 60 and pixels.getpixel((4, 6)) > 200


EXIF = Image.Exif()
EXIF[0x0112] = 6  # to be turned


@pytest.mark.parametrize(
    ("name", "picture", "options"),
    [
        ("plain.jpg", half(), {}),
        ("turned.jpg", half().rotate(90, expand=True), {"exif": EXIF}),
        ("cmyk.jpg", half(mode="CMYK"), {}),
        ("grey.png", half(mode="L"), {}),
        ("one-bit.png", half(mode="1"), {}),
        ("palette.png", half(mode="P"), {}),
        ("clear.png", half(mode="RGBA"), {}),
        ("clear-grey.png", half(mode="LA"), {}),
        ("sixteen.png", Image.frombytes("I;16", (8, 8), b"\0\0" * 32 + b"\xff\xff" * 32), {}),
        ("moving.gif", half(mode="P"), {"save_all": True, "append_images": [Image.new("P", (40, 60))]}),
        ("picture.webp", half(), {}),
        ("picture.tif", half(), {}),
        ("picture.bmp", half(), {}),
        ("wrong-name.txt", half(), {"format": "PNG"}),
        ("twelve-megapixels.jpg", half((4000, 3000)), {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_kind_of_picture_is_taken_upright_and_leaves_no_file(context, tmp_path, name, picture, options):
    path = saved(tmp_path, name, picture, **options)
    assert upright(read_upload(path, 3))
    shown = sent(context, path)
    assert shown["items"][0]["id"].startswith("own:") and shown["selected"] == shown["items"][0]["id"]
    assert shown["items"][0]["source"].startswith("data:image/") and shown["items"][0]["seen"]
    assert len(shown["items"][0]["source"]) < 60_000 and not path.parent.exists()
    answer, _, right = ask(context, PrecisionPlan.uniform(4), id=shown["selected"])
    assert shown["selected"] in answer.props["answers"]["rows"] and len(right["bars"]) == 5


def test_what_a_camera_wrote_into_a_picture_goes_no_further(context, tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    shown = sent(context, saved(tmp_path, "camera.jpg", half((400, 600)), exif=exif))
    assert "taken at home" not in str(shown)
    stored = Image.open(io.BytesIO(base64.b64decode(shown["items"][0]["source"].partition(",")[2])))
    assert not stored.getexif() and max(stored.size) == 256


def png(width: int, height: int) -> bytes:
    """A grey picture of any size, that unpacks to far more than it takes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * (width // 8 + 1) * 50)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    out = io.BytesIO()
    Image.effect_noise((300, 300), 90).save(out, "JPEG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no picture"),
        (b"I am a text\n" * 20, "no picture"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
        (jpeg()[:4000], "cut short"),
        (png(40_000, 40_000), "too many pixels"),
        (png(9_000, 9_000), "too many pixels"),
        (png(50, 80).replace(b"IHDR", b"IHDX"), "no picture"),
        (jpeg()[:200] + bytes(range(256)) * 20, "picture"),
        (b"\0" * (module.MOST_BYTES + 1), "at most 10"),
    ],
    ids=["empty", "text", "svg", "eps", "truncated", "bomb", "large", "broken", "scrambled", "heavy"],
)
def test_what_is_no_picture_is_refused_in_words_and_leaves_no_file(context, tmp_path, said, content, words):
    path = saved(tmp_path, "picture.png", content)
    assert sent(context, path) == {} and not path.parent.exists()
    assert len(said) == 1 and words in said[0] and str(tmp_path) not in said[0]
    assert context.album.of("a", MODEL) == []


@pytest.mark.parametrize("size", [(8000, 1), (65000, 1), (1, 20000)])
def test_a_strip_is_refused_before_it_is_scaled(context, tmp_path, said, size):
    assert sent(context, saved(tmp_path, "strip.png", Image.new("RGB", size))) == {}
    assert "a narrow strip; up to 100 times as long as wide is taken" in said[0]


def test_a_picture_is_read_and_prepared_in_a_turn_at_the_gate(context, tmp_path, monkeypatch):
    read, prepare, held = classify_answers.read_upload, context.held[MODEL].own, []
    turn = context.service.gate = threading.Lock()
    monkeypatch.setattr(
        classify_answers, "read_upload", lambda *given: (held.append(turn.locked()), read(*given))[1]
    )
    monkeypatch.setattr(
        context.held[MODEL], "own", lambda *given: (held.append(turn.locked()), prepare(*given))[1]
    )
    assert sent(context, saved(tmp_path, "mine.png", half()))
    assert held == [True, True] and not turn.locked()


def test_visitors_have_their_own_pictures_and_they_go_with_them(context, tmp_path):
    mine = sent(context, saved(tmp_path, "mine.png", half()), "a")["selected"]
    theirs = sent(context, saved(tmp_path, "theirs.png", half()), "b")["selected"]
    assert mine != theirs
    assert mine not in {item["id"] for item in row(context, MODEL, "b")["items"]}
    for identity, visitor in ((mine, "b"), (theirs, "a"), (mine, "")):
        assert "error" in ask(context, PrecisionPlan.uniform(4), visitor, id=identity)[0].props["answers"]
    ask(context, PrecisionPlan.uniform(4), "a", id=mine)
    classify_answers.forget(context, "a")
    assert "error" in ask(context, PrecisionPlan.uniform(4), "a", id=mine)[0].props["answers"]
    assert not any(key[1] == mine for key in context.held[MODEL]._answers)
    assert "error" not in ask(context, PrecisionPlan.uniform(4), "b", id=theirs)[0].props["answers"]


def test_the_visitors_own_pictures_are_a_point_of_the_plot(context, tmp_path):
    plan_json = context.service.plan_json_of(MODEL, PrecisionPlan.uniform(2))
    assert own_pictures(context, MODEL, plan_json, "a").props["own"] == []
    sent(context, saved(tmp_path, "mine.png", half()))
    (point,) = own_pictures(context, MODEL, plan_json, "a").props["own"]
    assert point["label"] == "Your 1 picture, W2" and point["kl"] >= 0
    assert point["same_top_low"] < point["same_top"] + 1e-9 and point["same_top"] in (0.0, 1.0)


def test_an_album_keeps_the_newest_of_each_and_not_everybody():
    album = Album(own=2, visitors=2)
    made = [Picture(str(i), "", "", torch.zeros(1)) for i in range(5)]
    assert [album.add("a", MODEL, picture) for picture in made[:3]] == [[], [], [made[0]]]
    assert album.of("a", MODEL) == [made[2], made[1]]
    album.add("b", MODEL, made[3])
    assert album.add("c", MODEL, made[4]) == made[1:3] and album.of("a", MODEL) == []


def test_visitors_at_once_get_the_answers_they_would_get_alone(context, elastic, tmp_path):
    plans = [PrecisionPlan.uniform(bits) for bits in (2, 3, 4, 5, 6, 7, 8, 16)]
    together: dict[int, dict] = {}

    def visit(i: int) -> None:
        for _ in range(3):
            together[i] = ask(context, plans[i], f"visitor {i}")[0].props["answers"]["rows"]

    threads = [threading.Thread(target=visit, args=(i,)) for i in range(len(plans))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    alone = desk_of(elastic, tmp_path)
    assert together == {i: ask(alone, plan)[0].props["answers"]["rows"] for i, plan in enumerate(plans)}


def test_accuracy_comes_in_with_its_interval_and_its_flips(context: PageContext):
    plan_json = context.service.plan_json_of(MODEL, PrecisionPlan.uniform(2))
    *_, state = context.service.measure(MODEL, PrecisionPlan.uniform(2), "a")
    flips, changed = results(context, MODEL, plan_json)
    estimate = state["estimate"]
    assert state["status"] == "done" and estimate["images"] == COUNT and state["unit"] == "pictures"
    assert estimate["top1_low"] < estimate["top1"] < estimate["top1_high"]
    assert flips["total"][1] == COUNT and flips["total"][4] == sum(r[4] for r in flips["rows"]) > 0
    assert len(changed["items"]) == min(classify_answers.CHANGED_SHOWN, flips["total"][4])
    answers = ask(context, PrecisionPlan.uniform(2), id=changed["items"][0]["id"])[0].props["answers"]["rows"]
    theirs, _, ours, _ = answers[changed["items"][0]["id"]]
    assert changed["items"][0]["words"] == f"{theirs} → {ours}"


def test_a_link_opens_the_page_with_its_picture_once(context: PageContext):
    last = row(context, MODEL)["items"][-1]["id"]
    query = {"p": "classify", "i": last.split(":")[1]}
    assert enter(context, query, MODEL, "a")["selected"] == last
    for other in (None, query | {"i": "x" * 999}, {"p": "chat", "i": "3"}):
        assert "items" not in enter(context, other, MODEL, "a")


def test_a_classifier_without_pictures_takes_those_of_visitors(tmp_path, monkeypatch):
    monkeypatch.setattr(classify_answers, "FETCH_S", 0.0)
    folder = save_tiny_vision("swin", tmp_path / "vit")
    context = desk_of(ElasticModel.open(folder, device="cpu", dtype=torch.float32), tmp_path)
    assert (
        row(context, MODEL)["items"] == []
        and "no labelled pictures lie beside this model" in context.service.opened[MODEL].conditions()
    )
    plan_json = context.service.plan_json_of(MODEL, PrecisionPlan.uniform(3))
    (state,) = context.service.measure(MODEL, PrecisionPlan.uniform(3), "a")
    flips, changed = results(context, MODEL, plan_json)
    assert state["status"] == "idle" and state["message"] == "no labelled pictures lie beside this model"
    assert not flips["rows"] and not changed["items"]
    shown = sent(context, saved(tmp_path, "mine.png", half()))
    answer, _, right = ask(context, PrecisionPlan.uniform(3), id=shown["selected"])
    assert set(answer.props["answers"]["rows"]) == {shown["selected"]} and right["state"] == "done"


def test_one_class_is_a_yes_or_no_and_not_always_certain(tmp_path):
    folder = save_tiny_vision("vit", tmp_path / "vit", num_classes=1)
    elastic = ElasticModel.open(folder, device="cpu", dtype=torch.float32)
    pixels = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    shares = Classifier(elastic, None)._shares(elastic.view(PrecisionPlan.full()), pixels)
    assert shares.shape == (4, 2) and len(shares[:, 0].unique()) == 4 and 0 < shares.min() <= shares.max() < 1


def test_features_without_classes_have_no_page(tmp_path):
    folder = save_tiny_vision("features", tmp_path / "vit")
    elastic = ElasticModel.open(folder, device="cpu", dtype=torch.float32)
    service = Service({MODEL: elastic}, Sample("", ""), Results.open(tmp_path / "r.sqlite"), tmp_path)
    assert classify.PAGE.models(service) == []


def test_a_file_that_did_not_arrive_is_said(tmp_path):
    with pytest.raises(ImageError, match="did not arrive"):
        read_upload(tmp_path / "gone.png", 3)


def test_which_region_decides_is_shown_at_the_plans_of_both_sides(context: PageContext):
    plan = context.service.plan_json_of(MODEL, PrecisionPlan.uniform(2))
    identity = row(context, MODEL)["items"][0]["id"]
    found = classify_answers.regions(context, MODEL, ("full precision", "equaliser"), identity, plan, "a")
    assert all(figure.startswith('<figure><img src="data:image/') for figure in found)
    _, left, _ = ask(context, PrecisionPlan.uniform(2), id=identity)
    assert f"What makes it {left['bars'][0][0]}:" in found[0]
    gone = classify_answers.regions(context, MODEL, ("full precision", "equaliser"), "own:0", plan, "a")
    assert gone == ("<p>This picture is not here any more: choose another one.</p>",) * 2
    none = classify_answers.regions(context, MODEL, ("full precision", "equaliser"), None, plan, "a")
    assert none == ("<p>Choose a picture first.</p>",) * 2


def test_regions_light_up_where_covering_changes_the_answer(elastic: ElasticModel, monkeypatch):
    classifier = Classifier(elastic, None)
    pixels = torch.ones(1, 16, 16)

    def shares(view, x):  # a model that looks at the upper left corner alone
        seen = x[:, 0, :4, :4].mean((1, 2)).clamp(0, 1)
        return torch.stack([seen, 1 - seen], 1)

    lit = []
    monkeypatch.setattr(classifier, "_shares", shares)
    monkeypatch.setattr(classifier, "_lit", lambda pixels, weight: lit.append(weight) or "")
    classifier.regions(PrecisionPlan.full(), Picture("a", "a", "", pixels), nullcontext)
    (weight,) = lit
    assert weight.argmax() == 0 and weight[4:, 4:].max() == 0 < weight[0, 0]


def test_photographs_of_packages_are_examples_where_nobody_labelled_any(elastic: ElasticModel, tmp_path):
    path = tmp_path / "a.png"
    half().save(path)
    entry = PhotoEntry("a", "Half", "CC0", "Somebody, from a package", InstalledFile("app", "", ""))
    classifier = Classifier(elastic, None, [(entry, path)])
    picture = classifier.example(0)
    assert classifier.examples == [0] and picture.label is None
    assert (picture.name, picture.note) == ("Half", "Somebody, from a package; CC0")
    with pytest.raises(ImageError):
        classifier.example(1)


def test_a_picture_outside_of_what_the_model_knows_is_hinted_at(context: PageContext, tmp_path):
    sent(context, saved(tmp_path, "a.png", half()))
    chosen = row(context, MODEL, "a")["items"][0]["id"]
    _, left, _ = ask(context, PrecisionPlan.uniform(8), id=chosen)
    assert left["note"].startswith("It was taught grey pictures of 16 x 16 pixels")
    labels = tuple(map(str, range(1000)))
    pixels = torch.zeros(3, 8, 8)
    words = classify_answers._outside(Picture("a", "a", "", pixels), labels, 0.1)
    assert words.startswith("Full precision itself gives no class more than 10 %")
    assert "however sure it sounds" in classify_answers._outside(Picture("a", "a", "", pixels), labels, 0.9)
