"""The verifiable reward, which is the grade of the evaluation, and the episodes of solutions and of agents."""
import inspect
from itertools import accumulate

import agents
import pytest

from engine.agents import sandbox
from engine.files import InputError, write_jsonl
from engine.rollout import Rollout


@pytest.fixture
def task(monkeypatch):
    """A small repository with a bug, whose tests are computed in this process: only test_17 needs real ones."""
    monkeypatch.setattr(sandbox, "failed_tests", agents.without_processes)
    return {"id": "t", "problem": "cost(3, 4) returns 13 but should return 8.", "kind": "operator", "name": "cost", "path": "shop.py", "line": 2,
            "fixed": "    c = a + b", "context": [],
            "files": {"shop.py": "def cost(a, b):\n    c = a * b\n    return c + 1\n", "bank.py": "def fee(x, y):\n    return x - y\n"},
            "visible": [["shop", "cost", [3, 4], 8]], "hidden": [["shop", "cost", [3, 4], 8], ["shop", "cost", [1, 2], 4], ["bank", "fee", [5, 2], 3]]}


def after(rlvr, task, *calls):
    """The examples after each of the calls."""
    return list(accumulate(calls, rlvr.next_call, initial=task))[1:]


@pytest.mark.parametrize("completion, answer, verdict", [
    ("<think>x</think>\n6. **State the answer** \\boxed{5}", "5", "right"), ("\\boxed{\\frac{1}{2}}", "0.5", "right"), ("\\boxed{x^{2}+1}", "x^2 + 1", "right"),
    ("\\boxed{4} no, \\boxed{5}", "5", "right"), ("\\boxed{5} no, \\boxed{4}", "5", "wrong"), ("<think>\\boxed{5}</think> \\boxed{4}", "5", "wrong"),
    ("<think>\\boxed{5}</think> it is 5", "5", "no answer"), ("5", "5", "no answer"), ("\\boxed{}", "5", "no answer"),
    ("\\boxed{5", "5", "no answer"), ("", "5", "no answer"), ("<think>\\boxed{5}", "5", "no answer"), ("\\boxed{5} <think> or \\boxed{6}", "5", "right"),
    ("<think>a</think> \\boxed{4} <think>b</think> \\boxed{5}", "5", "right"), ("\\boxed{5} </think> so", "5", "no answer"),
    ("\\boxed{\\frac{}", "5", "no answer"), ("\\boxed{\\frac{}}", "5", "unparsable"), ("\\boxed{~~}", "5", "unparsable"), ("\\boxed{ 5 }", "5", "right")])
def test_only_the_last_box_after_the_last_think_counts_and_what_cannot_be_read_is_called_unparsable(rlvr, completion, answer, verdict):
    assert rlvr.judge(completion, answer) == verdict


def test_the_reward_of_training_is_the_grade_of_evaluation(rlvr, evaluate):
    sampled = [{"turns": [t], "tokens": [3], "finished": True} for t in ("\\boxed{5}", "\\boxed{4}", "5", "\\boxed{5.0}")]
    record = {"answer": "5", "greedy": {"turns": ["\\boxed{5}"]}, "sampled": sampled}
    grade = evaluate.benchmark_metrics([record], evaluate.judge_attempts([record]))
    rewards = [rlvr.rlvr_reward(a["turns"][-1], {"answer": "5"}) for a in record["sampled"]]
    assert grade["right"] == [sum(rewards)] == [2] and grade["greedy"] == [rlvr.rlvr_reward("\\boxed{5}", {"answer": "5"})]
    assert "rlvr.judge" in inspect.getsource(evaluate.judge_attempts) and "is_correct" in inspect.getsource(rlvr.rlvr_reward)


def test_an_episode_begins_without_any_step_a_turn_adds_its_own_and_an_answer_ends_it(rlvr, example):
    assert rlvr.problem_starts([example, {**example, "k": 3}]) == [{"id": "p", "problem": example["problem"], "partial": "", "answer": "5"}]
    following = rlvr.next_turn(example, "<think>hm</think>\n2. **Divide both sides by 3** x = 5")
    assert following["partial"] == example["partial"] + "2. **Divide both sides by 3** x = 5\n"      # thoughts are dropped
    assert rlvr.next_turn(following, "<think>done</think>\n3. **State the answer** \\boxed{5}") is None
    assert rlvr.next_turn(example, "<think>nothing</think>") is None
    assert rlvr.next_turn(example, "<think>thoughts without an end, 2. **Divide** x = 5") is None      # thoughts never become context
    assert rlvr.next_turn(example, "2. **Divide both sides by 3** x = 5 <think>or") == following


