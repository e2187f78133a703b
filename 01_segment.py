"""Stage 1: cut expert solutions into steps, one training example per step.

A solution of N numbered steps becomes one example per target step k: the context is the problem and steps 1..k-1, the target is step k
(paper section 4.1). The split into training and validation is by problem, never by step: the steps of one solution share their numbers.

Differences from the paper: the paper's targets are steps 1..N-1, so the last step is never one (--targets literal). The default here is all N,
because a policy that is asked for one step at a time has to learn to finish too.

in:      problems with solutions in numbered steps: a .jsonl, .json or .parquet file, or a data set of the hub; optional thoughts, one per step
out:     runs/data/train.jsonl, runs/data/val.jsonl: one example a line
command: python 01_segment.py                 # the miniature's 560 problems, 2 s
         python 01_segment.py --dataset simplescaling/s1K-1.1 --solution_column deepseek_attempt --out runs/s1k        # the paper's data
"""
import argparse
import json
import os
import random
import re
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
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
        print(f"error: {error}", file=sys.stderr)
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


def read_jsonl(path, fields=()):
    """The records of a JSONL file; every one has the named `fields`, none empty. Raises InputError with file, line and what is expected."""
    records, places = parse_jsonl(path)
    for record, place in zip(records, places, strict=True):
        missing = [f for f in fields if not isinstance(record, dict) or record.get(f) in (None, "")]
        if missing:
            raise InputError(f"{place}: no {' and no '.join(missing)}; expected an object with {', '.join(fields)}")
    return records


def write_text(path, text):
    """Write to a temporary name, then rename: the file is complete or absent."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


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
    r"""The content of the last complete \boxed{..}, or None. One pass, whatever stands in the text: a model may write a million open braces."""
    begins, found, content = [], -1, None
    for token in re.finditer(r"\\+boxed\s*\{|\\.|[{}]", text, re.DOTALL):      # an escaped brace is no brace
        if token[0].endswith("{") and token[0] != "\\{":
            begins.append(token.end() if len(token[0]) > 1 else -1)              # of a box, or of another brace
        elif token[0] == "}" and begins and (begin := begins.pop()) > found:
            found, content = begin, text[begin:token.start()]
    return content


# columns by the names that public data sets give them; the first that a row has
COLUMNS = {"id": ("id", "unique_id", "idx"), "problem": ("problem", "question"), "solution": ("solution",), "answer": ("answer",)}


def read_problems(source, split=None, columns=None, need=("problem",)):
    """Records with id, problem, solution and answer (strings) of a file or a hub data set; the other columns of a row stay as they are.

    columns: {field: the column it stands in} where it is none of COLUMNS. Without an id the row number is the id. Without an answer the last box of
    the solution is the answer, and without a box it is "": a proof has none. Raises InputError that names the row where a field of `need` has no
    column, a problem is empty, or an id stands twice.
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
                raise InputError(f"{place}: no {chosen or field}; there are the columns {', '.join(row)}: name the right one with --{field}_column")
            value = next((row[name] for name in names if row.get(name) not in (None, "")), "")
            value = int(value) if isinstance(value, float) and value.is_integer() else value        # 27.0 is 27
            record[field] = str(value).replace("\f", "\\f")                                         # a form feed in a formula was a \frac
        if not record["problem"].strip():
            raise InputError(f"{place}: the problem is empty; write it, or remove the record")
        record["id"] = record["id"] or str(number)
        record["answer"] = (last_boxed(record["answer"]) or record["answer"] or last_boxed(record["solution"]) or "").strip()
        if record["id"] in seen:
            raise InputError(f"{place}: id {record['id']!r} stands 2 times, first in {seen[record['id']]}; ids must differ, the split is by problem")
        seen[record["id"]] = place
        records.append({**row, **record})
    return records


# 2. Steps
# A line that begins a step has a number and a title. Not "2. plain item" (a list inside a step), not "1.1" (a part of a step), not "**12** of them"
STEP_START = re.compile(r"""^[ ]{0,3} (?:
      \#{1,6}[ \t]+(?:\*\*)? (?: (?i:step)[ \t]+(\d{1,3})(?!\d|\.\d) | (\d{1,3})[.:)](?!\d) )      # ### Step 1: Title, ### 1. Title
    | \*\* (?: (?i:step)[ \t]+(\d{1,3})(?!\d|\.\d) | (\d{1,3})[.:)](?!\d) )                        # **Step 1: Title**, **1. Title**
    | (\d{1,3})[.)][ \t]*\*\*(?=\S)                                                              # 1. **Title**
    | (?i:step)[ \t]+(\d{1,3})[ \t]*[.:](?!\d)                                                   # Step 1: text
    )""", re.MULTILINE | re.VERBOSE)
# No step begins in fenced code or in a display formula
BLOCK = re.compile(r"""^[ \t]*(```|~~~).*?^[ \t]*\1
    | \$\$ (?:(?!\n[ \t]*\n).)*? \$\$              # no empty line inside: a $$ without a partner must not reach for the next one
    | (?<!\\)\\\[ (?:(?!\\\[).)*? \\\]
    | \\begin\{([a-z]+\*?)\} .*? \\end\{\2\}""", re.MULTILINE | re.VERBOSE | re.DOTALL)


