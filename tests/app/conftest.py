"""A tiny elastic model and a service over it, for the tests of the app."""

from __future__ import annotations

import pytest

from quept.runtime import ElasticModel
from tests.app.tiny import FakeService, tiny_elastic


@pytest.fixture(scope="session")
def elastic() -> ElasticModel:
    return tiny_elastic()


@pytest.fixture
def service(elastic: ElasticModel) -> FakeService:
    return FakeService({"tiny": elastic})
