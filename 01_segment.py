"""Stage 1: cut expert solutions into steps, one training example per step.

A solution of N numbered steps becomes one example per target step k: the context is the problem and steps 1..k-1, the target is step k
(paper section 4.1); a trajectory of an agent becomes one example per call. The split into training and validation is by problem, never by step: the
steps of one solution share their numbers.

Differences from the paper: the paper's targets are steps 1..N-1, so the last step is never one (--targets literal). The default here is all N,
because a policy that is asked for one step at a time has to learn to finish too.

in:      problems with solutions in numbered steps: a .jsonl, .json or .parquet file, or a data set of the hub; optional thoughts, one per step
out:     runs/data/train.jsonl, runs/data/val.jsonl: one example a line
command: python 01_segment.py                 # the miniature's 1,260 problems, 2 s
         python 01_segment.py --dataset simplescaling/s1K-1.1 --solution_column deepseek_attempt --out runs/s1k        # the paper's data
         python 01_segment.py --trajectories --data miniature/agents/expert.jsonl --num_val 60 --out runs/agents/data           # the miniature's agents
         python 01_segment.py --dataset SWE-bench/SWE-smith-trajectories --trajectories --out runs/swe                  # agents
"""
import argparse
import json
import os
import random
import re
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent


class InputError(ValueError):
    """Input that the user has to mend; ends a script in one line and exit code 2."""


