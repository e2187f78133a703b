"""Faults of training that changed a number or a target silently, each with inputs of its kind.

| kind | what was wrong | test: test_.. |
|---|---|---|
| dropout in the update | GPT-2, OPT, StarCoder2, Phi: on an on-policy batch 64 to 84 % of the tokens clipped | an_update_is_without_dropout |
| adapters rounded away | the saved model was merged in bfloat16, validation used the adapters | merged_adapters_keep_a_change.. |
| another run under the same name | edited data, weights, prompt or reward continued a run, or gave its old result | a_run_continues_with_the_same.. |
| settings that cannot learn | --group_size 1, an eps that no group exceeds | settings_that_cannot_learn_are_refused |
| more rollouts than asked for | --rollouts 16 sampled a whole batch | a_run_samples_as_many_completions.. |
| mean of batch means | the logged SFT loss where the batch does not divide the data | the_logged_sft_loss_is_the_mean_over_tokens |
| targets beyond the model | SFT on prompt + target longer than positions or window | sft_targets_beyond_the_positions.. |
| RoPE that depends on the length | dynamic and longrope beyond the original length | rope_that_depends_on_the_length.. |
| edges of the sampler | u = 0 sampled probability 0, the end of the sum was clamped to the last id | no_uniform_number_draws.. |
| best model by chance | with free wording, 2 equal steps of 360 outweighed a better mean: 9.6 % of *hard* | the_best_model_is_not_chosen_by_chance.. |
| rounding of the std | --eps 0 kept groups of equal rewards | groups_of_equal_rewards_are_dropped.. |
"""
import json
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
import torch
from reference import PROMPTS, forward_logprobs, small_model

from engine import rollout, stored
from engine import run as engine_run
from engine.files import InputError
from engine.optimizer import make_optimizer
from engine.plain import sample_tokens
from engine.policy import load_policy, save_model
from engine.preflight import flag_problems


@pytest.mark.parametrize("kind, more", [("gpt2", {}), ("opt", {}), ("phi", {"resid_pdrop": 0.2}),
                                        ("starcoder2", {"residual_dropout": 0.1, "embedding_dropout": 0.1})])