@pytest.mark.parametrize("room, turns, finished", [(10_000, 5, True), (250, 1, False), (330, 2, False)])
def test_an_attempt_that_leaves_no_room_for_another_completion_ends_truncated(srl, rlvr, example, tokenizer, tiny, monkeypatch, room, turns, finished):
    def generate(policy, tokenizer, prompts, sizes, *rest, **options):
        n = sum(sizes)
        return Rollout([[1]] * n, [[-1.0]] * n, ["<think>t</think>\n2. **Add 1 to both sides** " + "3x + 1 = 15 + 1 " * 9] * n, [True] * n)
    monkeypatch.setattr(srl, "generate", generate)
    tiny.config.max_position_embeddings = room
    cfg = rlvr.Config(max_turns=5, max_new_tokens=200, device="cpu")
    episode, other = srl.run_episodes(tiny, tokenizer, [example], 2, srl.srl_prompt, rlvr.next_turn, cfg)[0]
    assert len(episode.turns) == len(other.turns) == turns and episode.finished == other.finished == finished


def test_a_problem_without_an_answer_is_counted_and_one_whose_answer_cannot_be_read_is_named_and_both_are_left_out(rlvr, capsys):
    """One odd answer among the thousand of a public data set must not end the run; in a benchmark it does, see test_04."""
    assert [p["id"] for p in rlvr.with_answers([{"id": "1", "answer": "5"}, {"id": "2", "answer": ""}, {"id": "7", "answer": "\\text{}"}])] == ["1"]
    printed = capsys.readouterr().out
    assert "1 of 3 problems have no answer" in printed and "left out: problem 7: answer '\\\\text{}': math-verify cannot read it" in printed
    with pytest.raises(InputError, match="none of 1 problems has an answer"):
        rlvr.with_answers([{"id": "2", "answer": ""}])


# Agents
def test_the_tools_answer_as_they_say(rlvr, task):
    call = agents.call_text
    examples = after(rlvr, task, call("list"), call("search", text="cost"), call("view", path="shop.py"), call("run_tests"),
                     call("edit", path="shop.py", line=2, text="    c = a + b"), call("view", path="shop.py"), call("run_tests"))
    assert [e["context"][-1]["content"] for e in examples] == [
        "shop.py\nbank.py", "shop.py:1|def cost(a, b):", "1|def cost(a, b):\n2|    c = a * b\n3|    return c + 1",
        "cost(3, 4) returns 13 but should return 8.", "edited", "1|def cost(a, b):\n2|    c = a + b\n3|    return c + 1", "all tests pass"]
    assert rlvr.next_call(task, call("submit")) is None and task["files"]["shop.py"].count("*") == 1            # the task itself is never changed


@pytest.mark.parametrize("call", [
    "nonsense", "", "<function=view>\n</function>", agents.call_text("view", path="none.py"), agents.call_text("view", path="/etc/passwd"),
    agents.call_text("bash", command="ls"), *(agents.call_text("edit", path="shop.py", line=line, text="x") for line in (9, "²", "-1", "9" * 9999)),
    agents.call_text("submit", now="yes"), *(f"<tool_call>\n{text}\n</tool_call>" for text in (
        '{"name": [1], "arguments": 3}', '{"name": null, "arguments": {}}', '{"name": "view", "arguments": {"path": ["shop.py"]}}', '{"name": 5}', "{broken}",
        '{"name": "view", "arguments": {"path": {"a": 1}}}', '{"name": "edit", "arguments": {"path": "shop.py", "line": 2.5, "text": "x"}}')),
    f"<think>never closed {agents.call_text('submit')}"])
def test_an_invalid_call_changes_nothing_and_is_counted(rlvr, task, call):
    after = rlvr.next_call(task, call)
    assert after["files"] == task["files"] and after["context"][-1]["content"].startswith("Error") and rlvr.agent_reward(call, task) <= 0
    assert rlvr.judge_calls([call, agents.call_text("submit")], task) == ("wrong", 1)


def test_a_call_that_holds_tags_of_thoughts_is_executed_whole(rlvr, task):
    for tag in ("</think>", "<think>", "<think>a</think>"):
        call = agents.call_text("edit", path="shop.py", line=2, text=f"    c = '{tag}'")
        following = rlvr.next_call(task, f"<think>look {agents.call_text('submit')}</think>\n{call}")
        assert following["context"][0]["content"] == call and tag in following["files"]["shop.py"] and rlvr.agent_reward(f"<think>w</think>{call}", task) == 0


def test_arguments_in_json_may_be_numbers(rlvr, task):
    edit = '<tool_call>\n{"name": "edit", "arguments": {"path": "shop.py", "line": 2, "text": "    c = 5"}}\n</tool_call>'
    search = '<tool_call>\n{"name": "search", "arguments": {"text": 5}}\n</tool_call>'
    assert [e["context"][-1]["content"] for e in after(rlvr, task, edit, search)] == ["edited", "shop.py:2|    c = 5"]


