"""Stage 4: did it work, and how sure are we? Greedy, avg@k and pass@k on the benchmarks, with intervals, a table and a figure.

Prompt, episode and grader are those of 03, so the number that is reported is the reward that was trained on. Every completion is kept, and --regrade
grades them again without a model.

in:      benchmarks (files with problem and answer, or names: amc23 aime24 aime25 minerva math500) and any number of models
out:     runs/eval/NAME/BENCHMARK.jsonl (completions; it goes on where they end), results/latest/NAME.json (numbers per problem, what made
         them), table.md and figure.png beside them, with --solved also right attempts as new expert solutions for 01_segment.py
command: python 04_eval.py                                                    # base and every model in runs/, 2 CPU cores, about 2 min a model
         python 04_eval.py --models mine=runs/my_run/model --results results/mine
         python 04_eval.py --benchmarks amc23 aime24 --mode single --max_new_tokens 4096 --models mine=FOLDER        # real ones, from the hub
         python 04_eval.py --mode agent                                       # the agents' models in runs/agents on repositories whose tests run
         python 04_eval.py --swebench princeton-nlp/SWE-bench_Verified --models mine=FOLDER --max_new_tokens 4096           # predictions.jsonl
         python 04_eval.py --table results/miniature                          # table and figure over all seeds, no model
"""
import argparse
import difflib
import hashlib
import importlib.util
import inspect
import json
import math
import platform
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib import import_module, metadata
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

rlvr = import_module("03_rlvr_train")  # import cannot spell a file name that begins with a digit
srl, segmentation = rlvr.srl, rlvr.segmentation
HERE = Path(__file__).parent

# name of a run: (name in the table, colour); the order of the rows. Okabe and Ito's palette, which the colour-blind can tell apart
METHODS = {
    "base": ("Base", "#999999"), "sft_outline": ("SFT (outline)", "#E69F00"), "sft_reasoning": ("SFT (reasoning)", "#F0E442"), "rlvr": ("RLVR", "#56B4E9"),
    "sft_rlvr": ("SFT then RLVR", "#CC79A7"), "srl": ("SRL", "#009E73"), "srl_rlvr": ("SRL then RLVR", "#0072B2"),
    "sft_student": ("control: SFT, own-style thoughts", "#D55E00"), "rejection": ("control: rejection sampling", "#000000"),
}
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}      # of every figure here and in the notebooks


