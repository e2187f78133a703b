"""The tools of a small repository {file name: text}: without this file no call of an agent is executed."""
from . import sandbox

TOOLS = {   # and their parameters
    "list": (), "search": ("text",), "view": ("path",), "edit": ("path", "line", "text"),
    "run_tests": (), "submit": (),
}


def edit(files, path, line, text):
    """(files, observation) after line number `line` of a file is replaced."""
    lines = files[path].splitlines()
    is_number = line.isascii() and line.isdigit()
    if not is_number or not 1 <= int(line[:9]) <= len(lines):
        return files, f"Error: {path} has lines 1 to {len(lines)}"
    lines[int(line) - 1] = text
    return {**files, path: "\n".join(lines) + "\n"}, "edited"


def execute(name, arguments, files, tests):
    """(files, observation) after a call; the observation of an invalid one begins with "Error".

    `files` itself is not changed. tests: those that run_tests runs, see sandbox.failed_tests.
    """
    # a call in JSON may have arguments of any type
    arguments = {n: str(value) for n, value in arguments.items()} if isinstance(arguments, dict) else {}
    if name not in TOOLS or set(arguments) != set(TOOLS[name]):
        signatures = (f"{tool}({', '.join(parameters)})" for tool, parameters in TOOLS.items())
        return files, f"Error: no such call; there are {', '.join(signatures)}"
    if "path" in arguments and arguments["path"] not in files:
        return files, f"Error: no file {arguments['path']}"
    if name == "edit":
        return edit(files, **arguments)
    if name == "list":
        return files, "\n".join(files)
    if name == "search":
        found = [f"{file}:{number}|{line}" for file, text in files.items()
                 for number, line in enumerate(text.splitlines(), 1) if arguments["text"] in line]
        return files, "\n".join(found[:20]) or "not found"
    if name == "view":
        lines = files[arguments["path"]].splitlines()
        return files, "\n".join(f"{number}|{line}" for number, line in enumerate(lines, 1))
    if name == "run_tests":
        failed = sandbox.failed_tests(files, tests)
        return files, failed[0] if failed else "all tests pass"
    return files, "submitted"
