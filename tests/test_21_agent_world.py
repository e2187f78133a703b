"""The agents' world: its bugs, its tests, its expert, its tools, and the loop in which a policy plays."""
import json
import random
import re
import sys
from importlib import import_module

import agents
import pytest
from conftest import ROOT

SETS = [f"benchmarks/{name}{given}" for name in ("modules", "larger", "kinds") for given in ("", "_oracle")]


def tasks(name):
    return [json.loads(line) for line in open(ROOT / f"miniature/agents/{name}.jsonl")]


@pytest.fixture
def task(monkeypatch, rlvr):
    """A small task, whose world is computed in this process: only test_22 needs real ones."""
    monkeypatch.setattr(rlvr, "failed_tests", agents.without_processes)
    return {"id": "t", "problem": "cost(3, 4) returns 13 but should return 8.", "kind": "operator", "name": "cost", "path": "shop.py", "line": 2,
            "fixed": "    c = a + b", "context": [],
            "files": {"shop.py": "def cost(a, b):\n    c = a * b\n    return c + 1\n", "bank.py": "def fee(x, y):\n    return x - y\n"},
            "visible": [["shop", "cost", [3, 4], 8]], "hidden": [["shop", "cost", [3, 4], 8], ["shop", "cost", [1, 2], 4], ["bank", "fee", [5, 2], 3]]}


def play_calls(rlvr, task, *calls):
    """(example, observations) after the calls."""
    seen = []
    for call in calls:
        task = rlvr.next_call(task, call)
        seen.append(task["context"][-1]["content"])
    return task, seen


def test_the_tools_answer_as_they_say(rlvr, task):
    call = agents.call_text
    _, seen = play_calls(rlvr, task, call("list"), call("search", text="cost"), call("view", path="shop.py"), call("run_tests"),
                         call("edit", path="shop.py", line=2, text="    c = a + b"), call("view", path="shop.py"), call("run_tests"))
    assert seen == ["shop.py\nbank.py", "shop.py:1|def cost(a, b):", "1|def cost(a, b):\n2|    c = a * b\n3|    return c + 1",
                    "cost(3, 4) returns 13 but should return 8.", "edited", "1|def cost(a, b):\n2|    c = a + b\n3|    return c + 1", "all tests pass"]
    assert rlvr.next_call(task, call("submit")) is None and task["files"]["shop.py"].count("*") == 1            # the task itself is never changed


@pytest.mark.parametrize("call", [
    "nonsense", "", "<function=view>\n</function>", agents.call_text("view", path="none.py"), agents.call_text("view", path="/etc/passwd"),
    agents.call_text("bash", command="ls"), *(agents.call_text("edit", path="shop.py", line=line, text="x") for line in (9, "²", "-1", "9" * 9999)),
    agents.call_text("submit", now="yes"), '<tool_call>\n{"name": [1], "arguments": 3}\n</tool_call>',
    f"<think>never closed {agents.call_text('submit')}"])
def test_a_call_that_is_none_changes_nothing_and_is_counted(rlvr, task, call):
    after = rlvr.next_call(task, call)
    assert after["files"] == task["files"] and after["context"][-1]["content"].startswith("Error")
    assert rlvr.judge_calls([call, agents.call_text("submit")], task) == ("wrong", 1)


def test_the_reward_is_that_the_hidden_tests_pass_on_what_was_submitted(rlvr, task):
    submit, fix = agents.call_text("submit"), agents.call_text("edit", path="shop.py", line=2, text="    c = a + b")
    fixed, _ = play_calls(rlvr, task, fix)
    assert [rlvr.agent_reward(f"<think>done</think>\n{submit}", e) for e in (task, fixed)] == [0.0, 1.0]
    assert rlvr.agent_reward("<think>done</think>\n" + agents.call_text("run_tests"), fixed) == 0.0                  # never submitted
    assert rlvr.agent_reward("<think>and so on", fixed) == rlvr.agent_reward("<think>done</think>\nls", fixed) == -1.0    # no call of a tool
    special, _ = play_calls(rlvr, task, agents.call_text("edit", path="shop.py", line=2, text="    c = b + 3"))        # right in the visible test alone
    assert rlvr.failed_tests(special["files"], task["visible"]) == [] and rlvr.agent_reward(submit, special) == 0.0
    broken, _ = play_calls(rlvr, fixed, agents.call_text("edit", path="bank.py", line=2, text="    return y - x"))   # another function is tested as well
    assert rlvr.agent_reward(submit, broken) == 0.0
    assert [rlvr.judge_calls(calls, task)[0] for calls in ([fix, submit], [submit], [fix])] == ["right", "wrong", "no answer"]


