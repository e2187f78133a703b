"""A page on which attempts can be looked at: without this file they are only in JSONL files."""
import base64
import json
import math
import re
from collections import namedtuple
from contextlib import suppress
from pathlib import Path
from statistics import fmean

from . import stored
from .agents.sandbox import failed_tests
from .agents.swebench import unified_patch
from .files import InputError, explain_read_errors, parse_jsonl, write_text
from .matcher import SequenceMatcher

TEMPLATE = Path(__file__).with_suffix(".html")
MOST_BYTES = 4_400_000      # of the problems in a page; with the rest of it under 5 MB
MOST_POINTS = 150           # of a curve
MOST_SAMPLES = 300          # prompts of a training run
SAMPLE = re.compile(r"^=== (update \d+), (.*): \w+ (-?\d+\.\d+)$", re.MULTILINE)    # of completions.txt

# What a page has to know of the task. reference: the name of the solutions that attempts are compared with;
# curves: fields of log.jsonl; graded: fields of a problem that an attempt is graded with; split(solution) ->
# its parts, or a ValueError; score(text, reference) -> a number; follow(example, text) -> the example after
# a call, None at the end
Task = namedtuple("Task", "reference curves graded split score follow")


def write_page(path, task, data):
    """Write the page of `data` to `path`: one file that asks no server for anything.

    Texts may be hostile: they enter the page as JSON without "<", and its script shows them as text alone.
    """
    data = {"table": "", "heading": "Problems", "right": "right", "first": "Greedy attempt",
            "reference": task.reference, "curves": task.curves, **data}
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    before, after = TEMPLATE.read_text(encoding="utf-8").split("{{DATA}}")
    write_text(path, before + text + after)
    print(f"report: {path}")


# 1. Training curves
def read_curves(path, fields):
    """A log's "curves" {field: [[part of the run, value], ..]} and "length"; kept: the share of groups."""
    log, _ = parse_jsonl(path)
    with explain_read_errors(path, "no log of a training run"):
        for line in log:
            if line.get("sampled"):
                line["kept"] /= line["sampled"]
        curves = {field: thinned([[n / max(len(log) - 1, 1), value] for n, line in enumerate(log)
                                  if (value := line.get(field)) is not None and math.isfinite(value)])
                  for field in fields}
        length = f"{log[-1]['done']:,} completions" if "done" in log[-1] else f"{len(log)} validations"
    return {"curves": {field: points for field, points in curves.items() if points}, "length": length}


def thinned(points):
    """At most MOST_POINTS means of neighbouring points, four digits each."""
    size = math.ceil(len(points) / MOST_POINTS) or 1
    parts = [points[begin:begin + size] for begin in range(0, len(points), size)]
    return [[float(f"{fmean(values):.4g}") for values in zip(*part, strict=True)] for part in parts]


def runs_of(models, fields):
    """The curves of each model {label, colour, folder} that has log.jsonl beside its folder."""
    runs = []
    for model in models:
        path = Path(model["folder"]).parent / "log.jsonl"
        if model["folder"] and path.is_file():
            try:
                runs.append({**model, **read_curves(path, fields)})
            except InputError as error:         # the results do not need it
                print(f"report: no curves of {model['label']}, {error}")
    return runs


# 2. Attempts
def outcome(attempt, verdict):
    """What became of an attempt. A right answer before the limit is right, as it is for training."""
    return verdict if attempt["finished"] or verdict == "right" else "truncated"


def compared(text, reference, score):
    """A turn: thoughts, text, and where there is a reference its score and the characters that match it, as
    a list of offset, length, offset, length, .."""
    thoughts, _, text = text.rpartition("</think>")
    turn = {"thoughts": thoughts.strip().removeprefix("<think>").strip(), "text": text.strip()}
    if reference:
        blocks = SequenceMatcher(None, turn["text"], reference, autojunk=False).get_matching_blocks()
        turn["blocks"] = [number for block in blocks if block[2] for number in (block[0], block[2])]
        turn["score"] = round(score(turn["text"], reference), 4)
    return turn


def replayed(problem, attempt, follow):
    """(observations, changes as a patch, what the hidden tests say) of an agent's attempt, executed again."""
    example, observations, note = {**problem, "context": []}, [], ""
    for text in attempt["turns"]:
        following = follow(example, text)
        if following is None:
            failed = failed_tests(example["files"], problem["hidden"])
            note = f"{len(failed)} of {len(problem['hidden'])} hidden tests fail"
            note += f": {failed[0]}" if failed else ""
            break
        example = following
        observations.append(example["context"][-1]["content"])
    return observations, unified_patch(problem["files"], example["files"]), note


