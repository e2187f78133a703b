"""Stage 1: cut expert solutions into steps, one training example per step.

A solution of N numbered steps becomes one example per target step k: the context is the problem and steps 1..k-1, the target is step k
(paper section 4.1). The split into training and validation is by problem, never by step: the steps of one solution share their numbers.

Differences from the paper: the paper's targets are steps 1..N-1, so the last step is never one (--targets literal). The default here is all N,
because a policy that is asked for one step at a time has to learn to finish too.

in:      JSONL, one problem a line: id, problem, solution (numbered steps), answer; optional thoughts, one per step
out:     runs/data/train.jsonl, runs/data/val.jsonl: one example a line
command: python 01_segment.py                 # the miniature's 560 problems, 2 s
"""
import argparse
import json
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent


class InputError(ValueError):
    """Input that the user has to mend; ends a script in one line and exit code 2."""


def run_main(main):
    """Run a script's main(): an InputError ends in one clear line and exit code 2, not in a traceback."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


# 1. Files: complete or absent
def read_jsonl(path, fields=()):
    """The records of a JSONL file; every one has the named `fields`. Raises InputError with file, line and what is expected."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); expected JSONL, one object a line") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a JSONL file, one object a line") from None
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            why = getattr(error, "msg", "nested too deeply")
            raise InputError(f"{path}, line {number}: not JSON ({why}); expected one object a line with {', '.join(fields) or 'fields'}") from None
        missing = [f for f in fields if not isinstance(record, dict) or record.get(f) in (None, "")]
        if missing:
            raise InputError(f"{path}, line {number}: no {' and no '.join(missing)}; expected an object with {', '.join(fields)}")
        records.append(record)
    if not records:
        raise InputError(f"{path}: empty; expected a JSONL file, one object a line with {', '.join(fields) or 'fields'}")
    return records


def write_text(path, text):
    """Write to a temporary name, then rename: the file is complete or absent."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def write_jsonl(path, records):
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


# 2. Steps
# "1. **Title**", "**1. Title**", "### 1. Title" and "### Step 1: Title", at the beginning of a line
STEP_START = re.compile(r"^(?:(\d+)\.[ \t]+\*\*|\*\*(\d+)\.[ \t]|#{1,6}[ \t]+(?:\*\*)?(?:[Ss]tep[ \t]+)?(\d+)[.:])", re.MULTILINE)


def split_steps(solution):
    """Cut a numbered solution into its steps (paper section 4.1: each complete numbered step is one action).

    The steps are exact slices that join back to the solution from the first step on; what stands before it is the preamble.
    Raises ValueError with the reason where the solution does not have the form: fewer than two steps, numbers that do not run 1, 2, 3, ..
    """
    starts = [(m.start(), int(next(g for g in m.groups() if g))) for m in STEP_START.finditer(solution)]
    if not starts:
        raise ValueError("no numbered steps with a title")
    numbers = [n for _, n in starts]
    if len(numbers) < 2:
        raise ValueError("fewer than two steps")
    if numbers != list(range(1, len(numbers) + 1)):
        raise ValueError("numbering restarts" if len(set(numbers)) < len(numbers) else "numbering skips")
    ends = [begin for begin, _ in starts[1:]] + [len(solution)]
    return [solution[begin:end] for (begin, _), end in zip(starts, ends, strict=True)]


def step_examples(problem, steps, preamble="", targets="all"):
    """One example per target step: the problem, the partial solution (preamble and steps 1..k-1) and the action (step k).

    targets: "all" for k = 1..N, "literal" for the paper's k = 1..N-1.
    """
    last = len(steps) if targets == "all" else len(steps) - 1
    return [{"problem": problem, "partial": preamble + "".join(steps[:k - 1]), "action": steps[k - 1].strip(), "k": k, "n": len(steps)}
            for k in range(1, last + 1)]


def split_by_problem(examples, num_val, seed):
    """(train, val): all steps of `num_val` problems, drawn with `seed`, are held out."""
    ids = sorted({example["id"] for example in examples})
    if not 0 < num_val < len(ids):
        raise InputError(f"--num_val {num_val}: there are {len(ids)} problems; hold out at least 1 and fewer than all")
    held_out = set(random.Random(seed).sample(ids, num_val))
    return [e for e in examples if e["id"] not in held_out], [e for e in examples if e["id"] in held_out]


# 3. All solutions of a file
def segment(records, targets="all"):
    """(examples, reasons): the examples of every record, and how many records were dropped for which reason."""
    examples, reasons = [], Counter()
    for record in records:
        try:
            steps = split_steps(record["solution"])
        except ValueError as error:
            reasons[str(error)] += 1
            continue
        preamble = record["solution"][:len(record["solution"]) - sum(map(len, steps))]
        for example in step_examples(record["problem"], steps, preamble, targets):
            # thoughts, where the data has them, serve SFT alone: SRL never reads them
            thoughts = {name: record[name][example["k"] - 1] for name in ("thoughts", "student_thoughts") if len(record.get(name, ())) == len(steps)}
            examples.append({"id": str(record["id"]), **example, "answer": str(record["answer"]), **thoughts})
    return examples, reasons


def report(records, examples, reasons):
    """What a user wants to know before training on it."""
    kept = {e["id"]: e["n"] for e in examples}
    print(f"{len(records)} problems read, {len(kept)} kept, {len(records) - len(kept)} dropped" + "".join(f"; {n} {why}" for why, n in reasons.most_common()))
    sizes = Counter(kept.values())
    print("steps per solution: " + ", ".join(f"{n} steps: {count}" for n, count in sorted(sizes.items())))
    for example in random.Random(0).sample(examples, min(3, len(examples))):
        print(f"\n--- problem {example['id']}, step {example['k']} of {example['n']}\ncontext:  {example['problem']}")
        print("".join(f"          {line}\n" for line in example["partial"].splitlines()) + f"target:   {example['action']}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=HERE / "miniature/expert.jsonl", help="JSONL: id, problem, solution, answer")
    parser.add_argument("--out", type=Path, default=HERE / "runs/data")
    parser.add_argument("--targets", choices=("all", "literal"), default="all", help="literal: the paper's 1..N-1")
    parser.add_argument("--num_val", type=int, default=60, help="problems held out for validation (paper: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    args = parser.parse_args()

    records = read_jsonl(args.data, ("id", "problem", "solution", "answer"))
    ids = Counter(str(record["id"]) for record in records)
    if repeated := [name for name, n in ids.items() if n > 1]:
        raise InputError(f"{args.data}: id {repeated[0]!r} stands {ids[repeated[0]]} times; ids must differ, the split is by problem")
    examples, reasons = segment(records, args.targets)
    if not examples:
        raise InputError(f"{args.data}: no solution has numbered steps ({dict(reasons)}); expected '1. **Title** action' on lines of their own")
    train, val = split_by_problem(examples, args.num_val, args.seed)
    report(records, examples, reasons)
    for name, part in (("train", train), ("val", val)):
        write_jsonl(args.out / f"{name}.jsonl", part)
        print(f"{'' if name == 'val' else chr(10)}{args.out / name}.jsonl: {len(part)} examples of {len({e['id'] for e in part})} problems")


if __name__ == "__main__":
    run_main(main)
