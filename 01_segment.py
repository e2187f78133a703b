"""Stage 1: cut expert solutions into steps, one training example per step.

A solution of N numbered steps becomes one example per target step k: the context is the problem and steps
1..k-1, the target is step k (paper section 4.1). In an agent's trajectory each call is a step (section 5).
The split into training and validation is by problem, never by step: steps of one solution share numbers.
The paper's targets are steps 1..N-1 (--targets literal); here all N are: a policy has to learn to finish too.

in:      problems with solutions (and thoughts, one per step) or trajectories; a local file or a hub data set
out:     runs/data/train.jsonl, runs/data/val.jsonl: one example a line
command: python 01_segment.py                 # the miniature's 1,260 problems, 2 s
         python 01_segment.py --dataset simplescaling/s1K-1.1 --solution_column deepseek_attempt
         python 01_segment.py --dataset SWE-bench/SWE-smith-trajectories --trajectories --out runs/swe
"""
import random
import re
from collections import Counter, namedtuple
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from engine.agents.trajectories import read_trajectories, turns_of
from engine.files import InputError, run_main, shorten, write_jsonl
from engine.flags import parse_flags
from engine.problems import COLUMNS, last_boxed, read_problems
from engine.rewriter import ask_endpoint, ask_local, ask_once

HERE = Path(__file__).parent


@dataclass
class Config:
    data: Path = HERE / "miniature/expert.jsonl"    # .jsonl, .json or .parquet with problem and solution
    dataset: str | None = None              # a data set of the hub instead, e.g. simplescaling/s1K-1.1
    split: str = "train"                    # of the hub data set
    id_column: str | None = None            # default: id, unique_id or idx, else the row number
    problem_column: str | None = None       # default: problem or question
    solution_column: str | None = None      # default: solution
    answer_column: str | None = None        # default: answer, else the last box of the solution
    out: Path = HERE / "runs/data"          # folder of train.jsonl and val.jsonl
    # examples
    targets: Literal["all", "literal"] = "all"      # steps 1..N, or the paper's 1..N-1 (literal)
    title_hint: bool = False                # name the next step's title in the prompt (the paper's footnote)
    num_val: int | None = None              # problems held out (default and paper: 60; trajectories: 30)
    seed: int = 0                           # of the split
    rewrite: str | None = None              # model (folder or hub name) that rewrites solutions without steps
    rewrite_url: str | None = None          # its OpenAI-compatible server, e.g. http://localhost:8000/v1
    # agents
    trajectories: bool = False              # the data are of SWE-smith or SWE-agent; also .traj files
    context_pairs: int = 2                  # calls with their observations in the context (paper: 2)
    max_observation: int = 8000             # characters; the middle of a longer observation is left out


# 1. Cut: solutions, read by engine/problems.py, into numbered steps
# A line that begins a step: number and title. Not "2. plain item" (a list inside a step), "1.1", "**12** of"
STEP_START = re.compile(r"""^[ ]{0,3} (?:
      \#{1,6}[^\S\n]*(?:\*\*)?                                              # ### Step 1: Title, ### 1. Title
        (?: (?i:step)[^\S\n]+(\d{1,3})(?!\d|\.\d) | \(?(\d{1,3})[.:)](?!\d) )
    | (?:[-*+][^\S\n]+)? [*_]{1,3}(?i:step)[^\S\n]+(\d{1,3})(?!\d|\.\d)     # **Step 1: Title**, - **Step 1**
    | \*\*\(?(\d{1,3})[.:)](?!\d)                                           # **1. Title**
    | \(?(\d{1,3})[.)][^\S\n]*\*\*(?=\S)                                    # 1. **Title**
    | (?i:step)[^\S\n]+(\d{1,3})                                            # Step 1: text, Step 1 (Title):
        (?: [^\S\n]*(?:\([^()\n]+\)[^\S\n]*)?[.:](?!\d) | [^\S\n]+[-–—][^\S\n] | [^\S\n]*$ )
    )""", re.MULTILINE | re.VERBOSE)
