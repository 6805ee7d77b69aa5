"""Opens the models that the pages are over, and prepares their measurements. No gradio here: it is imported
beside this."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Sequence

from app.lazy import Lazy
from app.open_model import Card
from app.service import Service
from quept import load, zoo
from quept.artifact import Manifest, resolve_source
from quept.evaluate import Results, Sample
from quept.evaluate.tasks import fitting
from quept.runtime import ElasticModel, title_of

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
    of another one's base that are opened when they are first asked for. device: of all; None: the best."""
    cache, bases, cards = zoo.cache_dir(), {}, {}
    found = {source.name: source for source in map(resolve_source, sources)}
    shares: dict[str, float] = {}
    for name, source in found.items():
        further = any(found[other].base == source.base for other in shares)
        shares[name] = (source.entry.share if source.entry else 1.0) * (FURTHER if further else 1.0)

    def opening(name: str) -> Callable[[], ElasticModel]:
        limit, source = int(budget * shares[name] / sum(shares.values())), found[name]
        return lambda: ElasticModel.open(source.asked, budget=limit, base=bases[source.base], device=device)

    models = Lazy({name: opening(name) for name in found})
    for name, source in found.items():
        if source.base not in bases:  # artifacts of one model share its weights
            progress(f"Opening {name}", None)
            bases[source.base] = load(source.base, progress)
        if source.asked in later:
            base = bases[source.base]
            cards[name] = Card.of(base, title_of(base, Manifest.read(source.artifact)))
        else:
            progress(f"Opening {name}", None)
            models[name]
    sample = Sample("", "")
    if any("text" in fitting(elastic) for elastic in models.made.values()):
        progress("Reading the evaluation text", None)
        sample = Sample(zoo.text(TEXT, progress), zoo.TEXTS[TEXT].title)
    service = Service(models, sample, Results.open(cache / "results.sqlite"), cache, cards)
    gc.enable()
    gc.collect()
    gc.freeze()  # what is loaded stays: without this a collection stops every visitor for some 150 ms
    return service
