"""Each alarm sounds where its cause is built and is silent on healthy runs. Nothing in the tree evaluates a model's text."""
import ast
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

HEALTHY = sorted(ROOT.glob("results/miniature/seed*/srl.log.jsonl")) + sorted(ROOT.glob("results/miniature/seed*/srl_rlvr*.log.jsonl"))
GOOD = {"reward": 0.6, "exact": 0.2, "bad_format": 0.01, "kept": 4, "sampled": 4, "truncated": 0.0, "entropy": 0.1, "clipped": 0.0,
        "mismatch": 1e-5, "skipped": 0}


def lines(n, **changes):
    """A log of n like updates; a change may be a function of the update."""
    return [{"step": i, **GOOD, **{k: v(i) if callable(v) else v for k, v in changes.items()}} for i in range(n)]


BASE = {"step": 0, "val_exact": 0.1, "val_reward": 0.6}
WORSE = {"val_exact": 0.05, "val_reward": 0.5}
CAUSES = {
    "no signal": (lines(3, kept=0), "too hard for this policy: train it with SRL first"), "format": (lines(1, bad_format=0.96), "start from a model"),
    "truncated": (lines(1, truncated=0.51), "--max_new_tokens 320"),
    "near copies": (lines(40, reward=lambda i: 0.6 + i / 100, exact=lambda i: 0.3 - i / 150), "--learning_rate 0.0001"),
    "entropy": (lines(40, entropy=lambda i: 0.1 * 0.8**i), "--learning_rate 0.0001"), "mismatch": (lines(1, mismatch=0.5, clipped=0.1), "--dtype float32"),
    "not finite": (lines(1, skipped=1), "not_finite.jsonl"),
    "worse": ([BASE, *lines(2), {**GOOD, "step": 3, **WORSE}, *lines(2), {**GOOD, "step": 6, **WORSE}], "--learning_rate 0.0001")}


@pytest.mark.parametrize("name", CAUSES)
def test_an_alarm_sounds_at_its_cause_names_the_mend_and_no_other_sounds(srl, name):
    log, mend = CAUSES[name]
    found = srl.alarms(log, srl.Config())
    assert list(found) == [name] and mend in found[name]


def test_too_easy_problems_are_told_from_too_hard_ones(srl):
    assert "too easy" in srl.alarms(lines(3, kept=0, exact=1.0), srl.Config())["no signal"]


def test_a_cause_that_is_not_quite_there_is_no_alarm(srl):
    for log in (lines(2, kept=0), lines(3, kept=lambda i: i == 1), lines(1, bad_format=0.94), lines(1, truncated=0.5), lines(1, mismatch=0.01, clipped=0.01)):
        assert srl.alarms(log, srl.Config()) == {}


@pytest.mark.parametrize("path", HEALTHY, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_healthy_runs_of_the_miniature_are_silent(srl, path):
    log = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(srl.alarms(log[:i], srl.Config()) == {} for i in range(1, len(log) + 1))


def test_the_run_at_too_high_a_rate_is_told_so(srl):
    path = ROOT / "results/miniature/high_rate.log.jsonl"
    if not path.exists():
        pytest.skip("no log of it")
    log = [json.loads(line) for line in path.read_text().splitlines()]
    assert any("near copies" in srl.alarms(log[:i], srl.Config()) for i in range(1, len(log) + 1))


@pytest.fixture
def task(tmp_path, tiny, tokenizer, srl):
    tiny.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    examples = [{"id": str(i), "k": 1, "n": 1, "problem": f"Solve {i}", "partial": "", "action": "1"} for i in range(6)]
    cfg = srl.Config(model=str(tmp_path / "model"), out=str(tmp_path / "out"), prompts_per_batch=2, group_size=4, max_new_tokens=2, rollouts=80, eval_every=3,
                     device="cpu")
    return cfg, examples


def test_an_alarm_is_told_once_and_counted_in_the_log(srl, task, capsys):
    cfg, examples = task
    srl.train(cfg, examples, examples[:2], srl.srl_prompt, lambda text, example: -1.0)
    printed = capsys.readouterr().out
    log = [json.loads(line) for line in open(f"{cfg.out}/log.jsonl")]
    assert printed.count("ALARM (format)") == printed.count("ALARM (truncated)") == 1
    counted = sum("format" in line.get("alarms", ()) for line in log)
    assert counted == len(log) - 1 and f"format {counted} times" in printed


def test_a_gradient_that_is_not_finite_is_skipped_and_its_batch_saved(srl, task, monkeypatch, capsys):
    cfg, examples = task
    loss, calls = srl.grpo_loss, []

    def broken(*args):
        calls.append(1)
        return loss(*args) * (float("nan") if len(calls) == 2 else 1.0)
    monkeypatch.setattr(srl, "grpo_loss", broken)
    srl.train(cfg, examples, examples[:2], srl.srl_prompt, lambda text, example: float(len(text)))
    policy, _ = srl.load_policy(f"{cfg.out}/model")
    assert all(torch.isfinite(p).all() for p in policy.parameters())
    saved = [json.loads(line) for line in open(f"{cfg.out}/not_finite.jsonl")]
    assert saved[0]["prompt"] and saved[0]["completion"] and "ALARM (not finite)" in capsys.readouterr().out
    text = open(f"{cfg.out}/log.jsonl").read()
    assert "NaN" not in text and [json.loads(line).get("skipped", 0) for line in text.splitlines()].count(1) == 1


def test_a_tracker_gets_the_numbers_of_every_line_and_a_missing_one_is_named(srl, segment, task, monkeypatch):
    cfg, examples = task
    sent, modules = [], __import__("sys").modules
    wandb = SimpleNamespace(init=lambda **settings: sent.append(settings), log=lambda numbers, step: sent.append((step, numbers)))
    monkeypatch.setitem(modules, "wandb", wandb)
    srl.train(replace(cfg, report_to="wandb", out=f"{cfg.out}-tracked"), examples, examples[:2], srl.srl_prompt, srl.srl_reward)
    lines = [json.loads(line) for line in open(f"{cfg.out}-tracked/log.jsonl")]
    assert sent[0]["project"] == "srl" and sent[0]["config"]["report_to"] == "wandb"
    assert [step for step, _ in sent[1:]] == [line["step"] for line in lines] and len(lines) > 1
    for (_, numbers), line in zip(sent[1:], lines, strict=True):
        assert {k: v for k, v in line.items() if isinstance(v, (int, float))} == {k: v for k, v in numbers.items()}
    for package in ("torch.utils.tensorboard", "wandb"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    for name in ("tensorboard", "wandb"):
        with pytest.raises(segment.InputError, match=f"pip install {name}"):
            srl.make_tracker(replace(cfg, report_to=name))


def test_nothing_in_the_tree_evaluates_text_or_loads_a_pickle_or_trusts_remote_code():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("miniature/*.py"), *ROOT.glob("tests/*.py")]:
        if path.name == "test_21_agent_world.py":               # runs the text that our generator wrote
            continue
        tree = ast.parse(path.read_text())
        sandboxed = {id(node) for f in ast.walk(tree) if getattr(f, "name", "") == "sandbox_process" for node in ast.walk(f)}    # behind the seccomp filter
        for node in ast.walk(tree):
            if id(node) in sandboxed:
                continue
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"} & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call):
                called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert called not in ("eval", "exec", "compile", "__builtins__.eval", "builtins.exec"), f"{path.name}:{node.lineno}"
                assert called != "torch.load" or keywords.get("weights_only") == "True", f"{path.name}:{node.lineno}"
                assert keywords.get("trust_remote_code", "False") == "False", f"{path.name}:{node.lineno}"
