"""Task accuracy: how fast, how far it follows from predictions, and what allocation gives where there is one.

    python benchmarks/tasks.py [--items 1000] [--alone 40] [--plans 30] [--rules] [--out t.json]

Figures of the language model, float32:

    harness_identical          whether lm-evaluation-harness chooses the same answer of every item of
                               `--harness` (null where it is not installed)
    batch_ratio                seconds for `--alone` mixed items packed, over one answer at a time
    first_ratio                seconds to the first accuracy with its interval, references known, over those
                               of a forward pass of 512 tokens; first_s and forward_s are the two
    kl_rank_correlation        Spearman's, of predicted and measured KL over `--plans` random mixed plans
    accuracy_rank_correlation  of predicted KL and lost accuracy over the same plans, on `--plan-items`
    full_accuracy              full precision's, of the `--items`

    classifier, vqa            at the bytes of the uniform plan of 3 and 4 bits with untouched embeddings:
                               "kl" of the allocated plan and "kl_uniform" of the best uniform one with any
                               embedding width (see quept.allocate.solve.uniform), on the data behind the
                               `--searched` ones that the table and the front were measured on
    rules                      with `--rules`: KL of each rule of thumb at 2.5, 3 and 4 bits, read from the
                               trial beside the artifact (`quept rules` measures it)

Prints a table, then one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from report import report

from quept import ElasticModel, PrecisionPlan
from quept.allocate.rules.trial import bytes_at, load_trial
from quept.allocate.solve.best import best
from quept.allocate.solve.constraints import FREE
from quept.allocate.solve.uniform import WHOLE_WIDTHS, uniform_at_equal_bytes
from quept.data.choices import Choices, Item
from quept.evaluate import divergence
from quept.evaluate.harness import harness
from quept.evaluate.tasks.choice import DEFAULT, ChoiceTask, answer_log_probs
from quept.flow import data_task, front_of, table_of, text_reference

FORWARD = 512  # tokens
HARNESS = """
task: ours
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{context}}"
doc_to_choice: choices
doc_to_target: right
target_delimiter: ""
metric_list: [{metric: acc}]
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="smollm2-135m")
    add("--choices", default=",".join(DEFAULT), help="built-in sets, or a file of items")
    add("--items", type=int, default=1000)
    add("--alone", type=int, default=40, help="items that are fed one answer at a time, too")
    add("--harness", type=int, default=40, help="items that the harness scores; 0: leave it out")
    add("--plans", type=int, default=30, help="random plans; 0: leave them out")
    add("--plan-items", type=int, default=200)
    add("--plan-tokens", type=int, default=1024)
    add("--classifier", default="fashion-vit", help='"" leaves it out')
    add("--vqa", default="easy-vqa", help='"" leaves it out')
    add("--searched", type=int, default=500, help="pictures that a front was searched on, at most")
    add("--rules", action="store_true")
    add("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()

    elastic = ElasticModel.open(options.model, dtype=torch.float32)
    task = ChoiceTask(elastic, given={"choices": options.choices, "items": options.items})
    plan = PrecisionPlan.uniform(4)
    view = elastic.view(plan)
    found: dict = {"harness_identical": harness_identical(elastic, task, plan, options.harness)}
    found |= {"batch_ratio": batch_ratio(view, task, options.alone)} | first(elastic, task, plan)
    *_, whole = task.estimates(elastic.view(plan), plan)
    found |= {"full_accuracy": whole["acc"].full, "w4_accuracy": whole["acc"].value}
    found |= {"kl_rank_correlation": None, "accuracy_rank_correlation": None}
    if options.plans:
        found |= ranks(elastic, task, options)
    for name, source in (("classifier", options.classifier), ("vqa", options.vqa)):
        found[name] = allocated(source, options.searched) if source else None
    file = elastic.origin.beside("rules.json") if options.rules else None
    told = load_trial(file, elastic) if file else None
    found["rules"] = told and {
        name: {f"b{bits:g}": kl for bits, _, kl in rule["front"] if bits in (2.5, 3, 4)}
        for name, rule in told["rules"].items()
    }
    report("tasks", found, model=options.model, items=task.total, choices=task.choices.name, dtype="float32")
    if options.out:
        options.out.write_text(json.dumps(found) + "\n")


def batch_ratio(view: torch.nn.Module, task: ChoiceTask, count: int) -> float:
    """Both on the same items, packed ones first and last, whichever was faster."""
    items = task.choices.items[:count]
    packed = Choices.of(items, "packed", task.elastic.tokenizer)
    alone = (Item(item.kind, (pair,), 0) for item in items for pair in item.pairs)
    cut = [Choices.of([item], "alone", task.elastic.tokenizer).packs[0] for item in alone]

    def seconds(packs: Sequence) -> float:
        began = time.perf_counter()
        for pack in packs:
            answer_log_probs(view, pack)
        return time.perf_counter() - began

    seconds(packed.packs[:1])
    fast, slow = seconds(packed.packs), seconds(cut)
    return round(min(fast, seconds(packed.packs)) / slow, 3)


def first(elastic: ElasticModel, task: ChoiceTask, plan: PrecisionPlan) -> dict[str, float]:
    """A plan that nobody has asked for before, to its first accuracy."""
    *_, ids = text_reference(elastic, "boolq-passages", FORWARD).windows.ids
    view = elastic.view(plan)
    with torch.inference_mode():
        times = []
        for _ in range(3):
            began = time.perf_counter()
            view(input_ids=ids[None], use_cache=False, logits_to_keep=1)
            times.append(time.perf_counter() - began)
    next(task.estimates(view, plan))  # full precision's answers to the first window are kept from here on
    other = PrecisionPlan.of({elastic.layers[0]: 5}, default=4)
    began = time.perf_counter()
    next(task.estimates(elastic.view(other), other))
    seconds, forward = time.perf_counter() - began, min(times)
    return {
        "first_ratio": round(seconds / forward, 3),
        "first_s": round(seconds, 3),
        "forward_s": round(forward, 3),
        "first_within": seconds <= 1.5 * forward + 1,
    }


def ranks(elastic: ElasticModel, task: ChoiceTask, options: argparse.Namespace) -> dict[str, float]:
    """Over random plans of mean widths from 2.5 to 6 and every width of the embeddings."""
    table, rng, some = table_of(elastic), random.Random(0), task.first(options.plan_items)
    on, rows = text_reference(elastic, "boolq-passages", options.plan_tokens), []
    for _ in range(options.plans):
        mean, spread = rng.uniform(2.5, 6), rng.uniform(0.3, 1.2)
        widths = {name: min(8, max(2, round(rng.gauss(mean, spread)))) for name in elastic.layers}
        plan = PrecisionPlan.of(widths, embeddings=rng.choice(sorted(table.embeddings)))
        view = elastic.view(plan)
        *_, text = divergence(view, on, on.windows)
        *_, answers = some.estimates(view, plan)
        rows.append((table.predicted(plan)["kl"], text.kl, -answers["acc"].value, -answers["p_right"].value))
        print(
            f"predicted {rows[-1][0]:.3f}, KL {text.kl:.3f}, accuracy {answers['acc'].value:.3f}", flush=True
        )
    predicted, kl, wrong, lost = zip(*rows, strict=True)
    return {
        "kl_rank_correlation": spearman(predicted, kl),
        "accuracy_rank_correlation": spearman(predicted, wrong),
        "p_right_rank_correlation": spearman(predicted, lost),
    }


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    places = [np.argsort(np.argsort(values)) for values in (one, other)]
    return round(float(np.corrcoef(*places)[0, 1]), 4)


def allocated(source: str, searched: int) -> dict[str, dict[str, float]]:
    """KL on the data that no search saw: of all of them and of the first ones follows that of the rest."""
    elastic = ElasticModel.open(source, dtype=torch.float32)
    task, table, known = data_task(elastic), table_of(elastic), {}
    part = task.first(min(searched, task.total // 2))

    def kl(plan: PrecisionPlan) -> float:
        key = plan.key(elastic.layers)
        if key not in known:
            view = elastic.view(plan)
            whole, some = (list(t.estimates(view, plan))[-1].payload for t in (task, part))
            left = whole["tokens"] - some["tokens"]
            known[key] = (whole["kl"] * whole["tokens"] - some["kl"] * some["tokens"]) / left
        return known[key]

    found = {}
    for bits in (3, 4):
        budget = bytes_at(elastic, bits)
        plan = best(table, elastic.sizes, budget, FREE, front_of(elastic)).allocation.plan
        uniform = uniform_at_equal_bytes(elastic.sizes, budget, kl, embeddings=WHOLE_WIDTHS)
        one, other = kl(plan), uniform.kl
        found[f"b{bits}"] = {"kl": float(f"{one:.4g}"), "kl_uniform": float(f"{other:.4g}")}
        found[f"b{bits}"]["ratio"] = round(one / other, 3)
    return found


def harness_identical(
    elastic: ElasticModel, task: ChoiceTask, plan: PrecisionPlan, count: int
) -> bool | None:
    """On items whose answers share their context, which is all that the harness's own format holds."""
    if not find_spec("lm_eval"):
        return None
    items = [i for i in task.choices.items if len({c for c, _ in i.pairs}) == 1 and len(i.pairs) > 1][:count]
    if not items:
        return None
    with tempfile.TemporaryDirectory() as folder:
        rows, tasks = Path(folder) / "rows.jsonl", Path(folder) / "tasks"
        tasks.mkdir()
        rows.write_text("\n".join(json.dumps(_row(item)) for item in items))
        (tasks / "ours.yaml").write_text(HARNESS % rows)
        samples = harness(elastic.view(plan), elastic.tokenizer, ["ours"], include=tasks)["samples"]["ours"]
        own = ChoiceTask(elastic, Path(folder) / "cache", {"choices": str(rows)}).choices
        said = [answer_log_probs(elastic.view(plan), pack)["log_probs"] for pack in own.packs]
    theirs = [
        int(np.argmax([one[0][0] if isinstance(one[0], list | tuple) else one[0] for one in s["resps"]]))
        for s in sorted(samples, key=lambda s: s["doc_id"])
    ]
    counts = [len(item.pairs) for item in items]
    ours = [int(part.argmax()) for part in torch.cat(said).split(counts)]
    return ours == theirs


def _row(item: Item) -> Mapping:
    return {"context": item.pairs[0][0], "choices": [said for _, said in item.pairs], "right": item.right}


if __name__ == "__main__":
    main()
