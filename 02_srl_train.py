"""Stage 2: SRL. GRPO with a dense reward for every step: the similarity of the policy's action to the expert's.

From a problem and the steps so far the policy writes its own monologue in <think> tags and then the next step. The reward looks at the step
alone (paper section 4.2), so every prompt has a signal, also where no rollout would ever solve the whole problem.

  1. Prompt        the problem and the steps so far, as chat messages
  2. Reward        R = 2M / T of action and expert action, -1 where the format is broken
  3. Model         attention, and log-probabilities of a group that shares its prompt
  4. Rollout       G completions per prompt; an episode is a loop of them
  5. Advantage     (reward - mean) / std inside the group
  6. Loss          the clipped GRPO objective
  7. Batch         dynamic sampling with refill: groups without a difference are replaced; shared out over the devices of torchrun
  8. Update
  9. Training      input checks, validation, best checkpoint, exact resume, alarms
 10. SFT           the baseline on the same examples

Differences from the paper, which leaves eps, clipping, lengths and the optimizer open: see the knobs below; the sizes are the miniature's.

in:      runs/data/train.jsonl, val.jsonl (01_segment.py) and a causal language model with its tokenizer
out:     runs/srl/model (the best by validation), log.jsonl, completions.txt (a few of every update) and checkpoints beside it
command: python 02_srl_train.py                                        # 2 CPU cores, about 2 min; the same again continues what was interrupted
         python 02_srl_train.py --method sft --sft_target outline      # the baseline, about 4 min
         python 02_srl_train.py --recipe agents                        # the agents' miniature
         torchrun --nproc-per-node 8 02_srl_train.py                   # 8 GPUs
"""
import argparse
import bisect
import gc
import itertools
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import warnings
import weakref
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path

import torch
import torch.distributed as dist
from jinja2.exceptions import TemplateError
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from tqdm import tqdm
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

try:
    from cydifflib import SequenceMatcher  # difflib compiled: the same numbers, on real steps 15 times as fast
except ImportError:
    from difflib import SequenceMatcher

segmentation = import_module("01_segment")  # import cannot spell a file name that begins with a digit
transformers_logging.disable_progress_bar()
HERE = Path(__file__).parent


@dataclass
class Config:
    """Every knob; each is a flag of the same name."""
    method: str = "srl"                 # srl | sft
    sft_target: str = "outline"         # outline: the expert's step alone | reasoning: the expert's thoughts and the step | student: a control, see README
    model: str = str(HERE / "miniature/base")   # folder or hub name of the starting policy
    data: str = str(HERE / "runs/data")         # train.jsonl and val.jsonl
    out: str = str(HERE / "runs/srl")
    prompt_file: str = ""               # a text in place of our prompt, see with_prompt_file
    recipe: str = "miniature"           # miniature | agents | paper: other defaults, see RECIPES
    seed: int = 0
    # batch
    prompts_per_batch: int = 16         # P, groups in an update (paper: 512)
    group_size: int = 8                 # G, completions per prompt (paper: 8; TRL: num_generations)
    temperature: float = 1.0            # (paper: 1.0) in the rollout and in the log-probabilities
    max_new_tokens: int = 160           # of one completion; the paper does not say. A step of the miniature takes 15 to 120
    max_turns: int = 8                  # completions of an episode that solves step by step
    autojunk: bool = False              # difflib's default is True, and scores near copies of 200 characters and more as low as 0.02
    eps: float = 0.001                  # a group is kept where the std of its rewards is greater; the paper gives no value. One digit in one of eight: 0.008
    max_tries: int = 3                  # at most so many times the batch is sampled to fill it; then the update goes on with fewer groups
    # optimization
    learning_rate: float = 3e-4         # Adam (paper: 5e-7 for 7B)
    decay: float = 0.4                  # share of the run, at its end, in which the learning rate falls linearly to 0; 0: constant (the paper's)
    clip_eps: float = 0.2               # clip range of the ratio; the paper does not say (veRL: 0.2)
    loss_mean: str = "completion"       # completion: mean over completions of the mean over tokens (paper) | token: mean over all tokens (veRL's default)
    max_grad_norm: float = 1.0          # (paper: 1.0)
    minibatches: int = 1                # optimizer steps per batch; the paper does not say. 1: strictly on-policy, the ratio is 1
    # length
    rollouts: int = 48_000              # completions in all, those of dropped groups too: what a run costs
    eval_every: int = 20                # updates between validations
    val_samples: int = 1                # completions per validation prompt; 1: greedy
    save_every: int = 5                 # updates between checkpoints: what a kill may cost. Ctrl-C, SIGTERM and errors save first
    continue_changed: bool = False      # continue the run in --out although its settings were others
    report_to: str = "none"             # none | tensorboard | trackio | wandb, besides log.jsonl
    # SFT
    epochs: int = 3                     # (paper: 3) the best by validation is kept
    sft_batch: int = 64                 # (paper: 64)
    # hardware
    max_rows: int = 384                 # completions decoded side by side, fewer where memory is short; waiting prompts take the places of finished ones
    update_tokens: int = 12_000         # tokens in one forward and backward pass, a group's prompt counted once
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    dtype: str = "float32"              # of the weights that compute; below float32 the optimizer keeps float32 copies
    optimizer: str = "adam"             # adam | adam8bit: states in 8 bits (needs bitsandbytes and a GPU)
    gradient_checkpointing: bool = False    # activations are computed again in the backward pass: about a third more time, a fraction of the memory
    lora_rank: int = 0                  # 0: all weights learn; else low-rank adapters (needs peft), about 10 times the learning rate
    share_prompts: bool = True          # False: each completion is computed with its own prompt, as it is anyway for models that load_policy names
    shard: bool = False                 # under torchrun: weights, gradients and Adam spread over the devices (FSDP2), gathered for the rollout


# --recipe paper. What the paper gives for Qwen2.5-7B-Instruct stands first; what it does not give is our choice, with its reason in the README
PAPER = {
    "srl": {"prompts_per_batch": 512, "group_size": 8, "temperature": 1.0, "learning_rate": 5e-7, "decay": 0.0, "max_grad_norm": 1.0, "dtype": "bfloat16",
            "model": "Qwen/Qwen2.5-7B-Instruct", "data": str(HERE / "runs/s1k"), "out": str(HERE / "runs/paper_srl"),
            "rollouts": 1_200_000, "max_new_tokens": 2048, "eval_every": 10, "max_rows": 512, "update_tokens": 16_000, "gradient_checkpointing": True},
    "sft": {"sft_batch": 64, "epochs": 3, "learning_rate": 5e-6, "max_grad_norm": 1.0, "dtype": "bfloat16",
            "model": "Qwen/Qwen2.5-7B-Instruct", "data": str(HERE / "runs/s1k"), "out": str(HERE / "runs/paper_sft"), "max_new_tokens": 2048,
            "max_rows": 512, "update_tokens": 16_000, "gradient_checkpointing": True},
}
# --recipe agents. The miniature's second world; see 03 for its tools
AGENTS = {"model": str(HERE / "miniature/agents/base"), "data": str(HERE / "runs/agents/data"), "max_new_tokens": 500}
RECIPES = {"paper": PAPER, "agents": {
    "srl": {**AGENTS, "out": str(HERE / "runs/agents/srl")},
    "sft": {**AGENTS, "out": str(HERE / "runs/agents/sft_outline"), "learning_rate": 3e-3},
}}


# 1. Prompt
SRL_SYSTEM = (
    "You are given a problem and the beginning of its solution, a list of numbered steps. Write the one step that comes next and nothing after it: "
    "not the rest of the solution, not a second step. Before the step, think. Put your thoughts between <think> and </think>; write there as you would "
    "on scratch paper, informally, trying things out and checking them, at whatever length helps. After </think> write only the next step, in the style of the "
    "steps so far. If no step is given yet, write the first one. If the solution is complete but for its final answer, give that answer in \\boxed{}."
)


SRL_USER = "{problem}\n\nSolution:\n{partial}"


def fill(template, example):
    """The template with {problem} and {partial} replaced; every other brace stays, formulas are full of them."""
    return re.sub(r"\{(problem|partial)\}", lambda place: example.get(place[1], ""), template)


AGENT_SYSTEM = (
    "You work on a task in an environment, one call at a time. You are given the task, and the last calls with what they returned. Make the one call that "
    "comes next and nothing after it. Before the call, think. Put your thoughts between <think> and </think>, as on scratch paper, at whatever length helps: "
    "what is known, what is missing, what the call should show. After </think> write only the call, in the form of the calls so far or as described below."
)


def agent_prompt(example, system=AGENT_SYSTEM, user="{problem}"):
    """Chat messages that ask for the next call of an agent: its own system message, the task, the last calls and observations (paper section 5)."""
    system = "\n\n".join(text for text in (system, example.get("system")) if text)
    return [{"role": "system", "content": system}, {"role": "user", "content": fill(user, example)}, *example["context"]]


def srl_prompt(example, system=SRL_SYSTEM, user=SRL_USER):
    """Chat messages that ask for step k: the problem and steps 1..k-1 (paper section 4.1; the wording is ours); of an agent, for the next call."""
    if "context" in example:
        return agent_prompt(example, **{name: text for name, text in (("system", system), ("user", user)) if text not in (SRL_SYSTEM, SRL_USER)})
    hint = f"\n\nThe title of the next step: {example['title']}" if example.get("title") else ""    # 01_segment.py --title_hint (the paper's footnote)
    return [{"role": "system", "content": system}, {"role": "user", "content": fill(user, example) + hint}]


def with_prompt_file(make_prompt, path):
    """make_prompt with the words of a file: the system message, and after a line --- the user message with {problem} and {partial} in it.

    Without that line the user message stays ours. No path: make_prompt as it is. Raises InputError where the file cannot serve.
    """
    if not path:
        return make_prompt
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise segmentation.InputError(f"{path}: {error}; expected a text file with the system message") from None
    system, *user = re.split(r"^---[ \t]*$", text, maxsplit=1, flags=re.MULTILINE)
    if user and "{problem}" not in user[0]:
        raise segmentation.InputError(f"{path}: no {{problem}} after the line ---; that part is the user message and has to hold the problem")
    return partial(make_prompt, system=system.strip(), **({"user": user[0].strip("\n")} if user else {}))


def prompt_text(tokenizer, messages):
    """A prompt as the model's own chat template writes it, open for the answer.

    Where the template refuses a system message, it stands before the user's; without a template the messages stand as plain text.
    """
    if not tokenizer.chat_template:
        return "".join(f"{m['content']}\n\n" for m in messages)
    try:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateError:
        system, user, *rest = messages
        merged = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        return tokenizer.apply_chat_template(merged, add_generation_prompt=True, tokenize=False)


def encode_texts(tokenizer, texts):
    """Token ids of each prompt_text. A chat template writes its special tokens itself; plain text gets the tokenizer's, such as a BOS."""
    return tokenizer(texts, add_special_tokens=not tokenizer.chat_template)["input_ids"] if texts else []


def encode(tokenizer, messages):
    """Token ids of a prompt."""
    return encode_texts(tokenizer, [prompt_text(tokenizer, messages)])[0]


def opened_thought(text):
    """'<think>' where a prompt's text ends in it, else '': some templates open the thoughts themselves, and the completion's text begins inside them."""
    return "<think>" if text.rstrip().endswith("<think>") else ""


# 2. Reward
def parse_completion(text):
    """(think, action) of a completion, or None where the format is broken.

    The format: thoughts, one </think>, then a step that is not empty. <think> may be missing, since some chat templates open it in the prompt;
    <solution> tags around the step are accepted (the paper shows both). Matched on text: '</think>' and '</think>\\n' are different tokens.
    """
    think, closing, action = text.partition("</think>")
    think = think.strip().removeprefix("<think>")
    action = action.strip().removeprefix("<solution>").removesuffix("</solution>").strip()
    if not closing or not action or "think>" in think or "think>" in action:
        return None
    return think.strip(), action


def similarity(action, expert_action, autojunk=False):
    """R = 2M / T in [0, 1]: M characters in matching blocks, T the length of both (paper section 4.2, difflib's ratio).

    The order of arguments is fixed, since the ratio is not symmetric. autojunk=True is difflib's default, which from 200 characters of the expert's
    action on calls its frequent characters junk and scores near copies as low as 0.02.
    """
    return SequenceMatcher(None, action, expert_action, autojunk=autojunk).ratio()


