"""Baseline: the reverse curriculum of R3 (arXiv 2402.05808). RLVR in rounds that begin ever earlier.

In round n an episode begins after the expert's first steps, where 1 to n of its steps are left, and has at
most n + 1 completions: the budget is not spent on wandering. In the last round it begins at the problem.
Each round starts from the model of the one before and has an equal share of the rollouts. A round validates
where it begins itself (one greedy attempt, before and after), the last one as 03 does.

in:      runs/data (01_segment.py), the base model
out:     OUT/round1..R (log, model), OUT/log.jsonl, OUT/model
command: python miniature/curriculum.py                 # 108,000 rollouts, as SRL then RLVR in the table
         python miniature/curriculum.py --recipe agents
"""
import shutil
import sys
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from engine.files import atomic_write, read_jsonl, run_main, write_jsonl  # noqa: E402
from engine.flags import parse_flags  # noqa: E402

rlvr = import_module("03_rlvr_train")
srl = rlvr.srl


@dataclass
class Config(rlvr.Config):
    """The knobs of 03 with other defaults."""
    model: str = srl.Config.model                           # starting policy
    out: str = str(srl.HERE / "runs/curriculum")            # folder for everything that this run writes
    rollouts: int = 108_000                                 # completions of all rounds


AGENTS = {**rlvr.AGENTS, "model": srl.AGENTS["model"], "out": str(srl.HERE / "runs/agents/curriculum"),
          "rollouts": 72_000}


def main():
    cfg = parse_flags(Config(), __doc__.split("\n")[0], {"agents": AGENTS})
    rlvr.sandbox.UNSAFE = cfg.unsafe_tests
    make_prompt, extend, reward, check = rlvr.MODES[cfg.mode]
    make_prompt = srl.with_prompt_file(make_prompt, cfg.prompt_file)
    parts = srl.read_examples(cfg)
    problems = [check(rlvr.problem_starts(part)) for part in parts]       # training, validation
    rounds = [*range(1, max(e["n"] for e in parts[0])), None]
    model, log, done = cfg.model, [], 0
    for n, steps_left in enumerate(rounds, 1):
        out = Path(cfg.out) / f"round{n}"
        part = replace(cfg, model=model, out=str(out), steps_left=steps_left,
                       rollouts=cfg.rollouts // len(rounds))
        starts = problems
        if steps_left:
            starts = [rlvr.expert_prefixes(p, e, extend, steps_left) for p, e in zip(problems, parts, strict=True)]
            part = replace(part, val_samples=1, eval_every=cfg.rollouts,     # at the start and the end
                           max_turns=min(cfg.max_turns, steps_left + 1))
        srl.train(part, *starts, make_prompt, reward, extend)
        model, lines = str(out / "model"), read_jsonl(out / "log.jsonl")
        for line in lines:
            if steps_left and "val_exact" in line:                  # not of whole problems
                line["begun_exact"] = line.pop("val_exact")
            log.append({**line, "round": n, "done": done + line["done"]})
        done += lines[-1]["done"]
    write_jsonl(Path(cfg.out) / "log.jsonl", log)
    with atomic_write(Path(cfg.out) / "model") as temporary:
        shutil.copytree(model, temporary)


if __name__ == "__main__":
    run_main(main)
