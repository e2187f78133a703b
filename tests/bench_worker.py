"""Rollouts and updates of the checkout in FOLDER, for `bench_speed.py layout`: one measurement for each line on stdin, one JSON object each on stdout.

command: echo "rollout miniature/base" | python tests/bench_worker.py FOLDER      # rollout or update, and a model
"""
import hashlib
import json
import os
import random
import sys
import time
from functools import cache
from importlib import import_module
from pathlib import Path

import torch

FOLDER, P, G = Path(sys.argv[1]).resolve(), 64, 8
sys.path.insert(0, str(FOLDER))
srl, segmentation = import_module("02_srl_train"), import_module("01_segment")


def find(name, module):
    """A function of 02, as long as all of them were there, or of engine/."""
    return getattr(srl, name, None) or getattr(import_module(f"engine.{module}"), name)


@cache
def load(model):
    """(rollout function, update function, completions) of a model: G completions for each of P training prompts, and an update on them."""
    policy, tokenizer = find("load_policy", "policy")(model)
    records = [json.loads(line) for line in open(FOLDER / "miniature/expert.jsonl")]
    examples = random.Random(0).sample(segmentation.segment(records)[0], P)
    prompts = [find("encode", "chat")(tokenizer, srl.srl_prompt(e)) for e in examples]

    def rollout():
        torch.manual_seed(0)
        return srl.generate(policy, tokenizer, prompts, G)
    sample = rollout()
    advantages = srl.group_advantages(torch.rand(P, G)).flatten().tolist()
    turns = [(prompts[i // G], *row) for i, row in enumerate(zip(sample.completions, sample.logprobs, advantages, strict=True))]
    cfg = srl.Config(device="cpu", learning_rate=1e-12)
    optimizer = find("make_optimizer", "optimizer")(policy, cfg)
    return rollout, lambda: srl.update(policy, optimizer, turns, cfg), sample.completions


replies = os.fdopen(os.dup(1), "w")     # what the scripts print goes to stderr
os.dup2(2, 1)
for line in sys.stdin:
    kind, _, model = line.strip().partition(" ")
    *functions, completions = load(model)
    started, cpu = time.perf_counter(), time.process_time()
    functions[kind == "update"]()
    times = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    digest = hashlib.md5(str(completions).encode()).hexdigest()
    print(json.dumps({**times, "tokens": sum(map(len, completions)), "digest": digest}), file=replies, flush=True)
