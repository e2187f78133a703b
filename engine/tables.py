"""Tables and bar charts: without this file results are numbers in JSON only."""
from statistics import fmean

STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}     # of every figure


def markdown(head, rows):
    """A table in Markdown; head and each row: the texts of the cells."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def score_tables(rows, seeds, k, formats):
    """Two tables in Markdown: greedy and avg@k with the mean of both; pass@k and means of other numbers.

    rows: {label: {benchmark: numbers}}. seeds: the runs of each row. formats: {other number: its format}.
    """
    benchmarks = list(next(iter(rows.values())))
    columns = [name for name in formats if name in next(iter(rows.values()))[benchmarks[0]]]
    scores, outcomes = [], []
    for (label, row), count in zip(rows.items(), seeds, strict=True):
        parts = row.values()
        cells = ["{greedy:.1f} | {avg:.1f} [{low:.1f}, {high:.1f}]".format(**numbers) for numbers in parts]
        means = {name: fmean(numbers[name] for numbers in parts) for name in ("greedy", "avg", *columns)}
        scores.append([label, str(count), *cells, f"{(means['greedy'] + means['avg']) / 2:.1f}"])
        outcomes.append([label, *(f"{numbers['pass']:.1f}" for numbers in parts),
                         *(formats[name].format(means[name]) for name in columns)])
    heads = [text for b in benchmarks for text in (f"{b}: greedy", f"{b}: avg@{k} [95 %]")]
    return [markdown(["method", "seeds", *heads, "average"], scores),
            markdown(["method", *(f"{b}: pass@{k}" for b in benchmarks), *columns], outcomes)]


def bar_panels(path, panels, colours, title, xlabel):
    """Write a figure of horizontal bars. panels: {title: {label: (value, low, high)}}, in percent.

    colours: {label: colour}; the first label is at the top.
    """
    import matplotlib
    from matplotlib.figure import Figure  # needs no screen, and leaves a notebook's backend alone

    matplotlib.rcParams.update(STYLE)
    labels = list(colours)[::-1]
    figure = Figure(figsize=(3.1 * len(panels) + 2.2, 0.42 * len(labels) + 1.7))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for ax, (panel, bars) in zip(axes, panels.items(), strict=True):
        for y, label in enumerate(labels):
            value, low, high = bars[label]
            ends = [[max(0, value - low)], [max(0, high - value)]]
            ax.barh(y, value, color=colours[label], height=0.7, xerr=ends,
                    error_kw={"ecolor": "#333333", "capsize": 3, "lw": 1.2})
            ax.text(max(high, value) + 2, y, f"{value:.0f}", va="center", fontsize=10)
        ax.set(title=panel, xlim=(0, 112), xticks=(0, 50, 100), xlabel=xlabel)
    axes[0].set_yticks(range(len(labels)), labels)
    figure.suptitle(title, fontsize=13)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
