"""Trajectories of agents: every call is an action, unchanged; its context is the issue and the last two calls with their observations."""
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
    examples, reasons = segment.segment_trajectories(rows)
    assert len(examples) == 1 and reasons == {"the task was not resolved": 2, "no call of a function or command in it": 1}


@pytest.fixture
def run_segment(segment, tmp_path, monkeypatch):
    def run(source):
        monkeypatch.setattr(sys, "argv", ["01_segment.py", "--trajectories", "--data", f"{tmp_path / source}", "--out", f"{tmp_path}/out", "--num_val", "1"])
        segment.main()
        return [read_jsonl(tmp_path / f"out/{name}.jsonl") for name in ("train", "val")]
    return run


def test_files_of_every_kind_give_the_same_examples_and_the_split_is_by_task(run_segment, tmp_path):
    import pyarrow
    import pyarrow.parquet
    rows = [{"instance_id": f"task-{n % 3}", "messages": trajectory(LOOK, SUBMIT)["messages"]} for n in range(6)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    as_text = [{**row, "messages": json.dumps(row["messages"])} for row in rows]                   # as the hub has them
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(as_text), tmp_path / "a.parquet")
    (tmp_path / "trajs").mkdir()
    for n in range(3):
        (tmp_path / f"trajs/task-{n}.traj").write_text(json.dumps({"history": rows[0]["messages"], "info": {"exit_status": "submitted"}}))
    for source in ("a.jsonl", "a.parquet", "trajs"):
        train, val = run_segment(source)
        assert len({e["id"] for e in train}) == 2 and not {e["id"] for e in train} & {e["id"] for e in val}
        assert {e["action"] for e in train + val} == {LOOK, SUBMIT} and len(train + val) == (6 if source == "trajs" else 12)


@pytest.mark.parametrize("name, text, message", [
    ("a.jsonl", '{"messages": [{"role": "user"}]}\n{"problem": "p"}', "line 2: no messages"), ("a.jsonl", '{"messages": "[not json"}', "line 1: no messages"),
    ("a.jsonl", '{"messages": [1]}', "line 1: no messages"), ("a.jsonl", "[]", "line 1: expected an object"), ("a.traj", "{", "not a trajectory"),
    ("a.traj", "[1]", "not a trajectory"), ("a.jsonl", '{"messages": [{"role": "user", "content": "x"}]}', "no trajectory has calls")])
def test_a_broken_trajectory_is_named(run_segment, tmp_path, name, text, message):
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
    rows, _ = read_trajectories(DATA / "swe_smith/ft_xml_example.jsonl")
    examples, reasons = segment.segment_trajectories(rows)
    texts = [m["content"] for row in rows for m in row["messages"] if m["role"] == "assistant"]
    assert len(examples) == len(texts) == 103 and not reasons
    for example, text in zip(examples, texts, strict=True):
        assert text[text.index("<function="):].rstrip() == example["action"]
        name, arguments = parse_call(example["action"])
        again = f"<function={name}>\n" + "".join(f"<parameter={p}>{v}</parameter>\n" for p, v in arguments.items()) + "</function>"
        assert again == example["action"]
    for row in read_trajectories(DATA / "swe_agent_demos")[0]:
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
