"""A terminal that lacks a character gets another one, and the whole result."""

import io
import sys

import pytest

from quept.cli import main
from quept.cli.shared import print_table
from quept.cli.terminal import forgiving


@pytest.fixture
def terminal(monkeypatch):
    """encoding -> a terminal of it as stdout and stderr; `terminal.shown()` is what it shows."""

    def of(encoding: str) -> io.TextIOWrapper:
        screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
        screen.shown = lambda: screen.buffer.getvalue().decode(encoding)
        monkeypatch.setattr(sys, "stdout", screen)
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    return of


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437", "cp932", "gbk", "latin-1", "utf-8"])
def test_every_encoding_gets_a_whole_table_and_the_whole_answer(terminal, encoding):
    screen = terminal(encoding)
    forgiving()
    print_table(("name", "KL"), [("Zoë’s \U0001f999 …", "0.0123 ± 0.0002"), ("你好 ½", "−1 → 2")])
    print("reading \udce9.txt", file=sys.stderr)  # a file name that is not UTF-8
    lines = screen.shown().splitlines()
    assert len(lines) == 4 and "0.0123" in lines[1] and "0.0002" in lines[1] and "\\udce9" in lines[3]
    if encoding == "ascii":
        assert lines[1].split() == ["Zoe's", "\\U0001f999", "...", "0.0123", "+-", "0.0002"]
        assert lines[2].split() == ["\\u4f60\\u597d", "\\xbd", "-1", "->", "2"]


@pytest.mark.parametrize(
    "command", [["models"], ["evaluate", "nicht-da-é-😀"], ["generate", "nowhere/at/all", "é"]]
)
def test_commands_and_their_refusals_come_out_whole_on_a_narrow_terminal(terminal, command):
    screen = terminal("ascii")
    code = main(command)
    assert "codec" not in screen.shown()
    assert "smollm2-135m" in screen.shown() and code == (0 if command == ["models"] else 1)
