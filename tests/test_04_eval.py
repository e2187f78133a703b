"""Estimators and intervals, benchmarks, attempts, what is stored, the table, what is checked before the first completion.

| issue 26 | what was wrong (sources: outside_reports.py, a simulation with the components of results/) | tests with |
|---|---|---|
| 31 | completions of another file of the same name, grades of a corrected answer, edited prompts and weights were used | `job` |
| 32 | 8 and 32 samples, benchmarks of other problems and modes under one heading; a seed counted twice; a KeyError | `table_of` |
| 33 | intervals of 68 to 87 %, 0 of 30 was [0, 0], unpaired seeds were paired | `mean_interval`, `paired` |
| 34 | a broken second model, a misspelt column, a folder without permission were found at the end | `job`, `load_benchmark` |
| 48 | the result named the commit that reported | `job` |
"""
import json
import random
import shutil
from itertools import combinations, product
from math import comb, sqrt

import bench_intervals
import pytest
import torch
from conftest import ROOT

from engine.agents import sandbox
from engine.files import InputError, write_jsonl, write_text
from engine.flags import named_values

RIGHT, WRONG, NONE = "so \\boxed{5}. And", "so \\boxed{4}. And", "so"


def attempt(*turns, finished=True):
    return {"turns": list(turns), "tokens": [9] * len(turns), "finished": finished}


def result(right, seed=0, k=8, benchmark="hard", **more):
    part = {"k": k, "right": right, "greedy": [0] * len(right), "verdicts": {"right": sum(right), "wrong": len(right) * k - sum(right)},
            "tokens_per_response": 1.0, "tokens_per_step": 1.0, **{name: more.pop(name) for name in ("problems",) if name in more}}
    return {"train_seed": seed, "benchmarks": {benchmark: part}, **more}


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


def test_the_t_quantile_is_that_of_the_tables(evaluate):
    for df, t in ((1, 12.7062), (2, 4.3027), (4, 2.7764), (30, 2.0423), (1000, 1.9623)):
        assert evaluate.tables.t_quantile(df) == pytest.approx(t, abs=1e-3)
    assert evaluate.tables.t_quantile(4, 0.99) == pytest.approx(4.6041, abs=1e-3)


def test_the_interval_of_a_coin_is_students_and_covers_seeds_as_well_as_problems(evaluate):
    low, high = evaluate.mean_interval([0, 1] * 50)                      # s = sqrt(25 / 99), t(99) = 1.984
    assert (low, high) == pytest.approx((0.5 - 1.984 * sqrt(25 / 99) / 10, 0.5 + 1.984 * sqrt(25 / 99) / 10), abs=1e-3)
    assert evaluate.mean_interval([[0, 1] * 50] * 5) == pytest.approx((low, high))              # the same seed five times: the problems' doubt alone
    low, high = evaluate.mean_interval([[0.4 + s / 40] * 20 for s in range(5)])                 # seeds alone: 2.776 * (0.025 * sqrt(2.5)) / sqrt(5)
    assert (low, high) == pytest.approx((0.45 - 2.776 * 0.025 * sqrt(0.5), 0.45 + 2.776 * 0.025 * sqrt(0.5)), abs=1e-4)
    assert evaluate.mean_interval([[0.0] * 20, [1.0] * 20]) == (0, 1)    # no value beyond what is possible


def test_equal_values_have_wilsons_interval(evaluate):
    for n, right in ((30, 0), (30, 30), (240, 0), (1, 0)):
        z2, p = 1.959964**2, right / n
        middle, half = (p + z2 / 2 / n) / (1 + z2 / n), sqrt(z2 / n * (p * (1 - p) + z2 / 4 / n)) / (1 + z2 / n)
        assert evaluate.mean_interval([p] * n) == pytest.approx((middle - half, middle + half), abs=1e-6)
        assert evaluate.mean_interval([[p] * n] * 5) == evaluate.mean_interval([p] * n)
    low, high = evaluate.mean_interval([0.0] * 30, -100, 100)            # a difference: nothing was seen, in either direction
    assert low == -high and high == pytest.approx(11.35, abs=0.01)


