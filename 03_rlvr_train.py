"""Stage 3: RLVR. The GRPO of stage 2 with a verifiable reward: 1 if the final answer is right, else 0.

Everything but the task comes from 02: rollout, dynamic sampling (with 0/1 rewards: drop groups all right or all wrong), loss, loop. From any starting
model, so RLVR alone, SFT then RLVR and SRL then RLVR are one flag apart. In stepwise mode an episode asks for one step at a time and drops earlier
thoughts; its turns share the advantage of its outcome. Single mode is the paper's: one completion for the whole problem.

Agent mode asks for one call at a time, executes it and extends the context with what it returned; the reward is 1 where the hidden tests pass on what was
submitted.

Differences from the paper: it prints neither prompt nor reward values of RLVR; ours are below.

in:      runs/data/train.jsonl, val.jsonl (01_segment.py; their problems and answers) and a model, runs/srl/model by default (02_srl_train.py)
out:     runs/srl_rlvr/model, the best by validation, and log.jsonl beside it
command: python 03_rlvr_train.py                                                     # 2 CPU cores, about 2 min
         python 03_rlvr_train.py --model miniature/base --out runs/rlvr              # RLVR alone
         python 03_rlvr_train.py --recipe agents                                     # the agents' miniature
         torchrun --nproc-per-node 8 03_rlvr_train.py                                # 8 GPUs
"""
import inspect
import itertools
import json
import re
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module

srl = import_module("02_srl_train")  # import cannot spell a file name that begins with a digit
segmentation = srl.segmentation


@dataclass
class Config(srl.Config):
    """The knobs of 02 with RLVR's defaults, and how a problem is solved."""
    mode: str = "stepwise"              # stepwise: one step per completion | single: the whole solution in one (the paper's) | agent: one call per completion
    model: str = str(srl.HERE / "runs/srl/model")
    out: str = str(srl.HERE / "runs/srl_rlvr")
    prompts_per_batch: int = 4          # (paper: 128) small batches: as for SRL, more updates for the same rollouts
    learning_rate: float = 1e-4         # (paper: 5e-7 for 7B)
    rollouts: int = 36_000              # completions; a stepwise episode takes about six
    eval_every: int = 45                # updates between validations: few, so that chance does not choose the checkpoint
    val_samples: int = 8                # 60 problems are few: eight samples each tell more than one greedy answer
    unsafe_tests: bool = False          # agents: run the tests of edited code also where the system has no seccomp, under resource limits alone


# --recipe paper: as in 02, what the paper gives for RLVR and our choice for the rest
PAPER = {**srl.PAPER["srl"], "prompts_per_batch": 128, "mode": "single", "model": str(srl.HERE / "runs/paper_srl/model"),
         "out": str(srl.HERE / "runs/paper_srl_rlvr"), "rollouts": 240_000, "max_new_tokens": 4096}
RECIPES = {"paper": {"srl": PAPER}, "agents": {"srl": {
    **srl.AGENTS, "mode": "agent", "model": str(srl.HERE / "runs/agents/srl/model"), "out": str(srl.HERE / "runs/agents/srl_rlvr"),
    "max_turns": 12, "prompts_per_batch": 8, "learning_rate": 3e-4, "loss_mean": "token", "rollouts": 24_000}}}


# 1. Prompt
SOLVE_SYSTEM = (
    "Solve the problem step by step. You may draft, try and check at any point between <think> and </think>; what stands outside is your solution. "
    "Finish with the final answer in \\boxed{}."
)


def solve_prompt(example, system=SOLVE_SYSTEM, user="{problem}"):
    """Chat messages that ask for the whole solution in one completion (paper section 5, inference; the wording is ours)."""
    return [{"role": "system", "content": system}, {"role": "user", "content": srl.fill(user, example)}]


