r"""Problems: reading them, the answer in the last \boxed{} of a text, the numbered titles of a solution."""
import ast
import re
import unicodedata
from collections import namedtuple
from contextlib import suppress
from difflib import get_close_matches

from .files import InputError, parse_json, read_rows

# names of each column in public data sets; the first that a row has
COLUMNS = {"id": ("id", "unique_id", "idx"), "problem": ("problem", "question"),
           "solution": ("solution",), "answer": ("answer",)}
# a box with braces or of a bare number, $formula$, fraction or letter, an escaped character (an escaped brace
# is no brace), a brace
BOX = re.compile(r"""\\+(?: (?:[Bb]oxed|fbox|framebox|bbox)(?:\s*\[[^][]*\])*
        | fcolorbox\s*\{[^{}]*\}\s*\{[^{}]*\} )
    (?: \s*\{ | \s*(-?\d(?:[\d.,/]*\d)?\b(?![\^_{\\]) | \$[^$\s](?:[^$\n]*[^$\s])?\$
        | -?\\[dt]?frac(?:\s*(?:\d|\{(?:[^{}]|\{[^{}]*\})*\})){2}(?!\s*[\^_])
        | (?<=\s)[A-Z]\b(?!\s*[\w^'=])) )
    | \\. | [{}]""", re.DOTALL | re.VERBOSE)


def last_boxed(text):
    r"""Content of the last complete \boxed{..} or \boxed 5, or None. One pass: a model may open a million."""
    opened, found, content = [], -1, None
    for token in BOX.finditer(text):
        if token[1]:
            found, content = token.end(), token[1]
        elif token[0].endswith("{") and token[0] != "\\{":
            opened.append(token.end() if len(token[0]) > 1 else -1)     # -1: a brace that opens no box
        elif token[0] == "}" and opened and (begin := opened.pop()) > found:
            found, content = begin, text[begin:token.start()]
    return content


# 1. Values that say "none"
NULL = re.compile(r"""\W*(?:none(?:type)?|null|nil|na[nt]|[-+]?inf(?:inity)?|pd\.na)\W*
    | <na> | \#n/a | [][(){}"'\s]*""", re.IGNORECASE | re.VERBOSE)     # brackets, quotes around nothing
# what public data have where there is no answer: proof, notfound, N/A, unknown, "-", after "the answer is"
ANSWER_IS = re.compile(r"(?:the\s)?(?:final[\s_])?(?:answer|solution|result)(?:\b|_)\s*(?:is\b|:)?\s*", re.I)
NO_ANSWER = re.compile(r"""(?:not|un|none|to\sbe)[\s_-]*(?:yet\s)?
        (?:found|available|applicable|provided|given|known|specified|stated|answered|determined|solved)
    | (?:no|missing|null)[\s_-]*(?:\w+[\s_-]+)?(?:answer|ground[\s_-]truth)
        (?:\s(?:is\s)?(?:found|given|available|provided))?
    | (?:(?:this\sis\sa\s|(?:see\s)?the\s|see\s)?proofs? | see\s(?:the\s)?(?:solution|explanation))
        (?:[\s_(-]+\w+){0,2}
    | (?:hence\s|to\sbe\s|the\sstatement\sis\s)?prove[nd]? | q\.?e\.?d | \\(?:black)?square
    | (?:n/?a|nan|none)\W+proof | (?:证明题?)?(?:见解析)? | 略 | 无(?:答案)? | not\sa\snumber
    | extraction\sfailed | n\s?[./]\s?a | tbd | todo | missing | omitted | (?-i:NA) | [-–—−_?/\s]+
    """, re.IGNORECASE | re.VERBOSE)
WRAPPING = re.compile(r"\\(?:(?:text|math)(?:\w\w)?|underline|boxed|[fm]box)\s*(?=\{)|(?<!\\)[{}$\"'`*#]")


def is_missing(value):
    """Whether a value is none: null, NaN, infinity, a list of such, or text that says so ("None")."""
    if isinstance(value, (list, tuple, dict)):
        return all(map(is_missing, value.values() if isinstance(value, dict) else value))
    text = str(value)
    return bool(NULL.fullmatch(text)) or not any(c.isprintable() and not c.isspace() for c in text)


