"""The tables of the study: table.md and figure.png of the methods, a row for each variant, the marked tables of the
README files.

in:      results/
out:     results/WORLD/table.md and figure.png, results/study/WORLD.json and .md, tables of README.md
command: python miniature/study.py --table
         python miniature/study.py --study --table
         python miniature/study.py --lengths runs/eval
         python miniature/study.py --paths runs/eval
"""
import json
import re
import subprocess
import sys
from collections import Counter
from importlib import import_module
from itertools import zip_longest
from statistics import fmean
from threading import Lock

from methods import BASES, DATA, GRID, ROOT, WORLDS, command_of, tuning_path, with_flags
from wording import unword

from engine.files import read_jsonl, write_text
from engine.stored import read_results
from engine.tables import markdown, mean_interval, parts_of, where_paired

SUMMARY = ("Base", "SFT (outline)", "RLVR", "R3 (reverse curriculum)", "RLVR on prefixes", "SRL",
           "SRL then RLVR")                         # the rows of the main README's table
REFERENCES = ("srl", "srl_rlvr", "rejection", "reverse_curriculum", "prefix_rlvr")       # rows of the study that are in the table of the methods
FEW = 5                                             # a row of fewer seeds shows large differences only
WRITING = Lock()


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


def stored_attempts(completions):
    """Yields (model, benchmark, records, grades) of each graded benchmark of the equations in a folder."""
    for path in sorted(completions.glob("*/*.grades.jsonl")):
        benchmark = path.name.removesuffix(".grades.jsonl")
        files = path.with_name(f"{benchmark}.jsonl"), path
        yield path.parent.name, benchmark, *([*map(json.loads, file.read_text().splitlines()[1:])]
                                             for file in files)


def write_lengths(completions):
    """Print mean tokens and frequency of each kind of step, sampled, for each model with completions of the
    equations in a folder.

    A policy without a strategy takes other kinds of steps than one that solves: the mean over all steps
    compares the mix, a row of this table the same kind.
    """
    tokens, kinds = {}, Counter()                           # tokens: of each model, kind -> list of lengths
    for model, _, records, _ in stored_attempts(completions):
        for attempt in [attempt for record in records for attempt in record["sampled"]]:
            for text, length in zip(attempt["turns"], attempt["tokens"], strict=True):
                title = re.search(r"\*\*(\w+)", text)
                for kind in ("all", title[1] if title else "no title"):
                    tokens.setdefault(model, {}).setdefault(kind, []).append(length)
                    kinds[kind] += 1
    if not tokens:
        raise SystemExit(f"{completions}: no completions of 04_eval.py; run it first, or give the folder of "
                         "its --completions")
    print("| tokens (part of all steps) |", " | ".join(tokens), "|\n|" + "---|" * (1 + len(tokens)))
    for kind in [kind for kind, n in kinds.most_common() if n >= 0.001 * kinds["all"]]:
        these = [(lengths.get(kind, []), len(lengths["all"])) for lengths in tokens.values()]
        cells = [f"{fmean(ns):.1f} ({len(ns) / steps:.0%})" if ns else "" for ns, steps in these]
        print(f"| {kind} |", " | ".join(cells), "|")


def departure(turns, problem):
    """How an attempt leaves the expert's solution: "never", or by the first step that is not the expert's, which
    is "valid" where the answer solves its equation, else "wrong"."""
    from ask import last_boxed, parse_equation, srl

    def value(side):                                        # of its terms, see make.py
        return sum({"x": n * x, "c": n}[kind] if kind != "p" else n * (inner[0] * x + inner[1])
                   for kind, n, *inner in side)
    x = int(problem["answer"])
    for turn, expected in zip_longest(turns, problem["solution"].split("\n"), fillvalue=""):
        step = srl.action_of(turn)
        step = unword(step) or step
        if step != expected:
            equation = parse_equation(step.rpartition("**")[2])
            valid = value(equation[0]) == value(equation[1]) if equation else last_boxed(step) == str(x)
            return "valid" if valid else "wrong"
    return "never"


