"""Stage 4: did it work, and how sure are we? Greedy, avg@k and pass@k with intervals, a table and a figure.

Prompt, episode and grader are those of 03: what is reported is the reward that was trained on. Completions
are stored, and reused where problem, prompt, weights and settings are unchanged; --regrade needs no model.

in:      any number of models; benchmarks: names, or files with problem and answer
out:     runs/eval/NAME/BENCHMARK.jsonl (completions), results/latest/NAME.json (numbers for each problem),
         table.md, figure.png and report.html beside it; with --solved right attempts as expert data for 01
command: python 04_eval.py                                # base and every model in runs/, under a minute
         python 04_eval.py --full                         # all problems of the miniature, about 3 min
         python 04_eval.py --models mine=FOLDER --benchmarks amc23 aime24 --mode single --max_new_tokens 4096
         python 04_eval.py --mode agent --full            # the agents' models in runs/agents
         python 04_eval.py --table results/miniature      # table, figure and report over all seeds, no model
         python 04_eval.py --ask "Solve 5x - 3 = 2x + 9"  # how every model solves it (miniature/ask.py)
         python 04_eval.py --report runs/srl              # report.html of a training run: curves, completions
"""
import json
import math
from collections import Counter
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module, metadata
from pathlib import Path
from statistics import fmean
from typing import Literal

from tqdm import tqdm

from engine import report, stored, tables
from engine.agents import sandbox, swebench
from engine.chat import prompt_text
from engine.distributed import join_ranks, num_ranks, rank
from engine.files import InputError, run_main, write_jsonl, write_text
from engine.flags import flag_value, named_values, parse_flags
from engine.grader import require_answers
from engine.policy import load_policy
from engine.preflight import prompt_problems
from engine.problems import read_problems
from engine.stored import digest, provenance, stored_or_made
from engine.tables import mean_interval

rlvr = import_module("03_rlvr_train")  # import cannot spell a file name that begins with a digit
srl, segmentation = rlvr.srl, import_module("01_segment")
HERE = Path(__file__).parent
METHODS = {     # name of a run: (label, colour), in the order of the rows; mostly Okabe and Ito's
    "base": ("Base", "#999999"), "sft_outline": ("SFT (outline)", "#E69F00"),
    "sft_reasoning": ("SFT (reasoning)", "#F0E442"), "rlvr": ("RLVR", "#56B4E9"),
    "sft_rlvr": ("SFT then RLVR", "#CC79A7"), "reverse_curriculum": ("R3 (reverse curriculum)", "#882255"),
    "prefix_rlvr": ("RLVR on prefixes", "#999933"),
    "srl": ("SRL", "#009E73"), "srl_rlvr": ("SRL then RLVR", "#0072B2"),
    "sft_student": ("control: SFT, own-style thoughts", "#D55E00"),
    "rejection": ("control: rejection sampling", "#000000"),
}
GRADED = ("answer", "files", "visible", "hidden")       # fields of a problem that an attempt is graded with
# what the paper claims, and the controls: differences between two methods
COMPARISONS = [("srl", "base"), ("srl", "sft_outline"), ("srl", "sft_reasoning"), ("srl", "rlvr"),
               ("srl_rlvr", "srl"), ("srl_rlvr", "sft_rlvr"), ("srl_rlvr", "reverse_curriculum"),
               ("srl_rlvr", "prefix_rlvr"), ("srl", "rejection"), ("srl", "sft_student")]
PAGE = report.Task("Expert's solution", ("reward", "exact", "val_exact", "tokens", "entropy", "kept"), GRADED,
                   segmentation.split_steps, srl.similarity, rlvr.next_call)


