"""QuEPT: one calibrated transformer, any precision, a switch away.

The flow, which the folders follow from top to bottom; see `quept.flow` for what each step takes::

    from quept import ElasticModel, PrecisionPlan, allocate, calibrate, evaluate, export, refine, sensitivity

    calibrate("smollm2-135m", "weight-only", "runs/mine")   # one pass for all widths -> an artifact on disk
    elastic = ElasticModel.open("smollm2-135m")     # zoo name, hub id, folder or artifact; loaded once
    plan = PrecisionPlan.uniform(4)                 # or .load("presets/..."), or from the app's equaliser
    view = elastic.view(plan)                       # an ordinary module at that precision; nothing is mutated
    elastic.generate(plan, "What is the capital of France?")
    evaluate(elastic, plan)                         # perplexity and divergence, or accuracy
    table = sensitivity(elastic)                    # which layer suffers at which width
    found = allocate(elastic, "60 MB")              # the best bits for a budget
    better = refine(elastic, found.allocation.plan) # searched on, by measuring whole plans
    export(elastic, better.plan, "mine.gguf", to="gguf")  # a file that llama.cpp runs

flow        the functions above
plan        what precision each layer runs at
config      calibration recipes, read from presets/recipes; presets: the files there
files       how files are written and read: whole or not at all, versioned; checked: held against a form
brief       the text of a refusal, short enough to read
mapped      pages of files that are mapped into memory, given back
stage       packages that are called by their name; progress: one line on stderr
numerics/   the rounding grid, training through it, adapters, Hadamard transforms, packing of codes
models/     where a model's layers are; loading
zoo/        built-in models and texts, and how they are fetched
data/       what is measured and calibrated on: texts, pictures, pairs, questions
transforms/ rotations and channel scales that leave the function as it is and make weights easier to round
kernels/    products with packed weights of 2..8 bits, in C
engines/    ways to make a layer's weight small: rtn, quept, mobiquant, bitsandbytes
artifact/   what calibration leaves on disk
runtime/    the elastic model, its views, text generation
calibrate/  making an artifact: block by block, end to end
evaluate/   tasks that plans are measured by, references, the results store
allocate/   sensitivity of every layer at every width, the best plan for a budget
export/     a plan as a file: one exporter per target format
costs       what a run will take in bytes and seconds, from a model's shapes
report/     an artifact as a page to read
cli/        one subcommand per stage
"""

from importlib import import_module

from .plan import Bits, PlanError, PrecisionPlan

# Plans alone do not need to import torch: the rest arrives when it is first asked for. Four of the steps are
# packages as well, which can be called (see `stage`).
_WHERE = {
    "ElasticModel": "quept.runtime",
    "Recipe": "quept.config",
    "load": "quept.models",
    "refine": "quept.flow",
    "sensitivity": "quept.flow",
}
_STAGES = ("allocate", "calibrate", "evaluate", "export")

__all__ = ["Bits", "PlanError", "PrecisionPlan", *_WHERE, *_STAGES]


def __getattr__(name: str):
    if name in _STAGES:
        return import_module(f"quept.{name}")
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'quept' has no attribute {name!r}")
