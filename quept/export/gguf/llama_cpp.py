"""A GGUF file run by llama.cpp in this process, through the package xllamacpp.

    with LlamaCpp("w4.gguf") as llama:
        for piece in llama.answer([{"role": "user", "content": "Why is the sky blue?"}]): ...
        llama.speed()

llama.cpp rounds the activations of every product with a quantized weight to 8 bits, in blocks of 32 or 256:
its logits are not those of the plan's view, and `log_probabilities` is there to say by how much. It listens
on a port of this machine alone, for its tokenizer; whoever asks needs a key that is drawn for each.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from torch import Tensor

QUIET = 0  # of llama.cpp's verbosity: errors alone
PROMPT_TOKENS, ANSWER_TOKENS = 128, 64  # of `speed`


class LlamaError(RuntimeError):
    """A file that llama.cpp does not run; the message says why."""


@dataclass(frozen=True)
class Speed:
    """Tokens a second as llama.cpp counts them: of reading a prompt of so many tokens, and of writing so many
    behind it, one at a time. threads: that it used."""

    read: float
    write: float
    prompt: int
    answer: int
    threads: int


def missing() -> str:
    """Returns what has to be installed before llama.cpp runs here, as a sentence; "" if nothing has."""
    if find_spec("xllamacpp"):
        return ""
    return (
        "llama.cpp runs here with the package xllamacpp, of which there are wheels for x86-64 and arm64: "
        "pip install 'quept[llama-cpp]'"
    )


class LlamaCpp:
    """A model of llama.cpp: load it, ask it, `close` it. One question at a time.

    context: tokens that it holds; threads: of the processor, torch's number unless given; device layers are
    left to llama.cpp. LlamaError where the package is missing or llama.cpp refuses the file."""

    def __init__(self, path: str | Path, context: int = 2048, threads: int | None = None):
        if lack := missing():
            raise LlamaError(lack)
        if not Path(path).is_file():
            raise LlamaError(f"there is no file {path}")
        import xllamacpp

        self.threads = threads or torch.get_num_threads()
        self._key = secrets.token_urlsafe()
        settings = xllamacpp.CommonParams()
        settings.model.path = os.fspath(path)
        settings.n_ctx, settings.n_parallel = context, 1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = self.threads
        settings.api_keys, settings.verbosity = [self._key], QUIET
        settings.warmup = settings.ui = settings.fit_params = False
        settings.cache_ram_mib = 0
        try:
            self._server = xllamacpp.Server(settings)
        except (RuntimeError, ValueError) as error:
            raise LlamaError(f"llama.cpp does not load {path}: {error}") from None
        self.context: int = self._ask("/props")["default_generation_settings"]["n_ctx"]

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Lets the model go."""
        self._server = None

    def tokens(self, text: str) -> list[int]:
        """Returns the ids of a text as llama.cpp cuts it, special tokens recognised and none added."""
        return self._ask("/tokenize", {"content": text, "add_special": False, "parse_special": True})[
            "tokens"
        ]

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Returns a conversation as llama.cpp writes it by the model's chat template."""
        return self._ask("/apply-template", {"messages": list(messages)})["prompt"]

    def answer(
        self, messages: Sequence[Mapping[str, str]], tokens: int = 256, **sampling: Any
    ) -> Iterator[str]:
        """Gives the answer to a conversation piece by piece; closing the iterator stops it. sampling: in the
        words of llama.cpp's server (temperature, top_p, seed); greedy unless given."""
        question = {"messages": list(messages), "max_tokens": tokens, "stream": True, "temperature": 0.0}
        pieces: queue.Queue[Any] = queue.Queue()
        stopped = threading.Event()

        def said(chunk: Mapping[str, Any]) -> bool:
            pieces.put(chunk)
            return stopped.is_set()

        def ask() -> None:
            try:
                self._server.handle_chat_completions(question | sampling, said)
            except Exception as error:  # of the other thread, raised in this one
                pieces.put(error)
            pieces.put(None)

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        try:
            while (chunk := pieces.get()) is not None:
                if isinstance(chunk, Exception) or "error" in chunk:
                    raise LlamaError(f"llama.cpp stopped: {_told(chunk)}")
                for choice in chunk.get("choices", ()):
                    if text := choice.get("delta", {}).get("content"):
                        yield text
        finally:
            stopped.set()
            thread.join()

    def greedy(self, ids: Sequence[int], tokens: int) -> list[int]:
        """Returns the ids that follow, the likeliest each time, ends among them."""
        asked = {"prompt": list(ids), "n_predict": tokens, "temperature": 0.0, "return_tokens": True}
        return self._ask("/completion", asked | {"ignore_eos": True})["tokens"]

    def log_probabilities(self, ids: Sequence[int], vocabulary: int) -> Tensor:
        """Returns the logarithms of the probabilities (vocabulary,) of what follows these ids, float64; a
        prefix that it read before is not read again."""
        letter = [[self.tokens("a")[0], 1e9]]  # of a token that is half a letter it tells no probabilities
        found = self._complete(ids, n_predict=1, n_probs=vocabulary, logit_bias=letter)
        entries = found["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        values = torch.full((vocabulary,), -torch.inf, dtype=torch.float64)
        values[[entry["id"] for entry in entries]] = torch.tensor(
            [entry["logprob"] for entry in entries], dtype=torch.float64
        )
        return values

    def speed(self, prompt: int = PROMPT_TOKENS, answer: int = ANSWER_TOKENS) -> Speed:
        """Measures it on ordinary tokens, fewer where the context holds fewer, after one such run that does
        not count."""
        prompt, answer = min(prompt, self.context // 2), min(answer, self.context // 4)
        ids = [100 + i % 50 for i in range(prompt)]
        for _ in range(2):
            found = self._complete(ids, n_predict=answer, ignore_eos=True, cache_prompt=False)["timings"]
        return Speed(found["prompt_per_second"], found["predicted_per_second"], prompt, answer, self.threads)

    def _complete(self, ids: Sequence[int], **more: Any) -> dict[str, Any]:
        asked = {"prompt": list(ids), "temperature": 0.0, "samplers": ["temperature"], **more}
        found = self._server.handle_completions(asked)
        if "error" in found:
            raise LlamaError(f"llama.cpp stopped: {_told(found)}")
        return found

    def _ask(self, where: str, content: Mapping[str, Any] | None = None) -> dict[str, Any]:
        head = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        body = content and json.dumps(content).encode()
        with urlopen(Request(self._server.listening_address + where, body, head), timeout=60) as answer:
            return json.load(answer)


def _told(found: Any) -> str:
    with suppress(KeyError, TypeError):
        return str(found["error"]["message"])
    return str(found)
