"""Stage 1 on real solutions: the forms in which people and models number their steps, and files as they come."""
import http.server
import json
import threading
from collections import Counter

import pytest
from conftest import ROOT

S1K = ROOT.parent / "shared/data/s1k/s1k_numbered_sample_60.jsonl"
needs_s1k = pytest.mark.skipif(not S1K.exists(), reason=f"no {S1K}: a sample of real solutions that is not part of the repository")


def numbered(begin, steps=3):
    return "".join(f"{begin.format(n)}\nSo $a_{n} = {n}$.\n\n" for n in range(1, steps + 1))


# The real sample
@needs_s1k
def test_of_60_real_solutions_the_40_numbered_are_kept_and_the_others_dropped_for_a_reason(segment):
    outcome = Counter()
    for record in map(json.loads, S1K.read_text(encoding="utf-8").splitlines()):
        try:
            steps = segment.split_steps(record["solution"])
            assert record["solution"].endswith("".join(steps)) and len(steps) >= 3
            outcome[record["kind"], "kept"] += 1
        except ValueError as error:
            outcome[record["kind"], str(error)] += 1
    assert outcome == {("numbered", "kept"): 40, ("numbered_irregular", "numbering restarts"): 10, ("short_answer", "no numbered steps with a title"): 10}


@needs_s1k
def test_no_step_of_the_real_sample_is_cut_inside_a_formula(segment):
    for record in segment.read_problems(S1K):
        if record["kind"] == "numbered":
            for step in segment.split_steps(record["solution"]):
                for opening, closing in (("\\[", "\\]"), ("\\(", "\\)"), ("\\begin{", "\\end{")):
                    assert step.count(opening) == step.count(closing), (record["id"], step)


@needs_s1k
def test_every_real_step_has_a_title(segment):
    titles = [segment.step_title(step) for r in segment.read_problems(S1K) if r["kind"] == "numbered" for step in segment.split_steps(r["solution"])]
    assert len(titles) == 265 and all(titles)
    assert {"Conclusion", "Define the Random Variable"} <= set(titles)


INSIDE = ["\\[\n\\begin{cases}\n1. & x \\\\\n2. **y** & z\n\\end{cases}\n\\]", "$$\n3. **in**\n$$", "   1. **sub**\n   2. **sub**",
          "```\n1. **code**\n### Step 9: code\n```", "\\begin{align*}\n2. **q** &= 1\n\\end{align*}", "| 1. **a** | 2 |\n|---|---|",
          "1. plain\n2. plain", "It costs $5.", "---", "### Case analysis", "- **b**: c"]


@needs_s1k
@pytest.mark.parametrize("begin", ["{}. **{}:**", "**{}. {}**", "**{}) {}**", "### Step {}: {}", "### **Step {}: {}**", "**Step {}:** {}",
    "#### {}. {}", "Step {}. {}"])
def test_real_solutions_keep_their_steps_in_every_form_and_with_anything_inside(segment, begin):
    """The 40 numbered ones with their 265 titles written in another form, and a formula, list, table, rule or code block behind some of them."""
    import random
    rng, titles = random.Random(0), 0
    for record in segment.read_problems(S1K):
        if record["kind"] == "numbered":
            steps = segment.split_steps(record["solution"])
            text = record["solution"][:len(record["solution"]) - sum(map(len, steps))]
            for n, step in enumerate(steps, 1):
                body = step.partition("\n")[2].rstrip("\n")
                text += f"{begin.format(n, segment.step_title(step))}\n{body}\n{rng.choice(INSIDE) if rng.random() < 0.6 else ''}\n\n"
            text += "**Final Answer:** \\boxed{5}\n"
            again = segment.split_steps(text)
            assert text.endswith("".join(again)) and [segment.step_title(a) or "" for a in again] in ([segment.step_title(s) for s in steps], [""] * len(steps))
            titles += len(again)
    assert titles == 265


