"""The notebooks' drawing code: a notebook computes the numbers in the open, a function here draws them.

A figure is WIDTH inches wide, so that its text can be read on a phone too; panels are below each other.
"""
import itertools  # noqa: F401  for the notebooks
import json
import math
import sys
import textwrap
from difflib import SequenceMatcher
from html import escape
from importlib import import_module
from inspect import getsource
from io import BytesIO
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import PIL.Image
import torch
from IPython.display import HTML, Image, Markdown, display

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "miniature")]
segmentation, evaluate = import_module("01_segment"), import_module("04_eval")
rlvr, srl, agents = evaluate.rlvr, evaluate.srl, import_module("agents")     # miniature/agents.py
variants = import_module("variants")                                         # miniature/variants.py
engine, label, tables = import_module("engine"), evaluate.label, evaluate.tables
draw = sys.modules[__name__]        # a notebook's one line: from pictures import draw, torch, srl ..

WIDTH = 6.0
BLUE, GREEN, ORANGE, GREY, PALE = "#0072B2", "#009E73", "#D55E00", "#777777", "#bbbbbb"
plt.rcParams.update({**tables.STYLE, "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN])})   # C0..C2


def colour(name):
    return evaluate.METHODS[name][1]


def control(name):
    """Whether a method is none of the paper's: hatched bars, dashed lines."""
    return label(name).startswith(tables.CONTROL)


def short_label(name):
    return label(name).removeprefix(tables.CONTROL)


def read_log(path):
    """The log of a run, one dictionary a line."""
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def logs(found, method, world="miniature"):
    """The logs of a method's runs, one for each seed, without the line of the first validation."""
    runs = [ROOT / f"results/{world}/seed{result['train_seed']}" for result in found[method]]
    return [[line for line in read_log(run / f"{method}.log.jsonl") if "exact" in line] for run in runs]


# Text: source, tables
def source(*functions):
    """The source of functions as it is in the scripts and in engine/."""
    text = "\n\n".join(getsource(function).rstrip() for function in functions)
    return Markdown(f"```python\n{text}\n```")


def code_cell(text):
    """HTML of a text, which is escaped: its line breaks and blanks stay, and only blanks are broken."""
    lines = [line.replace("  ", "&nbsp;&nbsp;") for line in text.splitlines()]
    return "<br>".join(f"<code>{line}</code>" for line in lines if line)


def html_table(head, rows):
    """A table of HTML cells without styles, which some pages strip; align beats the right of others."""
    heads = "".join(f"<th><div align='left'>{escape(str(text))}</div></th>" for text in head)
    lines = ["".join(f"<td><div align='left'>{cell}</div></td>" for cell in row) for row in rows]
    return HTML(f"<table>{''.join(f'<tr>{line}</tr>' for line in (heads, *lines))}</table>")


def table(head, rows):
    """A table of texts; code is what has a line break or a sign of code or of a formula."""
    def cell(text):
        return code_cell(escape(text)) if set("\n\\$<*=") & set(text) else escape(text)
    return html_table(head, [[cell(str(text)) for text in row] for row in rows])


def matching_blocks(pairs):
    """A table of (action, expert's action): the action with matching characters underlined, M, T and R."""
    rows = []
    for action, expert in pairs:
        blocks = SequenceMatcher(None, action, expert, autojunk=False).get_matching_blocks()
        text, end = "", 0
        for begin, _, size in blocks:
            text += escape(action[end:begin])
            end = begin + size
            text += f"<u>{escape(action[begin:end])}</u>" if size else ""
        M, T = sum(size for _, _, size in blocks), len(action) + len(expert)
        rows.append((code_cell(text), M, T, f"<b>{2 * M / T:.3f}</b>"))
    return html_table(("action", "M", "T", "R = 2M / T"), rows)


def turns_side_by_side(columns):
    """A table of the first six steps of attempts {name: completions}: a row a step, thoughts above it."""
    rows = []
    for k in range(min(6, max(map(len, columns.values())))):
        cells = [turns[k] if k < len(turns) else "" for turns in columns.values()]
        rows.append((k + 1, *cells))
    return table(("step", *columns), rows)


def display_figure(figure):
    """Display a figure, two pixels for one of the page; 128 colours are a third of the bytes."""
    file, small = BytesIO(), BytesIO()
    figure.savefig(file, dpi=200, bbox_inches="tight", pad_inches=0.05)
    plt.close(figure)
    picture = PIL.Image.open(file).convert("RGB").quantize(128, dither=PIL.Image.Dither.NONE)
    picture.save(small, "PNG", optimize=True)
    display(Image(small.getvalue(), width=picture.width // 2))


def token_boxes(rows, width=64):
    """Rows of tokens (text, fill, edge) as coloured boxes, wrapped at `width` characters; a text alone is a
    heading."""
    placed, line = [], 0
    for row in rows:
        column = 0
        for text, fill, edge in [(row, "white", "white")] if isinstance(row, str) else row:
            text = text.replace("\n", "⏎")
            if column + len(text) > width:
                line, column = line + 1, 0
            placed.append((line, column, text, fill, edge))
            column += len(text)
        line += 1.0 if isinstance(row, str) else 1.5
    figure, ax = plt.subplots(figsize=(WIDTH, 0.26 * line + 0.1))
    for line_number, column, text, fill, edge in placed:
        box = plt.Rectangle((column, line_number), len(text), 0.9, fc=fill, ec=edge, lw=1)
        ax.add_patch(box)
        text = text.replace("$", r"\$")
        ax.text(column, line_number + 0.5, text, va="center", family="monospace", fontsize=11)
    ax.set(xlim=(0, width), ylim=(line, 0))
    ax.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    display_figure(figure)


# Figures that several notebooks use
def finish(figure, title=None):
    if title:
        lines = math.ceil(len(title) / 56)      # of about equal length
        figure.suptitle(textwrap.fill(title, len(title) // lines + 8), fontsize=12)
    figure.tight_layout()
    display_figure(figure)


def in_thousands(ax, what="completions sampled"):
    ax.set_xlabel(what)
    ax.set_xlim(left=0)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:.0f}k" if x else "0")


def bars(values, title, xlabel, colours=BLUE, form="%.2f", right=1.15):
    """Horizontal bars {name: value} with their numbers."""
    figure, ax = plt.subplots(figsize=(WIDTH, 0.42 * len(values) + 1.2))
    drawn = ax.barh(list(values), list(values.values()), color=colours)
    ax.bar_label(drawn, fmt=form, padding=4)
    ax.invert_yaxis()
    ax.set(xlabel=xlabel)
    if min(values.values()) >= 0:
        ax.set_xlim(0, right * max(values.values()))
    else:
        ax.axvline(0, color=GREY, lw=1)
        ax.margins(x=0.35)
    ax.locator_params(axis="x", nbins=5)
    finish(figure, title)


def means_of_ten(lines, value):
    """Completions at the end of each ten updates; the mean of value(line), weighted with the groups sampled."""
    parts = [lines[i:i + 10] for i in range(0, len(lines), 10)]
    weights = [sum(line["sampled"] for line in part) for part in parts]
    sums = [sum(value(line) * line["sampled"] for line in part) for part in parts]
    return [part[-1]["done"] for part in parts], [s / w for s, w in zip(sums, weights, strict=True)]


def kept_share(line):
    return line["kept"] / line["sampled"]


def exact_share(line):
    return line["exact"]


def runs_over_time(logs, panels):
    """Means of ten updates, a line a seed. logs: {method: logs}; a panel: title, ylabel, value, methods."""
    figure, axes = plt.subplots(len(panels), 1, figsize=(WIDTH, 3 * len(panels)))
    for ax, (title, ylabel, value, methods) in zip(axes, panels, strict=True):
        for method in methods:
            for n, lines in enumerate(logs[method]):
                ax.plot(*means_of_ten(lines, value), color=colour(method), lw=1.3,
                        label=None if n else label(method))
        ax.set(title=title, ylabel=ylabel, ylim=(-0.03, 1.03))
        in_thousands(ax, "completions sampled (a line per seed)")
        ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    finish(figure)


def paired_differences(found, pairs, title, numbers=False):
    """For each benchmark the paired differences in avg@k of (method, other method) that have results, with 95 %
    intervals."""
    pairs = [(a, b) for a, b in pairs if a in found and b in found]
    benchmarks = list(found["base"][0]["benchmarks"])
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, 0.72 * len(pairs) + 2.4), sharey=True)
    for ax, bench in zip(axes.flat, benchmarks, strict=True):
        for y, (a, b) in enumerate(pairs):
            mean, low, high = evaluate.paired_difference(found[a], found[b], bench)
            ends = [[mean - low], [high - mean]]
            ax.errorbar(mean, y, xerr=ends, fmt="o", color=colour(a), capsize=4, lw=2)
            if numbers:
                ax.text(mean, y - 0.14, f"{mean:+.1f}", ha="center", va="bottom", fontsize=10)
                ax.margins(x=0.15)          # for the numbers
        ax.axvline(0, color=GREY, lw=1)
        ax.set(title=bench, ylim=(len(pairs) - 0.5, -0.7))
    names = [f"{short_label(a)} − {short_label(b)}" for a, b in pairs]
    axes[0, 0].set_yticks(range(len(pairs)), names)
    figure.supxlabel("difference in points, paired by problem and seed, 95 % interval", fontsize=11)
    finish(figure, title)


def results_figure(found):
    """The figure that 04_eval.py writes."""
    with TemporaryDirectory() as folder:
        evaluate.make_figure(found, Path(folder) / "figure.png")
        return Image((Path(folder) / "figure.png").read_bytes(), width=660)


# 1. Segmentation
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "<|im_start|>assistant\n")          # the format of Qwen2.5
OLYMPIAD = (    # problem 1 of the first International Mathematical Olympiad, 1959, in our words; our solution
    r"Let \(n\) be a natural number. Find the greatest common divisor of \(21n+4\) and \(14n+3\).",
    r"""We run Euclid's algorithm on the two expressions, with \(n\) as it is.

1. **Subtract the smaller from the larger:** A common divisor \(d\) of both also divides their difference,
\[
(21n + 4) - (14n + 3) = 7n + 1.
\]

2. **Subtract the difference twice:** So \(d\) divides
\[
(14n + 3) - 2(7n + 1) = 1.
\]

3. **Test a few cases:** The pairs should have no common factor.
   1. For \(n = 1\): 25 and 17.
   2. For \(n = 2\): 46 and 31.
   3. For \(n = 10\): \(214 = 2 \cdot 107\) and \(143 = 11 \cdot 13\).

4. **Conclude:** Since \(d\) divides 1, it is 1 for every \(n\); the fraction \(\frac{21n+4}{14n+3}\) is in lowest terms.

The greatest common divisor is \(\boxed{1}\).
""")


def examples_of(examples):
    """The triangle of a solution's examples: in row k steps 1..k-1 are given and step k is the target."""
    N = len(examples)
    figure, ax = plt.subplots(figsize=(WIDTH, 0.4 * N + 0.8))
    for row, example in enumerate(examples):
        for i in range(N):
            state = (i > example["k"] - 1) - (i < example["k"] - 1)         # -1 given, 0 asked, 1 later
            fill, ink = {-1: (PALE, "black"), 0: (BLUE, "white"), 1: ("#f3f3f3", "#999999")}[state]
            ax.add_patch(plt.Rectangle((i, row), 0.94, 0.9, color=fill))
            ax.text(i + 0.47, row + 0.45, f"step {i + 1}", ha="center", va="center", color=ink,
                    weight="normal" if state else "bold")
    ax.set(xlim=(0, N), ylim=(N, 0), xticks=[])
    ax.set_yticks([row + 0.45 for row in range(N)], [f"example {row + 1}" for row in range(N)])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    finish(figure, f"{N} steps make {N} examples: grey is given, blue is the target")


def lengths(sizes, examples):
    """How many steps solutions have, and how many characters actions have."""
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 5.4))
    drawn = axes[0].bar([str(n) for n in sorted(sizes)], [sizes[n] for n in sorted(sizes)], color=BLUE)
    axes[0].bar_label(drawn)
    axes[0].margins(y=0.15)
    axes[0].set(xlabel="steps in a solution", ylabel="problems",
                title=f"{sum(sizes.values()):,} problems become {len(examples):,} examples")
    axes[1].hist([len(e["action"]) for e in examples], bins=range(30, 60), color=BLUE)
    axes[1].set(xlabel="characters in an action", ylabel="actions", title="An action is one line of text")
    finish(figure)


