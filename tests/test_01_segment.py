"""Stage 1: steps, examples, split."""
import json
import random

import pytest

SOLUTION = "We solve for x.\n\n1. **Expand** 6x + 3 = 9\n   - twice 3x\n2. **Subtract 3** 6x = 6\n\n3. **Divide by 6** x = 1\n\nSo the answer is \\boxed{1}."


def test_steps_join_back_to_the_solution_and_the_preamble_stands_before_them(segment):
    steps = segment.split_steps(SOLUTION)
    assert len(steps) == 3 and SOLUTION == "We solve for x.\n\n" + "".join(steps)
    assert steps[0] == "1. **Expand** 6x + 3 = 9\n   - twice 3x\n"


@pytest.mark.parametrize("begin", ["{}. **Title:** text", "**{}. Title** text", "### Step {}: Title\ntext", "## {}. Title\ntext"])
def test_numbered_titles_in_their_real_variants_are_steps(segment, begin):
    solution = "\n".join(begin.format(n) for n in (1, 2, 3))
    assert len(segment.split_steps(solution)) == 3


@pytest.mark.parametrize("solution, reason", [
    ("The answer is 4.", "no numbered steps"), ("1. **Only** one", "fewer than two"), ("1. **A** a\n2. **B** b\n1. **C** c", "restarts"),
    ("1. **A** a\n3. **C** c", "skips")])
def test_solutions_of_another_form_are_dropped_with_the_reason(segment, solution, reason):
    with pytest.raises(ValueError, match=reason):
        segment.split_steps(solution)


def test_numbers_inside_formulas_and_nested_lists_do_not_cut_a_step(segment):
    assert len(segment.split_steps("1. **A** so $x = 2. 5$\n   2. nested\n$$\n3. 7\n$$\n2. **B** b")) == 2


def test_a_solution_of_n_steps_gives_n_examples_or_the_papers_n_minus_1(segment):
    steps = segment.split_steps(SOLUTION)
    assert [e["k"] for e in segment.step_examples("p", steps)] == [1, 2, 3]
    assert [e["k"] for e in segment.step_examples("p", steps, targets="literal")] == [1, 2]


def test_the_context_of_step_k_is_the_preamble_and_the_steps_before_it(segment):
    steps = segment.split_steps(SOLUTION)
    third = segment.step_examples("p", steps, "We solve for x.\n\n")[2]
    assert third["partial"] == "We solve for x.\n\n" + steps[0] + steps[1]
    assert third["partial"] + third["action"] == SOLUTION


def test_the_split_is_by_problem(segment):
    for seed in range(5):
        examples = [{"id": str(random.Random(seed + i).randrange(20)), "k": i} for i in range(200)]
        train, val = segment.split_by_problem(examples, 4, seed)
        assert len({e["id"] for e in val}) == 4 and not {e["id"] for e in val} & {e["id"] for e in train} and len(train) + len(val) == 200


def test_records_that_do_not_segment_are_counted_by_reason(segment):
    records = [{"id": 1, "problem": "p", "solution": SOLUTION, "answer": "1"}, {"id": 2, "problem": "q", "solution": "4", "answer": "4"}]
    examples, reasons = segment.segment(records)
    assert {e["id"] for e in examples} == {"1"} and dict(reasons) == {"no numbered steps with a title": 1}


def test_a_file_is_complete_or_absent(segment, tmp_path):
    with pytest.raises(TypeError):
        segment.write_jsonl(tmp_path / "a.jsonl", [{"fine": 1}, {"not json": object()}])
    assert list(tmp_path.iterdir()) == []
    segment.write_jsonl(tmp_path / "a.jsonl", [{"fine": 1}])
    assert json.loads((tmp_path / "a.jsonl").read_text()) == {"fine": 1}
