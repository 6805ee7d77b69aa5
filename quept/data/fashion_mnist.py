"""Fashion-MNIST: 60,000 training and 10,000 test pictures of clothes, 28 x 28 grey, ten classes (Xiao et al.
2017, arXiv 1708.07747; MIT licence).

`fashion_mnist("train")` finds the four original files in a folder that is given, in the cache, or where the
Debian package dataset-fashion-mnist puts them; where apt-get is at hand it downloads that package into the
cache without installing it. Every file is checked by sha256 before it is read.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from quept.zoo.cache import Progress, SourceError, cache_dir, locked, say, writing

CLASSES = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
DEBIAN = "dataset-fashion-mnist"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
FILES = {  # split -> (images, labels), each (name, sha256)
    "train": (
        (
            "train-images-idx3-ubyte.gz",
            "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7",
        ),
        (
            "train-labels-idx1-ubyte.gz",
            "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056",
        ),
    ),
    "test": (
        ("t10k-images-idx3-ubyte.gz", "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"),
        ("t10k-labels-idx1-ubyte.gz", "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"),
    ),
}


def fashion_mnist(
    split: str, folder: str | Path | None = None, progress: Progress | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 28, 28) uint8 and labels (N,) uint8 of "train" or "test". folder: where the four original
    .gz files lie, if they do. SourceError with a sentence when they cannot be had or are not the real
    ones."""
    where = _found(Path(folder) if folder else None, progress)
    images, labels = (_idx(where / name, sha256) for name, sha256 in FILES[split])
    return images, labels


def _found(folder: Path | None, progress: Progress | None) -> Path:
    names = [name for pair in FILES.values() for name, _ in pair]
    cached = cache_dir() / "files" / DEBIAN
    for place in (folder,) if folder else (cached, INSTALLED):
        if all((place / name).is_file() for name in names):
            return place
    if folder:
        raise SourceError(f"{folder} does not hold the four files of Fashion-MNIST: {', '.join(names)}")
    with locked(DEBIAN, progress):
        if not all((cached / name).is_file() for name in names):
            _download(cached, names, progress)
    return cached


def _download(target: Path, names: list[str], progress: Progress | None) -> None:
    """The files out of the Debian package, without installing it."""
    ask = f"give a folder that holds {', '.join(names)} (github.com/zalandoresearch/fashion-mnist)"
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise SourceError(f"Fashion-MNIST is not here, and this system has no Debian packages: {ask}")
    say(progress, f"downloading the Debian package {DEBIAN} (31 MB)")
    with tempfile.TemporaryDirectory() as scratch:
        fetched = subprocess.run(
            ["apt-get", "download", DEBIAN], cwd=scratch, capture_output=True, text=True, check=False
        )
        packages = list(Path(scratch).glob("*.deb"))
        if not packages:
            said = (fetched.stderr.strip().splitlines() or ["nothing"])[-1]
            raise SourceError(f"the Debian package {DEBIAN} could not be had ({said}): {ask}")
        subprocess.run(["dpkg-deb", "-x", str(packages[0]), scratch], check=True)
        with writing():
            target.mkdir(parents=True, exist_ok=True)
            for name in names:
                shutil.copyfile(Path(scratch) / INSTALLED.relative_to("/") / name, target / name)


def _idx(path: Path, sha256: str) -> np.ndarray:
    """An IDX file of bytes: 4 bytes of magic (0, 0, 8, dimensions), each dimension as a big-endian uint32,
    the values."""
    packed = path.read_bytes()
    if hashlib.sha256(packed).hexdigest() != sha256:
        raise SourceError(f"{path} is not the file that Fashion-MNIST was published with: delete it")
    raw = gzip.decompress(packed)
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)
