"""QuEPT: one calibrated transformer, any precision, a switch away.

The flow, which the folders follow from top to bottom::

    calibrate("smollm2-135m", recipe, "runs/mine") # one pass for all widths -> an artifact on disk
    elastic = ElasticModel.open("smollm2-135m")    # zoo name, hub id, folder or artifact; loaded once
    plan    = PrecisionPlan.uniform(4)             # or .load("presets/..."), or from the app's equaliser
    view    = elastic.view(plan)                   # an ordinary module at that precision; nothing is mutated
    for estimate in divergence(view, ...): ...     # perplexity and divergence, as they come in
    table   = sensitivity(elastic, ...)            # which layer suffers at which width
    export(elastic, plan, "out.safetensors")       # the packed tensors of one plan

plan        what precision each layer runs at
config      calibration recipes, read from presets/recipes
numerics/   the rounding grid, training through it, adapters, Hadamard transforms, packing of codes
models/     where a model's layers are; loading
zoo/        built-in models and texts, and how they are fetched
transforms/ rotations and channel scales that leave the function as it is and make weights easier to round
artifact/   what calibration leaves on disk
runtime/    the elastic model, its views, text generation, baselines
calibrate/  making an artifact: block by block, end to end
evaluate/   perplexity, divergence, speed, the results store
allocate/   sensitivity of every layer at every width, the best plan for a budget
export/     a plan as a file
report/     an artifact as a page to read
cli/        one subcommand per stage
"""

from .plan import Bits, PlanError, PrecisionPlan

__all__ = ["Bits", "ElasticModel", "PlanError", "PrecisionPlan", "load"]


def __getattr__(name: str):
    """ElasticModel and load arrive when first asked for: plans alone do not need to import torch."""
    if name == "ElasticModel":
        from .runtime import ElasticModel

        return ElasticModel
    if name == "load":
        from .models import load

        return load
    raise AttributeError(f"module 'quept' has no attribute {name!r}")