@dataclass
class Config:
    """What is evaluated, how, and where the results go."""
    models: tuple[str, ...] = ()        # NAME=FOLDER, any number; default: base and every method in runs/
    benchmarks: tuple[str, ...] = ()    # names, or files (.jsonl, .json, .parquet); default: see --full
    full: bool = False                  # all benchmarks of the miniature; default: 40 problems each of two
    mode: Literal["stepwise", "single", "agent"] = "stepwise"   # as in 03
    k: int = 8                          # sampled attempts per problem, for avg@k and pass@k
    temperature: float = 1.0            # of the sampled attempts
    seed: int = 0                       # of the sampled attempts
    limit: int | None = None            # only the first N problems of a benchmark
    prompt_file: str = ""               # a text in place of our prompt, as in 02 and 03
    max_new_tokens: int = srl.Config.max_new_tokens     # of one completion
    max_turns: int = 10                 # completions of an attempt: steps, or calls of an agent
    unsafe_tests: bool = False          # agents: without seccomp, run tests under resource limits alone
    regrade: bool = False               # grade the stored completions again, without a model
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"    # of the weights
    max_rows: int = 1024                # decode batch (vLLM: max_num_seqs)
    share_prompts: bool = True          # compute a prompt once for all of its completions
    completions: Path = HERE / "runs/eval"      # folder of the completions and their grades
    results: Path = HERE / "results/latest"     # folder of results, table, figure and report
    train_seed: int = 0                 # of the models; stored with the results, by which they are paired
    solved: Path | None = None          # folder for NAME.jsonl: right attempts, as --data of 01_segment.py
    table: Path | None = None           # only make table, figure and report of this folder of results
    ask: tuple[str, ...] | None = None  # only show how all models solve these; no value: asks for problems
    report: Path | None = None          # only make report.html of this folder of a training run
    swebench: str = ""                  # only write patches for these instances: a file or the hub's data set
    repositories: Path = HERE / "runs/repositories"     # with --swebench: clones, each in owner__name


AGENTS = Config(        # the defaults of --mode agent
    mode="agent", max_new_tokens=srl.AGENTS["max_new_tokens"], max_turns=rlvr.AGENTS["max_turns"],
    completions=HERE / "runs/agents/eval", results=HERE / "results/latest/agents")
DEFAULTS = {"agent": ("modules", "larger", "kinds", "modules_oracle", "larger_oracle", "kinds_oracle")}


# 1. Estimators
def pass_at_k(n, c, k):
    """Unbiased estimate that at least one of k completions is right, from c right ones of n:
    1 - C(n-c, k) / C(n, k). Raises ValueError where k is not in 1..n."""
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} must be in 1..n = {n}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def paired_difference(results, others, benchmark):
    """(mean, low, high) in points of avg@k: results minus others on the same problems, with a 95 % interval.

    Only training seeds that both have. Raises InputError where there is none.
    """
    pairs = tables.paired_runs(results, others, benchmark)
    if not pairs:
        raise InputError(f"{benchmark}: no training seed that both methods have; nothing can be paired")
    rows = [[100 * (c / a["k"] - d / b["k"]) for c, d in zip(a["right"], b["right"], strict=True)]
            for a, b in pairs]
    return fmean(sum(rows, [])), *mean_interval(rows, -100, 100)


# 2. Benchmarks
MINIATURE = {path.stem: path for path in HERE.glob("miniature/**/benchmarks/*.jsonl")}
HUB = {     # name: data set of the hub, of which the split "test" is read
    "amc23": "math-ai/amc23", "aime24": "math-ai/aime24", "aime25": "math-ai/aime25",
    "minerva": "math-ai/minervamath", "math500": "HuggingFaceH4/MATH-500",
}


def load_benchmark(source, limit=None, mode="stepwise"):
    """Problems with id, problem and answer: of a name in MINIATURE or HUB, or of a file.

    Raises InputError that names a problem without a readable answer: none is left out of a benchmark.
    """
    source = MINIATURE.get(source, source)
    if source not in HUB and not Path(source).exists():
        raise InputError(f"{source}: no such file, and no benchmark of the hub: {', '.join(HUB)}")
    problems = (read_problems(HUB[source], "test") if source in HUB else read_problems(source))[:limit]
    if mode == "agent":
        return sandbox.with_tests(problems, f"{source}, ")
    return require_answers(problems, source)


