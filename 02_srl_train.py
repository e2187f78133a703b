"""Stage 2: SRL. GRPO with a dense reward: the similarity of every action to the expert's.

From a problem and the steps so far the policy writes its own monologue in <think> tags, then the next step.
Only the step is rewarded (paper section 4.2), so there is a signal also where no rollout solves the problem.

in:      runs/data/train.jsonl, val.jsonl (01_segment.py) and a causal language model with its tokenizer
out:     runs/srl/model (the best by validation), log.jsonl, completions.txt (samples), checkpoints
command: python 02_srl_train.py                        # 2 CPU cores, 2 min; again: continues where it stopped
         python 02_srl_train.py --method sft           # the SFT baseline in runs/sft_outline, 4 min
         python 02_srl_train.py --recipe agents        # the agents' miniature
         torchrun --nproc-per-node 8 02_srl_train.py   # 8 GPUs
"""
import engine  # noqa: F401  # isort: skip    first: Ctrl-C during the other imports ends in one line
import json
import math
import random
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from time import time
from typing import Literal, NamedTuple

import torch

from engine.alarms import alarms
from engine.chat import encode_target, encode_texts, eos_ids, fill, full_text, prompt_text, with_prompt_file
from engine.distributed import gather, join_ranks, on_all_ranks, unsharded
from engine.files import InputError, read_train_and_val, run_main, shorten
from engine.flags import parse_flags
from engine.logprobs import micro_batches, num_tokens, token_logprobs, update_cost
from engine.matcher import SequenceMatcher
from engine.prefix_cache import PrefixCache
from engine.rollout import check_lengths, fits, generate, random_stream
from engine.run import Cursor, Run

HERE = Path(__file__).parent


@dataclass
class GRPOConfig:
    """The knobs of 02 and 03; each is a flag of the same name, and the comment beside it is its help."""
    model: str = str(HERE / "miniature/base")                   # folder or hub name of the starting policy
    data: str = str(HERE / "runs/data")                         # folder with train.jsonl and val.jsonl
    out: str = str(HERE / "runs/srl")                           # folder for everything that this run writes
    prompt_file: str = ""               # a system message in place of ours; after a line --- a user message
    recipe: Literal["miniature", "agents", "paper"] = "miniature"   # other defaults, see RECIPES
    seed: int = 0                       # of data order, sampling and adapters
    # batch
    prompts_per_batch: int = 16         # P, groups in an update (paper: 512)
    group_size: int = 8                 # G, completions per prompt (paper: 8; TRL: num_generations)
    temperature: float = 1.0            # of the rollout and of the log-probabilities (paper: 1.0)
    max_new_tokens: int = 160           # of a completion (paper: not stated); miniature: 15 to 120 used
    max_turns: int = 8                  # completions of an episode that solves step by step
    eps: float = 0.001                  # groups with a std up to this are dropped (paper: not stated)
    max_tries: int = 3                  # at most max_tries * P prompts a batch; 1: no refill
    # optimization
    learning_rate: float = 3e-4         # of Adam (paper: 5e-7 for 7B)
    decay: float = 0.4                  # linear decay to 0 over this last fraction of the run (paper: none)
    clip_eps: float = 0.2               # clip range of the ratio (paper: not stated; veRL: 0.2)
    loss_mean: Literal["completion", "token"] = "completion"    # seq-mean-token-mean (paper) | token-mean
    max_grad_norm: float = 1.0          # gradient clipping (paper: 1.0)
    minibatches: int = 1                # optimizer steps per batch; 1: on-policy, ratio 1 (paper: not stated)
    # length
    rollouts: int = 48_000              # completions in all, dropped ones too; the last episodes are finished
    eval_every: int = 20                # updates between validations
    val_samples: int = 1                # completions per validation prompt; 1: greedy
    save_every: int = 5                 # updates between checkpoints; Ctrl-C, SIGTERM and errors save first
    continue_changed: bool = False      # continue the run in --out although its settings have changed
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"      # besides log.jsonl
    # hardware
    max_rows: int = 384                 # decode batch (vLLM: max_num_seqs), smaller where memory is short
    update_tokens: int = 12_000         # tokens of a micro-batch; shared prefixes count once
    device: str = "cuda" if torch.cuda.is_available() else "cpu"    # cuda | cpu
    dtype: Literal["float32", "bfloat16"] = "float32"           # of the weights; Adam keeps float32 copies
    optimizer: Literal["adam", "adam8bit"] = "adam"             # adam8bit: needs bitsandbytes and a GPU
    gradient_checkpointing: bool = False    # a third more time, a fraction of the activation memory
    lora_rank: int = 0                  # 0: all weights; else adapters (peft), 10 times the learning rate
    share_prompts: bool = True          # False: each completion is computed with its own copy of the prompt
    shard: bool = False                 # under torchrun: weights, gradients, Adam spread over devices (FSDP2)