# 2. SRL
def near_copies(lengths, R):
    """R of a near copy by length, {autojunk: list}."""
    figure, ax = plt.subplots(figsize=(WIDTH, 3.2))
    ax.plot(lengths, R[True], color=ORANGE, lw=2.5, ls="--", label="autojunk=True, difflib's default")
    ax.plot(lengths, R[False], color=GREEN, lw=2.5, label="autojunk=False, the script")
    ax.axvline(200, color=GREY, lw=1, ls=":")
    ax.set(ylim=(0, 1.05), xlabel="characters of the expert's step (the copy differs in one)", ylabel="R")
    ax.legend(frameon=False, loc="lower left")
    finish(figure, "From 200 characters on, difflib's default no longer sees a near copy")


def token_grid(push, mask, names):
    """The step of gradient descent for the log-probability of each token (B, T)."""
    figure, ax = plt.subplots(figsize=(WIDTH, 2.9))
    ax.imshow(push, cmap="PuOr", vmin=-0.3, vmax=0.3, aspect="auto")
    for i, row in enumerate(mask):
        for t, inside in enumerate(row):
            text, ink = (f"{push[i, t]:+.3f}", "black") if inside else ("padding", "#999999")
            ax.text(t, i, text, ha="center", va="center", color=ink)
    ax.set_yticks(range(len(names)), names)
    ax.set_xticks(range(mask.shape[1]), [f"token {t + 1}" for t in range(mask.shape[1])])
    ax.spines[:].set_visible(False)
    finish(figure, "Descent raises the tokens of the good completion and lowers the others, more in short ones")


