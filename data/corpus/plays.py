"""Shakespeare's plays: which ones are held out, and the speeches in them."""

from __future__ import annotations

import regex

HELD_OUT = [  # one play of each kind; scripts/quickstart.sh keeps them out of pretraining too
    "comedies/twelfth-night.md",
    "histories/richard-ii.md",
    "problems/measure-for-measure.md",
    "roman/julius-caesar.md",
    "romances/the-tempest.md",
    "tragedies/macbeth.md",
]


def speeches(play: str) -> list[str]:
    """Returns the speeches of a play: the lines below each bold name, without headings and stage directions."""
    found = []
    for part in regex.split(r"^\*\*.+\*\*\s*$", play, flags=regex.MULTILINE)[1:]:
        lines = [line.strip() for line in part.splitlines()]
        found.append("  \n".join(line for line in lines if line and not line.startswith(("#", "_"))))
    return found
