"""Ablations of SRL: 02's own training with one function exchanged. A variant is a line of VARIANTS.

What differs from SRL only in flags of 01 and 02 needs no line here, see STUDY in methods.py.

in:      as of 02_srl_train.py
out:     as of 02_srl_train.py
command: python miniature/variants.py equation --out runs/equation      # then the flags of 02
"""
import re
import sys
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from statistics import fmean
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from engine.chat import encode_target, encode_texts, eos_ids, extend_solution, prompt_text  # noqa: E402
from engine.files import InputError, run_main  # noqa: E402
from engine.logprobs import token_logprobs  # noqa: E402
from engine.policy import load_policy  # noqa: E402

rlvr = import_module("03_rlvr_train")
srl = rlvr.srl
ORIGINAL = {"similarity": srl.similarity, "group_advantages": srl.group_advantages,
            "score_episodes": srl.score_episodes, "train": srl.train}


# 1. What is compared, and how: in place of 02's similarity(action, expert_action, autojunk) in [0, 1]
def compared_by(part, compare=ORIGINAL["similarity"]):
    """The similarity of part(action) and part(expert's action), texts or tuples."""
    def similarity(action, expert_action, autojunk=False):
        return compare(part(action), part(expert_action), autojunk)
    return similarity


def tokens(action):
    """Numbers, words and other characters: a digit or a letter that differs costs its whole token."""
    return tuple(re.findall(r"\d+|[^\W\d_]+|\S", action))


def without_title(action):
    return re.sub(r"^(\s*\d+\.\s*)\*\*.*?\*\*\s*", r"\1", action)


def equation(action):
    """The equations and boxes of an action; all of it where it has none."""
    found = re.findall(r"\\boxed\{[^{}]*\}|[-+()0-9x /]*=[-+()0-9x /]*", action)
    return " ".join(text.strip() for text in found) or action


def exact(action, expert_action, autojunk=False):
    return float(action == expert_action)


def formulas(action):
    """An action without its words: numbers, signs, single letters, LaTeX commands. For any mathematics."""
    return " ".join(re.sub(r"(?<![\\\w])[^\W\d_]{2,}", " ", action).split())


def average(*similarities):
    """The mean of several functions like similarity."""
    def similarity(action, expert_action, autojunk=False):
        return fmean(part(action, expert_action, autojunk) for part in similarities)
    return similarity


def fourth_power(compare):
    """Spreads what is almost right: 0.98 becomes 0.92, 0.9 becomes 0.66."""
    def similarity(action, expert_action, autojunk=False):
        return compare(action, expert_action, autojunk) ** 4
    return similarity


# 2. Advantage and dynamic sampling: in place of 02's functions of rewards (P, G)
def rank_advantages(rewards, eps=1e-6):
    """rewards (P, G) -> advantages (P, G) of their ranks in the group; equal rewards share the mean rank."""
    below = (rewards[:, :, None] > rewards[:, None, :]).sum(-1)                 # (P, G)
    equal = (rewards[:, :, None] == rewards[:, None, :]).sum(-1)
    return ORIGINAL["group_advantages"](below + equal / 2, eps)


def all_groups(rewards, min_std):
    """rewards (P, G) -> (P,) bool: none is dropped; equal rewards have advantage 0 and dilute the mean."""
    return torch.ones(len(rewards), dtype=torch.bool)


# 3. The likelihood of the expert's step after the sampled thoughts: in place of 02's score_episodes
FLOOR = -2.0            # of the mean log-probability of a token; below it all thoughts are equally useless
scorer = lru_cache(load_policy)


@torch.no_grad()
def likelihoods(policy, tokenizer, requests, size=64):
    """The mean log-probability of a token of each (prompt, target); EOS is part of the target."""
    prompts, means = encode_texts(tokenizer, [prompt for prompt, _ in requests]), []
    targets = [[*encode_target(tokenizer, *request), eos_ids(policy, tokenizer)[0]] for request in requests]
    for begin in range(0, len(requests), size):
        pairs = zip(prompts[begin:begin + size], targets[begin:begin + size], strict=True)
        logprobs, mask, _ = token_logprobs(policy, [(prompt, [target]) for prompt, target in pairs])  # (B, T)
        means += ((logprobs * mask).sum(1) / mask.sum(1)).tolist()
    return means


