"""Generate the agents' world from a seed: small Python repositories with one bug each, an expert's trajectories, and a base model.

A task is a repository of two or three files, an issue such as `cost(3, 4) returns 12 but should return 7.`, visible tests for the agent and hidden ones that
decide. The tools are those of engine/agents/tools.py, the calls have the form of SWE-smith.

  base model   can use every tool, copies names and lines exactly, and can compute on scratch paper what a function would return with one line changed, one
               change after the other. It draws its calls, the first change and the last one at random: it cannot find a bug
  expert       searches the function, views its file, edits the line that is wrong, runs the tests, submits. Its data contains the calls and no scratch paper
  benchmarks   modules (repositories that are in no training data), larger (more files and functions), kinds (a kind of bug that the expert's data does not
               have); each end to end and with the file given (oracle)

Names say nothing about what a function should do, and code with a bug looks like code without (every variable is used, every order and every constant has
the same probability), so an edit can be found by trying and not by recognising it.

in:      nothing
out:     miniature/agents/expert.jsonl, miniature/agents/benchmarks/*.jsonl, miniature/agents/base/ (config, tokenizer, safetensors)
command: python miniature/agents.py                 # 7,500 batches, about 45 min of one CPU core; again: continues where it stopped
         python miniature/agents.py --data_only     # the same without the base model, seconds
         python miniature/agents.py --check_only    # how many calls of the base model are right, under a minute
"""
import argparse
import random
import re
from collections import Counter
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path

import make  # first: it adds the folder of the scripts and engine/ to sys.path
import torch

from engine.agents import sandbox
from engine.agents.tools import execute
from engine.agents.trajectories import parse_call
from engine.files import write_jsonl
from engine.policy import load_policy

rlvr = import_module("03_rlvr_train")  # import cannot spell a file name that begins with a digit
HERE = Path(__file__).parent / "agents"
NAMES = ("area beam bill bonus cargo cash cost count debt depth drift duty fare fee flow fuel gain gap goal grade heat index level limit load loss mark merit "
         "pace pay phase pitch pool price quota range rank rate ratio rent score share size slope speed stake stock sum tax toll total trend value wage "
         "width yield").split()
FILES = "alpha bank core desk farm grid hub lab mill north order plan port shop store unit yard zone".split()
LOCALS, PARAMS, CONSTANTS = "cdtu", ("ab", "xy", "mn", "pq"), range(2, 16)
KINDS = ("operator", "comparison", "off by one", "wrong variable", "swapped arguments", "wrong constant")
NEW_KIND = "wrong constant"         # in the benchmark `kinds` and in no trajectory
SIZES = {"modules": 120, "larger": 60, "kinds": 60, "expert": 660}      # tasks, in the order in which they are drawn
SYSTEM = ("You fix a bug in a small Python repository. Tools: list(), search(text), view(path), edit(path, line, text), run_tests(), submit().\n"
          "A call has this form:\n<function=view>\n<parameter=path>name.py</parameter>\n</function>")


# 1. Functions: every line is one operation
def draw_function(rng, name, helper):
    """Source lines: two or three over two arguments, sometimes with a helper of one operation above.

    Arguments alone are multiplied, so no number has three digits.
    """
    (a, b), c = rng.choice(PARAMS), rng.choice(LOCALS)
    x, y = rng.choice([pair for pair in PARAMS if a not in pair])

    def operation(one, two, form):
        """Two operands in either order; form: "+-", "+-*", "<>", a function's name."""
        u, v = rng.sample((one, two), 2)
        if form.isalpha():
            return f"{form}({u}, {v})"
        return f"{u} {rng.choice(form)}{rng.choice(('', '=')) if form == '<>' else ''} {v}"

    first = {"chain": "+-*", "extreme": rng.choice(("min", "max")), "helper": helper}
    shape = rng.choice((*first, "mixed", "branch"))
    constant, other = rng.choice(CONSTANTS), rng.choice((a, b))
    if shape == "branch":
        body = [f"if {operation(a, b, '<>')}:", f"    return {operation(other, constant, '+-')}", f"return {operation(a, b, '+-*')}"]
    elif shape == "mixed":
        body = [f"{c} = {operation(other, constant, '+-')}", f"return {operation(c, a if other == b else b, '+-')}"]
    else:
        body = [f"{c} = {operation(a, b, first[shape])}", f"return {operation(c, rng.choice((constant, constant, other)), '+-')}"]
    above = [f"def {helper}({x}, {y}):", f"    return {operation(x, y, '+-*')}"] if shape == "helper" else []
    return above + [f"def {name}({a}, {b}):"] + [f"    {line}" for line in body]