def test_95_percent_intervals_hold_the_mean_in_at_least_93_percent_of_simulated_studies():
    """With means and variance components of results/; all cells and 400 runs of each: python tests/bench_intervals.py."""
    torch.manual_seed(0)
    found = bench_intervals.cells()
    chosen = [found[name] for name in ("srl hard", "srl_rlvr long", "sft_outline hard", "srl modules", "srl_rlvr-srl modules", "srl-rejection large")]
    for S, bootstrap_at_most in ((5, 0.92), (3, 0.88), (2, 0.8)):
        rates = [bench_intervals.coverage(bench_intervals.normal, bench_intervals.mean_interval, S, values, 300)[0] for values in chosen]
        old = bench_intervals.coverage(bench_intervals.normal, bench_intervals.bootstrap, S, found["srl_rlvr-srl modules"], 200)[0]
        assert sum(rates) / len(rates) >= 0.93 and min(rates) >= 0.91 and old < bootstrap_at_most, (S, rates, old)        # 300 runs: 1.3 points
    rates = [bench_intervals.coverage(bench_intervals.binomial, bench_intervals.mean_interval, 5, values, 200)[0] for values in chosen[:4]]
    assert sum(rates) / len(rates) >= 0.93


def test_a_paired_difference_is_seen_more_sharply_than_two_means(evaluate):
    """One method solves one problem more of every ten than the other, which solves half: the problems' own spread cancels."""
    half, more = [0, 8] * 30, [8 if i % 10 == 0 else c for i, c in enumerate([0, 8] * 30)]
    mean, low, high = evaluate.paired_difference([result(more, 0), result(more, 1)], [result(half, 0), result(half, 1)], "hard")
    assert mean == pytest.approx(10) and 0 < low < 10 < high
    assert evaluate.mean_interval([c / 8 for c in more])[0] < evaluate.mean_interval([c / 8 for c in half])[1]


def test_only_runs_of_the_same_training_seed_are_paired_and_only_the_base_with_every_run(evaluate):
    ours = [result([4] * 20, 0), result([6] * 20, 1)]
    # the base solves 2 of 8, two seeds of a method 4 and 6 of 8: 25 and 50 points more, 37.5 on average
    assert evaluate.paired_difference(ours, [result([2] * 20, 7, model="base")], "hard")[0] == 37.5
    assert evaluate.paired_difference(ours, [result([2] * 20, 1), result([8] * 20, 2)], "hard")[0] == 50       # seed 1 alone
    for theirs in ([result([2] * 20, 7)], [result([0] * 20, seed) for seed in (3, 4, 5)]):
        with pytest.raises(InputError, match="hard: no training seed that both"):
            evaluate.paired_difference(ours, theirs, "hard")


# Benchmarks
def test_a_benchmark_of_the_hub_is_loaded_by_its_name(evaluate, monkeypatch):
    import datasets
    asked = []
    rows = datasets.Dataset.from_list([{"question": f"q{n}", "solution": f"so \\boxed{{{n}}}"} for n in range(5)])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: asked.append((name, split)) or rows)
    problems = evaluate.load_benchmark("minerva", limit=3)
    assert asked == [("math-ai/minervamath", "test")]
    assert [(p["id"], p["problem"], p["answer"]) for p in problems] == [("0", "q0", "0"), ("1", "q1", "1"), ("2", "q2", "2")]


@pytest.mark.parametrize("word", ["a=", "=folder", "a|b=folder", "..", "a/b=folder"])
def test_a_model_without_a_folder_or_with_a_name_that_a_file_or_table_cannot_have_is_an_error(word):
    with pytest.raises(InputError, match="--models: .* must name one of them; write NAME=FOLDER"):
        named_values("models", ("c=folder", word))


@pytest.mark.parametrize(("flags", "expected"), [
    ((), [("hard", 40), ("short", 40)]), (("--limit", "7"), [("hard", 7), ("short", 7)]), (("--benchmarks", "short"), [("short", None)]),
    (("--full",), [("hard", None), ("short", None), ("long", None), ("large", None)]), (("--mode", "agent"), [("modules", 40), ("larger", 40)])])
