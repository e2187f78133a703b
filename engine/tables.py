"""Intervals, tables and bar charts: without this file results are numbers in JSON only."""
import math
from collections import Counter
from functools import lru_cache
from statistics import NormalDist, fmean, mode
from zlib import crc32

import torch

STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}     # of every figure
SETTINGS = ("k", "temperature", "max_new_tokens", "max_turns", "dtype", "prompt")   # where they differ
CONTROL = "control: "        # a label that begins so is none of the paper's rows
SCORES = ("k", "n", "runs", "avg", "low", "high", "greedy", "pass")     # other numbers are in a second table
FORMATS = {"tokens": "{:.0f}", "calls": "{:.1f}"}       # of numbers that begin with this word; else percent


@lru_cache(maxsize=1024)
def t_quantile(df, level=0.95):
    """The t that a variable of Student's distribution exceeds in absolute value with 1 - level.

    df: degrees of freedom, any number of at least 1.
    """
    from mpmath import betainc, findroot  # a dependency of torch and of math-verify

    def excess(t):                      # P(|T| > t) - (1 - level)
        return betainc(df / 2, 0.5, 0, df / (df + t * t), regularized=True) - (1 - level)
    return float(findroot(excess, 2))


def mean_interval(per_problem, least=0.0, most=1.0, level=0.95):
    """Interval (low, high) of the mean of N numbers, or of S lists of N, one of each training seed.

    It covers other problems and other runs: two-way random effects, each mean square with the t of its own
    degrees of freedom (Banerjee 1961: at least `level`, whatever the components; Satterthwaite's covers 87 %
    with two seeds that differ, tests/bench_intervals.py). One seed: over problems alone. Equal numbers: a
    kind of problem that was not drawn may be z^2 / (N + z^2) of all, with any value from `least` to `most`;
    for 0 of N this is Wilson's interval.
    """
    values = torch.atleast_2d(torch.tensor(per_problem, dtype=torch.float64))   # (S, N)
    S, N = values.shape
    mean = values.mean().item()
    if values.max() - values.min() < 1e-9:
        z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
        return mean - z2 / (N + z2) * (mean - least), mean + z2 / (N + z2) * (most - mean)
    seeds, problems = values.mean(1, keepdim=True) - mean, values.mean(0, keepdim=True) - mean
    effects = seeds, problems, values - mean - seeds - problems                 # (S, 1), (1, N), (S, N)
    dfs = [max(1, df) for df in (S - 1, N - 1, (S - 1) * (N - 1))]
    of_seeds, of_problems, of_rest = (effect.expand(S, N).square().sum().item() / df
                                      for effect, df in zip(effects, dfs, strict=True))     # mean squares
    a, b = t_quantile(dfs[0], level) ** 2, t_quantile(dfs[1], level) ** 2
    square = max(a * of_seeds + b * (of_problems - of_rest), a * of_seeds, b * of_problems)
    half = math.sqrt(square / (S * N))
    return max(least, mean - half), min(most, mean + half)


def markdown(head, rows):
    """A table in Markdown; head and each row: the texts of the cells."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def spread(numbers):
    """"5", or "1 to 5": the least and the greatest."""
    return " to ".join(map(str, sorted({min(numbers), max(numbers)})))


def parts_of(results, benchmark):
    """The benchmark's part of each result that has one."""
    return [r["benchmarks"][benchmark] for r in results if benchmark in r["benchmarks"]]


def paired_runs(results, others, benchmark):
    """Pairs of the parts of two methods' runs with the same training seed; the base's one run with each."""
    ours, theirs = ({r["train_seed"]: r["benchmarks"][benchmark] for r in runs
                     if benchmark in r["benchmarks"]} for runs in (results, others))
    if len(theirs) == 1 and others[0].get("model") == "base":
        theirs = dict.fromkeys(ours, *theirs.values())
    return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]


def where_paired(difference, results, others, benchmarks):
    """{benchmark: (mean, low, high, pairs)} of the benchmarks where runs can be paired."""
    pairs = {benchmark: len(paired_runs(results, others, benchmark)) for benchmark in benchmarks}
    return {b: (*difference(results, others, b), number) for b, number in pairs.items() if number}


