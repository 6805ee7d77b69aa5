"""What one side of a page answers at, in words."""

import pytest

from app.side import plainly


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("W3", "W3 (every layer at 3 bits, embeddings at 16)"),
        (
            "W4A8KV4E4.5",
            "W4A8KV4E4.5 (every layer at 4 bits, activations at 8, embeddings at 4.5, KV cache at 4)",
        ),
        ("mixed, 4.53 bits, E5", "mixed, 4.53 bits, embeddings at 5"),
        ("full precision", "full precision"),
        ("W4, vision 8", "W4, vision 8"),
    ],
)
def test_a_name_says_what_its_letters_mean(name: str, words: str):
    assert plainly(name) == words


def test_a_model_without_embeddings_hears_nothing_of_them():
    assert plainly("W4A4", embeddings=False) == "W4A4 (every layer at 4 bits, activations at 4)"