@dataclass
class Config(GRPOConfig):
    """The knobs of 02 alone."""
    method: Literal["srl", "sft"] = "srl"                       # SRL, or the baseline
    sft_target: Literal["outline", "reasoning"] = "outline"     # the step | thoughts, then the step
    epochs: int = 3                     # of SFT; the best by validation is kept (paper: 3)
    sft_batch: int = 64                 # of SFT: examples in a batch (paper: 64)


# --recipe paper: the paper's values beside the defaults, then ours; agents: the miniature's second world
LARGE = {"model": "Qwen/Qwen2.5-7B-Instruct", "data": str(HERE / "runs/s1k"), "dtype": "bfloat16",
         "max_new_tokens": 2048, "max_rows": 512, "update_tokens": 16_000, "gradient_checkpointing": True}
PAPER = {"srl": {"prompts_per_batch": 512, "learning_rate": 5e-7, "decay": 0.0, **LARGE,
                 "out": str(HERE / "runs/paper_srl"), "rollouts": 1_200_000, "eval_every": 10},
         "sft": {"learning_rate": 5e-6, **LARGE, "out": str(HERE / "runs/paper_sft")}}
AGENTS = {"model": f"{HERE}/miniature/agents/base", "data": f"{HERE}/runs/agents/data", "max_new_tokens": 500}
RECIPES = {
    "paper": PAPER,
    "miniature": {"sft": {"out": str(HERE / "runs/sft_outline"), "learning_rate": 3e-3}},
    "agents": {"srl": {**AGENTS, "out": str(HERE / "runs/agents/srl")},
               "sft": {**AGENTS, "out": str(HERE / "runs/agents/sft_outline"), "learning_rate": 3e-3}}}


# 1. Prompt
SRL_SYSTEM = (
    "You are given a problem and the beginning of its solution, a list of numbered steps. Write the one step that comes next and nothing after it: "
    "not the rest of the solution, not a second step. Before the step, think. Put your thoughts between <think> and </think>; write there as you would "
    "on scratch paper, informally, trying things out and checking them, at whatever length helps. After </think> write only the next step, in the style of the "
    "steps so far. If no step is given yet, write the first one. If the solution is complete but for its final answer, give that answer in \\boxed{}."
)
SRL_USER = "{problem}\n\nSolution:\n{partial}"
AGENT_SYSTEM = (
    "You work on a task in an environment, one call at a time. You are given the task, and the last calls with what they returned. Make the one call that "
    "comes next and nothing after it. Before the call, think. Put your thoughts between <think> and </think>, as on scratch paper, at whatever length helps: "
    "what is known, what is missing, what the call should show. After </think> write only the call, in the form of the calls so far or as described below."
)


