"""Stage 1: cut expert solutions into steps, one training example per step.

A solution of N numbered steps becomes one example per target step k: the context is the problem and steps
1..k-1, the target is step k (paper section 4.1). In an agent's trajectory each call is a step (section 5).
The split into training and validation is by problem, never by step: steps of one solution share numbers.
The paper's targets are steps 1..N-1 (--targets literal); here all N are: a policy has to learn to finish too.

in:      problems with solutions (and thoughts, one per step) or trajectories; a local file or a hub data set
out:     runs/data/train.jsonl, val.jsonl: one example a line; dropped.jsonl: what was dropped and why
command: python 01_segment.py                 # the miniature's 1,260 problems, 1 s
         python 01_segment.py --data my.json --out runs/my_data
         of s1K: engine/README.md; of agents' trajectories: miniature/README.md
"""
import random
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from engine.agents.trajectories import read_trajectories, turns_of
from engine.chat import extend_solution
from engine.files import InputError, run_main, shorten, write_jsonl
from engine.flags import parse_flags
from engine.grader import compare
from engine.problems import COLUMNS, check_answers, find_titles, last_boxed, mask, problem_ids, read_problems
from engine.rewriter import ask_endpoint, ask_local, rewrite_solutions

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
    num_val: int | None = None              # problems held out (paper: 60; trajectories: 30; at most a tenth)
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
PLAIN_START = re.compile(r"^ {0,3}\(?(\d{1,3})[.)][^\S\n]+(?=\S)", re.MULTILINE)     # 1. text, at the top
# The heading of a part, whose steps are numbered from 1 again: ### Part (b), **Minimum:**, (b) text
PART = re.compile(r"""^\ {0,3}( \#{1,6} | \*\*(?=[^\n]*\*\*\W*$|\(?[a-z]\)) | part\b
    | (?=\(?(?:[a-z]|[ivx]+)\)) )[^\n]*""", re.M | re.I | re.X)
SOLUTIONS = "(?:solution|method|approach|proof|attempt|strategy|way)"
OTHER_SOLUTION = re.compile(rf"(?i)\b{SOLUTIONS}(?:\W*(?:[2-9]|ii+|iv)| b)\b|alternative|another"
                            rf"|\b(?:second|third|fourth|other|2nd|3rd)\ {SOLUTIONS}\b")
# What a list before the steps may hold: 1. **Condition 1:**, or a list below "the following conditions:"
GIVEN = r"""(?:(?:the|all|given|known|problem|first|second|two|three)\ )*
    (?:condition|given|constraint|requirement|clue|assumption)s?"""
CONDITION = re.compile(rf"""[\W_]*(?:step\ )?\d+[\W_]*
    (?:{GIVEN}\b | (?:property|rule|fact|hypothesis)\W+(?:\d|(?:[a-z]|[ivx]+)\b))""", re.I | re.X)
CONDITIONS = re.compile(rf"""(?:(?:^[#*_\ ]*|\bfollowing\ )
    (?:{GIVEN}|(?:given|known)\ (?:information|data)|facts|properties)|problem\ states\ that|\bmust\ satisfy)
    (?:\ (?:are|hold|must\ hold|are\ satisfied))?(?:\ as\ follows)?[:*_\s]*\Z""", re.I | re.M | re.X)


def plain_titles(solution):
    """The numbers of a solution that begins with 1. text, each with a text of two words or more."""
    titles = find_titles(solution, PLAIN_START)
    ends = [*(title.offset for title in titles), len(solution)]
    short = any(len(solution[begin:end].split()) < 3 for begin, end in pairwise(ends))
    alone = re.fullmatch(r"[#*\s]*(?:solution|(?:part\s*)?\(?\w\)?)?[:*\s]*", solution[:ends[0]], re.I)
    return titles if alone and not short else []


def outermost_form(by_form):
    """The form whose titles contain the others: a heading, else the first, unless **Step 1** follows it."""
    forms = [form for form in by_form if len(by_form[form]) > 1] or list(by_form)
    outermost = min(forms, key=lambda form: form.count("#") or 7)           # 7: below every heading
    end = by_form[outermost][-1].offset
    later = [form for form in forms if "step" in form and by_form[form][0].offset > end]
    return outermost if "#" in outermost or "step" in outermost or not later else later[0]


