"""What the app keeps in memory before any model is open, with all open, and after visitors at plans of their
own have measured and chatted.

    python benchmarks/memory.py [MODEL ...] [--visitors 8] [--budget 0.4]

"Resident" is what the system counts as this process's own (VmRSS): whatever it has allocated, and of the
files mapped into it (libraries, models) the pages that it touched and has not given back since; pages of
libraries that other processes use too count in full. What other processes hold (the browser, the renderer of
chat templates) and the system's cache of files do not count. It is read after the last visitor's answer, with
nothing given back but what the app gives back itself.

imports_gb      torch, transformers, gradio and the pages, before any model: the floor
open_gb         with every model open (all that come with the program, unless some are named)
resident_gb     after every visitor has measured a plan and had an answer, on every language model
highest_gb      the most after any visitor's measurement or answer
own_gb          of resident_gb, what lies in no file (anonymous memory)
packed_gb       of that, codes that the banks keep
source_gb       bytes of the models as they were loaded; mapped, and resident only while somebody reads them
"""

from __future__ import annotations

import argparse
import gc

import psutil
from report import report
from visitors import PROMPTS, answer

from quept.plan import PrecisionPlan
from quept.runtime.memory import release_libraries, resident_bytes

PLANS = [PrecisionPlan.uniform(bits, embeddings=bits) for bits in (2, 3, 4, 5, 6, 7, 8, 16)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--visitors", type=int, default=8)
    parser.add_argument("--budget", type=float, default=0.4, help="GB for the banks, as the app has it")
    options = parser.parse_args()
    import app.serve  # noqa: F401  what the app imports
    from app.main import bundled_sources
    from app.opening import open_service

    figures = {"imports_gb": resident_bytes() / 1e9}
    sources = options.models or bundled_sources()[0]
    service = open_service(sources, int(options.budget * 1e9), lambda stage, fraction=None: None)
    release_libraries()
    figures["open_gb"] = resident_bytes() / 1e9
    highest = 0
    for i in range(options.visitors):
        plan = PLANS[i % len(PLANS)]
        for name, elastic in service.models.items():
            fitting = plan.keeping(elastic.layout.vision_layers)
            for state in service.measure(name, fitting, f"visitor {i}"):
                if state["estimate"]:
                    break
            if elastic.kind == "language":
                answer(service, name, fitting, PROMPTS[i % len(PROMPTS)])
            highest = max(highest, resident_bytes())
    gc.collect()
    models = service.models.values()
    figures |= {
        "resident_gb": resident_bytes() / 1e9,
        "highest_gb": highest / 1e9,
        "own_gb": (psutil.Process().memory_info().rss - psutil.Process().memory_info().shared) / 1e9,
        "packed_gb": sum(elastic.bank.kept_bytes for elastic in models) / 1e9,
        "source_gb": sum(p.nbytes for elastic in models for p in elastic.base.parameters()) / 1e9,
    }
    report("Memory of the app", figures, models=sources, visitors=options.visitors, budget=options.budget)


if __name__ == "__main__":
    main()