def view_of(task, problem, references, attempt, verdict):
    """What the page shows of an attempt."""
    pairs = zip(attempt["turns"], references + [""] * len(attempt["turns"]), strict=False)
    view = {"outcome": outcome(attempt, verdict), "turns": [compared(*pair, task.score) for pair in pairs]}
    if "files" in problem:
        observations, view["diff"], view["note"] = replayed(problem, attempt, task.follow)
        for turn, observation in zip(view["turns"], observations, strict=False):
            turn["observation"] = observation
    return view


def card_of(task, problem, single, attempts):
    """What the page shows of a problem. single: an attempt is one completion. attempts: {model: [(attempt,
    verdict)]}, the greedy one first. Equal turns are stored once, equal samples are one with its count."""
    references, turns, shown = parts_of(task, problem, single), {}, {}
    compare = references if single or len(references) > 1 else []
    for name, pairs in attempts.items():
        views = {}
        for number, (attempt, verdict) in enumerate(pairs):
            key = json.dumps([number == 0, attempt, verdict])
            if key not in views:
                view = view_of(task, problem, compare, attempt, verdict)
                places = [turns.setdefault(json.dumps(packed(turn)), len(turns)) for turn in view["turns"]]
                views[key] = {**view, "turns": places, "name": str(number or "greedy"), "count": 0}
            views[key]["count"] += number > 0
        shown[name] = list(views.values())
    return {"id": problem["id"], "title": problem["problem"].strip().partition("\n")[0][:160],
            "problem": problem["problem"], "answer": str(problem["answer"]), "reference": references,
            "turns": list(map(json.loads, turns)), "attempts": shown}


def packed(turn):
    """A turn as a list: most of a page are turns, and names in each would take the room of other problems."""
    return [turn.get(name) for name in ("text", "thoughts", "blocks", "score", "observation")]


def parts_of(task, problem, single):
    """The parts of a problem's solution: one for attempts of a single completion and if it has none."""
    solution = problem.get("solution", "").strip()
    if not single:
        with suppress(ValueError):
            return [part.strip() for part in task.split(solution)]
    return [solution] if solution else []


def first_cards(benchmarks):
    """({benchmark: its first cards}, what is left out), as many of each benchmark as fit into MOST_BYTES.

    benchmarks: {name: (number of cards, function that makes card n)}.
    """
    cards, size, number = {name: [] for name in benchmarks}, 0, 0
    while size < MOST_BYTES and any(number < total for total, _ in benchmarks.values()):
        for name, (total, make_card) in benchmarks.items():
            if number < total and size < MOST_BYTES:
                card = make_card(number)
                text = json.dumps(card, separators=(",", ":"))
                size += len(text) + 5 * text.count("<")                     # which become \u003c
                cards[name] += [card] if size < MOST_BYTES else []
        number += 1
    less = [f"{len(cards[name])} of {total} in {name}" for name, (total, _) in benchmarks.items()
            if len(cards[name]) < total]
    return cards, f"The first problems alone, for a page under 5 MB: {', '.join(less)}." if less else ""


# 3. The page of an evaluation
def problems_digest(problems, graded):
    """What a result stores about its problems: a digest of their texts and of the fields `graded`."""
    fields = [{name: problem[name] for name in graded if name in problem} for problem in problems]
    return stored.digest([problem["problem"] for problem in problems], fields)


def stored_attempts(path, part, problems, task):
    """(header, [[(attempt, verdict)]]) of a file of completions: for each problem the greedy attempt and the
    sampled ones. None where they are not those that the result's `part` was counted from."""
    records, grades = stored.read_stored(path), stored.read_stored(path.with_suffix(".grades.jsonl"))
    problems, pairs = problems[:len(part["right"])], []
    for record, grade in list(zip(records, grades, strict=False))[:len(problems)]:
        if grade["of"].get("attempts") == stored.digest(record["greedy"], record["sampled"]):
            verdicts = [verdict for verdict, _ in grade["verdicts"]]
            pairs.append(list(zip([record["greedy"], *record["sampled"]], verdicts, strict=True)))
    rights = [[int(verdict == "right") for _, verdict in attempts] for attempts in pairs]
    counted = [greedy for greedy, *_ in rights], [sum(sampled) for _, *sampled in rights]
    same = part.get("problems") == problems_digest(problems, task.graded)
    if not same or counted != (part["greedy"], part["right"]):
        return None
    return json.loads(path.read_text(encoding="utf-8").partition("\n")[0]), pairs


