"""Sampling: many prompts decoded in one batch, which others join as rows finish (continuous batching)."""
import itertools
import math
import os
import random
from dataclasses import dataclass

import torch

from .attention import shares_prompts
from .chat import eos_ids
from .files import InputError
from .kv_cache import SharedPromptCache
from .plain import generate_plain, sample_tokens


@dataclass
class Rollout:
    """B completions as sampled."""
    completions: list       # token ids, EOS included: what is trained, never a decoded and encoded text
    logprobs: list          # of these tokens
    texts: list
    finished: list          # whether EOS came


def random_stream(seed, turn, shape):
    """Uniform numbers of a seed (any text) and a turn alone, the same in every batch, on every device."""
    number = random.Random(f"{seed}, turn {turn}").getrandbits(62)
    return torch.rand(shape, generator=torch.Generator().manual_seed(number))


def length_problems(config, model, tokens, share_prompts):
    """Error messages, as a list, where sequences of so many tokens are not computed right by the model."""
    config, problems = config.get_text_config(), []
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    if tokens > positions:
        problems.append(f"are more than the {positions} positions of")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):            # more tokens change all keys
        original = rope.get("original_max_position_embeddings") or positions
        if original < tokens <= positions:
            problems.append(f"are more than the {original} original positions of {rope['rope_type']} RoPE in")
    window = getattr(config, "sliding_window", None) or math.inf
    layer_types = set(getattr(config, "layer_types", None) or ())
    if share_prompts and tokens > window and layer_types != {"full_attention"}:
        problems.append(f"need --no_share_prompts (slower): the attention window is {window} in")
    fix = "lower --max_new_tokens, shorten the data, or use another model"
    return [f"the {tokens} tokens of the longest prompt and answer {why} {model}; {fix}" for why in problems]


def fits(policy, tokens):
    """Whether the policy computes sequences of so many tokens right."""
    return not length_problems(policy.config, "", tokens, shares_prompts(policy))


def check_lengths(policy, tokens, name=""):
    """Raises InputError, beginning with `name`, where the policy does not compute so many tokens right."""
    if problems := length_problems(policy.config, policy.config.name_or_path, tokens, shares_prompts(policy)):
        raise InputError(name + problems[0])


def rows_that_fit(policy, prompts, sizes, max_new_tokens, free):
    """How many completions fit half of the free bytes, with their part of a prompt and a token's logits."""
    config = policy.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    sharing = sizes if shares_prompts(policy) else [1] * len(prompts)
    prompt_tokens = max(len(prompt) / size for prompt, size in zip(prompts, sharing, strict=True))
    token_bytes = 2 * config.num_hidden_layers * heads * head_dim * policy.dtype.itemsize
    # distribution and its sum, of each row and completion
    logit_bytes = 4 * 4 * len(policy.get_output_embeddings().weight)
    return max(1, int(free / 2 / ((max_new_tokens + prompt_tokens) * token_bytes + logit_bytes)))


