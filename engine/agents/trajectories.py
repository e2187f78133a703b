"""Trajectories of agents: without this file none can be read, and no call can be found or parsed."""
import json
import re
from contextlib import suppress
from pathlib import Path

from ..files import InputError, explain_read_errors, parse_json, read_rows
from ..problems import TAG_IN_QUOTES, THOUGHT_TAG, is_missing, without_thoughts

# a value may hold closing tags too: it ends where the next parameter or the end of the function follows
PARAMETER = re.compile(r"<parameter=([^>\s]+)>(?>(.*?)</parameter>\s*(?=<parameter=|</function>))", re.DOTALL)
XML_CALL = re.compile(rf"<function=([^>\s]+)>\s*(?:{PARAMETER.pattern})*+</function>", re.DOTALL)
COMMAND = re.compile(r"<(?:command|execute_bash)>((?:(?!<command>).)*?)</(?:command|execute_bash)>", re.S)
# up to the first end that is in no text of its JSON, else the first end
TOOL_CALL = re.compile(r"""<tool_call>\s*(\{(?:[^"]|"(?:[^"\\\n]|\\.)*+")*?\}|\{.*?\})\s*</tool_call>""",
                       re.DOTALL)
# a call may hold tags of thoughts: it edits a file that has them
CALL_OR_THOUGHT = re.compile(rf"""{XML_CALL.pattern} | {COMMAND.pattern} | {TOOL_CALL.pattern}
    | ^```.*?^```[ \t]*$ | {THOUGHT_TAG.pattern} | {TAG_IN_QUOTES}
    """, re.DOTALL | re.MULTILINE | re.IGNORECASE | re.VERBOSE)


def parse_call(action):
    """(name, arguments) of an XML call or a <tool_call> in JSON, "" if broken, else of a command, "bash"."""
    if found := XML_CALL.search(action):
        return found[1], dict(PARAMETER.findall(found[0]))
    if found := TOOL_CALL.search(action):
        with suppress(ValueError, LookupError, TypeError, RecursionError):
            call = json.loads(found[1])
            return str(call["name"]), call["arguments"]         # JSON may give any type
        return "", {}
    return "bash", {"command": action}


# 1. Rows and messages, under the names of public data sets
CHATS = ("messages", "history", "trajectory", "conversations", "conversation")
ROLES = {"system": "system developer",
         "assistant": "assistant ai gpt model bot agent tool_call function_call",
         "user": "user human tool observation environment function tool_response tool_result "
                 "function_response ipython exit"}
ROLES = {name: role for role, names in ROLES.items() for name in names.split()}
TEXTS = ("content", "value", "text", "system_prompt")


