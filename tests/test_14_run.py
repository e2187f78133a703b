"""engine/run, stored and alarms: a run killed anywhere ends as if nothing had happened (SRL_KILLS=20: many kills); an alarm sounds at its cause alone."""
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import kills
import pytest
import torch
from conftest import ROOT

import engine
from engine.alarms import alarms
from engine.files import InputError
from engine.policy import load_policy
from engine.run import make_tracker, plan

KILLS = int(os.environ.get("SRL_KILLS", 2))


def read_log(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="module")
def server():
    """Forks processes that have everything loaded, so that a start takes no time."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])     # Python 3.11 forgets sys.path here
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kills"])
    return context


@pytest.fixture
def start(server, task, tmp_path):
    """start(kind, name, ..) -> a process that trains in tmp_path/name, see kills.work."""
    def start(kind, name, *args):
        process = server.Process(target=kills.work, args=(kind, tmp_path / "model", tmp_path / name, *args))
        process.start()
        return process
    return start


def wait(process, code=0):
    process.join(300)
    assert process.exitcode == code


def outcome(out):
    """All that a run leaves: weights and optimizer, log without times, screen, completions, the best model."""
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    tensors = state["optimizer"]["weights"] + [v for entry in state["optimizer"]["adam"]["state"].values() for v in entry.values()]
    log = [{k: v for k, v in line.items() if "second" not in k and k != "peak_gb"} for line in read_log(out / "log.jsonl")]
    completions = [path.read_text() for path in out.glob("completions.txt")]    # SFT has none
    screen = out.with_name(f"{out.name}.screen").read_text().replace(str(out), "OUT")
    return tensors, log, screen, completions, (out / "model/model.safetensors").read_bytes()


def same(out, other):
    a, b = outcome(out), outcome(other)
    return all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True)) and a[1:] == b[1:]


@pytest.mark.parametrize("kind", ["srl", "sft", "rlvr"])
def test_a_run_killed_at_any_moment_ends_with_the_same_weights_log_screen_and_completions(start, tmp_path, kind):
    wait(start(kind, "first"))                              # loads what the server has not
    begun = time.time()
    wait(start(kind, "reference"))
    seconds, rng, reference, out, killed_at = time.time() - begun, random.Random(kind), tmp_path / "reference", tmp_path / "killed", []
    assert same(tmp_path / "first", reference)
    while len(killed_at) < KILLS:                           # at random moments
        process = start(kind, out.name)
        process.join(rng.uniform(0.1, 0.8) * seconds)
        process.kill()                                      # if it still runs
        process.join()
        if process.exitcode == -signal.SIGKILL:
            killed_at.append([len(read_log(path)) for path in out.glob("log.jsonl")])
        else:
            wait(process)
            assert same(reference, out), killed_at
            out = out.with_name(f"{out.name}x")             # it came to its end: begin a new one, and kill that
    wait(start(kind, out.name))
    assert same(reference, out), killed_at
    moments = (("model", 1), ("rollout", 1), ("gradient", 3), ("step", 3), ("rename", 3), ("checkpoint", 1), *[("completions", 2)] * (kind != "sft"))
    for moment, nth in moments:                             # and in the middle of every part of it
        wait(start(kind, "aimed", moment, nth), -signal.SIGKILL)
    wait(start(kind, "aimed"))
    assert same(reference, tmp_path / "aimed") and not list((tmp_path / "aimed").glob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_save_the_last_complete_update_first(start, tmp_path, number):
    wait(start("srl", "reference"))
    completions = tmp_path / "stopped/completions.txt"
    process = start("srl", "stopped", None, 0, {"save_every": 1000, "rollouts": 100_000})
    while not completions.exists() or "=== update 2," not in completions.read_text():
        time.sleep(0.02)
    os.kill(process.pid, number)
    wait(process, 130)
    run = torch.load(tmp_path / "stopped/checkpoint.pt", weights_only=True)["run"]
    assert run["step"] >= 2 and run["completions_size"] == completions.stat().st_size


def script(name, *flags, **env):
    """A script of the project in a process of its own, for which Ctrl-C is not ignored."""
    return subprocess.Popen([sys.executable, ROOT / name, *map(str, flags)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, **env}, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))


@pytest.mark.parametrize("name", ["02_srl_train.py", "03_rlvr_train.py", "04_eval.py"])
def test_ctrl_c_during_an_import_ends_in_one_line_although_packages_catch_it(tmp_path, name):
    (tmp_path / "torch.py").write_text("import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    os = None\nos.sep\n")
    process = script(name, "--help", PYTHONPATH=str(tmp_path))
    assert (*process.communicate(), process.returncode) == ("", "\ninterrupted\n", 130)
    assert signal.getsignal(signal.SIGINT) != engine.stop                   # a test or notebook that imports the same keeps its own


def test_no_name_of_the_package_hides_a_file_of_it():
    subprocess.run([sys.executable, "-c", "from engine import plain, run; plain.sample_tokens, run.Run"], cwd=ROOT, check=True)


def test_ctrl_c_after_the_imports_says_how_to_continue(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    process = script("01_segment.py", "--data", tmp_path / "pipe.jsonl", "--out", tmp_path)
    with open(tmp_path / "pipe.jsonl", "w"):                                # waits until the script reads
        process.send_signal(signal.SIGINT)
        assert process.communicate() == ("", "\ninterrupted; run the same command again to continue\n") and process.returncode == 130


def test_a_run_begins_with_a_line_on_its_examples_completions_and_updates_that_real_runs_agree_with(srl, rlvr, train, capsys):
    for name, config, extends in (("srl", srl.Config(), None), ("srl_rlvr", rlvr.Config(), rlvr.next_turn)):
        for path in ROOT.glob(f"results/miniature/seed*/{name}.log.jsonl"):
            last = read_log(path)[-1]
            line = plan(config, ([0] * 7191, [0] * 358), last["done"], "rollout", extends)
            least, most = re.search(r"7,191 examples, 358 to validate on; [\d,]+ completions in ([\d,]+) to ([\d,]+) updates", line).groups()
            assert int(least) <= last["step"] <= int(most.replace(",", ""))
    assert plan(srl.Config(out="o"), ([0] * 7191, [0] * 358), 48_000, "rollout", None) == (
        "o: 7,191 examples, 358 to validate on; 48,000 completions in 125 to 375 updates of 16 prompts x 8 or more; bar: [time so far<left]")
    train(rollouts=8)
    assert "out: 12 examples, 2 to validate on; 8 completions in 1 to 2 updates of 2 prompts x 2 or more" in capsys.readouterr().out


def test_the_screen_shows_exact_and_reward_first_and_at_each_validation_a_problem_that_is_not_solved(train, capsys):
    log = train(lambda text, example: 0.5 if example["id"] == "1" else len(text) / 100, rollouts=24, eval_every=2)
    printed = capsys.readouterr()
    shown = [line["val_unsolved"].rstrip() for line in log if "val_exact" in line]
    assert len(shown) > 2 and all(text in printed.out for text in shown) and "=== update 2, problem 0, step 1 of 1: reward 0.0" in printed.out
    assert re.search(r"^update 2: exact \S+, reward \S+, kept \S+, sampled \S+, val_exact", printed.out, re.MULTILINE)
    assert re.search(r"12/24 .*rollout/s, exact=\S+, reward=\S+, kept=\S+, sampled=\S+, val=", printed.err)


@pytest.fixture
def train(srl, task):
    """train(..) trains on the task with small batches and these changes of the config; returns the log."""
    def train(reward_fn=task[2], **changes):
        cfg = replace(task[0], **{"prompts_per_batch": 2, "group_size": 2, "rollouts": 12, "eval_every": 20, "save_every": 1, **changes})
        srl.train(cfg, task[1], task[1][:2], srl.srl_prompt, reward_fn)
        return read_log(f"{cfg.out}/log.jsonl")
    return train


def test_a_run_with_changed_settings_names_them_and_asks_for_a_flag(train):
    train(rollouts=8, learning_rate=3e-4, save_every=5)
    longer = {"rollouts": 16, "learning_rate": 1e-3}        # save_every changes too, and nothing of what is learned
    with pytest.raises(InputError, match=r"learning_rate 0.0003 -> 0.001; rollouts 8 -> 16.*--continue_changed"):
        train(**longer)
    log = train(**longer, continue_changed=True)
    assert log[-1]["done"] >= 16 and [line["step"] for line in log] == list(range(len(log)))


def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(train, tmp_path, capsys):
    before, path = train(), tmp_path / "out/checkpoint.pt"
    os.truncate(path, path.stat().st_size // 2)
    after = train()
    assert "damaged" in capsys.readouterr().err
    assert [(line["step"], line.get("reward")) for line in before] == [(line["step"], line.get("reward")) for line in after]


def test_a_full_disk_ends_in_one_line_and_the_last_checkpoint_stays_complete(train, tmp_path, monkeypatch):
    save, calls = torch.save, []

    def full(state, path):
        calls.append(1)
        save(state, path)
        if len(calls) >= 4:
            os.truncate(path, 1000)
            raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="checkpoint.pt: cannot be written .No space left on device; .* MB free"):
        train(rollouts=40)
    assert len(calls) == 4 and not list((tmp_path / "out").glob("*.tmp"))
    assert torch.load(tmp_path / "out/checkpoint.pt", weights_only=True)["run"]["step"] == 2        # before training, 1, 2


def test_an_interrupted_evaluation_continues_where_it_stopped_and_grades_nothing_twice(evaluate, rlvr, task, tmp_path, monkeypatch):
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"id": str(i), "problem": f"Solve {i}", "answer": "1"}) + "\n" for i in range(12)))
    flags = f"x --models m={tmp_path}/model --benchmarks {tmp_path}/b.jsonl --k 4 --max_rows 16 --max_new_tokens 3 --max_turns 2 --completions {tmp_path}/"

    def run(name):
        monkeypatch.setattr("sys.argv", f"{flags}{name} --results {tmp_path}/{name}_results".split())
        evaluate.main()
        return (tmp_path / name / "m/b.jsonl").read_text(), json.loads((tmp_path / f"{name}_results/m.json").read_text())["benchmarks"]

    def interrupt(owner, name, nth):
        """The nth call of a function is interrupted; the list of the arguments of all calls."""
        function, calls = getattr(owner, name), []

        def interrupted(*args, **kwargs):
            calls.append(args)
            if len(calls) == nth:
                raise KeyboardInterrupt
            return function(*args, **kwargs)
        monkeypatch.setattr(owner, name, interrupted)
        return calls
    reference = run("reference")
    sampled = interrupt(evaluate.srl, "run_episodes", 3)    # 4 problems at a time: the third group of problems
    with pytest.raises(KeyboardInterrupt):
        run("interrupted")
    judged = interrupt(rlvr, "judge", 8 * (1 + 4) + 1)      # greedy and sampled; records are graded eight at a time
    with pytest.raises(KeyboardInterrupt):
        run("interrupted")
    assert [len(examples) for _, _, examples, *_ in sampled[3:]] == [4]     # the third group alone
    assert run("interrupted") == reference
    assert len(judged) == 12 * (1 + 4) + 1                  # the one that was interrupted, and no other, twice


# Alarms
GOOD = {"reward": 0.6, "exact": 0.2, "bad_format": 0.01, "kept": 4, "sampled": 4, "truncated": 0.0, "entropy": 0.1, "clipped": 0.0,
        "mismatch": 1e-5, "skipped": 0}


def updates(n, **changes):
    """A log of n equal updates; a change may be a function of the update."""
    return [{"step": i, **GOOD, **{k: v(i) if callable(v) else v for k, v in changes.items()}} for i in range(n)]


BEFORE, WORSE = {"step": 0, "val_exact": 0.1, "val_reward": 0.6}, {**GOOD, "val_exact": 0.05, "val_reward": 0.5}
CAUSES = [
    ("no signal", updates(3, kept=0), "too hard for this policy: train it with 02_srl_train.py first"),
    ("no signal", updates(3, kept=0, exact=1.0), "too easy"), ("format", updates(1, bad_format=0.96), "start from a model"),
    ("truncated", updates(1, truncated=0.51), "--max_new_tokens.* 320"),
    ("near copies", updates(40, reward=lambda i: 0.6 + i / 100, exact=lambda i: 0.3 - i / 150), "--learning_rate 0.0001"),
    ("entropy", updates(40, entropy=lambda i: 0.1 * 0.8**i), "--learning_rate 0.0001"),
    ("mismatch", updates(1, mismatch=0.5, clipped=0.1), "--dtype float32"), ("not finite", updates(1, skipped=1), "not_finite.jsonl"),
    ("worse", [BEFORE, *updates(2), {"step": 3, **WORSE}, *updates(2), {"step": 6, **WORSE}], "--learning_rate 0.0001")]


@pytest.mark.parametrize("name, log, fix", CAUSES)
def test_an_alarm_sounds_at_its_cause_names_the_fix_and_no_other_sounds(srl, name, log, fix):
    found = alarms(log, srl.Config(), "reward")
    assert list(found) == [name] and re.search(fix, found[name])


@pytest.mark.parametrize("log", [updates(2, kept=0), updates(3, kept=lambda i: i == 1), updates(1, bad_format=0.94), updates(1, truncated=0.5),
                                 updates(1, mismatch=0.01, clipped=0.01)])
def test_a_cause_just_below_its_threshold_is_no_alarm(srl, log):
    assert alarms(log, srl.Config(), "reward") == {}


@pytest.mark.parametrize("path", [*ROOT.glob("results/miniature/seed*/srl.log.jsonl"), *ROOT.glob("results/miniature/seed*/srl_rlvr*.log.jsonl"),
                                  *ROOT.glob("results/miniature/high_rate.log.jsonl")], ids=lambda path: f"{path.parent.name}-{path.name}")
def test_healthy_runs_of_the_miniature_are_silent_and_the_one_at_too_high_a_rate_is_not(srl, path):
    log = read_log(path)
    found = set().union(*(alarms(log[:i], srl.Config(), "reward") for i in range(1, len(log) + 1)))
    assert "near copies" in found if path.name == "high_rate.log.jsonl" else not found


@pytest.mark.parametrize("eval_every", [1, 3])
def test_an_alarm_is_printed_once_and_counted_in_the_log(train, capsys, eval_every):
    log = train(lambda text, example: -1.0, group_size=4, rollouts=80, eval_every=eval_every)
    printed, counted = capsys.readouterr().out, sum("format" in line.get("alarms", ()) for line in log)
    assert printed.count("ALARM (format)") == printed.count("ALARM (truncated)") == 1
    assert counted == len(log) - 1 and f"format {counted} times" in printed


def test_a_gradient_that_is_not_finite_is_skipped_and_its_batch_saved(srl, train, tmp_path, monkeypatch, capsys):
    loss, calls = srl.grpo_loss, []

    def broken(*args):
        calls.append(1)
        return loss(*args) * (float("nan") if len(calls) == 2 else 1.0)
    monkeypatch.setattr(srl, "grpo_loss", broken)
    log = train(lambda text, example: float(len(text)), group_size=4, rollouts=80, eval_every=3)
    policy, _ = load_policy(f"{tmp_path}/out/model")
    assert all(torch.isfinite(p).all() for p in policy.parameters())
    saved = read_log(tmp_path / "out/not_finite.jsonl")
    assert saved[0]["prompt"] and saved[0]["completion"] and "ALARM (not finite)" in capsys.readouterr().out
    assert "NaN" not in (tmp_path / "out/log.jsonl").read_text() and [line.get("skipped", 0) for line in log].count(1) == 1


def test_a_tracker_gets_the_numbers_of_every_line_and_a_missing_one_is_named(srl, train, monkeypatch):
    sent = []
    wandb = SimpleNamespace(init=lambda **settings: sent.append(settings), log=lambda numbers, step: sent.append((step, numbers)))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    log = train(srl.srl_reward, report_to="wandb", eval_every=3)
    assert sent[0]["project"] == ROOT.name and sent[0]["id"] and sent[0]["config"]["report_to"] == "wandb" and len(log) > 1
    assert sent[1:] == [(line["step"], {k: v for k, v in line.items() if isinstance(v, (int, float))}) for line in log]
    for name, package in (("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(InputError, match=f"pip install {name}"):
            make_tracker(srl.Config(report_to=name))
