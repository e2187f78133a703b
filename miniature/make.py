"""Generate the miniature world from a seed: expert data, benchmarks, tokenizer and the small base model.

The world is linear equations. An action is one algebraic transformation, written as a numbered step with a bold title, the shape of the
numbered solutions in s1K. Everything here is committed, so nobody has to run this.

  base model   knows every legal move with its arithmetic on scratch paper in <think>, but draws its moves at random: algebra without a strategy
  expert       always makes the right move; its data contains moves and answers (its own, wordier thoughts are in fields of their own, for SFT on reasoning)
  benchmarks   short, hard (as trained), long (more steps than any expert solution), large (bigger numbers); disjoint from the training problems

Of 600 moves sampled from the committed base 97.8 % are legal and exactly right. Made by this command, interrupted twice: two CPU cores computed the first
1,250 and the last 2,800 of its batches, about 4 a second, a GPU (H200) those between, about 18 a second. Elsewhere rounding and weights differ.

The worded world (--worded) has the same equations, moves and benchmarks, and every step in words drawn at random (wording.py). Its base begins
with the weights of miniature/base, which know the arithmetic, and is pretrained on worded steps.

in:      nothing; --worded: miniature/base
out:     miniature/expert.jsonl, miniature/benchmarks/*.jsonl, miniature/base/ (config, tokenizer, safetensors)
         --worded: miniature/worded/expert.jsonl, miniature/worded/base/
command: python miniature/make.py              # 2 CPU cores, about 1 h; again: continues where it stopped
         python miniature/make.py --worded     # 1 CPU core, about 20 min; again: continues where it stopped
         python miniature/make.py --data_only  # the same without the base model, seconds
         python miniature/make.py --check_only # how many moves of the base model are right, and equal to the expert's, a minute
"""
import argparse
import random
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from pretrain import pretrain
from wording import reword, unword

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))    # engine/, imported late: who generates data alone needs no torch
LIMIT = 999                     # no number in the world is larger
SIZES = {"short": 60, "hard": 60, "long": 60, "large": 60, "expert": 560}      # problems, in the order in which they are drawn
MORE = {"hard": 180, "expert": 700}     # then these: 1,200 problems to train on and 60 held out by 01_segment.py; 240 of the set that decides
STEP = re.compile(r"\d+\. \*\*(.+?)\*\* (.+)")   # of the terse world: title, result
WORDED_PIECES = r"\d|\n|\*\* "     # isolated in the worded tokenizer: a title is not merged with the remark after it
MAX_TURNS = 8                   # the longest expert solution; random walks stop here too


# 1. Equations: a side is a list of terms ("x", a), ("c", b) or ("p", k, a, b) for k(ax + b)
def signed(n, unit="", first=False):
    """The term n*unit with its sign: '4x', '- 7' or '-7'."""
    body = unit if unit and abs(n) == 1 else f"{abs(n)}{unit}"
    if first:
        return f"-{body}" if n < 0 else body
    return f" - {body}" if n < 0 else f" + {body}"


def side_text(side):
    text = ""
    for kind, n, *inner in side:
        unit = {"x": "x", "c": ""}.get(kind) if kind != "p" else f"({signed(inner[0], 'x', True)}{signed(inner[1])})"
        text += signed(n, unit, first=not text)
    return text or "0"


def equation_text(equation):
    return f"{side_text(equation[0])} = {side_text(equation[1])}"


def total(side, kind):
    """Sum of the side's terms of one kind outside parentheses."""
    return sum(term[1] for term in side if term[0] == kind)


def has_parentheses(side):
    return any(term[0] == "p" for term in side)


def is_tidy(side):
    """At most one x term and one constant outside parentheses."""
    return all(sum(term[0] == kind for term in side) <= 1 for kind in "xc")


def without_zeros(side):
    return [term for term in side if term[1] != 0]


