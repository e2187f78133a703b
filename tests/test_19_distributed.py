"""torchrun with two processes on a CPU: batches, rewards and weights of one process, also sharded; a rank that dies ends the job, which resumes."""
import json
import os
import subprocess
import sys
import time

import pytest
import ranks
import torch
from conftest import ROOT

from engine.policy import load_policy

SAME = ("step", "done", "reward", "exact", "bad_format", "kept", "sampled", "completions", "tokens", "truncated", "val_exact", "val_reward", "val_unsolved")


def run(script, *flags, processes=2):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"] if processes == 2 else []
    return subprocess.run([sys.executable, *torchrun, ROOT / script, *map(str, flags)], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder of the run in one process."""
    out = tmp_path_factory.mktemp("one") / "srl"
    ranks.train(out)
    return out


def assert_same_run(out, one):
    states = [torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu") for folder in (out, one)]
    logs = [[{name: line.get(name) for name in SAME} for line in state["run"]["log"]] for state in states]
    assert logs[0] == logs[1] and logs[0][-1]["step"] >= 5
    if (one / "completions.txt").exists():
        assert (out / "completions.txt").read_text() == (one / "completions.txt").read_text()
    for a, b in zip(*(state["optimizer"]["weights"] for state in states), strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=0)          # where a gradient is nearly 0, Adam makes of its rounding a part of a step of 3e-4


def test_two_ranks_learn_the_same_as_one_also_with_sharded_weights(one, tmp_path):
    result = run("tests/ranks.py", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("best by validation") == 5                   # one rank prints
    singles = {"srl": one, "rlvr": tmp_path / "rlvr", "sft": tmp_path / "sft"}
    for kind in ("rlvr", "sft"):
        ranks.train(singles[kind], kind)
    for name in ("srl", "srl-shard", "rlvr", "rlvr-shard", "sft"):
        assert_same_run(tmp_path / f"out-{name}", singles[name.removesuffix("-shard")])
    first, *others = [load_policy(str(folder / "model"))[0].state_dict() for folder in (one, tmp_path / "out-srl", tmp_path / "out-srl-shard")]
    for other in others:
        assert set(other) == set(first)
        for name, weight in first.items():
            torch.testing.assert_close(weight, other[name], atol=1e-5, rtol=0)


def test_an_evaluation_on_two_ranks_gives_the_numbers_of_one(tmp_path):
    (tmp_path / "b.jsonl").write_text("".join(line + "\n" for line in (ROOT / "miniature/benchmarks/short.jsonl").read_text().splitlines()[:5]))
    found = []
    for n in (1, 2):
        result = run("04_eval.py", "--models", f"base={ROOT / 'miniature/base'}", "--benchmarks", tmp_path / "b.jsonl", "--k", 2, "--max_turns", 3,
                     "--results", tmp_path / f"results{n}", "--completions", tmp_path / f"eval{n}", processes=n)
        assert result.returncode == 0, result.stderr
        found.append(((tmp_path / f"eval{n}/base/b.jsonl").read_text(), json.loads((tmp_path / f"results{n}/base.json").read_text())["benchmarks"]))
    assert found[0] == found[1]


def test_an_input_error_is_printed_under_torchrun(tmp_path):
    result = run("02_srl_train.py", "--data", tmp_path / "nowhere")
    assert result.returncode != 0 and "nowhere: no such folder" in result.stderr


def test_a_rank_that_dies_ends_the_job_within_a_minute_and_another_number_of_ranks_continues(one, tmp_path):
    begun = time.time()
    result = run("tests/ranks.py", tmp_path / "out", "die")
    assert result.returncode != 0 and ("SIGKILL" in result.stderr or "exitcode  : -9" in result.stderr)
    log = [json.loads(line) for line in (tmp_path / "out-srl/log.jsonl").read_text().splitlines()]
    assert 0 < log[-1]["step"] < 10 and time.time() - begun < 60
    ranks.train(tmp_path / "out-srl")
    assert_same_run(tmp_path / "out-srl", one)