def says_no_answer(text):
    r"""Whether a text holds words for "no answer", or nothing: proof, \text{N/A}, \boxed{}."""
    words = WRAPPING.sub("", unicodedata.normalize("NFKC", text)).strip(" \t\n.:!()[]<>")
    words = [words, words[found.end():] if (found := ANSWER_IS.match(words)) else words]
    return text.strip() not in ("<", ">") and any(is_missing(w) or NO_ANSWER.fullmatch(w) for w in words)


# 2. Values that are no text
NESTED = ("value", "answer", "final_answer", "ground_truth", "text", "content")     # {"value": "29"}
# the text of a list or an object, "['2', '3']"; not [2, 3], which is an interval
LITERAL = re.compile(r"""\s*(?:array\()?(\[[\s\[(]*(?:["'{]|np\.).*\]|\(\s*["'].*\)|\{\s*["'].*\})
    (?:,\s*dtype=[^\s)]+)?\)?\s*""", re.S | re.X)


def parse_literal(text, place, field):
    """The list or object that a text spells in JSON or Python; a problem that spells none is the text."""
    literal = (LITERAL.fullmatch(text) or [text, text])[1]
    numpy_list = re.sub(r"""(["'])\s+(?=["'])""", r"\1, ", literal)                      # ['2' '3']
    numpy_list = re.sub(r"\bnp\.\w+\(([^()]*)\)", r"\1", numpy_list)                      # [np.str_('2')]
    for parse, spelled in ((parse_json, literal), (ast.literal_eval, numpy_list)):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = parse(spelled)
            return value if isinstance(value, (list, tuple, dict)) else text
    if field != "answer" or literal.startswith("("):
        return text
    raise InputError(f"{place}: answer {text[:40]!r} is a list that cannot be read; write it as 2,3")


def text_of(value, place, field, nested=False):
    """A value as text, "" where it is missing; several answers become one of several parts, 2,3.

    A number keeps the text of its file. Raises InputError for an object or a list without one value.
    """
    if isinstance(value, str) and field in ("problem", "answer") and LITERAL.fullmatch(value):
        value = parse_literal(value, place, field)
    if is_missing(value):
        return ""
    if isinstance(value, dict):
        named = [value[name] for name in NESTED if not is_missing(value.get(name))]
        values = named[:1] or [part for part in value.values() if not is_missing(part)]
        if len(values) != 1:
            names = ", ".join(map(str, value))
            raise InputError(f"{place}: {field} is an object of {names}; write it as text, or as value alone")
        return text_of(values[0], place, field, nested)
    if isinstance(value, (list, tuple)):
        parts = [text_of(part, place, field, True) for part in value]
        parts = [part for part in parts if not says_no_answer(part)]
        if field == "answer":                           # \boxed{2}, 1,000 -> 2, 1000
            parts = [re.sub(r"(?<=\d),(?=\d{3}\b)", "", last_boxed(part) or part) for part in parts]
        joined = ",".join(parts)
        if len(parts) > 1 and (field != "answer" or "\n" in joined):
            raise InputError(f"{place}: {field} is a list of {len(parts)} texts; write a row for each")
        return f"({joined})" if nested and len(parts) > 1 else joined
    # 27.0 is 27, and Python's 6.02e+23 is 6.02e23
    return re.sub(r"(?<=\d)\.0+$|(?<=e)\+", "", str(value)) if isinstance(value, float) else str(value)


# 3. JSON reads "\frac" as a form feed and "rac"; so too \b, \t, \n and \r, and Python \a and \v
LETTER = dict(zip("\a\b\t\n\v\f\r", "abtnvfr", strict=True))
LOST = re.compile(r"""[\a\b\v\f]
    | \r(?=(?:ight\w*|ho|angle|m|ceil|floor|[vV]ert|times|arr|hd|brace|brack|oot|ule|aisebox|eals
        |estriction)(?![A-Za-z]))
    | \t(?=(?:ext(?:bf|it|rm|tt|sf|style|color|degree|superscript)?|imes|heta|anh|au|frac|binom
        |riangle\w*|ilde|herefore|hinspace|hickspace|hickapprox|woheadrightarrow)(?![A-Za-z]))
    | \n(?=(?:eq(?!\.?\s*\(\d)|ot|otin|abla|leq|geq|cong|su[bp]seteq|[rR]ightarrow|onumber|ewline|earrow
        |warrow|olimits)(?![A-Za-z]))
    """, re.VERBOSE)