def test_an_update_is_without_dropout(srl, tokenizer, kind, more):
    policy = small_model(tokenizer, kind, **more)
    sampled = srl.generate(policy, tokenizer, PROMPTS, 4, max_new_tokens=8)
    turns = [(PROMPTS[i // 4], sampled.completions[i], sampled.logprobs[i], float(i % 2) - 0.5) for i in range(16)]
    cfg = srl.Config(device="cpu")
    stats = srl.update(policy, make_optimizer(policy, cfg), turns, cfg)
    assert stats["mismatch"] < 1e-4 and stats["clipped"] == 0


def test_merged_adapters_keep_a_change_that_bfloat16_would_lose(srl, tiny, tokenizer, task, tmp_path, capsys):
    peft = pytest.importorskip("peft")
    policy = tiny.to(torch.bfloat16)
    make_optimizer(policy, replace(task[0], lora_rank=4))
    for name, p in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=1e-4)
    save_model(policy, tokenizer, tmp_path / "saved")
    assert "of their change" in capsys.readouterr().out
    assert json.loads((tmp_path / "saved/config.json").read_text())["dtype"] == "float32"
    load_policy(tmp_path / "saved", dtype="bfloat16")
    assert "ALARM (rounding)" in capsys.readouterr().out
    merged, _ = load_policy(tmp_path / "saved")
    assert "ALARM" not in capsys.readouterr().out
    base = load_policy(task[0].model)[0].to(torch.bfloat16).float()
    for name, module in policy.named_modules():
        if hasattr(module, "get_delta_weight"):
            change = merged.get_parameter(f"{name}.weight") - base.get_parameter(f"{name}.weight")
            torch.testing.assert_close(change, module.get_delta_weight("default").float(), atol=1e-7, rtol=1e-2)
    again = peft.PeftModel.from_pretrained(base.to(torch.bfloat16), tmp_path / "saved/adapter")
    ids = torch.tensor([[5, 6, 7, 8]])
    torch.testing.assert_close(again(ids).logits, policy(ids).logits)


def other_reward(text, example):
    return float(len(text) >= 8)


def test_a_run_continues_with_the_same_data_weights_prompt_and_code_only(srl, task, tmp_path, capsys, monkeypatch):
    cfg, examples, reward = task
    cfg = replace(cfg, rollouts=32)
    srl.train(cfg, examples, examples[:4], srl.srl_prompt, reward)
    srl.train(cfg, examples, examples[:4], srl.srl_prompt, reward)                               # the same run: nothing to do
    changed = [{**examples[0], "action": "2"}, *examples[1:]]
    (tmp_path / "prompt.txt").write_text("Write the next step.")
    with_prompt = srl.with_prompt_file(srl.srl_prompt, tmp_path / "prompt.txt")
    for other, *args in (("data", changed, examples[:4], srl.srl_prompt, reward), ("data", examples, changed[:4], srl.srl_prompt, reward),
                         ("data", examples[::-1], examples[:4], srl.srl_prompt, reward), ("prompt", examples, examples[:4], with_prompt, reward),
                         ("code", examples, examples[:4], srl.srl_prompt, srl.srl_reward)):
        with pytest.raises(InputError, match=f"other {other}"):
            srl.train(cfg, *args)
    both = (examples, examples), srl.srl_prompt                 # the loop is 02's also where the reward is 03's: an edit there is another run
    assert stored.identity_of(cfg, *both, (srl.train, reward)) != stored.identity_of(cfg, *both, (reward,))
    (tmp_path / "helper.py").write_text("BONUS = 1\n\ndef bonus():\n    return BONUS\n")
    (tmp_path / "own.py").write_text("from helper import bonus\n\ndef reward(text, example):\n    return bonus()\n")
    monkeypatch.syspath_prepend(tmp_path)
    own, before = import_module("own").reward, []
    for value in (1, 1, 2):                                     # a file that the reward's own file imports is edited
        (tmp_path / "helper.py").write_text((tmp_path / "helper.py").read_text().replace("BONUS = 1", f"BONUS = {value}"))
        before.append(stored.identity_of(cfg, *both, (own,)))
    assert before[0] == before[1] != before[2]
    bound = [stored.identity_of(cfg, *both, (partial(reward, weight=weight),)) for weight in (1, 2, 2)]
    assert bound[0] != bound[1] == bound[2]
    for name in ("chat_template.jinja", "config.json"):
        path = Path(cfg.model) / name
        text = path.read_text()
        path.write_text(text + "\n")
        with pytest.raises(InputError, match="other tokenizer or configuration of --model"):
            srl.train(cfg, examples, examples[:4], srl.srl_prompt, reward)
        path.write_text(text)
    monkeypatch.setattr(stored, "JUDGING", ["chat"])                                         # as an edit of the matcher would
    with pytest.raises(InputError, match="other code"):
        srl.train(cfg, examples, examples[:4], srl.srl_prompt, reward)
    monkeypatch.undo()
    policy, tokenizer = load_policy(cfg.model)
    policy.model.norm.weight.data[3] += 1e-3
    save_model(policy, tokenizer, cfg.model)
    with pytest.raises(InputError, match="other weights of --model"):
        srl.train(cfg, examples, examples[:4], srl.srl_prompt, reward)
    srl.train(replace(cfg, continue_changed=True), examples, examples[:4], srl.srl_prompt, reward)


@pytest.mark.parametrize("knobs, said", [({"group_size": 1}, "--group_size 1"), ({"eps": 1.0}, "--eps 1.0"), ({"eps": 2.5}, "--eps 2.5"),
                                         ({"temperature": 0}, "--temperature 0")])
def test_settings_that_cannot_learn_are_refused(srl, task, knobs, said):
    cfg, examples, reward = task
    with pytest.raises(InputError, match=said):
        srl.train(replace(cfg, **knobs), examples, examples[:4], srl.srl_prompt, reward)


def test_an_std_that_rewards_of_0_and_1_cannot_exceed_is_refused(rlvr, task):
    for mode, said in (("stepwise", "less than 0.5"), ("single", "less than 0.5")):
        cfg = rlvr.Config(model=task[0].model, out=task[0].out, mode=mode, eps=0.5)
        assert [problem for problem in flag_problems(cfg) if said in problem]
    assert [problem for problem in flag_problems(replace(cfg, group_size=3, eps=0.48)) if "less than 0.471" in problem]     # two of three
    assert not flag_problems(rlvr.Config(model=task[0].model, out=task[0].out, mode="agent", eps=0.5))


@pytest.mark.parametrize("rollouts, sampled", [(16, 16), (8, 8), (44, 44), (3, 4)])
def test_a_run_samples_as_many_completions_as_it_was_given(srl, task, rollouts, sampled):
    cfg, examples, reward = task                                                                 # 4 prompts x 4 in a batch
    for name, reward_fn in (("some", reward), ("none", lambda text, example: 0.0)):              # with and without refill
        out = cfg.out + name
        srl.train(replace(cfg, rollouts=rollouts, out=out), examples, examples[:4], srl.srl_prompt, reward_fn)
        assert json.loads(open(f"{out}/log.jsonl").read().splitlines()[-1])["done"] == sampled


@pytest.mark.parametrize("validations, best", [([(0.0056, 0.575), (0.0, 0.592)], 1),               # no wording is equal: the mean decides
                                               ([(0.82, 0.94), (0.6, 0.96)], 0),                   # near copies: the mean alone would be wrong
                                               ([(0.5, 0.5), (0.5, 0.5)], 0)])                      # a tie: the earlier
def test_the_best_model_is_not_chosen_by_chance_or_by_near_copies(srl, task, monkeypatch, validations, best):
    cfg, examples, reward = task
    seen, saved = iter(validations), []
    monkeypatch.setattr(srl, "validate", lambda *_: dict(zip(("val_exact", "val_reward"), next(seen), strict=True)))
    monkeypatch.setattr(engine_run, "save_model", lambda policy, *_: saved.append(policy))
    srl.train(replace(cfg, rollouts=16), examples, examples[:4], srl.srl_prompt, reward)
    assert len(saved) == 1 + best


@pytest.mark.parametrize("batch", [64, 5, 7])
def test_the_logged_sft_loss_is_the_mean_over_tokens(srl, task, batch):
    cfg, examples, _ = task
    policy, tokenizer = load_policy(cfg.model)
    examples = [{**e, "action": "1 + " * i + "1"} for i, e in enumerate(examples)]               # of different lengths
    cfg = replace(cfg, method="sft", epochs=1, sft_batch=batch, learning_rate=1e-12, max_new_tokens=4)
    srl.train_sft(cfg, examples, examples[:4])
    turns = [srl.sft_sequence(policy, tokenizer, e, srl.srl_prompt, "outline") for e in examples]
    losses = torch.cat([-forward_logprobs(policy, prompt, target) for prompt, target in turns])
    assert json.loads(open(f"{cfg.out}/log.jsonl").read())["loss"] == pytest.approx(losses.mean().item(), rel=1e-4)


@pytest.mark.parametrize("kind, more, said", [("llama", {"max_position_embeddings": 60}, "60 positions"), ("mistral", {"sliding_window": 40}, "window is 40"),
                                              ("gpt2", {"n_positions": 60}, "60 positions")])
def test_sft_targets_beyond_the_positions_or_the_window_are_refused(srl, task, tokenizer, tmp_path, kind, more, said):
    cfg, examples, _ = task
    small_model(tokenizer, kind, **more).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    examples = [*examples, {**examples[0], "id": "long", "action": "1 + " * 40 + "1"}]
    with pytest.raises(InputError, match=said):
        srl.train_sft(replace(cfg, method="sft", model=str(tmp_path / "small")), examples, examples[:4])


@pytest.mark.parametrize("rope", [{"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
                                  {"rope_type": "longrope", "factor": 4.0, "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
                                   "original_max_position_embeddings": 16}])
def test_rope_that_depends_on_the_length_is_refused_beyond_its_original_length(srl, tokenizer, rope):
    model = small_model(tokenizer, "llama", max_position_embeddings=64 if rope["rope_type"] == "longrope" else 16, rope_parameters=rope)
    srl.generate(model, tokenizer, PROMPTS, 1, max_new_tokens=9)                                 # 7 + 9 = 16
    with pytest.raises(InputError, match="RoPE|16 positions"):
        srl.generate(model, tokenizer, PROMPTS, 1, max_new_tokens=10)
    assert not rollout.length_problems(small_model(tokenizer, "llama", max_position_embeddings=64).config, "m", 64, True)


@pytest.mark.parametrize("size", [3, 500, 151_936])
def test_no_uniform_number_draws_a_token_of_probability_zero(size):
    torch.manual_seed(0)
    logits = torch.randn(4, size)
    logits[:, 0] = logits[:, -1] = -torch.inf                                                    # the first and the last token are impossible
    logits[3, 1:size // 2] = -torch.inf
    edges = torch.tensor([0.0, 2.0**-24, 0.5, 1 - 2.0**-24])
    tokens, logprobs = sample_tokens(logits, torch.arange(4).repeat_interleave(4), edges.repeat(4), 1.0)
    assert logprobs.isfinite().all() and (tokens > 0).all() and (tokens < size - 1).all()
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).repeat_interleave(4, 0).gather(-1, tokens[:, None])[:, 0], atol=1e-4, rtol=1e-4)
    draws = torch.rand(20_000)
    few = torch.tensor([[0.1, 0.2, 0.0, 0.7]])
    for number in (0.0, 0.5, -1.0):                             # logits that are not finite: an error, no index beyond the vocabulary
        tokens, logprobs = sample_tokens(torch.full((1, 8), torch.nan), torch.zeros(1, dtype=torch.long), torch.tensor([number]), 1.0)
        assert tokens.item() < 8 and logprobs.isnan().all()
        with pytest.raises(InputError, match="not finite"):
            rollout.as_rollout(None, tokens[None], logprobs[None], torch.tensor([1]), torch.tensor([0]))
    counts = torch.bincount(sample_tokens(few.log(), torch.zeros(20_000, dtype=torch.long), draws, 1.0)[0], minlength=4) / 20_000
    torch.testing.assert_close(counts, few[0], atol=0.015, rtol=0)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 0.9812345])
def test_groups_of_equal_rewards_are_dropped_whatever_eps_is(srl, value):
    for G in (2, 3, 7, 8):
        rewards = torch.full((1, G), value)
        assert not srl.informative_groups(rewards, 0.0).any()
        rewards[0, 0] += 1e-3
        assert srl.informative_groups(rewards, 0.0).all()
