"""Baselines: RLVR whose episodes begin after some of the expert's steps, so that some are right from the start.

--order reverse: the reverse curriculum of R3 (arXiv 2402.05808), in rounds. In round n an episode begins where 1
to n of the expert's steps are left and has at most n + 1 completions: the rollouts are not spent on wandering. In
the last round it begins at the problem. Each round starts from the model of the one before and has an equal share
of the rollouts. A round validates where it begins itself (one greedy attempt, before and after), the last as 03.
--order random: one round, from any number of the expert's steps, the problem included; an episode has one
completion more than it has steps left. Validation as in 03.

in:      runs/data (01_segment.py), the base model
out:     OUT/round1..R (log, model), OUT/log.jsonl, OUT/model
command: python miniature/curriculum.py                 # 108,000 rollouts, as SRL then RLVR in the table
         python miniature/curriculum.py --order random --out runs/prefix_rlvr
         python miniature/curriculum.py --recipe agents
"""
import math
import shutil
import sys
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).parent.parent))
from engine.files import InputError, atomic_write, read_jsonl, run_main, write_jsonl  # noqa: E402
from engine.flags import parse_flags  # noqa: E402

rlvr = import_module("03_rlvr_train")
srl = rlvr.srl


@dataclass
class Config(rlvr.Config):
    """The knobs of 03 with other defaults, and where episodes begin."""
    order: Literal["reverse", "random"] = "reverse"         # rounds that begin ever earlier | one, anywhere
    model: str = srl.Config.model                           # starting policy
    out: str = str(srl.HERE / "runs/reverse_curriculum")            # folder for everything that this run writes
    rollouts: int = 108_000                                 # completions of all rounds


AGENTS = {**rlvr.AGENTS, "model": srl.AGENTS["model"], "out": str(srl.HERE / "runs/agents/reverse_curriculum"),
          "rollouts": 72_000}


def expert_prefixes(problems, examples, extend, steps_left):
    """The problems after the expert's steps 1..k-1, for every k with at most steps_left steps left, so one problem
    several times; completions_left: one more than steps left. An agent's calls are executed."""
    if not extend:
        raise InputError("--mode single: a completion is the whole solution; an episode has to have several turns")
    reached, starts = {p["id"]: p for p in problems}, []
    for e in sorted(examples, key=lambda e: e["k"]):
        if start := reached.get(e["id"]):               # else it has no answer, or the expert has finished
            left = e["n"] - e["k"] + 1
            starts += [{**start, "completions_left": left + 1}] * (left <= steps_left)
            reached[e["id"]] = extend(start, e["action"])
    return starts


def limited(extend):
    """`extend` that ends an episode after the example's completions_left, where it has any."""
    def extend_limited(example, completion):
        following, left = extend(example, completion), example.get("completions_left", math.inf) - 1
        return {**following, "completions_left": left} if following and left else None
    return extend_limited


def main():
    cfg = parse_flags(Config(), __doc__.split("\n")[0], {"agents": AGENTS})
    rlvr.sandbox.UNSAFE = cfg.unsafe_tests
    make_prompt, extend, reward, check = rlvr.MODES[cfg.mode]
    make_prompt = srl.with_prompt_file(make_prompt, cfg.prompt_file)
    parts = srl.read_examples(cfg)
    problems = [check(rlvr.problem_starts(part)) for part in parts]       # training, validation
    most, reverse = max(e["n"] for e in parts[0]), cfg.order == "reverse"
    rounds = [*range(1, most), None] if reverse else [most]
    model, log, done = cfg.model, [], 0
    for n, steps_left in enumerate(rounds, 1):
        out = Path(cfg.out) / f"round{n}"
        part = replace(cfg, model=model, out=str(out), rollouts=cfg.rollouts // len(rounds))
        starts = problems
        if steps_left:
            starts = [expert_prefixes(p, e, extend, steps_left) for p, e in zip(problems, parts, strict=True)]
        if steps_left and reverse:
            part = replace(part, val_samples=1, eval_every=cfg.rollouts,     # at the start and the end
                           max_turns=min(cfg.max_turns, steps_left + 1))
        validated = starts[1] if reverse else problems[1]
        srl.train(part, starts[0], validated, make_prompt, reward, extend if reverse else limited(extend))
        model, lines = str(out / "model"), read_jsonl(out / "log.jsonl")
        for line in lines:
            if steps_left and reverse and "val_exact" in line:      # not of whole problems
                line["begun_exact"] = line.pop("val_exact")
            log.append({**line, "round": n, "done": done + line["done"]})
        done += lines[-1]["done"]
    write_jsonl(Path(cfg.out) / "log.jsonl", log)
    with atomic_write(Path(cfg.out) / "model") as temporary:
        shutil.copytree(model, temporary)


if __name__ == "__main__":
    run_main(main)
