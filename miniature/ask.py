"""Try models on a problem of your own: their steps side by side, each with its reward where the miniature's expert
can go on from there.

A problem is an equation such as 4(3x - 7) + 25 = 5x + 46, the id of a benchmark's problem, or any other text, then
without the expert; with --mode agent the id of a task. Decoding is greedy. The expert's step is what it would do
with the policy's equation, right or wrong so far.

in:      models; problems from the command line, or a line each from the keyboard
out:     the screen
command: python 04_eval.py --ask "Solve 4(3x - 7) + 25 = 5x + 46"      # base and every model in runs/
         python 04_eval.py --ask="-x + 2 = 8"                          # where the first character is a minus
         python 04_eval.py --ask                                       # problems from the keyboard
         python 04_eval.py --mode agent --ask modules-003
"""
import os
import re
import shutil
import sys
import textwrap
from importlib import import_module
from itertools import zip_longest
from pathlib import Path

from engine.files import InputError, read_jsonl
from engine.policy import load_policy
from engine.preflight import prompt_problems
from engine.problems import last_boxed

HERE = Path(__file__).parent
sys.path.append(str(HERE))              # 04_eval.py imports this file, which finds make.py here
make, rlvr = import_module("make"), import_module("03_rlvr_train")
srl = rlvr.srl
TERM = r"[+-]?(?:\d{0,9}\([^()]+\)|\d{0,9}x|\d{1,9})"
COLUMN = 44                             # characters: a narrower column would break most steps


# 1. Problems
def parse_side(text):
    """The terms of a side, see make.py, from a text without spaces; None where it has others than 4, 3x, 2(3x + 4)."""
    if not re.fullmatch(rf"{TERM}(?:(?=[+-]){TERM})*", text):
        return None
    terms = []
    for sign, digits, unit in re.findall(r"(?=.)([+-]?)(\d*)(x|\([^()]+\))?", text):
        n = int(digits or 1) * (-1 if sign == "-" else 1)
        if unit.startswith("("):
            inner = parse_side(unit[1:-1])
            if sorted(term[0] for term in inner or ()) != ["c", "x"]:
                return None
            terms.append(("p", n, make.total(inner, "x"), make.total(inner, "c")))
        else:
            terms.append((unit or "c", n))
    return make.without_zeros(terms)


def parse_equation(text):
    """(left, right) of an equation of the world, with or without "Solve"; None where the text is no such equation."""
    text = re.sub(r"^\s*solve\b|[\s*]", "", text, flags=re.IGNORECASE)
    sides = [parse_side(side) for side in text.strip(":.").replace("\u2212", "-").lower().split("=")]
    return tuple(sides) if len(sides) == 2 and None not in sides else None


def equation_of(example):
    """The equation that the last step of an example ends with, before its first step the problem's, or None."""
    if not example["partial"] or parse_equation(example["problem"]) is None:
        return parse_equation(example["problem"])
    return parse_equation(example["partial"].rstrip().split("\n")[-1].rpartition("**")[2])


def expert_steps(equation):
    """The expert's steps from an equation on; none where a move is not legal, such as a division with a rest."""
    def legal_title(state):
        title = make.expert_title(state)
        return title if make.apply_move(state, title) else None
    steps, *_ = make.play(equation, legal_title)
    return steps if steps and last_boxed(steps[-1]) else []


def problem_of(text, mode):
    """The problem with this id of a benchmark, else the text's equation, spaced as in training, else the text.

    Raises InputError for an unknown id of an agent's task.
    """
    folder = HERE / ("agents/benchmarks" if mode == "agent" else "benchmarks")
    for path in sorted(folder.glob("*.jsonl")):
        for problem in read_jsonl(path, ("id", "problem")):
            if problem["id"] == text.strip():
                return problem
    if mode == "agent":
        raise InputError(f"--ask {text}: no task of {folder}; give the id of one, such as modules-003")
    equation = parse_equation(text)
    if not equation:
        return {"id": "", "problem": text.strip(), "answer": ""}
    answer = last_boxed("".join(expert_steps(equation))) or ""
    return {"id": "", "problem": f"Solve {make.equation_text(equation)}", "answer": answer}


