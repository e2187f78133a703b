"""The results table: every method, five training seeds, trained and evaluated in parallel on the cores of one machine.

Each job runs the scripts with the flags that its log shows. A job that has a result is skipped and an interrupted one continues, so this can be stopped and
started at any time.

in:      the miniature
out:     results/miniature/seed*/METHOD.json and METHOD.log.jsonl, table.md, figure.png, the table in README.md; models in runs/study
command: python miniature/study.py                       # 2 CPU cores, about 3 h
         python miniature/study.py --seeds 0 --methods base srl
         python miniature/study.py --world agents        # the agents: results/agents, the second table in README.md
         python miniature/study.py --tune                # how the settings were chosen, on the validation problems; with --world agents the agents'
         python miniature/study.py --table               # only table, figure and README, from results/, seconds
         python miniature/study.py --lengths runs/eval   # only tokens of each kind of step, from completions of 04_eval.py
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
from pathlib import Path
from threading import Lock

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from engine.files import read_jsonl, write_jsonl, write_text  # noqa: E402

METHODS = ("base", "srl", "srl_rlvr", "sft_outline", "sft_reasoning", "sft_rlvr", "rlvr", "sft_student", "rejection")
NEEDS = {"srl_rlvr": "srl", "sft_rlvr": "sft_outline"}
SFT = ("02_srl_train.py", "--method", "sft", "--sft_target")
# chosen on the 60 validation problems (README, "How the settings were chosen"); SRL has 02's defaults, RLVR more rollouts than 03's
TRAIN = {
    "srl": ("02_srl_train.py",),
    "srl_rlvr": ("03_rlvr_train.py", "--rollouts", "60000"),
    # as many completions as SRL and RLVR together; where no group has a signal, the batch only decides how many are sampled at a time
    "rlvr": ("03_rlvr_train.py", "--rollouts", "108000", "--prompts_per_batch", "16"),
    "sft_rlvr": ("03_rlvr_train.py", "--rollouts", "108000"),
    "sft_outline": (*SFT, "outline", "--learning_rate", "3e-3"),
    "sft_reasoning": (*SFT, "reasoning", "--learning_rate", "3e-3", "--max_new_tokens", "400"),
    "sft_student": (*SFT, "outline", "--learning_rate", "1e-3"),     # on data with targets of its own, see make_examples
    "rejection": ("miniature/rejection.py",),
}
RECIPE = ("--recipe", "agents")
# of each world: base model, runs and results, the flags of 01 and 04, and the command that trains each method
WORLDS = {
    "equations": {"base": "miniature/base", "runs": "runs/study", "results": "results/miniature", "segment": (), "eval": (), "train": TRAIN},
    "agents": {"base": "miniature/agents/base", "runs": "runs/study_agents", "results": "results/agents",
               "segment": ("--trajectories", "--data", "miniature/agents/expert.jsonl", "--num_val", "60"), "eval": ("--mode", "agent"),
               "train": {"srl": ("02_srl_train.py", *RECIPE), "srl_rlvr": ("03_rlvr_train.py", *RECIPE),
                         "rlvr": ("03_rlvr_train.py", *RECIPE, "--rollouts", "72000"),       # as many completions as SRL and RLVR together
                         "sft_outline": ("02_srl_train.py", *RECIPE, "--method", "sft")}},
}
# what --tune tries: flags that are added to those of TRAIN or replace them
RATES = tuple(("--learning_rate", rate) for rate in ("3e-4", "1e-3", "3e-3"))
SHORT = ("--rollouts", "36000")     # 03's default
GRID = {
    "equations": {"srl": ((), ("--eps", "0.01"), ("--decay", "0"), ("--learning_rate", "1.5e-4"), ("--learning_rate", "6e-4"), ("--prompts_per_batch", "48"),
                          ("--prompts_per_batch", "48", "--learning_rate", "6e-4"), ("--loss_mean", "token")),
                  "sft_outline": RATES, "sft_reasoning": RATES[1:], "sft_student": RATES, "rejection": RATES,
                  "srl_rlvr": ((), SHORT, (*SHORT, "--learning_rate", "5e-5"), (*SHORT, "--learning_rate", "2e-4"), (*SHORT, "--prompts_per_batch", "12"),
                               (*SHORT, "--prompts_per_batch", "12", "--learning_rate", "2e-4"), (*SHORT, "--loss_mean", "token"))},
    "agents": {"srl": ((), ("--learning_rate", "1.5e-4"), ("--learning_rate", "6e-4"), ("--loss_mean", "token")), "sft_outline": RATES,
               "srl_rlvr": ((), ("--learning_rate", "1e-4"), ("--learning_rate", "6e-4"), ("--loss_mean", "completion"))},
}
TUNE_SEEDS = (100, 101)     # no seed of the table: its runs had no part in the choice


def run(command, log):
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        print("$ python", *command, file=file, flush=True)
        result = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                                env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {result.returncode}; see {log}")


def make_examples(here, world):
    """The examples of a seed's runs in here/data; for the control "SFT, own-style thoughts" in here/data_student, with thoughts in the base's style."""
    if not (here / "data/val.jsonl").exists():
        run(["01_segment.py", *world["segment"], "--out", here / "data"], here / "segment.log")
    if "sft_student" in world["train"] and not (here / "data_student/val.jsonl").exists():
        targets = [{**e, "target": f"<think>{e['student_thoughts']}</think>\n{e['action']}"} for e in read_jsonl(here / "data/train.jsonl")]
        write_jsonl(here / "data_student/train.jsonl", targets)
        shutil.copy(here / "data/val.jsonl", here / "data_student/val.jsonl")


def train(method, command, here, out, seed, start):
    """Run a command that trains a method from the model `start`, with the examples in `here`."""
    start = () if method == "rejection" else ("--model", start)
    data = here / ("data_student" if method == "sft_student" else "data")
    run([*command, "--data", data, "--out", out, "--seed", seed, *start], here / f"{out.name}.log")


def trained(method, seed, world):
    """The folder of a method's model with a seed; the model that it starts from is trained first where there is none."""
    here, base = ROOT / world["runs"] / f"seed{seed}", ROOT / world["base"]
    if method == "base":
        return base
    start = base
    if method in NEEDS and not (start := here / NEEDS[method] / "model").is_dir():
        trained(NEEDS[method], seed, world)
    train(method, world["train"][method], here, here / method, seed, start)
    return here / method / "model"


