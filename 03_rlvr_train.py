"""Stage 3: RLVR. The GRPO of stage 2 with a verifiable reward: 1 if the final answer is right, else 0.

Everything but the task comes from 02: rollout, dynamic sampling (with 0/1 rewards: drop groups all right or all wrong), loss, loop. From any starting
model, so RLVR alone, SFT then RLVR and SRL then RLVR are one flag apart. In stepwise mode an episode asks for one step at a time and drops earlier
thoughts; its turns share the advantage of its outcome. Single mode is the paper's: one completion for the whole problem.

Differences from the paper: it prints neither prompt nor reward values of RLVR; ours are below.

in:      runs/data/train.jsonl, val.jsonl (01_segment.py; their problems and answers) and a model, runs/srl/model by default (02_srl_train.py)
out:     runs/srl_rlvr/model, the best by validation, and log.jsonl beside it
command: python 03_rlvr_train.py                                                     # 2 CPU cores, about 7 min
         python 03_rlvr_train.py --model miniature/base --out runs/rlvr              # RLVR alone
"""
import inspect
import itertools
import json
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module

srl = import_module("02_srl_train")  # import cannot spell a file name that begins with a digit
segmentation = srl.segmentation


@dataclass
class Config(srl.Config):
    """The knobs of 02 with RLVR's defaults, and how a problem is solved."""
    mode: str = "stepwise"              # stepwise: one step per completion | single: the whole solution in one completion (the paper's)
    model: str = str(srl.HERE / "runs/srl/model")
    out: str = str(srl.HERE / "runs/srl_rlvr")
    prompts_per_batch: int = 4          # (paper: 128) small batches: as for SRL, more updates for the same rollouts
    learning_rate: float = 1e-4         # (paper: 5e-7 for 7B)
    rollouts: int = 36_000              # completions; a stepwise episode takes about six
    eval_every: int = 45                # updates between validations: few, so that chance does not choose the checkpoint
    val_samples: int = 8                # 60 problems are few: eight samples each tell more than one greedy answer


# --recipe paper: as in 02, what the paper gives for RLVR and our choice for the rest
PAPER = {**srl.PAPER["srl"], "prompts_per_batch": 128, "mode": "single", "model": str(srl.HERE / "runs/paper_srl/model"),
         "out": str(srl.HERE / "runs/paper_srl_rlvr"), "rollouts": 240_000, "max_new_tokens": 4096}


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


MODES = {"stepwise": (srl.srl_prompt, next_turn), "single": (solve_prompt, None)}


def unsolved(examples):
    """One example per problem, without any step, with its answer."""
    return list({e["id"]: {"id": e["id"], "problem": e["problem"], "partial": "", "answer": e.get("answer", "")} for e in examples}.values())


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
GRADER_LOCK = threading.Lock()


@lru_cache(maxsize=1)
def start_grader():
    """The running grader_process; one serves all, until this program ends. Raises InputError where it does not start."""
    process = subprocess.Popen([sys.executable, "-c", GRADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
                               start_new_session=True)                    # Ctrl-C is for this program
    if not process.stdout.readline():
        raise segmentation.InputError("the grader does not start; python -c 'import math_verify' says why, pip install -r requirements.txt may mend it")
    return process


def ask_grader(gold, answer):
    """The grader's verdict, 'unparsable' where it has none within GRADE_SECONDS. From any thread."""
    with GRADER_LOCK:
        for _ in range(2):
            process = start_grader()
            try:
                process.stdin.write(json.dumps([gold, answer, GRADE_SECONDS]).encode() + b"\n")
                if reply := process.stdout.readline():
                    return json.loads(reply)
            except BrokenPipeError:
                pass
            except BaseException:                                         # interrupted: a reply would be taken for that to the next question
                process.stdin.close()
                process.kill()
                start_grader.cache_clear()
                raise
            start_grader.cache_clear()                                    # it was killed from outside: once more with a new one
        raise RuntimeError("the grader died twice; is the machine out of memory?")


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


def main():
    cfg = srl.parse_flags(Config(), __doc__.split("\n")[0], {"srl": PAPER})
    examples, val_examples = (with_answers(unsolved(part)) for part in srl.read_examples(cfg, ("id", "problem")))
    make_prompt, extend = MODES[cfg.mode]
    srl.train(cfg, examples, val_examples, srl.with_prompt_file(make_prompt, cfg.prompt_file), rlvr_reward, extend)


if __name__ == "__main__":
    segmentation.run_main(main)