def trained_tokens(tokenizer, prompt, completions, mask):
    """The tokens of prompt and completions; the mask (B, T) says which of them learn."""
    gap = ("  ", "white", "white")
    rows = [[("prompt", "#dddddd", "white"), gap, ("trained", "#9fd6c2", "white"), gap, ("EOS", "#f2b58a", ORANGE),
             (" end of sequence, trained", "white", "white"), gap, ("·", "white", "#cccccc"),
             (" padding", "white", "white")]]
    for completion, learns in zip(completions, mask.tolist(), strict=True):
        row = [(tokenizer.decode([token]), "#dddddd", "white") for token in prompt]
        row += [(tokenizer.decode([token]), "#9fd6c2", "white") for token in completion[:-1]]
        row += [("EOS", "#f2b58a", ORANGE)] + [("·", "white", "#cccccc")] * (len(learns) - sum(learns))
        rows.append(row)
    token_boxes(rows)


def spread_of_groups(rewards, exact, eps):
    """The rewards (P, G) of each group, similarity and exact or not, and whether dynamic sampling keeps it."""
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 6))
    for ax, r, name in ((axes[0], rewards, "similarity"), (axes[1], exact, "exact or not")):
        keep = srl.informative_groups(r, eps)
        for n, i in enumerate(r.std(-1, correction=0).argsort()):
            fill, marker = (GREEN, "o") if keep[i] else (PALE, "x")
            ax.scatter([n] * len(r[i]), r[i], s=22, color=fill, marker=marker)
        ax.set(ylabel="reward", ylim=(-0.05, 1.05),
               title=f"{name}: {int(keep.sum())} of {len(r)} groups kept")
    axes[1].set_xlabel("group, ordered by the spread of its rewards")
    finish(figure, "The reward decides how many groups have a signal (crosses: dropped)")