def free_bytes(device):
    """Free memory of the GPU, else of the machine; unlimited where the system does not say."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return 1 << 60
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def decode_batch(policy, eos, prompts, sizes, uniforms, temperature, max_rows, prefix_cache=None):
    """sizes[i] completions of prompts[i] -> tokens, log-probabilities (B, T) and lengths (B,) with EOS.

    When a fifth of max_rows is free, waiting prompts join the batch.
    """
    (B, T), device = uniforms.shape, policy.device
    tokens, logprobs = torch.zeros(B, T, dtype=torch.long, device=device), torch.zeros(B, T, device=device)
    lengths = torch.zeros(B, dtype=torch.long, device=device)
    first = [0, *itertools.accumulate(sizes)]  # the first completion of each prompt
    # prompts of similar length together: little padding
    waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    cache = SharedPromptCache(policy, T, prefix_cache)
    active = torch.zeros(0, dtype=torch.long, device=device)        # completions being decoded
    row = active                                                    # the cache's row of each
    logits = None  # (R, V), the next token of each row
    while waiting or len(active):
        if waiting and len(active) <= 0.8 * max_rows:
            admitted, free_rows = [], max_rows - len(active)
            while waiting and (not admitted or sizes[waiting[-1]] <= free_rows):
                admitted.append(waiting.pop())
                free_rows -= sizes[admitted[-1]]
            num_rows, counts = len(cache.length), torch.tensor([sizes[i] for i in admitted], device=device)
            open_rows = counts if cache.on_gpu else torch.ones_like(counts)     # see SharedPromptCache.decode
            new = cache.prefill([prompts[i] for i in admitted], open_rows)
            logits = torch.cat([logits, new]) if num_rows else new
            opened = torch.arange(num_rows, num_rows + len(new), device=device)
            row = torch.cat([row, opened if cache.on_gpu else opened.repeat_interleave(counts)])
            joined = [torch.arange(first[i], first[i + 1], device=device) for i in admitted]
            active = torch.cat([active, *joined])
        position = cache.length[row]
        token, logprob = sample_tokens(logits, row, uniforms[active, position], temperature)
        tokens[active, position] = token
        logprobs[active, position] = logprob
        lengths[active] = position + 1
        unfinished = ~torch.isin(token, eos) & (position + 1 < T)
        active = active[unfinished]
        logits, row = cache.decode(row[unfinished], token[unfinished])
    return tokens, logprobs, lengths


@torch.inference_mode()
def generate(policy, tokenizer, prompts, group_size, temperature=1.0, max_new_tokens=160, max_rows=384,
             uniforms=None, prefix_cache=None):
    """G completions of each of P prompts (lists of ids): a Rollout of B = P*G. group_size: G, or P numbers.

    uniforms (B, max_new_tokens): numbers in [0, 1) that the tokens are sampled with, so a completion does not
    depend on its batch; -1 takes the most probable token. temperature 0: greedy. max_rows: completions at a
    time, fewer where memory is short. Raises InputError where the model's positions or window are too few.
    """
    check_lengths(policy, max(map(len, prompts), default=0) + max_new_tokens)
    sizes = [group_size] * len(prompts) if isinstance(group_size, int) else group_size
    device, eos = policy.device, torch.tensor(eos_ids(policy, tokenizer), device=policy.device)
    max_rows = min(max_rows, rows_that_fit(policy, prompts, sizes, max_new_tokens, free_bytes(device)))
    if temperature == 0:
        uniforms = torch.full((sum(sizes), max_new_tokens), -1.0)
    elif uniforms is None:
        uniforms = torch.rand(sum(sizes), max_new_tokens, device=device)
    uniforms = uniforms.to(device)
    if shares_prompts(policy):
        if prefix_cache:
            prefix_cache.next_turn(free_bytes(device) // 4)
        sampled = decode_batch(policy, eos, prompts, sizes, uniforms, temperature, max_rows, prefix_cache)
    else:
        repeated = [prompt for prompt, size in zip(prompts, sizes, strict=True) for _ in range(size)]
        parts = [slice(i, i + max_rows) for i in range(0, len(repeated), max_rows)]
        parts = [generate_plain(policy, eos, repeated[part], uniforms[part], temperature) for part in parts]
        sampled = map(torch.cat, zip(*parts, strict=True))
    return as_rollout(tokenizer, *sampled, eos)


def as_rollout(tokenizer, tokens, logprobs, lengths, eos):
    """A Rollout of tokens and log-probabilities (B, T), lengths (B,). InputError where logits were NaN."""
    if logprobs.isnan().any():
        raise InputError("the model's logits are not finite; use --dtype float32, or another model")
    completions = [row[:n] for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    logprobs = [row[:n] for row, n in zip(logprobs.tolist(), lengths.tolist(), strict=True)]
    end_ids = set(eos.tolist())
    finished = [completion[-1] in end_ids for completion in completions]
    without_eos = [tuple(ids[:-1] if done else ids) for ids, done in zip(completions, finished, strict=True)]
    distinct = list(dict.fromkeys(without_eos))  # equal completions are decoded to text once
    # every token that was sampled but the end: some tokenizers call <think> special
    texts = tokenizer.batch_decode(distinct, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    texts = dict(zip(distinct, texts, strict=True))
    return Rollout(completions, logprobs, [texts[ids] for ids in without_eos], finished)