def test_without_flags_the_first_problems_of_two_benchmarks_are_evaluated_with_full_all(evaluate, flags, expected, monkeypatch):
    loaded = []
    monkeypatch.setattr(evaluate, "load_benchmark", lambda source, limit, mode: loaded.append((source, limit)))
    monkeypatch.setattr("sys.argv", ["04_eval.py", "--models", "two/a", "one/a", *flags])
    with pytest.raises(InputError, match="'a' must name one"):
        evaluate.main()
    assert loaded == expected


def test_a_benchmark_that_cannot_serve_is_refused_and_the_problem_named(evaluate, tmp_path, monkeypatch):
    path = str(tmp_path / "b.jsonl")
    with pytest.raises(InputError, match="no such file, and no benchmark of the hub: amc23, aime24"):
        evaluate.load_benchmark("amc42")
    write_jsonl(path, [{"problem": "p", "answer": 1}, {"problem": "q"}])
    with pytest.raises(InputError, match="problem 1: no answer; give"):
        evaluate.load_benchmark(path)
    write_jsonl(path, [{"id": 7, "problem": "p", "answer": "5"}])
    with pytest.raises(InputError, match="problem 7: no files"):
        evaluate.load_benchmark(path, mode="agent")
    monkeypatch.setattr("sys.argv", ["04_eval.py", "--mode", "agent", "--models", "a=nowhere", "--benchmarks", path])
    with pytest.raises(InputError, match="no files"):
        evaluate.main()


@pytest.mark.parametrize("row, said", [({"problem": "p", "anwser": "5"}, "anwser"), ({"problem": "p", "Answers": "5"}, "Answers"),
                                       ({"problem": "p", "reference": "5", "level": 3}, "reference"), ({"question": "p", "solution": "no box"}, "solution")])
def test_a_column_that_is_not_found_is_called_that(evaluate, tmp_path, row, said):
    write_jsonl(tmp_path / "b.jsonl", [row, {**row, "id": 2}])
    with pytest.raises(InputError, match=rf"no answer.*\b{said}\b"):
        evaluate.load_benchmark(str(tmp_path / "b.jsonl"))


# Attempts
def test_a_right_answer_is_right_where_the_limit_cut_the_text_behind_it_as_it_is_for_the_reward(evaluate):
    record = {"answer": "5", "greedy": {"turns": ["\\boxed{5} and"]}, "sampled": [attempt(t, finished=False) for t in (RIGHT, WRONG, NONE)]}
    grade = evaluate.benchmark_metrics([record], evaluate.judge_attempts([record]))
    assert grade["right"] == [1] and grade["greedy"] == [1] and grade["verdicts"] == {"right": 1, "truncated": 2}


def test_agents_are_graded_by_their_calls_without_a_model(evaluate, monkeypatch):
    import agents
    monkeypatch.setattr(sandbox, "failed_tests", agents.without_processes)
    task = {"id": "t", **agents.draw_task(random.Random(0), agents.KINDS)}
    calls = agents.expert_calls(task)
    good, lost, unfixed = (attempt(*(f"<think>t</think>\n{call}" for call in part)) for part in (calls, ["nonsense"] * 12, calls[:2] + calls[-1:]))
    record = {**{name: task[name] for name in ("id", "files", "visible", "hidden")}, "answer": "", "greedy": good, "sampled": [good, lost, unfixed]}
    grade = evaluate.benchmark_metrics([record], evaluate.judge_attempts([record]))
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


# What is stored
@pytest.fixture
def job(evaluate, task, tmp_path, monkeypatch):
    """run(*flags) -> (problems that were sampled, results of a model that always boxes 2) of 04 on a benchmark b of two problems."""
    write_jsonl(tmp_path / "b.jsonl", [{"id": "0", "problem": "1 + 1", "answer": "3"}, {"id": "1", "problem": "4 - 2", "answer": "2"}])
    sampled = []

    def sample(cfg, load, made_by, numbered):
        sampled.extend(problem["problem"] for _, problem in numbered)
        return [{"id": p["id"], "made_by": made_by, "greedy": attempt(f"1. **{p['problem']}** \\boxed{{2}}"), "sampled": [attempt(RIGHT)]} for _, p in numbered]
    real = evaluate.sample_attempts
    monkeypatch.setattr(evaluate, "sample_attempts", lambda cfg, *rest: real(cfg, *rest) if cfg.regrade else sample(cfg, *rest))

    def run(*flags, models=("m",)):
        sampled.clear()
        named = [f"{name}={tmp_path / ('model' if name == 'm' else name)}" for name in models]
        monkeypatch.setattr("sys.argv", ["04_eval.py", "--models", *named, "--benchmarks", str(tmp_path / "b.jsonl"), "--k", "1", "--completions",
                                         str(tmp_path / "c"), "--results", str(tmp_path / "r"), "--max_new_tokens", "2", *map(str, flags)])
        evaluate.main()
        return list(sampled), json.loads((tmp_path / "r/m.json").read_text())
    return run


