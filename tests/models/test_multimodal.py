"""Vision-language models: three sections, found in every family."""

import pytest
import torch
from torch import nn

from quept.models import load
from quept.models.behind import head_of
from quept.models.multimodal import language_inputs
from quept.plan import FULL, Bits, PrecisionPlan
from quept.runtime.visual import visual_prompt
from tests import tiny_vlm


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    root = tmp_path_factory.mktemp("vlm")
    return {name: load(tiny_vlm.save_tiny_vlm(name, root / name)) for name in tiny_vlm.FAMILIES}


@pytest.mark.parametrize("name", tiny_vlm.FAMILIES)
def test_every_family_has_its_sections(loaded, name):
    model, layout = loaded[name].model, loaded[name].layout
    assert (loaded[name].kind, loaded[name].vision) == ("vision-language", None)
    projector = [] if name == "gemma3" else ["projector"]  # one without a linear layer
    assert list(layout.sections) == ["vision", *projector, "language"], "in the order of the data"
    linears = {path for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert set(layout.layers) == linears - {layout.head}
    assert sum(layout.sections.values(), ()) == layout.layers
    assert [block.section for block in layout.decoder_blocks] == ["language"] * 2
    assert all(block.name.startswith(layout.language + ".") for block in layout.decoder_blocks)
    assert all(set(block.layers) <= set(layout.roles) for block in layout.blocks)
    assert {norm.rpartition(".")[0] for norm in layout.norms} == {
        block.name for block in layout.decoder_blocks
    }
    for norm in (*layout.norms, layout.final_norm):
        model.get_submodule(norm)
    assert isinstance(model.get_submodule(layout.embed), nn.Embedding)


@pytest.mark.parametrize("name", tiny_vlm.FAMILIES)
def test_the_language_model_reads_what_the_whole_model_would_give_it(loaded, name):
    one = loaded[name]
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    inputs = visual_prompt(one.processor, messages, [tiny_vlm.picture()]).inputs
    model = one.model.float()
    with torch.no_grad():
        expected = model(**inputs).logits
        found = language_inputs(model, one.layout.language, inputs)
        hidden = model.get_submodule(one.layout.language)(**found).last_hidden_state
        assert torch.equal(head_of(model, one.layout.language)(hidden[0]), expected[0])


@pytest.mark.parametrize("name", tiny_vlm.FAMILIES)
def test_what_sees_keeps_eight_bits(loaded, name):
    layout = loaded[name].layout
    sees = {*layout.sections["vision"], *layout.sections.get("projector", ())}
    for plan, bits in ((PrecisionPlan.uniform(4), Bits(8)), (PrecisionPlan.uniform(3, 4), Bits(8, 8))):
        found = plan.keeping(layout.vision_layers).resolve(layout.layers)
        assert {name for name, b in found.items() if b == bits} == sees
        assert {b for name, b in found.items() if name not in sees} == {plan.default}
    for plan in (PrecisionPlan.uniform(8), PrecisionPlan.full(), PrecisionPlan.of({"*": 2}, default=FULL)):
        assert plan.keeping(layout.vision_layers) is plan
