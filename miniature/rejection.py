"""Controls without reinforcement learning: sample, choose completions, fine-tune on them, in rounds.

--keep exact: rejection sampling, the completions whose step equals the expert's. It tests whether SRL needs
reinforcement learning here; on real solutions, whose wording no sample ever equals, nothing is collected.
--keep best: best of G, the completion of a group whose step is most similar to the expert's.

in:      runs/data (01_segment.py), the base model
out:     OUT/round1..R (data and model), OUT/log.jsonl, OUT/model
command: python miniature/rejection.py                                  # 2 CPU cores, about 8 min
         python miniature/rejection.py --keep best --out runs/best_of_8
"""
import json
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from engine.files import InputError, atomic_write, read_jsonl, run_main, write_jsonl, write_text  # noqa: E402
from engine.flags import parse_flags  # noqa: E402
from engine.policy import load_policy  # noqa: E402
from engine.run import IGNORED_ON_RESUME  # noqa: E402

srl = import_module("02_srl_train")


@dataclass
class Config(srl.Config):
    """The knobs of 02 for sampling and fine-tuning, and those of the rounds."""
    out: str = str(srl.HERE / "runs/rejection")             # folder for everything that this run writes
    learning_rate: float = 1e-3                             # of the fine-tuning
    rounds: int = 4                     # each samples with the model of the one before
    keep: Literal["exact", "best"] = "exact"                # steps as the expert's | the best of a group
    per_prompt: int = 4                 # with --keep exact: at most so many different completions of a prompt


RECIPES = {"agents": {"srl": {**srl.AGENTS, "out": str(srl.HERE / "runs/agents/rejection")}}}


def chosen(texts, rewards, keep, per_prompt):
    """The completions of a group to imitate, each once; of equal ones with --keep best the first."""
    scored = dict(zip(texts, rewards, strict=True))     # in the order sampled: the first are random
    if keep == "exact":
        return [text for text, reward in scored.items() if reward == 1.0][:per_prompt]
    return [max(scored, key=scored.get)] if len(set(rewards)) > 1 else []       # equal rewards say nothing


def collect(policy, tokenizer, examples, cfg):
    """Chosen completions of every example, as examples with a target."""
    found, P, make_prompt = [], cfg.prompts_per_batch, srl.with_prompt_file(srl.srl_prompt, cfg.prompt_file)
    bar = tqdm(range(0, len(examples), P), unit="batch", desc="sampling", dynamic_ncols=True)
    for begin in bar:
        part = examples[begin:begin + P]
        groups = srl.run_episodes(policy, tokenizer, part, cfg.group_size, make_prompt, None, cfg)
        for example, group in zip(part, groups, strict=True):
            texts = [episode.turns[0].text for episode in group if episode.finished]
            rewards = [srl.srl_reward(text, example) for text in texts]
            kept = chosen(texts, rewards, cfg.keep, cfg.per_prompt)
            found += [{**example, "target": text} for text in kept]
        bar.set_postfix(kept=len(found))
    return found


def check_settings(cfg):
    """Raises InputError where cfg.out has samples of other flags: a round without any has no checkpoint."""
    path = Path(cfg.out) / "settings.json"
    settings = {name: value for name, value in asdict(cfg).items() if name not in IGNORED_ON_RESUME}
    if path.exists() and json.loads(path.read_text()) != settings and not cfg.continue_changed:
        raise InputError(f"{cfg.out}: contains a run with other settings; use another --out, or delete the folder")
    write_text(path, json.dumps(settings))


def best_validation(log):
    """The log line (a dict) with the best validation."""
    validated = [line for line in log if line.get("val_exact") is not None]
    return max(validated, key=lambda line: line["val_exact"] + line["val_reward"])


def main():
    cfg = parse_flags(Config(), __doc__.split("\n")[0], RECIPES)
    check_settings(cfg)
    examples, val_examples = srl.read_examples(cfg)
    cursor, model, log = srl.Cursor(examples, cfg.seed), cfg.model, []
    num = cfg.rollouts // cfg.rounds // cfg.group_size
    for n in range(1, cfg.rounds + 1):
        folder, drawn = Path(cfg.out) / f"round{n}", cursor.take(num)
        if not (folder / "train.jsonl").exists():
            torch.manual_seed(cfg.seed * 1000 + n)
            found = collect(*load_policy(model, cfg.device, cfg.dtype), drawn, cfg)
            write_jsonl(folder / "train.jsonl", found)
        line = {"step": n, "done": n * num * cfg.group_size, "kept": 0}
        if (folder / "train.jsonl").stat().st_size:                 # else nothing to imitate: the model stays
            found = read_jsonl(folder / "train.jsonl")
            srl.train_sft(replace(cfg, method="sft", model=model, out=str(folder)), found, val_examples)
            best = best_validation(read_jsonl(folder / "log.jsonl"))
            model = str(folder / "model")
            line |= {"kept": len(found), **{name: best[name] for name in ("val_exact", "val_reward")}}
        print(line)
        log.append(line)
    write_jsonl(Path(cfg.out) / "log.jsonl", log)
    with atomic_write(Path(cfg.out) / "model") as temporary:
        shutil.copytree(model, temporary)


if __name__ == "__main__":
    run_main(main)
