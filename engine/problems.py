r"""Problems: without this file no script reads problems, or the answer in the last \boxed{} of a text."""
import re

from .files import InputError, read_rows

# names of each column in public data sets; the first that a row has
COLUMNS = {"id": ("id", "unique_id", "idx"), "problem": ("problem", "question"),
           "solution": ("solution",), "answer": ("answer",)}
# a box with braces or of a bare number, an escaped character (an escaped brace is no brace), a brace
BOX = re.compile(r"\\+boxed(?:\s*\{|\s+(-?\d(?:[\d.,/]*\d)?)\b(?![\^_{\\]))|\\.|[{}]", re.DOTALL)


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


def field_text(row, place, field, column, need):
    """A field of a row as text, "" without one. Raises InputError where a needed column is missing."""
    names = (column,) if column else COLUMNS[field]
    if (column or field in need) and not set(names) & set(row):
        messages = {"messages", "history"} & set(row)
        hint = "these look like --trajectories" if messages else f"name the right one with --{field}_column"
        raise InputError(f"{place}: no {names[0]}; there are the columns {', '.join(row)}: {hint}")
    value = next((row[name] for name in names if row.get(name) not in (None, "")), "")
    value = int(value) if isinstance(value, float) and value.is_integer() else value  # 27.0 is 27
    return str(value).replace("\f", "\\f")    # JSON reads the \f of \frac as a form feed


def read_problems(source, split=None, columns=None, need=("problem",)):
    """Records with id, problem, solution, answer (strings) and the other columns of a file or hub data set.

    columns: {field: its column} where that is none of COLUMNS. Without an id: the row number; without an
    answer: the last box of the solution. A column of answers may hold solutions. Raises InputError where
    a field of `need` has no column, a problem is empty, or an id occurs twice.
    """
    records, first_place, columns = [], {}, columns or {}
    for number, (row, place) in enumerate(zip(*read_rows(source, split), strict=True)):
        if not isinstance(row, dict):
            raise InputError(f"{place}: no {' and no '.join(COLUMNS)}; expected an object with these")
        record = {field: field_text(row, place, field, columns.get(field), need) for field in COLUMNS}
        if not record["problem"].strip():
            raise InputError(f"{place}: the problem is empty; write it, or remove the record")
        record["id"] = record["id"] or str(number)
        record["solution"] = record["solution"].rpartition("</think>")[2].lstrip("\r\n")  # no thoughts
        text = record["answer"].strip()
        record["answer"] = (last_boxed(text or record["solution"]) or ("" if "\n" in text else text)).strip()
        if first := first_place.get(record["id"]):
            raise InputError(f"{place}: id {record['id']!r} occurs twice, first in {first}; ids must differ")
        first_place[record["id"]] = place
        records.append({**row, **record})
    return records
