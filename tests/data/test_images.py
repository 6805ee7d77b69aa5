"""Any picture becomes the model's input as timm would make it; a folder is read the way people lay it out."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import create_transform

from quept.data.images import transform_of
from quept.evaluate import ImageError, image_folder, read_picture, save_images, stored_images
from quept.models import Vision
from tests.training import script

NAMES = ("n01", "n02", "n03")
LABELS = ("tench, Tinca tinca", "crane", "crane")
RED, BLUE = (220, 30, 40), (20, 40, 200)


def vision_of(channels=3, size=8, names=NAMES, labels=LABELS):
    data = {"input_size": (channels, size, size), "interpolation": "bicubic", "crop_pct": 0.9}
    data |= {"mean": (0.5,) * channels, "std": (0.25,) * channels, "crop_mode": "center"}
    return Vision({}, data, labels, names)


def saved(path, picture=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (picture or Image.new("RGB", (12, 10), RED)).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two pictures of the first class, one of each other, and things that are no pictures."""
    root = tmp_path / "data"
    for name in ("n01/a.JPEG", "n01/b.png", "n02/c.webp", "n03/deep/d.bmp"):
        saved(root / name)
    (root / "n02" / "notes.txt").write_text("not a picture")
    (root / ".hidden").mkdir()
    return root


# one picture


def two_halves(mode="RGB"):
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (40, 20), RED)
    picture.paste(BLUE, (20, 0, 40, 20))
    return picture.convert(mode)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("RGB", "png"), ("L", "png"), ("1", "png"), ("P", "gif"), ("RGBA", "webp"), ("LA", "png"),
     ("CMYK", "jpeg"), ("YCbCr", "jpeg"), ("CMYK", "tiff"), ("RGB", "ppm"), ("RGB", "mpo")],
)  # fmt: skip
def test_every_mode_becomes_the_models_channels(tmp_path, mode, suffix, channels):
    path = saved(tmp_path / f"x.{suffix}", two_halves(mode))
    read = read_picture(path, channels)
    assert read.mode == ("L" if channels == 1 else "RGB") and read.size == (40, 20)
    left, right = read.getpixel((4, 10)), read.getpixel((35, 10))
    if mode in ("RGB", "RGBA", "P", "YCbCr", "CMYK") and channels == 3:
        assert left[0] > left[2] + 90 and right[2] > right[0] + 90, "colours survive"
    elif mode != "1":
        assert left != right


def test_a_picture_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    read = read_picture(saved(tmp_path / "x.jpg", two_halves(), exif=exif, quality=95))
    assert read.size == (20, 40) and read.getpixel((10, 4))[0] > 150 and read.getpixel((10, 35))[2] > 150


def test_transparent_parts_are_white(tmp_path):
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert read_picture(saved(tmp_path / "x.png", picture)).getpixel((1, 1)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 3)
    path = saved(tmp_path / "y.gif", palette, transparency=3)
    assert read_picture(path, 1).getpixel((1, 1)) == 255


def test_sixteen_bit_grey_is_scaled_not_cut_off(tmp_path):
    ramp = Image.new("I;16", (4, 1))
    ramp.putdata([0, 256 * 64, 256 * 128, 65535])
    for channels, wrap in ((1, int), (3, lambda v: (v,) * 3)):
        read = read_picture(saved(tmp_path / "x.png", ramp), channels)
        assert [read.getpixel((i, 0)) for i in range(4)] == [wrap(v) for v in (0, 64, 128, 255)]


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (6, 6), colour) for colour in (RED, BLUE)]
    path = saved(tmp_path / "x.gif", frames[0], save_all=True, append_images=frames[1:])
    assert read_picture(path).getpixel((2, 2))[0] > 150


def test_an_open_file_is_read_too():
    buffer = io.BytesIO()
    two_halves().save(buffer, "PNG")
    buffer.seek(0)
    assert read_picture(buffer).size == (40, 20)


