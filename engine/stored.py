"""Stored records: without this file an interrupted evaluation begins again; no result says what made it."""
import ast
import hashlib
import inspect
import json
import platform
import subprocess
import sys
import sysconfig
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

from .distributed import on_all_ranks, rank
from .files import InputError, explain_read_errors, remove, write_jsonl, write_text

# the files of engine/ that decide what a completion is worth
JUDGING = "chat problems matcher grader grader_process tools sandbox sandbox_process trajectories".split()
# folders whose modules are no part of what a user writes
NOT_OWN = (sys.prefix, sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), Path(__file__).parent)
RESULTS = ("*.json", "seed*/*.json")    # in a folder of results


def digest(*parts):
    """A hash of the parts, any JSON."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def digest_files(model, *suffixes):
    """A digest of what is in a model's files with these suffixes, whatever its folder; "" without any."""
    folder = Path(model)
    if not folder.is_dir():                             # a name of the hub: its files in the cache
        from huggingface_hub import snapshot_download
        with suppress(OSError, ValueError):
            folder = Path(snapshot_download(str(model), local_files_only=True))
    found = []
    for path in sorted(path for path in folder.glob("*") if path.suffix in suffixes):
        with open(path, "rb") as file:
            found.append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
    return digest(found) if found else ""


def own_modules(functions):
    """{file: module} of functions and of all that their modules import, without engine/ and packages."""
    found, todo = {}, [getattr(f, "func", f) for f in functions]
    while todo:
        module = inspect.getmodule(todo.pop())
        path = Path(getattr(module, "__file__", None) or "")
        if path.suffix == ".py" and path not in found and not any(map(path.is_relative_to, NOT_OWN)):
            found[path] = module
            todo += vars(module).values()
    return found


def identity_of(cfg, data, make_prompt, functions):
    """{what a run is made of beside its flags: its digest}; a run continues with the same only.

    functions: the source of their modules, and of the modules that these import, decides what is learned;
    comments do not count, docstrings do.
    """
    judging = [path for path in Path(__file__).parent.glob("**/*.py") if path.stem in JUDGING]
    sources = sorted(ast.unparse(ast.parse(path.read_text())) for path in [*own_modules(functions), *judging])
    values = [value for f in functions for value in bound_values(f) if isinstance(value, (str, int, float))]
    kinds = (".safetensors", ".bin"), (".json", ".jinja", ".model", ".txt")
    weights, files = (digest_files(cfg.model, *k) if Path(cfg.model).is_dir() else "" for k in kinds)
    return {"data": digest(*data), "prompt": digest(make_prompt(data[0][0])), "code": digest(sources, values),
            "weights of --model": weights, "tokenizer or configuration of --model": files}


def bound_values(function):
    """What a function is bound to: a partial's arguments, a closure's variables, an object's fields."""
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    bound = [*getattr(function, "args", ()), *getattr(function, "keywords", {}).values()]
    return cells + bound + [*getattr(function, "__dict__", {}).values()]


def made_of(model, problems, prompts, settings, code):
    """For each problem all that its attempts depend on, see stored_or_made.

    prompts: None with --regrade, which loads no model. code: functions that continue an attempt, or None.
    """
    common, weights = {"settings": settings}, digest_files(model, ".safetensors", ".bin")
    if weights:                                         # --regrade needs none
        common["weights"] = weights
    if prompts:
        files = digest_files(model, ".json", ".jinja", ".model", ".txt")
        sources = [function and inspect.getsource(function) for function in code]
        common |= {"tokenizer or configuration": files, "code": digest(sources)}
    records = []
    for number, problem in enumerate(problems):
        texts = [problem.get(name) for name in ("problem", "system", "context", "files", "visible")]
        # the row names the random stream
        sampled_from = {"row": number, "prompt": digest(prompts[number])} if prompts else {}
        records.append({"problem": digest(*texts), **sampled_from, **common})
    return records


