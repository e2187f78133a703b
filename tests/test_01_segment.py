"""Stage 1: the forms in which people and models number their steps, examples, the split, files as they come, rewriting.

Faults that outside reports and real data led to, each with the inputs of the report and others of its kind:

| kind | source | what was wrong | test |
|---|---|---|---|
| JSON numbers | a report: 6.02e23 | read as 601999999999999995805696 | test_a_number_keeps_the_text_of_its_file |
| NaN, null, "None" | parquet written by pandas | were an answer, a problem or an id | test_missing_values_are_no_answer_no_problem_and_no_id |
| proof, notfound, N/A, - | NuminaMath-1.5, OpenMathReasoning | \\boxed{proof} was right | test_words_for_no_answer_are_no_reference |
| lists, objects | OlympiadBench, verl | the answer was Python's ['2', '3'] | test_a_list_or_object_is_one_answer_or_refused |
| JSON escapes | AIME 2025, reports | \\times was a tab and "imes" | test_commands_that_a_json_escape_ate_are_restored |
| a problem in several rows | OpenR1, swe_agent_demos | held out and trained on | test_rows_of_one_problem_are_on_one_side_of_the_split |
| answer and box differ | a report: "29 pens" | no completion was right | test_each_box_is_graded_against_its_answer |
| thoughts, tags | Bespoke-Stratos, R1, QwQ | were context or target | test_thoughts_reach_no_context_and_tags_no_target |
| plain 1. text, parts | s1K: 75 and 17 solutions | dropped | test_plain_numbers_and_parts_are_steps |
| lists of conditions | s1K: 3 of 576 | cut as steps | test_conditions_of_the_problem_are_no_steps |
| small data, .. | head | a user | asked for --num_val; a traceback | test_small_data_needs_no_flag, test_a_closed_pipe_ends_quietly |
"""
import http.server
import json
import random
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from conftest import ROOT

from engine import files, problems, rewriter
from engine.chat import extend_solution

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
                assert step.count(opening) == step.count(closing) or record["id"] == 373, step    # 373: never closed
    assert outcome == {("numbered", "kept"): 40, ("numbered_irregular", "kept"): 10, ("short_answer", "no numbered steps with a title"): 10}
    assert len(titles) == 265 + 79 and all(titles) and {"Conclusion", "Define the Random Variable"} <= set(titles)


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
    assert segment.step_examples("p", steps)[1]["partial"] == "### Step 1: A\nx\n\n"                              # as a sampled step extends it


@pytest.mark.parametrize("text", ["\\[" * 200_000, "\\begin{a}" * 50_000, "\\(" * 200_000, "```\n" * 100_001, "\n" * 300_000 + "x", "Step 1" + " " * 200_000])
def test_a_text_of_openings_alone_is_refused_in_one_pass(segment, text):
    """Where every opening searched to the end, \\begin{a} took four minutes."""
    with pytest.raises(ValueError):
        segment.split_steps(text)


@pytest.mark.parametrize("solution, reason", [
    ("### Solution 1\n1. **A**\nx\n2. **B**\ny\n### Solution 2\n1. **C**\nz\n2. **D**\n", "numbering restarts"), ("1. **A** alone", "fewer than two steps"),
    ("1. **A**\n2. **B**\n1. **C**", "numbering restarts"), ("1. **A**\n3. **C**", "numbering skips"), ("1. **A**\n2. **B**\n4. **D**", "numbering skips"),
    ("1. **A**\n2. **B**\n### 4. D", "numbering skips"), ("### Step 1: A\n1. **a**\n2. **b**\n### Step 3: C", "numbering skips"),
    ("2. **B**\n3. **C**", "numbering does not begin at 1"), ("The answer is 4.", NONE), ("42", NONE), ("1. plain\n2. plain", NONE), ("", NONE),
    ("- First:\n  1. **Case one**\n  2. **Case two**\n- Then", NONE), ("1. First:\n   1. **Case one**\n   2. **Case two**\n2. Then", NONE)])
