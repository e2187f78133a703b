"""Advantages, dynamic sampling's filter and the clipped loss, against numbers by hand."""
import math

import pytest
import torch


def test_advantages_of_one_right_answer_in_four(srl):
    # mean 1/4, population variance (0.75^2 + 3 * 0.25^2) / 4 = 3/16: A = 0.75 / (sqrt(3)/4) = sqrt(3), and -1/sqrt(3)
    a = srl.group_advantages(torch.tensor([[1.0, 0, 0, 0]]))
    torch.testing.assert_close(a, torch.tensor([[3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)]]), rtol=1e-5, atol=1e-5)


def test_advantages_have_mean_zero_and_population_std_one_in_every_group(srl):
    a = srl.group_advantages(torch.rand(50, 8, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(a.mean(-1), torch.zeros(50), atol=1e-5, rtol=0)
    torch.testing.assert_close(a.std(-1, correction=0), torch.ones(50), atol=1e-4, rtol=0)


def test_a_group_without_a_difference_has_advantages_of_zero_and_is_dropped(srl):
    rewards = torch.tensor([[0.5, 0.5, 0.5], [0.5, 0.5, 0.6]])
    assert srl.group_advantages(rewards)[0].tolist() == [0, 0, 0]
    assert srl.informative_groups(rewards, 0.01).tolist() == [False, True]


def test_the_filter_uses_the_population_std_and_a_strict_comparison(srl):
    rewards = torch.tensor([[0.0, 1.0]])                 # population std 0.5, sample std 0.707
    assert srl.informative_groups(rewards, 0.6).tolist() == [False]
    assert srl.informative_groups(rewards, 0.5).tolist() == [False]
    assert srl.informative_groups(rewards, 0.49).tolist() == [True]


@pytest.mark.parametrize("ratio, advantage, objective, has_gradient", [
    (1.5, 1.0, 1.2, False),     # clipped: it has moved far enough towards a good action
    (0.5, 1.0, 0.5, True),      # a good action that became rarer is pulled back
    (1.5, -1.0, -1.5, True),    # a bad action that became likelier is pushed back in full
    (0.5, -1.0, -0.8, False)])  # clipped: it has moved far enough away
def test_the_four_clip_cases(srl, ratio, advantage, objective, has_gradient):
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    loss = srl.grpo_loss(logprobs, torch.zeros(1, 1), torch.tensor([advantage]), torch.ones(1, 1, dtype=torch.bool), clip_eps=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(-objective)
    assert (logprobs.grad.abs().item() > 0) == has_gradient


def test_the_loss_is_a_mean_over_completions_of_the_mean_over_their_tokens(srl):
    logprobs = torch.zeros(2, 3)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    # ratio 1 everywhere: (2 + -1) / 2 = 0.5, whatever the lengths
    assert srl.grpo_loss(logprobs, logprobs, torch.tensor([2.0, -1.0]), mask, 0.2).item() == pytest.approx(-0.5)
    # over all four tokens: (3 * 2 - 1) / 4
    assert srl.grpo_loss(logprobs, logprobs, torch.tensor([2.0, -1.0]), mask, 0.2, "token").item() == pytest.approx(-1.25)


def test_padding_changes_neither_loss_nor_gradient(srl):
    torch.manual_seed(0)
    logprobs, old, a = torch.randn(3, 4) * 0.1, torch.randn(3, 4) * 0.1, torch.randn(3)
    mask = torch.arange(4) < torch.tensor([[2], [4], [3]])
    grads = []
    for pad in (0, 5):
        wide = torch.cat([logprobs, torch.randn(3, pad)], 1).requires_grad_()
        loss = srl.grpo_loss(wide, torch.cat([old, torch.randn(3, pad)], 1), a, torch.cat([mask, torch.zeros(3, pad, dtype=torch.bool)], 1), 0.2)
        loss.backward()
        grads.append((loss.item(), wide.grad[:, :4]))
    assert grads[0][0] == pytest.approx(grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1])


def test_a_completion_without_tokens_is_refused(srl):
    with pytest.raises(AssertionError, match="without tokens"):
        srl.grpo_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), torch.zeros(1, 2, dtype=torch.bool), 0.2)