def run_main(main):
    """Run a script's main(): an InputError ends in one clear line and exit code 2, not in a traceback."""
    try:
        main()
    except InputError as error:
        of = "" if os.environ.get("RANK", "0") == "0" else f" (rank {os.environ['RANK']})"         # of torchrun's processes
        print(f"error{of}: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)


# 1. Files: records in, complete or absent out
def parse_jsonl(path):
    """(records, places) of a JSONL file: what stands on each line that is not empty, and where ("FILE, line 3")."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: a form feed or U+2028 inside a string ends no line
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); expected JSONL, one object a line") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a JSONL file, one object a line") from None
    records, places = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as error:  # ValueError: also a number of more than 4,300 digits
            raise InputError(f"{path}, line {number}: not JSON ({getattr(error, 'msg', error)}); expected one object a line") from None
        places.append(f"{path}, line {number}")
    if not records:
        raise InputError(f"{path}: empty; expected a JSONL file, one object a line")
    return records, places


def read_jsonl(path, fields=(), kinds=None):
    """The records of a JSONL file; every one has the named `fields`, none empty, and those in `kinds` ({name: type}) are of their type.

    Raises InputError with file and line of what is wrong, three places at most, and what is expected.
    """
    records, places = parse_jsonl(path)
    wrong = []
    for record, place in zip(records, places, strict=True):
        missing = [f for f in fields if not isinstance(record, dict) or record.get(f) in (None, "")]
        if missing:
            wrong.append(f"{place}: no {' and no '.join(missing)}; expected an object with {', '.join(fields)}")
            continue
        wrong += [f"{place}: {name} is {json.dumps(record[name])[:40]}; expected {'text' if kind is str else 'a number' if kind is int else 'a list'}"
                  for name, kind in (kinds or {}).items() if record.get(name) is not None and type(record[name]) is not kind]
    if wrong:
        raise InputError("; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""))
    return records


@contextmanager
def told(path):
    """Raises InputError where the block cannot write to `path`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # OSError, and what torch and safetensors raise in its place when the disk is full
        why = getattr(error, "strerror", None) or str(error).splitlines()[0]
        free = next((f"{shutil.disk_usage(folder).free / 1e6:.0f} MB free" for folder in Path(path).parents if folder.is_dir()), "")
        raise InputError(f"{path}: cannot be written ({why}; {free}); make room, or give a folder of your own. What stood there before is whole") from None


@contextmanager
def written(path):
    """A name to write a file or folder to, which is renamed to `path` in the end: it is complete or absent, and nothing half-written is left."""
    path = Path(path)
    aside = path.with_name(path.name + ".tmp")
    try:
        with told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(aside)
            yield aside
            if path.is_dir():                               # a folder cannot be renamed onto another
                remove(path)
            os.replace(aside, path)
    except BaseException:
        remove(aside)
        raise


def remove(path):
    """Delete a file or a folder, if it is there and may be deleted."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def write_text(path, text):
    """Write to a temporary name, then rename: the file is complete or absent."""
    with written(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_jsonl(path, records):
    write_text(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def read_rows(source, split=None):
    """(rows, places) of a .jsonl, .json (a list of objects) or .parquet file; with `split`, of that split of the hub's data set `source`."""
    if split:
        from datasets import load_dataset
        try:
            rows = load_dataset(str(source), split=split).to_list()
        except Exception as error:  # the library has a dozen ways to say that it is not there; all of them are the user's to mend
            why = str(error).strip().split("\n")[0]
            raise InputError(f"{source}: cannot load split {split!r} from the hub ({why}); give a local file, or look at name and network") from None
    elif Path(source).suffix == ".parquet":
        import pyarrow.parquet
        try:
            rows = pyarrow.parquet.read_table(source).to_pylist()
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise InputError(f"{source}: not a parquet file that can be read ({str(error).splitlines()[0]})") from None
    elif Path(source).suffix == ".json":
        try:
            rows = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{source}: {getattr(error, 'strerror', None) or f'not JSON ({error})'}; expected a list of objects") from None
    else:
        return parse_jsonl(source)
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{source}: no records; expected a list of objects")
    return rows, [f"{source}, record {number}" for number in range(1, len(rows) + 1)]


def last_boxed(text):
    r"""The content of the last complete \boxed{..} or of \boxed 5, or None. One pass, whatever stands in the text: a model may write a million open braces."""
    begins, found, content = [], -1, None
    for token in re.finditer(r"\\+boxed(?:\s*\{|\s+(-?\d(?:[\d.,/]*\d)?)\b(?![\^_{\\]))|\\.|[{}]", text, re.DOTALL):    # an escaped brace is no brace
        if token[1]:
            found, content = token.end(), token[1]
        elif token[0].endswith("{") and token[0] != "\\{":
            begins.append(token.end() if len(token[0]) > 1 else -1)              # of a box, or of another brace
        elif token[0] == "}" and begins and (begin := begins.pop()) > found:
            found, content = begin, text[begin:token.start()]
    return content


# columns by the names that public data sets give them; the first that a row has
COLUMNS = {"id": ("id", "unique_id", "idx"), "problem": ("problem", "question"), "solution": ("solution",), "answer": ("answer",)}


def read_problems(source, split=None, columns=None, need=("problem",)):
    """Records with id, problem, solution and answer (strings) of a file or a hub data set; the other columns of a row stay as they are.

    columns: {field: the column it stands in} where it is none of COLUMNS. Without an id the row number is the id. Without an answer the last box of
    the solution is the answer, and without a box it is "": a proof has none. A column of answers may also hold whole solutions: then their last box
    counts, or the one line that there is. Raises InputError that names the row where a field of `need` has no column, a problem is empty, or an id
    stands twice.
    """
    rows, places = read_rows(source, split)
    records, seen = [], {}
    for number, (row, place) in enumerate(zip(rows, places, strict=True)):
        if not isinstance(row, dict):
            raise InputError(f"{place}: no {' and no '.join(COLUMNS)}; expected an object with these")
        record = {}
        for field, names in COLUMNS.items():
            chosen = (columns or {}).get(field)
            names = (chosen,) if chosen else names
            if (chosen or field in need) and not set(names) & set(row):
                hint = "these look like --trajectories" if {"messages", "history"} & set(row) else f"name the right one with --{field}_column"
                raise InputError(f"{place}: no {chosen or field}; there are the columns {', '.join(row)}: {hint}")
            value = next((row[name] for name in names if row.get(name) not in (None, "")), "")
            value = int(value) if isinstance(value, float) and value.is_integer() else value        # 27.0 is 27
            record[field] = str(value).replace("\f", "\\f")                                         # a form feed in a formula was a \frac
        if not record["problem"].strip():
            raise InputError(f"{place}: the problem is empty; write it, or remove the record")
        record["id"] = record["id"] or str(number)
        record["solution"] = record["solution"].rpartition("</think>")[2].lstrip("\r\n")           # thoughts of the expert that stand in the same column
        given = record["answer"].strip()
        record["answer"] = (last_boxed(given or record["solution"]) or (given if "\n" not in given else "")).strip()
        if record["id"] in seen:
            raise InputError(f"{place}: id {record['id']!r} stands 2 times, first in {seen[record['id']]}; ids must differ, the split is by problem")
        seen[record["id"]] = place
        records.append({**row, **record})
    return records


# 2. Steps
# A line that begins a step has a number and a title. Not "2. plain item" (a list inside a step), not "1.1" (a part of a step), not "**12** of them"
STEP_START = re.compile(r"""^[ ]{0,3} (?:
      \#{1,6}[^\S\n]*(?:\*\*)? (?: (?i:step)[^\S\n]+(\d{1,3})(?!\d|\.\d) | \(?(\d{1,3})[.:)](?!\d) )    # ### Step 1: Title, ### 1. Title
    | (?:[-*+][^\S\n]+)? [*_]{1,3}(?i:step)[^\S\n]+(\d{1,3})(?!\d|\.\d)                              # **Step 1: Title**, - **Step 1** text
    | \*\*\(?(\d{1,3})[.:)](?!\d)                                                                 # **1. Title**
    | \(?(\d{1,3})[.)][^\S\n]*\*\*(?=\S)                                                           # 1. **Title**
    | (?i:step)[^\S\n]+(\d{1,3})(?: [^\S\n]*(?:\([^()\n]+\)[^\S\n]*)?[.:](?!\d) | [^\S\n]+[-–—][^\S\n] | [^\S\n]*$ )   # Step 1: text, Step 1 (Title): text
    )""", re.MULTILINE | re.VERBOSE)
# No step begins in fenced code or in a formula
BLOCK = re.compile(r"""^[ \t]*(```|~~~)[^\n`]*\n.*?^[ \t]*\1
    | \$\$ (?:(?!\n\s*\n).)*? \$\$                 # no empty line inside: a $$ without a partner must not reach for the next one
    | (?<!\\)\\\[ (?:(?!\\\[).)*? \\\]
    | (?<!\\)\\\( (?:(?!\\\(|\n\s*\n).)*? \\\)
    | \\begin\{([a-z]+\*?)\} (?:(?!\\begin\{\2\}).)*? \\end\{\2\}""", re.MULTILINE | re.VERBOSE | re.DOTALL)
LIST_ITEM = re.compile(r"^( *)(?:[-*+]|\d{1,3}[.)])[ \t]", re.MULTILINE)


def step_starts(solution):
    """Places where steps 1..N of a solution begin. Raises ValueError with the reason where they do not run 1, 2, .. N with N > 1.

    Where steps hold numbered titles of their own (### Step 3 with 1. **Case one**), the outermost kind counts: headings before the rest, else the kind
    that comes first, unless that was a list before **Step 1**. A list in the same style that starts again at 1 may be part (b) as well as a list of
    cases; it is not guessed at but refused.
    """
    found, text = [], BLOCK.sub(lambda block: "x" * len(block[0]), solution)                     # (place, indentation, kind, number)
    for m in STEP_START.finditer(text):
        before = solution[m.start():m.start(m.lastindex)]                                       # "### Step ", "**", ..
        found.append((m.start(), len(before) - len(before.lstrip(" ")), before.strip().lower(), int(m[m.lastindex])))
    margin = min((indent for _, indent, _, _ in found), default=0)
    found = [f for f in found if f[1] <= margin + 1]                                            # " 9." and "10." may be aligned; further in: a list in a step
    if not found or any(len(item[1]) < margin for item in LIST_ITEM.finditer(text, 0, found[0][0])):
        raise ValueError("no numbered steps with a title")
    kinds = {}                                                                                  # in the order in which they come first
    for f in found:
        kinds.setdefault(f[2], []).append(f)
    lists = [kind for kind in kinds if len(kinds[kind]) > 1] or list(kinds)
    outermost = min(lists, key=lambda kind: kind.count("#") or 7)                               # min is stable: else the first
    if not re.search("#|step", outermost):
        outermost = next((kind for kind in lists if "step" in kind and kinds[kind][0] > kinds[outermost][-1]), outermost)
    outer, inner = [f[3] for f in kinds[outermost]], [f[3] for f in found if f[2] != outermost]
    numbers = [f[3] for f in found]                                                             # a form may change on the way: 1. **A**, then **2. B**
    if inner and numbers != list(range(1, len(numbers) + 1)) and outer[0] == 1 and (inner[0] == 1 or max(inner) <= len(outer)):
        found, numbers = kinds[outermost], outer                                                # the others are inside
    if len(numbers) < 2:
        raise ValueError("fewer than two steps")
    if numbers[0] != 1:
        raise ValueError("numbering does not begin at 1")
    if numbers != list(range(1, len(numbers) + 1)):
        raise ValueError("numbering restarts" if len(set(numbers)) < len(numbers) else "numbering skips")
    return [f[0] for f in found]


def split_steps(solution):
    """Cut a numbered solution into its steps (paper section 4.1: each complete numbered step is one action).

    The steps are exact slices that join back to the solution from the first step on. What stands before it is the preamble, which belongs to the
    context. What stands behind the last step, the conclusion with the boxed answer, belongs to that step: it is the one that finishes.
    Raises ValueError with the reason where the solution does not have the form.
    """
    cuts = step_starts(solution) + [len(solution)]
    return [solution[begin:end] for begin, end in zip(cuts, cuts[1:], strict=False)]


def step_title(step):
    """The title of a step without its number and marks; "" where it has none ("**Step 1:** text")."""
    start = STEP_START.match(step)
    rest = step[start.end():].split("\n", 1)[0] if start else ""
    title, bold, _ = rest.partition("**")
    if start and start[0].lstrip().startswith("#"):
        title = rest.replace("**", "")
    elif not bold:
        return ""
    return title.strip(" \t:.-–—*_")


def without_rule(step):
    """A step as an action: without white space at its ends and without the rules (---) that set it off from the next."""
    lines = step.strip().split("\n")
    while len(lines) > 1 and not lines[-1].strip("-*_ \t\r"):
        lines.pop()
    return "\n".join(lines).rstrip()


def step_examples(problem, steps, preamble="", targets="all", title_hint=False):
    """One example per target step: the problem, the partial solution (preamble and steps 1..k-1) and the action (step k).

    targets: "all" for k = 1..N, "literal" for the paper's k = 1..N-1. title_hint: the prompt names the title of step k (the paper's footnote).
    """
    last = len(steps) if targets == "all" else len(steps) - 1
    examples = [{"problem": problem, "partial": preamble + "".join(steps[:k - 1]), "action": without_rule(steps[k - 1]), "k": k, "n": len(steps)}
                for k in range(1, last + 1)]
    return [{**e, "title": step_title(e["action"])} for e in examples] if title_hint else examples


def split_by_problem(examples, num_val, seed):
    """(train, val): all steps of `num_val` problems, drawn with `seed`, are held out."""
    ids = sorted({example["id"] for example in examples})
    if not 0 < num_val < len(ids):
        raise InputError(f"--num_val {num_val}: there are {len(ids)} problems; hold out at least 1 and fewer than all")
    held_out = set(random.Random(seed).sample(ids, num_val))
    return [e for e in examples if e["id"] not in held_out], [e for e in examples if e["id"] in held_out]


# 3. Solutions without numbered steps, rewritten by a language model (the paper's v3; our wording)
REWRITE = (
    "Rewrite the solution below as a list of steps. Begin every step on a new line with its number and a short title, like this: 1. **Title** and then what is "
    "done in this step. Number the steps 1, 2, 3, .. Keep every formula and every argument, add none, and keep the final answer in \\boxed{}. "
    "Write nothing before the first step and nothing after the last.\n\nProblem:\n%s\n\nSolution:\n%s"
)


def ask_endpoint(url, model, prompt, tries=4):
    """One answer of an OpenAI-compatible server; a key in OPENAI_API_KEY is sent along. Raises InputError where it gives none."""
    body = json.dumps({"model": model, "temperature": 0, "messages": [{"role": "user", "content": prompt}]}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}"}
    for attempt in range(1, tries + 1):
        try:
            with urllib.request.urlopen(urllib.request.Request(url.rstrip("/") + "/chat/completions", body, headers), timeout=600) as reply:
                return json.load(reply)["choices"][0]["message"]["content"] or ""
        except (OSError, ValueError, LookupError, TypeError) as error:
            if attempt == tries or getattr(error, "code", 500) in (400, 401, 403, 404):
                raise InputError(f"{url}: no answer to a request for {model} ({error}); mend it, then run the same command again") from None
            time.sleep(2**attempt)


def ask_local(name):
    """A function from prompt to answer: a transformers model, greedy."""
    from transformers import pipeline
    try:
        write = pipeline("text-generation", model=name)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: not a model that can rewrite ({str(error).splitlines()[0]}); give a folder or a hub name with --rewrite") from None
    return lambda prompt: write([{"role": "user", "content": prompt}], max_new_tokens=4096, do_sample=False, return_full_text=False)[0]["generated_text"]


def rewrite(records, ask, path):
    """Put steps in place of every solution that does not segment, where a rewriting passes the check. Returns Counter of what became of them.

    The check: it has numbered steps, and the same boxed answer as the original where that had one. Answers are kept in the file `path` as they come, so
    that a run that was interrupted asks for none of them again. A bare result is left alone: its steps would be invented, not rewritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    known, outcome = {}, Counter()
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ():
        try:
            r = json.loads(line)
            known[r["id"], r["solution"]] = r["rewritten"]
        except ValueError:                                                      # an empty line, or the one that was being written when a run was killed
            continue
    with path.open("a", encoding="utf-8") as log:
        for record in records:
            try:
                split_steps(record["solution"])
                continue
            except ValueError:
                pass
            if len(record["solution"].split()) < 20:
                outcome["too short to rewrite"] += 1
                continue
            key = (record["id"], record["solution"])
            if key not in known:
                known[key] = ask(REWRITE % (record["problem"], record["solution"])).rpartition("</think>")[2].strip()
                log.write("\n" + json.dumps({"id": key[0], "solution": key[1], "rewritten": known[key]}, ensure_ascii=False))
                log.flush()
            try:
                split_steps(known[key])
                boxes = ["".join((last_boxed(text) or "").split()) for text in (key[1], known[key])]
                kept_answer = boxes[0] in ("", boxes[1])
            except ValueError:
                kept_answer = None
            outcome["rewritten" if kept_answer else "rejected, no numbered steps" if kept_answer is None else "rejected, another answer"] += 1
            if kept_answer:
                record["solution"] = known[key]
    return outcome


# 4. All solutions of a file
def segment(records, targets="all", title_hint=False):
    """(examples, reasons): the examples of every record, and how many records were dropped for which reason."""
    examples, reasons = [], Counter()
    for record in records:
        try:
            steps = split_steps(record["solution"])
        except ValueError as error:
            reasons[str(error)] += 1
            continue
        preamble = record["solution"][:len(record["solution"]) - sum(map(len, steps))]
        for example in step_examples(record["problem"], steps, preamble, targets, title_hint):
            # thoughts, where the data has them, serve SFT alone: SRL never reads them
            thoughts = {name: record[name][example["k"] - 1] for name in ("thoughts", "student_thoughts") if len(record.get(name) or ()) == len(steps)}
            examples.append({"id": str(record["id"]), **example, "answer": str(record["answer"]), **thoughts})
    return examples, reasons


def report(records, examples, reasons):
    """What a user wants to know before training on it."""
    kept = {e["id"]: e["n"] for e in examples}
    dropped = sum(reasons.values())
    print(f"{len(records)} problems read, {len(records) - dropped} kept, {dropped} dropped" + "".join(f"; {n} {why}" for why, n in reasons.most_common()))
    without = len({e["id"] for e in examples if not e["answer"] and "context" not in e})
    if without:
        print(f"{without} of them have no answer: SRL needs none, RLVR leaves them out")
    sizes = Counter(kept.values())
    print("steps per solution: " + ", ".join(f"{n} steps: {count}" for n, count in sorted(sizes.items())))
    for example in random.Random(0).sample(examples, min(3, len(examples))):
        print(f"\n--- problem {example['id']}, step {example['k']} of {example['n']}\ncontext:  {shorten(example['problem'], 1500)}")
        before = example["partial"] + "".join(f"{m['role']}: {shorten(m['content'], 300)}\n" for m in example.get("context", ()))
        print("".join(f"          {line}\n" for line in before.splitlines()) + f"target:   {example['action']}")


# 5. Agents: a trajectory is a sequence of calls, each an action (paper section 5, software engineering)
FUNCTION, PARAMETER = re.compile(r"<function=([^>\s]+)>\s*"), re.compile(r"<parameter=([^>\s]+)>")
PARAMETER_END = re.compile(r"</parameter>\s*(?=<parameter=|</function>)")
FENCE = re.compile(r"^```[^\n`]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"<command>(.*?)</command>", re.DOTALL)
TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


def xml_calls(text):
    """(text, name, arguments) of every complete call <function=name> <parameter=p>value</parameter> .. </function>.

    A value may hold anything, closing tags too: it ends where the next parameter or the end of the function follows.
    """
    calls, place = [], 0
    while begin := FUNCTION.search(text, place):
        arguments, place = {}, begin.end()
        while parameter := PARAMETER.match(text, place):
            end = PARAMETER_END.search(text, parameter.end())
            if not end:
                break
            arguments[parameter[1]] = text[parameter.end():end.start()]
            place = end.end()
        if text.startswith("</function>", place):
            place += len("</function>")
            calls.append((text[begin.start():place], begin[1], arguments))
    return calls


def parse_call(action):
    """(name, arguments) of an action: an XML call, a <tool_call> in JSON, or else a command of the shell, ("bash", {"command": ..}). None where it is empty."""
    if calls := xml_calls(action):
        return calls[0][1:]
    if found := TOOL_CALL.search(action):
        try:
            call = json.loads(found[1])
            return call["name"], call["arguments"]
        except (ValueError, LookupError, TypeError, RecursionError):
            return None
    return ("bash", {"command": action}) if action.strip() else None


def message_text(message):
    """The text of a chat message; its content may be a list of parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content if isinstance(part, dict))


