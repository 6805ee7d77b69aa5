import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from transformers import DynamicCache

from quept.evaluate import Estimate, NonFiniteLogits, Reference, Windows, divergence
from quept.evaluate.reference import ReferenceWindow
from quept.evaluate.token_scores import compare


def textbook(model, full, windows):
    """Every number of an Estimate by its definition, in float64, position by position."""
    kl, nll, nll_ref, same, dp = [], [], [], [], []
    with torch.no_grad():
        for ids in windows.ids:
            p = full(input_ids=ids[None]).logits[0].double().softmax(-1)
            q = model(input_ids=ids[None]).logits[0].double().softmax(-1)
            for t, target in enumerate(ids[1:].tolist()):
                kl.append((p[t] * (p[t] / q[t]).log()).sum().item())
                nll.append(-q[t, target].log().item())
                nll_ref.append(-p[t, target].log().item())
                same.append(float(p[t].argmax() == q[t].argmax()))
                dp.append((q[t, target] - p[t, target]).item())
    kl, nll, nll_ref, same, dp = (torch.tensor(x, dtype=torch.float64) for x in (kl, nll, nll_ref, same, dp))
    root = len(kl) ** 0.5
    ppl, ratio, share = nll.mean().exp(), (nll - nll_ref).mean().exp(), same.mean()
    return {
        "tokens": len(kl),
        "kl": kl.mean().item(),
        "kl_se": (kl.std() / root).item(),
        "kl_median": kl.quantile(0.5).item(),
        "kl_p99": kl.quantile(0.99).item(),
        "kl_p999": kl.quantile(0.999).item(),
        "ppl": ppl.item(),
        "ppl_se": (ppl * nll.std() / root).item(),
        "ppl_ref": nll_ref.mean().exp().item(),
        "ppl_ratio": ratio.item(),
        "ppl_ratio_se": (ratio * (nll - nll_ref).std() / root).item(),
        "same_top": share.item(),
        "same_top_se": (share * (1 - share)).sqrt().item() / root,
        "rms_dp": (dp**2).mean().sqrt().item(),
    }


def test_divergence_is_the_textbook_computation(model, other, reference, windows):
    *_, last = divergence(other, reference, windows)
    expected = textbook(other, model, windows)
    assert expected["kl"] > 0.05 and 0.2 < expected["same_top"] < 1, (
        "the two models should differ, not wildly"
    )
    measured = last.to_dict()
    assert measured.pop("seconds") > 0
    # the reference's fp16 storage moves a KL by about 1e-4 of itself here; everything else is exact to fp32
    loose = {"kl", "kl_se", "kl_median", "kl_p99", "kl_p999"}
    assert set(measured) == set(expected)
    for name, value in expected.items():
        assert measured[name] == pytest.approx(value, rel=1e-3 if name in loose else 2e-5), name


def test_a_model_against_itself_shows_only_the_storage_error(model, reference, windows):
    *_, last = divergence(model, reference, windows)
    with torch.no_grad():
        logits = torch.cat([model(input_ids=ids[None]).logits[0, :-1] for ids in windows.ids]).double()
    x = logits - logits.amax(-1, keepdim=True)
    bound = (2.0**-11) ** 2 * (logits.softmax(-1) * x**2).sum(-1).mean().item() / 2
    assert -1e-6 < last.kl < bound + 1e-7
    assert last.same_top == 1 and last.same_top_se == 0
    assert last.ppl == pytest.approx(last.ppl_ref, rel=1e-6)
    assert last.ppl_ratio == pytest.approx(1, abs=1e-6) and last.rms_dp < 1e-6


def test_running_estimates_are_those_of_the_windows_so_far(model, other, reference, windows):
    estimates = list(divergence(other, reference, windows))
    assert [e.tokens for e in estimates] == [23, 46, 69]
    for n, running in enumerate(estimates, start=1):
        expected = textbook(other, model, Windows(windows.ids[:n]))
        assert running.kl == pytest.approx(expected["kl"], rel=1e-3)
        assert running.ppl == pytest.approx(expected["ppl"], rel=2e-5)


def test_a_first_estimate_is_over_the_beginning_of_the_first_window(model, other, reference, windows):
    first, *rest = divergence(other, reference, windows, first=9)
    expected = textbook(other, model, Windows(windows.ids[:1, :10]))
    assert first.tokens == 9 and first.ppl == pytest.approx(expected["ppl"], rel=2e-5)
    assert first.kl_se > 0 and first.ppl_ref == pytest.approx(
        expected["ppl"] / expected["ppl_ratio"], rel=2e-5
    )
    whole = list(divergence(other, reference, windows, first=99))  # no longer than a window: none
    assert [replace(e, seconds=0.0) for e in rest] == [replace(e, seconds=0.0) for e in whole]


