"""The results table: every method, five training seeds, evaluated, side by side on the cores of one machine.

Each job is one of the four scripts with the flags that its log shows; a job whose result stands is skipped, and an interrupted one continues, so this can
be stopped and started at will.

in:      the miniature
out:     results/miniature/seed*/METHOD.json and METHOD.log.jsonl, table.md, figure.png, the table in README.md; models in runs/study
command: python miniature/study.py                       # 2 CPU cores, about 3 h
         python miniature/study.py --seeds 0 --methods base srl
         python miniature/study.py --world agents        # the agents: results/agents, the second table in README.md
         python miniature/study.py --tune                # the learning rates on the validation problems, about 1 h; with --world agents the agents'
         python miniature/study.py --table               # table, figure and README again from results/, seconds
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

ROOT = Path(__file__).parent.parent
METHODS = ("base", "srl", "srl_rlvr", "sft_outline", "sft_reasoning", "sft_rlvr", "rlvr", "sft_student", "rejection", "srl_rlvr_short")
NEEDS = {"srl_rlvr": "srl", "srl_rlvr_short": "srl", "sft_rlvr": "sft_outline"}
SFT = ("02_srl_train.py", "--method", "sft", "--sft_target")
# chosen on the 60 validation problems (README, "How the settings were chosen"); SRL runs with 02's defaults, RLVR longer than 03's, which fit a coffee break
TRAIN = {
    "srl": ("02_srl_train.py",),
    "srl_rlvr": ("03_rlvr_train.py", "--rollouts", "60000"),
    "srl_rlvr_short": ("03_rlvr_train.py",),
    # as many completions as SRL and RLVR together; where no group has a signal the batch only says how many are sampled side by side
    "rlvr": ("03_rlvr_train.py", "--rollouts", "108000", "--prompts_per_batch", "16"),
    "sft_rlvr": ("03_rlvr_train.py", "--rollouts", "108000"),
    "sft_outline": (*SFT, "outline", "--learning_rate", "3e-3"),
    "sft_reasoning": (*SFT, "reasoning", "--learning_rate", "3e-3", "--max_new_tokens", "400"),
    "sft_student": (*SFT, "student", "--learning_rate", "1e-3"),
    "rejection": ("miniature/rejection.py",),
}
RECIPE = ("--recipe", "agents")
# of each world: where its base model, runs and results are, the flags of 01 and 04, and how each method is trained
WORLDS = {
    "equations": {"base": "miniature/base", "runs": "runs/study", "results": "results/miniature", "segment": (), "eval": (), "train": TRAIN},
    "agents": {"base": "miniature/agents/base", "runs": "runs/study_agents", "results": "results/agents",
               "segment": ("--trajectories", "--data", "miniature/agents/expert.jsonl", "--num_val", "60"), "eval": ("--mode", "agent"),
               "train": {"srl": ("02_srl_train.py", *RECIPE), "srl_rlvr": ("03_rlvr_train.py", *RECIPE),
                         "rlvr": ("03_rlvr_train.py", *RECIPE, "--rollouts", "72000"),       # as many completions as SRL and RLVR together
                         "sft_outline": ("02_srl_train.py", *RECIPE, "--method", "sft")}},
}
# learning rates tried by --tune; RLVR from base has nothing to learn from at any
GRID = {"equations": {"srl": ("1.5e-4", "3e-4", "6e-4"), "sft_outline": ("3e-4", "1e-3", "3e-3"), "sft_reasoning": ("1e-3", "3e-3"),
                      "sft_student": ("3e-4", "1e-3", "3e-3"), "rejection": ("3e-4", "1e-3", "3e-3"), "srl_rlvr": ("5e-5", "1e-4", "2e-4")},
        "agents": {"srl": ("1.5e-4", "3e-4", "6e-4"), "sft_outline": ("3e-4", "1e-3", "3e-3"), "srl_rlvr": ("1e-4", "3e-4", "6e-4")}}
TUNE_SEED = 100     # a seed of its own: no run of the table was looked at to choose


def run(command, log):
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        print("$ python", *command, file=file, flush=True)
        result = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT,
                                env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"})
    if result.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {result.returncode}; see {log}")


def trained(method, seed, world):
    """The folder of a method's model with a seed; what it starts from is trained first where it is not there."""
    here, base = ROOT / world["runs"] / f"seed{seed}", ROOT / world["base"]
    if method == "base":
        return base
    start = base
    if method in NEEDS and not (start := here / NEEDS[method] / "model").is_dir():
        trained(NEEDS[method], seed, world)
    start = () if method == "rejection" else ("--model", start)
    run([*world["train"][method], "--data", here / "data", "--out", here / method, "--seed", seed, *start], here / f"{method}.log")
    return here / method / "model"