def srl_prompt(example, system=None, user=None):
    """Chat messages that ask for step k: the problem and steps 1..k-1 (paper section 4.1, our wording).

    An example with a `context` is an agent's: its system message, the task, the last calls and observations.
    """
    if "context" in example:                                        # paper section 5
        texts = (system or AGENT_SYSTEM, example.get("system"))
        system, user, context = "\n\n".join(filter(None, texts)), user or "{problem}", example["context"]
    else:
        system, user, context = system or SRL_SYSTEM, user or SRL_USER, []
    user = fill(user, example)
    if example.get("title"):                                        # 01_segment.py --title_hint
        user += f"\n\nThe title of the next step: {example['title']}"
    return [{"role": "system", "content": system}, {"role": "user", "content": user}, *context]


# 2. Reward
def parse_completion(text, expected=""):
    """(think, action) of a completion, or None where the format is broken.

    Thoughts, one </think>, a step; more think tags only if the expected step has them. <think> may be missing
    (a template may open it), <solution> tags around the step are accepted: the paper shows both.
    """
    think, closing, action = text.partition("</think>")             # of text: '</think>\n' is another token
    think, action = think.strip().removeprefix("<think>"), without_tags(action)
    more = any(action.count(tag) > expected.count(tag) for tag in ("<think>", "</think>"))
    if not closing or not action or "<think>" in think or more:
        return None
    return think.strip(), action


def without_tags(action):
    return action.strip().removeprefix("<solution>").removesuffix("</solution>").strip()


def action_of(text, expected=""):
    """The text after the last </think> that is not of the expected action, all of it where there is none."""
    return without_tags("</think>".join(text.split("</think>")[-1 - expected.count("</think>"):]))


@lru_cache(maxsize=1 << 16)             # equal pairs are compared once
def similarity(action, expert_action, autojunk=False):
    """R = 2M / T in [0, 1]: M characters in matching blocks, T the length of both (paper section 4.2).

    The order of the arguments is fixed: difflib's ratio is not symmetric. Its default, autojunk=True, ignores
    frequent characters of an expert's action of 200 or more, which scores near copies as low as 0.02.
    """
    return SequenceMatcher(None, action, expert_action, autojunk=autojunk).ratio()


def srl_reward(completion, example):
    """Similarity of the action to the expert's; -1 where the format is broken. The thoughts do not count."""
    parsed = parse_completion(completion, example["action"])
    return -1.0 if parsed is None else similarity(parsed[1], example["action"])


# 3. Episodes: G completions per prompt, and where a task has several turns, on until the answer
class Turn(NamedTuple):
    prompt: list                        # token ids
    completion: list                    # token ids as sampled, EOS included
    logprobs: list                      # of these tokens, as sampled
    text: str


@dataclass
class Episode:
    """One attempt: the example with its context so far, and its turns. An episode of SRL has one turn."""
    example: dict
    turns: list
    finished: bool = True               # the last completion ended with EOS


def run_episodes(policy, tokenizer, examples, group_size, make_prompt, extend, cfg,
                 temperature=None, seeds=None, last_greedy=False):
    """G episodes for each of P examples: complete, extend the context, repeat. Returns P lists of G.

    extend(example, completion) -> the example with a longer context, None at the end; extend None: one turn.
    seeds: of the examples' random streams. last_greedy: a group's last episode is greedy.
    """
    temperature = cfg.temperature if temperature is None else temperature
    seeds = torch.randint(2**62, (len(examples),)).tolist() if seeds is None else seeds
    groups = [[Episode(example, []) for _ in range(group_size)] for example in examples]
    active = [(i, g) for i in range(len(examples)) for g in range(group_size)]
    prefix_cache = PrefixCache() if extend else None
    for turn in range(cfg.max_turns):
        contexts = {}                                               # equal contexts are computed once
        for i, g in active:
            contexts.setdefault(json.dumps(make_prompt(groups[i][g].example)), []).append((i, g))
            groups[i][g].finished = False                           # where no room is left for a completion
        texts = [prompt_text(tokenizer, json.loads(context)) for context in contexts]
        each = zip(contexts.values(), texts, encode_texts(tokenizer, texts), strict=True)
        if not (batch := [p for p in each if not turn or fits(policy, len(p[2]) + cfg.max_new_tokens)]):
            break
        grouped, texts, prompts = zip(*batch, strict=True)
        members, sizes, uniforms = sum(grouped, []), list(map(len, grouped)), None
        if temperature:                                             # uniform random numbers for sampling
            streams = {i: random_stream(seeds[i], turn, (group_size, cfg.max_new_tokens)) for i, _ in active}
            for stream in streams.values() if last_greedy else ():
                stream[-1] = -1
            uniforms = torch.stack([streams[i][g] for i, g in members])
        rollout = generate(policy, tokenizer, prompts, sizes, temperature, cfg.max_new_tokens,
                           cfg.max_rows, uniforms, prefix_cache)
        active, context_of = [], [n for n, size in enumerate(sizes) for _ in range(size)]
        for b, ((i, g), n) in enumerate(zip(members, context_of, strict=True)):
            episode, text = groups[i][g], full_text(texts[n], rollout.texts[b])
            episode.turns.append(Turn(prompts[n], rollout.completions[b], rollout.logprobs[b], text))
            episode.finished = rollout.finished[b]
            longer = extend(episode.example, text) if extend and episode.finished else None
            if longer is not None:
                episode.example = longer
                active.append((i, g))
    return groups


