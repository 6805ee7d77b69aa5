"""Opens the models that the pages are over, and prepares their measurements. No gradio here: it is imported
beside this."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from app.lazy import Lazy
from app.open_model import Card
from app.service import Service
from quept import load, zoo
from quept.artifact import resolve_source
from quept.evaluate import Results, Sample
from quept.runtime import ElasticModel

TEXT = "boolq-passages"
FURTHER = 0.65  # of a model's share of the budget, that of each further artifact of it: room for one plan at
# 8 bits, where the first one has room for all of 4 and 8 bits, to go back and forth


def open_service(
    sources: Sequence[str],
    budget: int,
    progress: Callable[[str, float | None], None],
    later: Collection[str] = (),
    device: str | None = None,
) -> Service:
    """Open every model and prepare its measurements; raises with a sentence. later: of the sources, artifacts
    of built-in models that are opened when they are first asked for. device: of all; None: the best."""
    cache = zoo.cache_dir()
    found = {source.name: source for source in map(resolve_source, sources)}
    cards = {name: Card.built_in(source) for name, source in found.items() if source.asked in later}
    # Artifacts of one model share its weights.
    bases = Lazy({source.base: partial(load, source.base, progress) for source in found.values()})
    shares: dict[str, float] = {}
    for name, source in found.items():
        further = any(found[other].base == source.base for other in shares)
        shares[name] = (source.entry.share if source.entry else 1.0) * (FURTHER if further else 1.0)

    def opening(name: str) -> Callable[[], ElasticModel]:
        limit, source = int(budget * shares[name] / sum(shares.values())), found[name]
        return lambda: ElasticModel.open(source.asked, budget=limit, base=bases[source.base], device=device)

    models = Lazy({name: opening(name) for name in found})
    for name in found:
        if name not in cards:
            progress(f"Opening {name}", None)
            models[name]
    sample = Sample("", "")
    kinds = {card.kind for card in cards.values()} | {elastic.kind for elastic in models.made.values()}
    if "language" in kinds:
        progress("Reading the evaluation text", None)
        sample = Sample(zoo.text(TEXT, progress), zoo.TEXTS[TEXT].title)
    return Service(models, sample, Results.open(cache / "results.sqlite"), cache, cards)