cached_similarity = lru_cache(maxsize=1 << 16)(similarity)  # equal completions are scored once


def srl_reward(completion, example, autojunk=False):
    """Similarity of the action to the expert's in [0, 1]; -1 where the format is broken. The monologue is the model's own."""
    parsed = parse_completion(completion)
    return -1.0 if parsed is None else cached_similarity(parsed[1], example["action"], autojunk)


# 3. Model
def shared_prompt_attention(query, key, value, scaling, cache, layer):
    """One decode step: every row looks at its prompt, stored once for its group, and at its own tokens, under one softmax.

    The rows stand in a grid with a line for each prompt, so that a prompt meets all its rows in one matrix product; what stands at empty places is
    never read. query (B, H, 1, D), key and value (B, H_kv, t, D) -> (B, 1, H, D).
    """
    prompt_keys, prompt_values = cache.prompts[layer]                                             # (P, H_kv, D, T), (P, H_kv, T, D)
    B, H_kv, _, D = key.shape
    P, W = cache.row_at.shape
    T = prompt_keys.shape[3]
    query = (query * (scaling or D**-0.5)).view(B, H_kv, -1, D)
    R = query.shape[2]                                                                            # query heads that share a key

    def to_grid(rows):                                                                            # (B, H_kv, R, n) -> (P, H_kv, W * R, n)
        return rows.index_select(0, cache.row_at.view(-1)).view(P, W, H_kv, R, -1).transpose(1, 2).reshape(P, H_kv, W * R, -1)

    def from_grid(grid):
        return grid.view(P, H_kv, W, R, -1).transpose(1, 2).reshape(P * W, H_kv, R, -1).index_select(0, cache.place)
    at_prompt, at_own = from_grid((to_grid(query) @ prompt_keys).add_(cache.hide_padding)), query @ key.transpose(2, 3)
    if cache.hide_future is not None:
        at_own.add_(cache.hide_future)
    weights = torch.cat([at_prompt, at_own], -1).softmax(-1, dtype=torch.float32).to(value.dtype)
    return (from_grid(to_grid(weights[..., :T]) @ prompt_values) + weights[..., T:] @ value).view(B, 1, -1, D)


def grouped_query_attention(module, query, key, value, attention_mask, scaling=None, shared_prompts=None, **kwargs):
    """Attention for every case: decode steps with shared prompts, the rest by torch's own kernels.

    query (B, H, L, D), key and value (B, H_kv, T, D), attention_mask (B, 1, L, T), see `additive` -> (B, L, H, D).
    shared_prompts: the StepCache of a decode step. On a CPU the kernel takes keys and values that several query heads share as they are;
    transformers' call repeats them.
    """
    if shared_prompts is not None:
        return shared_prompt_attention(query, key, value, scaling, shared_prompts, module.layer_idx), None
    if query.is_cuda or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2), None


def additive(mask, dtype):
    """A mask that is True where a query may look, as numbers to add to its scores: made once for all layers."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


AttentionInterface.register("grouped_query", grouped_query_attention)
AttentionMaskInterface.register("grouped_query", sdpa_mask)


@contextmanager
def reading_model(name):
    """Raises InputError where there is no such model, or the block cannot read it."""
    if not Path(name).is_dir() and (str(name).startswith((".", "/")) or str(name).count("/") != 1):
        raise segmentation.InputError(f"{name}: no such model folder; train it first, or give a folder or a hub name with --model")
    try:
        yield
    except Exception as error:  # a file that is missing, cut, of another type: transformers has dozens of ways to say it
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise segmentation.InputError(f"{name}: not a whole model with a tokenizer ({why}); train or copy it again, or give another with --model") from None


def load_shape(name):
    """(model without weights, tokenizer), which takes no time and no memory."""
    with reading_model(name), torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(name)), AutoTokenizer.from_pretrained(name)


def load_policy(name, device="cpu", dtype="float32", share=True):
    """(policy, tokenizer) from a model folder or hub name. Raises InputError where there is none, or none that can be computed here.

    share: compute each prompt once for its group, unless that would not give the scores of the model's own forward.
    """
    with reading_model(name):
        tokenizer = AutoTokenizer.from_pretrained(name)
        policy, report = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype), attn_implementation="grouped_query", output_loading_info=True)
        if report["missing_keys"]:
            raise ValueError(f"{len(report['missing_keys'])} weights are missing, such as {min(report['missing_keys'])}")
    policy.to(device).eval()
    why = other_scores(policy, SharedPromptCache) if share else "--no-share_prompts"
    policy.shares_prompts = not why
    if why:
        policy.set_attn_implementation("eager")                                                   # transformers' plain attention
        if unlike := other_scores(policy, PlainCache):
            raise segmentation.InputError(f"{name}: tokens decoded one by one are not scored as a model of type {policy.config.model_type} scores them "
                                          f"by itself ({unlike}); take another model")
        print(f"{name}: every completion gets its own prompt, which is slower than a shared one ({why})")
    return policy, tokenizer


@torch.inference_mode()
def other_scores(policy, cache_of):
    """How tokens decoded with a cache are scored otherwise than by the model's own forward, '' where they are not. Twelve tokens tell.

    Shared prompts know no scaled or capped scores (Granite, Cohere, Gemma 2), no attention sinks (gpt-oss) and no layers that remember otherwise than by
    keys and values (Qwen3-Next).
    """
    tokens, before = torch.arange(5, 65, 5, device=policy.device) % policy.get_input_embeddings().num_embeddings, policy.config._attn_implementation
    distribution = lambda scores: scores[0].float().softmax(-1)  # noqa: E731
    try:
        cache = cache_of(policy)
        scores = cache.admit([tokens[:7].tolist()], [2])                                          # two rows that share seven tokens
        for token in tokens[7:]:
            scores = cache.step(token.expand(2))
        policy.set_attn_implementation("eager")
        own = distribution(policy(tokens[None]).logits[:, -1])
        apart = (own - distribution(scores)).abs().sum().item() / 2
        if not apart < (1e-3 if policy.dtype == torch.float32 else 0.2):                          # 16 bits that add up in another order are a few percent apart
            return f"{apart:.1%} of the probability stands elsewhere"
        if cache_of is SharedPromptCache:
            behind = policy.get_output_embeddings()(policy.base_model(tokens[None]).last_hidden_state[:, -1])
            if not (own - distribution(behind)).abs().sum() < 1e-3:                               # the same code twice: no rounding
                return "its scores are scaled or capped"
        return ""
    except Exception as error:  # an architecture of another kind fails in any way
        return (str(error).strip() or type(error).__name__).splitlines()[0]
    finally:
        policy.set_attn_implementation(before)


def eos_ids(policy, tokenizer):
    """All ids that end a completion; generation_config may list several."""
    ids = policy.generation_config.eos_token_id
    ids = sorted({tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])} - {None})
    if not ids:
        raise segmentation.InputError("neither tokenizer nor generation config names an EOS token, so no completion would end; set eos_token")
    return ids


def left_pad(prompts, device, dtype=torch.float32):
    """N prompts (lists of ids) of any length as ids (N, P), real (N, P) bool, an additive causal mask (N, 1, P, P) and positions (N, P): all end together."""
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    P = int(lengths.max())
    ids = torch.tensor([[0] * (P - len(p)) + list(p) for p in prompts], device=device)
    real = torch.arange(P, device=device) >= P - lengths[:, None]
    causal = torch.ones(P, P, dtype=torch.bool, device=device).tril()
    mask = (real[:, None, :] & causal) | torch.eye(P, dtype=torch.bool, device=device)           # a padded position sees itself: no empty softmax
    return ids, real, additive(mask[:, None], dtype), (real.cumsum(1) - 1).clamp(min=0)


def alike(a, b):
    """How many tokens two lists have in common before they part."""
    return len(a) if a == b else next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def lay_out(prompts, capacity):
    """N prompts (lists of ids) in R rows of at most `capacity` tokens; what prompts of a row begin with alike stands there once.

        a b c,  a b d e  and  x y  in a row of 8       ids        a b c d e x y 0
                                                       positions  0 1 2 2 3 0 1 0
    A token sees those of its own prompt before it, wherever they stand. Returns ids (R, L), sees (R, L, L) bool, positions (R, L), and the path of each
    prompt: a tensor of the places of its tokens, counted through all rows.
    """
    rows, laid, path, before = [], [], [], []
    for n in sorted(range(len(prompts)), key=prompts.__getitem__):                                # in alphabetical order the one before has most in common
        same = alike(prompts[n], before)
        if not rows or len(rows[-1]) + len(prompts[n]) - same > capacity:
            rows, same = [*rows, []], 0
        before, path = prompts[n], [*path[:same], *range(len(rows[-1]), len(rows[-1]) + len(prompts[n]) - same)]
        rows[-1] += [(token, position) for position, token in enumerate(before)][same:]
        laid.append((n, len(rows) - 1, same, torch.tensor(path)))
    L, paths = max(map(len, rows)), [None] * len(prompts)
    ids, positions = torch.tensor([row + [(0, 0)] * (L - len(row)) for row in rows]).unbind(-1)
    sees = torch.eye(L, dtype=torch.bool).repeat(len(rows), 1, 1)                                 # padding sees itself: no empty softmax
    for n, row, same, path in laid:
        sees[row, path[same:, None], path] = torch.ones(len(path), len(path), dtype=torch.bool).tril()[same:]
        paths[n] = row * L + path
    return ids, sees, positions, paths


class PromptCache:
    """Keys and values of prompts laid out in rows, computed once with their gradient. With `look` (b, P), the cache of a later pass whose row b looks
    back at the tokens in those places."""

    def __init__(self, prompts=None, look=None):
        self.layers, self.look = prompts.layers if prompts else {}, look

    def update(self, key, value, layer, *args, **kwargs):
        if self.look is None:
            self.layers.setdefault(layer, [t.transpose(1, 2).flatten(0, 1) for t in (key, value)])     # gradient checkpointing comes by a second time
            return key, value
        back = [t.index_select(0, self.look.flatten()).unflatten(0, self.look.shape).transpose(1, 2) for t in self.layers[layer]]
        return tuple(torch.cat(pair, 2) for pair in zip(back, (key, value), strict=True))

    def get_seq_length(self, layer=0):
        return 0


def chunk_logprobs(hidden, weight, bias, targets, temperature):
    """(log-probability of each target, entropy of its distribution), both (M,): one chunk of the language-model head."""
    logits = torch.nn.functional.linear(hidden, weight, bias).float() / temperature
    logprobs = logits.log_softmax(-1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, targets[:, None])[:, 0], entropy


def shares_prompts(policy):
    """Whether prompts are computed once for their group; load_policy finds out."""
    return getattr(policy, "shares_prompts", True)


def plain_logprobs(policy, groups, temperature):
    """token_logprobs for every other architecture: each completion behind its own prompt, through the model's own forward."""
    prompts, completions = zip(*((prompt, completion) for prompt, group in groups for completion in group), strict=True)
    lengths = torch.tensor([len(c) for c in completions], device=policy.device)
    mask = torch.arange(int(lengths.max()), device=policy.device) < lengths[:, None]              # (B, T)
    ids, real, _, positions = left_pad(prompts, policy.device)
    targets = torch.tensor([c + [0] * (mask.shape[1] - len(c)) for c in completions], device=policy.device)
    seen = torch.cat([real, mask], 1)
    positions = torch.cat([positions, positions[:, -1:] + torch.arange(1, mask.shape[1] + 1, device=policy.device)], 1)
    logits = policy(input_ids=torch.cat([ids, targets], 1), attention_mask=seen.long(), position_ids=positions, use_cache=False,
                    logits_to_keep=mask.shape[1] + 1).logits[:, :-1]
    distribution = (logits.float() / temperature).log_softmax(-1)
    with torch.no_grad():
        entropy = -(distribution.exp() * distribution).sum(-1)[mask].mean()
    return distribution.gather(-1, targets[..., None])[..., 0] * mask, mask, entropy


