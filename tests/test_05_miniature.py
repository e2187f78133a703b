"""The miniature: its algebra, its data, its prompt, the controls' data."""
import operator
import random
import re
from functools import partial

import make
import pytest
import study
from conftest import ROOT

from engine.files import read_jsonl, write_jsonl

SETS = ("short", "hard", "long", "large")
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}


def records(name):
    return read_jsonl(ROOT / f"miniature/{name}.jsonl")


def value(side, x):
    return sum(t[1] * x if t[0] == "x" else t[1] if t[0] == "c" else t[1] * (t[2] * x + t[3]) for t in side)


def test_every_move_of_a_random_walk_keeps_the_solution():
    rng = random.Random(0)
    for kind in SETS * 50:
        equation, x = make.draw_problem(kind, rng)
        turns = iter(range(8))
        _, _, states = make.play(equation, lambda e, turns=turns: None if next(turns, None) is None else make.random_title(e, rng))
        assert all(value(left, x) == value(right, x) for left, right in states)


def test_the_scratch_paper_computes_what_it_says():
    rng = random.Random(1)
    for _ in range(2000):
        a, b, k = rng.randint(-999, 999) or 1, rng.randint(-400, 400) or 1, rng.randint(2, 9)
        for text, result in ((make.scratch_sum(a, b), a + b), (make.scratch_product(k, a), abs(k * a)), (make.scratch_quotient(k * a, k), abs(a))):
            assert int(re.search(r"(-?\d+)$", text)[1]) == result
            for left, op, right, extra, out in re.findall(r"(?<![\d-])(\d+)([+*/-])(\d+)(\+\d)?=(\d+)(?! r)", text):
                assert OPERATIONS[op](int(left), int(right)) + int(extra or 0) == int(out), text


def test_no_problem_of_a_benchmark_is_in_the_training_data():
    expert = {r["problem"] for r in records("expert")}
    benchmarks = [r["problem"] for name in SETS for r in records(f"benchmarks/{name}")]
    assert len(set(benchmarks)) == len(benchmarks) == 420 and not expert & set(benchmarks)


def test_the_committed_data_is_what_make_makes():
    sets, _ = make.make_data(seed=1)
    assert sets.pop("expert") == records("expert")
    assert all(sets[name] == records(f"benchmarks/{name}") for name in SETS)


def test_expert_solutions_end_in_their_answer_and_contain_no_thoughts(segment):
    for r in records("expert"):
        steps = segment.split_steps(r["solution"])
        assert steps[-1].endswith(f"\\boxed{{{r['answer']}}}") and "".join(steps) == r["solution"] and "<think>" not in r["solution"]
        assert len(r["thoughts"]) == len(r["student_thoughts"]) == len(steps)


def test_the_base_model_was_trained_on_the_prompt_that_the_scripts_send(srl, tokenizer, example):
    sent = tokenizer.apply_chat_template(srl.srl_prompt(example), add_generation_prompt=True, tokenize=False)
    assert sent == make.prompt_text(example["problem"], example["partial"].splitlines())


def test_pretraining_has_the_same_batches_after_an_interruption_and_no_problem_of_the_data(tokenizer):
    _, held_out = make.make_data(seed=1)
    batches_of = partial(make.make_batches, partial(make.draw_moves, held_out=held_out), 1, ROOT / "miniature/base")
    batches = batches_of(3)
    assert batches == batches_of(3) and all(2500 <= len(batch) * sum(map(len, batch[-1])) < 3500 for batch in batches)
    for prompt, *moves in (row for batch in batches for row in batch):
        assert re.match(r"<\|user\|>Solve (.+)\n", tokenizer.decode(prompt))[1] not in held_out
        assert len(moves) == 4 and all(move[-1] == tokenizer.eos_token_id for move in moves)


def test_the_tokenizer_returns_every_text(tokenizer):
    for text in [r["solution"] for r in records("expert")[:50]] + ["naïve 漢字 \n\t{}"]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("title", ["Divide both sides by 4", "Expand the left side", "State the answer", "Delete everything", "Add 1.5 to both sides"])
def test_illegal_moves_have_no_result(title):
    assert make.apply_move(([("x", 6), ("c", 3)], [("c", 9)]), title) is None


def test_the_control_with_own_style_thoughts_imitates_thoughts_of_the_base_model_and_the_step(srl, segment, tmp_path):
    examples, _ = segment.segment(records("expert")[:2])
    for part in ("train", "val"):
        write_jsonl(tmp_path / f"data/{part}.jsonl", examples)
    study.make_examples(tmp_path, study.WORLDS["equations"])
    example = read_jsonl(tmp_path / "data_student/train.jsonl")[0]
    assert srl.sft_target(example, "outline") == f"<think>{examples[0]['student_thoughts']}</think>\n{example['action']}"
    assert read_jsonl(tmp_path / "data_student/val.jsonl") == examples