def score_episodes(policy, tokenizer, seeded, G, make_prompt, reward_fn, extend, cfg, temperature=None):
    """[(G episodes, their rewards)] of P (seed, example) pairs; the reward is that of the last turn."""
    def score(part):
        seeds, examples = zip(*part, strict=True)
        groups = run_episodes(policy, tokenizer, examples, G, make_prompt, extend, cfg, temperature, seeds)
        return [(group, [reward_fn(e.turns[-1].text, e.example) for e in group]) for group in groups]
    with unsharded(policy):
        return on_all_ranks(score, seeded)


# 4. Advantage
def group_advantages(rewards, epsilon=1e-6):
    """rewards (P, G) -> advantages (P, G): (r - mean) / (std + epsilon) in each group (paper section 3)."""
    mean, std = rewards.mean(-1, keepdim=True), rewards.std(-1, correction=0, keepdim=True)  # population
    advantages = (rewards - mean) / (std + epsilon)
    return advantages * (rewards.amax(-1) > rewards.amin(-1))[:, None]      # equal ones: 0, no rounding error


# 5. Loss
def grpo_loss(logprobs, old_logprobs, advantages, mask, clip_eps, loss_mean="completion"):
    """The clipped GRPO objective, negated (paper section 3): a mean over completions of token means.

    logprobs, old_logprobs (B, T), advantages (B,), mask (B, T) -> scalar; no KL term. In the paper's mean a
    token in a completion of 480 weighs a fortieth of one in a completion of 12; with "token" the same.
    """
    assert mask.any(1).all(), "a completion without tokens"
    ratio = (logprobs - old_logprobs).exp()                         # (B, T)
    advantages = advantages[:, None]                                # (B, 1)
    # min for both signs of A: clipping may only lower the objective
    objective = torch.minimum(ratio * advantages, ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages)
    if loss_mean == "token":
        return -(objective * mask).sum() / mask.sum()
    return -((objective * mask).sum(1) / mask.sum(1)).mean()


# 6. Dynamic sampling: groups with equal rewards have no advantage; other prompts are sampled in their place
def informative_groups(rewards, min_std):
    """rewards (P, G) -> (P,) bool: groups whose population std is above min_std (paper section 4.3)."""
    differs = rewards.amax(-1) > rewards.amin(-1)                   # the std of equal rewards is not always 0
    return differs & (rewards.std(-1, correction=0) > min_std)


