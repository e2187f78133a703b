"""Flags: a dataclass becomes a command line; the comment beside each field is its help text."""
import argparse
import math
from dataclasses import replace
from pathlib import Path

import tyro

from .files import InputError

ZERO_ALLOWED = ("seed", "train_seed", "lora_rank", "decay", "eps", "clip_eps", "temperature", "num_val",
                "context_pairs")


def flag_value(name, default):
    """The value of a flag on the command line, before all flags are parsed; else `default`."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}", default=default)
    return getattr(parser.parse_known_args()[0], name)


def parse_flags(defaults, description, recipes=None):
    """The dataclass instance that the command line asks for, one flag for each field.

    recipes: {recipe: {name: value}}, other defaults that --recipe chooses; {recipe: {method: {name: value}}}
    where there is a flag --method. Raises InputError for numbers out of range.
    """
    if recipes:
        recipe = flag_value("recipe", defaults.recipe)
        known = {defaults.recipe, *recipes}
        if recipe not in known:
            raise InputError(f"--recipe {recipe}: must be one of {', '.join(sorted(known))}")
        values = recipes.get(recipe, {})
        if hasattr(defaults, "method"):
            values = values.get(flag_value("method", defaults.method), {})
        defaults = replace(defaults, **values)
    cfg = tyro.cli(type(defaults), default=defaults, description=description, use_underscores=True)
    wrong = []
    for name, value in vars(cfg).items():
        if type(value) not in (int, float):
            continue
        least = 0 if name in ZERO_ALLOWED else 1 if type(value) is int else 1e-12
        if not least <= value < math.inf:
            words = "at least" if type(value) is int or least == 0 else "greater than"
            wrong.append(f"--{name} {value}: must be {words} {round(least)}")
    if wrong:
        raise InputError("; ".join(wrong))
    return cfg


def named_values(flag, words):
    """{NAME: FOLDER} of words NAME=FOLDER; a FOLDER alone is named by its last part.

    Raises InputError where two have the same name, a name cannot be that of a file, or one has no folder.
    """
    named = [word.split("=", 1) if "=" in word else (Path(word).name, word) for word in words]
    names = [name for name, folder in named if folder]
    if wrong := [n for n, _ in named if names.count(n) != 1 or n in ("", ".", "..") or {*n} & {*"/|\n"}]:
        raise InputError(f"--{flag}: {wrong[0]!r} must name one of them; write NAME=FOLDER for each")
    return dict(named)
