"""The process that runs chat templates (see template): a program of its own, started with the bytes of memory
it may take and the characters it may write. A line of JSON in, what transformers renders of it out, as
{"text"}; or {"why"}, the end of a sentence that begins "This model's chat template".
"""

import json
import sys

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template


def bound_memory(extra: int) -> None:
    """Lets this process have `extra` more bytes, where there is such a limit."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            wanted = int(file.read().split()[0]) * resource.getpagesize() + extra
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ImportError, OSError, ValueError):
        pass


def answer(job: dict, longest: int) -> dict[str, str]:
    try:
        ((text,), _) = render_jinja_template(**job)
        return {"text": text} if len(text) <= longest else {"why": f"writes {len(text):,} characters."}
    except (MemoryError, OverflowError, RecursionError):
        return {"why": "wants too much: a loop or text without end."}
    except jinja2.TemplateError as error:
        return {"why": f"refuses the conversation: {str(error)[:300]}"}
    except Exception as error:
        return {"why": f"is broken ({type(error).__name__})."}


def main() -> None:
    memory, longest = map(int, sys.argv[1:])
    bound_memory(memory)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), longest)), flush=True)


if __name__ == "__main__":
    main()
