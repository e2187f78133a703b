"""A run that was killed anywhere and started again ends as if nothing had happened. SRL_KILLS=20 for the long version."""
import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import kills
import pytest
import torch

KINDS, KILLS = ("srl", "sft", "rlvr"), int(os.environ.get("SRL_KILLS", 2))


@pytest.fixture(scope="module")
def server():
    """Forks processes that have everything loaded, so that a start takes no time."""
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)     # Python 3.11 forgets sys.path here
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kills"])
    return context


@pytest.fixture
def model(tiny, tokenizer, tmp_path):
    tiny.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def outcome(out):
    """All that a run leaves: weights, optimizer, log without times, screen, completions, the best model."""
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    weights = state["optimizer"]["weights"] + [v for entry in state["optimizer"]["adam"]["state"].values() for v in entry.values()]
    log = [{k: v for k, v in json.loads(line).items() if "second" not in k and k != "peak_gb"} for line in (out / "log.jsonl").read_text().splitlines()]
    completions = (out / "completions.txt").read_text() if (out / "completions.txt").exists() else ""
    screen = (out.parent / f"{out.name}.screen").read_text().replace(str(out), "OUT")
    return weights, [log, screen, completions], (out / "model/model.safetensors").read_bytes()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True)) and a[1] == b[1] and a[2] == b[2]


def start(server, *args):
    process = server.Process(target=kills.work, args=args)
    process.start()
    return process