def test_a_pass_may_rest_before_each_block_and_leaves_nothing_on_the_model(other, reference, windows):
    rests: list[int] = []

    @contextmanager
    def gate():
        yield SimpleNamespace(pause=lambda: rests.append(1))

    next(divergence(other, reference, windows, gate=gate))
    assert len(rests) == len(other.model.layers) + 2  # and the head, and the comparison
    assert not any(m._forward_pre_hooks for m in other.modules())


def test_kl_is_never_negative_beyond_rounding_and_exact_for_wide_vocabularies():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(40, 30_011, generator=generator)
    x = (logits - logits.amax(-1, keepdim=True)).half()
    reference = ReferenceWindow(
        x, x.float().logsumexp(-1), torch.zeros(40), logits.argmax(-1).to(torch.int32)
    )
    for noise in (0.0, 1e-3, 1e-2, 1.0):
        moved = (
            x.float() + noise * torch.randn(40, 30_011, generator=generator) + 9
        )  # an offset changes nothing
        kl = compare(moved, reference, torch.zeros(40, dtype=torch.int64)).kl
        log_p, log_q = x.double().log_softmax(-1), moved.double().log_softmax(-1)
        exact = (log_p.exp() * (log_p - log_q)).sum(-1)
        assert kl.min() > -2e-6
        assert (kl - exact).abs().max() < 2e-6 * (1 + exact.max())


def test_half_precision_logits_are_compared_in_fp32(model, reference, windows):
    window, targets = reference.window(0), windows.targets[0]
    with torch.no_grad():
        logits = model(input_ids=windows.ids[:1]).logits[0, :-1].bfloat16()
    assert torch.equal(compare(logits, window, targets).kl, compare(logits.float(), window, targets).kl)


def test_closing_the_generator_stops_after_the_current_window(other, forward, reference, windows):
    running = divergence(other, reference, windows)
    next(running)
    running.close()
    assert forward.calls == 1 and list(running) == []


def test_an_estimate_leaves_autograd_as_it_was(other, reference, windows):
    for _ in divergence(other, reference, windows):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_the_gate_is_held_for_every_forward_and_free_between_estimates(model, other, windows, tmp_path):
    held, log = [], []

    @contextmanager
    def gate():
        held.append(True)
        yield
        held.pop()

    def forward(ids):
        log.append(("reference", len(held)))
        return model(input_ids=ids).logits

    hook = other.register_forward_hook(lambda *_: log.append(("model", len(held))))
    reference = Reference.open("fingerprint", windows, forward, tmp_path)
    for _ in divergence(other, reference, windows, gate=gate):
        assert not held
    hook.remove()
    assert log == [("reference", 1), ("model", 1)] * 3


def test_a_cache_is_handed_to_every_forward(other, reference, windows):
    made = []

    def make_cache():
        made.append(DynamicCache())
        return made[-1]

    *_, cached = divergence(other, reference, windows, make_cache=make_cache)
    *_, plain = divergence(other, reference, windows)
    assert [cache.get_seq_length() for cache in made] == [24, 24, 24]
    assert cached.kl == pytest.approx(plain.kl, rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_logits_that_are_not_finite_are_an_error_in_words(other, reference, windows, value):
    def poison(_, __, output):
        output.logits[0, 5] = value
        return output

    hook = other.register_forward_hook(poison)
    try:
        with pytest.raises(NonFiniteLogits, match="window 0, position 5"):
            next(divergence(other, reference, windows))
    finally:
        hook.remove()


def test_another_models_vocabulary_or_other_windows_are_refused(other, reference, windows):
    with pytest.raises(ValueError, match="same model"):
        compare(torch.zeros(23, 7), reference.window(0), windows.targets[0])
    with pytest.raises(ValueError, match="windows"):
        next(divergence(other, reference, Windows(windows.ids[:2])))


def test_an_estimate_survives_json(other, reference, windows):
    first = next(divergence(other, reference, windows))
    text = json.dumps(first.to_dict(), allow_nan=False)
    assert Estimate.from_dict(json.loads(text)) == first


def test_a_hopeless_model_still_gives_finite_numbers(reference, windows, other):
    def far_off(_, ids, output):
        output.logits.mul_(1e5)
        return output

    hook = other.register_forward_hook(far_off)
    *_, last = divergence(other, reference, windows)
    hook.remove()
    json.dumps(last.to_dict(), allow_nan=False)
