"""The flow, a function for each step, with the defaults of the command line.

    calibrate("smollm2-135m", "weight-only", "runs/mine")   # all widths in one pass -> an artifact
    elastic = ElasticModel.open("runs/mine")
    evaluate(elastic, PrecisionPlan.uniform(4))["kl"].value
    table = sensitivity(elastic)                            # which layer suffers at which width: takes long
    found = allocate(elastic, "60 MB", table=table)         # the best bits for a budget
    better = refine(elastic, found.allocation.plan)         # searched on, by measuring whole plans
    export(elastic, better.plan, "mine.safetensors")

All of them are in `quept` itself, and each imports its stage when it is called. What a step does in full,
with every option, is in the module that it names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quept.plan import PrecisionPlan

if TYPE_CHECKING:
    from quept.allocate import SensitivityTable
    from quept.allocate.front import Front
    from quept.allocate.search.refine import Trial
    from quept.allocate.solve.best import Best
    from quept.allocate.solve.constraints import Constraints
    from quept.artifact import Artifact
    from quept.config import Recipe
    from quept.evaluate import EvalTask, Reference, TaskEstimate
    from quept.export import Compared, PackedModel
    from quept.runtime import ElasticModel

Progress = Callable[[str, float | None], None]
TEXT = "boolq-passages"  # what plans are measured on
# Half as much of a text as in the tables that are shipped: plans from such a table lose 0.3 % of KL more.
TOKENS, PICTURES = 1024, 2048  # that layers are changed on
SEARCH_TEXT = "squad-passages"  # what they are searched on: another text
# Plans measured whole beside W2 to W8, so that predictions know what embeddings cost in company.
WHOLE = ("W8E8", "W6E8", "W5E6", "W4E8", "W4E6", "W4E4", "W3E6", "W3E4", "W2E4")


def calibrate(model: str | Path, recipe: str | Recipe, out: str | Path, **options) -> Artifact:
    """Calibrates a model (built-in name, folder or hub id) for all widths of a recipe, into the folder `out`;
    goes on where an earlier run was cut. recipe: a `Recipe`, a name from presets/recipes ("weight-only" means
    the one made for the model) or a TOML file. In full: `quept.calibrate.job`."""
    from quept.calibrate.job import calibrate
    from quept.config import Recipe

    chosen = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe, str(model))
    return calibrate(model, chosen, out, **options)


def evaluate(elastic: ElasticModel, plan: PrecisionPlan, task: str = "", **given) -> TaskEstimate:
    """Measures a plan on a task, the model's first one unless named: `estimate["kl"].value`, and the other
    `metrics`. given: on which data, as `quept evaluate` takes it (text, tokens, context; data, images; ...).
    ValueError for a task that the model does not have. In full: `quept.evaluate.tasks`."""
    from quept.evaluate.tasks import tasks_of

    tasks = tasks_of(elastic, given=given)
    chosen = tasks.get(task) if task else next(iter(tasks.values()))
    if chosen is None or chosen.lacking:
        lacking = chosen.lacking if chosen else f"there is no task {task!r}; there is {', '.join(tasks)}"
        raise ValueError(lacking)
    return deque(chosen.estimates(elastic.view(plan), plan), maxlen=1).pop()


def text_reference(
    elastic: ElasticModel, text: str, tokens: int, context: int = 512, progress: Progress | None = None
) -> Reference:
    """Returns full precision's answers to the first tokens of a built-in text, a text file, or "own-words":
    what the model writes itself."""
    from quept.data.own_words import OWN_WORDS, own_words
    from quept.evaluate import Sample, open_reference

    if text == OWN_WORDS:
        said = Sample(own_words(elastic, tokens), "its own words", tokens, context, OWN_WORDS)
        return open_reference(elastic, said.windows(elastic))
    return open_reference(elastic, Sample.read(text, tokens, context, progress).windows(elastic))


def sensitivity(
    elastic: ElasticModel,
    text: str = TEXT,
    tokens: int | None = None,
    curve_tokens: int = 4096,
    context: int = 512,
    whole: Sequence[str] = WHOLE,
    extend: SensitivityTable | None = None,
    progress: Progress | None = None,
    **options,
) -> SensitivityTable:
    """Measures what each layer costs by itself at each width, on `tokens` of a text (TOKENS; those of the
    table to `extend`), and uniform plans and those named in `whole` on `curve_tokens`; of a model that sees
    on so many of the pictures or questions that lie beside it (PICTURES). It takes some 7 passes a layer;
    `resume=FILE` goes on where it was cut. In full: `quept.allocate.sensitivity.measure`."""
    from quept.allocate.sensitivity.measure import measure_sensitivity
    from quept.allocate.sensitivity.on_data import measure_on_data
    from quept.evaluate.tasks import fitting

    if "text" not in fitting(elastic):
        data = data_task(elastic)
        counts = tokens or PICTURES, curve_tokens
        parts = (data.first(min(count, data.total)) for count in counts)
        named = {"model": elastic.origin.name, "extend": extend} | options
        return measure_on_data(elastic, *parts, whole=whole, progress=progress, **named)
    tokens = tokens or (extend.data["tokens"] if extend else TOKENS)
    changed = text_reference(elastic, text, tokens, context, progress).windows
    curve = text_reference(elastic, text, curve_tokens, context, progress)
    names = {"model": elastic.origin.name, "text": Path(text).name, "source": elastic.origin.asked}
    how = {"whole": whole, "extend": extend, "progress": progress}
    return measure_sensitivity(elastic, changed, curve, **names | how | options)


def data_task(elastic: ElasticModel, data: str | Path | None = None) -> EvalTask:
    """Returns the task of a model that sees on these data, or on those beside it; ValueError where there are
    none."""
    from quept.evaluate.tasks import tasks_of

    task = next(iter(tasks_of(elastic, given={"data": data} if data else None).values()))
    if task.lacking:
        raise ValueError(f"{task.lacking}, on which plans could be measured")
    return task


def table_of(elastic: ElasticModel, path: str | Path | None = None) -> SensitivityTable:
    """Returns the sensitivity table in a file, the one of that name ("own-words") that lies beside the
    artifact, or the one that every prediction reads; ValueError where there is none, or only one of another
    model."""
    from quept.allocate import SensitivityTable

    named = path and not Path(path).is_file() and elastic.origin.beside(f"sensitivity-{path}.json")
    found = named or path or elastic.origin.beside("sensitivity.json")
    if found is None:
        measure = f"quept sensitivity {elastic.origin.asked} --out table.json"
        raise ValueError(f"this model has no sensitivity table: `{measure}` measures one")
    table = SensitivityTable.load(found).of(elastic)
    if table is None:
        raise ValueError(
            f"{found} was measured on other weights, another config or another group size than "
            f"{elastic.origin.asked} has"
        )
    return table


def front_of(elastic: ElasticModel, path: str | Path | None = None) -> Front | None:
    """Returns the measured front in a file, or the one that lies beside the artifact, None where there is
    none; ValueError where the given one is of another model."""
    from quept.allocate.front import fitting_front, load_front

    if path is None:
        return fitting_front(elastic.origin.beside("front.json"), elastic)
    front = load_front(path).of(elastic)
    if front is None:
        asked = elastic.origin.asked
        raise ValueError(f"{path} is the front of another model or artifact than {asked}")
    return front


def allocate(
    elastic: ElasticModel,
    budget: int | str,
    constraints: Constraints | None = None,
    table: SensitivityTable | None = None,
    front: Front | None = None,
) -> Best:
    """Returns the best plan known within a budget, in bytes or as people say it ("60 MB", "3.2 bits", "40 %",
    "2 % worse", "120 MB with 2,048 tokens"): `found.allocation.plan`. table, front: those beside the artifact
    unless given. ValueError where no plan fits. In full: `quept.allocate.solve.asked`."""
    from quept.allocate.solve.asked import asked
    from quept.allocate.solve.constraints import FREE

    table, front = table or table_of(elastic), front or front_of(elastic)
    return asked(budget, table, elastic.sizes, constraints or FREE, front)[0]


def refine(
    elastic: ElasticModel,
    start: PrecisionPlan,
    budget: int | None = None,
    *,
    text: str = TEXT,
    search_text: str = SEARCH_TEXT,
    tokens: int = 2048,
    context: int = 512,
    **options,
) -> Trial:
    """Searches from `start` for a better plan within a budget in bytes, those of `start` unless given, by
    measuring whole plans on one text, and checks the find on another: `found.plan`, `found.verified`.
    options: seconds (60 unless given), trials, table, constraints, ... In full:
    `quept.allocate.search.refine`."""
    from quept.allocate.search.refine import refine

    search, fresh = (text_reference(elastic, name, tokens, context) for name in (search_text, text))
    budget = elastic.sizes.deploy(start) if budget is None else budget
    return deque(refine(elastic, start, budget, search, fresh, **options), maxlen=1).pop()


def export(
    elastic: ElasticModel, plan: PrecisionPlan, out: str | Path, to: str = "packed"
) -> PackedModel | Compared:
    """Writes one plan as a file or folder of a format ("gguf", "mlx", ... of `quept.export.EXPORTERS`), reads
    it back and compares; returns what was compared or, of our own format, what was read. In full:
    `quept.export`."""
    if to == "packed":
        from quept.export.packed import export

        return export(elastic, plan, out)
    from quept.export import exporter

    return exporter(to).write(elastic, plan, out)