# Forms
@pytest.mark.parametrize("begin, title", [
    ("{}. **Title:** text", "Title"), ("{}. **Title**: text", "Title"), ("{}. **Title** text", "Title"), ("{}) **Title**", "Title"),
    ("{}.  **Title.**", "Title"), ("**{}. Title** text", "Title"), ("**{}. Title:**", "Title"), ("**Step {}: Title**", "Title"), ("**Step {}:** text", ""),
    ("**{}.** text", ""), ("### Step {}: Title", "Title"), ("### Step {}", ""), ("## {}. Title", "Title"), ("### {}) Title", "Title"),
    ("#### **Step {}: Title**", "Title"), ("### Step {} - Title", "Title"), ("#### {}. **Title**", "Title"), ("Step {}: text", ""),
    ("  {}. **Title**", "Title"), ("{}. ***Title***", "Title"), ("{}.\u00a0**Title**  ", "Title"), ("({}) **Title**", "Title"), ("**({}) Title**", "Title"),
    ("*Step {}: Title*", ""), ("- **Step {}: Title**", "Title"), ("Step {} (see above): text", ""), ("Step {} - text", ""), ("STEP {}", ""),
    ("###Step {}: Title", "Title"), ("## Step {} — Title", "Title")])
def test_a_numbered_title_in_any_of_these_forms_begins_a_step(segment, begin, title):
    solution = "First, a remark.\n\n" + numbered(begin)
    steps = segment.split_steps(solution)
    assert len(steps) == 3 and solution == "First, a remark.\n\n" + "".join(steps)
    assert segment.step_title(steps[1]) == title
    windows = solution.replace("\n", "\r\n")
    assert [step.replace("\r", "") for step in segment.split_steps(windows)] == steps and windows.endswith("".join(segment.split_steps(windows)))


@pytest.mark.parametrize("inside", [
    "1. plain item\n2. plain item", "   1. **Case one**\n   2. **Case two**", "   - **1. Case**", "**12** apples, and 3. **more**", "2.5 m\n3.75 **m**",
    "1.1. **Part**", "```\n1. **in code**\n```", "~~~\n### Step 1: in code\n~~~", "$$\n1. **in a formula**\n$$", "\\[\n\\text{\n2. **in a formula**}\n\\]",
    "\\begin{align*}\n1. **in a formula** &= 2\n\\end{align*}", "\\[ x \\\\[4pt]\n y \\]",
    "### 1.2 Part\n### 1.3 Part", "2. $x$ is **not** a title", "Step 2 shows that", "so \\(a\n2. **b**\n+ c\\) holds", "| 1. **a** | 2 |", "> 1. **quoted**",
    "```x = 1```", "It costs $5", "**2) implies 1):** x", "Step 1: as above"])
def test_what_stands_inside_a_step_does_not_cut_it(segment, inside):
    solution = f"1. **A**\n{inside}\n\n2. **B**\n{inside}\n\n3. **C**\nend"
    steps = segment.split_steps(solution)
    assert len(steps) == 3 and "".join(steps) == solution


def test_numbered_titles_inside_numbered_headings_belong_to_the_heading(segment):
    cases = "1. **Case one**\nx\n2. **Case two**\ny\n"
    assert len(segment.split_steps(f"### Step 1: A\n{cases}\n### Step 2: B\n{cases}")) == 2
    assert len(segment.split_steps(f"**Step 1: A**\nx\n**Step 2: B**\n{cases}\n**Step 3: C**\nz")) == 3
    assert len(segment.split_steps(f"## 1. A\n### 1. Part\nx\n### 2. Part\ny\n## 2. B\n{cases}")) == 2


def test_a_list_before_the_steps_or_one_heading_above_them_is_not_taken_for_them(segment):
    steps = "**Step 1: A**\nx\n\n**Step 2: B**\ny\n\n**Step 3: C**\nz"
    for before in ("1. **Given** a\n2. **Given** b\n\n", "### 1. Solution\n", "**Idea:** none\n---\n"):
        assert segment.split_steps(before + steps) == segment.split_steps(steps)
    assert len(segment.split_steps("**Step 1: A**\nx\n**Step 2: B**\n1. **Case one**\ny\n2. **Case two**\nz")) == 2      # here the last step holds it


@pytest.mark.parametrize("outer", ["- First:\n  1. **Case one**\n  2. **Case two**\n- Then", "1. First:\n   1. **Case one**\n   2. **Case two**\n2. Then"])
def test_numbered_titles_inside_a_list_of_another_kind_are_no_steps(segment, outer):
    with pytest.raises(ValueError, match="no numbered steps with a title"):
        segment.split_steps(outer)


