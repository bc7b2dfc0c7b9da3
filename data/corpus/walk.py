"""Walks folders: sorted, links to folders followed once, files of this program left out; expands patterns likewise."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .. import InputError
from .own_files import OWN, is_only_own, is_own_folder, own_files, visible_names

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

    prune(name, with a slash at its end) tells which folders not to enter. A root that this program wrote is read.
    """

    def __init__(self, root: str, *, prune: Callable[[str], bool] = lambda name: False) -> None:
        self.root, self.real_root, self.prune = root, os.path.realpath(root), prune
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
            if is_folder and self.prune(name):
                continue
            if problem:
                yield File(entry.path, name, 0, left_out=problem)
            elif not is_folder:
                yield File(entry.path, name, entry.stat().st_size, left_out=OWN if entry.name in own else "")
            elif problem := self._why_not_enter(entry):
                yield File(entry.path, name, 0, left_out=problem)
            else:
                yield from self.files(entry.path, name)

    def folders(self, folder: str | None = None) -> Iterator[str]:
        """Yields the root and the paths of all folders below it."""
        folder = self.root if folder is None else folder
        entries, _ = self._enter(folder)
        yield folder
        for entry, is_folder, _ in entries:
            if is_folder and not self._why_not_enter(entry):
                yield from self.folders(entry.path)

    def _enter(self, folder: str) -> tuple[list[tuple[os.DirEntry[str], bool, str]], set[str]]:
        """Returns (entry, whether it is a folder, reason to leave it out) in order, and the names of the entries."""
        try:
            status = os.stat(folder)
            self.entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as scan:
                found = [(entry, *_kind(entry)) for entry in scan if not entry.name.startswith(".")]
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
        if os.path.commonpath([self.real_root, target]) == target:
            return ENCLOSING_FOLDER
        if os.path.commonpath([self.real_root, target]) == self.real_root:
            is_hidden = any(part.startswith(".") for part in Path(os.path.relpath(target, self.real_root)).parts)
            return "" if is_hidden else REPEATED_FOLDER
        return ""


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


def files_matching(pattern: Path) -> Iterator[File]:
    """Yields the files that match a glob pattern, sorted; their names are relative to its part without wildcards."""
    root = next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))
    own_folders: dict[Path, bool] = {}
    own: dict[Path, set[str]] = {}
    if is_only_own(str(root), visible_names(root)):
        own[root] = set()
    for path in sorted(Path(found) for found in _expand(pattern)):
        name = path.relative_to(root).as_posix()
        if path.is_symlink() and not path.exists():
            yield File(str(path), name, 0, left_out=BROKEN_LINK)
        if not path.is_file():
            continue
        for folder in reversed(path.parents[: len(path.relative_to(root).parts) - 1]):
            if folder not in own_folders:
                own_folders[folder] = is_own_folder(str(folder), visible_names(folder))
                if own_folders[folder]:
                    yield File(str(folder), f"{folder.relative_to(root).as_posix()}/", 0, left_out=OWN)
            if own_folders[folder]:
                break
        else:
            if path.parent not in own:
                own[path.parent] = own_files(str(path.parent), visible_names(path.parent))
            yield File(str(path), name, path.stat().st_size, left_out=OWN if path.name in own[path.parent] else "")


def _expand(pattern: Path) -> set[str]:
    """Like glob.glob with recursive=True, except that `**` enters each folder once, however the links lead."""
    if "**" not in pattern.parts:
        return set(glob.glob(str(pattern)))
    position = pattern.parts.index("**")
    head, tail = Path(*pattern.parts[:position]), pattern.parts[position + 1 :] or ("*",)
    found: set[str] = set()
    for root in filter(os.path.isdir, glob.glob(str(head))):
        for folder in Walk(root).folders():
            found |= _expand(Path(glob.escape(folder), *tail))
    return found
