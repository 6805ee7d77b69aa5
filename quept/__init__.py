"""QuEPT: one calibrated transformer, any precision, a switch away.

The flow, which the folders follow from top to bottom::

    elastic = ElasticModel.open("smollm2-135m")    # zoo name, hub id, folder or artifact; loaded once
    plan    = PrecisionPlan.uniform(4)             # or .load("presets/..."), or from the app's equaliser
    view    = elastic.view(plan)                   # an ordinary module at that precision; nothing is mutated
    for estimate in divergence(view, ...): ...     # perplexity and divergence, as they come in
    table   = sensitivity(elastic, ...)            # which layer suffers at which width
    export(elastic, plan, "out.safetensors")       # the packed tensors of one plan

plan       what precision each layer runs at
numerics/  the rounding grid and the packing of codes
models/    where a model's layers are; loading
zoo/       built-in models and texts, and how they are fetched
artifact/  what calibration leaves on disk
runtime/   the elastic model, its views, text generation
calibrate/ making an artifact
evaluate/  perplexity, divergence, speed, the results store
allocate/  sensitivity of every layer at every width
export/    a plan as a file
cli        one subcommand per stage
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
