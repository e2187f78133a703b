"""SWE-bench: search/replace edits become patches that git applies, on real repositories; an edit that cannot be read or does not fit changes nothing.

What models write and real patches hold, that once gave another outcome (outside reports on harnesses of this form):
| kind | what was wrong | test |
|---|---|---|
| a heading, fence or blank line before, between or behind edits | "### Analysis" and all that followed was the path: malformed | git_applies (headings) |
| a new empty file; text for an empty file | malformed | git_applies (empty files) |
| an edit in thoughts that were never closed | was applied | no_patch |
| a heading of seven "=" inside an edit, or in the text | malformed | git_applies (underlines), no_patch |
| a removed line "-- a/..", a path that git quotes | another file was asked for, or none | paths_of_a_real_patch |
"""
import json
import subprocess
import sys

import pytest

from engine.agents import swebench
from engine.files import InputError

FILES = {
    "pkg/a.py": "def f(x):\n    return x + 1\n\n\ndef g(x):\n    return x + 1\n", "tail.py": "a = 1\nb = 2", "dos.py": "a = 1\r\nb = 2\r\n",
    "form feed.py": "a = 1\n\x0cb = 2\u2028\nc = 3\n", "gone.py": "x = 1\n", "ü.py": "é = 1\n",
    "pkg/__init__.py": "", "docs/a.rst": "Changes\n=======\n\nold\n\nUsage\n=====\n", "doc.py": '"""\nLogging\n=======\n"""\n'}


def edit(path, search, replacement):
    return f"### {path}\n<<<<<<< SEARCH\n{search}=======\n{replacement}>>>>>>> REPLACE\n"


def bare(search, replacement):
    return edit("", search, replacement).partition("\n")[2]


GOOD = edit("gone.py", "x = 1\n", "x = 2\n")


@pytest.fixture
def repository(tmp_path):
    """A clone as 04 expects it, owner__name, with FILES committed; (folder, commit)."""
    folder = tmp_path / "clones/me__it"
    for path, text in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(text.encode())
    git(folder, "init", "-q")
    git(folder, "-c", "core.autocrlf=false", "add", ".")
    git(folder, "-c", "user.name=me", "-c", "user.email=me@example.org", "commit", "-qm", "one")
    return folder, git(folder, "rev-parse", "HEAD").strip()


def git(folder, *command, text=None):
    result = subprocess.run(["git", "-C", folder, *command], input=text, capture_output=True)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode()


