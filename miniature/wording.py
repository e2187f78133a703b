"""Free wording for the equations' world: a step says the same in one of many ways, as steps of real solutions do.

A worded step is "k. **Title** remark result. remark": one of six titles for its move, one of twelve remarks before
the result and one of twelve after it, 864 wordings in all, seven eighths of its characters. So two people who
make the same move practically never write the same step.

    3. **Subtract 5x from both sides** 5x + 26 = -69
    3. **Take 5x away on either side** Carried out, this yields 5x + 26 = -69. Both sides still balance.
"""
import re

TITLES = [      # the first of a row is the title in the terse world; {} is a side, a term or a number
    ("Expand the {} side", "Multiply out the {} side", "Remove the parentheses on the {}",
     "Apply the distributive law on the {}", "Open the brackets of the {} side", "Write the {} side without parentheses"),
    ("Simplify the {} side", "Combine like terms on the {}", "Collect the terms of the {} side",
     "Add up what is alike on the {}", "Bring the {} side into its shortest form", "Tidy up the {} side"),
    ("Swap the sides", "Exchange left and right", "Turn the equation around", "Interchange the two sides",
     "Read the equation from right to left", "Write the right side first"),
    ("Add {} to both sides", "Increase both sides by {}", "Put {} on top of each side", "Let both sides grow by {}",
     "Bring in {} on the left and the right", "Give {} to either side"),
    ("Subtract {} from both sides", "Decrease both sides by {}", "Take {} away on either side", "Let both sides shrink by {}",
     "Remove {} on the left and the right", "Cancel {} by subtraction"),
    ("Multiply both sides by {}", "Scale the equation by {}", "Take each side {} times", "Make both sides {} times as large",
     "Use the factor {} on either side", "Multiply the left and the right by {}"),
    ("Divide both sides by {}", "Split each side into {} equal parts", "Cancel the common factor {}", "Make both sides {} times as small",
     "Use the divisor {} on either side", "Divide the left and the right by {}"),
    ("State the answer", "Give the solution", "Read off the unknown", "Name the value of x", "Write down the result", "Finish the problem"),
]
BEFORE = ("This gives", "We now have", "What remains is", "The outcome of this is", "Carried out, this yields", "After that we are left with",
          "Doing so leads us to", "As a result we obtain", "At this point we can write", "Once this is done, we see", "Working it out, we arrive at",
          "Put on a line of its own, that is")
AFTER = ("Both sides still balance.", "The value of x stays the same.", "Nothing was lost on the way.", "A substitution would confirm it.",
         "That is as it should be.", "This step could also be undone.", "We keep this line for what follows.", "Every number in it was checked.",
         "It is a small but useful change.", "The rules of algebra allow this.", "One can see it at a glance.", "No solution appears or disappears here.")
STEP = re.compile(rf"(\d+)\. \*\*(.+?)\*\* (?:{'|'.join(map(re.escape, BEFORE))}) (.+)\. (?:{'|'.join(map(re.escape, AFTER))})")
PATTERNS = [(re.compile(re.escape(title).replace(r"\{\}", "(.+)")), row[0]) for row in TITLES for title in row]


def terse_title(title):
    """(the title of the same move in the terse world, the side, term or number that it names); None where it names no move."""
    for pattern, terse in PATTERNS:
        if m := pattern.fullmatch(title):
            return terse, *m.groups()
    return None


def reword(step, rng):
    """A terse step ("k. **Title** result") in words that `rng` draws."""
    k, title, result = re.fullmatch(r"(\d+)\. \*\*(.+?)\*\* (.+)", step).groups()
    terse, *names = terse_title(title)
    titles = next(row for row in TITLES if row[0] == terse)
    return f"{k}. **{rng.choice(titles).format(*names)}** {rng.choice(BEFORE)} {result}. {rng.choice(AFTER)}"


def unword(step):
    """The terse step that a worded one says; None where it is not worded so."""
    m = STEP.fullmatch(step)
    found = m and terse_title(m[2])
    return f"{m[1]}. **{found[0].format(*found[1:])}** {m[3]}" if found else None
