"""Estimators and intervals, benchmarks, attempts, the table."""
import json
import random
from itertools import combinations, product
from math import comb

import pytest
from conftest import ROOT

from engine.agents import sandbox
from engine.files import InputError, write_jsonl, write_text

RIGHT, WRONG, NONE = "so \\boxed{5}. And", "so \\boxed{4}. And", "so"


def attempt(*turns, finished=True):
    return {"turns": list(turns), "tokens": [9] * len(turns), "finished": finished}


def result(right, seed=0):
    return {"train_seed": seed, "benchmarks": {"hard": {"k": 8, "right": right}}}


# Estimators
def test_pass_at_k_is_the_fraction_of_subsets_with_a_right_completion(evaluate):
    assert evaluate.pass_at_k(4, 1, 2) == 0.5            # of the 6 pairs of 4 completions, 3 hold the right one
    assert evaluate.pass_at_k(8, 0, 8) == 0.0 and evaluate.pass_at_k(8, 1, 8) == 1.0 and evaluate.pass_at_k(8, 3, 1) == pytest.approx(3 / 8)
    for n, c, k in filter(lambda x: max(x) == x[0], product(range(1, 8), range(8), range(1, 8))):
        hits = sum(any(i < c for i in subset) for subset in combinations(range(n), k))
        assert evaluate.pass_at_k(n, c, k) == pytest.approx(hits / comb(n, k))
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k = {k} must be in 1..n = 4"):
            evaluate.pass_at_k(4, 1, k)


def test_the_interval_of_a_coin_is_the_binomial_one_and_covers_seeds_as_well_as_problems(evaluate):
    low, high = evaluate.bootstrap_interval([0, 1] * 50)                 # 1.96 * sqrt(0.25 / 100) = 0.098
    assert low == pytest.approx(0.402, abs=0.015) and high == pytest.approx(0.598, abs=0.015)
    differ = evaluate.bootstrap_interval([[s / 4] * 20 for s in range(5)])
    assert evaluate.bootstrap_interval([[0.5] * 20] * 5) == (0.5, 0.5) and differ[0] < 0.3 and differ[1] > 0.7


def test_a_paired_difference_is_seen_more_sharply_than_two_means_and_pairs_one_run_with_all(evaluate):
    """One method solves one problem more of every ten than the other, which solves half: the problems' own spread cancels."""
    half, more = [0, 8] * 30, [8 if i % 10 == 0 else c for i, c in enumerate([0, 8] * 30)]
    mean, low, high = evaluate.paired_difference([result(more, 0), result(more, 1)], [result(half, 0), result(half, 1)], "hard")
    assert mean == pytest.approx(10) and 0 < low < 10 < high
    assert evaluate.bootstrap_interval([c / 8 for c in more])[0] < evaluate.bootstrap_interval([c / 8 for c in half])[1]
    assert evaluate.paired_difference([result(more, 0)], [result(half, 5)], "hard")[0] == pytest.approx(10)      # no common seed: the first of each
    # a single run is paired with every seed: it solves 2 of 8, two seeds of a method 4 and 6 of 8, 25 and 50 points more, 37.5 on average
    assert evaluate.paired_difference([result([4] * 20, 0), result([6] * 20, 1)], [result([2] * 20)], "hard") == (37.5, 25, 50)


# Benchmarks
def test_a_benchmark_of_the_hub_is_loaded_by_its_name(evaluate, monkeypatch):
    import datasets
    asked = []
    rows = datasets.Dataset.from_list([{"question": f"q{n}", "solution": f"so \\boxed{{{n}}}"} for n in range(5)])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or rows)
    problems = evaluate.load_benchmark("minerva", limit=3)
    assert asked == [("math-ai/minervamath", "test")]
    assert [(p["id"], p["problem"], p["answer"]) for p in problems] == [("0", "q0", "0"), ("1", "q1", "1"), ("2", "q2", "2")]


def test_a_benchmark_that_cannot_serve_is_refused_and_the_problem_named(evaluate, tmp_path, monkeypatch):
    path = str(tmp_path / "b.jsonl")
    with pytest.raises(InputError, match="no such file, and no benchmark of the hub: amc23, aime24"):
        evaluate.load_benchmark("amc42")
    write_jsonl(path, [{"problem": "p", "answer": 1}, {"problem": "q"}])
    with pytest.raises(InputError, match="problem 1: answer ''"):
        evaluate.load_benchmark(path)
    write_jsonl(path, [{"id": 7, "problem": "p", "answer": "5"}])
    with pytest.raises(InputError, match="problem 7: no files"):
        evaluate.load_benchmark(path, mode="agent")
    monkeypatch.setattr("sys.argv", ["04_eval.py", "--mode", "agent", "--benchmarks", path])
    with pytest.raises(InputError, match="no files"):
        evaluate.main()


