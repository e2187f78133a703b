"""Rollout and log-probabilities: what is sampled is what is trained."""
import random

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12, 13, 14], [20], [30, 31, 32, 33]]
ALIKE = [*PROMPTS, [*PROMPTS[1], 15, 16], [*PROMPTS[1][:5], 40, 41], [*PROMPTS[1][:5], 42], PROMPTS[0][:2]]      # prompts that begin alike


def plain_logprobs(policy, prompt, completion):
    """One sequence, one forward: the reference."""
    ids = torch.tensor([prompt + completion])
    return policy(ids).logits[0, len(prompt) - 1:-1].log_softmax(-1).gather(-1, torch.tensor(completion)[:, None])[:, 0]


def test_greedy_tokens_equal_generates_on_ragged_prompts(srl, tiny, tokenizer):
    ours = srl.generate(tiny, tokenizer, PROMPTS, 1, temperature=0, max_new_tokens=30).completions
    for prompt, completion in zip(PROMPTS, ours, strict=True):
        reference = tiny.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=30)[0, len(prompt):].tolist()
        assert completion == reference


def small(tokenizer, kind, **more):
    """A random model of an architecture, with two key-value heads for four query heads."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
                                  num_key_value_heads=2, head_dim=8, eos_token_id=1, pad_token_id=0, bos_token_id=None, initializer_range=0.2, **more)
    return AutoModelForCausalLM.from_config(config, attn_implementation="grouped_query").eval()


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3"])
def test_greedy_tokens_and_log_probabilities_equal_transformers_on_other_architectures(srl, tokenizer, kind):
    """Qwen3 also normalises queries and keys."""
    model = small(tokenizer, kind)
    ours = srl.generate(model, tokenizer, PROMPTS, 1, temperature=0, max_new_tokens=20).completions
    logprobs, mask, _ = srl.token_logprobs(model, [(prompt, [completion]) for prompt, completion in zip(PROMPTS, ours, strict=True)])
    model.set_attn_implementation("eager")                                                       # transformers' own plain attention
    for b, (prompt, completion) in enumerate(zip(PROMPTS, ours, strict=True)):
        assert completion == model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=20)[0, len(prompt):].tolist()
        torch.testing.assert_close(logprobs[b][mask[b]], plain_logprobs(model, prompt, completion), atol=1e-5, rtol=0)


COMPUTED = ("llama qwen2 qwen3 qwen3_moe mistral mixtral phi phi3 gemma gemma3_text olmo olmo2 olmo3 glm glm4 smollm3 starcoder2 gpt2 gpt_neox exaone4 "
            "ernie4_5 seed_oss helium apertus arcee opt").split()
# scaled scores, capped scores, attention sinks, layers without keys and values, an attention of its own
PLAIN = [("granite", {"logits_scaling": 8.0}), ("cohere", {}), ("gemma2", {}), ("gpt_oss", {}), ("qwen3_next", {}), ("llama4_text", {}), ("nemotron", {})]


@pytest.mark.parametrize("kind", COMPUTED)
def test_rollout_and_update_of_these_architectures_compute_what_their_own_forward_computes(srl, tokenizer, kind):
    model = small(tokenizer, kind)
    assert srl.other_scores(model, srl.SharedPromptCache) == ""
    logprobs, mask, _ = srl.token_logprobs(model, [(prompt, [[7, 8, 9, 1], [10, 1]]) for prompt in ALIKE])
    assert model.config._attn_implementation == "grouped_query"
    memory = {}
    srl.generate(model, tokenizer, PROMPTS, 1, max_new_tokens=2, memory=memory)
    sampled = srl.generate(model, tokenizer, ALIKE, 1, max_new_tokens=5, max_rows=3, memory=memory)        # rows that began at different times, too
    model.set_attn_implementation("eager")
    reference = torch.cat([plain_logprobs(model, prompt, completion) for prompt in ALIKE for completion in ([7, 8, 9, 1], [10, 1])])
    torch.testing.assert_close(logprobs[mask], reference, atol=1e-4, rtol=0)
    reference = torch.cat([plain_logprobs(model, prompt, completion) for prompt, completion in zip(ALIKE, sampled.completions, strict=True)])
    torch.testing.assert_close(torch.tensor(sum(sampled.logprobs, [])), reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind, more", PLAIN, ids=[kind for kind, _ in PLAIN])
def test_other_architectures_get_a_prompt_for_each_completion_and_compute_what_their_own_forward_computes(srl, tokenizer, tmp_path, capsys, kind, more):
    small(tokenizer, kind, **more).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model, _ = srl.load_policy(tmp_path)
    assert "every completion gets its own prompt" in capsys.readouterr().out
    ours = srl.generate(model, tokenizer, PROMPTS, 1, temperature=0, max_new_tokens=12, max_rows=3).completions                # three rows, then the fourth
    for prompt, completion in zip(PROMPTS, ours, strict=True):
        assert completion == model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12)[0, len(prompt):].tolist()
    sampled = srl.generate(model, tokenizer, PROMPTS, 2, max_new_tokens=12)
    logprobs, mask, _ = srl.token_logprobs(model, [(prompt, sampled.completions[2 * i:2 * i + 2]) for i, prompt in enumerate(PROMPTS)])
    for b, completion in enumerate(sampled.completions):
        torch.testing.assert_close(logprobs[b][mask[b]], torch.tensor(sampled.logprobs[b]), atol=1e-4, rtol=0)
        torch.testing.assert_close(logprobs[b][mask[b]], plain_logprobs(model, PROMPTS[b // 2], completion), atol=1e-4, rtol=0)
    logprobs.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()) and model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_a_short_window_is_computed_without_shared_prompts(srl, segment, tokenizer, tmp_path):
    small(tokenizer, "mistral", sliding_window=14).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(segment.InputError, match="--no-share_prompts"):
        srl.generate(*srl.load_policy(tmp_path), PROMPTS, 1, max_new_tokens=12)
    model, _ = srl.load_policy(tmp_path, share=False)
    ours = srl.generate(model, tokenizer, PROMPTS, 1, temperature=0, max_new_tokens=12).completions
    for prompt, completion in zip(PROMPTS, ours, strict=True):
        assert completion == model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12)[0, len(prompt):].tolist()


def test_an_architecture_that_no_cache_serves_is_refused(srl, segment, tokenizer, tmp_path):
    small(tokenizer, "mamba").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(segment.InputError, match="model of type mamba"):
        srl.load_policy(tmp_path)


def test_greedy_tokens_equal_generates_on_the_miniatures_model(srl, tokenizer, example):
    policy, _ = srl.load_policy(str(srl.HERE / "miniature/base"))
    problems = ("Solve 3x + 4 = 19", "Solve 2(5x - 7) + 3 = 4x + 25", "Solve 6(9x + 2) + 53 = 46x - 63")
    prompts = [srl.encode(tokenizer, srl.srl_prompt({**example, "problem": problem, "partial": ""})) for problem in problems]
    ours = srl.generate(policy, tokenizer, prompts, 1, temperature=0, max_new_tokens=60).completions
    policy.set_attn_implementation("eager")
    for prompt, completion in zip(prompts, ours, strict=True):
        assert completion == policy.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=60)[0, len(prompt):].tolist()


def test_log_probabilities_of_the_rollout_equal_those_of_training_and_of_a_plain_forward(srl, tiny, tokenizer):
    torch.manual_seed(0)
    rollout = srl.generate(tiny, tokenizer, PROMPTS, 4, max_new_tokens=25)
    groups = [(prompt, rollout.completions[4 * i:4 * i + 4]) for i, prompt in enumerate(PROMPTS)]
    logprobs, mask, _ = srl.token_logprobs(tiny, groups)
    for b, (sampled, completion) in enumerate(zip(rollout.logprobs, rollout.completions, strict=True)):
        trained = logprobs[b][mask[b]]
        torch.testing.assert_close(trained, torch.tensor(sampled), atol=1e-5, rtol=0)
        torch.testing.assert_close(trained, plain_logprobs(tiny, PROMPTS[b // 4], completion), atol=1e-5, rtol=0)


def test_the_end_token_is_trained_and_padding_is_not(srl, tiny, tokenizer):
    eos = tokenizer.eos_token_id
    logprobs, mask, _ = srl.token_logprobs(tiny, [([5, 6], [[7, eos], [8, 9, 10, eos]])])
    assert mask.tolist() == [[True, True, False, False], [True] * 4]
    assert logprobs[0, 1].item() == pytest.approx(plain_logprobs(tiny, [5, 6], [7, eos])[1].item(), abs=1e-5)


def test_pad_equal_to_eos_hides_no_end_token(srl, tiny, tokenizer):
    eos = tokenizer.eos_token_id
    groups = [([5, eos, 6], [[7, eos], [8, 9, eos]]), ([4], [[eos]])]
    a, mask, _ = srl.token_logprobs(tiny, groups, eos)
    b, _, _ = srl.token_logprobs(tiny, groups)
    torch.testing.assert_close(a, b)
    assert mask.sum().item() == 6


def test_gradients_with_a_shared_prompt_equal_those_of_separate_sequences(srl, tiny, tokenizer):
    groups = [(PROMPTS[1], [[40, 41, 42], [43, 1], [44, 45, 46, 47, 1]]), (PROMPTS[0], [[50, 1]])]
    logprobs, mask, _ = srl.token_logprobs(tiny, groups)
    logprobs[mask].sum().backward()
    shared = [p.grad.clone() for p in tiny.parameters()]
    tiny.zero_grad()
    sum(plain_logprobs(tiny, prompt, c).sum() for prompt, completions in groups for c in completions).backward()
    shared, separate = torch.cat([g.flatten() for g in shared]), torch.cat([p.grad.flatten() for p in tiny.parameters()])
    assert (shared - separate).norm() < 1e-5 * separate.norm()


def test_prompts_that_begin_alike_stand_once_in_a_row(srl):
    """The example of lay_out's docstring, by hand."""
    ids, sees, positions, paths = srl.lay_out([[1, 2, 4, 5], [24, 25], [1, 2, 3]], 8)
    assert ids.tolist() == [[1, 2, 3, 4, 5, 24, 25]] and positions.tolist() == [[0, 1, 2, 2, 3, 0, 1]]
    assert [path.tolist() for path in paths] == [[0, 1, 3, 4], [5, 6], [0, 1, 2]]
    assert [row.nonzero()[:, 0].tolist() for row in sees[0]] == [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4], [5], [5, 6]]
    ids, _, _, paths = srl.lay_out([[1, 2, 4, 5], [24, 25], [1, 2, 3]], 4)                       # no room for a second beginning
    assert ids.tolist() == [[1, 2, 3, 0], [1, 2, 4, 5], [24, 25, 0, 0]] and [path.tolist() for path in paths] == [[4, 5, 6, 7], [8, 9], [0, 1, 2]]


