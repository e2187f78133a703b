"""The program of the grader, started by grader.py; without it no answer is graded. Imports nothing of ours.

A process of its own: math-verify's time limits fail outside the main thread, and no limit inside Python stops
a power of big integers or a crash of the stack. The kernel does.
"""
import functools
import itertools
import json
import os
import re
import resource
import signal
import sys
import unicodedata
from contextlib import suppress

import math_verify.grader
from sympy import Float, Number, Pow, Rational, factorial

# the box alone: math-verify's other patterns take the last fraction out of a formula that they cannot read
BOX_ONLY = [math_verify.LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)]
EXACT_POWER = 100_000       # larger exponents and factorials are not computed exactly
DIGITS = 1_000              # to which irrational numbers are compared


# 1. Spellings that math-verify cannot read, or reads as something else
def pattern(text):
    """A verbose pattern, in which some words are short for others."""
    for word, part in PARTS.items():
        text = text.replace(word, part)
    return re.compile(text, re.VERBOSE)


PARTS = {
    "TEXT": r"\\(?:mbox|operatorname|(?:text|math)(?:bf|rm|it|sf|tt|up|normal|superscript)?)\s*",
    "ORDINAL": "(?:st|nd|rd|th)",
    "LETTER": "[A-HJK]",
    "SPACE": r"(?:\\[ ,;:!]|~|\\(?:q?quad|enspace)(?![a-z])|\\hspace\*?\{[^}]*\}|[\s:.])",
    "NUMBER": r"(\d+\.\d+|\d{1,3}(?:,\d{3})+|[\dA-Fa-f]{2,}|\d)",
    "OPERATOR": r"\\(?:cup|cap|times|cdot|div|pm|wedge|vee|le|ge|ne|in|to|sub|sup|equiv|R|r|imp)[a-z]*"}
FONT = pattern(r"""\\(?:[fh]?box|boxed|boldsymbol|pmb|bm|underline|emph)\s*(?=\{)
    | \\(?:framebox|bbox)\s*(?:\[[^\]]*\])*\s*(?=\{) | \\f?colorbox(?:\{\w+\}){1,2}(?=\{)
    | TEXT(?=\{[\dA-F]+\s*_) | \\[bB]igg?[lrm]?(?![a-z])                  # \mathbf{243_5}, \bigl(1,2\bigr)
    | \\(?:text)?color\s*\{\w+\} | \\(?:bf|it|bfseries)(?![A-Za-z])\s*""")
SCIENTIFIC = pattern(r"(?<![\w.])(\d+\.?\d*|\.\d+)[eE]([+-]?\d+)(?![\w.])")
SUBSCRIPT = pattern("[₀-₉]+")
TEXT_NUMBER = pattern(r"(?<![\d\s])TEXT\{\s*(\d+)\s*\.?\s*\}")
DOTS = pattern(r"\\dot\s*\{?(\d)\}?\s*(\d*)\s*\\dot\s*\{?(\d)\}?")                   # 0.\dot{1}2\dot{3}
REPEATING = pattern(r"""(\d{1,3}(?:,\d{3})+|\d*)(?:\{,\}|\.)(?:\s|\\,)*(\d*)(\{)?
    ((?:\\(?:overline|bar|dot)\s*(?:\{\s*\d+\s*\}|\d))+ | (?<=\d\.)\(\d+\))(?(3)\})(?:_10|_\{10\})?""")
PERCENT = pattern(r"(\d*)\s*\\[dt]?frac\s*(?:\{(\d+)\}|(\d))\s*(?:\{(\d+)\}|(\d))(?=\s*\\?%)")
PERCENTAGE = pattern(r"^(-?[1-9][\d,]*(?:\.\d+)?)\s*\\?%$")
ORDINALS = pattern(r"""(?:(?<=\d)|(?<=\d\}))(?:\{\})?\s*\^?\s*(?: \{\s*TEXT\{\s*ORDINAL\s*\}\s*\}
    | (?:TEXT)?\{\s*(?:TEXT|\\rm\s*)?ORDINAL\s*\} | ORDINAL(?!\w) )""")
CHOICE = pattern(r"""                                                       # \textbf{(C)}\ 5, or C alone
    (?: (?:TEXT)?\{\s*\(?(LETTER)\s*[).:]+\s*\}SPACE* | \(?(LETTER)[).:]+(?:SPACE+|$) | (LETTER)$ )
    (?!SPACE*(?: [+*/^_=<>,;&|!'] | \\& | -\s | OPERATOR | (?:TEXT\{?\s*)?(?:\(?LETTER\)|(?:and|or)\b) ))""")
CHOICE_LAST = pattern(r"([^A-Z]*\d\}*)SPACE*TEXT\{\s*\((LETTER)\)\s*\}$")                # 5\ \textbf{(C)}
LETTER_IN_FONT = pattern(r"^(\(?)TEXT\{\s*(LETTER)\s*\}(?=[).:])")                      # (\text{C})
ANSWER_IS = pattern(r"""^((?:TEXT)?\{?\s*)(?:[Tt]he\s)?(?:[Aa]nswer|[Oo]ption|[Cc]hoice)(?:\sis)?:?\s+
    (?=\(?LETTER\b)""")
