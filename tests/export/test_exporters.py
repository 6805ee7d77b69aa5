"""What every target format promises: one plan gives one file, of the size that was computed, or none."""

import pytest
import torch

from quept.export import EXPORTERS, exporter
from quept.plan import FULL, PlanError, PrecisionPlan
from quept.runtime import ElasticModel
from tests.tiny import save_tiny

PLANS = {
    "full": PrecisionPlan.full(),
    "W2": PrecisionPlan.uniform(2),
    "W8": PrecisionPlan.uniform(8, embeddings=8),
    "mixed": PrecisionPlan.of({"*.self_attn.*": 5, "*.1.self_attn.q_proj": 16}, default=3, name="mixed 🙂"),
    "long": PrecisionPlan.of({"*" * n: 4 for n in range(1, 200)}, default=3),
}


@pytest.fixture(scope="module")
def elastic(tmp_path_factory):
    folder = save_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")
    return ElasticModel.open(folder, device="cpu", dtype=torch.float32)


def content(path):
    if path.is_file():
        return path.read_bytes()
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def nbytes(found):
    return len(found) if isinstance(found, bytes) else sum(map(len, found.values()))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("name", EXPORTERS)
def test_one_plan_gives_the_same_bytes_of_the_size_that_was_computed(name, plan, elastic, tmp_path):
    target = exporter(name)
    if target.lacks(elastic):
        pytest.skip(target.lacks(elastic))
    near = target.nearest(elastic, plan)
    first, second = tmp_path / f"a{target.suffix}", tmp_path / f"b{target.suffix}"
    compared = target.write(elastic, near, first)
    target.write(elastic, near, second)
    assert content(first) == content(second)
    assert nbytes(content(first)) == compared.nbytes == target.sizes(elastic).deploy(near)
    quantized = [name for name, b in near.resolve(elastic.layers).items() if b.weights != FULL]
    assert compared.layers == len(quantized) + (near.embeddings != FULL) * len(elastic.embeddings)


@pytest.mark.parametrize("name", EXPORTERS)
def test_what_is_refused_is_a_sentence_and_the_nearest_plan_is_not_refused(name, elastic, tmp_path):
    target = exporter(name)
    if target.lacks(elastic):
        assert " " in target.lacks(elastic)
        return
    for plan in (PrecisionPlan.uniform(7), PrecisionPlan.uniform(4, 8, kv=4), PrecisionPlan.uniform("nf4")):
        near = target.nearest(elastic, plan)
        assert target.refuses(elastic, near) is None
        if why := target.refuses(elastic, plan):
            with pytest.raises(PlanError, match="^" + why[:20].replace("(", r"\(")):
                target.write(elastic, plan, tmp_path / f"x{target.suffix}")
            assert not list(tmp_path.iterdir())
        else:
            assert near == plan


@pytest.mark.parametrize("name", EXPORTERS)
def test_a_write_that_fails_leaves_what_was_there(name, elastic, tmp_path, monkeypatch):
    target, plan = exporter(name), PrecisionPlan.uniform(4)
    if target.lacks(elastic):
        pytest.skip(target.lacks(elastic))
    out = tmp_path / f"out{target.suffix}"
    target.write(elastic, plan, out)
    before = content(out)

    def full_disk(self, elastic, plan, out, progress):
        (out if self.suffix else out / "half").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(target), "fill", full_disk)
    with pytest.raises(OSError, match="the disk is full: make room, or choose another place"):
        target.write(elastic, PrecisionPlan.uniform(8), out)
    assert content(out) == before and list(tmp_path.iterdir()) == [out]


def test_other_peoples_folders_are_not_replaced(tmp_path):
    from quept.files import replacing_folder

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with (
        pytest.raises(OSError, match="other files of that name"),
        replacing_folder(tmp_path / "mine", "mark"),
    ):
        pass
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_a_format_that_is_not_there_names_those_that_are():
    with pytest.raises(ValueError, match="'ggml' is no format.*packed"):
        exporter("ggml")
