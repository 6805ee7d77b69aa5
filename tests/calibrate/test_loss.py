"""The divergence and its gradient equal what autograd makes of the formula."""

import torch

from quept.calibrate.loss import divergence_loss


def test_value_and_gradient_equal_autograd():
    generator = torch.Generator().manual_seed(0)
    log_p = torch.randn(2, 7, 300, generator=generator).log_softmax(-1)
    ours = torch.randn(2, 7, 300, generator=generator).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    loss = divergence_loss(ours, log_p)
    expected = (log_p.exp() * (log_p - theirs.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(loss, expected)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_model_at_full_precision_has_no_divergence_and_no_gradient():
    logits = torch.randn(1, 4, 50).requires_grad_()
    loss = divergence_loss(logits, logits.detach().log_softmax(-1))
    loss.backward()
    assert abs(loss.item()) < 1e-6 and logits.grad.abs().max() < 1e-6
