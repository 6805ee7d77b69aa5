"""The equaliser in the browser and the table in Python predict the same numbers from the same table."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from quept.plan import QUANTISED_BITS, PrecisionPlan
from tests.allocate.test_table import LAYERS, table

SCRIPT = Path(__file__).parents[2] / "app/components/plan.js"


def node() -> str:
    """The node that comes with playwright."""
    driver = pytest.importorskip("playwright._impl._driver")
    return driver.compute_driver_executable()[0]


def function(name: str) -> str:
    return re.search(rf"^function {name}\(.*?^}}$", SCRIPT.read_text("utf-8"), re.M | re.S).group()


def test_the_browser_predicts_what_python_predicts():
    plans = [PrecisionPlan.of({"a": a, "b": b}) for a in (*QUANTISED_BITS, 16) for b in (*QUANTISED_BITS, 16)]
    told = table().prediction(LAYERS)
    widths = [[bits.weights for bits in plan.resolve(LAYERS).values()] for plan in plans]
    script = f"""
        {"".join(function(name) for name in ("readCurve", "interpolate", "predictQuality"))}
        const prediction = {json.dumps(told)}, bits = [2, 3, 4, 5, 6, 7, 8, 16];
        const harmAt = (i, width) => prediction.sensitivity[i][bits.indexOf(width)];
        const model = {{ prediction, harmAt, curve: readCurve(prediction) }};
        console.log(JSON.stringify({json.dumps(widths)}.map((w) => predictQuality(model, {{ w }}))));
    """
    out = subprocess.run([node(), "-"], input=script, capture_output=True, text=True, check=True).stdout
    for plan, there in zip(plans, json.loads(out), strict=True):
        assert table().predicted(plan) == pytest.approx(there, rel=1e-9, abs=1e-12)