def functions_in(numbered):
    """{name: (parameters, [(line number, line)])} of the (line number, line) pairs of a file."""
    found = {}
    for number, line in numbered:
        if m := re.fullmatch(r"def (\w+)\((\w), (\w)\):", line):
            body = []
            found[m[1]] = ((m[2], m[3]), body)
        elif found:
            body.append((number, line))
    return found


class UnknownLine(Exception):
    """A line that no function of this world has."""


@lru_cache(maxsize=1 << 16)
def parse_line(line):
    return re.fullmatch(r"((\w) = |return |if )(?:(\w+)\((\w+), (\w+)\)|(\w+) (\S+) (\w+)):?", line.strip())


def run_by_hand(functions, name, arguments):
    """(value, steps): what the function returns, and a text for each line that runs, such as "c = a + b = 3 + 4 = 7" and "c > b: 7 > 5 yes".

    The line comes before its numbers: each token is then copied, or is one value.
    """
    parameters, body = functions[name]
    known, steps, skip = dict(zip(parameters, arguments, strict=True)), [], False
    for _, line in body:
        if skip and line.startswith(" " * 8):
            continue
        m = parse_line(line)
        try:
            u, v = (int(t) if t.isdigit() else known[t] for t in (m[4] or m[6], m[5] or m[8]))
        except (TypeError, KeyError):
            raise UnknownLine(line) from None
        symbols = line.strip().removeprefix("return ")
        if m[1] == "if ":
            holds = {"<": u < v, ">": u > v, "<=": u <= v, ">=": u >= v}[m[7]]
            steps.append(f"{symbols.removeprefix('if ')} {u} {m[7]} {v} {'yes' if holds else 'no'}")
            skip = not holds
            continue
        if m[3] in ("min", "max"):
            value, text = (min if m[3] == "min" else max)(u, v), f"{m[3]}({u}, {v})"
        elif m[3]:
            if m[3] not in functions or m[3] == name:
                raise UnknownLine(line)
            value, inner = run_by_hand(functions, m[3], (u, v))
            text = f"{m[3]}({u}, {v}) = {inner[0].rpartition(' = ')[0]}"
        else:
            value, text = {"+": u + v, "-": u - v, "*": u * v}[m[7]], f"{u} {m[7]} {v}"
        steps.append(f"{symbols} = {text} = {value}")
        if not m[2]:
            return value, steps
        known[m[2]] = value
    raise UnknownLine("no return")


def value_of(functions, name, arguments):
    """What the function returns, None for an UnknownLine."""
    try:
        return run_by_hand(functions, name, arguments)[0]
    except UnknownLine:
        return None


# 2. Bugs: one small change of one line
def changes(line, scope):
    """{changed line: kind} of every small change of a line; scope: the names that it could use."""
    head, rest = re.fullmatch(r"(\s*(?:\w = |return |if ))(.+)", line).groups()
    parts, found = re.findall(r"\w+|[<>]=?|[-+*]|.", rest), {}

    def put(i, *texts, kind):
        for text in texts:
            new = "".join(parts[:i] + [text] + parts[i + 1:])
            if not re.search(r"\b(\w)( \S+ |, )\1\b", new):           # a + a
                found.setdefault(head + new, kind)

    for i, part in enumerate(parts):
        if part in "+-*":
            arguments = all(rest[j].isalpha() and rest[j] not in LOCALS for j in (0, -1))
            put(i, *("+-*" if arguments else "+-").replace(part, ""), kind="operator")
        elif part in ("min", "max"):
            put(i, "max" if part == "min" else "min", kind="operator")
        elif part[0] in "<>":
            put(i, part[0] if part[1:] else part + "=", kind="off by one")
            put(i, *(o for o in ("<", ">", "<=", ">=") if o[0] != part[0] and len(o) == len(part)), kind="comparison")
        elif part.isdigit():
            for kind, step in (("off by one", 1), ("wrong constant", 2)):
                put(i, *(str(int(part) + s) for s in (-step, step) if int(part) + s in CONSTANTS), kind=kind)
        elif len(part) == 1 and part.isalpha():
            put(i, *(name for name in scope if name != part), kind="wrong variable")
    if m := re.fullmatch(r"(\w+)( - |, )(\w+)(\)?)", rest[rest.find("(") + 1:]):
        if not re.match("min|max", rest):
            found.setdefault(f"{head}{rest[:rest.find('(') + 1]}{m[3]}{m[2]}{m[1]}{m[4]}", "swapped arguments")
    return found


