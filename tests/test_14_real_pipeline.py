"""The four scripts in order on real solutions, with the real Qwen2.5 tokenizer and a random model of its architecture. Needs ../shared; skipped without."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared/data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data with real solutions is not there")


def run(script, *flags):
    result = subprocess.run([sys.executable, ROOT / script, *map(str, flags)], capture_output=True, text=True, timeout=500,
                            env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A folder with a random Qwen2 of 10 M parameters, nearly all of them in the embedding of the real vocabulary."""
    folder = tmp_path_factory.mktemp("qwen")
    tokenizer = AutoTokenizer.from_pretrained(DATA / "qwen2.5_tokenizer")
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=151_936, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         tie_word_embeddings=True, max_position_embeddings=32_768, eos_token_id=tokenizer.eos_token_id, bos_token_id=None)
    model = Qwen2ForCausalLM(config)
    assert model.num_parameters() < 20e6
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_the_four_scripts_run_in_order_on_real_solutions(qwen, tmp_path):
    problems = [json.loads(line) for line in (DATA / "s1k/s1k_numbered_sample_60.jsonl").read_text().split("\n") if line]
    slice_of_40 = tmp_path / "s1k.jsonl"
    slice_of_40.write_text("\n".join(json.dumps(p) for p in problems if p["kind"] == "numbered"))
    data = tmp_path / "data"
    printed = run("01_segment.py", "--data", slice_of_40, "--out", data, "--num_val", 4)
    assert "40 problems read, 40 kept" in printed
    # fewer examples, for time: two validation problems, the shortest prompts to train on
    for name, count in (("train", 40), ("val", 8)):
        examples = [json.loads(line) for line in (data / f"{name}.jsonl").read_text().split("\n") if line]
        examples = sorted(examples, key=lambda e: len(e["problem"] + e["partial"]))[:count]
        (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, examples)))
    small = ("--data", data, "--max_new_tokens", 16, "--prompts_per_batch", 4, "--eval_every", 2)
    paper = ("--recipe", "paper", "--device", "cpu")
    printed = run("02_srl_train.py", *paper, "--model", qwen, "--out", tmp_path / "srl", "--rollouts", 64, *small)
    assert "the best policy by validation" in printed
    printed = run("02_srl_train.py", *paper, "--method", "sft", "--model", qwen, "--out", tmp_path / "sft", "--epochs", 1, *small)
    assert "the best epoch by validation" in printed
    printed = run("03_rlvr_train.py", *paper, "--model", tmp_path / "srl/model", "--out", tmp_path / "rlvr", "--rollouts", 64, "--val_samples", 1, *small)
    assert "problems have no answer and are left out" in printed and "the best policy by validation" in printed
    names = ("amc23.jsonl", "aime24.jsonl", "aime25.jsonl", "minerva_math.jsonl", "math500_test.json")
    printed = run("04_eval.py", "--models", f"srl={tmp_path / 'srl/model'}", f"srl_rlvr={tmp_path / 'rlvr/model'}", "--mode", "single", "--k", 2, "--limit", 3,
                  "--max_new_tokens", 16, "--completions", tmp_path / "eval", "--results", tmp_path / "results",
                  "--benchmarks", *(DATA / "math_eval" / name for name in names))
    assert "| SRL then RLVR | 1 |" in printed
    assert list(json.loads((tmp_path / "results/srl.json").read_text())["benchmarks"]) == ["amc23", "aime24", "aime25", "minerva_math", "math500_test"]
