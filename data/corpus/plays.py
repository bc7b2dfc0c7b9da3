"""The plays of the built-in corpus: which ones are held out, and what is said in them."""

from __future__ import annotations

import regex

HELD_OUT = [  # one play of each kind, which scripts/quickstart.sh keeps out of pretraining too
    "comedies/twelfth-night.md",
    "histories/richard-ii.md",
    "problems/measure-for-measure.md",
    "roman/julius-caesar.md",
    "romances/the-tempest.md",
    "tragedies/macbeth.md",
]


def speeches(play: str) -> list[str]:
    """What the characters of a play say, a string a speech: the lines below a bold name, without stage directions."""
    found = []
    for part in regex.split(r"^\*\*.+\*\*\s*$", play, flags=regex.MULTILINE)[1:]:
        lines = [line.strip() for line in part.splitlines()]
        found.append("  \n".join(line for line in lines if line and not line.startswith(("#", "_"))))
    return found