def collect(policy, tokenizer, cursor, make_prompt, reward_fn, extend, cfg, kept_share=1.0, most=math.inf):
    """A batch: prompts are sampled until P groups or more are informative, or `most` prompts are sampled.

    kept_share: the expected share of informative groups sizes the first round: one large rollout is faster
    than small ones. Returns a list of (episodes, rewards (G,), advantages (G,)) and stats over all samples.
    """
    P, G, started = cfg.prompts_per_batch, cfg.group_size, time()
    groups, rewards, episodes = [], [], []
    most = min(most, cfg.max_tries * P)
    while len(groups) < P and len(rewards) < most:
        wanted = math.ceil((P - len(groups)) / max(kept_share, 1 / cfg.max_tries))
        position = cursor.position
        drawn = cursor.take(min(wanted, most - len(rewards)))
        seeded = [(f"{cfg.seed}, prompt {position + i}", example) for i, example in enumerate(drawn)]
        scored = score_episodes(policy, tokenizer, seeded, G, make_prompt, reward_fn, extend, cfg)
        r = torch.tensor([group_rewards for _, group_rewards in scored])        # (P of this round, G)
        advantages = group_advantages(r)
        for i in informative_groups(r, cfg.eps).nonzero()[:, 0].tolist():
            groups.append((scored[i][0], r[i], advantages[i]))
        rewards.extend(r)
        episodes += [episode for group, _ in scored for episode in group]
        kept_share = len(groups) / len(rewards)
    r, seconds = torch.stack(rewards), time() - started             # (all P, G)
    lengths = [len(turn.completion) for episode in episodes for turn in episode.turns]
    return groups, {
        "reward": r.mean().item(), "exact": (r >= 1).float().mean().item(),
        "bad_format": (r < 0).float().mean().item(), "kept": len(groups), "sampled": len(r),
        "completions": len(lengths), "tokens": sum(lengths) / len(lengths),
        "truncated": sum(not episode.finished for episode in episodes) / len(episodes),
        "seconds_rollout": seconds, "tokens_per_second": sum(lengths) / seconds,        # rewards included
        "samples": list(zip(episodes[:3], r.flatten().tolist(), strict=False)),
    }


def sample_text(updates, samples):
    """Part of completions.txt, read by engine/report.py: a few completions, rewards, references, contexts."""
    text = ""
    for episode, reward in samples:
        e, completion = {"partial": "", **episode.example}, episode.turns[-1].text
        where = f"problem {e['id']}" + (f", step {e['k']} of {e['n']}" if "k" in e else "")
        text += (f"=== update {updates}, {where}: reward {reward:.3f}\n{completion}\n--- expected\n"
                 f"{e.get('action') or e.get('answer')}\n--- context\n{e['problem']}\n{e['partial']}\n\n")
    return text


# 7. Update
def update(policy, optimizer, turns, cfg, seed=0):
    """One pass over turns (prompt ids, completion ids, log-probabilities, advantage). Returns stats."""
    started, stats, norms = time(), Counter(), []                   # policy in eval mode: no dropout
    if cfg.minibatches > 1:                                         # seeded: every rank needs the same order
        turns = random.Random(seed).sample(turns, len(turns))
    size = num_tokens if cfg.loss_mean == "token" else len          # what the loss is a mean over
    for m in range(min(cfg.minibatches, len(turns))):
        part = turns[m::cfg.minibatches]
        for groups, weight in micro_batches(policy, part, cfg.update_tokens):
            flat = [turn for group in groups for turn in group]     # B turns
            completions = [(group[0][0], [turn[1] for turn in group]) for group in groups]
            logprobs, mask, entropy = token_logprobs(policy, completions, cfg.temperature)      # (B, T)
            old = torch.tensor([logprob for turn in flat for logprob in turn[2]], device=mask.device)
            old = torch.zeros_like(logprobs).masked_scatter(mask, old)                          # (B, T)
            advantages = torch.tensor([turn[3] for turn in flat], device=mask.device)           # (B,)
            weight *= size(flat) / size(part)                       # a mean over the batch, not micro-batches
            loss = grpo_loss(logprobs, old, advantages, mask, cfg.clip_eps, cfg.loss_mean) * weight
            loss.backward()
            difference = (logprobs.detach() - old)[mask]
            clipped = ((difference.exp() - 1).abs() > cfg.clip_eps).float().mean().item()
            stats["loss"] += loss.item()
            stats["entropy"] += entropy.item() * weight
            stats["clipped"] += clipped * weight
            if m == 0:                                              # later minibatches have newer weights
                stats["mismatch"] = max(stats["mismatch"], difference.abs().max().item())
        norms.append(optimizer.step(cfg.max_grad_norm))
    ranks = gather(stats)
    means = {name: sum(rank[name] for rank in ranks) / len(norms) for name in ("loss", "entropy", "clipped")}
    return {**means, "mismatch": max(rank["mismatch"] for rank in ranks),
            "grad_norm": sum(norms) / len(norms), "skipped": sum(not math.isfinite(norm) for norm in norms),
            **update_cost(turns, time() - started)}