def one_update(advantages, mean_change, changes):
    """Of each completion advantage and change; {(part, kind): mean change of a part's log-probability}."""
    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 6), height_ratios=(3, 2))
    edge = mean_change.abs().quantile(0.98).item()      # the 2 % that moved most are drawn at the edge
    axes[0].scatter(advantages, mean_change.clamp(-edge, edge), s=16, color=GREEN, alpha=0.5)
    axes[0].axhline(0, color=GREY, lw=1)
    axes[0].axvline(0, color=GREY, lw=1)
    axes[0].set(xlabel="advantage", ylabel="change per token (2 % clamped)",
                title="A completion with a higher advantage gains more")
    names = [f"{kind}: {part}" for part, kind in changes]
    fills = [GREEN if kind == "better" else ORANGE for _, kind in changes]
    drawn = axes[1].barh(names, list(changes.values()), color=fills, height=0.6)
    axes[1].bar_label(drawn, fmt="%+.4f", padding=4)
    axes[1].invert_yaxis()
    axes[1].axvline(0, color=GREY, lw=1)
    axes[1].margins(x=0.25)
    axes[1].set(xlabel="mean change of log-probability", title="The choice is made in the thoughts")
    finish(figure)


def changed_tokens(texts, change, heads):
    """Completions token by token: green became more probable, orange less, the stronger the more."""
    rows = []
    for row, values, head in zip(texts, change.tolist(), heads, strict=True):
        cells = []
        for t, text in enumerate(row):
            x = max(-1.0, min(1.0, values[t] / 0.2))
            r, g, b = (0, 0.62, 0.45) if x > 0 else (0.9, 0.47, 0)
            fill = tuple(1 - abs(x) * (1 - part) for part in (r, g, b))
            cells.append(("EOS" if t == len(row) - 1 else text, fill, "white"))
        rows += [head, cells]
    token_boxes(rows)