def all_used(parameters, body):
    """Whether every argument and every variable occurs in an expression."""
    names, expressions = set(parameters), ""
    for _, line in body:
        head, _, rest = line.rpartition(" = ")
        names |= set(head.split())
        expressions += " " + rest
    return names <= set(re.findall(r"\w+", expressions))


def all_changes(functions, name):
    """[(line number, changed line, kind)] of a function and the helper that it calls, in the order of the lines, that leave every variable used."""
    found = []
    for f, (parameters, body) in functions.items():
        if f == name or any(re.search(rf"\b{f}\(", line) for _, line in functions[name][1]):
            scope = list(parameters)
            for number, line in body:
                found += [(number, new, kind) for new, kind in changes(line, scope).items() if all_used(*with_line(functions, number, new)[f])]
                if m := re.match(r"\s*(\w) = ", line):
                    scope.append(m[1])
    return found


def with_line(functions, number, new):
    return {f: (parameters, [(n, new if n == number else line) for n, line in body]) for f, (parameters, body) in functions.items()}


def draw_tests(rng, num):
    """num pairs of arguments, all different."""
    return rng.sample([(a, b) for a in range(1, 7) for b in range(1, 7)], 36)[:num]


ISSUES = ("{call} returns {got} but should return {want}.", "Wrong result: {call} is {got}, I expected {want}.",
          "I call {call} and get {got}. It should be {want}.", "{call} should be {want} and not {got}.")


def draw_task(rng, kinds, num_files=(2, 3), num_functions=(1, 2)):
    """A task: files, issue, tests, and what the right edit is. The issue's example allows one small change only, the right one."""
    wanted = rng.choice(kinds)
    while True:
        names, files = iter(rng.sample(NAMES, 24)), {}
        for file in rng.sample(FILES, rng.choice(num_files)):
            lines, offered = [], []
            for _ in range(rng.choice(num_functions)):
                offered.append(next(names))
                lines += draw_function(rng, offered[-1], next(names))
            files[f"{file}.py"] = lines, offered
        path = rng.choice(list(files))
        lines, offered = files[path]
        name = rng.choice(offered)
        right = functions_in(enumerate(lines, 1))
        possible = [c for c in all_changes(right, name) if c[2] == wanted]
        if not possible:
            continue
        line, buggy, kind = rng.choice(possible)
        fixed = lines[line - 1]
        wrong = with_line(right, line, buggy)
        candidates = all_changes(wrong, name)
        if fixed not in [new for n, new, _ in candidates if n == line]:
            continue
        arguments = draw_tests(rng, 20)
        tried = [with_line(wrong, *candidate[:2]) for candidate in candidates]
        pair = next((pair for pair in arguments if value_of(wrong, name, pair) != (want := value_of(right, name, pair))
                     and sum(value_of(functions, name, pair) == want for functions in tried) == 1), None)
        others = [(file, f) for file, (_, functions) in files.items() for f in functions if (file, f) != (path, name)]
        checks = {other: draw_tests(rng, 2) for other in others}
        if not pair:
            continue
        rest = [p for p in arguments if p != pair][:7]
        sound = {file: functions_in(enumerate(text_lines, 1)) for file, (text_lines, _) in files.items()}
        mine, others = ([[file[:-3], f, list(p), value_of(sound[file], f, p)] for (file, f), pairs in wanted.items() for p in pairs]
                        for wanted in ({(path, name): [pair, *rest]}, checks))
        call = f"{name}({pair[0]}, {pair[1]})"
        issue = rng.choice(ISSUES).format(call=call, got=value_of(wrong, name, pair), want=value_of(right, name, pair))
        sources = {file: "\n".join(buggy if (file, n) == (path, line) else text for n, text in enumerate(text_lines, 1)) + "\n"
                   for file, (text_lines, _) in files.items()}
        return {"problem": issue, "files": sources, "visible": mine[:3], "hidden": mine + others, "kind": kind,
                "name": name, "path": path, "line": line, "fixed": fixed}


