from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def ray_workers_are_not_kept_waiting() -> Iterator[None]:
    """Ray gives its workers the lowest priority but four, which beside other tests is a long wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        yield
