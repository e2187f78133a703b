"""What an agent writes is run, so it may be anything: the kernel confines it. Every hostile edit fails its test and changes nothing outside."""
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from engine.agents import sandbox
from engine.files import InputError
from engine.process import Helper

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the filter is Linux's")
SANE = {"shop.py": "from bank import fee\n\ndef cost(a, b):\n    return a + fee(b)\n", "bank.py": "def fee(x):\n    return x - 1\n"}
TEST = ["shop", "cost", [3, 4], 6]


def shop(*lines):
    """The files with these lines as the body of cost()."""
    return {**SANE, "shop.py": "def cost(a, b):\n" + "".join(f"    {line}\n" for line in lines)}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(sandbox, "TEST_SECONDS", (1, 2))


def test_tests_run_on_the_files_which_may_import_each_other():
    assert sandbox.failed_tests(SANE, [TEST, ["bank", "fee", [1], 0]]) == []
    assert sandbox.failed_tests(SANE, [["shop", "cost", [3, 4], 7]]) == ["cost(3, 4) returns 6 but should return 7."]
    assert sandbox.failed_tests({**SANE, "bank.py": "def fee(x:\n"}, [TEST]) == ["cost(3, 4) gives SyntaxError but should return 6."]
    assert sandbox.failed_tests(SANE, [["shop", "none", [], 7], ["gone", "f", [], 7]])[1] == "f() gives ModuleNotFoundError but should return 7."
    assert sandbox.failed_tests({"a.py": "def f():\n    return True\n"}, [["a", "f", [], 1]])                     # True is not 1


@pytest.mark.parametrize("lines, gives", [
    (["while True: pass"], "no result"), (["return cost(a, b)"], "RecursionError"), (["return len('a' * 10**10)"], "MemoryError"),
    (["x = []", "while True: x.append('a' * 10**6)"], ""), (["return 10**10**10"], "no result"), (["raise SystemExit"], "SystemExit"),
    (["import threading", "lock = threading.Lock()", "lock.acquire()", "lock.acquire()"], ""),                     # waits without computing
    (["import os", "while True: os.fork()"], "PermissionError"), (["import os", "os.kill(os.getppid(), 9)"], "PermissionError"),
    (["import os", "os._exit(0)"], "no result"), (["import os", "os.execv('/bin/sh', ['sh'])"], "PermissionError"), (["import socket"], "ModuleNotFoundError"),
    (["import _socket"], "ModuleNotFoundError"), (["import subprocess"], "ModuleNotFoundError"), (["open('/etc/passwd')"], "PermissionError"),
    (["import os", "os.listdir('/')"], "PermissionError"), (["import ctypes", "ctypes.string_at(0)"], "no result"),
    (["import time", "time.sleep(100)"], "PermissionError"), (["import signal", "signal.signal(14, lambda *x: None)"], "PermissionError"),
    (["import resource", "resource.setrlimit(0, (99, 99))"], "ValueError"), (["import os", "os.setuid(0)"], "PermissionError")])
def test_hostile_code_ends_in_a_failed_test(quick, lines, gives):
    assert f"gives {gives}" in sandbox.failed_tests(shop(*lines), [TEST])[0]
    assert sandbox.failed_tests(SANE, [TEST]) == []                                                            # and the next test runs as before


@pytest.mark.parametrize("act", ["open({path!r}, 'w').write('x')", "__import__('os').remove({path!r})", "__import__('os').rename({path!r}, {path!r} + '2')",
                                 "__import__('os').open({path!r}, 577)", "__import__('os').chmod({path!r}, 0)", "__import__('os').mkdir({path!r} + 'd')",
                                 "__import__('os').system('rm -rf ' + {path!r})", "__import__('os').posix_spawn('/bin/rm', ['rm', {path!r}], {{}})",
                                 "__import__('ctypes').CDLL(None).unlink({path!r}.encode())", "__import__('ctypes').CDLL(None).syscall(87, {path!r}.encode())",
                                 "__import__('ctypes').CDLL(None).system(b'rm ' + {path!r}.encode())"])