def code_of(task):
    """The function under test without its names: tasks with equal code count as the same task."""
    functions = functions_in(enumerate(task["files"][task["path"]].splitlines(), 1))
    lines = [line for f, (_, body) in functions.items() for _, line in body
             if f == task["name"] or any(re.search(rf"\b{f}\(", text) for _, text in functions[task["name"]][1])]
    order = {}
    return re.sub(r"\b(?!return|if|min|max)[a-z]\w*", lambda m: order.setdefault(m[0], f"v{len(order)}"), "\n".join([*lines, task["fixed"]]))


# 3. The expert
def call_text(tool, **arguments):
    return f"<function={tool}>\n" + "".join(f"<parameter={name}>{value}</parameter>\n" for name, value in arguments.items()) + "</function>"


def expert_calls(task):
    edit = call_text("edit", path=task["path"], line=task["line"], text=task["fixed"])
    return [call_text("search", text=task["name"]), call_text("view", path=task["path"]), edit, call_text("run_tests"), call_text("submit")]


PROSE = ("I look where the function is.", "Now the file.", "This line is wrong.", "The tests should pass now.", "It is fixed.")


def trajectory(task):
    """The messages of a trajectory in the form of SWE-smith: system, issue, then calls with a sentence of prose, and observations."""
    messages, example = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": task["problem"]}], {**task, "context": []}
    for prose, call in zip(PROSE, expert_calls(task), strict=True):
        messages.append({"role": "assistant", "content": f"{prose}\n\n{call}"})
        example = rlvr.next_call(example, call)
        if example:
            messages.append(example["context"][-1])
    return messages


def make_tasks(seed):
    """({set: records}, code of all of them): trajectories of the expert, and benchmarks end to end and with the file given."""
    rng, seen, sets = random.Random(seed), set(), {}
    known = [kind for kind in KINDS if kind != NEW_KIND]
    for name, size in SIZES.items():
        more = {"num_files": (4,), "num_functions": (2, 3)} if name == "larger" else {}
        tasks = []
        while len(tasks) < size:
            task = draw_task(rng, [NEW_KIND] if name == "kinds" else known, **more)
            if code_of(task) not in seen:
                seen.add(code_of(task))
                tasks.append({"id": f"{name}-{len(tasks):03d}", **task})
        if name == "expert":
            sets[name] = [{"instance_id": t["id"], "messages": trajectory(t), **{k: t[k] for k in ("files", "visible", "hidden")}} for t in tasks]
            continue
        sets[name] = [{"id": t["id"], "problem": t["problem"], "system": SYSTEM, "context": [], **{k: t[k] for k in ("files", "visible", "hidden", "kind")}}
                      for t in tasks]
        sets[f"{name}_oracle"] = [{**record, "context": rlvr.next_call({**t, "context": []}, expert_calls(t)[1])["context"]}
                                  for record, t in zip(sets[name], tasks, strict=True)]
    return sets, seen


# 4. The base model's training data: random calls
def seen_file(context):
    """(path, [(line number, line)]) of the last view in the context, None where there is none."""
    for call, shown in zip(context[-2::-2], context[::-2], strict=True):
        name, arguments = parse_call(call["content"])
        if name == "view" and not shown["content"].startswith("Error"):
            return arguments["path"], [(int(n), line) for n, line in (text.split("|", 1) for text in shown["content"].split("\n"))]
    return None


def complaint(text):
    """(function, arguments, wanted value) of an issue or of a failed test; None where the text has none."""
    call = re.search(r"(\w+)\((\d), (\d)\)", text)
    want = re.search(r"(?:should return|expected|It should be|should be) (-?\d+)", text)
    return (call[1], (int(call[2]), int(call[3])), int(want[1])) if call and want else None