BASE = pattern(r"""(?<![\w.\\^}])(?: (?:\\left)?\(NUMBER(?:\\right)?\)
    | (?:TEXT|\\overline)?\{NUMBER\} | NUMBER )
    \s*_\s*(?: \{((?:[^{}]|\{[^{}]*\})*)\} | (TEXT\{[^{}]*\}|\d+|[a-z](?![a-z])) )""")
IN_BASE = pattern(r"NUMBER[\s,(-]*(?:in\s)?[\s(]*base[\s-]*(\w+)[\s).]*")               # 52 in base 8
BASES = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
BASES = {word: str(base) for base, word in enumerate(BASES, 2)} | {
    "binary": "2", "ternary": "3", "octal": "8", "decimal": "10", "hexadecimal": "16"}
PRIMES = re.compile(r"(?<=[A-Za-z}])'+")


def is_group(text):
    """Whether a text is one pair of braces and what is inside."""
    depths = [*itertools.accumulate((character == "{") - (character == "}") for character in text)]
    return text.startswith("{") and 0 in depths and depths.index(0) == len(text) - 1


def fraction_of_decimal(match):
    r"""0.1\overline{6} as \frac{15}{90}."""
    whole, fixed = match[1].replace(",", ""), match[2]
    repeated = re.sub(r"\D", "", match[4])
    numerator = int(whole + fixed + repeated) - int(whole + fixed or 0)
    return rf"\frac{{{numerator}}}{{{'9' * len(repeated)}{'0' * len(fixed)}}}"


def decimal_of_fraction(match):
    r"""66\frac{2}{3}, before a percent sign, where no fraction may be, in 20 decimals."""
    whole, denominator = int(match[1] or 0), int(match[4] or match[5])
    digits = (whole * denominator + int(match[2] or match[3])) * 10**20 // denominator
    return f"{digits // 10**20}.{digits % 10**20:020}"


def spelled(text):
    """An answer in spellings that math-verify reads."""
    text = re.sub(r"~|(?<!\\)\\ ", " ", text)
    text = re.sub(r"^[\s=]+|(?:[\s,;]|(?<!\.)\.|(?<!\\)\\[,;:!]?)+(?=\$?$)", "", text)              # 5.
    text = SUBSCRIPT.sub(lambda match: f"_{{{unicodedata.normalize('NFKC', match[0])}}}", text)
    text = TEXT_NUMBER.sub(r"\1", text.replace("°", "^\\circ"))
    text = re.sub(r"(?<=\d)\{([.,])\}(?=\d)|(?<=\d)\{(\.)\}(?=\\)", r"\1\2", text)           # 1{,}234
    text = DOTS.sub(r"\\overline{\1\2\3}", text)
    plain = FONT.sub("", text).strip()
    if plain != text and is_group(plain):
        plain = plain[1:-1]
    text = PERCENT.sub(decimal_of_fraction, ORDINALS.sub("", REPEATING.sub(fraction_of_decimal, plain)))
    words = re.sub(PARTS["TEXT"] + r"|[{}~$_]|\\[ ,;]", " ", text).split()
    if found := IN_BASE.fullmatch(" ".join(words)):
        return f"{found[1]}_{{{found[2]}}}"
    text = re.sub(r"(?<=\d)\.(?=\s*(?:$|[/*+)-]))", "", text)                               # 5. and 1./3
    return re.sub(r"(?<=\d)\\[,;:!](?=\d{3})", "", text)                                    # 12\,345


def readings(text):
    r"""(letter of a choice or None, the rest or None): \textbf{(C)}\ 5 is C and 5."""
    text = LETTER_IN_FONT.sub(r"\1\2", ANSWER_IS.sub(r"\1", spelled(text)))
    if found := CHOICE_LAST.match(text):
        return found[2], found[1]
    inside = re.sub("^" + PARTS["TEXT"], "", text)
    for form in (text, inside[1:-1] if is_group(inside) else ""):
        if found := CHOICE.match(form):
            return found[1] or found[2] or found[3], form[found.end():].strip() or None
    return None, text


def number_in_base(keep, match):
    r"""52_8 as 42 times a symbol for base 8, or as 52 where the other answer leaves its base out."""
    digits = (match[1] or match[2] or match[3]).replace(",", "")
    base = re.sub(PARTS["TEXT"] + r"|\\rm\b|[\s{}()~\\!,;:]|base", "", match[4] or match[5])
    base = re.sub(r"[-+*/.]", lambda sign: str(ord(sign[0])), BASES.get(base, base))       # b+1: b431
    value = None
    with suppress(ValueError):
        value = int(digits, int(base))
    has_letters = not re.fullmatch(r"[\d.]+", digits)
    hexadecimal = digits.isupper() or base == "16" and re.search(r"\d", digits)
    if not base.isalnum() or value is None and (has_letters or match[1]) or has_letters and not hexadecimal:
        return match[0]                                     # a product with an index: 2a_{11}
    return rf"{digits if value is None else value} \cdot \Upsilon_{{{base}}}" if keep else digits


