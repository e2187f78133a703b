"""Runs the tests of edited code in a sandbox: without this file no repository of an agent is tested."""
import json
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from ..files import InputError
from ..process import Helper, start_process

PROGRAM = Path(__file__).with_name("sandbox_process.py")
TEST_SECONDS = (2, 20)      # of processor time, and in all. The tests of the miniature take a millisecond
UNSAFE = False              # True (--unsafe_tests): without seccomp, run them under resource limits alone


def start_sandbox():
    """A new sandbox process, with no environment, in a scratch folder.

    Raises InputError where the system cannot confine what a model wrote.
    """
    scratch = tempfile.TemporaryDirectory(prefix="scratch-")
    process, first_line = start_process([sys.executable, "-I", "-S", str(PROGRAM)], env={}, cwd=scratch.name)
    process.scratch = scratch               # deleted with the process
    if b"ready" in first_line or (first_line and UNSAFE):
        return process
    process.kill()
    raise InputError("tests of edited code run behind a seccomp filter (Linux on x86-64 or arm64), "
                     "which this system does not have; --unsafe_tests runs them under resource limits alone")


SANDBOX = Helper(start_sandbox)


@lru_cache(maxsize=1 << 14)
def cached_values(request):
    return SANDBOX.ask(json.loads(request))


def failed_tests(files, tests):
    """The tests that fail, each as a sentence.

    files: {name: text}; a test: [module, function, arguments, expected value].
    """
    calls = [test[:3] for test in tests]
    values = cached_values(json.dumps([files, calls, TEST_SECONDS, UNSAFE]))
    try:
        results = [(test, kind, value) for test, (kind, value) in zip(tests, values, strict=True)]
    except (TypeError, ValueError):         # the child died, or its code wrote something else to the pipe
        results = [(test, "error", "no result") for test in tests]
    sentences = []
    for (_, function, arguments, expected), kind, value in results:
        if (kind, value) == (type(expected).__name__, expected):
            continue
        result = f"gives {value}" if kind == "error" else f"returns {kind if value is None else value}"
        call = f"{function}({', '.join(map(repr, arguments))})"
        sentences.append(f"{call} {result} but should return {expected!r}.")
    return sentences


def with_tests(problems, source=""):
    """The problems. Raises InputError where one is no repository with tests, or the system has no sandbox."""
    for p in problems:
        if not (isinstance(p.get("files"), dict) and p.get("hidden") and "visible" in p):
            raise InputError(f"{source}problem {p['id']}: no files, visible and hidden tests (--mode agent)")
    SANDBOX.running()
    return problems
