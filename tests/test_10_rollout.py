"""engine/rollout.py, kv_cache.py and prefix_cache.py against transformers and against engine/plain.py: what is sampled, from what, in which batch."""
import pytest
import torch
from conftest import ROOT
from reference import PROMPTS, forward_logprobs, greedy_tokens, small_model

from engine import kv_cache, rollout
from engine.chat import encode
from engine.kv_cache import DecodeStep, SharedPromptCache
from engine.policy import load_policy
from engine.prefix_cache import PrefixCache
from engine.rollout import generate, rows_that_fit

SIZES = [2, 3, 1, 4, 2, 2, 1, 3]


@pytest.fixture
def base():
    return load_policy(str(ROOT / "miniature/base"))[0]


@pytest.fixture
def ragged(tiny, tokenizer):
    """Eight prompts for a model whose completions end after about six tokens, at all times."""
    torch.manual_seed(0)
    tiny.generation_config.eos_token_id = list(range(0, len(tokenizer), 6))
    return [torch.randint(5, len(tokenizer), (n,)).tolist() for n in (3, 11, 7, 1, 7, 5, 2, 9)]


@pytest.fixture
def widths(monkeypatch):
    """The number of rows of each decode step."""
    widths, forward = [], SharedPromptCache.forward
    monkeypatch.setattr(SharedPromptCache, "forward", lambda self, tokens: widths.append(len(tokens)) or forward(self, tokens))
    return widths


def assert_same(ours, theirs, atol=1e-5):
    assert ours.completions == theirs.completions and ours.finished == theirs.finished and ours.texts == theirs.texts
    torch.testing.assert_close(torch.tensor(sum(ours.logprobs, [])), torch.tensor(sum(theirs.logprobs, [])), atol=atol, rtol=0)


def as_on_a_gpu(monkeypatch):
    """Every step has the same rows, and tensors keep their size."""
    monkeypatch.setattr(SharedPromptCache, "on_gpu", property(lambda self: True, lambda self, value: None), raising=False)


def solve_prompts(srl, tokenizer, example, *problems):
    return [encode(tokenizer, srl.srl_prompt({**example, "problem": f"Solve {problem}", "partial": ""})) for problem in problems]


# Tokens
@pytest.mark.parametrize("kind", ["qwen2", "llama", "mistral", "qwen3", "the miniature's"])
def test_greedy_tokens_and_log_probabilities_equal_transformers_on_ragged_prompts(srl, base, tokenizer, example, kind):
    """Qwen3 also normalises queries and keys."""
    model, prompts = base, solve_prompts(srl, tokenizer, example, "3x + 4 = 19", "2(5x - 7) + 3 = 4x + 25", "6(9x + 2) + 53 = 46x - 63")
    if kind != "the miniature's":
        model, prompts = small_model(tokenizer, kind), PROMPTS
    ours = generate(model, tokenizer, prompts, 1, temperature=0, max_new_tokens=60)
    model.set_attn_implementation("eager")                                                       # transformers' own plain attention
    for prompt, completion, logprobs in zip(prompts, ours.completions, ours.logprobs, strict=True):
        assert completion == greedy_tokens(model, prompt, 60)
        torch.testing.assert_close(torch.tensor(logprobs), forward_logprobs(model, prompt, completion), atol=1e-5, rtol=0)


def test_sampling_frequencies_agree_with_the_model(tiny, tokenizer):
    torch.manual_seed(0)
    draws = torch.tensor([c[0] for c in generate(tiny, tokenizer, [[5, 6, 7]], 20_000, max_new_tokens=1, max_rows=20_000).completions])
    p = tiny(torch.tensor([[5, 6, 7]])).logits[0, -1].softmax(-1)
    common = p * 20_000 >= 20
    observed, expected = draws.bincount(minlength=len(p))[common], p[common] * 20_000
    chi2, df = ((observed - expected) ** 2 / expected).sum().item(), int(common.sum()) - 1
    assert df > 20 and chi2 < df + 5 * (2 * df) ** 0.5   # five standard deviations of the chi-square distribution


