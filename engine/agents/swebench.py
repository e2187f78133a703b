"""SWE-bench, oracle setting: without this file no edit of a completion becomes a patch for its harness."""
import difflib
import re
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path

from ..files import InputError, read_rows, write_jsonl
from ..problems import TAG_IN_QUOTES, THOUGHT_TAG, without_thoughts

SYSTEM = (
    "You are given an issue of a Python repository and the files that have to change. You may think at any point between <think> and </think>. "
    "Then write the edits, each in this form:\n### path/to/file.py\n<<<<<<< SEARCH\nlines as they stand in the file, enough to occur once\n=======\n"
    "lines in their place\n>>>>>>> REPLACE\nA new file has nothing between SEARCH and =======.")
START, DIVIDER, END = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"
EDIT = re.compile(rf"^{START}\s*?\n(.*?)^{END}\s*?$", re.DOTALL | re.MULTILINE)
# an edit may hold tags of thoughts: it changes a file that has them
EDIT_OR_THOUGHT = re.compile(rf"""(?-x:{EDIT.pattern}) | ^```(?:(?!^<<<).)*?^```[ ]*$ | {THOUGHT_TAG.pattern}
    | {TAG_IN_QUOTES}""", re.DOTALL | re.MULTILINE | re.IGNORECASE | re.VERBOSE)
FILE_NAME = re.compile(r"""(?:\S*/)?(?: (?:Make|Docker|Pip|Proc)file | \.git\w+
    | \S+\.(?:py[ixd]?|rst|md|txt|cfg|toml|ini|json|ya?ml|html|css|[jt]sx?|c|cc|cpp|h|in|sh|typed) )
    | \S*\w/\S*\.\w+""", re.VERBOSE)
HEADING = re.compile(r"""\#+\  | \W*(?:file(?:\ ?path|name)?|path)(?:\W*:|\ `[^`]+`\W*$) | ```\w+[ :]
    | \*\*[^*]+\*\*\W*$ | `[^`]+`\ \(.*\)$""", re.IGNORECASE | re.VERBOSE)
# of a file that a patch changes or deletes; no line of a hunk begins with "diff"
OLD_PATH = re.compile(r'''^diff\ --git\ .*\n(?:(?!diff\ --git\ |@@\ ).*\n)*?
    (?:---\ "?a/|rename\ from\ "?)([^\t\r\n]*)''', re.MULTILINE | re.VERBOSE)
FIELDS = ("instance_id", "repo", "base_commit", "problem_statement", "patch")
QUOTED = re.compile(r"[\x00-\x1f\"\\]")        # what git quotes in a path