def test_what_is_not_numbered_1_to_n_is_dropped_and_the_reason_named_and_counted(segment, solution, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        segment.split_steps(solution)
    records = [{"id": 1, "problem": "p", "solution": SOLUTION, "answer": "1"}, {"id": 2, "problem": "q", "solution": solution, "answer": "4"}]
    examples, dropped = segment.segment(records)
    assert {e["id"] for e in examples} == {"1"} and [d["reason"] for d in dropped] == [reason]


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
        preamble = solution.partition("1. ")[0]
        examples, _ = segment.segment([{"id": "a", "problem": "p", "answer": "1", "solution": solution}])
        contexts = [preamble, *(extend_solution(e["partial"], e["action"]) for e in examples)]
        assert [e["partial"] for e in examples] == contexts[:-1]
        parts = [(e["partial"] + e["action"]).split() for e in examples]                         # the words of the solution, empty lines apart
        assert all(solution.split()[:len(part)] == part for part in parts) and parts[2] == solution.split() and solution.endswith("\\boxed{1}.")


def test_the_split_is_by_problem(segment):
    for seed in range(5):
        examples = [{"id": str(random.Random(seed + i).randrange(20)), "k": i} for i in range(200)]
        train, val = segment.split_by_problem(examples, 4, seed)
        assert len({e["id"] for e in val}) == 4 and not {e["id"] for e in val} & {e["id"] for e in train} and len(train) + len(val) == 200


def test_rows_of_one_problem_are_on_one_side_of_the_split(segment, tmp_path):
    """Other ids, white space, other solutions, no id, and trajectories of one task under other names."""
    texts = [f"Problem {i}:\n  find  x" if n % 2 else f"Problem {i}: find\u00a0x " for n in range(4) for i in range(10)]
    files.write_jsonl(tmp_path / "a.jsonl", [{"problem": t, "solution": f"1. **A** way {n}\n2. **B** \\boxed{{1}}"} for n, t in enumerate(texts)])
    examples, _ = segment.segment(problems.read_problems(tmp_path / "a.jsonl"))
    train, val = segment.split_by_problem(examples, 4, 0)
    sides = [{"".join(e["problem"].split()) for e in part} for part in (train, val)]
    assert not sides[0] & sides[1] and len(sides[1]) == 4 and len(val) == 4 * 4 * 2 and len(train) + len(val) == len(examples)
    for text in ("Find ½\u200b of 4", "Find 1⁄2 of 4.", "Find \\, 1⁄2~of 4", "**find** $½$ of \\(4\\)?", "Find $$½$$ of 4。",
        "__Find__ \\[½\\] of 4!"):     # Unicode, LaTeX
        assert set(problems.problem_ids([{"id": "a", "problem": text}, {"id": "b", "problem": "Find ½ of 4"}]).values()) == {"a"}
    # rows that are linked by an id on one side and by a text on the other are one problem
    linked = [{"id": "a", "problem": "p"}, {"id": "a", "problem": "q"}, {"id": "b", "problem": "q "}, {"id": "c", "problem": "r"}]
    assert problems.problem_ids(linked) == {"a": "a", "b": "a", "c": "c"}
    assert {len(part) for part in segment.split_by_problem(linked, 1, 0)} == {1, 3}


def test_problems_that_are_distinct_are_split_as_by_their_ids(segment):
    examples = [{"id": f"p{i}", "problem": f"text {i % 97} {i}"} for i in range(200)]
    held_out = set(random.Random(3).sample(sorted(e["id"] for e in examples), 20))
    assert {e["id"] for e in segment.split_by_problem(examples, 20, 3)[1]} == held_out


# Files and columns
def load(tmp_path, rows, **options):
    """The records of these rows; a row may be JSON text."""
    (tmp_path / "rows.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return problems.read_problems(tmp_path / "rows.jsonl", **options)


def parquet(path, **columns):
    import pyarrow
    import pyarrow.parquet
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("number, text", [("6.02e23", "6.02e23"), ("1e23", "1e23"), ("2.0e30", "2.0e30"), ("27.0", "27"), ("2.50", "2.50"), ("-0.10", "-0.10"),
                                          ("1E-7", "1E-7"), ("12345678901234567890123", "12345678901234567890123"), ("1e400", "1e400"),
                                          ("0.1000000000000000055", "0.1000000000000000055"), ("[1.50, 2.0]", "1.50,2"), ('{"value": 6.02e23}', "6.02e23")])
def test_a_number_keeps_the_text_of_its_file(tmp_path, number, text):
    assert load(tmp_path, [f'{{"problem": "p", "answer": {number}}}'])[0]["answer"] == text
    (tmp_path / "a.json").write_text(f'[{{"problem": "p", "answer": {number}}}]')
    assert problems.read_problems(tmp_path / "a.json")[0]["answer"] == text
    float_ = files.parse_json(number)
    assert json.loads(json.dumps(float_)) == json.loads(number)                                             # what is written is a number again


def test_columns_of_bytes_maps_and_nested_numbers_of_32_bits_are_read_as_json(tmp_path):
    import pyarrow
    arguments = pyarrow.array([[("command", "ls")]], pyarrow.map_(pyarrow.string(), pyarrow.string()))
    kind = pyarrow.struct([("value", pyarrow.float32())])
    path = parquet(tmp_path / "a.parquet", problem=["p"], a=pyarrow.array([b"27"]), b=pyarrow.array([[0.1, 2.5]], pyarrow.list_(pyarrow.float32())),
                   c=pyarrow.array([{"value": 0.1}], kind), d=arguments, e=pyarrow.array([0.1], pyarrow.float16()), f=pyarrow.array([None],
                   pyarrow.list_(kind)))
    (row,), _ = files.read_rows(path)
    assert [row[name] for name in "abcdef"] == ["27", [0.1, 2.5], {"value": 0.1}, {"command": "ls"}, 0.1, None]


def test_a_number_of_a_column_is_the_shortest_that_means_it(tmp_path, monkeypatch):
    import datasets
    import pyarrow
    numbers, texts = [0.1, 6.02e23, 27.0, 1e23, 2.5, None], ["0.1", "6.02e23", "27", "1e23", "2.5", ""]
    for kind in (pyarrow.float32(), pyarrow.float64()):
        path = parquet(tmp_path / "a.parquet", problem=list("abcdef"), answer=pyarrow.array(numbers, kind))
        assert [r["answer"] for r in problems.read_problems(path)] == texts
    data = datasets.Dataset.from_dict({"problem": list("abcdef"), "answer": numbers}, features=datasets.Features(
        {"problem": datasets.Value("string"), "answer": datasets.Value("float32")}))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: data)
    assert [r["answer"] for r in problems.read_problems("owner/name", "train")] == texts


MISSING = ['"<NA>"', '"NaT"', '"pd.NA"', '"#N/A"', '"NoneType"', '"-Infinity"', '"[]"', '"{}"', "NaN", "Infinity", "-Infinity", "null", '"None"', '"nan"',
    '"NaN"', '"null"', '"inf"', '""', '" \\n"', '"\\u200b"', "[]", "[null]",
           '{"value": null}']


@pytest.mark.parametrize("value", MISSING)
def test_missing_values_are_no_answer_no_problem_and_no_id(tmp_path, value):
    solution = json.dumps("1. **A** x\n2. **B** \\boxed{7}")
    record, = load(tmp_path, [f'{{"id": {value}, "problem": "p", "solution": {solution}, "answer": {value}}}'])
    assert record["answer"] == "7" and record["id"] == "0"
    assert load(tmp_path, [f'{{"id": {value}, "unique_id": "u", "problem": {value}, "question": "q"}}'])[0]["id"] == "u"     # the next column that has one
    with pytest.raises(files.InputError, match="line 1: the problem is empty"):
        load(tmp_path, [f'{{"problem": {value}, "answer": "1"}}'])


def test_missing_values_of_parquet_are_missing(tmp_path):
    solutions = ["so \\boxed{7}", "so \\boxed{8}"]
    path = parquet(tmp_path / "a.parquet", problem=["p", "q"], id=[float("nan"), 4.0], solution=solutions, answer=[None, float("nan")])
    assert [(r["id"], r["answer"]) for r in problems.read_problems(path)] == [("0", "7"), ("4", "8")]


NO_ANSWER = ["proof", "notfound", "N/A", "unknown", "-", "\\boxed{}", "Proof.", "not found", "n/a", "NA", "—", "\\text{N/A}", "$-$", "**Proof**",
             "Answer not found", "No answer", "see solution", "(proof omitted)", "...", "Q.E.D.", "No final answer found", "Ｎ／Ａ",
             "\\boxed{\\text{unknown}}", "\\boxed{-}", "not provided", "The answer is not provided", "answer: N/A", "Final answer: none", "N/A (proof)",
             "n/a - proof", "to be proved", "the statement is proved", "$\\blacksquare$", "\\square", "missing answer", "no ground truth",
             "No numerical answer", "None given", "not determined", "unsolved", "证明", "略", "answer_not_found", "final_answer_not_found", "to be determined",
                 "This is a proof (problem)", "hence proved", "proofs",
             "\\texttt{proof}", "\\underline{proof}", "proof (see solution)", "see explanation", "not a number", "NaN (proof)", "证明题", "无", "无答案",
             "extraction failed", "Answer extraction failed", "the proof above"]
ANSWERS = ["5", "<", "=", "na", "No", "\\{\\}", "\\emptyset", "-\\infty", "no solution", "undefined", "0", "-1", "n", "None of these", "A", "i", "1/2",
           "[2, 3]", "DNE", "\\text{Monday}", "unproven", "true", "the solution is x = 2", "none of these", "notable", "{'a', 'b'}", "Solution A",
           "\\text{Solution B}", "solution II", '("a", b)', "('x')"]


@pytest.mark.parametrize("text", NO_ANSWER)
def test_words_for_no_answer_are_no_reference(segment, tmp_path, text):
    records = load(tmp_path, [{"problem": "Prove it.", "solution": CASES, "answer": text}, {"problem": "q", "solution": f"{CASES}\n\\boxed{{{text}}}"}])
    assert [r["answer"] for r in records] == ["", ""]
    assert [e["answer"] for e in segment.segment(records[:1])[0]] == ["", ""]                               # SRL trains on its steps


@pytest.mark.parametrize("text", ANSWERS)
def test_an_answer_that_looks_like_none_is_kept(tmp_path, text):
    assert load(tmp_path, [{"problem": "p", "answer": text}])[0]["answer"] == text


@pytest.mark.parametrize("value, answer", [
    (["2", "3"], "2,3"), (["6, 10"], "6, 10"), ({"value": 29}, "29"), ([2, 3.5], "2,3.5"), ("['2', '3']", "2,3"), ('["34"]', "34"), ("['2' '3']", "2,3"),
    ([["1", "2"], ["3", "4"]], "(1,2),(3,4)"), ({"value": ["2", "3"]}, "2,3"), ([{"value": "2"}, {"value": "3"}], "2,3"), ('{"value": "5", "unit": "cm"}', "5"),
    ({"ground_truth": "34", "style": "rule"}, "34"), (["2", None], "2"), (["2", "proof"], "2"), ({"a": None, "b": "7"}, "7"), (["\\boxed{2}",
    "\\boxed{3}"], "2,3"),
    ("('2', '3')", "2,3"), ("array(['2', '3'], dtype='<U1')", "2,3"), ("[np.str_('2'), np.str_('3')]", "2,3"), ("[np.float64(2.0), np.float64(3.5)]", "2,3.5"),
    ("24 of\nthem: 72\n#### 72", "72"), ("x\n#### 1,000\n", "1,000"), ("x\n#### Conclusion", ""),
    ("array(['2', '3'], dtype=object)", "2,3"), (["1,000", "2"], "1000,2"), ([], ""), ([[]], "")])
def test_a_list_or_object_is_one_answer_or_refused(tmp_path, value, answer):
    assert load(tmp_path, [{"question": "p", "final_answer": value}], columns={"answer": "final_answer"})[0]["answer"] == answer


@pytest.mark.parametrize("row, message", [
    ({"problem": "p", "answer": {"a": "1", "b": "2"}}, "line 1: answer is an object of a, b"), ({"problem": "p", "answer": "['2', '3'"}, None),
    ({"problem": "p", "answer": "['2', x]"}, "line 1: answer .* cannot be read"), ({"problem": ["p", "q"]}, "line 1: problem is a list of 2"),
    ({"problem": "p", "solution": ["1. **A**", "1. **B**"]}, "line 1: solution is a list of 2"),
    ({"problem": "p", "anwser": "5"}, "no answer; .*anwser: rename the right one answer"),
    ({"problem": "p", "answer": ["a\nb", "c"]}, "line 1: answer is a list of 2")])
def test_what_is_not_one_value_is_named(tmp_path, row, message):
    if not message:
        assert load(tmp_path, [row])[0]["answer"] == row["answer"]
        return
    with pytest.raises(files.InputError, match=message):
        load(tmp_path, [row])


def test_a_list_of_one_is_its_value_for_every_field(tmp_path):
    record, = load(tmp_path, [{"id": [7], "problem": [{"role": "user", "content": "p"}], "solution": ["so \\boxed{2}"]}])
    assert (record["id"], record["problem"], record["solution"], record["answer"]) == ("7", "p", "so \\boxed{2}", "2")
    path = parquet(tmp_path / "a.parquet", problem=["p", "q"], answer=[["2", "3"], ["4"]])
    assert [r["answer"] for r in problems.read_problems(path)] == ["2,3", "4"]


@pytest.mark.parametrize("spoilt, right", [
    ("\x08inom{5}{2}", "\\binom{5}{2}"), ("3\times 10^5", "3\\times 10^5"), ("\theta", "\\theta"), ("\x0crac{1}{2}", "\\frac{1}{2}"), ("\right)", "\\right)"),
    ("\x0bec{v}", "\\vec{v}"), ("\x07lpha", "\\alpha"), ("x\neq 2", "x\\neq 2"), ("\text{Monday}", "\\text{Monday}"), ("2\\pi \rho^2", "2\\pi \\rho^2"),
    ("\textcolor{red}x", "\\textcolor{red}x"), ("3\textdegree", "3\\textdegree"), ("a\thickspace b", "a\\thickspace b"), ("\rVert x", "\\rVert x"),
    ("a \rtimes b", "a \\rtimes b"), ("x \rarr y", "x \\rarr y"), ("a \nrightarrow b", "a \\nrightarrow b"), ("A \nsupseteq B", "A \\nsupseteq B"),
    ("\root 3", "\\root 3"), ("a \nwarrow b", "a \\nwarrow b"), ("\thinspace", "\\thinspace"),
    ("a \notin B", "a \\notin B"), ("\nabla f", "\\nabla f"), ("\x08oxed{12}", "\\boxed{12}"), ("\triangle ABC", "\\triangle ABC"), ("\tfrac12", "\\tfrac12")])
def test_commands_that_a_json_escape_ate_are_restored(tmp_path, spoilt, right):
    record, = load(tmp_path, [{"problem": f"Find ${spoilt}$.", "solution": f"1. **A** is {spoilt}\n2. **B** \\boxed{{{spoilt}}}", "answer": f"z {spoilt}"}])
    assert record["problem"] == f"Find ${right}$." and record["solution"] == f"1. **A** is {right}\n2. **B** \\boxed{{{right}}}"
    assert record["answer"] == (right if right.startswith("\\boxed") else f"z {right}").removeprefix("\\boxed{").removesuffix("}" if "boxed" in right else "")


def test_an_escape_that_may_be_a_line_is_restored_in_a_formula_without_other_commands_alone(tmp_path):
    for text, right in {"Let $a \ne b$.": "Let $a \\ne b$.", "$\tan x$": "$\\tan x$", "$$\tan x$$, $$x \ne 3$$": "$$\\tan x$$, $$x \\ne 3$$",
                        "\\[ x \to 0 \\]": "\\[ x \\to 0 \\]", "costs \\$5, $x \ne 3$": "costs \\$5, $x \\ne 3$", "$\nu \neq 0$": "$\\nu \\neq 0$",
                        "$\rho = \tan x$": "$\\rho = \\tan x$", "$\\alpha \ne 3$": "$\\alpha \\ne 3$",
                        "$a \nless b$": "$a \\nless b$", "$a \nsim b$": "$a \\nsim b$"}.items():
        assert load(tmp_path, [{"problem": text}])[0]["problem"] == right
    for text in ("Then\nu = 5.", "a\tan apple", "1\n2", "$x \\times\ne$", "Solve\n\\[\ne^{2x} = 1\n\\]", "$$\nu + v = 5\n$$",
                 "It is $3 for it\ne.g. for $x$", "costs $5\n\to buy, or $6", "it is\nless than 3", "It costs $5\nu = 3", "line\nequal", "a\r\nb",
                     "a\textra b", "By\neq. (1)"):
        assert load(tmp_path, [{"problem": text}])[0]["problem"] == text
    assert load(tmp_path, [{"problem": "p", "solution": "first \\boxed{3}, so \x08oxed{12}"}])[0]["answer"] == "12"
    assert load(tmp_path, [{"problem": "p", "answer": "a \ne b"}])[0]["answer"] == "a \\ne b"


STEPS = "1. **A** x\n2. **B** \\boxed{5}"


@pytest.mark.parametrize("text", [
    f"<|begin_of_thought|>\n1. **No** w\n2. **No** w\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{STEPS}\n\n<|end_of_solution|>",
    f"<think>w 1. **No**</think>\n\n{STEPS}", f"w, as the prompt began\n</think>\n{STEPS}", f"<solution>\n{STEPS}\n</solution>",
    f"w\n<solution>\n{STEPS}\n</solution>", f"<think>w</think><answer>\n{STEPS}\n</answer>", f"<thinking>w</thinking>{STEPS}<|im_end|>",
    f"[THINK]w[/THINK]{STEPS}</s>", f"<think>w <think> w</think> w</think>{STEPS}",
    f"<|channel|>analysis<|message|>w<|end|><|start|>assistant<|channel|>final<|message|>{STEPS}<|return|>", f"◁think▷w◁/think▷{STEPS}",
    "1. **A** x<think> w </think>\n2. **B** \\boxed{5}", f"{STEPS}\n<think>w, never closed", f"<Reasoning>w</Reasoning>\n{STEPS}",
    f"<seed:think>w</seed:think>{STEPS}", f"<analysis>w</analysis>\n<output>\n{STEPS}\n</output>", f"<cot>w</cot><s>{STEPS}</s>",
    f"<|im_start|>assistant\n{STEPS}<|im_end|>", f"<start_of_turn>model\n{STEPS}<end_of_turn>", f"<reason>w</reason><response>{STEPS}</response>",
    f"<|im_start|>think\nw\n<|im_start|>answer\n{STEPS}<|im_end|>", f"<|START_THINKING|>w<|END_THINKING|>{STEPS}", f"<|start_think|>w<|end_think|>{STEPS}",
    f"<internal_thought>w</internal_thought>{STEPS}", f"<redacted_thinking>w</redacted_thinking>{STEPS}", f"<|think_start|>w<|think_end|>{STEPS}",
    f"{STEPS}<eos>", f"{STEPS}\n<eos><pad> <pad>\n", f"{STEPS}[|endofturn|]", f"<|start_header_id|>assistant<|end_header_id|>\n\n{STEPS}<|eot_id|>"])
def test_thoughts_reach_no_context_and_tags_no_target(segment, tmp_path, text):
    examples, dropped = segment.segment(load(tmp_path, [{"problem": "p", "solution": text}]))
    assert [e["action"] for e in examples] == ["1. **A** x", "2. **B** \\boxed{5}"] and not dropped
    assert [e["partial"] for e in examples] == ["", "1. **A** x\n"] and {e["answer"] for e in examples} == {"5"}


def test_thoughts_alone_are_no_solution_and_an_answer_may_be_tagged(segment, tmp_path):
    for text in ("<think>1. **No**\n2. **No**", "1. **No**\n2. **No**</think> <answer>5</answer>"):
        assert segment.segment(load(tmp_path, [{"problem": "p", "solution": text}]))[0] == []
    for answer in ("</think> <answer>5</answer>", "<think>6</think>5", "<solution>5</solution>", "<answer>\\boxed{5}</answer>", "5<|im_end|>",
    "<answer>\n5\n</answer>"):
        assert load(tmp_path, [{"problem": "p", "answer": answer}])[0]["answer"] == "5"
    for answer in ("5", "\n5\n"):
        assert load(tmp_path, [{"problem": "p", "solution": f"<think>3</think> <answer>{answer}</answer>"}])[0]["answer"] == "5"
    assert load(tmp_path, [{"problem": "p", "answer": "|x| < 2 or <|x|>"}])[0]["answer"] == "|x| < 2 or <|x|>"


@pytest.mark.parametrize("solution, actions", [
    ("1. We add 2 and 3:\n   2 + 3 = 5\n\n2. We double it:\n   5 * 2 = 10\n\nThe answer is \\boxed{10}.", None),
    ("1) Add 2 and 3.\n2) Double it.\n3) So \\boxed{10}.", None), ("(1) Add 2 and 3.\n(2) Double: \\boxed{10}.", None),
    ("1. We split:\n   1. one case\n   2. two\n2. We add them.", None),
    ("**Solution:**\n\n1. Add 2 and 3.\n2. Double **it** all.", ["1. Add 2 and 3.", "2. Double **it** all."]),
    ("### Part (a)\n\n1. **Add:** 5.\n2. **Double:** 10.\n\n### Part (b)\n\n1. **Halve:** 5.\n2. **Conclude:** \\boxed{5}",
     ["1. **Add:** 5.", "2. **Double:** 10.", "### Part (b)\n\n1. **Halve:** 5.", "2. **Conclude:** \\boxed{5}"]),
    ("**(a)**\n1. **A** x\n2. **B** y\n\n**(b)**\n1. **C** z", ["1. **A** x", "2. **B** y", "**(b)**\n1. **C** z"]),
    ("(a) First\n1. **A** x\n\n(b) Then\n1. **C** z", ["1. **A** x", "(b) Then\n1. **C** z"]),
    ("## Part 1\n### Step 1: A\nx\n### Step 2: B\ny\n## Part 2\n### Step 1: C\nz", ["### Step 1: A\nx", "### Step 2: B\ny", "## Part 2\n### Step 1: C\nz"]),
    ("#### Minimum:\n1. **A** x\n#### Maximum:\n1. **B** y\n#### Both:\n1. **C** z", ["1. **A** x", "#### Maximum:\n1. **B** y", "#### Both:\n1. **C** z"]),
    ("**(a)** Add.\n1. **A** x\n\n**(b)** Then.\n1. **C** z", ["1. **A** x", "**(b)** Then.\n1. **C** z"]),
    ("(i) First\n1. **A** x\n\n(ii) Then\n1. **C** z", ["1. **A** x", "(ii) Then\n1. **C** z"]),
    ("### Solution (a)\n1. **A** x\n\n### Solution (b)\n1. **C** z", ["1. **A** x", "### Solution (b)\n1. **C** z"]),
    ("(a)\n1. We add two.\n2. We halve it.\n(b)\n1. We stop here.", ["1. We add two.", "2. We halve it.", "(b)\n1. We stop here."])])
def test_plain_numbers_and_parts_are_steps(segment, solution, actions):
    steps = segment.split_steps(solution)
    assert solution.endswith("".join(steps)) and len(steps) > 1
    assert [segment.without_rule(step) for step in steps] == actions if actions else solution == "".join(steps)
    if "Halve" in solution:
        assert [segment.step_title(step) for step in steps] == ["Add", "Double", "Halve", "Conclude"]


@pytest.mark.parametrize("solution, reason", [
    ("We have:\n1. plain text here\n2. plain text here", NONE), ("1. 5\n2. 7", NONE), ("Some text. \n\n1. We add it.\n2. We do it.", NONE),
    ("1. We add it.\n2. We do it.\n1. We stop it.", "numbering restarts"), ("1. We add it.\n3. We do it.", "numbering skips"),
    ("**Cases**\n1. **A**\n2. **B**\n\n1. **C**\n2. **D**", "numbering restarts"), ("### Method 1\n1. **A**\n### Method 2\n1. **C**", "numbering restarts"),
    *((f"{first}\n1. **A**\n2. **B**\n{second}\n1. **C**\n2. **D**", "numbering restarts") for first, second in (
        ("**First approach**", "**Second approach**"), ("### Attempt 1", "### Attempt 2"), ("**Solution I**", "**Solution II**"),
        ("**Strategy 1**", "**Strategy 2**"), ("## 1st Way", "## 2nd Way"))),
    ("### First\n1. **A**\n```\n### code\n```\n1. **C**", "numbering restarts")])
def test_what_a_human_would_not_cut_is_dropped(segment, solution, reason):
    with pytest.raises(ValueError, match=f"^{reason}$"):
        segment.split_steps(solution)


@pytest.mark.parametrize("solution, steps", [
    ("1. **Condition 1:** a is even\n\n2. **Condition 2:** a > 3\n\n3. **Condition 3:** a < 7\n\nNow solve. Only 4 and 6 are even, so \\boxed{10}.", None),
    ("**Step 1: Constraint A** x\n**Step 2: Constraint B** y\nSo it is 4.", None),
    ("The number meets the following conditions:\n1. **Even** x\n2. **Small** y\n\nSo it is 4.", None),
    ("1. **Condition (i):** a is even.\n2. **Condition (ii):** a < 7.\n\n### Step-by-Step Analysis:\n\n1. **List:** 2, 4, 6.\n2. **Add:** \\boxed{12}",
     ["1. **List:** 2, 4, 6.\n", "2. **Add:** \\boxed{12}"]),
    ("### Given\n1. **a is even**\n2. **a < 7**\n### Solution\n1. **List** 2, 4\n2. **Add** 6", ["1. **List** 2, 4\n", "2. **Add** 6"]),
    ("1. **The first condition** a\n2. **The second condition** b\n\n1. **List** c\n2. **Add** d", ["1. **List** c\n", "2. **Add** d"]),
    ("The given conditions are:\n1. **Even** x\n2. **Small** y\n\nSo it is 4.", None), ("**Given Data:**\n1. **Even** x\n2. **Small** y", None),
    ("### Known information\n1. **a is even**\n2. **a < 7**\n### Solution\n1. **List** 2, 4\n2. **Add** 6", ["1. **List** 2, 4\n", "2. **Add** 6"]),
    *((text, None) for text in (
        "1. **Property 1:** a\n2. **Property 2:** b", "1. **Rule A:** a\n2. **Rule B:** b", "1. **Fact 1**: a\n2. **Fact 2**: b",
        "1. **Hypothesis (i):** a\n2. **Hypothesis (ii):** b", "We know the following facts:\n1. **A** a\n2. **B** b",
        "The problem states that:\n1. **A** a\n2. **B** b", "The number must satisfy:\n\n1. **A** a\n2. **B** b")),
    ("1. **Rule out 2** a\n2. **Rule out 3** b", ["1. **Rule out 2** a\n", "2. **Rule out 3** b"]),
    ("1. **Given:** a = 2\n2. **Compute:** b = 3\n", ["1. **Given:** a = 2\n", "2. **Compute:** b = 3\n"]),
    ("Using the given conditions:\n1. **Substitute** a\n2. **Conclude** b", ["1. **Substitute** a\n", "2. **Conclude** b"])])
def test_conditions_of_the_problem_are_no_steps(segment, solution, steps):
    if steps:
        assert segment.split_steps(solution) == steps
    else:
        with pytest.raises(ValueError, match="^a list of conditions, not of steps$"):
            segment.split_steps(solution)


# The self-check, and what a user sees
@pytest.mark.parametrize("answer", ["x > 5", "at least 5", "less than 5", "5 x", "n 5", "5 more than x", "5 or 6", "5 million", "5 dozen", "5 hundred",
    "5 billion years"])
def test_what_is_more_than_a_number_with_units_is_named_and_unchanged(answer):
    from engine.grader import compare
    record = {"id": "7", "answer": answer, "solution": "so \\boxed{5}"}
    (line,) = problems.check_answers([record], compare, "a.jsonl")
    assert "are not what their solution boxes" in line and record["answer"] == answer


@pytest.mark.parametrize("answer, box, corrected", [("Rs. 29", "29", "29"), ("29 pens", "29", "29"), ("about 29 km/h",
    "29", "29"), ("29 cm^2", "29", "29"),
                                                    ("-5 pens", "-5", "-5"), ("3/4 of a cup", "0.75", "3/4"), ("\\frac{1}{2} cup", "0.5", "\\frac{1}{2}")])
def test_an_answer_with_units_is_corrected_to_what_its_solution_boxes(answer, box, corrected):
    from engine.grader import compare
    answers = {"7": (answer, box), "8": ("3", answer)}
    records = [{"id": id, "answer": given, "solution": f"so \\boxed{{{boxed}}}"} for id, (given, boxed) in answers.items()]
    lines = problems.check_answers(records, compare, "a.jsonl")
    assert records[0]["answer"] == corrected and compare(box, corrected) == "right"
    assert len(lines) == 2 and "a.jsonl: 1 of 2 answers are not what their solution boxes, id 8 (answer '3'" in lines[0]
    assert f"1 of 2 answers lost the units that their solution does not box, id 7 ({answer!r} is {corrected})" in lines[1]


def test_each_box_is_graded_against_its_answer(segment, tmp_path, monkeypatch, capsys):
    """Equal ones in other words are no difference; where all texts are equal no grader starts."""
    from engine import grader
    pairs = [("1/2", "\\frac{1}{2}"), ("5 hours and 3 minutes", "303"), ("2x", "2"), ("2 pi", "2"), ("3", "3 pens"), ("7", "7"), ("", "9"), ("(1,2)", "(1, 2)"),
             ("8", "{}")]
    rows = [{"id": n, "problem": f"p{n}", "answer": a, "solution": f"{CASES}\\boxed{{{b}}}"} for n, (a, b) in enumerate(pairs)]
    files.write_jsonl(tmp_path / "a.jsonl", rows)
    monkeypatch.setattr("sys.argv", ["01", "--data", str(tmp_path / "a.jsonl"), "--out", str(tmp_path)])
    segment.main()
    printed = capsys.readouterr().out
    assert "a.jsonl: 3 of 8 answers are not what their solution boxes, id 1 (answer '5 hours and 3 minutes', box '303'), id 2 (" in printed
    assert "lost the units" not in printed
    monkeypatch.setattr(grader, "ask_grader", lambda answer, gold: pytest.fail("started"))
    files.write_jsonl(tmp_path / "a.jsonl", [row for row in rows if row["id"] in (5, 6, 7)])
    segment.main()
    assert "boxes" not in capsys.readouterr().out


@pytest.mark.parametrize("rows, held_out", [(30, 3), (9, 1), (2, 1), (1, 0), (700, 60)])
def test_small_data_needs_no_flag(segment, tmp_path, monkeypatch, capsys, rows, held_out):
    files.write_jsonl(tmp_path / "a.jsonl", [{"problem": f"p{n}", "solution": CASES} for n in range(rows)] * (2 if rows == 9 else 1))
    monkeypatch.setattr("sys.argv", ["01", "--data", str(tmp_path / "a.jsonl"), "--out", str(tmp_path)])
    segment.main()
    printed = capsys.readouterr().out
    assert f" of {held_out} problems in val.jsonl" in printed
    assert ("18 rows of 9 problems read, 18 kept" if rows == 9 else f"{rows} problems read, {rows} kept") in printed
    assert len({json.loads(line)["problem"] for line in (tmp_path / "val.jsonl").read_text().splitlines()}) == (held_out or 1)
    assert not {json.loads(line)["id"] for line in open(tmp_path / "val.jsonl")} & {json.loads(line)["id"] for line in open(tmp_path / "train.jsonl")}
    with pytest.raises(files.InputError,
        match=f"--num_val {rows}: there are {rows} problems; hold out 1 to {rows - 1}, or leave" if rows > 1 else "leave the flag out"):
        monkeypatch.setattr("sys.argv", ["01", "--data", str(tmp_path / "a.jsonl"), "--out", str(tmp_path), "--num_val", str(rows)])
        segment.main()


def test_a_closed_pipe_ends_quietly(tmp_path):
    """python 01_segment.py | head: the reader is gone before the first line, or after it."""
    for read in (0, 1):
        process = subprocess.Popen([sys.executable, ROOT / "01_segment.py", "--out", tmp_path], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
        if read:
            process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait() in (0, 141)
        assert len(files.read_jsonl(tmp_path / "train.jsonl")) == 7191


def test_what_is_dropped_is_listed_with_its_reason_and_the_list_is_empty_where_nothing_is(segment, tmp_path, monkeypatch, capsys):
    def dropped(*solutions):
        files.write_jsonl(tmp_path / "a.jsonl", [{"id": f"a{n}", "problem": f"p{n}", "solution": s} for n, s in enumerate(solutions)])
        monkeypatch.setattr("sys.argv", ["01", "--data", str(tmp_path / "a.jsonl"), "--out", str(tmp_path)])
        segment.main()
        return [json.loads(line) for line in (tmp_path / "dropped.jsonl").read_text().splitlines()]
    assert dropped(numbered("{}. **T**"), "\n1. **A** x\n3. **C** y", numbered("{}. **T**"), "just 4") == [
        {"id": "a1", "reason": "numbering skips", "solution": "1. **A** x"},
        {"id": "a3", "reason": "no numbered steps with a title", "solution": "just 4"}]
    assert "4 problems read, 2 kept, 2 dropped; 1 numbering skips; 1 no numbered steps with a title; see dropped.jsonl\n" in capsys.readouterr().out
    assert dropped(numbered("{}. **T**"), numbered("{}. **T**")) == [] and "2 kept, 0 dropped\n" in capsys.readouterr().out


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
        path.write_text(json.dumps(ROWS) if suffix == "json" else "\n".join(map(json.dumps, ROWS)), "utf-8-sig")     # Windows' byte order mark
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
    ("\\boxed{4} or \\framebox[2cm][c]{5}", "5"), ("\\fcolorbox{red}{white}{5}", "5"), ("\\boxed{5} \\colorbox{yellow}{Note}", "5"),
        ("\\bbox[5px,border:1px]{5}", "5"),
    ("\\Boxed{5}", "5"), ("\\boxed{4} or \\boxed12", "12"), ("\\boxed-5", "-5"), ("\\boxed$x = 5$.", "$x = 5$"), ("\\boxed C.", "C"),
    ("\\boxed\\frac{1}{2}", "\\frac{1}{2}"), ("\\boxed\\dfrac{\\sqrt{2}}2", "\\dfrac{\\sqrt{2}}2"), ("\\boxed{4}{5}", "4"),
    ("\\boxed{4} in a $\\boxed$ and $x$", "4"), ("\\boxed{4}, \\boxed A box", "4"), ("\\fboxsep 5", None), ("\\boxed\\frac12^2", None),
    ("\\boxed 5x", None), ("\\boxed 5^2", None), ("use \\boxed for it", None), ("\\boxed{5} " + "\\boxed{" * 200_000, "5"),
    ("\\boxed{5} " + "\\boxed\\frac{" * 200_000, "5"), ("\\boxed{5} " + "\\boxed[" * 200_000, "5"), ("\\boxed{5} \\boxed" + "[]" * 200_000, "5")], ids=str)
