"""SWE-bench, oracle setting: without this file no edit of a completion becomes a patch for its harness."""
import difflib
import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

from ..files import InputError, read_rows, write_jsonl

SYSTEM = (
    "You are given an issue of a Python repository and the files that have to change. You may think at any point between <think> and </think>. Then write the edits, "
    "each in this form:\n### path/to/file.py\n<<<<<<< SEARCH\nlines as they stand in the file, enough to occur once\n=======\nlines in their place\n>>>>>>> REPLACE\n"
    "A new file has nothing between SEARCH and =======.")
EDIT = re.compile(r"^### +(\S.*?) *\n<{7} SEARCH\n(.*?)^={7}\n(.*?)^>{7} REPLACE *$", re.M | re.S)
MARK = re.compile(r"^(?:<{7} SEARCH|={7}$|>{7} REPLACE)", re.M)
FIELDS = ("instance_id", "repo", "base_commit", "problem_statement", "patch")
QUOTED = re.compile(r"[\x00-\x1f\"\\]")        # what git quotes in a path


def make_prompt(instance):
    """Chat messages with the issue and the files that the right patch changes."""
    files = "\n\n".join(f"### {path}\n```\n{text}```" for path, text in instance["files"].items())
    return [{"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"{instance['problem_statement']}\n\n{files}"}]


def parse_edits(text):
    """[(path, search, replacement)] of a text. Raises ValueError where there is none, or one is cut."""
    text = text.replace("\r\n", "\n")
    edits = EDIT.findall(text)
    if not edits:
        raise ValueError("no edit")
    if MARK.search(EDIT.sub("", text)) or any(MARK.search(part) for edit in edits for part in edit[1:]):
        raise ValueError("marks of an edit that is not complete")
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


def apply_edits(files, edits):
    """The files {path: text, None: removed} after all edits. Raises ValueError where one does not fit."""
    new = dict(files)
    for path, search, replacement in edits:
        if path.startswith(("/", "-")) or {"..", ".git"} & set(path.split("/")) or QUOTED.search(path):
            raise ValueError(f"{path!r}: not a path inside the repository")
        if new.get(path) is not None:
            new[path] = replace_lines(path, new[path], search, replacement)
        elif replacement and not search.strip():
            new[path] = replacement
        else:
            raise ValueError(f"{path}: not among the files given")
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
            head = f"new file mode 100644\n--- /dev/null\n+++ b/{path}{tab}\n"
        elif after is None:
            head = f"deleted file mode 100644\n--- a/{path}{tab}\n+++ /dev/null\n"
        patch += f"diff --git a/{path} b/{path}\n{head}"
        for line in list(difflib.unified_diff(*lines, n=3))[2:]:
            patch += line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
    return patch


def patch_of(text, files):
    """(patch, outcome) of a text: all of its edits, or an empty patch where one is malformed."""
    try:
        new = apply_edits(files, parse_edits(text))
    except ValueError as error:
        return "", "no edit" if str(error) == "no edit" else "malformed"
    if any("\ufffd" in files.get(path, "") for path in new if new[path] != files.get(path)):
        return "", "malformed"                  # a file that is not UTF-8: its bytes are not known
    patch = unified_patch(files, new)
    return patch, "patch" if patch else "no change"


def load_instances(source, repositories, limit=None):
    """Instances with `files`: the texts, at base_commit, that the right patch changes."""
    rows, places = read_rows(source) if Path(source).exists() else read_rows(source, "test")
    for row, place in zip(rows[:limit], places, strict=False):
        if missing := [name for name in FIELDS if not row.get(name)]:
            raise InputError(f"{place}: no {' and no '.join(missing)}; expected an instance of SWE-bench")
        clone, commit = Path(repositories) / row["repo"].replace("/", "__"), row["base_commit"]
        if not clone.is_dir():
            raise InputError(f"{clone}: no such clone; git clone https://github.com/{row['repo']} {clone}")
        row["files"] = {}
        for path in re.findall(r"^--- a/(.+?)\t?$", row["patch"], re.MULTILINE):
            shown = subprocess.run(["git", "-C", clone, "show", f"{commit}:{path}"], capture_output=True)
            if shown.returncode:
                why = shown.stderr.decode().strip()
                raise InputError(f"{clone}: no {path} at {commit} ({why}); fetch the commit")
            row["files"][path] = shown.stdout.decode("utf-8", "replace")
    return rows[:limit]


def write_predictions(path, model, instances, texts, dataset):
    """Write predictions.jsonl of texts (None: truncated), and run the official harness or print how to."""
    patches = [("", "truncated") if text is None else patch_of(text, instance["files"])
               for text, instance in zip(texts, instances, strict=True)]
    write_jsonl(path, [{"instance_id": i["instance_id"], "model_name_or_path": model, "model_patch": patch}
                       for i, (patch, _) in zip(instances, patches, strict=True)])
    outcomes = Counter(outcome for _, outcome in patches).most_common()
    print(f"{path}: {len(patches)} instances; " + ", ".join(f"{n} {outcome}" for outcome, n in outcomes))
    command = ["-m", "swebench.harness.run_evaluation", "--dataset_name", str(dataset),
               "--predictions_path", str(path), "--run_id", model]
    docker = shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True)
    if docker and docker.returncode == 0 and importlib.util.find_spec("swebench"):
        subprocess.run([sys.executable, *command], check=True)
    else:
        print(f"to grade it, on a machine with Docker: pip install swebench && python {' '.join(command)}")
