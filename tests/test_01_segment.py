"""Stage 1: the forms in which people and models number their steps, examples, the split, files as they come, rewriting."""
import http.server
import json
import random
import threading
import time
from collections import Counter

import pytest
from conftest import ROOT

from engine import files, problems, rewriter

S1K = ROOT.parent / "shared/data/s1k/s1k_numbered_sample_60.jsonl"
needs_s1k = pytest.mark.skipif(not S1K.exists(), reason=f"no {S1K}: a sample of real solutions that is not part of the repository")
SOLUTION = "We solve for x.\n\n1. **Expand** 6x + 3 = 9\n   - twice 3x\n2. **Subtract 3** 6x = 6\n\n3. **Divide by 6** x = 1\n\nSo the answer is \\boxed{1}."
CASES, NONE = "1. **Case one**\nx\n2. **Case two**\ny\n", "no numbered steps with a title"


def numbered(begin, steps=3):
    return "".join(f"{begin.format(n)}\nSo $a_{n} = {n}$.\n\n" for n in range(1, steps + 1))


# The real sample
@needs_s1k
def test_of_60_real_solutions_the_40_numbered_are_kept_and_the_others_dropped_for_a_reason(segment):
    outcome, titles = Counter(), []
    for record in files.read_jsonl(S1K):
        try:
            steps = segment.split_steps(record["solution"])
        except ValueError as error:
            outcome[record["kind"], str(error)] += 1
            continue
        outcome[record["kind"], "kept"] += 1
        assert record["solution"].endswith("".join(steps)) and len(steps) >= 3
        titles += map(segment.step_title, steps)
        for step in steps:                                                      # no step is cut inside a formula
            for opening, closing in (("\\[", "\\]"), ("\\(", "\\)"), ("\\begin{", "\\end{")):
                assert step.count(opening) == step.count(closing), (record["id"], step)
    assert outcome == {("numbered", "kept"): 40, ("numbered_irregular", "numbering restarts"): 10, ("short_answer", "no numbered steps with a title"): 10}
    assert len(titles) == 265 and all(titles) and {"Conclusion", "Define the Random Variable"} <= set(titles)


INSIDE = ["\\[\n\\begin{cases}\n1. & x \\\\\n2. **y** & z\n\\end{cases}\n\\]", "$$\n3. **in**\n$$", "   1. **sub**\n   2. **sub**",
          "```\n1. **code**\n### Step 9: code\n```", "\\begin{align*}\n2. **q** &= 1\n\\end{align*}", "| 1. **a** | 2 |\n|---|---|",
          "1. plain\n2. plain", "It costs $5.", "---", "### Case analysis", "- **b**: c"]


@needs_s1k
@pytest.mark.parametrize("begin", "{}. **{}:**|**{}. {}**|**{}) {}**|### Step {}: {}|### **Step {}: {}**|**Step {}:** {}|#### {}. {}|Step {}. {}".split("|"))
def test_real_solutions_keep_their_steps_in_every_form_and_with_anything_inside(segment, begin):
    """The 40 numbered ones with their 265 titles written in another form, and a formula, list, table, rule or code block behind some of them."""
    rng, count = random.Random(0), 0
    for record in problems.read_problems(S1K):
        if record["kind"] == "numbered":
            steps = segment.split_steps(record["solution"])
            titles = [segment.step_title(step) for step in steps]
            text = record["solution"].removesuffix("".join(steps))
            for n, step in enumerate(steps, 1):
                body = step.partition("\n")[2].rstrip("\n")
                text += f"{begin.format(n, titles[n - 1])}\n{body}\n{rng.choice(INSIDE) if rng.random() < 0.6 else ''}\n\n"
            text += "**Final Answer:** \\boxed{5}\n"
            again = segment.split_steps(text)
            assert text.endswith("".join(again)) and [segment.step_title(a) or "" for a in again] in (titles, [""] * len(steps))
            count += len(again)
    assert count == 265


# Forms
TITLED = [
    "{}. **Title:** text", "{}. **Title**: text", "{}. **Title** text", "{}) **Title**", "{}.  **Title.**", "**{}. Title** text", "**{}. Title:**",
    "**Step {}: Title**", "### Step {}: Title", "## {}. Title", "### {}) Title", "#### **Step {}: Title**", "### Step {} - Title", "#### {}. **Title**",
    "  {}. **Title**", "{}. ***Title***", "{}.\u00a0**Title**  ", "({}) **Title**", "**({}) Title**", "- **Step {}: Title**", "###Step {}: Title",
    "## Step {} — Title"]