def keyboard():
    """Problems from the keyboard or a pipe, a line each, until its end (Ctrl-D)."""
    while True:
        try:
            line = input("\nproblem: " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line


# 2. An attempt as lines: (text, dim)
def turn_lines(text, equation, k):
    """The lines of a completion: its thoughts, its step, and the step's reward where the expert can go on."""
    thoughts, action = srl.parse_completion(text) or ("", text)
    lines = [(f"<think>{thoughts}</think>", True)] if thoughts else []
    lines.append((action, False))
    if equation and (steps := expert_steps(equation)):
        step = f"{k}{steps[0].removeprefix('1')}"
        reward = srl.srl_reward(text, {"action": step})
        lines.append((f"   reward {reward:.3f}: {f'expert {step}' if reward < 1 else 'as the expert'}", False))
    elif equation:
        lines.append(("   no reward: the expert cannot go on from here", False))
    return lines


def attempt_lines(name, problem, turns, extend):
    """The lines of an attempt: whose it is and what came of it, then every completion, and what a call returned."""
    verdict = ""
    if "files" in problem:
        verdict = f"{rlvr.judge_calls(turns, problem)[0]}, "
    elif problem["answer"]:
        verdict = f"{rlvr.judge(turns[-1], problem['answer'])}, "
    lines, example = [(f"{name}: {verdict}{len(turns)} completion{'s' if len(turns) > 1 else ''}", False)], problem
    for k, text in enumerate(turns, 1):
        # without extend a completion is no step, but a whole solution
        lines += turn_lines(text, equation_of(example) if extend else None, k)
        longer = extend(example, text) if extend else None
        if longer and "context" in longer:
            lines.append((longer["context"][-1]["content"], True))
        example = longer or example
    return lines


# 3. The screen
def wrapped(lines, width):
    """The same lines, none longer than `width`; what a terminal would obey, such as ESC, is a question mark."""
    parts = [(part, dim) for text, dim in lines for part in text.split("\n")]
    clean = [("".join(c if c.isprintable() else "?" for c in part), dim) for part, dim in parts]
    return [(line, dim) for part, dim in clean for line in textwrap.wrap(part, width, subsequent_indent="   ") or [""]]


def side_by_side(attempts, width, colour):
    """The text of attempts beside each other where `width` columns have the room, else one below the other."""
    num = min(len(attempts), max(1, (width + 2) // (COLUMN + 2)))
    each, rows = max(20, (width + 2) // num - 2), []
    for first in range(0, len(attempts), num):
        columns = [wrapped(lines, each) for lines in attempts[first:first + num]]
        for cells in zip_longest(*columns, fillvalue=("", False)):
            padded = [(text.ljust(each), dim) for text, dim in cells]
            row = "  ".join(f"\033[2m{text}\033[0m" if dim and colour else text for text, dim in padded)
            rows.append(row.rstrip())
        rows.append("")
    return "\n".join(rows)


def ask(cfg, models):
    """Print how models {name: folder} solve the problems of cfg.ask, or of the keyboard where it names none.

    Raises InputError where there is no model, or a prompt does not fit one.
    """
    if not models:
        raise InputError("--ask: no model; train one, or name one with --models NAME=FOLDER")
    make_prompt, extend, *_ = rlvr.MODES[cfg.mode]
    make_prompt = srl.with_prompt_file(make_prompt, cfg.prompt_file)
    loaded = {name: load_policy(folder, srl.Config.device, cfg.dtype, cfg.share_prompts)
              for name, folder in models.items()}
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def show(text):
        example, attempts = {"partial": "", **problem_of(text, cfg.mode)}, []
        for name, (policy, tokenizer) in loaded.items():
            if wrong := prompt_problems(name, policy, tokenizer, [example], make_prompt, cfg):
                raise InputError(wrong[0])
            (episode,), = srl.run_episodes(policy, tokenizer, [example], 1, make_prompt, extend, cfg, 0)
            attempts.append(attempt_lines(name, example, [turn.text for turn in episode.turns], extend))
        answer = f"   (answer: {example['answer']})" if example.get("answer") else ""
        print(f"\n{example['problem']}{answer}\n")
        print(side_by_side(attempts, shutil.get_terminal_size().columns, colour))

    given = [text for text in cfg.ask if text.strip()]
    for text in given or keyboard():
        try:
            show(text)
        except InputError as error:
            if given:
                raise
            print(f"error: {error}")                # a mistyped line does not end the session
