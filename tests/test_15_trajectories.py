"""Trajectories of agents: every call is an action, unchanged; its context is the issue and the last two calls with their observations.

Faults that outside reports and real data led to, each with the inputs of the report and others of its kind:

| kind | source | what was wrong | test |
|---|---|---|---|
| a fence in prose | SWE-Gym: native and XML calls | was a call | test_a_trajectory_has_one_form_of_calls |
| no </function> at the end | SWE-Play: cut off by a stop word | the last call was lost | test_a_call_that_a_stop_word_cut_off_is_closed_or_counted |
| rehearsed calls | a report: <think> | were calls | test_a_call_in_thoughts_is_none |
| several <command> | a report | were one action | test_the_last_of_several_commands_counts |
| null arguments | parquet | were in the action | test_arguments_that_parquet_filled_with_null_are_not_in_the_action |
| a heredoc with a fence | a report | was cut at the fence | test_a_heredoc_that_holds_fences_is_whole |
| <tool_call> as text | Hermes, Qwen | the prose was the call | test_a_trajectory_has_one_form_of_calls |
| resolved: 0.0, "no", NaN | parquet written by pandas | counted as resolved | test_what_is_not_resolved_in_any_spelling_is_dropped |
| other columns and roles | nebius, AgentInstruct, mini-swe-agent | not read | test_other_columns_and_roles_are_read_or_refused |
| tools in the row | nebius | the prompt lacked them | test_tools_of_a_row_enter_the_prompt_once |
"""
import json
import sys
from dataclasses import replace

import pytest
from conftest import ROOT

from engine.agents.trajectories import parse_call, read_trajectories
from engine.files import InputError, read_jsonl, shorten
from engine.optimizer import make_optimizer

DATA = ROOT.parent / "shared/data"
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}: real trajectories that are not part of the repository")

LOOK = "<function=bash>\n<parameter=command>grep -n 'total' shop.py</parameter>\n</function>"
EDIT = "<function=edit>\n<parameter=path>shop.py</parameter>\n" \
       "<parameter=new>\nif a < b and '</parameter>' in text:\n    return \"é\"\n</parameter>\n</function>"
SUBMIT = "<function=submit>\n</function>"
EMPTY = "<function=bash>\n<parameter=command></parameter>\n</function>"


def trajectory(*replies, **more):
    """A trajectory whose agent writes these messages; every observation names its turn."""
    turns = [m for n, r in enumerate(replies, 1) for m in (r if isinstance(r, dict) else {"role": "assistant", "content": r},
                                                         {"role": "user", "content": f"OBSERVATION:\nseen {n}"})]
    return {"id": "shop-1", "messages": [{"role": "system", "content": "Tools: .."}, {"role": "user", "content": "The total is wrong."}, *turns[:-1]], **more}


def write_parquet(path, rows):
    import pyarrow
    import pyarrow.parquet
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_the_action_is_the_call_byte_for_byte_and_the_prose_is_dropped(segment):
    examples = segment.trajectory_examples(trajectory(f"Let me look at it.\n\n{LOOK}", f"{EDIT}\n", f"Done, I submit.\n{SUBMIT}"))
    assert [e["action"] for e in examples] == [LOOK, EDIT, SUBMIT]
    assert [(e["k"], e["n"], e["id"], e["problem"]) for e in examples] == [(k, 3, "shop-1", "The total is wrong.") for k in (1, 2, 3)]
    assert parse_call(EDIT) == ("edit", {"path": "shop.py", "new": "\nif a < b and '</parameter>' in text:\n    return \"é\"\n"})
    assert parse_call(SUBMIT) == ("submit", {})


