"""Dynamic sampling with refill, the update, the loop, resume."""
import copy
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


@pytest.mark.parametrize("loss_mean", ["completion", "token"])
def test_an_update_is_the_same_in_one_and_in_many_micro_batches(srl, tiny, tokenizer, task, loss_mean):
    cfg, examples, _ = task
    torch.manual_seed(0)
    prompts = [srl.encode(tokenizer, srl.srl_prompt(e)) for e in examples[:4]]
    rollout = srl.generate(tiny, tokenizer, prompts, 4, max_new_tokens=9)
    turns = [(prompts[i // 4], ids, lp, float(i % 3 - 1)) for i, (ids, lp) in enumerate(zip(rollout.completions, rollout.logprobs, strict=True))]
    grads = []
    for tokens in (10_000, 1):
        class Keep:
            def step(self, max_grad_norm):
                grads.append([p.grad.clone() for p in tiny.parameters()])
                tiny.zero_grad()
                return 0.0
        stats = srl.update(tiny, Keep(), turns, replace(cfg, update_tokens=tokens, max_grad_norm=1e9, loss_mean=loss_mean))
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
    assert all(torch.equal(a, b) for a, b in zip(*(state["optimizer"]["weights"] for state in states), strict=True))
    logs = [[{k: v for k, v in json.loads(line).items() if "second" not in k and k != "peak_gb"} for line in open(f"{c.out}/log.jsonl")] for c in (cfg, broken)]
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


# Large models
def group(srl, tokenizer, tiny, examples):
    """Turns of two groups with advantages, sampled from tiny."""
    prompts = [srl.encode(tokenizer, srl.srl_prompt(e)) for e in examples[:2]]
    rollout = srl.generate(tiny, tokenizer, prompts, 4, max_new_tokens=9)
    return [(prompts[i // 4], ids, lp, float(i % 2) - 0.5) for i, (ids, lp) in enumerate(zip(rollout.completions, rollout.logprobs, strict=True))]


def test_adam_in_float32_is_torchs_adam(srl, tiny, tokenizer, task):
    cfg, examples, _ = task
    other = copy.deepcopy(tiny)
    torch.manual_seed(0)
    turns = group(srl, tokenizer, tiny, examples)
    ours, theirs = srl.make_optimizer(tiny, cfg), torch.optim.Adam(other.parameters(), lr=cfg.learning_rate, betas=(0.9, 0.95))
    for _ in range(3):
        srl.update(tiny, ours, turns, cfg)

        class Theirs:
            def step(self, max_grad_norm):
                norm = torch.nn.utils.clip_grad_norm_(other.parameters(), max_grad_norm).item()
                theirs.step()
                theirs.zero_grad()
                return norm
        srl.update(other, Theirs(), turns, cfg)
    assert all(torch.equal(a, b) for a, b in zip(tiny.parameters(), other.parameters(), strict=True))


def test_steps_too_small_for_bfloat16_are_not_lost(srl, tiny, tokenizer, task):
    """At the paper's learning rate a bfloat16 weight would never move; the float32 copies move, and in the end the weights follow."""
    cfg, examples, _ = task
    torch.manual_seed(0)
    turns = group(srl, tokenizer, tiny, examples)
    tiny.to(torch.bfloat16)
    before = [p.detach().clone() for p in tiny.parameters()]
    optimizer = srl.make_optimizer(tiny, replace(cfg, learning_rate=5e-7))
    masters = [m.detach().clone() for m in optimizer.masters.values()]
    srl.update(tiny, optimizer, turns, cfg)
    assert all(not torch.equal(a, b) for a, b in zip(masters, optimizer.masters.values(), strict=True))
    moved = sum((a != b).sum().item() for a, b in zip(before, tiny.parameters(), strict=True)) / sum(p.numel() for p in before)
    assert moved < 0.02                                                                          # one such step is below bfloat16's resolution
    optimizer.param_groups[0]["lr"] = 1e-2
    srl.update(tiny, optimizer, turns, cfg)
    for p, master in optimizer.masters.items():
        assert p.grad is None and master.grad is None and torch.equal(p, master.to(torch.bfloat16))
    # saved and loaded: the copies come back exactly, not rounded to bfloat16
    state = copy.deepcopy(optimizer.state_dict())
    again = srl.make_optimizer(tiny, cfg)
    again.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(optimizer.masters.values(), again.masters.values(), strict=True))


def test_gradient_checkpointing_changes_memory_and_not_gradients(srl, tiny, tokenizer, task):
    cfg, examples, _ = task
    torch.manual_seed(0)
    turns = group(srl, tokenizer, tiny, examples)
    grads = []
    for checkpointing in (False, True):
        srl.make_optimizer(tiny, replace(cfg, gradient_checkpointing=checkpointing))

        class Keep:
            def step(self, max_grad_norm):
                grads.append([p.grad.clone() for p in tiny.parameters()])
                tiny.zero_grad()
                return 0.0
        srl.update(tiny, Keep(), turns, cfg)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    assert any(g.abs().max() > 0 for g in grads[0])


def test_lora_trains_adapters_and_saves_a_plain_model(srl, tiny, tokenizer, task, tmp_path):
    pytest.importorskip("peft")
    cfg, examples, _ = task
    torch.manual_seed(0)
    turns = group(srl, tokenizer, tiny, examples)
    before = {name: p.detach().clone() for name, p in tiny.state_dict().items()}
    optimizer = srl.make_optimizer(tiny, replace(cfg, lora_rank=4, learning_rate=1e-2))
    for _ in range(3):
        srl.update(tiny, optimizer, turns, cfg)
    learned = {name for name, p in tiny.named_parameters() if p.requires_grad}
    assert learned and all("lora_" in name for name in learned)
    srl.save_model(tiny, tokenizer, tmp_path / "model")
    plain, _ = srl.load_policy(tmp_path / "model")
    assert set(plain.state_dict()) == set(before)
    assert any(not torch.equal(before[name], p) for name, p in plain.state_dict().items())
    ids = torch.tensor([turns[0][0]])
    torch.testing.assert_close(plain(ids).logits, tiny.eval()(ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("knob, package", [({"lora_rank": 4}, "peft"), ({"optimizer": "adam8bit"}, "bitsandbytes")])
def test_a_package_that_a_knob_needs_and_that_is_missing_is_named_with_its_command(srl, tiny, task, monkeypatch, knob, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)          # as if it were not installed
    with pytest.raises(srl.segmentation.InputError, match=f"{package}: not installed, .* pip install {package}"):
        srl.make_optimizer(tiny, replace(task[0], **knob))


def test_the_papers_recipe_is_one_flag_and_every_other_flag_still_counts(srl, rlvr, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "--recipe", "paper", "--learning_rate", "1e-6", "--autojunk"])
    cfg = srl.parse_flags(srl.Config(), "x")
    assert (cfg.prompts_per_batch, cfg.group_size, cfg.temperature, cfg.max_grad_norm, cfg.dtype, cfg.decay) == (512, 8, 1.0, 1.0, "bfloat16", 0.0)
    assert cfg.learning_rate == 1e-6 and cfg.autojunk is True
    monkeypatch.setattr("sys.argv", ["x", "--recipe", "paper", "--method", "sft"])
    cfg = srl.parse_flags(srl.Config(), "x")
    assert (cfg.sft_batch, cfg.epochs, cfg.learning_rate) == (64, 3, 5e-6)
    monkeypatch.setattr("sys.argv", ["x", "--recipe", "paper"])
    cfg = srl.parse_flags(rlvr.Config(), "x", rlvr.RECIPES)
    assert (cfg.prompts_per_batch, cfg.learning_rate, cfg.mode) == (128, 5e-7, "single")
