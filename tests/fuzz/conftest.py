"""The fuzz test: a few inputs in the suite, more with `pytest tests/fuzz --fuzz-inputs 2500`."""

from __future__ import annotations


def pytest_addoption(parser) -> None:
    parser.addoption("--fuzz-inputs", type=int, default=None, help="how many mutated inputs are tried")
    parser.addoption("--fuzz-seed", type=int, default=0, help="others with another seed")


def pytest_generate_tests(metafunc) -> None:
    """One test for each kind and hundred inputs, so that workers share them."""
    if "portion" not in metafunc.fixturenames:
        return
    from tests.fuzz.test_fuzz import IN_THE_SUITE, KINDS

    asked, seed = (metafunc.config.getoption(o, None) for o in ("--fuzz-inputs", "--fuzz-seed"))
    each = -(-asked // len(KINDS)) if asked else None
    portions = [
        (kind, seed or 0, first, min(first + 25, each or IN_THE_SUITE[kind]))
        for kind in KINDS
        for first in range(0, each or IN_THE_SUITE[kind], 25)
    ]
    metafunc.parametrize("portion", portions, ids=[f"{kind}-{first}" for kind, _, first, _ in portions])