@pytest.mark.parametrize("edits, changed", [
    ([("pkg/a.py", "def g(x):\n    return x + 1\n", "def g(x):\n    return x + 2\n")], {"pkg/a.py": FILES["pkg/a.py"][:-2] + "2\n"}),
    ([("pkg/a.py", "def f(x):\n", "def f(x):\n    x = x\n"), ("pkg/a.py", "    x = x\n", "    x = -x\n")],               # the second edits the first's text
     {"pkg/a.py": FILES["pkg/a.py"].replace("def f(x):\n", "def f(x):\n    x = -x\n")}),
    ([("tail.py", "b = 2\n", "b = 3\n")], {"tail.py": "a = 1\nb = 3"}),                                                # no newline at the end, before and after
    ([("tail.py", "a = 1\n", "a = 0\n")], {"tail.py": "a = 0\nb = 2"}),
    ([("dos.py", "b = 2\n", "b = 3\nc = 4\n")], {"dos.py": "a = 1\r\nb = 3\r\nc = 4\r\n"}),
    ([("form feed.py", "c = 3\n", "c = 4\n")], {"form feed.py": "a = 1\n\x0cb = 2\u2028\nc = 4\n"}),
    ([("new/b.py", "", "x = 1\n")], {"new/b.py": "x = 1\n"}), ([("gone.py", "x = 1\n", "")], {"gone.py": None}),
    ([("ü.py", "é = 1\n", "é = 2\n"), ("gone.py", "x = 1\n", "x = 2\n")], {"ü.py": "é = 2\n", "gone.py": "x = 2\n"}),
    # empty files
    ([("pkg/sub/__init__.py", "", ""), ("gone.py", "x = 1\n", "x = 2\n")], {"pkg/sub/__init__.py": "", "gone.py": "x = 2\n"}),
    ([("py.typed", "", "")], {"py.typed": ""}), ([("newdir/ä.txt", "\n", "")], {"newdir/ä.txt": ""}),
    ([("pkg/__init__.py", "", "from .a import f\n")], {"pkg/__init__.py": "from .a import f\n"}),
    ([("pkg/__init__.py", "\n", "a = 1\n\nb = 2\n"), ("pkg/__init__.py", "b = 2\n", "b = 3\n")], {"pkg/__init__.py": "a = 1\n\nb = 3\n"}),
    ([("n.py", "", ""), ("n.py", "", "n = 1\n")], {"n.py": "n = 1\n"}),
    # underlines of seven "="
    ([("docs/a.rst", "Changes\n=======\n\nold\n", "Changes\n=======\n\nnew\n")], {"docs/a.rst": FILES["docs/a.rst"].replace("old", "new")}),
    ([("docs/a.rst", "Changes\n=======\n\nold\n", "Gone\n")], {"docs/a.rst": "Gone\n\nUsage\n=====\n"}),
    ([("docs/a.rst", "old\n", "old\n\nRemoved\n=======\n\nall\n")], {"docs/a.rst": FILES["docs/a.rst"].replace("old\n", "old\n\nRemoved\n=======\n\nall\n")}),
    ([("docs/b.rst", "", "Changes\n=======\n")], {"docs/b.rst": "Changes\n=======\n"}),
    ([("doc.py", "Logging\n=======\n", "Tracing\n=======\n")], {"doc.py": '"""\nTracing\n=======\n"""\n'}),
    # headings, fences and blank lines around edits: the text as it is
    ("### Analysis\nThe bug is in f.\n\n" + GOOD, {"gone.py": "x = 2\n"}),
    ("## Plan\n\n1. x\n\n### Fix\n\n### gone.py\n\n```python\n" + bare("x = 1\n", "x = 2\n") + "```\n\n### Why\nSummary\n=======\nIt works.\n",
     {"gone.py": "x = 2\n"}),
    ("```\n" + GOOD + "```\n\n```python\n" + edit("tail.py", "a = 1\n", "a = 0\n") + "```", {"gone.py": "x = 2\n", "tail.py": "a = 0\nb = 2"}),
    (edit("`pkg/a.py`:", "def f(x):\n", "def f(y):\n") + "\nand\n\n```python\n" + bare("def g(x):\n", "def g(y):\n") + "```",       # one heading for two edits
     {"pkg/a.py": FILES["pkg/a.py"].replace("(x)", "(y)")}),
    ("**gone.py**\n```python\n" + bare("x = 1  \n", "").replace("x = 1  ", "x = 1").replace("SEARCH", "SEARCH  "), {"gone.py": None}),
    ("#### New file: `pkg/b.py`\n" + bare("", "b = 1\n") + "#### 2. Change in gone.py (one line)\n" + bare("x = 1\n", "x = 2\n"),
     {"pkg/b.py": "b = 1\n", "gone.py": "x = 2\n"}),
    # a heading with more words than the path
    *((f"{heading}\n" + bare("", "x = 1\n"), {path: "x = 1\n"}) for heading, path in (
        ("### pkg/b.py (new file)", "pkg/b.py"), ("### docs/a b.rst", "docs/a b.rst"), ("### docs/a b.rst (new)", "docs/a b.rst"), ("```python:c.py",
            "c.py"), ("### New file: pkg/b.kt", "pkg/b.kt"), ("### pkg/py.typed (new file, empty)", "pkg/py.typed"),
        ("### pkg/b.py\n#### Create the new file", "pkg/b.py"), ("### src/x.cpp (new)", "src/x.cpp"), ("### pkg/.gitignore (new)", "pkg/.gitignore"),
        ("### b.py (see gone.txt)", "b.py"))),
    *((f"{heading}\n" + bare("x = 1\n", "x = 2\n"), {"gone.py": "x = 2\n"}) for heading in (
        "**File:** gone.py", "**File**: gone.py", "File `gone.py`:", "**File path:** gone.py", "Filename: gone.py", "Path: gone.py", "FILE: gone.py",
        "**Edit 1: `gone.py`**", "**1. gone.py**", "`gone.py` (modified)", "```python:gone.py", "### gone.py\nPath handling in tail.py is wrong.",
        "### gone.py\n#### `Foo.bar`", "### gone.py\n#### settings.DEBUG", "### gone.py\n### and/or", "### gone.py\n#### See https://x.org/models.html",
        "File: gone.py", "**File: `gone.py`**", "### ./gone.py", "1. gone.py", "- `gone.py`", "### gone.py:2", "### gone.py (as in tail.py)")),
    ("```python gone.py\n" + bare("x = 1\n", "x = 2\n") + "```", {"gone.py": "x = 2\n"}),
    # prose about a tag
    *((f"{prose}\n{GOOD}", {"gone.py": "x = 2\n"}) for prose in ('The tag "<think>" is lost.', "So is '</think>'.", "As in\n```html\n<think>\n```")),
    ("I leave the `<think>` tag alone.\n" + GOOD + "So `</think>` stays.", {"gone.py": "x = 2\n"}),
    ("<think>first " + edit("gone.py", "x = 1\n", "x = 9\n") + "</think>\n" + edit("gone.py", "x = 1\n", 'x = "<think>"\n'), {"gone.py": 'x = "<think>"\n'}),
])
def test_git_applies_the_patch_and_the_files_are_what_the_edits_say(repository, edits, changed):
    folder, _ = repository
    patch, outcome = swebench.patch_of(edits if isinstance(edits, str) else "I edit.\n" + "\n".join(edit(*e) for e in edits), FILES)
    git(folder, "apply", "-", text=patch.encode())
    found = {path: (folder / path).read_bytes().decode() if (folder / path).exists() else None for path in {**FILES, **changed}}
    assert outcome == "patch" and found == {**FILES, **changed}


