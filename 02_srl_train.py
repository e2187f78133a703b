"""Stage 2: SRL. GRPO with a dense reward for every step: the similarity of the policy's action to the expert's.

From a problem and the steps so far the policy writes its own monologue in <think> tags and then the next step. The reward looks at the step
alone (paper section 4.2), so every prompt has a signal, also where no rollout would ever solve the whole problem.

  1. Prompt        the problem and the steps so far, as chat messages
  2. Reward        R = 2M / T of action and expert action, -1 where the format is broken
  3. Model         attention, and log-probabilities of a group that shares its prompt
  4. Rollout       G completions per prompt; an episode is a loop of them
  5. Advantage     (reward - mean) / std inside the group
  6. Loss          the clipped GRPO objective
  7. Batch         dynamic sampling with refill: groups without a difference are replaced
  8. Update
  9. Training      validation, best checkpoint, resume
 10. SFT           the baseline on the same examples

Differences from the paper, which leaves eps, clipping, lengths and the optimizer open: see the knobs below; the sizes are the miniature's.

in:      runs/data/train.jsonl, val.jsonl (01_segment.py) and a causal language model with its tokenizer
out:     runs/srl/ (the best checkpoint by validation, a model folder), runs/srl/log.jsonl
command: python 02_srl_train.py                                        # 2 CPU cores, about 7 min
         python 02_srl_train.py --method sft --sft_target outline      # the baseline, about 4 min
         python 02_srl_train.py --recipe agents                        # the agents' miniature
"""
import argparse
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
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from difflib import SequenceMatcher
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path

import torch
from jinja2.exceptions import TemplateError
from tqdm import tqdm
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging as transformers_logging

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
    eps: float = 0.01                   # a group is kept where the std of its rewards is greater; the paper names it and gives no value
    max_tries: int = 3                  # at most so many times the batch is sampled to fill it; then the update goes on with fewer groups
    # optimization
    learning_rate: float = 3e-4         # Adam (paper: 5e-7 for 7B)
    decay: float = 0.4                  # share of the run, at its end, in which the learning rate falls linearly to 0; 0: constant (the paper's)
    clip_eps: float = 0.2               # clip range of the ratio; the paper does not say (veRL: 0.2)
    max_grad_norm: float = 1.0          # (paper: 1.0)
    minibatches: int = 1                # optimizer steps per batch; the paper does not say. 1: strictly on-policy, the ratio is 1
    # length
    rollouts: int = 48_000              # completions in all, those of dropped groups too: what a run costs
    eval_every: int = 20                # updates between validations
    val_samples: int = 1                # completions per validation prompt; 1: greedy
    # SFT
    epochs: int = 3                     # (paper: 3) the best by validation is kept
    sft_batch: int = 64                 # (paper: 64)
    # hardware
    max_rows: int = 384                 # completions decoded side by side; waiting prompts take the places of finished ones
    update_tokens: int = 12_000         # tokens in one forward and backward pass, a group's prompt counted once
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    dtype: str = "float32"              # of the weights that compute; below float32 the optimizer keeps float32 copies
    optimizer: str = "adam"             # adam | adam8bit: states in 8 bits (needs bitsandbytes and a GPU)
    gradient_checkpointing: bool = False    # activations are computed again in the backward pass: about a third more time, a fraction of the memory
    lora_rank: int = 0                  # 0: all weights learn; else low-rank adapters (needs peft), about 10 times the learning rate


