"""The four scripts in order, as a user runs them, on the miniature and on real solutions (../shared, else skipped), and what they say to bad input."""
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

DATA = ROOT.parent / "shared/data"
GOOD = '{"id": 1, "problem": "p", "solution": "1. **A** a\\n2. **B** \\\\boxed{2}", "answer": "2"}\n'


def run(script, *flags, code=0):
    result = subprocess.run([sys.executable, str(ROOT / script), *map(str, flags)], capture_output=True, text=True, cwd=ROOT, timeout=500,
                            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_the_four_scripts_run_in_order_on_the_miniature(tmp_path):
    data, small = tmp_path / "data", ("--prompts_per_batch", 8, "--group_size", 4, "--eval_every", 2, "--val_samples", 1)
    assert "1260 problems read, 1260 kept" in run("01_segment.py", "--out", data, "--num_val", 5)
    (data / "train.jsonl").write_text("".join((data / "train.jsonl").read_text().splitlines(keepends=True)[:400]))       # for time
    assert "best by validation" in run("02_srl_train.py", "--data", data, "--out", tmp_path / "srl", "--rollouts", 64, *small)
    run("02_srl_train.py", "--method", "sft", "--data", data, "--out", tmp_path / "sft", "--epochs", 1, "--learning_rate", 1e-3)
    line = read_jsonl(tmp_path / "srl/log.jsonl")[-1]
    assert line["done"] >= 64 and {"reward", "exact", "kept", "sampled", "loss", "entropy", "grad_norm", "seconds_rollout", "val_exact"} <= set(line)
    printed = run("03_rlvr_train.py", "--data", data, "--model", tmp_path / "srl/model", "--out", tmp_path / "srl_rlvr", "--rollouts", 100, *small)
    assert "best by validation" in printed
    flags = ("--models", f"srl={tmp_path}/srl/model", f"srl_rlvr={tmp_path}/srl_rlvr/model", "--k", 2, "--limit", 4,
             "--completions", tmp_path / "eval", "--results", tmp_path / "results")
    printed = run("04_eval.py", *flags)
    assert "| SRL then RLVR | 1 |" in printed and "figure.png" in printed and "a first look: 4 problems each of hard and short" in printed
    result = json.loads((tmp_path / "results/srl.json").read_text())
    assert list(result["benchmarks"]) == ["hard", "short"] and result["decoding"]["k"] == 2 and result["made_by"]["torch"]
    for path in tmp_path.glob("srl*/model/*.json"):         # --regrade needs no model and gives the same numbers
        path.unlink()
    run("04_eval.py", *flags, "--regrade")
    assert json.loads((tmp_path / "results/srl.json").read_text())["benchmarks"] == result["benchmarks"]


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data with real solutions is not there")
def test_the_four_scripts_run_in_order_on_real_solutions(tmp_path):
    tokenizer, qwen = AutoTokenizer.from_pretrained(DATA / "qwen2.5_tokenizer"), tmp_path / "qwen"
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=151_936, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                                         num_key_value_heads=2, tie_word_embeddings=True, max_position_embeddings=32_768,
                                         eos_token_id=tokenizer.eos_token_id, bos_token_id=None))
    assert model.num_parameters() < 20e6                    # random, nearly all of them in the embedding of the real vocabulary
    model.save_pretrained(qwen)
    tokenizer.save_pretrained(qwen)
    numbered = [json.dumps(p) for p in read_jsonl(DATA / "s1k/s1k_numbered_sample_60.jsonl") if p["kind"] == "numbered"]
    (tmp_path / "s1k.jsonl").write_text("\n".join(numbered))
    data = tmp_path / "data"
    assert "40 problems read, 40 kept" in run("01_segment.py", "--data", tmp_path / "s1k.jsonl", "--out", data, "--num_val", 4)
    # fewer examples, for time: two validation problems, the shortest prompts to train on
    for name, count in (("train", 40), ("val", 8)):
        examples = sorted(read_jsonl(data / f"{name}.jsonl"), key=lambda e: len(e["problem"] + e["partial"]))[:count]
        (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, examples)))
    small = ("--recipe", "paper", "--device", "cpu", "--data", data, "--max_new_tokens", 16, "--prompts_per_batch", 4, "--eval_every", 2)
    assert "best by validation" in run("02_srl_train.py", *small, "--model", qwen, "--out", tmp_path / "srl", "--rollouts", 64)
    assert "best by validation" in run("02_srl_train.py", *small, "--method", "sft", "--model", qwen, "--out", tmp_path / "sft", "--epochs", 1)
    printed = run("03_rlvr_train.py", *small, "--model", tmp_path / "srl/model", "--out", tmp_path / "rlvr", "--rollouts", 64, "--val_samples", 1)
    assert "problems have no answer and are left out" in printed and "best by validation" in printed
    files = [DATA / "math_eval" / name for name in ("amc23.jsonl", "aime24.jsonl", "aime25.jsonl", "minerva_math.jsonl", "math500_test.json")]
    printed = run("04_eval.py", "--models", f"srl={tmp_path / 'srl/model'}", f"srl_rlvr={tmp_path / 'rlvr/model'}", "--mode", "single", "--k", 2, "--limit", 3,
                  "--max_new_tokens", 16, "--completions", tmp_path / "eval", "--results", tmp_path / "results", "--benchmarks", *files)
    assert "| SRL then RLVR | 1 |" in printed
    assert list(json.loads((tmp_path / "results/srl.json").read_text())["benchmarks"]) == [file.stem for file in files]