@pytest.mark.parametrize("completion, outcome", [
    ("I would change x.", "no edit"),
    (GOOD + edit("pkg/a.py", "    return x + 1\n", "    return 0\n"), "malformed"),               # the second occurs two times: the first is not applied either
    (GOOD + edit("pkg/a.py", "return 7\n", "return 8\n"), "malformed"), (GOOD + edit("pkg/a.py", "return x + 1\n", "y\n"), "malformed"),   # part of a line
    (GOOD + "### tail.py\n<<<<<<< SEARCH\na = 1\n=======\n", "malformed"),                        # cut off
    (GOOD + edit("tail.py", "a = 1\n", "a = 2\n=======\n"), "malformed"),
    (edit("../out.py", "", "x\n"), "malformed"), (edit("/etc/x", "", "x\n"), "malformed"), (edit(".git/hooks/x", "", "x\n"), "malformed"),
    (edit("unseen.py", "x = 1\n", "x = 2\n"), "malformed"), (edit("gone.py", "x = 1\n", "x = 1\n"), "no change"),
    ("<think>one idea\n" + GOOD + "but that is wrong", "no edit"), ("<thinking>\n" + GOOD, "no edit"),
        ("<|channel|>analysis<|message|>I try\n" + GOOD, "no edit"), (GOOD + "</think>\nNothing to do.", "no edit"),
    ("It works.\n\nSummary\n=======\n", "no edit"), (bare("x = 1\n", "x = 2\n"), "malformed"), ("### Analysis\n" + bare("x = 1\n", "x = 2\n"), "malformed"),
    ("### gone.py\n<<<<<<< SEARCH\nx = 1\n", "malformed"), ("### gone.py\n<<<<<<< SEARCH\nx = 1\n>>>>>>> REPLACE", "malformed"),
    (GOOD + edit("unseen.py", "x = 2\n", "x = 3\n"), "malformed"),                              # fits the file of the edit before
    (edit("new.py", "", "a = 1\n=======\n"), "malformed"), (edit("pkg/__init__.py", "a\n", "b\n"), "malformed"),
])
def test_what_does_not_fit_gives_no_patch_and_is_counted(completion, outcome):
    assert swebench.patch_of(completion, FILES) == ("", outcome)


