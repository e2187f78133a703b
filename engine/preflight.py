"""Preflight: what would go wrong in a run, found before its first slow operation, reported with the fix."""
import math
import os
import shutil
from pathlib import Path

import torch

from .chat import encode_texts, prompt_text
from .distributed import num_ranks, rank
from .files import InputError, first_line, remove, write_text
from .policy import load_architecture
from .rollout import length_problems


def gigabytes(n):
    return f"{n / 1e9:.3g} GB"


def flag_problems(cfg):
    """Flags that this machine or each other rule out, and an output folder that cannot be written."""
    problems = []
    try:
        if rank() == 0:  # one rank writes: several would remove each other's file
            write_text(Path(cfg.out) / "writable", "")
            remove(Path(cfg.out) / "writable")
    except InputError as error:
        problems.append(f"--out: {error}")
    try:
        torch.zeros(1, device=cfg.device)
    except (RuntimeError, AssertionError) as error:
        problems.append(f"--device {cfg.device}: not available ({first_line(error)}); --device cpu always is")
    most = math.sqrt(cfg.group_size**2 // 4) / cfg.group_size       # std of 0 and 1, half of them each
    most *= 1 if getattr(cfg, "mode", "") in ("stepwise", "single") else 2      # of -1 and 1
    rules = [
        (cfg.temperature == 0, "--temperature 0: must be greater, or the completions of a group are equal"),
        (cfg.group_size == 1 and getattr(cfg, "method", "") != "sft",
         "--group_size 1: completions are compared in their group; use at least 2"),
        (cfg.eps >= most, f"--eps {cfg.eps}: no group has a greater std; use less than {most:.3g}"),
        (cfg.shard and num_ranks() == 1, "--shard: there is one process; use torchrun --nproc-per-node N"),
        (cfg.shard and (cfg.lora_rank or cfg.optimizer != "adam"),
         "--shard: needs --optimizer adam and no --lora_rank; adapters fit one device"),
        (cfg.optimizer == "adam8bit" and cfg.device == "cpu",
         "--optimizer adam8bit: needs a GPU; --optimizer adam does not")]
    return problems + [problem for broken, problem in rules if broken]


def prompt_problems(name, model, tokenizer, examples, make_prompt, cfg):
    """Prompts that the template cannot render, or the model cannot take, of the 16 with most bytes."""
    def size(messages):     # in bytes: a Chinese character has three, and often a token of its own
        return sum(len(message["content"].encode("utf-8", "replace")) for message in messages)
    try:
        longest = sorted(map(make_prompt, examples), key=size)[-16:]
        prompts = encode_texts(tokenizer, [prompt_text(tokenizer, messages) for messages in longest])
        if not all(prompts):
            raise ValueError("the tokenizer produces no tokens")
    except Exception as error:  # a chat template is a program of its own and fails in any way
        return [f"{name}: its tokenizer and chat template cannot render a prompt ({first_line(error)}); "
                "correct them, or use another model"]
    vocabulary, last_id = model.get_input_embeddings().num_embeddings, max(map(max, prompts))
    tokens = max(map(len, prompts)) + cfg.max_new_tokens
    problems = length_problems(model.config, name, tokens, cfg.share_prompts)
    if last_id >= vocabulary:
        problems.append(f"{name}: the tokenizer produces token {last_id}, the model has {vocabulary}; "
                        "copy the tokenizer that belongs to it")
    return problems


def memory_problems(cfg, model):
    """Weights, gradients and Adam beyond the device, checkpoints beyond the disk. Prints the estimate."""
    parameters = sum(p.numel() for p in model.parameters())
    trained = parameters // 100 if cfg.lora_rank else parameters
    # gradient, Adam, float32 copy
    bytes_each = 4 + (2 if cfg.optimizer == "adam8bit" else 8) + 4 * (cfg.dtype != "float32")
    need = parameters * (4 if cfg.dtype == "float32" else 2) + trained * bytes_each
    need /= num_ranks() if cfg.shard else 1
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if cfg.device.startswith("cuda") and torch.cuda.is_available():
        have = torch.cuda.get_device_properties(0).total_memory
    print(f"{parameters / 1e6:.3g} million parameters; weights, gradients and Adam take {gigabytes(need)} of "
          f"{gigabytes(have)} on each device, the rest is for activations")
    problems, out = [], Path(cfg.out)
    if need > have:
        problems.append(f"{gigabytes(need)} of weights, gradients and Adam on a device of {gigabytes(have)}; "
                        "use --lora_rank 64, --dtype bfloat16, or more devices and --shard")
    free = shutil.disk_usage(out).free if out.is_dir() else math.inf
    if free < 3 * 12 * trained:
        problems.append(f"--out {out}: {gigabytes(free)} free, checkpoints take {gigabytes(36 * trained)}; "
                        "use another disk")
    return problems


def check_start(cfg, examples, make_prompt):
    """Check all that a run needs. Raises InputError with every problem and its fix."""
    problems = flag_problems(cfg)
    model, tokenizer = load_architecture(cfg.model)
    problems += prompt_problems(cfg.model, model, tokenizer, examples, make_prompt, cfg)
    problems += memory_problems(cfg, model)
    if len(problems) > 1:
        problems = [f"{len(problems)} problems", *problems]
    if problems:
        raise InputError("\n  ".join(problems))