# 3. Attempts: sampled, graded, stored
def sample_attempts(cfg, load, made_by, numbered):
    """Of each (number, problem) a record with the greedy attempt and k sampled ones."""
    def attempt(episode):
        return {"turns": [turn.text for turn in episode.turns],
                "tokens": [len(turn.completion) for turn in episode.turns], "finished": episode.finished}
    if cfg.regrade:
        raise InputError(f"{cfg.completions}: no completions with these settings; run without --regrade")
    examples = [{**problem, "partial": ""} for _, problem in numbered]
    seeds = [f"{cfg.seed}, problem {number}" for number, _ in numbered]
    make_prompt, extend, *_ = rlvr.MODES[cfg.mode]
    make_prompt = srl.with_prompt_file(make_prompt, cfg.prompt_file)
    groups = srl.run_episodes(*load(), examples, cfg.k + 1, make_prompt, extend, cfg, seeds=seeds,
                              last_greedy=True)
    return [{"id": problem["id"], "made_by": made_by, "greedy": attempt(greedy),
             "sampled": [attempt(episode) for episode in sampled]}
            for (_, problem), (*sampled, greedy) in zip(numbered, groups, strict=True)]


def judge_attempts(records):
    """Of each record (verdict of 03, invalid calls) of the greedy attempt, then of the k sampled ones."""
    def verdict(attempt, record):
        if "files" in record:
            return rlvr.judge_calls(attempt["turns"], record)
        return rlvr.judge(attempt["turns"][-1], record["answer"]), 0
    return [{"verdicts": [verdict(a, r) for a in (r["greedy"], *r["sampled"])]} for r in records]


def grade_stored(path, records, again):
    """Of each record the verdicts; those of the same attempts, answer and grader are read from `path`."""
    files = [*HERE.glob("0[23]*.py"), *HERE.glob("engine/[gp]r*.py"), *HERE.glob("engine/agents/*.py")]
    grader = digest(metadata.version("math-verify"), *(file.read_text() for file in sorted(files)))
    made_of = [{"attempts": digest(r["greedy"], r["sampled"]), "answer": digest([r.get(n) for n in GRADED]),
                "grader": grader} for r in records]
    return stored_or_made(path, {"grader": grader}, records, made_of, judge_attempts, 8 * num_ranks(), again)


def benchmark_metrics(records, graded):
    """For each problem: greedy right (0 or 1), how many of k samples are right; totals over the samples."""
    rights = [[int(found == "right") for found, _ in g["verdicts"]] for g in graded]
    outcomes, calls, tokens = Counter(), Counter(), []
    for record, g in zip(records, graded, strict=True):
        for attempt, (found, invalid) in zip(record["sampled"], g["verdicts"][1:], strict=True):
            outcomes[report.outcome(attempt, found)] += 1
            tokens += attempt["tokens"]
            if "files" in record:
                calls.update(calls=len(attempt["turns"]), invalid=invalid)
    return {"greedy": [greedy for greedy, *_ in rights], "right": [sum(sampled) for _, *sampled in rights],
            "k": len(records[0]["sampled"]), "verdicts": dict(outcomes),
            "tokens_per_response": sum(tokens) / outcomes.total(), "tokens_per_step": fmean(tokens), **calls,
            "shown": [record["greedy"]["turns"] for record in records[:3]]}


def solved_problems(problems, records, name, graded):
    """The first right attempt at each problem as an expert solution for 01, with its thoughts."""
    solved = []
    for problem, record, g in zip(problems, records, graded, strict=True):
        attempts = zip([record["greedy"], *record["sampled"]], g["verdicts"], strict=True)
        right = [a["turns"] for a, (found, _) in attempts if a["finished"] and found == "right"]
        if right:
            steps = [srl.parse_completion(turn) or ("", srl.action_of(turn)) for turn in right[0]]
            solved.append({"id": f"{name}-{problem['id']}", "problem": problem["problem"],
                           "solution": "\n".join(action for _, action in steps), "answer": problem["answer"],
                           "thoughts": [thoughts for thoughts, _ in steps]})
    return solved


