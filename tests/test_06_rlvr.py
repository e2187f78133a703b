"""The verifiable reward, which is the grade of the evaluation."""
import inspect

import pytest


@pytest.mark.parametrize("completion, answer, verdict", [
    ("<think>x</think>\n6. **State the answer** \\boxed{5}", "5", "right"), ("\\boxed{\\frac{1}{2}}", "0.5", "right"), ("\\boxed{x^{2}+1}", "x^2 + 1", "right"),
    ("\\boxed{4} no, \\boxed{5}", "5", "right"), ("\\boxed{5} no, \\boxed{4}", "5", "wrong"), ("<think>\\boxed{5}</think> \\boxed{4}", "5", "wrong"),
    ("<think>\\boxed{5}</think> it is 5", "5", "no answer"), ("5", "5", "no answer"), ("\\boxed{}", "5", "no answer"),
    ("\\boxed{5", "5", "no answer"), ("", "5", "no answer")])
def test_only_the_last_box_after_the_last_think_counts(rlvr, completion, answer, verdict):
    assert rlvr.judge(completion, answer) == verdict


def test_the_reward_of_training_is_the_grade_of_evaluation(rlvr, evaluate):
    sampled = [{"turns": [t], "tokens": [3], "finished": True} for t in ("\\boxed{5}", "\\boxed{4}", "5", "\\boxed{5.0}")]
    record = {"answer": "5", "greedy": {"turns": ["\\boxed{5}"]}, "sampled": sampled}
    grade = evaluate.grade([record])
    rewards = [rlvr.rlvr_reward(a["turns"][-1], {"answer": "5"}) for a in record["sampled"]]
    assert grade["right"] == [sum(rewards)] == [2] and grade["greedy"] == [rlvr.rlvr_reward("\\boxed{5}", {"answer": "5"})]
    assert "rlvr.judge" in inspect.getsource(evaluate.verdict) and "is_correct" in inspect.getsource(rlvr.rlvr_reward)


def test_a_turn_adds_its_step_and_an_answer_ends_the_episode(rlvr, example):
    following = rlvr.next_turn(example, "<think>hm</think>\n2. **Divide both sides by 3** x = 5")
    assert following["partial"] == example["partial"] + "2. **Divide both sides by 3** x = 5\n"      # thoughts are dropped
    assert rlvr.next_turn(following, "<think>done</think>\n3. **State the answer** \\boxed{5}") is None
    assert rlvr.next_turn(example, "<think>nothing</think>") is None


def test_problems_are_taken_once_and_without_any_step(rlvr, example):
    (problem,) = rlvr.unsolved([example, {**example, "k": 3}])
    assert problem == {"id": "p", "problem": example["problem"], "partial": "", "answer": "5"}


def test_an_answer_that_cannot_be_read_is_refused_before_training(rlvr, segment):
    with pytest.raises(segment.InputError, match="cannot read"):
        rlvr.parse_gold("\\text{}")