def job(method, seed, args):
    """Train a method with a seed and evaluate it."""
    world = WORLDS[args.world]
    here = ROOT / world["runs"] / f"seed{seed}"
    result = args.results / f"seed{seed}/{method}.json"
    if result.exists():
        return f"{method}, seed {seed}: has a result"
    started = time.time()
    model = trained(method, seed, world)
    tokens = ("--max_new_tokens", 400) if method == "sft_reasoning" else ()      # its thoughts are longer
    run(["04_eval.py", "--models", f"{method}={model}", "--results", here / "results" / method, "--completions", here / "eval",
         "--train_seed", seed, "--seed", seed, *tokens, *world["eval"]], here / f"{method}.log")
    result.parent.mkdir(parents=True, exist_ok=True)
    if (here / method / "log.jsonl").exists():
        shutil.copy(here / method / "log.jsonl", result.with_suffix(".log.jsonl"))
    os.replace(here / "results" / method / f"{method}.json", result)
    return f"{method}, seed {seed}: {(time.time() - started) / 60:.1f} min"


def tuning_path(args):
    return ROOT / "results" / ("tuning.json" if args.world == "equations" else f"tuning_{args.world}.json")


def with_flags(command, flags):
    """A script and its flags, each with a value, some of them replaced."""
    script, *given = command
    return script, *itertools.chain(*{**dict(zip(given[::2], given[1::2], strict=True)), **dict(zip(flags[::2], flags[1::2], strict=True))}.items())


