"""Walking folders and expanding patterns: links are followed once, and whatever is left out is counted."""

from __future__ import annotations

import os

import pytest

from data import InputError
from data.corpus.corpora import documents
from data.corpus.reading import Skipped
from data.corpus.walk import BROKEN_LINK, ENCLOSING_FOLDER, REPEATED_FOLDER, SPECIAL_FILE


def read(corpus, **settings) -> tuple[list[str], dict[str, str]]:
    """The names of the documents, and the reason for each thing that was left out."""
    skipped = Skipped()
    names = [document.name for document in documents(str(corpus), skipped=skipped, **settings)]
    return names, dict(example.removesuffix(")").split(" (") for example in skipped.examples)


@pytest.fixture
def notes(tmp_path):
    """Notes with a folder elsewhere for links to lead to."""
    for name in ("notes/a.txt", "notes/sub/b.txt", "elsewhere/c.txt", "elsewhere/deep/d.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path / "notes"


def test_a_link_to_a_folder_is_followed_in_its_place_of_the_order(notes):
    (notes / "link").symlink_to(notes.parent / "elsewhere")
    assert read(notes) == (["a.txt", "link/c.txt", "link/deep/d.txt", "sub/b.txt"], {})
    assert read(f"{notes}/**/*.txt") == read(notes)


def test_folders_are_read_once_however_many_links_lead_there(notes):
    (notes / "link").symlink_to(notes.parent / "elsewhere")
    (notes / "once more").symlink_to("link")
    (notes / "part").symlink_to(notes.parent / "elsewhere" / "deep")
    (notes / "aside").symlink_to("sub")  # sorted before the folder itself, which is read at its own place
    names, left_out = read(notes)
    assert names == ["a.txt", "link/c.txt", "link/deep/d.txt", "sub/b.txt"]
    assert left_out == dict.fromkeys(("aside/", "once more/", "part/"), REPEATED_FOLDER)
    assert read(f"{notes}/**/*.txt")[0] == names
    (notes / "0").symlink_to(notes.parent / "elsewhere" / "deep")
    assert read(notes)[0] == ["0/d.txt", "a.txt", "link/c.txt", "sub/b.txt"]


@pytest.mark.parametrize("pattern", [False, True])
def test_links_in_a_circle_end(notes, pattern):
    """Two links to the folder itself are 2**40 paths for a pattern that follows them to the system's limit."""
    (notes / "self").symlink_to(".")
    (notes / "sub" / "up").symlink_to("..")
    (notes / "outside").symlink_to(notes.parent)
    (notes.parent / "elsewhere" / "back").symlink_to(notes)
    (notes.parent / "elsewhere" / "here").symlink_to(".")
    (notes / "link").symlink_to(notes.parent / "elsewhere")
    names, left_out = read(f"{notes}/**" if pattern else notes)
    assert names == ["a.txt", "link/c.txt", "link/deep/d.txt", "sub/b.txt"]
    if not pattern:
        enclosing = ("link/back/", "outside/", "self/", "sub/up/")
        assert left_out == dict.fromkeys(enclosing, left_out["self/"]) | {
            "link/here/": REPEATED_FOLDER, "outside/": ENCLOSING_FOLDER
        }  # fmt: skip


def test_links_to_nothing_and_special_files_are_counted(notes):
    (notes / "gone.txt").symlink_to("nowhere")
    (notes / "circle").symlink_to("circle")
    (notes / "through a file").symlink_to("a.txt/x")
    os.mkfifo(notes / "pipe")
    expected = dict.fromkeys(("gone.txt", "circle", "through a file"), BROKEN_LINK)
    assert read(notes) == (["a.txt", "sub/b.txt"], expected | {"pipe": SPECIAL_FILE})
    assert read(f"{notes}/*") == (["a.txt"], expected | {"pipe": SPECIAL_FILE})
    assert read(notes, exclude=["gone*", "*circle", "thr*", "pipe"]) == (["a.txt", "sub/b.txt"], {})


def test_a_link_to_a_hidden_folder_of_the_corpus_is_followed(notes):
    (notes / ".store").mkdir()
    (notes / ".store" / "e.txt").write_text("e")
    (notes / "visible").symlink_to(".store")
    assert read(notes) == (["a.txt", "sub/b.txt", "visible/e.txt"], {})


def test_a_link_to_a_file_and_a_corpus_that_is_a_link_are_read(notes):
    (notes / "same.txt").symlink_to("a.txt")
    (notes.parent / "corpus").symlink_to(notes)
    assert read(notes.parent / "corpus") == (["a.txt", "same.txt", "sub/b.txt"], {})


def test_patterns_with_two_stars_match_at_every_depth(notes, monkeypatch):
    (notes / ".hidden").mkdir()
    (notes / ".hidden" / "h.txt").write_text("h")
    (notes / "sub" / "deep").mkdir()
    (notes / "sub" / "deep" / "c.md").write_text("c")
    monkeypatch.chdir(notes)
    expected = {
        "**/*.txt": ["a.txt", "sub/b.txt"],
        "**": ["a.txt", "sub/b.txt", "sub/deep/c.md"],
        "sub/**": ["b.txt", "deep/c.md"],
        "*/**/*.md": ["sub/deep/c.md"],
        "**/deep/**/*": ["sub/deep/c.md"],
        ".hidden/**/*": ["h.txt"],
        "**/.hidden/*.txt": [".hidden/h.txt"],
        str(notes / "**" / "[ab].txt"): ["a.txt", "sub/b.txt"],
    }
    assert {pattern: read(pattern)[0] for pattern in expected} == expected


def test_a_pattern_enters_only_the_folders_that_it_may_match(notes, monkeypatch):
    for name in ("year 2024/a.txt", "year 2024/deep/b.txt", "other/c.txt"):
        (notes / name).parent.mkdir(parents=True, exist_ok=True)
        (notes / name).write_text(name)
    (notes / "current").symlink_to("year 2024")
    entered = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: entered.append(os.path.basename(folder)) or scandir(folder))
    assert read(f"{notes}/[cy]*/*.txt") == (["year 2024/a.txt"], {"current/": REPEATED_FOLDER})
    assert set(entered) == {"notes", "year 2024"}
    assert read(f"{notes}/cur*/*") == (["current/a.txt"], {})  # the folder itself does not match
    assert "elsewhere" not in entered and read(f"{notes}/year ????/**")[0] == [
        "year 2024/a.txt",
        "year 2024/deep/b.txt",
    ]


def test_a_folder_that_cannot_be_read_can_be_excluded(notes, monkeypatch):
    scandir = os.scandir

    def scan(folder):
        if str(folder).endswith("sub"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", scan)
    with pytest.raises(InputError, match="sub: Permission denied; make it readable, or leave it out with exclude="):
        read(notes)
    assert read(notes, exclude="sub/*") == read(notes, exclude=["x", "su*"]) == (["a.txt"], {})