# 2. Scratch paper: column arithmetic in the student's own style
def columns(n, width):
    return [n // 10**i % 10 for i in range(width)]


def scratch_sum(a, b):
    """'46+28: 6+8=14, 4+2+1=7, so 74'; opposite signs subtract the smaller magnitude from the larger."""
    result, head = a + b, f"{a}{b:+d}"
    if result == 0 or (max(abs(a), abs(b)) < 10 and a >= 0 and result >= 0):
        return f"{head}={result}"
    big, small = max(abs(a), abs(b)), min(abs(a), abs(b))
    width, parts, carry = len(str(big)), [], 0
    same_sign = (a < 0) == (b < 0)
    for p, q in zip(columns(big, width), columns(small, width), strict=True):
        if same_sign:
            parts.append(f"{p}+{q}{'+1' if carry else ''}={p + q + carry}")
            carry = (p + q + carry) // 10
        else:
            p -= carry
            carry = int(p < q)
            p += 10 * carry
            parts.append(f"{p}-{q}={p - q}")
    plain = f"{big}{'+' if same_sign else '-'}{small}"
    return f"{head}: {'' if plain == head else plain + ': '}{', '.join(parts)}, so {result}"


def scratch_product(k, n):
    """'4*27: 4*7=28, 4*2+2=10, so 108' for a single-digit k."""
    if abs(n) < 10:
        return f"{k}*{abs(n)}={k * abs(n)}"
    parts, carry = [], 0
    for digit in columns(abs(n), len(str(abs(n)))):
        parts.append(f"{k}*{digit}{f'+{carry}' if carry else ''}={k * digit + carry}")
        carry = (k * digit + carry) // 10
    return f"{k}*{abs(n)}: {', '.join(parts)}, so {k * abs(n)}"


def scratch_quotient(n, d):
    """'119/7: 11/7=1 r4, 49/7=7, so 17' for a single-digit d that divides n."""
    if abs(n) // d < 10:
        return f"{abs(n)}/{d}={abs(n) // d}"
    parts, rest, begun = [], 0, False
    for digit in str(abs(n)):
        rest = 10 * rest + int(digit)
        if rest >= d or begun:
            begun = True
            parts.append(f"{rest}/{d}={rest // d}" + (f" r{rest % d}" if rest % d else ""))
            rest %= d
    return f"{abs(n)}/{d}: {', '.join(parts)}, so {abs(n) // d}"


# 3. The expert's thoughts: the same arithmetic in a style that is foreign to the student (tens and ones, counting up, words)
def foreign_sum(a, b):
    big, small = max(abs(a), abs(b)), min(abs(a), abs(b))
    if (a < 0) == (b < 0):
        tens = f"{big // 10 * 10} and {small // 10 * 10} make {big // 10 * 10 + small // 10 * 10}"
        ones = f"{big % 10} and {small % 10} make {big % 10 + small % 10}"
        return f"We need {a} {'+' if b >= 0 else '-'} {abs(b)}. Here {tens} and {ones}, together {big + small}, which gives {a + b}"
    step = (10 - small % 10) % 10
    if small + step > big:
        step = 0
    up = f"From {small} up to {small + step} is {step}, on to {big} is {big - small - step}"
    return f"We need {a} {'+' if b >= 0 else '-'} {abs(b)}. {up}, which gives {a + b}"


def foreign_product(k, n):
    n = abs(n)
    return f"Taking {k} groups of {n // 10 * 10} is {k * (n // 10 * 10)} and {k} groups of {n % 10} is {k * (n % 10)}, in all {k * n}"


def foreign_quotient(n, d):
    n, q = abs(n), abs(n) // d
    return f"How many {d} fit in {n}? {q // 10 * 10} of them use {d * (q // 10 * 10)}, leaving {n - d * (q // 10 * 10)}, which is {q % 10} more, so {q}"


STYLES = {"student": (scratch_sum, scratch_product, scratch_quotient), "expert": (foreign_sum, foreign_product, foreign_quotient)}


# 4. Moves: a title, and what it does to an equation
def combine(side, work, extra=()):
    """The side with like terms outside parentheses added up; appends the sums to `work`."""
    side = list(side) + list(extra)
    out = [term for term in side if term[0] == "p"]
    for kind in "xc":
        values = [term[1] for term in side if term[0] == kind]
        running = values[0] if values else 0
        for value in values[1:]:
            work.append(("sum", running, value))
            running += value
        out.append((kind, running))
    return without_zeros(out)


def apply_move(equation, title):
    """(new equation, work) after the move that `title` names, or None where it is not a legal move here.

    work lists the arithmetic as (operation, a, b). The answer's new equation is None.
    """
    left, right = equation
    work = []
    if title == "Swap the sides":
        return (right, left), work
    if title == "State the answer":
        return (None, work) if left == [("x", 1)] and all(t[0] == "c" for t in right) else None
    if m := re.fullmatch(r"(Expand|Simplify) the (left|right) side", title):
        index = 0 if m[2] == "left" else 1
        side = equation[index]
        if m[1] == "Expand":
            if not has_parentheses(side):
                return None
            new = []
            for kind, n, *inner in side:
                if kind == "p":
                    work += [("product", n, inner[0]), ("product", n, inner[1])]
                    new += [("x", n * inner[0]), ("c", n * inner[1])]
                else:
                    new.append((kind, n))
        else:
            if has_parentheses(side) or is_tidy(side):
                return None
            new = combine(side, work)
        return ((new, right) if index == 0 else (left, new)), work
    if not (is_tidy(left) and is_tidy(right)):
        return None
    if m := re.fullmatch(r"(Add|Subtract) (\d*)(x?) (?:to|from) both sides", title):
        n = int(m[2] or 1) if m[3] else int(m[2] or 0)
        term = ("x" if m[3] else "c", n if m[1] == "Add" else -n)
        return (combine(left, work, [term]), combine(right, work, [term])), work
    if m := re.fullmatch(r"(Divide|Multiply) both sides by ([2-9])", title):
        d = int(m[2])
        if has_parentheses(left) or has_parentheses(right):
            return None
        operation = "quotient" if m[1] == "Divide" else "product"
        if operation == "quotient" and any(n % d for side in equation for _, n in side):
            return None
        work = [("quotient", n, d) if operation == "quotient" else ("product", d, n) for side in equation for _, n in side]
        return tuple([(kind, n // d if operation == "quotient" else n * d) for kind, n in side] for side in equation), work
    return None


def in_range(equation):
    return all(abs(number) <= LIMIT for side in equation for term in side for number in term[1:])


def add_title(kind, n):
    """The title of adding the term n (or nx) to both sides."""
    unit = signed(abs(n), "x" if kind == "x" else "", True)
    return f"Add {unit} to both sides" if n > 0 else f"Subtract {unit} from both sides"


def random_title(equation, rng):
    """One legal move without any strategy: a random kind of move, then a random number or a term of the equation.

    The weights decide what can be learned from it: a right step must be drawn now and then, and six right steps in a row practically never.
    """
    left, right = equation
    choices = [("swap", 1.5)]
    for name, side in (("left", left), ("right", right)):
        if has_parentheses(side):
            choices.append((f"Expand the {name} side", 1.0))
        elif not is_tidy(side):
            choices.append((f"Simplify the {name} side", 1.0))
    if is_tidy(left) and is_tidy(right):
        choices += [("c", 1.5), ("x", 1.5)]
        if not has_parentheses(left) and not has_parentheses(right):
            choices.append(("multiply", 1.5))
            divisors = [d for d in range(2, 10) if all(n % d == 0 for side in equation for _, n in side)]
            if divisors and (left or right):
                solved_but_for_division = [t[0] for t in left] == ["x"] and [t[0] for t in right] == ["c"]
                choices.append(("divide", 2.0 if solved_but_for_division else 1.0))
    if left == [("x", 1)] and all(t[0] == "c" for t in right):
        choices.append(("State the answer", 0.3))
    while True:
        kind = rng.choices([c for c, _ in choices], [w for _, w in choices])[0]
        if kind == "swap":
            title = "Swap the sides"
        elif kind in ("c", "x"):
            present = [term[1] for side in equation for term in side if term[0] == kind]
            if present and rng.random() < 0.6:  # mostly a term of the equation, as anybody would try
                n = -rng.choice(present)
            else:
                n = rng.choice((-1, 1)) * (rng.randint(1, 9) if kind == "x" else rng.choice((rng.randint(1, 9), rng.randint(1, 99), rng.randint(100, 400))))
            title = add_title(kind, n)
        elif kind == "multiply":
            title = f"Multiply both sides by {rng.randint(2, 9)}"
        elif kind == "divide":
            title = f"Divide both sides by {rng.choice(divisors)}"
        else:
            title = kind
        new, _ = apply_move(equation, title)
        if new is None or (in_range(new) and any(t[0] in "xp" for side in new for t in side)):
            return title


def expert_title(equation):
    """The right move: expand, simplify, collect x on the left, constants on the right, divide, answer."""
    left, right = equation
    for name, side in (("left", left), ("right", right)):
        if has_parentheses(side):
            return f"Expand the {name} side"
    for name, side in (("left", left), ("right", right)):
        if not is_tidy(side):
            return f"Simplify the {name} side"
    if total(right, "x"):
        return add_title("x", -total(right, "x"))
    if total(left, "c"):
        return add_title("c", -total(left, "c"))
    if total(left, "x") != 1:
        return f"Divide both sides by {total(left, 'x')}"
    return "State the answer"


def write_thought(title, work, style):
    names = dict(zip(("sum", "product", "quotient"), STYLES[style], strict=True))
    opening = "I could" if style == "student" else "The natural thing here is to"
    return " ".join([f"{opening} {title[0].lower()}{title[1:]}."] + [f"{names[op](a, b)}." for op, a, b in work])


def step_text(title, equation, new):
    result = f"\\boxed{{{total(equation[1], 'c')}}}" if new is None else equation_text(new)
    return f"**{title}** {result}"


def play(equation, titles):
    """The steps, thoughts and equations of a solution; `titles` maps an equation to the next title (None ends it)."""
    steps, works, states = [], [], [equation]
    while (title := titles(equation)) is not None:
        new, work = apply_move(equation, title)
        steps.append(f"{len(steps) + 1}. {step_text(title, equation, new)}")
        works.append((title, work))
        if new is None:
            break
        equation = new
        states.append(equation)
    return steps, works, states


# 5. Problems
def draw_problem(kind, rng):
    """An equation of one kind with an integer solution and a last coefficient of 2..9; (equation, solution x)."""
    while True:
        x, a_last = rng.choice((-1, 1)) * rng.randint(2, 20), rng.randint(2, 9)
        if kind == "short":
            a = a_last + (rng.randint(1, 9) if rng.random() < 0.5 else 0)
            b = rng.choice((-1, 1)) * rng.randint(1, 60)
            left, right = [("x", a), ("c", b)], [("x", a - a_last), ("c", a_last * x + b)]
        elif kind in ("hard", "large"):
            k, a = rng.randint(2, 9), rng.randint(2, 9)
            b, c = rng.choice((-1, 1)) * rng.randint(2, 19), rng.choice((-1, 1)) * rng.randint(10, 99)
            if kind == "large":
                b, c = rng.choice((-1, 1)) * rng.randint(20, 60), rng.choice((-1, 1)) * rng.randint(100, 400)
                x = rng.choice((-1, 1)) * rng.randint(25, 90)
            left, right = [("p", k, a, b), ("c", c)], [("x", k * a - a_last), ("c", a_last * x + k * b + c)]
            if k * b + c == 0:
                continue
        else:
            k, a, m, d = (rng.randint(2, 9) for _ in range(4))
            b, c, e = (rng.choice((-1, 1)) * rng.randint(1, n) for n in (19, 99, 19))
            f = (k * a - m * d) * x + k * b + c - m * e
            left, right = [("p", k, a, b), ("c", c)], [("p", m, d, e), ("c", f)]
            if not 2 <= k * a - m * d <= 9 or abs(f) > 399 or 0 in (f, m * e + f, k * b + c):
                continue
        equation = without_zeros(left), without_zeros(right)
        if total(left, "x") < 0 or total(right, "x") < 0 or total(right, "c") == 0:
            continue
        _, _, states = play(equation, expert_title)
        if all(in_range(state) for state in states):
            return equation, x


def make_data(seed):
    rng = random.Random(seed)
    seen, sets = set(), {}
    for name, size in [*SIZES.items(), *MORE.items()]:
        records = sets.setdefault(name, [])
        size += len(records)
        while len(records) < size:
            equation, x = draw_problem("hard" if name == "expert" else name, rng)
            text = equation_text(equation)
            if text in seen:
                continue
            seen.add(text)
            record = {"id": f"{name}-{len(records):03d}", "problem": f"Solve {text}", "answer": str(x)}
            steps, works, _ = play(equation, expert_title)
            record["solution"] = "\n".join(steps)
            if name == "expert":
                record["thoughts"] = [write_thought(*w, "expert") for w in works]
                record["student_thoughts"] = [write_thought(*w, "student") for w in works]
            records.append(record)
    return sets, seen


def worded_solution(record, seed):
    """The record with every step of its solution in words drawn at random."""
    rng = random.Random(f"{seed}, {record['id']}")
    return {**record, "solution": "\n".join(reword(step, rng) for step in record["solution"].split("\n"))}


# 6. The base model's training data: random legal moves from states along random walks and along solutions
def draw_example(rng, held_out, num=4):
    """(problem, steps so far, num pairs of (think, action), equation): the next moves are always drawn without strategy."""
    while True:
        start, _ = draw_problem(rng.choices(("short", "hard", "long", "large"), (1, 3, 1, 1.5))[0], rng)
        if equation_text(start) not in held_out:
            break
    if rng.random() < 0.6:  # states along a solution, so that nearly solved equations are common; the next move is random all the same
        steps, _, states = play(start, expert_title)
        n = rng.randrange(len(states))
        steps, equation = steps[:n], states[n]
    else:
        turns = iter(range(rng.randrange(MAX_TURNS)))
        steps, _, states = play(start, lambda eq: None if next(turns, None) is None else random_title(eq, rng))
        equation = states[-1]
        if steps and "boxed" in steps[-1]:
            steps = steps[:-1]
    moves = []
    for _ in range(num):
        title = random_title(equation, rng)
        new, work = apply_move(equation, title)
        moves.append((write_thought(title, work, "student"), f"{len(steps) + 1}. {step_text(title, equation, new)}"))
    return f"Solve {equation_text(start)}", steps, moves, equation


def prompt_text(problem, steps):
    """The prompt as srl_prompt and the chat template write it; a test compares them."""
    return f"<|user|>{problem}\n\nSolution:\n" + "".join(f"{step}\n" for step in steps) + "<|assistant|>"


def in_words(steps, rng, worded):
    """The steps as the world writes them: as they are, or each in words that `rng` draws."""
    return [reword(step, rng) for step in steps] if worded else steps


def draw_moves(rng, held_out, worded=False):
    """A prompt and four completions for `pretrain`. The thoughts are the same in both worlds."""
    problem, steps, moves, _ = draw_example(rng, held_out)
    steps = in_words(steps, rng, worded)
    thoughts, actions = zip(*moves, strict=True)
    return prompt_text(problem, steps), [f"<think>{think}</think>\n{action}" for think, action in zip(thoughts, in_words(actions, rng, worded), strict=True)]


# 7. The check of a base model
def sample_steps(model, tokenizer, states, worded, at_once=100):
    """For each (problem, steps so far) one step, sampled at temperature 1, and the match of STEP in the terse step that it says, or None."""
    import torch
    pairs = []
    for begin in range(0, len(states), at_once):
        inputs = tokenizer([prompt_text(*state) for state in states[begin:begin + at_once]], return_tensors="pt", padding=True).to(model.device)
        inputs.pop("token_type_ids", None)
        with torch.no_grad():
            out = model.generate(**inputs, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=200)
        for text in tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True):
            step = text.rpartition("</think>")[2].strip()
            pairs.append((step, STEP.fullmatch((unword(step) or "") if worded else step)))
    return pairs


def check_moves(model, tokenizer, held_out, seed, worded, num=600):
    """Share of the sampled moves that are legal with exactly the right result, in states as in pretraining on unseen equations."""
    rng, counts, wrong = random.Random(seed + 2), Counter(), []
    examples = [draw_example(rng, held_out, 1) for _ in range(num)]
    states = [(problem, in_words(steps, rng, worded)) for problem, steps, *_ in examples]
    for (_, steps, _, equation), (step, m) in zip(examples, sample_steps(model, tokenizer, states, worded), strict=True):
        move = apply_move(equation, m[1]) if m else None
        right = move is not None and m[0] == f"{len(steps) + 1}. {step_text(m[1], equation, move[0])}"
        counts["illegal" if move is None else f"{m[1].split()[0]} {'right' if right else 'wrong'}"] += 1
        if not right:
            wrong.append(f"{equation_text(equation)}  ->  {step}")
    legal = 1 - len(wrong) / num
    print(f"legal and exactly right: {legal:.1%} of {num} sampled moves on unseen equations; {dict(sorted(counts.items()))}", *wrong[:5], sep="\n")
    return legal


def check_expert_steps(model, tokenizer, held_out, seed, worded, num=2000):
    """Shares of steps, sampled after an expert's steps on unseen problems, that equal the expert's next step, and that have its equation."""
    rng, states, targets = random.Random(seed + 3), [], []
    while len(states) < num:
        start, _ = draw_problem("hard", rng)
        if equation_text(start) not in held_out:
            terse = play(start, expert_title)[0]
            steps, k = in_words(terse, rng, worded), rng.randrange(len(terse))
            states.append((f"Solve {equation_text(start)}", steps[:k]))
            targets.append((steps[k], STEP.fullmatch(terse[k])[2]))
    pairs = [*zip(sample_steps(model, tokenizer, states, worded), targets, strict=True)]
    equal = sum(step == target for (step, _), (target, _) in pairs) / num
    same = sum(m is not None and m[2] == result for (_, m), (_, result) in pairs) / num
    print(f"of {num} steps sampled after an expert's {equal:.2%} equal the expert's next step, {same:.1%} have its equation or answer")
    return equal, same


def check(model, tokenizer, held_out, seed, worded):
    import torch
    model.eval()
    torch.manual_seed(seed)
    check_moves(model, tokenizer, held_out, seed, worded)
    check_expert_steps(model, tokenizer, held_out, seed, worded)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--worded", action="store_true", help="the world with free wording, in miniature/worded")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batches", type=int, help="length of the pretraining, batches of 2,500 tokens (13,800; worded: 2,200)")
    parser.add_argument("--data_only", action="store_true", help="without the base model")
    parser.add_argument("--check_only", action="store_true", help="only measure the base model in --out")
    parser.add_argument("--out", type=Path, help="folder (miniature, worded: miniature/worded)")
    args = parser.parse_args()
    from engine.files import write_jsonl
    sets, seen = make_data(args.seed)
    out = args.out or (HERE / "worded" if args.worded else HERE)
    if args.check_only:
        from engine.policy import load_policy
        return check(*load_policy(out / "base"), seen, args.seed, args.worded)
    if args.worded:
        sets = {"expert": [worded_solution(record, args.seed) for record in sets["expert"]]}       # the benchmarks are the terse world's
    for name, records in sets.items():
        path = out / ("expert.jsonl" if name == "expert" else f"benchmarks/{name}.jsonl")
        write_jsonl(path, records)
        print(f"{path}: {len(records)} problems, for instance {records[0]['problem']!r}")
    if not args.data_only:
        options = {"vocabulary": 1000, "isolated": WORDED_PIECES, "start": HERE / "base"} if args.worded else {"vocabulary": 560, "isolated": r"\d|\n"}
        draw = partial(draw_moves, held_out=seen, worded=args.worded)
        model, tokenizer = pretrain(draw, args.seed, args.batches or (2200 if args.worded else 13_800), out / "base", **options)
        check(model, tokenizer, seen, args.seed, args.worded)


if __name__ == "__main__":
    main()
