"""All methods on five seeds, and the study of SRL's baselines and ablations: jobs side by side, one thread each.

A job trains one method with one seed and evaluates it by the scripts, with the flags that its log shows. One
that has a result is skipped and an interrupted one continues, so this can be stopped and started at any time.

in:      the miniature
out:     results/miniature/seed*/METHOD.json and METHOD.log.jsonl, table.md, figure.png, tables of README.md;
         with --study results/study/WORLD/seed*/ and results/study/WORLD.json and .md; models in runs/study
command: python miniature/study.py                       # 2 CPU cores, about 5 h
         python miniature/study.py --seeds 0 --methods base srl
         python miniature/study.py --world agents        # the agents: results/agents, the second table
         python miniature/study.py --study               # baselines and ablations; --methods: some of them
         python miniature/study.py --tune                # how the settings were chosen
         python miniature/study.py --table               # only tables and figure, from results/, seconds
         python miniature/study.py --lengths runs/eval   # only tokens of each kind of step
         python miniature/study.py --paths runs/eval     # only how attempts leave the expert's solution
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent)]
from methods import BASES, DATA, FULL, GRID, METHODS, NEEDS, ROOT, SEGMENT, STUDY, TUNE_SEEDS, WORLDS, command_of, sized, tuning_path, with_flags  # noqa: E402
from study_tables import tuning_table, write_lengths, write_marked, write_paths, write_study, write_table  # noqa: E402

from engine.files import read_jsonl, run_main, write_jsonl, write_text  # noqa: E402


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


def make_examples(here, world, folders):
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
        if name == "data_detours":
            run(["miniature/detours.py", *world["detours"], "--data", here / "data", "--out", folder],
                here / "segment.log", folder)
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


def base_of(method, world):
    """The folder of the base model that a method starts from. One of BASES is made if it is not there."""
    if method not in BASES:
        return ROOT / world["base"]
    folder = ROOT / world["runs"] / f"base_{BASES[method]}"
    if not (folder / "base/model.safetensors").exists():
        run(["miniature/make.py", "--batches", BASES[method], "--out", folder], folder / "make.log", folder)
    return folder / "base"


def train(method, command, here, out, seed, start):
    """Run a command that trains a method from the model `start`, with examples in `here`. Returns seconds."""
    files = ("--data", here / DATA.get(method, "data"), "--out", out, "--seed", seed, "--model", start)
    return run([*command, *files], here / f"{out.name}.log", out)


def trained(method, seed, world):
    """(folder of a method's model with a seed, seconds of its training); the model that it starts from is
    trained first, to its end: a model is there since the first validation, a result since the end."""
    here, base = ROOT / world["runs"] / f"seed{seed}", base_of(method, world)
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
    if result.exists() or args.study and (ROOT / world["results"] / f"seed{seed}/{method}.json").exists():
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
    write_marked({path.stem: tuning_table(args)})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--world", choices=WORLDS, default="equations")
    parser.add_argument("--study", action="store_true", help="baselines and ablations of SRL, not the table")
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *STUDY], metavar="NAME",
                        help=f"default: all; {', '.join(METHODS)}; with --study {', '.join(STUDY)}")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="jobs at a time, one thread each")
    parser.add_argument("--tune", type=int, nargs="*", metavar="SEED",
                        help=f"try the settings instead, on the validation problems; seeds: {TUNE_SEEDS}")
    parser.add_argument("--table", action="store_true",
                        help="run nothing: tables and figure from the results so far")
    parser.add_argument("--lengths", type=Path, metavar="FOLDER",
                        help="run nothing: tokens of each kind of step from the completions in a folder")
    parser.add_argument("--paths", type=Path, nargs="+", metavar="FOLDER",
                        help="run nothing: how attempts leave the expert's solution, from completions in folders")
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
    if args.paths:
        return write_paths(args.paths)
    write = write_study if args.study else write_table
    if args.table:
        return write(args)
    for seed in args.seeds:  # the split is the same for every seed: training and sampling differ
        make_examples(ROOT / world["runs"] / f"seed{seed}", world, folders_of(args.methods))
    for method in args.methods:
        base_of(method, world)
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
