"""Trajectories of agents: without this file none can be read, and no call can be found or parsed."""
import json
import re
from contextlib import suppress
from pathlib import Path

from ..files import InputError, read_rows

FUNCTION, PARAMETER = re.compile(r"<function=([^>\s]+)>\s*"), re.compile(r"<parameter=([^>\s]+)>")
PARAMETER_END = re.compile(r"</parameter>\s*(?=<parameter=|</function>)")
FENCE = re.compile(r"^```[^\n`]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"<command>(.*?)</command>", re.DOTALL)
TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


def xml_calls(text):
    """(text, name, arguments) of each complete call <function=name> <parameter=p>value</parameter> ..

    A value may hold closing tags too: it ends where the next parameter or the end of the function follows.
    """
    calls, position = [], 0
    while begin := FUNCTION.search(text, position):
        arguments, position = {}, begin.end()
        while parameter := PARAMETER.match(text, position):
            end = PARAMETER_END.search(text, parameter.end())
            if not end:
                break
            arguments[parameter[1]] = text[parameter.end():end.start()]
            position = end.end()
        if text.startswith("</function>", position):
            position += len("</function>")
            calls.append((text[begin.start():position], begin[1], arguments))
    return calls


def parse_call(action):
    """(name, arguments) of an XML call or a <tool_call> in JSON, else of a shell command, "bash"; or None."""
    if calls := xml_calls(action):
        return calls[0][1:]
    if found := TOOL_CALL.search(action):
        with suppress(ValueError, LookupError, TypeError, RecursionError):
            call = json.loads(found[1])
            return call["name"], call["arguments"]
        return None
    return ("bash", {"command": action}) if action.strip() else None


def message_text(message):
    """The text of a chat message; its content may be a list of parts."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content if isinstance(part, dict))


def calls_of(message):
    """Texts of the calls in an agent's message, byte for byte, without the prose around them.

    A native function call gets the form of Qwen's chat template; a command loses backticks or <command> tags.
    """
    text, calls = message_text(message), []
    for call in message.get("tool_calls") or ():
        function = call.get("function", call)
        name, arguments = json.dumps(function["name"]), function.get("arguments") or "{}"
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        calls.append(f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>')
    if calls := calls or [call for call, _, _ in xml_calls(text)]:
        return calls
    if action := str(message.get("action") or "").strip():              # SWE-agent's field for what it ran
        return [action]
    commands = COMMAND.findall(text) or FENCE.findall(text)[-1:]
    return [command.strip() for command in commands if command.strip()]


def turns_of(row):
    """(system, issue, turns): two texts, and one [calls, observation] per message of the agent with calls.

    The prose around calls is dropped. Raises ValueError where nothing is left or the task was not resolved.
    """
    resolved = row.get("resolved", (row.get("info") or {}).get("resolved", True))
    if str(resolved).lower() in ("false", "0"):
        raise ValueError("the task was not resolved")
    system, issue, turns = [], [], []
    for message in [message for message in row["messages"] if not message.get("is_demo")]:
        if message["role"] == "system":
            system.append(message_text(message))
        elif message["role"] == "assistant":
            turns.append(["\n".join(calls_of(message)), ""])            # several calls at once are one action
        elif turns:
            turns[-1][1] += ("\n" if turns[-1][1] else "") + message_text(message)
        else:
            issue.append(message_text(message))
    turns = [turn for turn in turns if turn[0]]
    if not turns:
        raise ValueError("no call of a function or command in it")
    return "\n\n".join(system), "\n\n".join(issue), turns


def read_trajectories(source, split=None):
    """(rows, places): dicts with "id" and "messages" of a .traj file or a folder of them (SWE-agent), or of a
    .jsonl, .json or .parquet file or a hub data set (SWE-smith). Raises InputError where it has no messages.
    """
    folder = Path(source).is_dir()
    if folder or Path(source).suffix == ".traj":
        paths = sorted(Path(source).rglob("*.traj")) if folder else [Path(source)]
        if not paths:
            raise InputError(f"{source}: no .traj file in this folder; expected SWE-agent's trajectories")
        rows, places = [], [str(path) for path in paths]
        for path in paths:
            try:
                rows.append({"instance_id": path.stem, **json.loads(path.read_text(encoding="utf-8"))})
            except (OSError, ValueError, TypeError, RecursionError) as error:
                why = getattr(error, "strerror", None) or error
                raise InputError(f"{path}: not a trajectory ({why}); expected SWE-agent's JSON") from None
    else:
        rows, places = read_rows(source, split)
    for number, (row, place) in enumerate(zip(rows, places, strict=True)):
        if not isinstance(row, dict):
            raise InputError(f"{place}: expected an object with messages or history")
        messages = row.get("messages") or row.get("history")
        if isinstance(messages, str):                   # data sets of the hub store JSON text
            with suppress(ValueError, RecursionError):
                messages = json.loads(messages)
        chat = messages if isinstance(messages, list) else []
        if not chat or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in chat):
            raise InputError(f"{place}: no messages (or history) of role and content; expected a trajectory")
        row["messages"] = messages
        row["id"] = str(row.get("instance_id") or row.get("id") or number)
    return rows, places