def read_stored(path):
    """The records of a file of stored_or_made; none of a file of another kind."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        _, *records = map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])
        return [record for record in records if isinstance(record["of"], dict)]
    return []


def stored_or_made(path, header, items, wanted, make, size, again=False):
    """A record for each item: read from `path` where it was made of what is wanted, else made and stored.

    wanted: for each item {name: value}, all that its record depends on; stored as "of" in the record, which
    may have more names. make(items) -> a list of dicts; `size` items at a time, on all ranks. header: the
    first line of the file, for readers. again: read nothing. Prints what the unused records were made of.
    """
    stored = [] if again else read_stored(path)
    by_content = {json.dumps([record["of"].get(name) for name in wanted[0]]): record for record in stored}
    records = [by_content.get(json.dumps([*of.values()])) for of in wanted]
    missing = [n for n, record in enumerate(records) if record is None]
    other = [name for name in wanted[0] if any(
        stored[n]["of"].get(name) != wanted[n][name] for n in missing if n < len(stored))]
    if other:
        print(f"{path}: {len(missing)} of {len(items)} records do not count, changed: {', '.join(other)}")
    for begin in range(0, len(missing), size):
        part = missing[begin:begin + size]
        made = on_all_ranks(make, [items[n] for n in part])
        for n, record in zip(part, made, strict=True):
            records[n] = {"of": wanted[n], **record}
        if rank() == 0:
            write_jsonl(path, [header, *filter(None, records)])
    return records


def read_results(folder):
    """{name: its results, one for each training seed} of a folder: NAME.json, or seed*/NAME.json.

    Raises InputError where there are none, one is no result, or a name has two of the same seed.
    """
    found = {}
    for path in (path for pattern in RESULTS for path in sorted(Path(folder).glob(pattern))):
        with explain_read_errors(path, "no result of 04_eval.py", "remove it, or use another folder"):
            result = json.loads(path.read_text(encoding="utf-8"))
            _ = result["train_seed"], [part["right"] for part in result["benchmarks"].values()]
        found.setdefault(path.stem, []).append({**result, "file": str(path)})
    if not found:
        raise InputError(f"{folder}: no results (NAME.json or seed*/NAME.json); python 04_eval.py makes some")
    for name, results in found.items():
        check_seeds(name, results)
    return found


def check_seeds(name, results):
    """Raises InputError where two of the results of a name have the same training seed."""
    first = {}
    for result in results:
        place, seed = result.get("file", name), result["train_seed"]
        if seed in first:
            raise InputError(f"{place}: training seed {seed}, as {first[seed]} has; give each run of {name} "
                             "its own --train_seed")
        first[seed] = place


def check_output(cfg, names, results, *folders):
    """Raises InputError where a folder cannot be written to, or `results` has cfg.train_seed for a name, or
    would lose results of another cfg.mode."""
    for folder in (results, *folders) if rank() == 0 else ():       # several ranks would remove each other's
        write_text(folder / "writable", "")
        remove(folder / "writable")
    if any(path for pattern in RESULTS for path in results.glob(pattern)):
        for name, old in read_results(results).items():
            kept = [r for r in old if name not in names or Path(r["file"]) != results / f"{name}.json"]
            check_seeds(name, kept + [{"train_seed": cfg.train_seed}] * (name in names))
            modes = {r.get("decoding", {}).get("mode", cfg.mode) for r in old if r not in kept}
            for mode in modes - {cfg.mode}:
                raise InputError(f"{results / name}.json: results of --mode {mode}; use another --results")


def merged(provenances):
    """One provenance of several: where they differ, every value."""
    return {name: ", ".join(dict.fromkeys(made[name] for made in provenances)) for name in provenances[0]}


def provenance(folder):
    """Commit of the code in `folder`, versions and machine."""
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, cwd=folder, capture_output=True, text=True).stdout.strip() or "unknown"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads{gpu}"
    return {"commit": commit, "torch": torch.__version__, "transformers": metadata.version("transformers"),
            "python": platform.python_version(), "machine": machine}
