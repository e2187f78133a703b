"""What the distributed tests start under torchrun: trains on the miniature, SRL with all weights on every rank and with --shard, RLVR's episodes, and SFT."""
import json
import os
import signal
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from engine.distributed import join_ranks, rank  # noqa: E402
from engine.files import run_main  # noqa: E402
from engine.optimizer import MasterAdam  # noqa: E402

segment, rlvr = import_module("01_segment"), import_module("03_rlvr_train")
srl = rlvr.srl


def train(out, kind="srl", shard=False):
    """Ten small updates on the miniature, or two epochs of SFT."""
    records = [json.loads(line) for line in (srl.HERE / "miniature/expert.jsonl").read_text().splitlines()[:12]]
    examples = segment.segment(records)[0]
    examples, val = examples[:40], examples[-5:]
    cfg = srl.Config(out=str(out), prompts_per_batch=3, group_size=4, max_new_tokens=40, rollouts=10 * 12, max_tries=1, eval_every=5, save_every=2,
                     update_tokens=600, device="cpu", shard=shard)
    if kind == "sft":
        srl.train_sft(replace(cfg, method="sft", sft_batch=8, epochs=2, learning_rate=1e-4), examples, val)
    elif kind == "rlvr":                # episodes of two turns; the base solves nothing, so the reward is a coin that depends on the text
        cfg = replace(cfg, max_turns=2, minibatches=2, learning_rate=rlvr.Config.learning_rate)
        coin = lambda text, example: float(sum(text.encode()) % 2)  # noqa: E731
        srl.train(cfg, rlvr.problem_starts(examples), rlvr.problem_starts(val), srl.srl_prompt, coin, rlvr.next_turn)
    else:
        srl.train(cfg, examples, val, srl.srl_prompt, srl.srl_reward)


def main():
    out, *changes = sys.argv[1:]
    torch.set_num_threads(1)
    join_ranks()
    if "die" in changes and rank() == 1:
        step, calls = MasterAdam.step, []

        def fatal(self, norm):
            calls.append(1)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, norm)
        MasterAdam.step = fatal
    for name in ("srl", "srl-shard", "rlvr", "rlvr-shard", "sft"):
        train(f"{out}-{name}", name.removesuffix("-shard"), shard="shard" in name)


if __name__ == "__main__":
    run_main(main)
    sys.exit("a rank that ends by the interpreter may be aborted by Gloo's threads: run_main ends it at once")
