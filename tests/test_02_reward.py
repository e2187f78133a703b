"""The reward: R = 2M / T on the action, -1 for a broken format."""
import json
import random
from difflib import SequenceMatcher

import pytest
from conftest import ROOT


def test_similarity_is_twice_the_matched_characters_over_both_lengths(srl):
    assert srl.similarity("abcd", "bcde") == 0.75       # M = 3 ("bcd"), T = 4 + 4: 6 / 8
    assert srl.similarity("x = 5", "x = 5") == 1.0
    assert srl.similarity("abc", "xyz") == 0.0


def test_the_order_of_arguments_is_action_then_expert(srl):
    # difflib's ratio is not symmetric: "tide" / "diet" matches "t" or "d" first
    assert SequenceMatcher(None, "tide", "diet").ratio() != SequenceMatcher(None, "diet", "tide").ratio()
    assert srl.similarity("tide", "diet") == SequenceMatcher(None, "tide", "diet", autojunk=False).ratio() == 0.25


def test_the_number_is_difflibs_on_10_000_random_pairs_and_on_real_steps(srl):
    """Whatever computes it: alphabets of few and many letters, lengths on both sides of autojunk's 200, steps with errors, emoji and LaTeX."""
    rng, pairs = random.Random(0), []
    for _ in range(10_000):
        letters = "abcdefghijklmnopqrstuvwxyz 0123456789\\{}é∑😀"[:rng.choice((2, 3, 5, 20, 50))]
        pairs.append(tuple("".join(rng.choices(letters, k=rng.randint(0, n))) for n in (40, rng.choice((40, 240)))))
    records = [json.loads(line) for line in (ROOT / "miniature/expert.jsonl").read_text().splitlines()[:40]]
    solutions = [record["solution"].split("\n") for record in records]
    real = ROOT.parent / "shared/data/s1k/s1k_numbered_sample_60.jsonl"
    if real.exists():
        solutions += [json.loads(line)["solution"].split("\n\n")[:4] for line in real.read_text().splitlines()[:12]]
    for steps in solutions:
        for expert in steps:
            pairs += [(rng.choice(steps), expert), ("".join(c for c in expert if rng.random() > 0.05), expert)]
    for action, expert in pairs:
        for autojunk in (False, True):
            assert srl.similarity(action, expert, autojunk) == SequenceMatcher(None, action, expert, autojunk=autojunk).ratio(), (action, expert)


def test_autojunk_is_off_since_it_scores_near_copies_of_200_characters_as_unlike(srl):
    expert = "ab" * 100
    near = "b" + expert[:-1]                             # one character shifted
    assert srl.similarity(near, expert) > 0.99
    assert srl.similarity(near, expert, autojunk=True) == 0.0


@pytest.mark.parametrize("completion, parsed", [
    ("<think>hm</think>\n1. **A** b", ("hm", "1. **A** b")), ("hm</think>1. **A** b", ("hm", "1. **A** b")), ("<think></think> s", ("", "s")),
    ("<think>hm</think><solution>s</solution>", ("hm", "s")), ("1. **A** b", None), ("<think>hm</think>", None), ("<think>hm</think>  \n", None),
    ("<think>a</think>b</think>c", None), ("<think>a<think>b</think>c", None), ("<think>hm", None), ("", None)])
def test_a_completion_is_thoughts_one_closing_tag_and_a_step(srl, completion, parsed):
    assert srl.parse_completion(completion) == parsed


def test_the_reward_looks_at_the_action_alone(srl, example):
    right = example["action"]
    assert srl.srl_reward(f"<think>short</think>\n{right}", example) == 1.0
    assert srl.srl_reward(f"<think>{'long and wrong ' * 50}</think>\n{right}", example) == 1.0
    assert srl.srl_reward(f"<think>{right}</think>\nno", example) < 0.2


def test_a_broken_format_costs_minus_one(srl, example):
    assert srl.srl_reward(example["action"], example) == -1.0


def test_the_prompt_has_the_problem_and_the_steps_so_far_and_never_the_target(srl, example):
    system, user = srl.srl_prompt(example)
    assert user["content"].index(example["problem"]) < user["content"].index("Solution:") < user["content"].index(example["partial"])
    assert example["action"] not in user["content"] and "<think>" in system["content"] and "</think>" in system["content"]
