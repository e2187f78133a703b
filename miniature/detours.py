"""Examples off the expert's path: some of its steps, one random legal move, then the expert goes on.

SRL's contexts are the expert's own steps (paper section 4.1). A policy that takes a valid step of another kind is
from then on in contexts that no example has. Here each training problem gets one more solution with such a step, so
the expert has to be one that can go on from any state: a teacher, not a set of written solutions.

in:      examples of the equations: train.jsonl and val.jsonl of 01_segment.py
out:     the same with the new examples added to train.jsonl; the random move is context, never a target
command: python miniature/detours.py --data runs/data --out runs/data_detours      # 2 s; --worded: in free wording
"""
import argparse
import random
import re
import sys
from importlib import import_module
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
from ask import expert_steps, parse_equation  # noqa: E402
from make import apply_move, expert_title, in_words, play, random_title, step_text  # noqa: E402

from engine.files import InputError, read_jsonl, run_main, write_jsonl  # noqa: E402


def solution_with_detour(equation, rng):
    """(steps of a solution, index of the random move in them), the first that the expert can finish."""
    expert, _, states = play(equation, expert_title)
    while True:
        i = rng.randrange(len(states))
        title = random_title(states[i], rng)
        new, _ = apply_move(states[i], title)
        rest = [] if new is None or title == expert_title(states[i]) else expert_steps(new)
        if rest:
            steps = [*expert[:i], f"0. {step_text(title, states[i], new)}", *rest]
            return [re.sub(r"^\d+", str(k), step) for k, step in enumerate(steps, 1)], i


def detour_examples(problems, seed, worded=False):
    """The examples after the random move, of one solution for each (id, problem, answer)."""
    solution_examples, examples = import_module("01_segment").solution_examples, []
    for name, problem, answer in problems:
        rng = random.Random(f"{seed}, {name}")
        if (equation := parse_equation(problem)) is None:
            raise InputError(f"problem {name}: {problem!r} is no equation of the miniature")
        steps, i = solution_with_detour(equation, rng)
        record = {"id": f"{name}, detour", "problem": problem, "answer": answer,
                  "solution": "\n".join(in_words(steps, rng, worded))}
        examples += [e for e in solution_examples(record) if e["k"] > i + 1]
    return examples


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worded", action="store_true", help="steps in free wording")
    args = parser.parse_args()
    train = read_jsonl(args.data / "train.jsonl")
    problems = {e["id"]: (e["id"], e["problem"], e["answer"]) for e in train}
    added = detour_examples(problems.values(), args.seed, args.worded)
    write_jsonl(args.out / "train.jsonl", [*train, *added])
    write_jsonl(args.out / "val.jsonl", read_jsonl(args.data / "val.jsonl"))
    print(f"{args.out}: {len(train)} examples and {len(added)} after a detour")


if __name__ == "__main__":
    run_main(main)
