"""What the resume tests start and kill: small runs of 02 (SRL and SFT) and of the loop of 03, in processes that fork off with all packages loaded."""
import os
import signal
import sys
from dataclasses import replace
from functools import wraps
from importlib import import_module

import torch
from transformers import Qwen2ForCausalLM, Qwen2TokenizerFast  # noqa: F401    imported once, before processes fork off

from engine import optimizer, policy, run

srl = import_module("02_srl_train")
EXAMPLES = [{"id": str(i), "k": 1, "n": 1, "problem": f"Solve {i}", "partial": "", "action": "1", "answer": "1"} for i in range(12)]
MOMENTS = {"rollout": (srl, "generate"), "gradient": (srl, "token_logprobs"), "step": (optimizer.MasterAdam, "step"), "model": (policy, "merged_weights"),
           "checkpoint": (torch, "save"), "rename": (os, "replace"), "completions": (run.Run, "append_text")}


def long_enough(text, example):
    return float(len(text) >= 7)


def three_turns(example, text):
    return {**example, "partial": example["partial"] + text[:3] + "\n"} if example["partial"].count("\n") < 2 else None


def kill_at(moment, nth):
    """SIGKILL in the middle of the nth call of a moment of the run."""
    owner, name = MOMENTS[moment]
    plain, calls = getattr(owner, name), []

    @wraps(plain)       # it counts as code of the module it stands in
    def fatal(*args, **kwargs):
        calls.append(1)
        if len(calls) == nth and moment not in ("model", "rename"):         # it is done, and no file says so
            plain(*args, **kwargs)
            if moment == "checkpoint":                                      # half a file
                os.truncate(args[1], os.path.getsize(args[1]) // 2)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*args, **kwargs)
    setattr(owner, name, fatal)


def work(kind, model, out, moment=None, nth=0, changes=None):
    """One run of a kind; what it prints goes to OUT.screen."""
    torch.set_num_threads(1)
    sys.stderr = open(f"{out}.errors", "a")
    if moment:
        kill_at(moment, nth)
    sys.stdout = open(f"{out}.screen", "w")
    cfg = srl.Config(model=str(model), out=str(out), prompts_per_batch=3, group_size=4, max_new_tokens=2, max_turns=3, rollouts=150, eval_every=3, save_every=2,
                     learning_rate=3e-3, device="cpu", epochs=4, sft_batch=2, method="sft" if kind == "sft" else "srl", minibatches=2)
    cfg = replace(cfg, **(changes or {}))
    try:
        if kind == "sft":
            srl.train_sft(cfg, EXAMPLES, EXAMPLES[:4])
        else:
            srl.train(cfg, EXAMPLES, EXAMPLES[:4], srl.srl_prompt, long_enough, three_turns if kind == "rlvr" else None)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.stdout.close()