def verdict_means(parts):
    """What became of attempts, in percent, over the runs of one row on one benchmark."""
    outcomes = sum((Counter(part["verdicts"]) for part in parts), Counter())
    names = ("wrong", "no answer", *([] if "calls" in parts[0] else ["unparsable"]), "truncated")
    return {name: 100 * outcomes[name] / outcomes.total() for name in names}


def length_means(parts):
    """Tokens and calls of an attempt over the runs of one row on one benchmark."""
    means = {"tokens a response": fmean(p["tokens_per_response"] for p in parts)}
    if "calls" in parts[0]:
        means |= {"calls a task": fmean(p["calls"] / p["k"] / len(p["right"]) for p in parts),
                  "invalid calls": 100 * fmean(p["invalid"] / max(p["calls"], 1) for p in parts)}
    return means


def score_tables(rows, benchmarks, k):
    """Two tables in Markdown: greedy and avg@k with the mean of both; pass@k and means of other numbers.

    rows: {label: {benchmark: numbers}}. Cells without numbers are blank, and so are the means over the
    columns of a row that lacks one.
    """
    names = dict.fromkeys(name for row in rows.values() for numbers in row.values() for name in numbers)
    columns = [name for name in names if name not in SCORES]
    scores, outcomes = [], []

    def text(name, mean):
        return FORMATS.get(name.split()[0], "{:.1f} %").format(mean)
    for label, row in rows.items():
        parts = [row.get(benchmark) for benchmark in benchmarks]
        form = "{greedy:.1f} | {avg:.1f} [{low:.1f}, {high:.1f}]"
        cells = [form.format(**p) if p else " | " for p in parts]
        means = {name: fmean(p[name] for p in parts) for name in ("greedy", "avg", *columns)
                 if all(p and name in p for p in parts)}
        average = f"{(means['greedy'] + means['avg']) / 2:.1f}" if means else ""
        scores.append([label, spread([p["runs"] for p in row.values()]), *cells, average])
        outcomes.append([label, *(f"{p['pass']:.1f}" if p else "" for p in parts),
                         *(text(name, means[name]) if name in means else "" for name in columns)])
    heads = [text for b in benchmarks for text in (f"{b}: greedy", f"{b}: avg@{k} [95 %]")]
    return [markdown(["method", "seeds", *heads, "average"], scores),
            markdown(["method", *(f"{b}: pass@{k}" for b in benchmarks), *columns], outcomes)]