def finish(process, code=0):
    process.join(300)
    assert process.exitcode == code


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_at_any_moment_ends_with_the_same_weights_log_screen_and_completions(server, model, tmp_path, kind):
    finish(start(server, kind, model, tmp_path / "first"))     # loads what the server has not
    begun = time.time()
    finish(start(server, kind, model, tmp_path / "whole"))
    assert same(outcome(tmp_path / "first"), outcome(tmp_path / "whole"))
    seconds, rng, out, kill, places = time.time() - begun, random.Random(kind), tmp_path / "killed", 0, []
    while kill < KILLS:                                     # at random moments
        process = start(server, kind, model, out)
        process.join(rng.uniform(0.1, 0.8) * seconds)
        process.kill()                                      # if it still runs
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kill += 1
            places.append(len(json.loads("[" + ",".join((out / "log.jsonl").read_text().splitlines()) + "]")) if (out / "log.jsonl").exists() else 0)
        else:
            finish(process)
            assert same(outcome(tmp_path / "whole"), outcome(out)), places
            out = out.with_name(f"{out.name}x")             # it came to its end: begin again, and kill that one
    finish(start(server, kind, model, out))
    assert same(outcome(tmp_path / "whole"), outcome(out)), places
    out = tmp_path / "aimed"                                # and in the middle of every part of it
    for place, nth in (("model", 1), ("rollout", 1), ("gradient", 3), ("step", 3), ("rename", 3), ("checkpoint", 1), *[("completions", 2)] * (kind != "sft")):
        finish(start(server, kind, model, out, place, nth), -signal.SIGKILL)
    finish(start(server, kind, model, out))
    assert same(outcome(tmp_path / "whole"), outcome(out))
    assert not list(out.glob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_the_last_whole_update_first(server, model, tmp_path, number):
    finish(start(server, "srl", model, tmp_path / "whole"))
    out = tmp_path / "stopped"
    process = start(server, "srl", model, out, None, 0, {"save_every": 1000, "rollouts": 100_000})
    while not (out / "completions.txt").exists() or (out / "completions.txt").read_text().count("=== update 2,") == 0:
        time.sleep(0.02)
    os.kill(process.pid, number)
    finish(process, 130)
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert state["run"]["step"] >= 2 and state["run"]["completions"] == (out / "completions.txt").stat().st_size


def test_a_changed_config_is_said_and_asks_for_a_flag(srl, segment, model, tmp_path):
    cfg = srl.Config(model=str(model), out=str(tmp_path / "out"), prompts_per_batch=2, group_size=2, max_new_tokens=2, rollouts=8, device="cpu")
    srl.train(cfg, kills.EXAMPLES, kills.EXAMPLES[:2], srl.srl_prompt, kills.long_enough)
    longer = replace(cfg, rollouts=16, learning_rate=1e-3, save_every=1)
    with pytest.raises(segment.InputError, match=r"learning_rate 0.0003 -> 0.001; rollouts 8 -> 16.*--continue_changed"):
        srl.train(longer, kills.EXAMPLES, kills.EXAMPLES[:2], srl.srl_prompt, kills.long_enough)
    srl.train(replace(longer, continue_changed=True), kills.EXAMPLES, kills.EXAMPLES[:2], srl.srl_prompt, kills.long_enough)
    log = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert log[-1]["done"] >= 16 and [line["step"] for line in log] == list(range(len(log)))


def test_a_damaged_checkpoint_gives_way_to_the_one_before(srl, model, tmp_path, capsys):
    cfg = srl.Config(model=str(model), out=str(tmp_path / "out"), prompts_per_batch=2, group_size=2, max_new_tokens=2, rollouts=12, save_every=1, device="cpu")
    srl.train(cfg, kills.EXAMPLES, kills.EXAMPLES[:2], srl.srl_prompt, kills.long_enough)
    path = tmp_path / "out/checkpoint.pt"
    before = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    os.truncate(path, path.stat().st_size // 2)
    srl.train(cfg, kills.EXAMPLES, kills.EXAMPLES[:2], srl.srl_prompt, kills.long_enough)
    after = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert "damaged" in capsys.readouterr().err
    assert [(line["step"], line.get("reward")) for line in before] == [(line["step"], line.get("reward")) for line in after]


def test_a_full_disk_ends_in_one_line_and_the_last_checkpoint_stays_whole(srl, segment, model, tmp_path, monkeypatch):
    cfg = srl.Config(model=str(model), out=str(tmp_path / "out"), prompts_per_batch=2, group_size=2, max_new_tokens=2, rollouts=40, save_every=1, device="cpu")
    save, calls = torch.save, []

    def full(state, path):
        calls.append(1)
        save(state, path)
        if len(calls) >= 4:
            os.truncate(path, 1000)
            raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(segment.InputError, match="checkpoint.pt: cannot be written .No space left on device; .* MB free"):
        srl.train(cfg, kills.EXAMPLES, kills.EXAMPLES[:2], srl.srl_prompt, kills.long_enough)
    assert len(calls) == 4 and not list((tmp_path / "out").glob("*.tmp"))
    assert torch.load(tmp_path / "out/checkpoint.pt", weights_only=True)["run"]["step"] == 2        # before training, 1, 2


def test_an_evaluation_goes_on_where_it_was_cut_and_grades_nothing_twice(evaluate, rlvr, segment, model, tmp_path, monkeypatch):
    problems = [{"id": str(i), "problem": f"Solve {i}", "answer": "1"} for i in range(12)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(p) + "\n" for p in problems))
    flags = ["x", "--models", f"m={model}", "--benchmarks", str(tmp_path / "b.jsonl"), "--k", "4", "--max_rows", "16", "--max_new_tokens", "3",
             "--max_turns", "2"]

    def run(name):
        monkeypatch.setattr("sys.argv", [*flags, "--completions", str(tmp_path / name), "--results", str(tmp_path / f"{name}_results")])
        evaluate.main()
        return (tmp_path / name / "m/b.jsonl").read_text(), json.loads((tmp_path / f"{name}_results/m.json").read_text())["benchmarks"]
    whole, judged, sampled = run("whole"), [], []
    judge, play = rlvr.judge, evaluate.srl.play
    gradings = [1 + 4] * 12                                  # of each problem: greedy and sampled

    def judge_some(text, answer):
        judged.append((text, answer))
        if len(judged) == sum(gradings[:8]) + 1:             # records are graded eight at a time
            raise KeyboardInterrupt
        return judge(text, answer)

    def play_some(policy, tokenizer, examples, *args, **kwargs):
        sampled.append(len(examples))
        if len(sampled) == 3:                                # 4 problems at a time: the third group of problems
            raise KeyboardInterrupt
        return play(policy, tokenizer, examples, *args, **kwargs)
    monkeypatch.setattr(evaluate.srl, "play", play_some)
    with pytest.raises(KeyboardInterrupt):
        run("cut")
    monkeypatch.setattr(rlvr, "judge", judge_some)
    with pytest.raises(KeyboardInterrupt):
        run("cut")
    assert sampled[3:] == [4]                                # the third group alone
    assert run("cut") == whole
    assert len(judged) == sum(gradings) + 1                  # the one that was interrupted, and no other, twice