UNTITLED = ["**Step {}:** text", "**{}.** text", "### Step {}", "Step {}: text", "*Step {}: Title*", "Step {} (see above): text", "Step {} - text", "STEP {}"]


@pytest.mark.parametrize("begin", TITLED + UNTITLED)
def test_a_numbered_title_in_any_of_these_forms_begins_a_step(segment, begin):
    solution = "First, a remark.\n\n" + numbered(begin)
    steps = segment.split_steps(solution)
    assert len(steps) == 3 and solution == "First, a remark.\n\n" + "".join(steps)
    assert segment.step_title(steps[1]) == ("Title" if begin in TITLED else "")
    windows = solution.replace("\n", "\r\n")
    assert [step.replace("\r", "") for step in segment.split_steps(windows)] == steps and windows.endswith("".join(segment.split_steps(windows)))


@pytest.mark.parametrize("inside", [
    "1. plain item\n2. plain item", "   1. **Case one**\n   2. **Case two**", "   - **1. Case**", "**12** apples, and 3. **more**", "2.5 m\n3.75 **m**",
    "1.1. **Part**", "```\n1. **in code**\n```", "~~~\n### Step 1: in code\n~~~", "$$\n1. **in a formula**\n$$", "\\[\n\\text{\n2. **in a formula**}\n\\]",
    "\\begin{align*}\n1. **in a formula** &= 2\n\\end{align*}", "\\[ x \\\\[4pt]\n y \\]", "so $x = 2. 5$\n   2. nested\n$$\n3. 7\n$$",
    "### 1.2 Part\n### 1.3 Part", "2. $x$ is **not** a title", "Step 2 shows that", "so \\(a\n2. **b**\n+ c\\) holds", "| 1. **a** | 2 |", "> 1. **quoted**",
    "```x = 1```", "It costs $5", "**2) implies 1):** x", "Step 1: as above"])
def test_what_is_inside_a_step_does_not_cut_it(segment, inside):
    solution = f"1. **A**\n{inside}\n\n2. **B**\n{inside}\n\n3. **C**\nend"
    steps = segment.split_steps(solution)
    assert len(steps) == 3 and "".join(steps) == solution


@pytest.mark.parametrize("solution, count", [
    # numbered titles inside numbered headings belong to the heading
    (f"### Step 1: A\n{CASES}\n### Step 2: B\n{CASES}", 2), (f"**Step 1: A**\nx\n**Step 2: B**\n{CASES}\n**Step 3: C**\nz", 3),
    (f"## 1. A\n### 1. Part\nx\n### 2. Part\ny\n## 2. B\n{CASES}", 2), (f"**Step 1: A**\nx\n**Step 2: B**\n{CASES}", 2),
    ("1. **A**\nx\n\n**2. B**\ny\n\n### 3. C\nz", 3),              # forms that change on the way are one numbering
    *((f"1. **A**\n{opening}\n\n2. **B**\n\\[ y \\]\n\n3. **C**\n$$ z $$\n", 3) for opening in ("$$ x", "\\[ x", "```", "\\begin{align} x")),
    ("1. **A**\n\\begin{align} x\n\n2. **B**\n\\begin{align} y \\end{align}\n3. **C**", 3)])                # a formula that is never closed hides none
def test_steps_are_the_outermost_numbering_and_an_open_formula_hides_none(segment, solution, count):
    assert len(segment.split_steps(solution)) == count


@pytest.mark.parametrize("before", ["1. **Given** a\n2. **Given** b\n\n", "### 1. Solution\n", "**Idea:** none\n---\n"])
def test_a_list_before_the_steps_or_one_heading_above_them_is_not_taken_for_them(segment, before):
    steps = "**Step 1: A**\nx\n\n**Step 2: B**\ny\n\n**Step 3: C**\nz"
    assert segment.split_steps(before + steps) == segment.split_steps(steps)


def test_rules_between_steps_belong_to_no_action(segment):
    steps = segment.split_steps("### Step 1: A\nx\n\n---\n\n### Step 2: B\n| a |\n|---|\n\n***\r\n")
    assert [e["action"] for e in segment.step_examples("p", steps)] == ["### Step 1: A\nx", "### Step 2: B\n| a |\n|---|"]
    assert segment.step_examples("p", steps)[1]["partial"] == steps[0]                                           # the context is the unchanged text


