"""A model's chat template, run within bounds: it is a program that came with the weights, from anybody.

transformers runs it in jinja2's sandbox, which keeps it from the machine and not from time and memory:
`{{ 'a' * 10**10 }}` takes 10 GB. Here constructs that no chat needs (powers, numbers beyond LARGEST, other
files) are refused before the template is compiled, a trace ends it after SECONDS, and where the system can
(Linux) it gets MEMORY bytes beyond what the process has. Whatever goes wrong is a TemplateFailure, one
sentence.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import jinja2
from jinja2 import Environment, nodes
from transformers import PreTrainedTokenizerBase, ProcessorMixin

SECONDS = 5.0
MEMORY = 1_000_000_000
LARGEST = 1_000_000
LONGEST = 16_000_000  # characters of what it makes
_ONE_AT_A_TIME = threading.Lock()  # the limit of memory is the process's
_OTHER_FILES = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
_TRACED = ("<template>", str(Path(jinja2.__file__).parent))


class TemplateFailure(ValueError):
    """A chat template that cannot be run on a conversation; the message is a sentence."""


def rendered(
    owner: PreTrainedTokenizerBase | ProcessorMixin, messages: Sequence[Mapping], asking: bool
) -> str:
    """The conversation as the template of a tokenizer or processor writes it; `asking` for an answer."""
    templates = owner.chat_template
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        if why := _refused(str(template)):
            raise TemplateFailure(f"This model's chat template {why}: it is not run.")
    try:
        with _ONE_AT_A_TIME, _limited():
            text = owner.apply_chat_template(messages, tokenize=False, add_generation_prompt=asking)
    except TimeoutError:
        raise TemplateFailure(f"This model's chat template takes more than {SECONDS:.0f} s.") from None
    except (MemoryError, OverflowError, RecursionError):
        raise TemplateFailure(
            "This model's chat template wants too much: a loop or text without end."
        ) from None
    except jinja2.TemplateError as error:
        raise TemplateFailure(
            f"This model's chat template refuses the conversation: {str(error)[:300]}"
        ) from error
    except Exception as error:
        raise TemplateFailure(f"This model's chat template is broken ({type(error).__name__}).") from error
    if len(text) > LONGEST:
        raise TemplateFailure(f"This model's chat template writes {len(text):,} characters.")
    return text


@lru_cache(maxsize=16)
def _refused(template: str) -> str:
    """What keeps a template from being compiled, in words; "" for most. One that cannot even be parsed is
    transformers' to refuse."""
    plain = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", template)  # a tag of transformers alone
    with suppress(jinja2.TemplateError, RecursionError, MemoryError):
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
        for node in tree.find_all((nodes.Pow, nodes.Const, *_OTHER_FILES)):
            if isinstance(node, _OTHER_FILES):
                return "reads other files"
            if isinstance(node, nodes.Pow):
                return "computes powers"
            wide = isinstance(node.value, str) and re.search(r"[%{][^}]*\d{7}", node.value)
            if wide or (isinstance(node.value, int) and abs(node.value) > LARGEST):
                return f"counts beyond {LARGEST:,}"
    return ""


@contextmanager
def _limited() -> Iterator[None]:
    """A deadline for what templates do in this thread, and a bound for the memory of the process."""
    end, before = time.monotonic() + SECONDS, sys.gettrace()

    def step(frame, event, arg):
        if time.monotonic() > end:
            raise TimeoutError
        return step

    def trace(frame, event, arg):
        return step if frame.f_code.co_filename.startswith(_TRACED) else None

    lift = _bound_memory()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
        lift()


def _bound_memory():
    """Lets the process have MEMORY more bytes, where there is such a limit; returns how to lift it."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = pages * resource.getpagesize() + MEMORY
        allowed = [wanted, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
        resource.setrlimit(resource.RLIMIT_AS, (min(allowed), hard))
        return lambda: resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    except (ImportError, OSError, ValueError):
        return lambda: None