# 2. Episode
def next_turn(example, completion):
    """The example with the new step added to its partial solution, or None where the answer is boxed or nothing was written."""
    action = srl.action_of(completion)
    if not action or "\\boxed" in action:
        return None
    return {**example, "partial": example["partial"] + action + "\n"}


def unsolved(examples):
    """One example per problem, without any step, with its answer, or with its repository where the problem is an agent's."""
    kept = ("id", "problem", "answer", "system", "files", "visible", "hidden")
    return list({e["id"]: {**{name: e[name] for name in kept if name in e}, "partial": "", **({"context": []} if "context" in e else {})}
                 for e in examples}.values())


def with_answers(problems):
    """The problems whose answer can be graded; those without one (proofs, for instance) are counted, those that cannot be read named. InputError: none left."""
    answered, unread = [], []
    for p in problems:
        if str(p["answer"]).strip():
            try:
                parse_gold(p["answer"], f"problem {p['id']}: ")
                answered.append(p)
            except segmentation.InputError as error:                      # it would call every completion wrong
                unread.append(str(error))
    without = len(problems) - len(answered) - len(unread)
    print("".join(f"left out: {error}\n" for error in unread), end="")
    if without:
        print(f"{without} of {len(problems)} problems have no answer and are left out")
    if not answered:
        raise segmentation.InputError(f"none of {len(problems)} problems has an answer that can be read; give 01_segment.py the column with --answer_column")
    return answered


# 3. Reward, which is also the grade of 04
GRADE_SECONDS = 5           # for one answer. Real ones take milliseconds
LONGEST_ANSWER = 2_000      # characters. The longest of the five benchmarks has 197
DEEPEST_ANSWER = 10         # brackets inside each other. The deepest of the five has 4; the parser's time doubles with each
last_boxed = segmentation.last_boxed


def grader_process():
    """Read [gold, answer, seconds] a line, write a verdict a line: runs in a Python of its own, see start_grader, so it imports for itself.

    Its own process, because math-verify's time limits fail outside the main thread, and no limit inside Python stops a power of big integers or a
    crash of the stack. Here a forked worker does the grading under an alarm that ends it, whatever it is doing; then the next is forked.
    """
    import functools
    import json
    import os
    import re
    import resource
    import signal
    import sys

    import math_verify
    try:
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))      # bytes: a huge power fails here, before it takes the machine's memory
    except (ValueError, OSError):                                         # not on every system
        pass
    replies, sys.stdout = sys.stdout, sys.stderr                          # whatever else prints, replies stay clean
    scientific = re.compile(r"(?<![\w.])(\d+\.?\d*|\.\d+)[eE]([+-]?\d+)(?![\w.])")
    # the box alone: math-verify's other patterns would take the last fraction out of a formula that they cannot read
    box_only = [math_verify.LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=0)]

    @functools.lru_cache(maxsize=4096)                                    # the same gold serves a whole group
    def read(text, as_scientific):
        """math-verify's reading of an answer, [formula, text], [text] or []."""
        if as_scientific:
            text = scientific.sub(r"\1 \\times 10^{\2}", text)
        text = re.sub(r"(?<=\d)\.(?=\s*(?:$|[/*+)-]))", "", text.replace("°", "^\\circ"))          # 5. and 1./3
        text = re.sub(r"(?<=\d)\\[,;:!](?=\d{3})", "", text)                                      # 12\,345
        return math_verify.parse(f"\\boxed{{{text}}}", box_only, parsing_timeout=None)

    def same(gold, answer):
        if gold and answer and all(getattr(x[0], "is_number", False) and x[0].is_real for x in (gold, answer)):
            expected, given = gold[0].evalf(12), answer[0].evalf(12)
            if 0 < abs(expected) < 1e-3:                                  # math-verify rounds to 6 decimals: every 1e-10 would be right
                return abs(given - expected) <= 5e-4 * abs(expected)
        return math_verify.verify(gold, answer, timeout_seconds=None)

    def verdict(gold, answer):
        if answer is None:                                                # can the gold be read?
            return "readable" if read(gold, False) else "unparsable"
        formula = False
        # 1e-5 is a number in Minerva and e - 5 elsewhere: right in one reading is right
        for as_scientific in (False, True) if scientific.search(gold) or scientific.search(answer) else (False,):
            expected, given = read(gold, as_scientific), read(answer, as_scientific)
            formula = formula or any(not isinstance(x, str) for x in given)
            try:
                if same(expected, given):
                    return "right"
            except (ArithmeticError, TypeError, ValueError):              # what sympy says of zoo and nan: not equal in this reading
                pass
        return "wrong" if formula else "unparsable"

    verdict("x", "\\frac{1}{2}")                                          # loads the parser, which takes a second
    print(json.dumps("ready"), file=replies, flush=True)
    while True:
        worker = os.fork()
        if worker == 0:
            for line in sys.stdin:
                gold, answer, seconds = json.loads(line)
                signal.setitimer(signal.ITIMER_REAL, seconds)             # SIGALRM has no handler: the kernel ends the process
                try:
                    reply = verdict(gold, answer)
                except Exception:  # whatever the parser trips over, a model wrote it: no reading
                    reply = "unparsable"
                signal.setitimer(signal.ITIMER_REAL, 0)
                print(json.dumps(reply), file=replies, flush=True)
            os._exit(0)
        if os.waitpid(worker, 0)[1] == 0:                                 # the end of the input
            break
        print(json.dumps("unparsable"), file=replies, flush=True)         # the worker died of its answer