@pytest.mark.parametrize("text", ["\\[" * 200_000, "\\begin{a}" * 50_000, "\\(" * 200_000, "```\n" * 100_001, "\n" * 300_000 + "x", "Step 1" + " " * 200_000])
def test_a_text_of_openings_alone_is_refused_in_one_pass(segment, text):
    """Where every opening searched to the end, \\begin{a} took four minutes."""
    with pytest.raises(ValueError):
        segment.split_steps(text)


@pytest.mark.parametrize("solution, reason", [
    ("### Part (a)\n1. **A**\nx\n2. **B**\ny\n### Part (b)\n1. **C**\nz\n2. **D**\n", "numbering restarts"), ("1. **A** alone", "fewer than two steps"),
    ("1. **A**\n2. **B**\n1. **C**", "numbering restarts"), ("1. **A**\n3. **C**", "numbering skips"), ("1. **A**\n2. **B**\n4. **D**", "numbering skips"),
    ("1. **A**\n2. **B**\n### 4. D", "numbering skips"), ("### Step 1: A\n1. **a**\n2. **b**\n### Step 3: C", "numbering skips"),
    ("2. **B**\n3. **C**", "numbering does not begin at 1"), ("The answer is 4.", NONE), ("42", NONE), ("1. plain\n2. plain", NONE), ("", NONE),
    ("- First:\n  1. **Case one**\n  2. **Case two**\n- Then", NONE), ("1. First:\n   1. **Case one**\n   2. **Case two**\n2. Then", NONE)])
def test_what_is_not_numbered_1_to_n_is_dropped_and_the_reason_named_and_counted(segment, solution, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        segment.split_steps(solution)
    records = [{"id": 1, "problem": "p", "solution": SOLUTION, "answer": "1"}, {"id": 2, "problem": "q", "solution": solution, "answer": "4"}]
    examples, reasons = segment.segment(records)
    assert {e["id"] for e in examples} == {"1"} and dict(reasons) == {reason: 1}


def test_any_text_segments_or_is_refused_without_a_crash(segment):
    rng, kept = random.Random(0), 0
    parts = ["1. **A**\n", "2. **B**\n", "### Step 3: C\n", "**4. D**\n", "$$", "\\[", "\\]", "```\n", "\\begin{align}", "\\end{align}", "\n\n", " ", "x",
             "**", "#", "9" * 30 + ". **", "\x00", "\u2028", "\r\n", "Step 1:", "(", "\\"]
    for _ in range(3000):
        text = "".join(rng.choices(parts, k=rng.randrange(30)))
        try:
            steps = segment.split_steps(text)
        except ValueError:
            continue
        kept += 1
        assert len(steps) > 1 and text.endswith("".join(steps))
    assert kept > 20


# Examples and split
def test_a_solution_of_n_steps_gives_n_examples_or_the_papers_n_minus_1_with_titles_if_asked(segment):
    steps = segment.split_steps(SOLUTION)
    assert len(steps) == 3 and SOLUTION == "We solve for x.\n\n" + "".join(steps) and steps[0] == "1. **Expand** 6x + 3 = 9\n   - twice 3x\n"
    assert [e["k"] for e in segment.step_examples("p", steps)] == [1, 2, 3]
    assert [e["k"] for e in segment.step_examples("p", steps, targets="literal")] == [1, 2]
    record = {"id": "a", "problem": "p", "answer": "3", "solution": "1. **First:** x\n2. **Then** y"}
    assert [[e.get("title") for e in segment.segment([record], title_hint=hint)[0]] for hint in (True, False)] == [["First", "Then"], [None, None]]


def test_the_context_is_the_preamble_and_the_steps_before_and_the_conclusion_is_in_the_last_action(segment):
    for solution in (SOLUTION, "Remark.\n\n" + numbered("{}. **T**") + "### Final Answer\n\\boxed{1}."):
        preamble, steps = solution.partition("1. ")[0], segment.split_steps(solution)
        examples, _ = segment.segment([{"id": "a", "problem": "p", "answer": "1", "solution": solution}])
        assert [e["partial"] for e in examples] == [preamble, preamble + steps[0], preamble + steps[0] + steps[1]]
        assert all(solution.startswith(e["partial"] + e["action"]) for e in examples)
        assert examples[2]["partial"] + examples[2]["action"] == solution and solution.endswith("\\boxed{1}.")


def test_the_split_is_by_problem(segment):
    for seed in range(5):
        examples = [{"id": str(random.Random(seed + i).randrange(20)), "k": i} for i in range(200)]
        train, val = segment.split_by_problem(examples, 4, seed)
        assert len({e["id"] for e in val}) == 4 and not {e["id"] for e in val} & {e["id"] for e in train} and len(train) + len(val) == 200


# Files and columns
ROWS = [{"question": f"q{n}", "attempt": numbered("{}. **T**") + f"\\boxed{{{n}}}"} for n in range(3)]


def test_a_file_is_complete_or_absent(tmp_path):
    with pytest.raises(TypeError):
        files.write_jsonl(tmp_path / "a.jsonl", [{"fine": 1}, {"not json": object()}])
    assert list(tmp_path.iterdir()) == []
    files.write_jsonl(tmp_path / "a.jsonl", [{"fine": 1}])
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"fine": 1}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_local_files_of_three_kinds_give_the_same_records(tmp_path, suffix):
    path = tmp_path / f"data.{suffix}"
    if suffix == "parquet":
        import pyarrow
        import pyarrow.parquet
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        path.write_text(json.dumps(ROWS) if suffix == "json" else "\n".join(map(json.dumps, ROWS)))
    records = problems.read_problems(path, columns={"solution": "attempt"}, need=("problem", "solution"))
    assert [(r["id"], r["problem"], r["answer"]) for r in records] == [("0", "q0", "0"), ("1", "q1", "1"), ("2", "q2", "2")]