def step_starts(solution):
    """Places where steps 1..N of a solution begin. Raises ValueError with the reason where they do not run 1, 2, .. N with N > 1.

    Where steps hold numbered titles of their own (### Step 3 with 1. **Case one**), the outermost kind counts: headings before the rest, else the kind
    that comes first. A list in the same style that starts again at 1 may be part (b) as well as a list of cases; it is not guessed at but refused.
    """
    found = []                                                                                  # (place, indentation, kind, number)
    for m in STEP_START.finditer(BLOCK.sub(lambda block: "x" * len(block[0]), solution)):
        before = solution[m.start():m.start(m.lastindex)]                                       # "### Step ", "**", ..
        found.append((m.start(), len(before) - len(before.lstrip(" ")), before.strip().lower(), int(m[m.lastindex])))
    margin = min((indent for _, indent, _, _ in found), default=0) + 1                          # " 9." and "10." may be aligned on the right
    found = [f for f in found if f[1] <= margin]                                                # further in: a list inside a step
    if not found:
        raise ValueError("no numbered steps with a title")
    outermost = min((kind for _, _, kind, _ in found), key=lambda kind: kind.count("#") or 7)   # min is stable: else the first
    outer, inner = [f for f in found if f[2] == outermost], [f for f in found if f[2] != outermost]
    starts = outer if inner and inner[0][3] == outer[0][3] == 1 else found                      # both begin at 1: one is inside the other
    numbers = [number for _, _, _, number in starts]
    if len(numbers) < 2:
        raise ValueError("fewer than two steps")
    if numbers[0] != 1:
        raise ValueError("numbering does not begin at 1")
    if numbers != list(range(1, len(numbers) + 1)):
        raise ValueError("numbering restarts" if len(set(numbers)) < len(numbers) else "numbering skips")
    return [place for place, _, _, _ in starts]


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
    return title.strip(" \t:.-–—")


def step_examples(problem, steps, preamble="", targets="all", title_hint=False):
    """One example per target step: the problem, the partial solution (preamble and steps 1..k-1) and the action (step k).

    targets: "all" for k = 1..N, "literal" for the paper's k = 1..N-1. title_hint: the prompt names the title of step k (the paper's footnote).
    """
    last = len(steps) if targets == "all" else len(steps) - 1
    examples = [{"problem": problem, "partial": preamble + "".join(steps[:k - 1]), "action": steps[k - 1].strip(), "k": k, "n": len(steps)}
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
    write = pipeline("text-generation", model=name)
    return lambda prompt: write([{"role": "user", "content": prompt}], max_new_tokens=4096, do_sample=False, return_full_text=False)[0]["generated_text"]


def rewrite(records, ask, path):
    """Put steps in place of every solution that does not segment, where a rewriting passes the check. Returns Counter of what became of them.

    The check: it has numbered steps, and the same boxed answer as the original where that had one. Answers are kept in the file `path` as they come, so
    that a run that was interrupted asks for none of them again. A bare result is left alone: its steps would be invented, not rewritten.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {(r["id"], r["solution"]): r["rewritten"] for r in read_jsonl(path)} if path.exists() else {}
    outcome = Counter()
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
                log.write(json.dumps({"id": key[0], "solution": key[1], "rewritten": known[key]}, ensure_ascii=False) + "\n")
                log.flush()
            try:
                split_steps(known[key])
                kept_answer = last_boxed(key[1]) in (None, last_boxed(known[key]))
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
    print(f"{len(records)} problems read, {len(kept)} kept, {len(records) - len(kept)} dropped" + "".join(f"; {n} {why}" for why, n in reasons.most_common()))
    if without := len({e["id"] for e in examples if not e["answer"]}):
        print(f"{without} of them have no answer: SRL needs none, RLVR leaves them out")
    sizes = Counter(kept.values())
    print("steps per solution: " + ", ".join(f"{n} steps: {count}" for n, count in sorted(sizes.items())))
    for example in random.Random(0).sample(examples, min(3, len(examples))):
        print(f"\n--- problem {example['id']}, step {example['k']} of {example['n']}\ncontext:  {example['problem']}")
        print("".join(f"          {line}\n" for line in example["partial"].splitlines()) + f"target:   {example['action']}")


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
    parser.add_argument("--num_val", type=int, default=60, help="problems held out for validation (paper: 60)")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    args = parser.parse_args()
    if args.rewrite_url and not args.rewrite:
        raise InputError("--rewrite_url: name the model with --rewrite")

    source, columns = args.dataset or args.data, {field: getattr(args, f"{field}_column") for field in COLUMNS}
    records = read_problems(source, args.split if args.dataset else None, columns, ("problem", "solution"))
    if args.rewrite:
        ask = partial(ask_endpoint, args.rewrite_url, args.rewrite) if args.rewrite_url else ask_local(args.rewrite)
        print("rewriting: " + "; ".join(f"{n} {what}" for what, n in rewrite(records, ask, args.out / "rewritten.jsonl").most_common()))
    examples, reasons = segment(records, args.targets, args.title_hint)
    if not examples:
        raise InputError(f"{source}: no solution has numbered steps ({dict(reasons)}); expected '1. **Title** action' on lines of their own")
    train, val = split_by_problem(examples, args.num_val, args.seed)
    report(records, examples, reasons)
    for name, part in (("train", train), ("val", val)):
        write_jsonl(args.out / f"{name}.jsonl", part)
        print(f"{'' if name == 'val' else chr(10)}{args.out / name}.jsonl: {len(part)} examples of {len({e['id'] for e in part})} problems")


if __name__ == "__main__":
    run_main(main)
