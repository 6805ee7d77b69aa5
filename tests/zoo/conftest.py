"""A package index of our own: wheels made in the test, a folder where pip finds them, and an empty cache."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from quept.zoo import WheelFile


class Index:
    """A folder of wheels that pip is told to look in, and nowhere else."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, package: str, version: str, files: dict[str, bytes]) -> dict[str, WheelFile]:
        """Make a wheel holding `files`; returns how the zoo would name each of them."""
        info = f"{package.replace('-', '_')}-{version}.dist-info"
        metadata = (
            f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\nRequires-Dist: not-to-be-had\n"
        )
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        members = files | {f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": tags.encode()}
        record = [f"{name},sha256={_urlsafe(content)},{len(content)}" for name, content in members.items()]
        members[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]).encode()
        with zipfile.ZipFile(self.path(package, version), "w", zipfile.ZIP_DEFLATED) as wheel:
            for name, content in members.items():
                wheel.writestr(name, content)
        return {
            name: WheelFile(package, version, name, hashlib.sha256(content).hexdigest(), len(content))
            for name, content in files.items()
        }

    def path(self, package: str, version: str) -> Path:
        return self.folder / f"{package.replace('-', '_')}-{version}-py3-none-any.whl"

    def vanish(self) -> None:
        """Nothing is to be had from the index any more."""
        for wheel in self.folder.glob("*.whl"):
            wheel.unlink()


def _urlsafe(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache, also for the processes that a test starts."""
    monkeypatch.setenv("QUEPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, monkeypatch, cache) -> Index:
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return Index(folder)
