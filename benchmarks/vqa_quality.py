"""Accuracy of the built-in vision-language model's answers at every width, against round-to-nearest.

    python benchmarks/vqa_quality.py [--model easy-vqa] [--data FOLDER] [--questions N]

In percent of the 9,673 test questions of easy-VQA (--data: where the data lie, if they are not fetched),
answered greedily in exactly the words of the data. Weights are calibrated as the artifact says; "..._rtn"
rounds the same base to nearest. "w4" quantizes the language blocks and keeps vision tower and projector at 8
bits, "w4_all" quantizes all three. "w4_shape" and the like are the same by type of question.
"seconds_per_200" is one plan (w4) on the first 200 questions with a reference that is known,
"seconds_per_200_prepared" without preparing pictures and words. Prints a table, then JSON.

--model takes an artifact folder or a model's folder too; without an artifact both columns are rounded to
nearest.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from report import report

from quept import ElasticModel, PrecisionPlan
from quept.data.easy_vqa import easy_vqa, save_questions
from quept.evaluate import Questions, VqaEstimate, stored_questions, vqa, vqa_reference

WIDTHS = (8, 4, 3, 2)
EVERY, FEW = 9_673, 200


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="easy-vqa", help="built-in name, artifact folder or model folder")
    parser.add_argument("--data", help="folder of easy-VQA's data")
    parser.add_argument("--questions", type=int, default=EVERY)
    options = parser.parse_args()

    elastic = ElasticModel.open(options.model)
    base = elastic.artifact.base
    rounded = ElasticModel.open(base if Path(base).is_dir() else f"{base}:rtn")
    with tempfile.TemporaryDirectory() as folder:
        path, cache = Path(folder) / "test.safetensors", Path(folder) / "reference"
        save_questions(path, easy_vqa("test", options.data), EVERY)
        questions = stored_questions(path, elastic.processor, options.questions)
        figures = _figures(elastic, "", questions, cache) | _figures(rounded, "_rtn", questions, cache)
        figures |= _speed(elastic, path, cache)
    report("Accuracy of answers about pictures", figures, model=options.model, questions=len(questions))


def _figures(elastic: ElasticModel, suffix: str, questions: Questions, cache: Path) -> dict[str, float]:
    plans = {} if suffix else {"fp": PrecisionPlan.full()}
    for bits in WIDTHS:
        plan = PrecisionPlan.uniform(bits)
        plans |= {f"w{bits}{suffix}": plan.keeping(elastic.layout.vision_layers)}
        plans |= {f"w{bits}_all{suffix}": plan} if bits < 8 else {}
    found = {name: _measured(elastic, plan, questions, cache) for name, plan in plans.items()}
    figures = {name: round(100 * estimate.top1, 3) for name, estimate in found.items()}
    types = {
        f"{name}_{kind.replace(' ', '_')}": round(100 * t.right / t.questions, 2)
        for name, estimate in found.items()
        if not suffix and "_all" not in name
        for kind, t in estimate.types.items()
    }
    return figures | types


def _measured(elastic: ElasticModel, plan: PrecisionPlan, questions: Questions, cache: Path) -> VqaEstimate:
    reference = vqa_reference(elastic, questions, cache)
    *_, last = vqa(elastic.view(plan), questions, reference)
    return last


def _speed(elastic: ElasticModel, path: Path, cache: Path) -> dict[str, float]:
    """Medians of three, in wall seconds."""
    plan = PrecisionPlan.uniform(4).keeping(elastic.layout.vision_layers)
    kept = stored_questions(path, elastic.processor, FEW)
    _measured(elastic, plan, kept, cache)
    times = {"seconds_per_200": [], "seconds_per_200_prepared": []}
    for _ in range(3):
        for name in times:
            began = time.perf_counter()
            questions = kept if "prepared" in name else stored_questions(path, elastic.processor, FEW)
            _measured(elastic, plan, questions, cache)
            times[name].append(time.perf_counter() - began)
    return {name: round(statistics.median(seconds), 3) for name, seconds in times.items()}


if __name__ == "__main__":
    main()