def tune(args):
    """Every variant of GRID with the seeds of TUNE_SEEDS, compared on the validation problems. Rows that are in results/tuning*.json are not run again.

    RLVR starts from the model of the same seed that GRID's first variant of SRL gave.
    """
    world, path, lock = WORLDS[args.world], tuning_path(args), Lock()
    rows = json.loads(path.read_text()) if path.exists() else []

    def one(variant):
        seed, method, flags = variant
        command = with_flags(world["train"][method], flags)
        if any((row["seed"], row["method"], row["command"]) == (seed, method, list(command)) for row in rows):
            return
        here = ROOT / world["runs"] / f"tune{seed}"
        out = here / "-".join([method, *(flag.strip("-") for flag in flags)])
        train(method, command, here, out, seed, here / NEEDS[method] / "model" if method in NEEDS else ROOT / world["base"])
        log = (out / "log.jsonl") if method != "rejection" else sorted(out.glob("round*/log.jsonl"))[-1]
        exact, reward = max((line["val_exact"], line["val_reward"]) for line in map(json.loads, log.read_text().splitlines()) if "val_exact" in line)
        print(f"{' '.join(command)}, seed {seed}: exact {exact:.1%}, reward {reward:.3f}", flush=True)
        with lock:
            rows.append({"seed": seed, "method": method, "command": command, "val_exact": exact, "val_reward": reward})
            write_text(path, json.dumps(rows, indent=1) + "\n")

    with ThreadPoolExecutor(args.workers) as pool:
        for seed in args.tune:
            make_examples(ROOT / world["runs"] / f"tune{seed}", world)
            for later in (False, True):                     # what starts from another method's model comes after it
                variants = [(seed, method, flags) for method, grid in GRID[args.world].items() if method in args.methods for flags in grid]
                list(pool.map(one, [v for v in variants if (v[1] in NEEDS) == later]))
    write_table(args)


def tuning_table(args):
    """The rows of results/tuning*.json in Markdown: the best validation of each command, a column for each seed."""
    rows = json.loads(tuning_path(args).read_text())
    seeds = sorted({row["seed"] for row in rows})
    found = {}
    for row in rows:
        found.setdefault(" ".join(row["command"]), {})[row["seed"]] = f"{row['val_exact']:.1%}"
    lines = ["| command | " + " | ".join(f"seed {seed}" for seed in seeds) + " |", "|---|" + "---|" * len(seeds)]
    for method in GRID[args.world]:
        for flags in GRID[args.world][method]:
            command = " ".join(with_flags(WORLDS[args.world]["train"][method], flags))
            if command in found:
                lines.append(f"| `python {command}` | " + " | ".join(found[command].get(seed, "") for seed in seeds) + " |")
    return "\n".join(lines) + "\n"


def write_lengths(completions):
    """Print mean tokens and frequency of each kind of step, sampled, for each model with completions of the equations in a folder.

    A policy without a strategy takes other kinds of steps than one that solves: the mean over all steps compares the mix, a row of this table the same kind.
    """
    tokens, kinds = {}, Counter()                           # tokens: of each model, kind -> list of lengths
    for path in sorted(completions.glob("*/*.jsonl")):
        for record in map(json.loads, () if path.name.endswith(".grades.jsonl") else path.read_text().splitlines()[1:]):
            for text, length in ((t, n) for attempt in record["sampled"] for t, n in zip(attempt["turns"], attempt["tokens"], strict=True)):
                title = re.search(r"\*\*(\w+)", text)
                for kind in ("all", title[1] if title else "no title"):
                    tokens.setdefault(path.parent.name, {}).setdefault(kind, []).append(length)
                    kinds[kind] += 1
    if not tokens:
        raise SystemExit(f"{completions}: no completions of 04_eval.py; run it first, or give the folder of its --completions")
    print("| tokens (part of all steps) |", " | ".join(tokens), "|\n|" + "---|" * (1 + len(tokens)))
    for kind in [kind for kind, n in kinds.most_common() if n >= 0.001 * kinds["all"]]:
        these = [(lengths.get(kind, []), len(lengths["all"])) for lengths in tokens.values()]
        print(f"| {kind} |", " | ".join(f"{sum(ns) / len(ns):.1f} ({len(ns) / steps:.0%})" if ns else "" for ns, steps in these), "|")


