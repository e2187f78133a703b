"""Stage 3: RLVR. The GRPO of stage 2 with a verifiable reward: 1 if the final answer is right, else 0.

Everything but the task comes from 02: rollout, dynamic sampling (with 0/1 rewards: drop groups all right or all wrong), loss, loop. From any starting
model, so RLVR alone, SFT then RLVR and SRL then RLVR are one flag apart. In stepwise mode an episode asks for one step at a time and drops earlier
thoughts; its turns share the advantage of its outcome. Single mode is the paper's: one completion for the whole problem.

Differences from the paper: it prints neither prompt nor reward values of RLVR; ours are below.

in:      runs/data/train.jsonl, val.jsonl (01_segment.py; their problems and answers) and a model, runs/srl/model by default (02_srl_train.py)
out:     runs/srl_rlvr/model, the best by validation, and log.jsonl beside it
command: python 03_rlvr_train.py                                                     # 2 CPU cores, about 5 min
         python 03_rlvr_train.py --model miniature/base --out runs/rlvr              # RLVR alone
"""
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module

import math_verify

srl = import_module("02_srl_train")  # import cannot spell a file name that begins with a digit
segmentation = srl.segmentation


@dataclass
class Config(srl.Config):
    """The knobs of 02 with RLVR's defaults, and how a problem is solved."""
    mode: str = "stepwise"              # stepwise: one step per completion | single: the whole solution in one completion (the paper's)
    model: str = str(srl.HERE / "runs/srl/model")
    out: str = str(srl.HERE / "runs/srl_rlvr")
    prompts_per_batch: int = 12         # (paper: 128)
    learning_rate: float = 1e-4         # (paper: 5e-7 for 7B)
    rollouts: int = 36_000              # completions; a stepwise episode takes about six
    eval_every: int = 10                # updates between validations
    val_samples: int = 4                # 60 problems are few: four samples each tell more than one greedy answer


# 1. Prompt
SOLVE_SYSTEM = (
    "Solve the problem step by step. You may draft, try and check at any point between <think> and </think>; what stands outside is your solution. "
    "Finish with the final answer in \\boxed{}."
)


def solve_prompt(example):
    """Chat messages that ask for the whole solution in one completion (paper section 5, inference; the wording is ours)."""
    return [{"role": "system", "content": SOLVE_SYSTEM}, {"role": "user", "content": example["problem"]}]


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
    return list({e["id"]: {"id": e["id"], "problem": e["problem"], "partial": "", "answer": e["answer"]} for e in examples}.values())


# 3. Reward, which is also the grade of 04
def last_boxed(text):
    r"""The content of the last complete \boxed{..}, or None."""
    begin = text.rfind("\\boxed{")
    while begin >= 0:
        depth = 0
        for i in range(begin + len("\\boxed"), len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return text[begin + len("\\boxed{"):i]
        begin = text.rfind("\\boxed{", 0, begin)
    return None


@lru_cache(maxsize=1 << 14)
def parse_gold(answer):
    """math-verify's reading of a reference answer. Raises InputError where it has none: every completion would be wrong."""
    parsed = math_verify.parse(f"\\boxed{{{answer}}}", parsing_timeout=60)  # the first call of a process loads the parser, which takes seconds
    if not parsed:
        raise segmentation.InputError(f"answer {answer!r}: math-verify cannot read it; give a number or a LaTeX expression")
    return parsed


@lru_cache(maxsize=1 << 16)
def judge(completion, answer):
    """'right', 'wrong', 'unparsable' or 'no answer'. Only the text after the last </think> counts, and in it the last box.

    math-verify's time limits use signals: call it from the main thread.
    """
    boxed = last_boxed(srl.action_of(completion))
    if boxed is None or not boxed.strip():
        return "no answer"
    if boxed.strip() == answer.strip():
        return "right"
    gold, parsed = parse_gold(answer), math_verify.parse(f"\\boxed{{{boxed}}}")
    if not parsed:
        return "unparsable"
    return "right" if math_verify.verify(gold, parsed) else "wrong"


def is_correct(completion, answer):
    return judge(completion, answer) == "right"


def rlvr_reward(completion, example):
    """1 for a right final answer, else 0."""
    return float(is_correct(completion, example["answer"]))


def main():
    cfg = srl.parse_flags(Config(), __doc__.split("\n")[0])
    if cfg.mode not in MODES:
        raise segmentation.InputError(f"--mode {cfg.mode}: must be one of {', '.join(MODES)}")
    examples, val_examples = (unsolved(part) for part in srl.read_examples(cfg, ("id", "problem", "answer")))
    for example in examples + val_examples:
        parse_gold(example["answer"])
    make_prompt, extend = MODES[cfg.mode]
    srl.train(cfg, examples, val_examples, make_prompt, rlvr_reward, extend)


if __name__ == "__main__":
    segmentation.run_main(main)