@functools.lru_cache(maxsize=4096)                              # one gold serves a whole group of completions
def parse(text, as_scientific=False, with_bases=False):
    """math-verify's reading of an answer: [formula, text], [text] or []."""
    if as_scientific:
        text = SCIENTIFIC.sub(r"\1 \\times 10^{\2}", text)
    text = BASE.sub(functools.partial(number_in_base, with_bases), text)
    return math_verify.parse(f"\\boxed{{{text}}}", BOX_ONLY, parsing_timeout=None)


# 2. Equality
library_numeric_eq = math_verify.grader.sympy_numeric_eq


def numeric_eq(gold, answer, rounding, precision):
    """math-verify's test of two formulas or parts of answers; but to it, 1e-10 is 0, and 1 + 2^-60 is 1."""
    numbers = [x for x in (gold, answer) if getattr(x, "is_number", False)]
    if len(numbers) == 2 and any(x.has(Float) for x in numbers):
        expected, given = gold.evalf(12), answer.evalf(12)
        if expected.is_real and given.is_real and 0 < abs(expected) < 1e-3:     # it rounds to 6 decimals
            return bool(abs(given - expected) <= 5e-4 * abs(expected))
    equal = library_numeric_eq(gold, answer, rounding, precision)
    if equal and any(math_verify.grader.is_atomic_or_pct_atomic(x, Number) for x in (gold, answer)):
        return True                                         # compared exactly, or a rounded decimal
    with suppress(ArithmeticError, AttributeError, TypeError, ValueError):
        if equal:
            return not differ(gold, answer)
        # sums of cosines and roots that sympy cannot simplify: equal in DIGITS digits
        exact = len(numbers) == 2 and not any(x.has(Float) for x in numbers)
        return exact and all(abs(x.evalf(5)) < 1e9 for x in numbers) and not differ(gold, answer)
    return equal


math_verify.grader.sympy_numeric_eq = numeric_eq            # sets, tuples, matrices and equations call it


def differ(gold, answer):
    """Whether formulas without decimals are different: exactly, or within DIGITS significant digits."""
    difference = gold - answer
    if difference.has(Float):
        return False
    symbols = sorted(difference.free_symbols, key=str)
    difference = difference.subs({symbol: Rational(2 * i + 7, 5) for i, symbol in enumerate(symbols)})
    sizes = [power.exp for power in difference.atoms(Pow)] + [f.args[0] for f in difference.atoms(factorial)]
    if all(float(abs(size.evalf(2))) <= EXACT_POWER for size in sizes if size.is_number):
        difference = difference.doit()
        if difference.is_Rational:
            return difference != 0
    parts = difference.evalf(2, maxn=DIGITS).as_real_imag()
    return any(part.is_Float and part != 0 and part._prec > 1 for part in parts)    # 1: no digit is certain


def grade(answer, gold):
    """'right', 'wrong' or 'unparsable', of an answer that is no choice."""
    ambiguous = SCIENTIFIC.search(gold) or SCIENTIFIC.search(answer)
    # a base that one of them leaves out is the one that the problem asks for
    with_bases = bool(BASE.search(gold) and BASE.search(answer))
    has_formula = False
    for as_scientific in (False, True) if ambiguous else (False,):  # 1e-5 or e - 5: one right reading will do
        expected, given = (parse(text, as_scientific, with_bases) for text in (gold, answer))
        has_formula = has_formula or any(not isinstance(x, str) for x in given)
        with suppress(ArithmeticError, TypeError, ValueError):      # what sympy raises for zoo and nan
            if math_verify.verify(expected, given, timeout_seconds=None):
                return "right"
    return "wrong" if has_formula else "unparsable"


def verdict(answer, gold):
    """'right', 'wrong' or 'unparsable'; without an answer 'readable' or 'unparsable', of the gold."""
    gold_letter, gold_value = readings(gold)
    if answer is None:
        return "readable" if parse(gold_value or gold_letter) else "unparsable"
    letter, value = readings(answer)
    if letter and gold_letter and letter != gold_letter:
        return "wrong"
    if letter and gold_letter and not (value and gold_value):
        return "right"
    given, expected = value or letter, gold_value or gold_letter
    if given != expected and PRIMES.sub("", given) == PRIMES.sub("", expected):
        return "wrong"                                      # math-verify drops the primes of B' and C''
    result = grade(given, expected)
    if result != "right" and bool(PERCENTAGE.match(given)) != bool(PERCENTAGE.match(expected)):
        return grade(PERCENTAGE.sub(r"\1", given), PERCENTAGE.sub(r"\1", expected))     # 12.5\% for 12.5
    return result


# 3. The program
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
        signal.setitimer(signal.ITIMER_PROF, seconds)       # no handler: the kernel ends the worker
        try:
            reply = verdict(answer, gold)
        except Exception:                                   # a model wrote it: the parser may raise anything
            reply = "unparsable"
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(reply), file=replies, flush=True)
    os._exit(0)
