"""Stage 3: RLVR. The GRPO of stage 2 with a verifiable reward: 1 if the final answer is right, else 0.

Sampling, dynamic sampling, loss and loop are those of 02. --mode stepwise: one completion per step; single:
one per problem (paper); agent: one per call, which is executed, reward 1 where the hidden tests pass.

in:      runs/data/train.jsonl, val.jsonl (01_segment.py) and a model, runs/srl/model (02_srl_train.py)
out:     runs/srl_rlvr/model, the best by validation, and log.jsonl beside it
command: python 03_rlvr_train.py                                               # 2 CPU cores, about 1 min
         python 03_rlvr_train.py --model miniature/base --out runs/rlvr        # RLVR alone
         python 03_rlvr_train.py --recipe agents                               # the agents' miniature
"""
from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from engine.agents import sandbox
from engine.agents.tools import TOOLS, execute
from engine.agents.trajectories import CALL_OR_THOUGHT, parse_call
from engine.chat import extend_solution
from engine.distributed import join_ranks
from engine.files import InputError, run_main
from engine.flags import parse_flags
from engine.grader import compare, with_answers
from engine.problems import last_boxed, without_thoughts

srl = import_module("02_srl_train")  # import cannot spell a file name that begins with a digit


@dataclass
class Config(srl.GRPOConfig):
    """The knobs of 02 with other defaults, and how a problem is solved."""
    mode: Literal["stepwise", "single", "agent"] = "stepwise"   # a completion: a step | all (paper) | a call
    model: str = str(srl.HERE / "runs/srl/model")           # starting policy (paper: after SRL)
    out: str = str(srl.HERE / "runs/srl_rlvr")             # folder for everything that this run writes
    prompts_per_batch: int = 4          # P (paper: 128); small batches: more updates for the same rollouts
    learning_rate: float = 1e-4         # of Adam (paper: 5e-7 for 7B)
    rollouts: int = 18_000              # completions; a stepwise episode takes about six
    eval_every: int = 45                # updates between validations (few: less selection by chance)
    val_samples: int = 8                # completions of a validation problem; 1: greedy
    unsafe_tests: bool = False          # agents: without seccomp, run tests under resource limits alone


# --recipe paper: as in 02, the paper's values for RLVR and our choice for the rest
PAPER = {**srl.PAPER["srl"], "mode": "single", "model": str(srl.HERE / "runs/paper_srl/model"),
         "out": str(srl.HERE / "runs/paper_srl_rlvr"), "prompts_per_batch": 128, "rollouts": 240_000,
         "max_new_tokens": 4096}
AGENTS = {**srl.AGENTS, "mode": "agent", "model": str(srl.HERE / "runs/agents/srl/model"),
          "out": str(srl.HERE / "runs/agents/srl_rlvr"), "prompts_per_batch": 8, "rollouts": 24_000,
          "max_turns": 12, "learning_rate": 3e-4, "loss_mean": "token"}
RECIPES = {"paper": PAPER, "agents": AGENTS}
CONTEXT_PAIRS = 2       # calls with observations in the prompt; must equal 01's --context_pairs (paper: 2)


# 1. Prompt
SOLVE_SYSTEM = ("Solve the problem step by step. You may draft, try and check at any point between <think> and </think>; what stands outside is "
                "your solution. Finish with the final answer in \\boxed{}.")


def solve_prompt(example, system=SOLVE_SYSTEM, user="{problem}"):
    """Chat messages that ask for the whole solution in one completion (paper section 5; our wording)."""
    return [{"role": "system", "content": system}, {"role": "user", "content": srl.fill(user, example)}]


# 2. Episode
def solution_of(completion):
    """What a completion has outside its thoughts, which may not be closed."""
    return srl.action_of(completion).partition("<think>")[0].strip()


def next_turn(example, completion):
    """The example with the new step added; None where the answer is boxed or there is no step."""
    action = solution_of(completion)
    if not action or "\\boxed" in action or last_boxed(action) is not None:
        return None
    return {**example, "partial": extend_solution(example["partial"], action)}


