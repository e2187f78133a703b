"""The program of the grader, started by grader.py; without it no answer is graded. Imports nothing of ours.

A process of its own: math-verify's time limits fail outside the main thread, and no limit inside Python stops
a power of big integers or a crash of the stack. The kernel does.
"""
import functools
import json
import os
import re
import resource
import signal
import sys
from contextlib import suppress

import math_verify

SCIENTIFIC = re.compile(r"(?<![\w.])(\d+\.?\d*|\.\d+)[eE]([+-]?\d+)(?![\w.])")
# the box alone: math-verify's other patterns take the last fraction out of a formula that they cannot read
BOX_ONLY = [math_verify.LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)]


@functools.lru_cache(maxsize=4096)                              # one gold serves a whole group of completions
def parse(text, as_scientific):
    """math-verify's reading of an answer: [formula, text], [text] or []."""
    if as_scientific:
        text = SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    text = re.sub(r"(?<=\d)\.(?=\s*(?:$|[/*+)-]))", "", text.replace("°", "^\\circ"))      # 5. and 1./3
    text = re.sub(r"(?<=\d)\\[,;:!](?=\d{3})", "", text)                                   # 12\,345
    return math_verify.parse(f"\\boxed{{{text}}}", BOX_ONLY, parsing_timeout=None)


def equal(gold, answer):
    numbers = [x[0] for x in (gold, answer) if x and getattr(x[0], "is_number", False) and x[0].is_real]
    if len(numbers) == 2:
        expected, given = (number.evalf(12) for number in numbers)
        if 0 < abs(expected) < 1e-3:                        # math-verify rounds to 6 decimals: 1e-10 is 0
            return abs(given - expected) <= 5e-4 * abs(expected)
    return math_verify.verify(gold, answer, timeout_seconds=None)


def verdict(answer, gold):
    """'right', 'wrong' or 'unparsable'; without an answer 'readable' or 'unparsable', of the gold."""
    if answer is None:
        return "readable" if parse(gold, False) else "unparsable"
    ambiguous = SCIENTIFIC.search(gold) or SCIENTIFIC.search(answer)
    has_formula = False
    for as_scientific in (False, True) if ambiguous else (False,):  # 1e-5 or e - 5: one right reading will do
        expected, given = parse(gold, as_scientific), parse(answer, as_scientific)
        has_formula = has_formula or any(not isinstance(x, str) for x in given)
        with suppress(ArithmeticError, TypeError, ValueError):      # what sympy raises for zoo and nan
            if equal(expected, given):
                return "right"
    return "wrong" if has_formula else "unparsable"


if __name__ == "__main__":
    with suppress(ValueError, OSError):                     # not on every system
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))      # bytes: a huge power fails in time
    replies, sys.stdout = sys.stdout, sys.stderr            # whatever else prints, replies are verdicts alone
    verdict("\\frac{1}{2}", "x")                            # loads the parser, which takes a second
    print(json.dumps("ready"), file=replies, flush=True)
    while (worker := os.fork()) != 0:
        if os.waitpid(worker, 0)[1] == 0:                   # the worker read the whole input
            sys.exit()
        print(json.dumps("unparsable"), file=replies, flush=True)       # it died of its answer: fork another
    for line in sys.stdin:
        answer, gold, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)       # without a handler the kernel ends the worker
        try:
            reply = verdict(answer, gold)
        except Exception:                                   # a model wrote it: the parser may raise anything
            reply = "unparsable"
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(reply), file=replies, flush=True)
    os._exit(0)
