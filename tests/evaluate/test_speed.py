import json

import pytest
from transformers import DynamicCache

from quept.evaluate import measure_speed


def test_speed_says_its_numbers_and_their_conditions(model):
    calls = []
    hook = model.register_forward_hook(lambda _, __, out: calls.append(tuple(out.logits.shape)))
    made = []
    result = measure_speed(
        model,
        context=16,
        decode_tokens=4,
        warmup=1,
        repeats=2,
        make_cache=lambda: made.append(DynamicCache()) or made[-1],
    )
    hook.remove()
    assert calls == [(1, 1, 211)] * (3 * 5), (
        "every run is one prefill and four steps, each for one position's logits"
    )
    assert [cache.get_seq_length() for cache in made] == [20] * 3
    assert result.prefill_ms > 0 and result.decode_tokens_per_s > 0
    said = json.loads(json.dumps(result.to_dict()))
    assert (said["device"], said["dtype"], said["batch"], said["context"]) == ("cpu", "float32", 1, 16)
    assert said["threads"] >= 1


def test_settings_that_measure_nothing_are_refused(model):
    with pytest.raises(ValueError, match="at least 1"):
        measure_speed(model, repeats=0)