def outermost_titles(solution):
    """The titles that may begin steps: of the outermost form, or of all forms where they are one list."""
    titles, by_form = find_titles(solution, STEP_START), {}
    titles = titles if len(titles) > 1 else plain_titles(solution) or titles
    if not titles:
        raise ValueError("no numbered steps with a title")
    for title in titles:
        by_form.setdefault(title.form, []).append(title)
    outer = by_form[outermost_form(by_form)]
    inner = [title.number for title in titles if title.form != outer[0].form]
    one_list = all(title.number == k for k, title in enumerate(titles, 1))   # as in 1. **A**, then **2. B**
    outer_counts = outer[0].number == 1 and inner and (inner[0] == 1 or max(inner) <= len(outer))
    return outer if outer_counts and not one_list else titles


def part_starts(solution, lists):
    """Where lists of titles begin, from the second on at the heading of a part, else they may be cases."""
    text, begin, headings = mask(solution), 0, []
    for titles in lists:                        # the last heading of each form before a list
        headings.append({part[1].lower(): part for part in PART.finditer(text, begin, titles[0].offset)})
        begin = text.find("\n", titles[-1].offset)
    forms = sorted(set.intersection(*map(set, headings)), key=lambda form: form.count("#") or 7)
    parts = [heading[forms[0]] for heading in headings[1:]] if forms else []
    if len(parts) < len(lists) - 1 or any(OTHER_SOLUTION.search(part[0]) for part in parts):
        raise ValueError("numbering restarts")
    return [lists[0][0].offset, *(part.start() for part in parts)]


def split_steps(solution):
    """The steps of a solution, each an action (paper section 4.1). ValueError if not numbered 1..N, N > 1.

    They join back to the solution from the first step on. The text before it, the preamble, belongs to the
    context; the conclusion with the boxed answer to the last step, which is the one that finishes.
    Steps may hold numbered titles of another form (### Step 3 with 1. **Case one**): the outermost counts.
    Each part of a solution may count from 1 again. A list of the problem's conditions has no steps.
    """
    titles = outermost_titles(solution)
    numbers = [title.number for title in titles]
    if len(numbers) > 1 and numbers[0] != 1:
        raise ValueError("numbering does not begin at 1")
    begins = [index for index, number in enumerate(numbers) if number == 1]
    lists = [titles[begin:end] for begin, end in pairwise([*begins, len(titles)])]
    if any(title.number != k for titles in lists for k, title in enumerate(titles, 1)):
        raise ValueError("numbering restarts" if len(set(numbers)) < len(numbers) else "numbering skips")
    step_lists = [titles for titles in lists if not CONDITIONS.search(solution[:titles[0].offset].rstrip())
                  and not (len(titles) > 1 and all(CONDITION.match(solution, t.offset) for t in titles))]
    if lists and not step_lists:
        raise ValueError("a list of conditions, not of steps")
    if sum(map(len, step_lists)) < 2:
        raise ValueError("fewer than two steps")
    later = [title.offset for titles in step_lists for title in titles[1:]]
    starts = sorted([*part_starts(solution, step_lists), *later])
    return [solution[begin:end] for begin, end in pairwise([*starts, len(solution)])]


def step_title(step):
    """The title of a step without its number and marks; "" where it has none ("**Step 1:** text")."""
    start = STEP_START.match(step) or (PART.match(step) and STEP_START.search(step))
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
        return bool(split_steps(solution))


# 2. Examples: one per step
def without_rule(step):
    """A step as an action: without white space at its ends and without rules (---) before the next step."""
    lines = step.strip().split("\n")
    while len(lines) > 1 and not lines[-1].strip("-*_ \t\r"):
        lines.pop()
    return "\n".join(lines).rstrip()


def step_examples(problem, steps, preamble="", targets="all", title_hint=False):
    """One example per target step k: problem, partial solution (preamble, steps 1..k-1), action (step k)."""
    examples, N, partial = [], len(steps), preamble
    for k, step in enumerate(steps if targets == "all" else steps[:-1], 1):     # literal: the paper's
        action = without_rule(step)
        title = {"title": step_title(action)} if title_hint else {}
        examples.append({"problem": problem, "partial": partial, "action": action, "k": k, "n": N, **title})
        partial = extend_solution(partial, action)
    return examples


def solution_examples(record, targets="all", title_hint=False):
    """The examples of a solution, with thoughts if given, one for each step (for SFT)."""
    steps = split_steps(record["solution"])
    preamble = record["solution"].removesuffix("".join(steps))
    thoughts = [f for f in ("thoughts", "student_thoughts") if len(record.get(f) or ()) == len(steps)]
    examples = []
    for example in step_examples(record["problem"], steps, preamble, targets, title_hint):
        extra = {field: record[field][example["k"] - 1] for field in thoughts}
        examples.append({"id": str(record["id"]), **example, "answer": str(record["answer"]), **extra})
    return examples


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


