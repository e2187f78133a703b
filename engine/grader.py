"""Grading with math-verify, in a process that can be killed: without this file no answer is graded."""
import itertools
import re
import sys
from functools import lru_cache
from pathlib import Path

from .files import InputError
from .problems import last_boxed, says_no_answer
from .process import Helper, start_process

PROGRAM = Path(__file__).with_name("grader_process.py")
GRADE_SECONDS = 5           # of processor time, so a busy machine changes no verdict. Real answers take ms
LONGEST_ANSWER = 2_000      # characters. The longest of the five benchmarks has 197
DEEPEST_ANSWER = 10         # nested brackets. The benchmarks have 4; the parser's time doubles with each


def start_grader():
    """A new grader process. Raises InputError where it does not start."""
    process, first_line = start_process([sys.executable, "-P", str(PROGRAM)])   # -P: no import from here
    if not first_line:
        raise InputError("the grader does not start; python -c 'import math_verify' says why, "
                         "pip install -r requirements.txt may fix it")
    return process


GRADER = Helper(start_grader)


def ask_grader(answer, gold):
    """The verdict, 'unparsable' where there is none in GRADE_SECONDS; for answer None 'readable' or not."""
    return GRADER.ask([answer, gold, GRADE_SECONDS])


def too_complex(answer):
    """Whether an answer is longer or more deeply nested than any real one."""
    depths = itertools.accumulate((c in "([{") - (c in ")]}") for c in answer)
    return len(answer) > LONGEST_ANSWER or max(depths, default=0) > DEEPEST_ANSWER


def normalized(answer):
    """The text of an answer in one spelling: E_{1}, E_{2} is E_1,E_2."""
    answer = re.sub(r"\{(\w)\}", r"\1", answer)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)|\\(?:left|right)(?![a-z])", "", answer)


def parse_gold(answer, name=""):
    """Check a reference answer. Raises InputError, beginning with `name`, where it cannot be read.

    Every completion would be wrong with such a reference.
    """
    answer = str(answer).strip()
    inside_box = last_boxed(f"\\boxed{{{answer}}}") == answer
    if not answer:
        raise InputError(f"{name}no answer; give a number or a LaTeX expression, or remove the problem")
    if not inside_box or too_complex(answer) or ask_grader(None, answer) != "readable":
        raise InputError(f"{name}answer {answer[:80]!r}: math-verify cannot read it; "
                         "give a number or a LaTeX expression")


@lru_cache(maxsize=1 << 16)
def compare(answer, gold):
    """'right', 'wrong' or 'unparsable': an answer, without its box, against the reference."""
    if too_complex(answer):
        return "unparsable"
    if says_no_answer(gold):                    # "proof", "unknown": no answer is right
        return "wrong"
    return "right" if normalized(answer) == normalized(gold) else ask_grader(answer, gold)


def require_answers(problems, source):
    """The problems of a benchmark. Raises InputError where one has no answer that can be read."""
    if len(problems[0]) > 4 and not any(p["answer"] for p in problems):     # other columns than these four
        found = ", ".join(name for name in problems[0] if problems[0][name] != "")
        raise InputError(f"{source}: no answer in any problem, only {found}; name that column answer")
    for problem in problems:
        parse_gold(problem["answer"], f"{source}, problem {problem['id']}: ")
    return problems


def with_answers(problems):
    """The problems whose answer can be graded; prints the others. Raises InputError where none is left."""
    answered, without = [], 0
    for p in problems:
        try:
            parse_gold(p["answer"], f"problem {p['id']}: ")
            answered.append(p)
        except InputError as error:
            without += not str(p["answer"]).strip()                     # proofs, for instance
            if str(p["answer"]).strip():
                print(f"left out: {error}")
    if without:
        print(f"{without} of {len(problems)} problems have no answer and are left out")
    if not answered:
        raise InputError(f"none of {len(problems)} problems has an answer that can be read; "
                         "name its column with --answer_column of 01_segment.py")
    return answered