def test_rules_between_steps_belong_to_no_action(segment):
    steps = segment.split_steps("### Step 1: A\nx\n\n---\n\n### Step 2: B\n| a |\n|---|\n\n***\r\n")
    assert [e["action"] for e in segment.step_examples("p", steps)] == ["### Step 1: A\nx", "### Step 2: B\n| a |\n|---|"]
    assert segment.step_examples("p", steps)[1]["partial"] == steps[0]                                           # the context is the text as it stands


def test_forms_that_change_on_the_way_are_one_numbering(segment):
    assert len(segment.split_steps("1. **A**\nx\n\n**2. B**\ny\n\n### 3. C\nz")) == 3


def test_a_formula_that_is_never_closed_hides_no_step(segment):
    for opening in ("$$ x", "\\[ x", "```", "\\begin{align} x"):
        assert len(segment.split_steps(f"1. **A**\n{opening}\n\n2. **B**\n\\[ y \\]\n\n3. **C**\n$$ z $$\n")) == 3
    assert len(segment.split_steps("1. **A**\n\\begin{align} x\n\n2. **B**\n\\begin{align} y \\end{align}\n3. **C**")) == 3


@pytest.mark.parametrize("text", ["\\[" * 200_000, "\\begin{a}" * 50_000, "\\(" * 200_000, "```\n" * 100_001, "\n" * 300_000 + "x", "Step 1" + " " * 200_000])
def test_a_text_of_openings_alone_is_refused_and_not_pondered(segment, text):
    """Each of these is read in one pass; where every opening searched to the end, \\begin{a} took four minutes."""
    with pytest.raises(ValueError):
        segment.split_steps(text)


@pytest.mark.parametrize("solution, reason", [
    ("### Part (a)\n1. **A**\nx\n2. **B**\ny\n### Part (b)\n1. **C**\nz\n2. **D**\n", "numbering restarts"),
    ("1. **A**\n2. **B**\n4. **D**", "numbering skips"), ("### Step 1: A\n1. **a**\n2. **b**\n### Step 3: C", "numbering skips"),
    ("2. **B**\n3. **C**", "numbering does not begin at 1"), ("1. **A** alone", "fewer than two steps"),
    ("42", "no numbered steps with a title"), ("1. plain\n2. plain", "no numbered steps with a title"), ("", "no numbered steps with a title"),
    ("1. **A**\n2. **B**\n### 4. D", "numbering skips")])