def for_readme(table):
    """A table.md where all after the first table and the last line is in a <details> element."""
    first, *more, last = table.strip().split("\n\n")
    folded = "<details><summary>pass@k, outcomes, lengths, and differences paired by problem and seed</summary>\n\n" + "\n\n".join(more) + "\n\n</details>"
    return "\n\n".join([first, last, *([folded] if more else [])]) + "\n"


SUMMARY = ("Base", "SFT (outline)", "RLVR", "SRL", "SRL then RLVR")     # the rows of the main README's table


def summary_table(table):
    """avg@8 on hard and long of the rows of SUMMARY, from the first table of a table.md."""
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.split("\n\n")[0].splitlines()]
    columns = [0, *(next(i for i, cell in enumerate(head) if cell.startswith(f"{benchmark}: avg@")) for benchmark in ("hard", "long"))]
    lines = [f"| {' | '.join(row[i] for i in columns)} |" for row in [head, ["---"] * len(head), *(row for row in rows if row[0] in SUMMARY)]]
    return "\n".join(lines).replace("| --- | --- | --- |", "|---|---|---|") + "\n"


def write_table(args):
    """table.md, figure.png and the marked tables of the README files, from the results so far."""
    subprocess.run([sys.executable, "04_eval.py", "--table", str(args.results)], cwd=ROOT, check=True)
    table = (args.results / "table.md").read_text()
    tables = {"table": for_readme(table), "summary": summary_table(table)} if args.world == "equations" else {args.world: for_readme(table)}
    if tuning_path(args).exists():
        tables[tuning_path(args).stem] = tuning_table(args)
    for path in [ROOT / "README.md", *ROOT.glob("*/README.md")]:
        readme = path.read_text()
        for mark, text in tables.items():
            readme = re.sub(f"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", lambda found, text=text: found[1] + text + found[2], readme, flags=re.DOTALL)
        write_text(path, readme)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--world", choices=WORLDS, default="equations")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all of the world")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="jobs at a time, one thread each")
    parser.add_argument("--tune", type=int, nargs="*", metavar="SEED", help=f"try the settings instead, on the validation problems; seeds: {TUNE_SEEDS}")
    parser.add_argument("--table", action="store_true", help="run nothing: table, figure and README from the results so far")
    parser.add_argument("--lengths", type=Path, metavar="FOLDER", help="run nothing: tokens of each kind of step from the completions in a folder")
    parser.add_argument("--results", type=Path, help="default: results/miniature, results/agents")
    args = parser.parse_args()
    world = WORLDS[args.world]
    args.methods = args.methods or [method for method in METHODS if method == "base" or method in world["train"]]
    args.results = args.results or ROOT / world["results"]
    if args.tune is not None:
        args.tune = args.tune or TUNE_SEEDS
        return tune(args)
    if args.lengths:
        return write_lengths(args.lengths)
    if args.table:
        return write_table(args)
    for seed in args.seeds:  # the split is the same for every seed: training and sampling differ
        make_examples(ROOT / world["runs"] / f"seed{seed}", world)
    futures = {}

    def after_needed(method, seed):
        needed = futures.get((NEEDS.get(method), seed))     # submitted earlier: it runs or is done
        if needed:
            needed.result()
        print(job(method, seed, args), flush=True)

    with ThreadPoolExecutor(args.workers) as pool:
        for seed in args.seeds:
            for method in sorted(args.methods, key=lambda method: method in NEEDS):
                if method != "base" or seed == args.seeds[0]:
                    futures[method, seed] = pool.submit(after_needed, method, seed)
        for future in futures.values():
            future.result()
    write_table(args)


if __name__ == "__main__":
    main()
