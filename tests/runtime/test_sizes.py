from dataclasses import replace

import pytest
import torch

from quept import ElasticModel, PrecisionPlan, load
from quept.artifact import Artifact
from quept.engines import GRADED_WIDTHS
from quept.kernels import packed_nbytes
from quept.plan import FULL, QUANTIZED_BITS
from quept.runtime.kvcache import cache_nbytes
from tests.tiny import FAMILIES, save_tiny, token_ids


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request, tmp_path_factory):
    return load(save_tiny(request.param, tmp_path_factory.mktemp("sizes") / request.param))


@pytest.mark.parametrize("group", ["auto", "row", 24])
def test_the_bytes_of_every_layer_are_those_of_its_packed_tensors(loaded, group):
    elastic = ElasticModel(loaded, Artifact.rtn(loaded, group))
    for name in elastic.layers:
        for bits in QUANTIZED_BITS:
            assert elastic.sizes.layers[name][bits] == elastic.packed(name, bits).nbytes


def test_full_precision_weighs_what_the_model_weighs(loaded):
    elastic = ElasticModel(loaded, Artifact.rtn(loaded))
    whole = sum(p.nbytes for p in loaded.model.parameters())  # 16 bits each, tied ones once
    assert elastic.sizes.deploy(PrecisionPlan.full()) == whole
    assert elastic.sizes.bits_per_parameter(PrecisionPlan.full()) == 16
    assert elastic.sizes.parameters == sum(p.numel() for p in loaded.model.parameters())


@pytest.mark.parametrize("bits", (*QUANTIZED_BITS, *GRADED_WIDTHS))
def test_the_bytes_of_embeddings_are_those_of_their_packed_tensors(loaded, bits):
    elastic = ElasticModel(loaded, Artifact.rtn(loaded))
    packed = sum(elastic.packed(name, bits).nbytes for name in elastic.embeddings)
    assert elastic.sizes.embeddings[bits] == packed
    untouched, rounded = PrecisionPlan.uniform(4), PrecisionPlan.uniform(4, embeddings=bits)
    saved = elastic.sizes.deploy(untouched) - elastic.sizes.deploy(rounded)
    assert saved == elastic.sizes.embeddings[16] - packed > 0


def test_deploy_adds_up_layer_by_layer(loaded):
    elastic = ElasticModel(loaded, Artifact.rtn(loaded))
    plan = PrecisionPlan.of({elastic.layers[0]: 16, elastic.layers[-1]: 8}, default=3)
    first, *middle, last = elastic.layers
    expected = elastic.sizes.fixed + 2 * elastic.sizes.weights[first] + elastic.packed(last, 8).nbytes
    expected += sum(2 * loaded.model.get_submodule(name).weight.numel() for name in elastic.embeddings)
    assert elastic.sizes.deploy(plan) == expected + sum(elastic.packed(name, 3).nbytes for name in middle)


def test_activation_and_cache_bits_weigh_nothing(loaded):
    sizes = ElasticModel(loaded, Artifact.rtn(loaded)).sizes
    assert sizes.deploy(PrecisionPlan.uniform(4, 8, 4)) == sizes.deploy(PrecisionPlan.uniform(4))


def test_more_bits_weigh_more(loaded):
    sizes = ElasticModel(loaded, Artifact.rtn(loaded)).sizes
    deployed = [sizes.deploy(PrecisionPlan.uniform(bits)) for bits in (*QUANTIZED_BITS, 16)]
    assert deployed == sorted(set(deployed))


def test_resident_bytes_are_the_source_once_and_the_codes(loaded):
    elastic = ElasticModel(loaded, Artifact.rtn(loaded), dtype=torch.float32)
    source = sum(p.nbytes for p in loaded.model.parameters())
    others = (elastic.sizes.fixed + sum(_looked_up(loaded))) * 2  # norms, biases, positions in float32
    assert elastic.resident_bytes == source + others
    view = elastic.view(PrecisionPlan.uniform(4))
    codes = sum(
        packed_nbytes(*loaded.model.get_submodule(name).weight.shape, 4, elastic.packed(name, 4).group)
        for name in elastic.layers
    )
    assert elastic.resident_bytes == source + others + codes
    view(token_ids(2, 12))
    assert elastic.resident_bytes - source - others - codes == elastic._backend.scratch_bytes > 0


def _looked_up(loaded):
    """Bytes of the embeddings that are copied into the compute dtype: those of unusual modules."""
    return [
        loaded.model.get_submodule(name).weight.nbytes
        for name in loaded.embeddings
        if type(loaded.model.get_submodule(name)) not in (torch.nn.Embedding, torch.nn.Linear)
    ]


def test_a_plan_takes_its_weights_the_keys_and_values_and_scratch(loaded):
    elastic, plan = ElasticModel(loaded, Artifact.rtn(loaded), dtype=torch.float32), PrecisionPlan.uniform(4)
    first, last = elastic.cached_blocks[0], elastic.cached_blocks[-1]
    for kv, blocks in ((16, {}), (4, {}), (16, {first: 3}), (2, {first: 8, last: 16})):
        cached = PrecisionPlan.of({}, 4, kv, kv_blocks=blocks)
        cache = elastic.make_cache(cached)
        elastic.view(plan)(token_ids(1, 24), cache=cache, use_cache=True)
        found = elastic.memory(cached, 24)
        assert found["cache"] == cache_nbytes(cache)
        assert found["weights"] == elastic.sizes.deploy(cached)
        if FULL not in cached.resolve_cache(elastic.cached_blocks).values():
            assert elastic.sizes.cache(cached, 24) == cache_nbytes(cache)
        with_context = replace(elastic.sizes, context=24)
        assert with_context.deploy(cached) == elastic.sizes.deploy(cached) + elastic.sizes.cache(cached, 24)
        assert found["weights"] == elastic.sizes.deploy(plan) and found["scratch"] > 0


def test_without_kernels_values_are_kept_beside_the_codes(loaded, monkeypatch):
    monkeypatch.setenv("QUEPT_KERNELS", "off")
    elastic = ElasticModel(loaded, Artifact.rtn(loaded), dtype=torch.float32)
    source = sum(loaded.model.get_submodule(name).weight.nbytes for name in elastic.layers)
    before = elastic.resident_bytes
    view = elastic.view(PrecisionPlan.uniform(4))
    packed = sum(elastic.packed(name, 4).nbytes for name in elastic.layers)
    assert elastic.resident_bytes == before + source * 2 + packed
    assert view is not None


def test_the_source_is_not_counted_again_where_it_is_computed_with(loaded):
    elastic = ElasticModel(loaded, Artifact.rtn(loaded), dtype=torch.float16)
    before = elastic.resident_bytes
    view = elastic.view(PrecisionPlan.full())
    assert elastic.resident_bytes == before == sum(p.nbytes for p in loaded.model.parameters())
    assert (
        view.get_submodule(elastic.layers[0]).weight.data_ptr()
        == loaded.model.get_submodule(elastic.layers[0]).weight.data_ptr()
    )