# \nu, \ne, \ni, \tan, \to may be a line that begins with u, e, i, or a tab before a word
AMBIGUOUS = re.compile(r"""(?<!\$\$)(?<!\\\[)       # a line below the opening of a formula is one
    \n(?=(?:u|e(?!\.g)|i(?!\.e)|eg|mid|exists|parallel|less|gtr|sim|prec)(?![A-Za-z]))
    | (?<!\n)\t(?=(?:an|o|op|ag)(?![A-Za-z]))""", re.VERBOSE)
INTACT = re.compile(r"\\[bfnrt][a-z]")


def restore_commands(text, formula=False):
    r"""Give LaTeX commands the backslash and letter back that a JSON escape ate: form feed, "rac" is \frac.

    formula: the whole text is one. An ambiguous one is restored in a formula, where no command was kept.
    """
    def restore(match):
        before, after = text[:match.start()].rpartition("\n\n")[2], text[match.end():].partition("\n\n")[0]
        dollars = re.sub(r"\\.", "", before).replace("$$", "$")        # \$ is money, $$ opens one too
        opened = any(before.rfind(rf"\{a}") > before.rfind(rf"\{b}") for a, b in ("()", "[]"))
        in_formula = formula or opened or dollars.count("$") % 2 and "$" in after
        return "\\" + LETTER[match[0]] if in_formula else match[0]

    intact = INTACT.search(text)                        # this record kept its commands
    text = LOST.sub(lambda match: "\\" + LETTER[match[0]], text)
    return text if intact else AMBIGUOUS.sub(restore, text)


# 4. Thoughts, and tags around a solution
THOUGHT_TAG = re.compile(r"""(?:<\|?|\[(?=/?THINK)|◁)(?P<close>/|end_(?:of_)?|(?=\w+_end\b))?
        (?:(?:begin_of|start)_)?(?:\w+:|internal_|redacted_)?
        (?:think(?:ing)?|thoughts?|reason(?:ing)?|(?:thinking|reasoning)_process|reflection|scratchpad
        |analysis|cot|chain_of_thought|inner_monologue)(?:_start|_end)?\s*(?:\|?>|\]|▷)
    | <\|channel\|>analysis<\|message\|> | <\|im_start\|>think\n
    | (?P<final><\|channel\|>final<\|message\|> | <\|im_start\|>answer\n)""", re.I | re.VERBOSE)
TAG_IN_QUOTES = r"""(?<!`)`[^`\n]+`(?!`)|["']</?\w+>["']"""       # prose about a tag
TAG = re.compile(r"""</?(?:(?:final_)?(?:answer|solution)|output|response|explanation|rationale)>
    | <\|im_start\|>(?:assistant|answer)\n | <(?:start|end)_of_turn>(?:model\n)?
    | <\|start_header_id\|>\w*<\|end_header_id\|>\s* | \[\|(?:endofturn|assistant)\|\]
    | <[|｜][\w▁]{3,40}[|｜]> | \A\s*<s> | (?:(?:</s>|<eos>|<pad>)\s*)+\Z""", re.IGNORECASE | re.VERBOSE)
SOLUTION = re.compile(r"(?is)<(?:\|begin_of_)?solution\|?>(.*?)(?:<(?:/|\|end_of_)solution\|?>|\Z)")
ANSWER = re.compile(r"""(?:<(?:final_)?answer>\s*(?=[^\n]*\s*</) | ^\#{4}\ (?=[-$\d.,]+\s*\Z))     # GSM8K
    ([^\n]*?)\s*(?:</(?:final_)?answer> | \Z)""", re.I | re.M | re.X)


