"""Stored records: without this file an interrupted evaluation begins again; no result says what made it."""
import hashlib
import json
import platform
import subprocess
from importlib import metadata

import torch

from .distributed import on_all_ranks, rank
from .files import write_jsonl


def digest(*parts):
    """A text that differs where the parts, any JSON, differ."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def stored_or_made(path, key, items, make, size, again=False):
    """make(items), a list as long as the items: read from `path` as far as it was stored under the same key.

    The rest is made `size` items at a time, on all ranks, and stored each time. again: read nothing.
    """
    records = []
    if path.exists() and not again:
        try:
            stored_key, *stored = map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1])
            records = stored if stored_key == key else []
        except ValueError:                          # not a file of ours
            pass
    for begin in range(len(records), len(items), size):
        records += on_all_ranks(make, items[begin:begin + size])
        if rank() == 0:
            write_jsonl(path, [key, *records])
    return records


def provenance(folder):
    """Commit of the code in `folder`, versions and machine."""
    describe = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, cwd=folder, capture_output=True, text=True).stdout.strip() or "unknown"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads{gpu}"
    return {"commit": commit, "torch": torch.__version__, "transformers": metadata.version("transformers"),
            "python": platform.python_version(), "machine": machine}