def whole_run(log):
    """A run of 02_srl_train.py from its log: reward and exact steps, validation, groups kept, tokens."""
    steps, checks = [x for x in log if "exact" in x], [x for x in log if "val_exact" in x]
    done, val = [x["done"] for x in steps], [x["val_exact"] for x in checks]
    figure, axes = plt.subplots(4, 1, figsize=(WIDTH, 8.4), sharex=True)
    axes[0].plot(done, [x["reward"] for x in steps], color="#555555", ls="--", label="mean reward")
    axes[0].plot(done, [x["exact"] for x in steps], color=GREEN, label="exact steps")
    axes[0].set(title="The mean reward starts high, the exact steps do not", ylim=(0, 1.02))
    axes[0].legend(frameon=False)
    axes[1].plot([x["done"] for x in checks], val, color=GREEN, marker="o", ms=4)
    axes[1].set(title=f"Validation, greedy: {val[0]:.0%} to {max(val):.0%} exact", ylim=(0, 1.02))
    axes[2].plot(done, list(map(kept_share, steps)), color=GREEN)
    axes[2].set(title="Fewer and fewer groups differ", ylim=(0, 1.02), ylabel="kept / sampled")
    axes[3].plot(done, [x["tokens"] for x in steps], color=GREEN)
    axes[3].set(title="Completions do not get longer", ylim=(0, None), ylabel="tokens")
    in_thousands(axes[3])
    finish(figure)