def random_edit(example, rng, stop=0.15):
    """(think, call) of an edit: changes are tried on paper in the order of the lines, beginning at a random one; the last one is made, right or not."""
    path, numbered = seen_file(example["context"])
    functions = functions_in(numbered)
    sources = [example["problem"]] + [m["content"] for m in example["context"] if "should return" in m["content"]]
    goal = complaint(rng.choice(sources))
    if goal is None or goal[0] not in functions:
        number, new, _ = rng.choice([c for f in functions for c in all_changes({f: functions[f]}, f)])
        return f"I could edit line {number}.", call_text("edit", path=path, line=number, text=new)
    name, arguments, want = goal
    (a, b), _ = functions[name]
    think = [f"I could edit. {name}({arguments[0]}, {arguments[1]}) should be {want}, {a} = {arguments[0]}, {b} = {arguments[1]}"]
    order = [(number, new) for number, new, _ in all_changes(functions, name)]
    begin = rng.randrange(len(order))
    for number, new in order[begin:] + order[:begin]:
        value, steps = run_by_hand(with_line(functions, number, new), name, arguments)
        think.append(f"{number}|{new} -> {', '.join(steps)}, {'yes' if value == want else 'no'}")
        if rng.random() < stop:
            break
    return "\n".join(think), call_text("edit", path=path, line=number, text=new)


def random_call(example, rng):
    """(think, call) without any strategy: a tool that can be used, with a name from the context."""
    context = example["context"]
    text = example["problem"] + "\n" + "\n".join(m["content"] for m in context)
    names = sorted(set(re.findall(r"\b\w{2,}(?=\()", text)) & set(NAMES))
    paths = sorted(set(re.findall(r"\b\w+\.py", text)))
    tools = {"list": 1, "search": 1.5, "run_tests": 3, "submit": 0.5, **({"view": 1.5} if paths else {}), **({"edit": 7} if seen_file(context) else {})}
    tool = rng.choices(list(tools), list(tools.values()))[0]
    if tool == "edit":
        return random_edit(example, rng)
    if tool == "search":
        return f"I could search for {(name := rng.choice(names))}.", call_text(tool, text=name)
    if tool == "view":
        return f"I could view {(path := rng.choice(paths))}.", call_text(tool, path=path)
    return {"list": "I could list the files.", "run_tests": "I could run the tests.", "submit": "I could submit."}[tool], call_text(tool)


def without_processes(files, tests):
    """sandbox.failed_tests for this world's own code, computed by hand, a thousand times as fast."""
    sentences = []
    for module, name, arguments, expected in tests:
        value = value_of(functions_in(enumerate(files[f"{module}.py"].splitlines(), 1)), name, arguments)
        if value != expected:
            sentences.append(f"{name}({arguments[0]}, {arguments[1]}) returns {value} but should return {expected}.")
    return sentences


def draw_state(rng, held_out):
    """An unseen task after some calls: the expert's or random ones."""
    while True:
        task = draw_task(rng, KINDS, *(((2, 3), (1, 2)) if rng.random() < 0.8 else ((4,), (2, 3))))
        if code_of(task) not in held_out:
            break
    example = {**task, "context": []}
    way = rng.random()
    if way < 0.5:                       # the expert's calls, most often up to the view; the next call is random all the same
        for call in expert_calls(task)[:rng.choice((0, 1, 2, 2, 2, 3, 4))]:
            example = rlvr.next_call(example, call)
    elif way < 0.65:                    # the file is given
        example = rlvr.next_call(example, expert_calls(task)[1])
    elif way < 0.8:                     # a wrong edit, a failed test, another view
        for tool in ("view", "edit", "run_tests", "view")[:rng.choice((2, 3, 4, 4))]:
            path = {"path": task["path"]} if tool == "view" else {}
            example = rlvr.next_call(example, random_edit(example, rng)[1] if tool == "edit" else call_text(tool, **path))
    else:
        for _ in range(rng.randint(1, 5)):
            call = random_call(example, rng)[1]
            if "=submit>" not in call:
                example = rlvr.next_call(example, call)
    return example


