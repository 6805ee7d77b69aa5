import pytest
import torch

from quept.transforms import apply, cached, rotation_record, transformed
from quept.transforms.record import Record
from quept.zoo.cache import MANIFEST
from tests.tiny import FAMILIES, tiny_model
from tests.transforms.test_apply import NORMS, wrapped


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QUEPT_CACHE", str(tmp_path))
    monkeypatch.setattr(cached, "SMALL", 0)
    return tmp_path / "transformed"


@pytest.mark.parametrize("record", [rotation_record(), Record((NORMS,))], ids=["rotation", "norms"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_from_the_cache_are_those_that_were_computed(cache, family, dtype, record):
    base = wrapped(tiny_model(family).to(dtype))
    expected, first, again = apply(base, record), transformed(base, record), transformed(base, record)
    assert len(list(cache.iterdir())) == 1
    for loaded in (first, again):
        found, wanted = dict(loaded.model.named_parameters()), dict(expected.model.named_parameters())
        assert found.keys() == wanted.keys() and loaded.online == expected.online
        assert all(torch.equal(found[n], p) and found[n].dtype == p.dtype for n, p in wanted.items())


def test_they_are_computed_once_and_again_where_the_file_is_damaged(cache, monkeypatch):
    base, calls = wrapped(tiny_model("llama")), []
    monkeypatch.setattr(cached, "apply", lambda *given: calls.append(len(given)) or apply(*given))
    transformed(base, rotation_record()), transformed(base, rotation_record())
    assert calls == [2, 3, 3]  # two arguments: computed; a third: taken from the cache
    (folder,) = cache.iterdir()
    (folder / MANIFEST).write_text("{}")
    transformed(base, rotation_record())
    assert calls == [2, 3, 3, 2, 3]


def test_a_cache_that_cannot_be_written_costs_memory_and_nothing_else(cache):
    cache.write_text("a file where the folder should be")
    base = wrapped(tiny_model("llama"))
    found = dict(transformed(base, rotation_record()).model.named_parameters())
    expected = apply(base, rotation_record()).model.named_parameters()
    assert all(torch.equal(found[name], p) for name, p in expected)


def test_the_cache_keeps_those_used_last(cache):
    base = wrapped(tiny_model("llama"))
    for seed in range(cached.KEPT + 2):
        transformed(base, rotation_record(seed))
    assert len(list(cache.iterdir())) == cached.KEPT