# Continuous batching
@pytest.mark.parametrize("max_rows", [1, 5, 8, 100])
@pytest.mark.parametrize("temperature", [0, 0.7, 1.0, 1.5])
def test_waiting_prompts_join_the_decode_batch_and_tokens_are_those_of_plain_sampling_and_of_each_row_alone(tiny, tokenizer, ragged, max_rows, temperature):
    """The same uniform numbers give the same tokens, whenever a row begins and whatever is decoded beside it; -1 takes the most probable token."""
    uniforms = torch.rand(sum(SIZES), 20)
    uniforms[::4] = -1
    fast = generate(tiny, tokenizer, ragged, SIZES, temperature, 20, max_rows, uniforms)
    owners = [prompt for prompt, size in zip(ragged, SIZES, strict=True) for _ in range(size)]
    assert len(set(map(len, fast.completions))) > 4
    for b, (prompt, completion, logprobs) in enumerate(zip(owners, fast.completions, fast.logprobs, strict=True)):
        torch.testing.assert_close(torch.tensor(logprobs), forward_logprobs(tiny, prompt, completion, temperature or 1), atol=1e-5, rtol=0)
        assert completion == greedy_tokens(tiny, prompt, 20) or temperature and b % 4
    tiny.shares_prompts = False
    tiny.set_attn_implementation("eager")
    assert_same(fast, generate(tiny, tokenizer, ragged, SIZES, temperature, 20, max_rows, uniforms))


def test_plain_py_has_at_most_70_lines():
    assert len((ROOT / "engine/plain.py").read_text().splitlines()) <= 70