def test_the_context_is_the_issue_and_the_last_two_calls_with_what_they_returned_shortened_in_the_middle(segment, srl):
    examples = segment.trajectory_examples(trajectory(*(f"thought {n} <function=f{n}>\n</function>" for n in range(1, 6))))
    assert examples[0]["context"] == []
    assert [(m["role"], m["content"]) for m in examples[4]["context"]] == [
        ("assistant", "<function=f3>\n</function>"), ("user", "OBSERVATION:\nseen 3"),
        ("assistant", "<function=f4>\n</function>"), ("user", "OBSERVATION:\nseen 4")]
    for pairs, lengths in ((1, [0, 2, 2, 2, 2]), (0, [0] * 5)):
        assert [len(e["context"]) for e in segment.trajectory_examples(trajectory(*[LOOK] * 5), pairs=pairs)] == lengths
    messages = srl.srl_prompt(examples[4])
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert "<think>" in messages[0]["content"] and messages[0]["content"].endswith("Tools: ..") and messages[1]["content"] == "The total is wrong."
    assert "thought" not in "".join(m["content"] for m in messages[1:]) and "f5" not in str(messages)      # neither the expert's thoughts nor the target
    assert shorten("abc", 3) == "abc"
    assert shorten("a" * 50 + "b" * 100 + "c" * 50, 100) == "a" * 50 + "\n[.. 100 characters left out ..]\n" + "c" * 50


@pytest.mark.parametrize("message, action, parsed", [
    ({"content": "Look.", "tool_calls": [{"type": "function", "function": {"name": "open", "arguments": '{ "path": "a.py", "line": 3}'}}]},
     '<tool_call>\n{"name": "open", "arguments": { "path": "a.py", "line": 3}}\n</tool_call>', ("open", {"path": "a.py", "line": 3})),
    ({"content": None, "tool_calls": [{"type": "function", "function": {"name": "open", "arguments": {"path": "ä.py"}}}]},
     '<tool_call>\n{"name": "open", "arguments": {"path": "ä.py"}}\n</tool_call>', ("open", {"path": "ä.py"})),
    ({"content": "As in\n```\nls\n```\nnow\n```bash\ngrep -r '``' .\n```"}, "grep -r '``' .", None),
    ({"content": "So\n<command>\ncd src && ls\n</command>"}, "cd src && ls", None), ({"content": "Run.\n```\nls\n```", "action": "ls\n"}, "ls", None),
    ({"content": [{"type": "text", "text": f"Parts. {LOOK}"}]}, LOOK, ("bash", {"command": "grep -n 'total' shop.py"})),
    ({"content": LOOK.replace("\n", "\r\n")}, LOOK.replace("\n", "\r\n"), ("bash", {"command": "grep -n 'total' shop.py"})),
    ({"content": EMPTY}, EMPTY, ("bash", {"command": ""}))])
def test_calls_are_found_in_every_form_and_parse_back(segment, message, action, parsed):
    (example,) = segment.trajectory_examples(trajectory({"role": "assistant", **message}))
    assert example["action"] == action and parse_call(example["action"]) == (parsed or ("bash", {"command": action}))


def test_a_message_without_a_call_is_no_step_and_demonstrations_are_none_either(segment):
    row = trajectory("I am not sure yet.", LOOK, "<function=bash> is what I would call", SUBMIT)
    row["messages"][1:1] = [{"role": "user", "content": "a demo", "is_demo": True}, {"role": "assistant", "content": LOOK, "is_demo": True}]
    examples = segment.trajectory_examples(row)
    assert [e["action"] for e in examples] == [LOOK, SUBMIT] and "demo" not in examples[0]["problem"]


def test_trajectories_that_did_not_resolve_or_have_no_call_are_dropped_with_the_reason(segment):
    rows = [trajectory(LOOK, resolved=True), trajectory(LOOK, resolved=False), trajectory("no call"), trajectory(LOOK, info={"resolved": "False"})]
    examples, dropped = segment.segment(rows, segment.trajectory_examples)
    assert len(examples) == 1 and [d["reason"] for d in dropped] == ["the task was not resolved", "no call of a function or command in it",
                                                                     "the task was not resolved"]


@pytest.fixture
def run_segment(segment, tmp_path, monkeypatch):
    def run(source):
        monkeypatch.setattr(sys, "argv", ["01_segment.py", "--trajectories", "--data", f"{tmp_path / source}", "--out", f"{tmp_path}/out", "--num_val", "1"])
        segment.main()
        return [read_jsonl(tmp_path / f"out/{name}.jsonl") for name in ("train", "val")]
    return run


