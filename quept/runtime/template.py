"""A model's chat template, run within bounds: it is a program that came with the weights, from anybody.

transformers runs it in jinja2's sandbox, which keeps it from the machine and not from time and memory:
`{{ 'a' * 10**10 }}` takes 10 GB. Here a process of its own runs it (`template_process`), begun with the first
conversation and kept: it is ended after SECONDS and gets, where the system can, MEMORY bytes beyond what it
begins with. Whatever goes wrong is a TemplateFailure, one sentence.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from transformers import PreTrainedTokenizerBase, ProcessorMixin

SECONDS = 5.0
MEMORY = 1_000_000_000
LONGEST = 16_000_000  # characters of what it makes


class TemplateFailure(ValueError):
    """A chat template that cannot be run on a conversation; the message is a sentence."""


def rendered(
    owner: PreTrainedTokenizerBase | ProcessorMixin, messages: Sequence[Mapping], asking: bool
) -> str:
    """The conversation as the template of a tokenizer or processor writes it; `asking` for an answer."""
    templates = owner.chat_template
    template = templates.get("default") if isinstance(templates, dict) else templates
    if template is None:
        raise TemplateFailure(f"This model has chat templates for {', '.join(templates)} only, none to chat.")
    words = {
        name: list(map(str, token)) if isinstance(token, list | tuple) else str(token)
        for name, token in getattr(owner, "tokenizer", owner).special_tokens_map.items()
    }
    job = {"chat_template": template, "conversations": [list(messages)], "add_generation_prompt": asking}
    answer = _PROCESS.ask(words | job)
    if "text" not in answer:
        raise TemplateFailure(f"This model's chat template {answer['why']}")
    return answer["text"]


def begin() -> None:
    """Starts the process behind `rendered` in the background, before it is needed: that takes a second."""
    threading.Thread(target=_PROCESS.begin, daemon=True).start()


class _Process:
    """The process behind `rendered`: one job at a time, begun again after one that did not end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None

    def begin(self) -> None:
        with self._lock, suppress(TemplateFailure):  # whoever needs it is told
            self._ready()

    def _ready(self) -> subprocess.Popen:
        """It, begun where it is not running."""
        if self._process is None or self._process.poll() is not None:
            self._process = _begun()
        return self._process

    def ask(self, job: Mapping) -> dict[str, str]:
        with self._lock:
            process = self._ready()
            late = threading.Event()
            timer = threading.Timer(SECONDS, lambda: (late.set(), process.kill()))
            timer.start()
            try:
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()
                line = process.stdout.readline()
            except OSError:
                line = b""
            finally:
                timer.cancel()
            if line.endswith(b"\n"):
                return json.loads(line)
            process.kill()
            process.wait()
            took = f"takes more than {SECONDS:.0f} s."
            return {"why": took if late.is_set() else "wants too much: a loop or text without end."}


def _begun() -> subprocess.Popen:
    """A process that has said that it is ready."""
    program = [sys.executable, "-P", Path(__file__).with_name("template_process.py"), MEMORY, LONGEST]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    try:
        process = subprocess.Popen(list(map(str, program)), **pipes)
    except OSError as error:
        raise TemplateFailure(f"This model's chat template cannot be run: {error}.") from error
    if not process.stdout.readline():
        raise TemplateFailure("This model's chat template cannot be run: its process does not start.")
    return process


_PROCESS = _Process()