# Attempts
def test_a_right_answer_is_right_where_the_limit_cut_the_text_behind_it_as_it_is_for_the_reward(evaluate):
    record = {"answer": "5", "greedy": {"turns": ["\\boxed{5} and"]}, "sampled": [attempt(t, finished=False) for t in (RIGHT, WRONG, NONE)]}
    grade = evaluate.grade([record], evaluate.judge_attempts([record]))
    assert grade["right"] == [1] and grade["greedy"] == [1] and grade["verdicts"] == {"right": 1, "truncated": 2}


def test_agents_are_graded_by_their_calls_without_a_model(evaluate, monkeypatch):
    import agents
    monkeypatch.setattr(sandbox, "failed_tests", agents.without_processes)
    task = {"id": "t", **agents.draw_task(random.Random(0), agents.KINDS)}
    calls = agents.expert_calls(task)
    good, lost, unfixed = (attempt(*(f"<think>t</think>\n{call}" for call in part)) for part in (calls, ["nonsense"] * 12, calls[:2] + calls[-1:]))
    record = {**{name: task[name] for name in ("id", "files", "visible", "hidden")}, "answer": "", "greedy": good, "sampled": [good, lost, unfixed]}
    grade = evaluate.grade([record], evaluate.judge_attempts([record]))
    assert grade["greedy"] == [1] and grade["right"] == [1] and grade["verdicts"] == {"right": 1, "no answer": 1, "wrong": 1}
    assert len(calls) == 5 and grade["calls"] == 5 + 12 + 3 and grade["invalid"] == 12
    table, *_ = evaluate.make_table({"srl": [{"train_seed": 0, "benchmarks": {"modules": grade}}]})
    assert "| calls a task | invalid calls |" in table and "| 6.7 | 60.0 % |" in table            # 20 / 3 calls, 12 of 20


def test_what_a_model_solved_becomes_new_expert_data_with_its_own_thoughts(evaluate, segment):
    """A student that solves step by step, or a teacher that solves at once: right attempts alone, the first of each problem, as 01 reads them."""
    wrong, right = "<think>a</think>\n1. **Guess** \\boxed{4}", ["<think>b</think>\n1. **Add** 2 + 3", "2. **State** \\boxed{5}"]
    whole = attempt("<think>c</think>\n1. **Add** 2 + 3\n2. **State** \\boxed{5}")
    problems = [{"id": str(n), "problem": f"p{n}", "answer": "5"} for n in range(3)]
    records = [{"answer": "5", "greedy": attempt(wrong), "sampled": [attempt(*right, finished=False), attempt(*right), whole]},
               {"answer": "5", "greedy": whole, "sampled": [attempt(wrong)]}, {"answer": "5", "greedy": attempt(wrong), "sampled": [attempt(wrong)]}]
    solved = evaluate.solved_problems(problems, records, "b", evaluate.judge_attempts(records))
    assert [(s["id"], s["problem"], s["answer"], s["thoughts"]) for s in solved] == [("b-0", "p0", "5", ["b", ""]), ("b-1", "p1", "5", ["c"])]
    assert {s["solution"] for s in solved} == {"1. **Add** 2 + 3\n2. **State** \\boxed{5}"}
    examples, reasons = segment.segment(solved)
    assert not reasons and [(e["id"], e["k"], e["action"], e.get("thoughts")) for e in examples] == [
        ("b-0", 1, "1. **Add** 2 + 3", "b"), ("b-0", 2, "2. **State** \\boxed{5}", ""), ("b-1", 1, "1. **Add** 2 + 3", None),
        ("b-1", 2, "2. **State** \\boxed{5}", None)]                     # thoughts of a whole solution belong to no single step


# Table and figure
def test_table_and_figure_are_made_of_the_results_alone(evaluate, tmp_path):
    for seed in range(2):
        for name, right in (("base", [0, 0, 0, 0]), ("srl", [8, 8, 4, 8 - seed])):
            part = {"greedy": [int(c == 8) for c in right], "right": right, "k": 8, "verdicts": {"right": sum(right), "wrong": 32 - sum(right)},
                    "tokens_per_response": 200.0, "tokens_per_step": 40.0}
            write_text(tmp_path / f"seed{seed}/{name}.json", json.dumps({"train_seed": seed, "benchmarks": {"short": part, "hard": part}}))
    evaluate.show(tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "| SRL | 2 | 62.5 | 85.9 [" in table                          # greedy: (3 + 2) of 8; samples: (28 + 27) of 64
    assert "| Base | 2 | 0.0 | 0.0 [0.0, 0.0]" in table and (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_papers_averages_follow_from_its_columns_but_for_srl():
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in (ROOT / "results/paper.md").read_text().splitlines()[2:] if "|" in line]
    means = {name: sum(map(float, columns[:7])) / 7 for name, *columns in lines}
    assert len(lines) == 11 and all(cells[-1].split()[0] == f"{means[cells[0]]:.1f}" for cells in lines)
    assert [cells[0] for cells in lines if abs(means[cells[0]] - float(cells[8])) > 0.1] == [c[0] for c in lines if "differs" in c[-1]] == ["SRL"]
    assert ["27.6", "26.9 **(differs)**"] == next(cells[8:] for cells in lines if cells[0] == "SRL")
