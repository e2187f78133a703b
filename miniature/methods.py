"""The methods and variants of the study: a line each. To add a variant, add a line to STUDY.

in:      nothing
out:     nothing: study.py runs the commands, study_tables.py shows the results
"""
import itertools
from pathlib import Path

ROOT = Path(__file__).parent.parent
METHODS = ("base", "srl", "srl_rlvr", "sft_outline", "sft_reasoning", "sft_rlvr", "rlvr", "reverse_curriculum",
           "prefix_rlvr", "sft_student", "rejection")
NEEDS = {"srl_rlvr": "srl", "sft_rlvr": "sft_outline"}      # starts from the model of another method
SRL, RLVR, VARIANT = "02_srl_train.py", "03_rlvr_train.py", "miniature/variants.py"
REJECTION, CURRICULUM = "miniature/rejection.py", "miniature/curriculum.py"
SFT = (SRL, "--method", "sft", "--sft_target")
# chosen on the 60 validation problems (README, "How the settings were chosen")
TRAIN = {
    "srl": (SRL,),
    "srl_rlvr": (RLVR, "--rollouts", "60000"),
    # as many completions as SRL and RLVR together; where no group has a signal, the batch only decides how
    # many are sampled at a time
    "rlvr": (RLVR, "--rollouts", "108000", "--prompts_per_batch", "16"),
    "sft_rlvr": (RLVR, "--rollouts", "108000"),
    "reverse_curriculum": (CURRICULUM, "--learning_rate", "3e-4"),
    "prefix_rlvr": (CURRICULUM, "--order", "random", "--learning_rate", "3e-4"),
    "sft_outline": (*SFT, "outline", "--learning_rate", "3e-3"),
    "sft_reasoning": (*SFT, "reasoning", "--learning_rate", "3e-3", "--max_new_tokens", "400"),
    "sft_student": (*SFT, "outline", "--learning_rate", "1e-3"),        # on targets of its own, see DATA
    "rejection": (REJECTION,),
}
# a method and the number of expert problems that it has
FEWER = [*((method, 50) for method in ("srl", "sft_outline", "rejection")), ("sft_outline", 150),
         ("sft_outline", 400)]
# SRL from a base with fewer batches of pretraining than the committed one's 13,800
BASES = {f"srl_base_{n}": n for n in (1700, 3400)}
# baselines and ablations of SRL, one line each, in the order of their jobs
STUDY = {
    "srl": (SRL,),                      # with fresh seeds, added to those of the table
    "reverse_curriculum_low": (CURRICULUM,),                # the rate of RLVR after SRL
    "best_of_8": (REJECTION, "--keep", "best"),
    **{name: (VARIANT, name) for name in
       ("all_groups", "equation", "likelihood", "exact", "tokens", "no_title")},
    "both_4_p8": (VARIANT, "both_4", "--prompts_per_batch", "8"),
    "formulas_4_p8": (VARIANT, "formulas_4", "--prompts_per_batch", "8"),
    "formulas_4_p4": (VARIANT, "formulas_4", "--prompts_per_batch", "4"),
    "formulas_4_g16": (VARIANT, "formulas_4", "--group_size", "16", "--prompts_per_batch", "4"),
    "masked": (SRL, "--max_tries", "1"),
    "formulas_4_masked": (VARIANT, "formulas_4", "--max_tries", "1"),
    "exact_masked": (VARIANT, "exact", "--max_tries", "1"),
    "formulas_exact_masked": (VARIANT, "formulas_exact", "--max_tries", "1"),
    "g4": (SRL, "--group_size", "4", "--prompts_per_batch", "32"),      # 128 completions in a batch, as SRL
    "g16": (SRL, "--group_size", "16", "--prompts_per_batch", "8"),
    "g32": (SRL, "--group_size", "32", "--prompts_per_batch", "4"),
    "p4": (SRL, "--prompts_per_batch", "4"),
    "p48": (SRL, "--prompts_per_batch", "48"),
    "eps0": (SRL, "--eps", "0"),
    "eps5": (SRL, "--eps", "0.05"),
    **{name: (VARIANT, name) for name in ("fourth_power", "ranks", "formulas", "formulas_4", "both_4")},
    "minibatches4": (SRL, "--minibatches", "4"),
    "token_mean": (SRL, "--loss_mean", "token"),
    **{name: (SRL,) for name in ("targets", "title_hint", "detours")},      # on data of their own, see DATA
    "detours_masked": (SRL, "--max_tries", "1"),
    "detours_formulas_4_masked": (VARIANT, "formulas_4", "--max_tries", "1"),
    "whole": (VARIANT, "whole", "--prompts_per_batch", "4"),
    **{f"{method}_{n}": TRAIN[method] for method, n in FEWER},
    **dict.fromkeys(BASES, (SRL,)),
}
# those of the world with free wording
WORDED = ("srl", "best_of_8", "equation", "likelihood", "tokens", "no_title", "fourth_power", "ranks",
          "formulas", "formulas_4", "both_4", "formulas_4_p8", "masked", "formulas_4_masked",
          "formulas_exact_masked", "detours_formulas_4_masked")