def two_rates(log, high):
    """Mean reward and exact steps of two runs: the default learning rate, and one ten times as high."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3.4), sharex=True)
    last = high[-1]
    until = [x for x in log if "exact" in x and x["done"] <= last["done"]]
    runs = ("3e-4, the default", until, GREEN, "-"), ("3e-3", high[1:], ORANGE, "--")
    for ax, name in zip(axes, ("reward", "exact"), strict=True):
        for rate, lines, fill, dash in runs:
            ax.plot([x["done"] for x in lines], [x[name] for x in lines], color=fill, ls=dash, lw=2.5,
                    label=f"rate {rate}")
        ax.set(title={"reward": "mean reward", "exact": "fraction of exact steps"}[name], ylim=(0, 1.02))
        in_thousands(ax)
    axes[0].legend(frameon=False, loc="lower right")
    finish(figure, f"Ten times the learning rate: reward {last['reward']:.2f}, exact {last['exact']:.0%}")


# 3. RLVR
def every_step(p, solved):
    """Solved problems against exact steps, both {method: fraction}: independent steps (p^N) and measured."""
    grid = torch.linspace(0, 1, 201)
    figure, ax = plt.subplots(figsize=(WIDTH, 4.2))
    for N, dash in ((6, "-"), (8, "-.")):
        ax.plot(grid, grid**N, dash, color=GREY, lw=2.5 if N == 6 else 1.5, label=f"N = {N}")
    for name, x in p.items():
        if solved[name] - x**6 > 0.02:
            ax.annotate("", (x, solved[name] - 0.02), (x, x**6), arrowprops={"arrowstyle": "->", "lw": 1.5})
        ax.scatter([x], [x**6], s=90, fc="white", ec="black", zorder=3)
        ax.scatter([x], [solved[name]], s=110, color=colour(name), ec="black", zorder=4)
        text = f"{label(name)}: p = {x:.2f}\nmeasured {solved[name]:.2g} (solid)\np⁶ = {x**6:.2g} (hollow)"
        side = {"xytext": (-18, -40), "ha": "right"} if x > 0.5 else {"xytext": (0, 14), "ha": "left"}
        ax.annotate(text, (x, solved[name]), textcoords="offset points", **side,
                    bbox={"fc": "white", "ec": "none", "pad": 1})
    ax.set(xlabel="p, fraction of exact steps (sampled)", ylabel="problems solved", ylim=(-0.03, 1.05))
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
    finish(figure, "Solving needs every step: the last points of p are worth the most")


def signal(logs):
    """Groups with a signal against successful attempts, ten updates a dot, and 1 - (1-q)^8 - q^8."""
    q = torch.linspace(0, 1, 201)
    figure, ax = plt.subplots(figsize=(WIDTH, 3.6))
    ax.plot(q, 1 - (1 - q)**8 - q**8, color=GREY, lw=2, label="1 - (1 - q)⁸ - q⁸")
    for method, runs in logs.items():
        x = sum((means_of_ten(lines, exact_share)[1] for lines in runs), [])
        y = sum((means_of_ten(lines, kept_share)[1] for lines in runs), [])
        ax.scatter(x, y, s=36, color=colour(method), ec="white", lw=0.5, zorder=3, label=label(method))
    ax.set(xlabel="q, fraction of attempts that succeed", ylabel="groups with a signal", ylim=(-0.03, 1.05))
    ax.legend(frameon=False, loc="center")
    finish(figure, "Outcome rewards have a signal in the middle, and none at both ends")


# 4. Evaluation
def pass_curves(curves):
    """pass@1 .. pass@k of each method, in percent."""
    figure, ax = plt.subplots(figsize=(WIDTH, 4.6))
    for (name, curve), marker in zip(curves.items(), "osD^vPX<>*hpd", strict=False):
        ax.plot(range(1, len(curve) + 1), curve, "--" if control(name) else "-", marker=marker, lw=2,
                color=colour(name), label=label(name))
    ax.set(xlabel="attempts k", ylabel="pass@k, %", ylim=(-3, 103))
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.22), ncols=2, fontsize=10)
    finish(figure, "More attempts help most where a method is right now and then")


def intervals(found):
    """Intervals of SRL, {benchmark: {"problems", "seeds" or "both": (low, high)}}."""
    figure, ax = plt.subplots(figsize=(WIDTH, 0.95 * len(found) + 1.2))
    styles = {"problems": (0.25, ":", GREY), "seeds": (0, "--", GREY), "both": (-0.25, "-", GREEN)}
    for y, parts in enumerate(found.values()):
        for name, (low, high) in parts.items():
            shift, dash, ink = styles[name]
            text = None if y else f"over {name}"
            ax.plot([low, high], [y + shift] * 2, dash, color=ink, lw=3, label=text)
            ax.text(high + 1, y + shift, f"{high - low:.0f} points", va="center", fontsize=10)
    ax.set_yticks(range(len(found)), list(found))
    ax.set(xlim=(0, 105), ylim=(len(found) - 0.4, -0.6), xlabel="SRL, avg@8, %, 95 % intervals")
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    finish(figure, "The training seed is the larger source of doubt about SRL's score")


def problem_by_problem(found, benchmarks, before="srl", after="srl_rlvr"):
    """Each problem's share of right attempts under two methods, mean over the seeds that both have."""
    figure, axes = plt.subplots(2, 2, figsize=(WIDTH, 6.6), sharex=True, sharey=True)
    for ax, bench in zip(axes.flat, benchmarks, strict=True):
        runs = [{r["train_seed"]: r["benchmarks"][bench] for r in found[m]} for m in (before, after)]
        seeds = sorted(set(runs[0]) & set(runs[1]))
        rights = [torch.tensor([r[seed]["right"] for seed in seeds]).double().mean(0) for r in runs]
        x, y = (right / runs[0][seeds[0]]["k"] for right in rights)
        jitter = torch.rand(2, len(x), generator=torch.Generator().manual_seed(0)) * 0.03 - 0.015
        ax.scatter((x + jitter[0]).clamp(0, 1), (y + jitter[1]).clamp(0, 1), s=18, alpha=0.6, color=colour(after))
        ax.plot([0, 1], [0, 1], color=GREY, lw=1)
        better, worse = int((y > x).sum()), int((y < x).sum())
        ax.set(title=f"{bench}: {better} better, {worse} worse", xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    figure.supxlabel(f"fraction of right attempts, {label(before)}", fontsize=11)
    figure.supylabel(f"fraction of right attempts, {label(after)}", fontsize=11)
    finish(figure, "Each dot a problem: above the line RLVR made it better")


def response_lengths(rows, benchmarks):
    """Tokens of a response and of a step, mean over the benchmarks; dashed: the base."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 0.4 * len(rows) + 1.8), sharey=True)
    for ax, key in zip(axes, ("tokens a response", "tokens a step"), strict=True):
        values = {m: fmean(row[bench][key] for bench in benchmarks) for m, row in rows.items()}
        drawn = ax.barh(list(map(short_label, values)), list(values.values()),
                        color=["white" if control(m) else colour(m) for m in values],
                        hatch=["////" if control(m) else "" for m in values],
                        edgecolor=list(map(colour, values)))
        ax.bar_label(drawn, fmt="%.0f", padding=4, bbox={"fc": "white", "ec": "none", "pad": 1})
        ax.axvline(values["base"], color="black", ls="--", lw=1)
        ax.set_title(f"{key}:\nbase {values['base']:.0f}, SRL {values['srl']:.0f}")
        ax.margins(x=0.22)
    axes[0].invert_yaxis()
    finish(figure, "Length is not where the gain comes from (dashed: the base model; hatched: controls)")


def same_model_twice(scores):
    """Histograms of the scores {problems: (20,000 tests, 2)} of one model whose true rate is 13 %."""
    figure, ax = plt.subplots(figsize=(WIDTH, 3.8))
    edges = [100 * (i - 0.5) / 30 for i in range(13)]
    styles = (ORANGE, "-"), (BLUE, "--"), (GREEN, ":")
    for (n, pair), (fill, dash) in zip(scores.items(), styles, strict=True):
        apart = ((pair[:, 0] - pair[:, 1]).abs() >= 3.3).float().mean()
        ax.hist(pair[:, 0].tolist(), bins=edges, lw=2.5, color=fill, ls=dash,
                weights=[100 / len(pair)] * len(pair), histtype="step",
                label=f"{n} problems: in {apart:.0%} two tests differ by 3.3 points or more")
    ax.set(xlabel="score, % (bars as wide as one problem of 30)", ylabel="% of tests")
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.45, 1))
    finish(figure, "The score of one and the same model, whose true rate is 13 %")


def power(sizes, tests, gain):
    """{kind of test: % of draws of n problems that show the gain}."""
    figure, ax = plt.subplots(figsize=(WIDTH, 3.6))
    styles = (BLUE, "o-", -16), (ORANGE, "x--", 7)          # the last: where the number is, in points
    for (name, values), (ink, style, above) in zip(tests.items(), styles, strict=True):
        ax.plot([str(n) for n in sizes], values, style, color=ink, lw=2.5, label=f"{name} at each problem")
        for i, value in enumerate(values):
            ax.annotate(f"{value:.0f}", (i, value), (0, above), textcoords="offset points", ha="center",
                        color=ink)
    ax.set(xlabel="problems in the benchmark", ylabel="% of tests that show the gain", ylim=(-12, 115))
    ax.legend(frameon=False, loc="lower right")
    finish(figure, f"A true gain of {gain:.1f} points: how often is it shown?")


# 5. Agents
def calls_of_models(similarities, verdicts):
    """{method: similarity of each of five calls to the expert's}, a row a method, with what became of it."""
    figure, ax = plt.subplots(figsize=(WIDTH, 0.5 * len(similarities) + 1.1))
    rows = list(similarities.values())
    ax.imshow(rows, cmap="Greens", vmin=0, vmax=2, aspect="auto")
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            ax.text(x, y, f"{value:.3f}", ha="center", va="center", weight="bold" if value == 1 else "normal")
    ax.set_xticks(range(5), [f"call {k}" for k in range(1, 6)])
    ax.set_yticks(range(len(rows)), [f"{label(method)}: {verdicts[method]}" for method in similarities])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    finish(figure, "Similarity of each call to the expert's (bold: the same call)")


# 6. The study
WORDS = {   # of a variant of miniature/methods.py, for the axis
    "srl": "SRL", "srl_rlvr": "SRL then RLVR", "rejection": "rejection sampling", "best_of_8": "best of 8",
    "prefix_rlvr": "RLVR on prefixes", "reverse_curriculum": "R3 (reverse curriculum)",
    "reverse_curriculum_low": "R3, low rate", "g4": "G = 4", "g16": "G = 16", "g32": "G = 32",
    "p4": "P = 4", "p48": "P = 48", "eps0": "eps 0", "eps5": "eps 0.05", "minibatches4": "4 updates a batch",
    "token_mean": "token mean", "targets": "steps 1..N-1", "title_hint": "title hint",
    "srl_base_1700": "SRL, 1/8 of pretraining", "srl_base_3400": "SRL, 1/4 of pretraining",
    "equation": "equation alone", "exact": "1 if equal, else 0", "fourth_power": "R to the 4th power",
    "formulas": "without words", "formulas_4": "without words, 4th power", "both_4": "both, 4th power",
    "both_4_p8": "both, 4th power, P = 8", "formulas_4_p8": "without words, 4th, P = 8",
    "formulas_4_masked": "without words, 4th, no refill",
    "formulas_exact_masked": "without words, 0/1, no refill",
    "detours_formulas_4_masked": "w/o words, off the path too",
    "formulas_4_p4": "without words, 4th, P = 4", "formulas_4_g16": "without words, 4th, G = 16",
    "tokens": "tokens compared", "no_title": "without the title", "ranks": "ranks in the group",
    "detours": "off the path too", "detours_masked": "off the path too, no refill",
    "all_groups": "all groups kept", "masked": "no refill", "whole": "one similarity at the end",
    "likelihood": "likelihood of the step", "srl_50": "SRL, 50 problems",
    "rejection_50": "rejection s., 50 problems",
    **{f"sft_outline_{n}": f"SFT, {n} problems" for n in (50, 150, 400)}}


def study(rows, names, title):
    """avg@8 with its 95 % interval on hard and long, a small dot a seed, of names that have five seeds or more;
    rows: {variant: a row of results/study/WORLD.json}. The band is SRL's interval."""
    names = [name for name in names if name in rows and len(rows[name]["seeds"]) >= 5]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 0.36 * len(names) + 1.6), sharey=True)
    for ax, benchmark in zip(axes, ("hard", "long"), strict=True):
        ax.axvspan(*rows["srl"][benchmark]["interval"], color=colour("srl"), alpha=0.15, lw=0)
        for y, name in enumerate(names):
            part, seeds = rows[name][benchmark], len(rows[name]["seeds"])
            ink = colour(name) if name in evaluate.METHODS else GREY
            ax.plot(part["interval"], (y, y), color=ink, lw=2.5)
            ax.plot(part["by_seed"], [y + 0.32] * seeds, ".", color=ink, ms=4)
            ax.plot(part["avg"], y, "o", color=ink, ms=7)
        ax.set(title=benchmark, xlim=(-3, 103), xlabel="avg@8, %")
    axes[0].set_yticks(range(len(names)), [f"{WORDS.get(name, name)} ({len(rows[name]['seeds'])})" for name in names])
    axes[0].invert_yaxis()
    finish(figure, title)


def validation_curves(logs, title):
    """Exact validation steps of runs {name: log} against completions; the last name is drawn in colour."""
    figure, ax = plt.subplots(figsize=(WIDTH, 3.4))
    for n, (name, log) in enumerate(logs.items(), 1):
        checks = [line for line in log if line.get("val_exact") is not None]
        ax.plot([line["done"] for line in checks], [line["val_exact"] for line in checks],
                color=ORANGE if n == len(logs) else BLUE, lw=2.5 if n == len(logs) else 1.2,
                label=name if n in (1, len(logs)) else None)
    ax.set(ylim=(0, 1.03), ylabel="exact validation steps")
    in_thousands(ax)
    ax.legend(frameon=False, loc="lower right")
    finish(figure, title)
