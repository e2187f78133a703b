"""Dynamic sampling with refill, the update, the loop, resume."""
import json
from dataclasses import replace

import pytest
import torch


@pytest.fixture
def task(tmp_path, tiny, tokenizer, srl):
    """A one-step task: two tokens of at least seven characters together, which about half of the random ones have. Config for a small model in a folder."""
    tiny.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    examples = [{"id": str(i), "k": 1, "n": 1, "problem": f"Solve {i}", "partial": "", "action": "1"} for i in range(12)]
    cfg = srl.Config(model=str(tmp_path / "model"), out=str(tmp_path / "out"), prompts_per_batch=4, group_size=4, max_new_tokens=2, rollouts=160, eval_every=3,
                     learning_rate=3e-3, device="cpu")

    def reward(text, example):
        return float(len(text) >= 7)
    return cfg, examples, reward


def test_the_batch_is_refilled_until_every_group_has_a_difference(srl, tiny, tokenizer, task):
    cfg, examples, _ = task
    calls = []

    def reward(text, example):     # a stub: the first eight groups have no difference, all later ones do
        calls.append(example["id"])
        return 0.5 if len(calls) <= 32 else float(len(calls) % 2)
    groups, stats = srl.collect(tiny, tokenizer, srl.Cursor(examples, 0), srl.srl_prompt, reward, None, cfg)
    # 4 drawn, none kept; 4 again, none; 4 more, all kept
    assert len(groups) == 4 and stats["sampled"] == 12 and stats["completions"] == 48 == len(calls)
    assert all(rewards.std(correction=0) > cfg.eps for _, rewards, _ in groups)


def test_a_batch_without_any_difference_ends_after_max_tries(srl, tiny, tokenizer, task):
    cfg, examples, _ = task
    groups, stats = srl.collect(tiny, tokenizer, srl.Cursor(examples, 0), srl.srl_prompt, lambda t, e: 0.0, None, replace(cfg, max_tries=2))
    assert groups == [] and stats["sampled"] == 8


def test_an_update_is_the_same_in_one_and_in_many_micro_batches(srl, tiny, tokenizer, task):
    cfg, examples, _ = task
    torch.manual_seed(0)
    prompts = [srl.encode(tokenizer, srl.srl_prompt(e)) for e in examples[:4]]
    rollout = srl.generate(tiny, tokenizer, prompts, 4, max_new_tokens=9)
    turns = [(prompts[i // 4], ids, lp, float(i % 3 - 1)) for i, (ids, lp) in enumerate(zip(rollout.completions, rollout.logprobs, strict=True))]
    grads = []
    for tokens in (10_000, 1):
        class Keep:
            def step(self): grads.append([p.grad.clone() for p in tiny.parameters()])
            def zero_grad(self, set_to_none): tiny.zero_grad()
        stats = srl.update(tiny, Keep(), turns, replace(cfg, update_tokens=tokens, max_grad_norm=1e9))
        assert stats["mismatch"] < 1e-4 and stats["clipped"] == 0
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_training_changes_the_weights_and_raises_the_reward(srl, task):
    cfg, examples, reward = task
    cfg = replace(cfg, rollouts=1000)
    srl.train(cfg, examples, examples[:4], srl.srl_prompt, reward)
    log = [json.loads(line) for line in open(f"{cfg.out}/log.jsonl")]
    assert log[0]["val_exact"] <= 0.75 < log[-1]["val_exact"]
    before, after = (srl.load_policy(folder)[0].state_dict() for folder in (cfg.model, f"{cfg.out}/model"))
    assert any(not torch.equal(before[k], after[k]) for k in before)


def test_a_run_without_signal_changes_nothing_and_says_why(srl, task, capsys):
    cfg, examples, _ = task
    srl.train(cfg, examples, examples[:4], srl.srl_prompt, lambda t, e: 0.0)
    before, after = (srl.load_policy(folder)[0].state_dict() for folder in (cfg.model, f"{cfg.out}/model"))
    assert all(torch.equal(before[k], after[k]) for k in before)
    printed = capsys.readouterr()
    assert "no group of" in printed.out + printed.err


def test_an_interrupted_run_continues_to_the_same_weights_and_log(srl, task, monkeypatch):
    cfg, examples, reward = task
    srl.train(cfg, examples, examples[:4], srl.srl_prompt, reward)
    broken, calls, update = replace(cfg, out=cfg.out + "2"), [], srl.update

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
    assert all(torch.equal(states[0]["policy"][k], states[1]["policy"][k]) for k in states[0]["policy"])
    logs = [[{k: v for k, v in json.loads(line).items() if "second" not in k} for line in open(f"{c.out}/log.jsonl")] for c in (cfg, broken)]
    assert logs[0] == logs[1]


def test_a_folder_of_another_run_is_not_overwritten(srl, segment, task):
    cfg, examples, reward = task
    srl.train(cfg, examples, examples[:4], srl.srl_prompt, reward)
    with pytest.raises(segment.InputError, match="learning_rate"):
        srl.train(replace(cfg, learning_rate=0.5), examples, examples[:4], srl.srl_prompt, reward)


def test_sft_learns_its_target_and_outlines_have_no_thoughts(srl, task):
    cfg, examples, _ = task
    cfg = replace(cfg, method="sft", epochs=30, sft_batch=4, learning_rate=1e-2, max_new_tokens=4)
    srl.train_sft(cfg, examples, examples[:4])
    log = [json.loads(line) for line in open(f"{cfg.out}/log.jsonl")]
    assert log[-1]["val_exact"] == 1.0 and log[-1]["loss"] < log[0]["loss"] / 5
    example = {"id": "a", "action": "1. **A** b", "thoughts": "foreign", "student_thoughts": "own"}
    assert [srl.sft_target(example, kind) for kind in ("outline", "reasoning", "student")] == [
        "1. **A** b", "<think>foreign</think>\n1. **A** b", "<think>own</think>\n1. **A** b"]


def test_the_cursor_visits_every_example_once_an_epoch_and_continues_from_its_place(srl):
    a = srl.Cursor(list(range(10)), 3)
    first = a.take(25)
    assert sorted(first[:10]) == sorted(first[10:20]) == list(range(10)) and first[:10] != first[10:20]
    b = srl.Cursor(list(range(10)), 3)
    b.place = 13
    assert b.take(12) == first[13:]