GRADER = f"{inspect.getsource(grader_process)}\ngrader_process()"          # read once: this file may be edited while a run goes on
LOCK = threading.Lock()


@lru_cache(maxsize=1)
def start_grader():
    """The running grader_process; one serves all, until this program ends. Raises InputError where it does not start."""
    process = subprocess.Popen([sys.executable, "-c", GRADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                               start_new_session=True)                    # Ctrl-C is for this program
    if not process.stdout.readline():
        raise segmentation.InputError("the grader does not start; python -c 'import math_verify' says why, pip install -r requirements.txt may mend it")
    return process


def ask_server(start, question):
    """The answer of the process that `start` starts, once for all questions. From any thread."""
    with LOCK:
        for _ in range(2):
            process = start()
            try:
                process.stdin.write(json.dumps(question).encode() + b"\n")
                if reply := process.stdout.readline():
                    return json.loads(reply)
            except BrokenPipeError:
                pass
            except BaseException:                                         # interrupted: a reply would be taken for that to the next question
                process.stdin.close()
                process.kill()
                start.cache_clear()
                raise
            start.cache_clear()                                           # it was killed from outside: once more with a new one
        raise RuntimeError("the grader died twice; is the machine out of memory?")


def ask_grader(gold, answer):
    """The grader's verdict, 'unparsable' where it has none within GRADE_SECONDS."""
    return ask_server(start_grader, [gold, answer, GRADE_SECONDS])


def too_much(answer):
    """Longer or more deeply nested than any answer."""
    depths = itertools.accumulate((c in "([{") - (c in ")]}") for c in answer)
    return len(answer) > LONGEST_ANSWER or max(depths, default=0) > DEEPEST_ANSWER


def plain(answer):
    """The text of an answer in one spelling: E_{1}, E_{2} is E_1,E_2."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)|\\(?:left|right)(?![a-z])", "", re.sub(r"\{(\w)\}", r"\1", answer))


def parse_gold(answer, problem=""):
    """Check that a reference answer can be read. Raises InputError that names the problem where it cannot: every completion would be wrong."""
    answer = str(answer).strip()
    if last_boxed(f"\\boxed{{{answer}}}") != answer or not answer or too_much(answer) or ask_grader(answer, None) != "readable":
        raise segmentation.InputError(f"{problem}answer {answer[:80]!r}: math-verify cannot read it; give a number or a LaTeX expression")


@lru_cache(maxsize=1 << 16)
def compare(answer, gold):
    """'right', 'wrong' or 'unparsable': an answer without its box against the reference."""
    if too_much(answer):
        return "unparsable"
    return "right" if plain(answer) == plain(gold) else ask_grader(gold, answer)


def judge(completion, answer):
    """'right', 'wrong', 'unparsable' or 'no answer'. Only the text after the last </think> counts, and in it the last box.

    'unparsable': math-verify has no reading of the box, or none within GRADE_SECONDS. 04 counts and shows every verdict.
    """
    solution = srl.action_of(completion).partition("<think>")[0]          # thoughts that were never closed are thoughts
    boxed = (last_boxed(solution) or "").strip()
    return compare(boxed, str(answer).strip()) if boxed else "no answer"


def is_correct(completion, answer):
    return judge(completion, answer) == "right"


def rlvr_reward(completion, example):
    """1 for a right final answer, else 0."""
    return float(is_correct(completion, example["answer"]))


# 4. Agents: calls on a repository {file name: text}, and the hidden tests as their reward
TEST_SECONDS = (2, 20)      # of processor time, and until the child is ended whatever it does; the miniature's tests take a millisecond
UNSAFE = False              # True (--unsafe_tests): run them under resource limits alone where the system has no seccomp


def sandbox_process():
    """Read [files, calls, [processor seconds, seconds], unsafe] a line, write the values of the calls a line: runs in a Python of its own, see start_sandbox.

    The files were edited by a model, so they may hold any code. Each request gets a forked child, and the kernel holds it: after the seccomp filter is in
    place the child can compute, write to one pipe and end. Every other system call fails: no file is opened, none removed, no socket, no process, no
    program, no signal. Limits on processor time and memory and the end of the time allowed do the rest. Expected values never enter the child.
    """
    import ctypes
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

    system_calls = {  # audit number of the machine; read write close mmap munmap brk rt_sigreturn mremap madvise exit futex clock_gettime exit_group getrandom
        "x86_64": (0xC000003E, (0, 1, 3, 9, 11, 12, 15, 25, 28, 60, 202, 228, 231, 318)),
        "aarch64": (0xC00000B7, (63, 64, 57, 222, 215, 214, 139, 216, 233, 93, 98, 113, 94, 278)),
    }

    def forbid_system_calls():
        """Install the filter; True where the kernel took it."""
        machine, allowed = system_calls.get(platform.machine(), (0, ()))
        if not sys.platform.startswith("linux") or not allowed:
            return False
        code = [(0x20, 0, 0, 4), (0x15, 1, 0, machine), (0x06, 0, 0, 0x80000000), (0x20, 0, 0, 0)]                # another machine's call: the end
        code += [(0x15, len(allowed) - i, 0, number) for i, number in enumerate(allowed)]                           # a number of the list: to the last line
        code += [(0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]                                                # EPERM | allowed
        text = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
        program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(text)))
        return prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, ctypes.byref(program), 0, 0) == 0                      # no new privileges; the filter

    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    class Repository:
        """Finds the modules of a repository in memory, and no others."""

        def __init__(self, files):
            self.files = files

        def find_spec(self, name, path=None, target=None):
            return importlib.machinery.ModuleSpec(name, self) if f"{name}.py" in self.files else None

        def create_module(self, spec):
            return None

        def exec_module(self, module):
            exec(compile(self.files[f"{module.__name__}.py"], f"{module.__name__}.py", "exec"), module.__dict__)

    def child(files, calls, seconds, unsafe, out):
        os.dup2(out, 3)
        os.closerange(4, 256)
        for name, limit in (("CPU", seconds[0]), ("AS", 512 << 20), ("FSIZE", 1 << 20), ("NOFILE", 16), ("CORE", 0), ("NPROC", 0)):
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (limit, limit))
        if os.geteuid() == 0:                                             # the scratch folder is all there is, and nobody owns it
            os.chroot(".")
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        if not (forbid_system_calls() or unsafe):
            os._exit(1)
        sys.meta_path[:], values = [Repository(files)], []
        for module, function, arguments in calls:
            try:
                value = getattr(importlib.import_module(module), function)(*arguments)
                values.append([type(value).__name__, value if type(value) in (int, bool, str, type(None)) else None])
            except BaseException as error:  # whatever it raises, it is the model's
                values.append(["error", type(error).__name__])
        os.write(3, json.dumps(values).encode())
        os._exit(0)

    def run(files, calls, seconds, unsafe):
        """The values of the calls, or None where the child died or took too long."""
        reading, out = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                null = os.open("/dev/null", os.O_RDWR)
                for number in range(3):
                    os.dup2(null, number)
                child(files, calls, seconds, unsafe, out)
            finally:
                os._exit(1)
        os.close(out)
        text, end = b"", time.monotonic() + seconds[1]
        while len(text) < 1 << 16 and select.select([reading], [], [], max(0, end - time.monotonic()))[0]:
            part = os.read(reading, 1 << 16)
            if not part:
                break
            text += part
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        try:
            return json.loads(text)
        except ValueError:
            return None

    probe = run({"a.py": "def f():\n    return 1\n"}, [["a", "f", []]], [5, 60], False)
    print(json.dumps("ready" if probe == [["int", 1]] else "no seccomp"), flush=True)
    for line in sys.stdin:
        print(json.dumps(run(*json.loads(line))), flush=True)


SANDBOX = f"{inspect.getsource(sandbox_process)}\nsandbox_process()"


@lru_cache(maxsize=1)
def start_sandbox():
    """The running sandbox_process: no environment, a scratch folder. Raises InputError where the system cannot hold what a model writes."""
    scratch = tempfile.TemporaryDirectory(prefix="srl-scratch-")
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", SANDBOX], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               bufsize=0, start_new_session=True, env={}, cwd=scratch.name)
    process.scratch = scratch                                             # it goes when the process is forgotten
    said = process.stdout.readline()
    if b"ready" not in said and not (said and UNSAFE):
        process.kill()
        raise segmentation.InputError("tests of edited code run behind a seccomp filter (Linux on x86-64 or arm64), which this system does not have; "
                                      "--unsafe_tests runs them under resource limits alone")
    return process


@lru_cache(maxsize=1 << 14)
def cached_values(request):
    return ask_server(start_sandbox, json.loads(request))


def failed_tests(files, tests):
    """The tests that fail, each in a sentence. A test is [module, function, arguments, expected value]."""
    calls = [test[:3] for test in tests]
    values = cached_values(json.dumps([files, calls, TEST_SECONDS, UNSAFE])) or [["error", "no result"]] * len(calls)
    sentences = []
    for (_, function, arguments, expected), (kind, value) in zip(tests, values, strict=True):
        if (kind, value) != (type(expected).__name__, expected):
            does = f"gives {value}" if kind == "error" else f"returns {value if value is not None else kind}"
            sentences.append(f"{function}({', '.join(map(repr, arguments))}) {does} but should return {expected!r}.")
    return sentences


TOOLS = {"list": (), "search": ("text",), "view": ("path",), "edit": ("path", "line", "text"), "run_tests": (), "submit": ()}   # and their parameters


def execute(name, arguments, files, tests):
    """(files, observation) after a call of a tool; an observation of a call that is none begins with "Error". `files` itself is not changed."""
    path = arguments.get("path", "")
    if not isinstance(name, str) or name not in TOOLS or set(arguments) != set(TOOLS[name]):
        return files, "Error: no such call; there are " + ", ".join(f"{tool}({', '.join(parameters)})" for tool, parameters in TOOLS.items())
    if "path" in arguments and path not in files:
        return files, f"Error: no file {path}"
    if name == "list":
        return files, "\n".join(files)
    if name == "search":
        found = [f"{file}:{n}|{line}" for file, text in files.items() for n, line in enumerate(text.splitlines(), 1) if arguments["text"] in line]
        return files, "\n".join(found[:20]) or "not found"
    if name == "view":
        return files, "\n".join(f"{n}|{line}" for n, line in enumerate(files[path].splitlines(), 1))
    if name == "edit":
        lines, number = files[path].splitlines(), arguments["line"]
        if not (number.isascii() and number.isdigit() and 1 <= int(number[:9]) <= len(lines)):
            return files, f"Error: {path} has lines 1 to {len(lines)}"
        lines[int(number) - 1] = arguments["text"]
        return {**files, path: "\n".join(lines) + "\n"}, "edited"
    if name == "run_tests":
        failed = failed_tests(files, tests)
        return files, failed[0] if failed else "all tests pass"
    return files, "submitted"


CONTEXT_PAIRS = 2           # calls with their observations that an agent sees, as 01_segment.py cuts them (paper: 2)


def next_call(example, completion):
    """The example after the call: files changed, call and observation in its context. None where the agent submits."""
    action = srl.action_of(completion).partition("<think>")[0].strip()     # thoughts that were never closed are thoughts
    name, arguments = segmentation.parse_call(action) or ("", {})
    if name == "submit" and not arguments:
        return None
    files, observation = execute(name, arguments if isinstance(arguments, dict) else {}, example["files"], example["visible"])
    context = [*example["context"], {"role": "assistant", "content": action}, {"role": "user", "content": observation}]
    return {**example, "files": files, "context": context[-2 * CONTEXT_PAIRS:]}


def judge_calls(turns, problem):
    """('right' | 'wrong' | 'no answer', invalid calls) of an agent's turns: they are played again, and where it submitted the hidden tests decide."""
    example, invalid = {**problem, "context": []}, 0
    for turn in turns:
        following = next_call(example, turn)
        if following is None:
            return "wrong" if failed_tests(example["files"], problem["hidden"]) else "right", invalid
        example, invalid = following, invalid + following["context"][-1]["content"].startswith("Error")
    return "no answer", invalid


def agent_reward(completion, example):
    """1 where the last call submits and the hidden tests pass on the files as they then are, -1 where it is no call of a tool, else 0."""
    if (segmentation.parse_call(srl.action_of(completion)) or ("",))[0] not in TOOLS:
        return -1.0
    return float(next_call(example, completion) is None and not failed_tests(example["files"], example["hidden"]))


def with_tests(problems, place=""):
    """The problems, each of which has to be a repository with tests. Raises InputError that names the first that is none."""
    for p in problems:
        if not (isinstance(p.get("files"), dict) and p.get("hidden") and "visible" in p):
            raise segmentation.InputError(f"{place}problem {p['id']}: no files, visible and hidden tests; --mode agent runs calls on a repository")
    start_sandbox()
    return problems


# of each mode: its prompt, how the context is extended, its reward, and the check of its problems
MODES = {"stepwise": (srl.srl_prompt, next_turn, rlvr_reward, with_answers), "single": (solve_prompt, None, rlvr_reward, with_answers),
         "agent": (srl.srl_prompt, next_call, agent_reward, with_tests)}


def main():
    global UNSAFE
    srl.join_ranks()
    cfg = srl.parse_flags(Config(), __doc__.split("\n")[0], RECIPES)
    UNSAFE = cfg.unsafe_tests
    make_prompt, extend, reward, checked = MODES[cfg.mode]
    examples, val_examples = (checked(unsolved(part)) for part in srl.read_examples(cfg, ("id", "problem")))
    srl.train(cfg, examples, val_examples, srl.with_prompt_file(make_prompt, cfg.prompt_file), reward, extend)


if __name__ == "__main__":
    segmentation.run_main(main)