def change_template(folder):
    path = folder / "model/chat_template.jinja"
    path.write_text(path.read_text() + "\n")


def change_weights(folder):
    path = folder / "model/model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + bytes(4))


def exchange_rows(folder):
    (folder / "b.jsonl").write_text("".join(sorted((folder / "b.jsonl").read_text().splitlines(keepends=True), reverse=True)))


def replace(old, new):
    def change(folder):
        (folder / "b.jsonl").write_text((folder / "b.jsonl").read_text().replace(old, new))
    return change


def copy_of_the_same_weights(folder):
    shutil.copytree(folder / "model", folder / "again")
    shutil.rmtree(folder / "model")
    (folder / "again").rename(folder / "model")


@pytest.mark.parametrize("change, sampled, right, flags", [
    (lambda folder: None, [], [0, 1], ()), (copy_of_the_same_weights, [], [0, 1], ()), (lambda folder: None, [], [0], ("--limit", 1)),
    (replace('"3"', '"2"'), [], [1, 1], ()), (replace('"2"', '"\\\\frac{4}{2}"'), [], [0, 1], ()), (replace('"id": "1"', '"id": "x"'), [], [0, 1], ()),
    (exchange_rows, ["4 - 2", "1 + 1"], [1, 0], ()), (replace("4 - 2", "another"), ["another"], [0, 1], ()),
    (change_template, ["1 + 1", "4 - 2"], [0, 1], ()), (change_weights, ["1 + 1", "4 - 2"], [0, 1], ()),
    (lambda folder: write_text(folder / "prompt.txt", "Be brief."), ["1 + 1", "4 - 2"], [0, 1], ("--prompt_file", "{}/prompt.txt")),
    (lambda folder: None, ["1 + 1", "4 - 2"], [0, 1], ("--temperature", 0.5)), (lambda folder: None, ["1 + 1", "4 - 2"], [0, 1], ("--seed", 1))],
    ids="nothing copy limit answer form id exchanged problem template weights prompt temperature seed".split())
def test_completions_are_used_for_the_same_problem_prompt_and_weights_and_graded_with_the_answers_of_today(job, tmp_path, change, sampled, right, flags):
    assert job()[0] == ["1 + 1", "4 - 2"] and job()[0] == []
    change(tmp_path)
    made, found = job(*(str(flag).format(tmp_path) for flag in flags))
    assert made == sampled and found["benchmarks"]["b"]["greedy"] == right


@pytest.mark.parametrize("flags", [(), ("--regrade",), ("--limit", "1"), ("--table", "{}/r")])
def test_the_page_beside_the_table_shows_the_attempts(job, tmp_path, flags):
    job()
    (tmp_path / "r/report.html").unlink()
    job(*(flag.format(tmp_path) for flag in flags))
    shown = json.loads((tmp_path / "r/report.html").read_text().partition('id="data">')[2].partition("</script>")[0])
    problems, = shown["benchmarks"].values()
    assert [(p["problem"], [a["outcome"] for a in p["attempts"]["m"]], p["turns"][0][0]) for p in problems] == [
        ("1 + 1", ["wrong", "wrong"], "1. **1 + 1** \\boxed{2}"), ("4 - 2", ["right", "wrong"], "1. **4 - 2** \\boxed{2}")][:1 if "--limit" in flags else 2]


def test_an_edited_prompt_file_of_the_same_name_is_another_prompt(job, tmp_path):
    for text, made in (("Be brief.", 2), ("Be brief.", 0), ("Be long.", 2)):
        write_text(tmp_path / "prompt.txt", text)
        assert len(job("--prompt_file", tmp_path / "prompt.txt")[0]) == made


