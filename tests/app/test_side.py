"""What one side of a page answers at, in words."""

import pytest

from app.side import plainly
from quept.plan import PrecisionPlan


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (PrecisionPlan.uniform(3), "W3 (every layer at 3 bits, embeddings at 16)"),
        (
            PrecisionPlan.uniform(4, 8, 4, 4.5),
            "W4A8KV4E4.5 (every layer at 4 bits, activations at 8, embeddings at 4.5, KV cache at 4)",
        ),
        (PrecisionPlan.of({"a": 4, "b": 4}, name="W4"), "W4 (every layer at 4 bits, embeddings at 16)"),
        (
            PrecisionPlan.of({"a": 3, "b": 8}, name="W3"),
            "W3 (layers at 3 bits, some at 8, embeddings at 16)",
        ),
        (PrecisionPlan(name="mixed, 4.53 bits, E5"), "mixed, 4.53 bits, embeddings at 5"),
        (PrecisionPlan.full(), "full precision"),
    ],
)
def test_a_name_says_what_its_letters_mean(plan: PrecisionPlan, words: str):
    assert plainly(plan) == words


def test_a_model_without_embeddings_hears_nothing_of_them():
    plan = PrecisionPlan.uniform(4, 4)
    assert plainly(plan, embeddings=False) == "W4A4 (every layer at 4 bits, activations at 4)"