# No step begins in fenced code or in a formula
BLOCK = re.compile(r"""^[ \t]*(```|~~~)[^\n`]*\n.*?^[ \t]*\1
    | \$\$ (?:(?!\n\s*\n).)*? \$\$          # without an empty line: an unpaired $$ ends there
    | (?<!\\)\\\[ (?:(?!\\\[).)*? \\\]
    | (?<!\\)\\\( (?:(?!\\\(|\n\s*\n).)*? \\\)
    | \\begin\{([a-z]+\*?)\} (?:(?!\\begin\{\2\}).)*? \\end\{\2\}""", re.MULTILINE | re.VERBOSE | re.DOTALL)
LIST_ITEM = re.compile(r"^( *)(?:[-*+]|\d{1,3}[.)])[ \t]", re.MULTILINE)
Title = namedtuple("Title", "offset indent form number")    # form: what precedes the number, "**"


def numbered_titles(solution):
    """The numbered titles outside code and formulas; none where the first one is an item of a nested list."""
    text = BLOCK.sub(lambda block: "x" * len(block[0]), solution)           # offsets stay the same
    titles = []
    for match in STEP_START.finditer(text):
        prefix = solution[match.start():match.start(match.lastindex)]
        indent = len(prefix) - len(prefix.lstrip(" "))
        titles.append(Title(match.start(), indent, prefix.strip().lower(), int(match[match.lastindex])))
    margin = min((title.indent for title in titles), default=0)
    titles = [title for title in titles if title.indent <= margin + 1]      # " 9." and "10." may be aligned
    items = LIST_ITEM.finditer(text, 0, titles[0].offset) if titles else ()
    return [] if any(len(item[1]) < margin for item in items) else titles


def outermost_form(by_form):
    """The form whose titles contain the others: a heading, else the first, unless **Step 1** follows it."""
    forms = [form for form in by_form if len(by_form[form]) > 1] or list(by_form)
    outermost = min(forms, key=lambda form: form.count("#") or 7)           # 7: below every heading
    end = by_form[outermost][-1].offset
    later = [form for form in forms if "step" in form and by_form[form][0].offset > end]
    return outermost if "#" in outermost or "step" in outermost or not later else later[0]


def step_starts(solution):
    """Offsets where the steps of a solution begin. Raises ValueError where they are not numbered 1..N, N > 1.

    Steps may hold numbered titles of another form (### Step 3 with 1. **Case one**): the outermost counts.
    A list of the same form that restarts at 1 may be part (b) or a list of cases: it is refused.
    """
    titles, by_form = numbered_titles(solution), {}
    if not titles:
        raise ValueError("no numbered steps with a title")
    for title in titles:
        by_form.setdefault(title.form, []).append(title)
    outer = by_form[outermost_form(by_form)]
    inner = [title.number for title in titles if title.form != outer[0].form]
    numbers = [title.number for title in titles]
    one_list = numbers == list(range(1, len(numbers) + 1))                  # as in 1. **A**, then **2. B**
    if inner and not one_list and outer[0].number == 1 and (inner[0] == 1 or max(inner) <= len(outer)):
        titles, numbers = outer, [title.number for title in outer]
    if len(numbers) < 2:
        raise ValueError("fewer than two steps")
    if numbers[0] != 1:
        raise ValueError("numbering does not begin at 1")
    if numbers != list(range(1, len(numbers) + 1)):
        raise ValueError("numbering restarts" if len(set(numbers)) < len(numbers) else "numbering skips")
    return [title.offset for title in titles]


def split_steps(solution):
    """The steps of a solution, each an action (paper section 4.1). Raises ValueError as step_starts does.

    They join back to the solution from the first step on. The text before it, the preamble, belongs to the
    context; the conclusion with the boxed answer to the last step, which is the one that finishes.
    """
    starts = step_starts(solution)
    return [solution[begin:end] for begin, end in pairwise([*starts, len(solution)])]


def step_title(step):
    """The title of a step without its number and marks; "" where it has none ("**Step 1:** text")."""
    start = STEP_START.match(step)
    line = step[start.end():].split("\n", 1)[0] if start else ""
    title, has_title, _ = line.partition("**")
    if start and start[0].lstrip().startswith("#"):
        title, has_title = line.replace("**", ""), True
    return title.strip(" \t:.-–—*_") if has_title else ""