# 8. SFT: the baseline on the same examples
def sft_target(example, kind):
    """The text that SFT imitates: the step, or thoughts and the step, or the example's own `target`."""
    if kind == "outline" or example.get("target"):
        return example.get("target") or example["action"]
    if example.get("thoughts") is None:
        raise InputError(f"example {example['id']}: no thoughts for --sft_target {kind}; "
                         "give one thought per step, or train on the outline")
    return f"<think>{example['thoughts']}</think>\n{example['action']}"


def sft_sequence(policy, tokenizer, example, make_prompt, kind):
    """(prompt ids, target ids) of an example; EOS is part of the target."""
    prompt = prompt_text(tokenizer, make_prompt(example))
    target = encode_target(tokenizer, prompt, sft_target(example, kind))
    return encode_texts(tokenizer, [prompt])[0], [*target, eos_ids(policy, tokenizer)[0]]


def sft_loss(policy, sequences, cfg):
    """Mean cross-entropy over the target tokens of a batch; adds its gradient to that of the weights."""
    total = 0.0
    for groups, weight in micro_batches(policy, sequences, cfg.update_tokens):
        completions = [(group[0][0], [target for _, target in group]) for group in groups]
        logprobs, _, _ = token_logprobs(policy, completions)
        loss = -logprobs.sum() * weight / num_tokens(sequences)     # a mean over the batch, not micro-batches
        loss.backward()
        total += loss.item()
    return sum(gather(total))


def sft_reward(completion, example):
    """Similarity of the step, with or without thoughts before it: for validation."""
    return similarity(action_of(completion, example["action"]), example["action"])


def train_sft(cfg, examples, val_examples):
    """Cross-entropy on the expert's text, cosine with 30 % warmup as in the paper; saves the best epoch."""
    make_prompt, num = with_prompt_file(srl_prompt, cfg.prompt_file), math.ceil(len(examples) / cfg.sft_batch)
    total, warmup = cfg.epochs * num, 0.3 * cfg.epochs * num        # batches
    run = Run(cfg, (examples, val_examples), make_prompt, (sft_target, None), total, "batch", SHOWN, num)
    sequences = [sft_sequence(run.policy, run.tokenizer, e, make_prompt, cfg.sft_target) for e in examples]
    for e, (prompt, target) in zip(examples, sequences, strict=True):
        check_lengths(run.policy, len(prompt) + len(target), f"{cfg.data}, problem {e['id']}: ")
    rng = random.Random(cfg.seed)
    order = [rng.sample(sequences, len(sequences)) for _ in range(cfg.epochs)]
    with run.resumable():
        while True:
            epoch, batch = divmod(run.step, num)
            if batch == 0 and epoch > len(run.log):
                metrics = validate(run, val_examples, make_prompt, sft_reward, None, cfg)
                loss = sum(run.losses) / num_tokens(sequences)
                run.validated({"epoch": epoch, "step": run.step, "loss": loss, **metrics}, losses=[])
            if run.step == total:
                break
            cosine = 0.5 * (1 + math.cos(math.pi * max(0.0, run.step - warmup) / (total - warmup)))
            run.optimizer.set_learning_rate(cfg.learning_rate * min((run.step + 1) / warmup, cosine))
            part = order[epoch][batch * cfg.sft_batch:(batch + 1) * cfg.sft_batch]
            loss = sft_loss(run.policy, part, cfg) * num_tokens(part)
            run.stepped(run.optimizer.step(cfg.max_grad_norm), losses=[*run.losses, loss])


