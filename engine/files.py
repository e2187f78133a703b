"""Files: JSONL, JSON, parquet and hub data in, atomic writes out, the one-line error for input to correct."""
import encodings.utf_8_sig  # noqa: F401    else open() imports it, and Ctrl-C there ends without advice
import json
import os
import shutil
import sys
from contextlib import contextmanager, suppress
from pathlib import Path


class InputError(ValueError):
    """Input that the user has to correct; ends a script in one line and exit code 2."""


def run_main(main):
    """Run a script's main(): an InputError ends in one clear line and exit code 2, not in a traceback."""
    try:
        main()
        sys.stdout.flush()
        if "engine.distributed" in sys.modules:
            sys.modules["engine.distributed"].leave_ranks()
    except InputError as error:
        rank = os.environ.get("RANK", "0")                          # set by torchrun
        print(f"error{f' (rank {rank})' if rank != '0' else ''}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:                                         # ".. | head": whoever read has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)                                               # as if SIGPIPE had ended it


def first_line(error):
    """The first line of an exception's message, or the name of its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# Reading
@contextmanager
def explain_read_errors(source, problem, fix=""):
    """Raises InputError, "SOURCE: problem (why); fix", where the block cannot read or understand `source`."""
    try:
        yield
    except Exception as error:      # libraries raise dozens of types for a file that is missing or damaged
        why = getattr(error, "strerror", None) or f"{problem} ({first_line(error)})"
        raise InputError(f"{source}: {why}" + (f"; {fix}" if fix else "")) from None


class Number(float):
    """A number of a JSON file that keeps its text: as a float, 6.02e23 is 601999999999999995805696."""

    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


def parse_json(text):
    return json.loads(text, parse_float=Number)


def parse_jsonl(path):
    """(records, places) of a JSONL file: of each line with text its value and its place, "FILE, line 3"."""
    with explain_read_errors(path, "not a text file of JSON, an object a line"):
        # not splitlines: a form feed or U+2028 inside a string ends no line
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    places = {f"{path}, line {number}": line for number, line in enumerate(lines, 1) if line.strip()}
    records = []
    for place, line in places.items():
        with explain_read_errors(place, "not JSON, an object a line"):
            records.append(parse_json(line))
    if not records:
        raise InputError(f"{path}: empty; expected JSON, an object a line")
    return records, list(places)


TYPE_NAMES = {str: "text", int: "a number", list: "a list"}


def read_jsonl(path, fields=(), types=None):
    """The records of a JSONL file, each with the named `fields`, none empty; types: {field: its type}.

    Raises InputError with file and line of what is wrong, three places at most, and what is expected.
    """
    records, places = parse_jsonl(path)
    wrong = []
    for record, place in zip(records, places, strict=True):
        missing = [f for f in fields if not isinstance(record, dict) or record.get(f) in (None, "")]
        if missing:
            expected = f"expected an object with {', '.join(fields)}"
            wrong.append(f"{place}: no {' and no '.join(missing)}; {expected}")
            continue
        for name, expected in (types or {}).items():
            if record.get(name) is not None and type(record[name]) is not expected:
                value = json.dumps(record[name])[:40]
                wrong.append(f"{place}: {name} is {value}; expected {TYPE_NAMES[expected]}")
    if wrong:
        raise InputError("; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""))
    return records


def read_train_and_val(folder, fields, types):
    """The records of train.jsonl and val.jsonl, see read_jsonl; InputError where both have a problem id."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; make it with python 01_segment.py --out {folder} and "
                         "the flags that name your data, or give another with --data")
    train, val = (read_jsonl(Path(folder) / f"{part}.jsonl", fields, types) for part in ("train", "val"))
    both = {str(record["id"]) for record in train} & {str(record["id"]) for record in val}
    if both:
        raise InputError(f"{folder}: {len(both)} problems are in both train and val, such as {min(both)}; "
                         "01_segment.py separates them")
    return tuple([{"partial": "", **record} for record in part] for part in (train, val))


def table_rows(table):
    """The rows of a pyarrow table, see plain_value."""
    types = {field.name: field.type for field in table.schema}
    return [{n: plain_value(value, types[n]) for n, value in row.items()} for row in table.to_pylist()]


def plain_value(value, kind):
    """A value of a pyarrow type as JSON has it: bytes are text, a map is an object; a number of 16 or 32 bits
    keeps its text: 0.1, not 0.10000000149011612."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and kind.bit_width < 64:
        return float(str(kind.to_pandas_dtype()(value)))
    if isinstance(value, dict):
        return {name: plain_value(part, kind.field(name).type) for name, part in value.items()}
    if isinstance(value, list) and str(kind).startswith("map<"):
        return {name: plain_value(part, kind.item_type) for name, part in value}
    return [plain_value(part, kind.value_type) for part in value] if isinstance(value, list) else value


def read_rows(source, split=None):
    """(rows, places) of a .jsonl, .json or .parquet file, or of a split of the hub's data set `source`.

    Raises InputError where the source cannot be read or is empty.
    """
    if split:
        from datasets import load_dataset
        with explain_read_errors(source, f"not a data set of the hub with a split {split!r}",
                                 "give a local file, or check the name and the network"):
            rows = table_rows(load_dataset(str(source), split=split).with_format("arrow")[:])
    elif Path(source).suffix == ".parquet":
        import pyarrow.parquet
        with explain_read_errors(source, "not a parquet file"):
            rows = table_rows(pyarrow.parquet.read_table(source))
    elif Path(source).suffix == ".json":
        with explain_read_errors(source, "not JSON, a list of objects"):
            rows = parse_json(Path(source).read_text(encoding="utf-8-sig"))
    else:
        return parse_jsonl(source)
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{source}: no records; expected a list of objects")
    return rows, [f"{source}, record {number}" for number in range(1, len(rows) + 1)]


# Writing
@contextmanager
def explain_write_errors(path):
    """Raises InputError where the block cannot write to `path`: a full disk, a missing permission."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # OSError, and what torch and safetensors raise for a full disk
        why = getattr(error, "strerror", None) or first_line(error)
        folders = (folder for folder in Path(path).parents if folder.is_dir())
        free = next((f"{shutil.disk_usage(folder).free / 1e6:.0f} MB free" for folder in folders), "")
        raise InputError(f"{path}: cannot be written ({why}; {free}); free space, or use another folder. "
                         "The previous version is unchanged") from None


@contextmanager
def atomic_write(path):
    """A temporary name for a file or folder, renamed to `path` at the end: it is complete or absent."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with explain_write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(temporary)
            yield temporary
            if path.is_dir():                                       # a folder cannot be renamed onto another
                remove(path)
            os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise


def remove(path):
    """Delete a file or a folder, if it exists and may be deleted."""
    shutil.rmtree(path, ignore_errors=True)                         # no effect on a file
    with suppress(OSError):
        path.unlink(missing_ok=True)


def write_text(path, text):
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_jsonl(path, records):
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def shorten(text, limit):
    """A text of at most about `limit` characters: a mark in its middle says how many are left out."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[.. {len(text) - 2 * half} characters left out ..]\n{text[-half:]}"