def write_paths(folders):
    """Print how sampled attempts at the miniature's benchmarks leave the expert's solution, and how many of
    each kind are right. folders: completions of several seeds."""
    counts = {}                                             # (model, benchmark): {(departure, is right): number}
    for model, benchmark, records, grades in [part for folder in folders for part in stored_attempts(folder)]:
        path = ROOT / f"miniature/benchmarks/{benchmark}.jsonl"
        problems = {problem["id"]: problem for problem in (read_jsonl(path) if path.exists() else ())}
        for record, grade in zip(records, grades, strict=True) if problems else ():
            for attempt, (verdict, _) in zip(record["sampled"], grade["verdicts"][1:], strict=True):
                kind = departure(attempt["turns"], problems[record["id"]]), verdict == "right"
                counts.setdefault((model, benchmark), Counter())[kind] += 1
    kinds, rows = ("never", "valid", "wrong"), []
    for name, found in counts.items():
        each = [(found[kind, True], found[kind, True] + found[kind, False]) for kind in kinds]
        rows.append([*name, str(found.total()),
                     *(f"{n / found.total():.1%}" + (f", right {right / n:.1%}" if n else "") for right, n in each)])
    heads = ("the expert's steps", "left by a valid step", "left by a wrong step")
    print(markdown(["model", "benchmark", "attempts", *heads], rows))


def for_readme(table):
    """A table.md where all after the first table and the last line is in a <details> element."""
    first, *more, last = table.strip().split("\n\n")
    title = "<summary>pass@k, outcomes, lengths, and differences paired by problem and seed</summary>"
    folded = "\n\n".join([f"<details>{title}", *more, "</details>"])
    return "\n\n".join([first, last, *([folded] if more else [])]) + "\n"


def summary_table(table):
    """avg@8 on hard and long of the rows of SUMMARY, from the first table of a table.md."""
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


def study_row(method, results, folders, reference):
    """{name: value} of a variant: what it cost, its validation, its benchmarks and the difference to SRL."""
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


def by_seed(*results):
    """The results of a method in order of their seeds; of one seed the first."""
    found = {r["train_seed"]: r for r in reversed(sum(results, []))}
    return [found[seed] for seed in sorted(found)]


def write_study(args):
    """results/study/WORLD.json and .md: a row for each variant that has results, those of the table first."""
    world = WORLDS[args.world]
    columns = world["study_benchmarks"]
    with WRITING:
        methods, found = ROOT / world["results"], read_results(args.results)
        known = read_results(methods) if methods.is_dir() else {}
        results = {name: by_seed(known.get(name, []), found.get(name, []))
                   for name in (*REFERENCES, *world["study"])}
        rows = [study_row(name, results[name], (methods, args.results), results["srl"])
                for name in results if results[name]]
        for row in rows:
            name = row["variant"]
            row["command"] = row["command"] or " ".join(command_of(name, world))
            row["command"] += f" --data {world['runs']}/seed*/{DATA[name]}" if name in DATA else ""
            row["command"] += f" --model {world['runs']}/base_{BASES[name]}/base" if name in BASES else ""
        write_text(args.results.with_suffix(".json"), json.dumps(rows, indent=1) + "\n")
        text = study_text(rows, columns, world["study"])
        write_text(args.results.with_suffix(".md"), text)
        write_marked({f"study_{args.world}": text})


def study_text(rows, columns, variants):
    """The rows in Markdown; those of fewer than FEW seeds are folded, below the others. Then what was not run."""
    heads = [text for name in columns for text in (f"{name}: avg@8 [95 %]", "minus SRL [95 %]")]
    heads = ["variant", "command", "seeds", "rollouts", "min", "exact steps", "solved", *heads]
    begun = [row for row in rows if len(row["seeds"]) < FEW]
    text = markdown(heads, [study_line(row, columns) for row in rows if row not in begun]) + "\n"
    seconds = [row[f"seconds_{part}"] for row in rows for part in ("training", "evaluation")]
    text += (f"\nTimed: {sum(len(row['seconds_training']) for row in rows)} runs, "
             f"{sum(map(sum, seconds)) / 3600:.1f} hours of one core.")
    missing = set(variants) - {row["variant"] for row in rows}
    text += f" Not run: {', '.join(f'`{name}`' for name in variants if name in missing)}.\n" if missing else "\n"
    if begun:
        text += (f"\n<details><summary>Tried with fewer than {FEW} seeds: {len(begun)} variants</summary>\n\n"
                 + markdown(heads, [study_line(row, columns) for row in begun]) + "\n\n</details>\n")
    return text


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
