"""The program of the sandbox, started by sandbox.py; without it no edited code is tested.

[files, calls, [processor seconds, seconds], unsafe] -> the values of the calls, or null. A model edited the
files, so they may contain any code: a forked child runs it, and the kernel confines the child. Behind the
seccomp filter it can compute, write to one pipe and end; every other system call fails. The expected values
never enter the child. Imports nothing of ours.
"""
import ctypes
import importlib.abc
import importlib.machinery
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
import time
from contextlib import suppress

# machine: (its audit number, the calls that are allowed: read write close mmap munmap brk rt_sigreturn mremap
# madvise exit futex clock_gettime exit_group getrandom)
SYSTEM_CALLS = {
    "x86_64": (0xC000003E, (0, 1, 3, 9, 11, 12, 15, 25, 28, 60, 202, 228, 231, 318)),
    "aarch64": (0xC00000B7, (63, 64, 57, 222, 215, 214, 139, 216, 233, 93, 98, 113, 94, 278)),
}
LIMITS = {"AS": 512 << 20, "FSIZE": 1 << 20, "NOFILE": 16, "CORE": 0, "NPROC": 0}       # bytes, or a count
prctl = getattr(ctypes.CDLL(None), "prctl", None)


def forbid_system_calls():
    """Install the seccomp filter, a program in the kernel's BPF; returns whether the kernel took it."""
    machine, allowed = SYSTEM_CALLS.get(platform.machine(), (0, ()))
    if not sys.platform.startswith("linux") or not allowed:
        return False
    code = [(0x20, 0, 0, 4), (0x15, 1, 0, machine), (0x06, 0, 0, 0x80000000)]   # another machine's call: kill
    code += [(0x20, 0, 0, 0)]                                                   # load the number of the call
    code += [(0x15, len(allowed) - i, 0, call) for i, call in enumerate(allowed)]   # allowed: to the end
    code += [(0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]                # fail with EPERM; allow
    text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(text)))
    return prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, ctypes.byref(program), 0, 0) == 0


class Importer(importlib.abc.Loader):
    """Finds the modules of a repository in memory, and no others."""
    files = {}

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if f"{name}.py" in self.files else None

    def exec_module(self, module):
        path = f"{module.__name__}.py"
        exec(compile(self.files[path], path, "exec"), module.__dict__)


def run_child(files, calls, cpu_seconds, unsafe, out):
    """In the child: confine it, make the calls, write their values to the pipe `out`. Does not return."""
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.dup2(out, 3)
    os.closerange(4, 256)
    for name, limit in {"CPU": cpu_seconds, **LIMITS}.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
    if os.geteuid() == 0:                   # root sees the scratch folder alone, as a user who owns nothing
        os.chroot(".")
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    if not (forbid_system_calls() or unsafe):
        os._exit(1)
    Importer.files = files
    sys.meta_path[:], values = [Importer()], []
    for module, function, arguments in calls:
        try:
            value = getattr(importlib.import_module(module), function)(*arguments)
            values.append([type(value).__name__, value if type(value) in (int, bool, str) else None])
        except BaseException as error:      # whatever it raises, it is the model's
            values.append(["error", type(error).__name__])
    os.write(3, json.dumps(values).encode())
    os._exit(0)


def run(files, calls, seconds, unsafe):
    """The values of the calls, [type, value] each, or None where the child died or took too long."""
    reading, out = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            run_child(files, calls, seconds[0], unsafe, out)
        finally:
            os._exit(1)
    os.close(out)
    text, end = b"", time.monotonic() + seconds[1]
    while len(text) < 1 << 16 and select.select([reading], [], [], max(0, end - time.monotonic()))[0]:
        if not (part := os.read(reading, 1 << 16)):
            break
        text += part
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reading)
    with suppress(ValueError):              # not the whole list: the child died
        return json.loads(text)


if __name__ == "__main__":
    probe = run({"a.py": "def f():\n    return 1\n"}, [["a", "f", []]], [5, 60], False)
    print(json.dumps("ready" if probe == [["int", 1]] else "no seccomp"), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)
