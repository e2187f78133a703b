"""Estimators and intervals."""
from itertools import combinations
from math import comb

import pytest


def test_pass_at_k_by_hand(evaluate):
    assert evaluate.pass_at_k(4, 1, 2) == 0.5            # of the 6 pairs of 4 completions, 3 hold the right one
    assert evaluate.pass_at_k(8, 0, 8) == 0.0 and evaluate.pass_at_k(8, 1, 8) == 1.0 and evaluate.pass_at_k(8, 3, 1) == pytest.approx(3 / 8)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_completion(evaluate):
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                hits = sum(any(i < c for i in subset) for subset in combinations(range(n), k))
                assert evaluate.pass_at_k(n, c, k) == pytest.approx(hits / comb(n, k))


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_outside_1_to_n_is_refused(evaluate, k):
    with pytest.raises(ValueError):
        evaluate.pass_at_k(4, 1, k)


def test_the_interval_of_a_coin_is_the_binomial_one(evaluate):
    low, high = evaluate.bootstrap_interval([0, 1] * 50)                 # 1.96 * sqrt(0.25 / 100) = 0.098
    assert low == pytest.approx(0.402, abs=0.015) and high == pytest.approx(0.598, abs=0.015)


def test_the_interval_covers_seeds_as_well_as_problems(evaluate):
    same = evaluate.bootstrap_interval([[0.5] * 20] * 5)
    differ = evaluate.bootstrap_interval([[s / 4] * 20 for s in range(5)])
    assert same == (0.5, 0.5) and differ[0] < 0.3 and differ[1] > 0.7


def test_table_and_figure_are_made_of_the_results_alone(evaluate, tmp_path):
    for seed in range(2):
        for name, right in (("base", [0, 0, 0, 0]), ("srl", [8, 8, 4, 8 - seed])):
            part = {"greedy": [int(c == 8) for c in right], "right": right, "k": 8, "verdicts": {"right": sum(right), "wrong": 32 - sum(right)},
                    "tokens_per_response": 200.0, "tokens_per_step": 40.0}
            result = {"train_seed": seed, "benchmarks": {"short": part, "hard": part}}
            evaluate.segmentation.write_text(tmp_path / f"seed{seed}/{name}.json", evaluate.json.dumps(result))
    evaluate.show(tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "| SRL | 2 | 62.5 | 85.9 [" in table                          # greedy: (3 + 2) of 8; samples: (28 + 27) of 64
    assert "| Base | 2 | 0.0 | 0.0 [0.0, 0.0]" in table and (tmp_path / "figure.png").stat().st_size > 10_000


def test_what_a_model_solved_becomes_new_expert_data_with_its_own_thoughts(evaluate):
    """A student that solves step by step, or a teacher that solves at once: right attempts alone, the first of each problem, as 01 reads them."""
    wrong, right = "<think>a</think>\n1. **Guess** \\boxed{4}", ["<think>b</think>\n1. **Add** 2 + 3", "2. **State** \\boxed{5}"]
    attempt = lambda *turns, finished=True: {"turns": list(turns), "tokens": [9] * len(turns), "finished": finished}  # noqa: E731
    whole = attempt("<think>c</think>\n1. **Add** 2 + 3\n2. **State** \\boxed{5}")
    problems = [{"id": str(n), "problem": f"p{n}", "answer": "5"} for n in range(3)]
    records = [{"answer": "5", "greedy": attempt(wrong), "sampled": [attempt(*right, finished=False), attempt(*right), whole]},
               {"answer": "5", "greedy": whole, "sampled": [attempt(wrong)]}, {"answer": "5", "greedy": attempt(wrong), "sampled": [attempt(wrong)]}]
    solved = evaluate.solved_problems(problems, records, "b")
    assert [(s["id"], s["problem"], s["answer"], s["thoughts"]) for s in solved] == [("b-0", "p0", "5", ["b", ""]), ("b-1", "p1", "5", ["c"])]
    assert {s["solution"] for s in solved} == {"1. **Add** 2 + 3\n2. **State** \\boxed{5}"}
    examples, reasons = evaluate.segmentation.segment(solved)
    assert not reasons and [(e["id"], e["k"], e["action"], e.get("thoughts")) for e in examples] == [
        ("b-0", 1, "1. **Add** 2 + 3", "b"), ("b-0", 2, "2. **State** \\boxed{5}", ""), ("b-1", 1, "1. **Add** 2 + 3", None),
        ("b-1", 2, "2. **State** \\boxed{5}", None)]                     # thoughts of a whole solution belong to no single step


def test_a_right_answer_is_right_where_the_limit_cut_the_text_behind_it_as_it_is_for_the_reward(evaluate):
    sampled = [{"turns": [t], "tokens": [3], "finished": False} for t in ("so \\boxed{5}. And", "so \\boxed{4}. And", "so")]
    grade = evaluate.grade([{"answer": "5", "greedy": {"turns": ["\\boxed{5} and"]}, "sampled": sampled}])
    assert grade["right"] == [1] and grade["greedy"] == [1] and grade["verdicts"] == {"right": 1, "truncated": 2}


def test_a_paired_difference_is_seen_more_sharply_than_two_means(evaluate):
    """One method solves one problem more of every ten than the other, which solves half: the problems' own spread cancels."""
    half, more = [0, 8] * 30, [8 if i % 10 == 0 else c for i, c in enumerate([0, 8] * 30)]
    results = lambda right, seed: {"train_seed": seed, "benchmarks": {"hard": {"k": 8, "right": right}}}  # noqa: E731
    mean, low, high = evaluate.paired_difference([results(more, 0), results(more, 1)], [results(half, 0), results(half, 1)], "hard")
    assert mean == pytest.approx(10) and 0 < low < 10 < high
    assert evaluate.bootstrap_interval([c / 8 for c in more])[0] < evaluate.bootstrap_interval([c / 8 for c in half])[1]
    assert evaluate.paired_difference([results(more, 0)], [results(half, 5)], "hard")[0] == pytest.approx(10)      # no common seed: the first of each


def test_a_method_of_one_run_is_paired_with_every_seed_of_the_other(evaluate):
    """The base solves 2 of 8 in every problem; two seeds of a method 4 and 6 of 8: 25 and 50 points more, 37.5 on average."""
    results = lambda c, seed: {"train_seed": seed, "benchmarks": {"hard": {"k": 8, "right": [c] * 20}}}  # noqa: E731
    mean, low, high = evaluate.paired_difference([results(4, 0), results(6, 1)], [results(2, 0)], "hard")
    assert (mean, low, high) == (37.5, 25, 50)


def test_the_papers_averages_follow_from_its_columns_but_for_srl(evaluate):
    differing = [line.split("|")[1].strip() for line in evaluate.paper_table() if "differs" in line]
    assert differing == ["SRL"] and "| 27.6 | 26.9 **(differs)** |" in "\n".join(evaluate.paper_table())