def score_by_likelihood(policy, tokenizer, seeded, G, make_prompt, reward_fn, extend, cfg, temperature=None):
    """As score_episodes of 02; the reward is 1 + mean log-probability of the expert's step, at least -1.

    It judges the thoughts: the sampled step is not read, only trained with its thoughts' advantage. A broken
    format has -1. The scorer is the policy before training: a fixed reward, which no policy can raise by
    becoming sure of the expert's form without a thought. Validation is 02's: exact steps, one greedy sample.
    """
    if temperature is not None:
        return ORIGINAL["score_episodes"](policy, tokenizer, seeded, G, make_prompt, reward_fn, extend, cfg,
                                          temperature)
    seeds, examples = zip(*seeded, strict=True)
    groups = srl.run_episodes(policy, tokenizer, examples, G, make_prompt, extend, cfg, seeds=seeds)
    frozen, requests = scorer(cfg.model, cfg.device, cfg.dtype)[0], {}
    for episode in [episode for group in groups for episode in group]:
        text, e = episode.turns[-1].text, episode.example
        if srl.parse_completion(text, e["action"]):
            thoughts = text[:text.index("</think>") + len("</think>")] + "\n"
            requests[e["id"], e["k"], text] = prompt_text(tokenizer, make_prompt(e)) + thoughts, e["action"]
    found = dict(zip(requests, likelihoods(frozen, tokenizer, [*requests.values()]), strict=True))

    def reward(e, text):
        return 1 + max(FLOOR, found.get((e["id"], e["k"], text), FLOOR))
    return [(group, [reward(e.example, e.turns[-1].text) for e in group]) for group in groups]


# 4. One reward for the whole solution: in place of 02's train
def whole_reward(completion, example):
    """Similarity of the solution that an episode has written to the expert's whole solution (an ablation of
    the paper); -1 where the format of the last step is broken."""
    parsed = srl.parse_completion(completion)
    if parsed is None:
        return -1.0
    return ORIGINAL["similarity"](extend_solution(example["partial"], parsed[1]), example["action"])


def whole_problems(examples):
    """One example for each problem, without any step; its action is the expert's whole solution."""
    ordered = sorted(examples, key=lambda e: e["k"])
    whole = {e["id"]: extend_solution(e["partial"], e["action"]) for e in ordered}   # the last step's stays
    return [{**problem, "action": whole[problem["id"]]} for problem in rlvr.problem_starts(examples)]


def train_whole(cfg, examples, val_examples, make_prompt, reward_fn):
    """A completion is still a step, since the base writes no more; all share the advantage of the whole."""
    ORIGINAL["train"](cfg, whole_problems(examples), whole_problems(val_examples), make_prompt, whole_reward,
                      rlvr.next_turn)


VARIANTS = {    # name: what of 02 is exchanged
    "equation": {"similarity": compared_by(equation)},
    "formulas": {"similarity": compared_by(formulas)},
    "formulas_4": {"similarity": fourth_power(compared_by(formulas))},
    "both_4": {"similarity": fourth_power(average(ORIGINAL["similarity"], compared_by(formulas)))},
    "likelihood": {"score_episodes": score_by_likelihood},
    "exact": {"similarity": exact},
    "formulas_exact": {"similarity": compared_by(formulas, exact)},
    "tokens": {"similarity": compared_by(tokens)},
    "no_title": {"similarity": compared_by(without_title)},
    "fourth_power": {"similarity": fourth_power(ORIGINAL["similarity"])},
    "ranks": {"group_advantages": rank_advantages},
    "all_groups": {"informative_groups": all_groups},
    "whole": {"train": train_whole},
}


def main():
    name = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if name not in VARIANTS:
        raise InputError(f"{name!r} is no variant; give one of {', '.join(VARIANTS)}, then the flags of 02")
    # the name is part of a run's identity: another variant does not continue it
    with patch.multiple(srl, **VARIANTS[name]), patch.dict(vars(srl.srl_reward), variant=name):
        srl.main()


if __name__ == "__main__":
    run_main(main)
