"""Files: JSONL, JSON, parquet and data sets of the hub in, atomic writes out, and the one-line error for
input that a user has to correct."""
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
class Number(float):
    """A number of a JSON file that keeps its text: as a float, 6.02e23 is 601999999999999995805696."""

    def __new__(cls, text):
        number = super().__new__(cls, text)
        number.text = str(text)
        return number

    def __str__(self):
        return self.text


def parse_json(text):
    return json.loads(text, parse_float=Number)


def table_rows(table):
    """The rows of a pyarrow table. A number of 32 bits keeps its text: 0.1, not 0.10000000149011612."""
    for index, column in enumerate(table.columns):
        if column.type == "float":
            table = table.set_column(index, table.field(index).name, column.cast("string").cast("float64"))
    return table.to_pylist()


def parse_jsonl(path):
    """(records, places) of a JSONL file: the object of each line that is not empty, and its place ("FILE,
    line 3")."""
    path = Path(path)
    try:
        # not splitlines: a form feed or U+2028 inside a string ends no line
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        why = f"{error.reason} at byte {error.start}"
        raise InputError(f"{path}: not UTF-8 text ({why}); expected JSONL, one object a line") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a JSONL file, one object a line") from None
    records, places = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(parse_json(line))
        except (ValueError, RecursionError) as error:  # ValueError: also a number of more than 4,300 digits
            why = getattr(error, "msg", error)
            raise InputError(f"{path}, line {number}: not JSON ({why}); expected one object a line") from None
        places.append(f"{path}, line {number}")
    if not records:
        raise InputError(f"{path}: empty; expected a JSONL file, one object a line")
    return records, places


TYPE_NAMES = {str: "text", int: "a number", list: "a list"}


def read_jsonl(path, fields=(), types=None):
    """The records of a JSONL file; each has the named `fields`, none empty, and those in `types` ({name:
    type}) have their type.

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
    """The records of train.jsonl and val.jsonl, see read_jsonl. Raises InputError where a problem id is in
    both."""
    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder; make it with python 01_segment.py --out {folder}, "
                         "or give another with --data")
    train, val = (read_jsonl(Path(folder) / f"{part}.jsonl", fields, types) for part in ("train", "val"))
    both = {str(record["id"]) for record in train} & {str(record["id"]) for record in val}
    if both:
        raise InputError(f"{folder}: {len(both)} problems are in both train and val, such as {min(both)}; "
                         "01_segment.py separates them")
    return tuple([{"partial": "", **record} for record in part] for part in (train, val))


def read_rows(source, split=None):
    """(rows, places) of a .jsonl, .json (a list of objects) or .parquet file; with `split`, of that split of
    the hub's data set `source`.

    Raises InputError where the source cannot be read or is empty.
    """
    if split:
        from datasets import load_dataset
        try:
            rows = table_rows(load_dataset(str(source), split=split).with_format("arrow")[:])
        # the library raises dozens of types; the user has to correct all of them
        except Exception as error:
            raise InputError(f"{source}: cannot load split {split!r} from the hub ({first_line(error)}); "
                             "give a local file, or check the name and the network") from None
    elif Path(source).suffix == ".parquet":
        import pyarrow.parquet
        try:
            rows = table_rows(pyarrow.parquet.read_table(source))
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise InputError(f"{source}: not a parquet file that can be read ({first_line(error)})") from None
    elif Path(source).suffix == ".json":
        try:
            rows = parse_json(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            why = getattr(error, "strerror", None) or f"not JSON ({error})"
            raise InputError(f"{source}: {why}; expected a list of objects") from None
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
    """A temporary name to write a file or folder to, renamed to `path` at the end: the output is complete or
    absent."""
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
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write_text(path, text):
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_jsonl(path, records):
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def shorten(text, limit):
    """A text of at most about `limit` characters: the middle of a longer one is left out, with the number of
    characters left out."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[.. {len(text) - 2 * half} characters left out ..]\n{text[-half:]}"