def parsed(value):
    """A value, read as JSON where it is JSON text: data sets of the hub store lists and objects so."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return parse_json(value)
    return value


def function_of(call):
    """The function of a call or a definition: {"type": "function", "function": {..}}, or {..} itself."""
    call = call if isinstance(call, dict) else {}
    return call["function"] if isinstance(call.get("function"), dict) else call


def without_nulls(value):
    """A value without the null fields that parquet gives to every object of a column."""
    if isinstance(value, dict):
        return {name: without_nulls(part) for name, part in value.items() if part is not None}
    return [without_nulls(part) for part in value] if isinstance(value, list) else value


def role_name(message):
    return (message.get("role") or message.get("from")) if isinstance(message, dict) else None


def role_of(message):
    """system, user or assistant; None for anything else."""
    return ROLES.get(str(role_name(message)).lower())


def messages_of(row, place):
    """The chat of a row. Raises InputError where no column is one."""
    unknown = []
    for chat in map(parsed, map(row.get, CHATS)) if isinstance(row, dict) else ():
        if isinstance(chat, list) and chat:
            if all(map(role_of, chat)):
                return chat
            unknown += [role_name(message) for message in chat if not role_of(message)]
    why = f"; the role {unknown[0]!r} is unknown" if any(unknown[:1]) else ""
    raise InputError(f"{place}: no messages (or history, trajectory, conversations) of content and a role: "
                     f"system, user, assistant or tool{why}")


def message_text(message):
    """The text of a chat message; its content may be a list of parts."""
    content = next((message[name] for name in TEXTS if message.get(name) not in (None, "")), "")
    texts = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, dict):                                  # Anthropic's tool_result has content
            part = part.get("text") or (message_text(part) if part.get("type") == "tool_result" else "")
        texts.append(part)
    return "\n".join(text for text in texts if isinstance(text, str))


# 2. Forms of calls: (message, its text without thoughts) -> texts of the calls, unchanged
def native_calls(message, text):
    """Native function calls, in the form of Qwen's chat template."""
    if str(role_name(message)).endswith("_call"):
        return [f"<tool_call>\n{text.strip()}\n</tool_call>"]
    found, calls = parsed(message.get("tool_calls")) or message.get("function_call"), []
    if not found and isinstance(message.get("content"), list):                              # Anthropic's
        found = [{**part, "arguments": part.get("input")} for part in message["content"]
                 if isinstance(part, dict) and part.get("type") == "tool_use"]
    for call in found if isinstance(found, list) else [found]:
        function = function_of(call)
        name, arguments = json.dumps(function.get("name")), function.get("arguments") or "{}"
        if not isinstance(arguments, str):
            arguments = json.dumps(without_nulls(arguments), ensure_ascii=False)
        if name.startswith('"') and isinstance(parsed(arguments), dict):             # else it was cut off
            calls.append(f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>')
    return calls


def closed(text, end):
    """The text with `end` behind it, which a stop word may have cut off; a whole call stays as it is."""
    return re.sub(r"\s*(?:</?[a-z_]*\s*)?\Z", "", text) + f"\n{end}"


def function_calls(message, text):
    """XML calls."""
    return [call[0] for call in XML_CALL.finditer(closed(text, "</function>"))]


def json_calls(message, text):
    """JSON in <tool_call> tags."""
    calls = TOOL_CALL.finditer(closed(text, "</tool_call>"))
    named = [call for call in calls if re.search(r"""["']name["']""", call[1])]
    return [call[0] for call in named if call[0] in text or isinstance(parsed(call[1]), dict)]


def actions(message, text):
    """SWE-agent's field for what it ran."""
    action = message.get("action")
    return [action.strip()] if isinstance(action, str) and action.strip() else []


def commands(message, text):
    """The last <command>, without its tags."""
    last = text[text.rfind("</command>"):]
    text = closed(text, "</command>") if re.search(r"<command>\s", last) else text     # no prose
    return [command.strip() for command in COMMAND.findall(text)[-1:] if command.strip()]


HEREDOC = re.compile(r"""(?<!<)<<-?\s*["'\\]?([^\s"'|;&<>()]+)""")


OTHER_CALL = re.compile(r"<(?:\w+:)?(?:invoke|function_calls|execute_\w+)\b")     # of a form that is not read


def fence_end(lines, begin):
    """The line that closes the fence of line `begin`, past heredocs and fences with a label; or None."""
    opened, heredoc = [len(lines[begin]) - len(lines[begin].lstrip("`"))], None
    for number, line in enumerate(lines[begin + 1:], begin + 1):
        ticks = len(line) - len(line.lstrip("`"))
        starts = HEREDOC.search(line)
        if heredoc:
            heredoc = heredoc if line.strip() != heredoc else None
        elif starts and starts[1] in map(str.strip, lines[number + 1:]):
            heredoc = starts[1]
        elif ticks < max(3, opened[-1]) or "`" in line[ticks:]:
            continue
        elif line[ticks:].strip():
            opened.append(ticks)
        elif len(opened) > 1:
            opened.pop()
        else:
            return number
    return None


def fences(text):
    """(label, text) of each fenced block."""
    lines, blocks, number = text.split("\n"), [], 0
    while number < len(lines):
        end = fence_end(lines, number) if re.match(r"```+[^`]*$", lines[number]) else None
        if not end and OTHER_CALL.search(lines[number]):            # then a fence is prose
            return []
        if end:
            blocks.append((lines[number].strip("` \t\r").lower(), "\n".join(lines[number + 1:end]).strip()))
        number = (end or number) + 1
    return [block for block in blocks if block[1]]


def shell_fence(message, text):
    """The last fenced block labelled as a shell's, else the last without a label."""
    blocks = fences(text)
    shell = [block for label, block in blocks if re.fullmatch(r"(?:ba|z)?sh|shell|console|\w*bash\w*", label)]
    return (shell or [block for label, block in blocks if not label])[-1:]


def any_fence(message, text):
    return [block for _, block in fences(text)[-1:]]


# a trajectory has one form: the first with calls, if they are native or in more than half as many messages as
# have a shell's fence. A fence in prose is no call beside native ones, a tag in a heredoc none beside fences
FORMS = (native_calls, function_calls, json_calls, actions, commands, shell_fence, any_fence)
# what remains of a call without its end
CUT_OFF = {function_calls: r"<function=[^>\s]+>\s*<parameter=", json_calls: r"<tool_call>\s*\{",
           commands: r"<(?:command|execute_bash)>", shell_fence: r"^```\w*sh\w*\s*$(?![\s\S]*^```)"}


def calls_by_message(messages):
    """Texts of the calls in each message, and the number of messages whose call is cut off or in thoughts."""
    agents = [message for message in messages if role_of(message) == "assistant"]
    texts = [without_thoughts(message_text(message), CALL_OR_THOUGHT) for message in agents]
    fenced = sum(bool(shell_fence(*pair)) for pair in zip(agents, texts, strict=True))
    for form in FORMS:
        calls = [form(message, text) for message, text in zip(agents, texts, strict=True)]
        mark, found = CUT_OFF.get(form, r"(?!)"), sum(map(bool, calls))
        begun = form in (function_calls, json_calls) and not fenced and re.search(mark, "\n".join(texts))
        if begun or found and (form is native_calls or 2 * found > fenced):
            break
    silent = [message for message, found in zip(agents, calls, strict=True) if not found]
    return calls, sum(bool(form is native_calls and parsed(message.get("tool_calls"))
                           or re.search(mark, message_text(message), re.MULTILINE)) for message in silent)


# 3. Rows to turns
VERDICTS = ("resolved", "is_resolved")
REPORTS = "info report test_result metadata eval_result extra_info eval metrics eval_output_dict".split()
SUCCESS = "true 1 1.0 yes y t resolved resolved_full success passed pass solved".split()


def is_resolved(row):
    """Whether a trajectory resolved its task; one that does not say counts."""
    sources, values = [row], []
    sources += map(parsed, map(row.get, REPORTS))
    sources += [parsed(part) for found in sources[1:] if isinstance(found, dict) for part in found.values()]
    for source in sources:
        values += [source[name] for name in VERDICTS if isinstance(source, dict) and name in source]
    if str(row.get("target")).lower() in ("true", "false", "0", "1", "0.0", "1.0"):         # nebius
        values.append(row["target"])
    value = str(next((value for value in values if not is_missing(value)), None)).strip().lower()
    return not values or value in SUCCESS


def tools_text(row, system, calls):
    """The tool definitions of a row as Qwen's chat template shows them, but for those that `system` has."""
    tools = parsed(row.get("tools") or row.get("functions"))
    tools = [tool for tool in (tools if isinstance(tools, list) else [tools]) if not is_missing(tool)]
    lines = []
    for tool in map(parsed, tools):
        described = str(function_of(tool).get("description") or "").strip()
        named = re.search(rf"(?<!\w){re.escape(str(function_of(tool).get('name')))}(?!\w)", system)
        quoted = json.dumps(described)[1:-1]
        if not (described and named and (described in system or quoted in system)):
            lines.append(json.dumps(without_nulls(tool), ensure_ascii=False))
    if not lines:
        return []
    text = "\n".join(["# Tools\n\nYou may call these functions:\n<tools>", *lines, "</tools>"])
    if any(call.startswith("<tool_call>") for call in calls):
        text += "\n\nCall one like this:\n<tool_call>\n"
        text += '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    return [text]


def turns_of(row):
    """(system, issue, turns): two texts, and one [calls, observation] per message of the agent with calls.

    The prose around calls is dropped; row["cut_off"] counts messages whose call has no end or is a thought.
    Raises ValueError where nothing is left or the task was not resolved.
    """
    if not is_resolved(row):
        raise ValueError("the task was not resolved")
    messages = [message for message in row["messages"] if not message.get("is_demo")]
    calls, row["cut_off"] = calls_by_message(messages)
    system, issue, turns, calls_left = [], [], [], iter(calls)
    for message in messages:
        role = role_of(message)
        if role == "assistant":
            turns.append(["\n".join(next(calls_left)), ""])             # several calls at once are one action
        elif role == "system":
            system.append(message_text(message))
        elif any(action for action, _ in turns):
            turns[-1][1] += ("\n" if turns[-1][1] else "") + message_text(message)
        else:
            issue.append(message_text(message))                         # up to the first call
    turns = [turn for turn in turns if turn[0]]
    if not turns:
        raise ValueError("no call of a function or command in it")
    system += tools_text(row, "\n".join(system), [action for action, _ in turns])
    return "\n\n".join(system), "\n\n".join(issue), turns


def read_trajectories(source, split=None):
    """Rows, dicts with "id" and "messages", of a .traj or .traj.json file or a folder of them
    (SWE-agent, mini-swe-agent), or of a .jsonl, .json or .parquet file or a hub data set (SWE-smith, nebius).
    Raises InputError where a row has no messages.
    """
    if Path(source).is_dir() or str(source).endswith((".traj", ".traj.json")):
        files = Path(source).rglob("*.traj*") if Path(source).is_dir() else [Path(source)]
        places, rows = sorted(path for path in files if path.suffix in (".traj", ".json")), []
        if not places:
            raise InputError(f"{source}: no .traj or .traj.json file in this folder; expected trajectories")
        for path in places:
            with explain_read_errors(path, "not a trajectory", "expected SWE-agent's JSON"):
                name, row = path.name.partition(".traj")[0], json.loads(path.read_text(encoding="utf-8"))
                rows.append({"instance_id": name, **row})
    else:
        rows, places = read_rows(source, split)
    for number, (row, place) in enumerate(zip(rows, places, strict=True)):
        row["messages"] = messages_of(row, place)
        ids = [str(row[name]) for name in ("instance_id", "id") if not is_missing(row.get(name))]
        row["id"] = (ids or [str(number)])[0]
    return rows