def segment(records, make=solution_examples, **options):
    """(examples of make(record) for all records, dropped: id and reason where it raises ValueError)."""
    examples, dropped = [], []
    for record in records:
        try:
            examples += make(record, **options)
        except ValueError as error:
            first = str(record.get("solution") or "").strip().partition("\n")[0]
            dropped.append({"id": record["id"], "reason": str(error), "solution": first})
    return examples, dropped


# 3. Split: by problem
def split_by_problem(examples, num_val, seed):
    """(train, val): all steps of `num_val` problems, drawn with `seed`, are held out."""
    problem = problem_ids(examples)
    problems = sorted(set(problem.values()))
    if not 0 < num_val < len(problems) and (num_val, len(problems)) != (0, 1):  # a single one is trained on
        fix = f"hold out 1 to {len(problems) - 1}, or " * (len(problems) > 1) + "leave the flag out"
        raise InputError(f"--num_val {num_val}: there are {len(problems)} problems; {fix}")
    held_out = set(random.Random(seed).sample(problems, num_val))
    train = [example for example in examples if problem[example["id"]] not in held_out]
    val = [example for example in examples if problem[example["id"]] in held_out]
    return train, val or [{**e, "id": f"{e['id']}, validation"} for e in train]     # of a single problem


# 4. Report: what to know before training
def report(records, examples, reasons):
    """Print what was dropped and why, the number of steps, and three examples."""
    rows, dropped, problems = len(records), sum(reasons.values()), len(set(problem_ids(records).values()))
    why = "".join(f"; {n} {r}" for r, n in reasons.most_common()) + ("; see dropped.jsonl" if dropped else "")
    of = f" rows of {problems}" if problems < rows else ""
    print(f"{rows}{of} problems read, {rows - dropped} kept, {dropped} dropped{why}")
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


def read(cfg, source):
    """(records, examples, dropped, notes) of the solutions or trajectories that the flags name."""
    split = cfg.split if cfg.dataset else None
    if cfg.trajectories:
        records = read_trajectories(source, split)
        examples, dropped = segment(records, trajectory_examples, pairs=cfg.context_pairs,
                                    max_observation=cfg.max_observation)
        cut_off = sum(row.get("cut_off", 0) for row in records)
        note = f"{cut_off} calls without an end, or inside thoughts, are left out"
        return records, examples, dropped, [note] if cut_off else []
    columns = {field: getattr(cfg, f"{field}_column") for field in COLUMNS}
    records = read_problems(source, split, columns, need=("problem", "solution"))
    if cfg.rewrite:
        ask = ask_endpoint(cfg.rewrite_url, cfg.rewrite) if cfg.rewrite_url else ask_local(cfg.rewrite)
        path = cfg.out / f"rewritten_{Path(cfg.rewrite).name}.jsonl"
        outcomes = rewrite_solutions(records, ask, path, REWRITE, has_steps, last_boxed)
        print("rewriting: " + "; ".join(f"{n} {outcome}" for outcome, n in outcomes.most_common()))
    notes = check_answers(records, compare, source)
    return records, *segment(records, targets=cfg.targets, title_hint=cfg.title_hint), notes


def main():
    cfg = parse_flags(Config(), __doc__.split("\n")[0])
    if cfg.rewrite_url and not cfg.rewrite:
        raise InputError("--rewrite_url: name the model with --rewrite")
    source = cfg.dataset or cfg.data
    records, examples, dropped, notes = read(cfg, source)
    if not examples:
        fault = ("no trajectory has calls, such as <function=..> or a command" if cfg.trajectories else
                 "no solution has numbered steps such as '1. **Title** action' on lines of their own")
        raise InputError(f"{source}: {fault} (problem {dropped[0]['id']}: {dropped[0]['reason']})")
    num_val = cfg.num_val
    if num_val is None:     # at most a tenth; of a single problem none: it validates itself
        problems = len(set(problem_ids(examples).values()))
        num_val = min(30 if cfg.trajectories else 60, max(problems // 10, min(1, problems - 1)))
    train, val = split_by_problem(examples, num_val, cfg.seed)
    for name, part in (("train", train), ("val", val), ("dropped", dropped)):
        write_jsonl(cfg.out / f"{name}.jsonl", part)
    report(records, examples, Counter(d["reason"] for d in dropped))     # last: a closed pipe costs no data
    print("\n", *(f"{note}\n" for note in notes), sep="", end="")
    print(f"{cfg.out}: {len(train)} examples in train.jsonl, {len(val)} of {num_val} problems in val.jsonl")


if __name__ == "__main__":
    run_main(main)
