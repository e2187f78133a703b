"""engine/optimizer.py and policy.py: Adam in two precisions, adapters, checkpointed layers; which models are computed how."""
import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from reference import PREFIXES, PROMPTS, forward_logprobs, greedy_tokens, sampled_turns, small_model, update_gradients

from engine.files import InputError
from engine.logprobs import token_logprobs
from engine.optimizer import make_optimizer
from engine.policy import load_policy, mismatch, save_model
from engine.prefix_cache import PrefixCache
from engine.rollout import generate


# The optimizer
@pytest.fixture
def turns(srl, tiny, tokenizer, task):
    return sampled_turns(srl, tiny, tokenizer, task[1])


def test_adam_in_float32_is_torchs_adam(srl, tiny, task, turns):
    cfg, other = task[0], copy.deepcopy(tiny)
    ours, theirs = make_optimizer(tiny, cfg), torch.optim.Adam(other.parameters(), lr=cfg.learning_rate, betas=(0.9, 0.95))

    def step(max_grad_norm):
        norm = torch.nn.utils.clip_grad_norm_(other.parameters(), max_grad_norm).item()
        theirs.step()
        theirs.zero_grad()
        return norm
    for _ in range(3):
        srl.update(tiny, ours, turns, cfg)
        srl.update(other, SimpleNamespace(step=step), turns, cfg)
    assert all(torch.equal(a, b) for a, b in zip(tiny.parameters(), other.parameters(), strict=True))


def test_steps_too_small_for_bfloat16_are_not_lost(srl, tiny, task, turns):
    """At the paper's learning rate a bfloat16 weight would never move; the float32 copies move, and in the end the weights follow."""
    cfg = task[0]
    tiny.to(torch.bfloat16)
    before = [p.detach().clone() for p in tiny.parameters()]
    optimizer = make_optimizer(tiny, replace(cfg, learning_rate=5e-7))
    masters = [m.detach().clone() for m in optimizer.masters.values()]
    srl.update(tiny, optimizer, turns, cfg)
    assert all(not torch.equal(a, b) for a, b in zip(masters, optimizer.masters.values(), strict=True))
    moved = sum((a != b).sum().item() for a, b in zip(before, tiny.parameters(), strict=True)) / sum(p.numel() for p in before)
    assert moved < 0.02                                                                          # one such step is below bfloat16's resolution
    optimizer.set_learning_rate(1e-2)
    srl.update(tiny, optimizer, turns, cfg)
    for p, master in optimizer.masters.items():
        assert p.grad is None and master.grad is None and torch.equal(p, master.to(torch.bfloat16))
    assert any(not torch.equal(a, b) for a, b in zip(before, tiny.parameters(), strict=True))
    # saved and loaded: the copies come back exactly, not rounded to bfloat16
    loaded = make_optimizer(tiny, cfg)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(torch.equal(a, b) for a, b in zip(optimizer.masters.values(), loaded.masters.values(), strict=True))


def test_gradient_checkpointing_changes_memory_and_not_gradients(srl, tiny, task, turns):
    _, plain = update_gradients(srl, tiny, turns, task[0])
    make_optimizer(tiny, replace(task[0], gradient_checkpointing=True))
    _, checkpointed = update_gradients(srl, tiny, turns, task[0])
    for a, b in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(a, b)
    assert any(g.abs().max() > 0 for g in plain)


