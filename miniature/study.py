"""All methods on five seeds, and the study of SRL's rivals and ablations: jobs side by side, one thread each.

A job trains one method with one seed and evaluates it by the scripts, with the flags that its log shows. One
that has a result is skipped and an interrupted one continues, so this can be stopped and started at any time.

in:      the miniature
out:     results/miniature/seed*/METHOD.json and METHOD.log.jsonl, table.md, figure.png, tables of README.md;
         with --study results/study/WORLD/seed*/ and results/study/WORLD.json and .md; models in runs/study
command: python miniature/study.py                       # 2 CPU cores, about 3 h
         python miniature/study.py --seeds 0 --methods base srl
         python miniature/study.py --world agents        # the agents: results/agents, the second table
         python miniature/study.py --study               # rivals and ablations; --methods: some of them
         python miniature/study.py --tune                # how the settings were chosen
         python miniature/study.py --table               # only tables and figure, from results/, seconds
         python miniature/study.py --lengths runs/eval   # only tokens of each kind of step
"""
import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from statistics import fmean
from threading import Lock

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "miniature")]
from engine.files import read_jsonl, run_main, write_jsonl, write_text  # noqa: E402

METHODS = ("base", "srl", "srl_rlvr", "sft_outline", "sft_reasoning", "sft_rlvr", "rlvr", "sft_student",
           "rejection")
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
    "sft_outline": (*SFT, "outline", "--learning_rate", "3e-3"),
    "sft_reasoning": (*SFT, "reasoning", "--learning_rate", "3e-3", "--max_new_tokens", "400"),
    "sft_student": (*SFT, "outline", "--learning_rate", "1e-3"),        # on targets of its own, see DATA
    "rejection": (REJECTION,),
}
# a method and the number of expert problems that it has
FEWER = [(method, n) for n in (50, 150, 400) for method in ("srl", "sft_outline", "rejection")]
# rivals and ablations of SRL, one line each, in the order of their jobs
STUDY = {
    "srl": (SRL,),                      # with fresh seeds, added to those of the table
    "prefix_rlvr": (RLVR, "--steps_left", "100", "--rollouts", "108000"),
    "reverse_curriculum": (CURRICULUM,),
    "best_of_8": (REJECTION, "--keep", "best"),
    **{name: (VARIANT, name) for name in
       ("all_groups", "equation", "likelihood", "exact", "tokens", "no_title")},
    "both_4_p8": (VARIANT, "both_4", "--prompts_per_batch", "8"),
    "formulas_4_p8": (VARIANT, "formulas_4", "--prompts_per_batch", "8"),
    "formulas_4_p4": (VARIANT, "formulas_4", "--prompts_per_batch", "4"),
    "formulas_4_g16": (VARIANT, "formulas_4", "--group_size", "16", "--prompts_per_batch", "4"),
    "masked": (SRL, "--max_tries", "1"),
    "formulas_4_masked": (VARIANT, "formulas_4", "--max_tries", "1"),
    "formulas_exact_masked": (VARIANT, "formulas_exact", "--max_tries", "1"),
    "g4": (SRL, "--group_size", "4", "--prompts_per_batch", "32"),      # 128 completions in a batch, as SRL
    "g16": (SRL, "--group_size", "16", "--prompts_per_batch", "8"),
    "g32": (SRL, "--group_size", "32", "--prompts_per_batch", "4"),
    "p4": (SRL, "--prompts_per_batch", "4"),
    "p48": (SRL, "--prompts_per_batch", "48"),
    "eps0": (SRL, "--eps", "0"),
    "eps1": (SRL, "--eps", "0.01"),
    "eps5": (SRL, "--eps", "0.05"),
    **{name: (VARIANT, name) for name in ("fourth_power", "ranks", "formulas", "formulas_4", "both_4")},
    "minibatches2": (SRL, "--minibatches", "2"),
    "minibatches4": (SRL, "--minibatches", "4"),
    "token_mean": (SRL, "--loss_mean", "token"),
    "targets": (SRL,),                                                  # on data of their own, see DATA
    "title_hint": (SRL,),
    "whole": (VARIANT, "whole", "--prompts_per_batch", "4"),
    **{f"{method}_{n}": TRAIN[method] for method, n in FEWER},
}
# folder of a method's examples, where it is not `data`; flags of 01 for a folder (others: make_examples)
DATA = {"sft_student": "data_student", "targets": "data_literal", "title_hint": "data_title",
        **{f"{method}_{n}": f"data_{n}" for method, n in FEWER}}