def row_tokens(policy, prompts):
    """Tokens in a row of lay_out. Longer rows share more, but every token meets its whole row: where a row has as many tokens as a hidden state has
    numbers, that costs a sixth of all other products."""
    return max(3 * max(map(len, prompts)) // 2, min(policy.config.get_text_config().hidden_size, 1024))


def token_logprobs(policy, groups, temperature=1.0, head_numbers=1 << 26):
    """Log-probabilities of the completions' tokens, each prompt computed once for its group, and once what prompts begin with alike.

    groups: list of (prompt ids, list of completions' ids), B completions in all. Returns logprobs (B, T), mask bool (B, T) and the mean entropy.
    One pass over the prompts (lay_out), then passes over completions of like length, which look back at their prompt's keys and values. Equal completions of
    a group are computed once.
    The head sees completion positions only, in chunks of head_numbers logits that are made again for the gradient, unless the vocabulary is tiny: nothing
    of size tokens x vocabulary stays alive.
    """
    if not shares_prompts(policy):
        return plain_logprobs(policy, groups, temperature)
    device = policy.device
    pass_tokens = 750 if device.type == "cpu" else 16_000                                          # about as many activations as a core's cache holds
    if isinstance(policy, FSDPModule):                                                            # every rank has to make as many passes: two
        pass_tokens = math.inf
    unique = {}                                                                                   # (group, completion) -> its place among those computed
    which = [unique.setdefault((n, tuple(completion)), len(unique)) for n, (_, group) in enumerate(groups) for completion in group]      # (B,)
    completions = [(n, list(completion)) for n, completion in unique]
    lengths = torch.tensor([len(c) for _, c in completions], device=device)
    mask = torch.arange(int(lengths.max()), device=device) < lengths[which, None]                 # (B, T), from lengths: EOS is trained, padding is not
    prompts = [prompt for prompt, _ in groups]
    ids, sees, positions, paths = lay_out(prompts, row_tokens(policy, prompts))
    cache, ends = PromptCache(), torch.tensor([len(path) for path in paths], device=device)       # (N,) the position of a completion's first token
    behind = policy.base_model(input_ids=ids.to(device), attention_mask=additive(sees[:, None].to(device), policy.dtype), position_ids=positions.to(device),
                               past_key_values=cache, use_cache=True).last_hidden_state
    prompt_end = behind.flatten(0, 1)[[int(path[-1]) for path in paths]]                          # (N, D)
    real = torch.arange(int(ends.max()), device=device) >= ends.max() - ends[:, None]             # (N, P)
    paths = torch.stack([torch.nn.functional.pad(path, [len(real[0]) - len(path), 0]) for path in paths]).to(device)        # (N, P), padded on the left

    order = sorted(range(len(completions)), key=lambda b: len(completions[b][1]))
    head = policy.get_output_embeddings()
    head_tokens = max(1, head_numbers // len(head.weight))
    of_chunk = chunk_logprobs if len(head.weight) <= 1000 else partial(torch.utils.checkpoint.checkpoint, chunk_logprobs, use_reentrant=False)
    logprobs, entropies, begin = [None] * len(completions), [None] * len(completions), 0
    while begin < len(order):
        end = begin + 1
        while end < len(order) and (end + 1 - begin) * len(completions[order[end]][1]) <= pass_tokens:
            end += 1
        part = order[begin:end]
        begin = end
        rows = torch.tensor([completions[b][0] for b in part], device=device)
        L = max(2, len(completions[part[-1]][1]))                                                 # the longest
        padded = torch.tensor([completions[b][1] + [0] * (L - len(completions[b][1])) for b in part], device=device)     # (b, L), padding on the right
        own = torch.ones(L - 1, L - 1, dtype=torch.bool, device=device).tril().expand(len(part), -1, -1)
        sees = torch.cat([real[rows][:, None, :].expand(-1, L - 1, -1), own], 2)                  # its prompt and what it wrote so far
        place = ends[rows, None] + torch.arange(L - 1, device=device)
        after = policy.base_model(input_ids=padded[:, :-1], attention_mask=additive(sees[:, None], policy.dtype), position_ids=place,
                                  past_key_values=PromptCache(cache, paths[rows]), use_cache=True)
        hidden = torch.cat([prompt_end[rows][:, None], after.last_hidden_state], 1)  # (b, L, D): the prompt's end predicts the first token
        inside = torch.arange(L, device=device) < lengths[part, None]
        hidden, targets = hidden[inside], padded[inside]
        chunks = [of_chunk(hidden[i:i + head_tokens], head.weight, head.bias, targets[i:i + head_tokens], temperature)
                  for i in range(0, len(targets), head_tokens)]
        for kind, values in zip((logprobs, entropies), zip(*chunks, strict=True), strict=True):
            for b, row in zip(part, torch.cat(values).split(lengths[part].tolist()), strict=True):
                kind[b] = row
    return torch.nn.utils.rnn.pad_sequence([logprobs[i] for i in which], batch_first=True), mask, torch.cat([entropies[i] for i in which]).mean()


# 4. Rollout: G completions per prompt
@dataclass
class Rollout:
    """B completions as sampled: token ids (training uses these, never decoded and encoded again), their log-probabilities, text, whether EOS came."""
    completions: list
    logprobs: list
    texts: list
    finished: list


def pad_left(t, axis, length):
    return torch.nn.functional.pad(t, [0, 0] * (t.dim() - 1 - axis) + [length - t.shape[axis], 0]) if t.shape[axis] < length else t


@dataclass
class StepCache:
    """What one decode step reads of a SharedPromptCache, tensors alone, and where it writes: own has a column for the new token of every row, the last one
    where no row has written less than others (hide_future None)."""
    length: torch.Tensor
    row: torch.Tensor
    row_at: torch.Tensor
    place: torch.Tensor
    hide_padding: torch.Tensor
    prompts: tuple
    own: tuple
    hide_future: torch.Tensor = None

    def update(self, key, value, layer, *args, **kwargs):
        """Called by every layer with its new keys and values; returns those to look at."""
        for written, new in zip(self.own[layer], (key, value), strict=True):
            if self.hide_future is None:
                written[:, :, -1] = new[:, :, 0]
            else:
                written[self.row, :, self.length] = new[:, :, 0]
        return self.own[layer]

    def get_seq_length(self, layer=0):
        return 0


class DecodeStep(torch.nn.Module):
    """A model's pass over one token of each row as a function of tensors alone: token (B,), position (B,) and those of StepCache -> the last hidden states
    (B, D)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, token, position, *tensors):
        cache = StepCache(*tensors)
        return self.model(input_ids=token[:, None], attention_mask=cache.hide_padding, position_ids=position[:, None], past_key_values=cache, use_cache=True,
                          shared_prompts=cache).last_hidden_state[:, -1]


TRACED = weakref.WeakKeyDictionary()    # {policy: {ids of its weights: {number of tensors: the step that `traced` gives}}}; adapters are other weights


class SharedPromptCache:
    """Keys and values of B rows in groups that share a prompt. A decode step writes one column and copies (nearly) nothing.

        prompts[layer]   keys (P, H_kv, D, T), values (P, H_kv, T, D)     each prompt once, padded on the left to T
        own[layer]       keys and values (B or more, H_kv, room, D)       what row b wrote, in columns 0 .. length[b] - 1; room grows by 32
        group (B,)       the prompt of each row
        place (B,)       its place in a grid of P lines (shared_prompt_attention); row_at (P, W) the row at a place
        memory           {prompt: keys and values of its n tokens in all layers (n, F)}: an episode's next prompt begins with much of its last
    """
    joined = 0.8            # while at most so many of the places are taken, waiting prompts join

    def __init__(self, policy, memory=None):
        self.policy, self.room, self.prompts, self.own, self.reading, self.graph = policy, 0, {}, {}, None, None
        self.memory, self.known, self.learned = memory or {}, sorted(memory or ()), {}
        self.spare = 0 if memory is None else free_bytes(policy.device) // 4                      # bytes that `learned` may take
        self.seen = torch.zeros(0, 0, dtype=torch.bool, device=policy.device)                     # (P, T), False at padding
        self.group = self.length = torch.zeros(0, dtype=torch.long, device=policy.device)
        self.static = policy.device.type == "cuda" and not isinstance(policy, FSDPModule)         # tensors of a step stay where they are, for `recorded`
        self.head = policy.get_output_embeddings()
        self.steps = TRACED.setdefault(policy, {}).setdefault(tuple(map(id, policy.parameters())), {})

    def update(self, key, value, layer, *args, **kwargs):
        """Called by every layer with its keys and values of a prompt; returns those to look at."""
        self.reading[layer] = key, value = self.behind_past(key), self.behind_past(value)
        return key, value

    @property
    def branches(self):
        """Whether completions that begin alike share a row until they part: a GPU's recorded steps want the same rows."""
        return not self.static

    def get_seq_length(self, layer=0):
        return 0

    def remembered(self, prompt):
        """What memory holds of a prompt's beginning: keys and values (n, F) of n tokens. The last token is computed again: its hidden state is needed."""
        place = bisect.bisect(self.known, tuple(prompt))                                          # what has most in common stands beside it in the alphabet
        n, most = max(((alike(prompt[:-1], known), known) for known in map(list, self.known[max(place - 1, 0):place + 1])), default=(0, None))
        return self.memory[tuple(most)][:n] if most else torch.zeros(0, 0, dtype=self.policy.dtype, device=self.policy.device)

    def behind_past(self, new):
        """Keys or values (N, H_kv, L, D) behind those remembered, which stand in `past` (N, n, ..) in the order in which the layers ask."""
        N, H, _, D = new.shape
        if not self.past.shape[1]:
            return new
        before, self.past = self.past.split([H * D, self.past.shape[2] - H * D], 2)
        return torch.cat([before.view(N, -1, H, D).transpose(1, 2), new], 2)

    def read(self, prompts, pasts):
        """Compute prompts (N lists of ids) from where their pasts (n, F) end: the last hidden states (N, D), real (N, T) as `seen`, and {layer: [keys,
        values]} as `prompts` holds them."""
        lengths = torch.tensor([len(past) for past in pasts], device=self.policy.device)
        ids, real, mask, positions = left_pad([prompt[len(past):] for prompt, past in zip(prompts, pasts, strict=True)], self.policy.device, self.policy.dtype)
        before = torch.arange(int(lengths.max()), device=lengths.device) >= lengths.max() - lengths[:, None]                          # (N, longest past)
        F = max(past.shape[1] for past in pasts)
        self.past = torch.stack([pad_left(past.view(len(past), F), 0, before.shape[1]) for past in pasts])
        mask = torch.cat([additive(before[:, None, None].expand(-1, -1, ids.shape[1], -1), mask.dtype), mask], 3)
        self.reading, real = {}, torch.cat([before, real], 1)
        hidden = self.policy.base_model(input_ids=ids, attention_mask=mask, position_ids=positions + lengths[:, None], past_key_values=self,
                                        use_cache=True).last_hidden_state
        reading, self.reading = self.reading, None
        self.spare -= sum(t.nbytes for pair in reading.values() for t in pair)
        if self.spare >= 0:
            vectors = torch.cat([t.transpose(1, 2).flatten(2) for pair in reading.values() for t in pair], 2)                         # (N, T, F)
            self.learned.update({tuple(prompt): vector[there] for prompt, vector, there in zip(prompts, vectors, real, strict=True)})
        return hidden[:, -1], real, {layer: [key.transpose(2, 3), value] for layer, (key, value) in reading.items()}

    def admit(self, prompts, sizes):
        """Read prompts (lists of ids) and open sizes[i] rows for prompts[i]. Returns the scores of each new row's first token (b, V)."""
        device, pasts = self.policy.device, [self.remembered(prompt) for prompt in prompts]
        longest, new = max(map(len, prompts)), max(len(prompt) - len(past) for prompt, past in zip(prompts, pasts, strict=True))
        at_once = (2000 if device.type == "cpu" else 32_000) // new                               # about as many activations as a core's cache holds
        at_once = max(1, min(at_once, 32_000 // longest))                                         # what is remembered is copied: not too much at once
        hidden, reals, readings = zip(*(self.read(prompts[i:i + at_once], pasts[i:i + at_once]) for i in range(0, len(prompts), at_once)), strict=True)
        group = torch.repeat_interleave(torch.arange(len(prompts), device=device), torch.tensor(sizes, device=device))
        T, P = max(self.seen.shape[1], *(real.shape[1] for real in reals)), len(self.seen)
        for layer, (key, value) in readings[0].items():
            pairs = [self.prompts.get(layer, [key[:0], value[:0]]), *(reading[layer] for reading in readings)]
            self.prompts[layer] = [torch.cat([pad_left(pair[i], axis, T) for pair in pairs]).contiguous() for i, axis in ((0, 3), (1, 2))]
            new = [value.new_zeros(len(group), value.shape[1], self.room, D) for D in (key.shape[2], value.shape[3])]
            self.own[layer] = [torch.cat([t[:len(self.group)], more]) for t, more in zip(self.own.get(layer, new), new, strict=True)]
        self.seen = torch.cat([pad_left(t, 1, T) for t in (self.seen, *reals)])
        self.group, self.length = torch.cat([self.group, P + group]), torch.cat([self.length, torch.zeros_like(group)])
        self.arrange()
        return self.head(torch.cat(hidden)[group])

    def keep(self, rows):
        """Only these rows stay, and the prompts that they need."""
        self.own = {layer: [t.index_select(0, rows) for t in pair] for layer, pair in self.own.items()}
        needed, self.group = self.group[rows].unique(return_inverse=True)
        if len(needed) < len(self.seen):
            self.prompts, self.seen = {layer: [t.index_select(0, needed) for t in pair] for layer, pair in self.prompts.items()}, self.seen[needed]
        if not len(needed):
            self.prompts, self.seen = {}, self.seen[:0, :0]
        self.length = self.length[rows]
        self.arrange()

    def branch(self, rows):
        """Open a new row for each of these, with the same prompt and the same tokens."""
        old, new = len(self.group), len(self.group) + len(rows)
        for pair in self.own.values():
            for i, t in enumerate(pair):
                if len(t) < new:
                    pair[i] = t = torch.cat([t, t.new_zeros(new, *t.shape[1:])])
                t[old:new] = t.index_select(0, rows)
        self.group, self.length = torch.cat([self.group, self.group[rows]]), torch.cat([self.length, self.length[rows]])
        self.arrange()

    def arrange(self):
        """Give each row its place beside the others of its group."""
        self.row, self.graph, self.alike = torch.arange(len(self.group), device=self.group.device), None, 0
        counts, order = torch.bincount(self.group, minlength=len(self.seen)), self.group.argsort(stable=True)
        width = int(counts.max()) if len(counts) else 0
        self.place = self.group * width
        self.place[order] += self.row - (counts.cumsum(0) - counts)[self.group[order]]
        self.row_at = self.place.new_zeros(len(self.seen), width)
        self.row_at.view(-1)[self.place] = self.row
        self.hide_padding = additive(self.seen, self.policy.dtype)[:, None, None]
        self.begins = self.seen.sum(1)[self.group]                                                # (B,) the position of a row's first own token

    def step(self, token):
        """Decode token (B,). Returns the scores of the next (B, V)."""
        first, last = int(self.length.min()), int(self.length.max())
        if last == self.room:
            self.room, self.graph, self.alike = self.room + 32, None, 0
            self.own = {layer: [torch.nn.functional.pad(t, [0, 0, 0, 32]) for t in pair] for layer, pair in self.own.items()}
        self.used, self.even = (self.room, False) if self.static else (last + 1, first == last)
        hidden = self.recorded(token) if self.static and token.is_cuda else self.decode(token)
        self.length.add_(1)
        return self.head(hidden)

    def decode(self, token):
        """The model's pass over one token of each row; reads `used` columns of what the rows wrote."""
        prompts = tuple(tuple(pair) for pair in self.prompts.values())
        own = tuple(tuple(t[:len(token), :, :self.used] for t in pair) for pair in self.own.values())
        tensors = [token, self.begins + self.length, self.length, self.row, self.row_at, self.place, self.hide_padding, prompts, own]
        if not self.even:                                                                         # some rows have written less than there are columns
            tensors.append(additive(torch.arange(self.used, device=token.device) <= self.length[:, None], self.policy.dtype)[:, None, None])
        return self.traced(tensors)(*tensors)

    def traced(self, tensors):
        """The decode step: on a CPU written down once (TorchScript) and run without Python, whose calls take a small model longer than its numbers.

        Where a number leaves the tensors and steers the code (a length that changes the positions' frequencies), or torch knows TorchScript no more, the step
        runs as it stands.
        """
        taken = len(tensors)
        if taken not in self.steps:
            step = DecodeStep(self.policy.base_model)
            if self.policy.device.type != "cpu" or isinstance(self.policy, FSDPModule):
                return step
            verbosity = transformers_logging.get_verbosity()
            transformers_logging.set_verbosity_error()                                            # tracing looks at every property of the model
            with warnings.catch_warnings(action="ignore"):
                try:
                    warnings.simplefilter("error", torch.jit.TracerWarning)                        # a number has left the tensors
                    self.steps[taken] = torch.jit.trace(step, tuple(tensors), check_trace=False)
                except Exception:  # an architecture that cannot be written down, in any way
                    self.steps[taken] = step
            transformers_logging.set_verbosity(verbosity)
        return self.steps[taken]

    def recorded(self, token):
        """decode() with its kernels launched together: one by one, a GPU waits longer for the launches than it computes.

        They are recorded (a CUDA graph) at the second step with the same rows and room, and sent again while both stay.
        """
        self.alike += 1                                                                           # steps with these rows and this room
        if self.alike == 1:
            self.graph = self.hidden = None
            return self.decode(token)
        if self.graph is None:
            self.graph, self.token = torch.cuda.CUDAGraph(), token.clone()
            with torch.cuda.graph(self.graph):
                self.hidden = self.decode(self.token)
        self.token.copy_(token)
        self.graph.replay()
        return self.hidden


class PlainCache:
    """What SharedPromptCache does, for every other architecture: the model's own forward with transformers' cache, a prompt again for each of its rows."""
    joined = 0.0            # a batch is decoded to its end
    branches = False
    learned = {}            # remembers nothing for the next turn

    def __init__(self, policy, memory=None):
        self.policy, self.length = policy, torch.zeros(0, dtype=torch.long, device=policy.device)

    def admit(self, prompts, sizes):
        rows = [prompt for prompt, size in zip(prompts, sizes, strict=True) for _ in range(size)]
        ids, self.seen, _, positions = left_pad(rows, self.policy.device)
        self.cache, self.length, self.last = DynamicCache(config=self.policy.config), self.seen.new_zeros(len(rows), dtype=torch.long), positions[:, -1:]
        return self.forward(ids, positions)

    def forward(self, ids, positions):
        return self.policy(input_ids=ids, attention_mask=self.seen.long(), position_ids=positions, past_key_values=self.cache, use_cache=True,
                           logits_to_keep=1).logits[:, -1]

    def keep(self, rows):
        self.cache.reorder_cache(rows)
        self.seen, self.length, self.last = self.seen[rows], self.length[rows], self.last[rows]

    def step(self, token):
        self.seen, self.last, self.length = torch.nn.functional.pad(self.seen, [0, 1], value=True), self.last + 1, self.length + 1
        return self.forward(token[:, None], self.last)


def beyond_window(config, model, longest, max_new_tokens):
    """What is wrong, as a list, where a model looks back fewer tokens than prompt and completion may have: shared prompts look back at all of them."""
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None) or math.inf
    if longest + max_new_tokens <= window or set(getattr(config, "layer_types", None) or ()) == {"full_attention"}:
        return []
    return [f"{model}: its attention looks back {window} tokens, which shared prompts do not, and a prompt of {longest} tokens with "
            f"--max_new_tokens {max_new_tokens} is longer; lower --max_new_tokens, or --no-share_prompts, which is slower"]


def rows_that_fit(policy, prompts, sizes, max_new_tokens, free):
    """How many completions half of the free bytes hold: their keys and values, their part of those of their prompt, and the scores of one token."""
    config, number = policy.config.get_text_config(), policy.dtype.itemsize
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens = max_new_tokens + max(len(prompt) / (size if shares_prompts(policy) else 1) for prompt, size in zip(prompts, sizes, strict=True))
    scores = 4 * 4 * len(policy.get_output_embeddings().weight)                                  # distribution and its sum, of each row and completion
    return max(1, int(free / 2 / (tokens * 2 * config.num_hidden_layers * heads * head_dim * number + scores)))


def free_bytes(device):
    """Memory that a tensor could still take: on a GPU, else in the machine; without end where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else 1 << 60


@torch.inference_mode()
def generate(policy, tokenizer, prompts, group_size, temperature=1.0, max_new_tokens=160, max_rows=384, uniforms=None, memory=None):
    """G completions for each of P prompts (lists of ids); group_size may also be a list of P numbers. Returns a Rollout of P*G in order.

    uniforms (P*G, max_new_tokens): the numbers in [0, 1) that the tokens are drawn with, -1 for the likeliest token; what a completion draws depends on its
    own numbers alone, not on who stands beside it.
    At most max_rows completions are decoded side by side, as many as memory holds; on a CPU those of a prompt that have begun alike are one row of the cache,
    which branches where they part. When a fifth of the rows is finished they leave, and waiting prompts take the places of finished completions.
    temperature 0 is greedy. memory: a dict that keeps what is known of these prompts for the next call, whose prompts go on where these end; it is good for
    the same weights alone. Raises InputError where the model's attention has a shorter window.
    """
    longest = max(map(len, prompts), default=0)
    if shares_prompts(policy) and (problems := beyond_window(policy.config, policy.config.name_or_path, longest, max_new_tokens)):
        raise segmentation.InputError(problems[0])
    sizes = [group_size] * len(prompts) if isinstance(group_size, int) else group_size
    first = [0, *itertools.accumulate(sizes)]                                                    # where the completions of a prompt begin
    B, device, eos = first[-1], policy.device, torch.tensor(eos_ids(policy, tokenizer), device=policy.device)
    max_rows = min(max_rows, rows_that_fit(policy, prompts, sizes, max_new_tokens, free_bytes(device)))
    was_training = policy.training
    policy.eval()
    tokens, logprobs = torch.zeros(B, max_new_tokens, dtype=torch.long, device=device), torch.zeros(B, max_new_tokens, device=device)
    ends = torch.zeros(B, dtype=torch.long, device=device)
    if temperature:
        uniforms = torch.rand(B, max_new_tokens, device=device) if uniforms is None else uniforms.to(device)
    else:
        uniforms = torch.full((B, max_new_tokens), -1.0, device=device)
    greedy = bool((uniforms < 0).any())                                                           # in training nothing is: no argmax at every step
    waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))                         # prompts of like length are read together: little padding
    cache = (SharedPromptCache if shares_prompts(policy) else PlainCache)(policy, memory)
    going = row = scores = torch.zeros(0, dtype=torch.long, device=device)                       # completions that go on, and the row of the cache of each
    while waiting or len(going):
        if waiting and len(going) <= cache.joined * max_rows:
            chosen, rows = [waiting.pop()], len(cache.length)
            room = max_rows - len(going) - sizes[chosen[0]]
            while waiting and sizes[waiting[-1]] <= room:
                chosen.append(waiting.pop())
                room -= sizes[chosen[-1]]
            width = torch.tensor([sizes[i] for i in chosen], device=device)
            new = cache.admit([prompts[i] for i in chosen], [1] * len(chosen) if cache.branches else width.tolist())
            scores = torch.cat([scores, new]) if rows else new
            opened = torch.arange(rows, rows + len(new), device=device)
            row = torch.cat([row, opened.repeat_interleave(width) if cache.branches else opened])
            going = torch.cat([going, *(torch.arange(first[i], first[i + 1], device=device) for i in chosen)])
        distribution, length, V = (scores.float() / (temperature or 1.0)).softmax(-1), cache.length[row], scores.shape[-1]      # (rows, V), (completions,)
        number = uniforms[going, length]
        # the inverse of the cumulative distribution at a uniform number is a draw from it
        token = torch.searchsorted(distribution.cumsum(-1)[row], number[:, None])[:, 0].clamp(max=V - 1)
        token = torch.where(number < 0, scores.argmax(-1)[row], token) if greedy else token
        tokens[going, length], logprobs[going, length] = token, distribution[row, token].log()
        ends[going] = length + 1
        stay = (~torch.isin(token, eos) & (length + 1 < max_new_tokens)).nonzero()[:, 0]
        going = going[stay]
        pairs, pair = (row * V + token)[stay].unique(return_inverse=True)                         # what goes on: (row, token), each once, ascending
        row, token = pairs // V, pairs % V
        if len(row) < 0.8 * len(cache.length) or int(cache.length.max()) + 1 == max_new_tokens:   # rows that ended leave, not one by one: it costs a copy
            kept = row.unique_consecutive()
            row = torch.searchsorted(kept, row)
            cache.keep(kept)
        again = torch.diff(row, prepend=row.new_full((1,), -1)) == 0                              # another token from the same row
        if cache.branches and again.any():
            new = torch.arange(int(again.sum()), device=device) + len(cache.length)
            cache.branch(row[again])
            row[again] = new
        if len(going):
            scores = cache.step(token.new_zeros(len(cache.length)).index_put((row,), token))
        row = row[pair]
    policy.train(was_training)
    if memory is not None:
        memory.clear()
        memory.update(cache.learned)
    ids, logprobs = [[values[:n] for values, n in zip(t.tolist(), ends.tolist(), strict=True)] for t in (tokens, logprobs)]
    ended = set(eos.tolist())
    finished = [completion[-1] in ended for completion in ids]
    written = [tuple(completion[:-1]) if done else tuple(completion) for completion, done in zip(ids, finished, strict=True)]
    distinct = list(dict.fromkeys(written))
    texts = dict(zip(distinct, tokenizer.batch_decode(distinct, skip_special_tokens=True), strict=True))
    return Rollout(ids, logprobs, [texts[completion] for completion in written], finished)


@dataclass
class Episode:
    """One attempt: the example as it stands, and its turns (prompt ids, completion ids, log-probabilities, text). A step of SRL has one turn."""
    example: dict
    turns: list
    finished: bool = True       # the last completion ended by itself


def random_stream(seed, turn, shape):
    """Uniform numbers that depend on the seed (any text) and the turn alone: what is drawn for a prompt is the same in every batch, on every device."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(random.Random(f"{seed}, turn {turn}").getrandbits(62)))


def play(policy, tokenizer, examples, group_size, make_prompt, extend, cfg, temperature=None, seeds=None, greedy=False):
    """G episodes for each of P examples: complete, read the action, extend the context, until `extend` returns None or max_turns is reached.

    extend(example, completion) -> the example with its context extended, or None where the episode is over; None itself: one turn.
    seeds: P names of random streams, one an example; without them they are drawn. Returns P lists of G Episodes. Equal contexts of a turn are computed once,
    and of a turn what the one before it read is not read again.
    greedy: the last episode of each group is not sampled, it takes the likeliest token every time.
    """
    temperature = cfg.temperature if temperature is None else temperature
    seeds = torch.randint(2**62, (len(examples),)).tolist() if seeds is None else seeds
    episodes = [[Episode(example, []) for _ in range(group_size)] for example in examples]
    active, memory = [(i, g) for i in range(len(examples)) for g in range(group_size)], {} if extend else None
    for turn in range(cfg.max_turns):
        shared = {}
        for i, g in active:
            shared.setdefault(json.dumps(make_prompt(episodes[i][g].example)), []).append((i, g))
        places = [place for group in shared.values() for place in group]
        texts = [prompt_text(tokenizer, json.loads(key)) for key in shared]
        prompts, opened = encode_texts(tokenizer, texts), [opened_thought(text) for text, group in zip(texts, shared.values(), strict=True) for _ in group]
        if temperature == 0:  # greedy: one completion serves all episodes with this context
            rollout = generate(policy, tokenizer, prompts, 1, 0, cfg.max_new_tokens, cfg.max_rows, memory=memory)
            picks = [i for i, group in enumerate(shared.values()) for _ in group]
        else:
            streams = {i: random_stream(seeds[i], turn, (group_size, cfg.max_new_tokens)) for i, _ in active}
            for stream in streams.values() if greedy else ():
                stream[-1] = -1
            uniforms = torch.stack([streams[i][g] for i, g in places])
            sizes = [len(group) for group in shared.values()]
            rollout = generate(policy, tokenizer, prompts, sizes, temperature, cfg.max_new_tokens, cfg.max_rows, uniforms, memory)
            picks = range(len(rollout.texts))
        active, prompts = [], [p for p, group in zip(prompts, shared.values(), strict=True) for _ in group]
        for (i, g), prompt, pick, head in zip(places, prompts, picks, opened, strict=True):
            episode, text = episodes[i][g], head + rollout.texts[pick]
            episode.turns.append((prompt, rollout.completions[pick], rollout.logprobs[pick], text))
            episode.finished = rollout.finished[pick]
            following = extend(episode.example, text) if extend and episode.finished else None
            if following is not None:
                episode.example = following
                active.append((i, g))
        if not active:
            break
    return episodes


# 5. Advantage
def group_advantages(rewards, eps=1e-6):
    """rewards (P, G) -> advantages (P, G): (r - mean) / (std + eps) inside each group, population std (paper section 3)."""
    mean, std = rewards.mean(-1, keepdim=True), rewards.std(-1, correction=0, keepdim=True)
    return (rewards - mean) / (std + eps)


def informative_groups(rewards, min_std):
    """rewards (P, G) -> (P,) bool: the groups whose population std is greater than min_std (paper section 4.3, dynamic sampling)."""
    return rewards.std(-1, correction=0) > min_std


# 6. Loss
def grpo_loss(logprobs, old_logprobs, advantages, mask, clip_eps, loss_mean="completion"):
    """The clipped GRPO objective, negated (paper section 3): mean over completions of the mean over their tokens; KL coefficient 0.

    logprobs, old_logprobs (B, T), advantages (B,), mask (B, T) -> scalar. The paper's mean gives a token of a completion of 500 tokens a fortieth of the
    weight that it has in one of 12; loss_mean "token" gives all tokens the same.
    """
    assert mask.any(1).all(), "a completion without tokens"
    ratio = (logprobs - old_logprobs).exp()                                                      # (B, T)
    advantages = advantages[:, None]
    # min for both signs of A: clipping may only lower the objective
    objective = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages)
    if loss_mean == "token":
        return -(objective * mask).sum() / mask.sum()
    return -((objective * mask).sum(1) / mask.sum(1)).mean()


# 7. Batch: dynamic sampling with refill
# Under torchrun each rank samples, rewards and learns from its share of a batch, and all know the whole batch: it is the same on any number of devices.
def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def num_ranks():
    return dist.get_world_size() if dist.is_initialized() else 1


def join_ranks():
    """Meet torchrun's other processes, where there are any. Only the first of them prints."""
    if "WORLD_SIZE" in os.environ and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        if rank():
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def from_all_ranks(value):
    """The list of every rank's value."""
    values = [value] * num_ranks()
    if num_ranks() > 1:
        dist.all_gather_object(values, value)
    return values


def on_all_ranks(work, items):
    """work(part) -> a list as long as the part: each rank works on its share of the items, every rank gets the whole list, in order."""
    mine = items[rank()::num_ranks()]
    parts = from_all_ranks(work(mine) if mine else [])
    return [parts[i % len(parts)][i // len(parts)] for i in range(len(items))]


def shard(policy, dtype):
    """Spread the weights over the ranks (FSDP2): each learns its part in float32; computing gathers them in dtype, one layer at a time."""
    how = {"mesh": dist.device_mesh.init_device_mesh(policy.device.type, (num_ranks(),)),
           "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)}
    for layer in [m for m in policy.modules() if isinstance(m, GradientCheckpointingLayer)]:
        fully_shard(layer, **how)
    fully_shard(policy, **how)
    policy.float()
    with torch.no_grad():
        policy(torch.zeros(1, 1, dtype=torch.long, device=policy.device))                         # FSDP learns here which module is the root
    policy.reshard()


@contextmanager
def gathered(policy):
    """The weights of a sharded policy whole on every rank while the block runs: a rollout gathers them once and not for every token.

    Every rank has to come here, also one that has nothing to sample.
    """
    parts = [m for m in policy.modules() if isinstance(m, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    yield
    for part in parts:
        part.reshard()
        part.set_reshard_after_forward(True, recurse=False)


def whole(state):
    """A state with every sharded tensor in it gathered: what is saved can be loaded on any number of devices."""
    if isinstance(state, dict):
        return {name: whole(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [whole(value) for value in state]
    return state.full_tensor().cpu() if isinstance(state, DTensor) else state


def like(weight, saved):
    """A saved tensor, sharded as the weight is."""
    return distribute_tensor(saved.to(weight.device), weight.device_mesh, weight.placements) if isinstance(weight, DTensor) else saved


class Cursor:
    """Walks through the examples in a new random order every epoch; its place is one number."""

    def __init__(self, examples, seed):
        self.examples, self.seed, self.place = examples, seed, 0

    def take(self, n):
        out = []
        for _ in range(n):
            epoch, i = divmod(self.place, len(self.examples))
            if i == 0 or not hasattr(self, "order"):
                self.order = random.Random(f"{self.seed}-{epoch}").sample(range(len(self.examples)), len(self.examples))
            out.append(self.examples[self.order[i]])
            self.place += 1
        return out


def collect(policy, tokenizer, cursor, make_prompt, reward_fn, extend, cfg, share=1.0):
    """A batch of at least P informative groups: prompts are drawn until it is full, at most max_tries times P of them.

    share: the part of the groups that is expected to be informative. So many prompts are drawn at once that P groups should be left: few large rounds
    sample far more tokens a second than many small ones. What a round brings beyond P is used as well.
    Returns (groups, stats): groups a list of (episodes, rewards (G,), advantages (G,)); stats over everything sampled, dropped groups included.
    """
    groups, rewards, episodes_seen, seconds, P, sampled = [], [], [], Counter(), cfg.prompts_per_batch, 0

    def attempt(part):
        """[(episodes, their rewards)] of (seed, example) pairs."""
        started = time.time()
        played = play(policy, tokenizer, [e for _, e in part], cfg.group_size, make_prompt, extend, cfg, seeds=[seed for seed, _ in part])
        seconds["rollout"] += time.time() - started
        started = time.time()
        pairs = [(group, [reward_fn(e.turns[-1][3], e.example) for e in group]) for group in played]
        seconds["reward"] += time.time() - started
        return pairs

    while len(groups) < P and sampled < cfg.max_tries * P:
        place = cursor.place
        drawn = cursor.take(min(math.ceil((P - len(groups)) / max(share, 1 / cfg.max_tries)), cfg.max_tries * P - sampled))
        sampled += len(drawn)
        with gathered(policy):
            pairs = on_all_ranks(attempt, [(f"{cfg.seed}, prompt {place + i}", example) for i, example in enumerate(drawn)])
        played, r = [group for group, _ in pairs], torch.tensor([values for _, values in pairs])      # (P, G)
        keep, advantages = informative_groups(r, cfg.eps), group_advantages(r)
        groups += [(played[i], r[i], advantages[i]) for i in keep.nonzero()[:, 0].tolist()]
        rewards.append(r)
        episodes_seen += [e for group in played for e in group]
        share = len(groups) / sampled
    r = torch.cat(rewards)
    completions = [turn[1] for e in episodes_seen for turn in e.turns]
    stats = {
        "reward": r.mean().item(), "exact": (r >= 1).float().mean().item(), "bad_format": (r < 0).float().mean().item(),
        "kept": len(groups), "sampled": sampled, "completions": len(completions), "tokens": sum(map(len, completions)) / len(completions),
        "truncated": sum(not e.finished for e in episodes_seen) / len(episodes_seen),
        "seconds_rollout": seconds["rollout"], "seconds_reward": seconds["reward"],
        "tokens_per_second": sum(map(len, completions)) / max(seconds["rollout"], 1e-9),
        "look": [(e.example, value, e.turns[-1][3]) for e, value in zip(episodes_seen[:3], r.flatten().tolist(), strict=False)],
    }
    return groups, stats


# 8. Update
class MasterAdam:
    """Adam on float32 copies of 16-bit weights; weights in float32 are used as they are.

    A bfloat16 number has three digits: at the paper's learning rate of 5e-7 a step is far smaller than the distance to the next one, and without the copies
    nothing would be learned. Gradients are added up in float32 as well, each freed as soon as it is there.
    """

    def __init__(self, policy, learning_rate, base=torch.optim.Adam):
        weights = [p for p in policy.parameters() if p.requires_grad]
        self.masters = {p: p.detach().float().requires_grad_() for p in weights if p.dtype != torch.float32}
        for p in self.masters:
            p.register_post_accumulate_grad_hook(self.take_gradient)
        self.weights = [self.masters.get(p, p) for p in weights]
        self.adam = base(self.weights, lr=learning_rate, betas=(0.9, 0.95))
        self.ahead = self.stop = False      # the weights are newer than what is written down of the run; a signal waits for that

    @property
    def param_groups(self):
        return self.adam.param_groups                                                            # loading a state replaces them

    @torch.no_grad()
    def take_gradient(self, p):
        master = self.masters[p]
        master.grad = p.grad.float() if master.grad is None else master.grad.add_(p.grad)
        p.grad = None

    @torch.no_grad()
    def step(self, max_grad_norm):
        """Sum the gradients over the ranks, clip their norm, step unless it is not finite, and hand the new weights down. Returns the norm before clipping."""
        for w in self.weights if num_ranks() > 1 else ():
            if isinstance(w, DTensor):
                w.grad.mul_(num_ranks())                                                         # FSDP has averaged them
            else:
                w.grad = torch.zeros_like(w) if w.grad is None else w.grad
                dist.all_reduce(w.grad)
        norm = torch.nn.utils.clip_grad_norm_(self.weights, max_grad_norm)
        norm = (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
        self.ahead = True
        if math.isfinite(norm):
            self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        for p, master in self.masters.items():
            p.copy_(master)
        return norm

    def state_dict(self):
        """All that learns, in float32, and Adam's averages: with the model that the run began from, the policy."""
        return whole({"adam": self.adam.state_dict(), "weights": [w.detach() for w in self.weights]})

    @torch.no_grad()
    def load_state_dict(self, state):
        averages = {i: {name: like(w, value) if getattr(value, "shape", None) == w.shape else value for name, value in entry.items()}
                    for (i, entry), w in zip(state["adam"]["state"].items(), self.weights, strict=False)}
        self.adam.load_state_dict({**state["adam"], "state": averages})
        for w, saved in zip(self.weights, state["weights"], strict=True):
            w.copy_(like(w, saved))
        for p, master in self.masters.items():
            p.copy_(master)


def make_optimizer(policy, cfg):
    """The optimizer of a policy, which it makes ready to learn as cfg says: adapters, checkpointed layers. Raises InputError for a package that is missing."""
    try:
        if cfg.lora_rank:
            from peft import LoraConfig, inject_adapter_in_model
            inject_adapter_in_model(LoraConfig(r=cfg.lora_rank, lora_alpha=2 * cfg.lora_rank, target_modules="all-linear"), policy)
        if cfg.optimizer == "adam8bit":
            from bitsandbytes.optim import Adam8bit as base
        else:
            base = torch.optim.Adam
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise segmentation.InputError(f"{package}: not installed, but --lora_rank or --optimizer asks for it; pip install {package}") from None
    if cfg.gradient_checkpointing:  # transformers' own switch drops the cache that holds the shared prompt
        for layer in policy.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.forward = partial(torch.utils.checkpoint.checkpoint, layer.forward, use_reentrant=False)
    return MasterAdam(policy, cfg.learning_rate, base)


def merged_weights(policy, dtype=None):
    """The policy's weights with its adapters added in, under the names of a model without adapters, or gathered in dtype; None: as they are."""
    adapters = {name: module for name, module in policy.named_modules() if hasattr(module, "get_delta_weight")}
    if isinstance(policy, FSDPModule):
        return {name: w.to(dtype) for name, w in whole(policy.state_dict()).items()}
    if not adapters:
        return None
    weights = {name.replace(".base_layer.", "."): w for name, w in policy.state_dict().items() if ".lora_" not in name}
    for name, module in adapters.items():
        weights[f"{name}.weight"] = (module.base_layer.weight.float() + module.get_delta_weight("default").float()).to(module.base_layer.weight.dtype)
    return weights


def computed_once(turns):
    """Of each turn (prompt ids, completion ids, ..), sorted by these, the tokens that the one before it does not compute: prompts that begin alike share their
    beginning, equal completions of a prompt are one."""
    sizes, before = [], ([], [])
    for prompt, completion, *_ in turns:
        sizes.append(0 if (prompt, completion) == before else len(prompt) - alike(prompt, before[0]) + len(completion))
        before = prompt, completion
    return sizes


def micro_batches(turns, max_tokens, share=True):
    """Turns (prompt ids, completion ids, ..) gathered by prompt, in lists of groups of about max_tokens tokens; share: what is computed once counts once."""
    turns, batches, room = sorted(turns, key=lambda turn: turn[:2]), [], 0
    for turn, size in zip(turns, computed_once(turns), strict=True):
        alone = len(turn[0]) + len(turn[1])
        size = size if share else alone
        if size > room or not batches:                                                            # full: the rest of a group opens the next one
            batches.append([])
            room, size = max_tokens, alone
        if not batches[-1] or turn[0] != batches[-1][-1][0][0]:
            batches[-1].append([])
        batches[-1][-1].append(turn)
        room -= size
    return batches


def rank_batches(policy, turns, max_tokens):
    """(groups, weight) of the micro-batches of this rank's share of the turns: whole groups that begin alike, as many tokens as the other ranks have.

    The ranks of a sharded policy gather its layers together, so all need as many micro-batches: what a rank lacks it repeats, with weight 0.
    """
    mine, done = turns, 0
    if num_ranks() > 1:
        mine, groups = [], micro_batches(turns, math.inf)[0]
        each = iter(computed_once([turn for group in groups for turn in group]))
        sizes = [sum(itertools.islice(each, len(group))) for group in groups]
        for group, size in zip(groups, sizes, strict=True):
            mine += group if int((done + size / 2) * num_ranks() / sum(sizes)) == rank() else []
            done += size
    batches = [(batch, 1.0) for batch in micro_batches(mine, max_tokens, shares_prompts(policy))] if mine else []
    if isinstance(policy, FSDPModule):
        batches += [([[turns[0]]], 0.0)] * (max(from_all_ranks(len(batches))) - len(batches))
    for batch in batches:
        if isinstance(policy, FSDPModule):
            policy.unshard()                                                                     # embedding and head, which are called by themselves
        yield batch


def update(policy, optimizer, turns, cfg, seed=0):
    """One pass over a batch of turns (prompt ids, completion ids, old log-probabilities, advantage), `minibatches` optimizer steps. Returns stats.

    seed: of the order in which the turns go into the minibatches, which every rank has to know.
    """
    policy.train()
    stats, norms = Counter(), []
    order = range(len(turns)) if cfg.minibatches == 1 else random.Random(seed).sample(range(len(turns)), len(turns))
    for m in range(cfg.minibatches):
        part = [turns[i] for i in order[m::cfg.minibatches]]
        if not part:
            continue
        # what a micro-batch counts in the mean of the batch: its tokens or its completions
        size = (lambda turns: sum(len(turn[1]) for turn in turns)) if cfg.loss_mean == "token" else len
        for groups, weight in rank_batches(policy, part, cfg.update_tokens):
            flat = [turn for group in groups for turn in group]
            logprobs, mask, entropy = token_logprobs(policy, [(group[0][0], [turn[1] for turn in group]) for group in groups], cfg.temperature)
            old = torch.zeros_like(logprobs).masked_scatter(mask, torch.tensor([lp for turn in flat for lp in turn[2]], device=mask.device))
            advantages = torch.tensor([turn[3] for turn in flat], device=mask.device)
            share = weight * size(flat) / size(part)                                             # the mean over the batch, not over micro-batches
            loss = grpo_loss(logprobs, old, advantages, mask, cfg.clip_eps, cfg.loss_mean) * share
            loss.backward()
            with torch.no_grad():
                difference = (logprobs - old)[mask]
                stats["loss"] += loss.item()
                stats["entropy"] += entropy.item() * share
                stats["clipped"] += (difference.exp() - 1).abs().gt(cfg.clip_eps).float().mean().item() * share
                stats["mismatch"] = max(stats["mismatch"], difference.abs().max().item() if m == 0 else 0.0)
        norms.append(optimizer.step(cfg.max_grad_norm))
    policy.eval()
    everywhere = from_all_ranks(dict(stats))
    means = {name: sum(s.get(name, 0.0) for s in everywhere) / len(norms) for name in ("loss", "entropy", "clipped")}
    return {**means, "mismatch": max(s.get("mismatch", 0.0) for s in everywhere), "grad_norm": sum(norms) / len(norms),
            "skipped": sum(not math.isfinite(norm) for norm in norms)}


def update_cost(turns, seconds):
    """What an update took, and the parts of its tokens that sharing saved: what prompts begin with alike is computed once, and equal completions of one."""
    prompts, completions = sum(len(turn[0]) for turn in turns), sum(len(turn[1]) for turn in turns)
    distinct = sorted({(tuple(turn[0]), tuple(turn[1])) for turn in turns})
    written = sum(len(completion) for _, completion in distinct)
    return {"seconds_update": seconds, "update_tokens_per_second": completions / seconds,
            "prompt_tokens_saved": 1 - (sum(computed_once(distinct)) - written) / prompts, "completion_tokens_saved": 1 - written / completions}


def peak_gb(device):
    """The most memory that this process has held so far, in GB: of the GPU, else of the machine."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9    # bytes on a Mac, kB on Linux


# 9. Training
def longest_prompts(tokenizer, examples, make_prompt, look=16):
    """Token ids of the prompts with the most characters."""
    longest = sorted(map(make_prompt, examples), key=lambda messages: sum(len(m["content"]) for m in messages))[-look:]
    return encode_texts(tokenizer, [prompt_text(tokenizer, messages) for messages in longest])


def check_start(cfg, examples, make_prompt):
    """Look at all that a run needs before the first slow step, and print the memory it takes. Raises InputError with every problem and its mend."""
    problems, out = [], Path(cfg.out)
    try:
        if rank() == 0:                                     # one writes, and all would be in each other's way
            segmentation.write_text(out / "writable", "")
            segmentation.remove(out / "writable")
    except segmentation.InputError as error:
        problems.append(f"--out: {error}")
    try:
        torch.zeros(1, device=cfg.device)
    except (RuntimeError, AssertionError) as error:
        problems.append(f"--device {cfg.device}: not usable here ({str(error).splitlines()[0]}); --device cpu always is")
    if cfg.shard and num_ranks() == 1:
        problems.append("--shard: there is one process; start the script with torchrun --nproc-per-node N")
    if cfg.shard and (cfg.lora_rank or cfg.optimizer != "adam"):
        problems.append("--shard: goes with --optimizer adam and without --lora_rank; adapters fit one device without it")
    if cfg.optimizer == "adam8bit" and cfg.device == "cpu":
        problems.append("--optimizer adam8bit: needs a GPU; --optimizer adam does not")
    shape, tokenizer = load_shape(cfg.model)
    numbers, vocabulary = sum(p.numel() for p in shape.parameters()), shape.get_input_embeddings().num_embeddings
    positions = getattr(shape.config, "max_position_embeddings", None) or math.inf
    try:
        prompts = longest_prompts(tokenizer, examples, make_prompt)
        if not all(prompts):
            raise ValueError("the tokenizer writes no tokens")
    except Exception as error:  # a chat template is a program of its own and fails in any way
        problems.append(f"{cfg.model}: its tokenizer and chat template cannot write a prompt ({str(error).splitlines()[0]}); mend them, or take another model")
        prompts = [[0]]
    longest = max(map(len, prompts))
    if longest + cfg.max_new_tokens > positions:
        problems.append(f"a prompt of {longest} tokens and --max_new_tokens {cfg.max_new_tokens} are more than the {positions} positions of {cfg.model}; "
                        "lower --max_new_tokens, shorten the data, or take a model with more")
    if cfg.share_prompts:
        problems += beyond_window(shape.config, cfg.model, longest, cfg.max_new_tokens)
    if max(map(max, prompts)) >= vocabulary:
        problems.append(f"{cfg.model}: the tokenizer writes token {max(map(max, prompts))}, the model has {vocabulary}; copy the tokenizer that belongs to it")
    learned = numbers // 100 if cfg.lora_rank else numbers
    bytes_each = 4 + (2 if cfg.optimizer == "adam8bit" else 8) + 4 * (cfg.dtype != "float32")       # gradient, Adam, float32 copy
    need = (numbers * (4 if cfg.dtype == "float32" else 2) + learned * bytes_each) / (num_ranks() if cfg.shard else 1)
    on_gpu = cfg.device.startswith("cuda") and torch.cuda.is_available()
    have = torch.cuda.get_device_properties(0).total_memory if on_gpu else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gb = lambda n: f"{n / 1e9:.3g} GB"  # noqa: E731
    print(f"{numbers / 1e6:.3g} million weights; {gb(need)} for weights, gradients and Adam on each device, of {gb(have)}; the rest is for activations")
    if need > have:
        problems.append(f"{gb(need)} for weights, gradients and Adam: the device has {gb(have)}; --lora_rank 64, --dtype bfloat16, or more devices and --shard")
    free = shutil.disk_usage(out).free if out.is_dir() else math.inf
    if free < 3 * 12 * learned:
        problems.append(f"--out {out}: {gb(free)} free; two checkpoints and the next take {gb(36 * learned)}; make room, or take another disk")
    if problems:
        raise segmentation.InputError("; ".join(problems) if len(problems) == 1 else f"{len(problems)} problems\n  " + "\n  ".join(problems))


def validate(policy, tokenizer, examples, make_prompt, reward_fn, extend, cfg):
    """Share of rewards of 1 (an exact step, a solved problem) and mean reward on the validation examples, with a fixed seed; one completion to look at."""
    def attempt(part):
        groups = play(policy, tokenizer, [e for _, e in part], cfg.val_samples, make_prompt, extend, cfg,
                      temperature=0 if cfg.val_samples == 1 else cfg.temperature, seeds=[f"validation {i}" for i, _ in part])
        return [(group[0].turns[-1][3], [reward_fn(e.turns[-1][3], e.example) for e in group]) for group in groups]
    with gathered(policy):
        pairs = on_all_ranks(attempt, list(enumerate(examples)))
    r = torch.tensor([values for _, values in pairs])
    return {"val_exact": (r >= 1).float().mean().item(), "val_reward": r.mean().item(), "val_completion": pairs[0][0]}


def alarms(log, cfg):
    """{name: what looks wrong and its mend} after the last line of a log; a pure function of the lines."""
    line, found = log[-1], {}
    steps = [x for x in log if "reward" in x]
    mean = lambda name, part: sum(x.get(name) or 0.0 for x in part) / len(part)  # noqa: E731
    if "reward" in line:
        if len(steps) >= 3 and not any(x["kept"] for x in steps[-3:]):
            why = "too easy: take harder ones" if line["exact"] > 0.5 else "too hard for this policy: train it with SRL first (02), or take easier ones"
            found["no signal"] = (f"no group of the last {sum(x['sampled'] for x in steps[-3:])} had a reward difference (a std above --eps {cfg.eps}), so "
                                  f"there is nothing to learn from (mean reward {line['reward']:.3f}); the problems are {why}")
        if line["bad_format"] > 0.95:
            found["format"] = ("fewer than 5 % of the completions keep the format <think> .. </think> step: look at completions.txt; "
                               "start from a model that follows the prompt, or raise --max_new_tokens")
        if line["truncated"] > 0.5:
            found["truncated"] = (f"{line['truncated']:.0%} of the completions were cut at {cfg.max_new_tokens} tokens: "
                                  f"raise the length to --max_new_tokens {2 * cfg.max_new_tokens}")
        if len(steps) >= 20:
            windows = [steps[i:i + 10] for i in range(0, len(steps) - 19, 5)]
            best, now = max(windows, key=lambda part: mean("exact", part)), steps[-10:]
            if mean("exact", now) < 0.5 * mean("exact", best) and mean("reward", now) > mean("reward", best) + 0.01:
                found["near copies"] = (f"the mean reward rises ({mean('reward', best):.3f} to {mean('reward', now):.3f}) while exact steps fall "
                                        f"({mean('exact', best):.1%} to {mean('exact', now):.1%}): --learning_rate {cfg.learning_rate / 3:.2g} or less")
            first = mean("entropy", steps[:10])
            if 0 < mean("entropy", now) < 0.1 * first and mean("exact", now) < 0.5:
                found["entropy"] = (f"the entropy fell from {first:.3g} to {mean('entropy', now):.3g}, and most steps are still wrong: the policy "
                                    f"tries nothing new any more; begin again with --learning_rate {cfg.learning_rate / 3:.2g} or a higher --temperature")
        if line.get("mismatch", 0) > 0.02 and cfg.dtype == "float32" or cfg.minibatches == 1 and line.get("clipped", 0) > 0.02:
            found["mismatch"] = (f"log-probabilities of rollout and update differ by {line['mismatch']:.2g} ({line['clipped']:.1%} of the tokens clipped): "
                                 "the two passes do not compute the same; try --dtype float32, and report the model")
        if line.get("skipped"):
            found["not finite"] = ("a gradient was not finite: the step was skipped, its batch stands in not_finite.jsonl; "
                                   f"lower --learning_rate {cfg.learning_rate:.2g}, or try --dtype float32")
    vals = [x for x in log if "val_exact" in x]
    if "val_exact" in line and len(vals) > 2 and all(x[name] < vals[0][name] for x in vals[-2:] for name in ("val_exact", "val_reward")):
        found["worse"] = (f"validation is worse than before training, twice in a row (reward {line['val_reward']:.3f}, {vals[0]['val_reward']:.3f} before): "
                          f"--learning_rate {cfg.learning_rate / 3:.2g} or less")
    return found


def tell_alarms(log, cfg):
    """{name: message} after the last line of a log, for that line. What no line before has is told; of the others the message stays empty."""
    told, line = {name for before in log for name in before.get("alarms", ())}, log[-1]
    found = {name: "" if name in told else message for name, message in alarms(log, cfg).items()}
    for name, message in found.items():
        if message:
            tqdm.write(f"ALARM ({name}): {message}")
    return {**found, **line.get("alarms", {})}


def save_model(policy, tokenizer, folder, dtype=None):
    """A model folder, complete or absent: written aside, then renamed."""
    weights = merged_weights(policy, dtype)
    if rank() == 0:
        with segmentation.written(folder) as aside:
            policy.save_pretrained(aside, state_dict=weights)
            tokenizer.save_pretrained(aside)


def save_checkpoint(out, optimizer, run, cfg):
    """All that a run needs to go on, complete or absent, with the log beside it. The checkpoint before it stays as checkpoint.previous.pt."""
    state = {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "config": asdict(cfg), "run": run}
    if rank() == 0:
        segmentation.write_jsonl(out / "log.jsonl", run["log"])
        with segmentation.written(out / "checkpoint.pt") as aside:
            torch.save(state, aside)
            if (out / "checkpoint.pt").exists():
                os.replace(out / "checkpoint.pt", out / "checkpoint.previous.pt")


FREE = ("continue_changed", "save_every", "report_to", "share_prompts", "shard")      # settings that change nothing of what is learned


def load_checkpoint(out, cfg):
    """The newest whole checkpoint of an interrupted run, or None. Raises InputError where it was made with other settings."""
    for path in (out / "checkpoint.pt", out / "checkpoint.previous.pt"):
        if not path.exists():
            continue
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            before = state["config"]
        except Exception as error:  # torch has many ways to say that a file is not whole
            print(f"{path}: damaged ({str(error).splitlines()[0][:80]}), left aside", file=sys.stderr)
            continue
        changed = [f"{k} {before.get(k)!r} -> {v!r}" for k, v in asdict(cfg).items() if k not in FREE and before.get(k) != v]
        if changed and not cfg.continue_changed:
            raise segmentation.InputError(f"{out}: an earlier run with other settings stands here ({'; '.join(changed)}); give another --out, "
                                          "delete the folder, or go on with the new ones: --continue_changed")
        return state
    return None


def start(cfg, run, examples, make_prompt):
    """(policy, tokenizer, optimizer) of a run that begins, or goes on where its checkpoint left it: `run` is then filled with its state."""
    check_start(cfg, examples, make_prompt)
    state = load_checkpoint(Path(cfg.out), cfg)
    policy, tokenizer = load_policy(cfg.model, cfg.device, cfg.dtype, cfg.share_prompts)
    torch.manual_seed(cfg.seed)
    if cfg.shard:
        shard(policy, getattr(torch, cfg.dtype))
    optimizer = make_optimizer(policy, cfg)
    if state:
        run.update(state["run"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        print(f"{cfg.out}: continuing after update {run['step']}", file=sys.stderr)
    return policy, tokenizer, optimizer


@contextmanager
def saved_first(optimizer, save, alone):
    """Ctrl-C, SIGTERM, no memory, a device that is gone: whatever ends the block, what was learned until the last whole update is saved first.

    A signal that comes while the weights are ahead of the run's state waits until they agree (`written_down`). alone: saving needs no other rank.
    """
    def stop(*_):
        optimizer.stop = True
        if not optimizer.ahead:
            raise KeyboardInterrupt
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if alone and not optimizer.ahead and not isinstance(error, segmentation.InputError):
            save()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def written_down(optimizer):
    """The run's state now includes the last update: stop here if a signal came in between."""
    optimizer.ahead = False
    if optimizer.stop:
        raise KeyboardInterrupt


def write_completions(path, size, step, look):
    """Append a few completions of an update, for a person to read. What stands behind `size` bytes is of updates made again. Returns the new size."""
    if rank():
        return size
    place = lambda e: f", step {e['k']} of {e['n']}" if "k" in e else ""  # noqa: E731
    text = "".join(f"=== update {step}, problem {e['id']}{place(e)}: reward {value:.3f}\n{completion}\n--- expected: {e.get('action') or e.get('answer')}\n\n"
                   for e, value, completion in look)
    with segmentation.told(path), open(path, "ab") as file:
        size = min(size, file.tell())
        file.truncate(size)
        return size + file.write(text.encode("utf-8", "replace"))


def make_tracker(cfg):
    """report(line): sends the numbers of a log line to where --report_to says. Raises InputError where the package is missing."""
    if cfg.report_to == "none" or rank():
        return lambda line: None
    numbers = lambda line: {k: v for k, v in line.items() if isinstance(v, (int, float))}  # noqa: E731
    try:
        if cfg.report_to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter
            writer = SummaryWriter(cfg.out)
            return lambda line: [writer.add_scalar(name, value, line["step"]) for name, value in numbers(line).items()]
        tracker = import_module(cfg.report_to)                                                   # trackio has wandb's interface
        tracker.init(project="srl", name=Path(cfg.out).name, config=asdict(cfg), resume="allow")
        return lambda line: tracker.log(numbers(line), step=line["step"])
    except ImportError:
        raise segmentation.InputError(f"--report_to {cfg.report_to}: not installed; pip install {cfg.report_to}") from None


def finite(line):
    """A log line as strict JSON: a number that is not finite becomes null."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}


def finish(out, run, what="policy"):
    """The last words of a run."""
    counts = Counter(name for line in run["log"] for name in line.get("alarms", ()))
    if counts:
        print("alarms: " + ", ".join(f"{name} {n} times" for name, n in counts.items()))
    print(f"{out / 'model'}: the best {what} by validation, exact {run['best'][0]:.1%}, reward {run['best'][1]:.3f}; log in {out / 'log.jsonl'}")


SHOWN = ("loss", "exact", "reward", "kept", "sampled", "tokens", "val_exact", "val_reward")


def show(line):
    """A line of the table on the screen: an update, or an epoch, with its validation."""
    tqdm.write(f"update {line['step']}: " + ", ".join(f"{name} {line[name]:.3g}" for name in SHOWN if line.get(name) is not None))
    if line["step"]:
        tqdm.write(f"  on validation: {line['val_completion']!r}")


def show_again(log):
    """What the screen showed before an interruption."""
    for line in log:
        for name, message in line.get("alarms", {}).items():
            if message:
                tqdm.write(f"ALARM ({name}): {message}")
        if "val_exact" in line:
            show(line)


def train(cfg, examples, val_examples, make_prompt, reward_fn, extend=None):
    """GRPO on a task: examples, a prompt, a reward; `extend` for tasks of several turns. Saves the best model by validation in cfg.out.

    Runs until cfg.rollouts completions have been sampled. Started again after an interruption it continues, with the same result.
    """
    out, cursor = Path(cfg.out), Cursor(examples, cfg.seed)
    run = {"step": 0, "done": 0, "place": 0, "best": (-1.0, -1.0), "log": [{"step": 0, "done": 0}], "completions": 0}
    policy, tokenizer, optimizer = start(cfg, run, [*examples, *val_examples], make_prompt)
    cursor.place = run["place"]
    save, track = partial(save_checkpoint, out, optimizer, run, cfg), make_tracker(cfg)
    show_again(run["log"])
    bar = tqdm(total=cfg.rollouts, initial=run["done"], unit="rollout", desc=out.name, dynamic_ncols=True, disable=rank() > 0)
    with saved_first(optimizer, save, not cfg.shard):
        while True:
            line, finished = run["log"][-1], run["done"] >= cfg.rollouts
            if "val_exact" not in line and (finished or run["step"] % cfg.eval_every == 0):
                line = {**line, **validate(policy, tokenizer, val_examples, make_prompt, reward_fn, extend, cfg)}
                if (line["val_exact"], line["val_reward"]) > tuple(run["best"]):
                    save_model(policy, tokenizer, out / "model", getattr(torch, cfg.dtype))
                log = [*run["log"][:-1], line]
                line["alarms"] = tell_alarms(log, cfg)
                run.update(log=log, best=max(tuple(run["best"]), (line["val_exact"], line["val_reward"])))
                save()
                track(line)
                show(line)
            if finished:
                break
            for part in optimizer.param_groups:
                part["lr"] = cfg.learning_rate * min(1.0, (cfg.rollouts - run["done"]) / max(cfg.decay * cfg.rollouts, 1))
            recent = [line for line in run["log"][-8:] if "kept" in line]
            share = sum(line["kept"] for line in recent) / max(sum(line["sampled"] for line in recent), 1) if recent else 1.0
            groups, stats = collect(policy, tokenizer, cursor, make_prompt, reward_fn, extend, cfg, share)
            look, started = stats.pop("look"), time.time()
            # the turns of an episode share its advantage
            turns = [(*turn[:3], a) for episodes, _, advantages in groups for e, a in zip(episodes, advantages.tolist(), strict=True) for turn in e.turns]
            if turns:
                stats.update(update(policy, optimizer, turns, cfg, f"{cfg.seed}, update {run['step']}"))
            if stats.get("skipped") and rank() == 0:
                names = ("prompt", "completion", "logprobs", "advantage")
                segmentation.write_jsonl(out / "not_finite.jsonl", [dict(zip(names, turn, strict=True)) for turn in turns])
            line = finite({"step": run["step"] + 1, "done": run["done"] + stats["completions"], **stats,
                           **(update_cost(turns, time.time() - started) if turns else {}), "peak_gb": peak_gb(cfg.device)})
            line["alarms"] = tell_alarms([*run["log"], line], cfg)
            run.update(step=line["step"], done=line["done"], place=cursor.place, log=[*run["log"], line],
                       completions=write_completions(out / "completions.txt", run["completions"], line["step"], look))
            written_down(optimizer)
            bar.update(stats["completions"])
            kept = f"{stats['kept']}/{stats['sampled']}"
            bar.set_postfix(exact=f"{stats['exact']:.1%}", reward=f"{stats['reward']:.3f}", kept=kept, val=f"{run['best'][0]:.1%}")
            if run["step"] % cfg.eval_every and run["done"] < cfg.rollouts:                      # else the line is validated first
                track(line)
                if run["step"] % cfg.save_every == 0:
                    save()
    bar.close()
    finish(out, run)


# 10. SFT: the baseline on the same examples
def action_of(text):
    """What stands after the last </think>, the whole text where there is none: SFT on outlines writes no thoughts."""
    return text.rpartition("</think>")[2].strip()


def sft_target(example, kind):
    """The text that SFT imitates: the step alone, or thoughts and the step."""
    if kind == "outline":
        return example["action"]
    thoughts = example.get({"reasoning": "thoughts", "student": "student_thoughts"}[kind])
    if thoughts is None:
        raise segmentation.InputError(f"example {example['id']}: no thoughts for --sft_target {kind}; give one thought per step, or train on the outline")
    return f"<think>{thoughts}</think>\n{example['action']}"


def sft_reward(completion, example):
    """Similarity of the step, with or without thoughts before it: for validation."""
    return cached_similarity(action_of(completion), example["action"])


def sft_loss(policy, part, cfg):
    """Mean cross-entropy of a batch of turns over its tokens; its gradient is added to the weights'."""
    tokens, total = sum(len(turn[1]) for turn in part), 0.0
    for groups, weight in rank_batches(policy, part, cfg.update_tokens):
        logprobs, _, _ = token_logprobs(policy, [(group[0][0], [turn[1] for turn in group]) for group in groups])
        loss = -logprobs.sum() * weight / tokens
        loss.backward()
        total += loss.item()
    return sum(from_all_ranks(total))


def train_sft(cfg, examples, val_examples):
    """Cross-entropy on the expert's text; Adam, cosine with 30 % warmup as in the paper; the best epoch by validation is kept in cfg.out/model.

    An example may carry its own `target` text (rejection sampling writes such files). Started again after an interruption it continues, with the same result.
    """
    out, make_prompt = Path(cfg.out), with_prompt_file(srl_prompt, cfg.prompt_file)
    run = {"step": 0, "losses": [], "best": (-1.0, -1.0), "log": []}
    texts = [example.get("target") or sft_target(example, cfg.sft_target) for example in examples]
    policy, tokenizer, optimizer = start(cfg, run, [*examples, *val_examples], make_prompt)
    eos = eos_ids(policy, tokenizer)[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    turns = []
    for example, text in zip(examples, texts, strict=True):
        prompt = prompt_text(tokenizer, make_prompt(example))
        if opened_thought(prompt):                                                               # go on from there: thoughts, or none
            text = text.removeprefix("<think>") if text.startswith("<think>") else f"</think>\n{text}"
        turns.append((encode_texts(tokenizer, [prompt])[0], tokenizer(text, add_special_tokens=False)["input_ids"] + [eos]))
    rng, num = random.Random(cfg.seed), math.ceil(len(turns) / cfg.sft_batch)                    # num: batches in an epoch
    order = [rng.sample(turns, len(turns)) for _ in range(cfg.epochs)]
    total, warmup = cfg.epochs * num, 0.3 * cfg.epochs * num                                     # (paper: 0.3, then cosine)
    save, track = partial(save_checkpoint, out, optimizer, run, cfg), make_tracker(cfg)
    show_again(run["log"])
    bar = tqdm(total=total, initial=run["step"], desc=out.name, unit="batch", dynamic_ncols=True, disable=rank() > 0)
    with saved_first(optimizer, save, not cfg.shard):
        while True:
            epoch, place = divmod(run["step"], num)
            if place == 0 and epoch > len(run["log"]):
                line = finite({"epoch": epoch, "step": run["step"], "loss": sum(run["losses"]) * cfg.sft_batch / len(turns),
                               **validate(policy.eval(), tokenizer, val_examples, make_prompt, sft_reward, None, cfg)})
                if (line["val_exact"], line["val_reward"]) > tuple(run["best"]):
                    save_model(policy, tokenizer, out / "model", getattr(torch, cfg.dtype))
                run.update(log=[*run["log"], line], best=max(tuple(run["best"]), (line["val_exact"], line["val_reward"])), losses=[])
                save()
                track(line)
                show(line)
            if run["step"] == total:
                break
            s = run["step"]
            for group in optimizer.param_groups:
                group["lr"] = cfg.learning_rate * min((s + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(0.0, s - warmup) / (total - warmup))))
            policy.train()
            loss = sft_loss(policy, order[epoch][place * cfg.sft_batch:(place + 1) * cfg.sft_batch], cfg)
            if not math.isfinite(optimizer.step(cfg.max_grad_norm)):
                tqdm.write(f"ALARM (not finite): the gradient of batch {s + 1} was not finite, its step was skipped; lower --learning_rate, or --dtype float32")
            run.update(step=s + 1, losses=[*run["losses"], loss])
            written_down(optimizer)
            bar.update()
            if run["step"] % cfg.save_every == 0 and run["step"] % num:
                save()
    bar.close()
    finish(out, run, "epoch")


CHOICES = {"method": ("srl", "sft"), "sft_target": ("outline", "reasoning", "student"), "recipe": ("miniature", "agents", "paper"),
           "optimizer": ("adam", "adam8bit"), "loss_mean": ("completion", "token"), "dtype": ("float32", "bfloat16"), "mode": ("stepwise", "single", "agent"),
           "report_to": ("none", "tensorboard", "trackio", "wandb")}


def parse_flags(defaults, description, recipes=RECIPES):
    """The Config that the command line asks for: a flag for every knob. recipes: {recipe: {method: its defaults}}."""
    early = argparse.ArgumentParser(add_help=False)                                              # these two decide about the other defaults
    early.add_argument("--recipe", default=defaults.recipe)
    early.add_argument("--method", default=defaults.method)
    first = early.parse_known_args()[0]
    defaults = replace(defaults, **recipes.get(first.recipe, {}).get(first.method, {}))
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    for field in fields(defaults):
        value = getattr(defaults, field.name)
        how = {"action": argparse.BooleanOptionalAction} if isinstance(value, bool) else {"type": type(value), "choices": CHOICES.get(field.name)}
        parser.add_argument(f"--{field.name}", default=value, help=" ", **how)
    cfg = replace(defaults, **vars(parser.parse_args()))
    wrong = []
    for name, value in vars(cfg).items():
        least = 0 if name in ("seed", "lora_rank", "decay", "eps", "clip_eps") else 1 if type(value) is int else 1e-12
        if type(value) in (int, float) and not least <= value < math.inf:
            wrong.append(f"--{name} {value}: must be {'at least' if type(value) is int or least == 0 else 'greater than'} {round(least)}")
    if wrong:
        raise segmentation.InputError("; ".join(wrong))
    gc.freeze()                                                                                  # what is imported stays: not to be searched for garbage again
    return cfg


TEXTS = ("problem", "partial", "action", "title", "system", "thoughts", "student_thoughts", "target")


def read_examples(cfg, names=("id", "problem", "action", "k", "n")):
    """(training, validation) examples of cfg.data. Raises InputError that lists what is wrong with them."""
    if not Path(cfg.data).is_dir():
        raise segmentation.InputError(f"{cfg.data}: no such folder; make it with python 01_segment.py --out {cfg.data}, or give another with --data")
    parts = [segmentation.read_jsonl(Path(cfg.data) / f"{part}.jsonl", names, {**dict.fromkeys(TEXTS, str), "k": int, "n": int, "context": list})
             for part in ("train", "val")]
    both = {str(e["id"]) for e in parts[0]} & {str(e["id"]) for e in parts[1]}
    if both:
        raise segmentation.InputError(f"{cfg.data}: {len(both)} problems are in train.jsonl and in val.jsonl, such as {min(both)}; 01_segment.py parts them")
    return tuple([{"partial": "", **example} for example in part] for part in parts)


def main():
    join_ranks()
    cfg = parse_flags(Config(), __doc__.split("\n")[0])
    examples, val_examples = read_examples(cfg)
    if cfg.method == "srl":
        train(cfg, examples, val_examples, with_prompt_file(srl_prompt, cfg.prompt_file), partial(srl_reward, autojunk=cfg.autojunk))
    else:
        train_sft(cfg, examples, val_examples)


if __name__ == "__main__":
    segmentation.run_main(main)