def test_lora_trains_adapters_and_saves_a_model_without_them(srl, tiny, tokenizer, task, turns, tmp_path):
    pytest.importorskip("peft")
    before = {name: p.detach().clone() for name, p in tiny.state_dict().items()}
    optimizer = make_optimizer(tiny, replace(task[0], lora_rank=4, learning_rate=1e-2))
    for _ in range(3):
        srl.update(tiny, optimizer, turns, task[0])
    trained = {name for name, p in tiny.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in name for name in trained)
    save_model(tiny, tokenizer, tmp_path / "model")
    merged, _ = load_policy(tmp_path / "model")
    assert set(merged.state_dict()) == set(before)
    assert any(not torch.equal(before[name], p) for name, p in merged.state_dict().items())
    ids = torch.tensor([turns[0][0]])
    torch.testing.assert_close(merged(ids).logits, tiny.eval()(ids).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("knob, package", [({"lora_rank": 4}, "peft"), ({"optimizer": "adam8bit"}, "bitsandbytes")])
def test_a_package_that_a_knob_needs_and_that_is_missing_is_named_with_its_command(tiny, task, monkeypatch, knob, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)          # as if it were not installed
    with pytest.raises(InputError, match=f"{package}: not installed, .* pip install {package}"):
        make_optimizer(tiny, replace(task[0], **knob))


# Models
COMPUTED = ("llama qwen2 qwen3 qwen3_moe mistral mixtral phi phi3 gemma gemma3_text olmo olmo2 olmo3 glm glm4 smollm3 starcoder2 gpt2 gpt_neox exaone4 "
            "ernie4_5 seed_oss helium apertus arcee opt").split()
# scaled logits, capped logits, attention sinks, layers without keys and values, an attention of its own, a window shorter than the completions
PLAIN = [("granite", {"logits_scaling": 8.0}), ("cohere", {}), ("gemma2", {}), ("gpt_oss", {}), ("qwen3_next", {}), ("llama4_text", {}), ("nemotron", {}),
         ("mistral", {"sliding_window": 14})]


def saved_model(tokenizer, folder, kind, **more):
    small_model(tokenizer, kind, **more).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", COMPUTED)
def test_rollout_and_update_of_these_architectures_share_prompts_and_compute_what_their_forward_pass_computes(tokenizer, kind):
    model = small_model(tokenizer, kind)
    assert mismatch(model) == ""
    logprobs, mask, _ = token_logprobs(model, [(prompt, [[7, 8, 9, 1], [10, 1]]) for prompt in PREFIXES])
    assert model.config._attn_implementation == "grouped_query"
    prefix_cache = PrefixCache()
    generate(model, tokenizer, PROMPTS, 1, max_new_tokens=2, prefix_cache=prefix_cache)
    sampled = generate(model, tokenizer, PREFIXES, 1, max_new_tokens=5, max_rows=3, prefix_cache=prefix_cache)       # rows that began at different times, too
    model.set_attn_implementation("eager")
    reference = torch.cat([forward_logprobs(model, prompt, completion) for prompt in PREFIXES for completion in ([7, 8, 9, 1], [10, 1])])
    torch.testing.assert_close(logprobs[mask], reference, atol=1e-4, rtol=0)
    reference = torch.cat([forward_logprobs(model, prompt, completion) for prompt, completion in zip(PREFIXES, sampled.completions, strict=True)])
    torch.testing.assert_close(torch.tensor(sum(sampled.logprobs, [])), reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind, more", PLAIN, ids=[kind for kind, _ in PLAIN])
def test_other_architectures_copy_the_prompt_for_each_completion_and_compute_what_their_forward_pass_computes(tokenizer, tmp_path, capsys, kind, more):
    model, _ = load_policy(saved_model(tokenizer, tmp_path, kind, **more), share_prompts=kind != "mistral")
    assert "every completion gets its own copy of the prompt" in capsys.readouterr().out and mismatch(model) == ""
    greedy = generate(model, tokenizer, PROMPTS, 1, temperature=0, max_new_tokens=12, max_rows=3).completions                # three rows, then the fourth
    assert greedy == [greedy_tokens(model, prompt, 12) for prompt in PROMPTS]
    sampled = generate(model, tokenizer, PROMPTS, 2, max_new_tokens=12)
    logprobs, mask, _ = token_logprobs(model, [(prompt, sampled.completions[2 * i:2 * i + 2]) for i, prompt in enumerate(PROMPTS)])
    for b, completion in enumerate(sampled.completions):
        torch.testing.assert_close(logprobs[b][mask[b]], torch.tensor(sampled.logprobs[b]), atol=1e-4, rtol=0)
        torch.testing.assert_close(logprobs[b][mask[b]], forward_logprobs(model, PROMPTS[b // 2], completion), atol=1e-4, rtol=0)
    logprobs.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()) and model.get_input_embeddings().weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind, more, message", [("mistral", {"sliding_window": 14}, "--no_share_prompts"), ("mamba", {}, "type mamba")])
def test_a_window_shorter_than_shared_prompts_and_an_architecture_that_no_cache_computes_are_refused(tokenizer, tmp_path, kind, more, message):
    with pytest.raises(InputError, match=message):
        generate(*load_policy(saved_model(tokenizer, tmp_path, kind, **more)), PROMPTS, 1, max_new_tokens=12)