SEGMENT = {"data": (), "data_literal": ("--targets", "literal"), "data_title": ("--title_hint",)}
RECIPE = ("--recipe", "agents")
SIZES = {SRL: 48_000, VARIANT: 48_000, REJECTION: 48_000, RLVR: 36_000, CURRICULUM: 108_000}
FULL = ("--k", "8", "--limit", "None", "--benchmarks")      # of 04, whatever its defaults are
EQUATIONS = {"base": "miniature/base", "runs": "runs/study", "results": "results/miniature", "segment": (),
             "mode": (), "benchmarks": ("short", "hard", "long", "large"), "study_benchmarks": ("hard", "long"),
             "sizes": SIZES, "train": TRAIN, "study": STUDY}
# of each world: base model, runs and results, flags of 01 and 04, rollouts, and the command of each method
WORLDS = {
    "equations": EQUATIONS,
    "worded": {**EQUATIONS, "base": "miniature/worded/base", "runs": "runs/study_worded",
               "results": "results/worded", "segment": ("--data", "miniature/worded/expert.jsonl"),
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
                         "sft_outline": (SRL, *RECIPE, "--method", "sft")},
               "study": {"prefix_rlvr": (RLVR, *RECIPE, "--steps_left", "100", "--rollouts", "72000"),
                         "reverse_curriculum": (CURRICULUM, *RECIPE),
                         "best_of_8": (REJECTION, *RECIPE, "--keep", "best")}},
}
# what --tune tries: flags that are added to those of a method or replace them
RATES = tuple(("--learning_rate", rate) for rate in ("3e-4", "1e-3", "3e-3"))
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
                  "prefix_rlvr": ((), ("--learning_rate", "3e-4"), ("--prompts_per_batch", "16"),
                                  ("--prompts_per_batch", "16", "--learning_rate", "3e-4")),
                  "reverse_curriculum": ((), ("--learning_rate", "3e-4")), "best_of_8": RATES},
    "agents": {"srl": ((), ("--learning_rate", "1.5e-4"), ("--learning_rate", "6e-4"),
                       ("--loss_mean", "token")),
               "sft_outline": RATES,
               "srl_rlvr": ((), ("--learning_rate", "1e-4"), ("--learning_rate", "6e-4"),
                            ("--loss_mean", "completion"))},
}
GRID["worded"] = {method: GRID["equations"][method] for method in
                  ("srl", "sft_outline", "rejection", "prefix_rlvr", "reverse_curriculum", "best_of_8")}
TUNE_SEEDS = (100, 101)     # no seed of the table: its runs had no part in the choice


