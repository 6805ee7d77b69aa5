"""The equaliser in the browser and the table in Python predict the same numbers from the same table."""

import json
import subprocess
from itertools import product
from pathlib import Path

import pytest

from quept.plan import ACTIVATION_BITS, FULL, KV_BITS, WEIGHT_BITS, Bits, PrecisionPlan
from tests.allocate.test_table import LAYERS, MORE, SEEING, table

BLOCKS = ("x", "y")
BY_BLOCK = {name: {b: n * 2.0**-b for b in KV_BITS if b != FULL} for n, name in enumerate(BLOCKS, 1)}
CACHE = {f"W16KV{b}": {"kl": 3.0**-b, "ppl": 28.0, "same_top": 0.9} for b in KV_BITS if b != FULL}
SCRIPT = Path(__file__).parents[2] / "app/components/plan.js"


def node() -> str:
    """The node that comes with playwright."""
    driver = pytest.importorskip("playwright._impl._driver")
    return driver.compute_driver_executable()[0]


@pytest.mark.parametrize(
    "more",
    [
        {},
        SEEING,
        MORE | {"embeddings": {**MORE["embeddings"], 5.5: 0.01}},
        MORE | {"whole": {"W4E4": {"kl": 0.5, "ppl": 40.0, "same_top": 0.6}} | CACHE},
        {"cache": BY_BLOCK},
    ],
)
def test_the_browser_predicts_what_python_predicts_and_nothing_that_the_table_does_not_cover(more):
    known = table(**more)
    described = {
        "blocks": ["0"],
        "roles": list(LAYERS),
        "layers": [{"name": name, "block": 0, "role": i, "params": 1} for i, name in enumerate(LAYERS)],
        "bits": WEIGHT_BITS,
        "activation_bits": ACTIVATION_BITS,
        "embedding_bits": known.embedding_bits,
        "kv_bits": KV_BITS,
        "kv_blocks": list(range(len(BLOCKS))),
        "sizes": [[1] * len(WEIGHT_BITS) for _ in LAYERS],
        "fixed_bytes": 0,
        "prediction": known.prediction(LAYERS, BLOCKS),
    }
    plans = [PrecisionPlan.of({"a": a, "b": b}) for a in WEIGHT_BITS for b in WEIGHT_BITS]
    if "embeddings" in more:
        plans += [
            PrecisionPlan.of({"a": Bits(4, a), "b": Bits(FULL, b)}, embeddings=e)
            for a, b, e in product(ACTIVATION_BITS, ACTIVATION_BITS, known.embedding_bits)
        ]
    else:
        plans += [PrecisionPlan.uniform(4, 4, embeddings=4), PrecisionPlan.uniform(4, embeddings=4)]
    plans.append(PrecisionPlan.uniform(4, kv=4))
    plans += [PrecisionPlan.of({}, 4).with_cache({"x": a, "y": b}) for a, b in product(KV_BITS, KV_BITS)]
    plan_jsons = [
        {
            "w": [bits.weights for bits in plan.resolve(LAYERS).values()],
            "a": [bits.activations for bits in plan.resolve(LAYERS).values()],
            "e": plan.embeddings,
            "kv": list(plan.resolve_cache(BLOCKS).values()) if plan.kv_blocks else plan.kv,
        }
        for plan in plans
    ]
    script = f"""
        {SCRIPT.read_text("utf-8")}
        const model = readModel({json.dumps(described)});
        console.log(JSON.stringify({json.dumps(plan_jsons)}.map((plan) => predictQuality(model, plan))));
    """
    out = subprocess.run([node(), "-"], input=script, capture_output=True, text=True, check=True).stdout
    for plan, there in zip(plans, json.loads(out), strict=True):
        here = known.predicted(plan) if known.covers(plan) else None
        assert here == (there and pytest.approx(there, rel=1e-9, abs=1e-12)), plan.name