def test_files_of_every_kind_give_the_same_examples_and_the_split_is_by_task(run_segment, tmp_path):
    rows = [{"instance_id": f"task-{n % 3}", "messages": trajectory(LOOK, SUBMIT)["messages"]} for n in range(6)]
    for n, row in enumerate(rows):
        row["messages"][1] = {"role": "user", "content": f"The total of shop {n % 3} is wrong."}
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    as_text = [{**row, "messages": json.dumps(row["messages"])} for row in rows]                   # as the hub has them
    write_parquet(tmp_path / "a.parquet", as_text)
    (tmp_path / "trajs").mkdir()
    for n in range(3):
        (tmp_path / f"trajs/task-{n}.traj").write_text(json.dumps({"history": rows[n]["messages"], "info": {"exit_status": "submitted"}}))
    for source in ("a.jsonl", "a.parquet", "trajs"):
        train, val = run_segment(source)
        assert len({e["id"] for e in train}) == 2 and not {e["id"] for e in train} & {e["id"] for e in val}
        assert {e["action"] for e in train + val} == {LOOK, SUBMIT} and len(train + val) == (6 if source == "trajs" else 12)


@pytest.mark.parametrize("name, text, message", [
    ("a.jsonl", '{"messages": [{"role": "user"}]}\n{"problem": "p"}', "line 2: no messages"), ("a.jsonl", '{"messages": "[not json"}', "line 1: no messages"),
    ("a.jsonl", '{"messages": [1]}', "line 1: no messages"), ("a.jsonl", "[]", "line 1: no messages"), ("a.traj", "{", "not a trajectory"),
    ("a.traj", "[1]", "not a trajectory"), ("a.jsonl", '{"messages": [{"role": "user", "content": "x"}]}', "no trajectory has calls"),
    ("a.jsonl", '{"conversations": [{"from": "observer", "value": "x"}]}',
     "line 1: no messages .* system, user, assistant or tool; the role 'observer' is unknown"),
    ("a.jsonl", '{"trajectory": [{"action": "ls", "observation": "a"}]}', "line 1: no messages .*conversations"),
    ("a.jsonl", '{"messages": [{"role": null, "content": "x"}]}', "line 1: no messages")])