@pytest.mark.parametrize("seed", range(5))
def test_every_path_of_a_layout_holds_its_prompt_and_sees_nothing_else(srl, seed):
    rng = random.Random(seed)
    prompts = [[rng.randint(1, 2) for _ in range(rng.randint(1, 12))] for _ in range(40)]
    ids, sees, positions, paths = srl.lay_out(prompts, 30)
    L = ids.shape[1]
    assert L <= 30 and ids.count_nonzero() < 0.75 * sum(map(len, prompts))                         # of two tokens, much is alike
    for prompt, path in zip(prompts, paths, strict=True):
        assert ids.flatten()[path].tolist() == prompt and positions.flatten()[path].tolist() == list(range(len(prompt)))
        for n, place in enumerate(path.tolist()):
            assert sees[place // L, place % L].nonzero()[:, 0].tolist() == (path[:n + 1] % L).sort().values.tolist()


def test_gradients_of_prompts_that_begin_alike_equal_those_of_separate_sequences(srl, tiny, monkeypatch):
    groups = [(prompt, [[40 + n, 41, 1], [43, 1]]) for n, prompt in enumerate(ALIKE)]
    read, forward = [], tiny.model.forward
    monkeypatch.setattr(tiny.model, "forward", lambda *args, **kwargs: read.append(kwargs["input_ids"].shape) or forward(*args, **kwargs))
    logprobs, mask, _ = srl.token_logprobs(tiny, groups)
    assert read[0] == (1, 3 + 7 + 1 + 4 + 2 + 2 + 1)
    logprobs[mask].sum().backward()
    shared = torch.cat([p.grad.flatten() for p in tiny.parameters()])
    tiny.zero_grad()
    sum(plain_logprobs(tiny, prompt, c).sum() for prompt, completions in groups for c in completions).backward()
    separate = torch.cat([p.grad.flatten() for p in tiny.parameters()])
    assert (shared - separate).norm() < 1e-5 * separate.norm()


def test_a_micro_batch_counts_what_is_computed_once_and_the_ranks_share_it_out(srl, tiny, monkeypatch):
    turns = [(prompt, completion, None, 0.0) for prompt in ALIKE for completion in ([40, 41, 1], [43, 1], [40, 41, 1])]
    computed = 3 + 7 + 1 + 4 + 2 + 2 + 1 + 5 * len(ALIKE)
    assert sum(srl.computed_once(sorted(turns, key=lambda t: t[:2]))) == computed
    assert len(srl.micro_batches(turns, computed)) == 1 and len(srl.micro_batches(turns, computed - 1)) == 2
    assert len(srl.micro_batches(turns, computed, share=False)) > 2
    cost = srl.update_cost(turns, 1.0)
    assert cost["prompt_tokens_saved"] == pytest.approx(1 - 20 / (3 * sum(map(len, ALIKE)))) and cost["completion_tokens_saved"] == pytest.approx(3 / 8)
    dealt = []
    monkeypatch.setattr(srl, "num_ranks", lambda: 3)
    for r in range(3):
        monkeypatch.setattr(srl, "rank", lambda r=r: r)
        dealt.append([turn for batch, _ in srl.rank_batches(tiny, turns, 1000) for group in batch for turn in group])
    assert sorted(turn[:2] for part in dealt for turn in part) == sorted(turn[:2] for turn in turns)
    assert all(5 < len(part) < 11 for part in dealt)                                              # of 24, whole groups of 3


def test_equal_completions_of_a_group_are_computed_once_and_learned_from_as_often_as_they_stand(srl, tiny, tokenizer, monkeypatch):
    prompt, group, advantages = PROMPTS[1], [[40, 41, 1], [43, 1], [40, 41, 1], [40, 41, 1]], torch.tensor([1.0, -3.0, 1.5, 0.5])
    passes, forward = [], tiny.model.forward
    monkeypatch.setattr(tiny.model, "forward", lambda *args, **kwargs: passes.append(kwargs["input_ids"].shape) or forward(*args, **kwargs))
    logprobs, mask, entropy = srl.token_logprobs(tiny, [(prompt, group)])
    assert passes == [(1, len(prompt)), (2, 2)]                                                  # two completions, the last token is not read
    (logprobs * mask).sum(1).mul(advantages).sum().backward()
    ours = torch.cat([p.grad.flatten() for p in tiny.parameters()])
    tiny.zero_grad()
    sum(plain_logprobs(tiny, prompt, c).sum() * a for c, a in zip(group, advantages, strict=True)).backward()
    plain = torch.cat([p.grad.flatten() for p in tiny.parameters()])
    assert (ours - plain).norm() < 1e-5 * plain.norm()
    apart = [srl.token_logprobs(tiny, [(prompt, [c])])[2] for c in group]
    assert entropy.item() == pytest.approx(sum(e.item() * len(c) for e, c in zip(apart, group, strict=True)) / 11, rel=1e-5)


def test_completions_that_begin_alike_share_a_row_until_they_part(srl, tokenizer, example, monkeypatch):
    policy, _ = srl.load_policy(str(srl.HERE / "miniature/base"))
    prompts = [srl.encode(tokenizer, srl.srl_prompt({**example, "problem": f"Solve {text}", "partial": ""})) for text in ("3x + 4 = 19", "2(5x - 7) + 3 = 25")]
    widths, step, uniforms = [], srl.SharedPromptCache.step, torch.rand(32, 80, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(srl.SharedPromptCache, "step", lambda self, token: widths.append(len(token)) or step(self, token))
    shared = srl.generate(policy, tokenizer, prompts, 16, max_new_tokens=80, uniforms=uniforms)
    assert 0 < sum(widths) < 0.8 * sum(map(len, shared.completions))
    for n, width in enumerate(widths, 1):
        alive = {(b // 16, *completion[:n]) for b, completion in enumerate(shared.completions) if len(completion) > n}
        assert len(alive) <= width <= len(alive) / 0.8                                           # rows that ended stay until they are a fifth
    monkeypatch.setattr(srl.SharedPromptCache, "branches", False)
    apart = srl.generate(policy, tokenizer, prompts, 16, max_new_tokens=80, uniforms=uniforms)
    assert shared.completions == apart.completions and shared.finished == apart.finished
    torch.testing.assert_close(torch.tensor(sum(shared.logprobs, [])), torch.tensor(sum(apart.logprobs, [])), atol=1e-4, rtol=0)


def test_among_sampled_completions_one_may_take_the_likeliest_tokens(srl, tiny, tokenizer, example):
    uniforms = torch.rand(len(PROMPTS) * 3, 20)
    uniforms[::3] = -1
    mixed = srl.generate(tiny, tokenizer, PROMPTS, 3, max_new_tokens=20, uniforms=uniforms)
    assert mixed.completions[::3] == srl.generate(tiny, tokenizer, PROMPTS, 1, temperature=0, max_new_tokens=20).completions
    uniforms[::3] = 0.5
    assert mixed.completions[1::3] == srl.generate(tiny, tokenizer, PROMPTS, 3, max_new_tokens=20, uniforms=uniforms).completions[1::3]
    cfg, ask = srl.Config(max_new_tokens=10, max_turns=2), (srl.srl_prompt, lambda e, text: e)
    (three,), (two,) = (srl.play(tiny, tokenizer, [example], n, *ask, cfg, seeds=["a"], greedy=n == 3) for n in (3, 2))
    ((greedy,),) = srl.play(tiny, tokenizer, [example], 1, *ask, cfg, temperature=0)
    assert three[2].turns[0][1] == greedy.turns[0][1] and [e.turns[0][1] for e in three[:2]] == [e.turns[0][1] for e in two]


def test_several_end_ids_all_end_a_completion(srl, tiny, tokenizer):
    tiny.generation_config.eos_token_id = list(range(0, 200))
    rollout = srl.generate(tiny, tokenizer, PROMPTS, 4, max_new_tokens=60)
    assert all(done == (ids[-1] < 200) and all(i >= 200 for i in ids[:-1]) for ids, done in zip(rollout.completions, rollout.finished, strict=True))


def test_sampling_frequencies_agree_with_the_model(srl, tiny, tokenizer):
    torch.manual_seed(0)
    draws = torch.tensor([c[0] for c in srl.generate(tiny, tokenizer, [[5, 6, 7]], 20_000, max_new_tokens=1, max_rows=20_000).completions])
    p = tiny(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    common = p * 20_000 >= 20
    observed, expected = draws.bincount(minlength=len(p))[common], p[common] * 20_000
    chi2, df = ((observed - expected) ** 2 / expected).sum().item(), int(common.sum()) - 1
    assert df > 20 and chi2 < df + 5 * (2 * df) ** 0.5   # five standard deviations of the chi-square distribution


@pytest.mark.parametrize("max_rows", [1, 5, 8, 100])
def test_waiting_prompts_take_the_places_of_finished_rows_and_change_nothing(srl, tiny, tokenizer, max_rows):
    """Rows that began at different times stand side by side: tokens and log-probabilities are those of each row alone."""
    torch.manual_seed(0)
    prompts = [torch.randint(5, len(tokenizer), (n,)).tolist() for n in (3, 11, 7, 1, 7, 5, 2, 9)]
    tiny.generation_config.eos_token_id = list(range(0, len(tokenizer), 6))                      # about six tokens each: rows finish at all times
    sizes = [2, 3, 1, 4, 2, 2, 1, 3]
    rollout = srl.generate(tiny, tokenizer, prompts, sizes, max_new_tokens=20, max_rows=max_rows)
    owners = [prompt for prompt, size in zip(prompts, sizes, strict=True) for _ in range(size)]
    assert len({len(completion) for completion in rollout.completions}) > 4
    for prompt, completion, logprobs in zip(owners, rollout.completions, rollout.logprobs, strict=True):
        torch.testing.assert_close(torch.tensor(logprobs), plain_logprobs(tiny, prompt, completion), atol=1e-5, rtol=0)
    greedy = srl.generate(tiny, tokenizer, prompts, sizes, temperature=0, max_new_tokens=20, max_rows=max_rows).completions
    for prompt, completion in zip(owners, greedy, strict=True):
        assert completion == tiny.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=20)[0, len(prompt):].tolist()


def test_prompts_are_read_in_parts_that_fit_a_cache_and_the_parts_change_nothing(srl, tiny, tokenizer, monkeypatch):
    torch.manual_seed(0)
    prompts = [torch.randint(5, len(tokenizer), (n,)).tolist() for n in (90, 80, 61, 60, 33, 20) * 8]
    reads, read = [], srl.SharedPromptCache.read
    monkeypatch.setattr(srl.SharedPromptCache, "read", lambda self, part, pasts: reads.append(len(part)) or read(self, part, pasts))
    rollout = srl.generate(tiny, tokenizer, prompts, 2, max_new_tokens=5)
    assert max(reads) * 90 <= 2000 and sum(reads) == len(prompts) and len(reads) > 2
    for b, (completion, logprobs) in enumerate(zip(rollout.completions, rollout.logprobs, strict=True)):
        torch.testing.assert_close(torch.tensor(logprobs), plain_logprobs(tiny, prompts[b // 2], completion), atol=1e-5, rtol=0)


def test_a_turn_does_not_read_again_what_the_last_one_read(srl, tokenizer, example, monkeypatch):
    policy, _ = srl.load_policy(str(srl.HERE / "miniature/base"))
    problems = [{**example, "problem": f"Solve 2({n}x - 7) + 3 = 4x + 25", "partial": ""} for n in range(5, 11)]
    read, left_pad = [], srl.left_pad
    monkeypatch.setattr(srl, "left_pad", lambda prompts, *args: read.append(list(map(len, prompts))) or left_pad(prompts, *args))

    def played():
        def extend(e, completion):
            action = srl.action_of(completion)
            return {**e, "partial": e["partial"] + action + "\n"} if action else None
        read.clear()
        episodes = srl.play(policy, tokenizer, problems, 4, srl.srl_prompt, extend, srl.Config(max_turns=4), seeds=list(range(6)))
        return [[turn[:2] for turn in e.turns] for group in episodes for e in group], [e.turns[-1][2][0] for group in episodes for e in group], read.copy()
    ours, probabilities, with_memory = played()
    monkeypatch.setattr(srl, "free_bytes", lambda device: 0)                                      # no room to remember anything
    monkeypatch.setattr(srl, "rows_that_fit", lambda *args: 384)
    plain, others, without = played()
    assert ours == plain
    torch.testing.assert_close(torch.tensor(probabilities), torch.tensor(others), atol=1e-4, rtol=0)
    assert with_memory[0] == without[0] and sum(map(sum, with_memory)) < 0.5 * sum(map(sum, without))
    memory = {}
    srl.generate(policy, tokenizer, [[5, 6, 7]], 1, max_new_tokens=2, memory=memory)
    assert list(memory) == []                                                                    # no room


def test_rows_side_by_side_are_as_many_as_memory_holds(srl, tiny, tokenizer, monkeypatch):
    """By hand: a token of the tiny model takes layers x heads x dimension keys and as many values of 4 bytes."""
    c = tiny.config
    a_token = 2 * c.num_hidden_layers * c.num_key_value_heads * (c.hidden_size // c.num_attention_heads) * 4
    a_row = (20 + 40 / 8) * a_token + 16 * c.vocab_size
    fits = lambda free: srl.rows_that_fit(tiny, [[5] * 40, [5] * 3], [8, 1], 20, free)  # noqa: E731
    assert fits(2 * 7 * a_row + 10) == 7 and fits(2 * 7 * a_row - 10) == 6 and fits(0) == 1
    widths, step = [], srl.SharedPromptCache.step
    monkeypatch.setattr(srl.SharedPromptCache, "step", lambda self, token: widths.append(len(token)) or step(self, token))
    monkeypatch.setattr(srl, "free_bytes", lambda device: 2 * 4 * (4 + 7) * a_token + 8 * 16 * c.vocab_size)
    srl.generate(tiny, tokenizer, PROMPTS, 1, max_new_tokens=4)
    assert max(widths) <= 4
    widths.clear()
    monkeypatch.setattr(srl, "free_bytes", lambda device: 0)
    srl.generate(tiny, tokenizer, PROMPTS, 1, max_new_tokens=4)
    assert max(widths) == 1
    assert srl.rows_that_fit(tiny, PROMPTS, [1] * 4, 4, 1 << 60) > 10**6


def test_an_episode_goes_on_until_extend_returns_none(srl, tiny, tokenizer, example):
    cfg = srl.Config(max_new_tokens=5, max_turns=4)
    tiny.generation_config.eos_token_id = list(range(len(tokenizer)))    # every completion ends at once

    def extend(e, completion):
        return {**e, "partial": e["partial"] + "x\n"} if e["partial"].count("x\n") < 2 else None
    (group,) = srl.play(tiny, tokenizer, [example], 3, srl.srl_prompt, extend, cfg)
    assert [len(e.turns) for e in group] == [3, 3, 3] and all(e.example["partial"].endswith("x\nx\n") for e in group)
    assert len(srl.play(tiny, tokenizer, [example], 1, srl.srl_prompt, lambda e, c: e, cfg)[0][0].turns) == 4   # max_turns


def test_a_step_that_is_written_down_once_computes_with_the_weights_of_now(srl, tiny, tokenizer, monkeypatch):
    def sample():
        torch.manual_seed(0)
        return srl.generate(tiny, tokenizer, PROMPTS, 4, max_new_tokens=40, max_rows=8)
    tiny.generation_config.eos_token_id = list(range(0, len(tokenizer), 6))                      # rows finish at all times, and others join
    sample()
    (steps,) = srl.TRACED[tiny].values()
    written = steps.copy()
    assert len(written) == 2 and all(isinstance(step, torch.jit.ScriptModule) for step in written.values())     # rows of one length, and of several
    with torch.no_grad():
        for weight in tiny.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    ours = sample()
    assert steps == written and len(srl.TRACED[tiny]) == 1
    monkeypatch.setattr(srl.SharedPromptCache, "traced", lambda self, tensors: srl.DecodeStep(self.policy.base_model))
    plain = sample()
    assert ours.completions == plain.completions
    torch.testing.assert_close(torch.tensor(sum(ours.logprobs, [])), torch.tensor(sum(plain.logprobs, [])), atol=1e-5, rtol=0)


def test_a_step_that_is_steered_by_a_number_runs_as_it_stands(srl, tokenizer):
    """This kind of position changes its frequencies where a sequence gets longer than those of training."""
    model = small(tokenizer, "llama", max_position_embeddings=16, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    srl.generate(model, tokenizer, PROMPTS, 1, max_new_tokens=5)
    (steps,) = srl.TRACED[model].values()
    assert [type(step) for step in steps.values()] == [srl.DecodeStep]


@pytest.mark.parametrize("gone", ["trace", "TracerWarning"])
def test_without_torchscript_a_step_runs_as_it_stands(srl, tiny, tokenizer, monkeypatch, gone):
    monkeypatch.delattr(torch.jit, gone)
    ours = srl.generate(tiny, tokenizer, PROMPTS, 1, temperature=0, max_new_tokens=10).completions
    assert [type(step) for steps in srl.TRACED[tiny].values() for step in steps.values()] == [srl.DecodeStep]
    for prompt, completion in zip(PROMPTS, ours, strict=True):
        assert completion == tiny.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=10)[0, len(prompt):].tolist()


def test_steps_whose_tensors_stay_in_place_as_on_a_gpu_write_the_same(srl, tiny, tokenizer, monkeypatch):
    def sample():
        torch.manual_seed(0)
        return srl.generate(tiny, tokenizer, PROMPTS, 4, max_new_tokens=40, max_rows=8)
    ours, init = sample(), srl.SharedPromptCache.__init__

    def static(self, *args):
        init(self, *args)
        self.static = True
    monkeypatch.setattr(srl.SharedPromptCache, "__init__", static)
    fixed = sample()
    assert fixed.completions == ours.completions
    torch.testing.assert_close(torch.tensor(sum(fixed.logprobs, [])), torch.tensor(sum(ours.logprobs, [])), atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_steps_on_a_gpu_write_what_the_cpu_writes(srl, tokenizer):
    policy, _ = srl.load_policy(str(srl.HERE / "miniature/base"))
    uniforms = torch.rand(16, 40)
    ours = srl.generate(policy, tokenizer, PROMPTS, 4, max_new_tokens=40, max_rows=8, uniforms=uniforms)
    fast = srl.generate(policy.cuda(), tokenizer, PROMPTS, 4, max_new_tokens=40, max_rows=8, uniforms=uniforms)
    assert fast.completions == ours.completions
    torch.testing.assert_close(torch.tensor(sum(fast.logprobs, [])), torch.tensor(sum(ours.logprobs, [])), atol=1e-4, rtol=0)