def test_the_context_of_an_episode_is_that_of_the_examples_which_segmentation_makes(rlvr, segment, task):
    row = {"id": "t", "messages": agents.trajectory(task), **{name: task[name] for name in ("files", "visible", "hidden")}}
    examples, example = segment.trajectory_examples(row), task
    assert [e["action"] for e in examples] == agents.expert_calls(task) and len(examples) == 5
    for e in examples:
        assert e["context"] == example["context"] and e["problem"] == task["problem"]
        example = rlvr.next_call(example, e["action"]) or example
    (start,) = rlvr.unsolved(examples)
    assert start["context"] == [] and rlvr.judge_calls(agents.expert_calls(task), start) == ("right", 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the sandbox is Linux's")
def test_calculating_by_hand_gives_what_python_gives(rlvr):
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
    assert len(tests) > 800 and rlvr.failed_tests(files, tests) == []


def test_every_bug_breaks_the_hidden_tests_and_one_small_change_mends_what_the_issue_says():
    rng = random.Random(1)
    for _ in range(60):
        task = agents.draw_task(rng, agents.KINDS)
        assert agents.without_processes(task["files"], task["hidden"]) and agents.without_processes(task["files"], task["visible"][:1])
        lines = task["files"][task["path"]].splitlines()
        name, arguments, want = agents.complaint(task["problem"])
        functions = agents.functions_in(enumerate(lines, 1))
        mends = [(n, new) for n, new, _ in agents.all_changes(functions, name) if agents.value_of(agents.with_line(functions, n, new), name, arguments) == want]
        assert mends == [(task["line"], task["fixed"])]
        lines[task["line"] - 1] = task["fixed"]
        assert agents.without_processes({**task["files"], task["path"]: "\n".join(lines)}, task["hidden"]) == []


def test_code_with_a_bug_could_have_been_drawn_as_it_is():
    """Once a variable that was set and never used gave the bug away, and imitation found it without a thought."""
    rng = random.Random(2)
    for _ in range(200):
        task = agents.draw_task(rng, agents.KINDS)
        for source in task["files"].values():
            functions = agents.functions_in(enumerate(source.splitlines(), 1))
            assert all(agents.all_used(*function) for function in functions.values())
            assert set(map(int, re.findall(r"\d+", source))) <= set(agents.CONSTANTS)
    assert not agents.all_used(("a", "b"), [(1, "    c = a + b"), (2, "    return a - 3")]) and not agents.all_used(("a", "b"), [(1, "    return a + 1")])


def test_the_base_tries_every_change_once_in_order_and_stops_anywhere(rlvr, task):
    example = rlvr.next_call(task, agents.call_text("view", path="shop.py"))
    order = [(number, new) for number, new, _ in agents.all_changes(agents.functions_in(agents.seen_file(example["context"])[1]), "cost")]
    begins, ends = set(), set()
    for seed in range(200):
        think, call = agents.random_edit(example, random.Random(seed))
        tried = [(int(line.split("|")[0]), line.split("|")[1].split(" -> ")[0]) for line in think.split("\n")[1:]]
        begin = order.index(tried[0])
        assert tried == (order[begin:] + order[:begin])[:len(tried)] and call == agents.call_text("edit", path="shop.py", line=tried[-1][0], text=tried[-1][1])
        begins.add(tried[0])
        ends.add(tried[-1])
    assert begins == ends == set(order)


def test_no_code_of_a_benchmark_is_in_the_training_data_and_the_new_kind_of_bug_is_in_none_of_it(rlvr, monkeypatch):
    monkeypatch.setattr(rlvr, "failed_tests", agents.without_processes)
    sets, seen = agents.make_tasks(1)
    assert len(seen) == sum(agents.SIZES.values())                                 # all different with their names taken out
    assert {r["kind"] for r in tasks("benchmarks/kinds")} == {agents.NEW_KIND} and agents.NEW_KIND not in {r["kind"] for r in tasks("benchmarks/modules")}
    assert all(sets[name.rpartition("/")[2]] == tasks(name) for name in ["expert", *SETS])    # the committed data is what agents.py makes


def test_the_expert_resolves_every_task_and_writes_no_thoughts(rlvr, segment, monkeypatch):
    monkeypatch.setattr(rlvr, "failed_tests", agents.without_processes)
    for row in tasks("expert")[:100]:
        examples = segment.trajectory_examples({**row, "id": row["instance_id"]})
        assert rlvr.judge_calls([e["action"] for e in examples], row) == ("right", 0) and "<think>" not in json.dumps(row)


def test_random_calls_are_legal_and_almost_never_resolve_a_task(rlvr, task):
    rng, resolved = random.Random(2), 0
    for _ in range(200):
        start = agents.draw_task(rng, agents.KINDS)
        example = start = {**start, "context": []}
        calls = []
        for _ in range(12):
            calls.append(agents.random_call(example, rng)[1])
            following = rlvr.next_call(example, calls[-1])
            if following is None:
                break
            assert not following["context"][-1]["content"].startswith("Error")
            example = following
        resolved += rlvr.judge_calls(calls, start)[0] == "right"
    assert resolved <= 10                                                          # 5 % of 200


def test_the_base_model_was_trained_on_the_prompt_that_the_scripts_send(srl, rlvr, task):
    tokenizer = srl.AutoTokenizer.from_pretrained(ROOT / "miniature/agents/base")
    example, _ = play_calls(rlvr, task, *agents.expert_calls(task)[:2])
    assert srl.prompt_text(tokenizer, srl.srl_prompt(example)) == agents.prompt_text(example)
    text = agents.trajectory(task)[6]["content"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    for name in (*agents.NAMES, *agents.FILES):
        assert len(tokenizer(f"({name}")["input_ids"]) == 2                           # a name is one token, so it can be copied


def test_the_loop_of_solutions_plays_an_agent_until_it_submits_and_the_turns_share_its_advantage(srl, rlvr, task, tokenizer, tiny, monkeypatch):
    """Four attempts in one group: two as the expert's, one that submits at once, one that never does."""
    wrong = [agents.call_text("submit")]
    lost = [agents.call_text("list")] * 99
    plans = [agents.expert_calls(task), agents.expert_calls(task), wrong, lost]
    turns = []

    def generate(policy, tokenizer, prompts, sizes, *rest):
        alive = [plan for plan in plans if len(plan) > len(turns)]
        turns.append(sizes)
        texts = [f"<think>t</think>\n{plan[len(turns) - 1]}" for plan in sorted(alive, key=plans.index)]
        assert len(texts) == sum(sizes)
        return srl.Rollout([[1, 2]] * len(texts), [[-1.0, -1.0]] * len(texts), texts, [True] * len(texts))

    monkeypatch.setattr(srl, "generate", generate)
    cfg = rlvr.Config(mode="agent", max_turns=7, group_size=4, prompts_per_batch=1, device="cpu")
    make_prompt, extend, reward, _ = rlvr.MODES["agent"]
    groups, stats = srl.collect(tiny, tokenizer, srl.Cursor([task], 0), make_prompt, reward, extend, cfg)
    (episodes, rewards, advantages), = groups
    assert rewards.tolist() == [1, 1, 0, 0] and [len(e.turns) for e in episodes] == [5, 5, 1, 7] and stats["completions"] == 18
    assert advantages.tolist() == pytest.approx([1, 1, -1, -1], abs=1e-4)                            # mean 1/2, std 1/2
    assert [e.example["files"]["shop.py"].count("a + b") for e in episodes] == [1, 1, 0, 0]


def test_evaluation_plays_and_grades_agents_and_needs_no_model_to_grade_again(evaluate, rlvr, task, tmp_path, monkeypatch):
    monkeypatch.setattr(rlvr, "start_sandbox", lambda: None)
    record = {"id": "t", "answer": "", **{name: task[name] for name in ("files", "visible", "hidden")}}
    good = {"turns": [f"<think>t</think>\n{call}" for call in agents.expert_calls(task)], "tokens": [5] * 5, "finished": True}
    lost = {"turns": ["<think>t</think>\nnonsense"] * 12, "tokens": [4] * 12, "finished": True}
    grade = evaluate.grade([{**record, "greedy": good, "sampled": [good, lost, {**good, "turns": good["turns"][:2] + good["turns"][-1:]}]}])
    assert grade["greedy"] == [1] and grade["right"] == [1] and grade["verdicts"] == {"right": 1, "no answer": 1, "wrong": 1}
    assert grade["calls"] == 5 + 12 + 3 and grade["invalid"] == 12
    found = {"srl": [{"train_seed": 0, "benchmarks": {"modules": grade}}]}
    table, *_ = evaluate.make_table(found)
    assert "| calls a task | invalid calls |" in table and "| 6.7 | 60.0 % |" in table            # 20 / 3 calls, 12 of 20


def test_a_problem_without_a_repository_is_named(rlvr, segment, evaluate, tmp_path, monkeypatch):
    (tmp_path / "b.jsonl").write_text('{"id": 7, "problem": "p", "answer": "5"}\n')
    with pytest.raises(segment.InputError, match="problem 7: no files"):
        evaluate.load_benchmark(str(tmp_path / "b.jsonl"), mode="agent")
    monkeypatch.setattr(sys, "argv", ["04_eval.py", "--mode", "agent", "--benchmarks", str(tmp_path / "b.jsonl")])
    with pytest.raises(segment.InputError, match="no files"):
        import_module("04_eval").main()