# Solutions without numbered steps: a language model rewrites them (the paper's v3; our wording)
REWRITE = (
    "Rewrite the solution below as a list of steps. Begin every step on a new line with its number and a "
    "short title, like this: 1. **Title** and then what is done in this step. Number the steps 1, 2, 3, .. "
    "Keep every formula and every argument, add none, and keep the final answer in \\boxed{}. Write nothing "
    "before the first step and nothing after the last.\n\nProblem:\n%s\n\nSolution:\n%s"
)


def has_steps(solution):
    with suppress(ValueError):
        return bool(step_starts(solution))


def rewrite(records, ask, path):
    """Replace solutions without steps by rewritten ones that have steps and, if any, the same boxed answer.

    ask: prompt -> completion, stored in the file `path`. Bare results stay: their steps would be invented.
    """
    ask, outcomes = ask_once(ask, path), Counter()
    for record in records:
        original = record["solution"]
        if has_steps(original):
            continue
        if len(original.split()) < 20:
            outcomes["too short to rewrite"] += 1
            continue
        rewritten = ask(record["id"], original, REWRITE % (record["problem"], original))
        answer, boxed = ("".join((last_boxed(text) or "").split()) for text in (original, rewritten))
        if not has_steps(rewritten):
            outcomes["rejected, no numbered steps"] += 1
        elif answer not in ("", boxed):
            outcomes["rejected, another answer"] += 1
        else:
            outcomes["rewritten"] += 1
            record["solution"] = rewritten
    return outcomes


# 2. Examples: one per step
def without_rule(step):
    """A step as an action: without white space at its ends and without rules (---) before the next step."""
    lines = step.strip().split("\n")
    while len(lines) > 1 and not lines[-1].strip("-*_ \t\r"):
        lines.pop()
    return "\n".join(lines).rstrip()


def step_examples(problem, steps, preamble="", targets="all", title_hint=False):
    """One example per target step k: problem, partial solution (preamble, steps 1..k-1), action (step k).

    targets: "all" for k = 1..N, "literal" for the paper's k = 1..N-1. title_hint: with the title of step k.
    """
    examples, N = [], len(steps)
    for k, step in enumerate(steps if targets == "all" else steps[:-1], 1):
        partial, action = preamble + "".join(steps[:k - 1]), without_rule(step)
        title = {"title": step_title(action)} if title_hint else {}
        examples.append({"problem": problem, "partial": partial, "action": action, "k": k, "n": N, **title})
    return examples


def segment(records, targets="all", title_hint=False):
    """(examples, reasons): examples of all solutions, with thoughts if given (for SFT); reasons of drops."""
    examples, reasons = [], Counter()
    for record in records:
        try:
            steps = split_steps(record["solution"])
        except ValueError as error:
            reasons[str(error)] += 1
            continue
        preamble = record["solution"].removesuffix("".join(steps))
        thoughts = [f for f in ("thoughts", "student_thoughts") if len(record.get(f) or ()) == len(steps)]
        for example in step_examples(record["problem"], steps, preamble, targets, title_hint):
            extra = {field: record[field][example["k"] - 1] for field in thoughts}
            examples.append({"id": str(record["id"]), **example, "answer": str(record["answer"]), **extra})
    return examples, reasons


def trajectory_examples(row, pairs=2, max_observation=8000):
    """One example per call of a trajectory. Raises ValueError where it has none or did not resolve its task.

    The context: the issue and the last `pairs` calls with observations of up to max_observation characters.
    """
    system, issue, turns = turns_of(row)
    repository = {name: row[name] for name in ("files", "visible", "hidden") if name in row}    # for 03
    examples, context = [], []
    for k, (call, observation) in enumerate(turns, 1):
        examples.append({"id": row["id"], "problem": issue, "system": system, "partial": "",
                         "context": context[max(0, len(context) - 2 * pairs):], "action": call,
                         "k": k, "n": len(turns), "answer": "", **repository})
        context.append({"role": "assistant", "content": call})
        context.append({"role": "user", "content": shorten(observation, max_observation)})
    return examples