def difference_table(rows, benchmarks, k):
    """A table in Markdown. rows: {label: {benchmark: (mean, low, high, pairs)}}, blank without one."""
    lines = []
    for label, row in rows.items():
        cells = {b: f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" for b, (mean, low, high, _) in row.items()}
        pairs = [number for *_, number in row.values()] or [0]
        lines.append([label, spread(pairs), *(cells.get(b, "") for b in benchmarks)])
    return markdown([f"avg@{k}, paired difference [95 %]", "pairs", *benchmarks], lines)


def with_columns(found):
    """The results {name: list of results}, with a column's name in place of each benchmark's: another name
    where number or text of the problems or the mode differ, so that a column never mixes them."""
    def key(result, benchmark):
        part = result["benchmarks"][benchmark]
        return benchmark, len(part["right"]), result.get("decoding", {}).get("mode"), part.get("problems", "")
    keys = dict.fromkeys(key(r, b) for results in found.values() for r in results for b in r["benchmarks"])
    names = {}
    for benchmark, *rest in keys:
        same = [other for name, *other in keys if name == benchmark]
        texts = f"{rest[0]} problems", f"mode {rest[1]}", f"problems {rest[2][:6] or 'unknown'}"
        differ = [text for text, values in zip(texts, zip(*same, strict=True), strict=True)
                  if len(set(values)) > 1]
        names[benchmark, *rest] = f"{benchmark} ({', '.join(differ)})" if differ else benchmark
    return {name: [{**r, "model": name, "benchmarks": {names[key(r, b)]: r["benchmarks"][b]
                                                       for b in r["benchmarks"]}} for r in results]
            for name, results in found.items()}


def caption(found):
    """What a reader has to know: numbers of problems, kind of interval, and where the settings of a row are
    not those of most rows. found: {label: results of with_columns}."""
    sizes = {b: len(part["right"]) for results in found.values() for r in results
             for b, part in r["benchmarks"].items()}
    each = "Problems: " + ", ".join(f"{n} in {b}" for b, n in sizes.items())
    texts = [f"{min(sizes.values())} problems a benchmark" if len(set(sizes.values())) == 1 else each]
    over = "problems and training seeds" if max(map(len, found.values())) > 1 else "problems"
    texts += [f"Intervals: 95 %, Student's t over {over}; where all attempts are right or none is, Wilson's",
              "Average: the mean of the columns"]
    for name in SETTINGS:
        values = {label: values_of(results, name) for label, results in found.items()}
        usual = mode([value for value in values.values() if value] or [""])
        others = [f"{value} in {label}" for label, value in values.items() if value not in ("", usual)]
        texts += [f"{name} is {usual}, but {', '.join(others)}"] if others else []
    return ". ".join(texts) + "."


def values_of(results, name):
    """The values of a setting, or of k, in the results of one row; "" where they are not known."""
    parts = [{**({"prompt": "ours", **r["decoding"]} if "decoding" in r else {}), "k": part["k"]}
             for r in results for part in r["benchmarks"].values()]
    values = dict.fromkeys(str(part[name]) for part in parts if name in part)
    return ", ".join(v if len(v) <= 40 else f"{v[:40]}.. (CRC {crc32(v.encode())})" for v in values)


def results_table(found, label, summary, difference, comparisons, notes):
    """(Markdown, {name: {column: numbers}}, columns, k) of results {name: list of results}.

    label(name); summary(results, column, k) -> numbers, see score_tables; difference(results, others,
    column) -> (mean, low, high), of the pairs of names in `comparisons`. notes: {benchmark: text below}.
    """
    found = with_columns(found)
    parts = [item for results in found.values() for r in results for item in r["benchmarks"].items()]
    columns, k = list(dict.fromkeys(b for b, _ in parts)), min(part["k"] for _, part in parts)
    rows = {name: {b: summary(results, b, k) for b in columns if parts_of(results, b)}
            for name, results in found.items()}
    texts = score_tables({label(name): row for name, row in rows.items()}, columns, k)
    differences = {f"{label(a)} minus {label(b)}": where_paired(difference, found[a], found[b], columns)
                   for a, b in comparisons if {a, b} <= set(found)}
    if differences:
        texts.append(difference_table(differences, columns, k))
    texts += dict.fromkeys(notes[b] for b in (column.split(" (")[0] for column in columns) if b in notes)
    texts.append(caption({label(name): results for name, results in found.items()}))
    return "\n\n".join(texts), rows, columns, k


def bar_panels(path, panels, colours, title, xlabel):
    """Write a figure of horizontal bars, two panels a row. panels: {title: {label: (value, low, high)}},
    in percent.

    colours: {label: colour}; the first label is at the top. Labels that begin with CONTROL are below the
    others, under a heading of their own, and hatched.
    """
    import matplotlib
    from matplotlib.figure import Figure  # needs no screen, and leaves a notebook's backend alone

    matplotlib.rcParams.update(STYLE)
    controls = [label for label in colours if label.startswith(CONTROL)]
    labels = [label for label in colours if label not in controls]
    labels += ["controls:", *controls] if controls else []
    columns, rows = min(2, len(panels)), math.ceil(len(panels) / 2)
    figure = Figure(figsize=(2.7 * columns + 2, (0.32 * len(labels) + 0.9) * rows + 0.8))
    axes = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
    for ax in axes[len(panels):]:
        ax.remove()
    for ax, (panel, bars) in zip(axes, panels.items(), strict=False):
        for label, (value, low, high) in bars.items():
            y, ends = labels.index(label), [[max(0, value - low)], [max(0, high - value)]]
            fill = {"color": "white", "hatch": "////"} if label in controls else {"color": colours[label]}
            ax.barh(y, value, **fill, edgecolor=colours[label], height=0.7, xerr=ends,
                    error_kw={"ecolor": "#333333", "capsize": 3})
            ax.text(max(high, value) + 3, y, f"{value:.0f}", va="center", fontsize=10)
        ax.set(title=panel, xlim=(0, 116), xticks=(0, 50, 100), ylim=(len(labels) - 0.4, -0.6))
        ax.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(labels)), [label.removeprefix(CONTROL) for label in labels])
    figure.supxlabel(xlabel, fontsize=11)
    figure.suptitle(title, fontsize=12)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