def test_the_last_complete_box_is_found_in_one_pass(text, box):
    started = time.time()
    assert problems.last_boxed(text) == box and time.time() - started < 10


def rewrite(segment, records, ask, path):
    return segment.rewrite_solutions(records, ask, path, segment.REWRITE, segment.has_steps, segment.last_boxed)


# Rewriting
PROSE = "We add the two numbers and obtain their sum, which is then divided by two as the problem asks, so the mean is \\boxed{4}."


def test_rewriting_keeps_what_passes_the_check_and_counts_what_does_not_while_it_goes_on(segment, tmp_path, capsys):
    records = [{"id": str(i), "problem": f"p{i}", "solution": s} for i, s in enumerate([PROSE, PROSE, PROSE, "4", numbered("{}. **T**")])]
    answers = {"p0": "<think>hm</think>\n1. **Add** a + b\n2. **Halve** \\boxed{4}", "p1": "no list", "p2": "1. **Add** a\n2. **Halve** \\boxed{5}"}
    asked = []
    outcome = rewrite(segment, records, lambda prompt: asked.append(prompt.partition("Problem:\n")[2][:2]) or answers[asked[-1]], tmp_path / "rewritten.jsonl")
    assert outcome == {"rewritten": 1, "rejected, no numbered steps": 1, "rejected, another answer": 1, "too short to rewrite": 1}
    bar = capsys.readouterr().err.split("\r")[-1]
    assert "rewriting: 100%" in bar and "3/3" in bar and "rewritten=1, rejected, no numbered steps=1, rejected, another answer=1]" in bar
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
        return rewrite(segment, [{"id": str(n), "problem": f"p{n}", "solution": PROSE} for n in (0, 1)], ask, log)

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