def test_the_paths_of_a_real_patch_are_read_whatever_its_lines_say(repository):
    folder, _ = repository
    (folder / "ü.py").write_text("-- a/query.sql\n-- b\n@@ -1 +1 @@\n")
    (folder / "form feed.py").write_text("++ b/x\n")
    git(folder, "add", ".")
    git(folder, "-c", "user.name=me", "-c", "user.email=me@example.org", "commit", "-qm", "two")
    for path in ("ü.py", "form feed.py", "gone.py", "pkg/__init__.py"):
        (folder / path).write_text("++ b/x\n-- a/y\n" if path == "form feed.py" else "new")
    (folder / "pkg/a.py").unlink()
    (folder / "added ö.py").write_text("-- a/z\n")
    git(folder, "add", ".")
    patch = git(folder, "diff", "--cached")
    assert '--- "a/\\303\\274.py"' in patch and "\n--- a/query.sql\n" in patch and "\n+-- a/y\n" in patch        # quoted, a removed line, an added one
    renamed = "diff --git a/old.py b/new.py\nsimilarity index 100%\nrename from old.py\nrename to new.py\n"
    assert swebench.changed_paths(renamed + patch)[0] == "old.py"
    assert sorted(swebench.changed_paths(patch)) == ["form feed.py", "gone.py", "pkg/__init__.py", "pkg/a.py", "ü.py"]
    assert swebench.changed_paths(git(folder, "-c", "core.quotepath=off", "diff", "--cached")) == swebench.changed_paths(patch)


def test_predictions_have_the_harness_format_and_say_how_to_grade_them(evaluate, srl, repository, tiny, tokenizer, tmp_path, monkeypatch, capsys):
    folder, commit = repository
    gold = "diff --git a/gone.py b/gone.py\n--- a/gone.py\n+++ b/gone.py\n@@ -1 +1 @@\n-x = 1\n+x = 3\n"
    instances = [{"instance_id": f"me__it-{n}", "repo": "me/it", "base_commit": commit, "problem_statement": "x is wrong", "patch": gold} for n in range(4)]
    (tmp_path / "verified.jsonl").write_text("\n".join(map(json.dumps, instances)))
    (folder / "gone.py").write_text("the working tree is not what counts\n")
    asked = []

    def run_episodes(policy, tokenizer, examples, group_size, make_prompt, extend, cfg, temperature):
        asked.extend(make_prompt(e) for e in examples)
        texts = [(GOOD, True), (GOOD + "### x", False), (edit("gone.py", "y\n", "z\n"), True), (f"<think>{GOOD}</think>\nno", True)]     # thoughts are no edits
        return [[srl.Episode(e, [srl.Turn([], [], [], text)], finished)] for e, (text, finished) in zip(examples, texts, strict=True)]

    monkeypatch.setattr(srl, "run_episodes", run_episodes)
    monkeypatch.setattr(evaluate, "load_policy", lambda *args: (tiny, tokenizer))
    monkeypatch.setattr(sys, "argv", ["04_eval.py", "--swebench", str(tmp_path / "verified.jsonl"), "--repositories", str(folder.parent),
                                      "--models", "mine=model", "--completions", str(tmp_path / "out")])
    evaluate.main()
    assert "x is wrong" in asked[0][1]["content"] and "### gone.py\n```\nx = 1\n```" in asked[0][1]["content"]
    predictions = [json.loads(line) for line in open(tmp_path / "out/mine/predictions.jsonl")]
    assert [list(p) for p in predictions] == [["instance_id", "model_name_or_path", "model_patch"]] * 4
    printed = capsys.readouterr().out
    assert [bool(p["model_patch"]) for p in predictions] == [True, False, False, False] and "1 patch, 1 truncated, 1 malformed, 1 no edit" in printed
    assert "python -m swebench.harness.run_evaluation --dataset_name" in printed
    asked.clear()
    monkeypatch.setattr(tiny.config, "max_position_embeddings", 64)
    with pytest.raises(InputError, match="64"):                         # before the first completion
        evaluate.main()
    assert not asked


@pytest.mark.parametrize("row", ["[1]", "3", '"text"', "null", "{}", '{"repo": "me/it", "instance_id": ""}'])
def test_a_row_that_is_no_instance_is_named(tmp_path, row):
    (tmp_path / "rows.jsonl").write_text(row)
    with pytest.raises(InputError, match=r"rows.jsonl.*no .*expected an instance of SWE-bench"):
        swebench.load_instances(tmp_path / "rows.jsonl", tmp_path)
