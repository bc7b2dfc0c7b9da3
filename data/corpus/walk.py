"""Walks folders: sorted, links to folders followed once, files of this program left out; expands patterns likewise."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from .. import InputError
from .own_files import OWN, is_only_own, is_own_folder, own_files

# Reasons to leave something out.
BROKEN_LINK = "link to a missing file"
REPEATED_FOLDER = "link to a folder that is read at another place"
ENCLOSING_FOLDER = "link to a folder that contains the corpus"
SPECIAL_FILE = "neither a file nor a folder"


@dataclass(frozen=True)
class File:
    """A file of a corpus, or something in its folder that is left out."""

    path: str
    name: str  # in the corpus: relative to its folder
    n_bytes: int  # on the disk
    explicit: bool = False  # the user named this file, so a problem with it is an error and not a reason to skip it
    content: bytes | None = None  # of a file inside an archive
    is_stdin: bool = False  # only this process can open it
    left_out: str = ""  # the reason; the name of a folder ends in a slash

    @property
    def place(self) -> str:
        """The file as error messages call it."""
        return "standard input" if self.is_stdin else self.path


class Walk:
    """The files and folders below `root`, except hidden ones. Enters each folder once.

    prune(name, with a slash at its end) tells which folders not to enter. pattern: the parts of a glob pattern that the
    names must match, like ("**", "*.txt"). A root that this program wrote is read.
    """

    def __init__(
        self, root: str, *, prune: Callable[[str], bool] = lambda name: False, pattern: tuple[str, ...] = ("**", "*")
    ) -> None:
        self.root, self.real_root, self.prune, self.pattern = root, os.path.realpath(root), prune, pattern
        self.hidden = any(part.startswith(".") for part in pattern)
        self.entered: set[tuple[int, int]] = set()  # device and inode
        self.skip_own = True

    def files(self, folder: str | None = None, prefix: str = "") -> Iterator[File]:
        """Yields files sorted by name; holds one folder's entries in memory."""
        folder = self.root if folder is None else folder
        entries, names = self._enter(folder)
        if not prefix:
            self.skip_own = not is_only_own(folder, names)
        elif self.skip_own and is_own_folder(folder, names):
            yield File(folder, prefix, 0, left_out=OWN)
            return
        own = own_files(folder, names) if self.skip_own else set()
        for entry, is_folder, problem in entries:
            name = f"{prefix}{entry.name}" + "/" * is_folder
            if not _matches(name, self.pattern) or (is_folder and self.prune(name)):
                continue
            if problem:
                yield File(entry.path, name, 0, left_out=problem)
            elif not is_folder:
                yield File(entry.path, name, entry.stat().st_size, left_out=OWN if entry.name in own else "")
            elif problem := self._why_not_enter(entry):
                yield File(entry.path, name, 0, left_out=problem)
            else:
                yield from self.files(entry.path, name)

    def _enter(self, folder: str) -> tuple[list[tuple[os.DirEntry[str], bool, str]], set[str]]:
        """Returns (entry, whether it is a folder, reason to leave it out) in order, and the names of the entries."""
        try:
            status = os.stat(folder)
            self.entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scan:
                visible = [entry for entry in scan if self.hidden or not entry.name.startswith(".")]
                found = [(entry, *_kind(entry)) for entry in visible]
        except OSError as error:
            advice = "make it readable, or leave it out with exclude="
            raise InputError(f"{error.filename}: {error.strerror}; {advice}") from None
        # With a slash after the names of folders, sorting the entries also sorts the full paths.
        found.sort(key=lambda item: item[0].name + "/" * item[1])
        return found, {entry.name for entry, _, _ in found}

    def _why_not_enter(self, entry: os.DirEntry[str]) -> str:
        """The reason not to enter a folder, or nothing."""
        target = os.path.realpath(entry.path)
        status = entry.stat()
        if (status.st_dev, status.st_ino) in self.entered:
            return REPEATED_FOLDER
        if not entry.is_symlink():
            return ""
        common = os.path.commonpath([self.real_root, target])
        if common == target:
            return ENCLOSING_FOLDER
        # A link into the corpus: the folder is read at its own place, unless that is hidden or does not match.
        inside = common == self.real_root and _matches(os.path.relpath(target, common) + "/", self.pattern)
        return REPEATED_FOLDER if inside else ""


def _kind(entry: os.DirEntry[str]) -> tuple[bool, str]:
    """(True for a folder or a link to one, reason to leave the entry out)."""
    try:
        if entry.is_dir():
            return True, ""
        if entry.is_file():
            return False, ""
    except OSError:  # links in a circle, or through a file or a folder that cannot be read
        return False, BROKEN_LINK
    return False, BROKEN_LINK if entry.is_symlink() else SPECIAL_FILE


def _matches(name: str, pattern: tuple[str, ...]) -> bool:
    """True if the name of a file matches a pattern, or if files in a folder (whose name ends in a slash) may match."""
    first, slash, rest = name.partition("/")
    if not first:
        return bool(pattern)
    if not pattern:
        return False
    if pattern[0] == "**" and (_matches(name, pattern[1:]) or (first[0] != "." and slash and _matches(rest, pattern))):
        return True
    if pattern[0] == "**" or not fnmatchcase(first, pattern[0]) or (first[0] == "." != pattern[0][0]):
        return False
    return _matches(rest, pattern[1:]) if slash else len(pattern) == 1


def files_matching(pattern: Path, *, prune: Callable[[str], bool] = lambda name: False) -> Iterator[File]:
    """Yields the files that match a glob pattern, sorted; their names are relative to its part without wildcards."""
    root = next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))
    parts = pattern.relative_to(root).parts
    if root.is_dir():
        yield from Walk(str(root), prune=prune, pattern=(*parts, "*") if parts[-1] == "**" else parts).files()