def test_what_is_no_picture_of_pixels_is_refused_in_words(tmp_path, monkeypatch):
    whole = saved(tmp_path / "whole.png", two_halves())
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(saved(tmp_path / "whole.jpg", two_halves().resize((200, 100))).read_bytes()[:900])
    eps, svg, empty = tmp_path / "x.eps", tmp_path / "x.svg", tmp_path / "x.png"
    two_halves().save(eps)
    svg.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    empty.touch()
    for path in (cut, eps, svg, empty, tmp_path / "none.png", tmp_path):
        with pytest.raises(ImageError, match=f"{path.name} cannot be read"):
            read_picture(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(ImageError, match="exceeds limit"):
        read_picture(whole)


# odd files


def test_a_damaged_exif_block_costs_the_turn_and_not_the_picture(tmp_path):
    """A PNG whose eXIf chunk is no EXIF, with its right checksum."""
    whole = saved(tmp_path / "x.png", two_halves()).read_bytes()
    content = b"eXIf" + b"\x01broken"
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    (tmp_path / "x.png").write_bytes(whole[:33] + chunk + whole[33:])  # behind the header chunk
    read = read_picture(tmp_path / "x.png")
    assert read.tobytes() == two_halves().tobytes()
    jpeg = saved(tmp_path / "x.jpg", two_halves(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xffbroken")
    assert read_picture(jpeg).size == (40, 20)


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_orientation_sets_the_picture_upright(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    path = saved(tmp_path / "x.png", two_halves(), exif=exif)
    with Image.open(path) as file:
        assert read_picture(path).tobytes() == ImageOps.exif_transpose(file).tobytes()


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("float32", 0, 1), ("float32", -3, 900), ("int32", -9, 90_000)]
)
def test_grey_numbers_of_no_fixed_range_are_scaled_by_their_own(tmp_path, kind, low, high):
    ramp = np.linspace(low, high, 8).astype(kind)[None]
    path = saved(tmp_path / "x.tiff", Image.fromarray(ramp))
    expected = np.linspace(0, 255, 8)
    np.testing.assert_allclose(np.asarray(read_picture(path, 1))[0], expected, atol=1.01)
    np.testing.assert_allclose(np.asarray(read_picture(path, 3))[0, :, 1], expected, atol=1.01)


def test_numbers_that_are_none_and_flat_pictures_are_read_too(tmp_path):
    odd = np.array([[0, 1, np.nan, np.inf, -np.inf]], np.float32)
    assert np.asarray(read_picture(saved(tmp_path / "x.tiff", Image.fromarray(odd)), 1))[0].tolist() == [
        0, 255, 0, 255, 0
    ]  # fmt: skip
    for flat in (np.full((2, 2), 7.0, np.float32), np.full((2, 2), np.nan, np.float32)):
        assert not np.asarray(read_picture(saved(tmp_path / "y.tiff", Image.fromarray(flat)), 1)).any()


def test_sixteen_bits_keep_their_scale_in_every_format_and_their_transparency(tmp_path):
    ramp = Image.fromarray(np.array([[0, 256 * 64, 256 * 128, 65535]], np.uint16))
    for suffix in ("png", "tiff", "pgm"):
        read = read_picture(saved(tmp_path / f"x.{suffix}", ramp), 1)
        assert np.asarray(read)[0].tolist() == [0, 64, 128, 255], suffix
    clear = read_picture(saved(tmp_path / "y.png", ramp, transparency=256 * 64), 1)
    assert np.asarray(clear)[0].tolist() == [0, 255, 128, 255]


@pytest.mark.parametrize("size", [(8000, 1), (65000, 1), (1, 30000), (3000, 20)])
def test_a_strip_is_refused_before_anything_is_scaled(tmp_path, size):
    with pytest.raises(ImageError, match=rf"a strip of {size[0]:,} x {size[1]:,} pixels.*cut out a part"):
        read_picture(saved(tmp_path / "x.png", Image.new("L", size)))
    with pytest.raises(ImageError, match="a strip"):
        transform_of(vision_of(size=224))(Image.new("RGB", size))


def test_how_long_a_strip_may_be_follows_from_what_it_is_scaled_to():
    assert transform_of(vision_of(size=224))(Image.new("RGB", (1000, 10))).shape == (3, 224, 224)
    with pytest.raises(ImageError, match="at most 40 times"):  # 50 million pixels
        transform_of(vision_of(size=1000))(Image.new("RGB", (500, 10)))


def test_a_strip_in_a_folder_is_left_out_and_counted(folder):
    saved(folder / "n01" / "strip.png", Image.new("RGB", (9000, 1)))
    batch = image_folder(folder, vision_of()).batch(0)
    assert (len(batch), batch.skipped) == (4, 1)


# a folder


def test_a_folder_for_each_class_is_read_in_a_fixed_shuffled_order(folder):
    images = image_folder(folder, vision_of())
    assert sorted(images.labels.tolist()) == [0, 0, 1, 2] and images.name == "data"
    again = image_folder(folder, vision_of())
    assert again.id == images.id and torch.equal(again.labels, images.labels)
    few = image_folder(folder, vision_of(), count=2)
    assert torch.equal(few.labels, images.labels[:2]) and few.id != images.id


def test_pixels_are_those_of_timms_transform(folder):
    vision = vision_of()
    batch = image_folder(folder, vision).batch(0)
    expected = create_transform(**vision.data, is_training=False)(Image.open(folder / "n01" / "b.png"))
    assert batch.pixels.shape == (4, 3, 8, 8) and batch.pixels.dtype == torch.float32
    torch.testing.assert_close(batch.pixels.mean(0), expected, atol=0.1, rtol=0)
    assert any(torch.equal(x, expected) for x in batch.pixels)


def test_a_broken_picture_is_left_out_and_counted(folder):
    (folder / "n01" / "a.JPEG").write_bytes(b"no picture")
    images = image_folder(folder, vision_of())
    batch = images.batch(0)
    assert (len(images), len(batch), batch.skipped) == (4, 3, 1)
    assert torch.equal(batch.labels, images.labels[batch.rows]) and sorted(batch.labels.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("names", [("n01", "n02"), ("tench", "N02"), ("0", "1"), ("Tench, tinca TINCA", "1")])
def test_classes_go_by_the_name_of_the_data_set_by_label_or_by_number(tmp_path, names):
    for name in names:
        saved(tmp_path / name / "x.png")
    assert sorted(image_folder(tmp_path, vision_of()).labels.tolist()) == [0, 1]


def test_as_many_folders_as_classes_are_the_classes_in_order(tmp_path):
    for name in ("apples", "bears", "cars"):
        saved(tmp_path / name / f"{name}.png")
    assert sorted(image_folder(tmp_path, vision_of()).labels.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("names", [("n01", "crane"), ("apples", "bears"), ("7",), ("n01", "n02", "bears")])
def test_a_folder_that_is_no_class_or_two_is_refused(tmp_path, names):
    for name in names:
        saved(tmp_path / name / "x.png")
    with pytest.raises(
        ImageError, match=f"{names[-1] if 'n01' in names else names[0]}.*no class of this model"
    ):
        image_folder(tmp_path, vision_of())


@pytest.mark.parametrize("mark", ["\t", ",", "   "])
def test_a_file_of_labels_tells_pictures_and_folders(folder, mark):
    for i in range(3):
        saved(folder / f"val_{i}.png")
    lines = [
        "# path and class",
        f"val_0.png{mark}n02",
        f"val_2.png{mark}tench, Tinca tinca",
        "",
        f"n01{mark}2",
    ]
    labels = folder / "val.txt"
    labels.write_text("\n".join(lines))
    assert sorted(image_folder(folder, vision_of(), labels).labels.tolist()) == [0, 1, 2, 2]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a.png", "not a path and a class"),
        ("n01 zebra", "'n01 zebra' is not a path and"),
        ("zzz 1", "no 'zzz'"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(folder, line, words):
    (folder / "labels").write_text(f"n01 0\n{line}\n")
    with pytest.raises(ImageError, match=f"line 2: .*{words}"):
        image_folder(folder, vision_of(), folder / "labels")


def test_folders_without_pictures_or_a_model_without_classes_are_refused(tmp_path, folder):
    with pytest.raises(ImageError, match="holds no pictures"):
        image_folder(tmp_path / "data" / ".hidden", vision_of())
    with pytest.raises(ImageError, match="there is no folder"):
        image_folder(tmp_path / "nowhere", vision_of())
    with pytest.raises(ImageError, match="no classification head"):
        image_folder(folder, vision_of(names=(), labels=()))


def test_the_id_follows_pictures_labels_and_preprocessing(folder):
    ids = {image_folder(folder, vision_of()).id, image_folder(folder, vision_of(size=16)).id}
    (folder / "n01" / "b.png").rename(folder / "n02" / "b.png")
    ids.add(image_folder(folder, vision_of()).id)
    saved(folder / "n02" / "b.png", Image.new("RGB", (99, 98)))
    ids.add(image_folder(folder, vision_of()).id)
    assert len(ids) == 4


# one file


def test_stored_pictures_come_back_in_their_order(tmp_path):
    pixels = torch.randint(0, 256, (5, 28, 28), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 1, 0])
    save_images(tmp_path / "x.safetensors", "clothes", pixels, labels, 4)
    images = stored_images(tmp_path / "x.safetensors", vision_of(1, 28))
    assert images.name == "clothes" and torch.equal(images.labels, labels[:4])
    assert torch.equal(images.batch(0).labels, labels[:4])
    assert stored_images(tmp_path / "x.safetensors", vision_of(1, 28), 2).id != images.id
    assert stored_images(tmp_path / "x.safetensors", vision_of(3, 28)).batch(0).pixels.shape[1] == 3


def test_the_built_in_model_sees_what_it_was_trained_on(tmp_path):
    fashion_vit = script("fashion-vit")
    untrained = fashion_vit.create()
    pixels, labels = torch.randint(0, 256, (3, 28, 28), dtype=torch.uint8), torch.tensor([0, 1, 9])
    fashion_vit.write(untrained, tmp_path, fashion_vit.CYCLES, (pixels, labels))
    save_images(tmp_path / "images.safetensors", "clothes", pixels, labels)
    from quept.models import load

    vision = load(tmp_path).vision
    batch = stored_images(vision.images, vision).batch(0)
    assert torch.equal(batch.pixels, fashion_vit._normalised(pixels))


def test_a_file_that_holds_none_is_refused_in_words(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(ImageError, match="cannot be read"):
        stored_images(path, vision_of())
    save_images(path, "x", torch.zeros(2, 8, 8, dtype=torch.uint8), torch.tensor([0, 7]))
    with pytest.raises(ImageError, match="no class of this model"):
        stored_images(path, vision_of())
    save_images(path, "x", torch.zeros(2, 8, 8, dtype=torch.uint8), torch.tensor([0]))
    with pytest.raises(ImageError, match="damaged"):
        stored_images(path, vision_of())
    path.write_bytes(json.dumps({}).encode())
    with pytest.raises(ImageError, match="cannot be read"):
        stored_images(path, vision_of())