def test_answers_may_be_in_a_column_of_reference_solutions(tmp_path):
    """s1K: the attempt of a model is the solution and may be wrong; the reference beside it is a bare result, a solution with a box, or a proof."""
    references = ["128", "so it is \\boxed{ 7 }.\nDone.", "Assume not.\nThen a contradiction.", "167.0"]
    files.write_jsonl(tmp_path / "a.jsonl", [{"question": "q", "solution": r, "attempt": "<think>1. **No**</think>\n\nHence \\boxed{9}"} for r in references])
    records = problems.read_problems(tmp_path / "a.jsonl", columns={"solution": "attempt", "answer": "solution"})
    assert [r["answer"] for r in records] == ["128", "7", "", "167.0"]
    assert {r["solution"] for r in records} == {"Hence \\boxed{9}"}                                              # the thoughts of an expert are dropped


def test_a_data_set_of_the_hub_is_read_by_name_split_and_columns(segment, tmp_path, monkeypatch):
    import datasets
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or datasets.Dataset.from_list(ROWS))
    monkeypatch.setattr("sys.argv", ["01", "--dataset", "owner/name", "--solution_column", "attempt", "--num_val", "1", "--out", str(tmp_path)])
    segment.main()
    assert asked == [("owner/name", "train")] and len(files.read_jsonl(tmp_path / "train.jsonl")) == 6


@pytest.mark.parametrize("rows, message", [
    ([{"question": "q"}], "record 1: no solution; there are the columns question"), ([{"question": " ", "solution": "s"}], "record 1: the problem is empty"),
    ([3], "record 1: no id and no problem"), ([], "no records"), ([{"question": "q", "solution": "s", "id": 7}] * 2, "record 2: id '7' occurs twice")])
def test_a_record_that_cannot_serve_is_named(tmp_path, rows, message):
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(files.InputError, match=message):
        problems.read_problems(tmp_path / "a.json", need=("problem", "solution"))


@pytest.mark.parametrize("text, box", [
    ("\\boxed{5}", "5"), ("\\boxed{4} or \\boxed{5}", "5"), ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"), ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
    ("\\boxed{\\left\\{ x \\right.}", "\\left\\{ x \\right."), ("\\boxed {5}", "5"), ("\\boxed{5} then \\boxed{6", "5"), ("\\boxed{\\boxed{5}}", "5"),
    ("\\boxed{5", None), ("boxed{5}", None), ("} \\boxed{5}", "5"), ("\\\\boxed{5}", "5"), ("", None),
    ("$\\boxed 5$", "5"), ("\\boxed -12.5.", "-12.5"), ("\\boxed{4} or \\boxed 5", "5"), ("\\boxed 5 or \\boxed{4}", "4"),
    ("\\boxed 5x", None), ("\\boxed 5^2", None), ("use \\boxed for it", None), ("\\boxed{5} " + "\\boxed{" * 200_000, "5")], ids=str)