def test_files_outside_stay_as_they_are(quick, tmp_path, act):
    path = tmp_path / "mine.txt"
    path.write_text("mine")
    assert "should return" in sandbox.failed_tests(shop(act.format(path=str(path)), "return 0"), [TEST])[0]
    assert path.read_text() == "mine" and os.listdir(tmp_path) == ["mine.txt"] and path.stat().st_mode & 0o777


@pytest.mark.parametrize("lines", [
    ["import os", "os.write(3, b'[[\"int\", 6]]')", "os._exit(0)"],                              # it would have to know the value, as any right answer does
    ["class Six(int):", "    def __eq__(self, other): return True", "return Six(0)"],
    ["class Any:", "    def __eq__(self, other): return True", "return Any()"],
    *(["import json", f"json.dumps = lambda x: {text!r}", "return 0"] for text in ("[]", "5", "[1]", "null", "{}", '["ab"]', '[["int", 6], ["int", 6]]')),
    ["import os", "os.write(3, b'x' * 10**5)"], ["import sys, os", "os.close(3)"],
    ["import builtins", "builtins.type = lambda x: int", "return 0"]])
def test_the_verdict_cannot_be_forged_because_the_expected_value_is_elsewhere(quick, lines):
    honest = lines[-1] == "os._exit(0)"
    assert bool(sandbox.failed_tests(shop(*lines), [TEST])) is not honest and sandbox.failed_tests(shop(*lines), [["shop", "cost", [3, 4], 61]])


def test_no_secret_of_the_machine_can_be_read(quick, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_USER", "1234")
    for line in ("return str(dict(os.environ))", "return os.read(0, 9).decode()", "return str(os.environ.get('HOME'))"):
        (sentence,) = sandbox.failed_tests(shop("import os", line), [TEST])
        assert "1234" not in sentence and "/root" not in sentence


def test_1000_runs_leave_no_process_and_no_file():
    def traces():
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return len(os.listdir(f"/proc/{process.pid}/fd")), children, os.listdir(process.scratch.name)
    process = sandbox.SANDBOX.running()
    before = traces()
    for n in range(1000):
        assert sandbox.failed_tests(SANE, [["shop", "cost", [n, 1], n]]) == []
    assert sandbox.SANDBOX.running() is process and process.poll() is None and traces() == before and before[1:] == ([], [])


def test_where_the_kernel_has_no_filter_nothing_is_run_unless_the_user_says_so(monkeypatch, tmp_path):
    (tmp_path / "program.py").write_text(sandbox.PROGRAM.read_text().replace('"x86_64"', '"no_machine"').replace('"aarch64"', '"no_other"'))
    monkeypatch.setattr(sandbox, "PROGRAM", tmp_path / "program.py")
    with pytest.raises(InputError, match="--unsafe_tests"):
        sandbox.start_sandbox()
    monkeypatch.setattr(sandbox, "UNSAFE", True)
    helper = Helper(sandbox.start_sandbox)
    assert helper.ask([SANE, [TEST[:3]], [2, 20], True]) == [["int", 6]]
    assert helper.ask([SANE, [TEST[:3]], [2, 20], False]) is None                                              # asked for the filter, it does not run without
    helper.process.communicate(timeout=10)
    assert helper.process.returncode == 0


def test_the_sandbox_ends_with_the_program_and_its_scratch_folder_goes():
    code = "from engine.agents.sandbox import SANDBOX; print(SANDBOX.running().pid, SANDBOX.process.scratch.name)"
    pid, scratch = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout.split()
    stat, end = Path(f"/proc/{pid}/stat"), time.time() + 5
    while stat.exists() and "Z" not in stat.read_text().split(")")[1]:
        assert time.time() < end, f"process {pid} still runs"
        time.sleep(0.05)
    assert not Path(scratch).exists()