def draw_calls(rng, held_out, num=5):
    """A prompt and completions for make.pretrain: a task after some calls, and random next calls."""
    sandbox.failed_tests = without_processes                                                      # make.pretrain draws in a process of its own
    example = draw_state(rng, held_out)
    return prompt_text(example), [f"<think>{think}</think>\n{call}" for think, call in (random_call(example, rng) for _ in range(num))]


def prompt_text(example):
    """The prompt as srl_prompt and the chat template write it; a test compares them."""
    turns = "".join(f"<|assistant|>{m['content']}<|end|>" if m["role"] == "assistant" else f"<|user|>{m['content']}" for m in example["context"])
    return f"<|user|>{example['problem']}{turns}<|assistant|>"


ISOLATED = rf"\b(?:{'|'.join(NAMES + FILES)})\b|\b[a-z]\b|\d"         # a name is one token everywhere, so it can be copied


def check_calls(model, tokenizer, held_out, seed, num=400):
    """How many sampled calls (temperature 1) on unseen tasks can be executed, and how many changes tried on paper are legal with the right steps."""
    rng, counts = random.Random(seed + 2), Counter()
    torch.manual_seed(seed)
    examples = [draw_state(rng, held_out) for _ in range(num)]
    prompts = [tokenizer(prompt_text(e))["input_ids"] for e in examples]
    texts = rlvr.srl.generate(model, tokenizer, prompts, 1, max_new_tokens=500).texts
    for example, text in zip(examples, texts, strict=True):
        think, action = rlvr.srl.parse_completion(text) or ("", "")
        name, arguments = parse_call(action)
        _, observation = execute(name, arguments, example["files"], example["visible"])
        counts.update({"calls": 1, f"{name}": 1, "executed": not observation.startswith("Error")})
        lines = [re.fullmatch(r"(\d+)\|(.*) -> (.*), (yes|no)", line) for line in think.split("\n")[1:]]
        if not lines:
            continue
        functions = functions_in((seen_file(example["context"]) or ("", []))[1])
        goals = [complaint(t) for t in [example["problem"]] + [m["content"] for m in example["context"]]]
        legal = {(number, new) for f in functions for number, new, _ in all_changes(functions, f)}
        for m in lines:
            right = m is not None and (int(m[1]), m[2]) in legal
            counts.update(tried=1, legal=right)
            for goal in goals if right else ():
                if goal and goal[0] in functions and f"{goal[0]}({goal[1][0]}, {goal[1][1]}) should be {goal[2]}," in think:
                    value, steps = run_by_hand(with_line(functions, int(m[1]), m[2]), *goal[:2])
                    counts["computed"] += f"{', '.join(steps)}, {'yes' if value == goal[2] else 'no'}" == f"{m[3]}, {m[4]}"
                    break
        last = lines[-1]
        counts.update(edits=1, made=last is not None and arguments.get("line") == last[1] and arguments.get("text") == last[2])
    print(f"{counts['executed'] / num:.1%} of {num} sampled calls on unseen tasks can be executed; of {counts['tried']} changes tried {counts['legal']} are "
          f"legal and {counts['computed']} computed without a mistake; {counts['made']} of {counts['edits']} edits make the last one; {dict(counts)}")
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batches", type=int, default=7_500, help="length of the pretraining, batches of 2,500 tokens")
    parser.add_argument("--data_only", action="store_true", help="without the base model")
    parser.add_argument("--check_only", action="store_true", help="only measure the base model in --out")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    sandbox.failed_tests = without_processes
    sets, seen = make_tasks(args.seed)
    if args.check_only:
        return check_calls(*load_policy(args.out / "base"), seen, args.seed)
    for name, records in sets.items():
        path = args.out / ("expert.jsonl" if name == "expert" else f"benchmarks/{name}.jsonl")
        write_jsonl(path, records)
        print(f"{path}: {len(records)} tasks")
    if not args.data_only:
        draw = partial(draw_calls, held_out=seen)
        model, tokenizer = make.pretrain(draw, args.seed, args.batches, args.out / "base", isolated=ISOLATED, vocabulary=900)
        check_calls(model.eval(), tokenizer, seen, args.seed)


if __name__ == "__main__":
    main()
