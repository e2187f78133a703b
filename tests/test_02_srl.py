"""02_srl_train.py in its order: prompt, reward, episodes, advantage, loss, dynamic sampling, update, SFT, training loop."""
import copy
import json
import math
import random
from dataclasses import replace
from difflib import SequenceMatcher
from functools import wraps
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from reference import sampled_turns, update_gradients

from engine.files import InputError
from engine.flags import parse_flags
from engine.policy import load_policy
from engine.rollout import Rollout


# 0. Knobs
def test_the_papers_recipe_is_one_flag_that_other_flags_override(srl, rlvr, monkeypatch):
    def config(script, *flags):
        monkeypatch.setattr("sys.argv", ["x", "--recipe", "paper", *flags])
        return parse_flags(script.Config(), "x", script.RECIPES)
    cfg = config(srl, "--learning_rate", "1e-6")
    assert (cfg.prompts_per_batch, cfg.group_size, cfg.temperature, cfg.max_grad_norm, cfg.dtype, cfg.decay) == (512, 8, 1.0, 1.0, "bfloat16", 0.0)
    assert cfg.learning_rate == 1e-6
    cfg = config(srl, "--method", "sft")
    assert (cfg.sft_batch, cfg.epochs, cfg.learning_rate) == (64, 3, 5e-6)
    cfg = config(rlvr)
    assert (cfg.prompts_per_batch, cfg.learning_rate, cfg.mode) == (128, 5e-7, "single")
    monkeypatch.setattr("sys.argv", ["x", "--method", "sft"])           # not runs/srl, where a run of SRL may be
    cfg = parse_flags(srl.Config(), "x", srl.RECIPES)
    assert cfg.out.endswith("runs/sft_outline") and cfg.learning_rate == 3e-3


# 1. Prompt
def test_the_prompts_have_what_the_paper_describes_and_never_the_target(srl, rlvr, example):
    user = f"{example['problem']}\n\nSolution:\n{example['partial']}"
    step = ("beginning of its solution", "the one step that comes next", "not the rest of the solution", "<think> and </think>", "informally",
            "at whatever length", "After </think> write only the next step")
    solve = ("step by step", "at any point between <think> and </think>", "final answer in \\boxed{}")
    for messages, asked, elements in ((srl.srl_prompt(example), user, step), (rlvr.solve_prompt(example), example["problem"], solve)):
        assert all(element in messages[0]["content"] for element in elements)
        assert messages[1]["content"] == asked and example["action"] not in asked
    assert srl.srl_prompt({**example, "title": "Divide"})[1]["content"] == user + "\n\nThe title of the next step: Divide"