def test_the_reward_is_that_the_hidden_tests_pass_on_what_was_submitted(rlvr, task):
    submit, fix = agents.call_text("submit"), agents.call_text("edit", path="shop.py", line=2, text="    c = a + b")
    (fixed,) = after(rlvr, task, fix)
    assert [rlvr.agent_reward(f"<think>done</think>\n{submit}", e) for e in (task, fixed)] == [0.0, 1.0]
    assert rlvr.agent_reward("<think>done</think>\n" + agents.call_text("run_tests"), fixed) == 0.0                  # never submitted
    assert rlvr.agent_reward(f"<think>maybe {fix}", fixed) == -1.0                                                      # inside open thoughts
    assert rlvr.agent_reward("<think>and so on", fixed) == rlvr.agent_reward("<think>done</think>\nls", fixed) == -1.0    # no call of a tool
    (special,) = after(rlvr, task, agents.call_text("edit", path="shop.py", line=2, text="    c = b + 3"))       # right in the visible test alone
    assert sandbox.failed_tests(special["files"], task["visible"]) == [] and rlvr.agent_reward(submit, special) == 0.0
    (broken,) = after(rlvr, fixed, agents.call_text("edit", path="bank.py", line=2, text="    return y - x"))  # another function is tested as well
    assert rlvr.agent_reward(submit, broken) == 0.0
    assert [rlvr.judge_calls(calls, task)[0] for calls in ([fix, submit], [submit], [fix])] == ["right", "wrong", "no answer"]


def test_the_context_of_an_episode_is_that_of_the_examples_which_segmentation_makes(rlvr, segment, task):
    row = {"id": "t", "messages": agents.trajectory(task), **{name: task[name] for name in ("files", "visible", "hidden")}}
    examples, example = segment.trajectory_examples(row), task
    assert [e["action"] for e in examples] == agents.expert_calls(task) and len(examples) == 5
    for e in examples:
        assert e["context"] == example["context"] and e["problem"] == task["problem"]
        example = rlvr.next_call(example, e["action"]) or example
    (start,) = rlvr.problem_starts(examples)
    assert start["context"] == [] and rlvr.judge_calls(agents.expert_calls(task), start) == ("right", 0)


def test_data_with_another_number_of_calls_in_the_context_are_refused(rlvr, segment, task, tmp_path, monkeypatch):
    row = {"id": "t", **{name: task[name] for name in ("files", "visible", "hidden")}, "messages": [
        {"role": "user", "content": "Fix."}, *({"role": role, "content": text} for _ in range(5) for role, text in (
            ("assistant", agents.call_text("list")), ("user", "a.py")))]}
    for pairs in (1, 3):
        examples = segment.trajectory_examples(row, pairs=pairs)
        for name, id in (("train", "t"), ("val", "v")):
            write_jsonl(tmp_path / f"{name}.jsonl", [{**e, "id": id} for e in examples])
        monkeypatch.setattr("sys.argv", ["03_rlvr_train.py", "--mode", "agent", "--data", str(tmp_path), "--out", str(tmp_path / "out")])
        with pytest.raises(InputError, match=f"problem t: a context of {pairs} calls; make the data with --context_pairs 2"):
            rlvr.main()


def test_an_agent_acts_until_it_submits_and_the_turns_share_its_advantage(srl, rlvr, task, tokenizer, tiny, monkeypatch):
    """Four attempts in one group: two as the expert's, one that submits at once, one that never does."""
    plans = [agents.expert_calls(task), agents.expert_calls(task), [agents.call_text("submit")], [agents.call_text("list")] * 99]
    turns = []

    def generate(policy, tokenizer, prompts, sizes, *rest, **options):
        alive = [plan for plan in plans if len(plan) > len(turns)]
        turns.append(sizes)
        texts = [f"<think>t</think>\n{plan[len(turns) - 1]}" for plan in sorted(alive, key=plans.index)]
        assert len(texts) == sum(sizes)
        return Rollout([[1, 2]] * len(texts), [[-1.0, -1.0]] * len(texts), texts, [True] * len(texts))

    monkeypatch.setattr(srl, "generate", generate)
    cfg = rlvr.Config(mode="agent", max_turns=7, group_size=4, prompts_per_batch=1, device="cpu")
    make_prompt, extend, reward, _ = rlvr.MODES["agent"]
    groups, stats = srl.collect(tiny, tokenizer, srl.Cursor([task], 0), make_prompt, reward, extend, cfg)
    (episodes, rewards, advantages), = groups
    assert rewards.tolist() == [1, 1, 0, 0] and [len(e.turns) for e in episodes] == [5, 5, 1, 7] and stats["completions"] == 18
    assert advantages.tolist() == pytest.approx([1, 1, -1, -1], abs=1e-4)                            # mean 1/2, std 1/2
    assert [e.example["files"]["shop.py"].count("a + b") for e in episodes] == [1, 1, 0, 0]
