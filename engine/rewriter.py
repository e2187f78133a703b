"""Asking a language model: without this file solutions that are not numbered cannot be rewritten."""
import json
import os
import time
from collections import Counter
from contextlib import suppress
from urllib.request import Request, urlopen

from tqdm import tqdm

from .files import InputError, first_line


def ask_endpoint(url, model, tries=4):
    """prompt -> completion of an OpenAI-compatible server, with the key OPENAI_API_KEY; else InputError."""
    url = url.rstrip("/")
    key = os.environ.get("OPENAI_API_KEY", "none")
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}

    def ask(prompt):
        messages = [{"role": "user", "content": prompt}]
        body = json.dumps({"model": model, "temperature": 0, "messages": messages}).encode()
        for attempt in range(1, tries + 1):
            try:
                with urlopen(Request(f"{url}/chat/completions", body, headers), timeout=600) as reply:
                    return json.load(reply)["choices"][0]["message"]["content"] or ""
            except (OSError, ValueError, LookupError, TypeError) as error:
                if attempt == tries or getattr(error, "code", 500) in (400, 401, 403, 404):
                    raise InputError(f"{url}: no answer to a request for {model} ({error}); "
                                     "correct that, then run the same command again") from None
                time.sleep(2**attempt)

    return ask


def ask_local(model):
    """prompt -> completion of a transformers model (folder or hub name), decoded greedily."""
    from transformers import pipeline
    try:
        generator = pipeline("text-generation", model=model)
    except (OSError, ValueError) as error:
        raise InputError(f"{model}: not a model that can rewrite ({first_line(error)}); "
                         "give a folder or a hub name with --rewrite") from None

    def ask(prompt):
        messages = [{"role": "user", "content": prompt}]
        output = generator(messages, max_new_tokens=4096, do_sample=False, return_full_text=False)
        return output[0]["generated_text"]

    return ask


def ask_once(ask, path):
    """(id, solution, prompt) -> completion without thoughts, from the JSONL file `path` if it is there."""
    known = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ():
        with suppress(ValueError):                      # an empty line, or one cut off when a run was killed
            entry = json.loads(line)
            known[entry["id"], entry["solution"]] = entry["rewritten"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()                                            # fails here, not after the first answer

    def ask_or_recall(id, solution, prompt):
        if (id, solution) not in known:
            known[id, solution] = ask(prompt).rpartition("</think>")[2].strip()
            entry = {"id": id, "solution": solution, "rewritten": known[id, solution]}
            with path.open("a", encoding="utf-8") as log:
                log.write("\n" + json.dumps(entry, ensure_ascii=False))
        return known[id, solution]

    return ask_or_recall


def rewrite_solutions(records, ask, path, prompt, is_numbered, last_boxed):
    """Replace solutions that are not numbered by completions that are, and that box the same answer, if any.

    ask: prompt -> completion, stored in the file `path`. prompt: with %s for problem and for solution. Bare
    results stay: what leads to them would be invented. Returns the count of each outcome.
    """
    ask, bare = ask_once(ask, path), [r for r in records if not is_numbered(r["solution"])]
    todo = [record for record in bare if len(record["solution"].split()) >= 20]
    outcomes = Counter({"too short to rewrite": len(bare) - len(todo)} if len(bare) > len(todo) else {})
    progress = tqdm(todo, desc="rewriting", unit="solution", disable=not todo)
    for record in progress:
        original = record["solution"]
        rewritten = ask(record["id"], original, prompt % (record["problem"], original))
        answer, boxed = ("".join((last_boxed(text) or "").split()) for text in (original, rewritten))
        if not is_numbered(rewritten):
            outcomes["rejected, no numbered steps"] += 1
        elif answer not in ("", boxed):
            outcomes["rejected, another answer"] += 1
        else:
            outcomes["rewritten"] += 1
            record["solution"] = rewritten
        progress.set_postfix(outcomes)
    return outcomes