def evaluate(cfg, name, folder, benchmarks, settings, prompts):
    """Write the results of a model, and with --solved the problems that it solved."""
    load = cache(partial(load_policy, folder, srl.Config.device, cfg.dtype, cfg.share_prompts))
    sample = partial(sample_attempts, cfg, load, provenance(HERE))
    size = math.ceil(cfg.max_rows * num_ranks() / cfg.k)            # problems in a decode batch
    code = rlvr.MODES[cfg.mode][1], rlvr.solution_of, srl.action_of, rlvr.extend_solution, rlvr.execute
    solved, numbers, made_by = [], {}, []
    for benchmark, problems in tqdm(benchmarks.items(), desc=name, unit="benchmark", disable=rank() > 0):
        path = cfg.completions / name / f"{benchmark}.jsonl"
        made_of = stored.made_of(folder, problems, prompts.get(benchmark), settings, code)
        records = stored_or_made(path, {"model": str(folder), **settings}, list(enumerate(problems)), made_of,
                                 sample, size)
        records = [{**problem, **record} for problem, record in zip(problems, records, strict=True)]
        graded = grade_stored(path.with_suffix(".grades.jsonl"), records, cfg.regrade)
        numbers[benchmark] = {**benchmark_metrics(records, graded),
                              "problems": report.problems_digest(problems, GRADED)}
        solved += solved_problems(problems, records, benchmark, graded)
        made_by += [record["made_by"] for record in records]
    if rank() == 0:
        if cfg.solved:
            write_jsonl(cfg.solved / f"{name}.jsonl", solved)
            print(f"{cfg.solved / name}.jsonl: {len(solved)} problems solved; --data for 01_segment.py")
        result = {"model": name, "train_seed": cfg.train_seed, "decoding": {**settings, "limit": cfg.limit},
                  "made_by": stored.merged(made_by), "reported_by": provenance(HERE)["commit"],
                  "benchmarks": numbers}
        write_text(cfg.results / f"{name}.json", json.dumps(result, indent=1) + "\n")


# 4. Table and figure
def read_results(folder):
    """{method: list of results, one per seed} of a folder, in the order of the rows."""
    found = stored.read_results(folder)
    return {name: found[name] for name in dict.fromkeys([*METHODS, *found]) if name in found}


def label(name):
    return METHODS.get(name, (name,))[0]


def summary(results, benchmark, k=None):
    """Means, intervals (percent) and lengths over one method's seeds on one benchmark. k: of pass@k."""
    parts = tables.parts_of(results, benchmark)
    avg = [[c / p["k"] for c in p["right"]] for p in parts]
    low, high = mean_interval(avg)
    return {
        "k": parts[0]["k"], "n": len(avg[0]), "runs": len(parts),
        "avg": 100 * fmean(sum(avg, [])), "low": 100 * low, "high": 100 * high,
        "greedy": 100 * fmean(sum((p["greedy"] for p in parts), [])),
        "pass": 100 * fmean(pass_at_k(p["k"], c, k or p["k"]) for p in parts for c in p["right"]),
        **tables.verdict_means(parts), "tokens a step": fmean(p["tokens_per_step"] for p in parts),
        **tables.length_means(parts)}


def make_table(found):
    """(Markdown, {method: {column: summary}}, columns, k) of the results of read_results.

    k is the least of all rows: avg@k estimates the same with more samples, pass@k is estimated for this k.
    """
    notes = dict.fromkeys(HUB, (HERE / "results/paper.md").read_text().strip())
    return tables.results_table(found, label, summary, paired_difference, COMPARISONS, notes)


def make_figure(found, path):
    """avg@k with intervals, one panel a benchmark."""
    _, rows, benchmarks, k = make_table(found)
    panels = {b: {label(name): [row[b][key] for key in ("avg", "low", "high")] for name, row in rows.items()
                  if b in row} for b in benchmarks}
    colours = {label(name): METHODS.get(name, (name, "#666666"))[1] for name in rows}
    ours, others = rows.get("srl", {}), rows.get("rlvr", {})
    both = [(ours[b], others[b]) for b in ours if b in others]
    apart = both and all(a["low"] > b["high"] for a, b in both)     # a title that is true of every panel
    start = "cannot start" if all(b["avg"] < 1 for _, b in both) else "start late"
    title = f"RLVR from the problem {start} here" if apart else "Problems solved"
    if {"short", "modules"} & set(benchmarks):
        counts = [len(results) for name, results in found.items() if name != "base"] or [1]
        title += f"\n(miniature, training seeds: {tables.spread(counts)}, 95 % intervals)"
    tables.bar_panels(path, panels, colours, title, f"avg@{k}, % solved")


def show(folder, completions=Config.completions, benchmarks=None):
    """Write table.md, figure.png and report.html. benchmarks: {name: problems}, for the attempts at them."""
    found = read_results(folder)
    table, *_ = make_table(found)
    print(f"\n{table}\n")
    write_text(folder / "table.md", table + "\n")
    make_figure(found, folder / "figure.png")
    print(f"table:  {folder / 'table.md'}\nfigure: {folder / 'figure.png'}")
    report.write_evaluation_page(folder, PAGE, found, table, METHODS, benchmarks or {}, completions)