def make_prompt(instance):
    """Chat messages with the issue and the files that the right patch changes."""
    files = "\n\n".join(f"### {path}\n```\n{text}```" for path, text in instance["files"].items())
    return [{"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"{instance['problem_statement']}\n\n{files}"}]


def named_path(line, files, known):
    """The path that a line outside of the edits names, a heading or a given file's name alone; or `known`."""
    name = re.sub(r"^(?:(?:#+|[-*]|\d+\.)\s+|```\w+:)", "", line.strip()).strip(" \t*`:").removeprefix("./")
    if name in files:
        return name
    words = [word.strip("*`:,()\"'").removeprefix("./") for word in name.split() if HEADING.match(line)]
    words = [re.sub(r":\d+$", "", word) for word in words if "://" not in word]     # a line of the file
    found = [word for word in words if word in files] or [w for w in words if FILE_NAME.fullmatch(w)]
    if found and found[0] not in files and "/" in words[0] and words[0] not in found:
        found = [name.partition(" (")[0]]       # docs/a b.rst
    if len(words) == 1 and not known and re.search(r"/|\w\.\w|^\.\w", words[0]):
        found = words                           # a kind of file that is not known, or not inside
    return found[0] if found else known


def parse_edits(text, files=()):
    """[(path, [(search, replacement), ..])] of a text: the lines of each edit, cut at one of its dividers.

    A heading before an edit names its path; an edit without one is of the last path. Raises ValueError
    where there is no edit, or one that is not complete.
    """
    edits, path, position, text = [], None, 0, text.replace("\r\n", "\n")
    for edit in EDIT.finditer(text):
        for line in text[position:edit.start()].split("\n"):
            path = named_path(line, files, path)
        inside, position = re.findall(r".*\n", edit[1]), edit.end()
        marks = [line.rstrip() for line in inside]
        cuts = [i for i, mark in enumerate(marks) if mark == DIVIDER]
        if path is None or START in marks or not cuts:
            raise ValueError("an edit without a path or a divider, or in another edit")
        edits.append((path, [("".join(inside[:i]), "".join(inside[i + 1:])) for i in cuts]))
    if re.search(rf"^(?:{START}|{END})\s*$", EDIT.sub("", text), re.MULTILINE):
        raise ValueError("an edit that does not begin or end")
    if not edits:
        raise ValueError("no edit")
    return edits


def replace_lines(path, text, search, replacement):
    """The text with the lines `search`, which have to occur once, replaced; None where nothing is left.

    Where every line of a file ends in CRLF, so do the new lines. A last line without an end keeps none.
    """
    newline = "\r\n" if 0 < text.count("\r\n") == text.count("\n") else "\n"
    search, replacement = search.replace("\n", newline), replacement.replace("\n", newline)
    ended = text.endswith(newline)
    text = text if ended else text + newline
    found = [m.start() for m in re.finditer(f"(?=^{re.escape(search)})", text, re.M)] if search else []
    if len(found) != 1:
        raise ValueError(f"{path}: the lines to replace occur {len(found)} times")
    text = text[:found[0]] + replacement + text[found[0] + len(search):]
    return (text if ended else text.removesuffix(newline)) or None


def apply_edit(path, text, cuts):
    """The text of a file (None: there is none) after an edit. Raises ValueError where it does not fit.

    Of several dividers all but one underline headings: the one counts that gives the longest text to search.
    """
    if len(cuts) > 1 and path.endswith(".py") and f"\n{DIVIDER}" not in f"\n{text}":
        raise ValueError(f"{path}: two dividers in an edit")
    if not (text or "").strip():
        search, replacement = cuts[0]
        if search.strip():
            raise ValueError(f"{path}: not among the files given")
        return replacement
    for search, replacement in reversed(cuts[1:]):
        with suppress(ValueError):
            return replace_lines(path, text, search, replacement)
    return replace_lines(path, text, *cuts[0])


def apply_edits(files, edits):
    """The files {path: text, None: removed} after all edits. Raises ValueError where one does not fit."""
    new = dict(files)
    for path, cuts in edits:
        if path.startswith(("/", "-")) or {"..", ".git"} & set(path.split("/")) or QUOTED.search(path):
            raise ValueError(f"{path!r}: not a path inside the repository")
        new[path] = apply_edit(path, new.get(path), cuts)
    return new


def unified_patch(old, new):
    """A patch that `git apply` takes, from files {path: text} to files {path: text or None}."""
    patch = ""
    for path in sorted(new):
        before, after = old.get(path), new[path]
        if before == after:
            continue
        # not splitlines: a form feed ends no line
        lines = [re.findall(r"[^\n]*\n|[^\n]+", text or "") for text in (before, after)]
        tab = "\t" if " " in path else ""       # as git writes it
        head = f"--- a/{path}{tab}\n+++ b/{path}{tab}\n"
        if before is None:
            head = "new file mode 100644\n"
            head += f"--- /dev/null\n+++ b/{path}{tab}\n" if after else "index 0000000..e69de29\n"
        elif after is None:
            head = f"deleted file mode 100644\n--- a/{path}{tab}\n+++ /dev/null\n"
        patch += f"diff --git a/{path} b/{path}\n{head}"
        for line in list(difflib.unified_diff(*lines, n=3))[2:]:
            patch += line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
    return patch


def patch_of(text, files):
    """(patch, outcome) of a text: all of its edits outside of thoughts, or "" where one is malformed."""
    try:
        new = apply_edits(files, parse_edits(without_thoughts(text, EDIT_OR_THOUGHT), files))
    except ValueError as error:
        return "", "no edit" if str(error) == "no edit" else "malformed"
    if any("\ufffd" in files.get(path, "") for path in new if new[path] != files.get(path)):
        return "", "malformed"                  # a file that is not UTF-8: its bytes are not known
    patch = unified_patch(files, new)
    return patch, "patch" if patch else "no change"


def changed_paths(patch):
    """The paths of the files that a patch of git changes or deletes."""
    def unquoted(path):                         # as git quotes it: "\303\274.py" is ü.py
        return path[:-1].encode().decode("unicode_escape").encode("latin-1").decode()
    return [unquoted(path) if path.endswith('"') else path for path in OLD_PATH.findall(patch)]


def load_instances(source, repositories, limit=None):
    """Instances with `files`: the texts, at base_commit, that the right patch changes."""
    rows, places = read_rows(source) if Path(source).exists() else read_rows(source, "test")
    for row, place in zip(rows[:limit], places, strict=False):
        if missing := [name for name in FIELDS if not isinstance(row, dict) or not row.get(name)]:
            raise InputError(f"{place}: no {' and no '.join(missing)}; expected an instance of SWE-bench")
        clone, commit = Path(repositories) / row["repo"].replace("/", "__"), row["base_commit"]
        if not clone.is_dir():
            raise InputError(f"{clone}: no such clone; git clone https://github.com/{row['repo']} {clone}")
        row["files"] = {}
        for path in changed_paths(row["patch"]):
            shown = subprocess.run(["git", "-C", clone, "show", f"{commit}:{path}"], capture_output=True)
            if shown.returncode:
                why = shown.stderr.decode().strip()
                raise InputError(f"{clone}: no {path} at {commit} ({why}); fetch the commit")
            row["files"][path] = shown.stdout.decode("utf-8", "replace")
    return rows[:limit]


def write_predictions(folder, model, instances, texts, dataset):
    """Write MODEL/predictions.jsonl in a folder, of texts (None: truncated); prints the command of the
    official harness."""
    patches = [("", "truncated") if text is None else patch_of(text, instance["files"])
               for text, instance in zip(texts, instances, strict=True)]
    path = folder / model / "predictions.jsonl"
    write_jsonl(path, [{"instance_id": i["instance_id"], "model_name_or_path": model, "model_patch": patch}
                       for i, (patch, _) in zip(instances, patches, strict=True)])
    outcomes = Counter(outcome for _, outcome in patches).most_common()
    print(f"{path}: {len(patches)} instances; " + ", ".join(f"{n} {outcome}" for outcome, n in outcomes))
    print("to grade it, on a machine with Docker: pip install swebench && python -m swebench.harness."
          f"run_evaluation --dataset_name {dataset} --predictions_path {path} --run_id {model}")