def test_what_is_not_numbered_1_to_n_is_dropped_and_the_reason_named(segment, solution, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        segment.split_steps(solution)


def test_the_conclusion_stays_with_the_last_step_and_the_preamble_in_every_context(segment):
    record = {"id": "a", "problem": "p", "answer": "3", "solution": "Remark.\n\n" + numbered("{}. **T**") + "### Final Answer\n\\boxed{3}\n"}
    examples, _ = segment.segment([record])
    assert examples[2]["action"].endswith("\\boxed{3}") and [e["partial"].startswith("Remark.\n\n") for e in examples] == [True] * 3
    assert all(record["solution"].startswith(e["partial"] + e["action"]) for e in examples)


def test_any_text_segments_or_is_refused_without_a_crash(segment):
    import random
    rng = random.Random(0)
    parts = ["1. **A**\n", "2. **B**\n", "### Step 3: C\n", "**4. D**\n", "$$", "\\[", "\\]", "```\n", "\\begin{align}", "\\end{align}", "\n\n", " ", "x",
             "**", "#", "9" * 30 + ". **",
             "\x00", "\u2028", "\r\n", "Step 1:", "(", "\\"]
    kept = 0
    for _ in range(3000):
        text = "".join(rng.choices(parts, k=rng.randrange(30)))
        try:
            steps = segment.split_steps(text)
        except ValueError:
            continue
        kept += 1
        assert len(steps) > 1 and text.endswith("".join(steps))
    assert kept > 20


# Files and columns
ROWS = [{"question": f"q{n}", "attempt": numbered("{}. **T**") + f"\\boxed{{{n}}}"} for n in range(3)]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_local_files_of_three_kinds_give_the_same_records(segment, tmp_path, suffix):
    path = tmp_path / f"data.{suffix}"
    if suffix == "jsonl":
        segment.write_jsonl(path, ROWS)
    elif suffix == "json":
        path.write_text(json.dumps(ROWS))
    else:
        import pyarrow
        import pyarrow.parquet
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    records = segment.read_problems(path, columns={"solution": "attempt"}, need=("problem", "solution"))
    assert [(r["id"], r["problem"], r["answer"]) for r in records] == [("0", "q0", "0"), ("1", "q1", "1"), ("2", "q2", "2")]


def test_answers_may_stand_in_a_column_of_reference_solutions(segment, tmp_path):
    """s1K: the attempt of a model is the solution and may be wrong; the reference beside it is a bare result, a solution with a box, or a proof."""
    references = ["128", "so it is \\boxed{ 7 }.\nDone.", "Assume not.\nThen a contradiction.", "167.0"]
    segment.write_jsonl(tmp_path / "a.jsonl", [{"question": "q", "solution": r, "attempt": "<think>1. **No**</think>\n\nHence \\boxed{9}"} for r in references])
    records = segment.read_problems(tmp_path / "a.jsonl", columns={"solution": "attempt", "answer": "solution"})
    assert [r["answer"] for r in records] == ["128", "7", "", "167.0"]
    assert {r["solution"] for r in records} == {"Hence \\boxed{9}"}                                              # the thoughts of an expert are dropped


def test_a_data_set_of_the_hub_is_read_by_name_split_and_columns(segment, tmp_path, monkeypatch):
    import datasets
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or datasets.Dataset.from_list(ROWS))
    monkeypatch.setattr("sys.argv", ["01", "--dataset", "owner/name", "--solution_column", "attempt", "--num_val", "1", "--out", str(tmp_path)])
    segment.main()
    assert asked == [("owner/name", "train")] and len(segment.read_jsonl(tmp_path / "train.jsonl")) == 6


@pytest.mark.parametrize("rows, said", [
    ([{"question": "q"}], "record 1: no solution; there are the columns question"), ([{"question": " ", "solution": "s"}], "record 1: the problem is empty"),
    ([3], "record 1: no id and no problem"), ([], "no records"), ([{"question": "q", "solution": "s", "id": 7}] * 2, "record 2: id '7' stands 2 times")])
def test_a_record_that_cannot_serve_is_named(segment, tmp_path, rows, said):
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(segment.InputError, match=said):
        segment.read_problems(tmp_path / "a.json", need=("problem", "solution"))


@pytest.mark.parametrize("text, box", [
    ("\\boxed{5}", "5"), ("\\boxed{4} or \\boxed{5}", "5"), ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"), ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
    ("\\boxed{\\left\\{ x \\right.}", "\\left\\{ x \\right."), ("\\boxed {5}", "5"), ("\\boxed{5} then \\boxed{6", "5"), ("\\boxed{\\boxed{5}}", "5"),
    ("\\boxed{5", None), ("boxed{5}", None), ("} \\boxed{5}", "5"), ("\\\\boxed{5}", "5"), ("", None),
    ("$\\boxed 5$", "5"), ("\\boxed -12.5.", "-12.5"), ("\\boxed{4} or \\boxed 5", "5"), ("\\boxed 5 or \\boxed{4}", "4"),
    ("\\boxed 5x", None), ("\\boxed 5^2", None), ("use \\boxed for it", None)])
def test_the_last_complete_box_is_found(segment, text, box):
    assert segment.last_boxed(text) == box


def test_a_million_open_boxes_are_read_in_one_pass(segment):
    import time
    started = time.time()
    assert segment.last_boxed("\\boxed{5} " + "\\boxed{" * 200_000) == "5"
    assert time.time() - started < 10


def test_the_title_hint_names_the_next_step_in_its_example(segment):
    record = {"id": "a", "problem": "p", "answer": "3", "solution": "1. **First:** x\n2. **Then** y"}
    assert [e["title"] for e in segment.segment([record], title_hint=True)[0]] == ["First", "Then"]
    assert "title" not in segment.segment([record])[0][0]


# Rewriting
PROSE = "We add the two numbers and obtain their sum, which is then divided by two as the problem asks, so the mean is \\boxed{4}."


