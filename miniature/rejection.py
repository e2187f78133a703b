"""Control: rejection sampling. The policy's own completions whose step equals the expert's, fine-tuned on, in rounds.

It tests whether SRL needs reinforcement learning here: where a sampled step equals the expert's now and then, completions with right thoughts can be
collected and imitated. On real solutions, whose wording no sample ever equals, there is nothing to collect.

in:      runs/data (01_segment.py), the base model
out:     OUT/round1..R (data and model), OUT/model
command: python miniature/rejection.py --out runs/rejection      # 2 CPU cores, about 8 min
"""
import argparse
import json
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from engine.files import read_jsonl, run_main, write_jsonl  # noqa: E402
from engine.policy import load_policy  # noqa: E402

srl = import_module("02_srl_train")


def exact_completions(policy, tokenizer, examples, cfg, per_prompt=4):
    """Up to per_prompt different completions of every example whose step equals the expert's, as examples with a target."""
    found, P = [], cfg.prompts_per_batch
    bar = tqdm([examples[i:i + P] for i in range(0, len(examples), P)], unit="batch", desc="sampling", dynamic_ncols=True)
    for part in bar:
        for example, group in zip(part, srl.run_episodes(policy, tokenizer, part, cfg.group_size, srl.srl_prompt, None, cfg), strict=True):
            texts = dict.fromkeys(e.turns[0].text for e in group if e.finished)                  # each once, as sampled: the first are random ones
            exact = [text for text in texts if srl.srl_reward(text, example) == 1.0]
            found += [{**example, "target": text} for text in exact[:per_prompt]]
        bar.set_postfix(exact=len(found))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=srl.HERE / "runs/data")
    parser.add_argument("--out", type=Path, default=srl.HERE / "runs/rejection")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--rollouts", type=int, default=srl.Config.rollouts, help="completions in all (default: as many as SRL)")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args()
    cfg = srl.Config(data=str(args.data), seed=args.seed)
    examples, val = srl.read_examples(cfg)
    cursor = srl.Cursor(examples, args.seed)
    model = cfg.model
    for n in range(1, args.rounds + 1):
        folder = args.out / f"round{n}"
        num = args.rollouts // args.rounds // cfg.group_size
        drawn = cursor.take(num)
        if not (folder / "train.jsonl").exists():
            torch.manual_seed(args.seed * 1000 + n)
            found = exact_completions(*load_policy(model), drawn, cfg)
            write_jsonl(folder / "val.jsonl", val)
            write_jsonl(folder / "train.jsonl", found)
            print(json.dumps({"round": n, "rollouts": num * cfg.group_size, "exact": len(found)}))
        sft = replace(cfg, method="sft", model=model, out=str(folder), epochs=3, learning_rate=args.learning_rate)
        srl.train_sft(sft, read_jsonl(folder / "train.jsonl"), val)
        model = str(folder / "model")
    shutil.copytree(model, args.out / "model", dirs_exist_ok=True)


if __name__ == "__main__":
    run_main(main)
