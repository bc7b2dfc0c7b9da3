"""Formats by name and content: the same bytes are read in the same way through every door."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile

import pytest

from data import InputError
from data.corpus.corpora import documents
from data.corpus.reading import Skipped
from tests.data.corpus.test_formats import Input, parquet, zstd

LINES = "".join(json.dumps({"id": n, "text": f"text {n}"}) + "\n" for n in range(60)).encode()
TEXT = b"plain\ntext\n"


def read(corpus, **settings) -> tuple[list[str], str]:
    """The texts, and the line about the formats."""
    said: list[str] = []
    return [document.text for document in documents(str(corpus), say=said.append, **settings)], said[0]


def refused(corpus, **settings) -> str:
    with pytest.raises(InputError) as caught:
        read(corpus, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["x.json", "x.JSONL", "x.NdJson", "x.txt", "x", "x.json.gz", "x.JSONL.GZ", "x.log.zst"]
)
def test_json_lines_are_recognised_whatever_the_name(tmp_path, name):
    path = tmp_path / name
    pack = gzip.compress if name.lower().endswith("gz") else zstd if name.endswith("zst") else bytes
    path.write_bytes(pack(LINES))
    for corpus in (path, tmp_path, f"{tmp_path}/x*"):
        texts, line = read(corpus)
        assert texts == [f"text {n}" for n in range(60)] and line == f"files read: 1 as JSON Lines ({name})"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_standard_input_is_read_like_a_file_of_the_same_bytes(tmp_path, monkeypatch, pack):
    one_document = json.dumps({"text": "one"}).encode()
    for content in (LINES, TEXT, one_document, b'{"text": \n' + LINES):
        (tmp_path / "x").write_bytes(pack(content))
        from_file = texts_or_error(tmp_path / "x", tmp_path)
        monkeypatch.setattr(sys, "stdin", Input(pack(content)))
        from_stdin = texts_or_error("-", tmp_path)
        assert from_stdin == from_file


def texts_or_error(corpus, cache):
    try:
        return read(corpus, cache=cache)[0]
    except InputError as error:
        return str(error).partition(":1:")[2]


def test_a_json_document_is_text_and_that_is_said(tmp_path):
    documents_of_json = {
        "object.json": json.dumps({"text": "one"}),
        "pretty.json": json.dumps({"text": "one", "more": [{}, {}]}, indent=1),
        "list.json": json.dumps([{"text": "one"}, {"text": "two"}]),
        "rows.json": '[\n{"text": "one"},\n{"text": "two"}\n]',
        "braces.txt": "{\n{not JSON}\n{}\n",
    }
    for name, content in documents_of_json.items():
        (tmp_path / name).write_text(content)
        assert read(tmp_path / name)[0] == [content]
    (tmp_path / "lines.json").write_bytes(LINES)
    (tmp_path / "z.PARQUET").write_bytes(b"")
    parquet(tmp_path / "z.PARQUET")
    some = "list.json, object.json, pretty.json, ..."
    assert set(read(tmp_path)[1].removeprefix("files read: ").replace(some, "JSON").split(", ")) == {
        "1 as text", "4 as text including the JSON syntax (JSON)", "1 as JSON Lines (lines.json)",
        "1 as a table (z.PARQUET)",
    }  # fmt: skip


def test_a_few_broken_lines_at_the_start_do_not_hide_json_lines(tmp_path):
    (tmp_path / "x.json").write_bytes(b'\xef\xbb\xbf{"text": "cut sho\n\n' + LINES)
    assert "x.json:1: not JSON" in refused(tmp_path / "x.json")
    assert len(read(tmp_path / "x.json", max_bad_lines=1)[0]) == 60
    assert "leave the file out with exclude=" in refused(tmp_path / "x.json", text_field="body", max_bad_lines=1)


def test_compression_and_tables_are_recognised_by_content(tmp_path):
    (tmp_path / "a.txt").write_bytes(gzip.compress(TEXT))
    (tmp_path / "b").write_bytes(zstd(TEXT))
    parquet(tmp_path / "c.dat", values=("cell",))
    assert read(tmp_path)[0] == [TEXT.decode(), TEXT.decode(), "cell"]


def test_null_is_an_empty_document(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": null, "id": "a"}\n{"text": "one"}\n')
    skipped = Skipped()
    assert [d.text for d in documents(str(tmp_path), skipped=skipped)] == ["one"]
    assert skipped.counts == {"empty": [1, 0]}
    (tmp_path / "x.jsonl").write_text('{"text": null}\n')
    assert "has no text: skipped or repaired: x.jsonl:1 (empty)" in refused(tmp_path)


def test_the_fields_that_an_error_names_hold_text(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": 5, "id": 1, "body": "b"}\n')
    assert "its 'text' is not a string; set text_field= to one of body, or leave" in refused(tmp_path)
    (tmp_path / "x.jsonl").write_text('{"id": 1}\n')
    assert "no field 'text'; write the text into 'text', or leave" in refused(tmp_path)


def tar() -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("notes.txt"))
    return target.getvalue()


NOT_TEXT = {
    "a.pdf": (b"%PDF-1.7\n1 0 obj\n", "a PDF", "export it as text"),
    "a.docx": (b"PK\x03\x04rest", "a zip archive or an office document", "export it as text"),
    "a.rtf": (b"{\\rtf1 text}", "an RTF document", "export it as text"),
    "a.doc": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1rest", "an old office document", "export it as text"),
    "a.tar.gz": (gzip.compress(tar()), "a tar archive", "unpack it"),
    "a.bz2": (b"BZh91AY&SYrest", "a bzip2 file", "decompress it"),
    "mark.txt": ("one\ntwo".encode("utf-16"), "UTF-16", "convert it with iconv -f UTF-16 -t UTF-8"),
    "latin.txt": ("one\ntwo".encode("utf-16-le"), "UTF-16", "convert it with iconv -f UTF-16LE -t UTF-8"),
    "big.txt": ("one\ntwo".encode("utf-16-be"), "UTF-16", "convert it with iconv -f UTF-16BE -t UTF-8"),
    "russian.txt": ("раз два\n".encode("utf-16-le"), "UTF-16", "convert it with iconv -f UTF-16LE -t UTF-8"),
    "x.jsonl": (LINES.decode().encode("utf-16-le"), "UTF-16", "convert it with iconv -f UTF-16LE -t UTF-8"),
}


@pytest.mark.parametrize("name", NOT_TEXT)
def test_files_that_are_not_text_are_refused_with_the_fix_and_skipped_in_folders(tmp_path, monkeypatch, name):
    content, what, advice = NOT_TEXT[name]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("good")
    assert refused(tmp_path / name).endswith(f"{name} is {what}; {advice}")
    monkeypatch.setattr(sys, "stdin", Input(content))
    assert refused("-", cache=tmp_path / "cache") == f"standard input is {what}; {advice}"
    skipped = Skipped()
    assert [d.text for d in documents(str(tmp_path), exclude="cache/*", skipped=skipped)] == ["good"]
    assert skipped.counts == {f"{what}: {advice}": [1, len(content)]}


def test_utf_16_follows_invalid_utf8(tmp_path):
    (tmp_path / "x.txt").write_bytes("one\ntwo".encode("utf-16-le"))
    (tmp_path / "good.txt").write_text("good")
    assert "x.txt is UTF-16" in refused(tmp_path, invalid_utf8="refuse")
    assert "has no text" in refused(tmp_path / "x.txt", invalid_utf8="skip")
    assert read(tmp_path, invalid_utf8="replace")[0] == ["good"]


@pytest.mark.parametrize(
    "content", [b"ab\0cd\0ef\0gh\0", b"\n" * 100, b"abc\0def\0", "日本語\n".encode(), "Ā\tā\n".encode(), b"\t\0"[:1]]
)
def test_text_with_zeros_or_short_lines_is_not_taken_for_utf_16(tmp_path, content):
    (tmp_path / "x.txt").write_bytes(content)
    assert read(tmp_path / "x.txt")[0] == [content.decode()]
