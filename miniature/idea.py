"""The picture of the idea in README.md: a problem, the expert's step, two sampled steps, and what the reward sees of them.

out:     results/idea.png and results/idea_dark.png (for dark mode)
command: python miniature/idea.py      # 3 s
"""
import argparse
import sys
from importlib import import_module
from itertools import groupby
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
srl = import_module("02_srl_train")

PROBLEM = "Solve 6(9x + 2) + 53 = 46x - 63"
EXPERT = "1. **Expand the left side** 54x + 12 + 53 = 46x - 63"
SAMPLES = [("I could expand the left side. 6*9=54. 6*2=13.", "1. **Expand the left side** 54x + 13 + 53 = 46x - 63"),
           ("I could swap the sides.", "1. **Swap the sides** 46x - 63 = 6(9x + 2) + 53")]
# text, thoughts, matched characters, their background, other characters, background
LIGHT = ("#1f2328", "#6e7781", "#1a7f37", "#dafbe1", "#cf222e", "#ffffff")
DARK = ("#e6edf3", "#8b949e", "#7ee787", "#12361f", "#ff7b72", "#0d1117")
INCHES, SIZE, LEFT = 8, 14.2, 0.02          # width of the figure, points of the text, the margin in figure widths
ADVANCE = 0.602 * SIZE / 72 / INCHES        # of a character of the monospaced font, in figure widths


def matched(step):
    """Which characters of a sampled step are in matching blocks with the expert's."""
    blocks = srl.SequenceMatcher(None, step, EXPERT, autojunk=False).get_matching_blocks()
    inside = {i for block in blocks for i in range(block.a, block.a + block.size)}
    return [i in inside for i in range(len(step))]


def draw(path, colours):
    text, thought, match, match_background, other, background = colours
    figure = Figure(figsize=(INCHES, 4.6), facecolor=background)

    def write(x, y, words, colour, mono=True, **style):
        family = "DejaVu Sans Mono" if mono else "DejaVu Sans"
        figure.text(x, y, words, color=colour, family=family, fontsize=style.pop("size", SIZE), va="center", **style)

    def heading(y, words):
        write(LEFT, y, words, text, mono=False, weight="bold", size=12)

    heading(0.94, "Problem")
    write(LEFT, 0.87, PROBLEM, text)
    heading(0.77, "Expert's step: its thoughts are not known")
    write(LEFT, 0.70, EXPERT, text)
    y = 0.58
    for number, (think, step) in enumerate(SAMPLES, 1):
        heading(y, f"Sample {number} of the policy: its own thoughts, then a step")
        write(LEFT, y - 0.07, f"<think>{think}</think>", thought, style="italic")
        for same, part in groupby(enumerate(matched(step)), key=lambda pair: pair[1]):
            place = [i for i, _ in part]
            x, width = LEFT + ADVANCE * place[0], ADVANCE * len(place)
            if same:
                figure.add_artist(Rectangle((x, y - 0.182), width, 0.06, color=match_background, lw=0))
            write(x, y - 0.15, step[place[0]:place[-1] + 1], match if same else other, weight="bold")
        reward = srl.srl_reward(f"<think>{think}</think>\n{step}", {"action": EXPERT})
        write(0.98, y - 0.15, f"{reward:.2f}", text, mono=False, weight="bold", size=17, ha="right")
        y -= 0.28
    write(0.98, 0.58, "reward", text, mono=False, size=12, ha="right")
    write(LEFT, 0.04, "Marked: characters that match the expert's step. R = 2 x matched / length of both.", thought, mono=False, size=11)
    figure.savefig(path, dpi=160, facecolor=background)


def main():
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    for name, colours in (("idea.png", LIGHT), ("idea_dark.png", DARK)):
        draw(ROOT / "results" / name, colours)
        print(ROOT / "results" / name)


if __name__ == "__main__":
    main()
