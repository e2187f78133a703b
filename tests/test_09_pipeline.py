"""The four scripts in order on the miniature, as a user runs them, and what they say to bad input."""
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT


def run(script, *flags, code=0):
    result = subprocess.run([sys.executable, str(ROOT / script), *map(str, flags)], capture_output=True, text=True, cwd=ROOT,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_the_four_scripts_run_in_order_on_the_miniature(tmp_path):
    data, small = tmp_path / "data", ("--prompts_per_batch", 8, "--group_size", 4, "--eval_every", 2, "--val_samples", 1)
    assert "1260 problems read, 1260 kept" in run("01_segment.py", "--out", data, "--num_val", 5)
    (data / "train.jsonl").write_text("".join((data / "train.jsonl").read_text().splitlines(keepends=True)[:400]))       # for time
    assert "the best policy by validation" in run("02_srl_train.py", "--data", data, "--out", tmp_path / "srl", "--rollouts", 64, *small)
    run("02_srl_train.py", "--method", "sft", "--data", data, "--out", tmp_path / "sft", "--epochs", 1, "--learning_rate", 1e-3)
    log = [json.loads(line) for line in open(tmp_path / "srl/log.jsonl")]
    assert log[-1]["done"] >= 64 and {"reward", "exact", "kept", "sampled", "loss", "entropy", "grad_norm", "seconds_rollout", "val_exact"} <= set(log[-1])
    printed = run("03_rlvr_train.py", "--data", data, "--model", tmp_path / "srl/model", "--out", tmp_path / "srl_rlvr", "--rollouts", 100, *small)
    assert "the best policy by validation" in printed
    flags = ("--models", f"srl={tmp_path}/srl/model", f"srl_rlvr={tmp_path}/srl_rlvr/model", "--k", 2, "--limit", 4,
             "--completions", tmp_path / "eval", "--results", tmp_path / "results")
    printed = run("04_eval.py", *flags)
    assert "| SRL then RLVR | 1 |" in printed and "figure.png" in printed
    result = json.loads((tmp_path / "results/srl.json").read_text())
    assert list(result["benchmarks"]) == ["short", "hard", "long", "large"] and result["decoding"]["k"] == 2 and result["made_by"]["torch"]
    # --regrade needs no model and gives the same numbers
    for folder in ("srl", "srl_rlvr"):
        for weights in (tmp_path / folder / "model").glob("*.json"):
            weights.unlink()
    run("04_eval.py", *flags, "--regrade")
    assert json.loads((tmp_path / "results/srl.json").read_text())["benchmarks"] == result["benchmarks"]


def write(path, text):
    path.write_text(text)
    return path


GOOD = json.dumps({"id": 1, "problem": "p", "solution": "1. **A** a\n2. **B** \\boxed{2}", "answer": "2"})


@pytest.mark.parametrize("text, message", [
    (None, "No such file"), ("", "empty"), (GOOD + "\n{broken", "line 2: not JSON"), (GOOD + "\n[1]", "line 2: no id"), (GOOD + "\n" + GOOD, "stands 2 times"),
    ('{"id": 1, "problem": "p", "solution": "just 4", "answer": "4"}', "no solution has numbered steps"),
    ('{"id": 1, "problem": "", "solution": "s", "answer": "4"}', "line 1: the problem is empty")])
def test_bad_solutions_end_in_one_line_and_exit_code_2(tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    if text is not None:
        write(path, text)
    printed = run("01_segment.py", "--data", path, "--out", tmp_path / "out", code=2)
    assert message in printed and "bad.jsonl" in printed and "Traceback" not in printed and len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script, flags, message", [
    ("02_srl_train.py", ("--data", "nowhere"), "nowhere: no such folder"), ("02_srl_train.py", ("--group_size", "0"), "--group_size 0"),
    ("02_srl_train.py", ("--model", "./nowhere"), "nowhere: no such model"), ("03_rlvr_train.py", ("--model", "./nowhere"), "nowhere: no such model"),
    ("04_eval.py", ("--k", "0"), "--k 0"), ("04_eval.py", ("--models", "a=./nowhere"), "nowhere: no such model"),
    ("04_eval.py", ("--table", "nowhere"), "nowhere: no results"),
    ("04_eval.py", ("--benchmarks", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
    ("04_eval.py", ("--benchmarks", "unanswered.jsonl"), "problem 7: answer ''")])
def test_bad_flags_end_in_one_line_and_exit_code_2(tmp_path, script, flags, message):
    if "--data" not in flags and script != "04_eval.py":
        run("01_segment.py", "--out", tmp_path / "data")
        flags = (*flags, "--data", tmp_path / "data", "--out", tmp_path / "out")
    write(tmp_path / "unanswered.jsonl", '{"id": 7, "problem": "p", "answer": ""}')
    flags = tuple(str(tmp_path / flag) if flag == "unanswered.jsonl" else flag for flag in flags)
    if script == "04_eval.py":
        flags = (*flags, "--results", tmp_path / "results", "--completions", tmp_path / "eval")
    printed = run(script, *flags, code=2)
    assert message in printed and "Traceback" not in printed
