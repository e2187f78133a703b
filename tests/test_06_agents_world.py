"""The agents' world: its bugs, its tests, its expert, and what the base model can do."""
import json
import random
import re
import sys

import agents
import pytest
from conftest import ROOT
from transformers import AutoTokenizer

from engine.agents import sandbox
from engine.chat import prompt_text


def tasks(name):
    return [json.loads(line) for line in open(ROOT / f"miniature/agents/{name}.jsonl")]


@pytest.fixture
def world(monkeypatch):
    """Tests are computed in this process: only test_17 needs real ones."""
    monkeypatch.setattr(sandbox, "failed_tests", agents.without_processes)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox is Linux's")
def test_calculating_by_hand_gives_what_python_gives():
    rng, files, tests = random.Random(0), {}, []
    for n in range(110):
        source = agents.draw_function(rng, "f", "gain")
        functions = agents.functions_in(enumerate(source, 1))
        for i, (number, new, _) in enumerate([(0, "", ""), *agents.all_changes(functions, "f")]):
            arguments = [rng.randint(1, 9), rng.randint(1, 9)]
            value, steps = agents.run_by_hand(agents.with_line(functions, number, new), "f", arguments)
            files[f"m{n}_{i}.py"] = "\n".join(new if k == number else line for k, line in enumerate(source, 1))
            tests.append([f"m{n}_{i}", "f", arguments, value])
            assert steps[-1].endswith(f"= {value}")
    assert len(tests) > 800 and sandbox.failed_tests(files, tests) == []


def test_every_bug_breaks_the_hidden_tests_one_small_change_fixes_it_and_the_code_could_have_been_drawn_as_it_is():
    """Once a variable that was set and never used gave the bug away, and imitation found it without a thought."""
    rng = random.Random(1)
    for _ in range(100):
        task = agents.draw_task(rng, agents.KINDS)
        assert agents.without_processes(task["files"], task["hidden"]) and agents.without_processes(task["files"], task["visible"][:1])
        for source in task["files"].values():
            assert all(agents.all_used(*function) for function in agents.functions_in(enumerate(source.splitlines(), 1)).values())
            assert set(map(int, re.findall(r"\d+", source))) <= set(agents.CONSTANTS)
        lines = task["files"][task["path"]].splitlines()
        name, arguments, want = agents.complaint(task["problem"])
        functions = agents.functions_in(enumerate(lines, 1))
        fixes = [(n, new) for n, new, _ in agents.all_changes(functions, name) if agents.value_of(agents.with_line(functions, n, new), name, arguments) == want]
        assert fixes == [(task["line"], task["fixed"])]
        lines[task["line"] - 1] = task["fixed"]
        assert agents.without_processes({**task["files"], task["path"]: "\n".join(lines)}, task["hidden"]) == []
    assert not agents.all_used(("a", "b"), [(1, "    c = a + b"), (2, "    return a - 3")]) and not agents.all_used(("a", "b"), [(1, "    return a + 1")])


def test_the_base_tries_every_change_once_in_order_and_stops_anywhere(rlvr, world):
    files = {"shop.py": "def cost(a, b):\n    c = a * b\n    return c + 1\n", "bank.py": "def fee(x, y):\n    return x - y\n"}
    task = {"problem": "cost(3, 4) returns 13 but should return 8.", "files": files, "visible": [], "context": []}
    example = rlvr.next_call(task, agents.call_text("view", path="shop.py"))
    order = [(number, new) for number, new, _ in agents.all_changes(agents.functions_in(agents.seen_file(example["context"])[1]), "cost")]
    begins, ends = set(), set()
    for seed in range(200):
        think, call = agents.random_edit(example, random.Random(seed))
        tried = [(int(line.split("|")[0]), line.split("|")[1].split(" -> ")[0]) for line in think.split("\n")[1:]]
        begin = order.index(tried[0])
        assert tried == (order[begin:] + order[:begin])[:len(tried)] and call == agents.call_text("edit", path="shop.py", line=tried[-1][0], text=tried[-1][1])
        begins, ends = begins | {tried[0]}, ends | {tried[-1]}
    assert begins == ends == set(order)


def test_no_code_of_a_benchmark_is_in_the_training_data_and_the_new_kind_of_bug_is_in_none_of_it(world):
    sets, seen = agents.make_tasks(1)
    assert len(seen) == sum(agents.SIZES.values())                                 # all different with their names taken out
    assert {r["kind"] for r in tasks("benchmarks/kinds")} == {agents.NEW_KIND} and agents.NEW_KIND not in {r["kind"] for r in tasks("benchmarks/modules")}
    assert len(sets) == 7 and all(records == tasks(name if name == "expert" else f"benchmarks/{name}") for name, records in sets.items())     # as committed


def test_the_expert_resolves_every_task_and_writes_no_thoughts(rlvr, segment, world):
    for row in tasks("expert")[:100]:
        examples = segment.trajectory_examples({**row, "id": row["instance_id"]})
        assert rlvr.judge_calls([e["action"] for e in examples], row) == ("right", 0) and "<think>" not in json.dumps(row)


def test_random_calls_are_legal_and_almost_never_resolve_a_task(rlvr, world):
    rng, verdicts = random.Random(2), []
    for _ in range(200):
        example = start = {**agents.draw_task(rng, agents.KINDS), "context": []}
        calls = []
        while example and len(calls) < 12:
            calls.append(agents.random_call(example, rng)[1])
            example = rlvr.next_call(example, calls[-1])
        verdicts.append(rlvr.judge_calls(calls, start))
    assert not any(invalid for _, invalid in verdicts) and [found for found, _ in verdicts].count("right") <= 10             # 5 % of 200


def test_the_base_model_was_trained_on_the_prompt_that_the_scripts_send(srl, rlvr, world):
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "miniature/agents/base")
    task = {"id": "t", **agents.draw_task(random.Random(0), agents.KINDS), "context": []}
    example = rlvr.next_call(rlvr.next_call(task, agents.expert_calls(task)[0]), agents.expert_calls(task)[1])
    assert prompt_text(tokenizer, srl.srl_prompt(example)) == agents.prompt_text(example)
    text = agents.trajectory(task)[6]["content"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert {len(tokenizer(f"({name}")["input_ids"]) for name in (*agents.NAMES, *agents.FILES)} == {2}      # a name is one token, so it can be copied