# 9. Training loop
SHOWN = ("exact", "reward", "kept", "sampled", "val_exact", "val_reward", "tokens", "loss")  # on screen


def read_examples(cfg, names=("id", "problem", "action", "k", "n")):
    """(training, validation) examples of cfg.data with `names`. InputError lists what is wrong."""
    texts = ("problem", "partial", "action", "title", "system", "thoughts", "target")
    types = {**dict.fromkeys(texts, str), "k": int, "n": int, "context": list}
    return read_train_and_val(cfg.data, names, types)


def validate(run, examples, make_prompt, reward_fn, extend, cfg):
    """Share of rewards of 1 (an exact step, a solved problem) and mean reward, seeds fixed."""
    seeded = [(f"validation {i}", example) for i, example in enumerate(examples)]
    scored = score_episodes(run.policy, run.tokenizer, seeded, cfg.val_samples, make_prompt, reward_fn,
                            extend, cfg, 0 if cfg.val_samples == 1 else cfg.temperature)
    r = torch.tensor([rewards for _, rewards in scored])            # (examples, val_samples)
    unsolved = [(group[0], rewards[0]) for group, rewards in scored if max(rewards) < 1]
    return {"val_exact": (r >= 1).float().mean().item(), "val_reward": r.mean().item(),
            "val_unsolved": shorten(sample_text(run.step, unsolved[:1]), 2000)}


def train(cfg, examples, val_examples, make_prompt, reward_fn, extend=None):
    """GRPO on a task: examples, a prompt, a reward; `extend` for several turns. Saves the best by validation.

    Runs until cfg.rollouts completions have been sampled. Started again it continues, with the same result.
    """
    run = Run(cfg, (examples, val_examples), make_prompt, (train, reward_fn, extend), cfg.rollouts, "rollout",
              SHOWN, cfg.eval_every, partial(alarms, cfg=cfg, score="reward"), [{"step": 0, "done": 0}])
    cursor = Cursor(examples, cfg.seed, run.cursor)
    with run.resumable():
        while True:
            left = cfg.rollouts - run.done
            if "val_exact" not in run.log[-1] and (left <= 0 or run.step % cfg.eval_every == 0):
                run.validated(validate(run, val_examples, make_prompt, reward_fn, extend, cfg))
            if left <= 0:
                break
            decay = min(1, left / max(cfg.decay * cfg.rollouts, 1))
            run.optimizer.set_learning_rate(cfg.learning_rate * decay)
            recent = [line for line in run.log[-8:] if "kept" in line] or [{"kept": 1, "sampled": 1}]
            kept_share = sum(line["kept"] for line in recent) / sum(line["sampled"] for line in recent)
            groups, stats = collect(run.policy, run.tokenizer, cursor, make_prompt, reward_fn, extend, cfg,
                                    kept_share, most=max(1, left // cfg.group_size))
            turns = [(*turn[:3], advantage) for episodes, _, advantages in groups
                     for episode, advantage in zip(episodes, advantages.tolist(), strict=True)
                     for turn in episode.turns]                 # which share its advantage
            if turns:
                stats |= update(run.policy, run.optimizer, turns, cfg, f"{cfg.seed}, update {run.step}")
            text = sample_text(run.step + 1, stats.pop("samples"))
            run.updated(stats, turns, text, cursor=cursor.position)


def main():
    join_ranks()
    cfg = parse_flags(Config(), __doc__.split("\n")[0], RECIPES)
    examples, val_examples = read_examples(cfg)
    if cfg.method == "sft":
        return train_sft(cfg, examples, val_examples)
    train(cfg, examples, val_examples, with_prompt_file(srl_prompt, cfg.prompt_file), srl_reward)


if __name__ == "__main__":
    run_main(main)