def test_what_is_not_used_is_said_with_the_reason(job, tmp_path, capsys):
    job()
    change_weights(tmp_path)
    job()
    assert "c/m/b.jsonl: 2 of 2 records do not count, changed: weights" in capsys.readouterr().out


def test_regrade_takes_the_answers_of_today_without_a_model_and_refuses_other_problems_weights_and_settings(job, tmp_path):
    job()
    replace('"3"', '"2"')(tmp_path)
    for path in (tmp_path / "model").glob("*.json"):
        path.unlink()
    made, found = job("--regrade")
    assert made == [] and found["benchmarks"]["b"]["greedy"] == [1, 1]
    exchange_rows(tmp_path)                                     # grading needs no random stream, which a row names
    assert job("--regrade")[1]["benchmarks"]["b"]["greedy"] == [1, 1]
    before = (tmp_path / "r/m.json").read_text()
    for change, flags in ((lambda folder: None, ("--temperature", 0.5)), (change_weights, ()), (replace("1 + 1", "1 + 2"), ())):
        with pytest.raises(InputError, match="no completions with these settings; run without --regrade"):
            change(tmp_path) or job("--regrade", *flags)
    assert (tmp_path / "r/m.json").read_text() == before


@pytest.mark.parametrize("change", [exchange_rows, replace('"2"}', '"2"}\n{"problem": "6 - 4", "answer": "2"}'), replace('"3"', '"2"')])
def test_a_solved_problem_has_its_own_solution(job, tmp_path, change):
    job()
    change(tmp_path)
    job("--solved", tmp_path / "solved")
    solved = [json.loads(line) for line in (tmp_path / "solved/m.jsonl").read_text().splitlines()]
    assert solved and all(s["solution"] == f"1. **{s['problem']}** \\boxed{{2}}" for s in solved)


def test_a_result_names_the_commit_that_sampled_and_the_one_that_reports(job, evaluate, monkeypatch):
    made = evaluate.provenance(ROOT)
    for commit, flags, sampled_by in (("abc", (), "abc"), ("def", (), "abc"), ("def", ("--seed", 1), "def")):
        monkeypatch.setattr(evaluate, "provenance", lambda folder, commit=commit: {**made, "commit": commit})
        found = job(*flags)[1]
        assert found["made_by"]["commit"] == sampled_by and found["reported_by"] == commit and found["made_by"]["torch"] == torch.__version__
    assert evaluate.stored.merged([{"commit": "a"}, {"commit": "b"}, {"commit": "a"}]) == {"commit": "a, b"}


# Before the first completion
def no_weights(folder):
    (folder / "model.safetensors").unlink()


def truncated(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])


def no_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


@pytest.mark.parametrize("break_it", [shutil.rmtree, no_weights, truncated, no_tokenizer])
def test_a_model_that_cannot_be_loaded_is_found_before_another_is_evaluated(job, tmp_path, break_it):
    shutil.copytree(tmp_path / "model", tmp_path / "second")
    break_it(tmp_path / "second")
    with pytest.raises(InputError, match="second: (no|its tokenizer)"):
        job(models=("m", "second"))
    assert not list(tmp_path.glob("c/m/*"))


@pytest.mark.parametrize("flags, message", [
    (("--completions", "{}/b.jsonl/c"), "cannot be written"), (("--solved", "{}/b.jsonl/s"), "cannot be written"),
    (("--results", "{}/bad"), "bad/x.json: no result of"), (("--results", "{}/twice"), "training seed 0, as .*seed4/m.json has"),
    (("--benchmarks", "{}/b.jsonl", "{}/other.jsonl"), "other.jsonl: no such file"),
    (("--max_new_tokens", "40000"), "40009 tokens .* 32768 positions")])
def test_what_would_fail_at_the_end_is_found_before_the_first_completion(job, tmp_path, flags, message):
    write_text(tmp_path / "bad/x.json", "[]")
    write_text(tmp_path / "twice/seed4/m.json", json.dumps(result([1, 1])))
    with pytest.raises(InputError, match=message):
        job(*(flag.format(tmp_path) for flag in flags))
    assert not list(tmp_path.glob("c/m/*"))


