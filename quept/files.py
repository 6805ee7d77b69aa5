"""Files that are whole or not there, that say what they are, and that a killed run can go on from.

write_atomic, write_tensors, replacing   a temporary name in the same folder, mode 0644, then a rename
replacing_folder                         the same for a folder
save_tensors, tensors_header             the bytes of a safetensors file, the same for the same tensors;
stream_tensors                           of tensors that are made one after the other
read_json, parse_json                    one JSON object with "format" and a version, refused with a sentence
read_text                                a text in the encoding that it says, and nothing that is none
read_lines, append_line, resume_lines    JSON lines; the line that a killed run was writing is left out

What cannot be written raises FileError, one sentence that names the file and says what to do. A reader sees
the old file or the new one, and nothing else is left in the folder unless the process is killed.
"""

from __future__ import annotations

import codecs
import errno
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_WAY_OUT = {
    errno.ENOSPC: "the disk is full: make room, or choose another place",
    errno.EDQUOT: "your quota is used up: make room, or choose another place",
    errno.EACCES: "permission denied: choose a folder that you can write to",
    errno.EPERM: "permission denied: choose a folder that you can write to",
    errno.EROFS: "the disk is read-only: choose another place",
    errno.EISDIR: "there is a folder of that name: choose another name",
    errno.ENOTDIR: "a part of that path is a file: choose another place",
    errno.EEXIST: "there are other files of that name: choose another name",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}