# 5. Main
def named_models(cfg):
    """{name: folder} of --models; without it the base and the methods in runs/, of agents in runs/agents/."""
    if cfg.models:
        return named_values("models", cfg.models)
    world = "agents" if cfg.mode == "agent" else ""
    runs = {name: HERE / "runs" / world / name / "model" for name in METHODS}
    runs["base"] = HERE / "miniature" / world / "base"
    if missing := [name for name, folder in runs.items() if not folder.is_dir()]:
        print(f"models missing in {runs['srl'].parents[1]}: {', '.join(missing)}")
    return {name: folder for name, folder in runs.items() if name not in missing}


def check_start(cfg, models, benchmarks, make_prompt):
    """{model: {benchmark: its prompts}}. Raises InputError for what would fail after the first completion."""
    stored.check_output(cfg, models, cfg.results, cfg.completions, cfg.solved or cfg.results)
    prompts, wrong = {name: {} for name in models}, []
    for name, folder in {} if cfg.regrade else models.items():
        policy, tokenizer = load_policy(folder, srl.Config.device, cfg.dtype, cfg.share_prompts)
        for benchmark, problems in benchmarks.items():
            examples = [{**problem, "partial": ""} for problem in problems]
            wrong += prompt_problems(folder, policy, tokenizer, examples, make_prompt, cfg)
            prompts[name][benchmark] = [prompt_text(tokenizer, make_prompt(e)) for e in examples if not wrong]
    if wrong:
        raise InputError("\n  ".join(dict.fromkeys(wrong)))
    return prompts


def write_patches(cfg, models):
    """SWE-bench in the oracle setting: patches, which the official harness grades."""
    instances = swebench.load_instances(cfg.swebench, cfg.repositories, cfg.limit)
    check_start(cfg, models, {cfg.swebench: instances}, swebench.make_prompt)
    for name, folder in models.items():
        policy = load_policy(folder, srl.Config.device, cfg.dtype, cfg.share_prompts)
        groups = srl.run_episodes(*policy, instances, 1, swebench.make_prompt, None, cfg, 0)
        texts = [episode.turns[-1].text if episode.finished else None for (episode,) in groups]
        swebench.write_predictions(cfg.completions, name, instances, texts, cfg.swebench)


def main():
    join_ranks()
    cfg = parse_flags(AGENTS if flag_value("mode", "") == "agent" else Config(), __doc__.split("\n")[0])
    sandbox.UNSAFE = cfg.unsafe_tests
    if cfg.ask is not None:
        return import_module("miniature.ask").ask(cfg, named_models(cfg))
    if cfg.report:
        return report.write_run_page(cfg.report, PAGE)
    if cfg.swebench:
        return write_patches(cfg, named_models(cfg))
    if not (sources := cfg.benchmarks):
        sources = DEFAULTS.get(cfg.mode, ("hard", "short", "long", "large"))
        if not (cfg.full or cfg.table):
            sources, cfg.limit = sources[:2], cfg.limit or 40
            print(f"a first look: {cfg.limit} problems each of {' and '.join(sources)}; --full: all problems")
    benchmarks = {Path(source).stem: load_benchmark(source, cfg.limit, cfg.mode) for source in sources}
    if len(benchmarks) < len(sources):
        raise InputError(f"--benchmarks {' '.join(sources)}: two have the same name; rename one")
    if cfg.table:
        return show(cfg.table, cfg.completions, benchmarks)
    models = named_models(cfg)
    names = ("k", "temperature", "mode", "max_new_tokens", "max_turns", "seed", "dtype")
    settings = {name: getattr(cfg, name) for name in names}
    make_prompt = srl.with_prompt_file(rlvr.MODES[cfg.mode][0], cfg.prompt_file)
    if cfg.prompt_file:                     # its words, not its name
        settings["prompt"] = make_prompt.keywords
    prompts = check_start(cfg, models, benchmarks, make_prompt)
    for name, folder in models.items():
        evaluate(cfg, name, folder, benchmarks, settings, prompts[name])
    if rank() == 0:
        show(cfg.results, cfg.completions, benchmarks)


if __name__ == "__main__":
    run_main(main)