def without_thoughts(text, tags=THOUGHT_TAG):
    """A text without the thoughts in it: <think>..</think> and their kind. Thoughts may lack either tag.

    tags: a pattern that contains THOUGHT_TAG; other matches of it may hold tags, and are kept.
    """
    kept, position, thinking = "", 0, False
    while tag := (THOUGHT_TAG if thinking else tags).search(text, position):
        if tag["close"] is not None or tag["final"]:
            kept = kept if thinking else ""                 # the prompt began the thoughts
            thinking = False
        elif not thinking:
            thinking = bool(THOUGHT_TAG.fullmatch(tag[0]))
            kept += text[position:tag.start() if thinking else tag.end()]
        position = tag.end()
    return kept if thinking else kept + text[position:]


def without_tags(text):
    """The solution in a model's completion: no thoughts, and none of the tags around solution or answer."""
    text = without_thoughts(text)
    solutions = [inside for inside in SOLUTION.findall(text) if "\n" in inside.strip()]
    return TAG.sub("", solutions[-1] if solutions else text).lstrip("\r\n")


# 5. Records
def field_text(row, place, field, column, need, fix):
    """A field of a row as text, "" without one. Raises InputError where a needed column is missing."""
    names = (column,) if column else COLUMNS[field]
    if not set(names) & set(row):
        near = field == "answer" and get_close_matches(field, row, cutoff=0.8)          # anwser
        if not (column or field in need or near):
            return ""
        messages = {"messages", "history", "trajectory", "conversations"} & set(row)
        hint = "these look like --trajectories" if messages else fix.format(field)
        raise InputError(f"{place}: no {names[0]}; there are the columns {', '.join(row)}: {hint}")
    value = next((row[name] for name in names if not is_missing(row.get(name))), "")
    return restore_commands(text_of(value, place, field), field == "answer" and len(str(value)) < 200)


def answer_of(answer, solution):
    """The final answer: of the answer's text (its last box, if any), else in the last box of the solution."""
    text = without_tags(answer).strip()
    source, tagged = (text, answer) if text else (without_tags(solution), solution)
    boxed = last_boxed(source)
    if boxed is None:
        boxed = next(iter(ANSWER.findall(without_thoughts(tagged))[-1:]), "" if "\n" in text else text)
    return "" if says_no_answer(boxed) else boxed.strip()


def read_problems(source, split=None, columns=None, need=("problem",)):
    """Records with id, problem, solution, answer (strings) and the other columns of a file or hub data set.

    columns: {field: its column} where that is none of COLUMNS. Without an id: the row number; without an
    answer: the last box of the solution. A column of answers may hold solutions. Raises InputError where
    a field of `need` has no column, a problem is empty, or an id occurs twice.
    """
    fix = "rename the right one {}" if columns is None else "name the right one with --{}_column"
    records, first_place, columns = [], {}, columns or {}
    for number, (row, place) in enumerate(zip(*read_rows(source, split), strict=True)):
        if not isinstance(row, dict):
            raise InputError(f"{place}: no {' and no '.join(COLUMNS)}; expected an object with these")
        record = {field: field_text(row, place, field, columns.get(field), need, fix) for field in COLUMNS}
        if not record["problem"].strip():
            raise InputError(f"{place}: the problem is empty; write it, or remove the record")
        record["id"] = record["id"] or str(number)
        record["answer"] = answer_of(record["answer"], record["solution"])
        record["solution"] = without_tags(record["solution"])
        if first := first_place.get(record["id"]):
            raise InputError(f"{place}: id {record['id']!r} occurs twice, first in {first}; ids must differ")
        first_place[record["id"]] = place
        records.append({**row, **record})
    return records


def problem_ids(records):
    """{id: the first id of its problem}, of records with id and problem.

    The same text, whatever its white space, Unicode form, case, dollars, emphasis and end mark, is the same
    problem; so are records of one id.
    """
    def letters(text):
        text = unicodedata.normalize("NFKC", re.sub(r"\\[] ,;:!()[]|~|\$|\*\*|__", "", text))
        return "".join(c for c in text.lower() if c.isprintable() and not c.isspace()).rstrip(".?!。")
    pairs = {(r["id"], "\U0010ffff" + letters(r.get("problem", r["id"]))) for r in records}
    first, before = {name: name for pair in pairs for name in pair}, None       # a text is after every id
    while first != before:
        before = dict(first)
        for id, text in pairs:
            first[id] = first[text] = min(first[id], first[text])
    return {record["id"]: first[record["id"]] for record in records}