def run(command, log, out):
    """Run a script with one thread; what it prints is appended to the file `log`. Returns the seconds that it
    took in all: those of runs that were interrupted are in the folder `out`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    path, started = out / "seconds.txt", time.time()
    before = float(path.read_text()) if path.exists() else 0.0
    with open(log, "a") as file:
        print("$ python", *command, file=file, flush=True)
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        result = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=file,
                                stderr=subprocess.STDOUT, env=one_thread)
    seconds = before + time.time() - started
    write_text(path, str(seconds))
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {result.returncode}; see {log}")
    return seconds


def make_examples(here, world, folders=("data", "data_student")):
    """The examples of a seed's runs in folders of `here`. data_student: with thoughts in the base's style as
    targets; data_50: of 50 problems. All have the same validation problems."""
    for name in folders:
        folder = here / name
        if (folder / "val.jsonl").exists():
            continue
        if name in SEGMENT:
            run(["01_segment.py", *world["segment"], *SEGMENT[name], "--out", folder], here / "segment.log",
                folder)
            continue
        examples = read_jsonl(here / "data/train.jsonl")
        if name == "data_student":
            examples = [{**e, "target": f"<think>{e['student_thoughts']}</think>\n{e['action']}"}
                        for e in examples]
        else:
            ids = [*dict.fromkeys(e["id"] for e in examples)][:int(name.removeprefix("data_"))]
            examples = [e for e in examples if e["id"] in ids]
        write_jsonl(folder / "train.jsonl", examples)
        shutil.copy(here / "data/val.jsonl", folder / "val.jsonl")


def validation_problems(here):
    """A file with the validation problems as a benchmark: the share of solved problems compares variants whose
    rewards differ, the share of exact steps does not."""
    path = here / "validation.jsonl"
    problems = {e["problem"]: e["answer"] for e in read_jsonl(here / "data/val.jsonl")}
    write_jsonl(path, [{"problem": problem, "answer": answer} for problem, answer in problems.items()])
    return path


def folders_of(methods):
    """The folders of examples that methods need; the others are made of `data`."""
    return list(dict.fromkeys(["data", *(DATA.get(method, "data") for method in methods)]))


def sized(command, world):
    """A command with its number of rollouts, whatever the default of its script is."""
    if "--rollouts" in command or "sft" in command:
        return command
    return with_flags(command, ("--rollouts", str(world["sizes"][command[0]])))


def command_of(method, world):
    return sized({**world["study"], **world["train"]}[method], world)


def train(method, command, here, out, seed, start):
    """Run a command that trains a method from the model `start`, with examples in `here`. Returns seconds."""
    files = ("--data", here / DATA.get(method, "data"), "--out", out, "--seed", seed, "--model", start)
    return run([*command, *files], here / f"{out.name}.log", out)


def trained(method, seed, world):
    """(folder of a method's model with a seed, seconds of its training); the model that it starts from is
    trained first, to its end: a model is there since the first validation, a result since the end."""
    here, base = ROOT / world["runs"] / f"seed{seed}", ROOT / world["base"]
    if method == "base":
        return base, 0.0
    start, needed = base, NEEDS.get(method)
    if needed:
        start = here / needed / "model"
        if not (here / "results" / needed / f"{needed}.json").exists():
            trained(needed, seed, world)
    seconds = train(method, command_of(method, world), here, here / method, seed, start)
    return here / method / "model", seconds


def job(method, seed, args):
    """Train a method with a seed and evaluate it. The result has the command and the seconds of both."""
    world = WORLDS[args.world]
    here, result = ROOT / world["runs"] / f"seed{seed}", args.results / f"seed{seed}/{method}.json"
    if result.exists() or (ROOT / world["results"] / f"seed{seed}/{method}.json").exists():
        return f"{method}, seed {seed}: has a result"
    model, training = trained(method, seed, world)
    tokens = ("--max_new_tokens", 400) if method == "sft_reasoning" else ()      # its thoughts are longer
    out, benchmarks = here / "results" / method, world["study_benchmarks" if args.study else "benchmarks"]
    if args.study and not world["mode"]:
        benchmarks = (validation_problems(here), *benchmarks)
    evaluation = run(["04_eval.py", "--models", f"{method}={model}", "--results", out, "--completions",
                      here / "eval", "--train_seed", seed, "--seed", seed, *tokens, *world["mode"], *FULL,
                      *benchmarks], here / f"{method}.log", out)
    if (here / method / "log.jsonl").exists():
        write_text(result.with_suffix(".log.jsonl"), (here / method / "log.jsonl").read_text())
    command = " ".join(command_of(method, world)) if method != "base" else ""
    made = {"command": command, "seconds_training": round(training), "seconds_evaluation": round(evaluation)}
    made |= json.loads((out / f"{method}.json").read_text())
    write_text(result, json.dumps(made, indent=1) + "\n")
    if args.study:
        write_study(args)
    return f"{method}, seed {seed}: {training / 60:.1f} min training, {evaluation / 60:.1f} min evaluation"


def tuning_path(args):
    return ROOT / "results" / ("tuning.json" if args.world == "equations" else f"tuning_{args.world}.json")


def with_flags(command, flags):
    """A script, its name of a variant if it has one, and flags, each with a value, some of them replaced."""
    begin = next((i for i, word in enumerate(command) if word.startswith("--")), len(command))
    words = [*command[begin:], *flags]
    return *command[:begin], *itertools.chain(*dict(zip(words[::2], words[1::2], strict=True)).items())


def tune(args):
    """Every variant of GRID with the seeds of TUNE_SEEDS, compared on the validation problems. Rows that are
    in results/tuning*.json are not run again.

    RLVR starts from the model of the same seed that GRID's first variant of SRL gave.
    """
    world, path, lock = WORLDS[args.world], tuning_path(args), Lock()
    rows = json.loads(path.read_text()) if path.exists() else []
    commands, grid, methods = {**world["study"], **world["train"]}, GRID[args.world], args.methods

    def one(variant):
        seed, method, flags = variant
        command = with_flags(commands[method], flags)
        if any((row["seed"], row["method"], row["command"]) == (seed, method, list(command)) for row in rows):
            return
        here = ROOT / world["runs"] / f"tune{seed}"
        out = here / "-".join([method, *(flag.strip("-") for flag in flags)])
        start = here / NEEDS[method] / "model" if method in NEEDS else ROOT / world["base"]
        train(method, sized(command, world), here, out, seed, start)
        log = [line for line in read_jsonl(out / "log.jsonl") if line.get("val_exact") is not None]
        exact, reward = max(((line["val_exact"], line["val_reward"]) for line in log), key=sum)
        print(f"{' '.join(command)}, seed {seed}: exact {exact:.1%}, reward {reward:.3f}", flush=True)
        with lock:
            rows.append({"seed": seed, "method": method, "command": command, "val_exact": exact,
                         "val_reward": reward})
            write_text(path, json.dumps(rows, indent=1) + "\n")

    with ThreadPoolExecutor(args.workers) as pool:
        for seed in args.tune:
            make_examples(ROOT / world["runs"] / f"tune{seed}", world, folders_of(methods))
            for later in (False, True):             # what starts from another method's model comes after it
                variants = [(seed, m, flags) for m in methods if (m in NEEDS) == later for flags in grid[m]]
                list(pool.map(one, variants))
    write_table(args)


def tuning_table(args):
    """The rows of results/tuning*.json in Markdown: the best validation of each command, a column a seed."""
    rows, world = json.loads(tuning_path(args).read_text()), WORLDS[args.world]
    seeds = sorted({row["seed"] for row in rows})
    found = {}
    for row in rows:
        found.setdefault(" ".join(row["command"]), {})[row["seed"]] = f"{row['val_exact']:.1%}"
    lines = [f"| command | {' | '.join(f'seed {seed}' for seed in seeds)} |", "|---|" + "---|" * len(seeds)]
    for method, grid in GRID[args.world].items():
        for flags in grid:
            command = " ".join(with_flags({**world["study"], **world["train"]}[method], flags))
            if command in found:
                cells = " | ".join(found[command].get(seed, "") for seed in seeds)
                lines.append(f"| `python {command}` | {cells} |")
    return "\n".join(lines) + "\n"


def write_lengths(completions):
    """Print mean tokens and frequency of each kind of step, sampled, for each model with completions of the
    equations in a folder.

    A policy without a strategy takes other kinds of steps than one that solves: the mean over all steps
    compares the mix, a row of this table the same kind.
    """
    tokens, kinds = {}, Counter()                           # tokens: of each model, kind -> list of lengths
    for path in sorted(completions.glob("*/*.jsonl")):
        if path.name.endswith(".grades.jsonl"):
            continue
        attempts = [a for line in path.read_text().splitlines()[1:] for a in json.loads(line)["sampled"]]
        for attempt in attempts:
            for text, length in zip(attempt["turns"], attempt["tokens"], strict=True):
                title = re.search(r"\*\*(\w+)", text)
                for kind in ("all", title[1] if title else "no title"):
                    tokens.setdefault(path.parent.name, {}).setdefault(kind, []).append(length)
                    kinds[kind] += 1
    if not tokens:
        raise SystemExit(f"{completions}: no completions of 04_eval.py; run it first, or give the folder of "
                         "its --completions")
    print("| tokens (part of all steps) |", " | ".join(tokens), "|\n|" + "---|" * (1 + len(tokens)))
    for kind in [kind for kind, n in kinds.most_common() if n >= 0.001 * kinds["all"]]:
        these = [(lengths.get(kind, []), len(lengths["all"])) for lengths in tokens.values()]
        cells = [f"{fmean(ns):.1f} ({len(ns) / steps:.0%})" if ns else "" for ns, steps in these]
        print(f"| {kind} |", " | ".join(cells), "|")


def for_readme(table):
    """A table.md where all after the first table and the last line is in a <details> element."""
    first, *more, last = table.strip().split("\n\n")
    title = "<summary>pass@k, outcomes, lengths, and differences paired by problem and seed</summary>"
    folded = "\n\n".join([f"<details>{title}", *more, "</details>"])
    return "\n\n".join([first, last, *([folded] if more else [])]) + "\n"


SUMMARY = ("Base", "SFT (outline)", "RLVR", "SRL", "SRL then RLVR")     # the rows of the main README's table


def summary_table(table):
    """avg@8 on hard and long of the rows of SUMMARY, from the first table of a table.md."""
    from engine.tables import markdown
    lines = table.split("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    columns = [i for i, cell in enumerate(head) if cell.startswith(("method", "hard: avg@", "long: avg@"))]
    head, *rows = [[row[i] for i in columns] for row in (head, *rows) if row is head or row[0] in SUMMARY]
    return markdown(head, rows) + "\n"


def write_table(args):
    """table.md, figure.png and the marked tables of the README files, from the results so far."""
    subprocess.run([sys.executable, "04_eval.py", "--table", str(args.results)], cwd=ROOT, check=True)
    table = (args.results / "table.md").read_text()
    tables = {args.world: for_readme(table)}
    if args.world == "equations":
        tables = {"table": for_readme(table), "summary": summary_table(table)}
    if tuning_path(args).exists():
        tables[tuning_path(args).stem] = tuning_table(args)
    write_marked(tables)


def write_marked(tables):
    """Replace what is between <!-- NAME --> and <!-- /NAME --> in the README files by tables {NAME: text}."""
    for path in [ROOT / "README.md", *ROOT.glob("*/README.md")]:
        readme = path.read_text()
        for mark, text in tables.items():
            begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->"
            if begin in readme and end in readme:
                readme = readme[:readme.index(begin)] + begin + text + readme[readme.index(end):]
        if readme != path.read_text():              # a job of the study writes its table alone
            write_text(path, readme)


REFERENCES = ("srl", "srl_rlvr", "rejection")       # rows of the study that are in the table of the methods
WRITING = Lock()


def study_row(method, results, folders, reference):
    """{name: value} of a variant: what it cost, its validation, its benchmarks and the difference to SRL."""
    from engine.tables import mean_interval, parts_of, where_paired
    seeds = sorted(r["train_seed"] for r in results)
    paths = [folder / f"seed{seed}/{method}.log.jsonl" for seed in seeds for folder in folders]
    logs = [read_jsonl(path) for path in paths if path.exists()]
    validated = [[line["val_exact"] for line in log if line.get("val_exact") is not None] for log in logs]
    row = {"variant": method, "command": results[0].get("command", ""), "seeds": seeds,
           "rollouts": max((log[-1].get("done", 0) for log in logs), default=0),
           "validation_exact": [max(values, default=0.0) for values in validated]}
    for name in ("seconds_training", "seconds_evaluation"):
        row[name] = [r[name] for r in results if name in r]
    difference = import_module("04_eval").paired_difference
    for benchmark in dict.fromkeys(name for r in results for name in r["benchmarks"]):
        avg = [[c / part["k"] for c in part["right"]] for part in parts_of(results, benchmark)]
        pairs = where_paired(difference, results, reference, [benchmark])
        interval = [100 * end for end in mean_interval(avg)]
        row[benchmark] = {"avg": 100 * fmean(sum(avg, [])), "interval": interval,
                          "by_seed": [100 * fmean(seed) for seed in avg], "minus_srl": pairs.get(benchmark)}
    return row


def write_study(args):
    """results/study/WORLD.json and .md: a row for each variant that has results, those of the table first."""
    from engine.stored import read_results
    from engine.tables import markdown
    world = WORLDS[args.world]
    columns = world["study_benchmarks"]
    with WRITING:
        methods, found = ROOT / world["results"], read_results(args.results)
        known = read_results(methods) if methods.is_dir() else {}
        results = {name: known.get(name, []) + found.get(name, []) for name in (*REFERENCES, *world["study"])}
        rows = [study_row(name, results[name], (methods, args.results), results["srl"])
                for name in results if results[name]]
        for row in rows:
            row["command"] = row["command"] or " ".join(command_of(row["variant"], world))
        write_text(args.results.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")
        heads = [text for name in columns for text in (f"{name}: avg@8 [95 %]", "minus SRL [95 %]")]
        table = markdown(["variant", "command", "seeds", "rollouts", "min", "exact steps", "solved", *heads],
                         [study_line(row, columns) for row in rows])
        write_text(args.results.with_suffix(".md"), table + "\n")
        write_marked({f"study_{args.world}": table + "\n"})


def study_line(row, columns):
    """The cells of a row in Markdown. min: of training and evaluation, one thread; mean over the seeds.
    Intervals from three seeds on: over one they lack the training, over two they span nearly everything."""
    seconds = [fmean(row[name]) for name in ("seconds_training", "seconds_evaluation") if row[name]]
    cells = [row["variant"], f"`{row['command']}`" if row["command"] else "", str(len(row["seeds"])),
             str(row["rollouts"] or ""), " + ".join(f"{s / 60:.1f}" for s in seconds),
             f"{100 * fmean(row['validation_exact']):.1f}" if row["validation_exact"] else "",
             f"{row['validation']['avg']:.1f}" if "validation" in row else ""]
    for name in columns:
        part = row.get(name)
        ends = " [{:.1f}, {:.1f}]".format(*part["interval"]) if part and len(row["seeds"]) > 2 else ""
        cells.append(f"{part['avg']:.1f}{ends}" if part else "")
        differs = part and part["minus_srl"] and part["minus_srl"][3] > 2 and row["variant"] != "srl"
        cells.append("{:+.1f} [{:+.1f}, {:+.1f}]".format(*part["minus_srl"]) if differs else "")
    return cells


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--world", choices=WORLDS, default="equations")
    parser.add_argument("--study", action="store_true", help="rivals and ablations of SRL, not the table")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *STUDY], metavar="NAME",
                        help=f"default: all; {', '.join(METHODS)}; with --study {', '.join(STUDY)}")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="jobs at a time, one thread each")
    parser.add_argument("--tune", type=int, nargs="*", metavar="SEED",
                        help=f"try the settings instead, on the validation problems; seeds: {TUNE_SEEDS}")
    parser.add_argument("--table", action="store_true",
                        help="run nothing: tables and figure from the results so far")
    parser.add_argument("--lengths", type=Path, metavar="FOLDER",
                        help="run nothing: tokens of each kind of step from the completions in a folder")
    parser.add_argument("--results", type=Path, help="default: results/miniature, results/agents, ..")
    args = parser.parse_args()
    world = WORLDS[args.world]
    known = [*world["study"]] if args.study else [m for m in METHODS if m == "base" or m in world["train"]]
    if args.tune is not None:
        known = [*GRID[args.world]]
    if unknown := [method for method in args.methods or () if method not in known]:
        parser.error(f"--methods {' '.join(unknown)}: here are {', '.join(known)} (--study, --world: others)")
    args.methods = [method for method in known if method in (args.methods or known)]
    args.results = args.results or ROOT / (f"results/study/{args.world}" if args.study else world["results"])
    if args.tune is not None:
        args.tune = args.tune or TUNE_SEEDS
        return tune(args)
    if args.lengths:
        return write_lengths(args.lengths)
    write = write_study if args.study else write_table
    if args.table:
        return write(args)
    for seed in args.seeds:  # the split is the same for every seed: training and sampling differ
        make_examples(ROOT / world["runs"] / f"seed{seed}", world, folders_of(args.methods))
    run_jobs(args)
    write(args)


def run_jobs(args):
    """All jobs, args.workers at a time: a method with all seeds, then the next; NEEDS first."""
    futures = {}

    def after_needed(method, seed):
        needed = futures.get((NEEDS.get(method), seed))     # submitted earlier: it runs or is done
        if needed:
            needed.result()
        print(job(method, seed, args), flush=True)

    with ThreadPoolExecutor(args.workers) as pool:
        for method in sorted(args.methods, key=lambda method: method in NEEDS):
            for seed in args.seeds:
                if method != "base" or seed == args.seeds[0]:
                    futures[method, seed] = pool.submit(after_needed, method, seed)
        try:
            for future in futures.values():
                future.result()
        except KeyboardInterrupt:                   # the jobs that run end by it too; no other begins
            pool.shutdown(cancel_futures=True)
            raise


if __name__ == "__main__":
    run_main(main)