def job(method, seed, args):
    """Train a method with a seed and evaluate it."""
    world = WORLDS[args.world]
    here = ROOT / world["runs"] / f"seed{seed}"
    result = args.results / f"seed{seed}/{method}.json"
    if result.exists():
        return f"{method}, seed {seed}: stands"
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


def tune(args):
    """Every learning rate of the world's grid, judged on the validation examples; the table goes to results/tuning.json or tuning_agents.json."""
    world, grid = WORLDS[args.world], GRID[args.world]
    here = ROOT / world["runs"] / "tune"
    run(["01_segment.py", *world["segment"], "--out", here / "data"], here / "segment.log")

    def one(method, rate):
        out = here / f"{method}-{rate}"
        start = here / f"srl-{srl_rate}/model" if method == "srl_rlvr" else ROOT / world["base"]
        flags = ["--data", here / "data", "--out", out, "--seed", TUNE_SEED, "--learning_rate", rate]
        run([*world["train"][method], *flags, *([] if method == "rejection" else ["--model", start])], here / f"{method}-{rate}.log")
        log = (out / "log.jsonl") if method != "rejection" else sorted(out.glob("round*/log.jsonl"))[-1]
        best = max((line["val_exact"], line["val_reward"]) for line in map(json.loads, log.read_text().splitlines()) if "val_exact" in line)
        print(f"{method} {rate}: exact {best[0]:.1%}, reward {best[1]:.3f}", flush=True)
        return {"method": method, "learning_rate": rate, "val_exact": best[0], "val_reward": best[1]}

    with ThreadPoolExecutor(args.workers) as pool:
        rows = list(pool.map(lambda job: one(*job), [(m, rate) for m in grid if m != "srl_rlvr" and m in args.methods for rate in grid[m]]))
        if "srl_rlvr" in args.methods:
            srl_rate = max((row for row in rows if row["method"] == "srl"), key=lambda row: row["val_exact"])["learning_rate"]
            rows += pool.map(lambda rate: one("srl_rlvr", rate), grid["srl_rlvr"])
    path = args.results.parent / ("tuning.json" if args.world == "equations" else f"tuning_{args.world}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"seed": TUNE_SEED, "runs": rows}, indent=1) + "\n")
    print(path)


def for_readme(table):
    """A table.md with what comes after the first table folded away."""
    first, *more, last = table.strip().split("\n\n")
    folded = "<details><summary>pass@k, outcomes, lengths, and differences paired by problem and seed</summary>\n\n" + "\n\n".join(more) + "\n\n</details>"
    return "\n\n".join([first, last, *([folded] if more else [])]) + "\n"


def write_table(args):
    """table.md, figure.png and the table in the README, from the results that stand."""
    subprocess.run([sys.executable, "04_eval.py", "--table", str(args.results)], cwd=ROOT, check=True)
    readme, mark = (ROOT / "README.md").read_text(), "table" if args.world == "equations" else args.world
    if f"<!-- {mark} -->" in readme:
        before, after = readme.split(f"<!-- {mark} -->")[0], readme.split(f"<!-- /{mark} -->")[1]
        (ROOT / "README.md").write_text(f"{before}<!-- {mark} -->\n{for_readme((args.results / 'table.md').read_text())}<!-- /{mark} -->{after}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--world", choices=WORLDS, default="equations")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all of the world")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="jobs side by side, one thread each")
    parser.add_argument("--tune", action="store_true", help="try the learning rates instead, on the validation problems")
    parser.add_argument("--table", action="store_true", help="run nothing: table, figure and README from the results that stand")
    parser.add_argument("--results", type=Path, help="default: results/miniature, results/agents")
    args = parser.parse_args()
    world = WORLDS[args.world]
    args.methods = args.methods or [method for method in METHODS if method == "base" or method in world["train"]]
    args.results = args.results or ROOT / world["results"]
    if args.tune:
        return tune(args)
    if args.table:
        return write_table(args)
    for seed in args.seeds:  # the split is the same for every seed: what differs is training and sampling
        here = ROOT / world["runs"] / f"seed{seed}"
        if not (here / "data/val.jsonl").exists():
            run(["01_segment.py", *world["segment"], "--out", here / "data"], here / "segment.log")
    jobs = [(method, seed) for seed in args.seeds for method in args.methods if method != "base" or seed == args.seeds[0]]
    running, lock = set(), Lock()

    def work():
        while jobs:
            with lock:
                waiting = running | set(jobs)
                ready = next((j for j in jobs if (NEEDS.get(j[0]), j[1]) not in waiting), None)
                if ready:
                    jobs.remove(ready)
                    running.add(ready)
            if ready is None:
                time.sleep(5)
                continue
            print(job(*ready, args), flush=True)
            with lock:
                running.discard(ready)

    with ThreadPoolExecutor(args.workers) as pool:
        for future in [pool.submit(work) for _ in range(args.workers)]:
            future.result()
    write_table(args)


if __name__ == "__main__":
    main()