def segment_trajectories(rows, pairs=2, max_observation=8000):
    """(examples, reasons) of all trajectories, as `segment` for solutions."""
    examples, reasons = [], Counter()
    for row in rows:
        try:
            examples += trajectory_examples(row, pairs, max_observation)
        except ValueError as error:
            reasons[str(error)] += 1
    return examples, reasons


# 3. Split: by problem
def split_by_problem(examples, num_val, seed):
    """(train, val): all steps of `num_val` problems, drawn with `seed`, are held out."""
    ids = sorted({example["id"] for example in examples})
    if not 0 < num_val < len(ids):
        raise InputError(f"--num_val {num_val}: there are {len(ids)} problems; hold out 1 or more, not all")
    held_out = set(random.Random(seed).sample(ids, num_val))
    train = [example for example in examples if example["id"] not in held_out]
    return train, [example for example in examples if example["id"] in held_out]


# 4. Report: what to know before training
def report(records, examples, reasons):
    """Print what was dropped and why, the number of steps, and three examples."""
    dropped = sum(reasons.values())
    why = "".join(f"; {n} {reason}" for reason, n in reasons.most_common())
    print(f"{len(records)} problems read, {len(records) - dropped} kept, {dropped} dropped{why}")
    if unanswered := {e["id"] for e in examples if not e["answer"] and "context" not in e}:
        print(f"{len(unanswered)} of them have no answer: SRL needs none, RLVR leaves them out")
    lengths = Counter({e["id"]: e["n"] for e in examples}.values())
    print("steps per solution: " + ", ".join(f"{n} steps: {count}" for n, count in sorted(lengths.items())))
    for e in random.Random(0).sample(examples, min(3, len(examples))):
        print(f"\n--- problem {e['id']}, step {e['k']} of {e['n']}\ncontext:  {shorten(e['problem'], 1500)}")
        turns = [f"{m['role']}: {shorten(m['content'], 300)}\n" for m in e.get("context", ())]
        for line in (e["partial"] + "".join(turns)).splitlines():
            print(f"          {line}")
        print(f"target:   {e['action']}")


def main():
    cfg = parse_flags(Config(), __doc__.split("\n")[0])
    if cfg.rewrite_url and not cfg.rewrite:
        raise InputError("--rewrite_url: name the model with --rewrite")
    source, split = (cfg.dataset, cfg.split) if cfg.dataset else (cfg.data, None)
    if cfg.trajectories:
        records, _ = read_trajectories(source, split)
        examples, reasons = segment_trajectories(records, cfg.context_pairs, cfg.max_observation)
        fault = "no trajectory has calls, such as <function=..>, a tool call or a command in a message"
    else:
        columns = {field: getattr(cfg, f"{field}_column") for field in COLUMNS}
        records = read_problems(source, split, columns, need=("problem", "solution"))
        if cfg.rewrite:
            ask = ask_endpoint(cfg.rewrite_url, cfg.rewrite) if cfg.rewrite_url else ask_local(cfg.rewrite)
            outcomes = rewrite(records, ask, cfg.out / f"rewritten_{Path(cfg.rewrite).name}.jsonl")
            print("rewriting: " + "; ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common()))
        examples, reasons = segment(records, cfg.targets, cfg.title_hint)
        fault = "no solution has numbered steps such as '1. **Title** action' on lines of their own"
    if not examples:
        raise InputError(f"{source}: {fault} ({dict(reasons)})")
    num_val = (30 if cfg.trajectories else 60) if cfg.num_val is None else cfg.num_val
    train, val = split_by_problem(examples, num_val, cfg.seed)
    write_jsonl(cfg.out / "train.jsonl", train)
    write_jsonl(cfg.out / "val.jsonl", val)
    report(records, examples, reasons)                      # after the files: a closed pipe costs no data
    print(f"\n{cfg.out}: {len(train)} examples in train.jsonl, {len(val)} of {num_val} problems in val.jsonl")


if __name__ == "__main__":
    run_main(main)