# --recipe paper. What the paper gives for Qwen2.5-7B-Instruct stands first; what it does not give is our choice, with its reason in the README
PAPER = {
    "srl": {"prompts_per_batch": 512, "group_size": 8, "temperature": 1.0, "learning_rate": 5e-7, "decay": 0.0, "max_grad_norm": 1.0, "dtype": "bfloat16",
            "model": "Qwen/Qwen2.5-7B-Instruct", "data": str(HERE / "runs/s1k"), "out": str(HERE / "runs/paper_srl"),
            "rollouts": 1_200_000, "max_new_tokens": 2048, "eval_every": 10, "max_rows": 128, "update_tokens": 16_000, "gradient_checkpointing": True},
    "sft": {"sft_batch": 64, "epochs": 3, "learning_rate": 5e-6, "max_grad_norm": 1.0, "dtype": "bfloat16",
            "model": "Qwen/Qwen2.5-7B-Instruct", "data": str(HERE / "runs/s1k"), "out": str(HERE / "runs/paper_sft"), "max_new_tokens": 2048,
            "max_rows": 128, "update_tokens": 16_000, "gradient_checkpointing": True},
}
# --recipe agents. The miniature's second world; see 03 for its tools
AGENTS = {"model": str(HERE / "miniature/agents/base"), "data": str(HERE / "runs/agents/data"), "max_new_tokens": 400}
RECIPES = {"paper": PAPER, "agents": {
    "srl": {**AGENTS, "out": str(HERE / "runs/agents/srl"), "eps": 0.001,         # two calls of a hundred characters that differ in one score 0.99 and 1
            "rollouts": 24_000},
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


def encode(tokenizer, messages):
    """Token ids of a prompt. A chat template writes its special tokens itself; plain text gets the tokenizer's, such as a BOS."""
    return tokenizer(prompt_text(tokenizer, messages), add_special_tokens=not tokenizer.chat_template)["input_ids"]


def opened_thought(tokenizer, prompt):
    """'<think>' where the prompt's ids end in it, else '': some templates open the thoughts themselves, and the completion's text begins inside them."""
    return "<think>" if tokenizer.decode(prompt[-8:]).rstrip().endswith("<think>") else ""


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
    B, H, _, D = query.shape
    H_kv, R = key.shape[1], H // key.shape[1]
    prompt_keys, prompt_values = cache.prompts[layer]                                             # (P, H_kv, D, T), (P, H_kv, T, D)
    P, W, T = len(prompt_keys), cache.width, prompt_keys.shape[3]

    def to_grid(rows):                                                                            # (B, H_kv, R, n) -> (P, H_kv, W * R, n)
        return rows.index_select(0, cache.row_at).view(P, W, H_kv, R, -1).transpose(1, 2).reshape(P, H_kv, W * R, -1)

    def from_grid(grid):
        return grid.view(P, H_kv, W, R, -1).transpose(1, 2).reshape(P * W, H_kv, R, -1).index_select(0, cache.place)
    query = (query * (scaling or D**-0.5)).view(B, H_kv, R, D)
    at_prompt, at_own = from_grid((to_grid(query) @ prompt_keys).add_(cache.hide_padding)), query @ key.transpose(2, 3)
    if cache.hide_future is not None:
        at_own.add_(cache.hide_future)
    weights = torch.cat([at_prompt, at_own], -1).softmax(-1, dtype=torch.float32).to(value.dtype)
    return (from_grid(to_grid(weights[..., :T]) @ prompt_values) + weights[..., T:] @ value).view(B, 1, H, D)


def grouped_query_attention(module, query, key, value, attention_mask, scaling=None, shared_prompts=None, **kwargs):
    """Attention for every case: decode steps with shared prompts, the rest by torch's own kernels.

    query (B, H, L, D), key and value (B, H_kv, T, D), attention_mask (B, 1, L, T), see `additive` -> (B, L, H, D).
    shared_prompts: the SharedPromptCache of a decode step. On a CPU the kernel takes keys and values that several query heads share as they are;
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


def load_policy(name, device="cpu", dtype="float32"):
    """(policy, tokenizer) from a model folder or hub name. Raises InputError where there is none."""
    if not Path(name).is_dir() and (name.startswith((".", "/")) or name.count("/") != 1):
        raise segmentation.InputError(f"{name}: no such model folder; train it first, or give a folder or a hub name with --model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        policy = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype), attn_implementation="grouped_query")
    except (OSError, ValueError) as error:
        raise segmentation.InputError(f"{name}: not a model with a tokenizer ({str(error).splitlines()[0]})") from None
    return policy.to(device).eval(), tokenizer


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


class PromptCache:
    """Keys and values of N prompts, computed once with their gradient. With `rows`, the cache of a later pass whose row b looks back at prompt rows[b]."""

    def __init__(self, prompts=None, rows=None):
        self.layers, self.rows = prompts.layers if prompts else {}, rows

    def update(self, key, value, layer, *args, **kwargs):
        if self.rows is None:
            self.layers.setdefault(layer, (key, value))                                           # gradient checkpointing comes by a second time
            return key, value
        prompt_key, prompt_value = self.layers[layer]
        return torch.cat([prompt_key[self.rows], key], 2), torch.cat([prompt_value[self.rows], value], 2)

    def get_seq_length(self, layer=0):
        return 0


def chunk_logprobs(hidden, weight, bias, targets, temperature):
    """(log-probability of each target, entropy of its distribution), both (M,): one chunk of the language-model head."""
    logits = torch.nn.functional.linear(hidden, weight, bias).float() / temperature
    logprobs = logits.log_softmax(-1)
    with torch.no_grad():
        entropy = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(-1, targets[:, None])[:, 0], entropy


def token_logprobs(policy, groups, temperature=1.0, head_tokens=2048):
    """Log-probabilities of the completions' tokens, each prompt computed once for its group.

    groups: list of (prompt ids, list of completions' ids), B completions in all. Returns logprobs (B, T), mask bool (B, T) and the mean entropy.
    One pass over the prompts, then passes over completions of like length, which look back at their prompt's keys and values.
    The head sees completion positions only, in chunks of head_tokens whose logits are made again for the gradient, unless the vocabulary is tiny: nothing of
    size tokens x vocabulary stays alive.
    """
    device = policy.device
    pass_tokens = 750 if device.type == "cpu" else 4000                                           # about as many activations as a core's cache holds
    completions = [(n, completion) for n, (_, group) in enumerate(groups) for completion in group]
    lengths = torch.tensor([len(c) for _, c in completions], device=device)
    mask = torch.arange(int(lengths.max()), device=device) < lengths[:, None]                     # (B, T), from lengths: EOS is trained, padding is not
    ids, real, causal, positions = left_pad([prompt for prompt, _ in groups], device, policy.dtype)
    cache = PromptCache()
    prompt_end = policy.base_model(input_ids=ids, attention_mask=causal, position_ids=positions, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]

    order = sorted(range(len(completions)), key=lambda b: len(completions[b][1]))
    head = policy.get_output_embeddings()
    of_chunk = chunk_logprobs if len(head.weight) <= 1000 else partial(torch.utils.checkpoint.checkpoint, chunk_logprobs, use_reentrant=False)
    logprobs, entropies, begin = [None] * len(completions), [], 0
    while begin < len(order):
        end = begin + 1
        while end < len(order) and (end + 1 - begin) * len(completions[order[end]][1]) <= pass_tokens:
            end += 1
        part = order[begin:end]
        begin = end
        rows = torch.tensor([completions[b][0] for b in part], device=device)
        L = len(completions[part[-1]][1])                                                         # the longest
        padded = torch.tensor([completions[b][1] + [0] * (L - len(completions[b][1])) for b in part], device=device)     # (b, L), padding on the right
        hidden = prompt_end[rows][:, None]                                                        # the prompt's last position predicts the first token
        if L > 1:
            own = torch.ones(L - 1, L - 1, dtype=torch.bool, device=device).tril().expand(len(part), -1, -1)
            sees = torch.cat([real[rows][:, None, :].expand(-1, L - 1, -1), own], 2)              # its prompt and what it wrote so far
            place = positions[rows, -1:] + torch.arange(1, L, device=device)
            after = policy.base_model(input_ids=padded[:, :-1], attention_mask=additive(sees[:, None], policy.dtype), position_ids=place,
                                      past_key_values=PromptCache(cache, rows), use_cache=True)
            hidden = torch.cat([hidden, after.last_hidden_state], 1)                              # (b, L, D)
        inside = mask[part, :L]
        hidden, targets = hidden[inside], padded[inside]
        chunks = [of_chunk(hidden[i:i + head_tokens], head.weight, head.bias, targets[i:i + head_tokens], temperature)
                  for i in range(0, len(targets), head_tokens)]
        entropies += [entropy for _, entropy in chunks]
        for b, row in zip(part, torch.cat([p for p, _ in chunks]).split(lengths[part].tolist()), strict=True):
            logprobs[b] = row
    return torch.nn.utils.rnn.pad_sequence(logprobs, batch_first=True), mask, torch.cat(entropies).mean()


# 4. Rollout: G completions per prompt
@dataclass
class Rollout:
    """B completions as sampled: token ids (training uses these, never decoded and encoded again), their log-probabilities, text, whether EOS came."""
    completions: list
    logprobs: list
    texts: list
    finished: list


def pad_left(t, axis, length):
    return torch.nn.functional.pad(t, [0, 0] * (t.dim() - 1 - axis) + [length - t.shape[axis], 0])


class SharedPromptCache:
    """Keys and values of B rows in groups that share a prompt. A decode step writes one column and copies (nearly) nothing.

        prompts[layer]   keys (P, H_kv, D, T), values (P, H_kv, T, D)     each prompt once, padded on the left to T
        own[layer]       keys and values (B, H_kv, room, D)               what row b wrote, in columns 0 .. length[b] - 1; room grows by 32
        group (B,)       the prompt of each row, ascending
        place (B,)       its place in a grid of P lines, `width` rows each (shared_prompt_attention); row_at (P * width,) the row at a place
    """

    def __init__(self, policy):
        self.policy, self.room, self.prompts, self.own, self.reading = policy, 0, {}, {}, None
        self.seen = torch.zeros(0, 0, dtype=torch.bool, device=policy.device)                     # (P, T), False at padding
        self.group = self.length = torch.zeros(0, dtype=torch.long, device=policy.device)

    def update(self, key, value, layer, *args, **kwargs):
        """Called by every layer with its new keys and values; returns those to look at."""
        if self.reading is not None:
            self.reading[layer] = key, value
            return key, value
        for buffer, new in zip(self.own[layer], (key, value), strict=True):
            if self.hide_future is None:
                buffer[:, :, self.used - 1] = new[:, :, 0]
            else:
                buffer[self.row, :, self.length] = new[:, :, 0]
        return tuple(buffer[:, :, :self.used] for buffer in self.own[layer])

    def get_seq_length(self, layer=0):
        return 0

    def admit(self, prompts, sizes):
        """Read prompts (lists of ids) and open sizes[i] rows for prompts[i]. Returns the hidden state of each new row (b, D)."""
        ids, real, mask, positions = left_pad(prompts, self.policy.device, self.policy.dtype)
        self.reading = {}
        hidden = self.policy.base_model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self, use_cache=True).last_hidden_state
        group = torch.repeat_interleave(torch.arange(len(prompts), device=ids.device), torch.tensor(sizes, device=ids.device))
        T = max(real.shape[1], self.seen.shape[1])
        for layer, (key, value) in self.reading.items():
            new, own = (key.transpose(2, 3), value), [t.new_zeros(len(group), t.shape[1], self.room, t.shape[3]) for t in (key, value)]
            old, old_own = self.prompts.get(layer, [t[:0] for t in new]), self.own.get(layer, [t[:0] for t in own])
            self.prompts[layer] = [torch.cat([pad_left(t, axis, T) for t in pair]).contiguous() for axis, *pair in zip((3, 2), old, new, strict=True)]
            self.own[layer] = [torch.cat(pair) for pair in zip(old_own, own, strict=True)]
        self.reading, P = None, len(self.seen)
        self.seen = torch.cat([pad_left(self.seen, 1, T), pad_left(real, 1, T)])
        self.group, self.length = torch.cat([self.group, P + group]), torch.cat([self.length, torch.zeros_like(group)])
        self.arrange()
        return hidden[group, -1]

    def keep(self, rows):
        """Only these rows stay, and the prompts that they need."""
        self.own = {layer: [t[rows] for t in pair] for layer, pair in self.own.items()}
        needed, self.group = self.group[rows].unique(return_inverse=True)
        if len(needed) < len(self.seen):
            self.prompts, self.seen = {layer: [t[needed] for t in pair] for layer, pair in self.prompts.items()}, self.seen[needed]
        if not len(needed):
            self.seen = self.seen[:0, :0]
        self.length = self.length[rows]
        self.arrange()

    def arrange(self):
        """Give each row its place beside the others of its group."""
        self.row = torch.arange(len(self.group), device=self.group.device)
        counts = torch.bincount(self.group, minlength=len(self.seen))
        self.width = int(counts.max()) if len(counts) else 0
        self.place = self.group * self.width + self.row - (counts.cumsum(0) - counts)[self.group]
        self.row_at = self.place.new_zeros(len(self.seen) * self.width)
        self.row_at[self.place] = self.row
        self.hide_padding = additive(self.seen, self.policy.dtype)[:, None, None]
        self.begins = self.seen.sum(1)[self.group]                                                # (B,) the position of a row's first own token

    def step(self, token):
        """Decode token (B,). Returns the hidden states (B, D)."""
        first, last = int(self.length.min()), int(self.length.max())
        self.used, self.hide_future = last + 1, None
        if self.used > self.room:
            self.room += 32
            self.own = {layer: [torch.nn.functional.pad(t, [0, 0, 0, 32]) for t in pair] for layer, pair in self.own.items()}
        if first < last:                                                                          # rows that came later have written less
            future = torch.arange(self.used, device=token.device) > self.length[:, None]
            self.hide_future = additive(~future, self.policy.dtype)[:, None, None]
        hidden = self.policy.base_model(input_ids=token[:, None], attention_mask=self.hide_padding, position_ids=(self.begins + self.length)[:, None],
                                        past_key_values=self, use_cache=True, shared_prompts=self).last_hidden_state[:, -1]
        self.length = self.length + 1
        return hidden


@torch.inference_mode()
def generate(policy, tokenizer, prompts, group_size, temperature=1.0, max_new_tokens=160, max_rows=384):
    """G completions for each of P prompts (lists of ids); group_size may also be a list of P numbers. Returns a Rollout of P*G in order.

    At most max_rows rows are decoded side by side. When a fifth of them is finished they leave and waiting prompts take their places. temperature 0 is greedy.
    """
    sizes = [group_size] * len(prompts) if isinstance(group_size, int) else group_size
    first = [0, *itertools.accumulate(sizes)]                                                    # where the completions of a prompt begin
    B, device, head, eos = first[-1], policy.device, policy.get_output_embeddings(), torch.tensor(eos_ids(policy, tokenizer), device=policy.device)
    was_training = policy.training
    policy.eval()
    tokens, logprobs = torch.zeros(B, max_new_tokens, dtype=torch.long, device=device), torch.zeros(B, max_new_tokens, device=device)
    ends = torch.full((B,), max_new_tokens, device=device)
    waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))                         # prompts of like length are read together: little padding
    cache, row, hidden = SharedPromptCache(policy), torch.zeros(0, dtype=torch.long, device=device), None
    while waiting or len(row):
        if waiting and len(row) <= 0.8 * max_rows:
            chosen, room = [waiting.pop()], max_rows - len(row)
            while waiting and sum(sizes[i] for i in chosen) + sizes[waiting[-1]] <= room:
                chosen.append(waiting.pop())
            new = cache.admit([prompts[i] for i in chosen], [sizes[i] for i in chosen])
            hidden = torch.cat([hidden, new]) if len(row) else new
            row = torch.cat([row, *(torch.arange(first[i], first[i + 1], device=device) for i in chosen)])
        scores = head(hidden).float() / (temperature or 1.0)
        distribution = scores.softmax(-1)                                                        # (rows, V)
        if temperature:  # the inverse of the cumulative distribution at a uniform number is a draw from it
            token = torch.searchsorted(distribution.cumsum(-1), torch.rand(len(row), 1, device=device))[:, 0].clamp(max=distribution.shape[-1] - 1)
        else:
            token = scores.argmax(-1)
        tokens[row, cache.length], logprobs[row, cache.length] = token, distribution.gather(-1, token[:, None])[:, 0].log()
        ended = torch.isin(token, eos)
        ends[row[ended]] = ends[row[ended]].minimum(cache.length[ended] + 1)
        alive = (ends[row] > cache.length + 1).nonzero()[:, 0]
        # finished rows leave, not one by one: it costs a copy
        if len(alive) < 0.8 * len(row) or int(cache.length.max()) + 1 == max_new_tokens:
            row, token = row[alive], token[alive]
            cache.keep(alive)
        if len(row):
            hidden = cache.step(token)
    policy.train(was_training)
    ids, logprobs = [[values[:n] for values, n in zip(t.tolist(), ends.tolist(), strict=True)] for t in (tokens, logprobs)]
    ended = set(eos.tolist())
    finished = [completion[-1] in ended for completion in ids]
    texts = tokenizer.batch_decode([completion[:-1] if done else completion for completion, done in zip(ids, finished, strict=True)], skip_special_tokens=True)
    return Rollout(ids, logprobs, texts, finished)


@dataclass
class Episode:
    """One attempt: the example as it stands, and its turns (prompt ids, completion ids, log-probabilities, text). A step of SRL has one turn."""
    example: dict
    turns: list
    finished: bool = True       # the last completion ended by itself


def play(policy, tokenizer, examples, group_size, make_prompt, extend, cfg, temperature=None):
    """G episodes for each of P examples: complete, read the action, extend the context, until `extend` returns None or max_turns is reached.

    extend(example, completion) -> the example with its context extended, or None where the episode is over; None itself: one turn.
    Returns P lists of G Episodes. Equal contexts of a turn are computed once.
    """
    temperature = cfg.temperature if temperature is None else temperature
    episodes = [[Episode(example, []) for _ in range(group_size)] for example in examples]
    active = [episode for group in episodes for episode in group]
    for _ in range(cfg.max_turns):
        shared = {}
        for episode in active:
            shared.setdefault(json.dumps(make_prompt(episode.example)), []).append(episode)
        prompts = [encode(tokenizer, json.loads(key)) for key in shared]
        opened = [opened_thought(tokenizer, prompt) for prompt, group in zip(prompts, shared.values(), strict=True) for _ in group]
        if temperature == 0:  # greedy: one completion serves all episodes with this context
            rollout = generate(policy, tokenizer, prompts, 1, 0, cfg.max_new_tokens, cfg.max_rows)
            picks = [i for i, group in enumerate(shared.values()) for _ in group]
        else:
            rollout = generate(policy, tokenizer, prompts, [len(group) for group in shared.values()], temperature, cfg.max_new_tokens, cfg.max_rows)
            picks = range(len(rollout.texts))
        active = []
        for (prompt, episode), i, head in zip(((p, e) for p, group in zip(prompts, shared.values(), strict=True) for e in group), picks, opened, strict=True):
            text = head + rollout.texts[i]
            episode.turns.append((prompt, rollout.completions[i], rollout.logprobs[i], text))
            episode.finished = rollout.finished[i]
            following = extend(episode.example, text) if extend and episode.finished else None
            if following is not None:
                episode.example = following
                active.append(episode)
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
def grpo_loss(logprobs, old_logprobs, advantages, mask, clip_eps):
    """The clipped GRPO objective, negated (paper section 3): mean over completions of the mean over their tokens; KL coefficient 0.

    logprobs, old_logprobs (B, T), advantages (B,), mask (B, T) -> scalar.
    """
    assert mask.any(1).all(), "a completion without tokens"
    ratio = (logprobs - old_logprobs).exp()                                                      # (B, T)
    advantages = advantages[:, None]
    # min for both signs of A: clipping may only lower the objective
    objective = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages)
    return -((objective * mask).sum(1) / mask.sum(1)).mean()


# 7. Batch: dynamic sampling with refill
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
    while len(groups) < P and sampled < cfg.max_tries * P:
        drawn = cursor.take(min(math.ceil((P - len(groups)) / max(share, 1 / cfg.max_tries)), cfg.max_tries * P - sampled))
        sampled += len(drawn)
        started = time.time()
        played = play(policy, tokenizer, drawn, cfg.group_size, make_prompt, extend, cfg)
        seconds["rollout"] += time.time() - started
        started = time.time()
        r = torch.tensor([[reward_fn(e.turns[-1][3], e.example) for e in group] for group in played])    # (P, G)
        seconds["reward"] += time.time() - started
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
        "seconds_rollout": seconds["rollout"], "seconds_reward": seconds["reward"], "tokens_per_second": sum(map(len, completions)) / seconds["rollout"],
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
        self.adam = base([self.masters.get(p, p) for p in weights], lr=learning_rate, betas=(0.9, 0.95))

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
        """Clip the norm of all gradients, step, and hand the new weights down. Returns the norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_([p for group in self.param_groups for p in group["params"]], max_grad_norm).item()
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        for p, master in self.masters.items():
            p.copy_(master)
        return norm

    def state_dict(self):
        return {"adam": self.adam.state_dict(), "masters": list(self.masters.values())}

    @torch.no_grad()
    def load_state_dict(self, state):
        self.adam.load_state_dict(state["adam"])
        for master, saved in zip(self.masters.values(), state["masters"], strict=True):
            master.copy_(saved)


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


def merged_weights(policy):
    """The policy's weights with its adapters added in, under the names of a model without adapters; None where it has none."""
    adapters = {name: module for name, module in policy.named_modules() if hasattr(module, "get_delta_weight")}
    if not adapters:
        return None
    weights = {name.replace(".base_layer.", "."): w for name, w in policy.state_dict().items() if ".lora_" not in name}
    for name, module in adapters.items():
        weights[f"{name}.weight"] = (module.base_layer.weight.float() + module.get_delta_weight("default").float()).to(module.base_layer.weight.dtype)
    return weights


def micro_batches(turns, max_tokens):
    """Turns (prompt ids, completion ids, ..) gathered by prompt, in lists of groups that hold about max_tokens tokens, a shared prompt counted once."""
    by_prompt = {}
    for turn in turns:
        by_prompt.setdefault(tuple(turn[0]), []).append(turn)
    batches, batch, size = [], [], 0
    for prompt, group in by_prompt.items():
        size += len(prompt)
        batch.append([])
        for turn in group:
            if size + len(turn[1]) > max_tokens and batch[0]:                                     # full: the rest of the group opens the next one
                batches.append([g for g in batch if g])
                batch, size = [[]], len(prompt)
            batch[-1].append(turn)
            size += len(turn[1])
    return batches + [batch]


def update(policy, optimizer, turns, cfg):
    """One pass over a batch of turns (prompt ids, completion ids, old log-probabilities, advantage), `minibatches` optimizer steps. Returns stats."""
    policy.train()
    stats, steps = Counter(), 0
    order = list(range(len(turns))) if cfg.minibatches == 1 else random.sample(range(len(turns)), len(turns))
    for m in range(cfg.minibatches):
        part = [turns[i] for i in order[m::cfg.minibatches]]
        if not part:
            continue
        for groups in micro_batches(part, cfg.update_tokens):
            flat = [turn for group in groups for turn in group]
            logprobs, mask, entropy = token_logprobs(policy, [(group[0][0], [turn[1] for turn in group]) for group in groups], cfg.temperature)
            old = torch.zeros_like(logprobs).masked_scatter(mask, torch.tensor([lp for turn in flat for lp in turn[2]], device=mask.device))
            advantages = torch.tensor([turn[3] for turn in flat], device=mask.device)
            share = len(flat) / len(part)                                                        # the mean over the batch, not over micro-batches
            loss = grpo_loss(logprobs, old, advantages, mask, cfg.clip_eps) * share
            loss.backward()
            with torch.no_grad():
                difference = (logprobs - old)[mask]
                stats["loss"] += loss.item()
                stats["entropy"] += entropy.item() * share
                stats["clipped"] += (difference.exp() - 1).abs().gt(cfg.clip_eps).float().mean().item() * share
                stats["mismatch"] = max(stats["mismatch"], difference.abs().max().item() if m == 0 else 0.0)
        stats["grad_norm"] += optimizer.step(cfg.max_grad_norm)
        steps += 1
    policy.eval()
    return {name: value if name == "mismatch" else value / steps for name, value in stats.items()}


def update_cost(turns, seconds):
    """What an update took, and the part of its prompt tokens that sharing saved: turns with the same prompt ids count it once."""
    unshared, shared = sum(len(turn[0]) for turn in turns), sum(map(len, {tuple(turn[0]) for turn in turns}))
    return {"seconds_update": seconds, "update_tokens_per_second": sum(len(turn[1]) for turn in turns) / seconds, "prompt_tokens_saved": 1 - shared / unshared}


def peak_gb(device):
    """The most memory that this process has held so far, in GB: of the GPU, else of the machine."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9    # bytes on a Mac, kB on Linux


# 9. Training
def validate(policy, tokenizer, examples, make_prompt, reward_fn, extend, cfg):
    """Share of rewards of 1 (an exact step, a solved problem) and mean reward on the validation examples, with a fixed seed; one completion to look at."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        episodes = play(policy, tokenizer, examples, cfg.val_samples, make_prompt, extend, cfg, temperature=0 if cfg.val_samples == 1 else cfg.temperature)
    r = torch.tensor([[reward_fn(e.turns[-1][3], e.example) for e in group] for group in episodes])
    return {"val_exact": (r >= 1).float().mean().item(), "val_reward": r.mean().item(), "val_completion": episodes[0][0].turns[-1][3]}


def save_model(policy, tokenizer, folder):
    """A model folder, complete or absent: written aside, then renamed."""
    aside = Path(f"{folder}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    policy.save_pretrained(aside, state_dict=merged_weights(policy))
    tokenizer.save_pretrained(aside)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)


def save_checkpoint(path, **state):
    torch.save(state, f"{path}.tmp")
    os.replace(f"{path}.tmp", path)


def load_checkpoint(path, cfg):
    """The state of an interrupted run, or None. Raises InputError where it was made with other settings."""
    if not path.exists():
        return None
    state = torch.load(path, weights_only=True)
    changed = [f"{k} {state['config'].get(k)!r} -> {v!r}" for k, v in asdict(cfg).items() if state["config"].get(k) != v]
    if changed:
        what = "; ".join(changed)
        raise segmentation.InputError(f"{path.parent}: an earlier run with other settings stands here ({what}); give another --out, or delete the folder")
    return state


def warn_once(told, name, message):
    if name not in told:
        told.add(name)
        tqdm.write(f"note: {message}")


def train(cfg, examples, val_examples, make_prompt, reward_fn, extend=None):
    """GRPO on a task: examples, a prompt, a reward; `extend` for tasks of several turns. Saves the best model by validation in cfg.out.

    Runs until cfg.rollouts completions have been sampled. Started again after an interruption it continues, with the same result.
    """
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    state = load_checkpoint(out / "checkpoint.pt", cfg)
    policy, tokenizer = load_policy(cfg.model, cfg.device, cfg.dtype)
    torch.manual_seed(cfg.seed)
    optimizer = make_optimizer(policy, cfg)
    cursor = Cursor(examples, cfg.seed)
    step, done, best, log = 0, 0, (-1.0, -1.0), []
    if state:
        policy.load_state_dict(state["policy"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        cursor.place, step, done, best, log = state["place"], state["step"], state["done"], tuple(state["best"]), state["log"]
        if not state["finished"]:
            print(f"{out}: continuing after update {step}")
    told = set()

    def check_and_save(finished):
        """Validate, keep the model if it is the best so far, write log and checkpoint."""
        nonlocal best
        record = validate(policy, tokenizer, val_examples, make_prompt, reward_fn, extend, cfg)
        if (record["val_exact"], record["val_reward"]) > best:
            best = (record["val_exact"], record["val_reward"])
            save_model(policy, tokenizer, out / "model")
        if log:
            log[-1].update(record)
        segmentation.write_jsonl(out / "log.jsonl", log or [{"step": 0, **record}])
        save_checkpoint(out / "checkpoint.pt", policy=policy.state_dict(), optimizer=optimizer.state_dict(), rng=torch.get_rng_state(), place=cursor.place,
                        step=step, done=done, best=best, log=log, config=asdict(cfg), finished=finished)
        return record

    if not state:
        log.append({"step": 0, "done": 0})
        record = check_and_save(False)
        print(f"before training: exact {record['val_exact']:.1%}, reward {record['val_reward']:.3f} on {len(val_examples)} validation prompts")
    bar = tqdm(total=cfg.rollouts, initial=done, unit="rollout", desc=f"{out.name}", dynamic_ncols=True)
    while done < cfg.rollouts:
        for part in optimizer.param_groups:
            part["lr"] = cfg.learning_rate * min(1.0, (cfg.rollouts - done) / max(cfg.decay * cfg.rollouts, 1))
        recent = [line for line in log[-8:] if "kept" in line]
        share = sum(line["kept"] for line in recent) / max(sum(line["sampled"] for line in recent), 1) if recent else 1.0
        groups, stats = collect(policy, tokenizer, cursor, make_prompt, reward_fn, extend, cfg, share)
        done += stats["completions"]
        started = time.time()
        if groups:
            # the turns of an episode share its advantage
            turns = [(*turn[:3], a) for episodes, _, advantages in groups for e, a in zip(episodes, advantages.tolist(), strict=True) for turn in e.turns]
            stats.update(update(policy, optimizer, turns, cfg))
        else:
            warn_once(told, "no signal", f"no group of {stats['sampled']} had a reward difference, so there is nothing to learn from "
                      f"(mean reward {stats['reward']:.3f}): the problems are too hard for this policy (train it with SRL first) or too easy")
        if stats["truncated"] > 0.5:
            warn_once(told, "truncated", f"{stats['truncated']:.0%} of the completions were cut at {cfg.max_new_tokens} tokens: raise --max_new_tokens")
        if stats["bad_format"] > 0.95:
            warn_once(told, "format", "fewer than 5 % of the completions keep the format <think> .. </think> step: start from a model that follows the prompt")
        step += 1
        log.append({"step": step, "done": done, **stats, **(update_cost(turns, time.time() - started) if groups else {}), "peak_gb": peak_gb(cfg.device)})
        bar.update(stats["completions"])
        bar.set_postfix(exact=f"{stats['exact']:.1%}", reward=f"{stats['reward']:.3f}", kept=f"{stats['kept']}/{stats['sampled']}", val=f"{best[0]:.1%}")
        if step % cfg.eval_every == 0 or done >= cfg.rollouts:
            record = check_and_save(done >= cfg.rollouts)
            e = next(iter(groups), [[None]])[0][0]
            shown = ("exact", "reward", "kept", "sampled", "tokens", "val_exact", "val_reward")
            tqdm.write(f"update {step}: " + ", ".join(f"{name} {log[-1][name]:.3g}" for name in shown))
            if e and step % (5 * cfg.eval_every) == 0:
                tqdm.write(f"  a completion with reward {reward_fn(e.turns[-1][3], e.example):.3f}: {e.turns[-1][3]!r}")
    bar.close()
    print(f"{out / 'model'}: the best policy by validation, exact {best[0]:.1%}, reward {best[1]:.3f}; log in {out / 'log.jsonl'}")


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


def train_sft(cfg, examples, val_examples):
    """Cross-entropy on the expert's text; Adam, cosine with 30 % warmup as in the paper; the best epoch by validation is kept in cfg.out/model.

    An example may carry its own `target` text (rejection sampling writes such files).
    """
    out = Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    state = load_checkpoint(out / "checkpoint.pt", cfg)
    if state:
        print(f"{out / 'model'}: finished before, the best epoch by validation had exact {state['best'][0]:.1%}")
        return
    policy, tokenizer = load_policy(cfg.model, cfg.device, cfg.dtype)
    eos = eos_ids(policy, tokenizer)[0] if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    make_prompt = with_prompt_file(srl_prompt, cfg.prompt_file)
    turns = []
    for example in examples:
        prompt, text = encode(tokenizer, make_prompt(example)), example.get("target") or sft_target(example, cfg.sft_target)
        if opened_thought(tokenizer, prompt):                                                    # go on from there: thoughts, or none
            text = text.removeprefix("<think>") if text.startswith("<think>") else f"</think>\n{text}"
        turns.append((prompt, tokenizer(text, add_special_tokens=False)["input_ids"] + [eos]))
    optimizer = make_optimizer(policy, cfg)
    total = cfg.epochs * math.ceil(len(turns) / cfg.sft_batch)
    warmup = 0.3 * total                                                                         # (paper: 0.3, then cosine)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer.adam, lambda s: min((s + 1) / warmup, 0.5 * (1 + math.cos(math.pi * max(0.0, s - warmup) / (total - warmup)))))
    rng, best, log, step = random.Random(cfg.seed), (-1.0, -1.0), [], 0
    bar = tqdm(total=total, desc=out.name, unit="batch", dynamic_ncols=True)
    for epoch in range(1, cfg.epochs + 1):
        policy.train()
        order = rng.sample(range(len(turns)), len(turns))
        losses = []
        for begin in range(0, len(order), cfg.sft_batch):
            part = [turns[i] for i in order[begin:begin + cfg.sft_batch]]
            for groups in micro_batches(part, cfg.update_tokens):
                logprobs, _, _ = token_logprobs(policy, [(group[0][0], [turn[1] for turn in group]) for group in groups])
                loss = -logprobs.sum() / sum(len(turn[1]) for turn in part)
                loss.backward()
                losses.append(loss.item())
            optimizer.step(cfg.max_grad_norm)
            schedule.step()
            step += 1
            bar.update()
        record = validate(policy.eval(), tokenizer, val_examples, make_prompt, sft_reward, None, cfg)
        log.append({"epoch": epoch, "step": step, "loss": sum(losses) * cfg.sft_batch / len(turns), **record})
        if (record["val_exact"], record["val_reward"]) > best:
            best = (record["val_exact"], record["val_reward"])
            save_model(policy, tokenizer, out / "model")
        segmentation.write_jsonl(out / "log.jsonl", log)
        tqdm.write(f"epoch {epoch}: " + ", ".join(f"{k} {log[-1][k]:.4g}" for k in ("loss", "val_exact", "val_reward")))
    bar.close()
    save_checkpoint(out / "checkpoint.pt", config=asdict(cfg), best=best, finished=True)
    print(f"{out / 'model'}: the best epoch by validation, exact {best[0]:.1%}; log in {out / 'log.jsonl'}")


CHOICES = {"method": ("srl", "sft"), "sft_target": ("outline", "reasoning", "student"), "recipe": ("miniature", "agents", "paper"),
           "optimizer": ("adam", "adam8bit"), "dtype": ("float32", "bfloat16"), "mode": ("stepwise", "single", "agent")}


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
    for name, value in vars(cfg).items():
        if type(value) is int and value < (0 if name in ("seed", "lora_rank") else 1):
            raise segmentation.InputError(f"--{name} {value}: must be at least {0 if name in ('seed', 'lora_rank') else 1}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    gc.freeze()                                                                                  # what is imported stays: not to be searched for garbage again
    return cfg


def read_examples(cfg, names=("id", "problem", "action", "k", "n")):
    """(training, validation) examples of cfg.data."""
    if not Path(cfg.data).is_dir():
        raise segmentation.InputError(f"{cfg.data}: no such folder; make it with python 01_segment.py --out {cfg.data}, or give another with --data")
    return tuple(segmentation.read_jsonl(Path(cfg.data) / f"{part}.jsonl", names) for part in ("train", "val"))


def main():
    cfg = parse_flags(Config(), __doc__.split("\n")[0])
    examples, val_examples = read_examples(cfg)
    if cfg.method == "srl":
        train(cfg, examples, val_examples, with_prompt_file(srl_prompt, cfg.prompt_file), partial(srl_reward, autojunk=cfg.autojunk))
    else:
        train_sft(cfg, examples, val_examples)


if __name__ == "__main__":
    segmentation.run_main(main)