# 6. Numbered titles in a solution, outside fenced code and formulas
BLOCK = re.compile(r"""^[ \t]*(```|~~~)[^\n`]*\n.*?^[ \t]*\1
    | \$\$ (?:(?!\n\s*\n).)*? \$\$          # without an empty line: an unpaired $$ ends there
    | (?<!\\)\\\[ (?:(?!\\\[).)*? \\\]
    | (?<!\\)\\\( (?:(?!\\\(|\n\s*\n).)*? \\\)
    | \\begin\{([a-z]+\*?)\} (?:(?!\\begin\{\2\}).)*? \\end\{\2\}""", re.MULTILINE | re.VERBOSE | re.DOTALL)
LIST_ITEM = re.compile(r"^( *)(?:[-*+]|\d{1,3}[.)])[ \t]", re.MULTILINE)
Title = namedtuple("Title", "offset indent form number")    # form: what precedes the number, "**"


def mask(solution):
    return BLOCK.sub(lambda block: "x" * len(block[0]), solution)           # offsets stay the same


def find_titles(solution, pattern):
    """Titles that `pattern` finds, its last group the number; none where the first is in a nested list."""
    text, titles = mask(solution), []
    for match in pattern.finditer(text):
        prefix = solution[match.start():match.start(match.lastindex)]
        indent = len(prefix) - len(prefix.lstrip(" "))
        titles.append(Title(match.start(), indent, prefix.strip().lower(), int(match[match.lastindex])))
    margin = min((title.indent for title in titles), default=0)
    titles = [title for title in titles if title.indent <= margin + 1]      # " 9." and "10." may be aligned
    items = LIST_ITEM.finditer(text, 0, titles[0].offset) if titles else ()
    return [] if any(len(item[1]) < margin for item in items) else titles


# 7. Self-check: an answer against the box of its own solution
MEASURED = re.compile(r"""(?!.*\b(?:more|less|least|most|than|fewer|greater|or
        |dozen|hundred|thousand|[bmt]r?illion)\b)                                           # nor x > 5, 5 x
    (?:(?:about|approximately|approx|around|rs|us|usd|eur)\b|[^\w\\+*^(){}<>=-])*?
    (-?[\d,]*\.?\d+(?:/\d+)?|-?\\[dt]?frac\{\d+\}\{\d+\})
    (?=\s|[A-Za-z]{2}|[°%$€£]|$)(?!\s*(?:pi|sqrt|log|ln|sin|cos|tan|(?!(?-i:[mLgshlAVWNJKCF]))[a-z])\b)
    [^\d\\+*=<>(){}]*""", re.VERBOSE | re.IGNORECASE)


def without_units(answer):
    """The number of an answer with units, 29 of "29 pens"; the answer where it is something else."""
    text = re.sub(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}", r" \1 ", answer)
    measured = MEASURED.fullmatch(re.sub(r"\\[$ ,;!%]|~|\^\{?-?\d\}?", " ", text).strip())      # cm^2
    return measured[1] if measured else answer


def check_answers(records, compare, source):
    """Lines that name records whose solution boxes another answer. compare(answer, gold) -> "right" or not.

    An answer with units, "29 pens" where the solution boxes 29, is corrected: no completion would be right.
    """
    corrected, differing, boxes, lines = [], [], 0, []
    for record in records:
        answer, box = record["answer"], (last_boxed(record["solution"]) or "").strip()
        if not answer or says_no_answer(box):
            continue
        number, boxes = without_units(answer), boxes + 1
        if compare(box, answer) != "right" and compare(without_units(box), number) != "right":
            differing.append(f"id {record['id']} (answer {answer[:40]!r}, box {box[:40]!r})")
        elif number != answer and compare(box, answer) != "right":
            corrected.append(f"id {record['id']} ({answer[:40]!r} is {number})")
            record["answer"] = number
    for names, what, fix in ((differing, "are not what their solution boxes", ": correct or remove them"),
                             (corrected, "lost the units that their solution does not box", "")):
        if names:
            some = ", ".join(names[:5]) + (", .." if len(names) > 5 else "")
            lines.append(f"{source}: {len(names)} of {boxes} answers {what}, {some}{fix}")
    return lines