def test_rewriting_keeps_what_passes_the_check_and_counts_what_does_not(segment, tmp_path):
    records = [{"id": str(i), "problem": f"p{i}", "solution": s} for i, s in enumerate([PROSE, PROSE, PROSE, "4", numbered("{}. **T**")])]
    answers = {"p0": "<think>hm</think>\n1. **Add** a + b\n2. **Halve** \\boxed{4}", "p1": "no list", "p2": "1. **Add** a\n2. **Halve** \\boxed{5}"}
    asked = []

    def ask(prompt):
        asked.append(next(p for p in answers if f"Problem:\n{p}\n" in prompt))
        return answers[asked[-1]]

    outcome = segment.rewrite(records, ask, tmp_path / "rewritten.jsonl")
    assert outcome == {"rewritten": 1, "rejected, no numbered steps": 1, "rejected, another answer": 1, "too short to rewrite": 1}
    assert records[0]["solution"].startswith("1. **Add**") and records[1]["solution"] == PROSE and asked == ["p0", "p1", "p2"]


def test_rewriting_continues_where_it_was_interrupted(segment, tmp_path):
    def records():
        return [{"id": "0", "problem": "p0", "solution": PROSE}, {"id": "1", "problem": "p1", "solution": PROSE}]

    def fails_at_the_second(prompt):
        if "p1" in prompt:
            raise KeyboardInterrupt
        return "1. **Add** a\n2. **Halve** \\boxed{4}"

    with pytest.raises(KeyboardInterrupt):
        segment.rewrite(records(), fails_at_the_second, tmp_path / "r.jsonl")
    asked = []
    assert segment.rewrite(records(), lambda p: asked.append(p) or "1. **A** x\n2. **B** \\boxed{4}", tmp_path / "r.jsonl") == {"rewritten": 2}
    assert len(asked) == 1 and "p1" in asked[0]
    whole = (tmp_path / "r.jsonl").read_text()
    for kept in ("", whole[:-20]):                                        # killed before the first answer, and while it wrote the second
        (tmp_path / "r.jsonl").write_text(kept)
        asked.clear()
        assert segment.rewrite(records(), lambda p: asked.append(p) or "1. **A** x\n2. **B** \\boxed{ 4}", tmp_path / "r.jsonl") == {"rewritten": 2}
        assert len(asked) == (1 if kept else 2)


def test_a_local_model_rewrites_and_a_folder_without_one_is_refused(segment, tmp_path):
    assert segment.ask_local(str(ROOT / "miniature/base"))("Solve 3x + 4 = 19").startswith("<think>")
    with pytest.raises(segment.InputError, match="not a model that can rewrite"):
        segment.ask_local(str(tmp_path))


def test_the_whole_rewriting_through_an_endpoint_from_the_command_line(segment, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(segment, "ask_endpoint", lambda url, model, prompt: f"1. **Add** a\n2. **Halve** \\boxed{{{4 if 'p1' in prompt else 5}}}")
    segment.write_jsonl(tmp_path / "a.jsonl", [{"problem": f"p{n}", "solution": PROSE if n < 3 else numbered("{}. **T**")} for n in range(5)])
    rewrite = ("--rewrite", "owner/m", "--rewrite_url", "u")
    monkeypatch.setattr("sys.argv", ["01", "--data", str(tmp_path / "a.jsonl"), "--out", str(tmp_path), "--num_val", "1", *rewrite])
    segment.main()
    assert "rewriting: 2 rejected, another answer; 1 rewritten" in capsys.readouterr().out
    assert len({e["id"] for part in ("train", "val") for e in segment.read_jsonl(tmp_path / f"{part}.jsonl")}) == 3


def test_an_openai_compatible_endpoint_is_asked_and_its_refusal_is_told(segment):
    got = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            good = got[-1][1]["model"] == "m"
            self.send_response(200 if good else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": "1. **A**"}}]}).encode() if good else b"{}")

        def log_message(self, *args):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    assert segment.ask_endpoint(url, "m", "hello") == "1. **A**"
    assert got[0][0] == "/v1/chat/completions" and got[0][1]["messages"] == [{"role": "user", "content": "hello"}]
    with pytest.raises(segment.InputError, match="no answer to a request for other"):
        segment.ask_endpoint(url, "other", "hello")
    assert len(got) == 2                                                  # a 404 is not tried again
    server.shutdown()