_DTYPES = {  # torch's name -> that of safetensors, and bytes of an element
    **{f"float{bits}": (f"F{bits}", bits // 8) for bits in (16, 32, 64)},
    **{f"int{bits}": (f"I{bits}", bits // 8) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (f"U{bits}", bits // 8) for bits in (8, 16, 32, 64)},
    "bfloat16": ("BF16", 2),
    "bool": ("BOOL", 1),
}

_MARKS = (  # the longer ones first: that of UTF-32 begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")  # none that marks lines, pages or colours


class FileError(OSError):
    """A file that cannot be written. The message is one sentence: which file, why, and what to do."""

    def __init__(self, path: str | Path, cause: Exception):
        found = re.search(r"os error (\d+)", str(cause))  # as safetensors says it
        code = getattr(cause, "errno", None) or (int(found[1]) if found else errno.EIO)
        reason = _WAY_OUT.get(code) or f"{os.strerror(code)}: choose another place"
        super().__init__(code, f"cannot write {path}: {reason}", str(path))

    def __str__(self) -> str:
        return self.strerror


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turns whatever keeps `path` from being written into a FileError."""
    from safetensors import SafetensorError

    try:
        yield
    except FileError:
        raise
    except (OSError, SafetensorError) as error:
        raise FileError(path, error) from error


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary file beside `path` to fill, renamed to it at the end of the block; an exception there
    removes it and leaves `path` as it was. Missing folders are made."""
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        os.close(handle)
        try:
            yield Path(name)
            os.chmod(name, 0o644)  # mkstemp makes it readable to nobody else
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise


@contextmanager
def replacing_folder(path: str | Path, mark: str) -> Iterator[Path]:
    """Gives a temporary folder beside `path` to fill, renamed to it at the end of the block; an exception
    there removes it and leaves `path` as it was. A folder that is there already is replaced if it is empty or
    holds a file named `mark`, and is otherwise somebody's: FileError."""
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not (path / mark).is_file() and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=".", suffix=".tmp"))
        try:
            yield temporary
            os.chmod(temporary, 0o755)  # mkdtemp makes it readable to nobody else
            if path.exists():
                older = temporary.with_suffix(".old")
                os.replace(path, older)
                os.replace(temporary, path)
                shutil.rmtree(older, ignore_errors=True)
            else:
                os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def write_atomic(path: str | Path, content: bytes | str) -> int:
    """Writes a file, text as UTF-8; returns its bytes."""
    content = content.encode() if isinstance(content, str) else content
    with replacing(path) as temporary:
        return temporary.write_bytes(content)


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file; it appears whole or not at all."""
    with replacing(path) as temporary:
        save_tensors(temporary, tensors, metadata)


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    room: int = 0,
) -> None:
    """Writes a safetensors file, the same bytes for the same tensors: safetensors itself orders the metadata
    as a hash does. room: bytes that its header takes at least, filled up with spaces."""
    kinds = {name: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in tensors.items()}
    stream_tensors(path, kinds, tensors.__getitem__, metadata, room)


def stream_tensors(
    path: str | Path,
    kinds: Mapping[str, tuple[str, tuple[int, ...]]],
    tensor: Callable[[str], torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    room: int = 0,
) -> None:
    """Writes what `save_tensors` does, without all of it in memory: `tensor` gives each by its name, once.
    kinds: `{name: (dtype, shape)}`."""
    import torch

    with open(path, "wb") as file:
        file.write(tensors_header(kinds, metadata, room))
        for name in _laid_out(kinds):
            flat = tensor(name).detach().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def tensors_header(
    kinds: Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str] | None = None,
    room: int = 0,
) -> bytes:
    """Returns how a safetensors file of these tensors begins, its length included. kinds: `{name: (dtype,
    shape)}`."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in _laid_out(kinds):
        dtype, shape = kinds[name]
        code, width = _DTYPES[dtype]
        begin, end = end, end + width * math.prod(shape)
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(max(room, -(-len(text) // 8) * 8))
    return len(text).to_bytes(8, "little") + text


def _laid_out(kinds: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[str]:
    """Names in the order of the file: wide elements first, so that each lies at a multiple of its width."""
    return sorted(kinds, key=lambda name: (-_DTYPES[kinds[name][0]][1], name))


def parse_json(
    text: str | bytes,
    what: str,
    format: str,
    newest: int,
    error: Callable[[str], Exception] = ValueError,
    key: str = "version",
    **options: Any,
) -> dict[str, Any]:
    """Returns the JSON object in `text`, whose "format" is `format` and whose `key` is at most `newest`.

    what: the kind of file with its article, for the sentence that `error` is raised with. options: of
    `json.loads`."""
    try:
        data = json.loads(text, **options)
    except (ValueError, RecursionError):
        raise error(f"this file is not {what}: it is not valid JSON") from None
    if not isinstance(data, dict) or data.get("format") != format:
        raise error(f'this file is not {what}: {what} is a JSON object with "format": "{format}"')
    version = data.get(key)
    if type(version) is not int or version < 1:
        raise error(f"this file is not {what}: {key} must be a whole number from 1, not {version!r:.40}")
    if version > newest:
        name = key.replace("_", " ")
        raise error(f"this file has {name} {version}; this program reads up to {newest}: update it")
    return data


def read_json(
    path: str | Path,
    what: str,
    format: str,
    newest: int,
    error: Callable[[str], Exception] = ValueError,
    key: str = "version",
) -> dict[str, Any]:
    """Returns what `parse_json` makes of a file; the sentence of an error names it."""
    return parse_json(
        read_bytes(path, what, error), what, format, newest, lambda said: error(f"{path}: {said}"), key
    )


def read_bytes(path: str | Path, what: str, error: Callable[[str], Exception] = ValueError) -> bytes:
    """Returns the content of a file; `error` with a sentence where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as cause:  # ValueError: a name with a null byte
        reason = getattr(cause, "strerror", None) or "that is not the name of a file"
        raise error(f"cannot read {what} from {path}: {reason}") from None


def read_text(path: str | Path, what: str = "a text", error: Callable[[str], Exception] = ValueError) -> str:
    """Returns the text of a file, in UTF-8 or what its byte order mark says, without that mark and with line
    ends as one character; `error` with a sentence for a file that is no text."""
    content = read_bytes(path, what, error)
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding).lstrip("\ufeff")  # files put together have the mark twice
    except UnicodeDecodeError as cause:
        named = encoding.removesuffix("-sig").upper()
        at = f"from byte {cause.start:,} on"
        raise error(f"{path} is not text in {named} {at}: save it as UTF-8, if it is a text") from None
    odd = len(_CONTROLS.findall(text))
    if "\0" in text or odd > len(text) / 1000:
        raise error(
            f"{path} is not a text, it holds {odd:,} control characters: save it as UTF-8, if it is one"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Returns the objects of a file of JSON lines, without lines that are none; [] where there is no file."""
    with suppress(FileNotFoundError):
        lines = Path(path).read_text("utf-8", errors="replace").splitlines()
        return [row for row in map(_parsed, lines) if isinstance(row, dict)]
    return []


def append_line(path: str | Path, row: Mapping[str, Any]) -> None:
    """Appends one JSON line."""
    with writing(path), Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def resume_lines(path: str | Path, head: Mapping[str, Any], error: Callable[[str], Exception]) -> list[dict]:
    """Returns the rows after the first one, which must be `head` (`error` with a sentence if it is not).
    A new file is begun with it; from one that was cut the broken line is removed."""
    head, rows = json.loads(json.dumps(head)), read_lines(path)
    if rows and rows[0] != head:
        raise error(f"{path} holds another measurement; delete it to start afresh, or choose another file")
    if not rows or not Path(path).read_bytes().endswith(b"\n"):
        write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows or [head]))
    return rows[1:]


def dtype_name(dtype: torch.dtype) -> str:
    """Returns "float32" for torch.float32, as keys of results and the command line spell it."""
    return str(dtype).removeprefix("torch.")


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