def write_evaluation_page(folder, task, found, table, styles, benchmarks, completions):
    """Write report.html to a folder of results beside figure.png.

    found: {model: results}, table: Markdown; styles: {model: (label, colour)}; benchmarks: {name: problems};
    completions: the folder of the attempts. Of several training seeds the one whose attempts are there.
    """
    folders, attempts, modes = {}, {name: {} for name in benchmarks}, {}
    for model, results in found.items():
        for result in results:
            for name in set(benchmarks) & set(result["benchmarks"]):
                path, part = completions / model / f"{name}.jsonl", result["benchmarks"][name]
                if read := stored_attempts(path, part, benchmarks[name], task):
                    header, attempts[name][model] = read
                    folders[model], modes[name] = header["model"], header.get("mode")

    def make_card(name, number):
        of_problem = {model: pairs[number] for model, pairs in attempts[name].items() if number < len(pairs)}
        return card_of(task, benchmarks[name][number], modes[name] == "single", of_problem)
    makers = {name: (max(map(len, pairs.values())), lambda n, name=name: make_card(name, n))
              for name, pairs in attempts.items() if pairs}
    cards, left_out = first_cards(makers)
    if not makers:
        print(f"{completions}: no attempts of these results; give their --completions and --benchmarks")
    models = []
    for name in found:
        label, colour = styles.get(name, (name, "#666666"))
        models.append({"name": name, "label": label, "colour": colour, "folder": folders.get(name, "")})
    write_page(folder / "report.html", task, {
        "title": f"Evaluation: {folder.resolve().name}", "table": table,
        "figure": base64.b64encode((folder / "figure.png").read_bytes()).decode(),
        "runs": runs_of(models, task.curves), "models": models, "sampled": left_out, "benchmarks": cards})


# 4. The page of a training run
def read_samples(path):
    """{(update, prompt): [(score, completion, reference, context)]} of a run's completions.txt."""
    # replace: a run that was killed may have written half of a character
    text, groups = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else "", {}
    parts = SAMPLE.split(text)[1:]                  # update, prompt, score, text, update, ..
    for n in range(0, len(parts), 4):
        update, prompt, score, body = parts[n:n + 4]
        completion, _, rest = body[1:].rpartition("\n--- expected\n")
        reference, _, context = rest.partition("\n--- context\n")
        sample = float(score), completion, reference.strip(), context.strip()
        groups.setdefault((update, prompt), []).append(sample)
    return groups


def sample_turn(score, text, reference, compare):
    """A sample as a turn with its score of the time; characters are marked where that is the similarity."""
    turn = compared(text, reference, compare)
    return turn if abs(turn.get("score", math.inf) - score) < 1e-3 else {**turn, "blocks": [], "score": score}


def write_run_page(folder, task):
    """Write report.html of a training run's folder: its curves, and samples of its completions.txt.

    Raises InputError where the folder has no log.jsonl.
    """
    if not (folder / "log.jsonl").is_file():
        raise InputError(f"{folder}: no log.jsonl; give the folder that a training run wrote (its --out)")
    label = folder.resolve().name
    model = {"name": "run", "label": label, "colour": "#0072B2"}
    groups = list(read_samples(folder / "completions.txt").items())
    chosen = groups[::math.ceil(len(groups) / MOST_SAMPLES) or 1]

    def make_card(number):
        (update, prompt), samples = chosen[number]
        turns = [sample_turn(*sample, task.score) for *sample, _ in samples]
        attempts = [{"turns": [n], "name": str(n + 1), "count": 1, "outcome":
                     "exact" if turn["score"] >= 1 else "broken format" if turn["score"] < 0 else "not exact"}
                    for n, turn in enumerate(turns)]
        *_, reference, context = samples[0]
        return {"id": update, "title": prompt, "problem": context, "answer": "", "reference": [reference],
                "turns": list(map(packed, turns)), "attempts": {"run": attempts}}
    cards, left_out = first_cards({"completions.txt": (len(chosen), make_card)} if chosen else {})
    about = f"{len(chosen)} of the {len(groups)} prompts in completions.txt. {left_out}"
    write_page(folder / "report.html", task, {
        "title": f"Training run: {label}", "models": [model],
        "runs": [{**model, **read_curves(folder / "log.jsonl", task.curves)}],
        "sampled": about, "heading": "Prompts", "right": "exact", "first": "First sample",
        "reference": "Expected", "benchmarks": cards})
