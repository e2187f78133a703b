"""How often the 95 % intervals of 04_eval.py hold the true mean, by hand: python tests/bench_intervals.py [--runs 400]

Means and variance components of training seed, problem and rest are those of every cell of results/: each method on each benchmark, and each paired
difference. Drawn from them: other seeds and other problems, normally distributed; and, for the methods, eight attempts at each problem, whose probability
has effects of seed and problem in logits. Printed: coverage over all cells, in the cells where seeds weigh more than problems, in the worst cell, and the
mean width in points; of the interval, and of the percentile bootstrap that was here before. 400 runs: a cell's coverage is known to 1.1 points.
"""
import argparse
import math
import sys
from importlib import import_module
from pathlib import Path
from statistics import fmean

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
evaluate = import_module("04_eval")


def components(values):
    """(mean, standard deviations of seed, problem, rest) of values (S, N), by the analysis of variance."""
    S, N = values.shape
    mean, seeds, problems = values.mean(), values.mean(1, keepdim=True), values.mean(0, keepdim=True)
    rest = (values - seeds - problems + mean).square().sum() / max(1, (S - 1) * (N - 1))
    of_seed = (seeds.var().nan_to_num() - rest / N).clamp(min=0) if S > 1 else torch.tensor(0.0)
    of_problem = (problems.var() - rest / S).clamp(min=0)
    return mean.item(), of_seed.sqrt().item(), of_problem.sqrt().item(), rest.sqrt().item()


def cells():
    """{name: values (S, N) in [0, 1], of differences in [-1, 1]} of every method with five seeds, and of every pair."""
    found = {}
    for world in ("miniature", "agents"):
        results = evaluate.read_results(ROOT / "results" / world)
        for benchmark in results["base"][0]["benchmarks"]:
            for name, runs in results.items():
                if len(runs) > 1:
                    found[f"{name} {benchmark}"] = [[c / 8 for c in r["benchmarks"][benchmark]["right"]] for r in runs]
            for a, b in evaluate.COMPARISONS:
                if a in results and b in results:
                    pairs = evaluate.tables.paired_runs(results[a], results[b], benchmark)
                    found[f"{a}-{b} {benchmark}"] = [[(c - d) / 8 for c, d in zip(x["right"], y["right"], strict=True)] for x, y in pairs]
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def bootstrap(values, num=400):
    """The percentile bootstrap over seeds and problems that was here before."""
    S, N = values.shape
    seeds, problems = torch.randint(S, (num, S)), torch.randint(N, (num, N))
    weights = [torch.zeros(num, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(num, n, dtype=torch.float64)) / n
               for n, drawn in ((S, seeds), (N, problems))]
    return tuple(((weights[0] @ values) * weights[1]).sum(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist())


def normal(S, N, mean, seed, problem, rest):
    """Values (S, N) with these components, and their true mean."""
    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64)
    return mean + seed * draw(S, 1) + problem * draw(1, N) + rest * draw(S, N), mean


def binomial(S, N, mean, seed, problem, rest):
    """Eight attempts at each problem whose probabilities have about these means and effects, and the true mean."""
    slope = max(mean * (1 - mean), 0.02)                            # of the logistic curve: effects in logits
    effects = [min(effect / slope, 3) for effect in (seed, problem)]
    centre = math.log(mean / (1 - mean))
    grid = math.hypot(*effects) * torch.special.ndtri((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000)     # of a normal distribution
    logits = centre + effects[0] * torch.randn(S, 1, dtype=torch.float64) + effects[1] * torch.randn(1, N, dtype=torch.float64)
    return torch.distributions.Binomial(8, logits=logits).sample() / 8, (centre + grid).sigmoid().mean().item()


def coverage(draw, interval, S, values, runs):
    """(part of the runs whose interval holds the true mean, mean width) with S seeds and the components of values."""
    parts, N = components(values), values.shape[1]
    held, width = 0, 0.0
    for _ in range(runs):
        # one seed: this run's own mean over all problems is what its interval is about
        sample, truth = draw(S, N, *(parts if S > 1 else (parts[0], 0.0, *parts[2:])))
        low, high = interval(sample)
        held, width = held + (low - 1e-12 <= truth <= high + 1e-12), width + 100 * (high - low)
    return held / runs, width / runs


def mean_interval(values):
    return evaluate.mean_interval(values.tolist(), 0 if values.min() >= 0 else -math.inf, 1 if values.max() <= 1 else math.inf)


def row(found, draw, S, interval, runs):
    """Coverage over all cells, where seeds weigh more than problems, in the worst; mean width."""
    rates = {name: coverage(draw, interval, S, values, runs) for name, values in found.items()}
    by_seed = [rates[name][0] for name, values in found.items() for _, seed, problem, _ in [components(values)]
               if seed**2 > problem**2 * 5 / values.shape[1]]
    held, widths = zip(*rates.values(), strict=True)
    return fmean(held), fmean(by_seed), min(held), fmean(widths)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=400, help="of each cell and number of seeds")
    runs, found = parser.parse_args().runs, {name: v for name, v in cells().items() if v.std() > 0}
    torch.manual_seed(0)
    print("| drawn | seeds | cells |" + 2 * " coverage | by seed | worst | width |", "\n|" + "---|" * 11)
    for draw in (normal, binomial):
        chosen = {name: v for name, v in found.items() if draw is normal or "-" not in name and 0.01 < v.mean() < 0.99}
        for S in (5, 3, 2, 1):
            numbers = *row(chosen, draw, S, mean_interval, runs), *row(chosen, draw, S, bootstrap, max(50, runs // 4))
            cells_ = [f"{x:.1f}" if n % 4 == 3 else f"{x:.1%}" for n, x in enumerate(numbers)]
            print("|", " | ".join([draw.__name__, str(S), str(len(chosen)), *cells_]), "|", flush=True)


if __name__ == "__main__":
    main()
