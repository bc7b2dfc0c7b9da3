"""Reading, include and exclude: a file is opened only if a document of it may be kept."""

from __future__ import annotations

import sys

import pytest

from data import InputError
from data.corpus.corpora import documents
from data.corpus.reading import Skipped, is_excluded_folder, may_be_selected


def names(corpus, **settings) -> list[str]:
    return [document.name for document in documents(corpus if isinstance(corpus, list) else str(corpus), **settings)]


@pytest.fixture
def mixed(tmp_path):
    """Notes, and files that cannot be read as text."""
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("ay")
    (folder / "deep" / "b.txt").write_text("bee")
    (folder / "foreign.jsonl").write_text('{"event": "login"}\n{"event": "logout"}\n')
    (folder / "damaged.txt.gz").write_bytes(b"\x1f\x8b and no more")
    (folder / "damaged.zst").write_bytes(b"no zstd")
    (folder / "table.parquet").write_bytes(b"PAR1 and no more")
    (folder / "lines.json").write_text('{"event": 1}\n{"event": 2}\n')
    return folder


@pytest.mark.parametrize("include", ["*.txt", ["*.txt", "*.md"], "*[.]txt", ["a*", "*deep*"], "*.tx?"])
def test_files_that_include_does_not_match_are_never_opened(mixed, monkeypatch, include):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert names(mixed, include=include) == ["a.txt", "deep/b.txt"]
    assert names([str(mixed), str(mixed / "a.txt")], include=["mixed/*.txt", "a.txt"])[-1] == "a.txt"


def test_files_that_exclude_matches_are_never_opened(mixed):
    assert names(mixed, exclude=["*.jsonl", "damaged*", "*.parquet", "lines*"]) == ["a.txt", "deep/b.txt"]


def test_a_pattern_with_a_colon_is_for_documents_within_files(tmp_path):
    for name in ("x.jsonl", "y.jsonl"):
        (tmp_path / name).write_text("".join(f'{{"text": "{n}"}}\n' for n in range(1, 13)))
    (tmp_path / "z.gz").write_bytes(b"damaged")
    assert names(tmp_path, include="x.jsonl:1*") == ["x.jsonl:1", "x.jsonl:10", "x.jsonl:11", "x.jsonl:12"]
    assert names(tmp_path, include=["*.jsonl:2", "y*:3"]) == ["x.jsonl:2", "y.jsonl:2", "y.jsonl:3"]
    assert names(tmp_path, include="x*", exclude="*:1*") == [f"x.jsonl:{n}" for n in range(2, 10)]


def test_errors_in_documents_that_are_not_selected_do_not_count(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "one"}\nbroken\n{"text": "\xff"}\n')
    (tmp_path / "y.txt").write_bytes(b"one\n<|>\n\xff\n")
    settings = {"exclude": ["*:2", "*:3"], "document_separator": "<|>", "invalid_utf8": "refuse"}
    assert names(tmp_path, **settings) == ["x.jsonl:1", "y.txt:1"]
    with pytest.raises(InputError, match=r"x\.jsonl:2: not JSON"):
        names(tmp_path, exclude="*:3", document_separator="<|>")


def test_files_that_were_not_opened_count_as_found(mixed):
    skipped = Skipped()
    with pytest.raises(InputError, match=r"none of its 7 documents is left after include='\*.md'"):
        list(documents(str(mixed), include="*.md", skipped=skipped))


def test_patterns_on_files_and_folders():
    assert may_be_selected("a:b.txt", include="a:b.txt") and may_be_selected("a", include=None)
    assert not may_be_selected("x.jsonl", include="*3")
    assert is_excluded_folder("out/", exclude="out/*") and is_excluded_folder("out/a/", exclude=["b", "out*"])
    assert not is_excluded_folder("out/", exclude=["out", "out/", "*.txt", "out/a*"])
    assert not is_excluded_folder("out/", exclude=None)
