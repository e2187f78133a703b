"""The miniature: its algebra, its data, its prompt, its free wording, the controls' data."""
import operator
import random
import re
import subprocess
import sys
from functools import partial

import make
import pretrain
import pytest
import study
import torch
import wording
from conftest import ROOT
from transformers import AutoTokenizer, LlamaForCausalLM

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


@pytest.mark.parametrize("flags, folder, files", [([], "", ["expert", *(f"benchmarks/{name}" for name in SETS)]), (["--worded"], "worded/", ["expert"])])
def test_make_writes_the_committed_data_byte_for_byte(flags, folder, files, tmp_path):
    subprocess.run([sys.executable, ROOT / "miniature/make.py", *flags, "--data_only", "--out", tmp_path], check=True)
    written = {str(path.relative_to(tmp_path))[:-6]: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert written == {name: (ROOT / f"miniature/{folder}{name}.jsonl").read_bytes() for name in files}


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
    batches_of = partial(pretrain.make_batches, partial(make.draw_moves, held_out=held_out), 1, ROOT / "miniature/base")
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


def test_a_worded_step_says_the_terse_step_and_nothing_else():
    rng = random.Random(0)
    for r in records("expert"):
        for step in r["solution"].split("\n"):
            assert wording.unword(wording.reword(step, rng)) == step
            assert wording.unword(step) is None


@pytest.mark.parametrize("wrong", [("3. ", ""), (" on either side", ""), ("This gives", "So"), (" Both sides still balance.", "")])
def test_text_that_no_wording_produces_says_no_step(wrong):
    step = "3. **Take 5x away on either side** This gives 5x = 2. Both sides still balance."
    assert wording.unword(step) == "3. **Subtract 5x from both sides** 5x = 2" and wording.unword(step.replace(*wrong)) is None


def test_every_move_has_six_titles_and_a_title_names_one_move_only():
    titles = [title for row in wording.TITLES for title in row]
    assert [len(row) for row in wording.TITLES] == [6] * 8 and len(wording.BEFORE) == len(wording.AFTER) == 12
    for title in titles:
        assert [terse for pattern, terse in wording.PATTERNS if pattern.fullmatch(title.format("left"))] == [wording.terse_title(title.format("left"))[0]]


def test_the_worded_solutions_say_the_same_in_words_that_are_most_of_the_characters(segment):
    words = characters = 0
    for terse, r in zip(records("expert"), records("worded/expert"), strict=True):
        steps = [step.strip() for step in segment.split_steps(r["solution"])]
        assert {**r, "solution": "\n".join(map(wording.unword, steps))} == terse
        characters += sum(map(len, steps))
        words += sum(map(len, steps)) - sum(len(wording.STEP.fullmatch(step)[3]) for step in steps)
    assert words > 0.85 * characters


def test_two_wordings_of_a_step_are_practically_never_equal():
    rng, step = random.Random(0), "3. **Subtract 5x from both sides** 5x + 26 = -69"
    texts = [wording.reword(step, rng) for _ in range(20_000)]
    assert len(set(texts)) == 6 * 12 * 12           # 864 wordings: a chance of 0.12 % even where the move is the same


@pytest.mark.parametrize("wordings, offset, equal, same", [(864, 0, 0, 1), (1, 0, 1, 1), (864, 1, 0, 0)])
def test_the_check_of_a_base_counts_steps_equal_to_the_experts_and_steps_with_its_equation(wordings, offset, equal, same, monkeypatch):
    """A policy that plays as the expert does: in words of its own, in the only words that there are, and one step late."""
    equation = [("p", 6, 9, 2), ("c", 53)], [("x", 46), ("c", -63)]
    terse = make.play(equation, make.expert_title)[0]
    monkeypatch.setattr(make, "draw_problem", lambda kind, rng: (equation, -16))
    if wordings == 1:
        monkeypatch.setattr(wording, "TITLES", [row[:1] for row in wording.TITLES])
        monkeypatch.setattr(wording, "BEFORE", wording.BEFORE[:1])
        monkeypatch.setattr(wording, "AFTER", wording.AFTER[:1])

    def sample_steps(model, tokenizer, states, worded):
        own = random.Random(7)
        steps = [wording.reword(terse[len(steps) - offset], own) for _, steps in states]
        return [(step, make.STEP.fullmatch(wording.unword(step))) for step in steps]
    monkeypatch.setattr(make, "sample_steps", sample_steps)
    assert make.check_expert_steps(None, None, set(), 1, True, num=50) == (equal, same)


def test_the_longest_worded_prompt_and_completion_fit_the_context_window(srl):
    tokenizer, rng, longest = AutoTokenizer.from_pretrained(ROOT / "miniature/worded/base"), random.Random(0), 0
    for kind in ("long", "large") * 50:
        equation, _ = make.draw_problem(kind, rng)
        steps, _, _ = make.play(equation, make.expert_title)
        worded = [max((wording.reword(step, rng) for _ in range(20)), key=len) for step in steps]
        longest = max(longest, len(tokenizer(make.prompt_text(f"Solve {make.equation_text(equation)}", worded))["input_ids"]))
    assert 200 < longest < 1024 - srl.Config().max_new_tokens


def test_a_model_begins_with_the_weights_of_another_and_its_new_tokens_with_the_mean_of_the_old_ones():
    folder = ROOT / "miniature/base"
    old, spelt_by = LlamaForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer = pretrain.make_tokenizer(["3x + 4 = 19 by magic"] * 50, r"\d", 300)
    new = pretrain.new_model(tokenizer, 128, 4, folder)
    embeddings, before = new.get_input_embeddings().weight, old.get_input_embeddings().weight
    [token] = tokenizer(" by magic")["input_ids"]
    assert torch.allclose(embeddings[token], before[spelt_by(" by magic")["input_ids"]].mean(0))
    text = "<|user|>3+4<|assistant|><think>"                            # spelt alike by both, so computed alike
    ids, old_ids = (torch.tensor([t(text)["input_ids"]]) for t in (tokenizer, spelt_by))
    assert ids.shape == old_ids.shape and not ids.equal(old_ids)
    with torch.no_grad():
        hidden, old_hidden = new.model(ids).last_hidden_state, old.model(old_ids).last_hidden_state
    assert torch.allclose(hidden, old_hidden, atol=1e-5)


def test_the_control_with_own_style_thoughts_imitates_thoughts_of_the_base_model_and_the_step(srl, segment, tmp_path):
    examples, _ = segment.segment(records("expert")[:2])
    for part in ("train", "val"):
        write_jsonl(tmp_path / f"data/{part}.jsonl", examples)
    study.make_examples(tmp_path, study.WORLDS["equations"], study.folders_of(["srl", "sft_student"]))
    example = read_jsonl(tmp_path / "data_student/train.jsonl")[0]
    assert srl.sft_target(example, "outline") == f"<think>{examples[0]['student_thoughts']}</think>\n{example['action']}"
    assert read_jsonl(tmp_path / "data_student/val.jsonl") == examples