# folder of a method's examples, where it is not `data`; flags of 01 for a folder (others: make_examples)
DATA = {"sft_student": "data_student", "targets": "data_literal", "title_hint": "data_title",
        **dict.fromkeys(("detours", "detours_masked", "detours_formulas_4_masked"), "data_detours"),
        **{f"{method}_{n}": f"data_{n}" for method, n in FEWER}}
SEGMENT = {"data": (), "data_literal": ("--targets", "literal"), "data_title": ("--title_hint",)}
RECIPE = ("--recipe", "agents")
SIZES = {SRL: 48_000, VARIANT: 48_000, REJECTION: 48_000, RLVR: 36_000, CURRICULUM: 108_000}
FULL = ("--k", "8", "--limit", "None", "--benchmarks")      # of 04, whatever its defaults are
EQUATIONS = {"base": "miniature/base", "runs": "runs/study", "results": "results/miniature", "segment": (),
             "detours": (), "mode": (), "benchmarks": ("short", "hard", "long", "large"), "study_benchmarks": ("hard", "long"),
             "sizes": SIZES, "train": TRAIN, "study": STUDY}
# of each world: base model, runs and results, flags of 01 and 04, rollouts, and the command of each method
WORLDS = {
    "equations": EQUATIONS,
    "worded": {**EQUATIONS, "base": "miniature/worded/base", "runs": "runs/study_worded",
               "results": "results/worded", "segment": ("--data", "miniature/worded/expert.jsonl"),
               "detours": ("--worded",), "study": {name: STUDY[name] for name in WORDED},
               "benchmarks": ("hard", "long"),
               "train": {name: TRAIN[name] for name in TRAIN if name != "sft_student"}},
    "agents": {"base": "miniature/agents/base", "runs": "runs/study_agents", "results": "results/agents",
               "segment": ("--trajectories", "--data", "miniature/agents/expert.jsonl", "--num_val", "60"),
               "mode": ("--mode", "agent"), "study_benchmarks": ("modules",),
               "benchmarks": ("modules", "modules_oracle", "larger", "larger_oracle", "kinds", "kinds_oracle"),
               "sizes": {**SIZES, RLVR: 24_000, CURRICULUM: 72_000},
               "train": {"srl": (SRL, *RECIPE), "srl_rlvr": (RLVR, *RECIPE),
                         # as many completions as SRL and RLVR together
                         "rlvr": (RLVR, *RECIPE, "--rollouts", "72000"),
                         "reverse_curriculum": (CURRICULUM, *RECIPE),
                         "prefix_rlvr": (CURRICULUM, *RECIPE, "--order", "random"),
                         "sft_outline": (SRL, *RECIPE, "--method", "sft")},
               "study": {"best_of_8": (REJECTION, *RECIPE, "--keep", "best")}},
}
# what --tune tries: flags that are added to those of a method or replace them
RATES, LOWER = (tuple(("--learning_rate", rate) for rate in rates)
                for rates in (("3e-4", "1e-3", "3e-3"), ("1e-4", "3e-4", "1e-3")))
SHORT, P12 = ("--rollouts", "36000"), ("--prompts_per_batch", "12")
GRID = {
    "equations": {"srl": ((), ("--eps", "0.01"), ("--decay", "0"), ("--learning_rate", "1.5e-4"),
                          ("--learning_rate", "6e-4"), ("--prompts_per_batch", "48"),
                          ("--prompts_per_batch", "48", "--learning_rate", "6e-4"), ("--loss_mean", "token")),
                  "sft_outline": RATES, "sft_reasoning": RATES[1:], "sft_student": RATES, "rejection": RATES,
                  "srl_rlvr": ((), SHORT, (*SHORT, "--learning_rate", "5e-5"),
                               (*SHORT, "--learning_rate", "2e-4"), (*SHORT, *P12),
                               (*SHORT, *P12, "--learning_rate", "2e-4"),
                               (*SHORT, "--loss_mean", "token")),
                  "prefix_rlvr": LOWER[:2], "reverse_curriculum": LOWER,
                  "best_of_8": RATES},
    "agents": {"srl": ((), ("--learning_rate", "1.5e-4"), ("--learning_rate", "6e-4"),
                       ("--loss_mean", "token")),
               "sft_outline": RATES,
               "srl_rlvr": ((), ("--learning_rate", "1e-4"), ("--learning_rate", "6e-4"),
                            ("--loss_mean", "completion"))},
}
GRID["worded"] = {method: GRID["equations"][method] for method in
                  ("srl", "sft_outline", "rejection", "prefix_rlvr", "reverse_curriculum", "best_of_8")}
TUNE_SEEDS = (100, 101)     # no seed of the table: its runs had no part in the choice


def with_flags(command, flags):
    """A script, its name of a variant if it has one, and flags, each with a value, some of them replaced."""
    begin = next((i for i, word in enumerate(command) if word.startswith("--")), len(command))
    words = [*command[begin:], *flags]
    return *command[:begin], *itertools.chain(*dict(zip(words[::2], words[1::2], strict=True)).items())


def sized(command, world):
    """A command with its number of rollouts, whatever the default of its script is."""
    if "--rollouts" in command or "sft" in command:
        return command
    return with_flags(command, ("--rollouts", str(world["sizes"][command[0]])))


def command_of(method, world):
    return sized({**world["study"], **world["train"]}[method], world)


def tuning_path(args):
    return ROOT / "results" / ("tuning.json" if args.world == "equations" else f"tuning_{args.world}.json")
