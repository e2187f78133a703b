"""torchrun with two processes on a CPU: batches, rewards and weights of one process, whole and sharded; a rank that dies ends the job, which resumes."""
import json
import os
import subprocess
import sys
import time

import pytest
import ranks
import torch
from conftest import ROOT

SAME = ("step", "done", "reward", "exact", "bad_format", "kept", "sampled", "completions", "tokens", "truncated", "val_exact", "val_reward", "val_completion")


def torchrun(out, *flags):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", ROOT / "tests/ranks.py", str(out), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder of the run in one process."""
    return alone(tmp_path_factory.mktemp("one") / "out")


def alone(out, kind="srl"):
    ranks.run(*ranks.small(out), kind)
    return out


def assert_same_run(out, one):
    states = [torch.load(folder / "checkpoint.pt", weights_only=True, map_location="cpu") for folder in (out, one)]
    logs = [[{name: line.get(name) for name in SAME} for line in state["run"]["log"]] for state in states]
    assert logs[0] == logs[1] and logs[0][-1]["step"] >= 5
    if (one / "completions.txt").exists():
        assert (out / "completions.txt").read_text() == (one / "completions.txt").read_text()
    for a, b in zip(*(state["optimizer"]["weights"] for state in states), strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=0)          # where a gradient is nearly 0, Adam makes of its rounding a part of a step of 3e-4


def test_two_ranks_learn_the_same_as_one_with_whole_and_with_sharded_weights(srl, one, tmp_path):
    result = torchrun(tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("the best policy by validation") == 4 and result.stdout.count("the best epoch") == 1      # one rank prints
    for kind in ("whole", "shard"):
        assert_same_run(tmp_path / f"out-{kind}", one)
    rlvr_alone = alone(tmp_path / "rlvr-alone", "rlvr")
    for kind in ("rlvr", "rlvr-shard"):
        assert_same_run(tmp_path / f"out-{kind}", rlvr_alone)
    assert_same_run(tmp_path / "out-sft", alone(tmp_path / "sft-alone", "sft"))
    models = [srl.load_policy(str(folder / "model"))[0].state_dict() for folder in (one, tmp_path / "out-whole", tmp_path / "out-shard")]
    for other in models[1:]:
        assert set(other) == set(models[0])
        for name, weight in models[0].items():
            torch.testing.assert_close(weight, other[name], atol=1e-5, rtol=0)


def test_an_evaluation_on_two_ranks_gives_the_numbers_of_one(tmp_path):
    (tmp_path / "b.jsonl").write_text("".join(line + "\n" for line in (ROOT / "miniature/benchmarks/short.jsonl").read_text().splitlines()[:5]))
    kept = {}
    for name, start in (("one", []), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])):
        command = [sys.executable, *start, ROOT / "04_eval.py", "--models", f"base={ROOT / 'miniature/base'}", "--benchmarks", tmp_path / "b.jsonl", "--k", "2",
                   "--max_turns", "3", "--results", tmp_path / f"{name}_results", "--completions", tmp_path / name]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert result.returncode == 0, result.stderr
        kept[name] = (tmp_path / name / "base/b.jsonl").read_text(), json.loads((tmp_path / f"{name}_results/base.json").read_text())["benchmarks"]
    assert kept["one"] == kept["two"]


def test_an_error_of_the_input_is_said_under_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", ROOT / "02_srl_train.py", "--data",
               str(tmp_path / "nowhere")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert result.returncode != 0 and "nowhere: no such folder" in result.stderr


def test_a_rank_that_dies_ends_the_job_within_a_minute_and_another_number_of_ranks_continues(one, tmp_path):
    begun = time.time()
    result = torchrun(tmp_path / "out", "die")
    assert result.returncode != 0 and "SIGKILL" in result.stderr or "exitcode  : -9" in result.stderr
    log = [json.loads(line) for line in (tmp_path / "out-whole/log.jsonl").read_text().splitlines()]
    assert 0 < log[-1]["step"] < 10 and time.time() - begun < 60
    ranks.run(*ranks.small(tmp_path / "out-whole"))
    assert_same_run(tmp_path / "out-whole", one)