def test_the_last_complete_box_is_found_in_one_pass(text, box):
    started = time.time()
    assert problems.last_boxed(text) == box and time.time() - started < 10


# Rewriting
PROSE = "We add the two numbers and obtain their sum, which is then divided by two as the problem asks, so the mean is \\boxed{4}."


def test_rewriting_keeps_what_passes_the_check_and_counts_what_does_not(segment, tmp_path):
    records = [{"id": str(i), "problem": f"p{i}", "solution": s} for i, s in enumerate([PROSE, PROSE, PROSE, "4", numbered("{}. **T**")])]
    answers = {"p0": "<think>hm</think>\n1. **Add** a + b\n2. **Halve** \\boxed{4}", "p1": "no list", "p2": "1. **Add** a\n2. **Halve** \\boxed{5}"}
    asked = []
    outcome = segment.rewrite(records, lambda prompt: asked.append(prompt.partition("Problem:\n")[2][:2]) or answers[asked[-1]], tmp_path / "rewritten.jsonl")
    assert outcome == {"rewritten": 1, "rejected, no numbered steps": 1, "rejected, another answer": 1, "too short to rewrite": 1}
    assert records[0]["solution"].startswith("1. **Add**") and records[1]["solution"] == PROSE and asked == ["p0", "p1", "p2"]


def test_rewriting_continues_where_it_was_interrupted(segment, tmp_path):
    log, asked = tmp_path / "r.jsonl", []

    def rewrite_two(last, fails=False):
        def ask(prompt):
            if fails and "p1" in prompt:
                raise KeyboardInterrupt
            asked.append(prompt)
            return last
        asked.clear()
        return segment.rewrite([{"id": str(n), "problem": f"p{n}", "solution": PROSE} for n in (0, 1)], ask, log)

    with pytest.raises(KeyboardInterrupt):
        rewrite_two("1. **Add** a\n2. **Halve** \\boxed{4}", fails=True)
    assert rewrite_two("1. **A** x\n2. **B** \\boxed{4}") == {"rewritten": 2} and len(asked) == 1 and "p1" in asked[0]
    complete = log.read_text()
    for stored, count in (("", 2), (complete[:-20], 1)):                  # killed before the first answer, and while it wrote the second
        log.write_text(stored)
        assert rewrite_two("1. **A** x\n2. **B** \\boxed{ 4}") == {"rewritten": 2} and len(asked) == count


def test_a_local_model_rewrites_and_a_folder_without_one_is_refused(tmp_path):
    assert rewriter.ask_local(str(ROOT / "miniature/base"))("Solve 3x + 4 = 19").startswith("<think>")
    with pytest.raises(files.InputError, match="not a model that can rewrite"):
        rewriter.ask_local(str(tmp_path))


def test_the_whole_rewriting_through_an_endpoint_from_the_command_line(segment, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(segment, "ask_endpoint", lambda url, model: lambda p: f"1. **Add** a\n2. **Halve** \\boxed{{{4 if 'p1' in p else 5}}}")
    files.write_jsonl(tmp_path / "a.jsonl", [{"problem": f"p{n}", "solution": PROSE if n < 3 else numbered("{}. **T**")} for n in range(5)])
    rewrite = ("--rewrite", "owner/m", "--rewrite_url", "u")
    monkeypatch.setattr("sys.argv", ["01", "--data", str(tmp_path / "a.jsonl"), "--out", str(tmp_path), "--num_val", "1", *rewrite])
    segment.main()
    assert "rewriting: 2 rejected, another answer; 1 rewritten" in capsys.readouterr().out
    assert len({e["id"] for part in ("train", "val") for e in files.read_jsonl(tmp_path / f"{part}.jsonl")}) == 3


def test_an_openai_compatible_endpoint_is_asked_and_its_refusal_is_reported():
    got = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            good = got[-1][1]["model"] == "m"
            self.send_response_only(200 if good else 404)                     # without a line in a log
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": "1. **A**"}}]}).encode() if good else b"{}")

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    assert rewriter.ask_endpoint(url, "m")("hello") == "1. **A**"
    assert got[0][0] == "/v1/chat/completions" and got[0][1]["messages"] == [{"role": "user", "content": "hello"}]
    with pytest.raises(files.InputError, match="no answer to a request for other"):
        rewriter.ask_endpoint(url, "other")("hello")
    assert len(got) == 2                                                  # a 404 is not tried again
    server.shutdown()