def test_a_prompt_file_replaces_the_system_message_or_both_messages_and_one_without_a_problem_is_refused(srl, rlvr, example, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("Do one step.\n")
    assert srl.with_prompt_file(srl.srl_prompt, path)(example) == [{"role": "system", "content": "Do one step."}, srl.srl_prompt(example)[1]]
    assert rlvr.solve_prompt(example)[1] == srl.with_prompt_file(rlvr.solve_prompt, path)(example)[1]
    path.write_text("Do one step.\n---\nQ: {problem}\nS: {partial}{\\frac{1}{2}}\n")
    filled = srl.with_prompt_file(srl.srl_prompt, path)({**example, "problem": "What is {partial}?"})
    assert [m["content"] for m in filled] == ["Do one step.", f"Q: What is {{partial}}?\nS: {example['partial']}{{\\frac{{1}}{{2}}}}"]
    assert srl.with_prompt_file(srl.srl_prompt, "") is srl.srl_prompt
    path.write_text("System\n---\nno problem in it")
    for file, message in ((path, "no {problem} after the line ---"), (tmp_path / "none.txt", "No such file")):
        with pytest.raises(InputError, match=message):
            srl.with_prompt_file(srl.srl_prompt, file)


# 2. Reward
def test_similarity_is_twice_the_matched_characters_over_both_lengths_of_action_then_expert(srl):
    assert srl.similarity("abcd", "bcde") == 0.75       # M = 3 ("bcd"), T = 4 + 4: 6 / 8
    assert srl.similarity("x = 5", "x = 5") == 1.0
    assert srl.similarity("abc", "xyz") == 0.0
    # difflib's ratio is not symmetric: "tide" / "diet" matches "t" or "d" first
    assert srl.similarity("tide", "diet") == SequenceMatcher(None, "tide", "diet").ratio() == 0.25
    assert SequenceMatcher(None, "diet", "tide").ratio() != 0.25


def test_similarity_is_difflibs_on_10_000_random_pairs_and_on_real_steps(srl):
    """Whatever computes it: alphabets of few and many letters, lengths on both sides of autojunk's 200, steps with errors, emoji and LaTeX."""
    rng, pairs = random.Random(0), []
    for _ in range(10_000):
        letters = "abcdefghijklmnopqrstuvwxyz 0123456789\\{}é∑😀"[:rng.choice((2, 3, 5, 20, 50))]
        pairs.append(tuple("".join(rng.choices(letters, k=rng.randint(0, n))) for n in (40, rng.choice((40, 240)))))
    solutions = [json.loads(line)["solution"].split("\n") for line in (ROOT / "miniature/expert.jsonl").read_text().splitlines()[:40]]
    real = ROOT.parent / "shared/data/s1k/s1k_numbered_sample_60.jsonl"
    if real.exists():
        solutions += [json.loads(line)["solution"].split("\n\n")[:4] for line in real.read_text().splitlines()[:12]]
    for steps in solutions:
        for expert in steps:
            pairs += [(rng.choice(steps), expert), ("".join(c for c in expert if rng.random() > 0.05), expert)]
    for action, expert in pairs:
        for autojunk in (False, True):
            assert srl.similarity(action, expert, autojunk) == SequenceMatcher(None, action, expert, autojunk=autojunk).ratio(), (action, expert)


def test_autojunk_is_off_since_it_scores_near_copies_of_200_characters_as_different(srl):
    expert = "ab" * 100
    near = "b" + expert[:-1]                             # one character shifted
    assert srl.similarity(near, expert) > 0.99 and srl.similarity(near, expert, autojunk=True) == 0.0


@pytest.mark.parametrize("completion, parsed", [
    ("<think>hm</think>\n1. **A** b", ("hm", "1. **A** b")), ("hm</think>1. **A** b", ("hm", "1. **A** b")), ("<think></think> s", ("", "s")),
    ("<think>hm</think><solution>s</solution>", ("hm", "s")), ("1. **A** b", None), ("<think>hm</think>", None), ("<think>hm</think>  \n", None),
    ("<think>a</think>b</think>c", None), ("<think>a<think>b</think>c", None), ("<think>hm", None), ("", None)])
def test_a_completion_is_thoughts_one_closing_tag_and_a_step(srl, completion, parsed):
    assert srl.parse_completion(completion) == parsed


def test_the_reward_is_that_of_the_action_alone_and_minus_one_for_a_broken_format(srl, example):
    right = example["action"]
    assert srl.srl_reward(f"<think>short</think>\n{right}", example) == 1.0
    assert srl.srl_reward(f"<think>{'long and wrong ' * 50}</think>\n{right}", example) == 1.0
    assert srl.srl_reward(f"<think>{right}</think>\nno", example) < 0.2
    assert srl.srl_reward(right, example) == -1.0


# 3. Episodes
@pytest.fixture
def opening(tokenizer):
    """The miniature's tokenizer with a template that opens the thoughts."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}<|assistant|><think>"
    return tokenizer


@pytest.mark.parametrize("completion, reward, verdict", [
    ("3 x = 15</think>\n2. **Divide both sides by 3** x = 5", 1.0, "no answer"), ("so</think> \\boxed{5}", None, "right"),
    ("I try \\boxed{5}", -1.0, "no answer")])
def test_thoughts_that_the_template_opened_are_thoughts(srl, rlvr, opening, tiny, example, monkeypatch, completion, reward, verdict):
    monkeypatch.setattr(srl, "generate", lambda policy, tokenizer, prompts, sizes, *rest: Rollout([[1]], [[0.0]], [completion], [True]))
    ((episode,),) = srl.run_episodes(tiny, opening, [example], 1, srl.srl_prompt, None, srl.Config())
    text = episode.turns[0].text
    assert text == "<think>" + completion
    assert rlvr.judge(text, "5") == verdict
    assert reward is None or srl.srl_reward(text, example) == reward


def test_an_episode_continues_until_extend_returns_none_or_max_turns(srl, tiny, tokenizer, example):
    cfg = srl.Config(max_new_tokens=5, max_turns=4)
    tiny.generation_config.eos_token_id = list(range(len(tokenizer)))    # every completion ends at once

    def extend(e, completion):
        return {**e, "partial": e["partial"] + "x\n"} if e["partial"].count("x\n") < 2 else None
    (group,) = srl.run_episodes(tiny, tokenizer, [example], 3, srl.srl_prompt, extend, cfg)
    assert [len(e.turns) for e in group] == [3, 3, 3] and all(e.example["partial"].endswith("x\nx\n") for e in group)
    assert len(srl.run_episodes(tiny, tokenizer, [example], 1, srl.srl_prompt, lambda e, c: e, cfg)[0][0].turns) == 4


def test_the_last_episode_of_a_group_may_be_greedy_and_the_others_stay_the_same(srl, tiny, tokenizer, example):
    def completions(n, **kwargs):
        (group,) = srl.run_episodes(tiny, tokenizer, [example], n, srl.srl_prompt, lambda e, text: e, srl.Config(max_new_tokens=10, max_turns=2), **kwargs)
        return [e.turns[0].completion for e in group]
    assert completions(3, seeds=["a"], last_greedy=True) == completions(2, seeds=["a"]) + completions(1, temperature=0)


# 4. Advantage
def test_advantages_have_mean_zero_and_population_std_one_in_every_group(srl):
    # mean 1/4, population variance (0.75^2 + 3 * 0.25^2) / 4 = 3/16: A = 0.75 / (sqrt(3)/4) = sqrt(3), and -1/sqrt(3)
    a = srl.group_advantages(torch.tensor([[1.0, 0, 0, 0]]))
    torch.testing.assert_close(a, torch.tensor([[3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)]]), rtol=1e-5, atol=1e-5)
    a = srl.group_advantages(torch.rand(50, 8, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(a.mean(-1), torch.zeros(50), atol=1e-5, rtol=0)
    torch.testing.assert_close(a.std(-1, correction=0), torch.ones(50), atol=1e-4, rtol=0)


# 5. Loss
@pytest.mark.parametrize("ratio, advantage, objective, has_gradient", [
    (1.5, 1.0, 1.2, False),     # clipped: it has moved far enough towards a good action
    (0.5, 1.0, 0.5, True),      # a good action that became less probable is pulled back
    (1.5, -1.0, -1.5, True),    # a bad action that became more probable is pushed back in full
    (0.5, -1.0, -0.8, False)])  # clipped: it has moved far enough away
def test_the_four_clip_cases(srl, ratio, advantage, objective, has_gradient):
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    loss = srl.grpo_loss(logprobs, torch.zeros(1, 1), torch.tensor([advantage]), torch.ones(1, 1, dtype=torch.bool), clip_eps=0.2)
    loss.backward()
    assert loss.item() == pytest.approx(-objective)
    assert (logprobs.grad.abs().item() > 0) == has_gradient


def test_the_loss_is_a_mean_over_completions_of_token_means_or_a_mean_over_tokens(srl):
    logprobs, advantages = torch.zeros(2, 3), torch.tensor([2.0, -1.0])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    # ratio 1 everywhere: (2 + -1) / 2 = 0.5, whatever the lengths
    assert srl.grpo_loss(logprobs, logprobs, advantages, mask, 0.2).item() == pytest.approx(-0.5)
    # over all four tokens: (3 * 2 - 1) / 4
    assert srl.grpo_loss(logprobs, logprobs, advantages, mask, 0.2, "token").item() == pytest.approx(-1.25)
    with pytest.raises(AssertionError, match="a completion without tokens"):
        srl.grpo_loss(logprobs, logprobs, advantages, torch.zeros_like(mask), 0.2)


def test_padding_changes_neither_loss_nor_gradient(srl):
    torch.manual_seed(0)
    logprobs, old, advantages = torch.randn(3, 9) * 0.1, torch.randn(3, 9) * 0.1, torch.randn(3)
    mask, results = torch.arange(9) < torch.tensor([[2], [4], [3]]), []
    for T in (4, 9):
        new = logprobs[:, :T].clone().requires_grad_()
        loss = srl.grpo_loss(new, old[:, :T], advantages, mask[:, :T], 0.2)
        loss.backward()
        results.append((loss.item(), new.grad[:, :4]))
    assert results[0][0] == pytest.approx(results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


# 6. Dynamic sampling
def test_a_group_without_a_population_std_above_the_limit_is_dropped_and_equal_rewards_have_no_advantage(srl):
    rewards = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.0, 1.0, 0.0, 1.0]])     # population std 0 and 0.5, sample std 0 and 0.577
    assert srl.group_advantages(rewards)[0].tolist() == [0, 0, 0, 0]
    equal = (torch.arange(1, 1000) / 1000)[:, None].expand(-1, 8)               # the mean of 8 equal floats is not always that float
    assert srl.group_advantages(equal).eq(0).all() and ((equal.mean(-1) - equal[:, 0]) != 0).any()
    for min_std, kept in ((0.55, False), (0.5, False), (0.49, True), (0.01, True)):
        assert srl.informative_groups(rewards, min_std).tolist() == [False, kept]


@pytest.mark.parametrize("equal, tries, kept, sampled", [(32, 3, 4, 12), (10_000, 2, 0, 8)])
def test_the_batch_is_refilled_until_every_group_is_informative_or_max_tries(srl, tiny, tokenizer, task, equal, tries, kept, sampled):
    """4 prompts of 4 drawn, none kept; 4 again, none, which is the end for two tries; 4 more, all kept."""
    cfg, examples, _ = task
    calls = []

    def reward(text, example):     # a stub: the first groups have equal rewards, all later ones do not
        calls.append(example["id"])
        return 0.5 if len(calls) <= equal else float(len(calls) % 2)
    groups, stats = srl.collect(tiny, tokenizer, srl.Cursor(examples, 0), srl.srl_prompt, reward, None, replace(cfg, max_tries=tries))
    assert len(groups) == kept and stats["sampled"] == sampled and stats["completions"] == 4 * sampled == len(calls)
    assert all(rewards.std(correction=0) > cfg.eps for _, rewards, _ in groups)


# 7. Update
@pytest.mark.parametrize("loss_mean", ["completion", "token"])
def test_an_update_is_the_same_in_one_and_in_many_micro_batches(srl, tiny, tokenizer, task, loss_mean):
    cfg, examples, _ = task
    turns, grads = sampled_turns(srl, tiny, tokenizer, examples), []
    for tokens in (10_000, 1):
        stats, gradients = update_gradients(srl, tiny, turns, replace(cfg, update_tokens=tokens, max_grad_norm=1e9, loss_mean=loss_mean))
        assert stats["mismatch"] < 1e-4 and stats["clipped"] == 0
        grads.append(gradients)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


# 8. SFT
@pytest.mark.parametrize("tokens", [1, 40, 10_000])
def test_the_gradient_of_an_sft_batch_is_that_of_one_pass_over_all_its_tokens(srl, tiny, tokenizer, task, tokens):
    """Known faults of SFT baselines: a mean of the micro-batches' means, a micro-batch that is dropped. Targets of 2 to 9 tokens."""
    turns = [srl.sft_sequence(tiny, tokenizer, {**e, "action": "1" * n}, srl.srl_prompt, "outline") for n, e in enumerate(task[1][:8], 1)]
    sequences = [prompt + target for prompt, target in turns]
    losses = [torch.nn.functional.cross_entropy(tiny(torch.tensor([ids])).logits[0, len(prompt) - 1:-1], torch.tensor(target), reduction="sum")
              for (prompt, target), ids in zip(turns, sequences, strict=True)]
    expected = sum(losses) / sum(len(target) for _, target in turns)
    gradients = torch.autograd.grad(expected, [*tiny.parameters()], allow_unused=True)
    tiny.zero_grad()
    assert srl.sft_loss(tiny, turns, replace(task[0], update_tokens=tokens)) == pytest.approx(expected.item(), rel=1e-5)
    for parameter, gradient in zip(tiny.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


def test_sft_learns_its_target(srl, task):
    cfg, examples, _ = task
    cfg = replace(cfg, method="sft", epochs=30, sft_batch=4, learning_rate=1e-2, max_new_tokens=4)
    srl.train_sft(cfg, examples, examples[:4])
    log = [json.loads(line) for line in open(f"{cfg.out}/log.jsonl")]
    assert log[-1]["val_exact"] == 1.0 and log[-1]["loss"] < log[0]["loss"] / 5


@pytest.mark.parametrize("kind, target, opened", [
    ("outline", "{action}", "</think>\n{action}"), ("reasoning", "<think>two thirds</think>\n{action}", "two thirds</think>\n{action}")])
def test_an_outline_has_no_thoughts_and_a_target_continues_those_that_the_template_opened(srl, tokenizer, opening, tiny, example, kind, target, opened):
    for tok, text in ((tokenizer, target), (opening, opened)):
        _, ids = srl.sft_sequence(tiny, tok, {**example, "thoughts": "two thirds"}, srl.srl_prompt, kind)
        assert ids == tokenizer(text.format(action=example["action"]), add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    assert srl.sft_target({**example, "target": "its own"}, kind) == "its own"


# 9. Training loop
def test_the_cursor_visits_every_example_once_an_epoch_and_continues_from_its_position(srl):
    first = srl.Cursor(list(range(10)), 3).take(25)
    assert sorted(first[:10]) == sorted(first[10:20]) == list(range(10)) and first[:10] != first[10:20]
    assert srl.Cursor(list(range(10)), 3, 13).take(12) == first[13:]


def test_a_validation_names_the_first_problem_that_no_sample_solves_with_the_expected_step_and_none_if_all_are(srl, tiny, tokenizer, task):
    cfg, examples, _ = task
    run = SimpleNamespace(policy=tiny, tokenizer=tokenizer, step=7)

    def validate(solved):
        rewards = {e["id"]: [1.0 if e["id"] in solved else 0.25, 0.75] for e in examples}
        return srl.validate(run, examples, srl.srl_prompt, lambda text, e: rewards[e["id"]].pop(0), None, replace(cfg, val_samples=2))
    metrics = validate({"0", "1", "3"})
    first, *_, marker, expected, _, problem = metrics["val_unsolved"].rstrip().split("\n")
    assert (first, marker, expected) == ("=== update 7, problem 2, step 1 of 1: reward 0.250", "--- expected", "1") and problem == examples[2]["problem"]
    assert metrics["val_exact"] == 3 / 24 and validate({e["id"] for e in examples})["val_unsolved"] == ""


@pytest.mark.parametrize("signal", [True, False])
def test_training_raises_the_reward_and_without_signal_changes_nothing_and_says_why(srl, task, capsys, signal):
    cfg, examples, reward = task
    cfg = replace(cfg, rollouts=1000 if signal else 160)
    srl.train(cfg, examples, examples[:4], srl.srl_prompt, reward if signal else lambda text, example: 0.0)
    log = [json.loads(line) for line in open(f"{cfg.out}/log.jsonl")]
    assert log[0]["val_exact"] <= 0.75 < log[-1]["val_exact"] or not signal
    before, after = (load_policy(folder)[0].state_dict() for folder in (cfg.model, f"{cfg.out}/model"))
    assert all(torch.equal(before[k], after[k]) for k in before) == (not signal)
    printed = capsys.readouterr()
    assert ("no group of" in printed.out + printed.err) == (not signal)


def test_an_interrupted_run_continues_to_the_same_weights_and_log_and_never_with_other_settings(srl, task, monkeypatch):
    cfg, examples, reward = task
    srl.train(cfg, examples, examples[:4], srl.srl_prompt, reward)
    broken, calls, update = replace(cfg, out=cfg.out + "2"), [], srl.update

    @wraps(update)      # code of 02, not of this file
    def stop_at_fifth(*args):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return update(*args)
    monkeypatch.setattr(srl, "update", stop_at_fifth)
    with pytest.raises(KeyboardInterrupt):
        srl.train(broken, examples, examples[:4], srl.srl_prompt, reward)
    monkeypatch.undo()
    srl.train(broken, examples, examples[:4], srl.srl_prompt, reward)
    states = [torch.load(f"{c.out}/checkpoint.pt", weights_only=True) for c in (cfg, broken)]
    assert all(torch.equal(a, b) for a, b in zip(*(state["optimizer"]["weights"] for state in states), strict=True))
    logs = [[{k: v for k, v in json.loads(line).items() if "second" not in k and k != "peak_gb"} for line in open(f"{c.out}/log.jsonl")] for c in (cfg, broken)]
    assert logs[0] == logs[1]
    with pytest.raises(InputError, match="learning_rate"):
        srl.train(replace(cfg, learning_rate=0.5), examples, examples[:4], srl.srl_prompt, reward)