def problem_starts(examples):
    """One example for each problem, without any step; of an agent's problem with its repository and tests."""
    problems, fields = {}, ("id", "problem", "answer", "system", "files", "visible", "hidden")
    for e in examples:
        start = e if e.get("k") == 1 else problems.get(e["id"], {})     # partial: the preamble
        empty = {"partial": start.get("partial", ""), **({"context": []} if "context" in e else {})}
        problems[e["id"]] = {**{name: e[name] for name in fields if name in e}, **empty}
    return list(problems.values())


# 3. Reward; 04 grades with the same functions
def judge(completion, answer):
    """'right', 'wrong', 'unparsable' or 'no answer', of the last box after the last </think>."""
    boxed = (last_boxed(solution_of(completion)) or "").strip()
    return compare(boxed, str(answer).strip()) if boxed else "no answer"


def is_correct(completion, answer):
    return judge(completion, answer) == "right"


def rlvr_reward(completion, example):
    """1 for a right final answer, else 0."""
    return float(is_correct(completion, example["answer"]))


# 4. Agents: the episode, whose calls are executed on a repository {file name: text}, and the reward
def next_call(example, completion):
    """The example after a call: files edited, call and observation in its context. None: it submits."""
    action = without_thoughts(completion, CALL_OR_THOUGHT).strip()      # a call may hold tags of thoughts
    name, arguments = parse_call(action)
    if name == "submit" and not arguments:
        return None
    files, observation = execute(name, arguments, example["files"], example["visible"])
    pair = [{"role": "assistant", "content": action}, {"role": "user", "content": observation}]
    return {**example, "files": files, "context": [*example["context"], *pair][-2 * CONTEXT_PAIRS:]}


def judge_calls(turns, problem):
    """('right' | 'wrong' | 'no answer', invalid calls) of an agent's turns, by executing them again."""
    example, invalid = {**problem, "context": []}, 0
    for turn in turns:
        following = next_call(example, turn)
        if following is None:
            return "wrong" if sandbox.failed_tests(example["files"], problem["hidden"]) else "right", invalid
        example = following
        invalid += following["context"][-1]["content"].startswith("Error")
    return "no answer", invalid


def agent_reward(completion, example):
    """1 where the last call submits and the hidden tests pass, -1 where it is no call of a tool, else 0."""
    name, _ = parse_call(without_thoughts(completion, CALL_OR_THOUGHT))
    if name not in TOOLS:
        return -1.0
    submitted = next_call(example, completion) is None
    return float(submitted and not sandbox.failed_tests(example["files"], example["hidden"]))


MODES = {   # prompt, function that extends the context, reward, check of the problems
    "stepwise": (srl.srl_prompt, next_turn, rlvr_reward, with_answers),
    "single": (solve_prompt, None, rlvr_reward, with_answers),
    "agent": (srl.srl_prompt, next_call, agent_reward, sandbox.with_tests),
}


def main():
    join_ranks()
    cfg = parse_flags(Config(), __doc__.split("\n")[0], RECIPES)
    sandbox.UNSAFE = cfg.unsafe_tests
    make_prompt, extend, reward, check = MODES[cfg.mode]
    examples, val_examples = srl.read_examples(cfg, ("id", "problem"))
    for e in examples if cfg.mode == "agent" else ():
        if "k" in e and len(e.get("context", ())) != 2 * min(CONTEXT_PAIRS, e["k"] - 1):
            raise InputError(f"{cfg.data}, problem {e['id']}: a context of {len(e['context']) // 2} calls; "
                             f"make the data with --context_pairs {CONTEXT_PAIRS}")
    problems, val_examples = check(problem_starts(examples)), check(problem_starts(val_examples))
    srl.train(cfg, problems, val_examples, srl.with_prompt_file(make_prompt, cfg.prompt_file), reward, extend)


if __name__ == "__main__":
    run_main(main)