# 1. Estimators
def pass_at_k(n, c, k):
    """Probability that at least one of k completions is right, unbiased from c right ones of n: 1 - C(n-c, k) / C(n, k)."""
    if not 1 <= k <= n:
        raise ValueError(f"k = {k} must be in 1..n = {n}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def bootstrap_interval(per_problem, num=2000, level=0.95, seed=0):
    """Percentile interval of the mean. per_problem: N numbers, one per problem, or S lists of N, one per training seed.

    Problems are drawn with replacement, and seeds as well where there are several: the interval covers other problems and other runs.
    """
    runs = torch.tensor(per_problem, dtype=torch.float64)
    runs = runs if runs.ndim == 2 else runs[None]                                                 # (S, N)
    S, N = runs.shape
    generator = torch.Generator().manual_seed(seed)
    problems = torch.randint(N, (num, N), generator=generator)
    seeds = torch.randint(S, (num, S), generator=generator) if S > 1 else torch.zeros(num, 1, dtype=torch.long)
    means = runs[seeds[:, :, None], problems[:, None, :]].mean((1, 2))                            # (num,)
    low, high = means.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
    return low, high


# 2. Benchmarks
HUB = {  # name: data set of the hub; of each its split "test"
    "amc23": "math-ai/amc23", "aime24": "math-ai/aime24", "aime25": "math-ai/aime25", "minerva": "math-ai/minervamath", "math500": "HuggingFaceH4/MATH-500",
}


def load_benchmark(source, limit=None, mode="stepwise"):
    """Problems with id, problem and answer: a name of HUB, or a .jsonl, .json or .parquet file. An answer may also be the last box of a solution.

    Raises InputError that names the problem whose answer is missing or cannot be read: the size of a benchmark is part of its number.
    """
    if source not in HUB and not Path(source).exists():
        raise segmentation.InputError(f"{source}: no such file, and no benchmark of the hub: {', '.join(HUB)}")
    problems = segmentation.read_problems(*((HUB[source], "test") if source in HUB else (source,)))[:limit]
    if mode == "agent":
        return rlvr.with_tests(problems, f"{source}, ")
    for problem in problems:
        rlvr.parse_gold(problem["answer"], f"{source}, problem {problem['id']}: ")
    return problems


# 3. Completions of one model on one benchmark
def attempt_record(episode):
    """What is kept of an attempt: the text of every turn and their tokens. The grade is made from it, never stored in its place."""
    return {"turns": [turn[3] for turn in episode.turns], "tokens": [len(turn[1]) for turn in episode.turns], "finished": episode.finished}


def read_kept(path, settings):
    """The records of a file of ours that begins with these settings: [] where it was made with others, is not there, or ends in a line that was cut."""
    if not path.exists():
        return []
    first, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    try:
        return [json.loads(line) for line in lines[:-1]] if json.loads(first) == settings else []
    except ValueError:
        return []


def add_kept(path, settings, records, known):
    """Write records behind the `known` ones of a file that begins with the settings."""
    if srl.rank() == 0 and not known:
        segmentation.write_jsonl(path, [settings, *records])
    elif srl.rank() == 0:
        with segmentation.told(path), path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def attempts_file(path, settings, policy_of, problems, args):
    """The attempts at each problem: those in `path` that were made with the same settings; the others are sampled, some problems at a time, and added."""
    known = read_kept(path, settings)
    if len(known) >= len(problems):
        return known
    if args.regrade:
        raise segmentation.InputError(f"{path}: no completions with these settings to grade again; run without --regrade")
    policy, tokenizer = policy_of()
    make_prompt, extend, *_ = rlvr.MODES[args.mode]
    make_prompt = srl.with_prompt_file(make_prompt, args.prompt_file)
    cfg = rlvr.Config(max_new_tokens=args.max_new_tokens, max_turns=args.max_turns, max_rows=args.max_rows)

    def attempt(part):
        """The records of (number, problem) pairs."""
        examples, seeds = [{**p, "partial": ""} for _, p in part], [f"{args.seed}, problem {i}" for i, _ in part]
        played = srl.play(policy, tokenizer, examples, args.k + 1, make_prompt, extend, cfg, temperature=args.temperature, seeds=seeds, greedy=True)
        kept = ("id", "answer", "files", "visible", "hidden")
        return [{**{name: p[name] for name in kept if name in p}, "greedy": attempt_record(g), "sampled": [attempt_record(e) for e in s]}
                for (_, p), (*s, g) in zip(part, played, strict=True)]
    size = math.ceil(args.max_rows * srl.num_ranks() / args.k)                                    # problems at a time: as many rows as stand side by side
    for begin in range(len(known), len(problems), size):
        records = srl.on_all_ranks(attempt, list(enumerate(problems))[begin:begin + size])
        add_kept(path, settings, records, known)
        known += records
    return known


def verdict(attempt, record):
    """(the grade of an attempt by the reward of 03, the invalid calls among an agent's)."""
    if "files" in record:
        return rlvr.judge_calls(attempt["turns"], record)
    return rlvr.judge(attempt["turns"][-1], record["answer"]), 0


def judge_attempts(records):
    """[[verdict of the greedy attempt, verdicts of the sampled ones, their invalid calls]] of the records."""
    graded = []
    for record in records:
        sampled = [verdict(attempt, record) for attempt in record["sampled"]]
        graded.append([verdict(record["greedy"], record)[0], [found for found, _ in sampled], sum(invalid for _, invalid in sampled)])
    return graded


def grades_file(path, records, again):
    """The verdicts of judge_attempts. Kept in `path` as they come: no attempt is graded twice."""
    made_of = hashlib.sha256(json.dumps([records, inspect.getsource(rlvr), metadata.version("math-verify")]).encode()).hexdigest()
    known = [] if again else read_kept(path, made_of)
    for begin in range(len(known), len(records), 8 * srl.num_ranks()):
        verdicts = srl.on_all_ranks(judge_attempts, records[begin:begin + 8 * srl.num_ranks()])
        add_kept(path, made_of, verdicts, known)
        known += verdicts
    return known


def solved_problems(problems, records, name, graded=None):
    """Of each problem that was solved the first right attempt as an expert solution for 01_segment.py: its steps, and its thoughts for SFT (reasoning)."""
    solved = []
    for problem, record, (first, others, _) in zip(problems, records, graded or judge_attempts(records), strict=True):
        for attempt, found in zip([record["greedy"], *record["sampled"]], [first, *others], strict=True):
            if attempt["finished"] and found == "right":
                steps = [srl.parse_completion(turn) or ("", srl.action_of(turn)) for turn in attempt["turns"]]
                solved.append({"id": f"{name}-{problem['id']}", "problem": problem["problem"], "solution": "\n".join(action for _, action in steps),
                               "answer": problem["answer"], "thoughts": [thoughts for thoughts, _ in steps]})
                break
    return solved


def grade(records, graded=None):
    """Per problem: greedy right (0/1), how many of the k samples are right; verdicts, tokens a response and a step, an agent's calls over the samples."""
    verdicts, calls, tokens, turns = Counter(), Counter(), [], 0
    greedy, right = [], []
    for record, (first, grades, invalid) in zip(records, graded or judge_attempts(records), strict=True):
        greedy.append(int(first == "right"))
        # cut at the limit behind a right box: right, as for the reward
        verdicts.update(grade if a.get("finished", True) or grade == "right" else "truncated" for a, grade in zip(record["sampled"], grades, strict=True))
        if "files" in record:
            calls.update(calls=sum(len(a["turns"]) for a in record["sampled"]), invalid=invalid)
        right.append(grades.count("right"))
        tokens += [sum(a["tokens"]) for a in record["sampled"]]
        turns += sum(len(a["turns"]) for a in record["sampled"])
    return {"greedy": greedy, "right": right, "k": len(records[0]["sampled"]), "verdicts": dict(verdicts), "tokens_per_response": sum(tokens) / len(tokens),
            "tokens_per_step": sum(tokens) / turns, **calls, "shown": [record["greedy"]["turns"] for record in records[:3]]}


# 4. Table and figure
def read_results(folder):
    """{method: list of results, one per seed} of a folder: NAME.json, or seed*/NAME.json."""
    found = {}
    for path in sorted(Path(folder).glob("*.json")) + sorted(Path(folder).glob("seed*/*.json")):
        found.setdefault(path.stem, []).append(json.loads(path.read_text()))
    if not found:
        raise segmentation.InputError(f"{folder}: no results (NAME.json or seed*/NAME.json) in this folder; make some with python 04_eval.py")
    return dict(sorted(found.items(), key=lambda item: list(METHODS).index(item[0]) if item[0] in METHODS else len(METHODS)))


def summary(results, benchmark):
    """Means and intervals in percent over the seeds and problems of one method on one benchmark."""
    parts = [r["benchmarks"][benchmark] for r in results]
    avg = [[c / p["k"] for c in p["right"]] for p in parts]
    mean = lambda rows: 100 * sum(map(sum, rows)) / sum(map(len, rows))  # noqa: E731
    low, high = bootstrap_interval(avg)
    greedy_low, greedy_high = bootstrap_interval([p["greedy"] for p in parts])
    total = Counter()
    for p in parts:
        total.update(p["verdicts"])
    share = {name: 100 * n / total.total() for name, n in total.items()}
    return {
        "greedy": mean([p["greedy"] for p in parts]), "greedy_low": 100 * greedy_low, "greedy_high": 100 * greedy_high,
        "avg": mean(avg), "low": 100 * low, "high": 100 * high,
        "pass": mean([[pass_at_k(p["k"], c, p["k"]) for c in p["right"]] for p in parts]), "k": parts[0]["k"], "n": len(parts[0]["right"]), "share": share,
        "tokens_per_response": sum(p["tokens_per_response"] for p in parts) / len(parts),
        "tokens_per_step": sum(p["tokens_per_step"] for p in parts) / len(parts),
        "calls": sum(p.get("calls", 0) / (p["k"] * len(p["right"])) for p in parts) / len(parts),
        "invalid": 100 * sum(p.get("invalid", 0) / max(p.get("calls", 0), 1) for p in parts) / len(parts),
    }


# what the paper claims, as differences: they are seen more sharply than two means, since both methods met the same problems
COMPARISONS = [("srl", "base"), ("srl", "sft_outline"), ("srl", "sft_reasoning"), ("srl", "rlvr"), ("srl_rlvr", "srl"), ("srl_rlvr", "sft_rlvr"),
               ("srl", "rejection"), ("srl", "sft_student")]


def paired_difference(results, others, benchmark):
    """(mean, low, high) in points of avg@k: results minus others, problem by problem and seed by seed where both have the seed, with a 95 % interval."""
    by_seed = [{r["train_seed"]: r["benchmarks"][benchmark] for r in runs} for runs in (results, others)]
    if len(by_seed[1]) == 1:                                                                      # such as the base, which has no training seed
        by_seed[1] = dict.fromkeys(by_seed[0], next(iter(by_seed[1].values())))
    seeds = sorted(set(by_seed[0]) & set(by_seed[1]), key=str)
    if not seeds:                                                                                 # nothing to pair: the first of each
        by_seed, seeds = [{0: next(iter(runs.values()))} for runs in by_seed], [0]
    rows = [[(c / one["k"] - d / other["k"]) * 100 for c, d in zip(one["right"], other["right"], strict=True)]
            for one, other in ((by_seed[0][seed], by_seed[1][seed]) for seed in seeds)]
    return sum(map(sum, rows)) / sum(map(len, rows)), *bootstrap_interval(rows)


PAPER_TABLE = {  # arXiv 2510.25992 v3, Qwen2.5-7B-Instruct: avg@32 and greedy of AMC23, of AIME24, of AIME25, then Minerva Math, then the average it prints
    "Qwen2.5-7B-Instruct": (49.3, 50.0, 10.5, 13.3, 7.5, 6.7, 34.9, 24.6), "SFT (R1 reasoning)": (26.8, 40.0, 3.9, 10.0, 5.4, 10.0, 20.2, 16.6),
    "SFT (R1 outline)": (36.2, 27.5, 5.1, 3.3, 3.8, 6.7, 31.6, 16.3), "RLVR": (52.0, 47.5, 11.1, 10.0, 7.4, 10.0, 33.8, 24.5),
    "SFT (outline) then RLVR": (37.6, 35.0, 4.9, 3.3, 4.5, 6.7, 30.1, 17.4), "SRL": (51.5, 50.0, 13.2, 16.7, 7.1, 13.3, 36.4, 27.6),
    "SRL then RLVR": (52.1, 57.5, 13.3, 20.0, 8.6, 10.0, 36.4, 28.3), "s1K-7B": (24.1, 25.0, 2.2, 3.3, 3.7, 3.3, 20.2, 11.7),
    "R3": (52.5, 57.5, 10.0, 13.3, 7.4, 10.0, 35.3, 26.6), "SRL without dynamic sampling": (48.5, 52.5, 11.1, 13.3, 6.8, 6.7, 33.8, 24.7),
    "one-step similarity on whole solutions": (51.8, 52.5, 11.7, 13.3, 6.9, 10.0, 34.9, 25.9),
}


def paper_table():
    """The paper's table in Markdown, each average made again from its seven columns."""
    lines = ["| the paper's model | AMC23 avg@32 | greedy | AIME24 avg@32 | greedy | AIME25 avg@32 | greedy | Minerva | average, printed | recomputed |",
             "|---|" + "---|" * 9]
    for model, cells in PAPER_TABLE.items():
        mean = sum(cells[:7]) / 7
        lines.append(f"| {model} | {' | '.join(map(str, cells))} | {mean:.1f}{' **(differs)**' if abs(mean - cells[7]) > 0.1 else ''} |")
    return lines


def make_table(found):
    """Markdown in the shape of the paper's table: a row a method, greedy and avg@k with its 95 % interval for each benchmark."""
    benchmarks = list(next(iter(found.values()))[0]["benchmarks"])
    rows = {name: {b: summary(results, b) for b in benchmarks} for name, results in found.items()}
    k = next(iter(rows.values()))[benchmarks[0]]["k"]
    average = lambda row, key: sum(row[b][key] for b in benchmarks) / len(benchmarks)  # noqa: E731
    label = lambda name: METHODS.get(name, (name,))[0]  # noqa: E731
    heads = " | ".join(f"{b}: greedy | {b}: avg@{k} [95 %]" for b in benchmarks)
    lines = [f"| method | seeds | {heads} | average |", "|---|---|" + "---|" * (2 * len(benchmarks) + 1)]
    for name, row in rows.items():
        cells = [f"{row[b]['greedy']:.1f} | {row[b]['avg']:.1f} [{row[b]['low']:.1f}, {row[b]['high']:.1f}]" for b in benchmarks]
        mean_of_columns = (average(row, "greedy") + average(row, "avg")) / 2
        lines.append(f"| {label(name)} | {len(found[name])} | {' | '.join(cells)} | {mean_of_columns:.1f} |")
    heads = " | ".join(f"{b}: pass@{k}" for b in benchmarks)
    agents = any(row[b]["calls"] for row in rows.values() for b in benchmarks)
    outcomes = ("wrong", "no answer", *(() if agents else ("unparsable",)), "truncated")
    last = ["calls a task", "invalid calls"] if agents else []
    lines += ["", f"| method | {heads} | {' | '.join(outcomes)} | tokens a step | tokens a response |{''.join(f' {head} |' for head in last)}",
              "|---|" + "---|" * (len(benchmarks) + len(outcomes) + 2 + len(last))]
    for name, row in rows.items():
        shares = [sum(row[b]["share"].get(outcome, 0) for b in benchmarks) / len(benchmarks) for outcome in outcomes]
        lengths = [f"{average(row, key):.0f}" for key in ("tokens_per_step", "tokens_per_response")]
        lengths += [f"{average(row, 'calls'):.1f}", f"{average(row, 'invalid'):.1f} %"] if agents else []
        cells = [f"{row[b]['pass']:.1f}" for b in benchmarks] + [f"{share:.1f} %" for share in shares] + lengths
        lines.append(f"| {label(name)} | {' | '.join(cells)} |")
    sizes = {name: [len(results[0]["benchmarks"][b]["right"]) for b in benchmarks] for name, results in found.items()}
    pairs = [(a, b) for a, b in COMPARISONS if a in found and b in found and sizes[a] == sizes[b]]
    if pairs:
        lines += ["", f"| avg@{k}, paired difference [95 %] | {' | '.join(benchmarks)} |", "|---|" + "---|" * len(benchmarks)]
        for a, b in pairs:
            differences = [paired_difference(found[a], found[b], bench) for bench in benchmarks]
            cells = [f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" for mean, low, high in differences]
            lines.append(f"| {label(a)} minus {label(b)} | {' | '.join(cells)} |")
    if set(benchmarks) & set(HUB):
        lines += ["", *paper_table()]
    row = rows[next(iter(rows))]
    sizes = {row[b]["n"] for b in benchmarks}
    problems = f"{sizes.pop()} problems a benchmark" if len(sizes) == 1 else "Problems: " + ", ".join(f"{row[b]['n']} in {b}" for b in benchmarks)
    over = "problems and training seeds" if max(map(len, found.values())) > 1 else "problems"
    lines += ["", f"{problems}. Intervals: 95 % bootstrap over {over}. Average: the mean of the columns."]
    return "\n".join(lines), rows, benchmarks, k


def seed_counts(found):
    """'1 training seed', '5 training seeds', '1 to 2 training seeds'; the base model has none and does not count."""
    counts = sorted({len(results) for name, results in found.items() if name != "base"} or {1})
    return f"{' to '.join(map(str, sorted({counts[0], counts[-1]})))} training seed{'s' if counts[-1] > 1 else ''}"


def make_figure(rows, benchmarks, k, seeds, path):
    """avg@k with intervals, one panel a benchmark. seeds: what the title says of them, see seed_counts."""
    import matplotlib
    from matplotlib.figure import Figure  # needs no screen, and leaves a notebook's backend alone

    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(3.1 * len(benchmarks) + 2.2, 0.42 * len(rows) + 1.7))
    axes = figure.subplots(1, len(benchmarks), sharey=True, squeeze=False)
    names = list(rows)[::-1]
    for ax, b in zip(axes[0], benchmarks, strict=True):
        for y, name in enumerate(names):
            s = rows[name][b]
            ax.barh(y, s["avg"], color=METHODS.get(name, (name, "#666666"))[1], height=0.7,
                    xerr=[[max(0, s["avg"] - s["low"])], [max(0, s["high"] - s["avg"])]], error_kw={"ecolor": "#333333", "capsize": 3, "lw": 1.2})
            ax.text(max(s["high"], s["avg"]) + 2, y, f"{s['avg']:.0f}", va="center", fontsize=10)
        ax.set(title=b, xlim=(0, 112), xticks=(0, 50, 100))
        ax.set_xlabel(f"avg@{k}, % solved")
    axes[0][0].set_yticks(range(len(names)), [METHODS.get(name, (name,))[0] for name in names])
    title = "Step rewards teach what outcome rewards cannot start" if {"srl", "rlvr"} <= set(rows) else "Problems solved"
    figure.suptitle(f"{title}  (miniature; {seeds}, 95 % intervals)" if {"short", "modules"} & set(benchmarks) else title, fontsize=13)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def show(folder):
    found = read_results(folder)
    table, rows, benchmarks, k = make_table(found)
    print(f"\n{table}\n")
    segmentation.write_text(Path(folder) / "table.md", table + "\n")
    make_figure(rows, benchmarks, k, seed_counts(found), Path(folder) / "figure.png")
    print(f"table:  {Path(folder) / 'table.md'}\nfigure: {Path(folder) / 'figure.png'}")


# 5. SWE-bench, oracle setting: the issue and the files that the right patch touches in the prompt, edits in the completion, a patch for the official harness
SWE_SYSTEM = (
    "You are given an issue of a Python repository and the files that have to change. You may think at any point between <think> and </think>. Then write the "
    "edits, each in this form:\n### path/to/file.py\n<<<<<<< SEARCH\nlines as they stand in the file, enough to occur once\n=======\nlines in their place\n"
    ">>>>>>> REPLACE\nA new file has nothing between SEARCH and =======."
)
EDIT = re.compile(r"^### +(\S.*?) *\n<{7} SEARCH\n(.*?)^={7}\n(.*?)^>{7} REPLACE *$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"^(?:<{7} SEARCH|={7}$|>{7} REPLACE)", re.MULTILINE)


def swe_prompt(instance):
    """Chat messages: issue and oracle files (paper section 5; the wording is ours)."""
    files = "\n\n".join(f"### {path}\n```\n{text}```" for path, text in instance["files"].items())
    return [{"role": "system", "content": SWE_SYSTEM}, {"role": "user", "content": f"{instance['problem_statement']}\n\n{files}"}]


def parse_edits(completion):
    """[(path, search, replacement)] of a completion. Raises ValueError where it has none, or a mark is left over: an edit that cannot be read."""
    text = srl.action_of(completion).replace("\r\n", "\n")
    edits = EDIT.findall(text)
    if not edits:
        raise ValueError("no edit")
    if MARK.search(EDIT.sub("", text)) or any(MARK.search(part) for edit in edits for part in edit[1:]):
        raise ValueError("marks of an edit that is not complete")
    return edits


def apply_edits(files, edits):
    """The files {path: text, None where it is removed} after all edits. Raises ValueError with the reason where one of them does not fit: all or none.

    A file of which nothing is left is removed. Where every line of a file ends in CRLF, so do the lines of its edits.
    """
    new = dict(files)
    for path, search, replacement in edits:
        if path.startswith(("/", "-")) or ".." in path.split("/") or ".git" in path.split("/") or not re.fullmatch(r"[^\x00-\x1f\"\\]+", path):
            raise ValueError(f"{path!r}: not a path inside the repository")
        text = new.get(path)
        if text is None:
            if search.strip() or not replacement:
                raise ValueError(f"{path}: not among the files given")
            new[path] = replacement
            continue
        newline = "\r\n" if "\r\n" in text and text.count("\r\n") == text.count("\n") else "\n"
        search, replacement = search.replace("\n", newline), replacement.replace("\n", newline)
        ended = text.endswith(newline)                                                            # a last line without an end keeps none
        text = text if ended else text + newline
        places = [m.start() for m in re.finditer(f"(?=^{re.escape(search)})", text, re.MULTILINE)] if search else []
        if len(places) != 1:
            raise ValueError(f"{path}: the lines to replace occur {len(places)} times")
        text = text[:places[0]] + replacement + text[places[0] + len(search):]
        new[path] = (text if ended else text.removesuffix(newline)) or None
    return new


def unified_patch(old, new):
    """A patch that `git apply` takes, from files {path: text} to files {path: text or None}."""
    patch = ""
    for path in sorted(new):
        before, after = old.get(path), new[path]
        if before == after:
            continue
        lines = [re.findall(r"[^\n]*\n|[^\n]+", text or "") for text in (before, after)]          # not splitlines: a form feed ends no line
        body = list(difflib.unified_diff(*lines, n=3))[2:]
        kind = "new file mode 100644\n" if before is None else "deleted file mode 100644\n" if after is None else ""
        tab = "\t" if " " in path else ""                                                        # as git writes it
        patch += f"diff --git a/{path} b/{path}\n{kind}"
        patch += f"--- {'/dev/null' if before is None else f'a/{path}{tab}'}\n+++ {'/dev/null' if after is None else f'b/{path}{tab}'}\n"
        patch += "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in body)
    return patch


def patch_of(completion, files):
    """(patch, outcome) of a completion: an empty patch where an edit is malformed, never a part of the edits."""
    try:
        new = apply_edits(files, parse_edits(completion))
        patch = unified_patch(files, new)
        if any("\ufffd" in files.get(path, "") for path in new if new[path] != files.get(path)):
            raise ValueError("a file that is not UTF-8: its bytes are not known here")
        return patch, "patch" if patch else "no change"
    except ValueError as error:
        return "", "no edit" if str(error) == "no edit" else "malformed"


def load_instances(source, repositories, limit=None):
    """SWE-bench instances with `files`, the texts at base_commit of those that the right patch touches, from clones in `repositories`/owner__name."""
    rows, places = segmentation.read_rows(*((source,) if Path(source).exists() else (source, "test")))
    for row, place in zip(rows[:limit], places, strict=False):
        missing = [name for name in ("instance_id", "repo", "base_commit", "problem_statement", "patch") if not row.get(name)]
        if missing:
            raise segmentation.InputError(f"{place}: no {' and no '.join(missing)}; expected an instance of SWE-bench")
        clone, row["files"] = Path(repositories) / row["repo"].replace("/", "__"), {}
        if not clone.is_dir():
            raise segmentation.InputError(f"{clone}: no such clone; git clone https://github.com/{row['repo']} {clone}")
        for path in re.findall(r"^--- a/(.+?)\t?$", row["patch"], re.MULTILINE):
            shown = subprocess.run(["git", "-C", clone, "show", f"{row['base_commit']}:{path}"], capture_output=True)
            if shown.returncode:
                raise segmentation.InputError(f"{clone}: no {path} at {row['base_commit']} ({shown.stderr.decode().strip()}); fetch the commit")
            row["files"][path] = shown.stdout.decode("utf-8", "replace")
    return rows[:limit]


def swebench(args):
    """Write predictions.jsonl for every model and start the official harness where it and Docker are there; else say what to run."""
    instances = load_instances(args.swebench, args.repositories, args.limit)
    cfg = rlvr.Config(max_new_tokens=args.max_new_tokens, max_rows=args.max_rows)
    for name, folder in dict(m.split("=", 1) if "=" in m else (Path(m).name, m) for m in args.models or models_found()).items():
        policy, tokenizer = srl.load_policy(folder, srl.Config.device, args.dtype, args.share_prompts)
        played = srl.play(policy, tokenizer, instances, 1, swe_prompt, None, cfg, temperature=0)
        patches = [patch_of(group[0].turns[-1][3], i["files"]) if group[0].finished else ("", "truncated") for group, i in zip(played, instances, strict=True)]
        path = args.completions / name / "predictions.jsonl"
        segmentation.write_jsonl(path, [{"instance_id": i["instance_id"], "model_name_or_path": name, "model_patch": patch}
                                        for i, (patch, _) in zip(instances, patches, strict=True)])
        print(f"{path}: {len(patches)} instances; " + ", ".join(f"{n} {what}" for what, n in Counter(what for _, what in patches).most_common()))
        command = ["-m", "swebench.harness.run_evaluation", "--dataset_name", str(args.swebench), "--predictions_path", str(path), "--run_id", name]
        if importlib.util.find_spec("swebench") and shutil.which("docker") and subprocess.run(["docker", "info"], capture_output=True).returncode == 0:
            subprocess.run([sys.executable, *command], check=True)
        else:
            print(f"to grade it, on a machine with Docker: pip install swebench && python {' '.join(command)}")


def models_found(mode="stepwise"):
    """base and the models of the methods that stand in runs/, of agents in runs/agents/."""
    world = "agents" if mode == "agent" else ""
    paths = {"base": HERE / "miniature" / world / "base", **{name: HERE / "runs" / world / name / "model" for name in METHODS if name != "base"}}
    return [f"{name}={path}" for name, path in paths.items() if path.is_dir()]


def provenance():
    """Commit and versions: what made a number."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True).stdout.strip() or "unknown"
    return {"commit": commit, "torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version(),
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads" + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", help="NAME=FOLDER, any number; default: base and every method in runs/")
    parser.add_argument("--benchmarks", nargs="+", help=f"default: the miniature's; {', '.join(HUB)}, or .jsonl, .json, .parquet files with problem and answer")
    parser.add_argument("--swebench", help="instead: patches for SWE-bench, a file or princeton-nlp/SWE-bench_Verified, in the oracle setting")
    parser.add_argument("--repositories", type=Path, default=HERE / "runs/repositories", help="with --swebench: clones, each in owner__name")
    parser.add_argument("--k", type=int, default=8, help="sampled attempts per problem, for avg@k and pass@k")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--mode", choices=list(rlvr.MODES), default="stepwise")
    parser.add_argument("--prompt_file", help="a text in place of our prompt, as in 02 and 03")
    parser.add_argument("--max_new_tokens", type=int, help=f"of a completion; default: {srl.Config.max_new_tokens}, of agents {srl.AGENTS['max_new_tokens']}")
    parser.add_argument("--max_turns", type=int, help="steps of an attempt in stepwise mode, calls of an agent; default: 10 and 12")
    parser.add_argument("--unsafe_tests", action="store_true", help="agents: run tests of edited code also where the system has no seccomp")
    parser.add_argument("--dtype", choices=srl.CHOICES["dtype"], default=srl.Config.dtype)
    parser.add_argument("--max_rows", type=int, default=1024)
    parser.add_argument("--share_prompts", action=argparse.BooleanOptionalAction, default=True, help="compute a prompt once for its completions")
    parser.add_argument("--limit", type=int, help="only the first so many problems of a benchmark")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--train_seed", type=int, default=0, help="only written down: which training seed the models have")
    parser.add_argument("--completions", type=Path, default=HERE / "runs/eval")
    parser.add_argument("--results", type=Path, default=HERE / "results/latest")
    parser.add_argument("--solved", type=Path, help="a folder for NAME.jsonl: right attempts as new expert solutions, --data of 01_segment.py")
    parser.add_argument("--regrade", action="store_true", help="grade the kept completions again, without a model")
    parser.add_argument("--table", type=Path, help="only make table and figure of this folder")
    args = parser.parse_args()
    srl.join_ranks()
    if args.table:
        return show(args.table)
    agent, folder = args.mode == "agent", "agents/benchmarks" if args.mode == "agent" else "benchmarks"
    names = [f"{b}{given}" for b in ("modules", "larger", "kinds") for given in ("", "_oracle")] if agent else ("short", "hard", "long", "large")
    args.benchmarks = args.benchmarks or [str(HERE / f"miniature/{folder}/{name}.jsonl") for name in names]
    args.max_new_tokens = args.max_new_tokens or (srl.AGENTS["max_new_tokens"] if agent else srl.Config.max_new_tokens)
    args.max_turns = args.max_turns or (12 if agent else 10)
    rlvr.UNSAFE = args.unsafe_tests
    if args.swebench:
        return swebench(args)
    if args.k < 1:
        raise segmentation.InputError(f"--k {args.k}: must be at least 1")
    if args.limit is not None and args.limit < 1:
        raise segmentation.InputError(f"--limit {args.limit}: must be at least 1")

    benchmarks = {Path(source).stem: load_benchmark(source, args.limit, args.mode) for source in args.benchmarks}
    if len(benchmarks) < len(args.benchmarks):
        raise segmentation.InputError(f"--benchmarks {' '.join(args.benchmarks)}: names must differ, the results stand under them")
    models = dict(m.split("=", 1) if "=" in m else (Path(m).name, m) for m in args.models or models_found(args.mode))
    settings = {name: getattr(args, name) for name in ("k", "temperature", "mode", "max_new_tokens", "max_turns", "limit", "seed")}
    if args.dtype != srl.Config.dtype:
        settings["dtype"] = args.dtype
    if args.prompt_file:
        settings["prompt"] = srl.with_prompt_file(rlvr.MODES[args.mode][0], args.prompt_file).keywords   # its words, not its name
    bar = tqdm(total=len(models) * len(benchmarks), unit="benchmark", desc="evaluating", dynamic_ncols=True, disable=srl.rank() > 0)
    for name, folder in models.items():
        loaded = []
        changed = max((p.stat().st_mtime for p in Path(folder).glob("*.safetensors")), default=0)  # a model trained anew is evaluated anew

        def policy_of(folder=folder, loaded=loaded):
            if not loaded:
                loaded.append(srl.load_policy(folder, srl.Config.device, args.dtype, args.share_prompts))
            return loaded[0]

        solved = []
        result = {"model": name, "train_seed": args.train_seed, "decoding": settings, "made_by": provenance(), "benchmarks": {}}
        for benchmark, problems in benchmarks.items():
            bar.set_postfix_str(f"{name} on {benchmark}")
            path = args.completions / name / f"{benchmark}.jsonl"
            records = attempts_file(path, {"model": str(folder), "changed": changed, **settings}, policy_of, problems, args)
            graded = grades_file(path.with_suffix(".grades.jsonl"), records, args.regrade)
            result["benchmarks"][benchmark] = grade(records, graded)
            solved += solved_problems(problems, records, benchmark, graded)
            bar.update()
        if srl.rank() == 0 and args.solved:
            segmentation.write_jsonl(args.solved / f"{name}.jsonl", solved)
            tqdm.write(f"{args.solved / name}.jsonl: {len(solved)} of {sum(map(len, benchmarks.values()))} problems solved; --data for 01_segment.py")
        if srl.rank() == 0:
            segmentation.write_text(args.results / f"{name}.json", json.dumps(result, indent=1) + "\n")
    bar.close()
    if srl.rank() == 0:
        show(args.results)


if __name__ == "__main__":
    segmentation.run_main(main)