@pytest.mark.parametrize("text, message", [
    (None, "No such file"), ("", "empty"), (GOOD + "{broken", "line 2: not JSON"), (GOOD + "[1]", "line 2: no id"), (GOOD * 2, "occurs twice"),
    ('{"id": 1, "problem": "p", "solution": "just 4", "answer": "4"}', "no solution has numbered steps"),
    ('{"id": 1, "problem": "", "solution": "s", "answer": "4"}', "line 1: the problem is empty")])
def test_bad_solutions_end_in_one_line_and_exit_code_2(tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    if text is not None:
        path.write_text(text)
    printed = run("01_segment.py", "--data", path, "--out", tmp_path / "out", code=2)
    assert message in printed and "bad.jsonl" in printed and "Traceback" not in printed and len(printed.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("script, flag, value, message", [
    ("02_srl_train.py", "--data", "nowhere", "nowhere: no such folder"), ("02_srl_train.py", "--group_size", "0", "--group_size 0"),
    ("02_srl_train.py", "--model", "./nowhere", "nowhere: no such model"), ("03_rlvr_train.py", "--model", "./nowhere", "nowhere: no such model"),
    ("04_eval.py", "--k", "0", "--k 0"), ("04_eval.py", "--models", "a=./nowhere", "nowhere: no such model"),
    ("04_eval.py", "--table", "nowhere", "nowhere: no results"), ("04_eval.py", "--benchmarks", "nowhere.jsonl", "nowhere.jsonl: no such file"),
    ("04_eval.py", "--benchmarks", "{}/unanswered.jsonl", "problem 7: no answer")])
def test_bad_flags_end_in_one_line_and_exit_code_2(tmp_path, script, flag, value, message):
    (tmp_path / "unanswered.jsonl").write_text('{"id": 7, "problem": "p", "answer": ""}')
    if script == "04_eval.py":
        flags = ("--results", tmp_path / "results", "--completions", tmp_path / "eval")
    else:
        run("01_segment.py", "--out", tmp_path / "data")
        flags = ("--data", tmp_path / "data", "--out", tmp_path / "out")
    printed = run(script, *flags, flag, value.format(tmp_path), code=2)
    assert message in printed and "Traceback" not in printed