def calls_of(message):
    """The texts of the calls in an agent's message, byte for byte, without the prose around them.

    Native function calls get the form in which Qwen's chat template writes them: the name and, as they stand, the arguments, in <tool_call> tags. A
    command in backticks or <command> tags is taken without them, and without white space at its ends, which the reward does not see either.
    """
    if native := message.get("tool_calls"):
        calls = []
        for call in native:
            function = call.get("function", call)
            arguments = function.get("arguments") or "{}"
            arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
            calls.append(f'<tool_call>\n{{"name": {json.dumps(function["name"])}, "arguments": {arguments}}}\n</tool_call>')
        return calls
    text = message_text(message)
    if calls := [call for call, _, _ in xml_calls(text)]:
        return calls
    if action := str(message.get("action") or "").strip():                      # SWE-agent names what it ran
        return [action]
    return [block.strip() for block in (COMMAND.findall(text) or FENCE.findall(text)[-1:]) if block.strip()]


def shorten(text, limit):
    """A text of at most about `limit` characters: the middle of a longer one is left out, and how much of it is said."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[.. {len(text) - 2 * half} characters left out ..]\n{text[-half:]}"


def read_trajectories(source, split=None):
    """Rows (dicts) with "messages" and their places, of SWE-smith files (.jsonl, .json, .parquet, the hub), a SWE-agent .traj file or a folder of such."""
    if Path(source).is_dir() or Path(source).suffix == ".traj":
        files = sorted(Path(source).rglob("*.traj")) if Path(source).is_dir() else [Path(source)]
        if not files:
            raise InputError(f"{source}: no .traj file in this folder; give one with SWE-agent's trajectories")
        rows = []
        for path in files:
            try:
                rows.append({"instance_id": path.stem, **json.loads(path.read_text(encoding="utf-8"))})
            except (OSError, ValueError, TypeError, RecursionError) as error:
                raise InputError(f"{path}: not a trajectory ({getattr(error, 'strerror', None) or error}); expected the JSON of SWE-agent") from None
        places = [str(path) for path in files]
    else:
        rows, places = read_rows(source, split)
    for number, (row, place) in enumerate(zip(rows, places, strict=True)):
        if not isinstance(row, dict):
            raise InputError(f"{place}: expected an object with messages or history")
        messages = row.get("messages") or row.get("history")
        try:
            messages = json.loads(messages) if isinstance(messages, str) else messages     # the hub keeps them as text
        except ValueError:
            messages = None
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
            raise InputError(f"{place}: no messages (or history) with role and content; expected a trajectory, and nothing else in this file")
        row["messages"] = messages
        row["id"] = str(row.get("instance_id") or row.get("id") or number)
    return rows, places


def trajectory_examples(row, pairs=2, max_observation=8000):
    """One example per call of a trajectory; the agent's prose is dropped. Raises ValueError with the reason where it has none or did not resolve its task.

    An example's context is the issue and the last `pairs` calls with their observations (paper: two), each cut to max_observation characters.
    """
    if str(row.get("resolved", (row.get("info") or {}).get("resolved", True))).lower() in ("false", "0"):
        raise ValueError("the task was not resolved")
    system, issue, turns = [], [], []                                           # turns: (call, observation)
    for message in row["messages"]:
        if message.get("is_demo"):
            continue
        if message["role"] == "system":
            system.append(message_text(message))
        elif message["role"] == "assistant":
            calls = calls_of(message)
            turns.append(["\n".join(calls), ""])                                # several calls at once are one action; none: a turn without one
        elif turns:
            turns[-1][1] += ("\n" if turns[-1][1] else "") + message_text(message)
        else:
            issue.append(message_text(message))
    turns = [turn for turn in turns if turn[0]]
    if not turns:
        raise ValueError("no call of a function or command in it")
    repository = {name: row[name] for name in ("files", "visible", "hidden") if name in row}       # of the miniature: where 03 runs the calls
    examples = []
    for k, (call, _) in enumerate(turns, 1):
        shown = turns[max(0, k - 1 - pairs):k - 1]
        context = [{"role": role, "content": text} for done, seen in shown for role, text in (("assistant", done), ("user", shorten(seen, max_observation)))]
        examples.append({"id": row["id"], "problem": "\n\n".join(issue), "system": "\n\n".join(system), "partial": "", "context": context,
                         "action": call, "k": k, "n": len(turns), "answer": "", **repository})
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


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=HERE / "miniature/expert.jsonl", help=".jsonl, .json or .parquet with problem and solution")
    parser.add_argument("--dataset", help="a data set of the hub in place of --data, for instance simplescaling/s1K-1.1")
    parser.add_argument("--split", default="train", help="of the hub data set")
    otherwise = {"id": ", else the row number", "answer": ", else the last box of the solution"}
    for field, names in COLUMNS.items():
        parser.add_argument(f"--{field}_column", help=f"default: {' or '.join(names)}{otherwise.get(field, '')}")
    parser.add_argument("--out", type=Path, default=HERE / "runs/data")
    parser.add_argument("--targets", choices=("all", "literal"), default="all", help="literal: the paper's 1..N-1")
    parser.add_argument("--title_hint", action="store_true", help="name the next step's title in the prompt (the paper's footnote)")
    parser.add_argument("--rewrite", metavar="MODEL", help="this model rewrites solutions without steps: a folder, a hub name, or what --rewrite_url calls it")
    parser.add_argument("--rewrite_url", help="an OpenAI-compatible endpoint, for instance http://localhost:8000/v1")
    parser.add_argument("--trajectories", action="store_true", help="the data are an agent's: SWE-smith or SWE-agent, also a .traj file or a folder of them")
    parser.add_argument("--context_pairs", type=int, default=2, help="of trajectories: calls with their observations in the context (paper: 2)")
    parser.add_argument("--max_observation", type=int, default=8000, help="of trajectories: characters; the middle of a longer observation is left out")
    parser.add_argument("--num_val", type=int, help="problems held out for validation (default and paper: 60, of trajectories 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    args = parser.parse_args()
    if args.rewrite_url and not args.rewrite:
        raise InputError("--rewrite_url: name the model with --rewrite")

    source, split, columns = args.dataset or args.data, args.split if args.dataset else None, {field: getattr(args, f"{field}_column") for field in COLUMNS}
    if args.trajectories:
        records, _ = read_trajectories(source, split)
        examples, reasons = segment_trajectories(records, args.context_pairs, args.max_observation)
    else:
        records = read_problems(source, split, columns, ("problem", "solution"))
        if args.rewrite:
            ask = partial(ask_endpoint, args.rewrite_url, args.rewrite) if args.rewrite_url else ask_local(args.rewrite)
            outcome = rewrite(records, ask, args.out / f"rewritten_{Path(args.rewrite).name}.jsonl")
            print("rewriting: " + "; ".join(f"{n} {what}" for what, n in outcome.most_common()))
        examples, reasons = segment(records, args.targets, args.title_hint)
    if not examples:
        expected = "no trajectory has calls to learn" if args.trajectories else "no solution has numbered steps"
        form = "a <function=..> call, a tool call or a command in a message" if args.trajectories else "'1. **Title** action' on lines of their own"
        raise InputError(f"{source}: {expected} ({dict(reasons)}); expected {form}")
    num_val = args.num_val if args.num_val is not None else 30 if args.trajectories else 60
    train, val = split_by_problem(examples, num_val, args.seed)
    for name, part in (("train", train), ("val", val)):
        write_jsonl(args.out / f"{name}.jsonl", part)
    report(records, examples, reasons)      # after the writing: a pipe that closes early costs no data
    for name, part in (("train", train), ("val", val)):
        print(f"{'' if name == 'val' else chr(10)}{args.out / name}.jsonl: {len(part)} examples of {len({e['id'] for e in part})} problems")


if __name__ == "__main__":
    run_main(main)