def test_completions_share_a_row_until_they_diverge(srl, base, tokenizer, example, widths, monkeypatch):
    prompts = solve_prompts(srl, tokenizer, example, "3x + 4 = 19", "2(5x - 7) + 3 = 25")
    uniforms = torch.rand(32, 80, generator=torch.Generator().manual_seed(0))
    shared = generate(base, tokenizer, prompts, 16, max_new_tokens=80, uniforms=uniforms)
    assert 0 < sum(widths) < 0.8 * sum(map(len, shared.completions))
    for n, width in enumerate(widths, 1):
        alive = {(b // 16, *completion[:n]) for b, completion in enumerate(shared.completions) if len(completion) > n}
        assert len(alive) <= width <= len(alive) / 0.8                                           # finished rows stay until they are a fifth
    as_on_a_gpu(monkeypatch)
    assert_same(shared, generate(base, tokenizer, prompts, 16, max_new_tokens=80, uniforms=uniforms), atol=1e-4)


def test_rows_of_a_decode_batch_are_as_many_as_memory_holds(tiny, tokenizer, widths, monkeypatch):
    """By hand: a token of the tiny model takes layers x heads x dimension keys and as many values of 4 bytes."""
    c = tiny.config
    token = 2 * c.num_hidden_layers * c.num_key_value_heads * (c.hidden_size // c.num_attention_heads) * 4
    row = (20 + 40 / 8) * token + 16 * c.vocab_size
    free = [2 * 7 * row + 10, 2 * 7 * row - 10, 0]
    assert [rows_that_fit(tiny, [[5] * 40, [5] * 3], [8, 1], 20, n) for n in free] == [7, 6, 1]
    assert rows_that_fit(tiny, PROMPTS, [1] * 4, 4, 1 << 60) > 10**6
    for n, most in ((2 * 4 * (4 + 7) * token + 8 * 16 * c.vocab_size, (2, 3, 4)), (0, (1,))):
        monkeypatch.setattr(rollout, "free_bytes", lambda device, n=n: n)
        widths.clear()
        generate(tiny, tokenizer, PROMPTS, 1, max_new_tokens=4)
        assert max(widths) in most


# Prefill
def test_prompts_are_prefilled_in_parts_that_fit_a_cache_and_the_parts_change_nothing(tiny, tokenizer, monkeypatch):
    torch.manual_seed(0)
    prompts = [torch.randint(5, len(tokenizer), (n,)).tolist() for n in (90, 80, 61, 60, 33, 20) * 8]
    parts, read = [], SharedPromptCache.read
    monkeypatch.setattr(SharedPromptCache, "read", lambda self, part, prefixes: parts.append(len(part)) or read(self, part, prefixes))
    sampled = generate(tiny, tokenizer, prompts, 2, max_new_tokens=5)
    assert max(parts) * 90 <= 2000 and sum(parts) == len(prompts) and len(parts) > 2
    for b, (completion, logprobs) in enumerate(zip(sampled.completions, sampled.logprobs, strict=True)):
        torch.testing.assert_close(torch.tensor(logprobs), forward_logprobs(tiny, prompts[b // 2], completion), atol=1e-5, rtol=0)


def test_a_turn_does_not_compute_the_prefix_that_the_last_turn_computed(srl, base, tokenizer, example, monkeypatch):
    problems = [{**example, "problem": f"Solve 2({n}x - 7) + 3 = 4x + 25", "partial": ""} for n in range(5, 11)]
    computed, left_pad = [], kv_cache.left_pad
    monkeypatch.setattr(kv_cache, "left_pad", lambda prompts, *args: computed.append(list(map(len, prompts))) or left_pad(prompts, *args))

    def extend(e, completion):
        action = srl.action_of(completion)
        return {**e, "partial": e["partial"] + action + "\n"} if action else None

    def run():
        computed.clear()
        groups = srl.run_episodes(base, tokenizer, problems, 4, srl.srl_prompt, extend, srl.Config(max_turns=4), seeds=list(range(6)))
        episodes = sum(groups, [])
        return [[turn[:2] for turn in e.turns] for e in episodes], torch.tensor([e.turns[-1].logprobs[0] for e in episodes]), computed.copy()
    ours, logprobs, cached = run()
    monkeypatch.setattr(rollout, "free_bytes", lambda device: 0)                                 # no room to store anything
    monkeypatch.setattr(rollout, "rows_that_fit", lambda *args: 384)
    plain, others, uncached = run()
    assert ours == plain
    torch.testing.assert_close(logprobs, others, atol=1e-4, rtol=0)
    assert cached[0] == uncached[0] and sum(map(sum, cached)) < 0.5 * sum(map(sum, uncached))
    prefix_cache = PrefixCache()
    generate(base, tokenizer, [[5, 6, 7]], 1, max_new_tokens=2, prefix_cache=prefix_cache)
    assert prefix_cache.new == {}


# The decode step: traced with TorchScript, or a CUDA graph
def sample(tiny, tokenizer):
    torch.manual_seed(0)
    return generate(tiny, tokenizer, PROMPTS, 4, max_new_tokens=40, max_rows=8)


def test_a_traced_step_computes_with_the_current_weights(tiny, tokenizer, ragged, monkeypatch):
    sample(tiny, tokenizer)
    traced = kv_cache.TRACED[tiny].copy()
    assert len(traced) == 2 and all(isinstance(step, torch.jit.ScriptModule) for step in traced.values())       # rows of one length, and of several
    with torch.no_grad():
        for weight in tiny.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    ours = sample(tiny, tokenizer)
    assert kv_cache.TRACED[tiny] == traced
    monkeypatch.setattr(kv_cache, "traced_step", lambda policy, weights, inputs: DecodeStep(policy.base_model))
    assert_same(ours, sample(tiny, tokenizer))


@pytest.mark.parametrize("why", ["dynamic RoPE", "trace", "TracerWarning"])
def test_a_step_that_cannot_be_traced_runs_untraced(tokenizer, monkeypatch, why):
    """Dynamic RoPE changes its frequencies where a sequence gets longer than those of training; torch may no longer have TorchScript."""
    if why == "dynamic RoPE":
        more = {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
    else:
        more = monkeypatch.delattr(torch.jit, why) or {}
    model = small_model(tokenizer, "llama", **more)
    ours = generate(model, tokenizer, PROMPTS, 1, temperature=0, max_new_tokens=5).completions
    assert {type(step) for step in kv_cache.TRACED[model].values()} == {DecodeStep}
    assert ours == [greedy_tokens(model, prompt, 5) for prompt in PROMPTS]


def test_steps_whose_tensors_keep_their_size_as_on_a_gpu_sample_the_same(tiny, tokenizer, ragged, monkeypatch):
    ours = sample(tiny, tokenizer)
    as_on_a_gpu(monkeypatch)
    assert_same(ours, sample(tiny, tokenizer))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_graphs_sample_what_the_cpu_samples(base, tokenizer):
    uniforms = torch.rand(16, 40)
    ours = generate(base, tokenizer, PROMPTS, 4, max_new_tokens=40, max_rows=8, uniforms=uniforms)
    assert_same(ours, generate(base.cuda(), tokenizer, PROMPTS, 4, max_new_tokens=40, max_rows=8, uniforms=uniforms), atol=1e-4)