def test_a_broken_trajectory_or_a_row_of_another_form_is_named_with_what_is_expected(run_segment, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        run_segment(name)
    assert not (tmp_path / "out").exists()


def test_the_same_training_takes_a_step_on_calls(segment, srl, tiny, tokenizer):
    """Nothing but the prompt knows of agents: rollout, reward, dynamic sampling and update are those of solutions."""
    examples = segment.trajectory_examples(trajectory(LOOK, EDIT, SUBMIT))
    cfg = replace(srl.Config(), device="cpu", prompts_per_batch=2, group_size=4, max_new_tokens=12, eps=0.0)
    reward = {}
    groups, _ = srl.collect(tiny, tokenizer, srl.Cursor(examples, 0), srl.srl_prompt,
                            lambda text, e: reward.setdefault(text, srl.similarity(text, e["action"])), None, cfg)
    before = [p.clone() for p in tiny.parameters()]
    turns = [(*e.turns[0][:3], a) for episodes, _, advantages in groups for e, a in zip(episodes, advantages.tolist(), strict=True)]
    assert srl.update(tiny, make_optimizer(tiny, cfg), turns, cfg)["grad_norm"] > 0
    assert any((p != q).any() for p, q in zip(before, tiny.parameters(), strict=True))
    assert srl.srl_reward(f"<think>where is it</think>\n{LOOK}", examples[0]) == 1.0


@real
def test_every_turn_of_real_trajectories_and_demonstrations_is_an_example(segment):
    rows = read_trajectories(DATA / "swe_smith/ft_xml_example.jsonl")
    examples, reasons = segment.segment(rows, segment.trajectory_examples)
    texts = [m["content"] for row in rows for m in row["messages"] if m["role"] == "assistant"]
    assert len(examples) == len(texts) == 103 and not reasons
    for example, text in zip(examples, texts, strict=True):
        assert text[text.index("<function="):].rstrip() == example["action"]
        name, arguments = parse_call(example["action"])
        again = f"<function={name}>\n" + "".join(f"<parameter={p}>{v}</parameter>\n" for p, v in arguments.items()) + "</function>"
        assert again == example["action"]
    for row in read_trajectories(DATA / "swe_agent_demos"):
        messages = [m for m in row["messages"] if m["role"] == "assistant"]
        examples = segment.trajectory_examples(row)
        assert len(examples) == len(messages) in (5, 11)
        for example, message in zip(examples, messages, strict=True):
            if "tool_calls" in message:
                function = message["tool_calls"][0]["function"]
                assert function["arguments"] in example["action"]
                assert parse_call(example["action"]) == (function["name"], json.loads(function["arguments"]))
            else:
                assert example["action"] == message["action"].strip() and example["action"] in message["content"]
                assert parse_call(example["action"]) == ("bash", {"command": example["action"]})


# Faults of real data
def actions(segment, *replies, **more):
    return [e["action"] for e in segment.trajectory_examples(trajectory(*replies, **more))]


def native(name="bash", **arguments):
    return {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": json.dumps(arguments)}}]}


def anthropic(text="", **arguments):
    """A message of Anthropic's interface."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}, {"type": "tool_use", "id": "t", "name": "bash", "input": arguments}]}


def user(content):
    return {"role": "user", "content": content}


HOLDS_END = '<tool_call>\n{"name": "edit", "arguments": {"new": "s = \'{}</tool_call>\'"}}\n</tool_call>'
PROSE = "Done. It now returns:\n\n```json\n{'Quantity': 1}\n```"
JSON_CALL = '<tool_call>\n{"name": "bash", "arguments": {"command": "ls"}}\n</tool_call>'


@pytest.mark.parametrize("replies, expected", [
    ((native(command="ls"), PROSE, native("finish")), [JSON_CALL, '<tool_call>\n{"name": "finish", "arguments": {}}\n</tool_call>']),
    ((LOOK, "The bug is here:\n```python\nx = 1\n```\nShall I change it?", SUBMIT), [LOOK, SUBMIT]),
    ((f"See\n```python\nx = 1\n```\n{JSON_CALL}", PROSE), [JSON_CALL]), ((native(command="ls"), f"I would call {SUBMIT}"), [JSON_CALL]),
    ((f"{PROSE}\n<execute_bash>\nls\n</execute_bash>", PROSE, "<execute_bash>cat a</execute_bash>"), ["ls", "cat a"]),
    ((f'{PROSE}\n<invoke name="bash">ls</invoke>',), None), (("See\n```bash\nls\n```\n<function_calls>",), None),
    (("<command>ls</command>", PROSE), ["ls"]), (({"role": "assistant", "content": PROSE, "action": "ls"}, PROSE), ["ls"]),
    (("```bash\nls\n```", "See\n```python\nx = 1\n```", "```\ncat a\n```\n"), ["ls", "cat a"]),
    (("So\n```sh\nls\n```\nwhich prints\n```\na.py\n```\n",), ["ls"]), (("Act\n```sql\nSELECT 1\n```\n",), ["SELECT 1"]),
    (("```bash\nls\n```", f"```bash\ncat > a <<'EOF'\n{LOOK}\nEOF\n```"), ["ls", f"cat > a <<'EOF'\n{LOOK}\nEOF"]),         # a form in a heredoc is none
    (("```bash\nls\n```", "```bash\necho '<command>x</command>'\n```"), ["ls", "echo '<command>x</command>'"]),
    (("```bash\nls\n```", "I see `<command>x</command>` there.\n```bash\npwd\n```"), ["ls", "pwd"]),
    ((anthropic(command="ls"), anthropic(command="ls", text="See\n```bash\nno\n```")), [JSON_CALL, JSON_CALL]),
    ((native(command="ls"), {"role": "assistant", "tool_calls": [{"function": {"name": "bash", "arguments": '{"command": "ls'}}]}), [JSON_CALL]),
    ((HOLDS_END, HOLDS_END.replace("s = ", '\\\\\\"}</tool_call>')), [HOLDS_END, HOLDS_END.replace("s = ", '\\\\\\"}</tool_call>')]),
    ((f"{JSON_CALL}\n{JSON_CALL}",), [f"{JSON_CALL}\n{JSON_CALL}"]), ((LOOK, JSON_CALL), [LOOK]),
    ((f"{PROSE}\n<tool_call>\n{{'name': 'a', 'arguments': {{}}}}\n</tool_call>",), ["<tool_call>\n{'name': 'a', 'arguments': {}}\n</tool_call>"]),
    ((PROSE, "<function=bash>\n<parameter=command>cat a"), None), ((PROSE, '<tool_call>\n{"name": "a", "arguments": {"b": 1}\n'), None)])
def test_a_trajectory_has_one_form_of_calls(segment, replies, expected):
    if expected:
        assert actions(segment, *replies) == expected
    else:
        with pytest.raises(ValueError, match="no call of a function"):
            actions(segment, *replies)


@pytest.mark.parametrize("reply, expected", [
    ("<function=finish>\n<parameter=message>done</parameter>\n", "<function=finish>\n<parameter=message>done</parameter>\n</function>"),
    ("So <function=submit>\n", SUBMIT), ("<function=submit>\n</", SUBMIT), (JSON_CALL.removesuffix("call>"), JSON_CALL),
    (f"{LOOK}\n<function=bash>\n<parameter=command>ls</parameter>\n</func", f"{LOOK}\n<function=bash>\n<parameter=command>ls</parameter>\n</function>"),
    (JSON_CALL.removesuffix("</tool_call>"), JSON_CALL), ("<function=bash>\n<parameter=command>cat a", None), ('<tool_call>\n{"name": "ba', None),
    ("<function=bash>\n<parameter=a>b</parameter>\n<parameter=command>cat a", None)])
def test_a_call_that_a_stop_word_cut_off_is_closed_or_counted(segment, reply, expected):
    first = JSON_CALL if "tool_call" in reply else LOOK
    row = trajectory(first, reply)
    assert [e["action"] for e in segment.trajectory_examples(row)] == [first, expected][:2 if expected else 1] and row["cut_off"] == (not expected)


def test_calls_without_an_end_are_counted_on_the_screen(run_segment, tmp_path, capsys):
    rows = [trajectory(LOOK, "<function=bash>\n<parameter=command>cat"),
            trajectory(LOOK, f"<think>never closed {SUBMIT.replace('>', '> <parameter=a>', 1)}"),
            trajectory("<command>a</command>", "<command>b"),
            trajectory("```bash\nls\n```", "I run\n```bash\nsed -n"), trajectory(JSON_CALL, '<tool_call>\n{"name": "ba'),
            trajectory(native(command="ls"), {**native(), "tool_calls": [{"function": {"name": "bash", "arguments": '{"command": "cat'}}]})]
    for n, row in enumerate(rows):
        row["id"] = n
        row["messages"][1]["content"] += f" {n}"
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len(sum(run_segment("a.jsonl"), [])) == 6 and "6 calls without an end, or inside thoughts, are left out" in capsys.readouterr().out


@pytest.mark.parametrize("reply, expected", [
    *((reply, LOOK) for reply in (f"<think>maybe {SUBMIT}</think>\n{LOOK}", f"maybe {SUBMIT}\n</think>\n{LOOK}",
                                  f"[THINK]{SUBMIT}[/THINK]{LOOK}", f"<thinking>{EDIT}</thinking>{LOOK}<think>then {SUBMIT}",
                                  f"<think>or <function=bash>\n<parameter=command>rm</think>\n{LOOK}")),
    ("<think>\n```bash\nrm x\n```\n</think>\n```bash\nls\n```\n", "ls"), ("<think><command>rm</command></think><command>ls</command>", "ls"),
    (f"<think>{JSON_CALL.replace('ls', 'rm x')}</think>{JSON_CALL}", JSON_CALL),
    *((call, call) for call in (EDIT.replace("a < b", "<think>"), LOOK.replace("total", "</think>"), LOOK.replace("total", "<think>a</think>")))])
def test_a_call_in_thoughts_is_none(segment, reply, expected):
    """But a call may hold tags of thoughts: it edits a file that has them."""
    assert actions(segment, reply) == [expected]


def test_the_last_of_several_commands_counts(segment):
    for text in ("not\n<command>\nls\n</command>\nbut\n<command>\ncat a.py\n</command>",
                 "<command>a</command><command>b</command>\n<command>cat a.py</command> so",
                 "<command>ls</command>\n<command> cat a.py </command>", "I use <command> tags: <command>cat a.py</command>",
                 "<command>ls</command> but <command>\ncat a.py"):
        assert actions(segment, text) == ["cat a.py"]


def test_observations_are_kept_whatever_they_say(segment):
    results = ("None", "nan", [{"type": "tool_result", "tool_use_id": "t", "content": "a.py"}],
               [{"type": "tool_result", "content": [{"type": "text", "text": "a.py"}]}])
    for result, expected in zip(results, ("None", "nan", "a.py", "a.py"), strict=True):
        row = {"id": "t", "messages": [user("Fix."), anthropic(command="ls"), user(result), anthropic(command="ls")]}
        assert segment.trajectory_examples(row)[1]["context"][-1]["content"] == expected


def test_arguments_that_parquet_filled_with_null_are_not_in_the_action(segment, tmp_path):
    calls = [("bash", {"command": "ls"}), ("edit", {"path": "a.py", "new": "y", "range": {"first": 1}}),
             ("view", {"range": {"last": 2}, "lines": [{"n": 1}]})]
    said = [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": name, "arguments": arguments}}]} for name, arguments in calls]
    write_parquet(tmp_path / "t.parquet", [{"id": "t", "messages": [user("Fix."), *said]}])
    (row,) = read_trajectories(tmp_path / "t.parquet")
    parsed = [parse_call(e["action"]) for e in segment.trajectory_examples(row)]
    assert parsed == calls and "null" not in str(parsed)
    assert actions(segment, {"role": "assistant", "function_call": {"name": "open", "arguments": {"path": "a", "line": None}}}) == [
        '<tool_call>\n{"name": "open", "arguments": {"path": "a"}}\n</tool_call>']
    assert "null" in actions(segment, native("open", line=None))[0]                             # text that the agent wrote is unchanged


@pytest.mark.parametrize("command", [
    "cat > README.md <<'EOF'\n# Usage\n```python\nimport shop\n```\nDone.\nEOF", "cat <<EOF > a.md\n```\ncode\n```\nEOF\ncat a.md",
    "echo '\n```python\nx\n```\n' > a",
    "cat <<-END > a\n```sh\nls\n```\n\tEND", "cat > a <<'END-OF.FILE'\n```\nx\n```\nEND-OF.FILE", "cat <<\\!EOF > a\n```\nx\n```\n!EOF",
    "python - <<\"PY\"\nprint('\n```\n')\nPY", "grep x <<< word"])
def test_a_heredoc_that_holds_fences_is_whole(segment, command):
    assert actions(segment, f"I write it down.\n\n```bash\n{command}\n```\n") == [command]
    assert actions(segment, f"See\n```\nold\n```\nthen\n```\n{command}\n```") == [command]


NOT_RESOLVED = [False, 0, 0.0, "0.0", "no", float("nan"), None, "False", "No ", "nan", "", "unresolved", "n", 0.5, "failed"]


def test_what_is_not_resolved_in_any_spelling_is_dropped(segment):
    for value in NOT_RESOLVED:
        for row in ({"resolved": value}, {"info": {"resolved": value}}, {"info": json.dumps({"resolved": value})}):
            with pytest.raises(ValueError, match="^the task was not resolved$"):
                actions(segment, LOOK, **row)
    for row in ({"target": 0}, {"target": "False"}, {"report": {"resolved": False}}, {"report": {"django__django-1": {"resolved": False}}},
                {"extra_info": {"resolved": 0}}, {"eval": {"is_resolved": "no"}}, {"metrics": json.dumps({"resolved": False})},
                {"eval_output_dict": {"report": {"resolved": False}}}, {"test_result": {"report": {"resolved": "no"}}},
                {"metadata": json.dumps({"is_resolved": 0})}):
        with pytest.raises(ValueError, match="not resolved"):
            actions(segment, LOOK, **row)
    for value in (True, 1, 1.0, "1.0", "true", "Yes", "resolved", "RESOLVED_FULL", "pass"):
        assert actions(segment, LOOK, resolved=value) == [LOOK]
    with pytest.raises(ValueError, match="not resolved"):
        actions(segment, LOOK, target=False)                                                    # nebius
    assert actions(segment, LOOK, info={"exit_status": "submitted"}, target="x") == [LOOK]


ROWS = {
    "nebius": {"instance_id": "n", "target": True, "trajectory": [
        {"role": "system", "system_prompt": "Tools", "text": None}, {"role": "user", "system_prompt": None, "text": "Issue"},
        {"role": "ai", "text": "D\n```\nls\n```"}]},
    "AgentInstruct": {"id": "os_0", "conversations": [{"from": "human", "value": "You are"}, {"from": "gpt", "loss": False, "value": "OK."},
                                                      {"from": "human", "value": "Issue"}, {"from": "gpt", "value": "Act: bash\n\n```bash\nls\n```"}]},
    "roles of calls": {"id": "r", "messages": [user("Issue"), {"role": "tool_call", "content": JSON_CALL[12:-13]}, {"role": "tool_response", "content": "a"}]},
    "text": {"id": "j", "trajectory": json.dumps([{"role": "developer", "content": "Tools"}, {"role": "human", "content": [{"type": "text", "text": "Issue"}]},
                                                  {"role": "Assistant", "content": ["So", {"type": "text", "text": "```\nls\n```"}]}])},
    "null id": {"instance_id": None, "id": float("nan"), "conversation": [user("Issue"), {"role": "model", "content": LOOK}]}}


@pytest.mark.parametrize("name", ROWS)
def test_other_columns_and_roles_are_read_or_refused(segment, tmp_path, name):
    (tmp_path / "a.jsonl").write_text(json.dumps(ROWS[name]))
    (row,) = read_trajectories(tmp_path / "a.jsonl")
    (example,) = segment.trajectory_examples(row)
    assert example["action"] in ("ls", LOOK, JSON_CALL) and example["system"] in ("", "Tools")
    assert example["problem"] == ("You are\n\nIssue" if name == "AgentInstruct" else "Issue")       # what is said before the first call is the task
    assert example["id"] == {"nebius": "n", "AgentInstruct": "os_0", "roles of calls": "r", "text": "j", "null id": "0"}[name]


def test_files_of_mini_swe_agent_are_read(segment, tmp_path):
    said = [{"role": "system", "content": "S"}, user([{"type": "text", "text": "Issue"}]),
            {"role": "assistant", "content": "THOUGHT: a\n\n```mswea_bash_command\nls\n```"},
            user("a.py"), {"role": "assistant", "tool_calls": None, "content": "```bash\necho DONE\n```"}, {"role": "exit", "content": "diff"}]
    native_calls = [*said[:2], native(command="ls"), {"role": "tool", "content": "a.py"}, {"role": "exit", "content": "diff"}]
    for name, messages, expected in (("a__1", said, ["ls", "echo DONE"]), ("b__2", native_calls, [JSON_CALL])):
        path = tmp_path / f"{name}/{name}/{name}.traj.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"info": {"exit_status": "Submitted"}, "messages": messages, "trajectory_format": "mini-swe-agent-1.1"}))
        for source in (tmp_path / name, path):
            (row,) = read_trajectories(source)
            assert row["id"] == name and [e["action"] for e in segment.trajectory_examples(row)] == expected


TOOL = {"type": "function", "function": {"name": "bash", "description": "Runs a command.", "parameters": {"type": "object", "required": None}}}


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)], [TOOL["function"]], TOOL], ids=range(5))
def test_tools_of_a_row_enter_the_prompt_once(segment, srl, tools):
    (example,) = segment.trajectory_examples(trajectory(native(command="ls"), tools=tools))
    prompt = srl.srl_prompt(example)[0]["content"]
    assert prompt.count('"name": "bash", "description": "Runs a command."') == 1 and "Tools: .." in prompt and "null" not in prompt
    assert '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>' in prompt
    assert "<tool_call>" not in segment.trajectory_examples(trajectory(LOOK, tools=tools))[0]["system"]         # its calls are XML
    row = trajectory(native(command="ls"), tools=tools)
    row["messages"][0]["content"] = "bash: Runs a command."
    assert segment.trajectory_examples(row)[0]["system"] == "bash: Runs a command."
    row["messages"][0]["content"] = "Runs a command. Submit."                                   # the words, but not the tool
    assert '"name": "bash"' in segment.trajectory_examples(row)[0]["system"]
    for none in (float("nan"), [None], None, []):
        assert "Tools" not in segment.trajectory_examples(trajectory(LOOK, tools=none))[0]["system"].replace("Tools: ..", "")


def test_one_traj_needs_no_flag(segment, tmp_path, monkeypatch, capsys):
    (tmp_path / "one.traj").write_text(json.dumps({"history": trajectory(LOOK, SUBMIT)["messages"]}))
    monkeypatch.setattr(sys, "argv", ["01_segment.py", "--trajectories", "--data", f"{tmp_path}/one.traj", "--out", f"{tmp_path}/out"])
    segment.main()
    assert len(read_jsonl(tmp_path / "out/train.jsonl")) == 2 and " of 0 problems in val.jsonl" in capsys.readouterr().out
