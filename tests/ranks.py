"""What the distributed tests start under torchrun: trains on the miniature, SRL with whole weights on every rank and with --shard, RLVR's episodes, and SFT."""
import json
import os
import signal
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
rlvr = import_module("03_rlvr_train")
srl = rlvr.srl


def small(out, **changes):
    """A config of ten small updates on the miniature, and its examples."""
    records = [json.loads(line) for line in (srl.HERE / "miniature/expert.jsonl").read_text().splitlines()[:12]]
    examples = srl.segmentation.segment(records)[0]
    cfg = srl.Config(out=str(out), prompts_per_batch=3, group_size=4, max_new_tokens=40, rollouts=10 * 12, max_tries=1, eval_every=5, save_every=2,
                     update_tokens=600, device="cpu")
    return replace(cfg, **changes), examples[:40], examples[-5:]


def run(cfg, examples, val, kind="srl"):
    if kind == "sft":
        srl.train_sft(replace(cfg, method="sft", sft_batch=8, epochs=2, learning_rate=1e-4), examples, val)
    elif kind == "rlvr":                # episodes of two turns; the base solves nothing, so the reward is a coin that depends on the text
        cfg = replace(cfg, max_turns=2, minibatches=2, learning_rate=rlvr.Config.learning_rate)
        examples, val = rlvr.unsolved(examples), rlvr.unsolved(val)
        srl.train(cfg, examples, val, srl.srl_prompt, lambda text, example: float(sum(text.encode()) % 2), rlvr.next_turn)
    else:
        srl.train(cfg, examples, val, srl.srl_prompt, srl.srl_reward)


def main():
    out, *changes = sys.argv[1:]
    torch.set_num_threads(1)
    srl.join_ranks()
    if "die" in changes and srl.rank() == 1:
        step, calls = srl.MasterAdam.step, []

        def fatal(self, norm):
            calls.append(1)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, norm)
        srl.MasterAdam.step = fatal
    for kind, name, shard in (("srl", "whole", False), ("srl", "shard", True), ("rlvr", "rlvr", False), ("rlvr", "rlvr-shard", True), ("sft", "sft", False)):
        run(*small(f"{out}-{name}", shard=shard), kind)


if __name__ == "__main__":
    srl.segmentation.run_main(main)