def test_models_need_names_of_their_own_and_missing_ones_are_named(evaluate, monkeypatch, capsys, tmp_path):
    for models in (("a=x", "a=y"), ("runs/srl/model", "runs/rlvr/model"), ("=x",), ("a/b=x",)):
        with pytest.raises(InputError, match="write NAME=FOLDER for each"):
            evaluate.named_models(evaluate.Config(models=models))
    monkeypatch.setattr(evaluate, "HERE", tmp_path)
    for folder in ("miniature/base", "miniature/agents/base", "runs/srl/model", "runs/agents/rlvr/model"):
        (tmp_path / folder).mkdir(parents=True)
    assert list(evaluate.named_models(evaluate.Config())) == ["base", "srl"]
    assert "/runs: sft_outline, sft_reasoning, rlvr, sft_rlvr, reverse_curriculum, prefix_rlvr, srl_rlvr, " in capsys.readouterr().out
    assert list(evaluate.named_models(evaluate.AGENTS)) == ["base", "rlvr"] and "runs/agents: sft_outline" in capsys.readouterr().out


# Table and figure
def table_of(evaluate, tmp_path, **found):
    """The cells of each row of the tables, by table and label, and the caption; the figure is drawn too."""
    evaluate.make_figure(found, tmp_path / "figure.png")
    *tables, caption = evaluate.make_table(found)[0].split("\n\n")
    rows = [[[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()] for table in tables]
    return [{row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in table} for head, _, *table in rows], caption


def test_rows_of_other_numbers_of_samples_share_a_k(evaluate, tmp_path):
    """One right of 8 and one right of 32: pass@8 is 100 % and 8 / 32."""
    (scores, outcomes), caption = table_of(evaluate, tmp_path, sft_outline=[result([1] * 30)], mine=[result([1] * 30, k=32)])
    assert outcomes["SFT (outline)"]["hard: pass@8"] == "100.0" and outcomes["mine"]["hard: pass@8"] == "25.0" and "k is 8, but 32 in mine." in caption
    fours = [result([4] * 30, k=4)]
    (_, outcomes), caption = table_of(evaluate, tmp_path, a=fours, b=fours, c=[result([4] * 30, seed=s) for s in (0, 1)])
    assert outcomes["c"]["hard: pass@4"] == f"{100 * evaluate.pass_at_k(8, 4, 4):.1f}" and "k is 4, but 8 in c." in caption
    assert " but " not in table_of(evaluate, tmp_path, a=[result([4] * 30)])[1]
    _, caption = table_of(evaluate, tmp_path, a=[result([4] * 30, decoding={"temperature": 1.0})], b=[result([4] * 30, decoding={"temperature": 0.6})])
    assert "temperature is 1.0, but 0.6 in b." in caption
    ours, long = result([4] * 30, decoding={"k": 8}), "You are a careful mathematician, and think. "
    own = [result([4] * 30, decoding={"prompt": {"system": long + end}}) for end in ("Answer.", "Check.")]      # equal at the beginning
    assert "prompt is ours, but {'system': 'You are a" in table_of(evaluate, tmp_path, a=[ours], b=[ours], c=own[:1])[1]
    assert table_of(evaluate, tmp_path, b=own[:1], c=own[1:])[1].count("CRC") == 2


@pytest.mark.parametrize("other, names", [
    (result([1] * 20), ("hard (30 problems)", "hard (20 problems)")),
    (result([1] * 30, decoding={"mode": "single"}), ("hard (mode None)", "hard (mode single)")),
    (result([1] * 30, problems="bbbbbbbb"), ("hard (problems unknown)", "hard (problems bbbbbb)")),
    (result([1] * 30, benchmark="amc"), ("hard", "amc"))])
def test_other_problems_and_modes_have_columns_of_their_own_and_blanks(evaluate, tmp_path, other, names):
    (scores, outcomes, differences), _ = table_of(evaluate, tmp_path, base=[result([1] * 30)], srl=[other])
    assert scores["Base"][f"{names[0]}: greedy"] == "0.0" and scores["Base"][f"{names[1]}: greedy"] == scores["SRL"][f"{names[0]}: greedy"] == ""
    assert outcomes["SRL"][f"{names[1]}: pass@8"] == "100.0" and outcomes["SRL"]["wrong"] == "" and scores["SRL"]["average"] == ""
    assert differences["SRL minus Base"] == {"pairs": "0", names[0]: "", names[1]: ""}


def test_the_number_of_pairs_is_in_the_table(evaluate, tmp_path):
    base, srl = [result([0] * 4)], [result([c] * 4, seed) for c, seed in ((8, 0), (0, 1), (4, 2))]
    for more, pairs, points in (({"base": base}, "3", "+50.0 ["), ({"rlvr": [result([0] * 4, 1), result([2] * 4, 3)]}, "1", "+0.0 ["),
                                ({"rlvr": [result([0] * 4, seed) for seed in (3, 4, 5)]}, "0", ""), ({"rlvr": [result([0] * 4)]}, "1", "+100.0 [")):
        (*_, differences), _ = table_of(evaluate, tmp_path, srl=srl, **more)
        row = differences[f"SRL minus {'Base' if 'base' in more else 'RLVR'}"]
        assert row["pairs"] == pairs and row["hard"].startswith(points) and bool(row["hard"]) == bool(points)


def test_two_runs_of_one_training_seed_are_refused(evaluate, tmp_path):
    for paths in (("seed0/srl", "seed1/srl"), ("srl", "seed0/srl")):
        for path in paths:
            write_text(tmp_path / paths[1] / f"{path}.json", json.dumps(result([1] * 4)))
        with pytest.raises(InputError, match=rf"{paths[1]}.json: training seed 0, as .*{paths[0]}.json has; give each run of srl its own --train_seed"):
            evaluate.read_results(tmp_path / paths[1])


@pytest.mark.parametrize("text", ["[]", "{", '{"train_seed": 0}', '{"train_seed": 0, "benchmarks": {"b": {}}}'])
def test_a_file_that_is_no_result_is_named(evaluate, tmp_path, text):
    write_text(tmp_path / "tuning.json", text)
    with pytest.raises(InputError, match="tuning.json: no result of 04_eval.py"):
        evaluate.show(tmp_path)


def test_agents_results_do_not_overwrite_those_of_equations(evaluate, job, tmp_path):
    job()
    result = json.loads((tmp_path / "r/m.json").read_text())
    for mode in ("agent", "single"):
        write_text(tmp_path / "r/m.json", json.dumps({**result, "decoding": {**result["decoding"], "mode": mode}}))
        with pytest.raises(InputError, match=f"m.json: results of --mode {mode}; use another --results"):
            job()
    assert evaluate.AGENTS.results not in (evaluate.Config.results, None) and evaluate.AGENTS.completions != evaluate.Config.completions
    assert evaluate.AGENTS.results.parent == evaluate.Config.results            # which git ignores, and whose table does not read it


def test_table_and_figure_are_made_of_the_results_alone(evaluate, tmp_path):
    for seed in range(2):
        for name, right in (("base", [0, 0, 0, 0]), ("srl", [8, 8, 4, 8 - seed])):
            part = {"greedy": [int(c == 8) for c in right], "right": right, "k": 8, "verdicts": {"right": sum(right), "wrong": 32 - sum(right)},
                    "tokens_per_response": 200.0, "tokens_per_step": 40.0}
            write_text(tmp_path / f"seed{seed}/{name}.json", json.dumps({"train_seed": seed, "benchmarks": {"short": part, "hard": part}}))
    evaluate.show(tmp_path)
    table = (tmp_path / "table.md").read_text()
    assert "| SRL | 2 | 62.5 | 85.9 [" in table                          # greedy: (3 + 2) of 8; samples: (28 + 27) of 64
    assert "| Base | 2 | 0.0 | 0.0 [0.0, 49.0]" in table and (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_papers_averages_follow_from_its_columns_but_for_srl():
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in (ROOT / "results/paper.md").read_text().splitlines()[2:] if "|" in line]
    means = {name: sum(map(float, columns[:7])) / 7 for name, *columns in lines}
    assert len(lines) == 11 and all(cells[-1].split()[0] == f"{means[cells[0]]:.1f}" for cells in lines)
    assert [cells[0] for cells in lines if abs(means[cells[0]] - float(cells[8])) > 0.1] == [c[0] for c in lines if "differs" in c[-1]] == ["SRL"]
    assert ["27.6", "26.9 **(differs)**"] == next(cells[8:] for cells in lines if cells[0] == "SRL")
