"""engine/logprobs.py against separate forward passes and against engine/plain.py: what is sampled is what is trained."""
import random

import pytest
import torch
from reference import PREFIXES, PROMPTS, forward_logprobs, gradient

from engine import logprobs as engine_logprobs
from engine.logprobs import group_sequences, micro_batches, pack_prefix_tree, token_logprobs, tokens_after_prefix_sharing, update_cost
from engine.plain import token_logprobs_plain
from engine.rollout import generate


# Log-probabilities
@pytest.mark.parametrize("padding", ["left", "right", "none"])
def test_sampled_and_trained_log_probabilities_equal_transformers_however_the_batch_is_padded(tokenizer, tiny, padding):
    torch.manual_seed(0)
    rollout = generate(tiny, tokenizer, PROMPTS, 4, max_new_tokens=25)
    with torch.no_grad():
        trained, mask, _ = token_logprobs(tiny, [(p, rollout.completions[4 * i:4 * i + 4]) for i, p in enumerate(PROMPTS)])
    rows = [torch.tensor(PROMPTS[b // 4] + completion) for b, completion in enumerate(rollout.completions)]
    for batch in ([[b] for b in range(16)] if padding == "none" else [range(16)]):
        side = {"batch_first": True, "padding_side": padding.replace("none", "right")}
        ids, real = (torch.nn.utils.rnn.pad_sequence([function(rows[b]) for b in batch], **side) for function in (torch.clone, torch.ones_like))
        with torch.no_grad():
            logits = tiny(input_ids=ids, attention_mask=real, position_ids=(real.cumsum(1) - 1).clamp(min=0)).logits[:, :-1]
        logprobs, inside = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0], (real[:, 1:] * real[:, :-1]).bool()
        for i, b in enumerate(batch):
            expected = logprobs[i][inside[i]][-len(rollout.completions[b]):]
            torch.testing.assert_close(torch.tensor(rollout.logprobs[b]), expected, atol=1e-5, rtol=0)
            torch.testing.assert_close(trained[b][mask[b]], expected, atol=1e-5, rtol=0)


def test_eos_is_trained_and_padding_is_not_also_where_pad_equals_eos(tokenizer, tiny):
    eos = tokenizer.eos_token_id
    tiny.config.pad_token_id = eos
    groups = [([3, eos, 4], [[5, eos], [6, 7, 8, eos]]), ([9, 3, eos, 4, eos, 5], [[eos]])]
    logprobs, mask, _ = token_logprobs(tiny, groups)
    assert mask.tolist() == [[True, True, False, False], [True] * 4, [True, False, False, False]]
    for row, (prompt, completion) in enumerate((p, c) for p, group in groups for c in group):
        torch.testing.assert_close(logprobs[row][mask[row]], forward_logprobs(tiny, prompt, completion), atol=1e-5, rtol=0)


@pytest.mark.parametrize("groups, passes", [
    ([(PROMPTS[1], [[40, 41, 42], [43, 1], [44, 45, 46, 47, 1]]), (PROMPTS[0], [[50, 1]])], [(1, 7 + 3), (4, 4)]),       # the last token is not read
    ([(prompt, [[40 + n, 41, 1], [43, 1]]) for n, prompt in enumerate(PREFIXES)], [(1, 3 + 7 + 1 + 4 + 2 + 2 + 1), (16, 2)]),
    ([(PROMPTS[1], [[40, 41, 1], [43, 1], [40, 41, 1], [40, 41, 1]])], [(1, 7), (2, 2)])],
                         ids=["a shared prompt", "shared prefixes of prompts", "equal completions"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_is_shared_is_computed_once_with_the_log_probabilities_and_gradients_of_separate_sequences(tiny, monkeypatch, groups, passes, temperature):
    """The reference is one forward pass for each sequence, and engine/plain.py; each completion has a weight of its own."""
    pairs, shapes, forward = [(prompt, c) for prompt, group in groups for c in group], [], tiny.model.forward
    weights = torch.randn(len(pairs), generator=torch.Generator().manual_seed(0))
    with monkeypatch.context() as patch:
        patch.setattr(tiny.model, "forward", lambda *args, **kwargs: shapes.append(kwargs["input_ids"].shape) or forward(*args, **kwargs))
        logprobs, mask, entropy = token_logprobs(tiny, groups, temperature)
    assert shapes == passes
    separate = gradient(tiny, sum(forward_logprobs(tiny, *pair, temperature).sum() * w for pair, w in zip(pairs, weights, strict=True)))
    assert (gradient(tiny, ((logprobs * mask).sum(1) * weights).sum()) - separate).norm() < 1e-5 * separate.norm()
    tiny.set_attn_implementation("eager")
    plain, plain_mask, plain_entropy = token_logprobs_plain(tiny, groups, temperature)
    torch.testing.assert_close(logprobs * mask, plain * plain_mask, atol=1e-5, rtol=0)
    assert (gradient(tiny, ((plain * plain_mask).sum(1) * weights).sum()) - separate).norm() < 1e-5 * separate.norm()
    alone = sum(token_logprobs_plain(tiny, [(prompt, [c])], temperature)[2].item() * len(c) for prompt, c in pairs)
    assert mask.equal(plain_mask) and [entropy.item(), plain_entropy.item()] == pytest.approx([alone / mask.sum().item()] * 2, rel=1e-5)


# Prefix trees
def test_prompts_with_a_shared_prefix_are_packed_as_a_tree():
    """The example of pack_prefix_tree's docstring, by hand."""
    prompts = [[1, 2, 4, 5], [24, 25], [1, 2, 3]]
    ids, attends, positions, paths = pack_prefix_tree(prompts, 8)
    assert ids.tolist() == [[1, 2, 3, 4, 5, 24, 25]] and positions.tolist() == [[0, 1, 2, 2, 3, 0, 1]]
    assert [path.tolist() for path in paths] == [[0, 1, 3, 4], [5, 6], [0, 1, 2]]
    assert [row.nonzero()[:, 0].tolist() for row in attends[0]] == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4], [5], [5, 6]]
    ids, _, _, paths = pack_prefix_tree(prompts, 4)                                              # a row has no room for two
    assert ids.tolist() == [[1, 2, 3, 0], [1, 2, 4, 5], [24, 25, 0, 0]] and [path.tolist() for path in paths] == [[4, 5, 6, 7], [8, 9], [0, 1, 2]]


@pytest.mark.parametrize("seed", range(5))
def test_every_path_of_a_tree_is_its_prompt_and_attends_to_nothing_else(seed):
    rng = random.Random(seed)
    prompts = [[rng.randint(1, 2) for _ in range(rng.randint(1, 12))] for _ in range(40)]
    ids, attends, positions, paths = pack_prefix_tree(prompts, 30)
    L = ids.shape[1]
    assert L <= 30 and ids.count_nonzero() < 0.75 * sum(map(len, prompts))                       # prompts of two tokens share much
    for prompt, path in zip(prompts, paths, strict=True):
        assert ids.flatten()[path].tolist() == prompt and positions.flatten()[path].tolist() == list(range(len(prompt)))
        for n, index in enumerate(path.tolist()):
            assert attends[index // L, index % L].nonzero()[:, 0].tolist() == (path[:n + 1] % L).sort().values.tolist()


# Micro-batches
TURNS = [(prompt, completion, None, 0.0) for prompt in PREFIXES for completion in ([40, 41, 1], [43, 1], [40, 41, 1])]


def test_a_micro_batch_counts_shared_tokens_once():
    computed = 3 + 7 + 1 + 4 + 2 + 2 + 1 + 5 * len(PREFIXES)
    assert sum(tokens_after_prefix_sharing(sorted(TURNS, key=lambda t: t[:2]))) == computed
    assert len(group_sequences(TURNS, computed)) == 1 and len(group_sequences(TURNS, computed - 1)) == 2
    assert len(group_sequences(TURNS, computed, share=False)) > 2
    cost = update_cost(TURNS, 1.0)
    assert cost["prompt_tokens_saved"] == pytest.approx(1 - 20 / (3 * sum(map(len, PREFIXES)))) and cost["completion_tokens_saved"] == pytest.approx(3 / 8)


def test_each_rank_gets_whole_groups_and_all_ranks_together_every_turn(tiny, monkeypatch):
    parts = []
    monkeypatch.setattr(engine_logprobs, "num_ranks", lambda: 3)
    for r in range(3):
        monkeypatch.setattr(engine_logprobs, "rank", lambda r=r: r)
        parts.append([turn for batch, _ in micro_batches(tiny, TURNS, 1000) for group in batch for turn in group])
    assert sorted(turn[:2] for part in parts for turn in part) == sorted(turn[:2] for turn in TURNS)
    assert all(5 < len(part) < 11 for part in parts)                                             # of 24, whole groups of 3
